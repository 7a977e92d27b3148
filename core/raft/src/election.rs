//! How a leader is found: pre-vote (thesis section 9.6), votes (Raft section 5.2 and 5.4.1), what becomes of whoever wins,
//! loses or hears of a later term, and the hand-over of leadership (thesis section 3.10).

use crate::message::{Body, Entry, Payload, Said};
use crate::node::TransferError;
use crate::record::HardState;
use crate::replicate::{Leadership, Transfer};
use crate::state::{Owed, Raft, Role};
use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use dwcp_base::{Micros, Mutant, Now, ReplicaId, Ticket};
use dwcp_log::place::{Index, Place, Term};

/// No term reaches this; a forged one beyond it is refused, so numbers do not run out.
pub(crate) const TERM_MAX: Term = Term(1 << 62);
/// How far a message's term may be ahead. A member that slept meets terms made by elections, each of which takes
/// milliseconds at least: this many take months.
pub(crate) const TERM_JUMP_MAX: u64 = 1 << 32;

impl Raft {
    /// Nobody leads, as far as this replica can tell. It first asks whether it could win, so that one who cannot, or is
    /// cut off, raises no term and disturbs nobody.
    pub(crate) fn ask_before_election(&mut self, now: Now) {
        self.leader = None;
        self.timers.heard = None;
        self.owed = Owed::default();
        self.draw_patience();
        self.wait_for_leader(now);
        self.role = Role::PreCandidate { granted: BTreeSet::new() };
        self.timers.ask_again_after = self.first_patience();
        if self.peers.is_empty() {
            self.campaign(now, false);
        } else {
            self.ask_for_votes(now);
        }
    }

    /// Raft section 5.2. The own vote is written before anybody is asked, and counts once it is durable.
    pub(crate) fn campaign(&mut self, now: Now, transfer: bool) {
        if self.hard.term >= TERM_MAX {
            return;
        }
        self.leader = None;
        self.timers.heard = None;
        self.verified = Index::ZERO;
        self.owed = Owed::default();
        self.draw_patience();
        self.wait_for_leader(now);
        self.set_hard(HardState { term: self.hard.term.next(), vote: Some(self.me) }, true);
        self.role = Role::Candidate { granted: BTreeSet::new(), transfer };
        self.timers.ask_again_after = self.first_patience();
        self.ask_for_votes(now);
    }

    fn first_patience(&self) -> Micros {
        Micros(self.timing.heartbeat_interval.0 / 16).max(Micros::from_millis(1))
    }

    /// Asks those who have not said yes yet. Said again while it lasts, for messages get lost.
    pub(crate) fn ask_for_votes(&mut self, now: Now) {
        let last = self.log.last();
        let (granted, said, after) = match &self.role {
            Role::PreCandidate { granted } => (granted.clone(), Said::PreVote { last }, Ticket::ZERO),
            Role::Candidate { granted, transfer } => {
                (granted.clone(), Said::Vote { last, transfer: *transfer }, self.hard_ticket)
            }
            Role::Follower | Role::Leader(_) => return,
        };
        let after_this = self.timers.ask_again_after;
        self.timers.ask_again_at = now.mono.plus(after_this);
        self.timers.ask_again_after = after_this.times(2).min(self.timing.heartbeat_interval);
        for peer in self.peers.clone() {
            if !granted.contains(&peer) {
                self.send(peer, said.clone(), after);
            }
        }
    }

    /// Raft section 5.4.1: only a log that holds all that may be committed may lead.
    fn would_follow(&self, last: &Place) -> bool {
        if self.mutants.on(Mutant::RaftLongestIndexVote) {
            return last.index >= self.log.last_index();
        }
        last.is_as_good_as(&self.log.last())
    }

    pub(crate) fn on_pre_vote(&mut self, from: ReplicaId, last: &Place) {
        let granted = !matches!(self.role, Role::Leader(_)) && self.would_follow(last);
        self.send(from, Said::PreVoteReply { granted }, self.hard_ticket);
    }

    pub(crate) fn on_vote(&mut self, now: Now, from: ReplicaId, last: &Place) {
        let free = match self.hard.vote {
            Some(vote) => vote == from,
            None => self.leader.is_none(),
        };
        let granted = free && self.would_follow(last);
        if granted {
            self.set_hard(HardState { vote: Some(from), ..self.hard }, false);
            self.role = Role::Follower;
            self.wait_for_leader(now);
        }
        let after = if self.mutants.on(Mutant::RaftVoteBeforeSync) { Ticket::ZERO } else { self.hard_ticket };
        self.send(from, Said::VoteReply { granted }, after);
    }

    pub(crate) fn on_pre_vote_reply(&mut self, now: Now, from: ReplicaId, yes: bool) {
        let others = self.majority() - 1;
        let Role::PreCandidate { granted } = &mut self.role else { return };
        if yes {
            granted.insert(from);
        }
        if granted.len() >= others {
            self.campaign(now, false);
        }
    }

    pub(crate) fn on_vote_reply(&mut self, now: Now, from: ReplicaId, yes: bool) {
        let majority = self.majority();
        let Role::Candidate { granted, .. } = &mut self.role else { return };
        if yes {
            granted.insert(from);
        }
        if granted.len() >= majority {
            self.lead(now);
        }
    }

    /// The own vote may have become durable.
    pub(crate) fn count_own_vote(&mut self, now: Now) {
        if self.durable_ticket >= self.hard_ticket {
            self.on_vote_reply(now, self.me, true);
        }
    }

    fn lead(&mut self, now: Now) {
        let last = self.log.last_index();
        self.leader = Some(self.me);
        self.verified = last;
        self.role = Role::Leader(Box::new(Leadership::new(now, &self.peers, last)));
        // A new leader's own entry commits all before it (Raft section 5.4.2). A Marker ends the log whoever leads:
        // then nothing commits any more, and the epoch is closed by what its members hold.
        if self.log.marker().is_none() {
            let body = Body::new(&Payload::Empty).expect("an empty payload is valid");
            self.append(Entry { term: self.hard.term, body });
        }
    }

    /// A later term, or this one without leading it. The term's leader if the message came from it.
    pub(crate) fn step_down(&mut self, now: Now, term: Term, leader: Option<ReplicaId>) {
        self.fail_reads();
        let led = matches!(self.role, Role::Leader(_));
        self.role = Role::Follower;
        if term > self.hard.term {
            self.set_hard(HardState { term, vote: None }, false);
            self.verified = Index::ZERO;
        }
        self.owed = Owed::default();
        self.leader = leader;
        self.timers.heard = leader.map(|_| now.mono);
        if led || leader.is_some() {
            self.draw_patience();
            self.wait_for_leader(now);
        }
    }

    /// A sign of life from the leader of this term. False when there is another already: then somebody lies.
    pub(crate) fn follow(&mut self, now: Now, from: ReplicaId) -> bool {
        match &self.role {
            Role::Leader(_) => return false,
            Role::Follower if self.leader == Some(from) => {}
            Role::Follower if self.leader.is_some() => return false,
            Role::Follower | Role::PreCandidate { .. } | Role::Candidate { .. } => {
                self.role = Role::Follower;
                self.leader = Some(from);
                self.owed = Owed::default();
                self.draw_patience();
            }
        }
        self.timers.heard = Some(now.mono);
        self.wait_for_leader(now);
        true
    }

    pub(crate) fn on_timeout_now(&mut self, now: Now, from: ReplicaId) {
        match self.leader {
            Some(leader) if leader == from => self.campaign(now, true),
            Some(_) => self.refuse(from, "a hand-over by one who does not lead"),
            // It came late: this replica has given its leader up.
            None => {}
        }
    }

    pub(crate) fn begin_transfer(&mut self, now: Now, to: ReplicaId) -> Result<(), TransferError> {
        let deadline = now.mono.plus(self.timing.election_timeout);
        if self.sealed.is_some() || self.log.marker().is_some() {
            return Err(TransferError::Ending);
        }
        let leader = self.leader;
        let Role::Leader(lead) = &mut self.role else {
            return Err(TransferError::NotLeader { leader });
        };
        if !self.peers.contains(&to) {
            return Err(TransferError::NotAMember);
        }
        lead.transfer = Some(Transfer { to, until: deadline, told: false });
        Ok(())
    }
}
