//! The primary's part: what to propose, and when. A batch leaves as soon as the pipe has room; under load frames gather
//! meanwhile, so batches grow by themselves and nothing ever waits for a clock.

use crate::replica::{Outbox, Replica};
use alloc::vec::Vec;
use bytes::Bytes;
use dwcp_base::{LogTime, Micros, Mutant, Now};
use dwcp_log::{Proposal, RootEntry};
use dwcp_state::StateMachine;

/// A frame that all replicas have known of for so many fast-path timeouts is ordered by the root, though a segment is open.
const ESCAPE_FACTOR: u64 = 4;
/// Proof builds only: how long [`Mutant::BatchWaits`] waits for company.
const MUTANT_BATCH_WAIT: Micros = Micros::from_millis(500);

impl<M: StateMachine> Replica<M> {
    /// Proposes what waits, as far as there is room.
    pub(crate) fn propose_pending(&mut self, now: Now, out: &mut Outbox) {
        while self.pbft.room() > 0 {
            let mut entries = Vec::new();
            entries.extend(self.pool.next_order().map(RootEntry::from));
            entries.extend(self.next_switch(now, out));
            entries.extend(self.next_anchor());
            entries.extend(self.next_decision(now));
            entries.extend(self.next_agreed(now, out));
            let frames = self.next_frames(now);
            if !frames.is_empty() {
                entries.push(RootEntry::Batch(frames));
            }
            if entries.is_empty() {
                return;
            }
            self.propose(now, entries);
        }
    }

    /// Client frames for the root. While a segment is open they are its leader's to order, but for those that all replicas
    /// have known of for long: the root takes them, and from then on everybody watches whether the leader does.
    fn next_frames(&mut self, now: Now) -> Vec<Bytes> {
        let fast_path = self.fast_path_timeout();
        let settings = &self.setup.settings;
        let Some(segment) = &mut self.segment else {
            let opening =
                self.opening.is_some_and(|(view, at)| view == self.pbft.view() && at > self.control.executed);
            if opening {
                return Vec::new(); // They would only be deferred.
            }
            let oldest = self.pool.oldest().filter(|_| self.setup.mutants.on(Mutant::BatchWaits));
            if oldest.is_some_and(|since| now.mono < since.plus(MUTANT_BATCH_WAIT))
                && self.pool.len() < settings.batch_frames_max
            {
                return Vec::new();
            }
            let frames_max =
                if self.setup.mutants.on(Mutant::FixedBatch) { 1 } else { settings.batch_frames_max };
            let bytes_max = settings.batch_bytes_max;
            let mut frames = self.pool.next_batch(bytes_max, frames_max);
            let left = bytes_max.saturating_sub(frames.iter().map(Bytes::len).sum());
            frames.extend(self.sync_batch(left, frames_max - frames.len()));
            return frames;
        };
        let patience = fast_path.times(ESCAPE_FACTOR);
        let escapes = &mut segment.failover.escapes;
        if now.mono < escapes.next || now.mono < patience {
            return Vec::new();
        }
        // Also where there is nothing to take: to find that out all frames are looked at.
        escapes.next = now.mono.plus(settings.segment.anchor_interval);
        let waiting = self.pool.long_known(now.mono.since(patience));
        escapes.take(waiting.map(|pending| (pending.frame.session(), &pending.hash, pending.frame.bytes())))
    }

    /// Lets log time pass while nothing happens, and fills the window behind a member's replacement.
    pub(crate) fn propose_tick(&mut self, now: Now) {
        if now.mono < self.next_tick {
            return;
        }
        if self.window_must_move() {
            while self.pbft.room() > 0 {
                self.propose(now, Vec::from([RootEntry::Noop]));
                if self.moves_slowly() {
                    break;
                }
            }
            self.next_tick = now.mono.plus(self.tick_pause());
            return;
        }
        // A segment's own entries carry log time.
        if self.segment.is_none() && self.state.wants_ticks().is_some() && self.pbft.room() > 0 {
            self.propose(now, Vec::from([RootEntry::Batch(Vec::new())]));
        }
        self.next_tick = now.mono.plus(self.tick_pause());
    }

    /// When the primary looks again whether something is to be ordered for its own sake. Proposals for others' sake must not
    /// put off what somebody waits for.
    fn tick_pause(&self) -> Micros {
        let moves = self.window_must_move();
        if moves && !self.moves_slowly() {
            Micros::from_millis(1)
        } else if moves || self.wants_open() {
            self.setup.settings.segment.anchor_interval
        } else {
            self.setup.settings.tick_interval
        }
    }

    /// The mode is for a segment and none is open: the calm is looked at now and then.
    pub(crate) fn wants_open(&self) -> bool {
        self.setup.raft.is_some()
            && self.control.fold.segment().is_none()
            && self.control.steering.wants_segments()
    }

    fn propose(&mut self, now: Now, entries: Vec<RootEntry>) {
        let time = self.state.log_time().max(LogTime(now.wall_ms));
        let payload = Proposal { time, entries }.to_payload();
        self.pbft.propose(now, payload, &mut self.protocol);
        self.next_tick = now.mono.plus(self.tick_pause());
    }

    /// Somebody waits for a checkpoint: a replaced member, a peer that needs a snapshot of now, or a segment's log that
    /// outgrows what snapshots cover.
    pub(crate) fn window_must_move(&self) -> bool {
        self.snapshot_wanted || self.learners_wait() || self.segment_outgrows()
    }

    /// We would write no snapshot at the next checkpoint, though others may: there is no haste. The log would fill with entries
    /// that help nobody, and everybody's snapshots be overtaken before those who lag have fetched one, ourselves maybe.
    fn moves_slowly(&self) -> bool {
        !self.learners_wait() && !self.may_freeze()
    }

    fn segment_outgrows(&self) -> bool {
        let bytes = self.setup.settings.segment.limits.log_bytes_max / 4;
        let of_open = self.segment.is_some() && self.segment_coverable(bytes, 3);
        (of_open || self.closed_uncovered >= bytes) && self.saving.is_none()
    }

    fn learners_wait(&self) -> bool {
        let stable = self.pbft.stable_sequence();
        let executed = self.control.executed.0;
        let window = self.setup.genesis.window;
        // A segment takes it in once its vote is certain whatever checkpoint is stable.
        let segments = self.setup.raft.is_some() && self.control.steering.wants_segments();
        self.control.configurations.latest().members.iter().any(|member| {
            let replaced = member.votes_after != dwcp_base::Sequence::ZERO;
            member.votes_after > stable
                || (segments && replaced && executed < member.votes_after.0.saturating_add(window))
        })
    }
}
