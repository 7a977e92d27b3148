//! Shortens a failing history: fewer faults, fewer clients, less time, fewer replicas, as long as it still fails in
//! the same judge's eyes. Greedy, over dials; every step is one run.

use crate::dials::Dials;
use crate::ending::{Finder, Report, run};
use dwcp_base::Mutants;

/// Dials that may be switched off, the most disturbing first.
const SWITCHES: &[&str] = &[
    "liars",
    "lying_clients",
    "fsync_liars",
    "wrong_clocks",
    "wipe_ms",
    "blackout_ms",
    "crash_ms",
    "crash_ticket_ppm",
    "partition_ms",
    "pause_ms",
    "slow_link_ms",
    "slow_disk_ms",
    "full_disk_ms",
    "death_pm",
    "leases_pm",
    "retry_pm",
    "drop_pm",
    "commits_lost_pm",
    "duplicate_pm",
    "stray_pm",
    "one_way_pm",
    "torn_pm",
    "skew_ms",
    "jitter_us",
    "ed25519",
    "pipelined_sync",
    "value_bytes_max",
];

/// Dials that may become smaller, and how small.
const SIZES: &[(&str, u64)] = &[
    ("safety_ms", 1_000),
    ("clients", 1),
    ("commands_max", 1),
    ("in_flight_max", 1),
    ("n", 1),
    ("pipeline_depth", 1),
    ("window_checkpoints", 2),
];

/// The smallest failing dials found, their report, and how many runs it took.
pub fn shrink(
    seed: u64,
    dials: &Dials,
    mutants: Mutants,
    mut tell: impl FnMut(&str),
) -> Option<(Dials, Report, u64)> {
    let mut report = run(seed, dials, mutants);
    let target = finder(&report)?;
    let mut best = dials.clone();
    let mut runs = 1;
    let mut attempt = |candidate: Dials, best: &mut Dials, report: &mut Report, what: String| {
        if candidate == *best {
            return false;
        }
        runs += 1;
        let tried = run(seed, &candidate, mutants);
        let fails = finder(&tried) == Some(target);
        if fails {
            tell(&what);
            *best = candidate;
            *report = tried;
        }
        fails
    };
    loop {
        let mut progress = false;
        for (name, least) in SIZES {
            loop {
                let now = best.get(name).expect("a dial");
                let next = match *name {
                    "n" => match now {
                        7.. => 5,
                        5 => 4,
                        _ => break,
                    },
                    _ => (now / 2).max(*least),
                };
                let mut candidate = best.clone();
                let known = candidate.set(name, next);
                assert!(known, "{name} is a dial");
                if *name == "n" {
                    candidate.f = candidate.f.min(1);
                }
                candidate.settle();
                if next == now
                    || !attempt(candidate, &mut best, &mut report, format!("{name} {now} -> {next}"))
                {
                    break;
                }
                progress = true;
            }
        }
        for name in SWITCHES {
            let mut candidate = best.clone();
            let known = candidate.set(name, 0);
            assert!(known, "{name} is a dial");
            candidate.settle();
            progress |= attempt(candidate, &mut best, &mut report, format!("{name} off"));
        }
        if !progress {
            return Some((best, report, runs));
        }
    }
}

fn finder(report: &Report) -> Option<Finder> {
    report.found.first().map(|found| found.by)
}
