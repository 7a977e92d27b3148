//! Does anybody notice when a rule of state sync is switched off? A mutant counts as caught only by a judge of
//! `proof/check`, from generated seeds. On every seed it was tried on, the unmutated core and the harmless mutant must be
//! clean, and their two histories the same to the last event.

use crate::ending::Finder;
use crate::sync::dials::{Dials, draw};
use crate::sync::ending::{Report, run};
use crate::sync::liar::Trick;
use check::Judge;
use dwcp_base::{Mutant, Mutants};

/// Seeds within which each must be caught.
pub const SEEDS_MAX: u64 = 300;
/// Virtual length of a hunt's runs.
pub const SECONDS: u64 = 12;

/// Where a mutant shows itself.
#[derive(Clone, Debug)]
pub struct Hunt {
    pub mutant: Mutant,
    pub rule: &'static str,
    pub overrides: Vec<(&'static str, u64)>,
}

/// One hunt per rule.
#[must_use]
pub fn hunts() -> Vec<Hunt> {
    use Mutant as M;
    let small = [("n", 5), ("liars", 0), ("calm_ms", 60_000)];
    let crash = [("crash_ms", 1_500), ("down_ms", 300), ("write_ms", 20)];
    let lies = [("n", 5), ("liars", 1), ("tricks", Trick::Equivocate.bit()), ("calm_ms", 60_000)];
    let hunt =
        |mutant, rule, parts: &[&[(&'static str, u64)]]| Hunt { mutant, rule, overrides: parts.concat() };
    vec![
        hunt(M::CrdtDeleteWithoutTombstone, "delete without tombstone", &[&small]),
        hunt(M::CrdtArrivalOrder, "merged by arrival order", &[&small]),
        hunt(M::CrdtDigestOfRemote, "checksum of what came, not of the merged value", &[&small]),
        hunt(M::CrdtCollectsWithoutFloor, "tombstones collected without floor", &[&small]),
        hunt(M::CrdtClockNotMerged, "hybrid clock not merged", &[&small]),
        hunt(M::CrdtResolverByOrder, "resolver depends on order", &[&small]),
        hunt(M::SyncHashIgnored, "head hash ignored", &[&lies]),
        hunt(M::SyncLiarNotFrozen, "equivocator not frozen", &[&lies]),
        hunt(M::SyncFrameInPart, "frame applied in part", &[&small]),
        hunt(
            M::SyncCollectsWithoutFloor,
            "frames collected without floor",
            &[&small, &[("partition_ms", 1_500), ("fanout", 1)]],
        ),
        hunt(M::SyncDotsReused, "dots reused after restart", &[&small, &crash]),
        hunt(
            M::SyncPushBeforeSync,
            "frame sent before it is durable",
            &[&small, &crash, &[("sync_us", 30_000)]],
        ),
        hunt(
            M::SyncRepairByOne,
            "repair adopts one member's word",
            &[&lies, &[("tricks", Trick::FalseCopies.bit()), ("audit_ms", 1_000), ("write_ms", 1_500)]],
        ),
    ]
}

impl Hunt {
    #[must_use]
    pub fn dials(&self, seed: u64) -> Dials {
        let mut dials = draw(seed, SECONDS);
        for (name, value) in &self.overrides {
            let known = dials.set(name, *value);
            assert!(known, "{name} is a dial");
        }
        dials.settle();
        dials
    }

    /// The flags that show a seed of this hunt again.
    #[must_use]
    pub fn flags(&self, seed: u64) -> String {
        let mut flags = format!("--seed {seed} --seconds {SECONDS}");
        for (name, value) in &self.overrides {
            flags.push_str(&format!(" --dial {name}={value}"));
        }
        flags
    }

    #[must_use]
    pub fn run(&self, seed: u64, mutants: Mutants) -> Report {
        run(seed, &self.dials(seed), mutants)
    }

    /// What a judge says of a seed with the rule switched off.
    #[must_use]
    pub fn caught(&self, seed: u64) -> Option<(Judge, String)> {
        let report = self.run(seed, Mutants::default().with(self.mutant));
        report.found.iter().find_map(|found| match found.by {
            Finder::Judge(judge) => Some((judge, found.text.lines().next().unwrap_or_default().to_string())),
            Finder::Simulator => None,
        })
    }

    /// The core with every rule and the mutant that changes nothing: clean, and event for event the same.
    #[must_use]
    pub fn control(&self, seed: u64) -> Option<String> {
        let unmutated = self.run(seed, Mutants::default());
        let harmless = self.run(seed, Mutants::default().with(Mutant::Harmless));
        for (who, report) in [("unmutated", &unmutated), ("harmless", &harmless)] {
            if let Some(found) = report.found.first() {
                return Some(format!("the {who} core fails at seed {seed}: {}", found.text));
            }
        }
        let differ = (unmutated.trace_hash, unmutated.events) != (harmless.trace_hash, harmless.events);
        differ.then(|| format!("the harmless mutant changed the history of seed {seed}"))
    }
}

/// What became of a hunt.
#[derive(Debug)]
pub struct Catch {
    pub caught: Option<(u64, Judge, String)>,
    pub seeds: u64,
    pub control_failures: Vec<String>,
}

impl Catch {
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.caught.is_some() && self.control_failures.is_empty()
    }
}

/// Tries seeds until a judge catches the mutant, then the controls on every seed tried.
#[must_use]
pub fn pursue(hunt: &Hunt, seeds_max: u64) -> Catch {
    let mut catch = Catch { caught: None, seeds: 0, control_failures: Vec::new() };
    for seed in 0..seeds_max {
        catch.seeds += 1;
        catch.caught = hunt.caught(seed).map(|(judge, text)| (seed, judge, text));
        if catch.caught.is_some() {
            break;
        }
    }
    if catch.caught.is_some() {
        catch.control_failures = (0..catch.seeds).filter_map(|seed| hunt.control(seed)).collect();
    }
    catch
}
