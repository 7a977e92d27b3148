//! Every decoder over its saved corpus, its bombs and 100,000 damaged inputs. Live targets, which act on what was read,
//! hear fewer (`decoders list` says how many, why, and which decoders read the rest). Longer:
//! `cargo run --release -p decoders -- run --target all --count 10000000 --seed 7`.

mod durable;
mod harness;

use decoders::{Hearer, Verdict, campaign, corpus, targets};

/// Of each decoder.
const DAMAGED: u64 = 100_000;
/// Of each live target at least: below this a share says little.
const DAMAGED_LIVE_MIN: u64 = 1_000;
const SEED: u64 = 20_261_122;

/// Past the harness, which swallows what a passing test prints: the shares are to be seen in every run.
fn say(what: &str) {
    use std::io::Write;
    writeln!(std::io::stderr().lock(), "{what}").expect("somebody listens");
}

#[test]
fn no_decoder_breaks_a_promise_over_its_corpus_and_a_hundred_thousand_damaged_inputs() {
    let tallies = campaign::run(targets::ALL, DAMAGED, SEED).expect("the corpus can be read");
    say(&format!("seed {SEED}\n{}", campaign::table(&tallies)));
    let failures: Vec<String> = tallies
        .values()
        .flat_map(|tally| &tally.failures)
        .map(|failure| {
            let input = &failure.input[..failure.input.len().min(200)];
            format!(
                "{}: {}\n  {} bytes, {}",
                failure.target,
                failure.message,
                failure.input.len(),
                hex::encode(input)
            )
        })
        .collect();
    assert!(failures.is_empty(), "{} broken promises\n{}", failures.len(), failures.join("\n"));
    for target in targets::ALL {
        let (name, tally) = (target.name, &tallies[target.name]);
        let asked = target.share_of(DAMAGED);
        let least = if target.is_live() { DAMAGED_LIVE_MIN } else { DAMAGED };
        assert!(asked >= least, "{name}: {asked} damaged inputs are too few");
        assert!(tally.damaged == asked, "{name}: {} of {asked} damaged inputs were run", tally.damaged);
        let share = tally.sealed_per_mille();
        assert!(share >= campaign::SEALED_PER_MILLE_MIN, "{name}: only {share} in 1000 are sealed");
        // A target that says the same of everything has lost its decoder.
        assert!((1..tally.damaged).contains(&tally.accepted), "{name}: {} were accepted", tally.accepted);
    }
}

/// Whoever lives gets fewer inputs for a reason, and others read as many as every decoder.
#[test]
fn what_a_live_target_hears_is_read_by_decoders_that_get_all() {
    let decoder = |name: &&str| targets::ALL.iter().any(|target| target.name == *name && !target.is_live());
    for target in targets::ALL {
        if let Hearer::Live { one_in, why_fewer, read_by } = target.hearer {
            assert!(one_in > 1 && !why_fewer.is_empty(), "{} gets fewer for no reason", target.name);
            assert!(!read_by.is_empty() && read_by.iter().all(decoder), "{}: {read_by:?}", target.name);
        }
    }
}

#[test]
fn every_target_has_seeds_a_corpus_and_a_name_of_its_own() {
    for (at, target) in targets::ALL.iter().enumerate() {
        assert!(targets::ALL[..at].iter().all(|other| other.name != target.name), "{} twice", target.name);
        assert!(!(target.seeds)().is_empty(), "{} has no seeds", target.name);
        let saved = corpus::load(target).expect("the corpus can be read");
        assert!(!saved.is_empty(), "{} has no corpus: run `cargo run -p decoders -- bless`", target.name);
    }
    let folders = std::fs::read_dir(corpus::folder()).expect("the corpus is there");
    for folder in folders {
        let name = folder.expect("a folder").file_name().to_string_lossy().into_owned();
        assert!(targets::ALL.iter().any(|target| target.name == name), "corpus/{name} belongs to no target");
    }
}

/// Seeds that are refused lead nowhere, and damaged ones less: a target of such seeds would try nothing.
#[test]
fn every_target_accepts_some_of_its_seeds_and_refuses_rubbish() {
    for target in targets::ALL {
        let verdict = |bytes: &[u8]| campaign::try_run(target, bytes);
        let accepted = (target.seeds)().iter().any(|seed| verdict(seed) == Ok(Verdict::Accepted));
        assert!(accepted, "{} refuses every one of its seeds", target.name);
        assert_eq!(verdict(&[0xfe; 40]), Ok(Verdict::Refused), "{}", target.name);
    }
}

/// Sealing must lead inside: a good message with one damaged field is refused for what it says, not for its seal.
#[test]
fn what_is_sealed_again_is_good_when_nothing_was_damaged() {
    for target in targets::ALL {
        for seed in (target.seeds)() {
            let mut sealed = seed.clone();
            assert!(target.seal.make_good(&mut sealed), "a seed of {} cannot be sealed", target.name);
        }
    }
}

/// The fuzzer's folder lies outside the workspace, so nothing else would notice a target that it lacks.
#[test]
fn every_target_has_its_fuzz_target() {
    let fuzz = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz");
    let manifest = std::fs::read_to_string(fuzz.join("Cargo.toml")).expect("the fuzzer's manifest");
    for target in targets::ALL {
        let name = target.name;
        let source =
            std::fs::read_to_string(fuzz.join(format!("fuzz_targets/{name}.rs"))).unwrap_or_default();
        assert!(
            source.contains(&format!("target!(\"{name}\")")),
            "proof/fuzz/fuzz_targets/{name}.rs is missing"
        );
        assert!(
            manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")),
            "{name} is not in its manifest"
        );
    }
    let files = std::fs::read_dir(fuzz.join("fuzz_targets")).expect("the fuzz targets");
    assert_eq!(files.count(), targets::ALL.len(), "a fuzz target without a target in decoders");
}
