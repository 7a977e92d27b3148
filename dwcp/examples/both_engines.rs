//! Both engines on one node, as a program that embeds them sees it: what must be ordered is proposed, what any node may change is
//! synchronised, in every mode.
//!
//! `cargo run --release -p dwcp --example both_engines`

use std::error::Error;
use std::path::Path;
use std::time::Duration;

use dwcp::client::ClientConfig;
use dwcp::client::store::KvCommand;
use dwcp::init::{ClusterOptions, Ports, TrialOptions, trial_cluster};
use dwcp::settings::Mode;
use dwcp::{AdaptiveConsensus, NetworkMode, NodeConfig, StateSync};
use serde_json::json;

/// Far above what any machine needs.
const PATIENCE: Duration = Duration::from_secs(60);

async fn start(config_file: &Path, client_file: &Path) -> Result<AdaptiveConsensus, Box<dyn Error>> {
    let client = ClientConfig::read(client_file, Some("admin"))?;
    let admin = client.principal.clone();
    let node = NodeConfig::load(config_file)?;
    Ok(AdaptiveConsensus::builder(node, client).admin(admin).start().await?)
}

async fn converged(sync: &StateSync) -> Result<(), Box<dyn Error>> {
    if sync.converged_with(&[], PATIENCE).await? { Ok(()) } else { Err("the nodes differ".into()) }
}

/// The whole story in a folder that does not exist yet. Returns how many conflicts were counted.
pub async fn story(folder: &Path) -> Result<u64, Box<dyn Error>> {
    let cluster = ClusterOptions { mode: Mode::Hybrid, ..ClusterOptions::default() };
    let options = TrialOptions { cluster, ports: Ports::Free, ..TrialOptions::default() };
    let trial = trial_cluster(4, folder, &options)?;
    let mut nodes = Vec::new();
    for node in &trial.nodes {
        nodes.push(start(&node.config_file, &trial.client_file).await?);
    }
    let syncs: Vec<StateSync> = nodes.iter().map(AdaptiveConsensus::state_sync).collect();
    let mut watch = syncs[3].watch("service/").await?;

    // Consensus: one order for all. A proposal is a command of the machine, here of the key-value store.
    let put = KvCommand::put("leader", "node 0").encode();
    let ordered = nodes[0].propose_bytes(put, None).await?;
    println!("ordered at position {}", ordered.receipt.position);

    // State sync: one frame sets every key of the map.
    let written = syncs[0]
        .sync_state([("service/web", json!({ "replicas": 3 })), ("service/api", json!("up"))])
        .await?;
    println!("two keys by {}, in {} us", written.road.word(), written.latency_us);
    let seen = watch.next().await?;
    println!("node 3 saw {} keys change", seen.len());

    // Any node may change anything; counters and sets merge without conflict.
    for sync in &syncs {
        sync.adjust("visits", 1).await?;
        sync.add("regions", &"north").await?;
    }
    converged(&syncs[0]).await?;
    println!(
        "visits: {:?}, regions: {:?}",
        syncs[2].get_json("visits").await?,
        syncs[1].get_json("regions").await?
    );

    // By gossip, at once on two nodes: a real conflict, counted on all of them.
    syncs[1].set_mode(NetworkMode::Internet).await?;
    for sync in &syncs {
        while sync.mode().await? != NetworkMode::Internet {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    let mut conflicts = 0;
    while conflicts == 0 {
        let (one, other) = tokio::join!(syncs[0].put("colour", &"red"), syncs[2].put("colour", &"blue"));
        one?;
        other?;
        converged(&syncs[0]).await?;
        conflicts = syncs[3].metrics().await?.conflict_count;
    }
    println!("colour: {:?}", syncs[3].get_json("colour").await?);
    for sync in &syncs {
        assert_eq!(sync.metrics().await?.conflict_count, conflicts, "alike everywhere");
    }
    syncs[0].delete("colour").await?;
    converged(&syncs[0]).await?;
    println!("{:#?}", syncs[0].metrics().await?);
    for node in nodes {
        node.shutdown().await?;
    }
    Ok(conflicts)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    story(&folder.path().join("both")).await?;
    Ok(())
}
