//! One cluster history in virtual time: nodes, clients, the operator, network and faults, and the one queue of events
//! that moves them. Equal seed and dials give an equal history, to the last bit.
//!
//! Here live the queue, the birth of everything and the messages' way; `driver` moves nodes, `faults` breaks things,
//! `client` and `operator` use the cluster, `ending` decides when it is over and calls the judges.

use crate::client::Client;
use crate::coverage::Coverage;
use crate::dials::Dials;
use crate::disk::Disk;
use crate::faults::Fault;
use crate::keys::{Identity, Keys};
use crate::net::{Net, Place};
use crate::node::{Clock, Node};
use crate::operator::Operator;
use crate::puppet::Puppet;
use crate::trace::Trace;
use bytes::Bytes;
use check::ClientJournal;
use check::history::ReplicaJournal;
use dwcp_base::configuration::{Principal, Role};
use dwcp_base::{
    Chance, ClusterId, Genesis, Hash, Incarnation, Member, Mutants, NetworkMode, Policy, PublicKey, Quorum,
    ReplicaId, Sequence, Ticket, Trust,
};
use dwcp_replica::{ClientId, ClientReply, ClientRequest, Input, Outbox};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap, HashSet};
use std::sync::Arc;

/// Something that is going to happen.
#[derive(Debug)]
pub enum Event {
    /// An input reaches a node; `boot` 0: whichever process is there then.
    Input {
        node: usize,
        boot: u64,
        input: Input,
    },
    Burst {
        node: usize,
        boot: u64,
    },
    SyncDone {
        node: usize,
        boot: u64,
        ticket: Ticket,
    },
    /// Records nobody waits for are synced after a while all the same.
    Flush {
        node: usize,
        boot: u64,
    },
    Wake {
        node: usize,
        boot: u64,
    },
    JobDone {
        node: usize,
        boot: u64,
        job: u64,
    },
    Start {
        node: usize,
        boot: u64,
    },
    ToClient {
        client: usize,
        from: usize,
        connection: ClientId,
        reply: Box<ClientReply>,
    },
    ClientWake {
        client: usize,
    },
    /// A request of a client or the operator reaches a node.
    Request {
        node: usize,
        from: usize,
        request: ClientRequest,
    },
    OperatorWake,
    /// The operator wants a mode.
    ModeWanted,
    /// The operator looks at every replica's status.
    ModeLook,
    Fault(Fault),
    PuppetWake {
        node: usize,
    },
    /// Somebody writes a convergent value.
    ConvergentBeat,
    /// The operator wants state sync to go on without a member, and says so again.
    ExcludeWanted,
    ExcludeResend,
    /// The disk of such a member is replaced.
    ExcludedReplaced,
}

struct Scheduled {
    at_us: u64,
    order: u64,
    event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        (self.at_us, self.order) == (other.at_us, other.order)
    }
}
impl Eq for Scheduled {}
impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at_us, self.order).cmp(&(other.at_us, other.order))
    }
}

/// Streams of chance, one per purpose.
#[derive(Debug)]
pub struct Chances {
    pub disk: Chance,
    /// How damage looks, byte by byte, and how long a damaged process stays down.
    pub bytes: Chance,
    pub crash: Chance,
    pub fault: Chance,
    pub driver: Chance,
    pub client: Chance,
    pub puppet: Chance,
    pub link: Chance,
    pub operator: Chance,
}

/// Whether faults go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Safety,
    Calm { since_us: u64 },
}

/// The client number under which the cluster itself revokes leases. Its calls are held to real time as any honest
/// client's: a lease that ends before it has run is found out.
pub const EXPIRIES: u64 = u64::MAX;

/// The client number under which the operator speaks.
pub const OPERATOR: usize = usize::MAX;

pub struct World {
    pub seed: u64,
    pub dials: Dials,
    pub mutants: Mutants,
    pub genesis: Arc<Genesis>,
    pub cluster: ClusterId,
    pub keys: Keys,
    pub known_keys: Vec<PublicKey>,
    pub now_us: u64,
    pub phase: Phase,
    /// Clients were told to begin nothing new, or will be as soon as none of them waits for long.
    pub last_orders: bool,
    queue: BinaryHeap<Reverse<Scheduled>>,
    order: u64,
    pub nodes: Vec<Node>,
    pub clients: Vec<Client>,
    pub operator: Operator,
    pub net: Net,
    pub chances: Chances,
    next_connection: u64,
    /// Every incarnation's vote key, as the operator issued it: what clients verify replies with.
    pub vote_keys: BTreeMap<(ReplicaId, Incarnation), PublicKey>,
    pub journals: Vec<ReplicaJournal>,
    /// Commands that only read: asked again they may run again.
    pub reads: HashSet<(u128, u64)>,
    /// (member, incarnation) -> sequence its vote waits for, as an honest replica reported it.
    pub replaced: BTreeMap<(ReplicaId, Incarnation), Sequence>,
    pub admitted: BTreeSet<(ReplicaId, Incarnation)>,
    pub coverage: Coverage,
    pub trace: Trace,
    /// What the simulator itself saw go wrong: a panicking core, a halt without reason, a broken contract.
    pub complaints: Vec<String>,
    /// Honest replicas whose digest differed from a certified one.
    pub divergences: Vec<String>,
    /// Why honest replicas refused what they were sent.
    pub refusals: BTreeMap<&'static str, u64>,
    /// Leases that the cluster may revoke by itself, as calls of unknown outcome.
    pub expiries: ClientJournal,
    pub leases: crate::leases::Leases,
    /// Messages that a scenario loses on purpose.
    pub losses: Vec<crate::scenario::Loss>,
    /// What proposals hold about segments, by their digest.
    pub slots: HashMap<Hash, crate::segments::Slot>,
    pub segments: crate::segments::Seen,
    /// Commands whose last answer was labelled `crash`.
    pub crash_answers: HashSet<check::CommandId>,
    /// What did not come about in the calm.
    pub unfinished: Vec<String>,
    /// State sync, where replicas have it.
    pub rooms: crate::convergent::Rooms,
    /// What replicas report, for a scenario.
    pub spotlight: Option<Vec<String>>,
    /// A crash that is asked for, and did not come about yet.
    pub strike: Option<Strike>,
}

/// A crash of a node at one record of its log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Strike {
    pub node: usize,
    pub ticket: Ticket,
    pub when: Moment,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// It was written, and its write is cut: everything before it is on the disk.
    Written,
    /// It is on the disk, as the last one, and nothing that waited for it was let go.
    Durable,
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "World(seed {}, {} us)", self.seed, self.now_us)
    }
}

/// The genesis of a world: members, one admin, and a principal per client.
fn genesis(dials: &Dials, keys: &Keys) -> Genesis {
    let n = usize::try_from(dials.n).expect("few replicas");
    let f = u8::try_from(dials.f).expect("few liars");
    let quorum = Quorum::new(n, Some(f)).expect("dials are settled");
    let members = (0..u8::try_from(dials.n).expect("few replicas"))
        .map(|replica| Member {
            id: ReplicaId(replica),
            incarnation: Incarnation::ZERO,
            vote_key: keys.public(Identity::Vote { replica, incarnation: 0 }),
            tls_key: keys.public(Identity::Link { replica, incarnation: 0 }),
            peer_address: format!("r{replica}:1"),
            client_address: format!("r{replica}:2"),
            votes_after: Sequence::ZERO,
        })
        .collect();
    let principal = |number: u64, name: String, role| Principal {
        name,
        key: keys.public(Identity::Principal { number }),
        role,
    };
    let mut principals = vec![principal(0, "admin".into(), Role::Admin)];
    // One more than the dials ask for: the reader at the end.
    for number in 1..=dials.clients + dials.lying_clients + 1 {
        principals.push(principal(number, format!("client-{number}"), Role::Writer));
    }
    let trust = if dials.f > 0 && !dials.switches() { Trust::Byzantine } else { Trust::Crash };
    let policy = if dials.switches() { Policy::new(trust, quorum) } else { Policy::root_only(trust, quorum) };
    let mode = match dials.mode {
        2 => NetworkMode::Datacenter,
        3 => NetworkMode::Internet,
        _ => NetworkMode::Hybrid,
    };
    Genesis {
        version: 1,
        name: "sim".into(),
        created_unix_ms: crate::node::EPOCH_MS,
        policy,
        mode,
        calm_ms: dials.segment_calm_ms,
        members,
        principals,
        checkpoint_interval: dials.checkpoint_interval,
        window: dials.checkpoint_interval * dials.window_checkpoints,
        quota_bytes: 1 << 30,
    }
}

impl World {
    #[must_use]
    pub fn new(seed: u64, dials: &Dials, mutants: Mutants, keeps_lines: bool) -> Self {
        let keys = Keys::new(seed, dials.ed25519 == 1);
        let genesis = genesis(dials, &keys);
        genesis.check().expect("the dials make a valid genesis");
        let root = Chance::new(seed);
        let mut known_keys: Vec<PublicKey> = genesis.members.iter().map(|member| member.vote_key).collect();
        known_keys.extend(genesis.principals.iter().map(|principal| principal.key));
        let vote_keys = genesis.members.iter().map(|m| ((m.id, m.incarnation), m.vote_key)).collect();
        let mut world = Self {
            seed,
            dials: dials.clone(),
            mutants,
            cluster: genesis.cluster(),
            genesis: Arc::new(genesis),
            keys,
            known_keys,
            now_us: 0,
            phase: Phase::Safety,
            last_orders: false,
            queue: BinaryHeap::new(),
            order: 0,
            nodes: Vec::new(),
            clients: Vec::new(),
            operator: Operator::default(),
            net: Net::new(dials, root.fork("net")),
            chances: Chances {
                disk: root.fork("disk"),
                bytes: root.fork("bytes"),
                crash: root.fork("crash"),
                fault: root.fork("fault"),
                driver: root.fork("driver"),
                client: root.fork("client"),
                puppet: root.fork("puppet"),
                link: root.fork("link"),
                operator: root.fork("operator"),
            },
            next_connection: 1,
            vote_keys,
            journals: Vec::new(),
            reads: HashSet::new(),
            replaced: BTreeMap::new(),
            admitted: BTreeSet::new(),
            coverage: Coverage::default(),
            trace: Trace::new(keeps_lines),
            complaints: Vec::new(),
            divergences: Vec::new(),
            refusals: BTreeMap::new(),
            expiries: ClientJournal::new(EXPIRIES),
            leases: crate::leases::Leases::default(),
            losses: Vec::new(),
            slots: HashMap::new(),
            segments: crate::segments::Seen::default(),
            crash_answers: HashSet::new(),
            unfinished: Vec::new(),
            rooms: crate::convergent::Rooms::new(dials.convergent_keys, &root),
            spotlight: None,
            strike: None,
        };
        world.coverage.real_signatures = dials.ed25519;
        world.coverage.note_replicas(dials.n);
        world.populate(&root);
        world
    }

    fn populate(&mut self, root: &Chance) {
        let mut chance = root.fork("roles");
        let dials = self.dials.clone();
        let n = usize::try_from(dials.n).expect("few replicas");
        let mut ids: Vec<usize> = (0..n).collect();
        match dials.liars_first {
            0 => chance.shuffle(&mut ids),
            1 => {}
            _ => ids[1..].reverse(),
        }
        let count = |value: u64| usize::try_from(value).expect("few replicas");
        let liars: Vec<usize> = ids.iter().copied().take(count(dials.liars)).collect();
        let fsync: Vec<usize> =
            ids.iter().copied().skip(liars.len()).take(count(dials.fsync_liars)).collect();
        let wrong: Vec<usize> = ids.iter().rev().copied().take(count(dials.wrong_clocks)).collect();
        for replica in 0..n {
            let puppet = liars.contains(&replica).then(|| {
                Puppet::new(u8::try_from(replica).expect("few replicas"), &dials, self, chance.fork("liar"))
            });
            let honest = puppet.is_none() && !fsync.contains(&replica);
            let skew_us = i64::try_from(dials.skew_ms * 1000).unwrap_or(0);
            let mut clock = Clock {
                offset_us: i64::try_from(chance.below(dials.skew_ms * 2000 + 1)).unwrap_or(0) - skew_us,
                drift_ppm: i64::try_from(chance.below(101)).unwrap_or(0) - 50,
            };
            if wrong.contains(&replica) {
                let far = i64::try_from(chance.between(600_000, 20_000_000)).unwrap_or(0);
                match chance.below(3) {
                    0 => clock.offset_us = far,
                    1 => clock.offset_us = -far,
                    // Runs up to two and a half times as fast: what leases and sessions end by would, too.
                    _ => clock.drift_ppm = i64::try_from(chance.between(500_000, 1_500_000)).unwrap_or(0),
                }
                self.coverage.wrong_clocks += 1;
            }
            let twins = puppet.as_ref().is_some_and(Puppet::wants_twin);
            let node = self.add_node(replica, honest, clock);
            if fsync.contains(&replica) {
                self.nodes[node].disk.lying_pm = 500;
            }
            if let Some(puppet) = puppet {
                self.coverage.liars += 1;
                self.nodes[node].puppet = Some(puppet);
                self.schedule(1_000_000, Event::PuppetWake { node });
            }
            if twins {
                self.coverage.twins += 1;
            }
        }
        let twins: Vec<usize> =
            (0..n).filter(|node| self.nodes[*node].puppet.as_ref().is_some_and(Puppet::wants_twin)).collect();
        for replica in twins {
            let clock = self.nodes[replica].clock;
            let twin = self.add_node(replica, false, clock);
            self.nodes[twin].twin = true;
        }
        for client in 0..count(dials.clients + dials.lying_clients) {
            let lies = client >= count(dials.clients);
            let made = Client::new(client, lies, self, root.fork(&format!("client {client}")));
            self.clients.push(made);
            let at = 200_000 + self.chances.client.below(300_000);
            self.schedule(at, Event::ClientWake { client });
        }
        for node in 0..self.nodes.len() {
            let at = self.chances.driver.below(20_000);
            self.schedule(at, Event::Start { node, boot: 0 });
        }
        self.begin_mode_orders();
        self.begin_convergent();
        self.begin_faults();
    }

    fn add_node(&mut self, replica: usize, honest: bool, clock: Clock) -> usize {
        let id = u8::try_from(replica).expect("few replicas");
        self.journals.push(ReplicaJournal::new(u32::from(id), 0, honest, true));
        self.nodes.push(Node {
            replica: ReplicaId(id),
            incarnation: Incarnation::ZERO,
            twin: false,
            honest,
            puppet: None,
            core: None,
            down: Some(crate::node::Down::Crashed),
            down_since_us: 0,
            boot: 0,
            booted_at_us: 0,
            paused_until_us: 0,
            inbox: std::collections::VecDeque::new(),
            burst_scheduled: false,
            wake_at_us: u64::MAX,
            outbox: Outbox::default(),
            waiting: std::collections::VecDeque::new(),
            syncing: false,
            prompt: false,
            jobs: BTreeMap::new(),
            disk: Disk::new(),
            clock,
            connections: BTreeMap::new(),
            journal: self.journals.len() - 1,
            lost_sync: false,
            known: BTreeSet::new(),
            last_sent: Bytes::new(),
            noted: std::collections::HashSet::new(),
            left_below: 0,
            held_max: 0,
            flush_scheduled: false,
            hasty: 0,
            decided: 0,
            sealing: BTreeSet::new(),
            sealed: BTreeSet::new(),
            complained: BTreeSet::new(),
            spoken: BTreeSet::new(),
            borders: Vec::new(),
            covered: 0,
            slept_at_epoch: 0,
        });
        self.nodes.len() - 1
    }

    /// Puts an event `after_us` from now.
    pub fn schedule(&mut self, after_us: u64, event: Event) {
        self.order += 1;
        let scheduled = Scheduled { at_us: self.now_us + after_us, order: self.order, event };
        self.queue.push(Reverse(scheduled));
    }

    /// A number never given before.
    pub fn order_number(&mut self) -> u64 {
        self.order += 1;
        self.order
    }

    /// Lets the next event happen. False when nothing is left.
    pub fn advance(&mut self) -> bool {
        let Some(Reverse(Scheduled { at_us, event, .. })) = self.queue.pop() else { return false };
        self.now_us = at_us;
        self.happen(event);
        true
    }

    /// When the next event happens.
    #[must_use]
    pub fn next_at_us(&self) -> Option<u64> {
        self.queue.peek().map(|Reverse(scheduled)| scheduled.at_us)
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Input { node, boot, input } => self.on_input(node, boot, input),
            Event::Burst { node, boot } => self.on_burst(node, boot),
            Event::SyncDone { node, boot, ticket } => self.on_sync_done(node, boot, ticket),
            Event::Flush { node, boot } => self.on_flush(node, boot),
            Event::Wake { node, boot } => self.on_wake(node, boot),
            Event::JobDone { node, boot, job } => self.on_job_done(node, boot, job),
            Event::Start { node, boot } => self.on_start(node, boot),
            Event::ToClient { client, from, connection, reply } => {
                self.on_reply(client, from, connection, *reply)
            }
            Event::ClientWake { client } => self.on_client_wake(client),
            Event::Request { node, from, request } => self.on_request(node, from, request),
            Event::OperatorWake => self.on_operator_wake(),
            Event::ModeWanted => self.on_mode_wanted(),
            Event::ModeLook => self.on_mode_look(),
            Event::Fault(fault) => self.on_fault(fault),
            Event::PuppetWake { node } => self.on_puppet_wake(node),
            Event::ConvergentBeat => self.on_convergent_beat(),
            Event::ExcludeWanted => self.on_exclude_wanted(),
            Event::ExcludeResend => self.on_exclude_resend(),
            Event::ExcludedReplaced => self.on_excluded_replaced(),
        }
    }

    /// The nodes that stand for a replica: one, or two when it has a twin.
    pub fn stand_ins(&self, replica: ReplicaId) -> impl Iterator<Item = usize> {
        let main = usize::from(replica.0);
        let n = usize::from(self.genesis.policy.quorum.n());
        let twin = self.nodes.iter().skip(n).position(|node| node.replica == replica).map(|at| at + n);
        [Some(main).filter(|main| *main < n), twin].into_iter().flatten()
    }

    /// Which of two twins a peer talks to: the peers are split between them.
    fn twin_for(&self, peer: usize, to: ReplicaId) -> usize {
        let mut stand_ins = self.stand_ins(to);
        let main = stand_ins.next().unwrap_or(0);
        match stand_ins.next() {
            // The split turns now and then, so that each twin meets everybody.
            Some(twin) if (peer as u64 + self.now_us / 7_000_000) % 2 == 1 => twin,
            _ => main,
        }
    }

    /// Bytes leave a node for a replica.
    pub fn send(&mut self, from: usize, to: ReplicaId, bytes: Bytes, extra_us: u64) {
        if usize::from(to.0) >= usize::from(self.genesis.policy.quorum.n()) {
            self.complaints.push(format!("{:?} sent to {to:?}, which does not exist", self.nodes[from]));
            return;
        }
        self.read_slots(&bytes);
        let sender = self.nodes[from].replica;
        if self.losses.iter().any(|loss| loss.matches(sender, to, &bytes)) {
            return;
        }
        let target = self.twin_for(from, to);
        // A peer that talks to a twin is answered by that twin only.
        if self.nodes[from].twin || self.stand_ins(self.nodes[from].replica).count() > 1 {
            let answering = self.twin_for(target, self.nodes[from].replica);
            if answering != from {
                return;
            }
        }
        let (delays, count) = self.net.delays_us(Place::Node(from), Place::Node(target));
        let (sender, incarnation) = (self.nodes[from].replica, self.nodes[from].incarnation);
        for delay in &delays[..count] {
            let input = Input::Peer { from: sender, incarnation, bytes: bytes.clone() };
            self.schedule(delay + extra_us, Event::Input { node: target, boot: 0, input });
        }
    }

    /// A request leaves a client (or the operator) for a node.
    pub fn request(&mut self, from: usize, node: usize, request: ClientRequest) {
        let (delays, count) = self.net.delays_us(Place::Client(from), Place::Node(node));
        for delay in &delays[..count] {
            self.schedule(*delay, Event::Request { node, from, request: request.clone() });
        }
    }

    fn on_request(&mut self, node: usize, from: usize, request: ClientRequest) {
        if !self.nodes[node].is_up() {
            return;
        }
        let found = self.nodes[node].connections.iter().find(|(_, owner)| **owner == from).map(|(id, _)| *id);
        let client = found.unwrap_or_else(|| {
            let id = ClientId(self.next_connection);
            self.next_connection += 1;
            self.nodes[node].connections.insert(id, from);
            id
        });
        let boot = self.nodes[node].boot;
        self.on_input(node, boot, Input::Client { client, request });
    }

    /// A reply leaves a node for a client.
    pub fn reply(&mut self, from: usize, connection: ClientId, reply: ClientReply) {
        let Some(client) = self.nodes[from].connections.get(&connection).copied() else { return };
        let (delays, count) = self.net.delays_us(Place::Node(from), Place::Client(client));
        for delay in &delays[..count] {
            let event = Event::ToClient { client, from, connection, reply: Box::new(reply.clone()) };
            self.schedule(*delay, event);
        }
    }

    fn on_reply(&mut self, client: usize, from: usize, connection: ClientId, reply: ClientReply) {
        let _ = connection;
        if client == OPERATOR {
            self.on_operator_reply(from, reply);
        } else if client != crate::convergent::WRITER {
            self.on_client_reply(client, from, reply);
        }
    }

    /// A client's connections end at every node.
    pub fn hang_up(&mut self, client: usize) {
        for node in 0..self.nodes.len() {
            let gone: Vec<ClientId> = self.nodes[node]
                .connections
                .iter()
                .filter(|(_, owner)| **owner == client)
                .map(|(id, _)| *id)
                .collect();
            let boot = self.nodes[node].boot;
            for id in gone {
                self.nodes[node].connections.remove(&id);
                self.schedule(0, Event::Input { node, boot, input: Input::ClientGone { client: id } });
            }
        }
    }

    /// Liars, and disks that broke or may break promises, that no re-admission has made good yet.
    #[must_use]
    pub fn faults_in_force(&self) -> u64 {
        let owing = self.owing().into_iter().filter(|ix| !self.operator.replaces(*ix)).count() as u64;
        // Of a flipped bit nobody knows before the next start.
        let flipped = |ix: &usize| self.nodes[*ix].disk.flipped.is_some() && !self.operator.replaces(*ix);
        let flipped = (0..self.nodes.len()).filter(flipped).count() as u64;
        self.dials.liars + self.dials.fsync_liars + self.operator.replacing_count() + owing + flipped
    }

    #[must_use]
    pub fn in_calm(&self) -> bool {
        matches!(self.phase, Phase::Calm { .. })
    }

    /// An honest replica's own nodes that run now.
    pub fn honest_nodes(&self) -> impl Iterator<Item = usize> {
        (0..self.nodes.len()).filter(|node| self.nodes[*node].honest)
    }
}
