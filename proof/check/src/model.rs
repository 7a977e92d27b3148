//! The sequential reference: a multi-version store simple enough to be believed by reading it.
//!
//! Every key keeps all its versions, so that any old revision can be read and the store can be rewound to any revision (the search of
//! `linear` tries and takes back). It knows no clients, no time and no concurrency, and shares nothing with the real store.

use crate::operation::{Answer, Compare, Interval, KeyValue, Operation, Relation, TXN_DEPTH_MAX, Target};
use std::collections::BTreeMap;

/// What the store held before the history began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    pub revision: u64,
    pub records: Vec<KeyValue>,
}

impl Start {
    /// An empty store. etcd's first revision is 1: the first put then answers 2.
    pub fn empty(revision: u64) -> Self {
        Self { revision, records: Vec::new() }
    }
}

/// Why an operation can have no answer at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Impossible {
    FutureRevision { asked: u64, current: u64 },
    TooDeep,
    Unmodelled,
}

#[derive(Clone, Debug)]
struct Version {
    revision: u64,
    /// None: deleted at that revision.
    record: Option<KeyValue>,
}

#[derive(Clone, Debug)]
pub struct Model {
    revision: u64,
    keys: BTreeMap<Vec<u8>, Vec<Version>>,
    /// Keys changed by each revision after the start, oldest first.
    changes: Vec<(u64, Vec<Vec<u8>>)>,
}

impl Model {
    pub fn new(start: &Start) -> Self {
        let mut keys: BTreeMap<Vec<u8>, Vec<Version>> = BTreeMap::new();
        for record in &start.records {
            let version = Version { revision: record.mod_revision, record: Some(record.clone()) };
            keys.insert(record.key.clone(), vec![version]);
        }
        Self { revision: start.revision, keys, changes: Vec::new() }
    }

    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Runs one operation. The revision grows by one if anything changed, by nothing otherwise; on an error nothing changed.
    pub fn apply(&mut self, operation: &Operation) -> Result<Answer, Impossible> {
        let mut changed = Vec::new();
        let answer = self.run(operation, &mut changed, 0);
        if answer.is_err() {
            let next = self.revision + 1;
            changed.iter().for_each(|key| self.forget(key, next));
        } else if !changed.is_empty() {
            self.revision += 1;
            changed.sort();
            changed.dedup();
            self.changes.push((self.revision, changed));
        }
        answer
    }

    /// Takes back every revision after `revision`.
    pub fn rewind(&mut self, revision: u64) {
        while let Some((at, keys)) = self.changes.pop_if(|(at, _)| *at > revision) {
            keys.iter().for_each(|key| self.forget(key, at));
        }
        self.revision = self.revision.min(revision);
    }

    /// Keys changed by the latest mutation.
    pub fn last_changed(&self) -> &[Vec<u8>] {
        self.changes.last().map_or(&[], |(_, keys)| keys)
    }

    pub fn latest(&self, key: &[u8]) -> Option<&KeyValue> {
        self.keys.get(key)?.last()?.record.as_ref()
    }

    fn forget(&mut self, key: &[u8], revision: u64) {
        if let Some(versions) = self.keys.get_mut(key) {
            versions.retain(|version| version.revision != revision);
            if versions.is_empty() {
                self.keys.remove(key);
            }
        }
    }

    fn run(
        &mut self,
        operation: &Operation,
        changed: &mut Vec<Vec<u8>>,
        depth: usize,
    ) -> Result<Answer, Impossible> {
        match operation {
            Operation::Put { key, value, lease, want_prev } => {
                let prev = self.put(key, value, *lease, changed);
                Ok(Answer::Put { prev: prev.filter(|_| *want_prev) })
            }
            Operation::Range { over, revision, limit, .. } => {
                let current = self.revision + u64::from(!changed.is_empty());
                if *revision > current {
                    return Err(Impossible::FutureRevision { asked: *revision, current });
                }
                let at = if *revision == 0 { current } else { *revision };
                let mut records = self.range(over, at);
                let count = records.len() as u64;
                if *limit != 0 {
                    records.truncate(usize::try_from(*limit).unwrap_or(usize::MAX));
                }
                Ok(Answer::Range { records, count })
            }
            Operation::DeleteRange { over, want_prev } => {
                let gone = self.range(over, self.revision + 1);
                gone.iter().for_each(|record| self.set(&record.key, None, changed));
                let deleted = gone.len() as u64;
                Ok(Answer::DeleteRange { deleted, prev: if *want_prev { gone } else { Vec::new() } })
            }
            Operation::Txn { compares, then, otherwise } => {
                if depth >= TXN_DEPTH_MAX {
                    return Err(Impossible::TooDeep);
                }
                let succeeded = compares.iter().all(|compare| self.holds(compare));
                let branch = if succeeded { then } else { otherwise };
                let answers = branch.iter().map(|inner| self.run(inner, changed, depth + 1));
                Ok(Answer::Txn { succeeded, answers: answers.collect::<Result<_, _>>()? })
            }
            Operation::LeaseRevoke { lease } => {
                let mut gone = self.range(&Interval::all(), self.revision + 1);
                gone.retain(|record| *lease != 0 && record.lease == *lease);
                gone.iter().for_each(|record| self.set(&record.key, None, changed));
                Ok(Answer::LeaseRevoke { deleted: gone.len() as u64 })
            }
            Operation::Opaque(_) => Err(Impossible::Unmodelled),
        }
    }

    fn put(&mut self, key: &[u8], value: &[u8], lease: u64, changed: &mut Vec<Vec<u8>>) -> Option<KeyValue> {
        let prev = self.latest(key).cloned();
        let revision = self.revision + 1;
        let (create_revision, version) = match &prev {
            Some(record) => (record.create_revision, record.version + 1),
            None => (revision, 1),
        };
        let (key_owned, value) = (key.to_vec(), value.to_vec());
        let record =
            KeyValue { key: key_owned, value, create_revision, mod_revision: revision, version, lease };
        self.set(key, Some(record), changed);
        prev
    }

    fn set(&mut self, key: &[u8], record: Option<KeyValue>, changed: &mut Vec<Vec<u8>>) {
        let revision = self.revision + 1;
        let versions = self.keys.entry(key.to_vec()).or_default();
        versions.pop_if(|version| version.revision == revision);
        versions.push(Version { revision, record });
        changed.push(key.to_vec());
    }

    fn range(&self, over: &Interval, revision: u64) -> Vec<KeyValue> {
        let at = |versions: &Vec<Version>| {
            let after = versions.partition_point(|version| version.revision <= revision);
            versions[..after].last().and_then(|version| version.record.clone())
        };
        if over.is_single() {
            return self.keys.get(&over.key).and_then(at).into_iter().collect();
        }
        let from = self
            .keys
            .range::<[u8], _>((std::ops::Bound::Included(over.key.as_slice()), std::ops::Bound::Unbounded));
        from.take_while(|(key, _)| over.contains(key)).filter_map(|(_, versions)| at(versions)).collect()
    }

    fn holds(&self, compare: &Compare) -> bool {
        let records = self.range(&compare.over, self.revision + 1);
        if records.is_empty() {
            return match &compare.target {
                Target::Value(_) => false,
                Target::Version(x)
                | Target::CreateRevision(x)
                | Target::ModRevision(x)
                | Target::Lease(x) => stands(compare.relation, &0, x),
            };
        }
        records.iter().all(|record| match &compare.target {
            Target::Value(x) => stands(compare.relation, &record.value, x),
            Target::Version(x) => stands(compare.relation, &record.version, x),
            Target::CreateRevision(x) => stands(compare.relation, &record.create_revision, x),
            Target::ModRevision(x) => stands(compare.relation, &record.mod_revision, x),
            Target::Lease(x) => stands(compare.relation, &record.lease, x),
        })
    }
}

fn stands<T: Ord>(relation: Relation, left: &T, right: &T) -> bool {
    match relation {
        Relation::Equal => left == right,
        Relation::NotEqual => left != right,
        Relation::Greater => left > right,
        Relation::Less => left < right,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> Model {
        Model::new(&Start::empty(1))
    }

    fn records(answer: Result<Answer, Impossible>) -> Vec<KeyValue> {
        match answer {
            Ok(Answer::Range { records, .. }) => records,
            other => panic!("a range was expected, not {other:?}"),
        }
    }

    #[test]
    fn a_put_counts_revision_version_and_creation() {
        let mut model = store();
        model.apply(&Operation::put("a", "1")).unwrap();
        let answer = model.apply(&Operation::put_prev("a", "2")).unwrap();
        let Answer::Put { prev: Some(prev) } = answer else { panic!("prev was asked for") };
        assert_eq!((prev.value.as_slice(), prev.create_revision, prev.version), (&b"1"[..], 2, 1));
        let now = model.latest(b"a").unwrap();
        assert_eq!((now.create_revision, now.mod_revision, now.version), (2, 3, 2));
        model.apply(&Operation::delete("a")).unwrap();
        model.apply(&Operation::put("a", "3")).unwrap();
        let now = model.latest(b"a").unwrap();
        assert_eq!((now.create_revision, now.version), (5, 1));
    }

    #[test]
    fn deleting_nothing_consumes_no_revision() {
        let mut model = store();
        assert_eq!(
            model.apply(&Operation::delete("a")),
            Ok(Answer::DeleteRange { deleted: 0, prev: vec![] })
        );
        assert_eq!(model.revision(), 1);
    }

    #[test]
    fn a_transaction_is_one_revision_and_reads_its_own_writes() {
        let mut model = store();
        let absent =
            Compare { over: Interval::key("a"), relation: Relation::Equal, target: Target::Version(0) };
        let txn = Operation::Txn {
            compares: vec![absent],
            then: vec![Operation::put("a", "1"), Operation::put("b", "2"), Operation::get("a")],
            otherwise: vec![Operation::get("b")],
        };
        let Answer::Txn { succeeded: true, answers } = model.apply(&txn).unwrap() else {
            panic!("must succeed")
        };
        assert_eq!(records(Ok(answers[2].clone()))[0].mod_revision, 2);
        assert_eq!(model.revision(), 2);
        let Answer::Txn { succeeded: false, .. } = model.apply(&txn).unwrap() else { panic!("must fail") };
        assert_eq!(model.revision(), 2);
    }

    #[test]
    fn the_value_of_a_missing_key_compares_as_false() {
        let mut model = store();
        for relation in [Relation::Equal, Relation::NotEqual, Relation::Greater, Relation::Less] {
            let compare = Compare { over: Interval::key("a"), relation, target: Target::Value(vec![]) };
            let txn = Operation::Txn { compares: vec![compare], then: vec![], otherwise: vec![] };
            assert_eq!(model.apply(&txn), Ok(Answer::Txn { succeeded: false, answers: vec![] }));
        }
    }

    #[test]
    fn an_old_revision_stays_readable_and_a_future_one_is_impossible() {
        let mut model = store();
        model.apply(&Operation::put("a", "1")).unwrap();
        model.apply(&Operation::delete("a")).unwrap();
        let at = |revision| Operation::Range { over: Interval::all(), revision, limit: 0, stale: false };
        assert_eq!(records(model.apply(&at(2))).len(), 1);
        assert_eq!(records(model.apply(&at(3))).len(), 0);
        assert_eq!(model.apply(&at(4)), Err(Impossible::FutureRevision { asked: 4, current: 3 }));
    }

    #[test]
    fn rewinding_and_failed_transactions_leave_no_trace() {
        let mut model = store();
        model.apply(&Operation::put("a", "1")).unwrap();
        let before = model.apply(&Operation::range(Interval::all()));
        let future = Operation::Range { over: Interval::all(), revision: 99, limit: 0, stale: false };
        let txn = Operation::Txn {
            compares: vec![],
            then: vec![Operation::put("b", "x"), future],
            otherwise: vec![],
        };
        assert!(model.apply(&txn).is_err());
        assert_eq!(model.apply(&Operation::range(Interval::all())), before);
        model.apply(&Operation::put("a", "2")).unwrap();
        model.apply(&Operation::put("c", "3")).unwrap();
        model.apply(&Operation::delete("a")).unwrap();
        model.rewind(2);
        assert_eq!(model.revision(), 2);
        assert_eq!(model.apply(&Operation::range(Interval::all())), before);
    }

    #[test]
    fn revoking_a_lease_deletes_its_keys_in_one_revision() {
        let mut model = store();
        for key in ["a", "b"] {
            let put = Operation::Put { key: key.into(), value: vec![], lease: 7, want_prev: false };
            model.apply(&put).unwrap();
        }
        model.apply(&Operation::put("c", "")).unwrap();
        assert_eq!(model.apply(&Operation::LeaseRevoke { lease: 7 }), Ok(Answer::LeaseRevoke { deleted: 2 }));
        assert_eq!(model.revision(), 5);
        assert_eq!(model.apply(&Operation::LeaseRevoke { lease: 7 }), Ok(Answer::LeaseRevoke { deleted: 0 }));
        assert_eq!(model.revision(), 5);
    }
}
