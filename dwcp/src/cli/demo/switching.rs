//! The demo's story where Raft segments are: in hybrid mode planned switches between Raft and PBFT under load, then the
//! Raft leader dies and the cluster falls back by itself and returns; in datacenter mode an election takes its place. It
//! notes when each switch began and was over; `report.rs` measures the gaps.

use std::time::{Duration, Instant};

use dwcp::operator::Operator;
use dwcp_base::{NetworkMode, ReplicaId};
use dwcp_client::{ClientConfig, Status};
use dwcp_replica::ProtocolName;

use super::load::Load;
use super::report::{Killed, Switch};
use super::story::{LOOK_EVERY, PATIENCE, Story, statuses};
use crate::cli::cluster::Link;
use crate::cli::output::{Failure, Outcome};

/// How long hybrid mode stays in PBFT after its segment has failed: short, because people are watching.
pub const CALM_MS: u64 = 2_000;

/// Planned switches each way, under load.
const PLANNED: usize = 2;

impl Story<'_> {
    /// From the start to a segment that has been opened again after its leader died. Returns the dead node.
    pub async fn tell_switches(&mut self, link: &Link, load: &Load) -> Outcome<usize> {
        let operator = self.operator()?;
        self.begin("raft", Some(self.stretch));
        self.all_under(link, ProtocolName::Raft).await?;
        self.watch(load, self.stretch, 1).await?;
        self.note_view(link).await;
        self.end_counted(load, "ordered by Raft");
        for _ in 0..PLANNED {
            self.order("to pbft", NetworkMode::Internet, &operator, link, load).await?;
            self.order("to raft", NetworkMode::Hybrid, &operator, link, load).await?;
        }
        let dead = self.kill_leader(link, load).await?;
        self.return_to_raft(link, load).await?;
        Ok(dead)
    }

    /// Datacenter mode: the leader dies, and the segment elects another. Returns the dead node.
    pub async fn tell_election(&mut self, link: &Link, load: &Load) -> Outcome<usize> {
        self.all_under(link, ProtocolName::Raft).await?;
        self.watch_load(link, load).await?;
        let dead = self.kill_leader(link, load).await?;
        self.watch_recovery(link, load).await?;
        Ok(dead)
    }

    /// Hybrid mode, under load: the end is in the root log, where all nodes are compared at one sequence.
    pub async fn end_in_root(&mut self, link: &Link, load: &Load) -> Outcome {
        let operator = self.operator()?;
        self.order("to pbft", NetworkMode::Internet, &operator, link, load).await
    }

    /// Datacenter mode, when the clients are done: what was acknowledged comes to stand behind a Close, so that every disk
    /// has it whole. What a follower of an open segment holds may be more than it knows to be committed.
    pub async fn hand_over(&mut self, link: &Link) -> Outcome {
        self.stage.tick("the segment hands over".into());
        let operator = self.operator()?;
        self.follow(NetworkMode::Datacenter, &operator, link).await
    }

    fn operator(&self) -> Outcome<Operator> {
        Ok(Operator::start(ClientConfig::read(&self.cluster.trial.client_file, Some("admin"))?)?)
    }

    /// The operator orders a mode under load; over when every node has followed and something new was acknowledged.
    async fn order(
        &mut self,
        name: &'static str,
        mode: NetworkMode,
        operator: &Operator,
        link: &Link,
        load: &Load,
    ) -> Outcome {
        self.begin(name, Some(self.stretch));
        let to = ordered_by(mode);
        let from = protocol_of(&statuses(link).await);
        let began_us = self.now_us();
        self.stage.tick(format!("the operator orders {mode}"));
        self.follow(mode, operator, link).await?;
        self.wait_for_more(load, Instant::now() + PATIENCE).await?;
        if let Some(from) = from.filter(|from| *from != to) {
            self.note_switch(from.word(), to.word(), true, "ordered", began_us);
        }
        self.watch(load, self.stretch, 1).await?;
        self.note_view(link).await;
        self.end_counted(load, &format!("ordered: {mode}"));
        Ok(())
    }

    /// Orders a mode; over when every node has followed. Where a segment is wanted that is a fresh one: an order hands over
    /// even if the mode stays.
    async fn follow(&mut self, mode: NetworkMode, operator: &Operator, link: &Link) -> Outcome {
        let until = Instant::now() + PATIENCE;
        let to = ordered_by(mode);
        let epoch = statuses(link).await.iter().map(|status| status.epoch.0).max().unwrap_or(0);
        let ordered = operator.order_mode(mode, None).await.map_err(Failure::refused)?;
        loop {
            let seen = statuses(link).await;
            let follows = |status: &Status| {
                let is_fresh = to == ProtocolName::Pbft || status.epoch.0 > epoch;
                status.next_order > ordered.number && status.protocol == to && is_fresh
            };
            if seen.len() == self.cluster.nodes.len() && seen.iter().all(follows) {
                return Ok(());
            }
            self.check(until, &format!("the nodes do not follow the order of {mode} mode"))?;
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// SIGKILL the leader of the segment while commands are under way. Over when the others acknowledge again: in hybrid
    /// mode under PBFT, having closed the segment without being told to; in datacenter mode under another leader.
    async fn kill_leader(&mut self, link: &Link, load: &Load) -> Outcome<usize> {
        let before = statuses(link).await;
        let failovers = before.iter().map(|status| status.failovers).max().unwrap_or(0);
        let leader =
            leader_of(&before).ok_or_else(|| Failure::refused("no node knows who leads the segment"))?;
        let node = self.cluster.nodes.iter().position(|node| node.id == leader.0);
        let node =
            node.ok_or_else(|| Failure::refused(format!("the leader {leader} is none of the demo's nodes")))?;
        let is_primary = before.iter().any(|status| status.view_active && status.primary == leader);
        self.begin("kill leader", None);
        self.stage.tick(format!("SIGKILL to node {leader}"));
        let began_us = self.now_us();
        let pid = self.cluster.kill(node).ok_or_else(|| Failure::refused("the leader was not running"))?;
        self.phase().killed.push(Killed { node: leader.0, pid, primary: is_primary });
        let is_hybrid = self.cluster.mode == NetworkMode::Hybrid;
        let until = Instant::now() + PATIENCE;
        loop {
            self.check(until, "nobody takes the place of the dead leader")?;
            let alive = statuses(link).await;
            self.stage.tick(format!("the leader, node {leader} (pid {pid}), is dead"));
            let is_over = |status: &Status| {
                let led = status.segment.as_ref().and_then(|segment| segment.leader);
                status.failovers > failovers || (!is_hybrid && led.is_some_and(|id| id != leader))
            };
            if !alive.is_empty() && alive.iter().all(is_over) {
                break;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        self.wait_for_more(load, until).await?;
        let how = if is_hybrid {
            self.note_switch("raft", "pbft", false, "leader killed", began_us);
            "the others went on under PBFT by themselves"
        } else {
            "another leads"
        };
        self.note_view(link).await;
        self.end(format!("node {leader} (pid {pid}) killed; {how}"));
        Ok(node)
    }

    /// Nobody orders anything: the calm is over, and a segment opens.
    async fn return_to_raft(&mut self, link: &Link, load: &Load) -> Outcome {
        self.begin("calm", Some(Duration::from_millis(CALM_MS) + self.stretch));
        let until = Instant::now() + PATIENCE;
        let mut last_without_us = self.now_us();
        loop {
            let seen = statuses(link).await;
            let under_raft = seen.iter().filter(|status| status.protocol == ProtocolName::Raft).count();
            if under_raft == 0 {
                last_without_us = self.now_us();
            }
            if under_raft > 0 && under_raft == seen.len() {
                break;
            }
            self.check(until, "no segment opens after the calm")?;
            self.stage.tick(format!("under PBFT; {} acknowledged", load.pulse.acknowledged()));
            tokio::time::sleep(LOOK_EVERY / 5).await;
        }
        self.wait_for_more(load, until).await?;
        self.note_switch("pbft", "raft", false, "calm over", last_without_us);
        self.watch(load, self.stretch, 1).await?;
        self.note_view(link).await;
        self.end_counted(load, "one node less, ordered by Raft again");
        Ok(())
    }

    async fn all_under(&mut self, link: &Link, protocol: ProtocolName) -> Outcome {
        let until = Instant::now() + PATIENCE;
        loop {
            let seen = statuses(link).await;
            if seen.len() == self.cluster.nodes.len() && seen.iter().all(|status| status.protocol == protocol)
            {
                return Ok(());
            }
            self.check(until, &format!("not all nodes come under {}", protocol.word()))?;
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    fn note_switch(
        &mut self,
        from: &'static str,
        to: &'static str,
        planned: bool,
        cause: &'static str,
        began_us: u64,
    ) {
        let ended_us = self.now_us();
        self.switches.push(Switch { from, to, planned, cause, began_us, ended_us });
    }
}

/// What extends the log in this mode, while nothing fails.
fn ordered_by(mode: NetworkMode) -> ProtocolName {
    if mode == NetworkMode::Internet { ProtocolName::Pbft } else { ProtocolName::Raft }
}

/// What most nodes say extends the log.
fn protocol_of(statuses: &[Status]) -> Option<ProtocolName> {
    let raft = statuses.iter().filter(|status| status.protocol == ProtocolName::Raft).count();
    let most = if 2 * raft > statuses.len() { ProtocolName::Raft } else { ProtocolName::Pbft };
    (!statuses.is_empty()).then_some(most)
}

/// Whom most nodes take for the segment's leader.
fn leader_of(statuses: &[Status]) -> Option<ReplicaId> {
    let leader = |status: &Status| status.segment.as_ref()?.leader;
    let votes = |id: ReplicaId| statuses.iter().filter(|status| leader(status) == Some(id)).count();
    statuses.iter().filter_map(leader).max_by_key(|id| (votes(*id), id.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::cluster::blank_status;
    use dwcp_replica::SegmentStatus;

    fn status(protocol: ProtocolName, leader: Option<u8>) -> Status {
        let segment = SegmentStatus {
            term: dwcp_base::Term(1),
            leader: leader.map(ReplicaId),
            last: dwcp_base::Index(0),
            committed: dwcp_base::Index(0),
            applied: dwcp_base::Index(0),
            anchored: dwcp_base::Index(0),
            anchored_position: dwcp_base::Position(0),
            sealed: false,
            suspecting: false,
        };
        Status { protocol, segment: Some(segment), ..blank_status(ReplicaId(0)) }
    }

    #[test]
    fn what_most_nodes_say_is_the_protocol_and_the_leader() {
        let (raft, pbft) = (ProtocolName::Raft, ProtocolName::Pbft);
        let seen = [status(raft, Some(2)), status(raft, Some(2)), status(pbft, None), status(raft, Some(3))];
        assert_eq!((protocol_of(&seen), leader_of(&seen)), (Some(raft), Some(ReplicaId(2))));
        assert_eq!((protocol_of(&seen[1..3]), leader_of(&seen[2..3])), (Some(pbft), None));
        assert_eq!((protocol_of(&[]), leader_of(&[])), (None, None));
    }
}
