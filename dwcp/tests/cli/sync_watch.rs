//! Changes of convergent keys as they come: `dwcp sync watch`, and the same over HTTP.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::sync::mpsc::{Receiver, channel};

use super::sync::{http_address, set};
use super::*;

/// Lines as they come.
struct Lines(Receiver<String>);

impl Lines {
    fn of(from: impl std::io::Read + Send + 'static) -> Self {
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(from).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self(lines)
    }

    #[track_caller]
    fn next(&self) -> String {
        self.0.recv_timeout(PATIENCE).expect("a line comes")
    }

    /// The next line that has something to say.
    #[track_caller]
    fn json(&self) -> Value {
        loop {
            let line = self.next();
            // Between them the sizes of HTTP's chunks, and lines that say that nothing happened.
            if line.starts_with('{') {
                return serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
            }
        }
    }
}

struct Watch {
    child: Child,
    out: Lines,
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Watch {
    /// Returns once nothing more is missed.
    fn start(trial: &Trial, args: &[&str]) -> Self {
        let mut child = program()
            .args(args)
            .current_dir(trial.folder.path().join("trial"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program was built");
        let told = Lines::of(child.stderr.take().expect("it is piped"));
        assert_eq!(told.next(), "watching; Ctrl-C ends it");
        let out = Lines::of(child.stdout.take().expect("it is piped"));
        Self { child, out }
    }

    /// As Ctrl-C would; its exit code.
    fn interrupt(mut self) -> Option<i32> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("it runs");
        self.child.wait().expect("it ends").code()
    }
}

/// The answer to a `GET` that does not end, until this is dropped.
struct Streamed {
    lines: Lines,
    stream: TcpStream,
}

impl Drop for Streamed {
    fn drop(&mut self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }
}

fn streamed(trial: &Trial, node: usize, path: &str) -> (u16, Streamed) {
    let mut stream = TcpStream::connect(http_address(trial, node)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let lines = Lines::of(stream.try_clone().unwrap());
    let status = lines.next();
    let code = status.split_whitespace().nth(1).unwrap().parse().unwrap();
    while !lines.next().is_empty() {}
    (code, Streamed { lines, stream })
}

#[test]
fn changes_made_anywhere_come_to_who_watches_their_prefix() {
    let mut trial = Trial::new(4, "internet");
    for node in 0..4 {
        set(&trial, node, "http = \"write\"");
        trial.start(node);
    }
    trial.await_ready(4);
    trial.run(&["sync", "--node", "1", "--wait", "4", "set", "user/0", "before"]).ok();

    let text = Watch::start(&trial, &["sync", "--node", "0", "watch", "user/"]);
    let json = Watch::start(&trial, &["--json", "sync", "--node", "2", "watch"]);
    let (code, heard) = streamed(&trial, 3, "/v3/sync/watch?prefix=user%2F");
    assert_eq!((code, heard.lines.json()), (200, serde_json::json!({"watching": "user/"})));

    // One of another prefix first: who watches user/ must not hear of it.
    for args in [
        &["set", "other", "1"][..],
        &["set", "user/7", "{\"name\": \"Ada\"}"],
        &["incr", "--field", "visits", "user/8"],
        &["set", "--delete", "user/7"],
    ] {
        trial.run(&[&["sync", "--node", "1", "--wait", "4"], args].concat()).ok();
    }
    for expected in ["user/7\t{\"name\":\"Ada\"}", "user/8\t{\"visits\":1}", "user/7\t(deleted)"] {
        assert_eq!(text.out.next(), expected);
    }
    let ada = serde_json::json!({"key": "user/7", "exists": true, "value": {"name": "Ada"}});
    let visits = serde_json::json!({"key": "user/8", "exists": true, "value": {"visits": 1}});
    let deleted = serde_json::json!({"key": "user/7", "exists": false, "value": null});
    assert_eq!(json.out.json(), serde_json::json!({"key": "other", "exists": true, "value": 1}));
    for expected in [ada, visits, deleted] {
        assert_eq!(json.out.json(), expected);
        assert_eq!(heard.lines.json(), expected);
    }

    assert_eq!(text.interrupt(), Some(0), "Ctrl-C is how it ends");
    // The node it asks goes: it says so, and with which code.
    trial.kill(2);
    let mut json = json;
    assert_eq!(json.child.wait().expect("it ends").code(), Some(3));
}

#[test]
fn watches_over_http_are_bounded_and_leave_room_for_probes() {
    let mut trial = Trial::new(1, "datacenter");
    set(&trial, 0, "http = \"read\"");
    trial.start(0);
    trial.await_ready(1);
    let mut watches = Vec::new();
    for _ in 0..16 {
        let (code, heard) = streamed(&trial, 0, "/v3/sync/watch");
        assert_eq!((code, heard.lines.json()), (200, serde_json::json!({"watching": ""})));
        watches.push(heard);
    }
    let (code, refused) = streamed(&trial, 0, "/v3/sync/watch");
    assert_eq!(code, 503);
    assert!(
        refused.lines.json()["error"].as_str().unwrap().contains("16 watch here already: ask another node")
    );
    assert_eq!(super::sync::http(&trial, 0, "GET", "/livez", "").0, 200);
    trial.run(&["sync", "set", "a", "1"]).ok();
    for watch in &watches {
        assert_eq!(watch.lines.json(), serde_json::json!({"key": "a", "exists": true, "value": 1}));
    }
    // Who goes leaves a place.
    drop(watches);
    let until = Instant::now() + PATIENCE;
    while streamed(&trial, 0, "/v3/sync/watch").0 != 200 {
        assert!(Instant::now() < until, "the places are not freed");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The node keeps so much for a reader and no more; what is missing is said, in the last line.
#[test]
fn who_reads_a_watch_too_slowly_is_told_that_changes_are_missing() {
    const WRITES: usize = 300;
    let mut trial = Trial::new(1, "datacenter");
    set(&trial, 0, "http = \"write\"");
    let path = trial.config(0);
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(path, text.replacen("[queues]", "[queues]\nreplies_bytes_max = 4194304", 1)).unwrap();
    trial.start(0);
    trial.await_ready(1);
    let (code, heard) = streamed(&trial, 0, "/v3/sync/watch");
    assert_eq!((code, heard.lines.json()), (200, serde_json::json!({"watching": ""})));
    let mut slow = TcpStream::connect(http_address(&trial, 0)).unwrap();
    write!(slow, "GET /v3/sync/watch HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    // Beyond what the sockets, the server and the node hold for it.
    let filler = "x".repeat(120 * 1024);
    for number in 0..WRITES {
        let body = format!("{{\"k\": \"{number} {filler}\"}}");
        assert_eq!(super::sync::http(&trial, 0, "POST", "/v3/sync/state", &body).0, 200);
    }
    let lines = Lines::of(slow);
    let mut told = 0;
    let end = loop {
        let line = lines.json();
        match line.get("error") {
            Some(error) => break error.as_str().unwrap().to_string(),
            None => told += 1,
        }
    };
    assert!(end.contains("read too slowly: watch again and read what changed"), "{end}");
    assert!(told < WRITES, "something is missing");
    // Who reads misses nothing meanwhile.
    for number in 0..WRITES {
        let line = heard.lines.json();
        assert!(line["value"].as_str().unwrap().starts_with(&format!("{number} x")), "{number}");
    }
}
