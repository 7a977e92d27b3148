//! The model that cannot be wrong: a list of everything that was ever done, and for each thing what its writer had seen.
//! It never forgets, so it has no tombstones, no contexts and nothing to collect; a value is worked out from the list
//! each time it is asked for. It shares no code with what it judges, only the words for operations and views.

use bytes::Bytes;
use dwcp_crdt::{Dot, Hlc, Kind, Op, Plain, View, Write};
use std::collections::{BTreeMap, BTreeSet};

type Dots = BTreeSet<Dot>;
type Path = Vec<Bytes>;

#[derive(Clone, Debug)]
enum Did {
    Wrote { kind: Kind, value: Option<Plain> },
    Counted { kind: Kind, by: i128 },
    Added { kind: Kind, element: Plain },
    Removed { kind: Kind, element: Plain },
    Inserted { after: Option<Dot>, value: Plain },
    Erased { item: Dot },
    Cut { kinds: BTreeSet<Kind> },
}

impl Did {
    fn kind(&self) -> Option<Kind> {
        match self {
            Self::Wrote { kind, .. }
            | Self::Counted { kind, .. }
            | Self::Added { kind, .. }
            | Self::Removed { kind, .. } => Some(*kind),
            Self::Inserted { .. } | Self::Erased { .. } => Some(Kind::List),
            Self::Cut { .. } => None,
        }
    }
}

#[derive(Clone, Debug)]
struct Event {
    dot: Dot,
    hlc: Hlc,
    key: Bytes,
    path: Path,
    did: Did,
    seen: Dots,
}

/// What the model expects of a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    Change,
    Nothing,
    Refused,
}

#[derive(Clone, Debug, Default)]
pub struct Model {
    events: BTreeMap<Dot, Event>,
}

/// The events of one key that somebody has applied.
struct Past<'a> {
    events: Vec<&'a Event>,
}

impl Model {
    fn past(&self, key: &[u8], applied: &Dots) -> Past<'_> {
        Past { events: self.events.values().filter(|e| e.key == key && applied.contains(&e.dot)).collect() }
    }

    pub fn get(&self, key: &[u8], applied: &Dots) -> Option<View> {
        self.past(key, applied).view(&[])
    }

    pub fn keys(&self) -> BTreeSet<Bytes> {
        self.events.values().map(|e| e.key.clone()).collect()
    }

    /// What the write amounts to for somebody who has applied these dots.
    fn plan(&self, write: &Write, applied: &Dots) -> Result<Option<Did>, ()> {
        let past = self.past(&write.key, applied);
        let path = &write.path;
        for depth in 0..path.len() {
            if past.kind(&path[..depth]).is_some_and(|kind| kind != Kind::Map) {
                return Err(());
            }
        }
        let is = past.kind(path);
        if let (Some(is), Some(asked)) = (is, write.op.kind())
            && is != asked
        {
            return Err(());
        }
        let elements = |kind| past.elements(path, kind);
        Ok(Some(match &write.op {
            Op::Put(value) => Did::Wrote { kind: Kind::LwwRegister, value: Some(value.clone()) },
            Op::PutMulti(value) => Did::Wrote { kind: Kind::MvRegister, value: Some(value.clone()) },
            Op::Grow(by) => Did::Counted { kind: Kind::GCounter, by: i128::from(*by) },
            Op::Adjust(by) => Did::Counted { kind: Kind::PnCounter, by: i128::from(*by) },
            Op::AddForever(element) => Did::Added { kind: Kind::GSet, element: element.clone() },
            Op::Add(element) => Did::Added { kind: Kind::OrSet, element: element.clone() },
            Op::AddOnce(element) => {
                if past.barred(path, element) {
                    return Err(());
                }
                Did::Added { kind: Kind::TwoPhaseSet, element: element.clone() }
            }
            Op::Remove(element) | Op::RemoveForGood(element) => {
                let kind = write.op.kind().expect("a set");
                if !elements(kind).contains(element) {
                    return Ok(None);
                }
                Did::Removed { kind, element: element.clone() }
            }
            Op::Insert { index, value } => {
                let items = past.items(path);
                if *index > items.len() {
                    return Err(());
                }
                let after = index.checked_sub(1).map(|before| items[before].0);
                Did::Inserted { after, value: value.clone() }
            }
            Op::Erase { index } => Did::Erased { item: past.items(path).get(*index).ok_or(())?.0 },
            Op::Delete => {
                let kinds = past.kinds(path);
                match kinds.as_slice() {
                    [] => return Ok(None),
                    [kind @ (Kind::LwwRegister | Kind::MvRegister)] if path.is_empty() => {
                        Did::Wrote { kind: *kind, value: None }
                    }
                    _ => Did::Cut { kinds: Kind::ALL.into() },
                }
            }
            Op::Settle => {
                let mut kinds: BTreeSet<Kind> = past.kinds(path).into_iter().collect();
                kinds.pop_last();
                if kinds.is_empty() {
                    return Ok(None);
                }
                Did::Cut { kinds }
            }
        }))
    }

    pub fn expect(&self, write: &Write, applied: &Dots) -> Expected {
        match self.plan(write, applied) {
            Err(()) => Expected::Refused,
            Ok(None) => Expected::Nothing,
            Ok(Some(_)) => Expected::Change,
        }
    }

    /// Writes down that somebody who had applied these dots did this.
    pub fn record(&mut self, dot: Dot, hlc: Hlc, write: &Write, applied: &Dots) {
        let did = self.plan(write, applied).expect("not refused").expect("a change");
        let (key, path) = (write.key.clone(), write.path.clone());
        self.events.insert(dot, Event { dot, hlc, key, path, did, seen: applied.clone() });
    }

    /// Concurrent writes among these dots: what is open now, and what each writer closed.
    pub fn conflicts(&self, applied: &Dots) -> usize {
        let open: usize =
            self.keys().iter().map(|key| self.past(key, applied).open(&[], &Kind::ALL.into())).sum();
        let closed = |event: &Event| {
            let past = self.past(&event.key, &event.seen);
            match &event.did {
                Did::Wrote { kind, .. } => past.versions(&event.path, *kind).len().saturating_sub(1),
                Did::Cut { kinds } => past.open(&event.path, kinds),
                _ => 0,
            }
        };
        open + self.events.values().filter(|e| applied.contains(&e.dot)).map(closed).sum::<usize>()
    }
}

impl<'a> Past<'a> {
    /// Did anybody delete this, having seen it?
    fn is_cut(&self, event: &Event) -> bool {
        self.events.iter().any(|cut| match &cut.did {
            Did::Cut { kinds } if event.path.starts_with(&cut.path) && cut.seen.contains(&event.dot) => {
                let kind = if event.path.len() > cut.path.len() { Some(Kind::Map) } else { event.did.kind() };
                kind.is_some_and(|kind| kinds.contains(&kind))
            }
            _ => false,
        })
    }

    fn at(&self, path: &[Bytes], kind: Kind) -> impl Iterator<Item = &'a Event> {
        let kept: Vec<&'a Event> = self.events.iter().copied().filter(|e| !self.is_cut(e)).collect();
        let path = path.to_vec();
        kept.into_iter().filter(move |e| e.path == path && e.did.kind() == Some(kind))
    }

    fn versions(&self, path: &[Bytes], kind: Kind) -> Vec<&'a Event> {
        let writes: Vec<&Event> = self.at(path, kind).collect();
        let all: Vec<&Event> =
            self.events.iter().copied().filter(|e| e.path == path && e.did.kind() == Some(kind)).collect();
        writes.into_iter().filter(|w| !all.iter().any(|later| later.seen.contains(&w.dot))).collect()
    }

    fn elements(&self, path: &[Bytes], kind: Kind) -> BTreeSet<Plain> {
        let mut elements = BTreeSet::new();
        for event in self.at(path, kind) {
            let Did::Added { element, .. } = &event.did else { continue };
            let gone = self.events.iter().any(|e| match &e.did {
                Did::Removed { kind: k, element: x } if *k == kind && x == element && e.path == path => {
                    if kind == Kind::TwoPhaseSet {
                        !self.is_cut(e)
                    } else {
                        e.seen.contains(&event.dot)
                    }
                }
                _ => false,
            });
            if !gone {
                elements.insert(element.clone());
            }
        }
        elements
    }

    fn barred(&self, path: &[Bytes], element: &Plain) -> bool {
        self.at(path, Kind::TwoPhaseSet)
            .any(|e| matches!(&e.did, Did::Removed { element: x, .. } if x == element))
    }

    /// The list as it reads: every insert ever, in its place, then without what was taken out.
    fn items(&self, path: &[Bytes]) -> Vec<(Dot, Plain)> {
        let mut below: BTreeMap<Option<Dot>, Vec<&Event>> = BTreeMap::new();
        for event in self.events.iter().filter(|e| e.path == path) {
            if let Did::Inserted { after, .. } = &event.did {
                below.entry(*after).or_default().push(event);
            }
        }
        for list in below.values_mut() {
            list.sort_by_key(|e| std::cmp::Reverse((e.hlc, e.dot)));
        }
        let mut order = Vec::new();
        self.walk(None, &below, &mut order);
        let erased = |dot: Dot| {
            self.events.iter().any(|e| e.path == path && matches!(e.did, Did::Erased { item } if item == dot))
        };
        order.retain(|event| !erased(event.dot) && !self.is_cut(event));
        let value = |e: &Event| match &e.did {
            Did::Inserted { value, .. } => (e.dot, value.clone()),
            _ => unreachable!("only inserts are walked"),
        };
        order.into_iter().map(value).collect()
    }

    fn walk(
        &self,
        parent: Option<Dot>,
        below: &BTreeMap<Option<Dot>, Vec<&'a Event>>,
        order: &mut Vec<&'a Event>,
    ) {
        for event in below.get(&parent).into_iter().flatten() {
            order.push(event);
            self.walk(Some(event.dot), below, order);
        }
    }

    fn fields(&self, path: &[Bytes]) -> BTreeSet<Bytes> {
        let deeper = self.events.iter().filter(|e| e.path.len() > path.len() && e.path.starts_with(path));
        deeper.map(|e| e.path[path.len()].clone()).collect()
    }

    fn is_live(&self, path: &[Bytes], kind: Kind) -> bool {
        match kind {
            Kind::LwwRegister | Kind::MvRegister => {
                self.versions(path, kind).iter().any(|e| matches!(e.did, Did::Wrote { value: Some(_), .. }))
            }
            Kind::GCounter | Kind::PnCounter => self.at(path, kind).next().is_some(),
            Kind::GSet | Kind::TwoPhaseSet | Kind::OrSet => !self.elements(path, kind).is_empty(),
            Kind::List => !self.items(path).is_empty(),
            Kind::Map => {
                self.fields(path).into_iter().any(|field| !self.kinds(&[path, &[field]].concat()).is_empty())
            }
        }
    }

    fn kinds(&self, path: &[Bytes]) -> Vec<Kind> {
        Kind::ALL.into_iter().filter(|kind| self.is_live(path, *kind)).collect()
    }

    fn kind(&self, path: &[Bytes]) -> Option<Kind> {
        self.kinds(path).last().copied()
    }

    /// Conflicts that nobody has settled, below a path and of some kinds there.
    fn open(&self, path: &[Bytes], kinds: &BTreeSet<Kind>) -> usize {
        let live = self.kinds(path);
        let stays = live.iter().filter(|kind| !kinds.contains(kind)).count();
        let clashes = live.len().saturating_sub(1) - stays.saturating_sub(1);
        let registers = [Kind::LwwRegister, Kind::MvRegister].into_iter().filter(|kind| kinds.contains(kind));
        let siblings: usize = registers.map(|kind| self.versions(path, kind).len().saturating_sub(1)).sum();
        let below: usize = if kinds.contains(&Kind::Map) {
            let fields = self.fields(path).into_iter();
            fields.map(|field| self.open(&[path, &[field]].concat(), &Kind::ALL.into())).sum()
        } else {
            0
        };
        clashes + siblings + below
    }

    fn view(&self, path: &[Bytes]) -> Option<View> {
        let kind = self.kind(path)?;
        let value_of = |e: &Event| match &e.did {
            Did::Wrote { value, .. } => value.clone(),
            _ => None,
        };
        Some(match kind {
            Kind::LwwRegister => {
                let versions = self.versions(path, kind);
                View::Register(versions.iter().max_by_key(|e| (e.hlc, e.dot)).and_then(|e| value_of(e))?)
            }
            Kind::MvRegister => {
                let values: BTreeSet<Plain> =
                    self.versions(path, kind).iter().filter_map(|e| value_of(e)).collect();
                View::Siblings(values.into_iter().collect())
            }
            Kind::GCounter | Kind::PnCounter => View::Count(
                self.at(path, kind)
                    .map(|e| match e.did {
                        Did::Counted { by, .. } => by,
                        _ => 0,
                    })
                    .sum(),
            ),
            Kind::GSet | Kind::TwoPhaseSet | Kind::OrSet => View::Set(self.elements(path, kind)),
            Kind::List => View::List(self.items(path).into_iter().map(|(_, value)| value).collect()),
            Kind::Map => View::Map(
                self.fields(path)
                    .into_iter()
                    .filter_map(|field| Some((field.clone(), self.view(&[path, &[field]].concat())?)))
                    .collect(),
            ),
        })
    }
}
