//! The model that cannot be wrong: everything that was ever done, and for each thing what its writer had seen. It never
//! forgets, so it needs no tombstones; the list is an editor that repeats all inserts in the order of their clocks.
//!
//! Where everything that was seen counts, a write replaces all it had seen, and a removal takes all it had seen. Where some
//! changes were decided not to count (a liar's second history, what a lost disk wrote last), others may have built upon
//! them. Such a change did nothing, so what it had replaced is not replaced by whoever wrote over it: there a write replaces
//! what stood at its place when it was made, and no more.

use super::{Applied, Dot, Kind, Operation, Origin, Plain, Rule, View, Write};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// What an operation came to where it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Deed {
    Wrote {
        kind: Kind,
        value: Option<Plain>,
    },
    Counted {
        kind: Kind,
        by: i128,
    },
    Added {
        kind: Kind,
        element: Plain,
    },
    Removed {
        kind: Kind,
        element: Plain,
    },
    Inserted {
        after: Option<Dot>,
        value: Plain,
    },
    Erased {
        item: Dot,
    },
    /// Everything seen here and below, of these kinds.
    Cleared {
        kinds: BTreeSet<Kind>,
    },
}

impl Deed {
    fn kind(&self) -> Option<Kind> {
        match self {
            Self::Wrote { kind, .. }
            | Self::Counted { kind, .. }
            | Self::Added { kind, .. }
            | Self::Removed { kind, .. } => Some(*kind),
            Self::Inserted { .. } | Self::Erased { .. } => Some(Kind::List),
            Self::Cleared { .. } => None,
        }
    }
}

#[derive(Clone, Debug)]
struct Event {
    dot: Dot,
    /// Of the origin's history; 0 before it forks.
    branch: u32,
    clock: u64,
    path: Vec<Vec<u8>>,
    deed: Deed,
    seen: Rc<Applied>,
    /// What stood there and it took the place of, or away.
    over: BTreeSet<Dot>,
    /// Concurrent writes that its writer put an end to.
    closed: u64,
}

impl Event {
    /// Had its writer seen that change? All of its own earlier ones, and what it had applied.
    fn saw(&self, dot: Dot) -> bool {
        (dot.origin == self.dot.origin && dot.counter < self.dot.counter) || self.seen.has(dot)
    }

    fn is_in(&self, applied: &Applied) -> bool {
        let on_branch = self.branch == 0 || applied.branches.get(&self.dot.origin) == Some(&self.branch);
        on_branch && applied.has(self.dot)
    }
}

/// What the model makes of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    Change,
    Nothing,
    Refused,
}

/// A frame's name and what it may build upon.
#[derive(Clone, Debug)]
pub struct Frame {
    pub origin: Origin,
    pub branch: u32,
    pub first: u64,
    pub last: u64,
    pub clock: u64,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Model {
    events: BTreeMap<Vec<u8>, Vec<Event>>,
    rules: Vec<(Vec<u8>, Rule)>,
    has_voids: bool,
}

impl Model {
    /// With `has_voids` there are changes that were decided not to count.
    #[must_use]
    pub fn new(rules: &[(Vec<u8>, Rule)], has_voids: bool) -> Self {
        Self { events: BTreeMap::new(), rules: rules.to_vec(), has_voids }
    }

    pub fn keys(&self) -> impl Iterator<Item = &Vec<u8>> {
        self.events.keys()
    }

    #[must_use]
    pub fn rule(&self, key: &[u8]) -> Rule {
        let fitting = self.rules.iter().filter(|(prefix, _)| key.starts_with(prefix));
        fitting.max_by_key(|(prefix, _)| prefix.len()).map_or(Rule::LastWriter, |(_, rule)| *rule)
    }

    fn past(&self, key: &[u8], has: impl Fn(&Event) -> bool) -> Past<'_> {
        let events = self.events.get(key).into_iter().flatten().filter(|event| has(event)).collect();
        Past { events, rule: self.rule(key), has_voids: self.has_voids }
    }

    /// What somebody who has applied this reads.
    #[must_use]
    pub fn view(&self, key: &[u8], applied: &Applied) -> Option<View> {
        self.past(key, |event| event.is_in(applied)).view(&[])
    }

    /// Concurrent writes among what was applied: those that stand open, and those that somebody put an end to.
    #[must_use]
    pub fn conflicts(&self, applied: &Applied) -> u64 {
        let all = Kind::ALL.into();
        let of = |key: &Vec<u8>| {
            let past = self.past(key, |event| event.is_in(applied));
            past.events.iter().map(|event| event.closed).sum::<u64>() + past.open(&[], &all)
        };
        self.keys().map(of).sum()
    }

    /// Writes down a frame, and says what each of its operations came to. Nothing is written down when one is refused, or
    /// when the frame holds another number of changes.
    pub fn write(&mut self, frame: &Frame, seen: &Rc<Applied>, writes: &[Write]) -> Vec<Plan> {
        let (mut plans, mut counter, mut done) = (Vec::new(), frame.first, Vec::new());
        for write in writes {
            let has = |event: &Event| {
                let own = event.dot.origin == frame.origin && event.branch == frame.branch;
                event.is_in(seen) || (own && event.dot.counter >= frame.first)
            };
            let past = self.past(&write.key, has);
            let deed = match past.plan(write) {
                Err(()) => {
                    plans.push(Plan::Refused);
                    continue;
                }
                Ok(None) => {
                    plans.push(Plan::Nothing);
                    continue;
                }
                Ok(Some(deed)) => deed,
            };
            plans.push(Plan::Change);
            let over = past.replaced(&write.path, &deed);
            let closed = match &deed {
                Deed::Wrote { kind, .. } => {
                    (past.versions(&write.path, *kind).len() as u64).saturating_sub(1)
                }
                Deed::Cleared { kinds } => past.open(&write.path, kinds),
                _ => 0,
            };
            let dot = Dot { origin: frame.origin, counter };
            counter += 1;
            let event = Event {
                dot,
                branch: frame.branch,
                clock: frame.clock,
                path: write.path.clone(),
                deed,
                seen: Rc::clone(seen),
                over,
                closed,
            };
            self.events.entry(write.key.clone()).or_default().push(event);
            done.push(write.key.clone());
        }
        if plans.contains(&Plan::Refused) || counter != frame.last + 1 {
            for key in done.iter().rev() {
                self.events.get_mut(key).expect("just written").pop();
            }
        }
        plans
    }

    /// What was done to a key, one line each, for people; with a star what somebody has applied.
    #[must_use]
    pub fn story(&self, key: &[u8], applied: &Applied) -> Vec<String> {
        let line = |event: &Event| {
            let star = if event.is_in(applied) { "*" } else { " " };
            let Event { dot, branch, clock, path, deed, seen, over, .. } = event;
            let path: Vec<_> = path.iter().map(|field| String::from_utf8_lossy(field)).collect();
            format!(
                "{star} {dot:?} ({branch}) at {clock:x} {path:?} {deed:?} over {over:?} seen {:?}",
                seen.dots
            )
        };
        self.events.get(key).into_iter().flatten().map(line).collect()
    }

    /// The latest clock among the changes that were applied, with its name.
    #[must_use]
    pub fn latest(&self, applied: &Applied) -> Option<(u64, Dot)> {
        let events = self.events.values().flatten().filter(|event| event.is_in(applied));
        events.map(|event| (event.clock, event.dot)).max()
    }

    /// A crash took what this origin had done after that: it never happened.
    pub fn forget_after(&mut self, origin: Origin, last: u64) {
        for events in self.events.values_mut() {
            events.retain(|event| event.dot.origin != origin || event.dot.counter <= last);
        }
    }
}

/// What somebody has applied of one key.
struct Past<'a> {
    events: Vec<&'a Event>,
    rule: Rule,
    has_voids: bool,
}

type Path = [Vec<u8>];

impl<'a> Past<'a> {
    /// Did somebody delete this who had seen it?
    fn is_cleared(&self, event: &Event) -> bool {
        self.events.iter().any(|later| match &later.deed {
            Deed::Cleared { kinds } if event.path.starts_with(&later.path) && later.saw(event.dot) => {
                let there =
                    if event.path.len() > later.path.len() { Some(Kind::Map) } else { event.deed.kind() };
                there.is_some_and(|kind| kinds.contains(&kind))
            }
            _ => false,
        })
    }

    fn all(&self, path: &Path, kind: Kind) -> Vec<&'a Event> {
        self.events.iter().copied().filter(|e| e.path == path && e.deed.kind() == Some(kind)).collect()
    }

    fn standing(&self, path: &Path, kind: Kind) -> Vec<&'a Event> {
        self.all(path, kind).into_iter().filter(|event| !self.is_cleared(event)).collect()
    }

    /// Writes that nobody who had seen them wrote over.
    fn versions(&self, path: &Path, kind: Kind) -> Vec<&'a Event> {
        let all = self.all(path, kind);
        let is_over = |event: &&Event| all.iter().any(|later| self.replaces(later, event));
        self.standing(path, kind).into_iter().filter(|event| !is_over(event)).collect()
    }

    fn replaces(&self, later: &Event, event: &Event) -> bool {
        if self.has_voids { later.over.contains(&event.dot) } else { later.saw(event.dot) }
    }

    /// Adds of an element that nobody who had seen them added anew or took away.
    fn tags(&self, path: &Path, kind: Kind, element: &Plain) -> Vec<&'a Event> {
        let is_of = |event: &Event| match &event.deed {
            Deed::Added { element: x, .. } | Deed::Removed { element: x, .. } => x == element,
            _ => false,
        };
        let mut tags = self.standing(path, kind);
        tags.retain(|event| matches!(event.deed, Deed::Added { .. }) && is_of(event));
        let later: Vec<&Event> = self.all(path, kind).into_iter().filter(|event| is_of(event)).collect();
        tags.retain(|event| !later.iter().any(|later| self.replaces(later, event)));
        tags
    }

    /// What a change takes the place of, or away.
    fn replaced(&self, path: &Path, deed: &Deed) -> BTreeSet<Dot> {
        let events = match deed {
            Deed::Wrote { kind, .. } => self.versions(path, *kind),
            Deed::Added { kind, element } | Deed::Removed { kind, element } => {
                self.tags(path, *kind, element)
            }
            _ => Vec::new(),
        };
        events.iter().map(|event| event.dot).collect()
    }

    fn elements(&self, path: &Path, kind: Kind) -> BTreeSet<Plain> {
        let added = self.standing(path, kind).into_iter().filter_map(|event| match &event.deed {
            Deed::Added { element, .. } => Some(element.clone()),
            _ => None,
        });
        let added: BTreeSet<Plain> = added.collect();
        // What was removed for good stays away until the whole set is deleted.
        let is_in = |element: &Plain| {
            let is_barred = kind == Kind::TwoPhaseSet && self.is_barred(path, element);
            !is_barred && !self.tags(path, kind, element).is_empty()
        };
        added.into_iter().filter(is_in).collect()
    }

    fn is_barred(&self, path: &Path, element: &Plain) -> bool {
        let removed = |e: &&Event| matches!(&e.deed, Deed::Removed { element: x, .. } if x == element);
        self.standing(path, Kind::TwoPhaseSet).iter().any(removed)
    }

    /// All inserts repeated in the order of their clocks, each right behind what it was put behind; then what was taken
    /// out is left out.
    fn items(&self, path: &Path) -> Vec<(Dot, Plain)> {
        let all = self.all(path, Kind::List);
        let mut inserts: Vec<&Event> = Vec::new();
        let mut erased = BTreeSet::new();
        for event in all {
            match &event.deed {
                Deed::Inserted { .. } => inserts.push(event),
                Deed::Erased { item } => {
                    erased.insert(*item);
                }
                _ => {}
            }
        }
        inserts.sort_by_key(|event| (event.clock, event.dot));
        let mut row: Vec<&Event> = Vec::new();
        for event in inserts {
            let Deed::Inserted { after, .. } = &event.deed else { continue };
            match after {
                None => row.insert(0, event),
                Some(before) => {
                    // Behind something that never was: nothing.
                    if let Some(place) = row.iter().position(|e| e.dot == *before) {
                        row.insert(place + 1, event);
                    }
                }
            }
        }
        row.retain(|event| !erased.contains(&event.dot) && !self.is_cleared(event));
        let value = |event: &&Event| match &event.deed {
            Deed::Inserted { value, .. } => Some((event.dot, value.clone())),
            _ => None,
        };
        row.iter().filter_map(value).collect()
    }

    fn fields(&self, path: &Path) -> BTreeSet<Vec<u8>> {
        let below = self.events.iter().filter(|e| e.path.len() > path.len() && e.path.starts_with(path));
        below.map(|event| event.path[path.len()].clone()).collect()
    }

    fn is_live(&self, path: &Path, kind: Kind) -> bool {
        let has_value = |event: &&Event| matches!(&event.deed, Deed::Wrote { value: Some(_), .. });
        match kind {
            Kind::LwwRegister | Kind::MvRegister => self.versions(path, kind).iter().any(has_value),
            Kind::GCounter | Kind::PnCounter => !self.standing(path, kind).is_empty(),
            Kind::GSet | Kind::TwoPhaseSet | Kind::OrSet => !self.elements(path, kind).is_empty(),
            Kind::List => !self.items(path).is_empty(),
            Kind::Map => self.fields(path).iter().any(|field| !self.kinds(&below(path, field)).is_empty()),
        }
    }

    fn kinds(&self, path: &Path) -> Vec<Kind> {
        Kind::ALL.into_iter().filter(|kind| self.is_live(path, *kind)).collect()
    }

    fn open(&self, path: &Path, kinds: &BTreeSet<Kind>) -> u64 {
        let live = self.kinds(path);
        let stay = live.iter().filter(|kind| !kinds.contains(kind)).count();
        let clashes = live.len().saturating_sub(1) - stay.saturating_sub(1);
        let mut open = clashes as u64;
        for kind in [Kind::LwwRegister, Kind::MvRegister] {
            if kinds.contains(&kind) {
                open += (self.versions(path, kind).len() as u64).saturating_sub(1);
            }
        }
        if kinds.contains(&Kind::Map) {
            let all = Kind::ALL.into();
            open += self.fields(path).iter().map(|field| self.open(&below(path, field), &all)).sum::<u64>();
        }
        open
    }

    fn view(&self, path: &Path) -> Option<View> {
        let kind = self.kinds(path).pop()?;
        Some(match kind {
            Kind::LwwRegister => View::Register(self.resolved(path)?),
            Kind::MvRegister => {
                let versions = self.versions(path, kind);
                View::Siblings(versions.iter().filter_map(|event| value_of(event)).collect())
            }
            Kind::GCounter | Kind::PnCounter => {
                let by = |event: &&Event| match event.deed {
                    Deed::Counted { by, .. } => by,
                    _ => 0,
                };
                View::Count(self.standing(path, kind).iter().map(by).sum())
            }
            Kind::GSet | Kind::TwoPhaseSet | Kind::OrSet => View::Set(self.elements(path, kind)),
            Kind::Map => {
                let field = |name: Vec<u8>| self.view(&below(path, &name)).map(|view| (name, view));
                View::Map(self.fields(path).into_iter().filter_map(field).collect())
            }
            Kind::List => View::List(self.items(path).into_iter().map(|(_, value)| value).collect()),
        })
    }

    /// The one value of versions side by side.
    fn resolved(&self, path: &Path) -> Option<Plain> {
        let mut versions = self.versions(path, Kind::LwwRegister);
        versions.sort_by_key(|event| Reverse((event.clock, event.dot)));
        let latest = versions.first().and_then(|event| value_of(event));
        if versions.len() < 2 {
            return latest;
        }
        let values = versions.iter().filter_map(|event| value_of(event));
        match self.rule {
            Rule::LastWriter => latest,
            Rule::Longest => values.max_by_key(|value| (value.bytes().len(), value.clone())),
            Rule::Merge => merged(values).or(latest),
        }
    }

    fn plan(&self, write: &Write) -> Result<Option<Deed>, ()> {
        let path = &write.path;
        for depth in 0..path.len() {
            if self.kinds(&path[..depth]).pop().is_some_and(|kind| kind != Kind::Map) {
                return Err(());
            }
        }
        let live = self.kinds(path);
        let of = |kind: Kind| live.last().is_none_or(|shown| *shown == kind).then_some(()).ok_or(());
        let add = |kind: Kind, element: &Plain| Deed::Added { kind, element: element.clone() };
        let remove = |kind: Kind, element: &Plain| {
            let is_in = self.elements(path, kind).contains(element);
            is_in.then(|| Deed::Removed { kind, element: element.clone() })
        };
        Ok(Some(match &write.operation {
            Operation::Put(value) => {
                of(Kind::LwwRegister)?;
                Deed::Wrote { kind: Kind::LwwRegister, value: Some(value.clone()) }
            }
            Operation::PutMulti(value) => {
                of(Kind::MvRegister)?;
                Deed::Wrote { kind: Kind::MvRegister, value: Some(value.clone()) }
            }
            Operation::Grow(by) => {
                of(Kind::GCounter)?;
                Deed::Counted { kind: Kind::GCounter, by: i128::from(*by) }
            }
            Operation::Adjust(by) => {
                of(Kind::PnCounter)?;
                Deed::Counted { kind: Kind::PnCounter, by: i128::from(*by) }
            }
            Operation::AddForever(element) => {
                of(Kind::GSet)?;
                add(Kind::GSet, element)
            }
            Operation::Add(element) => {
                of(Kind::OrSet)?;
                add(Kind::OrSet, element)
            }
            Operation::AddOnce(element) => {
                of(Kind::TwoPhaseSet)?;
                if self.is_barred(path, element) {
                    return Err(());
                }
                add(Kind::TwoPhaseSet, element)
            }
            Operation::Remove(element) => {
                of(Kind::OrSet)?;
                return Ok(remove(Kind::OrSet, element));
            }
            Operation::RemoveForGood(element) => {
                of(Kind::TwoPhaseSet)?;
                return Ok(remove(Kind::TwoPhaseSet, element));
            }
            Operation::Insert { index, value } => {
                of(Kind::List)?;
                let items = self.items(path);
                if *index > items.len() {
                    return Err(());
                }
                let after = index.checked_sub(1).map(|before| items[before].0);
                Deed::Inserted { after, value: value.clone() }
            }
            Operation::Erase { index } => {
                of(Kind::List)?;
                Deed::Erased { item: self.items(path).get(*index).ok_or(())?.0 }
            }
            Operation::Delete => match live.as_slice() {
                [] => return Ok(None),
                [kind @ (Kind::LwwRegister | Kind::MvRegister)] if path.is_empty() => {
                    Deed::Wrote { kind: *kind, value: None }
                }
                _ => Deed::Cleared { kinds: Kind::ALL.into() },
            },
            Operation::Settle => match live.split_last() {
                Some((_, hidden @ [_, ..])) => Deed::Cleared { kinds: hidden.iter().copied().collect() },
                _ => return Ok(None),
            },
        }))
    }
}

fn below(path: &Path, field: &[u8]) -> Vec<Vec<u8>> {
    let mut path = path.to_vec();
    path.push(field.to_vec());
    path
}

fn value_of(event: &Event) -> Option<Plain> {
    match &event.deed {
        Deed::Wrote { value, .. } => value.clone(),
        _ => None,
    }
}

/// Objects joined, the first one's fields before the others'. Nothing unless all are objects.
fn merged(values: impl Iterator<Item = Plain>) -> Option<Plain> {
    let mut joined: Option<serde_json::Map<String, serde_json::Value>> = None;
    for value in values {
        let Plain::Json(text) = value else { return None };
        let serde_json::Value::Object(fields) = serde_json::from_str(&text).ok()? else { return None };
        let into = joined.get_or_insert_default();
        for (name, field) in fields {
            into.entry(name).or_insert(field);
        }
    }
    joined.map(|fields| Plain::Json(in_order(serde_json::Value::Object(fields)).to_string()))
}

/// The same value with the fields of all its objects by name, whether or not this build's maps keep the order of the text.
pub(super) fn in_order(value: serde_json::Value) -> serde_json::Value {
    use serde_json::Value;
    match value {
        Value::Object(fields) => {
            let sorted: BTreeMap<String, Value> =
                fields.into_iter().map(|(name, field)| (name, in_order(field))).collect();
            Value::Object(sorted.into_iter().collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(in_order).collect()),
        plain => plain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Origin = Origin { id: 1, incarnation: 0 };
    const B: Origin = Origin { id: 2, incarnation: 0 };

    struct Story {
        model: Model,
        clock: u64,
    }

    impl Story {
        fn new() -> Self {
            Self { model: Model::new(&[(b"m".to_vec(), Rule::Merge)], false), clock: 0 }
        }

        fn act(
            &mut self,
            origin: Origin,
            counter: u64,
            seen: &Applied,
            key: &str,
            operation: Operation,
        ) -> Plan {
            self.clock += 1;
            let frame = Frame { origin, branch: 0, first: counter, last: counter, clock: self.clock };
            let write = Write { key: key.into(), path: Vec::new(), operation };
            self.model.write(&frame, &Rc::new(seen.clone()), &[write])[0]
        }
    }

    fn upto(heads: &[(Origin, u64)]) -> Applied {
        let dots = heads.iter().map(|(origin, last)| (*origin, vec![(1, *last)])).collect();
        Applied { dots, branches: BTreeMap::new() }
    }

    fn text(text: &str) -> Plain {
        Plain::Bytes(text.into())
    }

    #[test]
    fn concurrent_writes_stand_side_by_side_until_somebody_saw_both() {
        let mut story = Story::new();
        story.act(A, 1, &upto(&[]), "k", Operation::Put(text("a")));
        story.act(B, 1, &upto(&[]), "k", Operation::Put(text("b")));
        let both = upto(&[(A, 1), (B, 1)]);
        assert_eq!(story.model.view(b"k", &both), Some(View::Register(text("b"))));
        assert_eq!(story.model.conflicts(&both), 1);
        story.act(A, 2, &both, "k", Operation::Delete);
        let all = upto(&[(A, 2), (B, 1)]);
        assert_eq!((story.model.view(b"k", &all), story.model.conflicts(&all)), (None, 1));
        assert_eq!(story.model.view(b"k", &upto(&[(A, 1)])), Some(View::Register(text("a"))));
    }

    #[test]
    fn what_a_remover_had_not_seen_stays() {
        let mut story = Story::new();
        story.act(A, 1, &upto(&[]), "s", Operation::Add(text("x")));
        story.act(B, 1, &upto(&[(A, 1)]), "s", Operation::Remove(text("x")));
        story.act(A, 2, &upto(&[(A, 1)]), "s", Operation::Add(text("x")));
        let all = upto(&[(A, 2), (B, 1)]);
        assert_eq!(story.model.view(b"s", &all), Some(View::Set([text("x")].into())));
        assert_eq!(story.model.view(b"s", &upto(&[(A, 1), (B, 1)])), None);
        assert_eq!(story.act(B, 2, &upto(&[(B, 1)]), "s", Operation::Remove(text("x"))), Plan::Nothing);
    }

    #[test]
    fn a_reset_counter_keeps_what_the_reset_had_not_seen() {
        let mut story = Story::new();
        story.act(A, 1, &upto(&[]), "c", Operation::Adjust(5));
        story.act(B, 1, &upto(&[(A, 1)]), "c", Operation::Delete);
        story.act(A, 2, &upto(&[(A, 1)]), "c", Operation::Adjust(2));
        assert_eq!(story.model.view(b"c", &upto(&[(A, 2), (B, 1)])), Some(View::Count(2)));
    }

    #[test]
    fn runs_typed_at_one_place_do_not_mix_and_indexes_mean_what_was_seen() {
        let mut story = Story::new();
        let insert = |index, value: &str| Operation::Insert { index, value: text(value) };
        story.act(A, 1, &upto(&[]), "l", insert(0, "a1"));
        story.act(B, 1, &upto(&[]), "l", insert(0, "b1"));
        story.act(A, 2, &upto(&[(A, 1)]), "l", insert(1, "a2"));
        story.act(B, 2, &upto(&[(B, 1)]), "l", insert(1, "b2"));
        let all = upto(&[(A, 2), (B, 2)]);
        let list = ["b1", "b2", "a1", "a2"].map(text).to_vec();
        assert_eq!(story.model.view(b"l", &all), Some(View::List(list)));
        assert_eq!(story.act(A, 3, &all, "l", insert(5, "far")), Plan::Refused);
        story.act(A, 3, &all, "l", Operation::Erase { index: 1 });
        let list = ["b1", "a1", "a2"].map(text).to_vec();
        assert_eq!(story.model.view(b"l", &upto(&[(A, 3), (B, 2)])), Some(View::List(list)));
    }

    #[test]
    fn a_clash_of_kinds_shows_the_later_kind_and_is_one_conflict() {
        let mut story = Story::new();
        story.act(A, 1, &upto(&[]), "k", Operation::Put(text("a")));
        story.act(B, 1, &upto(&[]), "k", Operation::Grow(1));
        let both = upto(&[(A, 1), (B, 1)]);
        assert_eq!((story.model.view(b"k", &both), story.model.conflicts(&both)), (Some(View::Count(1)), 1));
        assert_eq!(story.act(A, 2, &both, "k", Operation::Put(text("x"))), Plan::Refused);
        assert_eq!(story.act(A, 2, &both, "k", Operation::Settle), Plan::Change);
        assert_eq!(story.model.conflicts(&upto(&[(A, 2), (B, 1)])), 1, "counted, not open");
    }

    #[test]
    fn objects_are_joined_field_by_field() {
        let mut story = Story::new();
        let object = |text: &str| Operation::Put(Plain::Json(text.into()));
        story.act(A, 1, &upto(&[]), "m", object(r#"{"x":1,"y":1}"#));
        story.act(B, 1, &upto(&[]), "m", object(r#"{"y":2}"#));
        let joined = Plain::Json(r#"{"x":1,"y":2}"#.into());
        assert_eq!(story.model.view(b"m", &upto(&[(A, 1), (B, 1)])), Some(View::Register(joined)));
    }
}
