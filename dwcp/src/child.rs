//! A node as a child process: its log in a file, dead when its owner is.
//!
//! Two nets catch it: `Drop` (return, error, panic) and the kernel, which kills a child that called [`end_with_parent`]
//! when its parent dies. What the program is, and what its exit code means, is not known here. For `dwcp demo`, `dwcp bench
//! --local` and tests that kill real nodes.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process};

/// Bytes at the end of a log that are looked at for the reason of a process's end.
const LOG_TAIL_BYTES: u64 = 8192;

/// One process and, while it runs, its handle.
#[derive(Debug)]
pub struct NodeChild {
    log_file: PathBuf,
    child: Option<Child>,
}

impl NodeChild {
    /// Not started yet. The log is appended to over all starts.
    #[must_use]
    pub fn new(log_file: PathBuf) -> Self {
        Self { log_file, child: None }
    }

    #[must_use]
    pub fn log_file(&self) -> &Path {
        &self.log_file
    }

    /// Starts it and returns its process id. A process that calls [`end_with_parent`] is tied to the calling *thread*, which
    /// must outlive it.
    ///
    /// # Errors
    /// The system gives no process or no file.
    ///
    /// # Panics
    /// When it runs already.
    pub fn start(&mut self, mut command: Command) -> io::Result<u32> {
        assert!(self.child.is_none(), "a process is started once");
        let log = File::options().create(true).append(true).open(&self.log_file)?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn()?;
        let pid = child.id();
        self.child = Some(child);
        Ok(pid)
    }

    /// SIGKILL, and waits until the kernel has taken the process away. The id it had; `None`: it was not started.
    pub fn kill(&mut self) -> Option<u32> {
        let mut child = self.child.take()?;
        // Fails only when the process has ended already.
        let _ = child.kill();
        let _ = child.wait();
        Some(child.id())
    }

    pub fn signal(&self, signal: Signal) {
        let pid = self.child.as_ref().and_then(|child| Pid::from_raw(child.id().cast_signed()));
        if let Some(pid) = pid {
            // The child is not reaped yet, so the id is still its own. One that has ended already hears nothing.
            let _ = kill_process(pid, signal);
        }
    }

    /// Its process id; `None`: it was not started, or was killed.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// How it ended and its last words, if it was started, not killed, and has ended all the same.
    pub fn ended(&mut self) -> Option<(ExitStatus, String)> {
        let status = self.child.as_mut()?.try_wait().ok()??;
        Some((status, last_words(&self.log_file)))
    }
}

impl Drop for NodeChild {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Has the kernel kill this process when the parent of that id ends; for the child's side.
///
/// # Errors
/// A kernel that refuses, or a parent that has ended already.
pub fn end_with_parent(parent: i32) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    // It may have ended before the line above.
    let now = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get());
    if now == Some(parent) { Ok(()) } else { Err(io::Error::other("the parent process has ended")) }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_child_that_ends_by_itself_is_told_with_its_last_words() {
        let folder = tempfile::tempdir().unwrap();
        let mut child = NodeChild::new(folder.path().join("log"));
        assert_eq!((child.pid(), child.kill()), (None, None));
        child.start(shell("echo one; echo two >&2; echo; exit 3")).unwrap();
        let ended = loop {
            if let Some(ended) = child.ended() {
                break ended;
            }
            std::thread::yield_now();
        };
        assert_eq!((ended.0.code(), ended.1.as_str()), (Some(3), "two"));
        assert!(child.kill().is_some() && child.ended().is_none());
        child.start(shell("exec sleep 1000")).unwrap();
        let pid = child.pid().unwrap();
        drop(child);
        assert!(!Path::new(&format!("/proc/{pid}/exe")).exists(), "nothing outlives its owner");
    }
}
