//! Frames on their way in, from whatever road: what is known is dropped first, then signatures are checked together, then
//! each frame finds its place in its origin's chain. A frame in line is written down and handed to the store.

use crate::chain::{Chain, Verdict};
use crate::frame::{Frame, FrameError, Header, Received, verify};
use crate::limits::HOPS_MAX;
use crate::output::{Action, Reason};
use crate::proof::Proof;
use crate::record::Record;
use crate::state::Sync;
use alloc::collections::BTreeSet;
use alloc::vec::Vec;
use bytes::Bytes;
use dwcp_base::{Hash, Mutant, Now, Ticket};
use dwcp_crdt::limits::DRIFT_MAX_MS;
use dwcp_crdt::{Origin, OriginId};

/// One of so many parts of the log may be frames of one origin that has to end and that go beyond what the store has of it.
const HELD_BACK_SHARE: usize = 4;

/// By which road frames came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Road {
    /// From a peer: it may pretend any time.
    Gossip,
    /// From the ordered log: whoever prepared it looked at its clock, and everybody takes it.
    Log,
}

/// What came of some frames.
#[derive(Clone, Debug, Default)]
pub(crate) struct Taken {
    /// New here: in line or waiting.
    pub(crate) fresh: Vec<(Origin, Bytes)>,
    /// Origins of which a frame came at all.
    pub(crate) offered: BTreeSet<Origin>,
}

impl Sync {
    pub(crate) fn on_push(&mut self, now: Now, from: OriginId, hops: u8, frame: Bytes) {
        let taken = self.take_frames(now, Some(from), [frame], Road::Gossip);
        // With few peers the origin reached everybody itself.
        if self.peers.len() <= self.limits.fanout || hops >= HOPS_MAX {
            return;
        }
        for (origin, frame) in taken.fresh {
            if !self.is_frozen(origin) {
                self.push_frame(&frame, hops + 1, &[from, origin.id], Ticket::ZERO);
            }
        }
    }

    /// Takes a frame that the ordered log delivered. One that came by gossip before is a no-op, and the other way round.
    pub fn deliver_from_log(&mut self, now: Now, frame: Bytes) {
        self.take_frames(now, None, [frame], Road::Log);
    }

    pub(crate) fn take_frames(
        &mut self,
        now: Now,
        from: Option<OriginId>,
        frames: impl IntoIterator<Item = Bytes>,
        road: Road,
    ) -> Taken {
        let mut taken = Taken::default();
        let mut unknown = Vec::new();
        for bytes in frames {
            match self.sift(now, bytes, road, &mut taken) {
                Ok(received) => unknown.push(received),
                Err(reason) => self.out.refuse(from, reason),
            }
        }
        let good = verify(&unknown, &self.keys, self.cluster, &*self.crypto);
        for (received, is_good) in unknown.into_iter().zip(good) {
            let origin = received.header().origin;
            let result = match (is_good, received.open()) {
                (false, _) => Err(Reason::Forged),
                (true, Err(_)) => {
                    self.note_bad_bundle(origin);
                    Err(Reason::BadBundle)
                }
                (true, Ok(frame)) => {
                    let bytes = frame.bytes().clone();
                    self.place_frame(frame).map(|()| taken.fresh.push((origin, bytes)))
                }
            };
            if let Err(reason) = result {
                self.out.refuse(from, reason);
            }
        }
        let waits = |(origin, _): &(Origin, Bytes)| {
            self.chains.get(origin).is_some_and(|chain| !chain.waiting.is_empty())
        };
        if taken.fresh.iter().any(waits) {
            self.watch_gaps(now);
        }
        taken
    }

    /// Drops what needs no signature to be dropped.
    fn sift(&self, now: Now, bytes: Bytes, road: Road, taken: &mut Taken) -> Result<Received, Reason> {
        let received = Received::read(bytes).map_err(|error| match error {
            FrameError::TooLong { .. } => Reason::TooLong,
            FrameError::Malformed | FrameError::Version { .. } | FrameError::Header => Reason::Malformed,
            FrameError::Bundle(_) | FrameError::Mismatch => Reason::BadBundle,
        })?;
        let header = received.header();
        taken.offered.insert(header.origin);
        let chain = self.chains.get(&header.origin).ok_or(Reason::UnknownOrigin)?;
        match self.judge(chain, header, received.hash()) {
            Verdict::Known => return Err(Reason::Known),
            Verdict::Frozen => return Err(Reason::Frozen),
            Verdict::BeyondCut => return Err(Reason::BeyondCut),
            // These count only with a good signature.
            Verdict::Next | Verdict::Ahead | Verdict::Contradicts(_) | Verdict::OtherBranch => {}
        }
        if road == Road::Gossip && header.hlc.ms() > now.wall_ms.saturating_add(DRIFT_MAX_MS) {
            return Err(Reason::ClockAhead);
        }
        Ok(received)
    }

    fn judge(&self, chain: &Chain, header: &Header, hash: Hash) -> Verdict {
        let verdict = chain.judge(header, hash);
        let blind = match verdict {
            Verdict::Contradicts(_) => self.mutants.on(Mutant::SyncHashIgnored),
            _ => false,
        };
        if !blind {
            return verdict;
        }
        match header.first.cmp(&(chain.last() + 1)) {
            core::cmp::Ordering::Less => Verdict::Known,
            core::cmp::Ordering::Equal => Verdict::Next,
            core::cmp::Ordering::Greater => Verdict::Ahead,
        }
    }

    /// Puts a frame with a good signature where it belongs.
    fn place_frame(&mut self, frame: Frame) -> Result<(), Reason> {
        let origin = frame.header().origin;
        let chain = self.chains.get(&origin).ok_or(Reason::UnknownOrigin)?;
        match self.judge(chain, frame.header(), frame.hash()) {
            Verdict::Known => Err(Reason::Known),
            Verdict::Frozen => Err(Reason::Frozen),
            Verdict::BeyondCut => Err(Reason::BeyondCut),
            Verdict::OtherBranch => {
                self.suspect(origin);
                Err(Reason::OtherBranch)
            }
            Verdict::Contradicts(other) => {
                let proof = Proof::of(other, *frame.signed()).expect("the two contradict each other");
                // Who brought it may know nothing of the other.
                self.freeze(&proof, None);
                Err(Reason::Frozen)
            }
            Verdict::Ahead => self.wait(frame),
            Verdict::Next => {
                self.link(frame)?;
                self.link_waiting(origin);
                self.hand_over(origin);
                if self.chains.get(&origin).is_some_and(|chain| chain.is_suspect && chain.has_ended()) {
                    self.find_needs();
                }
                Ok(())
            }
        }
    }

    fn link(&mut self, frame: Frame) -> Result<(), Reason> {
        let origin = frame.header().origin;
        let bytes = frame.bytes().len();
        // Who has to end may go on writing, and nothing of that can be collected.
        let share = self.limits.log_bytes_max / HELD_BACK_SHARE;
        let is_too_much =
            |chain: &Chain| chain.is_frozen() && chain.held_back_bytes.saturating_add(bytes) > share;
        if self.chains.get(&origin).is_some_and(is_too_much) || !self.make_room(bytes) {
            return Err(Reason::LogFull);
        }
        let ticket = self.out.persist(&Record::Frame(frame.bytes().clone()));
        let chain = self.chains.get_mut(&origin).expect("a frame in line has a chain");
        chain.link(frame, ticket);
        Ok(())
    }

    /// Puts in line what waited for the frame before it.
    pub(crate) fn link_waiting(&mut self, origin: Origin) {
        while let Some(chain) = self.chains.get_mut(&origin) {
            let Some(frame) = chain.unwait(chain.last() + 1) else { return };
            if !chain.continues(frame.header()) && !self.mutants.on(Mutant::SyncHashIgnored) {
                // Its predecessor came with a snapshot, or it would have been noticed when it came.
                let proof = chain.head().and_then(|(head, _)| Proof::of(*head, *frame.signed()));
                if let Some(proof) = proof.filter(|_| chain.cut.is_none()) {
                    self.freeze(&proof, None);
                }
                return;
            }
            // Without room it is asked for again.
            if let Err(reason) = self.link(frame) {
                self.out.refuse(None, reason);
                return;
            }
        }
    }

    /// Keeps a frame that came early. Nearer ones displace farther ones, so an origin that runs ahead, or a liar's far
    /// frame, never keeps out what is needed next.
    fn wait(&mut self, frame: Frame) -> Result<(), Reason> {
        let (first, bytes) = (frame.header().first, frame.bytes().len());
        let total: usize = self.chains.values().map(|chain| chain.waiting_bytes).sum();
        let limits = self.limits;
        let chain = self.chains.get_mut(&frame.header().origin).ok_or(Reason::UnknownOrigin)?;
        let own_share = |chain: &Chain| {
            chain.waiting.len() < limits.waiting_frames_max
                && chain.waiting_bytes + bytes <= limits.waiting_bytes_max
        };
        let before = chain.waiting_bytes;
        while !own_share(chain)
            || total - (before - chain.waiting_bytes) + bytes > limits.waiting_total_bytes_max
        {
            let farthest = chain.waiting.last_key_value().map(|(farthest, _)| *farthest);
            match farthest {
                Some(farthest) if farthest > first => {
                    chain.unwait(farthest);
                }
                _ => return Err(Reason::WaitingFull),
            }
        }
        chain.wait(frame);
        Ok(())
    }

    /// Makes room for so many bytes by dropping frames that the saved snapshot holds, of the origin with most first; own
    /// ones stay, for nobody else is bound to keep them.
    pub(crate) fn make_room(&mut self, bytes: usize) -> bool {
        let mut total = self.log_bytes();
        while total + bytes > self.limits.log_bytes_max {
            let (me, saved) = (self.me, &self.saved);
            let droppable = self.chains.iter_mut().filter(|(origin, chain)| {
                let oldest = chain.kept.front().map_or(u64::MAX, crate::chain::Kept::last);
                **origin != me && oldest <= saved.prefix(**origin)
            });
            let Some((_, chain)) = droppable.max_by_key(|(_, chain)| chain.kept_bytes) else { return false };
            let before = chain.kept_bytes;
            chain.drop_front();
            total -= before - chain.kept_bytes;
        }
        true
    }

    pub(crate) fn hand_over_all(&mut self) {
        let waits = |chain: &Chain| chain.handed < chain.last().min(chain.open_until());
        let origins: Vec<Origin> =
            self.chains.iter().filter(|(_, chain)| waits(chain)).map(|(origin, _)| *origin).collect();
        for origin in origins {
            self.hand_over(origin);
        }
    }

    /// Hands frames in line to the store, as many as it is sure to hold should they wait there for other origins.
    pub(crate) fn hand_over(&mut self, origin: Origin) {
        let Some(chain) = self.chains.get_mut(&origin) else { return };
        let open_until = chain.open_until();
        let first_unapplied = chain.place(self.applied.prefix(origin) + 1);
        let mut place = chain.place(chain.handed + 1);
        let under_way = first_unapplied.min(place)..place;
        let mut count = under_way.len();
        let mut bytes: usize = chain.kept.range(under_way).map(|kept| kept.bytes.len()).sum();
        while let Some(kept) = chain.kept.get_mut(place) {
            if kept.last() > open_until {
                return;
            }
            let size = kept.bytes.len();
            let is_applied = self.applied.contains_range(origin, kept.first(), kept.last());
            if !is_applied {
                if count >= self.limits.apply_frames_max || bytes + size > self.limits.apply_bytes_max {
                    return;
                }
                (count, bytes) = (count + 1, bytes + size);
            }
            chain.handed = kept.last();
            let bundle = kept.bundle.take();
            place += 1;
            if is_applied {
                continue;
            }
            // After an install frames are handed a second time; their bundles are read again.
            let again =
                || Received::read(kept.bytes.clone()).and_then(Received::open).map(|f| f.bundle().clone());
            let mut bundle = bundle.map_or_else(again, Ok).expect("what is kept was read before");
            if self.mutants.on(Mutant::SyncFrameInPart) && bundle.deltas().len() > 1 {
                let half = bundle.first() + bundle.deltas().len() as u64 / 2 - 1;
                bundle = bundle.part(bundle.first(), half).expect("a half lies inside");
            }
            self.out.push(Action::Apply { bundle });
        }
        if self.mutants.on(Mutant::SyncCollectsWithoutFloor) {
            let applied = self.applied.clone();
            self.drop_covered(&applied);
        }
    }
}
