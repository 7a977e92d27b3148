//! What the store should answer, written the slow way: one whole map per revision, transactions checked by enumerating
//! every path they could take. Shares no code with the store but the wire types.

use bytes::Bytes;
use dwcp_state::kv::{
    Compare, CompareOp, CompareTarget, KeyValue, KvBody, KvCommand, KvError, Put, Range, SortBy, SortOrder,
    Txn, TxnOp, TxnReply,
};
use std::collections::BTreeMap;

type Map = BTreeMap<Bytes, KeyValue>;

/// A change as the model remembers it: revision, key, what it became (`None`: deleted), what it was.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelEvent {
    pub revision: u64,
    pub key: Bytes,
    pub now: Option<KeyValue>,
    pub before: Option<KeyValue>,
}

#[derive(Clone, Debug)]
pub struct Model {
    /// `history[r - 1]` is the store at revision r.
    history: Vec<Map>,
    pub events: Vec<ModelEvent>,
    pub compacted: u64,
    pub leases: BTreeMap<i64, (u64, u64)>,
    pub now_ms: u64,
}

/// One command's changes under way.
struct Work {
    map: Map,
    events: Vec<ModelEvent>,
}

fn inside(key: &[u8], from: &[u8], end: &[u8]) -> bool {
    match end {
        b"" => key == from,
        b"\0" => key >= from,
        _ => key >= from && key < end,
    }
}

impl Model {
    pub fn new() -> Self {
        Self { history: vec![Map::new()], events: vec![], compacted: 0, leases: BTreeMap::new(), now_ms: 0 }
    }

    pub fn revision(&self) -> u64 {
        self.history.len() as u64
    }

    pub fn at(&self, revision: u64) -> &Map {
        &self.history[revision as usize - 1]
    }

    fn now(&self) -> &Map {
        self.history.last().unwrap()
    }

    fn finish(&mut self, work: Work) {
        if !work.events.is_empty() {
            self.events.extend(work.events);
            self.history.push(work.map);
        }
    }

    /// Time passes; what ran out goes, one revision per lease that held keys, earliest deadline first.
    pub fn advance(&mut self, now_ms: u64) {
        self.now_ms = now_ms;
        let mut due: Vec<(u64, i64)> = self.leases.iter().map(|(id, (_, end))| (*end, *id)).collect();
        due.sort_unstable();
        for (end, id) in due {
            if end <= now_ms {
                self.revoke(id);
            }
        }
    }

    fn revoke(&mut self, id: i64) {
        self.leases.remove(&id);
        let mut work = self.work();
        let keys: Vec<Bytes> =
            work.map.values().filter(|kv| kv.lease == id).map(|kv| kv.key.clone()).collect();
        for key in keys {
            self.delete(&mut work, &key);
        }
        self.finish(work);
    }

    fn work(&self) -> Work {
        Work { map: self.now().clone(), events: vec![] }
    }

    fn delete(&self, work: &mut Work, key: &Bytes) {
        let before = work.map.remove(key);
        work.events.push(ModelEvent { revision: self.revision() + 1, key: key.clone(), now: None, before });
    }

    pub fn run(&mut self, command: &KvCommand) -> Result<KvBody, KvError> {
        match command {
            KvCommand::Compact { revision } => {
                if *revision <= self.compacted {
                    return Err(KvError::Compacted { compacted: self.compacted });
                }
                if *revision > self.revision() {
                    return Err(KvError::FutureRevision { revision: self.revision() });
                }
                self.compacted = *revision;
                Ok(KvBody::Compact)
            }
            KvCommand::LeaseGrant { id, ttl_s } => {
                if self.leases.contains_key(id) {
                    return Err(KvError::LeaseExists { id: *id });
                }
                self.leases.insert(*id, (*ttl_s, self.now_ms + ttl_s * 1000));
                Ok(KvBody::LeaseGrant { id: *id, ttl_s: *ttl_s })
            }
            KvCommand::LeaseRevoke { id } => {
                if !self.leases.contains_key(id) {
                    return Err(KvError::LeaseNotFound { id: *id });
                }
                self.revoke(*id);
                Ok(KvBody::LeaseRevoke)
            }
            KvCommand::LeaseKeepAlive { id } => {
                let now_ms = self.now_ms;
                let lease = self.leases.get_mut(id).ok_or(KvError::LeaseNotFound { id: *id })?;
                lease.1 = now_ms + lease.0 * 1000;
                Ok(KvBody::LeaseKeepAlive { id: *id, ttl_s: lease.0 })
            }
            KvCommand::LeaseTimeToLive { id, keys } => Ok(match self.leases.get(id) {
                None => KvBody::LeaseTimeToLive { id: *id, ttl_s: -1, granted_ttl_s: 0, keys: vec![] },
                Some((granted, end)) => KvBody::LeaseTimeToLive {
                    id: *id,
                    ttl_s: ((end - self.now_ms) / 1000) as i64,
                    granted_ttl_s: *granted,
                    keys: if *keys {
                        self.now().values().filter(|kv| kv.lease == *id).map(|kv| kv.key.clone()).collect()
                    } else {
                        vec![]
                    },
                },
            }),
            KvCommand::LeaseList => Ok(KvBody::LeaseList { ids: self.leases.keys().copied().collect() }),
            KvCommand::Txn(txn) => {
                if !txn.read_only() {
                    refuse_double_changes(txn)?;
                }
                let mut work = self.work();
                let reply = self.txn(&mut work, txn)?;
                self.finish(work);
                Ok(KvBody::Txn(reply))
            }
            KvCommand::Put(put) => self.single(TxnOp::Put(put.clone())),
            KvCommand::Range(range) => self.single(TxnOp::Range(range.clone())),
            KvCommand::DeleteRange(delete) => self.single(TxnOp::DeleteRange(delete.clone())),
            KvCommand::AlarmList | KvCommand::AlarmDisarm | KvCommand::QuotaSet { .. } => {
                unreachable!("not drawn")
            }
        }
    }

    fn single(&mut self, op: TxnOp) -> Result<KvBody, KvError> {
        let mut work = self.work();
        let body = self.op(&mut work, &op)?;
        self.finish(work);
        Ok(body)
    }

    /// Comparisons look at the store before the transaction: `self`, not `work`.
    fn txn(&self, work: &mut Work, txn: &Txn) -> Result<TxnReply, KvError> {
        let succeeded = txn.compare.iter().all(|compare| self.holds(compare));
        let branch = if succeeded { &txn.success } else { &txn.failure };
        let responses = branch.iter().map(|op| self.op(work, op)).collect::<Result<_, _>>()?;
        Ok(TxnReply { succeeded, responses })
    }

    fn holds(&self, compare: &Compare) -> bool {
        let missing = KeyValue::default();
        let mut found: Vec<&KeyValue> =
            self.now().values().filter(|kv| inside(&kv.key, &compare.key, &compare.range_end)).collect();
        if found.is_empty() {
            if matches!(compare.target, CompareTarget::Value(_)) {
                return false;
            }
            found.push(&missing);
        }
        found.iter().all(|kv| {
            let order = match &compare.target {
                CompareTarget::Version(given) => kv.version.cmp(given),
                CompareTarget::Create(given) => kv.create_revision.cmp(given),
                CompareTarget::Mod(given) => kv.mod_revision.cmp(given),
                CompareTarget::Value(given) => kv.value.cmp(given),
                CompareTarget::Lease(given) => kv.lease.cmp(given),
            };
            match compare.op {
                CompareOp::Equal => order.is_eq(),
                CompareOp::NotEqual => order.is_ne(),
                CompareOp::Greater => order.is_gt(),
                CompareOp::Less => order.is_lt(),
            }
        })
    }

    fn op(&self, work: &mut Work, op: &TxnOp) -> Result<KvBody, KvError> {
        match op {
            TxnOp::Put(put) => self.put(work, put),
            TxnOp::Range(range) => self.range(work, range),
            TxnOp::DeleteRange(delete) => {
                let doomed: Vec<KeyValue> = work
                    .map
                    .values()
                    .filter(|kv| inside(&kv.key, &delete.key, &delete.range_end))
                    .cloned()
                    .collect();
                for kv in &doomed {
                    self.delete(work, &kv.key);
                }
                let deleted = doomed.len() as u64;
                Ok(KvBody::DeleteRange { deleted, prev_kvs: if delete.prev_kv { doomed } else { vec![] } })
            }
            TxnOp::Txn(txn) => Ok(KvBody::Txn(self.txn(work, txn)?)),
        }
    }

    fn put(&self, work: &mut Work, put: &Put) -> Result<KvBody, KvError> {
        if put.ignore_value && !put.value.is_empty() {
            return Err(KvError::ValueProvided);
        }
        if put.ignore_lease && put.lease != 0 {
            return Err(KvError::LeaseProvided);
        }
        if put.lease != 0 && !self.leases.contains_key(&put.lease) {
            return Err(KvError::LeaseNotFound { id: put.lease });
        }
        let before = work.map.get(&put.key).cloned();
        if (put.ignore_value || put.ignore_lease) && before.is_none() {
            return Err(KvError::KeyNotFound);
        }
        let main = self.revision() + 1;
        let old = before.clone().unwrap_or_default();
        let kv = KeyValue {
            key: put.key.clone(),
            value: if put.ignore_value { old.value } else { put.value.clone() },
            create_revision: if before.is_some() { old.create_revision } else { main },
            mod_revision: main,
            version: old.version + 1,
            lease: if put.ignore_lease { old.lease } else { put.lease },
        };
        work.map.insert(put.key.clone(), kv.clone());
        work.events.push(ModelEvent {
            revision: main,
            key: put.key.clone(),
            now: Some(kv),
            before: before.clone(),
        });
        Ok(KvBody::Put { prev_kv: if put.prev_kv { before } else { None } })
    }

    fn range(&self, work: &Work, range: &Range) -> Result<KvBody, KvError> {
        if range.revision > self.revision() {
            return Err(KvError::FutureRevision { revision: self.revision() });
        }
        if range.revision > 0 && range.revision < self.compacted {
            return Err(KvError::Compacted { compacted: self.compacted });
        }
        let map = if range.revision == 0 { &work.map } else { self.at(range.revision) };
        let all: Vec<KeyValue> =
            map.values().filter(|kv| inside(&kv.key, &range.key, &range.range_end)).cloned().collect();
        let count = all.len() as u64;
        if range.count_only {
            return Ok(KvBody::Range { kvs: vec![], more: false, count });
        }
        let max = |bound: u64| if bound == 0 { u64::MAX } else { bound };
        let mut kvs: Vec<KeyValue> = all
            .into_iter()
            .filter(|kv| {
                (range.min_mod_revision..=max(range.max_mod_revision)).contains(&kv.mod_revision)
                    && (range.min_create_revision..=max(range.max_create_revision))
                        .contains(&kv.create_revision)
            })
            .collect();
        match range.sort_by {
            SortBy::Key => {}
            SortBy::Version => kvs.sort_by_key(|kv| kv.version),
            SortBy::Create => kvs.sort_by_key(|kv| kv.create_revision),
            SortBy::Mod => kvs.sort_by_key(|kv| kv.mod_revision),
            SortBy::Value => kvs.sort_by_key(|kv| kv.value.clone()),
        }
        if range.sort_order == SortOrder::Descend {
            // A stable descending sort: reversing twice around an ascending one keeps equal elements in key order.
            match range.sort_by {
                SortBy::Key => kvs.sort_by_key(|kv| std::cmp::Reverse(kv.key.clone())),
                SortBy::Version => kvs.sort_by_key(|kv| (std::cmp::Reverse(kv.version), kv.key.clone())),
                SortBy::Create => {
                    kvs.sort_by_key(|kv| (std::cmp::Reverse(kv.create_revision), kv.key.clone()))
                }
                SortBy::Mod => kvs.sort_by_key(|kv| (std::cmp::Reverse(kv.mod_revision), kv.key.clone())),
                SortBy::Value => kvs.sort_by_key(|kv| (std::cmp::Reverse(kv.value.clone()), kv.key.clone())),
            }
        }
        let more = range.limit > 0 && kvs.len() as u64 > range.limit;
        if range.limit > 0 {
            kvs.truncate(range.limit as usize);
        }
        if range.keys_only {
            kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
        }
        Ok(KvBody::Range { kvs, more, count })
    }
}

/// Every list of plain operations that one of the transaction's paths would run.
fn paths(txn: &Txn) -> Vec<Vec<&TxnOp>> {
    let mut all = vec![];
    for branch in [&txn.success, &txn.failure] {
        let mut lists: Vec<Vec<&TxnOp>> = vec![vec![]];
        for op in branch {
            let tails = if let TxnOp::Txn(nested) = op { paths(nested) } else { vec![vec![op]] };
            lists = lists
                .iter()
                .flat_map(|list| tails.iter().map(move |tail| [list.as_slice(), tail].concat()))
                .collect();
        }
        all.extend(lists);
    }
    all
}

fn refuse_double_changes(txn: &Txn) -> Result<(), KvError> {
    for path in paths(txn) {
        for (place, one) in path.iter().enumerate() {
            for other in &path[place + 1..] {
                let clash = match (one, other) {
                    (TxnOp::Put(a), TxnOp::Put(b)) => a.key == b.key,
                    (TxnOp::Put(put), TxnOp::DeleteRange(delete))
                    | (TxnOp::DeleteRange(delete), TxnOp::Put(put)) => {
                        inside(&put.key, &delete.key, &delete.range_end)
                    }
                    _ => false,
                };
                if clash {
                    return Err(KvError::DuplicateKey);
                }
            }
        }
    }
    Ok(())
}
