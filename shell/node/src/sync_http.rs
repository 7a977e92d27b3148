//! Convergent keys as JSON over plain HTTP, where the settings turn it on. Whoever reaches the port may read, or also write;
//! so writing is served on loopback addresses alone, and to no web page. Clients elsewhere speak gRPC.
//!
//! `GET /v3/sync/key?key=K&field=F`, `keys?prefix=P&after=K&limit=N`, `watch?prefix=P` (a line for each change), `conflicts?limit=N`,
//! `peers`, `converged?within_ms=T`, `stand`, `metrics`; `POST /v3/sync/state` with `{"key": value}`, `POST /v3/sync/write` with
//! `{"writes": [...], "wait": k, "timeout_ms": t}`. What is wrong with a question is told as `{"error": "..."}`.

mod watch;

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes as Body;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use axum::{Extension, Router};
use dwcp_base::ReplicaId;
use dwcp_replica::{ClientReply, ClientRequest, SyncReply, SyncRequest};
use serde_json::{Value, json};

use crate::node::WeakNode;
use crate::settings::SyncHttp;
use crate::sync_json;
use crate::sync_question::{self, Parameters};

/// A write that does not fit one frame is refused anyway.
const BODY_BYTES_MAX: usize = 1 << 20;
/// Longer than the core lets anything wait.
const PATIENCE: Duration = Duration::from_secs(20);

const OFF: &str =
    "convergent keys are not served here: set sync.http to \"read\" or \"write\" in this node's settings";
const READ_ONLY: &str =
    "this node takes no writes over HTTP: set sync.http to \"write\" in its settings, or use gRPC";
const NO_PAGES: &str =
    "web pages may not write here: a page could write for whoever looks at it; send no Origin header";

type Node = State<Arc<WeakNode>>;
type Refused = Box<Response>;

pub(crate) fn routes(allowed: SyncHttp, watches_max: usize) -> Router<Arc<WeakNode>> {
    if allowed == SyncHttp::Off {
        return Router::new().route("/v3/sync/{*all}", any(async || refuse(StatusCode::NOT_FOUND, OFF)));
    }
    let router = Router::new()
        .route("/v3/sync/key", get(key))
        .route("/v3/sync/keys", get(keys))
        .route("/v3/sync/watch", get(watch::watch))
        .route("/v3/sync/conflicts", get(conflicts))
        .route("/v3/sync/peers", get(peers))
        .route("/v3/sync/converged", get(converged))
        .route("/v3/sync/metrics", get(metrics))
        .route("/v3/sync/stand", get(stand))
        .layer(Extension(watch::Places::new(watches_max)));
    if allowed == SyncHttp::Read {
        let refused = async || refuse(StatusCode::FORBIDDEN, READ_ONLY);
        return router.route("/v3/sync/state", post(refused)).route("/v3/sync/write", post(refused));
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

fn gone() -> Response {
    refuse(StatusCode::SERVICE_UNAVAILABLE, "the node has stopped")
}

/// What was asked with which parameters.
type Asked = Result<Query<Vec<(String, String)>>, QueryRejection>;

fn bad(reason: String) -> Refused {
    Box::new(refuse(StatusCode::BAD_REQUEST, reason))
}

/// The request of the question of this name.
fn question(name: &str, asked: Asked) -> Result<SyncRequest, Refused> {
    sync_question::of(name, pairs(asked)?).map_err(bad)
}

fn pairs(asked: Asked) -> Result<sync_question::Pairs, Refused> {
    asked.map(|Query(pairs)| pairs).map_err(|error| bad(sync_question::unreadable(&error)))
}

/// # Errors
/// The refusal, as it is answered.
async fn ask(node: &WeakNode, request: SyncRequest) -> Result<SyncReply, Refused> {
    let node = node.upgrade().ok_or_else(|| Box::new(gone()))?;
    let busy = |busy: crate::Busy| Box::new(refuse(StatusCode::SERVICE_UNAVAILABLE, busy.to_string()));
    let mut port = node.client().map_err(busy)?;
    port.send(ClientRequest::Sync { id: 0, request }).map_err(busy)?;
    match tokio::time::timeout(PATIENCE, port.recv()).await {
        Ok(Some(ClientReply::Sync { reply: SyncReply::Refused { reason, definite }, .. })) => {
            let code = if definite { StatusCode::CONFLICT } else { StatusCode::ACCEPTED };
            Err(Box::new(answer(code, &json!({ "error": reason, "written": !definite }))))
        }
        Ok(Some(ClientReply::Sync { reply, .. })) => Ok(reply),
        Ok(_) => Err(Box::new(gone())),
        Err(_) => Err(Box::new(refuse(StatusCode::GATEWAY_TIMEOUT, "the node gave no answer in time"))),
    }
}

async fn ask_for(
    node: &WeakNode,
    request: Result<SyncRequest, Refused>,
    show: impl FnOnce(SyncReply) -> Option<Value>,
) -> Response {
    let request = match request {
        Ok(request) => request,
        Err(refusal) => return *refusal,
    };
    match ask(node, request).await.map(show) {
        Ok(Some(body)) => answer(StatusCode::OK, &body),
        Ok(None) => refuse(StatusCode::INTERNAL_SERVER_ERROR, "the node answered another question"),
        Err(refusal) => *refusal,
    }
}

async fn key(State(node): Node, asked: Asked) -> Response {
    let (key, path) = match question("key", asked) {
        Ok(SyncRequest::Get { key, path }) => (key, path),
        Ok(_) => unreachable!("a question for a key is one for a value"),
        Err(refusal) => return *refusal,
    };
    let shown: Vec<String> = path.iter().map(|name| sync_json::text(name)).collect();
    match ask(&node, SyncRequest::Get { key: key.clone(), path }).await {
        Ok(SyncReply::Value { view: Some(view), kinds, siblings }) => {
            let types: Vec<&str> = kinds.iter().map(|kind| kind.name()).collect();
            let body = json!({
                "key": sync_json::text(&key), "path": shown, "type": types.last(), "types": types,
                "value": sync_json::view(&view), "siblings": siblings,
            });
            answer(StatusCode::OK, &body)
        }
        Ok(SyncReply::Value { .. }) => refuse(StatusCode::NOT_FOUND, "there is no such key"),
        Ok(_) => refuse(StatusCode::INTERNAL_SERVER_ERROR, "the node answered another question"),
        Err(refusal) => *refusal,
    }
}

async fn keys(State(node): Node, asked: Asked) -> Response {
    ask_for(&node, question("keys", asked), |reply| match reply {
        SyncReply::Keys { items, more } => {
            let item = |(key, view)| json!({ "key": sync_json::text(key), "value": sync_json::view(view) });
            let items: Vec<Value> = items.iter().map(|(key, view)| item((key, view))).collect();
            Some(json!({ "keys": items, "more": more }))
        }
        _ => None,
    })
    .await
}

async fn conflicts(State(node): Node, asked: Asked) -> Response {
    ask_for(&node, question("conflicts", asked), |reply| match reply {
        SyncReply::Conflicts { count, open, events } => {
            let events: Vec<Value> = events.iter().map(sync_json::conflict).collect();
            Some(json!({ "conflict_count": count, "open": open, "newest": events }))
        }
        _ => None,
    })
    .await
}

async fn stand(State(node): Node, asked: Asked) -> Response {
    ask_for(&node, question("stand", asked), |reply| match reply {
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

/// Do all peers hold exactly what this node holds?
async fn converged(State(node): Node, asked: Asked) -> Response {
    ask_for(&node, question("converged", asked), |reply| match reply {
        SyncReply::Compared { level, differs, silent } => {
            let ids = |ids: &[ReplicaId]| ids.iter().map(|id| id.0).collect::<Vec<_>>();
            Some(json!({
                "converged": differs.is_empty() && silent.is_empty(),
                "level": ids(&level), "differs": ids(&differs), "silent": ids(&silent),
            }))
        }
        _ => None,
    })
    .await
}

/// What the node says of its part in state sync.
async fn status(
    node: &WeakNode,
    asked: Asked,
    show: impl FnOnce(&dwcp_replica::io::Status, &dwcp_replica::SyncStatus) -> Value,
) -> Response {
    let none = pairs(asked).and_then(|pairs| Parameters::of(pairs, &[]).map_err(bad));
    if let Err(refusal) = none {
        return *refusal;
    }
    let Some(node) = node.upgrade() else { return gone() };
    let Ok(status) = node.status().await else { return gone() };
    match &status.sync {
        Some(sync) => answer(StatusCode::OK, &show(&status, sync)),
        None => refuse(StatusCode::CONFLICT, "state sync is turned off on this node"),
    }
}

async fn metrics(State(node): Node, asked: Asked) -> Response {
    status(&node, asked, |status, sync| {
        json!({
            "mode": status.mode.word(),
            "sync_count": sync.sync_count,
            "last_sync_unix_ms": (sync.last_sync_unix_ms > 0).then_some(sync.last_sync_unix_ms),
            "avg_sync_latency_us": sync.avg_sync_latency_us,
            "conflict_count": sync.conflict_count,
            "conflicts_open": sync.conflicts_open,
            "refused": sync.refused.iter().cloned().collect::<std::collections::BTreeMap<_, _>>(),
        })
    })
    .await
}

async fn peers(State(node): Node, asked: Asked) -> Response {
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
    status(
        &node,
        asked,
        |_, sync| json!({ "peers": sync.peers.iter().map(peer).collect::<Vec<_>>(), "frozen": sync.frozen }),
    )
    .await
}

type Sent = Result<Body, BytesRejection>;

async fn state(State(node): Node, headers: HeaderMap, body: Sent) -> Response {
    write_all(&node, &headers, body, sync_question::state).await
}

async fn write(State(node): Node, headers: HeaderMap, body: Sent) -> Response {
    write_all(&node, &headers, body, sync_question::write).await
}

async fn write_all(
    node: &WeakNode,
    headers: &HeaderMap,
    body: Sent,
    read: fn(&[u8]) -> Result<SyncRequest, String>,
) -> Response {
    // Browsers name the page that makes them write; programs do not. Reaching a loopback address is no proof of who asks.
    if headers.contains_key(header::ORIGIN) {
        return refuse(StatusCode::FORBIDDEN, NO_PAGES);
    }
    let body = match body {
        Ok(body) => body,
        Err(error) => return refuse(error.status(), format!("{error}: one write takes 255 KiB, split it")),
    };
    let request = match read(&body) {
        Ok(request) => request,
        Err(reason) => return refuse(StatusCode::BAD_REQUEST, reason),
    };
    ask_for(node, Ok(request), |reply| match reply {
        SyncReply::Written(written) => Some(json!({
            "road": written.road.word(), "change": written.last, "nodes": written.nodes, "latency_us": written.latency_us,
        })),
        _ => None,
    })
    .await
}
