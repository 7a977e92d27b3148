//! `cargo xtask`: the repository's own checks, in Rust so that they run wherever the project builds.
//!
//! Lives here: the command line. Each subcommand is one file beside this one; the table of who may import whom is
//! `rules.rs` and nothing else. Knows nothing of what the crates do: it reads manifests, paths, lines and the output of
//! cargo. Exit code 0 means every rule held, 1 that one was broken (one line each on standard error), 2 a wrong call.

mod audit;
mod cargo;
mod ci;
mod layers;
mod rules;
mod tidy;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about = "Checks of this repository", version)]
struct Cli {
    /// Repository to look at (default: the one this program was built from)
    #[arg(long, global = true, value_name = "DIR")]
    root: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Who imports whom: fails on any edge between our crates that the table does not list
    ///
    /// Reads the manifests of every member and compares each dependency on one of our own crates (normal, build and dev,
    /// optional and platform-specific ones too) with the table in xtask/src/rules.rs. Then holds the core to its rules:
    /// `#![no_std]`, no dependency that enables `std` or operating-system randomness when a core crate is resolved alone,
    /// and the `mutants` feature in sight of nobody but `sim`.
    Layers,
    /// What a reviewer should not have to look for: headers, sizes, leftovers, dead links
    ///
    /// Fails on: a clippy.toml below core/ (it would silently replace core/clippy.toml); a .rs file that does not open
    /// with a comment saying what lives in it, or that is longer than 900 lines; unfinished code and switched-off tests;
    /// words that do not belong in the repository; links and paths in the documents that lead nowhere; a second test
    /// binary in one crate.
    Tidy,
    /// Everything CI runs, in the order that fails soonest; stops at the first failure
    Ci(CiArgs),
    /// Reads what `cargo test` printed and refuses ignored, filtered and wrongly skipped tests
    ///
    /// Tests that cannot run on this machine append `SKIPPED(<reason>): <test>` to the file named by DWCP_SKIP_LOG.
    /// With --strict (default when CI=true) only the reasons needs-root and needs-promtool are accepted.
    AuditTests(AuditArgs),
}

#[derive(Debug, Args)]
struct CiArgs {
    /// Leave the tests out (for a caller that ran `cargo test --workspace` itself, as .ci/run does)
    #[arg(long)]
    skip_tests: bool,
    /// Leave the minute of simulation out (for a caller that runs longer ones, as .ci/run does)
    #[arg(long)]
    skip_simulation: bool,
    /// Run the remaining steps after a failure; the exit code still tells of it
    #[arg(long)]
    keep_going: bool,
}

#[derive(Debug, Args)]
struct AuditArgs {
    /// File holding what `cargo test` printed
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// File that DWCP_SKIP_LOG named during the run
    #[arg(long, value_name = "FILE")]
    skips: Option<PathBuf>,
    /// Fail on skips outside the accepted list [default: when CI=true]
    #[arg(long)]
    strict: bool,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let root = match root_of(cli.root) {
        Ok(root) => root,
        Err(error) => return failed(&error),
    };
    let outcome = match cli.command {
        Command::Layers => layers::run(&root),
        Command::Tidy => tidy::run(&root),
        Command::Ci(args) => {
            let left_out = [("tests", args.skip_tests), ("simulation", args.skip_simulation)];
            let left_out = left_out.into_iter().filter_map(|(name, is_left_out)| is_left_out.then_some(name));
            ci::run(&root, &left_out.collect::<Vec<_>>(), args.keep_going)
        }
        Command::AuditTests(args) => {
            audit::run(&args.output, args.skips.as_deref(), args.strict || audit::strict_by_environment())
        }
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => failed(&error),
    }
}

fn failed(error: &anyhow::Error) -> ExitCode {
    eprintln!("xtask: {error:#}");
    ExitCode::FAILURE
}

fn root_of(given: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    let root = given.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join(".."));
    root.canonicalize()
        .map_err(|e| anyhow::anyhow!("{}: {e}; name an existing repository with --root", root.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
