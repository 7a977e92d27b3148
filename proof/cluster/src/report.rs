//! What a campaign tells at its end: one table for people, one JSON object for machines. It judges and measures nothing.

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use crate::campaign::Record;
use crate::judgement::Judgement;

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
        let mut rows = Table::new();
        rows.load_preset(presets::NOTHING);
        rows.set_header([
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
        rows.column_iter_mut().for_each(|column| column.set_cell_alignment(CellAlignment::Right));
        let order = if judged.linearizable { "linearizable" } else { "NOT shown to be linearizable" };
        let states = match (judged.diverged, self.digest_sequence) {
            (true, _) => "the nodes' states DIFFER".to_string(),
            (false, 0) => "the nodes' states were not compared".to_string(),
            (false, sequence) => {
                format!("all {} nodes hold the same state at sequence {sequence}", self.nodes)
            }
        };
        let mut text = format!(
            "{rows}\n{} rounds: {} beyond what the quorum can spare, {} of them all nodes at once; {} blows while starting; \
             seed {}\n{order}; {states}; {} stale reads of single nodes were true to some past\n",
            self.rounds,
            self.over_budget,
            self.all_at_once,
            self.while_starting,
            self.seed,
            judged.stale_reads
        );
        for finding in &judged.findings {
            text.push_str("VIOLATION ");
            text.push_str(finding);
            text.push('\n');
        }
        text
    }
}
