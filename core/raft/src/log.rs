//! The entries of one segment in memory, with the chain hash at each: a border, and what lies above it. It knows places
//! and nothing of terms' leaders, commits or disks. Every question costs at most the logarithm of what is held.

use crate::message::{Entry, Kind};
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use dwcp_base::{Hash, Position};
use dwcp_log::VirtualLog;
use dwcp_log::place::{Index, Place, Term};

#[derive(Clone, Debug)]
struct Held {
    entry: Entry,
    chain: Hash,
    /// Body bytes of all entries this log ever took up to and with this one, replaced ones not counted.
    bytes_through: u64,
}

/// Bounded by whoever appends: see `Limits::log_entries_max`.
#[derive(Clone, Debug)]
pub(crate) struct SegmentLog {
    /// Of index 0.
    base: Position,
    border: Place,
    border_bytes: u64,
    /// Entry `border.index + 1 + i` at `i`.
    held: VecDeque<Held>,
    /// The first Marker held. Nothing is appended behind it.
    marker: Option<Index>,
}

impl SegmentLog {
    pub(crate) fn new(base: Position, border: Place) -> Self {
        Self { base, border, border_bytes: 0, held: VecDeque::new(), marker: None }
    }

    pub(crate) fn border(&self) -> Place {
        self.border
    }

    pub(crate) fn marker(&self) -> Option<Index> {
        self.marker
    }

    pub(crate) fn last_index(&self) -> Index {
        Index(self.border.index.0 + self.held.len() as u64)
    }

    pub(crate) fn last(&self) -> Place {
        match self.held.back() {
            Some(held) => Place { index: self.last_index(), term: held.entry.term, chain: held.chain },
            None => self.border,
        }
    }

    /// Entries held.
    pub(crate) fn len(&self) -> u64 {
        self.held.len() as u64
    }

    /// Body bytes held.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes_through(self.last_index()) - self.border_bytes
    }

    fn slot(&self, index: Index) -> Option<usize> {
        let above = index.0.checked_sub(self.border.index.0)?.checked_sub(1)?;
        usize::try_from(above).ok().filter(|slot| *slot < self.held.len())
    }

    pub(crate) fn get(&self, index: Index) -> Option<&Entry> {
        self.slot(index).map(|slot| &self.held[slot].entry)
    }

    pub(crate) fn place(&self, index: Index) -> Option<Place> {
        if index == self.border.index {
            return Some(self.border);
        }
        let held = &self.held[self.slot(index)?];
        Some(Place { index, term: held.entry.term, chain: held.chain })
    }

    /// Body bytes up to and with `index`, counted from a zero that never moves; only differences mean something.
    pub(crate) fn bytes_through(&self, index: Index) -> u64 {
        match self.slot(index) {
            Some(slot) => self.held[slot].bytes_through,
            None if index <= self.border.index => self.border_bytes,
            None => self.held.back().map_or(self.border_bytes, |held| held.bytes_through),
        }
    }

    /// The last place at or before `index` whose term is at most `term`; the border when there is none above it.
    pub(crate) fn last_place_within(&self, index: Index, term: Term) -> Place {
        let count = self.held.partition_point(|held| held.entry.term <= term) as u64;
        let at = Index((self.border.index.0 + count).min(index.0)).max(self.border.index);
        self.place(at).expect("it is the border or held")
    }

    pub(crate) fn push(&mut self, entry: Entry) -> Place {
        let last = self.last();
        let mut fold = VirtualLog { position: Position(self.base.0 + last.index.0), chain: last.chain };
        fold.append(&entry.digest());
        let bytes_through = self.bytes_through(last.index) + entry.body.bytes().len() as u64;
        let place = Place { index: last.index.next(), term: entry.term, chain: fold.chain };
        if entry.body.kind() == Kind::Marker {
            self.marker.get_or_insert(place.index);
        }
        self.held.push_back(Held { entry, chain: fold.chain, bytes_through });
        place
    }

    /// Drops `from` and all behind it.
    pub(crate) fn truncate(&mut self, from: Index) {
        if let Some(slot) = self.slot(from) {
            self.held.truncate(slot);
        }
        self.marker = self.marker.filter(|marker| *marker < from);
    }

    /// Drops all up to and with `through`, which must be held or the border.
    pub(crate) fn discard(&mut self, through: Index) {
        let Some(slot) = self.slot(through) else { return };
        let border = self.place(through).expect("it is held");
        self.border_bytes = self.held[slot].bytes_through;
        self.held.drain(..=slot);
        self.border = border;
        if self.held.capacity() > 64 && self.held.len() * 4 < self.held.capacity() {
            self.held.shrink_to(self.held.len() * 2);
        }
    }

    /// Begins anew at `place`.
    pub(crate) fn reset(&mut self, place: Place) {
        *self = Self::new(self.base, place);
    }

    /// The last of the entries `from..=through` that are held and stay within both bounds; one at least. `None` when `from`
    /// is not held.
    pub(crate) fn reach(&self, from: Index, through: Index, count_max: u64, bytes_max: u64) -> Option<Index> {
        self.slot(from)?;
        let by_count = from.0.saturating_add(count_max.max(1) - 1);
        let through = Index(through.0.min(by_count).max(from.0)).min(self.last_index());
        let bound = self.bytes_through(from.before()).saturating_add(bytes_max);
        if self.bytes_through(through) <= bound {
            return Some(through);
        }
        let within = self.held.partition_point(|held| held.bytes_through <= bound) as u64;
        Some(Index(self.border.index.0 + within).max(from))
    }

    /// The entries `from..=through`, which must be held.
    pub(crate) fn slice(&self, from: Index, through: Index) -> Vec<Entry> {
        match (self.slot(from), self.slot(through)) {
            (Some(first), Some(last)) if first <= last => {
                self.held.range(first..=last).map(|held| held.entry.clone()).collect()
            }
            _ => Vec::new(),
        }
    }

    /// # Panics
    /// When the log is not what its builders promise.
    pub(crate) fn check(&self) {
        let mut term = self.border.term;
        for (slot, held) in self.held.iter().enumerate() {
            assert!(held.entry.term >= term, "terms never fall along a log");
            term = held.entry.term;
            let is_marker = held.entry.body.kind() == Kind::Marker;
            assert!(!is_marker || slot + 1 == self.held.len(), "nothing lies behind a Marker");
            let index = Index(self.border.index.0 + 1 + slot as u64);
            assert!(is_marker == (self.marker == Some(index)), "the log knows its Marker");
        }
        assert!(self.marker.is_none_or(|marker| self.slot(marker).is_some()), "the Marker is held");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Body, Payload};
    use alloc::vec;
    use bytes::Bytes;
    use dwcp_base::LogTime;

    fn entry(term: u64, frame: &'static [u8]) -> Entry {
        let payload = Payload::Batch { time: LogTime(1), frames: vec![Bytes::from_static(frame)] };
        Entry { term: Term(term), body: Body::new(&payload).unwrap() }
    }

    fn log(terms: &[u64]) -> SegmentLog {
        let mut log = SegmentLog::new(Position(100), Place::default());
        terms.iter().for_each(|term| {
            log.push(entry(*term, b"frame"));
        });
        log
    }

    #[test]
    fn the_chain_is_the_virtual_logs_over_the_digests() {
        let log = log(&[1, 1, 3]);
        let mut fold = VirtualLog { position: Position(100), chain: Hash::ZERO };
        for index in 1..=3 {
            fold.append(&log.get(Index(index)).unwrap().digest());
            assert_eq!(log.place(Index(index)).unwrap().chain, fold.chain);
        }
        assert_eq!(fold.position, Position(103));
    }

    #[test]
    fn discarding_and_truncating_change_no_place_that_stays() {
        let whole = log(&[1, 1, 2, 2, 5, 5, 5]);
        let mut part = whole.clone();
        part.discard(Index(3));
        part.truncate(Index(7));
        assert_eq!((part.border().index, part.last_index(), part.len()), (Index(3), Index(6), 3));
        for index in 3..=6 {
            assert_eq!(part.place(Index(index)), whole.place(Index(index)));
        }
        assert_eq!(part.place(Index(2)), None);
        assert_eq!(part.place(Index(7)), None);
        let one = whole.bytes() / 7;
        assert_eq!(part.bytes(), 3 * one);
        part.push(entry(9, b"frame"));
        assert_eq!(part.bytes(), 4 * one);
    }

    #[test]
    fn the_last_place_within_a_term_is_found() {
        let log = log(&[1, 1, 2, 2, 5, 5, 5]);
        let within = |index, term| log.last_place_within(Index(index), Term(term)).index.0;
        assert_eq!(within(7, 4), 4);
        assert_eq!(within(3, 4), 3);
        assert_eq!(within(7, 5), 7);
        assert_eq!(within(99, 9), 7);
        assert_eq!(within(7, 0), 0);
    }

    #[test]
    fn a_reach_is_one_entry_at_least_and_then_stays_within_bounds() {
        let mut log = log(&[1; 10]);
        let one = log.bytes() / 10;
        for discarded in 0..2 {
            log.discard(Index(discarded));
            let reach = |from, through, count_max, bytes_max| {
                log.reach(Index(from), Index(through), count_max, bytes_max).map(|index| index.0)
            };
            assert_eq!(reach(2, 10, 100, 1 << 20), Some(10));
            assert_eq!(reach(2, 10, 100, 0), Some(2));
            assert_eq!(reach(3, 10, 100, one * 2), Some(4));
            assert_eq!(reach(3, 10, 100, one * 2 - 1), Some(3));
            assert_eq!(reach(3, 4, 100, 1 << 20), Some(4));
            assert_eq!(reach(3, 10, 5, 1 << 20), Some(7));
            assert_eq!(reach(3, 10, 0, 1 << 20), Some(3));
            assert_eq!(reach(10, u64::MAX, u64::MAX, u64::MAX), Some(10));
            assert_eq!(reach(11, 20, 100, 1 << 20), None);
            assert_eq!(reach(0, 20, 100, 1 << 20), None);
        }
        assert_eq!(log.slice(Index(3), Index(5)).len(), 3);
        assert_eq!(log.slice(Index(5), Index(3)).len(), 0);
        assert_eq!(log.slice(Index(1), Index(3)).len(), 0, "1 is discarded");
    }

    #[test]
    fn a_marker_is_known_until_it_is_truncated() {
        let mut log = log(&[1]);
        log.push(Entry { term: Term(1), body: Body::new(&Payload::Marker).unwrap() });
        assert_eq!(log.marker(), Some(Index(2)));
        log.truncate(Index(3));
        assert_eq!(log.marker(), Some(Index(2)));
        log.truncate(Index(2));
        assert_eq!(log.marker(), None);
    }
}
