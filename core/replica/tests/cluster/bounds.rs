//! What clients can have a replica keep, and what it says at the bound.

use super::switching::crash;
use super::*;
use dwcp_base::Ack;

impl Cluster {
    fn busy(&self, at: u8) -> usize {
        let busy = |reply: &ClientReply| matches!(reply, ClientReply::Busy { .. });
        self.replies.iter().filter(|(node, reply)| *node == at && busy(reply)).count()
    }

    fn session(&mut self, at: u8, key: u8) -> Session {
        let crypto = Ed25519::new(seed(9, key), &[]);
        let session = Session { crypto, next: 1, cluster: self.genesis.cluster() };
        let open = self.open_frame(&session);
        self.send(at, &open);
        self.run(100);
        session
    }
}

#[test]
fn one_nodes_clients_leave_room_for_what_the_others_wait_for() {
    let mut cluster = Cluster::new(4);
    cluster.stop(0);
    cluster.tuned = |settings| settings.pending_bytes_max = 4 << 20;
    cluster.start(0);
    cluster.run(1_000);
    let (mut greedy, mut modest) = (cluster.session(0, 20), cluster.session(1, 21));
    // Nothing is ordered while two of four are away.
    cluster.stop(2);
    cluster.stop(3);
    for index in 0..30 {
        let frame = greedy.put(&format!("g{index}"), &vec![7; 200_000]);
        cluster.send(0, &frame);
    }
    cluster.run(50);
    let refused = cluster.busy(0);
    assert!((15..30).contains(&refused), "half of 4 MiB is its own clients': {refused} refused");
    for index in 0..5 {
        let frame = modest.put(&format!("m{index}"), b"v");
        cluster.send(1, &frame);
    }
    cluster.run(1_000);
    assert_eq!(cluster.counted(0, "relayed frames dropped: busy"), 0, "what another node passes on has room");
}

#[test]
fn results_that_wait_for_an_anchor_are_bounded_in_bytes_and_told_when_asked_again() {
    let mut cluster = Cluster::with(5, crash(5), NetworkMode::Datacenter);
    cluster.run(500);
    let mut session = cluster.session(1, 20);
    let value = vec![7; 1 << 20];
    let frame = session.put("big", &value);
    cluster.send(1, &frame);
    cluster.run(1_000);
    // Three of five serve commands, and no quorum of four anchors anything.
    cluster.stop(3);
    cluster.stop(4);
    cluster.run(1_000);
    let mut asked = Vec::new();
    for _ in 0..80 {
        let command = KvCommand::Range(dwcp_state::kv::Range::key("big")).encode();
        let frame = session.frame(command);
        cluster.send_with(1, &frame, Some(Ack::Anchored));
        cluster.run(10);
        asked.push(frame);
    }
    let busy = cluster.busy(1);
    assert!((10..80).contains(&busy), "64 MiB of results wait, the rest is put off: {busy}");
    cluster.start(3);
    cluster.run(3_000);
    // Sessions remember 4 MiB of results: older ones are refused as no longer known, which is an answer, too.
    let answers = |cluster: &Cluster| {
        let told =
            |reply: &ClientReply| matches!(reply, ClientReply::Executed(_) | ClientReply::Refused { .. });
        cluster.replies.iter().filter(|(node, reply)| *node == 1 && told(reply)).count()
    };
    let before = answers(&cluster);
    for frame in &asked {
        cluster.send_with(1, frame, Some(Ack::Anchored));
    }
    cluster.run(2_000);
    assert_eq!(answers(&cluster) - before, asked.len(), "each is told what came of it");
    assert_eq!(cluster.busy(1), busy);
}

#[test]
fn what_short_segments_leave_is_covered_by_snapshots() {
    let mut cluster = Cluster::with(4, crash(4), NetworkMode::Hybrid);
    cluster.tuned = |settings| settings.history_bytes_max = 8 << 20;
    cluster.run(500);
    let mut session = Session::open(&mut cluster, 2);
    let mut newest = Vec::new();
    for round in 0..9 {
        // Less than a snapshot is due for, and the root orders next to nothing.
        for index in 0..8 {
            let frame = session.put(&format!("k{index}"), &[7; 3_000]);
            cluster.send(2, &frame);
            cluster.run(2);
        }
        cluster.order_mode(0, NetworkMode::Hybrid, Some(1 + round % 3));
        cluster.run(300);
        newest.extend(cluster.nodes[2].disk.snapshots.keys().last().copied());
    }
    newest.dedup();
    assert!(cluster.status(2).epoch > dwcp_base::Epoch(7));
    assert!(newest.len() >= 2, "{newest:?}: 216 KB in segments, a snapshot each 64 KiB");
}

#[test]
fn a_version_that_nobody_here_knows_is_refused_where_it_is_asked_for() {
    let mut cluster = Cluster::new(4);
    let mut session = Session::open(&mut cluster, 1);
    let set = |version| {
        dwcp_state::Command::Admin(dwcp_state::AdminCommand::ClusterVersionSet { version }).encode()
    };
    let frame = session.commands(vec![set(dwcp_state::CLUSTER_VERSION_MAX + 1)]);
    cluster.send(1, &frame);
    cluster.run(200);
    let refused = |(node, reply): &(u8, ClientReply)| {
        *node == 1 && matches!(reply, ClientReply::Refused { first: 1, .. })
    };
    assert_eq!(cluster.replies.iter().filter(|reply| refused(reply)).count(), 1);
    assert_eq!(cluster.nodes[1].replica.as_ref().unwrap().state().cluster_version(), 1);
    session.next = 1;
    let frame = session.commands(vec![set(dwcp_state::CLUSTER_VERSION_MAX)]);
    cluster.send(1, &frame);
    cluster.run(200);
    assert_eq!(cluster.executed(1).len(), 2, "the session goes on under the same number");
}
