//! One node as an operating system process: started, killed, paused, and dead when its owner is.
//!
//! Two nets catch the children: `Drop` (return, error, panic) and the kernel, which kills a node whose parent died
//! (`serve`). It knows processes and log files, nothing of clusters.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::error::Trouble;

/// Bytes of a node's log that are looked at for the reason of its end.
const LOG_TAIL_BYTES: u64 = 8192;

/// One node and, while it runs, its process.
#[derive(Debug)]
pub struct Process {
    pub node: u8,
    /// The program whose subcommand `node` runs one node.
    pub program: PathBuf,
    pub config_file: PathBuf,
    pub log_file: PathBuf,
    /// The network namespace it runs in; `None`: this program's.
    pub namespace: Option<String>,
    child: Option<Child>,
    paused: bool,
}

impl Process {
    pub fn new(node: u8, program: PathBuf, config_file: PathBuf, log_file: PathBuf) -> Self {
        Self { node, program, config_file, log_file, namespace: None, child: None, paused: false }
    }

    /// Starts it; it is not ready yet. Must be called on a thread that outlives it: the kernel ties it to that thread.
    ///
    /// # Errors
    /// The system gives no process or no file.
    pub fn start(&mut self) -> Result<(), Trouble> {
        assert!(self.child.is_none(), "node {} runs already", self.node);
        let open = || {
            let log = File::options().create(true).append(true).open(&self.log_file)?;
            Ok((log.try_clone()?, log))
        };
        let (log, twin) = open().map_err(Trouble::io("cannot write a node's log"))?;
        let mut command = match &self.namespace {
            None => Command::new(&self.program),
            // Becomes the program: the child is the node all the same.
            Some(name) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", name]).arg(&self.program);
                command
            }
        };
        let child = command
            .arg("node")
            .arg("--config")
            .arg(&self.config_file)
            .arg("--with-parent")
            .arg(std::process::id().to_string())
            .stdin(Stdio::null())
            .stdout(twin)
            .stderr(log)
            .spawn()
            .map_err(Trouble::io(format!("cannot start {}", self.program.display())))?;
        self.child = Some(child);
        self.paused = false;
        Ok(())
    }

    /// SIGKILL, and waits until the kernel has taken the process away. False: it was not running.
    pub fn kill(&mut self) -> bool {
        let Some(mut child) = self.child.take() else { return false };
        // Fails only when the process has ended already.
        let _ = child.kill();
        let _ = child.wait();
        self.paused = false;
        true
    }

    /// SIGSTOP: it keeps its sockets and says nothing.
    pub fn pause(&mut self) {
        self.signal(Signal::STOP);
        self.paused = true;
    }

    /// SIGCONT.
    pub fn resume(&mut self) {
        if self.paused {
            self.signal(Signal::CONT);
            self.paused = false;
        }
    }

    pub fn is_started(&self) -> bool {
        self.child.is_some()
    }

    pub fn is_paused(&self) -> bool {
        self.paused
    }

    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    fn signal(&self, signal: Signal) {
        let pid = self.child.as_ref().and_then(|child| Pid::from_raw(child.id().cast_signed()));
        if let Some(pid) = pid {
            // The child is not reaped yet, so the id is still its own.
            let _ = kill_process(pid, signal);
        }
    }

    /// # Errors
    /// It was started, not killed, and has ended all the same.
    pub fn check_alive(&mut self) -> Result<(), Trouble> {
        let Some(child) = &mut self.child else { return Ok(()) };
        match child.try_wait() {
            Ok(Some(status)) => {
                let (node, how) = (self.node, status.to_string());
                Err(Trouble::Ended { node, how, words: last_words(&self.log_file) })
            }
            _ => Ok(()),
        }
    }

    /// Waits for its own end; `None` when it still runs after `patience`.
    pub fn wait_for_end(&mut self, patience: Duration) -> Option<(ExitStatus, String)> {
        let until = Instant::now() + patience;
        let child = self.child.as_mut()?;
        loop {
            if let Ok(Some(status)) = child.try_wait() {
                self.child = None;
                return Some((status, last_words(&self.log_file)));
            }
            if Instant::now() > until {
                return None;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The last line of a log that is not empty.
#[must_use]
pub fn last_words(log: &Path) -> String {
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
