//! One simulated process: a replica core, its disk, its clocks, and what waits for a sync. Data only; `driver` moves it.

use crate::disk::Disk;
use crate::puppet::Puppet;
use crate::store::Store;
use bytes::Bytes;
use dwcp_base::{Incarnation, Micros, Now, ReplicaId, Sequence, Ticket};
use dwcp_replica::{ClientId, Effect, FrozenChunks, Input, Outbox, Replica};
use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};

/// Unix time at which every run begins, in milliseconds.
pub const EPOCH_MS: u64 = 1_750_000_000_000;

/// Inputs a process holds before it drops what peers send.
pub const INBOX_MAX: usize = 20_000;

/// Why a node is down, which decides how it comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Down {
    /// It will be started again by itself.
    Crashed,
    /// The disk is full; it starts again when there is room.
    DiskFull,
    /// The disk is lost or damaged; the operator replaces the member.
    DiskLost,
}

/// A state to be written down.
pub struct Frozen(pub Box<dyn FrozenChunks>);

impl std::fmt::Debug for Frozen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Frozen({} chunks)", self.0.chunk_count())
    }
}

/// Something that the disk does in the background.
#[derive(Debug)]
pub enum Job {
    Save { sequence: Sequence, meta: Vec<u8>, frozen: Frozen },
    Finish { sequence: Sequence, meta: Vec<u8> },
}

/// The wall clock of a node: an offset and a drift. The monotonic clock starts at zero with the process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock {
    pub offset_us: i64,
    pub drift_ppm: i64,
}

pub struct Node {
    pub replica: ReplicaId,
    pub incarnation: Incarnation,
    /// A second core under the same key: the other half of a pair of twins.
    pub twin: bool,
    /// Held to account by the judges.
    pub honest: bool,
    pub puppet: Option<Puppet>,
    pub core: Option<Replica<Store>>,
    pub down: Option<Down>,
    pub down_since_us: u64,
    /// Counts starts; what was scheduled for an earlier one is void.
    pub boot: u64,
    pub booted_at_us: u64,
    pub paused_until_us: u64,
    pub inbox: VecDeque<Input>,
    pub burst_scheduled: bool,
    pub wake_at_us: u64,
    pub outbox: Outbox,
    /// Effects, the ticket each waits for and its place in the count of this boot, in order. Bounded by what one core emits between two syncs.
    pub waiting: VecDeque<(Ticket, u64, Effect)>,
    pub syncing: bool,
    /// The core itself waits for what was appended since the last sync began.
    pub prompt: bool,
    pub jobs: BTreeMap<u64, Job>,
    pub disk: Disk,
    pub clock: Clock,
    /// Live connections of clients.
    pub connections: BTreeMap<ClientId, usize>,
    /// Index of this life's journal.
    pub journal: usize,
    /// Its disk lost what it had claimed: it may have forgotten what it signed.
    pub lost_sync: bool,
    /// Peers' incarnations as `MemberChanged` told.
    pub known: BTreeSet<(ReplicaId, Incarnation)>,
    /// The last bytes seen leaving.
    pub last_sent: Bytes,
    /// Votes of this life already in the journal: kind, epoch, view, sequence, digest.
    pub noted: HashSet<(u16, u64, u64, u64, [u8; 32])>,
    /// The view of its latest VIEW-CHANGE.
    pub left_below: u64,
    /// The most slots it was seen to hold in this life.
    pub held_max: u64,
    pub flush_scheduled: bool,
    /// Times in a row that the core asked to be woken for the past.
    pub hasty: u64,
    /// Effects of this boot.
    pub decided: u64,
    /// Epochs that it sealed or saw closed in this boot, and those whose seal was durable.
    pub sealing: BTreeSet<u64>,
    pub sealed: BTreeSet<u64>,
    /// Epochs that it complained of.
    pub complained: BTreeSet<u64>,
    /// Words noted in this boot.
    pub spoken: BTreeSet<(u64, check::history::Word)>,
    /// Closes and Anchors of the slot being executed: what their bytes say is known when it is.
    pub borders: Vec<dwcp_replica::Event>,
    /// Up to where it is known to know the log certified.
    pub covered: u64,
    /// The last epoch it knew when it went down.
    pub slept_at_epoch: u64,
}

impl Node {
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.core.is_some()
    }

    #[must_use]
    pub fn now(&self, at_us: u64) -> Now {
        let drift_us = i64::try_from(at_us).unwrap_or(0) * self.clock.drift_ppm / 1_000_000;
        let ahead_us = self.puppet.as_ref().map_or(0, |puppet| puppet.clock_ahead_us(at_us));
        let wall_us =
            ((at_us + ahead_us) as i64).saturating_add(self.clock.offset_us).saturating_add(drift_us);
        let wall_ms = EPOCH_MS.saturating_add_signed(wall_us / 1000);
        Now { mono: Micros(at_us - self.booted_at_us), wall_ms }
    }
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}.{:?}{}", self.replica, self.incarnation, if self.twin { "'" } else { "" })
    }
}
