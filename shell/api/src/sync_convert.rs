//! Convergent values between the wire and the core. What they mean is not known here.

use bytes::Bytes;
use dwcp_base::ReplicaId;
use dwcp_proto::v3;
use dwcp_proto::v3::sync_operation::Op as WireOp;
use dwcp_proto::v3::sync_plain::Form;
use dwcp_proto::v3::sync_view::View as WireView;
use dwcp_replica::sync::values::{Conflict, Dot, Op, Plain, View, Write};
use dwcp_replica::sync::{Road, SyncPeerStatus, SyncRequest, SyncStatus, SyncWritten};

/// Operations in one request; the core bounds them again, in bytes too.
const OPERATIONS_MAX: usize = 8_192;

/// # Errors
/// What is wrong with one of the operations, or that they are too many.
pub fn write(wire: v3::SyncWriteRequest) -> Result<SyncRequest, String> {
    let v3::SyncWriteRequest { operations, wait, timeout_ms } = wire;
    if operations.len() > OPERATIONS_MAX {
        return Err(format!("more than {OPERATIONS_MAX} operations: split them"));
    }
    let writes = operations.into_iter().map(operation).collect::<Result<_, _>>()?;
    let wait = u8::try_from(wait).map_err(|_| "wait is at most 31 nodes")?;
    Ok(SyncRequest::Write { writes, wait, timeout_ms })
}

pub fn get(wire: v3::SyncGetRequest) -> SyncRequest {
    SyncRequest::Get { key: wire.key, path: wire.path }
}

pub fn list(wire: v3::SyncListRequest) -> SyncRequest {
    SyncRequest::List { prefix: wire.prefix, after: wire.after, limit: wire.limit }
}

pub fn watch(wire: v3::SyncWatchRequest) -> SyncRequest {
    SyncRequest::Watch { prefix: wire.prefix }
}

pub fn conflicts(wire: v3::SyncConflictsRequest) -> SyncRequest {
    SyncRequest::Conflicts { limit: wire.limit }
}

pub fn stand(_: v3::SyncStandRequest) -> SyncRequest {
    SyncRequest::Stand
}

/// # Errors
/// A number that no replica has.
pub fn compare(wire: v3::SyncCompareRequest) -> Result<SyncRequest, String> {
    let peers = wire.peers.into_iter().map(|id| u8::try_from(id).map(ReplicaId)).collect::<Result<_, _>>();
    let peers = peers.map_err(|_| "a cluster has replicas 0 to 30")?;
    Ok(SyncRequest::Compare { peers, timeout_ms: wire.timeout_ms })
}

/// # Errors
/// What is wrong with the operation.
fn operation(wire: v3::SyncOperation) -> Result<Write, String> {
    let v3::SyncOperation { key, path, op } = wire;
    let op = match op.ok_or("an operation that does nothing: give it one of its forms")? {
        WireOp::Put(value) => Op::Put(plain(value)?),
        WireOp::PutMulti(value) => Op::PutMulti(plain(value)?),
        WireOp::Grow(by) => Op::Grow(by),
        WireOp::Adjust(by) => Op::Adjust(by),
        WireOp::AddForever(value) => Op::AddForever(plain(value)?),
        WireOp::AddOnce(value) => Op::AddOnce(plain(value)?),
        WireOp::RemoveForGood(value) => Op::RemoveForGood(plain(value)?),
        WireOp::Add(value) => Op::Add(plain(value)?),
        WireOp::Remove(value) => Op::Remove(plain(value)?),
        WireOp::Insert(v3::SyncInsert { index, value }) => {
            Op::Insert { index: place(index), value: plain(value.ok_or("an insert without a value")?)? }
        }
        WireOp::Erase(index) => Op::Erase { index: place(index) },
        WireOp::Delete(_) => Op::Delete,
        WireOp::Settle(_) => Op::Settle,
    };
    Ok(Write { key, path, op })
}

fn place(index: u64) -> usize {
    usize::try_from(index).unwrap_or(usize::MAX)
}

fn plain(wire: v3::SyncPlain) -> Result<Plain, String> {
    match wire.form.ok_or("a value that is neither JSON nor bytes")? {
        Form::Json(text) => Plain::json(&text),
        Form::Raw(bytes) => Plain::bytes(bytes),
    }
    .map_err(|error| error.to_string())
}

fn wire_plain(value: &Plain) -> v3::SyncPlain {
    let form = match value.as_json() {
        Some(text) => Form::Json(text.to_string()),
        None => Form::Raw(Bytes::copy_from_slice(value.as_bytes())),
    };
    v3::SyncPlain { form: Some(form) }
}

fn wire_plains<'a>(values: impl IntoIterator<Item = &'a Plain>) -> v3::SyncPlains {
    v3::SyncPlains { values: values.into_iter().map(wire_plain).collect() }
}

pub fn view(view: &View) -> v3::SyncView {
    let view = match view {
        View::Register(value) => WireView::Register(wire_plain(value)),
        View::Siblings(values) => WireView::Siblings(wire_plains(values)),
        View::Count(count) => WireView::Count(count.to_string()),
        View::Set(values) => WireView::Set(wire_plains(values)),
        View::Map(fields) => {
            let field = |(name, inner): (&Bytes, &View)| v3::SyncField {
                name: name.clone(),
                view: Some(self::view(inner)),
            };
            WireView::Map(v3::SyncFields { fields: fields.iter().map(field).collect() })
        }
        View::List(values) => WireView::List(wire_plains(values)),
    };
    v3::SyncView { view: Some(view) }
}

pub(crate) fn item((key, value): (Bytes, Option<View>)) -> v3::SyncItem {
    v3::SyncItem { key, view: value.as_ref().map(view) }
}

pub fn written(written: SyncWritten) -> v3::SyncWritten {
    let SyncWritten { road, last, nodes, latency_us } = written;
    let road = match road {
        Road::Nothing => v3::SyncRoad::Nothing,
        Road::Log => v3::SyncRoad::Log,
        Road::Gossip => v3::SyncRoad::Gossip,
    };
    v3::SyncWritten { road: road.into(), last, nodes: nodes.into(), latency_us }
}

pub(crate) fn conflict(conflict: Conflict) -> v3::SyncConflict {
    let Conflict { key, path, by, siblings, strategy, outcome } = conflict;
    let outcome = dwcp_node::sync_json::outcome(&outcome);
    let siblings = siblings.iter().map(Dot::to_string).collect();
    v3::SyncConflict { key, path, by: by.to_string(), siblings, strategy, outcome }
}

pub(crate) fn status(status: SyncStatus) -> v3::SyncStatus {
    v3::SyncStatus {
        sync_count: status.sync_count,
        last_sync_unix_ms: status.last_sync_unix_ms,
        avg_sync_latency_us: status.avg_sync_latency_us,
        conflict_count: status.conflict_count,
        conflicts_open: status.conflicts_open,
        not_open: status.not_open,
        keys: status.keys,
        tombstones: status.tombstones,
        frames_written: status.frames_written,
        frames_applied: status.frames_applied,
        frames_ordered: status.frames_ordered,
        fallbacks: status.fallbacks,
        writes_refused: status.writes_refused,
        exchanges: status.exchanges,
        frames_kept: status.frames_kept,
        frames_kept_bytes: status.frames_kept_bytes,
        frames_waiting: status.frames_waiting,
        ordering: status.ordering,
        floor: status.floor,
        keys_damaged: status.keys_damaged,
        keys_repaired: status.keys_repaired,
        bundles_refused: status.bundles_refused,
        frozen_origins: status.frozen_origins,
        needs_snapshot: status.needs_snapshot,
        snapshots_installed: status.snapshots_installed,
        snapshots_refused: status.snapshots_refused,
        donors_stalled: status.donors_stalled,
        floors_missed: status.floors_missed,
        frozen: status.frozen,
        resolutions_impure: status.resolutions_impure,
        refused: status.refused.into_iter().map(|(name, value)| v3::Counter { name, value }).collect(),
        peers: status.peers.into_iter().map(peer).collect(),
    }
}

fn peer(peer: SyncPeerStatus) -> v3::SyncPeerStatus {
    v3::SyncPeerStatus {
        id: peer.id.0.into(),
        lag_frames: peer.lag_frames,
        lag_ms: peer.lag_ms,
        last_exchange_ms: (peer.last_exchange_ms != u64::MAX).then_some(peer.last_exchange_ms),
        exchanges: peer.exchanges,
        bytes_in: peer.bytes_in,
        bytes_out: peer.bytes_out,
        withholds: peer.withholds,
        fault: peer.fault,
    }
}
