//! Nodes that have moved find each other: by what members tell of themselves, and by seeds. Only the settings of the node
//! that moves change.

use std::path::Path;
use std::time::{Duration, Instant};

use dwcp::adaptive::{AdaptiveConsensus, Builder};
use dwcp::client::ClientConfig;
use dwcp::init::{ClusterOptions, Ports, TrialCluster, TrialOptions, trial_cluster};
use dwcp::kv::KvCommand;
use dwcp::settings::Mode;
use dwcp::{HintReport, NodeConfig, Standing};

use super::PATIENCE;
use super::examples::runtime;

fn trial(folder: &Path) -> TrialCluster {
    let cluster = ClusterOptions { mode: Mode::Internet, ..ClusterOptions::default() };
    let options = TrialOptions { cluster, ports: Ports::Free, ..TrialOptions::default() };
    trial_cluster(4, &folder.join("trial"), &options).expect("a trial cluster")
}

/// `moved`: it listens for the others at a port that no settings and no genesis name.
fn builder(trial: &TrialCluster, node: usize, moved: bool) -> Builder {
    let client = ClientConfig::read(&trial.client_file, Some("admin")).expect("a client file");
    let mut config = NodeConfig::load(&trial.nodes[node].config_file).expect("a settings file");
    if moved {
        config.peer_listen = "127.0.0.1:0".parse().expect("an address");
    }
    AdaptiveConsensus::builder(config, client)
}

async fn until(
    what: &str,
    nodes: &[&AdaptiveConsensus],
    mut holds: impl FnMut(&AdaptiveConsensus, &str) -> bool,
) {
    let until = Instant::now() + PATIENCE;
    for node in nodes {
        while !holds(node, &node.node().metrics().await) {
            let hints = node.node().hints();
            assert!(Instant::now() < until, "{what} does not come at {}: {hints:#?}", node.node().replica());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn is_linked(metrics: &str, peer: u8, address: &str) -> bool {
    let has = |wanted: String| metrics.lines().any(|line| line == wanted);
    has(format!("dwcp_link_up{{peer=\"{peer}\"}} 1"))
        && has(format!("dwcp_link_address_info{{peer=\"{peer}\",address=\"{address}\"}} 1"))
}

fn holds_alive(report: &HintReport, peer: u8) -> bool {
    report.hints.iter().any(|hint| hint.replica.0 == peer && hint.standing == Standing::Alive)
}

async fn put(node: &AdaptiveConsensus, key: &str) {
    let put = KvCommand::put(key.to_string(), "1").encode();
    tokio::time::timeout(PATIENCE, node.propose_bytes(put, None))
        .await
        .expect("in time")
        .expect("it is ordered");
}

#[test]
fn a_node_that_listens_elsewhere_is_found_by_the_others_and_counted_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let trial = trial(folder.path());
    runtime().block_on(async {
        let mut nodes = Vec::new();
        for node in 0..4 {
            nodes.push(builder(&trial, node, false).start().await.expect("it starts"));
        }
        put(&nodes[0], "a").await;
        let last = nodes.pop().expect("four");
        let old = last.node().peer_addr();
        last.shutdown().await.expect("it ends");

        let moved = builder(&trial, 3, true).start().await.expect("it starts");
        let new = moved.node().peer_addr();
        assert_ne!(old, new);
        let all: Vec<&AdaptiveConsensus> = nodes.iter().collect();
        until("a link to where it is now", &all, |node, metrics| {
            is_linked(metrics, 3, &new.to_string()) && holds_alive(&node.node().hints(), 3)
        })
        .await;
        let hint = nodes[0].node().hints().hints.pop().expect("of node 3");
        assert_eq!((hint.replica.0, hint.address), (3, Some(new.to_string())));

        // Three of four make a quorum, and it is one of the three.
        nodes.remove(1).shutdown().await.expect("it ends");
        put(&nodes[0], "b").await;
        put(&moved, "c").await;
        until("the one that ended is held down", &[&nodes[0], &moved], |node, _| {
            node.node()
                .hints()
                .hints
                .iter()
                .any(|hint| hint.replica.0 == 1 && hint.standing == Standing::Down)
        })
        .await;
        for node in nodes.into_iter().chain([moved]) {
            node.shutdown().await.expect("it ends");
        }
    });
}

#[test]
fn nodes_whose_addresses_of_all_others_are_stale_find_them_through_a_seed() {
    let folder = tempfile::tempdir().expect("a folder");
    let trial = trial(folder.path());
    runtime().block_on(async {
        // All four have moved: no address in the genesis leads anywhere.
        let mut nodes = vec![builder(&trial, 0, true).start().await.expect("it starts")];
        let seed = nodes[0].node().peer_addr().to_string();
        for node in 1..4 {
            let builder = builder(&trial, node, true).gossip_peers([seed.clone()]);
            nodes.push(builder.start().await.expect("it starts"));
        }
        assert_eq!(nodes[1].node().config().seeds, [seed]);
        let addresses: Vec<String> = nodes.iter().map(|node| node.node().peer_addr().to_string()).collect();
        let all: Vec<&AdaptiveConsensus> = nodes.iter().collect();
        until("links to all", &all, |node, metrics| {
            let others = (0..4u8).filter(|peer| *peer != node.node().replica().0);
            others.into_iter().all(|peer| is_linked(metrics, peer, &addresses[usize::from(peer)]))
        })
        .await;
        put(&nodes[2], "a").await;
        for node in nodes {
            assert_eq!(node.node().hints().drops.of(dwcp::DropReason::BadSignature), 0);
            node.shutdown().await.expect("it ends");
        }
    });
}
