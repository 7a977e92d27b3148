//! Dots name changes; interval version vectors name sets of dots.
//!
//! A dot is (origin, incarnation, counter). Every change has one of its own, counters of one origin leave no holes, and a
//! dot is never used twice: a node that lost its disk comes back as the next incarnation, which is another origin here.
//! A version vector holds per origin a few intervals instead of one number, because changes may arrive with gaps
//! (Almeida, Shoker & Baquero, "Delta state replicated data types", JPDC 2018, section 7, keep a cloud of dots instead).

use crate::limits::{COUNTER_MAX, INTERVALS_MAX, ORIGINS_MAX};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use borsh::io;
use borsh::{BorshDeserialize, BorshSerialize};
use core::fmt;
use dwcp_base::Incarnation;

/// A node that makes changes. Voters use their replica number; other members any number that nobody else has.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, BorshSerialize, BorshDeserialize,
)]
pub struct OriginId(pub u32);

/// A node in one life of its disk.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, BorshSerialize, BorshDeserialize)]
pub struct Origin {
    pub id: OriginId,
    pub incarnation: Incarnation,
}

impl Origin {
    #[must_use]
    pub const fn new(id: u32, incarnation: u32) -> Self {
        Self { id: OriginId(id), incarnation: Incarnation(incarnation) }
    }

    /// The same node with a new disk.
    #[must_use]
    pub fn reborn(self) -> Self {
        Self { id: self.id, incarnation: self.incarnation.next() }
    }
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "o{}", self.id.0)?;
        if self.incarnation.0 > 0 { write!(f, "/{}", self.incarnation.0) } else { Ok(()) }
    }
}

/// The name of one change. Counters start at 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, BorshSerialize, BorshDeserialize)]
pub struct Dot {
    pub origin: Origin,
    pub counter: u64,
}

impl Dot {
    #[must_use]
    pub const fn new(origin: Origin, counter: u64) -> Self {
        Self { origin, counter }
    }
}

impl fmt::Debug for Dot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for Dot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.origin, self.counter)
    }
}

/// First and last counter of a stretch without holes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, BorshSerialize, BorshDeserialize)]
pub struct Interval {
    pub first: u64,
    pub last: u64,
}

/// A set of dots. Per origin the intervals are ascending, not empty, and neighbours do not touch, so that one set has
/// one representation.
#[derive(Clone, PartialEq, Eq, Hash, Default, BorshSerialize)]
pub struct VersionVector {
    origins: BTreeMap<Origin, Vec<Interval>>,
}

impl VersionVector {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// All dots of each origin from 1 to the given counter; counters of 0 are left out.
    #[must_use]
    pub fn up_to(heads: impl IntoIterator<Item = (Origin, u64)>) -> Self {
        let mut vector = Self::new();
        for (origin, last) in heads {
            if last > 0 {
                vector.insert(origin, 1, last);
            }
        }
        vector
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.origins.is_empty()
    }

    #[must_use]
    pub fn contains(&self, dot: Dot) -> bool {
        self.origins.get(&dot.origin).is_some_and(|list| find(list, dot.counter).is_ok())
    }

    /// Is every counter of `first..=last` there? True for an empty range.
    #[must_use]
    pub fn contains_range(&self, origin: Origin, first: u64, last: u64) -> bool {
        first > last || self.first_gap(origin, first, last).is_none()
    }

    /// The lowest counter of `first..=last` that is not there.
    #[must_use]
    pub fn first_gap(&self, origin: Origin, first: u64, last: u64) -> Option<u64> {
        if first > last {
            return None;
        }
        let Some(list) = self.origins.get(&origin) else { return Some(first) };
        match find(list, first) {
            Err(_) => Some(first),
            Ok(index) => list[index].last.checked_add(1).filter(|next| *next <= last),
        }
    }

    /// Adds every counter of `first..=last`; an empty range adds nothing.
    pub fn insert(&mut self, origin: Origin, first: u64, last: u64) {
        if first == 0 || first > last {
            return;
        }
        let list = self.origins.entry(origin).or_default();
        // What touches or overlaps the new stretch: ends at first - 1 or later, starts at last + 1 or earlier.
        let from = list.partition_point(|i| i.last < first - 1);
        let until = list.partition_point(|i| i.first <= last.saturating_add(1));
        if from == until {
            list.insert(from, Interval { first, last });
            return;
        }
        let joined = Interval { first: first.min(list[from].first), last: last.max(list[until - 1].last) };
        list[from] = joined;
        list.drain(from + 1..until);
    }

    pub fn insert_dot(&mut self, dot: Dot) {
        self.insert(dot.origin, dot.counter, dot.counter);
    }

    /// The intervals of one origin, ascending.
    #[must_use]
    pub fn intervals_of(&self, origin: Origin) -> &[Interval] {
        self.origins.get(&origin).map_or(&[], Vec::as_slice)
    }

    /// The union with another set.
    pub fn join(&mut self, other: &Self) {
        for (origin, list) in &other.origins {
            for interval in list {
                self.insert(*origin, interval.first, interval.last);
            }
        }
    }

    /// Is every dot of `other` here?
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        self.first_missing(other).is_none()
    }

    /// The lowest dot of `other` that is not here.
    #[must_use]
    pub fn first_missing(&self, other: &Self) -> Option<Dot> {
        other.origins.iter().find_map(|(origin, list)| {
            list.iter()
                .find_map(|i| self.first_gap(*origin, i.first, i.last))
                .map(|counter| Dot::new(*origin, counter))
        })
    }

    /// The dots of this set that are not in `other`.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        let mut rest = Self::new();
        for (origin, list) in &self.origins {
            let theirs = other.intervals_of(*origin);
            for interval in list {
                let mut first = interval.first;
                for gap in theirs.iter().filter(|t| t.last >= interval.first && t.first <= interval.last) {
                    if gap.first > first {
                        rest.insert(*origin, first, gap.first - 1);
                    }
                    first = gap.last.saturating_add(1);
                }
                rest.insert(*origin, first, interval.last);
            }
        }
        rest
    }

    /// The dots in both sets.
    #[must_use]
    pub fn meet(&self, other: &Self) -> Self {
        self.without(&self.without(other))
    }

    /// The highest counter of an origin, gaps or not; 0 when none is there.
    #[must_use]
    pub fn last(&self, origin: Origin) -> u64 {
        self.intervals_of(origin).last().map_or(0, |i| i.last)
    }

    /// The highest counter up to which nothing is missing.
    #[must_use]
    pub fn prefix(&self, origin: Origin) -> u64 {
        self.intervals_of(origin).first().filter(|i| i.first == 1).map_or(0, |i| i.last)
    }

    /// Origins in ascending order, each with its intervals in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = (Origin, &[Interval])> {
        self.origins.iter().map(|(origin, list)| (*origin, list.as_slice()))
    }

    #[must_use]
    pub fn origins_count(&self) -> usize {
        self.origins.len()
    }

    /// Takes one interval of a foreign encoding, which must come in ascending order; says whether it may stand there.
    pub(crate) fn push_checked(&mut self, origin: Origin, interval: Interval) -> bool {
        if interval.first == 0 || interval.first > interval.last || interval.last > COUNTER_MAX {
            return false;
        }
        if let Some((last, list)) = self.origins.last_key_value() {
            let touches = *last == origin && list.last().is_some_and(|i| i.last + 1 >= interval.first);
            let full = *last == origin && list.len() >= INTERVALS_MAX;
            if *last > origin || touches || full {
                return false;
            }
        }
        let known = self.origins.contains_key(&origin);
        if !known && self.origins.len() >= ORIGINS_MAX {
            return false;
        }
        self.origins.entry(origin).or_default().push(interval);
        true
    }
}

/// The index of the interval that holds the counter, or where one would stand.
fn find(list: &[Interval], counter: u64) -> Result<usize, usize> {
    let index = list.partition_point(|i| i.last < counter);
    if list.get(index).is_some_and(|i| i.first <= counter) { Ok(index) } else { Err(index) }
}

impl fmt::Debug for VersionVector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{")?;
        for (index, (origin, list)) in self.origins.iter().enumerate() {
            write!(f, "{}{origin}:", if index > 0 { " " } else { "" })?;
            for (n, i) in list.iter().enumerate() {
                write!(f, "{}{}-{}", if n > 0 { "," } else { "" }, i.first, i.last)?;
            }
        }
        write!(f, "}}")
    }
}

/// Strict: what is not ascending, touches its neighbour, or passes a limit is refused before it is kept.
impl BorshDeserialize for VersionVector {
    fn deserialize_reader<R: io::Read>(reader: &mut R) -> io::Result<Self> {
        let refuse = || io::Error::from(io::ErrorKind::InvalidData);
        let mut vector = Self::new();
        let origins = u32::deserialize_reader(reader)?;
        for _ in 0..origins {
            let origin = Origin::deserialize_reader(reader)?;
            let count = u32::deserialize_reader(reader)?;
            if count == 0 || vector.origins.contains_key(&origin) {
                return Err(refuse());
            }
            for _ in 0..count {
                let interval = Interval::deserialize_reader(reader)?;
                if !vector.push_checked(origin, interval) {
                    return Err(refuse());
                }
            }
        }
        Ok(vector)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeSet;
    use alloc::vec;
    use dwcp_base::{Chance, decode, encode};

    const A: Origin = Origin::new(1, 0);
    const B: Origin = Origin::new(2, 3);

    fn dots(vector: &VersionVector) -> BTreeSet<Dot> {
        vector
            .iter()
            .flat_map(|(origin, list)| {
                list.iter().flat_map(move |i| (i.first..=i.last).map(move |c| Dot::new(origin, c)))
            })
            .collect()
    }

    fn random(chance: &mut Chance) -> (VersionVector, BTreeSet<Dot>) {
        let (mut vector, mut set) = (VersionVector::new(), BTreeSet::new());
        for _ in 0..chance.below(8) {
            let origin = if chance.per_mille(500) { A } else { B };
            let first = chance.between(1, 20);
            let last = first + chance.below(5);
            vector.insert(origin, first, last);
            set.extend((first..=last).map(|c| Dot::new(origin, c)));
        }
        (vector, set)
    }

    #[test]
    fn a_version_vector_is_a_set_of_dots_in_one_representation() {
        let mut chance = Chance::new(1);
        for _ in 0..5_000 {
            let ((a, a_set), (b, b_set)) = (random(&mut chance), random(&mut chance));
            assert_eq!(dots(&a), a_set);
            let mut joined = a.clone();
            joined.join(&b);
            assert_eq!(dots(&joined), &a_set | &b_set);
            assert_eq!(dots(&a.without(&b)), &a_set - &b_set);
            assert_eq!(dots(&a.meet(&b)), &a_set & &b_set);
            assert_eq!(a.covers(&b), a_set.is_superset(&b_set));
            assert_eq!(a.first_missing(&b), (&b_set - &a_set).first().copied());
            assert_eq!(a == b, a_set == b_set, "equal sets have equal vectors");
            assert_eq!(decode::<VersionVector>(&encode(&joined)), Ok(joined.clone()));
            let counter = chance.between(1, 26);
            assert_eq!(a.contains(Dot::new(A, counter)), a_set.contains(&Dot::new(A, counter)));
            assert_eq!(
                a.last(A),
                a_set.iter().filter(|d| d.origin == A).map(|d| d.counter).max().unwrap_or(0)
            );
            let prefix = (1..).take_while(|c| a_set.contains(&Dot::new(A, *c))).last().unwrap_or(0);
            assert_eq!(a.prefix(A), prefix);
        }
    }

    #[test]
    fn intervals_that_touch_overlap_or_come_out_of_order_are_refused() {
        let bytes = |list: Vec<(u64, u64)>| {
            let list: Vec<Interval> =
                list.into_iter().map(|(first, last)| Interval { first, last }).collect();
            encode(&BTreeMap::from([(A, list)]))
        };
        assert!(decode::<VersionVector>(&bytes(vec![(1, 2), (4, 9)])).is_ok());
        for bad in [
            vec![],
            vec![(0, 2)],
            vec![(3, 2)],
            vec![(1, 2), (3, 4)],
            vec![(1, 5), (4, 9)],
            vec![(4, 9), (1, 2)],
            vec![(1, u64::MAX)],
        ] {
            assert!(decode::<VersionVector>(&bytes(bad.clone())).is_err(), "{bad:?}");
        }
        let wide: Vec<(u64, u64)> = (0..=INTERVALS_MAX as u64).map(|n| (2 * n + 1, 2 * n + 1)).collect();
        assert!(decode::<VersionVector>(&bytes(wide)).is_err());
    }
}
