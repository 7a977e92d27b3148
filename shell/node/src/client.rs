//! One client connection as the API sees it: requests in, replies out, both bounded in bytes.
//!
//! A client that sends faster than the core takes is told `Busy`; one that reads slower than the core answers is cut
//! off: its replies end, and what it asked is answered to whoever asks again. Dropping both ends of a port tells the
//! core that the client is gone. What requests and replies mean is not known here.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use dwcp_replica::{ClientId, ClientReply, ClientRequest};
use dwcp_state::Outcome;
use tokio::sync::mpsc;

use crate::inbox::Inbox;
use crate::metrics::Metrics;

/// Charged for each reply on top of its bytes.
const REPLY_OVERHEAD_BYTES: usize = 256;

/// The node takes nothing more at the moment: wait, or ask another node. What was asked was definitely not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this node is busy: not applied; wait a little or ask another node")]
pub struct Busy;

/// A client's connection to the core.
#[derive(Debug)]
pub struct ClientPort {
    requests: ClientRequests,
    replies: ClientReplies,
}

/// The sending half. Clones speak for the same client.
#[derive(Clone, Debug)]
pub struct ClientRequests {
    place: Arc<Place>,
}

/// The receiving half.
#[derive(Debug)]
pub struct ClientReplies {
    replies: mpsc::UnboundedReceiver<ClientReply>,
    waiting_bytes: Arc<AtomicUsize>,
    /// Keeps the client known for as long as somebody reads.
    _place: Arc<Place>,
}

/// Held by whoever still uses the port; the last one to let go tells the core.
#[derive(Debug)]
struct Place {
    client: ClientId,
    inbox: Arc<Inbox>,
    metrics: Arc<Metrics>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.inbox.close_client(self.client);
    }
}

impl ClientPort {
    pub(crate) fn open(
        client: ClientId,
        inbox: Arc<Inbox>,
        metrics: &Arc<Metrics>,
        replies_bytes_max: usize,
    ) -> Result<Self, Busy> {
        let (sender, receiver) = reply_channel(replies_bytes_max);
        inbox.open_client(client, sender)?;
        let place = Arc::new(Place { client, inbox, metrics: metrics.clone() });
        let ReplyReceiver { replies, waiting_bytes } = receiver;
        let replies = ClientReplies { replies, waiting_bytes, _place: place.clone() };
        Ok(Self { requests: ClientRequests { place }, replies })
    }

    /// Hands a request to the core. Never waits.
    ///
    /// # Errors
    /// [`Busy`]: the request was not taken.
    pub fn send(&self, request: ClientRequest) -> Result<(), Busy> {
        self.requests.send(request)
    }

    /// The next reply; `None` when this client was cut off or the node has stopped.
    pub async fn recv(&mut self) -> Option<ClientReply> {
        self.replies.recv().await
    }

    /// Both halves, for tasks of their own.
    pub fn split(self) -> (ClientRequests, ClientReplies) {
        (self.requests, self.replies)
    }
}

impl ClientRequests {
    /// As [`ClientPort::send`].
    ///
    /// # Errors
    /// [`Busy`]: the request was not taken.
    pub fn send(&self, request: ClientRequest) -> Result<(), Busy> {
        let sent = self.place.inbox.push_client(self.place.client, request);
        sent.inspect_err(|_| self.place.metrics.requests_busy.add(1))
    }

    pub fn id(&self) -> ClientId {
        self.place.client
    }
}

impl ClientReplies {
    /// As [`ClientPort::recv`].
    pub async fn recv(&mut self) -> Option<ClientReply> {
        let reply = self.replies.recv().await?;
        self.waiting_bytes.fetch_sub(reply_bytes(&reply), Ordering::AcqRel);
        Some(reply)
    }
}

/// The core's end of a client.
#[derive(Debug)]
pub(crate) struct ReplySender {
    replies: mpsc::UnboundedSender<ClientReply>,
    /// The bound of the channel: bytes handed over and not yet received.
    waiting_bytes: Arc<AtomicUsize>,
    bytes_max: usize,
}

#[derive(Debug)]
pub(crate) struct ReplyReceiver {
    replies: mpsc::UnboundedReceiver<ClientReply>,
    waiting_bytes: Arc<AtomicUsize>,
}

pub(crate) fn reply_channel(bytes_max: usize) -> (ReplySender, ReplyReceiver) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let waiting_bytes = Arc::new(AtomicUsize::new(0));
    let sender = ReplySender { replies: sender, waiting_bytes: waiting_bytes.clone(), bytes_max };
    (sender, ReplyReceiver { replies: receiver, waiting_bytes })
}

/// The client must be cut off: it does not read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TooSlow;

impl ReplySender {
    /// A client that is gone takes replies to nowhere; that is told apart from one that does not read.
    pub(crate) fn send(&self, reply: ClientReply) -> Result<(), TooSlow> {
        let bytes = reply_bytes(&reply);
        let waiting = self.waiting_bytes.fetch_add(bytes, Ordering::AcqRel);
        // One reply may always wait, however large.
        if waiting > 0 && waiting + bytes > self.bytes_max {
            return Err(TooSlow);
        }
        let _ = self.replies.send(reply);
        Ok(())
    }
}

fn reply_bytes(reply: &ClientReply) -> usize {
    let outcome_bytes = |outcome: &Outcome| match outcome {
        Outcome::Done(bytes) => bytes.len(),
        Outcome::Refused(_) => 0,
    };
    REPLY_OVERHEAD_BYTES
        + match reply {
            ClientReply::Executed(executed) => {
                executed.results.iter().map(|result| 64 + outcome_bytes(&result.outcome)).sum::<usize>()
                    + executed.path.len() * 32
            }
            ClientReply::Query { outcome, .. } => match outcome {
                Ok(answered) => answered.bytes.len(),
                Err(refused) => refused.reason.len(),
            },
            // A status names every peer and counter.
            ClientReply::Status { .. } => 8 * 1024,
            ClientReply::Malformed { reason } => reason.len(),
            ClientReply::Sync { reply, .. } => reply.bytes(),
            ClientReply::Refused { .. } | ClientReply::Busy { .. } | ClientReply::Order { .. } => 0,
        }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dwcp_base::{Position, View};
    use dwcp_replica::{Answered, ReadLabel};

    fn reply(length: usize) -> ClientReply {
        let answered = Answered {
            bytes: vec![0; length].into(),
            label: ReadLabel::Stale,
            position: Position(0),
            view: View(0),
        };
        ClientReply::Query { id: 1, outcome: Ok(answered) }
    }

    #[test]
    fn replies_are_bounded_in_bytes_and_reading_makes_room() {
        let (sender, receiver) = reply_channel(1000);
        let inbox = Arc::new(Inbox::new(crate::settings::tests_queues(), 1));
        let place = Arc::new(Place { client: ClientId(0), inbox, metrics: Arc::default() });
        let ReplyReceiver { replies, waiting_bytes } = receiver;
        let mut receiver = ClientReplies { replies, waiting_bytes, _place: place };
        sender.send(reply(5000)).expect("one always waits");
        assert_eq!(sender.send(reply(0)), Err(TooSlow));

        let (sender, second) = reply_channel(1000);
        receiver.replies = second.replies;
        receiver.waiting_bytes = second.waiting_bytes;
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        for _ in 0..100 {
            sender.send(reply(600)).unwrap();
            assert!(runtime.block_on(receiver.recv()).is_some());
        }
        drop(sender);
        assert!(runtime.block_on(receiver.recv()).is_none(), "cut off");
    }

    #[test]
    fn the_last_half_to_go_tells_the_core() {
        let inbox = Arc::new(Inbox::new(crate::settings::tests_queues(), 1));
        let port = ClientPort::open(ClientId(7), inbox.clone(), &Arc::default(), 1000).unwrap();
        let (requests, replies) = port.split();
        drop(replies);
        requests.send(ClientRequest::Status { id: 1 }).unwrap();
        drop(requests);
        let mut burst = Vec::new();
        inbox.take(std::time::Duration::ZERO, &mut burst);
        assert_eq!(burst.len(), 3, "opened, asked, gone: {burst:?}");
        assert_eq!(inbox.depth().clients, 0);
    }
}
