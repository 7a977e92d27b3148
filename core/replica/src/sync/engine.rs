//! Carries out what the engine of frames wants: its records, its messages, its changes of the store.

use crate::control::Control;
use crate::io::{Class, ClientId, Effect, Event};
use crate::recover::RecoverError;
use crate::replica::{Outbox, Replica};
use crate::sync::disk::is_base;
use crate::sync::fetch::{Fetched, What};
use crate::sync::ordered::unwrap;
use crate::sync::{Disk, Open, SyncRoom, origins};
use crate::wire::PeerMessage;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use bytes::Bytes;
use core::cell::Cell;
use dwcp_base::{
    Hash, Incarnation, Micros, Mutant, Now, PublicKey, ReplicaId, SigningKind, Ticket, encode, signing_hash,
};
use dwcp_crdt::{Applied, Bundle, Origin, OriginId, Store};
use dwcp_pbft::Output;
use dwcp_state::kv::range_meets;
use dwcp_state::{Carried, CheckedFrame, FrameContent, MachineRefusal, Refusal, StateMachine, Writer};
use dwcp_sync::repair::{self, Copy};
use dwcp_sync::{Action, Restored, Sync, audit};

/// Messages above this wait behind everything else on a link.
const BULK_BYTES: usize = 64 * 1024;

/// The number under which a command on convergent keys is refused; machines count from 1.
const CONVERGENT_CODE: u16 = u16::MAX;

/// What the room needs to know of the node it is part of.
pub(crate) struct Surroundings<'a> {
    pub setup: &'a crate::Setup,
    pub control: &'a Control,
    /// Of convergent state, what the log has.
    pub carried: &'a Carried,
    pub quorum: usize,
    pub faults: usize,
    /// Who orders now, if anybody is known to.
    pub orderer: Option<ReplicaId>,
}

impl Surroundings<'_> {
    /// Members in force that are known to lie, by what the log has seen of it or by proof that is here. Of the members that
    /// may, so many fewer are among the others.
    pub(crate) fn known_liars(&self, open: &Open) -> BTreeSet<ReplicaId> {
        let mut liars = self.control.convicted_members();
        liars.extend(self.control.configurations.latest().members.iter().filter_map(|member| {
            let origin = Origin::new(u32::from(member.id.0), member.incarnation.0);
            open.sync.proof(origin).map(|_| member.id)
        }));
        liars
    }
}

/// Who writes as this origin.
pub(crate) fn writer(origin: Origin) -> Option<Writer> {
    Some((replica_of(origin.id)?, Incarnation(origin.incarnation.0)))
}

fn replica_of(id: OriginId) -> Option<ReplicaId> {
    u8::try_from(id.0).ok().map(ReplicaId)
}

/// Keys of two stores that are not the same in both, those of one alone included.
fn differing(before: &mut Store, after: &mut Store) -> Vec<Bytes> {
    let after: BTreeMap<&Bytes, Hash> = after.key_hashes().collect();
    let before: BTreeMap<&Bytes, Hash> = before.key_hashes().collect();
    let changed = after.iter().filter(|(key, hash)| before.get(*key) != Some(hash)).map(|(key, _)| *key);
    let gone = before.keys().filter(|key| !after.contains_key(*key)).copied();
    changed.chain(gone).cloned().collect()
}

impl SyncRoom {
    /// Begins, if this incarnation is a member and has not yet.
    ///
    /// # Errors
    /// What the disk remembers makes no sense.
    pub(crate) fn open_if_member(&mut self, now: Now, around: &Surroundings<'_>) -> Result<(), String> {
        let members = origins(around.setup, around.control);
        if self.open.is_some() || !members.contains_key(&self.me) {
            return Ok(());
        }
        let (store, records) = self.disk.restore(self.me, &self.setup.resolvers)?;
        let setup = dwcp_sync::Setup {
            cluster: around.setup.genesis.cluster(),
            me: self.me,
            members,
            faults: around.faults,
            timing: self.setup.timing,
            limits: self.setup.limits,
            seed: around.setup.seed ^ 0x5359_4e43,
            crypto: Arc::clone(&self.crypto),
            mutants: around.setup.mutants,
        };
        let restored = Restored { applied: store.applied(), floor: store.floor_number() };
        let sync = Sync::open(&setup, restored, &records, now).map_err(|error| error.to_string())?;
        self.open = Some(Open { store, sync });
        Ok(())
    }

    /// Members changed.
    pub(crate) fn follow_members(&mut self, members: BTreeMap<Origin, PublicKey>) {
        if let Some(open) = self.open.as_mut().filter(|_| members.contains_key(&self.me)) {
            // The list is that of the control state, which is bounded; ours is in it.
            let _ = open.sync.set_members(members);
            self.tell_all_ends();
        }
    }

    pub(crate) fn on_message(&mut self, now: Now, from: ReplicaId, bytes: &Bytes) {
        if let Some(open) = &mut self.open {
            open.sync.on_message(now, OriginId(u32::from(from.0)), bytes);
        }
    }

    /// The log is on disk so far.
    pub(crate) fn on_durable(&mut self, through: Ticket, protocol: &mut Output, out: &mut Outbox) {
        let Some(mut open) = self.open.take() else { return };
        if let Some(ticket) = self.disk.durable(through) {
            open.sync.on_durable(ticket);
            self.ordering.on_durable(ticket);
        }
        self.disk.advance(through, &mut open, protocol, out);
        self.open = Some(open);
    }

    pub(crate) fn on_time(&mut self, now: Now) {
        if let Some(open) = &mut self.open
            && now.mono >= open.sync.next_wakeup()
        {
            open.sync.on_time(now);
        }
    }

    /// Does all there is to do, until there is nothing more, and answers whom it can.
    pub(crate) fn drive(
        &mut self,
        now: Now,
        around: &Surroundings<'_>,
        protocol: &mut Output,
        out: &mut Outbox,
    ) {
        let Some(mut open) = self.open.take() else { return };
        self.install_fetched(now, &mut open, protocol, out);
        self.end_origins(&around.control.ends, &mut open);
        self.commit_floors(&around.control.floors, &mut open);
        self.deliver_ordered(now, &mut open);
        self.note_own(around);
        self.halt_what_is_over(now, around, &mut open);
        loop {
            let actions = open.sync.take();
            if actions.is_empty() {
                break;
            }
            let mut applied = false;
            for action in actions {
                applied |= self.carry_out(now, action, &mut open, protocol, out);
            }
            if applied {
                open.sync.on_applied(open.store.applied());
            }
        }
        self.figures.conflicts_most = self.figures.conflicts_most.max(open.store.conflict_count());
        self.look_for_missed_floors(now, &open);
        self.disk.save_if_due(around.setup.settings.snapshot_log_bytes, &mut open, protocol, out);
        let fetches = self.transfer.wanted || self.transfer.is_under_way();
        let liars = if fetches { around.known_liars(&open) } else { BTreeSet::new() };
        self.open = Some(open);
        self.settle_writes(now, around.setup.mutants, out);
        self.send_for_ordering(now, around.orderer, out);
        self.follow_fetch(now, out);
        let faults = around.faults.saturating_sub(liars.len());
        let faults = if around.setup.mutants.on(Mutant::RoomStoreOfOneDonor) { 0 } else { faults };
        self.begin_fetch(now, faults, liars, out);
        self.tell_watchers(out);
        self.end_comparisons(now, out);
    }

    /// A snapshot that came from a peer takes the place of the store.
    fn install_fetched(&mut self, now: Now, open: &mut Open, protocol: &mut Output, out: &mut Outbox) {
        let Some(Fetched { donor, store, base, parts }) = self.fetched.take() else { return };
        for action in open.sync.take() {
            self.carry_out(now, action, open, protocol, out);
        }
        if let Err(error) = open.sync.install(&base, store.applied(), store.floor_number()) {
            return self.on_not_installed(now, donor, error);
        }
        // Said again while it was on its way; what is still needed after this is said anew.
        self.transfer.wanted = false;
        let mut before = core::mem::replace(&mut open.store, store);
        let differing = differing(&mut before, &mut open.store).into_iter();
        self.changed.extend(differing.filter(|key| self.setup.ordered_prefix(key).is_none()));
        self.figures.snapshots_installed += 1;
        let actions = open.sync.take();
        let base = actions.iter().find_map(|action| match action {
            Action::Persist { ticket, record } if is_base(record) => Some(*ticket),
            _ => None,
        });
        let base = base.expect("an install writes down where it stands");
        self.disk.save_fetched(&parts, base, protocol, out);
        for action in actions {
            self.carry_out(now, action, open, protocol, out);
        }
        open.sync.on_applied(open.store.applied());
    }

    /// These became part of the state: counted, and watchers hear of their keys. A change of a key that is ordered here is
    /// part of the state as everywhere, for prefixes are each node's own settings and replicas must not differ by them; it is
    /// counted, and shown to nobody.
    fn note_applied<'a>(&mut self, bundles: impl IntoIterator<Item = &'a Bundle>, out: &mut Outbox) {
        for bundle in bundles {
            self.figures.frames_applied += 1;
            for delta in bundle.deltas() {
                if self.setup.ordered_prefix(&delta.key).is_some() {
                    let from = replica_of(bundle.origin().id);
                    out.event(Event::Refused { from, reason: "a convergent change of an ordered key" });
                } else {
                    self.changed.insert(delta.key.clone());
                }
            }
        }
    }

    /// Enough members say so. What is saved may have been damaged before it was saved, so it is saved anew.
    fn adopt(&mut self, now: Now, at: Hash, copies: &[Copy], open: &mut Open, out: &mut Outbox) {
        let stands = open.sync.stand(open.store.applied());
        let adopted = repair::adopt(&mut open.store, stands, at, copies);
        open.sync.on_repaired(now, adopted.len());
        if adopted.is_empty() {
            return;
        }
        let keys = adopted.len() as u64;
        self.figures.keys_repaired += keys;
        self.disk.save_soon();
        self.changed.extend(adopted.into_iter().filter(|key| self.setup.ordered_prefix(key).is_none()));
        out.event(Event::KeysRepaired { keys });
    }

    /// True when the store changed.
    fn carry_out(
        &mut self,
        now: Now,
        action: Action,
        open: &mut Open,
        protocol: &mut Output,
        out: &mut Outbox,
    ) -> bool {
        match action {
            Action::Persist { ticket, record } => {
                // Somebody waits for it: a writer here, or one elsewhere who wants it durable on several nodes.
                self.disk.persist(ticket, &record, true, protocol, out);
            }
            Action::Send { to, message, after } => {
                let Some(to) = replica_of(to) else { return false };
                let class = if message.len() > BULK_BYTES { Class::Bulk } else { Class::Request };
                let after = self.disk.to_log(after);
                let bytes = Bytes::from(encode(&PeerMessage::Sync(message)));
                out.push(Effect::Send { to, class, after, bytes });
            }
            Action::Apply { bundle } => {
                // Its clock was judged when it came, or by whoever ordered it.
                match open.store.apply(&bundle, bundle.hlc().ms()) {
                    Ok(Applied::Done { released, .. }) => {
                        self.note_applied(core::iter::once(&bundle).chain(&released), out);
                        return true;
                    }
                    Ok(Applied::Duplicate | Applied::Held { .. }) => return true,
                    Err(error) => {
                        self.figures.bundles_refused += 1;
                        self.figures.last_refusal = error.to_string();
                    }
                }
            }
            Action::RaiseFloor(floor) => {
                if let Ok(released) = open.store.raise_floor(floor) {
                    self.note_applied(&released, out);
                    return true;
                }
                self.figures.bundles_refused += 1;
            }
            Action::AdoptFloors(floors) => {
                if let Ok(released) = open.store.adopt_floors(floors) {
                    self.note_applied(&released, out);
                    return true;
                }
                self.figures.bundles_refused += 1;
            }
            Action::EndOrigin { origin, last } => {
                let released = open.store.end_origin(origin, last);
                self.note_applied(&released, out);
                return true;
            }
            Action::Refused { from, reason } => {
                let from = from.and_then(replica_of);
                out.event(Event::Refused { from, reason: reason.word() });
            }
            // Who is at fault now, the engine says whenever it is asked.
            Action::Evidence(proof) => {
                out.event(Event::OriginFrozen { origin: proof.origin().to_string() });
            }
            Action::NeedSnapshot { .. } => self.transfer.wanted = true,
            Action::Withholds { member } => {
                out.event(Event::MemberHoldsUp { member: member.to_string(), how: "does not acknowledge" });
            }
            Action::Accuses { member, fault } => {
                out.event(Event::MemberHoldsUp { member: member.to_string(), how: fault.word() });
            }
            Action::Audit { peer, work } => {
                let stands = open.sync.stand(open.store.applied());
                let step = audit::answer(&mut open.store, stands, work.as_ref());
                open.sync.on_audited(now, peer, step);
            }
            Action::Differs { peer: _, keys } | Action::Damaged { keys } => {
                self.figures.keys_damaged += keys.len() as u64;
            }
            Action::Copies { peer, question } => {
                let stands = open.sync.stand(open.store.applied());
                if let Some(copies) = repair::copies(&open.store, stands, &question) {
                    open.sync.give_copies(peer, question.round, copies);
                }
            }
            Action::Repair { at, copies } => self.adopt(now, at, &copies, open, out),
            Action::Exchanged { peer, .. } => self.figures.exchanged(peer, now),
        }
        false
    }
}

impl<M: StateMachine> Replica<M> {
    pub(crate) fn surroundings(&self) -> Surroundings<'_> {
        Surroundings {
            setup: &self.setup,
            control: &self.control,
            carried: self.state.carried(),
            quorum: self.pbft.quorum().q(),
            faults: usize::from(self.pbft.quorum().f()),
            orderer: self.orderer(),
        }
    }

    /// The room does what there is to do. Only where every record that was given a ticket has been handed on.
    pub(crate) fn drive_sync(&mut self, now: Now, out: &mut Outbox) {
        let Some(mut room) = self.sync.take() else { return };
        let around = Surroundings {
            setup: &self.setup,
            control: &self.control,
            carried: self.state.carried(),
            quorum: self.pbft.quorum().q(),
            faults: usize::from(self.pbft.quorum().f()),
            orderer: self.orderer(),
        };
        room.drive(now, &around, &mut self.protocol, out);
        // Idle otherwise, the root would never let the log be shortened.
        let heavy = room.disk.is_heavy(self.setup.settings.snapshot_log_bytes);
        if heavy && !self.recovering && self.hears_quorum(now) {
            self.snapshot_wanted = true;
        }
        self.sync = Some(room);
    }

    /// The room takes what the disk remembers, and opens when what was executed before is executed again: members that came
    /// with it are not in the snapshot, and frames of nobody would be forgotten though they were acknowledged.
    pub(crate) fn begin_sync(&mut self, disk: Disk) {
        let Some(setup) = self.setup.sync.clone() else { return };
        self.sync = Some(SyncRoom::new(setup, &self.setup, Arc::clone(&self.crypto), disk));
    }

    /// See [`Self::begin_sync`].
    ///
    /// # Errors
    /// What the disk remembers makes no sense.
    pub(crate) fn open_sync(&mut self, now: Now) -> Result<(), RecoverError> {
        let Some(mut room) = self.sync.take() else { return Ok(()) };
        let opened = room.open_if_member(now, &self.surroundings());
        self.sync = Some(room);
        self.tell_exclusions();
        opened.map_err(|reason| RecoverError::Sync { reason })
    }

    pub(crate) fn sync_on_durable(&mut self, through: Ticket, out: &mut Outbox) {
        if let Some(room) = &mut self.sync {
            room.on_durable(through, &mut self.protocol, out);
        }
    }

    pub(crate) fn sync_on_time(&mut self, now: Now) {
        if let Some(room) = &mut self.sync {
            room.on_time(now);
        }
    }

    pub(crate) fn sync_client_gone(&mut self, client: ClientId) {
        if let Some(room) = &mut self.sync {
            room.gone(client);
        }
    }

    pub(crate) fn on_sync_message(
        &mut self,
        now: Now,
        from: ReplicaId,
        message: PeerMessage,
        out: &mut Outbox,
    ) {
        let (control, carried, cluster) = (&self.control, self.state.carried(), self.cluster);
        let Some(room) = &mut self.sync else { return };
        let outcome = match message {
            PeerMessage::Sync(bytes) => {
                room.on_message(now, from, &bytes);
                Ok(())
            }
            PeerMessage::SyncOrder { frame } => room.on_order(now, (control, carried), cluster, frame),
            PeerMessage::SyncFetch { id, part } => room.on_fetch(now, from, id, part, out),
            PeerMessage::SyncOffer { id, parts, bytes, digest, base } => {
                room.on_offer(now, from, (id, What { parts, bytes, digest }), base, out)
            }
            PeerMessage::SyncPart { id, part, bytes } => room.on_part(now, from, (id, part), bytes, out),
            PeerMessage::SyncStand { token, digest } => {
                room.on_stand(from, token, digest, out);
                Ok(())
            }
            _ => unreachable!("only messages of this room come here"),
        };
        if let Err(reason) = outcome {
            self.refuse_peer(from, reason, out);
        }
    }

    /// Why a client's frame is not taken: one of its commands orders keys that are convergent.
    pub(crate) fn sync_refuses(&self, frame: &CheckedFrame) -> Option<Refusal> {
        let room = self.sync.as_ref()?;
        let is_empty = room.store().is_none_or(|store| store.entries_count() == 0);
        if is_empty && room.setup.convergent.is_empty() {
            return None;
        }
        let FrameContent::Commands(frame) = frame.content() else { return None };
        // A machine's command has tag 0 before its own bytes.
        let mut commands = frame.commands.iter().filter_map(|command| command.strip_prefix(&[0]));
        let why = Cell::new(None);
        let is_convergent = |key: &[u8], range_end: &[u8]| {
            let declared = room.setup.convergent.iter().find(|prefix| range_meets(key, range_end, prefix));
            let reason = match declared {
                Some(prefix) => Some(alloc::format!(
                    "keys below {prefix:?} are convergent, so nothing about them can be compared or ordered: use `dwcp sync`"
                )),
                None => room.convergent_key(key, range_end).map(|held| alloc::format!(
                    "{held:?} is a convergent key, so nothing about it can be compared or ordered: use `dwcp sync`, or delete it there first"
                )),
            };
            let is_refused = reason.is_some();
            why.set(reason);
            is_refused
        };
        let machine = self.state.machine();
        commands.find(|command| machine.orders_any(command, &is_convergent))?;
        let reason = why.take()?;
        Some(Refusal::Machine(MachineRefusal::new(CONVERGENT_CODE, reason)))
    }

    /// The log holds a frame. One whose writer was not in force when the segment opened in which it stands, or when the root
    /// executes it, is as if it were not there: a past one's end may be decided by then. `unverified` as for clients' frames.
    pub(crate) fn carry_sync(&mut self, frame: &Bytes, unverified: bool) {
        let Some(received) = unwrap(frame) else { return };
        let header = received.header();
        let Some(writer) = writer(header.origin) else { return };
        let (members, opened_at) = match &self.segment {
            Some(segment) => (segment.members.as_ref(), segment.opened_at),
            None => (Some(self.control.configurations.latest()), self.control.executed.next()),
        };
        let member = members.and_then(|members| members.member(writer.0));
        let member = member.filter(|member| member.incarnation == writer.1);
        let is_excluded = self.control.over_since(writer).is_some_and(|over| over < opened_at);
        let Some(key) = member.filter(|_| !is_excluded).map(|member| member.vote_key) else {
            return self.count("convergent frames of nobody in force");
        };
        if let Some(segment) = self.segment.as_mut().filter(|_| unverified) {
            let message = signing_hash(SigningKind::SyncFrame, self.cluster, &received.hash().0);
            let item = (key, message, received.signed().signature);
            segment.anchors.signatures.verify_later(item, &*self.crypto);
        }
        self.state.carry(writer, header.first, header.last);
        if let Some(room) = &mut self.sync {
            room.note_ordered(*header, frame.clone());
        }
    }

    /// What the root may discard, as far as convergent state goes.
    pub(crate) fn sync_may_discard(&mut self, before: Ticket) -> Ticket {
        self.sync.as_mut().map_or(before, |room| room.disk.wish(before))
    }

    pub(crate) fn sync_follow_members(&mut self, now: Now, out: &mut Outbox) {
        if self.recovering {
            return; // Not open yet, and other members may follow.
        }
        let members = origins(&self.setup, &self.control);
        let Some(mut room) = self.sync.take() else { return };
        room.follow_members(members);
        if let Err(reason) = room.open_if_member(now, &self.surroundings()) {
            self.halted = true;
            out.push(Effect::Halt { reason: lost(&reason) });
        }
        self.sync = Some(room);
        self.tell_exclusions();
    }

    /// Frames of convergent state that wait to be ordered, for the next proposal.
    pub(crate) fn sync_batch(&mut self, bytes_max: usize, frames_max: usize) -> Vec<Bytes> {
        let turn = self.sync_turn();
        self.sync.as_mut().map_or_else(Vec::new, |room| room.next_batch(turn, bytes_max, frames_max))
    }

    /// What was proposed in another turn may be lost.
    pub(crate) fn sync_turn(&self) -> (u64, u64) {
        let epoch = self.control.fold.epoch().0;
        match self.segment.as_ref().and_then(|segment| segment.raft.as_ref()) {
            Some(raft) => (epoch * 2 + 1, raft.term().0),
            None => (epoch * 2, self.pbft.view().0),
        }
    }
}

/// What to tell whoever runs a node whose convergent state cannot be read back.
pub(crate) fn lost(reason: &str) -> String {
    alloc::format!(
        "convergent state cannot be read back ({reason}): the disk is damaged, run `dwcp member replace`"
    )
}

/// Long enough for whoever asks for nothing more.
pub(crate) const fn at_most(ms: u32, max_ms: u32, default_ms: u32) -> Micros {
    let ms = if ms == 0 { default_ms } else { ms };
    Micros::from_millis(if ms > max_ms { max_ms as u64 } else { ms as u64 })
}
