//! A running node as a [`Port`].

use crate::port::{Busy, Port, Replies, Requests};
use dwcp_base::{ClusterId, ReplicaId};
use dwcp_node::{ClientReplies, ClientRequests, NodeHandle};
use dwcp_proto::v3::{Counter, HintStatus, StatusReply};
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

    fn add_hints(&self, reply: &mut StatusReply) {
        let report = self.hints();
        let told = |hint: &dwcp_node::Hint| HintStatus {
            id: hint.replica.0.into(),
            standing: hint.standing.word().into(),
            since_ms: report.now.since(hint.since).0 / 1000,
            dialled: report.dialled.get(&hint.replica.0).cloned().unwrap_or_default(),
            address: hint.address.clone().unwrap_or_default(),
        };
        reply.hints = report.hints.iter().map(told).collect();
        let drops = report.drops.iter().map(|(reason, count)| (reason.label(), count));
        let drops = drops.chain([("overflow", report.overflows)]).filter(|(_, count)| *count > 0);
        reply.hint_drops = drops.map(|(name, value)| Counter { name: name.into(), value }).collect();
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
