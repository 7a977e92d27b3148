//! Collection: what every member has acknowledged is a floor; committed by the log, it lets the store forget tombstones and
//! sync forget frames.
//!
//! An acknowledgement is what a member says of itself in every exchange: which dots are durable with it and part of its
//! state, and how far it has written (`dwcp_crdt::Floor` says why both). A member that does not acknowledge holds
//! collection up; it is named, and the operator can end its origin (`set_cut`), which takes it out of the floor for good:
//! what it wrote meanwhile, not knowing the floor, could bring back what was collected.

use crate::message::Head;
use crate::output::{Action, Need};
use crate::record::{Base, FloorStep, Record};
use crate::state::Sync;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;
use core::fmt;
use dwcp_base::{Mutant, Now, Ticket};
use dwcp_crdt::{Floor, FloorRefused, FloorState, Origin, OriginId, VersionVector};

/// Floors that are not part of the saved snapshot. More than these come only if the caller never saves one; then the
/// oldest go, and a restart needs a snapshot.
const FLOORS_MAX: usize = 1_024;
/// Own acknowledgements remembered, to judge floors that rest on them.
const SAID_MAX: usize = 64;
/// A floor settles the one before; after so many equal ones another would settle nothing.
const FLOORS_QUIET: u8 = 3;

/// The floors that were committed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Floors {
    /// The newest that the store was told of.
    raised: u64,
    /// In order, up to the newest: those that the saved snapshot does not know. Each [`FloorStep::One`] is one more than the
    /// one before.
    list: VecDeque<FloorStep>,
    last: Option<Floor>,
    /// How many of the last floors said the same.
    quiet: u8,
    /// What was said of oneself last, newest at the back.
    said: VecDeque<(VersionVector, u64)>,
}

impl Floors {
    pub(crate) fn at(raised: u64) -> Self {
        Self { raised, ..Self::default() }
    }

    pub(crate) fn raised(&self) -> u64 {
        self.raised
    }

    pub(crate) fn newest(&self) -> u64 {
        self.last.as_ref().map_or(0, |floor| floor.number).max(self.raised)
    }

    /// Takes committed floors in; old ones change nothing.
    pub(crate) fn note(&mut self, step: FloorStep) {
        let Some(floor) = step.newest().cloned() else { return };
        if self.last.as_ref().is_some_and(|last| floor.number <= last.number) {
            return;
        }
        let same = |last: &Floor| {
            (&last.seen, &last.written, &last.retired) == (&floor.seen, &floor.written, &floor.retired)
        };
        self.quiet = if self.last.as_ref().is_some_and(same) { self.quiet.saturating_add(1) } else { 0 };
        if self.list.len() == FLOORS_MAX {
            self.list.pop_front();
        }
        if floor.number > self.raised || !self.list.is_empty() {
            self.list.push_back(step);
        }
        self.last = Some(floor);
    }

    /// What a base says of floors.
    pub(crate) fn adopt(&mut self, base: &Base) {
        self.last = None;
        let last = base.floor_last.iter().cloned().map(FloorStep::One);
        last.chain(base.floors.iter().cloned()).for_each(|step| self.note(step));
    }

    /// The store begins anew at this floor.
    fn restart(&mut self, raised: u64) {
        self.raised = raised;
        self.forget(raised);
    }

    /// The saved snapshot knows floors up to this one.
    fn forget(&mut self, saved: u64) {
        while self.list.front().is_some_and(|step| step.number() <= saved) {
            self.list.pop_front();
        }
    }

    /// What the store is told next. Floors one by one where they are here: frames may wait for each of them.
    fn next(&self) -> Option<&FloorStep> {
        let known = self.list.partition_point(|step| step.number() <= self.raised);
        self.list.iter().skip(known).find(|step| match step {
            FloorStep::One(floor) => floor.number == self.raised + 1,
            FloorStep::Through(_) => true,
        })
    }

    /// Remembers an acknowledgement that goes out.
    pub(crate) fn said(&mut self, written: u64, heads: &[Head]) {
        let vector = VersionVector::up_to(heads.iter().map(|head| (head.origin, head.acked)));
        if self.said.back().is_some_and(|(last, w)| *last == vector && *w == written) {
            return;
        }
        if self.said.len() == SAID_MAX {
            self.said.pop_front();
        }
        self.said.push_back((vector, written));
    }

    pub(crate) fn list(&self) -> impl Iterator<Item = &FloorStep> {
        self.list.iter()
    }

    pub(crate) fn last(&self) -> Option<&Floor> {
        self.last.as_ref()
    }
}

/// Why a proposed floor is not one, as far as this replica knows. It may be one later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FloorProblem {
    Number {
        number: u64,
        next: u64,
    },
    /// It does not speak of exactly the members that take part, or of the origins that ended.
    Members,
    /// It covers changes of an origin and not all before them: nobody says that of himself, and it can be of any length.
    Gaps,
    /// This member has not acknowledged it, to this replica's knowledge.
    Unacknowledged {
        member: Origin,
    },
    /// It says that this replica had written less than it had when it acknowledged.
    Written,
}

impl fmt::Display for FloorProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number { number, next } => write!(f, "floor {number} is not the next one, {next}"),
            Self::Members => write!(f, "the floor does not speak of the members there are"),
            Self::Gaps => write!(f, "the floor covers changes and not those before them"),
            Self::Unacknowledged { member } => write!(f, "{member} has not acknowledged the floor"),
            Self::Written => write!(f, "the floor says less than this replica had written"),
        }
    }
}

impl core::error::Error for FloorProblem {}

impl Sync {
    /// The next floor, if all members that take part have said enough for one that says more than the last; for the log
    /// to order.
    #[must_use]
    pub fn floor_candidate(&self) -> Option<Floor> {
        let mut acknowledged = BTreeMap::new();
        for (id, origin) in self.active() {
            let vector = if origin == self.me {
                let mut vector = self.acked_vector();
                vector.insert(origin, 1, self.chains.get(&origin)?.last());
                vector
            } else if self.mutants.on(Mutant::RoomAsksUnheard) {
                self.acked_vector()
            } else {
                let ack = self.peers.get(&id)?.ack.as_ref().filter(|ack| ack.origin == origin)?;
                ack.vector.clone()
            };
            acknowledged.insert(origin, vector);
        }
        let floor = Floor::of(self.floors.newest() + 1, &acknowledged, self.retired());
        match self.floors.last() {
            None => (!floor.seen.is_empty()).then_some(floor),
            // A member that came later may not have all of the last one yet.
            Some(last) if !floor.seen.covers(&last.seen) => None,
            Some(last) => {
                let same = (&last.seen, &last.written, &last.retired)
                    == (&floor.seen, &floor.written, &floor.retired);
                (!same || self.floors.quiet < FLOORS_QUIET).then_some(floor)
            }
        }
    }

    /// Origins that ended, with their last counter.
    fn retired(&self) -> BTreeMap<Origin, u64> {
        let cuts = self.chains.values().filter_map(|chain| chain.cut);
        cuts.map(|cut| (cut.origin, cut.last)).collect()
    }

    /// Does a proposed floor rest on what the members said, as far as this replica heard, and on what it said itself? For
    /// whoever has to agree to one.
    ///
    /// # Errors
    /// See [`FloorProblem`].
    pub fn judge_floor(&self, floor: &Floor) -> Result<(), FloorProblem> {
        let next = self.floors.newest() + 1;
        if floor.number != next {
            return Err(FloorProblem::Number { number: floor.number, next });
        }
        let active = self.active();
        if !floor.written.keys().eq(active.values()) || floor.retired != self.retired() {
            return Err(FloorProblem::Members);
        }
        if floor.seen.iter().any(|(origin, _)| floor.seen.prefix(origin) != floor.seen.last(origin)) {
            return Err(FloorProblem::Gaps);
        }
        let unacknowledged = |member: Origin| Err(FloorProblem::Unacknowledged { member });
        for (id, origin) in active {
            if origin == self.me {
                let mut vector = self.acked_vector();
                vector.insert(origin, 1, floor.written.get(&origin).copied().unwrap_or(0));
                if !vector.covers(&floor.seen) {
                    return unacknowledged(origin);
                }
                continue;
            }
            let ack = self.peers.get(&id).and_then(|peer| peer.ack.as_ref());
            if !ack.is_some_and(|ack| ack.origin == origin && ack.vector.covers(&floor.seen)) {
                return unacknowledged(origin);
            }
        }
        // Whatever is written later must have seen all that was acknowledged: the floor may not understate how far we
        // were. It must be one of the things we said, or what would be said now.
        let written = floor.written.get(&self.me).copied().unwrap_or(0);
        let others = |vector: &VersionVector| {
            let missing = floor.seen.without(vector);
            missing.iter().all(|(origin, _)| origin == self.me)
        };
        let now = self.chains.get(&self.me).map_or(0, crate::chain::Chain::last);
        let stands =
            written >= now || self.floors.said.iter().any(|(vector, w)| *w <= written && others(vector));
        if stands { Ok(()) } else { Err(FloorProblem::Written) }
    }

    /// Takes note of a floor that the log committed. Frames below it are dropped and the store is told, as soon as the store
    /// has what it covers. One that is known already changes nothing.
    ///
    /// # Errors
    /// When one before it is missing.
    pub fn commit_floor(&mut self, floor: Floor) -> Result<(), FloorRefused> {
        let (number, next) = (floor.number, self.floors.newest() + 1);
        if number < next {
            return Ok(());
        }
        if number > next {
            return Err(FloorRefused::Early { number, next });
        }
        self.out.persist(&Record::Floor(floor.clone()));
        self.floors.note(FloorStep::One(floor));
        self.raise_floors();
        self.find_needs();
        Ok(())
    }

    /// Takes note of what all floors come to that the log committed up to one, for whoever missed some of them. Those that
    /// are known already change nothing.
    pub fn adopt_floors(&mut self, floors: FloorState) {
        if floors.number() <= self.floors.newest() {
            return;
        }
        self.out.persist(&Record::Floors(floors.clone()));
        self.floors.note(FloorStep::Through(floors));
        self.raise_floors();
        self.find_needs();
    }

    /// Were floors missed that the store cannot go beyond yet, for it lacks something that they cover? Frames that wait for one of
    /// those wait for a snapshot then.
    #[must_use]
    pub fn is_short_of_missed_floors(&self) -> bool {
        matches!(self.floors.next(), Some(FloorStep::Through(_)))
    }

    /// Does a committed floor cover what is not in line here? All acknowledged it, so this replica was not among them, or
    /// its disk was replaced.
    pub(crate) fn is_below_floor(&self) -> bool {
        let is_here =
            |origin: Origin, last: u64| self.chains.get(&origin).is_some_and(|chain| chain.last() >= last);
        let unraised = self.floors.list().filter(|step| step.number() > self.floors.raised);
        let lacks = |seen: &VersionVector| seen.iter().any(|(origin, _)| !is_here(origin, seen.last(origin)));
        unraised.flat_map(FloorStep::seen).any(lacks)
    }

    /// Tells the store of each floor that it can take, in order.
    pub(crate) fn raise_floors(&mut self) {
        let before = self.floors.raised;
        let is_held = |step: &&FloorStep| step.seen().all(|seen| self.applied.covers(seen));
        while let Some(step) = self.floors.next().filter(is_held).cloned() {
            self.floors.raised = step.number();
            self.out.push(match step {
                FloorStep::One(floor) => Action::RaiseFloor(floor),
                FloorStep::Through(floors) => Action::AdoptFloors(floors),
            });
        }
        if self.floors.raised > before {
            self.collect();
        }
        if self.floors.raised == self.floors.newest() {
            self.needs.remove(&Need::BelowFloor);
        }
    }

    /// Drops frames that everybody acknowledged and that the saved snapshot holds.
    fn collect(&mut self) {
        let Some(floor) = self.floors.last().filter(|floor| floor.number == self.floors.raised) else {
            return;
        };
        let origins = floor.seen.iter().map(|(origin, _)| origin);
        let both = VersionVector::up_to(
            origins.map(|origin| (origin, floor.seen.prefix(origin).min(self.saved.prefix(origin)))),
        );
        self.drop_covered(&both);
    }

    pub(crate) fn drop_covered(&mut self, covered: &VersionVector) {
        for (origin, chain) in &mut self.chains {
            let through = covered.prefix(*origin);
            while chain.kept.front().is_some_and(|kept| kept.last() <= through) {
                chain.drop_front();
            }
        }
    }

    /// A snapshot of the store is durable that holds these dots and knows this floor. What it holds need not be replayed,
    /// and what everybody has need not be kept.
    pub fn on_saved(&mut self, applied: &VersionVector, floor: u64) {
        self.saved.clone_from(applied);
        self.floors.forget(floor);
        self.collect();
        self.persist_base(floor);
    }

    /// Writes down in one record what all earlier ones said beside the frames still kept.
    pub(crate) fn persist_base(&mut self, floor: u64) {
        // A restart that begins at this base needs whatever is dropped from now on, until another base stands for that.
        self.chains.values_mut().for_each(|chain| chain.dropped = Some(Vec::new()));
        let heads = self.chains.values().filter_map(|chain| chain.base.map(|(signed, _)| signed)).collect();
        let base = Base { heads, ..self.decisions(floor) };
        let ticket = self.out.persist(&Record::Base(base));
        // Until it is durable a restart begins at the base before, and needs what was dropped since.
        let oldest =
            self.chains.values().filter_map(|chain| chain.kept.front()).map(|kept| kept.ticket).min();
        self.base_under_way = Some((ticket, oldest.map_or(ticket, |oldest| oldest.min(ticket))));
    }

    /// A base without heads.
    pub(crate) fn decisions(&self, floor: u64) -> Base {
        Base {
            heads: Vec::new(),
            proofs: self.chains.values().filter_map(|chain| chain.proof).collect(),
            cuts: self.chains.values().filter_map(|chain| chain.cut).collect(),
            halted: self.chains.iter().filter(|(_, chain)| chain.is_halted).map(|(o, _)| *o).collect(),
            settled: self.chains.iter().filter_map(|(o, chain)| Some((*o, chain.settled?))).collect(),
            off_branch: self.chains.iter().filter(|(_, chain)| chain.off_branch).map(|(o, _)| *o).collect(),
            floor,
            floors: self.floors.list().filter(|step| step.number() > floor).cloned().collect(),
            floor_last: self.floors.last().filter(|last| last.number <= floor).cloned(),
        }
    }

    pub(crate) fn restart_floors(&mut self, raised: u64) {
        self.floors.restart(raised);
    }

    /// The newest floor that the log committed, as far as this replica was told.
    #[must_use]
    pub fn newest_floor(&self) -> Option<&Floor> {
        self.floors.last()
    }

    // --- who withholds ---

    /// Has this peer acknowledged what was here when it was last measured? If so it is measured anew.
    pub(crate) fn note_lag(&mut self, now: Now, id: OriginId) {
        let acked = self.acked_vector();
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let none = VersionVector::new();
        let theirs = peer.ack.as_ref().map_or(&none, |ack| &ack.vector);
        peer.figures.lag_dots = count(&acked.without(theirs));
        let lacks = |(origin, chain): (&Origin, &crate::chain::Chain)| {
            chain.place(acked.prefix(*origin) + 1)
                - chain.place(theirs.prefix(*origin) + 1).min(chain.place(acked.prefix(*origin) + 1))
        };
        peer.figures.lag_frames = self.chains.iter().map(lacks).sum::<usize>() as u64;
        if peer.mark.as_ref().is_some_and(|(mark, _)| theirs.covers(mark)) {
            peer.mark = None;
            peer.is_named = false;
        }
        if peer.mark.is_none() && peer.figures.lag_dots > 0 {
            peer.mark = Some((acked, now.mono));
        }
        peer.figures.lag =
            peer.mark.as_ref().map_or(dwcp_base::Micros::ZERO, |(_, since)| now.mono.since(*since));
    }

    /// Names members whose patience is over, each once.
    pub(crate) fn name_withholders(&mut self, now: Now) {
        let active = self.active();
        let ids: Vec<OriginId> = self.peers.keys().copied().collect();
        for id in ids {
            self.note_lag(now, id);
            let Some(peer) = self.peers.get_mut(&id) else { continue };
            if peer.figures.lag >= self.timing.ack_patience && !core::mem::replace(&mut peer.is_named, true) {
                self.out.push(Action::Withholds { member: active[&id] });
            }
        }
    }

    /// Members that have not acknowledged for `ack_patience` what is here.
    pub fn withholding(&self) -> impl Iterator<Item = Origin> {
        let active = self.active();
        let named: Vec<OriginId> =
            self.peers.iter().filter(|(_, peer)| peer.is_named).map(|(id, _)| *id).collect();
        named.into_iter().filter_map(move |id| active.get(&id).copied())
    }

    /// How many members, this one included, hold an own frame durably, as far as they have said.
    #[must_use]
    pub fn held_by(&self, last: u64) -> usize {
        let others = self.peers.values().filter_map(|peer| peer.ack.as_ref());
        let here = usize::from(self.acked(self.me) >= last);
        here + others.filter(|ack| ack.vector.prefix(self.me) >= last).count()
    }

    /// The newest record, for whoever must wait until all of them are durable.
    #[must_use]
    pub fn last_ticket(&self) -> Ticket {
        self.out.last_ticket()
    }
}

fn count(vector: &VersionVector) -> u64 {
    vector.iter().flat_map(|(_, list)| list).map(|i| i.last - i.first + 1).sum()
}
