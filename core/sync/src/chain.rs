//! One origin's frames: a line without gaps, each frame naming the hash of the one before, and a few that came early.
//!
//! ```text
//!   dropped ──▶ base │ kept kept kept kept │   gap   │ waiting waiting
//!                    └ a prefix is handed to the store
//! ```

use crate::frame::{Frame, Header, SignedHeader};
use crate::limits::HEAD_STRETCHES_MAX;
use crate::proof::{Cut, Proof, contradict};
use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;
use bytes::Bytes;
use dwcp_base::{Hash, Micros, Ticket};
use dwcp_crdt::{Bundle, Interval};

/// A frame in line.
#[derive(Clone, Debug)]
pub(crate) struct Kept {
    pub(crate) signed: SignedHeader,
    pub(crate) hash: Hash,
    pub(crate) bytes: Bytes,
    /// Until it is handed to the store. Shares the memory of `bytes`.
    pub(crate) bundle: Option<Bundle>,
    pub(crate) ticket: Ticket,
}

impl Kept {
    pub(crate) fn first(&self) -> u64 {
        self.signed.header.first
    }

    pub(crate) fn last(&self) -> u64 {
        self.signed.header.last
    }
}

/// What a chain makes of a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is in line, waits, or lies before what is kept.
    Known,
    /// It comes next.
    Next,
    /// Frames before it are missing.
    Ahead,
    /// It cannot stand in one chain with this one, which is here.
    Contradicts(SignedHeader),
    /// The origin contradicted itself, its end is not decided, and this is of another history than what is here.
    Frozen,
    /// It is past the origin's end, or ends there as another frame.
    BeyondCut,
    /// The origin's end is decided and it does not fit what is here.
    OtherBranch,
}

/// See the module. Memory: `kept` within the log's bound, `waiting` within an origin's share.
#[derive(Clone, Debug, Default)]
pub(crate) struct Chain {
    /// The last frame that is no longer kept, with its hash; nothing at the beginning.
    pub(crate) base: Option<(SignedHeader, Hash)>,
    pub(crate) kept: VecDeque<Kept>,
    pub(crate) kept_bytes: usize,
    /// Of frames no longer kept, the tickets of those that the newest base counts on; while it is not in use.
    pub(crate) dropped: Option<Vec<Ticket>>,
    /// By first counter.
    pub(crate) waiting: BTreeMap<u64, Frame>,
    pub(crate) waiting_bytes: usize,
    /// The last counter handed to the store.
    pub(crate) handed: u64,
    pub(crate) proof: Option<Proof>,
    /// Its end is about to be decided though it did not lie.
    pub(crate) is_halted: bool,
    /// What comes after this counter is kept for everybody's sake and not handed to the store: the origin has to end, and it
    /// is not known that its end is so far. Set when the origin is frozen.
    pub(crate) settled: Option<u64>,
    /// Bytes of what is kept after that.
    pub(crate) held_back_bytes: usize,
    /// The record that froze it; zero when it was replayed.
    pub(crate) frozen_ticket: Ticket,
    pub(crate) cut: Option<Cut>,
    /// The store holds something of it that the cut leaves out.
    pub(crate) off_branch: bool,
    /// Somebody showed a frame that fits the cut as well as what is here, and not both can. Over when the cut is reached.
    pub(crate) is_suspect: bool,
    /// Some peer no longer keeps what comes after this counter, and since when nothing came.
    pub(crate) stuck: Option<(u64, Micros)>,
}

impl Chain {
    pub(crate) fn base_last(&self) -> u64 {
        self.base.map_or(0, |(signed, _)| signed.header.last)
    }

    /// The last frame in line.
    pub(crate) fn head(&self) -> Option<(&SignedHeader, Hash)> {
        match self.kept.back() {
            Some(kept) => Some((&kept.signed, kept.hash)),
            None => self.base.as_ref().map(|(signed, hash)| (signed, *hash)),
        }
    }

    pub(crate) fn last(&self) -> u64 {
        self.head().map_or(0, |(signed, _)| signed.header.last)
    }

    pub(crate) fn hash(&self) -> Hash {
        self.head().map_or(Hash::ZERO, |(_, hash)| hash)
    }

    /// Frozen and not yet cut.
    pub(crate) fn is_frozen(&self) -> bool {
        (self.proof.is_some() || self.is_halted) && self.cut.is_none()
    }

    /// From now on nothing more of it reaches the store, until its end is decided. The first word stands.
    pub(crate) fn settle(&mut self, last: u64) {
        self.settled = self.settled.or(Some(last));
        self.held_back_bytes = self.held_back().map(|kept| kept.bytes.len()).sum();
    }

    fn held_back(&self) -> impl Iterator<Item = &Kept> {
        let place = self.settled.map_or(self.kept.len(), |settled| self.place(settled.saturating_add(1)));
        self.kept.range(place..)
    }

    /// The last counter in line that the store has, or is bound to get.
    pub(crate) fn settled_last(&self) -> u64 {
        self.open_until().min(self.last())
    }

    /// The last counter that may be handed to the store. A line that has not come to its decided end may be of another
    /// history than the end is.
    pub(crate) fn open_until(&self) -> u64 {
        match self.settled {
            Some(settled) if self.cut.is_none_or(|cut| !self.holds(&cut)) => settled,
            _ => u64::MAX,
        }
    }

    /// Drops what the decided end leaves out and the store has never seen.
    pub(crate) fn drop_beyond_cut(&mut self) {
        let settled = self.settled.unwrap_or(u64::MAX);
        let is_out = |chain: &Self, kept: &Kept| {
            kept.last() > settled && chain.is_cut_off(&kept.signed.header, kept.hash)
        };
        while self.kept.back().is_some_and(|kept| is_out(self, kept)) {
            self.drop_back();
        }
    }

    fn drop_back(&mut self) {
        if let Some(kept) = self.kept.pop_back() {
            self.discount(&kept);
        }
    }

    fn discount(&mut self, kept: &Kept) {
        self.kept_bytes -= kept.bytes.len();
        if self.settled.is_some_and(|settled| kept.last() > settled) {
            self.held_back_bytes -= kept.bytes.len();
        }
    }

    /// Cut, and here up to the cut.
    pub(crate) fn has_ended(&self) -> bool {
        self.cut.is_some_and(|cut| cut.last == self.last() && cut.hash == self.hash())
    }

    /// Cut, and here on another branch or beyond the cut.
    pub(crate) fn is_past_cut(&self) -> bool {
        self.cut.is_some_and(|cut| self.last() >= cut.last) && !self.has_ended()
    }

    /// The place in `kept` of the first frame that ends at or after a counter.
    pub(crate) fn place(&self, counter: u64) -> usize {
        self.kept.partition_point(|kept| kept.last() < counter)
    }

    /// The frame that ends at a counter, if its header is still here.
    pub(crate) fn ending_at(&self, counter: u64) -> Option<(&SignedHeader, Hash)> {
        if let Some((signed, hash)) = self.base.as_ref().filter(|(base, _)| base.header.last == counter) {
            return Some((signed, *hash));
        }
        let kept = self.kept.get(self.place(counter)).filter(|kept| kept.last() == counter)?;
        Some((&kept.signed, kept.hash))
    }

    /// Is the frame that ends there here, on this branch?
    pub(crate) fn holds(&self, cut: &Cut) -> bool {
        self.ending_at(cut.last).is_some_and(|(_, hash)| hash == cut.hash)
    }

    /// Its last frame whose record has a ticket up to this one.
    pub(crate) fn durable(&self, ticket: Ticket) -> Option<(&SignedHeader, Hash)> {
        // Tickets of a chain ascend.
        match self.kept.partition_point(|kept| kept.ticket <= ticket).checked_sub(1) {
            Some(place) => self.kept.get(place).map(|kept| (&kept.signed, kept.hash)),
            None => self.base.as_ref().map(|(signed, hash)| (signed, *hash)),
        }
    }

    pub(crate) fn durable_last(&self, ticket: Ticket) -> u64 {
        self.durable(ticket).map_or(0, |(signed, _)| signed.header.last)
    }

    /// Does the header come next, by number and hash?
    pub(crate) fn continues(&self, header: &Header) -> bool {
        header.first == self.last() + 1 && header.prev == self.hash()
    }

    fn knows(&self, header: &Header, hash: Hash) -> bool {
        if let Some(waiting) = self.waiting.get(&header.first) {
            return waiting.hash() == hash;
        }
        let in_line = self.kept.get(self.place(header.last)).is_some_and(|kept| kept.hash == hash);
        // What is dropped cannot be compared but for the last of it.
        let is_base = self.base.is_some_and(|(_, base)| base == hash);
        in_line || is_base || header.last < self.base_last()
    }

    /// Something here that the header cannot stand with. Neighbours are enough: frames here fit each other.
    fn contradiction(&self, header: &Header) -> Option<SignedHeader> {
        let place = self.place(header.first);
        let before = match place.checked_sub(1) {
            Some(before) => self.kept.get(before).map(|kept| &kept.signed),
            None => self.base.as_ref().map(|(signed, _)| signed),
        };
        let at = self.kept.get(place).map(|kept| &kept.signed);
        let waiting_before = self.waiting.range(..header.first).next_back().map(|(_, frame)| frame.signed());
        let waiting_at = self.waiting.range(header.first..).next().map(|(_, frame)| frame.signed());
        let neighbours = [before, at, waiting_before, waiting_at, self.head().map(|(signed, _)| signed)];
        neighbours.into_iter().flatten().find(|other| contradict(header, &other.header)).copied()
    }

    /// What to do with a frame. The answer `Contradicts` means something only if its signature holds.
    pub(crate) fn judge(&self, header: &Header, hash: Hash) -> Verdict {
        if self.knows(header, hash) {
            return Verdict::Known;
        }
        if let Some(cut) = self.cut {
            let is_last = header.last == cut.last && hash == cut.hash;
            if self.has_ended() || (header.last >= cut.last && !is_last) {
                return Verdict::BeyondCut;
            }
            if self.contradiction(header).is_some() {
                return Verdict::OtherBranch;
            }
        } else if let Some(other) = self.contradiction(header) {
            return if self.proof.is_some() { Verdict::Frozen } else { Verdict::Contradicts(other) };
        }
        if header.first > self.last() + 1 { Verdict::Ahead } else { Verdict::Next }
    }

    /// Puts the next frame in line.
    pub(crate) fn link(&mut self, frame: Frame, ticket: Ticket) {
        let (signed, hash, bytes, bundle) = frame.into_parts();
        self.kept_bytes += bytes.len();
        if self.settled.is_some_and(|settled| signed.header.last > settled) {
            self.held_back_bytes += bytes.len();
        }
        self.kept.push_back(Kept { signed, hash, bytes, bundle: Some(bundle), ticket });
    }

    pub(crate) fn wait(&mut self, frame: Frame) {
        self.waiting_bytes += frame.bytes().len();
        self.waiting.insert(frame.header().first, frame);
    }

    pub(crate) fn unwait(&mut self, first: u64) -> Option<Frame> {
        let frame = self.waiting.remove(&first)?;
        self.waiting_bytes -= frame.bytes().len();
        Some(frame)
    }

    pub(crate) fn forget_waiting(&mut self) {
        self.waiting.clear();
        self.waiting_bytes = 0;
    }

    /// Drops the oldest frame kept.
    pub(crate) fn drop_front(&mut self) {
        if let Some(kept) = self.kept.pop_front() {
            self.discount(&kept);
            self.base = Some((kept.signed, kept.hash));
            if let Some(dropped) = &mut self.dropped {
                dropped.push(kept.ticket);
            }
        }
    }

    /// The stretches behind the first gap.
    pub(crate) fn stretches(&self) -> Vec<Interval> {
        let mut stretches: Vec<Interval> = Vec::new();
        for frame in self.waiting.values() {
            let Header { first, last, .. } = *frame.header();
            if let Some(stretch) = stretches.last_mut()
                && stretch.last + 1 == first
            {
                stretch.last = last;
                continue;
            }
            if stretches.len() == HEAD_STRETCHES_MAX {
                break;
            }
            stretches.push(Interval { first, last });
        }
        stretches
    }

    /// Does a decision leave this frame out?
    pub(crate) fn is_cut_off(&self, header: &Header, hash: Hash) -> bool {
        let beyond = |cut: Cut| header.last > cut.last || (header.last == cut.last && hash != cut.hash);
        self.cut.is_some_and(beyond)
    }

    /// Would what is here after this frame stay if the chain began anew at it?
    pub(crate) fn stays_at(&self, last: u64, hash: Option<Hash>) -> bool {
        let is_here = self.ending_at(last).is_some_and(|(_, ours)| Some(ours) == hash);
        is_here || (last == 0 && self.base.is_none())
    }

    /// Begins anew at this frame. Frames that follow it stay; what is handed to the store again begins after it.
    pub(crate) fn rebase(&mut self, base: Option<(SignedHeader, Hash)>) {
        let last = base.map_or(0, |(signed, _)| signed.header.last);
        let stays = self.stays_at(last, base.map(|(_, hash)| hash));
        if stays {
            while self.kept.front().is_some_and(|kept| kept.last() <= last) {
                self.drop_front();
            }
        } else {
            self.kept.clear();
            self.kept_bytes = 0;
            self.forget_waiting();
        }
        // What the new store has, it has.
        self.settled = self.settled.map(|settled| if stays { settled.max(last) } else { last });
        self.base = base;
        self.handed = last;
        (self.off_branch, self.is_suspect) = (false, false);
        while self.kept.back().is_some_and(|kept| self.is_cut_off(&kept.signed.header, kept.hash)) {
            self.drop_back();
        }
        self.settled = self.settled.map(|settled| settled.min(self.last()));
        self.held_back_bytes = self.held_back().map(|kept| kept.bytes.len()).sum();
        let early: Vec<u64> = self.waiting.range(..=last).map(|(first, _)| *first).collect();
        for first in early {
            self.unwait(first);
        }
    }
}
