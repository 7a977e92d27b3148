//! What comes over the border and is dropped: by its reason, without a panic, without growing memory.

use crate::world::{CLUSTER, Keyed, Liar, Node, at, key_of, members, origin, setup};
use bytes::Bytes;
use dwcp_base::{Chance, Hash};
use dwcp_crdt::{Origin, OriginId};
use dwcp_sync::limits::{FRAME_BYTES_MAX, MESSAGE_BYTES_MAX};
use dwcp_sync::message::{Head, Heads, Load, ShortHash};
use dwcp_sync::{Frame, Message, Reason};

const PEER: OriginId = OriginId(1);

fn node() -> Node {
    Node::new(setup(origin(0), members(3)))
}

pub fn push(frame: &Frame) -> Bytes {
    push_bytes(frame.bytes())
}

fn push_bytes(frame: &Bytes) -> Bytes {
    Message::Push { hops: 0, frame: frame.clone() }.to_bytes()
}

fn head(origin: Origin, last: u64) -> Head {
    let (hash, stretches) = (ShortHash::default(), Vec::new());
    Head { origin, base: 0, last, hash, acked: 0, frozen: false, stretches }
}

fn heads(me: Origin, heads: Vec<Head>) -> Heads {
    Heads { me, written: 0, floor: 0, heads }
}

#[test]
fn each_kind_of_nonsense_is_dropped_under_its_name() {
    let mut node = node();
    let mut honest = Liar::new(origin(1));
    let frame = honest.put(at(0), "k", "v");
    let mut say = |from: OriginId, bytes: &Bytes, reason: Reason| {
        let before = node.sync.refused(reason);
        node.message(at(10), from, bytes);
        assert_eq!(node.sync.refused(reason), before + 1, "{reason}");
        assert_eq!(node.store.applied().origins_count(), 0, "{reason}");
        assert!(node.unsynced.is_empty(), "{reason}");
    };
    say(OriginId(9), &push(&frame), Reason::Stranger);
    say(OriginId(0), &push(&frame), Reason::Stranger);
    say(PEER, &Bytes::from_static(b"nonsense"), Reason::Malformed);
    say(PEER, &Bytes::from(vec![0; MESSAGE_BYTES_MAX + 1]), Reason::TooLong);
    say(PEER, &push_bytes(&Bytes::from(vec![1; FRAME_BYTES_MAX + 1])), Reason::TooLong);
    say(PEER, &push_bytes(&Bytes::from(vec![1; 40])), Reason::Malformed);
    // Nobody knows this origin; its next life is another origin.
    let mut stranger = Liar::new(Origin::new(1, 1));
    say(PEER, &push(&stranger.put(at(0), "k", "v")), Reason::UnknownOrigin);
    // Signed by another member, or for another cluster.
    let forged = Frame::seal(frame.bundle(), Hash::ZERO, CLUSTER, &Keyed(key_of(origin(2))));
    say(PEER, &push(&forged), Reason::Forged);
    let elsewhere =
        Frame::seal(frame.bundle(), Hash::ZERO, dwcp_base::ClusterId([9; 32]), &Keyed(key_of(origin(1))));
    say(PEER, &push(&elsewhere), Reason::Forged);
    // More than half a second ahead of this clock.
    let early = Liar::new(origin(1)).put(at(511), "k", "v");
    say(PEER, &push(&early), Reason::ClockAhead);
    let answer = Message::Answer { round: 7, heads: heads(origin(1), Vec::new()), load: Load::default() };
    say(PEER, &answer.to_bytes(), Reason::Unasked);
    for impostor in [origin(2), Origin::new(1, 1)] {
        let ask = Message::Ask { round: 1, heads: heads(impostor, Vec::new()) };
        say(PEER, &ask.to_bytes(), Reason::Stranger);
    }
    let other = Liar::new(origin(1)).put(at(1), "another", "v");
    let mut third = Liar::new(origin(2));
    let proof = dwcp_sync::Proof::of(*frame.signed(), *other.signed()).expect("a contradiction");
    let mut forged = dwcp_base::encode(&Message::Contradiction { proof: Box::new(proof) });
    let last = forged.len() - 1;
    forged[last] ^= 1;
    say(PEER, &Bytes::from(forged), Reason::FalseProof);
    // A pair that fits together proves nothing.
    let one = third.put(at(0), "a", "v");
    let two = third.put(at(1), "b", "v");
    let mut pair = vec![5];
    pair.extend(dwcp_base::encode(one.signed()));
    pair.extend(dwcp_base::encode(two.signed()));
    say(PEER, &Bytes::from(pair), Reason::FalseProof);
}

#[test]
fn a_header_without_a_next_counter_is_forged_and_not_counted_on_from() {
    let mut node = node();
    let frame = Liar::new(origin(1)).put(at(0), "k", "v");
    node.message(at(10), PEER, &push(&frame));
    let mut hint = *frame.signed();
    hint.header.last = u64::MAX;
    let load = Load { hints: vec![hint], ..Load::default() };
    node.message(at(11), PEER, &Message::Rest { load }.to_bytes());
    assert_eq!(node.sync.refused(Reason::Forged), 1);
    assert!(node.evidence.is_empty());
}

#[test]
fn a_frame_from_the_future_is_taken_when_its_time_has_come() {
    let mut node = node();
    let frame = Liar::new(origin(1)).put(at(5_000), "k", "v");
    node.message(at(4_000), PEER, &push(&frame));
    assert_eq!(node.standing(origin(1)).last, 0);
    node.message(at(4_500), PEER, &push(&frame));
    assert_eq!(node.standing(origin(1)).last, 1);
    // Ordered by the log it was judged by others.
    let mut node = self::node();
    node.sync.deliver_from_log(at(0), frame.bytes().clone());
    node.run();
    assert_eq!(node.standing(origin(1)).last, 1);
}

#[test]
fn what_was_taken_before_is_dropped_without_a_trace() {
    let mut node = node();
    let frame = Liar::new(origin(1)).put(at(0), "k", "v");
    node.message(at(0), PEER, &push(&frame));
    let written = node.unsynced.len();
    for _ in 0..100 {
        node.message(at(1), OriginId(2), &push(&frame));
    }
    assert_eq!((node.unsynced.len(), node.sync.refused(Reason::Known)), (written, 100));
    assert!(node.refused.is_empty(), "duplicates are counted, not told of");
}

#[test]
fn early_frames_wait_and_are_applied_in_line() {
    let mut node = node();
    let mut peer = Liar::new(origin(1));
    let frames: Vec<Frame> = (0..20).map(|n| peer.put(at(n), &format!("k{n}"), "v")).collect();
    let mut order: Vec<usize> = (0..20).collect();
    Chance::new(5).shuffle(&mut order);
    for n in order {
        node.message(at(100), PEER, &push(&frames[n]));
    }
    assert_eq!(node.standing(origin(1)).last, 20);
    let firsts: Vec<u64> = node.handed.iter().map(dwcp_crdt::Bundle::first).collect();
    assert_eq!(firsts, (1..=20).collect::<Vec<_>>());
    assert_eq!(node.sync.frames_count(), (20, 0));
}

#[test]
fn what_waits_is_bounded_and_the_nearest_stays() {
    let mut setup = setup(origin(0), members(3));
    setup.limits.waiting_frames_max = 4;
    let mut node = Node::new(setup);
    let mut peer = Liar::new(origin(1));
    let frames: Vec<Frame> = (0..12).map(|n| peer.put(at(n), &format!("k{n}"), "v")).collect();
    for frame in frames[1..].iter().rev() {
        node.message(at(100), PEER, &push(frame));
    }
    assert_eq!(node.sync.frames_count(), (0, 4));
    node.message(at(100), PEER, &push(&frames[11]));
    assert_eq!(node.sync.refused(Reason::WaitingFull), 1);
    node.message(at(100), PEER, &push(&frames[0]));
    assert_eq!(node.standing(origin(1)).last, 5, "frames 2 to 5 were the nearest");
}

#[test]
fn a_full_log_refuses_frames_until_a_snapshot_holds_them() {
    let mut setup = setup(origin(0), members(3));
    setup.limits.log_bytes_max = 1 << 20;
    let mut node = Node::new(setup);
    let mut peer = Liar::new(origin(1));
    let value = "v".repeat(100_000);
    let frames: Vec<Frame> = (0..14).map(|n| peer.put(at(n), &format!("k{n}"), &value)).collect();
    for frame in &frames {
        node.message(at(100), PEER, &push(frame));
    }
    assert_eq!(node.standing(origin(1)).last, 10);
    assert_eq!(node.sync.refused(Reason::LogFull), 1, "what comes after it waits");
    let refused = node.sync.may_write();
    assert!(matches!(refused, Err(dwcp_sync::WriteRefused::LogFull { .. })), "{refused:?}");
    node.save();
    for frame in &frames {
        node.message(at(100), PEER, &push(frame));
    }
    assert_eq!(node.standing(origin(1)).last, 14);
    assert!(node.sync.may_write().is_ok());
}

#[test]
fn false_heads_are_counted_and_cost_nothing_more() {
    let mut node = node();
    node.time(at(10_000));
    let (to, ask) = node.outbox.pop().expect("it asks somebody");
    let Ok(Message::Ask { round, .. }) = Message::read(&ask) else { panic!("a question") };
    let heads = heads(Origin::new(to.0, 0), vec![head(origin(1), 1_000), head(origin(2), 1 << 60)]);
    let answer = Message::Answer { round, heads, load: Load::default() };
    node.message(at(10_050), to, &answer.to_bytes());
    assert_eq!(node.sync.refused(Reason::FalseHead), 2);
    assert!(node.outbox.is_empty(), "it does not ask again for what was not there");
    assert!(node.needs.is_empty());
}

#[test]
fn one_peer_that_dropped_everything_makes_nobody_reset() {
    let mut node = node();
    let said = |peer: u32| {
        let mut head = head(origin(2), 9);
        head.base = 9;
        Message::Ask { round: 1, heads: heads(origin(peer), vec![head]) }.to_bytes()
    };
    node.message(at(0), PEER, &said(1));
    assert!(node.needs.is_empty(), "one may lie");
    node.message(at(0), OriginId(2), &said(2));
    assert_eq!(node.needs.len(), 1, "two do not both lie");
}

#[test]
fn questions_are_bounded() {
    let mut setup = setup(origin(0), members(3));
    setup.limits.budget_bytes_max = 256 << 10;
    let mut node = Node::new(setup);
    let value = "v".repeat(100_000);
    for n in 0..3 {
        node.put(at(n), &format!("k{n}"), &value);
    }
    node.sync_disk();
    node.outbox.clear();
    let ask = Message::Ask { round: 1, heads: heads(origin(1), Vec::new()) }.to_bytes();
    for _ in 0..50 {
        node.message(at(10), PEER, &ask);
    }
    let bytes: usize = node.outbox.iter().map(|(_, message)| message.len()).sum();
    assert!(bytes < 600_000, "{bytes}");
    assert!(node.sync.refused(Reason::TooOften) > 40);
    node.message(
        at(10),
        OriginId(2),
        &Message::Ask { round: 1, heads: heads(origin(2), Vec::new()) }.to_bytes(),
    );
    assert!(node.outbox.last().is_some_and(|(to, _)| *to == OriginId(2)), "others are answered");
    node.message(at(5_000), PEER, &ask);
    assert!(node.outbox.last().is_some_and(|(to, _)| *to == PEER), "and it, later");
}

#[test]
fn random_messages_never_panic_and_leave_nothing_behind() {
    let mut node = node();
    let mut chance = Chance::new(11);
    let mut peer = Liar::new(origin(1));
    let frames: Vec<Frame> = (0..6).map(|n| peer.put(at(n), "k", "v")).collect();
    for _ in 0..3_000 {
        let frame = chance.pick(&frames).expect("some");
        let mut bytes = match chance.below(3) {
            0 => push(frame).to_vec(),
            1 => {
                let origin_of = |n: u64| origin(n as u32);
                let list = vec![head(origin_of(chance.below(3)), chance.next_u64() >> 2)];
                Message::Ask { round: chance.below(3), heads: heads(origin(1), list) }.to_bytes().to_vec()
            }
            _ => {
                let load =
                    Load { frames: vec![frame.bytes().clone()], hints: vec![*frame.signed()], more: true };
                Message::Rest { load }.to_bytes().to_vec()
            }
        };
        let place = chance.below(bytes.len() as u64) as usize;
        bytes[place] ^= 1 << chance.below(8);
        node.message(at(100), PEER, &Bytes::from(bytes));
        node.outbox.clear();
    }
    assert!(node.evidence.is_empty(), "nobody is accused by damaged bytes");
    assert!(node.standing(origin(1)).last <= 6);
}
