//! The replica: its parts, the dispatch of inputs, and the translation of the protocol's actions into effects.

use crate::admit::{Clients, Judge};
use crate::bodies::{Body, Fetch};
use crate::config::Setup;
use crate::control::Control;
use crate::court::Court;
use crate::io::{
    Advice, Answered, Class, ClientReply, ClientRequest, Effect, Event, Input, ReadLabel, Unanswered,
};
use crate::pool::Pool;
use crate::segment::{Early, Retired, SegmentNode};
use crate::serve::Donor;
use crate::transfer::{Purpose, Transfer};
use crate::wire::{LogRecord, PeerMessage};
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::sync::Arc;
use alloc::vec::Vec;
use bytes::Bytes;
use dwcp_base::{
    ClusterId, Crypto, Epoch, Hash, Index, Micros, NetworkMode, Now, ReplicaId, Sequence, Ticket, View,
    encode,
};
use dwcp_log::{Place, Proposal, RootEntry, VirtualLog};
use dwcp_pbft::{Action, Decided, Message, Output, Pbft};
use dwcp_state::{CLUSTER_VERSION_MAX, FrozenState, State, StateMachine};

/// Makes an empty machine: one to start with, and one for every snapshot that is fetched.
pub type MachineFactory<M> = Arc<dyn Fn() -> M + Send + Sync>;

/// Effects in the order in which they are to be carried out.
#[derive(Debug, Default)]
pub struct Outbox {
    effects: Vec<Effect>,
}

impl Outbox {
    pub fn push(&mut self, effect: Effect) {
        self.effects.push(effect);
    }

    pub(crate) fn event(&mut self, event: Event) {
        self.effects.push(Effect::Event(event));
    }

    /// Takes what has gathered.
    pub fn drain(&mut self) -> Vec<Effect> {
        core::mem::take(&mut self.effects)
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.effects.is_empty()
    }
}

/// A state that was frozen at a checkpoint and waits for its certificate.
pub(crate) struct Frozen<M: StateMachine> {
    pub sequence: Sequence,
    /// What it covers of the segments: see `Replica::epoch_covered`.
    pub epoch: (Epoch, Option<Place>),
    pub control: Vec<u8>,
    pub digests: Vec<Hash>,
    pub state: FrozenState<M>,
}

/// Proposals kept until they can be prepared.
const KEPT_MAX: usize = 8;

/// One node of the cluster. See the crate's picture.
pub struct Replica<M: StateMachine> {
    pub(crate) setup: Setup,
    pub(crate) cluster: ClusterId,
    pub(crate) crypto: Arc<dyn Crypto>,
    pub(crate) make_machine: MachineFactory<M>,

    pub(crate) pbft: Pbft,
    pub(crate) protocol: Output,
    pub(crate) control: Control,
    pub(crate) state: State<M>,
    /// The head of the virtual log as executed here; with a segment open it runs ahead of the root.
    pub(crate) live: VirtualLog,
    pub(crate) segment: Option<SegmentNode<M>>,
    /// Raft nodes of segments that are over, until a durable snapshot covers them; at most `RETIRED_MAX`, the newest.
    pub(crate) retired: BTreeMap<Epoch, Retired>,
    /// The newest segment dropped from `retired` for want of room that no durable snapshot covers, and the first record on
    /// disk of any such.
    pub(crate) dropped: Option<(Epoch, Option<Ticket>)>,
    /// Records of segments that the disk remembers and that have not opened again yet. Filled once, at the start, with no more
    /// than the log on disk holds.
    pub(crate) remembered: BTreeMap<Epoch, Vec<(Ticket, Bytes)>>,
    pub(crate) early: Early,
    /// Ends of segments that were fetched and are on disk, beside those in use; what the disk remembers of them comes here
    /// first. At most `BODIES_MAX` for each epoch that no durable snapshot covers.
    pub(crate) bodies: BTreeMap<Epoch, Vec<Body>>,
    /// The newest record of one: nothing that may rest on it leaves before.
    pub(crate) body_ticket: Ticket,
    /// The first epoch whose records are still on our disk, if we took part in it.
    pub(crate) remembers_from: Epoch,
    /// Entries that a Close needs and we lack.
    pub(crate) fetch: Option<Fetch>,
    /// The tail last seen that goes ahead of our clock, and since when.
    pub(crate) ahead: Option<(Place, Micros)>,
    /// Decided slots that cannot be executed yet: the first ends a segment whose entries are on their way. At most what the
    /// protocol delivered before it was told to hold.
    pub(crate) blocked: VecDeque<(Decided, View)>,
    /// Proposals that we cannot prepare yet, from the primary; at most `KEPT_MAX`.
    pub(crate) kept: VecDeque<(ReplicaId, Message)>,
    /// The Open under way.
    pub(crate) opening: Option<(View, Sequence)>,
    /// Where the log stood when an Open was last proposed. What opens begins where the fold is; a mutant takes this.
    pub(crate) base_seen: Option<VirtualLog>,
    /// Peers whose link is known to be down.
    pub(crate) down: BTreeSet<ReplicaId>,
    pub(crate) straggler_helped: BTreeMap<ReplicaId, Micros>,
    /// At this Tick our state is not what an Anchor says.
    pub(crate) found_diverged: Option<Index>,
    /// Bytes and entries of the open segment that the last snapshot covers.
    pub(crate) segment_at_snapshot: (u64, u64),
    /// Bytes of closed segments that no snapshot covers.
    pub(crate) closed_uncovered: u64,
    pub(crate) switches: crate::status::Switches,

    pub(crate) pool: Pool,
    /// Convergent state, beside the ordered one.
    pub(crate) sync: Option<crate::sync::SyncRoom>,
    pub(crate) clients: Clients,
    pub(crate) donor: Donor,
    pub(crate) transfer: Option<Transfer<M>>,
    /// Fetched in an earlier life and not finished: chunks by sequence, at most what one snapshot has.
    pub(crate) partial: Vec<(Sequence, Vec<(u32, Bytes)>)>,
    pub(crate) frozen: Option<Frozen<M>>,
    /// Given to the driver and not yet durable.
    pub(crate) saving: Option<Sequence>,
    pub(crate) saving_epoch: (Epoch, Option<Place>),
    pub(crate) last_digest: (Sequence, Hash),
    pub(crate) next_tick: Micros,
    /// Members whose `votes_after` lies at or below this are known to vote again.
    pub(crate) readmitted_to: Sequence,
    /// Named reasons and how often; one per reason in the code.
    pub(crate) counters: BTreeMap<&'static str, u64>,
    pub(crate) last_heard: BTreeMap<ReplicaId, Micros>,
    /// Recovering from disk: what is executed is known to the world already.
    pub(crate) recovering: bool,
    /// `bytes_executed` at the last checkpoint.
    pub(crate) bytes_at_checkpoint: u64,
    /// A peer needs a snapshot that we do not have: the next checkpoint is written down.
    pub(crate) snapshot_wanted: bool,
    /// Our state is known to be wrong: nobody is answered until it is replaced.
    pub(crate) diverged: bool,
    pub(crate) halted: bool,
    /// No input has come yet.
    pub(crate) newborn: bool,
}

impl<M: StateMachine> core::fmt::Debug for Replica<M> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Replica")
            .field("me", &self.setup.me)
            .field("view", &self.pbft.view())
            .field("executed", &self.control.executed)
            .finish_non_exhaustive()
    }
}

impl<M: StateMachine> Replica<M> {
    /// Takes one input. Effects are appended to `out` in the order in which they must happen.
    pub fn step(&mut self, now: Now, input: Input, out: &mut Outbox) {
        self.step_all(now, [input], out);
    }

    /// Takes inputs that are all there already, in order. The outcome is that of stepping one by one; the cost is less,
    /// because their signatures are verified together.
    pub fn step_all(&mut self, now: Now, inputs: impl IntoIterator<Item = Input>, out: &mut Outbox) {
        if self.halted {
            return;
        }
        if core::mem::take(&mut self.newborn) {
            self.pbft.begin(now);
        }
        for arrival in self.read_all(now, inputs, out) {
            if self.halted {
                break;
            }
            self.handle(now, arrival, out);
            self.carry_out(now, out);
            self.drive_sync(now, out);
        }
        self.pbft.forget_proven();
    }

    pub(crate) fn on_input(&mut self, now: Now, input: Input, out: &mut Outbox) {
        match input {
            Input::LinkUp { peer } => {
                self.down.remove(&peer);
                self.pbft.on_link_up(peer, &mut self.protocol);
            }
            Input::LinkDown { peer } => self.on_link_down(now, peer, out),
            Input::Durable { through } => {
                self.on_durable(now, through);
                self.carry_out(now, out);
                self.sync_on_durable(through, out);
            }
            Input::Client { client, request } => self.on_client(now, client, request, out),
            Input::ClientGone { client } => {
                self.clients.gone(client);
                self.sync_client_gone(client);
            }
            Input::Wake => self.on_wake(now, out),
            Input::Settle => self.on_settle(now, out),
            Input::ChunkRead { token, bytes } => self.on_chunk_read(token, bytes, out),
            Input::SnapshotSaved { sequence } => self.on_snapshot_saved(now, sequence, out),
            Input::SnapshotFailed { sequence } => self.on_snapshot_failed(sequence, out),
            Input::Peer { .. } => unreachable!("messages of peers were read at the border"),
        }
    }

    pub(crate) fn on_message(&mut self, now: Now, from: ReplicaId, message: PeerMessage, out: &mut Outbox) {
        match message {
            PeerMessage::Pbft(message) => self.on_root_message(now, from, message, out),
            PeerMessage::Request { .. } => unreachable!("frames were read at the border"),
            PeerMessage::Order(order) => self.on_relayed_order(from, order, out),
            PeerMessage::FetchOffer { at_least } => self.on_fetch_offer(now, from, at_least, out),
            PeerMessage::Offer(meta) => self.on_offer(now, from, meta, out),
            PeerMessage::FetchChunk { sequence, index, offset } => {
                self.on_fetch_chunk(now, from, sequence, index, offset, out);
            }
            PeerMessage::Chunk { sequence, index, offset, bytes } => {
                self.on_chunk(now, from, sequence, index, offset, bytes, out);
            }
            PeerMessage::NoChunk { sequence, index: _ } => self.on_no_chunk(now, from, sequence, out),
            PeerMessage::Segment { epoch, bytes } => self.on_segment(now, from, epoch, bytes, out),
            PeerMessage::Suspect(signed) => self.on_suspect(now, from, signed, out),
            PeerMessage::Stop { epoch, stop } => self.on_stop(now, from, epoch, stop, out),
            PeerMessage::Sealed(signed) => self.on_sealed(now, from, signed, out),
            PeerMessage::AnchorVote(signed) => self.on_anchor_vote(from, signed, out),
            PeerMessage::FetchEntries { epoch, from: first, tail } => {
                self.on_fetch_entries(from, epoch, first, tail, out);
            }
            PeerMessage::Entries { epoch, first, entries } => {
                self.on_entries(now, from, epoch, first, entries, out);
            }
            PeerMessage::Behind { epoch } => self.on_told_behind(now, from, epoch, out),
            PeerMessage::Sync(_)
            | PeerMessage::SyncOrder { .. }
            | PeerMessage::SyncStand { .. }
            | PeerMessage::SyncFetch { .. }
            | PeerMessage::SyncOffer { .. }
            | PeerMessage::SyncPart { .. } => {
                self.on_sync_message(now, from, message, out);
            }
            PeerMessage::SyncAsk { matter, ground, bytes } => {
                self.on_ask(now, from, (matter, ground), &bytes, out);
            }
            PeerMessage::SyncAgreed { matter, agreed } => self.on_agreed(now, from, matter, agreed, out),
            PeerMessage::SyncConsent { matter, ground, content, stance, signature, stands } => {
                self.on_consent(from, (matter, ground, content), (stance, signature), &stands, out);
            }
        }
    }

    /// A message of the root protocol. A proposal that ends a segment whose entries are not here yet waits for them.
    fn on_root_message(&mut self, now: Now, from: ReplicaId, message: Message, out: &mut Outbox) {
        if let Message::PrePrepare { payload, .. } = &message
            && from == self.pbft.primary()
            && self.keep_switch(now, payload, out)
        {
            if self.kept.len() >= KEPT_MAX {
                self.kept.pop_front();
            }
            self.kept.push_back((from, message));
            return;
        }
        self.judged(|pbft, judge, protocol| pbft.on_message(now, from, message, judge, protocol));
    }

    /// Calls the root protocol together with who judges proposals for it.
    fn judged(&mut self, call: impl FnOnce(&mut Pbft, &mut Judge<'_, M>, &mut Output)) {
        let quorum = self.pbft.quorum();
        let mut judge = Judge {
            pool: &self.pool,
            log_time: self.state.log_time(),
            court: Court {
                cluster: self.cluster,
                crypto: &*self.crypto,
                quorum,
                mutants: self.setup.mutants,
                control: &self.control,
                segment: self.segment.as_ref(),
            },
        };
        call(&mut self.pbft, &mut judge, &mut self.protocol);
    }

    /// Proposals that waited are looked at again.
    pub(crate) fn retry_kept(&mut self, now: Now, out: &mut Outbox) {
        for (from, message) in core::mem::take(&mut self.kept) {
            self.on_root_message(now, from, message, out);
            self.carry_out(now, out);
        }
    }

    fn on_link_down(&mut self, now: Now, peer: ReplicaId, out: &mut Outbox) {
        self.down.insert(peer);
        if self.control.steering.mode == NetworkMode::Hybrid {
            // A leader that is gone is grounds to leave the fast path, and everybody must know what it leaves undone.
            return self.relay_due(now, out);
        }
        if let Some(raft) = self.segment.as_mut().and_then(|segment| segment.raft.as_mut()) {
            raft.on_link_down(now, peer);
        }
    }

    fn on_client(&mut self, now: Now, client: crate::ClientId, request: ClientRequest, out: &mut Outbox) {
        match request {
            ClientRequest::Attach { session } => self.clients.attach(client, session),
            ClientRequest::Frame { .. } => unreachable!("frames were read at the border"),
            ClientRequest::Order { id, bytes } => self.on_order(client, id, &bytes, out),
            ClientRequest::Sync { id, request } => self.on_sync_request(now, client, id, request, out),
            ClientRequest::Read { id, bytes, ack } => self.on_read(now, client, (id, bytes, ack), out),
            ClientRequest::Query { id, bytes } => {
                let outcome = self.read_state(&bytes, ReadLabel::Stale);
                let reply = ClientReply::Query { id, outcome };
                out.push(Effect::Reply { client, after: Ticket::ZERO, reply });
            }
            ClientRequest::Status { id } => {
                let status = alloc::boxed::Box::new(self.status(now));
                let reply = ClientReply::Status { id, status };
                out.push(Effect::Reply { client, after: Ticket::ZERO, reply });
            }
        }
    }

    /// Reads the state as it is now.
    pub(crate) fn read_state(&self, bytes: &[u8], label: ReadLabel) -> Result<Answered, Unanswered> {
        if self.diverged {
            let reason = "this replica's state diverged and is being replaced: ask another".into();
            return Err(Unanswered { reason, advice: Advice::Elsewhere });
        }
        match self.state.query(bytes) {
            Ok(bytes) => {
                let (position, view) = (self.live.position, self.pbft.view());
                Ok(Answered { bytes, label, position, view })
            }
            Err(error) => Err(Unanswered { reason: alloc::format!("{error}"), advice: Advice::Nowhere }),
        }
    }

    /// Why this replica, as a backup, would not prepare a proposal. For tests and tools.
    #[must_use]
    pub fn would_refuse(&self, now: Now, payload: &Bytes) -> Option<&'static str> {
        let mut judge = Judge { pool: &self.pool, log_time: self.state.log_time(), court: self.court() };
        dwcp_pbft::Application::check(&mut judge, now, payload).err()
    }

    fn on_wake(&mut self, now: Now, out: &mut Outbox) {
        self.relay_due(now, out);
        self.settle_oldest(out);
        self.pbft.set_waiting(self.root_waits_since(now));
        self.judged(|pbft, judge, protocol| pbft.on_time(now, judge, protocol));
        self.carry_out(now, out);
        self.transfer_on_time(now, out);
        // Whose state is wrong takes no part until it is replaced.
        let open = self.segment.as_mut().filter(|_| !self.diverged);
        if let Some(raft) = open.and_then(|segment| segment.raft.as_mut()) {
            raft.tick(now);
        }
        self.failover_on_time(now, out);
        self.propose_tick(now);
        self.sync_on_time(now);
    }

    fn on_settle(&mut self, now: Now, out: &mut Outbox) {
        self.execute_ready(now, out);
        self.settle_segment(now, out);
        self.retry_kept(now, out);
        self.ask_instead(now, out);
        self.propose_pending(now, out);
        self.carry_out(now, out);
        self.drain_segment(now, out);
        self.settle_oldest(out);
        self.pbft.set_waiting(self.root_waits_since(now));
    }

    /// Since when the root owes us something. While a segment is open, clients' commands are not the root's to serve.
    fn root_waits_since(&self, now: Now) -> Option<Micros> {
        let commands =
            if self.segment.is_some() { self.root_owes_since(now) } else { self.pool.oldest_known_to_all() };
        commands.into_iter().chain(self.handed_since()).min()
    }

    /// The moment at which `Input::Wake` is due.
    #[must_use]
    pub fn next_wakeup(&self) -> Micros {
        self.wakeups().into_iter().map(|(_, due)| due).min().unwrap_or(Micros::NEVER)
    }

    /// When each room wants to be woken: for whoever wonders why a replica does not sleep.
    #[must_use]
    pub fn wakeups(&self) -> [(&'static str, Micros); 6] {
        let relay = self.pool.oldest_unrelayed().map(|oldest| oldest.plus(self.relay_patience()));
        let timed = self.segment.is_none() && self.state.wants_ticks().is_some();
        let beats = self.pbft.is_primary() && (timed || self.window_must_move() || self.wants_open());
        let transfer = self.transfer.as_ref().map(crate::transfer::Transfer::next_look);
        [
            ("root", self.pbft.next_wakeup()),
            ("relay", relay.unwrap_or(Micros::NEVER)),
            ("beat", if beats { self.next_tick } else { Micros::NEVER }),
            ("transfer", transfer.unwrap_or(Micros::NEVER)),
            ("segment", self.segment_wakeup()),
            ("sync", self.sync.as_ref().map_or(Micros::NEVER, crate::sync::SyncRoom::next_wakeup)),
        ]
    }

    /// Executes what was delivered, as far as everything it takes is here.
    pub(crate) fn execute_ready(&mut self, now: Now, out: &mut Outbox) {
        while let Some((decided, _)) = self.blocked.front() {
            if self.lacks_entries(now, &decided.payload.clone(), out) {
                return self.pbft.hold(now, true, &mut self.protocol);
            }
            let Some((decided, view)) = self.blocked.pop_front() else { break };
            self.apply(now, &decided, view, out);
            self.check_version(out);
            if self.halted {
                return;
            }
        }
        self.pbft.hold(now, false, &mut self.protocol);
    }

    /// A cluster that was raised to a version of which this program knows nothing goes on without it.
    pub(crate) fn check_version(&mut self, out: &mut Outbox) {
        let version = self.state.cluster_version();
        if version > CLUSTER_VERSION_MAX && !self.halted {
            self.halted = true;
            let reason = alloc::format!(
                "the cluster was raised to version {version} and this program knows {CLUSTER_VERSION_MAX} at most: start a newer one"
            );
            out.push(Effect::Halt { reason });
        }
    }

    /// Whether a decided slot ends the open segment at a tail that is not held here; it is then asked for.
    fn lacks_entries(&mut self, now: Now, payload: &Bytes, out: &mut Outbox) -> bool {
        if self.segment.is_none() {
            return false;
        }
        let Ok(Some(proposal)) = Proposal::from_payload(payload) else { return false };
        let Some(mut segment) = self.control.fold.segment().cloned() else { return false };
        for entry in &proposal.entries {
            if let RootEntry::Anchor(anchor) = entry
                && anchor.held.epoch == segment.epoch
                && anchor.held.index > segment.anchor.index
                && self.court().anchor_holds(anchor)
            {
                // It voids a Close behind it, whose entries nobody keeps then.
                segment.anchor.number += 1;
            }
            if let RootEntry::Switch(switch) = entry
                && let Some(close) = &switch.close
                && self.court().judge_close(&segment, close).is_ok()
            {
                // What is asked for may be at hand already, from an earlier life.
                if !self.court().holds_tail(&segment, &close.tail) {
                    self.fetch_tail(now, close.tail, true, out);
                }
                if !self.court().holds_tail(&segment, &close.tail) {
                    return true;
                }
                if !self.can_execute_to(&close.tail) {
                    self.fetch_to_execute(now, close.tail, out);
                }
                if !self.can_execute_to(&close.tail) {
                    return true;
                }
            }
        }
        false
    }

    /// Turns the protocol's actions into effects, executing what was delivered, until nothing is left.
    pub(crate) fn carry_out(&mut self, now: Now, out: &mut Outbox) {
        loop {
            let actions = self.protocol.take();
            if actions.is_empty() {
                return;
            }
            for action in actions {
                self.carry_out_one(now, action, out);
            }
        }
    }

    fn carry_out_one(&mut self, now: Now, action: Action, out: &mut Outbox) {
        match action {
            Action::Persist { ticket, record } => {
                out.push(Effect::Persist { ticket, record: LogRecord::root(&record), prompt: false });
            }
            Action::Broadcast { message, after } => {
                let class = class_of(&message);
                self.send_all(&PeerMessage::Pbft(message), class, after, out);
            }
            Action::Send { to, message, after } => {
                let class = class_of(&message);
                let bytes = Bytes::from(encode(&PeerMessage::Pbft(message)));
                out.push(Effect::Send { to, class, after, bytes });
            }
            Action::Deliver(decided, view) => {
                self.blocked.push_back((decided, view));
                self.execute_ready(now, out);
            }
            Action::Stable { sequence, digest } => self.on_stable(sequence, digest, out),
            Action::Diverged { sequence, own, certified } => {
                self.count("diverged");
                out.event(Event::Diverged { sequence, own, certified });
                self.diverged = true;
                self.pbft.mute();
                self.start_transfer(now, sequence, Purpose::Wrong, out);
            }
            Action::ViewChangeStarted { view, reason } => {
                self.count("view changes started");
                out.event(Event::ViewChangeStarted { view, reason });
            }
            Action::ViewEntered { view, primary, gaps, carried } => {
                out.event(Event::ViewEntered { view, primary, gaps, carried });
                self.on_view_entered(now, view, primary, out);
            }
            Action::NeedSnapshot { from: _, at_least } => {
                self.start_transfer(now, at_least, Purpose::Old, out)
            }
            Action::Refused { from, reason } => self.refuse_peer(from, reason, out),
            Action::Halt { reason } => {
                self.halted = true;
                out.push(Effect::Halt { reason: reason.into() });
            }
        }
    }

    fn on_view_entered(&mut self, _now: Now, _view: View, primary: ReplicaId, out: &mut Outbox) {
        if primary == self.setup.me {
            self.pool.new_turn();
            return;
        }
        if self.segment.is_none() {
            self.pool.new_turn();
            self.show_all_to(primary, out);
        }
        let orders: Vec<_> = self.pool.orders().cloned().collect();
        for order in orders {
            self.send_one(primary, &PeerMessage::Order(order), Class::Request, out);
        }
    }

    pub(crate) fn send_all(&self, message: &PeerMessage, class: Class, after: Ticket, out: &mut Outbox) {
        let bytes = Bytes::from(encode(message));
        for id in (0..self.pbft.quorum().n()).map(ReplicaId).filter(|id| *id != self.setup.me) {
            out.push(Effect::Send { to: id, class, after, bytes: bytes.clone() });
        }
    }

    /// For messages that promise nothing and wait for nothing.
    pub(crate) fn send_one(&self, to: ReplicaId, message: &PeerMessage, class: Class, out: &mut Outbox) {
        out.push(Effect::Send { to, class, after: Ticket::ZERO, bytes: Bytes::from(encode(message)) });
    }

    pub(crate) fn count(&mut self, reason: &'static str) {
        *self.counters.entry(reason).or_default() += 1;
    }

    pub(crate) fn refuse_peer(&mut self, from: ReplicaId, reason: &'static str, out: &mut Outbox) {
        self.count(reason);
        out.event(Event::Refused { from: Some(from), reason });
    }

    /// Checks what must always hold.
    ///
    /// # Panics
    /// When something does not, saying what.
    pub fn check(&self) {
        if self.setup.mutants.any() {
            return;
        }
        self.pbft.check();
        let waiting = self.blocked.len() as u64;
        assert!(
            self.control.executed.0 + waiting == self.pbft.delivered().0,
            "what is delivered is executed, or waits for entries"
        );
        self.check_segment();
        if let Some(room) = &self.sync {
            room.check();
        }
        if let Some(transfer) = &self.transfer {
            transfer.check();
        }
        assert!(self.pool.bytes() <= self.setup.settings.pending_bytes_max, "the pool keeps to its bound");
    }

    /// For proofs: see `Store::flip_bit`.
    #[cfg(feature = "mutants")]
    pub fn flip_bit(&mut self, key: &[u8], from: usize) -> bool {
        self.sync.as_mut().is_some_and(|room| room.flip_bit(key, from))
    }

    /// Convergent state; `None` where it is turned off, or this incarnation is no member yet.
    #[must_use]
    pub fn convergent(&self) -> Option<crate::sync::Convergent<'_>> {
        self.sync.as_ref()?.face()
    }

    #[must_use]
    pub fn state(&self) -> &State<M> {
        &self.state
    }

    #[must_use]
    pub fn control(&self) -> &Control {
        &self.control
    }

    pub(crate) fn court(&self) -> Court<'_, M> {
        Court {
            cluster: self.cluster,
            crypto: &*self.crypto,
            quorum: self.pbft.quorum(),
            mutants: self.setup.mutants,
            control: &self.control,
            segment: self.segment.as_ref(),
        }
    }

    /// The head of the virtual log as executed here.
    #[must_use]
    pub fn head(&self) -> VirtualLog {
        self.live
    }

    #[must_use]
    pub fn protocol(&self) -> &Pbft {
        &self.pbft
    }
}

fn class_of(message: &Message) -> Class {
    match message {
        Message::PrePrepare { .. } | Message::Payload { .. } => Class::Order,
        Message::Decided(_) => Class::Bulk,
        Message::Vote(_)
        | Message::ViewChange(_)
        | Message::NewView(_)
        | Message::FetchViewChange { .. }
        | Message::Standing(_)
        | Message::FetchPayload { .. }
        | Message::FetchDecided { .. }
        | Message::Stable(_)
        | Message::Reminder(_)
        | Message::Introduce { .. }
        | Message::Introduction(_) => Class::Vote,
    }
}
