//! The `StateSync` service: convergent keys, asked of one node and answered by it. Who may ask is decided here, by the key
//! that the connection proved; what is asked is the core's matter.

use crate::listen::Peer;
use crate::port::{Port, Replies, Requests};
use crate::readers::{NOT_A_READER, Readership, ask, mixed_up};
use crate::server::Limits;
use crate::service::peer;
use crate::sync_convert as convert;
use bytes::Bytes;
use dwcp_base::ReplicaId;
use dwcp_proto::v3;
use dwcp_proto::v3::state_sync_server::StateSync;
use dwcp_replica::io::{ClientReply, ClientRequest};
use dwcp_replica::{SyncReply, SyncRequest};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::watch;
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

/// How much longer than the node itself the API waits for an answer.
const GRACE: Duration = Duration::from_secs(5);
/// The most that a write may wait, and what one waits that does not say, in milliseconds: the core's bounds.
const TIMEOUT_MS: (u32, u32) = (60_000, 10_000);

const NOT_A_WRITER: &str =
    "a convergent write needs a connection that proves the key of a writer or admin: connect with it";

pub(crate) struct SyncService<P> {
    port: Arc<P>,
    readership: Arc<Readership<P>>,
    limits: Limits,
    stopping: watch::Receiver<bool>,
}

impl<P: Port> SyncService<P> {
    pub fn new(
        port: Arc<P>,
        readership: Arc<Readership<P>>,
        limits: Limits,
        stopping: watch::Receiver<bool>,
    ) -> Self {
        Self { port, readership, limits, stopping }
    }

    async fn may_read(&self, peer: Peer) -> Result<(), Status> {
        let admitted = self.readership.admits(peer.key).await?;
        if admitted { Ok(()) } else { Err(Status::permission_denied(NOT_A_READER)) }
    }

    async fn may_write(&self, peer: Peer) -> Result<(), Status> {
        let admitted = self.readership.admits_writer(peer.key).await?;
        if admitted { Ok(()) } else { Err(Status::permission_denied(NOT_A_WRITER)) }
    }

    async fn ask(&self, patience: Duration, request: SyncRequest) -> Result<SyncReply, Status> {
        let request = ClientRequest::Sync { id: 0, request };
        match ask(&*self.port, patience, request).await? {
            ClientReply::Sync { reply: SyncReply::Refused { reason, definite: true }, .. } => {
                Err(Status::failed_precondition(reason))
            }
            ClientReply::Sync { reply: SyncReply::Refused { reason, .. }, .. } => {
                Err(Status::unknown(reason))
            }
            ClientReply::Sync { reply, .. } => Ok(reply),
            _ => Err(mixed_up()),
        }
    }

    async fn read<T>(&self, request: &Request<T>, asked: SyncRequest) -> Result<SyncReply, Status> {
        self.may_read(peer(request)?).await?;
        self.ask(self.limits.call_timeout, asked).await
    }
}

#[tonic::async_trait]
impl<P: Port> StateSync for SyncService<P> {
    type WatchStream = Watching<P::Requests, P::Replies>;

    async fn write(
        &self,
        request: Request<v3::SyncWriteRequest>,
    ) -> Result<Response<v3::SyncWritten>, Status> {
        self.may_write(peer(&request)?).await?;
        let request = request.into_inner();
        let timeout_ms = request.timeout_ms;
        let asked = convert::write(request).map_err(Status::invalid_argument)?;
        let within = if timeout_ms == 0 { TIMEOUT_MS.1 } else { timeout_ms.min(TIMEOUT_MS.0) };
        let patience = Duration::from_millis(within.into()) + GRACE;
        match self.ask(patience, asked).await? {
            SyncReply::Written(written) => Ok(Response::new(convert::written(written))),
            _ => Err(mixed_up()),
        }
    }

    async fn get(&self, request: Request<v3::SyncGetRequest>) -> Result<Response<v3::SyncValue>, Status> {
        let asked = convert::get(request.get_ref().clone());
        match self.read(&request, asked).await? {
            SyncReply::Value { view, kinds, siblings } => Ok(Response::new(v3::SyncValue {
                view: view.as_ref().map(convert::view),
                kinds: kinds.iter().map(ToString::to_string).collect(),
                siblings,
            })),
            _ => Err(mixed_up()),
        }
    }

    async fn list(&self, request: Request<v3::SyncListRequest>) -> Result<Response<v3::SyncKeys>, Status> {
        let asked = convert::list(request.get_ref().clone());
        match self.read(&request, asked).await? {
            SyncReply::Keys { items, more } => {
                let items = items.into_iter().map(|(key, view)| convert::item((key, Some(view)))).collect();
                Ok(Response::new(v3::SyncKeys { items, more }))
            }
            _ => Err(mixed_up()),
        }
    }

    async fn watch(
        &self,
        request: Request<v3::SyncWatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        self.may_read(peer(&request)?).await?;
        let asked = convert::watch(request.into_inner());
        let busy = |busy: crate::Busy| Status::resource_exhausted(busy.to_string());
        let (requests, replies) = self.port.open().map_err(busy)?;
        requests.send(ClientRequest::Sync { id: 0, request: asked }).map_err(busy)?;
        let mut stopping = self.stopping.clone();
        let stop = Box::pin(async move {
            let _ = stopping.wait_for(|stop| *stop).await;
        });
        Ok(Response::new(Watching { replies, _requests: Box::new(requests), stop, over: false }))
    }

    async fn conflicts(
        &self,
        request: Request<v3::SyncConflictsRequest>,
    ) -> Result<Response<v3::SyncConflicts>, Status> {
        let asked = convert::conflicts(*request.get_ref());
        match self.read(&request, asked).await? {
            SyncReply::Conflicts { count, open, events } => {
                let events = events.into_iter().map(convert::conflict).collect();
                Ok(Response::new(v3::SyncConflicts { count, open, events }))
            }
            _ => Err(mixed_up()),
        }
    }

    async fn stand(
        &self,
        request: Request<v3::SyncStandRequest>,
    ) -> Result<Response<v3::SyncStanding>, Status> {
        match self.read(&request, convert::stand(*request.get_ref())).await? {
            SyncReply::Stand { digest, applied, floor, conflicts, keys } => {
                let origins = applied.iter().map(|(origin, _)| v3::SyncApplied {
                    origin: origin.to_string(),
                    last: applied.prefix(origin),
                });
                let digest = Bytes::copy_from_slice(&digest.0);
                let applied = origins.collect();
                Ok(Response::new(v3::SyncStanding { digest, applied, floor, conflicts, keys }))
            }
            _ => Err(mixed_up()),
        }
    }

    async fn compare(
        &self,
        request: Request<v3::SyncCompareRequest>,
    ) -> Result<Response<v3::SyncCompared>, Status> {
        let asked = convert::compare(request.get_ref().clone()).map_err(Status::invalid_argument)?;
        match self.read(&request, asked).await? {
            SyncReply::Compared { level, differs, silent } => {
                let ids = |ids: Vec<ReplicaId>| ids.into_iter().map(|id| id.0.into()).collect();
                let (level, differs, silent) = (ids(level), ids(differs), ids(silent));
                Ok(Response::new(v3::SyncCompared { level, differs, silent }))
            }
            _ => Err(mixed_up()),
        }
    }
}

/// What one watcher hears. Its place in the node lives as long as this; the node cuts off one that does not read.
pub(crate) struct Watching<Q, R> {
    replies: R,
    _requests: Box<Q>,
    stop: Pin<Box<dyn Future<Output = ()> + Send>>,
    over: bool,
}

impl<Q: Requests, R: Replies> Stream for Watching<Q, R> {
    type Item = Result<v3::SyncChanges, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.over {
            return Poll::Ready(None);
        }
        let end = match self.replies.poll_recv(context) {
            Poll::Ready(Some(ClientReply::Sync { reply: SyncReply::Changed { items }, .. })) => {
                let items = items.into_iter().map(convert::item).collect();
                return Poll::Ready(Some(Ok(v3::SyncChanges { items })));
            }
            Poll::Ready(Some(ClientReply::Sync { reply: SyncReply::Refused { reason, .. }, .. })) => {
                Status::failed_precondition(reason)
            }
            Poll::Ready(Some(_)) => mixed_up(),
            Poll::Ready(None) => Status::unavailable(
                "cut off: this client reads too slowly, or the node has stopped; watch again and read what changed",
            ),
            Poll::Pending if self.stop.as_mut().poll(context).is_ready() => {
                Status::unavailable("the node is stopping: ask another one")
            }
            Poll::Pending => return Poll::Pending,
        };
        self.over = true;
        Poll::Ready(Some(Err(end)))
    }
}
