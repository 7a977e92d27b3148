//! The protocol's state: what must survive a crash apart from what may be forgotten, and how it is rebuilt.

use crate::certificate::{Configurations, Verifier, Votes};
use crate::config::{PbftSetup, Timing};
use crate::message::{
    Certificate, Claim, Decided, Message, Signed, SignedBody, Standing, Statement, ViewChange, Vote,
};
use crate::output::{Action, Output};
use crate::record::{NewViewProof, Record};
use crate::slot::{KeptTickets, Slot};
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::sync::Arc;
use alloc::vec::Vec;
use bytes::Bytes;
use dwcp_base::{
    ClusterId, Configuration, Crypto, Hash, Incarnation, Member, Micros, Mutant, Mutants, Now, Quorum,
    ReplicaId, Sequence, SigningKind, Ticket, View, decode, encode,
};
use dwcp_log::entry::payload_digest;

/// What the protocol asks of whoever knows what payloads mean.
pub trait Application {
    /// Whether a backup may prepare this payload now: well formed, client signatures good, log time not ahead of our
    /// clock. Must be a function of the bytes and the clock alone, so that honest replicas agree.
    ///
    /// # Errors
    /// Why not.
    fn check(&mut self, now: Now, payload: &Bytes) -> Result<(), &'static str>;
}

/// A verified VIEW-CHANGE: what it says, the bytes it came in, and their hash.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) body: ViewChange,
    pub(crate) signed: SignedBody,
    pub(crate) hash: Hash,
}

impl Asked {
    pub(crate) fn new(body: ViewChange, signed: SignedBody) -> Self {
        let hash = signed.hash();
        Self { body, signed, hash }
    }
}

/// Messages of views we have not entered yet, kept per sender; beyond it the oldest go (they are resent).
pub(crate) const FUTURE_MESSAGES_MAX: usize = 512;
pub(crate) const FUTURE_BYTES_MAX: usize = 8 << 20;

/// One replica's part in the root protocol.
#[derive(Clone, Debug)]
pub struct Pbft {
    pub(crate) me: ReplicaId,
    pub(crate) incarnation: Incarnation,
    pub(crate) cluster: ClusterId,
    pub(crate) crypto: Arc<dyn Crypto>,
    pub(crate) timing: Timing,
    pub(crate) quorum: Quorum,
    pub(crate) interval: u64,
    pub(crate) window: u64,
    pub(crate) pipeline_depth: u64,
    pub(crate) mutants: Mutants,
    pub(crate) configurations: Configurations,

    // Survives a crash, as records.
    pub(crate) view: View,
    /// False between our VIEW-CHANGE for `view` and its NEW-VIEW.
    pub(crate) active: bool,
    /// Slots above `min(stable, delivered)`, at most `window` of them plus what is between the two.
    pub(crate) slots: BTreeMap<Sequence, Slot>,
    pub(crate) stable: Option<Certificate>,
    pub(crate) own_view_change: Option<SignedBody>,
    /// Proof of the latest view entered. `None` in view 0.
    pub(crate) new_view: Option<NewViewProof>,

    // May be forgotten.
    /// The last slot handed to the caller.
    pub(crate) delivered: Sequence,
    /// The last that ever was: whoever takes a snapshot of an earlier slot, for what was executed since is wrong, goes back and
    /// keeps what it voted on up to there.
    pub(crate) reached: Sequence,
    pub(crate) next_sequence: Sequence,
    /// The newest record that carries a vote; votes wait for it.
    pub(crate) vote_ticket: Ticket,
    pub(crate) view_ticket: Ticket,
    /// Checkpoint votes above the stable one, at the sequences inside the window: at most window / interval.
    pub(crate) checkpoints: BTreeMap<Sequence, Votes>,
    pub(crate) own_checkpoint: Option<Signed>,
    /// Digests we computed, above the stable checkpoint: one per interval up to what was delivered, which a window bounds.
    pub(crate) own_digests: BTreeMap<Sequence, Hash>,
    /// The latest VIEW-CHANGE of each member above our active view, with its hash: at most n.
    pub(crate) view_changes: BTreeMap<ReplicaId, Asked>,
    /// NEW-VIEWs that wait for VIEW-CHANGEs they name, the latest of each primary, and what was fetched for them: at
    /// most n, and n for each.
    pub(crate) pending_new_views: BTreeMap<ReplicaId, SignedBody>,
    pub(crate) fetched_view_changes: BTreeMap<Hash, Asked>,
    /// Messages of views to come: of each member at most `FUTURE_MESSAGES_MAX` and `FUTURE_BYTES_MAX`.
    pub(crate) future: BTreeMap<ReplicaId, VecDeque<Message>>,
    /// Decided slots kept for laggards, bounded by bytes.
    pub(crate) history: BTreeMap<Sequence, Decided>,
    pub(crate) history_bytes: usize,
    /// An older snapshot of ours than the newest, which a peer is fetching: it will need what follows.
    pub(crate) fetched: Option<Sequence>,
    pub(crate) history_bytes_max: usize,
    /// From where the log must be kept for the slots since the last snapshot.
    pub(crate) kept_tickets: KeptTickets,
    pub(crate) snapshot: Sequence,
    /// Our state is known to be wrong: until it is replaced we vote on nothing.
    pub(crate) muted: bool,
    /// The caller cannot execute what it was given last: nothing more is delivered.
    pub(crate) held: bool,
    /// The highest vote seen of each member, shown to it when it comes back.
    pub(crate) last_votes: BTreeMap<ReplicaId, Signed>,
    /// As `last_votes`, by sequence instead of by view.
    pub(crate) highest_votes: BTreeMap<ReplicaId, Signed>,
    /// What our own disk accounted for when we began: everything up to here was settled for us then.
    pub(crate) settled_at_start: Sequence,
    /// The slots above it that our disk knew we had voted on, and in which view last: at most a window.
    pub(crate) voted_at_start: BTreeMap<Sequence, View>,
    /// The lowest sequence we have voted on since we began.
    pub(crate) first_vote: Option<Sequence>,
    /// Names this life of ours, unlike every earlier one.
    pub(crate) boot: u64,
    /// Peers that have shown this life of ours what it signed, and how many must have before it votes: see [`Pbft::begin`].
    pub(crate) introduced_by: BTreeSet<ReplicaId>,
    pub(crate) introductions_due: usize,
    /// The latest of each member: at most n.
    pub(crate) standings: BTreeMap<ReplicaId, (Micros, Standing)>,
    pub(crate) timers: crate::timer::Timers,
    /// Votes that were verified ahead. At most what came in one burst of inputs.
    pub(crate) proven: BTreeSet<Signed>,
}

impl Pbft {
    /// A replica that has said nothing yet.
    #[must_use]
    pub fn new(setup: &PbftSetup) -> Self {
        let quorum = setup.genesis.policy.quorum.with_mutants(setup.mutants);
        Self {
            me: setup.me,
            incarnation: setup.incarnation,
            cluster: setup.genesis.cluster(),
            crypto: Arc::clone(&setup.crypto),
            timing: setup.timing,
            quorum,
            interval: setup.genesis.checkpoint_interval,
            window: setup.genesis.window,
            pipeline_depth: setup.pipeline_depth,
            mutants: setup.mutants,
            configurations: Configurations::new(Configuration::of(&setup.genesis)),
            view: View::ZERO,
            active: true,
            slots: BTreeMap::new(),
            stable: None,
            own_view_change: None,
            new_view: None,
            delivered: Sequence::ZERO,
            reached: Sequence::ZERO,
            next_sequence: Sequence(1),
            vote_ticket: Ticket::ZERO,
            view_ticket: Ticket::ZERO,
            checkpoints: BTreeMap::new(),
            own_checkpoint: None,
            own_digests: BTreeMap::new(),
            view_changes: BTreeMap::new(),
            pending_new_views: BTreeMap::new(),
            fetched_view_changes: BTreeMap::new(),
            future: BTreeMap::new(),
            history: BTreeMap::new(),
            history_bytes: 0,
            fetched: None,
            history_bytes_max: setup.history_bytes_max,
            kept_tickets: KeptTickets::new(setup.genesis.checkpoint_interval),
            snapshot: Sequence::ZERO,
            muted: false,
            held: false,
            last_votes: BTreeMap::new(),
            highest_votes: BTreeMap::new(),
            settled_at_start: Sequence::ZERO,
            voted_at_start: BTreeMap::new(),
            first_vote: None,
            boot: 0,
            introduced_by: BTreeSet::new(),
            introductions_due: 0,
            standings: BTreeMap::new(),
            proven: BTreeSet::new(),
            timers: crate::timer::Timers::default(),
        }
    }

    /// Starts from a durable snapshot at `sequence` (0: the genesis) whose state knows `configurations`. Records are
    /// replayed on top with [`Pbft::replay`].
    pub fn start_from(
        &mut self,
        sequence: Sequence,
        configurations: Configurations,
        stable: Option<Certificate>,
    ) {
        self.delivered = sequence;
        self.snapshot = sequence;
        self.next_sequence = sequence.next();
        self.configurations = configurations;
        self.stable = stable;
    }

    /// Takes one record of the log back into memory. Records come in the order they were written, before any input.
    pub fn replay(&mut self, ticket: Ticket, record: Record) {
        if self.mutants.on(Mutant::ForgetVotesOnRestart)
            && matches!(record, Record::ViewChange(_) | Record::NewView(_) | Record::Prepared(_))
        {
            return;
        }
        match record {
            Record::PrePrepared { proposal, payload } => {
                let claim = proposal.statement.claim;
                if self.mutants.on(Mutant::ForgetVotesOnRestart) && claim.sequence > self.delivered {
                    // The payload is needed if the slot turns out decided; the vote is what the mutant forgets.
                    if let Some(payload) = payload {
                        self.slots.entry(claim.sequence).or_default().recall(claim.digest, payload);
                    }
                    return;
                }
                let view = self.view;
                if let Some(slot) = self.replayed_slot(claim.sequence, ticket) {
                    if let Some(payload) = payload {
                        slot.recall(claim.digest, payload);
                    }
                    slot.note_pre_prepared(claim.digest, claim.view);
                    if claim.view == view {
                        slot.accepted = Some(proposal);
                    }
                }
            }
            Record::Payload { sequence, payload } => {
                if let Some(slot) = self.replayed_slot(sequence, ticket) {
                    slot.payloads.insert(payload_digest(&payload), payload);
                }
            }
            Record::Prepared(certificate) => {
                if let Some(slot) = self.replayed_slot(certificate.sequence(), ticket) {
                    slot.prepared = Some(certificate);
                }
            }
            Record::Committed(certificate) => {
                if let Some(slot) = self.replayed_slot(certificate.claim.sequence, ticket) {
                    slot.decided = Some(certificate);
                }
            }
            Record::Decided(decided) => {
                let claim = decided.certificate.claim;
                if let Some(slot) = self.replayed_slot(claim.sequence, ticket) {
                    slot.recall(claim.digest, decided.payload);
                    slot.decided = Some(decided.certificate);
                }
            }
            Record::ViewChange(body) => {
                if let Ok(view_change) = decode::<ViewChange>(&body.body)
                    && (view_change.view > self.view || (view_change.view == self.view && !self.active))
                {
                    self.leave_to(view_change.view);
                    self.own_view_change = Some(body);
                    self.view_ticket = ticket;
                }
            }
            Record::NewView(proof) => {
                let entered =
                    decode::<crate::message::NewView>(&proof.new_view.body).map(|new_view| new_view.view);
                if let Ok(entered) = entered
                    && entered >= self.view
                {
                    self.leave_to(entered);
                    self.active = true;
                    self.own_view_change = None;
                    self.view_ticket = ticket;
                    // The checkpoint it begins above has a record of its own behind this one, which may be torn off.
                    let asked = proof
                        .view_changes
                        .iter()
                        .filter_map(|signed| decode::<ViewChange>(&signed.body).ok());
                    let stable =
                        asked.filter_map(|asked| asked.stable).max_by_key(|stable| stable.claim.sequence);
                    if let Some(stable) =
                        stable.filter(|stable| stable.claim.sequence > self.stable_sequence())
                    {
                        self.stable = Some(stable);
                    }
                    // What the view began with binds its slots even where our vote on them was not recorded yet.
                    let body = decode::<crate::message::NewView>(&proof.new_view.body).ok();
                    for proposal in body.into_iter().flat_map(|body| body.pre_prepares) {
                        if let Some(slot) = self.replayed_slot(proposal.statement.claim.sequence, ticket) {
                            slot.accepted = Some(proposal);
                        }
                    }
                    self.new_view = Some(proof);
                }
            }
            Record::Stable(certificate) => {
                if certificate.claim.sequence > self.stable_sequence() {
                    self.stable = Some(certificate);
                }
            }
        }
    }

    fn replayed_slot(&mut self, sequence: Sequence, ticket: Ticket) -> Option<&mut Slot> {
        if sequence <= self.delivered {
            return None;
        }
        self.kept_tickets.keep(sequence, ticket);
        let slot = self.slots.entry(sequence).or_default();
        slot.note_ticket(ticket);
        Some(slot)
    }

    fn leave_to(&mut self, view: View) {
        self.view = view;
        self.active = false;
        for slot in self.slots.values_mut() {
            slot.leave_view();
        }
    }

    /// Ends the replay: what was decided is delivered, votes are counted as cast, timers start.
    pub fn replayed(&mut self, now: Now, out: &mut Output) {
        if !self.active
            && let Some(body) = self.own_view_change.clone()
            && let Ok(view_change) = decode::<ViewChange>(&body.body)
        {
            self.view_changes.insert(self.me, Asked::new(view_change, body));
        }
        let view = self.view;
        let primary = self.primary();
        self.next_sequence = self.next_sequence.max(self.stable_sequence().next());
        let mut unvoted = Vec::new();
        let may_vote: BTreeSet<Sequence> =
            self.slots.keys().copied().filter(|sequence| self.may_vote(*sequence)).collect();
        for (sequence, slot) in &mut self.slots {
            if self.active && sequence.next() > self.next_sequence {
                self.next_sequence = sequence.next();
            }
            let voted = slot.digest().is_some_and(|digest| slot.pre_prepared.get(&digest) == Some(&view));
            if let Some(accepted) = slot.accepted.filter(|_| !voted) {
                unvoted.push(accepted);
            }
            // A vote whose record is durable may have left before the crash: cast it again, it is the same vote.
            if let Some(accepted) = slot.accepted.filter(|_| voted)
                && primary != self.me
                && may_vote.contains(sequence)
            {
                let claim = Claim { vote: Vote::Prepare, ..accepted.statement.claim };
                let statement = Statement { claim, sender: self.me, incarnation: self.incarnation };
                slot.prepares.add(Signed::new(statement, self.cluster, &*self.crypto), self.mutants);
            }
            slot.commit_sent =
                slot.prepared_in(view) && slot.accepted.is_some() && may_vote.contains(sequence);
            if slot.commit_sent {
                let digest = slot.prepared.as_ref().expect("it is prepared in this view").digest();
                let accepted = slot.accepted.expect("it is accepted in this view").statement.claim;
                let claim = Claim { vote: Vote::Commit, digest, ..accepted };
                let statement = Statement { claim, sender: self.me, incarnation: self.incarnation };
                slot.commits.add(Signed::new(statement, self.cluster, &*self.crypto), self.mutants);
            }
        }
        self.timers.start(now, &self.timing);
        self.settled_at_start = self.delivered.max(self.stable_sequence());
        self.voted_at_start = self
            .slots
            .iter()
            .filter_map(|(sequence, slot)| Some((*sequence, slot.pre_prepared.values().max().copied()?)))
            .collect();
        // Before anything is let go of: what our own disk knows to be decided may be known to nobody else.
        self.deliver_ready(now, out);
        self.settled_at_start = self.settled_at_start.max(self.delivered);
        self.forget_settled();
        for proposal in unvoted {
            let claim = proposal.statement.claim;
            if self.inside_window(claim.sequence) {
                let payload = (claim.digest == payload_digest(&[])).then(Bytes::new);
                self.accept(now, proposal, payload, out);
                self.advance(now, claim.sequence, out);
            }
        }
        self.deliver_ready(now, out);
        self.forget_settled();
    }

    pub(crate) fn verifier(&self) -> Verifier<'_> {
        Verifier {
            cluster: self.cluster,
            crypto: &*self.crypto,
            configurations: &self.configurations,
            quorum: self.quorum,
            mutants: self.mutants,
            known: BTreeSet::new(),
            proven: &self.proven,
        }
    }

    /// As [`Pbft::verifier`], sparing the votes in our own slots a second verification.
    pub(crate) fn verifier_with_known(&self) -> Verifier<'_> {
        let mut known = BTreeSet::new();
        for slot in self.slots.values() {
            known.extend(slot.accepted);
            if let Some(digest) = slot.digest() {
                known.extend(slot.prepares.matching(&digest).copied());
            }
            if let Some(prepared) = &slot.prepared {
                known.insert(prepared.pre_prepare);
                known.extend(prepared.prepares.iter().copied());
            }
        }
        Verifier { known, ..self.verifier() }
    }

    pub(crate) fn claim(&self, vote: Vote, view: View, sequence: Sequence, digest: Hash) -> Claim {
        Claim { vote, configuration: self.configurations.at(sequence).id, view, sequence, digest }
    }

    pub(crate) fn sign(&self, claim: Claim) -> Signed {
        let statement = Statement { claim, sender: self.me, incarnation: self.incarnation };
        Signed::new(statement, self.cluster, &*self.crypto)
    }

    pub(crate) fn sign_body(&self, kind: SigningKind, body: &impl borsh::BorshSerialize) -> SignedBody {
        SignedBody::new(kind, encode(body), self.cluster, &*self.crypto)
    }

    /// The ticket that a vote recorded under `ticket` waits for.
    pub(crate) fn after(&self, ticket: Ticket) -> Ticket {
        if self.mutants.on(Mutant::VoteBeforeSync) { Ticket::ZERO } else { ticket }
    }

    /// Whether our vote on this sequence counts: a new incarnation is a learner until a stable checkpoint at or past
    /// its `votes_after`.
    pub(crate) fn may_vote(&self, sequence: Sequence) -> bool {
        let member = self.configurations.at(sequence).member(self.me).filter(|_| !self.muted);
        member.is_some_and(|member| self.counts(member, self.incarnation))
    }

    fn counts(&self, member: &Member, incarnation: Incarnation) -> bool {
        member.incarnation == incarnation
            && (member.votes_after <= self.stable_sequence() || self.mutants.on(Mutant::LearnerVotes))
    }

    /// Whether this incarnation's VIEW-CHANGE counts here.
    pub(crate) fn has_weight(&self, sender: ReplicaId, incarnation: Incarnation) -> bool {
        self.configurations.latest().member(sender).is_some_and(|member| self.counts(member, incarnation))
    }

    /// Whether a VIEW-CHANGE by this incarnation may be part of a quorum, given a checkpoint proven stable. One of an
    /// incarnation that was replaced since is what it said while it still knew.
    pub(crate) fn had_weight(&self, sender: ReplicaId, incarnation: Incarnation, proven: Sequence) -> bool {
        let current = self.configurations.latest().member(sender);
        let learner = current.is_some_and(|member| {
            member.incarnation == incarnation && member.votes_after > self.stable_sequence().max(proven)
        });
        !learner || self.mutants.on(Mutant::LearnerVotes)
    }

    /// Our state turned out to be wrong: nothing is voted on until a certified one is installed.
    pub fn mute(&mut self) {
        self.muted = true;
    }

    /// Our state was replaced by a certified one.
    pub fn unmute(&mut self) {
        self.muted = false;
    }

    /// The caller lacks what it needs to execute the slot delivered last: nothing is delivered until it says `false`. What
    /// is decided meanwhile stays here, within the window.
    pub fn hold(&mut self, now: Now, held: bool, out: &mut Output) {
        if core::mem::replace(&mut self.held, held) && !held {
            self.deliver_ready(now, out);
        }
    }

    /// Whether this replica has a vote at all now.
    #[must_use]
    pub fn is_voter(&self) -> bool {
        !self.muted && self.has_weight(self.me, self.incarnation)
    }

    #[must_use]
    pub fn primary(&self) -> ReplicaId {
        self.view.primary(self.quorum.n())
    }

    /// This replica is the primary of an active view and may vote.
    #[must_use]
    pub fn is_primary(&self) -> bool {
        self.active && self.primary() == self.me && self.is_voter()
    }

    /// What must be durable before anything that follows from our votes may leave.
    #[must_use]
    pub fn vote_ticket(&self) -> Ticket {
        self.after(self.vote_ticket)
    }

    #[must_use]
    pub fn view(&self) -> View {
        self.view
    }

    #[must_use]
    pub fn is_active(&self) -> bool {
        self.active
    }

    #[must_use]
    pub fn delivered(&self) -> Sequence {
        self.delivered
    }

    /// The sequence that the next proposal would get.
    #[must_use]
    pub fn next_sequence(&self) -> Sequence {
        self.next_sequence
    }

    #[must_use]
    pub fn quorum(&self) -> Quorum {
        self.quorum
    }

    #[must_use]
    pub fn configurations(&self) -> &Configurations {
        &self.configurations
    }

    #[must_use]
    pub fn stable_sequence(&self) -> Sequence {
        self.stable.as_ref().map_or(Sequence::ZERO, |certificate| certificate.claim.sequence)
    }

    #[must_use]
    pub fn stable_certificate(&self) -> Option<&Certificate> {
        self.stable.as_ref()
    }

    /// Sequences not delivered yet of which anything is held: at most two windows, one up to a stable checkpoint that we
    /// have yet to reach and one ahead of it.
    #[must_use]
    pub fn slots_ahead(&self) -> usize {
        self.slots.range(self.delivered.next()..).count()
    }

    /// The highest sequence anybody claims to have executed, and ours.
    #[must_use]
    pub fn highest_seen(&self) -> Sequence {
        self.standings
            .values()
            .map(|(_, standing)| standing.executed)
            .max()
            .unwrap_or_default()
            .max(self.delivered)
    }

    /// The latest standing of a peer and when it came.
    #[must_use]
    pub fn standing_of(&self, peer: ReplicaId) -> Option<(Micros, &Standing)> {
        self.standings.get(&peer).map(|(at, standing)| (*at, standing))
    }

    /// A member entry was executed: from `after` on, `configuration` governs.
    pub fn push_configuration(&mut self, after: Sequence, configuration: Configuration) {
        let replaced: Vec<ReplicaId> = configuration
            .members
            .iter()
            .filter(|member| {
                let before = self.configurations.latest().member(member.id);
                before.is_some_and(|before| before.incarnation != member.incarnation)
            })
            .map(|member| member.id)
            .collect();
        for id in replaced {
            self.view_changes.remove(&id);
            self.last_votes.remove(&id);
            self.highest_votes.remove(&id);
            self.standings.remove(&id);
            self.future.remove(&id);
        }
        self.configurations.push(after, configuration);
    }

    /// The log is needed from this ticket on, given a durable snapshot at `snapshot`.
    pub fn on_snapshot(&mut self, snapshot: Sequence, out: &Output) -> Ticket {
        self.snapshot = self.snapshot.max(snapshot);
        self.kept_tickets.covered(self.snapshot);
        let slots = self.slots.values().filter_map(|slot| slot.first_ticket).min();
        let kept = self.kept_tickets.first();
        let view = (self.view_ticket != Ticket::ZERO).then_some(self.view_ticket);
        [slots, kept, view].into_iter().flatten().min().unwrap_or_else(|| out.last_ticket().next())
    }

    /// Which snapshot peers are fetching from us.
    pub fn note_fetched(&mut self, snapshot: Option<Sequence>) {
        self.fetched = snapshot;
    }

    pub(crate) fn refuse(&self, from: ReplicaId, reason: &'static str, out: &mut Output) {
        out.push(Action::Refused { from, reason });
    }
}
