//! One replica's disk: a write-ahead log whose records count once a sync has completed, and snapshots.
//!
//! A crash keeps what was synced and any prefix of what was not; the record being written may be torn, which the log's
//! checksum turns into "not written". A lying disk reports syncs that did not happen. A flipped bit within the synced
//! part is damage: such a disk is refused at start, as the real store refuses it, and its owner must be replaced.

use bytes::Bytes;
use dwcp_base::{Chance, Sequence, Ticket};
use std::collections::{BTreeMap, VecDeque};

/// A complete snapshot.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub meta: Vec<u8>,
    pub chunks: Vec<Vec<u8>>,
}

/// A snapshot that is being fetched.
pub type Partial = BTreeMap<u32, Bytes>;

#[derive(Debug, Default)]
pub struct Disk {
    /// Records in order of ticket.
    log: VecDeque<(Ticket, Bytes)>,
    next_ticket: u64,
    /// Records with tickets up to this one survive a crash.
    durable: u64,
    /// What the disk claims; above `durable` only when it lies.
    claimed: u64,
    pub snapshots: BTreeMap<Sequence, Snapshot>,
    pub partial: BTreeMap<Sequence, Partial>,
    /// The owner's refusal to start: a bit flipped.
    pub damaged: bool,
    pub full: bool,
    pub slow: bool,
    /// Chance per sync that it is only claimed.
    pub lying_pm: u64,
}

/// What a crash did to a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Damage {
    pub records_lost: u64,
    /// A record was cut off in the middle.
    pub torn: bool,
    /// Records were lost whose sync had been reported done.
    pub broke_promise: bool,
}

impl Disk {
    #[must_use]
    pub fn new() -> Self {
        Self { next_ticket: 1, ..Self::default() }
    }

    /// # Panics
    /// When the core skips or repeats a ticket.
    pub fn append(&mut self, ticket: Ticket, record: Vec<u8>) {
        assert_eq!(ticket.0, self.next_ticket, "tickets count up by one");
        self.next_ticket += 1;
        self.log.push_back((ticket, Bytes::from(record)));
    }

    #[must_use]
    pub fn last_ticket(&self) -> Ticket {
        Ticket(self.next_ticket - 1)
    }

    /// The ticket whose sync was last reported done.
    #[must_use]
    pub fn claimed(&self) -> Ticket {
        Ticket(self.claimed)
    }

    /// A sync of everything up to `ticket` ends.
    pub fn sync(&mut self, ticket: Ticket, chance: &mut Chance) {
        let lies = self.lying_pm > 0 && chance.per_mille(self.lying_pm);
        if !lies {
            self.durable = self.durable.max(ticket.0);
        }
        self.claimed = self.claimed.max(ticket.0);
    }

    pub fn discard(&mut self, before: Ticket) {
        while self.log.front().is_some_and(|(ticket, _)| *ticket < before) {
            self.log.pop_front();
        }
    }

    /// The power fails.
    pub fn crash(&mut self, torn_pm: u64, chance: &mut Chance) -> Damage {
        let last = self.next_ticket - 1;
        let unsynced = last - self.durable;
        let kept = chance.below(unsynced + 1);
        let survives = self.durable + kept;
        let torn = survives < last && chance.per_mille(torn_pm);
        while self.log.back().is_some_and(|(ticket, _)| ticket.0 > survives) {
            self.log.pop_back();
        }
        self.next_ticket = survives + 1;
        let damage = Damage { records_lost: last - survives, torn, broke_promise: survives < self.claimed };
        self.durable = survives;
        self.claimed = survives;
        damage
    }

    /// What the log holds, oldest first.
    pub fn records(&self) -> Vec<(Ticket, Bytes)> {
        self.log.iter().cloned().collect()
    }

    #[must_use]
    pub fn next_ticket(&self) -> Ticket {
        Ticket(self.next_ticket)
    }

    #[must_use]
    pub fn log_len(&self) -> usize {
        self.log.len()
    }

    pub fn save_chunk(&mut self, sequence: Sequence, index: u32, bytes: Bytes) {
        self.partial.entry(sequence).or_default().insert(index, bytes);
    }

    /// A fetched snapshot becomes a whole one.
    pub fn finish(&mut self, sequence: Sequence, meta: Vec<u8>) {
        let chunks = self.partial.remove(&sequence).unwrap_or_default();
        let chunks = chunks.into_values().map(|bytes| bytes.to_vec()).collect();
        self.snapshots.insert(sequence, Snapshot { meta, chunks });
    }

    pub fn drop_snapshot(&mut self, sequence: Sequence) {
        self.snapshots.remove(&sequence);
        self.partial.remove(&sequence);
    }

    pub fn read_chunk(&self, sequence: Sequence, index: u32, offset: u64, bytes_max: u32) -> Option<Bytes> {
        let chunk = self.snapshots.get(&sequence)?.chunks.get(usize::try_from(index).ok()?)?;
        let from = usize::try_from(offset).ok()?.min(chunk.len());
        let to = from.saturating_add(usize::try_from(bytes_max).ok()?).min(chunk.len());
        Some(Bytes::copy_from_slice(&chunk[from..to]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(count: u64) -> Disk {
        let mut disk = Disk::new();
        (1..=count).for_each(|ticket| disk.append(Ticket(ticket), vec![7]));
        disk
    }

    #[test]
    fn a_crash_keeps_what_was_synced_and_at_most_a_prefix_of_the_rest() {
        for seed in 0..50 {
            let mut chance = Chance::new(seed);
            let mut disk = written(10);
            disk.sync(Ticket(4), &mut chance);
            let damage = disk.crash(500, &mut chance);
            let last = disk.last_ticket().0;
            assert!((4..=10).contains(&last));
            assert_eq!(damage.records_lost, 10 - last);
            assert!(!damage.broke_promise);
            assert!(disk.records().iter().map(|(ticket, _)| ticket.0).eq(1..=last));
            disk.append(Ticket(last + 1), vec![8]);
        }
    }

    #[test]
    fn a_lying_disk_loses_what_it_claimed_and_is_found_out() {
        let mut chance = Chance::new(1);
        let mut disk = written(10);
        disk.lying_pm = 1000;
        disk.sync(Ticket(10), &mut chance);
        assert_eq!(disk.claimed(), Ticket(10));
        let broke = (0..20).any(|seed| {
            let mut disk = written(10);
            disk.lying_pm = 1000;
            let mut chance = Chance::new(seed);
            disk.sync(Ticket(10), &mut chance);
            disk.crash(0, &mut chance).broke_promise
        });
        assert!(broke);
    }
}
