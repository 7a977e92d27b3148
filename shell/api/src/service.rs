//! The four calls of `dwcp.v3`. A stream gets a place in the node for as long as it lives; a single call gets one for
//! its one question.

use crate::convert::Item;
use crate::gate::Gate;
use crate::listen::{Peer, PeerKey};
use crate::port::{Port, Replies, Requests};
use crate::server::{Limits, Readers};
use crate::session::Outbound;
use dwcp_proto::v3::dwcp_server::Dwcp;
use dwcp_proto::v3::{
    ClientMessage, OrderReply, OrderRequest, QueryReply, QueryRequest, StatusReply, StatusRequest,
};
use dwcp_replica::io::ClientRequest;
use dwcp_state::CHALLENGE_BYTES;
use std::future::poll_fn;
use std::sync::Arc;
use tokio::sync::watch;
use tokio::time::timeout;
use tonic::{Request, Response, Status, Streaming};

pub(crate) struct Service<P> {
    port: Arc<P>,
    readers: Readers,
    limits: Limits,
    stopping: watch::Receiver<bool>,
}

/// What a reader without a known key is told.
pub(crate) const NOT_A_READER: &str = "a stale read needs a connection that proves a known principal's key: connect with it, or read in a session";

impl<P: Port> Service<P> {
    pub fn new(port: Arc<P>, readers: Readers, limits: Limits, stopping: watch::Receiver<bool>) -> Self {
        Self { port, readers, limits, stopping }
    }

    fn may_read(&self, peer: &Peer) -> bool {
        match (&self.readers, peer.key) {
            (Readers::Anybody, _) | (_, PeerKey::Local) => true,
            (Readers::Keys(keys), PeerKey::Proven(key)) => keys.contains(&key.0),
            (Readers::Keys(_), PeerKey::Anonymous) => false,
        }
    }

    /// Puts one question in a place of its own and waits for its answer.
    async fn ask(&self, request: ClientRequest) -> Result<Item, Status> {
        let busy = |busy: crate::Busy| Status::resource_exhausted(busy.to_string());
        let (requests, mut replies) = self.port.open().map_err(busy)?;
        requests.send(request).map_err(busy)?;
        let answer = timeout(self.limits.call_timeout, poll_fn(|context| replies.poll_recv(context))).await;
        match answer {
            Ok(Some(reply)) => Ok(Item::of(reply)),
            Ok(None) => Err(Status::unavailable("the node is stopping: ask another one")),
            Err(_) => Err(Status::deadline_exceeded("the node gave no answer in time: ask another one")),
        }
    }
}

fn peer<T>(request: &Request<T>) -> Result<Peer, Status> {
    request.extensions().get::<Peer>().cloned().ok_or_else(|| Status::internal("the connection is not known"))
}

/// A place of its own gets only the answer to its question; anything else is this node's mistake.
fn mixed_up() -> Status {
    Status::internal("the node answered another question")
}

#[tonic::async_trait]
impl<P: Port> Dwcp for Service<P> {
    type SessionStream = Outbound<P::Replies>;

    async fn session(
        &self,
        request: Request<Streaming<ClientMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let peer = peer(&request)?;
        let mut challenge = [0; CHALLENGE_BYTES];
        getrandom::fill(&mut challenge).map_err(|error| {
            Status::unavailable(format!("this node has no randomness ({error}): ask another one"))
        })?;
        let gate = Gate::new(self.port.identity(), challenge, self.may_read(&peer), self.limits.attaches_max);
        let (requests, replies) =
            self.port.open().map_err(|busy| Status::resource_exhausted(busy.to_string()))?;
        let stopping = self.stopping.clone();
        let stream = Outbound::start(
            request.into_inner(),
            requests,
            replies,
            peer.cut,
            (gate, challenge),
            self.limits.clone(),
            stopping,
        );
        Ok(Response::new(stream))
    }

    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusReply>, Status> {
        match self.ask(ClientRequest::Status { id: request.into_inner().id }).await? {
            Item::Status(reply) => Ok(Response::new(*reply)),
            _ => Err(mixed_up()),
        }
    }

    async fn submit_order(&self, request: Request<OrderRequest>) -> Result<Response<OrderReply>, Status> {
        let OrderRequest { id, order } = request.into_inner();
        match self.ask(ClientRequest::Order { id, bytes: order }).await? {
            Item::Order(reply) => Ok(Response::new(reply)),
            _ => Err(mixed_up()),
        }
    }

    async fn query(&self, request: Request<QueryRequest>) -> Result<Response<QueryReply>, Status> {
        if !self.may_read(&peer(&request)?) {
            return Err(Status::permission_denied(NOT_A_READER));
        }
        let QueryRequest { id, query } = request.into_inner();
        match self.ask(ClientRequest::Query { id, bytes: query }).await? {
            Item::Query(reply) => Ok(Response::new(reply)),
            _ => Err(mixed_up()),
        }
    }
}
