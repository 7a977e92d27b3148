//! A restored copy is the state it was frozen from; a frozen state stays what it was; a donor that lies wastes its breath.

use crate::{BORN_MS, frame, genesis, open_frame, put};
use bytes::Bytes;
use dwcp_base::{Hash, LogTime, Mutants, Position};
use dwcp_state::kv::Kv;
use dwcp_state::{
    CheckedFrame, Context, MachineRefusal, QueryError, RestoreError, SESSION_BUCKETS, Small, SmallMachine,
    SnapshotError, State, state_digest,
};

fn fresh() -> State<Kv> {
    State::new(&genesis(), Kv::new(1 << 30), Mutants::default())
}

pub fn restored(state: &mut State<Kv>, mutants: Mutants) -> State<Kv> {
    let frozen = state.freeze();
    let mut restorer = State::restore(&genesis(), Kv::new(0), mutants);
    for (index, digest) in frozen.digests().iter().enumerate().rev() {
        restorer.chunk(index as u32, &frozen.chunk(index as u32).unwrap(), digest).unwrap();
    }
    restorer.finish().unwrap()
}

pub fn copy(state: &mut State<Kv>) -> State<Kv> {
    let mut copy = restored(state, Mutants::default());
    assert_eq!(copy.chunk_digests(), state.chunk_digests());
    copy
}

fn run(state: &mut State<Kv>, position: u64, frames: &[CheckedFrame]) {
    state.begin_entry(Position(position), LogTime(BORN_MS + position));
    for frame in frames {
        state.execute(frame);
    }
}

fn busy() -> State<Kv> {
    let mut state = fresh();
    run(
        &mut state,
        1,
        &[open_frame("ann", 2, 50, 0, BORN_MS + 9_000), open_frame("root", 1, 51, 0, BORN_MS + 9_000)],
    );
    for at in 1..200u64 {
        let name = format!("key{}", at % 70);
        run(&mut state, 1 + at, &[frame(50, 1, at, &[put(&name, "value")])]);
    }
    state
}

#[test]
fn a_copy_answers_retries_and_goes_on_as_the_original() {
    let mut original = busy();
    let mut restored = copy(&mut original);
    for state in [&mut original, &mut restored] {
        run(state, 300, &[frame(50, 20, 150, &[put("again", "no")]), frame(51, 1, 1, &[put("new", "yes")])]);
    }
    assert_eq!(original.digest(), restored.digest());
    assert_eq!(original.machine().revision(), 201);
}

#[test]
fn a_frozen_state_is_not_touched_by_later_entries() {
    let mut state = busy();
    let frozen = state.freeze();
    let chunks: Vec<_> = (0..frozen.chunk_count()).map(|index| frozen.chunk(index).unwrap()).collect();
    let digests = frozen.digests().to_vec();
    assert_eq!(digests, state.chunk_digests());
    for at in 200..260u64 {
        run(&mut state, 400 + at, &[frame(50, 100, at, &[put(&format!("key{}", at % 70), "other")])]);
    }
    assert_ne!(digests, state.chunk_digests());
    for (index, chunk) in chunks.iter().enumerate() {
        assert_eq!(&frozen.chunk(index as u32).unwrap(), chunk);
    }
    let end = frozen.chunk_count();
    assert_eq!(frozen.chunk(end), Err(SnapshotError::NoSuchChunk { index: end }));
    // What the frozen state was can still be restored, and on any thread.
    fn may_travel<T: Send + 'static>(_: &T) {}
    may_travel(&frozen);
    let mut restorer = State::restore(&genesis(), Kv::new(0), Mutants::default());
    for (index, digest) in digests.iter().enumerate() {
        restorer.chunk(index as u32, &frozen.chunk(index as u32).unwrap(), digest).unwrap();
    }
    assert_eq!(restorer.finish().unwrap().machine().revision(), 200);
}

/// Every chunk, each with one bit flipped, cut short, and swapped for another's: refused, and the honest one still fits.
#[test]
fn a_lying_chunk_changes_nothing() {
    let mut state = busy();
    let frozen = state.freeze();
    let mut restorer = State::restore(&genesis(), Kv::new(0), Mutants::default());
    let mut refused = 0;
    for (index, digest) in frozen.digests().iter().enumerate() {
        let number = index as u32;
        let honest = frozen.chunk(number).unwrap();
        let mut flipped = honest.clone();
        let place = index * 7 % flipped.len();
        flipped[place] ^= 1 << (index % 8);
        let mut longer = honest.clone();
        longer.push(0);
        let lies = [flipped, honest[..honest.len() - 1].to_vec(), longer, Vec::new()];
        for lie in lies {
            assert!(restorer.chunk(number, &lie, digest).is_err(), "chunk {index}");
            refused += 1;
        }
        let other = frozen.chunk((number + 1) % frozen.chunk_count()).unwrap();
        assert!(other == honest || restorer.chunk(number, &other, digest).is_err());
        assert!(restorer.chunk(number, &honest, &Hash([1; 32])).is_err());
        assert_eq!(restorer.missing().next(), Some(number));
        assert_eq!(restorer.chunk(number, &honest, digest), Ok(()));
        assert_eq!(restorer.chunk(number, b"ignored: it is in already", digest), Ok(()));
    }
    assert_eq!(refused, 4 * state.chunk_count());
    let end = state.chunk_count();
    assert_eq!(restorer.chunk(end, b"", &Hash::ZERO), Err(RestoreError::NoSuchChunk { index: end }));
    assert_eq!(restorer.finish().unwrap().digest(), state.digest());
}

#[test]
fn a_restore_is_not_finished_while_a_chunk_is_missing() {
    let mut state = busy();
    let frozen = state.freeze();
    let mut restorer = State::restore(&genesis(), Kv::new(0), Mutants::default());
    for (index, digest) in frozen.digests().iter().enumerate() {
        if index != 7 {
            restorer.chunk(index as u32, &frozen.chunk(index as u32).unwrap(), digest).unwrap();
        }
    }
    assert_eq!(restorer.finish().err(), Some(RestoreError::Missing { index: 7 }));
}

/// Frames of independent sessions that read and refuse only: their order leaves no trace. Writes number revisions, so
/// their order does show.
#[test]
fn the_digest_tells_what_happened_and_not_how_the_table_was_walked() {
    let opens = [open_frame("ann", 2, 50, 0, BORN_MS + 9_000), open_frame("ann", 2, 51, 0, BORN_MS + 9_000)];
    let nothing = dwcp_state::Command::Nothing.encode();
    let quiet =
        [frame(50, 1, 1, std::slice::from_ref(&nothing)), frame(51, 1, 1, std::slice::from_ref(&nothing))];
    let build = |order: &[CheckedFrame]| {
        let mut state = fresh();
        run(&mut state, 1, &opens);
        run(&mut state, 2, order);
        state.digest()
    };
    let [one, other] = quiet.clone();
    assert_eq!(build(&quiet), build(&[other, one]));
    let [one, other] = [frame(50, 1, 1, &[put("a", "1")]), frame(51, 1, 1, &[put("b", "1")])];
    assert_ne!(build(&[one.clone(), other.clone()]), build(&[other, one]));
    assert_ne!(build(&quiet), build(&quiet[..1]), "the session table is under the digest");
}

#[test]
fn digests_follow_what_changed_and_only_that() {
    let mut state = busy();
    let before = state.chunk_digests();
    assert_eq!(state_digest(&before), state.digest());
    run(&mut state, 500, &[frame(50, 1, 900, &[put("one more", "v")])]);
    let after = state.chunk_digests();
    let changed: Vec<_> = (0..after.len()).filter(|index| before[*index] != after[*index]).collect();
    let sessions = changed.iter().filter(|index| (1..=SESSION_BUCKETS as usize).contains(index)).count();
    assert_eq!(
        (changed[0], sessions, changed.len()),
        (0, 1, 4),
        "control, a session bucket, and two of the machine"
    );
    let clone = state.clone().digest();
    assert_eq!(clone, state.digest());
}

#[test]
fn a_snapshot_of_another_cluster_or_machine_is_refused() {
    let frozen = busy().freeze();
    let (chunk, digest) = (frozen.chunk(0).unwrap(), frozen.digests()[0]);
    let mut other = genesis();
    other.name = "other".to_string();
    let mut restorer = State::restore(&other, Kv::new(0), Mutants::default());
    assert_eq!(restorer.chunk(0, &chunk, &digest), Err(RestoreError::OtherCluster));
    let mut restorer = State::restore(&genesis(), Small::new(Nobody), Mutants::default());
    assert_eq!(restorer.chunk(0, &chunk, &digest), Err(RestoreError::Version { index: 0 }));
}

struct Nobody;

impl SmallMachine for Nobody {
    const NAME: &'static str = "nobody";

    fn apply(&mut self, _: &Context<'_>, _: &[u8]) -> Result<Bytes, MachineRefusal> {
        Ok(Bytes::new())
    }

    fn read_only(&self, _: &[u8]) -> bool {
        true
    }

    fn query(&self, _: &[u8]) -> Result<Bytes, QueryError> {
        Err(QueryError::Malformed)
    }

    fn save(&self) -> Vec<u8> {
        Vec::new()
    }

    fn load(&self, _: &[u8]) -> Option<Self> {
        Some(Self)
    }
}
