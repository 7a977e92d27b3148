//! `AdaptiveConsensus` beside others: seeds that are liars, programs without a Raft, operators who race each other.
//!
//! Clusters of nodes in this process; nothing here waits for a fixed time, and every wait has a bound far above what any
//! machine needs.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use dwcp::adaptive::{AdaptiveConsensus, Builder, ConsensusError, StartError};
use dwcp::base::Now;
use dwcp::client::{ClientConfig, ReplicaId};
use dwcp::init::{ClusterOptions, Ports, TrialCluster, TrialOptions, trial_cluster};
use dwcp::kv::{KvCommand, KvReply};
use dwcp::raft::{OpenError, OwnRaft, RaftMaker, RaftNode, SegmentSetup};
use dwcp::settings::Mode;
use dwcp::{Label, NetworkMode, NodeConfig, ProtocolName};

use super::PATIENCE;
use super::examples::runtime;

fn trial(folder: &Path, nodes: usize, mode: Mode) -> TrialCluster {
    let cluster = ClusterOptions { mode, ..ClusterOptions::default() };
    let options = TrialOptions { cluster, ports: Ports::Free, ..TrialOptions::default() };
    trial_cluster(nodes, &folder.join("trial"), &options).expect("a trial cluster")
}

fn builder(trial: &TrialCluster, node: usize) -> Builder {
    let client = ClientConfig::read(&trial.client_file, Some("admin")).expect("a client file");
    let admin = client.principal.clone();
    let config = NodeConfig::load(&trial.nodes[node].config_file).expect("a settings file");
    AdaptiveConsensus::builder(config, client).admin(admin)
}

/// A Raft that is not the project's, as far as the program can see: all segments are opened through it.
#[derive(Debug, Default)]
struct Foreign {
    opened: AtomicUsize,
}

impl RaftMaker for Foreign {
    fn open(&self, setup: SegmentSetup, records: &[Bytes], now: Now) -> Result<Box<dyn RaftNode>, OpenError> {
        self.opened.fetch_add(1, Ordering::Relaxed);
        OwnRaft.open(setup, records, now)
    }
}

async fn all(trial: &TrialCluster) -> Vec<AdaptiveConsensus> {
    let mut nodes = Vec::new();
    for node in 0..trial.nodes.len() {
        nodes.push(builder(trial, node).start().await.expect("it starts"));
    }
    nodes
}

async fn under(nodes: &[AdaptiveConsensus], protocol: ProtocolName) {
    let until = Instant::now() + PATIENCE;
    for node in nodes {
        while node.status().await.expect("it answers").protocol != protocol {
            assert!(Instant::now() < until, "{protocol:?} does not come: {:?}", node.status().await);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

async fn end(nodes: Vec<AdaptiveConsensus>) {
    for node in nodes {
        node.shutdown().await.expect("it ends");
    }
}

#[test]
fn what_is_proposed_through_one_node_is_there_for_all_and_measured_by_its_protocol() {
    let folder = tempfile::tempdir().expect("a folder");
    let trial = trial(folder.path(), 4, Mode::Hybrid);
    runtime().block_on(async {
        let raft = Arc::new(Foreign::default());
        let mut nodes = Vec::new();
        for node in 0..4 {
            nodes.push(builder(&trial, node).set_raft_node(raft.clone()).start().await.expect("it starts"));
        }
        under(&nodes, ProtocolName::Raft).await;
        assert!(raft.opened.load(Ordering::Relaxed) >= 4, "each opened its own: {raft:?}");
        assert_eq!(
            nodes[1].expected_latency().await.unwrap(),
            Duration::from_millis(500),
            "nothing measured yet"
        );
        let mut last = 0;
        for number in 0..5 {
            let put = KvCommand::put("a", number.to_string()).encode();
            let answer = nodes[1].propose_bytes(put, None).await.expect("it is ordered");
            assert!(answer.receipt.position.0 > last, "each behind the one before");
            last = answer.receipt.position.0;
        }
        let get = KvCommand::get("a").encode();
        let read = nodes[3].propose_bytes(get, None).await.expect("it is ordered");
        let reply = KvReply::decode(&read.reply).expect("a reply of the store");
        assert!(format!("{reply:?}").contains("b\"4\""), "{reply:?}");

        let metrics = nodes[1].metrics().await.unwrap();
        assert_eq!(
            (metrics.consensus_count, metrics.failover_count, metrics.mode),
            (5, 0, NetworkMode::Hybrid)
        );
        assert!(metrics.last_consensus_time.is_some() && metrics.avg_consensus_time > Duration::ZERO);
        let pbft = metrics.pbft;
        assert_eq!((pbft.replica_count, pbft.byzantine_tolerance), (4, 1));
        assert!(pbft.executed_requests >= 6);
        let mut primaries = 0;
        for node in &nodes {
            primaries += u32::from(node.metrics().await.unwrap().pbft.is_primary);
        }
        assert_eq!(primaries, 1);
        let expected = nodes[1].expected_latency().await.unwrap();
        assert!(
            expected != Duration::from_millis(500) && expected < PATIENCE,
            "it was measured: {expected:?}"
        );
        end(nodes).await;
    });
}

#[test]
fn operators_who_order_at_once_are_all_obeyed_one_after_the_other() {
    let folder = tempfile::tempdir().expect("a folder");
    let trial = trial(folder.path(), 4, Mode::Hybrid);
    runtime().block_on(async {
        let nodes = all(&trial).await;
        under(&nodes, ProtocolName::Raft).await;
        let before = nodes[0].status().await.unwrap().next_order;
        let (one, two, three) = tokio::join!(
            nodes[0].set_mode(NetworkMode::Internet),
            nodes[1].set_mode(NetworkMode::Datacenter),
            nodes[2].set_mode(NetworkMode::Hybrid),
        );
        [one, two, three].into_iter().for_each(|ordered| ordered.expect("it is taken"));
        let until = Instant::now() + PATIENCE;
        let after = loop {
            let mut seen = Vec::new();
            for node in &nodes {
                let status = node.status().await.unwrap();
                seen.push((status.next_order, status.mode));
            }
            if seen.iter().all(|one| *one == seen[0]) && seen[0].0 >= before + 3 {
                break seen[0].0;
            }
            assert!(Instant::now() < until, "the nodes do not agree on the mode: {seen:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        // A retry whose first try was executed after all may stand in the log twice.
        assert!(after >= before + 3);
        assert_eq!(nodes[0].mode().await.unwrap(), nodes[3].mode().await.unwrap());
        end(nodes).await;
    });
}

#[test]
fn without_a_raft_the_modes_that_need_one_say_so_and_internet_works() {
    let folder = tempfile::tempdir().expect("a folder");
    let trial = trial(folder.path(), 4, Mode::Hybrid);
    runtime().block_on(async {
        let mut nodes = Vec::new();
        for node in 0..3 {
            nodes.push(builder(&trial, node).start().await.expect("it starts"));
        }
        let bare = builder(&trial, 3).without_raft_node().start().await.expect("it starts");
        under(&nodes, ProtocolName::Raft).await;
        under(std::slice::from_ref(&bare), ProtocolName::Raft).await;
        let put = || KvCommand::put("a", "1").encode();
        let not_there = |error: ConsensusError| {
            assert!(matches!(error, ConsensusError::RaftNotInitialized), "{error:?}");
            assert_eq!(error.to_string(), "Raft node not initialized");
        };
        not_there(bare.propose_bytes(put(), None).await.unwrap_err());
        not_there(bare.set_mode(NetworkMode::Datacenter).await.unwrap_err());
        let health = bare.is_healthy().await;
        assert!(health.reasons.iter().any(|reason| reason == "Raft node not initialized"), "{health:?}");
        // The others do not need it.
        assert_eq!(nodes[0].propose_bytes(put(), None).await.unwrap().receipt.label, Label::Crash);

        bare.set_mode(NetworkMode::Internet).await.expect("PBFT needs no Raft");
        let answer = bare.propose_bytes(put(), None).await.expect("and orders");
        assert_eq!(answer.receipt.label, Label::Byzantine);
        nodes.push(bare);
        end(nodes).await;
    });
}

/// Nobody can open a segment: PBFT serves, and the mode is hybrid all the same.
#[test]
fn a_hybrid_cluster_without_any_raft_orders_by_the_root() {
    let folder = tempfile::tempdir().expect("a folder");
    let trial = trial(folder.path(), 4, Mode::Hybrid);
    runtime().block_on(async {
        let mut nodes = Vec::new();
        for node in 0..4 {
            nodes.push(builder(&trial, node).without_raft_node().start().await.expect("it starts"));
        }
        let put = KvCommand::put("a", "1").encode();
        let answer = nodes[2].propose_bytes(put, None).await.expect("PBFT orders");
        assert_eq!(answer.receipt.label, Label::Byzantine);
        assert_eq!(nodes[2].mode().await.unwrap(), NetworkMode::Hybrid);
        end(nodes).await;
    });
}

#[test]
fn a_seed_is_whose_key_it_shows_and_leads_to_members_that_have_moved() {
    let folder = tempfile::tempdir().expect("a folder");
    let trial = trial(folder.path(), 4, Mode::Internet);
    // Another cluster's node at an address that was given as a seed: a stranger, whatever it says.
    let elsewhere = tempfile::tempdir().expect("a folder");
    let other = self::trial(elsewhere.path(), 4, Mode::Internet);
    runtime().block_on(async {
        let stranger = builder(&other, 2).start().await.expect("it starts");
        let mut nodes = Vec::new();
        for node in 1..4 {
            nodes.push(builder(&trial, node).start().await.expect("it starts"));
        }
        // This client file was written before the members moved: nobody is where it says.
        let mut lost = ClientConfig::read(&trial.client_file, Some("admin")).expect("a client file");
        lost.nodes.iter_mut().for_each(|node| node.address = "127.0.0.1:9".into());
        lost.settings.connect_timeout = Duration::from_secs(2);
        let at = |node: usize| trial.nodes[node].listen.client.to_string();
        let seeds = [at(1), other.nodes[2].listen.client.to_string(), at(3), at(0), "127.0.0.1:9".into()];
        let config = NodeConfig::load(&trial.nodes[0].config_file).expect("a settings file");
        let first =
            AdaptiveConsensus::builder(config, lost).gossip_peers(seeds).start().await.expect("it starts");
        let found: Vec<Option<u8>> =
            first.seeds().iter().map(|seed| seed.member.as_ref().ok().map(|id: &ReplicaId| id.0)).collect();
        assert_eq!(found, [Some(1), None, Some(3), Some(0), None], "{:?}", first.seeds());
        let put = KvCommand::put("a", "1").encode();
        let answer = first.propose_bytes(put, None).await.expect("the members are found");
        assert_eq!(answer.receipt.label, Label::Byzantine);
        assert!(matches!(first.set_mode(NetworkMode::Hybrid).await, Err(ConsensusError::NoAdmin)));
        nodes.extend([first, stranger]);
        end(nodes).await;
    });
}

#[test]
fn a_client_of_another_cluster_is_refused_at_the_start() {
    let (one, two) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let (own, other) = (trial(one.path(), 1, Mode::Datacenter), trial(two.path(), 1, Mode::Datacenter));
    runtime().block_on(async {
        let client = ClientConfig::read(&other.client_file, None).expect("a client file");
        let config = NodeConfig::load(&own.nodes[0].config_file).expect("a settings file");
        let refused = AdaptiveConsensus::builder(config.clone(), client).start().await;
        assert!(matches!(refused, Err(StartError::OtherCluster)), "{refused:?}");
        // Nothing runs: the same node starts with the right one.
        let node = builder(&own, 0).start().await.expect("the disk and the ports are free");
        assert_eq!(node.mode().await.unwrap(), NetworkMode::Datacenter);
        end(vec![node]).await;
    });
}
