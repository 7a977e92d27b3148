//! State sync, judged: the words that a run is written down in, and the judge that reads them in the order they were said.
//!
//! Nothing here knows how replicas merge. `model` is a list of everything that was ever done and of what each writer had seen;
//! it has no tombstones, no tags and nothing to collect, and works a value out of the list each time. `judge` goes through
//! the notes of one run and compares what replicas showed with that. `end` knows where an origin may end.

pub mod end;
pub mod judge;
pub mod model;

pub use end::{Place, Stand};
pub use judge::{Note, Terms, judge};
pub use model::{Model, Plan};

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Who writes: a node in one life of its disk.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Origin {
    pub id: u32,
    pub incarnation: u32,
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "o{}/{}", self.id, self.incarnation)
    }
}

/// The name of one change.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Dot {
    pub origin: Origin,
    pub counter: u64,
}

impl fmt::Debug for Dot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}:{}", self.origin, self.counter)
    }
}

/// What somebody has applied.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Applied {
    /// Ascending stretches without holes, first and last counter.
    pub dots: BTreeMap<Origin, Vec<(u64, u64)>>,
    /// Of origins that signed two histories, the one that was applied here; the part before the fork is in both.
    pub branches: BTreeMap<Origin, u32>,
}

impl Applied {
    #[must_use]
    pub fn has(&self, dot: Dot) -> bool {
        let Some(list) = self.dots.get(&dot.origin) else { return false };
        let place = list.partition_point(|(_, last)| *last < dot.counter);
        list.get(place).is_some_and(|(first, _)| *first <= dot.counter)
    }

    /// How many of these counters of an origin are there.
    #[must_use]
    pub fn count(&self, origin: Origin, first: u64, last: u64) -> u64 {
        let overlap = |(from, to): &(u64, u64)| (last.min(*to) + 1).saturating_sub(first.max(*from));
        self.dots.get(&origin).map_or(0, |list| list.iter().map(overlap).sum())
    }
}

/// A value that is replaced as a whole.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Plain {
    Json(String),
    Bytes(Vec<u8>),
}

impl Plain {
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Json(text) => text.as_bytes(),
            Self::Bytes(bytes) => bytes,
        }
    }
}

impl fmt::Debug for Plain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(self.bytes()))
    }
}

/// Types of values, the one shown in a clash last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    LwwRegister,
    MvRegister,
    GCounter,
    PnCounter,
    GSet,
    TwoPhaseSet,
    OrSet,
    Map,
    List,
}

impl Kind {
    pub const ALL: [Self; 9] = [
        Self::LwwRegister,
        Self::MvRegister,
        Self::GCounter,
        Self::PnCounter,
        Self::GSet,
        Self::TwoPhaseSet,
        Self::OrSet,
        Self::Map,
        Self::List,
    ];
}

/// What a user asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    Put(Plain),
    PutMulti(Plain),
    Grow(u64),
    Adjust(i64),
    AddForever(Plain),
    AddOnce(Plain),
    RemoveForGood(Plain),
    Add(Plain),
    Remove(Plain),
    Insert { index: usize, value: Plain },
    Erase { index: usize },
    Delete,
    Settle,
}

/// One operation and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    pub key: Vec<u8>,
    pub path: Vec<Vec<u8>>,
    pub operation: Operation,
}

/// What a read shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum View {
    Register(Plain),
    Siblings(BTreeSet<Plain>),
    Count(i128),
    Set(BTreeSet<Plain>),
    Map(BTreeMap<Vec<u8>, View>),
    List(Vec<Plain>),
}

/// How the versions of a register that stand side by side are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// The latest.
    LastWriter,
    /// JSON objects joined field by field, the latest writer winning each.
    Merge,
    /// The longest value, of equally long ones the greatest.
    Longest,
}
