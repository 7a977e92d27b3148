//! Every target over its saved corpus, its bombs and its part of 100,000 damaged inputs. Longer:
//! `cargo run --release -p decoders -- run --target all --count 10000000 --seed 7`.

mod durable;

use decoders::{campaign, corpus, targets};

const DAMAGED: u64 = 100_000;
const SEED: u64 = 20_261_122;

#[test]
fn no_decoder_breaks_a_promise_over_the_corpus_and_a_hundred_thousand_damaged_inputs() {
    let tallies = campaign::run(targets::ALL, DAMAGED, SEED).expect("the corpus can be read");
    println!("seed {SEED}\n{}", campaign::table(&tallies));
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
    let (mut damaged, mut sealed) = (0, 0);
    for target in targets::ALL {
        let tally = &tallies[target.name];
        (damaged, sealed) = (damaged + tally.damaged, sealed + tally.sealed);
        assert!(tally.damaged > 0, "{} was not run", target.name);
        if target.reseal.is_some() {
            let share = tally.sealed_per_mille();
            assert!(
                share >= campaign::SEALED_PER_MILLE_MIN,
                "{}: only {share} in 1000 are sealed",
                target.name
            );
        }
    }
    assert!(damaged >= DAMAGED, "{damaged} damaged inputs are fewer than promised");
    let share = sealed * 1_000 / damaged;
    assert!(share >= campaign::SEALED_PER_MILLE_MIN, "of all only {share} in 1000 are sealed");
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

/// Sealing must lead inside: a good message with one damaged field is refused for what it says, not for its seal.
#[test]
fn what_is_sealed_again_is_good_when_nothing_was_damaged() {
    for target in targets::ALL {
        let Some(reseal) = target.reseal else { continue };
        for seed in (target.seeds)() {
            let mut sealed = seed.clone();
            assert!(reseal(&mut sealed), "a seed of {} cannot be sealed", target.name);
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
