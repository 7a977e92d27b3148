//! Each command runs at most once, whatever comes again, late, through a snapshot or after the session's end; and
//! every refusal tells the truth about what it refused.

use crate::{BORN_MS, frame, genesis, key, open_frame, put, reply};
use bytes::Bytes;
use dwcp_base::configuration::{Principal, Role};
use dwcp_base::limits::{EXPIRY_STEP_MAX_MS, SESSION_WINDOW};
use dwcp_base::{LogTime, Mutants, Position, decode};
use dwcp_state::kv::{Kv, KvBody, KvCommand, Range};
use dwcp_state::session::{RESULT_STORED_BYTES_MAX, SESSION_RESULT_BYTES_MAX};
use dwcp_state::{
    AdminCommand, AdminReply, Admission, CheckedFrame, Command, CommandResult, Fate, OpenReply, Outcome,
    Refusal, SessionId, State,
};
use proptest::prelude::*;

const TTL_MS: u64 = 120_000;

/// A state with a cursor, so that tests speak of entries and time only.
struct Run {
    state: State<Kv>,
    position: u64,
    now_ms: u64,
}

impl Run {
    fn new() -> Self {
        Self {
            state: State::new(&genesis(), Kv::new(1 << 30), Mutants::default()),
            position: 0,
            now_ms: BORN_MS,
        }
    }

    /// One entry, this much later, with one frame.
    fn entry(&mut self, later_ms: u64, frame: &CheckedFrame) -> Vec<CommandResult> {
        self.tick(later_ms);
        self.state.execute(frame).results
    }

    fn tick(&mut self, later_ms: u64) {
        self.position += 1;
        self.now_ms += later_ms;
        self.state.begin_entry(Position(self.position), LogTime(self.now_ms));
    }

    /// Log time and expiry clock both move by this much.
    fn pass(&mut self, ms: u64) {
        for _ in 0..ms / EXPIRY_STEP_MAX_MS {
            self.tick(EXPIRY_STEP_MAX_MS);
        }
        self.tick(ms % EXPIRY_STEP_MAX_MS);
    }

    /// A session of `ann` with this key, opened now.
    fn opened(session: u8) -> Self {
        let mut run = Self::new();
        let results = run.entry(0, &open_frame("ann", 2, session, TTL_MS, BORN_MS + 60_000));
        assert!(matches!(results[0].outcome, Outcome::Done(_)), "{results:?}");
        run
    }

    fn version_of(&self, name: &str) -> u64 {
        let query = KvCommand::Range(Range::key(name.to_string())).to_command();
        let bytes = self.state.query(&query).unwrap();
        match dwcp_state::kv::KvReply::decode(&bytes).unwrap().body {
            KvBody::Range { kvs, .. } => kvs.first().map_or(0, |kv| kv.version),
            body => panic!("{body:?}"),
        }
    }
}

fn refusal(result: &CommandResult) -> &Refusal {
    match &result.outcome {
        Outcome::Refused(refusal) => refusal,
        Outcome::Done(_) => panic!("done, not refused"),
    }
}

#[test]
fn a_retry_is_answered_and_not_run() {
    let mut run = Run::opened(50);
    let commands = frame(50, 1, 1, &[put("a", "1"), put("b", "1")]);
    assert_eq!(run.state.admit(&commands), Ok(Admission::Fresh));
    let first = run.entry(1, &commands);
    assert_eq!(run.state.admit(&commands), Ok(Admission::AllExecuted(first.clone())));
    run.entry(1, &frame(50, 1, 3, &[put("a", "2")]));
    assert_eq!(run.entry(1, &commands), first, "the stored answer, not the present one");
    assert_eq!((run.version_of("a"), run.version_of("b")), (2, 1));
    // A frame with one new command among old ones runs only that one.
    let mixed = frame(50, 1, 2, &[put("b", "1"), put("a", "2"), put("c", "1")]);
    assert_eq!(run.state.admit(&mixed), Ok(Admission::Fresh));
    let results = run.entry(1, &mixed);
    assert_eq!(results[0], first[1]);
    assert_eq!((run.version_of("a"), run.version_of("b"), run.version_of("c")), (2, 1, 1));
}

#[test]
fn an_older_sequence_that_comes_late_runs_in_its_turn() {
    let mut run = Run::opened(50);
    for sequence in [5, 3, 1024, 1, 4, 2] {
        let results = run.entry(1, &frame(50, 1, sequence, &[put(&format!("k{sequence}"), "v")]));
        assert_eq!(reply(&results[0]).revision, run.state.machine().revision());
        assert_eq!(run.version_of(&format!("k{sequence}")), 1);
    }
}

#[test]
fn the_window_slides_with_the_low_water_mark_and_never_back() {
    let mut run = Run::opened(50);
    run.entry(1, &frame(50, 1, 1, &[put("a", "1")]));
    run.entry(1, &frame(50, 10, 10, &[put("b", "1")]));
    // Below the mark: unknown, since it may have run and been forgotten.
    let results = run.entry(1, &frame(50, 1, 1, &[put("a", "2")]));
    assert_eq!(refusal(&results[0]), &Refusal::BelowLowWater { low_water: 10 });
    assert_eq!(refusal(&results[0]).fate(), Fate::Unknown);
    assert_eq!(run.version_of("a"), 1);
    // An old frame does not lower the mark: its own window no longer counts, the session's does.
    let results = run.entry(1, &frame(50, 1, SESSION_WINDOW, &[put("far", "1")]));
    assert_eq!(reply(&results[0]).revision, run.state.machine().revision());
    let last = 10 + SESSION_WINDOW - 1;
    reply(&run.entry(1, &frame(50, 10, last, &[put("edge", "1")]))[0]);
    assert_eq!(run.version_of("edge"), 1);
}

#[test]
fn refused_writes_stay_refused_when_their_frame_comes_again() {
    let mut run = Run::opened(50);
    let leased =
        KvCommand::Put(dwcp_state::kv::Put { lease: 7, ..dwcp_state::kv::Put::new("a", "1") }).to_command();
    let frame_1 = frame(50, 1, 1, &[leased, Bytes::from_static(b"\x09junk")]);
    let first = run.entry(1, &frame_1);
    assert!(refusal(&first[0]).definite() && refusal(&first[1]) == &Refusal::Malformed);
    let grant = KvCommand::LeaseGrant { id: 7, ttl_s: 100 }.to_command();
    reply(&run.entry(1, &frame(50, 1, 3, &[grant]))[0]);
    // Now it could run, but its client was told that it never will.
    assert_eq!(run.entry(1, &frame_1), first);
    assert_eq!(run.version_of("a"), 0);
}

#[test]
fn a_retried_read_reads_again() {
    let mut run = Run::opened(50);
    let read = frame(50, 1, 1, &[KvCommand::get("a").to_command()]);
    let before = run.entry(1, &read);
    run.entry(1, &frame(50, 1, 2, &[put("a", "1")]));
    assert_eq!(run.state.admit(&read), Ok(Admission::Fresh));
    assert_ne!(run.entry(1, &read), before);
}

#[test]
fn an_expired_session_is_unknown_and_its_commands_never_run_again() {
    let mut run = Run::new();
    let open = open_frame("ann", 2, 50, TTL_MS, BORN_MS + 60_000);
    run.entry(0, &open);
    let commands = frame(50, 1, 1, &[put("a", "1")]);
    run.entry(0, &commands);
    run.pass(TTL_MS - 1);
    assert_eq!(run.state.session_count(), 1);
    assert_eq!(run.state.wants_ticks(), Some(1));
    run.tick(1);
    assert_eq!((run.state.session_count(), run.state.wants_ticks()), (0, None));
    assert_eq!(run.state.admit(&commands), Err(Refusal::SessionExpired));
    let results = run.entry(1, &commands);
    assert_eq!(refusal(&results[0]), &Refusal::SessionExpired);
    assert!(!refusal(&results[0]).definite());
    assert_eq!(run.version_of("a"), 1);
    // Its open has run out of validity as well, so nobody can bring the session back with an empty memory.
    assert!(matches!(run.state.admit(&open), Err(Refusal::OpenNotValid { .. })));
    assert!(matches!(refusal(&run.entry(1, &open)[0]), Refusal::OpenNotValid { .. }));
    assert_eq!(refusal(&run.entry(1, &commands)[0]), &Refusal::SessionExpired);
    assert_eq!(run.version_of("a"), 1);
}

#[test]
fn a_gap_without_entries_expires_nothing_by_itself() {
    let mut run = Run::opened(50);
    run.tick(10 * TTL_MS);
    assert_eq!(run.state.session_count(), 1);
    assert_eq!(run.state.expiry_ms(), EXPIRY_STEP_MAX_MS);
    assert_eq!(run.state.log_time(), LogTime(BORN_MS + 10 * TTL_MS));
    // Log time never goes back.
    run.state.begin_entry(Position(9), LogTime(3));
    assert_eq!(run.state.log_time(), LogTime(BORN_MS + 10 * TTL_MS));
    assert_eq!(run.state.expiry_ms(), EXPIRY_STEP_MAX_MS);
}

#[test]
fn a_closed_session_cannot_be_opened_by_its_old_open() {
    let mut run = Run::new();
    let open = open_frame("ann", 2, 50, TTL_MS, BORN_MS + 30_000);
    run.entry(0, &open);
    let commands = frame(50, 1, 1, &[put("a", "1")]);
    run.entry(0, &commands);
    let close = frame(50, 1, 2, &[Command::CloseSession.encode(), put("late", "1")]);
    let results = run.entry(0, &close);
    assert_eq!(results[0].outcome, Outcome::Done(Bytes::new()));
    assert_eq!(refusal(&results[1]), &Refusal::SessionExpired);
    assert_eq!(run.version_of("late"), 0);
    // While the open is valid a tombstone stands in its way; then its validity does.
    for _ in 0..16 {
        let before = run.state.session_count();
        let refused = run.entry(2_000, &open);
        assert!(matches!(refused[0].outcome, Outcome::Refused(_)), "{refused:?} with {before} sessions");
        assert_eq!(refusal(&run.entry(0, &commands)[0]), &Refusal::SessionExpired);
    }
    assert_eq!(run.state.session_count(), 0);
    assert_eq!(run.version_of("a"), 1);
}

#[test]
fn only_new_commands_keep_a_session_alive() {
    let mut run = Run::opened(50);
    let commands = frame(50, 1, 1, &[put("a", "1")]);
    run.entry(0, &commands);
    run.pass(TTL_MS / 2);
    run.entry(0, &commands);
    run.entry(0, &open_frame("ann", 2, 50, TTL_MS, BORN_MS + 60_000));
    run.pass(TTL_MS / 2);
    assert_eq!(run.state.session_count(), 0, "replays prolong nothing");

    let mut run = Run::opened(51);
    run.pass(TTL_MS / 2);
    run.entry(0, &frame(51, 1, 1, &[Command::Nothing.encode()]));
    run.pass(TTL_MS / 2);
    assert_eq!(run.state.session_count(), 1);
}

#[test]
fn opening_again_answers_the_same_and_forgets_nothing() {
    let mut run = Run::new();
    let open = open_frame("ann", 2, 50, 0, BORN_MS + 60_000);
    let first = run.entry(0, &open);
    let Outcome::Done(bytes) = &first[0].outcome else { panic!() };
    let expected = OpenReply { session: SessionId::of(&key(50)), ttl_ms: 3_600_000 };
    assert_eq!(decode::<OpenReply>(bytes), Ok(expected));
    run.entry(1, &frame(50, 1, 1, &[put("a", "1")]));
    assert_eq!(run.state.admit(&open), Ok(Admission::AllExecuted(first.clone())));
    assert_eq!(run.entry(59_000, &open), first);
    run.entry(1, &frame(50, 1, 1, &[put("a", "1")]));
    assert_eq!(run.version_of("a"), 1);
    assert_eq!(run.state.session_principal(SessionId::of(&key(50))), Some(("ann", Role::Writer)));
}

#[test]
fn opens_are_judged_by_the_ordered_registry_and_log_time() {
    let mut run = Run::opened(50);
    let refused = |run: &mut Run, frame: &CheckedFrame| {
        let admitted = run.state.admit(frame).unwrap_err();
        let results = run.entry(0, frame);
        assert_eq!(refusal(&results[0]), &admitted);
        assert!(admitted.definite());
        admitted
    };
    let until = BORN_MS + 60_000;
    assert_eq!(refused(&mut run, &open_frame("bob", 2, 60, 0, until)), Refusal::PrincipalUnknown);
    assert_eq!(refused(&mut run, &open_frame("ann", 3, 60, 0, until)), Refusal::PrincipalUnknown);
    assert_eq!(refused(&mut run, &open_frame("eve", 3, 50, 0, until)), Refusal::SessionKeyTaken);
    let not_valid = |refusal| matches!(refusal, Refusal::OpenNotValid { .. });
    assert!(not_valid(refused(&mut run, &open_frame("ann", 2, 60, 0, BORN_MS - 1))));
    assert!(not_valid(refused(&mut run, &open_frame("ann", 2, 60, 0, until + 1))));
    for (session, edge) in [(61, BORN_MS), (62, until)] {
        assert_eq!(run.state.admit(&open_frame("ann", 2, session, 0, edge)), Ok(Admission::Fresh));
    }
}

#[test]
fn roles_bound_what_a_session_may_do() {
    let mut run = Run::new();
    run.entry(0, &open_frame("eve", 3, 50, 0, BORN_MS + 60_000));
    run.entry(0, &open_frame("ann", 2, 51, 0, BORN_MS + 60_000));
    let list = Command::Admin(AdminCommand::PrincipalList).encode();
    let commands = [KvCommand::get("a").to_command(), put("a", "1"), list.clone(), Command::Nothing.encode()];
    let results = run.entry(0, &frame(50, 1, 1, &commands));
    reply(&results[0]);
    assert_eq!(refusal(&results[1]), &Refusal::Forbidden { role: Role::Reader });
    assert_eq!(refusal(&results[2]), &Refusal::Forbidden { role: Role::Reader });
    assert_eq!(results[3].outcome, Outcome::Done(Bytes::new()));
    let results = run.entry(0, &frame(51, 1, 1, &[put("a", "1"), list]));
    reply(&results[0]);
    assert_eq!(refusal(&results[1]), &Refusal::Forbidden { role: Role::Writer });
}

#[test]
fn removing_a_principal_ends_its_sessions_at_once() {
    let mut run = Run::opened(50);
    run.entry(0, &open_frame("root", 1, 51, 0, BORN_MS + 60_000));
    let admin = |run: &mut Run, sequence, command| {
        run.entry(0, &frame(51, 1, sequence, &[Command::Admin(command).encode()]))[0].outcome.clone()
    };
    let done = |outcome: &Outcome| match outcome {
        Outcome::Done(bytes) => decode::<AdminReply>(bytes).unwrap(),
        Outcome::Refused(refusal) => panic!("{refusal}"),
    };
    let commands = frame(50, 1, 1, &[put("a", "1")]);
    run.entry(0, &commands);
    let gone = admin(&mut run, 1, AdminCommand::PrincipalRemove { name: "ann".to_string() });
    assert_eq!(done(&gone), AdminReply::PrincipalRemoved { sessions_ended: 1 });
    assert_eq!(refusal(&run.entry(0, &commands)[0]), &Refusal::SessionExpired);
    // Even when it comes back with the same key, the old open finds the tombstone.
    let ann = AdminCommand::PrincipalPut { name: "ann".to_string(), key: key(2), role: Role::Admin };
    assert_eq!(done(&admin(&mut run, 2, ann)), AdminReply::PrincipalPut { sessions_ended: 0 });
    let again = open_frame("ann", 2, 50, TTL_MS, BORN_MS + 60_000);
    assert_eq!(refusal(&run.entry(0, &again)[0]), &Refusal::SessionExpired);
    // A new key ends sessions too; a new role holds at once for those that are open.
    run.entry(0, &open_frame("ann", 2, 52, 0, BORN_MS + 60_000));
    let role = AdminCommand::PrincipalPut { name: "ann".to_string(), key: key(2), role: Role::Reader };
    assert_eq!(done(&admin(&mut run, 3, role)), AdminReply::PrincipalPut { sessions_ended: 0 });
    let results = run.entry(0, &frame(52, 1, 1, &[put("a", "2")]));
    assert_eq!(refusal(&results[0]), &Refusal::Forbidden { role: Role::Reader });
    let rekeyed = AdminCommand::PrincipalPut { name: "ann".to_string(), key: key(9), role: Role::Reader };
    assert_eq!(done(&admin(&mut run, 4, rekeyed)), AdminReply::PrincipalPut { sessions_ended: 1 });
    let last = admin(&mut run, 5, AdminCommand::PrincipalRemove { name: "root".to_string() });
    assert!(matches!(last, Outcome::Refused(Refusal::Principal(_))));
    let listed = done(&admin(&mut run, 6, AdminCommand::PrincipalList));
    let AdminReply::Principals(listed) = listed else { panic!() };
    let names: Vec<_> = listed.iter().map(|Principal { name, .. }| name.as_str()).collect();
    assert_eq!(names, ["ann", "eve", "root"]);
    assert_eq!(run.version_of("a"), 1);
}

#[test]
fn the_cluster_version_rises_one_at_a_time() {
    let mut run = Run::new();
    run.entry(0, &open_frame("root", 1, 50, 0, BORN_MS + 60_000));
    let set = |version| Command::Admin(AdminCommand::ClusterVersionSet { version }).encode();
    let results = run.entry(0, &frame(50, 1, 1, &[set(3), set(2), set(1)]));
    assert_eq!(refusal(&results[0]), &Refusal::ClusterVersion { version: 1 });
    assert!(matches!(results[1].outcome, Outcome::Done(_)));
    assert_eq!(refusal(&results[2]), &Refusal::ClusterVersion { version: 2 });
    assert_eq!(run.state.cluster_version(), 2);
}

#[test]
fn large_and_old_results_are_told_as_applied_not_run_again() {
    let mut run = Run::opened(50);
    let big = "x".repeat(RESULT_STORED_BYTES_MAX);
    let with_previous = |value: &str| {
        let put = dwcp_state::kv::Put { prev_kv: true, ..dwcp_state::kv::Put::new("a", value.to_string()) };
        KvCommand::Put(put).to_command()
    };
    run.entry(0, &frame(50, 1, 1, &[put("a", &big)]));
    let large = frame(50, 1, 2, &[with_previous("small")]);
    assert!(matches!(run.entry(0, &large)[0].outcome, Outcome::Done(_)));
    let again = run.entry(0, &large);
    assert_eq!(refusal(&again[0]), &Refusal::ResultDiscarded);
    assert_eq!(refusal(&again[0]).fate(), Fate::Applied);
    assert!(!refusal(&again[0]).definite());
    // Fill the session's share with results just small enough to be kept: the oldest go first.
    let body = "y".repeat(RESULT_STORED_BYTES_MAX - 200);
    let count = (SESSION_RESULT_BYTES_MAX / body.len()) as u64 + 10;
    for sequence in 3..3 + count {
        run.entry(0, &frame(50, 1, sequence, &[with_previous(&body)]));
    }
    let version = run.version_of("a");
    let old = run.entry(0, &frame(50, 1, 4, &[with_previous(&body)]));
    assert_eq!(refusal(&old[0]), &Refusal::ResultDiscarded);
    let young = run.entry(0, &frame(50, 1, 2 + count, &[with_previous(&body)]));
    assert!(matches!(young[0].outcome, Outcome::Done(_)));
    assert_eq!(run.version_of("a"), version);
}

#[test]
fn local_queries_take_the_bytes_of_a_command_and_only_read() {
    let run = Run::opened(50);
    assert!(run.state.query(&KvCommand::get("a").to_command()).is_ok());
    let list = run.state.query(&Command::Admin(AdminCommand::PrincipalList).encode()).unwrap();
    assert!(matches!(decode::<AdminReply>(&list), Ok(AdminReply::Principals(list)) if list.len() == 3));
    assert_eq!(run.state.query(&put("a", "1")), Err(dwcp_state::QueryError::NotReadOnly));
    assert_eq!(run.state.query(&Command::CloseSession.encode()), Err(dwcp_state::QueryError::NotReadOnly));
    assert_eq!(run.state.query(b""), Err(dwcp_state::QueryError::Malformed));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Frames arrive in any order, as often as they like, and the state may move to a copy at any time: each command's
    /// key ends with version 1, and every delivery of a command got the same answer.
    #[test]
    fn every_command_runs_once_in_any_order_of_delivery(
        deliveries in prop::collection::vec((0u8..3, 1u64..40, 1usize..5, 0u64..1500, any::<bool>()), 1..80)
    ) {
        let mut run = Run::new();
        let mut answers = std::collections::BTreeMap::new();
        for session in 0..3 {
            run.entry(0, &open_frame("ann", 2, 50 + session, TTL_MS, BORN_MS + 60_000));
        }
        for (session, first, count, later_ms, copy) in deliveries {
            let commands: Vec<_> = (first..).take(count).map(|at| put(&format!("{session}/{at}"), "v")).collect();
            for result in run.entry(later_ms, &frame(50 + session, 1, first, &commands)) {
                let answer = answers.entry((session, result.sequence)).or_insert_with(|| result.clone());
                prop_assert_eq!(&*answer, &result);
            }
            if copy {
                run.state = crate::snapshots::copy(&mut run.state);
            }
        }
        for (session, sequence) in answers.keys() {
            prop_assert_eq!(run.version_of(&format!("{session}/{sequence}")), 1);
        }
        prop_assert_eq!(run.state.machine().revision(), 1 + answers.len() as u64);
    }
}
