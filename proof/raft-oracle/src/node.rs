//! The foreign Raft behind `RaftNode`: seal, Marker, chain, entries, bounds and records are this adapter's; elections,
//! replication, commitment and ReadIndex are the library's. Reads wait here until the leader may answer them, at most
//! `reads_max`; proposals are bounded by what is uncommitted and by the log's limits.

use crate::border::{self, foreign_id, own_id};
use crate::log::Log;
use crate::record::{Border, Hard, Record, base_place, replay};
use bytes::Bytes;
use dwcp_base::{Chance, Micros, Now, ReplicaId, Ticket};
use dwcp_raft::message::Payload;
use dwcp_raft::node::body_of;
use dwcp_raft::{
    Action, Entry, Index, InstallError, Kind, OpenError, Output, Place, ProposeError, RaftMaker, RaftNode,
    ReadError, SealPoint, Sealed, SegmentSetup, Term, TransferError,
};
use raft::eraftpb::{ConfState, Entry as Foreign, HardState, Message, MessageType, Snapshot};
use raft::{Config, RawNode, StateRole};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Opens tikv's Raft, with the border before it or, to see what for, without.
#[derive(Clone, Copy, Debug)]
pub struct TikvRaft {
    pub bordered: bool,
}

pub struct TikvNode {
    bordered: bool,
    raw: RawNode<Log>,
    setup: SegmentSetup,
    me: u64,
    out: Output,
    durable: Ticket,
    /// Library numbers that become persisted with a ticket.
    persisting: VecDeque<(Ticket, u64)>,
    /// Which record each entry stands in, and the newest border: what a restart needs.
    written: BTreeMap<u64, Ticket>,
    border_ticket: Ticket,
    hard: Hard,
    hard_ticket: Ticket,
    /// How far commitment was reported.
    told: Index,
    told_leader: (u64, u64),
    sealed: Option<Sealed>,
    tick: Micros,
    election_ticks: usize,
    next_tick: Micros,
    chance: Chance,
    /// Taken and not yet handed to the library, which forgets reads before its first commit.
    early_reads: Vec<u64>,
    reads: BTreeSet<u64>,
    reads_term: u64,
}

impl core::fmt::Debug for TikvNode {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("TikvNode")
            .field("me", &self.setup.me)
            .field("term", &self.raw.raft.term)
            .field("role", &self.raw.raft.state)
            .field("last", &self.log().last())
            .field("told", &self.told)
            .finish_non_exhaustive()
    }
}

impl RaftMaker for TikvRaft {
    fn open(&self, setup: SegmentSetup, records: &[Bytes], now: Now) -> Result<Box<dyn RaftNode>, OpenError> {
        setup.check().map_err(OpenError::Setup)?;
        let found = replay(setup.epoch, base_place(setup.base.chain), records)?;
        let me = foreign_id(setup.me);
        let voters: Vec<u64> = setup.members.iter().copied().map(foreign_id).collect();
        let mut log = Log::new(setup.base, found.border.place, voters);
        let mut written = BTreeMap::new();
        let place = found.border.place;
        for (index, (term, data, record)) in (place.index.0 + 1..).zip(&found.entries) {
            let foreign = Foreign { term: *term, index, data: data.clone().into(), ..Foreign::default() };
            if crate::log::body_of(&foreign).is_none() {
                return Err(OpenError::Other(
                    "an entry of the segment's log cannot be read: the log is damaged",
                ));
            }
            log.put(&foreign);
            written.insert(index, Ticket(*record));
        }
        let hard = found.border.hard;
        log.hard =
            HardState { term: hard.term, vote: hard.vote, commit: place.index.0, ..HardState::default() };
        let sealed = found.border.sealed.map(|point| Sealed { point, ticket: Ticket(records.len() as u64) });
        if sealed.is_some_and(|sealed| sealed.point != log.last()) {
            return Err(OpenError::Other("the log does not end where it was sealed: the log is damaged"));
        }
        let tick = Micros((setup.timing.heartbeat_interval.0 / 2).max(1));
        let election_ticks =
            usize::try_from(setup.timing.election_timeout.0.div_ceil(tick.0)).unwrap_or(3).max(3);
        let limits = setup.limits;
        let one = limits.append_entries_max < 16;
        let config = Config {
            id: me,
            election_tick: election_ticks,
            heartbeat_tick: 2,
            applied: place.index.0,
            max_size_per_msg: if one { 0 } else { limits.append_bytes_max },
            max_inflight_msgs: usize::try_from(if one {
                limits.inflight_entries_max.min(256)
            } else {
                (limits.inflight_bytes_max / limits.append_bytes_max).clamp(1, 256)
            })
            .expect("small"),
            check_quorum: true,
            pre_vote: true,
            ..Config::default()
        };
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let raw = RawNode::new(&config, log, &logger)
            .map_err(|_| OpenError::Other("the foreign library refuses its configuration"))?;
        let chance = Chance::new(setup.seed).fork("election timeout");
        let mut node = TikvNode {
            bordered: self.bordered,
            raw,
            me,
            out: Output::after_replay(records.len() as u64),
            durable: Ticket(records.len() as u64),
            persisting: VecDeque::new(),
            written,
            border_ticket: Ticket(found.border_record),
            hard,
            hard_ticket: Ticket::ZERO,
            told: place.index,
            told_leader: (0, 0),
            sealed,
            tick,
            election_ticks,
            next_tick: now.mono.plus(tick),
            chance,
            early_reads: Vec::new(),
            reads: BTreeSet::new(),
            reads_term: 0,
            setup,
        };
        node.after_call();
        if records.is_empty() && node.setup.first_leader == Some(node.setup.me) {
            let _ = node.raw.campaign();
            node.after_call();
        }
        Ok(Box::new(node))
    }
}

impl TikvNode {
    fn log(&self) -> &Log {
        self.raw.store()
    }

    /// A snapshot is installed and its record not durable: the library would stand for election from what it has not.
    fn installs(&self) -> bool {
        self.raw.raft.raft_log.applied() < self.log().border.index.0
    }

    /// A lone member elects itself within one call; unless its term is durable first, it could lead that term twice.
    fn holds_office(&self) -> bool {
        let raft = &self.raw.raft;
        self.hard_ticket <= self.durable && self.hard == (Hard { term: raft.term, vote: raft.vote })
    }

    fn leads(&self) -> bool {
        self.sealed.is_none() && self.raw.raft.state == StateRole::Leader && self.holds_office()
    }

    /// After every call into the library: its timeout comes from our seed, and our log follows its unstable end.
    fn after_call(&mut self) {
        // By term, for whether the library drew anew cannot be told from here; and its own draws must not count.
        let jitter = self.chance.fork(&self.raw.raft.term.to_string()).below(self.election_ticks as u64);
        let ticks = self.election_ticks + usize::try_from(jitter).expect("small");
        self.raw.raft.set_randomized_election_timeout(ticks);
        let news: Vec<Foreign> = self
            .raw
            .raft
            .raft_log
            .unstable_entries()
            .iter()
            .filter(|entry| self.log().slot(entry.index).is_none_or(|slot| slot.foreign.term != entry.term))
            .cloned()
            .collect();
        let mut replaced: Option<u64> = None;
        for entry in &news {
            if self.raw.mut_store().put(entry) {
                replaced = Some(replaced.map_or(entry.index, |from| from.min(entry.index)));
                self.written.split_off(&entry.index);
            }
        }
        if let Some(from) = replaced {
            self.out.push(Action::Replaced { from: Index(from) });
        }
        let raft = &self.raw.raft;
        if raft.state != StateRole::Leader || raft.term != self.reads_term {
            self.fail_reads();
            self.reads_term = self.raw.raft.term;
        }
    }

    fn fail_reads(&mut self) {
        let mut tokens: Vec<u64> = core::mem::take(&mut self.reads).into_iter().collect();
        tokens.append(&mut self.early_reads);
        if !tokens.is_empty() {
            self.out.push(Action::ReadsFailed { tokens });
        }
    }

    fn persist(&mut self, record: &Record) -> Ticket {
        self.out.persist(record.to_bytes(self.setup.epoch), true)
    }

    fn border_record(&self) -> Border {
        Border { place: self.log().border, hard: self.hard, sealed: self.sealed.map(|sealed| sealed.point) }
    }

    fn send(&mut self, messages: Vec<Message>, after: Ticket) {
        for mut message in messages {
            // Also where a heartbeat came just before the Marker, in the same burst.
            if message.get_msg_type() == MessageType::MsgHeartbeatResponse && self.log().has_marker() {
                message.context.clear();
            }
            let Some(to) = own_id(message.to).filter(|to| self.setup.members.contains(to)) else { continue };
            let message = border::to_bytes(self.setup.epoch, &message);
            self.out.push(Action::Send { to, message, after });
        }
    }

    /// Tells the leader where this log stands after a snapshot, as the library does when one came its own road.
    fn answer_snapshot(&mut self) {
        let raft = &mut self.raw.raft;
        if raft.leader_id != 0 && raft.leader_id != raft.id {
            let mut message = Message::default();
            message.set_msg_type(MessageType::MsgAppendResponse);
            (message.from, message.to, message.term) = (raft.id, raft.leader_id, raft.term);
            message.index = self.told.0;
            message.commit = self.told.0;
            raft.msgs.push(message);
        }
    }

    fn tell_leader(&mut self) {
        let raft = &self.raw.raft;
        let known = self.sealed.is_none() && (raft.leader_id != raft.id || self.holds_office());
        let now = (raft.term, if known { raft.leader_id } else { 0 });
        if now.1 != self.told_leader.1 || (now.0 != self.told_leader.0 && now.1 != 0) {
            self.told_leader = now;
            self.out.push(Action::LeaderChanged { term: Term(now.0), leader: own_id(now.1) });
        }
    }

    fn drain_ready(&mut self) {
        while self.raw.has_ready() {
            let mut ready = self.raw.ready();
            let number = ready.number();
            if !ready.snapshot().is_empty() {
                let border = self.border_record();
                self.border_ticket = self.persist(&Record::Installed(border));
            }
            if let Some(hs) = ready.hs() {
                let hard = Hard { term: hs.term, vote: hs.vote };
                if hard != self.hard {
                    self.hard = hard;
                    self.hard_ticket = self.persist(&Record::Hard(hard));
                }
            }
            let entries = ready.take_entries();
            if let Some(first) = entries.first().map(|entry| entry.index) {
                let record = Record::Entries {
                    first,
                    entries: entries.iter().map(|entry| (entry.term, entry.data.to_vec())).collect(),
                };
                let ticket = self.persist(&record);
                self.written.split_off(&first);
                self.written.extend(entries.iter().map(|entry| (entry.index, ticket)));
            }
            let after = self.out.last_ticket();
            let at_once = ready.take_messages();
            let persisted = ready.take_persisted_messages();
            self.send(at_once, Ticket::ZERO);
            self.send(persisted, after);
            for state in ready.take_read_states() {
                if let Ok(token) = state.request_ctx.as_slice().try_into().map(u64::from_le_bytes)
                    && self.reads.remove(&token)
                {
                    self.out.push(Action::ReadsReady { tokens: vec![token], index: Index(state.index) });
                }
            }
            let committed = ready.take_committed_entries().last().map_or(0, |entry| entry.index);
            self.raw.advance_append_async(ready);
            self.persisting.push_back((after, number));
            self.release();
            self.tell_committed(committed);
            self.apply();
            self.after_call();
        }
    }

    fn tell_committed(&mut self, committed: u64) {
        let marker = self.log().marker();
        // Nothing after a Marker is ever committed; only a lone member could make the library think so.
        let through = Index(marker.map_or(committed, |marker| committed.min(marker.0)));
        if through > self.told {
            self.told = through;
            self.out.push(Action::Committed { through });
            if marker == Some(through) {
                self.out.push(Action::MarkerCommitted { index: through });
            }
        }
    }

    /// Tells the library that what it may call applied is: it allows no more than is durable here.
    fn apply(&mut self) {
        let log = &self.raw.raft.raft_log;
        let applied = self.told.0.min(log.committed).min(log.persisted);
        if applied > log.applied() {
            self.raw.advance_apply_to(applied);
        }
    }

    /// Tells the library what is durable.
    fn release(&mut self) {
        let mut number = None;
        while self.persisting.front().is_some_and(|(ticket, _)| *ticket <= self.durable) {
            number = self.persisting.pop_front().map(|(_, number)| number);
        }
        if let Some(number) = number {
            self.raw.on_persist_ready(number);
            self.apply();
            self.after_call();
        }
    }

    fn tell_behind(&mut self) {
        let behind = core::mem::take(&mut *self.log().behind.borrow_mut());
        for id in behind {
            let next = self.raw.raft.prs().get(id).map_or(0, |progress| progress.next_idx);
            if let Some(follower) = own_id(id)
                && self.leads()
                && next <= self.log().border.index.0
            {
                self.out.push(Action::Behind { follower, next: Index(next) });
            }
        }
    }

    fn ask_reads(&mut self) {
        if self.leads() && self.raw.raft.commit_to_current_term() {
            for token in core::mem::take(&mut self.early_reads) {
                self.reads.insert(token);
                self.raw.read_index(token.to_le_bytes().to_vec());
                self.after_call();
            }
        }
    }
}

impl RaftNode for TikvNode {
    fn propose(&mut self, _: Now, payload: &Payload) -> Result<Place, ProposeError> {
        if self.sealed.is_some() {
            return Err(ProposeError::Sealed);
        }
        if !self.leads() {
            return Err(ProposeError::NotLeader { leader: self.leader() });
        }
        if self.log().has_marker() {
            return Err(ProposeError::Marker);
        }
        if let Some(to) = self.raw.raft.lead_transferee.and_then(own_id) {
            return Err(ProposeError::Transferring { to });
        }
        let body = body_of(payload)?;
        let limits = self.setup.limits;
        if body.kind() != Kind::Marker {
            let log = self.log();
            if log.slots.len() as u64 >= limits.log_entries_max
                || log.body_bytes(Index::ZERO) >= limits.log_bytes_max
            {
                return Err(ProposeError::LogFull);
            }
            if log.body_bytes(self.told) + body.bytes().len() as u64 > limits.uncommitted_bytes_max {
                return Err(ProposeError::Busy);
            }
        }
        // The library tells its own first entries by their empty data; ours that say the same are not needed.
        if body.kind() == Kind::Empty {
            return Err(ProposeError::Invalid(dwcp_base::CodecError::Malformed));
        }
        let proposed = self.raw.propose(Vec::new(), body.bytes().to_vec());
        self.after_call();
        proposed.map(|()| self.log().last()).map_err(|_| ProposeError::Busy)
    }

    fn read_index(&mut self, _: Now, token: u64) -> Result<(), ReadError> {
        if self.sealed.is_some() {
            return Err(ReadError::Sealed);
        }
        if !self.leads() {
            return Err(ReadError::NotLeader { leader: self.leader() });
        }
        if self.log().has_marker() {
            return Err(ReadError::Marker);
        }
        if self.reads.len() + self.early_reads.len() >= self.setup.limits.reads_max {
            return Err(ReadError::Busy);
        }
        self.early_reads.push(token);
        Ok(())
    }

    fn transfer_leadership(&mut self, _: Now, to: ReplicaId) -> Result<(), TransferError> {
        if self.sealed.is_some() || (self.leads() && self.log().has_marker()) {
            return Err(TransferError::Ending);
        }
        if !self.leads() {
            return Err(TransferError::NotLeader { leader: self.leader() });
        }
        if to == self.setup.me || !self.setup.members.contains(&to) {
            return Err(TransferError::NotAMember);
        }
        self.raw.transfer_leader(foreign_id(to));
        self.after_call();
        Ok(())
    }

    fn is_leader(&self) -> bool {
        self.leads() && self.told_leader.1 == self.me
    }

    fn leader(&self) -> Option<ReplicaId> {
        if self.sealed.is_some() { None } else { own_id(self.told_leader.1) }
    }

    fn term(&self) -> Term {
        Term(self.raw.raft.term)
    }

    fn commit(&self) -> Index {
        self.told
    }

    fn last(&self) -> Place {
        self.log().last()
    }

    fn followers(&self) -> Vec<(ReplicaId, Index)> {
        if !self.is_leader() {
            return Vec::new();
        }
        let matched =
            |id: &ReplicaId| self.raw.raft.prs().get(foreign_id(*id)).map_or(0, |progress| progress.matched);
        let others = self.setup.members.iter().filter(|id| **id != self.setup.me);
        others.map(|id| (*id, Index(matched(id)))).collect()
    }

    fn border(&self) -> Place {
        self.log().border
    }

    fn durable(&self) -> Index {
        Index(self.raw.raft.raft_log.persisted.min(self.log().last().index.0))
    }

    fn place(&self, index: Index) -> Option<Place> {
        self.log().place(index)
    }

    fn entries(&self, from: Index, through: Index, bytes_max: usize) -> Vec<Entry> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut bytes = 0;
        let mut index = from.0;
        while let Some(slot) = self.log().slot(index).filter(|slot| slot.place.index <= through) {
            bytes += slot.entry.body.bytes().len();
            if !entries.is_empty() && bytes > bytes_max {
                break;
            }
            entries.push(slot.entry.clone());
            index += 1;
        }
        entries
    }

    fn step(&mut self, _: Now, from: ReplicaId, bytes: &[u8]) {
        let admitted = if self.sealed.is_some() {
            Err("sealed")
        } else if !self.setup.members.contains(&from) || from == self.setup.me {
            Err("not a member")
        } else {
            border::read(self.setup.epoch, bytes).and_then(|message| {
                if !self.bordered {
                    return Ok(message);
                }
                border::admit(&self.raw.raft, self.me, foreign_id(from), message)
            })
        };
        match admitted {
            Ok(message) => {
                let stepped = self.raw.step(message);
                self.after_call();
                if stepped.is_err() {
                    self.out.push(Action::Refused { from, reason: "the library refuses it" });
                }
            }
            Err(reason) => self.out.push(Action::Refused { from, reason }),
        }
    }

    fn tick(&mut self, now: Now) {
        let mut ticks = 0;
        while self.next_tick <= now.mono {
            self.next_tick = self.next_tick.plus(self.tick);
            // After a long sleep one timeout is due, not many.
            if ticks < self.election_ticks * 2 && self.sealed.is_none() && !self.installs() {
                self.raw.tick();
                self.after_call();
            }
            ticks += 1;
        }
    }

    fn next_wakeup(&self) -> Micros {
        if self.sealed.is_some() { Micros::NEVER } else { self.next_tick }
    }

    fn on_durable(&mut self, _: Now, through: Ticket) {
        self.durable = self.durable.max(through);
        if self.sealed.is_none() {
            self.release();
        }
    }

    fn settle(&mut self, _: Now) {
        if self.sealed.is_some() {
            return;
        }
        self.tell_leader();
        self.drain_ready();
        self.ask_reads();
        self.drain_ready();
        self.tell_leader();
        self.tell_behind();
    }

    fn seal(&mut self, _: Now) -> Sealed {
        if let Some(sealed) = self.sealed {
            return sealed;
        }
        // What was proposed and not yet written is written now: the seal names the whole log.
        let unwritten = self.raw.raft.raft_log.unstable_entries().to_vec();
        if let Some(first) = unwritten.first().map(|entry| entry.index) {
            let entries = unwritten.iter().map(|entry| (entry.term, entry.data.to_vec())).collect();
            self.persist(&Record::Entries { first, entries });
        }
        let hard = Hard { term: self.raw.raft.term, vote: self.raw.raft.vote };
        if hard != self.hard {
            self.hard = hard;
            self.persist(&Record::Hard(hard));
        }
        let point = self.log().last();
        let ticket = self.persist(&Record::Sealed(point));
        let sealed = Sealed { point, ticket };
        self.sealed = Some(sealed);
        self.fail_reads();
        self.tell_leader();
        sealed
    }

    fn sealed(&self) -> Option<SealPoint> {
        self.sealed.map(|sealed| sealed.point)
    }

    fn discard(&mut self, through: Index) -> Place {
        let through = through.min(self.told).min(self.durable());
        // A log that holds a Marker keeps it.
        let through = self.log().marker().map_or(through, |marker| through.min(marker.before()));
        if through > self.log().border.index && self.log().slot(through.0).is_some() {
            self.raw.mut_store().discard(through);
            self.written = self.written.split_off(&(through.0 + 1));
            let border = self.border_record();
            self.border_ticket = self.persist(&Record::Discarded(border));
        }
        self.log().border
    }

    fn needed_from(&self) -> Ticket {
        if self.border_ticket == Ticket::ZERO || self.border_ticket > self.durable {
            return Ticket(1);
        }
        self.written.values().copied().min().unwrap_or(self.border_ticket).min(self.border_ticket)
    }

    fn install(&mut self, _: Now, place: Place) -> Result<(), InstallError> {
        if self.sealed.is_some() {
            return Err(InstallError::Sealed);
        }
        if place.index <= self.told {
            self.answer_snapshot();
            return Err(InstallError::NotAhead { commit: self.told });
        }
        if self.raw.raft.state != StateRole::Follower {
            let term = self.raw.raft.term;
            self.raw.raft.become_follower(term, 0);
        }
        let mut snapshot = Snapshot::default();
        let mut voters = ConfState::default();
        voters.set_voters(self.log().voters.clone());
        snapshot.mut_metadata().index = place.index.0;
        snapshot.mut_metadata().term = place.term.0;
        snapshot.mut_metadata().set_conf_state(voters);
        if self.log().place(place.index) == Some(place) {
            self.raw.raft.raft_log.commit_to(place.index.0);
        } else if self.raw.raft.restore(snapshot) {
            self.raw.mut_store().restart_at(place);
            self.written.clear();
        }
        self.told = place.index;
        self.answer_snapshot();
        self.after_call();
        Ok(())
    }

    fn take(&mut self) -> Vec<Action> {
        self.out.take()
    }
}
