//! How a replica sees itself and the cluster. Only reads.

use crate::io::{PeerStatus, Status};
use crate::replica::Replica;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use dwcp_base::{Now, ReplicaId};
use dwcp_state::StateMachine;

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
            position: self.control.log.position,
            chain: self.control.log.chain,
            state_digest_sequence,
            state_digest,
            pending_frames: u32::try_from(self.pool.len()).unwrap_or(u32::MAX),
            pending_bytes: self.pool.bytes() as u64,
            executed_commands: self.control.commands_executed,
            log_time_ms: self.state.log_time().0,
            voter: self.pbft.is_voter(),
            transferring: self.transfer.is_some(),
            not_ready: self.not_ready(now),
            counters: self.counters.iter().map(|(name, count)| ((*name).to_string(), *count)).collect(),
            peers,
            vote_key: member.map(|member| member.vote_key).unwrap_or_default(),
        }
    }

    /// Why this replica should not be sent work.
    fn not_ready(&self, now: Now) -> Vec<String> {
        let mut reasons = Vec::new();
        let quorum = self.pbft.quorum();
        let patience = self.setup.settings.timing.standing_interval.times(4);
        let heard = self.last_heard.values().filter(|heard| now.mono.since(**heard) <= patience).count();
        if heard + 1 < quorum.q() {
            reasons.push(alloc::format!("hears {} of the {} replicas a quorum needs", heard + 1, quorum.q()));
        }
        if !self.pbft.is_active() {
            reasons.push(alloc::format!("waits for view {} to begin", self.pbft.view()));
        }
        if self.transfer.is_some() {
            reasons.push("fetches a snapshot".to_string());
        }
        if !self.pbft.is_voter() {
            reasons.push("is a learner until a checkpoint past its replacement is stable".to_string());
        }
        reasons
    }
}
