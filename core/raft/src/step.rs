//! The face: every call of [`RaftNode`] and where it leads. A message is looked at in three steps, each of which may refuse
//! it: whose is it, is it well formed in itself, and what does its term say. Only then do the phases see it.

use crate::config::SegmentSetup;
use crate::election::{TERM_JUMP_MAX, TERM_MAX};
use crate::message::{Entry, Kind, Message, Payload, Said};
use crate::node::{
    InstallError, OpenError, ProposeError, RaftMaker, RaftNode, ReadError, SealPoint, Sealed, TransferError,
    body_of,
};
use crate::output::Action;
use crate::state::{Raft, Role};
use alloc::boxed::Box;
use alloc::vec::Vec;
use bytes::Bytes;
use dwcp_base::{Micros, Mutant, Now, ReplicaId, Ticket};
use dwcp_log::place::{Index, Place, Term};

/// No index reaches this.
pub const INDEX_MAX: u64 = 1 << 62;
/// Entries of one Append, whatever a leader's settings are.
const APPEND_ENTRIES_MAX: usize = 65_536;

impl Message {
    /// Whether it could have been said by anybody, whatever the receiver knows.
    fn shape(&self) -> Result<(), &'static str> {
        if self.term > TERM_MAX {
            return Err("a term beyond all terms");
        }
        let sound = |place: &Place| {
            place.index.0 <= INDEX_MAX
                && place.term <= self.term
                && (place.index == Index::ZERO) == (place.term == Term::ZERO)
        };
        match &self.said {
            Said::PreVote { last } if !sound(last) => Err("a place beyond all places"),
            Said::Vote { last, .. } if !sound(last) || last.term >= self.term => {
                Err("a place beyond all places")
            }
            Said::Append { prev, entries, commit } => {
                if !sound(prev) || commit.0 > INDEX_MAX || entries.len() > APPEND_ENTRIES_MAX {
                    return Err("a place beyond all places");
                }
                let mut before = prev.term.max(Term(1));
                for Entry { term, .. } in entries {
                    if *term < before || *term > self.term {
                        return Err("entries whose terms fall or exceed the leader's");
                    }
                    before = *term;
                }
                Ok(())
            }
            Said::Refused(conflict)
                if conflict.refused.0 > INDEX_MAX
                    || conflict.refused == Index::ZERO
                    || conflict.index > conflict.refused
                    || conflict.term > self.term =>
            {
                Err("a conflict that cannot be")
            }
            Said::Accepted { matched: index }
            | Said::Heartbeat { commit: index, .. }
            | Said::Committed { through: index }
                if index.0 > INDEX_MAX =>
            {
                Err("a place beyond all places")
            }
            Said::PreVote { .. }
            | Said::PreVoteReply { .. }
            | Said::Vote { .. }
            | Said::VoteReply { .. }
            | Said::Accepted { .. }
            | Said::Refused(_)
            | Said::Heartbeat { .. }
            | Said::HeartbeatReply { .. }
            | Said::TimeoutNow
            | Said::Stale
            | Said::Committed { .. } => Ok(()),
        }
    }

    /// Only the leader of its term says this.
    fn is_a_leaders(&self) -> bool {
        matches!(
            self.said,
            Said::Append { .. } | Said::Heartbeat { .. } | Said::Committed { .. } | Said::TimeoutNow
        )
    }
}

impl Raft {
    /// Takes a message from a member, as [`RaftNode::step`] does with its bytes.
    pub fn on_message(&mut self, now: Now, from: ReplicaId, message: Message) {
        if self.is_silent() {
            self.refuse(from, "sealed");
            return;
        }
        if !self.peers.contains(&from) {
            self.refuse(from, "not a member of this segment");
            return;
        }
        if message.epoch != self.epoch && !self.mutants.on(Mutant::EpochUnchecked) {
            self.refuse(from, "another epoch");
            return;
        }
        if let Err(reason) = message.shape() {
            self.refuse(from, reason);
            return;
        }
        if message.term.0 > self.hard.term.0.saturating_add(TERM_JUMP_MAX) {
            self.refuse(from, "a term from nowhere");
            return;
        }
        // Thesis section 4.2.3: whoever hears a leader helps nobody to depose it, unless it asked for that itself.
        let asks = matches!(message.said, Said::PreVote { .. } | Said::Vote { transfer: false, .. });
        if asks && self.leader_is_alive(now) {
            return;
        }
        if message.term > self.hard.term {
            let says_who_leads = message.is_a_leaders() && !matches!(message.said, Said::TimeoutNow);
            self.step_down(now, message.term, says_who_leads.then_some(from));
        }
        if message.term < self.hard.term {
            self.answer_the_past(from, &message);
        } else {
            self.dispatch(now, from, message.said);
        }
    }

    /// A sender in an earlier term is told that there is a later one, if it waits for an answer.
    fn answer_the_past(&mut self, from: ReplicaId, message: &Message) {
        let said = match &message.said {
            Said::PreVote { .. } => Said::PreVoteReply { granted: false },
            Said::Vote { .. } => Said::VoteReply { granted: false },
            Said::Append { .. } | Said::Heartbeat { .. } => Said::Stale,
            Said::PreVoteReply { .. }
            | Said::VoteReply { .. }
            | Said::Accepted { .. }
            | Said::Refused(_)
            | Said::HeartbeatReply { .. }
            | Said::TimeoutNow
            | Said::Stale
            | Said::Committed { .. } => return,
        };
        self.send(from, said, self.hard_ticket);
    }

    fn dispatch(&mut self, now: Now, from: ReplicaId, said: Said) {
        match said {
            Said::PreVote { last } => self.on_pre_vote(from, &last),
            Said::PreVoteReply { granted } => self.on_pre_vote_reply(now, from, granted),
            Said::Vote { last, transfer: _ } => self.on_vote(now, from, &last),
            Said::VoteReply { granted } => self.on_vote_reply(now, from, granted),
            Said::Append { prev, commit, entries } => self.on_append(now, from, prev, commit, entries),
            Said::Accepted { matched } => self.on_accepted(now, from, matched),
            Said::Refused(conflict) => self.on_refused(now, from, conflict),
            Said::Heartbeat { commit, round } => self.on_heartbeat(now, from, commit, Some(round)),
            Said::HeartbeatReply { round } => self.on_heartbeat_reply(now, from, round),
            Said::TimeoutNow => self.on_timeout_now(now, from),
            Said::Stale => {}
            Said::Committed { through } => self.on_heartbeat(now, from, through, None),
        }
    }
}

impl RaftNode for Raft {
    fn propose(&mut self, _now: Now, payload: &Payload) -> Result<Place, ProposeError> {
        if self.sealed.is_some() {
            return Err(ProposeError::Sealed);
        }
        let transfer = match &self.role {
            Role::Leader(lead) => lead.transfer,
            Role::Follower | Role::PreCandidate { .. } | Role::Candidate { .. } => {
                return Err(ProposeError::NotLeader { leader: self.leader });
            }
        };
        if self.log.marker().is_some() {
            return Err(ProposeError::Marker);
        }
        if let Some(transfer) = transfer {
            return Err(ProposeError::Transferring { to: transfer.to });
        }
        let body = body_of(payload)?;
        let kind = body.kind();
        if (kind == Kind::Batch && self.log_is_full()) || (kind == Kind::Tick && self.log_is_overfull()) {
            return Err(ProposeError::LogFull);
        }
        if self.is_busy(kind) {
            return Err(ProposeError::Busy);
        }
        let place = self.append(Entry { term: self.hard.term, body });
        if kind == Kind::Marker {
            self.fail_reads();
        }
        Ok(place)
    }

    fn is_full(&self) -> bool {
        self.log_is_full()
    }

    fn read_index(&mut self, _now: Now, token: u64) -> Result<(), ReadError> {
        self.take_read(token)
    }

    fn transfer_leadership(&mut self, now: Now, to: ReplicaId) -> Result<(), TransferError> {
        self.begin_transfer(now, to)
    }

    fn is_leader(&self) -> bool {
        matches!(self.role, Role::Leader(_))
    }

    fn leader(&self) -> Option<ReplicaId> {
        self.leader
    }

    fn term(&self) -> Term {
        self.hard.term
    }

    fn commit(&self) -> Index {
        self.commit
    }

    fn last(&self) -> Place {
        self.log.last()
    }

    fn followers(&self) -> Vec<(ReplicaId, Index)> {
        match &self.role {
            Role::Leader(lead) => lead.followers.iter().map(|(id, one)| (*id, one.matched)).collect(),
            Role::Follower | Role::PreCandidate { .. } | Role::Candidate { .. } => Vec::new(),
        }
    }

    fn border(&self) -> Place {
        self.log.border()
    }

    fn durable(&self) -> Index {
        self.durable
    }

    fn place(&self, index: Index) -> Option<Place> {
        self.log.place(index)
    }

    fn entries(&self, from: Index, through: Index, bytes_max: usize) -> Vec<Entry> {
        if through < from {
            return Vec::new();
        }
        match self.log.reach(from, through, u64::MAX, bytes_max as u64) {
            Some(through) => self.log.slice(from, through),
            None => Vec::new(),
        }
    }

    fn step(&mut self, now: Now, from: ReplicaId, bytes: &[u8]) {
        match Message::from_bytes(bytes) {
            Ok(message) => self.on_message(now, from, message),
            Err(_) => self.refuse(from, "not a message of a segment"),
        }
    }

    fn tick(&mut self, now: Now) {
        self.on_time(now);
    }

    fn next_wakeup(&self) -> Micros {
        self.due()
    }

    fn on_link_down(&mut self, now: Now, peer: ReplicaId) {
        self.miss_leader(now, peer);
    }

    fn on_durable(&mut self, now: Now, through: Ticket) {
        self.durable_ticket = self.durable_ticket.max(through.min(self.out.last_ticket()));
        while self.syncing.front().is_some_and(|(ticket, _)| *ticket <= self.durable_ticket) {
            let (_, index) = self.syncing.pop_front().expect("it is there");
            self.durable = index;
        }
        self.borders_are_durable();
        match self.role {
            Role::Candidate { .. } => self.count_own_vote(now),
            Role::Leader(_) => self.try_commit(),
            Role::Follower | Role::PreCandidate { .. } => {}
        }
    }

    fn settle(&mut self, now: Now) {
        self.write_entries();
        if !self.is_silent() {
            self.answer();
            self.try_hand_over();
            self.ask_round();
            self.replicate(now);
        }
        self.tell();
    }

    fn seal(&mut self, _now: Now) -> Sealed {
        self.seal_log()
    }

    fn sealed(&self) -> Option<SealPoint> {
        self.sealed
    }

    fn discard(&mut self, through: Index) -> Place {
        self.discard_through(through)
    }

    fn needed_from(&self) -> Ticket {
        self.oldest_needed()
    }

    fn install(&mut self, now: Now, place: Place) -> Result<(), InstallError> {
        self.install_at(now, place)
    }

    fn pin(&mut self, index: Index) -> Ticket {
        self.pin_at(index)
    }

    fn learn_commit(&mut self, place: Place) {
        if self.log.place(place.index) == Some(place) {
            self.commit_to(place.index);
        }
    }

    fn take(&mut self) -> Vec<Action> {
        self.out.take()
    }

    fn check(&self) {
        self.check_all();
    }
}

/// Makes [`Raft`]s.
#[derive(Clone, Copy, Debug, Default)]
pub struct OwnRaft;

impl RaftMaker for OwnRaft {
    fn open(&self, setup: SegmentSetup, records: &[Bytes], now: Now) -> Result<Box<dyn RaftNode>, OpenError> {
        Ok(Box::new(Raft::open(&setup, records, now)?))
    }
}
