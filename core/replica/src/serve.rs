//! The donor's side of state transfer: offers the newest durable snapshot and reads its chunks for whoever asks.
//! Knows nothing of the log.

use crate::io::{Class, Effect};
use crate::replica::{Outbox, Replica};
use crate::wire::{CHUNK_PART_BYTES, PeerMessage, SnapshotMeta};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use bytes::Bytes;
use dwcp_base::{Micros, Now, ReplicaId, Sequence};
use dwcp_state::StateMachine;

/// Chunk reads under way for peers; beyond it requests are dropped and asked for again.
const READS_MAX: usize = 128;

#[derive(Clone, Debug)]
struct Read {
    to: ReplicaId,
    sequence: Sequence,
    index: u32,
    offset: u64,
}

/// How long a peer waits until a second snapshot is written for its sake; twice as long for each after it.
const WANTED_INTERVAL: Micros = Micros::from_millis(10_000);

/// What this replica can give.
#[derive(Clone, Debug, Default)]
pub(crate) struct Donor {
    /// Durable and whole; the newest is offered, the one before is kept for those who are fetching it.
    snapshots: BTreeMap<Sequence, SnapshotMeta>,
    /// Being written: at most one of our own and one fetched.
    preparing: BTreeMap<Sequence, SnapshotMeta>,
    reads: BTreeMap<u64, Read>,
    /// When each peer may next have a snapshot written for its sake.
    next_wanted: BTreeMap<ReplicaId, (Micros, Micros)>,
    next_token: u64,
}

impl Donor {
    pub(crate) fn prepare(&mut self, meta: SnapshotMeta) {
        self.preparing.insert(meta.certificate.claim.sequence, meta);
    }

    pub(crate) fn unprepare(&mut self, sequence: Sequence) {
        self.preparing.remove(&sequence);
    }

    /// The snapshot is durable. Returns those that need not be kept.
    pub(crate) fn saved(&mut self, sequence: Sequence) -> Vec<Sequence> {
        if let Some(meta) = self.preparing.remove(&sequence) {
            self.snapshots.insert(sequence, meta);
        }
        let mut old = Vec::new();
        while self.snapshots.len() > 2 {
            old.extend(self.snapshots.pop_first().map(|(sequence, _)| sequence));
        }
        old
    }

    /// The certificate of a durable snapshot.
    pub(crate) fn certificate(&self, sequence: Sequence) -> Option<dwcp_pbft::Certificate> {
        self.snapshots.get(&sequence).map(|meta| meta.certificate.clone())
    }

    pub(crate) fn newest_sequence(&self) -> Option<Sequence> {
        self.snapshots.keys().next_back().copied()
    }

    fn newest(&self) -> Option<&SnapshotMeta> {
        self.snapshots.values().next_back()
    }
}

impl<M: StateMachine> Replica<M> {
    pub(crate) fn on_fetch_offer(&mut self, now: Now, from: ReplicaId, at_least: Sequence, out: &mut Outbox) {
        let Some(meta) = self.donor.newest().filter(|meta| meta.certificate.claim.sequence >= at_least)
        else {
            return self.want_snapshot(now, from, at_least);
        };
        let message = PeerMessage::Offer(meta.clone());
        self.send_one(from, &message, Class::Bulk, out);
    }

    /// We have nothing new enough: the next checkpoint will be, if this peer has not made us write one just now.
    fn want_snapshot(&mut self, now: Now, from: ReplicaId, at_least: Sequence) {
        let wait = self.donor.next_wanted.entry(from).or_insert((Micros::ZERO, WANTED_INTERVAL));
        let plausible = at_least.0 <= self.control.executed.0.saturating_add(self.setup.genesis.window);
        if now.mono >= wait.0 && plausible {
            // Each time it has to wait twice as long: a peer that lies about its need costs less and less.
            *wait = (now.mono.plus(wait.1), wait.1.times(2));
            self.snapshot_wanted = true;
        }
    }

    pub(crate) fn on_fetch_chunk(
        &mut self,
        from: ReplicaId,
        sequence: Sequence,
        index: u32,
        offset: u64,
        out: &mut Outbox,
    ) {
        if !self.donor.snapshots.contains_key(&sequence) {
            return self.send_one(from, &PeerMessage::NoChunk { sequence, index }, Class::Bulk, out);
        }
        if self.donor.reads.len() >= READS_MAX {
            return self.count("chunk reads dropped: too many");
        }
        let token = self.donor.next_token;
        self.donor.next_token += 1;
        self.donor.reads.insert(token, Read { to: from, sequence, index, offset });
        out.push(Effect::ReadChunk { token, sequence, index, offset, bytes_max: CHUNK_PART_BYTES });
    }

    pub(crate) fn on_chunk_read(&mut self, token: u64, bytes: Option<Bytes>, out: &mut Outbox) {
        let Some(Read { to, sequence, index, offset }) = self.donor.reads.remove(&token) else { return };
        let message = match bytes {
            Some(bytes) => PeerMessage::Chunk { sequence, index, offset, bytes },
            None => PeerMessage::NoChunk { sequence, index },
        };
        self.send_one(to, &message, Class::Bulk, out);
    }
}
