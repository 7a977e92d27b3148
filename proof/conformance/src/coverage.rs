//! How much schedules must go through before their verdict counts: histories in which nothing happens break no rule. Knows
//! counts by their names only, as `judge` and `world` give them.

use std::collections::BTreeMap;

/// Fewer schedules than these are too few to demand anything of.
pub const SCHEDULES_MIN: u64 = 50;

/// What a hundred schedules must show of one subject: about half of what the first hundred show of the one that shows less, a
/// quarter of what comes in clusters.
pub const MINIMA: &[(&str, u64)] = &[
    ("committed", 3_000),
    ("elections", 190),
    ("leaders replaced by another", 100),
    ("logs replaced", 20),
    ("crashes", 400),
    ("reads ready", 2_200),
    ("seals", 140),
    ("snapshots installed", 6),
];

/// What these schedules showed too little of.
#[must_use]
pub fn shortfalls(counts: &BTreeMap<&'static str, u64>, schedules: u64) -> Vec<String> {
    if schedules < SCHEDULES_MIN {
        return Vec::new();
    }
    MINIMA
        .iter()
        .filter_map(|(what, minimum)| {
            let due = (minimum * schedules).div_ceil(100);
            let count = counts.get(what).copied().unwrap_or(0);
            (count < due).then(|| format!("{count} {what}, and {schedules} schedules must show {due}"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Own, Schedule, play};

    fn counted(schedules: u64, change: impl Fn(&mut Schedule)) -> BTreeMap<&'static str, u64> {
        let own = Own::default();
        let mut counts = BTreeMap::new();
        for seed in 0..schedules {
            let mut schedule = Schedule::new(seed);
            change(&mut schedule);
            for (what, count) in play(&own, &schedule).counts {
                *counts.entry(what).or_default() += count;
            }
        }
        counts
    }

    #[test]
    fn schedules_as_they_are_drawn_show_enough() {
        assert_eq!(shortfalls(&counted(SCHEDULES_MIN, |_| {}), SCHEDULES_MIN), [""; 0]);
    }

    #[test]
    fn schedules_in_which_nothing_is_done_do_not() {
        let idle = shortfalls(&counted(SCHEDULES_MIN, |schedule| schedule.deeds.clear()), SCHEDULES_MIN);
        for what in ["committed", "leaders replaced by another", "logs replaced", "crashes", "reads ready"] {
            assert!(idle.iter().any(|line| line.contains(what)), "{what}: {idle:?}");
        }
    }

    #[test]
    fn each_count_is_demanded() {
        let enough: BTreeMap<_, _> = MINIMA.iter().copied().collect();
        assert_eq!(shortfalls(&enough, 100), [""; 0]);
        for (what, minimum) in MINIMA {
            let mut fewer = enough.clone();
            fewer.insert(what, minimum - 1);
            assert_eq!(shortfalls(&fewer, 100).len(), 1, "{what}");
        }
    }
}
