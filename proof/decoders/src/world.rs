//! A small cluster in memory that never fails by itself. It runs once per process, to make what cannot be written by
//! hand: disks with a history on them, and the traffic that honest replicas send to the one under test.
//!
//! It judges nothing; `story` does, when it plays such traffic back with damage in it.

use crate::keys::{N, START_MS, Signer, admin_key, cluster, genesis, key, vote_key};
use crate::story::Step;
use bytes::Bytes;
use dwcp_base::{Ack, Incarnation, Micros, Mutants, NetworkMode, Now, ReplicaId, Sequence, Ticket, Trust};
use dwcp_log::{MemberOrder, ModeOrder, OperatorOrder, PolicyOrder, SignedMemberOrder, SignedOrder};
use dwcp_replica::raft::OwnRaft;
use dwcp_replica::{
    ClientId, ClientReply, ClientRequest, Effect, Input, Outbox, RecoveredSnapshot, Recovery, Replica,
    Settings, Setup,
};
use dwcp_state::kv::{CompareOp, CompareTarget, DeleteRange, Kv, KvCommand, Put, Range, Txn, TxnOp};
use dwcp_state::{AdminCommand, ClientFrame, Command, SessionFrame, SessionOpen};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, LazyLock};

/// A snapshot on a disk: its meta and its chunks.
pub type Snapshot = (Vec<u8>, BTreeMap<u32, Vec<u8>>);

/// What one replica's disk holds.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    pub records: Vec<(Ticket, Bytes)>,
    pub snapshots: BTreeMap<Sequence, Snapshot>,
    pub partial: Vec<(Sequence, Vec<(u32, Bytes)>)>,
}

/// A replica that can be brought to life at one moment of its history, as often as wanted.
#[derive(Clone, Debug)]
pub struct Base {
    pub me: ReplicaId,
    pub disk: Disk,
    pub now: Micros,
}

impl Base {
    /// The moment, on both clocks.
    #[must_use]
    pub fn now(&self) -> Now {
        at(self.now)
    }

    /// Brings the replica to life with these records appended to its log.
    ///
    /// # Errors
    /// Why it refuses to begin.
    pub fn revive(
        &self,
        extra: &[Bytes],
        out: &mut Outbox,
    ) -> Result<Replica<Kv>, dwcp_replica::RecoverError> {
        let mut records = self.disk.records.clone();
        for bytes in extra {
            let ticket = Ticket(records.last().map_or(1, |(ticket, _)| ticket.0 + 1));
            records.push((ticket, bytes.clone()));
        }
        revive(self.me, &self.disk, records, self.now(), out)
    }
}

/// What was said to a replica after its base's moment.
#[derive(Debug)]
pub struct World {
    /// The backup of view 0 that is primary of view 1.
    pub heir: Base,
    /// A backup of views 0 and 1.
    pub backup: Base,
    /// Slept through a snapshot; most chunks of it are on its disk already.
    pub sleeper: Base,
    pub heir_normal: Vec<Step>,
    pub heir_change: Vec<Step>,
    pub backup_normal: Vec<Step>,
    pub backup_change: Vec<Step>,
    pub sleeper_wakes: Vec<Step>,
    /// Everything anybody wrote, for seeds.
    pub records: Vec<Bytes>,
    /// A whole snapshot that the sleeper lacks.
    pub snapshot: Snapshot,
    pub replies: Vec<ClientReply>,
}

/// The one world of this process.
pub fn world() -> &'static World {
    static WORLD: LazyLock<World> = LazyLock::new(build);
    &WORLD
}

fn at(mono: Micros) -> Now {
    Now { mono, wall_ms: START_MS + mono.0 / 1000 }
}

fn settings() -> Settings {
    Settings { snapshot_log_bytes: 64 << 10, history_bytes_max: 128 << 10, ..Settings::lan() }
}

/// The state machine under test: the built-in store.
#[must_use]
pub fn machine() -> Kv {
    Kv::new(genesis().quota_bytes)
}

/// What a replica of the test cluster is born with.
#[must_use]
pub fn setup(me: ReplicaId) -> Setup {
    Setup {
        genesis: genesis(),
        me,
        incarnation: Incarnation(0),
        settings: settings(),
        raft: Some(Arc::new(OwnRaft)),
        sync: Some(dwcp_replica::SyncSetup::default()),
        seed: me.0.into(),
        mutants: Mutants::default(),
    }
}

fn revive(
    me: ReplicaId,
    disk: &Disk,
    records: Vec<(Ticket, Bytes)>,
    now: Now,
    out: &mut Outbox,
) -> Result<Replica<Kv>, dwcp_replica::RecoverError> {
    let snapshot = disk.snapshots.iter().next_back().map(|(sequence, (meta, chunks))| RecoveredSnapshot {
        sequence: *sequence,
        meta: meta.clone(),
        chunks: Box::new(chunks.clone().into_values().map(Ok)),
    });
    let next_ticket = Ticket(records.last().map_or(1, |(ticket, _)| ticket.0 + 1));
    let recovery = Recovery { snapshot, partial: disk.partial.clone(), records, next_ticket };
    let crypto = Arc::new(Signer(vote_key(me, Incarnation(0))));
    Replica::recover(setup(me), Arc::new(machine), crypto, recovery, now, out)
}

#[derive(Default)]
struct Node {
    replica: Option<Replica<Kv>>,
    disk: Disk,
    inbox: VecDeque<Input>,
    heard: Option<Vec<Step>>,
}

struct Cluster {
    nodes: Vec<Node>,
    now: Micros,
    replies: Vec<ClientReply>,
    records: Vec<Bytes>,
}

impl Cluster {
    fn new() -> Self {
        let mut cluster = Self {
            nodes: (0..N).map(|_| Node::default()).collect(),
            now: Micros(1_000_000),
            replies: Vec::new(),
            records: Vec::new(),
        };
        (0..N).for_each(|id| cluster.start(id));
        cluster
    }

    fn start(&mut self, id: u8) {
        let mut out = Outbox::default();
        let disk = &self.nodes[usize::from(id)].disk;
        let replica = revive(ReplicaId(id), disk, disk.records.clone(), at(self.now), &mut out);
        self.nodes[usize::from(id)].replica = Some(replica.expect("an honest disk"));
        self.carry_out(id, &mut out);
        for other in (0..N).filter(|other| *other != id) {
            if self.nodes[usize::from(other)].replica.is_some() {
                self.nodes[usize::from(other)].inbox.push_back(Input::LinkUp { peer: ReplicaId(id) });
                self.nodes[usize::from(id)].inbox.push_back(Input::LinkUp { peer: ReplicaId(other) });
            }
        }
    }

    fn stop(&mut self, id: u8) {
        self.nodes[usize::from(id)].replica = None;
        self.nodes[usize::from(id)].inbox.clear();
    }

    /// From here on everything said to this replica is kept.
    fn listen(&mut self, id: u8) -> Base {
        let node = &mut self.nodes[usize::from(id)];
        node.heard = Some(Vec::new());
        Base { me: ReplicaId(id), disk: node.disk.clone(), now: self.now }
    }

    fn heard(&mut self, id: u8) -> Vec<Step> {
        self.nodes[usize::from(id)].heard.take().unwrap_or_default()
    }

    fn carry_out(&mut self, id: u8, out: &mut Outbox) {
        for effect in out.drain() {
            let node = &mut self.nodes[usize::from(id)];
            match effect {
                Effect::Persist { ticket, record, .. } => {
                    self.records.push(Bytes::from(record.clone()));
                    node.disk.records.push((ticket, Bytes::from(record)));
                }
                Effect::Send { to, bytes, .. } => {
                    let target = &mut self.nodes[usize::from(to.0)];
                    if target.replica.is_some() {
                        let from = ReplicaId(id);
                        target.inbox.push_back(Input::Peer { from, incarnation: Incarnation(0), bytes });
                    }
                }
                Effect::Reply { reply, .. } => self.replies.push(reply),
                Effect::SaveSnapshot { sequence, meta, frozen } => {
                    let chunk = |index| (index, frozen.chunk(index).expect("the store writes every chunk"));
                    let chunks = (0..frozen.chunk_count()).map(chunk).collect();
                    node.disk.snapshots.insert(sequence, (meta, chunks));
                    node.inbox.push_back(Input::SnapshotSaved { sequence });
                }
                Effect::SaveChunk { sequence, index, bytes } => {
                    node.disk.snapshots.entry(sequence).or_default().1.insert(index, bytes.to_vec());
                }
                Effect::FinishSnapshot { sequence, meta } => {
                    node.disk.snapshots.entry(sequence).or_default().0 = meta;
                    node.inbox.push_back(Input::SnapshotSaved { sequence });
                }
                Effect::ReadChunk { token, sequence, index, offset, bytes_max } => {
                    let chunk = node.disk.snapshots.get(&sequence).and_then(|(_, chunks)| chunks.get(&index));
                    let bytes = chunk.map(|chunk| {
                        let rest = &chunk[usize::try_from(offset).expect("small").min(chunk.len())..];
                        Bytes::copy_from_slice(&rest[..rest.len().min(bytes_max as usize)])
                    });
                    node.inbox.push_back(Input::ChunkRead { token, bytes });
                }
                Effect::DropSnapshot { sequence } => {
                    node.disk.snapshots.remove(&sequence);
                }
                Effect::DiscardLog { before } => node.disk.records.retain(|(ticket, _)| *ticket >= before),
                Effect::MemberChanged { .. } | Effect::Event(_) => {}
                Effect::Halt { reason } => panic!("r{id} halts: {reason}"),
            }
        }
    }

    fn step(&mut self, id: u8, input: Input) {
        let now = at(self.now);
        let mut out = Outbox::default();
        let node = &mut self.nodes[usize::from(id)];
        let Some(replica) = &mut node.replica else { return };
        if let Some(heard) = &mut node.heard {
            heard.extend(Step::of(&input));
        }
        replica.step(now, input, &mut out);
        replica.step(now, Input::Settle, &mut out);
        self.carry_out(id, &mut out);
    }

    /// Runs for so long, however much or little there is to do.
    fn run(&mut self, ms: u64) {
        let until = self.now.plus(Micros::from_millis(ms));
        loop {
            let busy: Vec<u8> = (0..N).filter(|id| !self.nodes[usize::from(*id)].inbox.is_empty()).collect();
            for id in &busy {
                while let Some(input) = self.nodes[usize::from(*id)].inbox.pop_front() {
                    self.step(*id, input);
                }
            }
            if !busy.is_empty() {
                self.now = self.now.plus(Micros(100));
                continue;
            }
            let next =
                self.nodes.iter().filter_map(|node| node.replica.as_ref()).map(Replica::next_wakeup).min();
            let Some(next) = next.filter(|next| *next <= until) else {
                self.now = until;
                return;
            };
            self.now = self.now.max(next);
            for id in 0..N {
                let replica = self.nodes[usize::from(id)].replica.as_ref();
                if replica.is_some_and(|replica| replica.next_wakeup() <= self.now) {
                    self.step(id, Input::Wake);
                }
            }
        }
    }

    fn ask(&mut self, to: u8, request: ClientRequest) {
        self.nodes[usize::from(to)].inbox.push_back(Input::Client { client: ClientId(7), request });
    }

    fn send(&mut self, to: u8, bytes: Bytes) {
        self.ask(to, ClientRequest::Frame { bytes, ack: None });
        self.run(10);
    }
}

/// An open of this session by a principal of the genesis, signed at the start of the cluster's history.
#[must_use]
pub fn open_frame(principal: u64, session: u64, now_ms: u64) -> Bytes {
    let names = ["admin", "ann", "bob"];
    let open = SessionOpen {
        principal: names[usize::try_from(principal).expect("small")].into(),
        session_key: key("session", session, 0),
        ttl_ms: 0,
        valid_until_ms: now_ms + 30_000,
    };
    let signer = key("principal", principal, 0);
    ClientFrame::open(&Signer(signer), signer, cluster(), &open).encode()
}

/// Commands of this session, numbered from `first`.
#[must_use]
pub fn commands_frame(session: u64, first: u64, commands: Vec<Bytes>) -> Bytes {
    let session_key = key("session", session, 0);
    let frame = SessionFrame { session_key, low_water: first.min(1), first, commands };
    ClientFrame::commands(&Signer(session_key), cluster(), &frame).encode()
}

/// One command of every kind, in an order in which most succeed.
#[must_use]
pub fn commands() -> Vec<Command> {
    let nested = Txn::default()
        .when("a", CompareOp::Greater, CompareTarget::Mod(1))
        .then(TxnOp::Put(Put { prev_kv: true, ..Put::new("n", "1") }))
        .or_else(TxnOp::Range(Range { limit: 2, revision: 2, ..Range::prefix("k") }));
    let txn = Txn::default()
        .when("k1", CompareOp::NotEqual, CompareTarget::Value("x".into()))
        .when("k2", CompareOp::Less, CompareTarget::Version(9))
        .when("k3", CompareOp::Equal, CompareTarget::Lease(0))
        .then(TxnOp::Txn(nested))
        .then(TxnOp::Put(Put::new("t", "2")))
        .or_else(TxnOp::DeleteRange(DeleteRange { key: "a".into(), range_end: "c".into(), prev_kv: true }));
    let store = [
        KvCommand::LeaseGrant { id: 5, ttl_s: 600 },
        KvCommand::Put(Put { lease: 5, prev_kv: true, ..Put::new("a", "1") }),
        KvCommand::put("b", "2"),
        KvCommand::Range(Range::prefix("k")),
        KvCommand::Txn(txn),
        KvCommand::DeleteRange(DeleteRange { key: "b".into(), range_end: "c".into(), prev_kv: true }),
        KvCommand::LeaseKeepAlive { id: 5 },
        KvCommand::LeaseTimeToLive { id: 5, keys: true },
        KvCommand::LeaseList,
        KvCommand::AlarmList,
        KvCommand::AlarmDisarm,
        KvCommand::QuotaSet { quota_bytes: 1 << 20 },
        KvCommand::Compact { revision: 3 },
        KvCommand::LeaseRevoke { id: 5 },
    ];
    let admin = [
        AdminCommand::PrincipalPut {
            name: "eve".into(),
            key: key("principal", 9, 0),
            role: dwcp_base::configuration::Role::Reader,
        },
        AdminCommand::PrincipalList,
        AdminCommand::PrincipalRemove { name: "eve".into() },
        AdminCommand::ClusterVersionSet { version: 2 },
        AdminCommand::ClusterVersion,
    ];
    let machine = store.iter().map(|command| Command::Machine(command.encode()));
    machine.chain(admin.map(Command::Admin)).chain([Command::Nothing, Command::CloseSession]).collect()
}

/// The replacement of replica 3, signed by the admin.
#[must_use]
pub fn member_order() -> SignedMemberOrder {
    let order = MemberOrder {
        id: ReplicaId(3),
        incarnation: Incarnation(1),
        vote_key: vote_key(ReplicaId(3), Incarnation(1)),
        tls_key: key("tls", 3, 1),
        peer_address: "h3:3".into(),
        client_address: "h3:4".into(),
    };
    SignedMemberOrder::new(order, cluster(), admin_key(), &Signer(admin_key()))
}

/// One order of every kind, each signed by the admin.
#[must_use]
pub fn operator_orders() -> Vec<OperatorOrder> {
    let mode = ModeOrder { number: 1, mode: NetworkMode::Hybrid, first_leader: Some(ReplicaId(2)) };
    let policy = PolicyOrder { number: 2, trust: Trust::Byzantine, raft: false, default_ack: Ack::Anchored };
    let signer = Signer(admin_key());
    vec![
        OperatorOrder::Member(member_order()),
        OperatorOrder::Mode(SignedOrder::new(mode, cluster(), admin_key(), &signer)),
        OperatorOrder::Policy(SignedOrder::new(policy, cluster(), admin_key(), &signer)),
    ]
}

fn put(key: &str, value: &[u8]) -> Bytes {
    KvCommand::put(key.as_bytes().to_vec(), value.to_vec()).to_command()
}

/// A cluster with one session and twenty commands behind it, at rest.
fn with_history() -> Cluster {
    let mut cluster = Cluster::new();
    let now_ms = at(cluster.now).wall_ms;
    cluster.send(1, open_frame(0, 1, now_ms));
    cluster.run(50);
    for index in 1..=20 {
        cluster.send(1, commands_frame(1, index, vec![put(&format!("k{index}"), b"v")]));
    }
    cluster.run(300);
    cluster
}

fn build() -> World {
    // All is well: commands of every kind, a second session, a retry, an order.
    let mut cluster = with_history();
    let (heir, backup) = (cluster.listen(1), cluster.listen(2));
    cluster.send(2, commands_frame(1, 21, vec![put("x", b"1"), put("y", b"2")]));
    cluster.send(1, open_frame(1, 2, at(cluster.now).wall_ms));
    cluster.send(1, commands_frame(1, 23, commands().iter().take(20).map(Command::encode).collect()));
    cluster.send(2, commands_frame(1, 21, vec![put("x", b"1"), put("y", b"2")]));
    let order = Bytes::from(dwcp_base::encode(&OperatorOrder::Member(member_order())));
    cluster.ask(1, ClientRequest::Order { id: 1, bytes: order });
    cluster.run(100);
    for index in 0..6 {
        cluster.send(1, commands_frame(2, 1 + index, vec![put(&format!("z{index}"), b"3")]));
    }
    cluster.ask(1, ClientRequest::Query { id: 2, bytes: KvCommand::get("x").to_command() });
    cluster.ask(1, ClientRequest::Status { id: 3 });
    cluster.run(100);
    let (heir_normal, backup_normal) = (cluster.heard(1), cluster.heard(2));
    let (mut records, mut replies) = (cluster.records, cluster.replies);

    // The same history, but the primary dies with a command under way.
    let mut cluster = with_history();
    cluster.listen(1);
    cluster.listen(2);
    cluster.ask(0, ClientRequest::Frame { bytes: commands_frame(1, 21, vec![put("x", b"1")]), ack: None });
    let frame = commands_frame(1, 22, vec![put("y", b"1")]);
    for to in [1, 2] {
        cluster.ask(to, ClientRequest::Frame { bytes: frame.clone(), ack: Some(Ack::Anchored) });
    }
    for id in 0..N {
        while let Some(input) = cluster.nodes[usize::from(id)].inbox.pop_front() {
            cluster.step(id, input);
        }
    }
    cluster.stop(0);
    cluster.run(3_000);
    cluster.send(1, commands_frame(1, 23, vec![put("z", b"1")]));
    cluster.run(50);
    cluster.start(0);
    cluster.run(300);
    let (heir_change, backup_change) = (cluster.heard(1), cluster.heard(2));
    records.extend(cluster.records);

    // Replica 3 sleeps until the others have a snapshot and no memory of the slots before it.
    let mut cluster = with_history();
    cluster.stop(3);
    let mut index = 21;
    while cluster.nodes[0].disk.snapshots.is_empty() {
        cluster.send(1, commands_frame(1, index, vec![put(&format!("big{index}"), &[7; 8_000])]));
        index += 1;
    }
    cluster.run(300);
    let (sequence, snapshot) = cluster.nodes[0].disk.snapshots.pop_last().expect("the loop ended");
    cluster.nodes[0].disk.snapshots.insert(sequence, snapshot.clone());
    cluster.nodes[3].disk.partial = vec![(sequence, all_but_some(&snapshot))];
    let sleeper = cluster.listen(3);
    cluster.start(3);
    cluster.run(3_000);
    let sleeper_wakes = cluster.heard(3);
    records.extend(cluster.records);
    replies.extend(cluster.replies);

    World {
        heir,
        backup,
        sleeper,
        heir_normal,
        heir_change,
        backup_normal,
        backup_change,
        sleeper_wakes,
        records,
        snapshot,
        replies,
    }
}

/// What an interrupted fetch left on a disk: everything but one small chunk of each kind that is not empty.
fn all_but_some((_, chunks): &Snapshot) -> Vec<(u32, Bytes)> {
    let mut kinds = BTreeMap::new();
    for (index, bytes) in chunks {
        let kind = crate::targets::chunks::kind(*index);
        if bytes.len() > 4 && bytes.len() < 4_000 {
            kinds.entry(kind).or_insert(*index);
        }
    }
    let lacks = |index: &u32| kinds.values().any(|lacking| lacking == index);
    chunks
        .iter()
        .filter(|(index, _)| !lacks(index))
        .map(|(index, bytes)| (*index, Bytes::copy_from_slice(bytes)))
        .collect()
}
