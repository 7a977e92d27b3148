//! The virtual log as a fold over root entries. Without a segment, batches of the root are the data. With one, batches are
//! deferred until it closes: the segment's own entries come first, then what was deferred.
//!
//! Everything here is derived from the ordered prefix alone, so every replica at one root sequence has the same fold. It
//! does not execute anything, and it does not know how an entry came to be ordered.

use crate::chain::VirtualLog;
use crate::close::{Bench, Close, CloseRefusal};
use crate::cursor::{Bases, Cursor};
use crate::segment::{AnchorPoint, Open, Segment};
use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;
use borsh::{BorshDeserialize, BorshSerialize};
use bytes::Bytes;
use dwcp_base::{Epoch, Hash, LogTime, Position, Sequence};

/// Bytes of deferred frames at most; what exceeds it is not taken, and its clients send it again.
pub const DEFERRED_BYTES_MAX: usize = 64 << 20;
/// Deferred frames of one client at most.
pub const DEFERRED_FRAMES_PER_CLIENT_MAX: usize = 64;
/// What a deferred frame costs beside its bytes.
const FRAME_OVERHEAD_BYTES: usize = 64;

/// Whose frame it is, as far as the bound per client is concerned: the caller's name for a session.
pub type ClientTag = [u8; 16];

/// Frames of one root batch that wait for the segment to close.
#[derive(Clone, Debug, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
pub struct DeferredBatch {
    pub sequence: Sequence,
    pub time: LogTime,
    pub frames: Vec<(ClientTag, Bytes)>,
}

/// What waits for a segment to close, in the order of the root.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
pub struct Deferred {
    batches: VecDeque<DeferredBatch>,
    /// Frames of each client in `batches`.
    by_client: BTreeMap<ClientTag, u32>,
    bytes: u64,
}

impl Deferred {
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = &DeferredBatch> {
        self.batches.iter()
    }

    /// What the batch of this sequence left here, if it was the last.
    pub fn of_batch(&self, sequence: Sequence) -> impl Iterator<Item = &Bytes> {
        let last = self.batches.back().filter(|batch| batch.sequence == sequence);
        last.into_iter().flat_map(|batch| batch.frames.iter().map(|(_, frame)| frame))
    }

    /// Takes the frames there is room for; how many were not taken. An empty batch waits for nothing: while a segment is
    /// open its own entries carry log time.
    fn add(&mut self, sequence: Sequence, time: LogTime, frames: Vec<(ClientTag, Bytes)>) -> usize {
        let offered = frames.len();
        let mut taken = Vec::with_capacity(offered);
        for (client, frame) in frames {
            let cost = (frame.len() + FRAME_OVERHEAD_BYTES) as u64;
            let held = self.by_client.get(&client).copied().unwrap_or_default();
            if held as usize >= DEFERRED_FRAMES_PER_CLIENT_MAX
                || self.bytes + cost > DEFERRED_BYTES_MAX as u64
            {
                continue;
            }
            self.by_client.insert(client, held + 1);
            self.bytes += cost;
            taken.push((client, frame));
        }
        let refused = offered - taken.len();
        if !taken.is_empty() {
            self.batches.push_back(DeferredBatch { sequence, time, frames: taken });
        }
        refused
    }
}

/// What became of a batch of the root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BatchFate {
    /// It is an entry of the virtual log: execute it there.
    Appended(Position),
    /// It waits for the segment to close. So many frames found no room and are as if they had not been ordered.
    Deferred { refused: usize },
}

/// A segment that has just closed: what is to be executed, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Closed {
    pub segment: Segment,
    /// The segment's entries up to here, then `deferred`.
    pub close: Close,
    /// The virtual log after the segment's last entry.
    pub ends: VirtualLog,
    pub deferred: Vec<DeferredBatch>,
}

/// Why a segment does not open. The entry is then a no-op.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenRefusal {
    AnotherIsOpen,
    /// No members, not ascending, or a leader that is not one of them.
    Members,
    EpochsRunOut,
}

/// Why an Anchor counts for nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnchorRefusal {
    NoSegment,
    OtherEpoch,
    /// Not beyond the last one.
    NotAhead,
    PositionsRunOut,
}

/// The fold's state: part of every checkpoint of the root.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
pub struct Fold {
    /// Without a segment the end of the virtual log; with one, its base.
    log: VirtualLog,
    /// The last epoch that was opened.
    epoch: Epoch,
    segment: Option<Segment>,
    deferred: Deferred,
    bases: Bases,
}

impl Fold {
    /// Where the virtual log ends, as far as the root alone says.
    #[must_use]
    pub fn log(&self) -> VirtualLog {
        self.log
    }

    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    #[must_use]
    pub fn segment(&self) -> Option<&Segment> {
        self.segment.as_ref()
    }

    #[must_use]
    pub fn deferred(&self) -> &Deferred {
        &self.deferred
    }

    /// The epoch of an entry of the virtual log and its number there; see [`Bases`].
    #[must_use]
    pub fn cursor(&self, position: Position) -> Option<Cursor> {
        self.bases.cursor(position)
    }

    /// The position of an entry of the virtual log; see [`Bases`].
    #[must_use]
    pub fn position(&self, cursor: Cursor) -> Option<Position> {
        self.bases.position(cursor)
    }

    /// A batch was ordered. `digest` is that of the entry it would be.
    pub fn batch(
        &mut self,
        sequence: Sequence,
        time: LogTime,
        digest: &Hash,
        frames: impl FnOnce() -> Vec<(ClientTag, Bytes)>,
    ) -> BatchFate {
        if self.segment.is_none() {
            return BatchFate::Appended(self.log.append(digest));
        }
        BatchFate::Deferred { refused: self.deferred.add(sequence, time, frames()) }
    }

    /// A deferred batch is executed after its segment's close.
    pub fn append_deferred(&mut self, digest: &Hash) -> Position {
        assert!(self.segment.is_none(), "what was deferred follows a close");
        self.log.append(digest)
    }

    /// An Open was ordered at `sequence`. Its epoch and base are what the fold says they are; `state` is the digest of the
    /// state there.
    ///
    /// # Errors
    /// Why no segment opens.
    pub fn open(&mut self, sequence: Sequence, state: Hash, open: Open) -> Result<&Segment, OpenRefusal> {
        if self.segment.is_some() {
            return Err(OpenRefusal::AnotherIsOpen);
        }
        let ascending = open.members.windows(2).all(|pair| pair[0] < pair[1]);
        let led = open.first_leader.is_none_or(|leader| open.members.contains(&leader));
        if open.members.is_empty() || !ascending || !led {
            return Err(OpenRefusal::Members);
        }
        let epoch = Epoch(self.epoch.0.checked_add(1).ok_or(OpenRefusal::EpochsRunOut)?);
        self.epoch = epoch;
        self.bases.open(epoch, self.log.position);
        Ok(self.segment.insert(Segment::new(epoch, sequence, self.log, state, open)))
    }

    /// A Close was ordered. Only the first valid one of an epoch ends it.
    ///
    /// # Errors
    /// Why it does not; nothing has changed.
    pub fn close(&mut self, bench: &Bench<'_>, close: Close) -> Result<Closed, CloseRefusal> {
        bench.judge_close(self.segment.as_ref(), &close)?;
        let segment = self.segment.take().ok_or(CloseRefusal::NoSegment)?;
        let ends = segment.ends(&close.tail).ok_or(CloseRefusal::PositionsRunOut)?;
        self.log = ends;
        let deferred = core::mem::take(&mut self.deferred);
        Ok(Closed { segment, close, ends, deferred: deferred.batches.into() })
    }

    /// An Anchor was ordered, with `q` equal votes that the caller has verified.
    ///
    /// # Errors
    /// Why it counts for nothing.
    pub fn anchor(&mut self, epoch: Epoch, point: AnchorPoint) -> Result<&Segment, AnchorRefusal> {
        let segment = self.segment.as_mut().ok_or(AnchorRefusal::NoSegment)?;
        if segment.epoch != epoch {
            return Err(AnchorRefusal::OtherEpoch);
        }
        if point.index <= segment.anchor.index {
            return Err(AnchorRefusal::NotAhead);
        }
        segment.position(point.index).ok_or(AnchorRefusal::PositionsRunOut)?;
        segment.anchor = AnchorPoint { number: segment.anchor.number + 1, ..point };
        Ok(segment)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::close::CloseProof;
    use crate::close::tests::{place, reports, with_bench};
    use crate::place::Index;
    use crate::segment::Protocol;
    use alloc::vec;
    use dwcp_base::ReplicaId;

    fn open() -> Open {
        let members = (0..5).map(ReplicaId).collect();
        Open { protocol: Protocol::Raft, first_leader: Some(ReplicaId(1)), members }
    }

    fn frame(client: u8, bytes: usize) -> (ClientTag, Bytes) {
        ([client; 16], Bytes::from(vec![client; bytes]))
    }

    fn batch(fold: &mut Fold, sequence: u64, frames: Vec<(ClientTag, Bytes)>) -> BatchFate {
        fold.batch(Sequence(sequence), LogTime(sequence), &Hash::of(&sequence.to_le_bytes()), || frames)
    }

    /// In the epoch that the reports of `close::tests` are about.
    fn third_epoch() -> Fold {
        let mut fold = Fold { epoch: Epoch(2), ..Fold::default() };
        assert_eq!(batch(&mut fold, 1, vec![frame(1, 5)]), BatchFate::Appended(Position(1)));
        fold.open(Sequence(2), Hash::ZERO, open()).expect("nothing is open");
        fold
    }

    fn end(fold: &mut Fold) -> Result<Closed, CloseRefusal> {
        let close = Close {
            epoch: Epoch(3),
            tail: place(2, 12),
            anchor: 0,
            proof: CloseProof::Reports(reports([(1, 9), (2, 12), (1, 30), (2, 11)])),
        };
        with_bench(|bench| fold.close(bench, close))
    }

    #[test]
    fn batches_are_entries_without_a_segment_and_wait_while_one_is_open() {
        let mut fold = third_epoch();
        let before = fold.log();
        assert_eq!(batch(&mut fold, 3, vec![frame(1, 5)]), BatchFate::Deferred { refused: 0 });
        assert_eq!(batch(&mut fold, 4, vec![frame(2, 5), frame(1, 6)]), BatchFate::Deferred { refused: 0 });
        assert_eq!(batch(&mut fold, 5, vec![]), BatchFate::Deferred { refused: 0 });
        assert_eq!(fold.log(), before, "the root does not touch the virtual log");
        let closed = end(&mut fold).expect("q reports");
        assert_eq!(closed.ends.position, Position(13), "every index of the segment is one position");
        let order: Vec<u64> = closed.deferred.iter().map(|batch| batch.sequence.0).collect();
        assert_eq!(order, [3, 4], "in the order of the root, and what was empty waits for nothing");
        assert!(fold.deferred().is_empty() && fold.segment().is_none());
        assert_eq!(fold.append_deferred(&Hash::of(b"d")), Position(14));
        let cursor = |epoch, index| Some(Cursor { epoch: Epoch(epoch), index: Index(index) });
        assert_eq!((fold.cursor(Position(13)), fold.cursor(Position(14))), (cursor(3, 12), cursor(3, 13)));
        assert_eq!(fold.position(Cursor { epoch: Epoch(3), index: Index(13) }), Some(Position(14)));
        assert_eq!(batch(&mut fold, 6, vec![]), BatchFate::Appended(Position(15)));
    }

    #[test]
    fn an_epoch_ends_once() {
        let mut fold = third_epoch();
        end(&mut fold).expect("q reports");
        let after = fold.clone();
        assert_eq!(end(&mut fold), Err(CloseRefusal::NoSegment));
        fold.open(Sequence(9), Hash::ZERO, open()).expect("nothing is open");
        assert_eq!(end(&mut fold), Err(CloseRefusal::OtherEpoch), "it says nothing of the next epoch");
        assert_eq!((fold.epoch(), after.epoch()), (Epoch(4), Epoch(3)));
        assert_eq!(fold.segment().expect("it is open").base, after.log(), "the base follows from the fold");
    }

    #[test]
    fn one_segment_at_a_time_and_only_of_members_in_order() {
        let mut fold = Fold::default();
        let refused = |fold: &mut Fold, change: fn(&mut Open)| {
            let mut given = open();
            change(&mut given);
            fold.open(Sequence(1), Hash::ZERO, given).expect_err("it makes no sense")
        };
        assert_eq!(refused(&mut fold, |open| open.members.clear()), OpenRefusal::Members);
        assert_eq!(refused(&mut fold, |open| open.members.swap(0, 1)), OpenRefusal::Members);
        assert_eq!(refused(&mut fold, |open| open.first_leader = Some(ReplicaId(9))), OpenRefusal::Members);
        assert_eq!(fold, Fold::default());
        fold.open(Sequence(1), Hash::ZERO, open()).expect("nothing is open");
        assert_eq!(refused(&mut fold, |_| {}), OpenRefusal::AnotherIsOpen);
    }

    #[test]
    fn what_is_deferred_is_bounded_for_each_client_and_in_all() {
        let mut fold = third_epoch();
        let many = vec![frame(1, 1); DEFERRED_FRAMES_PER_CLIENT_MAX + 3];
        assert_eq!(batch(&mut fold, 3, many), BatchFate::Deferred { refused: 3 });
        assert_eq!(batch(&mut fold, 4, vec![frame(1, 1)]), BatchFate::Deferred { refused: 1 });
        assert_eq!(batch(&mut fold, 5, vec![frame(2, 1)]), BatchFate::Deferred { refused: 0 });
        let mebibytes = |client| vec![frame(client, 1 << 20); 60];
        assert_eq!(batch(&mut fold, 6, mebibytes(3)), BatchFate::Deferred { refused: 0 });
        let BatchFate::Deferred { refused } = batch(&mut fold, 7, mebibytes(4)) else { panic!("it is open") };
        assert!(refused > 50 && fold.deferred().bytes() <= DEFERRED_BYTES_MAX as u64, "{refused}");
        end(&mut fold).expect("q reports");
        fold.open(Sequence(9), Hash::ZERO, open()).expect("nothing is open");
        assert_eq!(batch(&mut fold, 10, vec![frame(1, 1)]), BatchFate::Deferred { refused: 0 }, "room again");
    }

    #[test]
    fn anchors_go_forward_and_a_close_below_one_is_void() {
        let mut fold = third_epoch();
        let at = |index| AnchorPoint {
            index: Index(index),
            chain: place(2, index).chain,
            ..AnchorPoint::default()
        };
        assert_eq!(fold.anchor(Epoch(2), at(5)).err(), Some(AnchorRefusal::OtherEpoch));
        assert_eq!(fold.anchor(Epoch(3), at(5)).expect("ahead").anchor.number, 1);
        assert_eq!(fold.anchor(Epoch(3), at(5)).err(), Some(AnchorRefusal::NotAhead));
        assert_eq!(fold.anchor(Epoch(3), at(4)).err(), Some(AnchorRefusal::NotAhead));
        assert_eq!(fold.anchor(Epoch(3), at(u64::MAX)).err(), Some(AnchorRefusal::PositionsRunOut));
        assert_eq!(fold.anchor(Epoch(3), at(13)).expect("ahead").anchor.number, 2);
        assert_eq!(end(&mut fold), Err(CloseRefusal::BelowAnchor));
        assert!(fold.segment().is_some(), "a void close changes nothing");
        assert_eq!(Fold::default().anchor(Epoch(3), at(5)).err(), Some(AnchorRefusal::NoSegment));
    }

    #[test]
    fn the_fold_survives_its_bytes() {
        let mut fold = third_epoch();
        batch(&mut fold, 3, vec![frame(1, 5)]);
        assert_eq!(dwcp_base::decode::<Fold>(&dwcp_base::encode(&fold)), Ok(fold));
    }
}
