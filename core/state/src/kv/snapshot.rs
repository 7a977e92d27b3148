//! The store's snapshot chunks: 0 is control, then the leases, then the versions. Every chunk is checked against its own
//! digest before anything of it is kept; what is derived (index, log, keys of leases) is rebuilt at the end.

use crate::kv::lease::{LEASE_BUCKETS, LeaseBucket};
use crate::kv::machine::Kv;
use crate::kv::store::{Blocks, Store, VERSION_CHUNKS, Version, VersionRecord, chunk_digest_of, chunk_of};
use crate::machine::FrozenMachine;
use crate::snapshot::{RestoreError, SnapshotError};
use alloc::sync::Arc;
use alloc::vec::Vec;
use borsh::{BorshDeserialize, BorshSerialize};
use dwcp_base::lthash::LtHash;
use dwcp_base::{Hash, Hasher, decode, encode};

/// What chunk 0 carries.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(crate) struct KvControl {
    pub(crate) revision: u64,
    pub(crate) compacted: u64,
    pub(crate) swept: u64,
    pub(crate) log_start: (u64, u32),
    pub(crate) quota_bytes: u64,
    pub(crate) no_space: bool,
    pub(crate) leases_granted: u64,
    pub(crate) expiry_ms: u64,
}

pub(crate) fn control_digest(bytes: &[u8]) -> Hash {
    let mut hasher = Hasher::new("dwcp v3 kv control");
    hasher.field(bytes);
    hasher.finish()
}

pub(crate) const CHUNKS: usize = 1 + LEASE_BUCKETS + VERSION_CHUNKS;

/// Which part of the store a chunk holds.
pub(crate) enum Part {
    Control,
    Leases(usize),
    Versions(usize),
}

pub(crate) fn part(index: u32) -> Option<Part> {
    let index = usize::try_from(index).ok()?;
    match index {
        0 => Some(Part::Control),
        _ if index <= LEASE_BUCKETS => Some(Part::Leases(index - 1)),
        _ if index < CHUNKS => Some(Part::Versions(index - 1 - LEASE_BUCKETS)),
        _ => None,
    }
}

/// A store that no longer changes.
#[derive(Clone, Debug)]
pub struct FrozenKv {
    pub(crate) control: Arc<Vec<u8>>,
    pub(crate) leases: Vec<Arc<LeaseBucket>>,
    pub(crate) versions: Vec<Arc<Blocks>>,
}

impl FrozenMachine for FrozenKv {
    fn chunk(&self, index: u32) -> Result<Vec<u8>, SnapshotError> {
        match part(index).ok_or(SnapshotError::NoSuchChunk { index })? {
            Part::Control => Ok(self.control.as_ref().clone()),
            Part::Leases(bucket) => Ok(encode(self.leases[bucket].as_ref())),
            Part::Versions(chunk) => {
                let records: Vec<VersionRecord> =
                    self.versions[chunk].iter().map(|version| version.record()).collect();
                Ok(encode(&records))
            }
        }
    }
}

/// What has been taken from chunks so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Restoring {
    control: Option<KvControl>,
    /// Unordered between chunks. Bounded by what the certified digests cover.
    versions: Vec<Version>,
    sets: Vec<Option<LtHash>>,
}

impl Kv {
    pub(crate) fn take_chunk(
        &mut self,
        index: u32,
        bytes: &[u8],
        expected: &Hash,
    ) -> Result<(), RestoreError> {
        let malformed = RestoreError::Malformed { index };
        match part(index).ok_or(RestoreError::NoSuchChunk { index })? {
            Part::Control => {
                if control_digest(bytes) != *expected {
                    return Err(RestoreError::Digest { index });
                }
                self.restoring().control = Some(decode(bytes).map_err(|_| malformed)?);
            }
            Part::Leases(bucket) => self.leases.restore(index, bucket, bytes, expected)?,
            Part::Versions(chunk) => {
                let records: Vec<VersionRecord> = decode(bytes).map_err(|_| malformed)?;
                let mut set = LtHash::default();
                let mut versions = Vec::with_capacity(records.len());
                let mut last = None;
                for record in records {
                    let version = Version::of(record);
                    if last >= Some(version.at()) || chunk_of(version.main, version.sub) != chunk {
                        return Err(malformed);
                    }
                    last = Some(version.at());
                    set.add(&version.element());
                    versions.push(version);
                }
                let set = (!versions.is_empty()).then_some(set);
                if chunk_digest_of(chunk, set.as_ref(), versions.len() as u64) != *expected {
                    return Err(RestoreError::Digest { index });
                }
                let restoring = self.restoring();
                restoring.sets[chunk] = set;
                restoring.versions.extend(versions);
            }
        }
        Ok(())
    }

    fn restoring(&mut self) -> &mut Restoring {
        self.restoring.get_or_insert_with(|| Restoring {
            sets: (0..VERSION_CHUNKS).map(|_| None).collect(),
            ..Restoring::default()
        })
    }

    pub(crate) fn finish_restore(&mut self) -> Result<(), RestoreError> {
        let mut restoring = self.restoring.take().ok_or(RestoreError::Missing { index: 0 })?;
        let control = restoring.control.take().ok_or(RestoreError::Missing { index: 0 })?;
        restoring.versions.sort_unstable_by_key(Version::at);
        let KvControl { revision, compacted, swept, log_start, .. } = control;
        let certified = encode(&control);
        self.store =
            Store::rebuild(revision, compacted, swept, log_start, restoring.versions, restoring.sets)
                .ok_or(RestoreError::Inconsistent)?;
        self.quota_bytes = control.quota_bytes;
        self.no_space = control.no_space;
        self.leases_granted = control.leases_granted;
        self.expiry_ms = control.expiry_ms;
        for version in self.store.live() {
            if version.lease != 0 && self.leases.get(version.lease).is_none() {
                return Err(RestoreError::Inconsistent);
            }
            self.leases.attach(version.lease, version.key.clone());
        }
        // What was derived again must be what was certified.
        if encode(&self.control()) == certified { Ok(()) } else { Err(RestoreError::Inconsistent) }
    }

    pub(crate) fn control(&self) -> KvControl {
        KvControl {
            revision: self.store.revision,
            compacted: self.store.compacted,
            swept: self.store.swept,
            log_start: self.store.log_start(),
            quota_bytes: self.quota_bytes,
            no_space: self.no_space,
            leases_granted: self.leases_granted,
            expiry_ms: self.expiry_ms,
        }
    }

    pub(crate) fn freeze_chunks(&self) -> FrozenKv {
        FrozenKv {
            control: Arc::new(encode(&self.control())),
            leases: self.leases.freeze(),
            versions: self.store.freeze(),
        }
    }

    pub(crate) fn digest_of(&mut self, index: u32) -> Hash {
        match part(index) {
            Some(Part::Control) => control_digest(&encode(&self.control())),
            Some(Part::Leases(bucket)) => self.leases.digest(bucket),
            Some(Part::Versions(chunk)) => self.store.chunk_digest(chunk),
            None => Hash::ZERO,
        }
    }
}
