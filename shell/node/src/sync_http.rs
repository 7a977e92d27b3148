//! Convergent keys as JSON over plain HTTP, where the settings turn it on. Whoever reaches the port may read, or also write;
//! so writing is served on loopback addresses alone. Clients elsewhere speak gRPC.
//!
//! `GET /v3/sync/key?key=K`, `/v3/sync/keys?prefix=P&after=K&limit=N`, `/v3/sync/conflicts`, `/v3/sync/peers`,
//! `/v3/sync/stand`; `POST /v3/sync/state` with `{"key": value}`, `POST /v3/sync/write` with `{"writes": [...], "wait": k}`.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes as Body;
use axum::extract::{DefaultBodyLimit, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use dwcp_replica::{ClientReply, ClientRequest, SyncReply, SyncRequest};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::node::WeakNode;
use crate::settings::SyncHttp;
use crate::sync_json;

/// A write that does not fit one frame is refused anyway.
const BODY_BYTES_MAX: usize = 1 << 20;
/// Longer than the core lets anything wait.
const PATIENCE: Duration = Duration::from_secs(20);
/// A connection lives for half a minute.
const TIMEOUT_MS_MAX: u64 = 15_000;

type Node = State<Arc<WeakNode>>;

pub(crate) fn routes(allowed: SyncHttp) -> Router<Arc<WeakNode>> {
    if allowed == SyncHttp::Off {
        return Router::new();
    }
    let router = Router::new()
        .route("/v3/sync/key", get(key))
        .route("/v3/sync/keys", get(keys))
        .route("/v3/sync/conflicts", get(conflicts))
        .route("/v3/sync/peers", get(peers))
        .route("/v3/sync/stand", get(stand));
    if allowed == SyncHttp::Read {
        return router;
    }
    router
        .route("/v3/sync/state", post(state))
        .route("/v3/sync/write", post(write))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
}

fn answer(code: StatusCode, body: &Value) -> Response {
    (code, [(header::CONTENT_TYPE, "application/json")], format!("{body}\n")).into_response()
}

fn refuse(code: StatusCode, reason: impl Into<String>) -> Response {
    answer(code, &json!({ "error": reason.into() }))
}

/// # Errors
/// The refusal, as it is answered.
async fn ask(node: &WeakNode, request: SyncRequest) -> Result<SyncReply, Response> {
    let gone = || refuse(StatusCode::SERVICE_UNAVAILABLE, "the node has stopped");
    let node = node.upgrade().ok_or_else(gone)?;
    let busy = |busy: crate::Busy| refuse(StatusCode::SERVICE_UNAVAILABLE, busy.to_string());
    let mut port = node.client().map_err(busy)?;
    port.send(ClientRequest::Sync { id: 0, request }).map_err(busy)?;
    match tokio::time::timeout(PATIENCE, port.recv()).await {
        Ok(Some(ClientReply::Sync { reply: SyncReply::Refused { reason, definite }, .. })) => {
            let code = if definite { StatusCode::CONFLICT } else { StatusCode::ACCEPTED };
            Err(answer(code, &json!({ "error": reason, "written": !definite })))
        }
        Ok(Some(ClientReply::Sync { reply, .. })) => Ok(reply),
        Ok(_) => Err(gone()),
        Err(_) => Err(refuse(StatusCode::GATEWAY_TIMEOUT, "the node gave no answer in time")),
    }
}

async fn ask_for(
    node: &WeakNode,
    request: SyncRequest,
    show: impl FnOnce(SyncReply) -> Option<Value>,
) -> Response {
    match ask(node, request).await.map(show) {
        Ok(Some(body)) => answer(StatusCode::OK, &body),
        Ok(None) => refuse(StatusCode::INTERNAL_SERVER_ERROR, "the node answered another question"),
        Err(refusal) => refusal,
    }
}

#[derive(Deserialize)]
struct KeyQuery {
    key: String,
}

async fn key(State(node): Node, Query(KeyQuery { key }): Query<KeyQuery>) -> Response {
    let request = SyncRequest::Get { key: Bytes::from(key.clone()), path: Vec::new() };
    let reply = match ask(&node, request).await {
        Ok(SyncReply::Value { view, kinds, siblings }) => (view, kinds, siblings),
        Ok(_) => return refuse(StatusCode::INTERNAL_SERVER_ERROR, "the node answered another question"),
        Err(refusal) => return refusal,
    };
    let (Some(view), kinds, siblings) = reply else {
        return refuse(StatusCode::NOT_FOUND, "there is no such key");
    };
    let kind = kinds.last().map(|kind| kind.name());
    let body = json!({ "key": key, "type": kind, "value": sync_json::view(&view), "siblings": siblings });
    answer(StatusCode::OK, &body)
}

#[derive(Deserialize)]
struct KeysQuery {
    #[serde(default)]
    prefix: String,
    after: Option<String>,
    #[serde(default)]
    limit: u32,
}

async fn keys(State(node): Node, Query(query): Query<KeysQuery>) -> Response {
    let (prefix, after) = (Bytes::from(query.prefix), query.after.map(Bytes::from));
    ask_for(&node, SyncRequest::List { prefix, after, limit: query.limit }, |reply| match reply {
        SyncReply::Keys { items, more } => {
            let item = |(key, view)| json!({ "key": sync_json::text(key), "value": sync_json::view(view) });
            let items: Vec<Value> = items.iter().map(|(key, view)| item((key, view))).collect();
            Some(json!({ "keys": items, "more": more }))
        }
        _ => None,
    })
    .await
}

async fn conflicts(State(node): Node) -> Response {
    ask_for(&node, SyncRequest::Conflicts { limit: 0 }, |reply| match reply {
        SyncReply::Conflicts { count, open, events } => {
            let event = |event: &dwcp_replica::sync::values::Conflict| {
                let siblings: Vec<String> = event.siblings.iter().map(ToString::to_string).collect();
                json!({
                    "key": sync_json::text(&event.key),
                    "by": event.by.to_string(),
                    "siblings": siblings,
                    "strategy": event.strategy,
                })
            };
            let events: Vec<Value> = events.iter().map(event).collect();
            Some(json!({ "conflict_count": count, "open": open, "newest": events }))
        }
        _ => None,
    })
    .await
}

async fn stand(State(node): Node) -> Response {
    ask_for(&node, SyncRequest::Stand, |reply| match reply {
        SyncReply::Stand { digest, applied, floor, conflicts, keys } => {
            let origin = |origin: dwcp_replica::sync::values::Origin| (origin.to_string(), applied.prefix(origin));
            let applied: std::collections::BTreeMap<_, _> = applied.iter().map(|(o, _)| origin(o)).collect();
            Some(json!({
                "digest": hex::encode(digest.0), "applied": applied, "floor": floor, "conflicts": conflicts, "keys": keys,
            }))
        }
        _ => None,
    })
    .await
}

async fn peers(State(node): Node) -> Response {
    let gone = || refuse(StatusCode::SERVICE_UNAVAILABLE, "the node has stopped");
    let Some(node) = node.upgrade() else { return gone() };
    let Ok(status) = node.status().await else { return gone() };
    let Some(sync) = status.sync else {
        return refuse(StatusCode::CONFLICT, "state sync is turned off on this node");
    };
    let peer = |peer: &dwcp_replica::sync::SyncPeerStatus| {
        json!({
            "id": peer.id.0,
            "lag_frames": peer.lag_frames,
            "lag_ms": peer.lag_ms,
            "last_exchange_ms": (peer.last_exchange_ms != u64::MAX).then_some(peer.last_exchange_ms),
            "bytes_in": peer.bytes_in,
            "exchanges": peer.exchanges,
            "bytes_out": peer.bytes_out,
            "withholds": peer.withholds,
            "fault": (!peer.fault.is_empty()).then_some(&peer.fault),
        })
    };
    let peers: Vec<Value> = sync.peers.iter().map(peer).collect();
    answer(StatusCode::OK, &json!({ "peers": peers, "frozen": sync.frozen }))
}

async fn state(State(node): Node, body: Body) -> Response {
    write_all(&node, &body, |value| sync_json::state(value).map(|writes| (writes, 0))).await
}

async fn write(State(node): Node, body: Body) -> Response {
    write_all(&node, &body, |value| {
        let wait = value.get("wait").and_then(Value::as_u64).unwrap_or(0);
        let wait = u8::try_from(wait).map_err(|_| "`wait` is at most 31 nodes".to_string())?;
        Ok((sync_json::writes(value)?, wait))
    })
    .await
}

type Asked = Result<(Vec<dwcp_replica::sync::values::Write>, u8), String>;

async fn write_all(node: &WeakNode, body: &[u8], read: impl FnOnce(&Value) -> Asked) -> Response {
    let value: Value = match serde_json::from_slice(body) {
        Ok(value) => value,
        Err(error) => return refuse(StatusCode::BAD_REQUEST, format!("no JSON: {error}")),
    };
    let timeout_ms = value.get("timeout_ms").and_then(Value::as_u64).unwrap_or(10_000).min(TIMEOUT_MS_MAX);
    let (writes, wait) = match read(&value) {
        Ok(asked) => asked,
        Err(reason) => return refuse(StatusCode::BAD_REQUEST, reason),
    };
    let timeout_ms = u32::try_from(timeout_ms).unwrap_or(u32::MAX);
    ask_for(node, SyncRequest::Write { writes, wait, timeout_ms }, |reply| match reply {
        SyncReply::Written(written) => Some(json!({
            "road": written.road.word(), "change": written.last, "nodes": written.nodes, "latency_us": written.latency_us,
        })),
        _ => None,
    })
    .await
}
