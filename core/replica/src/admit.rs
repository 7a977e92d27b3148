//! Client frames at the border: read, verified, judged, answered from the session table or put in the pool. Also what
//! a backup checks before it prepares a proposal. Never orders and never executes.

use crate::apply::Answer;
use crate::arrival::ReadFrame;
use crate::court::Court;
use crate::io::{Class, ClientId, ClientReply, Effect, Event, NotNow, OrderOutcome};
use crate::pool::{Pending, Pool};
use crate::replica::{Outbox, Replica};
use crate::wire::PeerMessage;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::ToString;
use alloc::vec::Vec;
use bytes::Bytes;
use dwcp_base::limits::CLOCK_AHEAD_MAX_MS;
use dwcp_base::{Ack, Hash, LogTime, Micros, Mutant, NetworkMode, Now, ReplicaId, Ticket, decode};
use dwcp_log::{Matter, OperatorOrder, Proposal, RootEntry, SignedOrder};
use dwcp_pbft::Application;
use dwcp_state::{
    AdminCommand, Admission, CLUSTER_VERSION_MAX, CheckedFrame, ClientFrame, Command, FrameContent,
    FrameOutcome, Refusal, SessionId, State, StateMachine,
};

/// Clients that may wait for an operator's order.
const ORDERS_WAITING_MAX: usize = 64;
/// What is said about a segment waits for its Anchor so many anchor intervals before their absence counts.
const UNANCHORED_INTERVALS: u64 = 10;
/// Sessions one client connection may attach; of more it would hear nothing, so whoever drives the core takes no more.
pub const ATTACHES_MAX: usize = 4_096;
/// Wishes about acknowledgements that are remembered, in all and of one connection.
const ACKS_MAX: usize = 65_536;
const ACKS_PER_CLIENT_MAX: usize = 8_192;

/// Which connections want to hear of which sessions. Bounded by the driver's connections times the sessions of each.
#[derive(Clone, Debug, Default)]
pub(crate) struct Clients {
    /// The reverse of `by_client`.
    by_session: BTreeMap<SessionId, BTreeSet<ClientId>>,
    /// Of each connection at most `ATTACHES_MAX`.
    by_client: BTreeMap<ClientId, BTreeSet<SessionId>>,
    /// Who waits for which order: at most `ORDERS_WAITING_MAX`.
    pub(crate) orders: Vec<(ClientId, u64, OperatorOrder)>,
    /// What clients said about single frames; the policy's default is not kept. At most `ACKS_MAX`, as `acks_kept` counts,
    /// and `ACKS_PER_CLIENT_MAX` of each.
    acks: BTreeMap<ClientId, BTreeMap<(SessionId, u64), Ack>>,
    acks_kept: usize,
}

impl Clients {
    pub(crate) fn attach(&mut self, client: ClientId, session: SessionId) {
        let sessions = self.by_client.entry(client).or_default();
        if sessions.len() < ATTACHES_MAX && sessions.insert(session) {
            self.by_session.entry(session).or_default().insert(client);
        }
    }

    /// This client wants to hear of this frame so. False when too many wishes wait.
    pub(crate) fn wish(&mut self, client: ClientId, session: SessionId, first: u64, ack: Ack) -> bool {
        let of_client = self.acks.entry(client).or_default();
        let fits = self.acks_kept < ACKS_MAX && of_client.len() < ACKS_PER_CLIENT_MAX;
        if fits && of_client.insert((session, first), ack).is_none() {
            self.acks_kept += 1;
        }
        if of_client.is_empty() {
            self.acks.remove(&client);
        }
        fits
    }

    /// What this client said about this frame, now to be acted on.
    pub(crate) fn take_wish(&mut self, client: ClientId, session: SessionId, first: u64) -> Option<Ack> {
        let of_client = self.acks.get_mut(&client)?;
        let ack = of_client.remove(&(session, first))?;
        self.acks_kept -= 1;
        if of_client.is_empty() {
            self.acks.remove(&client);
        }
        Some(ack)
    }

    pub(crate) fn gone(&mut self, client: ClientId) {
        self.acks_kept -= self.acks.remove(&client).map_or(0, |of_client| of_client.len());
        for session in self.by_client.remove(&client).unwrap_or_default() {
            if let Some(clients) = self.by_session.get_mut(&session) {
                clients.remove(&client);
                if clients.is_empty() {
                    self.by_session.remove(&session);
                }
            }
        }
        self.orders.retain(|(waiting, ..)| *waiting != client);
    }

    pub(crate) fn of(&self, session: SessionId) -> impl Iterator<Item = ClientId> + '_ {
        self.by_session.get(&session).into_iter().flatten().copied()
    }

    pub(crate) fn any_of(&self, session: SessionId) -> bool {
        self.by_session.contains_key(&session)
    }
}

/// What a backup checks before it prepares.
pub(crate) struct Judge<'a, M: StateMachine> {
    pub pool: &'a Pool,
    pub log_time: LogTime,
    pub court: Court<'a, M>,
}

impl<M: StateMachine> Application for Judge<'_, M> {
    fn check(&mut self, now: Now, payload: &Bytes) -> Result<(), &'static str> {
        let (cluster, mutants) = (self.court.cluster, self.court.mutants);
        let Some(proposal) = Proposal::from_payload(payload).map_err(|_| "a proposal that is malformed")?
        else {
            return Err("a null request outside a new view");
        };
        let latest = LogTime(now.wall_ms + CLOCK_AHEAD_MAX_MS).max(self.log_time);
        if proposal.time > latest && !mutants.on(Mutant::ClockUnchecked) {
            return Err("a proposal from the future");
        }
        let mut signatures = Vec::new();
        for entry in &proposal.entries {
            match entry {
                RootEntry::Batch(frames) => {
                    for frame in frames {
                        // A frame that waits in our pool was verified when it came.
                        if self.pool.holds(&Hash::of(frame)) {
                            continue;
                        }
                        if crate::sync::is_sync(frame) {
                            signatures.push(crate::sync::signature_item(
                                self.court.control,
                                cluster,
                                now,
                                frame,
                            )?);
                            continue;
                        }
                        let checked = ClientFrame::decode(frame.clone())
                            .map_err(|_| "a proposal with a malformed frame")?;
                        signatures.push(checked.signature_item(cluster));
                    }
                }
                RootEntry::Switch(switch) => self.court.may_prepare_switch(switch)?,
                RootEntry::Anchor(anchor) => {
                    // One that proves nothing is a no-op; but the label `byzantine` means that q replicas looked.
                    let current = self.court.control.fold.segment().map(|segment| segment.epoch);
                    if current == Some(anchor.held.epoch) && !self.court.anchor_holds(anchor) {
                        return Err("an Anchor that proves nothing");
                    }
                }
                // Judged where it is executed; one that does not hold is a no-op.
                RootEntry::Decide(_) => {}
                RootEntry::Mode(order) => signatures.push(order.signature_item(cluster)),
                RootEntry::Policy(order) => signatures.push(order.signature_item(cluster)),
                RootEntry::Exclude(order) => signatures.push(order.signature_item(cluster)),
                RootEntry::Member(order) => signatures.push(order.signature_item(cluster)),
                RootEntry::Evidence(agreed) => self.court.may_prepare_agreed(Matter::End, agreed)?,
                RootEntry::Floor(agreed) => self.court.may_prepare_agreed(Matter::Floor, agreed)?,
                RootEntry::Noop => {}
            }
        }
        if mutants.on(Mutant::ClientSignatureUnchecked) || self.court.crypto.verify_all(&signatures) {
            Ok(())
        } else {
            Err("a proposal with a forged client signature")
        }
    }
}

/// Whether ordering this frame would change nothing.
fn is_void<M: StateMachine>(state: &State<M>, frame: &CheckedFrame) -> bool {
    match state.admit(frame) {
        Ok(Admission::Fresh) => false,
        // Too early by a log time that stood still, or too late for good.
        Err(Refusal::OpenNotValid { log_time_ms, valid_until_ms }) => valid_until_ms < log_time_ms,
        Ok(Admission::AllExecuted(_)) | Err(_) => true,
    }
}

impl<M: StateMachine> Replica<M> {
    /// A client's frame.
    pub(crate) fn on_frame(
        &mut self,
        now: Now,
        client: ClientId,
        frame: CheckedFrame,
        ack: Option<Ack>,
        out: &mut Outbox,
    ) {
        let (session, first) = (frame.session(), frame.sequences().start);
        self.clients.attach(client, session);
        let default = self.control.steering.policy.default_ack;
        let heard = match ack.filter(|ack| *ack != default) {
            Some(ack) => self.clients.wish(client, session, first, ack),
            None => true,
        };
        if self.diverged || !heard {
            let why = if heard { NotNow::Behind } else { NotNow::Full };
            let reply = ClientReply::Busy { session, first, why };
            return out.push(Effect::Reply { client, after: Ticket::ZERO, reply });
        }
        if let Some(refusal) = self.version_refuses(&frame).or_else(|| self.sync_refuses(&frame)) {
            self.clients.take_wish(client, session, first);
            let reply = ClientReply::Refused { session, first, refusal };
            return out.push(Effect::Reply { client, after: Ticket::ZERO, reply });
        }
        match self.state.admit(&frame) {
            Ok(Admission::AllExecuted(results)) => {
                out.event(Event::RetryAnswered { session, first });
                self.count("retries answered");
                let ran = alloc::vec![false; results.len()];
                let outcome = FrameOutcome { session, first, results, ran };
                let answer = Answer { outcome, clients: Vec::from([client]), ours: true };
                self.answer_clients(Vec::from([answer]), out);
            }
            // While nothing happens log time stands still; an open that looks too early may be right by the time it runs.
            Ok(Admission::Fresh) | Err(Refusal::OpenNotValid { .. }) => {
                self.take_frame(now, client, frame, out)
            }
            Err(Refusal::SessionExpired) if self.may_be_behind() => {
                // The session may be younger than what we have executed.
                self.clients.take_wish(client, session, first);
                let reply = ClientReply::Busy { session, first, why: NotNow::Behind };
                out.push(Effect::Reply { client, after: Ticket::ZERO, reply });
            }
            Err(refusal) => {
                self.count("frames refused");
                self.clients.take_wish(client, session, first);
                let reply = ClientReply::Refused { session, first, refusal };
                out.push(Effect::Reply { client, after: Ticket::ZERO, reply });
            }
        }
    }

    /// Why a client's frame is not taken: it raises the cluster to a version that this program does not know, and which would
    /// stop it.
    fn version_refuses(&self, frame: &CheckedFrame) -> Option<Refusal> {
        let FrameContent::Commands(frame) = frame.content() else { return None };
        let raises = |command: &Bytes| match Command::decode(command) {
            Ok(Command::Admin(AdminCommand::ClusterVersionSet { version })) => version > CLUSTER_VERSION_MAX,
            _ => false,
        };
        let version = self.state.cluster_version();
        frame.commands.iter().any(raises).then_some(Refusal::ClusterVersion { version })
    }

    /// Whether others are known to have executed what we have not.
    fn may_be_behind(&self) -> bool {
        let behind_in_segment = self.segment.as_ref().is_some_and(|segment| !segment.is_caught_up());
        self.transfer.is_some()
            || !self.blocked.is_empty()
            || behind_in_segment
            || self.pbft.highest_seen() > self.control.executed
    }

    /// Whether the open segment's log takes no more commands because fewer than a quorum are there to anchor what it holds.
    /// Where no Tick comes that could be anchored the leader is to blame: then commands are kept, for whoever waits complains.
    pub(crate) fn log_is_full(&self, now: Now) -> bool {
        let Some(segment) = &self.segment else { return false };
        let patience = self.setup.settings.segment.anchor_interval.times(UNANCHORED_INTERVALS);
        let unanchored =
            segment.anchors.unanchored_since().is_some_and(|since| now.mono.since(since) >= patience);
        unanchored && segment.raft.as_ref().is_some_and(|raft| raft.is_full())
    }

    fn take_frame(&mut self, now: Now, client: ClientId, frame: CheckedFrame, out: &mut Outbox) {
        let hash = Hash::of(frame.bytes());
        if self.pool.holds(&hash) {
            // A retry of something under way: its result will come. If it does not, the others must know of it.
            return self.pool.mark_ours(&hash);
        }
        let (session, first) = (frame.session(), frame.sequences().start);
        let bytes = frame.bytes().clone();
        let since = now.mono;
        let pending =
            Pending { frame, hash, since, from: None, known_to_all: false, proposed_in: None, ours: true };
        let bytes_max = self.setup.settings.pending_bytes_max;
        let why = if self.log_is_full(now) {
            Some(NotNow::LogFull)
        } else {
            self.pool.insert(pending, bytes_max, self.pbft.quorum().n()).is_err().then_some(NotNow::Full)
        };
        if let Some(why) = why {
            self.count("frames refused: busy");
            self.clients.take_wish(client, session, first);
            let reply = ClientReply::Busy { session, first, why };
            return out.push(Effect::Reply { client, after: Ticket::ZERO, reply });
        }
        if let Some(orderer) = self.orderer().filter(|orderer| *orderer != self.setup.me) {
            let message = PeerMessage::Request { to_all: false, frame: bytes };
            self.send_one(orderer, &message, Class::Request, out);
        }
    }

    pub(crate) fn reply_malformed(&self, client: ClientId, reason: &str, out: &mut Outbox) {
        let reply = ClientReply::Malformed { reason: reason.to_string() };
        out.push(Effect::Reply { client, after: Ticket::ZERO, reply });
    }

    /// A frame that another replica's client sent.
    pub(crate) fn on_relayed(
        &mut self,
        now: Now,
        from: ReplicaId,
        to_all: bool,
        bytes: Bytes,
        frame: Option<ReadFrame>,
        out: &mut Outbox,
    ) {
        let hash = Hash::of(&bytes);
        if self.pool.holds(&hash) {
            if to_all && self.pool.mark_known(&hash, now.mono) {
                self.tell_primary(from, bytes, out);
            }
            return;
        }
        if self.pool.executed_lately(&hash) {
            return;
        }
        let frame = match frame.unwrap_or_else(|| self.read_alone(bytes.clone())) {
            Ok(frame) => frame,
            Err(reason) => return self.refuse_peer(from, reason, out),
        };
        if !matches!(self.state.admit(&frame), Ok(Admission::Fresh) | Err(Refusal::OpenNotValid { .. })) {
            return;
        }
        let since = now.mono;
        let known_to_all = to_all;
        let pending =
            Pending { frame, hash, since, from: Some(from), known_to_all, proposed_in: None, ours: false };
        if self.pool.insert(pending, self.setup.settings.pending_bytes_max, self.pbft.quorum().n()).is_err() {
            return self.count("relayed frames dropped: busy");
        }
        if to_all {
            self.tell_primary(from, bytes, out);
        }
    }

    /// Whoever told all of us of a frame may have left the primary out, to have it blamed.
    fn tell_primary(&self, from: ReplicaId, frame: Bytes, out: &mut Outbox) {
        let tells = !self.setup.mutants.on(Mutant::RelayNotForwarded);
        let orderer = self.orderer().filter(|orderer| *orderer != self.setup.me && *orderer != from);
        if let Some(orderer) = orderer.filter(|_| tells) {
            self.send_one(orderer, &PeerMessage::Request { to_all: false, frame }, Class::Request, out);
        }
    }

    /// Takes out of the pool what needs no ordering any more (its commands ran in another frame, its session ended) and
    /// answers those of our clients. Otherwise it would wait for ever, and have us blame the primary alone.
    pub(crate) fn settle_session(&mut self, session: SessionId, out: &mut Outbox) {
        let state = &self.state;
        for pending in self.pool.take_settled(session, |frame| is_void(state, frame)) {
            self.answer_void(&pending, out);
        }
    }

    /// As [`Self::settle_session`] for whatever the view-change timer runs for.
    pub(crate) fn settle_oldest(&mut self, out: &mut Outbox) {
        while let Some(pending) =
            self.pool.oldest_known().filter(|pending| is_void(&self.state, &pending.frame))
        {
            let hash = pending.hash;
            if let Some(pending) = self.pool.remove_hash(&hash) {
                self.answer_void(&pending, out);
            }
        }
    }

    fn answer_void(&mut self, pending: &Pending, out: &mut Outbox) {
        let (session, first) = (pending.frame.session(), pending.frame.sequences().start);
        let clients: Vec<ClientId> = self.clients.of(session).collect();
        if clients.is_empty() || self.recovering || self.diverged {
            return;
        }
        let reply = match self.state.admit(&pending.frame) {
            Ok(Admission::AllExecuted(results)) => {
                let ran = alloc::vec![false; results.len()];
                let outcome = FrameOutcome { session, first, results, ran };
                let answer = Answer { outcome, clients, ours: true };
                return self.answer_clients(Vec::from([answer]), out);
            }
            Ok(Admission::Fresh) => return,
            Err(refusal) => ClientReply::Refused { session, first, refusal },
        };
        let after = self.pbft.vote_ticket();
        for client in clients {
            self.clients.take_wish(client, session, first);
            out.push(Effect::Reply { client, after, reply: reply.clone() });
        }
    }

    /// How long a frame of ours may wait until all are shown it. Not at all while the leader is known to be gone: complaints
    /// count only from those who know that something waits.
    pub(crate) fn relay_patience(&self) -> Micros {
        let gone = self.segment.as_ref().is_some_and(|segment| self.leader_is_gone(&segment.failover));
        if gone {
            return Micros::ZERO;
        }
        let patience = self.pbft.relay_after(self.setup.settings.relay_after);
        // Whoever is to miss the fast path must know of something that it keeps waiting.
        let fast = self.segment.is_some() && self.control.steering.mode == NetworkMode::Hybrid;
        if fast { patience.min(Micros(self.fast_path_timeout().0 / 2)) } else { patience }
    }

    /// Shows all replicas the frames of our clients that have waited too long: from then on everybody's timer runs.
    pub(crate) fn relay_due(&mut self, now: Now, out: &mut Outbox) {
        let patience = self.relay_patience();
        if now.mono < patience {
            return;
        }
        let before = now.mono.since(patience);
        for frame in self.pool.relay_due(before, now.mono) {
            self.send_all(&PeerMessage::Request { to_all: true, frame }, Class::Request, Ticket::ZERO, out);
        }
    }

    /// An operator's order from a client.
    pub(crate) fn on_order(&mut self, client: ClientId, id: u64, bytes: &Bytes, out: &mut Outbox) {
        let refused = |reason: &str| ClientReply::Order {
            id,
            outcome: OrderOutcome::Refused { reason: reason.to_string() },
        };
        let Ok(order) = decode::<OperatorOrder>(bytes) else {
            let reply = refused("the order cannot be read");
            return out.push(Effect::Reply { client, after: Ticket::ZERO, reply });
        };
        let done = match &order {
            OperatorOrder::Member(order) => self.control.orders.iter().find(|(_, done)| done == order),
            OperatorOrder::Mode(_) | OperatorOrder::Policy(_) | OperatorOrder::Exclude(_) => None,
        };
        if let Some((sequence, _)) = done {
            let reply = ClientReply::Order { id, outcome: OrderOutcome::Done { sequence: *sequence } };
            return out.push(Effect::Reply { client, after: self.pbft.vote_ticket(), reply });
        }
        if let Err(reason) = self.judge_order(&order) {
            let reply = refused(reason);
            return out.push(Effect::Reply { client, after: Ticket::ZERO, reply });
        }
        let wants_segments = |order: &OperatorOrder| match order {
            OperatorOrder::Mode(order) => order.order.mode != NetworkMode::Internet,
            OperatorOrder::Member(_) | OperatorOrder::Policy(_) | OperatorOrder::Exclude(_) => false,
        };
        if self.setup.raft.is_none() && wants_segments(&order) {
            let reply = refused("Raft node not initialized");
            return out.push(Effect::Reply { client, after: Ticket::ZERO, reply });
        }
        if self.clients.orders.len() >= ORDERS_WAITING_MAX || !self.pool.add_order(order.clone()) {
            let reply = refused("too many orders wait: try again later");
            return out.push(Effect::Reply { client, after: Ticket::ZERO, reply });
        }
        self.send_all(&PeerMessage::Order(order.clone()), Class::Request, Ticket::ZERO, out);
        self.clients.orders.push((client, id, order));
    }

    pub(crate) fn on_relayed_order(&mut self, from: ReplicaId, order: OperatorOrder, out: &mut Outbox) {
        if let Err(reason) = self.judge_order(&order) {
            return self.refuse_peer(from, reason, out);
        }
        self.pool.add_order(order);
    }

    fn judge_order(&self, order: &OperatorOrder) -> Result<(), &'static str> {
        let (key, hash, signature) = order.signature_item(self.cluster);
        match order {
            OperatorOrder::Member(SignedOrder { order, .. }) => {
                let known =
                    self.control.configurations.latest().member(order.id).ok_or("there is no such member")?;
                if order.incarnation != known.incarnation.next() {
                    return Err("the incarnation must be the one in force plus one");
                }
            }
            OperatorOrder::Exclude(SignedOrder { order, .. }) => self.control.judge_exclude(order)?,
            OperatorOrder::Mode(SignedOrder { order, .. }) => self.control.steering.judge_mode(order)?,
            OperatorOrder::Policy(SignedOrder { order, .. }) => {
                self.control.steering.judge_policy(order)?;
            }
        }
        if !self.is_admin(&key) {
            return Err("the order is not signed by an admin of the registry");
        }
        if !self.crypto.verify(&key, &hash, &signature) {
            return Err("the order's signature is bad");
        }
        Ok(())
    }

    /// Whether orders under this key count: by the registry as it is, or, while a segment moves it, as it was at its base.
    pub(crate) fn is_admin(&self, key: &dwcp_base::PublicKey) -> bool {
        if self.control.fold.segment().is_some() {
            return self.control.steering.admins.contains(key);
        }
        self.admins().contains(key)
    }

    /// The admins' keys by the state as it is.
    pub(crate) fn admins(&self) -> Vec<dwcp_base::PublicKey> {
        let admin = dwcp_base::configuration::Role::Admin;
        let principals = self.state.principals().into_iter();
        principals.filter(|principal| principal.role == admin).map(|principal| principal.key).collect()
    }
}
