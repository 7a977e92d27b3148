//! Any end for which replicas say enough is reached by all of them, whoever lies, and there always is one.

use crate::ending::{beginning, end_at, halt, line, take};
use crate::liars::decide;
use crate::net::Net;
use crate::world::{Liar, Node, at, origin};
use dwcp_base::Chance;
use dwcp_crdt::Origin;
use dwcp_sync::{Cut, Frame, Message, Proof, Stand};

/// What the log wants to see (`dwcp_log`, which this crate may not know): a quorum says something, and of those who say that
/// they are ready more are honest than may lie.
fn suffices(stands: &[Stand], quorum: usize, faults: usize) -> bool {
    let ready = stands.iter().filter(|stand| matches!(stand, Stand::Ready)).count();
    stands.len() >= quorum && ready > 2 * faults
}

/// One line, of which each honest replica holds some frames.
struct World {
    count: usize,
    faults: usize,
    frames: Vec<Frame>,
    /// How far the store of each has come, and how far each could go.
    held: Vec<usize>,
    kept: Vec<usize>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut chance = Chance::new(seed).fork("ending");
        let count = 4 + (seed % 4) as usize;
        let faults = (count - 1) / 3;
        let length = chance.between(1, 5);
        let frames = line(&mut Liar::new(origin(count as u32 - 1)), length, "v");
        let held: Vec<usize> = (0..count - faults).map(|_| chance.below(length + 1) as usize).collect();
        // Some have exchanged what they have, and somebody may have shown them more.
        let more = |held: &usize| {
            if chance.per_mille(500) { *held } else { chance.between(*held as u64, length + 1) as usize }
        };
        let kept: Vec<usize> = held.iter().map(more).collect();
        let kept = kept.into_iter().map(|kept| kept.min(length as usize)).collect();
        Self { count, faults, frames, held, kept }
    }

    /// The same when everybody has got from the others what they have.
    fn level(mut self) -> Self {
        let most = self.held.iter().copied().max().unwrap_or(0);
        self.kept.iter_mut().for_each(|kept| *kept = most.max(*kept));
        self
    }

    fn over(&self) -> Origin {
        origin(self.count as u32 - 1)
    }

    fn quorum(&self) -> usize {
        (self.count + self.faults) / 2 + 1
    }

    /// Whose end it is lies, and so do those before it.
    fn net(&self, seed: u64) -> Net {
        let mut net = Net::with(seed, self.count as u32, |setup| setup.faults = self.faults);
        net.is_judged = false;
        net.offers = self.faults + 1;
        net.down.extend(self.held.len()..self.count);
        for (node, (held, kept)) in net.nodes.iter_mut().zip(self.held.iter().zip(&self.kept)) {
            take(node, &self.frames[..*held]);
            halt(node, self.over().id.0);
            take(node, &self.frames[*held..*kept]);
            node.sync_disk();
            node.outbox.clear();
        }
        net
    }

    fn cut(&self, place: usize) -> Cut {
        place.checked_sub(1).map_or(beginning(self.over()), |place| end_at(&self.frames[place]))
    }
}

/// All ways in which so many may say something or nothing.
fn lies(liars: usize) -> Vec<Vec<Stand>> {
    let mut ways = vec![Vec::new()];
    for _ in 0..liars {
        let with = |way: &Vec<Stand>| {
            let stands = [Stand::Ready, Stand::Beyond, Stand::Below, Stand::Elsewhere];
            stands.map(|stand| [way.as_slice(), &[stand]].concat())
        };
        ways = ways.iter().cloned().chain(ways.iter().flat_map(with)).collect();
    }
    ways
}

/// Is there something that so many liars may add?
fn may_suffice(honest: &[Stand], quorum: usize, faults: usize) -> bool {
    lies(faults).iter().any(|lies| suffices(&[honest, lies].concat(), quorum, faults))
}

/// It is decided that an origin ends there, and time passes until all honest ones, the first of them, are there.
fn reach(mut net: Net, honest: usize, cut: Cut, told: &str) {
    decide(&mut net, cut);
    for _ in 0..12 {
        (0..honest).for_each(|who| net.sync_disk(who));
        let is_there = |node: &Node| node.standing(cut.origin) == cut && node.sync.needs().count() == 0;
        if net.nodes[..honest].iter().all(is_there) {
            break;
        }
        net.pass(2_500 * net.nodes.len() as u64);
        net.serve_snapshots();
    }
    for node in &net.nodes[..honest] {
        assert_eq!(node.standing(cut.origin), cut, "{told}: {}", node.me());
    }
    net.assert_converged();
}

#[test]
fn any_end_that_enough_is_said_for_is_reached_by_all_and_there_is_always_one() {
    let (mut decided, mut by_lies, mut nobody_there) = (0, 0, 0);
    for (seed, is_level) in (0..200).flat_map(|seed| [(seed, false), (seed, true)]) {
        let world = World::new(seed);
        let world = if is_level { world.level() } else { world };
        let net = world.net(seed);
        let mut suffice_alone = 0;
        for place in 0..=world.frames.len() {
            let cut = world.cut(place);
            let honest: Vec<Stand> =
                net.nodes[..world.held.len()].iter().filter_map(|node| node.sync.stance(&cut, 0)).collect();
            assert_eq!(honest.len(), world.held.len(), "seed {seed}: all say something");
            let alone = suffices(&honest, world.quorum(), world.faults);
            // A liar may ask for an end where nobody honest stands.
            let is_there = world.held.contains(&place);
            suffice_alone += usize::from(alone && is_there);
            if !may_suffice(&honest, world.quorum(), world.faults) {
                continue;
            }
            decided += 1;
            by_lies += usize::from(!alone);
            nobody_there += usize::from(!is_there);
            let told = format!("seed {seed}: {:?} {:?}, end {place}", world.held, world.kept);
            reach(world.net(seed), world.held.len(), cut, &told);
        }
        assert!(!is_level || suffice_alone > 0, "seed {seed}: {:?} of {}", world.held, world.frames.len());
    }
    assert!(
        decided > 300 && by_lies > 50 && nobody_there > 50,
        "{decided} ends, {by_lies} of them with the help of lies, {nobody_there} where nobody stood"
    );
}

/// Of a liar with two branches there may be no end that the honest suffice for; then it stays frozen unless liars help.
#[test]
fn any_end_of_a_liar_that_enough_is_said_for_is_reached_by_all() {
    let (mut decided, mut by_lies, mut undecided) = (0, 0, 0);
    for seed in 0..100 {
        let World { count, faults, .. } = World::new(seed);
        let mut chance = Chance::new(seed).fork("branches");
        let mut liar = Liar::new(origin(count as u32 - 1));
        let shared_length = chance.below(3);
        let shared = line(&mut liar, shared_length, "shared");
        let branches = ["one", "other"].map(|value| {
            let length = chance.between(1, 3);
            [shared.clone(), line(&mut liar.clone(), length, value)].concat()
        });
        let proof = Proof::of(*branches[0][shared.len()].signed(), *branches[1][shared.len()].signed());
        let proof = Box::new(proof.expect("they part there"));
        let honest = count - faults;
        let held: Vec<(usize, usize, usize)> = (0..honest)
            .map(|_| {
                let which = usize::from(chance.per_mille(250));
                let held = chance.below(branches[which].len() as u64 + 1);
                let kept = held + chance.below(branches[which].len() as u64 + 1 - held);
                (which, held as usize, kept as usize)
            })
            .collect();
        let world = || {
            let mut net = Net::with(seed, count as u32, |setup| setup.faults = faults);
            net.is_judged = false;
            // One of those who may lie is known.
            net.offers = faults;
            net.down.extend(honest..count);
            for (node, (which, held, kept)) in net.nodes.iter_mut().zip(&held) {
                take(node, &branches[*which][..*held]);
                let message = Message::Contradiction { proof: proof.clone() }.to_bytes();
                node.message(at(100), origin(count as u32 - 1).id, &message);
                take(node, &branches[*which][*held..*kept]);
                node.sync_disk();
                node.outbox.clear();
            }
            net
        };
        let net = world();
        let ends = branches.iter().flatten().map(end_at).chain([beginning(proof.origin())]);
        let ends: std::collections::BTreeSet<Cut> = ends.collect();
        let mut suffice_alone = 0;
        for cut in ends {
            let stands: Vec<Stand> =
                net.nodes[..honest].iter().filter_map(|node| node.sync.stance(&cut, 9)).collect();
            assert_eq!(stands.len(), honest, "seed {seed}: all say something");
            let quorum = (count + faults) / 2 + 1;
            if may_suffice(&stands, quorum, faults - 1) {
                let alone = suffices(&stands, quorum, faults - 1);
                decided += 1;
                by_lies += usize::from(!alone);
                suffice_alone += usize::from(alone);
                reach(world(), honest, cut, &format!("seed {seed}: {held:?}, end {cut:?}"));
            }
        }
        undecided += usize::from(suffice_alone == 0);
    }
    assert!(
        decided > 100 && by_lies > 20 && undecided > 2,
        "{decided} ends, {by_lies} of them with the help of lies; {undecided} may stay frozen"
    );
}
