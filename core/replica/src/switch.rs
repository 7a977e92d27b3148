//! What the root orders about protocols, executed: modes, policies, and the ends and beginnings of segments. Called by
//! `apply`, in the order of the root; nothing here decides what to propose.

use crate::apply::entry_digest;
use crate::control::Control;
use crate::io::{Event, OrderOutcome};
use crate::replica::{Outbox, Replica};
use crate::steering::Ending;
use alloc::string::ToString;
use dwcp_base::{Configuration, ConfigurationId, Index, LogTime, Mutant, Now, Sequence};
use dwcp_log::fold::Closed;
use dwcp_log::{CloseProof, Decide, OperatorOrder, SignedModeOrder, SignedPolicyOrder, Switch};
use dwcp_state::{StateMachine, state_digest};

impl<M: StateMachine> Replica<M> {
    /// An operator's mode order was ordered.
    pub(crate) fn apply_mode(
        &mut self,
        now: Now,
        signed: &SignedModeOrder,
        sequence: Sequence,
        out: &mut Outbox,
    ) {
        let open = self.control.fold.segment().is_some();
        let (key, ..) = signed.signature_item(self.cluster);
        let judged = if self.is_admin(&key) {
            self.control.steering.judge_mode(&signed.order)
        } else {
            Err("the order is not signed by an admin of the registry")
        };
        let outcome = match judged {
            Ok(()) => {
                self.control.steering.on_mode(&signed.order, open);
                out.event(Event::ModeOrdered { sequence, mode: signed.order.mode });
                self.next_tick = now.mono;
                OrderOutcome::Done { sequence }
            }
            Err(reason) => {
                self.count("mode orders refused");
                OrderOutcome::Refused { reason: reason.to_string() }
            }
        };
        self.settle_order(&OperatorOrder::Mode(signed.clone()), &outcome, out);
    }

    /// An operator's policy order was ordered. Segments follow it at once; votes and certificates name the configuration
    /// that carries it behind the window, as with members.
    pub(crate) fn apply_policy(&mut self, signed: &SignedPolicyOrder, sequence: Sequence, out: &mut Outbox) {
        let open = self.control.fold.segment().is_some();
        let (key, ..) = signed.signature_item(self.cluster);
        let judged = if self.is_admin(&key) {
            self.control.steering.judge_policy(&signed.order)
        } else {
            Err("the order is not signed by an admin of the registry")
        };
        let outcome = match judged {
            Ok(policy) => {
                self.control.steering.on_policy(&signed.order, policy, open);
                let after = sequence.plus(self.setup.genesis.window);
                let current = self.control.configurations.latest();
                let id = ConfigurationId(current.id.0 + 1);
                let configuration = Configuration { id, policy, members: current.members.clone() };
                self.control.configurations.push(after, configuration.clone());
                self.pbft.push_configuration(after, configuration);
                OrderOutcome::Done { sequence }
            }
            Err(reason) => {
                self.count("policy orders refused");
                OrderOutcome::Refused { reason: reason.to_string() }
            }
        };
        self.settle_order(&OperatorOrder::Policy(signed.clone()), &outcome, out);
    }

    /// A member's own word that it takes no part in the open segment any more was ordered.
    pub(crate) fn apply_decide(&mut self, decide: &Decide) {
        let Some(segment) = self.control.fold.segment() else { return };
        let steering = &self.control.steering;
        let speaker = decide.sealed.said.speaker;
        let ripe = steering.may_end_sealed(speaker, steering.time, self.setup.genesis.calm_ms);
        let of_this = decide.sealed.said.epoch == segment.epoch;
        if !ripe || !of_this || !self.word_holds(&decide.sealed) {
            return self.count("decisions without effect");
        }
        self.control.steering.on_sealed_alone(speaker);
    }

    /// A switch was ordered: all of it takes effect or nothing does.
    pub(crate) fn apply_switch(&mut self, now: Now, switch: &Switch, sequence: Sequence, out: &mut Outbox) {
        let by_own_clock = self.setup.mutants.on(Mutant::CalmByOwnClock);
        let time = if by_own_clock { LogTime(now.wall_ms) } else { self.control.steering.time };
        let calm_ms = self.setup.genesis.calm_ms;
        let mut after = self.control.steering.clone();
        let mut forced = false;
        if let Some(close) = &switch.close {
            let held = self
                .control
                .fold
                .segment()
                .is_some_and(|segment| self.court().judge_close(segment, close).is_ok());
            if !held {
                return self.count("switches without effect");
            }
            forced = after.is_forced(close);
            after.on_close(time, forced, calm_ms);
        } else if self.control.fold.segment().is_some() {
            return self.count("switches without effect");
        }
        if let Some(open) = &switch.open
            && self.control.judge_open(&after, sequence, self.setup.genesis.window, open, time).is_err()
        {
            return self.count("switches without effect");
        }
        if let Some(open) = &switch.open
            && forced
            && !self.control.may_lead_after_force(open.first_leader)
        {
            return self.count("switches without effect");
        }
        if let Some(close) = &switch.close {
            let ending = self.control.steering.ending;
            let marker = matches!(close.proof, CloseProof::Marker);
            let gone = self.control.gone();
            let closed = {
                let Self { control, cluster, crypto, pbft, setup, .. } = self;
                let Control { fold, steering, .. } = control;
                let members = fold.segment().map(|segment| segment.open.members.clone()).unwrap_or_default();
                let voters = |speaker: dwcp_log::seal::Speaker| {
                    let known = steering.voters.as_ref()?;
                    let member = known.member(speaker.id)?;
                    let counts = known.id == speaker.configuration
                        && member.incarnation == speaker.incarnation
                        && members.contains(&speaker.id);
                    counts.then_some(member.vote_key)
                };
                let quorum = pbft.quorum();
                let bench = dwcp_log::close::Bench {
                    cluster: *cluster,
                    quorum,
                    crypto: &**crypto,
                    voters: &voters,
                    gone,
                    mutants: setup.mutants,
                };
                fold.close(&bench, close.clone())
            };
            let Ok(closed) = closed else { return self.count("switches without effect") };
            self.control.steering = after;
            self.close_segment(now, sequence, closed, forced, marker, ending, out);
        }
        if let Some(open) = switch.open.clone() {
            self.open_segment(now, sequence, open, out);
        }
        if switch.close.is_some() && self.segment.is_none() {
            self.hand_back(now, out);
        }
    }

    fn open_segment(&mut self, now: Now, sequence: Sequence, open: dwcp_log::Open, out: &mut Outbox) {
        let state = state_digest(&self.state.chunk_digests());
        let first_leader = open.first_leader;
        let Ok(segment) = self.control.fold.open(sequence, state, open) else {
            return self.count("switches without effect");
        };
        let (epoch, base) = (segment.epoch, segment.base.position);
        let admins = self.admins();
        let voters = self.control.configurations.latest().clone();
        self.control.steering.on_open(self.control.steering.time, admins, voters);
        self.opening = None;
        self.begin_segment(now, out);
        let member = self.segment.as_ref().is_some_and(|segment| segment.raft.is_some());
        if !self.recovering {
            out.event(Event::SegmentOpened { epoch, sequence, base, first_leader, member });
        }
        self.switches.opened(now, epoch, sequence);
    }

    /// Executes what the segment left, then what was deferred; from then on the root is the log again.
    #[expect(clippy::too_many_arguments, reason = "what is known of one Close")]
    fn close_segment(
        &mut self,
        now: Now,
        sequence: Sequence,
        closed: Closed,
        forced: bool,
        marker: bool,
        ending: Option<Ending>,
        out: &mut Outbox,
    ) {
        let tail = closed.close.tail;
        let epoch = closed.segment.epoch;
        if self.setup.mutants.on(Mutant::DeferredFirst) {
            self.run_deferred(now, &closed, out);
        }
        let (entries, rolled_back) = self.take_tail(now, tail, &closed.segment.anchored(), out);
        for entry in &entries {
            self.execute_entry(now, entry, out);
        }
        let own_last = self
            .segment
            .as_ref()
            .and_then(|segment| segment.raft.as_ref())
            .map_or(Index::ZERO, |raft| raft.last().index);
        let applied = self.segment.as_ref().map(|segment| segment.applied.index);
        assert!(
            self.setup.mutants.any() || (applied == Some(tail.index) && self.live == closed.ends),
            "a Close is executed with all entries up to its tail"
        );
        self.live = closed.ends;
        self.answer_all_waiting(out);
        self.note_uncovered();
        self.retire_segment(now, out);
        self.fetch = None;
        let deferred = u32::try_from(closed.deferred.len()).unwrap_or(u32::MAX);
        if !self.setup.mutants.on(Mutant::DeferredFirst) {
            self.run_deferred(now, &closed, out);
        }
        if !self.recovering {
            out.event(Event::SegmentClosed {
                epoch,
                sequence,
                tail: tail.index,
                position: closed.ends.position,
                forced,
                marker,
                cut: own_last.0.saturating_sub(tail.index.0),
                rolled_back,
                deferred,
            });
        }
        let cause = match ending {
            Some(ending) => ending.word(),
            None => "the segment did not move",
        };
        self.switches.closed(now, epoch, sequence, !forced, cause);
        self.next_tick = now.mono;
    }

    fn run_deferred(&mut self, now: Now, closed: &Closed, out: &mut Outbox) {
        for batch in &closed.deferred {
            let frames: alloc::vec::Vec<_> = batch.frames.iter().map(|(_, frame)| frame.clone()).collect();
            let position = self.control.fold.append_deferred(&entry_digest(batch.time, &frames));
            self.live = self.control.fold.log();
            let chain = self.live.chain;
            self.state.begin_entry(position, batch.time);
            let commands = self.run_frames(now, &frames, false, out);
            if !self.recovering {
                out.event(Event::DeferredExecuted { sequence: batch.sequence, position, chain, commands });
            }
        }
    }

    /// Commands that were on their way through the segment wait for the root now, under the same ids.
    fn hand_back(&mut self, now: Now, out: &mut Outbox) {
        if self.setup.mutants.on(Mutant::PoolForgetsAtClose) {
            self.pool = crate::pool::Pool::default();
        }
        self.pool.new_turn();
        self.pool.restart_clocks(now.mono);
        if self.recovering {
            return;
        }
        if let Some(primary) = self.orderer().filter(|primary| *primary != self.setup.me) {
            self.show_all_to(primary, out);
        }
    }

    /// What was executed past the last Anchor is not part of the log: somebody lied. Back to the state at that Anchor.
    pub(crate) fn roll_back(&mut self, _now: Now, _out: &mut Outbox) -> u64 {
        let Some(segment) = &mut self.segment else { return 0 };
        let frozen = &segment.anchors.frozen;
        let lost = segment.applied.index.0.saturating_sub(frozen.place.index.0);
        let mut restorer =
            dwcp_state::State::restore(&self.setup.genesis, (self.make_machine)(), self.setup.mutants);
        for (index, digest) in (0..).zip(frozen.state.digests()) {
            let chunk = frozen.state.chunk(index).expect("a frozen state can be written out");
            restorer.chunk(index, &chunk, digest).expect("a frozen state is what its digests say");
        }
        self.state = restorer.finish().expect("a frozen state is whole");
        self.live = frozen.log;
        segment.applied = frozen.place;
        // Results of what is taken back must never be told, least of all under the certificate of what replaces it.
        segment.anchors.forget_waiting_after(frozen.log.position);
        self.count("segments rolled back");
        lost
    }

    /// A replaced member that votes again is to be part of a segment.
    pub(crate) fn note_readmission(&mut self, sequence: Sequence) {
        let Some(segment) = self.control.fold.segment() else { return };
        let members = self.control.segment_members(sequence, self.setup.genesis.window);
        if members != segment.open.members && self.control.steering.ending.is_none() {
            self.control.steering.ending = Some(Ending::Readmission);
        }
    }
}
