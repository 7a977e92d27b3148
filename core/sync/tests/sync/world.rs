//! One replica as its caller would run it: sync, the store, a disk that forgets what was not synced, and what was told.

use bytes::Bytes;
use dwcp_base::{ClusterId, Crypto, Hash, Hasher, Micros, Mutants, Now, PublicKey, Signature, Ticket};
use dwcp_crdt::{Bundle, Op, Origin, OriginId, Plain, Resolvers, Restore, Store, VersionVector, Write};
use dwcp_sync::{
    Action, Base, Cut, Fault, Frame, Limits, Need, Proof, Reason, Restored, Setup, Sync, Timing, audit,
    repair,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub const CLUSTER: ClusterId = ClusterId([7; 32]);
/// Milliseconds; far from zero, so that clocks can be behind.
pub const NOON_MS: u64 = 1_000_000;

pub fn text(text: &str) -> Plain {
    Plain::bytes(text.as_bytes().to_vec()).expect("short")
}

pub fn origin(id: u32) -> Origin {
    Origin::new(id, 0)
}

pub fn key_of(origin: Origin) -> PublicKey {
    let mut hasher = Hasher::new("test key");
    hasher.update(&origin.id.0.to_le_bytes()).update(&origin.incarnation.0.to_le_bytes());
    PublicKey(hasher.finish().0)
}

/// A keyed hash in place of signatures. Whoever has one signs with its own key only.
#[derive(Debug)]
pub struct Keyed(pub PublicKey);

fn tag(key: &PublicKey, message: &Hash) -> Signature {
    let mut hasher = Hasher::new("test signature");
    hasher.update(&key.0).update(&message.0);
    let mut bytes = [0; 64];
    hasher.fill(&mut bytes);
    Signature(bytes)
}

impl Crypto for Keyed {
    fn sign(&self, message: &Hash) -> Signature {
        tag(&self.0, message)
    }

    fn verify(&self, key: &PublicKey, message: &Hash, signature: &Signature) -> bool {
        tag(key, message) == *signature
    }
}

pub fn members(count: u32) -> BTreeMap<Origin, PublicKey> {
    (0..count).map(|id| (origin(id), key_of(origin(id)))).collect()
}

pub fn setup(me: Origin, members: BTreeMap<Origin, PublicKey>) -> Setup {
    Setup {
        cluster: CLUSTER,
        me,
        members,
        faults: 1,
        timing: Timing::default(),
        limits: Limits::default(),
        seed: u64::from(me.id.0),
        crypto: Arc::new(Keyed(key_of(me))),
        mutants: Mutants::default(),
    }
}

pub fn at(ms: u64) -> Now {
    Now { mono: Micros::from_millis(ms), wall_ms: NOON_MS + ms }
}

/// What a disk keeps of the store.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub head: Vec<u8>,
    pub piece: Vec<u8>,
    pub applied: VersionVector,
    pub floor: u64,
}

impl Snapshot {
    /// Would the same digest stand for both?
    pub fn is_like(&self, other: &Self) -> bool {
        (&self.piece, &self.applied, self.floor) == (&other.piece, &other.applied, other.floor)
    }

    pub fn of(store: &Store) -> Self {
        Self {
            head: store.snapshot_head(),
            piece: store.snapshot_piece(None, usize::MAX).bytes,
            applied: store.applied().clone(),
            floor: store.floor_number(),
        }
    }

    pub fn store(&self, me: Origin) -> Store {
        let mut restore = Restore::new(me, Resolvers::default(), &self.head).expect("our own head");
        restore.piece(&self.piece).expect("our own piece");
        restore.finish().expect("whole")
    }
}

#[derive(Debug)]
pub struct Node {
    pub setup: Setup,
    pub sync: Sync,
    pub store: Store,
    pub snapshot: Snapshot,
    /// Durable records with their tickets, and those on their way to the disk.
    pub disk: Vec<(Ticket, Bytes)>,
    pub unsynced: Vec<(Ticket, Bytes)>,
    pub durable: Ticket,
    /// Messages that may leave, and those that wait for the disk.
    pub outbox: Vec<(OriginId, Bytes)>,
    pub waiting: Vec<(Ticket, OriginId, Bytes)>,
    pub evidence: Vec<Proof>,
    pub needs: BTreeMap<Need, Vec<OriginId>>,
    pub withholds: Vec<Origin>,
    pub accused: Vec<(Origin, Fault)>,
    pub differs: Vec<(OriginId, BTreeSet<Bytes>)>,
    pub refused: Vec<Reason>,
    /// Every bundle handed over since the start, in order.
    pub handed: Vec<Bundle>,
    pub runs: u64,
    /// When something came last.
    pub now: Now,
    /// Keys that were put right.
    pub repaired: BTreeSet<Bytes>,
}

impl Node {
    pub fn new(setup: Setup) -> Self {
        let store = Store::new(setup.me, Resolvers::default());
        let snapshot = Snapshot::of(&store);
        Self::open(setup, snapshot, Vec::new(), at(0))
    }

    pub fn open(setup: Setup, snapshot: Snapshot, records: Vec<Bytes>, now: Now) -> Self {
        Self::try_open(setup, snapshot, records, now).expect("a good disk")
    }

    pub fn try_open(
        setup: Setup,
        snapshot: Snapshot,
        records: Vec<Bytes>,
        now: Now,
    ) -> Result<Self, dwcp_sync::OpenError> {
        let store = snapshot.store(setup.me);
        let restored = Restored { applied: store.applied(), floor: store.floor_number() };
        let sync = Sync::open(&setup, restored, &records, now)?;
        let disk: Vec<_> = records.into_iter().zip(1..).map(|(record, n)| (Ticket(n), record)).collect();
        let durable = Ticket(disk.len() as u64);
        let mut node = Self {
            setup,
            sync,
            store,
            snapshot,
            disk,
            unsynced: Vec::new(),
            durable,
            outbox: Vec::new(),
            waiting: Vec::new(),
            evidence: Vec::new(),
            needs: BTreeMap::new(),
            withholds: Vec::new(),
            accused: Vec::new(),
            differs: Vec::new(),
            refused: Vec::new(),
            handed: Vec::new(),
            runs: 0,
            now,
            repaired: BTreeSet::new(),
        };
        node.run();
        Ok(node)
    }

    pub fn me(&self) -> Origin {
        self.setup.me
    }

    /// Carries out what sync wants until it wants nothing more.
    pub fn run(&mut self) {
        loop {
            let actions = self.sync.take();
            if actions.is_empty() {
                break;
            }
            let mut applied = false;
            for action in actions {
                match action {
                    Action::Persist { ticket, record } => self.unsynced.push((ticket, record)),
                    Action::Send { to, message, after } if after <= self.durable => {
                        self.outbox.push((to, message))
                    }
                    Action::Send { to, message, after } => self.waiting.push((after, to, message)),
                    Action::Apply { bundle } => {
                        let result = self.store.apply(&bundle, bundle.hlc().ms());
                        if !self.setup.mutants.any() {
                            result.expect("what is handed over is taken");
                        }
                        self.handed.push(bundle);
                        applied = true;
                    }
                    Action::RaiseFloor(floor) => {
                        let result = self.store.raise_floor(floor);
                        if !self.setup.mutants.any() {
                            result.expect("what a floor covers is here");
                        }
                        applied = true;
                    }
                    Action::AdoptFloors(floors) => {
                        self.store.adopt_floors(floors).expect("what floors cover is here");
                        applied = true;
                    }
                    Action::EndOrigin { origin, last } => {
                        self.store.end_origin(origin, last);
                        applied = true;
                    }
                    Action::Refused { reason, .. } => self.refused.push(reason),
                    Action::Evidence(proof) => self.evidence.push(*proof),
                    Action::NeedSnapshot { need, donors } => {
                        self.needs.insert(need, donors);
                    }
                    Action::Withholds { member } => self.withholds.push(member),
                    Action::Accuses { member, fault } => self.accused.push((member, fault)),
                    Action::Audit { peer, work } => {
                        let stands = self.sync.stand(self.store.applied());
                        let step = audit::answer(&mut self.store, stands, work.as_ref());
                        self.sync.on_audited(self.now, peer, step);
                    }
                    Action::Damaged { keys } => self.differs.push((self.me().id, keys.into_iter().collect())),
                    Action::Copies { peer, question } => {
                        let stands = self.sync.stand(self.store.applied());
                        if let Some(copies) = repair::copies(&self.store, stands, &question) {
                            self.sync.give_copies(peer, question.round, copies);
                        }
                    }
                    Action::Repair { at, copies } => {
                        let stands = self.sync.stand(self.store.applied());
                        let adopted = repair::adopt(&mut self.store, stands, at, &copies);
                        self.sync.on_repaired(self.now, adopted.len());
                        self.repaired.extend(adopted);
                    }
                    Action::Differs { peer, keys } => self.differs.push((peer, keys.into_iter().collect())),
                    Action::Exchanged { .. } => {}
                }
            }
            if applied {
                self.sync.on_applied(self.store.applied());
            }
        }
        self.runs += 1;
        // Checking looks at everything, which adds up where there is much.
        let (kept, waiting) = self.sync.frames_count();
        if kept + waiting < 200 || self.runs.is_multiple_of(256) {
            self.sync.check();
            self.store.check();
        }
    }

    pub fn message(&mut self, now: Now, from: OriginId, bytes: &Bytes) {
        self.now = now;
        self.sync.on_message(now, from, bytes);
        self.run();
    }

    pub fn time(&mut self, now: Now) {
        self.now = now;
        self.sync.on_time(now);
        self.run();
    }

    /// The disk catches up.
    pub fn sync_disk(&mut self) {
        self.disk.append(&mut self.unsynced);
        self.durable = self.sync.last_ticket();
        self.sync.on_durable(self.durable);
        let needed_from = self.sync.needed_from();
        self.disk.retain(|(ticket, _)| *ticket >= needed_from);
        let durable = self.durable;
        let (ready, waiting) = std::mem::take(&mut self.waiting).into_iter().partition(|w| w.0 <= durable);
        self.waiting = waiting;
        let ready: Vec<_> = ready;
        self.outbox.extend(ready.into_iter().map(|(_, to, message)| (to, message)));
        self.run();
    }

    /// Saves the store, as a node does now and then.
    pub fn save(&mut self) {
        self.sync_disk();
        self.snapshot = Snapshot::of(&self.store);
        let (applied, floor) = (self.snapshot.applied.clone(), self.snapshot.floor);
        self.sync.on_saved(&applied, floor);
        self.run();
    }

    /// The power goes and comes back; of what was not synced a prefix is on the disk all the same.
    pub fn crash(&mut self, kept: usize, now: Now) {
        let torn = self.unsynced.drain(..).take(kept);
        let records: Vec<Bytes> = self.disk.drain(..).chain(torn).map(|(_, record)| record).collect();
        let evidence = std::mem::take(&mut self.evidence);
        *self = Self::open(self.setup.clone(), self.snapshot.clone(), records, now);
        self.evidence = evidence;
    }

    /// A donor's store, and what goes beside it.
    pub fn donate(&mut self) -> Option<(Snapshot, Base)> {
        self.sync_disk();
        let base = self.sync.base(self.store.applied(), self.store.floor_number())?;
        Some((Snapshot::of(&self.store), base))
    }

    pub fn install(&mut self, snapshot: &Snapshot, base: &Base) -> Result<(), dwcp_sync::InstallError> {
        self.sync.install(base, &snapshot.applied, snapshot.floor)?;
        self.store = snapshot.store(self.me());
        self.snapshot = snapshot.clone();
        self.needs.clear();
        // The record of where the new store stands is durable with it.
        self.run();
        self.sync_disk();
        Ok(())
    }

    /// Writes, and says the frame; nothing when the write changes nothing.
    pub fn try_write(&mut self, now: Now, writes: &[Write]) -> Option<(Bundle, dwcp_sync::Written)> {
        let written = self.sync.may_write().ok()?;
        let bundle = self.store.write(writes, written, now.wall_ms).ok()??;
        let written = self.sync.write(&bundle).expect("it may write");
        self.run();
        Some((bundle, written))
    }

    pub fn put(&mut self, now: Now, key: &str, value: &str) -> Bytes {
        let write = Write::new(key.as_bytes().to_vec(), Op::Put(text(value)));
        self.try_write(now, &[write]).expect("a good write").1.frame
    }

    /// Where the store stands, or will before anything is decided.
    pub fn standing(&self, origin: Origin) -> Cut {
        self.sync.settled(origin).expect("a member")
    }
}

/// Somebody who signs whatever he likes, as one origin.
#[derive(Clone, Debug)]
pub struct Liar {
    pub store: Store,
    pub hash: Hash,
}

impl Liar {
    pub fn new(origin: Origin) -> Self {
        Self { store: Store::new(origin, Resolvers::default()), hash: Hash::ZERO }
    }

    pub fn put(&mut self, now: Now, key: &str, value: &str) -> Frame {
        self.write(now, &[Write::new(key.as_bytes().to_vec(), Op::Put(text(value)))])
    }

    pub fn write(&mut self, now: Now, writes: &[Write]) -> Frame {
        let bundle = self.store.write(writes, 0, now.wall_ms).expect("a good write").expect("a change");
        let frame = Frame::seal(&bundle, self.hash, CLUSTER, &Keyed(key_of(self.store.me())));
        self.hash = frame.hash();
        frame
    }
}
