//! Every type of convergent value, and what becomes of conflicts, by the command line and by HTTP, in real processes.

use std::time::Instant;

use super::sync::{http, http_text, set};
use super::*;

/// A cluster whose nodes take writes over HTTP. Nobody runs yet.
fn trial(nodes: usize, mode: &str) -> Trial {
    let trial = Trial::new(nodes, mode);
    (0..nodes).for_each(|node| set(&trial, node, "exchange_interval_ms = 200\nhttp = \"write\""));
    trial
}

/// Asks until the answer is this one.
#[track_caller]
fn shows(trial: &Trial, args: &[&str], expected: &str) {
    let until = Instant::now() + PATIENCE;
    loop {
        let ran = trial.run(args);
        if ran.code == Some(0) && ran.out == expected {
            return;
        }
        assert!(Instant::now() < until, "{args:?} does not show {expected:?}: {ran:?}\n{}", trial.logs());
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn every_type_is_changed_by_its_own_words() {
    let mut trial = trial(1, "datacenter");
    trial.start(0);
    trial.await_ready(1);
    let sync = |args: &[&str]| trial.run(&[&["sync"], args].concat());
    let get = |key: &str| trial.json(&["sync", "get", key]);
    let refused = |code: i32, args: &[&str], words: &[&str]| sync(args).refused(code, words);

    // Lists.
    assert_eq!(sync(&["insert", "queue", "a", "b"]).ok(), "OK (ordered by the log)\n");
    sync(&["insert", "--at", "0", "queue", "z", "{\"n\": 1}"]).ok();
    sync(&["insert", "queue", "end"]).ok();
    assert_eq!(sync(&["get", "queue"]).ok(), "[\"z\",{\"n\":1},\"a\",\"b\",\"end\"]\n");
    sync(&["erase", "queue", "1"]).ok();
    sync(&["erase", "queue", "3"]).ok();
    assert_eq!(sync(&["get", "queue"]).ok(), "[\"z\",\"a\",\"b\"]\n");
    assert_eq!(get("queue")["type"], "list");
    refused(1, &["erase", "queue", "3"], &["index 3 is outside the list of 3 items"]);
    refused(1, &["insert", "--at", "4", "queue", "x"], &["index 4 is outside the list of 3 items"]);
    refused(1, &["add", "queue", "x"], &["\"queue\" holds a list, not a or-set", "delete it first"]);

    // A map: each field has its own type, and fields have fields.
    sync(&["set", "--field", "name", "user/8", "Ada"]).ok();
    sync(&["incr", "--field", "visits", "user/8", "2"]).ok();
    sync(&["add", "--field", "tags", "user/8", "x", "y"]).ok();
    sync(&["remove", "--field", "tags", "user/8", "y"]).ok();
    sync(&["insert", "--field", "log", "user/8", "in", "out"]).ok();
    sync(&["erase", "--field", "log", "user/8", "0"]).ok();
    sync(&["set", "--multi", "--field", "mail", "--field", "home", "user/8", "a@b"]).ok();
    let shown =
        "{\"log\":[\"out\"],\"mail\":{\"home\":[\"a@b\"]},\"name\":\"Ada\",\"tags\":[\"x\"],\"visits\":2}\n";
    assert_eq!(sync(&["get", "user/8"]).ok(), shown);
    assert_eq!(sync(&["get", "--field", "visits", "user/8"]).ok(), "2\n");
    assert_eq!(sync(&["get", "--field", "mail", "--field", "home", "user/8"]).ok(), "[\"a@b\"]\n");
    assert_eq!(get("user/8")["type"], "map");
    sync(&["set", "--delete", "--field", "log", "user/8"]).ok();
    assert_eq!(sync(&["get", "--field", "log", "user/8"]).ok(), "");
    refused(1, &["set", "user/8", "1"], &["holds a map, not a register"]);
    refused(1, &["set", "--field", "x", "queue", "1"], &["holds a list, not a map"]);
    let deep: Vec<&str> = [&["set"][..], &["--field", "f"].repeat(8), &["deep", "1"]].concat();
    refused(1, &deep, &["path of 8 fields; allowed are 7"]);

    // Counters and sets that only grow, and one to which nothing returns.
    sync(&["incr", "--grow-only", "visits", "10"]).ok();
    assert_eq!(
        (get("visits")["type"].as_str(), get("visits")["value"].as_u64()),
        (Some("g-counter"), Some(10))
    );
    refused(2, &["incr", "--grow-only", "visits", "-1"], &["--grow-only takes no negative number"]);
    refused(1, &["incr", "visits"], &["holds a g-counter, not a pn-counter"]);
    sync(&["add", "--forever", "seen", "4711"]).ok();
    assert_eq!(
        (get("seen")["type"].as_str(), &get("seen")["value"]),
        (Some("g-set"), &serde_json::json!([4711]))
    );
    refused(1, &["remove", "seen", "4711"], &["holds a g-set, not a or-set"]);
    sync(&["add", "--once", "revoked", "k1", "k2"]).ok();
    sync(&["remove", "--once", "revoked", "k1"]).ok();
    assert_eq!(sync(&["get", "revoked"]).ok(), "[\"k2\"]\n");
    refused(1, &["add", "--once", "revoked", "k1"], &["removed from it for good"]);
    // After a delete a key may be something else.
    sync(&["set", "--delete", "queue"]).ok();
    sync(&["incr", "queue", "3"]).ok();
    assert_eq!(sync(&["get", "queue"]).ok(), "3\n");
    assert_eq!(sync(&["settle", "queue"]).ok(), "OK (nothing to settle)\n");

    // What begins with a hyphen is a value where a value stands.
    sync(&["set", "--wait", "1", "cold", "-5", "colder", "-7.5"]).ok();
    sync(&["set", "note", "--", "--dry-run"]).ok();
    sync(&["add", "marks", "-1", "1"]).ok();
    sync(&["remove", "marks", "-1"]).ok();
    sync(&["insert", "depths", "-11", "-12"]).ok();
    sync(&["incr", "queue", "-2", "--wait", "1"]).ok();
    for (key, value) in [
        ("cold", "-5\n"),
        ("colder", "-7.5\n"),
        ("note", "\"--dry-run\"\n"),
        ("marks", "[1]\n"),
        ("depths", "[-11,-12]\n"),
        ("queue", "1\n"),
    ] {
        assert_eq!(sync(&["get", key]).ok(), value);
    }
    assert_eq!(sync(&["settle", "cold", "-6"]).ok(), "OK (nothing to settle)\n");

    // What cannot be, before anybody is asked.
    refused(2, &["set", "a"], &["\"a\" has no value: give KEY VALUE pairs"]);
    refused(2, &["set", "a", "{\"$hex\": \"0\"}"], &["$hex"]);
    refused(2, &["set", "a", "[18446744073709551616]"], &["18446744073709551616 does not fit 64 bits"]);
    refused(2, &["--node", "7", "get", "a"], &["node 7 is not in the client file"]);
    let both = sync(&["get", "--prefix", "--field", "x", "user/"]);
    assert!(both.code == Some(2) && both.err.contains("cannot be used with"), "{both:?}");
    refused(1, &["set", "", "1"], &["key"]);

    // The same over HTTP.
    let write = |body: &str| http(&trial, 0, "POST", "/v3/sync/write", body);
    let body = "{\"writes\": [
        {\"key\": \"h/list\", \"op\": \"insert\", \"index\": 0, \"value\": \"b\"},
        {\"key\": \"h/list\", \"op\": \"insert\", \"index\": 0, \"value\": \"a\"},
        {\"key\": \"h/list\", \"op\": \"erase\", \"index\": 1},
        {\"key\": \"h/map\", \"path\": [\"mail\", \"home\"], \"value\": \"a@b\"},
        {\"key\": \"h/map\", \"path\": [\"visits\"], \"op\": \"adjust\", \"by\": -2},
        {\"key\": \"h/mv\", \"op\": \"put-multi\", \"value\": [1]},
        {\"key\": \"h/grow\", \"op\": \"grow\", \"by\": 7},
        {\"key\": \"h/seen\", \"op\": \"add-forever\", \"value\": 1},
        {\"key\": \"h/once\", \"op\": \"add-once\", \"value\": 1},
        {\"key\": \"h/once\", \"op\": \"add-once\", \"value\": 2},
        {\"key\": \"h/once\", \"op\": \"remove-for-good\", \"value\": 1},
        {\"key\": \"h/set\", \"op\": \"add\", \"value\": null},
        {\"key\": \"h/set\", \"op\": \"add\", \"value\": true},
        {\"key\": \"h/set\", \"op\": \"remove\", \"value\": true},
        {\"key\": \"h/gone\", \"value\": 1},
        {\"key\": \"h/gone\", \"op\": \"delete\"}
    ]}";
    let (code, said) = write(body);
    assert_eq!((code, &said["road"]), (200, &"log".into()), "{said}");
    let (code, all) = http(&trial, 0, "GET", "/v3/sync/keys?prefix=h/", "");
    let expected = serde_json::json!([
        {"key": "h/grow", "value": 7}, {"key": "h/list", "value": ["a"]},
        {"key": "h/map", "value": {"mail": {"home": "a@b"}, "visits": -2}}, {"key": "h/mv", "value": [[1]]},
        {"key": "h/once", "value": [2]}, {"key": "h/seen", "value": [1]}, {"key": "h/set", "value": [null]},
    ]);
    assert_eq!((code, &all["keys"], &all["more"]), (200, &expected, &false.into()), "{all}");
    let (code, page) = http(&trial, 0, "GET", "/v3/sync/keys?prefix=h/&after=h/list&limit=2", "");
    assert_eq!(
        (code, &page["keys"][0]["key"], &page["more"]),
        (200, &"h/map".into(), &true.into()),
        "{page}"
    );
    let (_, field) = http(&trial, 0, "GET", "/v3/sync/key?key=h/map&field=mail&field=home", "");
    let path = serde_json::json!(["mail", "home"]);
    assert_eq!((&field["value"], &field["path"], &field["type"]), (&"a@b".into(), &path, &"register".into()));

    // A member of the state is a key, also one that is called like a setting of the request.
    assert_eq!(http(&trial, 0, "POST", "/v3/sync/state", "{\"timeout_ms\": 1, \"wait\": \"x\"}").0, 200);
    assert_eq!(sync(&["get", "timeout_ms"]).ok(), "1\n");

    let rows: [(&str, &str, &str, u16, &str); 17] = [
        (
            "POST",
            "write",
            "{\"writes\": [{\"key\": \"h/list\", \"op\": \"erase\", \"index\": 5}]}",
            409,
            "outside the list",
        ),
        (
            "POST",
            "write",
            "{\"writes\": [{\"key\": \"h/once\", \"op\": \"add-once\", \"value\": 1}]}",
            409,
            "for good",
        ),
        ("POST", "write", "{\"writes\": []}", 409, "one write takes 1 to"),
        ("POST", "write", "{\"writes\": [{\"key\": \"a\", \"value\": 1}], \"wait\": 9}", 409, "not so many"),
        (
            "POST",
            "write",
            "{\"writes\": [{\"key\": \"a\", \"value\": 1}], \"wait\": \"2\"}",
            400,
            "`wait` is a number",
        ),
        ("POST", "write", "{\"writes\": [{\"key\": \"a\", \"value\": 1}], \"wait\": 32}", 400, "0 to 31"),
        (
            "POST",
            "write",
            "{\"writes\": [{\"key\": \"a\", \"value\": 1}], \"timeout_ms\": 0}",
            400,
            "1 to 15000",
        ),
        (
            "POST",
            "write",
            "{\"writes\": [{\"key\": \"a\", \"value\": 1}], \"wiat\": 2}",
            400,
            "`wiat` is not known",
        ),
        (
            "POST",
            "write",
            "{\"writes\": [{\"key\": \"a\", \"op\": \"set\"}]}",
            400,
            "writes[0]: `op` = \"set\" is not known",
        ),
        ("POST", "state", "{\"a\": 18446744073709551616}", 400, "does not fit 64 bits"),
        ("POST", "state", "[1]", 400, "the state is an object"),
        ("GET", "key", "", 400, "needs a parameter `key`"),
        ("GET", "key?key=a&filed=b", "", 400, "`filed` is not known: write key, field"),
        ("GET", "key?key=none", "", 404, "no such key"),
        ("GET", "keys?limit=many", "", 400, "`limit` = \"many\" is no whole number"),
        ("GET", "stand?all=1", "", 400, "takes no parameters"),
        ("GET", "watch?key=a", "", 400, "`key` is not known: write prefix"),
    ];
    for (method, path, body, code, words) in rows {
        let (told, answer) = http(&trial, 0, method, &format!("/v3/sync/{path}"), body);
        let error = answer["error"].as_str().unwrap_or_default();
        assert!(
            told == code && error.contains(words) && !error.contains('\n'),
            "{path} {body}: {told} {answer}"
        );
    }
    let long = format!("{{\"writes\": [{{\"key\": \"a\", \"value\": \"{}\"}}]}}", "x".repeat(1 << 20));
    let (code, answer) = write(&long);
    assert!(code == 413 && answer["error"].as_str().unwrap().contains("split it"), "{code} {answer}");
}

#[test]
fn who_may_use_http_is_a_setting_and_no_web_page_may_write() {
    let mut trial = Trial::new(4, "internet");
    set(&trial, 1, "http = \"read\"");
    set(&trial, 2, "http = \"write\"");
    (0..3).for_each(|node| trial.start(node));
    trial.await_ready(3);
    let body = "{\"a\": 1}";
    for (node, method, path, code, words) in [
        (0, "GET", "/v3/sync/key?key=a", 404, "set sync.http"),
        (0, "POST", "/v3/sync/state", 404, "set sync.http"),
        (1, "POST", "/v3/sync/state", 403, "takes no writes over HTTP: set sync.http to \"write\""),
        (1, "POST", "/v3/sync/write", 403, "takes no writes over HTTP"),
        (1, "GET", "/v3/sync/key?key=a", 404, "there is no such key"),
        (
            2,
            "POST",
            "/v3/sync/state\u{20}HTTP/1.1\r\nOrigin: http://evil.example\r\nX:",
            403,
            "web pages may not write",
        ),
        (2, "GET", "/v3/sync/key?key=a", 404, "there is no such key"),
    ] {
        let (told, answer) = http(&trial, node, method, path, body);
        assert!(
            told == code && answer["error"].as_str().unwrap_or_default().contains(words),
            "{path}: {told} {answer}"
        );
    }
    assert_eq!(http(&trial, 2, "POST", "/v3/sync/state", body).0, 200);
    shows(&trial, &["sync", "--node", "1", "get", "a"], "1\n");
    assert_eq!(http(&trial, 1, "GET", "/v3/sync/key?key=a", "").1["value"], 1);
}

/// Two nodes that never ran at once wrote the same keys.
#[test]
fn conflicts_are_shown_with_their_writers_and_end_when_somebody_settles_them() {
    let mut trial = trial(4, "internet");
    for node in ["0", "1"] {
        let number: usize = node.parse().unwrap();
        trial.start(number);
        shows(&trial, &["sync", "--node", node, "get", "nothing"], "");
        let sync = |args: &[&str]| trial.run(&[&["sync", "--node", node], args].concat()).ok();
        sync(&["set", "colour", if number == 0 { "red" } else { "blue" }]);
        sync(&["set", "--multi", "draft", ["a", "b"][number]]);
        sync(&if number == 0 { ["set", "clash", "1"] } else { ["incr", "clash", "5"] });
        sync(&["set", "--field", "name", "user", ["Ada", "Bob"][number]]);
        sync(&["incr", "likes", "1"]);
        trial.kill(number);
    }
    (0..4).for_each(|node| trial.start(node));
    shows(&trial, &["sync", "--node", "2", "get", "draft"], "[\"a\",\"b\"]\n");
    shows(&trial, &["sync", "--node", "3", "get", "likes"], "2\n");
    for (key, words) in
        [("draft", "2 concurrent values stand side by side"), ("clash", "(register, pn-counter)")]
    {
        let ran = trial.run(&["sync", "--node", "2", "get", key]);
        assert!(ran.code == Some(0) && ran.err.contains(words), "{ran:?}");
    }
    // What one sees on one node, all see: the count is alike, the newest are each node's own.
    for node in ["0", "1", "2", "3"] {
        shows(&trial, &["sync", "--node", node, "get", "likes"], "2\n");
        let seen = trial.json(&["sync", "--node", node, "conflicts"]);
        assert_eq!((seen["conflict_count"].as_u64(), seen["open"].as_u64()), (Some(4), Some(4)), "{seen}");
        let events = seen["newest"].as_array().unwrap();
        let of = |key: &str| {
            events.iter().find(|event| event["key"] == key).unwrap_or_else(|| panic!("{key}: {seen}"))
        };
        let origins = |event: &Value| -> Vec<String> {
            let siblings = event["siblings"].as_array().unwrap().iter();
            siblings.map(|dot| dot.as_str().unwrap().split(['.', ':']).next().unwrap().to_string()).collect()
        };
        for key in ["colour", "draft", "user"] {
            assert_eq!(origins(of(key)), ["o0", "o1"], "{seen}");
        }
        assert!(of("colour")["outcome"].as_str().unwrap().starts_with("o1:"), "the later one: {seen}");
        assert_eq!(of("colour")["strategy"], "last_writer_wins");
        assert_eq!(of("draft")["outcome"], "all shown");
        assert_eq!(of("clash")["outcome"], "shown as pn-counter");
        assert_eq!(of("user")["path"], serde_json::json!(["name"]));
        let (code, by_http) = http(&trial, node.parse().unwrap(), "GET", "/v3/sync/conflicts", "");
        assert_eq!((code, &by_http), (200, &seen), "over HTTP the same");
    }
    let (_, newest) = http(&trial, 2, "GET", "/v3/sync/conflicts?limit=1", "");
    assert_eq!((newest["newest"].as_array().unwrap().len(), &newest["conflict_count"]), (1, &4.into()));
    let newest_here = trial.json(&["sync", "--node", "2", "conflicts", "--limit", "1"]);
    assert_eq!(newest_here, newest, "by either road the newest one");
    let told = trial.run(&["sync", "--node", "2", "conflicts"]).ok();
    for words in ["4 concurrent writes, 4 not settled", "siblings", "all shown", "shown as pn-counter"] {
        assert!(told.contains(words), "{words}: {told}");
    }

    // Settled on one node, settled on all.
    let settle =
        |args: &[&str]| trial.run(&[&["sync", "--node", "3", "--wait", "4", "settle"], args].concat());
    settle(&["draft"])
        .refused(2, &["several values stand side by side, [\"a\",\"b\"]", "dwcp sync settle draft VALUE"]);
    settle(&["clash", "7"]).refused(2, &["`dwcp sync settle clash` keeps the pn-counter"]);
    for args in [&["draft", "c"][..], &["clash"], &["colour"], &["--field", "name", "user", "Cid"]] {
        assert_eq!(settle(args).ok(), "OK (durable on 4 nodes)\n");
    }
    for node in ["0", "1", "2", "3"] {
        for (key, value) in [
            ("draft", "[\"c\"]\n"),
            ("clash", "5\n"),
            ("colour", "\"blue\"\n"),
            ("user", "{\"name\":\"Cid\"}\n"),
        ] {
            shows(&trial, &["sync", "--node", node, "get", key], value);
        }
        let seen = trial.json(&["sync", "--node", node, "conflicts"]);
        assert_eq!((seen["conflict_count"].as_u64(), seen["open"].as_u64()), (Some(4), Some(0)), "{seen}");
    }
    assert_eq!(settle(&["colour"]).ok(), "OK (nothing to settle)\n");
    assert_eq!(http(&trial, 0, "GET", "/v3/sync/converged?within_ms=5000", "").1["converged"], true);
}

/// What was written and not acknowledged must not be repeated; what was refused may be.
#[test]
fn written_but_not_acknowledged_is_told_apart_from_refused_and_from_not_reached() {
    let mut trial = trial(4, "internet");
    trial.start(0);
    shows(&trial, &["sync", "--node", "0", "get", "nothing"], "");
    let late = trial.run(&["sync", "--node", "0", "--wait", "2", "--timeout", "1", "incr", "likes"]);
    late.refused(3, &["of 2 nodes in time", "do not repeat it"]);
    let body = "{\"writes\": [{\"key\": \"likes\", \"op\": \"adjust\", \"by\": 1}], \"wait\": 3, \"timeout_ms\": 300}";
    let (code, told) = http(&trial, 0, "POST", "/v3/sync/write", body);
    assert_eq!((code, &told["written"]), (202, &true.into()), "{told}");
    assert!(told["error"].as_str().unwrap().contains("of 3 nodes in time"), "{told}");
    assert_eq!(trial.run(&["sync", "--node", "0", "get", "likes"]).ok(), "2\n", "both are written");

    let (code, told) = http(&trial, 0, "POST", "/v3/sync/write", &body.replace("\"wait\": 3", "\"wait\": 5"));
    assert_eq!((code, &told["written"]), (409, &false.into()), "{told}");
    let many = trial.run(&["sync", "--node", "0", "--wait", "5", "incr", "likes"]);
    many.refused(1, &["wait for 5 of 4 nodes: there are not so many"]);
    let nobody = trial.run(&["sync", "--node", "1", "--timeout", "1", "incr", "likes"]);
    nobody.refused(4, &["not written"]);
    assert_eq!(trial.run(&["sync", "--node", "0", "get", "likes"]).ok(), "2\n", "none of these is");
}

/// A crash of the whole rest costs hybrid mode nothing but time, before and after a restart of the one that is left.
#[test]
fn a_hybrid_node_without_a_quorum_writes_on_across_a_restart() {
    let mut trial = trial(4, "hybrid");
    (0..4).for_each(|node| trial.start(node));
    trial.await_ready(4);
    // By the log, or where this machine is slow by the other road.
    trial.run(&["sync", "--node", "0", "incr", "likes", "1"]).ok();
    (1..4).for_each(|node| trial.kill(node));
    let alone = ["sync", "--node", "0", "incr", "likes", "10"];
    assert_eq!(trial.run(&alone).ok(), "OK (durable here, spreading)\n");
    trial.kill(0);
    trial.start(0);
    shows(&trial, &["sync", "--node", "0", "get", "likes"], "11\n");
    assert_eq!(trial.run(&alone).ok(), "OK (durable here, spreading)\n");
    // It says as well that commands wait.
    let status: Value = serde_json::from_str(&trial.run(&["--json", "status"]).out).unwrap();
    assert!(status["nodes"][0]["sync"]["fallbacks"].as_u64() >= Some(1), "the log was asked first: {status}");
    // What must be ordered waits for the others.
    let ordered = trial.run(&["kv", "--timeout", "1", "put", "a", "1"]);
    assert!(matches!(ordered.code, Some(3 | 4)), "{ordered:?}");
    (1..4).for_each(|node| trial.start(node));
    shows(&trial, &["sync", "--node", "2", "get", "likes"], "21\n");
}

#[test]
fn status_tells_how_each_peer_stands_in_frames_seconds_exchanges_and_bytes() {
    let mut trial = trial(4, "internet");
    (0..3).for_each(|node| trial.start(node));
    trial.await_ready(3);
    trial.run(&["sync", "--node", "0", "--wait", "3", "incr", "likes"]).ok();
    // Node 3 lacks this one frame for longer and longer; the others have it and were spoken to.
    trial.await_status("a peer that lags", |nodes| {
        let Some(node) = nodes.iter().find(|node| node["node"] == 0) else { return false };
        let Some(peers) = node["sync"]["peers"].as_array() else { return false };
        let of = |id: u64| peers.iter().find(|peer| peer["node"] == id).expect("all are listed");
        let number = |peer: &Value, name: &str| peer[name].as_u64();
        let lags = number(of(3), "lag_frames") == Some(1) && number(of(3), "lag_ms") >= Some(1_000);
        let level = [1, 2].iter().all(|id| {
            let peer = of(*id);
            number(peer, "lag_frames") == Some(0)
                && number(peer, "lag_ms") == Some(0)
                && number(peer, "last_exchange_ms").is_some_and(|ms| ms < 60_000)
                && number(peer, "exchanges") >= Some(1)
                && number(peer, "bytes_in") >= Some(1)
                && number(peer, "bytes_out") >= Some(1)
        });
        lags && level && of(3)["last_exchange_ms"].is_null() && of(3)["bytes_in"] == 0
    });
    let told = trial.run(&["status"]).ok();
    let head = told.lines().find(|line| line.contains("lag frames")).unwrap_or_else(|| panic!("{told}"));
    for column in ["node", "peer", "lag s", "last exchange s", "received", "sent", "conflicts", "keys"] {
        assert!(head.contains(column), "{column}: {told}");
    }
    assert!(told.contains("never"), "node 3 was never spoken to: {told}");
    let peers = trial.json(&["sync", "--node", "0", "peers"]);
    assert_eq!((&peers["converged"], &peers["silent"]), (&false.into(), &serde_json::json!([3])), "{peers}");
    trial.start(3);
    trial.await_status("nobody lags", |nodes| {
        let level = |node: &Value| {
            node["sync"]["peers"]
                .as_array()
                .is_some_and(|peers| peers.iter().all(|peer| peer["lag_frames"] == 0))
        };
        nodes.len() == 4 && nodes.iter().all(level)
    });
    assert_eq!(http(&trial, 3, "GET", "/v3/sync/peers", "").1["peers"].as_array().unwrap().len(), 3);
    let (code, metrics) = http(&trial, 0, "GET", "/v3/sync/metrics", "");
    let now_ms = std::time::UNIX_EPOCH.elapsed().unwrap().as_millis() as u64;
    assert_eq!(
        (code, &metrics["mode"], &metrics["sync_count"]),
        (200, &"internet".into(), &1.into()),
        "{metrics}"
    );
    assert!(metrics["last_sync_unix_ms"].as_u64().is_some_and(|at| at <= now_ms && at > now_ms - 600_000));
    assert!(
        metrics["avg_sync_latency_us"].as_u64() >= Some(1) && metrics["conflict_count"] == 0,
        "{metrics}"
    );
}

/// A member that acknowledges nothing is named after `sync.ack_patience_ms`, wherever somebody looks, until it is level.
#[test]
fn a_member_that_acknowledges_nothing_is_named_until_it_does() {
    let mut trial = Trial::new(4, "internet");
    let settings = "exchange_interval_ms = 200\nack_patience_ms = 1000\naudit_interval_ms = 1000\nfanout = 1";
    (0..4).for_each(|node| set(&trial, node, settings));
    (0..3).for_each(|node| trial.start(node));
    trial.await_ready(3);
    trial.run(&["sync", "--node", "0", "--wait", "3", "incr", "likes"]).ok();
    let peer = |node: &Value, id: u64| -> Value {
        let peers = node["sync"]["peers"].as_array().into_iter().flatten();
        peers.into_iter().find(|peer| peer["node"] == id).cloned().unwrap_or_default()
    };
    trial.await_status("node 3 is named", |nodes| {
        nodes
            .first()
            .is_some_and(|node| peer(node, 3)["withholds"] == true && peer(node, 1)["withholds"] == false)
    });
    let ran = trial.run(&["status"]);
    assert!(ran.ok().contains("node 0 says node 3 does not acknowledge"));
    let told = trial.run(&["sync", "--node", "0", "peers"]).ok();
    let row = told.lines().find(|line| line.contains("(silent)")).unwrap_or_else(|| panic!("{told}"));
    assert!(row.contains("does not acknowledge") && told.contains("node 3 does not acknowledge"), "{told}");
    let figures = http_text(&trial, 0, "GET", "/metrics", "").1;
    for line in ["dwcp_sync_peer_withholds{peer=\"3\"} 1", "dwcp_sync_peer_withholds{peer=\"1\"} 0"] {
        assert!(figures.lines().any(|figure| figure == line), "{line}: {figures}");
    }
    let named = figures
        .lines()
        .find_map(|line| line.strip_prefix("dwcp_sync_holdups_named_total "))
        .expect("it is there");
    assert!(named.parse::<u64>().unwrap() >= 1, "{named}");
    let log = std::fs::read_to_string(trial.path("node0/server.log")).unwrap();
    assert!(log.contains("keeps state sync from collecting: mend it, or end its origin with"), "{log}");

    trial.start(3);
    trial.await_status("nobody is named", |nodes| {
        let none = |node: &Value| (0..4).all(|id| peer(node, id)["withholds"] != true);
        nodes.len() == 4 && nodes.iter().all(|node| node["sync"]["peers"].is_array() && none(node))
    });
    assert_eq!(trial.run(&["sync", "--node", "3", "get", "likes"]).ok(), "1\n");
}

/// What the help texts show can be typed as it stands, one line after the other.
#[test]
fn the_examples_of_the_help_texts_run() {
    let mut trial = Trial::new(4, "internet");
    (0..4).for_each(|node| trial.start(node));
    trial.await_ready(4);
    let folder = trial.path("");
    let beside =
        Path::new(env!("CARGO_BIN_EXE_dwcp")).parent().expect("it stands in a folder").display().to_string();
    let path = format!("{beside}:{}", std::env::var("PATH").unwrap_or_default());
    let mut ran = 0;
    for page in ["", "set", "get", "incr", "add", "remove", "insert", "erase", "settle", "conflicts", "peers"]
    {
        let help =
            [&["sync"][..], if page.is_empty() { &[] } else { std::slice::from_ref(&page) }, &["--help"]]
                .concat();
        let help = trial.run(&help).ok();
        let lines =
            help.lines().map(str::trim).filter(|line| line.starts_with("dwcp ") && !line.contains(" watch"));
        let before = ran;
        for line in lines {
            // Remarks stand in brackets behind; what jq makes of it is not ours.
            let typed = line.split("  (").next().and_then(|line| line.split(" | jq").next()).unwrap();
            let output = Command::new("sh")
                .args(["-c", typed])
                .current_dir(&folder)
                .env("PATH", &path)
                .env_remove("DWCP_CLUSTER")
                .output()
                .expect("a shell");
            assert!(output.status.success(), "{page}: {typed}: {:?}", Ran::of(&output));
            ran += 1;
        }
        assert!(ran > before, "the page of {page:?} has examples");
    }
}

/// Who reads and who writes is the registry's matter, also where nothing is ordered.
#[test]
fn a_reader_reads_convergent_keys_and_writes_none_and_a_stranger_does_neither() {
    let mut trial = Trial::new(4, "internet");
    (0..4).for_each(|node| trial.start(node));
    trial.await_ready(4);
    trial.run(&["sync", "--wait", "4", "set", "a", "1"]).ok();
    let block = trial.run(&["keygen", "--out", ".", "--principal", "ann", "--role", "reader"]).ok();
    std::fs::write(trial.path("ann.toml"), block).unwrap();
    let client = std::fs::read_to_string(trial.path("client.toml")).unwrap();
    let client = client.replace("admin.key", "ann.key").replace("\"admin\"", "\"ann\"");
    std::fs::write(trial.path("ann-client.toml"), client).unwrap();
    let ann = |node: usize, args: &[&str]| {
        let node = node.to_string();
        trial.run(&[&["sync", "--cluster", "ann-client.toml", "--node", &node], args].concat())
    };
    ann(0, &["get", "a"]).refused(1, &["connect with it"]);
    trial.run(&["principal", "add", "ann.toml"]).ok();
    for node in 0..4 {
        // Each node learns of it when it has executed the order.
        let until = Instant::now() + PATIENCE;
        while ann(node, &["get", "a"]).out != "1\n" {
            assert!(Instant::now() < until, "node {node}: {:?}", ann(node, &["get", "a"]));
            std::thread::sleep(Duration::from_millis(20));
        }
        for write in
            [&["set", "a", "2"][..], &["incr", "b"], &["insert", "c", "x"], &["set", "--delete", "a"]]
        {
            ann(node, write).refused(1, &["proves the key of a writer or admin"]);
        }
    }
    ann(1, &["settle", "a"]).ok();
    assert_eq!(
        trial.json(&["sync", "get", "--prefix", ""])["keys"],
        serde_json::json!([{"key": "a", "value": 1}])
    );
    trial.run(&["principal", "remove", "ann"]).ok();
    let until = Instant::now() + PATIENCE;
    while ann(2, &["get", "a"]).code != Some(1) {
        assert!(Instant::now() < until, "she still reads");
        std::thread::sleep(Duration::from_millis(20));
    }
}
