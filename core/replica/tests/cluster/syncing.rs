//! Convergent state beside the log: every road, without a quorum, across restarts, and what the log keeps of it.

use super::*;
use dwcp_replica::sync::values::{Op, Plain, View, Write};
use dwcp_replica::{Road, SyncReply, SyncRequest, SyncSetup};

pub fn setup() -> SyncSetup {
    SyncSetup {
        ordered: vec![Bytes::from_static(b"ordered/")],
        convergent: vec![Bytes::from_static(b"free/")],
        ..SyncSetup::default()
    }
}

pub fn put(key: &str, value: &str) -> Write {
    Write::new(key.to_string(), Op::Put(Plain::json(value).unwrap()))
}

pub fn add(key: &str, by: i64) -> Write {
    Write::new(key.to_string(), Op::Adjust(by))
}

pub fn raft() -> Policy {
    Policy { raft: true, ..Policy::root_only(Trust::Crash, Quorum::new(3, None).unwrap()) }
}

impl Cluster {
    pub fn ask(&mut self, to: u8, id: u64, request: SyncRequest) {
        let request = ClientRequest::Sync { id, request };
        self.nodes[usize::from(to)].inbox.push_back(Input::Client { client: ClientId(8), request });
    }

    pub fn write(&mut self, to: u8, id: u64, writes: Vec<Write>) {
        self.ask(to, id, SyncRequest::Write { writes, wait: 0, timeout_ms: 0 });
    }

    pub fn told(&self, from: u8, id: u64) -> Option<&SyncReply> {
        self.replies.iter().rev().find_map(|(node, reply)| match reply {
            ClientReply::Sync { id: asked, reply } if *node == from && *asked == id => Some(reply),
            _ => None,
        })
    }

    pub fn road(&self, from: u8, id: u64) -> Option<Road> {
        match self.told(from, id) {
            Some(SyncReply::Written(written)) => Some(written.road),
            _ => None,
        }
    }

    pub fn read(&mut self, at: u8, key: &str) -> Option<View> {
        self.ask(at, 99, SyncRequest::Get { key: Bytes::from(key.to_string()), path: vec![] });
        self.run(0);
        let Some(SyncReply::Value { view, .. }) = self.told(at, 99) else { panic!("no value") };
        view.clone()
    }

    /// Digest, and conflicts counted, on each node.
    pub fn stands(&mut self) -> Vec<(dwcp_base::Hash, u64)> {
        (0..self.nodes.len() as u8)
            .map(|id| {
                self.ask(id, 98, SyncRequest::Stand);
                self.run(0);
                match self.told(id, 98) {
                    Some(SyncReply::Stand { digest, conflicts, .. }) => (*digest, *conflicts),
                    other => panic!("{other:?}"),
                }
            })
            .collect()
    }

    /// The operator ends the convergent origin of a node, by an order given to another.
    pub fn exclude(&mut self, at: u8, id: u8, incarnation: u32) -> Option<dwcp_replica::OrderOutcome> {
        use dwcp_log::{ExcludeOrder, OperatorOrder, SignedOrder};
        let admin = Ed25519::new(seed(3, 0), &[]);
        let order = ExcludeOrder { id: ReplicaId(id), incarnation: Incarnation(incarnation) };
        let signed = SignedOrder::new(order, self.genesis.cluster(), admin.public_key(), &admin);
        let bytes = Bytes::from(dwcp_base::encode(&OperatorOrder::Exclude(signed)));
        let request = ClientRequest::Order { id: 5, bytes };
        self.nodes[usize::from(at)].inbox.push_back(Input::Client { client: ClientId(8), request });
        self.run(3_000);
        self.replies.iter().rev().find_map(|(_, reply)| match reply {
            ClientReply::Order { outcome, .. } => Some(outcome.clone()),
            _ => None,
        })
    }

    pub fn assert_converged(&mut self, conflicts: u64) {
        let stands = self.stands();
        assert!(stands.windows(2).all(|pair| pair[0] == pair[1]), "{stands:?}");
        assert_eq!(stands[0].1, conflicts);
    }
}

pub fn json(text: &str) -> Option<View> {
    Some(View::Register(Plain::json(text).unwrap()))
}

#[test]
fn in_internet_mode_a_write_is_told_when_it_is_durable_here_and_reaches_everybody() {
    let mut cluster = Cluster::with(
        4,
        Policy::root_only(Trust::Byzantine, Quorum::new(4, None).unwrap()),
        NetworkMode::Internet,
    );
    cluster.write(1, 1, vec![put("a", "1"), add("n", 2)]);
    cluster.run(20);
    assert_eq!(cluster.road(1, 1), Some(Road::Gossip));
    for node in 0..4 {
        assert_eq!(cluster.read(node, "a"), json("1"));
        assert_eq!(cluster.read(node, "n"), Some(View::Count(2)));
    }
    cluster.assert_converged(0);
    cluster.ask(2, 2, SyncRequest::Write { writes: vec![add("n", 1)], wait: 4, timeout_ms: 5_000 });
    cluster.run(200);
    let Some(SyncReply::Written(written)) = cluster.told(2, 2) else { panic!("{:?}", cluster.told(2, 2)) };
    assert_eq!(written.nodes, 4, "all have it");
    cluster.ask(0, 3, SyncRequest::Compare { peers: vec![], timeout_ms: 100 });
    cluster.run(20);
    let Some(SyncReply::Compared { level, .. }) = cluster.told(0, 3) else { panic!("no answer") };
    assert_eq!(level.len(), 3);
}

/// A clash of kinds is over when one of them is emptied, and nobody settled it; a counter that fell would be read as a restart.
#[test]
fn the_count_of_conflicts_never_falls() {
    let policy = Policy::root_only(Trust::Byzantine, Quorum::new(4, None).unwrap());
    let mut cluster = Cluster::with(4, policy, NetworkMode::Internet);
    cluster.apart = vec![2, 3];
    let element = Plain::json("1").unwrap();
    cluster.write(0, 1, vec![put("k", "1")]);
    cluster.write(3, 2, vec![Write::new("k".to_string(), Op::Add(element.clone()))]);
    cluster.run(50);
    cluster.apart.clear();
    cluster.run(10_000);
    cluster.assert_converged(1);
    cluster.write(0, 3, vec![Write::new("k".to_string(), Op::Remove(element))]);
    cluster.run(10_000);
    assert_eq!(cluster.read(2, "k"), json("1"), "the clash is over");
    cluster.assert_converged(0);
    for id in 0..4 {
        let sync = cluster.sync_status(id);
        assert_eq!((sync.conflict_count, sync.conflicts_open), (1, 0), "there was one");
    }
}

#[test]
fn a_comparison_with_nobody_is_refused_and_not_called_agreement() {
    let policy = Policy::root_only(Trust::Byzantine, Quorum::new(4, None).unwrap());
    let mut cluster = Cluster::with(4, policy, NetworkMode::Internet);
    for (id, peers) in
        [(1, vec![ReplicaId(99)]), (2, vec![ReplicaId(1), ReplicaId(4)]), (3, vec![ReplicaId(0)])]
    {
        cluster.ask(0, id, SyncRequest::Compare { peers, timeout_ms: 100 });
        cluster.run(200);
        let Some(SyncReply::Refused { reason, definite: true }) = cluster.told(0, id) else {
            panic!("{:?}", cluster.told(0, id))
        };
        assert!(reason.contains("no peer"), "{reason}");
    }
    cluster.ask(0, 4, SyncRequest::Compare { peers: vec![ReplicaId(3), ReplicaId(1)], timeout_ms: 100 });
    cluster.run(200);
    let Some(SyncReply::Compared { level, differs, silent }) = cluster.told(0, 4) else {
        panic!("no answer")
    };
    assert_eq!((level.len(), differs.len(), silent.len()), (2, 0, 0));
}

#[test]
fn who_was_a_minute_ahead_hears_so_instead_of_writing_what_nobody_takes() {
    let policy = Policy::root_only(Trust::Byzantine, Quorum::new(4, None).unwrap());
    let mut cluster = Cluster::with(4, policy, NetworkMode::Internet);
    cluster.ahead_ms.insert(1, 60_000);
    cluster.write(1, 1, vec![put("k", "1")]);
    cluster.run(50);
    cluster.ahead_ms.clear();
    cluster.write(1, 2, vec![put("k", "2")]);
    cluster.run(50);
    let Some(SyncReply::Refused { reason, definite: true }) = cluster.told(1, 2) else {
        panic!("{:?}", cluster.told(1, 2))
    };
    assert!(reason.contains("ahead of this node's clock") && reason.contains("NTP"), "{reason}");
    assert_eq!(cluster.sync_status(1).frames_written, 1);
    cluster.write(2, 3, vec![put("k", "3")]);
    cluster.run(50);
    assert_eq!(cluster.road(2, 3), Some(Road::Gossip), "others write on");
    cluster.run(60_000);
    cluster.write(1, 4, vec![put("k", "4")]);
    cluster.run(10_000);
    assert_eq!(cluster.read(0, "k"), json("4"));
    cluster.assert_converged(1);
}

#[test]
fn two_halves_without_quorum_write_on_restart_and_converge_when_they_meet() {
    let mut cluster = Cluster::with(
        4,
        Policy::root_only(Trust::Byzantine, Quorum::new(4, None).unwrap()),
        NetworkMode::Internet,
    );
    cluster.write(0, 1, vec![put("both", "0")]);
    cluster.run(100);
    cluster.apart = vec![2, 3];
    cluster.write(0, 2, vec![put("both", "\"left\""), put("left", "1"), add("n", 3)]);
    cluster.write(3, 3, vec![put("both", "\"right\""), put("right", "2"), add("n", 4)]);
    cluster.run(50);
    assert_eq!(cluster.road(0, 2), Some(Road::Gossip), "no quorum, and yet");
    assert_eq!(cluster.road(3, 3), Some(Road::Gossip));
    assert_eq!(cluster.read(1, "both"), json("\"left\""));
    assert_eq!(cluster.read(2, "both"), json("\"right\""));
    (0..4).for_each(|id| cluster.stop(id));
    (0..4).for_each(|id| cluster.start(id));
    cluster.run(50);
    assert_eq!(cluster.read(0, "both"), json("\"left\""), "kept across a restart");
    assert_eq!(cluster.read(3, "n"), Some(View::Count(4)));
    cluster.write(3, 4, vec![add("n", 10)]);
    cluster.run(50);
    cluster.apart.clear();
    cluster.run(10_000);
    for node in 0..4 {
        assert_eq!(cluster.read(node, "n"), Some(View::Count(17)));
        assert_eq!(cluster.read(node, "left"), json("1"));
        assert_eq!(cluster.read(node, "right"), json("2"));
    }
    cluster.assert_converged(1);
}

#[test]
fn in_datacenter_mode_a_write_is_told_when_the_log_has_it() {
    let mut cluster = Cluster::with(3, raft(), NetworkMode::Datacenter);
    cluster.run(1_000);
    for (id, node) in [(1, 0), (2, 1), (3, 2)] {
        cluster.write(node, id, vec![add("n", 1), put(&format!("k{node}"), "true")]);
        cluster.run(300);
        assert_eq!(cluster.road(node, id), Some(Road::Log), "{:?}", cluster.told(node, id));
    }
    for node in 0..3 {
        assert_eq!(cluster.read(node, "n"), Some(View::Count(3)));
        let status = cluster.nodes[usize::from(node)].replica.as_ref().unwrap().status(cluster.now());
        let sync = status.sync.expect("it is on");
        assert_eq!((sync.frames_ordered, sync.conflict_count), (3, 0));
    }
    cluster.run(5_000);
    cluster.assert_converged(0);
    cluster.apart = vec![2];
    cluster.ask(2, 4, SyncRequest::Write { writes: vec![add("n", 1)], wait: 0, timeout_ms: 500 });
    cluster.run(2_000);
    let Some(SyncReply::Refused { definite, .. }) = cluster.told(2, 4) else { panic!("it has no quorum") };
    assert!(!definite, "it is written and will spread");
    cluster.apart.clear();
    cluster.run(5_000);
    assert_eq!(cluster.read(0, "n"), Some(View::Count(4)), "it did");
    cluster.assert_converged(0);
}

#[test]
fn in_datacenter_mode_nothing_is_written_that_the_log_has_no_room_for() {
    let mut cluster = Cluster::with(3, raft(), NetworkMode::Datacenter);
    cluster.run(1_000);
    cluster.apart = vec![2];
    for write in 0..300_u64 {
        cluster.write(2, 1_000 + write, vec![put(&format!("k{write}"), "1")]);
    }
    cluster.run(500);
    for write in [0, 255] {
        assert_eq!(cluster.told(2, 1_000 + write), None, "the log is waited for");
        assert_eq!(cluster.read(2, &format!("k{write}")), json("1"));
    }
    for write in [256, 299] {
        let Some(SyncReply::Refused { definite: true, .. }) = cluster.told(2, 1_000 + write) else {
            panic!("{:?}", cluster.told(2, 1_000 + write))
        };
        assert_eq!(cluster.read(2, &format!("k{write}")), None, "nothing was written");
    }
    cluster.apart.clear();
    cluster.run(8_000);
    assert!((0..256).all(|write| cluster.road(2, 1_000 + write) == Some(Road::Log)));
    cluster.write(2, 2, vec![put("k299", "1")]);
    cluster.run(1_000);
    assert_eq!(cluster.road(2, 2), Some(Road::Log), "there is room again");
}

/// The longest value wins, and of equally long ones the greatest.
#[derive(Debug)]
struct Longest;

impl dwcp_crdt::Resolver for Longest {
    fn name(&self) -> &str {
        "longest"
    }

    fn resolve(&self, _: &[u8], siblings: &[dwcp_crdt::Sibling<'_>]) -> Option<Plain> {
        let values = siblings.iter().filter_map(|sibling| sibling.value);
        values.max_by_key(|value| (value.as_bytes().len(), value.as_bytes().to_vec())).cloned()
    }
}

fn resolving() -> SyncSetup {
    let mut setup = setup();
    setup.resolvers.set("merged/", dwcp_crdt::Strategy::Merge);
    setup.resolvers.set("longest/", dwcp_crdt::Strategy::Custom(Arc::new(Longest)));
    setup
}

#[test]
fn concurrent_writes_are_settled_as_the_settings_say_on_every_node() {
    let policy = Policy::root_only(Trust::Byzantine, Quorum::new(4, None).unwrap());
    let mut cluster = Cluster::with(4, policy, NetworkMode::Internet);
    (0..4).for_each(|id| cluster.stop(id));
    cluster.settings = (0..4).map(|id| (id, resolving())).collect();
    (0..4).for_each(|id| cluster.start(id));
    cluster.run(100);
    cluster.apart = vec![3];
    cluster.write(0, 1, vec![put("merged/x", r#"{"a":1}"#), put("longest/x", "\"long one\""), put("x", "1")]);
    cluster.run(50);
    cluster.write(3, 2, vec![put("merged/x", r#"{"b":2}"#), put("longest/x", "\"short\""), put("x", "2")]);
    cluster.run(50);
    cluster.apart.clear();
    cluster.run(10_000);
    for node in 0..4 {
        assert_eq!(cluster.read(node, "merged/x"), json(r#"{"a":1,"b":2}"#));
        assert_eq!(cluster.read(node, "longest/x"), json("\"long one\""), "written earlier");
        assert_eq!(cluster.read(node, "x"), json("2"), "the last writer wins elsewhere");
        assert_eq!(cluster.sync_status(node).resolutions_impure, 0);
    }
    cluster.assert_converged(3);
}

#[test]
fn what_a_peer_writes_below_an_ordered_prefix_is_counted_and_shown_to_nobody() {
    let mut cluster = Cluster::new(4);
    cluster.stop(3);
    cluster.settings.insert(3, SyncSetup::default());
    cluster.start(3);
    cluster.ask(0, 5, SyncRequest::Watch { prefix: Bytes::new() });
    cluster.run(100);
    cluster.write(3, 1, vec![put("ordered/x", "1"), put("fine", "1")]);
    cluster.run(5_000);
    assert_eq!((cluster.read(0, "ordered/x"), cluster.read(0, "fine")), (None, json("1")));
    cluster.ask(0, 4, SyncRequest::List { prefix: Bytes::new(), after: None, limit: 0 });
    cluster.run(10);
    let Some(SyncReply::Keys { items, .. }) = cluster.told(0, 4) else { panic!("no answer") };
    assert_eq!(items.iter().map(|(key, _)| &key[..]).collect::<Vec<_>>(), [b"fine"]);
    let Some(SyncReply::Changed { items }) = cluster.told(0, 5) else { panic!("no answer") };
    assert_eq!(items.iter().map(|(key, _)| &key[..]).collect::<Vec<_>>(), [b"fine"]);
    let is_it =
        |event: &Event| matches!(event, Event::Refused { reason, .. } if reason.contains("ordered key"));
    assert_eq!(cluster.events(0, is_it), 1);
    cluster.assert_converged(0);
}

#[test]
fn nodes_of_different_settings_do_not_say_that_they_agree() {
    let mut cluster = Cluster::new(4);
    cluster.stop(3);
    cluster.settings.insert(3, resolving());
    cluster.start(3);
    cluster.write(0, 1, vec![put("a", "1")]);
    cluster.run(10_000);
    cluster.assert_converged(0);
    cluster.ask(0, 3, SyncRequest::Compare { peers: vec![], timeout_ms: 100 });
    cluster.run(200);
    let Some(SyncReply::Compared { level, differs, .. }) = cluster.told(0, 3) else { panic!("no answer") };
    assert_eq!((level.len(), differs.as_slice()), (2, &[ReplicaId(3)][..]));
}

#[test]
fn in_hybrid_mode_the_log_comes_first_and_gossip_when_it_does_not_answer() {
    let mut cluster = Cluster::with(3, raft(), NetworkMode::Hybrid);
    cluster.run(1_000);
    cluster.write(1, 1, vec![add("n", 1)]);
    cluster.run(200);
    assert_eq!(cluster.road(1, 1), Some(Road::Log));
    cluster.apart = vec![2];
    cluster.write(2, 2, vec![add("n", 10)]);
    cluster.run(80);
    assert_eq!(cluster.road(2, 2), None, "the log is waited for");
    cluster.run(1_000);
    assert_eq!(cluster.road(2, 2), Some(Road::Gossip));
    cluster.stop(2);
    cluster.start(2);
    cluster.apart.clear();
    cluster.run(8_000);
    for node in 0..3 {
        assert_eq!(cluster.read(node, "n"), Some(View::Count(11)), "by both roads, counted once");
    }
    cluster.assert_converged(0);
}

#[test]
fn the_log_is_shortened_and_loses_nothing_convergent() {
    let mut cluster = Cluster::with(
        4,
        Policy::root_only(Trust::Byzantine, Quorum::new(4, None).unwrap()),
        NetworkMode::Internet,
    );
    let mut session = Session::open(&mut cluster, 1);
    for round in 0..120_u64 {
        cluster.write(
            round as u8 % 4,
            100 + round,
            vec![put(&format!("c{}", round % 30), &round.to_string())],
        );
        let frame = session.put(&format!("k{round}"), &[7; 8_000]);
        cluster.send(1, &frame);
        cluster.run(20);
    }
    cluster.run(3_000);
    cluster.assert_converged(0);
    let first = cluster.nodes[2].disk.records.first().unwrap().0;
    assert!(first.0 > 300, "the beginning of the log is gone: {first:?}");
    let before = cluster.stands();
    (0..4).for_each(|id| cluster.stop(id));
    (0..4).for_each(|id| cluster.start(id));
    cluster.run(10);
    assert_eq!(cluster.stands(), before, "a restart brings back exactly what was there");
    cluster.write(2, 1, vec![put("after", "1")]);
    cluster.run(100);
    assert_eq!(cluster.read(0, "after"), json("1"));
    // And again, from records that were moved before.
    for round in 0..60_u64 {
        let frame = session.put(&format!("m{round}"), &[7; 8_000]);
        cluster.send(1, &frame);
        cluster.run(20);
    }
    cluster.run(2_000);
    let before = cluster.stands();
    (0..4).for_each(|id| cluster.stop(id));
    (0..4).for_each(|id| cluster.start(id));
    cluster.run(10);
    assert_eq!(cluster.stands(), before);
    cluster.assert_converged(0);
}

#[test]
fn what_does_not_belong_is_refused_in_one_line() {
    let mut cluster = Cluster::new(4);
    cluster.write(0, 1, vec![put("fine", "1"), put("ordered/x", "1")]);
    cluster.ask(0, 2, SyncRequest::Write { writes: vec![add("n", 1)], wait: 9, timeout_ms: 0 });
    cluster.write(0, 3, vec![]);
    cluster.write(0, 4, vec![put("", "1")]);
    cluster.run(2_000);
    for id in 1..=4 {
        let Some(SyncReply::Refused { reason, definite }) = cluster.told(0, id) else { panic!("{id}") };
        assert!(*definite && !reason.is_empty() && !reason.contains('\n'), "{reason}");
    }
    assert_eq!(cluster.read(0, "fine"), None, "all or nothing");
    cluster.write(0, 5, vec![add("n", 1)]);
    cluster.run(2_000);
    cluster.write(0, 6, vec![put("n", "1")]);
    cluster.run(100);
    assert!(matches!(cluster.told(0, 6), Some(SyncReply::Refused { definite: true, .. })), "another type");
}

#[test]
fn rubbish_from_a_peer_is_dropped_and_counted() {
    let mut cluster = Cluster::new(4);
    for bytes in [vec![], vec![0xff; 40], vec![1; 300]] {
        for message in [
            dwcp_replica::PeerMessage::Sync(bytes.clone().into()),
            dwcp_replica::PeerMessage::SyncOrder { frame: bytes.clone().into() },
            dwcp_replica::PeerMessage::SyncStand { token: 1, digest: Some(dwcp_base::Hash::ZERO) },
        ] {
            let bytes = dwcp_base::encode(&message).into();
            let input = Input::Peer { from: ReplicaId(1), incarnation: Incarnation(0), bytes };
            cluster.nodes[0].inbox.push_back(input);
        }
    }
    cluster.run(100);
    assert!(cluster.events(0, |event| matches!(event, Event::Refused { .. })) >= 6);
    let fetched = |part| dwcp_replica::PeerMessage::SyncPart { id: 1, part, bytes: Bytes::new() };
    let (digest, base) = (dwcp_base::Hash::ZERO, Bytes::new());
    let said = [
        ("a question for a part", dwcp_replica::PeerMessage::SyncFetch { id: 7, part: 0 }),
        (
            "an offer of a store",
            dwcp_replica::PeerMessage::SyncOffer { id: 1, parts: 1, bytes: 1, digest, base },
        ),
        ("a part of a store", fetched(0)),
    ];
    for (word, message) in said {
        let bytes = dwcp_base::encode(&message).into();
        let input = Input::Peer { from: ReplicaId(1), incarnation: Incarnation(0), bytes };
        cluster.nodes[0].inbox.push_back(input);
        cluster.run(10);
        let is_it =
            |event: &Event| matches!(event, Event::Refused { reason, .. } if reason.starts_with(word));
        assert_eq!(cluster.events(0, is_it), 1, "{word}");
    }
}

impl Cluster {
    pub fn sync_status(&self, id: u8) -> dwcp_replica::SyncStatus {
        self.nodes[usize::from(id)].replica.as_ref().unwrap().status(self.now()).sync.expect("it is on")
    }
}

/// Writes and deletes enough that all of it is collected, with ordered commands in between so that snapshots are taken.
pub fn collected(policy: Policy, n: u8, mode: NetworkMode) -> (Cluster, Session) {
    let mut cluster = Cluster::with(n, policy, mode);
    cluster.run(500);
    let mut session = Session::open(&mut cluster, 1);
    for round in 0..40_u64 {
        let node = (round % u64::from(n)) as u8;
        cluster.write(node, 100 + round, vec![put(&format!("c{}", round % 10), &round.to_string())]);
        cluster.run(500);
    }
    for key in 0..5 {
        cluster.write(0, 200 + key, vec![Write::new(format!("c{key}"), Op::Delete)]);
    }
    for round in 0..60_u64 {
        let frame = session.put(&format!("k{round}"), &[7; 8_000]);
        cluster.send(1, &frame);
        cluster.run(3_000);
    }
    (cluster, session)
}

#[test]
fn what_everybody_has_is_collected() {
    let byzantine = Policy::root_only(Trust::Byzantine, Quorum::new(4, None).unwrap());
    for (policy, n, mode) in [(byzantine, 4, NetworkMode::Internet), (raft(), 3, NetworkMode::Hybrid)] {
        let (mut cluster, mut session) = collected(policy, n, mode);
        for id in 0..n {
            let sync = cluster.sync_status(id);
            assert!(sync.floor >= 3, "{sync:?}");
            assert!(sync.frames_kept <= 5, "{sync:?}");
            assert_eq!((sync.keys, sync.tombstones), (5, 0), "tombstones are gone");
            let views = cluster.events(id, |event| matches!(event, Event::ViewChangeStarted { .. }));
            assert_eq!(views, 0, "a floor costs no view");
        }
        cluster.assert_converged(0);
        let before = cluster.stands();
        (0..n).for_each(|id| cluster.stop(id));
        (0..n).for_each(|id| cluster.start(id));
        cluster.run(100);
        assert_eq!(cluster.stands(), before);
        cluster.write(2, 1, vec![put("after", "1")]);
        let frame = session.put("after", b"all");
        cluster.send(1, &frame);
        cluster.run(5_000);
        cluster.assert_converged(0);
        assert_eq!(cluster.read(0, "after"), json("1"));
    }
}

#[test]
fn who_lost_what_was_collected_fetches_a_snapshot_and_keeps_it() {
    let policy = Policy::root_only(Trust::Byzantine, Quorum::new(4, None).unwrap());
    let (mut cluster, _session) = collected(policy, 4, NetworkMode::Internet);
    cluster.stop(3);
    // Its convergent state alone, so that it may still vote: the kinds of records are those of docs/durable.md.
    cluster.nodes[3].disk.records.retain(|(_, record)| !matches!(record[0], 4 | 5));
    cluster.run(1_000);
    cluster.start(3);
    cluster.run(20_000);
    let sync = cluster.sync_status(3);
    assert!(sync.snapshots_installed >= 1 && sync.snapshots_refused == 0, "{sync:?}");
    assert!(!sync.needs_snapshot, "{sync:?}");
    cluster.assert_converged(0);
    let before = cluster.stands();
    cluster.stop(3);
    cluster.start(3);
    cluster.run(100);
    assert_eq!(cluster.stands(), before, "its own disk has it now");
    cluster.write(3, 1, vec![put("mine", "1")]);
    cluster.run(3_000);
    assert_eq!(cluster.road(3, 1), Some(Road::Gossip), "{:?}", cluster.told(3, 1));
    assert_eq!(cluster.read(0, "mine"), json("1"));
    cluster.assert_converged(0);
}

#[test]
fn a_log_that_only_grows_by_convergent_writes_is_shortened_too() {
    let policy = Policy::root_only(Trust::Byzantine, Quorum::new(4, None).unwrap());
    let mut cluster = Cluster::with(4, policy, NetworkMode::Internet);
    let long = format!("\"{}\"", "x".repeat(4_000));
    for round in 0..200_u64 {
        cluster.write((round % 4) as u8, 100 + round, vec![put(&format!("c{}", round % 10), &long)]);
        cluster.run(200);
    }
    cluster.run(60_000);
    for id in 0..4_u8 {
        let first = cluster.nodes[usize::from(id)].disk.records.first().unwrap().0;
        assert!(first.0 > 100, "node {id}: {first:?}");
    }
    let before = cluster.stands();
    (0..4).for_each(|id| cluster.stop(id));
    (0..4).for_each(|id| cluster.start(id));
    cluster.run(10);
    assert_eq!(cluster.stands(), before);
}

#[test]
fn who_missed_floors_with_a_snapshot_of_the_root_has_what_they_come_to_from_it() {
    let policy = Policy::root_only(Trust::Byzantine, Quorum::new(4, None).unwrap());
    let mut cluster = Cluster::with(4, policy, NetworkMode::Internet);
    let mut session = Session::open(&mut cluster, 1);
    cluster.write(3, 1, vec![put("mine", "1")]);
    cluster.run(30_000);
    cluster.stop(3);
    for round in 0..100_u64 {
        cluster.write(
            (round % 3) as u8,
            100 + round,
            vec![put(&format!("c{}", round % 10), &round.to_string())],
        );
        let frame = session.put(&format!("k{round}"), &[7; 8_000]);
        cluster.send(1, &frame);
        cluster.run(1_000);
    }
    assert!(cluster.sync_status(0).floor >= 3, "{:?}", cluster.sync_status(0));
    cluster.start(3);
    cluster.run(10_000);
    assert_eq!(cluster.events(3, |event| matches!(event, Event::StateTransferFinished { .. })), 1);
    cluster.run(20_000);
    let sync = cluster.sync_status(3);
    assert!(sync.floors_missed >= 3 && sync.snapshots_installed == 0, "{sync:?}");
    assert_eq!(sync.floor, cluster.sync_status(0).floor);
    cluster.assert_converged(0);
    let before = cluster.stands();
    cluster.stop(3);
    cluster.start(3);
    cluster.run(100);
    assert_eq!(cluster.stands(), before, "its own disk has it now");
    cluster.write(3, 3, vec![put("mine", "2")]);
    cluster.run(3_000);
    assert_eq!(cluster.road(3, 3), Some(Road::Gossip), "{:?}", cluster.told(3, 3));
    cluster.assert_converged(0);
}

#[test]
fn an_origin_that_contradicts_itself_is_frozen_and_ended_by_the_log() {
    use dwcp_crdt::{Origin, Store};
    use dwcp_sync::{Frame, Message};
    let policy = Policy::root_only(Trust::Byzantine, Quorum::new(4, None).unwrap());
    let mut cluster = Cluster::with(4, policy, NetworkMode::Internet);
    cluster.write(0, 1, vec![put("before", "1")]);
    cluster.run(10_000);
    cluster.stop(3);
    let crypto = Ed25519::new(seed(1, 3), &[]);
    let wall_ms = cluster.now().wall_ms;
    let mut frames = [put("lie", "\"one\""), put("lie", "\"other\"")].map(|write| {
        let mut store = Store::new(Origin::new(3, 0), dwcp_crdt::Resolvers::default());
        let bundle = store.write(&[write], 0, wall_ms).unwrap().unwrap();
        Frame::seal(&bundle, dwcp_base::Hash::ZERO, cluster.genesis.cluster(), &crypto).bytes().clone()
    });
    frames.reverse();
    let push = |cluster: &mut Cluster, to: usize, frame: &Bytes| {
        let message = Message::Push { hops: 0, frame: frame.clone() }.to_bytes();
        let bytes = dwcp_base::encode(&dwcp_replica::PeerMessage::Sync(message)).into();
        let input = Input::Peer { from: ReplicaId(3), incarnation: Incarnation(0), bytes };
        cluster.nodes[to].inbox.push_back(input);
    };
    (0..3).for_each(|to| push(&mut cluster, to, &frames[0]));
    cluster.run(5_000);
    push(&mut cluster, 1, &frames[1]);
    cluster.run(100);
    for id in 0..3 {
        assert_eq!(cluster.sync_status(id).frozen_origins, 1, "node {id} has the proof at once");
        assert_eq!(cluster.read(id, "lie"), json("\"other\""), "what everybody had stays");
        assert_eq!(cluster.events(id, |event| matches!(event, Event::OriginFrozen { .. })), 1);
    }
    cluster.run(20_000);
    for id in 0..3 {
        assert_eq!(cluster.sync_status(id).frozen_origins, 0, "its end is decided");
    }
    let mut session = Session::open(&mut cluster, 1);
    for round in 0..100_u64 {
        let frame = session.put(&format!("k{round}"), &[7; 8_000]);
        cluster.send(1, &frame);
        cluster.run(50);
    }
    let views = cluster.events(0, |event| matches!(event, Event::ViewChangeStarted { .. }));
    assert_eq!(views, 0, "nobody proposes what is not agreed to");
    cluster.start(3);
    cluster.run(30_000);
    // It did not see the decision itself.
    assert_eq!(cluster.events(3, |event| matches!(event, Event::StateTransferFinished { .. })), 1);
    cluster.write(3, 2, vec![put("mine", "1")]);
    cluster.run(1_000);
    let Some(SyncReply::Refused { reason, definite: true }) = cluster.told(3, 2) else {
        panic!("it goes on: {:?}", cluster.told(3, 2))
    };
    assert!(reason.contains("excluded"), "{reason}");
    cluster.write(1, 3, vec![put("after", "1")]);
    cluster.run(60_000);
    assert!(cluster.sync_status(0).floor >= 3, "collection goes on without it: {:?}", cluster.sync_status(0));
    cluster.assert_converged(0);
    // A restart remembers the decision.
    (0..4).for_each(|id| cluster.stop(id));
    (0..4).for_each(|id| cluster.start(id));
    cluster.run(3_000);
    cluster.assert_converged(0);
}

/// A liar acknowledges to the primary, and to nobody else. The primary finds floors that nobody but the two can know to be
/// true: collection stands still, and nothing else does.
#[test]
fn who_acknowledges_to_the_primary_alone_stops_no_slot() {
    let policy = Policy::root_only(Trust::Byzantine, Quorum::new(4, None).unwrap());
    let mut cluster = Cluster::with(4, policy, NetworkMode::Internet);
    let mut session = Session::open(&mut cluster, 1);
    cluster.twist = Some(Box::new(|from, to, bytes| {
        let is_sync = matches!(dwcp_base::decode(&bytes), Ok(dwcp_replica::PeerMessage::Sync(_)));
        (from != 3 || to == 0 || !is_sync).then_some(bytes)
    }));
    for round in 0..60_u64 {
        cluster.write(0, round + 1, vec![put("a", &round.to_string())]);
        let frame = session.put(&format!("k{round}"), b"v");
        cluster.send(1, &frame);
        cluster.run(2_000);
        assert_eq!(cluster.executed(1).len() as u64, round + 2, "no command waits for it");
    }
    for id in 0..4 {
        let views = cluster.events(id, |event| matches!(event, Event::ViewChangeStarted { .. }));
        assert_eq!(views, 0, "nobody proposes what is not agreed to");
    }
    assert_eq!(cluster.sync_status(0).floor, 0, "nothing was agreed to");
    assert!(cluster.counted(1, "questions not answered") > 5);
    // It tells everybody the same again.
    cluster.twist = None;
    cluster.run(60_000);
    assert!(cluster.sync_status(1).floor > 0, "{:?}", cluster.sync_status(1));
    cluster.assert_converged(0);
}

#[test]
fn ends_and_floors_that_rest_on_nothing_are_not_prepared() {
    use dwcp_base::ConfigurationId;
    use dwcp_log::consent::{Ground, consent};
    use dwcp_log::{Agreed, Matter, Proposal, RootEntry, Stance};
    let policy = Policy::root_only(Trust::Byzantine, Quorum::new(4, None).unwrap());
    let mut cluster = Cluster::with(4, policy, NetworkMode::Internet);
    cluster.write(0, 1, vec![put("a", "1")]);
    cluster.run(60_000);
    let before = cluster.stands();
    // A primary that was bought: what it proposes is well-formed and not true.
    let cut = dwcp_sync::Cut { origin: dwcp_crdt::Origin::new(0, 0), last: 0, hash: dwcp_base::Hash::ZERO };
    let end = dwcp_sync::End { cut, proof: None };
    let (bytes, id) = (Bytes::from(dwcp_base::encode(&end)), cluster.genesis.cluster());
    let ground = Ground { configuration: ConfigurationId(1), ends: 0 };
    // It agrees with itself, as often as it likes, and has no other's consent.
    let own = |by: u8, key: u8| {
        let by = ReplicaId(by);
        let crypto = Ed25519::new(seed(1, key), &[]);
        let content = dwcp_base::Hash::of(&bytes);
        (by, Stance::Agrees, consent(id, Matter::End, ground, content, Stance::Agrees, by, &crypto))
    };
    let agreed = |consents| Box::new(Agreed { bytes: bytes.clone(), ground, consents });
    for entry in [
        RootEntry::Evidence(agreed(vec![])),
        RootEntry::Evidence(agreed(vec![own(0, 0), own(0, 0), own(0, 0)])),
        RootEntry::Evidence(agreed(vec![own(0, 0), own(1, 0), own(2, 0)])),
        // Of a quorum, and about another matter.
        RootEntry::Floor(agreed(vec![own(0, 0), own(1, 1), own(2, 2)])),
    ] {
        let payload = Proposal { time: dwcp_base::LogTime(0), entries: vec![entry] }.to_payload();
        for id in 1..4 {
            let refused = cluster.nodes[id].replica.as_ref().unwrap().would_refuse(cluster.now(), &payload);
            assert!(refused.is_some(), "node {id}");
        }
    }
    assert_eq!(cluster.stands(), before);
}

#[test]
fn a_restart_remembers_who_contradicted_himself() {
    use dwcp_crdt::{Origin, Resolvers, Store};
    let mut cluster = Cluster::new(4);
    (1..4).for_each(|id| cluster.stop(id));
    for value in ["1", "2"] {
        let mut store = Store::new(Origin::new(3, 0), Resolvers::default());
        let frame = cluster.first_frame(&mut store, &[put("lie", value)]);
        cluster.push(3, 0, &frame);
    }
    cluster.run(100);
    let named = |cluster: &Cluster| cluster.sync_status(0).frozen;
    assert_eq!(named(&cluster), [Origin::new(3, 0).to_string()]);
    cluster.stop(0);
    cluster.start(0);
    assert_eq!(named(&cluster), [Origin::new(3, 0).to_string()]);
}

#[test]
fn who_does_not_acknowledge_is_named_until_it_does() {
    let policy = Policy::root_only(Trust::Byzantine, Quorum::new(4, None).unwrap());
    let mut cluster = Cluster::with(4, policy, NetworkMode::Internet);
    cluster.run(10_000);
    cluster.stop(3);
    cluster.write(0, 1, vec![put("a", "1")]);
    let named = |cluster: &Cluster| {
        let peers = cluster.sync_status(0).peers;
        let named = peers.into_iter().filter(|peer| peer.withholds);
        named.map(|peer| (peer.id.0, peer.fault)).collect::<Vec<_>>()
    };
    cluster.run(50_000);
    assert_eq!(named(&cluster), []);
    cluster.run(20_000);
    assert_eq!(named(&cluster), [(3, "does not acknowledge".to_string())]);
    let is_it = |event: &Event| matches!(event, Event::MemberHoldsUp { .. });
    assert_eq!(cluster.events(0, is_it), 1, "one line");
    cluster.start(3);
    cluster.run(10_000);
    // Something is always under way, and it keeps up.
    for round in 0..40 {
        cluster.write(0, 100 + round, vec![put("a", &round.to_string())]);
        cluster.run(2_000);
        assert_eq!(named(&cluster), [], "it has caught up");
    }
    assert_eq!(cluster.events(0, is_it), 1);
}

#[test]
fn a_member_that_is_away_can_be_excluded_from_the_floor() {
    let mut cluster = Cluster::with(3, raft(), NetworkMode::Hybrid);
    cluster.run(500);
    cluster.write(2, 1, vec![put("mine", "1")]);
    cluster.run(10_000);
    cluster.stop(2);
    cluster.write(0, 2, vec![put("a", "1")]);
    cluster.run(60_000);
    let stalled = cluster.sync_status(0);
    assert!(stalled.frames_kept > 0, "{stalled:?}");
    use dwcp_replica::OrderOutcome::{Done, Refused};
    assert!(matches!(cluster.exclude(0, 2, 1), Some(Refused { .. })), "not its incarnation");
    assert!(matches!(cluster.exclude(0, 2, 0), Some(Done { .. })));
    assert!(matches!(cluster.exclude(0, 2, 0), Some(Refused { .. })), "once is enough");
    let floor = cluster.sync_status(0).floor;
    for round in 0..10_u64 {
        cluster.write((round % 2) as u8, 10 + round, vec![put("a", &round.to_string())]);
        cluster.run(20_000);
    }
    assert!(cluster.sync_status(0).floor > floor + 2, "{:?}", cluster.sync_status(0));
    cluster.start(2);
    cluster.run(60_000);
    assert_eq!(cluster.read(2, "a"), json("9"), "it still hears");
    cluster.write(2, 3, vec![put("mine", "2")]);
    cluster.run(2_000);
    let Some(SyncReply::Refused { reason, definite: true }) = cluster.told(2, 3) else {
        panic!("it goes on")
    };
    assert!(reason.contains("new incarnation"), "{reason}");
    cluster.assert_converged(0);
}
