//! What stands at a key or at a map's field: usually one value of one kind. When two nodes created it with different
//! kinds at the same time, both are kept; the highest kind is shown, which every replica decides alike, and the clash is
//! an open conflict until somebody settles it or deletes the whole.
//!
//! A change walks down its path, changes one value, and reports by how much the number of open conflicts grew.

use crate::causal::{Seen, Stable, Stamp};
use crate::counter::Counter;
use crate::delta::{Change, CutRuns};
use crate::dots::Dot;
use crate::list::List;
use crate::map::Map;
use crate::register::Register;
use crate::set::Set;
use crate::value::{Kind, View};
use crate::wire::{Malformed, Reader, put_number};
use alloc::boxed::Box;
use alloc::vec::Vec;
use bytes::Bytes;
use dwcp_base::{Mutant, Mutants};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    Register(Register),
    Counter(Box<Counter>),
    Set(Set),
    Map(Box<Map>),
    List(Box<List>),
}

impl Content {
    fn empty(kind: Kind) -> Self {
        match kind {
            Kind::LwwRegister | Kind::MvRegister => Self::Register(Register::default()),
            Kind::GCounter | Kind::PnCounter => Self::Counter(Box::default()),
            Kind::GSet | Kind::TwoPhaseSet | Kind::OrSet => Self::Set(Set::default()),
            Kind::Map => Self::Map(Box::default()),
            Kind::List => Self::List(Box::default()),
        }
    }

    fn is_empty(&self) -> bool {
        match self {
            Self::Register(register) => register.is_empty(),
            Self::Counter(counter) => counter.is_empty(),
            Self::Set(set) => set.is_empty(),
            Self::Map(map) => map.is_empty(),
            Self::List(list) => list.is_empty(),
        }
    }

    fn is_live(&self) -> bool {
        match self {
            Self::Register(register) => register.is_live(),
            Self::Counter(counter) => counter.is_live(),
            Self::Set(set) => set.is_live(),
            Self::Map(map) => map.is_live(),
            Self::List(list) => list.is_live(),
        }
    }

    fn conflicts_open(&self) -> u64 {
        match self {
            Self::Register(register) => register.conflicts_open(),
            Self::Map(map) => map.fields.values().map(Node::conflicts_open).sum(),
            Self::Counter(_) | Self::Set(_) | Self::List(_) => 0,
        }
    }
}

/// A change on its way down, and who made it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step<'a> {
    pub(crate) change: &'a Change,
    pub(crate) stamp: Stamp,
    pub(crate) seen: Seen<'a>,
    pub(crate) mutants: Mutants,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Node {
    /// Ascending by kind, none empty. One, unless kinds clash or a tombstone of an earlier kind waits for collection.
    slots: Vec<(Kind, Content)>,
}

impl Node {
    pub(crate) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    pub(crate) fn is_live(&self) -> bool {
        self.slots.iter().any(|(_, content)| content.is_live())
    }

    /// The kind a reader sees, and whose operations a writer may use.
    pub(crate) fn kind(&self) -> Option<Kind> {
        self.slots.iter().rev().find(|(_, content)| content.is_live()).map(|(kind, _)| *kind)
    }

    /// Every kind with something live, ascending; more than one is a clash.
    pub(crate) fn kinds_live(&self) -> impl Iterator<Item = Kind> {
        self.slots.iter().filter(|(_, content)| content.is_live()).map(|(kind, _)| *kind)
    }

    pub(crate) fn content(&self, kind: Kind) -> Option<&Content> {
        self.slots.iter().find(|(k, _)| *k == kind).map(|(_, content)| content)
    }

    /// The node at the end of a path of fields.
    pub(crate) fn at(&self, path: &[Bytes]) -> Option<&Self> {
        path.iter().try_fold(self, |node, field| match node.content(Kind::Map) {
            Some(Content::Map(map)) => map.fields.get(field),
            _ => None,
        })
    }

    pub(crate) fn register(&self, kind: Kind) -> Option<&Register> {
        match self.content(kind) {
            Some(Content::Register(register)) => Some(register),
            _ => None,
        }
    }

    /// Nothing, or one value of this kind?
    pub(crate) fn is_at_most(&self, kind: Kind) -> bool {
        self.slots.is_empty() || (self.slots.len() == 1 && self.slots[0].0 == kind)
    }

    /// The register that is all there is here.
    pub(crate) fn only_register(&self) -> Option<&Register> {
        match self.slots.as_slice() {
            [(_, Content::Register(register))] => Some(register),
            _ => None,
        }
    }

    pub(crate) fn counter(&self, kind: Kind) -> Option<&Counter> {
        match self.content(kind) {
            Some(Content::Counter(counter)) => Some(counter),
            _ => None,
        }
    }

    pub(crate) fn set(&self, kind: Kind) -> Option<&Set> {
        match self.content(kind) {
            Some(Content::Set(set)) => Some(set),
            _ => None,
        }
    }

    pub(crate) fn list(&self) -> Option<&List> {
        match self.content(Kind::List) {
            Some(Content::List(list)) => Some(list),
            _ => None,
        }
    }

    /// What a reader sees; `pick` settles the versions of an LWW register.
    pub(crate) fn view(&self, pick: &dyn Fn(&Register) -> Option<crate::value::Plain>) -> Option<View> {
        let kind = self.kind()?;
        Some(match self.content(kind)? {
            Content::Register(register) if kind == Kind::LwwRegister => View::Register(pick(register)?),
            Content::Register(register) => {
                let mut values: Vec<_> = register.versions().iter().filter_map(|v| v.value.clone()).collect();
                values.sort();
                values.dedup();
                View::Siblings(values)
            }
            Content::Counter(counter) => View::Count(counter.value()),
            Content::Set(set) => View::Set(set.view()),
            Content::Map(map) => View::Map(map.view(&|node| node.view(pick))),
            Content::List(list) => View::List(list.view()),
        })
    }

    /// Kinds beyond the first that have something live here.
    fn clashes(&self) -> u64 {
        if self.slots.len() < 2 { 0 } else { (self.kinds_live().count() as u64).saturating_sub(1) }
    }

    /// Conflicts that nobody has settled yet, here and below.
    pub(crate) fn conflicts_open(&self) -> u64 {
        self.clashes() + self.slots.iter().map(|(_, content)| content.conflicts_open()).sum::<u64>()
    }

    /// Open conflicts that go away when everything of these kinds is removed: those inside, and the kinds themselves
    /// as far as they clash with one another or with what stays.
    pub(crate) fn conflicts_settled_by_cut(&self, kinds: u16) -> u64 {
        let (gone, stays): (Vec<_>, Vec<_>) =
            self.slots.iter().partition(|(kind, _)| kinds & kind_bit(*kind) != 0);
        let live =
            |slots: &[&(Kind, Content)]| slots.iter().filter(|(_, content)| content.is_live()).count() as u64;
        let inside: u64 = gone.iter().map(|(_, content)| content.conflicts_open()).sum();
        let clashes_left = live(&stays).saturating_sub(1);
        inside + self.clashes() - clashes_left
    }

    fn slot(&mut self, kind: Kind) -> &mut Content {
        let index = match self.slots.binary_search_by_key(&kind, |(k, _)| *k) {
            Ok(index) => index,
            Err(index) => {
                // One is the rule; room for four would be most of a small key's memory.
                self.slots.reserve_exact(1);
                self.slots.insert(index, (kind, Content::empty(kind)));
                index
            }
        };
        &mut self.slots[index].1
    }

    /// Applies a change to what stands at the end of `path`; returns by how much the open conflicts grew.
    pub(crate) fn apply(&mut self, path: &[Bytes], step: Step<'_>) -> i64 {
        let clashes_before = self.clashes();
        let inside = match path.split_first() {
            None => self.change(step),
            Some((field, rest)) => self.apply_below(field, rest, step),
        };
        self.slots.retain(|(_, content)| !content.is_empty());
        inside + difference(clashes_before, self.clashes())
    }

    fn apply_below(&mut self, field: &Bytes, rest: &[Bytes], step: Step<'_>) -> i64 {
        let creates = !matches!(step.change, Change::Cut { .. });
        if self.at(core::slice::from_ref(field)).is_none() && !creates {
            return 0;
        }
        let Content::Map(map) = self.slot(Kind::Map) else { unreachable!("the slot of maps holds a map") };
        let node = match map.fields.get_mut(field) {
            Some(node) => node,
            None => map.fields.entry(Bytes::copy_from_slice(field)).or_default(),
        };
        let inside = node.apply(rest, step);
        if node.is_empty() {
            map.fields.remove(field);
        }
        inside
    }

    fn change(&mut self, step: Step<'_>) -> i64 {
        let Step { change, stamp, seen, mutants } = step;
        match change {
            Change::Write { kind, value, over } => {
                let Content::Register(register) = self.slot(*kind) else { return 0 };
                let before = register.conflicts_open();
                register.write(stamp, value.as_ref().map(crate::value::Plain::detached), over);
                if mutants.on(Mutant::CrdtArrivalOrder) {
                    register.retain(|version| version.stamp == stamp);
                }
                if mutants.on(Mutant::CrdtDeleteWithoutTombstone) {
                    register.retain(|version| version.value.is_some());
                }
                return difference(before, register.conflicts_open());
            }
            Change::Count { kind, birth, totals, .. } => {
                if let Content::Counter(counter) = self.slot(*kind) {
                    counter.count(stamp, *birth, *totals);
                }
            }
            Change::Include { kind, element, over } => {
                if let Content::Set(set) = self.slot(*kind) {
                    set.include(stamp.dot, element, over);
                }
            }
            Change::Exclude { kind, element, over } => {
                if let Content::Set(set) = self.slot(*kind) {
                    set.exclude(*kind, stamp.dot, element, over);
                }
            }
            Change::Insert { after, value } => {
                if let Content::List(list) = self.slot(Kind::List) {
                    list.insert(stamp, *after, value);
                }
            }
            Change::Erase { item } => {
                if let Content::List(list) = self.slot(Kind::List) {
                    list.erase(stamp.dot, *item);
                }
            }
            Change::Cut { kinds, runs, .. } => {
                let open = |node: &Self| node.slots.iter().map(|(_, content)| content.conflicts_open()).sum();
                let before = open(self);
                self.cut(*kinds, runs, &mut Vec::new(), stamp.dot, &|dot| seen.contains(dot));
                return difference(before, open(self));
            }
        }
        0
    }

    /// Removes what was seen of the kinds in the mask, here and below. `at` is the way from the cut's own place.
    fn cut(
        &mut self,
        kinds: u16,
        runs: &[CutRuns],
        at: &mut Vec<Bytes>,
        cut: Dot,
        seen: &dyn Fn(Dot) -> bool,
    ) {
        for (kind, content) in self.slots.iter_mut().filter(|(kind, _)| kinds & kind_bit(*kind) != 0) {
            match content {
                Content::Register(register) => register.cut(seen),
                Content::Set(set) => set.cut(seen),
                Content::List(list) => list.cut(cut, seen),
                Content::Counter(counter) => {
                    let place =
                        runs.binary_search_by(|r| (r.path.as_slice(), r.kind).cmp(&(at.as_slice(), *kind)));
                    counter.cut(cut, place.map_or(&[], |index| &runs[index].runs));
                }
                Content::Map(map) => {
                    for (field, node) in &mut map.fields {
                        at.push(field.clone());
                        node.cut(KINDS_ALL, runs, at, cut, seen);
                        at.pop();
                    }
                    map.fields.retain(|_, node| !node.is_empty());
                }
            }
        }
        self.slots.retain(|(_, content)| !content.is_empty());
    }

    /// What a cut made now would have seen of the counters here and below.
    pub(crate) fn seen_runs(&self, kinds: u16, at: &mut Vec<Bytes>, found: &mut Vec<CutRuns>) {
        for (kind, content) in self.slots.iter().filter(|(kind, _)| kinds & kind_bit(*kind) != 0) {
            match content {
                Content::Counter(counter) => {
                    let runs = counter.seen_runs();
                    if !runs.is_empty() {
                        found.push(CutRuns { path: at.clone(), kind: *kind, runs });
                    }
                }
                Content::Map(map) => {
                    for (field, node) in &map.fields {
                        at.push(field.clone());
                        node.seen_runs(KINDS_ALL, at, found);
                        at.pop();
                    }
                }
                Content::Register(_) | Content::Set(_) | Content::List(_) => {}
            }
        }
    }

    /// Does anything here wait for collection?
    pub(crate) fn has_graves(&self) -> bool {
        self.slots.iter().any(|(_, content)| match content {
            Content::Register(register) => register.has_graves(),
            Content::Counter(counter) => counter.has_graves(),
            Content::List(list) => list.has_graves(),
            Content::Map(map) => map.fields.values().any(Self::has_graves),
            Content::Set(_) => false,
        })
    }

    /// Drops what nobody can need again. Readers see no difference, and the open conflicts stay what they are.
    pub(crate) fn collect(&mut self, stable: Stable<'_>) {
        for (_, content) in &mut self.slots {
            match content {
                Content::Register(register) => register.collect(stable),
                Content::Counter(counter) => counter.collect(stable),
                Content::List(list) => list.collect(stable),
                Content::Map(map) => {
                    for node in map.fields.values_mut() {
                        node.collect(stable);
                    }
                    map.fields.retain(|_, node| !node.is_empty());
                }
                Content::Set(_) => {}
            }
        }
        self.slots.retain(|(_, content)| !content.is_empty());
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        put_number(out, self.slots.len() as u64);
        for (kind, content) in &self.slots {
            out.push(*kind as u8);
            match content {
                Content::Register(register) => register.encode(out),
                Content::Counter(counter) => counter.encode(out),
                Content::Set(set) => set.encode(out),
                Content::Map(map) => map.encode(out),
                Content::List(list) => list.encode(out),
            }
        }
    }

    /// `depth_left` counts this node; it is checked before going down.
    pub(crate) fn decode(reader: &mut Reader, depth_left: usize) -> Result<Self, Malformed> {
        let below = depth_left.checked_sub(1).ok_or(Malformed)?;
        let mut slots: Vec<(Kind, Content)> = Vec::new();
        for _ in 0..reader.count(Kind::ALL.len())? {
            let kind = Kind::of(reader.byte()?).ok_or(Malformed)?;
            let content = match Content::empty(kind) {
                Content::Register(_) => Content::Register(Register::decode(reader)?),
                Content::Counter(_) => Content::Counter(Box::new(Counter::decode(reader)?)),
                Content::Set(_) => Content::Set(Set::decode(reader)?),
                Content::Map(_) => Content::Map(Box::new(Map::decode(reader, below)?)),
                Content::List(_) => Content::List(Box::new(List::decode(reader)?)),
            };
            if content.is_empty() || slots.last().is_some_and(|(last, _)| *last >= kind) {
                return Err(Malformed);
            }
            slots.reserve_exact(1);
            slots.push((kind, content));
        }
        Ok(Self { slots })
    }
}

/// Every kind in a cut's mask.
pub(crate) const KINDS_ALL: u16 = (1 << Kind::ALL.len()) - 1;

pub(crate) const fn kind_bit(kind: Kind) -> u16 {
    1 << kind as u8
}

fn difference(before: u64, after: u64) -> i64 {
    i64::try_from(i128::from(after) - i128::from(before)).expect("conflicts of one key fit")
}
