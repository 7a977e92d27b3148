//! Four nodes of real processes, used as the help texts say.

use super::stopped_log::rewritten;
use super::*;

use bytes::Bytes;
use dwcp_base::{decode, encode};
use dwcp_state::kv::KvCommand;
use dwcp_state::{ClientFrame, SessionFrame};

#[test]
fn four_nodes_do_what_the_help_says() {
    let mut trial = Trial::started(4, "internet");
    assert_eq!(trial.run(&["kv", "put", "a", "1"]).ok(), "OK\n");
    assert_eq!(trial.run(&["kv", "get", "a"]).ok(), "a\n1\n");
    assert_eq!(trial.run(&["kv", "get", "nothing"]).ok(), "");
    assert_eq!(trial.run(&["kv", "put", "--prev", "a", "2"]).ok(), "OK\na\n1\n");
    assert_eq!(trial.run_with_input(&["kv", "put", "b"], b"x\xff\0").ok(), "OK\n");
    assert_eq!(trial.json(&["kv", "get", "b"])["kvs"][0]["value_hex"], "78ff00");
    let verbose = trial.run(&["kv", "-v", "get", "a"]);
    assert!(
        verbose.err.contains("label byzantine, position ") && verbose.err.contains(", view 0, "),
        "{verbose:?}"
    );
    let (one, two) = (trial.json(&["kv", "get", "a"]), trial.json(&["kv", "put", "z", "9"]));
    assert_eq!((&one["label"], &one["view"]), (&Value::from("byzantine"), &Value::from(0)), "{one}");
    assert!(one["position"].as_u64() < two["position"].as_u64(), "{one} {two}");
    let own = trial.json(&["kv", "get", "--consistency", "stale", "--node", "2", "a"]);
    assert_eq!((&own["label"], &own["view"]), (&Value::from("stale"), &Value::from(0)), "{own}");
    assert!(
        own["position"].as_u64() >= one["position"].as_u64(),
        "it has executed what was read before: {own}"
    );
    trial.run(&["kv", "del", "z"]).ok();
    assert_eq!(trial.run(&["kv", "get", "--prefix", "", "--keys-only"]).ok(), "a\nb\n");
    assert_eq!(trial.run(&["kv", "get", "--rev", "2", "--value-only", "a"]).ok(), "1\n");
    let txn = b"value(\"a\") = 2\n\nput c 3\nget a\n\nput c 4\n";
    assert_eq!(trial.run_with_input(&["kv", "txn"], txn).ok(), "SUCCESS\n\nOK\n\na\n2\n");
    let json = br#"{"compare": [{"key": "a", "target": "version", "op": ">", "value": 7}], "else": [{"delete": {"key": "c"}}]}"#;
    assert_eq!(trial.run_with_input(&["kv", "txn"], json).ok(), "FAILURE\n\n1\n");
    assert_eq!(trial.run(&["kv", "del", "--prefix", ""]).ok(), "2\n");

    let lease = trial.json(&["kv", "lease", "grant", "600"])["lease"].to_string();
    trial.run(&["kv", "put", "--lease", &lease, "mortal", "yes"]).ok();
    assert_eq!(trial.json(&["kv", "lease", "ttl", "--keys", &lease])["keys"][0], "mortal");
    assert_eq!(trial.json(&["kv", "lease", "keepalive", "--once", &lease])["ttl_s"], 600);
    assert_eq!(trial.run(&["kv", "lease", "list"]).ok().trim(), lease);
    trial.run(&["kv", "lease", "revoke", &lease]).ok();
    assert_eq!(trial.run(&["kv", "get", "mortal"]).ok(), "");

    let status = trial.json(&["status"]);
    assert_eq!(status["nodes"].as_array().unwrap().len(), 4);
    for node in status["nodes"].as_array().unwrap() {
        assert_eq!((&node["ready"], &node["view"]), (&Value::from(true), &Value::from(0)), "{node}");
    }
    assert!(trial.run(&["status"]).ok().lines().next().unwrap().contains("primary"));
    let members = trial.json(&["member", "list"]);
    assert!(members["members"].as_array().unwrap().iter().all(|member| member["voter"] == true), "{members}");

    // Without its primary it answers still, and a node that was dead catches up by itself.
    trial.run(&["kv", "put", "a", "before"]).ok();
    trial.kill(0);
    trial.run(&["kv", "put", "a", "after"]).ok();
    assert_eq!(trial.run(&["kv", "get", "--value-only", "a"]).ok(), "after\n");
    let seen = trial.run(&["status"]);
    assert!(seen.code == Some(0) && seen.out.contains("unreachable"), "{seen:?}");
    trial.start(0);
    trial.await_status("a node that caught up", |nodes| {
        let furthest = nodes.iter().filter_map(|node| node["executed"].as_u64()).max();
        nodes.iter().all(|node| node["ready"] == true && node["executed"].as_u64() == furthest)
    });
    for node in ["0", "1", "2", "3"] {
        let stale = ["kv", "get", "--consistency", "stale", "--node", node, "--value-only", "a"];
        assert_eq!(trial.run(&stale).ok(), "after\n", "node {node}");
    }
}

#[test]
fn the_status_is_drawn_again_and_again_until_it_is_interrupted() {
    use std::io::{BufRead, BufReader};
    let trial = Trial::started(4, "internet");
    let watch = |besides: &[&str]| {
        let mut child = program()
            .args([&["status", "--watch", "--interval", "0.1"], besides].concat())
            .current_dir(trial.path(""))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program was built");
        let lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        (child, lines.map(|line| line.expect("text")))
    };
    let (mut child, mut lines) = watch(&["--json"]);
    let executed: Vec<u64> = lines
        .by_ref()
        .take(3)
        .map(|line| {
            let status: Value = serde_json::from_str(&line).expect("an object a line");
            assert_eq!(status["nodes"].as_array().unwrap().len(), 4, "{line}");
            status["nodes"][0]["executed"].as_u64().unwrap_or_default()
        })
        .collect();
    assert!(executed.windows(2).all(|pair| pair[0] <= pair[1]), "{executed:?}");
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(0), "an interrupted watch is no failure");
    // As a picture: the next one begins where the last one did.
    let (mut child, mut lines) = watch(&[]);
    let again = lines.find(|line| line.starts_with("\x1b[")).expect("it is drawn again");
    assert!(again.contains("\x1b[J") && again.contains("primary"), "{again:?}");
    let _ = child.kill();
    let _ = child.wait();
}

#[test]
fn shells_complete_every_subcommand() {
    let folder = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let script = dwcp(folder.path(), &["completions", shell]).ok();
        for word in ["server", "status", "bench", "completions", "--watch", "--ack"] {
            assert!(script.contains(word.trim_start_matches("--")), "{shell}: {word}");
        }
    }
    let checked = Command::new("bash").arg("-n").stdin(Stdio::piped()).spawn().and_then(|mut bash| {
        let script = dwcp(folder.path(), &["completions", "bash"]).ok();
        bash.stdin.take().expect("it is piped").write_all(script.as_bytes())?;
        bash.wait()
    });
    assert!(checked.expect("bash is there").success(), "bash reads it");
}

#[test]
fn a_hybrid_cluster_switches_when_told_and_when_its_leader_dies() {
    let mut trial = Trial::started(4, "hybrid");
    let led_by = |leader: Option<u64>| {
        move |nodes: &[Value]| {
            let of = |node: &Value| node["segment"]["leader"].as_u64();
            let same = nodes.iter().all(|node| of(node).is_some() && of(node) == of(&nodes[0]));
            same && leader.is_none_or(|leader| of(&nodes[0]) == Some(leader))
        }
    };
    trial.await_status("a segment with a leader", led_by(None));
    let put = trial.run(&["kv", "-v", "put", "a", "1"]);
    assert!(put.err.contains("label crash, position "), "one node's word inside a segment: {put:?}");
    let put = trial.run(&["kv", "-v", "put", "--ack", "anchored", "a", "2"]);
    assert!(put.err.contains("label byzantine, position "), "f + 1 signatures: {put:?}");
    let mode = trial.json(&["mode", "get"]);
    assert_eq!((&mode["mode"], &mode["protocol"]), (&Value::from("hybrid"), &Value::from("raft")), "{mode}");

    // By order: to the root log, and back to a segment that a certain node leads.
    let ordered = trial.json(&["mode", "set", "internet"]);
    assert!(ordered["order"] == 1 && ordered["in_force_from"].is_u64(), "{ordered}");
    trial.await_status("the root log alone", |nodes| {
        nodes.iter().all(|node| node["mode"] == "internet" && node["protocol"] == "pbft")
    });
    assert!(trial.run(&["mode", "get"]).ok().starts_with("internet: pbft, primary node "));
    let put = trial.run(&["kv", "-v", "put", "a", "3"]);
    assert!(put.err.contains("label byzantine, position "), "{put:?}");
    let said = trial.run(&["mode", "set", "hybrid", "--leader", "2"]).ok();
    assert!(
        said.starts_with("Mode hybrid is in force from sequence ") && said.contains("(order 2)"),
        "{said}"
    );
    trial.await_status("a segment led by node 2", led_by(Some(2)));
    let shown = trial.run(&["status"]).ok();
    assert!(shown.contains("mode hybrid: raft, epoch 2, led by node 2; trust crash, f 1"), "{shown}");
    assert!(shown.contains("0 failovers; last switch ") && shown.contains("planned: "), "{shown}");
    assert_eq!(trial.run(&["kv", "get", "--value-only", "a"]).ok(), "3\n");

    // By itself: nobody orders anything, the leader is gone.
    trial.kill(2);
    trial.run(&["kv", "put", "a", "4"]).ok();
    trial.await_status("a failover", |nodes| {
        nodes.iter().filter(|node| node["failovers"] == 1 && node["protocol"] == "pbft").count() == 3
    });
    let status = trial.json(&["status"]);
    let switch = &status["nodes"][0]["last_switch"];
    assert!(switch["to"] == "pbft" && switch["planned"] == false && switch["cause"].is_string(), "{switch}");
    assert!(status["nodes"][0]["no_segment"].as_str().unwrap().contains("calm"), "{status}");
    assert_eq!(trial.run(&["kv", "get", "--value-only", "a"]).ok(), "4\n");
    trial.start(2);
    trial.await_ready(4);

    // Without a quorum an order waits, and may yet take effect: that is neither done nor refused.
    trial.kill(2);
    trial.kill(3);
    trial.run(&["mode", "set", "internet", "--timeout", "2"]).refused(3, &["may yet take effect"]);
    trial.start(2);
    trial.start(3);
    trial.await_ready(4);
    trial.await_status("the order that waited", |nodes| nodes.iter().all(|node| node["mode"] == "internet"));

    // Policy: what is not said stays, and the client file follows.
    let policy = trial.json(&["policy", "set", "--ack", "anchored"]);
    let ordered = (&policy["trust"], &policy["raft"], &policy["default_ack"]);
    assert_eq!(ordered, (&Value::from("crash"), &Value::from(true), &Value::from("anchored")), "{policy}");
    trial.run(&["mode", "set", "hybrid"]).ok();
    trial.await_status("a segment", led_by(None));
    let put = trial.run(&["kv", "-v", "put", "a", "5"]);
    assert!(put.err.contains("label byzantine"), "the policy's default is to be anchored: {put:?}");
    let said = trial.run(&["policy", "set", "--trust", "byzantine"]).ok();
    assert!(said.contains("Policy trust byzantine, raft true, default ack anchored is in force"), "{said}");
    assert!(std::fs::read_to_string(trial.path("client.toml")).unwrap().contains("trust = \"byzantine\""));
    trial.await_status("no segment among liars", |nodes| {
        nodes.iter().all(|node| node["protocol"] == "pbft" && node["trust"] == "byzantine")
    });
    let status = trial.json(&["status"]);
    for node in status["nodes"].as_array().unwrap() {
        let why = node["no_segment"].as_str().unwrap();
        assert!(why.contains("trust = byzantine: hybrid runs in the root log"), "hybrid says why: {node}");
        assert_eq!((&node["n"], &node["f"]), (&Value::from(4), &Value::from(1)), "{node}");
    }
    let put = trial.run(&["kv", "-v", "put", "a", "6"]);
    assert!(put.err.contains("label byzantine"), "{put:?}");
    trial
        .run(&["mode", "set", "datacenter"])
        .refused(1, &["datacenter mode trusts every member: it needs trust = crash"]);
}

#[test]
fn a_principal_may_read_from_a_node_once_added_and_no_more_once_removed() {
    let trial = Trial::started(4, "internet");
    trial.run(&["kv", "put", "a", "1"]).ok();
    let block = trial.run(&["keygen", "--out", ".", "--principal", "ann", "--role", "reader"]).ok();
    std::fs::write(trial.path("ann.toml"), block).unwrap();
    let client = std::fs::read_to_string(trial.path("client.toml")).unwrap();
    std::fs::write(
        trial.path("ann-client.toml"),
        client.replace("admin.key", "ann.key").replace("\"admin\"", "\"ann\""),
    )
    .unwrap();
    let own_copy = |node: &str| {
        trial.run(&[
            "kv",
            "--cluster",
            "ann-client.toml",
            "get",
            "--consistency",
            "stale",
            "--node",
            node,
            "a",
        ])
    };
    let everywhere = |code: i32, words: &str| {
        let until = Instant::now() + PATIENCE;
        for node in ["0", "1", "2", "3"] {
            // Each node learns of a change when it has executed it.
            let mut ran = own_copy(node);
            while ran.code != Some(code) || !(ran.out.contains(words) || ran.err.contains(words)) {
                assert!(Instant::now() < until, "node {node}: {ran:?}");
                std::thread::sleep(Duration::from_millis(20));
                ran = own_copy(node);
            }
        }
    };
    everywhere(1, "a known principal's key");
    assert_eq!(trial.run(&["principal", "add", "ann.toml"]).ok(), "ann added, 0 sessions ended\n");
    everywhere(0, "a\n1\n");
    let ordered = ["kv", "--cluster", "ann-client.toml", "get", "--value-only", "a"];
    assert_eq!(trial.run(&ordered).ok(), "1\n");
    let put = ["kv", "--cluster", "ann-client.toml", "put", "a", "2"];
    trial.run(&put).refused(1, &["forbidden to role Reader: not applied"]);
    let listed = trial.json(&["principal", "list"]);
    let ann = listed["principals"].as_array().unwrap().iter().find(|one| one["name"] == "ann");
    assert_eq!(ann.expect("she is listed")["role"], "reader");
    trial
        .run(&["principal", "remove", "--as", "writer", "ann"])
        .refused(1, &["forbidden to role Writer: not applied"]);
    trial.run(&["principal", "remove", "ann"]).ok();
    everywhere(1, "a known principal's key");
    trial.run(&["principal", "remove", "ann"]).refused(1, &["no such principal", "not applied"]);
    trial.run(&["principal", "remove", "admin"]).refused(1, &["the last admin", "not applied"]);
    trial.run(&["principal", "add", "client.toml"]).refused(2, &["holds no public block", "dwcp keygen"]);
}

#[test]
fn parties_that_share_no_keys_make_a_cluster() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let ports: Vec<u16> = free_ports(3);
    let address = |index: usize| format!("127.0.0.1:{}", ports[index]);
    let keys = dwcp(
        at,
        &["keygen", "--out", "keys", "--peer-address", &address(0), "--client-address", &address(1)],
    )
    .ok();
    let admin = dwcp(at, &["keygen", "--out", "cluster", "--principal", "admin", "--role", "admin"]).ok();
    std::fs::write(at.join("members.toml"), format!("{keys}\n{admin}")).unwrap();
    dwcp(at, &["init", "--members", "members.toml", "--out", "cluster", "--mode", "datacenter"]).ok();
    let prepare = [
        "init",
        "--genesis",
        "cluster/genesis.toml",
        "--id",
        "0",
        "--out",
        "keys",
        "--http-listen",
        &address(2),
    ];
    dwcp(at, &prepare).ok();
    let mut server = spawn_server(&at.join("keys/config.toml"), &at.join("server.log"));
    let put = dwcp(at, &["kv", "--cluster", "cluster/client.toml", "--timeout", "60", "put", "a", "1"]);
    let _ = server.kill();
    let _ = server.wait();
    let log = std::fs::read_to_string(at.join("server.log")).unwrap_or_default();
    assert_eq!(put.code, Some(0), "{put:?}\n{log}");
}

#[test]
fn a_lost_disk_comes_back_as_the_next_incarnation() {
    let mut trial = Trial::started(4, "internet");
    trial.run(&["kv", "put", "a", "1"]).ok();
    trial.kill(3);
    std::fs::remove_dir_all(trial.path("node3/data")).unwrap();
    // The default, the port beside the clients', may be somebody else's on a machine that hands ports out in a row.
    let http = format!("127.0.0.1:{}", free_ports(1)[0]);
    let before = std::fs::read_to_string(trial.path("client.toml")).unwrap();
    member_orders_that_do_not_hold_are_refused(&trial);
    assert_eq!(std::fs::read_to_string(trial.path("client.toml")).unwrap(), before, "none was followed");
    trial.run(&["member", "replace", "--id", "3", "--out", "node3-new", "--http-listen", &http]).ok();
    let log = trial.path("node3/server.log");
    trial.nodes[3] = Some(spawn_server(&trial.path("node3-new/config.toml"), &log));
    trial.await_status("the new incarnation with all the state", |nodes| {
        nodes[3]["incarnation"] == 1 && nodes[3]["executed"].as_u64() >= nodes[0]["executed"].as_u64()
    });
    let stale = ["kv", "get", "--consistency", "stale", "--node", "3", "--value-only", "a"];
    assert_eq!(trial.run(&stale).ok(), "1\n");
    assert_eq!(trial.json(&["member", "list"])["members"][3]["incarnation"], 1);

    let second = trial.run(&["member", "replace", "--id", "2", "--out", "node2-new"]);
    second.refused(
        1,
        &[
            "too many members are learners already: wait until one votes again",
            "member submit node2-new/order.toml",
        ],
    );
    trial.run(&["member", "exclude", "--id", "2"]).ok();
    trial.run(&["member", "exclude", "--id", "2"]).refused(1, &["it is excluded already"]);
    assert_eq!(trial.json(&["member", "list"])["members"][2]["incarnation"], 0);
}

/// What the nodes judge: each is refused in their words, and nothing is in force.
#[track_caller]
fn member_orders_that_do_not_hold_are_refused(trial: &Trial) {
    let member = |args: &[&str]| trial.run(&[&["member"][..], args].concat());
    let next = "the incarnation must be the one in force plus one";
    let second = ["replace", "--id", "3", "--incarnation", "2", "--out", "node3-second"];
    member(&second).refused(1, &[next, "the order is kept"]);
    member(&["replace", "--id", "3", "--out", "node3-other", "--prepare-only"]).ok();
    let path = trial.path("node3-other/order.toml");
    let good = std::fs::read_to_string(&path).unwrap();
    let unsigned = "the order is not signed by an admin of the registry";
    member(&["submit", "--as", "writer", "node3-other/order.toml"]).refused(1, &[unsigned]);
    member(&["exclude", "--as", "writer", "--id", "3"]).refused(1, &[unsigned]);
    member(&["exclude", "--id", "3", "--incarnation", "1"])
        .refused(1, &["the incarnation must be the one in force"]);
    let client = std::fs::read_to_string(trial.path("client.toml")).unwrap();
    let line = |text: &str, name: &str| text.lines().find(|line| line.starts_with(name)).unwrap().to_string();
    // The order that somebody sends for the wrong member, and one with a key that another has.
    std::fs::write(&path, good.replace("id = 3", "id = 4")).unwrap();
    member(&["submit", "node3-other/order.toml"]).refused(1, &["there is no such member"]);
    std::fs::write(&path, good.replace(&line(&good, "vote_key"), &line(&client, "vote_key"))).unwrap();
    member(&["submit", "node3-other/order.toml"]).refused(1, &["a new incarnation needs new keys"]);
}

/// The demo's two halves wrote, met, and hold the same.
#[track_caller]
fn assert_parted_and_met(sync: &Value) {
    assert_eq!((&sync["converged"], &sync["lost"]), (&true.into(), &0.into()), "{sync}");
    assert_eq!(sync["conflicts_counted"], sync["conflicts_expected"], "{sync}");
    let shown = sync["conflicts"].as_array().expect("the conflicts themselves");
    assert_eq!(shown.len() as u64, sync["conflicts_counted"].as_u64().unwrap(), "{sync}");
    assert!(shown.iter().all(|seen| seen["siblings"].as_array().unwrap().len() == 2), "{sync}");
    assert!(sync["conflicts_expected"].as_u64() > Some(0), "{sync}");
}

#[test]
fn the_demo_loses_nothing_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let args = [
        "--json",
        "demo",
        "--mode",
        "internet",
        "--seconds",
        "4",
        "--at-least",
        "200",
        "--clients",
        "8",
        "--dir",
        ".",
    ];
    let ran = dwcp(folder.path(), &args);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let report: Value = serde_json::from_str(ran.out.lines().last().unwrap()).unwrap();
    assert_eq!(
        (&report["nodes"], &report["lost"], &report["doubled"]),
        (&4.into(), &0.into(), &0.into()),
        "{report}"
    );
    assert_eq!(report["diverged"], false);
    assert_parted_and_met(&report["sync"]);
    assert!(report["acknowledged"].as_u64().unwrap() >= 200, "{report}");
    let phases = report["phases"].as_array().unwrap();
    let phase = |name: &str| phases.iter().find(|phase| phase["name"] == name).expect("the phase is told");
    assert_eq!(phase("kill primary")["killed"].as_array().unwrap().len(), 1);
    assert!(phase("kill primary")["view_after"].as_u64() > phase("kill primary")["view_before"].as_u64());
    assert_eq!(phase("kill all")["killed"].as_array().unwrap().len(), 4);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "the folder is empty again");
    for killed in phase("kill all")["killed"].as_array().unwrap() {
        assert!(!PathBuf::from(format!("/proc/{}", killed["pid"])).join("exe").exists(), "{killed}");
    }
}

/// Processes that this one started and that still run.
fn children_of(pid: u32) -> Vec<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let listed = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    listed
        .flat_map(|text| text.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<u32>>())
        .collect()
}

#[test]
fn a_demo_interrupted_under_load_leaves_neither_processes_nor_files() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("told");
    let within = folder.path().join("within");
    std::fs::create_dir(&within).unwrap();
    let mut demo = program()
        .args(["demo", "--mode", "internet", "--seconds", "600", "--clients", "4", "--dir", "."])
        .current_dir(&within)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    // Under load: what clients write is in a node's log.
    let until = Instant::now() + PATIENCE;
    while newest_file_with(&within, b"demo/write/").is_none() {
        assert!(demo.try_wait().unwrap().is_none(), "{}", std::fs::read_to_string(&log).unwrap());
        assert!(Instant::now() < until, "nobody writes: {}", std::fs::read_to_string(&log).unwrap());
        std::thread::sleep(Duration::from_millis(50));
    }
    let nodes = children_of(demo.id());
    assert_eq!(nodes.len(), 4, "its nodes run: {nodes:?}");
    let pid = rustix::process::Pid::from_child(&demo);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let code = loop {
        if let Some(status) = demo.try_wait().unwrap() {
            break status.code();
        }
        assert!(Instant::now() < until, "it does not end");
        std::thread::sleep(Duration::from_millis(10));
    };
    let told = std::fs::read_to_string(&log).unwrap();
    assert_eq!(code, Some(1), "{told}");
    assert!(told.contains("error: interrupted; all nodes are stopped"), "{told}");
    for node in nodes {
        assert!(!Path::new(&format!("/proc/{node}/exe")).exists(), "node process {node} is left");
    }
    assert_eq!(std::fs::read_dir(&within).unwrap().count(), 0, "the folder is empty again");
}

#[test]
fn the_demo_switches_under_load_falls_back_by_itself_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let args = ["--json", "demo", "--seconds", "5", "--at-least", "200", "--clients", "8", "--dir", "."];
    let ran = dwcp(folder.path(), &args);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let report: Value = serde_json::from_str(ran.out.lines().last().unwrap()).unwrap();
    assert_eq!(
        (&report["mode"], &report["lost"], &report["doubled"], &report["diverged"]),
        (&"hybrid".into(), &0.into(), &0.into(), &false.into()),
        "{report}"
    );
    let switches = report["switches"].as_array().unwrap();
    let count = |from: &str, to: &str, planned: bool| {
        let is_it =
            |switch: &&Value| switch["from"] == from && switch["to"] == to && switch["planned"] == planned;
        switches.iter().filter(is_it).count()
    };
    assert!(count("raft", "pbft", true) >= 2 && count("pbft", "raft", true) >= 2, "{report}");
    assert_eq!((count("raft", "pbft", false), count("pbft", "raft", false)), (1, 1), "{report}");
    assert!(switches.iter().all(|switch| switch["gap_ms"].as_f64().is_some_and(|gap| gap > 0.0)), "{report}");
    let phases = report["phases"].as_array().unwrap();
    let killed = |name: &str| {
        let phase = phases.iter().find(|phase| phase["name"] == name).expect("the phase is told");
        phase["killed"].as_array().unwrap().len()
    };
    assert_eq!((killed("kill leader"), killed("kill all")), (1, 4));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "the folder is empty again");
}

#[test]
fn an_entry_dropped_doubled_or_altered_on_stopped_disks_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let args = [
        "demo",
        "--mode",
        "internet",
        "--keep",
        "--seconds",
        "4",
        "--at-least",
        "100",
        "--clients",
        "4",
        "--dir",
        ".",
    ];
    assert_eq!(dwcp(at, &args).code, Some(0));
    let kept = std::fs::read_dir(at).unwrap().next().expect("the folder was kept").unwrap().path();
    let judge = || {
        let ran = dwcp(at, &["--json", "demo", "--judge", kept.to_str().unwrap()]);
        let verdict: Value =
            serde_json::from_str(&ran.out).unwrap_or_else(|error| panic!("{error}: {ran:?}"));
        (ran.code, verdict)
    };
    let (code, verdict) = judge();
    assert_eq!(
        (code, &verdict["lost"], &verdict["differences"]),
        (Some(0), &0.into(), &0.into()),
        "{verdict}"
    );

    let key = |number: u32| format!("demo/write/001/{number:08}");
    judge_rewritten_logs(&kept.join("cluster/node1/data"), &last_write(&kept), judge);

    // What a second run, a lost write and a wrong value leave behind, made with the cluster's own means.
    let value = |number: u32| {
        change(&kept, &["get", "--value-only", &key(number)]).trim_end_matches('\n').to_string()
    };
    let second_run = value(0);
    change(&kept, &["put", &key(0), &second_run]);
    let (code, verdict) = judge();
    assert_eq!((code, &verdict["doubled"], &verdict["lost"]), (Some(5), &1.into(), &0.into()), "{verdict}");

    change(&kept, &["del", &key(1)]);
    let (code, verdict) = judge();
    assert_eq!((code, &verdict["doubled"], &verdict["lost"]), (Some(5), &1.into(), &1.into()), "{verdict}");

    change(&kept, &["put", &key(2), "another"]);
    let (code, verdict) = judge();
    assert_eq!((code, &verdict["lost"]), (Some(5), &2.into()), "{verdict}");
    assert!(
        verdict["findings"].to_string().contains("another value of demo/write/001/00000002"),
        "{verdict}"
    );

    // One node's disk alone: its log ends before the others'.
    let log = newest_file_with(&kept.join("cluster/node2/data"), key(3).as_bytes())
        .expect("the write is in its log");
    let mut bytes = std::fs::read(&log).unwrap();
    let entry = find(&bytes, key(3).as_bytes()).expect("it was found before");
    bytes[entry] ^= 1;
    std::fs::write(&log, bytes).unwrap();
    let (code, verdict) = judge();
    assert_eq!(code, Some(5), "{verdict}");
    assert!(verdict["findings"].to_string().contains("diverged: node 2"), "{verdict}");
}

/// The last key that client 1 wrote: little comes behind it whose revision would follow from it.
fn last_write(kept: &Path) -> String {
    let journal = std::fs::read_to_string(kept.join("journal.jsonl")).unwrap();
    let keys = journal.lines().filter_map(|line| {
        let entry: Value = serde_json::from_str(line).unwrap();
        let written = entry["client"] == 1 && entry["told"]["told"] == "acknowledged";
        entry["ask"]["key"].as_str().filter(|_| written).map(String::from)
    });
    keys.max().expect("client 1 wrote")
}

/// One entry of one stopped node's log, dropped, run twice and of another value, each with every checksum right.
fn judge_rewritten_logs(data: &Path, key: &str, judge: impl Fn() -> (Option<i32>, Value)) {
    let log = newest_file_with(&data.join("wal"), key.as_bytes()).expect("the write is in its log");
    let good = std::fs::read(&log).unwrap();
    let frame_of = |bytes: &Bytes| decode::<ClientFrame>(bytes).expect("a client frame");
    let with_body = |bytes: &Bytes, change: &dyn Fn(&mut SessionFrame)| {
        let ClientFrame::Commands { body, signature } = frame_of(bytes) else { panic!("no commands") };
        let mut frame: SessionFrame = decode(&body).expect("the body of commands");
        change(&mut frame);
        Bytes::from(encode(&ClientFrame::Commands { body: encode(&frame).into(), signature }))
    };
    let findings = |verdict: &Value| verdict["findings"].to_string();
    let judged = |bytes: Vec<u8>| {
        assert_ne!(bytes, good, "the log says something else");
        std::fs::write(&log, bytes).unwrap();
        let (code, verdict) = judge();
        std::fs::write(&log, &good).unwrap();
        assert_eq!(code, Some(5), "{verdict}");
        assert!(findings(&verdict).contains("diverged: the state digest of the disk of node 1"), "{verdict}");
        verdict
    };

    let dropped = judged(rewritten(&log, key, |frames, place| {
        frames.remove(place);
    }));
    let what = format!("was acknowledged, and the disk of node 1 has no {key}");
    assert!(findings(&dropped).contains(&what), "{dropped}");

    // Under another number nothing but the signature, which a log's reader has no reason to doubt, keeps it from running.
    let doubled = judged(rewritten(&log, key, |frames, place| {
        let again = with_body(&frames[place], &|frame| frame.first += 500);
        frames.push(again);
    }));
    assert!(doubled["doubled"].as_u64() >= Some(1), "{doubled}");
    let what = format!("ran 2 times by the version of {key} at the disk of node 1");
    assert!(findings(&doubled).contains(&what), "{doubled}");

    let altered = judged(rewritten(&log, key, |frames, place| {
        frames[place] = with_body(&frames[place], &|frame| {
            for command in &mut frame.commands {
                if find(command, key.as_bytes()).is_some() {
                    *command = KvCommand::put(key.as_bytes().to_vec(), "another").to_command();
                }
            }
        });
    }));
    let what = format!("the disk of node 1 holds another value of {key}");
    assert!(findings(&altered).contains(&what), "{altered}");
    assert_eq!(judge().0, Some(0), "as it was");
}

/// Starts a kept demo's nodes, runs one `dwcp kv` command, and stops them in good order.
fn change(kept: &Path, command: &[&str]) -> String {
    let node = |node: usize| kept.join(format!("cluster/node{node}"));
    let start = |number| spawn_server(&node(number).join("config.toml"), &node(number).join("server.log"));
    let mut servers: Vec<Child> = (0..4).map(start).collect();
    let args: Vec<&str> = ["kv", "--timeout", "60"].iter().chain(command).copied().collect();
    let client = kept.join("cluster/client.toml");
    let ran = dwcp(kept, &[&args[..], &["--cluster", client.to_str().unwrap()]].concat());
    // All have executed it before any is stopped, so that all disks are judged at one place.
    let until = Instant::now() + PATIENCE;
    loop {
        let status = dwcp(kept, &["--json", "status", "--cluster", client.to_str().unwrap()]);
        let seen: Value = serde_json::from_str(&status.out).unwrap_or_default();
        let executed = |node: &Value| node["executed"].as_u64().filter(|_| node["ready"] == true);
        let level = seen["nodes"].as_array().is_some_and(|nodes| {
            executed(&nodes[0]).is_some() && nodes.iter().all(|node| executed(node) == executed(&nodes[0]))
        });
        if level {
            break;
        }
        assert!(Instant::now() < until, "the nodes do not level: {status:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
    for server in &mut servers {
        let pid = rustix::process::Pid::from_child(server);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it runs");
        server.wait().expect("it ends");
    }
    ran.ok()
}

fn free_ports(count: usize) -> Vec<u16> {
    dwcp::init::free_ports(std::net::Ipv4Addr::LOCALHOST.into(), count).expect("there are ports")
}
