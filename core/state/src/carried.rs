//! Which changes of convergent state the log has carried, of each writer. Their frames touch nothing else here. A writer may
//! count on what the log has, and a late replica must know what that was; both need what all replicas know alike.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use borsh::{BorshDeserialize, BorshSerialize};
use dwcp_base::{Incarnation, ReplicaId};

/// Stretches remembered of one writer. They have gaps where it wrote without the log; with more than these the lowest goes,
/// which a collection floor covers by then or soon will.
const STRETCHES_MAX: usize = 64;

/// Who numbers its changes: an incarnation of a member.
pub type Writer = (ReplicaId, Incarnation);

/// See the module. Writers are members of the past and the present, so there are never many.
#[derive(Clone, Debug, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Carried(BTreeMap<Writer, Vec<(u64, u64)>>);

impl Carried {
    /// The log has these changes, first and last. Anything but 1 <= first <= last changes nothing.
    pub fn add(&mut self, writer: Writer, first: u64, last: u64) {
        if first == 0 || first > last {
            return;
        }
        let stretches = self.0.entry(writer).or_default();
        let (mut first, mut last) = (first, last);
        // Those that overlap or touch become one.
        stretches.retain(|(from, to)| {
            let apart = *to < first - 1 || (last < u64::MAX && *from > last + 1);
            if !apart {
                (first, last) = (first.min(*from), last.max(*to));
            }
            apart
        });
        let place = stretches.partition_point(|(from, _)| *from < first);
        stretches.insert(place, (first, last));
        if stretches.len() > STRETCHES_MAX {
            stretches.remove(0);
        }
    }

    /// Stretches of a writer, ascending, none touching the next.
    #[must_use]
    pub fn of(&self, writer: Writer) -> &[(u64, u64)] {
        self.0.get(&writer).map_or(&[], Vec::as_slice)
    }

    /// Has the log all of these?
    #[must_use]
    pub fn has(&self, writer: Writer, first: u64, last: u64) -> bool {
        self.of(writer).iter().any(|(from, to)| *from <= first && last <= *to)
    }

    /// The last change up to which nothing is missing, if nothing is up to `covered`.
    #[must_use]
    pub fn through(&self, writer: Writer, covered: u64) -> u64 {
        let goes_on = |covered: u64, (from, to): &(u64, u64)| {
            if *from <= covered.saturating_add(1) { covered.max(*to) } else { covered }
        };
        self.of(writer).iter().fold(covered, goes_on)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeSet;

    const ME: Writer = (ReplicaId(1), Incarnation(2));

    #[test]
    fn stretches_are_what_was_added_whatever_the_order() {
        // Every subset of eight pairs, forwards and backwards, against a plain set.
        let parts = [(1, 1), (2, 4), (6, 6), (7, 9), (8, 12), (5, 5), (14, 15), (3, 3)];
        for subset in 0..1_usize << parts.len() {
            let chosen: Vec<(u64, u64)> =
                (0..parts.len()).filter(|bit| subset & (1 << bit) != 0).map(|bit| parts[bit]).collect();
            let model: BTreeSet<u64> = chosen.iter().flat_map(|(first, last)| *first..=*last).collect();
            let (mut one, mut other) = (Carried::default(), Carried::default());
            chosen.iter().for_each(|(first, last)| one.add(ME, *first, *last));
            chosen.iter().rev().for_each(|(first, last)| other.add(ME, *first, *last));
            assert_eq!(one.of(ME), other.of(ME), "{chosen:?}");
            let held: BTreeSet<u64> = one.of(ME).iter().flat_map(|(first, last)| *first..=*last).collect();
            assert_eq!(held, model);
            assert!(one.of(ME).windows(2).all(|pair| pair[0].1 + 1 < pair[1].0), "{:?}", one.of(ME));
            for covered in 0..16 {
                let through = (covered + 1..).take_while(|at| model.contains(at)).last().unwrap_or(covered);
                // What lies below the covered part counts for nothing.
                assert_eq!(one.through(ME, covered), through, "{chosen:?} from {covered}");
            }
            for (first, last) in parts {
                assert_eq!(one.has(ME, first, last), (first..=last).all(|at| model.contains(&at)));
            }
        }
    }

    #[test]
    fn it_stays_small_and_takes_the_largest_numbers() {
        let mut carried = Carried::default();
        (0..100).for_each(|n| carried.add(ME, 3 * n + 1, 3 * n + 1));
        assert_eq!(carried.of(ME).len(), STRETCHES_MAX);
        assert_eq!(carried.of(ME).last(), Some(&(298, 298)), "the lowest go");
        carried.add(ME, u64::MAX, u64::MAX);
        carried.add(ME, 0, 5);
        carried.add(ME, 5, 4);
        assert_eq!(carried.of(ME).len(), STRETCHES_MAX);
        assert_eq!(carried.through(ME, u64::MAX - 1), u64::MAX);
        assert_eq!(carried.through((ReplicaId(9), Incarnation(0)), 7), 7);
    }
}
