//! A delta changes one key and has one dot; a bundle is an unbroken run of one origin's deltas, what a frame carries. A
//! bundle is applied whole or not at all.
//!
//! A delta names the newest changes of its key that its writer had seen. A receiver that lacks one of them keeps the bundle
//! until it comes (see `held`), so each key's history is applied in the order of cause and effect, whatever the order of
//! arrival; that is why gaps are safe. Nothing waits for changes of other keys, with one exception: removing a container
//! says "everything I had seen" instead of a list as long as the container, and waits for all of that.
//!
//! A `Bundle` is checked when it is made or decoded; holding one means that every limit below holds.

use crate::clock::Hlc;
use crate::counter::{CutRun, Totals};
use crate::dots::{Dot, Origin, VersionVector};
use crate::limits::{
    BUNDLE_BYTES_MAX, BUNDLE_DELTAS_MAX, COUNTER_MAX, FIELD_BYTES_MAX, KEY_BYTES_MAX, NAMES_MAX, ORIGINS_MAX,
    PATH_FIELDS_MAX,
};
use crate::node::KINDS_ALL;
use crate::value::{Kind, Plain};
use crate::wire::{Malformed, Reader, put_bytes, put_number, put_origin, put_plain, put_vector};
use alloc::collections::BTreeSet;
use alloc::vec::Vec;
use bytes::Bytes;
use core::fmt;

/// How much of one counter the writer of a cut had seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CutRuns {
    /// From the place of the cut to the counter.
    pub path: Vec<Bytes>,
    pub kind: Kind,
    pub runs: Vec<CutRun>,
}

/// What a delta does at the end of its path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A register's new value, or a tombstone, in place of the versions named.
    Write { kind: Kind, value: Option<Plain>, over: Vec<Dot> },
    /// The writer's own totals in the run that began with its dot `birth`.
    Count { kind: Kind, birth: u64, totals: Totals },
    /// Adds a set's element in place of the tags named.
    Include { kind: Kind, element: Plain, over: Vec<Dot> },
    /// Takes the tags named from a set's element.
    Exclude { kind: Kind, element: Plain, over: Vec<Dot> },
    /// Puts an item behind another, or first.
    Insert { after: Option<Dot>, value: Plain },
    /// Takes an item out.
    Erase { item: Dot },
    /// Removes everything its writer had seen here and below, of the kinds in the mask.
    Cut {
        kinds: u16,
        /// Conflicts that were open in what was removed; they are settled by it.
        settles: u32,
        /// Ascending by path and kind.
        runs: Vec<CutRuns>,
    },
}

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delta {
    pub key: Bytes,
    /// Fields of nested maps on the way to what is changed.
    pub path: Vec<Bytes>,
    /// The newest changes of this key that its writer had seen: those that no other one it had seen comes after.
    pub after: Vec<Dot>,
    pub change: Change,
}

/// Deltas with consecutive dots of one origin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    origin: Origin,
    first: u64,
    hlc: Hlc,
    floor: u64,
    seen: Option<VersionVector>,
    deltas: Vec<Delta>,
}

/// Why bytes are no bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BundleError {
    TooLong {
        bytes: usize,
    },
    Malformed,
    NotCanonical,
    /// No deltas, or more than a bundle may have.
    DeltaCount {
        count: usize,
    },
    /// A counter of zero or beyond the last.
    Counter,
    Key {
        bytes: usize,
    },
    Path {
        fields: usize,
    },
    /// A change that its kind does not have, or a mask without kinds.
    Kind,
    /// Dots not ascending, of the future, or too many.
    Names,
    /// A G-counter that goes down.
    Totals,
    /// A cut without what its writer had seen, or that without a cut.
    Seen,
}

impl fmt::Display for BundleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong { bytes } => {
                write!(f, "bundle of {bytes} bytes exceeds {BUNDLE_BYTES_MAX}: write it in several bundles")
            }
            Self::Malformed => write!(f, "malformed bundle"),
            Self::NotCanonical => write!(f, "bundle is not in its canonical encoding"),
            Self::DeltaCount { count } => {
                write!(f, "bundle has {count} deltas; allowed are 1 to {BUNDLE_DELTAS_MAX}")
            }
            Self::Counter => write!(f, "bundle has a counter outside 1..={COUNTER_MAX}"),
            Self::Key { bytes } => write!(f, "key of {bytes} bytes; allowed are 1 to {KEY_BYTES_MAX}"),
            Self::Path { fields } => write!(
                f,
                "path of {fields} fields; allowed are {PATH_FIELDS_MAX}, each up to {FIELD_BYTES_MAX} bytes"
            ),
            Self::Kind => write!(f, "change does not fit its kind of value"),
            Self::Names => {
                write!(f, "names of other changes are unordered, impossible or more than {NAMES_MAX}")
            }
            Self::Totals => write!(f, "a g-counter cannot go down: use a pn-counter"),
            Self::Seen => write!(f, "what the writer had seen is missing, superfluous or impossible"),
        }
    }
}

impl core::error::Error for BundleError {}

impl Bundle {
    pub(crate) fn new(
        first: Dot,
        hlc: Hlc,
        floor: u64,
        seen: Option<VersionVector>,
        deltas: Vec<Delta>,
    ) -> Result<Self, BundleError> {
        let bundle = Self { origin: first.origin, first: first.counter, hlc, floor, seen, deltas };
        bundle.check()?;
        Ok(bundle)
    }

    #[must_use]
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// Counter of the first delta.
    #[must_use]
    pub fn first(&self) -> u64 {
        self.first
    }

    /// Counter of the last delta.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.first + self.deltas.len() as u64 - 1
    }

    #[must_use]
    pub fn hlc(&self) -> Hlc {
        self.hlc
    }

    /// The number of the newest collection floor its writer knew.
    #[must_use]
    pub fn floor(&self) -> u64 {
        self.floor
    }

    /// What its writer had seen; there if a delta is a cut.
    #[must_use]
    pub fn seen(&self) -> Option<&VersionVector> {
        self.seen.as_ref()
    }

    #[must_use]
    pub fn deltas(&self) -> &[Delta] {
        &self.deltas
    }

    /// The deltas with counters `first..=last`, as a bundle of their own.
    #[must_use]
    pub fn part(&self, first: u64, last: u64) -> Option<Self> {
        if first < self.first || last > self.last() || first > last {
            return None;
        }
        let from = usize::try_from(first - self.first).ok()?;
        let until = usize::try_from(last - self.first).ok()?;
        let deltas = self.deltas.get(from..=until)?.to_vec();
        let has_cut = deltas.iter().any(|d| matches!(d.change, Change::Cut { .. }));
        let seen = self.seen.clone().filter(|_| has_cut);
        Some(Self { origin: self.origin, first, hlc: self.hlc, floor: self.floor, seen, deltas })
    }

    fn check(&self) -> Result<(), BundleError> {
        let count = self.deltas.len();
        if count == 0 || count > BUNDLE_DELTAS_MAX {
            return Err(BundleError::DeltaCount { count });
        }
        if self.first == 0 || self.first > COUNTER_MAX || self.last() > COUNTER_MAX {
            return Err(BundleError::Counter);
        }
        for (delta, counter) in self.deltas.iter().zip(self.first..) {
            delta.check(Dot::new(self.origin, counter))?;
        }
        let has_cut = self.deltas.iter().any(|d| matches!(d.change, Change::Cut { .. }));
        let past = self.seen.as_ref().is_none_or(|seen| seen.last(self.origin) < self.first);
        if has_cut != self.seen.is_some() || !past {
            return Err(BundleError::Seen);
        }
        Ok(())
    }

    /// Every origin but the bundle's own that its deltas name, ascending: the wire says their place in this list.
    fn origins_named(&self) -> Vec<Origin> {
        let mut origins = BTreeSet::new();
        for delta in &self.deltas {
            delta.each_need(&mut |dot| {
                if dot.origin != self.origin {
                    origins.insert(dot.origin);
                }
            });
        }
        origins.into_iter().collect()
    }

    /// The canonical bytes.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(64 + self.deltas.len() * 48);
        out.push(VERSION);
        put_origin(&mut out, self.origin);
        put_number(&mut out, self.first);
        out.extend_from_slice(&self.hlc.0.to_le_bytes());
        put_number(&mut out, self.floor);
        let origins = self.origins_named();
        put_number(&mut out, origins.len() as u64);
        for origin in &origins {
            put_origin(&mut out, *origin);
        }
        out.push(u8::from(self.seen.is_some()));
        if let Some(seen) = &self.seen {
            put_vector(&mut out, seen);
        }
        put_number(&mut out, self.deltas.len() as u64);
        for (delta, counter) in self.deltas.iter().zip(self.first..) {
            let names = Names { own: Dot::new(self.origin, counter), others: &origins };
            delta.encode(&mut out, names);
        }
        Bytes::from(out)
    }

    /// Reads and checks a bundle. What it holds shares the memory of `bytes`.
    ///
    /// # Errors
    /// The first promise that the bytes break.
    pub fn decode(bytes: Bytes) -> Result<Self, BundleError> {
        if bytes.len() > BUNDLE_BYTES_MAX {
            return Err(BundleError::TooLong { bytes: bytes.len() });
        }
        let bundle =
            Self::read(&mut Reader::new(bytes.clone())).map_err(|Malformed| BundleError::Malformed)?;
        bundle.check()?;
        if bundle.encode() == bytes { Ok(bundle) } else { Err(BundleError::NotCanonical) }
    }

    fn read(reader: &mut Reader) -> Result<Self, Malformed> {
        if reader.byte()? != VERSION {
            return Err(Malformed);
        }
        let origin = reader.origin()?;
        let first = reader.number()?;
        let hlc = Hlc(reader.u64_fixed()?);
        let floor = reader.number()?;
        let count = reader.count(ORIGINS_MAX)?;
        let origins: Vec<Origin> = (0..count).map(|_| reader.origin()).collect::<Result<_, _>>()?;
        let seen = match reader.byte()? {
            0 => None,
            1 => Some(reader.vector()?),
            _ => return Err(Malformed),
        };
        let count = reader.count(BUNDLE_DELTAS_MAX)?;
        let mut deltas = Vec::with_capacity(count);
        for index in 0..count as u64 {
            let counter = first.checked_add(index).ok_or(Malformed)?;
            let names = Names { own: Dot::new(origin, counter), others: &origins };
            deltas.push(Delta::read(reader, names)?);
        }
        reader.end()?;
        Ok(Self { origin, first, hlc, floor, seen, deltas })
    }
}

const VERSION: u8 = 1;

/// How dots are written inside a bundle: own ones by their distance, others by their origin's place in a list.
#[derive(Clone, Copy)]
struct Names<'a> {
    own: Dot,
    others: &'a [Origin],
}

impl Names<'_> {
    fn put(self, out: &mut Vec<u8>, dot: Dot) {
        if dot.origin == self.own.origin {
            put_number(out, 0);
            put_number(out, self.own.counter.wrapping_sub(dot.counter));
        } else {
            let place = self.others.binary_search(&dot.origin).expect("every origin named is listed");
            put_number(out, place as u64 + 1);
            put_number(out, dot.counter);
        }
    }

    fn put_all(self, out: &mut Vec<u8>, dots: &[Dot]) {
        put_number(out, dots.len() as u64);
        for dot in dots {
            self.put(out, *dot);
        }
    }

    fn read(self, reader: &mut Reader) -> Result<Dot, Malformed> {
        match reader.number()?.checked_sub(1) {
            None => {
                let distance = reader.number()?;
                let counter = self.own.counter.checked_sub(distance).ok_or(Malformed)?;
                Ok(Dot::new(self.own.origin, counter))
            }
            Some(place) => {
                let place = usize::try_from(place).map_err(|_| Malformed)?;
                let origin = *self.others.get(place).ok_or(Malformed)?;
                Ok(Dot::new(origin, reader.number()?))
            }
        }
    }

    fn read_all(self, reader: &mut Reader) -> Result<Vec<Dot>, Malformed> {
        let count = reader.count(NAMES_MAX)?;
        (0..count).map(|_| self.read(reader)).collect()
    }
}

const CODE_WRITE: u8 = 0;
const CODE_COUNT: u8 = 1;
const CODE_INCLUDE: u8 = 2;
const CODE_EXCLUDE: u8 = 3;
const CODE_INSERT: u8 = 4;
const CODE_ERASE: u8 = 5;
const CODE_CUT: u8 = 6;

impl Delta {
    /// One byte of head: whether there is a path or something it comes after, the kind, the change.
    fn encode(&self, out: &mut Vec<u8>, names: Names<'_>) {
        let (code, kind) = match &self.change {
            Change::Write { kind, .. } => (CODE_WRITE, *kind),
            Change::Count { kind, .. } => (CODE_COUNT, *kind),
            Change::Include { kind, .. } => (CODE_INCLUDE, *kind),
            Change::Exclude { kind, .. } => (CODE_EXCLUDE, *kind),
            Change::Insert { .. } => (CODE_INSERT, Kind::List),
            Change::Erase { .. } => (CODE_ERASE, Kind::List),
            Change::Cut { .. } => (CODE_CUT, Kind::LwwRegister),
        };
        // A write to a register that is all there is at its key comes after exactly what it replaces.
        let usual = self.change.after_usual();
        let is_long = !self.path.is_empty() || self.after != usual;
        out.push(u8::from(is_long) << 7 | (kind as u8) << 3 | code);
        put_bytes(out, &self.key);
        if is_long {
            put_path(out, &self.path);
            names.put_all(out, &self.after);
        }
        match &self.change {
            Change::Write { value, over, .. } => {
                put_plain(out, value.as_ref());
                names.put_all(out, over);
            }
            Change::Count { birth, totals, .. } => {
                put_number(out, names.own.counter.wrapping_sub(*birth));
                put_number(out, totals.up);
                put_number(out, totals.down);
            }
            Change::Include { element, over, .. } | Change::Exclude { element, over, .. } => {
                put_plain(out, Some(element));
                names.put_all(out, over);
            }
            Change::Insert { after, value } => {
                names.put_all(out, after.as_slice());
                put_plain(out, Some(value));
            }
            Change::Erase { item } => names.put(out, *item),
            Change::Cut { kinds, settles, runs } => {
                put_number(out, u64::from(*kinds));
                put_number(out, u64::from(*settles));
                put_number(out, runs.len() as u64);
                for CutRuns { path, kind, runs } in runs {
                    put_path(out, path);
                    out.push(*kind as u8);
                    put_number(out, runs.len() as u64);
                    for CutRun { birth, last, totals } in runs {
                        names.put(out, *birth);
                        put_number(out, last.wrapping_sub(birth.counter));
                        put_number(out, totals.up);
                        put_number(out, totals.down);
                    }
                }
            }
        }
    }

    fn read(reader: &mut Reader, names: Names<'_>) -> Result<Self, Malformed> {
        let head = reader.byte()?;
        let kind = Kind::of((head >> 3) & 0xf).ok_or(Malformed)?;
        let key = reader.bytes(KEY_BYTES_MAX)?;
        let (path, after) = match head & 0x80 {
            0 => (Vec::new(), None),
            _ => (read_path(reader)?, Some(names.read_all(reader)?)),
        };
        let change = match head & 7 {
            CODE_WRITE => Change::Write { kind, value: reader.plain()?, over: names.read_all(reader)? },
            CODE_COUNT => {
                let birth = names.own.counter.checked_sub(reader.number()?).ok_or(Malformed)?;
                let totals = Totals { up: reader.number()?, down: reader.number()? };
                Change::Count { kind, birth, totals }
            }
            CODE_INCLUDE => Change::Include {
                kind,
                element: reader.plain()?.ok_or(Malformed)?,
                over: names.read_all(reader)?,
            },
            CODE_EXCLUDE => Change::Exclude {
                kind,
                element: reader.plain()?.ok_or(Malformed)?,
                over: names.read_all(reader)?,
            },
            CODE_INSERT => {
                let after = match names.read_all(reader)?.as_slice() {
                    [] => None,
                    [after] => Some(*after),
                    _ => return Err(Malformed),
                };
                Change::Insert { after, value: reader.plain()?.ok_or(Malformed)? }
            }
            CODE_ERASE => Change::Erase { item: names.read(reader)? },
            CODE_CUT => {
                let kinds = u16::try_from(reader.number()?).map_err(|_| Malformed)?;
                let settles = reader.number_u32()?;
                let count = reader.count(usize::MAX)?;
                let runs = (0..count).map(|_| read_runs(reader, names)).collect::<Result<_, _>>()?;
                Change::Cut { kinds, settles, runs }
            }
            _ => return Err(Malformed),
        };
        let after = after.unwrap_or_else(|| change.after_usual().to_vec());
        Ok(Self { key, path, after, change })
    }

    fn check(&self, own: Dot) -> Result<(), BundleError> {
        check_key(&self.key)?;
        check_path(&self.path)?;
        check_names(own, &self.after)?;
        match &self.change {
            Change::Write { kind, over, .. } => {
                check_kind(*kind, &[Kind::LwwRegister, Kind::MvRegister])?;
                check_names(own, over)
            }
            Change::Count { kind, birth, totals } => {
                check_kind(*kind, &[Kind::GCounter, Kind::PnCounter])?;
                if *kind == Kind::GCounter && totals.down > 0 {
                    return Err(BundleError::Totals);
                }
                if *birth == 0 || *birth > own.counter { Err(BundleError::Names) } else { Ok(()) }
            }
            Change::Include { kind, over, .. } => {
                check_kind(*kind, &[Kind::GSet, Kind::TwoPhaseSet, Kind::OrSet])?;
                check_names(own, over)
            }
            Change::Exclude { kind, over, .. } => {
                check_kind(*kind, &[Kind::TwoPhaseSet, Kind::OrSet])?;
                check_names(own, over)
            }
            Change::Insert { after, .. } => check_names(own, after.as_slice()),
            Change::Erase { item } => check_names(own, core::slice::from_ref(item)),
            Change::Cut { kinds, runs, .. } => {
                if *kinds == 0 || kinds & !KINDS_ALL != 0 {
                    return Err(BundleError::Kind);
                }
                let ascending = runs.windows(2).all(|w| (&w[0].path, w[0].kind) < (&w[1].path, w[1].kind));
                if !ascending {
                    return Err(BundleError::Names);
                }
                for CutRuns { path, kind, runs } in runs {
                    check_kind(*kind, &[Kind::GCounter, Kind::PnCounter])?;
                    check_path(path)?;
                    let fields = self.path.len() + path.len();
                    if fields > PATH_FIELDS_MAX {
                        return Err(BundleError::Path { fields });
                    }
                    let births: Vec<Dot> = runs.iter().map(|run| run.birth).collect();
                    let past = |run: &CutRun| run.birth.origin != own.origin || run.last < own.counter;
                    if births.is_empty() || !runs.iter().all(past) {
                        return Err(BundleError::Names);
                    }
                    check_names(own, &births)?;
                }
                Ok(())
            }
        }
    }
}

impl Delta {
    /// Dots that a receiver must have before this delta means anything to it.
    pub(crate) fn each_need(&self, visit: &mut dyn FnMut(Dot)) {
        self.after.iter().for_each(|dot| visit(*dot));
        match &self.change {
            Change::Write { over, .. } | Change::Include { over, .. } | Change::Exclude { over, .. } => {
                over.iter().for_each(|dot| visit(*dot));
            }
            Change::Insert { after, .. } => after.iter().for_each(|dot| visit(*dot)),
            Change::Erase { item } => visit(*item),
            Change::Count { .. } => {}
            // Beside all that its writer had seen, which stands in the bundle.
            Change::Cut { runs, .. } => {
                for run in runs.iter().flat_map(|r| &r.runs) {
                    visit(run.birth);
                    visit(Dot::new(run.birth.origin, run.last));
                }
            }
        }
    }
}

impl Change {
    /// Conflicts that this change says it settles.
    pub(crate) fn settles(&self) -> u64 {
        match self {
            Self::Write { over, .. } => (over.len() as u64).saturating_sub(1),
            Self::Cut { settles, .. } => u64::from(*settles),
            _ => 0,
        }
    }

    /// What a delta comes after unless it says otherwise.
    fn after_usual(&self) -> &[Dot] {
        match self {
            Self::Write { over, .. } => over,
            _ => &[],
        }
    }

    /// May it leave something behind that waits for collection, in a value that goes on existing?
    pub(crate) fn digs_graves(&self) -> bool {
        match self {
            Self::Write { value, .. } => value.is_none(),
            Self::Erase { .. } | Self::Cut { .. } => true,
            Self::Count { .. } | Self::Include { .. } | Self::Exclude { .. } | Self::Insert { .. } => false,
        }
    }
}

pub(crate) fn check_key(key: &[u8]) -> Result<(), BundleError> {
    if key.is_empty() || key.len() > KEY_BYTES_MAX {
        Err(BundleError::Key { bytes: key.len() })
    } else {
        Ok(())
    }
}

pub(crate) fn check_path(path: &[Bytes]) -> Result<(), BundleError> {
    let long = path.iter().any(|field| field.len() > FIELD_BYTES_MAX);
    if path.len() > PATH_FIELDS_MAX || long { Err(BundleError::Path { fields: path.len() }) } else { Ok(()) }
}

fn check_kind(kind: Kind, allowed: &[Kind]) -> Result<(), BundleError> {
    if allowed.contains(&kind) { Ok(()) } else { Err(BundleError::Kind) }
}

fn check_names(own: Dot, dots: &[Dot]) -> Result<(), BundleError> {
    let ascending = dots.windows(2).all(|w| w[0] < w[1]);
    let possible = dots.iter().all(|dot| {
        dot.counter >= 1
            && dot.counter <= COUNTER_MAX
            && (dot.origin != own.origin || dot.counter < own.counter)
    });
    if ascending && possible && dots.len() <= NAMES_MAX { Ok(()) } else { Err(BundleError::Names) }
}

fn put_path(out: &mut Vec<u8>, path: &[Bytes]) {
    put_number(out, path.len() as u64);
    for field in path {
        put_bytes(out, field);
    }
}

fn read_path(reader: &mut Reader) -> Result<Vec<Bytes>, Malformed> {
    let count = reader.count(PATH_FIELDS_MAX)?;
    (0..count).map(|_| reader.bytes(FIELD_BYTES_MAX)).collect()
}

fn read_runs(reader: &mut Reader, names: Names<'_>) -> Result<CutRuns, Malformed> {
    let path = read_path(reader)?;
    let kind = Kind::of(reader.byte()?).ok_or(Malformed)?;
    let count = reader.count(NAMES_MAX)?;
    let mut runs = Vec::with_capacity(count);
    for _ in 0..count {
        let birth = names.read(reader)?;
        let last = birth.counter.checked_add(reader.number()?).ok_or(Malformed)?;
        let totals = Totals { up: reader.number()?, down: reader.number()? };
        runs.push(CutRun { birth, last, totals });
    }
    Ok(CutRuns { path, kind, runs })
}
