//! Who acts when nothing is heard: a follower asks to be elected, a leader makes itself heard and steps down when nobody
//! answers. All moments are the monotonic clock's, all chance is the seed's.

use crate::state::{Raft, Role};
use dwcp_base::{Micros, Now, ReplicaId};
use dwcp_log::place::Term;

/// What is waited for. Nothing here survives a crash.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Timers {
    /// When whoever is not the leader asks to be elected.
    pub(crate) election_at: Micros,
    /// When a candidate asks again those who have not answered.
    pub(crate) ask_again_at: Micros,
    /// How long it waits for that: short at first, for a member may be about to open the segment, then longer.
    pub(crate) ask_again_after: Micros,
    /// When the current leader was last heard; `None` when none was.
    pub(crate) heard: Option<Micros>,
    /// This time's patience: between one and two election timeouts (Raft section 5.2), drawn with each new role.
    pub(crate) patience: Micros,
}

impl Raft {
    /// Recovery is over: nothing has been waited for yet.
    pub(crate) fn begin(&mut self, now: Now, first_leader: Option<ReplicaId>, new: bool) {
        self.draw_patience();
        self.timers.election_at = now.mono.plus(self.timers.patience);
        if self.sealed.is_some() {
            return;
        }
        let named = new && self.hard.term == Term::ZERO && first_leader == Some(self.me);
        if named || self.peers.is_empty() {
            // Nobody else leads or asks to: the others wait, or are none.
            self.campaign(now, false);
        }
    }

    /// Thesis section 9.3: spread over one to two timeouts, ties are rare.
    pub(crate) fn draw_patience(&mut self) {
        let base = self.timing.election_timeout.0;
        self.timers.patience = Micros(self.chance.between(base, base.saturating_mul(2)));
    }

    pub(crate) fn wait_for_leader(&mut self, now: Now) {
        self.timers.election_at = now.mono.plus(self.timers.patience);
    }

    /// A leader was heard within the shortest time after which anybody may miss it (thesis section 4.2.3).
    pub(crate) fn leader_is_alive(&self, now: Now) -> bool {
        match self.role {
            Role::Leader(_) => true,
            _ => {
                self.leader.is_some()
                    && self
                        .timers
                        .heard
                        .is_some_and(|heard| now.mono.since(heard) < self.timing.election_timeout)
            }
        }
    }

    /// The leader's process is probably gone. Others who think so too are helped to another at once; those who still hear it
    /// protect it, and its next word ends the matter. A little chance keeps two from asking at the same time.
    pub(crate) fn miss_leader(&mut self, now: Now, peer: ReplicaId) {
        if self.is_silent() || self.leader != Some(peer) {
            return;
        }
        self.timers.heard = None;
        let soon = now.mono.plus(Micros(self.chance.below(self.timing.election_timeout.0 / 4)));
        self.timers.election_at = self.timers.election_at.min(soon);
    }

    pub(crate) fn due(&self) -> Micros {
        if self.is_silent() {
            return Micros::NEVER;
        }
        match &self.role {
            Role::Leader(lead) if self.peers.is_empty() => lead.transfer_until(),
            Role::Leader(lead) => lead.beat_at.min(lead.transfer_until()),
            Role::Follower => self.timers.election_at,
            Role::PreCandidate { .. } | Role::Candidate { .. } => {
                self.timers.election_at.min(self.timers.ask_again_at)
            }
        }
    }

    pub(crate) fn on_time(&mut self, now: Now) {
        if self.is_silent() {
            return;
        }
        match &self.role {
            Role::Leader(_) => self.lead_on(now),
            Role::Follower => {
                if now.mono >= self.timers.election_at {
                    self.ask_before_election(now);
                }
            }
            Role::PreCandidate { .. } | Role::Candidate { .. } => {
                if now.mono >= self.timers.election_at {
                    self.ask_before_election(now);
                } else if now.mono >= self.timers.ask_again_at {
                    self.ask_for_votes(now);
                }
            }
        }
    }

    /// A leader's regular duties: give up a transfer that takes too long, step down without a majority, be heard.
    fn lead_on(&mut self, now: Now) {
        let Role::Leader(lead) = &mut self.role else { return };
        lead.give_up_transfer(now);
        if now.mono < lead.beat_at || self.peers.is_empty() {
            return;
        }
        // Check-quorum, thesis section 6.2: a leader whom no majority can hear only keeps others from a better one.
        let timeout = self.timing.election_timeout;
        let heard = lead.followers.values().filter(|one| now.mono.since(one.heard) < timeout).count();
        if heard + 1 < self.majority() {
            self.step_down(now, self.hard.term, None);
            return;
        }
        self.beat(now);
    }
}
