//! What people and judges may see of the room. Only counts; nothing is decided by it.

use crate::sync::{Open, SyncRoom};
use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use borsh::{BorshDeserialize, BorshSerialize};
use dwcp_base::{Micros, Now, ReplicaId};
use dwcp_crdt::OriginId;
use dwcp_sync::Reason;

/// Counted since this node started.
#[derive(Clone, Debug, Default)]
pub(crate) struct Figures {
    pub(crate) frames_written: u64,
    pub(crate) frames_applied: u64,
    pub(crate) frames_ordered: u64,
    /// Of these, others' frames that were here by gossip before.
    pub(crate) frames_ordered_late: u64,
    pub(crate) fallbacks: u64,
    pub(crate) writes_refused: u64,
    pub(crate) bundles_refused: u64,
    pub(crate) last_refusal: String,
    pub(crate) keys_damaged: u64,
    pub(crate) keys_repaired: u64,
    /// The highest count of conflicts that the store has shown. Its own falls when a clash of kinds ends unsettled: it is a
    /// function of what was applied, alike everywhere.
    pub(crate) conflicts_most: u64,
    pub(crate) snapshots_refused: u64,
    pub(crate) snapshots_installed: u64,
    pub(crate) floors_missed: u64,
    pub(crate) donors_stalled: u64,
    exchanges: u64,
    sync_count: u64,
    last_sync_unix_ms: u64,
    latency_sum_us: u64,
}

/// State sync as a node sees it. The words of the first five are the seed's.
#[derive(Clone, Debug, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct SyncStatus {
    /// Writes acknowledged here.
    pub sync_count: u64,
    /// When the last one was, by this node's clock; 0 for never.
    pub last_sync_unix_ms: u64,
    /// From the request to the acknowledgement.
    pub avg_sync_latency_us: u64,
    /// Never falls while the node runs. Alike on nodes that applied the same, but for clashes of kinds that ended before some of
    /// them saw them.
    pub conflict_count: u64,
    pub conflicts_open: u64,
    /// Why this node does not take part; empty when it does.
    pub not_open: String,
    /// Keys that exist, and those of which only a tombstone is left.
    pub keys: u64,
    pub tombstones: u64,
    pub frames_written: u64,
    pub frames_applied: u64,
    pub frames_ordered: u64,
    /// Hybrid writes that the log did not take in time.
    pub fallbacks: u64,
    pub writes_refused: u64,
    pub exchanges: u64,
    /// Kept for peers, and waiting for one before them.
    pub frames_kept: u64,
    pub frames_kept_bytes: u64,
    pub frames_waiting: u64,
    pub ordering: u64,
    pub floor: u64,
    /// Keys that an audit found to differ, and those that were put right here.
    pub keys_damaged: u64,
    pub keys_repaired: u64,
    pub bundles_refused: u64,
    /// Origins that contradicted themselves and whose end is not decided yet: how many, and their names.
    pub frozen_origins: u64,
    pub frozen: Vec<String>,
    /// How often a custom resolver gave two answers for one set of siblings.
    pub resolutions_impure: u64,
    pub needs_snapshot: bool,
    /// Snapshots that came from peers: put in place, and refused.
    pub snapshots_installed: u64,
    pub snapshots_refused: u64,
    /// Collection floors that were committed in slots which this node skipped with a snapshot of the root.
    pub floors_missed: u64,
    /// Donors that gave nothing more, so that another was asked.
    pub donors_stalled: u64,
    /// Dropped, by reason; those with none are left out.
    pub refused: Vec<(String, u64)>,
    pub peers: Vec<SyncPeerStatus>,
}

/// How a peer stands with this node.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct SyncPeerStatus {
    pub id: ReplicaId,
    /// Frames that are acknowledged here and not there, and for how long it has lacked some.
    pub lag_frames: u64,
    pub lag_ms: u64,
    /// Milliseconds since the last exchange; `u64::MAX` for never.
    pub last_exchange_ms: u64,
    pub exchanges: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    /// It has not acknowledged for long what is here, or its own words keep everybody from collecting.
    pub withholds: bool,
    /// How, in words; empty when it does not.
    pub fault: String,
}

/// Who keeps everybody from collecting now, and how. Who does so in two ways is named for one.
pub(crate) fn faults(open: &Open) -> BTreeMap<OriginId, &'static str> {
    let silent = open.sync.withholding().map(|origin| (origin.id, "does not acknowledge"));
    silent.chain(open.sync.accused().map(|(origin, fault)| (origin.id, fault.word()))).collect()
}

impl Figures {
    pub(crate) fn completed(&mut self, now: Now, latency_us: u64) {
        self.sync_count += 1;
        self.last_sync_unix_ms = now.wall_ms;
        self.latency_sum_us = self.latency_sum_us.saturating_add(latency_us);
    }

    pub(crate) fn exchanged(&mut self, _peer: OriginId, _now: Now) {
        self.exchanges += 1;
    }

    pub(crate) fn status(&self, now: Now, room: &SyncRoom) -> SyncStatus {
        let Some(open) = &room.open else {
            return SyncStatus { not_open: super::write::NOT_A_MEMBER.to_string(), ..SyncStatus::default() };
        };
        let (kept, waiting) = open.sync.frames_count();
        let refused =
            Reason::ALL.iter().map(|reason| (reason.word().to_string(), open.sync.refused(*reason)));
        let faults = faults(open);
        let frozen: Vec<String> = open.sync.convicted().map(|origin| origin.to_string()).collect();
        let peers = open.sync.peers().filter_map(|(id, figures)| {
            let since = |at: Micros| now.mono.since(at).0 / 1_000;
            Some(SyncPeerStatus {
                id: ReplicaId(u8::try_from(id.0).ok()?),
                lag_frames: figures.lag_frames,
                lag_ms: figures.lag.0 / 1_000,
                last_exchange_ms: figures.last_exchange.map_or(u64::MAX, since),
                exchanges: figures.exchanges,
                bytes_in: figures.bytes_in,
                bytes_out: figures.bytes_out,
                withholds: faults.contains_key(&id),
                fault: faults.get(&id).map(|fault| (*fault).to_string()).unwrap_or_default(),
            })
        });
        SyncStatus {
            sync_count: self.sync_count,
            last_sync_unix_ms: self.last_sync_unix_ms,
            avg_sync_latency_us: self.latency_sum_us.checked_div(self.sync_count).unwrap_or(0),
            conflict_count: open.store.conflict_count().max(self.conflicts_most),
            conflicts_open: open.store.conflicts_open(),
            not_open: String::new(),
            keys: open.store.keys_count() as u64,
            tombstones: (open.store.entries_count() - open.store.keys_count()) as u64,
            frames_written: self.frames_written,
            frames_applied: self.frames_applied,
            frames_ordered: self.frames_ordered,
            fallbacks: self.fallbacks,
            writes_refused: self.writes_refused,
            exchanges: self.exchanges,
            frames_kept: kept as u64,
            frames_kept_bytes: open.sync.log_bytes() as u64,
            frames_waiting: waiting as u64,
            ordering: room.ordering.len() as u64,
            floor: open.store.floor_number(),
            keys_damaged: self.keys_damaged,
            keys_repaired: self.keys_repaired,
            bundles_refused: self.bundles_refused,
            frozen_origins: frozen.len() as u64,
            frozen,
            resolutions_impure: open.store.resolutions_impure(),
            needs_snapshot: open.sync.needs().next().is_some(),
            snapshots_installed: self.snapshots_installed,
            snapshots_refused: self.snapshots_refused,
            floors_missed: self.floors_missed,
            donors_stalled: self.donors_stalled,
            refused: refused.filter(|(_, count)| *count > 0).collect(),
            peers: peers.collect(),
        }
    }
}
