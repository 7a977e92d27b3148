//! Where replicas stand with an origin that is over, what they take of it from then on, and that any end for which they say
//! enough can be reached by all of them.

use crate::border::push;
use crate::liars::{decide, net_with_liar, push as push_to};
use crate::net::Ordered;
use crate::world::{Liar, Node, at, members, origin, setup};
use bytes::Bytes;
use dwcp_base::{Hash, Mutants, Ticket};
use dwcp_crdt::{Op, Origin, OriginId, Write};
use dwcp_sync::message::{Head, Heads, Load, ShortHash};
use dwcp_sync::{Cut, Frame, InstallError, Message, Need, Reason, Stand, WriteRefused};

/// Whose end it is in most of these.
const OVER: u32 = 3;

fn node(id: u32) -> Node {
    Node::new(setup(origin(id), members(4)))
}

/// So many frames in one line.
pub fn line(liar: &mut Liar, count: u64, value: &str) -> Vec<Frame> {
    (0..count).map(|_| liar.put(at(liar.store.applied().last(liar.store.me())), "k", value)).collect()
}

pub fn take(node: &mut Node, frames: &[Frame]) {
    for frame in frames {
        node.sync.deliver_from_log(at(100), frame.bytes().clone());
        node.run();
    }
}

pub fn end_at(frame: &Frame) -> Cut {
    let header = frame.header();
    Cut { origin: header.origin, last: header.last, hash: frame.hash() }
}

/// Before the first frame.
pub fn beginning(origin: Origin) -> Cut {
    Cut { origin, last: 0, hash: Hash::ZERO }
}

fn exclude(node: &mut Node, id: u32) {
    node.sync.exclude([origin(id)].into());
}

pub fn halt(node: &mut Node, id: u32) {
    exclude(node, id);
    node.sync.halt(origin(id));
    node.run();
}

/// Holds these frames of an origin that has to end, and will stay there.
fn halted(id: u32, frames: &[Frame]) -> Node {
    let mut node = node(id);
    take(&mut node, frames);
    halt(&mut node, OVER);
    node.sync_disk();
    node
}

fn says(me: u32, floor: u64, heads: &[(u32, u64, u64)]) -> Bytes {
    let head = |(id, base, acked): &(u32, u64, u64)| Head {
        origin: origin(*id),
        base: *base,
        last: *acked,
        hash: ShortHash::default(),
        acked: *acked,
        frozen: false,
        stretches: Vec::new(),
    };
    let heads = Heads { me: origin(me), written: 0, floor, heads: heads.iter().map(head).collect() };
    Message::Ask { round: 1, heads }.to_bytes()
}

/// Carries what they want to say to each other until nobody says anything; what is for others is lost.
fn talk(one: &mut Node, other: &mut Node, ms: u64) {
    while !(one.outbox.is_empty() && other.outbox.is_empty()) {
        for (to, message) in std::mem::take(&mut one.outbox) {
            if to == other.me().id {
                other.message(at(ms), one.me().id, &message);
            }
        }
        std::mem::swap(one, other);
        // Two swaps leave each in its place.
        for (to, message) in std::mem::take(&mut one.outbox) {
            if to == other.me().id {
                other.message(at(ms), one.me().id, &message);
            }
        }
        std::mem::swap(one, other);
    }
}

/// One asks the other, and they go on until both are silent.
fn exchange(one: &mut Node, other: &mut Node, ms: u64) {
    one.outbox.clear();
    other.outbox.clear();
    one.sync.ask_everybody(at(ms));
    one.run();
    talk(one, other, ms);
}

// --- where one stands ---

#[test]
fn nobody_says_where_it_stands_before_the_origin_has_to_end() {
    let frames = line(&mut Liar::new(origin(OVER)), 1, "v");
    let mut node = node(0);
    take(&mut node, &frames);
    node.sync.halt(origin(OVER));
    node.run();
    node.sync_disk();
    assert_eq!(node.sync.stance(&end_at(&frames[0]), 0), None, "nobody wants it to end");
    exclude(&mut node, OVER);
    assert_eq!(node.sync.stance(&end_at(&frames[0]), 0), Some(Stand::Ready));
    node.sync.exclude([].into());
    assert_eq!(node.sync.stance(&end_at(&frames[0]), 0), None, "it was taken back");
    assert_eq!(node.sync.stance(&beginning(Origin::new(9, 0)), 0), None, "a stranger");
}

#[test]
fn who_came_back_with_another_disk_has_to_end_as_it_was() {
    let frames = line(&mut Liar::new(origin(OVER)), 1, "v");
    let mut node = halted(0, &frames);
    node.sync.exclude([].into());
    assert_eq!(node.sync.stance(&end_at(&frames[0]), 0), None);
    let mut with_next = members(4);
    let next = Origin::new(OVER, 1);
    with_next.insert(next, crate::world::key_of(next));
    node.sync.set_members(with_next).expect("one more");
    node.run();
    assert_eq!(node.sync.endings(), [origin(OVER)]);
    assert_eq!(node.sync.stance(&end_at(&frames[0]), 0), Some(Stand::Ready));
}

#[test]
fn nobody_says_where_it_stands_while_it_may_still_move() {
    let frames = line(&mut Liar::new(origin(OVER)), 2, "v");
    let cut = end_at(&frames[0]);
    let mut node = node(0);
    exclude(&mut node, OVER);
    take(&mut node, &frames[..1]);
    assert_eq!(node.sync.standing(origin(OVER)), None, "a crash could take its last frame");
    node.sync_disk();
    assert_eq!(node.sync.standing(origin(OVER)), Some(cut));
    assert_eq!(node.sync.stance(&cut, 0), None, "it would take the next frame");
    halt(&mut node, OVER);
    assert_eq!(node.sync.stance(&cut, 0), None, "a crash could make it take frames again");
    node.sync.on_durable(Ticket(node.sync.last_ticket().0 - 1));
    assert_eq!(node.sync.stance(&cut, 0), None, "only what was before is on the disk");
    node.sync_disk();
    assert_eq!(node.sync.stance(&cut, 0), Some(Stand::Ready));
    let cuts = [beginning(origin(OVER)), cut, end_at(&frames[1])];
    let said = cuts.map(|cut| node.sync.stance(&cut, 0));
    node.crash(0, at(1));
    exclude(&mut node, OVER);
    assert_eq!(cuts.map(|cut| node.sync.stance(&cut, 0)), said, "it stands by its word");
    node.sync.set_cut(cut);
    node.run();
    node.sync_disk();
    assert_eq!(node.sync.stance(&cut, 0), None, "that is decided");
    assert_eq!(node.sync.endings(), []);
}

#[test]
fn a_proof_counts_once_it_is_durable() {
    let mut liar = Liar::new(origin(OVER));
    let other = line(&mut liar.clone(), 1, "other");
    let frames = line(&mut liar, 1, "v");
    let mut node = node(0);
    take(&mut node, &frames);
    node.sync_disk();
    take(&mut node, &other);
    assert_eq!(node.evidence.len(), 1);
    assert_eq!(node.sync.stance(&end_at(&frames[0]), 0), None);
    node.sync_disk();
    assert_eq!(node.sync.stance(&end_at(&frames[0]), 0), Some(Stand::Ready));
}

#[test]
fn nobody_says_where_it_stands_while_it_needs_a_snapshot() {
    let frames = line(&mut Liar::new(origin(OVER)), 1, "v");
    let cut = end_at(&frames[0]);
    let mut node = halted(0, &frames);
    // More than may lie no longer keep what node 2 wrote.
    for peer in [1, 2] {
        node.message(at(10), OriginId(peer), &says(peer, 0, &[(2, 1, 1)]));
    }
    assert_eq!(node.sync.needs().collect::<Vec<_>>(), [Need::Gone]);
    assert_eq!(node.sync.stance(&cut, 0), None, "what it takes may hold more");
    take(&mut node, &line(&mut Liar::new(origin(2)), 1, "v"));
    node.sync_disk();
    node.time(at(10_000));
    assert_eq!(node.sync.needs().count(), 0);
    assert_eq!(node.sync.stance(&cut, 0), Some(Stand::Ready));
}

#[test]
fn nobody_says_where_it_stands_before_it_has_reached_the_end_before() {
    let frames = line(&mut Liar::new(origin(OVER)), 1, "v");
    let before = line(&mut Liar::new(origin(2)), 2, "v");
    let cut = end_at(&frames[0]);
    let mut node = halted(0, &frames);
    take(&mut node, &before[..1]);
    node.sync.set_cut(end_at(&before[1]));
    node.run();
    node.sync_disk();
    assert_eq!(node.sync.needs().count(), 0);
    assert_eq!(node.sync.stance(&cut, 0), None);
    take(&mut node, &before[1..]);
    node.sync_disk();
    assert_eq!(node.sync.stance(&cut, 0), Some(Stand::Ready));
}

#[test]
fn who_stands_says_where_seen_from_any_end() {
    let mut liar = Liar::new(origin(OVER));
    let mut other = liar.clone();
    let mut frames = line(&mut liar, 2, "v");
    let two = [Write::new("a", Op::Delete), Write::new("k", Op::Put(crate::world::text("w")))];
    frames.push(liar.write(at(5), &[two[1].clone(), Write::new("b", Op::Put(crate::world::text("w")))]));
    frames.extend(line(&mut liar, 1, "v"));
    let others = line(&mut other, 5, "other");
    let lasts: Vec<u64> = frames.iter().map(|frame| frame.header().last).collect();
    assert_eq!(lasts, [1, 2, 4, 5], "the third frame has two changes");
    let mut cuts: Vec<Cut> = frames.iter().chain(&others).map(end_at).collect();
    cuts.push(beginning(origin(OVER)));
    cuts.push(Cut { origin: origin(OVER), last: 0, hash: Hash([1; 32]) });
    // Three of the five other ends have a counter at which a frame of this line ends.
    for held in 0..=frames.len() {
        let node = halted(0, &frames[..held]);
        let here = node.standing(origin(OVER));
        for cut in &cuts {
            let is_ours = frames.iter().any(|frame| end_at(frame) == *cut) || *cut == beginning(origin(OVER));
            let expected = match here.last.cmp(&cut.last) {
                std::cmp::Ordering::Less => Stand::Below,
                _ if !is_ours => Stand::Elsewhere,
                std::cmp::Ordering::Equal => Stand::Ready,
                std::cmp::Ordering::Greater => Stand::Beyond,
            };
            assert_eq!(node.sync.stance(cut, 0), Some(expected), "{held} frames, {cut:?}");
        }
    }
}

#[test]
fn of_what_it_no_longer_keeps_it_does_not_say_that_it_holds_it() {
    let frames = line(&mut Liar::new(origin(OVER)), 3, "v");
    let mut donor = node(1);
    take(&mut donor, &frames[..2]);
    let (snapshot, base) = donor.donate().expect("it has one");
    let mut node = node(0);
    node.install(&snapshot, &base).expect("a good one");
    take(&mut node, &frames[2..]);
    halt(&mut node, OVER);
    node.sync_disk();
    let stance = |cut: Cut| node.sync.stance(&cut, 0);
    assert_eq!(stance(end_at(&frames[0])), Some(Stand::Elsewhere), "it cannot tell");
    assert_eq!(stance(end_at(&frames[1])), Some(Stand::Beyond), "the last of what it dropped");
    assert_eq!(stance(end_at(&frames[2])), Some(Stand::Ready));
    assert_eq!(stance(beginning(origin(OVER))), Some(Stand::Beyond), "before the beginning is nothing");
}

#[test]
fn nobody_is_below_an_end_of_a_liar() {
    let mut liar = Liar::new(origin(OVER));
    let other = line(&mut liar.clone(), 1, "other");
    let frames = line(&mut liar, 4, "v");
    let mut node = node(0);
    take(&mut node, &frames[..2]);
    take(&mut node, &other);
    node.sync_disk();
    assert_eq!(node.evidence.len(), 1);
    let stance = |cut: Cut, least| node.sync.stance(&cut, least);
    for least in [0, 9] {
        assert_eq!(stance(beginning(origin(OVER)), least), Some(Stand::Beyond));
        assert_eq!(stance(end_at(&frames[0]), least), Some(Stand::Beyond));
        assert_eq!(stance(end_at(&other[0]), least), Some(Stand::Elsewhere));
        assert_eq!(
            stance(end_at(&frames[1]), least),
            Some(Stand::Ready),
            "what the log has of a liar binds nobody"
        );
        assert_eq!(stance(end_at(&frames[2]), least), Some(Stand::Elsewhere), "it may be of another branch");
    }
}

#[test]
fn what_the_log_has_of_the_honest_is_not_cut_off() {
    let frames = line(&mut Liar::new(origin(OVER)), 3, "v");
    let node = halted(0, &frames[..2]);
    let stance = |frame: &Frame, least| node.sync.stance(&end_at(frame), least);
    assert_eq!(stance(&frames[0], 1), Some(Stand::Beyond));
    assert_eq!(stance(&frames[0], 2), None);
    assert_eq!(stance(&frames[1], 2), Some(Stand::Ready));
    assert_eq!(stance(&frames[1], 3), None);
    assert_eq!(stance(&frames[2], 3), Some(Stand::Below));
    assert_eq!(stance(&frames[2], 4), None);
    assert_eq!(node.sync.stance(&beginning(origin(OVER)), 1), None);
}

// --- what is taken of it from then on ---

#[test]
fn no_road_and_no_restart_moves_the_store_on_with_a_halted_origin() {
    let frames = line(&mut Liar::new(origin(OVER)), 4, "v");
    let mut node = node(0);
    take(&mut node, &frames[..1]);
    // One that came early waits, and would follow as soon as the one between comes.
    take(&mut node, &frames[2..3]);
    assert_eq!(node.sync.frames_count(), (1, 1));
    halt(&mut node, OVER);
    assert_eq!(node.sync.frames_count(), (1, 0), "nor does anything wait");
    node.sync_disk();
    for round in 0..3 {
        for frame in &frames[1..] {
            node.message(at(50), OriginId(OVER), &push(frame));
            let load = Load { frames: vec![frame.bytes().clone()], ..Load::default() };
            node.message(at(50), OriginId(1), &Message::Rest { load }.to_bytes());
            take(&mut node, std::slice::from_ref(frame));
        }
        node.sync_disk();
        assert_eq!(node.standing(origin(OVER)), end_at(&frames[0]), "round {round}");
        assert_eq!(node.store.applied().last(origin(OVER)), 1, "round {round}");
        assert_eq!(node.sync.head(origin(OVER)), Some(end_at(&frames[3])), "it is kept all the same");
        assert_eq!(node.sync.frames_count(), (4, 0));
        assert!(node.evidence.is_empty(), "none of them is a lie");
        if round == 1 {
            node.save();
        }
        node.crash(0, at(60));
        assert!(node.sync.is_frozen(origin(OVER)), "it remembers");
        exclude(&mut node, OVER);
        for (place, frame) in frames.iter().enumerate() {
            assert_eq!(node.sync.stance(&end_at(frame), 0), Some(Stand::Ready), "round {round}, {place}");
        }
    }
}

#[test]
fn who_has_halted_an_origin_gets_and_gives_what_there_is_of_it() {
    let frames = line(&mut Liar::new(origin(OVER)), 3, "v");
    for (gives, takes) in [(false, false), (false, true), (true, false), (true, true)] {
        let (mut giver, mut taker) = (node(0), node(1));
        take(&mut giver, &frames);
        take(&mut taker, &frames[..1]);
        for (node, is_halted) in [(&mut giver, gives), (&mut taker, takes)] {
            if is_halted {
                halt(node, OVER);
            }
            node.sync_disk();
        }
        exchange(&mut taker, &mut giver, 10);
        exchange(&mut giver, &mut taker, 10_000);
        assert_eq!(taker.sync.head(origin(OVER)), Some(end_at(&frames[2])), "{gives} {takes}");
        let counts = if takes { 1 } else { 3 };
        assert_eq!(taker.standing(origin(OVER)).last, counts, "{gives} {takes}");
        assert_eq!(taker.store.applied().last(origin(OVER)), counts, "{gives} {takes}");
        let false_heads = giver.sync.refused(Reason::FalseHead) + taker.sync.refused(Reason::FalseHead);
        assert_eq!(false_heads, 0, "who gives nothing of it promises nothing");
    }
}

#[test]
fn ready_is_who_has_all_before_an_end_on_disk_and_nothing_after_it_in_its_store() {
    let mut liar = Liar::new(origin(OVER));
    let frames = line(&mut liar, 4, "v");
    let other = line(&mut Liar::new(origin(OVER)), 4, "other");
    for held in 0..=4 {
        for kept in held..=4 {
            let mut node = halted(0, &frames[..held]);
            take(&mut node, &frames[held..kept]);
            let is_written = |node: &Node, place: usize| {
                let cut = place.checked_sub(1).map_or(beginning(origin(OVER)), |last| end_at(&frames[last]));
                node.sync.stance(&cut, 0)
            };
            for place in (held + 1)..=kept {
                assert_eq!(is_written(&node, place), Some(Stand::Below), "a crash could take it");
            }
            node.sync_disk();
            for place in 0..=4 {
                let expected = match place {
                    _ if place < held => Stand::Beyond,
                    _ if place <= kept => Stand::Ready,
                    _ => Stand::Below,
                };
                assert_eq!(is_written(&node, place), Some(expected), "{held} {kept} {place}");
            }
            for (place, frame) in other.iter().enumerate() {
                let expected = if place + 1 > kept { Stand::Below } else { Stand::Elsewhere };
                assert_eq!(node.sync.stance(&end_at(frame), 0), Some(expected), "{held} {kept} {place}");
            }
        }
    }
}

#[test]
fn of_a_liar_what_follows_is_kept_and_nothing_of_another_history() {
    let mut liar = Liar::new(origin(OVER));
    let shared = line(&mut liar, 2, "shared");
    let other = line(&mut liar.clone(), 2, "other");
    let frames = line(&mut liar, 2, "v");
    let mut node = node(0);
    take(&mut node, &shared);
    take(&mut node, &frames[..1]);
    take(&mut node, &other[..1]);
    assert_eq!(node.evidence.len(), 1);
    take(&mut node, &frames[1..]);
    let before = node.sync.refused(Reason::Frozen);
    for frame in &other {
        node.message(at(50), OriginId(1), &push(frame));
    }
    assert_eq!(node.sync.refused(Reason::Frozen), before + 2);
    node.sync_disk();
    assert_eq!(node.sync.head(origin(OVER)), Some(end_at(&frames[1])));
    assert_eq!(node.store.applied().last(origin(OVER)), 3);
    let stance = |cut: Cut| node.sync.stance(&cut, 0);
    assert_eq!(stance(end_at(&shared[1])), Some(Stand::Beyond));
    assert_eq!(stance(end_at(&frames[0])), Some(Stand::Ready));
    assert_eq!(stance(end_at(&frames[1])), Some(Stand::Ready));
    assert_eq!(stance(end_at(&other[0])), Some(Stand::Elsewhere));
    assert_eq!(stance(end_at(&other[1])), Some(Stand::Elsewhere));
}

#[test]
fn the_decision_hands_over_what_counts_and_drops_the_rest() {
    let frames = line(&mut Liar::new(origin(OVER)), 4, "v");
    for held in 0..=2 {
        for is_saved in [false, true] {
            let mut node = halted(0, &frames[..held]);
            take(&mut node, &frames[held..]);
            node.sync_disk();
            if is_saved {
                node.save();
            }
            node.sync.set_cut(end_at(&frames[1]));
            node.run();
            node.sync_disk();
            for round in 0..3 {
                assert_eq!(node.store.applied().last(origin(OVER)), 2, "{held} {is_saved} {round}");
                assert_eq!(node.sync.head(origin(OVER)), Some(end_at(&frames[1])));
                assert_eq!(node.standing(origin(OVER)), end_at(&frames[1]));
                assert_eq!(node.sync.needs().count(), 0);
                take(&mut node, &frames[2..]);
                if round == 1 {
                    node.save();
                }
                node.crash(0, at(60));
            }
        }
    }
}

/// It cannot know whether what it keeps is of the history that was decided: nothing of it may reach the store.
#[test]
fn what_is_short_of_a_decided_end_is_handed_over_when_it_has_come_there() {
    let mut liar = Liar::new(origin(OVER));
    let shared = line(&mut liar, 1, "shared");
    let other = line(&mut liar.clone(), 3, "other");
    let frames = line(&mut liar, 3, "v");
    let mut right = halted(0, &shared);
    take(&mut right, &frames[..1]);
    let mut wrong = halted(1, &shared);
    take(&mut wrong, &other[..1]);
    for node in [&mut right, &mut wrong] {
        node.sync_disk();
        node.sync.set_cut(end_at(&frames[2]));
        node.run();
        for _ in 0..2 {
            assert_eq!(node.store.applied().last(origin(OVER)), 1);
            take(node, &frames[1..2]);
            assert_eq!(node.store.applied().last(origin(OVER)), 1, "not before the end is here");
            node.sync_disk();
            node.crash(0, at(60));
        }
    }
    take(&mut right, &frames[2..]);
    assert_eq!(right.store.applied().last(origin(OVER)), 4);
    assert_eq!(right.sync.needs().count(), 0);
    take(&mut wrong, &frames);
    assert_eq!(wrong.store.applied().last(origin(OVER)), 1);
    assert_eq!(wrong.sync.needs().collect::<Vec<_>>(), [Need::Branch], "it needs somebody's store");
    let (snapshot, base) = right.donate().expect("it stands at the end");
    assert_eq!(wrong.install(&snapshot, &base), Ok(()));
    assert_eq!(wrong.standing(origin(OVER)), end_at(&frames[2]));
}

#[test]
fn who_has_to_end_and_goes_on_writing_fills_no_log() {
    let mut setup = setup(origin(0), members(4));
    setup.limits.log_bytes_max = 1 << 20;
    let mut node = Node::new(setup);
    halt(&mut node, OVER);
    let mut liar = Liar::new(origin(OVER));
    let big = "x".repeat(20_000);
    let frames = line(&mut liar, 30, &big);
    take(&mut node, &frames);
    assert!(
        node.sync.log_bytes() > 200_000 && node.sync.log_bytes() <= 256 << 10,
        "{}",
        node.sync.log_bytes()
    );
    assert!(node.sync.refused(Reason::LogFull) > 0);
    let mut other = Liar::new(origin(2));
    for frame in line(&mut other, 20, &big) {
        take(&mut node, &[frame]);
    }
    assert_eq!(node.store.applied().last(origin(2)), 20, "others have their room");
    node.put(at(100), "k", "own");
}

/// The record that says where the store stands comes first; a crash may leave it alone.
#[test]
fn without_the_reason_nothing_is_held_back() {
    let frames = line(&mut Liar::new(origin(OVER)), 2, "v");
    let mut node = node(0);
    take(&mut node, &frames[..1]);
    node.sync_disk();
    let records = node.disk.len();
    halt(&mut node, OVER);
    node.sync_disk();
    assert_eq!(node.disk.len(), records + 2);
    node.disk.truncate(records + 1);
    node.crash(0, at(60));
    assert!(!node.sync.is_frozen(origin(OVER)));
    take(&mut node, &frames[1..]);
    assert_eq!(node.store.applied().last(origin(OVER)), 2);
}

#[test]
fn who_is_halted_itself_writes_no_more() {
    let mut node = node(0);
    node.put(at(0), "k", "v");
    halt(&mut node, 0);
    assert_eq!(node.sync.may_write(), Err(WriteRefused::Ended));
    node.sync_disk();
    node.crash(0, at(1));
    assert_eq!(node.sync.may_write(), Err(WriteRefused::Ended));
}

#[test]
fn a_frame_or_a_header_that_cannot_stand_with_what_is_halted_proves_the_lie() {
    let mut liar = Liar::new(origin(OVER));
    let frames = line(&mut liar.clone(), 2, "v");
    let others = line(&mut liar, 3, "other");
    let frame = push(&others[1]);
    let hint =
        Message::Rest { load: Load { hints: vec![*others[1].signed()], ..Load::default() } }.to_bytes();
    for (message, restarts) in [(&frame, false), (&frame, true), (&hint, false), (&hint, true)] {
        let mut node = halted(0, &frames);
        if restarts {
            node.crash(0, at(20));
        }
        node.message(at(30), OriginId(1), message);
        assert_eq!(node.evidence.len(), 1);
        assert_eq!(node.sync.proof(origin(OVER)).copied(), node.evidence.first().copied());
        assert_eq!(node.standing(origin(OVER)), end_at(&frames[1]), "it stays");
        let told = node.outbox.iter().filter(|(_, message)| is_proof(message)).count();
        assert_eq!(told, 3, "everybody is told, who brought it too: it has one of the two");
        exclude(&mut node, OVER);
        assert_eq!(node.sync.stance(&end_at(&frames[1]), 0), None, "not before it is durable");
        node.sync_disk();
        assert_eq!(node.sync.stance(&end_at(&frames[1]), 0), Some(Stand::Ready));
        assert_eq!(node.sync.stance(&end_at(&others[2]), 0), Some(Stand::Elsewhere));
    }
}

fn is_proof(message: &Bytes) -> bool {
    matches!(Message::read(message), Ok(Message::Contradiction { .. }))
}

#[test]
fn two_who_halted_on_two_branches_prove_the_lie_to_each_other() {
    let mut liar = Liar::new(origin(OVER));
    let shared = line(&mut liar, 1, "shared");
    let frames = [shared.clone(), line(&mut liar.clone(), 1, "v")].concat();
    let others = [shared, line(&mut liar, 2, "other")].concat();
    for held in [2, 3] {
        for short_asks in [true, false] {
            let (mut short, mut long) = (halted(0, &frames), halted(1, &others[..held]));
            if short_asks {
                exchange(&mut short, &mut long, 10);
            } else {
                exchange(&mut long, &mut short, 10);
            }
            for (node, end) in [(&short, &frames[1]), (&long, &others[held - 1])] {
                assert_eq!(node.evidence.len(), 1, "{} has the proof", node.me());
                assert_eq!(node.standing(origin(OVER)), end_at(end), "{} stays", node.me());
            }
            assert_eq!(short.sync.proof(origin(OVER)), long.sync.proof(origin(OVER)));
        }
    }
}

/// A proof is sent to everybody once, and may be lost. Who says that it takes no more of an origin may not know why.
#[test]
fn an_exchange_brings_a_proof_to_who_only_halted() {
    let mut liar = Liar::new(origin(OVER));
    let other = line(&mut liar.clone(), 1, "other");
    let frames = line(&mut liar, 3, "v");
    for held in 0..=2 {
        let mut knows = halted(0, &frames[..2]);
        take(&mut knows, &other);
        knows.sync_disk();
        assert_eq!(knows.evidence.len(), 1);
        let mut halted = halted(1, &frames[..held]);
        exchange(&mut halted, &mut knows, 10);
        exchange(&mut knows, &mut halted, 10_000);
        assert!(halted.sync.proof(origin(OVER)).is_some(), "who halted at {held} is told");
        halted.sync_disk();
        let stance = halted.sync.stance(&end_at(&frames[2]), 0);
        assert_eq!(stance, Some(Stand::Elsewhere), "and does not say that it is below");
    }
}

// --- stores of others ---

#[test]
fn a_store_that_holds_more_of_a_halted_origin_is_not_taken() {
    let frames = line(&mut Liar::new(origin(OVER)), 3, "v");
    let mut donor = node(1);
    take(&mut donor, &frames);
    let (snapshot, base) = donor.donate().expect("it has one");
    for held in 0..3 {
        let mut node = halted(0, &frames[..held]);
        let here = node.standing(origin(OVER));
        let refused = Err(InstallError::Branch { origin: origin(OVER) });
        assert_eq!(node.install(&snapshot, &base), refused);
        assert_eq!(node.standing(origin(OVER)), here);
        // Whoever cannot go on without one says nothing about ends, and has to get there: a blank disk above all.
        for peer in [1, 2] {
            node.message(at(10), OriginId(peer), &says(peer, 0, &[(2, 1, 1)]));
        }
        assert_eq!(node.sync.needs().collect::<Vec<_>>(), [Need::Gone]);
        assert_eq!(node.sync.stance(&here, 0), None);
        assert_eq!(node.install(&snapshot, &base), Ok(()));
        assert_eq!(node.standing(origin(OVER)), end_at(&frames[2]));
    }
}

#[test]
fn another_end_that_was_decided_makes_it_be_taken() {
    let frames = line(&mut Liar::new(origin(OVER)), 3, "v");
    let before = line(&mut Liar::new(origin(2)), 1, "v");
    let mut donor = node(1);
    take(&mut donor, &frames);
    donor.sync.set_cut(beginning(origin(2)));
    donor.run();
    let (snapshot, base) = donor.donate().expect("it has one");
    let mut node = halted(0, &frames[..1]);
    take(&mut node, &before);
    node.sync_disk();
    node.sync.set_cut(beginning(origin(2)));
    node.run();
    assert_eq!(node.sync.needs().collect::<Vec<_>>(), [Need::Branch]);
    assert_eq!(node.sync.stance(&end_at(&frames[0]), 0), None, "it says nothing meanwhile");
    assert_eq!(node.install(&snapshot, &base), Ok(()));
    assert_eq!(node.standing(origin(OVER)), end_at(&frames[2]));
    assert!(node.sync.is_frozen(origin(OVER)), "and stays there");
    assert_eq!(node.sync.stance(&end_at(&frames[2]), 0), Some(Stand::Ready));
}

#[test]
fn a_store_that_holds_no_more_is_taken_and_moves_nobody() {
    let frames = line(&mut Liar::new(origin(OVER)), 3, "v");
    let others = line(&mut Liar::new(origin(2)), 1, "v");
    for given in 0..=2 {
        let mut donor = node(1);
        take(&mut donor, &frames[..given]);
        take(&mut donor, &others);
        let (snapshot, base) = donor.donate().expect("it has one");
        let mut node = halted(0, &frames[..2]);
        assert_eq!(node.install(&snapshot, &base), Ok(()), "{given}");
        assert_eq!(node.standing(origin(2)), end_at(&others[0]), "what it came for");
        for _ in 0..2 {
            assert_eq!(node.sync.stance(&end_at(&frames[1]), 0), Some(Stand::Ready), "{given}");
            assert_eq!(node.store.applied().prefix(origin(OVER)), 2, "its store has it again");
            take(&mut node, &frames[2..]);
            node.sync_disk();
            node.crash(0, at(200));
            exclude(&mut node, OVER);
        }
    }
}

/// It has said that it stands on the other; whoever is on that branch may count on its store.
#[test]
fn a_store_of_another_branch_of_a_halted_origin_is_not_taken() {
    let mut liar = Liar::new(origin(OVER));
    let others = line(&mut liar.clone(), 3, "other");
    let frames = line(&mut liar, 2, "v");
    for given in 1..=3 {
        let mut donor = node(1);
        take(&mut donor, &others[..given]);
        let (snapshot, base) = donor.donate().expect("it has one");
        let mut node = halted(0, &frames);
        assert_eq!(node.sync.stance(&end_at(&frames[1]), 0), Some(Stand::Ready));
        let refused = Err(InstallError::Branch { origin: origin(OVER) });
        assert_eq!(node.install(&snapshot, &base), refused, "of {given} frames");
        assert_eq!(node.sync.stance(&end_at(&frames[1]), 0), Some(Stand::Ready));
    }
}

// --- who goes back is heard ---

#[test]
fn who_went_back_to_a_decided_end_is_heard_again() {
    let (mut net, mut gone) = net_with_liar(3, 4, Mutants::default());
    let frames = line(&mut gone, 3, "v");
    for (who, held) in [(0, 2), (1, 2), (2, 3)] {
        frames[..held].iter().for_each(|frame| push_to(&mut net, who, frame));
        halt(&mut net.nodes[who], OVER);
    }
    net.heal();
    for (who, held) in [(0, 2), (1, 2), (2, 3)] {
        assert_eq!(net.nodes[who].standing(origin(OVER)).last, held);
    }
    decide(&mut net, end_at(&frames[1]));
    assert!(net.nodes[2].sync.needs().eq([Need::Branch]));
    net.heal();
    net.assert_converged();
    assert_eq!(net.nodes[2].standing(origin(OVER)), end_at(&frames[1]), "it went back");
    for number in 1..=3 {
        let writer = number as usize - 1;
        let now = net.now(writer);
        let frame = net.nodes[writer].put(now, "after", &number.to_string());
        let wrote = dwcp_sync::Received::read(frame).expect("a frame").header().last;
        net.heal();
        let floors: Vec<_> = (0..3).map(|who| net.nodes[who].sync.floor_candidate()).collect();
        for floor in &floors {
            let floor = floor.as_ref().expect("all have said enough");
            assert_eq!(floor.seen.last(origin(writer as u32)), wrote, "all hold the newest: {floor:?}");
            assert_eq!(floor.seen.last(origin(OVER)), 2);
            assert_eq!((floor.number, floor.retired.get(&origin(OVER))), (number, Some(&2)));
            for node in &net.nodes[..3] {
                assert_eq!(node.sync.judge_floor(floor), Ok(()));
            }
        }
        net.log.push(Ordered::Floor(floors[0].clone().expect("just seen")));
    }
}

#[test]
fn an_older_word_says_nothing_but_of_what_ended() {
    let frames = line(&mut Liar::new(origin(OVER)), 2, "v");
    let mut node = node(0);
    take(&mut node, &frames);
    node.put(at(0), "k", "1");
    node.put(at(1), "k", "2");
    node.sync_disk();
    // Each word carries a number, by which is seen which one counts.
    let heard = |node: &Node| node.sync.peers().find(|(id, _)| *id == OriginId(1)).expect("a peer").1.floor;
    let say = |node: &mut Node, number: u64, mine: u64, over: u64| {
        node.message(at(10), OriginId(1), &says(1, number, &[(0, 0, mine), (OVER, 0, over)]));
    };
    say(&mut node, 1, 2, 2);
    assert_eq!((heard(&node), node.sync.held_by(2)), (1, 2));
    say(&mut node, 2, 2, 1);
    assert_eq!(heard(&node), 1, "nothing has ended: an older one that was overtaken");
    node.sync.set_cut(end_at(&frames[0]));
    node.run();
    say(&mut node, 3, 1, 2);
    say(&mut node, 4, 1, 1);
    assert_eq!((heard(&node), node.sync.held_by(2)), (1, 2), "an older one still");
    say(&mut node, 5, 2, 1);
    assert_eq!((heard(&node), node.sync.held_by(2)), (5, 2), "it went back to the end");
    say(&mut node, 6, 1, 1);
    assert_eq!(heard(&node), 5);
}

// --- what is said enough for can be reached ---

/// Nobody may stand at an end that a liar asked for: then those beyond it have what those below it need.
#[test]
fn who_is_past_a_decided_end_gives_what_is_before_it_and_goes_back() {
    let mut liar = Liar::new(origin(OVER));
    let others = line(&mut liar.clone(), 3, "other");
    let frames = line(&mut liar, 4, "v");
    for held in 0..=2 {
        let (mut below, mut past, mut elsewhere) =
            (halted(0, &frames[..held]), halted(1, &frames), halted(2, &others));
        for node in [&mut below, &mut past, &mut elsewhere] {
            node.sync.set_cut(end_at(&frames[1]));
            node.run();
            node.sync_disk();
        }
        exchange(&mut below, &mut past, 10);
        assert_eq!(below.standing(origin(OVER)), end_at(&frames[1]), "from {held}");
        assert_eq!(below.sync.refused(Reason::BeyondCut), 0, "no more than that");
        let (snapshot, base) = below.donate().expect("it stands at the end");
        for node in [&mut past, &mut elsewhere] {
            assert!(node.donate().is_none(), "it has something that was decided away");
            assert_eq!(node.install(&snapshot, &base), Ok(()));
            assert_eq!(node.standing(origin(OVER)), end_at(&frames[1]));
        }
    }
}

#[test]
fn who_is_past_a_decided_end_on_another_branch_gives_nothing() {
    let mut liar = Liar::new(origin(OVER));
    let others = line(&mut liar.clone(), 3, "other");
    let frames = line(&mut liar, 2, "v");
    let (mut below, mut elsewhere) = (halted(0, &[]), halted(2, &others));
    for node in [&mut below, &mut elsewhere] {
        node.sync.set_cut(end_at(&frames[1]));
        node.run();
        node.sync_disk();
    }
    exchange(&mut below, &mut elsewhere, 10);
    assert_eq!(below.standing(origin(OVER)).last, 0);
}
