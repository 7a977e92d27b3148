//! Figures and how they are shown: in rows, a row in lines, a line in values with their units. A row that was
//! measured several times shows the values of all runs side by side, with the machine's load before each.

use anyhow::Context;
use serde_json::{Value, json};

/// One figure.
#[derive(Clone, Copy, Debug)]
pub struct Figure {
    pub value: f64,
    pub digits: usize,
    pub unit: &'static str,
}

pub fn figure(value: f64, digits: usize, unit: &'static str) -> Figure {
    Figure { value, digits, unit }
}

/// Figures that belong together.
#[derive(Clone, Debug)]
pub struct Line {
    pub what: String,
    pub figures: Vec<Figure>,
    /// What the figures are held against, in words; empty where nothing is.
    pub aim: &'static str,
}

pub fn line(what: impl Into<String>, figures: impl Into<Vec<Figure>>, aim: &'static str) -> Line {
    Line { what: what.into(), figures: figures.into(), aim }
}

/// What one row found.
#[derive(Clone, Debug)]
pub struct Found {
    /// Which of signatures, disk and resolver were on, and how.
    pub with: String,
    pub lines: Vec<Line>,
}

impl Found {
    pub fn json(&self, row: &str) -> Value {
        let figures = |line: &Line| -> Vec<Value> {
            let of = |f: &Figure| json!({ "value": f.value, "digits": f.digits, "unit": f.unit });
            line.figures.iter().map(of).collect()
        };
        let line = |line: &Line| json!({ "what": line.what, "aim": line.aim, "figures": figures(line) });
        json!({ "row": row, "with": self.with, "lines": self.lines.iter().map(line).collect::<Vec<_>>() })
    }
}

/// The machine's load of the last one, five and fifteen minutes, as the system says it.
pub fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

/// A number with its thousands apart.
fn grouped(value: f64, digits: usize) -> String {
    let text = format!("{value:.digits$}");
    let (whole, part) = text.split_once('.').map_or((text.as_str(), None), |(w, p)| (w, Some(p)));
    let mut out = String::new();
    for (place, digit) in whole.chars().enumerate() {
        if place > 0 && (whole.len() - place).is_multiple_of(3) && !out.ends_with('-') {
            out.push(',');
        }
        out.push(digit);
    }
    if let Some(part) = part {
        out.push('.');
        out.push_str(part);
    }
    out
}

/// Shows one row that was measured once or several times: `runs` are what [`Found::json`] made, each with its `load`.
///
/// # Errors
/// Runs that are not of one row.
pub fn print(name: &str, about: &str, runs: &[Value]) -> anyhow::Result<()> {
    let first = runs.first().context("a row has a run")?;
    let text = |of: &Value| of.as_str().unwrap_or_default().to_string();
    let loads: Vec<String> = runs.iter().map(|run| text(&run["load"])).collect();
    println!("{name}: {about}");
    println!("  with {}; load before: {}", text(&first["with"]), loads.join(" | "));
    let lines = |run: &Value| run["lines"].as_array().cloned().unwrap_or_default();
    let all: Vec<Vec<Value>> = runs.iter().map(lines).collect();
    for (place, line) in all[0].iter().enumerate() {
        let figures = line["figures"].as_array().context("a line has figures")?;
        let mut parts = Vec::new();
        for (at, figure) in figures.iter().enumerate() {
            let digits = figure["digits"].as_u64().and_then(|digits| usize::try_from(digits).ok());
            let value = |lines: &Vec<Value>| {
                let value = lines.get(place).and_then(|line| line["figures"][at]["value"].as_f64());
                value.map_or_else(|| "?".to_string(), |value| grouped(value, digits.unwrap_or(0)))
            };
            let mut values: Vec<String> = all.iter().map(value).collect();
            // What no run changes is said once.
            if values.iter().all(|value| *value == values[0]) {
                values.truncate(1);
            }
            parts.push(format!("{} {}", values.join(" / "), text(&figure["unit"])));
        }
        let aim = text(&line["aim"]);
        let aim = if aim.is_empty() { aim } else { format!("   (aim: {aim})") };
        println!("  {:<44} {}{aim}", text(&line["what"]), parts.join(", "));
    }
    println!();
    Ok(())
}
