//! The session table: which commands were executed, and what came of them. A retry through any node or at any time is
//! answered from here and never run again. Executes nothing itself and knows no command.
//!
//! Each session remembers one result per executed sequence in a window above its low-water mark. A session that ended
//! before its open ran out of validity stays as a tombstone until then, so that a replayed open cannot start it afresh
//! with an empty memory. All bounds are part of the replicated rules: every replica must discard the same results.

use crate::frame::SessionId;
use crate::outcome::{Outcome, Refusal};
use crate::snapshot::RestoreError;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use borsh::{BorshDeserialize, BorshSerialize};
use bytes::Bytes;
use dwcp_base::limits::{SESSION_WINDOW, SESSIONS_MAX};
use dwcp_base::{Hash, Hasher, Mutant, Mutants, Position, PublicKey, decode, encode};

/// Chunks that the session table is spread over in digests and snapshots.
pub const SESSION_BUCKETS: u32 = 64;
/// Results larger than this are not kept: a retry is told that the command was applied.
pub const RESULT_STORED_BYTES_MAX: usize = 64 * 1024;
/// Bytes of results one session keeps; beyond it the oldest become [`Refusal::ResultDiscarded`].
pub const SESSION_RESULT_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Bytes that all sessions together may hold, with [`SLOT_BYTES`] counted for each remembered sequence.
pub const SESSION_TABLE_BYTES_MAX: u64 = 1 << 30;
/// Sessions that only admins may open, so that others cannot lock them out.
pub const SESSIONS_ADMIN_RESERVE: usize = 64;
/// What one remembered sequence is taken to cost besides its result.
pub const SLOT_BYTES: u64 = 128;

/// What is remembered of one executed sequence.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
enum Kept {
    Done(Bytes),
    Refused(Refusal),
    Discarded,
}

impl Kept {
    fn bytes(&self) -> usize {
        match self {
            Self::Done(bytes) => bytes.len(),
            Self::Refused(Refusal::Machine(refusal)) => refusal.message.len() + refusal.detail.len(),
            Self::Refused(_) | Self::Discarded => 0,
        }
    }

    fn outcome(&self) -> Outcome {
        match self {
            Self::Done(bytes) => Outcome::Done(bytes.clone()),
            Self::Refused(refusal) => Outcome::Refused(refusal.clone()),
            Self::Discarded => Outcome::Refused(Refusal::ResultDiscarded),
        }
    }
}

/// A kept result and the hash of it, made once, so that the digest of a session with one new result hashes no bodies.
#[derive(Clone, Debug)]
struct Slot {
    /// Of the entry it ran in.
    position: Position,
    kept: Kept,
    hash: Hash,
}

impl Slot {
    fn new(position: Position, kept: Kept) -> Self {
        let hash = Hash::of(&encode(&(position, &kept)));
        Self { position, kept, hash }
    }
}

/// The parts of a session that are written down, apart from its results.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(crate) struct SessionHead {
    pub(crate) principal: String,
    pub(crate) key: PublicKey,
    pub(crate) ttl_ms: u64,
    /// Log time after which its open opens nothing.
    pub(crate) valid_until_ms: u64,
    /// Expiry clock at which it is forgotten: last activity plus ttl, or the tombstone's end.
    pub(crate) deadline_ms: u64,
    /// The entry that opened it.
    pub(crate) opened_at: Position,
    pub(crate) low_water: u64,
    /// The highest sequence executed so far.
    pub(crate) highest: u64,
    /// A tombstone: answers nothing, keeps its open from opening it again.
    pub(crate) ended: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Session {
    pub(crate) head: SessionHead,
    /// At most `SESSION_WINDOW` entries, all in the window above the low-water mark.
    slots: BTreeMap<u64, Slot>,
    result_bytes: usize,
    digest: Option<Hash>,
    /// Proof builds only: sequences in the order in which their results came to be here.
    #[cfg(feature = "mutants")]
    arrivals: Vec<u64>,
}

/// What is known of a sequence before it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    New,
    /// With the entry it ran in; zero for what is not remembered singly.
    Known(Position, Outcome),
}

#[derive(BorshSerialize, BorshDeserialize)]
struct SessionRecord {
    id: SessionId,
    head: SessionHead,
    slots: BTreeMap<u64, (Position, Kept)>,
}

impl Session {
    pub(crate) fn new(head: SessionHead) -> Self {
        Self {
            head,
            slots: BTreeMap::new(),
            result_bytes: 0,
            digest: None,
            #[cfg(feature = "mutants")]
            arrivals: Vec::new(),
        }
    }

    pub(crate) fn judge(&self, sequence: u64, low_water: u64, mutants: Mutants) -> Verdict {
        let low_water = low_water.max(self.head.low_water);
        if sequence < low_water {
            return Verdict::Known(Position::ZERO, Outcome::Refused(Refusal::BelowLowWater { low_water }));
        }
        if sequence - low_water >= SESSION_WINDOW {
            return Verdict::Known(Position::ZERO, Outcome::Refused(Refusal::BeyondWindow { low_water }));
        }
        if mutants.on(Mutant::NoDeduplication) {
            return Verdict::New;
        }
        if mutants.on(Mutant::SingleSequenceSession) && sequence < self.head.highest {
            return Verdict::Known(Position::ZERO, Outcome::Refused(Refusal::ResultDiscarded));
        }
        match self.slots.get(&sequence) {
            Some(slot) => Verdict::Known(slot.position, slot.kept.outcome()),
            None => Verdict::New,
        }
    }

    fn weight(&self) -> u64 {
        self.slots.len() as u64 * SLOT_BYTES + self.result_bytes as u64
    }

    fn raise_low_water(&mut self, low_water: u64) {
        if low_water <= self.head.low_water {
            return;
        }
        self.head.low_water = low_water;
        self.slots = self.slots.split_off(&low_water);
        #[cfg(feature = "mutants")]
        self.arrivals.retain(|sequence| *sequence >= low_water);
        self.result_bytes = self.slots.values().map(|slot| slot.kept.bytes()).sum();
        self.digest = None;
    }

    fn store(&mut self, sequence: u64, position: Position, outcome: &Outcome) {
        let kept = match outcome {
            Outcome::Done(bytes) if bytes.len() > RESULT_STORED_BYTES_MAX => Kept::Discarded,
            // A result may be a slice of something larger, which it would keep alive.
            Outcome::Done(bytes) => Kept::Done(Bytes::copy_from_slice(bytes)),
            Outcome::Refused(refusal) => {
                let kept = Kept::Refused(refusal.clone());
                if kept.bytes() > RESULT_STORED_BYTES_MAX { Kept::Discarded } else { kept }
            }
        };
        self.result_bytes += kept.bytes();
        #[cfg(feature = "mutants")]
        self.arrivals.push(sequence);
        if let Some(before) = self.slots.insert(sequence, Slot::new(position, kept)) {
            self.result_bytes -= before.kept.bytes();
        }
        self.head.highest = self.head.highest.max(sequence);
        self.digest = None;
        if self.result_bytes > SESSION_RESULT_BYTES_MAX {
            self.discard_oldest();
        }
    }

    /// Down to three quarters of the bound, so that a full session does not walk its window on every command. Refusals
    /// stay: they tell "not applied", and forgetting that would be a lie about an applied command's result.
    fn discard_oldest(&mut self) {
        for slot in self.slots.values_mut() {
            if self.result_bytes <= SESSION_RESULT_BYTES_MAX / 4 * 3 {
                break;
            }
            if let Kept::Done(bytes) = &slot.kept {
                self.result_bytes -= bytes.len();
                *slot = Slot::new(slot.position, Kept::Discarded);
            }
        }
    }

    fn digest(&mut self, id: SessionId, mutants: Mutants) -> Hash {
        if let Some(digest) = self.digest {
            return digest;
        }
        let mut hasher = Hasher::new("dwcp v3 session digest");
        hasher.update(&id.0).field(&encode(&self.head));
        for (sequence, slot) in self.in_order(mutants) {
            hasher.update(&sequence.to_le_bytes()).update(&slot.hash.0);
        }
        let digest = hasher.finish();
        self.digest = Some(digest);
        digest
    }

    /// Its results, by sequence, so that a digest does not tell how they came to be here.
    fn in_order(&self, mutants: Mutants) -> impl Iterator<Item = (u64, &Slot)> {
        #[cfg(feature = "mutants")]
        let arrived: &[u64] = if mutants.on(Mutant::DigestInArrivalOrder) { &self.arrivals } else { &[] };
        #[cfg(not(feature = "mutants"))]
        let arrived: &[u64] = {
            let _ = mutants;
            &[]
        };
        let arrived = arrived.iter().filter_map(|sequence| Some((*sequence, self.slots.get(sequence)?)));
        let sorted = self.slots.iter().map(|(sequence, slot)| (*sequence, slot));
        let sorted = sorted.filter(move |_| !mutants.on(Mutant::DigestInArrivalOrder));
        arrived.chain(sorted)
    }
}

/// Sessions whose id falls into one bucket.
pub(crate) type Bucket = BTreeMap<SessionId, Arc<Session>>;

/// All sessions. At most `SESSIONS_MAX`, tombstones included.
#[derive(Clone, Debug)]
pub(crate) struct SessionTable {
    /// `SESSION_BUCKETS` of them, each cloned on the first write after a freeze.
    buckets: Vec<Arc<Bucket>>,
    /// A bucket's digest while nothing in it changed.
    digests: Vec<Option<Hash>>,
    /// When each session is forgotten, for finding the next one. Derived.
    deadlines: BTreeSet<(u64, SessionId)>,
    /// The sum of all weights. Derived.
    bytes: u64,
}

fn bucket_of(id: SessionId) -> usize {
    usize::from(id.0[0]) % SESSION_BUCKETS as usize
}

impl SessionTable {
    pub(crate) fn new() -> Self {
        let count = SESSION_BUCKETS as usize;
        Self {
            buckets: (0..count).map(|_| Arc::new(Bucket::new())).collect(),
            digests: (0..count).map(|_| None).collect(),
            deadlines: BTreeSet::new(),
            bytes: 0,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.deadlines.len()
    }

    /// True when a principal that is (not) an admin may open one more.
    pub(crate) fn has_room(&self, admin: bool) -> bool {
        self.len() < if admin { SESSIONS_MAX } else { SESSIONS_MAX - SESSIONS_ADMIN_RESERVE }
    }

    pub(crate) fn may_store(&self) -> bool {
        self.bytes < SESSION_TABLE_BYTES_MAX
    }

    /// Also finds tombstones.
    pub(crate) fn get(&self, id: SessionId) -> Option<&Session> {
        self.buckets[bucket_of(id)].get(&id).map(AsRef::as_ref)
    }

    pub(crate) fn live(&self, id: SessionId) -> Option<&Session> {
        self.get(id).filter(|session| !session.head.ended)
    }

    pub(crate) fn insert(&mut self, id: SessionId, session: Session) {
        self.remove(id);
        let bucket = bucket_of(id);
        self.deadlines.insert((session.head.deadline_ms, id));
        self.bytes += session.weight();
        Arc::make_mut(&mut self.buckets[bucket]).insert(id, Arc::new(session));
        self.digests[bucket] = None;
    }

    fn remove(&mut self, id: SessionId) {
        let bucket = bucket_of(id);
        if !self.buckets[bucket].contains_key(&id) {
            return;
        }
        if let Some(session) = Arc::make_mut(&mut self.buckets[bucket]).remove(&id) {
            self.deadlines.remove(&(session.head.deadline_ms, id));
            self.bytes -= session.weight();
            self.digests[bucket] = None;
        }
    }

    /// Changes one session and keeps everything derived in step.
    fn change(&mut self, id: SessionId, change: impl FnOnce(&mut Session)) {
        let bucket = bucket_of(id);
        if let Some(session) = Arc::make_mut(&mut self.buckets[bucket]).get_mut(&id) {
            let session = Arc::make_mut(session);
            let (deadline_ms, weight) = (session.head.deadline_ms, session.weight());
            change(session);
            session.digest = None;
            self.bytes = self.bytes - weight + session.weight();
            if session.head.deadline_ms != deadline_ms {
                self.deadlines.remove(&(deadline_ms, id));
                self.deadlines.insert((session.head.deadline_ms, id));
            }
            self.digests[bucket] = None;
        }
    }

    pub(crate) fn raise_low_water(&mut self, id: SessionId, low_water: u64) {
        if self.live(id).is_some_and(|session| session.head.low_water < low_water) {
            self.change(id, |session| session.raise_low_water(low_water));
        }
    }

    pub(crate) fn store(&mut self, id: SessionId, sequence: u64, position: Position, outcome: &Outcome) {
        self.change(id, |session| session.store(sequence, position, outcome));
    }

    pub(crate) fn touch(&mut self, id: SessionId, expiry_ms: u64) {
        self.change(id, |session| {
            session.head.deadline_ms = expiry_ms.saturating_add(session.head.ttl_ms);
        });
    }

    /// A fresh open of a live session: it cannot be forgotten while that open is valid.
    pub(crate) fn reopen(&mut self, id: SessionId, valid_until_ms: u64, expiry_ms: u64) {
        if self.get(id).is_some_and(|session| session.head.valid_until_ms < valid_until_ms) {
            self.change(id, |session| {
                session.head.valid_until_ms = valid_until_ms;
                session.head.deadline_ms = expiry_ms.saturating_add(session.head.ttl_ms);
            });
        }
    }

    /// Ends a session. It stays as a tombstone until its open is no longer valid; the expiry clock is never faster than
    /// log time, so waiting that long on it is long enough.
    pub(crate) fn end(&mut self, id: SessionId, log_time_ms: u64, expiry_ms: u64) {
        if self.live(id).is_none() {
            return;
        }
        self.change(id, |session| {
            let valid_ms = session.head.valid_until_ms.saturating_sub(log_time_ms);
            session.head.ended = true;
            session.head.deadline_ms = expiry_ms.saturating_add(valid_ms).saturating_add(1);
            session.slots.clear();
            session.result_bytes = 0;
        });
    }

    /// Ends all sessions of a principal; how many.
    pub(crate) fn end_all(&mut self, principal: &str, log_time_ms: u64, expiry_ms: u64) -> u32 {
        let ids: Vec<SessionId> = self
            .buckets
            .iter()
            .flat_map(|bucket| bucket.iter())
            .filter(|(_, session)| !session.head.ended && session.head.principal == principal)
            .map(|(id, _)| *id)
            .collect();
        for id in &ids {
            self.end(*id, log_time_ms, expiry_ms);
        }
        u32::try_from(ids.len()).expect("sessions are bounded")
    }

    /// Forgets every session whose time has come.
    pub(crate) fn expire(&mut self, expiry_ms: u64) {
        while let Some((deadline_ms, id)) = self.deadlines.first().copied() {
            if deadline_ms > expiry_ms {
                break;
            }
            self.remove(id);
        }
    }

    pub(crate) fn next_expiry(&self) -> Option<u64> {
        self.deadlines.first().map(|(deadline_ms, _)| *deadline_ms)
    }

    pub(crate) fn bucket_digest(&mut self, bucket: u32, mutants: Mutants) -> Hash {
        let bucket = bucket as usize;
        if let Some(digest) = self.digests[bucket] {
            return digest;
        }
        let mut hasher = Hasher::new("dwcp v3 session bucket");
        for (id, session) in Arc::make_mut(&mut self.buckets[bucket]).iter_mut() {
            let digest = match session.digest {
                Some(digest) => digest,
                None => Arc::make_mut(session).digest(*id, mutants),
            };
            hasher.update(&digest.0);
        }
        let digest = hasher.finish();
        self.digests[bucket] = Some(digest);
        digest
    }

    pub(crate) fn freeze(&self) -> Vec<Arc<Bucket>> {
        self.buckets.clone()
    }

    /// Takes a bucket out of a snapshot chunk whose digest must be `expected`; `None` leaves the digest unchecked.
    pub(crate) fn restore_bucket(
        &mut self,
        index: u32,
        bucket: u32,
        bytes: &[u8],
        expected: Option<&Hash>,
    ) -> Result<(), RestoreError> {
        let malformed = RestoreError::Malformed { index };
        let records: Vec<SessionRecord> = decode(bytes).map_err(|_| malformed)?;
        let mut sessions = Vec::with_capacity(records.len());
        let mut hasher = Hasher::new("dwcp v3 session bucket");
        let mut last = None;
        for record in records {
            let ascending = last.is_none_or(|last| last < record.id);
            let placed =
                bucket_of(record.id) == bucket as usize && SessionId::of(&record.head.key) == record.id;
            if !ascending || !placed {
                return Err(malformed);
            }
            last = Some(record.id);
            let mut session = Session::new(record.head);
            session.slots = record
                .slots
                .into_iter()
                .map(|(at, (position, kept))| (at, Slot::new(position, kept)))
                .collect();
            session.result_bytes = session.slots.values().map(|slot| slot.kept.bytes()).sum();
            #[cfg(feature = "mutants")]
            session.arrivals.extend(session.slots.keys());
            hasher.update(&session.digest(record.id, Mutants::default()).0);
            sessions.push((record.id, session));
        }
        if expected.is_some_and(|expected| hasher.finish() != *expected) {
            return Err(RestoreError::Digest { index });
        }
        for (id, session) in sessions {
            self.insert(id, session);
        }
        Ok(())
    }
}

/// A bucket as a snapshot chunk.
pub(crate) fn encode_bucket(bucket: &Bucket) -> Vec<u8> {
    let records: Vec<SessionRecord> = bucket
        .iter()
        .map(|(id, session)| SessionRecord {
            id: *id,
            head: session.head.clone(),
            slots: session
                .slots
                .iter()
                .map(|(sequence, slot)| (*sequence, (slot.position, slot.kept.clone())))
                .collect(),
        })
        .collect();
    encode(&records)
}
