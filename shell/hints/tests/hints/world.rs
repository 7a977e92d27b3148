//! A cluster of hints in virtual time: links that come and go with the addresses that are known, messages that are late or
//! lost, members that crash, sleep, move and come back. One seed is one history.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use dwcp_base::{
    Chance, ClusterId, Crypto, Hash, Hasher, Incarnation, Micros, Now, PublicKey, ReplicaId, Signature,
};
use dwcp_hints::{Effect, Hint, Hints, Input, Known, Setup, Standing, SwimHints, Timing};

pub const CLUSTER: ClusterId = ClusterId([7; 32]);
/// The wall clock when a world begins.
const BEGAN_MS: u64 = 1_700_000_000_000;
/// How often links are looked at: what a dialler's pauses and a cut connection cost.
const LINKS_EVERY: u64 = 200;
/// A link whose far end says nothing for so long is cut.
const SILENCE_MS: u64 = 5_000;

/// Signs with a keyed hash, as the simulator does.
#[derive(Debug)]
pub struct Keyed(pub PublicKey);

pub fn key_of(replica: u8) -> PublicKey {
    PublicKey([replica + 1; 32])
}

fn tag(key: &PublicKey, message: &Hash) -> Signature {
    let mut signature = [0; 64];
    Hasher::new("a test's signature").field(&key.0).field(&message.0).fill(&mut signature);
    Signature(signature)
}

impl Crypto for Keyed {
    fn sign(&self, message: &Hash) -> Signature {
        tag(&self.0, message)
    }

    fn verify(&self, key: &PublicKey, message: &Hash, signature: &Signature) -> bool {
        tag(key, message) == *signature
    }
}

pub fn members(count: u8) -> Vec<Known> {
    (0..count).map(|id| Known { id: ReplicaId(id), incarnation: Incarnation(0), key: key_of(id) }).collect()
}

pub fn hints(me: u8, count: u8, address: &str, seed: u64, now: Now) -> SwimHints {
    let setup = Setup {
        cluster: CLUSTER,
        me: ReplicaId(me),
        incarnation: Incarnation(0),
        address: address.into(),
        members: members(count),
        timing: Timing::default(),
        seed,
    };
    SwimHints::new(setup, Arc::new(Keyed(key_of(me))), now)
}

pub struct Node {
    pub hints: SwimHints,
    pub running: bool,
    /// Where it really is.
    pub address: String,
    /// Where its settings say that the others are.
    pub configured: Vec<String>,
    /// Of its settings: addresses that may be anybody's.
    pub seeds: Vec<String>,
    /// Does nothing before this moment.
    asleep_until: u64,
    wakeup: u64,
    links: BTreeSet<u8>,
    pub bytes_out: u64,
    pub messages_out: u64,
}

pub struct World {
    pub now_ms: u64,
    pub chance: Chance,
    pub nodes: Vec<Node>,
    /// Pairs between which nothing passes.
    pub cut: BTreeSet<(u8, u8)>,
    pub lost_per_mille: u64,
    pub delay_ms_max: u64,
    on_the_way: BTreeMap<(u64, u64), (u8, u8, Bytes)>,
    sent: u64,
    next_links: u64,
    steps: u64,
    /// Of everything that happened.
    pub history: Hasher,
    /// What was thought of whom, when it changed: by whom, and when.
    pub changes: Vec<(u64, u8, Hint)>,
    seed: u64,
    lives: u64,
}

pub fn address_of(id: usize) -> String {
    format!("10.0.0.{id}:7000")
}

impl World {
    pub fn new(seed: u64, count: u8) -> Self {
        let mut world = Self {
            now_ms: 0,
            chance: Chance::new(seed).fork("world"),
            nodes: Vec::new(),
            cut: BTreeSet::new(),
            lost_per_mille: 0,
            delay_ms_max: 40,
            on_the_way: BTreeMap::new(),
            sent: 0,
            next_links: 0,
            steps: 0,
            history: Hasher::new("a history"),
            changes: Vec::new(),
            seed,
            lives: 0,
        };
        let configured: Vec<String> = (0..usize::from(count)).map(address_of).collect();
        for id in 0..count {
            let hints = hints(id, count, &configured[usize::from(id)], seed + u64::from(id), world.now());
            world.nodes.push(Node {
                hints,
                running: true,
                address: configured[usize::from(id)].clone(),
                configured: configured.clone(),
                seeds: Vec::new(),
                asleep_until: 0,
                wakeup: 0,
                links: BTreeSet::new(),
                bytes_out: 0,
                messages_out: 0,
            });
        }
        world
    }

    pub fn count(&self) -> u8 {
        u8::try_from(self.nodes.len()).expect("few")
    }

    pub fn now(&self) -> Now {
        Now { mono: Micros::from_millis(self.now_ms), wall_ms: BEGAN_MS + self.now_ms }
    }

    pub fn crash(&mut self, id: u8) {
        self.nodes[usize::from(id)].running = false;
    }

    /// Comes back as the same incarnation, at this address. `clock_ahead_ms`: how far its wall clock is ahead, or behind.
    pub fn restart(&mut self, id: u8, address: &str, clock_ahead_ms: i64) {
        self.lives += 1;
        let now = self.now();
        let now = Now { wall_ms: now.wall_ms.saturating_add_signed(clock_ahead_ms), ..now };
        let seed = self.seed + 1_000 * self.lives + u64::from(id);
        let count = self.count();
        let node = &mut self.nodes[usize::from(id)];
        node.hints = hints(id, count, address, seed, now);
        node.address = address.into();
        (node.running, node.asleep_until, node.wakeup) = (true, 0, 0);
        node.links.clear();
        // Whoever had a link to it has lost it.
        for other in 0..count {
            if self.nodes[usize::from(other)].links.remove(&id) && self.nodes[usize::from(other)].running {
                self.step(other, Input::LinkDown { peer: ReplicaId(id) });
            }
        }
    }

    pub fn sleep(&mut self, id: u8, ms: u64) {
        self.nodes[usize::from(id)].asleep_until = self.now_ms + ms;
    }

    pub fn isolate(&mut self, id: u8) {
        for other in (0..self.count()).filter(|other| *other != id) {
            self.cut.insert((id.min(other), id.max(other)));
        }
    }

    pub fn heal(&mut self) {
        self.cut.clear();
        self.lost_per_mille = 0;
        self.delay_ms_max = 40;
        for node in &mut self.nodes {
            node.asleep_until = 0;
        }
    }

    fn passes(&self, a: u8, b: u8) -> bool {
        !self.cut.contains(&(a.min(b), a.max(b)))
    }

    pub fn step(&mut self, id: u8, input: Input) {
        let now = self.now();
        let mut effects = Vec::new();
        let node = &mut self.nodes[usize::from(id)];
        node.hints.step(now, input, &mut effects);
        self.steps += 1;
        if self.steps.is_multiple_of(4) {
            node.hints.check();
        }
        node.wakeup = node.hints.next_wakeup().0.div_ceil(1_000);
        for effect in effects {
            self.history.field(&self.now_ms.to_le_bytes()).field(&[id]);
            match effect {
                Effect::Send { to, bytes } => {
                    self.history.field(&[to.0]).field(&bytes);
                    self.send(id, to.0, bytes);
                }
                Effect::Changed(hint) => {
                    self.history.field(format!("{hint:?}").as_bytes());
                    self.changes.push((self.now_ms, id, hint));
                }
            }
        }
    }

    fn send(&mut self, from: u8, to: u8, bytes: Bytes) {
        let node = &mut self.nodes[usize::from(from)];
        node.bytes_out += bytes.len() as u64;
        node.messages_out += 1;
        assert!(node.links.contains(&to), "{from} has no link to {to}");
        let lost = self.chance.per_mille(self.lost_per_mille);
        if lost || !self.passes(from, to) {
            return;
        }
        let at = self.now_ms + self.chance.between(1, self.delay_ms_max);
        self.sent += 1;
        self.on_the_way.insert((at, self.sent), (from, to, bytes));
    }

    /// Which addresses `from` would try for `to`.
    fn tries(&self, from: u8, to: u8, address: &str) -> bool {
        let node = &self.nodes[usize::from(from)];
        let hint = node.hints.hints().into_iter().find(|hint| hint.replica.0 == to);
        let hinted = hint.is_some_and(|hint| {
            hint.address.as_deref() == Some(address) || hint.seed.as_deref() == Some(address)
        });
        hinted || node.configured[usize::from(to)] == address
    }

    fn look_at_links(&mut self) {
        for from in 0..self.count() {
            if !self.nodes[usize::from(from)].running {
                self.nodes[usize::from(from)].links.clear();
                continue;
            }
            for to in (0..self.count()).filter(|to| *to != from) {
                let far = &self.nodes[usize::from(to)];
                let awake = far.asleep_until < self.now_ms + SILENCE_MS;
                let there = far.running && awake && self.passes(from, to);
                let up = self.nodes[usize::from(from)].links.contains(&to);
                // A link that is up stays up whatever is learnt about addresses.
                if up == there {
                    continue;
                }
                let address = far.address.clone();
                if there && self.nodes[usize::from(from)].seeds.contains(&address) {
                    self.step(from, Input::Seed { replica: ReplicaId(to), address: address.clone() });
                }
                let may = there && self.tries(from, to, &address);
                if may && !up {
                    self.nodes[usize::from(from)].links.insert(to);
                    self.step(from, Input::LinkUp { peer: ReplicaId(to) });
                } else if up && !may {
                    self.nodes[usize::from(from)].links.remove(&to);
                    self.step(from, Input::LinkDown { peer: ReplicaId(to) });
                }
            }
        }
    }

    /// One thing happens, at the next moment at which something does, which is at most `until`.
    fn advance(&mut self, until: u64) -> bool {
        let next_links = self.next_links;
        let wakes = |node: &Node| node.wakeup.max(node.asleep_until);
        let running = self.nodes.iter().zip(0u8..).filter(|(node, _)| node.running);
        let next_wake = running.map(|(node, id)| (wakes(node), id)).min();
        let next_message = self.on_the_way.keys().next().map_or(u64::MAX, |(at, _)| *at);
        let next = next_links.min(next_message).min(next_wake.map_or(u64::MAX, |(at, _)| at));
        if next > until {
            self.now_ms = until;
            return false;
        }
        self.now_ms = self.now_ms.max(next);
        if next == next_message {
            let (_, (from, to, bytes)) = self.on_the_way.pop_first().expect("just seen");
            let node = &self.nodes[usize::from(to)];
            if node.asleep_until > self.now_ms {
                let at = node.asleep_until;
                self.sent += 1;
                self.on_the_way.insert((at, self.sent), (from, to, bytes));
            } else if node.running && self.passes(from, to) {
                self.step(to, Input::Peer { from: ReplicaId(from), bytes });
            }
        } else if let Some((at, id)) = next_wake
            && next == at
        {
            self.step(id, Input::Tick);
        } else {
            self.next_links = self.now_ms + LINKS_EVERY;
            self.look_at_links();
        }
        true
    }

    pub fn run(&mut self, ms: u64) {
        let until = self.now_ms + ms;
        while self.advance(until) {}
    }

    /// Runs until this holds, looking ten times a second. How long it took.
    pub fn run_until(&mut self, ms_max: u64, what: &str, holds: impl Fn(&Self) -> bool) -> u64 {
        let began = self.now_ms;
        while !holds(self) {
            assert!(self.now_ms - began < ms_max, "not within {ms_max} ms: {what}\n{}", self.picture());
            self.run(100);
        }
        self.now_ms - began
    }

    pub fn standing(&self, of: u8, at: u8) -> Standing {
        let hints = self.nodes[usize::from(at)].hints.hints();
        hints.into_iter().find(|hint| hint.replica.0 == of).expect("a member").standing
    }

    pub fn address(&self, of: u8, at: u8) -> Option<String> {
        let hints = self.nodes[usize::from(at)].hints.hints();
        hints.into_iter().find(|hint| hint.replica.0 == of).expect("a member").address
    }

    pub fn running(&self) -> Vec<u8> {
        (0..self.count()).filter(|id| self.nodes[usize::from(*id)].running).collect()
    }

    /// Everybody that runs holds `of` for this.
    pub fn all_hold(&self, of: u8, standing: Standing) -> bool {
        self.running().into_iter().filter(|at| *at != of).all(|at| self.standing(of, at) == standing)
    }

    pub fn all_alive(&self) -> bool {
        self.running().into_iter().all(|of| self.all_hold(of, Standing::Alive))
    }

    /// Who holds whom for what.
    pub fn picture(&self) -> String {
        let row = |at: u8| {
            let of = |of: u8| if of == at { "-" } else { &self.standing(of, at).word()[..1] };
            format!("{at}: {}\n", (0..self.count()).map(of).collect::<String>())
        };
        self.running().into_iter().map(row).collect()
    }
}
