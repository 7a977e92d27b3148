//! Whatever a member might say. Each line of the first test is one thing that cannot be, and the name under which it is
//! counted; the rest is arbitrary: well-formed messages full of absurd numbers, and bytes.

use crate::net::{EPOCH, base};
use crate::one::{One, append, entry, marker, places};
use dwcp_base::limits::CLOCK_AHEAD_MAX_MS;
use dwcp_base::{Epoch, Hash, LogTime, Now, ReplicaId};
use dwcp_raft::{Body, Conflict, Entry, Index, Message, Payload, Place, RaftNode, Said, Term};
use proptest::prelude::*;

/// A follower of r0 in term 3 that holds a committed `a` (term 1) and `b` (term 3).
fn follower() -> (One, Vec<Place>, Vec<Entry>) {
    let log = vec![entry(1, "a"), entry(3, "b"), entry(3, "c")];
    let at = places(&log);
    let mut one = One::new(3, 2);
    one.hear(0, 3, append(at[0], 1, &log[..2]));
    one.sync();
    one.said();
    (one, at, log)
}

/// A leader of term 1 whose followers hold its two entries.
fn leader() -> One {
    let mut one = One::new(3, 0);
    one.elect(&[1]);
    one.sync();
    for matched in [1, 2] {
        for follower in [1, 2] {
            one.hear(follower, 1, Said::Accepted { matched: Index(matched) });
        }
        if matched == 1 {
            one.propose("a");
            one.sync();
        }
    }
    one.said();
    one
}

#[test]
fn what_cannot_be_is_dropped_under_its_name_and_changes_nothing() {
    let (_, at, log) = follower();
    let nowhere = |index, term| Place { index: Index(index), term: Term(term), chain: Hash::ZERO };
    let cases: Vec<(&str, u8, u64, Said)> = vec![
        ("not a member of this segment", 9, 3, append(at[2], 2, &log[2..])),
        ("not a member of this segment", 2, 3, append(at[2], 2, &log[2..])),
        ("a term from nowhere", 1, 3 + (1 << 32) + 1, Said::Heartbeat { commit: Index(0), round: 0 }),
        ("a term beyond all terms", 1, u64::MAX, Said::Heartbeat { commit: Index(0), round: 0 }),
        ("two leaders in one term", 1, 3, append(at[2], 2, &log[2..])),
        ("two leaders in one term", 1, 3, Said::Heartbeat { commit: Index(0), round: 0 }),
        ("two leaders in one term", 1, 3, Said::Committed { through: Index(2) }),
        ("a commit past the log", 0, 3, Said::Heartbeat { commit: Index(3), round: 0 }),
        ("a commit past the log", 0, 3, Said::Committed { through: Index(1 << 40) }),
        ("a place beyond all places", 0, 3, Said::Heartbeat { commit: Index(u64::MAX), round: 0 }),
        ("a place beyond all places", 0, 3, append(nowhere(u64::MAX, 3), 2, &[])),
        ("a place beyond all places", 0, 3, append(nowhere(2, 4), 2, &[])),
        ("a place beyond all places", 0, 3, append(nowhere(0, 1), 2, &[])),
        ("a place beyond all places", 0, 3, append(nowhere(1, 0), 2, &[])),
        ("a place beyond all places", 0, 3, append(at[2], u64::MAX, &[])),
        ("a place beyond all places", 1, 4, Said::Vote { last: nowhere(9, 4), transfer: true }),
        ("a place beyond all places", 1, 4, Said::PreVote { last: nowhere(9, 5) }),
        ("entries whose terms fall or exceed the leader's", 0, 3, append(at[2], 2, &[entry(1, "x")])),
        ("entries whose terms fall or exceed the leader's", 0, 3, append(at[2], 2, &[entry(4, "x")])),
        ("entries whose terms fall or exceed the leader's", 0, 3, append(at[0], 2, &[entry(0, "x")])),
        ("two entries for one index and term", 0, 3, append(at[1], 2, &[entry(3, "other")])),
        ("two entries for one index and term", 0, 3, append(at[0], 2, &[entry(1, "other")])),
        ("equal index and term, other content before", 0, 3, append(nowhere(2, 3), 2, &log[2..])),
        ("a conflict with what is committed", 0, 3, append(at[0], 2, &[entry(2, "x"), entry(3, "b")])),
        ("a conflict with what is committed", 0, 3, append(nowhere(1, 2), 2, &[])),
        ("a hand-over by one who does not lead", 1, 3, Said::TimeoutNow),
        (
            "a conflict that cannot be",
            1,
            3,
            Said::Refused(Conflict { refused: Index(0), index: Index(0), term: Term(0) }),
        ),
        (
            "a conflict that cannot be",
            1,
            3,
            Said::Refused(Conflict { refused: Index(1), index: Index(2), term: Term(0) }),
        ),
        (
            "a conflict that cannot be",
            1,
            3,
            Said::Refused(Conflict { refused: Index(1), index: Index(1), term: Term(9) }),
        ),
    ];
    for (reason, from, term, said) in cases {
        let (mut one, at, _) = follower();
        one.hear(from, term, said.clone());
        assert_eq!(one.refused(), [reason], "{said:?}");
        assert_eq!(
            (one.raft.last(), one.raft.commit(), one.raft.term()),
            (at[2], Index(1), Term(3)),
            "{said:?}"
        );
        assert_eq!(one.said(), [], "{said:?}");
        // The leader goes on as if nothing had been.
        one.hear(0, 3, append(at[2], 2, &[entry(3, "c")]));
        assert_eq!(one.said()[0].1, Said::Accepted { matched: Index(3) }, "{said:?}");
    }
}

/// Leases and sessions end by the time in entries: a leader whose clock is ahead is not followed until ours is there, and one
/// that writes it all the same loses nothing of what came before.
#[test]
fn a_leader_ahead_of_our_clock_is_followed_once_our_clock_is_there() {
    let timed =
        |time: u64| Entry { term: Term(3), body: Body::new(&Payload::Tick { time: LogTime(time) }).unwrap() };
    let (mut one, at, mut log) = follower();
    one.hear(0, 3, append(at[2], 2, &log[2..]));
    one.sync();
    one.said();
    log.extend([timed(CLOCK_AHEAD_MAX_MS), timed(CLOCK_AHEAD_MAX_MS + 1)]);
    let at = places(&log);
    let hurried = append(at[3], 2, &log[3..]);
    one.hear(0, 3, hurried.clone());
    one.sync();
    assert_eq!(one.refused(), ["an entry from the future"]);
    assert_eq!(one.said()[0].1, Said::Accepted { matched: Index(4) }, "up to there it is followed");
    // Nothing of it is new: silence, or the leader would send it again at once.
    one.hear(0, 3, append(at[4], 2, &log[4..]));
    one.sync();
    assert_eq!(one.refused(), ["an entry from the future"]);
    assert_eq!(one.said(), []);
    one.wall_ms = 1;
    one.hear(0, 3, hurried);
    one.sync();
    assert!(one.refused().is_empty());
    assert_eq!(one.said()[0].1, Said::Accepted { matched: Index(5) });
}

#[test]
fn what_a_leader_cannot_have_been_told_is_dropped_under_its_name() {
    let cases = [
        ("an acknowledgement of what was not sent", Said::Accepted { matched: Index(3) }),
        ("a place beyond all places", Said::Accepted { matched: Index(u64::MAX) }),
        ("a round that was not begun", Said::HeartbeatReply { round: 1 }),
        ("two leaders in one term", append(base(), 0, &[entry(1, "x")])),
        ("two leaders in one term", Said::Heartbeat { commit: Index(0), round: 0 }),
        ("a hand-over by one who does not lead", Said::TimeoutNow),
        (
            "a refusal of what was not sent",
            Said::Refused(Conflict { refused: Index(9), index: Index(3), term: Term(1) }),
        ),
    ];
    for (reason, said) in cases {
        let mut one = leader();
        one.hear(1, 1, said.clone());
        assert_eq!(one.refused(), [reason], "{said:?}");
        assert!(one.raft.is_leader() && one.raft.commit() == Index(2), "{said:?}");
    }
}

#[test]
fn messages_of_other_epochs_and_bytes_that_are_none_are_refused() {
    let (mut one, at, log) = follower();
    let message = Message { epoch: Epoch(6), term: Term(3), said: append(at[2], 2, &log[2..]) };
    one.raft.step(one.at(), ReplicaId(0), &message.to_bytes());
    one.settle();
    assert_eq!(one.refused(), ["another epoch"]);
    one.raft.step(one.at(), ReplicaId(0), b"nonsense");
    one.settle();
    assert_eq!(one.refused(), ["not a message of a segment"]);
    let mut damaged =
        Message { epoch: EPOCH, term: Term(3), said: append(at[2], 2, &log[2..]) }.to_bytes().to_vec();
    let end = damaged.len();
    damaged[end - 6] = 0xff;
    one.raft.step(one.at(), ReplicaId(0), &damaged);
    one.settle();
    assert_eq!(one.refused(), ["not a message of a segment"]);
}

#[test]
fn a_vote_for_a_log_with_other_content_is_still_only_a_vote() {
    // The chain of the last place decides nothing in an election; the first Append shows that the logs differ.
    let (mut one, ..) = follower();
    let last = Place { index: Index(2), term: Term(3), chain: Hash::ZERO };
    one.hear(1, 4, Said::Vote { last, transfer: true });
    assert_eq!(one.said()[0].1, Said::VoteReply { granted: true });
    one.hear(1, 4, append(last, 2, &[entry(4, "x")]));
    assert_eq!(one.refused(), ["equal index and term, other content before"]);
}

fn small() -> impl Strategy<Value = u64> {
    prop_oneof![8 => 0..6_u64, 1 => 0..200_u64, 1 => Just(u64::MAX), 1 => Just(1 << 62), 1 => any::<u64>()]
}

fn any_place() -> impl Strategy<Value = Place> {
    // Places of the likely logs below, with their true chains, and others.
    let log: Vec<Entry> = (0..6).map(|at| entry(1 + at / 2, "x")).collect();
    let known = places(&log);
    prop_oneof![
        4 => (0..known.len()).prop_map(move |at| known[at]),
        1 => (small(), small()).prop_map(|(index, term)| Place { index: Index(index), term: Term(term), chain: base().chain }),
    ]
}

fn any_entry() -> impl Strategy<Value = Entry> {
    prop_oneof![
        9 => (1..5_u64, prop_oneof![Just("x"), Just("y")]).prop_map(|(term, frame)| entry(term, frame)),
        1 => (1..5_u64).prop_map(marker),
        1 => small().prop_map(|term| entry(term, "z")),
    ]
}

fn any_said() -> impl Strategy<Value = Said> {
    let entries = prop::collection::vec(any_entry(), 0..6).prop_map(|mut entries| {
        entries.sort_by_key(|entry| entry.term);
        entries
    });
    prop_oneof![
        1 => any_place().prop_map(|last| Said::PreVote { last }),
        1 => any::<bool>().prop_map(|granted| Said::PreVoteReply { granted }),
        1 => (any_place(), any::<bool>()).prop_map(|(last, transfer)| Said::Vote { last, transfer }),
        1 => any::<bool>().prop_map(|granted| Said::VoteReply { granted }),
        6 => (any_place(), small(), entries)
            .prop_map(|(prev, commit, entries)| Said::Append { prev, commit: Index(commit), entries }),
        3 => small().prop_map(|matched| Said::Accepted { matched: Index(matched) }),
        1 => (small(), small(), small()).prop_map(|(refused, index, term)| {
            Said::Refused(Conflict { refused: Index(refused), index: Index(index), term: Term(term) })
        }),
        1 => (small(), small()).prop_map(|(commit, round)| Said::Heartbeat { commit: Index(commit), round }),
        1 => small().prop_map(|round| Said::HeartbeatReply { round }),
        1 => Just(Said::TimeoutNow),
        1 => Just(Said::Stale),
        1 => small().prop_map(|through| Said::Committed { through: Index(through) }),
    ]
}

/// What else happens between messages.
#[derive(Clone, Debug)]
enum Deed {
    Hear(u8, u64, Said),
    Wait(u64),
    Sync,
    Propose,
    Mark,
    Read,
    Transfer(u8),
    Discard(u64),
    Install(Place),
    Restart,
    Seal,
}

fn any_deed() -> impl Strategy<Value = Deed> {
    prop_oneof![
        30 => (0..4_u8, prop_oneof![9 => 0..6_u64, 1 => small()], any_said())
            .prop_map(|(from, term, said)| Deed::Hear(from, term, said)),
        4 => (0..500_u64).prop_map(Deed::Wait),
        4 => Just(Deed::Sync),
        2 => Just(Deed::Propose),
        1 => Just(Deed::Mark),
        2 => Just(Deed::Read),
        1 => (0..4_u8).prop_map(Deed::Transfer),
        2 => (0..8_u64).prop_map(Deed::Discard),
        1 => (0..8_u64, 1..5_u64).prop_map(|(index, term)| {
            Deed::Install(Place { index: Index(index), term: Term(term), chain: base().chain })
        }),
        1 => Just(Deed::Restart),
        1 => Just(Deed::Seal),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// `check` runs after each; committed entries stay what they are, whatever anybody says.
    #[test]
    fn no_message_breaks_a_member_or_takes_back_what_is_committed(
        n in 1..4_u8,
        first in any::<bool>(),
        deeds in prop::collection::vec(any_deed(), 1..60),
    ) {
        let mut one = One::open(n, 0, &[], |setup| {
            setup.first_leader = first.then_some(ReplicaId(0));
            setup.limits.log_entries_max = 16;
        });
        one.settle();
        let mut committed: Vec<Place> = Vec::new();
        for deed in deeds {
            match deed {
                Deed::Hear(from, term, said) => one.hear(from, term, said),
                Deed::Wait(ms) => one.wait(ms),
                Deed::Sync => one.sync(),
                Deed::Propose => { let _ = one.raft.propose(one.at(), &crate::net::batch("x")); }
                Deed::Mark => { let _ = one.raft.propose(one.at(), &dwcp_raft::Payload::Marker); }
                Deed::Read => { let _ = one.raft.read_index(one.at(), 1); }
                Deed::Transfer(to) => { let _ = one.raft.transfer_leadership(one.at(), ReplicaId(to)); }
                Deed::Discard(through) => { one.raft.discard(Index(through)); }
                Deed::Install(place) => {
                    if one.raft.install(one.at(), place).is_ok() {
                        committed.clear();
                    }
                }
                Deed::Restart => {
                    one.restart();
                    // What is committed is not on Raft's disk (figure 2); the caller's snapshot says it again.
                    if let Some(last) = committed.pop().filter(|last| last.index > one.raft.commit()) {
                        let installed = one.raft.install(one.at(), last);
                        prop_assert!(installed.is_ok() || one.raft.sealed().is_some());
                    }
                    committed.clear();
                }
                Deed::Seal => { one.raft.seal(one.at()); }
            }
            one.settle();
            for place in &committed {
                let now = one.raft.place(place.index);
                prop_assert!(now.is_none_or(|now| now == *place), "{place:?} became {now:?}");
                prop_assert!(place.index <= one.raft.border().index || now.is_some(), "{place:?} is gone");
            }
            let commit = one.raft.commit();
            prop_assert!(committed.last().is_none_or(|last| last.index <= one.raft.last().index));
            if let Some(place) = one.raft.place(commit)
                && committed.last() != Some(&place)
            {
                committed.push(place);
            }
        }
    }

    #[test]
    fn no_bytes_break_a_member(bytes in prop::collection::vec(any::<u8>(), 0..200), at in 0..200_usize, value: u8) {
        let (mut one, places, log) = follower();
        one.raft.step(one.at(), ReplicaId(0), &bytes);
        let mut message = Message { epoch: EPOCH, term: Term(3), said: append(places[2], 2, &log[2..]) }.to_bytes().to_vec();
        let at = at % message.len();
        message[at] = value;
        one.raft.step(Now::default(), ReplicaId(0), &message);
        one.settle();
        prop_assert_eq!(one.raft.place(Index(1)), Some(places[1]));
    }
}
