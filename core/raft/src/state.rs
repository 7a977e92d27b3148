//! A segment's state: what must survive a crash apart from what may be forgotten, how both are rebuilt, and the few ways in
//! which the durable part changes. The phases decide when.

use crate::config::{Limits, SegmentSetup, Timing};
use crate::log::SegmentLog;
use crate::message::{Conflict, Entry, Message, Said};
use crate::node::OpenError;
use crate::output::{Action, Output};
use crate::record::{Border, HardState, Record};
use crate::replicate::Leadership;
use crate::timer::Timers;
use alloc::boxed::Box;
use alloc::collections::{BTreeSet, VecDeque};
use alloc::format;
use alloc::vec::Vec;
use bytes::Bytes;
use dwcp_base::{Chance, Epoch, Mutant, Mutants, Now, ReplicaId, Ticket};
use dwcp_log::place::{Index, Place, Term};

/// Raft figure 4, with the pre-candidate of thesis section 9.6.
#[derive(Clone, Debug)]
pub(crate) enum Role {
    Follower,
    /// Asks whether an election could be won; nothing is promised.
    PreCandidate {
        granted: BTreeSet<ReplicaId>,
    },
    /// `granted` holds this replica too once its own vote is durable.
    Candidate {
        granted: BTreeSet<ReplicaId>,
        transfer: bool,
    },
    Leader(Box<Leadership>),
}

/// What a follower owes its leader at the next `settle`. Gone with the term or the leader.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Owed {
    pub(crate) accepted: bool,
    pub(crate) refusal: Option<Conflict>,
    /// The newest ReadIndex round of a heartbeat that came.
    pub(crate) beat: Option<u64>,
}

/// One record of entries on disk: which of them the log still holds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Written {
    pub(crate) first: Index,
    pub(crate) last: Index,
    pub(crate) ticket: Ticket,
}

/// A border on its way to the disk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NewBorder {
    ticket: Ticket,
    index: Index,
    anew: bool,
}

/// One replica's part in one segment.
#[derive(Clone, Debug)]
pub struct Raft {
    pub(crate) epoch: Epoch,
    pub(crate) me: ReplicaId,
    /// The other members, ascending; at most 30.
    pub(crate) peers: Vec<ReplicaId>,
    pub(crate) timing: Timing,
    pub(crate) limits: Limits,
    pub(crate) mutants: Mutants,

    // Survives a crash, as records.
    pub(crate) hard: HardState,
    pub(crate) log: SegmentLog,
    pub(crate) sealed: Option<Place>,

    // May be forgotten.
    pub(crate) role: Role,
    pub(crate) leader: Option<ReplicaId>,
    pub(crate) commit: Index,
    /// Up to where this replica's log is known to be the current leader's.
    pub(crate) verified: Index,
    pub(crate) owed: Owed,
    /// The first entry that no record holds yet.
    pub(crate) unwritten: Option<Index>,
    /// Records of entries that a restart needs, each for an undiscarded entry: no more than entries held, but for those
    /// that the disk has not caught up with.
    pub(crate) written: VecDeque<Written>,
    /// Records of entries not yet known to be durable, and up to where the log is durable with each: as many as the disk
    /// is behind.
    pub(crate) syncing: VecDeque<(Ticket, Index)>,
    /// Up to where the log is durable, and up to which record.
    pub(crate) durable: Index,
    pub(crate) durable_ticket: Ticket,
    /// The newest record of each kind; 0 for none. The border's is the newest durable one.
    pub(crate) hard_ticket: Ticket,
    pub(crate) sealed_ticket: Ticket,
    pub(crate) border_ticket: Ticket,
    /// Borders not yet known to be durable: as many as the disk is behind.
    pub(crate) borders: VecDeque<NewBorder>,
    /// What was vouched for last, committed in this life and in every later one, and the record that remembers it.
    pub(crate) pinned: Index,
    pub(crate) pin_ticket: Ticket,
    /// What the caller has been told.
    pub(crate) told_commit: Index,
    pub(crate) told_leader: (Term, Option<ReplicaId>),
    pub(crate) told_marker: bool,
    pub(crate) timers: Timers,
    pub(crate) chance: Chance,
    pub(crate) out: Output,
}

impl Raft {
    /// A part in this segment, with every record of it that the disk holds taken back, in order. None: the segment is new.
    ///
    /// # Errors
    /// A setup that cannot be, or records that do not fit together.
    pub fn open(setup: &SegmentSetup, records: &[Bytes], now: Now) -> Result<Self, OpenError> {
        setup.check().map_err(OpenError::Setup)?;
        let chance = Chance::new(setup.seed).fork(&format!("election {} {}", setup.epoch, setup.me));
        let base = setup.base_place();
        let mut raft = Self {
            epoch: setup.epoch,
            me: setup.me,
            peers: setup.members.iter().copied().filter(|member| *member != setup.me).collect(),
            timing: setup.timing,
            limits: setup.limits,
            mutants: setup.mutants,
            hard: HardState::default(),
            log: SegmentLog::new(setup.base.position, base),
            sealed: None,
            role: Role::Follower,
            leader: None,
            commit: Index::ZERO,
            verified: Index::ZERO,
            owed: Owed::default(),
            unwritten: None,
            written: VecDeque::new(),
            syncing: VecDeque::new(),
            durable: Index::ZERO,
            durable_ticket: Ticket(records.len() as u64),
            hard_ticket: Ticket::ZERO,
            sealed_ticket: Ticket::ZERO,
            border_ticket: Ticket::ZERO,
            borders: VecDeque::new(),
            pinned: Index::ZERO,
            pin_ticket: Ticket::ZERO,
            told_commit: Index::ZERO,
            told_leader: (Term::ZERO, None),
            told_marker: false,
            timers: Timers::default(),
            chance,
            out: Output::after_replay(records.len() as u64),
        };
        raft.replay(records)?;
        raft.durable = raft.log.last_index();
        raft.commit = raft.log.border().index.max(raft.pinned);
        raft.told_commit = raft.commit;
        raft.told_leader = (raft.hard.term, None);
        raft.begin(now, setup.first_leader, records.is_empty());
        Ok(raft)
    }

    /// Entries gather without a chain until the last border is known: those in front of it may be gone from the disk, and
    /// those behind it may be from before a leader replaced them.
    fn replay(&mut self, records: &[Bytes]) -> Result<(), OpenError> {
        let (mut first_held, mut held) = (Index(1), VecDeque::new());
        let mut newest = 0;
        for (number, bytes) in (1..).zip(records) {
            let (epoch, record) =
                Record::from_bytes(bytes).map_err(|error| OpenError::Record { number, error })?;
            if epoch != self.epoch {
                return Err(OpenError::Epoch { number, found: epoch });
            }
            if !record.is_sound() {
                return Err(OpenError::Gap { number });
            }
            match record {
                Record::Hard(hard) => (self.hard, self.hard_ticket) = (hard, Ticket(number)),
                Record::Sealed(place) => (self.sealed, self.sealed_ticket) = (Some(place), Ticket(number)),
                Record::Pinned(_) if self.mutants.on(Mutant::AnchorForgotten) => {}
                Record::Pinned(index) => {
                    (self.pinned, self.pin_ticket) = (self.pinned.max(index), Ticket(number));
                }
                Record::Discarded(border) => self.replay_border(border, Ticket(number)),
                Record::Installed(border) => {
                    self.replay_border(border, Ticket(number));
                    // What was vouched for on a log that a liar led astray binds to nothing.
                    self.pinned = self.pinned.min(border.place.index);
                    held.clear();
                    self.written.clear();
                }
                Record::Entries { first, entries } => {
                    let follows = first > first_held && first.0 <= first_held.0 + held.len() as u64;
                    if follows {
                        held.truncate(
                            usize::try_from(first.0 - first_held.0).expect("it is no longer than held"),
                        );
                    } else {
                        held.clear();
                        first_held = first;
                    }
                    self.forget_written_from(if follows { first } else { Index::ZERO });
                    if !entries.is_empty() {
                        let last = Index(first.0.saturating_add(entries.len() as u64 - 1));
                        self.written.push_back(Written { first, last, ticket: Ticket(number) });
                    }
                    held.extend(entries);
                    newest = number;
                }
            }
        }
        let border = self.log.border().index;
        for (index, entry) in (first_held.0..).map(Index).zip(held).filter(|(index, _)| *index > border) {
            let last = self.log.last();
            if index != last.index.next() || entry.term < last.term || self.log.marker().is_some() {
                return Err(OpenError::Gap { number: newest });
            }
            self.log.push(entry);
        }
        self.written.retain(|written| written.last > border);
        if self.mutants.on(Mutant::RaftForgetsVoteOnRestart) {
            self.hard.vote = None;
        }
        if self.hard.term < self.log.last().term || self.pinned > self.log.last_index() {
            return Err(OpenError::Gap { number: newest });
        }
        Ok(())
    }

    fn replay_border(&mut self, border: Border, ticket: Ticket) {
        (self.hard, self.sealed, self.border_ticket) = (border.hard, border.sealed, ticket);
        self.log.reset(border.place);
    }

    pub(crate) fn majority(&self) -> usize {
        self.peers.len().div_ceil(2) + 1
    }

    pub(crate) fn send(&mut self, to: ReplicaId, said: Said, after: Ticket) {
        let message = Message { epoch: self.epoch, term: self.hard.term, said }.to_bytes();
        self.out.push(Action::Send { to, message, after });
    }

    pub(crate) fn refuse(&mut self, from: ReplicaId, reason: &'static str) {
        self.out.push(Action::Refused { from, reason });
    }

    /// Changes the promises and writes them down; nothing when nothing changes.
    pub(crate) fn set_hard(&mut self, hard: HardState, prompt: bool) {
        if hard == self.hard {
            return;
        }
        assert!(hard.term > self.hard.term || self.hard.vote.is_none(), "one vote a term");
        self.hard = hard;
        self.hard_ticket = self.out.persist(Record::Hard(hard).to_bytes(self.epoch), prompt);
    }

    pub(crate) fn append(&mut self, entry: Entry) -> Place {
        let place = self.log.push(entry);
        self.unwritten.get_or_insert(place.index);
        place
    }

    /// Drops entries the leader does not have. Never committed ones: the phases refuse such messages before.
    pub(crate) fn truncate(&mut self, from: Index) {
        assert!(from > self.commit || self.mutants.any(), "committed entries stay");
        self.log.truncate(from);
        self.forget_written_from(from);
        let kept = from.before();
        self.durable = self.durable.min(kept);
        self.verified = self.verified.min(kept);
        self.syncing.iter_mut().for_each(|(_, through)| *through = (*through).min(kept));
        // The record to come must say that the log is another from here on.
        self.unwritten = Some(self.unwritten.map_or(from, |unwritten| unwritten.min(from)));
        self.out.push(Action::Replaced { from });
    }

    fn forget_written_from(&mut self, from: Index) {
        while self.written.back().is_some_and(|written| written.first >= from) {
            self.written.pop_back();
        }
        if let Some(written) = self.written.back_mut() {
            written.last = written.last.min(from.before());
        }
    }

    /// Writes down what was appended since the last time, as one record.
    pub(crate) fn write_entries(&mut self) {
        let Some(first) = self.unwritten.take() else { return };
        let last = self.log.last_index();
        let entries = self.log.slice(first, last);
        let prompt = matches!(self.role, Role::Leader(_));
        let record = Record::Entries { first, entries };
        let ticket = self.out.persist(record.to_bytes(self.epoch), prompt);
        if last >= first {
            self.written.push_back(Written { first, last, ticket });
        }
        self.syncing.push_back((ticket, last));
    }

    /// The border's record, with everything that records before it said beside entries.
    pub(crate) fn write_border(&mut self, anew: bool) {
        let border = Border { place: self.log.border(), hard: self.hard, sealed: self.sealed };
        let record = if anew { Record::Installed(border) } else { Record::Discarded(border) };
        let ticket = self.out.persist(record.to_bytes(self.epoch), false);
        self.borders.push_back(NewBorder { ticket, index: border.place.index, anew });
    }

    /// Borders that are durable now make older records superfluous.
    pub(crate) fn borders_are_durable(&mut self) {
        while self.borders.front().is_some_and(|border| border.ticket <= self.durable_ticket) {
            let border = self.borders.pop_front().expect("it is there");
            self.border_ticket = border.ticket;
            self.written.retain(|written| {
                let superfluous =
                    if border.anew { written.ticket < border.ticket } else { written.last <= border.index };
                !superfluous
            });
        }
    }

    /// The oldest record a restart needs. A durable border repeats what the promises and the seal before it said; until
    /// there is one, every record is needed.
    pub(crate) fn oldest_needed(&self) -> Ticket {
        if self.border_ticket == Ticket::ZERO {
            return Ticket(1);
        }
        // A pin above the border needs no word: the entry that it names was written before it.
        self.written.front().map_or(self.border_ticket, |written| written.ticket.min(self.border_ticket))
    }

    /// Writes down that the log is committed up to here, for the caller is about to vouch for it.
    pub(crate) fn pin_at(&mut self, index: Index) -> Ticket {
        let index = index.min(self.commit);
        if self.sealed.is_some() {
            return self.sealed_ticket; // It does not move any more.
        }
        if index > self.pinned {
            self.write_entries();
            self.pinned = index;
            self.pin_ticket = self.out.persist(Record::Pinned(index).to_bytes(self.epoch), false);
        }
        self.pin_ticket
    }

    pub(crate) fn commit_to(&mut self, index: Index) {
        self.commit = self.commit.max(index);
    }

    /// Tells the caller what it has not been told yet.
    pub(crate) fn tell(&mut self) {
        let leader = (self.hard.term, self.leader);
        if leader != self.told_leader {
            self.told_leader = leader;
            self.out.push(Action::LeaderChanged { term: leader.0, leader: leader.1 });
        }
        if self.commit > self.told_commit {
            self.told_commit = self.commit;
            self.out.push(Action::Committed { through: self.commit });
        }
        if let Some(index) = self.log.marker()
            && index <= self.commit
            && !self.told_marker
        {
            self.told_marker = true;
            self.out.push(Action::MarkerCommitted { index });
        }
    }
}
