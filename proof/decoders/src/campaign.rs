//! Runs targets: the corpus as it is, then damage, a good part of it sealed again; collects what broke and shortens it.
//! Equal seeds give equal campaigns, whatever the number of threads.

use crate::{Target, Verdict, corpus};
use anyhow::Result;
use dwcp_base::Chance;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, Once, PoisonError};
use std::time::{Duration, Instant};

/// Of the damaged inputs of every target so many in a thousand must be sealed, or have their form where nothing is sealed.
pub const SEALED_PER_MILLE_MIN: u64 = 300;
/// Inputs of one unit of work.
const SLICE: u64 = 100;
/// Attempts to damage an input so that it can still be sealed.
const ATTEMPTS: usize = 12;
/// Different failures kept of one target.
const FAILURES_MAX: usize = 16;

/// What one target went through.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    pub corpus: u64,
    pub bombs: u64,
    pub damaged: u64,
    pub sealed: u64,
    /// Of the damaged inputs: those that were taken, and of those that were sealed.
    pub accepted: u64,
    pub accepted_sealed: u64,
    pub bytes: u64,
    pub time: Duration,
    /// The longest single run and its input's length.
    pub slowest: (Duration, usize),
    pub failures: Vec<Failure>,
}

/// An input that broke a promise.
#[derive(Clone, Debug)]
pub struct Failure {
    pub target: &'static str,
    pub input: Vec<u8>,
    /// Where and what it said when it panicked.
    pub message: String,
}

impl Tally {
    /// Sealed inputs in a thousand damaged ones.
    #[must_use]
    pub fn sealed_per_mille(&self) -> u64 {
        (self.sealed * 1_000).checked_div(self.damaged).unwrap_or(0)
    }

    fn add(&mut self, other: Self) {
        self.corpus += other.corpus;
        self.bombs += other.bombs;
        self.damaged += other.damaged;
        self.sealed += other.sealed;
        self.accepted += other.accepted;
        self.accepted_sealed += other.accepted_sealed;
        self.bytes += other.bytes;
        self.time += other.time;
        self.slowest = self.slowest.max(other.slowest);
        for failure in other.failures {
            self.fail(failure);
        }
    }

    fn fail(&mut self, failure: Failure) {
        let known = self.failures.iter().any(|known| place(&known.message) == place(&failure.message));
        if !known && self.failures.len() < FAILURES_MAX {
            self.failures.push(failure);
        }
    }
}

/// The file and line at the front of a failure's message: two failures there are one.
fn place(message: &str) -> &str {
    message.split(": ").next().unwrap_or(message)
}

thread_local! {
    static LAST_WORDS: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Panics of threads that are not ours, in the order they came; a link's target runs on such threads.
static STRANGERS: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn listen() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let place = info.location().map(|at| format!("{}:{}", at.file(), at.line())).unwrap_or_default();
            let payload = info.payload();
            let text = payload.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("no words");
            let words = format!("{place}: {text}");
            let watched = LAST_WORDS.with(|last| last.borrow().is_some());
            if watched {
                LAST_WORDS.with(|last| *last.borrow_mut() = Some(words));
            } else if std::thread::current()
                .name()
                .is_some_and(|name| name.contains("dwcp") || name.contains("tokio"))
            {
                STRANGERS.lock().unwrap_or_else(PoisonError::into_inner).push(words);
            } else {
                before(info);
            }
        }));
    });
}

/// Runs a target on one input. `Err` says where and how it broke.
///
/// # Errors
/// The panic's place and words.
pub fn try_run(target: &Target, bytes: &[u8]) -> Result<Verdict, String> {
    listen();
    LAST_WORDS.with(|last| *last.borrow_mut() = Some(String::new()));
    let result = panic::catch_unwind(AssertUnwindSafe(|| (target.run)(bytes)));
    let words = LAST_WORDS.with(|last| last.borrow_mut().take()).unwrap_or_default();
    let stranger = STRANGERS.lock().unwrap_or_else(PoisonError::into_inner).pop();
    match (result, stranger) {
        (Err(_), _) => Err(words),
        (Ok(_), Some(words)) => Err(words),
        (Ok(verdict), None) => Ok(verdict),
    }
}

/// True when the input was taken.
fn timed(target: &'static Target, bytes: &[u8], tally: &mut Tally) -> bool {
    let began = Instant::now();
    let outcome = try_run(target, bytes);
    let accepted = outcome == Ok(Verdict::Accepted);
    if let Err(message) = outcome {
        tally.fail(Failure { target: target.name, input: bytes.to_vec(), message });
    }
    let took = began.elapsed();
    tally.bytes += bytes.len() as u64;
    tally.time += took;
    tally.slowest = tally.slowest.max((took, bytes.len()));
    accepted
}

/// One damaged input, and whether it was sealed again.
fn damaged(target: &Target, pool: &[Vec<u8>], chance: &mut Chance) -> (Vec<u8>, bool) {
    let empty = Vec::new();
    let other = chance.pick(pool).unwrap_or(&empty).clone();
    let good = chance.pick(pool).unwrap_or(&empty).clone();
    if !chance.per_mille(650) {
        let mut bytes = good;
        (target.damage)(&mut bytes, &other, chance.per_mille(300), chance);
        return (bytes, false);
    }
    let mut bytes = Vec::new();
    for attempt in 0..ATTEMPTS {
        bytes.clone_from(&good);
        // Rough damage first: what can be sealed after that is worth more.
        (target.damage)(&mut bytes, &other, attempt > 1, chance);
        if target.seal.make_good(&mut bytes) {
            return (bytes, true);
        }
    }
    (bytes, false)
}

/// One target's inputs for a campaign.
struct Work {
    target: &'static Target,
    pool: Vec<Vec<u8>>,
    saved: Vec<Vec<u8>>,
    slices: u64,
    last: u64,
}

/// Runs the corpus and bombs of each target and `count` damaged inputs, or as many as are its share.
///
/// # Errors
/// A corpus that cannot be read.
pub fn run(targets: &[&'static Target], count: u64, seed: u64) -> Result<BTreeMap<&'static str, Tally>> {
    let mut works = Vec::new();
    for target in targets {
        let share = target.share_of(count);
        let saved: Vec<Vec<u8>> = corpus::load(target)?.into_iter().map(|(_, bytes)| bytes).collect();
        let mut pool = (target.seeds)();
        pool.extend(saved.iter().cloned());
        works.push(Work { target, pool, saved, slices: share.div_ceil(SLICE), last: share });
    }
    // Heavy work first, so that no thread is left with it at the end.
    let mut units: Vec<(usize, Option<u64>)> = Vec::new();
    for (at, work) in works.iter().enumerate().rev() {
        units.push((at, None));
        units.extend((0..work.slices).map(|slice| (at, Some(slice))));
    }
    let next = AtomicUsize::new(0);
    let tallies: Mutex<BTreeMap<&'static str, Tally>> = Mutex::new(BTreeMap::new());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some((at, slice)) = units.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let tally = one_unit(&works[*at], *slice, seed);
                    let mut tallies = tallies.lock().unwrap_or_else(PoisonError::into_inner);
                    tallies.entry(works[*at].target.name).or_default().add(tally);
                }
            });
        }
    });
    Ok(tallies.into_inner().unwrap_or_else(PoisonError::into_inner))
}

fn one_unit(work: &Work, slice: Option<u64>, seed: u64) -> Tally {
    let mut tally = Tally::default();
    let target = work.target;
    let Some(slice) = slice else {
        for bytes in &work.pool {
            timed(target, bytes, &mut tally);
            tally.corpus += 1;
        }
        // A saved input is also run under today's keys: its seal may be that of an older cluster.
        for bytes in &work.saved {
            let mut sealed = bytes.clone();
            if target.seal.make_good(&mut sealed) && sealed != *bytes {
                timed(target, &sealed, &mut tally);
                tally.corpus += 1;
            }
        }
        for bytes in (target.bombs)() {
            timed(target, &bytes, &mut tally);
            tally.bombs += 1;
        }
        return tally;
    };
    let mut chance = Chance::new(seed).fork(target.name).fork(&slice.to_string());
    for _ in slice * SLICE..work.last.min((slice + 1) * SLICE) {
        let (bytes, sealed) = damaged(target, &work.pool, &mut chance);
        let accepted = timed(target, &bytes, &mut tally);
        tally.damaged += 1;
        tally.sealed += u64::from(sealed);
        tally.accepted += u64::from(accepted);
        tally.accepted_sealed += u64::from(accepted && sealed);
    }
    tally
}

/// The shortest input found that breaks the target at the same place.
#[must_use]
pub fn shrink(target: &Target, failure: &Failure, runs_max: usize) -> Vec<u8> {
    let wanted = place(&failure.message);
    let mut runs = 0;
    let mut breaks = |bytes: &[u8]| {
        runs += 1;
        runs <= runs_max && try_run(target, bytes).is_err_and(|message| place(&message) == wanted)
    };
    let mut best = failure.input.clone();
    let mut step = best.len().div_ceil(2);
    while step > 0 {
        let mut at = 0;
        while at < best.len() {
            let mut shorter = best.clone();
            shorter.drain(at..(at + step).min(best.len()));
            if breaks(&shorter) {
                best = shorter;
            } else {
                at += step;
            }
        }
        step /= 2;
    }
    for at in 0..best.len() {
        let mut plainer = best.clone();
        plainer[at] = 0;
        if plainer != best && breaks(&plainer) {
            best = plainer;
        }
    }
    best
}

/// The figures, one line a target, those of live targets apart: these get fewer inputs. A share in brackets is of inputs
/// that kept their form, where a format has no seal.
#[must_use]
pub fn table(tallies: &BTreeMap<&'static str, Tally>) -> String {
    let (live, decoders): (Vec<_>, Vec<_>) =
        tallies.iter().partition(|(name, _)| crate::named(name).is_live());
    let parts = [("decoders", decoders), ("live targets", live)];
    let parts = parts.iter().filter(|(_, rows)| !rows.is_empty());
    parts.map(|(title, rows)| format!("{title}\n{}", one_table(rows))).collect::<Vec<_>>().join("\n\n")
}

fn one_table(tallies: &[(&&'static str, &Tally)]) -> String {
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::NOTHING);
    table.set_header([
        "target",
        "corpus",
        "bombs",
        "damaged",
        "sealed",
        "accepted",
        "refused",
        "sealed and refused",
        "MB",
        "s",
        "slowest ms",
        "failures",
    ]);
    let mut sum = Tally::default();
    for (name, tally) in tallies {
        let has_no_seal = matches!(crate::named(name).seal, crate::Seal::Form(_));
        table.add_row(row(name, tally, has_no_seal));
        sum.add((*tally).clone());
    }
    table.add_row(row("all", &sum, false));
    table.to_string()
}

fn row(name: &str, tally: &Tally, in_brackets: bool) -> [String; 12] {
    let per_mille = tally.sealed_per_mille();
    let share = format!("{}.{} %", per_mille / 10, per_mille % 10);
    [
        name.into(),
        tally.corpus.to_string(),
        tally.bombs.to_string(),
        tally.damaged.to_string(),
        if in_brackets { format!("({share})") } else { share },
        tally.accepted.to_string(),
        (tally.damaged - tally.accepted).to_string(),
        (tally.sealed - tally.accepted_sealed).to_string(),
        format!("{:.1}", tally.bytes as f64 / 1e6),
        format!("{:.1}", tally.time.as_secs_f64()),
        format!("{:.1} ({} B)", tally.slowest.0.as_secs_f64() * 1e3, tally.slowest.1),
        tally.failures.len().to_string(),
    ]
}
