//! What clients ask of an etcd-like multi-version store, and what it answers: plain data.
//!
//! One revision counter counts the mutations of the whole store; each key carries the revision of its creation and of its last
//! change, and a version that counts changes since creation. Key intervals follow etcd: an empty `end` means the single key, an
//! `end` of one zero byte means every key from `key` on, anything else is the half-open interval `[key, end)`.
//! This file knows no wire format and no server type; how an operation *ought* to be answered stands in `model`.

use crate::text::{self, show};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Nesting of transactions beyond this is refused by the reference model.
pub const TXN_DEPTH_MAX: usize = 8;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct KeyValue {
    #[serde(with = "text::bytes")]
    pub key: Vec<u8>,
    #[serde(with = "text::bytes")]
    pub value: Vec<u8>,
    pub create_revision: u64,
    pub mod_revision: u64,
    pub version: u64,
    /// 0 = no lease.
    #[serde(default)]
    pub lease: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Interval {
    #[serde(with = "text::bytes")]
    pub key: Vec<u8>,
    #[serde(with = "text::bytes", default)]
    pub end: Vec<u8>,
}

impl Interval {
    pub fn key(key: impl Into<Vec<u8>>) -> Self {
        Self { key: key.into(), end: Vec::new() }
    }

    pub fn between(key: impl Into<Vec<u8>>, end: impl Into<Vec<u8>>) -> Self {
        Self { key: key.into(), end: end.into() }
    }

    pub fn all() -> Self {
        Self { key: vec![0], end: vec![0] }
    }

    pub fn is_single(&self) -> bool {
        self.end.is_empty()
    }

    pub fn contains(&self, key: &[u8]) -> bool {
        if self.end.is_empty() {
            key == self.key.as_slice()
        } else {
            key >= self.key.as_slice() && (self.is_open_ended() || key < self.end.as_slice())
        }
    }

    pub fn overlaps(&self, other: &Self) -> bool {
        match (self.is_single(), other.is_single()) {
            (true, _) => other.contains(&self.key),
            (_, true) => self.contains(&other.key),
            _ => {
                let starts_before = |a: &Self, b: &Self| b.is_open_ended() || a.key < b.end;
                !self.is_void()
                    && !other.is_void()
                    && starts_before(self, other)
                    && starts_before(other, self)
            }
        }
    }

    fn is_open_ended(&self) -> bool {
        self.end == [0]
    }

    fn is_void(&self) -> bool {
        !self.is_single() && !self.is_open_ended() && self.key >= self.end
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Relation {
    Equal,
    NotEqual,
    Greater,
    Less,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Target {
    Value(#[serde(with = "text::bytes")] Vec<u8>),
    Version(u64),
    CreateRevision(u64),
    ModRevision(u64),
    Lease(u64),
}

/// Holds when every key of the interval stands in the relation to the target. A missing single key counts as all zeroes, except
/// that its value compares as false.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Compare {
    pub over: Interval,
    pub relation: Relation,
    pub target: Target,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Operation {
    Put {
        #[serde(with = "text::bytes")]
        key: Vec<u8>,
        #[serde(with = "text::bytes")]
        value: Vec<u8>,
        #[serde(default)]
        lease: u64,
        /// The answer carries the record that stood there before.
        want_prev: bool,
    },
    /// Ascending by key. `revision` 0 reads the latest; `limit` 0 means no limit. A `stale` read may answer from the past.
    Range {
        over: Interval,
        revision: u64,
        limit: u64,
        stale: bool,
    },
    DeleteRange {
        over: Interval,
        want_prev: bool,
    },
    Txn {
        compares: Vec<Compare>,
        then: Vec<Operation>,
        otherwise: Vec<Operation>,
    },
    /// Deletes every key attached to the lease, in one revision if there is any. An expiry is such a call by the cluster itself: put
    /// it in a journal of its own with the outcome unknown.
    LeaseRevoke {
        lease: u64,
    },
    /// Something the reference model does not know. It must not mutate the store when the whole-store judge is to be used.
    Opaque(#[serde(with = "text::bytes")] Vec<u8>),
}

impl Operation {
    pub fn put(key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> Self {
        Self::Put { key: key.into(), value: value.into(), lease: 0, want_prev: false }
    }

    pub fn put_prev(key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> Self {
        Self::Put { key: key.into(), value: value.into(), lease: 0, want_prev: true }
    }

    pub fn get(key: impl Into<Vec<u8>>) -> Self {
        Self::range(Interval::key(key))
    }

    pub fn range(over: Interval) -> Self {
        Self::Range { over, revision: 0, limit: 0, stale: false }
    }

    pub fn get_stale(key: impl Into<Vec<u8>>) -> Self {
        Self::Range { over: Interval::key(key), revision: 0, limit: 0, stale: true }
    }

    pub fn delete(key: impl Into<Vec<u8>>) -> Self {
        Self::DeleteRange { over: Interval::key(key), want_prev: false }
    }

    /// May this operation, in some state, change the store?
    pub fn may_write(&self) -> bool {
        match self {
            Self::Put { .. } | Self::DeleteRange { .. } | Self::LeaseRevoke { .. } => true,
            Self::Range { .. } | Self::Opaque(_) => false,
            Self::Txn { then, otherwise, .. } => then.iter().chain(otherwise).any(Self::may_write),
        }
    }

    /// Does it read, in any branch, at a revision of its own choice?
    pub fn looks_back(&self) -> bool {
        match self {
            Self::Range { revision, .. } => *revision != 0,
            Self::Txn { then, otherwise, .. } => then.iter().chain(otherwise).any(Self::looks_back),
            Self::Put { .. } | Self::DeleteRange { .. } | Self::LeaseRevoke { .. } | Self::Opaque(_) => false,
        }
    }

    /// Intervals this operation may change, over all branches.
    pub fn write_footprint(&self) -> Vec<Interval> {
        let mut out = Vec::new();
        self.collect_writes(&mut out);
        out
    }

    fn collect_writes(&self, out: &mut Vec<Interval>) {
        match self {
            Self::Put { key, .. } => out.push(Interval::key(key.clone())),
            Self::DeleteRange { over, .. } => out.push(over.clone()),
            Self::LeaseRevoke { .. } => out.push(Interval::all()),
            Self::Range { .. } | Self::Opaque(_) => {}
            Self::Txn { then, otherwise, .. } => {
                then.iter().chain(otherwise).for_each(|operation| operation.collect_writes(out));
            }
        }
    }

    /// Intervals whose content decides what this operation answers or does, over all branches.
    pub fn read_footprint(&self) -> Vec<Interval> {
        let mut out = Vec::new();
        self.collect_reads(&mut out);
        out
    }

    fn collect_reads(&self, out: &mut Vec<Interval>) {
        match self {
            Self::Put { key, want_prev, .. } => {
                if *want_prev {
                    out.push(Interval::key(key.clone()));
                }
            }
            Self::Range { over, .. } | Self::DeleteRange { over, .. } => out.push(over.clone()),
            Self::LeaseRevoke { .. } => out.push(Interval::all()),
            Self::Opaque(_) => {}
            Self::Txn { compares, then, otherwise } => {
                out.extend(compares.iter().map(|compare| compare.over.clone()));
                then.iter().chain(otherwise).for_each(|operation| operation.collect_reads(out));
            }
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    Put { prev: Option<KeyValue> },
    Range { records: Vec<KeyValue>, count: u64 },
    DeleteRange { deleted: u64, prev: Vec<KeyValue> },
    Txn { succeeded: bool, answers: Vec<Answer> },
    LeaseRevoke { deleted: u64 },
    Opaque(#[serde(with = "text::bytes")] Vec<u8>),
}

impl Answer {
    /// Does this answer tell of a change of the store (and thus of a revision consumed)?
    pub fn tells_of_a_write(&self) -> bool {
        match self {
            Self::Put { .. } => true,
            Self::DeleteRange { deleted, .. } | Self::LeaseRevoke { deleted } => *deleted > 0,
            Self::Range { .. } | Self::Opaque(_) => false,
            Self::Txn { answers, .. } => answers.iter().any(Self::tells_of_a_write),
        }
    }

    /// Every record the answer shows, at any depth, with the revision the record was read at if the question named one.
    pub fn records<'a>(&'a self, asked: &Operation, out: &mut Vec<(&'a KeyValue, Option<u64>)>) {
        match (self, asked) {
            (Self::Range { records, .. }, Operation::Range { revision, .. }) => {
                let at = (*revision != 0).then_some(*revision);
                out.extend(records.iter().map(|record| (record, at)));
            }
            (Self::Put { prev }, _) => out.extend(prev.iter().map(|record| (record, None))),
            (Self::DeleteRange { prev, .. }, _) => out.extend(prev.iter().map(|record| (record, None))),
            (Self::Txn { succeeded, answers }, Operation::Txn { then, otherwise, .. }) => {
                let branch = if *succeeded { then } else { otherwise };
                answers.iter().zip(branch).for_each(|(answer, asked)| answer.records(asked, out));
            }
            _ => {}
        }
    }
}

impl fmt::Display for KeyValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { create_revision, mod_revision, version, lease, .. } = self;
        write!(
            f,
            "{}={} (create {create_revision} mod {mod_revision} version {version}",
            show(&self.key),
            show(&self.value)
        )?;
        if *lease != 0 { write!(f, " lease {lease})") } else { f.write_str(")") }
    }
}

impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_single() {
            f.write_str(&show(&self.key))
        } else {
            write!(f, "[{}, {})", show(&self.key), show(&self.end))
        }
    }
}

impl fmt::Display for Compare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.target {
            Target::Value(value) => write!(f, "value of {} {:?} {}", self.over, self.relation, show(value)),
            target => write!(f, "{} {:?} {target:?}", self.over, self.relation),
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Put { key, value, lease, want_prev } => {
                write!(f, "put {}={}", show(key), show(value))?;
                if *lease != 0 {
                    write!(f, " lease {lease}")?;
                }
                if *want_prev { f.write_str(" with prev") } else { Ok(()) }
            }
            Self::Range { over, revision, limit, stale } => {
                let how = if *stale { " stale" } else { "" };
                write!(f, "range{how} {over}")?;
                if *limit != 0 {
                    write!(f, " limit {limit}")?;
                }
                if *revision != 0 { write!(f, " at {revision}") } else { Ok(()) }
            }
            Self::DeleteRange { over, want_prev } => {
                write!(f, "delete {over}{}", if *want_prev { " with prev" } else { "" })
            }
            Self::Txn { compares, then, otherwise } => {
                f.write_str("txn if ")?;
                list(f, compares)?;
                f.write_str(" then ")?;
                list(f, then)?;
                f.write_str(" else ")?;
                list(f, otherwise)
            }
            Self::LeaseRevoke { lease } => write!(f, "revoke lease {lease}"),
            Self::Opaque(bytes) => write!(f, "opaque {}", show(bytes)),
        }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Put { prev: None } => f.write_str("put"),
            Self::Put { prev: Some(prev) } => write!(f, "put over {prev}"),
            Self::Range { records, count } => {
                write!(f, "{count} found ")?;
                list(f, records)
            }
            Self::DeleteRange { deleted, prev } => {
                write!(f, "{deleted} deleted ")?;
                list(f, prev)
            }
            Self::Txn { succeeded, answers } => {
                write!(f, "txn {} ", if *succeeded { "succeeded" } else { "failed" })?;
                list(f, answers)
            }
            Self::LeaseRevoke { deleted } => write!(f, "revoked, {deleted} deleted"),
            Self::Opaque(bytes) => write!(f, "opaque {}", show(bytes)),
        }
    }
}

/// At most eight items; a finding is read by a person.
fn list<T: fmt::Display>(f: &mut fmt::Formatter<'_>, items: &[T]) -> fmt::Result {
    f.write_str("[")?;
    for (index, item) in items.iter().take(8).enumerate() {
        write!(f, "{}{item}", if index > 0 { ", " } else { "" })?;
    }
    f.write_str(if items.len() > 8 { ", ...]" } else { "]" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_contain_and_overlap_as_etcd_defines_them() {
        let single = Interval::key("b");
        let pair = Interval::between("a", "c");
        let tail = Interval::between("b", [0]);
        assert!(pair.contains(b"a") && pair.contains(b"b") && !pair.contains(b"c"));
        assert!(tail.contains(b"b") && tail.contains(b"zzz") && !tail.contains(b"a"));
        assert!(single.contains(b"b") && !single.contains(b"ba"));
        assert!(single.overlaps(&pair) && pair.overlaps(&tail) && tail.overlaps(&single));
        assert!(!Interval::between("a", "b").overlaps(&tail));
        assert!(!Interval::between("d", "a").overlaps(&Interval::all()));
        assert!(Interval::all().contains(b"\0") && Interval::all().contains(b"x"));
    }
}
