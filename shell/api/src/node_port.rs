//! A running node as a [`Port`].

use crate::port::{Busy, Port, Replies, Requests};
use dwcp_base::{ClusterId, ReplicaId};
use dwcp_node::{ClientReplies, ClientRequests, NodeHandle};
use dwcp_replica::io::{ClientReply, ClientRequest};
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll};

impl Port for NodeHandle {
    type Requests = ClientRequests;
    type Replies = ClientReplies;

    fn identity(&self) -> (ClusterId, ReplicaId) {
        (self.cluster(), self.replica())
    }

    fn open(&self) -> Result<(ClientRequests, ClientReplies), Busy> {
        self.client().map(dwcp_node::ClientPort::split).map_err(|dwcp_node::Busy| Busy)
    }
}

impl Requests for ClientRequests {
    fn send(&self, request: ClientRequest) -> Result<(), Busy> {
        Self::send(self, request).map_err(|dwcp_node::Busy| Busy)
    }
}

impl Replies for ClientReplies {
    fn poll_recv(&mut self, context: &mut Context<'_>) -> Poll<Option<ClientReply>> {
        // Nothing is lost by dropping this future when it is not ready: a reply is taken only by the poll that
        // returns it.
        pin!(self.recv()).poll(context)
    }
}
