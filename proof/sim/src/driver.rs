//! What the process around a replica core does, by the contract of `dwcp_replica`: take the inputs that wait, step
//! each, settle, append what must persist, sync once, then let go what waited for it.
//!
//! Between any two of these the process may die; where, is drawn per sync.

use crate::disk::{Flip, Opened};
use crate::node::{Down, Frozen, INBOX_MAX, Job};
use crate::observe::is_commit;
use crate::runner::guarded;
use crate::store::Store;
use crate::world::{Event, Moment, Strike, World};
use check::history::{ReplicaEvent, ReplicaJournal};
use dwcp_base::{Incarnation, Micros, Ticket};
use dwcp_pbft::Timing;
use dwcp_replica::raft::Limits;
use dwcp_replica::{
    Effect, Input, Outbox, RecoveredSnapshot, Recovery, Replica, SegmentSettings, Settings, Setup,
};

/// Inputs taken at once.
const BURST_MAX: usize = 64;
/// Time between an input's arrival at an idle process and its handling.
const WAKE_UP_US: u64 = 30;
/// Times in a row that a core may ask to be woken for the past; a burst of inputs explains some of them.
const HASTY_MAX: u64 = 3_000;
/// How long records that nobody waits for stay unsynced.
const FLUSH_US: u64 = 50_000;

impl World {
    pub fn on_input(&mut self, ix: usize, boot: u64, input: Input) {
        let node = &mut self.nodes[ix];
        if !node.is_up() || (boot != 0 && boot != node.boot) {
            return;
        }
        if node.inbox.len() >= INBOX_MAX && matches!(input, Input::Peer { .. }) {
            return;
        }
        node.inbox.push_back(input);
        self.schedule_burst(ix);
    }

    fn schedule_burst(&mut self, ix: usize) {
        let node = &mut self.nodes[ix];
        if !node.burst_scheduled {
            node.burst_scheduled = true;
            let boot = node.boot;
            self.schedule(WAKE_UP_US, Event::Burst { node: ix, boot });
        }
    }

    /// True when the process is stopped; what should have happened comes when it continues.
    fn defer_if_paused(&mut self, ix: usize, event: Event) -> Option<Event> {
        let until = self.nodes[ix].paused_until_us;
        if until > self.now_us {
            let after = until - self.now_us;
            self.schedule(after, event);
            return None;
        }
        Some(event)
    }

    pub fn on_burst(&mut self, ix: usize, boot: u64) {
        if boot != self.nodes[ix].boot || !self.nodes[ix].is_up() {
            return;
        }
        if self.defer_if_paused(ix, Event::Burst { node: ix, boot }).is_none() {
            return;
        }
        self.nodes[ix].burst_scheduled = false;
        if self.nodes[ix].syncing && self.dials.pipelined_sync == 0 {
            return; // the end of the sync goes on
        }
        let now = self.nodes[ix].now(self.now_us);
        let count = self.nodes[ix].inbox.len().min(BURST_MAX);
        let inputs: Vec<Input> = self.nodes[ix].inbox.drain(..count).collect();
        for input in inputs {
            self.note_input(ix, &input);
            let heard = match self.nodes[ix].puppet.as_mut() {
                Some(puppet) => puppet.hear(input),
                None => Some(input),
            };
            let Some(input) = heard else { continue };
            let write = self.before_write(ix, &input).map(|before| (before, input.clone()));
            if !self.step(ix, |core, out| core.step(now, input, out)) {
                return;
            }
            if let Some((before, input)) = write {
                self.after_write(ix, &input, &before);
            }
        }
        if !self.step(ix, |core, out| core.step(now, Input::Settle, out)) {
            return;
        }
        self.drain(ix);
        if self.nodes[ix].is_up() {
            if !self.nodes[ix].inbox.is_empty() {
                self.schedule_burst(ix);
            }
            self.schedule_wake(ix);
        }
    }

    fn note_input(&mut self, ix: usize, input: &Input) {
        match input {
            Input::Peer { from, bytes, .. } => {
                self.trace.mix(&[self.now_us, ix as u64, u64::from(from.0)]);
                self.trace.mix_bytes(bytes);
                if self.trace.keeps_lines() {
                    let text = crate::observe::describe(bytes);
                    let (at, node) = (self.now_us, format!("{:?}", self.nodes[ix]));
                    self.trace.line(at, || format!("{node} <- {from:?} {text}"));
                }
            }
            other => {
                self.trace.mix(&[self.now_us, ix as u64, 1000]);
                if self.trace.keeps_lines() && !matches!(other, Input::Wake) {
                    let text = crate::observe::describe_input(other);
                    let (at, node) = (self.now_us, format!("{:?}", self.nodes[ix]));
                    self.trace.line(at, || format!("{node} <- {text}"));
                }
            }
        }
    }

    /// Runs the core. False when the process died of it.
    fn step(&mut self, ix: usize, act: impl FnOnce(&mut Replica<Store>, &mut Outbox)) -> bool {
        let checked = !self.mutants.any() && self.nodes[ix].honest && !self.nodes[ix].lost_sync;
        let node = &mut self.nodes[ix];
        let Some(core) = node.core.as_mut() else { return false };
        let outbox = &mut node.outbox;
        let result = guarded(|| {
            act(core, outbox);
            if checked {
                core.check();
            }
        });
        let Err(text) = result else {
            self.observe_slots(ix);
            return true;
        };
        if self.nodes[ix].honest {
            let node = format!("{:?}", self.nodes[ix]);
            self.complain(format!("{node} panicked: {text}"));
        }
        self.crash(ix, Down::Crashed);
        false
    }

    pub fn complain(&mut self, text: String) {
        let at = self.now_us;
        self.trace.line(at, || format!("!! {text}"));
        if self.complaints.len() < 20 {
            self.complaints.push(format!("at {}.{:06}: {text}", at / 1_000_000, at % 1_000_000));
        }
    }

    fn schedule_wake(&mut self, ix: usize) {
        let node = &mut self.nodes[ix];
        let Some(core) = node.core.as_ref() else { return };
        let wake = core.next_wakeup();
        if wake.0 == u64::MAX {
            return;
        }
        // Waking late by less than a burst is what real timers do, and it bounds a core that asks for the past.
        let due = wake.0.saturating_add(node.booted_at_us);
        let breath_us = if node.hasty > HASTY_MAX { 5_000 } else { 100 };
        let at = due.max(self.now_us + breath_us);
        node.hasty = if due <= self.now_us { node.hasty + 1 } else { 0 };
        if node.hasty == HASTY_MAX && node.honest {
            let now = node.now(self.now_us);
            let status = core.status(now);
            let text = format!(
                "{node:?} asks to be woken at once, {HASTY_MAX} times in a row: {} us ago, the root alone {:?}; leads {}, ending {:?}, {:?}",
                self.now_us.saturating_sub(due),
                core.protocol().next_wakeup().0.checked_sub(now.mono.0),
                status.segment.as_ref().is_some_and(|s| s.leader == Some(node.replica)),
                core.control().steering.ending,
                status.segment,
            );
            self.complain(text);
        }
        let node = &mut self.nodes[ix];
        if at < node.wake_at_us {
            node.wake_at_us = at;
            let boot = node.boot;
            let after = at - self.now_us;
            self.schedule(after, Event::Wake { node: ix, boot });
        }
    }

    pub fn on_wake(&mut self, ix: usize, boot: u64) {
        if boot != self.nodes[ix].boot || !self.nodes[ix].is_up() {
            return;
        }
        if self.defer_if_paused(ix, Event::Wake { node: ix, boot }).is_none() {
            return;
        }
        if self.nodes[ix].wake_at_us <= self.now_us {
            self.nodes[ix].wake_at_us = u64::MAX;
            self.on_input(ix, boot, Input::Wake);
        }
    }

    /// Carries out what the core asked for, as far as no sync is needed, and begins a sync if one is.
    pub fn drain(&mut self, ix: usize) {
        let effects = self.nodes[ix].outbox.drain();
        for effect in effects {
            let node = &mut self.nodes[ix];
            node.decided += 1;
            let order = node.decided;
            // Discriminant 12: what it has promised by the time it says where its log ends.
            if let Effect::Send { bytes, .. } = &effect
                && bytes.first() == Some(&12)
            {
                let bytes = bytes.clone();
                self.observe_sealing(ix, &bytes, order);
            }
            let node = &mut self.nodes[ix];
            let after = match effect {
                Effect::Persist { ticket, record, prompt } => {
                    node.prompt |= prompt;
                    if node.disk.full {
                        let at = self.now_us;
                        self.coverage.disks_full += 1;
                        self.trace.line(at, || format!("{:?} stops: disk full", self.nodes[ix]));
                        self.crash(ix, Down::DiskFull);
                        return;
                    }
                    self.trace.mix_bytes(&record);
                    if ticket != node.disk.next_ticket() {
                        let text =
                            format!("{node:?} persists {ticket:?}, due is {:?}", node.disk.next_ticket());
                        self.complain(text);
                        self.crash(ix, Down::Crashed);
                        return;
                    }
                    node.disk.append(ticket, record);
                    if self.strikes(ix, Moment::Written, ticket) {
                        return;
                    }
                    continue;
                }
                Effect::Send { after, .. } | Effect::Reply { after, .. } => after,
                Effect::Event(ref event) => {
                    let after = node.disk.last_ticket();
                    let event = event.clone();
                    self.observe_at_once(ix, &event, order);
                    after
                }
                _ => node.disk.last_ticket(),
            };
            if after <= self.nodes[ix].disk.claimed() {
                self.carry_out(ix, effect, order);
                if !self.nodes[ix].is_up() {
                    return;
                }
            } else {
                self.nodes[ix].waiting.push_back((after, order, effect));
            }
        }
        self.observe_decisions(ix, self.nodes[ix].disk.last_ticket());
        self.observe_leases(ix);
        self.observe_convictions(ix);
        let node = &self.nodes[ix];
        let last = node.disk.last_ticket();
        if let Some((after, ..)) = node.waiting.iter().find(|(after, ..)| *after > last) {
            let text = format!("{node:?} waits for {after:?}, which was never written");
            self.complain(text);
        }
        if self.crashes_here() {
            self.coverage.crashes_at_tickets += 1;
            self.crash(ix, Down::Crashed);
            return;
        }
        self.begin_sync(ix);
    }

    /// Whether the process dies here, as was asked for: records up to `through` have come to this moment.
    fn strikes(&mut self, ix: usize, moment: Moment, through: Ticket) -> bool {
        let due = |strike: &Strike| strike.node == ix && strike.when == moment && strike.ticket <= through;
        let Some(strike) = self.strike.take_if(|strike| due(strike)) else { return false };
        let survives = match moment {
            Moment::Written => Ticket(strike.ticket.0 - 1),
            Moment::Durable => strike.ticket,
        };
        self.crash_leaving(ix, Down::Crashed, Some(survives));
        true
    }

    fn crashes_here(&mut self) -> bool {
        let ppm = self.dials.crash_ticket_ppm;
        ppm > 0 && !self.in_calm() && self.chances.crash.below(1_000_000) < ppm
    }

    fn begin_sync(&mut self, ix: usize) {
        let node = &mut self.nodes[ix];
        if node.syncing || node.disk.last_ticket() <= node.disk.claimed() {
            return;
        }
        let claimed = node.disk.claimed();
        let is_waited_for = node.waiting.iter().any(|(after, _, effect)| {
            *after > claimed && matches!(effect, Effect::Send { .. } | Effect::Reply { .. })
        });
        if !is_waited_for && !node.prompt {
            if !node.flush_scheduled {
                node.flush_scheduled = true;
                let boot = node.boot;
                self.schedule(FLUSH_US, Event::Flush { node: ix, boot });
            }
            return;
        }
        self.sync_now(ix);
    }

    pub fn on_flush(&mut self, ix: usize, boot: u64) {
        if boot == self.nodes[ix].boot && self.nodes[ix].is_up() {
            self.nodes[ix].flush_scheduled = false;
            let node = &self.nodes[ix];
            if !node.syncing && node.disk.last_ticket() > node.disk.claimed() {
                self.sync_now(ix);
            }
        }
    }

    fn sync_now(&mut self, ix: usize) {
        let node = &mut self.nodes[ix];
        node.syncing = true;
        node.prompt = false;
        let (ticket, boot) = (node.disk.last_ticket(), node.boot);
        let base = if node.disk.slow { self.dials.sync_us * 100 } else { self.dials.sync_us };
        let after = base / 2 + self.chances.disk.below(base + 1);
        self.schedule(after, Event::SyncDone { node: ix, boot, ticket });
    }

    pub fn on_sync_done(&mut self, ix: usize, boot: u64, ticket: Ticket) {
        if boot != self.nodes[ix].boot || !self.nodes[ix].is_up() {
            return;
        }
        if self.defer_if_paused(ix, Event::SyncDone { node: ix, boot, ticket }).is_none() {
            return;
        }
        if self.strikes(ix, Moment::Durable, ticket) {
            return;
        }
        let node = &mut self.nodes[ix];
        node.syncing = false;
        node.disk.sync(ticket, &mut self.chances.disk);
        let claimed = node.disk.claimed();
        let (free, waiting): (Vec<_>, Vec<_>) =
            std::mem::take(&mut node.waiting).into_iter().partition(|(after, ..)| *after <= claimed);
        node.waiting = waiting.into();
        self.settle_decisions(ix, claimed);
        self.settle_leases(ix, claimed);
        let mut dies_after = usize::MAX;
        if self.crashes_here() {
            self.coverage.crashes_at_tickets += 1;
            dies_after = usize::try_from(self.chances.crash.below(free.len() as u64 + 1)).unwrap_or(0);
            self.coverage.crashes_between_effects += u64::from(dies_after > 0 && dies_after < free.len());
        }
        for (count, (_, order, effect)) in free.into_iter().enumerate() {
            if count >= dies_after {
                // What is durable happened, though nobody was told.
                if let Effect::Event(event) = effect {
                    self.observe_event(ix, event);
                }
                continue;
            }
            self.carry_out(ix, effect, order);
            if !self.nodes[ix].is_up() {
                return;
            }
        }
        if dies_after != usize::MAX {
            self.crash(ix, Down::Crashed);
            return;
        }
        let now = self.nodes[ix].now(self.now_us);
        for input in [Input::Durable { through: claimed }, Input::Settle] {
            if !self.step(ix, |core, out| core.step(now, input, out)) {
                return;
            }
        }
        self.drain(ix);
        if self.nodes[ix].is_up() {
            if !self.nodes[ix].inbox.is_empty() {
                self.schedule_burst(ix);
            }
            self.schedule_wake(ix);
        }
    }

    fn carry_out(&mut self, ix: usize, effect: Effect, order: u64) {
        match effect {
            Effect::Persist { .. } => unreachable!("persists are appended when drained"),
            Effect::Send { to, class, bytes, .. } => {
                self.observe_send(ix, to, &bytes, order);
                if self.net.loses_commits() && is_commit(&bytes) && self.net.loses_commit() {
                    return;
                }
                if self.nodes[ix].puppet.is_some() {
                    self.send_as_puppet(ix, to, class, bytes);
                } else {
                    self.send(ix, to, bytes, 0);
                }
            }
            Effect::Reply { client, reply, .. } => {
                let reply =
                    if self.nodes[ix].puppet.is_some() { self.spoil_reply(ix, reply) } else { Some(reply) };
                if let Some(reply) = reply {
                    self.observe_convergent_reply(ix, &reply);
                    self.reply(ix, client, reply);
                }
            }
            Effect::SaveSnapshot { sequence, meta, frozen } => {
                self.begin_job(ix, Job::Save { sequence, meta, frozen: Frozen(frozen) });
            }
            Effect::SaveChunk { sequence, index, bytes } => {
                self.nodes[ix].disk.save_chunk(sequence, index, bytes)
            }
            Effect::FinishSnapshot { sequence, meta } => self.begin_job(ix, Job::Finish { sequence, meta }),
            Effect::ReadChunk { token, sequence, index, offset, bytes_max } => {
                let mut bytes = self.nodes[ix].disk.read_chunk(sequence, index, offset, bytes_max);
                let mut late_us = 0;
                if self.nodes[ix].puppet.is_some() {
                    (bytes, late_us) = self.spoil_chunk(ix, index, bytes);
                }
                let boot = self.nodes[ix].boot;
                let after = late_us + 50 + self.chances.disk.below(500);
                self.schedule(
                    after,
                    Event::Input { node: ix, boot, input: Input::ChunkRead { token, bytes } },
                );
            }
            Effect::DropSnapshot { sequence } => self.nodes[ix].disk.drop_snapshot(sequence),
            Effect::DiscardLog { before } => self.nodes[ix].disk.discard(before),
            Effect::MemberChanged { order } => {
                self.nodes[ix].known.insert((order.id, order.incarnation));
            }
            Effect::Event(event) => self.observe_event(ix, event),
            Effect::Halt { reason } => self.halt(ix, &reason),
        }
    }

    fn halt(&mut self, ix: usize, reason: &str) {
        let at = self.now_us;
        self.trace.line(at, || format!("{:?} halts: {reason}", self.nodes[ix]));
        if self.nodes[ix].lost_sync {
            // What the operator reads in the log of a node whose disk broke its promise.
            self.lose_disk(ix);
            return;
        }
        if self.nodes[ix].honest {
            let text = format!("{:?} halted: {reason}", self.nodes[ix]);
            self.complain(text);
        }
        self.crash(ix, Down::Crashed);
    }

    fn begin_job(&mut self, ix: usize, job: Job) {
        let boot = self.nodes[ix].boot;
        let after = self.dials.sync_us * 4 + self.chances.disk.below(200_000);
        let number = self.order_number();
        self.nodes[ix].jobs.insert(number, job);
        self.schedule(after, Event::JobDone { node: ix, boot, job: number });
    }

    pub fn on_job_done(&mut self, ix: usize, boot: u64, job: u64) {
        if boot != self.nodes[ix].boot || !self.nodes[ix].is_up() {
            return;
        }
        if self.defer_if_paused(ix, Event::JobDone { node: ix, boot, job }).is_none() {
            return;
        }
        let node = &mut self.nodes[ix];
        let Some(job) = node.jobs.remove(&job) else { return };
        let (sequence, written) = match job {
            Job::Save { sequence, meta, frozen } => {
                let chunks: Result<Vec<_>, _> =
                    (0..frozen.0.chunk_count()).map(|index| frozen.0.chunk(index)).collect();
                match chunks {
                    Ok(chunks) if !node.disk.full => {
                        node.disk.snapshots.insert(sequence, crate::disk::Snapshot { meta, chunks });
                        (sequence, true)
                    }
                    _ => (sequence, false),
                }
            }
            Job::Finish { sequence, meta } if !node.disk.full => {
                node.disk.finish(sequence, meta);
                (sequence, true)
            }
            Job::Finish { sequence, .. } => (sequence, false),
        };
        self.coverage.snapshots_saved += u64::from(written);
        let input =
            if written { Input::SnapshotSaved { sequence } } else { Input::SnapshotFailed { sequence } };
        self.on_input(ix, boot, input);
    }

    /// The process dies, with whatever the disk had not yet.
    pub fn crash(&mut self, ix: usize, down: Down) {
        self.crash_leaving(ix, down, None);
    }

    /// The same; what is on the disk then is drawn, or asked for.
    fn crash_leaving(&mut self, ix: usize, down: Down, survives: Option<Ticket>) {
        let at = self.now_us;
        self.trace.line(at, || format!("{:?} dies ({down:?})", self.nodes[ix]));
        self.trace.mix(&[at, ix as u64, 2000]);
        self.observe_convergent_death(ix);
        let node = &mut self.nodes[ix];
        node.slept_at_epoch =
            node.core.as_ref().map_or(node.slept_at_epoch, |core| core.control().fold.epoch().0);
        node.core = None;
        node.down = Some(down);
        node.down_since_us = at;
        node.boot += 1;
        node.inbox.clear();
        node.burst_scheduled = false;
        node.wake_at_us = u64::MAX;
        node.outbox = Outbox::default();
        let waiting = std::mem::take(&mut node.waiting);
        node.syncing = false;
        node.flush_scheduled = false;
        node.prompt = false;
        node.jobs.clear();
        node.connections.clear();
        node.borders.clear();
        node.paused_until_us = 0;
        let bytes = &mut self.chances.bytes;
        let damage = match survives {
            None => node.disk.crash(self.dials.torn_pm, &mut self.chances.disk, bytes),
            Some(survives) => node.disk.cut(survives, survives < node.disk.last_ticket(), bytes),
        };
        self.coverage.records_lost += damage.records_lost;
        self.coverage.torn_writes += u64::from(damage.torn);
        self.coverage.torn_tails_told += u64::from(damage.warned);
        if let Some(text) = damage.wrong {
            self.complain(format!("{:?}, at a torn write: {text}", self.nodes[ix]));
        }
        let node = &mut self.nodes[ix];
        if damage.broke_promise {
            self.coverage.lost_syncs += 1;
            node.lost_sync = true;
        }
        // What is on the disk after all happened: it is executed again in silence, as known to the world.
        let survives = node.disk.last_ticket();
        self.settle_decisions(ix, survives);
        self.forget_decisions(ix);
        self.forget_leases(ix, survives);
        for (after, _, effect) in waiting {
            if let Effect::Event(event) = effect
                && after <= survives
            {
                self.observe_event(ix, event);
            }
        }
        for peer in 0..self.nodes.len() {
            self.link_down(peer, ix, 500);
        }
        if down == Down::Crashed {
            let boot = self.nodes[ix].boot;
            let after = if self.in_calm() {
                200_000
            } else {
                1_000 + self.chances.crash.below(self.dials.down_ms * 1000 + 1)
            };
            self.schedule(after, Event::Start { node: ix, boot });
        }
    }

    /// The process starts, with what its disk holds.
    pub fn on_start(&mut self, ix: usize, boot: u64) {
        let (sync, watched) = (self.sync_setup(), self.watches_leases());
        let node = &mut self.nodes[ix];
        if node.is_up() || boot != node.boot || node.down == Some(Down::DiskLost) {
            return;
        }
        if node.down == Some(Down::DiskFull) && node.disk.full {
            return; // started when there is room
        }
        node.boot += 1;
        node.booted_at_us = self.now_us;
        node.down = None;
        match node.disk.open(&mut self.chances.bytes) {
            Opened::Sound => {}
            Opened::Refused(why) => {
                let at = self.now_us;
                self.trace.line(at, || format!("{:?} does not start: {why}", self.nodes[ix]));
                self.coverage.disks_damaged += 1;
                return self.lose_disk(ix);
            }
            Opened::Wrong(text) => {
                let text = format!("{node:?}, at its start: {text}");
                self.complain(text);
            }
        }
        let node = &mut self.nodes[ix];
        node.known.clear();
        let recovery = recovery_of(&node.disk);
        let setup = Setup {
            genesis: std::sync::Arc::clone(&self.genesis),
            me: node.replica,
            incarnation: node.incarnation,
            settings: settings(&self.dials),
            raft: Some(std::sync::Arc::new(dwcp_replica::raft::OwnRaft)),
            sync,
            seed: self.seed.wrapping_mul(1_000).wrapping_add(ix as u64 * 40).wrapping_add(node.boot),
            mutants: node.puppet.as_ref().map_or(self.mutants, |puppet| puppet.lacks(self.mutants)),
        };
        let identity =
            crate::keys::Identity::Vote { replica: node.replica.0, incarnation: node.incarnation.0 };
        let crypto = self.keys.signer(identity, &self.known_keys);
        let now = node.now(self.now_us);
        let mut outbox = Outbox::default();
        let (quota_bytes, watched) = (self.genesis.quota_bytes, node.honest && watched);
        let made = guarded(|| {
            Replica::recover(
                setup,
                std::sync::Arc::new(move || Store::new(quota_bytes, watched)),
                crypto,
                recovery,
                now,
                &mut outbox,
            )
        });
        let journal = node.journal;
        let at = self.now_us;
        let damaged_chunk = matches!(node.disk.flipped, Some(Flip::Chunk { .. }));
        match made {
            Ok(Ok(core)) => {
                if damaged_chunk {
                    let text = format!(
                        "{:?}, at its start: a damaged snapshot is taken all the same",
                        self.nodes[ix]
                    );
                    self.complain(text);
                }
                let node = &mut self.nodes[ix];
                let epoch = core.control().fold.epoch().0;
                node.core = Some(core);
                node.outbox = outbox;
                node.decided = 0;
                node.hasty = 0;
                node.sealing.clear();
                node.spoken.clear();
                self.journals[journal].note(at, ReplicaEvent::Boot);
                self.journals[journal].note(at, ReplicaEvent::Knows { epoch });
                self.note_covered(ix);
                self.observe_convergent_start(ix);
                self.wakes_up(ix);
                self.trace.line(at, || format!("{:?} starts", self.nodes[ix]));
                self.drain(ix);
                self.links_up(ix);
                if self.nodes[ix].is_up() {
                    self.schedule_wake(ix);
                    self.schedule_burst(ix);
                }
            }
            failed => {
                let why = match failed {
                    Ok(Err(error)) => format!("{error}"),
                    Err(panic) => panic,
                    Ok(Ok(_)) => unreachable!("handled above"),
                };
                let node = &self.nodes[ix];
                if damaged_chunk {
                    self.trace.line(at, || format!("{node:?} does not start: {why}"));
                    self.coverage.disks_damaged += 1;
                    self.coverage.chunks_damaged += 1;
                } else if node.honest && !node.lost_sync {
                    let text = format!("{node:?} cannot recover: {why}");
                    self.complain(text);
                }
                self.lose_disk(ix);
            }
        }
    }

    /// Both ends of every link of a node hear that it is up.
    fn links_up(&mut self, ix: usize) {
        for peer in 0..self.nodes.len() {
            if self.nodes[peer].replica == self.nodes[ix].replica {
                continue;
            }
            self.link_up(ix, peer);
        }
    }

    pub fn link_up(&mut self, a: usize, b: usize) {
        if self.net.is_cut(a, b) || self.net.is_cut(b, a) {
            return;
        }
        let after = 1_000 + self.chances.driver.below(5_000);
        for (here, there) in [(a, b), (b, a)] {
            if self.nodes[here].is_up() {
                let (boot, peer) = (self.nodes[here].boot, self.nodes[there].replica);
                self.schedule(after, Event::Input { node: here, boot, input: Input::LinkUp { peer } });
            }
        }
    }

    /// One end of a link learns that the other is gone; more often than not, as the dial says.
    pub fn link_down(&mut self, here: usize, there: usize, after_us: u64) {
        let peer = self.nodes[there].replica;
        let told = self.dials.link_down_pm > 0
            && self.nodes[here].is_up()
            && self.nodes[here].replica != peer
            && self.chances.link.per_mille(self.dials.link_down_pm);
        if told {
            let boot = self.nodes[here].boot;
            self.schedule(after_us, Event::Input { node: here, boot, input: Input::LinkDown { peer } });
        }
    }

    /// A blank disk takes the place of the old one, under the next incarnation.
    pub fn replace_disk(&mut self, ix: usize, incarnation: Incarnation) {
        let node = &mut self.nodes[ix];
        node.disk = crate::disk::Disk::new();
        node.down = Some(Down::Crashed);
        if incarnation != node.incarnation {
            node.incarnation = incarnation;
            node.lost_sync = false;
            node.honest = node.puppet.is_none() && !node.twin;
            let (replica, honest) = (u32::from(node.replica.0), node.honest);
            self.journals.push(ReplicaJournal::new(replica, u64::from(incarnation.0), honest, false));
            let journal = self.journals.len() - 1;
            let node = &mut self.nodes[ix];
            node.journal = journal;
            node.noted.clear();
            node.sealed.clear();
            node.complained.clear();
            node.left_below = 0;
            node.held_max = 0;
            if self.admitted.contains(&(node.replica, incarnation)) {
                self.journals[journal].note(self.now_us, ReplicaEvent::Admitted);
            }
        }
        let boot = self.nodes[ix].boot;
        self.schedule(500_000, Event::Start { node: ix, boot });
    }
}

fn recovery_of(disk: &crate::disk::Disk) -> Recovery {
    let snapshot = disk.newest().map(|(sequence, snapshot, chunks)| RecoveredSnapshot {
        sequence,
        meta: snapshot.meta.clone(),
        chunks: Box::new(chunks.into_iter()),
    });
    let partial = disk
        .partial
        .iter()
        .map(|(sequence, chunks)| {
            (*sequence, chunks.iter().map(|(index, bytes)| (*index, bytes.clone())).collect())
        })
        .collect();
    Recovery { snapshot, partial, records: disk.records(), next_ticket: disk.next_ticket() }
}

/// The settings of every replica of a run.
fn settings(dials: &crate::dials::Dials) -> Settings {
    let view_timeout = Micros::from_millis(dials.view_timeout_ms);
    let size = |value: u64| usize::try_from(value).expect("sizes fit");
    let settings = Settings {
        timing: Timing {
            view_timeout,
            standing_interval: Micros::from_millis((dials.view_timeout_ms / 2).max(100)),
            resend_interval: Micros::from_millis((dials.view_timeout_ms / 8).max(50)),
            ..Timing::lan()
        },
        pipeline_depth: dials.pipeline_depth,
        batch_bytes_max: size(dials.batch_bytes_max),
        relay_after: Micros::from_millis((dials.view_timeout_ms / 4).max(1)),
        segment: SegmentSettings {
            timing: dwcp_replica::raft::Timing {
                election_timeout: Micros::from_millis(dials.election_ms.max(20)),
                heartbeat_interval: Micros::from_millis((dials.election_ms / 5).max(4)),
            },
            fast_path_timeout: (dials.fast_path_ms > 0)
                .then(|| Micros::from_millis(dials.fast_path_ms.max(50))),
            anchor_interval: Micros::from_millis(dials.anchor_ms.max(10)),
            limits: match dials.append_entries_max {
                0 => SegmentSettings::lan().limits,
                most => Limits { append_entries_max: most, ..SegmentSettings::lan().limits },
            },
            apply_bytes: match dials.apply_bytes {
                0 => SegmentSettings::lan().apply_bytes,
                bytes => size(bytes),
            },
        },
        snapshot_log_bytes: dials.snapshot_log_bytes,
        history_bytes_max: size(dials.snapshot_log_bytes * 2),
        ..Settings::lan()
    };
    settings.check().expect("the dials keep to the settings' ranges");
    settings
}
