//! How a replica sees itself and the cluster. Only reads.

use crate::io::{PeerStatus, ProtocolName, SegmentStatus, Status, SwitchStatus};
use crate::replica::Replica;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use dwcp_base::{Epoch, Micros, Now, ReplicaId, Sequence};
use dwcp_state::StateMachine;

/// Why a replica whose state is wrong answers nobody.
const DIVERGED: &str = "its state differs from what a quorum certified: it fetches the certified one";

/// What this replica saw of changes of protocol. For people; nothing is decided by it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Switches {
    last: Option<SwitchStatus>,
    last_executed: Option<Micros>,
    /// The longest interval between two executions around the last change is still growing.
    growing: bool,
}

impl Switches {
    pub(crate) fn closed(&mut self, now: Now, epoch: Epoch, sequence: Sequence, planned: bool, cause: &str) {
        self.note(now, epoch, ProtocolName::Pbft, planned, sequence, cause);
    }

    pub(crate) fn opened(&mut self, now: Now, epoch: Epoch, sequence: Sequence) {
        // A segment that follows another at once is one change, and what ended the first is its cause.
        let (planned, cause) = match &self.last {
            Some(last) if last.sequence == sequence => (last.planned, last.cause.clone()),
            _ => (true, "the mode is for a segment".to_string()),
        };
        self.note(now, epoch, ProtocolName::Raft, planned, sequence, &cause);
    }

    fn note(
        &mut self,
        now: Now,
        epoch: Epoch,
        to: ProtocolName,
        planned: bool,
        sequence: Sequence,
        cause: &str,
    ) {
        let gap_us = 0;
        let (at_unix_ms, cause) = (now.wall_ms, cause.to_string());
        self.last = Some(SwitchStatus { epoch, to, planned, sequence, gap_us, at_unix_ms, cause });
        self.growing = true;
    }

    /// Commands were executed; the first of them that came here has waited since `waited`. Time in which nobody waited
    /// is no gap, as far as this replica can tell: of what came to others it knows only when it ran.
    pub(crate) fn executed(&mut self, now: Now, waited: Option<Micros>) {
        if self.growing
            && let (Some(last), Some(before)) = (&mut self.last, self.last_executed)
        {
            let since = waited.map_or(before, |waited| waited.max(before));
            last.gap_us = last.gap_us.max(now.mono.since(since).0);
            self.growing = false;
        }
        self.last_executed = Some(now.mono);
    }
}

impl<M: StateMachine> Replica<M> {
    /// A picture of now.
    #[must_use]
    pub fn status(&self, now: Now) -> Status {
        let quorum = self.pbft.quorum();
        let (state_digest_sequence, state_digest) = self.last_digest;
        let member = self.control.configurations.latest().member(self.setup.me);
        let peers = (0..quorum.n())
            .map(ReplicaId)
            .filter(|id| *id != self.setup.me)
            .map(|id| {
                let standing = self.pbft.standing_of(id).map(|(_, standing)| standing);
                let silent = self.last_heard.get(&id).map(|heard| now.mono.since(*heard).0 / 1000);
                PeerStatus {
                    id,
                    view: standing.map(|standing| standing.view).unwrap_or_default(),
                    executed: standing.map(|standing| standing.executed).unwrap_or_default(),
                    stable: standing.map(|standing| standing.stable).unwrap_or_default(),
                    silent_ms: silent.unwrap_or(u64::MAX),
                }
            })
            .collect();
        Status {
            replica: self.setup.me,
            incarnation: self.setup.incarnation,
            n: quorum.n(),
            f: quorum.f(),
            view: self.pbft.view(),
            view_active: self.pbft.is_active(),
            primary: self.pbft.primary(),
            executed: self.control.executed,
            stable: self.pbft.stable_sequence(),
            highest_seen: self.pbft.highest_seen(),
            position: self.live.position,
            chain: self.live.chain,
            state_digest_sequence,
            state_digest,
            pending_frames: u32::try_from(self.pool.len()).unwrap_or(u32::MAX),
            pending_bytes: self.pool.bytes() as u64,
            executed_commands: self.state.commands_executed(),
            log_time_ms: self.state.log_time().0,
            voter: self.pbft.is_voter(),
            transferring: self.transfer.is_some(),
            not_ready: self.not_ready(now),
            counters: self.counters.iter().map(|(name, count)| ((*name).to_string(), *count)).collect(),
            peers,
            vote_key: member.map(|member| member.vote_key).unwrap_or_default(),
            mode: self.control.steering.mode,
            trust: self.control.steering.policy.trust,
            raft: self.control.steering.policy.raft,
            default_ack: self.control.steering.policy.default_ack,
            next_order: self.control.steering.last_order.saturating_add(1),
            epoch: self.control.fold.epoch(),
            protocol: if self.segment.is_some() { ProtocolName::Raft } else { ProtocolName::Pbft },
            orderer: self.orderer(),
            segment: self.segment_status(),
            failovers: self.control.steering.failovers,
            last_switch: self.switches.last.clone(),
            no_segment: self.why_no_segment(now),
            sync: self.sync.as_ref().map(|room| room.status(now)),
        }
    }

    fn segment_status(&self) -> Option<SegmentStatus> {
        let known = self.control.fold.segment()?;
        let open = self.segment.as_ref()?;
        let raft = open.raft.as_ref();
        Some(SegmentStatus {
            term: raft.map(|raft| raft.term()).unwrap_or_default(),
            leader: open.leader(),
            last: raft.map(|raft| raft.last().index).unwrap_or_default(),
            committed: open.committed,
            applied: open.applied.index,
            anchored: known.anchor.index,
            anchored_position: known.position(known.anchor.index).unwrap_or_default(),
            sealed: raft.is_some_and(|raft| raft.sealed().is_some()),
            suspecting: open.failover.is_suspecting(),
        })
    }

    /// Whether as many replicas were heard lately as a quorum needs.
    pub(crate) fn hears_quorum(&self, now: Now) -> bool {
        let patience = self.setup.settings.timing.standing_interval.times(4);
        let heard = self.last_heard.values().filter(|heard| now.mono.since(**heard) <= patience).count();
        heard + 1 >= self.pbft.quorum().q()
    }

    /// Why this replica should not be sent work.
    fn not_ready(&self, now: Now) -> Vec<String> {
        let mut reasons = Vec::new();
        let quorum = self.pbft.quorum();
        let patience = self.setup.settings.timing.standing_interval.times(4);
        let heard = self.last_heard.values().filter(|heard| now.mono.since(**heard) <= patience).count();
        // A segment with a leader serves commands though the root may have no quorum.
        let served = self.segment.as_ref().is_some_and(crate::segment::SegmentNode::is_caught_up);
        if heard + 1 < quorum.q() && !served {
            reasons.push(alloc::format!("hears {} of the {} replicas a quorum needs", heard + 1, quorum.q()));
        }
        if !self.pbft.is_active() && !served {
            reasons.push(alloc::format!("waits for view {} to begin", self.pbft.view()));
        }
        if self.diverged {
            reasons.push(DIVERGED.to_string());
        }
        if self.transfer.is_some() {
            reasons.push("fetches a snapshot".to_string());
        }
        if !self.blocked.is_empty() {
            reasons.push("fetches the end of a segment".to_string());
        }
        if let Some(segment) = &self.segment {
            if segment.raft.is_none() && self.setup.raft.is_none() {
                reasons.push("Raft node not initialized".to_string());
            }
            if segment.failover.log_full || self.log_is_full(now) {
                reasons.push("the segment's log is full: it waits for a quorum to anchor it".to_string());
            }
        }
        if !self.pbft.is_voter() {
            reasons.push("is a learner until a checkpoint past its replacement is stable".to_string());
        }
        reasons
    }
}
