//! Execution: decided slots in order change the state, once, and are answered. Checkpoints are digested here, and
//! snapshots begin here. Sends no votes.

use crate::io::{ClientReply, Effect, Event, ExecutedCommand, FrozenChunks, OrderOutcome};
use crate::replica::{Frozen, Outbox, Replica};
use crate::reply::{label, tree_of};
use crate::wire::SnapshotMeta;
use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use bytes::Bytes;
use dwcp_base::{Hash, Hasher, LogTime, Now, Sequence, View, encode};
use dwcp_log::{Proposal, RootEntry, SignedMemberOrder};
use dwcp_pbft::Decided;
use dwcp_pbft::catchup::SLOT_BYTES;
use dwcp_state::{ClientFrame, FrameOutcome, FrozenState, Outcome, SessionId, StateMachine, state_digest};

/// The digest of one entry of the virtual log. Says nothing of the protocol that ordered it.
fn entry_digest(time: LogTime, frames: &[Bytes]) -> Hash {
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
            for entry in proposal.entries {
                match entry {
                    RootEntry::Batch(frames) => self.apply_batch(proposal.time, &frames, &mut commands, out),
                    RootEntry::Member(order) => self.apply_member(&order, sequence, out),
                    RootEntry::Noop => {}
                }
            }
        }
        if !self.recovering {
            out.event(Event::Executed {
                sequence,
                position: self.control.log.position,
                view,
                payload_digest: claim.digest,
                chain: self.control.log.chain,
                commands,
            });
        }
        if self.pbft.is_checkpoint(sequence) {
            self.checkpoint(now, sequence, out);
        }
    }

    fn apply_batch(
        &mut self,
        time: LogTime,
        frames: &[Bytes],
        commands: &mut Vec<ExecutedCommand>,
        out: &mut Outbox,
    ) {
        let position = self.control.log.append(&entry_digest(time, frames));
        self.state.begin_entry(position, time);
        let mut outcomes = Vec::with_capacity(frames.len());
        for bytes in frames {
            let Ok(frame) = ClientFrame::decode(bytes.clone()) else { continue };
            let outcome = self.state.execute(&frame);
            self.control.commands_executed += outcome.ran.iter().filter(|ran| **ran).count() as u64;
            self.pool.executed(Hash::of(bytes));
            if !outcome.ran.contains(&true) {
                self.count("frames that ran before");
                out.event(Event::RetryAnswered { session: outcome.session, first: outcome.first });
            }
            commands.extend(executed(&outcome));
            outcomes.push(outcome);
        }
        if self.recovering {
            return;
        }
        let sessions: BTreeSet<SessionId> = outcomes.iter().map(|outcome| outcome.session).collect();
        self.answer(outcomes, out);
        for session in sessions {
            self.settle_session(session, out);
        }
    }

    /// Answers the clients that are attached here, under one signature.
    fn answer(&mut self, outcomes: Vec<FrameOutcome>, out: &mut Outbox) {
        if self.diverged || !outcomes.iter().any(|outcome| self.clients.any_of(outcome.session)) {
            return;
        }
        let after = self.pbft.vote_ticket();
        let signed = self.pbft.quorum().f() > 0;
        let tree = signed.then(|| tree_of(&outcomes, label(self.pbft.quorum().f())));
        let leaves = u32::try_from(outcomes.len()).expect("a proposal's frames are few");
        let signature = tree.as_ref().and_then(|tree| self.sign_replies(leaves, tree.root()));
        for (index, outcome) in outcomes.into_iter().enumerate() {
            let FrameOutcome { session, first, results, ran: _ } = outcome;
            let mut clients = self.clients.of(session).peekable();
            if clients.peek().is_none() {
                continue;
            }
            let path = tree.as_ref().map(|tree| tree.path(index)).unwrap_or_default();
            let index = u32::try_from(index).expect("a proposal's frames are few");
            let reply = self.reply_under(session, first, results, index, leaves, path, signature);
            for client in clients {
                out.push(Effect::Reply { client, after, reply: ClientReply::Executed(reply.clone()) });
            }
        }
    }

    fn apply_member(&mut self, order: &SignedMemberOrder, sequence: Sequence, out: &mut Outbox) {
        let window = self.setup.genesis.window;
        // The prefix alone must decide: the latest checkpoint that can be stable by then stands for the stable one.
        let stable = Sequence(sequence.0.saturating_sub(window));
        let (key, ..) = order.signature_item(self.cluster);
        let outcome = if self.is_admin(&key) {
            self.control.replace_member(order, sequence, window, stable).cloned()
        } else {
            Err("the order is not signed by an admin of the registry")
        };
        self.pool.remove_order(order);
        let reply = match outcome {
            Ok(configuration) => {
                let votes_after = sequence.plus(window);
                self.pbft.push_configuration(votes_after, configuration);
                let (id, incarnation) = (order.order.id, order.order.incarnation);
                out.event(Event::MemberReplaced { id, incarnation, votes_after });
                out.push(Effect::MemberChanged { order: Box::new(order.order.clone()) });
                OrderOutcome::Done { sequence }
            }
            Err(reason) => {
                self.count("member orders refused");
                OrderOutcome::Refused { reason: reason.to_string() }
            }
        };
        let after = self.pbft.vote_ticket();
        let waiting = core::mem::take(&mut self.clients.orders);
        for (client, id, waited) in waiting {
            let overtaken =
                waited.order.id == order.order.id && waited.order.incarnation <= order.order.incarnation;
            if waited == *order {
                let reply = ClientReply::Order { id, outcome: reply.clone() };
                out.push(Effect::Reply { client, after, reply });
            } else if overtaken {
                let reason = "another order for this member was executed first".to_string();
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
        let due = self.control.bytes_executed / unit != self.bytes_at_checkpoint / unit;
        self.bytes_at_checkpoint = self.control.bytes_executed;
        let snapshot_due = due || core::mem::take(&mut self.snapshot_wanted);
        let digests = self.all_digests();
        let digest = state_digest(&digests);
        self.last_digest = (sequence, digest);
        if !self.recovering {
            out.event(Event::Digest { sequence, digest });
        }
        if snapshot_due && self.saving.is_none() && !self.recovering && !self.diverged {
            let state = self.state.freeze();
            self.frozen = Some(Frozen { sequence, control: encode(&self.control), digests, state });
        }
        self.pbft.on_executed(now, sequence, digest, &mut self.protocol);
        self.save_frozen(out);
    }

    /// Digests of all chunks: control first.
    pub(crate) fn all_digests(&mut self) -> Vec<Hash> {
        let mut digests = Vec::from([self.control.digest()]);
        digests.extend(self.state.chunk_digests());
        digests
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
        if sequence != frozen.sequence || certificate.claim.digest != state_digest(&frozen.digests) {
            return; // A later one overtook it, or ours is wrong; the next due checkpoint is written instead.
        }
        let orders = self.control.member_orders();
        let meta = SnapshotMeta { format: 1, certificate, digests: frozen.digests, orders };
        self.saving = Some(sequence);
        self.donor.prepare(meta.clone());
        let frozen = Box::new(Chunks { control: frozen.control, state: frozen.state });
        out.push(Effect::SaveSnapshot { sequence, meta: encode(&meta), frozen });
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
            self.snapshot_is_durable(sequence, out);
        } else {
            self.install_fetched(now, sequence, out);
        }
    }

    /// The log below a durable snapshot is no longer needed, nor are older snapshots.
    pub(crate) fn snapshot_is_durable(&mut self, sequence: Sequence, out: &mut Outbox) {
        let before = self.pbft.on_snapshot(sequence, &self.protocol);
        for old in self.donor.saved(sequence) {
            out.push(Effect::DropSnapshot { sequence: old });
        }
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
