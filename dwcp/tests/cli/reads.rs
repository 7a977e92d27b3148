//! Linearizable reads through the real program: without an entry while a Raft segment is open and the client file lets one node
//! be believed, ordered in every other case, and always labelled with what the answer is worth.

use super::*;

impl Trial {
    /// Commands that were executed, once all reachable nodes agree on it.
    #[track_caller]
    fn commands(&self) -> u64 {
        let agreed = std::cell::Cell::new(0);
        self.await_status("nodes that executed the same", |nodes| {
            let counts: Vec<u64> =
                nodes.iter().filter_map(|node| node["executed_commands"].as_u64()).collect();
            agreed.set(counts[0]);
            counts.iter().all(|count| *count == counts[0])
        });
        agreed.get()
    }

    #[track_caller]
    fn await_leader(&self) -> usize {
        let led_by = std::cell::Cell::new(None);
        self.await_status("a segment with a leader", |nodes| {
            let of = |node: &Value| node["segment"]["leader"].as_u64();
            let mut leaders = nodes.iter().filter(|node| node["reachable"] == true).map(of);
            led_by.set(leaders.next().flatten());
            led_by.get().is_some() && leaders.all(|leader| leader == led_by.get())
        });
        usize::try_from(led_by.get().expect("seen")).expect("few nodes")
    }

    fn trust(&self, word: &str) {
        let file = self.path("client.toml");
        let client = std::fs::read_to_string(&file).unwrap();
        let changed = client.replace("trust = \"crash\"", &format!("trust = \"{word}\""));
        assert_ne!(client, changed, "the client file says whom to believe");
        std::fs::write(&file, changed).unwrap();
    }
}

#[test]
fn reads_of_a_datacenter_cost_no_entry_and_go_on_when_the_leader_dies() {
    let mut trial = Trial::started(3, "datacenter");
    trial.await_leader();
    let put = trial.json(&["kv", "put", "a", "1"]);
    let before = trial.commands();
    for _ in 0..5 {
        let got = trial.json(&["kv", "get", "a"]);
        assert_eq!(
            (&got["kvs"][0]["value"], &got["label"]),
            (&Value::from("1"), &Value::from("crash")),
            "{got}"
        );
        assert!(got["position"].as_u64() >= put["position"].as_u64(), "{got} is older than {put}");
        assert_eq!(got["revision"], put["revision"]);
    }
    let said = trial.run(&["kv", "-v", "get", "a"]);
    assert!(said.err.contains("label crash, position ") && said.err.contains(", revision 2, "), "{said:?}");
    let txn = trial.run_with_input(&["kv", "txn"], b"version(\"a\") = 1\n\nget a\n\n");
    assert_eq!(txn.ok(), "SUCCESS\n\na\n1\n");
    assert_eq!(trial.commands(), before, "not one of them is in the log, nor opened a session");
    let own = trial.run(&["kv", "-v", "get", "--consistency", "stale", "--node", "1", "a"]);
    assert!(own.err.contains("label stale, position ") && own.err.contains(", revision 2, "), "{own:?}");
    // What the leader refuses is refused by the log, in the same words as ever.
    trial.run(&["kv", "get", "--rev", "1000", "a"]).refused(1, &["the revision is in the future"]);
    let ordered = trial.commands();
    assert!(ordered > before);
    // Whoever wants it anchored has it ordered.
    trial.run(&["kv", "get", "--ack", "anchored", "a"]).ok();
    assert!(trial.commands() > ordered);

    let leader = trial.await_leader();
    trial.kill(leader);
    assert_eq!(trial.run(&["kv", "get", "--value-only", "a"]).ok(), "1\n");
    trial.run(&["kv", "put", "a", "2"]).ok();
    assert_ne!(trial.await_leader(), leader);
    let before = trial.commands();
    assert_eq!(trial.run(&["kv", "get", "--value-only", "a"]).ok(), "2\n");
    assert_eq!(trial.commands(), before, "the next leader answers as the last one did");
}

#[test]
fn a_read_is_ordered_where_no_segment_is_open_and_where_members_may_lie() {
    let trial = Trial::started(4, "datacenter");
    trial.await_leader();
    trial.run(&["kv", "put", "a", "1"]).ok();
    let label = |args: &[&str]| {
        let got = trial.json(&[&["kv", "get"], args, &["a"]].concat());
        assert_eq!(got["kvs"][0]["value"], "1", "{got}");
        got["label"].as_str().unwrap().to_string()
    };
    let before = trial.commands();
    assert_eq!((label(&[]).as_str(), trial.commands()), ("crash", before));
    trial.run(&["mode", "set", "internet"]).ok();
    let before = trial.commands();
    assert_eq!(label(&[]), "byzantine");
    let ordered = trial.commands();
    assert!(ordered > before, "the root orders reads");
    trial.run(&["mode", "set", "datacenter"]).ok();
    trial.await_leader();
    let before = trial.commands();
    assert_eq!((label(&[]).as_str(), trial.commands()), ("crash", before), "and a segment need not");
    // A client that believes no single node has its read ordered, and believes what an Anchor covers.
    trial.trust("byzantine");
    assert_eq!(label(&["--ack", "anchored"]), "byzantine");
    assert!(trial.commands() > before);
}

#[test]
fn a_policy_that_acknowledges_what_is_anchored_has_reads_anchored_too() {
    let trial = Trial::started(4, "datacenter");
    trial.await_leader();
    trial.run(&["kv", "put", "a", "1"]).ok();
    trial.run(&["policy", "set", "--ack", "anchored"]).ok();
    trial.await_leader();
    assert_eq!(trial.json(&["kv", "get", "a"])["label"], "byzantine");
    assert_eq!(trial.json(&["kv", "get", "--ack", "majority", "a"])["label"], "crash");
}
