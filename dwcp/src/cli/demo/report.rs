//! What the demo tells at its end: figures per phase, computed from the clients' journals alone, as a table for people
//! and as one JSON object for machines. It measures nothing itself.

use std::collections::BTreeSet;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::journal::Entry;
use super::parting::Parting;
use super::story::Record;
use super::verify::Verdict;
use crate::cli::output::{GREEN, RED, align_numbers, milliseconds, paint, table, thousands};

/// Longest latency told apart; longer ones count as this.
const LATENCY_US_MAX: u64 = 3_600_000_000;

/// A stretch of the story, as the story-teller noted it.
#[derive(Clone, Debug, Default)]
pub struct Phase {
    pub name: &'static str,
    pub began_us: u64,
    pub ended_us: u64,
    /// Processes that were killed in it.
    pub killed: Vec<Killed>,
    pub view_before: Option<u64>,
    pub view_after: Option<u64>,
    /// What else is worth saying.
    pub note: String,
}

#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
pub struct Killed {
    pub node: u8,
    pub pid: u32,
    pub primary: bool,
}

/// A change of what orders commands, as the story-teller saw it: from the order or the blow until commands were
/// acknowledged behind it.
#[derive(Clone, Copy, Debug)]
pub struct Switch {
    pub from: &'static str,
    pub to: &'static str,
    /// The operator ordered it.
    pub planned: bool,
    pub cause: &'static str,
    pub began_us: u64,
    pub ended_us: u64,
}

/// A switch with its gap.
#[derive(Clone, Debug, Serialize)]
pub struct SwitchReport {
    pub from: &'static str,
    pub to: &'static str,
    pub planned: bool,
    /// The longest interval between two acknowledgements, one after the other, that touches the switch.
    pub gap_ms: f64,
    pub cause: &'static str,
}

/// A phase with its figures.
#[derive(Clone, Debug, Serialize)]
pub struct PhaseReport {
    pub name: &'static str,
    pub seconds: f64,
    pub acknowledged: u64,
    /// Of what was answered in it.
    pub lost: u64,
    pub doubled: u64,
    pub ops_per_s: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    /// The longest time within the phase in which no client was told anything good.
    pub longest_gap_ms: f64,
    pub killed: Vec<Killed>,
    pub view_before: Option<u64>,
    pub view_after: Option<u64>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub note: String,
}

/// The last line of `dwcp demo --json`.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub nodes: usize,
    pub mode: &'static str,
    pub clients: u32,
    pub acknowledged: u64,
    pub not_applied: u64,
    pub unknown: u64,
    pub lost: u64,
    pub doubled: u64,
    pub diverged: bool,
    /// The longest time in which nothing was acknowledged while at least a quorum was running.
    pub longest_gap_ms: f64,
    /// The sequence at which all nodes' state digests were compared, and the digest.
    pub digest_sequence: u64,
    pub digest: String,
    pub findings: Vec<String>,
    pub phases: Vec<PhaseReport>,
    pub switches: Vec<SwitchReport>,
    pub sync: Parting,
}

/// Figures of one phase: acknowledgements that arrived in it, and what was found out about answers given in it.
pub fn measure(phase: &Phase, journal: &[Entry], verdict: &Verdict) -> PhaseReport {
    let within = phase.began_us..phase.ended_us;
    let among = |names: &BTreeSet<String>| {
        let answered = journal.iter().filter(|entry| within.contains(&entry.done_us));
        answered.filter(|entry| names.contains(&entry.to_string())).count() as u64
    };
    let (lost, doubled) = (among(&verdict.lost_names), among(&verdict.doubled_names));
    let mut acknowledged: Vec<&Entry> = journal
        .iter()
        .filter(|entry| within.contains(&entry.done_us) && entry.acknowledged().is_some())
        .collect();
    acknowledged.sort_by_key(|entry| entry.done_us);
    let mut latency_us = Histogram::<u64>::new_with_max(LATENCY_US_MAX, 3).expect("the bounds are sound");
    let mut longest_gap_us = 0;
    let mut last_us = phase.began_us;
    for entry in &acknowledged {
        latency_us.saturating_record(entry.done_us.saturating_sub(entry.sent_us).max(1));
        longest_gap_us = longest_gap_us.max(entry.done_us - last_us);
        last_us = entry.done_us;
    }
    longest_gap_us = longest_gap_us.max(phase.ended_us.saturating_sub(last_us));
    let seconds = seconds(phase.ended_us.saturating_sub(phase.began_us));
    let quantile = |q| if latency_us.is_empty() { 0.0 } else { ms(latency_us.value_at_quantile(q)) };
    PhaseReport {
        name: phase.name,
        seconds,
        acknowledged: acknowledged.len() as u64,
        lost,
        doubled,
        ops_per_s: if seconds > 0.0 {
            (acknowledged.len() as f64 / seconds * 10.0).round() / 10.0
        } else {
            0.0
        },
        p50_ms: quantile(0.5),
        p99_ms: quantile(0.99),
        longest_gap_ms: ms(longest_gap_us),
        killed: phase.killed.clone(),
        view_before: phase.view_before,
        view_after: phase.view_after,
        note: phase.note.clone(),
    }
}

/// The longest silence among acknowledgements that a quorum could have given: outages named in `excluded` (all nodes
/// dead) do not count.
pub fn longest_gap_ms(journal: &[Entry], excluded: &[(u64, u64)]) -> f64 {
    let done = acknowledged_at(journal);
    let gap = |pair: &[u64]| {
        let dead: u64 =
            excluded.iter().map(|(from, to)| (*to).min(pair[1]).saturating_sub((*from).max(pair[0]))).sum();
        (pair[1] - pair[0]).saturating_sub(dead)
    };
    ms(done.windows(2).map(gap).max().unwrap_or(0))
}

/// The longest interval between consecutive acknowledgements that touches the time of a switch.
pub fn measure_switch(switch: &Switch, done: &[u64]) -> SwitchReport {
    let Switch { from, to, planned, cause, began_us, ended_us } = *switch;
    let touching = done.windows(2).filter(|pair| pair[1] >= began_us && pair[0] <= ended_us);
    let gap_ms = ms(touching.map(|pair| pair[1] - pair[0]).max().unwrap_or(0));
    SwitchReport { from, to, planned, gap_ms, cause }
}

/// When something was acknowledged, in order.
fn acknowledged_at(journal: &[Entry]) -> Vec<u64> {
    let acknowledged = journal.iter().filter(|entry| entry.acknowledged().is_some());
    let mut done: Vec<u64> = acknowledged.map(|entry| entry.done_us).collect();
    done.sort_unstable();
    done
}

fn ms(us: u64) -> f64 {
    (us as f64 / 10.0).round() / 100.0
}

fn seconds(us: u64) -> f64 {
    (us as f64 / 10_000.0).round() / 100.0
}

impl Report {
    pub fn new(nodes: usize, mode: &'static str, clients: u32, record: &Record, verdict: Verdict) -> Self {
        let (phases, journal) = (&record.phases, &record.journal);
        let done = acknowledged_at(journal);
        let digest = record.nodes.first().map(|node| node.digest.clone()).unwrap_or_default();
        Self {
            nodes,
            mode,
            clients,
            acknowledged: verdict.acknowledged,
            not_applied: verdict.not_applied,
            unknown: verdict.unknown,
            lost: verdict.lost,
            doubled: verdict.doubled,
            diverged: verdict.diverged(),
            longest_gap_ms: longest_gap_ms(journal, &record.dead),
            digest_sequence: digest.0,
            digest: digest.1,
            phases: phases.iter().map(|phase| measure(phase, journal, &verdict)).collect(),
            findings: verdict.findings,
            switches: record.switches.iter().map(|switch| measure_switch(switch, &done)).collect(),
            sync: record.sync.clone(),
        }
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut rows = table(&[
            "phase",
            "seconds",
            "acknowledged",
            "lost",
            "doubled",
            "ops/s",
            "p50 ms",
            "p99 ms",
            "longest gap ms",
            "view",
            "killed",
        ]);
        align_numbers(&mut rows, 1..=8);
        let count = |count: u64| paint(thousands(count), if count == 0 { GREEN } else { RED });
        for phase in &self.phases {
            let measured = phase.acknowledged > 0;
            let figure = |text: String| if measured { text } else { "-".into() };
            let loaded = !matches!(phase.name, "start" | "finish" | "part and meet" | "verify");
            rows.add_row([
                phase.name.to_string(),
                format!("{:.1}", phase.seconds),
                figure(thousands(phase.acknowledged)),
                if measured || phase.lost + phase.doubled > 0 { count(phase.lost) } else { "-".into() },
                if measured || phase.lost + phase.doubled > 0 { count(phase.doubled) } else { "-".into() },
                figure(thousands(phase.ops_per_s.round() as u64)),
                figure(milliseconds(phase.p50_ms)),
                figure(milliseconds(phase.p99_ms)),
                if loaded { milliseconds(phase.longest_gap_ms) } else { "-".into() },
                view_text(phase.view_before, phase.view_after),
                killed_text(&phase.killed),
            ]);
        }
        // Counters that many clients share, and what was answered between phases, stand in the sum alone.
        let mut sum = vec!["all".to_string(), String::new(), thousands(self.acknowledged)];
        sum.extend([count(self.lost), count(self.doubled)]);
        sum.resize(11, String::new());
        rows.add_row(sum);
        let agreed = if self.diverged {
            paint("nodes differ", RED)
        } else {
            let digest: String = self.digest.chars().take(16).collect();
            format!(
                "{}: state digest {digest} at sequence {} on all {} nodes",
                paint("nodes equal", GREEN),
                self.digest_sequence,
                self.nodes
            )
        };
        let switches = self.switches_text();
        let mut text = format!(
            "\n{rows}\n{switches}\n{} acknowledged, {} lost, {} doubled, {} not applied, {} unknown; longest gap {} ms\n{agreed}\n",
            thousands(self.acknowledged),
            count(self.lost),
            count(self.doubled),
            thousands(self.not_applied),
            thousands(self.unknown),
            milliseconds(self.longest_gap_ms),
        );
        let sync = &self.sync;
        let held = if sync.converged { paint("nodes equal", GREEN) } else { paint("nodes differ", RED) };
        text.push_str(&format!(
            "state sync: {held} {} ms after two halves met; {} writes, {} lost, {} conflicts counted of {} made\n",
            thousands(sync.converged_ms),
            thousands(sync.writes),
            count(sync.lost),
            thousands(sync.conflicts_counted),
            thousands(sync.conflicts_expected),
        ));
        for finding in &self.findings {
            text.push_str(&format!("  {finding}\n"));
        }
        text
    }

    /// A table of the switches and their gaps; empty where there was none.
    fn switches_text(&self) -> String {
        if self.switches.is_empty() {
            return String::new();
        }
        let mut rows = table(&["switch", "cause", "planned", "commit gap ms"]);
        align_numbers(&mut rows, 3..=3);
        for switch in &self.switches {
            let planned = if switch.planned { "yes" } else { "no" };
            let (from, to) = (switch.from, switch.to);
            rows.add_row([
                format!("{from} -> {to}"),
                switch.cause.into(),
                planned.into(),
                milliseconds(switch.gap_ms),
            ]);
        }
        format!("\n{rows}\n")
    }
}

fn killed_text(killed: &[Killed]) -> String {
    let text: Vec<String> = killed
        .iter()
        .map(|killed| {
            let primary = if killed.primary { " primary" } else { "" };
            format!("{} (pid {}{primary})", killed.node, killed.pid)
        })
        .collect();
    if text.is_empty() { "-".into() } else { text.join(", ") }
}

fn view_text(before: Option<u64>, after: Option<u64>) -> String {
    match (before, after) {
        (Some(before), Some(after)) if before == after => before.to_string(),
        (Some(before), Some(after)) => format!("{before} -> {after}"),
        (None, Some(view)) | (Some(view), None) => view.to_string(),
        (None, None) => "-".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::journal::{Ask, Told};
    use super::*;

    fn entry(sent_ms: u64, done_ms: u64) -> Entry {
        let ask = Ask::Write { key: "k".into(), value: "v".into() };
        let told = Told::Acknowledged { revision: done_ms };
        Entry { client: 0, number: 0, ask, told, sent_us: sent_ms * 1000, done_us: done_ms * 1000 }
    }

    #[test]
    fn a_phase_counts_what_was_acknowledged_in_it_and_its_silences_to_both_ends() {
        let journal = [entry(0, 5), entry(10, 20), entry(15, 30), entry(30, 100)];
        let phase = Phase { name: "load", began_us: 10_000, ended_us: 90_000, ..Phase::default() };
        let report = measure(&phase, &journal, &Verdict::default());
        assert_eq!((report.acknowledged, report.seconds, report.ops_per_s), (2, 0.08, 25.0));
        assert_eq!(report.longest_gap_ms, 60.0);
        assert!((report.p99_ms - 15.0).abs() < 0.1);
    }

    #[test]
    fn what_was_lost_or_doubled_stands_in_the_row_of_its_phase() {
        let mut journal = [entry(0, 5), entry(10, 20), entry(15, 30)];
        (0..).zip(&mut journal).for_each(|(number, entry)| entry.number = number);
        let name = |entry: &Entry| entry.to_string();
        let verdict = Verdict {
            lost: 2,
            doubled: 1,
            lost_names: [name(&journal[0]), "demo/counter/00".into()].into(),
            doubled_names: [name(&journal[2])].into(),
            ..Verdict::default()
        };
        let phase = |name, began_us, ended_us| Phase { name, began_us, ended_us, ..Phase::default() };
        let phases = vec![phase("warm up", 0, 10_000), phase("kill leader", 10_000, 40_000)];
        let record = Record { phases, journal: journal.to_vec(), ..Record::default() };
        let report = Report::new(4, "hybrid", 1, &record, verdict);
        let counts: Vec<_> = report.phases.iter().map(|phase| (phase.lost, phase.doubled)).collect();
        assert_eq!(counts, [(1, 0), (0, 1)]);
        let text = report.text();
        let row = |name: &str| -> Vec<&str> {
            let row = text.lines().find(|line| line.contains(name)).expect("it has a row");
            row.split(['|', '\u{2502}', '\u{2506}']).flat_map(str::split_whitespace).collect()
        };
        let figures = |name: &str, skip: usize| row(name)[skip..skip + 2].join(" ");
        assert_eq!(figures("warm up", 4), "1 0", "{text}");
        assert_eq!(figures("kill leader", 4), "0 1", "{text}");
        assert_eq!(figures("all ", 2), "2 1", "{text}");
    }

    #[test]
    fn a_phase_without_acknowledgements_is_one_gap() {
        let phase = Phase { name: "load", began_us: 0, ended_us: 7_000, ..Phase::default() };
        let report = measure(&phase, &[], &Verdict::default());
        assert_eq!((report.acknowledged, report.longest_gap_ms, report.p50_ms), (0, 7.0, 0.0));
    }

    #[test]
    fn a_switch_is_charged_with_the_longest_silence_that_touches_it() {
        let journal = [entry(0, 10), entry(0, 90), entry(0, 100), entry(0, 130), entry(0, 400)];
        let switch = Switch {
            from: "raft",
            to: "pbft",
            planned: true,
            cause: "ordered",
            began_us: 95_000,
            ended_us: 130_000,
        };
        let gap = |began_ms: u64, ended_ms: u64| {
            let switch = Switch { began_us: began_ms * 1000, ended_us: ended_ms * 1000, ..switch };
            measure_switch(&switch, &acknowledged_at(&journal)).gap_ms
        };
        assert_eq!(gap(95, 120), 30.0);
        assert_eq!(gap(95, 130), 270.0, "what begins where the switch ends counts");
        assert_eq!(gap(50, 60), 80.0, "a silence around the whole switch");
        assert_eq!(gap(500, 600), 0.0);
    }

    #[test]
    fn time_in_which_all_nodes_were_dead_is_no_gap_of_the_cluster() {
        let journal = [entry(0, 10), entry(0, 1000), entry(0, 1200)];
        assert_eq!(longest_gap_ms(&journal, &[]), 990.0);
        assert_eq!(longest_gap_ms(&journal, &[(100_000, 950_000)]), 200.0);
    }
}
