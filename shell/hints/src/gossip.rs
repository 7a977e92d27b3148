//! Hints as one machine: which records are believed and passed on, what foca may hear, when this replica needs a new version
//! of its own record.
//!
//! A record goes to each peer once a link, unless it came from there, and once more every minute. An identity reaches foca
//! only when its owner has signed it, so nobody can put a member out of its own name. Bounds: one record for each member,
//! for each peer a mark for each member, and what `swim.rs` says.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use bytes::Bytes;
use dwcp_base::{Chance, ClusterId, Crypto, Incarnation, Micros, Now, ReplicaId};

use crate::drops::{DropReason, Drops};
use crate::hints::{Effect, Hint, Hints, Input, Known, Standing};
use crate::record::{Record, RecordFault, check_address};
use crate::swim::{Swim, Timing};
use crate::wire::{Identity, MESSAGE_BYTES_MAX, Message, Packet, RECORDS_MAX};

/// New versions of the own record are this far apart at least, however often others say that this replica is dead.
const RENEWAL_PAUSE: Micros = Micros::from_millis(1_000);
/// Messages of one peer: so many at once, and then so many a second.
const MESSAGES_AT_ONCE: u64 = 100;
const MESSAGES_PER_S: u64 = 20;
/// New records of one owner, likewise. An honest owner renews once a second at most.
const RECORDS_AT_ONCE: u64 = 8;
const RECORDS_PER_S: u64 = 1;
/// What a message has beside packet and records: two lengths.
const ENVELOPE_BYTES: usize = 8;
/// What a record has beside its address.
const RECORD_BYTES: usize = 1 + 4 + 8 + 4 + 64;

/// What hints begin with.
#[derive(Clone, Debug)]
pub struct Setup {
    pub cluster: ClusterId,
    pub me: ReplicaId,
    /// Of this replica's disk.
    pub incarnation: Incarnation,
    /// Where the others reach this replica, `host:port`.
    pub address: String,
    /// Whom the log knows, this replica among them.
    pub members: Vec<Known>,
    pub timing: Timing,
    pub seed: u64,
}

/// So many at once, and then so many a second.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    per_s: u64,
    at_once: u64,
    /// In millionths of a piece.
    level: u64,
    at: Micros,
}

const WHOLE: u64 = 1_000_000;

impl Bucket {
    fn full(at_once: u64, per_s: u64) -> Self {
        Self { per_s, at_once, level: at_once * WHOLE, at: Micros::ZERO }
    }

    fn take(&mut self, now: Micros) -> bool {
        let gained = now.since(self.at).0.saturating_mul(self.per_s);
        self.level = self.level.saturating_add(gained).min(self.at_once * WHOLE);
        self.at = now;
        let taken = self.level >= WHOLE;
        if taken {
            self.level -= WHOLE;
        }
        taken
    }
}

#[derive(Debug)]
struct Peer {
    known: Known,
    up: bool,
    record: Option<Record>,
    /// Where a setting's address turned out to be this member's.
    seed: Option<String>,
    standing: Standing,
    since: Micros,
    /// Which identity of whom it was sent over this link, or sent itself. At most one entry for each member.
    has: BTreeMap<ReplicaId, Identity>,
    resend_at: Micros,
    messages: Bucket,
    records: Bucket,
}

impl Peer {
    fn new(known: Known, since: Micros) -> Self {
        Self {
            known,
            up: false,
            record: None,
            seed: None,
            standing: Standing::Unknown,
            since,
            has: BTreeMap::new(),
            resend_at: Micros::NEVER,
            messages: Bucket::full(MESSAGES_AT_ONCE, MESSAGES_PER_S),
            records: Bucket::full(RECORDS_AT_ONCE, RECORDS_PER_S),
        }
    }

    fn lacks(&self, record: &Record) -> bool {
        self.has.get(&record.replica).is_none_or(|had| *had < record.identity())
    }

    /// What it is called by: as its record says, or by the log alone.
    fn identity(&self) -> Identity {
        let unknown = Identity { replica: self.known.id, incarnation: self.known.incarnation, version: 0 };
        self.record.as_ref().map_or(unknown, Record::identity)
    }

    fn hint(&self) -> Hint {
        Hint {
            replica: self.known.id,
            standing: self.standing,
            since: self.since,
            address: self.record.as_ref().map(|record| record.address.clone()),
            seed: self.seed.clone(),
            version: self.record.as_ref().map_or(0, |record| record.version),
        }
    }
}

/// [`Hints`] over SWIM.
#[derive(Debug)]
pub struct SwimHints {
    cluster: ClusterId,
    crypto: Arc<dyn Crypto>,
    timing: Timing,
    chance: Chance,
    me: ReplicaId,
    /// How the log knows this replica.
    own_known: Option<Known>,
    own: Record,
    renewed: Micros,
    renew_at: Micros,
    next_beat: Micros,
    next_call: Micros,
    peers: BTreeMap<ReplicaId, Peer>,
    swim: Swim,
    drops: Drops,
}

impl SwimHints {
    /// `crypto` signs with this replica's vote key. Versions start at the wall clock's milliseconds, which is above those of
    /// an earlier run; should that clock have gone back, the others show the newer record, and it is topped.
    #[must_use]
    pub fn new(setup: Setup, crypto: Arc<dyn Crypto>, now: Now) -> Self {
        let Setup { cluster, me, incarnation, address, members, timing, seed } = setup;
        let chance = Chance::new(seed);
        let identity = Identity { replica: me, incarnation, version: now.wall_ms.max(1) };
        let own = Record::sign(&*crypto, cluster, identity, address);
        let swim = Swim::new(identity, &timing, members.len(), chance.fork("swim"));
        let mut hints = Self {
            cluster,
            crypto,
            chance: chance.fork("resends"),
            me,
            own_known: None,
            own,
            renewed: now.mono,
            renew_at: Micros::NEVER,
            next_beat: now.mono.plus(timing.beat),
            next_call: now.mono.plus(timing.call),
            timing,
            peers: BTreeMap::new(),
            swim,
            drops: Drops::default(),
        };
        hints.on_members(now.mono, members);
        hints
    }

    fn on_tick(&mut self, now: Micros) {
        if now >= self.renew_at {
            self.renew_at = Micros::NEVER;
            self.renew(now, self.own.version.saturating_add(1));
        }
        for _ in 0..self.swim.tick(now) {
            self.drops.add(DropReason::Refused);
        }
        if now >= self.next_call {
            self.next_call = now.plus(self.timing.call);
            self.swim.confront();
            if self.swim.is_alone() {
                let up = self.peers.values().filter(|peer| peer.up).map(Peer::identity).collect::<Vec<_>>();
                for identity in up {
                    self.announce(now, identity);
                }
            }
        }
    }

    fn on_members(&mut self, now: Micros, members: Vec<Known>) {
        let (own, others): (Vec<_>, Vec<_>) = members.into_iter().partition(|known| known.id == self.me);
        self.own_known = own.into_iter().next();
        let before = self.peers.len();
        self.peers.retain(|id, _| others.iter().any(|known| known.id == *id));
        let forgotten = self.peers.len() < before;
        for known in others {
            match self.peers.get_mut(&known.id) {
                Some(peer) if peer.known != known => {
                    // What the lost incarnation said of itself is void.
                    (peer.known, peer.record, peer.seed) = (known, None, None);
                }
                Some(_) => {}
                None => _ = self.peers.insert(known.id, Peer::new(known, now)),
            }
        }
        if forgotten {
            self.begin_anew(now);
        }
    }

    /// foca forgets nobody, so one that never heard of who is gone takes its place. It takes everybody for alive that has
    /// shown itself, and finds out.
    fn begin_anew(&mut self, now: Micros) {
        let chance = self.chance.fork("begun anew");
        self.swim = Swim::new(self.own.identity(), &self.timing, self.peers.len() + 1, chance);
        let shown: Vec<Identity> =
            self.peers.values().filter_map(|peer| Some(peer.record.as_ref()?.identity())).collect();
        for identity in shown {
            if self.swim.on_shown(now, identity).is_err() {
                self.drops.add(DropReason::Refused);
            }
        }
    }

    fn on_link_up(&mut self, now: Micros, id: ReplicaId) {
        let jitter = Micros(self.chance.below(self.timing.resend.0 / 4));
        let Some(peer) = self.peers.get_mut(&id) else { return self.drops.add(DropReason::Stranger) };
        peer.up = true;
        peer.has.clear();
        peer.resend_at = now.plus(self.timing.resend).plus(jitter);
        // A new link's records are not held back until the next beat: they may be what the peer waits for.
        self.next_beat = now;
        let identity = peer.identity();
        self.announce(now, identity);
    }

    fn announce(&mut self, now: Micros, to: Identity) {
        if self.swim.announce(now, to).is_err() {
            self.drops.add(DropReason::Refused);
        }
    }

    fn on_seed(&mut self, id: ReplicaId, address: String, effects: &mut Vec<Effect>) {
        if !check_address(&address) {
            return self.drops.add(DropReason::BadAddress);
        }
        let Some(peer) = self.peers.get_mut(&id) else { return self.drops.add(DropReason::Stranger) };
        if peer.seed.as_ref() != Some(&address) {
            peer.seed = Some(address);
            effects.push(Effect::Changed(peer.hint()));
        }
    }

    fn on_message(&mut self, now: Micros, from: ReplicaId, bytes: &[u8], effects: &mut Vec<Effect>) {
        let Some(peer) = self.peers.get_mut(&from) else { return self.drops.add(DropReason::Stranger) };
        if !peer.messages.take(now) {
            return self.drops.add(DropReason::Flood);
        }
        if bytes.len() > MESSAGE_BYTES_MAX {
            return self.drops.add(DropReason::Oversize);
        }
        let Ok(message) = Message::decode(bytes) else { return self.drops.add(DropReason::Malformed) };
        // Records first: they prove the identities in the packet.
        for record in message.records {
            if let Err(reason) = self.on_record(now, from, record, effects) {
                self.drops.add(reason);
            }
        }
        if message.packet.is_empty() {
            return;
        }
        let read = Packet::decode(&message.packet).map_err(|_| DropReason::Malformed);
        let taken = read.and_then(|packet| {
            let packet = self.judge(from, packet)?;
            self.swim.on_packet(now, &packet).map_err(|_| DropReason::Refused)
        });
        if let Err(reason) = taken {
            self.drops.add(reason);
        }
    }

    fn on_record(
        &mut self,
        now: Micros,
        from: ReplicaId,
        record: Record,
        effects: &mut Vec<Effect>,
    ) -> Result<(), DropReason> {
        let owner = record.replica;
        if owner == self.me {
            return self.on_own_record(now, from, &record);
        }
        let peer = self.peers.get(&owner).ok_or(DropReason::Stranger)?;
        if record.incarnation != peer.known.incarnation {
            return Err(DropReason::OtherIncarnation);
        }
        let identity = record.identity();
        match &peer.record {
            Some(held) if *held == record => {
                self.note_had(from, identity);
                return Ok(());
            }
            Some(held) if !record.replaces(held) => {
                // The owner itself, proven by its link, with a clock that went back: where it says that it is it can be
                // shown the greater version, and tops it. For this node alone, as a seed's word.
                if from == owner && record.address != held.address {
                    self.on_seed(owner, record.address, effects);
                }
                return Err(DropReason::Stale);
            }
            Some(_) | None => {}
        }
        record.verify(&*self.crypto, self.cluster, &peer.known.key).map_err(|fault| match fault {
            RecordFault::BadAddress => DropReason::BadAddress,
            RecordFault::BadSignature => DropReason::BadSignature,
        })?;
        let peer = self.peers.get_mut(&owner).expect("looked at above");
        // Counted once it is the owner's: forgeries must not use up what is his.
        if !peer.records.take(now) {
            return Err(DropReason::Flood);
        }
        peer.record = Some(record);
        effects.push(Effect::Changed(peer.hint()));
        for peer in self.peers.values_mut() {
            // One version with another address is to be passed on as well.
            peer.has.remove(&owner);
        }
        self.note_had(from, identity);
        if from != owner {
            // Somebody may pass on what one that is gone once signed: whether it is there, SWIM says.
            return Ok(());
        }
        self.swim.on_shown(now, identity).map_err(|_| DropReason::Refused)
    }

    /// Others hold a record of this replica. One that this run did not make is from a run whose clock was ahead.
    fn on_own_record(&mut self, now: Micros, from: ReplicaId, record: &Record) -> Result<(), DropReason> {
        if record.incarnation != self.own.incarnation {
            return Err(DropReason::OtherIncarnation);
        }
        if *record == self.own {
            self.note_had(from, record.identity());
            return Ok(());
        }
        if !record.replaces(&self.own) {
            return Err(DropReason::Stale);
        }
        let known = self.own_known.as_ref().filter(|known| known.incarnation == record.incarnation);
        let key = known.ok_or(DropReason::OtherIncarnation)?.key;
        record.verify(&*self.crypto, self.cluster, &key).map_err(|_| DropReason::BadSignature)?;
        if let Some(version) = record.version.checked_add(1) {
            self.renew(now, version);
        }
        Ok(())
    }

    fn note_had(&mut self, peer: ReplicaId, identity: Identity) {
        if let Some(peer) = self.peers.get_mut(&peer) {
            peer.has.insert(identity.replica, identity);
        }
    }

    /// What foca may hear of a packet.
    fn judge(&mut self, from: ReplicaId, mut packet: Packet) -> Result<Packet, DropReason> {
        if packet.head.from.replica != from {
            return Err(DropReason::NotTheSender);
        }
        if packet.head.to.replica != self.me {
            return Err(DropReason::Misaddressed);
        }
        self.prove(packet.head.from)?;
        if let Some(third) = packet.head.word.third() {
            self.prove(third)?;
        }
        let mut dropped = Vec::new();
        packet.updates.retain(|update| self.prove(update.id).map_err(|reason| dropped.push(reason)).is_ok());
        for reason in dropped {
            self.drops.add(reason);
        }
        Ok(packet)
    }

    /// Has the owner of this identity shown it, or a later one?
    fn prove(&self, identity: Identity) -> Result<(), DropReason> {
        let held = if identity.replica == self.me {
            Some(&self.own)
        } else {
            self.peers.get(&identity.replica).ok_or(DropReason::Stranger)?.record.as_ref()
        };
        let proves =
            |held: &Record| held.incarnation == identity.incarnation && held.version >= identity.version;
        if held.is_some_and(proves) { Ok(()) } else { Err(DropReason::Unproven) }
    }

    fn renew(&mut self, now: Micros, version: u64) {
        let identity = Identity { version, ..self.own.identity() };
        if identity == self.own.identity() {
            return;
        }
        self.own = Record::sign(&*self.crypto, self.cluster, identity, self.own.address.clone());
        self.renewed = now;
        if self.swim.change_identity(now, identity).is_err() {
            self.drops.add(DropReason::Refused);
        }
    }

    /// Lets out what waits, and says what has changed.
    fn settle(&mut self, now: Micros, effects: &mut Vec<Effect>) {
        if self.swim.is_defunct() && self.renew_at == Micros::NEVER {
            self.renew_at = now.max(self.renewed.plus(RENEWAL_PAUSE));
        }
        for (to, packet) in self.swim.drain() {
            self.send(to, packet, effects);
        }
        if now >= self.next_beat {
            self.next_beat = now.plus(self.timing.beat);
            self.send_records(now, effects);
        }
        let mut standings: BTreeMap<ReplicaId, Standing> = BTreeMap::new();
        for (id, standing) in self.swim.standings() {
            let of_now = |peer: &Peer| peer.known.incarnation == id.incarnation;
            if self.peers.get(&id.replica).is_some_and(of_now) {
                standings.insert(id.replica, standing);
            }
        }
        for (id, peer) in &mut self.peers {
            let standing = standings.get(id).copied().unwrap_or(Standing::Unknown);
            if peer.standing != standing {
                (peer.standing, peer.since) = (standing, now);
                effects.push(Effect::Changed(peer.hint()));
            }
        }
    }

    fn send_records(&mut self, now: Micros, effects: &mut Vec<Effect>) {
        let up: Vec<ReplicaId> = self.peers.iter().filter(|(_, peer)| peer.up).map(|(id, _)| *id).collect();
        for to in up {
            let peer = self.peers.get_mut(&to).expect("one of the peers");
            if now >= peer.resend_at {
                peer.has.clear();
                peer.resend_at = now.plus(self.timing.resend);
            }
            // Each message takes at least one record along, so this ends.
            while self.send(to, Vec::new(), effects) {}
        }
    }

    /// A message with this packet and as many records as the peer lacks and as fit. False when there was nothing to say.
    fn send(&mut self, to: ReplicaId, packet: Vec<u8>, effects: &mut Vec<Effect>) -> bool {
        let Some(peer) = self.peers.get(&to).filter(|peer| peer.up) else { return false };
        let mut bytes = ENVELOPE_BYTES + packet.len();
        let mut records = Vec::new();
        let others = self.peers.values().filter_map(|peer| peer.record.as_ref());
        for record in core::iter::once(&self.own).chain(others).filter(|record| peer.lacks(record)) {
            let length = RECORD_BYTES + record.address.len();
            if records.len() == RECORDS_MAX || bytes + length > MESSAGE_BYTES_MAX {
                break;
            }
            bytes += length;
            records.push(record.clone());
        }
        if records.is_empty() && packet.is_empty() {
            return false;
        }
        for record in &records {
            self.note_had(to, record.identity());
        }
        let encoded = Message { records, packet }.encode();
        assert_eq!(encoded.len(), bytes, "a message's length is known before it is written");
        effects.push(Effect::Send { to, bytes: Bytes::from(encoded) });
        true
    }
}

impl Hints for SwimHints {
    fn step(&mut self, now: Now, input: Input, effects: &mut Vec<Effect>) {
        let now = now.mono;
        match input {
            Input::Tick => self.on_tick(now),
            Input::Peer { from, bytes } => self.on_message(now, from, &bytes, effects),
            Input::LinkUp { peer } => self.on_link_up(now, peer),
            Input::LinkDown { peer } => {
                if let Some(peer) = self.peers.get_mut(&peer) {
                    peer.up = false;
                }
            }
            Input::Seed { replica, address } => self.on_seed(replica, address, effects),
            Input::Members(members) => self.on_members(now, members),
        }
        self.settle(now, effects);
    }

    fn next_wakeup(&self) -> Micros {
        self.swim.next_wakeup().min(self.next_beat).min(self.next_call).min(self.renew_at)
    }

    fn hints(&self) -> Vec<Hint> {
        self.peers.values().map(Peer::hint).collect()
    }

    fn own_address(&self) -> &str {
        &self.own.address
    }

    fn drops(&self) -> &Drops {
        &self.drops
    }

    fn check(&self) {
        self.swim.check(self.peers.len());
        assert_eq!(
            self.swim.identity(),
            self.own.identity(),
            "SWIM speaks under the identity that is signed"
        );
        for (id, peer) in &self.peers {
            assert_eq!(*id, peer.known.id);
            assert!(peer.has.len() <= self.peers.len() + 1, "{} marks of peer {id}", peer.has.len());
            let Some(record) = &peer.record else { continue };
            assert_eq!((record.replica, record.incarnation), (*id, peer.known.incarnation));
            assert!(check_address(&record.address), "{:?} is no address", record.address);
        }
        for (id, _) in self.swim.standings() {
            let Some(peer) = self.peers.get(&id.replica) else { continue };
            let newest = peer.record.as_ref().map(Record::identity);
            // Of a lost incarnation foca keeps the entry until the next one speaks.
            let lost = id.incarnation != peer.known.incarnation;
            assert!(lost || newest.is_some_and(|newest| id <= newest), "{id:?} was never signed: {newest:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_so_many_at_once_and_then_so_many_a_second() {
        let mut bucket = Bucket::full(3, 2);
        let at = |ms| Micros::from_millis(ms);
        assert_eq!((0..5).map(|_| bucket.take(at(0))).collect::<Vec<_>>(), [true, true, true, false, false]);
        assert!(!bucket.take(at(400)) && bucket.take(at(500)) && !bucket.take(at(501)));
        assert_eq!(
            (0..5).filter(|_| bucket.take(at(90_000))).count(),
            3,
            "it never holds more than it did at first"
        );
    }
}
