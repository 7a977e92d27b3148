//! Many seeds on several threads, one seed per thread at a time. Results come back in order of seeds, whatever the
//! threads do, so that what is printed does not depend on them.

use crate::dials::{Dials, Profile};
use crate::ending::{Report, run};
use dwcp_base::Mutants;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Duration;

/// Seeds as the command line names them: the first and the last but one.
///
/// # Errors
/// What is wrong with it.
pub fn parse_range(text: &str) -> Result<Range<u64>, String> {
    let (from, to) = text.split_once("..").ok_or("a range is written as 0..1000")?;
    let number = |text: &str| text.parse::<u64>().map_err(|error| format!("{text}: {error}"));
    let range = number(from)?..number(to)?;
    if range.is_empty() { Err("the range is empty".into()) } else { Ok(range) }
}

/// How the dials of each seed come about.
#[derive(Clone, Debug)]
pub struct Recipe {
    pub profile: Profile,
    pub seconds: u64,
    /// Set after the draw, in order.
    pub overrides: Vec<(String, u64)>,
    pub mutants: Mutants,
}

impl Recipe {
    #[must_use]
    pub fn dials(&self, seed: u64) -> Dials {
        let mut dials = self.profile.draw(seed, self.seconds);
        for (name, value) in &self.overrides {
            let known = dials.set(name, *value);
            assert!(known, "overrides were checked");
            if name == "n" {
                dials.f = (value - 1) / 3;
            }
        }
        dials.settle();
        dials
    }
}

/// Runs seeds until `each` says stop (false) or none is left; `each` gets reports in order of seed.
pub fn run_seeds(seeds: Range<u64>, jobs: usize, recipe: &Recipe, mut each: impl FnMut(Report) -> bool) {
    quiet_panics();
    let next = AtomicU64::new(seeds.start);
    let stop = AtomicBool::new(false);
    let (sender, receiver) = mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            let (sender, next, stop, end) = (sender.clone(), &next, &stop, seeds.end);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        break;
                    }
                    let report = run(seed, &recipe.dials(seed), recipe.mutants);
                    if sender.send(report).is_err() {
                        break;
                    }
                }
            });
        }
        drop(sender);
        let mut waiting = BTreeMap::new();
        let mut due = seeds.start;
        for report in receiver {
            waiting.insert(report.seed, report);
            while let Some(report) = waiting.remove(&due) {
                due += 1;
                if !stop.load(Ordering::Relaxed) && !each(report) {
                    stop.store(true, Ordering::Relaxed);
                }
            }
        }
    });
}

/// Processor time this thread has used, where the system tells (Linux). A shared machine makes a wall clock's word worth
/// little.
#[must_use]
pub fn thread_cpu() -> Option<Duration> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    text.split_whitespace().next()?.parse().ok().map(Duration::from_nanos)
}

thread_local! {
    static IN_CORE: Cell<bool> = const { Cell::new(false) };
    static LAST_PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// A panic of a simulated core is a finding, not a message on the terminal; any other panic is printed as usual.
pub fn quiet_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if IN_CORE.get() {
                LAST_PANIC.with_borrow_mut(|text| *text = info.to_string().replace('\n', " "));
            } else {
                usual(info);
            }
        }));
    });
}

/// Runs code of the core; an assertion that fails there comes back as its text.
///
/// # Errors
/// The panic's message and place.
pub fn guarded<T>(act: impl FnOnce() -> T) -> Result<T, String> {
    IN_CORE.set(true);
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(act));
    IN_CORE.set(false);
    result.map_err(|_| LAST_PANIC.with_borrow(Clone::clone))
}
