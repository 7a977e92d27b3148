//! One node as an operating system process: started, killed, paused, and dead when its owner is.
//!
//! `dwcp::child` sees to it that none is left behind. It knows processes and log files, nothing of clusters.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use dwcp::child::NodeChild;
use rustix::process::Signal;

use crate::error::Trouble;

/// One node and, while it runs, its process.
#[derive(Debug)]
pub struct Process {
    pub node: u8,
    /// The program whose subcommand `node` runs one node.
    pub program: PathBuf,
    pub config_file: PathBuf,
    /// The network namespace it runs in; `None`: this program's.
    pub namespace: Option<String>,
    child: NodeChild,
    paused: bool,
}

impl Process {
    pub fn new(node: u8, program: PathBuf, config_file: PathBuf, log_file: PathBuf) -> Self {
        Self { node, program, config_file, namespace: None, child: NodeChild::new(log_file), paused: false }
    }

    /// Starts it; it is not ready yet. Must be called on a thread that outlives it: the kernel ties it to that thread.
    ///
    /// # Errors
    /// The system gives no process or no file.
    pub fn start(&mut self) -> Result<(), Trouble> {
        let mut command = match &self.namespace {
            None => Command::new(&self.program),
            // Becomes the program: the child is the node all the same.
            Some(name) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", name]).arg(&self.program);
                command
            }
        };
        command.arg("node").arg("--config").arg(&self.config_file);
        command.arg("--with-parent").arg(std::process::id().to_string());
        self.child.start(command).map_err(Trouble::io(format!("cannot start {}", self.program.display())))?;
        self.paused = false;
        Ok(())
    }

    /// SIGKILL, and waits until the kernel has taken the process away. False: it was not running.
    pub fn kill(&mut self) -> bool {
        self.paused = false;
        self.child.kill().is_some()
    }

    /// SIGSTOP: it keeps its sockets and says nothing.
    pub fn pause(&mut self) {
        self.child.signal(Signal::STOP);
        self.paused = true;
    }

    /// SIGCONT.
    pub fn resume(&mut self) {
        if self.paused {
            self.child.signal(Signal::CONT);
            self.paused = false;
        }
    }

    pub fn is_started(&self) -> bool {
        self.child.pid().is_some()
    }

    pub fn is_paused(&self) -> bool {
        self.paused
    }

    pub fn pid(&self) -> Option<u32> {
        self.child.pid()
    }

    /// # Errors
    /// It was started, not killed, and has ended all the same.
    pub fn check_alive(&mut self) -> Result<(), Trouble> {
        match self.child.ended() {
            Some((status, words)) => Err(Trouble::Ended { node: self.node, how: status.to_string(), words }),
            None => Ok(()),
        }
    }

    /// Waits for its own end; `None` when it still runs after `patience`.
    pub fn wait_for_end(&mut self, patience: Duration) -> Option<(ExitStatus, String)> {
        self.child.pid()?;
        let until = Instant::now() + patience;
        loop {
            if let Some(ended) = self.child.ended() {
                self.kill();
                return Some(ended);
            }
            if Instant::now() > until {
                return None;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    #[must_use]
    pub fn log_file(&self) -> &Path {
        self.child.log_file()
    }
}
