//! Changes as they come, a line of JSON for each: `{"key": ..., "exists": ..., "value": ...}`. The first line is `{"watching": ...}`
//! and says that nothing is missed from there on; an empty line says that nothing happened; `{"error": ...}` is the last one.
//!
//! A watch outlives what other connections may, so there are few at once, and probes always find a place.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::Body;
use axum::extract::{ConnectInfo, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use dwcp_replica::sync::values::View;
use dwcp_replica::{ClientReply, ClientRequest, SyncReply, SyncRequest};
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;

use super::{Asked, Node, gone, question, refuse};
use crate::client::ClientPort;
use crate::http::Lease;
use crate::sync_json;

/// Messages that wait for one reader; more wait in the node, which cuts off who does not read.
const MESSAGES_MAX: usize = 16;
/// Finds out that a reader has gone without a word.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Where watches are, and how many there may be.
#[derive(Clone, Debug)]
pub(super) struct Places(Arc<Semaphore>, usize);

impl Places {
    pub(super) fn new(watches_max: usize) -> Self {
        Self(Arc::new(Semaphore::new(watches_max)), watches_max)
    }
}

pub(super) async fn watch(
    State(node): Node,
    Extension(Places(places, watches_max)): Extension<Places>,
    ConnectInfo(lease): ConnectInfo<Lease>,
    asked: Asked,
) -> Response {
    let prefix = match question("watch", asked) {
        Ok(SyncRequest::Watch { prefix }) => prefix,
        Ok(_) => unreachable!("a question for a watch is one"),
        Err(refusal) => return *refusal,
    };
    let Ok(place) = places.try_acquire_owned() else {
        let reason = format!("{watches_max} watch here already: ask another node, or use gRPC");
        return refuse(StatusCode::SERVICE_UNAVAILABLE, reason);
    };
    let Some(node) = node.upgrade() else { return gone() };
    let request = SyncRequest::Watch { prefix: prefix.clone() };
    let opened = node.client().and_then(|port| {
        port.send(ClientRequest::Sync { id: 0, request })?;
        Ok(port)
    });
    drop(node);
    let port = match opened {
        Ok(port) => port,
        Err(busy) => return refuse(StatusCode::SERVICE_UNAVAILABLE, busy.to_string()),
    };
    lease.lasts();
    let (lines, read) = mpsc::channel(MESSAGES_MAX);
    tokio::spawn(tell(port, prefix, lines, place));
    let headers = [(header::CONTENT_TYPE, "application/x-ndjson"), (header::CONNECTION, "close")];
    (headers, Body::from_stream(ReceiverStream::new(read))).into_response()
}

type Lines = mpsc::Sender<Result<Bytes, std::convert::Infallible>>;

/// Until the reader is gone or the node ends the watch.
async fn tell(mut port: ClientPort, prefix: Bytes, lines: Lines, _place: OwnedSemaphorePermit) {
    let mut watching = Some(json!({ "watching": sync_json::text(&prefix) }));
    loop {
        let reply = tokio::select! {
            reply = port.recv() => reply,
            () = tokio::time::sleep(KEEP_ALIVE) => {
                if lines.send(Ok(Bytes::from_static(b"\n"))).await.is_err() {
                    return;
                }
                continue;
            }
            () = lines.closed() => return,
        };
        let (text, is_over) = match reply {
            Some(ClientReply::Sync { reply: SyncReply::Changed { items }, .. }) => {
                let all = watching.take().into_iter().chain(items.iter().map(change));
                (all.map(|line| format!("{line}\n")).collect::<String>(), false)
            }
            Some(ClientReply::Sync { reply: SyncReply::Refused { reason, .. }, .. }) => (last(&reason), true),
            _ => (
                last("the node has stopped, or this was read too slowly: watch again and read what changed"),
                true,
            ),
        };
        if lines.send(Ok(text.into())).await.is_err() || is_over {
            return;
        }
    }
}

fn change((key, view): &(Bytes, Option<View>)) -> Value {
    let value = view.as_ref().map(sync_json::view);
    json!({ "key": sync_json::text(key), "exists": value.is_some(), "value": value })
}

fn last(reason: &str) -> String {
    format!("{}\n", json!({ "error": reason }))
}
