//! From what a user wants to what replicas apply: operations are checked against the state, become deltas with fresh
//! dots, and are applied here as one bundle. Either all operations of a write happen or none.

use crate::causal::{Seen, Stamp};
use crate::counter::Totals;
use crate::delta::{Bundle, BundleError, Change, Delta, check_key, check_path};
use crate::dots::{Dot, VersionVector};
use crate::limits::{BUNDLE_BYTES_MAX, BUNDLE_DELTAS_MAX, COUNTER_MAX, INTERVALS_MAX, WRITE_AHEAD_MAX_MS};
use crate::node::{KINDS_ALL, Node, Step, kind_bit};
use crate::store::{Entry, Store};
use crate::value::{Kind, Plain};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;
use bytes::Bytes;
use core::fmt;

/// What a user does to the value at a key (and path). The operation decides the kind that an absent value is created
/// with; on an existing value of another kind it is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// LWW register: the new value.
    Put(Plain),
    /// MV register: the new value, in place of all values seen here.
    PutMulti(Plain),
    /// G-counter: more.
    Grow(u64),
    /// PN-counter: more or less.
    Adjust(i64),
    /// G-set.
    AddForever(Plain),
    /// Two-phase set: never again after it was removed.
    AddOnce(Plain),
    RemoveForGood(Plain),
    /// OR-set.
    Add(Plain),
    Remove(Plain),
    /// List: puts a value so that it is read at this index.
    Insert {
        index: usize,
        value: Plain,
    },
    /// List: takes out what is read at this index.
    Erase {
        index: usize,
    },
    /// Removes the value, whatever its kind, as it is seen here: for a counter a reset, for a set or list a clear. What
    /// others change at the same time survives.
    Delete,
    /// Ends a clash of kinds: keeps the kind that is shown and removes what is seen of the others.
    Settle,
}

impl Op {
    /// The kind of value it works on; nothing when any will do.
    #[must_use]
    pub fn kind(&self) -> Option<Kind> {
        Some(match self {
            Self::Put(_) => Kind::LwwRegister,
            Self::PutMulti(_) => Kind::MvRegister,
            Self::Grow(_) => Kind::GCounter,
            Self::Adjust(_) => Kind::PnCounter,
            Self::AddForever(_) => Kind::GSet,
            Self::AddOnce(_) | Self::RemoveForGood(_) => Kind::TwoPhaseSet,
            Self::Add(_) | Self::Remove(_) => Kind::OrSet,
            Self::Insert { .. } | Self::Erase { .. } => Kind::List,
            Self::Delete | Self::Settle => return None,
        })
    }
}

/// One operation on one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    pub key: Bytes,
    /// Fields of nested maps below the key; empty for the key's own value.
    pub path: Vec<Bytes>,
    pub op: Op,
}

impl Write {
    /// An operation on a key's own value.
    #[must_use]
    pub fn new(key: impl Into<Bytes>, op: Op) -> Self {
        Self { key: key.into(), path: Vec::new(), op }
    }

    /// An operation on a field of a map at a key.
    #[must_use]
    pub fn at<B: Into<Bytes>>(key: impl Into<Bytes>, path: impl IntoIterator<Item = B>, op: Op) -> Self {
        Self { key: key.into(), path: path.into_iter().map(Into::into).collect(), op }
    }
}

/// Why a write was refused. None of its operations happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WriteRefused {
    /// The value has another kind, here or above it.
    KindClash { key: Bytes, is: Kind, asked: Kind },
    /// A two-phase set does not take back what was removed.
    RemovedForGood { key: Bytes },
    /// No item at this index.
    NoSuchIndex { index: usize, length: usize },
    /// This node's total of the counter would exceed 64 bits.
    CounterFull { key: Bytes },
    /// Nothing to do, or more operations than one bundle takes.
    WriteCount { count: usize },
    /// The write does not fit one bundle.
    TooLarge { bytes: usize },
    /// Key, path or something else is beyond its limit.
    Invalid(BundleError),
    /// This node's own earlier changes are not all here; going on would use a dot twice.
    OwnChangesMissing { missing: Dot },
    /// Too many holes in what was applied to say briefly what this node has seen.
    Gaps,
    /// What this node wrote or saw last is so far ahead of its clock that nobody would take what comes after it.
    ClockAhead { ahead_ms: u64 },
}

/// A key as people typed it.
fn text(key: &[u8]) -> String {
    String::from_utf8_lossy(key).into_owned()
}

impl fmt::Display for WriteRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KindClash { key, is, asked } => {
                write!(
                    f,
                    "{:?} holds a {is}, not a {asked}: use its operations, or delete it first",
                    text(key)
                )
            }
            Self::RemovedForGood { key } => {
                write!(
                    f,
                    "{:?} is a 2p-set and the element was removed from it for good: use an or-set",
                    text(key)
                )
            }
            Self::NoSuchIndex { index, length } => {
                write!(f, "index {index} is outside the list of {length} items")
            }
            Self::CounterFull { key } => {
                write!(
                    f,
                    "{:?}: this node's total would exceed 64 bits: delete the counter to reset it",
                    text(key)
                )
            }
            Self::WriteCount { count } => {
                write!(f, "{count} operations; one write takes 1 to {BUNDLE_DELTAS_MAX}")
            }
            Self::TooLarge { bytes } => {
                write!(f, "the write takes {bytes} bytes, more than {BUNDLE_BYTES_MAX}: split it")
            }
            Self::Invalid(error) => error.fmt(f),
            Self::OwnChangesMissing { missing } => write!(
                f,
                "this node's own change {missing} is missing: fetch it from a peer, or return as a new incarnation"
            ),
            Self::Gaps => {
                write!(f, "more than {INTERVALS_MAX} gaps in what was applied: wait until they are filled")
            }
            Self::ClockAhead { ahead_ms } => write!(
                f,
                "the newest change here is {ahead_ms} ms ahead of this node's clock, which was ahead before or is behind now; others would not take what follows it: synchronise the clock (NTP), then write again in {} s",
                ahead_ms.saturating_sub(WRITE_AHEAD_MAX_MS).div_ceil(1_000)
            ),
        }
    }
}

impl core::error::Error for WriteRefused {}

impl From<BundleError> for WriteRefused {
    fn from(error: BundleError) -> Self {
        match error {
            BundleError::TooLong { bytes } => Self::TooLarge { bytes },
            other => Self::Invalid(other),
        }
    }
}

impl Store {
    /// Makes one bundle of these operations and applies it. Nothing comes back when they change nothing (removing what is
    /// not there). The caller makes the bundle durable before it acknowledges or sends it.
    ///
    /// `written` is how far this node is known to have written (from its disk, or from peers that remember): lower than
    /// what the store has is fine, higher means that the store lost changes, and is refused.
    ///
    /// # Errors
    /// See [`WriteRefused`].
    pub fn write(
        &mut self,
        writes: &[Write],
        written: u64,
        now_ms: u64,
    ) -> Result<Option<Bundle>, WriteRefused> {
        let first = self.next_own(written)?;
        let deltas = self.plan_all(writes, first)?;
        if deltas.is_empty() {
            return Ok(None);
        }
        let has_cut = deltas.iter().any(|d| matches!(d.change, Change::Cut { .. }));
        let seen = has_cut.then(|| self.applied().clone());
        let mut clock = self.clock;
        let hlc = clock.tick(now_ms);
        // A clock that was ahead and was set right: it would be told "written", and peers would drop it until then.
        let ahead_ms = hlc.ms().saturating_sub(now_ms);
        if ahead_ms > WRITE_AHEAD_MAX_MS {
            return Err(WriteRefused::ClockAhead { ahead_ms });
        }
        let bundle = Bundle::new(first, hlc, self.floor_number(), seen, deltas)?;
        let bytes = bundle.encode().len();
        if bytes > BUNDLE_BYTES_MAX {
            return Err(WriteRefused::TooLarge { bytes });
        }
        debug_assert_eq!(self.missing_for(&bundle), None, "a writer has what it builds upon");
        self.take(&bundle);
        Ok(Some(bundle))
    }

    fn next_own(&self, written: u64) -> Result<Dot, WriteRefused> {
        let me = self.me();
        let last = self.applied().last(me).max(written);
        if let Some(counter) = self.applied().first_gap(me, 1, last) {
            return Err(WriteRefused::OwnChangesMissing { missing: Dot::new(me, counter) });
        }
        if last >= COUNTER_MAX { Err(BundleError::Counter.into()) } else { Ok(Dot::new(me, last + 1)) }
    }

    /// Plans each operation against the state as the operations before it leave it. Keys that several operations touch
    /// are changed in a copy; the store itself is not touched, so that a refusal leaves nothing behind.
    fn plan_all(&self, writes: &[Write], first: Dot) -> Result<Vec<Delta>, WriteRefused> {
        if writes.is_empty() || writes.len() > BUNDLE_DELTAS_MAX {
            return Err(WriteRefused::WriteCount { count: writes.len() });
        }
        let mut once: BTreeSet<&Bytes> = BTreeSet::new();
        let several: BTreeSet<&Bytes> =
            writes.iter().map(|w| &w.key).filter(|key| !once.insert(key)).collect();
        let mut copies: BTreeMap<&Bytes, Entry> = BTreeMap::new();
        let absent = Entry::default();
        let mut deltas: Vec<Delta> = Vec::with_capacity(writes.len());
        for write in writes {
            check_key(&write.key)?;
            check_path(&write.path)?;
            let stored = self.entries.get(&write.key).unwrap_or(&absent);
            let entry = copies.get(&write.key).unwrap_or(stored);
            let dot = Dot::new(first.origin, first.counter + deltas.len() as u64);
            let Some(change) = plan(&entry.node, write, dot, self.applied())? else { continue };
            let after = entry.newest();
            if several.contains(&write.key) {
                let stamp = Stamp { hlc: self.clock.next(), dot };
                let seen = Seen { before: self.applied(), own: dot };
                let copy = copies.entry(&write.key).or_insert_with(|| stored.clone());
                copy.apply(&write.path, &after, Step { change: &change, stamp, seen, mutants: self.mutants });
            }
            deltas.push(Delta { key: write.key.clone(), path: write.path.clone(), after, change });
        }
        Ok(deltas)
    }
}

/// The change that an operation amounts to on what stands at its key; nothing when it changes nothing.
fn plan(
    root: &Node,
    write: &Write,
    dot: Dot,
    applied: &VersionVector,
) -> Result<Option<Change>, WriteRefused> {
    let Write { key, path, op } = write;
    let clash = |is: Kind, asked: Kind| Err(WriteRefused::KindClash { key: key.clone(), is, asked });
    for depth in 0..path.len() {
        if let Some(kind) = root.at(&path[..depth]).and_then(Node::kind)
            && kind != Kind::Map
        {
            return clash(kind, Kind::Map);
        }
    }
    let absent = Node::default();
    let node = root.at(path).unwrap_or(&absent);
    if let (Some(is), Some(asked)) = (node.kind(), op.kind())
        && is != asked
    {
        return clash(is, asked);
    }
    let replaced = |kind: Kind| node.register(kind).map_or_else(Vec::new, crate::register::Register::dots);
    let tags = |kind: Kind, element: &Plain| node.set(kind).map_or_else(Vec::new, |set| set.tags(element));
    let has = |kind: Kind, element: &Plain| node.set(kind).is_some_and(|set| set.contains(element));
    let barred = |element: &Plain| node.set(Kind::TwoPhaseSet).is_some_and(|set| set.is_barred(element));
    Ok(Some(match op {
        Op::Put(value) => {
            let kind = Kind::LwwRegister;
            Change::Write { kind, value: Some(value.clone()), over: replaced(kind) }
        }
        Op::PutMulti(value) => {
            let kind = Kind::MvRegister;
            Change::Write { kind, value: Some(value.clone()), over: replaced(kind) }
        }
        Op::Grow(by) => count(node, key, Kind::GCounter, dot, *by, 0)?,
        Op::Adjust(by) => {
            let (up, down) = if *by < 0 { (0, by.unsigned_abs()) } else { (by.unsigned_abs(), 0) };
            count(node, key, Kind::PnCounter, dot, up, down)?
        }
        Op::AddForever(element) => {
            let kind = Kind::GSet;
            Change::Include { kind, element: element.clone(), over: tags(kind, element) }
        }
        Op::AddOnce(element) => {
            if barred(element) {
                return Err(WriteRefused::RemovedForGood { key: key.clone() });
            }
            let kind = Kind::TwoPhaseSet;
            Change::Include { kind, element: element.clone(), over: tags(kind, element) }
        }
        Op::RemoveForGood(element) => {
            let kind = Kind::TwoPhaseSet;
            if !has(kind, element) {
                return Ok(None);
            }
            Change::Exclude { kind, element: element.clone(), over: tags(kind, element) }
        }
        Op::Add(element) => {
            let kind = Kind::OrSet;
            Change::Include { kind, element: element.clone(), over: tags(kind, element) }
        }
        Op::Remove(element) => {
            let kind = Kind::OrSet;
            if !has(kind, element) {
                return Ok(None);
            }
            Change::Exclude { kind, element: element.clone(), over: tags(kind, element) }
        }
        Op::Insert { index, value } => {
            let length = node.list().map_or(0, crate::list::List::len);
            if *index > length {
                return Err(WriteRefused::NoSuchIndex { index: *index, length });
            }
            let after = index.checked_sub(1).and_then(|before| node.list()?.dot_at(before));
            Change::Insert { after, value: value.clone() }
        }
        Op::Erase { index } => {
            let length = node.list().map_or(0, crate::list::List::len);
            let item = node.list().and_then(|list| list.dot_at(*index));
            let Some(item) = item else { return Err(WriteRefused::NoSuchIndex { index: *index, length }) };
            Change::Erase { item }
        }
        Op::Delete => return delete(node, path, applied),
        Op::Settle => {
            let kinds: Vec<Kind> = node.kinds_live().collect();
            let Some((shown, others @ [_, ..])) = kinds.split_last() else { return Ok(None) };
            let mask = others.iter().fold(0, |mask, kind| mask | kind_bit(*kind));
            debug_assert_eq!(mask & kind_bit(*shown), 0);
            return cut(node, mask, applied);
        }
    }))
}

fn count(node: &Node, key: &Bytes, kind: Kind, dot: Dot, up: u64, down: u64) -> Result<Change, WriteRefused> {
    let run = node.counter(kind).and_then(|counter| counter.run_of(dot));
    let (birth, had) = run.unwrap_or((dot.counter, Totals::default()));
    let full = || WriteRefused::CounterFull { key: key.clone() };
    let totals = Totals {
        up: had.up.checked_add(up).ok_or_else(full)?,
        down: had.down.checked_add(down).ok_or_else(full)?,
    };
    Ok(Change::Count { kind, birth, totals })
}

/// A key that is one register is deleted by writing nothing over it, so that a concurrent write is a conflict that is
/// seen. Everything else is cut: what is inside merges with what others do at the same time.
fn delete(node: &Node, path: &[Bytes], applied: &VersionVector) -> Result<Option<Change>, WriteRefused> {
    let mut kinds = node.kinds_live();
    match (kinds.next(), kinds.next()) {
        (None, _) => Ok(None),
        (Some(kind @ (Kind::LwwRegister | Kind::MvRegister)), None) if path.is_empty() => {
            let over = node.register(kind).map_or_else(Vec::new, crate::register::Register::dots);
            Ok(Some(Change::Write { kind, value: None, over }))
        }
        _ => cut(node, KINDS_ALL, applied),
    }
}

fn cut(node: &Node, kinds: u16, applied: &VersionVector) -> Result<Option<Change>, WriteRefused> {
    if applied.iter().any(|(_, list)| list.len() >= INTERVALS_MAX) {
        return Err(WriteRefused::Gaps);
    }
    let mut runs = Vec::new();
    node.seen_runs(kinds, &mut Vec::new(), &mut runs);
    runs.sort_by(|a, b| (&a.path, a.kind).cmp(&(&b.path, b.kind)));
    let settles = node.conflicts_settled_by_cut(kinds);
    let settles = u32::try_from(settles).unwrap_or(u32::MAX);
    Ok(Some(Change::Cut { kinds, settles, runs }))
}
