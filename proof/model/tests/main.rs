//! The small end of the models, in every test run: the whole normal case, and short walks through view changes.
//! `cargo run --release -p model` walks further.

use dwcp_base::{Mutant, Mutants};
use model::claims::{AGREEMENT, ONE_PREPARED};
use model::run::{SLIPS, Search, normal_case, search, segment_ends, view_changes};
use model::sealing::Size;

/// Past the harness, which swallows what a passing test prints: the counts are to be seen in every run.
fn say(what: &str) {
    use std::io::Write;
    writeln!(std::io::stderr().lock(), "{what}").expect("somebody listens");
}

#[test]
fn no_order_of_letters_lets_a_lying_primary_break_the_normal_case() {
    let outcome = search(normal_case(4, Mutants::default()), None, Search::Exhaustive);
    say(&format!("normal case, n = 4: {} states, depth {}", outcome.states, outcome.depth));
    assert!(outcome.as_expected(), "{}: {:?}", outcome.verdict(), outcome.broken);
    assert!(outcome.states > 50_000, "the model shrank to {} states", outcome.states);
}

#[test]
fn a_backup_that_prepares_twice_is_found_out() {
    let mutant = Mutant::PrepareTwice;
    let outcome = search(normal_case(4, Mutants::default().with(mutant)), Some(mutant), Search::Exhaustive);
    let (claim, history) = outcome.broken.first().expect("a counterexample");
    assert_eq!(*claim, ONE_PREPARED);
    assert!(history.len() <= 8 && history.iter().all(|step| step.starts_with("Deliver")), "{history:?}");
}

#[test]
fn random_view_changes_keep_every_claim() {
    let walk = Search::Walk { seed: 1, steps: 250, states: 4_000 };
    let outcome = search(view_changes("view changes, r1 lies", 1, Mutants::default()), None, walk);
    assert!(outcome.broken.is_empty(), "{}: {:?}", outcome.verdict(), outcome.broken);
    assert!(!outcome.unreached.contains(&"every honest replica delivers"), "{:?}", outcome.unreached);
}

#[test]
fn view_changes_that_forget_what_was_prepared_are_found_out() {
    let mutant = Mutant::ViewChangeForgetsPrepared;
    let walk = Search::Walk { seed: 1, steps: 250, states: 200_000 };
    let cluster = view_changes("view changes, r1 lies", 1, Mutants::default().with(mutant));
    let outcome = search(cluster, Some(mutant), walk);
    assert!(outcome.broken.iter().any(|(claim, _)| *claim == AGREEMENT), "{}", outcome.verdict());
}

/// Holds, reaches all it should, and is as large as it was: a model that shrinks proves less and says nothing.
fn segment_ends_well([replicas, liars, terms, entries]: [u8; 4], markers: bool, states_min: usize) {
    let size = Size { replicas, liars, terms, entries, markers };
    let outcome = segment_ends(("sealing", size), None);
    say(&format!("{size:?}: {} states, depth {}", outcome.states, outcome.depth));
    assert!(outcome.as_expected(), "{size:?}: {}: {:?}", outcome.verdict(), outcome.broken);
    assert!(outcome.states >= states_min, "{size:?}: the model shrank to {} states", outcome.states);
}

#[test]
fn no_close_of_three_or_four_honest_replicas_drops_what_was_acknowledged() {
    segment_ends_well([3, 0, 3, 2], false, 190_000);
    segment_ends_well([4, 0, 2, 2], false, 36_000);
}

#[test]
fn a_marker_and_the_reports_keep_the_same_acknowledgements() {
    segment_ends_well([3, 0, 2, 3], true, 97_000);
    segment_ends_well([4, 0, 2, 2], true, 85_000);
    segment_ends_well([4, 1, 2, 2], true, 15_000);
}

#[test]
fn a_lying_sealer_costs_only_what_no_anchor_covers() {
    segment_ends_well([4, 1, 3, 2], false, 190_000);
}

#[test]
fn every_rule_of_closing_is_missed_by_the_claims_that_rest_on_it() {
    for (slip, model, claims) in SLIPS {
        let outcome = segment_ends(model, Some(slip));
        assert_eq!(outcome.broken_claims(), claims, "{slip:?} in {}", model.0);
    }
}
