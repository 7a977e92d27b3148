//! Adaptive consensus (ACP v3) for a program that embeds a node: one object that proposes, switches modes and says how it is,
//! whichever protocol orders commands at the moment.
//!
//! It holds a node of the cluster ([`Server`]) and a client of the whole cluster. Proposals go through the client, so that
//! an answer is believed for the reasons a client has, not because the own node says so; what the own node says is used for
//! what may be one node's word: mode, health, figures. No rule of the cluster stands here. See `operator.rs` for how a mode
//! is ordered, `adaptive/seeds.rs` for how members are found.

mod measured;
mod seeds;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use dwcp_base::{Ack, Genesis, NetworkMode};
use dwcp_client::{
    Believed, CallOptions, Client, ClientConfig, ClientError, Command, ConnectError, PrincipalConfig, Session,
};
use dwcp_node::{Health, NodeConfig, NodeHandle, NotAnswering, StartOptions, Stop};
use dwcp_replica::raft::RaftMaker;
use dwcp_replica::sync::values::Strategy;
use dwcp_replica::{Label, ProtocolName, Status};
use dwcp_state::StateMachine;
use dwcp_state::kv::Kv;
use serde::Serialize;
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet};

use self::measured::Measured;
pub use self::seeds::Seed;
use crate::operator::{Operator, OrderError};
use crate::server::{Server, ServerError};

/// How often the own node is asked which protocol orders commands.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Between two looks at whether the own node has followed an order.
const FOLLOW_EVERY: Duration = Duration::from_millis(10);

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConsensusError {
    /// The mode needs a segment, and this program brought no Raft.
    #[error("Raft node not initialized")]
    RaftNotInitialized,
    #[error("no admin key was given: name one with `admin` before `start`")]
    NoAdmin,
    #[error("the value cannot be written as JSON: {0}")]
    Value(#[from] serde_json::Error),
    /// What is known of the command: [`ClientError::fate`].
    #[error(transparent)]
    Command(#[from] ClientError),
    #[error(transparent)]
    Order(#[from] OrderError),
    #[error(transparent)]
    NotAnswering(#[from] NotAnswering),
    /// It is in force; this node has not come to it.
    #[error("the order is in force, and this node has not followed within {0} s: look at its health")]
    NotFollowing(u64),
}

/// Why nothing runs.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    #[error(transparent)]
    Server(#[from] ServerError),
    #[error(transparent)]
    Client(#[from] ConnectError),
    #[error(
        "the client's configuration is of another cluster than the node's genesis: give both the same files"
    )]
    OtherCluster,
}

/// How this instance and its node fare, in the words of the metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsensusMetrics {
    pub mode: NetworkMode,
    /// Proposals of this instance that were acknowledged.
    pub consensus_count: u64,
    pub last_consensus_time: Option<SystemTime>,
    pub avg_consensus_time: Duration,
    /// Segments that ended although nobody had ordered it, since the genesis.
    pub failover_count: u64,
    pub pbft: PbftMetrics,
}

/// The root log as the own node sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PbftMetrics {
    pub view: u64,
    /// The last checkpoint of its own, and the last that q nodes vouch for.
    pub checkpoint_seq: u64,
    pub stable_checkpoint: u64,
    pub executed_requests: u64,
    pub pending_requests: u64,
    pub byzantine_tolerance: u8,
    pub replica_count: u8,
    pub is_primary: bool,
}

impl PbftMetrics {
    fn of(status: &Status) -> Self {
        Self {
            view: status.view.0,
            checkpoint_seq: status.state_digest_sequence.0,
            stable_checkpoint: status.stable.0,
            executed_requests: status.executed_commands,
            pending_requests: status.pending_frames.into(),
            byzantine_tolerance: status.f,
            replica_count: status.n,
            is_primary: status.view_active && status.primary == status.replica,
        }
    }
}

/// What an [`AdaptiveConsensus`] is made of.
#[derive(Clone, Debug)]
pub struct Builder {
    node: NodeConfig,
    client: ClientConfig,
    admin: Option<PrincipalConfig>,
    options: StartOptions,
    seeds: Vec<String>,
}

impl Builder {
    /// The Raft of segments, in place of our own. It must keep what `docs/protocol/raft-node.md` asks for.
    #[must_use]
    pub fn set_raft_node(mut self, maker: Arc<dyn RaftMaker>) -> Self {
        self.options.raft = Some(maker);
        self
    }

    /// No Raft at all. `datacenter`, and `hybrid` while a segment is open, then answer `Raft node not initialized`.
    #[must_use]
    pub fn without_raft_node(mut self) -> Self {
        self.options.raft = None;
        self
    }

    /// How concurrent writes of registers below a prefix are settled in state sync: `Strategy::Merge`, or a rule of your own.
    /// Every node of a cluster must have the same.
    ///
    /// ```
    /// use dwcp::state_sync::values::{Plain, Resolver, Sibling, Strategy};
    /// use std::sync::Arc;
    ///
    /// /// The longest value wins; of equally long ones the greatest.
    /// #[derive(Debug)]
    /// struct Longest;
    ///
    /// impl Resolver for Longest {
    ///     fn name(&self) -> &str {
    ///         "longest"
    ///     }
    ///
    ///     fn resolve(&self, _key: &[u8], siblings: &[Sibling<'_>]) -> Option<Plain> {
    ///         let values = siblings.iter().filter_map(|sibling| sibling.value);
    ///         values.max_by_key(|value| (value.as_bytes().len(), value.as_bytes().to_vec())).cloned()
    ///     }
    /// }
    ///
    /// # fn with(builder: dwcp::adaptive::Builder) -> dwcp::adaptive::Builder {
    /// builder.resolver("notes/", Strategy::Custom(Arc::new(Longest))).resolver("profiles/", Strategy::Merge)
    /// # }
    /// ```
    #[must_use]
    pub fn resolver(mut self, prefix: impl Into<Bytes>, strategy: Strategy) -> Self {
        self.options.resolvers.set(prefix, strategy);
        self
    }

    /// Whose key signs mode orders.
    #[must_use]
    pub fn admin(mut self, admin: PrincipalConfig) -> Self {
        self.admin = Some(admin);
        self
    }

    /// Addresses (`HOST:PORT`, for clients or for the other replicas) at which members may be found, beside those of the
    /// client's configuration and of the genesis. Each is asked at the start who it is, and believed by its key only; the
    /// node asks them again while it cannot reach some member, as it does the setting `seeds`.
    #[must_use]
    pub fn gossip_peers<S: Into<String>>(mut self, peers: impl IntoIterator<Item = S>) -> Self {
        self.seeds.extend(peers.into_iter().map(Into::into));
        self
    }

    /// Starts the node with the built-in key-value store, and the client. The cluster need not be there yet. To be called
    /// inside a tokio runtime.
    ///
    /// # Errors
    /// See [`StartError`]; nothing keeps running then.
    pub async fn start(self) -> Result<AdaptiveConsensus, StartError> {
        self.start_with(|genesis| Kv::new(genesis.quota_bytes)).await
    }

    /// As [`Builder::start`], with a machine of the caller's: see [`Server::start_with`].
    ///
    /// # Errors
    /// As [`Builder::start`].
    pub async fn start_with<M: StateMachine>(
        self,
        empty: impl Fn(&Genesis) -> M + Send + Sync + 'static,
    ) -> Result<AdaptiveConsensus, StartError> {
        let Self { mut node, client: mut config, admin, options, seeds } = self;
        node.add_seeds(&seeds);
        config.check().map_err(ConnectError::from)?;
        let has_raft = options.raft.is_some();
        let server = Server::start_as(node, options, empty).await?;
        let node = server.node().clone();
        if node.cluster() != config.cluster {
            node.shutdown().await;
            return Err(StartError::OtherCluster);
        }
        let (stop, stopped) = oneshot::channel();
        // A dropped sender stops it as well.
        let serving = tokio::spawn(server.run(async { drop(stopped.await) }));
        // The own node may be among the seeds, so it must be there before they are asked.
        let seeds = seeds::ask(&mut config, &seeds).await;
        let client = Client::start(config.clone())?;
        let operator = admin.map(|admin| Operator::over(client.clone(), &config, admin));
        let seen = Arc::new(Mutex::new(None));
        let mut looking = JoinSet::new();
        looking.spawn(look(node.clone(), seen.clone()));
        Ok(AdaptiveConsensus {
            session: client.session().clone(),
            client,
            operator,
            node,
            has_raft,
            patience: config.settings.call_timeout,
            seeds,
            measured: Mutex::new(Measured::default()),
            seen,
            running: Running { stop, serving, looking },
        })
    }
}

/// Keeps what the own node last said.
async fn look(node: NodeHandle, seen: Arc<Mutex<Option<Seen>>>) {
    loop {
        let status = node.status().await;
        *lock(&seen) = status.ok().as_ref().map(Seen::of);
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

#[derive(Debug)]
struct Running {
    stop: oneshot::Sender<()>,
    serving: JoinHandle<Result<Stop, ServerError>>,
    /// Ends with this.
    looking: JoinSet<()>,
}

/// A node of a cluster and the way to the whole of it. Ends with [`AdaptiveConsensus::shutdown`]; dropped, it ends by itself.
///
/// ```no_run
/// use dwcp::client::ClientConfig;
/// use dwcp::{AdaptiveConsensus, NetworkMode, NodeConfig};
///
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// let node = NodeConfig::load("trial/node0/config.toml".as_ref())?;
/// let client = ClientConfig::read("trial/client.toml".as_ref(), Some("admin"))?;
/// let admin = client.principal.clone();
/// let consensus = AdaptiveConsensus::builder(node, client).admin(admin).start().await?;
/// consensus.set_mode(NetworkMode::Internet).await?;
/// println!("{:?}, healthy: {}", consensus.metrics().await?, consensus.is_healthy().await.ok());
/// consensus.shutdown().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct AdaptiveConsensus {
    client: Client,
    session: Session,
    operator: Option<Operator>,
    node: NodeHandle,
    has_raft: bool,
    patience: Duration,
    seeds: Vec<Seed>,
    measured: Mutex<Measured>,
    seen: Arc<Mutex<Option<Seen>>>,
    running: Running,
}

impl AdaptiveConsensus {
    /// Of one node's settings, and of what makes a client of its cluster: keys of all members, and as whom to propose.
    #[must_use]
    pub fn builder(node: NodeConfig, client: ClientConfig) -> Builder {
        Builder { node, client, admin: None, options: StartOptions::default(), seeds: Vec::new() }
    }

    /// Has the cluster order a value, written as JSON, as a command of its machine. The answer is what the machine said, with
    /// its label and position.
    ///
    /// # Errors
    /// See [`ConsensusError`]; [`ClientError::fate`] tells *not applied* from *unknown*.
    pub async fn propose<T: Serialize + ?Sized>(&self, value: &T) -> Result<Believed<Bytes>, ConsensusError> {
        self.propose_bytes(serde_json::to_vec(value)?, None).await
    }

    /// As [`AdaptiveConsensus::propose`], saying when the answer may come: see [`Ack`].
    ///
    /// # Errors
    /// As [`AdaptiveConsensus::propose`].
    pub async fn propose_with<T: Serialize + ?Sized>(
        &self,
        value: &T,
        ack: Ack,
    ) -> Result<Believed<Bytes>, ConsensusError> {
        self.propose_bytes(serde_json::to_vec(value)?, Some(ack)).await
    }

    /// As [`AdaptiveConsensus::propose`], with the machine's command as it is. `ack`: `None` leaves it to the policy.
    ///
    /// # Errors
    /// As [`AdaptiveConsensus::propose`].
    pub async fn propose_bytes(
        &self,
        command: impl Into<Bytes>,
        ack: Option<Ack>,
    ) -> Result<Believed<Bytes>, ConsensusError> {
        self.check_raft(None).await?;
        let began = Instant::now();
        let command = Command::Machine(command.into()).encode();
        let mut answers =
            self.session.execute_raw(vec![command], CallOptions { ack, ..CallOptions::default() }).await;
        let answer = answers.pop().expect("one answer for one command")?;
        let seen: Option<Seen> = *lock(&self.seen);
        let protocol = seen.and_then(|seen| seen.ordered_by(answer.receipt.label, ack));
        lock(&self.measured).add(protocol, began.elapsed(), SystemTime::now());
        Ok(answer)
    }

    /// Reads the machine linearizably with one of its read-only commands. While a Raft segment is open, and where the client's
    /// configuration says that members only crash, its leader answers without an entry of the log; else the command is ordered.
    ///
    /// # Errors
    /// As [`AdaptiveConsensus::propose`].
    pub async fn read_bytes(&self, command: impl Into<Bytes>) -> Result<Believed<Bytes>, ConsensusError> {
        let command = Command::Machine(command.into());
        Ok(self.session.read(&command, CallOptions::default()).await?)
    }

    /// Orders a mode, signed with the admin's key, and waits until this node has followed; all nodes do, each when it
    /// comes to the order's place. Another operator's order that came first costs another attempt.
    ///
    /// # Errors
    /// See [`ConsensusError`].
    pub async fn set_mode(&self, mode: NetworkMode) -> Result<(), ConsensusError> {
        let operator = self.operator.as_ref().ok_or(ConsensusError::NoAdmin)?;
        self.check_raft(Some(mode)).await?;
        let ordered = operator.order_mode(mode, None).await?;
        let until = Instant::now() + self.patience;
        loop {
            // Later orders count as well: they came after this one.
            if self.node.status().await.is_ok_and(|status| status.next_order > ordered.number) {
                return Ok(());
            }
            if Instant::now() > until {
                return Err(ConsensusError::NotFollowing(self.patience.as_secs()));
            }
            tokio::time::sleep(FOLLOW_EVERY).await;
        }
    }

    /// The mode that was ordered last, as far as this node knows.
    ///
    /// # Errors
    /// A node that does not answer.
    pub async fn mode(&self) -> Result<NetworkMode, ConsensusError> {
        Ok(self.node.status().await?.mode)
    }

    /// Is this node able to do its part, and why not?
    pub async fn is_healthy(&self) -> Health {
        let mut health = self.node.ready().await;
        if let Err(error @ ConsensusError::RaftNotInitialized) = self.check_raft(None).await {
            let reason = error.to_string();
            if !health.reasons.contains(&reason) {
                health.reasons.push(reason);
            }
        }
        health
    }

    /// What a proposal will take: the median of this instance's own lately, under the protocol that orders commands now.
    /// Before there is any: 100 ms in datacenter mode, 2 s in internet mode, 500 ms in hybrid mode.
    ///
    /// # Errors
    /// A node that does not answer.
    pub async fn expected_latency(&self) -> Result<Duration, ConsensusError> {
        let status = self.node.status().await?;
        Ok(lock(&self.measured).expected(status.protocol, status.mode))
    }

    /// # Errors
    /// A node that does not answer.
    pub async fn metrics(&self) -> Result<ConsensusMetrics, ConsensusError> {
        let status = self.node.status().await?;
        let measured = lock(&self.measured);
        Ok(ConsensusMetrics {
            mode: status.mode,
            consensus_count: measured.count(),
            last_consensus_time: measured.last(),
            avg_consensus_time: measured.average(),
            failover_count: status.failovers,
            pbft: PbftMetrics::of(&status),
        })
    }

    /// Everything else the own node says of itself.
    ///
    /// # Errors
    /// A node that does not answer.
    pub async fn status(&self) -> Result<Status, ConsensusError> {
        Ok(self.node.status().await?)
    }

    /// The addresses given to [`Builder::gossip_peers`], and whom they turned out to be.
    #[must_use]
    pub fn seeds(&self) -> &[Seed] {
        &self.seeds
    }

    /// The client, for what is no proposal: sessions of one's own, what other nodes say.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The own node.
    #[must_use]
    pub fn node(&self) -> &NodeHandle {
        &self.node
    }

    /// State sync on the same node: convergent keys beside the ordered log.
    #[must_use]
    pub fn state_sync(&self) -> crate::StateSync {
        let sync = crate::StateSync::over(self.node.clone());
        match &self.operator {
            Some(operator) => sync.with_operator(operator.clone()),
            None => sync,
        }
    }

    /// Ends the session and the node, and waits until its disk is free. Says why the node ended.
    ///
    /// # Errors
    /// When serving clients had failed.
    pub async fn shutdown(self) -> Result<Stop, ServerError> {
        let Self { client, session, operator, node, running: Running { stop, serving, looking }, .. } = self;
        drop((operator, session));
        client.close().await;
        drop(looking);
        let _ = stop.send(());
        match serving.await {
            Ok(served) => served,
            Err(_) => Ok(node.shutdown().await),
        }
    }

    /// `wanted`: a mode that is to be ordered; `None`: the one in force. Only a program without a Raft has to ask.
    async fn check_raft(&self, wanted: Option<NetworkMode>) -> Result<(), ConsensusError> {
        if self.has_raft {
            return Ok(());
        }
        let status = self.node.status().await?;
        let mode = wanted.unwrap_or(status.mode);
        // Among liars no mode opens a segment, and datacenter is refused for that reason.
        let wants_segments = status.trust == dwcp_base::Trust::Crash && status.raft;
        // In hybrid the root serves while no segment is open; the others' segments are learned here at their end.
        let serves = match mode {
            NetworkMode::Internet => true,
            NetworkMode::Hybrid => wanted.is_none() && status.protocol == ProtocolName::Pbft,
            NetworkMode::Datacenter => false,
        };
        if !serves && wants_segments {
            return Err(ConsensusError::RaftNotInitialized);
        }
        Ok(())
    }
}

fn lock<T>(what: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    what.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the own node last said about how commands are ordered and acknowledged.
#[derive(Clone, Copy, Debug)]
struct Seen {
    protocol: ProtocolName,
    default_ack: Ack,
    f: u8,
}

impl Seen {
    fn of(status: &Status) -> Self {
        Self { protocol: status.protocol, default_ack: status.default_ack, f: status.f }
    }

    /// Which protocol's agreement an answer tells of. Where some may lie only a segment answers under the label `crash`; an
    /// answer that waited for an Anchor tells of the Anchors' beat and of no protocol.
    fn ordered_by(self, label: Label, ack: Option<Ack>) -> Option<ProtocolName> {
        match (label, self.protocol) {
            (Label::Crash, _) if self.f > 0 => Some(ProtocolName::Raft),
            (_, ProtocolName::Raft) if ack.unwrap_or(self.default_ack) == Ack::Anchored => None,
            (_, protocol) => Some(protocol),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_tells_of_the_protocol_that_gave_it() {
        let seen = |protocol, f| Seen { protocol, default_ack: Ack::Majority, f };
        let (pbft, raft) = (ProtocolName::Pbft, ProtocolName::Raft);
        assert_eq!(seen(pbft, 1).ordered_by(Label::Byzantine, None), Some(pbft));
        assert_eq!(seen(raft, 1).ordered_by(Label::Crash, None), Some(raft));
        // The look at the node is older than the answer.
        assert_eq!(seen(pbft, 1).ordered_by(Label::Crash, None), Some(raft));
        assert_eq!(
            seen(pbft, 0).ordered_by(Label::Crash, None),
            Some(pbft),
            "nobody lies: the only label there is"
        );
        assert_eq!(seen(raft, 1).ordered_by(Label::Byzantine, Some(Ack::Anchored)), None);
        let anchored = Seen { default_ack: Ack::Anchored, ..seen(raft, 0) };
        assert_eq!(anchored.ordered_by(Label::Crash, None), None);
        assert_eq!(anchored.ordered_by(Label::Crash, Some(Ack::Majority)), Some(raft));
    }
}
