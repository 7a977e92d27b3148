//! What is done to a cluster under load: rounds of SIGKILL, SIGSTOP or cut links against nodes drawn by chance, or a disk
//! that is lost or full; then calm, then everything is read back. It notes; `judgement` judges.
//!
//! A round hits up to as many nodes as the quorum can spare, now and then one more, now and then all at once; some nodes
//! are killed again while they start. About every other round the next blow waits until something was acknowledged, so
//! that blows fall into recoveries as well as into full work.

use std::sync::Arc;
use std::time::{Duration, Instant};

use check::{Answer, Calm, History, Interval, KeyValue, Operation, read_back};
use dwcp_base::{Chance, Trust};
use dwcp_client::Client;
use dwcp_node::{EXIT_FAILED, EXIT_HALTED};

use crate::cluster::Cluster;
use crate::error::Trouble;
use crate::load::{Load, Pulse, Scribe, Work};
use crate::replace::replace_member;
use crate::watch::{NodeDigest, PATIENCE, Watch, stuck};

/// Number under which the one who reads everything back writes its journal.
pub(crate) const READER: u64 = 1_000_000;
/// Records in one page of the read-back.
const PAGE: u64 = 256;
/// Impatient clients' last calls have ended this long after the faults.
const SETTLE: Duration = Duration::from_secs(3);
/// What a node that refuses to start ends with.
const EXIT_NOT_STARTED: u8 = 1;
/// The kind of partition in which neither side is a quorum.
const HALVES: u64 = 3;
/// A disk that fills up: room for what a run writes until then, and for what comes after.
const VOLUME_MEBIBYTES: u64 = 64;
/// Between two looks at whether something was acknowledged.
const LOOK_EVERY: Duration = Duration::from_millis(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL, then a restart.
    Kill,
    /// SIGSTOP, then SIGCONT.
    Pause,
    /// One disk is lost: see `lost_disk`.
    Wipe,
    /// Links are cut, then healed: see `partition_round`. Needs `Options::namespaces`.
    Partition,
    /// One disk is full: see `full_disk`. Needs [`crate::network::enter`] and small segments.
    Full,
}

#[derive(Clone, Debug)]
pub struct Plan {
    pub fault: Fault,
    /// Blows at least; each node that is hit counts.
    pub count: u64,
    pub seed: u64,
    pub clients: u64,
    pub think_ms: u64,
    /// Load after the last blow, with all nodes up.
    pub calm: Duration,
}

impl Plan {
    #[must_use]
    pub fn new(fault: Fault, count: u64, seed: u64) -> Self {
        Self { fault, count, seed, clients: 16, think_ms: 20, calm: Duration::from_secs(3) }
    }
}

/// What can be shown while it runs.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    pub blows: u64,
    pub acknowledged: u64,
    pub unknown: u64,
    pub view: u64,
}

/// What a campaign leaves behind for those who judge and tell.
#[derive(Debug)]
pub struct Record {
    pub nodes: usize,
    /// Liars that this cluster's policy tolerates.
    pub f: u8,
    /// Whether an acknowledgement labelled `crash` may stand where f is at least 1.
    pub trust: Trust,
    pub blows: u64,
    pub rounds: u64,
    /// Rounds that hit more nodes than the quorum can spare; among them those that hit all.
    pub over_budget: u64,
    pub all_at_once: u64,
    /// Nodes that were killed again while they started.
    pub while_starting: u64,
    pub view: u64,
    pub seconds: f64,
    /// When the last blow's consequences were over.
    pub faults_ended_at_us: u64,
    pub history: History,
    /// Linearizable reads that a segment's leader answered without an entry, by the clients' own count.
    pub reads_by_index: u64,
    pub calm: Option<Calm>,
    /// Every record under the read-back prefixes, read at the end by a fresh client. `None`: it did not come to that.
    pub read_back: Option<Vec<KeyValue>>,
    pub digests: Vec<NodeDigest>,
    /// Why it ended early. Safety is judged all the same.
    pub trouble: Option<String>,
}

impl Record {
    /// Nothing has happened yet.
    pub(crate) fn of(cluster: &Cluster) -> Self {
        Self {
            nodes: cluster.n(),
            f: cluster.f,
            trust: cluster.trust,
            blows: 0,
            rounds: 0,
            over_budget: 0,
            all_at_once: 0,
            while_starting: 0,
            view: 0,
            seconds: 0.0,
            faults_ended_at_us: 0,
            history: History::default(),
            reads_by_index: 0,
            calm: None,
            read_back: None,
            digests: Vec::new(),
            trouble: None,
        }
    }
}

#[derive(Debug)]
pub struct Campaign<'a> {
    cluster: &'a mut Cluster,
    plan: Plan,
    chance: Chance,
    pulse: Arc<Pulse>,
    record: Record,
}

impl<'a> Campaign<'a> {
    pub fn new(cluster: &'a mut Cluster, plan: Plan) -> Self {
        let record = Record::of(cluster);
        let chance = Chance::new(plan.seed).fork("blows");
        Self { cluster, plan, chance, pulse: Pulse::start(), record }
    }

    /// By which others can see how it fares.
    #[must_use]
    pub fn pulse(&self) -> Arc<Pulse> {
        self.pulse.clone()
    }

    /// Runs to the end. What goes wrong on the way is part of the record. The calling thread must be the one the nodes
    /// were started on.
    ///
    /// # Errors
    /// Only when not even a client can be made.
    pub async fn run(mut self, show: &mut dyn FnMut(Progress)) -> Result<Record, Trouble> {
        let began = Instant::now();
        let config = self.cluster.client_config()?;
        let mut watch = Watch::start(config.clone())?;
        let Plan { clients, think_ms, seed, .. } = self.plan;
        let mut load = Load::start(&config, Work { clients, think_ms, seed, impatient: true }, &self.pulse)?;
        let mut scribe = Scribe::new(READER, &Client::start(config.clone())?, &self.pulse);
        if let Err(trouble) = self.story(&mut watch, &mut load, &mut scribe, show).await {
            self.record.trouble = Some(trouble.to_string());
            load.stop(Duration::ZERO).await;
        }
        self.record.history = load.history(&[scribe.journal()]);
        self.record.view = watch.view();
        self.record.seconds = began.elapsed().as_secs_f64();
        Ok(self.record)
    }

    async fn story(
        &mut self,
        watch: &mut Watch,
        load: &mut Load,
        scribe: &mut Scribe,
        show: &mut dyn FnMut(Progress),
    ) -> Result<(), Trouble> {
        watch.all_ready(self.cluster).await?;
        self.progress(1).await?;
        while self.record.blows < self.plan.count {
            self.pulse.enter(format!("blow {} of {}", self.record.blows + 1, self.plan.count));
            match self.plan.fault {
                Fault::Kill => self.kill_round().await?,
                Fault::Pause => self.pause_round().await?,
                Fault::Wipe => self.lost_disk(watch).await?,
                Fault::Partition => self.partition_round().await?,
                Fault::Full => self.full_disk(watch).await?,
            }
            self.record.rounds += 1;
            let (acknowledged, unknown) = (self.pulse.acknowledged(), self.pulse.unknown());
            show(Progress { blows: self.record.blows, acknowledged, unknown, view: watch.view() });
        }
        let calm = self.plan.calm;
        wind_up(self.cluster, &self.pulse, &mut self.record, watch, load, scribe, calm).await
    }

    async fn kill_round(&mut self) -> Result<(), Trouble> {
        let victims = self.victims();
        for &node in &victims {
            self.record.blows += u64::from(self.cluster.kill(node));
        }
        // Mostly right back; now and then so late that the others must have given up a primary.
        let longest_ms = if self.chance.per_mille(150) { 2500 } else { 300 };
        self.pause_between(0, longest_ms).await;
        for &node in &victims {
            self.cluster.restart(node)?;
            if self.chance.per_mille(150) {
                self.pause_between(0, 80).await;
                self.record.blows += u64::from(self.cluster.kill(node));
                self.record.while_starting += 1;
                self.cluster.restart(node)?;
            }
        }
        self.pause_between(50, 300).await;
        self.maybe_wait().await
    }

    async fn pause_round(&mut self) -> Result<(), Trouble> {
        let victims = self.victims();
        victims.iter().for_each(|&node| self.cluster.members[node].process.pause());
        self.record.blows += victims.len() as u64;
        // From a hiccup to far beyond the time after which a primary is given up.
        let longest_ms = if self.chance.per_mille(500) { 200 } else { 4000 };
        self.pause_between(20, longest_ms).await;
        victims.iter().for_each(|&node| self.cluster.members[node].process.resume());
        self.pause_between(50, 500).await;
        self.maybe_wait().await
    }

    /// Cuts the network in the ways in which networks fail, one a round, for a blink or for long, and heals it.
    async fn partition_round(&mut self) -> Result<(), Trouble> {
        let n = self.cluster.n();
        let mut nodes: Vec<usize> = (0..n).collect();
        self.chance.shuffle(&mut nodes);
        let kind = self.record.rounds % 5;
        let cuts = cuts(kind, &nodes);
        let network = self.cluster.network.as_ref().expect("partitions need namespaces");
        cuts.iter().try_for_each(|(from, to)| network.cut(*from, *to))?;
        self.record.blows += 1;
        let is_long = self.chance.per_mille(600);
        // Between halves so long that nobody can have been served meanwhile without being seen.
        let shortest_ms = if kind == HALVES { 1500 } else { 20 };
        self.pause_between(shortest_ms, if is_long { 4000 } else { shortest_ms + 300 }).await;
        self.cluster.network.as_ref().expect("seen above").heal()?;
        self.pause_between(50, 500).await;
        self.maybe_wait().await
    }

    /// A member's disk fills up under load. It must stop by itself and say what to do, while the others go on; once there
    /// is room it must come back with all it had and carry the quorum when others are killed.
    async fn full_disk(&mut self, watch: &mut Watch) -> Result<(), Trouble> {
        let mut nodes: Vec<usize> = (0..self.cluster.n()).collect();
        self.chance.shuffle(&mut nodes);
        let node = nodes[0];
        self.progress(50).await?;
        self.cluster.kill(node);
        self.cluster.move_to_volume(node, VOLUME_MEBIBYTES)?;
        self.cluster.restart(node)?;
        watch.all_ready(self.cluster).await?;

        self.cluster.volume().fill()?;
        self.record.blows += 1;
        self.expect_end(node, EXIT_FAILED, "free disk space").await?;
        self.progress(100).await?;

        self.cluster.volume().make_room()?;
        self.cluster.restart(node)?;
        watch.all_ready(self.cluster).await?;
        let spare = self.cluster.tolerated;
        for &other in &nodes[1..=spare] {
            self.record.blows += u64::from(self.cluster.kill(other));
        }
        self.progress(200).await?;
        nodes[1..=spare].iter().try_for_each(|&other| self.cluster.restart(other))
    }

    /// A member loses its disk. It must not come back with an empty one, nor with an old one under its old name; it must
    /// come back as its next incarnation and carry the quorum when others are killed.
    async fn lost_disk(&mut self, watch: &mut Watch) -> Result<(), Trouble> {
        let mut nodes: Vec<usize> = (0..self.cluster.n()).collect();
        self.chance.shuffle(&mut nodes);
        let node = nodes[0];
        self.progress(200).await?;
        self.record.blows += u64::from(self.cluster.kill(node));
        self.progress(50).await?;

        self.cluster.roll_back(node)?;
        self.must_end(node, EXIT_HALTED, "member replace").await?;
        self.cluster.wipe(node)?;
        self.must_end(node, EXIT_NOT_STARTED, "member replace").await?;

        replace_member(self.cluster, node).await?;
        self.cluster.restart(node)?;
        // The old client file does not know its new keys.
        *watch = Watch::start(self.cluster.client_config()?)?;
        let id = self.cluster.members[node].id;
        let began = Instant::now();
        while !watch.status(id).await.is_some_and(|status| status.voter && status.not_ready.is_empty()) {
            self.cluster.check_alive()?;
            if began.elapsed() > PATIENCE {
                return Err(stuck(self.cluster, format!("node {id} does not vote again")));
            }
            tokio::time::sleep(LOOK_EVERY * 20).await;
        }
        let spare = self.cluster.tolerated;
        for &other in &nodes[1..=spare] {
            self.record.blows += u64::from(self.cluster.kill(other));
        }
        self.progress(200).await?;
        nodes[1..=spare].iter().try_for_each(|&other| self.cluster.restart(other))
    }

    /// Starts a node that must refuse to go on, and say so.
    async fn must_end(&mut self, node: usize, code: u8, word: &str) -> Result<(), Trouble> {
        self.cluster.restart(node)?;
        self.expect_end(node, code, word).await
    }

    async fn expect_end(&mut self, node: usize, code: u8, word: &str) -> Result<(), Trouble> {
        let began = Instant::now();
        let process = &mut self.cluster.members[node].process;
        let ended = loop {
            match process.wait_for_end(Duration::ZERO) {
                None if began.elapsed() < PATIENCE => tokio::time::sleep(LOOK_EVERY).await,
                ended => break ended,
            }
        };
        match ended {
            Some((status, words)) if status.code() == Some(i32::from(code)) && words.contains(word) => Ok(()),
            Some((status, words)) => Err(Trouble::Work(format!(
                "node {node} must end with exit code {code} and name `{word}`; it ended with {status}: {words}"
            ))),
            None => {
                Err(stuck(self.cluster, format!("node {node} goes on although its disk is lost or full")))
            }
        }
    }

    /// Whom this round hits, in the order they are hit.
    fn victims(&mut self) -> Vec<usize> {
        let (n, spare) = (self.cluster.n(), self.cluster.tolerated);
        let count = match self.chance.below(100) {
            0..10 => n,
            10..22 => (spare + 1).min(n),
            // A cluster of one or two has nothing to spare; each blow stops it.
            _ => 1 + usize::try_from(self.chance.below(spare.max(1) as u64)).expect("few"),
        };
        self.record.all_at_once += u64::from(count == n);
        self.record.over_budget += u64::from(count > spare);
        let mut nodes: Vec<usize> = (0..n).collect();
        self.chance.shuffle(&mut nodes);
        nodes.truncate(count);
        nodes
    }

    async fn maybe_wait(&mut self) -> Result<(), Trouble> {
        self.cluster.check_alive()?;
        if !self.chance.per_mille(550) {
            return Ok(());
        }
        let more = self.chance.between(1, 200);
        self.progress(more).await
    }

    async fn progress(&mut self, more: u64) -> Result<(), Trouble> {
        progress(self.cluster, &self.pulse, more).await
    }

    async fn pause_between(&mut self, low_ms: u64, high_ms: u64) {
        tokio::time::sleep(Duration::from_millis(self.chance.between(low_ms, high_ms))).await;
    }
}

/// The directions that are cut in a partition of this kind, 0 to 4, for nodes in an order drawn by chance.
pub(crate) fn cuts(kind: u64, nodes: &[usize]) -> Vec<(usize, usize)> {
    let n = nodes.len();
    let (one, rest) = nodes.split_first().expect("a cluster has nodes");
    let pair = |from: usize, to: usize| [(from, to), (to, from)];
    match kind {
        // One is alone, both ways.
        0 => rest.iter().flat_map(|other| pair(*one, *other)).collect(),
        // It hears and is not heard; the primary now and then.
        1 => rest.iter().map(|other| (*one, *other)).collect(),
        // It is heard and does not hear.
        2 => rest.iter().map(|other| (*other, *one)).collect(),
        // Two halves, of which neither is a quorum.
        HALVES => {
            let (left, right) = nodes.split_at(n / 2);
            left.iter().flat_map(|a| right.iter().flat_map(move |b| pair(*a, *b))).collect()
        }
        // A single link.
        _ => pair(nodes[0], nodes[n - 1]).to_vec(),
    }
}

/// Until so many more commands were acknowledged. Enough nodes are up, so it must come.
pub(crate) async fn progress(cluster: &mut Cluster, pulse: &Pulse, more: u64) -> Result<(), Trouble> {
    let (before, began) = (pulse.acknowledged(), Instant::now());
    while pulse.acknowledged() < before + more {
        cluster.check_alive()?;
        if began.elapsed() > PATIENCE {
            return Err(stuck(cluster, "nothing is acknowledged although all nodes run".into()));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}

/// The end of a run: all nodes are up; calm, then the nodes are compared at one checkpoint and everything is read back.
pub(crate) async fn wind_up(
    cluster: &mut Cluster,
    pulse: &Pulse,
    record: &mut Record,
    watch: &Watch,
    load: &mut Load,
    scribe: &mut Scribe,
    calm: Duration,
) -> Result<(), Trouble> {
    pulse.enter("waiting for all nodes to be ready at the end");
    progress(cluster, pulse, 1).await?;
    watch.all_ready(cluster).await?;
    pulse.enter("load without faults");
    record.faults_ended_at_us = pulse.now_us();
    pulse.calm();
    tokio::time::sleep(SETTLE).await;
    let begins_at_us = pulse.now_us();
    tokio::time::sleep(calm).await;
    pulse.enter("waiting for the clients' last answers");
    load.stop(PATIENCE).await;
    record.reads_by_index = load.reads_by_index().await;
    let limit_us = u64::try_from(PATIENCE.as_micros()).unwrap_or(u64::MAX);
    record.calm = Some(Calm { begins_at_us, limit_us, run_ended_at_us: u64::MAX });
    pulse.enter("bringing all nodes to one checkpoint");
    record.digests = watch.level(cluster, scribe).await?;
    pulse.enter("reading everything back");
    record.read_back = Some(read_everything(scribe).await?);
    cluster.check_alive()
}

/// Every record under the prefixes that `check::read_back` judges, read through consensus, page by page.
///
/// # Errors
/// A page that is not answered.
pub async fn read_everything(scribe: &mut Scribe) -> Result<Vec<KeyValue>, Trouble> {
    let mut all = Vec::new();
    for prefix in [read_back::UNIQUE_PUT, read_back::COUNTER, read_back::APPEND] {
        // The prefixes end in a slash, so the next character ends them.
        let end = [&prefix[..prefix.len() - 1], b"0"].concat();
        let mut from = prefix.to_vec();
        loop {
            let over = Interval::between(from.clone(), end.clone());
            let page = Operation::Range { over, revision: 0, limit: PAGE, stale: false };
            let Some(Answer::Range { records, .. }) = scribe.ask(page).await else {
                return Err(Trouble::Work("a page of the read-back was not answered".into()));
            };
            let is_last = (records.len() as u64) < PAGE;
            if let Some(last) = records.last() {
                from = [last.key.as_slice(), &[0]].concat();
            }
            all.extend(records);
            if is_last {
                break;
            }
        }
    }
    Ok(all)
}
