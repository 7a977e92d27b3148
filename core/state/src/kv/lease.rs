//! Leases: names with a deadline on the expiry clock, and the keys that die with them. Deadlines are part of the state;
//! which keys hang on a lease is derived from the keys themselves. Knows no versions and deletes nothing itself.

use crate::kv::error::KvError;
use crate::kv::store::Key;
use crate::snapshot::RestoreError;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;
use alloc::vec::Vec;
use borsh::{BorshDeserialize, BorshSerialize};
use dwcp_base::{Hash, Hasher, decode, encode};

/// Leases that may be held at once; a grant beyond it is refused.
pub const LEASES_MAX: usize = 65_536;
/// The longest a lease may live without being kept alive, in seconds.
pub const LEASE_TTL_MAX_S: u64 = 9_000_000_000;
/// Chunks that leases are spread over.
pub(crate) const LEASE_BUCKETS: usize = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(crate) struct Lease {
    pub(crate) ttl_s: u64,
    pub(crate) deadline_ms: u64,
}

pub(crate) type LeaseBucket = BTreeMap<i64, Lease>;

#[derive(Clone, Debug)]
pub(crate) struct Leases {
    /// `LEASE_BUCKETS` of them, at most `LEASES_MAX` leases together.
    buckets: Vec<Arc<LeaseBucket>>,
    digests: Vec<Option<Hash>>,
    /// Derived, one entry per lease.
    deadlines: BTreeSet<(u64, i64)>,
    /// Derived, one entry per live key with a lease.
    attached: BTreeMap<i64, BTreeSet<Key>>,
}

fn bucket_of(id: i64) -> usize {
    usize::from(id.to_le_bytes()[0]) % LEASE_BUCKETS
}

fn bucket_digest(bytes: &[u8]) -> Hash {
    let mut hasher = Hasher::new("dwcp v3 kv leases");
    hasher.field(bytes);
    hasher.finish()
}

fn deadline(expiry_ms: u64, ttl_s: u64) -> u64 {
    expiry_ms.saturating_add(ttl_s.saturating_mul(1000))
}

impl Leases {
    pub(crate) fn new() -> Self {
        Self {
            buckets: (0..LEASE_BUCKETS).map(|_| Arc::new(LeaseBucket::new())).collect(),
            digests: (0..LEASE_BUCKETS).map(|_| None).collect(),
            deadlines: BTreeSet::new(),
            attached: BTreeMap::new(),
        }
    }

    pub(crate) fn get(&self, id: i64) -> Option<Lease> {
        self.buckets[bucket_of(id)].get(&id).copied()
    }

    fn set(&mut self, id: i64, lease: Option<Lease>) {
        let bucket = bucket_of(id);
        let bucket_map = Arc::make_mut(&mut self.buckets[bucket]);
        let before = match lease {
            Some(lease) => bucket_map.insert(id, lease),
            None => bucket_map.remove(&id),
        };
        if let Some(before) = before {
            self.deadlines.remove(&(before.deadline_ms, id));
        }
        if let Some(lease) = lease {
            self.deadlines.insert((lease.deadline_ms, id));
        }
        self.digests[bucket] = None;
    }

    pub(crate) fn grant(&mut self, id: i64, ttl_s: u64, expiry_ms: u64) -> Result<(), KvError> {
        if ttl_s == 0 || ttl_s > LEASE_TTL_MAX_S {
            return Err(KvError::LeaseTtl { ttl_s });
        }
        if self.get(id).is_some() {
            return Err(KvError::LeaseExists { id });
        }
        if self.deadlines.len() >= LEASES_MAX {
            return Err(KvError::LeasesFull);
        }
        self.set(id, Some(Lease { ttl_s, deadline_ms: deadline(expiry_ms, ttl_s) }));
        Ok(())
    }

    /// The ttl it has again.
    pub(crate) fn keep_alive(&mut self, id: i64, expiry_ms: u64) -> Result<u64, KvError> {
        let lease = self.get(id).ok_or(KvError::LeaseNotFound { id })?;
        self.set(id, Some(Lease { ttl_s: lease.ttl_s, deadline_ms: deadline(expiry_ms, lease.ttl_s) }));
        Ok(lease.ttl_s)
    }

    /// Forgets the lease; the keys that hung on it, in order.
    pub(crate) fn remove(&mut self, id: i64) -> Option<BTreeSet<Key>> {
        self.get(id)?;
        self.set(id, None);
        Some(self.attached.remove(&id).unwrap_or_default())
    }

    pub(crate) fn attach(&mut self, id: i64, key: Key) {
        if id != 0 {
            self.attached.entry(id).or_default().insert(key);
        }
    }

    pub(crate) fn detach(&mut self, id: i64, key: &[u8]) {
        if let Some(keys) = self.attached.get_mut(&id) {
            keys.remove(key);
            if keys.is_empty() {
                self.attached.remove(&id);
            }
        }
    }

    pub(crate) fn keys(&self, id: i64) -> impl Iterator<Item = &Key> {
        self.attached.get(&id).into_iter().flatten()
    }

    pub(crate) fn ids(&self) -> Vec<i64> {
        let mut ids: Vec<i64> = self.deadlines.iter().map(|(_, id)| *id).collect();
        ids.sort_unstable();
        ids
    }

    pub(crate) fn next_expiry(&self) -> Option<u64> {
        self.deadlines.first().map(|(deadline_ms, _)| *deadline_ms)
    }

    /// The lease that ran out first, by (deadline, id).
    pub(crate) fn first_expired(&self, expiry_ms: u64) -> Option<i64> {
        self.deadlines.first().filter(|(deadline_ms, _)| *deadline_ms <= expiry_ms).map(|(_, id)| *id)
    }

    pub(crate) fn digest(&mut self, bucket: usize) -> Hash {
        let digest =
            self.digests[bucket].unwrap_or_else(|| bucket_digest(&encode(self.buckets[bucket].as_ref())));
        self.digests[bucket] = Some(digest);
        digest
    }

    pub(crate) fn freeze(&self) -> Vec<Arc<LeaseBucket>> {
        self.buckets.clone()
    }

    pub(crate) fn restore(
        &mut self,
        index: u32,
        bucket: usize,
        bytes: &[u8],
        expected: &Hash,
    ) -> Result<(), RestoreError> {
        if bucket_digest(bytes) != *expected {
            return Err(RestoreError::Digest { index });
        }
        let leases: LeaseBucket = decode(bytes).map_err(|_| RestoreError::Malformed { index })?;
        if leases.keys().any(|id| bucket_of(*id) != bucket) {
            return Err(RestoreError::Malformed { index });
        }
        for (id, lease) in leases {
            self.set(id, Some(lease));
        }
        Ok(())
    }
}
