//! The world around the nodes, from one seed: a net that drops, delays, reorders, doubles and cuts; disks that are slow
//! and forget what was not synced; clocks that drift and stand still; and a caller who does what the contract of
//! `RaftNode` asks of it, no more. Everything a node says or does goes to the judge. Schedules and stories drive it.

mod caller;
mod carry;
mod listen;

use crate::judge::Judge;
use crate::rule::Rule;
use crate::subject::Subject;
use bytes::Bytes;
use dwcp_base::{Chance, Epoch, Hash, Micros, Now, Position, ReplicaId, Ticket};
use dwcp_log::VirtualLog;
use dwcp_raft::{Index, Kind, Limits, Place, RaftNode, Sealed, SegmentSetup, Term, Timing};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Messages kept for replay.
const OLD_MESSAGES_MAX: usize = 256;

/// How the net treats a message, per link direction alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weather {
    pub loss_per_mille: u64,
    pub double_per_mille: u64,
    pub delay_us: (u64, u64),
    /// Now and then a message is late by much more.
    pub late_per_mille: u64,
    pub late_us: u64,
}

impl Weather {
    pub const CALM: Self =
        Self { loss_per_mille: 0, double_per_mille: 0, delay_us: (200, 900), late_per_mille: 0, late_us: 0 };
}

/// One member's machine.
#[derive(Debug)]
pub struct Seat {
    pub id: ReplicaId,
    pub node: Option<Box<dyn RaftNode>>,
    pub life: u32,
    /// What is on disk, with the tickets of the present life.
    records: VecDeque<(Ticket, Bytes)>,
    pending: VecDeque<(Ticket, Bytes)>,
    syncing: bool,
    pub durable: Ticket,
    pub disk_us: (u64, u64),
    /// Nothing is synced while this is set.
    pub disk_stuck: bool,
    waiting: Vec<(Ticket, Letter)>,
    pub applied: Index,
    born_us: u64,
    /// Local microseconds at `since_us`, and how fast they go.
    local_us: u64,
    since_us: u64,
    pub rate_per_mille: u64,
    wake_mark: u64,
    quick_wakes: u32,
    pub sealed: Option<Sealed>,
    pub seal_durable: bool,
    told_leader: Option<Option<ReplicaId>>,
    told_marker: bool,
    told_refused: u64,
    term: Term,
    commit: Index,
    pub bytes_sent: BTreeMap<ReplicaId, u64>,
}

/// A message on its way, or one that was.
#[derive(Clone, Debug)]
pub struct Letter {
    pub from: usize,
    pub to: usize,
    pub bytes: Bytes,
    sent_us: u64,
    /// The sender was neither sealed nor held a Marker when it spoke.
    free: bool,
}

#[derive(Debug)]
enum Event {
    Deliver(Letter),
    Synced { seat: usize, life: u32, through: Ticket },
    Wake { seat: usize, mark: u64 },
    Snapshot { from: usize, to: usize, next: Index },
    Restart { seat: usize },
}

/// A node opened from what one seat's disk holds, to see what a crash would leave.
#[derive(Debug)]
struct Shadow {
    of: (u32, Ticket, usize),
    node: Box<dyn RaftNode>,
}

pub struct World<'a> {
    pub subject: &'a dyn Subject,
    pub template: SegmentSetup,
    pub now_us: u64,
    order: u64,
    queue: BTreeMap<(u64, u64), Event>,
    pub seats: Vec<Seat>,
    shadows: Vec<Option<Shadow>>,
    pub weather: Weather,
    /// Directions that carry nothing.
    pub cuts: BTreeSet<(usize, usize)>,
    /// Directions on which whatever asks to append is lost.
    pub no_entries: BTreeSet<(usize, usize)>,
    pub judge: Judge,
    /// How often costly judges look, in a thousand.
    pub looks_per_mille: u64,
    chance: Chance,
    next_number: u64,
    next_token: u64,
    dirty: BTreeSet<usize>,
    pub old_messages: VecDeque<Letter>,
    snapshots_due: BTreeSet<(usize, usize)>,
    marker_proposed: bool,
    pub trace: bool,
}

impl core::fmt::Debug for World<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("World")
            .field("now_us", &self.now_us)
            .field("seats", &self.seats)
            .finish_non_exhaustive()
    }
}

/// Where every history of the suite stands in the virtual log.
#[must_use]
pub fn base() -> VirtualLog {
    VirtualLog { position: Position(1_000), chain: Hash::of(b"conformance") }
}

/// The epoch of every history.
pub const EPOCH: Epoch = Epoch(7);

impl<'a> World<'a> {
    /// `count` members, all up, whose ids are not their seats.
    #[must_use]
    pub fn new(
        subject: &'a dyn Subject,
        part: &'static str,
        seed: u64,
        count: usize,
        timing: Timing,
        limits: Limits,
    ) -> Self {
        let members: Vec<ReplicaId> =
            (0..count).map(|seat| ReplicaId(u8::try_from(seat * 2 + 1).expect("few seats"))).collect();
        let template = SegmentSetup {
            epoch: EPOCH,
            me: members[0],
            members: members.clone(),
            first_leader: None,
            base: base(),
            timing,
            limits,
            seed,
            mutants: subject.mutants(),
        };
        let seats = members.iter().map(|id| Seat::new(*id)).collect();
        let mut world = Self {
            subject,
            template,
            now_us: 1_000,
            order: 0,
            queue: BTreeMap::new(),
            seats,
            shadows: (0..count).map(|_| None).collect(),
            weather: Weather::CALM,
            cuts: BTreeSet::new(),
            no_entries: BTreeSet::new(),
            judge: Judge::new(subject.name(), part, seed, count, base()),
            looks_per_mille: 1_000,
            chance: Chance::new(seed).fork("world"),
            next_number: 1,
            next_token: 1,
            dirty: BTreeSet::new(),
            old_messages: VecDeque::new(),
            snapshots_due: BTreeSet::new(),
            marker_proposed: false,
            trace: std::env::var_os("CONFORMANCE_TRACE").is_some(),
        };
        for seat in 0..count {
            world.open(seat);
        }
        world
    }

    fn note(&self, line: impl FnOnce() -> String) {
        if self.trace {
            eprintln!("{:>9} {}", self.now_us, line());
        }
    }

    #[must_use]
    pub fn ok(&self) -> bool {
        self.judge.found.is_none()
    }

    #[must_use]
    pub fn seat_of(&self, id: ReplicaId) -> Option<usize> {
        self.seats.iter().position(|seat| seat.id == id)
    }

    #[must_use]
    pub fn node(&self, seat: usize) -> Option<&dyn RaftNode> {
        self.seats[seat].node.as_deref()
    }

    #[must_use]
    pub fn setup(&self, seat: usize) -> SegmentSetup {
        let me = self.seats[seat].id;
        let seed = self.template.seed.wrapping_mul(31).wrapping_add(u64::from(me.0))
            ^ (u64::from(self.seats[seat].life) << 40);
        SegmentSetup { me, seed, ..self.template.clone() }
    }

    /// The seat with the latest term among those that say they lead.
    #[must_use]
    pub fn leader(&self) -> Option<usize> {
        (0..self.seats.len())
            .filter_map(|seat| Some((self.node(seat).filter(|node| node.is_leader())?.term(), seat)))
            .max()
            .map(|(_, seat)| seat)
    }

    fn push(&mut self, at_us: u64, event: Event) {
        self.order += 1;
        self.queue.insert((at_us.max(self.now_us), self.order), event);
    }

    // --- lives -------------------------------------------------------------------------------------------------------

    /// Opens the seat's node from its disk.
    pub fn open(&mut self, s: usize) {
        if self.seats[s].node.is_some() {
            return;
        }
        let local_us = 1_000 + self.chance.below(1_000_000);
        let seat = &mut self.seats[s];
        seat.life += 1;
        (seat.born_us, seat.local_us, seat.since_us) = (self.now_us, local_us, self.now_us);
        // Tickets count replayed records from 1.
        for (number, (ticket, _)) in seat.records.iter_mut().enumerate() {
            *ticket = Ticket(number as u64 + 1);
        }
        seat.durable = Ticket(seat.records.len() as u64);
        seat.pending.clear();
        seat.waiting.clear();
        seat.syncing = false;
        (seat.told_leader, seat.told_marker, seat.quick_wakes) = (None, false, 0);
        (seat.term, seat.commit) = (Term::ZERO, Index::ZERO);
        let records: Vec<Bytes> = seat.records.iter().map(|(_, record)| record.clone()).collect();
        let now = self.now(s);
        match self.subject.maker().open(self.setup(s), &records, now) {
            Ok(node) => {
                let was = self.seats[s].sealed.filter(|_| self.seats[s].seal_durable);
                self.judge.hold(
                    Rule::SealIsTrue,
                    was.is_none() || node.sealed() == was.map(|w| w.point),
                    || format!("seat {s} sealed {was:?} and says {:?} after a restart", node.sealed()),
                );
                self.seats[s].sealed =
                    node.sealed().map(|point| Sealed { point, ticket: Ticket(records.len() as u64) });
                self.seats[s].seal_durable = node.sealed().is_some();
                self.seats[s].applied = node.border().index;
                self.note(|| format!("seat {s} opens with {} records: {:?}", records.len(), node.last()));
                self.seats[s].node = Some(node);
                self.dirty.insert(s);
                self.settle();
            }
            Err(error) => self
                .judge
                .broken(Rule::RestartKeepsPromises, format!("seat {s} cannot open its own records: {error}")),
        }
    }

    /// Takes the power away. Of what was not synced a chance-given beginning survives; of `keep` nothing does.
    pub fn crash(&mut self, s: usize, lose_all: bool) {
        if self.seats[s].node.take().is_none() {
            return;
        }
        let unsynced = self.seats[s].pending.len() as u64;
        let kept = if lose_all { 0 } else { self.chance.between(0, unsynced) };
        let seat = &mut self.seats[s];
        for _ in 0..kept {
            let record = seat.pending.pop_front().expect("no more are kept than were there");
            seat.records.push_back(record);
        }
        let through = seat.records.back().map_or(Ticket::ZERO, |(ticket, _)| *ticket);
        seat.durable = seat.durable.max(through);
        if let Some(sealed) = seat.sealed {
            seat.seal_durable = sealed.ticket <= seat.durable;
            seat.sealed = seat.sealed.filter(|_| seat.seal_durable);
        }
        seat.pending.clear();
        seat.waiting.clear();
        seat.life += 1;
        self.dirty.remove(&s);
        self.judge.on_crash(s);
        if kept < unsynced {
            self.judge.count("crashes that lost records");
        }
        self.note(|| format!("seat {s} crashes, {kept} of {unsynced} unsynced records survive"));
    }

    pub fn restart_in(&mut self, s: usize, in_us: u64) {
        self.push(self.now_us + in_us, Event::Restart { seat: s });
    }

    // --- clocks ------------------------------------------------------------------------------------------------------

    #[must_use]
    pub fn now(&self, s: usize) -> Now {
        let seat = &self.seats[s];
        let mono = seat.local_us + (self.now_us - seat.since_us) * seat.rate_per_mille / 1_000;
        Now { mono: Micros(mono), wall_ms: 1_700_000_000_000 + self.now_us / 1_000 }
    }

    /// From now on the seat's clock goes at this rate; 0 stands still.
    pub fn set_clock(&mut self, s: usize, rate_per_mille: u64) {
        let mono = self.now(s).mono.0;
        let seat = &mut self.seats[s];
        (seat.local_us, seat.since_us, seat.rate_per_mille) = (mono, self.now_us, rate_per_mille);
        self.plan_wake(s);
    }

    fn plan_wake(&mut self, s: usize) {
        let mono = self.now(s).mono.0;
        let seat = &mut self.seats[s];
        let Some(node) = &seat.node else { return };
        seat.wake_mark += 1;
        let (due, rate, mark) = (node.next_wakeup(), seat.rate_per_mille, seat.wake_mark);
        if due == Micros::NEVER || rate == 0 {
            return;
        }
        let wait = due.0.saturating_sub(mono).saturating_mul(1_000).div_ceil(rate).clamp(1, 1 << 40);
        self.push(self.now_us + wait, Event::Wake { seat: s, mark });
    }

    // --- time --------------------------------------------------------------------------------------------------------

    pub fn run_for(&mut self, us: u64) {
        self.run_until(self.now_us + us);
    }

    /// Lets everything happen that is due by then.
    pub fn run_until(&mut self, at_us: u64) {
        self.settle();
        while self.ok() {
            let Some((&(due, order), _)) = self.queue.first_key_value() else { break };
            if due > at_us {
                break;
            }
            self.now_us = due;
            self.judge.now_us = due;
            let event = self.queue.remove(&(due, order)).expect("it was just seen");
            self.happen(event);
            // What is due at the same time comes in one burst.
            if self.queue.first_key_value().is_none_or(|(&(next, _), _)| next > due) {
                self.settle();
            }
        }
        self.now_us = self.now_us.max(at_us);
        self.judge.now_us = self.now_us;
    }

    /// Runs until the condition holds, at most so long; says whether it did.
    pub fn run_to(&mut self, us: u64, mut holds: impl FnMut(&Self) -> bool) -> bool {
        let end = self.now_us + us;
        while self.ok() && self.now_us < end {
            if holds(self) {
                return true;
            }
            let next = self.queue.first_key_value().map_or(end, |(&(due, _), _)| due.min(end));
            self.run_until(next.max(self.now_us + 1));
        }
        self.ok() && holds(self)
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Deliver(letter) => self.deliver(&letter),
            Event::Synced { seat, life, through } => self.on_synced(seat, life, through),
            Event::Wake { seat, mark } => {
                if self.seats[seat].wake_mark == mark {
                    let now = self.now(seat);
                    if let Some(node) = self.seats[seat].node.as_deref_mut() {
                        node.tick(now);
                        self.dirty.insert(seat);
                        let soon = node.next_wakeup() <= now.mono;
                        self.seats[seat].quick_wakes =
                            if soon { self.seats[seat].quick_wakes + 1 } else { 0 };
                        let quick = self.seats[seat].quick_wakes;
                        self.judge.hold(Rule::FaceIsConsistent, quick < 100, || {
                            format!("seat {seat} wants to be woken at once after {quick} ticks")
                        });
                    }
                }
            }
            Event::Snapshot { from, to, next } => self.install(from, to, next),
            Event::Restart { seat } => self.open(seat),
        }
    }

    fn finish(&mut self, s: usize) {
        self.dirty.insert(s);
        self.settle();
    }

    fn settle(&mut self) {
        while let Some(s) = self.dirty.pop_first() {
            let now = self.now(s);
            let Some(node) = self.seats[s].node.as_deref_mut() else { continue };
            node.settle(now);
            let actions = node.take();
            for action in actions {
                self.act(s, action);
            }
            self.observe(s);
            self.plan_wake(s);
        }
    }

    // --- ends --------------------------------------------------------------------------------------------------------

    /// Ends every fault: all up, net and disks well, clocks true.
    pub fn heal(&mut self) {
        self.weather = Weather::CALM;
        self.cuts.clear();
        self.no_entries.clear();
        for s in 0..self.seats.len() {
            self.seats[s].disk_us = (100, 600);
            self.unstick(s);
            self.set_clock(s, 1_000);
            self.open(s);
        }
    }

    /// How long everything may take once the faults are over.
    #[must_use]
    pub fn patience_us(&self) -> u64 {
        self.template.timing.election_timeout.0 * 30
    }

    /// The caller's duty where a log is full: it discards what it has applied.
    fn make_room(&mut self) {
        for s in 0..self.seats.len() {
            let held = self.node(s).map_or(0, |node| node.last().index.0 - node.border().index.0);
            if held >= self.template.limits.log_entries_max {
                self.discard(s, self.seats[s].applied);
            }
        }
    }

    /// Judges that something new commits at all members that are up and not sealed.
    pub fn judge_progress(&mut self) {
        let takes_part = |seat: &Seat| seat.node.is_some() && seat.sealed.is_none();
        if self.seats.iter().filter(|seat| takes_part(seat)).count() < self.judge.majority {
            return;
        }
        let end = self.now_us + self.patience_us();
        let mut proposed: Option<Place> = None;
        while self.ok() && self.now_us < end {
            if let Some(place) = proposed {
                let reached = |seat: &Seat| !takes_part(seat) || seat.applied >= place.index;
                if self.seats.iter().all(reached)
                    && self.judge.by_seat.iter().any(|c| c.get(&place.index) == Some(&place))
                {
                    self.judge.count("progress judged");
                    return;
                }
            }
            let step = self.template.timing.heartbeat_interval.0;
            self.run_for(step);
            self.make_room();
            let lost = |world: &Self, place: Place| {
                world.leader().and_then(|s| world.node(s)).is_none_or(|node| {
                    node.place(place.index) != Some(place) && node.border().index < place.index
                })
            };
            if proposed.is_none_or(|place| lost(self, place))
                && let Some(leader) = self.leader()
                && let Some(Ok(place)) = self.propose(leader, 16)
            {
                proposed = Some(place);
            }
        }
        let state: Vec<String> = (0..self.seats.len())
            .map(|s| match self.node(s) {
                Some(node) => format!(
                    "seat {s}: {:?} leads {} knows {:?} last {:?}@{} commit {} applied {} sealed {}",
                    node.term(),
                    node.is_leader(),
                    node.leader(),
                    node.last().term,
                    node.last().index,
                    node.commit(),
                    self.seats[s].applied,
                    node.sealed().is_some()
                ),
                None => format!("seat {s}: down"),
            })
            .collect();
        let waited = self.patience_us();
        self.judge.broken(
            Rule::Progress,
            format!(
                "nothing new ({proposed:?}) reached all within {waited} us after the faults: {}",
                state.join("; ")
            ),
        );
    }

    /// Judges what must hold when nothing is left to happen: reads are answered, Markers told, taken entries kept.
    pub fn judge_quiet(&mut self) {
        let open: Vec<u64> = self.judge.reads.keys().copied().collect();
        self.judge
            .hold(Rule::ReadsAreAnswered, open.is_empty(), || format!("reads {open:?} were never answered"));
        if let Some(marker) = self.judge.marker {
            for s in 0..self.seats.len() {
                let seat = &self.seats[s];
                let untold = seat.node.is_some() && seat.applied >= marker && !seat.told_marker;
                // A restarted member whose log begins after the Marker has nothing to tell.
                let could = self.node(s).is_some_and(|node| node.border().index < marker);
                self.judge.hold(Rule::MarkerEnds, !(untold && could), || {
                    format!("seat {s} applied the Marker at {marker} and did not say so")
                });
            }
        }
    }

    /// What the seat has on disk.
    #[must_use]
    pub fn records_of(&self, s: usize) -> Vec<Bytes> {
        self.seats[s].records.iter().map(|(_, record)| record.clone()).collect()
    }

    /// A blank disk, as of a member that never was.
    pub fn forget(&mut self, s: usize) {
        self.seats[s] = Seat::new(self.seats[s].id);
    }

    #[must_use]
    pub fn refused(&self, s: usize) -> u64 {
        self.seats[s].told_refused
    }
}

/// Whether the log above the border holds a Marker.
#[must_use]
pub fn holds_marker(node: &dyn RaftNode) -> bool {
    let mut next = node.border().index.next();
    while next <= node.last().index {
        let entries = node.entries(next, node.last().index, 1 << 20);
        if entries.is_empty() {
            return false;
        }
        if entries.iter().any(|entry| entry.body.kind() == Kind::Marker) {
            return true;
        }
        next = Index(next.0 + entries.len() as u64);
    }
    false
}

impl Seat {
    fn new(id: ReplicaId) -> Self {
        Self {
            id,
            node: None,
            life: 0,
            records: VecDeque::new(),
            pending: VecDeque::new(),
            syncing: false,
            durable: Ticket::ZERO,
            disk_us: (100, 600),
            disk_stuck: false,
            waiting: Vec::new(),
            applied: Index::ZERO,
            born_us: 0,
            local_us: 0,
            since_us: 0,
            rate_per_mille: 1_000,
            wake_mark: 0,
            quick_wakes: 0,
            sealed: None,
            seal_durable: false,
            told_leader: None,
            told_marker: false,
            told_refused: 0,
            term: Term::ZERO,
            commit: Index::ZERO,
            bytes_sent: BTreeMap::new(),
        }
    }

    /// How many records were written and are not on disk.
    #[must_use]
    pub fn unsynced(&self) -> usize {
        self.pending.len()
    }
}
