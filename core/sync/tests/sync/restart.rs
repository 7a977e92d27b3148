//! What a restart remembers, and that no dot is ever used twice.

use crate::world::{Node, Snapshot, at, members, origin, setup, text};
use dwcp_crdt::{Op, OriginId, Write};
use dwcp_sync::{Message, OpenError, WriteRefused};

fn node(id: u32) -> Node {
    Node::new(setup(origin(id), members(2)))
}

fn carry(from: &mut Node, to: &mut Node, ms: u64) {
    let id = from.me().id;
    for (_, message) in std::mem::take(&mut from.outbox) {
        to.message(at(ms), id, &message);
    }
}

#[test]
fn a_frame_leaves_only_when_it_is_durable() {
    let mut node = node(0);
    node.put(at(0), "k", "v");
    assert!(node.outbox.is_empty());
    assert_eq!(node.sync.base(node.store.applied(), 0), None, "no snapshot shows it either");
    // Nor is it mentioned.
    node.time(at(10_000));
    let (_, ask) = node.outbox.pop().expect("it asks");
    let Ok(Message::Ask { heads, .. }) = Message::read(&ask) else { panic!("a question") };
    assert!(heads.of(origin(0)).is_none_or(|head| head.last == 0));
    assert_eq!(heads.written, 1, "but it is written, and an acknowledgement says so");
    node.sync_disk();
    assert_eq!(node.outbox.len(), 1);
}

#[test]
fn dots_are_not_reused_after_a_restart() {
    for kept in 0..=2 {
        let mut node = node(0);
        node.put(at(0), "a", "1");
        node.sync_disk();
        let shown = node.outbox.len();
        node.put(at(1), "b", "2");
        node.put(at(2), "c", "3");
        assert_eq!(node.outbox.len(), shown, "what may be lost was shown to nobody");
        node.crash(kept, at(3));
        assert_eq!(node.standing(origin(0)).last, 1 + kept as u64);
        node.put(at(4), "d", "4");
        assert_eq!(node.standing(origin(0)).last, 2 + kept as u64);
        assert_eq!(node.handed.len(), 1 + kept, "the store is told again");
    }
}

#[test]
fn a_store_that_knows_more_than_the_log_is_a_lost_disk() {
    let mut node = node(0);
    node.put(at(0), "a", "1");
    node.put(at(1), "b", "2");
    node.sync_disk();
    let snapshot = Snapshot::of(&node.store);
    let records = vec![node.disk[0].1.clone()];
    let error = Node::try_open(node.setup.clone(), snapshot, records, at(2)).expect_err("a lost disk");
    assert_eq!(error, OpenError::LogBehindStore { origin: origin(0), log: 1, store: 2 });
}

#[test]
fn own_frames_that_the_disk_lost_are_fetched_before_anything_is_written() {
    let (mut a, mut b) = (node(0), node(1));
    for n in 0..3 {
        a.put(at(n), &format!("k{n}"), "v");
        a.sync_disk();
    }
    carry(&mut a, &mut b, 10);
    assert_eq!(b.standing(origin(0)).last, 3);
    // The disk comes back without its last two records: more than was promised.
    let records = vec![a.disk[0].1.clone()];
    let empty = Snapshot::of(&dwcp_crdt::Store::new(origin(0), dwcp_crdt::Resolvers::default()));
    let mut a = Node::open(a.setup.clone(), empty, records, at(20));
    b.sync_disk();
    let third = Message::Push { hops: 0, frame: b_frame(&mut b, 3) }.to_bytes();
    a.message(at(20), OriginId(1), &third);
    assert_eq!(a.sync.may_write(), Err(WriteRefused::OwnFramesMissing { through: 3 }));
    let second = Message::Push { hops: 0, frame: b_frame(&mut b, 2) }.to_bytes();
    a.message(at(20), OriginId(1), &second);
    assert_eq!(a.sync.may_write(), Ok(3));
    a.put(at(30), "k", "v");
    assert_eq!(a.standing(origin(0)).last, 4);
}

/// A frame of replica 0 as replica 1 would send it.
fn b_frame(b: &mut Node, last: u64) -> bytes::Bytes {
    let record = b.disk.iter().find_map(|(_, record)| match dwcp_sync::Record::read(record) {
        Ok(dwcp_sync::Record::Frame(frame)) => {
            let received = dwcp_sync::Received::read(frame.clone()).expect("a frame");
            (received.header().origin == origin(0) && received.header().last == last).then_some(frame)
        }
        _ => None,
    });
    record.expect("it has it")
}

#[test]
fn a_trimmed_log_and_a_snapshot_are_as_good_as_the_whole_log() {
    let (mut a, mut b) = (node(0), node(1));
    let mut number = 0;
    for n in 0..30_u64 {
        a.put(at(n * 10), &format!("k{}", n % 5), &format!("{n}"));
        b.put(at(n * 10), &format!("k{}", n % 3), &format!("{n}"));
        a.sync_disk();
        b.sync_disk();
        carry(&mut a, &mut b, n * 10 + 1);
        carry(&mut b, &mut a, n * 10 + 2);
        if n % 5 == 4 {
            a.save();
            b.save();
            for node in [&mut a, &mut b] {
                node.time(at(n * 10_000));
            }
            for _ in 0..3 {
                carry(&mut a, &mut b, n * 10 + 3);
                carry(&mut b, &mut a, n * 10 + 3);
            }
            if let Some(floor) = a.sync.floor_candidate() {
                number += 1;
                for node in [&mut a, &mut b] {
                    node.sync.commit_floor(floor.clone()).expect("in order");
                    node.run();
                    node.save();
                }
            }
        }
    }
    assert!(number >= 3, "{number} floors");
    assert!(a.disk.len() < 30, "{} records of 60 frames are left", a.disk.len());
    let (before, digest) = (a.standing(origin(1)), a.store.digest());
    a.crash(0, at(900_000));
    assert_eq!(a.standing(origin(1)), before);
    assert_eq!(a.standing(origin(0)).last, 30);
    assert_eq!(a.store.digest(), digest);
    assert_eq!(a.store.floor_number(), number);
    a.put(at(900_001), "k", "after");
    assert_eq!(a.standing(origin(0)).last, 31);
}

#[test]
fn a_proof_and_a_cut_survive_a_restart() {
    let mut node = node(0);
    let mut one = crate::world::Liar::new(origin(1));
    let mut other = one.clone();
    let (first, second) = (one.put(at(0), "k", "x"), other.put(at(0), "k", "y"));
    for frame in [&first, &second] {
        node.sync.deliver_from_log(at(0), frame.bytes().clone());
        node.run();
    }
    assert_eq!(node.evidence.len(), 1);
    node.sync_disk();
    node.crash(0, at(1));
    assert!(node.sync.proof(origin(1)).is_some());
    let cut = node.standing(origin(1));
    node.sync.set_cut(cut);
    node.run();
    node.save();
    node.crash(0, at(2));
    node.sync.deliver_from_log(at(0), one.put(at(1), "k", "z").bytes().clone());
    node.run();
    assert_eq!(node.standing(origin(1)), cut);
    assert_eq!(node.sync.refused(dwcp_sync::Reason::BeyondCut), 1);
}

#[test]
fn a_writer_that_skips_the_question_is_told() {
    let mut node = node(0);
    let mut elsewhere = dwcp_crdt::Store::new(origin(0), dwcp_crdt::Resolvers::default());
    let write = [Write::new("k", Op::Put(text("v")))];
    let first = elsewhere.write(&write, 0, 1_000).expect("good").expect("one");
    let second = elsewhere.write(&write, 0, 1_001).expect("good").expect("one");
    assert_eq!(node.sync.write(&second), Err(WriteRefused::NotNext { expected: 1 }));
    node.sync.write(&first).expect("the next one");
    assert_eq!(node.sync.write(&first), Err(WriteRefused::NotNext { expected: 2 }));
    // Another store under our name, whose clock has seen nothing.
    let mut amnesiac = dwcp_crdt::Store::new(origin(0), dwcp_crdt::Resolvers::default());
    amnesiac.apply(&first, first.hlc().ms()).expect("good");
    let behind = first.part(1, 1).expect("whole");
    assert_eq!(behind, first);
}
