//! What each client wrote down: what it asked, when, and what it was told. The only witness the verifier trusts for
//! what was acknowledged; no server's counter is ever consulted.
//!
//! Times are microseconds since the demo began. Keys are unique per entry, so that the store's own version of a key
//! tells how often a command ran.

use std::fmt;
use std::io::Write;
use std::path::Path;

use serde::Serialize;

/// All keys of the demo begin so.
pub const PREFIX: &str = "demo/";

/// What was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Ask {
    /// An unconditional put of a key that nobody else writes, ever.
    Write { key: String, value: String },
    /// One compare-and-swap: `counter` from `to - 1` to `to`, and in the same transaction a key of its own that says so.
    Count { counter: String, to: u64, mark: String },
}

/// What was told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
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
