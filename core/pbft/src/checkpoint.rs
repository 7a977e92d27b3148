//! Checkpoints and garbage collection, OSDI '99 section 4.3: every `interval` sequences replicas sign their state's
//! digest; `q` equal ones make it stable, and nothing below it is needed to agree any more.

use crate::certificate::Votes;
use crate::message::{Certificate, Message, Signed, Vote};
use crate::output::{Action, Output};
use crate::record::Record;
use crate::state::Pbft;
use dwcp_base::{Hash, Mutant, Now, ReplicaId, Sequence, View};

impl Pbft {
    /// Whether the caller must report the state's digest after executing this sequence.
    #[must_use]
    pub fn is_checkpoint(&self, sequence: Sequence) -> bool {
        sequence.0.is_multiple_of(self.interval)
    }

    /// The caller executed a checkpoint's sequence and its state has this digest.
    pub fn on_executed(&mut self, now: Now, sequence: Sequence, digest: Hash, out: &mut Output) {
        if sequence <= self.stable_sequence() {
            self.compare_with_stable(sequence, digest, out);
            self.forget_settled();
            return;
        }
        self.own_digests.insert(sequence, digest);
        if self.may_vote(sequence) {
            let vote = self.sign(self.claim(Vote::Checkpoint, View::ZERO, sequence, digest));
            self.own_checkpoint = Some(vote);
            self.checkpoints.entry(sequence).or_default().add(vote, self.mutants);
            // The signature says "I hold this state": everything it was computed from must be durable here first.
            let after = out.last_ticket();
            out.push(Action::Broadcast { message: Message::Vote(vote), after });
        }
        self.try_stable(now, sequence, out);
    }

    pub(crate) fn on_checkpoint(&mut self, now: Now, from: ReplicaId, signed: Signed, out: &mut Output) {
        let claim = signed.statement.claim;
        if claim.view != View::ZERO || !self.is_checkpoint(claim.sequence) {
            return self.refuse(from, "a checkpoint at a sequence that has none", out);
        }
        // Two windows ahead are counted too: a replica that lags learns from them that it does.
        let high = self.stable_sequence().0.saturating_add(2 * self.window);
        if claim.sequence <= self.stable_sequence() || signed.statement.sender == self.me {
            return;
        }
        if claim.sequence.0 > high && !self.mutants.on(Mutant::NoWatermarks) {
            return; // Standings will tell how far behind we are.
        }
        if self.checkpoints.get(&claim.sequence).is_some_and(|votes| votes.has(signed.statement.sender))
            && !self.mutants.on(Mutant::DuplicateVotesCounted)
        {
            return;
        }
        if let Err(reason) = self.verifier().vote(&signed) {
            return self.refuse(from, reason, out);
        }
        self.checkpoints.entry(claim.sequence).or_default().add(signed, self.mutants);
        self.try_stable(now, claim.sequence, out);
    }

    fn try_stable(&mut self, now: Now, sequence: Sequence, out: &mut Output) {
        let needed = if self.mutants.on(Mutant::WeakCheckpoint) { 1 } else { self.quorum.q() };
        let Some(digest) = self.checkpoints.get(&sequence).and_then(|votes| votes.winner(needed)) else {
            return;
        };
        let claim = self.claim(Vote::Checkpoint, View::ZERO, sequence, digest);
        let certificate =
            self.checkpoints.get(&sequence).map(|votes: &Votes| votes.certificate(claim, needed));
        if let Some(certificate) = certificate {
            self.adopt_stable(now, certificate, out);
        }
    }

    /// A verified stable checkpoint, ours or learned.
    pub(crate) fn adopt_stable(&mut self, now: Now, certificate: Certificate, out: &mut Output) {
        let (sequence, digest) = (certificate.claim.sequence, certificate.claim.digest);
        if sequence <= self.stable_sequence() {
            return;
        }
        out.persist(Record::Stable(certificate.clone()));
        self.stable = Some(certificate);
        out.push(Action::Stable { sequence, digest });
        if let Some(own) = self.own_digests.get(&sequence).copied() {
            self.compare_with_stable(sequence, own, out);
        }
        self.next_sequence = self.next_sequence.max(sequence.next());
        self.forget_settled();
        if self.delivered < sequence {
            self.seek_help(now, out);
        }
    }

    fn compare_with_stable(&mut self, sequence: Sequence, own: Hash, out: &mut Output) {
        let Some(stable) = &self.stable else { return };
        let certified = stable.claim.digest;
        if stable.claim.sequence == sequence && certified != own {
            out.push(Action::Diverged { sequence, own, certified });
        }
    }

    /// Lets go of what is both stable and executed; of everything stable when we are a whole window behind, and of
    /// everything a whole window behind what we executed.
    pub(crate) fn forget_settled(&mut self) {
        let stable = self.stable_sequence();
        let far_behind = stable.0.saturating_sub(self.delivered.0) > self.window;
        let overtaken = Sequence(self.delivered.0.saturating_sub(self.window));
        let settled = if far_behind { stable } else { stable.min(self.delivered).max(overtaken) };
        if self.mutants.on(Mutant::NoWatermarks) && settled == Sequence::ZERO {
            return;
        }
        self.slots = self.slots.split_off(&settled.next());
        self.checkpoints = self.checkpoints.split_off(&stable.next());
        self.own_digests = self.own_digests.split_off(&stable.next());
        // What is not executed yet is still to be verified, under the configuration of its time.
        self.configurations.forget_before(settled.min(self.delivered));
    }

    /// The caller installed a certified snapshot at `sequence`.
    pub fn on_installed(
        &mut self,
        now: Now,
        certificate: Certificate,
        configurations: crate::Configurations,
        out: &mut Output,
    ) {
        let sequence = certificate.claim.sequence;
        self.configurations = configurations;
        self.adopt_stable(now, certificate, out);
        self.reached = self.reached.max(self.delivered);
        self.delivered = sequence;
        self.snapshot = sequence;
        self.next_sequence = self.next_sequence.max(sequence.next());
        // After a divergence this may take us back: what was delivered since is fetched and delivered again.
        self.history.clear();
        self.count_history();
        self.muted = false;
        self.held = false;
        self.own_digests = self.own_digests.split_off(&sequence.next());
        self.timers.catching_up_until = dwcp_base::Micros::ZERO;
        self.forget_settled();
        self.deliver_ready(now, out);
    }
}
