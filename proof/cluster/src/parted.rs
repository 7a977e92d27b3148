//! Convergent keys among real processes: the cluster is parted into halves, both sides write, the last words of one node on
//! each side are on its own disk alone when it is killed, and after the healing every node must hold what was written.
//!
//! ```text
//!   whole     one node gives every shared register a version that all know
//!   parted    both sides write: shared registers, keys of their own, counters, sets
//!   alone     one node of each side hears nobody, writes once more, and is killed as soon as that is acknowledged
//!   down      the other one of each side writes
//!   back      the dead run again, and write over what they had written
//!   healed    all digests equal; then values and conflicts are read from every node
//! ```
//!
//! The script is drawn before anything runs, and what must be seen at the end is worked out from it alone (`expected`).
//! One node a side writes shared registers, so within a side one version follows another: each further side is one conflict,
//! and a node that forgot what it acknowledged makes one more, or fewer elements than there must be.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use dwcp::proxy::LinkProxies;
use dwcp_base::{Chance, ReplicaId};
use dwcp_client::values::{Op, Plain, View, Write};
use dwcp_client::{Client, Road, SyncError, SyncStanding};
use serde::Serialize;

use crate::cluster::Cluster;
use crate::error::Trouble;
use crate::judgement::Judgement;
use crate::watch::{PATIENCE, Watch, stuck};

/// Registers written on both sides, and on one alone, in a round.
const SHARED: u64 = 8;
const OWN: u64 = 4;
/// A write may take so long; without the log it takes as long as hybrid mode waits for that.
const WITHIN: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Nodes of each half.
const SIDE: usize = 2;
pub const NODES: usize = 2 * SIDE;

#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub rounds: u64,
    pub seed: u64,
    /// One of the killed gets the disk back that it had before its last words: as if it had acknowledged them without having
    /// written them down. For whoever wants to see that this is noticed.
    pub forget: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Whole,
    Parted,
    Alone,
    Down,
    Back,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Change {
    Set(String),
    Adjust(i64),
    Add(String),
}

/// One frame of one node: all of its changes are acknowledged together.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Step {
    phase: Phase,
    node: usize,
    /// 0 or 1; of what is written while all hear each other, 0.
    side: usize,
    changes: Vec<(String, Change)>,
}

/// Who is who in a round, and what they write, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Round {
    halves: [[usize; SIDE]; 2],
    victims: [usize; 2],
    steps: Vec<Step>,
}

/// Draws a round. The first of each half is the one that writes shared registers.
fn round(number: u64, chance: &mut Chance) -> Round {
    let mut nodes: Vec<usize> = (0..NODES).collect();
    chance.shuffle(&mut nodes);
    let halves = [[nodes[0], nodes[1]], [nodes[2], nodes[3]]];
    let draw = |chance: &mut Chance| usize::from(chance.per_mille(500));
    let victims = [halves[0][draw(chance)], halves[1][draw(chance)]];
    let mut steps = Vec::new();
    let shared = |key: u64| format!("parted/{number}/shared/{key}");
    let before = (0..SHARED).map(|key| (shared(key), Change::Set(format!("{number} before")))).collect();
    steps.push(Step { phase: Phase::Whole, node: halves[0][0], side: 0, changes: before });
    for phase in [Phase::Parted, Phase::Alone, Phase::Down, Phase::Back] {
        // Whoever comes second has the later clock.
        let first = draw(chance);
        for side in [first, 1 - first] {
            for (place, node) in halves[side].into_iter().enumerate() {
                let is_victim = victims.contains(&node);
                let writes = match phase {
                    Phase::Whole | Phase::Parted => true,
                    Phase::Alone | Phase::Back => is_victim,
                    Phase::Down => !is_victim,
                };
                if !writes {
                    continue;
                }
                let text = format!("{number} {phase:?} node {node}");
                let mut changes: Vec<(String, Change)> = (0..OWN)
                    .map(|key| {
                        (format!("parted/{number}/node{node}/{key}"), Change::Set(format!("{text} {key}")))
                    })
                    .collect();
                if place == 0 {
                    let some = (0..SHARED).filter(|_| chance.per_mille(600)).collect::<Vec<_>>();
                    changes.extend(some.into_iter().map(|key| (shared(key), Change::Set(text.clone()))));
                }
                let by = i64::try_from(chance.below(9)).expect("below nine") - 4;
                changes.push((format!("parted/{number}/count"), Change::Adjust(by)));
                changes.push(("parted/total".into(), Change::Adjust(1)));
                changes.push((format!("parted/{number}/set"), Change::Add(text)));
                // The same element from everybody stands there once.
                changes.push((format!("parted/{number}/set"), Change::Add("all".into())));
                steps.push(Step { phase, node, side, changes });
            }
        }
    }
    Round { halves, victims, steps }
}

/// What all nodes must show after these rounds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    pub values: BTreeMap<String, View>,
    pub conflicts: u64,
}

fn expected(rounds: &[Round]) -> Expected {
    let mut expected = Expected::default();
    let mut sides: BTreeMap<&str, BTreeSet<usize>> = BTreeMap::new();
    for step in rounds.iter().flat_map(|round| &round.steps) {
        for (key, change) in &step.changes {
            let values = &mut expected.values;
            match change {
                // Each step began when the one before it was acknowledged, and all clocks are one machine's.
                Change::Set(text) => {
                    values.insert(key.clone(), View::Register(plain(text)));
                    if step.phase != Phase::Whole {
                        sides.entry(key).or_default().insert(step.side);
                    }
                }
                Change::Adjust(by) => {
                    if let View::Count(count) = values.entry(key.clone()).or_insert(View::Count(0)) {
                        *count += i128::from(*by);
                    }
                }
                Change::Add(text) => {
                    if let View::Set(elements) =
                        values.entry(key.clone()).or_insert_with(|| View::Set(BTreeSet::new()))
                    {
                        elements.insert(plain(text));
                    }
                }
            }
        }
    }
    expected.conflicts = sides.values().map(|sides| sides.len() as u64 - 1).sum();
    expected
}

fn plain(text: &str) -> Plain {
    Plain::json(&serde_json::Value::from(text).to_string()).expect("a short text")
}

fn writes(step: &Step) -> Vec<Write> {
    let op = |change: &Change| match change {
        Change::Set(text) => Op::Put(plain(text)),
        Change::Adjust(by) => Op::Adjust(*by),
        Change::Add(text) => Op::Add(plain(text)),
    };
    step.changes.iter().map(|(key, change)| Write::new(key.clone(), op(change))).collect()
}

/// What one node showed at the end.
#[derive(Clone, Debug, Default)]
pub struct Shown {
    pub values: BTreeMap<String, View>,
    pub keys: u64,
    pub conflicts: u64,
}

/// What a run leaves behind.
#[derive(Debug)]
pub struct Met {
    pub plan: Plan,
    pub expected: Expected,
    /// After the last round, of every node.
    pub shown: Vec<Shown>,
    pub acknowledged: u64,
    pub by_gossip: u64,
    pub kills: u64,
    /// From each healing until all digests were equal.
    pub converged_ms: Vec<u64>,
    pub seconds: f64,
    /// Frames that the log acknowledged where no quorum was.
    pub ordered_without_quorum: u64,
    pub trouble: Option<String>,
}

/// Runs the rounds on a cluster that was created and not started. The calling thread must be the one that `start_all` is
/// called on.
///
/// # Errors
/// Only when there is nothing to judge. What goes wrong later is part of the record.
pub async fn run(cluster: &mut Cluster, plan: Plan, show: &mut dyn FnMut(u64)) -> Result<Met, Trouble> {
    let began = Instant::now();
    let peers: Vec<_> = cluster.members.iter().map(|member| (member.id, member.listen.peer)).collect();
    let proxies = LinkProxies::start(&peers).await.map_err(Trouble::io("no ports for proxies"))?;
    cluster.speak_through(&proxies)?;
    cluster.start_all()?;
    let config = cluster.client_config()?;
    let watch = Watch::start(config.clone())?;
    let client = Client::start(config)?;
    let mut chance = Chance::new(plan.seed).fork("parted");
    let rounds: Vec<Round> = (0..plan.rounds).map(|number| round(number, &mut chance)).collect();
    let met = Met {
        plan,
        expected: expected(&rounds),
        shown: Vec::new(),
        acknowledged: 0,
        by_gossip: 0,
        kills: 0,
        converged_ms: Vec::new(),
        seconds: 0.0,
        ordered_without_quorum: 0,
        trouble: None,
    };
    let mut story = Story { cluster, proxies, client, met };
    if let Err(trouble) = story.tell(&watch, &rounds, show).await {
        story.met.trouble = Some(trouble.to_string());
    }
    story.met.seconds = began.elapsed().as_secs_f64();
    Ok(story.met)
}

struct Story<'a> {
    cluster: &'a mut Cluster,
    proxies: LinkProxies,
    client: Client,
    met: Met,
}

impl Story<'_> {
    async fn tell(
        &mut self,
        watch: &Watch,
        rounds: &[Round],
        show: &mut dyn FnMut(u64),
    ) -> Result<(), Trouble> {
        watch.all_ready(self.cluster).await?;
        for (number, round) in (1..).zip(rounds) {
            self.part_and_meet(round).await?;
            show(number);
        }
        // What is read is what these digests stand for.
        let stands = self.level().await?;
        for (node, stand) in stands.iter().enumerate() {
            let sync = self.client.sync(Some(replica(node)));
            let mut shown = Shown { keys: stand.keys, conflicts: stand.conflicts, values: BTreeMap::new() };
            for key in self.met.expected.values.keys() {
                let value = sync.get(key.clone(), Vec::new()).await.map_err(|error| failed(node, &error))?;
                shown.values.extend(value.view.map(|view| (key.clone(), view)));
            }
            self.met.shown.push(shown);
        }
        Ok(())
    }

    async fn part_and_meet(&mut self, round: &Round) -> Result<(), Trouble> {
        let Round { halves, victims, .. } = round;
        self.write(round, Phase::Whole).await?;
        self.level().await?;
        let group = |nodes: &[usize]| nodes.iter().map(|node| replica(*node).0).collect::<Vec<u8>>();
        let sides: Vec<Vec<u8>> = halves.iter().map(|half| group(half)).collect();
        self.proxies.part_into(&sides);
        self.write(round, Phase::Parted).await?;
        // What is written now is on one disk until the killed come back.
        let single: Vec<Vec<u8>> = (0..NODES).map(|node| group(&[node])).collect();
        self.proxies.part_into(&single);
        if self.met.plan.forget {
            self.cluster.copy_disk(victims[0])?;
        }
        for step in round.steps.iter().filter(|step| step.phase == Phase::Alone) {
            self.write_step(step).await?;
            self.met.kills += u64::from(self.cluster.kill(step.node));
        }
        if self.met.plan.forget {
            self.cluster.roll_back_to_copy(victims[0])?;
        }
        self.proxies.part_into(&sides);
        self.write(round, Phase::Down).await?;
        victims.iter().try_for_each(|node| self.cluster.restart(*node))?;
        self.write(round, Phase::Back).await?;
        self.proxies.heal();
        let healed = Instant::now();
        self.level().await?;
        self.met.converged_ms.push(u64::try_from(healed.elapsed().as_millis()).unwrap_or(u64::MAX));
        Ok(())
    }

    async fn write(&mut self, round: &Round, phase: Phase) -> Result<(), Trouble> {
        for step in round.steps.iter().filter(|step| step.phase == phase) {
            self.write_step(step).await?;
        }
        Ok(())
    }

    /// One frame, until it is acknowledged. Asked again only while it is certain that nothing was written.
    async fn write_step(&mut self, step: &Step) -> Result<(), Trouble> {
        let (began, writes) = (Instant::now(), writes(step));
        let sync = self.client.sync(Some(replica(step.node)));
        loop {
            match sync.write(&writes, 1, Some(WITHIN)).await {
                Ok(written) => {
                    self.met.acknowledged += writes.len() as u64;
                    self.met.by_gossip += u64::from(written.road == Road::Gossip) * writes.len() as u64;
                    let is_parted = step.phase != Phase::Whole;
                    self.met.ordered_without_quorum += u64::from(is_parted && written.road == Road::Log);
                    return Ok(());
                }
                // A node that was killed comes back in a moment.
                Err(error) if error.definitely_not_written() && began.elapsed() < PATIENCE => {
                    self.cluster.check_alive()?;
                    tokio::time::sleep(LOOK_EVERY).await;
                }
                Err(error) => return Err(failed(step.node, &error)),
            }
        }
    }

    /// Waits until all nodes hold the same, down to the digest.
    async fn level(&mut self) -> Result<Vec<SyncStanding>, Trouble> {
        let began = Instant::now();
        loop {
            self.cluster.check_alive()?;
            let mut stands = Vec::new();
            for node in 0..NODES {
                stands.extend(self.client.sync(Some(replica(node))).stand().await);
            }
            let is_one = |pair: &[SyncStanding]| {
                pair[0].digest == pair[1].digest && pair[0].applied == pair[1].applied
            };
            if stands.len() == NODES && stands.windows(2).all(is_one) {
                return Ok(stands);
            }
            if began.elapsed() > PATIENCE {
                return Err(stuck(
                    self.cluster,
                    format!("the nodes do not come to hold the same ({stands:?})"),
                ));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

fn replica(node: usize) -> ReplicaId {
    ReplicaId(u8::try_from(node).expect("at most 31"))
}

fn failed(node: usize, error: &SyncError) -> Trouble {
    Trouble::Work(format!("node {node}: {error}"))
}

/// What of the promise was kept.
#[derive(Clone, Debug, Default, Serialize)]
pub struct MetJudgement {
    /// Values that a node does not show as they were acknowledged, over all nodes.
    pub lost: u64,
    pub converged: bool,
    pub conflicts_expected: u64,
    /// Of each node.
    pub conflicts_counted: Vec<u64>,
    pub findings: Vec<String>,
}

impl MetJudgement {
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty() && self.lost == 0 && self.converged
    }
}

#[must_use]
pub fn judge(met: &Met) -> MetJudgement {
    let mut base = Judgement::default();
    let Expected { values, conflicts } = &met.expected;
    if let Some(trouble) = &met.trouble {
        base.find(format!("not finished: {trouble}"));
    }
    if met.kills != 2 * met.plan.rounds {
        base.find(format!("{} nodes were killed in {} rounds", met.kills, met.plan.rounds));
    }
    if *conflicts == 0 {
        base.find("nothing conflicted: nothing is shown about conflicts".into());
    }
    if met.ordered_without_quorum > 0 {
        base.find(format!("{} frames were ordered where no quorum was", met.ordered_without_quorum));
    }
    let mut lost = 0;
    for (node, shown) in met.shown.iter().enumerate() {
        for (key, value) in values {
            let found = shown.values.get(key);
            if found != Some(value) {
                lost += 1;
                base.find(format!("node {node} shows {found:?} at {key}, where {value:?} was acknowledged"));
            }
        }
        if shown.keys != values.len() as u64 {
            base.find(format!("node {node} has {} keys, and {} were written", shown.keys, values.len()));
        }
        if shown.conflicts != *conflicts {
            base.find(format!(
                "node {node} counted {} conflicts, and there were {conflicts}",
                shown.conflicts
            ));
        }
    }
    MetJudgement {
        lost,
        converged: met.shown.len() == NODES,
        conflicts_expected: *conflicts,
        conflicts_counted: met.shown.iter().map(|shown| shown.conflicts).collect(),
        findings: base.findings,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        Plan { rounds: 2, seed: 1, forget: false }
    }

    /// A cluster that did as it should.
    fn met() -> Met {
        let mut chance = Chance::new(1).fork("parted");
        let rounds: Vec<Round> = (0..2).map(|number| round(number, &mut chance)).collect();
        let expected = expected(&rounds);
        let (keys, conflicts) = (expected.values.len() as u64, expected.conflicts);
        let shown = vec![Shown { values: expected.values.clone(), keys, conflicts }; NODES];
        Met {
            plan: plan(),
            expected,
            shown,
            acknowledged: 9,
            by_gossip: 0,
            kills: 4,
            converged_ms: vec![1, 1],
            seconds: 1.0,
            ordered_without_quorum: 0,
            trouble: None,
        }
    }

    #[test]
    fn what_both_sides_set_conflicts_once_and_shows_what_was_set_last() {
        let step = |phase, node: usize, text: &str| Step {
            phase,
            node,
            side: node / 2,
            changes: vec![
                ("register".into(), Change::Set(text.into())),
                ("count".into(), Change::Adjust(2)),
                ("set".into(), Change::Add(text.into())),
            ],
        };
        let round = |steps| Round { halves: [[0, 1], [2, 3]], victims: [0, 2], steps };
        let whole = step(Phase::Whole, 0, "before");
        let (left, again) = (step(Phase::Parted, 0, "left"), step(Phase::Back, 0, "again"));
        let alone = expected(&[round(vec![whole.clone(), left.clone(), again.clone()])]);
        assert_eq!(alone.conflicts, 0, "one side alone conflicts with nobody");
        let both = expected(&[round(vec![whole, left, again, step(Phase::Parted, 2, "right")])]);
        assert_eq!(both.conflicts, 1);
        assert_eq!(both.values["register"], View::Register(plain("right")));
        assert_eq!(both.values["count"], View::Count(8));
        assert_eq!(both.values["set"], View::Set(["before", "left", "again", "right"].map(plain).into()));
    }

    #[test]
    fn every_round_kills_a_writer_of_last_words_on_each_side_and_has_conflicts() {
        let mut chance = Chance::new(7);
        for number in 0..50 {
            let round = round(number, &mut chance);
            let of = |phase| round.steps.iter().filter(move |step| step.phase == phase);
            let sides: BTreeSet<usize> = of(Phase::Alone).map(|step| step.side).collect();
            assert_eq!((of(Phase::Alone).count(), sides.len()), (2, 2));
            assert!(of(Phase::Alone).all(|step| round.victims.contains(&step.node)));
            assert_eq!((of(Phase::Down).count(), of(Phase::Back).count()), (2, 2));
            assert!(round.halves.iter().flatten().copied().collect::<BTreeSet<_>>().len() == NODES);
            assert!(expected(&[round]).conflicts >= 1);
        }
    }

    #[test]
    fn the_judge_sees_a_lost_value_a_conflict_too_many_and_a_key_nobody_wrote() {
        assert!(judge(&met()).is_clean(), "{:?}", judge(&met()));
        let spoiled = |spoil: &dyn Fn(&mut Met)| {
            let mut worse = met();
            spoil(&mut worse);
            judge(&worse)
        };
        let last = |met: &Met| met.expected.values.keys().next_back().expect("it has keys").clone();
        let gone = spoiled(&|met| {
            let key = last(met);
            met.shown[2].values.remove(&key);
        });
        assert_eq!((gone.lost, gone.is_clean()), (1, false));
        let short = spoiled(&|met| {
            met.shown[1].values.insert("parted/total".into(), View::Count(1));
        });
        assert_eq!(short.lost, 1);
        for unclean in [
            spoiled(&|met| met.shown[3].conflicts += 1),
            spoiled(&|met| met.expected.conflicts -= 1),
            spoiled(&|met| met.shown[0].keys += 1),
            spoiled(&|met| met.kills -= 1),
            spoiled(&|met| met.ordered_without_quorum = 1),
            spoiled(&|met| met.trouble = Some("stuck".into())),
            spoiled(&|met| met.shown.truncate(3)),
        ] {
            assert!(!unclean.is_clean(), "{unclean:?}");
        }
    }
}
