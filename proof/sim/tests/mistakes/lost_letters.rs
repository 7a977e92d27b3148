//! OSDI '99 section 2 assumes that messages are resent until they arrive; here nothing is resent by itself, and standings tell
//! what is missing. Each kind of letter is lost once, all of that kind at the same moment, and what it was for comes about all the
//! same. The normal case's are in `liveness`.

use super::checkpoints::filled_with;
use super::table::{Letter, Table, with_rule};
use dwcp_base::{Sequence, View};
use dwcp_pbft::{Message, Vote};
use dwcp_replica::{Event, PeerMessage};
use std::cell::Cell;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

fn checkpoint(letter: &Letter) -> bool {
    matches!(&letter.message, Message::Vote(vote) if vote.statement.claim.vote == Vote::Checkpoint)
}

/// Loses what is `lost` and counts it.
fn losing<'a>(lost: impl Fn(&Letter) -> bool + 'a, count: &'a Cell<usize>) -> impl Fn(&Letter) -> bool + 'a {
    move |letter| {
        let is_lost = lost(letter);
        count.set(count.get() + usize::from(is_lost));
        !is_lost
    }
}

/// r0 is dead, and the others have asked for view 1.
fn after_a_dead_primary() -> Table {
    let mut table = Table::new(4, &[0], with_rule());
    [1, 2, 3].iter().for_each(|id| table.leave(*id));
    table
}

fn all_are_in_view_1(table: &mut Table) -> bool {
    (1..4).all(|id| table.seat(id).view() == View(1) && table.seat(id).core().is_active())
}

#[test]
fn a_lost_new_view_is_sent_again_before_anybody_goes_on_to_the_next() {
    let (mut table, lost) = (after_a_dead_primary(), Cell::new(0));
    table.pass(losing(|letter| matches!(letter.message, Message::NewView(_)), &lost));
    assert!(lost.get() >= 2 && table.seat(1).core().is_active());
    assert!([2, 3].iter().all(|id| !table.seat(*id).core().is_active()), "they wait for it");
    table.run(450, |_| true, |_| {});
    assert!(all_are_in_view_1(&mut table));
    assert!(table.seats[1..].iter().all(|seat| seat.left.len() == 1), "nobody lost patience with view 1");
}

/// r3 did not get r2's VIEW-CHANGE, which the NEW-VIEW names, and its question for it is lost.
#[test]
fn a_lost_question_for_a_view_change_is_asked_again() {
    let (mut table, lost) = (after_a_dead_primary(), Cell::new(0));
    let without_r2s = |letter: &Letter| {
        letter.to == 3 && letter.from == 2 && matches!(letter.message, Message::ViewChange(_))
    };
    table.pass(losing(
        |letter| matches!(letter.message, Message::FetchViewChange { .. }) || without_r2s(letter),
        &lost,
    ));
    assert!([1, 2].iter().all(|id| table.seat(*id).core().is_active()));
    assert!(!table.seat(3).core().is_active() && lost.get() >= 2, "it asked, and nobody heard");
    // r2's own letter stays lost: by asking alone it is had.
    table.run(450, |letter| !without_r2s(letter), |_| {});
    assert!(all_are_in_view_1(&mut table));
    assert!(table.seats[1..].iter().all(|seat| seat.left.len() == 1), "nobody lost patience with view 1");
}

/// Eight slots, after which everybody signs the state; what is `lost` is lost.
fn eight_slots(lost: impl Fn(&Letter) -> bool) -> Table {
    let mut table = Table::new(4, &[], with_rule());
    for _ in 0..8 {
        table.propose(0, b"payload");
        table.pass(|letter| !lost(letter));
    }
    assert!(table.seats.iter().all(|seat| seat.delivered.len() == 8));
    table
}

fn stable(table: &mut Table) -> Vec<u64> {
    (0..4).map(|id| table.seat(id).core().stable_sequence().0).collect()
}

#[test]
fn lost_checkpoints_are_sent_again_and_become_stable() {
    let mut table = eight_slots(checkpoint);
    assert_eq!(stable(&mut table), [0; 4]);
    table.run(450, |_| true, |_| {});
    assert_eq!(stable(&mut table), [8; 4]);
}

/// r3 hears no CHECKPOINT of others, who then have the certificate and show it instead; that is lost too.
#[test]
fn a_lost_proof_of_a_stable_checkpoint_is_shown_again() {
    let mut table = eight_slots(|letter| letter.to == 3 && checkpoint(letter));
    assert_eq!(stable(&mut table), [8, 8, 8, 0]);
    let lost = Cell::new(0);
    table.run(450, losing(|letter| matches!(letter.message, Message::Stable(_)), &lost), |_| {});
    assert!(lost.get() >= 1);
    assert_eq!(table.seat(3).core().stable_sequence(), Sequence::ZERO);
    table.run(450, |letter| !checkpoint(letter), |_| {});
    assert_eq!(stable(&mut table), [8; 4]);
}

/// r3 slept through more than others keep, and everything of a kind that is sent to it within a second is lost. Then nothing is.
fn asleep_and_deaf_for_a_second(cut: fn(u8, u8, &PeerMessage) -> bool, lost: &AtomicUsize) {
    let mut cluster = filled_with(7, with_rule());
    cluster.cut = Some(cut);
    cluster.start(3);
    cluster.run(1_000);
    let finished = |event: &Event| matches!(event, Event::StateTransferFinished { .. });
    assert!(lost.load(Relaxed) >= 1, "somebody answered");
    assert_eq!(cluster.events(3, finished), 0, "it has no state to take");
    cluster.cut = None;
    cluster.run(4_000);
    assert_eq!(cluster.events(3, finished), 1);
    assert_eq!(cluster.events(3, |event| matches!(event, Event::DonorDropped { .. })), 0, "nobody lied");
    assert!(cluster.agreed(&[0, 1, 2, 3]));
}

#[test]
fn lost_offers_of_a_snapshot_are_asked_for_again() {
    static LOST: AtomicUsize = AtomicUsize::new(0);
    let cut = |_, to, message: &PeerMessage| {
        let is_lost = to == 3 && matches!(message, PeerMessage::Offer(_));
        LOST.fetch_add(usize::from(is_lost), Relaxed);
        is_lost
    };
    asleep_and_deaf_for_a_second(cut, &LOST);
}

#[test]
fn lost_chunks_of_a_snapshot_are_asked_for_again() {
    static LOST: AtomicUsize = AtomicUsize::new(0);
    let cut = |_, to, message: &PeerMessage| {
        let is_lost = to == 3 && matches!(message, PeerMessage::Chunk { .. });
        LOST.fetch_add(usize::from(is_lost), Relaxed);
        is_lost
    };
    asleep_and_deaf_for_a_second(cut, &LOST);
}
