//! Origins that end: everybody stops where he is, and the end lies where somebody can give what the others lack.

use super::syncing::{json, put, raft};
use super::*;
use dwcp_crdt::{Origin, Resolvers, Store};
use dwcp_replica::{Event, PeerMessage, Road};
use dwcp_sync::{Frame, Message};

/// An excluded member, the one before node 0, has written a last change that reached node 0 alone; and node 0 gives it to nobody
/// until `cluster.twist` is taken away.
fn with_a_change_that_one_has(n: u8) -> (Cluster, String) {
    let policy = Policy::root_only(Trust::Byzantine, Quorum::new(n.into(), None).unwrap());
    let mut cluster = Cluster::with(n, policy, NetworkMode::Internet);
    let last = n - 1;
    cluster.write(last, 1, vec![put("a", "1")]);
    cluster.run(5_000);
    cluster.twist = Some(Box::new(move |from, to, bytes| match dwcp_base::decode(&bytes) {
        Ok(PeerMessage::Sync(_)) if from == last && to != 0 => None,
        // Exchanges go on, for heads are heard; no frame comes with them.
        Ok(PeerMessage::Sync(bytes)) if from == 0 && bytes.len() > 400 => None,
        _ => Some(bytes),
    }));
    let long = format!("\"{}\"", "x".repeat(500));
    cluster.write(last, 2, vec![put("a", &long)]);
    cluster.run(100);
    assert_eq!(cluster.road(last, 2), Some(Road::Gossip));
    assert_eq!((cluster.read(0, "a"), cluster.read(1, "a")), (json(&long), json("1")));
    cluster.stop(last);
    cluster.exclude(1, last, 0);
    (cluster, long)
}

fn assert_all_go_on(cluster: &mut Cluster, last: u8, value: &str) {
    let floor = cluster.sync_status(1).floor;
    for round in 0..5_u64 {
        cluster.write((round % 3) as u8, 10 + round, vec![put("b", &round.to_string())]);
        cluster.run(20_000);
    }
    for id in 0..last {
        assert_eq!(cluster.control(id).ends.len(), 1, "node {id} heard where it ends");
        assert_eq!((cluster.read(id, "a"), cluster.read(id, "b")), (json(value), json("4")), "node {id}");
        assert!(cluster.sync_status(id).floor > floor, "collection goes on: {:?}", cluster.sync_status(id));
    }
    cluster.start(last);
    cluster.run(20_000);
    cluster.assert_converged(0);
}

/// Any two of the other three may be all that is honest, so nobody's change is left out: they wait for it.
#[test]
fn what_one_member_alone_has_of_an_excluded_one_reaches_everybody_before_it_ends() {
    let (mut cluster, long) = with_a_change_that_one_has(4);
    cluster.run(60_000);
    for id in 0..3 {
        assert_eq!(cluster.control(id).ends.len(), 0, "too few are ready for any end");
    }
    assert_eq!(cluster.read(1, "a"), json("1"));
    cluster.twist = None;
    cluster.run(20_000);
    assert_all_go_on(&mut cluster, 3, &long);
    for id in 0..3 {
        assert_eq!(cluster.sync_status(id).snapshots_installed, 0, "frames were enough");
    }
}

#[test]
fn what_one_member_keeps_to_itself_of_an_excluded_one_is_left_out_where_enough_go_on_without_it() {
    let (mut cluster, _) = with_a_change_that_one_has(5);
    cluster.run(60_000);
    for id in 0..4 {
        assert_eq!(
            cluster.control(id).ends.len(),
            1,
            "node {id}: the farthest place was asked about in vain"
        );
    }
    cluster.twist = None;
    cluster.run(10_000);
    assert!(cluster.sync_status(0).snapshots_installed > 0, "it took the store of those that had less");
    assert_all_go_on(&mut cluster, 4, "1");
}

/// What it wrote last may be part of the open segment, so that is over before anybody says where it ends.
#[test]
fn an_exclusion_ends_the_segment_that_knew_the_excluded_one() {
    let mut cluster = Cluster::with(3, raft(), NetworkMode::Datacenter);
    cluster.run(1_000);
    let epoch = |cluster: &Cluster, id: u8| cluster.control(id).fold.epoch();
    cluster.write(2, 1, vec![put("a", "1")]);
    cluster.run(1_000);
    assert_eq!(cluster.road(2, 1), Some(Road::Log));
    let before = epoch(&cluster, 0);
    cluster.stop(2);
    cluster.exclude(0, 2, 0);
    assert!(cluster.control(0).ends.is_empty(), "nobody knows yet what the log has of it");
    cluster.run(60_000);
    for id in 0..2 {
        assert!(epoch(&cluster, id) > before, "node {id}");
        assert_eq!(cluster.control(id).ends.len(), 1, "node {id}");
        assert_eq!(cluster.read(id, "a"), json("1"), "node {id}");
    }
}

/// One of the histories that a member with this key might sign: a change of the same number as in every other.
fn branch(cluster: &Cluster, liar: u8, text: &str) -> Bytes {
    let crypto = Ed25519::new(seed(1, liar), &[]);
    let mut store = Store::new(Origin::new(u32::from(liar), 0), Resolvers::default());
    let write = put("lie", &format!("\"{text}\""));
    let bundle = store.write(&[write], 0, cluster.now().wall_ms).unwrap().unwrap();
    Frame::seal(&bundle, dwcp_base::Hash::ZERO, cluster.genesis.cluster(), &crypto).bytes().clone()
}

fn show(cluster: &mut Cluster, liar: u8, to: u8, frame: &Bytes) {
    let message = Message::Push { hops: 0, frame: frame.clone() }.to_bytes();
    let bytes = dwcp_base::encode(&PeerMessage::Sync(message)).into();
    let input = Input::Peer { from: ReplicaId(liar), incarnation: Incarnation(0), bytes };
    cluster.nodes[usize::from(to)].inbox.push_back(input);
}

fn assert_frozen_once(cluster: &Cluster, nodes: &[u8]) {
    for id in nodes {
        assert_eq!(cluster.events(*id, |event| matches!(event, Event::OriginFrozen { .. })), 1, "node {id}");
    }
}

/// Ended, of one mind again, and collecting.
fn assert_it_is_over(cluster: &mut Cluster, honest: &[u8]) {
    let floor = cluster.sync_status(honest[0]).floor;
    for round in 0..5_u64 {
        let at = honest[usize::try_from(round).unwrap() % honest.len()];
        cluster.write(at, 20 + round, vec![put("after", &round.to_string())]);
        cluster.run(20_000);
    }
    let all: Vec<_> = honest.iter().map(|id| cluster.read(*id, "lie")).collect();
    for id in honest {
        assert_eq!(cluster.control(*id).ends.len(), 1, "node {id}");
        assert_eq!(cluster.sync_status(*id).frozen_origins, 0, "node {id}");
        assert_eq!(cluster.read(*id, "after"), json("4"), "node {id}");
        assert_eq!(cluster.read(*id, "lie"), all[0], "node {id}: {all:?}");
        assert!(cluster.sync_status(*id).floor > floor, "collection goes on: {:?}", cluster.sync_status(*id));
    }
}

/// It showed each of the others another history, so no two of them stand alike. It is known to lie, so no other does.
#[test]
fn a_liar_of_four_that_showed_everybody_something_else_is_ended() {
    let policy = Policy::root_only(Trust::Byzantine, Quorum::new(4, None).unwrap());
    let mut cluster = Cluster::with(4, policy, NetworkMode::Internet);
    cluster.write(0, 1, vec![put("before", "1")]);
    cluster.run(10_000);
    cluster.stop(3);
    for to in 0..3 {
        let frame = branch(&cluster, 3, &format!("for {to}"));
        show(&mut cluster, 3, to, &frame);
    }
    cluster.run(1);
    let shown: std::collections::BTreeSet<_> =
        (0..3).map(|id| format!("{:?}", cluster.read(id, "lie"))).collect();
    assert_eq!(shown.len(), 3, "{shown:?}");
    cluster.run(30_000);
    assert_frozen_once(&cluster, &[0, 1, 2]);
    // Whoever comes back has said that it has what it lacks by now.
    cluster.start(3);
    assert_it_is_over(&mut cluster, &[0, 1, 2]);
    let views = cluster.events(0, |event| matches!(event, Event::ViewChangeStarted { .. }));
    assert_eq!(views, 0, "nobody proposes what is not agreed to");
    assert_eq!(cluster.control(0).convicted, [(ReplicaId(3), Incarnation(0))].into());
    // What was decided outlives everybody's restart.
    (0..4).for_each(|id| cluster.stop(id));
    (0..4).for_each(|id| cluster.start(id));
    cluster.run(3_000);
    cluster.assert_converged(0);
}

/// Every way to show three replicas three histories, one of them or none, up to the replicas' names, from a liar that is the
/// primary and one that is not. Those that were shown nothing hear the proof from the others.
#[test]
fn whatever_a_liar_of_four_shows_to_whom_it_is_ended_and_the_others_are_of_one_mind() {
    let ways: [[Option<u8>; 3]; 6] = [
        [Some(0), Some(0), Some(1)],
        [Some(0), Some(1), Some(1)],
        [Some(0), Some(1), Some(2)],
        [None, Some(0), Some(1)],
        [Some(0), None, Some(1)],
        [Some(0), Some(1), None],
    ];
    for (liar, way) in [0, 3].into_iter().flat_map(|liar| ways.into_iter().map(move |way| (liar, way))) {
        let policy = Policy::root_only(Trust::Byzantine, Quorum::new(4, None).unwrap());
        let mut cluster = Cluster::with(4, policy, NetworkMode::Internet);
        cluster.run(3_000);
        let honest: Vec<u8> = (0..4).filter(|id| *id != liar).collect();
        let branches: Vec<Bytes> =
            (0..3).map(|at| branch(&cluster, liar, &format!("history {at}"))).collect();
        let hidden: Vec<u8> =
            honest.iter().zip(way).filter(|(_, shown)| shown.is_none()).map(|(id, _)| *id).collect();
        cluster.twist = Some(Box::new(move |_, to, bytes| {
            let is_frame = |bytes: &Bytes| matches!(Message::read(bytes), Ok(Message::Push { .. }));
            let is_hidden = hidden.contains(&to)
                && matches!(dwcp_base::decode(&bytes), Ok(PeerMessage::Sync(bytes)) if is_frame(&bytes));
            (!is_hidden).then_some(bytes)
        }));
        for (to, shown) in honest.iter().zip(way) {
            if let Some(at) = shown {
                show(&mut cluster, liar, *to, &branches[usize::from(at)]);
            }
        }
        cluster.run(100);
        cluster.twist = None;
        cluster.run(20_000);
        let told = format!("liar {liar}, {way:?}");
        let said = cluster.read(honest[0], "lie");
        for id in &honest {
            assert_eq!(cluster.control(*id).ends.len(), 1, "{told}: node {id}");
            assert_eq!(cluster.sync_status(*id).frozen_origins, 0, "{told}: node {id}");
            assert!(!cluster.sync_status(*id).needs_snapshot, "{told}: node {id}");
            assert_eq!(cluster.read(*id, "lie"), said, "{told}: node {id}");
        }
    }
}

/// The same, and one of them was shown nothing before it heard that the origin lies.
#[test]
fn whoever_was_shown_nothing_of_a_liar_gets_the_history_that_counts() {
    let policy = Policy::root_only(Trust::Byzantine, Quorum::new(4, None).unwrap());
    let mut cluster = Cluster::with(4, policy, NetworkMode::Internet);
    cluster.write(0, 1, vec![put("before", "1")]);
    cluster.run(10_000);
    cluster.stop(3);
    cluster.twist = Some(Box::new(|_, to, bytes| {
        let is_frame = |bytes: &Bytes| matches!(Message::read(bytes), Ok(Message::Push { .. }));
        let hidden = matches!(dwcp_base::decode(&bytes), Ok(PeerMessage::Sync(bytes)) if is_frame(&bytes));
        (to != 2 || !hidden).then_some(bytes)
    }));
    for to in 0..2 {
        let frame = branch(&cluster, 3, &format!("for {to}"));
        show(&mut cluster, 3, to, &frame);
    }
    cluster.run(1);
    assert_eq!(cluster.read(2, "lie"), None);
    cluster.run(100);
    cluster.twist = None;
    cluster.run(30_000);
    assert_frozen_once(&cluster, &[0, 1, 2]);
    cluster.start(3);
    assert_it_is_over(&mut cluster, &[0, 1, 2]);
}

/// It is the root's primary besides, and asks nobody where it should end. The others do, in its stead.
#[test]
fn a_primary_that_asks_nobody_keeps_neither_ends_nor_floors_up() {
    let policy = Policy::root_only(Trust::Byzantine, Quorum::new(4, None).unwrap());
    let mut cluster = Cluster::with(4, policy, NetworkMode::Internet);
    cluster.twist = Some(Box::new(|from, _, bytes| {
        let asks = matches!(dwcp_base::decode(&bytes), Ok(PeerMessage::SyncAsk { .. }));
        (from != 0 || !asks).then_some(bytes)
    }));
    cluster.write(1, 1, vec![put("before", "1")]);
    cluster.run(120_000);
    assert!(cluster.sync_status(1).floor > 0, "{:?}", cluster.sync_status(1));
    assert!(cluster.counted(0, "floors and ends handed over") > 0);
    for to in 1..4 {
        let frame = branch(&cluster, 0, &format!("for {to}"));
        show(&mut cluster, 0, to, &frame);
    }
    cluster.run(150_000);
    assert_it_is_over(&mut cluster, &[1, 2, 3]);
    let left: Vec<_> = cluster.nodes[1]
        .events
        .iter()
        .filter(|event| matches!(event, Event::ViewChangeStarted { .. }))
        .collect();
    assert!(left.is_empty(), "it orders what was handed to it: {left:?}");
}

/// It does not order either what the others agreed to: then it is not primary much longer.
#[test]
fn a_primary_that_does_not_order_what_was_agreed_to_is_replaced() {
    let policy = Policy::root_only(Trust::Byzantine, Quorum::new(4, None).unwrap());
    let mut cluster = Cluster::with(4, policy, NetworkMode::Internet);
    cluster.twist = Some(Box::new(|from, to, bytes| match dwcp_base::decode(&bytes) {
        Ok(PeerMessage::SyncAsk { .. }) if from == 0 => None,
        Ok(PeerMessage::SyncAgreed { .. }) if to == 0 => None,
        _ => Some(bytes),
    }));
    cluster.write(1, 1, vec![put("before", "1")]);
    cluster.run(240_000);
    let views = cluster.events(1, |event| matches!(event, Event::ViewChangeStarted { .. }));
    assert!(views > 0, "it keeps everybody waiting");
    assert!(cluster.sync_status(1).floor > 0, "{:?}", cluster.sync_status(1));
    for to in 1..4 {
        let frame = branch(&cluster, 0, &format!("for {to}"));
        show(&mut cluster, 0, to, &frame);
    }
    cluster.run(150_000);
    assert_it_is_over(&mut cluster, &[1, 2, 3]);
}
