//! Chunks of a snapshot, one of every kind, given to a state under construction with the digest a certificate promises.
//!
//! Sealing a chunk means computing its digest, as more than `f` liars could have certified: the formats are written down
//! here once more, so that a change of them without a new format number shows.
//!
//! An input is a flag (1: the digest is that of these bytes), the chunk's number (u32) and its bytes.

use crate::Seal::Sums;
use crate::keys::{START_MS, genesis};
use crate::meter::bounded;
use crate::world::{commands, commands_frame, machine, open_frame, world};
use crate::{Target, Verdict};
use borsh::{BorshDeserialize, BorshSerialize};
use bytes::Bytes;
use dwcp_base::lthash::LtHash;
use dwcp_base::{Hash, Hasher, LogTime, Mutants, Position, PublicKey, decode, encode};
use dwcp_state::kv::Kv;
use dwcp_state::session::SESSION_BUCKETS;
use dwcp_state::{ClientFrame, Refusal, Restorer, SessionId, State};
use std::cell::RefCell;
use std::collections::BTreeMap;

pub static STATE_CHUNK: Target = Target::new("state_chunk", run_chunk, seeds, Sums(seal)).bombs(bombs);
pub static STATE_RESTORED: Target = Target::new("state_restored", run, seeds, Sums(seal)).bombs(bombs).live(
    40,
    "each that is taken is completed to a whole state, which goes on",
    &["state_chunk"],
);

const LEASE_CHUNKS: u32 = 16;

/// What a chunk of the replica's snapshot holds; number 0 is the log's control, the state's follow.
#[must_use]
pub fn kind(index: u32) -> &'static str {
    match index.checked_sub(1) {
        None => "control",
        Some(0) => "state",
        Some(at) if at <= SESSION_BUCKETS => "sessions",
        Some(at) if at == SESSION_BUCKETS + 1 => "store",
        Some(at) if at <= SESSION_BUCKETS + 1 + LEASE_CHUNKS => "leases",
        Some(_) => "versions",
    }
}

#[derive(BorshSerialize, BorshDeserialize)]
struct Version {
    main: u64,
    sub: u32,
    key: Bytes,
    value: Bytes,
    create: u64,
    version: u64,
    lease: i64,
}

#[derive(BorshSerialize, BorshDeserialize)]
struct Head {
    principal: String,
    key: PublicKey,
    ttl_ms: u64,
    valid_until_ms: u64,
    deadline_ms: u64,
    opened_at: Position,
    low_water: u64,
    highest: u64,
    ended: bool,
}

#[derive(BorshSerialize, BorshDeserialize)]
enum Kept {
    Done(Bytes),
    Refused(Refusal),
    Discarded,
}

#[derive(BorshSerialize, BorshDeserialize)]
struct Session {
    id: SessionId,
    head: Head,
    slots: BTreeMap<u64, (Position, Kept)>,
}

fn of_field(purpose: &str, bytes: &[u8]) -> Hash {
    let mut hasher = Hasher::new(purpose);
    hasher.field(bytes);
    hasher.finish()
}

fn sessions_digest(bytes: &[u8]) -> Option<Hash> {
    let mut bucket = Hasher::new("dwcp v3 session bucket");
    for session in decode::<Vec<Session>>(bytes).ok()? {
        let mut hasher = Hasher::new("dwcp v3 session digest");
        hasher.update(&session.id.0).field(&encode(&session.head));
        for (sequence, kept) in &session.slots {
            hasher.update(&sequence.to_le_bytes()).update(&Hash::of(&encode(kept)).0);
        }
        bucket.update(&hasher.finish().0);
    }
    Some(bucket.finish())
}

fn versions_digest(chunk: u32, bytes: &[u8]) -> Option<Hash> {
    let versions: Vec<Version> = decode(bytes).ok()?;
    let mut set = LtHash::default();
    for version in &versions {
        let mut hasher = Hasher::new("dwcp v3 kv version");
        hasher.update(&version.main.to_le_bytes()).update(&version.sub.to_le_bytes());
        hasher.update(&version.create.to_le_bytes()).update(&version.version.to_le_bytes());
        hasher.update(&version.lease.to_le_bytes()).field(&version.key).field(&version.value);
        set.add(&hasher);
    }
    let mut hasher = Hasher::new("dwcp v3 kv chunk");
    hasher.update(&u64::from(chunk).to_le_bytes()).update(&(versions.len() as u64).to_le_bytes());
    if !versions.is_empty() {
        hasher.update(&set.digest().0);
    }
    Some(hasher.finish())
}

/// The digest of these bytes as the state's chunk `index`; `None` when they cannot be read.
#[must_use]
pub fn digest(index: u32, bytes: &[u8]) -> Option<Hash> {
    match kind(index.checked_add(1)?) {
        "state" => Some(of_field("dwcp v3 control", bytes)),
        "sessions" => sessions_digest(bytes),
        "store" => Some(of_field("dwcp v3 kv control", bytes)),
        "leases" => Some(of_field("dwcp v3 kv leases", bytes)),
        _ => versions_digest(index - SESSION_BUCKETS - 2 - LEASE_CHUNKS, bytes),
    }
}

fn split(bytes: &[u8]) -> Option<(bool, u32, &[u8])> {
    let (flag, rest) = bytes.split_first()?;
    let (index, body) = rest.split_first_chunk::<4>()?;
    Some((flag & 1 == 1, u32::from_le_bytes(*index), body))
}

fn join(sealed: bool, index: u32, body: &[u8]) -> Vec<u8> {
    [&[u8::from(sealed)][..], &index.to_le_bytes(), body].concat()
}

/// The good chunk of this number.
fn good(index: u32) -> Option<&'static Vec<u8>> {
    world().snapshot.1.get(&index.checked_add(1)?)
}

/// A state under construction that was given the chunk.
struct Given {
    restorer: Restorer<Kv>,
    index: u32,
    expected: Hash,
    taken: bool,
}

thread_local! {
    static FRESH: RefCell<Option<Restorer<Kv>>> = const { RefCell::new(None) };
}

fn give(bytes: &[u8]) -> Option<Given> {
    let (sealed, index, body) = split(bytes)?;
    let own = if sealed { digest(index, body) } else { None };
    let promised = good(index).and_then(|good| digest(index, good));
    let expected = own.or(promised).unwrap_or(Hash::ZERO);
    // One that refused a chunk is as it was before, so it takes the next one: most of the time goes into making them.
    let kept = FRESH.with(|fresh| fresh.borrow_mut().take());
    let mut restorer = kept.unwrap_or_else(|| State::restore(&genesis(), machine(), Mutants::default()));
    let before = restorer.missing().count();
    let taken = bounded(bytes, || restorer.chunk(index, body, &expected)).is_ok();
    let after = restorer.missing().count();
    if taken {
        let is_missing = restorer.missing().any(|missing| missing == index);
        assert!(after + 1 == before && !is_missing, "a chunk was taken and does not count");
        let promised = sealed || good(index).is_some_and(|good| good == body);
        assert!(promised, "another chunk passed for the promised one");
        assert!(is_own_encoding(index, body), "a chunk was taken that is not its own encoding");
    } else {
        assert!(before == after, "a chunk was refused and yet counts");
    }
    Some(Given { restorer, index, expected, taken })
}

/// By the formats that are written down here; those of the three that are not are their readers' own.
fn is_own_encoding(index: u32, bytes: &[u8]) -> bool {
    match kind(index + 1) {
        "sessions" => decode::<Vec<Session>>(bytes).is_ok_and(|read| encode(&read) == bytes),
        "versions" => decode::<Vec<Version>>(bytes).is_ok_and(|read| encode(&read) == bytes),
        _ => true,
    }
}

fn run_chunk(bytes: &[u8]) -> Verdict {
    let Some(given) = give(bytes) else { return Verdict::Refused };
    if !given.taken {
        FRESH.with(|fresh| *fresh.borrow_mut() = Some(given.restorer));
    }
    Verdict::of(given.taken)
}

fn run(bytes: &[u8]) -> Verdict {
    let Some(Given { mut restorer, index, expected, taken: true }) = give(bytes) else {
        return Verdict::Refused;
    };
    let after: Vec<u32> = restorer.missing().collect();
    for index in after {
        let bytes = good(index).expect("a whole snapshot");
        let expected = digest(index, bytes).expect("a good chunk");
        restorer.chunk(index, bytes, &expected).expect("a good chunk is taken");
    }
    let Ok(mut state) = restorer.finish() else { return Verdict::Refused };
    let made = state.chunk_digests()[usize::try_from(index).expect("a chunk's number")];
    assert!(made == expected, "the restored state is not what its digest promises");
    // Whatever it is, it must be a state that goes on, and writes itself down again.
    state.begin_entry(Position(1_000_000), LogTime(START_MS + 1_000_000));
    let now_ms = state.log_time().0;
    for bytes in [
        open_frame(0, 99, now_ms),
        commands_frame(99, 1, commands().iter().take(18).map(dwcp_state::Command::encode).collect()),
        commands_frame(1, 100, commands().iter().take(6).map(dwcp_state::Command::encode).collect()),
    ] {
        state.execute(&ClientFrame::decode(bytes).expect("a good frame"));
    }
    state.begin_entry(Position(1_000_001), LogTime(u64::MAX));
    let frozen = state.freeze();
    let _ = frozen.chunk(index);
    Verdict::Accepted
}

fn seal(bytes: &mut Vec<u8>) -> bool {
    let Some((_, index, body)) = split(bytes) else { return false };
    if digest(index, body).is_none() {
        return false;
    }
    *bytes = join(true, index, body);
    true
}

fn seeds() -> Vec<Vec<u8>> {
    let mut seeds: BTreeMap<&str, Vec<Vec<u8>>> = BTreeMap::new();
    for (index, bytes) in &world().snapshot.1 {
        let Some(own) = index.checked_sub(1) else { continue };
        let small = bytes.len() < 3_000;
        let list = seeds.entry(kind(*index)).or_default();
        if small && list.len() < 4 && (bytes.len() > 4 || list.is_empty()) {
            list.push(join(list.len().is_multiple_of(2), own, bytes));
        }
    }
    seeds.into_values().flatten().collect()
}

fn bombs() -> Vec<Vec<u8>> {
    let long = [255, 255, 255, 127, 1, 2, 3];
    (0..100).map(|index| join(true, index, &long)).chain([join(true, u32::MAX, &long)]).collect()
}
