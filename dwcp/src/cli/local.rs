//! A cluster of real processes on this machine, for `demo` and `bench --local`: started, killed, restarted, and gone
//! without a trace when its owner is, whatever ended the owner.
//!
//! Three nets catch the children: `Drop` (return, error, panic), the signal handlers of the callers (Ctrl-C ends in a
//! return), and the kernel, which kills a child whose parent died (`dwcp server --with-parent`). It knows processes and
//! folders, nothing of load or verdicts.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use dwcp_node::init::{ClusterOptions, Ports, TrialCluster, TrialOptions, trial_cluster};
use dwcp_node::settings::Mode;

use super::http;
use super::output::{Failure, Outcome};

/// Bytes of a node's log that are looked at for the reason of its end.
const LOG_TAIL_BYTES: u64 = 4096;

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
    pub folder: PathBuf,
    config_file: PathBuf,
    child: Option<Child>,
}

#[derive(Debug)]
pub struct LocalCluster {
    pub trial: TrialCluster,
    mode: Mode,
    // Before the folder: processes must be gone before their files are.
    pub nodes: Vec<LocalNode>,
    folder: Folder,
}

impl LocalCluster {
    /// Makes keys, settings and data directories; starts nothing.
    pub fn create(
        nodes: usize,
        mode: Mode,
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
        let cluster = ClusterOptions { name: purpose.into(), mode, ..ClusterOptions::default() };
        let options = TrialOptions { cluster, ports: Ports::Free, ..TrialOptions::default() };
        let trial = trial_cluster(nodes, &temporary.path().join("cluster"), &options)?;
        let nodes = trial
            .nodes
            .iter()
            .map(|node| LocalNode {
                id: node.id.0,
                http: node.listen.http,
                folder: node.folder.clone(),
                config_file: node.config_file.clone(),
                child: None,
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
        self.nodes[node].kill()
    }

    /// Process ids of the nodes that were started and not killed, by node.
    pub fn pids(&self) -> Vec<(u8, u32)> {
        self.nodes.iter().filter_map(|node| Some((node.id, node.child.as_ref()?.id()))).collect()
    }

    /// Waits until every started node says that it is ready.
    pub async fn ready(&mut self, patience: Duration) -> Outcome {
        let until = Instant::now() + patience;
        for index in 0..self.nodes.len() {
            loop {
                if self.nodes[index].child.is_none() {
                    break;
                }
                self.all_alive()?;
                let last = match http::get(self.nodes[index].http, "/readyz", Duration::from_secs(1)).await {
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
        for node in &self.nodes {
            if let Some(child) = &node.child
                && let Some(pid) = rustix::process::Pid::from_raw(child.id().cast_signed())
            {
                // A process that has ended already is what is wanted.
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            }
        }
        let until = Instant::now() + patience;
        while Instant::now() < until && self.nodes.iter_mut().any(LocalNode::running) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        for node in &mut self.nodes {
            node.kill();
        }
    }
}

impl LocalNode {
    pub fn log_file(&self) -> PathBuf {
        self.folder.join("server.log")
    }

    fn start(&mut self) -> Outcome<u32> {
        let log = File::options().create(true).append(true).open(self.log_file());
        let log = log.map_err(|error| Failure::refused(format!("cannot write a node's log: {error}")))?;
        let program = std::env::current_exe()
            .map_err(|error| Failure::refused(format!("cannot find this very program: {error}")))?;
        let log_twin =
            log.try_clone().map_err(|error| Failure::refused(format!("no second log handle: {error}")))?;
        let child = Command::new(program)
            .arg("server")
            .arg("--config")
            .arg(&self.config_file)
            .arg("--with-parent")
            .arg(std::process::id().to_string())
            .stdin(Stdio::null())
            .stdout(log_twin)
            .stderr(log)
            .spawn()
            .map_err(|error| Failure::refused(format!("cannot start node {}: {error}", self.id)))?;
        let pid = child.id();
        self.child = Some(child);
        Ok(pid)
    }

    fn kill(&mut self) -> Option<u32> {
        let mut child = self.child.take()?;
        let pid = child.id();
        // Fails only when the process has ended already.
        let _ = child.kill();
        let _ = child.wait();
        Some(pid)
    }

    fn running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| child.try_wait().is_ok_and(|status| status.is_none()))
    }

    fn alive(&mut self) -> Outcome {
        let Some(child) = &mut self.child else { return Ok(()) };
        match child.try_wait() {
            Ok(Some(status)) => {
                let words = last_words(&self.log_file());
                Err(Failure::refused(format!("node {} ended by itself ({status}): {words}", self.id)))
            }
            _ => Ok(()),
        }
    }
}

impl Drop for LocalNode {
    fn drop(&mut self) {
        self.kill();
    }
}

fn last_words(log: &Path) -> String {
    let mut text = Vec::new();
    let read = File::open(log).and_then(|mut file| {
        let end = file.seek(SeekFrom::End(0))?;
        file.seek(SeekFrom::Start(end.saturating_sub(LOG_TAIL_BYTES)))?;
        file.read_to_end(&mut text)
    });
    let text = String::from_utf8_lossy(&text);
    match (read, text.lines().rfind(|line| !line.trim().is_empty())) {
        (Ok(_), Some(line)) => line.trim().to_string(),
        _ => format!("nothing was logged in {}", log.display()),
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
