//! Beginning a view: which slots it must carry over, NEW-VIEW messages, and entering. TOCS '02 section 4.5.
//!
//! [`choose`] is a pure function of the VIEW-CHANGEs, so that a primary's choice can be recomputed by every backup.
//!
//! Departs: a NEW-VIEW names its VIEW-CHANGEs by hash instead of carrying them; they are large and usually there, and
//! missing ones are fetched. Covered by the simulator's `a_new_view_is_recomputed_by_every_backup`.

use crate::catchup::PLACE_MAX;
use crate::message::{Certificate, Message, NewView, Signed, SignedBody, ViewChange, Vote};
use crate::output::{Action, Output};
use crate::record::{NewViewProof, Record};
use crate::state::{Application, Asked, Pbft};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use dwcp_base::{Hash, Mutant, Mutants, Now, Quorum, ReplicaId, Sequence, SigningKind, Ticket, decode};
use dwcp_log::entry::payload_digest;

/// What a new view begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The highest stable checkpoint among the VIEW-CHANGEs.
    pub stable: Option<Certificate>,
    /// A digest for every sequence above it up to the highest prepared one; `None` is the null request.
    pub slots: Vec<(Sequence, Option<Hash>)>,
}

/// Recomputes the choice from at least `q` VIEW-CHANGEs of one view. `None`: not decidable from these yet.
///
/// For a slot, the digest of the prepared certificate with the highest view is carried over (condition A1: no other
/// member of the set prepared something else in that view or later), if `f + 1` members hold its payload since
/// that view (A2). A slot that nobody prepared is null (B).
#[must_use]
pub fn choose(view_changes: &[&ViewChange], quorum: Quorum, mutants: Mutants) -> Option<Choice> {
    if view_changes.len() < quorum.q() {
        return None;
    }
    let stable = view_changes
        .iter()
        .filter_map(|body| body.stable.as_ref())
        .max_by_key(|stable| stable.claim.sequence);
    let low = stable.map_or(Sequence::ZERO, |stable| stable.claim.sequence);
    let mut best: BTreeMap<Sequence, (dwcp_base::View, Hash)> = BTreeMap::new();
    for certificate in view_changes.iter().flat_map(|body| &body.prepared) {
        let (sequence, view, digest) = (certificate.sequence(), certificate.view(), certificate.digest());
        if sequence <= low {
            continue;
        }
        let known = best.get(&sequence);
        let first_wins = mutants.on(Mutant::FirstProofNotHighest);
        if known.is_none_or(|(known, _)| !first_wins && *known < view) {
            best.insert(sequence, (view, digest));
        }
    }
    let high = best.keys().next_back().copied().unwrap_or(low);
    let mut slots = Vec::new();
    let mut sequence = low;
    while sequence < high {
        sequence = sequence.next();
        let digest = match best.get(&sequence) {
            None => None,
            Some((view, digest)) => {
                let holders = view_changes
                    .iter()
                    .filter(|body| {
                        body.pre_prepared.iter().any(|entry| {
                            entry.sequence == sequence && entry.digest == *digest && entry.view >= *view
                        })
                    })
                    .count();
                if holders < quorum.weak() {
                    return None;
                }
                Some(*digest)
            }
        };
        slots.push((sequence, digest));
    }
    Some(Choice { stable: stable.cloned(), slots })
}

pub(crate) fn parse(signed: &SignedBody) -> Option<NewView> {
    decode(&signed.body).ok()
}

impl Pbft {
    /// As the primary of the view we ask for: begins it as soon as enough VIEW-CHANGEs decide every slot.
    pub(crate) fn try_new_view(&mut self, now: Now, application: &mut dyn Application, out: &mut Output) {
        if self.active {
            return;
        }
        let view = self.view;
        // Those who went further have left this view's predecessors too: a quorum of them starts the clock, so that
        // replicas spread over several views meet again.
        if self.view_changes.len() < self.quorum.q() {
            return;
        }
        self.timers.quorum_left(now, &self.timing);
        let supporters: Vec<Asked> =
            self.view_changes.values().filter(|asked| asked.body.view == view).cloned().collect();
        if supporters.len() < self.quorum.q() || self.primary() != self.me || !self.is_voter() {
            return;
        }
        let bodies: Vec<&ViewChange> = supporters.iter().map(|asked| &asked.body).collect();
        let Some(choice) = choose(&bodies, self.quorum, self.mutants) else { return };
        let pre_prepares = choice
            .slots
            .iter()
            .map(|(sequence, digest)| {
                let digest = digest.unwrap_or_else(|| payload_digest(&[]));
                self.sign(self.claim(Vote::PrePrepare, view, *sequence, digest))
            })
            .collect();
        let body = NewView {
            view,
            configuration: self.configurations.latest().id,
            sender: self.me,
            incarnation: self.incarnation,
            view_changes: supporters.iter().map(|asked| (asked.body.sender, asked.hash)).collect(),
            pre_prepares,
        };
        let new_view = self.sign_body(SigningKind::NewView, &body);
        let view_changes = supporters.into_iter().map(|asked| asked.signed).collect();
        self.enter_view(now, NewViewProof { new_view: new_view.clone(), view_changes }, &body, &choice, out);
        let after = self.after(self.vote_ticket);
        out.push(Action::Broadcast { message: Message::NewView(new_view), after });
        self.begin_carried(now, &body, out);
        self.replay_future(now, application, out);
    }

    pub(crate) fn on_new_view(
        &mut self,
        now: Now,
        from: ReplicaId,
        signed: SignedBody,
        application: &mut dyn Application,
        out: &mut Output,
    ) {
        let Some(claimed) = parse(&signed) else { return self.refuse(from, "a malformed NEW-VIEW", out) };
        let late = claimed.view < self.view || (claimed.view == self.view && self.active);
        let pending = self.pending_new_views.get(&claimed.sender).and_then(parse);
        if late || claimed.sender == self.me || pending.is_some_and(|pending| pending.view >= claimed.view) {
            return;
        }
        let named = claimed.view_changes.len();
        if claimed.view.0 > PLACE_MAX || named < self.quorum.q() || named > usize::from(self.quorum.n()) {
            return self.refuse(from, "a NEW-VIEW that names no quorum", out);
        }
        if claimed.pre_prepares.len() as u64 > self.window {
            return self.refuse(from, "a NEW-VIEW of more slots than there are", out);
        }
        if let Err(reason) = self.verifier().new_view(&signed) {
            return self.refuse(from, reason, out);
        }
        self.pending_new_views.insert(claimed.sender, signed);
        self.forget_unnamed();
        for hash in self.awaited_view_changes() {
            let message = Message::FetchViewChange { hash };
            out.push(Action::Send { to: from, message, after: Ticket::ZERO });
        }
        self.try_adopt(now, application, out);
    }

    /// Enters the view of a pending NEW-VIEW once every VIEW-CHANGE it names is here and its choice is the right one.
    pub(crate) fn try_adopt(&mut self, now: Now, application: &mut dyn Application, out: &mut Output) {
        let pending: Vec<SignedBody> = self.pending_new_views.values().cloned().collect();
        for signed in pending {
            self.try_adopt_one(now, signed, application, out);
        }
    }

    fn try_adopt_one(
        &mut self,
        now: Now,
        signed: SignedBody,
        application: &mut dyn Application,
        out: &mut Output,
    ) {
        let Some(body) = parse(&signed) else { return };
        let late = body.view < self.view || (body.view == self.view && self.active);
        if late {
            self.pending_new_views.remove(&body.sender);
            return;
        }
        let named: Vec<Asked> =
            body.view_changes.iter().filter_map(|(_, hash)| self.named_view_change(hash).cloned()).collect();
        if named.len() < body.view_changes.len() {
            return;
        }
        self.pending_new_views.remove(&body.sender);
        match self.judge(&body, &named) {
            Ok(choice) => {
                let view_changes = named.into_iter().map(|asked| asked.signed).collect();
                self.enter_view(now, NewViewProof { new_view: signed, view_changes }, &body, &choice, out);
                self.begin_carried(now, &body, out);
                self.replay_future(now, application, out);
            }
            Err(reason) => {
                self.refuse(body.sender, reason, out);
                // Departs: OSDI '99 goes on to the next view. Only the view we asked for ourselves can disappoint us; a
                // liar's word must not make us leave another. Covered by `a_bogus_new_view_does_not_end_a_healthy_view`.
                if body.view == self.view && !self.active {
                    self.start_view_change(now, body.view.next(), "the new view was bogus", application, out);
                }
            }
        }
    }

    /// Whether a NEW-VIEW follows from the VIEW-CHANGEs it names.
    fn judge(&self, body: &NewView, named: &[Asked]) -> Result<Choice, &'static str> {
        let senders_match = body.view_changes.len() == named.len()
            && body.view_changes.windows(2).all(|pair| pair[0].0 < pair[1].0)
            && body.view_changes.iter().zip(named).all(|((sender, _), asked)| *sender == asked.body.sender);
        if !senders_match || named.iter().any(|asked| asked.body.view != body.view) {
            return Err("a NEW-VIEW that names VIEW-CHANGEs of other views or senders");
        }
        // A learner has no weight; who is one is judged by the newest checkpoint that anybody here proves.
        let proven = named.iter().map(|asked| asked.body.stable_sequence()).max().unwrap_or_default();
        if named.iter().any(|asked| !self.had_weight(asked.body.sender, asked.body.incarnation, proven)) {
            return Err("a NEW-VIEW that counts a learner");
        }
        let bodies: Vec<&ViewChange> = named.iter().map(|asked| &asked.body).collect();
        let choice =
            choose(&bodies, self.quorum, self.mutants).ok_or("a NEW-VIEW without enough VIEW-CHANGEs")?;
        let verifier = self.verifier();
        if !self.mutants.on(Mutant::NewViewUnchecked) {
            let same = choice.slots.len() == body.pre_prepares.len()
                && choice.slots.iter().zip(&body.pre_prepares).all(|((sequence, digest), proposal)| {
                    let claim = proposal.statement.claim;
                    claim.sequence == *sequence
                        && claim.digest == digest.unwrap_or_else(|| payload_digest(&[]))
                        && claim.view == body.view
                        && claim.vote == Vote::PrePrepare
                        && proposal.statement.sender == body.sender
                });
            if !same {
                return Err("a NEW-VIEW that does not follow from its VIEW-CHANGEs");
            }
        }
        for proposal in &body.pre_prepares {
            verifier.vote(proposal)?;
        }
        Ok(choice)
    }

    fn enter_view(
        &mut self,
        now: Now,
        proof: NewViewProof,
        body: &NewView,
        choice: &Choice,
        out: &mut Output,
    ) {
        if body.view > self.view {
            for slot in self.slots.values_mut() {
                slot.leave_view();
            }
        }
        self.view = body.view;
        self.active = true;
        self.own_view_change = None;
        self.fetched_view_changes.clear();
        self.view_ticket = out.persist(Record::NewView(proof.clone()));
        self.vote_ticket = self.view_ticket;
        self.new_view = Some(proof);
        self.view_changes.retain(|_, asked| asked.body.view > body.view);
        let gaps = choice.slots.iter().filter(|(_, digest)| digest.is_none()).count();
        out.push(Action::ViewEntered {
            view: body.view,
            primary: self.primary(),
            gaps: u32::try_from(gaps).unwrap_or(u32::MAX),
            carried: u32::try_from(choice.slots.len() - gaps).unwrap_or(u32::MAX),
        });
        if let Some(stable) = choice.stable.clone() {
            self.adopt_stable(now, stable, out);
        }
        let low = choice.stable.as_ref().map_or(Sequence::ZERO, |stable| stable.claim.sequence);
        let high = choice.slots.last().map_or(low, |(sequence, _)| *sequence);
        self.next_sequence = high.next().max(self.stable_sequence().next());
        self.timers.entered_view(now, high);
    }

    /// Votes on what the new view carries over. Executed slots are agreed on again but not run again.
    fn begin_carried(&mut self, now: Now, body: &NewView, out: &mut Output) {
        let null = payload_digest(&[]);
        for proposal in &body.pre_prepares {
            let claim = proposal.statement.claim;
            if !self.inside_window(claim.sequence) {
                continue;
            }
            let payload = (claim.digest == null).then(bytes::Bytes::new);
            self.accept(now, *proposal, payload, out);
            let slot = self.slots.get(&claim.sequence).expect("it was just accepted");
            if !slot.holds(&claim.digest) {
                let message = Message::FetchPayload { sequence: claim.sequence, digest: claim.digest };
                out.push(Action::Broadcast { message, after: Ticket::ZERO });
            }
            self.advance(now, claim.sequence, out);
        }
    }

    /// Hands messages of this view that came too early to where they belong.
    pub(crate) fn replay_future(&mut self, now: Now, application: &mut dyn Application, out: &mut Output) {
        let waiting = core::mem::take(&mut self.future);
        let mut batch: Vec<(ReplicaId, Message)> = Vec::new();
        for (from, queue) in waiting {
            batch.extend(queue.into_iter().map(|message| (from, message)));
        }
        for (from, message) in batch {
            self.on_message(now, from, message, application, out);
        }
    }

    /// Shows a peer the view it has missed.
    pub(crate) fn send_new_view(&mut self, now: Now, to: ReplicaId, out: &mut Output) {
        let due = self.timers.view_shown.get(&to).copied().unwrap_or_default();
        let Some(proof) = self.new_view.as_ref().filter(|_| now.mono >= due) else { return };
        self.timers.view_shown.insert(to, now.mono.plus(self.timing.resend_interval.times(2)));
        let after = self.after(self.view_ticket);
        for view_change in &proof.view_changes {
            let message = Message::ViewChange(view_change.clone());
            out.push(Action::Send { to, message, after });
        }
        out.push(Action::Send { to, message: Message::NewView(proof.new_view.clone()), after });
    }

    /// The assignment of a slot in the current view, to help a peer that lacks it.
    pub(crate) fn assignment(&self, sequence: Sequence) -> Option<(Signed, bytes::Bytes)> {
        let slot = self.slots.get(&sequence)?;
        let accepted = slot.accepted?;
        let payload = slot.payloads.get(&accepted.statement.claim.digest)?;
        Some((accepted, payload.clone()))
    }
}
