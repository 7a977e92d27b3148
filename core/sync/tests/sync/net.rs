//! A few replicas and what lies between them: messages are lost, doubled, late and out of order, links are cut, nodes crash
//! with torn disks, clocks disagree. One seed is one history. The ordered log is played too, as far as sync meets it: it
//! carries frames and floors to everybody, in one order, each at his own pace.

use crate::model::{Expected, Model};
use crate::world::{Node, at, members, origin, setup, text};
use bytes::Bytes;
use dwcp_base::{Chance, Micros, Mutants, Now, Ticket};
use dwcp_crdt::{Dot, Floor, Hlc, Kind, Op, OriginId, VersionVector, Write};
use dwcp_sync::{Cut, Limits, Setup};
use std::collections::{BTreeMap, BTreeSet};

/// What the log orders.
#[derive(Clone, Debug)]
pub enum Ordered {
    Frame(Bytes),
    Floor(Floor),
    Cut(Cut),
}

/// How bad the network is, in thousandths.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    pub loss: u64,
    pub double: u64,
    pub delay_ms_max: u64,
    pub crash: u64,
}

#[derive(Debug)]
pub struct Net {
    pub chance: Chance,
    pub nodes: Vec<Node>,
    pub model: Model,
    /// What the model was told, to tell it anew without what a crash lost.
    pub told: Vec<(Dot, Hlc, Write, BTreeSet<Dot>)>,
    pub faults: Faults,
    pub now_ms: u64,
    /// How far each clock is ahead of the first's.
    pub skew_ms: Vec<u64>,
    /// On their way: when, a number that makes them distinct, from, to.
    pub flying: BTreeMap<(u64, u64), (OriginId, OriginId, Bytes)>,
    pub sent: u64,
    /// Pairs that hear nothing of each other.
    pub cut: BTreeSet<(OriginId, OriginId)>,
    pub log: Vec<Ordered>,
    /// How far each has read the log; a crash begins anew.
    pub read: Vec<usize>,
    /// Frames to be ordered once they are durable with their writer.
    pub to_order: Vec<(usize, Ticket, Bytes)>,
    /// Who takes no part any more.
    pub down: BTreeSet<usize>,
    pub seen: Seen,
    /// Without a model when somebody lies.
    pub is_judged: bool,
    /// A snapshot is taken when so many offer the same.
    pub offers: usize,
}

/// What a history met, so that a generator that goes stale is noticed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    pub writes: u64,
    pub crashes: u64,
    pub torn: u64,
    pub floors: u64,
    pub saved: u64,
    pub ordered: u64,
    pub installed: u64,
    pub dropped_frames: u64,
    pub conflicts: u64,
}

impl Seen {
    pub fn add(&mut self, other: &Self) {
        self.writes += other.writes;
        self.crashes += other.crashes;
        self.torn += other.torn;
        self.floors += other.floors;
        self.saved += other.saved;
        self.ordered += other.ordered;
        self.installed += other.installed;
        self.dropped_frames += other.dropped_frames;
        self.conflicts += other.conflicts;
    }
}

pub fn dots_of(vector: &VersionVector) -> BTreeSet<Dot> {
    let dots = |(origin, list): (_, &[dwcp_crdt::Interval])| {
        let counters = list.iter().flat_map(|i| i.first..=i.last).collect::<Vec<_>>();
        counters.into_iter().map(move |counter| Dot::new(origin, counter))
    };
    vector.iter().flat_map(dots).collect()
}

impl Net {
    pub fn new(seed: u64, count: u32, mutants: Mutants) -> Self {
        Self::with(seed, count, |setup| setup.mutants = mutants)
    }

    pub fn with(seed: u64, count: u32, change: impl Fn(&mut Setup)) -> Self {
        let mut chance = Chance::new(seed);
        let node = |id| {
            let mut setup = setup(origin(id), members(count));
            setup.seed = seed ^ u64::from(id) << 32;
            setup.limits = Limits { fanout: 2, ..Limits::default() };
            change(&mut setup);
            Node::new(setup)
        };
        let nodes: Vec<Node> = (0..count).map(node).collect();
        let skew_ms = (0..count).map(|_| chance.below(200)).collect();
        let read = vec![0; nodes.len()];
        Self {
            chance,
            nodes,
            model: Model::default(),
            told: Vec::new(),
            faults: Faults::default(),
            now_ms: 0,
            skew_ms,
            flying: BTreeMap::new(),
            sent: 0,
            cut: BTreeSet::new(),
            log: Vec::new(),
            read,
            to_order: Vec::new(),
            down: BTreeSet::new(),
            seen: Seen::default(),
            is_judged: true,
            offers: 1,
        }
    }

    pub fn now(&self, who: usize) -> Now {
        let now = at(self.now_ms);
        Now { mono: Micros::from_millis(self.now_ms), wall_ms: now.wall_ms + self.skew_ms[who] }
    }

    /// Sends what a node wants sent.
    pub fn ship(&mut self, who: usize) {
        let from = self.nodes[who].me().id;
        for (to, message) in std::mem::take(&mut self.nodes[who].outbox) {
            if self.cut.contains(&(from, to)) || self.chance.per_mille(self.faults.loss) {
                continue;
            }
            let copies = if self.chance.per_mille(self.faults.double) { 2 } else { 1 };
            for _ in 0..copies {
                let at = self.now_ms + 1 + self.chance.below(self.faults.delay_ms_max + 1);
                self.sent += 1;
                self.flying.insert((at, self.sent), (from, to, message.clone()));
            }
        }
    }

    pub fn ship_all(&mut self) {
        (0..self.nodes.len()).for_each(|who| self.ship(who));
    }

    /// Moves time on by this much; everything due happens.
    pub fn pass(&mut self, ms: u64) {
        let until = self.now_ms + ms;
        loop {
            self.ship_all();
            let message = self.flying.first_key_value().map(|((at, _), _)| *at);
            let wakeups = (0..self.nodes.len()).filter(|who| !self.down.contains(who));
            let wakeup = wakeups.map(|who| self.nodes[who].sync.next_wakeup().0.div_ceil(1_000)).min();
            let next = message.into_iter().chain(wakeup).min().unwrap_or(u64::MAX);
            if next > until {
                break;
            }
            self.now_ms = self.now_ms.max(next);
            if message == Some(next) {
                let (_, (from, to, bytes)) = self.flying.pop_first().expect("just seen");
                let who = to.0 as usize;
                if !self.down.contains(&who) && !self.cut.contains(&(from, to)) {
                    let now = self.now(who);
                    self.nodes[who].message(now, from, &bytes);
                }
            } else {
                for who in 0..self.nodes.len() {
                    let now = self.now(who);
                    if self.nodes[who].sync.next_wakeup() <= now.mono && !self.down.contains(&who) {
                        self.nodes[who].time(now);
                    }
                }
            }
        }
        self.now_ms = until;
    }

    fn random_op(&mut self, kind: Kind) -> Op {
        let chance = &mut self.chance;
        let value = text(["x", "y", "z"][chance.below(3) as usize]);
        let adds = chance.per_mille(600);
        if chance.per_mille(120) {
            return Op::Delete;
        }
        match kind {
            Kind::LwwRegister => Op::Put(value),
            Kind::MvRegister => Op::PutMulti(value),
            Kind::GCounter => Op::Grow(chance.below(5)),
            Kind::PnCounter => Op::Adjust(chance.below(9) as i64 - 4),
            Kind::GSet => Op::AddForever(value),
            Kind::TwoPhaseSet if adds => Op::AddOnce(value),
            Kind::TwoPhaseSet => Op::RemoveForGood(value),
            Kind::OrSet | Kind::Map if adds => Op::Add(value),
            Kind::OrSet | Kind::Map => Op::Remove(value),
            Kind::List if adds => Op::Insert { index: chance.below(4) as usize, value },
            Kind::List => Op::Erase { index: chance.below(3) as usize },
        }
    }

    fn random_write(&mut self) -> Write {
        let key = self.chance.below(9);
        let kind = Kind::ALL[key as usize % Kind::ALL.len()];
        let op = self.random_op(if kind == Kind::Map { Kind::OrSet } else { kind });
        let path: Vec<Bytes> = if kind == Kind::Map { vec!["f".into()] } else { Vec::new() };
        Write { key: format!("k{key}").into(), path, op }
    }

    /// Somebody writes one to four changes as one frame, and the model writes down what they amount to.
    pub fn write(&mut self, who: usize, by_log: bool) {
        let count = self.chance.between(1, 4);
        let writes: Vec<Write> = (0..count).map(|_| self.random_write()).collect();
        let now = self.now(who);
        let node = &mut self.nodes[who];
        let Ok(written) = node.sync.may_write() else { return };
        let before = dots_of(node.store.applied());
        let Ok(Some(bundle)) = node.store.write(&writes, written, now.wall_ms) else { return };
        self.seen.writes += 1;
        if self.is_judged {
            let (mut applied, mut counter) = (before, bundle.first());
            for write in &writes {
                if self.model.expect(write, &applied) == Expected::Change {
                    let dot = Dot::new(bundle.origin(), counter);
                    self.model.record(dot, bundle.hlc(), write, &applied);
                    self.told.push((dot, bundle.hlc(), write.clone(), applied.clone()));
                    applied.insert(dot);
                    counter += 1;
                }
            }
            assert_eq!(counter, bundle.last() + 1, "the model sees the same changes in {writes:?}");
        }
        let node = &mut self.nodes[who];
        if by_log {
            let written = node.sync.write_for_log(&bundle).expect("it may write");
            self.to_order.push((who, written.ticket, written.frame));
        } else {
            node.sync.write(&bundle).expect("it may write");
        }
        self.nodes[who].run();
    }

    /// What is durable with its writer is ordered.
    pub fn order(&mut self) {
        let nodes = &self.nodes;
        let ready = self.to_order.extract_if(.., |(who, ticket, _)| nodes[*who].durable >= *ticket);
        let ready: Vec<_> = ready.collect();
        self.seen.ordered += ready.len() as u64;
        self.log.extend(ready.into_iter().map(|(_, _, frame)| Ordered::Frame(frame)));
    }

    /// A floor is proposed by one and judged by all that are there.
    pub fn floor(&mut self) {
        let proposed = self.log.iter().filter(|o| matches!(o, Ordered::Floor(_))).count() as u64;
        let who = self.chance.below(self.nodes.len() as u64) as usize;
        let Some(floor) = self.nodes[who].sync.floor_candidate() else { return };
        if floor.number == proposed + 1 {
            self.log.push(Ordered::Floor(floor));
            self.seen.floors += 1;
        }
    }

    /// Somebody reads the log on.
    pub fn read_log(&mut self, who: usize, count: usize) {
        for _ in 0..count {
            let Some(ordered) = self.log.get(self.read[who]).cloned() else { return };
            self.read[who] += 1;
            let now = self.now(who);
            let node = &mut self.nodes[who];
            match ordered {
                Ordered::Frame(frame) => node.sync.deliver_from_log(now, frame),
                Ordered::Floor(floor) => node.sync.commit_floor(floor).expect("floors come in order"),
                Ordered::Cut(cut) => node.sync.set_cut(cut),
            }
            node.run();
        }
    }

    pub fn sync_disk(&mut self, who: usize) {
        self.nodes[who].sync_disk();
        self.seen.dropped_frames += u64::from(self.nodes[who].sync.needed_from() > Ticket(1));
    }

    pub fn crash(&mut self, who: usize) {
        let now = self.now(who);
        let kept = self.chance.below(self.nodes[who].unsynced.len() as u64 + 1) as usize;
        self.seen.torn += u64::from(kept < self.nodes[who].unsynced.len());
        self.seen.crashes += 1;
        // What was not durable was not ordered either.
        self.to_order.retain(|(writer, _, _)| *writer != who);
        self.nodes[who].crash(kept, now);
        self.read[who] = 0;
        if self.is_judged {
            self.forget_lost(who);
        }
    }

    /// A write whose record was lost never happened: nobody but its writer saw it.
    fn forget_lost(&mut self, who: usize) {
        let me = self.nodes[who].me();
        let last = self.nodes[who].standing(me).last;
        let before = self.told.len();
        self.told.retain(|(dot, ..)| dot.origin != me || dot.counter <= last);
        if self.told.len() < before {
            self.model = Model::default();
            self.told.iter().for_each(|(dot, hlc, write, seen)| self.model.record(*dot, *hlc, write, seen));
        }
    }

    pub fn partition(&mut self) {
        self.cut.clear();
        let ids: Vec<OriginId> = self.nodes.iter().map(|n| n.me().id).collect();
        let side: Vec<bool> = ids.iter().map(|_| self.chance.per_mille(500)).collect();
        let one_way = self.chance.per_mille(200);
        for (a, a_side) in ids.iter().zip(&side) {
            for (b, b_side) in ids.iter().zip(&side) {
                if a_side != b_side && (!one_way || *a_side) {
                    self.cut.insert((*a, *b));
                }
            }
        }
    }

    /// Whoever needs a snapshot gets one from somebody who said he has it.
    pub fn serve_snapshots(&mut self) {
        for who in 0..self.nodes.len() {
            let Some(donors) = self.nodes[who].needs.values().next().cloned() else { continue };
            let Some(donor) = self.chance.pick(&donors).copied() else { continue };
            let donor = donor.0 as usize;
            if self.down.contains(&donor) || self.down.contains(&who) {
                continue;
            }
            let Some((snapshot, base)) = self.nodes[donor].donate() else { continue };
            let offers = self.offers;
            // A node takes what one more than may lie offer alike.
            let up = |peer: &usize| *peer != who && !self.down.contains(peer);
            let peers: Vec<usize> = (0..self.nodes.len()).filter(up).collect();
            let mut alike =
                |peer: &usize| self.nodes[*peer].donate().is_some_and(|(other, _)| other.is_like(&snapshot));
            if peers.iter().filter(|peer| alike(peer)).count() < offers {
                continue;
            }
            if self.nodes[who].install(&snapshot, &base).is_ok() {
                self.seen.installed += 1;
            }
        }
    }

    pub fn judge(&mut self, who: usize) {
        if !self.is_judged {
            return;
        }
        let store = &self.nodes[who].store;
        let applied = dots_of(store.applied());
        for key in self.model.keys() {
            assert_eq!(store.get(&key), self.model.get(&key, &applied), "{key:?} at {}", store.me());
        }
        let conflicts = self.model.conflicts(&applied) as u64;
        assert_eq!(store.conflict_count(), conflicts, "conflicts at {}", store.me());
        self.seen.conflicts += conflicts;
    }

    /// Faults end; time passes until everybody has everything.
    pub fn heal(&mut self) {
        self.faults = Faults { delay_ms_max: 50, ..Faults::default() };
        self.cut.clear();
        for _ in 0..12 {
            for who in 0..self.nodes.len() {
                self.sync_disk(who);
            }
            self.order();
            for who in 0..self.nodes.len() {
                self.read_log(who, usize::MAX);
            }
            self.pass(2_500 * self.nodes.len() as u64);
            self.serve_snapshots();
        }
    }

    /// All that are up hold the same.
    pub fn assert_converged(&mut self) {
        let up: Vec<usize> = (0..self.nodes.len()).filter(|who| !self.down.contains(who)).collect();
        let first = up[0];
        let applied = self.nodes[first].store.applied().clone();
        let floor = self.nodes[first].store.floor_number();
        let digest = self.nodes[first].store.digest();
        for who in up {
            let node = &mut self.nodes[who];
            let (needs, refused) = (&node.needs, node.refused.iter().rev().take(12).collect::<Vec<_>>());
            let told =
                format!("{needs:?}, missing {:?}, last refused {refused:?}", node.store.missing().next());
            assert_eq!(*node.store.applied(), applied, "changes of node {who}: {told}");
            assert_eq!(node.store.held_count(), 0, "node {who} holds back nothing");
            assert_eq!(node.store.floor_number(), floor, "floor of node {who}");
            assert_eq!(node.store.digest(), digest, "state of node {who}");
            self.judge(who);
        }
    }
}
