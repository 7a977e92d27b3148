//! Every bad input that is named anywhere, with the exit code and the words that must come back. A row is a claim: this
//! input is refused, in one line, with the remedy.

use super::*;

use std::net::TcpListener;

#[test]
fn settings_that_cannot_be_are_refused_with_their_line_and_the_remedy() {
    let trial = Trial::new(4, "internet");
    let config = trial.config(0);
    let good = std::fs::read_to_string(&config).unwrap();
    let with_first = |line: &str| format!("{line}\n{good}");
    let within = |section: &str, line: &str| good.replacen(section, &format!("{section}\n{line}"), 1);
    let rows: &[(String, &[&str])] = &[
        (with_first("colour = \"red\""), &["config.toml:1: unknown setting `colour`"]),
        (
            within("[consensus]", "view_timeout_ms = 1"),
            &["config.toml:19: `consensus.view_timeout_ms` = 1 is out of range: set it within"],
        ),
        (within("[consensus]", "view_timeout_ms = \"soon\""), &["view_timeout_ms` is", "write"]),
        (within("[storage]", "segment_bytes = 100001"), &["must be a multiple of 4096: set it to 102400"]),
        (
            good.replace("replica = 0", "replica = 9"),
            &["replica = 9 is not a member: the genesis has replicas 0..=3"],
        ),
        (good.replace("replica = 0", ""), &["setting `replica` is missing: add it"]),
        (good.replace("\"internet\"", "\"datacenter\""), &["mode = \"datacenter\" does not fit the genesis"]),
        (good.replace("\"internet\"", "\"intranet\""), &["`mode` = \"intranet\" is not known: write one of"]),
        (
            good.replace("fast_path_timeout_ms = 500", "fast_path_timeout_ms = 49"),
            &["`segment.fast_path_timeout_ms` = 49 is out of range: set it within 0 or 50..=60000 ms"],
        ),
        (
            within("[segment]", "heartbeat_interval_ms = 1001"),
            &["`segment.election_timeout_ms` = 3000 is below `3 * segment.heartbeat_interval_ms` = 3003"],
        ),
        (
            with_first("peer_via = \"one\""),
            &["config.toml:1: `peer_via` = \"one\" names no peers: write N=HOST:PORT"],
        ),
        (
            within("[sync]", "ordered_prefixes = \"a/\"\nconvergent_prefixes = \"a/b\""),
            &["either ordered or convergent, not both"],
        ),
        (within("[sync]", "exchange_interval_ms = 1"), &["is out of range: set it within 50..=60000 ms"]),
        (
            within("[sync]", "ack_patience_ms = 999"),
            &["`sync.ack_patience_ms` = 999 is out of range: set it within 1000..=604800000 ms"],
        ),
        (
            within("[sync]", "audit_interval_ms = \"often\""),
            &["`sync.audit_interval_ms` is a text: write a number of ms"],
        ),
        (
            within("[sync]", "fanout = 65"),
            &["`sync.fanout` = 65 is out of range: set it within 1..=64 peers"],
        ),
        (
            within("[links]", "ping_interval_ms = 3000"),
            &["`links.silence_max_ms` = 5000 is below `2 * links.ping_interval_ms` = 6000"],
        ),
        (
            within("[clients]", "streams_max = 0"),
            &["`clients.streams_max` = 0 is out of range: set it within 1..=65536 streams"],
        ),
        (
            within("[http]", "watches_max = 64"),
            &["`http.connections_max` = 64 is below `http.watches_max + 1` = 65"],
        ),
        (within("[sync]", "http = \"yes\""), &["write one of \"off\", \"read\", \"write\""]),
        (with_first("= ="), &["config.toml:1:", "is not TOML", "correct that line"]),
        (good.replace("../genesis.toml", "../nowhere.toml"), &["cannot read", "nowhere.toml", "dwcp init"]),
        (good.replace("\"vote.key\"", "\"none.key\""), &["cannot read key file", "none.key", "dwcp init"]),
    ];
    for (text, words) in rows {
        assert_ne!(text, &good, "the row changes something");
        std::fs::write(&config, text).unwrap();
        refused_server(&config).refused(1, words);
    }
    refused_server(&trial.path("node7/config.toml")).refused(1, &["cannot be read", "dwcp init"]);
}

#[test]
fn clusters_that_cannot_be_are_not_made() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let init = |args: &[&str]| {
        let all: Vec<&str> = ["init", "--out", "trial"].iter().chain(args).copied().collect();
        dwcp(at, &all)
    };
    let three = init(&["--nodes", "3"]);
    three.refused(1, &[]);
    assert_eq!(three.err, "error: minimum 4 replicas required for Byzantine tolerance\n");
    init(&["--nodes", "0"]).refused(1, &["0 nodes: a cluster has 1 to 31"]);
    init(&["--nodes", "32"]).refused(1, &["32 nodes: a cluster has 1 to 31"]);
    init(&["--nodes", "4", "--faults", "2"])
        .refused(1, &["error: f = 2 is more than 4 replicas tolerate: set f to 0..=1"]);
    init(&["--nodes", "3", "--mode", "hybrid", "--faults", "1"])
        .refused(1, &["error: f = 1 is more than 3 replicas tolerate: set f to 0..=0"]);
    init(&["--nodes", "3", "--mode", "datacenter", "--no-raft"])
        .refused(1, &["datacenter mode runs Raft, which the policy does not allow"]);
    init(&["--nodes", "4", "--mode", "hybrid", "--calm-ms", "3600001"])
        .refused(1, &["calm_ms must be 0 to 3600000"]);
    init(&["--nodes", "4", "--window", "300"]).refused(
        1,
        &["error: window must be a multiple of checkpoint_interval, at least twice it, at most 2^20"],
    );
    init(&["--nodes", "4", "--checkpoint-interval", "128", "--window", "128"])
        .refused(1, &["error: window must be a multiple of checkpoint_interval, at least twice it"]);
    init(&["--nodes", "4", "--window", "32768"])
        .refused(1, &["error: window = 32768 is too large for this many members: lower it to 9830 or less"]);
    init(&["--nodes", "4", "--checkpoint-interval", "65536"])
        .refused(1, &["error: window = 262144 is too large for this many members"]);
    for interval in ["0", "65537"] {
        init(&["--nodes", "4", "--checkpoint-interval", interval])
            .refused(2, &["--checkpoint-interval", "is not in 1..=65536"]);
    }
    init(&["--nodes", "4", "--base-port", "65530"]).refused(1, &["choose a lower first port"]);
    assert!(!at.join("trial").exists(), "a refused init leaves nothing behind");
    init(&["--nodes", "4", "--base-port", "0"]).ok();
    init(&["--nodes", "4", "--base-port", "0"]).refused(1, &["exists already and is not overwritten"]);
    init(&["--members", "nowhere.toml"]).refused(1, &["cannot read nowhere.toml"]);
    std::fs::write(at.join("members.toml"), "[[member]]\nvote_key = \"12\"\n").unwrap();
    init(&["--members", "members.toml"]).refused(1, &["members.toml:", "64 hexadecimal digits"]);
    let keygen = |args: &[&str]| dwcp(at, &[&["keygen"][..], args].concat()).ok();
    let here = "127.0.0.1:7100";
    let mut blocks = keygen(&["--out", "m", "--peer-address", here, "--client-address", "127.0.0.1:7101"]);
    blocks += &keygen(&["--out", "p", "--principal", "admin", "--role", "admin"]);
    std::fs::write(at.join("members.toml"), &blocks).unwrap();
    let of_members = |args: &[&str]| {
        let all = ["init", "--members", "members.toml", "--mode", "hybrid", "--out", "cluster"];
        dwcp(at, &[&all[..], args].concat())
    };
    of_members(&["--window", "300"]).refused(1, &["error: window must be a multiple of checkpoint_interval"]);
    std::fs::write(at.join("members.toml"), blocks.replace(here, "127.0.0.1")).unwrap();
    let line = blocks.lines().position(|line| line.starts_with("peer_address")).unwrap() + 1;
    of_members(&[]).refused(1, &[&format!("members.toml:{line}: \"127.0.0.1\" of member 0 is no address")]);
    std::fs::write(at.join("members.toml"), &blocks).unwrap();
    of_members(&["--checkpoint-interval", "16", "--window", "48"]).ok();
    let genesis = std::fs::read_to_string(at.join("cluster/genesis.toml")).unwrap();
    assert!(genesis.contains("checkpoint_interval = 16\nwindow = 48\n"), "{genesis}");
    let missing = init(&["--nodes", "4", "--members", "members.toml"]);
    assert_eq!(missing.code, Some(2), "{missing:?}");
}

#[test]
fn modes_and_policies_that_cannot_be_are_refused_and_change_nothing() {
    let trial = Trial::started(3, "datacenter");
    let before = trial.json(&["policy", "get"]);
    let few = trial.run(&["mode", "set", "internet"]);
    few.refused(1, &[]);
    assert_eq!(few.err, "error: minimum 4 replicas required for Byzantine tolerance\n");
    trial.run(&["policy", "set", "--trust", "byzantine"]).refused(1, &["minimum 4 replicas required"]);
    trial
        .run(&["policy", "set", "--raft", "false"])
        .refused(1, &["datacenter mode needs trust = crash and Raft: order another mode first"]);
    trial
        .run(&["mode", "set", "hybrid", "--as", "writer"])
        .refused(1, &["not signed by an admin of the registry"]);
    trial.run(&["mode", "set", "hybrid", "--leader", "3"]).refused(2, &["node 3 is not in the client file"]);
    trial.run(&["mode", "set", "internet", "--leader", "1"]).refused(2, &["leave --leader out"]);
    trial
        .run(&["kv", "get", "--consistency", "stale", "--ack", "anchored", "a"])
        .refused(2, &["leave --ack out"]);
    assert_eq!(trial.json(&["policy", "get"]), before, "nothing of the refused is in force");
    assert_eq!(
        (&before["trust"], &before["next_order"]),
        (&Value::from("crash"), &Value::from(1)),
        "{before}"
    );

    let folder = tempfile::tempdir().unwrap();
    dwcp(folder.path(), &["mode", "set", "hybrid"]).refused(2, &["no cluster is named"]);
    let trial = Trial::new(4, "hybrid");
    for args in [&["mode", "get"][..], &["mode", "set", "internet"], &["policy", "set", "--ack", "majority"]]
    {
        let all: Vec<&str> = args.iter().chain(&["--timeout", "1"]).copied().collect();
        trial.run(&all).refused(4, &["no node answers", "dwcp server"]);
    }
}

#[test]
fn member_orders_that_cannot_be_are_refused_before_anybody_is_asked() {
    let trial = Trial::new(4, "internet");
    let member = |args: &[&str]| trial.run(&[&["member"][..], args].concat());
    let refused = |args: &[&str], code: i32, line: &str| {
        let ran = member(args);
        ran.refused(code, &[]);
        assert_eq!(ran.err, format!("error: {line}\n"), "{args:?}");
    };
    let nobody = "client.toml: no principal nobody is listed: choose among admin, writer";
    let keyless = "keyless.toml lists no principal with role admin: name one with --as";
    let client = std::fs::read_to_string(trial.path("client.toml")).unwrap();
    std::fs::write(trial.path("keyless.toml"), client.replace("role = \"admin\"", "role = \"writer\""))
        .unwrap();

    let rows: &[(&[&str], &str)] = &[
        (&["--id", "9"], "node 9 is not in client.toml: choose one of its nodes"),
        (
            &["--id", "3", "--incarnation", "0"],
            "incarnation 0 is the genesis' own: a replacement is incarnation 1 or later (the one in force plus one)",
        ),
        (&["--id", "3", "--peer-address", "nowhere"], "\"nowhere\" is no address: write HOST:PORT"),
        (&["--id", "3", "--client-address", "nowhere"], "\"nowhere\" is no address: write HOST:PORT"),
        (
            &["--id", "3", "--genesis", "nowhere.toml"],
            "cannot read nowhere.toml: No such file or directory (os error 2); `dwcp init` writes a genesis.toml",
        ),
        (&["--id", "3", "--as", "nobody"], nobody),
        (&["--id", "3", "--cluster", "keyless.toml"], keyless),
    ];
    for (args, line) in rows {
        refused(&[&["replace", "--out", "new"], *args].concat(), 1, line);
        assert!(!trial.path("new").exists(), "{args:?} leaves nothing behind");
    }
    let there = "node3 exists already and is not overwritten: choose another folder";
    refused(&["replace", "--id", "3", "--out", "node3"], 1, there);
    let new = ["replace", "--id", "3", "--out", "new", "--timeout", "1"];
    member(&new).refused(
        4,
        &["Connection refused", "the order is kept: retry with `dwcp member submit new/order.toml`"],
    );

    let good = std::fs::read_to_string(trial.path("new/order.toml")).unwrap();
    let within = |name: &str, value: &str| {
        let line = good.lines().find(|line| line.starts_with(name)).unwrap();
        good.replace(line, &format!("{name} = {value}"))
    };
    let rows: &[(String, &str)] = &[
        (String::new(), ":1: missing field `id`: correct that line"),
        (within("id", "256"), ":2: invalid value: integer `256`, expected u8: correct that line"),
        (within("incarnation", "-1"), ":3: invalid value: integer `-1`, expected u32: correct that line"),
        (within("vote_key", "\"12\""), ":4: a public key is 64 hexadecimal digits: correct that line"),
        (within("tls_key", "\"12\""), ":5: a public key is 64 hexadecimal digits: correct that line"),
        (within("peer_address", "\"nowhere\""), ":6: \"nowhere\" is no address: write HOST:PORT"),
        (within("client_address", "\"a:0\""), ":7: \"a:0\" is no address: write HOST:PORT"),
        (
            format!("colour = 1\n{good}"),
            ":1: unknown field `colour`, expected one of `id`, `incarnation`, `vote_key`, `tls_key`, \
             `peer_address`, `client_address`: correct that line",
        ),
        (within("id", ""), ":2: string values must be quoted, expected literal string: correct that line"),
    ];
    for (text, line) in rows {
        std::fs::write(trial.path("order.toml"), text).unwrap();
        refused(&["submit", "order.toml"], 1, &format!("order.toml{line}"));
    }
    let unread = "cannot read nowhere.toml: No such file or directory (os error 2); \
                  `dwcp member replace --prepare-only` writes an order.toml";
    refused(&["submit", "nowhere.toml"], 1, unread);
    refused(&["submit", "--as", "nobody", "new/order.toml"], 1, nobody);
    refused(&["submit", "--cluster", "keyless.toml", "new/order.toml"], 1, keyless);
    member(&["submit", "--timeout", "1", "new/order.toml"]).refused(4, &["Connection refused"]);

    refused(&["exclude", "--id", "9"], 2, "node 9 is not in the client file");
    refused(&["exclude", "--id", "2", "--as", "nobody"], 1, nobody);
    refused(&["exclude", "--id", "2", "--cluster", "keyless.toml"], 1, keyless);
    member(&["exclude", "--id", "2", "--timeout", "1"]).refused(4, &["Connection refused"]);
    for args in [&["replace", "--id", "3"][..], &["submit"], &["exclude"], &["exclude", "--id", "256"]] {
        let ran = member(args);
        assert_eq!(ran.code, Some(2), "{args:?}: {ran:?}");
        assert!(ran.err.contains("--help"), "{args:?}: {ran:?}");
    }
    assert_eq!(std::fs::read_to_string(trial.path("client.toml")).unwrap(), client, "no order was followed");
}

#[test]
fn a_node_with_another_clusters_or_members_files_is_refused() {
    let (trial, other) = (Trial::new(4, "internet"), Trial::new(4, "internet"));
    let config = trial.config(0);
    let good = std::fs::read_to_string(&config).unwrap();
    let genesis = other.path("genesis.toml").display().to_string();
    std::fs::write(&config, good.replace("../genesis.toml", &genesis)).unwrap();
    refused_server(&config).refused(1, &["belongs to cluster", "correct data_dir or genesis_file"]);

    std::fs::write(&config, good.replace("\"data\"", "\"../node1/data\"")).unwrap();
    refused_server(&config).refused(1, &["belongs to replica 1, this is replica 0"]);

    std::fs::write(&config, good.replace("\"vote.key\"", "\"../node1/vote.key\"")).unwrap();
    refused_server(&config).refused(1, &["the cluster knows the vote key of replica 0 as", "vote_key_file"]);

    std::fs::write(&config, good.replace("\"tls.pem\"", "\"../node1/tls.pem\"")).unwrap();
    refused_server(&config).refused(1, &["the cluster knows the TLS key of replica 0 as", "tls_key_file"]);

    std::fs::write(&config, &good).unwrap();
    open_to_all(&trial.path("node0/vote.key"));
    refused_server(&config).refused(1, &["can be read by others", "run `chmod 600"]);
}

#[test]
fn keys_and_certificates_that_cannot_be_read_are_named_with_the_remedy() {
    let trial = Trial::new(1, "datacenter");
    let config = trial.config(0);
    for (file, remedy, rows) in [
        ("tls.pem", "PKCS #8 PEM", ["", "no certificate\n"]),
        ("vote.key", "64 hexadecimal digits", ["", "12\n"]),
    ] {
        let path = trial.path(&format!("node0/{file}"));
        let good = std::fs::read(&path).unwrap();
        for text in rows {
            std::fs::write(&path, text).unwrap();
            refused_server(&config).refused(1, &[file, remedy]);
        }
        std::fs::write(&path, good).unwrap();
    }
    let genesis = trial.path("genesis.toml");
    let good = std::fs::read_to_string(&genesis).unwrap();
    std::fs::write(&genesis, good.replacen("vote_key = \"", "vote_key = \"0", 1)).unwrap();
    refused_server(&config).refused(1, &["genesis.toml:", "64 hexadecimal digits"]);
    let line = good.lines().position(|line| line.starts_with("window = ")).unwrap() + 1;
    std::fs::write(&genesis, good.replacen("window = 512", "window = 500", 1)).unwrap();
    refused_server(&config).refused(1, &[&format!("genesis.toml:{line}: window must be a multiple of")]);
    // Another genesis is another cluster, however small the change.
    std::fs::write(&genesis, good.replacen("quota_bytes = ", "quota_bytes = 1", 1)).unwrap();
    refused_server(&config).refused(1, &["belongs to cluster"]);
}

#[test]
fn a_client_file_that_does_not_fit_is_told_what_differs() {
    let (trial, other) = (Trial::started(1, "datacenter"), Trial::new(1, "datacenter"));
    let file = |name: &str, text: String| std::fs::write(trial.path(name), text).unwrap();
    let line = |text: &str, name: &str| {
        let starts = |line: &&str| line.trim_start().starts_with(name);
        text.lines().find(starts).unwrap_or_else(|| panic!("{name} is not in {text}")).to_string()
    };
    let good = std::fs::read_to_string(trial.path("client.toml")).unwrap();
    let foreign = std::fs::read_to_string(other.path("client.toml")).unwrap();
    let put = |name: &str| trial.run(&["kv", "--timeout", "6", "--cluster", name, "put", "a", "1"]);

    // Somebody else answers there.
    file("tls.toml", good.replace(&line(&good, "tls_key"), &line(&foreign, "tls_key")));
    put("tls.toml").refused(4, &["it is not the node expected there", "tls_key", "not applied"]);
    // The right node, another cluster's name.
    file("cluster.toml", good.replace(&line(&good, "cluster ="), &line(&foreign, "cluster =")));
    put("cluster.toml").refused(4, &["use the client file of this cluster", "not applied"]);
    // No TLS is spoken there: the port of the figures.
    let config = std::fs::read_to_string(trial.config(0)).unwrap();
    let port = line(&config, "http_listen").rsplit(':').next().unwrap().trim_matches('"').to_string();
    file("port.toml", good.replace(&line(&good, "address"), &format!("address = \"127.0.0.1:{port}\"")));
    put("port.toml").refused(4, &["is this the client port", "not applied"]);
}

#[test]
fn votes_under_unknown_keys_are_not_believed_and_named() {
    let trial = Trial::started(4, "internet");
    let good = std::fs::read_to_string(trial.path("client.toml")).unwrap();
    let mut left = 3;
    let spoiled = |line: &str| {
        if line.trim_start().starts_with("vote_key") && left > 0 {
            left -= 1;
            let another = format!("{left:02x}").repeat(32);
            return format!("vote_key = \"{another}\"");
        }
        line.to_string()
    };
    let text: Vec<String> = good.lines().map(spoiled).collect();
    std::fs::write(trial.path("votes.toml"), text.join("\n")).unwrap();
    let put = trial.run(&["kv", "--timeout", "8", "--cluster", "votes.toml", "put", "a", "1"]);
    put.refused(4, &["vote_key", "update that file", "not applied"]);
}

#[test]
fn a_wiped_disk_cannot_rejoin_as_itself() {
    let mut trial = Trial::started(1, "datacenter");
    trial.run(&["kv", "put", "a", "1"]).ok();
    trial.kill(0);
    let (config, data) = (trial.config(0), trial.path("node0/data"));
    let kept = trial.path("node0/kept");
    std::fs::rename(&data, &kept).unwrap();
    refused_server(&config)
        .refused(1, &["never been initialised or its disk was lost", "dwcp member replace"]);

    std::fs::create_dir(&data).unwrap();
    refused_server(&config)
        .refused(1, &["never been initialised or its disk was lost", "dwcp member replace"]);

    // Only the manifest is left: the log was wiped beside it.
    for entry in std::fs::read_dir(&kept).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_file() && entry.file_name().to_string_lossy().contains("manifest") {
            std::fs::copy(entry.path(), data.join(entry.file_name())).unwrap();
        }
    }
    refused_server(&config).refused(1, &["disk was wiped", "dwcp member replace"]);
}

#[test]
fn a_data_directory_that_is_no_nodes_is_refused_with_what_to_do() {
    let mut trial = Trial::started(1, "datacenter");
    trial.run(&["kv", "put", "a", "1"]).ok();
    trial.kill(0);
    let (config, data) = (trial.config(0), trial.path("node0/data"));
    let manifest = std::fs::read_dir(&data)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.to_string_lossy().contains("manifest"))
        .expect("a node has a manifest");
    let good = std::fs::read(&manifest).unwrap();
    for at in [0, good.len() / 2, good.len() - 1] {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        std::fs::write(&manifest, bad).unwrap();
        refused_server(&config).refused(1, &["manifest", "dwcp member replace"]);
    }
    std::fs::write(&manifest, &good[..good.len() / 2]).unwrap();
    refused_server(&config).refused(1, &["manifest", "dwcp member replace"]);
    std::fs::write(&manifest, &good).unwrap();
    trial.start(0);
    trial.await_ready(1);
    assert_eq!(trial.run(&["kv", "get", "--value-only", "a"]).ok(), "1\n", "it was only the manifest");
}

#[test]
fn a_damaged_snapshot_store_is_refused_and_may_be_moved_away() {
    let mut trial = Trial::started(1, "datacenter");
    trial.run(&["kv", "put", "a", "1"]).ok();
    trial.kill(0);
    let store = trial.path("node0/data/snapshots.redb");
    let good = std::fs::read(&store).unwrap();
    let mut other_kind = good.clone();
    other_kind[..4].copy_from_slice(b"none");
    for bad in [&other_kind[..], &good[..1000]] {
        std::fs::write(&store, bad).unwrap();
        let words = ["snapshot store", "snapshots.redb is damaged", "move it away"];
        refused_server(&trial.config(0)).refused(1, &words);
    }
    std::fs::remove_file(&store).unwrap();
    trial.start(0);
    trial.await_ready(1);
    assert_eq!(trial.run(&["kv", "get", "--value-only", "a"]).ok(), "1\n", "the log has it all");
}

#[test]
fn a_full_disk_is_named_and_nothing_half_made_is_left() {
    let folder = tempfile::tempdir().unwrap();
    // A disk of one mebibyte, seen by this shell alone.
    let script = "mount -t tmpfs -o size=1m tmpfs . && cd \"$PWD\" && \"$0\" init --nodes 4 --out trial --base-port 7100; \
                  code=$?; ls -A; exit $code";
    let works = Command::new("unshare").args(["--mount", "true"]).output();
    if !works.is_ok_and(|output| output.status.success()) {
        return skip("needs-root", "refusals::a_full_disk_is_named_and_nothing_half_made_is_left");
    }
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", script, env!("CARGO_BIN_EXE_dwcp")])
        .current_dir(folder.path())
        .output()
        .expect("it worked before");
    let ran = Ran::of(&output);
    ran.refused(1, &["no space left for trial/", "free disk space"]);
    assert_eq!(ran.out, "", "the folder is empty again");
}

/// The convention of `cargo xtask audit-tests` for what this machine cannot run.
fn skip(reason: &str, test: &str) {
    let line = format!("SKIPPED({reason}): dwcp {test}");
    println!("{line}");
    if let Some(log) = std::env::var_os("DWCP_SKIP_LOG") {
        let mut log = std::fs::File::options().create(true).append(true).open(log).unwrap();
        writeln!(log, "{line}").unwrap();
    }
}

#[test]
fn damage_in_the_middle_of_the_log_is_refused_with_what_to_do() {
    let mut trial = Trial::started(1, "datacenter");
    let marker = "a-value-to-be-found-again-on-disk";
    for number in 0..20 {
        trial.run(&["kv", "put", &format!("k{number}"), marker]).ok();
    }
    trial.kill(0);
    let segment =
        newest_file_with(&trial.path("node0/data"), marker.as_bytes()).expect("the value is in the log");
    let mut bytes = std::fs::read(&segment).unwrap();
    let at = find(&bytes, marker.as_bytes()).expect("it was found before");
    bytes[at] ^= 0x40;
    std::fs::write(&segment, bytes).unwrap();
    refused_server(&trial.config(0)).refused(1, &["is damaged at byte", "dwcp member replace"]);
}

#[test]
fn a_port_in_use_is_named_with_its_setting() {
    let trial = Trial::new(1, "datacenter");
    let config = trial.config(0);
    let good = std::fs::read_to_string(&config).unwrap();
    for setting in ["peer_listen", "client_listen", "http_listen"] {
        let holder = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = holder.local_addr().unwrap().to_string();
        let line = good.lines().find(|line| line.starts_with(setting)).unwrap();
        std::fs::write(&config, good.replace(line, &format!("{setting} = \"{address}\""))).unwrap();
        refused_server(&config).refused(1, &[&address, "in use", setting]);
        // An address of no interface of this machine (TEST-NET-1).
        std::fs::write(&config, good.replace(line, &format!("{setting} = \"192.0.2.1:7100\""))).unwrap();
        refused_server(&config).refused(1, &["192.0.2.1:7100", setting]);
    }
}

#[test]
fn one_data_directory_serves_one_process() {
    let trial = Trial::started(1, "datacenter");
    let config = trial.config(0);
    refused_server(&config).refused(1, &["in use by another process"]);
}

#[test]
fn commands_that_cannot_be_are_refused_as_not_applied() {
    let trial = Trial::started(1, "datacenter");
    let big = vec![b'x'; 1_600_000];
    let words = ["a command of ", "exceeds 1572864: split it", "not applied"];
    trial.run_with_input(&["kv", "put", "big"], &big).refused(1, &words);
    let largest = vec![b'x'; 1_500_000];
    trial.run_with_input(&["kv", "put", "big"], &largest).ok();
    trial.run(&["kv", "put", "", "x"]).refused(1, &["the key is empty", "not applied"]);
    trial.run(&["kv", "put", "--lease", "99", "a", "1"]).refused(1, &["lease 99 not found", "not applied"]);
    trial.run(&["kv", "lease", "grant", "0"]).refused(1, &["a lease of 0 s is not possible"]);
    trial.run(&["kv", "get", "--rev", "1000", "a"]).refused(1, &["the revision is in the future"]);
    trial.run(&["kv", "compact", "1000"]).refused(1, &["the revision is in the future"]);
    trial.run(&["kv", "put", "a", "1"]).ok();
    trial.run(&["kv", "put", "a", "2"]).ok();
    trial.run(&["kv", "compact", "4"]).ok();
    trial
        .run(&["kv", "get", "--rev", "2", "a"])
        .refused(1, &["has been compacted: ask for revision 4 or later"]);
    let twice = b"\n\nput a 1\nput a 2\n".strip_prefix(b"\n").unwrap();
    trial.run_with_input(&["kv", "txn"], twice).refused(1, &["changes one key twice"]);
    trial
        .run(&["kv", "get", "--consistency", "stale", "--node", "7", "a"])
        .refused(2, &["node 7 is not in the client file"]);
    trial
        .run(&["kv", "get", "--as", "nobody", "a"])
        .refused(1, &["no principal nobody is listed: choose among"]);
    assert_eq!(
        trial.run(&["kv", "get", "--value-only", "a"]).ok(),
        "2\n",
        "nothing of the refused was applied"
    );
}

#[test]
fn a_transaction_that_is_too_deep_or_too_long_is_refused_as_not_applied() {
    let trial = Trial::started(1, "datacenter");
    let put = |key: usize| format!("{{\"put\": {{\"key\": \"k{key}\", \"value\": \"v\"}}}}");
    let deep = |levels: usize| {
        (1..levels).fold(format!("{{\"then\": [{}]}}", put(0)), |txn, _| {
            format!("{{\"then\": [{{\"txn\": {txn}}}]}}")
        })
    };
    let txn = |text: &str| trial.run_with_input(&["kv", "txn"], text.as_bytes());
    txn(&deep(8)).ok();
    txn(&deep(9)).refused(1, &["the transaction nests deeper than 8: flatten it", "not applied"]);
    let long = |puts: usize| format!("{{\"then\": [{}]}}", (0..puts).map(put).collect::<Vec<_>>().join(","));
    txn(&long(128)).ok();
    txn(&long(129)).refused(1, &["more than 128 operations or comparisons: split it", "not applied"]);
    let key = "k128";
    assert_eq!(trial.run(&["kv", "get", "--value-only", key]).out, "", "nothing of the refused was applied");
}

#[test]
fn a_put_beyond_the_quota_raises_the_alarm_and_is_refused_until_it_is_disarmed() {
    let mut trial = Trial::with(1, "datacenter", &["--quota-bytes", "1000"]);
    trial.start(0);
    trial.await_ready(1);
    trial.run(&["kv", "put", "a", "1"]).ok();
    let value = "x".repeat(1000);
    let words = ["no space", "the quota is 1000", "disarm the alarm", "not applied"];
    trial.run(&["kv", "put", "b", &value]).refused(1, &words);
    trial.run(&["kv", "put", "c", "1"]).refused(1, &words);
    assert_eq!(trial.json(&["kv", "alarm"])["no_space"], true);
    trial.run(&["kv", "del", "a"]).ok();
    trial.run(&["kv", "alarm", "--disarm"]).ok();
    trial.run(&["kv", "put", "c", "1"]).ok();
}

#[test]
fn transactions_that_cannot_be_read_are_refused_before_anybody_is_called() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |input: &str, words: &[&str]| {
        dwcp_with_input(folder.path(), &["kv", "txn"], input.as_bytes()).refused(2, words);
    };
    refused("", &["malformed transaction: it is empty"]);
    refused("vlaue(\"a\") = 1\n", &["malformed transaction: line 1: `vlaue` cannot be compared"]);
    refused("\nput a\n", &["line 2: `put a` is no operation: write put KEY VALUE"]);
    refused("{\"then\": [{\"put\": {\"key\": \"a\"}}]}", &["missing field `value`", "dwcp kv txn --help"]);
    dwcp(folder.path(), &["kv", "txn", "nowhere.txn"]).refused(2, &["cannot read nowhere.txn"]);
}

#[test]
fn a_writer_may_not_administer_and_a_stranger_may_nothing() {
    let trial = Trial::started(1, "datacenter");
    trial.run(&["kv", "put", "--as", "writer", "a", "1"]).ok();
    trial
        .run(&["kv", "alarm", "--as", "writer", "--disarm"])
        .refused(1, &["only an admin may do this", "not applied"]);
    trial.run(&["kv", "alarm", "--disarm"]).ok();
    // A key of nobody under the name of somebody.
    let client = std::fs::read_to_string(trial.path("client.toml")).unwrap();
    std::fs::write(trial.path("stranger.key"), format!("{}\n", "5a".repeat(32))).unwrap();
    close_to_others(&trial.path("stranger.key"));
    let stranger = client.replace("admin.key", "stranger.key");
    assert_ne!(stranger, client);
    std::fs::write(trial.path("stranger.toml"), stranger).unwrap();
    trial
        .run(&["kv", "--timeout", "5", "--cluster", "stranger.toml", "put", "a", "1"])
        .refused(1, &["no principal has this name and key"]);
}

#[test]
fn a_cluster_that_is_not_there_is_told_apart_from_one_that_refuses() {
    let trial = Trial::new(4, "internet");
    let put = trial.run(&["kv", "--timeout", "1", "put", "a", "1"]);
    put.refused(4, &["not sent within 1000 ms", "Connection refused", "not applied"]);
    trial.run(&["kv", "get", "--timeout", "1", "--consistency", "stale", "a"]).refused(4, &[]);
    let status = trial.run(&["status", "--timeout", "1"]);
    status.refused(4, &["no node answers", "dwcp server"]);
    assert_eq!(status.out.matches("unreachable").count(), 4, "{status:?}");

    let folder = tempfile::tempdir().unwrap();
    dwcp(folder.path(), &["kv", "get", "a"])
        .refused(2, &["no cluster is named", "--cluster FILE or DWCP_CLUSTER"]);
    dwcp(folder.path(), &["kv", "get", "--cluster", "nowhere.toml", "a"])
        .refused(1, &["cannot read nowhere.toml", "dwcp init"]);
    std::fs::write(folder.path().join("client.toml"), "cluster = 1\n").unwrap();
    dwcp(folder.path(), &["kv", "get", "a"]).refused(1, &["client.toml:1:", "correct that line"]);
    let good = std::fs::read_to_string(trial.path("client.toml")).unwrap();
    let first = good.lines().position(|line| line.starts_with("[[node]]")).unwrap() + 1;
    let settings = "[settings]\ncall_timeout_ms = 5000\nsession_ttl_ms = 1000\n[[node]]";
    std::fs::write(folder.path().join("client.toml"), good.replacen("[[node]]", settings, 1)).unwrap();
    dwcp(folder.path(), &["kv", "get", "a"]).refused(
        1,
        &[&format!(
            "client.toml:{}: `settings.session_ttl_ms` = 1000 is out of range: set it within 120000..=86400000 ms",
            first + 2
        )],
    );
}

#[test]
fn wrong_usage_ends_with_code_2_and_says_what_is_right() {
    let folder = tempfile::tempdir().unwrap();
    for args in [
        &["frobnicate"][..],
        &["kv"],
        &["kv", "get"],
        &["server"],
        &["init", "--nodes", "four", "--out", "x"],
        &["demo", "--seconds", "1"],
        &["bench", "--frame", "257"],
        &["keygen", "--out", "x"],
        &["mode"],
        &["mode", "set"],
        &["mode", "set", "intranet"],
        &["mode", "set", "hybrid", "--leader", "two"],
        &["policy", "set"],
        &["policy", "set", "--trust", "everybody"],
        &["policy", "set", "--raft", "maybe"],
        &["kv", "put", "--ack", "never", "a", "1"],
        &["init", "--out", "x", "--default-ack", "never"],
    ] {
        let ran = dwcp(folder.path(), args);
        assert_eq!(ran.code, Some(2), "{args:?}: {ran:?}");
        assert!(ran.err.contains("--help"), "{args:?}: {ran:?}");
    }
    dwcp(folder.path(), &["demo", "--nodes", "2"]).refused(2, &["--nodes must be at least 3"]);
    for args in [&["demo", "--nodes", "3"][..], &["demo", "--nodes", "3", "--mode", "internet"]] {
        dwcp(folder.path(), args).refused(1, &["minimum 4 replicas required for Byzantine tolerance"]);
    }
}

fn open_to_all(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).unwrap();
}

fn close_to_others(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}
