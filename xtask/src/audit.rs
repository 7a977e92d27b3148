//! `cargo xtask audit-tests`: did the whole suite really run?
//!
//! A green run that ignored, filtered out or skipped half of its tests is not green. Reads what `cargo test` printed and
//! the file in which skipping tests report themselves; knows no test by name. The convention: a test that cannot run on
//! this machine appends the line `SKIPPED(<reason>): <test>` to the file named by `DWCP_SKIP_LOG` (and prints it),
//! then returns.

use std::path::Path;

use anyhow::Context;

/// Reasons a machine may have. Anything else is a test that should have run.
const ACCEPTED: &[&str] = &["needs-root", "needs-promtool"];

pub(crate) fn strict_by_environment() -> bool {
    std::env::var_os("CI").is_some_and(|value| value == "true")
}

pub(crate) fn run(output: &Path, skips: Option<&Path>, strict: bool) -> anyhow::Result<bool> {
    let printed = std::fs::read(output).with_context(|| format!("cannot read {}", output.display()))?;
    let printed = String::from_utf8_lossy(&printed);
    let skip_log = match skips.map(std::fs::read) {
        Some(Ok(bytes)) => String::from_utf8_lossy(&bytes).into_owned(),
        // No test skipped: nobody created the file.
        Some(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Some(Err(error)) => return Err(error).context("cannot read the file of skipped tests"),
        None => String::new(),
    };

    let report = judge(&printed, &skip_log, strict);
    for (reason, test) in &report.skipped {
        println!("audit-tests: skipped ({reason}): {test}");
    }
    for line in &report.broken {
        eprintln!("audit-tests: {line}");
    }
    println!("audit-tests: {} passed, {} skipped", report.passed, report.skipped.len());
    Ok(report.broken.is_empty())
}

#[derive(Debug, Default)]
struct Report {
    passed: u64,
    skipped: Vec<(String, String)>,
    broken: Vec<String>,
}

fn judge(printed: &str, skip_log: &str, strict: bool) -> Report {
    let mut report = Report::default();
    let mut results = 0;
    for line in printed.lines() {
        let line = without_colour(line);
        if let Some(counts) = line.trim_start().strip_prefix("test result: ") {
            results += 1;
            report.passed += count(counts, "passed");
            for (word, remedy) in [
                ("failed", "mend it"),
                ("ignored", "run it or delete it: a test that cannot run here reports SKIPPED(<reason>)"),
                ("filtered out", "run the whole suite, without a filter"),
            ] {
                let n = count(counts, word);
                if n > 0 {
                    report.broken.push(format!("{n} test(s) {word}: {remedy}"));
                }
            }
        }
        if line.starts_with("test ") && line.contains(" ... ignored") {
            report.broken.push(format!("ignored: {}", &line["test ".len()..]));
        }
    }
    if results == 0 {
        report.broken.push(String::from("no `test result:` line: this is not the output of `cargo test`"));
    } else if report.passed == 0 {
        report.broken.push(String::from("no test passed: the suite was empty"));
    }

    for line in skip_log.lines().chain(printed.lines()) {
        if let Some(skip) = skip(line)
            && !report.skipped.contains(&skip)
        {
            report.skipped.push(skip);
        }
    }
    for line in skip_log.lines().filter(|line| !line.trim().is_empty() && skip(line).is_none()) {
        report.broken.push(format!("unreadable skip `{line}`: write SKIPPED(<reason>): <test>"));
    }
    if strict {
        for (reason, test) in report.skipped.iter().filter(|(reason, _)| !ACCEPTED.contains(&reason.as_str()))
        {
            let accepted = ACCEPTED.join(", ");
            report
                .broken
                .push(format!("{test} skipped itself ({reason}): only {accepted} are accepted in CI"));
        }
    }
    report
}

/// `SKIPPED(<reason>): <test>` as (reason, test).
fn skip(line: &str) -> Option<(String, String)> {
    let (reason, test) = line.trim().strip_prefix("SKIPPED(")?.split_once("): ")?;
    (!reason.is_empty() && !test.trim().is_empty()).then(|| (reason.to_string(), test.trim().to_string()))
}

/// The number before `word` in `ok. 3 passed; 0 failed; 1 ignored; ...`.
fn count(counts: &str, word: &str) -> u64 {
    let parts = counts.split(['.', ';']).map(str::trim);
    let mut found = parts.filter_map(|part| part.strip_suffix(word)?.trim().parse().ok());
    found.next().unwrap_or(0)
}

/// Cuts terminal colour sequences (`ESC [ ... letter`) out of a line.
fn without_colour(line: &str) -> String {
    let mut plain = String::with_capacity(line.len());
    let mut characters = line.chars();
    while let Some(c) = characters.next() {
        if c == '\u{1b}' {
            characters.by_ref().find(|c| c.is_ascii_alphabetic());
        } else {
            plain.push(c);
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    const GREEN: &str = "running 2 tests\ntest a ... ok\ntest b ... ok\n\n\
        test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n";

    #[test]
    fn a_full_green_run_is_accepted_and_counted() {
        let report = judge(&format!("{GREEN}{GREEN}"), "", true);
        assert_eq!((report.passed, report.broken), (4, vec![]));
    }

    #[test]
    fn ignored_filtered_and_failed_tests_are_refused() {
        for (from, to) in [
            ("0 ignored", "1 ignored"),
            ("0 filtered", "12 filtered"),
            ("0 failed", "3 failed"),
            ("b ... ok", "b ... ignored"),
        ] {
            let report = judge(&GREEN.replace(from, to), "", false);
            assert_eq!(report.broken.len(), 1, "{from} -> {to}: {:?}", report.broken);
        }
    }

    #[test]
    fn colour_does_not_hide_an_ignored_test() {
        let coloured = "test b ... ignored\ntest result: \u{1b}[32mok\u{1b}(B\u{1b}[m. 2 passed; 0 failed; 1 ignored; 0 filtered out";
        assert_eq!(judge(coloured, "", false).broken.len(), 2);
    }

    #[test]
    fn an_empty_output_is_no_green_run() {
        assert_eq!(judge("error: could not compile", "", false).broken.len(), 1);
        assert_eq!(judge(&GREEN.replace("2 passed", "0 passed"), "", false).broken.len(), 1);
    }

    #[test]
    fn a_skip_outside_the_list_fails_only_where_skips_are_judged() {
        let log = "SKIPPED(needs-root): netns\nSKIPPED(too-slow): big\n";
        assert_eq!(judge(GREEN, log, false).broken, Vec::<String>::new());
        let strict = judge(GREEN, log, true);
        assert_eq!(strict.skipped.len(), 2);
        assert_eq!(strict.broken.len(), 1);
        assert!(strict.broken[0].starts_with("big skipped itself (too-slow)"));
    }

    #[test]
    fn a_skip_printed_and_logged_counts_once() {
        let printed = format!("SKIPPED(needs-root): netns\n{GREEN}");
        let report = judge(&printed, "SKIPPED(needs-root): netns\n", true);
        assert_eq!(report.skipped.len(), 1);
        assert!(report.broken.is_empty());
    }

    #[test]
    fn a_skip_without_a_reason_is_unreadable() {
        assert_eq!(judge(GREEN, "SKIPPED(): x\n", false).broken.len(), 1);
        assert_eq!(judge(GREEN, "skipped x\n", false).broken.len(), 1);
    }
}
