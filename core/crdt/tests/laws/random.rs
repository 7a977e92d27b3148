//! Random histories of all types at once, judged against the model: several writers, bundles that arrive late, twice, in
//! pieces and out of order, floors that are raised here and not yet there, snapshots in between.

use crate::model::{Expected, Model};
use crate::world::{NOON_MS, Replica, assert_same, text};
use bytes::Bytes;
use dwcp_base::Chance;
use dwcp_crdt::{Applied, Bundle, Dot, Floor, Kind, Op, Origin, Resolvers, Restore, VersionVector, Write};
use std::collections::{BTreeMap, BTreeSet};

struct Run {
    chance: Chance,
    replicas: Vec<Replica>,
    model: Model,
    bundles: Vec<Bundle>,
    floors: Vec<Floor>,
    /// Earlier lives of replicas, with the last change of each.
    retired: BTreeMap<Origin, u64>,
    /// Which kinds of value are written, and into how many keys.
    kinds: Vec<Kind>,
    keys: u64,
    seen: Seen,
}

/// What the runs met, so that a generator that goes stale is noticed.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    held: u64,
    conflicts: u64,
    refused: u64,
    collected: u64,
    nested: u64,
    restored: u64,
    reborn: u64,
}

fn dots_of(vector: &VersionVector) -> BTreeSet<Dot> {
    let dots = |(origin, list): (_, &[dwcp_crdt::Interval])| {
        let counters = list.iter().flat_map(|i| i.first..=i.last).collect::<Vec<_>>();
        counters.into_iter().map(move |counter| Dot::new(origin, counter))
    };
    vector.iter().flat_map(dots).collect()
}

impl Run {
    fn new(seed: u64, kinds: &[Kind]) -> Self {
        let mut chance = Chance::new(seed);
        let replicas = (0..chance.between(2, 4)).map(|id| Replica::new(id as u32)).collect();
        let keys = chance.between(1, 3);
        let mut kinds = kinds.to_vec();
        chance.shuffle(&mut kinds);
        Self {
            chance,
            replicas,
            model: Model::default(),
            bundles: Vec::new(),
            floors: Vec::new(),
            retired: BTreeMap::new(),
            kinds,
            keys,
            seen: Seen::default(),
        }
    }

    fn random_op(&mut self, kind: Kind) -> Op {
        let chance = &mut self.chance;
        let value = text(["x", "y", "z"][chance.below(3) as usize]);
        let adds = chance.per_mille(600);
        if chance.per_mille(120) {
            return if chance.per_mille(700) { Op::Delete } else { Op::Settle };
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
            Kind::List if adds => Op::Insert { index: chance.below(5) as usize, value },
            Kind::List => Op::Erase { index: chance.below(4) as usize },
        }
    }

    fn random_write(&mut self) -> Write {
        let mut kind = *self.chance.pick(&self.kinds).expect("some kinds");
        // Each key has a favourite kind; a few writes ignore it and clash.
        let key = self.chance.below(self.keys);
        if self.chance.per_mille(850) {
            kind = self.kinds[key as usize % self.kinds.len()];
        }
        let mut path: Vec<Bytes> = Vec::new();
        while kind == Kind::Map && path.len() < 3 {
            path.push(["a", "b"][self.chance.below(2) as usize].into());
            kind = *self.chance.pick(&self.kinds).expect("some kinds");
        }
        self.seen.nested += u64::from(path.len() > 1);
        // Sometimes a delete high up in the tree.
        let op = self.random_op(kind);
        if op == Op::Delete && self.chance.per_mille(500) {
            path.pop();
        }
        Write { key: format!("k{key}").into(), path, op }
    }

    fn write(&mut self) {
        let count = if self.chance.per_mille(200) { self.chance.between(2, 4) } else { 1 };
        let writes: Vec<Write> = (0..count).map(|_| self.random_write()).collect();
        let who = self.chance.below(self.replicas.len() as u64) as usize;
        let mut applied = dots_of(self.replicas[who].store.applied());
        // The model does them one by one, each after the ones before it.
        let me = self.replicas[who].store.me();
        let mut expected = self.model.clone();
        let mut counter = self.replicas[who].store.applied().last(me);
        let mut hlc = self.replicas[who].store.latest();
        hlc.0 += 1;
        let now = dwcp_crdt::Hlc::new(self.replicas[who].now_ms + 1, 0);
        let hlc = hlc.max(now);
        let mut refused = false;
        let first = counter + 1;
        for write in &writes {
            match expected.expect(write, &applied) {
                Expected::Refused => refused = true,
                Expected::Nothing => {}
                Expected::Change => {
                    counter += 1;
                    let dot = Dot::new(me, counter);
                    expected.record(dot, hlc, write, &applied);
                    applied.insert(dot);
                }
            }
            if refused {
                break;
            }
        }
        let before = self.replicas[who].store.applied().clone();
        let result = self.replicas[who].try_write(&writes);
        if refused {
            assert!(result.is_err(), "{writes:?}");
            assert_eq!(*self.replicas[who].store.applied(), before);
            self.seen.refused += 1;
            return;
        }
        let bundle = result.unwrap_or_else(|e| panic!("{writes:?}: {e}"));
        assert_eq!(bundle.is_some(), counter >= first, "{writes:?}");
        if let Some(bundle) = bundle {
            assert_eq!((bundle.first(), bundle.last(), bundle.hlc()), (first, counter, hlc));
            self.model = expected;
            self.bundles.push(bundle);
        }
    }

    fn deliver(&mut self) {
        let Some(bundle) = self.chance.pick(&self.bundles).cloned() else { return };
        let part = if self.chance.per_mille(300) {
            let first = self.chance.between(bundle.first(), bundle.last());
            bundle.part(first, self.chance.between(first, bundle.last())).expect("inside")
        } else {
            bundle
        };
        let who = self.chance.below(self.replicas.len() as u64) as usize;
        if matches!(self.replicas[who].receive(&part), Applied::Held { .. }) {
            self.seen.held += 1;
        }
    }

    /// Everybody acknowledges; some learn of the floor at once, others later.
    fn floor(&mut self) {
        let stores = self.replicas.iter().map(|r| &r.store);
        let acknowledged: BTreeMap<_, _> = stores.map(|s| (s.me(), s.applied().clone())).collect();
        let number = self.floors.len() as u64 + 1;
        self.floors.push(Floor::of(number, &acknowledged, self.retired.clone()));
    }

    fn learn_floor(&mut self) {
        let who = self.chance.below(self.replicas.len() as u64) as usize;
        let store = &mut self.replicas[who].store;
        let Some(floor) = self.floors.get(store.floor_number() as usize) else { return };
        let before = store.graves_count();
        store.raise_floor(floor.clone()).expect("everybody acknowledged");
        store.check();
        self.seen.collected += (before.saturating_sub(store.graves_count())) as u64;
    }

    /// A quiet time: most replicas catch up, a floor is agreed, some learn of it.
    fn round(&mut self) {
        for who in 0..self.replicas.len() {
            if self.chance.per_mille(850) {
                self.catch_up(who);
            }
        }
        self.floor();
        for _ in 0..self.replicas.len() * 2 {
            self.learn_floor();
        }
    }

    fn catch_up(&mut self, who: usize) {
        let mut bundles = self.bundles.clone();
        self.chance.shuffle(&mut bundles);
        for bundle in &bundles {
            self.replicas[who].receive(bundle);
        }
    }

    /// A replica is replaced by what its snapshot says, sometimes as its next incarnation.
    fn restore(&mut self) {
        let who = self.chance.below(self.replicas.len() as u64) as usize;
        let replica = &mut self.replicas[who];
        let mut me = replica.store.me();
        if self.chance.per_mille(300) {
            self.retired.insert(me, replica.store.applied().last(me));
            me = me.reborn();
            self.seen.reborn += 1;
        }
        let head = replica.store.snapshot_head();
        let mut restore = Restore::new(me, Resolvers::default(), &head).expect("ours");
        let (mut after, bytes_max) = (None::<Bytes>, self.chance.below(200) as usize);
        loop {
            let piece = replica.store.snapshot_piece(after.as_deref(), bytes_max);
            restore.piece(&piece.bytes).expect("ours");
            after = piece.next;
            if after.is_none() {
                break;
            }
        }
        let mut store = restore.finish().expect("whole");
        store.check();
        assert_eq!(store.digest(), replica.store.digest());
        assert_eq!(store.conflict_count(), replica.store.conflict_count());
        replica.store = store;
        self.seen.restored += 1;
    }

    fn judge(&mut self, who: usize) {
        let store = &self.replicas[who].store;
        let applied = dots_of(store.applied());
        for key in self.model.keys() {
            assert_eq!(store.get(&key), self.model.get(&key, &applied), "{key:?} at {}", store.me());
        }
        let conflicts = self.model.conflicts(&applied) as u64;
        assert_eq!(store.conflict_count(), conflicts, "conflicts at {}", store.me());
        self.seen.conflicts = self.seen.conflicts.max(conflicts);
    }

    fn play(&mut self, steps: u64) {
        for _ in 0..steps {
            match self.chance.below(100) {
                0..35 => self.write(),
                35..83 => self.deliver(),
                83..91 => self.round(),
                91..97 => self.learn_floor(),
                97 => self.restore(),
                _ => {
                    let who = self.chance.below(self.replicas.len() as u64) as usize;
                    self.judge(who);
                }
            }
        }
        for who in 0..self.replicas.len() {
            self.judge(who);
        }
        // Heal: everything to everybody, in another order for each.
        for who in 0..self.replicas.len() {
            let mut bundles = self.bundles.clone();
            self.chance.shuffle(&mut bundles);
            let replica = &mut self.replicas[who];
            for floor in &self.floors {
                // Floors that this replica cannot raise yet come after the bundles.
                if replica.store.raise_floor(floor.clone()).is_err() {
                    break;
                }
            }
            for bundle in &bundles {
                replica.receive(bundle);
            }
            for floor in &self.floors {
                replica.store.raise_floor(floor.clone()).expect("all is here");
            }
            replica.now_ms = NOON_MS;
            self.judge(who);
        }
        let (first, rest) = self.replicas.split_first_mut().expect("some");
        for other in rest {
            assert_same(first, other);
        }
    }
}

/// Replicas of a history that is still under way: each has some of the bundles, none has all.
pub fn unfinished(seed: u64, kinds: &[Kind]) -> (Vec<Replica>, Vec<Bundle>) {
    let mut run = Run::new(seed, kinds);
    for _ in 0..90 {
        if run.chance.per_mille(500) { run.write() } else { run.deliver() }
    }
    (run.replicas, run.bundles)
}

fn play_all(seeds: std::ops::Range<u64>, steps: u64, kinds: &[Kind]) -> Seen {
    let mut seen = Seen::default();
    for seed in seeds {
        let mut run = Run::new(seed, kinds);
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run.play(steps)));
        assert!(result.is_ok(), "seed {seed} of {kinds:?} fails: see above");
        seen.held += run.seen.held;
        seen.conflicts += run.seen.conflicts;
        seen.refused += run.seen.refused;
        seen.collected += run.seen.collected;
        seen.nested += run.seen.nested;
        seen.restored += run.seen.restored;
        seen.reborn += run.seen.reborn;
    }
    seen
}

#[test]
fn each_type_alone_agrees_with_the_model() {
    for kind in Kind::ALL {
        let kinds = if kind == Kind::Map { vec![Kind::Map, Kind::OrSet] } else { vec![kind] };
        let seen = play_all(0..25, 120, &kinds);
        assert!(seen.restored > 0, "{kind}: {seen:?}");
    }
}

#[test]
fn all_types_together_agree_with_the_model() {
    let seen = play_all(1_000..1_100, 160, &Kind::ALL);
    assert!(seen.held > 100 && seen.conflicts > 100 && seen.refused > 100, "{seen:?}");
    assert!(seen.collected > 30 && seen.nested > 50 && seen.restored > 30 && seen.reborn > 10, "{seen:?}");
}
