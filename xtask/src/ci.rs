//! `cargo xtask ci`: the steps a change must pass, the same here and on the build machine.
//!
//! Steps run in the order that fails soonest. Each is one command (or one function of this program), printed so that it can
//! be repeated alone. Stops at the first failure unless told to go on; always ends with a table. Knows nothing of what the
//! commands do; which reasons a test may have to skip itself is `audit.rs`.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, IsTerminal, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::cargo::{cargo, shown};
use crate::{audit, layers, tidy};

/// One minute of simulation on two cores, after the release build.
const SIMULATION: &[&str] = &["run", "--release", "--package", "sim", "--", "run", "--seeds", "1000..1150"];

/// Nobody fails and there is too much to do: a segment that is stopped there is a finding.
const OVERLOAD: &[&str] = &[
    "run",
    "--release",
    "--package",
    "sim",
    "--",
    "run",
    "--profile",
    "overload",
    "--seeds",
    "0..20",
    "--seconds",
    "30",
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Passed,
    Failed,
    /// Cannot run here; the reason says what to install.
    Skipped(&'static str),
    NotReached,
}

#[derive(Debug)]
struct Row {
    name: &'static str,
    outcome: Outcome,
    took: Duration,
}

type Step = (&'static str, fn(&Path) -> anyhow::Result<Outcome>);

const STEPS: &[Step] = &[
    ("format", format),
    ("layers", |root| layers::run(root).map(passed)),
    ("tidy", |root| tidy::run(root).map(passed)),
    ("clippy", |root| {
        execute(root, &["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"], &[])
    }),
    // Built with others it has their features, and what it lacks by itself would be found by whoever installs it.
    ("alone", |root| execute(root, &["clippy", "--package", "dwcp", "--", "--deny", "warnings"], &[])),
    ("fuzzers", fuzzers),
    ("tests", tests),
    ("docs", |root| {
        execute(root, &["doc", "--workspace", "--no-deps"], &[("RUSTDOCFLAGS", "--deny warnings")])
    }),
    ("simulation", |root| execute(root, SIMULATION, &[])),
    ("overload", |root| execute(root, OVERLOAD, &[])),
    ("dependencies", dependencies),
];

/// `left_out`: names of steps.
pub(crate) fn run(root: &Path, left_out: &[&str], keep_going: bool) -> anyhow::Result<bool> {
    let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let steps: Vec<Step> = STEPS.iter().copied().filter(|(name, _)| !left_out.contains(name)).collect();
    let rows = run_steps(root, &steps, keep_going, colour);
    print!("{}", table(&rows, colour));
    Ok(rows.iter().all(|row| matches!(row.outcome, Outcome::Passed | Outcome::Skipped(_))))
}

fn run_steps(root: &Path, steps: &[Step], keep_going: bool, colour: bool) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    let mut stopped = false;
    for (at, (name, step)) in steps.iter().enumerate() {
        if stopped {
            rows.push(Row { name, outcome: Outcome::NotReached, took: Duration::ZERO });
            continue;
        }
        println!("{}", painted(colour, "1;36", &format!("==> {name} ({}/{})", at + 1, steps.len())));
        let began = Instant::now();
        let outcome = step(root).unwrap_or_else(|error| {
            eprintln!("{name}: {error:#}");
            Outcome::Failed
        });
        let took = began.elapsed();
        println!(
            "{}\n",
            painted(colour, code_of(outcome), &format!("<== {name}: {}, {}", word(outcome), seconds(took)))
        );
        stopped = outcome == Outcome::Failed && !keep_going;
        rows.push(Row { name, outcome, took });
    }
    rows
}

fn passed(held: bool) -> Outcome {
    if held { Outcome::Passed } else { Outcome::Failed }
}

/// One cargo command; what it prints goes straight through.
fn execute(root: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> anyhow::Result<Outcome> {
    let mut command = cargo(root);
    command.args(arguments).envs(environment.iter().copied());
    println!("$ {}", shown(&command));
    let status = command.status().with_context(|| format!("cannot start `{}`", shown(&command)))?;
    Ok(passed(status.success()))
}

/// rustfmt colours its differences into a pipe too, unless told not to.
fn format(root: &Path) -> anyhow::Result<Outcome> {
    let colour = if std::io::stdout().is_terminal() { "auto" } else { "never" };
    execute(root, &["fmt", "--all", "--check", "--", "--color", colour], &[])
}

/// The fuzzers' folder lies outside the workspace, so nothing else would notice that it no longer compiles. Checked only: to
/// link one needs a nightly compiler and a C++ one.
fn fuzzers(root: &Path) -> anyhow::Result<Outcome> {
    let lock = root.join("proof/fuzz/Cargo.lock");
    // The workspace's own versions and folder, so that most of what was compiled for it serves again.
    std::fs::copy(root.join("Cargo.lock"), &lock).with_context(|| lock.display().to_string())?;
    let folder = std::env::var("CARGO_TARGET_DIR").unwrap_or_else(|_| "target".into());
    let arguments =
        ["check", "--manifest-path", "proof/fuzz/Cargo.toml", "--bins", "--target-dir", folder.as_str()];
    // With a library named, which a check does not look for, its build compiles no C++.
    execute(root, &arguments, &[("CUSTOM_LIBFUZZER_PATH", "none/libfuzzer.a")])
}

/// The tests, then the question whether all of them ran. One way of running them, nextest or not: a suite that is judged
/// by its printed counts must print them the same way everywhere.
fn tests(root: &Path) -> anyhow::Result<Outcome> {
    let folder = std::env::temp_dir().join(format!("xtask-ci-{}", std::process::id()));
    std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let (output, skips) = (folder.join("tests.txt"), folder.join("skipped.txt"));
    let mut command = cargo(root);
    command.args(["test", "--workspace"]).env("DWCP_SKIP_LOG", &skips);
    println!("$ {}", shown(&command));
    let green = tee(command, &output)?;
    let whole = audit::run(&output, Some(&skips), audit::strict_by_environment())?;
    std::fs::remove_dir_all(&folder).with_context(|| folder.display().to_string())?;
    Ok(passed(green && whole))
}

/// Runs a command, printing its standard output and keeping it in a file.
fn tee(mut command: Command, file: &Path) -> anyhow::Result<bool> {
    let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| shown(&command))?;
    let mut kept = std::fs::File::create(file).with_context(|| file.display().to_string())?;
    let mut lines = BufReader::new(child.stdout.take().expect("standard output was asked for as a pipe"));
    let mut line = Vec::new();
    // Bytes, not text: a test may print anything.
    while lines.read_until(b'\n', &mut line)? > 0 {
        kept.write_all(&line)?;
        std::io::stdout().write_all(&line)?;
        line.clear();
    }
    Ok(child.wait()?.success())
}

fn dependencies(root: &Path) -> anyhow::Result<Outcome> {
    let mut probe = cargo(root);
    probe.args(["deny", "--version"]).stdout(Stdio::null()).stderr(Stdio::null());
    if !probe.status().is_ok_and(|status| status.success()) {
        println!("cargo-deny is not installed: licences, advisories and sources were not looked at");
        return Ok(Outcome::Skipped("cargo install cargo-deny"));
    }
    execute(root, &["deny", "check"], &[])
}

fn table(rows: &[Row], colour: bool) -> String {
    let mut out = String::new();
    for row in rows {
        let line = format!("{:<14} {:<12} {:>9}", row.name, word(row.outcome), seconds(row.took));
        let remedy =
            if let Outcome::Skipped(remedy) = row.outcome { format!("  {remedy}") } else { String::new() };
        writeln!(out, "{}{remedy}", painted(colour, code_of(row.outcome), &line))
            .expect("a String takes all");
    }
    let total = rows.iter().map(|row| row.took).sum();
    let failed: Vec<&str> = rows.iter().filter(|r| r.outcome == Outcome::Failed).map(|r| r.name).collect();
    let verdict =
        if failed.is_empty() { String::from("all held") } else { format!("failed: {}", failed.join(", ")) };
    writeln!(out, "{:<14} {verdict}, {}", "ci", seconds(total)).expect("a String takes all");
    out
}

fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Passed => "passed",
        Outcome::Failed => "FAILED",
        Outcome::Skipped(_) => "skipped",
        Outcome::NotReached => "not reached",
    }
}

fn code_of(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Passed => "32",
        Outcome::Failed => "1;31",
        Outcome::Skipped(_) | Outcome::NotReached => "33",
    }
}

fn painted(colour: bool, code: &str, text: &str) -> String {
    if colour { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_string() }
}

fn seconds(took: Duration) -> String {
    format!("{:.1} s", took.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GREEN: Step = ("green", |_| Ok(Outcome::Passed));
    const RED: Step = ("red", |_| Ok(Outcome::Failed));
    const BROKEN: Step = ("broken", |_| anyhow::bail!("no such tool"));
    const ABSENT: Step = ("absent", |_| Ok(Outcome::Skipped("install it")));

    fn outcomes(steps: &[Step], keep_going: bool) -> Vec<Outcome> {
        run_steps(Path::new("."), steps, keep_going, false).iter().map(|row| row.outcome).collect()
    }

    #[test]
    fn the_first_failure_stops_the_rest() {
        use Outcome::*;
        assert_eq!(outcomes(&[GREEN, RED, GREEN], false), [Passed, Failed, NotReached]);
        assert_eq!(outcomes(&[BROKEN, GREEN], false), [Failed, NotReached]);
    }

    #[test]
    fn keep_going_runs_the_rest_and_still_tells_of_the_failure() {
        use Outcome::*;
        assert_eq!(outcomes(&[BROKEN, GREEN, ABSENT], true), [Failed, Passed, Skipped("install it")]);
        let rows = run_steps(Path::new("."), &[RED, GREEN, BROKEN], true, false);
        assert!(table(&rows, false).ends_with("failed: red, broken, 0.0 s\n"), "{}", table(&rows, false));
    }

    #[test]
    fn a_plain_table_has_no_colour_and_says_what_to_install() {
        let rows = run_steps(Path::new("."), &[GREEN, ABSENT], false, false);
        let plain = table(&rows, false);
        assert!(
            !plain.contains('\u{1b}') && plain.contains("install it") && plain.contains("all held"),
            "{plain}"
        );
        assert!(table(&rows, true).contains('\u{1b}'));
    }

    #[test]
    fn leaving_the_tests_out_leaves_out_nothing_else() {
        assert_eq!(STEPS.iter().filter(|(name, _)| *name == "tests").count(), 1);
        let names: Vec<&str> = STEPS.iter().map(|(name, _)| *name).collect();
        assert_eq!(
            names,
            [
                "format",
                "layers",
                "tidy",
                "clippy",
                "alone",
                "fuzzers",
                "tests",
                "docs",
                "simulation",
                "overload",
                "dependencies"
            ]
        );
    }
}
