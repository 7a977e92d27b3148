//! Snapshots of the convergent store from donors that lie or say nothing: another is asked, and nobody is filled up.

use super::syncing::{collected, put};
use super::*;
use dwcp_replica::PeerMessage;
use std::cell::RefCell;
use std::rc::Rc;

/// Four nodes, the last of which lost its convergent state, so that it asks the three others when it comes back.
fn with_a_loser() -> Cluster {
    let policy = Policy::root_only(Trust::Byzantine, Quorum::new(4, None).unwrap());
    let (mut cluster, _session) = collected(policy, 4, NetworkMode::Internet);
    cluster.stop(3);
    cluster.nodes[3].disk.records.retain(|(_, record)| !matches!(record[0], 4 | 5));
    cluster.run(1_000);
    cluster
}

type Said = Rc<RefCell<Vec<(u8, u8, PeerMessage)>>>;

/// Node 0's words about snapshots are changed; what everybody says of them is noted, as it was sent.
fn twist(cluster: &mut Cluster, change: impl Fn(PeerMessage) -> Option<PeerMessage> + 'static) -> Said {
    let said = Said::default();
    let noted = Rc::clone(&said);
    cluster.twist = Some(Box::new(move |from, to, bytes| {
        if !(20..=22).contains(&bytes[0]) {
            return Some(bytes);
        }
        let message: PeerMessage = dwcp_base::decode(&bytes).unwrap();
        let message = if from == 0 { change(message)? } else { message };
        noted.borrow_mut().push((from, to, message.clone()));
        Some(dwcp_base::encode(&message).into())
    }));
    said
}

/// How often node 3 asked node 0 for a part.
fn asked(said: &Said) -> usize {
    let is_part = |(from, to, message): &&(u8, u8, PeerMessage)| {
        (*from, *to) == (3, 0) && matches!(message, PeerMessage::SyncFetch { id: 1.., .. })
    };
    said.borrow().iter().filter(is_part).count()
}

fn assert_whole(cluster: &mut Cluster) {
    let sync = cluster.sync_status(3);
    assert!(sync.snapshots_installed == 1 && !sync.needs_snapshot, "{sync:?}");
    cluster.twist = None;
    cluster.assert_converged(0);
}

#[test]
fn values_that_were_not_offered_are_refused_and_another_donor_gives_them() {
    let mut cluster = with_a_loser();
    let said = twist(&mut cluster, |message| {
        let PeerMessage::SyncPart { id, part, bytes } = message else { return Some(message) };
        let mut bytes = bytes.to_vec();
        let place = bytes.len() - 1;
        bytes[place] ^= 1;
        Some(PeerMessage::SyncPart { id, part, bytes: bytes.into() })
    });
    cluster.start(3);
    cluster.run(8_000);
    assert!(asked(&said) >= 1, "it was asked first");
    let sync = cluster.sync_status(3);
    assert_eq!(sync.snapshots_refused, 1, "{sync:?}");
    assert_whole(&mut cluster);
}

#[test]
fn a_donor_that_says_nothing_more_is_left_for_another() {
    let mut cluster = with_a_loser();
    let said = twist(&mut cluster, |message| {
        Some(message).filter(|message| !matches!(message, PeerMessage::SyncPart { .. }))
    });
    cluster.start(3);
    cluster.run(16_000);
    assert!((2..=11).contains(&asked(&said)), "asked again now and then: {}", asked(&said));
    let sync = cluster.sync_status(3);
    assert_eq!((sync.donors_stalled, sync.snapshots_refused), (1, 0), "{sync:?}");
    assert_whole(&mut cluster);
}

#[test]
fn a_donor_without_end_fills_no_memory() {
    let mut cluster = with_a_loser();
    let said = twist(&mut cluster, |message| {
        let PeerMessage::SyncPart { id, part, bytes } = message else { return Some(message) };
        let bytes = Bytes::from([bytes.to_vec(), vec![0; 1 << 20]].concat());
        Some(PeerMessage::SyncPart { id, part, bytes })
    });
    cluster.start(3);
    cluster.run(8_000);
    assert_eq!(asked(&said), 1, "the first part was too long already");
    let is_it =
        |event: &Event| matches!(event, Event::Refused { reason, .. } if reason.contains("longer than"));
    assert_eq!(cluster.events(3, is_it), 1);
    assert_whole(&mut cluster);
}

#[test]
fn nobody_agrees_in_an_offer_that_is_blown_up() {
    let mut cluster = with_a_loser();
    let said = twist(&mut cluster, |message| match message {
        PeerMessage::SyncOffer { id, digest, base, .. } => {
            Some(PeerMessage::SyncOffer { id, parts: 60_000, bytes: 15 << 30, digest, base })
        }
        other => Some(other),
    });
    cluster.start(3);
    cluster.run(8_000);
    assert_eq!(asked(&said), 0, "its digest is right and its size is not");
    assert_whole(&mut cluster);
}

#[test]
fn parts_are_answered_within_a_budget() {
    let policy = Policy::root_only(Trust::Byzantine, Quorum::new(4, None).unwrap());
    let mut cluster = Cluster::with(4, policy, NetworkMode::Internet);
    let long = format!("\"{}\"", "x".repeat(30_000));
    for key in 0..12 {
        cluster.write(0, 10 + key, vec![put(&format!("k{key}"), &long)]);
    }
    cluster.run(5_000);
    let said = twist(&mut cluster, Some);
    let ask = |cluster: &mut Cluster, id, part, times| {
        for _ in 0..times {
            let bytes = dwcp_base::encode(&PeerMessage::SyncFetch { id, part }).into();
            let input = Input::Peer { from: ReplicaId(3), incarnation: Incarnation(0), bytes };
            cluster.nodes[0].inbox.push_back(input);
        }
        cluster.run(10);
    };
    let answered = || {
        let said = said.borrow();
        let bytes = said.iter().map(|(_, _, message)| match message {
            PeerMessage::SyncPart { bytes, .. } => bytes.len(),
            _ => 0,
        });
        bytes.sum::<usize>()
    };
    ask(&mut cluster, 0, 0, 1);
    ask(&mut cluster, 1, 1, 300);
    let budget = dwcp_sync::Limits::default().budget_bytes_max;
    assert!((budget - (1 << 20)..budget + (1 << 20)).contains(&answered()), "{}", answered());
    cluster.run(3_000);
    ask(&mut cluster, 1, 1, 1);
    assert!(answered() > budget + 200_000, "with the next interval comes another");
}

/// A member that asks for the store again and again is not let keep a node busy with writing it out.
#[test]
fn a_store_is_written_out_for_one_peer_only_as_often_as_its_size_allows() {
    let policy = Policy::root_only(Trust::Byzantine, Quorum::new(4, None).unwrap());
    let mut cluster = Cluster::unstarted(4, policy, NetworkMode::Internet);
    let mut settings = super::syncing::setup();
    settings.limits.budget_bytes_max = 256 << 10;
    cluster.settings.insert(0, settings);
    (0..4).for_each(|id| cluster.start(id));
    let long = format!("\"{}\"", "x".repeat(30_000));
    for key in 0..100 {
        cluster.write(0, 100 + key, vec![put(&format!("k{key}"), &long)]);
    }
    cluster.run(5_000);
    let said = twist(&mut cluster, Some);
    let ask = |cluster: &mut Cluster, from| {
        let bytes = dwcp_base::encode(&PeerMessage::SyncFetch { id: 0, part: 0 }).into();
        let input = Input::Peer { from: ReplicaId(from), incarnation: Incarnation(0), bytes };
        cluster.nodes[0].inbox.push_back(input);
        cluster.run(10);
    };
    let offers = |peer| {
        let said = said.borrow();
        let ids = said.iter().filter_map(|(from, to, message)| match message {
            PeerMessage::SyncOffer { id, .. } if (*from, *to) == (0, peer) => Some(*id),
            _ => None,
        });
        ids.collect::<std::collections::BTreeSet<u64>>().len()
    };
    for second in 0..20 {
        cluster.write(0, 1_000 + second, vec![put("changes", &second.to_string())]);
        cluster.run(100);
        ask(&mut cluster, 3);
        cluster.run(890);
    }
    assert_eq!(offers(3), 1, "three megabytes take 24 seconds of what a peer is sent");
    ask(&mut cluster, 2);
    assert_eq!(offers(2), 1, "what one asks for is not held against another");
    let newest = |peer| {
        let said = said.borrow();
        let to_peer = said.iter().rev().find_map(|(_, to, message)| match message {
            PeerMessage::SyncOffer { id, .. } if *to == peer => Some(*id),
            _ => None,
        });
        to_peer.unwrap()
    };
    assert!(newest(2) > newest(3), "and he gets it as it is now");
    cluster.run(10_000);
    ask(&mut cluster, 3);
    assert_eq!(offers(3), 2, "after that it is written out again");
    // Once the floors are settled nothing changes, so there is nothing to write out.
    cluster.run(60_000);
    ask(&mut cluster, 1);
    assert_eq!(offers(1), 1);
    for _ in 0..20 {
        cluster.run(3_000);
        ask(&mut cluster, 3);
        ask(&mut cluster, 1);
    }
    assert_eq!((offers(3), offers(1)), (3, 1));
}
