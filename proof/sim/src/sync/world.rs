//! The world: what waits to happen, and everybody it happens to. Nothing here decides what is right.

use crate::dials as replicas;
use crate::keys::{Identity, Keys};
use crate::net::{Net, Place};
use crate::sync::coverage::Coverage;
use crate::sync::dials::Dials;
use crate::sync::liar::Puppet;
use crate::sync::log::{Log, Ordered};
use crate::sync::node::{Disk, Node, Snapshot};
use crate::sync::workload::{Workload, resolvers};
use crate::trace::Trace;
use bytes::Bytes;
use check::sync::Note;
use dwcp_base::{Chance, ClusterId, Hash, Micros, Mutants, PublicKey, Ticket};
use dwcp_crdt::{Floor, Origin};
use dwcp_sync::{Base, Limits, Need, Setup, Timing};
use std::collections::{BTreeMap, BTreeSet};

pub const CLUSTER: ClusterId = ClusterId([11; 32]);

/// What waits to happen. Numbers are nodes; a life that is over makes it void.
#[derive(Debug)]
pub enum Event {
    Deliver {
        from: u32,
        to: u32,
        bytes: Bytes,
    },
    Wake {
        node: u32,
        life: u64,
    },
    Synced {
        node: u32,
        life: u64,
        ticket: Ticket,
    },
    Save {
        node: u32,
    },
    Saved {
        node: u32,
        life: u64,
        generation: u64,
        snapshot: Box<Snapshot>,
    },
    Fetch {
        node: u32,
        life: u64,
        need: Need,
        donor: u32,
    },
    Install {
        node: u32,
        life: u64,
        need: Need,
        snapshot: Box<Snapshot>,
        base: Box<Base>,
    },
    Write,
    /// The log has not answered for so long.
    PushLate {
        node: u32,
        life: u64,
        last: u64,
    },
    Order {
        what: Box<Ordered>,
    },
    Read {
        node: u32,
    },
    Propose,
    Decide {
        origin: Origin,
    },
    End {
        origin: Origin,
    },
    Look,
    Mischief {
        node: u32,
    },
    Fork {
        node: u32,
    },
    Crash,
    Blackout,
    Restart {
        node: u32,
    },
    Wipe,
    Replace {
        node: u32,
    },
    Partition,
    Heal {
        number: u64,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Safety,
    Calm,
}

/// One purpose each, so that what is drawn for one moves nothing else.
#[derive(Debug)]
pub struct Chances {
    pub work: Chance,
    pub fault: Chance,
    pub disk: Chance,
    pub log: Chance,
    pub liar: Chance,
}

#[derive(Debug)]
pub struct World {
    pub seed: u64,
    pub dials: Dials,
    pub mutants: Mutants,
    pub now_us: u64,
    queue: BTreeMap<(u64, u64), Event>,
    counter: u64,
    pub phase: Phase,
    pub nodes: Vec<Node>,
    pub net: Net,
    pub keys: Keys,
    pub chances: Chances,
    pub workload: Workload,
    pub log: Log,
    pub members: BTreeMap<Origin, PublicKey>,
    pub partition_number: u64,
    /// Bundles of origins that signed two histories, by the hash of their bytes.
    pub branch_of: BTreeMap<Hash, u32>,
    /// Where the histories of an origin part.
    pub forks: BTreeMap<Origin, u64>,
    /// Origins that the operator wants to end.
    pub halted: BTreeSet<Origin>,
    /// Nodes and their keys that changed by themselves and are not put right.
    pub damaged: BTreeSet<(u32, Vec<u8>)>,
    pub is_damage_done: bool,
    /// Who named whom for withholding.
    pub named: BTreeMap<Origin, BTreeSet<u32>>,
    pub calm_at_us: u64,
    pub notes: Vec<Note>,
    pub coverage: Coverage,
    pub complaints: Vec<String>,
    pub trace: Trace,
}

#[must_use]
pub fn identity(origin: Origin) -> Identity {
    let replica = u8::try_from(origin.id.0).expect("fewer than 256 nodes");
    Identity::Vote { replica, incarnation: origin.incarnation.0 }
}

impl World {
    #[must_use]
    pub fn new(seed: u64, dials: &Dials, mutants: Mutants, trace: bool) -> Self {
        let chance = Chance::new(seed).fork("sync world");
        let keys = Keys::new(seed, dials.ed25519 == 1);
        let n = u32::try_from(dials.n).expect("few nodes");
        let members: BTreeMap<Origin, PublicKey> = (0..n)
            .map(|id| Origin::new(id, 0))
            .map(|origin| (origin, keys.public(identity(origin))))
            .collect();
        let network = replicas::Dials {
            delay_us: dials.delay_us,
            jitter_us: dials.jitter_us,
            drop_pm: dials.drop_pm,
            duplicate_pm: dials.duplicate_pm,
            stray_pm: dials.stray_pm,
            ..replicas::Dials::default()
        };
        let mut world = Self {
            seed,
            dials: dials.clone(),
            mutants,
            now_us: 0,
            queue: BTreeMap::new(),
            counter: 0,
            phase: Phase::Safety,
            nodes: Vec::new(),
            net: Net::new(&network, chance.fork("net")),
            keys,
            chances: Chances {
                work: chance.fork("work"),
                fault: chance.fork("fault"),
                disk: chance.fork("disk"),
                log: chance.fork("log"),
                liar: chance.fork("liar"),
            },
            workload: Workload::new(chance.fork("workload"), dials.keys, dials.operations_max),
            log: Log::default(),
            members,
            partition_number: 0,
            branch_of: BTreeMap::new(),
            forks: BTreeMap::new(),
            halted: BTreeSet::new(),
            damaged: BTreeSet::new(),
            is_damage_done: false,
            named: BTreeMap::new(),
            calm_at_us: dials.safety_ms * 1_000,
            notes: Vec::new(),
            coverage: Coverage::default(),
            complaints: Vec::new(),
            trace: Trace::new(trace),
        };
        world.populate(n, &mut chance.fork("nodes"));
        world.begin();
        world
    }

    fn populate(&mut self, n: u32, chance: &mut Chance) {
        let mut order: Vec<u32> = (0..n).collect();
        chance.shuffle(&mut order);
        let liars: BTreeSet<u32> = order.iter().copied().take(self.dials.liars as usize).collect();
        let wrong: BTreeSet<u32> =
            order.iter().rev().copied().take(self.dials.wrong_clocks as usize).collect();
        for id in 0..n {
            let me = Origin::new(id, 0);
            let mut skew_ms = chance.below(self.dials.skew_ms + 1) as i64;
            if wrong.contains(&id) {
                skew_ms += chance.below(6_000) as i64 - 3_000;
            }
            let liar = chance.fork("puppet");
            let puppet = liars.contains(&id).then(|| Puppet::new(self.dials.tricks, liar));
            let node = Node {
                id,
                setup: self.setup(me),
                disk: Disk::new(me),
                live: None,
                life: 0,
                skew_ms,
                puppet,
                cursor: 0,
                missed_floor: None,
                members_number: 0,
                is_lost: false,
            };
            self.nodes.push(node);
            chance.next_u64();
        }
        self.coverage.liars = liars.len() as u64;
        for id in 0..n {
            self.open(id);
        }
    }

    pub fn setup(&self, me: Origin) -> Setup {
        let public: Vec<PublicKey> = self.members.values().copied().collect();
        let dials = &self.dials;
        Setup {
            cluster: CLUSTER,
            me,
            members: self.members.clone(),
            faults: dials.f as usize,
            timing: Timing {
                exchange_interval: Micros::from_millis(dials.exchange_ms.max(50)),
                audit_interval: Micros::from_millis(dials.audit_ms.max(1_000)),
                ack_patience: Micros::from_millis(dials.patience_ms.max(1_000)),
            },
            limits: Limits {
                fanout: dials.fanout.clamp(1, 64) as usize,
                exchange_peers: dials.exchange_peers.clamp(1, 16) as usize,
                ..Limits::default()
            },
            seed: self.seed ^ u64::from(me.id.0) << 32 ^ u64::from(me.incarnation.0) << 48,
            crypto: self.keys.signer(identity(me), &public),
            mutants: self.mutants,
        }
    }

    /// What happens by itself, for the first time.
    fn begin(&mut self) {
        self.after_ms(1, Event::Write);
        self.after_ms(1, Event::Look);
        for node in 0..self.nodes.len() as u32 {
            self.after_ms(1, Event::Read { node });
            let first = self.chances.fault.between(1, self.dials.save_ms.max(1));
            self.after_ms(first, Event::Save { node });
        }
        let dials = self.dials.clone();
        let recurring: [(u64, fn() -> Event); 5] = [
            (dials.floor_ms, || Event::Propose),
            (dials.crash_ms, || Event::Crash),
            (dials.blackout_ms, || Event::Blackout),
            (dials.wipe_ms, || Event::Wipe),
            (dials.partition_ms, || Event::Partition),
        ];
        for (mean_ms, event) in recurring {
            self.again(mean_ms, event());
        }
        for node in 0..self.nodes.len() as u32 {
            if !self.nodes[node as usize].is_honest() {
                self.after_ms(500, Event::Mischief { node });
                let at_ms = self.chances.liar.between(1, self.dials.safety_ms.max(2) * 3 / 4);
                self.after_ms(at_ms, Event::Fork { node });
            }
        }
    }

    // --- time ---

    pub fn after_us(&mut self, us: u64, event: Event) {
        self.counter += 1;
        self.queue.insert((self.now_us + us, self.counter), event);
    }

    pub fn after_ms(&mut self, ms: u64, event: Event) {
        self.after_us(ms * 1_000, event);
    }

    /// After about so long; never if that is 0.
    pub fn again(&mut self, mean_ms: u64, event: Event) {
        if mean_ms > 0 {
            let us = self.chances.fault.between(mean_ms * 500, mean_ms * 1_500);
            self.after_us(us, event);
        }
    }

    /// The next thing happens; false when nothing is left to happen before that time.
    pub fn step(&mut self, until_us: u64) -> bool {
        let Some((&(at_us, counter), _)) = self.queue.first_key_value() else { return false };
        if at_us > until_us || !self.complaints.is_empty() {
            self.now_us = self.now_us.max(until_us);
            return false;
        }
        let event = self.queue.remove(&(at_us, counter)).expect("just seen");
        self.now_us = at_us;
        self.trace.mix(&[at_us, counter]);
        self.happen(event);
        true
    }

    fn happen(&mut self, event: Event) {
        let is_safe = self.phase == Phase::Safety;
        match event {
            Event::Deliver { from, to, bytes } => self.deliver(from, to, &bytes),
            Event::Wake { node, life } => self.wake(node, life),
            Event::Synced { node, life, ticket } => self.synced(node, life, ticket),
            Event::Save { node } => self.save(node),
            Event::Saved { node, life, generation, snapshot } => {
                self.saved(node, life, generation, *snapshot)
            }
            Event::Fetch { node, life, need, donor } => self.fetch(node, life, need, donor),
            Event::Install { node, life, need, snapshot, base } => {
                self.install(node, life, need, *snapshot, &base);
            }
            Event::Write if is_safe => self.write(),
            Event::PushLate { node, life, last } => self.push_late(node, life, last),
            Event::Order { what } => self.order(*what),
            Event::Read { node } => self.read(node),
            Event::Propose => self.propose_floor(),
            Event::Decide { origin } => self.decide(origin),
            Event::End { origin } => self.end(origin),
            Event::Look => self.look(),
            Event::Mischief { node } => self.mischief(node),
            Event::Fork { node } if is_safe => self.fork(node),
            Event::Crash if is_safe => self.crash_somebody(),
            Event::Blackout if is_safe => self.blackout(),
            Event::Restart { node } => self.restart(node),
            Event::Wipe if is_safe => self.wipe(),
            Event::Replace { node } => self.replace(node),
            Event::Partition if is_safe => self.partition(),
            Event::Heal { number } => self.heal(number),
            Event::Write
            | Event::Fork { .. }
            | Event::Crash
            | Event::Blackout
            | Event::Wipe
            | Event::Partition => {}
        }
    }

    // --- messages ---

    /// Puts a message on its way.
    pub fn send(&mut self, from: u32, to: u32, bytes: &Bytes) {
        self.trace.mix_bytes(bytes);
        let (delays, count) = self.net.delays_us(Place::Node(from as usize), Place::Node(to as usize));
        for delay_us in &delays[..count] {
            self.after_us(*delay_us, Event::Deliver { from, to, bytes: bytes.clone() });
        }
    }

    // --- who ---

    /// Honest nodes that are up.
    #[must_use]
    pub fn honest_up(&self) -> Vec<u32> {
        let up = self.nodes.iter().filter(|node| node.is_honest() && node.live.is_some());
        up.map(|node| node.id).collect()
    }

    #[must_use]
    pub fn up(&self) -> Vec<u32> {
        self.nodes.iter().filter(|node| node.live.is_some()).map(|node| node.id).collect()
    }

    /// Everything a floor or a cut is waited for by has been read by everybody.
    #[must_use]
    pub fn is_log_read(&self) -> bool {
        let end = self.log.entries.len();
        self.log.pending == 0
            && self.nodes.iter().filter(|node| node.is_honest()).all(|node| node.cursor == end)
    }

    pub fn complain(&mut self, text: String) {
        self.complaints.push(format!("{text} at {:.3} s", self.now_us as f64 / 1e6));
    }

    #[must_use]
    pub fn fresh_store(&self, me: Origin) -> dwcp_crdt::Store {
        let mut store = dwcp_crdt::Store::new(me, resolvers());
        store.set_mutants(self.mutants);
        store
    }

    /// The floor that would be next.
    #[must_use]
    pub fn is_next(&self, floor: &Floor) -> bool {
        floor.number == self.log.floors + 1
    }
}
