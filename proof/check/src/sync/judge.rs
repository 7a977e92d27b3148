//! Goes through the notes of one run in the order they were taken, and says what was not as it should be.

use super::end::{Place, Stand, Tally, tally};
use super::model::{Frame, Model, Plan, in_order};
use super::{Applied, Origin, Plain, Rule, View, Write};
use crate::verdict::{Findings, Judge};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// What came of a user's request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A frame with these counters, at this moment of its writer's clock.
    Made { origin: Origin, branch: u32, first: u64, last: u64, clock: u64 },
    /// There was nothing to do.
    Nothing,
    /// The values that are there do not allow it.
    Refused,
}

/// One thing that was seen to happen. Nodes are told apart by number; a lost disk gives its node a new origin.
#[derive(Clone, Debug)]
pub enum Note {
    /// Somebody who had applied this asked its store for that.
    Asked { node: u32, seen: Rc<Applied>, writes: Vec<Write>, outcome: Outcome },
    /// The user was told that changes up to this one are durable.
    Acknowledged { origin: Origin, last: u64 },
    /// A frame that ends here was put in line, to be applied.
    Taken { node: u32, origin: Origin, last: u64 },
    /// The node holds a proof that this origin signed two histories.
    Froze { node: u32, origin: Origin, at_us: u64 },
    /// The node was told where an origin ends.
    Ended { node: u32, origin: Origin, last: u64 },
    /// An exchange ended.
    Exchanged { node: u32, with: u32, at_us: u64 },
    /// A node came back from its disk: how far it has written, and whom it holds proofs against.
    Opened { node: u32, origin: Origin, last: u64, frozen: Vec<Origin> },
    /// The disk of this origin is gone.
    Wiped { origin: Origin },
    /// What a node showed at some moment: all keys asked for, and its count of conflicts if that was asked for.
    Cut { node: u32, applied: Applied, views: Vec<(Vec<u8>, Option<View>)>, conflicts: Option<u64> },
    /// An audit named keys that two nodes hold differently, or one differently from what it wrote.
    Differs { node: u32, with: u32, keys: Vec<Vec<u8>> },
    /// A key changed by itself on this node.
    Damaged { node: u32, key: Vec<u8> },
    /// A node put another state of these keys in place of its own.
    Repaired { node: u32, keys: Vec<Vec<u8>> },
    /// The user was told that the log has changes up to this one: they outlive the disk of their writer.
    Logged { origin: Origin, last: u64 },
    /// A node knows this floor as the newest that the log committed. What it covers, the members it speaks of, and what
    /// each honest one of them was known to hold at that moment; of one that is down what it held when it went.
    Floor { node: u32, number: u64, covers: Applied, members: Vec<Origin>, holds: Vec<(Origin, Applied)> },
    /// A node executed the decision, the so many-th, that an origin ends with this change. How each honest node, as far
    /// as it is known, stood with that origin when the first heard of it; of one whose disk is gone, how it stood then.
    Decided { node: u32, nth: u64, origin: Origin, place: Place, stands: Vec<Stand> },
    /// How a node stands when the calm is over.
    End { node: u32, applied: Applied, digest: [u8; 32], floor: u64, waiting: u64, needs: u64 },
}

/// What the judge is told about a run.
#[derive(Clone, Debug, Default)]
pub struct Terms {
    /// Nodes in all, how many of them may lie, and how many decide an end. Where none do: 0.
    pub nodes: u32,
    pub faults: u32,
    pub quorum: u32,
    /// Nodes that lie.
    pub liars: BTreeSet<u32>,
    /// How registers below a prefix are read.
    pub rules: Vec<(Vec<u8>, Rule)>,
    /// From then on nothing is lost and nobody dies; messages take half of `slack_us` at most.
    pub calm_at_us: u64,
    pub slack_us: u64,
}

/// What was applied, and what the model makes of it: values by key, and the count of conflicts.
type Memo = (Applied, BTreeMap<Vec<u8>, Option<View>>, Option<u64>);

#[derive(Debug)]
struct Court<'a> {
    terms: &'a Terms,
    model: Model,
    findings: Findings,
    /// By origin and first counter: branch and last counter.
    frames: BTreeMap<(Origin, u64, u32), u64>,
    acknowledged: BTreeMap<Origin, u64>,
    logged: BTreeMap<Origin, u64>,
    /// By number: what the floor covers.
    floors: BTreeMap<u64, Applied>,
    /// In their order.
    decided: BTreeMap<u64, (Origin, Place)>,
    wiped: BTreeSet<Origin>,
    /// Nodes and their keys that changed by themselves, and whether they were put right. A difference may be named after that:
    /// what was compared was on its way.
    damaged: BTreeMap<(u32, Vec<u8>), bool>,
    ended: BTreeMap<Origin, u64>,
    /// Who froze whom, and when.
    frozen: BTreeMap<(u32, Origin), u64>,
    /// Where a node was told that an origin ends.
    told: BTreeSet<(u32, Origin)>,
    /// Who must have frozen whom by when, after an exchange with somebody who had.
    due: Vec<(u32, u32, Origin, u64)>,
    /// What the model said last, for many that have applied the same.
    memo: Option<Memo>,
    first_end: Option<(u32, Applied, [u8; 32], u64)>,
    /// Nodes whose stand at the end of the calm is known.
    stood: BTreeSet<u32>,
}

/// Judges one run.
#[must_use]
pub fn judge(notes: &[Note], terms: &Terms) -> Findings {
    let mut court = Court {
        terms,
        model: Model::new(&terms.rules, has_voids(notes)),
        findings: Findings::default(),
        frames: BTreeMap::new(),
        acknowledged: BTreeMap::new(),
        logged: BTreeMap::new(),
        floors: BTreeMap::new(),
        decided: BTreeMap::new(),
        wiped: BTreeSet::new(),
        damaged: BTreeMap::new(),
        ended: BTreeMap::new(),
        frozen: BTreeMap::new(),
        told: BTreeSet::new(),
        due: Vec::new(),
        memo: None,
        first_end: None,
        stood: BTreeSet::new(),
    };
    notes.iter().for_each(|note| court.hear(note));
    court.close();
    court.findings
}

/// Did somebody do something that was decided not to count?
fn has_voids(notes: &[Note]) -> bool {
    let ends = notes.iter().filter_map(|note| match note {
        Note::Ended { origin, last, .. } => Some((*origin, *last)),
        _ => None,
    });
    let ends: BTreeMap<Origin, u64> = ends.collect();
    notes.iter().any(|note| match note {
        Note::Asked { outcome: Outcome::Made { origin, branch, last, .. }, .. } => {
            *branch != 0 || ends.get(origin).is_some_and(|end| last > end)
        }
        _ => false,
    })
}

impl Court<'_> {
    fn is_honest(&self, origin: Origin) -> bool {
        !self.terms.liars.contains(&origin.id)
    }

    fn hear(&mut self, note: &Note) {
        match note {
            Note::Asked { node, seen, writes, outcome } => self.on_asked(*node, seen, writes, *outcome),
            Note::Acknowledged { origin, last } => {
                let most = self.acknowledged.entry(*origin).or_default();
                *most = (*most).max(*last);
            }
            Note::Taken { node, origin, last } => {
                let is_frozen = self.frozen.contains_key(&(*node, *origin));
                if is_frozen && !self.told.contains(&(*node, *origin)) {
                    let reason = format!(
                        "node {node} took change {last} of {origin:?} though it holds a proof against it and no end was decided"
                    );
                    self.findings.push(Judge::SyncFrozen, reason, vec![]);
                }
            }
            Note::Froze { node, origin, at_us } => {
                self.frozen.entry((*node, *origin)).or_insert(*at_us);
                if self.is_honest(*origin) {
                    let reason = format!("node {node} convicts {origin:?}, who is honest");
                    self.findings.push(Judge::SyncFrozen, reason, vec![]);
                }
            }
            Note::Ended { node, origin, last } => {
                self.told.insert((*node, *origin));
                let other = self.ended.insert(*origin, *last).filter(|other| other != last);
                if let Some(other) = other {
                    let reason = format!("{origin:?} ends at {last} and at {other}");
                    self.findings.push(Judge::SyncConverge, reason, vec![]);
                }
            }
            Note::Exchanged { node, with, at_us } => self.on_exchanged(*node, *with, *at_us),
            Note::Opened { node, origin, last, frozen } => self.on_opened(*node, *origin, *last, frozen),
            Note::Wiped { origin } => {
                self.wiped.insert(*origin);
            }
            Note::Cut { node, applied, views, conflicts } => {
                self.on_cut(*node, applied, views, *conflicts);
            }
            Note::Differs { node, with, keys } => {
                let is_damaged = |key: &&Vec<u8>| {
                    [node, with].iter().any(|node| self.damaged.contains_key(&(**node, (*key).clone())))
                };
                let keys: Vec<String> =
                    keys.iter().filter(|k| !is_damaged(k)).map(|key| shown(key)).collect();
                if !keys.is_empty() {
                    let reason = format!(
                        "nodes {node} and {with} have applied the same and hold {keys:?} differently"
                    );
                    self.findings.push(Judge::SyncConverge, reason, vec![]);
                }
            }
            Note::Damaged { node, key } => {
                self.damaged.insert((*node, key.clone()), false);
            }
            Note::Repaired { node, keys } => {
                for key in keys {
                    let is_mended = self.damaged.get_mut(&(*node, key.clone()));
                    if is_mended.is_some_and(|is_mended| !core::mem::replace(is_mended, true)) {
                        continue;
                    }
                    let reason =
                        format!("node {node} gave up its state of {:?}, which was right", shown(key));
                    self.findings.push(Judge::SyncConverge, reason, vec![]);
                }
            }
            Note::Logged { origin, last } => {
                let most = self.logged.entry(*origin).or_default();
                *most = (*most).max(*last);
            }
            Note::Floor { node, number, covers, members, holds } => {
                self.on_floor(*node, *number, covers, members, holds);
            }
            Note::Decided { node, nth, origin, place, stands } => {
                self.on_decided(*node, *nth, *origin, *place, stands);
            }
            Note::End { node, applied, digest, floor, waiting, needs } => {
                self.on_end(*node, applied, *digest, *floor, *waiting, *needs);
            }
        }
    }

    fn on_asked(&mut self, node: u32, seen: &Rc<Applied>, writes: &[Write], outcome: Outcome) {
        // Whoever is refused, or has nothing to do, writes a frame that holds nothing.
        let nobody = Origin { id: u32::MAX, incarnation: 0 };
        let frame = match outcome {
            Outcome::Made { origin, branch, first, last, clock } => {
                Frame { origin, branch, first, last, clock }
            }
            Outcome::Nothing | Outcome::Refused => {
                Frame { origin: nobody, branch: 0, first: 1, last: u64::MAX - 1, clock: u64::MAX }
            }
        };
        if !self.terms.liars.contains(&node)
            && let Outcome::Made { origin, first, clock, .. } = outcome
            && let Some((latest, dot)) = self.model.latest(seen)
            && latest >= clock
        {
            let reason = format!("{origin:?}:{first} is no later than {dot:?}, which its writer had seen");
            self.findings.push(Judge::SyncClock, reason, vec![]);
        }
        let plans = self.model.write(&frame, seen, writes);
        let is_refused = plans.contains(&Plan::Refused);
        let changes = plans.iter().filter(|plan| **plan == Plan::Change).count() as u64;
        let told = |model: &str| {
            (format!("node {node} asks, gets {outcome:?}, and {model}"), vec![format!("{writes:?}")])
        };
        let wrong = match outcome {
            Outcome::Refused => (!is_refused).then_some("nothing forbids it"),
            Outcome::Nothing => (changes > 0 || is_refused).then_some("there was something to do"),
            Outcome::Made { .. } if is_refused => Some("it should have been refused"),
            Outcome::Made { first, last, .. } => {
                (changes != last + 1 - first).then_some("it comes to another number of changes")
            }
        };
        if let Some(wrong) = wrong {
            let (reason, evidence) = told(wrong);
            self.findings.push(Judge::SyncValue, reason, evidence);
        }
        if let Outcome::Made { origin, branch, first, last, .. } = outcome {
            self.frames.insert((origin, first, branch), last);
        }
        self.memo = None;
    }

    /// Whoever exchanges with somebody who knew before it began learns of it in that exchange.
    fn on_exchanged(&mut self, node: u32, with: u32, at_us: u64) {
        let slack = self.terms.slack_us;
        if at_us < self.terms.calm_at_us + slack || self.terms.liars.contains(&with) {
            return;
        }
        let known = self.frozen.iter().filter(|((who, _), since)| *who == with && **since + slack < at_us);
        let known: Vec<Origin> = known.map(|((_, origin), _)| *origin).collect();
        for origin in known {
            let is_told = |who| self.told.contains(&(who, origin));
            if !is_told(node) && !is_told(with) && !self.terms.liars.contains(&node) {
                self.due.push((node, with, origin, at_us + slack));
            }
        }
    }

    fn on_opened(&mut self, node: u32, origin: Origin, last: u64, frozen: &[Origin]) {
        let acknowledged = self.acknowledged.get(&origin).copied().unwrap_or(0);
        if last < acknowledged && !self.wiped.contains(&origin) {
            let reason = format!(
                "{origin:?} had acknowledged its change {acknowledged} and comes back from its disk with {last}"
            );
            self.findings.push(Judge::SyncLost, reason, vec![]);
        }
        self.frozen.retain(|(who, whom), _| *who != node || frozen.contains(whom));
        self.model.forget_after(origin, last);
        self.frames.retain(|(who, first, _), _| *who != origin || *first <= last);
        self.memo = None;
    }

    fn on_cut(
        &mut self,
        node: u32,
        applied: &Applied,
        views: &[(Vec<u8>, Option<View>)],
        conflicts: Option<u64>,
    ) {
        for ((origin, first, branch), last) in &self.frames {
            let is_other = *branch != 0 && applied.branches.get(origin) != Some(branch);
            let there = applied.count(*origin, *first, *last);
            if !is_other && there != 0 && there != last + 1 - first {
                let reason =
                    format!("node {node} has applied {there} changes of the frame {origin:?}:{first}-{last}");
                self.findings.push(Judge::SyncWhole, reason, vec![]);
                break;
            }
        }
        if self.memo.as_ref().is_none_or(|(at, ..)| at != applied) {
            self.memo = Some((applied.clone(), BTreeMap::new(), None));
        }
        let (_, known, counted) = self.memo.as_mut().expect("just set");
        for (key, view) in views {
            let expected = known.entry(key.clone()).or_insert_with(|| self.model.view(key, applied));
            let is_joined = self.model.rule(key) == Rule::Merge;
            let is_same = if is_joined { normal(view) == normal(expected) } else { view == expected };
            if !is_same {
                let reason = format!("node {node} shows another value of {}", shown(key));
                let mut evidence = vec![format!("shown    {view:?}"), format!("expected {expected:?}")];
                evidence.extend(self.model.story(key, applied));
                self.findings.push(Judge::SyncValue, reason, evidence);
            }
        }
        if let Some(conflicts) = conflicts {
            let expected = *counted.get_or_insert_with(|| self.model.conflicts(applied));
            if conflicts != expected {
                let reason = format!("node {node} counts {conflicts} conflicts; there were {expected}");
                self.findings.push(Judge::SyncConflict, reason, vec![]);
            }
        }
    }

    /// Everybody it speaks of holds what a floor covers, when the first node hears of it; and one number is one floor.
    fn on_floor(
        &mut self,
        node: u32,
        number: u64,
        covers: &Applied,
        members: &[Origin],
        holds: &[(Origin, Applied)],
    ) {
        if let Some(known) = self.floors.get(&number) {
            if known != covers {
                let reason = format!("floor {number} is another one at node {node} than elsewhere");
                self.findings.push(
                    Judge::SyncFloor,
                    reason,
                    vec![format!("{known:?}"), format!("{covers:?}")],
                );
            }
        } else {
            self.floors.insert(number, covers.clone());
        }
        for (member, held) in holds.iter().filter(|(member, _)| members.contains(member)) {
            let lacks = |(origin, list): &(&Origin, &Vec<(u64, u64)>)| {
                list.iter().any(|(first, last)| held.count(**origin, *first, *last) < last + 1 - first)
            };
            let lacking: Vec<String> = covers
                .dots
                .iter()
                .filter(lacks)
                .map(|(origin, list)| format!("{origin:?}:{list:?}"))
                .collect();
            if !lacking.is_empty() {
                let reason =
                    format!("floor {number} covers what {member:?} does not hold: {}", lacking.join(", "));
                self.findings.push(Judge::SyncFloor, reason, vec![format!("{held:?}")]);
            }
        }
    }

    /// All hear the same ends in the same order, and each origin ends once.
    fn on_decided(&mut self, node: u32, nth: u64, origin: Origin, place: Place, stands: &[Stand]) {
        if let Some((known, at)) = self.decided.get(&nth) {
            if (*known, *at) != (origin, place) {
                let last = place.last;
                let reason = format!(
                    "node {node} hears as end {nth} that {origin:?} ends at {last}, others that {known:?} ends at {}",
                    at.last
                );
                self.findings.push(Judge::SyncEnd, reason, vec![]);
            }
        } else if let Some((before, (_, at))) = self.decided.iter().find(|(_, (known, _))| *known == origin) {
            let reason =
                format!("{origin:?} ends at {} as end {before}, and at {} as end {nth}", at.last, place.last);
            self.findings.push(Judge::SyncEnd, reason, vec![]);
        }
        self.decided.entry(nth).or_insert((origin, place));
        self.look_at_end(origin, place, stands);
    }

    /// A quorum has stopped applying frames of the origin, liars counted in favour. Of the honest ones more than may lie come to
    /// the end by frames alone: so many offer the same store to those who cannot, and it is believed. Who is convicted is
    /// known, and of the others one fewer may lie.
    fn look_at_end(&mut self, origin: Origin, place: Place, stands: &[Stand]) {
        let Tally { halted, ready } = tally(place, stands);
        let count = |all: usize| u32::try_from(all).expect("few nodes");
        let unknown = self.terms.nodes.saturating_sub(count(stands.len()));
        let unknown_honest = unknown.saturating_sub(count(self.terms.liars.len()));
        let convicted: BTreeSet<u32> =
            self.frozen.keys().map(|(_, liar)| liar.id).filter(|id| self.terms.liars.contains(id)).collect();
        let needed = self.terms.faults.saturating_sub(count(convicted.len())) + 1;
        let demands = [
            (halted, unknown, self.terms.quorum, "apply nothing more of it"),
            (ready, unknown_honest, needed, "of these have all of it and applied nothing after it"),
        ];
        for (count, unknown, needed, what) in demands {
            if count + unknown < needed {
                let reason = format!(
                    "{origin:?} ends at {place:?}: {count} honest nodes {what}, {unknown} more may, {needed} had to"
                );
                let where_all = stands.iter().map(|stand| format!("{} at {:?}", stand.node, stand.place()));
                self.findings.push(Judge::SyncEnd, reason, where_all.collect());
            }
        }
    }

    fn on_end(
        &mut self,
        node: u32,
        applied: &Applied,
        digest: [u8; 32],
        floor: u64,
        waiting: u64,
        needs: u64,
    ) {
        self.stood.insert(node);
        let is_lost = |(origin, last): &(&Origin, &u64)| {
            let allowed = self.wiped.contains(origin);
            let end = self.ended.get(origin).filter(|_| allowed).copied().unwrap_or(u64::MAX);
            let due = end.min(**last);
            self.is_honest(**origin) && applied.count(**origin, 1, due) < due
        };
        let lost: Vec<String> = self
            .acknowledged
            .iter()
            .filter(is_lost)
            .map(|(origin, last)| format!("{origin:?}:{last}"))
            .collect();
        if !lost.is_empty() {
            let reason = format!("node {node} lacks acknowledged changes: up to {}", lost.join(", "));
            self.findings.push(Judge::SyncLost, reason, vec![format!("{applied:?}")]);
        }
        let is_lost = |(origin, last): &(&Origin, &u64)| {
            self.is_honest(**origin) && applied.count(**origin, 1, **last) < **last
        };
        let lost: Vec<String> =
            self.logged.iter().filter(is_lost).map(|(origin, last)| format!("{origin:?}:{last}")).collect();
        if !lost.is_empty() {
            let reason = format!("node {node} lacks changes that the log had: up to {}", lost.join(", "));
            self.findings.push(Judge::SyncLost, reason, vec![format!("{applied:?}")]);
        }
        if waiting > 0 || needs > 0 {
            let reason = format!("node {node} still holds back {waiting} frames and needs {needs} snapshots");
            self.findings.push(Judge::SyncConverge, reason, vec![]);
        }
        let Some((first, theirs, their_digest, their_floor)) = &self.first_end else {
            self.first_end = Some((node, applied.clone(), digest, floor));
            return;
        };
        let what = if theirs != applied {
            "applied different changes"
        } else if *their_floor != floor {
            "know different floors"
        } else if *their_digest != digest {
            "applied the same and have different digests"
        } else {
            return;
        };
        let evidence = vec![format!("{theirs:?} floor {their_floor}"), format!("{applied:?} floor {floor}")];
        self.findings.push(Judge::SyncConverge, format!("nodes {first} and {node} {what}"), evidence);
    }

    /// Where the log decides ends, whoever was convicted by one honest node has ended for all of them when the calm is over.
    fn look_at_convicts(&mut self) {
        if self.terms.quorum == 0 {
            return;
        }
        let convicts: BTreeSet<Origin> = self.frozen.keys().map(|(_, origin)| *origin).collect();
        for origin in convicts {
            let untold: Vec<u32> =
                self.stood.iter().copied().filter(|node| !self.told.contains(&(*node, origin))).collect();
            if !untold.is_empty() {
                let reason =
                    format!("{origin:?} is convicted, and nodes {untold:?} were told of no end of it");
                self.findings.push(Judge::SyncEnd, reason, vec![]);
            }
        }
    }

    fn close(&mut self) {
        self.look_at_convicts();
        for (node, with, origin, until_us) in std::mem::take(&mut self.due) {
            let is_frozen = self.frozen.get(&(node, origin)).is_some_and(|at_us| *at_us <= until_us);
            // A decision that came meanwhile makes the proof old news.
            if !is_frozen && !self.told.contains(&(node, origin)) {
                let reason = format!(
                    "node {node} exchanged with node {with}, which held a proof against {origin:?}, and did not freeze it"
                );
                self.findings.push(Judge::SyncFrozen, reason, vec![]);
            }
        }
    }
}

/// JSON with its fields in one order.
fn normal(view: &Option<View>) -> Option<View> {
    match view {
        Some(View::Register(Plain::Json(text))) => {
            let value = serde_json::from_str::<serde_json::Value>(text);
            let text = value.map_or_else(|_| text.clone(), |value| in_order(value).to_string());
            Some(View::Register(Plain::Json(text)))
        }
        other => other.clone(),
    }
}

fn shown(key: &[u8]) -> String {
    String::from_utf8_lossy(key).into_owned()
}

#[cfg(test)]
mod tests {
    use super::super::Operation;
    use super::*;

    const A: Origin = Origin { id: 1, incarnation: 0 };

    fn put(first: u64, clock: u64) -> Note {
        let operation = Operation::Put(Plain::Bytes(vec![1]));
        let dots = if first > 1 { BTreeMap::from([(A, vec![(1, first - 1)])]) } else { BTreeMap::new() };
        Note::Asked {
            node: 1,
            seen: Rc::new(Applied { dots, branches: BTreeMap::new() }),
            writes: vec![Write { key: b"k".to_vec(), path: vec![], operation }],
            outcome: Outcome::Made { origin: A, branch: 0, first, last: first, clock },
        }
    }

    fn applied(last: u64) -> Applied {
        Applied { dots: BTreeMap::from([(A, vec![(1, last)])]), branches: BTreeMap::new() }
    }

    fn end(node: u32, last: u64, digest: u8) -> Note {
        Note::End { node, applied: applied(last), digest: [digest; 32], floor: 0, waiting: 0, needs: 0 }
    }

    fn found(notes: &[Note]) -> Vec<Judge> {
        judge(notes, &Terms::default()).iter().map(|finding| finding.judge).collect()
    }

    #[test]
    fn a_run_in_which_all_is_well_has_no_findings() {
        let view = Some(View::Register(Plain::Bytes(vec![1])));
        let cut = Note::Cut {
            node: 2,
            applied: applied(2),
            views: vec![(b"k".to_vec(), view)],
            conflicts: Some(0),
        };
        let notes = [
            put(1, 5),
            Note::Acknowledged { origin: A, last: 1 },
            put(2, 6),
            cut,
            end(1, 2, 1),
            end(2, 2, 1),
        ];
        assert_eq!(found(&notes), []);
    }

    #[test]
    fn each_judge_finds_its_own() {
        let acknowledged = Note::Acknowledged { origin: A, last: 2 };
        let opened = |last| Note::Opened { node: 1, origin: A, last, frozen: vec![] };
        assert_eq!(found(&[put(1, 5), put(2, 5)]), [Judge::SyncClock]);
        assert_eq!(found(&[put(1, 5), put(2, 6), acknowledged.clone(), opened(1)]), [Judge::SyncLost]);
        assert_eq!(found(&[put(1, 5), put(2, 6), acknowledged, end(1, 1, 1)]), [Judge::SyncLost]);
        assert_eq!(found(&[put(1, 5), end(1, 1, 1), end(2, 1, 2)]), [Judge::SyncConverge]);
        assert_eq!(found(&[put(1, 5), put(2, 6), end(1, 1, 1), end(2, 2, 1)]), [Judge::SyncConverge]);
        let cut = |view, conflicts| Note::Cut {
            node: 2,
            applied: applied(1),
            views: vec![(b"k".to_vec(), view)],
            conflicts: Some(conflicts),
        };
        assert_eq!(found(&[put(1, 5), cut(None, 1)]), [Judge::SyncValue, Judge::SyncConflict]);
        assert_eq!(found(&[Note::Froze { node: 2, origin: A, at_us: 1 }]), [Judge::SyncFrozen]);
    }

    #[test]
    fn a_floor_covers_only_what_all_its_honest_members_hold_and_means_one_thing() {
        let b = Origin { id: 2, incarnation: 0 };
        let floor = |node, covered, held| Note::Floor {
            node,
            number: 1,
            covers: applied(covered),
            members: vec![A, b],
            holds: vec![(A, applied(2)), (b, applied(held))],
        };
        assert_eq!(found(&[floor(1, 2, 2), floor(2, 2, 2)]), []);
        assert_eq!(found(&[floor(1, 2, 1)]), [Judge::SyncFloor]);
        assert_eq!(found(&[floor(1, 2, 2), floor(2, 1, 2)]), [Judge::SyncFloor]);
        // It does not speak of whoever came later.
        let younger = Origin { id: 2, incarnation: 1 };
        let Note::Floor { node, number, covers, members, .. } = floor(1, 2, 2) else { unreachable!() };
        let holds = vec![(A, applied(2)), (younger, applied(1))];
        assert_eq!(found(&[Note::Floor { node, number, covers, members, holds }]), []);
    }

    /// How nodes stand that have come so far on one chain.
    fn stands(lasts: &[u64]) -> Vec<Stand> {
        let line = |last: u64| (0..=last).map(place).collect();
        let stand =
            |(last, node): (&u64, u32)| Stand { node, line: line(*last), settled: *last, is_halted: true };
        lasts.iter().zip(1..).map(stand).collect()
    }

    fn place(last: u64) -> Place {
        Place { last, hash: [last as u8; 32] }
    }

    fn decided(node: u32, nth: u64, last: u64, stands: Vec<Stand>) -> Note {
        Note::Decided { node, nth, origin: A, place: place(last), stands }
    }

    /// With 4 nodes, of which one may lie.
    fn found_of_four(notes: &[Note]) -> Vec<Judge> {
        let terms = Terms { nodes: 4, faults: 1, quorum: 3, ..Terms::default() };
        judge(notes, &terms).iter().map(|finding| finding.judge).collect()
    }

    #[test]
    fn all_hear_the_same_ends_and_an_origin_ends_once() {
        let all = || stands(&[5, 5, 5, 5]);
        let first = decided(1, 1, 5, all());
        assert_eq!(found_of_four(&[first.clone(), decided(2, 1, 5, vec![])]), []);
        assert_eq!(found_of_four(&[first.clone(), decided(2, 1, 4, vec![])]), [Judge::SyncEnd]);
        assert_eq!(found_of_four(&[first, decided(1, 2, 5, all())]), [Judge::SyncEnd]);
    }

    #[test]
    fn more_than_may_lie_are_honest_and_come_to_an_end_by_frames() {
        let at = |lasts: &[u64]| found_of_four(&[decided(1, 1, 5, stands(lasts))]);
        assert_eq!(at(&[5, 5, 7, 0]), []);
        assert_eq!(at(&[5, 4, 7, 0]), [Judge::SyncEnd], "one alone does");
        assert_eq!(at(&[5, 4, 7]), [], "the fourth may");
        assert_eq!(at(&[7, 7, 7]), [Judge::SyncEnd], "the fourth alone may");
        assert_eq!(at(&[7, 7]), [], "two may, and nobody knows");
        let settled = |places: &[(u64, u64)]| {
            let mut stands = stands(&places.iter().map(|(_, last)| *last).collect::<Vec<_>>());
            stands.iter_mut().zip(places).for_each(|(stand, (settled, _))| stand.settled = *settled);
            found_of_four(&[decided(1, 1, 5, stands)])
        };
        assert_eq!(settled(&[(5, 5), (2, 6), (7, 7), (0, 4)]), [], "it has applied less, and has the rest");
        assert_eq!(settled(&[(5, 5), (6, 6), (7, 7), (0, 4)]), [Judge::SyncEnd]);
    }

    #[test]
    fn a_liar_is_not_who_comes_to_an_end_and_one_that_is_known_is_one_fewer() {
        let terms = Terms { nodes: 4, faults: 1, quorum: 3, liars: [4].into(), ..Terms::default() };
        let found = |notes: &[Note]| judge(notes, &terms).iter().map(|f| f.judge).collect::<Vec<_>>();
        let at = |lasts: &[u64]| decided(1, 1, 5, stands(lasts));
        assert_eq!(found(&[at(&[5, 5, 7])]), []);
        assert_eq!(found(&[at(&[5, 7, 7])]), [Judge::SyncEnd]);
        let liar = Origin { id: 4, incarnation: 0 };
        assert_eq!(found(&[Note::Froze { node: 1, origin: liar, at_us: 1 }, at(&[5, 7, 7])]), []);
        assert_eq!(
            found(&[Note::Froze { node: 1, origin: liar, at_us: 1 }, at(&[7, 7, 7])]),
            [Judge::SyncEnd]
        );
    }

    #[test]
    fn a_quorum_takes_nothing_more_of_an_origin_that_ends() {
        let at = |lasts: &[u64], moving: &[usize]| {
            let mut stands = stands(lasts);
            moving.iter().for_each(|ix| stands[*ix].is_halted = false);
            found_of_four(&[decided(1, 1, 5, stands)])
        };
        assert_eq!(at(&[5, 5, 5, 5], &[3]), []);
        assert_eq!(at(&[5, 5, 5, 5], &[2, 3]), [Judge::SyncEnd], "two are no quorum");
        assert_eq!(at(&[5, 5, 5], &[0]), [], "the fourth may take nothing more");
        assert_eq!(at(&[5, 5, 5], &[0, 1]), [Judge::SyncEnd], "the fourth and one are no quorum");
        assert_eq!(at(&[5, 5, 4, 4], &[0]), [Judge::SyncEnd], "who goes on may leave where it is");
    }

    #[test]
    fn who_has_another_branch_counts_for_no_end() {
        let mut four = stands(&[5, 5, 5, 5]);
        for stand in &mut four[1..] {
            stand.line[5].hash = [99; 32];
        }
        assert_eq!(found_of_four(&[decided(1, 1, 5, four.clone())]), [Judge::SyncEnd]);
        four[1] = stands(&[5]).remove(0);
        assert_eq!(found_of_four(&[decided(1, 1, 5, four)]), []);
    }

    #[test]
    fn a_key_that_changed_by_itself_is_put_right_and_no_other() {
        let key = b"k".to_vec();
        let damaged = Note::Damaged { node: 2, key: key.clone() };
        let differs = |node, with| Note::Differs { node, with, keys: vec![key.clone()] };
        let repaired = |node| Note::Repaired { node, keys: vec![key.clone()] };
        assert_eq!(found(&[differs(1, 2)]), [Judge::SyncConverge]);
        assert_eq!(found(&[damaged.clone(), differs(1, 2), differs(2, 2), repaired(2)]), []);
        assert_eq!(found(&[damaged.clone(), differs(1, 3), repaired(2)]), [Judge::SyncConverge]);
        assert_eq!(found(&[damaged.clone(), repaired(2), repaired(2)]), [Judge::SyncConverge]);
        assert_eq!(found(&[repaired(2)]), [Judge::SyncConverge], "nothing was wrong with it");
        assert_eq!(found(&[damaged.clone(), repaired(1), repaired(2)]), [Judge::SyncConverge]);
        assert_eq!(found(&[damaged]), [], "what a floor collects may take the damage with it; digests tell");
    }

    #[test]
    fn what_the_log_had_outlives_its_writers_disk() {
        let logged = Note::Logged { origin: A, last: 2 };
        let notes = [put(1, 5), put(2, 6), logged, Note::Wiped { origin: A }];
        let ended = |last| [Note::Ended { node: 2, origin: A, last }, end(2, last, 1)];
        assert_eq!(found(&[&notes[..], &ended(2)].concat()), []);
        assert_eq!(found(&[&notes[..], &ended(1)].concat()), [Judge::SyncLost]);
        // Also when as many as it takes agreed to that end.
        let agreed = |last| [decided(2, 1, last, stands(&[last; 4]))];
        assert_eq!(found_of_four(&[&notes[..], &agreed(2), &ended(2)].concat()), []);
        assert_eq!(found_of_four(&[&notes[..], &agreed(1), &ended(1)].concat()), [Judge::SyncLost]);
        // A change behind a gap is not the promise, which was of all before it, too.
        let Note::End { node, digest, floor, .. } = end(2, 2, 1) else { unreachable!() };
        let late = Applied { dots: BTreeMap::from([(A, vec![(2, 2)])]), branches: BTreeMap::new() };
        let gap = Note::End { node, applied: late, digest, floor, waiting: 0, needs: 0 };
        assert_eq!(found(&[&notes[..], &[gap]].concat()), [Judge::SyncLost]);
        // What was acknowledged on another road may go with its writer's disk, below an end.
        let acknowledged = Note::Acknowledged { origin: A, last: 2 };
        let notes = [put(1, 5), put(2, 6), acknowledged, Note::Wiped { origin: A }];
        assert_eq!(found(&[&notes[..], &ended(1)].concat()), []);
    }

    #[test]
    fn who_is_convicted_ends_for_everybody_where_the_log_decides() {
        let terms = Terms { nodes: 4, faults: 1, quorum: 3, liars: [1].into(), ..Terms::default() };
        let froze = |node| Note::Froze { node, origin: A, at_us: 1 };
        let ended = |node| Note::Ended { node, origin: A, last: 1 };
        let found =
            |notes: &[Note]| judge(notes, &terms).iter().map(|finding| finding.judge).collect::<Vec<_>>();
        let stand = [end(2, 1, 1), end(3, 1, 1)];
        assert_eq!(found(&[&[froze(2), ended(2), ended(3)], &stand[..]].concat()), []);
        assert_eq!(found(&[&[froze(2), ended(2)], &stand[..]].concat()), [Judge::SyncEnd]);
        assert_eq!(found(&[&[froze(3)], &stand[..]].concat()), [Judge::SyncEnd]);
        assert_eq!(found(&[froze(3)]), [], "the run broke off");
        let gossip = Terms { liars: [1].into(), ..Terms::default() };
        assert!(judge(&[&[froze(3)], &stand[..]].concat(), &gossip).is_empty(), "nobody decides there");
    }

    #[test]
    fn a_frozen_origin_is_taken_no_further_and_known_after_one_exchange() {
        let terms = Terms { liars: [1].into(), calm_at_us: 0, slack_us: 10, ..Terms::default() };
        let froze = |node, at_us| Note::Froze { node, origin: A, at_us };
        let exchanged = Note::Exchanged { node: 2, with: 3, at_us: 50 };
        let taken = Note::Taken { node: 3, origin: A, last: 4 };
        assert!(judge(&[froze(3, 5), exchanged.clone(), froze(2, 55)], &terms).is_empty());
        assert!(!judge(&[froze(3, 5), exchanged, froze(2, 90)], &terms).is_empty());
        assert!(!judge(&[froze(3, 5), taken.clone()], &terms).is_empty());
        let ended = Note::Ended { node: 3, origin: A, last: 4 };
        assert!(judge(&[froze(3, 5), ended, taken], &terms).is_empty());
    }
}
