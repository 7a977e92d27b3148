//! `decoders`: writes the corpus, runs long campaigns, replays and shortens one input.

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use decoders::campaign::{self, Failure};
use decoders::{Hearer, Target, corpus, targets};
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Parser, Debug)]
#[command(about = "Damaged bytes for every decoder that reads what strangers or disks wrote")]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// List the targets.
    List,
    /// Write the seeds of every target as its corpus.
    Bless {
        #[arg(long, default_value = "all")]
        target: String,
    },
    /// Run the corpus and this many damaged inputs a decoder; `list` says which targets are live and get fewer, and why.
    Run {
        #[arg(long, default_value = "all")]
        target: String,
        #[arg(long, default_value_t = 100_000)]
        count: u64,
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Where inputs that broke something are written.
        #[arg(long, default_value = "target/decoders")]
        out: PathBuf,
    },
    /// Run one saved input and, if it breaks something, shorten it.
    Replay {
        #[arg(long)]
        target: String,
        file: PathBuf,
    },
}

fn chosen(name: &str) -> Result<Vec<&'static Target>> {
    let chosen: Vec<_> =
        targets::ALL.iter().copied().filter(|target| name == "all" || target.name == name).collect();
    if chosen.is_empty() {
        bail!("there is no target {name}: `decoders list` names them");
    }
    Ok(chosen)
}

fn main() -> Result<ExitCode> {
    match Arguments::parse().verb {
        Verb::List => targets::ALL.iter().for_each(|target| match target.hearer {
            Hearer::Decoder => println!("{}", target.name),
            Hearer::Live { one_in, why_fewer, read_by } => println!(
                "{}: live, one in {one_in}, for {why_fewer}; all are read by {}",
                target.name,
                read_by.join(", ")
            ),
        }),
        Verb::Bless { target } => {
            for target in chosen(&target)? {
                println!("{}: {} inputs", target.name, corpus::bless(target)?);
            }
        }
        Verb::Run { target, count, seed, out } => {
            println!("seed {seed}, {count} damaged inputs a decoder");
            let tallies = campaign::run(&chosen(&target)?, count, seed)?;
            println!("{}", campaign::table(&tallies));
            let failures: Vec<&Failure> = tallies.values().flat_map(|tally| &tally.failures).collect();
            std::fs::create_dir_all(&out).with_context(|| format!("creating {}", out.display()))?;
            for failure in &failures {
                let target = chosen(failure.target)?[0];
                let short = campaign::shrink(target, failure, 2_000);
                let path = out.join(format!("{}-{}.bin", failure.target, corpus::name_of(&short)));
                std::fs::write(&path, &short).with_context(|| format!("writing {}", path.display()))?;
                println!(
                    "{}: {}\n  {} bytes, {}",
                    failure.target,
                    failure.message,
                    short.len(),
                    path.display()
                );
            }
            if !failures.is_empty() {
                return Ok(ExitCode::FAILURE);
            }
        }
        Verb::Replay { target, file } => {
            let target = chosen(&target)?[0];
            let input = std::fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
            let message = match campaign::try_run(target, &input) {
                Ok(verdict) => {
                    println!("{}: nothing broke; {verdict:?}", target.name);
                    return Ok(ExitCode::SUCCESS);
                }
                Err(message) => message,
            };
            let failure = Failure { target: target.name, input, message };
            let short = campaign::shrink(target, &failure, 20_000);
            println!("{}\n{}", failure.message, hex::encode(short));
            return Ok(ExitCode::FAILURE);
        }
    }
    Ok(ExitCode::SUCCESS)
}
