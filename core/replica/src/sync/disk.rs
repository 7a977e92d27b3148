//! What a restart remembers of convergent state: records and snapshots in the node's one log, and when the log may be
//! shortened.
//!
//! A record is one of `dwcp_sync`'s, numbered. A snapshot of the store is written into the log too, in parts. When the root
//! would discard what convergent state still needs, the store is saved anew, and the few frames that peers may still ask
//! for are appended again under their old numbers: whatever came before is then needed by nobody. The log stays the only
//! thing to sync, and one crash cannot part what it holds.

use crate::io::Effect;
use crate::replica::Outbox;
use crate::sync::Open;
use crate::wire::LogRecord;
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use bytes::Bytes;
use dwcp_base::Ticket;
use dwcp_crdt::{Origin, Resolvers, Restore, Store, VersionVector};
use dwcp_pbft::Output;
use dwcp_sync::Record;

/// Bytes of one part of a snapshot.
pub(crate) const PART_BYTES: usize = 256 * 1024;
/// The first byte of a record that says what all before it said.
const BASE_RECORD: u8 = 5;
/// Is it a record that stands for all before it?
pub(super) fn is_base(record: &[u8]) -> bool {
    record.first() == Some(&BASE_RECORD)
}

/// A store is saved anew when this many root snapshots' worth of log could be discarded for each byte it takes.
const WORTH: u64 = 4;

/// A record that is still needed: its number on disk and its place in the node's log.
#[derive(Clone, Copy, Debug)]
struct Live {
    number: u64,
    log: Ticket,
}

/// A snapshot on its way to the disk.
#[derive(Debug)]
struct Saving {
    first: Ticket,
    last: Ticket,
    /// What it holds and the floor it knows; nothing where that was said already.
    applied: Option<(VersionVector, u64)>,
    bytes: u64,
}

/// Parts of one snapshot as they were read.
#[derive(Debug, Default)]
struct Parts {
    parts: u32,
    /// It came from a peer, and counts only beside this record.
    needs: u64,
    first: Ticket,
    bytes: BTreeMap<u32, Bytes>,
}

/// See the module. Memory: a few words for each frame kept for peers.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    /// As read, until it is opened.
    records: BTreeMap<u64, (Ticket, Bytes)>,
    snapshots: BTreeMap<u64, Parts>,
    /// By the ticket that `dwcp_sync` gave.
    live: BTreeMap<Ticket, Live>,
    unsynced: VecDeque<(Ticket, Ticket)>,
    /// What a record's number is more than its ticket.
    offset: u64,
    next_snapshot: u64,
    /// The first part of the newest whole snapshot.
    saved_first: Option<Ticket>,
    saved_bytes: u64,
    saving: Option<Saving>,
    /// What is saved, or being saved, is wrong somewhere.
    must_save: bool,
    /// The record that stands for all before it, while it is not durable.
    base: Option<(Ticket, Ticket)>,
    /// The last record that was appended again, while it is not durable.
    moving: Option<Ticket>,
    /// Nothing else needs the log before this.
    wish: Ticket,
    /// Root snapshots since the store was last saved that could have discarded more without it.
    wishes: u64,
    bytes_since_wish: u64,
}

impl Disk {
    /// Takes a record back while the log is read.
    pub(crate) fn remember(&mut self, ticket: Ticket, number: u64, bytes: Bytes) {
        self.records.insert(number, (ticket, bytes));
    }

    pub(crate) fn remember_part(
        &mut self,
        ticket: Ticket,
        id: u64,
        (part, parts): (u32, u32),
        needs: u64,
        bytes: Bytes,
    ) {
        let snapshot = self.snapshots.entry(id).or_default();
        if snapshot.bytes.is_empty() {
            snapshot.first = ticket;
        }
        (snapshot.parts, snapshot.needs) = (parts, needs);
        snapshot.bytes.insert(part, bytes);
    }

    /// The store of the newest whole snapshot, and the records in the order in which they were first written.
    ///
    /// # Errors
    /// A snapshot that cannot be read.
    pub(crate) fn restore(
        &mut self,
        me: Origin,
        resolvers: &Resolvers,
    ) -> Result<(Store, Vec<Bytes>), String> {
        self.next_snapshot = self.snapshots.keys().next_back().map_or(1, |last| last + 1);
        let records = &self.records;
        let counts = |parts: &Parts| {
            let whole = parts.bytes.len() == parts.parts as usize && parts.parts > 0;
            whole && (parts.needs == 0 || records.contains_key(&parts.needs))
        };
        let newest = core::mem::take(&mut self.snapshots).into_iter().rev().find(|(_, parts)| counts(parts));
        let store = match newest {
            None => Store::new(me, resolvers.clone()),
            Some((_, parts)) => {
                self.saved_first = Some(parts.first);
                self.saved_bytes = parts.bytes.values().map(|part| part.len() as u64).sum();
                read_store(me, resolvers, parts.bytes.into_values())?
            }
        };
        let records = core::mem::take(&mut self.records);
        let last = records.keys().next_back().copied().unwrap_or(0);
        self.offset = last - records.len() as u64;
        let mut bytes = Vec::with_capacity(records.len());
        for (place, (number, (log, record))) in (1..).zip(records) {
            self.live.insert(Ticket(place), Live { number, log });
            bytes.push(record);
        }
        Ok((store, bytes))
    }

    /// Writes a record of `dwcp_sync`'s. `prompt`: somebody waits for it.
    pub(crate) fn persist(
        &mut self,
        ticket: Ticket,
        record: &[u8],
        prompt: bool,
        protocol: &mut Output,
        out: &mut Outbox,
    ) {
        let (log, number) = (protocol.allocate(), ticket.0 + self.offset);
        self.live.insert(ticket, Live { number, log });
        self.unsynced.push_back((ticket, log));
        self.bytes_since_wish += record.len() as u64;
        if is_base(record) {
            self.base = Some((ticket, log));
        }
        out.push(Effect::Persist { ticket: log, record: LogRecord::sync(number, record), prompt });
    }

    /// The place in the node's log that stands for a ticket of `dwcp_sync`'s; zero when it is on disk.
    pub(crate) fn to_log(&self, ticket: Ticket) -> Ticket {
        let waits = self.unsynced.iter().take_while(|(sync, _)| *sync <= ticket).last();
        waits.map_or(Ticket::ZERO, |(_, log)| *log)
    }

    /// The log is on disk so far. The newest ticket of `dwcp_sync`'s that became durable by it.
    pub(crate) fn durable(&mut self, through: Ticket) -> Option<Ticket> {
        let mut newest = None;
        while let Some((sync, log)) = self.unsynced.front().copied()
            && log <= through
        {
            self.unsynced.pop_front();
            newest = Some(sync);
        }
        newest
    }

    /// Goes on with saving as far as the disk has come.
    pub(crate) fn advance(
        &mut self,
        through: Ticket,
        open: &mut Open,
        protocol: &mut Output,
        out: &mut Outbox,
    ) {
        if let Some(saved) = self.saving.take_if(|saving| saving.last <= through) {
            self.saved_first = Some(saved.first);
            self.saved_bytes = saved.bytes;
            if let Some((applied, floor)) = saved.applied {
                open.sync.on_saved(&applied, floor);
            }
        }
        if let Some((base, _)) = self.base.take_if(|(_, log)| *log <= through) {
            self.move_frames(base, open, protocol, out);
        }
        if self.moving.take_if(|moved| *moved <= through).is_some() {
            out.push(Effect::DiscardLog { before: self.may_discard() });
        }
    }

    /// Appends the frames again that would hold the log back, and forgets what the base stands for.
    fn move_frames(&mut self, base: Ticket, open: &mut Open, protocol: &mut Output, out: &mut Outbox) {
        let kept: BTreeMap<Ticket, Bytes> = open.sync.kept().map(|(t, bytes)| (t, bytes.clone())).collect();
        let dropped: BTreeSet<Ticket> = open.sync.dropped().collect();
        let needed = |ticket: &Ticket| kept.contains_key(ticket) || dropped.contains(ticket);
        self.live.retain(|ticket, _| *ticket >= base || needed(ticket));
        let mut moved = protocol.last_ticket();
        for (ticket, live) in self.live.iter_mut().filter(|(_, live)| live.log < self.wish) {
            let Some(bytes) = kept.get(ticket) else { continue };
            live.log = protocol.allocate();
            moved = live.log;
            let record = LogRecord::sync(live.number, &Record::Frame(bytes.clone()).to_bytes());
            out.push(Effect::Persist { ticket: moved, record, prompt: false });
        }
        self.moving = Some(moved);
        open.sync.base_is_in_use();
    }

    /// Nothing but convergent state needs the log before `wish`. Says before what it may be discarded now.
    pub(crate) fn wish(&mut self, wish: Ticket) -> Ticket {
        self.wish = self.wish.max(wish);
        self.bytes_since_wish = 0;
        let before = self.may_discard();
        self.wishes = if before < self.wish { self.wishes + 1 } else { 0 };
        before
    }

    fn may_discard(&self) -> Ticket {
        let remembered = self.records.values().map(|(log, _)| *log);
        let parts = self.snapshots.values().map(|parts| parts.first);
        let live = self.live.values().map(|live| live.log);
        live.chain(self.saved_first).chain(remembered).chain(parts).fold(self.wish, Ticket::min)
    }

    /// Whether so much was written that the root should save a snapshot for its sake. `unit`: bytes of log between snapshots.
    pub(crate) fn is_heavy(&self, unit: u64) -> bool {
        self.bytes_since_wish > unit.saturating_mul(2)
    }

    /// What a restart would find is not right any more.
    pub(crate) fn save_soon(&mut self) {
        self.must_save = true;
    }

    /// Whether the store should be saved now, so that the log can be discarded. `unit`: bytes of log between snapshots.
    fn is_due(&self, unit: u64) -> bool {
        let is_worth_it =
            self.wishes > 0 && self.wishes.saturating_mul(unit).saturating_mul(WORTH) >= self.saved_bytes;
        let is_busy = self.saving.is_some() || self.base.is_some() || self.moving.is_some();
        (is_worth_it || self.must_save) && !is_busy
    }

    /// Saves the store if it is time.
    pub(crate) fn save_if_due(
        &mut self,
        unit: u64,
        open: &mut Open,
        protocol: &mut Output,
        out: &mut Outbox,
    ) {
        if self.is_due(unit) {
            self.save(open, protocol, out);
        }
    }

    fn save(&mut self, open: &mut Open, protocol: &mut Output, out: &mut Outbox) {
        self.must_save = false;
        let parts: Vec<Bytes> = open.store.snapshot_parts(PART_BYTES).into_iter().map(Bytes::from).collect();
        let Some((first, last, bytes)) = self.write_parts(&parts, 0, protocol, out) else { return };
        let (applied, floor) = (open.store.applied().clone(), open.store.floor_number());
        self.saving = Some(Saving { first, last, applied: Some((applied, floor)), bytes });
    }

    /// Writes a store that came from a peer. It counts once the base, which is the record with this ticket, stands behind it.
    pub(crate) fn save_fetched(
        &mut self,
        parts: &[Bytes],
        base: Ticket,
        protocol: &mut Output,
        out: &mut Outbox,
    ) {
        let needs = base.0 + self.offset;
        if let Some((first, last, bytes)) = self.write_parts(parts, needs, protocol, out) {
            self.saving = Some(Saving { first, last, applied: None, bytes });
        }
    }

    fn write_parts(
        &mut self,
        parts: &[Bytes],
        needs: u64,
        protocol: &mut Output,
        out: &mut Outbox,
    ) -> Option<(Ticket, Ticket, u64)> {
        let (id, count) = (self.next_snapshot, u32::try_from(parts.len()).expect("parts are few"));
        self.next_snapshot += 1;
        self.wishes = 0;
        let mut tickets = Vec::with_capacity(parts.len());
        let mut bytes = 0;
        for (part, piece) in (0..).zip(parts) {
            let ticket = protocol.allocate();
            bytes += piece.len() as u64;
            let record = LogRecord::sync_snapshot(id, part, count, needs, piece);
            out.push(Effect::Persist { ticket, record, prompt: true });
            tickets.push(ticket);
        }
        Some((*tickets.first()?, *tickets.last()?, bytes))
    }

    /// Whether every record has its own place. For `check`.
    pub(crate) fn is_sound(&self) -> bool {
        let places: BTreeSet<Ticket> = self.live.values().map(|live| live.log).collect();
        places.len() == self.live.len()
    }
}

/// A store from those.
///
/// # Errors
/// Parts that are none.
pub(crate) fn read_store(
    me: Origin,
    resolvers: &Resolvers,
    parts: impl IntoIterator<Item = Bytes>,
) -> Result<Store, String> {
    let mut parts = parts.into_iter();
    let head = parts.next().ok_or("a snapshot without a head")?;
    let mut restore = Restore::new(me, resolvers.clone(), &head).map_err(|error| error.to_string())?;
    for part in parts {
        restore.piece(&part).map_err(|error| error.to_string())?;
    }
    restore.finish().map_err(|error| error.to_string())
}
