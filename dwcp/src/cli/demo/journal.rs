//! What each client wrote down: what it asked, when, and what it was told. The only witness the verifier trusts for
//! what was acknowledged; no server's counter is ever consulted.
//!
//! Times are microseconds since the demo began. Keys are unique per entry, so that the store's own version of a key
//! tells how often a command ran.

use std::fmt;
use std::io::{BufRead, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

/// All keys of the demo begin so.
pub const PREFIX: &str = "demo/";

/// What was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Ask {
    /// An unconditional put of a key that nobody else writes, ever.
    Write { key: String, value: String },
    /// One compare-and-swap: `counter` from `to - 1` to `to`, and in the same transaction a key of its own that says so.
    Count { counter: String, to: u64, mark: String },
}

/// What was told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "told", rename_all = "lowercase")]
pub enum Told {
    /// It ran; the store's revision after it.
    Acknowledged { revision: u64 },
    /// It did not run and never will: refused, or the comparison did not hold.
    NotApplied { why: String },
    /// It may have run.
    Unknown { why: String },
}

/// One line of a journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub client: u32,
    pub number: u64,
    pub ask: Ask,
    pub told: Told,
    pub sent_us: u64,
    pub done_us: u64,
}

impl Entry {
    pub fn acknowledged(&self) -> Option<u64> {
        match self.told {
            Told::Acknowledged { revision } => Some(revision),
            Told::NotApplied { .. } | Told::Unknown { .. } => None,
        }
    }

    /// The key that tells whether this entry ran, and its value.
    pub fn trace(&self) -> (&str, String) {
        match &self.ask {
            Ask::Write { key, value } => (key, value.clone()),
            Ask::Count { mark, to, .. } => (mark, to.to_string()),
        }
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "client {} command {}", self.client, self.number)
    }
}

/// The one key an unconditional write of this client may use for its `number`th command.
pub fn write_key(client: u32, number: u64) -> String {
    format!("{PREFIX}write/{client:03}/{number:08}")
}

pub fn mark_key(client: u32, number: u64) -> String {
    format!("{PREFIX}mark/{client:03}/{number:08}")
}

pub fn counter_key(counter: u32) -> String {
    format!("{PREFIX}counter/{counter}")
}

/// Writes journals as JSON, one entry a line, for those who keep the demo's folder.
pub fn save(entries: &[Entry], path: &Path) -> std::io::Result<()> {
    let mut file = std::io::BufWriter::new(std::fs::File::create(path)?);
    for entry in entries {
        serde_json::to_writer(&mut file, entry)?;
        file.write_all(b"\n")?;
    }
    file.flush()
}

/// Reads what [`save`] wrote.
pub fn load(path: &Path) -> std::io::Result<Vec<Entry>> {
    let file = std::io::BufReader::new(std::fs::File::open(path)?);
    file.lines().map(|line| Ok(serde_json::from_str(&line?)?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journal_reads_back_as_it_was() {
        let ask = Ask::Count { counter: counter_key(1), to: 7, mark: mark_key(2, 3) };
        let told = Told::Acknowledged { revision: 9 };
        let first = Entry { client: 2, number: 3, ask, told, sent_us: 1, done_us: 5 };
        let ask = Ask::Write { key: write_key(0, 1), value: "v".into() };
        let second = Entry { ask, told: Told::Unknown { why: "gone".into() }, ..first.clone() };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal.jsonl");
        save(&[first.clone(), second.clone()], &path).unwrap();
        assert_eq!(load(&path).unwrap(), [first, second]);
    }
}
