//! The four calls of `dwcp.v3`. A stream gets a place in the node for as long as it lives; a single call gets one for
//! its one question.

use crate::convert::{self, Item};
use crate::gate::Gate;
use crate::listen::Peer;
use crate::port::Port;
use crate::readers::{NOT_A_READER, Readership, ask, mixed_up};
use crate::server::Limits;
use crate::session::{Outbound, Visitor};
use dwcp_proto::v3::dwcp_server::Dwcp;
use dwcp_proto::v3::{
    ClientMessage, OrderReply, OrderRequest, QueryReply, QueryRequest, StatusReply, StatusRequest,
};
use dwcp_replica::io::ClientRequest;
use dwcp_state::CHALLENGE_BYTES;
use std::sync::Arc;
use tokio::sync::watch;
use tonic::{Request, Response, Status, Streaming};

pub(crate) struct Service<P> {
    port: Arc<P>,
    readership: Arc<Readership<P>>,
    limits: Limits,
    stopping: watch::Receiver<bool>,
}

impl<P: Port> Service<P> {
    pub fn new(
        port: Arc<P>,
        readership: Arc<Readership<P>>,
        limits: Limits,
        stopping: watch::Receiver<bool>,
    ) -> Self {
        Self { port, readership, limits, stopping }
    }

    async fn ask(&self, request: ClientRequest) -> Result<Item, Status> {
        ask(&*self.port, self.limits.call_timeout, request).await.map(Item::of)
    }
}

pub(crate) fn peer<T>(request: &Request<T>) -> Result<Peer, Status> {
    request.extensions().get::<Peer>().cloned().ok_or_else(|| Status::internal("the connection is not known"))
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
        let gate = Gate::new(self.port.identity(), challenge, self.limits.attaches_max);
        let (requests, replies) =
            self.port.open().map_err(|busy| Status::resource_exhausted(busy.to_string()))?;
        let stopping = self.stopping.clone();
        let stream = Outbound::start(
            request.into_inner(),
            requests,
            replies,
            Visitor { peer, readership: self.readership.clone(), gate, challenge },
            self.limits.clone(),
            stopping,
        );
        Ok(Response::new(stream))
    }

    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusReply>, Status> {
        match self.ask(ClientRequest::Status { id: request.into_inner().id }).await? {
            Item::Status(mut reply) => {
                self.port.add_hints(&mut reply);
                Ok(Response::new(*reply))
            }
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
        if !self.readership.admits(peer(&request)?.key).await? {
            return Err(Status::permission_denied(NOT_A_READER));
        }
        let question = match convert::question(request.into_inner()) {
            Ok(question) => question,
            Err(unanswered) => return Ok(Response::new(unanswered)),
        };
        match self.ask(question).await? {
            Item::Query(reply) => Ok(Response::new(reply)),
            _ => Err(mixed_up()),
        }
    }
}
