//! The primary's part: what to propose, and when. A batch leaves as soon as the pipe has room; under load frames gather
//! meanwhile, so batches grow by themselves and nothing ever waits for a clock.

use crate::replica::Replica;
use alloc::vec::Vec;
use dwcp_base::{LogTime, Mutant, Now};
use dwcp_log::{Proposal, RootEntry};
use dwcp_state::StateMachine;

impl<M: StateMachine> Replica<M> {
    /// Proposes what waits, as far as there is room.
    pub(crate) fn propose_pending(&mut self, now: Now) {
        while self.pbft.room() > 0 {
            let view = self.pbft.view();
            let mut entries = Vec::new();
            if let Some(order) = self.pool.next_order(view) {
                entries.push(RootEntry::Member(order));
            }
            let settings = &self.setup.settings;
            let frames_max =
                if self.setup.mutants.on(Mutant::FixedBatch) { 1 } else { settings.batch_frames_max };
            let frames = self.pool.next_batch(view, settings.batch_bytes_max, frames_max);
            if !frames.is_empty() {
                entries.push(RootEntry::Batch(frames));
            }
            if entries.is_empty() {
                return;
            }
            self.propose(now, entries);
        }
    }

    /// Lets log time pass while nothing happens, and fills the window behind a member's replacement.
    pub(crate) fn propose_tick(&mut self, now: Now) {
        if now.mono < self.next_tick {
            return;
        }
        if self.window_must_move() {
            while self.pbft.room() > 0 {
                self.propose(now, Vec::from([RootEntry::Noop]));
            }
            self.next_tick = now.mono.plus(dwcp_base::Micros::from_millis(1));
            return;
        }
        if self.state.wants_ticks().is_some() && self.pbft.room() > 0 {
            self.propose(now, Vec::from([RootEntry::Batch(Vec::new())]));
        }
        self.next_tick = now.mono.plus(self.setup.settings.tick_interval);
    }

    fn propose(&mut self, now: Now, entries: Vec<RootEntry>) {
        let time = self.state.log_time().max(LogTime(now.wall_ms));
        let payload = Proposal { time, entries }.to_payload();
        self.pbft.propose(now, payload, &mut self.protocol);
        self.next_tick = now.mono.plus(self.setup.settings.tick_interval);
    }

    /// Somebody waits for a checkpoint: a replaced member, or a peer that needs a snapshot of now.
    pub(crate) fn window_must_move(&self) -> bool {
        self.snapshot_wanted || self.learners_wait()
    }

    fn learners_wait(&self) -> bool {
        let stable = self.pbft.stable_sequence();
        self.control.configurations.latest().members.iter().any(|member| member.votes_after > stable)
    }
}
