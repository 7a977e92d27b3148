//! A whole cluster in memory, without faults of disk: the shortest road through all rooms of the core. The simulator
//! does this with every fault there is; these few stories are for whoever changes a room and wants an answer at once.

use bytes::Bytes;
use dwcp_base::configuration::{Principal, Role};
use dwcp_base::crypto::Ed25519;
use dwcp_base::{
    Crypto, Genesis, Incarnation, Member, Micros, Mutants, NetworkMode, Now, Policy, PublicKey, Quorum,
    ReplicaId, Sequence, Ticket, Trust,
};
use dwcp_replica::raft::{OwnRaft, RaftMaker};
use dwcp_replica::{
    ClientId, ClientReply, ClientRequest, Effect, Event, ExecutedReply, Input, NotNow, Outbox,
    RecoveredSnapshot, Recovery, Replica, Settings, Setup,
};
use dwcp_state::kv::{Kv, KvCommand};
use dwcp_state::{ClientFrame, Command, Outcome, SessionFrame, SessionOpen};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

const START_MS: u64 = 1_700_000_000_000;

fn seed(kind: u8, id: u8) -> [u8; 32] {
    let mut seed = [kind; 32];
    seed[0] = id;
    seed
}

fn key(kind: u8, id: u8) -> PublicKey {
    Ed25519::new(seed(kind, id), &[]).public_key()
}

#[path = "cluster/belonging.rs"]
mod belonging;
#[path = "cluster/borders.rs"]
mod borders;
#[path = "cluster/bounds.rs"]
mod bounds;
#[path = "cluster/collecting.rs"]
mod collecting;
#[path = "cluster/distant.rs"]
mod distant;
#[path = "cluster/donors.rs"]
mod donors;
#[path = "cluster/endings.rs"]
mod endings;
#[path = "cluster/faulty.rs"]
mod faulty;
#[path = "cluster/ordering.rs"]
mod ordering;
#[path = "cluster/reading.rs"]
mod reading;
#[path = "cluster/repairing.rs"]
mod repairing;
#[path = "cluster/segments.rs"]
mod segments;
#[path = "cluster/sleeping.rs"]
mod sleeping;
#[path = "cluster/switching.rs"]
mod switching;
#[path = "cluster/syncing.rs"]
mod syncing;
#[path = "cluster/transferring.rs"]
mod transferring;
#[path = "cluster/watching.rs"]
mod watching;

fn genesis(n: u8, policy: Policy, mode: NetworkMode) -> Arc<Genesis> {
    let members = (0..n)
        .map(|id| Member {
            id: ReplicaId(id),
            incarnation: Incarnation(0),
            vote_key: key(1, id),
            tls_key: key(2, id),
            peer_address: format!("h{id}:1"),
            client_address: format!("h{id}:2"),
            votes_after: Sequence::ZERO,
        })
        .collect();
    let genesis = Genesis {
        version: 1,
        name: "test".into(),
        created_unix_ms: START_MS,
        policy,
        mode,
        calm_ms: 500,
        members,
        principals: vec![Principal { name: "admin".into(), key: key(3, 0), role: Role::Admin }],
        checkpoint_interval: 8,
        window: 16,
        quota_bytes: 1 << 30,
    };
    genesis.check().unwrap();
    Arc::new(genesis)
}

/// A snapshot's meta and chunks.
type Snapshot = (Vec<u8>, BTreeMap<u32, Vec<u8>>);

#[derive(Default)]
struct Disk {
    records: Vec<(Ticket, Bytes)>,
    snapshots: BTreeMap<Sequence, Snapshot>,
}

struct Node {
    replica: Option<Replica<Kv>>,
    disk: Disk,
    inbox: VecDeque<Input>,
    unsynced: bool,
    events: Vec<Event>,
}

struct Cluster {
    genesis: Arc<Genesis>,
    nodes: Vec<Node>,
    now: Micros,
    replies: Vec<(u8, ClientReply)>,
    /// Of replicas whose Raft has a fault: see `faulty`.
    rafts: BTreeMap<u8, Arc<dyn RaftMaker>>,
    /// Of replicas that begin with another store than the genesis says.
    quotas: BTreeMap<u8, u64>,
    /// What these stories change of everybody's settings.
    tuned: fn(&mut Settings),
    /// What was sent to replicas that do not run, for stories that speak for them.
    to_the_dead: Vec<(u8, u8, Bytes)>,
    /// Nothing passes between these and the others.
    apart: Vec<u8>,
    /// Its disk ends a snapshot only when the story says so.
    slow: Option<u8>,
    /// What its disk has yet to say.
    late: Vec<Input>,
    /// Settings of state sync of replicas that have others than `syncing::setup`.
    settings: BTreeMap<u8, dwcp_replica::SyncSetup>,
    /// Says what becomes of what one replica sends another, for stories with a liar.
    twist: Option<Twist>,
    /// How long messages between replicas take, for stories of distant ones; and those on their way, each with a number that
    /// keeps them in order.
    delay: Micros,
    flying: BTreeMap<(Micros, u64), (u8, Input)>,
    sent: u64,
    /// How far the wall clocks of some are ahead, in milliseconds.
    ahead_ms: BTreeMap<u8, u64>,
}

type Twist = Box<dyn FnMut(u8, u8, Bytes) -> Option<Bytes>>;

impl Cluster {
    fn new(n: u8) -> Self {
        let trust = if n >= 4 { Trust::Byzantine } else { Trust::Crash };
        Self::with(n, Policy::root_only(trust, Quorum::new(n.into(), None).unwrap()), NetworkMode::Hybrid)
    }

    fn with(n: u8, policy: Policy, mode: NetworkMode) -> Self {
        let mut cluster = Self::unstarted(n, policy, mode);
        (0..n).for_each(|id| cluster.start(id));
        cluster
    }

    fn unstarted(n: u8, policy: Policy, mode: NetworkMode) -> Self {
        let genesis = genesis(n, policy, mode);
        let nodes = (0..n)
            .map(|_| Node {
                replica: None,
                disk: Disk::default(),
                inbox: VecDeque::new(),
                unsynced: false,
                events: Vec::new(),
            })
            .collect();
        Self {
            genesis,
            nodes,
            now: Micros(1_000_000),
            replies: Vec::new(),
            rafts: BTreeMap::new(),
            quotas: BTreeMap::new(),
            tuned: |_| {},
            to_the_dead: Vec::new(),
            apart: Vec::new(),
            slow: None,
            late: Vec::new(),
            settings: BTreeMap::new(),
            twist: None,
            delay: Micros::ZERO,
            flying: BTreeMap::new(),
            sent: 0,
            ahead_ms: BTreeMap::new(),
        }
    }

    fn now(&self) -> Now {
        Now { mono: self.now, wall_ms: START_MS + self.now.0 / 1000 }
    }

    fn start(&mut self, id: u8) {
        let keys: Vec<PublicKey> = self.genesis.members.iter().map(|member| member.vote_key).collect();
        let crypto: Arc<dyn Crypto> = Arc::new(Ed25519::new(seed(1, id), &keys));
        let mut settings =
            Settings { snapshot_log_bytes: 64 << 10, history_bytes_max: 128 << 10, ..Settings::lan() };
        (self.tuned)(&mut settings);
        settings.check().unwrap();
        let setup = Setup {
            genesis: self.genesis.clone(),
            me: ReplicaId(id),
            incarnation: Incarnation(0),
            settings,
            raft: Some(self.rafts.get(&id).cloned().unwrap_or_else(|| Arc::new(OwnRaft))),
            sync: Some(self.settings.get(&id).cloned().unwrap_or_else(syncing::setup)),
            seed: u64::from(id),
            mutants: Mutants::default(),
        };
        let disk = &self.nodes[usize::from(id)].disk;
        // One without metadata was being fetched.
        let (whole, partial): (Vec<_>, Vec<_>) =
            disk.snapshots.iter().partition(|(_, (meta, _))| !meta.is_empty());
        let snapshot = whole.last().map(|(sequence, (meta, chunks))| RecoveredSnapshot {
            sequence: **sequence,
            meta: meta.clone(),
            chunks: Box::new(chunks.clone().into_values().map(Ok)),
        });
        let chunks_of = |chunks: &BTreeMap<u32, Vec<u8>>| {
            chunks.iter().map(|(index, bytes)| (*index, Bytes::from(bytes.clone()))).collect()
        };
        let partial =
            partial.into_iter().map(|(sequence, (_, chunks))| (*sequence, chunks_of(chunks))).collect();
        let next_ticket = Ticket(disk.records.last().map_or(1, |(ticket, _)| ticket.0 + 1));
        let recovery = Recovery { snapshot, partial, records: disk.records.clone(), next_ticket };
        let mut out = Outbox::default();
        let quota_bytes = self.quotas.get(&id).copied().unwrap_or(self.genesis.quota_bytes);
        let make = Arc::new(move || Kv::new(quota_bytes));
        let replica = Replica::recover(setup, make, crypto, recovery, self.now(), &mut out).unwrap();
        self.nodes[usize::from(id)].replica = Some(replica);
        self.carry_out(id, out);
        for other in (0..self.genesis.members.len() as u8).filter(|other| *other != id) {
            if self.nodes[usize::from(other)].replica.is_some() {
                self.nodes[usize::from(other)].inbox.push_back(Input::LinkUp { peer: ReplicaId(id) });
                self.nodes[usize::from(id)].inbox.push_back(Input::LinkUp { peer: ReplicaId(other) });
            }
        }
    }

    fn stop(&mut self, id: u8) {
        self.nodes[usize::from(id)].replica = None;
        self.nodes[usize::from(id)].inbox.clear();
        self.nodes[usize::from(id)].unsynced = false;
        for other in self.nodes.iter_mut().filter(|other| other.replica.is_some()) {
            other.inbox.push_back(Input::LinkDown { peer: ReplicaId(id) });
        }
    }

    fn carry_out(&mut self, id: u8, mut out: Outbox) {
        for effect in out.drain() {
            let node = &mut self.nodes[usize::from(id)];
            match effect {
                Effect::Persist { ticket, record, .. } => {
                    node.disk.records.push((ticket, Bytes::from(record)));
                    node.unsynced = true;
                }
                Effect::Send { to, bytes, .. } => {
                    if self.apart.contains(&id) != self.apart.contains(&to.0) {
                        continue;
                    }
                    let twisted = match &mut self.twist {
                        Some(twist) => twist(id, to.0, bytes),
                        None => Some(bytes),
                    };
                    let Some(bytes) = twisted else { continue };
                    let target = &mut self.nodes[usize::from(to.0)];
                    if target.replica.is_some() {
                        let from = ReplicaId(id);
                        let input = Input::Peer { from, incarnation: Incarnation(0), bytes };
                        if self.delay == Micros::ZERO {
                            target.inbox.push_back(input);
                        } else {
                            self.sent += 1;
                            self.flying.insert((self.now.plus(self.delay), self.sent), (to.0, input));
                        }
                    } else {
                        self.to_the_dead.push((id, to.0, bytes));
                    }
                }
                Effect::Reply { reply, .. } => self.replies.push((id, reply)),
                Effect::SaveSnapshot { sequence, meta, frozen } => {
                    let chunks =
                        (0..frozen.chunk_count()).map(|at| (at, frozen.chunk(at).unwrap())).collect();
                    node.disk.snapshots.insert(sequence, (meta, chunks));
                    let saved = Input::SnapshotSaved { sequence };
                    if self.slow == Some(id) { self.late.push(saved) } else { node.inbox.push_back(saved) }
                }
                Effect::SaveChunk { sequence, index, bytes } => {
                    node.disk.snapshots.entry(sequence).or_default().1.insert(index, bytes.to_vec());
                }
                Effect::FinishSnapshot { sequence, meta } => {
                    node.disk.snapshots.get_mut(&sequence).unwrap().0 = meta;
                    node.inbox.push_back(Input::SnapshotSaved { sequence });
                }
                Effect::ReadChunk { token, sequence, index, offset, bytes_max } => {
                    let chunk = node.disk.snapshots.get(&sequence).and_then(|(_, chunks)| chunks.get(&index));
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

    fn step(&mut self, id: u8, input: Input) {
        let mut now = self.now();
        now.wall_ms += self.ahead_ms.get(&id).copied().unwrap_or(0);
        let mut out = Outbox::default();
        let Some(replica) = &mut self.nodes[usize::from(id)].replica else { return };
        replica.step(now, input, &mut out);
        replica.step(now, Input::Settle, &mut out);
        replica.check();
        self.carry_out(id, out);
        let node = &mut self.nodes[usize::from(id)];
        if core::mem::take(&mut node.unsynced) {
            let through = node.disk.records.last().unwrap().0;
            node.inbox.push_back(Input::Durable { through });
        }
    }

    /// Runs until nothing is to be done, letting time pass up to `until`.
    fn run_until(&mut self, until: Micros) {
        loop {
            while let Some(arrived) = self.flying.first_entry().filter(|next| next.key().0 <= self.now) {
                let (to, input) = arrived.remove();
                self.nodes[usize::from(to)].inbox.push_back(input);
            }
            let busy: Vec<u8> = (0..self.nodes.len() as u8)
                .filter(|id| !self.nodes[usize::from(*id)].inbox.is_empty())
                .collect();
            for id in &busy {
                while let Some(input) = self.nodes[usize::from(*id)].inbox.pop_front() {
                    self.step(*id, input);
                }
            }
            if !busy.is_empty() {
                self.now = self.now.plus(Micros(100));
                continue;
            }
            let next = self
                .nodes
                .iter()
                .filter_map(|node| node.replica.as_ref())
                .map(Replica::next_wakeup)
                .chain(self.flying.keys().next().map(|(at, _)| *at))
                .min()
                .unwrap();
            if next > until {
                self.now = until;
                return;
            }
            self.now = self.now.max(next);
            for id in 0..self.nodes.len() as u8 {
                let due = self.nodes[usize::from(id)]
                    .replica
                    .as_ref()
                    .is_some_and(|replica| replica.next_wakeup() <= self.now);
                if due {
                    self.step(id, Input::Wake);
                }
            }
        }
    }

    /// Hands every node what waits for it now, or, when nothing does, lets time pass until somebody's timer is due.
    fn one_round(&mut self) {
        let waiting: Vec<_> = self.nodes.iter_mut().map(|node| core::mem::take(&mut node.inbox)).collect();
        if waiting.iter().all(|inbox| inbox.is_empty()) {
            let replicas = self.nodes.iter().filter_map(|node| node.replica.as_ref());
            self.now = self.now.max(replicas.map(Replica::next_wakeup).min().unwrap());
            for node in &mut self.nodes {
                if node.replica.as_ref().is_some_and(|replica| replica.next_wakeup() <= self.now) {
                    node.inbox.push_back(Input::Wake);
                }
            }
            return;
        }
        for (id, inbox) in (0..).zip(waiting) {
            inbox.into_iter().for_each(|input| self.step(id, input));
        }
        self.now = self.now.plus(Micros(100));
    }

    fn run(&mut self, ms: u64) {
        self.run_until(self.now.plus(Micros::from_millis(ms)));
    }

    fn send(&mut self, to: u8, frame: &ClientFrame) {
        self.send_with(to, frame, None);
    }

    fn send_with(&mut self, to: u8, frame: &ClientFrame, ack: Option<dwcp_base::Ack>) {
        let request = ClientRequest::Frame { bytes: frame.encode(), ack };
        self.nodes[usize::from(to)].inbox.push_back(Input::Client { client: ClientId(7), request });
    }

    /// The frame that opens this session.
    fn open_frame(&self, session: &Session) -> ClientFrame {
        let admin = Ed25519::new(seed(3, 0), &[]);
        let open = SessionOpen {
            principal: "admin".into(),
            session_key: session.crypto.public_key(),
            ttl_ms: 0,
            valid_until_ms: self.now().wall_ms + 30_000,
        };
        ClientFrame::open(&admin, admin.public_key(), self.genesis.cluster(), &open)
    }

    fn executed(&self, node: u8) -> Vec<&ExecutedReply> {
        self.replies
            .iter()
            .filter(|(from, _)| *from == node)
            .filter_map(|(_, reply)| match reply {
                ClientReply::Executed(reply) => Some(reply),
                _ => None,
            })
            .collect()
    }

    fn events(&self, id: u8, wanted: impl Fn(&Event) -> bool) -> usize {
        self.nodes[usize::from(id)].events.iter().filter(|event| wanted(event)).count()
    }

    fn assert_agreed(&mut self, nodes: &[u8]) {
        let seen: Vec<_> = nodes
            .iter()
            .map(|id| {
                let control = self.nodes[usize::from(*id)].replica.as_ref().unwrap().control();
                (control.executed, control.fold.log().chain, control.digest())
            })
            .collect();
        assert!(seen.windows(2).all(|pair| pair[0] == pair[1]), "{seen:?}");
    }
}

struct Session {
    crypto: Ed25519,
    next: u64,
    cluster: dwcp_base::ClusterId,
}

impl Session {
    fn open(cluster: &mut Cluster, at: u8) -> Self {
        let id = cluster.genesis.cluster();
        let session = Self { crypto: Ed25519::new(seed(9, 9), &[]), next: 1, cluster: id };
        let frame = cluster.open_frame(&session);
        cluster.send(at, &frame);
        cluster.run(50);
        assert_eq!(cluster.executed(at).len(), 1, "the session is open");
        session
    }

    fn put(&mut self, key: &str, value: &[u8]) -> ClientFrame {
        self.frame(KvCommand::put(key.as_bytes().to_vec(), value.to_vec()).encode())
    }

    fn frame(&mut self, command: Bytes) -> ClientFrame {
        self.commands(vec![Command::Machine(command).encode()])
    }

    fn commands(&mut self, commands: Vec<Bytes>) -> ClientFrame {
        let frame = SessionFrame {
            session_key: self.crypto.public_key(),
            low_water: self.next,
            first: self.next,
            commands,
        };
        self.next += 1;
        ClientFrame::commands(&self.crypto, self.cluster, &frame)
    }
}

#[test]
fn four_replicas_agree_and_reply_with_signatures_that_hold() {
    let mut cluster = Cluster::new(4);
    let mut session = Session::open(&mut cluster, 1);
    for index in 0..40 {
        let frame = session.put(&format!("k{index}"), b"v");
        cluster.send(1, &frame);
        cluster.run(10);
    }
    cluster.run(300);
    cluster.assert_agreed(&[0, 1, 2, 3]);
    let replies = cluster.executed(1);
    assert_eq!(replies.len(), 41);
    let verifier = Ed25519::new(seed(8, 8), &[]);
    for reply in replies {
        assert!(matches!(reply.results[0].outcome, Outcome::Done(_)), "{reply:?}");
        assert!(reply.verify(cluster.genesis.cluster(), &key(1, 1), &verifier));
        assert!(!reply.verify(cluster.genesis.cluster(), &key(1, 2), &verifier));
    }
    assert!(cluster.nodes[0].replica.as_ref().unwrap().protocol().stable_sequence() >= Sequence(32));
}

#[test]
fn the_largest_cluster_agrees_and_replaces_its_primary() {
    let mut cluster = Cluster::new(31);
    assert_eq!(cluster.genesis.policy.quorum.f(), 10);
    let mut session = Session::open(&mut cluster, 1);
    for index in 0..3 {
        let frame = session.put(&format!("k{index}"), b"v");
        cluster.send(1, &frame);
        cluster.run(20);
    }
    // As many as may fail, the primary among them.
    for id in [0, 22, 23, 24, 25, 26, 27, 28, 29, 30] {
        cluster.stop(id);
    }
    let frame = session.put("after", b"v");
    cluster.send(1, &frame);
    cluster.run(3_000);
    assert_eq!(cluster.executed(1).len(), 5);
    let alive: Vec<u8> = (1..22).collect();
    cluster.assert_agreed(&alive);
}

#[test]
fn one_and_three_replicas_run_under_crash_trust() {
    for n in [1, 3] {
        let mut cluster = Cluster::new(n);
        let mut session = Session::open(&mut cluster, 0);
        let frame = session.put("a", b"1");
        cluster.send(0, &frame);
        cluster.run(50);
        assert_eq!(cluster.executed(0).len(), 2, "n = {n}");
    }
}

#[test]
fn a_dead_primary_is_replaced_and_its_return_catches_up() {
    let mut cluster = Cluster::new(4);
    let mut session = Session::open(&mut cluster, 1);
    let frame = session.put("a", b"1");
    cluster.send(1, &frame);
    cluster.run(50);
    cluster.stop(0);
    let frame = session.put("b", b"2");
    cluster.send(1, &frame);
    cluster.run(3_000);
    assert_eq!(cluster.executed(1).len(), 3, "the command survives its primary");
    assert!(cluster.nodes[1].replica.as_ref().unwrap().protocol().view().0 >= 1);
    for index in 0..30 {
        let frame = session.put(&format!("k{index}"), &[7; 8_000]);
        cluster.send(1, &frame);
        cluster.run(10);
    }
    cluster.start(0);
    cluster.run(3_000);
    cluster.assert_agreed(&[0, 1, 2, 3]);
}

#[test]
fn a_sleeper_that_missed_more_than_the_history_fetches_a_snapshot() {
    let mut cluster = Cluster::new(4);
    let mut session = Session::open(&mut cluster, 1);
    cluster.stop(3);
    for index in 0..100 {
        let frame = session.put(&format!("k{index}"), &[7; 8_000]);
        cluster.send(1, &frame);
        cluster.run(10);
    }
    cluster.start(3);
    cluster.run(5_000);
    cluster.assert_agreed(&[0, 1, 2, 3]);
    assert_eq!(cluster.events(3, |event| matches!(event, Event::StateTransferFinished { .. })), 1);
    // What was fetched is durable: a restart needs nobody.
    cluster.stop(3);
    (0..3).for_each(|id| cluster.stop(id));
    (0..4).for_each(|id| cluster.start(id));
    cluster.run(2_000);
    cluster.assert_agreed(&[0, 1, 2, 3]);
    let frame = session.put("after", b"all");
    cluster.send(2, &frame);
    cluster.run(2_000);
    assert_eq!(cluster.executed(2).len(), 1);
    cluster.assert_agreed(&[0, 1, 2, 3]);
}

/// Chunks of a snapshot that node 3 is fetching and has on its disk.
fn chunks_fetched(cluster: &Cluster) -> usize {
    let unfinished = cluster.nodes[3].disk.snapshots.values().filter(|(meta, _)| meta.is_empty());
    unfinished.map(|(_, chunks)| chunks.len()).sum()
}

#[test]
fn a_state_transfer_goes_on_after_a_restart_with_the_chunks_it_had() {
    let mut cluster = Cluster::new(4);
    let mut session = Session::open(&mut cluster, 1);
    cluster.stop(3);
    for index in 0..100 {
        let frame = session.put(&format!("k{index}"), &[7; 8_000]);
        cluster.send(1, &frame);
        cluster.run(10);
    }
    cluster.start(3);
    let mut rounds = 0;
    while chunks_fetched(&cluster) < 100 {
        cluster.one_round();
        rounds += 1;
        assert!(rounds < 100_000, "it does not fetch: {} chunks", chunks_fetched(&cluster));
    }
    let had = chunks_fetched(&cluster);
    assert!(had < 300, "it was stopped in the middle, not at {had}");
    assert_eq!(cluster.events(3, |event| matches!(event, Event::StateTransferFinished { .. })), 0);
    cluster.stop(3);
    // One of them is damaged on the disk: it is verified like any other, and fetched again.
    let unfinished = cluster.nodes[3].disk.snapshots.values_mut().find(|(meta, _)| meta.is_empty());
    let (_, chunks) = unfinished.expect("it was being fetched");
    chunks.values_mut().next().expect("it has some").push(0);
    cluster.start(3);
    cluster.run(5_000);
    let taken_up = |event: &Event| match event {
        Event::ChunksTakenUp { chunks, .. } => Some(*chunks as usize),
        _ => None,
    };
    let taken: Vec<usize> = cluster.nodes[3].events.iter().filter_map(taken_up).collect();
    assert_eq!(taken, [had - 1]);
    assert_eq!(cluster.events(3, |event| matches!(event, Event::StateTransferFinished { .. })), 1);
    cluster.assert_agreed(&[0, 1, 2, 3]);
}

#[test]
fn a_retry_is_answered_and_not_run_again() {
    let mut cluster = Cluster::new(4);
    let mut session = Session::open(&mut cluster, 1);
    let frame = session.put("a", b"1");
    cluster.send(1, &frame);
    cluster.run(50);
    cluster.send(2, &frame);
    cluster.run(50);
    let (first, again) = (cluster.executed(1)[1].leaf_hash(), cluster.executed(2)[0].leaf_hash());
    assert_eq!(first, again);
    assert_eq!(cluster.events(2, |event| matches!(event, Event::RetryAnswered { .. })), 1);
}

fn other(session: &Session, sequence: u64, low_water: u64, command: Command) -> ClientFrame {
    let frame = SessionFrame {
        session_key: session.crypto.public_key(),
        low_water,
        first: sequence,
        commands: vec![command.encode()],
    };
    ClientFrame::commands(&session.crypto, session.cluster, &frame)
}

fn lost_on_the_way(cluster: &mut Cluster, at: u8, frame: &ClientFrame) {
    let now = cluster.now();
    let mut out = Outbox::default();
    let request = ClientRequest::Frame { bytes: frame.encode(), ack: None };
    cluster.nodes[usize::from(at)].replica.as_mut().unwrap().step(
        now,
        Input::Client { client: ClientId(7), request },
        &mut out,
    );
}

#[test]
fn a_frame_whose_commands_ran_in_another_frame_costs_no_view() {
    let mut cluster = Cluster::new(4);
    let mut session = Session::open(&mut cluster, 1);
    let put = |key: &[u8]| Command::Machine(KvCommand::put(key.to_vec(), b"x".to_vec()).encode());
    let second = other(&session, 1, 1, put(b"b"));
    lost_on_the_way(&mut cluster, 1, &second);
    let first = session.put("a", b"1");
    cluster.send(0, &first);
    cluster.run(50);
    cluster.run(20_000);
    let left: Vec<usize> = (0..4)
        .map(|id| cluster.events(id, |event| matches!(event, Event::ViewChangeStarted { .. })))
        .collect();
    assert_eq!(left, [0, 0, 0, 0]);
}

#[test]
fn a_frame_of_a_closed_session_costs_no_view() {
    let mut cluster = Cluster::new(4);
    let session = Session::open(&mut cluster, 1);
    let put = Command::Machine(KvCommand::put(b"a".to_vec(), b"x".to_vec()).encode());
    lost_on_the_way(&mut cluster, 1, &other(&session, 1, 1, put.clone()));
    lost_on_the_way(&mut cluster, 2, &other(&session, 1, 1, put));
    cluster.send(0, &other(&session, 2, 1, Command::CloseSession));
    cluster.run(50);
    cluster.run(20_000);
    let left: Vec<usize> = (0..4)
        .map(|id| cluster.events(id, |event| matches!(event, Event::ViewChangeStarted { .. })))
        .collect();
    assert_eq!(left, [0, 0, 0, 0]);
}
