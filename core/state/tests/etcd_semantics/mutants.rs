//! Each rule that a proof build can switch off is noticed when it is: the claims above do not hold by accident.

use crate::{BORN_MS, frame, genesis, open_frame, put, snapshots};
use dwcp_base::{LogTime, Mutant, Mutants, Position};
use dwcp_state::kv::Kv;
use dwcp_state::{Outcome, Refusal, State};

fn opened(mutant: Mutant) -> State<Kv> {
    let mut state = State::new(&genesis(), Kv::new(1 << 30), Mutants::default().with(mutant));
    state.begin_entry(Position(1), LogTime(BORN_MS));
    state.execute(&open_frame("ann", 2, 50, 0, BORN_MS + 1_000));
    state
}

#[test]
fn without_deduplication_a_retry_runs_again() {
    let mut state = opened(Mutant::NoDeduplication);
    for _ in 0..2 {
        state.execute(&frame(50, 1, 1, &[put("a", "1")]));
    }
    assert_eq!(state.machine().revision(), 3);
}

#[test]
fn with_a_single_sequence_a_late_command_is_skipped() {
    let mut state = opened(Mutant::SingleSequenceSession);
    state.execute(&frame(50, 1, 2, &[put("a", "1")]));
    let late = state.execute(&frame(50, 1, 1, &[put("b", "1")]));
    assert_eq!(late.results[0].outcome, Outcome::Refused(Refusal::ResultDiscarded));
    assert_eq!(state.machine().revision(), 2);
}

#[test]
fn a_snapshot_without_sessions_forgets_who_was_answered() {
    let mut state = opened(Mutant::SnapshotWithoutSessions);
    state.execute(&frame(50, 1, 1, &[put("a", "1")]));
    let mut copy = snapshots::restored(&mut state, Mutants::default().with(Mutant::SnapshotWithoutSessions));
    assert_eq!((state.session_count(), copy.session_count()), (1, 0));
    assert_ne!(state.digest(), copy.digest());
}

#[test]
fn a_digest_without_sessions_does_not_tell_them_apart() {
    let mut state = opened(Mutant::DigestWithoutSessions);
    // Beside the session table only the count of commands has changed, which is in the first chunk.
    let before = state.chunk_digests();
    state.execute(&frame(50, 1, 1, &[dwcp_state::Command::Nothing.encode()]));
    assert_eq!(state.chunk_digests()[1..], before[1..]);
}
