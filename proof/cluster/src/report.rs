//! What a campaign tells at its end: one table for people, one JSON object for machines. It judges and measures nothing.

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use dwcp::ProtocolName;

use crate::campaign::Record;
use crate::judgement::Judgement;
use crate::parted::{Met, MetJudgement};
use crate::soak::{Blows, Falls, Gaps, SoakJudgement, Soaked, falls, gaps};
use crate::stretch::ROOT_PER_SECOND_MAX;

#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub fault: &'static str,
    pub nodes: usize,
    pub seed: u64,
    pub blows: u64,
    pub rounds: u64,
    pub over_budget: u64,
    pub all_at_once: u64,
    pub while_starting: u64,
    pub view_changes: u64,
    pub digest_sequence: u64,
    pub seconds: f64,
    #[serde(flatten)]
    pub judgement: Judgement,
}

impl Report {
    #[must_use]
    pub fn new(fault: &'static str, seed: u64, record: &Record, judgement: Judgement) -> Self {
        Self {
            fault,
            nodes: record.nodes,
            seed,
            blows: record.blows,
            rounds: record.rounds,
            over_budget: record.over_budget,
            all_at_once: record.all_at_once,
            while_starting: record.while_starting,
            view_changes: record.view,
            digest_sequence: record.digests.first().map_or(0, |digest| digest.sequence),
            seconds: (record.seconds * 10.0).round() / 10.0,
            judgement,
        }
    }

    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        let judged = &self.judgement;
        let mut rows = plain_table(&[
            self.fault,
            "acknowledged",
            "unknown",
            "refused",
            "lost",
            "doubled",
            "stale",
            "longest gap ms",
            "view changes",
            "seconds",
        ]);
        let figures = [
            self.blows,
            judged.acknowledged,
            judged.unknown,
            judged.refused,
            judged.lost,
            judged.doubled,
            judged.stale,
            judged.longest_gap_ms,
            self.view_changes,
        ];
        let seconds = format!("{:.1}", self.seconds);
        rows.add_row(figures.iter().map(u64::to_string).chain([seconds]));
        align_right(&mut rows);
        let order = if judged.linearizable { "linearizable" } else { "NOT shown to be linearizable" };
        let states = states_text(judged.diverged, self.digest_sequence, self.nodes);
        let mut text = format!(
            "{rows}\n{} rounds: {} beyond what the quorum can spare, {} of them all nodes at once; {} blows while starting; \
             seed {}\n{order}; {states}; {} stale reads of single nodes were true to some past; \
             {} reads were linearizable without an entry\n",
            self.rounds,
            self.over_budget,
            self.all_at_once,
            self.while_starting,
            self.seed,
            judged.stale_reads,
            judged.reads_by_index
        );
        push_findings(&mut text, judged);
        text
    }
}

/// What a soak tells at its end.
#[derive(Clone, Debug, Serialize)]
pub struct SoakReport {
    pub nodes: usize,
    pub seed: u64,
    pub switches: u64,
    pub orders: u64,
    pub blows: Blows,
    pub failovers: u64,
    pub view_changes: u64,
    pub raft_to_pbft: Gaps,
    pub pbft_to_raft: Gaps,
    pub raft_to_raft: Gaps,
    pub leaders: Falls,
    pub digest_sequence: u64,
    pub seconds: f64,
    #[serde(flatten)]
    pub judgement: SoakJudgement,
}

impl SoakReport {
    #[must_use]
    pub fn new(soaked: &Soaked, judgement: SoakJudgement) -> Self {
        let (raft, pbft) = (ProtocolName::Raft, ProtocolName::Pbft);
        let record = &soaked.record;
        Self {
            nodes: record.nodes,
            seed: soaked.plan.seed,
            switches: soaked.plan.switches,
            orders: soaked.switches.len() as u64,
            blows: soaked.blows,
            failovers: soaked.failovers,
            view_changes: record.view,
            raft_to_pbft: gaps(soaked, raft, pbft),
            pbft_to_raft: gaps(soaked, pbft, raft),
            raft_to_raft: gaps(soaked, raft, raft),
            leaders: falls(soaked),
            digest_sequence: record.digests.first().map_or(0, |digest| digest.sequence),
            seconds: (record.seconds * 10.0).round() / 10.0,
            judgement,
        }
    }

    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        let SoakJudgement { base, client_errors, epochs, unproved, while_open } = &self.judgement;
        let mut rows = plain_table(&["switch", "count", "gap p50 ms", "gap p99 ms", "gap max ms"]);
        let kinds = [
            ("raft -> pbft", self.raft_to_pbft),
            ("pbft -> raft", self.pbft_to_raft),
            ("raft -> raft", self.raft_to_raft),
        ];
        for (name, gaps) in kinds {
            let figures = [gaps.count, gaps.p50_ms, gaps.p99_ms, gaps.max_ms];
            rows.add_row([name.to_string()].into_iter().chain(figures.iter().map(u64::to_string)));
        }
        align_right(&mut rows);
        let Blows { kills, stops, cuts } = self.blows;
        let order = if base.linearizable { "linearizable" } else { "NOT shown to be linearizable" };
        let states = states_text(base.diverged, self.digest_sequence, self.nodes);
        let mut text = format!(
            "{rows}\n{} orders, {epochs} epochs on every node, {} of them without an acknowledged command; {} failovers, {} view \
             changes; {kills} kills, {stops} stops, {cuts} cuts; {} s, seed {}\n{} acknowledged, {} lost, {} doubled, {} stale, \
             {client_errors} client errors; longest gap {} ms\nwhile a segment was open ({} of {} stretches judged, {} s): root {} \
             entries/s on the mean, {} at worst ({ROOT_PER_SECOND_MAX} allowed); positions {}/s on the mean, {} at worst; {} \
             acknowledged/s\n{order}; {states}; {} reads were linearizable without an entry\n",
            self.orders,
            unproved,
            self.failovers,
            self.view_changes,
            self.seconds,
            self.seed,
            base.acknowledged,
            base.lost,
            base.doubled,
            base.stale,
            base.longest_gap_ms,
            while_open.judged,
            while_open.stretches,
            while_open.judged_seconds,
            while_open.root_mean,
            while_open.root_worst,
            while_open.positions_mean,
            while_open.positions_worst,
            while_open.acknowledged_mean,
            base.reads_by_index,
        );
        let fallen = &self.leaders;
        if fallen.killed > 0 {
            text += &format!(
                "{} leaders killed, {} of their segments closed by force: gap p50 {} ms, p99 {} ms; noticed after p50 {} ms, \
                 p99 {} ms; the rest of each gap p50 {} ms, p99 {} ms; restarted, and all in a segment that \
                 nobody ordered, p50 {} ms, p99 {} ms after the kill; gap where somebody was elected instead p50 {} ms, p99 {} ms\n",
                fallen.killed,
                fallen.closed,
                fallen.gap_p50_ms,
                fallen.gap_p99_ms,
                fallen.detection_p50_ms,
                fallen.detection_p99_ms,
                fallen.beyond_p50_ms,
                fallen.beyond_p99_ms,
                fallen.reopened_p50_ms,
                fallen.reopened_p99_ms,
                fallen.elected_gap_p50_ms,
                fallen.elected_gap_p99_ms
            );
        }
        push_findings(&mut text, base);
        text
    }
}

/// What the parted and healed tell at their end.
#[derive(Clone, Debug, Serialize)]
pub struct MetReport {
    pub nodes: usize,
    pub seed: u64,
    pub rounds: u64,
    pub kills: u64,
    /// Changes acknowledged; among them those that no log had taken.
    pub acknowledged: u64,
    pub by_gossip: u64,
    pub converged_ms: Vec<u64>,
    pub seconds: f64,
    #[serde(flatten)]
    pub judgement: MetJudgement,
}

impl MetReport {
    #[must_use]
    pub fn new(met: &Met, judgement: MetJudgement) -> Self {
        Self {
            nodes: crate::parted::NODES,
            seed: met.plan.seed,
            rounds: met.plan.rounds,
            kills: met.kills,
            acknowledged: met.acknowledged,
            by_gossip: met.by_gossip,
            converged_ms: met.converged_ms.clone(),
            seconds: (met.seconds * 10.0).round() / 10.0,
            judgement,
        }
    }

    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        let MetJudgement { lost, converged, conflicts_expected, conflicts_counted, findings } =
            &self.judgement;
        let states = if *converged {
            let slowest = self.converged_ms.iter().max().copied().unwrap_or(0);
            format!("all {} nodes hold the same, {slowest} ms after the healing at most", self.nodes)
        } else {
            "the nodes were not seen to hold the same".into()
        };
        let mut text = format!(
            "{} rounds, {} kills of nodes that alone had what they acknowledged; {} s, seed {}\n{} changes acknowledged, {} of \
             them by gossip; {lost} values lost; {conflicts_expected} conflicts expected, {conflicts_counted:?} counted by the \
             nodes\n{states}\n",
            self.rounds, self.kills, self.seconds, self.seed, self.acknowledged, self.by_gossip
        );
        findings.iter().for_each(|finding| text += &format!("VIOLATION {finding}\n"));
        text
    }
}

fn plain_table(header: &[&str]) -> Table {
    let mut rows = Table::new();
    rows.load_preset(presets::NOTHING);
    rows.set_header(header.iter().copied());
    rows
}

fn align_right(rows: &mut Table) {
    rows.column_iter_mut().for_each(|column| column.set_cell_alignment(CellAlignment::Right));
}

fn states_text(diverged: bool, digest_sequence: u64, nodes: usize) -> String {
    match (diverged, digest_sequence) {
        (true, _) => "the nodes' states DIFFER".to_string(),
        (false, 0) => "the nodes' states were not compared".to_string(),
        (false, sequence) => format!("all {nodes} nodes hold the same state at sequence {sequence}"),
    }
}

fn push_findings(text: &mut String, judged: &Judgement) {
    for finding in &judged.findings {
        text.push_str("VIOLATION ");
        text.push_str(finding);
        text.push('\n');
    }
}
