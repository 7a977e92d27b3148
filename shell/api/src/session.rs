//! One client's stream: a task that carries what comes in to the node, and [`Outbound`], which gathers what the node
//! answers into as few messages as the client's reading allows.
//!
//! In: nothing is read while the node has no room, so the client's own window fills and it waits. Out: the node bounds
//! what waits for a client; a client that takes nothing for `slow_reader_timeout` is cut, connection and all.

use crate::convert::{self, Item};
use crate::gate::{Attached, Challenge, Gate, NOT_ATTACHED};
use crate::listen::Peer;
use crate::port::{Port, Replies, Requests};
use crate::readers::{NOT_A_READER, Readership};
use crate::server::Limits;
use bytes::Bytes;
use dwcp_proto::v3::{ClientMessage, ServerMessage, StatusRequest};
use dwcp_proto::{MESSAGE_BYTES_SOFT, MESSAGE_ITEMS_MAX};
use dwcp_replica::io::ClientRequest;
use dwcp_replica::{Advice, OrderOutcome};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tokio::time::{interval, sleep};
use tokio_stream::Stream;
use tonic::{Status, Streaming};

/// Answers given by the API itself that wait to be sent. At the bound the stream is not read on.
const OWN_ANSWERS_MAX: usize = 256;

/// What a client is told that wants to be acknowledged in a way this node does not know.
const UNKNOWN_ACK: &str =
    "it wants an acknowledgement that this node does not know: not applied; upgrade the node";

/// How long to wait before the node is offered again what it had no room for; doubles up to the second.
const BUSY_PAUSE: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(20));

/// Who is at the other end of a stream, and what that one may do.
#[derive(Debug)]
pub(crate) struct Visitor<P> {
    pub peer: Peer,
    pub readership: Arc<Readership<P>>,
    pub gate: Gate,
    pub challenge: Challenge,
}

/// What both directions of a stream share.
#[derive(Debug)]
struct Shared {
    began: Instant,
    /// When a message was handed over that has not been followed by another poll; 0 when there is none. Milliseconds
    /// after `began`, plus one.
    handed_over_ms: AtomicU64,
    /// Questions without answer.
    questions: AtomicUsize,
    /// The outgoing direction is over.
    ended: AtomicBool,
}

/// The outgoing direction.
pub(crate) struct Outbound<R> {
    /// Not yet told.
    challenge: Option<Challenge>,
    replies: R,
    own: mpsc::Receiver<Item>,
    /// Taken from the node, too large for the message before.
    carried: Option<Item>,
    /// The node has ended this client's replies.
    finished: bool,
    done: bool,
    stop: Pin<Box<dyn Future<Output = ()> + Send>>,
    shared: Arc<Shared>,
}

impl<R: Replies> Outbound<R> {
    /// Starts carrying `inbound` to the node.
    pub fn start<P: Port>(
        inbound: Streaming<ClientMessage>,
        requests: impl Requests,
        replies: R,
        visitor: Visitor<P>,
        limits: Limits,
        mut stopping: watch::Receiver<bool>,
    ) -> Self {
        let shared = Arc::new(Shared {
            began: Instant::now(),
            handed_over_ms: AtomicU64::new(0),
            questions: AtomicUsize::new(0),
            ended: AtomicBool::new(false),
        });
        let (own_sender, own) = mpsc::channel(OWN_ANSWERS_MAX);
        let stop = Box::pin(async move {
            let _ = stopping.wait_for(|stop| *stop).await;
        });
        let challenge = Some(visitor.challenge);
        let carrier = Carrier { requests, own: own_sender, shared: shared.clone(), visitor, limits };
        tokio::spawn(carrier.run(inbound));
        Self { challenge, replies, own, carried: None, finished: false, done: false, stop, shared }
    }

    /// The next item, if there is one now.
    fn next(&mut self, context: &mut Context<'_>) -> Option<Item> {
        if let Some(item) = self.carried.take() {
            return Some(item);
        }
        if let Poll::Ready(Some(item)) = self.own.poll_recv(context) {
            return Some(item);
        }
        if self.finished {
            return None;
        }
        match self.replies.poll_recv(context) {
            Poll::Ready(Some(reply)) => {
                let item = Item::of(reply);
                if item.answers_question() {
                    self.shared.questions.fetch_sub(1, Ordering::AcqRel);
                }
                Some(item)
            }
            Poll::Ready(None) => {
                self.finished = true;
                None
            }
            Poll::Pending => None,
        }
    }
}

impl<R: Replies> Stream for Outbound<R> {
    type Item = Result<ServerMessage, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.shared.handed_over_ms.store(0, Ordering::Release);
        if self.done {
            return Poll::Ready(None);
        }
        if let Some(challenge) = self.challenge.take() {
            let challenge = Bytes::copy_from_slice(&challenge);
            return Poll::Ready(Some(Ok(ServerMessage { challenge, ..ServerMessage::default() })));
        }
        let mut message = ServerMessage::default();
        let (mut bytes, mut items) = (0, 0);
        while items < MESSAGE_ITEMS_MAX
            && let Some(item) = self.next(context)
        {
            if items > 0 && bytes + item.bytes() > MESSAGE_BYTES_SOFT {
                self.carried = Some(item);
                break;
            }
            bytes += item.bytes();
            items += 1;
            item.add_to(&mut message);
        }
        if items > 0 {
            let now_ms = u64::try_from(self.shared.began.elapsed().as_millis()).unwrap_or(u64::MAX - 1) + 1;
            self.shared.handed_over_ms.store(now_ms, Ordering::Release);
            return Poll::Ready(Some(Ok(message)));
        }
        let stopped = self.stop.as_mut().poll(context).is_ready();
        if stopped || self.finished {
            self.done = true;
            let reason = if stopped {
                "the node is stopping: ask another one"
            } else {
                "cut off: this client reads too slowly, or the node has stopped; connect again"
            };
            return Poll::Ready(Some(Err(Status::unavailable(reason))));
        }
        Poll::Pending
    }
}

impl<R> Drop for Outbound<R> {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Release);
    }
}

/// The incoming direction.
struct Carrier<Q, P> {
    requests: Q,
    own: mpsc::Sender<Item>,
    shared: Arc<Shared>,
    visitor: Visitor<P>,
    limits: Limits,
}

/// The stream is over: nobody would hear an answer.
struct Over;

impl<Q: Requests, P: Port> Carrier<Q, P> {
    /// Runs until the client is gone.
    async fn run(mut self, mut inbound: Streaming<ClientMessage>) {
        let mut beat = interval((self.limits.slow_reader_timeout / 4).max(Duration::from_millis(1)));
        let mut open = true;
        loop {
            tokio::select! {
                message = inbound.message(), if open => match message {
                    Ok(Some(message)) => {
                        if self.carry(message).await.is_err() {
                            return;
                        }
                    }
                    // The client has said all it will; it still hears answers.
                    Ok(None) => open = false,
                    Err(error) => {
                        tracing::debug!(%error, "a client's stream failed");
                        return;
                    }
                },
                _ = beat.tick() => {}
            }
            if self.shared.ended.load(Ordering::Acquire) {
                return;
            }
            if self.reads_too_slowly() {
                tracing::debug!("a client that takes nothing of what waits for it was cut off");
                self.visitor.peer.cut.cut();
                return;
            }
        }
    }

    fn reads_too_slowly(&self) -> bool {
        let handed_over = self.shared.handed_over_ms.load(Ordering::Acquire);
        let now_ms = self.shared.began.elapsed().as_millis();
        handed_over != 0
            && now_ms.saturating_sub(handed_over.into()) > self.limits.slow_reader_timeout.as_millis()
    }

    async fn carry(&mut self, message: ClientMessage) -> Result<(), Over> {
        if message.items() > MESSAGE_ITEMS_MAX {
            let text = format!("{} items in one message: send at most {MESSAGE_ITEMS_MAX}", message.items());
            return self.answer(Item::Malformed(text)).await;
        }
        for attach in &message.attaches {
            match self.visitor.gate.attach(attach) {
                // Frames of the session are let in from here on, so the node must know whom to answer.
                Attached::Now(session) => {
                    while !self.offer(ClientRequest::Attach { session }).await? {
                        sleep(BUSY_PAUSE.1).await;
                    }
                }
                Attached::Already => {}
                Attached::Refused(reason) => self.answer(Item::Malformed(reason)).await?,
                Attached::Full => {
                    let most = self.limits.attaches_max;
                    tracing::debug!(
                        "a client that attached more than {most} sessions to one stream was cut off"
                    );
                    self.visitor.peer.cut.cut();
                    return Err(Over);
                }
            }
        }
        if message.frame_acks.len() > message.frames.len() {
            let text = format!(
                "{} acks for {} frames: send one for each at most",
                message.frame_acks.len(),
                message.frames.len()
            );
            return self.answer(Item::Malformed(text)).await;
        }
        let mut acks = message.frame_acks.iter();
        for bytes in message.frames {
            let ack = convert::ack(acks.next());
            if !self.visitor.gate.admits(&bytes) {
                self.answer(convert::not_taken(&bytes, NOT_ATTACHED)).await?;
                continue;
            }
            let Some(ack) = ack else {
                self.answer(convert::not_taken(&bytes, UNKNOWN_ACK)).await?;
                continue;
            };
            if !self.offer(ClientRequest::Frame { bytes: bytes.clone(), ack }).await? {
                self.answer(convert::not_taken(&bytes, &crate::Busy.to_string())).await?;
            }
        }
        let mut refusal = None;
        if !message.queries.is_empty() {
            refusal = match self.visitor.readership.admits(self.visitor.peer.key).await {
                Ok(true) => None,
                Ok(false) => Some((NOT_A_READER.to_string(), Advice::Order)),
                Err(status) => Some((status.message().to_string(), Advice::Elsewhere)),
            };
        }
        for query in message.queries {
            let id = query.id;
            if let Some((reason, advice)) = &refusal {
                self.answer(Item::Query(convert::unanswered(id, reason.clone(), *advice))).await?;
                continue;
            }
            match convert::question(query) {
                Ok(question) => {
                    if !self.question(question).await? {
                        let busy = convert::unanswered(id, crate::Busy.to_string(), Advice::Elsewhere);
                        self.answer(Item::Query(busy)).await?;
                    }
                }
                Err(unanswered) => self.answer(Item::Query(unanswered)).await?,
            }
        }
        for order in message.orders {
            let id = order.id;
            if !self.question(ClientRequest::Order { id, bytes: order.order }).await? {
                let outcome = OrderOutcome::Refused { reason: crate::Busy.to_string() };
                self.answer(Item::Order(convert::order(id, outcome))).await?;
            }
        }
        for StatusRequest { id } in message.statuses {
            if !self.question(ClientRequest::Status { id }).await? {
                self.answer(Item::Malformed(format!("status {id}: {}", crate::Busy))).await?;
            }
        }
        Ok(())
    }

    /// A question that the node will answer. False when too many are open or the node has no room.
    async fn question(&self, request: ClientRequest) -> Result<bool, Over> {
        if self.shared.questions.fetch_add(1, Ordering::AcqRel) < self.limits.questions_max
            && self.offer(request).await?
        {
            return Ok(true);
        }
        self.shared.questions.fetch_sub(1, Ordering::AcqRel);
        Ok(false)
    }

    /// Hands a request to the node, waiting for room up to `busy_patience`. False when there was none.
    async fn offer(&self, request: ClientRequest) -> Result<bool, Over> {
        let (mut pause, pause_max) = BUSY_PAUSE;
        let mut waited = Duration::ZERO;
        loop {
            if self.requests.send(request.clone()).is_ok() {
                return Ok(true);
            }
            if self.shared.ended.load(Ordering::Acquire) {
                return Err(Over);
            }
            if waited >= self.limits.busy_patience {
                return Ok(false);
            }
            sleep(pause).await;
            waited += pause;
            pause = (pause * 2).min(pause_max);
        }
    }

    async fn answer(&self, item: Item) -> Result<(), Over> {
        self.own.send(item).await.map_err(|_| Over)
    }
}
