//! The normal case, OSDI '99 section 4.2: pre-prepare, prepare, commit, deliver in order.

use crate::message::{Claim, Decided, Message, PreparedCertificate, Signed, Vote};
use crate::output::{Action, Output};
use crate::record::Record;
use crate::slot::Slot;
use crate::state::{Application, FUTURE_BYTES_MAX, FUTURE_MESSAGES_MAX, Pbft};
use bytes::Bytes;
use dwcp_base::{Hash, Mutant, Now, PublicKey, ReplicaId, Sequence, View};
use dwcp_log::entry::payload_digest;

impl Pbft {
    /// How many more payloads the primary may propose now: the pipe has room and the window is open.
    #[must_use]
    pub fn room(&self) -> u64 {
        if !self.is_primary() || !self.is_introduced() || !self.may_vote(self.next_sequence) {
            return 0;
        }
        let in_flight = self.next_sequence.0.saturating_sub(self.delivered.0 + 1);
        let window_end = self.stable_sequence().0 + self.window;
        let window_left = (window_end + 1).saturating_sub(self.next_sequence.0);
        self.pipeline_depth.saturating_sub(in_flight).min(window_left)
    }

    /// The primary assigns a payload to the next sequence. The caller has checked the payload as a backup would and
    /// has seen `room`.
    ///
    /// # Panics
    /// When there is no room.
    pub fn propose(&mut self, now: Now, payload: Bytes, out: &mut Output) -> Sequence {
        assert!(self.room() > 0, "propose needs room");
        let sequence = self.next_sequence;
        self.next_sequence = sequence.next();
        let digest = payload_digest(&payload);
        let proposal = self.sign(self.claim(Vote::PrePrepare, self.view, sequence, digest));
        self.accept(now, proposal, Some(payload.clone()), out);
        let after = self.after(self.vote_ticket);
        out.push(Action::Broadcast { message: Message::PrePrepare { proposal, payload }, after });
        self.advance(now, sequence, out);
        sequence
    }

    pub(crate) fn inside_window(&self, sequence: Sequence) -> bool {
        let low = self.stable_sequence();
        (sequence > low && sequence.0 <= low.0 + self.window) || self.mutants.on(Mutant::NoWatermarks)
    }

    pub(crate) fn on_pre_prepare(
        &mut self,
        now: Now,
        from: ReplicaId,
        proposal: Signed,
        payload: Bytes,
        application: &mut dyn Application,
        out: &mut Output,
    ) {
        let claim = proposal.statement.claim;
        if claim.vote != Vote::PrePrepare || proposal.statement.sender != claim.view.primary(self.quorum.n())
        {
            return self.refuse(from, "a pre-prepare by another than the view's primary", out);
        }
        if claim.view > self.view || (claim.view == self.view && !self.active) {
            return self.keep_for_later(from, claim.view, Message::PrePrepare { proposal, payload });
        }
        if claim.view < self.view || !self.inside_window(claim.sequence) {
            return; // Late, or from a time we have not reached: standings heal it.
        }
        if proposal.statement.sender == self.me {
            return;
        }
        if let Some(accepted) = self.slots.get(&claim.sequence).and_then(|slot| slot.accepted) {
            let known = accepted.statement.claim.digest;
            if known == claim.digest {
                // A NEW-VIEW brought the assignment, this brings the payload.
                return self.on_payload(now, from, claim.sequence, payload, out);
            }
            if !self.mutants.on(Mutant::PrepareTwice) {
                return self.refuse(from, "a second pre-prepare for one slot", out);
            }
        }
        if payload_digest(&payload) != claim.digest {
            return self.refuse(from, "a pre-prepare whose digest is not its payload's", out);
        }
        if let Err(reason) = self.verifier().vote(&proposal) {
            return self.refuse(from, reason, out);
        }
        if let Err(reason) = application.check(now, &payload) {
            return self.refuse(from, reason, out);
        }
        self.note_vote(proposal);
        self.accept(now, proposal, Some(payload), out);
        self.advance(now, claim.sequence, out);
    }

    /// Accepts an assignment in the current view and, as a backup that holds the payload, says so.
    pub(crate) fn accept(&mut self, now: Now, proposal: Signed, payload: Option<Bytes>, out: &mut Output) {
        let claim = proposal.statement.claim;
        let may_vote = self.may_vote(claim.sequence);
        let mutants = self.mutants;
        let slot = self.slots.entry(claim.sequence).or_default();
        slot.accepted = Some(proposal);
        slot.accepted_at = now.mono;
        let fresh = payload.filter(|_| !slot.payloads.contains_key(&claim.digest));
        if let Some(payload) = &fresh {
            slot.payloads.insert(claim.digest, payload.clone());
        }
        if !slot.holds(&claim.digest) {
            return; // Voted on once its payload is here.
        }
        slot.note_pre_prepared(claim.digest, claim.view);
        self.first_vote = Some(self.first_vote.map_or(claim.sequence, |first| first.min(claim.sequence)));
        let null_forgotten = mutants.on(Mutant::NullNotDurable) && claim.digest == payload_digest(&[]);
        if !null_forgotten {
            let ticket = out.persist(Record::PrePrepared { proposal, payload: fresh });
            slot.note_ticket(ticket);
            self.kept_tickets.keep(claim.sequence, ticket);
            self.vote_ticket = ticket;
        }
        if may_vote && proposal.statement.sender != self.me {
            let prepare = self.sign(Claim { vote: Vote::Prepare, ..claim });
            self.slots.get_mut(&claim.sequence).expect("it was just made").prepares.add(prepare, mutants);
            let after = self.after(self.vote_ticket);
            out.push(Action::Broadcast { message: Message::Vote(prepare), after });
        }
    }

    /// A payload that a NEW-VIEW's assignment or a decision was waiting for.
    pub(crate) fn on_payload(
        &mut self,
        now: Now,
        from: ReplicaId,
        sequence: Sequence,
        payload: Bytes,
        out: &mut Output,
    ) {
        let digest = payload_digest(&payload);
        let Some(slot) = self.slots.get_mut(&sequence) else { return };
        let decided = slot.decided.as_ref().map(|certificate| certificate.claim.digest);
        let wanted = slot.digest() == Some(digest)
            || decided == Some(digest)
            || slot.commits.winner(1) == Some(digest);
        if slot.holds(&digest) {
            return;
        }
        if !wanted {
            return self.refuse(from, "a payload nobody asked for", out);
        }
        if let Some(proposal) = slot.accepted.filter(|accepted| accepted.statement.claim.digest == digest) {
            self.accept(now, proposal, Some(payload), out);
        } else {
            slot.payloads.insert(digest, payload.clone());
            let ticket = out.persist(Record::Payload { sequence, payload });
            slot.note_ticket(ticket);
            self.kept_tickets.keep(sequence, ticket);
        }
        self.advance(now, sequence, out);
    }

    /// A prepare or commit.
    pub(crate) fn on_slot_vote(&mut self, now: Now, from: ReplicaId, signed: Signed, out: &mut Output) {
        let Claim { vote, view, sequence, .. } = signed.statement.claim;
        let sender = signed.statement.sender;
        if sender == self.me {
            return;
        }
        if view > self.view || (view == self.view && !self.active) {
            return self.keep_for_later(from, view, Message::Vote(signed));
        }
        let stale = view < self.view && !self.mutants.on(Mutant::StaleViewVotesCounted);
        if stale || !self.inside_window(sequence) {
            return;
        }
        if vote == Vote::Prepare && sender == view.primary(self.quorum.n()) {
            return self.refuse(from, "a prepare by the primary, whose pre-prepare counts already", out);
        }
        if !self.would_count(&signed) {
            return;
        }
        if let Err(reason) = self.verifier().vote(&signed) {
            return self.refuse(from, reason, out);
        }
        self.note_vote(signed);
        let mutants = self.mutants;
        let slot = self.slots.entry(sequence).or_default();
        match vote {
            Vote::Prepare => slot.prepares.add(signed, mutants),
            Vote::Commit => slot.commits.add(signed, mutants),
            Vote::PrePrepare | Vote::Checkpoint => return,
        };
        self.advance(now, sequence, out);
    }

    /// Whether a prepare or commit of the current view could still change its slot. One that cannot is not worth a
    /// signature check.
    fn would_count(&self, signed: &Signed) -> bool {
        let claim = signed.statement.claim;
        let Some(slot) = self.slots.get(&claim.sequence) else { return true };
        let votes = if claim.vote == Vote::Prepare { &slot.prepares } else { &slot.commits };
        let decided = slot.decided.as_ref().is_some_and(|certificate| certificate.claim.view >= self.view);
        let settled = decided || (claim.vote == Vote::Prepare && slot.prepared_in(self.view));
        let repeated = votes.has(signed.statement.sender) && !self.mutants.on(Mutant::DuplicateVotesCounted);
        !(settled || repeated)
    }

    /// The signature that handling this message would verify by itself, if it is one that may be verified ahead,
    /// together with others: see [`Pbft::prove`].
    #[must_use]
    pub fn signature_ahead(&self, message: &Message) -> Option<(Signed, PublicKey, Hash)> {
        let (Message::Vote(signed) | Message::PrePrepare { proposal: signed, .. }) = message else {
            return None;
        };
        let claim = signed.statement.claim;
        let wanted = match claim.vote {
            Vote::Prepare | Vote::Commit => {
                claim.view == self.view && self.inside_window(claim.sequence) && self.would_count(signed)
            }
            Vote::PrePrepare => claim.view == self.view && self.inside_window(claim.sequence),
            Vote::Checkpoint => claim.sequence > self.stable_sequence(),
        };
        let (key, hash, _) = self.verifier().vote_item(signed).ok().flatten().filter(|_| wanted)?;
        Some((*signed, key, hash))
    }

    /// This vote's signature was verified by the caller. Remembered until [`Pbft::forget_proven`].
    pub fn prove(&mut self, signed: Signed) {
        self.proven.insert(signed);
    }

    pub fn forget_proven(&mut self) {
        self.proven.clear();
    }

    /// Moves a slot as far as its votes carry it.
    pub(crate) fn advance(&mut self, now: Now, sequence: Sequence, out: &mut Output) {
        // Its payload may have come by another road, with a decision of an earlier view: no COMMIT may leave for what
        // the Q-set does not name, and our disk not account for.
        if let Some(proposal) = self.slots.get(&sequence).and_then(Slot::unnoted) {
            self.accept(now, proposal, None, out);
        }
        self.try_prepare(sequence, out);
        self.try_decide(now, sequence, out);
    }

    /// Prepared: the pre-prepare and `q - 1` matching prepares (2f with n = 3f + 1).
    fn try_prepare(&mut self, sequence: Sequence, out: &mut Output) {
        let (view, q, may_vote) = (self.view, self.quorum.q(), self.may_vote(sequence));
        let Some(slot) = self.slots.get_mut(&sequence) else { return };
        let Some(accepted) = slot.accepted else { return };
        let digest = accepted.statement.claim.digest;
        if !slot.prepared_in(view) {
            if !slot.holds(&digest) || slot.prepares.count(&digest) + 1 < q {
                return;
            }
            let prepares = slot.prepares.matching(&digest).take(q - 1).copied().collect();
            let certificate = PreparedCertificate { pre_prepare: accepted, prepares };
            slot.prepared = Some(certificate.clone());
            let ticket = out.persist(Record::Prepared(certificate));
            slot.note_ticket(ticket);
            self.vote_ticket = ticket;
        }
        let slot = self.slots.get_mut(&sequence).expect("it was just there");
        if slot.commit_sent || !may_vote {
            return;
        }
        slot.commit_sent = true;
        let commit = self.sign(Claim { vote: Vote::Commit, ..accepted.statement.claim });
        let mutants = self.mutants;
        self.slots.get_mut(&sequence).expect("it was just there").commits.add(commit, mutants);
        let after = self.after(self.vote_ticket);
        out.push(Action::Broadcast { message: Message::Vote(commit), after });
    }

    /// Decided: `q` matching commits of one view. They prove the decision whether or not we prepared it ourselves.
    fn try_decide(&mut self, now: Now, sequence: Sequence, out: &mut Output) {
        let q = self.quorum.q();
        let view = self.view;
        let mutants = self.mutants;
        let Some(slot) = self.slots.get_mut(&sequence) else { return };
        if slot.decided.is_none() {
            let too_early = (mutants.on(Mutant::ExecutePrepared) && slot.prepared_in(view))
                || (mutants.on(Mutant::ReplyBeforeCommit)
                    && slot.digest().is_some_and(|digest| slot.holds(&digest)));
            let decided = if too_early { slot.digest() } else { slot.commits.winner(q) };
            let Some(digest) = decided else { return };
            let claim = Claim {
                vote: Vote::Commit,
                configuration: self.configurations.at(sequence).id,
                view,
                sequence,
                digest,
            };
            let certificate = slot.commits.certificate(claim, q);
            slot.decided = Some(certificate.clone());
            if sequence > self.delivered {
                let ticket = out.persist(Record::Committed(certificate));
                slot.note_ticket(ticket);
                self.kept_tickets.keep(sequence, ticket);
            }
            if !slot.holds(&digest) {
                out.push(Action::Broadcast {
                    message: Message::FetchPayload { sequence, digest },
                    after: dwcp_base::Ticket::ZERO,
                });
            }
        }
        self.deliver_ready(now, out);
    }

    /// Hands decided slots to the caller, in order.
    pub(crate) fn deliver_ready(&mut self, now: Now, out: &mut Output) {
        if self.held {
            return;
        }
        if self.mutants.on(Mutant::ExecuteOutOfOrder) {
            return self.deliver_any(now, out);
        }
        let before = self.delivered;
        while let Some(decided) = self.next_decided() {
            self.deliver_one(now, decided, out);
        }
        // A slot further on than a window was voted on by replicas whose stable checkpoint lies within a window of it, so
        // whatever is below that is settled though we have not seen the certificate yet.
        let overtaken = self.delivered.0 > self.stable_sequence().0 + self.window;
        if before < self.delivered && (before < self.stable_sequence() || overtaken) {
            self.forget_settled();
        }
    }

    fn next_decided(&self) -> Option<Decided> {
        let slot = self.slots.get(&self.delivered.next())?;
        let certificate = slot.decided.clone()?;
        let payload = slot.payloads.get(&certificate.claim.digest).cloned()?;
        Some(Decided { certificate, payload })
    }

    pub(crate) fn deliver_one(&mut self, now: Now, decided: Decided, out: &mut Output) {
        self.delivered = decided.certificate.claim.sequence;
        self.next_sequence = self.next_sequence.max(self.delivered.next());
        self.note_progress(now, &decided);
        self.remember_decided(decided.clone());
        let view = decided.certificate.claim.view;
        out.push(Action::Deliver(decided, view));
    }

    /// Proof builds only: the mutant that executes slots as they are decided.
    fn deliver_any(&mut self, now: Now, out: &mut Output) {
        let ready: alloc::vec::Vec<Decided> = self
            .slots
            .range(self.delivered.next()..)
            .filter(|(sequence, _)| !self.history.contains_key(sequence))
            .filter_map(|(_, slot)| {
                let certificate = slot.decided.clone()?;
                let payload = slot.payloads.get(&certificate.claim.digest).cloned()?;
                Some(Decided { certificate, payload })
            })
            .collect();
        for decided in ready {
            let before = self.delivered;
            let sequence = decided.certificate.claim.sequence;
            self.deliver_one(now, decided, out);
            if sequence != before.next() {
                self.delivered = before;
            }
        }
    }

    /// Remembers the highest vote of each member, to remind it when it comes back.
    pub(crate) fn note_vote(&mut self, signed: Signed) {
        let place = |signed: &Signed| (signed.statement.claim.view, signed.statement.claim.sequence);
        let known = self.last_votes.get(&signed.statement.sender);
        if known.is_none_or(|known| place(known) < place(&signed)) {
            self.last_votes.insert(signed.statement.sender, signed);
        }
        let highest = self.highest_votes.entry(signed.statement.sender).or_insert(signed);
        if highest.statement.claim.sequence < signed.statement.claim.sequence {
            *highest = signed;
        }
    }

    /// Keeps a message of a view we are about to enter, within the sender's share.
    pub(crate) fn keep_for_later(&mut self, from: ReplicaId, view: View, message: Message) {
        let size = kept_bytes;
        let unbounded = self.mutants.on(Mutant::NoWatermarks);
        if view.0 > self.view.0.saturating_add(u64::from(self.quorum.n())) && !unbounded {
            return;
        }
        let queue = self.future.entry(from).or_default();
        queue.push_back(message);
        let mut bytes: usize = queue.iter().map(size).sum();
        while (bytes > FUTURE_BYTES_MAX || queue.len() > FUTURE_MESSAGES_MAX) && !unbounded {
            bytes -= queue.pop_front().map_or(0, |oldest| size(&oldest));
        }
    }

    /// How many messages of views to come are kept of this sender, and their bytes as counted towards its share.
    #[must_use]
    pub fn kept_for_later(&self, from: ReplicaId) -> (usize, usize) {
        let queue = self.future.get(&from);
        queue.map_or((0, 0), |queue| (queue.len(), queue.iter().map(kept_bytes).sum()))
    }
}

/// What a kept message counts towards its sender's share.
fn kept_bytes(message: &Message) -> usize {
    match message {
        Message::PrePrepare { payload, .. } => payload.len() + 256,
        _ => 256,
    }
}
