//! The demo's last act: the cluster is parted into two halves, convergent keys are written on both sides, the halves meet
//! again, and every node must hold the same, with the conflicts counted that there were.
//!
//! What is expected is worked out from the script alone, which was written down before anything ran.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use dwcp::proxy::LinkProxies;
use dwcp_base::ReplicaId;
use dwcp_client::values::{Op, Plain, View, Write};
use dwcp_client::{Client, SyncConflict, SyncError, SyncStanding};
use serde::Serialize;

use super::story::{LOOK_EVERY, PATIENCE, Story};
use crate::cli::cluster::Link;
use crate::cli::local::LocalCluster;
use crate::cli::output::{Failure, Outcome, thousands};

/// Keys written on both sides, on one side each, and elements added.
const SHARED: u64 = 8;
const APART: u64 = 12;
/// How long the halves stay parted at least.
const PARTED_FOR: Duration = Duration::from_millis(1_500);
/// The script makes fewer.
const CONFLICTS_SHOWN: u32 = 32;
/// A write that is not ordered, where another was not either.
const WITHOUT_LOG: Duration = Duration::from_millis(50);
/// A write in a mode that wants the log waits no longer for it.
const WITHIN: Duration = Duration::from_secs(2);

/// What came of it. Part of the demo's report.
#[derive(Clone, Debug, Default, Serialize, PartialEq, Eq)]
pub struct Parting {
    /// Every node holds the same, down to the digest.
    pub converged: bool,
    pub conflicts_expected: u64,
    pub conflicts_counted: u64,
    /// Those that node 0 saw, newest last.
    pub conflicts: Vec<Seen>,
    /// Keys of the script, summed over nodes, that do not show what was written there.
    pub lost: u64,
    pub writes: u64,
    /// From the healing until all nodes held the same.
    pub converged_ms: u64,
}

/// A conflict as it was settled.
#[derive(Clone, Debug, Default, Serialize, PartialEq, Eq)]
pub struct Seen {
    pub key: String,
    /// What stood side by side, and who wrote it.
    pub siblings: Vec<String>,
    pub outcome: String,
}

impl Parting {
    pub fn holds(&self) -> bool {
        self.converged && self.lost == 0 && self.conflicts_counted == self.conflicts_expected
    }
}

fn seen_of(conflict: SyncConflict) -> Seen {
    let SyncConflict { key, siblings, outcome, .. } = conflict;
    Seen { key: String::from_utf8_lossy(&key).into_owned(), siblings, outcome }
}

/// One step of the script.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Step {
    /// Which half writes: 0 or 1.
    side: usize,
    key: String,
    change: Change,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Change {
    Set(String),
    Adjust(i64),
    Add(String),
}

/// What is written while the halves are parted, in order. Some of it conflicts, most does not.
fn script() -> Vec<Step> {
    let mut steps = Vec::new();
    for side in 0..2 {
        let mut step = |key: String, change| steps.push(Step { side, key, change });
        for number in 0..SHARED {
            // Twice on one side is still one conflict.
            for again in 0..=(number % 2) {
                step(format!("demo/both/{number}"), Change::Set(format!("side {side}, write {again}")));
            }
        }
        for number in 0..APART {
            step(format!("demo/side{side}/{number}"), Change::Set(format!("only {number}")));
            step("demo/count".into(), Change::Adjust(if side == 0 { 3 } else { -1 }));
            step("demo/set".into(), Change::Add(format!("{side}-{number}")));
        }
    }
    steps
}

/// Each side replaced the one version that both knew: every further side that wrote a register is one conflict.
fn conflicts_expected(script: &[Step]) -> u64 {
    let mut sides: BTreeMap<&str, BTreeSet<usize>> = BTreeMap::new();
    for step in script.iter().filter(|step| matches!(step.change, Change::Set(_))) {
        sides.entry(&step.key).or_default().insert(step.side);
    }
    sides.values().map(|sides| sides.len() as u64 - 1).sum()
}

/// Whether a key shows what it may after the script: of a register the last write of a side, of the others all.
fn is_kept(script: &[Step], key: &str, shown: Option<&View>) -> bool {
    let steps = || script.iter().filter(|step| step.key == key);
    match (steps().next().map(|step| &step.change), shown) {
        (Some(Change::Set(_)), Some(View::Register(value))) => (0..2).any(|side| {
            let last = steps().rfind(|step| step.side == side);
            last.is_some_and(|step| matches!(&step.change, Change::Set(text) if plain(text) == *value))
        }),
        (Some(Change::Adjust(_)), Some(View::Count(count))) => {
            let by = |step: &Step| if let Change::Adjust(by) = step.change { i128::from(by) } else { 0 };
            steps().map(by).sum::<i128>() == *count
        }
        (Some(Change::Add(_)), Some(View::Set(elements))) => {
            let element =
                |step: &Step| if let Change::Add(text) = &step.change { Some(plain(text)) } else { None };
            steps().filter_map(element).collect::<BTreeSet<_>>() == *elements
        }
        _ => false,
    }
}

fn plain(text: &str) -> Plain {
    Plain::json(&serde_json::Value::from(text).to_string()).expect("a short text")
}

fn write_of(step: &Step) -> Write {
    let op = match &step.change {
        Change::Set(text) => Op::Put(plain(text)),
        Change::Adjust(by) => Op::Adjust(*by),
        Change::Add(text) => Op::Add(plain(text)),
    };
    Write::new(step.key.clone(), op)
}

/// Puts a proxy into every link between nodes that do not run: from the next start on they speak through them.
pub async fn put_between(cluster: &LocalCluster) -> Outcome<LinkProxies> {
    let nodes: Vec<_> = cluster.trial.nodes.iter().map(|node| (node.id.0, node.listen.peer)).collect();
    let proxies = LinkProxies::start(&nodes)
        .await
        .map_err(|error| Failure::refused(format!("no ports for proxies between the nodes: {error}")))?;
    for node in &cluster.trial.nodes {
        set_via(&node.config_file, Some(&proxies.via(node.id.0)))?;
    }
    Ok(proxies)
}

/// Nodes that start later, when the proxies may be gone, reach each other as before.
pub fn forget_proxies(cluster: &LocalCluster) -> Outcome {
    cluster.trial.nodes.iter().try_for_each(|node| set_via(&node.config_file, None))
}

fn set_via(config_file: &Path, via: Option<&str>) -> Outcome {
    let change = |text: String| {
        let others = text.lines().filter(|line| !line.starts_with("peer_via"));
        let others: String = others.map(|line| format!("{line}\n")).collect();
        via.map_or(String::new(), |via| format!("peer_via = \"{via}\"\n")) + &others
    };
    std::fs::read_to_string(config_file)
        .and_then(|text| std::fs::write(config_file, change(text)))
        .map_err(|error| Failure::refused(format!("cannot change {}: {error}", config_file.display())))
}

impl Story<'_> {
    /// Parts the cluster, writes on both sides, heals it and looks. The clients of the log are done.
    pub async fn part(&mut self, proxies: &LinkProxies) -> Outcome<Parting> {
        self.begin("part and meet", None);
        let client = Client::start(Link::patient(self.cluster)?)?;
        let ids: Vec<u8> = self.cluster.nodes.iter().map(|node| node.id).collect();
        let script = script();
        self.prepare(&client, &ids, &script).await?;
        let conflicts_before = self.all_level(&client, &ids, Instant::now() + PATIENCE).await?.conflicts;

        let (left, right) = ids.split_at(ids.len() / 2);
        self.stage.tick(format!("nodes {left:?} and {right:?} do not hear each other"));
        proxies.part(left);
        let parted = Instant::now();
        for side in 0..2 {
            let writer = client.sync(Some(ReplicaId([left[0], right[0]][side])));
            let mut within = WITHIN;
            for step in script.iter().filter(|step| step.side == side) {
                match writer.write(&[write_of(step)], 1, Some(within)).await {
                    Ok(_) => {}
                    // Without the log it is written all the same; the next need not wait as long to be told so.
                    Err(SyncError::Unknown(_)) => within = WITHOUT_LOG,
                    Err(error) => return Err(error.into()),
                }
            }
        }
        while parted.elapsed() < PARTED_FOR {
            self.check(parted + PATIENCE, "the parting takes too long")?;
            tokio::time::sleep(LOOK_EVERY).await;
        }
        proxies.heal();
        let healed = Instant::now();
        let standing = self.all_level(&client, &ids, healed + PATIENCE / 3).await;
        let converged_ms = u64::try_from(healed.elapsed().as_millis()).unwrap_or(u64::MAX);
        let mut parting = Parting {
            converged: standing.is_ok(),
            conflicts_expected: conflicts_expected(&script),
            writes: script.len() as u64,
            converged_ms,
            ..Parting::default()
        };
        let keys: BTreeSet<&str> = script.iter().map(|step| step.key.as_str()).collect();
        for id in &ids {
            let sync = client.sync(Some(ReplicaId(*id)));
            for key in &keys {
                let shown = sync.get(key.to_string(), Vec::new()).await?.view;
                parting.lost += u64::from(!is_kept(&script, key, shown.as_ref()));
            }
        }
        if let Ok(standing) = standing {
            parting.conflicts_counted = standing.conflicts - conflicts_before;
        }
        let seen = client.sync(Some(ReplicaId(ids[0]))).conflicts(CONFLICTS_SHOWN).await?;
        parting.conflicts = seen.events.into_iter().map(seen_of).collect();
        client.close().await;
        let shown = parting.conflicts.iter().map(|seen| format!("\n    {}: {}", seen.key, seen.outcome));
        self.end(format!(
            "{} writes on both sides, {} of {} conflicts counted, all nodes equal {converged_ms} ms after they met{}",
            thousands(parting.writes),
            parting.conflicts_counted,
            parting.conflicts_expected,
            shown.collect::<String>()
        ));
        Ok(parting)
    }

    /// Gives every register a version that all know, so that what is written apart replaces the same one.
    async fn prepare(&self, client: &Client, ids: &[u8], script: &[Step]) -> Outcome {
        let registers: BTreeSet<&str> = script
            .iter()
            .filter(|step| matches!(step.change, Change::Set(_)))
            .map(|step| step.key.as_str())
            .collect();
        let first = |key: &&str| Write::new(key.to_string(), Op::Put(plain("before")));
        let writes: Vec<Write> = registers.iter().map(first).collect();
        client.sync(Some(ReplicaId(ids[0]))).write(&writes, 1, Some(PATIENCE / 3)).await?;
        Ok(())
    }

    /// Waits until all nodes hold the same, and says where they stand.
    async fn all_level(&mut self, client: &Client, ids: &[u8], until: Instant) -> Outcome<SyncStanding> {
        loop {
            let mut standings = Vec::new();
            for id in ids {
                standings.push(client.sync(Some(ReplicaId(*id))).stand().await?);
            }
            let first = standings[0].clone();
            if standings.iter().all(|standing| *standing == first) && first.keys > 0 {
                return Ok(first);
            }
            self.check(until, "the nodes do not come to hold the same")?;
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_conflicts_where_both_sides_write_one_register_and_nowhere_else() {
        let script = script();
        assert_eq!(conflicts_expected(&script), SHARED);
        let alone: Vec<Step> = script.iter().filter(|step| step.side == 0).cloned().collect();
        assert_eq!(conflicts_expected(&alone), 0, "one side alone conflicts with nobody");
        assert!(script.len() as u64 > 4 * SHARED, "most of it does not conflict");
    }

    #[test]
    fn a_write_that_is_not_shown_is_lost() {
        let script = script();
        let shown = |text: &str| View::Register(plain(text));
        assert!(is_kept(&script, "demo/both/1", Some(&shown("side 1, write 1"))));
        assert!(
            !is_kept(&script, "demo/both/1", Some(&shown("side 1, write 0"))),
            "overwritten by its own side"
        );
        assert!(!is_kept(&script, "demo/both/1", None));
        assert!(is_kept(&script, "demo/count", Some(&View::Count(i128::from(APART) * 2))));
        assert!(!is_kept(&script, "demo/count", Some(&View::Count(1))));
        let one = View::Set([plain("0-0")].into());
        assert!(!is_kept(&script, "demo/set", Some(&one)));
    }
}
