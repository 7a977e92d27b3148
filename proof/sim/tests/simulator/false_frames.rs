//! What liars say in state sync is heard, refused and judged.

use sim::coverage::Coverage;
use sim::dials::Profile;
use sim::runner::{Recipe, run_seeds};
use sim::trick::Trick;
use std::collections::BTreeMap;

/// Three histories of four replicas of which one lies in this way, all of them clean.
fn histories_with(trick: Trick) -> (Coverage, BTreeMap<&'static str, u64>) {
    let dials = [
        ("n", 4),
        ("liars", 1),
        ("fsync_liars", 0),
        ("wipe_ms", 0),
        ("convergent_ms", 100),
        ("ack_patience_ms", 2_000),
        ("tricks", trick.bit()),
    ];
    let recipe = Recipe {
        profile: Profile::named("convergent").expect("a profile"),
        seconds: 25,
        overrides: dials.map(|(name, value)| (name.to_string(), value)).to_vec(),
        mutants: dwcp_base::Mutants::default(),
    };
    let (mut coverage, mut refusals) = (Coverage::default(), BTreeMap::new());
    run_seeds(0..3, 2, &recipe, |report| {
        let found: Vec<_> = report.found.iter().map(|found| found.text.clone()).collect();
        assert!(report.is_clean(), "{trick:?}, seed {}: {found:?}", report.seed);
        coverage += &report.coverage;
        report.refusals.iter().for_each(|(reason, count)| *refusals.entry(*reason).or_default() += count);
        true
    });
    (coverage, refusals)
}

#[test]
fn who_signs_two_histories_is_convicted_by_all_and_ends() {
    let (coverage, refusals) = histories_with(Trick::Fork);
    assert_eq!(coverage.forks, 3);
    assert!(coverage.convictions >= 9, "three honest replicas in each history: {}", coverage.convictions);
    assert_eq!(coverage.forks_ended, 3);
    assert!(refusals.contains_key("frozen"), "what came after the proof was taken");
}

#[test]
fn who_does_not_acknowledge_is_named_and_state_sync_goes_on_without_it() {
    let (coverage, _) = histories_with(Trick::WithholdAcks);
    assert!(coverage.acks_withheld > 0 && coverage.withholders_named > 0);
    assert_eq!((coverage.withholders_excluded, coverage.ends_decided), (3, 3));
    assert!(coverage.floors_committed > 0, "nothing was collected after that");
}

#[test]
fn false_heads_and_forged_frames_are_counted_and_change_nothing() {
    let (coverage, refusals) = histories_with(Trick::FalseHeads);
    assert!(coverage.heads_falsified > 0 && refusals.contains_key("false head"), "{refusals:?}");
    let (coverage, refusals) = histories_with(Trick::ForgeOrigins);
    assert!(coverage.origins_forged > 0 && refusals.contains_key("forged"), "{refusals:?}");
    assert_eq!((coverage.convictions, coverage.ends_decided), (0, 0), "somebody honest was convicted");
}
