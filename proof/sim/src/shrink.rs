//! Shortens a failing history: fewer faults, fewer clients, less time, fewer replicas, as long as it still fails in
//! the same judge's eyes. Greedy, over dials; every step is one run.

use crate::dials::Dials;
use crate::ending::{Finder, Report, run};
use crate::trick::Trick;
use crate::world::World;
use dwcp_base::Mutants;

/// Dials that may be switched off, the most disturbing first.
const SWITCHES: &[&str] = &[
    "liars",
    "lying_clients",
    "fsync_liars",
    "wrong_clocks",
    "wipe_ms",
    "wipe_sealed_pm",
    "chunk_flip_pm",
    "damage_pm",
    "exclude_ms",
    "excluded_ms",
    "ack_patience_ms",
    "kill_both_ms",
    "blackout_ms",
    "crash_ms",
    "crash_ticket_ppm",
    "partition_ms",
    "pause_ms",
    "slow_link_ms",
    "slow_disk_ms",
    "full_disk_ms",
    "death_pm",
    // Without one of these there is a whole protocol less to look at.
    "convergent_ms",
    "policy_order_pm",
    "mode_order_ms",
    "mode",
    "anchored_pm",
    "leader_reads_pm",
    "link_down_pm",
    "leases_pm",
    "lease_life_pm",
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
        // One trick less at a time, and never the last: without any, each liar would draw its own again.
        if best.liars > 0 {
            if best.tricks == 0 {
                let mut candidate = best.clone();
                candidate.tricks = drawn_tricks(seed, &best);
                // A union of what several drew is another history: kept only where it fails, too.
                progress |= attempt(candidate, &mut best, &mut report, "the tricks drawn, by name".into());
            }
            for trick in Trick::ALL.into_iter().filter(|_| best.tricks != 0).collect::<Vec<_>>() {
                let mut candidate = best.clone();
                candidate.tricks &= !trick.bit();
                if candidate.tricks != 0 {
                    progress |= attempt(candidate, &mut best, &mut report, format!("without {trick:?}"));
                }
            }
        }
        if !progress {
            return Some((best, report, runs));
        }
    }
}

/// What the liars of this history drew, all together.
fn drawn_tricks(seed: u64, dials: &Dials) -> u64 {
    let world = World::new(seed, dials, Mutants::default(), false);
    world.nodes.iter().filter_map(|node| node.puppet.as_ref()).fold(0, |all, puppet| all | puppet.tricks())
}

fn finder(report: &Report) -> Option<Finder> {
    report.found.first().map(|found| found.by)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What gives a history its measure and disturbs nothing; `tricks` are taken away one by one.
    const MEASURES: &[&str] = &[
        "f",
        "calm_ms",
        "answer_ms",
        "think_ms",
        "retry_ms",
        "steady",
        "delay_us",
        "partition_long_ms",
        "sync_us",
        "down_ms",
        "pause_long_ms",
        "tricks",
        "liars_first",
        "checkpoint_interval",
        "view_timeout_ms",
        "batch_bytes_max",
        "snapshot_log_bytes",
        "segment_calm_ms",
        "election_ms",
        "fast_path_ms",
        "anchor_ms",
        "append_entries_max",
        "apply_bytes",
        "convergent_keys",
        "exchange_ms",
    ];

    #[test]
    fn every_dial_that_disturbs_can_be_switched_off() {
        let sizes = SIZES.iter().map(|(name, _)| *name);
        let mut known: Vec<&str> =
            SWITCHES.iter().copied().chain(sizes).chain(MEASURES.iter().copied()).collect();
        let mut all = Dials::NAMES.to_vec();
        known.sort_unstable();
        all.sort_unstable();
        assert_eq!(known, all);
    }

    #[test]
    fn what_liars_drew_is_known_by_name() {
        let dials = crate::dials::Profile::named("byzantine").expect("a profile").draw(1, 20);
        let tricks = drawn_tricks(1, &dials);
        assert!(dials.tricks == 0 && tricks.count_ones() >= 2, "{tricks:b}");
        let named = Dials { tricks, ..dials };
        assert_eq!(drawn_tricks(1, &named), tricks);
    }
}
