//! What must always hold, checked by whoever drives a segment in a test after every step.

use crate::state::{Raft, Role};
use dwcp_base::Ticket;
use dwcp_log::place::Index;

impl Raft {
    /// Checks the invariants of the segment's state.
    ///
    /// # Panics
    /// When one does not hold, saying which.
    pub(crate) fn check_all(&self) {
        if self.mutants.any() {
            return; // The judges must notice by themselves.
        }
        self.log.check();
        let (border, last) = (self.log.border(), self.log.last());
        assert!(border.index <= self.commit && self.commit <= last.index, "commits lie in the log");
        assert!(self.pinned <= self.commit, "only what is committed was vouched for");
        assert!(last.term <= self.hard.term, "no entry is from a term to come");
        assert!(self.durable <= last.index, "only what is held is durable");
        assert!(self.verified <= last.index, "only what is held was compared");
        assert!(self.told_commit <= self.commit, "nothing is told that is not known");
        assert!(
            self.unwritten.is_none_or(|first| first <= last.index.next() && first > Index::ZERO),
            "what is unwritten is held"
        );
        assert!(self.syncing.iter().all(|(_, index)| *index <= last.index), "what is syncing is held");
        let tickets = [self.hard_ticket, self.sealed_ticket, self.border_ticket, self.durable_ticket];
        assert!(tickets.iter().all(|ticket| *ticket <= self.out.last_ticket()), "tickets were given");
        assert!(
            self.pinned <= border.index
                || self.written.front().is_some_and(|written| written.ticket < self.pin_ticket),
            "what a pin names was written before it"
        );
        let mut ticket = Ticket::ZERO;
        for written in &self.written {
            assert!(
                written.first <= written.last && written.ticket > ticket,
                "records hold entries, in order"
            );
            ticket = written.ticket;
        }
        if let Some(sealed) = self.sealed {
            assert!(matches!(self.role, Role::Follower) && self.leader.is_none(), "the sealed take no part");
            assert!(sealed == last, "a sealed log does not move");
        }
        match &self.role {
            Role::Follower => assert!(self.leader != Some(self.me), "only leaders lead"),
            Role::PreCandidate { granted } => {
                assert!(self.leader.is_none(), "nobody leads a candidate");
                assert!(granted.len() < self.majority() - 1, "enough votes begin an election");
            }
            Role::Candidate { granted, .. } => {
                assert!(self.leader.is_none(), "nobody leads a candidate");
                assert!(self.hard.vote == Some(self.me), "candidates vote for themselves");
                assert!(granted.len() < self.majority(), "enough votes make a leader");
            }
            Role::Leader(lead) => {
                assert!(
                    self.leader == Some(self.me) && self.hard.vote == Some(self.me),
                    "leaders were elected"
                );
                for one in lead.followers.values() {
                    assert!(
                        one.matched <= last.index && one.sent <= last.index,
                        "followers hold what was sent"
                    );
                    assert!(
                        one.matched < one.next && one.next <= last.index.next(),
                        "what comes next follows"
                    );
                }
                assert!(
                    self.log.marker().is_none() || lead.reads.is_empty(),
                    "no read waits at a leader that holds a Marker"
                );
            }
        }
    }
}
