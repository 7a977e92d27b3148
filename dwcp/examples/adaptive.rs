//! Consensus as a program that embeds it sees it: four nodes in hybrid mode, values proposed whichever protocol orders them,
//! a look at the health, a switch to PBFT and back by order, and the figures.
//!
//! `cargo run --release -p dwcp --example adaptive`

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use dwcp::client::{ClientConfig, label_word};
use dwcp::init::{ClusterOptions, Ports, TrialOptions, trial_cluster};
use dwcp::settings::Mode;
use dwcp::state::QueryError;
use dwcp::{
    Ack, AdaptiveConsensus, Context, MachineRefusal, NetworkMode, NodeConfig, ProtocolName, Small,
    SmallMachine,
};
use serde_json::{Value, json};

/// Far above what any machine needs.
const PATIENCE: Duration = Duration::from_secs(60);
const FIELDS_MAX: usize = 10_000;

/// One JSON object that all nodes agree on: a proposal `{"field": value, ...}` sets fields, and the answer says how many
/// there are now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Document {
    // Ordered, so that equal documents are equal bytes on every node. At most `FIELDS_MAX`.
    fields: BTreeMap<String, Value>,
}

impl SmallMachine for Document {
    const NAME: &'static str = "document (example)";

    fn apply(&mut self, _: &Context<'_>, command: &[u8]) -> Result<Bytes, MachineRefusal> {
        let Ok(Value::Object(fields)) = serde_json::from_slice(command) else {
            return Err(MachineRefusal::new(1, "propose a JSON object"));
        };
        let added = fields.keys().filter(|field| !self.fields.contains_key(*field)).count();
        if self.fields.len() + added > FIELDS_MAX {
            return Err(MachineRefusal::new(2, "the document is full"));
        }
        self.fields.extend(fields);
        Ok(Bytes::from(self.fields.len().to_string()))
    }

    fn read_only(&self, _: &[u8]) -> bool {
        false
    }

    fn query(&self, field: &[u8]) -> Result<Bytes, QueryError> {
        let field = std::str::from_utf8(field).map_err(|_| QueryError::Malformed)?;
        Ok(self.fields.get(field).map_or(Bytes::new(), |value| Bytes::from(value.to_string())))
    }

    fn save(&self) -> Vec<u8> {
        serde_json::to_vec(&self.fields).expect("strings and values have a JSON form")
    }

    fn load(&self, bytes: &[u8]) -> Option<Self> {
        Some(Self { fields: serde_json::from_slice(bytes).ok()? })
    }
}

/// One of the nodes. In life each runs in a process of its own and knows one or two others by address.
async fn start(
    config_file: &Path,
    client_file: &Path,
    seed: String,
) -> Result<AdaptiveConsensus, Box<dyn Error>> {
    let client = ClientConfig::read(client_file, Some("admin"))?;
    let admin = client.principal.clone();
    let node = NodeConfig::load(config_file)?;
    let consensus = AdaptiveConsensus::builder(node, client).admin(admin).gossip_peers([seed]);
    Ok(consensus.start_with(|_| Small::new(Document::default())).await?)
}

/// Waits until every node says that this protocol orders commands.
async fn ordered_by(nodes: &[AdaptiveConsensus], protocol: ProtocolName) -> Result<(), Box<dyn Error>> {
    let until = Instant::now() + PATIENCE;
    for node in nodes {
        while node.status().await?.protocol != protocol {
            if Instant::now() > until {
                return Err(format!("{} does not come: {:?}", protocol.word(), node.status().await?).into());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    println!("commands are ordered by {}", protocol.word());
    Ok(())
}

async fn propose(node: &AdaptiveConsensus, value: Value, ack: Ack) -> Result<u64, Box<dyn Error>> {
    let answer = node.propose_with(&value, ack).await?;
    let fields = std::str::from_utf8(&answer.reply)?.parse()?;
    let label = label_word(answer.receipt.label);
    println!("{value}: {fields} fields (label {label}, position {})", answer.receipt.position);
    Ok(fields)
}

/// The whole story in a folder that does not exist yet. Returns how many fields there are at the end.
pub async fn story(folder: &Path) -> Result<u64, Box<dyn Error>> {
    let cluster = ClusterOptions { mode: Mode::Hybrid, ..ClusterOptions::default() };
    let options = TrialOptions { cluster, ports: Ports::Free, ..TrialOptions::default() };
    let trial = trial_cluster(4, folder, &options)?;
    let mut nodes = Vec::new();
    for node in &trial.nodes {
        nodes.push(
            start(&node.config_file, &trial.client_file, trial.nodes[0].listen.client.to_string()).await?,
        );
    }
    let first = &nodes[0];
    println!("expected at first: {:?}", first.expected_latency().await?);

    ordered_by(&nodes, ProtocolName::Raft).await?;
    propose(first, json!({ "service": "web", "replicas": 3 }), Ack::Majority).await?;
    // The same node, the same segment, and yet an answer that holds though one member lies.
    propose(&nodes[1], json!({ "service": "api" }), Ack::Anchored).await?;

    for (number, node) in nodes.iter().enumerate() {
        let health = node.is_healthy().await;
        println!("node {number} is healthy: {} {:?}", health.ok(), health.reasons);
    }

    // Any node may order it; all follow.
    nodes[2].set_mode(NetworkMode::Internet).await?;
    ordered_by(&nodes, ProtocolName::Pbft).await?;
    propose(first, json!({ "replicas": 5 }), Ack::Majority).await?;

    nodes[3].set_mode(NetworkMode::Hybrid).await?;
    ordered_by(&nodes, ProtocolName::Raft).await?;
    let fields = propose(first, json!({ "region": "north" }), Ack::Majority).await?;

    println!("expected now: {:?}", first.expected_latency().await?);
    println!("{:#?}", first.metrics().await?);
    for node in nodes {
        node.shutdown().await?;
    }
    Ok(fields)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    story(&folder.path().join("adaptive")).await?;
    Ok(())
}
