//! Convergent state as part of a node: the store, the engine that carries its frames, and the roads by mode.
//!
//! ```text
//!   client ─▶ write ─▶ Store::write ─▶ Sync ─┬─ gossip: PeerMessage::Sync ──────────────┐
//!                                            └─ the log: SyncOrder ─▶ a Batch's frame ──┤
//!   client ◀─ watch, get ◀─ Store::apply ◀─── engine ◀──────────────────────────────────┘
//! ```
//!
//! It may not propose, vote or touch the ordered state: nothing here is part of a digest, a checkpoint or an Anchor. Without
//! a quorum it works on. `engine` carries out what `dwcp_sync` wants; `disk` is what a restart remembers; `write` the roads;
//! `ordered` frames in the log; `face` what clients may ask; `ask` answers what needs no writing.

mod ask;
mod asking;
mod disk;
mod engine;
pub mod face;
mod fetch;
mod figures;
mod floor;
mod ordered;
mod write;

pub(crate) use disk::Disk;
pub(crate) use engine::{lost, writer};
pub use face::{Road, SyncReply, SyncRequest, SyncSetup, SyncWritten};
pub use figures::{SyncPeerStatus, SyncStatus};
pub(crate) use floor::FLOOR_BYTES_MAX;
pub use ordered::wrap;
pub(crate) use ordered::{TAG, is_sync, signature_item};

/// The types of convergent values, for whoever asks for them.
pub mod values {
    pub use dwcp_crdt::history::{Conflict, Outcome};
    pub use dwcp_crdt::{Dot, Kind, Op, Origin, OriginId, Plain, PlainError, Resolver, Resolvers};
    pub use dwcp_crdt::{Sibling, Strategy, View, Write};
}

pub use dwcp_sync::{Limits as SyncLimits, Timing as SyncTiming};

use crate::config::Setup;
use crate::control::Control;
use crate::io::{ClientId, ClientReply, Effect};
use crate::replica::Outbox;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use asking::Consulting;
use bytes::Bytes;
use dwcp_base::{Crypto, Micros, Now, PublicKey, ReplicaId, Ticket};
use dwcp_crdt::{Origin, Store};
use dwcp_sync::Sync;
use fetch::{Fetched, Transfer};
use figures::Figures;
use floor::Collecting;
use ordered::{Ordering, Own};
use write::Writing;

/// A client that wants to hear of changes below a prefix.
#[derive(Clone, Debug)]
struct Watch {
    client: ClientId,
    id: u64,
    prefix: Bytes,
}

/// Somebody asked whether these peers hold the same.
#[derive(Clone, Debug)]
struct Comparison {
    client: ClientId,
    id: u64,
    waits_for: BTreeSet<ReplicaId>,
    level: Vec<ReplicaId>,
    differs: Vec<ReplicaId>,
    until: Micros,
}

/// What is there once this node is a member.
pub(crate) struct Open {
    pub(crate) store: Store,
    pub(crate) sync: Sync,
}

/// The room as judges and tools may see it. Nothing is decided by it.
#[derive(Clone, Copy, Debug)]
pub struct Convergent<'a> {
    pub store: &'a Store,
    pub sync: &'a Sync,
    /// Since this node started: frames that the log delivered, those of them that gossip had brought before, stores that
    /// came from peers, and writes that left the log's road for the other.
    pub frames_ordered: u64,
    pub frames_ordered_late: u64,
    pub snapshots_installed: u64,
    pub floors_missed: u64,
    pub fallbacks: u64,
}

/// See the module. Bounds: `Writing`, `Ordering` and `Disk` state theirs; watches and comparisons below.
pub(crate) struct SyncRoom {
    setup: SyncSetup,
    me: Origin,
    crypto: Arc<dyn Crypto>,
    /// `None` until this incarnation is a member.
    open: Option<Open>,
    disk: Disk,
    writing: Writing,
    ordering: Ordering,
    own: Own,
    /// At most `WATCHES_MAX`.
    watches: Vec<Watch>,
    /// At most `COMPARISONS_MAX`, by token.
    comparisons: BTreeMap<u64, Comparison>,
    next_token: u64,
    /// Keys changed since watchers were last told.
    changed: BTreeSet<Bytes>,
    figures: Figures,
    transfer: Transfer,
    /// Came whole, and is put in place by the next `drive`.
    fetched: Option<Fetched>,
    collecting: Collecting,
    consulting: Consulting,
}

/// Clients that watch, all together.
const WATCHES_MAX: usize = 1_024;
/// About how many bytes of changes go in one message to a watcher.
const CHANGED_BYTES_MAX: usize = 1 << 20;
/// Comparisons with peers at once.
const COMPARISONS_MAX: usize = 64;

impl SyncRoom {
    /// What the disk remembers comes with `disk`; it opens as soon as this incarnation is a member.
    pub(crate) fn new(setup: SyncSetup, born: &Setup, crypto: Arc<dyn Crypto>, disk: Disk) -> Self {
        Self {
            setup,
            me: Origin::new(u32::from(born.me.0), born.incarnation.0),
            crypto,
            open: None,
            disk,
            writing: Writing::default(),
            ordering: Ordering::default(),
            own: Own::default(),
            watches: Vec::new(),
            comparisons: BTreeMap::new(),
            next_token: 0,
            changed: BTreeSet::new(),
            figures: Figures::default(),
            transfer: Transfer::default(),
            fetched: None,
            collecting: Collecting::default(),
            consulting: Consulting::default(),
        }
    }

    pub(crate) fn store(&self) -> Option<&Store> {
        self.open.as_ref().map(|open| &open.store)
    }

    pub(crate) fn face(&self) -> Option<Convergent<'_>> {
        let open = self.open.as_ref()?;
        let figures = &self.figures;
        Some(Convergent {
            store: &open.store,
            sync: &open.sync,
            frames_ordered: figures.frames_ordered,
            frames_ordered_late: figures.frames_ordered_late,
            snapshots_installed: figures.snapshots_installed,
            floors_missed: figures.floors_missed,
            fallbacks: figures.fallbacks,
        })
    }

    fn reply(client: ClientId, id: u64, reply: SyncReply, out: &mut Outbox) {
        out.push(Effect::Reply { client, after: Ticket::ZERO, reply: ClientReply::Sync { id, reply } });
    }

    fn refuse(client: ClientId, id: u64, reason: impl Into<String>, definite: bool, out: &mut Outbox) {
        Self::reply(client, id, SyncReply::Refused { reason: reason.into(), definite }, out);
    }

    pub(crate) fn gone(&mut self, client: ClientId) {
        self.watches.retain(|watch| watch.client != client);
        self.comparisons.retain(|_, comparison| comparison.client != client);
        self.writing.gone(client);
    }

    /// When something is due.
    pub(crate) fn next_wakeup(&self) -> Micros {
        let Some(open) = &self.open else { return Micros::NEVER };
        let compared = self.comparisons.values().map(|comparison| comparison.until).min();
        open.sync
            .next_wakeup()
            .min(self.writing.next_wakeup())
            .min(self.ordering.next_wakeup())
            .min(self.transfer.next_wakeup())
            .min(compared.unwrap_or(Micros::NEVER))
    }

    /// Tells watchers. A snapshot may change everything, so long lists go in parts.
    fn tell_watchers(&mut self, out: &mut Outbox) {
        let changed = core::mem::take(&mut self.changed);
        let Some(open) = &self.open else { return };
        if changed.is_empty() || self.watches.is_empty() {
            return;
        }
        for watch in &self.watches {
            let below =
                changed.range(watch.prefix.clone()..).take_while(|key| key.starts_with(&watch.prefix));
            let (mut items, mut bytes) = (Vec::new(), 0);
            for key in below {
                let view = open.store.get(key);
                bytes += key.len() + view.as_ref().map_or(0, face::view_bytes);
                items.push((key.clone(), view));
                if bytes > CHANGED_BYTES_MAX {
                    bytes = 0;
                    let items = core::mem::take(&mut items);
                    Self::reply(watch.client, watch.id, SyncReply::Changed { items }, out);
                }
            }
            if !items.is_empty() {
                Self::reply(watch.client, watch.id, SyncReply::Changed { items }, out);
            }
        }
    }

    /// # Panics
    /// When something does not hold that must.
    pub(crate) fn check(&self) {
        if let Some(open) = &self.open {
            open.sync.check();
            open.store.check();
            assert!(self.disk.is_sound(), "every record of convergent state has its own place in the log");
        }
    }

    /// See `Store::flip_bit`.
    #[cfg(feature = "mutants")]
    pub(crate) fn flip_bit(&mut self, key: &[u8], from: usize) -> bool {
        self.open.as_mut().is_some_and(|open| open.store.flip_bit(key, from))
    }

    pub(crate) fn status(&self, now: Now) -> SyncStatus {
        self.figures.status(now, self)
    }
}

/// Every origin there ever was, with its key: members of the genesis, and those that replaced a lost disk.
pub(crate) fn origins(setup: &Setup, control: &Control) -> BTreeMap<Origin, PublicKey> {
    let born = setup.genesis.members.iter();
    let born =
        born.map(|member| (Origin::new(u32::from(member.id.0), member.incarnation.0), member.vote_key));
    let replaced = control.orders.iter().map(|(_, signed)| {
        let order = &signed.order;
        (Origin::new(u32::from(order.id.0), order.incarnation.0), order.vote_key)
    });
    born.chain(replaced).collect()
}
