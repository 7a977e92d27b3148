//! How a segment ends, and how its log is kept short: sealing, the Marker, discarding and installing, and the bounds at
//! which a caller is told to wait.

use crate::net::{EPOCH, Net, base, batch};
use crate::one::{One, append, entry, marker, places, records};
use dwcp_base::{Epoch, Mutants, ReplicaId, Ticket};
use dwcp_log::VirtualLog;
use dwcp_raft::{
    Action, Index, InstallError, Limits, OpenError, Payload, Place, ProposeError, Raft, RaftNode, ReadError,
    Said, Term, TransferError,
};

// Sealing.

#[test]
fn a_sealed_member_says_nothing_more_and_still_serves_its_entries() {
    let mut one = One::new(3, 2);
    let log = [entry(1, "a"), entry(1, "b")];
    let at = places(&log);
    one.hear(0, 1, append(at[0], 1, &log));
    let sealed = one.raft.seal(one.at());
    one.settle();
    assert_eq!(sealed.point, at[2]);
    assert_eq!(one.records.len() as u64, sealed.ticket.0, "the seal is the last record");
    one.said();
    let heard = [
        Said::Vote { last: at[2], transfer: true },
        Said::PreVote { last: at[2] },
        append(at[2], 2, &[entry(2, "c")]),
        Said::Heartbeat { commit: Index(2), round: 3 },
        Said::TimeoutNow,
    ];
    for said in heard {
        one.hear(0, 9, said);
    }
    one.wait(100_000);
    assert_eq!(one.said(), []);
    assert_eq!(one.refused(), ["sealed"; 5]);
    assert_eq!(one.raft.propose(one.at(), &batch("x")), Err(ProposeError::Sealed));
    assert_eq!(one.raft.read_index(one.at(), 1), Err(ReadError::Sealed));
    assert_eq!(one.raft.transfer_leadership(one.at(), ReplicaId(0)), Err(TransferError::Ending));
    assert_eq!(one.raft.install(one.at(), at[2]), Err(InstallError::Sealed));
    assert_eq!(one.raft.entries(Index(1), Index(2), usize::MAX), log);
    assert_eq!(one.raft.seal(one.at()), sealed, "sealing again changes nothing");
    assert_eq!((one.raft.last(), one.raft.term()), (at[2], Term(1)));
}

#[test]
fn a_seal_survives_a_restart_and_an_unwritten_one_binds_nobody() {
    let mut one = One::new(3, 2);
    one.hear(0, 1, append(base(), 0, &[entry(1, "a")]));
    let unsealed = one.records.clone();
    let sealed = one.raft.seal(one.at());
    one.settle();
    one.restart();
    assert_eq!(one.raft.sealed(), Some(sealed.point));
    one.hear(0, 1, Said::Heartbeat { commit: Index(1), round: 0 });
    assert_eq!(one.refused(), ["sealed"]);
    one.records = unsealed;
    one.restart();
    assert_eq!(one.raft.sealed(), None);
}

#[test]
fn a_seal_covers_what_was_not_yet_written() {
    let mut one = One::new(1, 0);
    one.settle();
    one.sync();
    one.raft.propose(one.at(), &batch("a")).unwrap();
    let sealed = one.raft.seal(one.at());
    assert_eq!(sealed.point.index, Index(2));
    one.settle();
    assert_eq!(one.records.len() as u64, sealed.ticket.0, "the entry is written before the seal");
    one.restart();
    assert_eq!(one.raft.sealed(), Some(sealed.point));
    assert_eq!(one.raft.last(), sealed.point);
}

/// Two of three are sealed while the leader is busy: what commits behind the seals?
fn commits_behind_a_sealed_majority(mutants: Mutants) -> bool {
    let mut net = Net::with(3, 21, |net| net.mutants = mutants);
    net.run_for(20);
    net.propose(0, &batch("before")).unwrap();
    net.run_for(20);
    let committed = net.raft(0).commit();
    net.seal(1);
    net.seal(2);
    net.propose(0, &batch("behind")).unwrap();
    net.run_for(2_000);
    net.raft(0).commit() > committed || net.leader().is_some()
}

#[test]
fn nothing_commits_and_nobody_leads_behind_a_sealed_majority() {
    assert!(!commits_behind_a_sealed_majority(Mutants::default()));
}

#[test]
fn reads_fail_when_their_leader_is_sealed() {
    let mut net = Net::new(3, 22);
    net.run_for(20);
    net.isolate(0);
    let token = net.read(0).unwrap();
    net.seal(0);
    assert_eq!(net.reads_done.get(&token), Some(&None));
    net.judge();
}

// The Marker.

#[test]
fn a_committed_marker_is_reported_and_ends_the_log() {
    let mut net = Net::new(3, 23);
    net.run_for(20);
    let place = net.propose(0, &Payload::Marker).unwrap();
    assert_eq!(net.propose(0, &batch("x")), Err(ProposeError::Marker));
    assert_eq!(net.read(0), Err(ReadError::Marker));
    net.run_for(100);
    assert_eq!(net.marker_committed.len(), 3, "every member learns of it");
    assert!(net.up().iter().all(|id| net.raft(*id).last() == place));
    net.judge();
}

#[test]
fn reads_that_wait_when_the_marker_comes_fail() {
    let mut net = Net::new(3, 24);
    net.run_for(20);
    let token = net.read(0).unwrap();
    net.propose(0, &Payload::Marker).unwrap();
    assert_eq!(net.reads_done.get(&token), Some(&None));
    net.run_for(100);
    net.judge();
}

/// A follower that holds an uncommitted Marker is asked to confirm a read.
fn marker_holder_confirms(mutants: Mutants) -> bool {
    let mut one = One::open(3, 2, &[], |setup| setup.mutants = mutants);
    let at = places(&[entry(1, "a"), marker(1)]);
    one.hear(0, 1, append(at[0], 1, &[entry(1, "a"), marker(1)]));
    assert_eq!(one.said()[0].1, Said::Accepted { matched: Index(2) }, "the Marker itself is acknowledged");
    one.hear(0, 1, Said::Heartbeat { commit: Index(1), round: 5 });
    one.said()[0].1 == Said::HeartbeatReply { round: 5 }
}

#[test]
fn a_marker_holder_confirms_no_read_but_is_alive() {
    assert!(!marker_holder_confirms(Mutants::default()));
    let mut one = One::new(3, 2);
    one.hear(0, 1, append(base(), 1, &[entry(1, "a"), marker(1)]));
    one.said();
    one.hear(0, 1, Said::Heartbeat { commit: Index(1), round: 5 });
    assert_eq!(one.said()[0].1, Said::HeartbeatReply { round: 0 }, "its leader hears that it lives");
}

#[test]
fn nothing_behind_a_marker_is_taken() {
    let mut one = One::new(3, 2);
    let log = [entry(1, "a"), marker(1), entry(1, "b")];
    let at = places(&log);
    one.hear(0, 1, append(at[0], 3, &log));
    assert_eq!(one.said()[0].1, Said::Accepted { matched: Index(2) });
    assert_eq!(one.refused(), ["entries behind a Marker"]);
    assert_eq!((one.raft.last(), one.raft.commit()), (at[2], Index(2)));
    one.hear(1, 2, append(at[2], 2, &[entry(2, "c")]));
    assert_eq!(one.refused(), ["entries behind a Marker"]);
    assert_eq!(one.raft.last(), at[2]);
}

#[test]
fn a_marker_that_is_replaced_binds_nobody() {
    let mut one = One::new(3, 2);
    let at = places(&[entry(1, "a"), marker(1)]);
    one.hear(0, 1, append(at[0], 1, &[entry(1, "a"), marker(1)]));
    one.hear(1, 2, append(at[1], 1, &[entry(2, "b"), entry(2, "c")]));
    assert_eq!(one.raft.last().index, Index(3));
    one.said();
    one.hear(1, 2, Said::Heartbeat { commit: Index(3), round: 4 });
    assert_eq!(one.said()[0].1, Said::HeartbeatReply { round: 4 });
}

#[test]
fn a_new_leader_with_a_marker_adds_and_commits_nothing() {
    let mut net = Net::new(3, 25);
    net.run_for(20);
    // The Marker reaches everybody and the acknowledgements nobody.
    net.cut.extend([(1, 0), (2, 0)]);
    let place = net.propose(0, &Payload::Marker).unwrap();
    net.run_for(5);
    net.crash(0);
    net.heal();
    assert!(net.until(2_000, |net| net.leader().is_some()));
    net.run_for(1_000);
    let leader = net.leader().unwrap();
    assert_eq!(net.raft(leader).last(), place);
    assert!(net.raft(leader).commit() < place.index, "the epoch ends by collection");
    assert_eq!(
        net.raft_mut(leader).propose(dwcp_base::Now::default(), &batch("x")),
        Err(ProposeError::Marker)
    );
    net.judge();
}

#[test]
fn a_restart_remembers_the_marker_though_all_before_it_is_discarded() {
    let mut one = One::new(3, 2);
    let at = places(&[entry(1, "a"), marker(1)]);
    one.hear(0, 1, append(at[0], 2, &[entry(1, "a"), marker(1)]));
    one.sync();
    assert_eq!(one.raft.discard(Index(2)), at[1], "the Marker stays");
    one.settle();
    one.restart();
    one.hear(0, 1, Said::Heartbeat { commit: Index(2), round: 5 });
    assert_eq!(one.said()[0].1, Said::HeartbeatReply { round: 0 });
    assert!(one.did.contains(&Action::MarkerCommitted { index: Index(2) }), "said again after a restart");
}

// Discarding and installing.

#[test]
fn a_follower_that_slept_too_long_goes_on_from_a_snapshot() {
    let mut net = Net::new(3, 26);
    net.run_for(20);
    net.crash(2);
    for number in 0..50 {
        net.propose(0, &batch(&format!("{number}"))).unwrap();
        net.run_for(2);
    }
    net.discard(0, Index(40));
    assert_eq!(net.raft(0).border().index, Index(40));
    net.restart(2);
    assert!(net.until(1_000, |net| net.raft(2).commit() == Index(51)));
    assert!(net.counts.installs >= 1);
    net.propose(0, &batch("more")).unwrap();
    assert!(net.until(100, |net| net.raft(2).commit() == Index(52)));
    net.crash(2);
    net.restart(2);
    assert!(net.until(100, |net| net.raft(2).commit() == Index(52)));
    net.judge();
}

#[test]
fn a_snapshot_is_asked_for_again_at_leisure_until_it_came() {
    let mut one = One::new(2, 0);
    one.elect(&[1]);
    let term = one.raft.term().0;
    one.sync();
    one.hear(1, term, Said::Accepted { matched: Index(1) });
    for number in 0..10 {
        one.propose(&format!("{number}"));
    }
    one.sync();
    one.hear(1, term, Said::Accepted { matched: Index(11) });
    one.raft.discard(Index(8));
    one.settle();
    // The follower lost nothing it promised, but the test says so: it is behind the border.
    one.did.clear();
    let mut restarted = One::open(2, 0, &one.records, |_| {});
    restarted.elect(&[1]);
    let term = restarted.raft.term().0;
    let nowhere = dwcp_raft::Conflict { refused: Index(11), index: Index(0), term: Term(0) };
    restarted.hear(1, term, Said::Refused(nowhere));
    let behind = |one: &mut One| {
        let count = one.did.iter().filter(|action| matches!(action, Action::Behind { .. })).count();
        one.did.clear();
        count
    };
    assert!(restarted.did.contains(&Action::Behind { follower: ReplicaId(1), next: Index(1) }));
    assert_eq!(behind(&mut restarted), 1);
    let mut again = 0;
    for _ in 0..20 {
        restarted.wait(50);
        restarted.hear(1, term, Said::HeartbeatReply { round: 0 });
        again += behind(&mut restarted);
    }
    assert!((2..=6).contains(&again), "{again} times in a second");
    restarted.hear(1, term, Said::Accepted { matched: Index(8) });
    let sent = restarted.said();
    assert!(
        sent.iter().any(|(_, said, _)| matches!(said, Said::Append { prev, .. } if prev.index == Index(8)))
    );
}

#[test]
fn only_what_is_committed_and_durable_is_discarded() {
    let mut one = One::new(3, 2);
    let log = [entry(1, "a"), entry(1, "b"), entry(1, "c")];
    let at = places(&log);
    one.hear(0, 1, append(at[0], 2, &log));
    assert_eq!(one.raft.discard(Index(3)), at[0], "nothing is durable yet");
    one.sync();
    assert_eq!(one.raft.discard(Index(3)), at[2], "not past what is committed");
    assert_eq!(one.raft.discard(Index(1)), at[2], "and never back");
    assert_eq!(one.raft.entries(Index(1), Index(3), usize::MAX).len(), 0);
    assert_eq!(one.raft.entries(Index(3), Index(3), usize::MAX).len(), 1);
}

#[test]
fn a_record_is_needed_until_what_replaces_it_is_durable() {
    let mut one = One::new(3, 2);
    let log: Vec<_> = (0..6).map(|at| entry(1, &format!("{at}"))).collect();
    let at = places(&log);
    one.hear(0, 1, append(at[0], 0, &log[..3]));
    one.hear(0, 1, append(at[3], 4, &log[3..]));
    one.sync();
    assert_eq!(one.raft.needed_from(), Ticket(1));
    one.raft.discard(Index(3));
    one.settle();
    assert_eq!(one.raft.needed_from(), Ticket(1), "the border is not durable yet");
    one.raft.on_durable(one.at(), Ticket(3));
    assert_eq!(one.raft.needed_from(), Ticket(1), "nor now");
    one.sync();
    assert_eq!(one.raft.needed_from(), Ticket(3), "the second record of entries");
    let needed = one.records.split_off(2);
    let again = One::open(3, 2, &needed, |_| {});
    assert_eq!((again.raft.border(), again.raft.last(), again.raft.term()), (at[3], at[6], Term(1)));
}

#[test]
fn a_log_begins_anew_only_ahead_of_what_is_committed() {
    let mut one = One::new(3, 2);
    let log = [entry(1, "a"), entry(1, "b"), entry(1, "c")];
    let at = places(&log);
    one.hear(0, 1, append(at[0], 2, &log));
    one.sync();
    assert_eq!(one.raft.install(one.at(), at[2]), Err(InstallError::NotAhead { commit: Index(2) }));
    one.raft.install(one.at(), at[3]).unwrap();
    one.settle();
    assert_eq!((one.raft.border(), one.raft.commit()), (at[3], Index(3)), "its own entries agreed");
    let far = Place { index: Index(50), term: Term(8), chain: dwcp_base::Hash::of(b"elsewhere") };
    one.raft.install(one.at(), far).unwrap();
    one.settle();
    assert_eq!((one.raft.border(), one.raft.last(), one.raft.term()), (far, far, Term(8)));
    one.restart();
    assert_eq!((one.raft.border(), one.raft.last(), one.raft.term()), (far, far, Term(8)));
}

#[test]
fn a_log_that_a_liar_called_committed_gives_way_to_what_is_certain() {
    let mut one = One::new(3, 2);
    let log = [entry(1, "a"), entry(1, "made up"), entry(1, "for one alone")];
    let at = places(&log);
    one.hear(0, 1, append(at[0], 3, &log));
    one.sync();
    let _ = one.raft.pin(Index(3));
    one.settle();
    one.sync();
    assert_eq!(one.raft.commit(), Index(3));
    let certain = places(&[entry(1, "a"), entry(1, "b")])[2];
    one.raft.install(one.at(), certain).unwrap();
    one.settle();
    assert_eq!((one.raft.border(), one.raft.last(), one.raft.commit()), (certain, certain, Index(2)));
    one.sync();
    one.restart();
    assert_eq!((one.raft.border(), one.raft.last(), one.raft.commit()), (certain, certain, Index(2)));
    one.hear(0, 1, append(certain, 3, &[entry(1, "c")]));
    assert_eq!((one.raft.last().index, one.raft.commit()), (Index(3), Index(3)), "it goes on from there");
}

#[test]
fn what_is_known_to_be_committed_counts_only_where_the_log_holds_it() {
    let mut one = One::open(3, 2, &records(5, Some(1), &[1, 1, 4]), |_| {});
    let held = [1, 2].map(|index| one.raft.place(Index(index)).unwrap());
    for wrong in [
        Place { chain: dwcp_base::Hash::of(b"elsewhere"), ..held[1] },
        Place { term: Term(3), ..held[1] },
        Place { index: Index(9), ..held[1] },
    ] {
        one.raft.learn_commit(wrong);
        one.settle();
        assert_eq!((one.raft.commit(), one.terms()), (Index(0), vec![1, 1, 4]), "{wrong:?}");
    }
    one.raft.learn_commit(held[1]);
    one.raft.learn_commit(held[0]);
    one.settle();
    assert_eq!(
        (one.raft.commit(), one.raft.border().index),
        (Index(2), Index(0)),
        "nothing is dropped by it"
    );
    one.raft.seal(one.at());
    let last = one.raft.last();
    one.raft.learn_commit(last);
    one.settle();
    assert_eq!((one.raft.commit(), one.raft.last()), (Index(3), last), "the sealed may know it too");
}

#[test]
fn whoever_vouched_for_its_log_never_parts_from_it() {
    let mut one = One::new(3, 2);
    let log = [entry(1, "a"), entry(1, "b"), entry(1, "c")];
    let at = places(&log);
    one.hear(0, 1, append(at[0], 2, &log));
    one.sync();
    assert_eq!(one.raft.pin(Index(2)), Ticket(3), "term, entries, pin");
    assert_eq!(one.raft.pin(Index(9)), Ticket(3), "what is not committed is not pinned");
    one.settle();
    one.restart();
    assert_eq!((one.raft.commit(), one.raft.last()), (Index(2), at[3]));
    one.hear(1, 2, append(at[0], 0, &[entry(2, "x")]));
    assert_eq!(one.refused(), ["a conflict with what is committed"]);
    one.hear(1, 2, append(at[2], 0, &[entry(2, "y")]));
    assert_eq!(one.terms(), [1, 1, 2], "behind it the log may change");
    // A restart needs the pin until a border that says as much is on disk.
    one.sync();
    one.raft.discard(Index(1));
    one.sync();
    let needed = one.raft.needed_from();
    assert!(needed <= Ticket(3), "{needed:?}");
    one.raft.discard(Index(2));
    one.sync();
    assert!(one.raft.needed_from() > Ticket(3));
}

// Restarts.

#[test]
fn a_restart_has_term_vote_and_log_again() {
    let one = One::open(3, 2, &records(5, Some(1), &[1, 1, 4]), |_| {});
    assert_eq!((one.raft.term(), one.terms()), (Term(5), vec![1, 1, 4]));
    assert_eq!((one.raft.commit(), one.raft.durable()), (Index(0), Index(3)));
}

#[test]
fn a_log_of_another_epoch_or_with_a_hole_is_refused() {
    let mut setup = Net::new(3, 27).setup(0);
    let now = dwcp_base::Now::default();
    let whole = records(1, None, &[1, 1]);
    let hole = dwcp_raft::Record::Entries { first: Index(9), entries: vec![entry(1, "x")] };
    let broken = [whole.clone(), vec![hole.to_bytes(EPOCH)]].concat();
    assert_eq!(Raft::open(&setup, &broken, now).unwrap_err(), OpenError::Gap { number: 3 });
    let torn = [whole.clone(), vec![whole[1].slice(..9)]].concat();
    assert!(matches!(Raft::open(&setup, &torn, now).unwrap_err(), OpenError::Record { number: 3, .. }));
    setup.epoch = Epoch(8);
    let other = Raft::open(&setup, &whole, now).unwrap_err();
    assert_eq!(other, OpenError::Epoch { number: 1, found: EPOCH });
    assert!(other.to_string().contains("epoch 7"));
}

#[test]
fn a_log_with_a_place_beyond_all_places_is_refused() {
    let setup = Net::new(3, 27).setup(0);
    let now = dwcp_base::Now::default();
    let whole = records(1, None, &[1, 1]);
    let far = |index| Place { index: Index(index), term: Term(1), chain: dwcp_base::Hash::ZERO };
    let hard = |term| dwcp_raft::HardState { term: Term(term), vote: None };
    let border = |index, term| dwcp_raft::Border { place: far(index), hard: hard(term), sealed: None };
    let entries = |index| dwcp_raft::Record::Entries { first: Index(index), entries: vec![entry(1, "x"); 2] };
    let beyond = [
        vec![entries(u64::MAX)],
        // Nothing follows an entry there, and the next record is compared with what would.
        vec![entries(u64::MAX - 1), entries(3)],
        vec![entries(0)],
        vec![dwcp_raft::Record::Hard(hard(u64::MAX))],
        vec![dwcp_raft::Record::Sealed(far(u64::MAX))],
        vec![dwcp_raft::Record::Discarded(border(u64::MAX, 1))],
        vec![dwcp_raft::Record::Installed(border(2, u64::MAX))],
    ];
    for records in beyond {
        let after: Vec<_> = records.iter().map(|record| record.to_bytes(EPOCH)).collect();
        let log = [whole.clone(), after].concat();
        assert_eq!(Raft::open(&setup, &log, now).unwrap_err(), OpenError::Gap { number: 3 }, "{records:?}");
    }
}

#[test]
fn a_setup_that_cannot_be_is_refused() {
    let sound = Net::new(3, 28).setup(0);
    let refused = |change: &dyn Fn(&mut dwcp_raft::SegmentSetup)| {
        let mut setup = sound.clone();
        change(&mut setup);
        matches!(Raft::open(&setup, &[], dwcp_base::Now::default()), Err(OpenError::Setup(_)))
    };
    assert!(!refused(&|_| {}));
    assert!(refused(&|setup| setup.members.clear()));
    assert!(refused(&|setup| setup.members.reverse()));
    assert!(refused(&|setup| setup.me = ReplicaId(9)));
    assert!(refused(&|setup| setup.members = (0..32).map(ReplicaId).collect()));
    assert!(refused(&|setup| setup.timing.heartbeat_interval = setup.timing.election_timeout));
    assert!(refused(&|setup| setup.limits.append_entries_max = 0));
}

// Bounds.

#[test]
fn a_full_log_refuses_batches_until_it_is_discarded_and_always_takes_a_marker() {
    let limits = Limits { log_entries_max: 16, ..Limits::default() };
    let mut one = One::open(1, 0, &[], |setup| setup.limits = limits);
    one.settle();
    one.sync();
    for number in 1..16 {
        one.propose(&format!("{number}"));
    }
    assert_eq!(one.raft.propose(one.at(), &batch("x")), Err(ProposeError::LogFull));
    one.sync();
    one.raft.discard(Index(8));
    for number in 0..8 {
        one.propose(&format!("{number}"));
    }
    assert_eq!(one.raft.propose(one.at(), &batch("x")), Err(ProposeError::LogFull));
    let tick = Payload::Tick { time: dwcp_base::LogTime(1) };
    while one.raft.propose(one.at(), &tick).is_ok() {}
    assert_eq!(one.raft.last().index, Index(40), "twice the bound");
    one.raft.propose(one.at(), &Payload::Marker).unwrap();
}

#[test]
fn a_follower_takes_no_more_than_twice_the_bound() {
    let limits = Limits { log_entries_max: 16, ..Limits::default() };
    let mut one = One::open(3, 2, &[], |setup| setup.limits = limits);
    let log: Vec<_> = (0..40).map(|at| entry(1, &format!("{at}"))).collect();
    one.hear(0, 1, append(base(), 0, &log));
    assert_eq!(one.said()[0].1, Said::Accepted { matched: Index(32) });
    assert_eq!(one.refused(), ["the log is full: a snapshot must be written first"]);
}

#[test]
fn proposals_and_reads_beyond_their_bounds_are_refused_as_busy() {
    let limits = Limits { uncommitted_bytes_max: 4 << 20, reads_max: 3, ..Limits::default() };
    let mut one = One::open(3, 0, &[], |setup| setup.limits = limits);
    one.elect(&[1]);
    let frame = "x".repeat(1 << 20);
    let taken = (0..10).take_while(|_| one.raft.propose(one.at(), &batch(&frame)).is_ok()).count();
    assert_eq!(taken, 4);
    assert_eq!(one.raft.propose(one.at(), &batch("x")), Err(ProposeError::Busy));
    let taken = (0..10).take_while(|token| one.raft.read_index(one.at(), *token).is_ok()).count();
    assert_eq!(taken, 3);
    assert_eq!(one.raft.read_index(one.at(), 9), Err(ReadError::Busy));
    let too_large = batch(&"x".repeat(5 << 20));
    assert!(matches!(one.raft.propose(one.at(), &too_large), Err(ProposeError::Invalid(_))));
}

#[test]
fn every_index_is_one_position_of_the_virtual_log() {
    let mut net = Net::new(3, 29);
    net.run_for(20);
    net.propose(0, &batch("a")).unwrap();
    net.propose(0, &Payload::Tick { time: dwcp_base::LogTime(9) }).unwrap();
    net.run_for(20);
    let mut fold = VirtualLog { position: net.setup(0).base.position, chain: net.setup(0).base.chain };
    for entry in net.raft(1).entries(Index(1), Index(3), usize::MAX) {
        fold.append(&entry.digest());
    }
    assert_eq!(net.raft(2).place(Index(3)).unwrap().chain, fold.chain);
    net.judge();
}

#[cfg(feature = "mutants")]
mod mutants {
    use super::*;
    use dwcp_base::Mutant;

    #[test]
    fn every_story_notices_the_rule_it_is_about() {
        let off = |mutant| Mutants::default().with(mutant);
        assert!(commits_behind_a_sealed_majority(off(Mutant::RaftIgnoresSeal)));
        assert!(marker_holder_confirms(off(Mutant::RaftMarkerHolderConfirmsReads)));
    }
}
