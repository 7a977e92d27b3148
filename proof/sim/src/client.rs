//! Clients: each opens a session, sends frames of commands, sends them again through other replicas until it believes
//! an answer, and writes down what it asked and what it believes. Their journals are what the judges read.
//!
//! A client believes f + 1 equal, verified replies from different replicas and nothing less. Some clients lie besides:
//! they sign badly, use one number for two commands, speak in other sessions and replay. `workload` decides what is
//! asked.

use crate::keys::Identity;
use crate::node::EPOCH_MS;
use crate::world::{Event, World};
use bytes::Bytes;
use check::{Answer, ClientJournal, CommandId, KeyValue, Label, Operation, Reply};
use dwcp_base::{Ack, Chance, Crypto, Hash, PublicKey};
use dwcp_replica::{ClientReply, ClientRequest, ExecutedReply};
use dwcp_state::kv::KvReply;
use dwcp_state::{ClientFrame, CommandResult, Outcome, Refusal, SessionFrame, SessionId, SessionOpen};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Lifetime of the bytes that open a session.
const OPEN_VALID_MS: u64 = 40_000;

/// Commands whose outcome is awaited, in the order of their sequences.
#[derive(Debug)]
pub struct InFlight {
    pub bytes: Bytes,
    /// Its client waits until the root covers it.
    anchored: bool,
    /// Places in the journal, one per command; empty for the opening of a session.
    places: Vec<usize>,
    begun_at_us: u64,
    sent_at_us: u64,
    tries: u64,
    /// Replicas by the answer they gave.
    votes: BTreeMap<Hash, BTreeSet<u8>>,
    /// Replicas that say they know no such session.
    strangers: BTreeSet<u8>,
}

/// A session as its client knows it.
#[derive(Debug)]
pub struct Session {
    pub id: SessionId,
    key: PublicKey,
    signer: Arc<dyn Crypto>,
    open: bool,
    next: u64,
    valid_until_ms: u64,
}

pub struct Client {
    pub number: usize,
    pub lies: bool,
    pub journal: ClientJournal,
    pub chance: Chance,
    pub session: Option<Session>,
    sessions_opened: u64,
    /// By first sequence; 0 is the opening.
    pub in_flight: BTreeMap<u64, InFlight>,
    /// Last record seen of keys that are changed by compare-and-swap.
    pub seen: BTreeMap<Vec<u8>, Option<KeyValue>>,
    pub tags: u64,
    pub leases: u64,
    /// What it does with the leases it looks after, those it grants and those it has granted so far.
    pub lease_chance: Chance,
    pub leases_held: Vec<u64>,
    pub lives: u64,
    next_frame_at_us: u64,
    stopped: bool,
    /// Frames answered, kept to be sent again for no reason. At most a few.
    answered: Vec<Bytes>,
    /// Asks one last question: everything there is.
    pub reader: bool,
    /// Asks only what a scenario tells it to.
    pub manual: bool,
    /// The read that a segment's leader is asked.
    pub asked: Option<crate::reads::Asked>,
    pub reads_asked: u64,
    pub read: Option<Vec<KeyValue>>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "client {}{}", self.number, if self.lies { " (lies)" } else { "" })
    }
}

impl Client {
    #[must_use]
    pub fn new(number: usize, lies: bool, world: &World, chance: Chance) -> Self {
        let _ = world;
        let journal = ClientJournal::new(number as u64);
        Self {
            number,
            lies,
            journal,
            lease_chance: chance.fork("leases"),
            leases_held: Vec::new(),
            lives: 0,
            chance,
            session: None,
            sessions_opened: 0,
            in_flight: BTreeMap::new(),
            seen: BTreeMap::new(),
            tags: 0,
            leases: 0,
            next_frame_at_us: 0,
            stopped: false,
            answered: Vec::new(),
            reader: false,
            manual: false,
            asked: None,
            reads_asked: 0,
            read: None,
        }
    }

    /// Begins nothing new.
    pub fn stop(&mut self) {
        self.stopped = true;
    }

    #[must_use]
    pub fn is_done(&self) -> bool {
        self.stopped && self.asked.is_none() && self.in_flight.keys().all(|first| *first == 0)
    }

    /// It has waited for an answer since then or longer.
    #[must_use]
    pub fn waits_since(&self, at_us: u64) -> bool {
        self.in_flight.values().any(|frame| frame.begun_at_us <= at_us)
    }

    /// Its session is open.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.session.as_ref().is_some_and(|session| session.open)
    }

    fn principal(&self) -> u64 {
        self.number as u64 + 1
    }

    fn command_id(&self, sequence: u64) -> CommandId {
        let session = self.session.as_ref().map_or([0; 16], |session| session.id.0);
        CommandId { session: u128::from_be_bytes(session), seq: sequence }
    }

    fn low_water(&self, next: u64) -> u64 {
        self.in_flight.keys().copied().find(|first| *first > 0).unwrap_or(next)
    }
}

impl World {
    /// True wall time: clients' clocks are good enough for what they sign.
    fn wall_ms(&self) -> u64 {
        EPOCH_MS + self.now_us / 1000
    }

    pub fn on_client_wake(&mut self, ix: usize) {
        if self.clients[ix].read.is_some() {
            return;
        }
        self.trace.mix(&[self.now_us, ix as u64, 4000]);
        let now_us = self.now_us;
        if self.clients[ix].session.is_none() {
            if !self.clients[ix].stopped || self.clients[ix].reader {
                self.open_session(ix);
            }
        } else {
            self.resend_overdue(ix);
            self.follow_read(ix);
            if now_us >= self.clients[ix].next_frame_at_us {
                self.begin_frame(ix);
            }
        }
        self.plan_client(ix);
    }

    fn plan_client(&mut self, ix: usize) {
        let client = &self.clients[ix];
        if client.stopped && client.is_done() && !client.reader {
            return;
        }
        let retry_us = self.dials.retry_ms * 1000;
        let due =
            client.in_flight.values().map(|frame| frame.sent_at_us + retry_us * frame.tries.min(4)).min();
        let mut at = due.unwrap_or(u64::MAX);
        if client.asked.is_some() {
            at = at.min(self.now_us + 50_000);
        }
        if !client.stopped || client.reader {
            at = at.min(client.next_frame_at_us.max(self.now_us + 20_000));
        }
        let after = at.max(self.now_us + 5_000) - self.now_us;
        self.schedule(after.min(5_000_000), Event::ClientWake { client: ix });
    }

    fn open_session(&mut self, ix: usize) {
        let (number, opened) = (self.clients[ix].number as u64, self.clients[ix].sessions_opened + 1);
        let principal = self.clients[ix].principal();
        let identity = Identity::Session { client: number, number: opened };
        let key = self.keys.public(identity);
        let valid_until_ms = self.wall_ms() + OPEN_VALID_MS;
        let principal_identity = Identity::Principal { number: principal };
        let open = SessionOpen {
            principal: format!("client-{principal}"),
            session_key: key,
            ttl_ms: 0,
            valid_until_ms,
        };
        let frame = ClientFrame::open(
            &*self.keys.signer(principal_identity, &[]),
            self.keys.public(principal_identity),
            self.cluster,
            &open,
        );
        let signer = self.keys.signer(identity, &self.known_keys);
        let client = &mut self.clients[ix];
        client.sessions_opened = opened;
        client.in_flight.clear();
        let id = SessionId::of(&key);
        client.session = Some(Session { id, key, signer, open: false, next: 1, valid_until_ms });
        self.launch(ix, 0, frame.encode(), Vec::new());
    }

    /// Sends a frame for the first time, through one replica; the others are asked to tell us, too.
    fn launch(&mut self, ix: usize, first: u64, bytes: Bytes, places: Vec<usize>) {
        let n = u64::from(self.genesis.policy.quorum.n());
        let (anchored_pm, may_lie) = (self.dials.anchored_pm, self.dials.members_may_lie());
        let client = &mut self.clients[ix];
        // Where a member may lie, nobody believes a single one that a session is open.
        let anchored = (first == 0 && may_lie)
            || (anchored_pm > 0 && client.chance.per_mille(anchored_pm))
            || client.reader && may_lie;
        let Some(session) = client.session.as_ref().map(|session| session.id) else { return };
        let gateway = usize::try_from(client.chance.below(n)).expect("few replicas");
        let in_flight = InFlight {
            bytes: bytes.clone(),
            anchored,
            places,
            begun_at_us: self.now_us,
            sent_at_us: self.now_us,
            tries: 1,
            votes: BTreeMap::new(),
            strangers: BTreeSet::new(),
        };
        client.in_flight.insert(first, in_flight);
        for node in 0..usize::try_from(n).expect("few replicas") {
            if node == gateway || anchored {
                self.request(ix, node, ClientRequest::Frame { bytes: bytes.clone(), ack: wish(anchored) });
            } else if first <= 1 {
                self.request(ix, node, ClientRequest::Attach { session });
            }
        }
    }

    fn resend_overdue(&mut self, ix: usize) {
        let retry_us = self.dials.retry_ms * 1000;
        let now_us = self.now_us;
        let n = usize::from(self.genesis.policy.quorum.n());
        let wall_ms = self.wall_ms();
        let client = &mut self.clients[ix];
        if let Some(session) = &client.session {
            // An opening past its validity opens nothing any more; nothing was sent under its key.
            if !session.open && wall_ms > session.valid_until_ms {
                client.session = None;
                client.in_flight.clear();
                return;
            }
        }
        let mut again = Vec::new();
        for frame in client.in_flight.values_mut() {
            if now_us >= frame.sent_at_us + retry_us * frame.tries.min(4) {
                frame.sent_at_us = now_us;
                frame.tries += 1;
                // A replica that lags does not know a young session yet: all must say so in one round.
                frame.strangers.clear();
                again.push((frame.bytes.clone(), frame.anchored));
            }
        }
        self.coverage.frames_retried += again.len() as u64;
        for (bytes, anchored) in again {
            for node in 0..n {
                let ack = wish(anchored);
                self.request(ix, node, ClientRequest::Frame { bytes: bytes.clone(), ack });
            }
        }
    }

    fn begin_frame(&mut self, ix: usize) {
        let mean_us = self.dials.think_ms * 1000;
        let (in_flight_max, death_pm, retry_pm) =
            (self.dials.in_flight_max, self.dials.death_pm, self.dials.retry_pm);
        let calm = self.in_calm();
        let client = &mut self.clients[ix];
        client.next_frame_at_us = self.now_us + client.chance.between(mean_us / 4, mean_us * 7 / 4);
        if client.reader {
            if client.in_flight.is_empty() {
                // What lying clients wrote is left out: nobody can say which of their words came to pass.
                let kinds = [("append/", "append0"), ("counter/", "counter0"), ("unique/", "unique0")];
                let reads = kinds.map(|(from, to)| Operation::range(check::Interval::between(from, to)));
                self.send_commands(ix, reads.to_vec());
            }
            return;
        }
        if !client.lies
            && client.chance.per_mille(retry_pm)
            && let Some(bytes) = client.chance.pick(&client.answered).cloned()
        {
            let n = u64::from(self.genesis.policy.quorum.n());
            let to = usize::try_from(client.chance.below(n)).expect("few replicas");
            self.coverage.frames_retried += 1;
            self.request(ix, to, ClientRequest::Frame { bytes, ack: None });
        }
        let client = &mut self.clients[ix];
        if !client.is_open()
            || client.manual
            || client.stopped
            || client.in_flight.len() as u64 >= in_flight_max
        {
            return;
        }
        let operations = self.next_operations(ix);
        if self.clients[ix].lies {
            self.send_lies(ix, operations);
            return;
        }
        let Some(operations) = self.ask_leader(ix, operations) else { return };
        self.send_commands(ix, operations);
        if !calm && self.clients[ix].chance.per_mille(death_pm) {
            self.die(ix);
        }
    }

    /// The client's process dies and is started anew, with a new session and no memory of the old one.
    fn die(&mut self, ix: usize) {
        self.coverage.clients_died += 1;
        let now_us = self.now_us;
        let client = &mut self.clients[ix];
        for frame in std::mem::take(&mut client.in_flight).into_values() {
            for place in frame.places {
                client.journal.gave_up(place, now_us);
            }
        }
        if let Some(asked) = client.asked.take() {
            client.journal.refused(asked.place, now_us, "the client died");
        }
        client.session = None;
        client.answered.clear();
        client.seen.clear();
        self.hang_up(ix);
    }

    pub fn send_commands(&mut self, ix: usize, operations: Vec<Operation>) {
        let (cluster, now_us) = (self.cluster, self.now_us);
        let client = &mut self.clients[ix];
        let Some(session) = client.session.as_mut().filter(|session| session.open) else { return };
        let first = session.next;
        session.next += operations.len() as u64;
        let low_water = client.low_water(first);
        let session = client.session.as_ref().expect("just seen");
        let commands = operations.iter().map(crate::translate::command).collect();
        let frame = SessionFrame { session_key: session.key, low_water, first, commands };
        let bytes = ClientFrame::commands(&*session.signer, cluster, &frame).encode();
        let ids: Vec<CommandId> =
            (first..first + operations.len() as u64).map(|sequence| client.command_id(sequence)).collect();
        for (id, operation) in ids.iter().zip(&operations) {
            if matches!(operation, Operation::Range { .. }) || self.note_ask(*id, operation) {
                self.reads.insert((id.session, id.seq));
            }
        }
        let client = &mut self.clients[ix];
        let places = ids
            .into_iter()
            .zip(operations)
            .map(|(id, operation)| client.journal.invoked(id, now_us, operation))
            .collect();
        self.launch(ix, first, bytes, places);
    }

    /// What a lying client sends: one number for two commands through two replicas, frames signed by nobody, frames in
    /// another's session, old ones, and noise. Which of its two commands runs is nobody's concern, but one of them
    /// does, once, and its answer is believed as any other: the keys it writes are read by nobody.
    fn send_lies(&mut self, ix: usize, mut operations: Vec<Operation>) {
        let cluster = self.cluster;
        let n = u64::from(self.genesis.policy.quorum.n());
        let others: Vec<PublicKey> = self
            .clients
            .iter()
            .filter(|other| other.number != ix)
            .filter_map(|other| other.session.as_ref().map(|session| session.key))
            .collect();
        let Some(other) = operations.pop() else { return };
        self.send_commands(ix, operations);
        let client = &mut self.clients[ix];
        let Some(session) = client.session.as_ref().filter(|session| session.open) else { return };
        let first = session.next - 1;
        let low_water = client.low_water(first);
        let commands = vec![crate::translate::command(&other)];
        let mut frame = SessionFrame { session_key: session.key, low_water, first, commands };
        let good = ClientFrame::commands(&*session.signer, cluster, &frame);
        let mut sent = vec![good.encode()];
        sent.push(sent[0].slice(..sent[0].len() / 2));
        // Signed badly, for a number not used yet: if it ran, the number would be taken.
        frame.first += 1;
        if let ClientFrame::Commands { body, mut signature } =
            ClientFrame::commands(&*session.signer, cluster, &frame)
        {
            signature.0[5] ^= 1;
            sent.push(ClientFrame::Commands { body, signature }.encode());
        }
        if let Some(key) = client.chance.pick(&others) {
            frame.session_key = *key;
            frame.first = 1 + client.chance.below(400);
            frame.low_water = 1;
            sent.push(ClientFrame::commands(&*session.signer, cluster, &frame).encode());
        }
        if let Some(old) = client.chance.pick(&client.answered).cloned() {
            sent.push(old);
        }
        for bytes in sent {
            let to = usize::try_from(self.clients[ix].chance.below(n)).expect("few replicas");
            self.request(ix, to, ClientRequest::Frame { bytes, ack: None });
        }
    }

    pub fn on_client_reply(&mut self, ix: usize, from: usize, reply: ClientReply) {
        self.trace.mix(&[self.now_us, ix as u64, from as u64, 5000]);
        match reply {
            ClientReply::Executed(reply) => self.on_executed(ix, from, reply),
            ClientReply::Query { id, outcome } => self.on_read_answer(ix, id, outcome),
            ClientReply::Refused { session, first, refusal } => {
                let replica = self.nodes[from].replica.0;
                let enough = usize::from(self.genesis.policy.quorum.n() - self.genesis.policy.quorum.f());
                let client = &mut self.clients[ix];
                let ours = client.session.as_ref().is_some_and(|own| own.id == session && own.open);
                let Some(frame) = client.in_flight.get_mut(&first) else { return };
                if ours && refusal == Refusal::SessionExpired && frame.tries > 3 {
                    frame.strangers.insert(replica);
                    if frame.strangers.len() >= enough {
                        // Nobody knows the session: it ended, and what was asked in it stays unknown.
                        self.die(ix);
                    }
                }
            }
            ClientReply::Busy { .. }
            | ClientReply::Malformed { .. }
            | ClientReply::Order { .. }
            | ClientReply::Status { .. }
            | ClientReply::Sync { .. } => {}
        }
    }

    fn on_executed(&mut self, ix: usize, from: usize, reply: ExecutedReply) {
        let quorum = self.genesis.policy.quorum;
        let origin = self.nodes[from].replica;
        let trusts = self.dials.switches();
        let client = &mut self.clients[ix];
        let Some(session) = client.session.as_ref().filter(|session| session.id == reply.session) else {
            return;
        };
        let Some(frame) = client.in_flight.get_mut(&reply.first) else { return };
        let Some(key) = self.vote_keys.get(&(reply.replica, reply.incarnation)) else { return };
        if quorum.f() > 0 && reply.label == dwcp_replica::Label::Crash {
            // One member's word, proved by its link, for whoever trusts members and does not wait for more.
            if !trusts || frame.anchored || origin != reply.replica {
                return;
            }
        } else {
            if quorum.f() > 0 && !reply.verify(self.cluster, key, &*session.signer) {
                return;
            }
            let votes = frame.votes.entry(reply.leaf_hash()).or_default();
            votes.insert(reply.replica.0);
            if votes.len() < quorum.weak() {
                return;
            }
        }
        let frame = client.in_flight.remove(&reply.first).expect("just seen");
        self.coverage.anchored_acks += u64::from(frame.anchored);
        if reply.first == 0 {
            self.on_opened(ix, &reply);
            return;
        }
        client.answered.push(frame.bytes.clone());
        if client.answered.len() > 4 {
            client.answered.remove(0);
        }
        if reply.results.len() != frame.places.len() {
            let (asked, got) = (frame.places.len(), reply.results.len());
            self.complain(format!("client {ix} asked {asked} commands and believes {got} results"));
            return;
        }
        let label = match reply.label {
            dwcp_replica::Label::Crash => Label::Crash,
            dwcp_replica::Label::Byzantine => Label::Byzantine,
        };
        for (place, result) in frame.places.into_iter().zip(&reply.results) {
            let id = self.clients[ix].journal.commands[place].id;
            if label == Label::Crash {
                self.crash_answers.insert(id);
            }
            self.settle(ix, place, result, label);
        }
    }

    fn on_opened(&mut self, ix: usize, reply: &ExecutedReply) {
        let client = &mut self.clients[ix];
        match reply.results.first().map(|result| &result.outcome) {
            Some(Outcome::Done(_)) => {
                if let Some(session) = client.session.as_mut() {
                    session.open = true;
                }
                client.next_frame_at_us = self.now_us;
            }
            _ => client.session = None,
        }
    }

    /// A command's outcome is believed.
    fn settle(&mut self, ix: usize, place: usize, result: &CommandResult, label: Label) {
        let now_us = self.now_us;
        let may_lie = label == Label::Crash && self.dials.members_may_lie();
        let digest = Hash::of(&dwcp_base::encode(&result.outcome)).0;
        if let Outcome::Done(bytes) = &result.outcome {
            self.note_look(self.clients[ix].journal.commands[place].id, bytes, may_lie);
        }
        let client = &mut self.clients[ix];
        let operation = client.journal.commands[place].operation.clone();
        match &result.outcome {
            Outcome::Done(bytes) => {
                let decoded = KvReply::decode(bytes).ok().and_then(|reply| match &operation {
                    Operation::Opaque(_) => Some((reply.revision, Answer::Opaque(Vec::new()))),
                    _ => crate::translate::answer(reply.body).map(|answer| (reply.revision, answer)),
                });
                let Some((revision, answer)) = decoded else {
                    if may_lie {
                        return client.journal.refused(place, now_us, "a lie");
                    }
                    self.complain(format!("client {ix} cannot read the answer to {operation:?}"));
                    return;
                };
                self.coverage.commands_acknowledged += 1;
                client.learn(&operation, revision, &answer);
                let reply = Reply { revision: Some(revision), answer, digest: Some(digest) };
                client.journal.returned(place, now_us, reply, label);
            }
            Outcome::Refused(refusal) => {
                self.coverage.commands_refused += 1;
                let text = refusal.to_string();
                if refusal.definite() {
                    client.journal.refused(place, now_us, text);
                } else {
                    client.journal.gave_up(place, now_us);
                }
            }
        }
    }
}

fn wish(anchored: bool) -> Option<Ack> {
    anchored.then_some(Ack::Anchored)
}
