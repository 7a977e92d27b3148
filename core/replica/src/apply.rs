//! Execution: decided slots in order change the state, once, and are answered. Checkpoints are digested here, and
//! snapshots begin here. Sends no votes.

use crate::control::{checkpoint_digest, snapshot_digest};
use crate::io::{
    ClientId, ClientReply, Effect, Event, ExecutedCommand, ExecutedReply, FrozenChunks, Label, OrderOutcome,
};
use crate::replica::{Frozen, Outbox, Replica};
use crate::reply::{label, reply_signing_hash, tree_of};
use crate::steering::Ending;
use crate::wire::{SNAPSHOT_FORMAT, SnapshotMeta};
use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use bytes::Bytes;
use dwcp_base::{Ack, Epoch, Hash, Hasher, LogTime, Mutant, Now, Position, Sequence, View, encode};
use dwcp_log::fold::BatchFate;
use dwcp_log::{OperatorOrder, Place, Proposal, RootEntry, SignedMemberOrder};
use dwcp_pbft::Decided;
use dwcp_pbft::catchup::SLOT_BYTES;
use dwcp_state::{ClientFrame, FrameOutcome, FrozenState, Outcome, SessionId, StateMachine, state_digest};

/// Deferred frames that wait for the leader to propose them; the rest runs at the Close.
const OFFERS_MAX: usize = 4_096;

/// The digest of one entry of the virtual log. Says nothing of the protocol that ordered it.
pub(crate) fn entry_digest(time: LogTime, frames: &[Bytes]) -> Hash {
    let mut hasher = Hasher::new("dwcp v3 entry");
    hasher.update(&time.0.to_le_bytes());
    for frame in frames {
        hasher.field(frame);
    }
    hasher.finish()
}

impl<M: StateMachine> Replica<M> {
    /// Executes the next slot.
    pub(crate) fn apply(&mut self, now: Now, decided: &Decided, view: View, out: &mut Outbox) {
        let claim = decided.certificate.claim;
        let sequence = claim.sequence;
        self.control.executed = sequence;
        self.control.bytes_executed += (decided.payload.len() + SLOT_BYTES) as u64;
        let mut commands = Vec::new();
        // A payload that q replicas prepared is a proposal; anything else could only come of more than f liars.
        if let Ok(Some(proposal)) = Proposal::from_payload(&decided.payload) {
            let steering = &mut self.control.steering;
            steering.time = steering.time.max(proposal.time);
            for entry in proposal.entries {
                match entry {
                    RootEntry::Batch(frames) => {
                        self.apply_batch(now, sequence, proposal.time, &frames, &mut commands, out);
                    }
                    RootEntry::Switch(switch) => self.apply_switch(now, &switch, sequence, out),
                    RootEntry::Decide(decide) => self.apply_decide(&decide),
                    RootEntry::Mode(order) => self.apply_mode(now, &order, sequence, out),
                    RootEntry::Anchor(anchor) => self.apply_anchor(now, &anchor, sequence, out),
                    RootEntry::Policy(order) => self.apply_policy(&order, sequence, out),
                    RootEntry::Member(order) => self.apply_member(now, &order, sequence, out),
                    RootEntry::Exclude(order) => self.apply_exclude(&order, sequence, out),
                    RootEntry::Floor(agreed) => self.apply_floor(*agreed),
                    RootEntry::Evidence(agreed) => self.apply_end(*agreed),
                    RootEntry::Noop => {}
                }
            }
            self.note_readmission(sequence);
        }
        if !self.recovering {
            out.event(Event::Executed {
                sequence,
                position: self.control.fold.log().position,
                view,
                payload_digest: claim.digest,
                chain: self.control.fold.log().chain,
                commands,
            });
        }
        if self.pbft.is_checkpoint(sequence) {
            self.checkpoint(now, sequence, out);
        }
    }

    fn apply_batch(
        &mut self,
        now: Now,
        sequence: Sequence,
        time: LogTime,
        frames: &[Bytes],
        commands: &mut Vec<ExecutedCommand>,
        out: &mut Outbox,
    ) {
        let tagged = || {
            let named = |frame: &Bytes| {
                if crate::sync::is_sync(frame) {
                    return Some((crate::sync::TAG, frame.clone()));
                }
                let session = ClientFrame::decode(frame.clone()).ok()?.session();
                Some((session.0, frame.clone()))
            };
            frames.iter().filter_map(named).collect()
        };
        match self.control.fold.batch(sequence, time, &entry_digest(time, frames), tagged) {
            BatchFate::Appended(position) => {
                self.live = self.control.fold.log();
                self.state.begin_entry(position, time);
                commands.extend(self.run_frames(now, frames, false, out));
            }
            BatchFate::Deferred { refused } => {
                if refused > 0 {
                    self.count("deferred frames refused: full");
                }
                self.offer_deferred(now, sequence);
            }
        }
    }

    /// What waits of a batch that the root ordered while a segment is open: the leader is to propose it before anything else.
    fn offer_deferred(&mut self, now: Now, sequence: Sequence) {
        let Some(segment) = &mut self.segment else { return };
        for frame in self.control.fold.deferred().of_batch(sequence) {
            let hash = Hash::of(frame);
            if self.pool.executed_lately(&hash) {
                continue;
            }
            segment.failover.unserved.add(hash, now.mono);
            if segment.offers.len() < OFFERS_MAX {
                segment.offers.push_back(frame.clone());
            }
        }
    }

    /// Runs the frames of the entry that was begun last, and answers who waits for them here. `unverified`: nobody has
    /// verified their signatures by ordering or anchoring them.
    pub(crate) fn run_frames(
        &mut self,
        now: Now,
        frames: &[Bytes],
        unverified: bool,
        out: &mut Outbox,
    ) -> Vec<ExecutedCommand> {
        let verifies = unverified && self.pbft.quorum().f() > 0;
        let mut commands = Vec::new();
        let mut outcomes = Vec::with_capacity(frames.len());
        let mut waited = None;
        for bytes in frames {
            if crate::sync::is_sync(bytes) {
                if let Some(segment) = self.segment.as_mut().filter(|open| !open.failover.unserved.is_empty())
                {
                    segment.failover.unserved.served(&Hash::of(bytes));
                }
                self.carry_sync(bytes, verifies);
                continue;
            }
            let Ok(frame) = ClientFrame::decode(bytes.clone()) else { continue };
            let hash = Hash::of(bytes);
            let since = self.pool.waits_since(&hash);
            waited = [waited, since].into_iter().flatten().min();
            if let Some(segment) = &mut self.segment {
                if verifies && !self.pool.holds(&hash) {
                    segment
                        .anchors
                        .signatures
                        .verify_later(frame.signature_item(self.cluster), &*self.crypto);
                }
                if let Some(since) = since {
                    segment.failover.note_round(now.mono.since(since));
                }
                segment.failover.unserved.served(&hash);
            }
            let outcome = self.state.execute(&frame);
            let ours = self.pool.executed(hash);
            if !outcome.ran.contains(&true) {
                self.count("frames that ran before");
                if !self.recovering {
                    out.event(Event::RetryAnswered { session: outcome.session, first: outcome.first });
                }
            }
            commands.extend(executed(&outcome));
            outcomes.push((outcome, ours));
        }
        if !frames.is_empty() {
            self.switches.executed(now, waited);
        }
        if self.recovering {
            return commands;
        }
        let sessions: BTreeSet<SessionId> = outcomes.iter().map(|(outcome, _)| outcome.session).collect();
        let answers = outcomes
            .into_iter()
            .filter(|(outcome, _)| self.clients.any_of(outcome.session))
            .map(|(outcome, ours)| {
                let clients = self.clients.of(outcome.session).collect();
                Answer { outcome, clients, ours }
            })
            .collect();
        self.answer_clients(answers, out);
        for session in sessions {
            self.settle_session(session, out);
        }
        commands
    }

    /// Answers clients at once, or, where they want more than a majority's word, when an Anchor covers it.
    pub(crate) fn answer_clients(&mut self, answers: Vec<Answer>, out: &mut Outbox) {
        if self.diverged {
            return;
        }
        let default = self.control.steering.policy.default_ack;
        let mut ready = Vec::with_capacity(answers.len());
        for Answer { outcome, clients, ours } in answers {
            let (session, first) = (outcome.session, outcome.first);
            let position = last_position(&outcome);
            let certified = self.is_certified(position);
            let mut now_told = Vec::with_capacity(clients.len());
            for client in clients {
                let ack = self.clients.take_wish(client, session, first).unwrap_or(default);
                if certified {
                    now_told.push(client);
                } else if ack == Ack::Majority {
                    // One replica's word is all that the label `crash` takes: the one that was asked gives it.
                    now_told.extend(ours.then_some(client));
                } else {
                    self.await_anchor(position, client, outcome.clone(), out);
                }
            }
            if !now_told.is_empty() {
                ready.push((outcome, now_told));
            }
        }
        self.send_answers(ready, out);
    }

    /// Tells clients, those whose positions the root covers under one signature. Without a covering certificate one
    /// replica's word is what the label `crash` says.
    pub(crate) fn send_answers(&mut self, answers: Vec<(FrameOutcome, Vec<ClientId>)>, out: &mut Outbox) {
        let f = self.pbft.quorum().f();
        let (covered, open): (Vec<_>, Vec<_>) =
            answers.into_iter().partition(|(outcome, _)| self.is_certified(last_position(outcome)));
        for (outcome, clients) in open {
            let reply = self.reply(outcome, Label::Crash, Proof::none());
            for client in clients {
                let reply = ClientReply::Executed(reply.clone());
                out.push(Effect::Reply { client, after: self.body_ticket, reply });
            }
        }
        if covered.is_empty() {
            return;
        }
        let after = self.pbft.vote_ticket().max(self.body_ticket);
        let label = label(f);
        let tree = (f > 0).then(|| tree_of(covered.iter().map(|(outcome, _)| outcome), label));
        let leaf_count = u32::try_from(covered.len()).expect("a proposal's frames are few");
        let signature = tree.as_ref().map(|tree| self.sign_replies(leaf_count, tree.root()));
        for (leaf_index, (outcome, clients)) in (0..).zip(covered) {
            let path = tree.as_ref().map(|tree| tree.path(leaf_index as usize)).unwrap_or_default();
            let proof = Proof { leaf_index, leaf_count, path, signature };
            let reply = self.reply(outcome, label, proof);
            for client in clients {
                out.push(Effect::Reply { client, after, reply: ClientReply::Executed(reply.clone()) });
            }
        }
    }

    fn sign_replies(&self, leaves: u32, root: Hash) -> dwcp_base::Signature {
        let (me, incarnation) = (self.setup.me, self.setup.incarnation);
        self.crypto.sign(&reply_signing_hash(self.cluster, me, incarnation, leaves, root))
    }

    fn reply(&self, outcome: FrameOutcome, label: Label, proof: Proof) -> ExecutedReply {
        let FrameOutcome { session, first, results, ran: _ } = outcome;
        let Proof { leaf_index, leaf_count, path, signature } = proof;
        ExecutedReply {
            session,
            first,
            results,
            label,
            view: self.pbft.view(),
            ask: self.orderer().unwrap_or(self.setup.me),
            replica: self.setup.me,
            incarnation: self.setup.incarnation,
            leaf_index,
            leaf_count,
            path,
            signature,
        }
    }

    fn apply_member(&mut self, now: Now, order: &SignedMemberOrder, sequence: Sequence, out: &mut Outbox) {
        let window = self.setup.genesis.window;
        // The prefix alone must decide: the latest checkpoint that can be stable by then stands for the stable one.
        let stable = Sequence(sequence.0.saturating_sub(window));
        let (key, ..) = order.signature_item(self.cluster);
        let outcome = if self.is_admin(&key) {
            self.control.replace_member(order, sequence, window, stable).cloned()
        } else {
            Err("the order is not signed by an admin of the registry")
        };
        let outcome = match outcome {
            Ok(configuration) => {
                let votes_after = sequence.plus(window);
                self.pbft.push_configuration(votes_after, configuration);
                let (id, incarnation) = (order.order.id, order.order.incarnation);
                if self.control.fold.segment().is_some() {
                    self.control.steering.ending = Some(Ending::Member);
                }
                out.event(Event::MemberReplaced { id, incarnation, votes_after });
                out.push(Effect::MemberChanged { order: Box::new(order.order.clone()) });
                self.sync_follow_members(now, out);
                OrderOutcome::Done { sequence }
            }
            Err(reason) => {
                self.count("member orders refused");
                OrderOutcome::Refused { reason: reason.to_string() }
            }
        };
        self.settle_order(&OperatorOrder::Member(order.clone()), &outcome, out);
    }

    /// An order was executed: whoever waits for it is told, and whoever waits for one that is void because of it.
    pub(crate) fn settle_order(&mut self, order: &OperatorOrder, outcome: &OrderOutcome, out: &mut Outbox) {
        self.pool.remove_order(order);
        let after = self.pbft.vote_ticket();
        for (client, id, waited) in core::mem::take(&mut self.clients.orders) {
            if waited == *order {
                let reply = ClientReply::Order { id, outcome: outcome.clone() };
                out.push(Effect::Reply { client, after, reply });
            } else if order.overtakes(&waited) {
                let reason =
                    "another order was executed first: look at the status and order again".to_string();
                let reply = ClientReply::Order { id, outcome: OrderOutcome::Refused { reason } };
                out.push(Effect::Reply { client, after, reply });
            } else {
                self.clients.orders.push((client, id, waited));
            }
        }
    }

    fn checkpoint(&mut self, now: Now, sequence: Sequence, out: &mut Outbox) {
        let forget = Sequence(sequence.0.saturating_sub(2 * self.setup.genesis.window));
        self.control.configurations.forget_before(forget);
        // Every multiple of the setting that was passed since the last checkpoint: equal at replicas with equal settings.
        let unit = self.setup.settings.snapshot_log_bytes;
        let due = self.control.bytes_executed / unit != self.bytes_at_checkpoint / unit
            || self.closed_uncovered >= unit
            || self.segment_coverable(unit, 4);
        self.bytes_at_checkpoint = self.control.bytes_executed;
        let wanted = due || self.snapshot_wanted;
        let control = self.control.digest();
        let open = self.control.fold.segment().filter(|_| !self.setup.mutants.on(Mutant::LiveCheckpoint));
        let state = match open {
            // Replicas at this sequence have executed different amounts of the segment.
            Some(segment) => segment.anchor.state,
            None => state_digest(&self.state.chunk_digests()),
        };
        let digest = checkpoint_digest(control, state);
        self.last_digest = (sequence, digest);
        if self.diverged && open.is_none() {
            self.pbft.mute(); // From here on it is our own state that a checkpoint vouches for.
        }
        if !self.recovering {
            out.event(Event::Digest { sequence, digest });
        }
        if wanted && !self.recovering && self.may_freeze() {
            let state = match &self.segment {
                Some(segment) if open.is_some() => segment.anchors.frozen.state.clone(),
                _ => self.state.freeze(),
            };
            self.snapshot_wanted = false;
            let mut digests = Vec::from([control]);
            digests.extend_from_slice(state.digests());
            self.segment_at_snapshot = self.segment_frozen();
            self.closed_uncovered = 0;
            let epoch = self.epoch_covered();
            self.frozen = Some(Frozen { sequence, epoch, control: encode(&self.control), digests, state });
        }
        self.pbft.on_executed(now, sequence, digest, &mut self.protocol);
        self.save_frozen(out);
    }

    /// Whether a checkpoint of now would be written down: none is being, and we have the state that its digest is of.
    pub(crate) fn may_freeze(&self) -> bool {
        let open = self.control.fold.segment().filter(|_| !self.setup.mutants.on(Mutant::LiveCheckpoint));
        let has_state = match (open, &self.segment) {
            (None, _) => true,
            (Some(open), Some(segment)) => segment.anchors.frozen.place.index == open.anchor.index,
            (Some(_), None) => false,
        };
        has_state && self.saving.is_none() && !self.diverged
    }

    /// Bytes and entries of the open segment executed here.
    fn segment_so_far(&self) -> (u64, u64) {
        self.segment.as_ref().map_or((0, 0), |open| (open.anchors.bytes_applied, open.applied.index.0))
    }

    /// The open segment is about to be closed: what no snapshot covers of it is on disk until one does.
    pub(crate) fn note_uncovered(&mut self) {
        let (bytes, _) = self.segment_so_far();
        self.closed_uncovered += bytes.saturating_sub(self.segment_at_snapshot.0);
    }

    /// The same up to the Anchor that a snapshot of now would be of.
    fn segment_frozen(&self) -> (u64, u64) {
        self.segment.as_ref().map_or((0, 0), |open| {
            let frozen = &open.anchors.frozen;
            (frozen.bytes, frozen.place.index.0)
        })
    }

    /// Whether no snapshot covers so many bytes of the open segment, or such a share of the entries that its log may hold.
    pub(crate) fn segment_uncovered(&self, bytes: u64, share: u64) -> bool {
        self.is_uncovered(self.segment_so_far(), bytes, share)
    }

    /// Whether a snapshot of now would cover so much that none covers yet. What was executed behind the last Anchor does not
    /// count: no snapshot can be of it.
    pub(crate) fn segment_coverable(&self, bytes: u64, share: u64) -> bool {
        self.is_uncovered(self.segment_frozen(), bytes, share)
    }

    fn is_uncovered(&self, (bytes_so_far, entries_so_far): (u64, u64), bytes: u64, share: u64) -> bool {
        let (bytes_then, entries_then) = self.segment_at_snapshot;
        let entries = self.setup.settings.segment.limits.log_entries_max / share;
        bytes_so_far.saturating_sub(bytes_then) >= bytes
            || entries_so_far.saturating_sub(entries_then) >= entries
    }

    /// A checkpoint is stable: if a frozen state waited for this certificate, it is written down.
    pub(crate) fn on_stable(&mut self, sequence: Sequence, digest: Hash, out: &mut Outbox) {
        out.event(Event::StableCheckpoint { sequence, digest });
        self.note_readmitted(sequence, out);
        self.save_frozen(out);
    }

    /// Has the frozen state written down if its checkpoint is the stable one.
    fn save_frozen(&mut self, out: &mut Outbox) {
        let Some(certificate) = self.pbft.stable_certificate().cloned() else { return };
        let sequence = certificate.claim.sequence;
        let Some(frozen) = self.frozen.take_if(|frozen| frozen.sequence <= sequence) else { return };
        if sequence != frozen.sequence || Some(certificate.claim.digest) != snapshot_digest(&frozen.digests) {
            return; // A later one overtook it, or ours is wrong; the next due checkpoint is written instead.
        }
        let orders = self.control.member_orders();
        let meta = SnapshotMeta { format: SNAPSHOT_FORMAT, certificate, digests: frozen.digests, orders };
        self.saving = Some(sequence);
        self.saving_epoch = frozen.epoch;
        self.donor.prepare(meta.clone());
        let frozen = Box::new(Chunks { control: frozen.control, state: frozen.state });
        out.push(Effect::SaveSnapshot { sequence, meta: encode(&meta), frozen });
    }

    /// The epoch that the control state knows, and, if it is open, the place of its last Anchor: what a snapshot of now covers.
    pub(crate) fn epoch_covered(&self) -> (Epoch, Option<Place>) {
        let open = self.control.fold.segment().map(dwcp_log::Segment::anchored);
        (self.control.fold.epoch(), open)
    }

    fn note_readmitted(&mut self, stable: Sequence, out: &mut Outbox) {
        let before = self.readmitted_to;
        for member in &self.control.configurations.latest().members {
            if member.votes_after > before && member.votes_after <= stable {
                out.event(Event::MemberReadmitted { id: member.id, incarnation: member.incarnation });
            }
        }
        self.readmitted_to = stable;
    }

    pub(crate) fn on_snapshot_saved(&mut self, now: Now, sequence: Sequence, out: &mut Outbox) {
        if self.saving.take_if(|saving| *saving == sequence).is_some() {
            let covered = self.saving_epoch;
            self.snapshot_is_durable(now, sequence, covered, out);
        } else {
            self.install_fetched(now, sequence, out);
        }
    }

    /// The log below a durable snapshot is no longer needed, nor are older snapshots.
    pub(crate) fn snapshot_is_durable(
        &mut self,
        now: Now,
        sequence: Sequence,
        (epoch, open_there): (Epoch, Option<Place>),
        out: &mut Outbox,
    ) {
        let before = self.pbft.on_snapshot(sequence, &self.protocol);
        let needed = self.forget_segments(epoch, open_there);
        for old in self.donor.saved(now, sequence) {
            out.push(Effect::DropSnapshot { sequence: old });
        }
        self.pbft.note_fetched(self.donor.held());
        let before = self.sync_may_discard(needed.map_or(before, |needed| before.min(needed)));
        out.push(Effect::DiscardLog { before });
    }

    pub(crate) fn on_snapshot_failed(&mut self, sequence: Sequence, out: &mut Outbox) {
        self.count("snapshots failed");
        if self.saving.take_if(|saving| *saving == sequence).is_none() {
            self.abandon_transfer(out);
        }
        self.donor.unprepare(sequence);
        self.drop_partial(sequence, out);
    }
}

/// A frame's outcome, and who is to hear of it here.
pub(crate) struct Answer {
    pub outcome: FrameOutcome,
    pub clients: Vec<ClientId>,
    /// One of them sent the frame here.
    pub ours: bool,
}

/// The last position at which one of a frame's commands ran.
fn last_position(outcome: &FrameOutcome) -> Position {
    outcome.results.iter().map(|result| result.position).max().unwrap_or_default()
}

/// What stands beside a reply for whoever verifies it.
struct Proof {
    leaf_index: u32,
    leaf_count: u32,
    path: Vec<Hash>,
    signature: Option<dwcp_base::Signature>,
}

impl Proof {
    /// One replica's word, proved by the link.
    fn none() -> Self {
        Self { leaf_index: 0, leaf_count: 1, path: Vec::new(), signature: None }
    }
}

fn executed(outcome: &FrameOutcome) -> impl Iterator<Item = ExecutedCommand> + '_ {
    let ran = outcome.results.iter().zip(&outcome.ran).filter(|(_, ran)| **ran).map(|(result, _)| result);
    ran.filter(|result| matches!(result.outcome, Outcome::Done(_))).map(|result| ExecutedCommand {
        session: outcome.session,
        sequence: result.sequence,
        result: Hash::of(&encode(&result.outcome)),
    })
}

/// Control and state as the chunks of one snapshot.
struct Chunks<M: StateMachine> {
    control: Vec<u8>,
    state: FrozenState<M>,
}

impl<M: StateMachine> FrozenChunks for Chunks<M> {
    fn chunk_count(&self) -> u32 {
        self.state.chunk_count() + 1
    }

    fn chunk(&self, index: u32) -> Result<Vec<u8>, String> {
        match index.checked_sub(1) {
            None => Ok(self.control.clone()),
            Some(index) => self.state.chunk(index).map_err(|error| error.to_string()),
        }
    }
}
