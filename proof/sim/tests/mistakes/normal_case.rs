//! OSDI '99 sections 3 to 4.2: quorums, who signs what, and the three phases.

use super::table::{INVALID, Table, genesis, vote_crypto, with_rule, without};
use bytes::Bytes;
use dwcp_base::{Incarnation, Mutant, Mutants, ReplicaId, Sequence, Ticket, View};
use dwcp_pbft::{Certificate, Decided, Message, Record, Signed, Statement, Vote, Voucher};

/// Five replicas, the primary r0 lies: one payload for r1 and r2, another for r3 and r4, and its own commit to each half.
fn two_halves_of_five(mutants: Mutants) -> Table {
    let mut table = Table::new(5, &[0], mutants);
    for (payload, half) in [(b"A", [1, 2]), (b"B", [3, 4])] {
        table.hand_all(0, &half, &table.pre_prepare(0, 0, 1, payload));
        table.hand_all(0, &half, &table.vote(0, Vote::Commit, 0, 1, payload));
    }
    table.pass(|letter| (letter.from <= 2) == (letter.to <= 2));
    table
}

/// Section 3 needs two quorums to share an honest replica. 2f + 1 does so only when n = 3f + 1: at n = 5 two groups of
/// three meet in the liar alone.
#[test]
fn a_quorum_of_2f_plus_1_forks_five_replicas() {
    let table = two_halves_of_five(with_rule());
    assert_eq!(table.fork(), None);
    assert!(table.seats.iter().all(|seat| seat.delivered.is_empty()), "no half is a quorum of four");

    let table = two_halves_of_five(without(Mutant::QuorumTwoFPlusOne));
    assert_eq!(table.fork(), Some(Sequence(1)), "both halves deliver");
}

/// The larger quorum must still be reached by the honest alone.
#[test]
fn four_honest_of_five_are_enough() {
    let mut table = Table::new(5, &[4], with_rule());
    table.propose(0, b"A");
    table.pass(|_| true);
    assert!(table.seats[..4].iter().all(|seat| seat.delivered.len() == 1));
}

/// The liar at seat 0 speaks for everybody: one payload to r1, another to r2, with forged votes under each.
fn forger(mutants: Mutants) -> Table {
    let mut table = Table::new(4, &[0], mutants);
    for (payload, victim) in [(b"A", 1), (b"B", 2)] {
        table.hand(0, victim, table.pre_prepare(0, 0, 1, payload));
        for name in [0, 1, 2, 3] {
            // Signed with the liar's key, in another's name.
            let claim = Table::claim(Vote::Commit, 0, 1, payload);
            let statement = Statement { claim, sender: ReplicaId(name), incarnation: Incarnation(0) };
            let forged = Signed::new(statement, table.cluster(), &vote_crypto(0));
            table.hand(0, victim, Message::Vote(forged));
        }
    }
    table
}

/// Section 2: the adversary cannot forge signatures, provided that somebody looks at them.
#[test]
fn a_vote_in_anothers_name_does_not_count() {
    assert_eq!(forger(with_rule()).fork(), None);
    assert_eq!(forger(without(Mutant::SignatureUnchecked)).fork(), Some(Sequence(1)));
}

/// Commits that honest replicas signed for another cluster with the same keys and members.
fn replay_of_another_cluster(mutants: Mutants) -> Table {
    let mut table = Table::new(4, &[0], mutants);
    let elsewhere = genesis(4, "another").cluster();
    assert_ne!(elsewhere, table.cluster());
    table.hand(0, 1, table.pre_prepare(0, 0, 1, b"A"));
    for name in [0, 2, 3] {
        let claim = Table::claim(Vote::Commit, 0, 1, b"A");
        let statement = Statement { claim, sender: ReplicaId(name), incarnation: Incarnation(0) };
        table.hand(0, 1, Message::Vote(Signed::new(statement, elsewhere, &vote_crypto(name))));
    }
    table
}

#[test]
fn a_vote_signed_for_another_cluster_is_not_replayed_here() {
    assert!(replay_of_another_cluster(with_rule()).seats[1].delivered.is_empty());
    assert_eq!(replay_of_another_cluster(without(Mutant::SignatureUnchecked)).seats[1].delivered.len(), 1);
}

/// Votes name the configuration and the incarnation they were made under; neither can be carried over to the next.
#[test]
fn a_vote_of_another_configuration_or_incarnation_does_not_count() {
    let cast = |configuration: u32, incarnation: u32, mutants: Mutants| {
        let mut table = Table::new(4, &[0], mutants);
        table.hand(0, 1, table.pre_prepare(0, 0, 1, b"A"));
        for name in [0, 2, 3] {
            let mut claim = Table::claim(Vote::Commit, 0, 1, b"A");
            claim.configuration.0 = configuration;
            let statement =
                Statement { claim, sender: ReplicaId(name), incarnation: Incarnation(incarnation) };
            let vote = Signed::new(statement, table.cluster(), &vote_crypto(name));
            table.hand(0, 1, Message::Vote(vote));
        }
        table.seats[1].delivered.len()
    };
    assert_eq!(cast(1, 0, with_rule()), 1, "the very votes count when they name what is in force");
    for (configuration, incarnation) in [(2, 0), (0, 0), (1, 1)] {
        assert_eq!(cast(configuration, incarnation, with_rule()), 0);
        assert_eq!(cast(configuration, incarnation, without(Mutant::ConfigurationUnchecked)), 1);
    }
}

/// The liar sends its commit for A three times to r1, and for B three times to r2.
fn one_voice_three_times(mutants: Mutants) -> Table {
    let mut table = Table::new(4, &[0], mutants);
    for (payload, victim) in [(b"A", 1), (b"B", 2)] {
        table.hand(0, victim, table.pre_prepare(0, 0, 1, payload));
        for _ in 0..3 {
            table.hand(0, victim, table.vote(0, Vote::Commit, 0, 1, payload));
        }
    }
    table
}

/// Section 4.2: certificates need messages "from different replicas".
#[test]
fn a_sender_counts_once() {
    assert_eq!(one_voice_three_times(with_rule()).fork(), None);
    assert_eq!(one_voice_three_times(without(Mutant::DuplicateVotesCounted)).fork(), Some(Sequence(1)));
}

/// The same within a certificate that somebody presents as a whole.
#[test]
fn a_certificate_that_lists_a_sender_twice_is_refused() {
    let present = |senders: [u8; 3], mutants: Mutants| {
        let mut table = Table::new(4, &[0], mutants);
        let claim = Table::claim(Vote::Commit, 0, 1, b"A");
        let vouchers = senders.map(|id| Voucher {
            sender: ReplicaId(id),
            incarnation: Incarnation(0),
            signature: table.signed(id, claim).signature,
        });
        let certificate = Certificate { claim, vouchers: vouchers.to_vec() };
        let decided = Decided { certificate, payload: Bytes::from_static(b"A") };
        table.hand(0, 1, Message::Decided(vec![decided]));
        table.seats[1].delivered.len()
    };
    assert_eq!(present([0, 2, 3], with_rule()), 1);
    assert_eq!(present([0, 0, 0], with_rule()), 0);
    assert_eq!(present([0, 0, 3], with_rule()), 0);
    assert_eq!(present([0, 0, 0], without(Mutant::DuplicateVotesCounted)), 1);
}

/// r0 offers A to all; r1 and r3 prepare it. Then it offers B to r1, r2 and r3, who are to prepare that instead.
fn equivocation(mutants: Mutants) -> Table {
    let mut table = Table::new(4, &[0], mutants);
    table.hand_all(0, &[1, 3], &table.pre_prepare(0, 0, 1, b"A"));
    table.pass_among(&[1, 3]);
    table.hand_all(0, &[1, 2, 3], &table.pre_prepare(0, 0, 1, b"B"));
    table.pass(|letter| letter.to == 2);
    table
}

/// Section 4.2: a backup accepts a pre-prepare if it "has not accepted a pre-prepare for view v and sequence number n
/// containing a different digest". That is all that stands between an equivocating primary and two prepared digests.
#[test]
fn a_backup_accepts_one_digest_for_a_slot_of_a_view() {
    let table = equivocation(with_rule());
    assert_eq!(table.prepared_twice(), None);
    assert!([1, 3].iter().all(|id| table.contradiction(*id).is_none()));

    let table = equivocation(without(Mutant::PrepareTwice));
    assert_eq!(table.prepared_twice(), Some((View(0), Sequence(1))));
    assert!(table.contradiction(1).is_some(), "r1 signed prepares of both");
}

/// In view 0 r0 proposed A and r2, r3 prepared it. Now r1, primary of view 1, lies: it offers A to r0 together with
/// the old prepares, and B to r2 and r3.
fn old_votes_in_a_new_view(mutants: Mutants) -> Table {
    let mut table = Table::new(4, &[1], mutants);
    table.propose(0, b"A");
    table.pass(|letter| letter.from == 0 && [2, 3].contains(&letter.to));
    table.lose_all();
    [0, 2, 3].iter().for_each(|id| table.leave(*id));
    let mut named = Vec::new();
    for letter in &table.wire {
        if let Message::ViewChange(body) = &letter.message
            && letter.to == 1
        {
            named.push((ReplicaId(letter.from), body.hash()));
        }
    }
    named.sort();
    named.dedup();
    table.pass_among(&[0, 2, 3]);
    table.hand_all(1, &[0, 2, 3], &table.new_view(1, named, &[]));
    assert!([0, 2, 3].iter().all(|id| table.seats[*id].view() == View(1)));
    table.hand(1, 0, table.pre_prepare(1, 1, 1, b"A"));
    for old in [2, 3] {
        table.hand(1, 0, table.vote(old, Vote::Prepare, 0, 1, b"A"));
    }
    table.hand_all(1, &[2, 3], &table.pre_prepare(1, 1, 1, b"B"));
    table.pass_among(&[2, 3]);
    table
}

/// Section 4.2: a replica prepares with prepares that "have the same view". Replayed ones of an earlier view are no proof
/// of anything in this one.
#[test]
fn votes_of_an_earlier_view_do_not_count_in_this_one() {
    assert_eq!(old_votes_in_a_new_view(with_rule()).prepared_twice(), None);
    let table = old_votes_in_a_new_view(without(Mutant::StaleViewVotesCounted));
    assert_eq!(table.prepared_twice(), Some((View(1), Sequence(1))));
}

/// r0 lies. r1 and r2 vote for A although their disks have synced nothing; both lose power, and r0 offers them B.
fn power_failure(mutants: Mutants, synced_in_time: bool) -> Table {
    let mut table = Table::new(4, &[0], mutants);
    table.auto_sync = false;
    table.hand_all(0, &[1, 2, 3], &table.pre_prepare(0, 0, 1, b"A"));
    for _ in 0..3 {
        table.sync(3);
        if synced_in_time {
            table.sync(1);
            table.sync(2);
        }
        table.pass_among(&[1, 2, 3]);
    }
    for id in [1, 2] {
        table.crash(id);
        table.restart(id);
    }
    table.auto_sync = true;
    table.hand_all(0, &[1, 2], &table.pre_prepare(0, 0, 1, b"B"));
    table.hand_all(0, &[1, 2], &table.vote(0, Vote::Commit, 0, 1, b"B"));
    table.pass_among(&[1, 2]);
    table
}

/// A vote is a promise for ever, so it is durable before it leaves (section 2 lets replicas fail, not forget).
#[test]
fn a_vote_leaves_only_when_it_is_durable() {
    let table = power_failure(with_rule(), false);
    assert!(table.seats[3].delivered.is_empty(), "what was not synced was not said");
    assert_eq!((table.fork(), table.contradiction(1)), (None, None));

    let table = power_failure(with_rule(), true);
    assert_eq!(table.seats[3].delivered[&Sequence(1)].as_ref(), b"A");
    assert_eq!((table.fork(), table.contradiction(1)), (None, None), "what was synced is remembered");

    let table = power_failure(without(Mutant::VoteBeforeSync), false);
    assert!(table.contradiction(1).is_some());
    assert_eq!(table.fork(), Some(Sequence(1)), "r3 delivered A, r1 delivers B");
}

/// The tickets that votes wait for are those of the records that hold them.
#[test]
fn every_vote_names_the_record_that_remembers_it() {
    let mut table = Table::new(4, &[0], with_rule());
    table.auto_sync = false;
    table.hand(0, 1, table.pre_prepare(0, 0, 1, b"A"));
    let seat = &table.seats[1];
    assert!(matches!(seat.disk.last(), Some((Ticket(1), Record::PrePrepared { payload: Some(_), .. }))));
    assert!(table.wire.is_empty() && seat.said.is_empty());
    table.sync(1);
    assert_eq!(table.seats[1].said.len(), 1);
}

/// r0 assigns A to r1 and r2 and dies; r2 and r3, having left with a VIEW-CHANGE that knows nothing of it being
/// prepared, begin view 1 with another payload.
fn executed_too_early(mutants: Mutants) -> Table {
    let mut table = Table::new(4, &[0], mutants);
    table.hand(0, 1, table.pre_prepare(0, 0, 1, b"A"));
    table.lose_all();
    [1, 2, 3].iter().for_each(|id| table.leave(*id));
    table.pass_among(&[1, 2, 3]);
    if table.seats[1].core().room() > 0 {
        let sequence = table.propose(1, b"B");
        assert!(sequence <= Sequence(2));
    }
    table.pass_among(&[2, 3, 1]);
    table
}

/// Section 4.2: committed-local needs a quorum of commits; an answer before that promises what a view change may undo.
#[test]
fn nothing_is_executed_or_answered_before_it_is_committed() {
    let table = executed_too_early(with_rule());
    assert_eq!(table.fork(), None);
    assert_eq!(table.seats[3].delivered[&Sequence(1)].as_ref(), b"B");

    let table = executed_too_early(without(Mutant::ReplyBeforeCommit));
    assert_eq!(
        table.seats[1].delivered[&Sequence(1)].as_ref(),
        b"A",
        "r1 executed, and would have answered, what"
    );
    assert!(
        !table.seats[2].delivered.values().any(|payload| payload.as_ref() == b"A"),
        "nobody else ever will"
    );
}

/// A prepared slot may still be undone by a view change that its holder is not part of.
fn executed_when_prepared(mutants: Mutants) -> Table {
    let mut table = Table::new(4, &[0], mutants);
    table.hand_all(0, &[1, 2, 3], &table.pre_prepare(0, 0, 1, b"A"));
    // r1 alone hears the prepares.
    table.pass(|letter| letter.to == 1);
    // r1 is cut off. r0 joins the others with VIEW-CHANGEs that admit nothing; view 1 would be r1's.
    for view in [1, 2] {
        [2, 3].iter().for_each(|id| table.leave(*id));
        table.hand_all(0, &[2, 3], &table.view_change(0, view, Vec::new(), &[]));
        table.pass_among(&[2, 3]);
    }
    assert!(table.seats[2].core().is_active());
    table.propose(2, b"B");
    table.hand_all(0, &[2, 3], &table.vote(0, Vote::Prepare, 2, 1, b"B"));
    table.hand_all(0, &[2, 3], &table.vote(0, Vote::Commit, 2, 1, b"B"));
    table.pass_among(&[2, 3]);
    table
}

#[test]
fn nothing_is_executed_when_merely_prepared() {
    let table = executed_when_prepared(with_rule());
    assert_eq!(table.fork(), None);
    assert_eq!(table.seats[2].delivered[&Sequence(1)].as_ref(), b"B", "the view change was free to choose");
    assert_eq!(executed_when_prepared(without(Mutant::ExecutePrepared)).fork(), Some(Sequence(1)));
}

/// Slots execute in order, whatever order they are decided in.
#[test]
fn a_decided_slot_waits_for_those_before_it() {
    let decide = |mutants| {
        let mut table = Table::new(4, &[0], mutants);
        for (sequence, payload) in [(2, b"B"), (1, b"A")] {
            table.hand(0, 1, table.pre_prepare(0, 0, sequence, payload));
            for name in [0, 2, 3] {
                table.hand(0, 1, table.vote(name, Vote::Commit, 0, sequence, payload));
            }
            if sequence == 2 && table.seats[1].delivered.contains_key(&Sequence(2)) {
                return "out of order";
            }
        }
        assert_eq!(table.seats[1].delivered.len(), 2);
        "in order"
    };
    assert_eq!(decide(with_rule()), "in order");
    assert_eq!(decide(without(Mutant::ExecuteOutOfOrder)), "out of order");
}

/// What the application refuses is not prepared, whoever proposes it.
#[test]
fn a_payload_that_the_application_refuses_is_not_prepared() {
    let mut table = Table::new(4, &[0], with_rule());
    table.hand_all(0, &[1, 2, 3], &table.pre_prepare(0, 0, 1, INVALID));
    assert!(table.wire.is_empty() && table.seats.iter().all(|seat| seat.disk.is_empty()));
}

/// Slots and votes this replica keeps, counted from outside.
fn kept(table: &mut Table, id: u8) -> usize {
    format!("{:?}", table.seat(id).core()).matches("Slot {").count()
}

fn flood(mutants: Mutants) -> (usize, usize) {
    let mut table = Table::new(4, &[3], mutants);
    for sequence in 0..500 {
        table.hand(3, 1, table.vote(3, Vote::Prepare, 0, 1_000 + sequence, b"A"));
    }
    (kept(&mut table, 1), table.seat(1).core().slots_ahead())
}

/// Section 4.2: "h < n <= H". Without the high watermark one liar fills everybody's memory.
#[test]
fn votes_beyond_the_window_are_not_kept() {
    assert_eq!(flood(with_rule()), (0, 0));
    assert_eq!(flood(without(Mutant::NoWatermarks)), (500, 500));
}

/// What r1 keeps of a liar that sends votes of the next view, votes of a view far ahead, and large proposals of the view it
/// is primary of.
fn kept_of_a_flood(mutants: Mutants) -> (usize, usize) {
    let mut table = Table::new(4, &[3], mutants);
    let big: &'static [u8] = Box::leak(vec![7; 1 << 20].into_boxed_slice());
    for number in 0..20 {
        table.hand(3, 1, table.pre_prepare(3, 3, number + 1, big));
    }
    for number in 0..600 {
        table.hand(3, 1, table.vote(3, Vote::Prepare, 1, number + 1, b"A"));
        table.hand(3, 1, table.vote(3, Vote::Prepare, 1_000_000 + number, 1, b"A"));
        let (messages, bytes) = table.seat(1).core().kept_for_later(ReplicaId(3));
        let bounded = messages <= 512 && bytes <= 8 << 20;
        assert!(bounded || mutants.any(), "{messages} messages, {bytes} bytes");
    }
    table.seat(1).core().kept_for_later(ReplicaId(3))
}

/// Messages of views to come are kept, since they cannot be judged yet, but only so many and only near ones.
#[test]
fn messages_of_far_views_do_not_pile_up() {
    let (messages, bytes) = kept_of_a_flood(with_rule());
    assert_eq!((messages, bytes <= 8 << 20), (512, true), "the sender's share is full and stays so");
    let (messages, bytes) = kept_of_a_flood(without(Mutant::NoWatermarks));
    assert!(messages > 1_000 && bytes > 8 << 20, "{messages} messages, {bytes} bytes");
}

/// A slot that we know to be decided is not an invitation to believe whatever is said about it.
#[test]
fn a_decision_without_proof_is_refused_even_where_ours_lacks_its_payload() {
    let mut table = Table::new(4, &[3], with_rule());
    for id in [0, 2, 3] {
        table.hand(id, 1, table.vote(id, Vote::Commit, 0, 1, b"A"));
    }
    let decided = |payload: &'static [u8]| {
        let claim = Table::claim(Vote::Commit, 0, 1, payload);
        let certificate = Certificate { claim, vouchers: Vec::new() };
        Message::Decided(vec![Decided { certificate, payload: Bytes::from_static(payload) }])
    };
    table.hand(3, 1, decided(b"B"));
    assert!(table.seats[1].delivered.is_empty(), "a liar's word was delivered");
    table.hand(3, 1, decided(b"A"));
    assert_eq!(
        table.seats[1].delivered[&Sequence(1)].as_ref(),
        b"A",
        "our own proof needed only the payload"
    );
}
