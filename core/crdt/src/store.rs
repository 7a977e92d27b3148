//! The replicated state of one node: typed values by key, the dots that were applied, the clock, and the conflicts.
//!
//! Two doors lead in. `write` makes a bundle from a user's operations and applies it; `apply` takes a bundle from
//! elsewhere. Both end in the same code. The state is a function of the set of bundles applied (and of the newest floor):
//! not of their order, their grouping, or how often each came. That is what makes applying a join: idempotent because a
//! dot in `applied` is never applied again, commutative and associative because changes of one key that depend on each
//! other are applied in that order everywhere, and changes that do not commute (Shapiro et al., RR-7506, section 2.4).

use crate::causal::{Seen, Stable, Stamp, insert_dot};
use crate::clock::{Clock, ClockAhead, Hlc};
use crate::collect::{Floor, FloorRefused, FloorState, Raised};
use crate::delta::{Bundle, Change, Delta};
use crate::dots::{Dot, Origin, VersionVector};
use crate::held::{Held, Missing};
use crate::history::{Conflict, History, Outcome};
use crate::limits::{COUNTER_MAX, DEPTH_MAX, INTERVALS_MAX, ORIGINS_MAX};
use crate::node::{Node, Step};
use crate::register::{Register, Version};
use crate::resolver::{Resolved, Resolvers};
use crate::value::{Kind, View};
use crate::wire::{Malformed, Reader, put_dots, put_vector};
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use bytes::Bytes;
use core::fmt;
use core::ops::Bound;
use dwcp_base::lthash::LtHash;
use dwcp_base::{Hash, Hasher, Mutant, Mutants};

/// What became of a bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Applied {
    /// It is part of the state, and so are these bundles, which had waited for it.
    Done { released: Vec<Bundle>, conflicts: u64 },
    /// All of it was part of the state before.
    Duplicate,
    /// It waits; nothing of it is part of the state. It is not durable here: a crash forgets it.
    Held { missing: Missing },
}

/// Why a bundle was refused. Nothing of it was applied; it may come again later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    ClockAhead(ClockAhead),
    /// As many of this origin's bundles wait as may.
    HeldFull {
        origin: Origin,
    },
    /// It would tear more holes into what is applied of this origin.
    Gaps {
        origin: Origin,
    },
    /// A new origin beyond the bound.
    Origins,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ClockAhead(ahead) => ahead.fmt(f),
            Self::HeldFull { origin } => {
                write!(f, "too many bundles of {origin} wait for earlier changes: fetch those first")
            }
            Self::Gaps { origin } => write!(
                f,
                "more than {INTERVALS_MAX} gaps in the changes of {origin}: fetch what is missing first"
            ),
            Self::Origins => write!(f, "more than {ORIGINS_MAX} origins, past incarnations included"),
        }
    }
}

impl core::error::Error for Refused {}

#[derive(Clone, Debug, Default)]
pub(crate) struct Entry {
    pub(crate) node: Node,
    /// The newest changes of this key: no other one that was applied comes after them. Nothing when they are exactly the
    /// versions of the register that is all there is; most keys are that. Without a value they are the key's tombstone:
    /// what is written next names them, so that nobody applies it before the delete.
    newest: Option<Box<[Dot]>>,
    /// What the digest holds of this entry; zero while it is new.
    pub(crate) hashed: Hash,
    /// Stands in the list of entries to hash again.
    pub(crate) is_dirty: bool,
}

impl Entry {
    fn is_empty(&self) -> bool {
        self.node.is_empty() && self.newest.is_none()
    }

    pub(crate) fn has_graves(&self) -> bool {
        self.node.is_empty() || self.node.has_graves()
    }

    /// What a change made now comes after.
    pub(crate) fn newest(&self) -> Vec<Dot> {
        match (&self.newest, self.node.only_register()) {
            (Some(newest), _) => newest.to_vec(),
            (None, Some(register)) => register.dots(),
            (None, None) => Vec::new(),
        }
    }

    /// Applies one change that comes after these; returns by how much the open conflicts grew.
    pub(crate) fn apply(&mut self, path: &[Bytes], after: &[Dot], step: Step<'_>) -> i64 {
        if let Change::Write { kind, over, .. } = step.change
            && path.is_empty()
            && over == after
            && self.newest.is_none()
            && self.node.is_at_most(*kind)
        {
            // What is replaced and what it comes after are the same, before and after this write.
            return self.node.apply(path, step);
        }
        let mut newest = self.newest();
        newest.retain(|dot| after.binary_search(dot).is_err());
        insert_dot(&mut newest, step.stamp.dot);
        let opened = self.node.apply(path, step);
        self.newest = Some(newest.into_boxed_slice());
        self.leave_implied();
        opened
    }

    fn collect(&mut self, stable: Stable<'_>) {
        self.node.collect(stable);
        let all_stable = |newest: &[Dot]| newest.iter().all(|dot| stable.dots.contains(*dot));
        if self.node.is_empty() && self.newest.as_deref().is_some_and(all_stable) {
            self.newest = None;
        }
        self.leave_implied();
    }

    /// One state, one representation: what the register says by itself is not said twice.
    fn leave_implied(&mut self) {
        let (Some(newest), Some(register)) = (&self.newest, self.node.only_register()) else { return };
        if register.has_exactly(newest) {
            self.newest = None;
        }
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        put_dots(out, self.newest.as_deref().unwrap_or_default());
        self.node.encode(out);
    }

    pub(crate) fn decode(reader: &mut Reader) -> Result<Self, Malformed> {
        let newest = reader.dots()?;
        let ascending = newest.windows(2).all(|w| w[0] < w[1]);
        let newest = (!newest.is_empty()).then(|| newest.into_boxed_slice());
        let entry = Self { newest, node: Node::decode(reader, DEPTH_MAX)?, ..Self::default() };
        if ascending && !entry.is_empty() { Ok(entry) } else { Err(Malformed) }
    }

    pub(crate) fn hash(&self, key: &[u8]) -> Hash {
        let mut bytes = Vec::with_capacity(128);
        self.encode(&mut bytes);
        let mut hasher = Hasher::new("dwcp v3 convergent entry");
        hasher.field(key).field(&bytes);
        hasher.finish()
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Store {
    me: Origin,
    pub(crate) entries: BTreeMap<Bytes, Entry>,
    pub(crate) applied: VersionVector,
    pub(crate) clock: Clock,
    pub(crate) floors: FloorState,
    /// Conflicts that some change settled, counted when it was applied.
    pub(crate) conflicts_settled: u64,
    conflicts_open: u64,
    /// Keys with something that waits for collection.
    graves: BTreeSet<Bytes>,
    held: Held,
    /// Origins whose changes end somewhere by decision: what is named beyond that will never exist. At most one per origin.
    ends: BTreeMap<Origin, u64>,
    history: History,
    resolvers: Resolvers,
    resolutions_impure: u64,
    digest: LtHash,
    dirty: Vec<Bytes>,
    pub(crate) mutants: Mutants,
}

impl Store {
    /// An empty store that writes as `me`.
    #[must_use]
    pub fn new(me: Origin, resolvers: Resolvers) -> Self {
        Self {
            me,
            entries: BTreeMap::new(),
            applied: VersionVector::new(),
            clock: Clock::default(),
            floors: FloorState::default(),
            conflicts_settled: 0,
            conflicts_open: 0,
            graves: BTreeSet::new(),
            held: Held::default(),
            ends: BTreeMap::new(),
            history: History::default(),
            resolvers,
            resolutions_impure: 0,
            digest: LtHash::default(),
            dirty: Vec::new(),
            mutants: Mutants::default(),
        }
    }

    /// Switches rules off, in a build for proofs; in any other the set has nothing in it.
    pub fn set_mutants(&mut self, mutants: Mutants) {
        self.mutants = mutants;
    }

    // --- reading ---

    #[must_use]
    pub fn me(&self) -> Origin {
        self.me
    }

    /// The value of a key; nothing when it does not exist.
    #[must_use]
    pub fn get(&self, key: &[u8]) -> Option<View> {
        self.get_at(key, &[])
    }

    /// The value at a path of map fields below a key.
    #[must_use]
    pub fn get_at(&self, key: &[u8], path: &[Bytes]) -> Option<View> {
        let pick = |register: &Register| self.resolve(key, register).value;
        self.node(key, path)?.view(&pick)
    }

    /// Every kind that a key has; more than one while a clash waits to be settled. The last is the one shown.
    #[must_use]
    pub fn kinds(&self, key: &[u8], path: &[Bytes]) -> Vec<Kind> {
        self.node(key, path).map_or_else(Vec::new, |node| node.kinds_live().collect())
    }

    /// The versions of a register that nobody has replaced, deletes included, ascending by dot. Of a register that was
    /// deleted a tombstone is left, behind the one of the other kind that may have taken its place.
    #[must_use]
    pub fn siblings(&self, key: &[u8], path: &[Bytes]) -> Vec<Version> {
        let Some(node) = self.node(key, path) else { return Vec::new() };
        let registers = [Kind::MvRegister, Kind::LwwRegister].into_iter();
        let there = registers.filter_map(|kind| Some((kind, node.register(kind)?)));
        let is_live = |kind: Kind| node.kinds_live().any(|live| live == kind);
        let register = there.min_by_key(|(kind, _)| !is_live(*kind)).map(|(_, register)| register);
        register.map_or_else(Vec::new, |register| register.versions().to_vec())
    }

    /// Existing keys at or after `from`, ascending.
    pub fn keys(&self, from: &[u8]) -> impl Iterator<Item = &Bytes> {
        self.keys_within((Bound::Included(from), Bound::Unbounded))
    }

    /// Existing keys within bounds that are not empty, ascending.
    pub fn keys_within(&self, bounds: (Bound<&[u8]>, Bound<&[u8]>)) -> impl Iterator<Item = &Bytes> {
        let entries = self.entries.range::<[u8], _>(bounds);
        entries.filter(|(key, entry)| self.is_there(key, &entry.node)).map(|(key, _)| key)
    }

    /// What a register's versions amount to.
    fn resolve(&self, key: &[u8], register: &Register) -> Resolved {
        if self.mutants.on(Mutant::CrdtResolverByOrder) {
            return self.resolvers.resolve_as_met(self.me, key, register);
        }
        self.resolvers.resolve(key, register)
    }

    fn is_there(&self, key: &[u8], node: &Node) -> bool {
        match node.kind() {
            None => false,
            Some(kind @ Kind::LwwRegister) => {
                node.register(kind).is_some_and(|r| self.resolve(key, r).value.is_some())
            }
            Some(_) => true,
        }
    }

    /// Keys held in memory, those of tombstones included.
    #[must_use]
    pub fn entries_count(&self) -> usize {
        self.entries.len()
    }

    /// Keys that exist. One that a custom resolver alone hides counts.
    #[must_use]
    pub fn keys_count(&self) -> usize {
        let is_gone =
            |key: &&Bytes| self.entries.get(*key).is_some_and(|entry| !self.is_there(key, &entry.node));
        // Whatever was deleted leaves something that waits for collection.
        self.entries.len() - self.graves.iter().filter(is_gone).count()
    }

    /// The dots that are part of the state.
    #[must_use]
    pub fn applied(&self) -> &VersionVector {
        &self.applied
    }

    #[must_use]
    pub fn latest(&self) -> Hlc {
        self.clock.latest()
    }

    /// Concurrent writes, equal on every replica that has applied the same. It counts, for each version of a register,
    /// how many writes replaced it beyond the first (a key's absence is such a version too), and each kind that clashes
    /// with another. Counters, sets and lists merge without conflict.
    #[must_use]
    pub fn conflict_count(&self) -> u64 {
        self.conflicts_settled.saturating_add(self.conflicts_open)
    }

    /// Those of them that nobody has settled yet.
    #[must_use]
    pub fn conflicts_open(&self) -> u64 {
        self.conflicts_open
    }

    /// The newest conflicts seen here, oldest first.
    pub fn history(&self) -> impl DoubleEndedIterator<Item = &Conflict> + ExactSizeIterator {
        self.history.iter()
    }

    /// How often a custom resolver gave two answers for one set of siblings.
    #[must_use]
    pub fn resolutions_impure(&self) -> u64 {
        self.resolutions_impure
    }

    #[must_use]
    pub fn held_count(&self) -> usize {
        self.held.len()
    }

    /// What held bundles wait for, for whoever can fetch it.
    pub fn missing(&self) -> impl Iterator<Item = Missing> {
        self.held.missing()
    }

    #[must_use]
    pub fn floor_number(&self) -> u64 {
        self.floors.number()
    }

    /// The stable dots: below them nothing is kept for latecomers.
    #[must_use]
    pub fn stable(&self) -> &VersionVector {
        self.floors.stable().dots
    }

    /// Keys with something that waits for collection.
    #[must_use]
    pub fn graves_count(&self) -> usize {
        self.graves.len()
    }

    pub(crate) fn node(&self, key: &[u8], path: &[Bytes]) -> Option<&Node> {
        self.entries.get(key)?.node.at(path)
    }

    // --- applying ---

    /// Joins a bundle into the state, or holds it until what it builds upon comes.
    ///
    /// `now_ms` judges its timestamp. For one that was judged before (read back from disk, or ordered by the log), pass
    /// the bundle's own time, `bundle.hlc().ms()`: this node's clock may be behind since.
    ///
    /// # Errors
    /// See [`Refused`]; the state is unchanged then.
    pub fn apply(&mut self, bundle: &Bundle, now_ms: u64) -> Result<Applied, Refused> {
        let origin = bundle.origin();
        if self.applied.contains_range(origin, bundle.first(), bundle.last()) {
            return Ok(Applied::Duplicate);
        }
        self.may_name(bundle)?;
        let mut clock = self.clock;
        clock.observe(bundle.hlc(), now_ms).map_err(Refused::ClockAhead)?;
        if let Some(missing) = self.missing_for(bundle) {
            if !self.held.contains(bundle) && !self.held.hold(bundle, missing) {
                return Err(Refused::HeldFull { origin });
            }
            return Ok(Applied::Held { missing });
        }
        let before = self.conflict_count();
        self.take(bundle);
        let waiting = self.held.release_dots(origin, bundle.first(), bundle.last());
        let released = self.take_all(waiting);
        Ok(Applied::Done { released, conflicts: self.conflict_count().saturating_sub(before) })
    }

    fn may_name(&self, bundle: &Bundle) -> Result<(), Refused> {
        let origin = bundle.origin();
        let intervals = self.applied.intervals_of(origin);
        if intervals.is_empty() && self.applied.origins_count() >= ORIGINS_MAX {
            return Err(Refused::Origins);
        }
        let touches = intervals.iter().any(|i| i.first <= bundle.last() + 1 && i.last + 1 >= bundle.first());
        if intervals.len() >= INTERVALS_MAX && !touches { Err(Refused::Gaps { origin }) } else { Ok(()) }
    }

    /// The first thing that must come before this bundle.
    pub(crate) fn missing_for(&self, bundle: &Bundle) -> Option<Missing> {
        if bundle.floor() > self.floors.number() {
            return Some(Missing::Floor(bundle.floor()));
        }
        let origin = bundle.origin();
        if let Some(seen) = bundle.seen() {
            // A cut has seen everything its own origin made before it.
            if let Some(counter) = self.applied.first_gap(origin, 1, bundle.first() - 1) {
                return Some(Missing::Dot(Dot::new(origin, counter)));
            }
            if let Some(dot) = self.first_missing(seen) {
                return Some(Missing::Dot(dot));
            }
        }
        let mut missing: Option<Dot> = None;
        for delta in bundle.deltas() {
            delta.each_need(&mut |dot| {
                let here = dot.origin == origin && dot.counter >= bundle.first();
                if missing.is_none() && !here && !self.applied.contains(dot) && !self.is_void(dot) {
                    missing = Some(dot);
                }
            });
        }
        missing.map(Missing::Dot)
    }

    /// Will never exist, by decision?
    fn is_void(&self, dot: Dot) -> bool {
        self.ends.get(&dot.origin).is_some_and(|last| dot.counter > *last)
    }

    /// The lowest dot of these that is not here and may still come.
    fn first_missing(&self, seen: &VersionVector) -> Option<Dot> {
        if self.ends.is_empty() {
            return self.applied.first_missing(seen);
        }
        let missing = seen.without(&self.applied);
        let firsts = missing.iter().flat_map(|(origin, list)| list.iter().map(move |i| (origin, i.first)));
        let mut dots = firsts.map(|(origin, first)| Dot::new(origin, first));
        dots.find(|dot| !self.is_void(*dot))
    }

    /// Takes note that the changes of an origin end at this counter, by decision of all, and applies what waited for one
    /// beyond it. Whoever built upon such a change had seen what nobody will see; for everybody it counts as a change that
    /// did nothing. Not part of a snapshot: whoever restores one says it again. Returns what was applied.
    ///
    /// The store must hold none of the origin's changes beyond the counter; one that does is reset from a snapshot.
    pub fn end_origin(&mut self, origin: Origin, last: u64) -> Vec<Bundle> {
        self.ends.insert(origin, last);
        let waiting = self.held.release_dots(origin, last.saturating_add(1), COUNTER_MAX);
        self.take_all(waiting)
    }

    /// Applies what has stopped waiting, and what waited for that.
    fn take_all(&mut self, mut ready: Vec<Bundle>) -> Vec<Bundle> {
        let mut released = Vec::new();
        while let Some(bundle) = ready.pop() {
            if self.applied.contains_range(bundle.origin(), bundle.first(), bundle.last()) {
                continue;
            }
            if let Some(missing) = self.missing_for(&bundle) {
                // Its place was freed a moment ago; if it is gone all the same, it will be fetched again.
                self.held.hold(&bundle, missing);
                continue;
            }
            if self.may_name(&bundle).is_err() {
                continue;
            }
            self.take(&bundle);
            ready.extend(self.held.release_dots(bundle.origin(), bundle.first(), bundle.last()));
            released.push(bundle);
        }
        released
    }

    /// The one place where deltas become state. Everything was checked before; nothing here can fail.
    pub(crate) fn take(&mut self, bundle: &Bundle) {
        let (origin, hlc) = (bundle.origin(), bundle.hlc());
        if origin == self.me || !self.mutants.on(Mutant::CrdtClockNotMerged) {
            self.clock = self.clock.after(hlc);
        }
        let empty = VersionVector::new();
        let before = bundle.seen().unwrap_or(&empty);
        let is_new = self.applied.intervals_of(origin).last().is_none_or(|i| i.last < bundle.first());
        for (delta, counter) in bundle.deltas().iter().zip(bundle.first()..) {
            let dot = Dot::new(origin, counter);
            // A frame that was split and joined anew may bring some deltas a second time.
            if is_new || !self.applied.contains(dot) {
                self.take_delta(delta, Stamp { hlc, dot }, before);
            }
        }
        self.applied.insert(origin, bundle.first(), bundle.last());
        if self.mutants.on(Mutant::CrdtCollectsWithoutFloor) {
            let keys: Vec<Bytes> = self.graves.iter().cloned().collect();
            keys.iter().for_each(|key| self.collect(key));
        }
    }

    fn take_delta(&mut self, delta: &Delta, stamp: Stamp, before: &VersionVector) {
        let Delta { key, path, after, change } = delta;
        let settled = change.settles();
        self.conflicts_settled = self.conflicts_settled.saturating_add(settled);
        let entry = match self.entries.get_mut(key) {
            Some(entry) => entry,
            // The key's memory is its own: the received bytes may be a whole frame.
            None => self.entries.entry(Bytes::copy_from_slice(key)).or_default(),
        };
        let seen = Seen { before, own: stamp.dot };
        let opened = entry.apply(path, after, Step { change, stamp, seen, mutants: self.mutants });
        if !entry.is_dirty {
            entry.is_dirty = true;
            self.dirty.push(Bytes::copy_from_slice(key));
        }
        let is_empty = entry.is_empty();
        // Looking closer would cost as much as the value is large; collection does.
        let has_graves = change.digs_graves() || entry.node.is_empty();
        self.conflicts_open = self.conflicts_open.saturating_add_signed(opened);
        if has_graves {
            self.graves.insert(Bytes::copy_from_slice(key));
        }
        if opened.saturating_add_unsigned(settled) > 0 {
            self.remember(delta, stamp.dot);
        }
        if is_empty {
            self.drop_entry(key);
        } else if self.mutants.on(Mutant::CrdtDigestOfRemote) {
            self.hash_as_sent(key, stamp.dot);
        }
    }

    /// The mutant that takes what came for what is here.
    fn hash_as_sent(&mut self, key: &Bytes, dot: Dot) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        let mut hasher = Hasher::new("dwcp v3 convergent entry");
        hasher.field(key).update(&dot.counter.to_le_bytes()).update(&dot.origin.id.0.to_le_bytes());
        let hash = hasher.finish();
        let before = core::mem::replace(&mut entry.hashed, hash);
        entry.is_dirty = false;
        if before != Hash::ZERO {
            self.digest.remove(&element(&before));
        }
        self.digest.add(&element(&hash));
    }

    fn drop_entry(&mut self, key: &[u8]) {
        if let Some(Entry { hashed, .. }) = self.entries.remove(key)
            && hashed != Hash::ZERO
        {
            self.digest.remove(&element(&hashed));
        }
        self.graves.remove(key);
    }

    fn remember(&mut self, delta: &Delta, by: Dot) {
        let Delta { key, path, change, .. } = delta;
        let Some(node) = self.node(key, path) else { return };
        let detached = |bytes: &Bytes| Bytes::copy_from_slice(bytes);
        let register = match change {
            Change::Write { kind, .. } => node.register(*kind).map(|register| (*kind, register)),
            _ => None,
        };
        let clash = register.is_none_or(|(_, r)| r.versions().len() < 2) && node.kinds_live().count() > 1;
        let (siblings, strategy, outcome) = match (register, node.kind()) {
            (_, Some(kind)) if clash => (Vec::new(), "type precedence".to_string(), Outcome::KindShown(kind)),
            (Some((kind, register)), _) => {
                let siblings = register.dots();
                if !siblings.contains(&by) || siblings.len() < 2 {
                    (siblings, String::new(), Outcome::Overtaken)
                } else if kind == Kind::MvRegister {
                    (siblings, "all shown".to_string(), Outcome::AllShown)
                } else {
                    let resolved = self.resolve(key, register);
                    let outcome = outcome_of(&resolved, register);
                    let strategy = self.resolvers.strategy(key).name().to_string();
                    if resolved.impure {
                        self.resolutions_impure += 1;
                    }
                    (siblings, strategy, outcome)
                }
            }
            _ => return,
        };
        let (key, path) = (detached(key), path.iter().map(detached).collect());
        self.history.push(Conflict { key, path, by, siblings, strategy, outcome });
    }

    // --- collecting ---

    /// Takes note of a collection floor, drops what became stable, and applies what waited for the floor. A floor that
    /// is known already changes nothing. Returns what was applied.
    ///
    /// # Errors
    /// See [`FloorRefused`].
    pub fn raise_floor(&mut self, floor: Floor) -> Result<Vec<Bundle>, FloorRefused> {
        let (number, next) = (floor.number, self.floors.number() + 1);
        if number < next {
            return Ok(Vec::new());
        }
        if number > next {
            return Err(FloorRefused::Early { number, next });
        }
        if let Some(missing) = self.applied.first_missing(&floor.seen) {
            return Err(FloorRefused::Behind { missing });
        }
        let raised = self.floors.raise(floor);
        Ok(self.collect_stable(raised))
    }

    /// Takes what the floors up to a later one come to, in place of each of those that this store missed; as
    /// [`Self::raise_floor`] otherwise. What is known already changes nothing.
    ///
    /// # Errors
    /// [`FloorRefused::Behind`].
    pub fn adopt_floors(&mut self, floors: FloorState) -> Result<Vec<Bundle>, FloorRefused> {
        if floors.number() <= self.floors.number() {
            return Ok(Vec::new());
        }
        if let Some(missing) = floors.seen().find_map(|seen| self.applied.first_missing(seen)) {
            return Err(FloorRefused::Behind { missing });
        }
        let raised = self.floors.changes_to(&floors);
        self.floors = floors;
        Ok(self.collect_stable(raised))
    }

    /// Drops what became stable, and applies what waited for the floor.
    fn collect_stable(&mut self, raised: Raised) -> Vec<Bundle> {
        if raised.stable_grew || raised.folded_grew {
            let keys: Vec<Bytes> = if raised.folded_grew {
                self.entries.keys().cloned().collect()
            } else {
                self.graves.iter().cloned().collect()
            };
            for key in keys {
                self.collect(&key);
            }
        }
        let waiting = self.held.release_floors(self.floors.number());
        self.take_all(waiting)
    }

    fn collect(&mut self, key: &Bytes) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        let mut stable = self.floors.stable();
        if self.mutants.on(Mutant::CrdtCollectsWithoutFloor) {
            stable.dots = &self.applied;
        }
        entry.collect(stable);
        if !core::mem::replace(&mut entry.is_dirty, true) {
            self.dirty.push(key.clone());
        }
        let (has_graves, is_empty) = (entry.has_graves(), entry.is_empty());
        if !has_graves {
            self.graves.remove(key);
        }
        if is_empty {
            self.drop_entry(key);
        }
    }

    // --- comparing ---

    /// 32 bytes that stand for the applied dots and every value with its metadata. Equal for replicas with the same dots
    /// and the same floor. Costs what changed since the last call, not the size of the store.
    pub fn digest(&mut self) -> Hash {
        self.hash_dirty();
        let mut vector = Vec::new();
        put_vector(&mut vector, &self.applied);
        let mut hasher = Hasher::new("dwcp v3 convergent store");
        hasher.update(&self.digest.digest().0).field(&vector);
        hasher.finish()
    }

    pub(crate) fn hash_dirty(&mut self) {
        for key in core::mem::take(&mut self.dirty) {
            let Some(entry) = self.entries.get_mut(&key) else { continue };
            if !core::mem::take(&mut entry.is_dirty) {
                continue;
            }
            let hash = entry.hash(&key);
            if entry.hashed == hash {
                continue;
            }
            if entry.hashed != Hash::ZERO {
                self.digest.remove(&element(&entry.hashed));
            }
            entry.hashed = hash;
            self.digest.add(&element(&hash));
        }
    }

    /// Takes in an entry of a snapshot.
    pub(crate) fn restore_entry(&mut self, key: Bytes, mut entry: Entry) {
        self.conflicts_open = self.conflicts_open.saturating_add(entry.node.conflicts_open());
        if entry.has_graves() {
            self.graves.insert(key.clone());
        }
        self.dirty.push(key.clone());
        entry.is_dirty = true;
        self.entries.insert(key, entry);
    }

    /// Takes an entry out, with all that is counted of it.
    pub(crate) fn remove_entry(&mut self, key: &[u8]) {
        if let Some(entry) = self.entries.get(key) {
            self.conflicts_open = self.conflicts_open.saturating_sub(entry.node.conflicts_open());
            self.drop_entry(key);
        }
    }

    pub(crate) fn count_open_conflicts(&mut self) {
        self.conflicts_open = self.entries.values().map(|entry| entry.node.conflicts_open()).sum();
    }

    /// Counts the open conflicts and looks for tombstones anew, and compares: for the simulator, after every step.
    ///
    /// # Panics
    /// When the running figures are wrong, which is a bug of ours.
    pub fn check(&self) {
        if self.mutants.any() {
            return; // The judges must notice by themselves.
        }
        let open: u64 = self.entries.values().map(|entry| entry.node.conflicts_open()).sum();
        assert_eq!(open, self.conflicts_open, "open conflicts are counted as they come and go");
        for (key, entry) in &self.entries {
            assert!(!entry.is_empty(), "empty entries are dropped: {key:?}");
            let is_listed = self.graves.contains(key);
            assert!(is_listed || !entry.has_graves(), "graves are listed: {key:?}");
        }
        assert!(self.graves.iter().all(|key| self.entries.contains_key(key)), "listed graves exist");
    }
}

fn outcome_of(resolved: &Resolved, register: &Register) -> Outcome {
    let Some(value) = &resolved.value else { return Outcome::Deleted };
    let winners = register.versions().iter().filter(|v| v.value.as_ref() == Some(value));
    winners.max_by_key(|v| v.stamp).map_or(Outcome::Merged, |v| Outcome::Won(v.stamp.dot))
}

fn element(hash: &Hash) -> Hasher {
    let mut hasher = Hasher::new("dwcp v3 convergent element");
    hasher.update(&hash.0);
    hasher
}
