//! Entries of a segment that this replica lacks when the segment ends: fetched from whoever holds them and believed only
//! when their chain leads from a place we trust, through the last Anchor, to the tail. Also the other side: serving them.

//!
//! What was fetched is a record of the log before it is used: a Close that others decided may be executed on the strength
//! of it, and what is acknowledged after that must not hang on the one disk it came from.

use crate::io::{Class, Effect};
use crate::replica::{Outbox, Replica};
use crate::segment::SegmentNode;
use crate::transfer::Purpose;
use crate::wire::{FetchedEntries, LogRecord, PeerMessage};
use alloc::collections::BTreeSet;
use alloc::vec::Vec;
use dwcp_base::limits::CLOCK_AHEAD_MAX_MS;
use dwcp_base::{Epoch, Index, LogTime, Micros, Mutant, Now, ReplicaId, Ticket};
use dwcp_log::{Place, VirtualLog};
use dwcp_raft::Entry;
use dwcp_state::StateMachine;

/// Bytes of entries in one answer.
const ANSWER_BYTES: usize = 1 << 20;
/// Bodies of one epoch kept beside the one in use.
const BODIES_MAX: usize = 4;
/// Bytes of entries fetched at most; a tail further away comes with a snapshot.
const BODY_BYTES_MAX: usize = 512 << 20;

/// A tail that goes ahead of our clock is taken all the same when the segment could not be closed without it for so long:
/// too few others may be left to choose from. Longer than it takes to replace a primary that wants it.
const AHEAD_PATIENCE: Micros = Micros::from_millis(30_000);

/// Entries behind `from`, verified to lead to `tail`.
#[derive(Clone)]
pub(crate) struct Body {
    pub from: VirtualLog,
    pub from_index: Index,
    pub entries: Vec<Entry>,
    pub tail: Place,
    /// The first record that holds it; the log is kept from there.
    pub first_ticket: Ticket,
}

/// Tails that gave way to another and are remembered.
const EARLIER_MAX: usize = 8;

/// A tail on its way.
pub(crate) struct Fetch {
    pub epoch: Epoch,
    pub tail: Place,
    from: VirtualLog,
    from_index: Index,
    entries: Vec<Entry>,
    bytes: usize,
    donor: Option<ReplicaId>,
    /// Donors whose entries did not lead to the tail, or who have none.
    useless: BTreeSet<ReplicaId>,
    pub deadline: Micros,
    /// Since when somebody who claims this tail has shown nothing; goes on where it stood when a tail is taken up again.
    pub since: Micros,
    begun: Micros,
    /// A decided Close waits for it; otherwise one that may be proposed or prepared.
    decided: bool,
    /// Tails that gave way to this one, and their `since`.
    earlier: Vec<(Place, Micros)>,
    /// How often everybody was asked in vain.
    rounds: u32,
}

impl<M: StateMachine> Replica<M> {
    /// Asks for what is missing up to this tail of the open segment: from its last Anchor, which is what it takes to judge and
    /// to show it.
    pub(crate) fn fetch_tail(&mut self, now: Now, tail: Place, decided: bool, out: &mut Outbox) {
        let Some(segment) = self.control.fold.segment() else { return };
        let anchored = segment.anchored();
        let from = segment.ends(&anchored).expect("the fold has seen to it");
        self.fetch_from(now, (from, anchored.index), tail, decided, out);
    }

    /// Asks for all that it takes to execute up to this tail of a decided Close.
    pub(crate) fn fetch_to_execute(&mut self, now: Now, tail: Place, out: &mut Outbox) {
        let Some(open) = &self.segment else { return };
        let from = match open.begins(&tail) {
            Some((_, true)) => (open.anchors.frozen.log, open.anchors.frozen.place.index),
            _ => (self.live, open.applied.index),
        };
        self.fetch_from(now, from, tail, true, out);
    }

    fn fetch_from(
        &mut self,
        now: Now,
        (from, from_index): (VirtualLog, Index),
        tail: Place,
        decided: bool,
        out: &mut Outbox,
    ) {
        let Some(epoch) = self.control.fold.segment().map(|segment| segment.epoch) else { return };
        let patience = self.setup.settings.timing.resend_interval.times(4);
        if let Some(fetch) = self.fetch.as_mut().filter(|fetch| fetch.epoch == epoch) {
            if fetch.tail == tail && fetch.from_index <= from_index {
                fetch.decided |= decided;
                return;
            }
            // Several tails may be wanted at once, for one of the claims is a lie. What is decided goes first, and the
            // others take turns: each change begins with a question to somebody.
            let busy = fetch.tail != tail && now.mono.since(fetch.begun) < patience;
            let stays = if fetch.decided == decided { busy } else { fetch.decided };
            if stays {
                return;
            }
        }
        if from_index >= tail.index || self.recall_body(epoch, (from, from_index), &tail) {
            return;
        }
        let mut earlier = Vec::new();
        if let Some(gone) = self.fetch.take().filter(|fetch| fetch.epoch == epoch) {
            earlier = gone.earlier;
            earlier.push((gone.tail, gone.since));
            if earlier.len() > EARLIER_MAX {
                earlier.remove(0);
            }
        }
        let known = earlier.iter().position(|(place, _)| *place == tail);
        let since = known.map_or(now.mono, |place| earlier.remove(place).1);
        self.fetch = Some(Fetch {
            epoch,
            tail,
            from,
            from_index,
            entries: Vec::new(),
            bytes: 0,
            donor: None,
            useless: BTreeSet::new(),
            deadline: now.mono,
            since,
            begun: now.mono,
            decided,
            earlier,
            rounds: 0,
        });
        self.ask_entries(now, out);
    }

    /// Asks the next donor, or the present one for what follows.
    fn ask_entries(&mut self, now: Now, out: &mut Outbox) {
        let patience = self.setup.settings.timing.resend_interval.times(4);
        let claims: Vec<ReplicaId> = self
            .segment
            .iter()
            .flat_map(|segment| {
                segment.failover.reports.claimants(self.fetch.as_ref().map(|fetch| fetch.tail))
            })
            .collect();
        let n = self.pbft.quorum().n();
        let me = self.setup.me;
        let down = &self.down;
        let Some(fetch) = &mut self.fetch else { return };
        if fetch.donor.is_none() {
            // Who says that its log ends there first, then everybody.
            let others = (0..n).map(ReplicaId);
            let mut candidates = claims.into_iter().chain(others);
            let chosen = candidates.find(|id| *id != me && !fetch.useless.contains(id) && !down.contains(id));
            if chosen.is_none() {
                fetch.useless.clear();
                fetch.rounds += 1;
            }
            fetch.donor = chosen;
        }
        fetch.deadline = now.mono.plus(patience);
        let from = Index(fetch.from_index.0 + fetch.entries.len() as u64 + 1);
        let message = PeerMessage::FetchEntries { epoch: fetch.epoch, from, tail: fetch.tail };
        let in_vain = fetch.rounds > 1 && fetch.donor.is_none();
        if let Some(donor) = fetch.donor {
            self.send_one(donor, &message, Class::Vote, out);
        }
        if in_vain && let Some((decided, _)) = self.blocked.front() {
            // Nobody keeps these entries any more. Whoever discarded them has a snapshot of the segment that covers them; one
            // behind the Close may never come, for a checkpoint may take our own voice.
            let closes = decided.certificate.claim.sequence;
            let anchored = self.control.fold.segment().map(|segment| segment.anchored().index);
            let ahead = self
                .segment
                .as_ref()
                .zip(anchored)
                .and_then(|(open, anchored)| open.anchors.ahead_of(open.applied.index, anchored));
            let epoch = self.control.fold.epoch();
            let purpose = ahead.map_or(Purpose::Old, |_| Purpose::Segment(epoch));
            self.start_transfer(now, ahead.unwrap_or(closes), purpose, out);
        }
    }

    pub(crate) fn fetch_on_time(&mut self, now: Now, out: &mut Outbox) {
        let Some(fetch) = &mut self.fetch else { return };
        let over = self.control.fold.segment().is_none_or(|segment| segment.epoch != fetch.epoch);
        if over {
            self.fetch = None;
            return;
        }
        if now.mono < fetch.deadline {
            return;
        }
        if let Some(donor) = fetch.donor.take() {
            fetch.useless.insert(donor);
            fetch.entries.clear();
            fetch.bytes = 0;
        }
        self.ask_entries(now, out);
    }

    pub(crate) fn on_fetch_entries(
        &mut self,
        from: ReplicaId,
        epoch: Epoch,
        first: Index,
        tail: Place,
        out: &mut Outbox,
    ) {
        let open = self.segment.as_ref().filter(|segment| segment.epoch == epoch);
        let over = self.retired.get(&epoch);
        let raft = open.and_then(|segment| segment.raft.as_ref());
        let raft = raft.or_else(|| over.and_then(|retired| retired.raft.as_ref()));
        let own = |through| raft.map_or_else(Vec::new, |raft| raft.entries(first, through, ANSWER_BYTES));
        // Several tails may be wanted at once, and what was fetched for one of them leads to no other.
        let in_use = open.and_then(|segment| segment.body.as_ref());
        let in_use = in_use.into_iter().chain(over.and_then(|retired| retired.body.as_ref()));
        let mut bodies = in_use.chain(self.bodies.get(&epoch).into_iter().flatten());
        let fetched = bodies.find(|body| body.tail == tail);
        let entries = match fetched {
            _ if raft.is_some_and(|raft| raft.place(tail.index) == Some(tail)) => own(tail.index),
            Some(body) if first > body.from_index => body.part(first, ANSWER_BYTES),
            // Up to where the fetched part begins our own log serves.
            Some(body) => own(body.from_index),
            // Perhaps a part of the way.
            None => own(tail.index),
        };
        self.send_one(from, &PeerMessage::Entries { epoch, first, entries }, Class::Bulk, out);
    }

    pub(crate) fn on_entries(
        &mut self,
        now: Now,
        from: ReplicaId,
        epoch: Epoch,
        first: Index,
        entries: Vec<Entry>,
        out: &mut Outbox,
    ) {
        let Some(fetch) = &mut self.fetch else { return };
        let expected = fetch.from_index.0 + fetch.entries.len() as u64 + 1;
        if fetch.epoch != epoch || fetch.donor != Some(from) || first.0 != expected {
            return;
        }
        let left = fetch.tail.index.0.saturating_sub(expected - 1);
        if entries.is_empty() || entries.len() as u64 > left {
            fetch.useless.insert(from);
            fetch.donor = None;
            return self.ask_entries(now, out);
        }
        fetch.bytes += entries.iter().map(|entry| entry.body.bytes().len()).sum::<usize>();
        fetch.entries.extend(entries);
        if (fetch.entries.len() as u64) < fetch.tail.index.0 - fetch.from_index.0 {
            if fetch.bytes > BODY_BYTES_MAX {
                self.fetch = None;
                return self.count("tails too far away to fetch entry by entry");
            }
            return self.ask_entries(now, out);
        }
        self.take_body(now, from, out);
    }

    /// All is there: it is believed if its chain says so.
    fn take_body(&mut self, now: Now, from: ReplicaId, out: &mut Outbox) {
        let Some(anchor) = self.control.fold.segment().map(|segment| segment.anchored()) else { return };
        let latest = LogTime(now.wall_ms + CLOCK_AHEAD_MAX_MS).max(self.state.log_time());
        let Some(fetch) = &mut self.fetch else { return };
        let mut is_ahead = false;
        let mut log = fetch.from;
        let mut through_anchor = fetch.from_index >= anchor.index;
        for (index, entry) in (fetch.from_index.0 + 1..).zip(&fetch.entries) {
            log.append(&entry.digest());
            through_anchor |= index == anchor.index.0 && log.chain == anchor.chain;
            is_ahead |= index > anchor.index.0 && entry.body.time().is_some_and(|time| time > latest);
        }
        let last_term = fetch.entries.last().map(|entry| entry.term);
        let leads_there =
            log.chain == fetch.tail.chain && last_term == Some(fetch.tail.term) && through_anchor;
        let mut reason = (!leads_there).then_some("entries that do not lead to the tail");
        // Where no Anchor covers it, only the log of a liar or of somebody with a wrong clock goes far ahead of ours: while
        // another tail may be chosen, it is not taken. What is decided is decided.
        if leads_there && is_ahead && !fetch.decided && !self.setup.mutants.on(Mutant::ClockUnchecked) {
            let known = self.ahead.filter(|(tail, _)| *tail == fetch.tail);
            let (_, since) = *self.ahead.insert(known.unwrap_or((fetch.tail, now.mono)));
            reason = (now.mono.since(since) < AHEAD_PATIENCE).then_some("entries from the future");
        }
        if let Some(reason) = reason {
            fetch.useless.insert(from);
            fetch.donor = None;
            fetch.entries.clear();
            fetch.bytes = 0;
            self.count(reason);
            return self.ask_entries(now, out);
        }
        let Some(Fetch { epoch, from, from_index, entries, tail, .. }) = self.fetch.take() else { return };
        let mut body = Body { from, from_index, entries, tail, first_ticket: Ticket::ZERO };
        self.write_body(now, epoch, &mut body, out);
        self.keep_body(epoch, body);
    }

    /// Writes down what was fetched, in records of bounded size.
    fn write_body(&mut self, now: Now, epoch: Epoch, body: &mut Body, out: &mut Outbox) {
        self.carry_out(now, out);
        let Body { mut from, mut from_index, tail, .. } = *body;
        while from_index < tail.index {
            let entries = body.part(from_index.next(), ANSWER_BYTES);
            let record = FetchedEntries { epoch, tail, from, from_index, entries };
            let ticket = self.protocol.allocate();
            out.push(Effect::Persist { ticket, record: LogRecord::fetched(&record), prompt: false });
            for entry in &record.entries {
                from.append(&entry.digest());
            }
            from_index = Index(from_index.0 + record.entries.len() as u64);
            if body.first_ticket == Ticket::ZERO {
                body.first_ticket = ticket;
            }
            self.body_ticket = ticket;
        }
    }

    /// The body in use now; the one before it stays at hand, for a Close that needs it may have been prepared.
    fn keep_body(&mut self, epoch: Epoch, body: Body) {
        let Some(segment) = self.segment.as_mut().filter(|segment| segment.epoch == epoch) else { return };
        if let Some(before) = segment.body.replace(body) {
            let others = self.bodies.entry(epoch).or_default();
            if others.len() >= BODIES_MAX {
                others.remove(0);
            }
            others.push(before);
        }
    }

    /// Takes up again what was fetched earlier, maybe in an earlier life. False when nothing leads from there to this tail.
    fn recall_body(&mut self, epoch: Epoch, (from, from_index): (VirtualLog, Index), tail: &Place) -> bool {
        let Some(others) = self.bodies.get_mut(&epoch) else { return false };
        let passes = |body: &Body| body.place_chain(from_index) == Some(from.chain);
        let fits = |body: &Body| body.tail == *tail && passes(body) && body.leads_to_tail();
        let Some(place) = others.iter().position(fits) else { return false };
        let body = others.remove(place);
        self.keep_body(epoch, body);
        true
    }

    /// An Anchor was executed. What was fetched and does not pass it ends no segment any more, though it passed the Anchor
    /// before: only a liar has such a log.
    pub(crate) fn drop_bodies_beside(&mut self, epoch: Epoch, anchored: Place) {
        if self.setup.mutants.on(Mutant::CloseBelowAnchor) {
            return;
        }
        let beside = |body: &Body| {
            let inside = body.from_index <= anchored.index && anchored.index <= body.tail.index;
            inside && body.place_chain(anchored.index).is_some_and(|chain| chain != anchored.chain)
        };
        if let Some(open) = self.segment.as_mut().filter(|open| open.epoch == epoch) {
            open.body.take_if(|body| beside(body));
        }
        if let Some(others) = self.bodies.get_mut(&epoch) {
            others.retain(|body| !beside(body));
        }
    }

    /// A record of the log is taken back.
    pub(crate) fn replay_fetched(&mut self, ticket: Ticket, record: FetchedEntries) {
        let FetchedEntries { epoch, tail, from, from_index, entries } = record;
        let bodies = self.bodies.entry(epoch).or_default();
        if let Some(body) = bodies.last_mut()
            && body.tail == tail
            && body.from_index.0 + body.entries.len() as u64 == from_index.0
        {
            body.entries.extend(entries);
        } else {
            bodies.push(Body { from, from_index, entries, tail, first_ticket: ticket });
        }
    }

    /// Whether all entries from what is executed here to this tail are at hand.
    pub(crate) fn can_execute_to(&self, tail: &Place) -> bool {
        let (Some(open), Some(segment)) = (&self.segment, self.control.fold.segment()) else { return true };
        let anchor = segment.anchored();
        open.begins(tail).is_some_and(|(from, _)| open.source(from, tail, &anchor).is_some())
    }

    /// The entries that lead from what is executed here to the tail of a Close, through the last Anchor of its epoch, and how
    /// many executed ones are not part of it: those were rolled back first.
    pub(crate) fn take_tail(
        &mut self,
        now: Now,
        tail: Place,
        anchor: &Place,
        out: &mut Outbox,
    ) -> (Vec<Entry>, u64) {
        let begins = self.segment.as_ref().and_then(|open| open.begins(&tail));
        let rolled_back = match begins {
            Some((_, true)) => self.roll_back(now, out),
            _ => 0,
        };
        let Some(open) = &self.segment else { return (Vec::new(), rolled_back) };
        let first = open.applied.index.next();
        let entries = match (open.source(open.applied.index, &tail, anchor), &open.raft, open.body_to(&tail))
        {
            (Some(Source::OwnLog), Some(raft), _) => raft.entries(first, tail.index, usize::MAX),
            (Some(Source::Fetched), raft, Some(body)) => {
                // Up to where the fetched part begins our own log serves.
                let raft = raft.as_ref().filter(|_| first <= body.from_index);
                let mut entries =
                    raft.map(|raft| raft.entries(first, body.from_index, usize::MAX)).unwrap_or_default();
                entries.extend(body.part(first.max(body.from_index.next()), usize::MAX));
                entries
            }
            _ => Vec::new(),
        };
        (entries, rolled_back)
    }
}

/// Where entries are taken from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// There are none to take.
    Nowhere,
    OwnLog,
    Fetched,
}

impl<M: StateMachine> SegmentNode<M> {
    fn body_to(&self, tail: &Place) -> Option<&Body> {
        self.body.as_ref().filter(|body| body.tail == *tail)
    }

    /// Where the entries behind `from` that lead to the tail are.
    fn source(&self, from: Index, tail: &Place, anchor: &Place) -> Option<Source> {
        if from == tail.index {
            return Some(Source::Nowhere);
        }
        // Our own log, unless its beginning is gone.
        let own = self.raft.as_ref().filter(|raft| raft.border().index <= from);
        if own.is_some_and(|raft| raft.place(tail.index) == Some(*tail)) {
            return Some(Source::OwnLog);
        }
        let body = self.body_to(tail)?;
        // Up to the Anchor our own log serves, if it is the same.
        let joins = body.from_index <= anchor.index
            && own.and_then(|raft| raft.place(anchor.index)).is_some_and(|place| place.chain == anchor.chain);
        (body.from_index <= from || joins).then_some(Source::Fetched)
    }

    /// From where entries have to be executed to come to this tail, and whether what is executed behind that has to be taken
    /// back first. `None` when it cannot be told with what is here.
    fn begins(&self, tail: &Place) -> Option<(Index, bool)> {
        let applied = self.applied;
        let own = self.raft.as_ref().filter(|raft| raft.place(tail.index) == Some(*tail));
        // Where nothing is executed there is nothing to compare: the place before the first entry has no chain of its own.
        let agrees = |chain: Option<dwcp_base::Hash>| {
            applied.index == Index::ZERO || chain.is_none_or(|chain| chain == applied.chain)
        };
        let is_prefix = match (own, self.body_to(tail)) {
            _ if applied.index >= tail.index => applied.index == tail.index && agrees(Some(tail.chain)),
            (Some(raft), _) => agrees(raft.place(applied.index).map(|place| place.chain)),
            (None, Some(body)) => agrees(body.place_chain(applied.index)),
            (None, None) => return None,
        };
        let from = if is_prefix { applied.index } else { self.anchors.frozen.place.index };
        Some((from, !is_prefix))
    }
}

impl Body {
    /// Whether all of it is there: records at the end of a log may be torn off.
    fn leads_to_tail(&self) -> bool {
        self.place_chain(self.tail.index) == Some(self.tail.chain)
    }

    /// Entries from `first` on, which lies behind `from_index`: at least one if there is one, then as many as fit.
    fn part(&self, first: Index, bytes_max: usize) -> Vec<Entry> {
        let skip = usize::try_from(first.0 - self.from_index.0 - 1).unwrap_or(usize::MAX);
        let mut bytes = 0;
        let mut taken = Vec::new();
        for entry in self.entries.iter().skip(skip) {
            bytes += entry.body.bytes().len();
            if !taken.is_empty() && bytes > bytes_max {
                break;
            }
            taken.push(entry.clone());
        }
        taken
    }

    /// The chain at this index, if it lies inside.
    fn place_chain(&self, index: Index) -> Option<dwcp_base::Hash> {
        let steps = usize::try_from(index.0.checked_sub(self.from_index.0)?).ok()?;
        let mut log = self.from;
        for entry in self.entries.get(..steps)? {
            log.append(&entry.digest());
        }
        Some(log.chain)
    }
}
