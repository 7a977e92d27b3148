//! Where an entry of the virtual log stands, said in two ways: by its position in the whole, and by the epoch that it belongs
//! to and its number within it.
//!
//! An epoch begins where its segment opened. Entries `1 ..= tail` of it are the segment's, by their index there; those after
//! are the root's, until the next segment opens. Epoch 0 is the root before the first segment.
//!
//! ```text
//!   position   1  2  3 | 4  5  6  7 | 8  9 | 10 ..
//!   epoch         0    |      1: segment, then root    |  2 ..
//!   index      1  2  3 | 1  2  3  4 | 5  6 | 1 ..
//! ```

use alloc::collections::VecDeque;
use borsh::{BorshDeserialize, BorshSerialize};
use dwcp_base::{Epoch, Index, Position};

/// Epochs whose bases are remembered; of entries before them only the position is known.
pub const EPOCHS_KEPT: usize = 256;

/// An entry's epoch and its number there, from 1. Ordered as the virtual log is.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, BorshSerialize, BorshDeserialize,
)]
pub struct Cursor {
    pub epoch: Epoch,
    pub index: Index,
}

/// Where the newest epochs began: their bases, ascending by epoch, at most [`EPOCHS_KEPT`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
pub struct Bases {
    opened: VecDeque<(Epoch, Position)>,
}

impl Bases {
    /// A segment opened there.
    pub(crate) fn open(&mut self, epoch: Epoch, base: Position) {
        if self.opened.len() == EPOCHS_KEPT {
            self.opened.pop_front();
        }
        self.opened.push_back((epoch, base));
    }

    /// Epoch 0 needs no entry of its own; when epochs were forgotten it is among them.
    fn oldest(&self) -> Option<(Epoch, Position)> {
        match self.opened.front() {
            Some((Epoch(epoch), _)) if *epoch > 1 => None,
            _ => Some((Epoch::default(), Position::default())),
        }
    }

    /// The epoch of an entry and its number there. `None` of position 0, which is no entry, and of entries of epochs that are
    /// forgotten. Whether there is such an entry the caller knows.
    #[must_use]
    pub fn cursor(&self, position: Position) -> Option<Cursor> {
        // Of epochs with one base all but the last are empty.
        let after = self.opened.partition_point(|(_, base)| *base < position);
        let known = after.checked_sub(1).and_then(|at| self.opened.get(at)).copied();
        let (epoch, base) = known.or_else(|| self.oldest())?;
        let index = position.0.checked_sub(base.0).filter(|index| *index > 0)?;
        Some(Cursor { epoch, index: Index(index) })
    }

    /// The position of an entry. `None` of number 0, of an epoch that is forgotten or has not begun, and of a number beyond
    /// the end of an epoch that is over.
    #[must_use]
    pub fn position(&self, cursor: Cursor) -> Option<Position> {
        let at = self.opened.partition_point(|(epoch, _)| *epoch < cursor.epoch);
        let known = self.opened.get(at).filter(|(epoch, _)| *epoch == cursor.epoch).copied();
        let is_known = known.is_some();
        let (_, base) = known.or_else(|| self.oldest().filter(|(epoch, _)| *epoch == cursor.epoch))?;
        let position = Position(base.0.checked_add(cursor.index.0)?);
        let next = self.opened.get(if is_known { at + 1 } else { 0 });
        let within = next.is_none_or(|(_, next)| position <= *next);
        (cursor.index.0 > 0 && within).then_some(position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dwcp_base::Chance;

    fn bases(of: &[u64]) -> Bases {
        let mut bases = Bases::default();
        for (nth, base) in of.iter().enumerate() {
            bases.open(Epoch(nth as u64 + 1), Position(*base));
        }
        bases
    }

    fn cursor(epoch: u64, index: u64) -> Cursor {
        Cursor { epoch: Epoch(epoch), index: Index(index) }
    }

    #[test]
    fn the_picture_above_is_true() {
        let bases = bases(&[3, 9]);
        for (position, epoch, index) in [(1, 0, 1), (3, 0, 3), (4, 1, 1), (9, 1, 6), (10, 2, 1)] {
            assert_eq!(bases.cursor(Position(position)), Some(cursor(epoch, index)));
            assert_eq!(bases.position(cursor(epoch, index)), Some(Position(position)));
        }
        assert_eq!(bases.cursor(Position(0)), None);
        assert_eq!(bases.position(cursor(1, 0)), None);
        assert_eq!(bases.position(cursor(1, 7)), None, "the next epoch began");
        assert_eq!(bases.position(cursor(3, 1)), None, "it has not begun");
        assert_eq!(bases.position(cursor(2, u64::MAX)), None);
    }

    /// Epochs of every length, empty ones too, more than are kept.
    #[test]
    fn each_way_undoes_the_other_and_keeps_the_order() {
        for seed in 0..50 {
            let mut chance = Chance::new(seed);
            let count = chance.between(0, 2 * EPOCHS_KEPT as u64);
            let mut base = 0;
            let opened: alloc::vec::Vec<u64> = (0..count)
                .map(|_| {
                    base += chance.below(4);
                    base
                })
                .collect();
            let bases = bases(&opened);
            let forgotten = opened.len().checked_sub(EPOCHS_KEPT).filter(|many| *many > 0);
            let first = forgotten.map_or(0, |many| opened[many]);
            let mut before = None;
            for position in 0..base + 5 {
                let found = bases.cursor(Position(position));
                assert_eq!(found.is_some(), position > first, "seed {seed}: {position} of {first}");
                let Some(found) = found else { continue };
                assert_eq!(bases.position(found), Some(Position(position)), "seed {seed}: {found:?}");
                assert!(before < Some(found), "seed {seed}: {before:?} {found:?}");
                before = Some(found);
            }
        }
    }
}
