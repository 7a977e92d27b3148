//! `sim sync`: run seeds, replay one, hunt mutants.

use crate::runner::parse_range;
use crate::sync::coverage::Coverage;
use crate::sync::dials::{Dials, draw};
use crate::sync::ending::{Report, run, run_with};
use crate::sync::mutants::{self, Catch, Hunt};
use anyhow::{Context, ensure};
use clap::{Args, Subcommand};
use dwcp_base::{Mutant, Mutants};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Instant;

/// Findings that are printed of one run.
const FOUND_SHOWN: usize = 6;
/// From so many seeds on the least coverage is demanded.
const COVERAGE_SEEDS: u64 = 200;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a range of seeds and judge each
    Run {
        /// First and last-but-one seed, as in 0..1000
        #[arg(long, value_parser = parse_range)]
        seeds: Range<u64>,
        #[command(flatten)]
        how: How,
        /// Threads
        #[arg(long, default_value_t = 2)]
        jobs: usize,
        /// Stop after this many violations
        #[arg(long, default_value_t = 10)]
        failures_max: usize,
    },
    /// Run one seed twice and show that both histories are the same
    Replay {
        #[arg(long)]
        seed: u64,
        #[command(flatten)]
        how: How,
        /// Print what happened
        #[arg(long)]
        trace: bool,
    },
    /// Switch off the rules of state sync one by one and see who notices
    Mutants {
        /// Seeds within which each must be caught
        #[arg(long, default_value_t = mutants::SEEDS_MAX)]
        seeds: u64,
        /// Only mutants whose name contains this
        #[arg(long)]
        only: Option<String>,
    },
    /// List the dials
    Dials,
}

#[derive(Debug, Args)]
pub struct How {
    /// Virtual length of the safety phase
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Set a dial: name=value
    #[arg(long = "dial", value_parser = parse_dial)]
    dials: Vec<(String, u64)>,
    /// Switch a rule off
    #[arg(long)]
    mutant: Option<String>,
}

fn parse_dial(text: &str) -> Result<(String, u64), String> {
    let (name, value) = text.split_once('=').ok_or("a dial is set as name=value")?;
    if !Dials::NAMES.contains(&name) {
        return Err(format!("no dial is called {name}; `sim sync dials` lists them"));
    }
    Ok((name.to_string(), value.parse().map_err(|error| format!("{value}: {error}"))?))
}

impl How {
    fn dials(&self, seed: u64) -> Dials {
        let mut dials = draw(seed, self.seconds);
        for (name, value) in &self.dials {
            let known = dials.set(name, *value);
            assert!(known, "dials were checked");
        }
        dials.settle();
        dials
    }

    fn mutants(&self) -> anyhow::Result<Mutants> {
        let Some(name) = &self.mutant else { return Ok(Mutants::default()) };
        let all = [Mutant::SYNC, Mutant::CRDT, &[Mutant::Harmless]].concat();
        let found = all.iter().find(|mutant| format!("{mutant:?}").eq_ignore_ascii_case(name));
        let mutant = found.with_context(|| format!("no mutant of state sync is called {name}"))?;
        Ok(Mutants::default().with(*mutant))
    }

    fn flags(&self, seed: u64) -> String {
        let mut flags = format!("--seed {seed} --seconds {}", self.seconds);
        for (name, value) in &self.dials {
            flags.push_str(&format!(" --dial {name}={value}"));
        }
        if let Some(mutant) = &self.mutant {
            flags.push_str(&format!(" --mutant {mutant}"));
        }
        flags
    }
}

/// Carries the command out; false when something is not as it should be.
///
/// # Errors
/// A command that cannot be carried out.
pub fn act(command: Command) -> anyhow::Result<bool> {
    match command {
        Command::Run { seeds, how, jobs, failures_max } => run_many(&seeds, &how, jobs, failures_max),
        Command::Replay { seed, how, trace } => replay(seed, &how, trace),
        Command::Mutants { seeds, only } => hunt(seeds, only.as_deref()),
        Command::Dials => {
            println!("dials   {}", Dials::NAMES.join(" "));
            Ok(true)
        }
    }
}

fn print_failure(report: &Report, how: &How) {
    println!("VIOLATION at seed {}", report.seed);
    for found in report.found.iter().take(FOUND_SHOWN) {
        println!("  {}: {}", found.by, found.text);
    }
    if report.found.len() > FOUND_SHOWN {
        println!("  {} more", report.found.len() - FOUND_SHOWN);
    }
    println!("  dials: {}", report.dials);
    println!("  again: cargo run -p sim --release -- sync replay {} --trace", how.flags(report.seed));
}

fn run_many(seeds: &Range<u64>, how: &How, jobs: usize, failures_max: usize) -> anyhow::Result<bool> {
    let mutants = how.mutants()?;
    let begun = Instant::now();
    let mut coverage = Coverage::default();
    let (mut ran, mut failures, mut virtual_us, mut events) = (0u64, Vec::new(), 0u64, 0u64);
    in_order(
        seeds,
        jobs,
        |seed| run(seed, &how.dials(seed), mutants),
        |report| {
            ran += 1;
            coverage += &report.coverage;
            virtual_us += report.ended_at_us;
            events += report.events;
            if !report.is_clean() {
                print_failure(&report, how);
                failures.push(report.seed);
            }
            failures.len() < failures_max
        },
    );
    println!("coverage of seeds {}..{}:", seeds.start, seeds.start + ran);
    print!("{coverage}");
    println!(
        "{ran} seeds, {:.0} simulated seconds, {events} events in {:.1} s; {} frames acknowledged, {} violations{}",
        virtual_us as f64 / 1e6,
        begun.elapsed().as_secs_f64(),
        coverage.acknowledged,
        failures.len(),
        if failures.is_empty() { String::new() } else { format!(": seeds {failures:?}") }
    );
    let whole = how.dials.is_empty() && ran >= COVERAGE_SEEDS;
    let shortfalls = if whole { coverage.shortfalls(ran) } else { Vec::new() };
    shortfalls.iter().for_each(|shortfall| println!("COVERAGE {shortfall}"));
    if !whole {
        println!("minimum coverage is demanded of {COVERAGE_SEEDS} or more seeds with unchanged dials");
    }
    Ok(failures.is_empty() && shortfalls.is_empty())
}

/// Runs seeds on several threads; results come in order of seeds until `each` says stop.
fn in_order(
    seeds: &Range<u64>,
    jobs: usize,
    run: impl Fn(u64) -> Report + Sync,
    mut each: impl FnMut(Report) -> bool,
) {
    let next = AtomicU64::new(seeds.start);
    let (sender, receiver) = mpsc::sync_channel(16);
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            let (sender, next, run) = (sender.clone(), &next, &run);
            scope.spawn(move || {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end || sender.send(run(seed)).is_err() {
                        return;
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
                if !each(report) {
                    next.store(u64::MAX / 2, Ordering::Relaxed);
                    return;
                }
            }
        }
    });
}

fn replay(seed: u64, how: &How, trace: bool) -> anyhow::Result<bool> {
    let (dials, mutants) = (how.dials(seed), how.mutants()?);
    let first = run_with(seed, &dials, mutants, trace, |line| println!("{line}"));
    let second = run(seed, &dials, mutants);
    println!("dials: {dials}");
    print!("{}", first.coverage);
    println!(
        "trace hash {:016x}, {} events, {:.3} s",
        first.trace_hash,
        first.events,
        first.ended_at_us as f64 / 1e6
    );
    ensure!(
        (first.trace_hash, first.events) == (second.trace_hash, second.events),
        "a second run of the same seed went another way: {:016x}",
        second.trace_hash
    );
    if !first.is_clean() {
        print_failure(&first, how);
    }
    Ok(first.is_clean())
}

fn hunt(seeds_max: u64, only: Option<&str>) -> anyhow::Result<bool> {
    let begun = Instant::now();
    let mut hunts = mutants::hunts();
    if let Some(only) = only {
        hunts.retain(|hunt| format!("{:?}", hunt.mutant).to_lowercase().contains(&only.to_lowercase()));
        ensure!(!hunts.is_empty(), "no mutant's name contains {only}");
    }
    println!("{:<28} {:>5}  {:<14} found", "mutant", "seeds", "judge");
    let mut good = 0;
    for hunt in &hunts {
        let catch = mutants::pursue(hunt, seeds_max);
        good += usize::from(catch.is_good());
        print_catch(hunt, &catch);
    }
    println!(
        "{good} of {} caught in {:.0} s while the unmutated core and the harmless mutant pass the same seeds",
        hunts.len(),
        begun.elapsed().as_secs_f64()
    );
    Ok(good == hunts.len())
}

fn print_catch(hunt: &Hunt, catch: &Catch) {
    let name = format!("{:?}", hunt.mutant);
    let (seeds, judge, text) = match &catch.caught {
        Some((_, judge, text)) => {
            let text = text.split_once(": ").map_or(text.as_str(), |(_, text)| text);
            (catch.seeds.to_string(), judge.to_string(), text)
        }
        None => (format!(">{}", catch.seeds), "NOT CAUGHT".into(), hunt.rule),
    };
    println!("{name:<28} {seeds:>5}  {judge:<14} {text}");
    for failure in &catch.control_failures {
        println!("{:<28}        NOT A CATCH: {failure}", "");
    }
    if !catch.is_good() {
        let seed = catch.caught.as_ref().map_or(0, |(seed, ..)| *seed);
        println!(
            "{:<28}        again: cargo run -p sim --release -- sync replay {} --mutant {name}",
            "",
            hunt.flags(seed)
        );
    }
}
