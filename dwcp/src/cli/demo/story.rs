//! The demo's course of events: which process is started and killed when, and how it is known that the cluster got over
//! it. It judges nothing (`verify.rs`) and measures nothing (`report.rs`): it notes phases and collects what they need.
//! What hybrid mode adds stands in `switching.rs`.

use std::time::{Duration, Instant};

use dwcp_client::Status;
use dwcp_node::settings::Mode;
use dwcp_state::kv::{KvBody, KvCommand, KvReply, Range};

use super::journal::{Entry, PREFIX};
use super::load::Load;
use super::parting::{Parting, forget_proxies, put_between};
use super::report::{Killed, Phase, Switch};
use super::stage::Stage;
use super::verify::{Held, Holding, NodeView};
use crate::cli::cluster::Link;
use crate::cli::local::LocalCluster;
use crate::cli::output::{Failure, Kind, Outcome, thousands};

/// A cluster on one machine that takes longer than this for anything is broken.
pub const PATIENCE: Duration = Duration::from_secs(90);
/// Between two looks at the nodes.
pub const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long all nodes stay dead.
const DEAD_FOR: Duration = Duration::from_millis(500);
/// Keys read in one page.
const PAGE: u64 = 500;
/// Written to move the log to its next checkpoint, outside of what is judged.
const LEVEL_KEY: &str = "level";

/// Everything the story leaves behind for those who judge and tell.
#[derive(Debug, Default)]
pub struct Record {
    pub phases: Vec<Phase>,
    pub journal: Vec<Entry>,
    pub agreed: Holding,
    pub nodes: Vec<NodeView>,
    /// When no node was running.
    pub dead: Vec<(u64, u64)>,
    pub switches: Vec<Switch>,
    pub sync: Parting,
}

#[derive(Debug)]
pub struct Story<'a> {
    pub cluster: &'a mut LocalCluster,
    clock: Instant,
    pub stage: Stage,
    phases: Vec<Phase>,
    pub switches: Vec<Switch>,
    /// How long load is watched between two events.
    pub stretch: Duration,
    /// The load ends no sooner than after so many acknowledgements.
    at_least: u64,
}

impl<'a> Story<'a> {
    pub fn new(cluster: &'a mut LocalCluster, load_for: Duration, at_least: u64) -> Self {
        // So many stretches of load has the story.
        let stretches = match cluster.mode {
            Mode::Hybrid => 9,
            Mode::Datacenter => 5,
            Mode::Internet => 4,
        };
        let (clock, stretch) = (Instant::now(), load_for / stretches);
        Self {
            cluster,
            clock,
            stage: Stage::new(),
            phases: Vec::new(),
            switches: Vec::new(),
            stretch,
            at_least,
        }
    }

    pub async fn tell(mut self, clients: u32) -> Outcome<Record> {
        self.start().await?;
        let link = Link::connect(Link::patient(self.cluster)?)?;
        self.phase().view_after = Some(agreed_view(&statuses(&link).await)?.0);
        let load = Load::start(&link, clients, self.clock);
        let dead = match self.cluster.mode {
            Mode::Hybrid => self.tell_switches(&link, &load).await?,
            Mode::Datacenter => self.tell_election(&link, &load).await?,
            Mode::Internet => {
                self.watch_load(&link, &load).await?;
                let dead = self.kill_primary(&link, &load).await?;
                self.watch_recovery(&link, &load).await?;
                dead
            }
        };
        self.restart_dead(dead, &link, &load).await?;
        let outage = self.kill_all(&link).await?;
        let proxies = put_between(self.cluster).await?;
        self.restart_all(&link, &load, outage).await?;
        forget_proxies(self.cluster)?;
        if self.cluster.mode == Mode::Hybrid {
            self.end_in_root(&link, &load).await?;
        }
        let ended_us = self.now_us();
        self.begin("finish", None);
        self.stage.tick("clients finish what they are at".into());
        let journal = load.stop().await?;
        self.end(format!("{} operations written down", thousands(journal.len() as u64)));
        let sync = self.part(&proxies).await?;
        self.begin("verify", None);
        if self.cluster.mode == Mode::Datacenter {
            self.hand_over(&link).await?;
        }
        let (agreed, nodes) = self.read_back().await?;
        let digest = nodes.first().map(|node| node.digest.0).unwrap_or_default();
        self.end(format!(
            "{} keys read from each node, digests at sequence {digest}",
            thousands(agreed.len() as u64)
        ));
        let dead = vec![(
            outage,
            self.phases.iter().find(|p| p.name == "restart all").map_or(ended_us, |p| p.began_us),
        )];
        Ok(Record { phases: self.phases, journal, agreed, nodes, dead, switches: self.switches, sync })
    }

    async fn start(&mut self) -> Outcome {
        self.begin("start", None);
        self.stage.tick("processes start".into());
        self.cluster.start_all()?;
        self.cluster.ready(PATIENCE).await?;
        let pids: Vec<String> =
            self.cluster.pids().iter().map(|(node, pid)| format!("{node}={pid}")).collect();
        self.end(format!("{} nodes, pids {}", self.cluster.nodes.len(), pids.join(" ")));
        Ok(())
    }

    pub async fn watch_load(&mut self, link: &Link, load: &Load) -> Outcome {
        self.begin("load", Some(self.stretch));
        self.watch(load, self.stretch, 1).await?;
        self.note_view(link).await;
        self.end_counted(load, "");
        Ok(())
    }

    /// SIGKILL the primary while commands are under way; over when the others answer in a later view.
    async fn kill_primary(&mut self, link: &Link, load: &Load) -> Outcome<usize> {
        let (view, primary) = agreed_view(&statuses(link).await)?;
        let node = self.cluster.nodes.iter().position(|node| node.id == primary);
        let node = node
            .ok_or_else(|| Failure::refused(format!("the primary {primary} is none of the demo's nodes")))?;
        self.begin("kill primary", None);
        self.stage.tick(format!("SIGKILL to node {primary}"));
        let pid = self.cluster.kill(node).ok_or_else(|| Failure::refused("the primary was not running"))?;
        let killed = Killed { node: self.cluster.nodes[node].id, pid, primary: true };
        self.phase().killed.push(killed);
        self.phase().view_before = Some(view);
        // What the dead primary had decided may still be acknowledged; the first answer in a later view counts.
        let until = Instant::now() + PATIENCE;
        let later = loop {
            self.check(until, "no later view works")?;
            let alive = statuses(link).await;
            let later = alive
                .iter()
                .filter(|status| status.view.0 > view && status.view_active)
                .map(|s| s.view.0)
                .max();
            self.stage.tick(format!(
                "node {primary} (pid {pid}) is dead; {} acknowledged",
                load.pulse.acknowledged()
            ));
            if let Some(later) = later {
                break later;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        };
        self.wait_for_more(load, until).await?;
        self.phase().view_after = Some(later);
        self.end(format!("node {primary} (pid {pid}) killed, view {view} -> {later}"));
        Ok(node)
    }

    pub async fn watch_recovery(&mut self, link: &Link, load: &Load) -> Outcome {
        self.begin("recover", Some(self.stretch));
        self.watch(load, self.stretch, 1).await?;
        self.note_view(link).await;
        self.end_counted(load, "one node less");
        Ok(())
    }

    /// Starts the dead node again; over when it has executed what the others had when it started.
    async fn restart_dead(&mut self, node: usize, link: &Link, load: &Load) -> Outcome {
        self.begin("restart", None);
        let before = statuses(link).await;
        let target = before.iter().map(|status| status.position.0).max().unwrap_or(0);
        self.phase().view_before = before.iter().map(|status| status.view.0).max();
        let pid = self.cluster.start(node)?;
        let id = self.cluster.nodes[node].id;
        let until = Instant::now() + PATIENCE;
        let began = Instant::now();
        let caught_up = loop {
            self.check(until, "the restarted node does not catch up")?;
            let own = link.status(id).await.ok();
            let position = own.as_ref().map_or(0, |status| status.position.0);
            self.stage.tick(format!("node {id} (pid {pid}) is at {position}, the others were at {target}"));
            if own.is_some_and(|status| status.position.0 >= target && status.not_ready.is_empty()) {
                break began.elapsed();
            }
            tokio::time::sleep(LOOK_EVERY).await;
        };
        let rest = self.stretch.saturating_sub(began.elapsed());
        self.watch(load, rest, 1).await?;
        self.note_view(link).await;
        let note = format!("node {id} caught up in {:.1} s", caught_up.as_secs_f64());
        self.phase().note.clone_from(&note);
        self.end_counted(load, &note);
        Ok(())
    }

    /// SIGKILL all. Returns when the last one died.
    async fn kill_all(&mut self, link: &Link) -> Outcome<u64> {
        let (view, primary) = agreed_view(&statuses(link).await)?;
        self.begin("kill all", Some(DEAD_FOR));
        self.phase().view_before = Some(view);
        for node in 0..self.cluster.nodes.len() {
            let id = self.cluster.nodes[node].id;
            if let Some(pid) = self.cluster.kill(node) {
                self.phase().killed.push(Killed { node: id, pid, primary: id == primary });
            }
        }
        let dead_since = self.now_us();
        let until = Instant::now() + DEAD_FOR;
        while Instant::now() < until {
            self.stage.tick("no node is alive".into());
            tokio::time::sleep(LOOK_EVERY).await;
        }
        // Nobody is left to be in a view.
        self.phase().view_after = None;
        let killed = self.phase().killed.len();
        self.end(format!("{killed} nodes killed"));
        Ok(dead_since)
    }

    async fn restart_all(&mut self, link: &Link, load: &Load, dead_since_us: u64) -> Outcome {
        self.begin("restart all", None);
        let until = Instant::now() + PATIENCE;
        self.cluster.start_all()?;
        self.cluster.ready(PATIENCE).await?;
        self.wait_for_more(load, until).await?;
        let outage_ms = (self.now_us() - dead_since_us) / 1000;
        self.watch(load, self.stretch, self.at_least).await?;
        self.note_view(link).await;
        let note = format!("answering {outage_ms} ms after the last one died");
        self.phase().note.clone_from(&note);
        self.end_counted(load, &note);
        Ok(())
    }

    /// The view at a phase's end. Replicas may leave one for reasons of their own, such as a machine that is too busy.
    pub async fn note_view(&mut self, link: &Link) {
        self.phase().view_after = statuses(link).await.iter().map(|status| status.view.0).max();
    }

    /// Lets the load run for `time`, and on until so many commands were acknowledged in all.
    pub async fn watch(&mut self, load: &Load, time: Duration, at_least: u64) -> Outcome {
        let began = Instant::now();
        let first = load.pulse.acknowledged();
        while began.elapsed() < time || load.pulse.acknowledged() < at_least {
            self.check(began + time + PATIENCE * 2, "the load makes no progress")?;
            let done = load.pulse.acknowledged();
            let per_s = (done - first) as f64 / began.elapsed().as_secs_f64().max(0.001);
            self.stage.tick(format!("{} acknowledged, {per_s:.0}/s", thousands(done)));
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    /// Until something that was not acknowledged yet is.
    pub async fn wait_for_more(&mut self, load: &Load, until: Instant) -> Outcome {
        let before = load.pulse.acknowledged();
        while load.pulse.acknowledged() == before {
            self.check(until, "nothing is acknowledged any more")?;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    pub fn check(&mut self, until: Instant, what: &str) -> Outcome {
        self.cluster.all_alive()?;
        if Instant::now() < until {
            return Ok(());
        }
        let logs = self.cluster.path().display();
        Err(Failure::new(
            Kind::Broken,
            format!("{what}; with --keep, look at the nodes' server.log below {logs}"),
        ))
    }

    /// A fresh client reads everything: once as the cluster agrees on it, once from each node's own state after all
    /// have come to the same place.
    async fn read_back(&mut self) -> Outcome<(Holding, Vec<NodeView>)> {
        let link = Link::connect(Link::patient(self.cluster)?)?;
        self.stage.tick("nodes level".into());
        let levelled = self.level(&link).await?;
        self.stage.tick("a fresh client reads everything".into());
        let session = link.session();
        let mut agreed = Holding::new();
        let mut page = Some(first_page());
        while let Some(command) = page {
            page = next_page(session.run(&command).await?, &mut agreed)?;
        }
        let mut nodes = Vec::new();
        for status in &levelled {
            let node = status.replica.0;
            self.stage.tick(format!("a fresh client reads node {node}"));
            let mut holding = Holding::new();
            let mut page = Some(first_page());
            while let Some(command) = page {
                page = next_page(link.query(node, &command).await?, &mut holding)?;
            }
            let digest = (status.state_digest_sequence.0, hex::encode(status.state_digest.0));
            nodes.push(NodeView { name: format!("node {node}"), on_disk: false, holding, digest });
        }
        Ok((agreed, nodes))
    }

    /// Writes until every node is at one sequence and has digested one checkpoint that covers all the load.
    async fn level(&mut self, link: &Link) -> Outcome<Vec<Status>> {
        let session = link.session();
        let until = Instant::now() + PATIENCE;
        let loaded = statuses(link).await.iter().map(|status| status.executed.0).max().unwrap_or(0);
        let all = self.cluster.nodes.len();
        loop {
            self.check(until, "the nodes do not come to the same place")?;
            let seen = statuses(link).await;
            let digested = |status: &Status| status.state_digest_sequence.0;
            let lowest = seen.iter().map(digested).min().unwrap_or(0);
            let place = |status: &Status| (digested(status), status.executed, status.position);
            let level = seen.len() == all
                && lowest >= loaded
                && seen.iter().all(|status| place(status) == place(&seen[0]));
            if level {
                return Ok(seen);
            }
            if lowest < loaded {
                for _ in 0..16 {
                    session.run(&KvCommand::put(LEVEL_KEY, "x")).await.map_err(Failure::from)?;
                }
            } else {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        }
    }

    pub fn begin(&mut self, name: &'static str, expected: Option<Duration>) {
        let now = self.now_us();
        self.stage.begin(name, expected);
        let view = self.phases.last().and_then(|phase| phase.view_after.or(phase.view_before));
        let (view_before, view_after) = (view, view);
        self.phases.push(Phase {
            name,
            began_us: now,
            ended_us: now,
            view_before,
            view_after,
            ..Phase::default()
        });
    }

    pub fn phase(&mut self) -> &mut Phase {
        self.phases.last_mut().expect("a phase has begun")
    }

    pub fn end(&mut self, message: String) {
        let now = self.now_us();
        self.phase().ended_us = now;
        self.stage.end(&message);
    }

    pub fn end_counted(&mut self, load: &Load, more: &str) {
        let counted = format!("{} acknowledged so far", thousands(load.pulse.acknowledged()));
        self.end(if more.is_empty() { counted } else { format!("{counted}; {more}") });
    }

    pub fn now_us(&self) -> u64 {
        u64::try_from(self.clock.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

/// Of those nodes that answer.
pub async fn statuses(link: &Link) -> Vec<Status> {
    link.statuses().await.into_iter().filter_map(|(_, status)| status.ok()).collect()
}

/// The view that most nodes work in, and its primary.
fn agreed_view(statuses: &[Status]) -> Outcome<(u64, u8)> {
    let count =
        |view: u64| statuses.iter().filter(|status| status.view.0 == view && status.view_active).count();
    statuses
        .iter()
        .filter(|status| status.view_active)
        .max_by_key(|status| (count(status.view.0), status.view.0))
        .map(|status| (status.view.0, status.primary.0))
        .ok_or_else(|| Failure::refused("no node is in a working view"))
}

/// The demo's keys from the first on.
pub fn first_page() -> KvCommand {
    page(PREFIX)
}

fn page(from: &str) -> KvCommand {
    let mut range = Range::prefix(PREFIX);
    range.key = from.to_string().into();
    range.limit = PAGE;
    KvCommand::Range(range)
}

/// Adds a page; the command that reads the next one, if there is one.
pub fn next_page(reply: KvReply, holding: &mut Holding) -> Outcome<Option<KvCommand>> {
    let KvBody::Range { kvs, more, .. } = reply.body else {
        return Err(Failure::refused("a range was answered with something else"));
    };
    let mut last = None;
    for kv in kvs {
        let key = String::from_utf8_lossy(&kv.key).into_owned();
        let held = Held {
            value: kv.value.to_vec(),
            version: kv.version,
            create_revision: kv.create_revision,
            mod_revision: kv.mod_revision,
        };
        last = Some(key.clone());
        holding.insert(key, held);
    }
    // The smallest key after the last one.
    Ok(last.filter(|_| more).map(|last| page(&format!("{last}\0"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_view_most_nodes_work_in_is_the_view() {
        let status = |view, view_active| {
            let blank = crate::cli::cluster::blank_status(dwcp_base::ReplicaId(0));
            Status { view: dwcp_base::View(view), view_active, primary: dwcp_base::ReplicaId(9), ..blank }
        };
        let seen = [status(3, true), status(2, true), status(3, true), status(7, false)];
        assert_eq!(agreed_view(&seen).unwrap(), (3, 9));
        assert!(agreed_view(&[status(7, false)]).is_err());
    }

    #[test]
    fn pages_follow_each_other_without_gap_or_overlap() {
        let reply = |more| KvReply {
            revision: 9,
            body: KvBody::Range {
                kvs: vec![dwcp_state::kv::KeyValue { key: "demo/a".into(), ..Default::default() }],
                more,
                count: 2,
            },
        };
        let mut holding = Holding::new();
        assert_eq!(next_page(reply(true), &mut holding).unwrap(), Some(page("demo/a\0")));
        assert_eq!(next_page(reply(false), &mut holding).unwrap(), None);
        assert_eq!(holding.len(), 1);
    }
}
