//! The program as a stranger meets it: the real binary, its exit codes, its words, its processes.
//!
//! `refusals` holds one row for every bad input and compares message and exit code, `refused_disks` those that are disks; `cluster` starts nodes of real
//! processes and does what the `--help` texts say; `examples` runs the library's, and `adaptive` asks more of it. Nothing here waits for a fixed time: what is waited for has a bound
//! far above what any machine needs, and the bound is the only failure.

#[path = "cli/adaptive.rs"]
mod adaptive;
#[path = "cli/cluster.rs"]
mod cluster;
#[path = "cli/embedded_sync.rs"]
mod embedded_sync;
#[path = "cli/examples.rs"]
mod examples;
#[path = "cli/hints.rs"]
mod hints;
#[path = "cli/reads.rs"]
mod reads;
#[path = "cli/refusals.rs"]
mod refusals;
#[path = "cli/refused_disks.rs"]
mod refused_disks;
#[path = "cli/stopped_log.rs"]
mod stopped_log;
#[path = "cli/sync.rs"]
mod sync;
#[path = "cli/sync_types.rs"]
mod sync_types;
#[path = "cli/sync_watch.rs"]
mod sync_watch;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Far above what any machine needs.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a run of the program left behind.
#[derive(Debug)]
struct Ran {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Ran {
    fn of(output: &Output) -> Self {
        Self {
            code: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    #[track_caller]
    fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.out
    }

    /// The one line of a failure.
    #[track_caller]
    fn refused(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:?}");
        let lines: Vec<&str> = self.err.lines().filter(|line| line.starts_with("error:")).collect();
        assert_eq!(lines.len(), 1, "one line says why: {self:?}");
        for word in words {
            assert!(lines[0].contains(word), "`{word}` is missing: {self:?}");
        }
    }
}

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dwcp"));
    command.env_remove("DWCP_CLUSTER").env_remove("NO_COLOR");
    command
}

fn dwcp(folder: &Path, args: &[&str]) -> Ran {
    dwcp_with_input(folder, args, b"")
}

fn dwcp_with_input(folder: &Path, args: &[&str], input: &[u8]) -> Ran {
    let mut child = program()
        .args(args)
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program was built");
    let mut stdin = child.stdin.take().expect("it is piped");
    // A program that refuses early does not read on.
    let _ = stdin.write_all(input);
    drop(stdin);
    Ran::of(&child.wait_with_output().expect("it ends"))
}

/// A trial cluster's folder, and the nodes that run. All are killed when it goes.
struct Trial {
    // Before the folder: processes must be gone before their files are.
    nodes: Vec<Option<Child>>,
    folder: tempfile::TempDir,
}

impl Trial {
    fn new(nodes: usize, mode: &str) -> Self {
        Self::with(nodes, mode, &[])
    }

    fn with(nodes: usize, mode: &str, besides: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let count = nodes.to_string();
        let init = ["init", "--nodes", &count, "--out", "trial", "--mode", mode, "--base-port", "0"];
        dwcp(folder.path(), &[&init, besides].concat()).ok();
        Self { nodes: (0..nodes).map(|_| None).collect(), folder }
    }

    fn started(nodes: usize, mode: &str) -> Self {
        let mut trial = Self::new(nodes, mode);
        (0..nodes).for_each(|node| trial.start(node));
        trial.await_ready(nodes);
        trial
    }

    fn path(&self, inside: &str) -> PathBuf {
        self.folder.path().join("trial").join(inside)
    }

    fn config(&self, node: usize) -> PathBuf {
        self.path(&format!("node{node}/config.toml"))
    }

    fn start(&mut self, node: usize) {
        let config = self.config(node);
        self.nodes[node] = Some(spawn_server(&config, &self.path(&format!("node{node}/server.log"))));
    }

    /// As `kill -9` would.
    fn kill(&mut self, node: usize) {
        if let Some(mut child) = self.nodes[node].take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn run(&self, args: &[&str]) -> Ran {
        self.run_with_input(args, b"")
    }

    fn run_with_input(&self, args: &[&str], input: &[u8]) -> Ran {
        dwcp_with_input(&self.folder.path().join("trial"), args, input)
    }

    #[track_caller]
    fn json(&self, args: &[&str]) -> Value {
        let all: Vec<&str> = ["--json"].iter().chain(args).copied().collect();
        let out = self.run(&all).ok();
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}"))
    }

    /// Until so many nodes say that they are ready.
    #[track_caller]
    fn await_ready(&self, nodes: usize) {
        self.await_status("ready nodes", |status| {
            status.iter().filter(|node| node["ready"] == true).count() >= nodes
        });
    }

    #[track_caller]
    fn await_status(&self, what: &str, holds: impl Fn(&[Value]) -> bool) {
        let until = Instant::now() + PATIENCE;
        loop {
            let ran = self.run(&["--json", "status"]);
            let seen: Value = serde_json::from_str(&ran.out).unwrap_or_default();
            if seen["nodes"].as_array().is_some_and(|nodes| holds(nodes)) {
                return;
            }
            assert!(Instant::now() < until, "{what} did not come: {ran:?}\n{}", self.logs());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn logs(&self) -> String {
        let read =
            |node| std::fs::read_to_string(self.path(&format!("node{node}/server.log"))).unwrap_or_default();
        (0..self.nodes.len()).map(|node| format!("--- node {node}\n{}", read(node))).collect()
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        (0..self.nodes.len()).for_each(|node| self.kill(node));
    }
}

fn spawn_server(config: &Path, log: &Path) -> Child {
    spawn_server_with(config, log, &[])
}

fn spawn_server_with(config: &Path, log: &Path, environment: &[(&str, &Path)]) -> Child {
    let log = std::fs::File::options().create(true).append(true).open(log).expect("a log file");
    program()
        .arg("server")
        .arg("--config")
        .arg(config)
        .args(["--with-parent", &std::process::id().to_string()])
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .expect("the program was built")
}

/// Runs a server that is expected to refuse.
fn refused_server(config: &Path) -> Ran {
    let mut child = program()
        .arg("server")
        .arg("--config")
        .arg(config)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program was built");
    let until = Instant::now() + PATIENCE;
    while child.try_wait().expect("a child can be waited for").is_none() {
        if Instant::now() > until {
            let _ = child.kill();
            panic!("the server runs although it should refuse: {:?}", child.wait_with_output());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ran::of(&child.wait_with_output().expect("it has ended"))
}

fn newest_file_with(folder: &Path, needle: &[u8]) -> Option<PathBuf> {
    let mut open = vec![folder.to_path_buf()];
    let mut found = Vec::new();
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let path = entry.path();
            if path.is_dir() {
                open.push(path);
            } else if std::fs::read(&path).is_ok_and(|bytes| find(&bytes, needle).is_some()) {
                found.push(path);
            }
        }
    }
    found.sort();
    found.pop()
}

fn find(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    bytes.windows(needle.len()).position(|window| window == needle)
}
