//! `StateSync` of nodes in this process: every operation, resolvers of one's own, acknowledgements by several nodes, conflicts and
//! their bound, and programs without a Raft.
//!
//! Conflicts are made without luck: of two nodes each writes while the other is not there.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use dwcp::adaptive::{AdaptiveConsensus, Builder};
use dwcp::client::ClientConfig;
use dwcp::init::{ClusterOptions, Ports, TrialCluster, TrialOptions, trial_cluster};
use dwcp::settings::Mode;
use dwcp::state_sync::values::{Op, Plain, Resolver, Sibling, Strategy, Write};
use dwcp::state_sync::{StateSync, StateSyncError};
use dwcp::{NetworkMode, NodeConfig};
use serde_json::{Value, json};

use super::PATIENCE;
use super::examples::runtime;

fn trial(folder: &Path, nodes: usize, mode: Mode) -> TrialCluster {
    let cluster = ClusterOptions { mode, ..ClusterOptions::default() };
    let options = TrialOptions { cluster, ports: Ports::Free, ..TrialOptions::default() };
    trial_cluster(nodes, &folder.join("trial"), &options).expect("a trial cluster")
}

/// With quick exchanges, and what else stands in the section.
fn configure(trial: &TrialCluster, lines: &str) {
    for node in &trial.nodes {
        let text = std::fs::read_to_string(&node.config_file).unwrap();
        let text = text.replacen("[sync]", &format!("[sync]\nexchange_interval_ms = 200\n{lines}"), 1);
        std::fs::write(&node.config_file, text).unwrap();
    }
}

fn builder(trial: &TrialCluster, node: usize) -> Builder {
    let client = ClientConfig::read(&trial.client_file, Some("admin")).expect("a client file");
    let admin = client.principal.clone();
    let config = NodeConfig::load(&trial.nodes[node].config_file).expect("a settings file");
    AdaptiveConsensus::builder(config, client).admin(admin)
}

async fn started(builder: Builder) -> (AdaptiveConsensus, StateSync) {
    let node = builder.start().await.expect("it starts");
    let sync = node.state_sync();
    (node, sync)
}

async fn end(nodes: impl IntoIterator<Item = AdaptiveConsensus>) {
    for node in nodes {
        node.shutdown().await.expect("it ends");
    }
}

/// Each of the first nodes writes what it is given while no other runs; then all run.
async fn met(
    trial: &TrialCluster,
    build: impl Fn(usize) -> Builder,
    writes: impl IntoIterator<Item = Vec<Write>>,
) -> (Vec<AdaptiveConsensus>, Vec<StateSync>) {
    for (node, writes) in writes.into_iter().enumerate() {
        let (alone, sync) = started(build(node)).await;
        sync.write(writes).await.expect("nobody else is needed");
        alone.shutdown().await.expect("it ends");
    }
    let mut all = (Vec::new(), Vec::new());
    for node in 0..trial.nodes.len() {
        all.extend([started(build(node)).await]);
    }
    for sync in &all.1 {
        assert!(sync.converged_with(&[], PATIENCE).await.expect("it answers"), "the nodes differ");
    }
    all
}

fn value(value: Value) -> Plain {
    Plain::json(&value.to_string()).unwrap()
}

fn put(key: &str, to: Value) -> Write {
    Write::new(key.to_string(), Op::Put(value(to)))
}

#[test]
fn every_operation_is_done_by_a_running_node_or_refused_with_the_reason() {
    let folder = tempfile::tempdir().expect("a folder");
    let trial = trial(folder.path(), 1, Mode::Datacenter);
    configure(&trial, "ordered_prefixes = \"ordered/\"");
    runtime().block_on(async {
        let (node, sync) = started(builder(&trial, 0)).await;
        let mut watch = sync.watch("").await.expect("it answers");
        let at = |key: &str, path: &[&str], op: Op| Write::at(key.to_string(), path.iter().map(ToString::to_string), op);
        let v = || value(json!("v"));
        let writes = vec![
            at("register", &[], Op::Put(v())),
            at("mv", &[], Op::PutMulti(v())),
            at("grow", &[], Op::Grow(4)),
            at("count", &[], Op::Adjust(-4)),
            at("g-set", &[], Op::AddForever(v())),
            at("2p-set", &[], Op::AddOnce(v())),
            at("2p-set", &[], Op::AddOnce(value(json!("w")))),
            at("2p-set", &[], Op::RemoveForGood(v())),
            at("or-set", &[], Op::Add(v())),
            at("or-set", &[], Op::Add(value(json!("w")))),
            at("or-set", &[], Op::Remove(v())),
            at("list", &[], Op::Insert { index: 0, value: v() }),
            at("list", &[], Op::Insert { index: 0, value: value(json!("u")) }),
            at("list", &[], Op::Erase { index: 1 }),
            at("map", &["a", "b"], Op::Adjust(7)),
            at("map", &["a", "c"], Op::Insert { index: 0, value: v() }),
            at("gone", &[], Op::Put(v())),
            at("gone", &[], Op::Delete),
        ];
        let written = sync.write(writes).await.expect("it is ordered");
        assert_eq!((written.road.word(), written.nodes), ("log", 1));
        let expected = json!({
            "register": "v", "mv": ["v"], "grow": 4, "count": -4, "g-set": ["v"], "2p-set": ["w"], "or-set": ["w"],
            "list": ["u"], "map": {"a": {"b": 7, "c": ["v"]}},
        });
        assert_eq!(json!(sync.state("").await.unwrap()), expected);
        assert_eq!(json!(sync.state("g").await.unwrap()), json!({"grow": 4, "g-set": ["v"]}));
        let inner = sync.get_at("map", ["a", "b"]).await.unwrap();
        assert_eq!(inner, Some(dwcp::state_sync::values::View::Count(7)));
        assert_eq!((sync.get("gone").await.unwrap(), sync.get_at("map", ["z"]).await.unwrap()), (None, None));
        let mut seen = Vec::new();
        while seen.len() < 10 {
            seen.extend(watch.next().await.expect("it goes on"));
        }
        assert!(seen.iter().any(|(key, view)| key == "gone" && view.is_none()), "{seen:?}");

        for (write, words) in [
            (at("count", &[], Op::Put(v())), "holds a pn-counter, not a register"),
            (at("2p-set", &[], Op::AddOnce(v())), "removed from it for good"),
            (at("list", &[], Op::Erase { index: 1 }), "index 1 is outside the list of 1 items"),
            (at("ordered/a", &[], Op::Put(v())), "below the ordered prefix"),
            (at("", &[], Op::Put(v())), "key"),
        ] {
            // All or none: what stands beside it is not written either.
            let refused = sync.write(vec![put("beside", json!(1)), write]).await.unwrap_err();
            assert!(matches!(&refused, StateSyncError::Refused(why) if why.contains(words)), "{words}: {refused}");
        }
        assert_eq!(sync.get("beside").await.unwrap(), None);

        let metrics = sync.metrics().await.unwrap();
        assert_eq!((metrics.mode, metrics.sync_count, metrics.conflict_count), (NetworkMode::Datacenter, 1, 0));
        let age = SystemTime::now().duration_since(metrics.last_sync_time.expect("there was one")).unwrap_or_default();
        assert!(age < PATIENCE && metrics.avg_sync_latency > Duration::ZERO, "{metrics:?}");
        end([node]).await;
    });
}

/// The longest value wins; of equally long ones the greatest.
#[derive(Debug)]
struct Longest;

impl Resolver for Longest {
    fn name(&self) -> &'static str {
        "longest"
    }

    fn resolve(&self, _key: &[u8], siblings: &[Sibling<'_>]) -> Option<Plain> {
        let values = siblings.iter().filter_map(|sibling| sibling.value);
        values.max_by_key(|value| (value.as_bytes().len(), value.as_bytes().to_vec())).cloned()
    }
}

/// No function of the set: it takes what it is handed last.
#[derive(Debug)]
struct Last;

impl Resolver for Last {
    fn name(&self) -> &'static str {
        "last"
    }

    fn resolve(&self, _key: &[u8], siblings: &[Sibling<'_>]) -> Option<Plain> {
        siblings.last().and_then(|sibling| sibling.value.cloned())
    }
}

#[test]
fn each_prefix_is_resolved_by_its_own_rule_on_every_node() {
    let folder = tempfile::tempdir().expect("a folder");
    let trial = trial(folder.path(), 4, Mode::Internet);
    configure(&trial, "");
    runtime().block_on(async {
        let build = |node: usize| {
            builder(&trial, node)
                .resolver("notes/", Strategy::Custom(Arc::new(Longest)))
                .resolver("profiles/", Strategy::Merge)
                .resolver("bad/", Strategy::Custom(Arc::new(Last)))
        };
        // Whoever of the two wrote later: under the last writer's rule one of the notes would be short.
        let writes = [
            vec![
                put("notes/1", json!("long enough")),
                put("notes/2", json!("no")),
                put("profiles/ada", json!({"name": "Ada", "age": 36})),
                put("bad/1", json!("a")),
                put("plain", json!("a")),
            ],
            vec![
                put("notes/1", json!("no")),
                put("notes/2", json!("long enough")),
                put("profiles/ada", json!({"age": 37, "city": "London"})),
                put("bad/1", json!("b")),
                put("plain", json!("b")),
            ],
        ];
        let (mut nodes, mut syncs) = met(&trial, build, writes).await;
        for (sync, node) in syncs.iter().zip(&nodes) {
            let expected = json!({
                "notes/1": "long enough", "notes/2": "long enough",
                "profiles/ada": {"name": "Ada", "age": 37, "city": "London"},
                "bad/1": "b", "plain": "b",
            });
            assert_eq!(json!(sync.state("").await.unwrap()), expected);
            let conflicts = sync.conflicts(0).await.unwrap();
            assert_eq!((conflicts.count, conflicts.open), (5, 5));
            let strategy = |key: &str| {
                let event = conflicts.events.iter().find(|event| event.key == key).expect("it was seen");
                assert_eq!(event.siblings.len(), 2, "{event:?}");
                event.strategy.as_str()
            };
            let strategies = ["notes/1", "profiles/ada", "bad/1", "plain"].map(strategy);
            assert_eq!(strategies, ["longest", "merge", "last", "last_writer_wins"]);
            // The one that depends on order is not believed, and counted.
            let status = node.status().await.unwrap().sync.unwrap();
            assert!(status.resolutions_impure >= 1, "{status:?}");
        }

        // A node with another rule holds the same, shows something else, and is never said to agree.
        nodes.pop().unwrap().shutdown().await.expect("it ends");
        syncs.pop();
        let (other, sync) = started(builder(&trial, 3)).await;
        let until = Instant::now() + PATIENCE;
        loop {
            let compared = syncs[0].compare(&[], Duration::from_secs(2)).await.unwrap();
            let ids = |ids: &[dwcp::client::ReplicaId]| ids.iter().map(|id| id.0).collect::<Vec<_>>();
            if (ids(&compared.level), ids(&compared.differs)) == (vec![1, 2], vec![3]) {
                break;
            }
            assert!(Instant::now() < until, "{compared:?}");
        }
        assert_eq!(sync.get_json("notes/1").await.unwrap(), Some(json!("no")), "its last writer");
        nodes.push(other);
        end(nodes).await;
    });
}

#[test]
fn versions_and_types_side_by_side_are_shown_and_settled_on_one_node_for_all() {
    let folder = tempfile::tempdir().expect("a folder");
    let trial = trial(folder.path(), 4, Mode::Internet);
    configure(&trial, "");
    runtime().block_on(async {
        let multi = |to: &str| Write::new("draft", Op::PutMulti(value(json!(to))));
        let inner = |op| Write::at("map", ["name"], op);
        let writes = [
            vec![multi("a"), put("clash", json!(1)), inner(Op::PutMulti(value(json!("Ada"))))],
            vec![multi("b"), Write::new("clash", Op::Adjust(5)), inner(Op::Add(value(json!("Bob"))))],
        ];
        let (nodes, syncs) = met(&trial, |node| builder(&trial, node), writes).await;
        let everywhere = async |expected: Value, open: u64| {
            for sync in &syncs {
                assert!(sync.converged_with(&[], PATIENCE).await.unwrap(), "the nodes differ");
                assert_eq!(json!(sync.state("").await.unwrap()), expected);
                let conflicts = sync.conflicts(0).await.unwrap();
                assert_eq!((conflicts.count, conflicts.open), (3, open));
            }
        };
        everywhere(json!({"draft": ["a", "b"], "clash": 5, "map": {"name": ["Bob"]}}), 3).await;
        let settling = vec![multi("c"), Write::new("clash", Op::Settle), inner(Op::Settle)];
        syncs[2].write(settling).await.expect("durable here");
        everywhere(json!({"draft": ["c"], "clash": 5, "map": {"name": ["Bob"]}}), 0).await;
        // What is kept goes on as what it is.
        syncs[3].adjust("clash", 1).await.expect("it is a counter");
        everywhere(json!({"draft": ["c"], "clash": 6, "map": {"name": ["Bob"]}}), 0).await;
        end(nodes).await;
    });
}

#[test]
fn the_newest_thousand_conflicts_are_kept_and_all_of_them_counted() {
    const KEYS: usize = 1_007;
    let folder = tempfile::tempdir().expect("a folder");
    let trial = trial(folder.path(), 4, Mode::Internet);
    configure(&trial, "");
    runtime().block_on(async {
        let all = |to: &str| (0..KEYS).map(|key| put(&format!("k{key:04}"), json!(to))).collect::<Vec<_>>();
        let (nodes, syncs) = met(&trial, |node| builder(&trial, node), [all("a"), all("b")]).await;
        for sync in &syncs {
            let seen = sync.conflicts(0).await.unwrap();
            assert_eq!((seen.count, seen.open), (KEYS as u64, KEYS as u64));
            assert_eq!(seen.events.len(), 1_000);
            assert_eq!((&seen.events[0].key[..], &seen.events[999].key[..]), (&b"k0007"[..], &b"k1006"[..]));
            assert_eq!(sync.conflicts(3).await.unwrap().events, seen.events[997..], "the newest");
            assert_eq!(sync.metrics().await.unwrap().conflict_count, KEYS as u64);
        }
        end(nodes).await;
    });
}

#[test]
fn a_write_waits_for_as_many_nodes_as_it_is_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let trial = trial(folder.path(), 4, Mode::Internet);
    configure(&trial, "");
    runtime().block_on(async {
        let (one, sync) = started(builder(&trial, 0)).await;
        assert_eq!(sync.put("a", &1).await.expect("durable here").nodes, 1, "alone it waits for nobody");
        let short = sync.clone().within(Duration::from_millis(300)).wait(2);
        let late = short.put("b", &2).await.unwrap_err();
        assert!(
            matches!(&late, StateSyncError::Unacknowledged(why) if why.contains("of 2 nodes in time")),
            "{late}"
        );
        assert_eq!(sync.get_json("b").await.unwrap(), Some(json!(2)), "it is written all the same");
        let many = sync.clone().wait(5).put("c", &3).await.unwrap_err();
        assert!(matches!(&many, StateSyncError::Refused(why) if why.contains("not so many")), "{many}");
        assert_eq!(sync.get("c").await.unwrap(), None);

        let (two, other) = started(builder(&trial, 1)).await;
        let patient = sync.clone().within(Duration::from_secs(60));
        assert_eq!(patient.wait(2).put("d", &4).await.expect("two are there").nodes, 2);
        // So it stands there, without another exchange.
        assert_eq!(other.get_json("d").await.unwrap(), Some(json!(4)));
        end([one, two]).await;
    });
}

#[test]
fn without_a_raft_datacenter_mode_is_refused_and_the_others_work() {
    let folder = tempfile::tempdir().expect("a folder");
    let trial = trial(folder.path(), 4, Mode::Hybrid);
    runtime().block_on(async {
        let mut nodes = Vec::new();
        for node in 0..3 {
            nodes.push(started(builder(&trial, node)).await.0);
        }
        let (bare, sync) = started(builder(&trial, 3).without_raft_node()).await;
        let not_there = |error: StateSyncError| {
            assert!(matches!(error, StateSyncError::RaftNotInitialized), "{error:?}");
            assert_eq!(error.to_string(), "Raft node not initialized");
        };
        not_there(sync.set_mode(NetworkMode::Datacenter).await.unwrap_err());
        assert_eq!(sync.put("a", &1).await.expect("hybrid mode has another road").road.word(), "gossip");

        let other = nodes[0].state_sync().within(Duration::from_secs(60));
        other.set_mode(NetworkMode::Datacenter).await.expect("it has a Raft");
        let until = Instant::now() + PATIENCE;
        while sync.mode().await.unwrap() != NetworkMode::Datacenter {
            assert!(Instant::now() < until, "the order does not come");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        not_there(sync.put("b", &2).await.unwrap_err());
        assert_eq!(sync.get("b").await.unwrap(), None, "nothing was written");
        assert_eq!(other.put("b", &3).await.expect("the log has it").road.word(), "log");

        sync.set_mode(NetworkMode::Internet).await.expect("PBFT needs no Raft");
        while sync.mode().await.unwrap() != NetworkMode::Internet {
            assert!(Instant::now() < until, "the order does not come");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(sync.put("c", &4).await.expect("durable here").road.word(), "gossip");
        nodes.push(bare);
        end(nodes).await;
    });
}
