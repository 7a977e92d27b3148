//! Drives one node as a server would: hands its sync what came, carries out what it wants in order, lets nothing leave that
//! waits for the disk, and tells the judges what was to be seen.

use crate::runner::guarded;
use crate::sync::liar::{Trick, place};
use crate::sync::node::{Live, Snapshot};
use crate::sync::translate;
use crate::sync::world::{Event, Phase, World};
use bytes::Bytes;
use check::sync::Note;
use check::sync::judge::Outcome;
use dwcp_base::{Hash, Micros, Ticket};
use dwcp_crdt::{Applied, WriteRefused};
use dwcp_sync::{Action, Base, Need, Reason, Record, Restored, Sync, audit, repair};
use std::collections::BTreeMap;
use std::rc::Rc;

impl World {
    pub fn live(&mut self, id: u32) -> Option<&mut Live> {
        self.nodes[id as usize].live.as_mut()
    }

    fn is_life(&self, id: u32, life: u64) -> bool {
        self.nodes[id as usize].life == life && self.nodes[id as usize].live.is_some()
    }

    /// Runs code of the core on a node; an assertion that fails there ends the run.
    pub fn on_core<T>(&mut self, id: u32, act: impl FnOnce(&mut Live) -> T) -> Option<T> {
        let live = self.nodes[id as usize].live.as_mut()?;
        match guarded(|| act(live)) {
            Ok(value) => Some(value),
            Err(text) => {
                self.complain(format!("an assertion failed on node {id}: {text}"));
                None
            }
        }
    }

    /// Starts a node from its disk.
    pub fn open(&mut self, id: u32) {
        let now_us = self.now_us;
        let mutants = self.mutants;
        let node = &mut self.nodes[id as usize];
        node.life += 1;
        let (now, setup) = (node.now(now_us), node.setup.clone());
        // Tickets count anew from the first record that is still there.
        for (record, number) in node.disk.records.iter_mut().zip(1..) {
            record.0 = Ticket(number);
        }
        node.disk.durable = Ticket(node.disk.records.len() as u64);
        let records: Vec<Bytes> = node.disk.records.iter().map(|(_, record)| record.clone()).collect();
        let snapshot = node.disk.snapshot.clone();
        let opened = guarded(|| {
            let store = snapshot.store(setup.me, mutants);
            let restored = Restored { applied: store.applied(), floor: store.floor_number() };
            Sync::open(&setup, restored, &records, now).map(|sync| (sync, store))
        });
        let (sync, store) = match opened {
            Ok(Ok(opened)) => opened,
            Ok(Err(error)) => return self.complain(format!("node {id} cannot open its own disk: {error}")),
            Err(text) => {
                return self.complain(format!("an assertion failed on node {id} as it opened: {text}"));
            }
        };
        self.nodes[id as usize].live = Some(Live {
            sync,
            store,
            branches: snapshot.branches,
            waiting: Vec::new(),
            owed: Vec::new(),
            is_syncing: false,
            is_saving: false,
            is_fetching: false,
            wake_at: Micros::ZERO,
        });
        let me = setup.me;
        let members: Vec<_> = setup.members.keys().copied().collect();
        if self.nodes[id as usize].is_honest() {
            let sync = &self.nodes[id as usize].live.as_ref().expect("just opened").sync;
            let last = sync.head(me).map_or(0, |head| head.last);
            let frozen = members.into_iter().filter(|origin| sync.proof(*origin).is_some());
            let frozen = frozen.map(translate::origin).collect();
            self.notes.push(Note::Opened { node: id, origin: translate::origin(me), last, frozen });
        }
        self.run(id);
    }

    pub fn deliver(&mut self, from: u32, to: u32, bytes: &Bytes) {
        if self.net.is_cut(from as usize, to as usize) {
            return;
        }
        let now = self.nodes[to as usize].now(self.now_us);
        if let Some(puppet) = &mut self.nodes[to as usize].puppet {
            puppet.hears(bytes);
        }
        self.on_core(to, |live| live.sync.on_message(now, dwcp_crdt::OriginId(from), bytes));
        self.run(to);
    }

    pub fn wake(&mut self, id: u32, life: u64) {
        if !self.is_life(id, life) {
            return;
        }
        let now = self.nodes[id as usize].now(self.now_us);
        self.on_core(id, |live| {
            live.wake_at = Micros::ZERO;
            if live.sync.next_wakeup() <= now.mono {
                live.sync.on_time(now);
            }
        });
        self.run(id);
    }

    /// Carries out what sync wants until it wants nothing more.
    pub fn run(&mut self, id: u32) {
        loop {
            let Some(actions) = self.live(id).map(|live| live.sync.take()) else { return };
            if actions.is_empty() || !self.complaints.is_empty() {
                break;
            }
            let mut applied = false;
            for action in actions {
                applied |= self.act(id, action);
            }
            if applied {
                self.on_core(id, |live| live.sync.on_applied(live.store.applied()));
            }
        }
        if !self.mutants.any() && self.trace.count().is_multiple_of(16) {
            self.on_core(id, |live| {
                live.sync.check();
                live.store.check();
            });
        }
        self.sync_disk(id);
        let now = Micros(self.now_us);
        let Some(live) = self.live(id) else { return };
        let due = live.sync.next_wakeup().max(now);
        if live.wake_at == Micros::ZERO || due < live.wake_at {
            live.wake_at = due;
            let life = self.nodes[id as usize].life;
            self.after_us(due.0 - now.0, Event::Wake { node: id, life });
        }
    }

    /// One effect. True when the store changed.
    fn act(&mut self, id: u32, action: Action) -> bool {
        let is_honest = self.nodes[id as usize].is_honest();
        match action {
            Action::Persist { ticket, record } => {
                if is_honest && let Ok(Record::Frame(frame)) = Record::read(&record) {
                    self.note_taken(id, frame);
                }
                self.nodes[id as usize].disk.records.push((ticket, record));
            }
            Action::Send { to, message, after } => {
                if after > self.nodes[id as usize].disk.durable {
                    self.live(id).expect("it runs").waiting.push((after, to, message));
                } else {
                    self.speak(id, to.0, message);
                }
            }
            Action::Apply { bundle } => {
                let branch = if self.branch_of.is_empty() {
                    None
                } else {
                    self.branch_of.get(&Hash::of(&bundle.encode()))
                };
                let branch = branch.copied();
                let origin = bundle.origin();
                let is_mutated = self.mutants.any();
                let result = self.on_core(id, |live| {
                    if let Some(branch) = branch {
                        live.branches.insert(origin, branch);
                    }
                    live.store.apply(&bundle, bundle.hlc().ms())
                });
                match result {
                    Some(Err(refused)) if !is_mutated => {
                        self.complain(format!("the store of node {id} refuses what it is handed: {refused}"));
                    }
                    Some(Ok(Applied::Held { .. })) => self.coverage.held += 1,
                    _ => {}
                }
                return true;
            }
            Action::RaiseFloor(floor) => {
                let is_mutated = self.mutants.any();
                let result = self.on_core(id, |live| {
                    let graves = live.store.graves_count();
                    let result = live.store.raise_floor(floor).map(drop);
                    result.map(|()| graves.saturating_sub(live.store.graves_count()))
                });
                match result {
                    Some(Ok(gone)) => self.coverage.tombstones_collected += gone as u64,
                    Some(Err(refused)) if !is_mutated => {
                        self.complain(format!("the store of node {id} refuses a floor: {refused}"));
                    }
                    _ => {}
                }
                return true;
            }
            Action::AdoptFloors(floors) => {
                let is_mutated = self.mutants.any();
                let result = self.on_core(id, |live| live.store.adopt_floors(floors).map(drop));
                if !is_mutated && let Some(Err(refused)) = result {
                    self.complain(format!("the store of node {id} refuses floors that it missed: {refused}"));
                }
                self.coverage.floors_adopted += 1;
                return true;
            }
            Action::EndOrigin { origin, last } => {
                self.on_core(id, |live| live.store.end_origin(origin, last));
                if is_honest {
                    self.notes.push(Note::Ended { node: id, origin: translate::origin(origin), last });
                }
                return true;
            }
            Action::Refused { reason, .. } => self.count_refused(id, reason),
            Action::Evidence(proof) => {
                let origin = proof.origin();
                self.trace.line(self.now_us, || format!("node {id} holds a proof against {origin}"));
                if is_honest {
                    self.coverage.frozen += 1;
                    let at_us = self.now_us;
                    self.notes.push(Note::Froze { node: id, origin: translate::origin(origin), at_us });
                    let ms = self.chances.log.between(100, 3_000);
                    self.after_ms(ms, Event::Decide { origin });
                }
            }
            Action::NeedSnapshot { need, donors } => self.ask_for_snapshot(id, need, &donors),
            Action::Withholds { member } => {
                if is_honest {
                    self.coverage.withholders_named += 1;
                    self.named.entry(member).or_default().insert(id);
                    self.exclude_if_sure(member);
                }
            }
            Action::Accuses { member, .. } => {
                let is_liar = !self.nodes[place(member.id)].is_honest();
                self.coverage.overstaters_named += u64::from(is_honest && is_liar);
            }
            Action::Audit { peer, work } => {
                self.coverage.audits += 1;
                let now = self.nodes[id as usize].now(self.now_us);
                self.on_core(id, |live| {
                    let stands = live.sync.stand(live.store.applied());
                    let step = audit::answer(&mut live.store, stands, work.as_ref());
                    live.sync.on_audited(now, peer, step);
                });
            }
            Action::Differs { peer, keys } => {
                if is_honest && self.nodes[place(peer)].is_honest() {
                    let keys = keys.iter().map(|key| key.to_vec()).collect();
                    self.notes.push(Note::Differs { node: id, with: peer.0, keys });
                }
            }
            Action::Damaged { keys } => {
                if is_honest {
                    let keys = keys.iter().map(|key| key.to_vec()).collect();
                    self.notes.push(Note::Differs { node: id, with: id, keys });
                }
            }
            Action::Copies { peer, question } => {
                self.on_core(id, |live| {
                    let stands = live.sync.stand(live.store.applied());
                    if let Some(copies) = repair::copies(&live.store, stands, &question) {
                        live.sync.give_copies(peer, question.round, copies);
                    }
                });
            }
            Action::Repair { at, copies } => self.repair(id, at, &copies),
            Action::Exchanged { peer, .. } => {
                self.coverage.exchanges += 1;
                if is_honest && self.phase == Phase::Calm {
                    let at_us = self.now_us;
                    self.notes.push(Note::Exchanged { node: id, with: peer.0, at_us });
                }
            }
        }
        false
    }

    fn repair(&mut self, id: u32, at: Hash, copies: &[repair::Copy]) {
        let now = self.nodes[id as usize].now(self.now_us);
        let adopted = self.on_core(id, |live| {
            let stands = live.sync.stand(live.store.applied());
            let adopted = repair::adopt(&mut live.store, stands, at, copies);
            live.sync.on_repaired(now, adopted.len());
            adopted
        });
        let adopted = adopted.unwrap_or_default();
        if self.nodes[id as usize].is_honest() && !adopted.is_empty() {
            self.coverage.keys_repaired += adopted.len() as u64;
            self.trace.line(self.now_us, || format!("node {id} puts {adopted:?} right"));
            let keys: Vec<Vec<u8>> = adopted.iter().map(|key| key.to_vec()).collect();
            self.damaged.retain(|(node, key)| *node != id || !keys.contains(key));
            self.notes.push(Note::Repaired { node: id, keys });
        }
    }

    fn note_taken(&mut self, id: u32, frame: Bytes) {
        let Ok(received) = dwcp_sync::Received::read(frame) else { return };
        let header = received.header();
        // What is only kept, until it is decided whether it counts, is not taken.
        let settled = self.live(id).and_then(|live| live.sync.settled(header.origin));
        if settled.is_some_and(|settled| header.last <= settled.last) {
            let origin = translate::origin(header.origin);
            self.notes.push(Note::Taken { node: id, origin, last: header.last });
        }
    }

    fn count_refused(&mut self, id: u32, reason: Reason) {
        if !self.nodes[id as usize].is_honest() {
            return;
        }
        let coverage = &mut self.coverage;
        match reason {
            Reason::Forged => coverage.forged += 1,
            Reason::Malformed | Reason::TooLong | Reason::BadBundle => coverage.malformed += 1,
            Reason::ClockAhead => coverage.clock_ahead += 1,
            Reason::Frozen => coverage.frozen_refused += 1,
            Reason::FalseHead => coverage.false_heads += 1,
            _ => {}
        }
    }

    fn speak(&mut self, from: u32, to: u32, message: Bytes) {
        let message = match &mut self.nodes[from as usize].puppet {
            Some(puppet) => puppet.says(message),
            None => Some(message),
        };
        if let Some(message) = message {
            self.send(from, to, &message);
        }
    }

    // --- the disk ---

    fn last_record(&self, id: u32) -> Ticket {
        let disk = &self.nodes[id as usize].disk;
        disk.records.last().map_or(disk.durable, |(ticket, _)| (*ticket).max(disk.durable))
    }

    /// Begins a sync if something waits for one.
    fn sync_disk(&mut self, id: u32) {
        let last = self.last_record(id);
        let is_behind = last > self.nodes[id as usize].disk.durable;
        let Some(live) = self.live(id) else { return };
        if is_behind && !live.is_syncing {
            live.is_syncing = true;
            let life = self.nodes[id as usize].life;
            let mean = self.dials.sync_us.max(1);
            let us = self.chances.disk.between(mean / 2 + 1, mean * 2);
            self.after_us(us, Event::Synced { node: id, life, ticket: last });
        }
    }

    /// A sync ended; what waited for it leaves, one by one, and the power may fail before, between or after.
    pub fn synced(&mut self, id: u32, life: u64, ticket: Ticket) {
        if !self.is_life(id, life) {
            return;
        }
        let dies = self.phase == Phase::Safety
            && self.nodes[id as usize].is_honest()
            && self.chances.disk.below(1_000_000) < self.dials.crash_ticket_ppm;
        let when = if dies { self.chances.disk.below(3) } else { 3 };
        if when == 0 {
            self.coverage.crashes_at_tickets += 1;
            return self.crash(id);
        }
        self.make_durable(id, ticket);
        if when == 1 {
            self.coverage.crashes_at_tickets += 1;
            return self.crash(id);
        }
        self.release(id, when == 2);
    }

    fn make_durable(&mut self, id: u32, ticket: Ticket) {
        let node = &mut self.nodes[id as usize];
        node.disk.durable = node.disk.durable.max(ticket);
        self.on_core(id, |live| {
            live.is_syncing = false;
            live.sync.on_durable(ticket);
        });
        let node = &mut self.nodes[id as usize];
        if let Some(live) = &node.live {
            let (needed, durable) = (live.sync.needed_from(), node.disk.durable);
            node.disk.records.retain(|(ticket, _)| *ticket >= needed || *ticket > durable);
        }
    }

    fn release(&mut self, id: u32, dies: bool) {
        let durable = self.nodes[id as usize].disk.durable;
        let Some(live) = self.live(id) else { return };
        let (ready, waiting) = std::mem::take(&mut live.waiting).into_iter().partition(|w| w.0 <= durable);
        live.waiting = waiting;
        let ready: Vec<(Ticket, dwcp_crdt::OriginId, Bytes)> = ready;
        let (owed, later) = std::mem::take(&mut live.owed).into_iter().partition(|o| o.0 <= durable);
        live.owed = later;
        let owed: Vec<(Ticket, u64, Option<Bytes>)> = owed;
        let me = self.nodes[id as usize].me();
        for (_, last, for_log) in owed {
            if self.nodes[id as usize].is_honest() {
                self.coverage.acknowledged += 1;
                self.notes.push(Note::Acknowledged { origin: translate::origin(me), last });
            }
            if let Some(frame) = for_log {
                self.propose_frame(id, last, frame);
            }
        }
        let stop = if dies { self.chances.disk.below(ready.len() as u64 + 1) as usize } else { ready.len() };
        for (_, to, message) in ready.into_iter().take(stop) {
            self.speak(id, to.0, message);
        }
        if dies {
            self.coverage.crashes_at_tickets += 1;
            return self.crash(id);
        }
        self.run(id);
    }

    /// Takes a snapshot of the store when all it holds is durable.
    pub fn save(&mut self, id: u32) {
        self.again(self.dials.save_ms, Event::Save { node: id });
        let all_durable = self.last_record(id) == self.nodes[id as usize].disk.durable;
        let generation = self.nodes[id as usize].disk.generation;
        let life = self.nodes[id as usize].life;
        let Some(live) = self.live(id) else { return };
        if !all_durable || live.is_saving || live.is_fetching {
            return;
        }
        live.is_saving = true;
        let snapshot = Box::new(Snapshot::of(&live.store, &live.branches));
        self.after_ms(30, Event::Saved { node: id, life, generation, snapshot });
    }

    pub fn saved(&mut self, id: u32, life: u64, generation: u64, snapshot: Snapshot) {
        if !self.is_life(id, life) {
            return;
        }
        self.live(id).expect("it lives").is_saving = false;
        if self.nodes[id as usize].disk.generation != generation {
            return;
        }
        self.coverage.snapshots_saved += 1;
        let (applied, floor) = (snapshot.applied.clone(), snapshot.floor);
        self.nodes[id as usize].disk.snapshot = snapshot;
        self.on_core(id, |live| live.sync.on_saved(&applied, floor));
        self.run(id);
    }

    // --- snapshots of others ---

    pub fn ask_for_snapshot(&mut self, id: u32, need: Need, donors: &[dwcp_crdt::OriginId]) {
        let donors: Vec<u32> = donors.iter().map(|donor| donor.0).collect();
        let donor = self.chances.disk.pick(&donors).copied();
        let life = self.nodes[id as usize].life;
        let Some(donor) = donor else { return };
        let live = self.live(id).expect("it asks");
        if !std::mem::replace(&mut live.is_fetching, true) {
            self.after_ms(40, Event::Fetch { node: id, life, need, donor });
        }
    }

    /// A donor is asked. That its store is what its dots make it the caller learns from `f + 1` digests, so liars give nothing.
    pub fn fetch(&mut self, id: u32, life: u64, need: Need, donor: u32) {
        if !self.is_life(id, life) {
            return;
        }
        let cut =
            self.net.is_cut(id as usize, donor as usize) || self.net.is_cut(donor as usize, id as usize);
        let is_liar = !self.nodes[donor as usize].is_honest();
        let given = self.live(donor).filter(|_| !cut && !is_liar).and_then(|live| {
            let base = live.sync.base(live.store.applied(), live.store.floor_number())?;
            Some((Snapshot::of(&live.store, &live.branches), base))
        });
        let Some((snapshot, base)) = given else {
            self.live(id).expect("it lives").is_fetching = false;
            return;
        };
        let event =
            Event::Install { node: id, life, need, snapshot: Box::new(snapshot), base: Box::new(base) };
        self.after_ms(60, event);
    }

    pub fn install(&mut self, id: u32, life: u64, need: Need, snapshot: Snapshot, base: &Base) {
        if !self.is_life(id, life) {
            return;
        }
        let me = self.nodes[id as usize].me();
        let mutants = self.mutants;
        let taken = self.on_core(id, |live| {
            live.is_fetching = false;
            let taken = live.sync.install(base, &snapshot.applied, snapshot.floor);
            if taken.is_ok() {
                live.store = snapshot.store(me, mutants);
                live.branches.clone_from(&snapshot.branches);
            }
            taken.is_ok()
        });
        self.trace.line(self.now_us, || format!("node {id} installs a snapshot ({need:?}): {taken:?}"));
        if taken != Some(true) {
            self.coverage.snapshots_refused += 1;
            return;
        }
        match need {
            Need::Gone => self.coverage.snapshots_gone += 1,
            Need::Branch => self.coverage.snapshots_branch += 1,
            Need::BelowFloor => self.coverage.snapshots_floor += 1,
        }
        let disk = &mut self.nodes[id as usize].disk;
        disk.snapshot = snapshot;
        disk.generation += 1;
        // The record of where it stands is durable with the snapshot, or neither is.
        self.run(id);
        let last = self.last_record(id);
        self.make_durable(id, last);
        self.release(id, false);
    }

    // --- writing ---

    pub fn write(&mut self) {
        let us = self.chances.work.between(self.dials.write_ms * 200, self.dials.write_ms * 1_800 + 1);
        self.after_us(us, Event::Write);
        let up = self.up();
        let Some(id) = self.chances.work.pick(&up).copied() else { return };
        let by_log = self.chances.work.per_mille(self.dials.log_pm);
        self.write_at(id, by_log);
    }

    pub fn write_at(&mut self, id: u32, by_log: bool) {
        let mut now = self.nodes[id as usize].now(self.now_us);
        if let Some(puppet) = &mut self.nodes[id as usize].puppet {
            if puppet.other.is_some() {
                return;
            }
            now.wall_ms += puppet.clock_ahead_ms();
            if puppet.plays(Trick::FutureClock)
                && let Some(live) = &self.nodes[id as usize].live
            {
                // It goes on where its clock was, which an honest node would not.
                now.wall_ms = now.wall_ms.max(live.store.latest().ms());
            }
        }
        let Some(Some(written)) = self.on_core(id, |live| live.sync.may_write().ok()) else {
            self.coverage.writes_blocked += 1;
            return self.run(id);
        };
        let live = self.nodes[id as usize].live.as_mut().expect("it may write");
        let writes = self.workload.writes(&live.store);
        let seen = translate::applied(live.store.applied(), &live.branches);
        let asked = self.on_core(id, |live| live.store.write(&writes, written, now.wall_ms));
        let outcome = match &asked {
            None => return,
            Some(Ok(Some(bundle))) => Outcome::Made {
                origin: translate::origin(bundle.origin()),
                branch: 0,
                first: bundle.first(),
                last: bundle.last(),
                clock: bundle.hlc().0,
            },
            Some(Ok(None)) => Outcome::Nothing,
            Some(Err(
                WriteRefused::KindClash { .. }
                | WriteRefused::RemovedForGood { .. }
                | WriteRefused::NoSuchIndex { .. },
            )) => Outcome::Refused,
            Some(Err(_)) => {
                self.coverage.writes_blocked += 1;
                return;
            }
        };
        let writes = writes.iter().map(translate::write).collect();
        self.notes.push(Note::Asked { node: id, seen: Rc::new(seen), writes, outcome });
        match asked {
            Some(Ok(Some(bundle))) => {
                self.coverage.frames_written += 1;
                self.coverage.changes_written += bundle.deltas().len() as u64;
                let made = self.on_core(id, |live| {
                    let made =
                        if by_log { live.sync.write_for_log(&bundle) } else { live.sync.write(&bundle) };
                    made.map(|made| live.owed.push((made.ticket, made.last, by_log.then_some(made.frame))))
                });
                if let Some(Err(refused)) = made
                    && !self.mutants.any()
                {
                    self.complain(format!("node {id} may write and then may not: {refused}"));
                }
            }
            Some(Err(_)) => self.coverage.writes_refused += 1,
            _ => {}
        }
        self.run(id);
    }

    pub fn push_late(&mut self, id: u32, life: u64, last: u64) {
        if self.is_life(id, life) {
            self.coverage.pushed_late += 1;
            self.on_core(id, |live| live.sync.push(last));
            self.run(id);
        }
    }

    // --- looking ---

    pub fn look(&mut self) {
        self.again(self.dials.look_ms, Event::Look);
        let honest = self.honest_up();
        let Some(id) = self.chances.work.pick(&honest).copied() else { return };
        if self.damaged.iter().any(|(node, _)| *node == id) {
            return; // It shows what it should not, until it is put right.
        }
        let all = self.chances.work.per_mille(100);
        let some = self.chances.work.below(7);
        self.look_at(id, |index| all || index % 7 == some, all);
    }

    /// Writes down what a node shows of some keys.
    pub fn look_at(&mut self, id: u32, which: impl Fn(u64) -> bool, counts: bool) {
        use crate::sync::workload::KEYS;
        let Some(live) = &self.nodes[id as usize].live else { return };
        let keys =
            KEYS.iter().zip(0..).filter(|(_, index)| which(*index)).map(|((key, _), _)| key.as_bytes());
        let views =
            keys.map(|key| (key.to_vec(), live.store.get(key).as_ref().map(translate::view))).collect();
        let applied = translate::applied(live.store.applied(), &live.branches);
        let coverage = &mut self.coverage;
        coverage.looks += 1;
        coverage.gaps += u64::from(applied.dots.values().any(|list| list.len() > 1 || list[0].0 > 1));
        coverage.clashes +=
            u64::from(KEYS.iter().any(|(key, _)| live.store.kinds(key.as_bytes(), &[]).len() > 1));
        let conflicts = counts.then(|| live.store.conflict_count());
        self.notes.push(Note::Cut { node: id, applied, views, conflicts });
    }

    /// What a liar knows of another, enough to try to speak in its name.
    pub fn mischief(&mut self, id: u32) {
        let us = self.chances.liar.between(50_000, 600_000);
        self.after_us(us, Event::Mischief { node: id });
        let others: Vec<u32> = (0..self.nodes.len() as u32).filter(|other| *other != id).collect();
        let (Some(to), Some(whom)) =
            (self.chances.liar.pick(&others).copied(), self.chances.liar.pick(&others).copied())
        else {
            return;
        };
        let now = self.nodes[id as usize].now(self.now_us);
        let victim = self.nodes[whom as usize].me();
        let crypto = std::sync::Arc::clone(&self.nodes[id as usize].setup.crypto);
        let mutants = self.mutants;
        let node = &mut self.nodes[id as usize];
        let (Some(live), Some(puppet)) = (&node.live, &mut node.puppet) else { return };
        let hash = live.sync.head(victim).map_or(Hash::ZERO, |head| head.hash);
        let known = puppet.plays(Trick::Forge).then(|| {
            let store = Snapshot::of(&live.store, &BTreeMap::new()).store(victim, mutants);
            crate::sync::liar::Victim { store, hash, now_ms: now.wall_ms }
        });
        let message = puppet.mischief(crate::sync::world::CLUSTER, &crypto, known.as_ref());
        if let Some(message) = message {
            self.send(id, to, &message);
        }
    }
}
