//! Convergent keys of real processes, by the command line, by HTTP and by an embedded node.

use std::io::{Read, Write};
use std::net::TcpStream;

use super::*;

/// Adds lines to a node's settings of state sync.
pub fn set(trial: &Trial, node: usize, lines: &str) {
    let path = trial.config(node);
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(path, text.replacen("[sync]", &format!("[sync]\n{lines}"), 1)).unwrap();
}

pub fn http_address(trial: &Trial, node: usize) -> String {
    let settings = std::fs::read_to_string(trial.config(node)).unwrap();
    let line = settings.lines().find(|line| line.starts_with("http_listen")).expect("it is set");
    line.split('"').nth(1).unwrap().to_string()
}

pub fn http(trial: &Trial, node: usize, method: &str, path: &str, body: &str) -> (u16, Value) {
    let (code, body) = http_text(trial, node, method, path, body);
    (code, serde_json::from_str(body.trim()).unwrap_or(Value::Null))
}

pub fn http_text(trial: &Trial, node: usize, method: &str, path: &str, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(http_address(trial, node)).unwrap();
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let code = head.split_whitespace().nth(1).unwrap().parse().unwrap();
    (code, body.to_string())
}

#[test]
fn convergent_keys_are_changed_and_read_as_the_help_says() {
    let mut trial = Trial::new(4, "internet");
    for node in 0..4 {
        let prefixes = "ordered_prefixes = \"only/log\"\nconvergent_prefixes = \"free/\"\nhttp = \"write\"";
        set(&trial, node, prefixes);
        trial.start(node);
    }
    trial.await_ready(4);
    assert_eq!(trial.run(&["sync", "get", "nothing"]).ok(), "");
    trial.run(&["sync", "--wait", "4", "set", "user/7", "{\"name\": \"Ada\"}", "limit", "3"]).ok();
    for node in ["0", "1", "2", "3"] {
        assert_eq!(trial.run(&["sync", "--node", node, "get", "user/7"]).ok(), "{\"name\":\"Ada\"}\n");
    }
    assert_eq!(trial.json(&["sync", "get", "limit"])["type"], "register");
    for node in ["1", "2"] {
        trial.run(&["sync", "--node", node, "--wait", "4", "incr", "likes", "2"]).ok();
    }
    trial.run(&["sync", "--wait", "4", "incr", "likes", "-1"]).ok();
    assert_eq!(trial.run(&["sync", "--node", "3", "get", "likes"]).ok(), "3\n");
    trial.run(&["sync", "add", "tags", "blue", "red"]).ok();
    trial.run(&["sync", "--wait", "4", "remove", "tags", "red"]).ok();
    assert_eq!(trial.run(&["sync", "get", "tags"]).ok(), "[\"blue\"]\n");
    assert_eq!(trial.run(&["sync", "get", "--prefix", "l"]).ok(), "likes\t3\nlimit\t3\n");
    assert_eq!(trial.run(&["sync", "remove", "tags", "green"]).ok(), "OK (nothing to change)\n");
    trial.run(&["sync", "--wait", "4", "set", "--delete", "limit"]).ok();
    assert_eq!(trial.run(&["sync", "get", "limit"]).ok(), "");
    assert_eq!(trial.json(&["sync", "conflicts"])["conflict_count"], 0);
    let peers = trial.json(&["sync", "peers"]);
    assert_eq!((&peers["converged"], peers["level"].as_array().unwrap().len()), (&true.into(), 3), "{peers}");
    let status = trial.json(&["status"]);
    assert!(status["nodes"][0]["sync"]["keys"].as_u64() >= Some(3), "{status}");
    assert!(trial.run(&["status"]).ok().contains("state sync"));

    // What does not belong, in one line and with its code.
    for (args, says) in [
        (vec!["sync", "set", "only/log/x", "1"], "ordered prefix"),
        (vec!["sync", "set", "likes", "1"], "pn-counter"),
        (vec!["sync", "--wait", "9", "set", "a", "1"], "not so many"),
    ] {
        let ran = trial.run(&args);
        assert!(ran.code == Some(1) && ran.err.contains(says), "{args:?}: {ran:?}");
        assert_eq!(ran.err.trim().lines().count(), 1, "{ran:?}");
    }
    // Every node refuses these. Among liars a client cannot know that nobody took them, and says so, with the reason.
    let txn = b"version(\"free/x\") = 0\n\nput a 1\n\n";
    for ran in [
        trial.run(&["kv", "--timeout", "1", "put", "free/x", "1"]),
        trial.run(&["kv", "--timeout", "1", "del", "--prefix", "fr"]),
        trial.run_with_input(&["kv", "--timeout", "1", "txn"], txn),
    ] {
        assert!(ran.code == Some(3) && ran.err.contains("are convergent"), "{ran:?}");
    }
    assert_eq!(trial.run(&["kv", "get", "free/x"]).ok(), "");
    assert_eq!(trial.run(&["kv", "put", "only/log/x", "1"]).ok(), "OK\n");
    trial.run(&["sync", "set", "free/x", "1"]).ok();

    let (code, said) = http(&trial, 1, "POST", "/v3/sync/state", "{\"h/1\": [1, null], \"h/2\": \"x\"}");
    assert_eq!((code, &said["road"]), (200, &"gossip".into()), "{said}");
    let body = "{\"writes\": [{\"key\": \"h/n\", \"op\": \"adjust\", \"by\": 5}], \"wait\": 4}";
    assert_eq!(http(&trial, 1, "POST", "/v3/sync/write", body).1["nodes"], 4);
    let (code, key) = http(&trial, 2, "GET", "/v3/sync/key?key=h%2Fn", "");
    assert_eq!((code, &key["value"], &key["type"]), (200, &5.into(), &"pn-counter".into()), "{key}");
    assert_eq!(http(&trial, 2, "GET", "/v3/sync/key?key=none", "").0, 404);
    assert_eq!(http(&trial, 1, "POST", "/v3/sync/state", "[").0, 400);
    assert_eq!(http(&trial, 1, "POST", "/v3/sync/state", "{\"only/log/y\": 1}").0, 409);
    assert_eq!(
        http(&trial, 1, "GET", "/v3/sync/keys?prefix=h%2F", "").1["keys"].as_array().unwrap().len(),
        3
    );

    // Alone, after a restart of its own, a node goes on.
    (1..4).for_each(|node| trial.kill(node));
    assert_eq!(
        trial.run(&["sync", "--node", "0", "incr", "likes", "10"]).ok(),
        "OK (durable here, spreading)\n"
    );
    trial.kill(0);
    trial.start(0);
    let until = std::time::Instant::now() + PATIENCE;
    while trial.run(&["sync", "--node", "0", "get", "likes"]).out != "13\n" {
        assert!(std::time::Instant::now() < until, "what was acknowledged is gone");
    }
    (1..4).for_each(|node| trial.start(node));
    let until = std::time::Instant::now() + PATIENCE;
    while trial.run(&["sync", "--node", "2", "get", "likes"]).out != "13\n" {
        assert!(std::time::Instant::now() < until, "it does not spread");
    }
}

#[test]
fn four_embedded_nodes_hold_the_same_in_every_mode() {
    let folder = tempfile::tempdir().expect("a folder");
    let told = examples::runtime().block_on(examples::both_engines(&folder.path().join("both")));
    assert_eq!(told.expect("the story is told"), 1, "one conflict was made");
}
