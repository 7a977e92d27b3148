//! The simulator's command line: run seeds, replay one, step through it, shorten it, hunt mutants, play scenarios.

use anyhow::{Context, bail, ensure};
use clap::{Args, Parser, Subcommand};
use dwcp_base::{Mutant, Mutants};
use indicatif::{ProgressBar, ProgressStyle};
use sim::coverage::Coverage;
use sim::dials::{Dials, PROFILES, Profile};
use sim::ending::{Ending, Finder, Report};
use sim::mutants::{self, Catch, Hunt, News, Search};
use sim::runner::{Recipe, parse_range, run_seeds};
use sim::trick::Trick;
use sim::world::World;
use std::collections::BTreeMap;
use std::io::{BufRead, IsTerminal, Write};
use std::ops::Range;
use std::process::ExitCode;
use std::time::Instant;

/// Findings of one judge that are printed.
const FOUND_SHOWN: usize = 4;

#[derive(Parser)]
#[command(name = "sim", about = "One seed, one cluster history: faults, lies, judges", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
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
        /// Do not demand the minimum coverage
        #[arg(long)]
        any_coverage: bool,
        /// Fail when all histories together last less than so many simulated seconds
        #[arg(long, default_value_t = 0)]
        simulated_min: u64,
    },
    /// Run one seed twice and show that both histories are the same
    Replay {
        #[arg(long)]
        seed: u64,
        #[command(flatten)]
        how: How,
        /// Print every event
        #[arg(long)]
        trace: bool,
    },
    /// Walk through one seed: return prints the next events, a number goes to that second, q ends
    Step {
        #[arg(long)]
        seed: u64,
        #[command(flatten)]
        how: How,
        /// Print from here on only (seconds)
        #[arg(long, default_value_t = 0.0)]
        from: f64,
        /// Print up to here (seconds) without asking, and end
        #[arg(long)]
        until: Option<f64>,
    },
    /// Shorten a failing history
    Shrink {
        #[arg(long)]
        seed: u64,
        #[command(flatten)]
        how: How,
    },
    /// Switch off safety rules one by one and see who notices
    Mutants {
        /// Seeds within which each must be caught
        #[arg(long, default_value_t = mutants::SEEDS_MAX)]
        seeds: u64,
        #[arg(long, default_value_t = 2)]
        jobs: usize,
        /// Only mutants whose name contains this
        #[arg(long)]
        only: Option<String>,
        /// Try the seeds first that showed what shows late; the search from 0 on takes three times as long
        #[arg(long)]
        known_first: bool,
        /// Print the command that shows each catch again
        #[arg(long)]
        again: bool,
    },
    /// Play a scenario and compare with its recorded output
    Scenario {
        /// A name in proof/sim/scenarios, or all
        name: String,
        /// Record the output instead of comparing it
        #[arg(long)]
        bless: bool,
    },
    /// List profiles and dials
    Dials,
    /// State sync: nodes that write convergent values, meet by gossip and by a log, and lie
    #[command(subcommand)]
    Sync(sim::sync::command::Command),
}

#[derive(Args)]
struct How {
    /// Virtual length of a run
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Replicas; drawn from the seed when not given
    #[arg(long)]
    n: Option<u64>,
    /// Where to look for trouble; `sim dials` lists them
    #[arg(long, default_value = "mixed")]
    profile: String,
    /// Set a dial: name=value
    #[arg(long = "dial", value_parser = parse_dial)]
    dials: Vec<(String, u64)>,
    /// Switch a safety rule off
    #[arg(long)]
    mutant: Option<String>,
}

fn parse_dial(text: &str) -> Result<(String, u64), String> {
    let (name, value) = text.split_once('=').ok_or("a dial is set as name=value")?;
    if !Dials::NAMES.contains(&name) {
        return Err(format!("no dial is called {name}; `sim dials` lists them"));
    }
    Ok((name.to_string(), value.parse().map_err(|error| format!("{value}: {error}"))?))
}

fn parse_mutant(name: &str) -> anyhow::Result<Mutants> {
    let all = [Mutant::ALL, Mutant::RAFT, Mutant::SEGMENT, Mutant::TIME, Mutant::ROOM].concat();
    let found = all.iter().find(|mutant| format!("{mutant:?}").eq_ignore_ascii_case(name));
    let mutant = found.with_context(|| format!("no mutant is called {name}"))?;
    Ok(Mutants::default().with(*mutant))
}

impl How {
    fn recipe(&self) -> anyhow::Result<Recipe> {
        let profile = Profile::named(&self.profile)
            .with_context(|| format!("no profile is called {}; `sim dials` lists them", self.profile))?;
        let mut overrides: Vec<(String, u64)> = self.n.map(|n| ("n".to_string(), n)).into_iter().collect();
        ensure!(overrides.iter().all(|(_, n)| (1..=31).contains(n)), "a cluster has 1 to 31 replicas");
        overrides.extend(self.dials.iter().cloned());
        let mutants = self.mutant.as_deref().map(parse_mutant).transpose()?.unwrap_or_default();
        Ok(Recipe { profile, seconds: self.seconds, overrides, mutants })
    }

    fn flags(&self, seed: u64) -> String {
        let mut flags = format!("--seed {seed} --seconds {} --profile {}", self.seconds, self.profile);
        if let Some(n) = self.n {
            flags.push_str(&format!(" --n {n}"));
        }
        for (name, value) in &self.dials {
            flags.push_str(&format!(" --dial {name}={value}"));
        }
        if let Some(mutant) = &self.mutant {
            flags.push_str(&format!(" --mutant {mutant}"));
        }
        flags
    }
}

/// Histories in a thousand that the search for an order may leave undecided.
const UNDECIDED_PER_MILLE_MAX: u64 = 15;

fn main() -> ExitCode {
    match act(Cli::parse().command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn act(command: Command) -> anyhow::Result<bool> {
    match command {
        Command::Run { seeds, how, jobs, failures_max, any_coverage, simulated_min } => {
            run_many(seeds, &how, jobs, failures_max, (any_coverage, simulated_min))
        }
        Command::Replay { seed, how, trace } => replay(seed, &how, trace),
        Command::Step { seed, how, from, until } => step(seed, &how, from, until),
        Command::Shrink { seed, how } => shrink(seed, &how),
        Command::Mutants { seeds, jobs, only, known_first, again } => {
            hunt(Search { seeds_max: seeds, known_first }, jobs, only.as_deref(), again)
        }
        Command::Scenario { name, bless } => scenario(&name, bless),
        Command::Sync(command) => sim::sync::command::act(command),
        Command::Dials => {
            for profile in PROFILES {
                println!("profile {:<10} {}", profile.name, profile.about);
            }
            println!("dials   {}", Dials::NAMES.join(" "));
            Ok(true)
        }
    }
}

fn progress(length: u64, what: &str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{msg} [{bar:40}] {pos}/{len} {elapsed} eta {eta}")
        .expect("a valid template")
        .progress_chars("=> ");
    ProgressBar::new(length).with_style(style).with_message(what.to_string())
}

fn print_failure(report: &Report, how: &How) {
    println!("VIOLATION at seed {}", report.seed);
    // Some of what everybody found: a cluster that hangs has a finding for every command.
    let mut shown: BTreeMap<Finder, usize> = BTreeMap::new();
    for found in &report.found {
        let count = shown.entry(found.by).or_default();
        *count += 1;
        if *count <= FOUND_SHOWN {
            println!("  {}: {}", found.by, found.text);
        }
    }
    for (by, count) in shown.into_iter().filter(|(_, count)| *count > FOUND_SHOWN) {
        println!("  {by}: {} more", count - FOUND_SHOWN);
    }
    println!("  dials: {}", report.dials);
    println!("  again: cargo run -p sim --release -- replay {} --trace", how.flags(report.seed));
}

fn run_many(
    seeds: Range<u64>,
    how: &How,
    jobs: usize,
    failures_max: usize,
    (any_coverage, simulated_min): (bool, u64),
) -> anyhow::Result<bool> {
    let recipe = how.recipe()?;
    let begun = Instant::now();
    let total = seeds.end - seeds.start;
    let bar = progress(total, "seeds");
    let mut coverage = Coverage::default();
    let mut refusals: BTreeMap<&'static str, u64> = BTreeMap::new();
    let mut tricks: BTreeMap<Trick, u64> = BTreeMap::new();
    let mut undecided = Vec::new();
    let (mut ran, mut failures, mut lost, mut doubled, mut virtual_us, mut events) =
        (0u64, Vec::new(), 0, 0, 0u64, 0u64);
    run_seeds(seeds.clone(), jobs, &recipe, |report| {
        bar.inc(1);
        ran += 1;
        coverage += &report.coverage;
        report.refusals.iter().for_each(|(reason, count)| *refusals.entry(reason).or_default() += count);
        report.tricks.iter().for_each(|(trick, count)| *tricks.entry(*trick).or_default() += count);
        lost += report.lost;
        doubled += report.doubled;
        virtual_us += report.ended_at_us;
        events += report.events;
        if report.undecided {
            undecided.push(report.seed);
        }
        if !report.is_clean() {
            bar.suspend(|| print_failure(&report, how));
            failures.push(report.seed);
        }
        failures.len() < failures_max
    });
    bar.finish_and_clear();
    println!(
        "coverage of seeds {}..{} ({} profile, {ran} ran):",
        seeds.start,
        seeds.start + ran,
        recipe.profile.name
    );
    print!("{coverage}");
    let refusals: Vec<String> = refusals.iter().map(|(reason, count)| format!("{reason}: {count}")).collect();
    println!("  refused by honest replicas: {}", refusals.join(", "));
    let tricks: Vec<String> = tricks.iter().map(|(trick, count)| format!("{trick:?}: {count}")).collect();
    println!("  lies by trick: {}", tricks.join(", "));
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "{ran} seeds, {:.0} simulated seconds, {events} events in {seconds:.1} s; {} acknowledged, {lost} lost, {doubled} doubled, {} violations{}",
        virtual_us as f64 / 1e6,
        coverage.commands_acknowledged,
        failures.len(),
        if failures.is_empty() { String::new() } else { format!(": seeds {failures:?}") }
    );
    // A history that the search could not order is not a proof: it is told, and more than that share are a failure.
    // Where liars may cost acknowledgements of a segment many outcomes count as unknown, which is what makes it hard.
    let undecided_max = (ran * UNDECIDED_PER_MILLE_MAX).div_ceil(1000);
    if !undecided.is_empty() {
        println!(
            "{} histories left undecided by the search (at most {undecided_max}): seeds {undecided:?}",
            undecided.len()
        );
    }
    let whole = recipe.profile.name == PROFILES[0].name && recipe.overrides.is_empty() && ran >= 200;
    let shortfalls = if whole && !any_coverage { coverage.shortfalls(ran) } else { Vec::new() };
    for shortfall in &shortfalls {
        println!("COVERAGE {shortfall}");
    }
    if !whole {
        println!(
            "minimum coverage is demanded of 200 or more seeds of the unchanged profile {}",
            PROFILES[0].name
        );
    }
    let long_enough = virtual_us / 1_000_000 >= simulated_min;
    if !long_enough {
        println!("SHORT: {simulated_min} simulated seconds were asked for");
    }
    Ok(long_enough && failures.is_empty() && shortfalls.is_empty() && undecided.len() as u64 <= undecided_max)
}

fn replay(seed: u64, how: &How, trace: bool) -> anyhow::Result<bool> {
    sim::runner::quiet_panics();
    let recipe = how.recipe()?;
    let dials = recipe.dials(seed);
    let mut world = World::new(seed, &dials, recipe.mutants, trace);
    let mut ending = Ending::default();
    let out = std::io::stdout();
    let mut out = out.lock();
    loop {
        let over = ending.step(&mut world);
        for line in world.trace.take_lines() {
            writeln!(out, "{line}")?;
        }
        if over {
            break;
        }
    }
    drop(out);
    let first = world.report();
    let second = sim::ending::run(seed, &dials, recipe.mutants);
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

fn step(seed: u64, how: &How, from: f64, until: Option<f64>) -> anyhow::Result<bool> {
    sim::runner::quiet_panics();
    let recipe = how.recipe()?;
    let mut world = World::new(seed, &recipe.dials(seed), recipe.mutants, true);
    let mut ending = Ending::default();
    let us = |seconds: f64| (seconds * 1e6) as u64;
    let mut target_us = us(from);
    let mut input = std::io::stdin().lock();
    loop {
        let over = ending.step(&mut world);
        let lines = world.trace.take_lines();
        if world.now_us >= us(from) {
            lines.iter().for_each(|line| println!("{line}"));
        }
        if over || until.is_some_and(|until| world.now_us >= us(until)) {
            return Ok(true);
        }
        if until.is_none() && world.now_us >= target_us && !lines.is_empty() {
            print!("> ");
            std::io::stdout().flush()?;
            let mut text = String::new();
            if input.read_line(&mut text)? == 0 || text.trim() == "q" {
                return Ok(true);
            }
            if let Ok(seconds) = text.trim().parse::<f64>() {
                target_us = us(seconds);
            } else if text.trim() == "s" {
                for node in &world.nodes {
                    let now = node.now(world.now_us);
                    println!("{node:?}: {:?}", node.core.as_ref().map(|core| core.status(now)));
                }
            }
        }
    }
}

fn shrink(seed: u64, how: &How) -> anyhow::Result<bool> {
    sim::runner::quiet_panics();
    let recipe = how.recipe()?;
    let dials = recipe.dials(seed);
    let Some((small, report, runs)) =
        sim::shrink::shrink(seed, &dials, recipe.mutants, |step| println!("  still fails with {step}"))
    else {
        println!("seed {seed} does not fail with {dials}");
        return Ok(true);
    };
    println!("{runs} runs");
    let flags: Vec<String> = Dials::NAMES
        .iter()
        .map(|name| (name, small.get(name).expect("a dial"), dials.get(name).expect("a dial")))
        .filter(|(_, small, before)| small != before)
        .map(|(name, small, _)| format!("--dial {name}={small}"))
        .collect();
    for found in report.found.iter().take(8) {
        println!("  {}: {}", found.by, found.text);
    }
    println!("again: cargo run -p sim --release -- replay {} {} --trace", how.flags(seed), flags.join(" "));
    Ok(false)
}

fn hunt(search: Search, jobs: usize, only: Option<&str>, again: bool) -> anyhow::Result<bool> {
    let begun = Instant::now();
    let mut hunts = mutants::hunts();
    if let Some(only) = only {
        hunts.retain(|hunt| format!("{:?}", hunt.mutant).to_lowercase().contains(&only.to_lowercase()));
        ensure!(!hunts.is_empty(), "no mutant's name contains {only}");
    }
    let bar = progress(hunts.len() as u64, "mutants");
    let (mut histories, mut good, mut cpu_s, mut seeds_most) = (0u64, 0, 0.0, 0);
    println!("{:<26} {:>5}  {:<13} {:>6}  found", "mutant", "seeds", "judge", "cpu s");
    mutants::pursue_all(&hunts, search, jobs, |news| {
        let (hunt, catch) = match news {
            News::History => {
                histories += 1;
                bar.set_message(format!("{histories} histories, mutants"));
                return;
            }
            News::Ended(hunt, catch) => (hunt, catch),
        };
        bar.inc(1);
        good += usize::from(catch.is_good());
        seeds_most = catch.seeds.max(seeds_most);
        cpu_s += catch.cpu.unwrap_or_default().as_secs_f64();
        bar.suspend(|| print_catch(hunt, &catch, again));
    });
    bar.finish_and_clear();
    let all = good == hunts.len();
    println!(
        "{histories} histories, controls included, in {:.0} s ({cpu_s:.0} s of processor); at most {seeds_most} seeds for one mutant",
        begun.elapsed().as_secs_f64(),
    );
    println!(
        "{good} of {} rules hunted were caught while the unmutated core and the harmless mutant pass the same seeds: {}",
        hunts.len(),
        if all { "the loss of each was noticed" } else { "NOT every loss was noticed" }
    );
    if search.known_first {
        println!(
            "seeds that showed a loss before were tried first: without --known-first the search begins at 0"
        );
    }
    let whole = mutants::hunts().len();
    if hunts.len() < whole {
        println!("{} rules were left out by --only", whole - hunts.len());
    }
    let unhunted = mutants::unhunted();
    let names: Vec<String> = unhunted.iter().map(|mutant| format!("{mutant:?}")).collect();
    println!(
        "{} rules are hunted by no world, and this run says nothing about them (docs/testing.md says what does): {}",
        unhunted.len(),
        names.join(", ")
    );
    Ok(all)
}

fn print_catch(hunt: &Hunt, catch: &Catch, again: bool) {
    let name = format!("{:?}", hunt.mutant);
    let (seeds, judge, text) = match &catch.caught {
        Some((_, judge, text)) => {
            // The finding begins with the judge's name, which has its own column.
            let text = text.split_once(": ").map_or(text.as_str(), |(_, text)| text);
            (catch.seeds.to_string(), judge.to_string(), text)
        }
        None => (format!(">{}", catch.seeds), "NOT CAUGHT".into(), ""),
    };
    let cpu = catch.cpu.map_or("-".to_string(), |cpu| format!("{:.1}", cpu.as_secs_f64()));
    println!("{name:<26} {seeds:>5}  {judge:<13} {cpu:>6}  {text}");
    for failure in &catch.control_failures {
        println!("{:<26}        NOT A CATCH: {failure}", "");
    }
    let seed = catch.caught.as_ref().map_or(0, |(seed, ..)| *seed);
    if again || !catch.is_good() {
        println!(
            "{:<26}        again: cargo run -p sim --release -- replay {} --mutant {name}",
            "",
            hunt.flags(seed)
        );
    }
}

fn scenario(name: &str, bless: bool) -> anyhow::Result<bool> {
    let outcomes = sim::scenario::play_named(name, bless)?;
    if outcomes.is_empty() {
        bail!("no scenario is called {name}; they stand in {}", sim::scenario::folder().display());
    }
    let mut good = true;
    for outcome in outcomes {
        println!("{}: {}", outcome.name, outcome.verdict);
        good &= outcome.good;
    }
    Ok(good)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_page_says_how_many_histories_may_be_undecided() {
        let says = format!("more than {} in a thousand fail the run", super::UNDECIDED_PER_MILLE_MAX);
        assert!(
            include_str!("../../../docs/testing.md").contains(&says),
            "docs/testing.md does not say: {says}"
        );
    }
}
