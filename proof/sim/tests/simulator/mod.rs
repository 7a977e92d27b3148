//! The simulator's own promises, on few seeds, so that they hold in a debug build, too: determinism, clean seeds of every
//! profile, recorded scenarios, a mutant caught by the judge that should, and a shrinker that keeps what it found.

mod every_ticket;
mod false_frames;
mod once_wrong;

use check::Judge;
use dwcp_base::{Mutant, Mutants};
use sim::dials::{PROFILES, Profile};
use sim::ending::{Report, run};
use sim::mutants::{Hunt, Search, hunts, pursue};
use sim::runner::{Recipe, quiet_panics, run_seeds};
use std::collections::BTreeSet;

fn report(profile: &str, seed: u64, seconds: u64) -> Report {
    quiet_panics();
    let dials = Profile::named(profile).expect("a profile").draw(seed, seconds);
    run(seed, &dials, Mutants::default())
}

fn hunt_of(mutant: Mutant) -> Hunt {
    hunts().into_iter().find(|hunt| hunt.mutant == mutant).expect("every mutant has a hunt")
}

#[test]
fn a_history_can_be_stepped_through() {
    use std::process::{Command, Stdio};
    let step = |args: &[&str], input: &str| {
        let mut child = Command::new(env!("CARGO_BIN_EXE_sim"))
            .args([&["step", "--seed", "4", "--seconds", "20"], args].concat())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it was built");
        use std::io::Write;
        child.stdin.take().expect("it is piped").write_all(input.as_bytes()).expect("it reads");
        let output = child.wait_with_output().expect("it ends");
        assert!(output.status.success());
        String::from_utf8(output.stdout).expect("text")
    };
    // On to the next event, on to a time, a look at everybody, the end.
    let text = step(&["--from", "0.5"], "\n1.0\ns\nq\n");
    assert_eq!(text.matches("> ").count(), 4, "{text}");
    assert!(text.contains("Status"), "{text}");
    let stretch = step(&["--from", "0.5", "--until", "1.0"], "");
    assert!(!stretch.contains("> ") && stretch.lines().count() > 3, "{stretch}");
}

#[test]
fn one_seed_has_one_history_and_another_seed_another() {
    let (first, second) = (report("mixed", 4, 20), report("mixed", 4, 20));
    assert_eq!((first.trace_hash, first.events), (second.trace_hash, second.events));
    assert_eq!(first.coverage, second.coverage);
    assert_ne!(first.trace_hash, report("mixed", 5, 20).trace_hash);
}

#[test]
fn a_few_seeds_of_the_main_profiles_keep_every_promise() {
    quiet_panics();
    for name in ["calm", "mixed", "partition"] {
        let profile = Profile::named(name).expect("a profile");
        let recipe = Recipe { profile, seconds: 20, overrides: Vec::new(), mutants: Mutants::default() };
        run_seeds(0..4, 2, &recipe, |report| {
            let found: Vec<_> = report.found.iter().map(|found| found.text.clone()).collect();
            assert!(report.is_clean(), "{name} seed {}: {found:?}\n{}", report.seed, report.dials);
            assert!(report.acknowledged > 0, "{name} seed {}: nothing was asked", report.seed);
            true
        });
    }
}

#[test]
fn every_profile_runs_to_an_end() {
    for profile in PROFILES {
        let ended = report(profile.name, 3, 14);
        assert!(ended.ended_at_us > 2_000_000, "{} ended at {} us", profile.name, ended.ended_at_us);
    }
}

#[test]
fn scenarios_play_as_recorded() {
    let played = sim::scenario::play_named("all", false).expect("scenarios can be read");
    let names: Vec<&str> = played.iter().map(|played| played.name.as_str()).collect();
    for name in ["normal_case", "primary_crash", "new_view_with_a_gap", "state_transfer"] {
        assert!(names.contains(&name), "{name} is missing");
    }
    for played in played {
        assert!(played.good, "{}: {}", played.name, played.verdict);
    }
}

#[test]
fn a_core_without_deduplication_is_caught_as_not_exactly_once() {
    let catch =
        pursue(&hunt_of(Mutant::NoDeduplication), Search { seeds_max: 10, known_first: false }, || {});
    assert_eq!(catch.control_failures, Vec::<String>::new());
    let (_, judge, text) = catch.caught.expect("ten seeds are enough");
    assert!(matches!(judge, Judge::ExactlyOnce | Judge::ReadBack), "{judge}: {text}");
}

#[test]
fn every_mutant_has_a_place_to_be_looked_for() {
    // The harmless one is part of every hunt.
    let all = [Mutant::ALL, Mutant::RAFT, Mutant::SEGMENT, Mutant::TIME, Mutant::ROOM].concat().len();
    let hunted: BTreeSet<Mutant> = hunts().iter().map(|hunt| hunt.mutant).collect();
    assert_eq!(hunted.len() + sim::mutants::unhunted().len() + 1, all);
    let page = include_str!("../../../../docs/testing.md");
    for mutant in sim::mutants::unhunted() {
        assert!(
            page.contains(&format!("`{mutant:?}`")),
            "docs/testing.md does not say why {mutant:?} is not hunted"
        );
    }
    // Two rules looked for in the same worlds would be told apart by nothing.
    for (place, one) in hunts().iter().enumerate() {
        for other in &hunts()[place + 1..] {
            let same = (one.profile, one.seconds, &one.overrides)
                == (other.profile, other.seconds, &other.overrides);
            assert!(
                !same || one.mutant == other.mutant,
                "{:?} and {:?} are looked for in the same worlds",
                one.mutant,
                other.mutant
            );
        }
    }
    for hunt in hunts() {
        let recipe = hunt.recipe(Mutants::default());
        let dials = recipe.dials(0);
        for (name, value) in &hunt.overrides {
            assert!(dials.get(name).is_some(), "{name} is no dial");
            // Within the fault budget a dial may be lowered, never raised.
            assert!(dials.get(name).is_some_and(|kept| kept <= *value), "{:?}: {name}", hunt.mutant);
        }
    }
}

#[test]
fn a_failing_history_shrinks_to_one_that_still_fails() {
    quiet_panics();
    let mutants = Mutants::default().with(Mutant::NoDeduplication);
    let hunt = hunt_of(Mutant::NoDeduplication);
    let mut dials = hunt.recipe(mutants).dials(0);
    dials.safety_ms = 3_000;
    let fails = |report: &Report| report.found.first().map(|found| found.by);
    let before = fails(&run(0, &dials, mutants)).expect("seed 0 fails without the rule");
    let (small, report, runs) =
        sim::shrink::shrink(0, &dials, mutants, |_| {}).expect("what failed once is not called sound");
    assert_eq!(fails(&report), Some(before), "the small history fails in another judge's eyes");
    assert_eq!(fails(&run(0, &small, mutants)), Some(before), "the small dials do not show it again");
    assert!(runs > 1 && small != dials, "nothing was taken away");
    assert!(small.safety_ms <= dials.safety_ms && small.clients <= dials.clients);
    // A history without a fault does not shrink.
    assert!(sim::shrink::shrink(0, &dials, Mutants::default(), |_| {}).is_none());
}
