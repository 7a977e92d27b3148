//! The suite as a command: `--seeds A..B`, a summary line, an exit code. Packages that bring another Raft use it too.

use crate::subject::Subject;
use crate::{Report, run};
use std::ops::Range;
use std::process::ExitCode;

/// Reads `--seeds A..B` from the arguments; `default` without.
///
/// # Errors
/// What is wrong with the arguments, and what to write instead.
pub fn seeds(arguments: impl Iterator<Item = String>, default: Range<u64>) -> Result<Range<u64>, String> {
    let usage = "usage: [--seeds A..B], for example --seeds 0..200";
    let mut arguments = arguments.skip(1);
    let mut seeds = default;
    while let Some(argument) = arguments.next() {
        let value = match argument.strip_prefix("--seeds") {
            Some("") => arguments.next().ok_or_else(|| format!("--seeds has no value; {usage}"))?,
            Some(rest) if rest.starts_with('=') => rest[1..].to_owned(),
            _ => return Err(format!("{argument:?} is not known; {usage}")),
        };
        let parsed =
            value.split_once("..").and_then(|(a, b)| Some(a.parse::<u64>().ok()?..b.parse::<u64>().ok()?));
        seeds = parsed
            .filter(|range| !range.is_empty())
            .ok_or_else(|| format!("{value:?} is not a range of seeds; {usage}"))?;
    }
    Ok(seeds)
}

/// One line for people: what was played, what it covered, what it is excused from.
pub fn print(subject: &dyn Subject, report: &Report) {
    for excuse in subject.excuses() {
        println!("{}: not held to: {}: {}", subject.name(), excuse.part, excuse.why);
    }
    for violation in &report.violations {
        println!("VIOLATION {violation}");
    }
    let counts: Vec<String> = report.counts.iter().map(|(what, count)| format!("{count} {what}")).collect();
    println!(
        "{}: {} histories, {} stories, {} violations; {}",
        subject.name(),
        report.histories,
        report.stories,
        report.violations.len(),
        counts.join(", ")
    );
}

/// Plays the suite and says with what success.
#[must_use]
pub fn main(subject: &dyn Subject, default: Range<u64>) -> ExitCode {
    match seeds(std::env::args(), default) {
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
        Ok(seeds) => {
            let report = run(subject, seeds);
            print(subject, &report);
            if report.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
    }
}
