//! Replay in revision order, and the search for writers of the revisions nobody acknowledged.
//!
//! At a free revision every call of unknown outcome that could have written it is tried: first those that the replicas' log places
//! between the writers around it, if there is a log, then the most recent. What keeps this small:
//! every record in any reply says who must have written its revision and that nobody wrote the key afterwards (`Facts`); equal calls
//! are tried once; and a failure goes back straight to the last choice that could matter to it (conflict-directed backjumping,
//! Prosser 1993), not to the last choice made. The search is exact within its budget.

use super::{Floating, Hints, Order, Placed};
use crate::model::{Model, Start};
use crate::operation::{Answer, Interval, KeyValue, Operation, Target};
use crate::text::show;
use crate::verdict::{Budget, Verdict};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// What the replies say about a free revision, whoever wrote it.
#[derive(Default)]
struct Facts<'a> {
    /// Records seen with this modification revision: the writer put exactly them.
    put: Vec<&'a KeyValue>,
    /// Keys seen with this creation revision: the writer created them.
    created: BTreeSet<&'a [u8]>,
    /// Keys seen unchanged across this revision.
    untouched: HashSet<&'a [u8]>,
}

struct Candidate {
    /// Calls that no reply can tell apart share a class; one of them at a place is enough.
    class: usize,
    writes: Vec<Interval>,
    reads: Vec<Interval>,
    /// The one free revision only this call could have written.
    reserved_for: Option<u64>,
    /// Its place in the replicas' log.
    place: Option<LogPlace>,
}

type LogPlace = (u64, usize);

/// Calls that are looked at in about the time one call takes to run and compare.
const CANDIDATES_A_STEP: u64 = 8;

/// One free revision on the current path.
struct Frame {
    revision: u64,
    candidates: Vec<usize>,
    next: usize,
    chosen: Option<usize>,
    /// Earlier frames whose choice had a part in a failure since.
    conflicts: BTreeSet<usize>,
}

/// Frames to which going back might help.
type Conflicts = BTreeSet<usize>;

pub(super) struct Search<'a> {
    order: Order<'a>,
    model: Model,
    facts: BTreeMap<u64, Facts<'a>>,
    candidates: Vec<Candidate>,
    /// For each key, the revisions by which an acknowledged reply told its whole state, ascending.
    anchors: HashMap<&'a [u8], Vec<u64>>,
    /// Places in the replicas' log of acknowledged writers, by revision.
    places: BTreeMap<u64, LogPlace>,
    used: Vec<bool>,
    frames: Vec<Frame>,
    steps: u64,
    budget: Budget,
    deepest: Option<(u64, String, Vec<String>)>,
}

impl<'a> Search<'a> {
    pub(super) fn new(order: Order<'a>, start: &Start, budget: Budget, hints: &Hints) -> Self {
        let seen = Seen::gather(&order);
        let mut classes: HashMap<Operation, usize> = HashMap::new();
        let mut candidates = Vec::new();
        for floating in &order.floating {
            let operation = &floating.call.command.operation;
            let next = classes.len();
            candidates.push(Candidate {
                class: *classes.entry(seen.likeness(operation)).or_insert(next),
                writes: operation.write_footprint(),
                reads: operation.read_footprint(),
                reserved_for: None,
                place: hints.get(&floating.call.command.id).copied(),
            });
        }
        let place_of = |placed: &Placed<'_>| hints.get(&placed.call.command.id).copied();
        let places: BTreeMap<u64, LogPlace> = order
            .writers
            .iter()
            .filter_map(|(revision, placed)| Some((*revision, place_of(placed)?)))
            .collect();
        let used = vec![false; candidates.len()];
        let facts = gather(&order);
        let model = Model::new(start);
        let (frames, deepest) = (Vec::new(), None);
        let anchors = anchors(&order);
        let mut search = Self {
            order,
            model,
            facts,
            candidates,
            anchors,
            places,
            used,
            frames,
            steps: 0,
            budget,
            deepest,
        };
        search.reserve();
        search
    }

    pub(super) fn run(mut self) -> Verdict {
        let mut revision = self.order.start;
        let mut outcome = self.check_readers(revision);
        loop {
            if let Err(conflicts) = outcome {
                match self.back_up(conflicts) {
                    Some(back) => revision = back,
                    None if self.is_spent() => return Verdict::BudgetExceeded { steps: self.steps },
                    None => return self.refuted(),
                }
            }
            if self.is_spent() {
                return Verdict::BudgetExceeded { steps: self.steps };
            }
            if revision >= self.order.last {
                return Verdict::Linearizable;
            }
            revision += 1;
            let placed = match self.order.writers.get(&revision).copied() {
                Some(writer) => self.check(&writer),
                None => {
                    self.open(revision);
                    self.fill()
                }
            };
            outcome = placed.and_then(|()| self.check_readers(revision));
        }
    }

    fn is_spent(&self) -> bool {
        self.steps > self.budget.steps_max
    }

    fn refuted(self) -> Verdict {
        let (_, reason, evidence) = self.deepest.expect("a search that failed noted where");
        Verdict::violation(reason, evidence)
    }

    fn check_readers(&mut self, revision: u64) -> Result<(), Conflicts> {
        let readers = self.order.readers.get(&revision).cloned().unwrap_or_default();
        readers.iter().try_for_each(|reader| self.check(reader))
    }

    /// Runs an acknowledged call at its place and compares the reply.
    fn check(&mut self, placed: &Placed<'a>) -> Result<(), Conflicts> {
        self.steps += 1;
        let operation = &placed.call.command.operation;
        let answer = self.model.apply(operation);
        if answer.as_ref() == Ok(&placed.reply.answer) && self.model.revision() == placed.revision {
            return Ok(());
        }
        let reason = format!("the reply to {} is wrong at revision {}", placed.call.name(), placed.revision);
        let ought = answer.map_or_else(|error| format!("no answer: {error:?}"), |answer| answer.to_string());
        self.note(placed.revision, || (reason, vec![placed.call.line(), format!("it ought to be {ought}")]));
        let mut read = operation.read_footprint();
        if operation.looks_back() {
            // What it read is older than any anchor found for its own place: an interval has none.
            read.push(Interval::all());
        }
        Err(self.related(read, placed.revision, self.frames.len()))
    }

    fn note(&mut self, revision: u64, what: impl FnOnce() -> (String, Vec<String>)) {
        if self.deepest.as_ref().is_none_or(|(deepest, ..)| *deepest < revision) {
            let (reason, mut evidence) = what();
            let filled = self.frames.iter().filter(|frame| frame.chosen.is_some()).count();
            if filled > 0 {
                evidence.push(format!(
                    "with {filled} earlier revisions filled by calls of unknown outcome, in every way tried"
                ));
            }
            self.deepest = Some((revision, reason, evidence));
        }
    }

    fn open(&mut self, revision: u64) {
        let mut candidates: Vec<usize> = (0..self.candidates.len())
            .filter(|index| !self.used[*index] && self.could_write(*index, revision))
            .collect();
        let most_recent = |index: &usize| {
            let Floating { call, floor } = &self.order.floating[*index];
            std::cmp::Reverse((*floor, call.command.invoked_at_us))
        };
        // What the log places between the writers below and above; then what no log knows; then the rest.
        let chosen = self.frames.last().and_then(|frame| self.candidates[frame.chosen?].place);
        let below = self.places.range(..revision).next_back().map(|(_, place)| *place).max(chosen);
        let above = self.places.range(revision..).next().map(|(_, place)| *place);
        let by_the_log = |index: &usize| match self.candidates[*index].place {
            Some(place) if Some(place) > below && above.is_none_or(|above| place < above) => (0, place),
            None => (1, (0, 0)),
            Some(_) => (2, (0, 0)),
        };
        candidates.sort_by_key(|index| (by_the_log(index), most_recent(index)));
        let mut classes = HashSet::new();
        candidates.retain(|index| classes.insert(self.candidates[*index].class));
        self.frames.push(Frame { revision, candidates, next: 0, chosen: None, conflicts: BTreeSet::new() });
    }

    /// Fills the topmost frame with its next candidate that fits, or takes the frame away.
    fn fill(&mut self) -> Result<(), Conflicts> {
        let top = self.frames.len() - 1;
        let revision = self.frames[top].revision;
        while let Some(index) = self.frames[top].candidates.get(self.frames[top].next).copied() {
            self.frames[top].next += 1;
            self.steps += 1;
            let operation = &self.order.floating[index].call.command.operation;
            let applied = self.model.apply(operation).is_ok();
            if applied && self.model.revision() == revision && self.facts_hold(revision) {
                self.frames[top].chosen = Some(index);
                self.used[index] = true;
                return Ok(());
            }
            self.model.rewind(revision - 1);
            let Candidate { reads, writes, .. } = &self.candidates[index];
            let footprint = reads.iter().chain(writes).cloned().collect();
            let conflicts = self.related(footprint, revision, top);
            self.frames[top].conflicts.extend(conflicts);
            if self.is_spent() {
                break;
            }
        }
        self.note_unfilled(revision);
        let tried: HashSet<usize> =
            self.frames[top].candidates.iter().map(|index| self.candidates[*index].class).collect();
        // A call used earlier might have done better here.
        let takers = (0..top).filter(|earlier| {
            let taken = self.frames[*earlier].chosen.expect("only the topmost frame may be unfilled");
            !tried.contains(&self.candidates[taken].class) && self.could_write(taken, revision)
        });
        let takers: Vec<usize> = takers.collect();
        let frame = self.frames.pop().expect("the topmost frame was just looked at");
        let mut conflicts = frame.conflicts;
        conflicts.extend(takers);
        Err(conflicts)
    }

    fn note_unfilled(&mut self, revision: u64) {
        let reason = format!(
            "revision {revision} has no acknowledged writer, and no call of unknown outcome fits there"
        );
        let mut evidence = Vec::new();
        if let Some(facts) = self.facts.get(&revision) {
            evidence
                .extend(facts.put.iter().map(|record| format!("replies show it as the writer of {record}")));
            evidence.extend(
                facts.created.iter().map(|key| format!("replies show it as the creator of {}", show(key))),
            );
        }
        evidence.truncate(4);
        self.note(revision, || (reason, evidence));
    }

    /// Goes back to the latest of the conflicting choices that still has an alternative. None: there is no way left.
    fn back_up(&mut self, mut conflicts: Conflicts) -> Option<u64> {
        while let Some(top) = conflicts.pop_last() {
            if self.is_spent() {
                return None;
            }
            for frame in self.frames.drain(top + 1..) {
                self.used[frame.chosen.expect("only the topmost frame may be unfilled")] = false;
            }
            let frame = &mut self.frames[top];
            frame.conflicts.append(&mut conflicts);
            self.used[frame.chosen.take().expect("a frame in conflict had been filled")] = false;
            let revision = frame.revision;
            self.model.rewind(revision - 1);
            match self.fill().and_then(|()| self.check_readers(revision)) {
                Ok(()) => return Some(revision),
                Err(more) => conflicts = more,
            }
        }
        None
    }

    /// Of the first `frames_max` frames, those where some choice could change what stands in the footprint by `revision`. Calls of
    /// unknown outcome carry influence from what they compare to what they write; acknowledged ones do not, their replies are fixed.
    fn related(&mut self, mut footprint: Vec<Interval>, revision: u64, frames_max: usize) -> Conflicts {
        if frames_max == 0 || footprint.is_empty() {
            return BTreeSet::new();
        }
        let touches = |writes: &[Interval], footprint: &[Interval]| {
            writes.iter().any(|write| footprint.iter().any(|read| read.overlaps(write)))
        };
        let mut anchor = footprint.iter().map(|read| self.anchor(read, revision)).min().unwrap_or(0);
        let mut inside = vec![false; self.candidates.len()];
        loop {
            // The budget is one of time, and this looks at every call of unknown outcome.
            self.steps += 1 + self.candidates.len() as u64 / CANDIDATES_A_STEP;
            let mut grown = false;
            for (index, candidate) in self.candidates.iter().enumerate() {
                let early = self.order.floating[index].floor < revision;
                if early && !inside[index] && touches(&candidate.writes, &footprint) {
                    inside[index] = true;
                    let fresh = candidate.reads.iter().filter(|read| !footprint.contains(read));
                    let fresh: Vec<Interval> = fresh.cloned().collect();
                    if !fresh.is_empty() {
                        (grown, anchor) = (true, 0);
                    }
                    footprint.extend(fresh);
                }
            }
            if !grown {
                break;
            }
        }
        // Below the anchor a choice matters only by having used up a call that could stand above it.
        let above = self.frames[..frames_max].partition_point(|frame| frame.revision <= anchor);
        let could_rise = |frame: &Frame| {
            let taken = frame.chosen.filter(|taken| inside[*taken]);
            let places = &self.frames[above..];
            taken.is_some_and(|taken| places.iter().any(|place| self.could_write(taken, place.revision)))
        };
        let matters = |place: &usize| match &self.frames[*place] {
            frame if *place < above => could_rise(frame),
            frame => frame.candidates.iter().any(|index| inside[*index]),
        };
        (0..frames_max).filter(matters).collect()
    }

    /// The latest revision below `revision` by which the state of all that is read was told, so that it does not depend on any
    /// choice made up to there.
    fn anchor(&self, read: &Interval, revision: u64) -> u64 {
        let told = self.anchors.get(read.key.as_slice()).filter(|_| read.is_single());
        told.map_or(0, |told| {
            let before = told.partition_point(|at| *at < revision);
            told[..before].last().copied().unwrap_or(0)
        })
    }

    /// What can be said without knowing the state: real time, reservation, and the facts about single keys.
    fn could_write(&self, index: usize, revision: u64) -> bool {
        let candidate = &self.candidates[index];
        let operation = &self.order.floating[index].call.command.operation;
        if self.order.floating[index].floor >= revision
            || candidate.reserved_for.is_some_and(|at| at != revision)
        {
            return false;
        }
        let Some(facts) = self.facts.get(&revision) else { return true };
        let touches = match operation {
            Operation::Put { key, .. } => facts.untouched.contains(key.as_slice()),
            _ => false,
        };
        !touches
            && facts.put.iter().all(|record| puts(operation, &record.key, Some(record)))
            && facts.created.iter().all(|key| puts(operation, key, None))
    }

    /// Does the revision just written agree with what the replies say about it?
    fn facts_hold(&self, revision: u64) -> bool {
        let Some(facts) = self.facts.get(&revision) else { return true };
        let changed = self.model.last_changed();
        !changed.iter().any(|key| facts.untouched.contains(key.as_slice()))
            && facts.put.iter().all(|record| self.model.latest(&record.key) == Some(record))
            && facts
                .created
                .iter()
                .all(|key| self.model.latest(key).is_some_and(|record| record.create_revision == revision))
    }

    fn reserve(&mut self) {
        let gaps: Vec<u64> = self.facts.keys().copied().collect();
        for revision in gaps {
            if self.facts[&revision].put.is_empty() && self.facts[&revision].created.is_empty() {
                continue;
            }
            let mut able = (0..self.candidates.len()).filter(|index| self.could_write(*index, revision));
            if let (Some(only), None) = (able.next(), able.next()) {
                self.candidates[only].reserved_for = Some(revision);
            }
        }
    }
}

fn anchors<'a>(order: &Order<'a>) -> HashMap<&'a [u8], Vec<u64>> {
    let mut anchors: HashMap<&'a [u8], Vec<u64>> = HashMap::new();
    if order.floating.is_empty() {
        return anchors;
    }
    for placed in order.writers.values().chain(order.readers.values().flatten()) {
        match &placed.call.command.operation {
            Operation::Range { over, revision: 0, .. } if over.is_single() => {
                anchors.entry(&over.key).or_default().push(placed.revision);
            }
            Operation::Put { key, want_prev: true, .. } => {
                anchors.entry(key).or_default().push(placed.revision)
            }
            _ => {}
        }
    }
    anchors.values_mut().for_each(|told| told.sort_unstable());
    anchors
}

/// What anybody ever saw or compared of values.
struct Seen<'a> {
    values: HashSet<&'a [u8]>,
    compared: HashSet<&'a Interval>,
}

impl<'a> Seen<'a> {
    fn gather(order: &Order<'a>) -> Self {
        let mut seen = Self { values: HashSet::new(), compared: HashSet::new() };
        if order.floating.is_empty() {
            return seen;
        }
        let mut records = Vec::new();
        for placed in order.writers.values().chain(order.readers.values().flatten()) {
            placed.reply.answer.records(&placed.call.command.operation, &mut records);
            seen.values.extend(records.drain(..).map(|(record, _)| record.value.as_slice()));
            seen.compares(&placed.call.command.operation);
        }
        for floating in &order.floating {
            seen.compares(&floating.call.command.operation);
        }
        seen
    }

    fn compares(&mut self, operation: &'a Operation) {
        if let Operation::Txn { compares, then, otherwise } = operation {
            let of_values = compares.iter().filter(|compare| matches!(compare.target, Target::Value(_)));
            self.compared.extend(of_values.map(|compare| &compare.over));
            then.iter().chain(otherwise).for_each(|inner| self.compares(inner));
        }
    }

    /// The operation without what nobody saw: a value that no reply shows and no comparison meets is as good as any other such
    /// value. It becomes a put of nothing with a previous record wanted, which is otherwise cleared, so the two cannot be mixed up.
    fn likeness(&self, operation: &Operation) -> Operation {
        match operation {
            Operation::Put { key, value, lease, .. } => {
                let is_seen = self.values.contains(value.as_slice())
                    || self.compared.iter().any(|interval| interval.contains(key));
                let value = if is_seen { value.clone() } else { Vec::new() };
                Operation::Put { key: key.clone(), value, lease: *lease, want_prev: !is_seen }
            }
            Operation::Txn { compares, then, otherwise } => {
                let all = |branch: &[Operation]| branch.iter().map(|inner| self.likeness(inner)).collect();
                Operation::Txn { compares: compares.clone(), then: all(then), otherwise: all(otherwise) }
            }
            Operation::DeleteRange { over, .. } => {
                Operation::DeleteRange { over: over.clone(), want_prev: false }
            }
            Operation::Range { .. } | Operation::LeaseRevoke { .. } | Operation::Opaque(_) => {
                operation.clone()
            }
        }
    }
}

/// Is there, in any branch, a put to this key (of this value and lease)?
fn puts(operation: &Operation, wanted: &[u8], record: Option<&KeyValue>) -> bool {
    match operation {
        Operation::Put { key, value, lease, .. } => {
            key == wanted && record.is_none_or(|record| *value == record.value && *lease == record.lease)
        }
        Operation::Txn { then, otherwise, .. } => {
            then.iter().chain(otherwise).any(|inner| puts(inner, wanted, record))
        }
        Operation::Range { .. }
        | Operation::DeleteRange { .. }
        | Operation::LeaseRevoke { .. }
        | Operation::Opaque(_) => false,
    }
}

/// Reads the facts about free revisions off all acknowledged replies. They are conditions every explanation must meet.
fn gather<'a>(order: &Order<'a>) -> BTreeMap<u64, Facts<'a>> {
    let mut facts: BTreeMap<u64, Facts<'a>> = BTreeMap::new();
    let gaps = (order.last - order.start) as usize - order.writers.len();
    if gaps == 0 {
        return facts;
    }
    let free = (order.start + 1..=order.last).filter(|revision| !order.writers.contains_key(revision));
    facts.extend(free.map(|revision| (revision, Facts::default())));
    let mut distinct: HashMap<&'a KeyValue, u64> = HashMap::new();
    let mut records = Vec::new();
    for placed in order.writers.values().chain(order.readers.values().flatten()) {
        let answer: &'a Answer = &placed.reply.answer;
        let operation: &'a Operation = &placed.call.command.operation;
        answer.records(operation, &mut records);
        // Inside a writer's reply a record may show the state before the writer.
        let seen_at = placed.revision - u64::from(placed.is_writer);
        for (record, at) in records.drain(..) {
            let seen_at = at.unwrap_or(seen_at).min(placed.revision);
            let until = distinct.entry(record).or_insert(seen_at);
            *until = seen_at.max(*until);
        }
    }
    for (record, until) in distinct {
        if let Some(facts) = facts.get_mut(&record.mod_revision) {
            facts.put.push(record);
        }
        if let Some(facts) = facts.get_mut(&record.create_revision) {
            facts.created.insert(&record.key);
        }
        if record.mod_revision < until {
            for (_, facts) in facts.range_mut(record.mod_revision + 1..=until) {
                facts.untouched.insert(&record.key);
            }
        }
    }
    facts
}
