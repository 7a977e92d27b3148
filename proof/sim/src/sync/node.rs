//! One node: its disk, which forgets what was not synced, and what runs while it is up.

use crate::sync::liar::Puppet;
use crate::sync::workload::resolvers;
use bytes::Bytes;
use dwcp_base::{Micros, Mutants, Now, Ticket};
use dwcp_crdt::{Origin, OriginId, Restore, Store, VersionVector};
use dwcp_sync::{Setup, Sync};
use std::collections::BTreeMap;

/// Wall clocks begin here, far from zero, so that they can be behind.
pub const NOON_MS: u64 = 1_700_000_000_000;

/// A saved store.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub head: Vec<u8>,
    pub piece: Vec<u8>,
    pub applied: VersionVector,
    pub floor: u64,
    /// Which history of a forked origin is in it.
    pub branches: BTreeMap<Origin, u32>,
}

impl Snapshot {
    #[must_use]
    pub fn of(store: &Store, branches: &BTreeMap<Origin, u32>) -> Self {
        Self {
            head: store.snapshot_head(),
            piece: store.snapshot_piece(None, usize::MAX).bytes,
            applied: store.applied().clone(),
            floor: store.floor_number(),
            branches: branches.clone(),
        }
    }

    #[must_use]
    pub fn empty(me: Origin) -> Self {
        Self::of(&Store::new(me, resolvers()), &BTreeMap::new())
    }

    /// The store that was saved, which goes on as `me`.
    ///
    /// # Panics
    /// When a store's own pieces are refused.
    #[must_use]
    pub fn store(&self, me: Origin, mutants: Mutants) -> Store {
        let mut restore = Restore::new(me, resolvers(), &self.head).expect("a store reads its own head");
        restore.piece(&self.piece).expect("a store reads its own piece");
        let mut store = restore.finish().expect("the one piece is all");
        store.set_mutants(mutants);
        store
    }
}

/// What survives.
#[derive(Clone, Debug)]
pub struct Disk {
    /// Synced records, then those on their way.
    pub records: Vec<(Ticket, Bytes)>,
    pub durable: Ticket,
    pub snapshot: Snapshot,
    /// Grows with each snapshot put in place: one that was begun before another was installed is void.
    pub generation: u64,
}

impl Disk {
    #[must_use]
    pub fn new(me: Origin) -> Self {
        Self { records: Vec::new(), durable: Ticket::ZERO, snapshot: Snapshot::empty(me), generation: 0 }
    }
}

/// What a crash takes.
#[derive(Debug)]
pub struct Live {
    pub sync: Sync,
    pub store: Store,
    pub branches: BTreeMap<Origin, u32>,
    /// Messages that wait for the disk.
    pub waiting: Vec<(Ticket, OriginId, Bytes)>,
    /// Frames that are acknowledged once they are durable: last counter, and what the log gets.
    pub owed: Vec<(Ticket, u64, Option<Bytes>)>,
    pub is_syncing: bool,
    pub is_saving: bool,
    pub is_fetching: bool,
    pub wake_at: Micros,
}

#[derive(Debug)]
pub struct Node {
    pub id: u32,
    pub setup: Setup,
    pub disk: Disk,
    pub live: Option<Live>,
    /// Counts starts and crashes: what was meant for another life is void.
    pub life: u64,
    /// Wall clock against true time.
    pub skew_ms: i64,
    pub puppet: Option<Puppet>,
    /// How far it has read the log.
    pub cursor: usize,
    /// The newest floor that it read past without taking it, as whoever skips slots does.
    pub missed_floor: Option<u64>,
    /// The list of members that it goes by.
    pub members_number: u64,
    /// Its disk is lost, and the operator has not brought it back yet.
    pub is_lost: bool,
}

impl Node {
    #[must_use]
    pub fn me(&self) -> Origin {
        self.setup.me
    }

    #[must_use]
    pub fn is_honest(&self) -> bool {
        self.puppet.is_none()
    }

    #[must_use]
    pub fn now(&self, now_us: u64) -> Now {
        let true_ms = NOON_MS + now_us / 1_000;
        Now { mono: Micros(now_us), wall_ms: true_ms.saturating_add_signed(self.skew_ms) }
    }
}
