//! A running node, seen from outside: start it, talk to it, ask how it is, stop it.
//!
//! Starting checks, in this order, what costs least to be wrong about: settings, genesis, keys, whose data directory it
//! is, ports; then it recovers the replica and hands it to the core loop's thread. Protocol and state are not known here.

use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use dwcp_base::{ClusterId, Genesis, Incarnation, PublicKey, ReplicaId};
use dwcp_replica::raft::{OwnRaft, RaftMaker};
use dwcp_replica::sync::values::Resolvers;
use dwcp_replica::{ClientId, Status};
use dwcp_state::StateMachine;
use dwcp_state::kv::Kv;
use dwcp_storage::StorageError;
use dwcp_transport::{TlsIdentity, Transport, TransportError};
use tokio::sync::{oneshot, watch};

use crate::client::{Busy, ClientPort};
use crate::clock::Clock;
use crate::genesis_file::GenesisError;
use crate::hinting::{HintBox, HintReport};
use crate::http::HttpError;
use crate::inbox::Inbox;
use crate::keys::KeyError;
use crate::metrics::{Metrics, Scrape};
use crate::process::ProcessFigures;
use crate::settings::{NodeConfig, SettingsError};
use crate::start;

/// How long a scrape or a readiness check waits for the core.
const STATUS_PATIENCE: Duration = Duration::from_secs(2);
/// A core that is silent for this long is stuck: restarting it is better than waiting.
const LIFE_PATIENCE: Duration = Duration::from_secs(20);

/// Exit codes of a server process. 134 (SIGABRT) comes from the kernel when the log could not be synced.
pub const EXIT_HALTED: u8 = 3;
pub const EXIT_FAILED: u8 = 4;

/// Why a node is not started. One line, with what to do.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error(transparent)]
    Genesis(#[from] GenesisError),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error(transparent)]
    Transport(#[from] TransportError),
    #[error(transparent)]
    Http(#[from] HttpError),
    #[error(
        "data directory {path} belongs to cluster {found}, the genesis is of cluster {expected}: \
         correct data_dir or genesis_file"
    )]
    OtherCluster { path: String, found: String, expected: String },
    #[error(
        "data directory {path} belongs to replica {found}, this is replica {expected}: correct data_dir or replica"
    )]
    OtherReplica { path: String, found: u8, expected: ReplicaId },
    #[error(
        "{path} holds key {found}.., but the cluster knows {which} of replica {replica} as {expected}..: \
         correct {setting} or replica"
    )]
    OtherKey {
        path: String,
        which: &'static str,
        setting: &'static str,
        replica: ReplicaId,
        found: String,
        expected: String,
    },
    #[error(
        "{path} holds the key replica {replica} had in the genesis, but its data directory is incarnation \
         {incarnation}: use the key that `dwcp member replace` made with it"
    )]
    KeyOfLostIncarnation { path: String, replica: ReplicaId, incarnation: Incarnation },
    #[error(
        "data directory {path} is incarnation {found} of replica {replica}, which was replaced by incarnation \
         {in_force}: start that one instead"
    )]
    Replaced { path: String, replica: ReplicaId, found: Incarnation, in_force: Incarnation },
    #[error("the replica cannot recover from its disk: {0}")]
    Recovery(String),
    #[error("the system gives no randomness ({0})")]
    NoRandomness(String),
    #[error("the system gives no thread ({0}): raise the limit of threads")]
    NoThread(std::io::Error),
    #[error("a node must be started inside a tokio runtime with time and io enabled")]
    NoRuntime,
}

/// Why a node ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Somebody asked for it.
    Asked,
    /// The core says that this replica must not go on.
    Halted { reason: String },
    /// Something around the core failed: the log's disk is full, or a part of the program panicked.
    Failed { reason: String },
}

impl Stop {
    /// What a server process should exit with.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Asked => 0,
            Self::Halted { .. } => EXIT_HALTED,
            Self::Failed { .. } => EXIT_FAILED,
        }
    }
}

/// An answer to `/livez` or `/readyz`: well when there is no reason not to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    pub reasons: Vec<String>,
}

impl Health {
    pub fn ok(&self) -> bool {
        self.reasons.is_empty()
    }
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.ok() {
            return writeln!(f, "ok");
        }
        self.reasons.iter().try_for_each(|reason| writeln!(f, "{reason}"))
    }
}

/// What a program that embeds a node brings along, beside its machine.
#[derive(Clone, Debug)]
pub struct StartOptions {
    /// Makes this node's part in a segment. `None`: it takes part in none.
    pub raft: Option<Arc<dyn RaftMaker>>,
    /// How concurrent convergent writes are settled, by prefix. The same on every node. Prefixes that the settings name
    /// as merged are added.
    pub resolvers: Resolvers,
}

impl Default for StartOptions {
    fn default() -> Self {
        Self { raft: Some(Arc::new(OwnRaft)), resolvers: Resolvers::default() }
    }
}

/// Starts nodes.
#[derive(Debug)]
pub struct Node;

impl Node {
    /// Starts a node with the built-in key-value machine. Opens and recovers, so it may take a while; to be called
    /// inside a tokio runtime, on which links and HTTP then run.
    ///
    /// # Errors
    /// Anything that is not as it must be; nothing keeps running then.
    pub fn start(config: NodeConfig) -> Result<NodeHandle, NodeError> {
        Self::start_with(config, |genesis| Kv::new(genesis.quota_bytes))
    }

    /// As [`Node::start`], with a machine of the caller's. `empty` makes one without any state.
    ///
    /// # Errors
    /// As [`Node::start`].
    pub fn start_with<M: StateMachine>(
        config: NodeConfig,
        empty: impl Fn(&Genesis) -> M + Send + Sync + 'static,
    ) -> Result<NodeHandle, NodeError> {
        Self::start_as(config, StartOptions::default(), empty)
    }

    /// As [`Node::start_with`], with a Raft of the caller's, or none.
    ///
    /// # Errors
    /// As [`Node::start`].
    pub fn start_as<M: StateMachine>(
        config: NodeConfig,
        options: StartOptions,
        empty: impl Fn(&Genesis) -> M + Send + Sync + 'static,
    ) -> Result<NodeHandle, NodeError> {
        start::start(config, options, empty)
    }

    /// What the disk of a node that does not run remembers, as a replica that answers `query` and `status` and says
    /// nothing to anybody. For verifiers and for people who want to look.
    ///
    /// # Errors
    /// As [`Node::start`]; also when the node is running.
    pub fn read_stopped(config: &NodeConfig) -> Result<dwcp_replica::Replica<Kv>, NodeError> {
        start::read_stopped(config, |genesis| Kv::new(genesis.quota_bytes))
    }
}

/// A running node. Clones share it; when the last one is dropped the node stops by itself.
#[derive(Clone, Debug)]
pub struct NodeHandle {
    pub(crate) shared: Arc<Shared>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: NodeConfig,
    pub(crate) genesis: Genesis,
    pub(crate) incarnation: Incarnation,
    pub(crate) vote_key: PublicKey,
    pub(crate) identity: Arc<TlsIdentity>,
    pub(crate) peer_addr: SocketAddr,
    pub(crate) http_addr: SocketAddr,
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) transport: Weak<Transport>,
    pub(crate) hints: Arc<HintBox>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) clock: Clock,
    pub(crate) has_raft_node: bool,
    pub(crate) next_client: AtomicU64,
    pub(crate) stopped: watch::Receiver<Option<Stop>>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.inbox.push_stop();
    }
}

/// A question to the core about its status.
#[derive(Debug)]
pub(crate) struct StatusAnswer(pub(crate) oneshot::Sender<Status>);

/// The core did not answer in time, or has stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the core does not answer: look at the disk's latency and the machine's load, or restart the node")]
pub struct NotAnswering;

impl NodeHandle {
    /// Opens a client connection to the core.
    ///
    /// # Errors
    /// [`Busy`]: as many are open as may be, or the node has stopped.
    pub fn client(&self) -> Result<ClientPort, Busy> {
        let shared = &self.shared;
        let client = ClientId(shared.next_client.fetch_add(1, Ordering::Relaxed));
        let port = ClientPort::open(
            client,
            shared.inbox.clone(),
            &shared.metrics,
            shared.config.queues.replies_bytes_max,
        );
        port.inspect_err(|_| shared.metrics.requests_busy.add(1))
    }

    /// How the replica sees itself and the cluster.
    ///
    /// # Errors
    /// [`NotAnswering`] after two seconds.
    pub async fn status(&self) -> Result<Status, NotAnswering> {
        self.status_within(STATUS_PATIENCE).await
    }

    /// Everything there is to measure, in Prometheus' text format.
    pub async fn metrics(&self) -> String {
        let status = self.status().await.ok();
        let links = self.shared.transport.upgrade().map(|transport| transport.stats());
        let scrape = Scrape {
            metrics: &self.shared.metrics,
            status: status.as_ref(),
            links: links.as_ref(),
            hints: &self.hints(),
            now: self.shared.clock.mono(),
            depth: self.shared.inbox.depth(),
            process: ProcessFigures::read(),
            uptime: Duration::from_micros(self.shared.clock.mono().0),
        };
        scrape.text()
    }

    /// Who of the others seems to be there, and where. Hints: nothing rests on them.
    pub fn hints(&self) -> HintReport {
        let links = self.shared.transport.upgrade();
        HintReport {
            now: self.shared.clock.mono(),
            dialled: links.map(|links| links.dialled()).unwrap_or_default(),
            ..self.shared.hints.report()
        }
    }

    /// Is it alive, or should it be restarted?
    pub async fn live(&self) -> Health {
        let reasons = match self.status_within(LIFE_PATIENCE).await {
            Ok(_) => vec![],
            Err(_) => vec![self.silence()],
        };
        Health { reasons }
    }

    /// Can it serve clients now?
    pub async fn ready(&self) -> Health {
        let reasons = match self.status().await {
            Ok(status) => status.not_ready,
            Err(_) => vec![self.silence()],
        };
        Health { reasons }
    }

    /// Stops the node and waits until its data directory is free. Doing it twice is harmless.
    pub async fn shutdown(&self) -> Stop {
        self.shared.inbox.push_stop();
        self.stopped().await
    }

    /// Waits for the node's end and says why it came.
    pub async fn stopped(&self) -> Stop {
        wait_for_stop(self.shared.stopped.clone()).await
    }

    /// Was it started with a Raft for its segments?
    pub fn has_raft_node(&self) -> bool {
        self.shared.has_raft_node
    }

    pub fn replica(&self) -> ReplicaId {
        self.shared.config.replica
    }

    pub fn incarnation(&self) -> Incarnation {
        self.shared.incarnation
    }

    /// The key that signs this node's votes and replies.
    pub fn vote_key(&self) -> PublicKey {
        self.shared.vote_key
    }

    pub fn cluster(&self) -> ClusterId {
        self.shared.genesis.cluster()
    }

    pub fn genesis(&self) -> &Genesis {
        &self.shared.genesis
    }

    pub fn config(&self) -> &NodeConfig {
        &self.shared.config
    }

    /// The key of this node's links, which clients pin too.
    pub fn identity(&self) -> &TlsIdentity {
        &self.shared.identity
    }

    /// Where it listens for peers; tells the port when the settings left it open with port 0.
    pub fn peer_addr(&self) -> SocketAddr {
        self.shared.peer_addr
    }

    /// Where HTTP is served.
    pub fn http_addr(&self) -> SocketAddr {
        self.shared.http_addr
    }

    async fn status_within(&self, patience: Duration) -> Result<Status, NotAnswering> {
        let (sender, receiver) = oneshot::channel();
        self.shared.inbox.push_status(StatusAnswer(sender)).map_err(|Busy| NotAnswering)?;
        match tokio::time::timeout(patience, receiver).await {
            Ok(Ok(status)) => Ok(status),
            _ => Err(NotAnswering),
        }
    }

    fn silence(&self) -> String {
        match &*self.shared.stopped.borrow() {
            None => NotAnswering.to_string(),
            Some(Stop::Asked) => "the node has stopped".into(),
            Some(Stop::Halted { reason } | Stop::Failed { reason }) => {
                format!("the node has stopped: {reason}")
            }
        }
    }
}

async fn wait_for_stop(mut stopped: watch::Receiver<Option<Stop>>) -> Stop {
    match stopped.wait_for(Option::is_some).await.map(|stop| stop.clone()) {
        Ok(Some(stop)) => stop,
        // The core's thread always says why it ends, unless it was unwound.
        _ => Stop::Failed { reason: "the core panicked; please report this with the lines before".into() },
    }
}

/// A node for those that must not keep it running.
#[derive(Clone, Debug)]
pub(crate) struct WeakNode {
    shared: Weak<Shared>,
    stopped: watch::Receiver<Option<Stop>>,
}

impl WeakNode {
    pub(crate) fn of(node: &NodeHandle) -> Self {
        Self { shared: Arc::downgrade(&node.shared), stopped: node.shared.stopped.clone() }
    }

    pub(crate) fn upgrade(&self) -> Option<NodeHandle> {
        Some(NodeHandle { shared: self.shared.upgrade()? })
    }

    pub(crate) async fn stopped(&self) {
        wait_for_stop(self.stopped.clone()).await;
    }
}
