//! The ordered log as far as state sync meets it: a list that everybody reads in one order at his own pace, after each start
//! from the beginning. It carries frames, floors, ends of origins and lists of members; who proposes them, and what the
//! others must agree to, is played here.

use crate::sync::node::{Disk, NOON_MS, Node};
use crate::sync::world::{Event, Phase, World, identity};
use bytes::Bytes;
use dwcp_base::{Hash, PublicKey};
use dwcp_crdt::limits::DRIFT_MAX_MS;
use dwcp_crdt::{Floor, FloorRefused, FloorState, Missing, Origin};
use dwcp_sync::{Cut, Need, Received};
use std::collections::{BTreeMap, BTreeSet};

/// Floors are proposed for so long after the faults have stopped.
const FLOORS_IN_CALM_US: u64 = 8_000_000;

#[derive(Clone, Debug)]
pub enum Ordered {
    Frame(Bytes),
    Floor(Floor),
    /// An origin is about to end.
    Halt(Origin),
    Cut(Cut),
    /// Everybody whose frames count, and who came in with it.
    Members {
        number: u64,
        members: BTreeMap<Origin, PublicKey>,
        new: Origin,
    },
}

#[derive(Debug, Default)]
pub struct Log {
    pub entries: Vec<Ordered>,
    /// On the way into the log.
    pub pending: u64,
    pub floors: u64,
    /// What the floors come to, after each.
    pub passed: Vec<FloorState>,
    pub members_number: u64,
    /// Ends that are in the log.
    pub cuts: Vec<Cut>,
    /// Origins whose end is decided.
    pub decided: BTreeSet<Origin>,
}

impl World {
    fn put_in_order(&mut self, what: Ordered) {
        let ms = self.chances.log.between(self.dials.order_ms / 2 + 1, self.dials.order_ms * 3 + 2);
        self.log.pending += 1;
        self.after_ms(ms, Event::Order { what: Box::new(what) });
    }

    /// A durable frame is handed to the log. If that does not answer in time, its writer pushes the frame.
    pub fn propose_frame(&mut self, id: u32, last: u64, frame: Bytes) {
        if !self.chances.log.per_mille(150) {
            self.put_in_order(Ordered::Frame(frame.clone()));
            if self.chances.log.per_mille(self.dials.again_pm) {
                self.coverage.by_log_again += 1;
                self.put_in_order(Ordered::Frame(frame));
            }
        }
        let life = self.nodes[id as usize].life;
        if self.chances.log.per_mille(500) {
            self.after_ms(self.dials.fast_path_ms, Event::PushLate { node: id, life, last });
        }
    }

    pub fn order(&mut self, what: Ordered) {
        self.log.pending -= 1;
        match &what {
            Ordered::Frame(frame) => {
                // Whoever prepares it looks at its clock.
                let now_ms = NOON_MS + self.now_us / 1_000;
                let is_soon = |received: Received| received.header().hlc.ms() <= now_ms + DRIFT_MAX_MS;
                if !Received::read(frame.clone()).is_ok_and(is_soon) {
                    return;
                }
                self.coverage.by_log += 1;
            }
            Ordered::Floor(floor) => {
                if !self.is_next(floor) {
                    return;
                }
                self.log.floors += 1;
                let mut passed = self.log.passed.last().cloned().unwrap_or_default();
                passed.pass(floor.clone());
                self.log.passed.push(passed);
                self.coverage.floors += 1;
                self.trace.line(self.now_us, || format!("floor {} sees {:?}", floor.number, floor.seen));
            }
            Ordered::Cut(cut) => {
                self.coverage.cuts += 1;
                self.log.cuts.push(*cut);
                self.trace.line(self.now_us, || format!("{} ends at {}", cut.origin, cut.last));
            }
            Ordered::Halt(origin) => {
                self.coverage.halts += 1;
                self.after_ms(1, Event::End { origin: *origin });
            }
            Ordered::Members { members, new, .. } => {
                self.members.clone_from(members);
                self.join(*new);
            }
        }
        self.log.entries.push(what);
    }

    /// A node whose disk was replaced begins.
    fn join(&mut self, me: Origin) {
        let id = me.id.0;
        let setup = self.setup(me);
        let node = &mut self.nodes[id as usize];
        node.setup = setup;
        node.disk = Disk::new(me);
        node.is_lost = false;
        node.cursor = 0;
        node.missed_floor = None;
        node.members_number = self.log.members_number;
        self.coverage.incarnations += 1;
        self.open(id);
    }

    /// A node reads on.
    pub fn read(&mut self, id: u32) {
        let mean = if self.phase == Phase::Calm { 20 } else { self.dials.read_ms.max(1) };
        let us = self.chances.log.between(mean * 500, mean * 1_500);
        self.after_us(us, Event::Read { node: id });
        let many = if self.phase == Phase::Calm { 200 } else { self.chances.log.between(1, 12) };
        for _ in 0..many {
            let node = &self.nodes[id as usize];
            let Some(entry) = self.log.entries.get(node.cursor).cloned() else { break };
            if node.live.is_none() {
                return;
            }
            let now = node.now(self.now_us);
            self.nodes[id as usize].cursor += 1;
            let refused = match entry {
                Ordered::Frame(frame) => {
                    self.on_core(id, |live| live.sync.deliver_from_log(now, frame));
                    None
                }
                Ordered::Floor(floor) => self.take_floor(id, floor),
                Ordered::Cut(cut) => {
                    self.on_core(id, |live| live.sync.set_cut(cut));
                    None
                }
                Ordered::Halt(origin) => {
                    self.on_core(id, |live| live.sync.halt(origin));
                    None
                }
                Ordered::Members { number, members, .. } => {
                    self.take_members(id, number, members);
                    None
                }
            };
            if let Some(refused) = refused {
                self.complain(format!("node {id} refuses a committed floor: {refused}"));
            }
            self.run(id);
        }
        if self.phase == Phase::Calm {
            self.take_missed_floors(id);
        }
    }

    /// A node takes a floor, or misses it; after one that it missed it takes what all come to.
    fn take_floor(&mut self, id: u32, floor: Floor) -> Option<FloorRefused> {
        let number = floor.number;
        if self.phase != Phase::Calm && self.chances.log.per_mille(self.dials.miss_floors_pm) {
            self.nodes[id as usize].missed_floor = Some(number);
            self.coverage.floors_missed += 1;
            return None;
        }
        if self.nodes[id as usize].missed_floor.take().is_none() {
            return self.on_core(id, |live| live.sync.commit_floor(floor)).and_then(Result::err);
        }
        let passed = self.log.passed[number as usize - 1].clone();
        self.on_core(id, |live| live.sync.adopt_floors(passed));
        None
    }

    /// Whoever missed the last floors hears of them, and takes a store where frames wait for one that it cannot go beyond.
    fn take_missed_floors(&mut self, id: u32) {
        if let Some(number) = self.nodes[id as usize].missed_floor.take() {
            let passed = self.log.passed[number as usize - 1].clone();
            self.on_core(id, |live| live.sync.adopt_floors(passed));
            self.run(id);
        }
        let waits = |missing| matches!(missing, Missing::Floor(_));
        let Some(live) = self.live(id) else { return };
        if live.sync.is_short_of_missed_floors() && live.store.missing().any(waits) {
            let donors: Vec<_> = live.sync.peers().map(|(peer, _)| peer).collect();
            self.ask_for_snapshot(id, Need::BelowFloor, &donors);
        }
    }

    fn take_members(&mut self, id: u32, number: u64, members: BTreeMap<Origin, PublicKey>) {
        let node = &mut self.nodes[id as usize];
        if number <= node.members_number {
            return;
        }
        node.members_number = number;
        node.setup.members.clone_from(&members);
        // Real signatures are checked faster by those who know the keys beforehand.
        self.on_core(id, |live| live.sync.set_members(members));
    }

    // --- floors ---

    /// Somebody honest proposes a floor; all but as many as may lie must find that it rests on what was said.
    pub fn propose_floor(&mut self) {
        self.again(self.dials.floor_ms, Event::Propose);
        if self.phase == Phase::Calm && self.now_us > self.calm_at_us + FLOORS_IN_CALM_US {
            return;
        }
        let honest = self.honest_up();
        let Some(id) = self.chances.log.pick(&honest).copied() else { return };
        let candidate = self.on_core(id, |live| live.sync.floor_candidate()).flatten();
        let Some(floor) = candidate.filter(|floor| self.is_next(floor)) else { return };
        let liars = self.up().len() - honest.len();
        let agree = honest.iter().filter(|id| {
            let live = self.nodes[**id as usize].live.as_ref().expect("it is up");
            live.sync.judge_floor(&floor).is_ok()
        });
        if agree.count() + liars < self.nodes.len() - self.dials.f as usize {
            self.coverage.floors_refused += 1;
            return;
        }
        self.put_in_order(Ordered::Floor(floor));
    }

    // --- ends ---

    /// Where somebody stands with an origin that contradicted itself becomes its end. All are asked, so that what everybody
    /// had before the two histories part is kept; which of the two goes on is a matter of chance.
    pub fn decide(&mut self, origin: Origin) {
        if self.log.decided.contains(&origin) {
            return;
        }
        if !self.may_decide() {
            return self.after_ms(200, Event::Decide { origin });
        }
        let fork = self.forks.get(&origin).copied().unwrap_or(0);
        let standings: Option<Vec<Cut>> = self
            .others(origin)
            .map(|node| {
                let sync = &node.live.as_ref()?.sync;
                sync.standing(origin).filter(|_| sync.proof(origin).is_some())
            })
            .collect();
        let mut standings = standings.unwrap_or_default();
        let most = standings.iter().map(|cut| cut.last).max().unwrap_or(0);
        standings.retain(|cut| cut.last == most || (fork > 0 && cut.last >= fork));
        let Some(cut) = self.chances.log.pick(&standings).copied() else {
            return self.after_ms(500, Event::Decide { origin });
        };
        self.log.decided.insert(origin);
        self.put_in_order(Ordered::Cut(cut));
    }

    /// One end after another: the next is decided when all that have a say know of the last.
    fn may_decide(&self) -> bool {
        let last = self.log.entries.iter().rposition(|entry| matches!(entry, Ordered::Cut(_)));
        let knows = |node: &Node| last.is_none_or(|last| node.cursor > last);
        self.log.cuts.len() == self.log.decided.len()
            && self.nodes.iter().filter(|node| node.is_honest() && !node.is_lost).all(knows)
    }

    /// The honest nodes that have a say in where an origin ends.
    fn others(&self, origin: Origin) -> impl Iterator<Item = &Node> {
        let others = self.nodes.iter().filter(move |node| node.is_honest() && node.me() != origin);
        others.filter(|node| !node.is_lost)
    }

    /// A halted origin ends at the newest frame that anybody honest has of it; later, while one of them cannot say.
    pub fn end(&mut self, origin: Origin) {
        if self.log.decided.contains(&origin) {
            return;
        }
        if !self.may_decide() {
            return self.after_ms(200, Event::End { origin });
        }
        let standing = |node: &Node| {
            let sync = &node.live.as_ref()?.sync;
            let nothing = Cut { origin, last: 0, hash: Hash::ZERO };
            sync.is_frozen(origin)
                .then(|| sync.standing(origin))
                .flatten()
                .map(|cut| if cut.last == 0 { nothing } else { cut })
        };
        let standings: Option<Vec<Cut>> = self.others(origin).map(standing).collect();
        let Some(cut) = standings.into_iter().flatten().max_by_key(|cut| cut.last) else {
            return self.after_ms(300, Event::End { origin });
        };
        self.log.decided.insert(origin);
        self.put_in_order(Ordered::Cut(cut));
    }

    /// Enough have named a member that does not acknowledge, and the operator knows that it never will.
    pub fn exclude_if_sure(&mut self, member: Origin) {
        use crate::sync::liar::Trick;
        let names = self.named.get(&member).map_or(0, BTreeSet::len);
        let puppet = self.nodes[member.id.0 as usize].puppet.as_ref();
        let withholds = puppet.is_some_and(|puppet| puppet.plays(Trick::WithholdAcks));
        if names > self.dials.f as usize && withholds && self.halted.insert(member) {
            self.coverage.withholders_excluded += 1;
            self.put_in_order(Ordered::Halt(member));
        }
    }

    /// The operator ends a lost incarnation and brings in the next one.
    pub fn replace(&mut self, id: u32) {
        let lost = self.nodes[id as usize].me();
        if self.halted.insert(lost) {
            self.put_in_order(Ordered::Halt(lost));
        }
        let new = lost.reborn();
        let mut members = self.members.clone();
        members.insert(new, self.keys.public(identity(new)));
        self.log.members_number += 1;
        let number = self.log.members_number;
        self.put_in_order(Ordered::Members { number, members, new });
    }
}
