//! What the virtual log costs: the same frames through three bare Raft nodes and through three whole replicas with a Raft
//! segment open, in one thread, taking turns. Processor time alone; no sockets and no disk. Nothing is judged here, but a
//! run in which the sides did not do the same is refused.
//!
//! `cargo run --release -p layer-bench [--json] [--rounds N] [--rate OPS] [row...]`; rows: see `ROWS`; without any, all.

mod bare;
mod clock;
mod load;
mod parts;
mod rounds;
mod whole;
mod world;

use anyhow::{Context, bail};
use clock::median;
use parts::{Parts, micros};
use rounds::{Load, SIDES, Sides, Spent};
use serde_json::{Value, json};
use std::time::Duration;

const ROUNDS: usize = 15;
/// Rounds that fill stores and caches, of which nothing is told.
const WARM_UP: usize = 2;

const fn load(clients: usize, frame: usize, rate: u64, checked: bool, round_ms: u64) -> Load {
    Load { clients, frame, rate, checked, round_ms }
}

/// Rates are what three nodes and their clients do on two cores, rounded down: `docs/performance.md`.
const ROWS: &[(&str, &str, Load)] = &[
    ("one", "1 client, frames of 1, signed", load(1, 1, 1_000, true, 2_000)),
    ("signed-1", "64 clients, frames of 1, signed", load(64, 1, 10_000, true, 1_000)),
    ("plain-1", "64 clients, frames of 1, unchecked", load(64, 1, 10_000, false, 1_000)),
    ("signed-64", "16 clients, frames of 64, signed", load(16, 64, 50_000, true, 500)),
    ("plain-64", "16 clients, frames of 64, unchecked", load(16, 64, 50_000, false, 500)),
];

struct Asked {
    json: bool,
    rounds: usize,
    rate: Option<u64>,
    rows: Vec<String>,
}

fn asked() -> anyhow::Result<Asked> {
    let mut asked = Asked { json: false, rounds: ROUNDS, rate: None, rows: Vec::new() };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--json" => asked.json = true,
            "--rounds" => {
                let count = words.next().context("--rounds takes a count")?;
                asked.rounds =
                    count.parse().ok().filter(|count| *count > 0).context("--rounds: 1 or more")?;
            }
            "--rate" => {
                let rate = words.next().context("--rate takes operations a second")?;
                let rate = rate.parse().ok().filter(|rate| (100..=1_000_000).contains(rate));
                asked.rate = Some(rate.context("--rate: 100 to 1000000")?);
            }
            row if ROWS.iter().any(|(name, ..)| *name == row) => asked.rows.push(word),
            other => {
                let names: Vec<&str> = ROWS.iter().map(|(name, ..)| *name).collect();
                bail!("{other}: no such row; there are {}", names.join(", "));
            }
        }
    }
    Ok(asked)
}

/// One side over all rounds, in microseconds an operation of all three nodes together.
struct Side {
    bursts: Vec<f64>,
    between: Vec<f64>,
    digests: Vec<f64>,
}

impl Side {
    fn of(spent: &[Spent], operations: f64) -> Self {
        let each = |time: fn(&Spent) -> Duration| {
            spent.iter().map(|round| micros(time(round)) / operations).collect()
        };
        Self {
            bursts: each(|round| round.bursts),
            between: each(|round| round.between),
            digests: each(|round| round.digests),
        }
    }

    /// Without digests that are apart.
    fn all(&self) -> Vec<f64> {
        self.bursts.iter().zip(&self.between).map(|(bursts, between)| bursts + between).collect()
    }
}

fn differences(whole: &[f64], bare: &[f64]) -> Vec<f64> {
    whole.iter().zip(bare).map(|(whole, bare)| whole - bare).collect()
}

fn spread(of: &[f64]) -> (f64, f64) {
    of.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), one| (low.min(*one), high.max(*one)))
}

/// What one row found. All in microseconds an operation, but for ratios.
struct Found {
    what: &'static str,
    name: &'static str,
    load: Load,
    bare: f64,
    whole: f64,
    ratios: Vec<f64>,
    anchors: f64,
    /// Copies of the state that replicas keep at Ticks when a snapshot is near, and what writes beside them cost: what whole
    /// replicas take beyond those to which none is near. The mean, for only some rounds have any; 0 if no snapshot was written.
    copies: f64,
    /// Digests of the state at every Tick.
    digests: f64,
    /// Ticks, Anchors, checkpoints and timers of the root: between bursts, what a whole replica without copies takes beyond
    /// a bare node and its digests.
    root: f64,
    in_bursts: f64,
    /// How many the whole side wrote.
    snapshots: u64,
    parts: Parts,
}

impl Found {
    /// A Raft without a chain of hashes in its log.
    fn without_chain(&self) -> f64 {
        self.bare - self.parts.chain
    }

    /// Everything that is there for the virtual log's sake alone. Digests of the state are not: snapshots need them, too.
    fn layer(&self) -> f64 {
        let Parts { chain, messages, records, labels, polls, pool_hashes: _ } = self.parts;
        2.0 * chain + messages + records + labels + polls + self.root + self.copies
    }

    /// What a whole replica takes beyond a bare node and no part of the layer explains.
    fn rest(&self) -> f64 {
        let Parts { chain, messages, records, labels, polls, pool_hashes: _ } = self.parts;
        self.in_bursts - (chain + messages + records + labels + polls)
    }

    fn layer_percent(&self) -> f64 {
        100.0 * self.layer() / self.without_chain()
    }

    fn whole_percent(&self) -> f64 {
        100.0 * (median(self.ratios.clone()) - 1.0)
    }

    fn print(&self) {
        let parts = self.parts;
        let line = |what: &str, value: f64| {
            println!("  {what:<58} {value:>9.3} µs/op {:>7.1} %", 100.0 * value / self.without_chain());
        };
        println!(
            "{} ({}): {} operations/s, {} rounds",
            self.what,
            self.name,
            self.load.rate,
            self.ratios.len()
        );
        line("a: three bare Raft nodes", self.bare);
        line("b: three whole replicas", self.whole);
        let (low, high) = spread(&self.ratios);
        println!(
            "  {:<58} {:>9.3}, rounds {low:.3} to {high:.3}",
            "b / a, median of rounds",
            median(self.ratios.clone())
        );
        line("chain of hashes in the Raft log (in a and in b)", parts.chain);
        line("chain of hashes once more at execution", parts.chain);
        line("messages wrapped and unwrapped", parts.messages);
        line("records wrapped", parts.records);
        line("labels", parts.labels);
        line("root and segment asked in every step", parts.polls);
        line("Ticks, Anchors, the root, without digests of the state", self.root);
        println!("    {:<56} {:>9.0} µs each", "by Anchors", self.root * self.anchors);
        line("copies of the state at Ticks, for snapshots (mean)", self.copies);
        line("the layer: all of these", self.layer());
        line("digests of the state, at every Tick", self.digests);
        line("the rest of a replica: pools, events, bookkeeping", self.rest());
        line("of that hashes of frames for the pool", parts.pool_hashes);
        println!();
    }

    fn json(&self) -> Value {
        let parts = self.parts;
        let (low, high) = spread(&self.ratios);
        json!({
            "row": self.name,
            "clients": self.load.clients,
            "commands_per_frame": self.load.frame,
            "client_signatures_checked": self.load.checked,
            "operations_per_second_of_node_clock": self.load.rate,
            "operations_per_anchor": self.anchors,
            "rounds": self.ratios.len(),
            "snapshots": self.snapshots,
            "unit": "microseconds of processor per operation, three nodes together",
            "bare": self.bare,
            "whole": self.whole,
            "whole_by_bare": { "median": median(self.ratios.clone()), "low": low, "high": high },
            "layer": {
                "chain_in_raft_log_of_both": parts.chain,
                "chain_at_execution": parts.chain,
                "messages_wrapped": parts.messages,
                "records_wrapped": parts.records,
                "labels": parts.labels,
                "polls": parts.polls,
                "ticks_anchors_root": self.root,
                "state_copies_mean": self.copies,
                "all": self.layer(),
                "percent_of_bare_without_chain": self.layer_percent(),
            },
            "state_digests": self.digests,
            "rest_of_replica": { "all": self.rest(), "pool_hashes": parts.pool_hashes },
        })
    }
}

fn measure(name: &'static str, what: &'static str, load: Load, rounds: usize) -> anyhow::Result<Found> {
    let mut sides = Sides::new(load)?;
    let mut spent: Vec<[Spent; SIDES]> =
        (0..WARM_UP + rounds).map(|round| sides.round(round % SIDES)).collect();
    spent.drain(..WARM_UP);
    let operations = load.operations_of_a_round() as f64;
    let all = operations * rounds as f64;
    let steps: u64 = spent.iter().map(|[bare, ..]| bare.steps).sum();
    let anchors: u64 = spent.iter().map(|[_, whole, _]| whole.anchors).sum();
    let snapshots = sides.whole.snapshots;
    let parts = parts::measure(&mut sides, steps as f64 / all)?;
    sides.agree()?;
    let side = |at: usize| Side::of(&spent.iter().map(|round| round[at]).collect::<Vec<_>>(), operations);
    let (bare, whole, lean) = (side(0), side(1), side(2));
    let digests = median(bare.digests.clone());
    let copies = differences(&whole.all(), &lean.all()).iter().sum::<f64>() / rounds as f64;
    // Where no snapshot was written none was near for long, and the difference is noise.
    let copies = if snapshots > 0 { copies } else { 0.0 };
    Ok(Found {
        what,
        name,
        load,
        bare: median(bare.all()),
        whole: median(whole.all()),
        ratios: whole.all().iter().zip(bare.all()).map(|(whole, bare)| whole / bare).collect(),
        anchors: all / (anchors as f64).max(1.0),
        copies,
        digests,
        root: median(differences(&lean.between, &bare.between)) - digests,
        in_bursts: median(differences(&lean.bursts, &bare.bursts)),
        snapshots,
        parts,
    })
}

fn main() -> anyhow::Result<()> {
    let asked = asked()?;
    let mut all = Vec::new();
    for (name, what, load) in ROWS {
        if !asked.rows.is_empty() && !asked.rows.iter().any(|row| row == name) {
            continue;
        }
        let load = Load { rate: asked.rate.unwrap_or(load.rate), ..*load };
        let found = measure(name, what, load, asked.rounds).with_context(|| format!("row {name}"))?;
        if !asked.json {
            found.print();
        }
        all.push(found);
    }
    if asked.json {
        let rows: Vec<Value> = all.iter().map(Found::json).collect();
        println!("{}", serde_json::to_string_pretty(&rows)?);
        return Ok(());
    }
    println!(
        "{:<36} {:>8} {:>8} {:>9} {:>8}   in percent of a without its chain:",
        "", "a", "b", "b over a", "rest"
    );
    println!(
        "{:<36} {:>8} {:>8} {:>9} {:>8} {:>7} {:>8} {:>9} {:>9} {:>9}",
        "", "µs/op", "µs/op", "%", "%", "layer", "anchors", "copies", "chain x2", "digests"
    );
    for found in &all {
        let percent = |part: f64| 100.0 * part / found.without_chain();
        println!(
            "{:<36} {:>8.2} {:>8.2} {:>9.1} {:>8.1} {:>7.1} {:>8.1} {:>9.1} {:>9.1} {:>9.1}",
            found.what,
            found.bare,
            found.whole,
            found.whole_percent(),
            percent(found.rest()),
            percent(found.layer()),
            percent(found.root),
            percent(found.copies),
            percent(2.0 * found.parts.chain),
            percent(found.digests),
        );
    }
    Ok(())
}
