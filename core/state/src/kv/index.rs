//! The versions of every key, found by key and in key order. Keys live in sorted segments of at most 512, each of which
//! knows how many of its keys exist now, so that counting a range of a million keys adds up two thousand numbers and
//! looks at the keys of two segments. Knows nothing of revisions beyond their order.

use crate::kv::heads::Heads;
use crate::kv::history::History;
use crate::kv::store::{Key, KeyBounds, Version};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Bound;

/// Keys in one segment; a fuller one is split in two.
const SEGMENT_KEYS_MAX: usize = 512;
/// A segment with fewer keys than this joins its neighbour if both fit comfortably.
const SEGMENT_KEYS_MIN: usize = 64;

#[derive(Clone, Debug)]
struct Segment {
    /// No key of the segment is smaller. The first segment takes smaller ones all the same.
    first: Key,
    /// Of the keys of `entries`, in step with them.
    heads: Heads,
    /// The keys' histories, never empty, in order of their keys.
    entries: Vec<History>,
    /// How many of the keys exist now: their last version is no deletion.
    live: usize,
}

impl Segment {
    fn new(entries: Vec<History>) -> Option<Self> {
        let first = entries.first()?.front()?.key.clone();
        let heads = Heads::of(entries.len(), |place| entries[place].key());
        Some(Self { first, heads, live: count_existing(&entries), entries })
    }

    fn search(&self, key: &[u8]) -> Result<usize, usize> {
        self.heads.search(key, |place| self.entries[place].key())
    }
}

/// Where a key is, or where it would be inserted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    segment: usize,
    within: Result<usize, usize>,
}

/// See the head of this file. Bounded by the quota: every version counts.
#[derive(Clone, Debug, Default)]
pub(crate) struct Index {
    segments: Vec<Segment>,
    /// Of the segments' first keys, in step with them.
    heads: Heads,
}

fn exists(history: &History) -> bool {
    history.back().is_some_and(|last| !last.is_deletion())
}

fn count_existing(entries: &[History]) -> usize {
    entries.iter().filter(|history| exists(history)).count()
}

impl Index {
    /// The segment in which a key is or would be; 0 when there is none.
    fn segment_of(&self, key: &[u8]) -> usize {
        match self.heads.search(key, |place| &self.segments[place].first) {
            Ok(place) => place,
            Err(place) => place.saturating_sub(1),
        }
    }

    pub(crate) fn get(&self, key: &[u8]) -> Option<&History> {
        self.at(self.place(key))
    }

    /// The shared copy of a key that is in the index.
    pub(crate) fn key(&self, key: &[u8]) -> Option<Key> {
        self.get(key)?.back().map(|version| version.key.clone())
    }

    /// Where a key is or belongs. Holds until the index changes.
    pub(crate) fn place(&self, key: &[u8]) -> Place {
        let segment = self.segment_of(key);
        let within = self.segments.get(segment).map_or(Err(0), |segment| segment.search(key));
        Place { segment, within }
    }

    /// The versions of the key at a place; `None` when the key is not in the index.
    pub(crate) fn at(&self, place: Place) -> Option<&History> {
        self.segments.get(place.segment)?.entries.get(place.within.ok()?)
    }

    /// Appends a version to its key's history, which begins with it if there is none.
    pub(crate) fn push(&mut self, version: Arc<Version>) {
        let place = self.place(&version.key);
        self.push_at(place, version);
    }

    /// As [`Index::push`], at the place that was just found for the version's key.
    pub(crate) fn push_at(&mut self, place: Place, version: Arc<Version>) {
        let Some(segment) = self.segments.get_mut(place.segment) else {
            self.segments.extend(Segment::new(Vec::from([History::One(version)])));
            self.number_segments();
            return;
        };
        match place.within {
            Ok(within) => {
                let history = &mut segment.entries[within];
                debug_assert_eq!(history.key(), version.key.as_ref());
                segment.live -= usize::from(exists(history));
                history.push_back(version);
                segment.live += usize::from(exists(history));
            }
            Err(within) => {
                segment.live += usize::from(!version.is_deletion());
                segment.entries.insert(within, History::One(version));
                let entries = &segment.entries;
                segment.heads.insert(within, entries.len(), |place| entries[place].key());
                if segment.entries.len() > SEGMENT_KEYS_MAX {
                    self.split(place.segment);
                }
            }
        }
    }

    fn split(&mut self, place: usize) {
        let mut lower = core::mem::take(&mut self.segments[place].entries);
        let upper = lower.split_off(SEGMENT_KEYS_MAX / 2);
        // The first segment may hold keys below its `first`: both halves get their own, or the order would be lost.
        let halves = [Segment::new(lower), Segment::new(upper)];
        self.segments.splice(place..=place, halves.into_iter().flatten());
        self.number_segments();
    }

    fn number_segments(&mut self) {
        self.heads = Heads::of(self.segments.len(), |place| &self.segments[place].first);
    }

    /// Changes a key's history; a key whose history becomes empty leaves the index. Does nothing for an unknown key.
    pub(crate) fn change(&mut self, key: &[u8], change: impl FnOnce(&mut History)) {
        let place = self.segment_of(key);
        let Some(segment) = self.segments.get_mut(place) else { return };
        let Ok(within) = segment.search(key) else { return };
        let history = &mut segment.entries[within];
        segment.live -= usize::from(exists(history));
        change(history);
        segment.live += usize::from(exists(history));
        if history.is_empty() {
            segment.entries.remove(within);
            segment.heads.remove(within);
            if segment.entries.is_empty() {
                self.segments.remove(place);
                self.heads.remove(place);
            } else if segment.entries.len() < SEGMENT_KEYS_MIN {
                self.join_next(place);
            }
        }
    }

    fn join_next(&mut self, place: usize) {
        let together = match (self.segments.get(place), self.segments.get(place + 1)) {
            (Some(one), Some(next)) => one.entries.len() + next.entries.len(),
            _ => return,
        };
        if together <= SEGMENT_KEYS_MAX / 4 * 3 {
            let next = self.segments.remove(place + 1);
            self.heads.remove(place + 1);
            let segment = &mut self.segments[place];
            segment.live += next.live;
            segment.entries.extend(next.entries);
            segment.heads = Heads::of(segment.entries.len(), |place| segment.entries[place].key());
        }
    }

    /// Where the first key is that is not below `key`, or that is above it: segment, and place within it.
    fn seek(&self, key: &[u8], above: bool) -> (usize, usize) {
        let place = self.place(key);
        let within = match place.within {
            Ok(within) => within + usize::from(above),
            Err(within) => within,
        };
        (place.segment, within)
    }

    fn places(&self, (from, to): KeyBounds<'_>) -> ((usize, usize), (usize, usize)) {
        let start = match from {
            Bound::Included(key) => self.seek(key, false),
            Bound::Excluded(key) => self.seek(key, true),
            Bound::Unbounded => (0, 0),
        };
        let end = match to {
            Bound::Included(key) => self.seek(key, true),
            Bound::Excluded(key) => self.seek(key, false),
            Bound::Unbounded => (self.segments.len(), 0),
        };
        (start, end)
    }

    /// The part of each segment that lies in a range, in order.
    fn parts(&self, bounds: KeyBounds<'_>) -> impl Iterator<Item = (&Segment, &[History])> {
        let (start, end) = self.places(bounds);
        let segments = self.segments.iter().enumerate().skip(start.0);
        segments.take_while(move |(place, _)| *place <= end.0).map(move |(place, segment)| {
            let from = if place == start.0 { start.1 } else { 0 };
            let to = if place == end.0 { end.1 } else { segment.entries.len() };
            (segment, segment.entries.get(from..to).unwrap_or(&[]))
        })
    }

    /// The histories of a range, in key order, keys that no longer exist included.
    pub(crate) fn range(&self, bounds: KeyBounds<'_>) -> impl Iterator<Item = &History> {
        self.parts(bounds).flat_map(|(_, entries)| entries)
    }

    /// How many keys of a range exist now.
    pub(crate) fn count(&self, bounds: KeyBounds<'_>) -> u64 {
        let whole = |segment: &Segment, entries: &[_]| entries.len() == segment.entries.len();
        self.parts(bounds)
            .map(
                |(segment, entries)| {
                    if whole(segment, entries) { segment.live } else { count_existing(entries) }
                },
            )
            .fold(0, |sum, count| sum + count as u64)
    }

    /// The last version of every key.
    pub(crate) fn latest(&self) -> impl Iterator<Item = &Arc<Version>> {
        self.segments.iter().flat_map(|segment| &segment.entries).filter_map(History::back)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::store::bounds;
    use alloc::collections::BTreeMap;
    use dwcp_base::Chance;

    fn version(number: u64, main: u64, deletion: bool) -> Arc<Version> {
        let version = u64::from(!deletion);
        let key = Key::from(number.to_be_bytes().as_slice());
        Arc::new(Version { main, sub: 0, key, value: Default::default(), create: main, version, lease: 0 })
    }

    /// A key larger than all that follow must not keep the first segment's place when that segment is split.
    #[test]
    fn keys_that_come_in_falling_order_are_found() {
        let mut index = Index::default();
        for (main, number) in (0..5_000u64).rev().enumerate() {
            index.push(version(number, main as u64 + 1, false));
        }
        assert!(index.segments.is_sorted_by(|one, next| one.first < next.first));
        assert!((0..5_000u64).all(|number| index.get(&number.to_be_bytes()).is_some()));
        let all = index.range((Bound::Unbounded, Bound::Unbounded)).map(|history| history.key().to_vec());
        assert!(all.eq((0..5_000u64).map(|number| number.to_be_bytes().to_vec())));
        assert_eq!(index.count(bounds(&10u64.to_be_bytes(), &[0]).expect("a range")), 4_990);
    }

    /// Thousands of keys come, die and go, so that segments split, join and vanish; every range and count agrees with
    /// an ordered map.
    #[test]
    fn ranges_and_counts_agree_with_an_ordered_map_while_segments_split_and_join() {
        (1..=4).for_each(grow_and_shrink);
    }

    fn grow_and_shrink(seed: u64) {
        let (mut index, mut map, mut chance) =
            (Index::default(), BTreeMap::<u64, Vec<u64>>::new(), Chance::new(seed));
        let mut segments_most = 0;
        for main in 1..40_000u64 {
            // The first key is the largest: all that follow are below what the first segment began with.
            let number = if main == 1 { 5_999 } else { chance.below(6_000) };
            // First mostly grow, then mostly shrink.
            if main == 1 || chance.per_mille(if main < 20_000 { 950 } else { 50 }) {
                let deletion = chance.per_mille(200);
                index.push(version(number, main, deletion));
                map.entry(number).or_default().push(if deletion { 0 } else { main });
            } else {
                index.change(&number.to_be_bytes(), |history| while history.pop_front().is_some() {});
                map.remove(&number);
            }
            segments_most = segments_most.max(index.segments.len());
            if main % 97 == 0 {
                let (from, to) = (chance.below(6_000), chance.below(6_000));
                let (from_key, to_key) = (from.to_be_bytes(), to.to_be_bytes());
                for end in [&to_key[..], &[0], &[]] {
                    let expected: Vec<&Vec<u64>> = match end {
                        [] => map.get(&from).into_iter().collect(),
                        [0] => map.range(from..).map(|(_, mains)| mains).collect(),
                        _ if from < to => map.range(from..to).map(|(_, mains)| mains).collect(),
                        _ => Vec::new(),
                    };
                    let Some(range) = bounds(&from_key, end) else {
                        assert!(expected.is_empty());
                        continue;
                    };
                    let found: Vec<Vec<u64>> = index
                        .range(range)
                        .map(|history| {
                            (0..history.len())
                                .filter_map(|at| history.get(at))
                                .map(|one| if one.is_deletion() { 0 } else { one.main })
                                .collect()
                        })
                        .collect();
                    assert!(found.iter().eq(expected.iter().copied()));
                    let live = expected.iter().filter(|mains| mains.last() != Some(&0)).count();
                    assert_eq!(index.count(range), live as u64);
                }
            }
        }
        let segments = index.segments.len();
        assert!(
            segments_most > 8 && segments < segments_most / 2,
            "splits {segments_most}, joins {segments}"
        );
    }
}
