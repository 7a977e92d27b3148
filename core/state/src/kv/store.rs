//! Versions of keys, and every way they are found again.
//!
//! A version never changes once written; it is shared by three structures. `index` finds a key's versions, in key order
//! for ranges. `log` holds them in order of revision, for events and for compaction. `chunks` spreads them over
//! 256 parts by (revision + sub) mod 256, for digests and snapshots: even a single hot key spreads evenly. A chunk is a
//! list of small shared blocks, so that the first write after a freeze copies one block and a list of pointers.
//!
//! Compaction only moves a mark; versions are then removed a few at a time by `sweep`, as entries of the log go by, so
//! that forgetting a million versions does not stop the cluster. Knows no leases, quotas or commands.

use crate::kv::error::KvError;
use crate::kv::history::History;
use crate::kv::index::{Index, Place};
use crate::kv::wire::KeyValue;
use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;
use borsh::{BorshDeserialize, BorshSerialize};
use bytes::Bytes;
use core::ops::Bound;
use dwcp_base::lthash::LtHash;
use dwcp_base::{Hash, Hasher};

/// Chunks that versions are spread over.
pub(crate) const VERSION_CHUNKS: usize = 256;
/// Versions in one shared block.
const BLOCK_VERSIONS: usize = 64;
/// Blocks smaller than this after a removal are merged with a neighbour.
const BLOCK_VERSIONS_MIN: usize = 16;
/// What a version counts towards the quota besides its key and value: its record, its place in index, log and block.
pub const VERSION_BYTES: u64 = 256;

pub(crate) type Key = Arc<[u8]>;

/// One change of one key. `version` 0 is a deletion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Version {
    pub(crate) main: u64,
    pub(crate) sub: u32,
    pub(crate) key: Key,
    pub(crate) value: Bytes,
    pub(crate) create: u64,
    pub(crate) version: u64,
    pub(crate) lease: i64,
}

/// As a version is written into a chunk.
#[derive(BorshSerialize, BorshDeserialize)]
pub(crate) struct VersionRecord {
    main: u64,
    sub: u32,
    key: Bytes,
    value: Bytes,
    create: u64,
    version: u64,
    lease: i64,
}

impl Version {
    pub(crate) fn at(&self) -> (u64, u32) {
        (self.main, self.sub)
    }

    pub(crate) fn is_deletion(&self) -> bool {
        self.version == 0
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.key.len() as u64 + self.value.len() as u64 + VERSION_BYTES
    }

    pub(crate) fn key_value(&self, with_value: bool) -> KeyValue {
        KeyValue {
            key: Bytes::copy_from_slice(&self.key),
            value: if with_value { self.value.clone() } else { Bytes::new() },
            create_revision: self.create,
            mod_revision: self.main,
            version: self.version,
            lease: self.lease,
        }
    }

    pub(crate) fn record(&self) -> VersionRecord {
        VersionRecord {
            main: self.main,
            sub: self.sub,
            key: Bytes::copy_from_slice(&self.key),
            value: self.value.clone(),
            create: self.create,
            version: self.version,
            lease: self.lease,
        }
    }

    pub(crate) fn of(record: VersionRecord) -> Self {
        Self {
            main: record.main,
            sub: record.sub,
            key: Key::from(record.key.as_ref()),
            value: record.value,
            create: record.create,
            version: record.version,
            lease: record.lease,
        }
    }

    pub(crate) fn element(&self) -> Hasher {
        let mut hasher = Hasher::new("dwcp v3 kv version");
        let mut fixed = [0; 36];
        fixed[..8].copy_from_slice(&self.main.to_le_bytes());
        fixed[8..12].copy_from_slice(&self.sub.to_le_bytes());
        fixed[12..20].copy_from_slice(&self.create.to_le_bytes());
        fixed[20..28].copy_from_slice(&self.version.to_le_bytes());
        fixed[28..].copy_from_slice(&self.lease.to_le_bytes());
        hasher.update(&fixed).field(&self.key).field(&self.value);
        hasher
    }
}

/// Which chunk a version belongs to.
pub(crate) fn chunk_of(main: u64, sub: u32) -> usize {
    usize::from(main.wrapping_add(u64::from(sub)).to_le_bytes()[0])
}

pub(crate) fn chunk_digest_of(chunk: usize, set: Option<&LtHash>, count: u64) -> Hash {
    let mut hasher = Hasher::new("dwcp v3 kv chunk");
    hasher.update(&(chunk as u64).to_le_bytes()).update(&count.to_le_bytes());
    if let Some(set) = set {
        hasher.update(&set.digest().0);
    }
    hasher.finish()
}

/// Versions in order of (main, sub), in shared blocks.
#[derive(Clone, Debug, Default)]
pub(crate) struct Blocks {
    blocks: Vec<Arc<Vec<Arc<Version>>>>,
}

impl Blocks {
    fn push(&mut self, version: Arc<Version>) {
        match self.blocks.last_mut() {
            Some(last) if last.len() < BLOCK_VERSIONS => Arc::make_mut(last).push(version),
            _ => self.blocks.push(Arc::new(Vec::from([version]))),
        }
    }

    fn remove(&mut self, at: (u64, u32)) {
        let place = self.blocks.partition_point(|block| block.last().is_some_and(|last| last.at() < at));
        let Some(block) = self.blocks.get_mut(place) else { return };
        let Ok(within) = block.binary_search_by_key(&at, |version| version.at()) else { return };
        let block = Arc::make_mut(block);
        block.remove(within);
        let left = block.len();
        if left == 0 {
            self.blocks.remove(place);
        } else if left < BLOCK_VERSIONS_MIN {
            self.merge_with_next(place);
        }
    }

    fn merge_with_next(&mut self, place: usize) {
        let together = match (self.blocks.get(place), self.blocks.get(place + 1)) {
            (Some(one), Some(next)) => one.len() + next.len(),
            _ => return,
        };
        if together <= BLOCK_VERSIONS * 3 / 4 {
            let next = self.blocks.remove(place + 1);
            Arc::make_mut(&mut self.blocks[place]).extend(next.iter().cloned());
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Version>> {
        self.blocks.iter().flat_map(|block| block.iter())
    }
}

#[derive(Clone, Debug, Default)]
struct Chunk {
    blocks: Arc<Blocks>,
    count: u64,
    /// `None` when there are no versions.
    set: Option<Arc<LtHash>>,
    digest: Option<Hash>,
}

/// What happened to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    Put,
    Delete,
}

/// One change, as watches report it. Events come in order of (revision, sub).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub revision: u64,
    /// The place within the revision: several keys may change in one.
    pub sub: u32,
    pub kind: EventKind,
    /// The key after the change; of a deletion only key and mod revision.
    pub kv: KeyValue,
    /// The key before it, unless it did not exist or compaction has forgotten it.
    pub prev_kv: Option<KeyValue>,
}

/// All versions that are kept.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    pub(crate) revision: u64,
    /// Reads below it are refused.
    pub(crate) compacted: u64,
    /// How many changes of revision `compacted`, counted from its first, the sweep is past.
    pub(crate) swept: u64,
    /// Bounded by the quota, like `log` and `chunks`: every version counts.
    index: Index,
    /// Every change the sweep has not forgotten, in order.
    log: VecDeque<Arc<Version>>,
    /// The main revision being written, above `revision` while a command runs.
    writing: Option<u64>,
    chunks: Vec<Chunk>,
    /// Keys, values and overheads of every version kept.
    pub(crate) bytes: u64,
}

pub(crate) type KeyBounds<'a> = (Bound<&'a [u8]>, Bound<&'a [u8]>);

/// The keys a request names: one, or from `key` on, or up to `range_end`.
pub(crate) fn bounds<'a>(key: &'a [u8], range_end: &'a [u8]) -> Option<KeyBounds<'a>> {
    match range_end {
        [] => Some((Bound::Included(key), Bound::Included(key))),
        [0] => Some((Bound::Included(key), Bound::Unbounded)),
        end if key < end => Some((Bound::Included(key), Bound::Excluded(end))),
        _ => None,
    }
}

impl Store {
    pub(crate) fn new() -> Self {
        Self {
            revision: 1,
            compacted: 0,
            swept: 0,
            index: Index::default(),
            log: VecDeque::new(),
            writing: None,
            chunks: (0..VERSION_CHUNKS).map(|_| Chunk::default()).collect(),
            bytes: 0,
        }
    }

    /// The revision that reads see: the one being written, once something was.
    pub(crate) fn reading(&self) -> u64 {
        self.writing.unwrap_or(self.revision)
    }

    /// The keys of a range that exist at a revision, in key order.
    pub(crate) fn range<'a>(
        &'a self,
        key: &'a [u8],
        range_end: &'a [u8],
        revision: u64,
    ) -> impl Iterator<Item = &'a Arc<Version>> {
        bounds(key, range_end)
            .into_iter()
            .flat_map(|bounds| self.index.range(bounds))
            .filter_map(move |versions| version_at(versions, revision))
            .filter(|version| !version.is_deletion())
    }

    /// How many keys of a range exist at [`Store::reading`].
    pub(crate) fn count(&self, key: &[u8], range_end: &[u8]) -> u64 {
        bounds(key, range_end).map_or(0, |bounds| self.index.count(bounds))
    }

    pub(crate) fn get(&self, key: &[u8]) -> Option<&Arc<Version>> {
        self.index.get(key)?.back().filter(|version| !version.is_deletion())
    }

    /// Writes the next change of the revision under way, beginning one when there is none. An existing key goes on from
    /// its version; `value` `None` deletes.
    pub(crate) fn write(&mut self, key: &[u8], value: Option<Bytes>, lease: i64) {
        let main = *self.writing.get_or_insert(self.revision + 1);
        let sub = match self.log.back() {
            Some(last) if last.main == main => last.sub.saturating_add(1),
            _ => 0,
        };
        let place = self.index.place(key);
        let before = self.index.at(place).and_then(History::back).cloned();
        let key = match &before {
            Some(before) => before.key.clone(),
            None => Key::from(key),
        };
        let before = before.filter(|before| !before.is_deletion());
        let version = match (&value, &before) {
            (None, _) => Version { main, sub, key, value: Bytes::new(), create: 0, version: 0, lease: 0 },
            (Some(value), before) => Version {
                main,
                sub,
                key,
                value: value.clone(),
                create: before.as_ref().map_or(main, |before| before.create),
                version: before.as_ref().map_or(1, |before| before.version.saturating_add(1)),
                lease,
            },
        };
        self.push(place, Arc::new(version));
    }

    fn push(&mut self, place: Place, version: Arc<Version>) {
        self.bytes = self.bytes.saturating_add(version.bytes());
        self.log.push_back(version.clone());
        self.index.push_at(place, version.clone());
        let chunk = &mut self.chunks[chunk_of(version.main, version.sub)];
        Arc::make_mut(chunk.set.get_or_insert_with(Arc::default)).add(&version.element());
        chunk.count += 1;
        chunk.digest = None;
        Arc::make_mut(&mut chunk.blocks).push(version);
    }

    /// Takes a version out of its chunk and the byte count; the caller takes it out of index and log.
    fn forget(&mut self, version: &Version) {
        self.bytes = self.bytes.saturating_sub(version.bytes());
        let chunk = &mut self.chunks[chunk_of(version.main, version.sub)];
        Arc::make_mut(&mut chunk.blocks).remove(version.at());
        chunk.count -= 1;
        chunk.digest = None;
        if chunk.count == 0 {
            chunk.set = None;
        } else if let Some(set) = &mut chunk.set {
            Arc::make_mut(set).remove(&version.element());
        }
    }

    /// Makes what was written since the last commit the store's next revision, if anything was.
    pub(crate) fn commit(&mut self) {
        if let Some(main) = self.writing.take() {
            self.revision = main;
        }
    }

    /// Takes back what was written since the last commit, newest first; `undone` is told each version and the one that
    /// the key falls back to.
    pub(crate) fn roll_back(&mut self, mut undone: impl FnMut(&Version, Option<&Version>)) {
        let Some(main) = self.writing.take() else { return };
        while self.log.back().is_some_and(|last| last.main == main) {
            let Some(version) = self.log.pop_back() else { break };
            self.index.change(&version.key, |versions| {
                versions.pop_back();
                undone(&version, versions.back().map(AsRef::as_ref));
            });
            self.forget(&version);
        }
    }

    pub(crate) fn check_revision(&self, revision: u64) -> Result<(), KvError> {
        if revision > self.revision {
            return Err(KvError::FutureRevision { revision: self.revision });
        }
        if revision != 0 && revision < self.compacted {
            return Err(KvError::Compacted { compacted: self.compacted });
        }
        Ok(())
    }

    pub(crate) fn compact(&mut self, revision: u64) -> Result<(), KvError> {
        if revision <= self.compacted {
            return Err(KvError::Compacted { compacted: self.compacted });
        }
        if revision > self.revision {
            return Err(KvError::FutureRevision { revision: self.revision });
        }
        self.compacted = revision;
        self.swept = 0;
        Ok(())
    }

    /// True while versions wait to be removed.
    pub(crate) fn sweeping(&self) -> bool {
        self.next_to_sweep().is_some()
    }

    fn next_to_sweep(&self) -> Option<&Arc<Version>> {
        let front = self.log.front()?;
        if front.main < self.compacted {
            return Some(front);
        }
        let place = usize::try_from(self.swept).ok()?;
        self.log.get(place).filter(|version| version.main <= self.compacted)
    }

    /// Removes up to `changes_max` changes' worth of what compaction made unreachable: the version each change
    /// superseded, and deletions before the compacted revision themselves. Changes *at* the compacted revision stay
    /// for watches that start there.
    pub(crate) fn sweep(&mut self, changes_max: usize) {
        for _ in 0..changes_max {
            let Some(version) = self.next_to_sweep().cloned() else { return };
            let passed = version.main < self.compacted;
            let mut dropped = Vec::new();
            self.index.change(&version.key, |versions| {
                while versions.front().is_some_and(|first| first.at() < version.at()) {
                    dropped.extend(versions.pop_front());
                }
                if passed && version.is_deletion() {
                    dropped.extend(versions.pop_front());
                }
            });
            for version in dropped {
                self.forget(&version);
            }
            if passed {
                self.log.pop_front();
            } else {
                self.swept += 1;
            }
        }
    }

    /// Every change from a revision on, as far as it is committed.
    pub(crate) fn events_since(&self, revision: u64) -> Result<impl Iterator<Item = Event> + '_, KvError> {
        if revision < self.compacted {
            return Err(KvError::Compacted { compacted: self.compacted });
        }
        let start = self.log.partition_point(|version| version.main < revision);
        Ok(self.log.range(start..).map(|version| Event {
            revision: version.main,
            sub: version.sub,
            kind: if version.is_deletion() { EventKind::Delete } else { EventKind::Put },
            kv: version.key_value(true),
            prev_kv: self.before(version),
        }))
    }

    fn before(&self, version: &Version) -> Option<KeyValue> {
        let versions = self.index.get(&version.key)?;
        let place = versions.partition_point(|other| other.at() < version.at());
        let before = versions.get(place.checked_sub(1)?)?;
        // What the sweep is yet to remove is gone already, or the answer would depend on its progress.
        let forgotten = before.main < self.compacted && version.main <= self.compacted;
        (!before.is_deletion() && !forgotten).then(|| before.key_value(true))
    }

    pub(crate) fn chunk_digest(&mut self, chunk: usize) -> Hash {
        let one = &mut self.chunks[chunk];
        let digest = one.digest.unwrap_or_else(|| chunk_digest_of(chunk, one.set.as_deref(), one.count));
        one.digest = Some(digest);
        digest
    }

    pub(crate) fn freeze(&self) -> Vec<Arc<Blocks>> {
        self.chunks.iter().map(|chunk| chunk.blocks.clone()).collect()
    }

    /// Rebuilds everything from a snapshot's versions, given in order of (main, sub). `None` when they make no store.
    pub(crate) fn rebuild(
        revision: u64,
        compacted: u64,
        swept: u64,
        log_start: (u64, u32),
        versions: Vec<Version>,
        sets: Vec<Option<LtHash>>,
    ) -> Option<Self> {
        let mut store = Self { revision, compacted, ..Self::new() };
        if compacted > revision || sets.len() != VERSION_CHUNKS {
            return None;
        }
        let mut last = None;
        for version in versions {
            if last >= Some(version.at()) || version.main > revision || version.main < 2 {
                return None;
            }
            last = Some(version.at());
            let mut version = version;
            // One allocation per key, not per version.
            if let Some(key) = store.index.key(&version.key) {
                version.key = key;
            }
            let version = Arc::new(version);
            store.bytes = store.bytes.saturating_add(version.bytes());
            store.index.push(version.clone());
            let chunk = &mut store.chunks[chunk_of(version.main, version.sub)];
            chunk.count += 1;
            Arc::make_mut(&mut chunk.blocks).push(version.clone());
            if version.at() >= log_start {
                store.log.push_back(version);
            }
        }
        for (chunk, set) in store.chunks.iter_mut().zip(sets) {
            chunk.set = set.map(Arc::new);
        }
        store.swept = swept;
        Some(store)
    }

    /// Where the log begins: kept versions before it have been swept and are in index and chunks alone.
    pub(crate) fn log_start(&self) -> (u64, u32) {
        self.log.front().map_or((self.revision.saturating_add(1), 0), |version| version.at())
    }

    /// Versions of every key that exists now, with their leases.
    pub(crate) fn live(&self) -> impl Iterator<Item = &Arc<Version>> {
        self.index.latest().filter(|version| !version.is_deletion())
    }
}

fn version_at(versions: &History, revision: u64) -> Option<&Arc<Version>> {
    match versions.back() {
        Some(last) if last.main <= revision => Some(last),
        _ => versions.get(versions.partition_point(|version| version.main <= revision).checked_sub(1)?),
    }
}
