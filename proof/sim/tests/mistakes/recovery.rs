//! What a disk remembers. A lost disk is a lost promise: it must not come back under the identity that made it.

use super::table::{Table, with_rule, without};
use dwcp_base::{Mutant, Mutants, Sequence, Ticket};
use dwcp_pbft::Vote;

/// r1 prepared and committed A; its disk is replaced by a blank one; it starts as if nothing had happened, its links come
/// up, and the liar at r0 offers it B.
fn blank_disk(mutants: Mutants) -> Table {
    let mut table = Table::new(4, &[0], mutants);
    table.hand_all(0, &[1, 2, 3], &table.pre_prepare(0, 0, 1, b"A"));
    table.pass(|_| true);
    assert!((1..4).all(|id| table.seats[id].delivered.len() == 1));
    table.wipe(1);
    table.restart(1);
    table.link_up(1, 2);
    table.link_up(1, 3);
    table.pass(|letter| letter.to == 1 && !matches!(&letter.message, dwcp_pbft::Message::Decided(_)));
    table.hand(0, 1, table.pre_prepare(0, 0, 1, b"B"));
    table
}

/// Its peers show it the last vote they hold of it. Not knowing one's own signature means that the disk is not the one
/// that promised: the replica stops and says what to do.
#[test]
fn a_wiped_disk_does_not_vote_under_the_old_identity() {
    let table = blank_disk(with_rule());
    let reason = table.seats[1].halted.expect("it must not go on");
    assert!(reason.contains("dwcp member replace"), "{reason}");
    assert_eq!(table.contradiction(1), None);

    let table = blank_disk(without(Mutant::WipedDiskRejoins));
    assert_eq!(table.seats[1].halted, None);
    let contradiction = table.contradiction(1).expect("it signed both");
    assert_eq!((contradiction.claim.vote, contradiction.claim.sequence), (Vote::Prepare, Sequence(1)));
}

/// A disk that was copied back from yesterday is as bad as a blank one.
#[test]
fn a_disk_rolled_back_to_an_older_copy_does_not_vote() {
    let mut table = Table::new(4, &[0], with_rule());
    table.hand_all(0, &[1, 2, 3], &table.pre_prepare(0, 0, 1, b"A"));
    table.pass(|_| true);
    let copy = table.seats[1].disk.clone();
    table.hand_all(0, &[1, 2, 3], &table.pre_prepare(0, 0, 2, b"B"));
    table.pass(|_| true);
    table.crash(1);
    table.seat(1).disk = copy;
    table.restart(1);
    table.link_up(1, 2);
    table.pass(|letter| letter.to == 1 && matches!(&letter.message, dwcp_pbft::Message::Reminder(_)));
    assert!(table.seats[1].halted.is_some());
}

/// An intact disk is never turned away: cut the power after every single record, and the replica comes back, hears its
/// own votes from its peers, and goes on.
#[test]
fn an_intact_disk_comes_back_wherever_the_power_fails() {
    let story = |power_until: Option<u64>| {
        let mut table = Table::new(4, &[], with_rule());
        table.auto_sync = false;
        let mut failed = false;
        for round in 0..6 {
            if table.seat(0).core().room() > 0 {
                table.propose(0, b"payload");
            }
            for _ in 0..6 {
                (0..4).for_each(|id| table.sync(id));
                table.pass(|_| true);
                let written = table.seats[1].disk.last().map_or(0, |(ticket, _)| ticket.0);
                if !failed && power_until.is_some_and(|until| written >= until) {
                    failed = true;
                    // What was written so far but not synced is lost, up to this very record.
                    let until = Ticket(power_until.expect("it is some")).max(table.seats[1].synced);
                    table.seat(1).synced = until;
                    table.crash(1);
                    table.restart(1);
                    for peer in [0, 2, 3] {
                        table.link_up(1, peer);
                    }
                }
            }
            assert_eq!(table.seats[1].halted, None, "round {round}, power until {power_until:?}");
        }
        table.auto_sync = true;
        (0..4).for_each(|id| table.sync(id));
        table.run(1_000, |_| true, |_| {});
        assert_eq!(table.fork(), None);
        assert_eq!(table.contradiction(1), None);
        assert!((0..4).all(|id| table.seats[id].delivered.len() == 6), "{power_until:?}");
        table.seats[1].disk.last().map_or(0, |(ticket, _)| ticket.0)
    };
    let records = story(None);
    assert!(records >= 18, "a slot takes three records");
    for until in 1..=records {
        story(Some(until));
    }
}
