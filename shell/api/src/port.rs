//! The node as the API sees it: a place per client, into which requests go and out of which replies come.
//! Tests put an in-memory node behind it; `node_port` the real one.

use dwcp_base::{ClusterId, ReplicaId};
use dwcp_proto::v3::StatusReply;
use dwcp_replica::io::{ClientReply, ClientRequest};
use std::task::{Context, Poll};

/// The node takes nothing more at the moment. What was asked was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this node is busy: not applied; wait a little or ask another node")]
pub struct Busy;

/// A node that takes clients.
pub trait Port: Send + Sync + 'static {
    type Requests: Requests;
    type Replies: Replies;

    /// Which replica of which cluster this is; a proof of a session's key names both.
    fn identity(&self) -> (ClusterId, ReplicaId);

    /// A place for one more client. It ends when both halves are dropped.
    ///
    /// # Errors
    /// [`Busy`] when there are too many.
    fn open(&self) -> Result<(Self::Requests, Self::Replies), Busy>;

    /// Adds what the core does not know: how the other members seem to this node.
    fn add_hints(&self, _reply: &mut StatusReply) {}
}

/// The half that takes requests. Never waits.
pub trait Requests: Send + Sync + 'static {
    /// # Errors
    /// [`Busy`]: the request was not taken.
    fn send(&self, request: ClientRequest) -> Result<(), Busy>;
}

/// The half that gives replies. Bounded by the node, which ends it when the client does not read.
pub trait Replies: Send + Unpin + 'static {
    /// `None`: cut off, or the node has stopped.
    fn poll_recv(&mut self, context: &mut Context<'_>) -> Poll<Option<ClientReply>>;
}
