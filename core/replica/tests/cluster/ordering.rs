//! Convergent frames and the log: what is ordered once more, and who is told though his frame was not.

use super::syncing::{add, collected, raft};
use super::*;
use dwcp_replica::{PeerMessage, Road, SyncRequest};

/// Whoever has once seen a frame on its way to the log can send it again, for ever.
#[test]
fn what_everybody_has_is_not_ordered_once_more() {
    let (mut cluster, mut session) = collected(raft(), 3, NetworkMode::Hybrid);
    let seen = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
    let noted = std::rc::Rc::clone(&seen);
    cluster.twist = Some(Box::new(move |_, _, bytes| {
        if let Ok(PeerMessage::SyncOrder { .. }) = dwcp_base::decode(&bytes) {
            noted.borrow_mut().push(bytes.clone());
        }
        Some(bytes)
    }));
    cluster.run(1_000);
    for node in 0..3 {
        cluster.write(node, 1, vec![add("n", 1)]);
    }
    // The log that holds them is discarded.
    for round in 0..60_u64 {
        let frame = session.put(&format!("later{round}"), &[7; 8_000]);
        cluster.send(1, &frame);
        cluster.run(1_000);
    }
    let sent = seen.borrow().clone();
    // They have forgotten what they ordered.
    (0..3).for_each(|id| cluster.stop(id));
    (0..3).for_each(|id| cluster.start(id));
    cluster.run(10_000);
    let ordered = |cluster: &Cluster| (0..3).map(|id| cluster.sync_status(id).frames_ordered).sum::<u64>();
    let before = ordered(&cluster);
    assert!(!sent.is_empty());
    for bytes in &sent {
        for to in 0..3 {
            let from = ReplicaId((to + 1) % 3);
            let input = Input::Peer { from, incarnation: Incarnation(0), bytes: bytes.clone() };
            cluster.nodes[usize::from(to)].inbox.push_back(input);
        }
    }
    cluster.run(5_000);
    assert_eq!(ordered(&cluster), before, "{} frames were sent again", sent.len());
    let refused =
        |event: &Event| matches!(event, Event::Refused { reason, .. } if reason.contains("everybody has"));
    assert!((0..3).all(|id| cluster.events(id, refused) > 0));
    cluster.write(1, 2, vec![add("n", 1)]);
    cluster.run(5_000);
    assert_eq!(cluster.road(1, 2), Some(Road::Log), "what is new is ordered");
}

/// Its frame never reaches whoever orders; by exchange it reaches everybody, and then a floor in the log covers it.
#[test]
fn who_waits_for_the_log_is_told_when_the_log_says_that_all_have_it() {
    let mut cluster = Cluster::with(3, raft(), NetworkMode::Datacenter);
    cluster.run(1_000);
    cluster.twist = Some(Box::new(|_, _, bytes| match dwcp_base::decode(&bytes) {
        Ok(PeerMessage::SyncOrder { .. }) => None,
        _ => Some(bytes),
    }));
    for node in 0..3 {
        cluster.ask(node, 1, SyncRequest::Write { writes: vec![add("n", 1)], wait: 0, timeout_ms: 60_000 });
    }
    cluster.run(30_000);
    let ordered: Vec<u64> = (0..3).map(|id| cluster.sync_status(id).frames_ordered).collect();
    assert!(ordered.iter().all(|count| *count < 3), "not all were ordered: {ordered:?}");
    for node in 0..3 {
        assert_eq!(cluster.road(node, 1), Some(Road::Log), "{:?}", cluster.told(node, 1));
    }
    cluster.assert_converged(0);
}

/// The frames of a node's log-bound writes are lost on their way to whoever orders, all or those that begin at this change.
fn lose_orders(cluster: &mut Cluster, lost: impl Fn(u64) -> bool + 'static) {
    cluster.twist = Some(Box::new(move |_, _, bytes| match dwcp_base::decode(&bytes) {
        // Four bytes that mark it, then the frame.
        Ok(PeerMessage::SyncOrder { frame }) => {
            let header = *dwcp_sync::Received::read(frame.slice(4..)).unwrap().header();
            (!lost(header.first)).then_some(bytes)
        }
        // By the log alone.
        Ok(PeerMessage::Sync(_)) => None,
        _ => Some(bytes),
    }));
}

/// A member of the open segment that does not order.
fn follower(cluster: &Cluster) -> u8 {
    let leads = |id: &u8| cluster.status(*id).orderer == Some(ReplicaId(*id));
    ((0..3).find(leads).expect("a segment is open") + 1) % 3
}

/// What comes after a change is worth nothing without it. If the disk is lost that alone has the first, so is the second,
/// whatever the log says.
#[test]
fn the_log_has_a_change_when_it_has_all_before_it() {
    let mut cluster = Cluster::with(3, raft(), NetworkMode::Datacenter);
    cluster.run(1_000);
    let writer = follower(&cluster);
    lose_orders(&mut cluster, |first| first == 1);
    cluster.write(writer, 1, vec![add("n", 1)]);
    cluster.run(50);
    cluster.write(writer, 2, vec![add("n", 1)]);
    cluster.run(3_000);
    assert!((0..3).all(|id| cluster.sync_status(id).frames_ordered == 1), "the second is in the log");
    assert_eq!((cluster.road(writer, 1), cluster.road(writer, 2)), (None, None));
    lose_orders(&mut cluster, |_| false);
    cluster.run(3_000);
    assert_eq!((cluster.road(writer, 1), cluster.road(writer, 2)), (Some(Road::Log), Some(Road::Log)));
}

/// A change that was acknowledged without the log comes before one that the log is to acknowledge: it is ordered first.
#[test]
fn what_was_written_for_the_other_road_is_ordered_before_what_the_log_is_to_acknowledge() {
    let mut cluster = Cluster::with(3, raft(), NetworkMode::Hybrid);
    cluster.run(1_000);
    let writer = follower(&cluster);
    lose_orders(&mut cluster, |_| true);
    for id in 1..=300 {
        cluster.write(writer, id, vec![add("n", 1)]);
    }
    cluster.run(12_000);
    assert_eq!(cluster.road(writer, 300), Some(Road::Gossip), "{:?}", cluster.told(writer, 300));
    assert_eq!(cluster.sync_status(writer).frames_ordered, 0);
    lose_orders(&mut cluster, |_| false);
    cluster.write(writer, 301, vec![add("n", 1)]);
    cluster.run(5_000);
    assert_eq!(cluster.road(writer, 301), Some(Road::Gossip), "there was no room for all that is before it");
    cluster.write(writer, 302, vec![add("n", 1)]);
    cluster.run(5_000);
    assert_eq!(cluster.road(writer, 302), Some(Road::Log), "{:?}", cluster.told(writer, 302));
    assert!((0..3).all(|id| cluster.sync_status(id).frames_ordered == 302));
    assert_eq!(cluster.read((writer + 1) % 3, "n"), Some(dwcp_replica::sync::values::View::Count(302)));
}
