//! Origins that end: everybody stops where he is, and the end lies where somebody can give what the others lack.

use super::syncing::{json, put, raft};
use super::*;
use dwcp_replica::{PeerMessage, Road};

/// Its last change reached one member alone, which keeps it to itself until the others have halted.
#[test]
fn what_one_member_alone_has_of_an_excluded_one_is_left_out_everywhere() {
    let policy = Policy::root_only(Trust::Byzantine, Quorum::new(4, None).unwrap());
    let mut cluster = Cluster::with(4, policy, NetworkMode::Internet);
    cluster.write(3, 1, vec![put("a", "1")]);
    cluster.run(5_000);
    cluster.twist = Some(Box::new(|from, to, bytes| match dwcp_base::decode(&bytes) {
        Ok(PeerMessage::Sync(_)) if from == 3 && to != 0 => None,
        // Exchanges go on, for heads are heard; no frame comes with them.
        Ok(PeerMessage::Sync(bytes)) if from == 0 && bytes.len() > 400 => None,
        _ => Some(bytes),
    }));
    let long = format!("\"{}\"", "x".repeat(500));
    cluster.write(3, 2, vec![put("a", &long)]);
    cluster.run(100);
    assert_eq!(cluster.road(3, 2), Some(Road::Gossip));
    assert_eq!((cluster.read(0, "a"), cluster.read(1, "a")), (json(&long), json("1")));
    cluster.stop(3);
    cluster.exclude(1, 3, 0);
    cluster.run(30_000);
    cluster.twist = None;
    let floor = cluster.sync_status(1).floor;
    for round in 0..5_u64 {
        cluster.write((round % 3) as u8, 10 + round, vec![put("b", &round.to_string())]);
        cluster.run(20_000);
    }
    for id in 0..3 {
        assert_eq!(cluster.control(id).ends.len(), 1, "node {id} heard where it ends");
        assert_eq!((cluster.read(id, "a"), cluster.read(id, "b")), (json("1"), json("4")), "node {id}");
        assert!(cluster.sync_status(id).floor > floor, "collection goes on: {:?}", cluster.sync_status(id));
    }
    assert!(cluster.sync_status(0).snapshots_installed > 0, "it took the store of one that had less");
    cluster.start(3);
    cluster.run(20_000);
    cluster.assert_converged(0);
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
