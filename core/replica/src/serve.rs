//! The donor's side of state transfer: offers the newest durable snapshot and reads its chunks for whoever asks.
//! Knows nothing of the log.

use crate::chunks::PER_DONOR;
use crate::io::{Class, Effect};
use crate::replica::{Outbox, Replica};
use crate::wire::{CHUNK_PART_BYTES, PeerMessage, SnapshotMeta};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use bytes::Bytes;
use dwcp_base::quorum::REPLICAS_MAX;
use dwcp_base::{Micros, Now, ReplicaId, Sequence};
use dwcp_state::StateMachine;

/// Chunk reads under way for one peer, which asks for `PER_DONOR` at once, and once more for what does not come. Beyond it
/// its questions are dropped: no peer can take what is another's, and whoever is in earnest asks again.
const READS_PER_PEER: usize = 2 * PER_DONOR;
/// Chunk reads under way in all.
pub const READS_MAX: usize = READS_PER_PEER * (REPLICAS_MAX as usize - 1);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Read {
    to: ReplicaId,
    sequence: Sequence,
    index: u32,
    offset: u64,
}

/// How long a peer waits until a second snapshot is written for its sake; twice as long for each after it.
const WANTED_INTERVAL: Micros = Micros::from_millis(10_000);

/// A snapshot that nobody has read for so long is not kept for anybody's sake.
const READER_PATIENCE: Micros = Micros::from_millis(10_000);
/// Nor is one kept for longer than this: whoever needs more than that begins anew.
const HELD_MAX: Micros = Micros::from_millis(600_000);

/// A snapshot that peers are fetching.
#[derive(Clone, Copy, Debug)]
struct Held {
    sequence: Sequence,
    since: Micros,
    last_read: Micros,
}

/// What this replica can give.
#[derive(Clone, Debug, Default)]
pub(crate) struct Donor {
    /// Durable and whole: the newest, which is offered, the one before it, and perhaps the one that is held. At most three.
    snapshots: BTreeMap<Sequence, SnapshotMeta>,
    /// Kept until its readers are through, however fast newer ones come: or they would never be.
    held: Option<Held>,
    /// Being written: at most one of our own and one fetched.
    preparing: BTreeMap<Sequence, SnapshotMeta>,
    /// At most `READS_PER_PEER` of each peer.
    reads: BTreeMap<u64, Read>,
    /// When each peer may next have a snapshot written for its sake.
    next_wanted: BTreeMap<ReplicaId, (Micros, Micros)>,
    next_token: u64,
}

impl Held {
    fn is_wanted(&self, now: Now) -> bool {
        now.mono.since(self.last_read) < READER_PATIENCE && now.mono.since(self.since) < HELD_MAX
    }
}

impl Donor {
    pub(crate) fn prepare(&mut self, meta: SnapshotMeta) {
        self.preparing.insert(meta.certificate.claim.sequence, meta);
    }

    pub(crate) fn unprepare(&mut self, sequence: Sequence) {
        self.preparing.remove(&sequence);
    }

    /// The snapshot is durable. Returns those that need not be kept.
    pub(crate) fn saved(&mut self, now: Now, sequence: Sequence) -> Vec<Sequence> {
        if let Some(meta) = self.preparing.remove(&sequence) {
            self.snapshots.insert(sequence, meta);
        }
        self.held = self.held.filter(|held| held.is_wanted(now));
        let held = self.held.map(|held| held.sequence);
        let kept = self.snapshots.keys().rev().take(2).copied().chain(held);
        let kept: Vec<Sequence> = kept.collect();
        let old: Vec<Sequence> = self.snapshots.keys().filter(|one| !kept.contains(one)).copied().collect();
        self.snapshots.retain(|one, _| kept.contains(one));
        old
    }

    /// A peer reads from this snapshot.
    fn hold(&mut self, now: Now, sequence: Sequence) {
        match self.held.as_mut().filter(|held| held.is_wanted(now)) {
            Some(held) if held.sequence == sequence => held.last_read = now.mono,
            Some(_) => {}
            None => self.held = Some(Held { sequence, since: now.mono, last_read: now.mono }),
        }
    }

    /// What peers are fetching, as far as was known when a snapshot was last read from or written.
    pub(crate) fn held(&self) -> Option<Sequence> {
        self.held.map(|held| held.sequence)
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
        now: Now,
        from: ReplicaId,
        sequence: Sequence,
        index: u32,
        offset: u64,
        out: &mut Outbox,
    ) {
        if !self.donor.snapshots.contains_key(&sequence) {
            return self.send_one(from, &PeerMessage::NoChunk { sequence, index }, Class::Bulk, out);
        }
        self.donor.hold(now, sequence);
        self.pbft.note_fetched(self.donor.held());
        let read = Read { to: from, sequence, index, offset };
        let under_way = self.donor.reads.values().filter(|read| read.to == from);
        if under_way.clone().count() >= READS_PER_PEER {
            // Not `NoChunk`, which would say that it is not here.
            return self.count("chunk reads dropped: too many");
        }
        if under_way.clone().any(|known| *known == read) {
            return;
        }
        let token = self.donor.next_token;
        self.donor.next_token += 1;
        self.donor.reads.insert(token, read);
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
