//! This replica's part in the open segment: carrying out what its Raft node wants done, and executing what it committed.
//! Opens and closes when `apply` says so; complains, seals and collects in `failover`; notarises in `anchors`.
//! Knows the Raft node by its face alone.

use crate::anchors::Anchors;
use crate::bodies::Body;
use crate::failover::Failover;
use crate::io::{Advice, Class, ClientId, ClientReply, Effect, Event, ReadLabel, Unanswered};
use crate::replica::{Outbox, Replica};
use crate::wire::{LogRecord, PeerMessage};
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use bytes::Bytes;
use dwcp_base::limits::CLOCK_AHEAD_MAX_MS;
use dwcp_base::{
    Ack, Configuration, Epoch, Hash, Index, LogTime, Micros, Mutant, NetworkMode, Now, ReplicaId, Sequence,
    Ticket, encode,
};
use dwcp_log::segment::AnchorPoint;
use dwcp_log::{Place, VirtualLog};
use dwcp_raft::{Action, Entry, Kind, Payload, ProposeError, RaftNode, ReadError, SegmentSetup, TicketMap};
use dwcp_state::StateMachine;

/// Messages of epochs that this replica has yet to see opened, per peer; beyond it they are dropped and come again.
const EARLY_MAX: usize = 64;
const EARLY_BYTES_MAX: usize = 1 << 20;
/// The name under which reads that cost no entry are counted.
const READS_COUNTED: &str = "linearizable reads without an entry";

/// Reads that wait for the leader's majority, or for the state to come so far.
#[derive(Debug, Default)]
pub(crate) struct Reads {
    next: u64,
    /// At most `reads_max` of the segment's limits; beyond it a read is refused.
    waiting: BTreeMap<u64, (ClientId, u64, Bytes)>,
    /// Those of them that a majority has confirmed, by the index that the state must have come to.
    ready: VecDeque<(Index, Vec<u64>)>,
}

/// What is open now.
pub(crate) struct SegmentNode<M: StateMachine> {
    pub epoch: Epoch,
    pub opened_at: Sequence,
    /// Who was in force when it opened.
    pub members: Option<Configuration>,
    /// `None`: this replica takes no part and learns the segment at its Close.
    pub raft: Option<Box<dyn RaftNode>>,
    pub tickets: TicketMap,
    /// The last entry executed here.
    pub applied: Place,
    pub committed: Index,
    /// More is committed and held than one turn executes.
    pub unfinished: bool,
    /// The Marker, once it is committed.
    pub marker: Option<Index>,
    pub anchors: Anchors<M>,
    pub failover: Failover,
    pub reads: Reads,
    /// Frames that the root ordered meanwhile and that the leader is to propose first; at most `OFFERS_MAX`.
    pub offers: VecDeque<Bytes>,
    /// Entries up to a tail that our own log does not hold.
    pub body: Option<Body>,
}

/// A Raft node whose segment is not open here: over, or not open yet again after a snapshot took us back.
pub(crate) struct Retired {
    pub raft: Option<Box<dyn RaftNode>>,
    pub tickets: TicketMap,
    /// The end of the segment, where it was not our own log's.
    pub body: Option<Body>,
}

/// Closed segments whose Raft nodes are kept at once, each with as much log as a segment may have.
pub(crate) const RETIRED_MAX: usize = 64;

/// Messages of epochs to come.
#[derive(Debug, Default)]
pub(crate) struct Early {
    by_peer: BTreeMap<ReplicaId, VecDeque<(Epoch, Bytes)>>,
}

impl Early {
    fn keep(&mut self, from: ReplicaId, epoch: Epoch, bytes: Bytes) {
        let queue = self.by_peer.entry(from).or_default();
        queue.push_back((epoch, bytes));
        let mut size: usize = queue.iter().map(|(_, bytes)| bytes.len()).sum();
        while queue.len() > EARLY_MAX || size > EARLY_BYTES_MAX {
            size -= queue.pop_front().map_or(0, |(_, bytes)| bytes.len());
        }
    }

    fn take(&mut self, epoch: Epoch) -> Vec<(ReplicaId, Bytes)> {
        let mut taken = Vec::new();
        for (from, queue) in &mut self.by_peer {
            for (of, bytes) in core::mem::take(queue) {
                if of == epoch {
                    taken.push((*from, bytes));
                } else if of > epoch {
                    queue.push_back((of, bytes));
                }
            }
        }
        taken
    }
}

impl<M: StateMachine> SegmentNode<M> {
    pub(crate) fn is_leader(&self) -> bool {
        self.raft.as_ref().is_some_and(|raft| raft.is_leader() && raft.sealed().is_none())
    }

    /// Whether everything that the leader is known to have committed is executed here. Nobody without a leader can say so.
    pub(crate) fn is_caught_up(&self) -> bool {
        self.raft.as_ref().is_some_and(|raft| {
            raft.leader().is_some()
                && self.applied.index >= self.committed
                && raft.commit() >= raft.last().index.before()
                && raft.last().index > Index::ZERO
        })
    }

    /// Whether what was fetched up to this tail ends with a Marker.
    pub(crate) fn ends_with_marker(&self, tail: &Place) -> bool {
        let body = self.body.as_ref().filter(|body| body.tail == *tail);
        body.and_then(|body| body.entries.last()).is_some_and(|entry| entry.body.kind() == Kind::Marker)
    }

    pub(crate) fn leader(&self) -> Option<ReplicaId> {
        self.raft.as_ref().filter(|raft| raft.sealed().is_none()).and_then(|raft| raft.leader())
    }
}

impl<M: StateMachine> Replica<M> {
    /// The control state has a segment open and `state` is the state at its last Anchor (at its base, before the first):
    /// takes part from there.
    pub(crate) fn begin_segment(&mut self, now: Now, out: &mut Outbox) {
        if let Some(anchor) = self.control.fold.segment().map(|segment| segment.anchor) {
            self.begin_segment_at(now, anchor, out);
        }
    }

    /// As [`Self::begin_segment`], with the state of an earlier Anchor.
    pub(crate) fn begin_segment_at(&mut self, now: Now, anchor: AnchorPoint, out: &mut Outbox) {
        let Some(mut segment) = self.control.fold.segment().cloned() else { return };
        if let Some(base) = self.base_seen.take().filter(|_| self.setup.mutants.on(Mutant::BaseAsProposed)) {
            segment.base = base;
        }
        let epoch = segment.epoch;
        let anchored = Place { index: anchor.index, term: anchor.term, chain: anchor.chain };
        let position = segment.position(anchored.index).expect("the fold has seen to it");
        self.live = VirtualLog { position, chain: anchored.chain };
        let retired = self.retired.remove(&epoch);
        let (mut raft, tickets) = match retired {
            Some(Retired { raft, tickets, body }) => {
                // What was fetched of it is still on disk and at hand.
                self.bodies.entry(epoch).or_default().extend(body);
                (raft, tickets)
            }
            None => self.make_raft(now, &segment, out),
        };
        let own = raft.as_ref().and_then(|raft| raft.place(anchored.index));
        let parts = own.is_some_and(|own| own.chain != anchored.chain);
        if parts {
            self.count("logs that part from an Anchor");
        }
        if let Some(raft) = &mut raft
            && (anchored.index > raft.commit() || parts)
        {
            // A sealed log stays as it is; whatever it lacks is fetched when the segment closes.
            let _ = raft.install(now, anchored);
        }
        let committed = raft.as_ref().map_or(Index::ZERO, |raft| raft.commit()).max(anchored.index);
        let frozen = self.state.freeze();
        self.segment_at_snapshot = (0, anchored.index.0);
        self.segment = Some(SegmentNode {
            epoch,
            opened_at: segment.opened_at,
            members: self.control.steering.voters.clone(),
            raft,
            tickets,
            applied: anchored,
            committed,
            unfinished: false,
            marker: None,
            anchors: Anchors::new(now, anchored, self.live, frozen),
            failover: Failover::new(now),
            reads: Reads::default(),
            offers: VecDeque::new(),
            body: None,
        });
        for (from, bytes) in self.early.take(epoch) {
            self.on_segment_message(now, from, epoch, &bytes);
        }
        self.pool.new_turn();
        self.pool.restart_clocks(now.mono);
        self.resume_seal(now, out);
    }

    /// This replica's Raft node for a segment, with what the disk remembers of it.
    fn make_raft(
        &mut self,
        now: Now,
        segment: &dwcp_log::Segment,
        out: &mut Outbox,
    ) -> (Option<Box<dyn RaftNode>>, TicketMap) {
        let epoch = segment.epoch;
        let remembered = self.remembered.remove(&epoch).unwrap_or_default();
        let mut tickets = TicketMap::default();
        let mine = self
            .control
            .steering
            .voters
            .as_ref()
            .and_then(|voters| voters.member(self.setup.me))
            .is_some_and(|member| member.incarnation == self.setup.incarnation);
        let Some(maker) = self.setup.raft.clone() else {
            self.count("Raft node not initialized");
            return (None, tickets);
        };
        if !mine || !segment.open.members.contains(&self.setup.me) {
            return (None, tickets);
        }
        if epoch < self.remembers_from {
            // A node that remembers nothing could sign another end of a log than the one it signed before.
            self.count("segments of which nothing is remembered any more");
            return (None, tickets);
        }
        let setup = SegmentSetup {
            epoch: self.log_of(epoch),
            me: self.setup.me,
            members: segment.open.members.clone(),
            first_leader: segment.open.first_leader,
            base: segment.base,
            timing: self.setup.settings.segment.timing,
            limits: self.setup.settings.segment.limits,
            seed: self.setup.seed,
            mutants: self.setup.mutants,
        };
        let records: Vec<Bytes> = remembered.iter().map(|(_, record)| record.clone()).collect();
        for (ticket, _) in &remembered {
            tickets.note(*ticket);
        }
        if let Some((last, _)) = remembered.last() {
            // What was read back from the disk is on it; the node counts it so itself.
            let _ = tickets.durable(*last);
        }
        match maker.open(setup, &records, now) {
            Ok(raft) => (Some(raft), tickets),
            Err(error) => {
                self.halted = true;
                let reason = alloc::format!(
                    "segment {epoch} cannot be read back ({error}): the disk is damaged, run `dwcp member replace`"
                );
                out.push(Effect::Halt { reason });
                (None, tickets)
            }
        }
    }

    /// The name under which a segment keeps its log and is spoken of: its epoch, and no other's.
    fn log_of(&self, epoch: Epoch) -> Epoch {
        if self.setup.mutants.on(Mutant::SegmentLogReused) { Epoch(1) } else { epoch }
    }

    /// Takes a message between members of a segment.
    pub(crate) fn on_segment(
        &mut self,
        now: Now,
        from: ReplicaId,
        epoch: Epoch,
        bytes: Bytes,
        out: &mut Outbox,
    ) {
        let current = self.control.fold.epoch();
        let epoch = if self.setup.mutants.on(Mutant::EpochUnchecked) { current } else { epoch };
        if epoch > current {
            // Its Open is on its way to us.
            if self.setup.mutants.on(Mutant::AckBeforeOpen) && self.join_unopened(now, from, epoch, &bytes) {
                return;
            }
            return self.early.keep(from, epoch, bytes);
        }
        if let Some(segment) = self.segment.as_mut()
            && epoch < current
            && self.setup.mutants.on(Mutant::SegmentLogReused)
        {
            segment.raft.iter_mut().for_each(|raft| raft.step(now, from, &bytes));
            return;
        }
        if epoch < current || self.segment.is_none() {
            // Inert. The certificates that close its epoch for the sender come with the slots it lacks.
            self.count("messages of epochs that are over");
            return self.show_where_we_stand(now, from, out);
        }
        self.on_segment_message(now, from, epoch, &bytes);
    }

    /// Only a mutant does this: takes a member's word for it that the next segment is open, from here, with the members there
    /// are now.
    fn join_unopened(&mut self, now: Now, from: ReplicaId, epoch: Epoch, bytes: &Bytes) -> bool {
        let Some(maker) = self.setup.raft.clone() else { return false };
        if self.segment.is_some() || epoch.0 != self.control.fold.epoch().0 + 1 {
            return false;
        }
        let members = self.control.segment_members(self.control.executed, self.setup.genesis.window);
        let setup = SegmentSetup {
            epoch,
            me: self.setup.me,
            members,
            first_leader: Some(from),
            base: self.live,
            timing: self.setup.settings.segment.timing,
            limits: self.setup.settings.segment.limits,
            seed: self.setup.seed,
            mutants: self.setup.mutants,
        };
        if !self.retired.contains_key(&epoch) && !self.remembered.contains_key(&epoch) {
            let raft = maker.open(setup, &[], now).ok();
            self.retired.insert(epoch, Retired { raft, tickets: TicketMap::default(), body: None });
        }
        let node = self.retired.get_mut(&epoch).and_then(|retired| retired.raft.as_mut());
        node.map(|raft| raft.step(now, from, bytes)).is_some()
    }

    fn on_segment_message(&mut self, now: Now, from: ReplicaId, epoch: Epoch, bytes: &Bytes) {
        let quiet = self.diverged;
        // What log time has reached is no longer ahead of anything. And not a bit more: from there a leader whose clock runs
        // fast could go on to as far again, with each entry.
        let beyond_ms = if self.setup.mutants.on(Mutant::LogTimeRatchets) { 0 } else { CLOCK_AHEAD_MAX_MS };
        let reached_ms = self.state.log_time().0.saturating_sub(beyond_ms);
        let now = Now { wall_ms: now.wall_ms.max(reached_ms), ..now };
        if let Some(segment) = self.segment.as_mut().filter(|segment| segment.epoch == epoch && !quiet)
            && let Some(raft) = &mut segment.raft
        {
            raft.step(now, from, bytes);
        }
    }

    pub(crate) fn on_durable(&mut self, now: Now, through: Ticket) {
        if let Some(segment) = &mut self.segment
            && let Some(raft) = &mut segment.raft
            && let Some(through) = segment.tickets.durable(through)
        {
            raft.on_durable(now, through);
        }
        for retired in self.retired.values_mut() {
            if let Some(raft) = &mut retired.raft
                && let Some(through) = retired.tickets.durable(through)
            {
                raft.on_durable(now, through);
            }
        }
    }

    /// Proposes what waits, if this replica leads, and carries out what the node wants done.
    pub(crate) fn settle_segment(&mut self, now: Now, out: &mut Outbox) {
        if self.segment.is_none() || self.diverged {
            return self.drain_segment(now, out);
        }
        self.note_ending(now);
        self.propose_in_segment(now);
        if let Some(segment) = &mut self.segment
            && let Some(raft) = &mut segment.raft
        {
            raft.settle(now);
            segment.failover.sample(now, raft.last().index, raft.commit());
        }
        self.drain_segment(now, out);
        self.check_version(out);
        self.vote_on_ticks(now, out);
        self.answer_reads(out);
    }

    fn propose_in_segment(&mut self, now: Now) {
        let turn = self.sync_turn();
        let settings = &self.setup.settings;
        let time = self.state.log_time().max(LogTime(now.wall_ms));
        let Some(segment) = self.segment.as_mut().filter(|segment| segment.is_leader()) else { return };
        let ending = self.control.steering.ending.is_some();
        let Some(raft) = &mut segment.raft else { return };
        if ending {
            if segment.failover.marker_proposed != Some(raft.term())
                && raft.propose(now, &Payload::Marker).is_ok()
            {
                segment.failover.marker_proposed = Some(raft.term());
            }
            return;
        }
        while let Some(frame) = segment.offers.pop_front() {
            let payload = Payload::Batch { time, frames: Vec::from([frame.clone()]) };
            if raft.propose(now, &payload).is_err() {
                segment.offers.push_front(frame);
                break;
            }
        }
        // A few entries under way keep the pipe full; more frames gather meanwhile and leave as one entry.
        let depth = settings.pipeline_depth;
        while raft.last().index.0.saturating_sub(raft.commit().0) < depth {
            let mut frames = self.pool.next_batch(settings.batch_bytes_max, settings.batch_frames_max);
            if let Some(room) = &mut self.sync {
                let left = settings.batch_bytes_max.saturating_sub(frames.iter().map(Bytes::len).sum());
                frames.extend(room.next_batch(turn, left, settings.batch_frames_max - frames.len()));
            }
            if frames.is_empty() {
                break;
            }
            let payload = Payload::Batch { time, frames };
            if let Err(error) = raft.propose(now, &payload) {
                if let Payload::Batch { frames, .. } = payload {
                    self.pool.put_back(&frames);
                    if let Some(room) = &mut self.sync {
                        room.put_back(&frames);
                    }
                }
                if error == ProposeError::LogFull {
                    segment.failover.log_full = true;
                }
                break;
            }
        }
        let due = segment.anchors.tick_due(raft.last().index, self.state.wants_ticks().is_some(), settings);
        if now.mono >= due {
            if let Ok(place) = raft.propose(now, &Payload::Tick { time }) {
                segment.anchors.last_tick = place.index;
            }
            segment.anchors.ticked = Some(now.mono);
        }
    }

    /// When the segment needs `Wake`.
    pub(crate) fn segment_wakeup(&self) -> Micros {
        let Some(segment) = &self.segment else { return Micros::NEVER };
        let Some(raft) = segment.raft.as_ref().filter(|_| !self.diverged) else {
            return self.failover_wakeup(segment);
        };
        if segment.unfinished {
            return Micros::ZERO;
        }
        let mut due = raft.next_wakeup();
        if segment.is_leader() && self.control.steering.ending.is_none() {
            let timed = self.state.wants_ticks().is_some();
            due = due.min(segment.anchors.tick_due(raft.last().index, timed, &self.setup.settings));
        }
        due.min(self.failover_wakeup(segment))
    }

    /// Carries out what the open segment's node and those of segments that are over want done.
    pub(crate) fn drain_segment(&mut self, now: Now, out: &mut Outbox) {
        self.carry_out(now, out);
        let speaks_early = self.setup.mutants.on(Mutant::AckBeforeOpen);
        for (epoch, retired) in &mut self.retired {
            for action in retired.raft.as_mut().map(|raft| raft.take()).unwrap_or_default() {
                match action {
                    Action::Persist { record, .. } => {
                        let ticket = self.protocol.allocate();
                        retired.tickets.note(ticket);
                        let record = LogRecord::segment(*epoch, &record);
                        out.push(Effect::Persist { ticket, record, prompt: false });
                    }
                    Action::Send { to, message, after }
                        if speaks_early && *epoch > self.control.fold.epoch() =>
                    {
                        let after = retired.tickets.to_node(after);
                        let bytes =
                            Bytes::from(encode(&PeerMessage::Segment { epoch: *epoch, bytes: message }));
                        out.push(Effect::Send { to, class: Class::Vote, after, bytes });
                    }
                    _ => {}
                }
            }
        }
        let mut budget = self.setup.settings.segment.apply_bytes;
        while let Some(segment) = &mut self.segment {
            let Some(raft) = &mut segment.raft else { break };
            let actions = raft.take();
            if actions.is_empty() && !(segment.unfinished && budget > 0) {
                break;
            }
            for action in actions {
                self.carry_out_segment(now, action, out);
            }
            self.execute_committed(now, &mut budget, out);
            self.carry_out(now, out);
        }
        self.tell_sealed(now, out);
    }

    fn carry_out_segment(&mut self, now: Now, action: Action, out: &mut Outbox) {
        let Some(segment) = &mut self.segment else { return };
        let epoch = segment.epoch;
        match action {
            Action::Persist { ticket: _, record, prompt } => {
                let ticket = self.protocol.allocate();
                segment.tickets.note(ticket);
                out.push(Effect::Persist { ticket, record: LogRecord::segment(epoch, &record), prompt });
            }
            Action::Send { to, message, after } => {
                let after = segment.tickets.to_node(after);
                let class = if message.len() > 1024 { Class::Order } else { Class::Vote };
                let bytes = Bytes::from(encode(&PeerMessage::Segment { epoch, bytes: message }));
                out.push(Effect::Send { to, class, after, bytes });
            }
            Action::Committed { through } => segment.committed = segment.committed.max(through),
            Action::MarkerCommitted { index } => segment.marker = Some(index),
            Action::ReadsReady { tokens, index } => segment.reads.ready.push_back((index, tokens)),
            Action::ReadsFailed { tokens } => {
                for token in tokens {
                    if let Some((client, id, _)) = segment.reads.waiting.remove(&token) {
                        let reason = "the leader changed: ask again, or order the read";
                        refuse_read(client, id, reason, Advice::Elsewhere, out);
                    }
                }
            }
            Action::LeaderChanged { term, leader } => {
                out.event(Event::LeaderChanged { epoch, term, leader });
                segment.failover.leader_changed(now, leader);
                self.pool.new_turn();
                if let Some(leader) = leader.filter(|leader| *leader != self.setup.me) {
                    self.show_all_to(leader, out);
                }
            }
            // Frames of replaced entries come back through whoever has them pending.
            Action::Replaced { from: _ } => self.pool.new_turn(),
            Action::Behind { follower, next: _ } => {
                self.send_one(follower, &PeerMessage::Behind { epoch }, Class::Vote, out);
            }
            Action::Refused { from, reason } => self.refuse_peer(from, reason, out),
        }
    }

    /// Whatever waits here, whoever orders from now on may not have.
    pub(crate) fn show_all_to(&self, orderer: ReplicaId, out: &mut Outbox) {
        for pending in self.pool.iter() {
            let message = PeerMessage::Request { to_all: false, frame: pending.frame.bytes().clone() };
            self.send_one(orderer, &message, Class::Request, out);
        }
    }

    /// Executes what is committed and held, as far as the budget of bytes goes: who has much to catch up with must not be
    /// deaf meanwhile, or a leader loses its followers and everybody their patience.
    fn execute_committed(&mut self, now: Now, budget: &mut usize, out: &mut Outbox) {
        loop {
            let Some(segment) = &mut self.segment else { return };
            segment.unfinished = false;
            let Some(raft) = &segment.raft else { return };
            if segment.applied.index >= segment.committed || self.diverged {
                return;
            }
            if *budget == 0 {
                segment.unfinished = true;
                return;
            }
            let entries = raft.entries(segment.applied.index.next(), segment.committed, *budget);
            if entries.is_empty() {
                return;
            }
            for entry in &entries {
                // An empty entry is work as well.
                *budget = budget.saturating_sub(entry.body.bytes().len().max(1));
                self.execute_entry(now, entry, out);
            }
        }
    }

    /// At the end of a recovery: executes what the replayed Anchors cover, so that this replica begins where it was.
    pub(crate) fn execute_anchored(&mut self, now: Now, out: &mut Outbox) {
        let Some(segment) = &mut self.segment else { return };
        let Some(raft) = &segment.raft else { return };
        segment.committed = segment.committed.max(raft.commit());
        let mut all = usize::MAX;
        self.execute_committed(now, &mut all, out);
    }

    /// Executes the next entry of the segment. Every index is one position, whatever it holds.
    pub(crate) fn execute_entry(&mut self, now: Now, entry: &Entry, out: &mut Outbox) {
        let position = self.live.append(&entry.digest());
        let chain = self.live.chain;
        let Some(segment) = &mut self.segment else { return };
        let (epoch, index) = (segment.epoch, segment.applied.index.next());
        segment.applied = Place { index, term: entry.term, chain };
        // Of q who vouch for what an Anchor covers one at least has verified it.
        let vouched = self.control.fold.segment().is_some_and(|known| index <= known.anchor.index);
        let own_clock = self.setup.mutants.on(Mutant::ExpiryByOwnClock).then_some(LogTime(now.wall_ms));
        let mut commands = Vec::new();
        match entry.payload() {
            Payload::Batch { time, frames } => {
                self.state.begin_entry(position, own_clock.unwrap_or(time));
                if !frames.is_empty() {
                    // Only clients' commands count: a leader that serves nobody may well go on ticking.
                    segment.failover.progressed(now);
                }
                commands = self.run_frames(now, &frames, !vouched, out);
            }
            Payload::Tick { time } => {
                self.state.begin_entry(position, own_clock.unwrap_or(time));
                self.note_tick();
            }
            // A no-op moves no time.
            Payload::Empty | Payload::Marker => self.state.begin_entry(position, LogTime::default()),
        }
        if let Some(segment) = &mut self.segment {
            segment.anchors.bytes_applied += entry.body.bytes().len() as u64;
        }
        if !self.recovering {
            out.event(Event::SegmentExecuted { epoch, index, position, chain, commands });
        }
    }

    /// A linearizable read that costs no entry: its id, what to read, and when to be answered.
    pub(crate) fn on_read(
        &mut self,
        now: Now,
        client: ClientId,
        (id, bytes, ack): (u64, Bytes, Option<Ack>),
        out: &mut Outbox,
    ) {
        let default = self.control.steering.policy.default_ack;
        let Some(segment) = self.segment.as_mut() else {
            return refuse_read(
                client,
                id,
                "no segment is open: order the read as a command",
                Advice::Order,
                out,
            );
        };
        if ack.unwrap_or(default) == Ack::Anchored {
            let reason = "no Anchor covers such a read: order it as a command, or ask for majority";
            return refuse_read(client, id, reason, Advice::Order, out);
        }
        let Some(raft) = &mut segment.raft else {
            // It takes no part in the segment; others do.
            return refuse_read(client, id, "Raft node not initialized", Advice::Elsewhere, out);
        };
        if self.diverged {
            let reason = "this replica's state diverged and is being replaced: ask another";
            return refuse_read(client, id, reason, Advice::Elsewhere, out);
        }
        if segment.reads.waiting.len() >= self.setup.settings.segment.limits.reads_max {
            return refuse_read(client, id, "too many reads wait: ask again soon", Advice::Elsewhere, out);
        }
        let token = segment.reads.next;
        match raft.read_index(now, token) {
            Ok(()) => {
                segment.reads.next += 1;
                segment.reads.waiting.insert(token, (client, id, bytes));
            }
            Err(ReadError::NotLeader { leader: Some(leader) }) => {
                let reason = alloc::format!("not the leader: ask replica {leader}");
                refuse_read(client, id, &reason, Advice::Leader(leader), out);
            }
            Err(ReadError::NotLeader { leader: None }) => {
                refuse_read(client, id, "no leader is known: ask again soon", Advice::Elsewhere, out);
            }
            Err(ReadError::Busy) => {
                refuse_read(client, id, "too many reads wait: ask again soon", Advice::Elsewhere, out);
            }
            Err(ReadError::Marker | ReadError::Sealed) => {
                let reason = "the segment is ending: order the read as a command";
                refuse_read(client, id, reason, Advice::Order, out);
            }
        }
    }

    fn answer_reads(&mut self, out: &mut Outbox) {
        let Some(segment) = &mut self.segment else { return };
        let applied = segment.applied.index;
        let mut answers = Vec::new();
        while segment.reads.ready.front().is_some_and(|(index, _)| *index <= applied) {
            let (_, tokens) = segment.reads.ready.pop_front().expect("it is there");
            answers.extend(tokens.iter().filter_map(|token| segment.reads.waiting.remove(token)));
        }
        for (client, id, bytes) in answers {
            let outcome = self.read_state(&bytes, ReadLabel::Crash);
            if outcome.is_ok() {
                self.count(READS_COUNTED);
            }
            let reply = ClientReply::Query { id, outcome };
            out.push(Effect::Reply { client, after: Ticket::ZERO, reply });
        }
    }

    /// The state is replaced: the segment's node keeps its promises meanwhile.
    pub(crate) fn park_segment(&mut self, out: &mut Outbox) {
        if let Some(SegmentNode { epoch, raft, tickets, body, reads, .. }) = self.segment.take() {
            for (client, id, _) in reads.waiting.into_values() {
                let reason = "the state is being replaced: ask again, or order the read";
                refuse_read(client, id, reason, Advice::Elsewhere, out);
            }
            self.retired.insert(epoch, Retired { raft, tickets, body });
        }
    }

    /// The segment is over here: its node keeps its promises and its entries for whoever lacks them.
    pub(crate) fn retire_segment(&mut self, now: Now, out: &mut Outbox) {
        let Some(segment) = self.segment.take() else { return };
        for (client, id, _) in segment.reads.waiting.into_values() {
            let reason = "the segment has ended: ask again, or order the read";
            refuse_read(client, id, reason, Advice::Order, out);
        }
        let SegmentNode { epoch, mut raft, tickets, body, .. } = segment;
        if let Some(raft) = &mut raft {
            // Nothing of this epoch is acknowledged after its Close.
            let _ = raft.seal(now);
        }
        self.retired.insert(epoch, Retired { raft, tickets, body });
        self.drop_oldest_segments();
    }

    /// Closed segments beyond `RETIRED_MAX` leave memory, though no durable snapshot covers them yet: a disk slower than the
    /// switches must not fill it. Their records stay on disk. Should this life execute such an epoch once more, it takes
    /// part as one that remembers nothing, and has its entries from others.
    fn drop_oldest_segments(&mut self) {
        while self.retired.len() > RETIRED_MAX {
            let Some((epoch, retired)) = self.retired.pop_first() else { return };
            let bodies = self.bodies.remove(&epoch).unwrap_or_default();
            let fetched = retired.body.iter().chain(&bodies).map(|body| body.first_ticket);
            let first = retired.tickets.first().into_iter().chain(fetched).min();
            self.remembers_from = self.remembers_from.max(Epoch(epoch.0 + 1));
            let earlier = self.dropped.and_then(|(_, ticket)| ticket);
            self.dropped = Some((epoch, earlier.into_iter().chain(first).min()));
            self.count("closed segments dropped from memory before a snapshot covered them");
        }
    }

    /// A snapshot that knows this much of the epochs is durable: says from which record of the log on segments still need
    /// it.
    pub(crate) fn forget_segments(
        &mut self,
        snapshot_epoch: Epoch,
        open_there: Option<Place>,
    ) -> Option<Ticket> {
        let mut needed: Option<Ticket> = None;
        let mut need = |ticket: Option<Ticket>| {
            needed = match (needed, ticket) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
        };
        let is_over =
            |epoch: Epoch| epoch < snapshot_epoch || (epoch == snapshot_epoch && open_there.is_none());
        let first = if open_there.is_some() { snapshot_epoch } else { Epoch(snapshot_epoch.0 + 1) };
        self.remembers_from = self.remembers_from.max(first);
        self.retired.retain(|epoch, _| !is_over(*epoch));
        self.remembered.retain(|epoch, _| !is_over(*epoch));
        self.bodies.retain(|epoch, _| !is_over(*epoch));
        self.dropped = self.dropped.filter(|(newest, _)| !is_over(*newest));
        need(self.dropped.and_then(|(_, first)| first));
        for retired in self.retired.values_mut() {
            if let Some(raft) = &retired.raft {
                need(retired.tickets.forget_before(raft.needed_from()));
            }
        }
        if let Some(segment) = &mut self.segment
            && let Some(raft) = &mut segment.raft
        {
            if let Some(place) = open_there.filter(|_| segment.epoch == snapshot_epoch) {
                raft.discard(place.index);
            }
            need(segment.tickets.forget_before(raft.needed_from()));
        }
        let in_use = self.segment.as_ref().and_then(|segment| segment.body.as_ref());
        let retired = self.retired.values().filter_map(|retired| retired.body.as_ref());
        for body in in_use.into_iter().chain(retired).chain(self.bodies.values().flatten()) {
            need(Some(body.first_ticket));
        }
        for records in self.remembered.values() {
            need(records.first().map(|(ticket, _)| *ticket));
        }
        needed
    }

    /// Who orders commands now, as far as this replica knows.
    pub(crate) fn orderer(&self) -> Option<ReplicaId> {
        match &self.segment {
            Some(segment) => segment.leader(),
            None => self.pbft.is_active().then(|| self.pbft.primary()),
        }
    }

    /// Why no segment serves although the mode is for one; empty when there is no reason to ask.
    pub(crate) fn why_no_segment(&self, now: Now) -> String {
        let steering = &self.control.steering;
        let is_open = self.control.fold.segment().is_some();
        let is_led = self.segment.as_ref().is_some_and(|open| open.leader().is_some());
        // In a young segment nobody is elected yet.
        if steering.mode == NetworkMode::Internet || is_open && (is_led || !steering.fails_often()) {
            return String::new();
        }
        if self.setup.raft.is_none() {
            return "Raft node not initialized".to_string();
        }
        let time = steering.time.max(LogTime(now.wall_ms));
        let reason = match steering.wants_segment(time) {
            _ if is_open => "the open one has no leader",
            Ok(()) => "one is about to open",
            Err(reason) => reason,
        };
        if !steering.fails_often() {
            return reason.to_string();
        }
        let failures = steering.failures;
        let timeout_ms = self.setup.settings.segment.timing.election_timeout.0 / 1_000;
        alloc::format!(
            "{reason}; {failures} in a row had to be left: is the election timeout, {timeout_ms} ms, well above a round \
             trip and a sync?"
        )
    }

    /// What must always hold of the open segment.
    pub(crate) fn check_segment(&self) {
        let open = self.control.fold.segment().map(|segment| segment.epoch);
        let blocked = !self.blocked.is_empty() || self.halted;
        assert!(
            blocked || open == self.segment.as_ref().map(|segment| segment.epoch),
            "a segment is open here exactly when it was ordered"
        );
        if let (Some(segment), Some(known)) = (&self.segment, self.control.fold.segment()) {
            assert!(segment.applied.chain == self.live.chain, "what is applied is the head of the log");
            let position = known.base.position.0 + segment.applied.index.0;
            assert!(self.live.position.0 == position, "every index is one position");
            if let Some(raft) = &segment.raft {
                raft.check();
            }
        } else if open.is_none() {
            assert!(self.live == self.control.fold.log(), "without a segment the root is the log");
        }
    }
}

fn refuse_read(client: ClientId, id: u64, reason: &str, advice: Advice, out: &mut Outbox) {
    let reply = ClientReply::Query { id, outcome: Err(Unanswered { reason: reason.to_string(), advice }) };
    out.push(Effect::Reply { client, after: Ticket::ZERO, reply });
}

/// Frames that the root deferred and that have not run yet: since when, by hash. Bounded by the deferred queue.
#[derive(Clone, Debug, Default)]
pub(crate) struct Unserved {
    since: BTreeMap<Hash, Micros>,
}

impl Unserved {
    pub(crate) fn add(&mut self, frame: Hash, now: Micros) {
        self.since.entry(frame).or_insert(now);
    }

    pub(crate) fn served(&mut self, frame: &Hash) {
        self.since.remove(frame);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.since.is_empty()
    }

    pub(crate) fn oldest(&self) -> Option<Micros> {
        self.since.values().min().copied()
    }
}
