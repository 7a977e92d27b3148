//! What waits to be sent to one peer: a queue for each class, bounded in bytes, who goes next, who is dropped. Pure state.
//!
//! Dropping is allowed because every protocol above resends what matters; blocking the sender is not, because it is
//! the replica's only thread. Room is made by dropping the oldest frame of the lowest class, never of a class above
//! the newcomer's, so votes go last. The socket and the clock are not known here.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use crate::frame::{Class, FRAGMENT_BYTES_MAX, FRAGMENT_HEADER_BYTES, put_fragment};

/// Charged per frame on top of its bytes, so that a flood of empty frames is bounded too.
const FRAME_OVERHEAD_BYTES: usize = 64;

/// How much one peer's queue may hold.
#[derive(Clone, Debug)]
pub struct QueueLimits {
    /// For each class (vote, order, request, bulk, hint), overhead of 64 bytes a frame included. Default 8, 16, 8, 16 MiB
    /// and 64 KiB: hints are worth nothing when they are old.
    pub class_bytes_max: [usize; Class::COUNT],
    /// For all classes together. Default 32 MiB.
    pub total_bytes_max: usize,
    /// A lower class gets one fragment through after this many bytes of higher ones went ahead of it. Default 256 KiB:
    /// with fragments of 32 KiB bulk keeps about a ninth of a saturated link.
    pub patience_bytes: usize,
}

impl Default for QueueLimits {
    fn default() -> Self {
        const MIB: usize = 1024 * 1024;
        const HINT_BYTES_MAX: usize = 64 * 1024;
        Self {
            class_bytes_max: [8 * MIB, 16 * MIB, 8 * MIB, 16 * MIB, HINT_BYTES_MAX],
            total_bytes_max: 32 * MIB,
            patience_bytes: 256 * 1024,
        }
    }
}

/// What became of a frame handed to `send`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Sent {
    /// It waits its turn.
    Queued,
    /// It waits its turn; older frames of its class or a lower one were dropped for it.
    QueuedAfterDrops,
    /// No room could be made without dropping a higher class: it is dropped and counted.
    Dropped,
    /// Larger than `frame_bytes_max`: the receiver would close the link. Dropped and counted.
    TooLarge,
    /// No such peer.
    UnknownPeer,
    /// The transport has been shut down.
    Stopped,
}

#[derive(Debug, Default)]
struct Lane {
    frames: VecDeque<Bytes>,
    /// The frame whose first fragments have left, and how many of its bytes. It is never dropped.
    started: Option<(Bytes, usize)>,
    /// Counts `started` until it has left whole.
    bytes: usize,
    dropped: u64,
    /// Bytes of higher classes that went ahead while this lane waited.
    passed_over_bytes: usize,
}

fn charge(frame: &Bytes) -> usize {
    frame.len() + FRAME_OVERHEAD_BYTES
}

impl Lane {
    fn waits(&self) -> bool {
        self.started.is_some() || !self.frames.is_empty()
    }

    fn drop_oldest(&mut self) -> Option<usize> {
        let freed = charge(&self.frames.pop_front()?);
        self.bytes -= freed;
        self.dropped += 1;
        Some(freed)
    }
}

#[derive(Debug)]
pub(crate) struct Queue {
    limits: QueueLimits,
    lanes: [Lane; Class::COUNT],
    bytes: usize,
    frames_sent: u64,
}

impl Queue {
    pub(crate) fn new(limits: QueueLimits) -> Self {
        Self { limits, lanes: Default::default(), bytes: 0, frames_sent: 0 }
    }

    pub(crate) fn push(&mut self, class: Class, frame: Bytes) -> Sent {
        let need = charge(&frame);
        let lane_max = self.limits.class_bytes_max[class as usize].min(self.limits.total_bytes_max);
        if need > lane_max {
            self.lanes[class as usize].dropped += 1;
            return Sent::Dropped;
        }
        let mut outcome = Sent::Queued;
        while self.lanes[class as usize].bytes + need > lane_max {
            if !self.make_room(class..=class) {
                return Sent::Dropped;
            }
            outcome = Sent::QueuedAfterDrops;
        }
        while self.bytes + need > self.limits.total_bytes_max {
            if !self.make_room(class..=Class::Hint) {
                return Sent::Dropped;
            }
            outcome = Sent::QueuedAfterDrops;
        }
        let lane = &mut self.lanes[class as usize];
        lane.frames.push_back(frame);
        lane.bytes += need;
        self.bytes += need;
        outcome
    }

    /// Drops the oldest frame of the lowest class in `classes`; if there is none, charges the newcomer's class with
    /// its own loss and says so.
    fn make_room(&mut self, classes: std::ops::RangeInclusive<Class>) -> bool {
        let newcomer = *classes.start() as usize;
        let lowest_first = (newcomer..=*classes.end() as usize).rev();
        for lane in lowest_first {
            if let Some(freed) = self.lanes[lane].drop_oldest() {
                self.bytes -= freed;
                return true;
            }
        }
        self.lanes[newcomer].dropped += 1;
        false
    }

    pub(crate) fn count_too_large(&mut self, class: Class) {
        self.lanes[class as usize].dropped += 1;
    }

    /// Appends fragments to `out` until it holds `out_bytes_max` or nothing waits. True when nothing is left.
    pub(crate) fn fill(&mut self, out: &mut BytesMut, out_bytes_max: usize) -> bool {
        while let Some(class) = self.next_class() {
            if out.len() >= out_bytes_max {
                return false;
            }
            self.put_next_fragment(class, out);
        }
        true
    }

    /// The highest class that waits, unless a lower one has been passed over for too long.
    fn next_class(&self) -> Option<Class> {
        let impatient = |class: &Class| {
            let lane = &self.lanes[*class as usize];
            lane.waits() && lane.passed_over_bytes >= self.limits.patience_bytes
        };
        let waits = |class: &Class| self.lanes[*class as usize].waits();
        Class::ALL.into_iter().find(impatient).or_else(|| Class::ALL.into_iter().find(waits))
    }

    fn put_next_fragment(&mut self, class: Class, out: &mut BytesMut) {
        let lane = &mut self.lanes[class as usize];
        let (frame, sent) = lane
            .started
            .take()
            .or_else(|| lane.frames.pop_front().map(|frame| (frame, 0)))
            .expect("only a lane that waits is asked for a fragment");
        let end = frame.len().min(sent + FRAGMENT_BYTES_MAX);
        let more = end < frame.len();
        put_fragment(out, class, &frame[sent..end], more);
        lane.passed_over_bytes = 0;
        if more {
            lane.started = Some((frame, end));
        } else {
            lane.bytes -= charge(&frame);
            self.bytes -= charge(&frame);
            self.frames_sent += 1;
        }
        for lower in &mut self.lanes[class as usize + 1..] {
            if lower.waits() {
                lower.passed_over_bytes += FRAGMENT_HEADER_BYTES + end - sent;
            }
        }
    }

    /// The link is gone: frames that had left in part start again from their first byte on the next one.
    pub(crate) fn rewind(&mut self) {
        for lane in &mut self.lanes {
            if let Some((frame, _)) = lane.started.take() {
                lane.frames.push_front(frame);
            }
            lane.passed_over_bytes = 0;
        }
    }

    /// The peer is someone else now: what was meant for its predecessor is dropped and counted.
    pub(crate) fn discard(&mut self) {
        self.rewind();
        for lane in &mut self.lanes {
            while let Some(freed) = lane.drop_oldest() {
                self.bytes -= freed;
            }
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn frames_sent(&self) -> u64 {
        self.frames_sent
    }

    pub(crate) fn dropped(&self) -> [u64; Class::COUNT] {
        std::array::from_fn(|class| self.lanes[class].dropped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{Arrival, Reading, Reassembler};

    /// Limits that hold `frames` frames of 36 bytes (100 with overhead) in all.
    fn queue(total: usize, class: usize) -> Queue {
        Queue::new(QueueLimits {
            class_bytes_max: [100 * class; Class::COUNT],
            total_bytes_max: 100 * total,
            patience_bytes: 1 << 20,
        })
    }

    fn frame(tag: u8) -> Bytes {
        Bytes::from(vec![tag; 36])
    }

    fn drain(queue: &mut Queue) -> Vec<(Class, Bytes)> {
        let mut wire = BytesMut::new();
        assert!(queue.fill(&mut wire, usize::MAX));
        let mut reader = Reassembler::new(Reading::Frames, usize::MAX);
        let mut frames = Vec::new();
        while let Some(arrival) = reader.next(&mut wire).expect("own frames are valid") {
            let Arrival::Frame(class, bytes) = arrival else { panic!("only frames were queued") };
            frames.push((class, bytes));
        }
        frames
    }

    fn tags(queue: &mut Queue) -> Vec<(Class, u8)> {
        drain(queue).into_iter().map(|(class, bytes)| (class, bytes[0])).collect()
    }

    #[test]
    fn the_lowest_class_is_dropped_first_and_votes_last() {
        let mut queue = queue(4, 4);
        for class in [Class::Bulk, Class::Request, Class::Order, Class::Vote] {
            assert_eq!(queue.push(class, frame(0)), Sent::Queued);
        }
        for expected in [[0, 0, 0, 1, 0], [0, 0, 1, 1, 0], [0, 1, 1, 1, 0], [1, 1, 1, 1, 0]] {
            assert_eq!(queue.push(Class::Vote, frame(1)), Sent::QueuedAfterDrops);
            assert_eq!(queue.dropped(), expected);
            assert_eq!(queue.bytes(), 400);
        }
        // Full of votes: nothing lower gets in, and no vote pays for it.
        for class in [Class::Order, Class::Request, Class::Bulk] {
            assert_eq!(queue.push(class, frame(2)), Sent::Dropped);
        }
        assert_eq!(queue.dropped(), [1, 2, 2, 2, 0]);
        assert_eq!(tags(&mut queue), [(Class::Vote, 1); 4]);
    }

    #[test]
    fn a_full_class_drops_its_own_oldest() {
        let mut queue = queue(10, 2);
        assert_eq!(queue.push(Class::Bulk, frame(9)), Sent::Queued);
        for tag in 0..4 {
            let _ = queue.push(Class::Order, frame(tag));
        }
        assert_eq!(queue.dropped(), [0, 2, 0, 0, 0]);
        assert_eq!(tags(&mut queue), [(Class::Order, 2), (Class::Order, 3), (Class::Bulk, 9)]);
        assert!(queue.bytes() == 0);
    }

    #[test]
    fn a_frame_that_can_never_fit_is_dropped_without_cost_to_others() {
        let mut queue = queue(4, 2);
        let _ = queue.push(Class::Bulk, frame(1));
        assert_eq!(queue.push(Class::Vote, Bytes::from(vec![0; 200])), Sent::Dropped);
        assert_eq!(queue.dropped(), [1, 0, 0, 0, 0]);
        assert_eq!(tags(&mut queue), [(Class::Bulk, 1)]);
    }

    #[test]
    fn empty_frames_are_bounded_too() {
        let mut queue = queue(10, 10);
        for _ in 0..1000 {
            let _ = queue.push(Class::Request, Bytes::new());
        }
        assert_eq!(queue.dropped()[2], 1000 - 1000 / FRAME_OVERHEAD_BYTES as u64);
    }

    #[test]
    fn a_vote_waits_for_one_fragment_of_a_bulk_frame_not_for_all_of_it() {
        let mut queue = Queue::new(QueueLimits::default());
        let large = Bytes::from(vec![7; 10 * FRAGMENT_BYTES_MAX + 1]);
        let _ = queue.push(Class::Bulk, large.clone());
        let mut wire = BytesMut::new();
        assert!(!queue.fill(&mut wire, 1));
        let _ = queue.push(Class::Vote, frame(1));
        assert!(queue.fill(&mut wire, usize::MAX));
        let mut reader = Reassembler::new(Reading::Frames, large.len());
        assert_eq!(reader.next(&mut wire), Ok(Some(Arrival::Frame(Class::Vote, frame(1)))));
        assert_eq!(reader.next(&mut wire), Ok(Some(Arrival::Frame(Class::Bulk, large))));
        assert_eq!(queue.frames_sent(), 2);
    }

    #[test]
    fn bulk_is_not_starved_by_an_endless_stream_of_votes() {
        let mut queue = Queue::new(QueueLimits { patience_bytes: 10 * (36 + 5), ..QueueLimits::default() });
        let _ = queue.push(Class::Bulk, frame(9));
        for tag in 0..50 {
            let _ = queue.push(Class::Vote, frame(tag));
        }
        let at = tags(&mut queue).iter().position(|sent| *sent == (Class::Bulk, 9));
        assert_eq!(at, Some(10));
    }

    #[test]
    fn a_frame_begun_on_a_lost_link_is_sent_whole_on_the_next() {
        let mut queue = Queue::new(QueueLimits::default());
        let large = Bytes::from(vec![7; 3 * FRAGMENT_BYTES_MAX]);
        let _ = queue.push(Class::Bulk, large.clone());
        let _ = queue.push(Class::Bulk, frame(1));
        let mut lost = BytesMut::new();
        assert!(!queue.fill(&mut lost, 1));
        queue.rewind();
        assert_eq!(drain(&mut queue), [(Class::Bulk, large), (Class::Bulk, frame(1))]);
        assert!(queue.bytes() == 0);
    }

    #[test]
    fn hints_are_dropped_first_and_never_push_anything_out() {
        let mut queue = queue(3, 3);
        assert_eq!(queue.push(Class::Hint, frame(1)), Sent::Queued);
        assert_eq!(queue.push(Class::Bulk, frame(2)), Sent::Queued);
        assert_eq!(queue.push(Class::Bulk, frame(3)), Sent::Queued);
        assert_eq!(queue.push(Class::Bulk, frame(4)), Sent::QueuedAfterDrops);
        assert_eq!(queue.dropped(), [0, 0, 0, 0, 1]);
        assert_eq!(queue.push(Class::Hint, frame(5)), Sent::Dropped);
        assert_eq!(queue.dropped(), [0, 0, 0, 0, 2]);
        let bulk = |tag| (Class::Bulk, frame(tag));
        assert_eq!(drain(&mut queue), [bulk(2), bulk(3), bulk(4)]);
    }

    #[test]
    fn discarding_counts_and_frees_everything() {
        let mut queue = queue(10, 10);
        let _ = queue.push(Class::Vote, frame(1));
        let _ = queue.push(Class::Bulk, frame(1));
        queue.discard();
        assert!(queue.bytes() == 0);
        assert_eq!(queue.dropped(), [1, 0, 0, 1, 0]);
    }
}
