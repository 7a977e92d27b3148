//! A trial cluster in a temporary folder: made as `dwcp init` makes it, run as processes, gone at the end.
//!
//! The folder stays when the thread panics or `keep` was called: the nodes' logs and data are what a fault is found by.
//! It knows folders, settings and processes; how the cluster fares is `watch`, what is done to it `campaign`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use dwcp_client::ClientConfig;
use dwcp_node::init::{ClusterOptions, DATA_FOLDER, Listen, Ports, TrialOptions, trial_cluster};
use dwcp_node::settings::Mode;

use crate::error::Trouble;
use crate::process::Process;

/// What a trial cluster is like.
#[derive(Clone, Debug)]
pub struct Options {
    /// The program whose subcommand `node` runs one node: `cluster` itself.
    pub program: PathBuf,
    pub mode: Mode,
    /// Liars tolerated; `None`: the mode's default.
    pub faults: Option<u8>,
    /// Short, because on loopback a primary that is silent for this long is dead.
    pub view_timeout_ms: u64,
    /// Small, so that a run of minutes passes many checkpoints and a new incarnation's wait is short.
    pub checkpoint_interval: u64,
    pub window: u64,
    /// Where the temporary folder is made; `None`: the system's.
    pub within: Option<PathBuf>,
}

impl Options {
    #[must_use]
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            mode: Mode::Internet,
            faults: None,
            view_timeout_ms: 700,
            checkpoint_interval: 32,
            window: 128,
            within: None,
        }
    }

    #[must_use]
    pub fn datacenter(program: impl Into<PathBuf>) -> Self {
        Self { mode: Mode::Datacenter, ..Self::new(program) }
    }
}

/// One member: where it listens and lives, and its process.
#[derive(Debug)]
pub struct Member {
    pub id: u8,
    pub incarnation: u32,
    pub listen: Listen,
    pub folder: PathBuf,
    pub process: Process,
}

#[derive(Debug)]
pub struct Cluster {
    // Before the folder: processes must be gone before their files are.
    pub members: Vec<Member>,
    /// Liars, or in datacenter mode crashed members, that are tolerated.
    pub tolerated: usize,
    pub f: u8,
    pub genesis_file: PathBuf,
    pub client_file: PathBuf,
    options: Options,
    folder: Option<tempfile::TempDir>,
    path: PathBuf,
}

impl Cluster {
    /// Makes keys, settings and data directories; starts nothing.
    ///
    /// # Errors
    /// Options that make no cluster, or a disk that refuses.
    pub fn create(nodes: usize, options: Options) -> Result<Self, Trouble> {
        let within = options.within.clone().unwrap_or_else(std::env::temp_dir);
        let folder = tempfile::Builder::new()
            .prefix("dwcp-cluster-")
            .tempdir_in(&within)
            .map_err(Trouble::io(format!("cannot make a folder in {}", within.display())))?;
        let cluster = ClusterOptions {
            name: "proof".into(),
            mode: options.mode,
            faults: options.faults,
            checkpoint_interval: options.checkpoint_interval,
            window: options.window,
            ..ClusterOptions::default()
        };
        let trial_options = TrialOptions { cluster, ports: Ports::Free, ..TrialOptions::default() };
        let trial = trial_cluster(nodes, &folder.path().join("cluster"), &trial_options)?;
        let quorum = trial.genesis.policy.quorum;
        let mut members = Vec::new();
        for node in &trial.nodes {
            set_view_timeout(&node.config_file, options.view_timeout_ms)?;
            copy_folder(&node.folder.join(DATA_FOLDER), &node.folder.join(FIRST_DAY))
                .map_err(Trouble::io("cannot copy a data directory"))?;
            let (program, config, log) =
                (options.program.clone(), node.config_file.clone(), node.folder.join("node.log"));
            let process = Process::new(node.id.0, program, config, log);
            let folder = node.folder.clone();
            members.push(Member { id: node.id.0, incarnation: 0, listen: node.listen, folder, process });
        }
        let path = folder.path().to_path_buf();
        Ok(Self {
            members,
            tolerated: nodes - quorum.q(),
            f: quorum.f(),
            genesis_file: trial.genesis_file,
            client_file: trial.client_file,
            options,
            folder: Some(folder),
            path,
        })
    }

    /// As `create`, and starts all nodes.
    ///
    /// # Errors
    /// As `create`, or a system that gives no processes.
    pub fn start(nodes: usize, options: Options) -> Result<Self, Trouble> {
        let mut cluster = Self::create(nodes, options)?;
        cluster.start_all()?;
        Ok(cluster)
    }

    pub fn n(&self) -> usize {
        self.members.len()
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn options(&self) -> &Options {
        &self.options
    }

    /// Starts those that do not run.
    ///
    /// # Errors
    /// The system gives no process.
    pub fn start_all(&mut self) -> Result<(), Trouble> {
        let stopped = self.members.iter_mut().filter(|member| !member.process.is_started());
        stopped.map(|member| &mut member.process).try_for_each(Process::start)
    }

    /// SIGKILL to one; false when it was not running.
    pub fn kill(&mut self, node: usize) -> bool {
        self.members[node].process.kill()
    }

    pub fn kill_all(&mut self) -> usize {
        self.members.iter_mut().map(|member| usize::from(member.process.kill())).sum()
    }

    /// # Errors
    /// The system gives no process.
    pub fn restart(&mut self, node: usize) -> Result<(), Trouble> {
        self.members[node].process.start()
    }

    /// # Errors
    /// A node that was not killed has ended.
    pub fn check_alive(&mut self) -> Result<(), Trouble> {
        self.members.iter_mut().try_for_each(|member| member.process.check_alive())
    }

    /// The disk is gone: the data directory of a node that does not run is emptied.
    ///
    /// # Errors
    /// A disk that refuses.
    pub fn wipe(&mut self, node: usize) -> Result<(), Trouble> {
        assert!(!self.members[node].process.is_started(), "only a dead node's disk is wiped");
        let data = self.members[node].folder.join(DATA_FOLDER);
        std::fs::remove_dir_all(&data)
            .and_then(|()| std::fs::create_dir(&data))
            .map_err(Trouble::io(format!("cannot empty {}", data.display())))
    }

    /// A disk restored from a backup of its first day: right manifest, nothing else.
    ///
    /// # Errors
    /// A disk that refuses.
    pub fn roll_back(&mut self, node: usize) -> Result<(), Trouble> {
        assert!(!self.members[node].process.is_started(), "only a dead node's disk is rolled back");
        let folder = &self.members[node].folder;
        let data = folder.join(DATA_FOLDER);
        std::fs::remove_dir_all(&data)
            .and_then(|()| copy_folder(&folder.join(FIRST_DAY), &data))
            .map_err(Trouble::io(format!("cannot roll back {}", data.display())))
    }

    /// How this machine's clients reach it: patient, because nodes are killed on purpose, and quick to reconnect.
    ///
    /// # Errors
    /// A client file that cannot be used.
    pub fn client_config(&self) -> Result<ClientConfig, Trouble> {
        let mut config = ClientConfig::read(&self.client_file, None)
            .map_err(|error| Trouble::ClientFile(error.to_string()))?;
        config.settings.call_timeout = Duration::from_secs(120);
        config.settings.connect_timeout = Duration::from_secs(1);
        config.settings.reconnect_after = Duration::from_millis(20);
        config.settings.retry_after = Duration::from_millis(300);
        Ok(config)
    }

    /// The folder stays when this is dropped.
    pub fn keep(&mut self) -> &Path {
        if let Some(folder) = self.folder.take() {
            self.path = folder.keep();
        }
        &self.path
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.kill_all();
        if std::thread::panicking() {
            eprintln!("kept for whoever looks for the reason: {}", self.keep().display());
        }
    }
}

/// The data directory as `init` made it, beside the one in use.
const FIRST_DAY: &str = "data-first-day";

/// `init` writes every setting with its default as a comment; this one is brought to life.
pub(crate) fn set_view_timeout(config_file: &Path, view_timeout_ms: u64) -> Result<(), Trouble> {
    let name = "view_timeout_ms";
    let refuse = || Trouble::io(format!("cannot set {name} in {}", config_file.display()));
    let text = std::fs::read_to_string(config_file).map_err(refuse())?;
    let is_it = |line: &str| line.trim_start_matches("# ").starts_with(&format!("{name} ="));
    assert!(text.lines().any(is_it), "a settings file of `init` shows {name}");
    let set = |line: &str| {
        if is_it(line) { format!("{name} = {view_timeout_ms}\n") } else { format!("{line}\n") }
    };
    std::fs::write(config_file, text.lines().map(set).collect::<String>()).map_err(refuse())
}

fn copy_folder(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_folder(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}
