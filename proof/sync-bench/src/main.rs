//! How fast state sync is, and what it costs: `core/crdt` and `core/sync` as one replica has them, without sockets,
//! with the write-ahead log where a row says so. Each row is one or more figures of `docs/performance.md`; nothing is
//! judged here, but a row whose replicas do not come to the same in the end is refused.
//!
//! `cargo run --release -p sync-bench -- [options] [row...]`; `--help` names the rows. Every row runs in a process of
//! its own, this program once more, so that none uses the memory and the caches of another. Read `world`, `node` and
//! `log`, then a row.

mod audit;
mod clock;
mod conflicts;
mod exchange;
mod log;
mod memory;
mod merge;
mod node;
mod rateless;
mod report;
mod wan;
mod world;

use anyhow::{Context, bail, ensure};
use report::Found;
use serde_json::Value;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// What a row is asked with.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Sign with a keyed hash, which costs next to nothing.
    pub keyed: bool,
    /// Where logs are written, each in a temporary folder.
    pub dir: PathBuf,
}

type Measure = fn(&Ask) -> anyhow::Result<Found>;

/// Rows by name. What stands before the first hyphen names a group.
const ROWS: &[(&str, &str, Measure)] = &[
    ("merge-wire", "bytes of small updates on the wire, frames of 1,000", merge::wire),
    ("merge-math", "small updates merged on a second replica, mathematics alone", merge::math),
    ("merge-read", "and reading the received bytes", merge::reading),
    ("merge-resolver", "what a strategy costs where nothing is concurrent", merge::resolver),
    ("merge-signed", "and signatures, hash chains, records: all but the disk", merge::signed),
    ("merge-disk", "and the write-ahead log, 64 frames for one fdatasync", merge::disk),
    ("merge-disk-one", "the same, each frame with its own fdatasync", merge::disk_one),
    ("merge-disk-long", "the same, 3,000 frames in the bursts a node takes when all wait", merge::disk_long),
    ("conflicts-none", "JSON objects of one writer, to compare", conflicts::none),
    ("conflicts-lww", "two writers on the same keys, last_writer_wins", conflicts::last_writer_wins),
    ("conflicts-merge", "two writers on the same keys, merge on JSON objects", conflicts::merge),
    ("exchange", "10^6 keys with 100 different", exchange::exchange),
    ("memory-store", "memory of 10^6 small keys, a store alone", memory::store),
    ("memory-store-late", "the same when nobody asks for its digest meanwhile", memory::store_late),
    ("memory-sync", "memory of 10^6 small keys, with all of Sync and the log", memory::sync),
    ("memory-updates", "what 10^6 updates on 10^4 keys leave, a store alone", memory::updates),
    ("memory-updates-sync", "what 10^6 updates on 10^4 keys leave, with all of Sync", memory::updates_sync),
    (
        "audit-1e5",
        "finding keys that differ: ranges and a rateless table, 10^5 keys",
        audit::hundred_thousand,
    ),
    ("audit-1e6", "finding keys that differ: ranges and a rateless table, 10^6 keys", audit::million),
    ("wan", "virtual time: 16 nodes, 200 ms, 5 % loss, 1,000 updates/s", wan::wan),
];

const OPTIONS: &[(&str, &str)] = &[
    ("--runs N", "measure each row N times, one process each (default 1)"),
    ("--json", "print an array of rows, each with its runs, instead of text"),
    ("--keyed", "sign with a keyed hash instead of Ed25519; each row says which it was"),
    ("--dir DIR", "where logs are written (default: the system's temporary folder)"),
    ("--here", "measure one row in this process, for a profiler"),
    ("--help", "this text"),
];

fn help() {
    println!(
        "sync-bench [options] [row...]; a row's group (what stands before the first hyphen) names all of it\n"
    );
    println!("rows (without any, all):");
    ROWS.iter().for_each(|(name, about, _)| println!("  {name:<22} {about}"));
    println!("\noptions:");
    OPTIONS.iter().for_each(|(name, about)| println!("  {name:<22} {about}"));
}

struct Asked {
    ask: Ask,
    json: bool,
    here: bool,
    runs: usize,
    rows: Vec<&'static (&'static str, &'static str, Measure)>,
}

fn group(name: &str) -> &str {
    name.split('-').next().unwrap_or(name)
}

/// Nothing when there is nothing to measure.
fn asked() -> anyhow::Result<Option<Asked>> {
    let ask = Ask { keyed: false, dir: std::env::temp_dir() };
    let mut asked = Asked { ask, json: false, here: false, runs: 1, rows: Vec::new() };
    let words: Vec<String> = std::env::args().skip(1).collect();
    asked.ask.keyed = words.iter().any(|word| word == "--keyed");
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--json" => asked.json = true,
            "--here" => asked.here = true,
            "--keyed" => {}
            "--runs" => {
                let runs = words.next().and_then(|runs| runs.parse().ok()).filter(|runs| *runs > 0);
                asked.runs = runs.context("--runs takes a count, 1 or more")?;
            }
            "--dir" => asked.ask.dir = words.next().context("--dir takes a folder")?.into(),
            "--help" | "-h" => {
                help();
                return Ok(None);
            }
            // What rows of memory ask of this program in another process.
            "--feed" => {
                memory::feed(&words.next().context("--feed takes a load")?, asked.ask.keyed)?;
                return Ok(None);
            }
            "--restart" => {
                memory::restart(&words.next().context("--restart takes a folder")?, asked.ask.keyed)?;
                return Ok(None);
            }
            row => {
                let named = ROWS.iter().filter(|(name, ..)| *name == row || group(name) == row);
                let before = asked.rows.len();
                // A row whose name is also a group's is asked for as the row alone.
                let exact = ROWS.iter().find(|(name, ..)| *name == row);
                asked.rows.extend(exact.map_or_else(|| named.collect(), |row| vec![row]));
                if asked.rows.len() == before {
                    let names: Vec<&str> = ROWS.iter().map(|(name, ..)| *name).collect();
                    bail!("{row}: no such row; there are {}", names.join(", "));
                }
            }
        }
    }
    if asked.rows.is_empty() {
        asked.rows.extend(ROWS);
    }
    ensure!(!asked.here || asked.rows.len() == 1, "--here measures one row: name it");
    Ok(Some(asked))
}

/// Measures one row in a process of its own.
fn apart(name: &str, ask: &Ask) -> anyhow::Result<Value> {
    let load = report::load();
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--here", "--json", name, "--dir"]).arg(&ask.dir);
    if ask.keyed {
        command.arg("--keyed");
    }
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "it failed: {}", output.status);
    let mut found: Value = serde_json::from_slice(&output.stdout)?;
    found["load"] = load.into();
    Ok(found)
}

fn main() -> anyhow::Result<()> {
    let Some(asked) = asked()? else { return Ok(()) };
    let mut all = Vec::new();
    for (name, about, measure) in asked.rows {
        if asked.here {
            let mut found = measure(&asked.ask)?.json(name);
            if asked.json {
                println!("{found}");
            } else {
                found["load"] = report::load().into();
                report::print(name, about, &[found])?;
            }
            return Ok(());
        }
        let runs = (0..asked.runs).map(|_| apart(name, &asked.ask)).collect::<anyhow::Result<Vec<Value>>>();
        let runs = runs.with_context(|| format!("row {name}"))?;
        if !asked.json {
            report::print(name, about, &runs)?;
        }
        all.push(serde_json::json!({ "row": name, "about": about, "runs": runs }));
    }
    if asked.json {
        println!("{}", serde_json::to_string_pretty(&all)?);
    }
    Ok(())
}
