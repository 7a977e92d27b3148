//! A row of the bench's table: what was driven, what came out, what it cost. Pure arithmetic and layout.

use serde::Serialize;

use super::load::Sample;
use super::servers::Spent;
use crate::cli::output::{align_numbers, milliseconds, table, thousands};

#[derive(Clone, Debug, Default, Serialize)]
pub struct Row {
    pub name: String,
    pub ops_per_s: Option<f64>,
    pub p50_ms: Option<f64>,
    pub p99_ms: Option<f64>,
    pub p999_ms: Option<f64>,
    pub max_ms: Option<f64>,
    pub commands: u64,
    pub errors: u64,
    /// Processor time of all servers together for one command.
    pub servers_cpu_us_per_op: Option<f64>,
    pub client_cpu_us_per_op: Option<f64>,
    pub resident_mib_max: Option<f64>,
    pub batch_commands: Option<f64>,
    pub syncs_per_s_per_node: Option<f64>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub note: String,
}

impl Row {
    pub fn new(name: String, sample: &Sample, spent: &Spent) -> Self {
        let quantile = |q| {
            (!sample.latency_us.is_empty())
                .then(|| round(sample.latency_us.value_at_quantile(q) as f64 / 1000.0))
        };
        let per_op = |cpu: Option<std::time::Duration>| {
            cpu.filter(|_| sample.commands > 0)
                .map(|cpu| round(cpu.as_secs_f64() * 1e6 / sample.commands as f64))
        };
        let row = Self {
            name,
            ops_per_s: Some(round(sample.commands as f64 / sample.took.as_secs_f64().max(1e-6))),
            p50_ms: quantile(0.5),
            p99_ms: quantile(0.99),
            p999_ms: quantile(0.999),
            max_ms: (!sample.latency_us.is_empty()).then(|| round(sample.latency_us.max() as f64 / 1000.0)),
            commands: sample.commands,
            errors: sample.errors,
            servers_cpu_us_per_op: per_op(spent.servers_cpu),
            client_cpu_us_per_op: per_op(spent.client_cpu),
            note: sample.error.clone().unwrap_or_default(),
            ..Self::default()
        };
        row.with(spent)
    }

    /// A row that drives nothing.
    pub fn quiet(name: &str, spent: &Spent, note: String) -> Self {
        Self { name: name.into(), note, ..Self::default() }.with(spent)
    }

    fn with(mut self, spent: &Spent) -> Self {
        self.resident_mib_max = spent.resident_bytes.map(|bytes| round(bytes as f64 / f64::from(1 << 20)));
        self.batch_commands = spent.batch.map(round);
        self.syncs_per_s_per_node = spent.syncs_per_s.map(round);
        self
    }
}

fn round(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

/// The table for people; `n/a` where nothing could be measured.
pub fn text(rows: &[Row]) -> String {
    let mut shown = table(&[
        "row",
        "ops/s",
        "p50 ms",
        "p99 ms",
        "p99.9 ms",
        "max ms",
        "errors",
        "servers us/op",
        "client us/op",
        "RSS MiB",
        "batch",
        "fsyncs/s",
        "note",
    ]);
    align_numbers(&mut shown, 1..=11);
    let whole = |value: Option<f64>| value.map_or("n/a".into(), |value| thousands(value.round() as u64));
    let fine = |value: Option<f64>| value.map_or("n/a".into(), milliseconds);
    for row in rows {
        shown.add_row([
            row.name.clone(),
            whole(row.ops_per_s),
            fine(row.p50_ms),
            fine(row.p99_ms),
            fine(row.p999_ms),
            fine(row.max_ms),
            thousands(row.errors),
            fine(row.servers_cpu_us_per_op),
            fine(row.client_cpu_us_per_op),
            whole(row.resident_mib_max),
            fine(row.batch_commands),
            whole(row.syncs_per_s_per_node),
            row.note.clone(),
        ]);
    }
    format!(
        "{shown}\n\nops/s: acknowledged commands. servers us/op: processor time of all servers together per command. \
         RSS: the largest server.\nbatch: commands in a proposal. fsyncs/s: of one node.\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use hdrhistogram::Histogram;
    use std::time::Duration;

    #[test]
    fn figures_are_per_second_and_per_command() {
        let mut latency_us = Histogram::new(3).unwrap();
        (1..=100u64).for_each(|ms| latency_us.record(ms * 1000).unwrap());
        let sample =
            Sample { latency_us, commands: 100, errors: 0, error: None, took: Duration::from_secs(2) };
        let spent = Spent { servers_cpu: Some(Duration::from_millis(10)), ..Spent::default() };
        let row = Row::new("x".into(), &sample, &spent);
        assert_eq!(row.ops_per_s, Some(50.0));
        assert_eq!(row.servers_cpu_us_per_op, Some(100.0));
        assert!((row.p50_ms.unwrap() - 50.0).abs() < 0.1 && (row.max_ms.unwrap() - 100.0).abs() < 0.1);
        assert!(text(&[row]).contains("n/a"));
    }

    #[test]
    fn nothing_measured_divides_nothing() {
        let latency_us = Histogram::new(3).unwrap();
        let sample =
            Sample { latency_us, commands: 0, errors: 3, error: Some("e".into()), took: Duration::ZERO };
        let spent = Spent { servers_cpu: Some(Duration::from_millis(10)), ..Spent::default() };
        let row = Row::new("x".into(), &sample, &spent);
        assert!(row.servers_cpu_us_per_op.is_none() && row.p50_ms.is_none());
        assert_eq!((row.errors, row.note.as_str()), (3, "e"));
    }
}
