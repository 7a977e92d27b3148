//! OSDI '99 section 4.5: "the algorithm must move to a new view if they are unable to execute a request", neither too
//! late nor too soon; and what Aardvark (NSDI '09) added: a primary that does just enough is faulty too.

use super::table::{Table, with_rule, without};
use bytes::Bytes;
use dwcp_base::{Hash, Micros, Mutant, Mutants, ReplicaId, Sequence, View};
use dwcp_pbft::{Message, SlotHeld, Standing, Vote};

/// The primary of whatever view proposes as soon as it may, until the request is executed; then nobody waits any more.
fn propose_when_possible(table: &mut Table) {
    for id in (0..4).filter(|id| table.seats[usize::from(*id)].pbft.is_some()).collect::<Vec<u8>>() {
        if !table.seat(id).delivered.is_empty() {
            table.seat(id).core().set_waiting(None);
        } else if table.seat(id).core().room() == 4 {
            table.propose(id, b"A");
        }
    }
}

/// Letters take 300 ms, so a backup needs 600 ms from an assignment to its execution; replicas wait 500 ms at first.
fn slower_than_the_timer(mutants: Mutants) -> Table {
    let mut table = Table::new(4, &[], mutants);
    table.delay = Micros::from_millis(300);
    table.everybody_waits(Some(table.now));
    table.run(30_000, |_| true, propose_when_possible);
    table
}

/// Section 4.5.2: "it waits 2T" in the next view. Timers that never grow keep a network that is slower than they are in
/// view changes for ever.
#[test]
fn timers_double_until_the_network_keeps_up() {
    let table = slower_than_the_timer(with_rule());
    assert!(table.seats.iter().all(|seat| seat.delivered.len() == 1));
    assert!(table.seats[0].view() <= View(4), "after a few views");
    let table = slower_than_the_timer(without(Mutant::TimerWithoutBackoff));
    assert!(table.seats.iter().all(|seat| seat.delivered.is_empty()), "nothing is ever executed");
    assert!(table.seats[0].view() >= View(10));
}

/// Once something was executed, patience is back to where it began: a dead primary later costs one timeout, not the sum
/// of all earlier trouble.
#[test]
fn patience_returns_with_progress() {
    let mut table = slower_than_the_timer(with_rule());
    table.delay = Micros::ZERO;
    table.everybody_waits(None);
    let primary = table.seat(0).core().primary().0;
    let view = table.seats[0].view();
    let others: Vec<u8> = (0..4).filter(|id| *id != primary).collect();
    // Progress with brisk letters, then the primary falls silent.
    table.propose(primary, b"B");
    table.pass(|_| true);
    assert!(table.seats.iter().all(|seat| seat.delivered.len() == 2));
    table.everybody_waits(Some(table.now));
    table.run(600, |letter| letter.from != primary && letter.to != primary, |_| {});
    assert!(
        others.iter().all(|id| table.seat(*id).core().view() == view.next()),
        "within 500 ms and a round"
    );
}

/// The primary proposes one payload every `pace_ms`, while there is always a request that waits.
fn at_this_pace(pace_ms: u64, mutants: Mutants) -> Table {
    let mut table = Table::new(4, &[], mutants);
    let pace = Micros::from_millis(pace_ms);
    table.everybody_waits(Some(table.now));
    let mut due = table.now.plus(pace);
    table.run(
        20_000,
        |_| true,
        |table| {
            if table.now >= due && table.seat(0).core().room() > 0 {
                table.propose(0, b"A");
                table.pass(|_| true);
                table.everybody_waits(Some(table.now));
                due = table.now.plus(pace);
            }
        },
    );
    table
}

/// A primary that proposes just before every timer runs out makes progress, a hundred times slower than it could.
#[test]
fn a_primary_that_is_slow_on_purpose_is_replaced() {
    let table = at_this_pace(450, with_rule());
    for id in 1..4 {
        assert!(table.seats[id].view() > View(0), "r{id} stays with a primary at nine tenths of the timer");
    }
    assert!((1..4).any(|id| table.seats[id].left.contains(&"the primary is slow")));
    assert!(table.seats[1].delivered.len() <= 20, "soon, not in the end");
    // Below the timer's least, nothing else betrays it.
    let table = at_this_pace(250, with_rule());
    assert!((1..4).all(|id| table.seats[id].view() > View(0)));
    let table = at_this_pace(250, without(Mutant::SlowPrimaryTolerated));
    assert!(table.seats.iter().all(|seat| seat.left.is_empty() && seat.view() == View(0)));
}

#[test]
fn a_primary_at_an_honest_pace_stays() {
    let table = at_this_pace(20, with_rule());
    assert!(table.seats.iter().all(|seat| seat.left.is_empty() && seat.view() == View(0)));
    assert!(table.seats[1].delivered.len() > 500);
}

/// The primary orders whatever comes, quickly, but for one client's request that everybody knows of.
fn censored(mutants: Mutants) -> Table {
    let mut table = Table::new(4, &[], mutants);
    let since = table.now;
    let mut due = table.now;
    table.everybody_waits(Some(since));
    table.run(
        10_000,
        |_| true,
        |table| {
            if table.now >= due && table.seat(0).core().room() > 0 {
                table.propose(0, b"another client's");
                due = table.now.plus(Micros::from_millis(20));
            }
            table.everybody_waits(Some(since));
        },
    );
    table
}

/// Progress for others is no progress for the one who waits.
#[test]
fn a_primary_that_censors_one_client_is_replaced() {
    let table = censored(with_rule());
    for id in 1..4 {
        assert!(table.seats[id].view() > View(0), "r{id} lets a request wait for ever");
    }
    assert!(table.seats[1].left.contains(&"a request is not served"));
    let table = censored(without(Mutant::CensorshipIgnored));
    assert!(table.seats.iter().all(|seat| seat.view() == View(0)), "the censor stays");
    assert!(table.seats[1].delivered.len() > 300, "and works");
}

/// r0 sends one half A and the other B, and no commit. The others watch what they accepted for so long.
fn equivocated(view_timeout: Micros) -> Table {
    let mut table = Table::new(4, &[0], with_rule());
    table.timing.view_timeout = view_timeout;
    for id in 1..4 {
        table.crash(id);
        table.restart(id);
    }
    table.hand_all(0, &[1], &table.pre_prepare(0, 0, 1, b"A"));
    table.hand_all(0, &[2, 3], &table.pre_prepare(0, 0, 1, b"B"));
    table.run(3_000, |_| true, propose_when_possible);
    assert_eq!(table.fork(), None);
    table
}

/// No request waits: the half-accepted slot itself is grounds to leave. The mistake, written out: nobody looks at the clock for it
/// (as if only for what clients wait for), and no resending ever gets the halves together.
#[test]
fn a_primary_that_equivocates_is_replaced_and_service_goes_on() {
    let table = equivocated(Micros::from_millis(500));
    assert!((1..4).all(|id| table.seats[id].view() == View(1) && table.seats[id].delivered.len() == 1));
    let table = equivocated(Micros::from_millis(60_000));
    assert!((1..4).all(|id| table.seats[id].view() == View(0) && table.seats[id].delivered.is_empty()));
}

/// Section 4.5.2: f + 1 VIEW-CHANGEs are joined, since one of them is honest. One alone is not, whatever view it names.
#[test]
fn one_replica_alone_moves_nobody() {
    let mut table = Table::new(4, &[3], with_rule());
    for view in [1, 2, 1_000_000, u64::MAX - 1, u64::MAX] {
        table.hand_all(3, &[0, 1, 2], &table.view_change(3, view, Vec::new(), &[]));
    }
    table.propose(0, b"A");
    table.pass(|_| true);
    assert!((0..3).all(|id| table.seats[id].view() == View(0) && table.seats[id].delivered.len() == 1));
    // With one honest replica more there are two, and the smaller view is followed.
    table.leave(2);
    table.pass(|_| true);
    assert!((0..3).all(|id| table.seats[id].view() == View(1)));
}

/// With f = 0, f + 1 is one: a single delayed replica must not drag the others along either.
#[test]
fn one_impatient_replica_of_three_moves_nobody() {
    let mut table = Table::new(3, &[], with_rule());
    table.leave(2);
    table.pass(|_| true);
    assert!([0, 1].iter().all(|id| table.seats[*id].view() == View(0)));
}

/// A NEW-VIEW that names no quorum of VIEW-CHANGEs is noise, also from the primary of the view it names.
#[test]
fn a_new_view_out_of_nothing_moves_nobody() {
    let mut table = Table::new(4, &[3], with_rule());
    let invented = [0u8, 1, 2].map(|id| (ReplicaId(id), Hash::of(&[id]))).to_vec();
    for view in [3, 403, u64::MAX] {
        for named in [Vec::new(), invented.clone()] {
            table.hand_all(3, &[0, 1, 2], &table.new_view(view, named, &[]));
        }
    }
    table.pass(|_| true);
    assert!((0..3).all(|id| table.seats[id].view() == View(0) && table.seat(id as u8).core().is_active()));
}

/// Nor does one that waits for VIEW-CHANGEs which do not exist keep a genuine one from being taken.
#[test]
fn a_new_view_that_waits_for_ever_does_not_block_a_genuine_one() {
    let mut table = Table::new(4, &[3], with_rule());
    let invented = [0u8, 1, 2].map(|id| (ReplicaId(id), Hash::of(&[id]))).to_vec();
    let bogus = table.new_view(3, invented, &[]);
    table.hand_all(3, &[0, 1, 2], &bogus);
    [0, 1, 2].iter().for_each(|id| table.leave(*id));
    table.hand_all(3, &[0, 1, 2], &bogus);
    table.pass_among(&[0, 1, 2]);
    assert!(table.seats[..3].iter().all(|seat| seat.view() == View(1)));
    assert!([0, 1, 2].iter().all(|id| table.seat(*id).core().is_active()));
}

/// What a peer says of itself is unsigned and may be anything; it steers retransmission and nothing else.
#[test]
fn an_absurd_standing_harms_nobody() {
    let mut table = Table::new(4, &[3], with_rule());
    let far = Sequence(u64::MAX);
    for view in [0, u64::MAX] {
        let standing = Standing {
            view: View(view),
            active: true,
            stable: far,
            executed: far,
            decided_from: Sequence::ZERO,
            snapshot: far,
            stuck: vec![SlotHeld { pre_prepare: true, prepared: false }; 64],
            answer: true,
        };
        table.hand_all(3, &[0, 1, 2], &Message::Standing(standing));
    }
    table.propose(0, b"A");
    table.run(2_000, |_| true, |_| {});
    assert!((0..3).all(|id| table.seats[id].delivered[&Sequence(1)] == Bytes::from_static(b"A")));
    assert!((0..3).all(|id| table.seats[id].view() == View(0)));
}

/// Any message may be lost once: standings tell what is missing, and whoever has it sends it again.
#[test]
fn every_lost_letter_of_the_normal_case_heals() {
    let kinds: [fn(&Message) -> bool; 3] = [
        |message| matches!(message, Message::PrePrepare { .. }),
        |message| matches!(message, Message::Vote(vote) if vote.statement.claim.vote == Vote::Prepare),
        |message| matches!(message, Message::Vote(vote) if vote.statement.claim.vote == Vote::Commit),
    ];
    for lost in kinds {
        let mut table = Table::new(4, &[], with_rule());
        table.propose(0, b"A");
        table.pass(|letter| !lost(&letter.message));
        assert!(table.seats[1].delivered.is_empty());
        table.run(450, |_| true, |_| {});
        assert!(table.seats.iter().all(|seat| seat.delivered.len() == 1), "healed");
        assert!(table.seats.iter().all(|seat| seat.left.is_empty()), "before anybody lost patience");
    }
}
