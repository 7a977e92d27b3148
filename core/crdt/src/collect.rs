//! When tombstones may go: floors, and what they make stable.
//!
//! A floor says which changes every member has acknowledged. That alone is not enough to forget a delete: a change whose
//! writer had not seen it may still be on its way. So each acknowledgement also says how far its member had written; what
//! that member writes later has seen all it acknowledged. Once a second floor covers those counters, everything still on
//! its way has seen the first floor; once a third covers the second's, it has also seen whatever was made in ignorance of
//! the first. Then the dots of the first floor are *stable*. (Causal stability: Baquero, Almeida & Shoker, "Pure
//! operation-based replicated data types", 2017; the step more is for the list, whose tombstones hold children.)
//!
//! Floors come from the log, numbered without holes, so every replica collects the same at the same floor. A bundle says
//! which floor its writer knew and waits at receivers that know less.

use crate::causal::Stable;
use crate::dots::{Dot, Origin, VersionVector};
use crate::limits::FLOORS_MAX;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use borsh::{BorshDeserialize, BorshSerialize};
use core::fmt;

/// What all members have acknowledged.
#[derive(Clone, Debug, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
pub struct Floor {
    /// The first is 1.
    pub number: u64,
    /// Dots that every member has applied.
    pub seen: VersionVector,
    /// How far each member had written when it acknowledged.
    pub written: BTreeMap<Origin, u64>,
    /// Origins that will never write again (removed members, past incarnations), with the last counter that counts. From
    /// the floor at which they no longer acknowledge, and in every later one until all they wrote is stable.
    pub retired: BTreeMap<Origin, u64>,
}

impl Floor {
    /// The floor under acknowledgements: each member's origin and what it had applied, taken at one moment of it.
    #[must_use]
    pub fn of(
        number: u64,
        acknowledged: &BTreeMap<Origin, VersionVector>,
        retired: BTreeMap<Origin, u64>,
    ) -> Self {
        // Only what lies before the first gap of everybody: enough in the end, and one interval per origin.
        let origins = acknowledged.values().flat_map(|vector| vector.iter().map(|(origin, _)| origin));
        let least = |origin: Origin| acknowledged.values().map(|v| v.prefix(origin)).min().unwrap_or(0);
        let seen = VersionVector::up_to(origins.map(|origin| (origin, least(origin))));
        let written = acknowledged.iter().map(|(origin, vector)| (*origin, vector.last(*origin))).collect();
        Self { number, seen, written, retired }
    }

    /// Has everybody everything that was written by somebody who may not have known all that `earlier` saw: by members
    /// before they acknowledged it, and by retired origins up to their end?
    fn settles(&self, earlier: &Self) -> bool {
        let mut writers = earlier.written.iter().chain(&earlier.retired);
        writers.all(|(origin, last)| self.seen.contains_range(*origin, 1, *last))
    }
}

/// Why a floor was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FloorRefused {
    /// A floor before it is missing: raise that first.
    Early { number: u64, next: u64 },
    /// This replica lacks changes that the floor says everybody has.
    Behind { missing: Dot },
}

impl fmt::Display for FloorRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Early { number, next } => {
                write!(f, "floor {number} comes before floor {next}: fetch and raise {next} first")
            }
            Self::Behind { missing } => {
                write!(f, "this replica lacks {missing} from below the floor: reset it from a snapshot")
            }
        }
    }
}

impl core::error::Error for FloorRefused {}

/// What all floors up to one come to: those that still matter, and what is stable. A function of the floors alone, so whoever
/// missed some may take it from anybody who is believed about them, in place of each ([`crate::Store::adopt_floors`]).
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
pub struct FloorState {
    number: u64,
    /// Ascending, at most `FLOORS_MAX`: beyond it one from the middle is forgotten, which only delays.
    waiting: Vec<Floor>,
    stable: VersionVector,
    retired: BTreeMap<Origin, u64>,
    /// Those of them whose changes are all stable.
    folded: BTreeSet<Origin>,
}

/// What a new floor changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Raised {
    pub(crate) stable_grew: bool,
    /// More origins are done with for good: their counters are folded.
    pub(crate) folded_grew: bool,
}

impl FloorState {
    /// The newest floor; 0 before the first.
    #[must_use]
    pub const fn number(&self) -> u64 {
        self.number
    }

    #[must_use]
    pub fn newest(&self) -> Option<&Floor> {
        self.waiting.last()
    }

    /// All that the floors say everybody has: a store must hold each of these before it takes them.
    pub fn seen(&self) -> impl Iterator<Item = &VersionVector> {
        core::iter::once(&self.stable).chain(self.waiting.iter().map(|floor| &floor.seen))
    }

    pub(crate) fn stable(&self) -> Stable<'_> {
        Stable { dots: &self.stable, retired: &self.folded }
    }

    /// Could these be ours? Asked of what a donor sent.
    pub(crate) fn is_sound(&self) -> bool {
        let ascending = self.waiting.windows(2).all(|w| w[0].number < w[1].number);
        let last = self.waiting.last().map_or(0, |floor| floor.number);
        ascending && self.waiting.len() <= FLOORS_MAX && last == self.number
    }

    /// Takes the next floor in. Only for whoever has it that it is the next.
    pub fn pass(&mut self, floor: Floor) {
        self.raise(floor);
    }

    /// What changes for a store that knew these when it takes later ones in their place.
    pub(crate) fn changes_to(&self, later: &Self) -> Raised {
        Raised { stable_grew: self.stable != later.stable, folded_grew: self.folded != later.folded }
    }

    pub(crate) fn raise(&mut self, floor: Floor) -> Raised {
        self.number = floor.number;
        self.retired.extend(floor.retired.iter().map(|(origin, last)| (*origin, *last)));
        let mut raised = Raised::default();
        // The newest floor that this one settles, and the newest that that one settles.
        let second = self.waiting.iter().rposition(|earlier| floor.settles(earlier));
        let first = second
            .and_then(|s| self.waiting[..s].iter().rposition(|earlier| self.waiting[s].settles(earlier)));
        if let Some(first) = first {
            let before = core::mem::take(&mut self.stable);
            self.stable = before.clone();
            self.stable.join(&self.waiting[first].seen);
            raised.stable_grew = self.stable != before;
            self.waiting.drain(..=first);
        }
        self.waiting.push(floor);
        if self.waiting.len() > FLOORS_MAX {
            self.waiting.remove(FLOORS_MAX / 2);
        }
        for (origin, last) in &self.retired {
            if self.stable.contains_range(*origin, 1, *last) && self.folded.insert(*origin) {
                raised.folded_grew = true;
            }
        }
        raised
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Origin = Origin::new(0, 0);
    const B: Origin = Origin::new(1, 0);

    fn floor(number: u64, of_a: (u64, u64), of_b: (u64, u64)) -> Floor {
        let acknowledged = BTreeMap::from([
            (A, VersionVector::up_to([(A, of_a.0), (B, of_a.1)])),
            (B, VersionVector::up_to([(A, of_b.0), (B, of_b.1)])),
        ]);
        Floor::of(number, &acknowledged, BTreeMap::new())
    }

    #[test]
    fn a_dot_is_stable_two_settled_floors_after_everybody_has_it() {
        let mut floors = FloorState::default();
        let a5 = Dot::new(A, 5);
        assert!(
            !floors.raise(floor(1, (5, 3), (5, 7))).stable_grew,
            "B wrote 4-7 while it did not know what A has"
        );
        assert!(!floors.raise(floor(2, (9, 6), (9, 7))).stable_grew, "B's 7 is not everywhere");
        assert!(!floors.raise(floor(3, (9, 7), (9, 9))).stable_grew, "settles floor 1 for the first time");
        assert!(!floors.stable().dots.contains(a5));
        let raised = floors.raise(floor(4, (9, 9), (9, 9)));
        assert!(raised.stable_grew && floors.stable().dots.contains(a5));
        assert_eq!(*floors.stable().dots, VersionVector::up_to([(A, 9), (B, 6)]), "what floor 2 saw");
    }

    #[test]
    fn retired_origins_fold_when_their_last_change_is_stable() {
        let mut floors = FloorState::default();
        for number in 1..=2 {
            let mut floor = floor(number, (5, 0), (5, 0));
            floor.retired.insert(A, 5);
            assert!(!floors.raise(floor).folded_grew);
        }
        assert!(floors.raise(floor(3, (5, 0), (5, 0))).folded_grew);
        assert!(floors.stable().retired.contains(&A));
        assert!(!floors.raise(floor(4, (5, 0), (5, 0))).folded_grew);
    }

    #[test]
    fn what_a_retired_origin_wrote_last_must_be_everywhere_before_anything_is_stable() {
        let mut floors = FloorState::default();
        // B wrote 7 before it was lost; only A's disk has it, and it knew nothing of A's 5.
        let lonely = |number, b_last| {
            let acknowledged = BTreeMap::from([(A, VersionVector::up_to([(A, 5), (B, b_last)]))]);
            Floor::of(number, &acknowledged, BTreeMap::from([(B, 7)]))
        };
        for number in 1..=5 {
            assert!(!floors.raise(lonely(number, 6)).stable_grew);
        }
        assert!(!floors.raise(lonely(6, 7)).stable_grew);
        assert!(floors.raise(lonely(7, 7)).stable_grew);
        assert!(floors.stable().dots.contains(Dot::new(A, 5)));
    }

    #[test]
    fn floors_that_never_settle_are_bounded() {
        let mut floors = FloorState::default();
        for number in 1..100 {
            floors.raise(floor(number, (5, 0), (5, 10 + number)));
            assert!(floors.waiting.len() <= FLOORS_MAX);
        }
        assert_eq!(floors.number(), 99);
    }
}
