//! Whole replicas in memory with real keys: clients' frames in, replies and state out. Disks never fail here and links
//! lose nothing but what a story takes away or spoils on its way.

use super::table::{WALL_MS, admin_crypto, genesis, vote_crypto};
use bytes::Bytes;
use dwcp_base::crypto::Ed25519;
use dwcp_base::{
    ClusterId, Genesis, Hash, Incarnation, Micros, Mutants, NetworkMode, Now, Policy, PublicKey, ReplicaId,
    Sequence, Ticket, Trust, decode, encode,
};
use dwcp_log::{ModeOrder, OperatorOrder, SignedOrder};
use dwcp_replica::raft::{OwnRaft, RaftMaker};
use dwcp_replica::{
    ClientId, ClientReply, ClientRequest, Effect, Event, Input, Outbox, PeerMessage, RecoveredSnapshot,
    Recovery, Replica, Settings, Setup, Status,
};
use dwcp_state::kv::{Kv, KvBody, KvCommand, KvReply};
use dwcp_state::{ClientFrame, Command, SessionFrame, SessionOpen, state_digest};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// What a liar does to a message on its way: from, to, message.
type Spoil = Box<dyn Fn(u8, u8, &mut PeerMessage)>;
/// Whether a message is lost on its way: from, to, message.
type Cut = fn(u8, u8, &PeerMessage) -> bool;

/// A snapshot as a disk holds it.
#[derive(Clone, Default)]
pub struct Snapshot {
    pub meta: Vec<u8>,
    chunks: BTreeMap<u32, Vec<u8>>,
}

#[derive(Default)]
struct Disk {
    records: Vec<(Ticket, Bytes)>,
    snapshots: BTreeMap<Sequence, Snapshot>,
}

#[derive(Default)]
struct Node {
    replica: Option<Replica<Kv>>,
    disk: Disk,
    inbox: VecDeque<Input>,
    events: Vec<Event>,
}

pub struct Cluster {
    pub genesis: Arc<Genesis>,
    nodes: Vec<Node>,
    now: Micros,
    pub replies: Vec<(u8, ClientReply)>,
    pub spoil: Option<Spoil>,
    pub cut: Option<Cut>,
    mutants: Mutants,
    settings: Settings,
    /// Whether nodes can run segments.
    raft: bool,
}

impl Cluster {
    pub fn new(n: u8, mutants: Mutants) -> Self {
        let settings =
            Settings { snapshot_log_bytes: 64 << 10, history_bytes_max: 128 << 10, ..Settings::lan() };
        Self::with_settings(n, mutants, settings)
    }

    pub fn with_settings(n: u8, mutants: Mutants, settings: Settings) -> Self {
        Self::of(genesis(n, "cluster"), false, mutants, settings)
    }

    /// Members that only crash, in a datacenter: a segment is always open.
    pub fn with_segments(n: u8, mutants: Mutants) -> Self {
        let mut genesis = Genesis::clone(&genesis(n, "cluster"));
        genesis.policy = Policy::new(Trust::Crash, genesis.policy.quorum);
        genesis.mode = NetworkMode::Datacenter;
        genesis.check().unwrap();
        Self::of(Arc::new(genesis), true, mutants, Settings::lan())
    }

    fn of(genesis: Arc<Genesis>, raft: bool, mutants: Mutants, settings: Settings) -> Self {
        let n = genesis.policy.quorum.n();
        let mut cluster = Self {
            genesis,
            nodes: (0..n).map(|_| Node::default()).collect(),
            now: Micros(1_000_000),
            replies: Vec::new(),
            spoil: None,
            cut: None,
            mutants,
            settings,
            raft,
        };
        (0..n).for_each(|id| cluster.start(id));
        cluster
    }

    fn now(&self) -> Now {
        Now { mono: self.now, wall_ms: self.wall_ms() }
    }

    pub fn now_us(&self) -> u64 {
        self.now.0
    }

    pub fn wall_ms(&self) -> u64 {
        WALL_MS + self.now.0 / 1_000
    }

    fn node(&mut self, id: u8) -> &mut Node {
        &mut self.nodes[usize::from(id)]
    }

    fn ids(&self) -> impl Iterator<Item = u8> + use<> {
        0..self.genesis.policy.quorum.n()
    }

    pub fn start(&mut self, id: u8) {
        let keys: Vec<PublicKey> = self.genesis.members.iter().map(|member| member.vote_key).collect();
        let setup = Setup {
            genesis: self.genesis.clone(),
            me: ReplicaId(id),
            incarnation: Incarnation(0),
            settings: self.settings,
            raft: self.raft.then(|| Arc::new(OwnRaft) as Arc<dyn RaftMaker>),
            sync: None,
            seed: u64::from(id),
            mutants: self.mutants,
        };
        let disk = &self.nodes[usize::from(id)].disk;
        let snapshot = disk.snapshots.iter().next_back().map(|(sequence, snapshot)| RecoveredSnapshot {
            sequence: *sequence,
            meta: snapshot.meta.clone(),
            chunks: Box::new(snapshot.chunks.clone().into_values().map(Ok)),
        });
        let next_ticket = Ticket(disk.records.last().map_or(1, |(ticket, _)| ticket.0 + 1));
        let recovery = Recovery { snapshot, partial: Vec::new(), records: disk.records.clone(), next_ticket };
        let quota_bytes = self.genesis.quota_bytes;
        let crypto = Arc::new(Ed25519::new(vote_seed(id), &keys));
        let mut out = Outbox::default();
        let make = Arc::new(move || Kv::new(quota_bytes));
        let replica = Replica::recover(setup, make, crypto, recovery, self.now(), &mut out).unwrap();
        self.node(id).replica = Some(replica);
        self.carry_out(id, out);
        for other in self.ids().filter(|other| *other != id) {
            if self.node(other).replica.is_some() {
                self.node(other).inbox.push_back(Input::LinkUp { peer: ReplicaId(id) });
                self.node(id).inbox.push_back(Input::LinkUp { peer: ReplicaId(other) });
            }
        }
    }

    pub fn stop(&mut self, id: u8) {
        let node = self.node(id);
        node.replica = None;
        node.inbox.clear();
    }

    /// The newest snapshot on this disk.
    pub fn snapshot_of(&self, id: u8) -> Snapshot {
        let snapshots = &self.nodes[usize::from(id)].disk.snapshots;
        snapshots.values().next_back().expect("it has written one").clone()
    }

    /// A liar's disk answers with other chunks than those it wrote.
    pub fn plant_snapshot(&mut self, id: u8, planted: &Snapshot) {
        for snapshot in self.node(id).disk.snapshots.values_mut() {
            snapshot.chunks.clone_from(&planted.chunks);
        }
    }

    fn carry(&mut self, from: u8, to: u8, bytes: Bytes) {
        let mut message: PeerMessage = decode(&bytes).unwrap();
        if self.cut.is_some_and(|cut| cut(from, to, &message)) {
            return;
        }
        if let Some(spoil) = &self.spoil {
            spoil(from, to, &mut message);
        }
        self.put_in(from, to, &message);
    }

    /// Whatever a liar sends over its own link.
    pub fn put_in(&mut self, from: u8, to: u8, message: &PeerMessage) {
        let bytes = Bytes::from(encode(message));
        let node = self.node(to);
        if node.replica.is_some() {
            node.inbox.push_back(Input::Peer { from: ReplicaId(from), incarnation: Incarnation(0), bytes });
        }
    }

    fn carry_out(&mut self, id: u8, mut out: Outbox) {
        for effect in out.drain() {
            let node = &mut self.nodes[usize::from(id)];
            match effect {
                Effect::Persist { ticket, record, .. } => {
                    node.disk.records.push((ticket, Bytes::from(record)))
                }
                Effect::Send { to, bytes, .. } => self.carry(id, to.0, bytes),
                Effect::Reply { reply, .. } => self.replies.push((id, reply)),
                Effect::SaveSnapshot { sequence, meta, frozen } => {
                    let chunks =
                        (0..frozen.chunk_count()).map(|at| (at, frozen.chunk(at).unwrap())).collect();
                    node.disk.snapshots.insert(sequence, Snapshot { meta, chunks });
                    node.inbox.push_back(Input::SnapshotSaved { sequence });
                }
                Effect::SaveChunk { sequence, index, bytes } => {
                    node.disk.snapshots.entry(sequence).or_default().chunks.insert(index, bytes.to_vec());
                }
                Effect::FinishSnapshot { sequence, meta } => {
                    node.disk.snapshots.get_mut(&sequence).unwrap().meta = meta;
                    node.inbox.push_back(Input::SnapshotSaved { sequence });
                }
                Effect::ReadChunk { token, sequence, index, offset, bytes_max } => {
                    let snapshot = node.disk.snapshots.get(&sequence);
                    let chunk = snapshot.and_then(|snapshot| snapshot.chunks.get(&index));
                    let bytes = chunk.map(|chunk| {
                        let rest = &chunk[usize::try_from(offset).unwrap().min(chunk.len())..];
                        Bytes::copy_from_slice(&rest[..rest.len().min(bytes_max as usize)])
                    });
                    node.inbox.push_back(Input::ChunkRead { token, bytes });
                }
                Effect::DropSnapshot { sequence } => {
                    node.disk.snapshots.remove(&sequence);
                }
                Effect::DiscardLog { before } => node.disk.records.retain(|(ticket, _)| *ticket >= before),
                Effect::MemberChanged { .. } => {}
                Effect::Event(event) => node.events.push(event),
                Effect::Halt { reason } => panic!("r{id} halts: {reason}"),
            }
        }
    }

    fn step_all(&mut self, id: u8) {
        let now = self.now();
        let mut out = Outbox::default();
        let node = self.node(id);
        let inbox = std::mem::take(&mut node.inbox);
        let Some(replica) = &mut node.replica else { return };
        for input in inbox {
            replica.step(now, input, &mut out);
        }
        replica.step(now, Input::Settle, &mut out);
        replica.check();
        self.carry_out(id, out);
    }

    /// Lets time pass. Every round trip takes some of it, so that what arrives together is a burst.
    pub fn run(&mut self, ms: u64) {
        let until = self.now.plus(Micros::from_millis(ms));
        loop {
            let busy: Vec<u8> =
                self.ids().filter(|id| !self.nodes[usize::from(*id)].inbox.is_empty()).collect();
            if !busy.is_empty() {
                busy.into_iter().for_each(|id| self.step_all(id));
                self.now = self.now.plus(Micros(100));
                continue;
            }
            let replicas = self.nodes.iter().filter_map(|node| node.replica.as_ref());
            let next = replicas.map(Replica::next_wakeup).min().unwrap_or(Micros::NEVER);
            if next > until {
                self.now = self.now.max(until);
                return;
            }
            self.now = self.now.max(next);
            let now = self.now;
            for id in self.ids() {
                let node = self.node(id);
                if node.replica.as_ref().is_some_and(|replica| replica.next_wakeup() <= now) {
                    node.inbox.push_back(Input::Wake);
                }
            }
        }
    }

    /// Lets time pass until this replica has replied to a client, a second at most; the moment of the reply.
    pub fn run_until_reply(&mut self, by: u8) -> u64 {
        self.replies.clear();
        let end = self.now_us() + 1_000_000;
        while !self.replies.iter().any(|(from, _)| *from == by) && self.now_us() < end {
            let busy: Vec<u8> =
                self.ids().filter(|id| !self.nodes[usize::from(*id)].inbox.is_empty()).collect();
            if busy.is_empty() {
                self.run(1);
            }
            busy.into_iter().for_each(|id| self.step_all(id));
            self.now = self.now.plus(Micros(100));
        }
        self.now_us()
    }

    pub fn send(&mut self, to: u8, frame: &ClientFrame) {
        self.send_bytes(to, frame.encode());
    }

    pub fn send_bytes(&mut self, to: u8, bytes: Bytes) {
        let input = Input::Client { client: ClientId(7), request: ClientRequest::Frame { bytes, ack: None } };
        self.node(to).inbox.push_back(input);
    }

    pub fn events(&self, id: u8, wanted: impl Fn(&Event) -> bool) -> usize {
        self.nodes[usize::from(id)].events.iter().filter(|event| wanted(event)).count()
    }

    /// The numbers of commands in the slots that this replica executed, in order.
    pub fn batches(&self, id: u8) -> Vec<usize> {
        let executed = |event: &Event| match event {
            Event::Executed { commands, .. } => Some(commands.len()),
            _ => None,
        };
        self.nodes[usize::from(id)].events.iter().filter_map(executed).collect()
    }

    pub fn status(&self, id: u8) -> Status {
        self.replica(id).status(self.now())
    }

    /// The operator orders this mode, which ends the segment that is open.
    pub fn order_mode(&mut self, at: u8, mode: NetworkMode, first_leader: u8) {
        let number = self.status(at).next_order;
        let admin = admin_crypto();
        let order = ModeOrder { number, mode, first_leader: Some(ReplicaId(first_leader)) };
        let signed = SignedOrder::new(order, self.genesis.cluster(), admin.public_key(), &admin);
        let bytes = Bytes::from(encode(&OperatorOrder::Mode(signed)));
        let request = ClientRequest::Order { id: number, bytes };
        self.node(at).inbox.push_back(Input::Client { client: ClientId(8), request });
    }

    pub fn replica(&self, id: u8) -> &Replica<Kv> {
        self.nodes[usize::from(id)].replica.as_ref().expect("it runs")
    }

    /// What a client reads from this replica alone.
    pub fn value(&self, id: u8, key: &str) -> Option<Bytes> {
        let query = KvCommand::get(key.as_bytes().to_vec()).to_command();
        let reply = KvReply::decode(&self.replica(id).state().query(&query).ok()?).ok()?;
        match reply.body {
            KvBody::Range { kvs, .. } => kvs.first().map(|found| found.value.clone()),
            other => panic!("a range is answered with {other:?}"),
        }
    }

    pub fn digests(&mut self, ids: &[u8]) -> Vec<Hash> {
        let of = |node: &mut Node| {
            let replica = node.replica.as_mut().expect("it runs");
            let mut copy = replica.state().clone();
            state_digest(&copy.chunk_digests())
        };
        ids.iter().map(|id| of(&mut self.nodes[usize::from(*id)])).collect()
    }

    /// Whether all of these executed the same.
    pub fn agreed(&mut self, ids: &[u8]) -> bool {
        let log = |id: &u8| {
            let control = self.replica(*id).control();
            (control.executed, control.fold.log())
        };
        let logs: Vec<_> = ids.iter().map(log).collect();
        let digests = self.digests(ids);
        logs.windows(2).all(|pair| pair[0] == pair[1]) && digests.windows(2).all(|pair| pair[0] == pair[1])
    }
}

fn vote_seed(id: u8) -> [u8; 32] {
    let mut seed = [1; 32];
    seed[0] = id;
    // The same key that `table` gives to this seat.
    debug_assert_eq!(Ed25519::new(seed, &[]).public_key(), vote_crypto(id).public_key());
    seed
}

/// A command that sets a key.
pub fn put_of(key: &str, value: &[u8]) -> Bytes {
    Command::Machine(KvCommand::put(key.as_bytes().to_vec(), value.to_vec()).encode()).encode()
}

/// A client's session: signs frames and numbers commands.
pub struct Session {
    crypto: Ed25519,
    cluster: ClusterId,
    next: u64,
}

impl Session {
    pub fn new(number: u8, cluster: ClusterId) -> Self {
        Self { crypto: Ed25519::new([100 + number; 32], &[]), cluster, next: 1 }
    }

    pub fn key(&self) -> PublicKey {
        self.crypto.public_key()
    }

    pub fn open_frame(&self, valid_until_ms: u64) -> ClientFrame {
        let admin = admin_crypto();
        let open =
            SessionOpen { principal: "admin".into(), session_key: self.key(), ttl_ms: 0, valid_until_ms };
        ClientFrame::open(&admin, admin.public_key(), self.cluster, &open)
    }

    pub fn sign(&self, frame: &SessionFrame) -> ClientFrame {
        ClientFrame::commands(&self.crypto, self.cluster, frame)
    }

    /// The next command, in a frame of its own; every earlier result is here.
    pub fn put(&mut self, key: &str, value: &[u8]) -> ClientFrame {
        self.put_above(self.next, key, value)
    }

    /// The next command, while results from `low_water` on are still awaited.
    pub fn put_above(&mut self, low_water: u64, key: &str, value: &[u8]) -> ClientFrame {
        let commands = vec![put_of(key, value)];
        let frame = SessionFrame { session_key: self.key(), low_water, first: self.next, commands };
        self.next += 1;
        self.sign(&frame)
    }
}
