//! Snapshots of the convergent store between replicas: for one that cannot catch up frame by frame, because what it lacks
//! was collected, or because it missed floors that the log committed.
//!
//! ```text
//!   A ── SyncFetch, to all ─▶   B, C, D freeze their stores as they stand
//!   A ◀─ SyncOffer ──────────   digest, base, number of parts
//!   A ── SyncFetch part ────▶   to one whose digest f others offered too
//!   A ◀─ SyncPart ───────────
//! ```
//!
//! One liar cannot plant values: `f + 1` must have frozen the same. While changes come thick and fast they rarely do; then it is
//! tried again. Of signed heads a donor can invent none.

use crate::io::{Class, Effect};
use crate::replica::Outbox;
use crate::sync::SyncRoom;
use crate::sync::disk::{parts_of, read_store};
use crate::wire::PeerMessage;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use bytes::Bytes;
use dwcp_base::{Hash, Micros, Now, ReplicaId, Ticket, decode, encode};
use dwcp_crdt::{OriginId, Store};
use dwcp_sync::Base;

/// Parts of one snapshot; beyond it a store is too large to be sent like this.
const PARTS_MAX: u32 = 65_536;
/// How long offers are waited for, and each part.
const OFFERS_WITHIN: Micros = Micros::from_millis(3_000);
const PART_WITHIN: Micros = Micros::from_millis(10_000);
/// How long a frozen store is kept for whoever asked, since the last question.
const FROZEN_FOR: Micros = Micros::from_millis(30_000);
/// A store is frozen at most this often.
const FREEZE_EVERY: Micros = Micros::from_millis(5_000);

/// A store as it stood, in parts.
#[derive(Debug)]
struct Frozen {
    id: u64,
    parts: Vec<Bytes>,
    digest: Hash,
    base: Bytes,
    at: Micros,
    until: Micros,
}

/// What a peer offers.
#[derive(Clone, Debug)]
struct Offer {
    id: u64,
    parts: u32,
    digest: Hash,
    base: Bytes,
}

/// A snapshot that is on its way here.
#[derive(Debug)]
struct Fetch {
    offers: BTreeMap<ReplicaId, Offer>,
    donor: Option<ReplicaId>,
    /// So many may lie.
    faults: usize,
    parts: Vec<Bytes>,
    until: Micros,
}

/// A whole one.
pub(super) struct Fetched {
    pub(super) store: Store,
    pub(super) base: Base,
    pub(super) parts: Vec<Bytes>,
}

/// See the module. At most one frozen store and one fetch; offers bounded by the members.
#[derive(Debug, Default)]
pub(crate) struct Transfer {
    /// It was found that a snapshot is needed.
    pub(super) wanted: bool,
    next_id: u64,
    frozen: Option<Frozen>,
    fetch: Option<Fetch>,
}

impl Transfer {
    pub(crate) fn next_wakeup(&self) -> Micros {
        let fetch = self.fetch.as_ref().map_or(Micros::NEVER, |fetch| fetch.until);
        fetch.min(self.frozen.as_ref().map_or(Micros::NEVER, |frozen| frozen.until))
    }

    pub(crate) fn on_time(&mut self, now: Now) {
        if self.fetch.as_ref().is_some_and(|fetch| fetch.until <= now.mono) {
            self.fetch = None;
        }
        if self.frozen.as_ref().is_some_and(|frozen| frozen.until <= now.mono) {
            self.frozen = None;
        }
    }
}

fn send(to: ReplicaId, message: &PeerMessage, out: &mut Outbox) {
    let bytes = Bytes::from(encode(message));
    out.push(Effect::Send { to, class: Class::Bulk, after: Ticket::ZERO, bytes });
}

impl SyncRoom {
    /// Asks everybody, if a snapshot is needed and none is on its way.
    pub(super) fn begin_fetch(&mut self, now: Now, faults: usize, out: &mut Outbox) {
        if !self.transfer.wanted || self.transfer.fetch.is_some() {
            return;
        }
        let Some(open) = &self.open else { return };
        self.transfer.wanted = false;
        let until = now.mono.plus(OFFERS_WITHIN);
        let peers = open.sync.peers().filter_map(|(OriginId(id), _)| u8::try_from(id).ok().map(ReplicaId));
        for peer in peers {
            send(peer, &PeerMessage::SyncFetch { id: 0, part: 0 }, out);
        }
        let (offers, donor, parts) = (BTreeMap::new(), None, Vec::new());
        self.transfer.fetch = Some(Fetch { offers, donor, faults, parts, until });
    }

    /// A peer wants this store, or a part of it as it was frozen.
    pub(crate) fn on_fetch(&mut self, now: Now, from: ReplicaId, id: u64, part: u32, out: &mut Outbox) {
        if id == 0 {
            return self.offer(now, from, out);
        }
        let Some(frozen) = self.transfer.frozen.as_mut().filter(|frozen| frozen.id == id) else { return };
        frozen.until = now.mono.plus(FROZEN_FOR);
        if let Some(bytes) = frozen.parts.get(part as usize) {
            send(from, &PeerMessage::SyncPart { id, part, bytes: bytes.clone() }, out);
        }
    }

    fn offer(&mut self, now: Now, to: ReplicaId, out: &mut Outbox) {
        let Some(open) = &mut self.open else { return };
        let is_fresh = |frozen: &Frozen| now.mono.since(frozen.at) < FREEZE_EVERY;
        if !self.transfer.frozen.as_ref().is_some_and(is_fresh) {
            let Some(base) = open.sync.base(open.store.applied(), open.store.floor_number()) else { return };
            self.transfer.next_id += 1;
            self.transfer.frozen = Some(Frozen {
                id: self.transfer.next_id,
                parts: parts_of(&open.store).into_iter().map(Bytes::from).collect(),
                digest: open.store.digest(),
                base: Bytes::from(encode(&base)),
                at: now.mono,
                until: now.mono.plus(FROZEN_FOR),
            });
        }
        let Some(frozen) = &self.transfer.frozen else { return };
        let Ok(parts) = u32::try_from(frozen.parts.len()) else { return };
        let (id, digest, base) = (frozen.id, frozen.digest, frozen.base.clone());
        send(to, &PeerMessage::SyncOffer { id, parts, digest, base }, out);
    }

    /// A peer offers its store.
    pub(crate) fn on_offer(
        &mut self,
        now: Now,
        from: ReplicaId,
        (id, parts): (u64, u32),
        digest: Hash,
        base: Bytes,
        out: &mut Outbox,
    ) {
        let Some(fetch) = self.transfer.fetch.as_mut().filter(|fetch| fetch.donor.is_none()) else { return };
        if parts == 0 || parts > PARTS_MAX {
            return;
        }
        fetch.offers.insert(from, Offer { id, parts, digest, base });
        if fetch.offers.values().filter(|offer| offer.digest == digest).count() > fetch.faults {
            fetch.donor = Some(from);
            fetch.until = now.mono.plus(PART_WITHIN);
            send(from, &PeerMessage::SyncFetch { id, part: 0 }, out);
        }
    }

    /// A part came. Whole and as it was offered, it is handed out.
    pub(crate) fn on_part(
        &mut self,
        now: Now,
        from: ReplicaId,
        (id, part): (u64, u32),
        bytes: Bytes,
        out: &mut Outbox,
    ) {
        let Some(fetch) = self.transfer.fetch.as_mut().filter(|fetch| fetch.donor == Some(from)) else {
            return;
        };
        let Some(offer) = fetch.offers.get(&from).filter(|offer| offer.id == id).cloned() else { return };
        if part as usize != fetch.parts.len() {
            return;
        }
        fetch.parts.push(bytes);
        fetch.until = now.mono.plus(PART_WITHIN);
        if part + 1 < offer.parts {
            return send(from, &PeerMessage::SyncFetch { id, part: part + 1 }, out);
        }
        let parts = core::mem::take(&mut fetch.parts);
        self.transfer.fetch = None;
        let store = read_store(self.me, &self.setup.resolvers, parts.iter().cloned());
        let (Ok(mut store), Ok(base)) = (store, decode::<Base>(&offer.base)) else {
            self.figures.snapshots_refused += 1;
            return;
        };
        if store.digest() == offer.digest {
            self.fetched = Some(Fetched { store, base, parts });
        } else {
            self.figures.snapshots_refused += 1;
        }
    }
}
