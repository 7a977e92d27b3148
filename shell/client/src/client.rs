//! What applications hold: a [`Client`] for one cluster and [`Session`]s in it. Cheap to clone; nothing here waits for
//! a lock. Commands and linearizable reads go through the driver; questions to single nodes (status, stale reads, operator's orders) go
//! straight to their connection, because nobody else's word is needed for them.

use crate::config::{ClientConfig, ConfigError};
use crate::connection::{Connection, Link, NodeClient, status_text};
use crate::driver::{Driver, HAPPENINGS_MAX, OPS_MAX, Op};
use crate::engine::{Answers, Counters, Engine};
use crate::error::{ClientError, NodeError};
use crate::kv::Kv;
use crate::receipt::{Believed, OwnState};
use crate::status::{HintsStatus, hints, status};
use bytes::Bytes;
use dwcp_base::{Ack, Chance, Position, ReplicaId, Trust, View};
use dwcp_proto::v3::{
    Advice, OrderRequest, QueryRequest, ReadLabel, StatusRequest, order_reply, query_reply,
};
use dwcp_replica::{OrderOutcome, Status};
use dwcp_state::kv::{KvCommand, KvReply};
use dwcp_state::{AdminCommand, AdminReply, Command};
use dwcp_transport::{IdentityError, PinSet, TlsIdentity, client_config};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// A client that could not be made or found no cluster.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("the system gives no randomness for session keys: {0}")]
    NoRandomness(String),
    /// No session: nothing was applied.
    #[error(transparent)]
    NoSession(ClientError),
}

/// A client of one cluster. Clones share its connections and its default session.
#[derive(Clone, Debug)]
pub struct Client {
    session: Session,
}

/// What one call wants otherwise than the client's settings say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CallOptions {
    /// Instead of the configured `call_timeout`.
    pub within: Option<Duration>,
    /// Instead of the configured `ack`.
    pub ack: Option<Ack>,
    /// A read is ordered as a command even where a segment's leader would answer it without.
    pub ordered: bool,
}

impl CallOptions {
    /// Gives up after this time.
    #[must_use]
    pub fn within(timeout: Duration) -> Self {
        Self { within: Some(timeout), ..Self::default() }
    }

    /// Is acknowledged like this.
    #[must_use]
    pub fn ack(ack: Ack) -> Self {
        Self { ack: Some(ack), ..Self::default() }
    }

    /// Is ordered as a command, reads as well.
    #[must_use]
    pub fn ordered() -> Self {
        Self { ordered: true, ..Self::default() }
    }
}

/// A numbered stream of commands under a key of its own. Opened when first used; clones share it.
#[derive(Clone, Debug)]
pub struct Session {
    handle: Arc<Handle>,
}

/// Tells the driver when the last clone of a session is gone.
#[derive(Debug)]
struct Handle {
    number: u64,
    shared: Arc<Shared>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    ops: mpsc::Sender<Op>,
    pub(crate) nodes: Vec<NodeLink>,
    next_session: AtomicU64,
    next_question: AtomicU64,
    /// Whether one node's word may answer a linearizable read.
    believes_one: bool,
    pub(crate) call_timeout: Duration,
    connect_timeout: Duration,
}

#[derive(Debug)]
pub(crate) struct NodeLink {
    id: ReplicaId,
    address: String,
    link: watch::Receiver<Link>,
}

/// What one node said of itself, or why it said nothing.
#[derive(Clone, Debug)]
pub struct NodeReport {
    pub id: ReplicaId,
    pub address: String,
    pub status: Result<Status, NodeError>,
    /// Empty when there is no status, and from an older node.
    pub hints: HintsStatus,
}

impl Drop for Handle {
    fn drop(&mut self) {
        // A full channel only means that the driver forgets the session later, by itself.
        let _ = self.shared.ops.try_send(Op::Forget { session: self.number });
    }
}

impl Client {
    /// Starts dialling all nodes and returns at once. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// A configuration that cannot work, or a system without randomness.
    pub fn start(config: ClientConfig) -> Result<Self, ConnectError> {
        config.check()?;
        let mut seed = [0; 8];
        getrandom::fill(&mut seed).map_err(|error| ConnectError::NoRandomness(error.to_string()))?;
        let seed = u64::from_le_bytes(seed);
        let fresh = Box::new(|| {
            let mut seed = [0; 32];
            // Checked above; a system that loses its randomness while running cannot be served safely.
            getrandom::fill(&mut seed).expect("the system goes on giving randomness");
            seed
        });
        let identity = TlsIdentity::from_seed(&config.principal.seed)?;
        let (ops_sender, ops) = mpsc::channel(OPS_MAX);
        let (happenings_sender, happenings) = mpsc::channel(HAPPENINGS_MAX);
        let mut connections = JoinSet::new();
        let mut nodes = Vec::with_capacity(config.nodes.len());
        let chance = Chance::new(seed);
        for (index, node) in config.nodes.iter().enumerate() {
            let pinned = |key: dwcp_base::PublicKey| -> Result<_, IdentityError> {
                let mut tls = client_config(Some(&identity), &PinSet::new([key.0]))?;
                tls.alpn_protocols = vec![b"h2".to_vec()];
                Ok(Arc::new(tls))
            };
            let tls = node.tls_key.map(pinned).transpose()?;
            let (link_sender, link) = watch::channel(Link::Dialling);
            nodes.push(NodeLink { id: node.id, address: node.address.clone(), link });
            connections.spawn(
                Connection {
                    index,
                    node: node.clone(),
                    tls,
                    settings: config.settings.clone(),
                    happenings: happenings_sender.clone(),
                    link: link_sender,
                    chance: chance.fork(&node.address),
                }
                .run(),
            );
        }
        let shared = Arc::new(Shared {
            ops: ops_sender,
            next_session: AtomicU64::new(1),
            next_question: AtomicU64::new(1),
            believes_one: config.trust == Trust::Crash,
            call_timeout: config.settings.call_timeout,
            connect_timeout: config.settings.connect_timeout,
            nodes,
        });
        let wires = vec![None; config.nodes.len()];
        let engine = Engine::new(config, seed, fresh);
        tokio::spawn(Driver { engine, ops, happenings, wires, connections }.run());
        Ok(Self { session: Session { handle: Arc::new(Handle { number: 0, shared }) } })
    }

    /// As [`Client::start`], and waits until the default session is open, at most `call_timeout`.
    ///
    /// # Errors
    /// Also when no session could be opened in time; the error names each node's trouble.
    pub async fn connect(config: ClientConfig) -> Result<Self, ConnectError> {
        let client = Self::start(config)?;
        client.session.command(Command::Nothing).await.map_err(ConnectError::NoSession)?;
        Ok(client)
    }

    /// The key-value store, through the default session.
    #[must_use]
    pub fn kv(&self) -> Kv<'_> {
        self.session.kv()
    }

    /// The default session.
    #[must_use]
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Another session over the same connections.
    #[must_use]
    pub fn new_session(&self) -> Session {
        let shared = self.session.handle.shared.clone();
        let number = shared.next_session.fetch_add(1, Ordering::Relaxed);
        Session { handle: Arc::new(Handle { number, shared }) }
    }

    /// Runs commands of the key-value store through the default session; one answer for each, in their order.
    /// The commands may run in any order; wait for one before the next where order matters.
    pub async fn execute(&self, commands: Vec<KvCommand>) -> Vec<Result<Believed<KvReply>, ClientError>> {
        self.session.execute(commands).await
    }

    /// Changes or reads the registry and versions.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn admin(&self, command: AdminCommand) -> Result<Believed<AdminReply>, ClientError> {
        let answer = self.session.command(Command::Admin(command)).await?;
        let read = |bytes: Bytes| dwcp_base::decode(&bytes);
        answer.try_map(read).map_err(|error| ClientError::UnexpectedAnswer(error.to_string()))
    }

    /// What every node says of itself, asked at once; a silent one costs `connect_timeout`.
    pub async fn status_all(&self) -> Vec<NodeReport> {
        let shared = &self.session.handle.shared;
        let mut asked = JoinSet::new();
        for node in 0..shared.nodes.len() {
            let shared = shared.clone();
            asked.spawn(async move { (node, shared.status(node).await) });
        }
        let mut answers: Vec<_> = asked.join_all().await;
        answers.sort_by_key(|(node, _)| *node);
        let nodes = shared.nodes.iter().zip(answers);
        nodes
            .map(|(node, (_, answer))| {
                let (status, hints) = match answer {
                    Ok((status, hints)) => (Ok(status), hints),
                    Err(error) => (Err(error), HintsStatus::default()),
                };
                NodeReport { id: node.id, address: node.address.clone(), status, hints }
            })
            .collect()
    }

    /// Reads one node's own state, which may be old: one node's unsigned word. `node` is a replica's id; `None` takes the
    /// first that answers.
    ///
    /// # Errors
    /// When that node, or every node, gives no answer.
    pub async fn query(
        &self,
        node: Option<ReplicaId>,
        command: &Command,
    ) -> Result<OwnState<Bytes>, NodeError> {
        self.session.handle.shared.query(node, command.encode()).await
    }

    /// Hands an operator's signed order to the nodes one by one, `first` before the others, until one says what became of
    /// it.
    ///
    /// # Errors
    /// When no node answers.
    pub async fn submit_order(
        &self,
        first: Option<ReplicaId>,
        order: Bytes,
    ) -> Result<OrderOutcome, NodeError> {
        self.session.handle.shared.submit_order(first, order).await
    }

    /// Convergent keys, asked of one node.
    #[must_use]
    pub fn sync(&self, node: Option<ReplicaId>) -> crate::SyncClient {
        crate::SyncClient::new(self.session.handle.shared.clone(), node)
    }

    /// How often things happened since the start.
    pub async fn counters(&self) -> Counters {
        let (answer, answered) = oneshot::channel();
        let _ = self.session.handle.shared.ops.send(Op::Counters { answer }).await;
        answered.await.unwrap_or_default()
    }

    /// Ends the default session in the cluster, so that it need not wait for its expiry.
    pub async fn close(self) {
        self.session.close().await;
    }
}

impl Session {
    /// The key-value store, through this session.
    #[must_use]
    pub fn kv(&self) -> Kv<'_> {
        Kv::new(self)
    }

    /// As [`Client::execute`], through this session.
    pub async fn execute(&self, commands: Vec<KvCommand>) -> Vec<Result<Believed<KvReply>, ClientError>> {
        self.execute_with(commands, CallOptions::default()).await
    }

    /// As [`Session::execute`], otherwise than the settings say.
    pub async fn execute_with(
        &self,
        commands: Vec<KvCommand>,
        options: CallOptions,
    ) -> Vec<Result<Believed<KvReply>, ClientError>> {
        let commands = commands.iter().map(KvCommand::to_command).collect();
        let answers = self.execute_raw(commands, options).await;
        answers.into_iter().map(|answer| answer?.try_map(read_reply)).collect()
    }

    /// One command of any kind.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn command(&self, command: Command) -> Result<Believed<Bytes>, ClientError> {
        self.one(command.encode(), CallOptions::default()).await
    }

    /// Reads linearizably: sees everything that was acknowledged before the call. Where the configuration says that members
    /// only crash, the leader of an open Raft segment answers without an entry of the log, by ReadIndex, under the label
    /// `crash`. Anything else, and a read that wants its answer anchored, is ordered as a command. A command that changes
    /// something is ordered as well.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn read(
        &self,
        command: &Command,
        options: CallOptions,
    ) -> Result<Believed<Bytes>, ClientError> {
        self.read_encoded(command.encode(), options).await
    }

    pub(crate) async fn read_encoded(
        &self,
        command: Bytes,
        mut options: CallOptions,
    ) -> Result<Believed<Bytes>, ClientError> {
        let shared = &self.handle.shared;
        if options.ordered || !shared.believes_one {
            return self.one(command, options).await;
        }
        let timeout = options.within.unwrap_or(shared.call_timeout);
        let began = Instant::now();
        let (answer, answered) = oneshot::channel();
        let op = Op::Read { query: command.clone(), timeout, ack: options.ack, answer };
        if shared.ops.send(op).await.is_ok()
            && let Ok(Some(believed)) = answered.await
        {
            return Ok(believed);
        }
        options.within = Some(timeout.saturating_sub(began.elapsed()));
        self.one(command, options).await
    }

    /// Encoded commands, their results as bytes.
    pub async fn execute_raw(&self, commands: Vec<Bytes>, options: CallOptions) -> Answers {
        let count = commands.len();
        if count == 0 {
            return Vec::new();
        }
        let shared = &self.handle.shared;
        let (answer, answered) = oneshot::channel();
        let timeout = options.within.unwrap_or(shared.call_timeout);
        let op = Op::Call { session: self.handle.number, commands, timeout, ack: options.ack, answer };
        if shared.ops.send(op).await.is_err() {
            return vec![Err(ClientError::NotSent("the client's runtime has ended".into())); count];
        }
        let ended = || vec![Err(ClientError::Unknown("the client's runtime ended".into())); count];
        answered.await.unwrap_or_else(|_| ended())
    }

    pub(crate) async fn one(
        &self,
        command: Bytes,
        options: CallOptions,
    ) -> Result<Believed<Bytes>, ClientError> {
        let mut answers = self.execute_raw(vec![command], options).await;
        answers.pop().expect("one answer for one command")
    }

    pub(crate) async fn query(&self, command: Bytes) -> Result<OwnState<Bytes>, NodeError> {
        self.handle.shared.query(None, command).await
    }

    /// Ends the session in the cluster. A session that is merely dropped ends there after its `session_ttl`.
    pub async fn close(self) {
        let within = Duration::from_secs(1).min(self.handle.shared.call_timeout);
        // Whether it arrives or not, the session is over for us.
        let _ = self.one(Command::CloseSession.encode(), CallOptions::within(within)).await;
    }
}

pub(crate) fn read_reply(bytes: Bytes) -> Result<KvReply, ClientError> {
    KvReply::decode(&bytes).map_err(|error| ClientError::UnexpectedAnswer(error.to_string()))
}

impl Shared {
    /// The places of one node, or of all.
    pub(crate) fn indexes(&self, node: Option<ReplicaId>) -> impl Iterator<Item = usize> + '_ {
        let wanted = move |(_, known): &(usize, &NodeLink)| node.is_none_or(|node| node == known.id);
        self.nodes.iter().enumerate().filter(wanted).map(|(index, _)| index)
    }

    /// Waits for the node's connection, at most `connect_timeout`.
    pub(crate) async fn reach(&self, node: usize) -> Result<NodeClient, NodeError> {
        let mut link = self.nodes[node].link.clone();
        let settled = link.wait_for(|link| !matches!(link, Link::Dialling));
        let settled = timeout(self.connect_timeout, settled).await;
        match settled.map_err(|_| NodeError::TimedOut(self.connect_timeout.as_millis()))? {
            Ok(link) => match &*link {
                Link::Up(client) => Ok(client.as_ref().clone()),
                Link::Down(reason) => Err(NodeError::Unreachable(reason.clone())),
                Link::Dialling => Err(NodeError::Unreachable("still dialling".into())),
            },
            Err(_) => Err(NodeError::Unreachable("the client's runtime has ended".into())),
        }
    }

    async fn ask<T, F>(
        &self,
        node: usize,
        within: Duration,
        question: impl FnOnce(NodeClient, u64) -> F,
    ) -> Result<T, NodeError>
    where
        F: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    {
        let client = self.reach(node).await?;
        let id = self.next_question.fetch_add(1, Ordering::Relaxed);
        match timeout(within, question(client, id)).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(error)) => Err(NodeError::Refused(status_text(&error))),
            Err(_) => Err(NodeError::TimedOut(within.as_millis())),
        }
    }

    async fn status(&self, node: usize) -> Result<(Status, HintsStatus), NodeError> {
        let ask = |mut client: NodeClient, id| async move { client.dwcp.status(StatusRequest { id }).await };
        let mut answer = self.ask(node, self.connect_timeout, ask).await?;
        let known = self.nodes[node].id;
        let malformed = || NodeError::Malformed("a field is out of range".into());
        let hints = hints(&mut answer).ok_or_else(malformed)?;
        let status = status(answer).ok_or_else(malformed)?;
        if status.replica != known {
            return Err(NodeError::Malformed(format!("node {known} calls itself {}", status.replica)));
        }
        Ok((status, hints))
    }

    async fn query(&self, node: Option<ReplicaId>, query: Bytes) -> Result<OwnState<Bytes>, NodeError> {
        let mut last = NodeError::Unreachable("no such node is configured".into());
        for (index, candidate) in self.nodes.iter().enumerate() {
            if node.is_some_and(|wanted| wanted != candidate.id) {
                continue;
            }
            let query = query.clone();
            let ask = |mut client: NodeClient, id| async move {
                client.dwcp.query(QueryRequest { id, query, ..QueryRequest::default() }).await
            };
            match self.ask(index, self.call_timeout, ask).await {
                Ok(answer) => {
                    let (label, advice) = (answer.label(), answer.advice());
                    match answer.outcome {
                        Some(query_reply::Outcome::Result(reply)) => {
                            let read_at = (label != ReadLabel::Unspecified)
                                .then_some((Position(answer.position), View(answer.view)));
                            return Ok(OwnState { reply, read_at });
                        }
                        Some(query_reply::Outcome::Error(reason)) if advice == Advice::Elsewhere => {
                            last = NodeError::Refused(reason);
                        }
                        // The same question would be refused elsewhere too.
                        Some(query_reply::Outcome::Error(reason)) => return Err(NodeError::Refused(reason)),
                        None => last = NodeError::Malformed("no outcome".into()),
                    }
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn submit_order(&self, first: Option<ReplicaId>, order: Bytes) -> Result<OrderOutcome, NodeError> {
        let mut last = NodeError::Unreachable("no node is configured".into());
        let mut nodes: Vec<usize> = (0..self.nodes.len()).collect();
        nodes.sort_by_key(|index| Some(self.nodes[*index].id) != first);
        for index in nodes {
            let order = order.clone();
            let ask = |mut client: NodeClient, id| async move {
                client.dwcp.submit_order(OrderRequest { id, order }).await
            };
            match self.ask(index, self.call_timeout, ask).await {
                Ok(answer) => match answer.outcome {
                    Some(order_reply::Outcome::InForceFrom(sequence)) => {
                        return Ok(OrderOutcome::Done { sequence: dwcp_base::Sequence(sequence) });
                    }
                    Some(order_reply::Outcome::Refused(reason)) => {
                        return Ok(OrderOutcome::Refused { reason });
                    }
                    None => last = NodeError::Malformed("no outcome".into()),
                },
                // A node that took it and fell silent may yet have it ordered; one that was not reached may not.
                Err(_) if matches!(last, NodeError::TimedOut(_)) => {}
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}
