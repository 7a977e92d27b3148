//! Each rule switched off, and what then goes wrong. A mutant that nothing catches means that nothing tests its rule.

use crate::histories;
use crate::liars;
use crate::net::Net;
use crate::world::{Liar, Node, at, members, origin, setup};
use dwcp_base::{Mutant, Mutants};
use dwcp_sync::Message;

fn breaks(play: impl Fn(u64) + std::panic::UnwindSafe + std::panic::RefUnwindSafe, seeds: u64) -> bool {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let caught = (0..seeds).any(|seed| std::panic::catch_unwind(|| play(seed)).is_err());
    std::panic::set_hook(hook);
    caught
}

fn off(mutant: Mutant) -> Mutants {
    Mutants::default().with(mutant)
}

fn play(seed: u64, mutant: Mutant) {
    histories::play(seed, off(mutant));
}

fn lie(seed: u64, mutant: Mutant) {
    liars::play(seed, off(mutant));
}

#[test]
fn the_harmless_one_breaks_nothing() {
    assert!(!breaks(|seed| play(seed, Mutant::Harmless), 10));
    assert!(!breaks(|seed| lie(seed, Mutant::Harmless), 10));
}

#[test]
fn frames_linked_by_number_alone_let_two_histories_live() {
    assert!(breaks(|seed| lie(seed, Mutant::SyncHashIgnored), 30));
}

#[test]
fn half_a_frame_leaves_replicas_different() {
    assert!(breaks(|seed| play(seed, Mutant::SyncFrameInPart), 20));
}

#[test]
fn dots_used_twice_are_a_lie() {
    assert!(breaks(|seed| play(seed, Mutant::SyncDotsReused), 60));
}

#[test]
fn a_liar_that_is_not_frozen_keeps_replicas_apart() {
    assert!(breaks(|seed| lie(seed, Mutant::SyncLiarNotFrozen), 60));
}

#[test]
fn frames_dropped_before_all_have_them_are_missed() {
    assert!(breaks(|seed| play(seed, Mutant::SyncCollectsWithoutFloor), 60));
}

#[test]
fn a_frame_sent_before_it_is_durable_is_denied_after_a_crash() {
    let mut setup = setup(origin(0), members(2));
    setup.mutants = off(Mutant::SyncPushBeforeSync);
    let mut node = Node::new(setup);
    node.put(at(0), "k", "shown");
    let (_, shown) = node.outbox.pop().expect("it is on its way already");
    node.crash(0, at(1));
    node.put(at(2), "k", "another");
    let (_, other) = node.outbox.pop().expect("a second frame with the same dot");
    let mut peer = Node::new(crate::world::setup(origin(1), members(2)));
    for message in [shown, other] {
        peer.message(at(5), origin(0).id, &message);
    }
    assert_eq!(peer.evidence.len(), 1, "an honest node stands convicted");
}

/// The clock's rule is the store's; what sync refuses is the trace it leaves in a chain.
#[test]
fn a_writer_whose_clock_forgets_what_it_saw_is_convicted_by_its_own_chain() {
    let mut net = Net::new(1, 2, Mutants::default());
    net.is_judged = false;
    let mut fast = Liar::new(origin(1));
    let first = fast.put(at(400), "k", "v");
    // The same writer with a store whose clock saw nothing of that.
    let mut forgetful = Liar::new(origin(1));
    forgetful.put(at(0), "filler", "v");
    forgetful.hash = first.hash();
    let second = forgetful.put(at(0), "k", "v");
    assert!(second.header().hlc < first.header().hlc && second.header().first == 2);
    for frame in [&first, &second] {
        let message = Message::Push { hops: 8, frame: frame.bytes().clone() }.to_bytes();
        net.nodes[0].message(at(400), origin(1).id, &message);
    }
    assert_eq!(net.nodes[0].evidence.len(), 1);
}
