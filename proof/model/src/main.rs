//! Runs every model and prints a table; ends with an error when an intact core breaks a claim or a mutated one breaks none.
//! Of segments the claims that break without a rule must be the very ones that are expected.

use clap::Parser;
use dwcp_base::{Mutant, Mutants};
use model::run::{Outcome, SEGMENT_ENDS, SLIPS, Search, normal_case, search, segment_ends, view_changes};
use std::process::ExitCode;

/// Checks the real protocol core: the normal case and the ends of segments exhaustively, view changes by random walk.
#[derive(Debug, Parser)]
struct Arguments {
    /// States of each random walk over the intact core.
    #[arg(long, default_value_t = 200_000)]
    states: usize,
    /// States after which a walk over a mutated core gives up.
    #[arg(long, default_value_t = 3_000_000)]
    mutant_states: usize,
    /// Actions in one history of a walk.
    #[arg(long, default_value_t = 250)]
    steps: usize,
    /// Where the walks begin; the same seed walks the same histories.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print only the table, no counterexamples.
    #[arg(long)]
    brief: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let walk = |states| Search::Walk { seed: arguments.seed, steps: arguments.steps, states };
    let off = |mutant: Mutant| Mutants::default().with(mutant);
    println!(
        "{:<36} {:<26} {:>10} {:>6} {:>8}  verdict",
        "model", "rule switched off", "states", "depth", "seconds"
    );
    let mut as_expected = true;
    let mut report = |outcome: Outcome| {
        let mutant = outcome.mutant.as_deref().unwrap_or("-");
        println!(
            "{:<36} {mutant:<26} {:>10} {:>6} {:>8.1}  {}",
            outcome.model,
            outcome.states,
            outcome.depth,
            outcome.seconds,
            outcome.verdict()
        );
        for (claim, history) in outcome.broken.iter().filter(|_| !arguments.brief || outcome.mutant.is_none())
        {
            println!("    counterexample to `{claim}`:");
            history.iter().for_each(|step| println!("      {step}"));
        }
        as_expected &= outcome.as_expected();
    };
    report(search(normal_case(4, Mutants::default()), None, Search::Exhaustive));
    for mutant in [Mutant::PrepareTwice, Mutant::DuplicateVotesCounted, Mutant::SignatureUnchecked] {
        report(search(normal_case(4, off(mutant)), Some(mutant), Search::Exhaustive));
    }
    let mutant = Mutant::QuorumTwoFPlusOne;
    report(search(normal_case(5, off(mutant)), Some(mutant), Search::Exhaustive));
    for (name, liar) in LIARS {
        report(search(view_changes(name, liar, Mutants::default()), None, walk(arguments.states)));
    }
    for mutant in [Mutant::ViewChangeForgetsPrepared, Mutant::ForgetVotesOnRestart, Mutant::ExecutePrepared] {
        let (name, liar) = LIARS[1];
        report(search(view_changes(name, liar, off(mutant)), Some(mutant), walk(arguments.mutant_states)));
    }
    for model in SEGMENT_ENDS {
        report(segment_ends(model, None));
    }
    let mut others = Vec::new();
    for (slip, model, claims) in SLIPS {
        let outcome = segment_ends(model, Some(slip));
        if outcome.broken_claims() != claims {
            others.push(format!(
                "{}, {slip:?}: {:?} broke, not {claims:?}",
                model.0,
                outcome.broken_claims()
            ));
        }
        report(outcome);
    }
    others.iter().for_each(|other| println!("UNEXPECTED: {other}"));
    as_expected &= others.is_empty();
    if as_expected { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

const LIARS: [(&str, u8); 3] =
    [("view changes, r0 lies", 0), ("view changes, r1 lies", 1), ("view changes, r3 lies", 3)];
