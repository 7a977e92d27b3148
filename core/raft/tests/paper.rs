//! Stories of one segment in the order of the Raft paper (Ongaro & Ousterhout, USENIX ATC 2014) and of Ongaro's thesis,
//! then what this project adds to them (`ending`), then whatever members might say (`border`), then chance (`schedules`).

mod border;
mod ending;
mod net;
mod one;
mod schedules;

use dwcp_base::{Micros, Mutants, ReplicaId, Ticket};
use dwcp_raft::{
    Action, Conflict, Index, Limits, Message, ProposeError, RaftNode, Record, Said, Term, TransferError,
};
use net::{Net, batch};
use one::{One, append, entry, places, records};

// Raft section 5.1: terms and promises.

#[test]
fn a_vote_waits_until_it_is_on_disk() {
    let mut one = One::new(3, 2);
    one.hear(0, 1, Said::Vote { last: places(&[])[0], transfer: false });
    let votes = one.did.iter().filter(|action| matches!(action, Action::Persist { .. })).count();
    assert_eq!(votes, 2, "the term, then the vote");
    assert_eq!(one.said(), [(0, Said::VoteReply { granted: true }, Ticket(2))]);
}

/// A member votes, its power fails, and another asks it in the same term.
fn vote_crash_vote(mutants: Mutants) -> bool {
    let mut one = One::open(3, 2, &[], |setup| setup.mutants = mutants);
    one.hear(0, 1, Said::Vote { last: places(&[])[0], transfer: false });
    one.restart();
    one.hear(1, 1, Said::Vote { last: places(&[])[0], transfer: false });
    one.said().iter().any(|(_, said, _)| *said == Said::VoteReply { granted: true })
}

#[test]
fn a_restarted_member_votes_once_a_term() {
    assert!(!vote_crash_vote(Mutants::default()));
    let mut one = One::open(3, 2, &records(4, Some(0), &[1]), |_| {});
    one.hear(0, 4, Said::Vote { last: places(&[entry(1, "1")])[1], transfer: false });
    assert_eq!(
        one.said(),
        [(0, Said::VoteReply { granted: true }, Ticket(1))],
        "the same vote again, no record"
    );
    assert_eq!(one.records.len(), 2);
}

// Raft section 5.2: leader election.

#[test]
fn the_named_member_leads_within_a_round_trip_and_a_sync() {
    let mut net = Net::new(3, 1);
    assert!(net.until(5, |net| net.leader() == Some(0)));
    assert!(net.until(5, |net| net.up().iter().all(|id| net.raft(*id).leader() == Some(ReplicaId(0)))));
    net.judge();
}

#[test]
fn members_that_open_a_little_later_cost_a_few_milliseconds_not_a_heartbeat() {
    let mut net = Net::new(3, 2);
    [1, 2].into_iter().for_each(|id| net.crash(id));
    net.run_for(6);
    [1, 2].into_iter().for_each(|id| net.restart(id));
    net.wire.clear();
    assert!(net.until(8, |net| net.leader() == Some(0)));
    // The logs of a new epoch agree at its base: what is proposed at once commits with the leader's first entry.
    net.propose(0, &batch("first")).unwrap();
    assert!(net.until(2, |net| net.raft(0).commit() == Index(2)));
    net.judge();
}

#[test]
fn without_a_named_member_somebody_leads_within_a_few_timeouts() {
    for seed in 0..50 {
        let mut net = Net::with(5, seed, Net::no_first_leader);
        assert!(net.until(2_000, |net| net.leader().is_some()), "seed {seed}");
        net.judge();
    }
    let mut net = Net::with(31, 1, Net::no_first_leader);
    assert!(net.until(5_000, |net| net.leader().is_some_and(|leader| net.raft(leader).commit() > Index(0))));
    net.judge();
}

#[test]
fn one_member_leads_and_commits_by_itself() {
    let mut net = Net::new(1, 1);
    assert!(net.until(5, |net| net.leader() == Some(0)));
    net.propose(0, &batch("alone")).unwrap();
    assert!(net.until(5, |net| net.raft(0).commit() == Index(2)));
    net.crash(0);
    net.restart(0);
    assert!(net.until(5, |net| net.raft(0).commit() == Index(3)));
    assert_eq!(net.committed_frames(), ["alone"]);
    net.judge();
}

#[test]
fn a_dead_leader_is_replaced_within_three_timeouts() {
    let mut net = Net::new(3, 3);
    net.run_for(20);
    net.crash(0);
    assert!(net.until(600, |net| net.leader().is_some_and(|leader| leader != 0)));
    net.judge();
}

#[test]
fn a_leader_whose_links_broke_is_replaced_within_a_third_of_a_timeout() {
    for seed in 0..20 {
        let mut net = Net::new(3, seed);
        net.run_for(20);
        net.crash(0);
        [1, 2].into_iter().for_each(|id| net.link_down(id, 0));
        assert!(net.until(66, |net| net.leader().is_some_and(|leader| leader != 0)), "seed {seed}");
        net.judge();
    }
}

#[test]
fn a_broken_link_deposes_nobody_whom_others_hear() {
    let mut net = Net::new(5, 4);
    net.run_for(20);
    let term = net.raft(0).term();
    for round in 0..50 {
        net.link_down(1 + round % 4, 0);
        net.run_for(45);
    }
    assert_eq!((net.leader(), net.raft(0).term()), (Some(0), term));
    net.judge();
}

#[test]
fn whoever_hears_a_leader_helps_nobody_to_depose_it() {
    let mut one = One::new(3, 2);
    one.hear(0, 3, append(places(&[])[0], 0, &[entry(3, "a")]));
    one.said();
    let last = places(&[entry(3, "a"), entry(3, "b")])[2];
    one.hear(1, 4, Said::Vote { last, transfer: false });
    one.hear(1, 5, Said::PreVote { last });
    assert_eq!((one.said(), one.raft.term()), (vec![], Term(3)));
    // Its leader asked for it, or is silent for an election timeout.
    one.hear(1, 4, Said::Vote { last, transfer: true });
    assert_eq!(one.said()[0].1, Said::VoteReply { granted: true });
    let mut one = One::new(3, 2);
    one.hear(0, 3, Said::Heartbeat { commit: Index(0), round: 0 });
    one.now = one.now.plus(one.raft_timeout());
    one.said();
    one.hear(1, 3, Said::PreVote { last });
    assert_eq!(one.said()[0].1, Said::PreVoteReply { granted: true });
}

#[test]
fn who_could_not_win_is_told_so_before_it_raises_the_term() {
    let mut one = One::open(3, 2, &records(3, None, &[1, 3]), |_| {});
    one.hear(0, 3, Said::PreVote { last: places(&[entry(1, "1"), entry(2, "2"), entry(2, "3")])[3] });
    assert_eq!(one.said()[0].1, Said::PreVoteReply { granted: false });
}

#[test]
fn a_candidate_counts_its_own_vote_only_when_durable() {
    let mut one = One::open(2, 0, &[], |setup| setup.first_leader = Some(ReplicaId(0)));
    one.settle();
    one.hear(1, 1, Said::VoteReply { granted: true });
    assert!(!one.raft.is_leader());
    one.sync();
    assert!(one.raft.is_leader());
}

// Raft section 5.3: log replication.

#[test]
fn what_is_proposed_together_leaves_as_one_record_and_one_append_a_follower() {
    let mut one = One::new(3, 0);
    one.elect(&[1]);
    let term = one.raft.term().0;
    for follower in [1, 2] {
        one.hear(follower, term, Said::Accepted { matched: Index(1) });
    }
    one.did.clear();
    for number in 0..100 {
        one.raft.propose(one.at(), &batch(&format!("{number}"))).unwrap();
    }
    one.settle();
    let records = one.did.iter().filter(|action| matches!(action, Action::Persist { .. })).count();
    assert_eq!(records, 1);
    let sent: Vec<_> = one
        .did
        .iter()
        .filter_map(|action| {
            if let Action::Send { message, after, .. } = action { Some((message, after)) } else { None }
        })
        .collect();
    assert_eq!(sent.len(), 2);
    assert_eq!(sent[0].0.as_ptr(), sent[1].0.as_ptr(), "both followers get the very same bytes");
    assert!(sent.iter().all(|(_, after)| **after == Ticket::ZERO), "an Append waits for no disk");
}

#[test]
fn a_leader_counts_itself_only_when_durable() {
    assert!(!commits_with_one_durable_copy(Mutants::default()));
}

/// Three members, an entry that is durable with one follower and not with its leader.
fn commits_with_one_durable_copy(mutants: Mutants) -> bool {
    let mut one = One::open(3, 0, &[], |setup| setup.mutants = mutants);
    one.elect(&[1]);
    let term = one.raft.term().0;
    one.sync();
    one.hear(1, term, Said::Accepted { matched: Index(1) });
    assert_eq!(one.raft.commit(), Index(1));
    one.propose("a");
    one.hear(1, term, Said::Accepted { matched: Index(2) });
    let committed = one.raft.commit() == Index(2);
    one.sync();
    assert_eq!(one.raft.commit(), Index(2));
    committed
}

#[test]
fn a_follower_acknowledges_behind_its_own_record_and_writes_nothing_twice() {
    let mut one = One::new(3, 2);
    let log = [entry(1, "a"), entry(1, "b")];
    let at = places(&log);
    one.hear(0, 1, append(at[0], 0, &log));
    assert_eq!(one.said(), [(0, Said::Accepted { matched: Index(2) }, Ticket(2))]);
    for _ in 0..3 {
        one.hear(0, 1, append(at[0], 0, &log));
        one.hear(0, 1, append(at[1], 0, &log[1..]));
    }
    assert_eq!(one.records.len(), 2, "the term and the entries");
}

/// Figure 7: six followers whose logs differ from the new leader's in every way there is.
#[test]
fn the_followers_of_figure_7_become_equal_to_their_leader() {
    let logs: [&[u64]; 7] = [
        &[1, 1, 1, 4, 4, 5, 5, 6, 6, 6],
        &[1, 1, 1, 4, 4, 5, 5, 6, 6],
        &[1, 1, 1, 4],
        &[1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6],
        &[1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7],
        &[1, 1, 1, 4, 4, 4, 4],
        &[1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3],
    ];
    let mut net = Net::with(7, 7, Net::no_first_leader);
    for (id, terms) in (0..).zip(logs) {
        net.crash(id);
        let disk = &mut net.members.get_mut(&id).unwrap().disk;
        disk.records = records(7, None, terms).into();
        disk.synced = disk.records.len();
    }
    // The leader of the figure asks first, while those that could refuse it for good are away.
    net.restart(0);
    net.run_for(500);
    [1, 2, 5, 6].into_iter().for_each(|id| net.restart(id));
    assert!(net.until(300, |net| net.leader() == Some(0)));
    assert!(net.raft(0).term() > Term(7));
    [3, 4].into_iter().for_each(|id| net.restart(id));
    let last = net.raft(0).last();
    assert!(net.until(1_000, |net| net.up().iter().all(|id| net.raft(*id).last() == last)));
    assert!(net.until(100, |net| net.up().iter().all(|id| net.raft(*id).commit() == last.index)));
    assert_eq!(net.leader(), Some(0));
    net.judge();
}

/// Thesis section 3.3: going back costs one exchange a term that differs, however many entries it has.
#[test]
fn going_back_costs_at_most_one_refusal_a_term() {
    let leaders = [vec![1; 300], vec![2; 300], vec![3; 300], vec![9; 10]].concat();
    let followers = [vec![1; 250], vec![4; 100], vec![5; 100], vec![6; 400]].concat();
    let (mut leader, mut follower) = (
        One::open(3, 0, &records(9, None, &leaders), |_| {}),
        One::open(3, 1, &records(9, None, &followers), |_| {}),
    );
    leader.elect(&[2]);
    let term = leader.raft.term().0;
    let (mut refusals, mut rounds) = (0, 0);
    while follower.raft.last() != leader.raft.last() {
        rounds += 1;
        assert!(rounds < 50, "they come together");
        for (_, said, _) in leader.said().into_iter().filter(|(to, ..)| *to == 1) {
            follower.hear(0, term, said);
        }
        for (_, said, _) in follower.said() {
            refusals += usize::from(matches!(said, Said::Refused(_)));
            leader.hear(1, term, said);
        }
    }
    assert_eq!(refusals, 2, "one for being short, one that steps over three terms");
}

#[test]
fn a_stream_does_not_wait_for_answers_and_stays_inside_its_window() {
    let limits = Limits {
        append_entries_max: 4,
        inflight_entries_max: 10,
        inflight_bytes_max: 2_000,
        ..Limits::default()
    };
    for (frame, entries_expected) in [("small".to_string(), 10), ("x".repeat(500), 4)] {
        let mut one = One::open(2, 0, &[], |setup| setup.limits = limits);
        one.elect(&[1]);
        let term = one.raft.term().0;
        one.hear(1, term, Said::Accepted { matched: Index(1) });
        one.said();
        for _ in 0..50 {
            one.raft.propose(one.at(), &batch(&frame)).unwrap();
        }
        one.settle();
        let sizes = |one: &mut One| -> Vec<usize> {
            let said = one.said().into_iter();
            said.filter_map(|(_, said, _)| match said {
                Said::Append { entries, .. } => Some(entries.len()),
                _ => None,
            })
            .collect()
        };
        let sent = sizes(&mut one);
        assert_eq!(sent.iter().sum::<usize>(), entries_expected, "{sent:?}");
        assert!(sent.iter().all(|size| *size <= 4));
        one.settle();
        assert_eq!(sizes(&mut one), Vec::<usize>::new(), "the window is closed");
        one.hear(1, term, Said::Accepted { matched: Index(3) });
        assert_eq!(sizes(&mut one).iter().sum::<usize>(), 2, "two answered, two more sent");
    }
}

#[test]
fn an_entry_larger_than_every_bound_goes_alone() {
    let limits = Limits { append_bytes_max: 1 << 10, inflight_bytes_max: 1 << 10, ..Limits::default() };
    let mut net = Net::with(3, 5, |net| net.limits = limits);
    net.run_for(20);
    for _ in 0..5 {
        net.propose(0, &batch(&"x".repeat(3_000))).unwrap();
    }
    assert!(net.until(50, |net| net.up().iter().all(|id| net.raft(*id).commit() == Index(6))));
    net.judge();
}

#[test]
fn a_lost_append_is_noticed_at_the_next_heartbeat() {
    let mut net = Net::new(3, 6);
    net.run_for(20);
    net.cut.insert((0, 1));
    net.propose(0, &batch("lost")).unwrap();
    net.run_for(2);
    net.heal();
    assert!(net.until(90, |net| net.raft(1).last().index == Index(2)), "two heartbeats at most");
    net.judge();
}

#[test]
fn a_silent_follower_is_not_sent_the_same_entries_again_and_again() {
    let mut net = Net::new(3, 8);
    net.run_for(20);
    net.crash(2);
    for _ in 0..20 {
        net.propose(0, &batch(&"x".repeat(10_000))).unwrap();
    }
    net.run_for(20);
    let before = net.counts.sent_bytes;
    net.run_for(1_000);
    assert!(net.counts.sent_bytes - before < 25_000, "{} bytes in a second", net.counts.sent_bytes - before);
    net.restart(2);
    assert!(net.until(200, |net| net.raft(2).commit() == net.raft(0).commit()));
    net.judge();
}

/// It agrees with everything and takes nothing: a Marker is in the way, or its log is full.
#[test]
fn a_follower_that_takes_nothing_is_sent_one_append_a_heartbeat() {
    let mut one = One::new(3, 0);
    one.elect(&[1]);
    let term = one.raft.term().0;
    one.hear(1, term, Said::Accepted { matched: Index(1) });
    for number in 0..50 {
        one.propose(&format!("{number}"));
    }
    one.hear(1, term, Said::Refused(Conflict { refused: Index(9), index: Index(1), term: Term(1) }));
    one.hear(2, term, Said::Accepted { matched: Index(0) });
    one.said();
    let (mut appends, mut exchanges) = (0, 0);
    for _ in 0..10 {
        one.wait(40);
        loop {
            let asked: Vec<_> = one.said().into_iter().filter(|(to, ..)| *to == 1).collect();
            if asked.is_empty() {
                break;
            }
            exchanges += 1;
            assert!(exchanges < 100, "they go on for ever");
            for (_, said, _) in asked {
                if let Said::Append { prev, entries, .. } = said {
                    appends += usize::from(!entries.is_empty());
                    let matched = prev.index.min(Index(1));
                    match prev.index > matched {
                        true => one.hear(
                            1,
                            term,
                            Said::Refused(Conflict { refused: prev.index, index: matched, term: Term(1) }),
                        ),
                        false => one.hear(1, term, Said::Accepted { matched }),
                    }
                }
            }
        }
    }
    assert!((5..=20).contains(&appends), "{appends} Appends with entries in ten heartbeats");
    one.hear(1, term, Said::Accepted { matched: Index(30) });
    one.propose("it takes again");
    assert!(one.said().iter().any(|(to, said, _)| *to == 1 && matches!(said, Said::Append { .. })));
}

#[test]
fn a_late_refusal_does_not_take_a_streaming_leader_back() {
    let mut one = One::new(3, 0);
    one.elect(&[1]);
    let term = one.raft.term().0;
    one.hear(1, term, Said::Accepted { matched: Index(1) });
    for number in 0..4 {
        one.propose(&format!("{number}"));
    }
    one.hear(1, term, Said::Accepted { matched: Index(5) });
    one.said();
    one.hear(1, term, Said::Refused(Conflict { refused: Index(3), index: Index(1), term: Term(1) }));
    assert_eq!(one.said(), []);
}

#[test]
fn a_leader_that_contradicts_itself_is_followed_only_as_far_as_the_logs_agree() {
    let mut one = One::new(3, 2);
    one.hear(0, 3, append(places(&[])[0], 0, &[entry(1, "a"), entry(1, "b"), entry(1, "c"), entry(1, "d")]));
    assert_eq!(one.said()[0].1, Said::Accepted { matched: Index(4) });
    one.hear(0, 3, append(places(&[])[0], 0, &[entry(1, "a"), entry(2, "x")]));
    assert_eq!(one.said()[0].1, Said::Accepted { matched: Index(2) });
}

#[test]
fn a_replaced_entry_is_not_durable_because_the_one_before_it_was() {
    let mut one = One::new(3, 2);
    one.hear(0, 1, append(places(&[])[0], 0, &[entry(1, "a"), entry(1, "b"), entry(1, "c")]));
    let first = Ticket(one.records.len() as u64);
    one.hear(1, 2, append(places(&[entry(1, "a")])[1], 0, &[entry(2, "x"), entry(2, "y")]));
    one.raft.on_durable(one.at(), first);
    assert_eq!(one.raft.durable(), Index(1), "b and c are durable, x and y are not");
    one.sync();
    assert_eq!(one.raft.durable(), Index(3));
}

// Raft section 5.4: safety.

/// Section 5.4.1, with the numbers of a longer and of a later log.
fn votes_for_a_longer_but_older_log(mutants: Mutants) -> bool {
    let mut one = One::open(3, 2, &records(3, None, &[1, 3]), |setup| setup.mutants = mutants);
    let last = *places(&[entry(1, "1"), entry(2, "2"), entry(2, "3")]).last().unwrap();
    one.hear(0, 4, Said::Vote { last, transfer: false });
    one.said().iter().any(|(_, said, _)| *said == Said::VoteReply { granted: true })
}

#[test]
fn a_later_last_term_beats_a_longer_log() {
    assert!(!votes_for_a_longer_but_older_log(Mutants::default()));
    let mut one = One::open(3, 2, &records(3, None, &[1, 2, 2]), |_| {});
    let last = *places(&[entry(1, "1"), entry(3, "2")]).last().unwrap();
    one.hear(0, 4, Said::Vote { last, transfer: false });
    assert_eq!(one.said()[0].1, Said::VoteReply { granted: true });
}

/// Figure 8, moment (c): S1 leads again, in term 4, and a majority holds its entry of term 2.
fn commits_an_entry_of_an_earlier_term_by_counting(mutants: Mutants) -> bool {
    let mut one = One::open(5, 0, &records(3, None, &[1, 2]), |setup| setup.mutants = mutants);
    one.elect(&[1, 2]);
    assert_eq!(one.raft.term(), Term(4));
    for follower in [1, 2] {
        one.hear(follower, 4, Said::Accepted { matched: Index(2) });
    }
    let committed = one.raft.commit() >= Index(2);
    // Moment (e): with an entry of its own term all before it is committed as well.
    one.sync();
    for follower in [1, 2] {
        one.hear(follower, 4, Said::Accepted { matched: Index(3) });
    }
    assert_eq!(one.raft.commit(), Index(3));
    committed
}

#[test]
fn figure_8_an_entry_of_an_earlier_term_is_not_committed_by_counting() {
    assert!(!commits_an_entry_of_an_earlier_term_by_counting(Mutants::default()));
}

// Raft section 5.6 and thesis section 6.2: a leader that nobody hears.

#[test]
fn a_leader_without_a_majority_steps_down_within_two_timeouts() {
    let mut net = Net::new(5, 9);
    net.run_for(20);
    [1, 2, 3].into_iter().for_each(|id| net.isolate(id));
    assert!(net.until(400, |net| !net.raft(0).is_leader()));
    assert_eq!(net.propose(0, &batch("x")), Err(ProposeError::NotLeader { leader: None }));
    net.judge();
}

#[test]
fn a_leader_with_a_bare_majority_stays() {
    let mut net = Net::new(5, 10);
    net.run_for(20);
    let term = net.raft(0).term();
    [3, 4].into_iter().for_each(|id| net.crash(id));
    net.run_for(3_000);
    assert_eq!((net.leader(), net.raft(0).term()), (Some(0), term));
    net.judge();
}

// Thesis section 9.6 and 4.2.3: those who come back do not disturb.

#[test]
fn a_member_that_was_cut_off_raises_no_term_and_deposes_nobody() {
    let mut net = Net::new(3, 11);
    net.run_for(20);
    let term = net.raft(0).term();
    net.isolate(2);
    net.run_for(5_000);
    assert_eq!(net.raft(2).term(), term, "asking does not raise the term");
    net.heal();
    net.run_for(1_000);
    assert_eq!((net.leader(), net.raft(0).term()), (Some(0), term));
    assert_eq!(net.raft(2).leader(), Some(ReplicaId(0)));
    net.judge();
}

#[test]
fn a_member_that_is_heard_but_hears_nothing_deposes_nobody() {
    let mut net = Net::new(3, 12);
    net.run_for(20);
    let term = net.raft(0).term();
    net.cut.extend([(0, 2), (1, 2)]);
    net.run_for(5_000);
    assert_eq!((net.leader(), net.raft(0).term()), (Some(0), term));
    net.judge();
}

#[test]
fn a_member_in_a_later_term_is_heard_in_the_end() {
    // It voted for itself in a later term before it was cut off; nothing it says would be followed, and it follows nobody.
    let mut net = Net::new(3, 13);
    net.run_for(20);
    net.crash(2);
    let disk = &mut net.members.get_mut(&2).unwrap().disk;
    let hard = dwcp_raft::HardState { term: Term(9), vote: Some(ReplicaId(2)) };
    disk.records.push_back(Record::Hard(hard).to_bytes(net::EPOCH));
    disk.synced = disk.records.len();
    net.restart(2);
    let together =
        |net: &Net| net.leader().is_some() && net.up().iter().all(|id| net.raft(*id).term() > Term(8));
    assert!(net.until(2_000, together));
    net.run_for(1_000);
    let leader = net.leader().map(ReplicaId);
    assert!(net.up().iter().all(|id| net.raft(*id).leader() == leader));
    net.judge();
}

// Thesis section 3.10: leadership transfer.

#[test]
fn leadership_moves_in_a_few_milliseconds_and_loses_nothing() {
    let mut net = Net::new(3, 14);
    net.run_for(20);
    net.propose(0, &batch("before")).unwrap();
    net.transfer(0, 2);
    assert_eq!(net.propose(0, &batch("x")), Err(ProposeError::Transferring { to: ReplicaId(2) }));
    assert!(net.until(10, |net| net.leader() == Some(2)));
    net.propose(2, &batch("after")).unwrap();
    assert!(net.until(10, |net| net.committed_frames() == ["before", "after"]));
    net.judge();
}

#[test]
fn a_transfer_to_a_dead_member_is_given_up() {
    let mut net = Net::new(3, 15);
    net.run_for(20);
    net.crash(2);
    net.propose(0, &batch("x")).unwrap();
    net.transfer(0, 2);
    assert!(net.propose(0, &batch("y")).is_err());
    net.run_for(250);
    net.propose(0, &batch("z")).unwrap();
    assert_eq!(net.leader(), Some(0));
    net.judge();
}

#[test]
fn leadership_goes_only_from_the_leader_to_another_member() {
    let mut one = One::new(3, 0);
    let at = one.at();
    assert_eq!(
        one.raft.transfer_leadership(at, ReplicaId(1)),
        Err(TransferError::NotLeader { leader: None })
    );
    one.elect(&[1]);
    assert_eq!(one.raft.transfer_leadership(at, ReplicaId(0)), Err(TransferError::NotAMember));
    assert_eq!(one.raft.transfer_leadership(at, ReplicaId(9)), Err(TransferError::NotAMember));
    let mut follower = One::new(3, 2);
    follower.hear(0, 1, Said::Heartbeat { commit: Index(0), round: 0 });
    follower.hear(1, 1, Said::TimeoutNow);
    assert_eq!(follower.refused(), ["a hand-over by one who does not lead"]);
    assert_eq!(follower.raft.term(), Term(1));
}

// Thesis section 6.4: linearizable reads.

#[test]
fn a_read_is_answered_after_one_round_trip_without_a_disk() {
    let mut net = Net::new(3, 16);
    net.faults.sync_us = 100_000;
    net.run_for(2_000);
    let token = net.read(0).unwrap();
    let asked = net.now;
    assert!(net.until(10, |net| net.reads_done.contains_key(&token)));
    assert!(net.now.since(asked) <= Micros(2 * net.faults.delay_us));
    net.judge();
}

#[test]
fn reads_that_come_together_share_a_round() {
    let mut one = One::new(3, 0);
    one.elect(&[1]);
    let term = one.raft.term().0;
    one.sync();
    one.hear(1, term, Said::Accepted { matched: Index(1) });
    one.said();
    for token in 0..1_000 {
        one.raft.read_index(one.at(), token).unwrap();
    }
    one.settle();
    assert_eq!(one.said().len(), 2, "one heartbeat to each follower");
    one.hear(1, term, Said::HeartbeatReply { round: 1 });
    let ready: usize = one
        .did
        .iter()
        .map(|action| if let Action::ReadsReady { tokens, .. } = action { tokens.len() } else { 0 })
        .sum();
    assert_eq!(ready, 1_000);
}

#[test]
fn a_new_leader_reads_nothing_before_an_entry_of_its_term_is_committed() {
    let mut one = One::open(3, 0, &records(3, None, &[1, 2]), |_| {});
    one.elect(&[1]);
    one.sync();
    one.raft.read_index(one.at(), 7).unwrap();
    one.settle();
    one.hear(1, 4, Said::HeartbeatReply { round: 0 });
    assert!(!one.did.iter().any(|action| matches!(action, Action::ReadsReady { .. })));
    one.hear(1, 4, Said::Accepted { matched: Index(3) });
    one.hear(1, 4, Said::HeartbeatReply { round: 1 });
    let ready = Action::ReadsReady { tokens: vec![7], index: Index(3) };
    assert!(one.did.contains(&ready));
}

/// A leader is cut off, another one commits, and the first is asked for a read before it notices.
fn reads_behind_a_partition(mutants: Mutants) -> Vec<String> {
    let mut net = Net::with(3, 17, |net| net.mutants = mutants);
    net.run_for(20);
    net.propose(0, &batch("old")).unwrap();
    net.run_for(20);
    net.isolate(0);
    // Its followers are quick to elect another; it has not noticed yet that it is alone.
    net.frozen.insert(0);
    assert!(net.until(1_000, |net| net.leader().is_some_and(|leader| leader != 0)));
    let leader = net.leader().unwrap();
    net.propose(leader, &batch("new")).unwrap();
    net.run_for(20);
    assert!(net.raft(0).is_leader());
    let token = net.read(0).unwrap();
    net.run_for(50);
    net.heal();
    net.frozen.clear();
    net.run_for(1_000);
    assert!(!net.violations.is_empty() || net.reads_done[&token].is_none(), "the read failed");
    net.violations.clone()
}

#[test]
fn a_deposed_leader_answers_no_read() {
    assert_eq!(reads_behind_a_partition(Mutants::default()), Vec::<String>::new());
}

#[test]
fn a_round_of_one_leader_is_not_confirmed_to_the_next() {
    let mut one = One::new(3, 2);
    let message = |term, said| Message { epoch: net::EPOCH, term: Term(term), said }.to_bytes();
    let beat = message(1, Said::Heartbeat { commit: Index(0), round: 5 });
    let next = message(2, append(places(&[])[0], 0, &[entry(2, "a")]));
    one.raft.step(one.at(), ReplicaId(0), &beat);
    one.raft.step(one.at(), ReplicaId(1), &next);
    one.settle();
    assert_eq!(one.said(), [(1, Said::Accepted { matched: Index(1) }, Ticket(3))]);
}

#[test]
fn an_old_round_confirms_no_new_read() {
    let mut one = One::new(3, 0);
    one.elect(&[1]);
    let term = one.raft.term().0;
    one.sync();
    one.hear(1, term, Said::Accepted { matched: Index(1) });
    one.raft.read_index(one.at(), 1).unwrap();
    one.settle();
    one.raft.read_index(one.at(), 2).unwrap();
    one.settle();
    one.hear(2, term, Said::HeartbeatReply { round: 1 });
    let ready: Vec<_> = one.did.iter().filter(|action| matches!(action, Action::ReadsReady { .. })).collect();
    assert_eq!(ready, [&Action::ReadsReady { tokens: vec![1], index: Index(1) }]);
}

// What the reader of figure 2 expects of the wire.

#[test]
fn an_append_across_a_followers_border_is_understood() {
    let log: Vec<_> = (1..=6).map(|at| entry(1, &format!("{at}"))).collect();
    let at = places(&log);
    let mut one = One::new(3, 2);
    one.hear(0, 1, append(at[0], 4, &log[..4]));
    one.sync();
    assert_eq!(one.raft.discard(Index(4)), at[4]);
    one.settle();
    one.said();
    one.hear(0, 1, append(at[0], 4, &log[..3]));
    assert_eq!(one.said()[0].1, Said::Accepted { matched: Index(4) });
    one.hear(0, 1, append(at[2], 4, &log[2..6]));
    assert_eq!(one.said()[0].1, Said::Accepted { matched: Index(6) });
    assert_eq!(one.raft.last(), at[6]);
}

#[test]
fn a_conflict_names_the_last_place_that_can_agree() {
    let mut one = One::open(3, 2, &records(3, None, &[1, 1, 3, 3]), |_| {});
    let prev = places(&[entry(1, "1"), entry(1, "2"), entry(2, "3"), entry(2, "x")])[4];
    one.hear(0, 4, append(prev, 0, &[]));
    let expected = Conflict { refused: Index(4), index: Index(2), term: Term(1) };
    assert_eq!(one.said()[0].1, Said::Refused(expected));
}

#[test]
fn members_speak_bytes_that_name_their_epoch() {
    let mut one = One::open(3, 0, &[], |setup| setup.first_leader = Some(ReplicaId(0)));
    one.settle();
    for action in &one.did {
        if let Action::Send { message, .. } = action {
            assert_eq!(Message::from_bytes(message).unwrap().epoch, net::EPOCH);
        }
    }
    assert!(matches!(Record::from_bytes(&one.records[0]), Ok((net::EPOCH, Record::Hard(_)))));
}

#[cfg(feature = "mutants")]
mod mutants {
    use super::*;
    use dwcp_base::Mutant;

    #[test]
    fn every_story_notices_the_rule_it_is_about() {
        let off = |mutant| Mutants::default().with(mutant);
        assert!(vote_crash_vote(off(Mutant::RaftForgetsVoteOnRestart)));
        assert!(votes_for_a_longer_but_older_log(off(Mutant::RaftLongestIndexVote)));
        assert!(commits_an_entry_of_an_earlier_term_by_counting(off(Mutant::RaftCommitOldTerm)));
        assert!(commits_with_one_durable_copy(off(Mutant::RaftLeaderCountsUnsynced)));
        assert!(!reads_behind_a_partition(off(Mutant::RaftLeaseReads)).is_empty());
    }

    #[test]
    fn a_vote_that_does_not_wait_is_seen() {
        let mut one =
            One::open(3, 2, &[], |setup| setup.mutants = Mutants::default().with(Mutant::RaftVoteBeforeSync));
        one.hear(0, 1, Said::Vote { last: places(&[])[0], transfer: false });
        assert_eq!(one.said(), [(0, Said::VoteReply { granted: true }, Ticket::ZERO)]);
    }
}
