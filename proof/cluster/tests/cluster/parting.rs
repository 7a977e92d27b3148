//! Convergent state among real processes: parted by proxies in their links, written on both sides, killed, restarted and
//! healed. What must be counted is worked out from what was written alone.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use cluster::replace::replace_member;
use cluster::watch::Watch;
use cluster::{Cluster, Options, parted};
use dwcp::proxy::LinkProxies;
use dwcp_base::ReplicaId;
use dwcp_client::values::{Op, Plain, View, Write};
use dwcp_client::{Client, Road, SyncError, SyncStanding};

use super::{PROGRAM, alone, runtime};

/// Far above what anything takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// Chance of our own, so that a run can be said again by its seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

fn text(text: &str) -> Plain {
    Plain::json(&format!("\"{text}\"")).unwrap()
}

/// What was acknowledged: per register which sides wrote it while parted and the last value of each, counters and sets.
#[derive(Default)]
struct Written {
    registers: BTreeMap<String, BTreeMap<usize, String>>,
    counters: BTreeMap<String, i128>,
    sets: BTreeMap<String, BTreeSet<Plain>>,
}

impl Written {
    /// Each side replaced the version that both knew, however often it wrote.
    fn conflicts(&self) -> u64 {
        self.registers.values().map(|sides| sides.len() as u64 - 1).sum()
    }
}

struct Parted {
    cluster: Cluster,
    proxies: LinkProxies,
    client: Client,
    watch: Watch,
    written: Written,
    dice: Dice,
    count: u64,
}

impl Parted {
    async fn start(options: Options, nodes: usize, seed: u64) -> Self {
        let mut cluster = Cluster::create(nodes, options).unwrap();
        let peers: Vec<_> = cluster.members.iter().map(|member| (member.id, member.listen.peer)).collect();
        let proxies = LinkProxies::start(&peers).await.unwrap();
        cluster.speak_through(&proxies).unwrap();
        cluster.start_all().unwrap();
        let config = cluster.client_config().unwrap();
        let watch = Watch::start(config.clone()).unwrap();
        watch.all_ready(&mut cluster).await.unwrap();
        let client = Client::start(config).unwrap();
        Self { cluster, proxies, client, watch, written: Written::default(), dice: Dice(seed), count: 0 }
    }

    async fn put(&self, node: usize, writes: &[Write]) -> Result<Road, SyncError> {
        let until = Instant::now() + PATIENCE;
        loop {
            let sync = self.client.sync(Some(ReplicaId(node as u8)));
            match sync.write(writes, 1, Some(Duration::from_secs(5))).await {
                Ok(written) => return Ok(written.road),
                // A node that was killed comes back in a moment.
                Err(SyncError::NotReached(_)) if Instant::now() < until => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Each side writes through one node, so that within a side one change follows another.
    async fn write_apart(&mut self, side: usize, writer: usize, count: u64) {
        for _ in 0..count {
            self.count += 1;
            let write = match self.dice.below(4) {
                0 => {
                    let (key, by) = (format!("count/{}", self.dice.below(3)), self.dice.below(9) as i64 - 4);
                    *self.written.counters.entry(key.clone()).or_default() += i128::from(by);
                    Write::new(key, Op::Adjust(by))
                }
                1 => {
                    let (key, element) =
                        (format!("set/{}", self.dice.below(3)), text(&self.count.to_string()));
                    self.written.sets.entry(key.clone()).or_default().insert(element.clone());
                    Write::new(key, Op::Add(element))
                }
                kind => {
                    // Half of the registers belong to one side alone.
                    let owner = if kind == 2 { format!("side{side}") } else { "both".into() };
                    let key = format!("register/{owner}/{}", self.dice.below(10));
                    let value = format!("{side} {}", self.count);
                    self.written.registers.entry(key.clone()).or_default().insert(side, value.clone());
                    Write::new(key, Op::Put(text(&value)))
                }
            };
            self.put(writer, &[write]).await.unwrap();
        }
    }

    async fn stands(&self) -> Vec<SyncStanding> {
        let mut stands = Vec::new();
        for node in 0..self.cluster.n() {
            stands.push(self.client.sync(Some(ReplicaId(node as u8))).stand().await.unwrap());
        }
        stands
    }

    /// Waits until every node has the same digest, and looks at every value on every node.
    async fn assert_converged(&mut self) {
        let until = Instant::now() + PATIENCE;
        let stands = loop {
            let stands = self.stands().await;
            if stands.windows(2).all(|pair| pair[0] == pair[1]) {
                break stands;
            }
            assert!(Instant::now() < until, "the nodes do not come to hold the same: {stands:#?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        assert_eq!(stands[0].conflicts, self.written.conflicts(), "{:#?}", self.written.registers);
        for node in 0..self.cluster.n() {
            let sync = self.client.sync(Some(ReplicaId(node as u8)));
            for (key, sides) in &self.written.registers {
                let Some(View::Register(shown)) = sync.get(key.clone(), vec![]).await.unwrap().view else {
                    panic!("node {node} lost {key}")
                };
                assert!(
                    sides.values().any(|value| text(value) == shown),
                    "node {node} shows {shown:?} at {key}"
                );
            }
            for (key, count) in &self.written.counters {
                let shown = sync.get(key.clone(), vec![]).await.unwrap().view;
                assert_eq!(shown, Some(View::Count(*count)), "node {node}, {key}");
            }
            for (key, elements) in &self.written.sets {
                let shown = sync.get(key.clone(), vec![]).await.unwrap().view;
                assert_eq!(shown, Some(View::Set(elements.clone())), "node {node}, {key}");
            }
        }
    }

    async fn kill_and_restart(&mut self, nodes: &[usize]) {
        for node in nodes {
            assert!(self.cluster.kill(*node));
        }
        for node in nodes {
            self.cluster.restart(*node).unwrap();
        }
    }
}

#[test]
fn halves_that_were_parted_and_killed_converge_and_count_every_conflict() {
    let _alone = alone();
    runtime().block_on(async {
        let mut parted = Parted::start(Options::new(PROGRAM), 4, 3).await;
        parted.proxies.part(&[0, 1]);
        parted.write_apart(0, 0, 60).await;
        parted.write_apart(1, 2, 60).await;
        // The writers among them, while nobody outside their half has what they acknowledged.
        parted.kill_and_restart(&[0, 3]).await;
        parted.write_apart(0, 0, 30).await;
        parted.kill_and_restart(&[0, 1, 2, 3]).await;
        parted.write_apart(1, 2, 30).await;
        parted.proxies.heal();
        parted.assert_converged().await;
        assert!(parted.written.conflicts() >= 5, "hardly anything conflicted");
        // And once more from the disks alone.
        parted.kill_and_restart(&[0, 1, 2, 3]).await;
        parted.watch.all_ready(&mut parted.cluster).await.unwrap();
        parted.assert_converged().await;
    });
}

#[test]
fn in_hybrid_mode_the_side_without_a_quorum_goes_on_by_gossip() {
    let _alone = alone();
    runtime().block_on(async {
        let mut parted = Parted::start(Options::hybrid(PROGRAM), 4, 4).await;
        let write = |key: &str| [Write::new(key.to_string(), Op::Adjust(1))];
        let until = Instant::now() + PATIENCE;
        while parted.put(1, &write("warm")).await.unwrap() != Road::Log {
            assert!(Instant::now() < until, "the log takes nothing");
        }
        parted.proxies.part(&[3]);
        assert_eq!(parted.put(3, &write("alone")).await.unwrap(), Road::Gossip, "nobody orders it");
        assert!(parted.cluster.kill(3));
        parted.cluster.restart(3).unwrap();
        // The old one may not have noticed yet that its connection is to a dead process, and could not say what became of a write.
        parted.client = Client::start(parted.cluster.client_config().unwrap()).unwrap();
        assert_eq!(parted.put(3, &write("alone")).await.unwrap(), Road::Gossip);
        parted.proxies.heal();
        parted.written.counters.insert("alone".into(), 2);
        parted.assert_converged().await;
        let until = Instant::now() + PATIENCE;
        while parted.put(3, &write("again")).await.unwrap() != Road::Log {
            assert!(Instant::now() < until, "the log takes nothing from it any more");
        }
    });
}

#[test]
fn a_member_whose_disk_was_lost_has_everything_again_and_writes_under_another_name() {
    let _alone = alone();
    runtime().block_on(async {
        let mut parted = Parted::start(Options::new(PROGRAM), 4, 5).await;
        parted.write_apart(0, 3, 40).await;
        parted.assert_converged().await;
        assert!(parted.cluster.kill(3));
        parted.cluster.wipe(3).unwrap();
        replace_member(&mut parted.cluster, 3).await.unwrap();
        parted.cluster.restart(3).unwrap();
        let config = parted.cluster.client_config().unwrap();
        parted.watch = Watch::start(config.clone()).unwrap();
        parted.client = Client::start(config).unwrap();
        parted.watch.all_ready(&mut parted.cluster).await.unwrap();
        parted.write_apart(0, 0, 10).await;
        parted.assert_converged().await;
        let until = Instant::now() + PATIENCE;
        let write = [Write::new("reborn", Op::Adjust(1))];
        // Its order may not have come to it yet.
        while let Err(error) = parted.put(3, &write).await {
            assert!(error.definitely_not_written() && Instant::now() < until, "{error}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        parted.written.counters.insert("reborn".into(), 1);
        parted.assert_converged().await;
    });
}

#[test]
fn last_words_on_one_disk_alone_survive_a_kill_and_are_missed_where_the_disk_forgot_them() {
    let _alone = alone();
    runtime().block_on(async {
        let run = async |forget| {
            let mut cluster = Cluster::create(parted::NODES, Options::hybrid(PROGRAM)).unwrap();
            let plan = parted::Plan { rounds: 1, seed: 11, forget };
            let met = parted::run(&mut cluster, plan, &mut |_| {}).await.unwrap();
            parted::judge(&met)
        };
        let kept = run(false).await;
        assert!(kept.is_clean(), "{kept:#?}");
        let forgot = run(true).await;
        // All agree, and all are wrong: an element of a set and two counts, on every node.
        assert!(forgot.converged && forgot.lost >= 2 * parted::NODES as u64, "{forgot:#?}");
    });
}
