//! A cluster of real processes on this machine, for `demo` and `bench --local`: started, killed, restarted, and gone
//! without a trace when its owner is, whatever ended the owner.
//!
//! Three nets catch the children: the two of `dwcp::child`, and the signal handlers of the callers (Ctrl-C ends in a return).
//! It knows nodes and folders, nothing of load or verdicts.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use dwcp::child::NodeChild;
use dwcp::plain_http;
use dwcp_node::init::{ClusterOptions, Ports, TrialCluster, TrialOptions, trial_cluster};
use dwcp_node::settings::Mode;

use super::output::{Failure, Outcome};

/// The folder of a local cluster: removed at the end unless it is to be kept.
#[derive(Debug)]
enum Folder {
    Temporary(tempfile::TempDir),
    Kept(PathBuf),
}

impl Folder {
    fn path(&self) -> &Path {
        match self {
            Self::Temporary(folder) => folder.path(),
            Self::Kept(path) => path,
        }
    }
}

/// One node and, while it runs, its process.
#[derive(Debug)]
pub struct LocalNode {
    pub id: u8,
    pub http: std::net::SocketAddr,
    config_file: PathBuf,
    child: NodeChild,
}

#[derive(Debug)]
pub struct LocalCluster {
    pub trial: TrialCluster,
    pub mode: Mode,
    // Before the folder: processes must be gone before their files are.
    pub nodes: Vec<LocalNode>,
    folder: Folder,
}

impl LocalCluster {
    /// Makes keys, settings and data directories; starts nothing.
    pub fn create(
        nodes: usize,
        options: ClusterOptions,
        purpose: &str,
        keep: bool,
        within: Option<&Path>,
    ) -> Outcome<Self> {
        let within = within.map_or_else(std::env::temp_dir, Path::to_path_buf);
        let temporary = tempfile::Builder::new()
            .prefix(&format!("dwcp-{purpose}-"))
            .tempdir_in(&within)
            .map_err(|error| {
                Failure::refused(format!("cannot make a folder in {}: {error}; use --dir", within.display()))
            })?;
        let mode = options.mode;
        let cluster = ClusterOptions { name: purpose.into(), ..options };
        let options = TrialOptions { cluster, ports: Ports::Free, ..TrialOptions::default() };
        let trial = trial_cluster(nodes, &temporary.path().join("cluster"), &options)?;
        let nodes = trial
            .nodes
            .iter()
            .map(|node| LocalNode {
                id: node.id.0,
                http: node.listen.http,
                config_file: node.config_file.clone(),
                child: NodeChild::new(node.folder.join("server.log")),
            })
            .collect();
        let folder = if keep { Folder::Kept(temporary.keep()) } else { Folder::Temporary(temporary) };
        Ok(Self { trial, mode, nodes, folder })
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    pub fn mode_word(&self) -> &'static str {
        self.mode.word()
    }

    pub fn config_files(&self) -> Vec<PathBuf> {
        self.nodes.iter().map(|node| node.config_file.clone()).collect()
    }

    /// Starts one node; it is not ready yet.
    pub fn start(&mut self, node: usize) -> Outcome<u32> {
        self.nodes[node].start()
    }

    pub fn start_all(&mut self) -> Outcome {
        self.nodes.iter_mut().try_for_each(|node| node.start().map(drop))
    }

    /// SIGKILL, and waits until the kernel has taken the process away. Returns the process id it had.
    pub fn kill(&mut self, node: usize) -> Option<u32> {
        self.nodes[node].child.kill()
    }

    /// Process ids of the nodes that were started and not killed, by node.
    pub fn pids(&self) -> Vec<(u8, u32)> {
        self.nodes.iter().filter_map(|node| Some((node.id, node.child.pid()?))).collect()
    }

    /// Waits until every started node says that it is ready.
    pub async fn ready(&mut self, patience: Duration) -> Outcome {
        let until = Instant::now() + patience;
        for index in 0..self.nodes.len() {
            loop {
                if self.nodes[index].child.pid().is_none() {
                    break;
                }
                self.all_alive()?;
                let last =
                    match plain_http::get(self.nodes[index].http, "/readyz", Duration::from_secs(1)).await {
                        Ok(answer) if answer.status == 200 => break,
                        Ok(answer) => answer.body.lines().next().unwrap_or("not ready").to_string(),
                        Err(error) => error,
                    };
                if Instant::now() > until {
                    let node = &self.nodes[index];
                    return Err(Failure::refused(format!(
                        "node {} is not ready after {} s ({last}); its log is {}",
                        node.id,
                        patience.as_secs(),
                        node.log_file().display()
                    )));
                }
                tokio::time::sleep(Duration::from_millis(25)).await;
            }
        }
        Ok(())
    }

    /// A node that ended by itself is a failure, told with the last words of its log.
    pub fn all_alive(&mut self) -> Outcome {
        self.nodes.iter_mut().try_for_each(LocalNode::alive)
    }

    /// Ends all nodes politely and waits; what does not end within `patience` is killed.
    pub async fn stop_all(&mut self, patience: Duration) {
        self.nodes.iter().for_each(|node| node.child.signal(rustix::process::Signal::TERM));
        let until = Instant::now() + patience;
        while Instant::now() < until && self.nodes.iter_mut().any(LocalNode::running) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        for node in &mut self.nodes {
            node.child.kill();
        }
    }
}

impl LocalNode {
    pub fn log_file(&self) -> &Path {
        self.child.log_file()
    }

    fn start(&mut self) -> Outcome<u32> {
        let program = std::env::current_exe()
            .map_err(|error| Failure::refused(format!("cannot find this very program: {error}")))?;
        let mut command = Command::new(program);
        command.arg("server").arg("--config").arg(&self.config_file);
        command.arg("--with-parent").arg(std::process::id().to_string());
        let started = self.child.start(command);
        started.map_err(|error| Failure::refused(format!("cannot start node {}: {error}", self.id)))
    }

    fn running(&mut self) -> bool {
        self.child.pid().is_some() && self.child.ended().is_none()
    }

    fn alive(&mut self) -> Outcome {
        match self.child.ended() {
            Some((status, words)) => {
                Err(Failure::refused(format!("node {} ended by itself ({status}): {words}", self.id)))
            }
            None => Ok(()),
        }
    }
}

/// Resolves when a person (Ctrl-C) or the system (SIGTERM, SIGHUP) wants an end.
pub async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut terminate), Ok(mut hang_up)) =
        (signal(SignalKind::terminate()), signal(SignalKind::hangup()))
    else {
        // Without handlers the default action ends the process, and the kernel its children.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
        _ = hang_up.recv() => {}
    }
}
