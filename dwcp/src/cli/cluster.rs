//! The way to a cluster: which client file, as whom, and one thin wrapper around the client library that turns its
//! answers into results and failures of this program.
//!
//! What it is told by one node alone (status, stale reads) it hands on as that; everything else is what the library believes.

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use dwcp_base::ReplicaId;
use dwcp_client::{
    AdminCommand, AdminReply, Believed, CallOptions, Client, ClientConfig, ClientError, HintsStatus,
    NodeError, OwnState, Position, Receipt, Session, Status, View, label_word,
};
use dwcp_log::OperatorOrder;
use dwcp_state::kv::{KvCommand, KvReply};
use dwcp_state::{Command, Fate};

use super::local::LocalCluster;
use super::output::{Failure, Kind, Outcome};

/// Looked for in the working directory when nothing is said.
const FILES: [&str; 2] = ["client.toml", "cluster.toml"];

/// In the demo and benches the library retries for as long as a whole cluster may be dead.
const PATIENT: Duration = Duration::from_secs(120);

/// Which cluster, and as whom
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Cluster")]
pub struct ClusterArgs {
    /// The client file that `dwcp init` wrote; `dwcp --help` lists its [settings] [default: ./client.toml, then ./cluster.toml]
    #[arg(long, value_name = "FILE", env = "DWCP_CLUSTER", global = true)]
    cluster: Option<PathBuf>,

    /// The principal to speak as, by its name in the client file [default: the first one listed]
    #[arg(long = "as", value_name = "NAME", global = true)]
    principal: Option<String>,

    /// Seconds to wait for an answer before giving up
    #[arg(long, value_name = "SECONDS", global = true, value_parser = clap::value_parser!(u64).range(1..=3600))]
    timeout: Option<u64>,
}

impl ClusterArgs {
    pub fn config(&self) -> Outcome<ClientConfig> {
        self.read(self.principal.as_deref())
    }

    /// As another principal of the file.
    pub fn config_as(&self, principal: &str) -> Outcome<ClientConfig> {
        self.read(Some(principal))
    }

    /// Was it said as whom to speak?
    pub fn speaks_as_named(&self) -> bool {
        self.principal.is_some()
    }

    fn read(&self, principal: Option<&str>) -> Outcome<ClientConfig> {
        let mut config = ClientConfig::read(&self.file()?, principal)?;
        if let Some(seconds) = self.timeout {
            config.settings.call_timeout = Duration::from_secs(seconds);
            config.settings.connect_timeout =
                config.settings.connect_timeout.min(config.settings.call_timeout);
        }
        Ok(config)
    }

    pub fn file(&self) -> Outcome<PathBuf> {
        if let Some(file) = &self.cluster {
            return Ok(file.clone());
        }
        FILES.iter().map(PathBuf::from).find(|file| file.exists()).ok_or_else(|| {
            Failure::usage(
                "no cluster is named: use --cluster FILE or DWCP_CLUSTER with the client.toml that `dwcp init` wrote",
            )
        })
    }
}

/// A runtime whose main future stays on the calling thread.
pub fn runtime() -> Outcome<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::refused(format!("the system gives no threads: {error}")))
}

/// An answer and what is known about it.
#[derive(Debug)]
pub struct Answer {
    pub reply: KvReply,
    pub told: Told,
    pub latency: Duration,
}

/// What came with an answer, as it was said.
#[derive(Clone, Copy, Debug)]
pub enum Told {
    Believed(Receipt),
    /// One node's own state; `None`: its version does not say where that stands.
    Own(Option<(Position, View)>),
}

impl Told {
    pub fn label(&self) -> &'static str {
        match self {
            Self::Believed(receipt) => label_word(receipt.label),
            Self::Own(_) => OwnState::<()>::LABEL,
        }
    }

    pub fn read_at(&self) -> Option<(Position, View)> {
        match self {
            Self::Believed(receipt) => Some((receipt.position, receipt.view)),
            Self::Own(read_at) => *read_at,
        }
    }
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "label {}", self.label())?;
        self.read_at().map_or(Ok(()), |(position, view)| write!(f, ", position {position}, view {view}"))
    }
}

/// A client of one cluster.
#[derive(Clone, Debug)]
pub struct Link {
    client: Client,
    nodes: usize,
}

/// One session of it.
#[derive(Clone, Debug)]
pub struct LinkSession {
    session: Session,
}

impl Link {
    /// Starts dialling; nobody need be there yet. To be called within a runtime.
    pub fn connect(config: ClientConfig) -> Outcome<Self> {
        let nodes = config.nodes.len();
        Ok(Self { client: Client::start(config)?, nodes })
    }

    /// State sync, through each of the nodes.
    pub fn syncs(&self) -> Vec<dwcp_client::SyncClient> {
        let ids = (0..self.nodes).filter_map(|node| u8::try_from(node).ok());
        ids.map(|id| self.client.sync(Some(ReplicaId(id)))).collect()
    }

    /// Settings for a local cluster whose nodes are killed on purpose: long patience, quick reconnects.
    pub fn patient(cluster: &LocalCluster) -> Outcome<ClientConfig> {
        let mut config = ClientConfig::read(&cluster.trial.client_file, None)?;
        config.settings.call_timeout = PATIENT;
        config.settings.connect_timeout = Duration::from_secs(1);
        config.settings.reconnect_after = Duration::from_millis(50);
        config.settings.retry_after = Duration::from_millis(500);
        Ok(config)
    }

    pub async fn run(&self, command: &KvCommand) -> Outcome<Answer> {
        self.run_with(command, CallOptions::default()).await
    }

    pub async fn run_with(&self, command: &KvCommand, options: CallOptions) -> Outcome<Answer> {
        let began = Instant::now();
        let Believed { reply, receipt } = run(self.client.session(), command, options).await?;
        Ok(Answer { reply, told: Told::Believed(receipt), latency: began.elapsed() })
    }

    /// Reads or changes the registry.
    pub async fn admin(&self, command: AdminCommand) -> Outcome<AdminReply> {
        Ok(self.client.admin(command).await?.reply)
    }

    /// One node's own copy; `None`: whoever answers first.
    pub async fn stale(&self, node: Option<u8>, command: &KvCommand) -> Outcome<Answer> {
        if let Some(node) = node.filter(|node| usize::from(*node) >= self.nodes) {
            let last = self.nodes - 1;
            return Err(Failure::usage(format!(
                "node {node} is not in the client file: it lists 0..={last}"
            )));
        }
        let began = Instant::now();
        let OwnState { reply, read_at } = self.read(node, command).await?;
        Ok(Answer { reply, told: Told::Own(read_at), latency: began.elapsed() })
    }

    pub async fn query(&self, node: u8, command: &KvCommand) -> Outcome<KvReply> {
        Ok(self.read(Some(node), command).await?.reply)
    }

    async fn read(&self, node: Option<u8>, command: &KvCommand) -> Outcome<OwnState<KvReply>> {
        let command = Command::Machine(command.encode());
        let answer = self.client.query(node.map(ReplicaId), &command).await.map_err(node_failure)?;
        Ok(answer.try_map(|bytes| KvReply::decode(&bytes))?)
    }

    /// What each node says of itself, by node.
    pub async fn statuses(&self) -> Vec<(u8, Result<Status, String>)> {
        self.reports().await.into_iter().map(|(id, status, _)| (id, status)).collect()
    }

    /// With what each node holds of the others.
    pub async fn reports(&self) -> Vec<(u8, Result<Status, String>, HintsStatus)> {
        let reports = self.client.status_all().await;
        reports
            .into_iter()
            .map(|report| {
                let unreachable = |error: NodeError| match error {
                    // Names the address itself.
                    NodeError::Unreachable(reason) => reason,
                    other => format!("{}: {other}", report.address),
                };
                (report.id.0, report.status.map_err(unreachable), report.hints)
            })
            .collect()
    }

    pub async fn status(&self, node: u8) -> Result<Status, String> {
        let found = self.statuses().await.into_iter().find(|(id, _)| *id == node);
        found.map_or_else(|| Err("not in the client file".into()), |(_, status)| status)
    }

    /// A session of its own over the same connections.
    pub fn session(&self) -> LinkSession {
        LinkSession { session: self.client.new_session() }
    }

    /// Hands in an operator's order, to this node first; the sequence from which it is in force.
    pub async fn order(&self, first: Option<ReplicaId>, order: &OperatorOrder) -> Outcome<u64> {
        use dwcp_client::OrderOutcome;
        let unanswered = |error: NodeError| match error {
            // Some node may have taken it.
            NodeError::TimedOut(_) => Failure::new(
                Kind::Unknown,
                format!(
                    "the order was not answered ({error}): it may yet take effect, look at `dwcp status`"
                ),
            ),
            other => node_failure(other),
        };
        let bytes = dwcp_base::encode(order).into();
        match self.client.submit_order(first, bytes).await.map_err(unanswered)? {
            OrderOutcome::Done { sequence } => Ok(sequence.0),
            OrderOutcome::Refused { reason } => Err(Failure::refused(reason)),
        }
    }
}

impl LinkSession {
    pub async fn run(&self, command: &KvCommand) -> Result<KvReply, ClientError> {
        self.run_with(command, CallOptions::default()).await
    }

    pub async fn run_with(&self, command: &KvCommand, options: CallOptions) -> Result<KvReply, ClientError> {
        Ok(run(&self.session, command, options).await?.reply)
    }

    /// Several commands at once, all of them ordered, an answer for each.
    pub async fn run_all(&self, commands: Vec<KvCommand>) -> Vec<Result<KvReply, ClientError>> {
        let answers = self.session.execute(commands).await;
        answers.into_iter().map(|answer| Ok(answer?.reply)).collect()
    }
}

async fn run(
    session: &Session,
    command: &KvCommand,
    options: CallOptions,
) -> Result<Believed<KvReply>, ClientError> {
    if command.read_only() {
        let answer = session.read(&Command::Machine(command.encode()), options).await?;
        return answer.try_map(|bytes| {
            KvReply::decode(&bytes).map_err(|error| ClientError::UnexpectedAnswer(error.to_string()))
        });
    }
    let mut answers = session.execute_with(vec![command.clone()], options).await;
    answers.pop().unwrap_or_else(|| Err(ClientError::Unknown("the client library gave no answer".into())))
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let kind = match (&error, error.fate()) {
            (ClientError::NotSent(why), _) if why.starts_with("not sent within") => Kind::Unreachable,
            (_, Fate::NotApplied | Fate::Applied) => Kind::Refused,
            (_, Fate::Unknown) => Kind::Unknown,
        };
        Self::new(kind, error)
    }
}

fn node_failure(error: NodeError) -> Failure {
    let kind = match error {
        NodeError::Unreachable(_) | NodeError::TimedOut(_) => Kind::Unreachable,
        _ => Kind::Refused,
    };
    Failure::new(kind, error)
}

/// A replica that has just begun, for tests of those who show it.
#[cfg(test)]
pub fn blank_status(replica: ReplicaId) -> Status {
    use dwcp_base::{Hash, Incarnation, PublicKey, Sequence};
    Status {
        replica,
        incarnation: Incarnation(0),
        n: 4,
        f: 1,
        view: View(0),
        view_active: true,
        primary: ReplicaId(0),
        executed: Sequence(0),
        stable: Sequence(0),
        highest_seen: Sequence(0),
        position: Position(0),
        chain: Hash([0; 32]),
        state_digest_sequence: Sequence(0),
        state_digest: Hash([0; 32]),
        pending_frames: 0,
        pending_bytes: 0,
        executed_commands: 0,
        log_time_ms: 0,
        voter: true,
        transferring: false,
        not_ready: Vec::new(),
        counters: Vec::new(),
        peers: Vec::new(),
        vote_key: PublicKey([0; 32]),
        mode: dwcp_base::NetworkMode::Hybrid,
        trust: dwcp_base::Trust::Crash,
        raft: true,
        default_ack: dwcp_base::Ack::Majority,
        next_order: 1,
        epoch: dwcp_base::Epoch(0),
        protocol: dwcp_replica::ProtocolName::Pbft,
        orderer: Some(ReplicaId(0)),
        segment: None,
        failovers: 0,
        last_switch: None,
        no_segment: String::new(),
        sync: None,
    }
}
