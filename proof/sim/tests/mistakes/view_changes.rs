//! OSDI '99 section 4.4 and TOCS '02 section 4.5: what a new view must carry over, and how it is proven.

use super::table::{Letter, Table, with_rule, without};
use bytes::Bytes;
use dwcp_base::{Hash, Mutant, Mutants, ReplicaId, Sequence, View};
use dwcp_pbft::{Message, Vote};
use std::cell::RefCell;

fn commit(letter: &Letter) -> bool {
    matches!(&letter.message, Message::Vote(vote) if vote.statement.claim.vote == Vote::Commit)
}

/// View 0: A is prepared by r0 alone. View 1, begun without r0: B is prepared by r1, r2, r3 and delivered by r1. View 2
/// begins without r1, on r0's old certificate and two newer ones.
fn an_old_certificate_against_newer_ones(mutants: Mutants) -> Table {
    let mut table = Table::new(4, &[], mutants);
    table.propose(0, b"A");
    table.pass(|letter| letter.to == 0 || (letter.from == 0 && letter.to != 3 && !commit(letter)));
    [1, 2, 3].iter().for_each(|id| table.leave(*id));
    table.pass_among(&[1, 2, 3]);
    assert_eq!(table.propose(1, b"B"), Sequence(1), "nobody in this view had prepared anything");
    table.pass(|letter| letter.from != 0 && letter.to != 0 && (letter.to == 1 || !commit(letter)));
    assert_eq!(table.seats[1].delivered[&Sequence(1)].as_ref(), b"B");

    [2, 3].iter().for_each(|id| table.leave(*id));
    table.leave(0);
    table.lose_all();
    // r0 asks for view 1 by itself; hearing of r2 and r3 it follows them to view 2. Its VIEW-CHANGE arrives first.
    table.link_up(0, 2);
    table.link_up(0, 3);
    table.link_up(2, 3);
    table.run(2_000, |letter| letter.from != 1 && letter.to != 1, |_| {});
    table
}

/// Of several prepared certificates for a slot the one of the highest view is carried over: only that one can have
/// been followed by a commit which later views saw. (OSDI '99 leaves the tie to "prepared certificates are ordered by
/// view"; TOCS '02 calls it condition A1.)
#[test]
fn a_new_view_carries_over_the_highest_proof_not_the_first() {
    let table = an_old_certificate_against_newer_ones(with_rule());
    assert_eq!(table.fork(), None);
    assert_eq!(
        table.seats[2].delivered[&Sequence(1)].as_ref(),
        b"B",
        "view 2 went on with what r1 had executed"
    );
    let table = an_old_certificate_against_newer_ones(without(Mutant::FirstProofNotHighest));
    assert_eq!(table.fork(), Some(Sequence(1)));
}

/// r0 lies. A was committed at r1 with the prepares of r1 and r2; r3 was shown B. r0's VIEW-CHANGE presents those
/// prepares, for A, under its own pre-prepare for B.
fn a_certificate_of_two_halves(mutants: Mutants) -> Table {
    let mut table = Table::new(4, &[0], mutants);
    table.hand_all(0, &[1, 2], &table.pre_prepare(0, 0, 1, b"A"));
    table.hand(0, 3, table.pre_prepare(0, 0, 1, b"B"));
    table.hand(0, 1, table.vote(0, Vote::Commit, 0, 1, b"A"));
    table.pass(|letter| letter.to != 3 && (letter.to == 1 || !commit(letter)));
    assert_eq!(table.seats[1].delivered[&Sequence(1)].as_ref(), b"A");
    [1, 2, 3].iter().for_each(|id| table.leave(*id));
    let forged = table.certificate(0, 1, b"B", &[(1, b"A"), (2, b"A")]);
    table.hand_all(0, &[1, 2, 3], &table.view_change(0, 1, vec![forged], &[(1, b"B", 0)]));
    table.pass_among(&[1, 2, 3]);
    table
}

/// A prepared certificate is a pre-prepare and prepares "with the same digest" (section 4.2). One that mixes digests
/// proves nothing.
#[test]
fn a_prepared_certificate_whose_digests_differ_is_refused() {
    let table = a_certificate_of_two_halves(with_rule());
    assert_eq!(table.fork(), None);
    let refused = (ReplicaId(0), "a prepared certificate whose votes do not match");
    assert!(table.seats[1].refused.contains(&refused));
    assert_eq!(table.seats[3].delivered[&Sequence(1)].as_ref(), b"A");
    let table = a_certificate_of_two_halves(without(Mutant::PreparedDigestUnchecked));
    assert_eq!(table.fork(), Some(Sequence(1)), "r1 executed A, the others B");
}

/// A is committed at r1 alone; then its view ends without r0, and r1's word and the others' decide what survives.
fn committed_at_one(mutants: Mutants) -> Table {
    let mut table = Table::new(4, &[], mutants);
    table.propose(0, b"A");
    table.pass(|letter| letter.to == 1 || !commit(letter));
    assert_eq!(table.seats[1].delivered.len(), 1);
    table.lose_all();
    // r1 is cut off from here on: r2 begins view 2 with r0 and r3.
    for _ in 0..2 {
        [0, 2, 3].iter().for_each(|id| table.leave(*id));
        table.pass_among(&[0, 2, 3]);
    }
    assert_eq!(table.seats[2].view(), View(2));
    if table.seat(2).core().room() > 0 && table.seats[2].delivered.is_empty() {
        table.propose(2, b"B");
    }
    table.pass_among(&[0, 2, 3]);
    table
}

/// What was prepared is what VIEW-CHANGEs are for: leaving it out undoes commits.
#[test]
fn a_view_change_tells_what_was_prepared() {
    let table = committed_at_one(with_rule());
    assert_eq!(table.fork(), None);
    assert_eq!(table.seats[3].delivered[&Sequence(1)].as_ref(), b"A");
    assert_eq!(committed_at_one(without(Mutant::ViewChangeForgetsPrepared)).fork(), Some(Sequence(1)));
}

/// r1, primary of view 1, lies: A was committed at r2, but its NEW-VIEW begins with B.
fn a_new_view_of_the_primarys_liking(mutants: Mutants) -> Table {
    let mut table = Table::new(4, &[1], mutants);
    table.propose(0, b"A");
    table.hand_all(1, &[0, 2, 3], &table.vote(1, Vote::Prepare, 0, 1, b"A"));
    table.pass(|letter| letter.to == 2 || !commit(letter));
    assert_eq!(table.seats[2].delivered[&Sequence(1)].as_ref(), b"A");
    [0, 2, 3].iter().for_each(|id| table.leave(*id));
    let mut named: Vec<(ReplicaId, Hash)> = table
        .wire
        .iter()
        .filter_map(|letter| match &letter.message {
            Message::ViewChange(body) if letter.to == 1 => Some((ReplicaId(letter.from), body.hash())),
            _ => None,
        })
        .collect();
    named.sort();
    named.dedup();
    table.pass_among(&[0, 2, 3]);
    table.hand_all(1, &[0, 3], &table.new_view(1, named, &[(1, b"B")]));
    // Both lack B and ask for it.
    let payload = Message::Payload { sequence: Sequence(1), payload: Bytes::from_static(b"B") };
    table.hand_all(1, &[0, 3], &payload);
    table.hand_all(1, &[0, 3], &table.vote(1, Vote::Commit, 1, 1, b"B"));
    table.pass_among(&[0, 3]);
    table
}

/// Section 4.4: a backup accepts a NEW-VIEW if O "is correct; it performs a computation similar to the one used by the
/// primary".
#[test]
fn a_new_view_is_recomputed_by_every_backup() {
    let table = a_new_view_of_the_primarys_liking(with_rule());
    assert_eq!(table.fork(), None);
    let refused = (ReplicaId(1), "a NEW-VIEW that does not follow from its VIEW-CHANGEs");
    assert!(table.seats[0].refused.contains(&refused));
    let table = a_new_view_of_the_primarys_liking(without(Mutant::NewViewUnchecked));
    assert_eq!(table.fork(), Some(Sequence(1)));
}

/// r0 is dead, and the first VIEW-CHANGE of each of the others is lost.
fn lost_view_changes(mutants: Mutants) -> Table {
    let mut table = Table::new(4, &[0], mutants);
    [1, 2, 3].iter().for_each(|id| table.leave(*id));
    table.lose_all();
    table.run(5_000, |_| true, |_| {});
    table
}

/// The paper assumes that messages are resent until they arrive (section 2). A VIEW-CHANGE said once and lost leaves
/// everybody waiting for a quorum that spoke already.
#[test]
fn a_lost_view_change_is_sent_again() {
    let mut table = lost_view_changes(with_rule());
    assert!((1..4).all(|id| table.seat(id).core().is_active()), "the survivors met in a view");
    let mut table = lost_view_changes(without(Mutant::ViewChangeSentOnce));
    assert!((1..4).all(|id| !table.seat(id).core().is_active()), "each waits for the others, for ever");
    assert!((1..4).all(|id| table.seat(id).view() == View(1)));
}

/// Slot 2 was prepared and slot 1 was not, so view 1 begins with a null request, which r1, r2 and r3 prepare. Then r2
/// dies, and r1 and r3 lose power inside the change to view 2; r0, which knows nothing, comes back.
fn a_null_request_and_a_power_failure(mutants: Mutants) -> Table {
    let mut table = Table::new(4, &[], mutants);
    table.propose(0, b"A");
    table.lose_all();
    table.propose(0, b"B");
    table.pass(|letter| !commit(letter) && letter.to != 0);
    [1, 2, 3].iter().for_each(|id| table.leave(*id));
    table.pass(|letter| letter.from != 0 && letter.to != 0 && !commit(letter));
    [1, 2, 3].iter().for_each(|id| table.leave(*id));
    table.lose_all();
    (0..4).for_each(|id| table.crash(id));
    for id in [0, 1, 3] {
        table.restart(id);
    }
    for (a, b) in [(0, 1), (1, 3), (0, 3)] {
        table.link_up(a, b);
    }
    table.everybody_waits(Some(table.now));
    table.run(20_000, |_| true, |_| {});
    table
}

/// A null request is a vote like any other. If it is not durable, then after a power failure nobody vouches for a slot
/// that was prepared with it, and no later view can begin.
#[test]
fn a_null_request_is_durable() {
    let table = a_null_request_and_a_power_failure(with_rule());
    assert_eq!(
        table.seats[3].delivered.get(&Sequence(1)),
        Some(&Bytes::new()),
        "the gap is the null request"
    );
    assert_eq!(table.seats[3].delivered[&Sequence(2)].as_ref(), b"B");
    let table = a_null_request_and_a_power_failure(without(Mutant::NullNotDurable));
    assert!(table.seats.iter().all(|seat| seat.delivered.is_empty()), "the log stands still for ever");
}

/// A is committed at r1. r2 and r3 lose power inside the change to view 1 and come back; the view begins with them
/// and r0, who lies and admits nothing.
fn restarted_inside_a_view_change(mutants: Mutants) -> Table {
    let mut table = Table::new(4, &[0], mutants);
    table.hand_all(0, &[1, 2, 3], &table.pre_prepare(0, 0, 1, b"A"));
    table.pass(|letter| letter.to == 1 || !commit(letter));
    assert_eq!(table.seats[1].delivered[&Sequence(1)].as_ref(), b"A");
    table.lose_all();
    [2, 3].iter().for_each(|id| table.leave(*id));
    table.lose_all();
    for id in [2, 3] {
        table.crash(id);
        table.restart(id);
    }
    table
}

/// A restart forgets nothing that was signed: not the view that was left, not what was prepared in it.
#[test]
fn a_restart_inside_a_view_change_remembers_what_was_promised() {
    let mut table = restarted_inside_a_view_change(with_rule());
    assert!([2, 3].iter().all(|id| table.seats[*id].view() == View(1)));
    assert!(!table.seat(2).core().is_active());
    // r0 tries to have view 0 go on with another payload.
    table.hand_all(0, &[2, 3], &table.pre_prepare(0, 0, 1, b"B"));
    table.hand_all(0, &[2, 3], &table.vote(0, Vote::Commit, 0, 1, b"B"));
    table.pass_among(&[2, 3]);
    assert_eq!((table.fork(), table.contradiction(2)), (None, None));
    // The VIEW-CHANGE goes out again by itself, and the view begins with what was prepared.
    table.link_up(1, 2);
    table.link_up(1, 3);
    table.run(2_000, |_| true, |_| {});
    assert_eq!(table.seats[3].delivered[&Sequence(1)].as_ref(), b"A");

    let mut table = restarted_inside_a_view_change(without(Mutant::ForgetVotesOnRestart));
    assert!([2, 3].iter().all(|id| table.seats[*id].view() == View(0)), "back in the view they had left");
    table.hand_all(0, &[2, 3], &table.pre_prepare(0, 0, 1, b"B"));
    table.hand_all(0, &[2, 3], &table.vote(0, Vote::Commit, 0, 1, b"B"));
    table.pass_among(&[2, 3]);
    assert!(table.contradiction(2).is_some());
    assert_eq!(table.fork(), Some(Sequence(1)));
}

/// Everybody is in view 2. With it all letters to r3 on the way there, which may come again.
fn two_views_later(mutants: Mutants) -> (Table, Vec<Letter>) {
    let mut table = Table::new(4, &[], mutants);
    let mut old = Vec::new();
    for _ in 0..2 {
        (0..4).for_each(|id| table.leave(id));
        let seen = RefCell::new(&mut old);
        table.pass(|letter| {
            if letter.to == 3 {
                seen.borrow_mut().push(letter.clone());
            }
            true
        });
    }
    assert_eq!(table.seats[3].view(), View(2));
    assert!(old.iter().any(|letter| matches!(letter.message, Message::NewView(_))));
    (table, old)
}

/// What became of r3's view, and how many records it wrote, when all these came again.
fn replay(table: &mut Table, old: &[Letter]) -> (View, usize) {
    let before = table.seats[3].disk.len();
    for letter in old {
        table.hand(letter.from, 3, letter.message.clone());
    }
    (table.seats[3].view(), table.seats[3].disk.len() - before)
}

/// A replayed NEW-VIEW of a view that is over changes nothing, nor do its VIEW-CHANGEs; also not for one that has lost power since.
/// One that forgets which views are over goes through them again, and signs what it signed before.
#[test]
fn messages_of_views_that_are_over_change_nothing() {
    let (mut table, old) = two_views_later(with_rule());
    assert_eq!(replay(&mut table, &old), (View(2), 0));
    assert!(table.seat(3).core().is_active());
    table.crash(3);
    table.restart(3);
    assert_eq!(replay(&mut table, &old), (View(2), 0));

    let (mut table, old) = two_views_later(without(Mutant::ForgetVotesOnRestart));
    table.crash(3);
    table.restart(3);
    assert_eq!(table.seats[3].view(), View(0), "it does not know of any other");
    let (view, written) = replay(&mut table, &old);
    assert!(view > View(0) && written > 0, "{view:?}, {written} records");
}
