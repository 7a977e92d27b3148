//! A few members of one segment, the links between them and their disks, all played from one seed: messages are lost,
//! late, doubled and out of order, a crash keeps what was synced and any part of the rest. Judges look at every effect and
//! collect what is wrong; they share no code with what they judge beyond the types.

use bytes::Bytes;
use dwcp_base::{Chance, Epoch, Hash, LogTime, Micros, Mutants, Now, Position, ReplicaId, Ticket};
use dwcp_log::VirtualLog;
use dwcp_raft::{
    Action, Entry, Index, Kind, Limits, Message, Payload, Place, Raft, RaftNode, ReadError, Record, Said,
    Sealed, SegmentSetup, Term, Timing,
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

pub const EPOCH: Epoch = Epoch(7);
pub const BASE: u64 = 1_000;

/// What goes wrong, and how often.
#[derive(Clone, Copy, Debug)]
pub struct Faults {
    pub drop_pm: u64,
    pub double_pm: u64,
    pub delay_us: u64,
    pub jitter_us: u64,
    pub sync_us: u64,
    /// How often a burst goes on before it is settled.
    pub burst_pm: u64,
}

impl Faults {
    pub const NONE: Self =
        Self { drop_pm: 0, double_pm: 0, delay_us: 500, jitter_us: 0, sync_us: 200, burst_pm: 0 };
}

/// A write-ahead log of one segment.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    pub records: VecDeque<Bytes>,
    /// Of `records`, those that a crash keeps.
    pub synced: usize,
    /// Records dropped from the front since the segment was opened.
    dropped: u64,
    /// When the sync under way is done, and how many records (since the segment was opened) it covers.
    syncing: Option<(Micros, u64)>,
}

impl Disk {
    fn written(&self) -> u64 {
        self.dropped + self.records.len() as u64
    }
}

pub struct Member {
    pub raft: Option<Raft>,
    pub disk: Disk,
    /// Sends that wait for the disk.
    waiting: Vec<(Ticket, ReplicaId, Bytes)>,
    /// Up to where entries were handed over, over all lives; a snapshot of the virtual state.
    pub applied: Place,
    dirty: bool,
    /// Set when `seal` was called in this life.
    pub seal: Option<Sealed>,
    /// Its record was handed out, or is on disk.
    seal_written: bool,
    seed: u64,
}

/// What one seed did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub committed: u64,
    pub elections: u64,
    pub replaced: u64,
    pub crashes: u64,
    pub behind: u64,
    pub installs: u64,
    pub reads: u64,
    pub reads_failed: u64,
    pub transfers: u64,
    pub lost_records: u64,
    pub sent: u64,
    pub sent_bytes: u64,
}

type Wire = BTreeMap<(Micros, u64), (ReplicaId, ReplicaId, Bytes)>;

pub struct Net {
    pub now: Micros,
    pub members: BTreeMap<u8, Member>,
    pub faults: Faults,
    /// Directed links that carry nothing.
    pub cut: BTreeSet<(u8, u8)>,
    /// Members whose clocks stand still.
    pub frozen: BTreeSet<u8>,
    pub wire: Wire,
    sent: u64,
    pub chance: Chance,
    pub mutants: Mutants,
    pub limits: Limits,
    pub timing: Timing,
    first_leader: Option<u8>,
    pub counts: Counts,
    pub refused: BTreeMap<&'static str, u64>,
    pub marker_committed: BTreeSet<u8>,
    // What the judges know.
    pub truth: Vec<(Place, Entry)>,
    leaders: BTreeMap<Term, u8>,
    chains: BTreeMap<(Index, Term), Hash>,
    votes: BTreeMap<(u8, Term), u8>,
    reads: BTreeMap<u64, (u8, Index)>,
    pub reads_done: BTreeMap<u64, Option<Index>>,
    next_token: u64,
    pub violations: Vec<String>,
    pub trace: bool,
}

pub fn batch(frame: &str) -> Payload {
    Payload::Batch { time: LogTime(1), frames: vec![Bytes::from(frame.to_string())] }
}

impl Net {
    pub fn new(n: u8, seed: u64) -> Self {
        Self::with(n, seed, |_| {})
    }

    /// A net whose settings are changed before its members begin.
    pub fn with(n: u8, seed: u64, change: impl FnOnce(&mut Self)) -> Self {
        let mut net = Self {
            now: Micros(1_000_000),
            members: BTreeMap::new(),
            faults: Faults::NONE,
            cut: BTreeSet::new(),
            frozen: BTreeSet::new(),
            wire: Wire::new(),
            sent: 0,
            chance: Chance::new(seed).fork("net"),
            mutants: Mutants::default(),
            limits: Limits::default(),
            timing: Timing::lan(),
            first_leader: Some(0),
            counts: Counts::default(),
            refused: BTreeMap::new(),
            marker_committed: BTreeSet::new(),
            truth: Vec::new(),
            leaders: BTreeMap::new(),
            chains: BTreeMap::new(),
            votes: BTreeMap::new(),
            reads: BTreeMap::new(),
            reads_done: BTreeMap::new(),
            next_token: 0,
            violations: Vec::new(),
            trace: false,
        };
        change(&mut net);
        for id in 0..n {
            let member = Member {
                raft: None,
                disk: Disk::default(),
                waiting: Vec::new(),
                applied: base(),
                dirty: false,
                seal: None,
                seal_written: false,
                seed: net.chance.next_u64(),
            };
            net.members.insert(id, member);
        }
        (0..n).for_each(|id| net.restart(id));
        net
    }

    pub fn no_first_leader(&mut self) {
        self.first_leader = None;
    }

    pub fn now(&self) -> Now {
        Now { mono: self.now, wall_ms: self.now.0 / 1000 }
    }

    pub fn setup(&self, id: u8) -> SegmentSetup {
        let members: Vec<ReplicaId> = if self.members.is_empty() {
            vec![ReplicaId(id)]
        } else {
            self.members.keys().map(|id| ReplicaId(*id)).collect()
        };
        SegmentSetup {
            epoch: EPOCH,
            me: ReplicaId(id),
            members,
            first_leader: self.first_leader.map(ReplicaId),
            base: VirtualLog { position: Position(BASE), chain: base().chain },
            timing: self.timing,
            limits: self.limits,
            seed: self.members[&id].seed,
            mutants: self.mutants,
        }
    }

    pub fn raft(&self, id: u8) -> &Raft {
        self.members[&id].raft.as_ref().expect("the member is up")
    }

    pub fn raft_mut(&mut self, id: u8) -> &mut Raft {
        self.members.get_mut(&id).unwrap().raft.as_mut().expect("the member is up")
    }

    pub fn up(&self) -> Vec<u8> {
        self.members.iter().filter(|(_, member)| member.raft.is_some()).map(|(id, _)| *id).collect()
    }

    /// Whoever leads in the latest term.
    pub fn leader(&self) -> Option<u8> {
        let leads = |id: &u8| self.raft(*id).is_leader();
        self.up().into_iter().filter(leads).max_by_key(|id| self.raft(*id).term())
    }

    // What is done to members.

    pub fn restart(&mut self, id: u8) {
        let setup = self.setup(id);
        let member = self.members.get_mut(&id).unwrap();
        let records: Vec<Bytes> = member.disk.records.iter().cloned().collect();
        member.disk.dropped = 0;
        let mono = self.now;
        let now = Now { mono, wall_ms: mono.0 / 1000 };
        match Raft::open(&setup, &records, now) {
            Ok(raft) => member.raft = Some(raft),
            Err(error) => {
                for record in &records {
                    if self.trace {
                        println!("{:?}", Record::from_bytes(record));
                    }
                }
                self.violations.push(format!("{id} cannot open: {error}"));
                return;
            }
        }
        let sealed = self.raft(id).sealed().is_some();
        self.members.get_mut(&id).unwrap().seal_written = sealed;
        // A snapshot that is ahead of the log: as a node does that wrote it before a crash.
        let snapshot = self.snapshot(id);
        self.members.get_mut(&id).unwrap().applied = snapshot;
        if snapshot.index > self.raft(id).commit() && self.raft(id).sealed().is_none() {
            let now = self.now();
            self.raft_mut(id).install(now, snapshot).expect("it is ahead");
        }
        self.finish(id);
    }

    /// Loses what was not synced, but for a prefix of it.
    pub fn crash(&mut self, id: u8) {
        let member = self.members.get_mut(&id).unwrap();
        if member.raft.take().is_none() {
            return;
        }
        self.counts.crashes += 1;
        let unsynced = member.disk.records.len() - member.disk.synced;
        let kept = usize::try_from(self.chance.between(0, unsynced as u64)).unwrap();
        self.counts.lost_records += (unsynced - kept) as u64;
        member.disk.records.truncate(member.disk.synced + kept);
        member.disk.synced = member.disk.records.len();
        member.disk.syncing = None;
        member.waiting.clear();
        member.seal = None;
        member.dirty = false;
    }

    pub fn isolate(&mut self, id: u8) {
        for other in self.members.keys().copied().filter(|other| *other != id).collect::<Vec<_>>() {
            self.cut.insert((id, other));
            self.cut.insert((other, id));
        }
    }

    pub fn link_down(&mut self, id: u8, peer: u8) {
        let now = self.now();
        self.raft_mut(id).on_link_down(now, ReplicaId(peer));
        self.finish(id);
    }

    pub fn heal(&mut self) {
        self.cut.clear();
    }

    pub fn propose(&mut self, id: u8, payload: &Payload) -> Result<Place, dwcp_raft::ProposeError> {
        let now = self.now();
        let result = self.raft_mut(id).propose(now, payload);
        self.finish(id);
        result
    }

    pub fn read(&mut self, id: u8) -> Result<u64, ReadError> {
        let token = self.next_token;
        self.next_token += 1;
        let floor = self.truth.last().map_or(Index::ZERO, |(place, _)| place.index);
        let now = self.now();
        self.raft_mut(id).read_index(now, token)?;
        self.reads.insert(token, (id, floor));
        self.finish(id);
        Ok(token)
    }

    pub fn transfer(&mut self, id: u8, to: u8) {
        let now = self.now();
        if self.raft_mut(id).transfer_leadership(now, ReplicaId(to)).is_ok() {
            self.counts.transfers += 1;
        }
        self.finish(id);
    }

    pub fn seal(&mut self, id: u8) -> Sealed {
        let now = self.now();
        let sealed = self.raft_mut(id).seal(now);
        self.finish(id);
        self.members.get_mut(&id).unwrap().seal = Some(sealed);
        sealed
    }

    pub fn discard(&mut self, id: u8, through: Index) {
        let applied = self.members[&id].applied.index;
        let before = self.raft(id).border();
        let border = self.raft_mut(id).discard(through.min(applied));
        if border.index < before.index {
            self.violations.push(format!("{id}'s border went back from {before:?} to {border:?}"));
        }
        self.finish(id);
        // What a restart does not need is dropped, as soon as it is safely replaced.
        let member = self.members.get_mut(&id).unwrap();
        let raft = member.raft.as_ref().unwrap();
        let needed = raft.needed_from().0.saturating_sub(1).saturating_sub(member.disk.dropped);
        let droppable = usize::try_from(needed).unwrap();
        assert!(droppable <= member.disk.synced, "what is dropped was superseded on disk");
        member.disk.records.drain(..droppable);
        member.disk.synced -= droppable;
        member.disk.dropped += droppable as u64;
    }

    fn finish(&mut self, id: u8) {
        let burst = self.chance.per_mille(self.faults.burst_pm);
        self.members.get_mut(&id).unwrap().dirty = true;
        if !burst {
            self.settle(id);
        }
    }

    pub fn settle(&mut self, id: u8) {
        let now = self.now();
        let member = self.members.get_mut(&id).unwrap();
        member.dirty = false;
        let Some(raft) = member.raft.as_mut() else { return };
        raft.settle(now);
        raft.check();
        let actions = raft.take();
        for action in actions {
            self.carry_out(id, action);
        }
        self.observe(id);
    }

    fn carry_out(&mut self, id: u8, action: Action) {
        if self.trace {
            println!("{} {id}: {}", self.now.0, brief(&action));
        }
        let sync_us = self.faults.sync_us;
        let member = self.members.get_mut(&id).unwrap();
        match action {
            Action::Persist { ticket, record, .. } => {
                let read = Record::from_bytes(&record).expect("members write what they can read").1;
                member.seal_written |= matches!(read, Record::Sealed(_));
                member.disk.records.push_back(record);
                let expected = member.disk.written();
                if ticket.0 != expected {
                    self.violations.push(format!("{id}: record {expected} has ticket {ticket}"));
                }
                // What is written while a sync is under way waits for the next one.
                let covers = member.disk.written();
                member.disk.syncing.get_or_insert((self.now.plus(Micros(sync_us)), covers));
            }
            Action::Send { to, message, after } => {
                if member.seal_written {
                    let said = Message::from_bytes(&message).expect("members speak the language").said;
                    self.violations.push(format!("{id} is sealed and says {said:?}"));
                }
                if after.0 <= member.disk.dropped + member.disk.synced as u64 {
                    self.put_on_wire(id, to, message);
                } else {
                    member.waiting.push((after, to, message));
                }
            }
            Action::Committed { through } => self.apply(id, through),
            Action::MarkerCommitted { .. } => {
                self.marker_committed.insert(id);
            }
            Action::ReadsReady { tokens, index } => {
                for token in tokens {
                    self.counts.reads += 1;
                    match self.reads.remove(&token) {
                        Some((asked, floor)) if asked == id => {
                            if index < floor {
                                self.violations.push(format!(
                                    "{id}: read {token} began when {floor} was committed and sees {index}"
                                ));
                            }
                        }
                        _ => self
                            .violations
                            .push(format!("{id}: read {token} was not asked or answered twice")),
                    }
                    self.reads_done.insert(token, Some(index));
                }
            }
            Action::ReadsFailed { tokens } => {
                for token in tokens {
                    self.counts.reads_failed += 1;
                    self.reads.remove(&token);
                    self.reads_done.insert(token, None);
                }
            }
            Action::LeaderChanged { .. } => {}
            Action::Replaced { from } => {
                self.counts.replaced += 1;
                if from <= member.applied.index {
                    self.violations.push(format!("{id}: applied entry {from} was replaced"));
                }
            }
            Action::Behind { follower, .. } => {
                self.counts.behind += 1;
                let place = self.snapshot(id);
                self.offer_snapshot(follower.0, place);
            }
            Action::Refused { reason, .. } => *self.refused.entry(reason).or_default() += 1,
        }
    }

    /// Up to where a member's snapshot goes: never to a Marker, as `RaftNode::install` demands.
    fn snapshot(&self, id: u8) -> Place {
        let applied = self.members[&id].applied;
        match applied.index.0.checked_sub(1).and_then(|at| self.truth.get(usize::try_from(at).unwrap())) {
            Some((_, entry)) if entry.body.kind() == Kind::Marker => {
                applied.index.0.checked_sub(2).map_or(base(), |at| self.truth[usize::try_from(at).unwrap()].0)
            }
            _ => applied,
        }
    }

    /// Snapshots travel on a road of their own, here at once.
    fn offer_snapshot(&mut self, to: u8, place: Place) {
        let now = self.now();
        if self.members[&to].raft.is_none() || self.chance.per_mille(self.faults.drop_pm) {
            return;
        }
        let Some(raft) = self.members.get_mut(&to).unwrap().raft.as_mut() else { return };
        if raft.install(now, place).is_ok() {
            self.counts.installs += 1;
            let member = self.members.get_mut(&to).unwrap();
            member.applied = place;
            member.dirty = true;
        }
    }

    fn put_on_wire(&mut self, from: u8, to: ReplicaId, bytes: Bytes) {
        self.counts.sent += 1;
        self.counts.sent_bytes += bytes.len() as u64;
        self.judge_message(from, to.0, &bytes);
        if self.cut.contains(&(from, to.0)) || self.chance.per_mille(self.faults.drop_pm) {
            return;
        }
        let copies = 1 + u64::from(self.chance.per_mille(self.faults.double_pm));
        for _ in 0..copies {
            let late = self.faults.delay_us + self.chance.below(self.faults.jitter_us + 1);
            self.sent += 1;
            let at = (self.now.plus(Micros(late)), self.sent);
            self.wire.insert(at, (ReplicaId(from), to, bytes.clone()));
        }
    }

    // Judges.

    fn judge_message(&mut self, from: u8, to: u8, bytes: &Bytes) {
        let message = Message::from_bytes(bytes).expect("members speak the language");
        match message.said {
            Said::VoteReply { granted: true } => {
                let first = *self.votes.entry((from, message.term)).or_insert(to);
                if first != to {
                    self.violations.push(format!("{from} voted for {first} and {to} in {:?}", message.term));
                }
            }
            Said::Vote { .. } => {
                let first = *self.votes.entry((from, message.term)).or_insert(from);
                if first != from {
                    self.violations
                        .push(format!("{from} stands in {:?} and voted for {first}", message.term));
                }
            }
            Said::HeartbeatReply { round } => {
                let holds = self.members[&from].raft.as_ref().is_some_and(holds_marker);
                if round > 0 && holds {
                    self.violations.push(format!("{from} holds a Marker and confirms read round {round}"));
                }
            }
            _ => {}
        }
    }

    fn apply(&mut self, id: u8, through: Index) {
        let member = &self.members[&id];
        let raft = member.raft.as_ref().unwrap();
        let from = member.applied.index.next();
        let entries = raft.entries(from, through, usize::MAX);
        let expected = (through.0 + 1).saturating_sub(from.0);
        if entries.len() as u64 != expected {
            let held = entries.len();
            self.violations.push(format!("{id}: {from}..={through} is committed and {held} of it held"));
            return;
        }
        for (index, entry) in (from.0..).map(Index).zip(entries) {
            let place = raft.place(index).expect("it is held");
            match self.truth.get(index.0 as usize - 1) {
                Some((known, _)) if *known == place => {}
                Some((known, _)) => {
                    self.violations.push(format!("{id} commits {place:?} where {known:?} was"));
                }
                None if self.truth.len() as u64 + 1 == index.0 => {
                    let before = self.truth.last().map_or(base(), |(place, _)| *place);
                    let mut fold =
                        VirtualLog { position: Position(BASE + before.index.0), chain: before.chain };
                    fold.append(&entry.digest());
                    if fold.chain != place.chain {
                        self.violations.push(format!("{id}: the chain at {index} is not the virtual log's"));
                    }
                    self.counts.committed += 1;
                    self.truth.push((place, entry));
                }
                None => self.violations.push(format!("{id} commits {index} before what lies below")),
            }
        }
        let applied = raft.place(through.max(raft.border().index)).unwrap();
        let member = self.members.get_mut(&id).unwrap();
        if applied.index > member.applied.index {
            member.applied = applied;
        }
    }

    fn observe(&mut self, id: u8) {
        let raft = self.members[&id].raft.as_ref().unwrap();
        let last = raft.last();
        if last.index > raft.border().index {
            let chain = *self.chains.entry((last.index, last.term)).or_insert(last.chain);
            if chain != last.chain {
                self.violations.push(format!("{id} holds other entries up to {last:?}"));
            }
        }
        if !raft.is_leader() {
            return;
        }
        let term = raft.term();
        if let Some(other) = self.leaders.get(&term) {
            if *other != id {
                self.violations.push(format!("{other} and {id} lead in {term:?}"));
            }
            return;
        }
        // Leader completeness (Raft section 5.4.3): whoever is elected holds all that is committed.
        let missing =
            self.truth.iter().rev().take(1).find(|(place, _)| {
                place.index > raft.border().index && raft.place(place.index) != Some(*place)
            });
        if let Some((place, _)) = missing {
            self.violations.push(format!("{id} leads in {term:?} without the committed {place:?}"));
        }
        self.leaders.insert(term, id);
        self.counts.elections += 1;
    }

    // Time.

    /// Plays until this moment.
    pub fn run_until(&mut self, end: Micros) {
        while self.advance(end) {}
        self.now = self.now.max(end);
    }

    pub fn run_for(&mut self, ms: u64) {
        self.run_until(self.now.plus(Micros::from_millis(ms)));
    }

    /// Plays until the condition holds; false when it does not within so many milliseconds.
    pub fn until(&mut self, ms: u64, holds: impl Fn(&Self) -> bool) -> bool {
        let end = self.now.plus(Micros::from_millis(ms));
        loop {
            if holds(self) {
                return true;
            }
            if !self.advance(end) {
                return holds(self);
            }
        }
    }

    /// The next thing that happens, if it does by `end`.
    pub fn advance(&mut self, end: Micros) -> bool {
        let dirty: Vec<u8> =
            self.members.iter().filter(|(_, member)| member.dirty).map(|(id, _)| *id).collect();
        let message = self.wire.keys().next().copied();
        let sync = self.members.iter().filter_map(|(id, member)| Some((member.disk.syncing?.0, *id))).min();
        let timer = self
            .members
            .iter()
            .filter(|(id, _)| !self.frozen.contains(id))
            .filter_map(|(id, member)| Some((member.raft.as_ref()?.next_wakeup(), *id)))
            .min();
        let moments = [message.map(|(at, _)| at), sync.map(|(at, _)| at), timer.map(|(at, _)| at)];
        let next = moments.into_iter().flatten().min().unwrap_or(Micros::NEVER);
        if next > self.now && !dirty.is_empty() {
            // A burst ends when nothing more is there.
            dirty.into_iter().for_each(|id| self.settle(id));
            return true;
        }
        if next > end || next == Micros::NEVER {
            return false;
        }
        self.now = self.now.max(next);
        if let Some((at, id)) = sync.filter(|(at, _)| *at == next) {
            debug_assert!(at <= self.now);
            self.sync(id);
        } else if let Some(key) = message.filter(|(at, _)| *at == next) {
            let (from, to, bytes) = self.wire.remove(&key).unwrap();
            let now = self.now();
            if let Some(raft) = self.members.get_mut(&to.0).unwrap().raft.as_mut() {
                if self.trace {
                    println!(
                        "{} {} <- {}: {:?}",
                        self.now.0,
                        to.0,
                        from.0,
                        Message::from_bytes(&bytes).unwrap()
                    );
                }
                raft.step(now, from, &bytes);
                raft.check();
                self.finish(to.0);
            }
        } else if let Some((_, id)) = timer {
            let now = self.now();
            self.raft_mut(id).tick(now);
            self.finish(id);
        }
        true
    }

    fn sync(&mut self, id: u8) {
        let now = self.now();
        let again = self.now.plus(Micros(self.faults.sync_us));
        let member = self.members.get_mut(&id).unwrap();
        let Some((_, covers)) = member.disk.syncing.take() else { return };
        member.disk.synced = usize::try_from(covers - member.disk.dropped).unwrap();
        if covers < member.disk.written() {
            member.disk.syncing = Some((again, member.disk.written()));
        }
        let durable = Ticket(covers);
        if let Some(raft) = member.raft.as_mut() {
            raft.on_durable(now, durable);
            raft.check();
        }
        let (ready, waiting) =
            std::mem::take(&mut member.waiting).into_iter().partition(|(after, ..)| *after <= durable);
        member.waiting = waiting;
        let ready: Vec<_> = ready;
        for (_, to, message) in ready {
            self.put_on_wire(id, to, message);
        }
        self.finish(id);
    }

    /// Fails the test with what the judges saw.
    pub fn judge(&self) {
        assert!(self.violations.is_empty(), "{:#?}", &self.violations[..self.violations.len().min(5)]);
    }

    pub fn committed_frames(&self) -> Vec<String> {
        let frames = self.truth.iter().filter_map(|(_, entry)| match entry.payload() {
            Payload::Batch { frames, .. } => Some(frames),
            _ => None,
        });
        frames.flatten().map(|frame| String::from_utf8(frame.to_vec()).unwrap()).collect()
    }
}

pub fn holds_marker(raft: &Raft) -> bool {
    let last = raft.last().index;
    raft.entries(last, last, usize::MAX).first().is_some_and(|entry| entry.body.kind() == Kind::Marker)
}

pub fn base() -> Place {
    Place { chain: Hash::of(b"what was before"), ..Place::default() }
}

fn brief(action: &Action) -> String {
    match action {
        Action::Send { to, message, after } => {
            format!("to {to} after {after}: {:?}", Message::from_bytes(message).unwrap())
        }
        Action::Persist { ticket, record, .. } => {
            format!("{ticket}: {:?}", Record::from_bytes(record).unwrap().1)
        }
        other => format!("{other:?}"),
    }
}
