//! An operator that orders one mode after another under load, for as many epochs as one likes; with faults, nodes are
//! killed, stopped or cut off meanwhile, never more than the quorum can spare. It notes; `judge` finds what was broken.
//!
//! The orders go round: internet (the segment ends, the root goes on), hybrid (a segment opens), datacenter (one segment
//! hands over to the next). After each the operator has a command of its own acknowledged, which only the protocol that was
//! ordered can label as it is labelled: so every epoch is shown to have served somebody.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use check::{ClientJournal, History, Label, Operation, Outcome};
use dwcp::ProtocolName;
use dwcp::operator::Operator;
use dwcp_base::{Chance, NetworkMode, ReplicaId};
use dwcp_client::{Client, ClientConfig, Status};
use serde::Serialize;

use crate::campaign::{Progress, READER, Record, cuts, progress, wind_up};
use crate::cluster::Cluster;
use crate::error::Trouble;
use crate::judgement::{self, Judgement, is_stale_read};
use crate::load::{Load, Pulse, Scribe, Work};
use crate::stretch::{self, Look, Rates, Stretch};
use crate::watch::{PATIENCE, Watch, stuck};

/// What every client grants a command.
pub const DEADLINE: Duration = Duration::from_secs(30);
/// Number under which the operator writes its journal.
const OPERATOR: u64 = READER + 1;
/// Between two looks at whether the nodes have followed.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Nothing is ordered for so long in the first segment and in the last, so that there are stretches to measure rates over.
const STILL: Duration = Duration::from_millis(2_500);
/// Load in a segment before its leader is killed.
const SETTLED: Duration = Duration::from_millis(500);
const DAY_US: u64 = 86_400_000_000;
const ROUND: [NetworkMode; 3] = [NetworkMode::Internet, NetworkMode::Hybrid, NetworkMode::Datacenter];

#[derive(Clone, Debug)]
pub struct Plan {
    /// Epochs to be opened.
    pub switches: u64,
    pub faults: bool,
    pub seed: u64,
    pub clients: u64,
    pub think_ms: u64,
    /// The orders are spread over so long, if they can be.
    pub spread: Duration,
    /// Leaders of segments to be killed, one after another, when the orders are done.
    pub leaders: u64,
    /// Load after the last order.
    pub calm: Duration,
}

/// A leader of a segment that was killed, and what that cost.
#[derive(Clone, Copy, Debug)]
pub struct Fall {
    pub killed_at_us: u64,
    /// All others had left its segment, and somebody had an answer.
    pub over_at_us: u64,
    /// From the kill to the last complaint that a quorum needs; `None` when the others elected somebody instead.
    pub detected_us: Option<u64>,
    /// Of the segment it led.
    pub epoch: u64,
    /// All nodes, the killed one among them, stood in one segment again, which nobody had ordered.
    pub reopened_at_us: u64,
    /// Of that one: the same where the others elected somebody instead.
    pub next_epoch: u64,
}

/// One order, and what came of it.
#[derive(Clone, Copy, Debug)]
pub struct Switch {
    pub from: ProtocolName,
    pub to: ProtocolName,
    pub ordered_at_us: u64,
    /// Everybody who could had followed, and the operator's own command was acknowledged.
    pub over_at_us: u64,
    /// The epoch that was open then, and the label of that command.
    pub epoch: u64,
    pub label: Option<Label>,
}

/// What nodes suffered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Blows {
    pub kills: u64,
    pub stops: u64,
    pub cuts: u64,
}

/// What a soak leaves behind.
#[derive(Debug)]
pub struct Soaked {
    pub plan: Plan,
    pub record: Record,
    pub switches: Vec<Switch>,
    /// Between one order and the next, where a segment was open all the time.
    pub stretches: Vec<Stretch>,
    pub falls: Vec<Fall>,
    pub blows: Blows,
    /// The last epoch of each node, at the first order and at the end.
    pub epochs_before: Vec<u64>,
    pub epochs_after: Vec<u64>,
    /// Segments that ended although nobody had ordered it.
    pub failovers: u64,
}

/// How a node is being hit.
#[derive(Clone, Copy, Debug)]
enum Blow {
    Kill,
    Stop,
    Cut,
}

#[derive(Debug)]
pub struct Soak<'a> {
    cluster: &'a mut Cluster,
    chance: Chance,
    pulse: Arc<Pulse>,
    soaked: Soaked,
}

impl<'a> Soak<'a> {
    pub fn new(cluster: &'a mut Cluster, plan: Plan) -> Self {
        let chance = Chance::new(plan.seed).fork("soak");
        let soaked = Soaked {
            plan,
            record: Record::of(cluster),
            switches: Vec::new(),
            stretches: Vec::new(),
            falls: Vec::new(),
            blows: Blows::default(),
            epochs_before: Vec::new(),
            epochs_after: Vec::new(),
            failovers: 0,
        };
        Self { cluster, chance, pulse: Pulse::start(), soaked }
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
    pub async fn run(mut self, show: &mut dyn FnMut(Progress)) -> Result<Soaked, Trouble> {
        let began = Instant::now();
        let mut config = self.cluster.client_config()?;
        config.settings.call_timeout = DEADLINE;
        let watch = Watch::start(config.clone())?;
        let Plan { clients, think_ms, seed, .. } = self.soaked.plan;
        let work = Work { clients, think_ms, seed, impatient: false };
        let mut load = Load::start(&config, work, &self.pulse)?;
        let client = Client::start(config.clone())?;
        let mut reader = Scribe::new(READER, &client, &self.pulse);
        let mut hand = Scribe::new(OPERATOR, &client, &self.pulse);
        if let Err(trouble) = self.story(&config, &watch, &mut load, &mut reader, &mut hand, show).await {
            self.soaked.record.trouble = Some(trouble.to_string());
            load.stop(Duration::ZERO).await;
        }
        let statuses = watch.statuses().await;
        self.soaked.failovers = statuses.iter().map(|status| status.failovers).max().unwrap_or(0);
        self.soaked.epochs_after = epochs(&statuses);
        let record = &mut self.soaked.record;
        record.history = load.history(&[reader.journal(), hand.journal()]);
        record.view = watch.view();
        record.seconds = began.elapsed().as_secs_f64();
        Ok(self.soaked)
    }

    async fn story(
        &mut self,
        config: &ClientConfig,
        watch: &Watch,
        load: &mut Load,
        reader: &mut Scribe,
        hand: &mut Scribe,
        show: &mut dyn FnMut(Progress),
    ) -> Result<(), Trouble> {
        let admin = self.cluster.admin_config()?;
        let mut admin_config = config.clone();
        admin_config.principal = admin.principal;
        let operator = Operator::start(admin_config)?;
        watch.all_ready(self.cluster).await?;
        progress(self.cluster, &self.pulse, 1).await?;
        self.soaked.epochs_before = epochs(&watch.statuses().await);
        let first = self.soaked.epochs_before.iter().copied().max().unwrap_or(0);
        let began = Instant::now();
        let mut opened = 0;
        for mode in ROUND.into_iter().cycle() {
            if opened >= self.soaked.plan.switches {
                break;
            }
            self.pulse.enter(format!("order of {mode} mode, {opened} epochs opened"));
            let blow = if self.soaked.plan.faults { self.draw() } else { None };
            let hit = match blow {
                Some(blow) => Some((blow, self.strike(blow)?)),
                None => None,
            };
            // Nodes are hit before an order, with it and while it is followed.
            if hit.is_some() {
                self.pause_up_to(300).await;
            }
            let victim = hit.as_ref().and_then(|(_, victim)| *victim);
            let epoch = self.switch(mode, victim, &operator, watch, hand).await?;
            let is_first_segment = opened == 0 && epoch > first;
            opened = epoch.saturating_sub(first);
            if let Some((blow, victim)) = hit {
                self.pause_up_to(1500).await;
                self.heal(blow, victim)?;
                // A node that is not back yet is one that the quorum cannot spare.
                watch.all_ready(self.cluster).await?;
            }
            let (acknowledged, unknown) = (self.pulse.acknowledged(), self.pulse.unknown());
            show(Progress { blows: opened, acknowledged, unknown, view: watch.view() });
            let before = Look::take(watch, &self.pulse).await;
            if is_first_segment || opened >= self.soaked.plan.switches {
                tokio::time::sleep(STILL).await;
            }
            self.keep_pace(began, opened).await;
            let after = Look::take(watch, &self.pulse).await;
            self.soaked.stretches.extend(Stretch::between(&before, &after, self.cluster.n()));
        }
        let leaders = self.soaked.plan.leaders;
        for fallen in 0..leaders {
            // In datacenter mode the others elect somebody; in hybrid mode a segment that does not move is closed. Each
            // time anew: failures in a row double the calm without a segment, of which the eighth kill would wait 64 s, and
            // an order begins a new count. So all kills meet the same cluster.
            self.pulse
                .enter(format!("order of hybrid mode before leader {} of {leaders} is killed", fallen + 1));
            self.switch(NetworkMode::Hybrid, None, &operator, watch, hand).await?;
            self.pulse.enter(format!("leader {} of {leaders} is killed", fallen + 1));
            self.fell_leader(watch).await?;
            let (acknowledged, unknown) = (self.pulse.acknowledged(), self.pulse.unknown());
            show(Progress { blows: opened + fallen + 1, acknowledged, unknown, view: watch.view() });
        }
        // Nodes are compared at one sequence of the root.
        if self.soaked.switches.last().is_some_and(|last| last.to == ProtocolName::Raft) {
            self.switch(NetworkMode::Internet, None, &operator, watch, hand).await?;
        }
        let calm = self.soaked.plan.calm;
        wind_up(self.cluster, &self.pulse, &mut self.soaked.record, watch, load, reader, calm).await
    }

    /// Orders a mode; over when everybody but the victim has followed and a command was acknowledged. The epoch then open,
    /// or opened last.
    async fn switch(
        &mut self,
        mode: NetworkMode,
        victim: Option<usize>,
        operator: &Operator,
        watch: &Watch,
        hand: &mut Scribe,
    ) -> Result<u64, Trouble> {
        let to = if mode == NetworkMode::Internet { ProtocolName::Pbft } else { ProtocolName::Raft };
        let before = watch.statuses().await;
        let from = if self.soaked.switches.is_empty() {
            before.first().map_or(ProtocolName::Pbft, |status| status.protocol)
        } else {
            self.soaked.switches[self.soaked.switches.len() - 1].to
        };
        let epoch = before.iter().map(|status| status.epoch.0).max().unwrap_or(0);
        let ordered_at_us = self.pulse.now_us();
        let ordered = operator
            .order_mode(mode, None)
            .await
            .map_err(|error| Trouble::Work(format!("the order of {mode} mode was not taken: {error}")))?;
        let faults = self.soaked.plan.faults;
        let began = Instant::now();
        let reached = loop {
            self.cluster.check_alive()?;
            let seen = watch.statuses().await;
            let follows = |status: &&Status| {
                // A segment that failed at once has been opened all the same.
                let is_there = match to {
                    ProtocolName::Pbft => status.protocol == to,
                    ProtocolName::Raft => status.epoch.0 > epoch && (faults || status.protocol == to),
                };
                status.next_order > ordered.number && is_there
            };
            let others = seen.iter().filter(|status| Some(usize::from(status.replica.0)) != victim);
            if others.filter(follows).count() >= self.cluster.n() - usize::from(victim.is_some()) {
                break seen.iter().map(|status| status.epoch.0).max().unwrap_or(0);
            }
            if began.elapsed() > PATIENCE {
                let told: Vec<String> = seen.iter().map(describe).collect();
                let what = format!("the order of {mode} mode is not followed ({})", told.join("; "));
                return Err(stuck(self.cluster, what));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        };
        let label = self.prove(to, hand).await;
        let over_at_us = self.pulse.now_us();
        self.soaked.switches.push(Switch { from, to, ordered_at_us, over_at_us, epoch: reached, label });
        Ok(reached)
    }

    /// A command of the operator's own. In a segment it is asked until an answer comes from the segment itself: one that was
    /// late may have been vouched for by an Anchor instead.
    async fn prove(&mut self, to: ProtocolName, hand: &mut Scribe) -> Option<Label> {
        let (tries, wanted) = match to {
            ProtocolName::Pbft => (1, Label::Byzantine),
            ProtocolName::Raft if self.soaked.plan.faults => (1, Label::Crash),
            ProtocolName::Raft => (20, Label::Crash),
        };
        let mut label = None;
        for attempt in 0..tries {
            let value = format!("{OPERATOR}.{}.{attempt}", self.soaked.switches.len());
            hand.ask(Operation::put("unique/operator", value)).await;
            label = hand.last_label();
            // A refusal is a client's error, and so is no answer, which took the whole deadline: that is enough.
            if label == Some(wanted) || label.is_none() {
                break;
            }
        }
        label
    }

    /// Until all nodes are in one segment and agree on who leads it: its epoch, and that one.
    async fn segment(&mut self, watch: &Watch) -> Result<(u64, ReplicaId), Trouble> {
        let began = Instant::now();
        loop {
            watch.all_ready(self.cluster).await?;
            let look = Look::take(watch, &self.pulse).await;
            let leaders = look.statuses.iter().map(|status| status.segment.as_ref()?.leader);
            let leaders: BTreeSet<Option<ReplicaId>> = leaders.collect();
            let is_open = Stretch::between(&look, &look, self.cluster.n());
            if let (Some(open), 1, Some(Some(leader))) = (is_open, leaders.len(), leaders.first()) {
                return Ok((open.epoch, *leader));
            }
            if began.elapsed() > PATIENCE {
                let told: Vec<String> = look.statuses.iter().map(describe).collect();
                let what = format!("the nodes are not in one segment with a leader ({})", told.join("; "));
                return Err(stuck(self.cluster, what));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// SIGKILL to whoever leads the open segment; over when the others have left that and serve again without it, and when
    /// the next segment has opened by itself.
    async fn fell_leader(&mut self, watch: &Watch) -> Result<(), Trouble> {
        let (epoch, leader) = self.segment(watch).await?;
        // Somewhere between two Anchors.
        tokio::time::sleep(SETTLED).await;
        self.pause_up_to(300).await;
        let node = usize::from(leader.0);
        let logs: Vec<(PathBuf, u64)> = self
            .cluster
            .members
            .iter()
            .filter(|member| member.id != leader.0)
            .map(|member| member.process.log_file().to_path_buf())
            .map(|log| (log.clone(), std::fs::metadata(&log).map_or(0, |metadata| metadata.len())))
            .collect();
        let (killed_at_us, killed_at) = (self.pulse.now_us(), SystemTime::now());
        self.cluster.kill(node);
        self.soaked.blows.kills += 1;
        let killed = Instant::now();
        loop {
            self.cluster.check_alive()?;
            let seen = watch.statuses().await;
            let others = || seen.iter().filter(|status| status.replica != leader);
            let has_left = |status: &Status| {
                let led_by = status.segment.as_ref().and_then(|segment| segment.leader);
                let is_elsewhere = status.protocol == ProtocolName::Pbft || status.epoch.0 > epoch;
                is_elsewhere || led_by.is_some_and(|led_by| led_by != leader)
            };
            if others().count() == self.cluster.n() - 1 && others().all(has_left) {
                break;
            }
            if killed.elapsed() > PATIENCE {
                return Err(stuck(self.cluster, "the others do not leave a dead leader's segment".into()));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        progress(self.cluster, &self.pulse, 1).await?;
        let over_at_us = self.pulse.now_us();
        let complaints: Vec<Option<u64>> =
            logs.iter().map(|(log, from)| complained_after_us(log, *from, killed_at)).collect();
        // All that are left are needed for a quorum of complaints.
        let all: Option<Vec<u64>> = complaints.into_iter().collect();
        let detected_us = all.and_then(|all| all.into_iter().max());
        self.cluster.restart(node)?;
        // All others have left the one that was closed. Where they elected somebody it is the same.
        let (next_epoch, _) = self.segment(watch).await?;
        let reopened_at_us = self.pulse.now_us();
        let fall = Fall { killed_at_us, over_at_us, detected_us, epoch, reopened_at_us, next_epoch };
        self.soaked.falls.push(fall);
        Ok(())
    }

    fn draw(&mut self) -> Option<Blow> {
        match self.chance.below(100) {
            0..25 => None,
            25..55 => Some(Blow::Kill),
            55..80 => Some(Blow::Stop),
            _ if self.cluster.network.is_some() => Some(Blow::Cut),
            _ => Some(Blow::Kill),
        }
    }

    /// Hits one node, whoever it is. `None`: a single link was cut, which everybody gets around.
    fn strike(&mut self, blow: Blow) -> Result<Option<usize>, Trouble> {
        let mut nodes: Vec<usize> = (0..self.cluster.n()).collect();
        self.chance.shuffle(&mut nodes);
        let node = nodes[0];
        match blow {
            Blow::Kill => {
                self.cluster.kill(node);
                self.soaked.blows.kills += 1;
            }
            Blow::Stop => {
                self.cluster.members[node].process.pause();
                self.soaked.blows.stops += 1;
            }
            Blow::Cut => {
                // Alone both ways, not heard, not hearing, or a single link; never two halves.
                let kind = [0, 1, 2, 4][usize::try_from(self.chance.below(4)).expect("below four")];
                let network = self.cluster.network.as_ref().expect("drawn only where there is one");
                cuts(kind, &nodes).iter().try_for_each(|(from, to)| network.cut(*from, *to))?;
                self.soaked.blows.cuts += 1;
                return Ok((kind != 4).then_some(node));
            }
        }
        Ok(Some(node))
    }

    fn heal(&mut self, blow: Blow, victim: Option<usize>) -> Result<(), Trouble> {
        match (blow, victim) {
            (Blow::Kill, Some(node)) => self.cluster.restart(node),
            (Blow::Stop, Some(node)) => {
                self.cluster.members[node].process.resume();
                Ok(())
            }
            (Blow::Cut, _) => self.cluster.network.as_ref().expect("it was cut").heal(),
            (Blow::Kill | Blow::Stop, None) => Ok(()),
        }
    }

    async fn keep_pace(&self, began: Instant, opened: u64) {
        let Plan { spread, switches, .. } = self.soaked.plan;
        let due = spread.mul_f64(opened as f64 / switches.max(1) as f64);
        tokio::time::sleep(due.saturating_sub(began.elapsed())).await;
    }

    async fn pause_up_to(&mut self, longest_ms: u64) {
        tokio::time::sleep(Duration::from_millis(self.chance.between(0, longest_ms))).await;
    }
}

/// When a node first complained of its segment, by what it wrote into its log from `from` on.
fn complained_after_us(log: &Path, from: u64, killed_at: SystemTime) -> Option<u64> {
    let bytes = std::fs::read(log).ok()?;
    let text = String::from_utf8_lossy(bytes.get(usize::try_from(from).ok()?..)?).into_owned();
    let line = text.lines().find(|line| line.contains("complains of the segment"))?;
    let since = killed_at.duration_since(UNIX_EPOCH).ok()?.as_micros();
    let killed_us = u64::try_from(since).ok()? % DAY_US;
    // A day may end in between.
    Some((time_of_day_us(line)? + DAY_US - killed_us) % DAY_US)
}

/// Of a line that begins with an RFC 3339 time in UTC with a fraction.
fn time_of_day_us(line: &str) -> Option<u64> {
    let time = line.split_whitespace().next()?.split_once('T')?.1.strip_suffix('Z')?;
    let (whole, fraction) = time.split_once('.')?;
    let mut parts = whole.split(':').map(|part| part.parse::<u64>().ok());
    let (hours, minutes, seconds) = (parts.next()??, parts.next()??, parts.next()??);
    let micros = format!("{fraction:0<6}").get(..6)?.parse::<u64>().ok()?;
    Some(((hours * 60 + minutes) * 60 + seconds) * 1_000_000 + micros)
}

fn epochs(statuses: &[Status]) -> Vec<u64> {
    statuses.iter().map(|status| status.epoch.0).collect()
}

fn describe(status: &Status) -> String {
    let no_segment = &status.no_segment;
    format!(
        "node {}: epoch {}, {}, mode {}, next order {}, {}{}",
        status.replica,
        status.epoch.0,
        status.protocol.word(),
        status.mode,
        status.next_order,
        if status.not_ready.is_empty() { "ready".to_string() } else { status.not_ready.join(", ") },
        if no_segment.is_empty() { String::new() } else { format!(", no segment: {no_segment}") }
    )
}

/// What the judges of a campaign say, and beyond it what a soak promises.
#[must_use]
pub fn judge(soaked: &Soaked) -> SoakJudgement {
    let mut base = judgement::judge(&soaked.record);
    let errors = client_errors(&soaked.record.history, &mut base);
    let risen = rise(soaked);
    if risen < soaked.plan.switches {
        let wanted = soaked.plan.switches;
        base.find(format!(
            "epochs: the node that lags most has seen {risen} open, and {wanted} were asked for"
        ));
    }
    let unproved = if soaked.plan.faults { 0 } else { unproved(&soaked.switches, &mut base) };
    let (failovers, fallen) = (soaked.failovers, soaked.falls.len() as u64);
    if !soaked.plan.faults && failovers > fallen {
        base.find(format!("failovers: {failovers}, and {fallen} leaders were killed"));
    }
    if fallen < soaked.plan.leaders {
        base.find(format!("leaders: {fallen} of {} were killed", soaked.plan.leaders));
    }
    let rates = stretch::judge(&soaked.stretches, &mut base);
    // A fault may end any segment before it has been open for long.
    if !soaked.plan.faults && rates.judged == 0 {
        base.find("rates: no segment was open long enough to show what the root orders meanwhile".into());
    }
    // Half of all reads ask for it, and while a segment is open somebody leads.
    if !soaked.plan.faults && soaked.record.reads_by_index == 0 && soaked.record.trouble.is_none() {
        base.find("reads: none was answered without an entry, so nothing is shown of that road".into());
    }
    SoakJudgement { base, client_errors: errors, epochs: risen, unproved, while_open: rates }
}

#[derive(Clone, Debug, Serialize)]
pub struct SoakJudgement {
    #[serde(flatten)]
    pub base: Judgement,
    /// Commands that were refused, or not answered within the deadline.
    pub client_errors: u64,
    /// Epochs that every node has seen open.
    pub epochs: u64,
    /// Stretches between two orders in which no command is known to have been acknowledged by the protocol that was ordered.
    pub unproved: u64,
    /// Of the root and of the virtual log, while segments were open.
    pub while_open: Rates,
}

impl SoakJudgement {
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.base.is_clean() && self.client_errors + self.unproved == 0
    }
}

/// The least that any node's epoch has risen; 0 when a node said nothing.
fn rise(soaked: &Soaked) -> u64 {
    let (before, after) = (&soaked.epochs_before, &soaked.epochs_after);
    if before.len() < soaked.record.nodes || after.len() < soaked.record.nodes {
        return 0;
    }
    before.iter().zip(after).map(|(before, after)| after.saturating_sub(*before)).min().unwrap_or(0)
}

fn client_errors(history: &History, base: &mut Judgement) -> u64 {
    let mut errors = 0;
    let commands = history.clients.iter().flat_map(|ClientJournal { client, commands, .. }| {
        commands.iter().map(move |command| (client, command))
    });
    for (client, command) in commands.filter(|(_, command)| !is_stale_read(command)) {
        let why = match &command.outcome {
            Outcome::Ok { .. } => continue,
            Outcome::Refused { reason, .. } => format!("refused ({reason})"),
            // The run was cut short, which is a finding of its own.
            Outcome::Unknown { gave_up_at_us: None } => continue,
            Outcome::Unknown { .. } => format!("not answered within {} s", DEADLINE.as_secs()),
        };
        errors += 1;
        base.find(format!("client {client}: command {} was {why}", command.id));
    }
    errors
}

fn unproved(switches: &[Switch], base: &mut Judgement) -> u64 {
    let mut count = 0;
    for switch in switches {
        let wanted = if switch.to == ProtocolName::Pbft { Label::Byzantine } else { Label::Crash };
        if switch.label != Some(wanted) {
            count += 1;
            let (to, epoch, label) = (switch.to.word(), switch.epoch, switch.label);
            base.find(format!(
                "epoch {epoch}: no command is known to be acknowledged by {to} (label {label:?})"
            ));
        }
    }
    count
}

/// Gaps of one kind of switch, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Gaps {
    pub count: u64,
    pub p50_ms: u64,
    pub p99_ms: u64,
    pub max_ms: u64,
}

/// The longest interval between consecutive acknowledgements that touches each switch, by kind.
#[must_use]
pub fn gaps(soaked: &Soaked, from: ProtocolName, to: ProtocolName) -> Gaps {
    let done = judgement::acknowledged_at_us(&soaked.record.history.clients);
    let kind = soaked.switches.iter().filter(|switch| switch.from == from && switch.to == to);
    let mut gaps: Vec<u64> = kind.map(|switch| gap_us(&done, switch)).collect();
    gaps.sort_unstable();
    let at = |per_cent: usize| gaps.get((gaps.len() * per_cent / 100).min(gaps.len().saturating_sub(1)));
    let ms = |us: Option<&u64>| us.map_or(0, |us| us / 1000);
    Gaps { count: gaps.len() as u64, p50_ms: ms(at(50)), p99_ms: ms(at(99)), max_ms: ms(gaps.last()) }
}

/// The same of leaders that were killed and whose segments were closed by force, beside how long it took to notice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Falls {
    pub killed: u64,
    /// Whose segment was closed; in the others somebody else was elected.
    pub closed: u64,
    pub elected_gap_p50_ms: f64,
    pub elected_gap_p99_ms: f64,
    pub gap_p50_ms: f64,
    pub gap_p99_ms: f64,
    pub detection_p50_ms: f64,
    pub detection_p99_ms: f64,
    /// Of each gap, what was left when the death was known.
    pub beyond_p50_ms: f64,
    pub beyond_p99_ms: f64,
    /// From the kill until all nodes, the killed one among them, stood in the next segment.
    pub reopened_p50_ms: f64,
    pub reopened_p99_ms: f64,
}

#[must_use]
pub fn falls(soaked: &Soaked) -> Falls {
    let done = judgement::acknowledged_at_us(&soaked.record.history.clients);
    let (mut gaps, mut detections, mut beyond) = (Vec::new(), Vec::new(), Vec::new());
    let (mut elected, mut reopened) = (Vec::new(), Vec::new());
    for fall in &soaked.falls {
        let gap_us = longest_us(&done, fall.killed_at_us, fall.over_at_us);
        let Some(detected_us) = fall.detected_us else {
            elected.push(gap_us);
            continue;
        };
        gaps.push(gap_us);
        reopened.push(fall.reopened_at_us.saturating_sub(fall.killed_at_us));
        detections.push(detected_us);
        beyond.push(gap_us.saturating_sub(detected_us));
    }
    let at = |values: &mut Vec<u64>, per_cent: usize| {
        values.sort_unstable();
        let place = (values.len() * per_cent / 100).min(values.len().saturating_sub(1));
        values.get(place).map_or(0.0, |us| (*us as f64 / 100.0).round() / 10.0)
    };
    Falls {
        killed: soaked.falls.len() as u64,
        closed: gaps.len() as u64,
        elected_gap_p50_ms: at(&mut elected, 50),
        elected_gap_p99_ms: at(&mut elected, 99),
        gap_p50_ms: at(&mut gaps, 50),
        gap_p99_ms: at(&mut gaps, 99),
        detection_p50_ms: at(&mut detections, 50),
        detection_p99_ms: at(&mut detections, 99),
        beyond_p50_ms: at(&mut beyond, 50),
        beyond_p99_ms: at(&mut beyond, 99),
        reopened_p50_ms: at(&mut reopened, 50),
        reopened_p99_ms: at(&mut reopened, 99),
    }
}

fn gap_us(done: &[u64], switch: &Switch) -> u64 {
    longest_us(done, switch.ordered_at_us, switch.over_at_us)
}

fn longest_us(done: &[u64], from_us: u64, until_us: u64) -> u64 {
    // From the last acknowledgement before to the first one after.
    let first = done.partition_point(|at| *at < from_us).saturating_sub(1);
    let last = (done.partition_point(|at| *at <= until_us) + 1).min(done.len());
    done[first..last].windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use check::{CommandId, Reply};

    fn switch(to: ProtocolName, label: Option<Label>) -> Switch {
        let from = ProtocolName::Raft;
        Switch { from, to, ordered_at_us: 100, over_at_us: 200, epoch: 3, label }
    }

    #[test]
    fn a_gap_reaches_from_the_last_answer_before_a_switch_to_the_first_behind_it() {
        let raft = switch(ProtocolName::Raft, None);
        assert_eq!(gap_us(&[10, 90, 150, 190, 230, 900], &raft), 60);
        assert_eq!(gap_us(&[10, 90, 300, 900], &raft), 210, "nothing within");
        assert_eq!(gap_us(&[10, 90, 150, 190, 700], &raft), 510);
        assert_eq!((gap_us(&[], &raft), gap_us(&[150], &raft)), (0, 0));
    }

    #[test]
    fn a_complaint_is_timed_by_its_line_in_the_log() {
        let log = tempfile::NamedTempFile::new().unwrap();
        let old = "1970-01-01T23:59:58.000000Z  WARN dwcp_node: complains of the segment epoch=1\n";
        let line = "1970-01-02T00:00:00.250000Z  WARN dwcp_node: complains of the segment epoch=2\n";
        std::fs::write(log.path(), format!("{old}{line}")).unwrap();
        let killed_at = UNIX_EPOCH + Duration::from_micros(DAY_US - 1_000_000);
        let from = old.len() as u64;
        assert_eq!(complained_after_us(log.path(), from, killed_at), Some(1_250_000), "over midnight");
        assert_eq!(complained_after_us(log.path(), from + line.len() as u64, killed_at), None);
        assert_eq!(time_of_day_us("no time at all"), None);
    }

    #[test]
    fn a_stretch_is_proved_by_the_label_that_only_its_protocol_gives() {
        let mut base = Judgement::default();
        let (raft, pbft) = (ProtocolName::Raft, ProtocolName::Pbft);
        let good = [switch(raft, Some(Label::Crash)), switch(pbft, Some(Label::Byzantine))];
        assert_eq!((unproved(&good, &mut base), base.findings.len()), (0, 0));
        let bad =
            [switch(raft, Some(Label::Byzantine)), switch(pbft, Some(Label::Crash)), switch(raft, None)];
        assert_eq!((unproved(&bad, &mut base), base.findings.len()), (3, 3));
    }

    #[test]
    fn whatever_a_client_was_not_given_is_an_error_but_for_reads_of_one_node() {
        let mut history = History::default();
        let journal = history.client(0);
        let mut note = |operation| journal.invoked(CommandId { session: 1, seq: 1 }, 5, operation);
        let (fine, refused, late, stale) = (
            note(Operation::get("a")),
            note(Operation::get("a")),
            note(Operation::get("a")),
            note(Operation::get_stale("a")),
        );
        let answer = check::Answer::Range { records: Vec::new(), count: 0 };
        journal.returned(fine, 9, Reply::new(1, answer), Label::Crash);
        journal.refused(refused, 9, "busy");
        journal.gave_up(late, 9);
        journal.refused(stale, 9, "dead");
        let mut base = Judgement::default();
        assert_eq!((client_errors(&history, &mut base), base.findings.len()), (2, 2));
    }
}
