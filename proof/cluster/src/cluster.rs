//! A trial cluster in a temporary folder: made as `dwcp init` makes it, run as processes, gone at the end.
//!
//! The folder stays when the thread panics or `keep` was called: the nodes' logs and data are what a fault is found by.
//! It knows folders, settings and processes; how the cluster fares is `watch`, what is done to it `campaign`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dwcp::proxy::LinkProxies;
use dwcp_base::configuration::Role;
use dwcp_base::{ReplicaId, Trust};
use dwcp_client::{ClientConfig, ClientFile};
use dwcp_node::init::{
    ClusterOptions, DATA_FOLDER, Listen, Ports, TrialCluster, TrialNode, TrialOptions, from_members, keygen,
    keygen_principal, node_data, trial_cluster,
};
use dwcp_node::settings::Mode;

use crate::error::Trouble;
use crate::network::{Network, Volume};
use crate::process::Process;

/// What a trial cluster is like.
#[derive(Clone, Debug)]
pub struct Options {
    /// The program whose subcommand `node` runs one node: `cluster` itself.
    pub program: PathBuf,
    pub mode: Mode,
    /// Liars tolerated; `None`: the mode's default.
    pub faults: Option<u8>,
    /// How long hybrid mode stays without a segment after one has failed. Short, so that a run sees many segments.
    pub calm_ms: u64,
    /// Short, because on loopback a primary that is silent for this long is dead.
    pub view_timeout_ms: u64,
    /// Small, so that a run of minutes passes many checkpoints and a new incarnation's wait is short.
    pub checkpoint_interval: u64,
    pub window: u64,
    /// Small, so that a log soon needs the next one; `None`: the default.
    pub segment_bytes: Option<u64>,
    /// Every node in a network namespace of its own (see [`crate::network`]).
    pub namespaces: bool,
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
            calm_ms: 1_000,
            view_timeout_ms: 700,
            checkpoint_interval: 32,
            window: 128,
            segment_bytes: None,
            namespaces: false,
            within: None,
        }
    }

    #[must_use]
    pub fn datacenter(program: impl Into<PathBuf>) -> Self {
        Self { mode: Mode::Datacenter, ..Self::new(program) }
    }

    #[must_use]
    pub fn hybrid(program: impl Into<PathBuf>) -> Self {
        Self { mode: Mode::Hybrid, ..Self::new(program) }
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
    pub trust: Trust,
    pub genesis_file: PathBuf,
    pub client_file: PathBuf,
    options: Options,
    pub network: Option<Network>,
    volumes: Vec<Volume>,
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
            calm_ms: options.calm_ms,
            checkpoint_interval: options.checkpoint_interval,
            window: options.window,
            ..ClusterOptions::default()
        };
        let out = folder.path().join("cluster");
        let network = options.namespaces.then(|| Network::new(nodes)).transpose()?;
        if let Some(network) = network.as_ref().filter(|_| nodes > 1) {
            network.check(&options.program)?;
        }
        let trial = if network.is_some() {
            cluster_on_addresses(nodes, &out, &cluster)?
        } else {
            let options = TrialOptions { cluster, ports: Ports::Free, ..TrialOptions::default() };
            trial_cluster(nodes, &out, &options)?
        };
        let quorum = trial.genesis.policy.quorum;
        let mut members = Vec::new();
        for node in &trial.nodes {
            set_setting(&node.config_file, VIEW_TIMEOUT, options.view_timeout_ms)?;
            if let Some(bytes) = options.segment_bytes {
                set_setting(&node.config_file, "segment_bytes", bytes)?;
            }
            copy_folder(&node.folder.join(DATA_FOLDER), &node.folder.join(FIRST_DAY))
                .map_err(Trouble::io("cannot copy a data directory"))?;
            let (program, config, log) =
                (options.program.clone(), node.config_file.clone(), node.folder.join("node.log"));
            let mut process = Process::new(node.id.0, program, config, log);
            process.namespace = network.is_some().then(|| Network::namespace(usize::from(node.id.0)));
            let folder = node.folder.clone();
            members.push(Member { id: node.id.0, incarnation: 0, listen: node.listen, folder, process });
        }
        let path = folder.path().to_path_buf();
        Ok(Self {
            members,
            tolerated: nodes - quorum.q(),
            f: quorum.f(),
            trust: trial.genesis.policy.trust,
            genesis_file: trial.genesis_file,
            client_file: trial.client_file,
            options,
            network,
            volumes: Vec::new(),
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

    /// From the next start on nodes reach each other through these proxies.
    ///
    /// # Errors
    /// A disk that refuses.
    pub fn speak_through(&self, proxies: &LinkProxies) -> Result<(), Trouble> {
        for member in &self.members {
            let config_file = member.process.config_file.as_path();
            let via = format!("peer_via = \"{}\"\n", proxies.via(member.id));
            std::fs::read_to_string(config_file)
                .and_then(|text| std::fs::write(config_file, via + &text))
                .map_err(Trouble::io(format!("cannot change {}", config_file.display())))?;
        }
        Ok(())
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

    /// Moves the data of a node that does not run onto a volume of its own.
    ///
    /// # Errors
    /// A disk that refuses.
    pub fn move_to_volume(&mut self, node: usize, mebibytes: u64) -> Result<(), Trouble> {
        assert!(!self.members[node].process.is_started(), "only a dead node's disk is moved");
        let data = self.members[node].folder.join(DATA_FOLDER);
        let before = data.with_file_name("data-before");
        std::fs::rename(&data, &before)
            .and_then(|()| std::fs::create_dir(&data))
            .map_err(Trouble::io(format!("cannot move {}", data.display())))?;
        let volume = Volume::mount(&data, mebibytes)?;
        copy_folder(&before, &data).map_err(Trouble::io(format!("cannot fill {}", data.display())))?;
        self.volumes.push(volume);
        Ok(())
    }

    /// The volume that was made last.
    ///
    /// # Panics
    /// When none was made.
    pub fn volume(&self) -> &Volume {
        self.volumes.last().expect("a node was moved to a volume")
    }

    /// A disk restored from a backup of its first day: right manifest, nothing else.
    ///
    /// # Errors
    /// A disk that refuses.
    pub fn roll_back(&mut self, node: usize) -> Result<(), Trouble> {
        self.restore(node, FIRST_DAY)
    }

    /// Copies the disk of a node that runs, as a kill at this moment would leave it.
    ///
    /// # Errors
    /// A disk that refuses.
    pub fn copy_disk(&mut self, node: usize) -> Result<(), Trouble> {
        let member = &mut self.members[node];
        let (data, copy) = (member.folder.join(DATA_FOLDER), member.folder.join(COPY));
        if copy.exists() {
            std::fs::remove_dir_all(&copy).map_err(Trouble::io("cannot remove an old copy"))?;
        }
        member.process.pause();
        let copied = copy_folder(&data, &copy);
        member.process.resume();
        copied.map_err(Trouble::io("cannot copy a data directory"))
    }

    /// A disk that has forgotten all since `copy_disk`.
    ///
    /// # Errors
    /// A disk that refuses.
    pub fn roll_back_to_copy(&mut self, node: usize) -> Result<(), Trouble> {
        self.restore(node, COPY)
    }

    fn restore(&mut self, node: usize, from: &str) -> Result<(), Trouble> {
        assert!(!self.members[node].process.is_started(), "only a dead node's disk is rolled back");
        let folder = &self.members[node].folder;
        let data = folder.join(DATA_FOLDER);
        std::fs::remove_dir_all(&data)
            .and_then(|()| copy_folder(&folder.join(from), &data))
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

    /// As the one whose orders count.
    ///
    /// # Errors
    /// A client file that cannot be used.
    pub fn admin_config(&self) -> Result<ClientConfig, Trouble> {
        ClientConfig::read(&self.client_file, Some("admin"))
            .map_err(|error| Trouble::ClientFile(error.to_string()))
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
        // Before the folders they hide.
        self.volumes.clear();
        if std::thread::panicking() {
            eprintln!("kept for whoever looks for the reason: {}", self.keep().display());
        }
    }
}

/// The data directory as `init` made it, beside the one in use.
const FIRST_DAY: &str = "data-first-day";
/// And as it was at another time.
const COPY: &str = "data-copy";

pub(crate) const VIEW_TIMEOUT: &str = "view_timeout_ms";

/// As `trial_cluster`, but every node has an address of its own. The road of parties that share no keys.
fn cluster_on_addresses(nodes: usize, out: &Path, options: &ClusterOptions) -> Result<TrialCluster, Trouble> {
    let mut blocks = String::new();
    let mut places = Vec::new();
    for node in 0..nodes {
        let at = |port| SocketAddr::new(Network::address(node), port);
        let listen = Listen { peer: at(7100), client: at(7101), http: at(7102) };
        let folder = out.join(format!("node{node}"));
        blocks.push_str(&keygen(&folder, &listen.peer.to_string(), &listen.client.to_string())?);
        places.push((folder, listen));
    }
    blocks.push_str(&keygen_principal(out, "admin", Role::Admin)?);
    let (members_file, genesis_file) = (out.join("members.toml"), out.join("genesis.toml"));
    std::fs::write(&members_file, blocks).map_err(Trouble::io("cannot write members.toml"))?;
    let genesis = from_members(&members_file, &genesis_file, options)?;
    let client_file = out.join("client.toml");
    std::fs::write(&client_file, ClientFile::of_genesis(&genesis).to_toml())
        .map_err(Trouble::io("cannot write client.toml"))?;
    let mut made = Vec::new();
    for (id, (folder, listen)) in (0..).map(ReplicaId).zip(places) {
        let config_file = node_data(&genesis_file, id, &folder, &listen)?;
        made.push(TrialNode { id, folder, config_file, listen });
    }
    Ok(TrialCluster { genesis, genesis_file, client_file, nodes: made })
}

/// `init` writes every setting with its default as a comment; this one is brought to life.
pub(crate) fn set_setting(config_file: &Path, name: &str, value: u64) -> Result<(), Trouble> {
    let refuse = || Trouble::io(format!("cannot set {name} in {}", config_file.display()));
    let text = std::fs::read_to_string(config_file).map_err(refuse())?;
    let is_it = |line: &str| line.trim_start_matches("# ").starts_with(&format!("{name} ="));
    assert!(text.lines().any(is_it), "a settings file of `init` shows {name}");
    let set = |line: &str| {
        if is_it(line) { format!("{name} = {value}\n") } else { format!("{line}\n") }
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
