//! Our own Raft passes the suite, and the suite sees whoever is wrong.

use conformance::lies::{Liar, Lie};
use conformance::{Own, Rule, Schedule, hunt, play, run};
use dwcp_base::{Mutant, Mutants};

#[test]
fn our_raft_passes() {
    let report = run(&Own::default(), 0..150);
    assert!(report.violations.is_empty(), "{}", report.violations[0]);
    // A suite that meets nothing judges nothing.
    let least = [
        ("elections", 200),
        ("committed", 5_000),
        ("crashes that lost records", 50),
        ("logs replaced", 30),
        ("reads ready", 2_000),
        ("reads failed", 100),
        ("discards", 200),
        ("snapshots installed", 20),
        ("records trimmed", 50),
        ("transfers begun", 50),
        ("seal choices judged", 50),
        ("survivals judged", 500),
        ("messages refused", 1_000),
        ("figure 8 arranged", 1),
        ("reads beside a Marker", 1),
        ("lies", 1_000),
        ("votes before a restart", 20),
        ("bounds met", 1),
        ("progress judged", 100),
    ];
    for (what, least) in least {
        let seen = report.counts.get(what).copied().unwrap_or(0);
        assert!(seen >= least, "{what}: {seen} of at least {least}");
    }
}

#[test]
fn a_schedule_gives_the_same_history_twice() {
    for seed in [3, 17] {
        let (a, b) =
            (play(&Own::default(), &Schedule::new(seed)), play(&Own::default(), &Schedule::new(seed)));
        assert_eq!((a.committed, a.fates, a.counts), (b.committed, b.fates, b.counts), "seed {seed}");
    }
}

#[test]
fn every_lie_is_seen() {
    std::panic::set_hook(Box::new(|_| {}));
    let own = Own::default();
    let mut missed = Vec::new();
    for lie in Lie::ALL {
        let rules = if *lie == Lie::None { &[] } else { lie.caught_as() };
        let found = hunt(&Liar { inner: &own, lie: *lie }, 40, rules);
        let right = found.is_none() == (*lie == Lie::None);
        println!("{lie:?}: {}", found.as_ref().map_or("not seen".to_owned(), ToString::to_string));
        if !right {
            missed.push(*lie);
        }
    }
    let _ = std::panic::take_hook();
    assert!(missed.is_empty(), "not seen as what they are: {missed:?}");
}

#[test]
fn every_rule_of_raft_that_is_switched_off_is_seen() {
    let caught_as = |mutant: Mutant| -> &'static [Rule] {
        match mutant {
            Mutant::RaftVoteBeforeSync => {
                &[Rule::PromisesAreDurable, Rule::VotesOnce, Rule::OneLeaderPerTerm]
            }
            Mutant::RaftAckBeforeSync | Mutant::RaftLeaderCountsUnsynced => {
                &[Rule::PromisesAreDurable, Rule::CommitSurvivesCrashes]
            }
            Mutant::RaftForgetsVoteOnRestart => &[
                Rule::VotesOnce,
                Rule::OneLeaderPerTerm,
                Rule::PromisesAreDurable,
                Rule::RestartKeepsPromises,
            ],
            Mutant::RaftLongestIndexVote => {
                &[Rule::LeaderIsComplete, Rule::CommittedNeverChanges, Rule::CommitSurvivesCrashes]
            }
            Mutant::RaftCommitOldTerm => &[Rule::CommitSurvivesCrashes, Rule::LeaderIsComplete],
            Mutant::RaftLeaseReads => &[Rule::ReadsAreLinearizable, Rule::ReadsAreConfirmed],
            Mutant::RaftMarkerHolderConfirmsReads => &[Rule::ReadsAreConfirmed],
            Mutant::RaftIgnoresSeal => &[Rule::SealIsSilent, Rule::SealIsTrue],
            other => panic!("{other:?} is no rule of Raft"),
        }
    };
    let mut missed = Vec::new();
    for mutant in Mutant::RAFT {
        let own = Own { mutants: Mutants::default().with(*mutant) };
        let found = hunt(&own, 300, caught_as(*mutant));
        println!("{mutant:?}: {}", found.as_ref().map_or("not seen".to_owned(), ToString::to_string));
        if found.is_none() {
            missed.push(*mutant);
        }
    }
    assert!(missed.is_empty(), "not seen as what they are: {missed:?}");
    let own = Own { mutants: Mutants::default().with(Mutant::Harmless) };
    assert_eq!(hunt(&own, 5, &[]), None, "the harmless mutant changes nothing");
}
