//! The client's whole behaviour without sockets or clocks: calls, connections and messages come in with the time they
//! came at; messages for each node and answers to callers go out. `driver` feeds it, tests feed it by hand.
//!
//! A frame goes to whom the client presumes to order first, to all nodes once `retry_after` has passed, and at once to another when
//! its node hangs up or refuses it. One node's refusal is a hint, never an answer: it is not signed, and another node
//! may still order the frame. What a caller hears is decided by as many equal replies as their label needs, or by its
//! deadline. A frame whose sender wants it anchored goes to as many nodes as must sign its results, for each waits by itself.

use crate::config::ClientConfig;
use crate::error::ClientError;
use crate::nodes::{Attachment, Nodes};
use crate::reads::{ReadAnswer, Reads};
use crate::receipt::{Believed, Receipt};
use crate::session::{Flight, NodeSet, OPEN_SEQUENCE, Phase, Session, Slot, Waiting, signed_open};
use crate::trust::{Trust, Verdict, Voice};
use bytes::Bytes;
use dwcp_base::crypto::Ed25519;
use dwcp_base::limits::COMMAND_BYTES_MAX;
use dwcp_base::{Ack, Chance, ClusterId, PublicKey, ReplicaId, Trust as Policy, View, decode};
use dwcp_proto::v3::{Refused, ServerMessage};
use dwcp_replica::ExecutedReply;
use dwcp_state::{CHALLENGE_BYTES, Outcome, Refusal, SessionId};
use std::collections::HashMap;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// How long an open stays valid. Below the minute that the cluster allows, so that clocks may differ by some 25 s.
const OPEN_VALID_MS: u64 = 30_000;
/// Opens that may be refused for the clock's sake before callers are told.
const CLOCK_REFUSALS_MAX: u32 = 3;
/// First pause after every node that is up has refused a frame: they may be a moment behind.
const REFUSED_PAUSE: Duration = Duration::from_millis(5);
/// Sessions that nobody used for this long and that wait for nothing are forgotten.
const FORGET_AFTER: Duration = Duration::from_secs(3600);

/// What the driver's clocks say.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Now {
    pub instant: Instant,
    pub wall_ms: u64,
}

/// One call: some commands, one answer for each.
pub type Answers = Vec<Result<Believed<Bytes>, ClientError>>;

#[derive(Debug)]
struct Call {
    outcomes: Vec<Option<Result<Believed<Bytes>, ClientError>>>,
    left: usize,
    deadline: Instant,
    timeout: Duration,
    answer: oneshot::Sender<Answers>,
}

/// How often things happened; for benches and tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames signed.
    pub frames: u64,
    /// Commands in them.
    pub commands: u64,
    /// Frames sent again.
    pub retries: u64,
    /// Replies whose signature did not hold, or that spoke for another replica.
    pub forged: u64,
    /// Sessions opened.
    pub opens: u64,
    /// Refusals by single nodes.
    pub refusals: u64,
    /// Replies that could not be read.
    pub malformed: u64,
    /// Linearizable reads that a segment's leader answered, without an entry.
    pub reads_by_index: u64,
    /// Linearizable reads that might have been and were ordered.
    pub reads_ordered: u64,
}

/// Everything a client knows.
pub(crate) struct Engine {
    config: ClientConfig,
    principal: Ed25519,
    principal_key: PublicKey,
    trust: Trust,
    nodes: Nodes,
    /// One for each handle the caller holds or let go with commands under way, and what nobody used for `FORGET_AFTER`.
    sessions: HashMap<u64, Session>,
    /// One for each session.
    numbers: HashMap<SessionId, u64>,
    /// Each has a command that waits or flies: at most `waiting_max` and the window of each session.
    calls: HashMap<u64, Call>,
    next_call: u64,
    reads: Reads,
    /// Sessions that may have something to send. May name one twice; emptied after every burst of `driver::BURST` happenings.
    dirty: Vec<u64>,
    /// Nothing is due before.
    wake_at: Option<Instant>,
    /// The cluster's time minus ours, learnt when an open was refused for it.
    clock_offset_ms: i64,
    chance: Chance,
    fresh_seed: Box<dyn FnMut() -> [u8; 32] + Send>,
    pub counters: Counters,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("nodes", &self.nodes).field("sessions", &self.sessions.len()).finish()
    }
}

impl Engine {
    /// `fresh_seed` gives a new secret for each session.
    pub fn new(config: ClientConfig, seed: u64, fresh_seed: Box<dyn FnMut() -> [u8; 32] + Send>) -> Self {
        let principal = Ed25519::new(config.principal.seed, &[]);
        Self {
            principal_key: principal.public_key(),
            principal,
            trust: Trust::new(config.cluster, config.trust, config.f, &config.nodes),
            nodes: Nodes::new(
                config.cluster,
                &config.nodes,
                config.f,
                config.trust == Policy::Crash,
                config.attach(),
            ),
            sessions: HashMap::new(),
            numbers: HashMap::new(),
            calls: HashMap::new(),
            next_call: 0,
            reads: Reads::new(config.trust == Policy::Crash),
            dirty: Vec::new(),
            wake_at: None,
            clock_offset_ms: 0,
            chance: Chance::new(seed),
            fresh_seed,
            counters: Counters::default(),
            config,
        }
    }

    pub fn nodes(&mut self) -> &mut Nodes {
        &mut self.nodes
    }

    /// The moment by which `on_wake` must be called; `None` while nothing waits for time.
    pub fn wake_at(&self) -> Option<Instant> {
        self.wake_at
    }

    /// Someone wants these commands run in this session, in any order among themselves and other calls.
    pub fn on_call(
        &mut self,
        now: Now,
        number: u64,
        commands: Vec<Bytes>,
        timeout: Duration,
        ack: Option<Ack>,
        answer: oneshot::Sender<Answers>,
    ) {
        let waiting_max = self.config.settings.waiting_max;
        let ack = ack.or(self.config.settings.ack);
        let session = self.session(now, number);
        if session.waiting.len() + commands.len() > waiting_max {
            let error =
                ClientError::NotSent(format!("more than {waiting_max} commands wait already: slow down"));
            let _ = answer.send(vec![Err(error); commands.len()]);
            return;
        }
        let id = self.next_call;
        let deadline = now.instant + timeout;
        let mut outcomes = vec![None; commands.len()];
        let mut left = commands.len();
        let session = self.sessions.get_mut(&number).expect("made above");
        for (index, bytes) in (0..).zip(commands) {
            if bytes.len() > COMMAND_BYTES_MAX {
                let text =
                    format!("a command of {} bytes exceeds {COMMAND_BYTES_MAX}: split it", bytes.len());
                outcomes[index as usize] = Some(Err(ClientError::NotSent(text)));
                left -= 1;
            } else {
                session.waiting.push_back(Waiting { slot: Slot { call: id, index }, ack, bytes });
            }
        }
        let call = Call { outcomes, left, deadline, timeout, answer };
        if left == 0 {
            call.finish();
            return;
        }
        self.next_call += 1;
        self.calls.insert(id, call);
        self.wake_by(deadline);
        self.dirty.push(number);
    }

    /// Someone wants to read this linearizably without ordering it, if that can be had.
    pub fn on_read(
        &mut self,
        now: Now,
        query: Bytes,
        timeout: Duration,
        ack: Option<Ack>,
        answer: oneshot::Sender<ReadAnswer>,
    ) {
        // Whoever is silent for as long as a frame is worth sending again is not worth waiting for.
        let until = now.instant + self.config.settings.retry_after.min(timeout / 2);
        let ack = ack.or(self.config.settings.ack);
        self.reads.ask(now.instant, &mut self.nodes, (query, ack), until, answer);
        self.wake_by(until);
    }

    /// How often things happened since the start.
    pub fn counters(&self) -> Counters {
        let (reads_by_index, reads_ordered) = (self.reads.answered, self.reads.given_up);
        Counters { reads_by_index, reads_ordered, ..self.counters }
    }

    /// Nobody holds this session any more.
    pub fn on_forget(&mut self, number: u64) {
        if self
            .sessions
            .get(&number)
            .is_some_and(|session| session.waiting.is_empty() && session.flights.is_empty())
        {
            self.forget(number);
        }
    }

    pub fn on_connected(&mut self, now: Now, node: usize, challenge: [u8; CHALLENGE_BYTES]) {
        self.nodes.came_up(node, challenge);
        self.reads.came_up(&mut self.nodes, node);
        for (number, session) in &mut self.sessions {
            if session.phase == Phase::Closed {
                continue;
            }
            self.nodes.attach(*number, session);
            if session.flights.values().any(|flight| flight.working.is_empty()) {
                session.flights.values_mut().filter(|flight| flight.working.is_empty()).for_each(|flight| {
                    flight.retry_at = now.instant;
                });
                self.wake_at = Some(self.wake_at.map_or(now.instant, |at| at.min(now.instant)));
            }
        }
        self.on_wake(now);
    }

    pub fn on_disconnected(&mut self, now: Now, node: usize, reason: String) {
        self.nodes.went_down(node, reason);
        self.reads.went_down(&mut self.nodes, node);
        for (number, session) in &mut self.sessions {
            session.attached.remove(node);
            if session.phase == Phase::Closed {
                continue;
            }
            self.nodes.attach(*number, session);
            for flight in session.flights.values_mut() {
                flight.working.remove(node);
                if flight.working.is_empty() && self.nodes.any_up() {
                    flight.retry_at = now.instant;
                    self.wake_at = Some(self.wake_at.map_or(now.instant, |at| at.min(now.instant)));
                }
            }
        }
        self.on_wake(now);
    }

    pub fn on_message(&mut self, now: Now, node: usize, message: ServerMessage) {
        for bytes in message.executed {
            self.on_executed(now, node, &bytes);
        }
        for refused in message.refused {
            self.on_refused(now, node, refused);
        }
        for reason in message.malformed {
            self.counters.malformed += 1;
            tracing::warn!(node = %self.nodes.get(node).id, reason, "a node could not use what this client sent");
            self.nodes.complain(node, reason);
        }
        for reply in message.queries {
            self.reads.heard(now.instant, &mut self.nodes, node, reply);
        }
        for status in message.statuses {
            self.nodes.saw_view(node, status.view);
            if let Some(orderer) = status.orderer.and_then(|id| u8::try_from(id).ok()) {
                self.nodes.saw_orderer(ReplicaId(orderer));
            }
            let known = &self.config.nodes[node];
            if status.vote_key != known.vote_key.0[..] || status.incarnation != known.incarnation.0 {
                tracing::warn!(
                    node = %known.id, incarnation = status.incarnation,
                    "a node has other keys than configured and is not believed: update the client file"
                );
                self.nodes.complain(
                    node,
                    "it signs with another key than the client file says (vote_key): update that file",
                );
            }
        }
    }

    /// Builds and hands over what waits. Call it when all that came in together has been handed in.
    pub fn flush(&mut self, now: Now) {
        while let Some(number) = self.dirty.pop() {
            self.pump(now, number);
        }
    }

    /// Does what is due.
    pub fn on_wake(&mut self, now: Now) {
        if self.wake_at.is_none_or(|at| at > now.instant) {
            return;
        }
        self.expire_calls(now);
        self.reads.on_wake(now.instant, &mut self.nodes);
        let mut late_opens = Vec::new();
        for (number, session) in &mut self.sessions {
            if let Phase::Opening { until } = session.phase
                && until <= now.instant
            {
                late_opens.push(*number);
                continue;
            }
            let Session { keys, flights, attached, .. } = session;
            for flight in flights.values_mut().filter(|flight| flight.retry_at <= now.instant) {
                let mut attachment = Attachment { keys, attached: &mut *attached };
                self.counters.retries += u64::from(flight.attempts > 0);
                // Whoever had it and hung up or refused needs a substitute; whoever keeps silent needs all the others.
                if flight.working.is_empty() {
                    self.nodes.send_one(*number, &mut attachment, flight, NodeSet::default());
                } else {
                    self.nodes.send_all(&mut attachment, flight);
                }
                flight.sent_now(now.instant, self.config.settings.retry_after, &mut self.chance);
            }
        }
        for number in late_opens {
            self.reopen(now, number);
        }
        self.wake_at = self.earliest();
        let forgotten: Vec<u64> =
            self.sessions.iter().filter(|(_, s)| s.forgotten(now.instant)).map(|(n, _)| *n).collect();
        forgotten.into_iter().for_each(|number| self.forget(number));
    }

    fn earliest(&self) -> Option<Instant> {
        let calls = self.calls.values().map(|call| call.deadline);
        let flights =
            self.sessions.values().flat_map(|session| session.flights.values()).map(|flight| flight.retry_at);
        let opens = self.sessions.values().filter_map(|session| match session.phase {
            Phase::Opening { until } => Some(until),
            Phase::Open | Phase::Closed => None,
        });
        calls.chain(flights).chain(opens).chain(self.reads.earliest()).min()
    }

    fn wake_by(&mut self, at: Instant) {
        self.wake_at = Some(self.wake_at.map_or(at, |present| present.min(at)));
    }

    fn session(&mut self, now: Now, number: u64) -> &mut Session {
        self.sessions.entry(number).or_insert_with(|| {
            let session = Session::new(now.instant, (self.fresh_seed)());
            self.numbers.insert(session.id, number);
            session
        })
    }

    fn forget(&mut self, number: u64) {
        if let Some(session) = self.sessions.remove(&number) {
            self.numbers.remove(&session.id);
        }
    }

    /// Takes a fresh key for this session. What was in flight must have been settled.
    fn renew(&mut self, now: Now, number: u64) {
        let Some(session) = self.sessions.get_mut(&number) else { return };
        self.numbers.remove(&session.id);
        session.flights.clear();
        session.renew(now.instant, (self.fresh_seed)());
        self.numbers.insert(session.id, number);
    }

    fn pump(&mut self, now: Now, number: u64) {
        let Some(session) = self.sessions.get(&number) else { return };
        match session.phase {
            Phase::Opening { .. } => return,
            Phase::Closed if session.waiting.is_empty() => return,
            Phase::Closed => return self.start_open(now, number),
            Phase::Open => {}
        }
        // Half a lifetime of silence: the cluster may be about to forget the session, so do not bet a command on it.
        let idle = now.instant.saturating_duration_since(session.last_heard);
        if session.flights.is_empty()
            && !session.waiting.is_empty()
            && idle > self.config.settings.session_ttl / 2
        {
            self.renew(now, number);
            return self.start_open(now, number);
        }
        let settings = &self.config.settings;
        let session = self.sessions.get_mut(&number).expect("seen above");
        self.nodes.attach(number, session);
        while session.flights.len() < settings.frames_in_flight_max {
            let Some(first) = session.next_frame(now.instant, self.config.cluster, settings.frame_max) else {
                break;
            };
            let Session { keys, flights, attached, .. } = session;
            let flight = flights.get_mut(&first).expect("just built");
            self.counters.frames += 1;
            self.counters.commands += flight.results as u64;
            let mut attachment = Attachment { keys, attached };
            if flight.ack == Some(Ack::Anchored) {
                self.nodes.send_some(number, &mut attachment, flight);
            } else {
                self.nodes.send_one(number, &mut attachment, flight, NodeSet::default());
            }
            flight.sent_now(now.instant, settings.retry_after, &mut self.chance);
            let at = flight.retry_at;
            self.wake_at = Some(self.wake_at.map_or(at, |present| present.min(at)));
        }
    }

    fn start_open(&mut self, now: Now, number: u64) {
        let cluster: ClusterId = self.config.cluster;
        let Some(session) = self.sessions.get_mut(&number) else { return };
        let settings = &self.config.settings;
        let ttl_ms = u64::try_from(settings.session_ttl.as_millis()).expect("ttl is bounded");
        let valid_until_ms =
            now.wall_ms.saturating_add_signed(self.clock_offset_ms).saturating_add(OPEN_VALID_MS);
        let open = session.open(&self.config.principal.name, ttl_ms, valid_until_ms);
        let bytes = signed_open(&self.principal, self.principal_key, cluster, &open);
        let until = now.instant + Duration::from_millis(OPEN_VALID_MS);
        session.phase = Phase::Opening { until };
        let mut flight = Flight::new(now.instant, bytes, None, Vec::new(), 1);
        self.nodes.attach(number, session);
        let mut attachment = Attachment { keys: &session.keys, attached: &mut session.attached };
        self.nodes.send_one(number, &mut attachment, &mut flight, NodeSet::default());
        flight.sent_now(now.instant, settings.retry_after, &mut self.chance);
        let at = flight.retry_at.min(until);
        session.flights.insert(OPEN_SEQUENCE, flight);
        self.counters.opens += 1;
        self.wake_by(at);
    }

    /// The open is past its validity: begin again with a fresh key if anybody still waits.
    fn reopen(&mut self, now: Now, number: u64) {
        self.renew(now, number);
        self.pump(now, number);
    }

    fn on_executed(&mut self, now: Now, node: usize, bytes: &Bytes) {
        // Late answers are the common case beyond the first f + 1: recognise them before decoding. A reply begins with
        // its session and first sequence.
        let Some((number, first)) =
            peek(bytes).and_then(|(id, first)| Some((*self.numbers.get(&id)?, first)))
        else {
            return;
        };
        let Some(flight) = self.sessions.get_mut(&number).and_then(|session| session.flights.get_mut(&first))
        else {
            return;
        };
        let Ok(reply) = decode::<ExecutedReply>(bytes) else {
            self.counters.malformed += 1;
            return;
        };
        let spoke = self.nodes.get(node);
        if reply.replica != spoke.id {
            self.counters.forged += 1;
            return;
        }
        let numbered =
            reply.results.iter().zip(first..).all(|(result, sequence)| result.sequence == sequence);
        if reply.results.len() != flight.results || !numbered {
            self.counters.malformed += 1;
            return;
        }
        // Without a label that says more, only a node that was told the wish has waited for the Anchor.
        if flight.ack == Some(Ack::Anchored) && self.trust.weak() == 1 && !flight.sent.contains(node) {
            return;
        }
        let (view, vote_key) = (reply.view.0, spoke.vote_key);
        self.nodes.saw_view(node, view);
        self.nodes.saw_orderer(reply.ask);
        let voice = Voice { replica: reply.replica, vote_key, leaf: reply.leaf_hash(), reply };
        if let Verdict::Believed(reply, view) =
            flight.tally.add(&self.trust, voice, flight.ack, &mut self.counters.forged)
        {
            self.settle(now, number, first, *reply, view);
        }
    }

    /// The frame's outcome is known.
    fn settle(&mut self, now: Now, number: u64, first: u64, reply: ExecutedReply, view: View) {
        let session = self.sessions.get_mut(&number).expect("a flight has its session");
        let flight = session.flights.remove(&first).expect("the caller found it");
        session.last_heard = now.instant;
        self.dirty.push(number);
        if first == OPEN_SEQUENCE {
            let outcome = reply.results.into_iter().next().expect("counted").outcome;
            return self.opened(now, number, outcome);
        }
        let mut expired = false;
        for (slot, result) in flight.slots.iter().zip(reply.results) {
            let outcome = match result.outcome {
                Outcome::Done(bytes) => {
                    let receipt = Receipt { label: reply.label, position: result.position, view };
                    Ok(Believed { reply: bytes, receipt })
                }
                Outcome::Refused(refusal) => {
                    expired |= refusal == Refusal::SessionExpired;
                    Err(ClientError::Refused(refusal))
                }
            };
            fill(&mut self.calls, *slot, outcome);
        }
        if expired {
            self.lose(now, number);
        }
    }

    fn opened(&mut self, now: Now, number: u64, outcome: Outcome) {
        match outcome {
            Outcome::Done(_) => {
                let session = self.sessions.get_mut(&number).expect("a flight has its session");
                session.phase = Phase::Open;
                session.clock_refusals = 0;
            }
            Outcome::Refused(refusal) => self.open_refused(now, number, &refusal),
        }
    }

    fn open_refused(&mut self, now: Now, number: u64, refusal: &Refusal) {
        self.renew(now, number);
        let session = self.sessions.get_mut(&number).expect("a flight has its session");
        if let Refusal::OpenNotValid { log_time_ms, .. } = refusal
            && session.clock_refusals < CLOCK_REFUSALS_MAX
        {
            // Our clock differs from the cluster's by more than an open's validity: reckon in its time. A cluster that
            // was idle names an old time first and, having ordered something, the present one.
            session.clock_refusals += 1;
            self.clock_offset_ms = log_time_ms.cast_signed().wrapping_sub(now.wall_ms.cast_signed());
            self.dirty.push(number);
            return;
        }
        session.clock_refusals = 0;
        let error = ClientError::NotSent(format!("no session could be opened: {refusal}"));
        for waiting in std::mem::take(&mut session.waiting) {
            fill(&mut self.calls, waiting.slot, Err(error.clone()));
        }
    }

    /// The cluster does not know the session any more. What is in flight may have run.
    fn lose(&mut self, now: Now, number: u64) {
        let Some(session) = self.sessions.get_mut(&number) else { return };
        for flight in std::mem::take(&mut session.flights).into_values() {
            for slot in flight.slots {
                fill(&mut self.calls, slot, Err(ClientError::Refused(Refusal::SessionExpired)));
            }
        }
        self.renew(now, number);
        self.dirty.push(number);
    }

    fn on_refused(&mut self, now: Now, node: usize, refused: Refused) {
        self.counters.refusals += 1;
        let id = <[u8; 16]>::try_from(&refused.session[..]).map(SessionId);
        let Some(number) = id.ok().and_then(|id| self.numbers.get(&id).copied()) else { return };
        let Some(session) = self.sessions.get_mut(&number) else { return };
        let Session { keys, flights, attached, .. } = session;
        let Some(flight) = flights.get_mut(&refused.first) else { return };
        let refusal = decode::<Refusal>(&refused.refusal).ok();
        flight.working.remove(node);
        flight.refused.insert(node);
        let convinced = flight.refused.len() >= self.trust.weak();
        let waited = flight.first_sent.is_some_and(|at| now.instant - at >= self.config.settings.retry_after);
        match &refusal {
            // f + 1 nodes, so at least one honest one. Nothing was lost: the commands wait here.
            Some(refusal) if refused.first == OPEN_SEQUENCE && convinced && refusal.definite() => {
                return self.open_refused(now, number, &refusal.clone());
            }
            // A node that has not yet executed the open says this too, so it is believed only after a while.
            Some(Refusal::SessionExpired) if convinced && waited => return self.lose(now, number),
            _ => {}
        }
        flight.refusal = Some((refusal, refused.reason));
        if flight.working.is_empty() {
            let avoid = flight.refused;
            if self.nodes.send_one(number, &mut Attachment { keys, attached }, flight, avoid) {
                return;
            }
            let pause = REFUSED_PAUSE * 2u32.pow(flight.attempts.min(8));
            flight.retry_at = now.instant + pause.min(self.config.settings.retry_after);
            let at = flight.retry_at;
            self.wake_by(at);
        }
    }

    /// Ends the calls whose time is over, and drops frames nobody waits for any more: the low-water mark then passes
    /// them, after which the cluster will not run them.
    fn expire_calls(&mut self, now: Now) {
        let late: Vec<u64> =
            self.calls.iter().filter(|(_, call)| call.deadline <= now.instant).map(|(id, _)| *id).collect();
        if late.is_empty() {
            return;
        }
        let troubles = self.nodes.troubles();
        let Self { sessions, calls, config, .. } = self;
        let timeout_ms = |calls: &HashMap<u64, Call>, slot: Slot| {
            calls.get(&slot.call).map(|call| call.timeout.as_millis())
        };
        let is_late = |calls: &HashMap<u64, Call>, slot: &Slot| {
            calls.get(&slot.call).is_some_and(|call| call.deadline <= now.instant)
        };
        for (number, session) in sessions.iter_mut() {
            if session.waiting.iter().any(|waiting| is_late(calls, &waiting.slot)) {
                let refusal = session.flights.get(&OPEN_SEQUENCE).and_then(|open| open.refusal.as_ref());
                let open = refusal.map_or(String::new(), |(_, reason)| format!("; a node said: {reason}"));
                let (late, kept): (Vec<Waiting>, Vec<Waiting>) =
                    std::mem::take(&mut session.waiting).into_iter().partition(|w| is_late(calls, &w.slot));
                session.waiting = kept.into();
                for waiting in late {
                    let Some(ms) = timeout_ms(calls, waiting.slot) else { continue };
                    let text = format!("not sent within {ms} ms ({troubles}{open})");
                    fill(calls, waiting.slot, Err(ClientError::NotSent(text)));
                }
            }
            let before = session.flights.len();
            session.flights.retain(|_, flight| {
                for slot in
                    flight.slots.iter().filter(|slot| is_late(calls, slot)).copied().collect::<Vec<_>>()
                {
                    let Some(ms) = timeout_ms(calls, slot) else { continue };
                    fill(calls, slot, Err(flight.unanswered(config, ms, &troubles)));
                }
                flight.slots.is_empty() || flight.slots.iter().any(|slot| calls.contains_key(&slot.call))
            });
            if session.flights.len() != before {
                self.dirty.push(*number);
            }
        }
        debug_assert!(late.iter().all(|id| !self.calls.contains_key(id)), "a late call has all its answers");
    }
}

impl Session {
    fn forgotten(&self, now: Instant) -> bool {
        self.waiting.is_empty()
            && self.flights.is_empty()
            && now.saturating_duration_since(self.last_heard) > FORGET_AFTER
    }
}

impl Flight {
    fn sent_now(&mut self, now: Instant, retry_after: Duration, chance: &mut Chance) {
        let pause = retry_after * 2u32.pow(self.attempts.min(3));
        // A quarter of jitter, so that a thousand clients do not come back in one moment.
        let jitter = chance.below(u64::try_from(pause.as_micros() / 4).unwrap_or(u64::MAX));
        self.attempts += 1;
        if !self.sent.is_empty() {
            self.first_sent.get_or_insert(now);
        }
        self.retry_at = now + pause + Duration::from_micros(jitter);
    }

    /// What to say about a frame whose time is over.
    fn unanswered(&self, config: &ClientConfig, ms: u128, troubles: &str) -> ClientError {
        if self.sent.is_empty() {
            return ClientError::NotSent(format!("no node was reached within {ms} ms ({troubles})"));
        }
        let said =
            self.refusal.as_ref().map_or(String::new(), |(_, reason)| format!("; a node said: {reason}"));
        if self.tally.committed {
            return ClientError::Unknown(format!(
                "committed, but not anchored within {ms} ms ({troubles}{said})"
            ));
        }
        // Where nobody lies, a frame that every recipient refused for good is not applied. Elsewhere a liar may have
        // refused it and had it ordered all the same.
        if config.nobody_lies()
            && self.sent == self.refused
            && let Some((Some(refusal), _)) = &self.refusal
            && refusal.definite()
        {
            return ClientError::NotSent(format!("every node asked refused it: {refusal}"));
        }
        let wanted = if self.ack == Some(Ack::Anchored) { "anchored and " } else { "" };
        ClientError::Unknown(format!(
            "{} of {} {wanted}equal replies within {ms} ms ({troubles}{said})",
            self.tally.len().min(config.weak() - 1),
            config.weak()
        ))
    }
}

impl Call {
    fn finish(self) {
        let outcomes =
            self.outcomes.into_iter().map(|outcome| outcome.expect("all commands have their outcome"));
        // The caller may have stopped waiting.
        let _ = self.answer.send(outcomes.collect());
    }
}

/// One command has its outcome; with the last one the call is answered. Commands of calls that ended are ignored.
fn fill(calls: &mut HashMap<u64, Call>, slot: Slot, outcome: Result<Believed<Bytes>, ClientError>) {
    let Some(call) = calls.get_mut(&slot.call) else { return };
    let place = &mut call.outcomes[slot.index as usize];
    if place.is_none() {
        *place = Some(outcome);
        call.left -= 1;
    }
    if call.left == 0 {
        calls.remove(&slot.call).expect("just seen").finish();
    }
}

/// Session and first sequence of an encoded executed reply.
fn peek(bytes: &[u8]) -> Option<(SessionId, u64)> {
    let (session, rest) = bytes.split_first_chunk::<16>()?;
    let (first, _) = rest.split_first_chunk::<8>()?;
    Some((SessionId(*session), u64::from_le_bytes(*first)))
}

#[cfg(test)]
#[path = "engine_tests.rs"]
pub(crate) mod tests;
