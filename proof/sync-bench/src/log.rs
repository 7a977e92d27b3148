//! A replica's records in the project's write-ahead log, on a real file: each in an envelope with its number, as the
//! node wraps them; a snapshot of the store in parts of 256 KiB among them; and the log shortened behind it, as
//! `core/replica/src/sync/disk.rs` does it. What records say is not known here.

use crate::clock::Spent;
use anyhow::{Context, bail};
use bytes::Bytes;
use dwcp_base::Ticket;
use dwcp_crdt::Store;
use dwcp_storage::{Lsn, StorageError, Wal, WalSettings};
use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::time::Duration;

const RECORD: u8 = 4;
const PART: u8 = 5;
/// Bytes of one part of a snapshot.
pub(crate) const PART_BYTES: usize = 256 * 1024;

#[derive(Debug)]
pub struct Log {
    wal: Wal,
    /// Records that are not durable yet.
    unsynced: VecDeque<(Ticket, Lsn)>,
    /// Where each record lies that may still be needed.
    live: BTreeMap<Ticket, Lsn>,
    /// The newest ticket that became durable and of which nobody has been told.
    untold: Option<Ticket>,
    /// What syncs took, and the longest of them by the wall.
    pub sync: Spent,
    pub longest: Duration,
}

/// What a log held when it was opened.
#[derive(Debug, Default)]
pub struct Held {
    /// By number.
    pub records: BTreeMap<u64, Bytes>,
    /// Parts of the newest snapshot.
    pub parts: Vec<Bytes>,
}

impl Log {
    /// # Errors
    /// What the disk says.
    pub fn open(dir: &Path) -> anyhow::Result<(Self, Held)> {
        let (wal, records, _) = Wal::open(dir, WalSettings::default())
            .with_context(|| format!("the log below {} cannot be opened", dir.display()))?;
        let (mut held, mut live) = (Held::default(), BTreeMap::new());
        for record in records {
            let mut bytes = Bytes::from(record.bytes);
            let envelope = bytes.split_to(9);
            let number = u64::from_le_bytes(envelope[1..].try_into().expect("eight bytes"));
            match envelope[0] {
                RECORD => {
                    held.records.insert(number, bytes);
                    live.insert(Ticket(number), record.lsn);
                }
                PART if number == 0 => held.parts = vec![bytes],
                PART => held.parts.push(bytes),
                other => bail!("a record of kind {other} in a log of this program"),
            }
        }
        let (unsynced, sync, longest) = (VecDeque::new(), Spent::default(), Duration::ZERO);
        let log = Self { wal, unsynced, live, untold: None, sync, longest };
        Ok((log, held))
    }

    fn wrap(kind: u8, number: u64, bytes: &[u8]) -> Vec<u8> {
        let mut record = Vec::with_capacity(9 + bytes.len());
        record.push(kind);
        record.extend_from_slice(&number.to_le_bytes());
        record.extend_from_slice(bytes);
        record
    }

    fn put(&mut self, record: &[u8]) -> Lsn {
        let lsn = match self.wal.append(record) {
            Err(StorageError::BatchFull { .. }) => {
                self.sync_all();
                self.wal.append(record)
            }
            other => other,
        };
        lsn.expect("the log takes records")
    }

    /// Buffers a record.
    pub fn append(&mut self, ticket: Ticket, record: &[u8]) {
        let lsn = self.put(&Self::wrap(RECORD, ticket.0, record));
        self.live.insert(ticket, lsn);
        self.unsynced.push_back((ticket, lsn));
    }

    /// Makes all that is buffered durable; the newest ticket that became so since the last call.
    pub fn sync(&mut self) -> Option<Ticket> {
        self.sync_all();
        self.untold.take()
    }

    fn sync_all(&mut self) {
        let (synced, spent) = Spent::on(|| self.wal.sync());
        let synced = synced.expect("what the disk does not take cannot be measured");
        self.sync.add(spent);
        self.longest = self.longest.max(spent.wall);
        while let Some((ticket, lsn)) = self.unsynced.front()
            && *lsn < synced
        {
            self.untold = Some(*ticket);
            self.unsynced.pop_front();
        }
    }

    /// Writes the store down; where its first part lies, and its bytes. Durable with the next sync.
    pub fn save(&mut self, store: &Store) -> (Lsn, usize) {
        let parts = store.snapshot_parts(PART_BYTES);
        let bytes = parts.iter().map(Vec::len).sum();
        let first = self.wal.next_lsn();
        for (number, part) in (0..).zip(&parts) {
            self.put(&Self::wrap(PART, number, part));
        }
        (first, bytes)
    }

    /// Nothing before this ticket and this place is needed.
    pub fn discard(&mut self, needed_from: Ticket, saved: Lsn) {
        self.live = self.live.split_off(&needed_from);
        let before = self.live.values().copied().fold(saved, Lsn::min);
        self.wal.discard_before(before).expect("the log can be shortened");
    }

    /// Batches made durable since it was opened, without the mark that opening writes.
    pub fn syncs(&self) -> u64 {
        self.wal.sync_count() - 1
    }

    pub fn bytes_used(&self) -> u64 {
        self.wal.bytes_used()
    }
}
