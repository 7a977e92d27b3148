//! Linearizable reads without a log entry: ReadIndex (thesis section 6.4), never a lease. A read waits until a majority has
//! confirmed, in a round of heartbeats begun after the read came, that its leader still leads. A replica that holds a
//! Marker or is sealed confirms nothing, so no read completes behind a segment's end.

use crate::message::Said;
use crate::node::ReadError;
use crate::output::Action;
use crate::state::{Raft, Role};
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use dwcp_base::{Mutant, Now, ReplicaId, Ticket};
use dwcp_log::place::Index;

/// Rounds under way at once; beyond it reads gather for the next.
const ROUNDS_MAX: usize = 32;

#[derive(Clone, Debug)]
struct Round {
    number: u64,
    /// What was committed when it began.
    index: Index,
    tokens: Vec<u64>,
}

/// A leader's reads; at most `Limits::reads_max` of them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reads {
    /// Came since the last round began.
    waiting: Vec<u64>,
    rounds: VecDeque<Round>,
    /// In `rounds`.
    asked: usize,
    last_round: u64,
}

impl Reads {
    /// The newest round begun; 0 for none.
    pub(crate) fn round(&self) -> u64 {
        self.last_round
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.rounds.is_empty()
    }
}

impl Raft {
    pub(crate) fn take_read(&mut self, token: u64) -> Result<(), ReadError> {
        if self.sealed.is_some() {
            return Err(ReadError::Sealed);
        }
        let (leader, reads_max) = (self.leader, self.limits.reads_max);
        let marker = !self.may_confirm_reads();
        let Role::Leader(lead) = &mut self.role else { return Err(ReadError::NotLeader { leader }) };
        if marker {
            return Err(ReadError::Marker);
        }
        let reads = &mut lead.reads;
        if reads.waiting.len() + reads.asked >= reads_max {
            return Err(ReadError::Busy);
        }
        reads.waiting.push(token);
        Ok(())
    }

    /// Begins a round for the reads that wait, once an entry of this term is committed: before that the leader does not
    /// know what is (thesis section 6.4, step 1).
    pub(crate) fn ask_round(&mut self) {
        let commit = self.commit;
        let knows = self.log.place(commit).is_some_and(|place| place.term == self.hard.term);
        let Role::Leader(lead) = &mut self.role else { return };
        let reads = &mut lead.reads;
        if reads.waiting.is_empty() || !knows || reads.rounds.len() >= ROUNDS_MAX {
            return;
        }
        let tokens = core::mem::take(&mut reads.waiting);
        if self.mutants.on(Mutant::RaftLeaseReads) {
            self.out.push(Action::ReadsReady { tokens, index: commit });
            return;
        }
        reads.last_round += 1;
        reads.asked += tokens.len();
        let round = reads.last_round;
        reads.rounds.push_back(Round { number: round, index: commit, tokens });
        let followers: Vec<(ReplicaId, Index)> =
            lead.followers.iter().map(|(id, one)| (*id, one.matched)).collect();
        for (follower, matched) in followers {
            self.send(follower, Said::Heartbeat { commit: commit.min(matched), round }, Ticket::ZERO);
        }
        self.count_round();
    }

    pub(crate) fn on_heartbeat_reply(&mut self, now: Now, from: ReplicaId, round: u64) {
        let begun = match &self.role {
            Role::Leader(lead) => lead.reads.round(),
            Role::Follower | Role::PreCandidate { .. } | Role::Candidate { .. } => 0,
        };
        let Some(one) = self.followed(now, from) else { return };
        if round > begun {
            self.refuse(from, "a round that was not begun");
            return;
        }
        one.round = one.round.max(round);
        self.count_round();
    }

    /// Answers the reads of every round that a majority has confirmed, this replica among it.
    fn count_round(&mut self) {
        let majority = self.majority();
        let Role::Leader(lead) = &mut self.role else { return };
        let mut confirmed = [0; 32];
        let count = lead.followers.len() + 1;
        confirmed[0] = lead.reads.last_round;
        for (slot, one) in confirmed[1..].iter_mut().zip(lead.followers.values()) {
            *slot = one.round;
        }
        confirmed[..count].sort_unstable_by(|a, b| b.cmp(a));
        let through = confirmed[majority - 1];
        while lead.reads.rounds.front().is_some_and(|round| round.number <= through) {
            let round = lead.reads.rounds.pop_front().expect("it is there");
            lead.reads.asked -= round.tokens.len();
            self.out.push(Action::ReadsReady { tokens: round.tokens, index: round.index });
        }
    }

    /// Whether this replica may help a read to complete.
    pub(crate) fn may_confirm_reads(&self) -> bool {
        self.log.marker().is_none() || self.mutants.on(Mutant::RaftMarkerHolderConfirmsReads)
    }

    /// This replica no longer leads, or the segment is ending: all reads must be asked anew elsewhere.
    pub(crate) fn fail_reads(&mut self) {
        let Role::Leader(lead) = &mut self.role else { return };
        let reads = core::mem::take(&mut lead.reads);
        // Rounds go on counting: an answer to an old one must not confirm a new one.
        lead.reads.last_round = reads.last_round;
        let mut tokens: Vec<u64> = reads.rounds.into_iter().flat_map(|round| round.tokens).collect();
        tokens.extend(reads.waiting);
        if !tokens.is_empty() {
            self.out.push(Action::ReadsFailed { tokens });
        }
    }
}
