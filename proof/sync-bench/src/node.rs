//! One replica: store, engine of frames, and a disk, put together as the node does it. A burst of messages is stepped
//! one by one; their records go to the log; one sync makes them durable; only then are they acknowledged, and only
//! then leaves what waits for them.

use crate::log::Log;
use crate::world::{NOON_MS, now, origin};
use anyhow::Context;
use bytes::Bytes;
use dwcp_base::Ticket;
use dwcp_crdt::{Floor, Resolvers, Restore, Store, VersionVector, Write};
use dwcp_sync::{Action, Restored, Setup, Sync};
use std::collections::BTreeMap;
use std::path::Path;

/// Where records go.
#[derive(Debug)]
pub enum Disk {
    /// Nowhere: they are made, handed over, and durable at once.
    Instant,
    /// Into the write-ahead log.
    Log(Box<Log>),
    /// The caller says when they are durable.
    Told,
}

#[derive(Debug)]
pub struct Replica {
    pub sync: Sync,
    pub store: Store,
    pub disk: Disk,
    /// May leave.
    pub outbox: Vec<(u32, Bytes)>,
    /// Leaves when its ticket is durable.
    waiting: Vec<(Ticket, u32, Bytes)>,
}

impl Replica {
    pub fn new(setup: &Setup, resolvers: Resolvers, disk: Disk) -> Self {
        let nothing = VersionVector::new();
        let restored = Restored { applied: &nothing, floor: 0 };
        let sync = Sync::open(setup, restored, &[], now(0)).expect("a new disk");
        let store = Store::new(setup.me, resolvers);
        Self { sync, store, disk, outbox: Vec::new(), waiting: Vec::new() }
    }

    /// With a log in an empty folder.
    ///
    /// # Errors
    /// What the disk says.
    pub fn with_log(setup: &Setup, resolvers: Resolvers, dir: &Path) -> anyhow::Result<Self> {
        let (log, _) = Log::open(dir)?;
        Ok(Self::new(setup, resolvers, Disk::Log(Box::new(log))))
    }

    /// As a log leaves it.
    ///
    /// # Errors
    /// A log that makes no sense.
    pub fn restart(setup: &Setup, resolvers: Resolvers, dir: &Path) -> anyhow::Result<Self> {
        let (log, held) = Log::open(dir)?;
        let mut parts = held.parts.iter();
        let store = match parts.next() {
            None => Store::new(setup.me, resolvers),
            Some(head) => {
                let mut restore = Restore::new(setup.me, resolvers, head)?;
                parts.try_for_each(|part| restore.piece(part))?;
                restore.finish()?
            }
        };
        let records: Vec<Bytes> = held.records.into_values().collect();
        let restored = Restored { applied: store.applied(), floor: store.floor_number() };
        let sync = Sync::open(setup, restored, &records, now(0)).context("its records")?;
        let disk = Disk::Log(Box::new(log));
        let mut replica = Self { sync, store, disk, outbox: Vec::new(), waiting: Vec::new() };
        replica.run();
        Ok(replica)
    }

    /// The log, of a replica that has one.
    pub fn log(&mut self) -> &mut Log {
        match &mut self.disk {
            Disk::Log(log) => log,
            Disk::Instant | Disk::Told => panic!("this replica has a log"),
        }
    }

    /// Writes as one bundle; the frame. Where there is a log, it is durable when the caller settles.
    pub fn write(&mut self, at_ms: u64, writes: &[Write]) -> Bytes {
        let written = self.sync.may_write().expect("it may write");
        let bundle = self.store.write(writes, written, NOON_MS + at_ms).expect("a good write");
        let bundle = bundle.expect("a change");
        let frame = self.sync.write(&bundle).expect("it may write").frame;
        self.run();
        frame
    }

    /// Takes a burst of messages of one peer and settles.
    pub fn take_burst(&mut self, at_ms: u64, from: u32, messages: &[Bytes]) {
        for message in messages {
            self.sync.on_message(now(at_ms), origin(from).id, message);
            self.run();
        }
        self.settle();
    }

    /// Carries out what is to be done but what waits for the disk.
    pub fn run(&mut self) {
        loop {
            let actions = self.sync.take();
            if actions.is_empty() {
                return;
            }
            let mut applied = false;
            for action in actions {
                applied |= self.carry_out(action);
            }
            if applied {
                self.sync.on_applied(self.store.applied());
            }
        }
    }

    fn carry_out(&mut self, action: Action) -> bool {
        match action {
            Action::Persist { ticket, record } => match &mut self.disk {
                Disk::Instant => self.sync.on_durable(ticket),
                Disk::Log(log) => log.append(ticket, &record),
                Disk::Told => {}
            },
            Action::Send { to, message, after } if after <= self.sync.durable() => {
                self.outbox.push((to.0, message));
            }
            Action::Send { to, message, after } => self.waiting.push((after, to.0, message)),
            Action::Apply { bundle } => {
                self.store.apply(&bundle, bundle.hlc().ms()).expect("what is handed over is taken");
                return true;
            }
            Action::RaiseFloor(floor) => {
                self.store.raise_floor(floor).expect("the store has what the floor covers");
                return true;
            }
            _ => {}
        }
        false
    }

    /// One sync of the log, if there is something to sync, and what waited for it.
    pub fn settle(&mut self) {
        while let Disk::Log(log) = &mut self.disk
            && let Some(ticket) = log.sync()
        {
            self.on_durable(ticket);
        }
    }

    /// Records up to this ticket are durable.
    pub fn on_durable(&mut self, ticket: Ticket) {
        self.sync.on_durable(ticket);
        let durable = self.sync.durable();
        for (after, to, message) in std::mem::take(&mut self.waiting) {
            if after <= durable {
                self.outbox.push((to, message));
            } else {
                self.waiting.push((after, to, message));
            }
        }
        self.run();
    }

    /// Takes three floors under which everybody has all that is here, saves the store into the log and shortens that.
    /// Three of them settle the first, after which nothing is left to collect. Returns the bytes of the saved store.
    pub fn collect(&mut self, members: u32) -> usize {
        let has = |id| (origin(id), self.store.applied().clone());
        let acknowledged: BTreeMap<_, _> = (0..members).map(has).collect();
        for _ in 0..3 {
            let floor = Floor::of(self.store.floor_number() + 1, &acknowledged, BTreeMap::new());
            self.sync.commit_floor(floor).expect("it is the next one");
            self.run();
            self.settle();
        }
        let Disk::Log(log) = &mut self.disk else { panic!("a store is saved into a log") };
        let (saved, bytes) = log.save(&self.store);
        log.sync();
        let (applied, floor) = (self.store.applied().clone(), self.store.floor_number());
        self.sync.on_saved(&applied, floor);
        self.run();
        self.settle();
        self.sync.base_is_in_use();
        let needed_from = self.sync.needed_from();
        self.log().discard(needed_from, saved);
        bytes
    }
}
