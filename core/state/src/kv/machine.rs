//! Runs the store's commands: reads, puts, deletions, transactions, compaction, leases, the quota. A command either
//! takes effect as a whole under one new revision or is refused and leaves nothing behind: what it wrote before it was
//! refused is rolled back.

use crate::kv::error::KvError;
use crate::kv::lease::Leases;
use crate::kv::snapshot::{CHUNKS, FrozenKv, Restoring};
use crate::kv::store::{Event, Store, Version, bounds};
use crate::kv::wire::{
    Compare, CompareOp, CompareTarget, DeleteRange, KvBody, KvCommand, KvReply, Put, Range, SortBy,
    SortOrder, Txn, TxnOp, TxnReply, bytes_read_only,
};
use crate::machine::{Context, MachineRefusal, QueryError, StateMachine};
use crate::snapshot::RestoreError;
use alloc::collections::BTreeSet;
use alloc::sync::Arc;
use alloc::vec::Vec;
use bytes::Bytes;
use core::cmp::Ordering;
use core::ops::RangeBounds;
use dwcp_base::configuration::Role;
use dwcp_base::{Hash, Hasher};

/// Bytes that one reply may hold: a larger one is refused, to be asked for in pages.
pub const REPLY_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// What a key-value pair counts towards it besides key and value.
const REPLY_KEY_BYTES: u64 = 64;
/// Changes whose leftovers one entry of the log sweeps away after a compaction.
const SWEEP_CHANGES: usize = 512;

/// The store as a state machine.
#[derive(Clone, Debug)]
pub struct Kv {
    pub(crate) store: Store,
    pub(crate) leases: Leases,
    pub(crate) quota_bytes: u64,
    /// The alarm: puts and grants are refused until an admin disarms it.
    pub(crate) no_space: bool,
    /// How many leases chose their own id; makes the next id.
    pub(crate) leases_granted: u64,
    pub(crate) expiry_ms: u64,
    /// Only between the first chunk and the last of a snapshot.
    pub(crate) restoring: Option<Restoring>,
}

/// What is left of a reply's bytes.
struct Room(u64);

impl Room {
    fn take(&mut self, version: &Version, with_value: bool) -> Result<(), KvError> {
        let value = if with_value { version.value.len() as u64 } else { 0 };
        let bytes = version.key.len() as u64 + value + REPLY_KEY_BYTES;
        self.0 = self.0.checked_sub(bytes).ok_or(KvError::ReplyTooLarge { bytes_max: REPLY_BYTES_MAX })?;
        Ok(())
    }
}

impl Kv {
    /// An empty store. `quota_bytes` is the genesis' and may later be changed by an ordered command.
    #[must_use]
    pub fn new(quota_bytes: u64) -> Self {
        Self {
            store: Store::new(),
            leases: Leases::new(),
            quota_bytes,
            no_space: false,
            leases_granted: 0,
            expiry_ms: 0,
            restoring: None,
        }
    }

    /// The store's revision: 1 when nothing was ever written.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.store.revision
    }

    /// The lowest revision that can still be read; 0 before the first compaction.
    #[must_use]
    pub fn compacted(&self) -> u64 {
        self.store.compacted
    }

    /// Bytes that count towards the quota: keys, values and an overhead, of every version kept.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.store.bytes
    }

    #[must_use]
    pub fn no_space(&self) -> bool {
        self.no_space
    }

    /// Every change from `revision` on, in order. This is what watches are served from.
    ///
    /// # Errors
    /// `Compacted` when changes from there on may have been forgotten.
    pub fn events_since(&self, revision: u64) -> Result<impl Iterator<Item = Event> + '_, KvError> {
        self.store.events_since(revision)
    }

    fn run(&mut self, context: &Context<'_>, command: KvCommand) -> Result<KvBody, KvError> {
        match command {
            KvCommand::Put(put) => self.put(put, &mut Room(REPLY_BYTES_MAX)),
            KvCommand::DeleteRange(delete) => self.delete_range(&delete, &mut Room(REPLY_BYTES_MAX)),
            KvCommand::Txn(txn) if !txn.read_only() => {
                check_overlaps(&txn)?;
                let mut path = Vec::new();
                self.choose(&txn, &mut path)?;
                let reply = self.txn(txn, &mut path.into_iter(), &mut Room(REPLY_BYTES_MAX))?;
                Ok(KvBody::Txn(reply))
            }
            KvCommand::Compact { revision } => self.store.compact(revision).map(|()| KvBody::Compact),
            KvCommand::LeaseGrant { id, ttl_s } => self.lease_grant(id, ttl_s),
            KvCommand::LeaseRevoke { id } => {
                if self.lease_end(id) {
                    Ok(KvBody::LeaseRevoke)
                } else {
                    Err(KvError::LeaseNotFound { id })
                }
            }
            KvCommand::LeaseKeepAlive { id } => {
                let ttl_s = self.leases.keep_alive(id, self.expiry_ms)?;
                Ok(KvBody::LeaseKeepAlive { id, ttl_s })
            }
            KvCommand::AlarmDisarm | KvCommand::QuotaSet { .. } if context.role != Role::Admin => {
                Err(KvError::AdminOnly)
            }
            KvCommand::AlarmDisarm => {
                self.no_space = false;
                Ok(self.alarms())
            }
            KvCommand::QuotaSet { quota_bytes } => {
                self.quota_bytes = quota_bytes;
                Ok(self.alarms())
            }
            KvCommand::Range(_)
            | KvCommand::Txn(_)
            | KvCommand::LeaseTimeToLive { .. }
            | KvCommand::LeaseList
            | KvCommand::AlarmList => self.read(&command),
        }
    }

    /// Commands that change nothing. Others do not get here.
    fn read(&self, command: &KvCommand) -> Result<KvBody, KvError> {
        match command {
            KvCommand::Range(range) => self.range(range, &mut Room(REPLY_BYTES_MAX)),
            KvCommand::Txn(txn) => {
                let mut path = Vec::new();
                self.choose(txn, &mut path)?;
                self.read_txn(txn, &mut path.into_iter(), &mut Room(REPLY_BYTES_MAX)).map(KvBody::Txn)
            }
            KvCommand::LeaseTimeToLive { id, keys } => self.lease_time_to_live(*id, *keys),
            KvCommand::LeaseList => Ok(KvBody::LeaseList { ids: self.leases.ids() }),
            KvCommand::AlarmList => Ok(self.alarms()),
            _ => Err(KvError::Malformed),
        }
    }

    fn alarms(&self) -> KvBody {
        KvBody::Alarms { no_space: self.no_space, bytes: self.store.bytes, quota_bytes: self.quota_bytes }
    }

    fn range(&self, range: &Range, room: &mut Room) -> Result<KvBody, KvError> {
        if range.key.is_empty() {
            return Err(KvError::EmptyKey);
        }
        // A transaction may name the revision before its own writes, never its own.
        self.store.check_revision(range.revision)?;
        let revision = if range.revision == 0 { self.store.reading() } else { range.revision };
        let found = self.store.range(&range.key, &range.range_end, revision);
        let limit =
            if range.limit == 0 { usize::MAX } else { usize::try_from(range.limit).unwrap_or(usize::MAX) };
        let by_key = range.sort_by == SortBy::Key && range.sort_order != SortOrder::Descend;
        // What exists now is counted without looking at it; the past, and what bounds exclude, must be walked.
        let present = revision == self.store.reading();
        let mut count = 0u64;
        let mut kept: Vec<&Arc<Version>> = Vec::new();
        let mut matching = 0usize;
        if present && range.count_only {
            count = self.store.count(&range.key, &range.range_end);
        } else if present && by_key && !has_bounds(range) {
            count = self.store.count(&range.key, &range.range_end);
            kept = found.take(limit.saturating_add(1)).collect();
            matching = kept.len();
        } else {
            for version in found {
                count += 1;
                if range.count_only || !within_bounds(range, version) {
                    continue;
                }
                matching += 1;
                // In key order what lies past the limit is only counted.
                if !by_key || kept.len() < limit {
                    kept.push(version);
                }
            }
        }
        if !by_key {
            kept.sort_by(|one, other| sort_order(range, one, other));
        }
        let more = matching > limit;
        kept.truncate(limit);
        for version in &kept {
            room.take(version, !range.keys_only)?;
        }
        let kvs = kept.into_iter().map(|version| version.key_value(!range.keys_only)).collect();
        Ok(KvBody::Range { kvs, more, count })
    }

    fn put(&mut self, put: Put, room: &mut Room) -> Result<KvBody, KvError> {
        if put.key.is_empty() {
            return Err(KvError::EmptyKey);
        }
        if put.ignore_value && !put.value.is_empty() {
            return Err(KvError::ValueProvided);
        }
        if put.ignore_lease && put.lease != 0 {
            return Err(KvError::LeaseProvided);
        }
        if put.lease != 0 && self.leases.get(put.lease).is_none() {
            return Err(KvError::LeaseNotFound { id: put.lease });
        }
        let before = self.store.get(&put.key).cloned();
        if before.is_none() && (put.ignore_value || put.ignore_lease) {
            return Err(KvError::KeyNotFound);
        }
        if self.no_space {
            return Err(self.no_space_error());
        }
        let prev_kv = match &before {
            Some(before) if put.prev_kv => {
                room.take(before, true)?;
                Some(before.key_value(true))
            }
            _ => None,
        };
        let (mut value, mut lease) = (put.value, put.lease);
        if let Some(before) = &before {
            if put.ignore_value {
                value = before.value.clone();
            }
            if put.ignore_lease {
                lease = before.lease;
            }
        }
        self.write(&put.key, before.as_deref(), Some((value, lease)));
        if self.store.bytes > self.quota_bytes {
            // Raised here and kept: the caller rolls back what was written, not the alarm.
            self.no_space = true;
            return Err(self.no_space_error());
        }
        Ok(KvBody::Put { prev_kv })
    }

    fn no_space_error(&self) -> KvError {
        KvError::NoSpace { bytes: self.store.bytes, quota_bytes: self.quota_bytes }
    }

    /// Writes a change and moves the key from its old lease to its new one.
    fn write(&mut self, key: &[u8], before: Option<&Version>, to: Option<(Bytes, i64)>) {
        if let Some(before) = before {
            self.leases.detach(before.lease, key);
        }
        match to {
            Some((value, lease)) => {
                self.store.write(key, Some(value), lease);
                if lease != 0
                    && let Some(now) = self.store.get(key)
                {
                    self.leases.attach(lease, now.key.clone());
                }
            }
            None => self.store.write(key, None, 0),
        }
    }

    fn delete_range(&mut self, delete: &DeleteRange, room: &mut Room) -> Result<KvBody, KvError> {
        if delete.key.is_empty() {
            return Err(KvError::EmptyKey);
        }
        let doomed: Vec<Arc<Version>> =
            self.store.range(&delete.key, &delete.range_end, self.store.reading()).cloned().collect();
        let mut prev_kvs = Vec::new();
        if delete.prev_kv {
            for version in &doomed {
                room.take(version, true)?;
            }
            prev_kvs = doomed.iter().map(|version| version.key_value(true)).collect();
        }
        for version in &doomed {
            self.write(&version.key, Some(version), None);
        }
        Ok(KvBody::DeleteRange { deleted: doomed.len() as u64, prev_kvs })
    }

    /// Decides every branch that will run, outermost first, on the store as it is before the transaction writes.
    fn choose(&self, txn: &Txn, path: &mut Vec<bool>) -> Result<(), KvError> {
        let mut holds = true;
        for compare in &txn.compare {
            if compare.key.is_empty() {
                return Err(KvError::EmptyKey);
            }
            holds = holds && self.compare(compare);
        }
        path.push(holds);
        for op in if holds { &txn.success } else { &txn.failure } {
            if let TxnOp::Txn(nested) = op {
                self.choose(nested, path)?;
            }
        }
        Ok(())
    }

    fn compare(&self, compare: &Compare) -> bool {
        let mut any = false;
        for version in self.store.range(&compare.key, &compare.range_end, self.store.revision) {
            any = true;
            let ordering = match &compare.target {
                CompareTarget::Version(given) => version.version.cmp(given),
                CompareTarget::Create(given) => version.create.cmp(given),
                CompareTarget::Mod(given) => version.main.cmp(given),
                CompareTarget::Value(given) => version.value.cmp(given),
                CompareTarget::Lease(given) => version.lease.cmp(given),
            };
            if !satisfies(compare.op, ordering) {
                return false;
            }
        }
        any || match &compare.target {
            CompareTarget::Value(_) => false,
            CompareTarget::Version(given) | CompareTarget::Create(given) | CompareTarget::Mod(given) => {
                satisfies(compare.op, 0.cmp(given))
            }
            CompareTarget::Lease(given) => satisfies(compare.op, 0.cmp(given)),
        }
    }

    fn txn(
        &mut self,
        txn: Txn,
        path: &mut impl Iterator<Item = bool>,
        room: &mut Room,
    ) -> Result<TxnReply, KvError> {
        let succeeded = path.next().unwrap_or(false);
        let mut responses = Vec::new();
        for op in if succeeded { txn.success } else { txn.failure } {
            responses.push(match op {
                TxnOp::Put(put) => self.put(put, room)?,
                TxnOp::Range(range) => self.range(&range, room)?,
                TxnOp::DeleteRange(delete) => self.delete_range(&delete, room)?,
                TxnOp::Txn(nested) => KvBody::Txn(self.txn(nested, path, room)?),
            });
        }
        Ok(TxnReply { succeeded, responses })
    }

    fn read_txn(
        &self,
        txn: &Txn,
        path: &mut impl Iterator<Item = bool>,
        room: &mut Room,
    ) -> Result<TxnReply, KvError> {
        let succeeded = path.next().unwrap_or(false);
        let mut responses = Vec::new();
        for op in if succeeded { &txn.success } else { &txn.failure } {
            responses.push(match op {
                TxnOp::Range(range) => self.range(range, room)?,
                TxnOp::Txn(nested) => KvBody::Txn(self.read_txn(nested, path, room)?),
                TxnOp::Put(_) | TxnOp::DeleteRange(_) => return Err(KvError::Malformed),
            });
        }
        Ok(TxnReply { succeeded, responses })
    }

    fn lease_grant(&mut self, id: i64, ttl_s: u64) -> Result<KvBody, KvError> {
        if self.no_space {
            return Err(self.no_space_error());
        }
        let (id, granted) = if id == 0 { self.fresh_lease_id() } else { (id, self.leases_granted) };
        self.leases.grant(id, ttl_s, self.expiry_ms)?;
        self.leases_granted = granted;
        Ok(KvBody::LeaseGrant { id, ttl_s })
    }

    /// A positive id no lease has, the same at every replica. Ids are spread by hashing so that one chosen by a client
    /// rarely stands in the way; how many were tried is part of the state.
    fn fresh_lease_id(&self) -> (i64, u64) {
        let mut granted = self.leases_granted;
        loop {
            granted = granted.wrapping_add(1);
            let mut hasher = Hasher::new("dwcp v3 lease id");
            hasher.update(&granted.to_le_bytes());
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&hasher.finish().0[..8]);
            let id = i64::from_le_bytes(bytes) & i64::MAX;
            if id != 0 && self.leases.get(id).is_none() {
                return (id, granted);
            }
        }
    }

    /// Ends a lease and deletes its keys, in key order, under one revision. False when there is none.
    fn lease_end(&mut self, id: i64) -> bool {
        let Some(keys) = self.leases.remove(id) else { return false };
        for key in keys {
            self.store.write(&key, None, 0);
        }
        true
    }

    fn lease_time_to_live(&self, id: i64, with_keys: bool) -> Result<KvBody, KvError> {
        let Some(lease) = self.leases.get(id) else {
            return Ok(KvBody::LeaseTimeToLive { id, ttl_s: -1, granted_ttl_s: 0, keys: Vec::new() });
        };
        let left_s = lease.deadline_ms.saturating_sub(self.expiry_ms) / 1000;
        let mut keys = Vec::new();
        if with_keys {
            let mut left = REPLY_BYTES_MAX;
            for key in self.leases.keys(id) {
                left = left
                    .checked_sub(key.len() as u64 + REPLY_KEY_BYTES)
                    .ok_or(KvError::ReplyTooLarge { bytes_max: REPLY_BYTES_MAX })?;
                keys.push(Bytes::copy_from_slice(key));
            }
        }
        let ttl_s = i64::try_from(left_s).unwrap_or(i64::MAX);
        Ok(KvBody::LeaseTimeToLive { id, ttl_s, granted_ttl_s: lease.ttl_s, keys })
    }

    fn roll_back(&mut self) {
        let leases = &mut self.leases;
        self.store.roll_back(|undone, before| {
            leases.detach(undone.lease, &undone.key);
            if let Some(before) = before {
                leases.attach(before.lease, before.key.clone());
            }
        });
    }

    fn reply(&self, body: KvBody) -> Bytes {
        KvReply { revision: self.store.revision, body }.encode()
    }
}

fn has_bounds(range: &Range) -> bool {
    let bounds = [
        range.min_mod_revision,
        range.max_mod_revision,
        range.min_create_revision,
        range.max_create_revision,
    ];
    bounds != [0; 4]
}

fn within_bounds(range: &Range, version: &Version) -> bool {
    let within = |value: u64, min: u64, max: u64| value >= min && (max == 0 || value <= max);
    within(version.main, range.min_mod_revision, range.max_mod_revision)
        && within(version.create, range.min_create_revision, range.max_create_revision)
}

/// Ties keep key order, also when descending.
fn sort_order(range: &Range, one: &Version, other: &Version) -> Ordering {
    let ordering = match range.sort_by {
        SortBy::Key => one.key.cmp(&other.key),
        SortBy::Version => one.version.cmp(&other.version),
        SortBy::Create => one.create.cmp(&other.create),
        SortBy::Mod => one.main.cmp(&other.main),
        SortBy::Value => one.value.cmp(&other.value),
    };
    if range.sort_order == SortOrder::Descend { ordering.reverse() } else { ordering }
}

fn satisfies(op: CompareOp, ordering: Ordering) -> bool {
    match op {
        CompareOp::Equal => ordering == Ordering::Equal,
        CompareOp::NotEqual => ordering != Ordering::Equal,
        CompareOp::Greater => ordering == Ordering::Greater,
        CompareOp::Less => ordering == Ordering::Less,
    }
}

/// What one level of a transaction, with all below it, would change.
#[derive(Default)]
struct Changes<'a> {
    puts: BTreeSet<&'a [u8]>,
    deletes: Vec<(&'a [u8], &'a [u8])>,
}

fn covers((key, range_end): (&[u8], &[u8]), put: &[u8]) -> bool {
    bounds(key, range_end).is_some_and(|range| RangeBounds::<[u8]>::contains(&range, put))
}

/// Refuses a transaction in which one path could change a key twice: two puts, or a put and a deletion. Puts in the two
/// branches of one transaction may meet, because only one branch runs. (Deletions may overlap: the second finds nothing.)
///
/// Departs from etcd, which lets a put and a deletion in two nested transactions of one branch pass when the deletion
/// comes second; here their order does not matter. Test `a_put_and_a_deletion_of_siblings_are_refused_in_either_order`.
fn check_overlaps(txn: &Txn) -> Result<(), KvError> {
    changes(txn).map(|_| ())
}

fn changes(txn: &Txn) -> Result<Changes<'_>, KvError> {
    let mut success = branch_changes(&txn.success)?;
    let failure = branch_changes(&txn.failure)?;
    success.puts.extend(failure.puts);
    success.deletes.extend(failure.deletes);
    Ok(success)
}

fn branch_changes(ops: &[TxnOp]) -> Result<Changes<'_>, KvError> {
    let mut all = Changes::default();
    for op in ops {
        let one = match op {
            TxnOp::Range(_) => continue,
            TxnOp::Put(put) => Changes { puts: BTreeSet::from([put.key.as_ref()]), deletes: Vec::new() },
            TxnOp::DeleteRange(delete) => Changes {
                puts: BTreeSet::new(),
                deletes: Vec::from([(delete.key.as_ref(), delete.range_end.as_ref())]),
            },
            TxnOp::Txn(nested) => changes(nested)?,
        };
        let clash =
            one.puts.iter().any(|put| all.puts.contains(put) || all.deletes.iter().any(|d| covers(*d, put)))
                || all.puts.iter().any(|put| one.deletes.iter().any(|d| covers(*d, put)));
        if clash {
            return Err(KvError::DuplicateKey);
        }
        all.puts.extend(one.puts);
        all.deletes.extend(one.deletes);
    }
    Ok(all)
}

impl StateMachine for Kv {
    type Frozen = FrozenKv;
    const NAME: &'static str = "dwcp kv";

    fn version(&self) -> u32 {
        1
    }

    fn apply(&mut self, context: &Context<'_>, command: &[u8]) -> Result<Bytes, MachineRefusal> {
        self.expiry_ms = self.expiry_ms.max(context.expiry_ms);
        let command = KvCommand::decode(command)?;
        match self.run(context, command) {
            Ok(body) => {
                self.store.commit();
                Ok(self.reply(body))
            }
            Err(error) => {
                self.roll_back();
                Err(error.into())
            }
        }
    }

    fn read_only(&self, command: &[u8]) -> bool {
        bytes_read_only(command)
    }

    fn orders_any(&self, command: &[u8], wanted: &dyn Fn(&[u8], &[u8]) -> bool) -> bool {
        KvCommand::decode(command).is_ok_and(|command| command.orders_any(wanted))
    }

    fn has_key(&self, key: &[u8]) -> bool {
        self.store.get(key).is_some()
    }

    fn advance(&mut self, expiry_ms: u64) {
        self.expiry_ms = self.expiry_ms.max(expiry_ms);
        while let Some(id) = self.leases.first_expired(self.expiry_ms) {
            self.lease_end(id);
            self.store.commit();
        }
        self.store.sweep(SWEEP_CHANGES);
    }

    fn next_expiry(&self) -> Option<u64> {
        if self.store.sweeping() { Some(self.expiry_ms) } else { self.leases.next_expiry() }
    }

    fn query(&self, query: &[u8]) -> Result<Bytes, QueryError> {
        let command = KvCommand::decode(query).map_err(|error| QueryError::Refused(error.into()))?;
        if !command.read_only() {
            return Err(QueryError::NotReadOnly);
        }
        match self.read(&command) {
            Ok(body) => Ok(self.reply(body)),
            Err(error) => Err(QueryError::Refused(error.into())),
        }
    }

    fn chunk_count(&self) -> u32 {
        u32::try_from(CHUNKS).expect("chunks are few")
    }

    fn chunk_digest(&mut self, index: u32) -> Hash {
        self.digest_of(index)
    }

    fn freeze(&mut self) -> FrozenKv {
        self.freeze_chunks()
    }

    fn restore_chunk(&mut self, index: u32, bytes: &[u8], expected: &Hash) -> Result<(), RestoreError> {
        self.take_chunk(index, bytes, expected)
    }

    fn restore_finish(&mut self) -> Result<(), RestoreError> {
        self.finish_restore()
    }
}
