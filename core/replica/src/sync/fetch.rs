//! Snapshots of the convergent store between replicas: for one that cannot catch up frame by frame, because what it lacks
//! was collected, or waits for a floor that it missed and cannot go beyond.
//!
//! ```text
//!   A ── SyncFetch, to all ─▶   B, C, D freeze their stores as they stand
//!   A ◀─ SyncOffer ──────────   digest, base, number of parts
//!   A ── SyncFetch part ────▶   to one whose digest f others offered too
//!   A ◀─ SyncPart ───────────
//! ```
//!
//! One liar cannot plant values: `f + 1` must have frozen the same. While changes come thick and fast they rarely do; then it is
//! tried again. Of signed heads a donor can invent none. Nor can it fill memory: how many bytes and parts there are is part of
//! what `f + 1` must agree in. A donor whose parts are not what was offered, or that says nothing more, is barred for a while
//! and the next one asked, from the beginning.

use crate::io::{Class, Effect};
use crate::replica::Outbox;
use crate::sync::SyncRoom;
use crate::sync::disk::{PART_BYTES, read_store};
use crate::wire::PeerMessage;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use bytes::Bytes;
use dwcp_base::{Hash, Micros, Now, ReplicaId, Ticket, decode, encode};
use dwcp_crdt::{OriginId, Store};
use dwcp_sync::{Base, InstallError};

/// Bytes of one snapshot; beyond it a store is too large to be sent like this.
const SNAPSHOT_BYTES_MAX: u64 = 16 << 30;
/// Bytes of one part, which is 256 KiB and one key, or the head. A message may be 8 MiB.
const PART_BYTES_MAX: usize = 7 << 20;
/// How long offers are waited for, and each part; and how often one that did not come is asked for again meanwhile.
const OFFERS_WITHIN: Micros = Micros::from_millis(3_000);
const PART_WITHIN: Micros = Micros::from_millis(10_000);
const PART_AGAIN: Micros = Micros::from_millis(1_000);
/// How long a frozen store is kept for whoever asked, since the last question.
const FROZEN_FOR: Micros = Micros::from_millis(30_000);
/// A store is frozen at most this often; for one peer's sake, not before he could have been sent the last one frozen for him.
const FREEZE_EVERY: Micros = Micros::from_millis(5_000);
/// How long a donor that gave what it had not offered, or nothing, is not asked.
const BARRED_FOR: Micros = Micros::from_millis(60_000);

/// A store as it stood, in parts.
#[derive(Debug)]
struct Frozen {
    id: u64,
    parts: Vec<Bytes>,
    bytes: u64,
    digest: Hash,
    floor: u64,
    base: Bytes,
    at: Micros,
    until: Micros,
}

/// What a peer offers. `f + 1` must agree in all of `what`.
#[derive(Clone, Debug)]
struct Offer {
    id: u64,
    what: What,
    base: Bytes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct What {
    pub(crate) parts: u32,
    pub(crate) bytes: u64,
    pub(crate) digest: Hash,
}

impl What {
    fn is_sound(&self) -> bool {
        self.parts > 0 && self.bytes <= SNAPSHOT_BYTES_MAX && u64::from(self.parts) <= self.bytes
    }
}

/// A snapshot that is on its way here.
#[derive(Debug)]
struct Fetch {
    /// At most one of each peer.
    offers: BTreeMap<ReplicaId, Offer>,
    donor: Option<ReplicaId>,
    /// So many may lie, beside those of whom it is known.
    faults: usize,
    /// Whose offers count for nothing.
    liars: BTreeSet<ReplicaId>,
    parts: Vec<Bytes>,
    bytes: u64,
    until: Micros,
    ask_again: Micros,
}

/// A whole one.
pub(super) struct Fetched {
    pub(super) donor: ReplicaId,
    pub(super) store: Store,
    pub(super) base: Base,
    pub(super) parts: Vec<Bytes>,
}

/// What a peer may still be sent, and until when that is counted. When a store may be frozen for its sake again.
#[derive(Clone, Copy, Debug, Default)]
struct Budget {
    bytes: usize,
    until: Micros,
    freeze_at: Micros,
}

/// See the module. At most one frozen store and one fetch; offers, bars and budgets bounded by the members.
#[derive(Debug, Default)]
pub(crate) struct Transfer {
    /// It was found that a snapshot is needed.
    pub(super) wanted: bool,
    next_id: u64,
    frozen: Option<Frozen>,
    fetch: Option<Fetch>,
    barred: BTreeMap<ReplicaId, Micros>,
    budgets: BTreeMap<ReplicaId, Budget>,
}

impl Transfer {
    pub(crate) fn next_wakeup(&self) -> Micros {
        let due = |fetch: &Fetch| fetch.until.min(fetch.ask_again);
        let fetch = self.fetch.as_ref().map_or(Micros::NEVER, due);
        fetch.min(self.frozen.as_ref().map_or(Micros::NEVER, |frozen| frozen.until))
    }

    pub(super) fn is_under_way(&self) -> bool {
        self.fetch.is_some()
    }

    fn bar(&mut self, now: Now, donor: ReplicaId, span: Micros) {
        self.barred.retain(|_, until| *until > now.mono);
        self.barred.insert(donor, now.mono.plus(span));
        // Whatever comes of it, the snapshot is still needed.
        self.wanted = true;
    }

    /// Takes from what a peer may be sent within this interval; false when that is used up.
    fn spend(&mut self, now: Now, to: ReplicaId, bytes: usize, (max, interval): (usize, Micros)) -> bool {
        let budget = self.budgets.entry(to).or_default();
        if now.mono >= budget.until {
            (budget.bytes, budget.until) = (max, now.mono.plus(interval));
        }
        let may = budget.bytes > 0;
        budget.bytes = budget.bytes.saturating_sub(bytes);
        may
    }
}

fn send(to: ReplicaId, message: &PeerMessage, out: &mut Outbox) {
    let bytes = Bytes::from(encode(message));
    out.push(Effect::Send { to, class: Class::Bulk, after: Ticket::ZERO, bytes });
}

impl SyncRoom {
    /// Asks everybody, if a snapshot is needed and none is on its way.
    pub(super) fn begin_fetch(
        &mut self,
        now: Now,
        faults: usize,
        liars: BTreeSet<ReplicaId>,
        out: &mut Outbox,
    ) {
        if !self.transfer.wanted || self.transfer.fetch.is_some() {
            return;
        }
        let Some(open) = &self.open else { return };
        self.transfer.wanted = false;
        let peers = open.sync.peers().filter_map(|(OriginId(id), _)| u8::try_from(id).ok().map(ReplicaId));
        for peer in peers {
            send(peer, &PeerMessage::SyncFetch { id: 0, part: 0 }, out);
        }
        self.transfer.fetch = Some(Fetch {
            offers: BTreeMap::new(),
            donor: None,
            faults,
            liars,
            parts: Vec::new(),
            bytes: 0,
            until: now.mono.plus(OFFERS_WITHIN),
            ask_again: Micros::NEVER,
        });
    }

    /// Gives up what is late, and goes on with somebody else where it can.
    pub(super) fn follow_fetch(&mut self, now: Now, out: &mut Outbox) {
        if self.transfer.frozen.as_ref().is_some_and(|frozen| frozen.until <= now.mono) {
            self.transfer.frozen = None;
        }
        let Some(fetch) = &mut self.transfer.fetch else { return };
        match fetch.donor {
            _ if now.mono < fetch.until.min(fetch.ask_again) => {}
            Some(donor) if now.mono < fetch.until => {
                // The question was lost, or there was more of it than the donor answers at once.
                fetch.ask_again = now.mono.plus(PART_AGAIN);
                let (id, part) = (fetch.offers.get(&donor).map_or(0, |offer| offer.id), fetch.parts.len());
                let part = u32::try_from(part).unwrap_or(u32::MAX);
                send(donor, &PeerMessage::SyncFetch { id, part }, out);
            }
            Some(donor) => {
                self.figures.donors_stalled += 1;
                self.transfer.bar(now, donor, BARRED_FOR);
                self.ask_another(now, out);
            }
            None => self.transfer.fetch = None,
        }
    }

    /// Asks the next donor of something that enough agree in, who is not barred.
    fn ask_another(&mut self, now: Now, out: &mut Outbox) {
        let barred = &self.transfer.barred;
        let Some(fetch) = &mut self.transfer.fetch else { return };
        if fetch.donor.take().is_some() {
            // Later offers may be of somebody who is not barred; then everybody is asked anew.
            (fetch.until, fetch.ask_again) = (now.mono.plus(OFFERS_WITHIN), Micros::NEVER);
            fetch.bytes = 0;
            fetch.parts.clear();
        }
        let alike = |what: What| fetch.offers.values().filter(|offer| offer.what == what).count();
        let is_free = |id: &ReplicaId| barred.get(id).is_none_or(|until| *until <= now.mono);
        let mut free = fetch.offers.iter().filter(|(id, _)| is_free(id));
        let Some((donor, offer)) = free.find(|(_, offer)| alike(offer.what) > fetch.faults) else { return };
        fetch.donor = Some(*donor);
        fetch.until = now.mono.plus(PART_WITHIN);
        fetch.ask_again = now.mono.plus(PART_AGAIN);
        send(*donor, &PeerMessage::SyncFetch { id: offer.id, part: 0 }, out);
    }

    /// A peer wants this store, or a part of it as it was frozen.
    pub(crate) fn on_fetch(
        &mut self,
        now: Now,
        from: ReplicaId,
        id: u64,
        part: u32,
        out: &mut Outbox,
    ) -> Result<(), &'static str> {
        let rate = (self.setup.limits.budget_bytes_max, self.setup.timing.exchange_interval);
        if id == 0 {
            return self.offer(now, from, rate, out);
        }
        let frozen = self.transfer.frozen.as_mut().filter(|frozen| frozen.id == id);
        let frozen = frozen.ok_or("a question for a part of a store that is not frozen here")?;
        let bytes = frozen.parts.get(part as usize).ok_or("a question for a part that there is not")?.clone();
        frozen.until = now.mono.plus(FROZEN_FOR);
        if !self.transfer.spend(now, from, bytes.len(), rate) {
            return Err("more questions for parts of a store than are answered");
        }
        send(from, &PeerMessage::SyncPart { id, part, bytes }, out);
        Ok(())
    }

    fn offer(
        &mut self,
        now: Now,
        to: ReplicaId,
        rate: (usize, Micros),
        out: &mut Outbox,
    ) -> Result<(), &'static str> {
        self.freeze(now, to, rate);
        let Some(frozen) = &self.transfer.frozen else { return Ok(()) };
        let Ok(parts) = u32::try_from(frozen.parts.len()) else { return Ok(()) };
        let (id, base) = (frozen.id, frozen.base.clone());
        let what = What { parts, bytes: frozen.bytes, digest: frozen.digest };
        // A part that no message can carry makes no offer.
        if !what.is_sound() || frozen.parts.iter().any(|part| part.len() > PART_BYTES_MAX) {
            return Ok(());
        }
        if !self.transfer.spend(now, to, base.len(), rate) {
            return Err("more questions for a store than are answered");
        }
        let What { parts, bytes, digest } = what;
        send(to, &PeerMessage::SyncOffer { id, parts, bytes, digest, base }, out);
        Ok(())
    }

    /// Writes the store out as it stands, where what is held is not as good and this peer's turn has come. All ask at once, so
    /// what was frozen for one is offered to the others; and nobody can have a large store written out again and again.
    fn freeze(&mut self, now: Now, to: ReplicaId, (rate, interval): (usize, Micros)) {
        let Some(open) = &mut self.open else { return };
        let (digest, floor) = (open.store.digest(), open.store.floor_number());
        let budget = self.transfer.budgets.entry(to).or_default();
        let frozen = self.transfer.frozen.as_mut();
        let is_fresh = frozen.is_some_and(|frozen| {
            frozen.until = now.mono.plus(FROZEN_FOR);
            now.mono.since(frozen.at) < FREEZE_EVERY
        });
        if is_fresh || now.mono < budget.freeze_at {
            return;
        }
        let Some(base) = open.sync.base(open.store.applied(), floor) else { return };
        let base = Bytes::from(encode(&base));
        if let Some(frozen) = self.transfer.frozen.as_mut().filter(|f| (f.digest, f.floor) == (digest, floor))
        {
            // Nothing changed but what is decided about origins.
            (frozen.at, frozen.base) = (now.mono, base);
            return;
        }
        let parts: Vec<Bytes> = open.store.snapshot_parts(PART_BYTES).into_iter().map(Bytes::from).collect();
        let bytes = parts.iter().map(|part| part.len() as u64).sum();
        let takes = interval.times(bytes / (rate as u64).max(1) + 1);
        budget.freeze_at = now.mono.plus(takes.max(FREEZE_EVERY));
        self.transfer.next_id += 1;
        let (at, until) = (now.mono, now.mono.plus(FROZEN_FOR));
        let id = self.transfer.next_id;
        self.transfer.frozen = Some(Frozen { id, bytes, parts, digest, floor, base, at, until });
    }

    /// A peer offers its store.
    pub(crate) fn on_offer(
        &mut self,
        now: Now,
        from: ReplicaId,
        (id, what): (u64, What),
        base: Bytes,
        out: &mut Outbox,
    ) -> Result<(), &'static str> {
        let fetch = self.transfer.fetch.as_mut().ok_or("an offer of a store that nobody asked for")?;
        if id == 0 || !what.is_sound() {
            return Err("an offer of a store such as there is none");
        }
        if fetch.liars.contains(&from) {
            return Err("an offer of a store by one who is convicted");
        }
        if fetch.offers.contains_key(&from) {
            return Err("a second offer of a store");
        }
        fetch.offers.insert(from, Offer { id, what, base });
        if fetch.donor.is_none() {
            self.ask_another(now, out);
        }
        Ok(())
    }

    /// A part came. Whole and as it was offered, it is handed out.
    pub(crate) fn on_part(
        &mut self,
        now: Now,
        from: ReplicaId,
        (id, part): (u64, u32),
        bytes: Bytes,
        out: &mut Outbox,
    ) -> Result<(), &'static str> {
        let unasked = "a part of a store that nobody asked for";
        let fetch = self.transfer.fetch.as_mut().filter(|fetch| fetch.donor == Some(from)).ok_or(unasked)?;
        let offer = fetch.offers.get(&from).filter(|offer| offer.id == id).ok_or(unasked)?;
        if part as usize != fetch.parts.len() {
            // Asked for again, the first answer came late.
            return if (part as usize) < fetch.parts.len() { Ok(()) } else { Err(unasked) };
        }
        let what = offer.what;
        fetch.bytes = fetch.bytes.saturating_add(bytes.len() as u64);
        fetch.parts.push(bytes);
        let rest = u64::from(what.parts - part - 1);
        // Each part that is still to come has a byte at least.
        if fetch.bytes.saturating_add(rest) > what.bytes {
            self.give_up_donor(now, from, out);
            return Err("a part of a store that is longer than was offered");
        }
        fetch.until = now.mono.plus(PART_WITHIN);
        fetch.ask_again = now.mono.plus(PART_AGAIN);
        if rest > 0 {
            send(from, &PeerMessage::SyncFetch { id, part: part + 1 }, out);
            return Ok(());
        }
        let (parts, base) = (core::mem::take(&mut fetch.parts), decode::<Base>(&offer.base));
        let store = read_store(self.me, &self.setup.resolvers, parts.iter().cloned());
        match (store.map(|mut store| (store.digest(), store)), base) {
            (Ok((digest, store)), Ok(base)) if digest == what.digest => {
                self.transfer.fetch = None;
                self.fetched = Some(Fetched { donor: from, store, base, parts });
                Ok(())
            }
            _ => {
                self.give_up_donor(now, from, out);
                Err("a store that is not what was offered")
            }
        }
    }

    fn give_up_donor(&mut self, now: Now, donor: ReplicaId, out: &mut Outbox) {
        self.figures.snapshots_refused += 1;
        self.transfer.bar(now, donor, BARRED_FOR);
        self.ask_another(now, out);
    }

    /// What came whole was not taken. Who invented what goes beside it is barred; the rest is bad luck, and somebody else's is
    /// tried.
    pub(super) fn on_not_installed(&mut self, now: Now, donor: ReplicaId, error: InstallError) {
        self.figures.snapshots_refused += 1;
        match error {
            InstallError::Heads | InstallError::Proof { .. } | InstallError::Mismatch { .. } => {
                self.transfer.bar(now, donor, BARRED_FOR);
            }
            InstallError::Branch { .. }
            | InstallError::Floor { .. }
            | InstallError::LacksOwn { .. }
            | InstallError::Behind { .. } => {
                // What it has frozen stays as it is for a while, and would be refused again at once.
                self.transfer.bar(now, donor, self.setup.timing.exchange_interval);
                self.transfer.wanted = true;
            }
        }
    }
}
