//! Convergent values between the wire and what applications see.

use bytes::Bytes;
use dwcp_base::Hash;
use dwcp_proto::v3;
use dwcp_proto::v3::sync_operation::Op as WireOp;
use dwcp_proto::v3::sync_plain::Form;
use dwcp_proto::v3::sync_view::View as WireView;
use dwcp_replica::sync::values::{Op, Plain, View, Write};
use dwcp_replica::sync::{Road, SyncPeerStatus, SyncStatus, SyncWritten};

use crate::status::replica;
use crate::sync::{SyncCompared, SyncConflict, SyncConflicts, SyncStanding, SyncValue};

/// How deep values may nest; a server that nests deeper is not believed.
const DEPTH_MAX: usize = 16;

pub fn operation(write: &Write) -> v3::SyncOperation {
    let op = match &write.op {
        Op::Put(value) => WireOp::Put(wire_plain(value)),
        Op::PutMulti(value) => WireOp::PutMulti(wire_plain(value)),
        Op::Grow(by) => WireOp::Grow(*by),
        Op::Adjust(by) => WireOp::Adjust(*by),
        Op::AddForever(value) => WireOp::AddForever(wire_plain(value)),
        Op::AddOnce(value) => WireOp::AddOnce(wire_plain(value)),
        Op::RemoveForGood(value) => WireOp::RemoveForGood(wire_plain(value)),
        Op::Add(value) => WireOp::Add(wire_plain(value)),
        Op::Remove(value) => WireOp::Remove(wire_plain(value)),
        Op::Insert { index, value } => {
            WireOp::Insert(v3::SyncInsert { index: *index as u64, value: Some(wire_plain(value)) })
        }
        Op::Erase { index } => WireOp::Erase(*index as u64),
        Op::Delete => WireOp::Delete(true),
        Op::Settle => WireOp::Settle(true),
    };
    v3::SyncOperation { key: write.key.clone(), path: write.path.clone(), op: Some(op) }
}

fn wire_plain(value: &Plain) -> v3::SyncPlain {
    let form = match value.as_json() {
        Some(text) => Form::Json(text.to_string()),
        None => Form::Raw(Bytes::copy_from_slice(value.as_bytes())),
    };
    v3::SyncPlain { form: Some(form) }
}

fn plain(wire: v3::SyncPlain) -> Option<Plain> {
    match wire.form? {
        Form::Json(text) => Plain::json(&text).ok(),
        Form::Raw(bytes) => Plain::bytes(bytes).ok(),
    }
}

fn plains<C: FromIterator<Plain>>(wire: v3::SyncPlains) -> Option<C> {
    wire.values.into_iter().map(plain).collect()
}

/// `None` for what no node sends.
pub fn view(wire: v3::SyncView) -> Option<View> {
    view_within(wire, DEPTH_MAX)
}

fn view_within(wire: v3::SyncView, depth: usize) -> Option<View> {
    let depth = depth.checked_sub(1)?;
    Some(match wire.view? {
        WireView::Register(value) => View::Register(plain(value)?),
        WireView::Siblings(values) => View::Siblings(plains(values)?),
        WireView::Count(count) => View::Count(count.parse().ok()?),
        WireView::Set(values) => View::Set(plains(values)?),
        WireView::Map(fields) => {
            let field = |field: v3::SyncField| Some((field.name, view_within(field.view?, depth)?));
            View::Map(fields.fields.into_iter().map(field).collect::<Option<_>>()?)
        }
        WireView::List(values) => View::List(plains(values)?),
    })
}

/// One key; nothing in place of a value that was deleted.
fn item(wire: v3::SyncItem) -> Option<(Bytes, Option<View>)> {
    let value = match wire.view {
        Some(wire) => Some(view(wire)?),
        None => None,
    };
    Some((wire.key, value))
}

/// `None` for what no node sends, as in everything below.
pub fn value(wire: v3::SyncValue) -> Option<SyncValue> {
    let view = match wire.view {
        Some(wire) => Some(view(wire)?),
        None => None,
    };
    Some(SyncValue { view, kinds: wire.kinds, siblings: wire.siblings })
}

/// The keys, and whether there are more.
pub fn keys(wire: v3::SyncKeys) -> Option<(Vec<(Bytes, View)>, bool)> {
    let item = |wire| item(wire).and_then(|(key, view)| Some((key, view?)));
    Some((wire.items.into_iter().map(item).collect::<Option<_>>()?, wire.more))
}

pub fn changes(wire: v3::SyncChanges) -> Option<Vec<(Bytes, Option<View>)>> {
    wire.items.into_iter().map(item).collect()
}

pub fn conflicts(wire: v3::SyncConflicts) -> SyncConflicts {
    let event = |event: v3::SyncConflict| SyncConflict {
        key: event.key,
        path: event.path,
        by: event.by,
        siblings: event.siblings,
        strategy: event.strategy,
        outcome: event.outcome,
    };
    let events = wire.events.into_iter().map(event).collect();
    SyncConflicts { count: wire.count, open: wire.open, events }
}

pub fn standing(wire: v3::SyncStanding) -> Option<SyncStanding> {
    Some(SyncStanding {
        digest: Hash(<[u8; 32]>::try_from(&wire.digest[..]).ok()?),
        applied: wire.applied.into_iter().map(|applied| (applied.origin, applied.last)).collect(),
        floor: wire.floor,
        conflicts: wire.conflicts,
        keys: wire.keys,
    })
}

pub fn compared(wire: v3::SyncCompared) -> Option<SyncCompared> {
    let ids = |ids: Vec<u32>| ids.into_iter().map(replica).collect::<Option<Vec<_>>>();
    Some(SyncCompared { level: ids(wire.level)?, differs: ids(wire.differs)?, silent: ids(wire.silent)? })
}

pub fn written(wire: v3::SyncWritten) -> Option<SyncWritten> {
    let road = match v3::SyncRoad::try_from(wire.road).ok()? {
        v3::SyncRoad::Nothing => Road::Nothing,
        v3::SyncRoad::Log => Road::Log,
        v3::SyncRoad::Gossip => Road::Gossip,
    };
    let nodes = u8::try_from(wire.nodes).ok()?;
    Some(SyncWritten { road, last: wire.last, nodes, latency_us: wire.latency_us })
}

pub fn status(wire: v3::SyncStatus) -> Option<SyncStatus> {
    let mut peers = Vec::with_capacity(wire.peers.len());
    for peer in wire.peers {
        peers.push(SyncPeerStatus {
            id: replica(peer.id)?,
            lag_frames: peer.lag_frames,
            lag_ms: peer.lag_ms,
            last_exchange_ms: peer.last_exchange_ms.unwrap_or(u64::MAX),
            exchanges: peer.exchanges,
            bytes_in: peer.bytes_in,
            bytes_out: peer.bytes_out,
            withholds: peer.withholds,
            fault: peer.fault,
        });
    }
    Some(SyncStatus {
        sync_count: wire.sync_count,
        last_sync_unix_ms: wire.last_sync_unix_ms,
        avg_sync_latency_us: wire.avg_sync_latency_us,
        conflict_count: wire.conflict_count,
        conflicts_open: wire.conflicts_open,
        not_open: wire.not_open,
        keys: wire.keys,
        tombstones: wire.tombstones,
        frames_written: wire.frames_written,
        frames_applied: wire.frames_applied,
        frames_ordered: wire.frames_ordered,
        fallbacks: wire.fallbacks,
        writes_refused: wire.writes_refused,
        exchanges: wire.exchanges,
        frames_kept: wire.frames_kept,
        frames_kept_bytes: wire.frames_kept_bytes,
        frames_waiting: wire.frames_waiting,
        ordering: wire.ordering,
        floor: wire.floor,
        keys_damaged: wire.keys_damaged,
        keys_repaired: wire.keys_repaired,
        bundles_refused: wire.bundles_refused,
        frozen_origins: wire.frozen_origins,
        needs_snapshot: wire.needs_snapshot,
        snapshots_installed: wire.snapshots_installed,
        snapshots_refused: wire.snapshots_refused,
        donors_stalled: wire.donors_stalled,
        floors_missed: wire.floors_missed,
        frozen: wire.frozen,
        resolutions_impure: wire.resolutions_impure,
        refused: wire.refused.into_iter().map(|counter| (counter.name, counter.value)).collect(),
        peers,
    })
}
