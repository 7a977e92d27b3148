//! How fast state sync is, and what it costs: the core alone, on one processor, without a disk and without sockets. Each row
//! is one figure of `docs/performance.md`; nothing is judged here.
//!
//! `cargo run --release -p sync-bench [row...]`: `merge`, `exchange`, `memory`, `wan`; without any, all.

mod merge;
mod size;
mod wan;

use dwcp_base::crypto::Ed25519;
use dwcp_base::{ClusterId, Crypto, Hash, Hasher, Micros, Mutants, Now, PublicKey, Signature};
use dwcp_crdt::{Op, Origin, Plain, Resolvers, Store, VersionVector, Write};
use dwcp_sync::{Action, Limits, Restored, Setup, Sync, Timing};
use std::collections::BTreeMap;
use std::sync::Arc;

pub const CLUSTER: ClusterId = ClusterId([5; 32]);
pub const NOON_MS: u64 = 1_700_000_000_000;

/// A keyed hash where signatures are not what is measured.
#[derive(Debug)]
pub struct Keyed(pub PublicKey);

fn tag(key: &PublicKey, message: &Hash) -> Signature {
    let mut hasher = Hasher::new("bench signature");
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

pub fn origin(id: u32) -> Origin {
    Origin::new(id, 0)
}

/// Members 0..count, with real signatures or keyed hashes.
pub fn setups(count: u32, real: bool) -> Vec<Setup> {
    let seed = |id: u32| {
        let mut seed = [9; 32];
        seed[..4].copy_from_slice(&id.to_le_bytes());
        seed
    };
    let key = |id: u32| if real { Ed25519::new(seed(id), &[]).public_key() } else { PublicKey(seed(id)) };
    let members: BTreeMap<Origin, PublicKey> = (0..count).map(|id| (origin(id), key(id))).collect();
    let known: Vec<PublicKey> = members.values().copied().collect();
    let setup = |id: u32| {
        let crypto: Arc<dyn Crypto> =
            if real { Arc::new(Ed25519::new(seed(id), &known)) } else { Arc::new(Keyed(key(id))) };
        Setup {
            cluster: CLUSTER,
            me: origin(id),
            members: members.clone(),
            faults: (count as usize - 1) / 3,
            timing: Timing::default(),
            limits: Limits { log_bytes_max: 4 << 30, ..Limits::default() },
            seed: u64::from(id),
            crypto,
            mutants: Mutants::default(),
        }
    };
    (0..count).map(setup).collect()
}

pub fn now(ms: u64) -> Now {
    Now { mono: Micros::from_millis(ms), wall_ms: NOON_MS + ms }
}

/// A replica whose disk takes no time.
#[derive(Debug)]
pub struct Replica {
    pub sync: Sync,
    pub store: Store,
    pub outbox: Vec<(u32, bytes::Bytes)>,
}

impl Replica {
    pub fn new(setup: &Setup) -> Self {
        let nothing = VersionVector::new();
        let restored = Restored { applied: &nothing, floor: 0 };
        let sync = Sync::open(setup, restored, &[], now(0)).expect("a new disk");
        Self { sync, store: Store::new(setup.me, Resolvers::default()), outbox: Vec::new() }
    }

    pub fn write(&mut self, at_ms: u64, writes: &[Write]) -> bytes::Bytes {
        let written = self.sync.may_write().expect("it may write");
        let bundle =
            self.store.write(writes, written, NOON_MS + at_ms).expect("a good write").expect("a change");
        let frame = self.sync.write(&bundle).expect("it may write").frame;
        self.run();
        frame
    }

    pub fn run(&mut self) {
        loop {
            let actions = self.sync.take();
            if actions.is_empty() {
                return;
            }
            let mut applied = false;
            for action in actions {
                match action {
                    Action::Persist { ticket, .. } => self.sync.on_durable(ticket),
                    Action::Send { to, message, .. } => self.outbox.push((to.0, message)),
                    Action::Apply { bundle } => {
                        self.store.apply(&bundle, bundle.hlc().ms()).expect("what is handed over is taken");
                        applied = true;
                    }
                    _ => {}
                }
            }
            if applied {
                self.sync.on_applied(self.store.applied());
            }
        }
    }
}

/// A register write with a key of 16 bytes and a value of 16 bytes.
pub fn put(key: u64, value: u64) -> Write {
    let value = Plain::bytes(format!("{value:016x}")).expect("short");
    Write::new(format!("{key:016x}"), Op::Put(value))
}

/// Resident memory of this process.
pub fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split(' ').nth(1).and_then(|field| field.parse::<u64>().ok());
    pages.unwrap_or(0) * 4_096
}

fn main() {
    let asked: Vec<String> = std::env::args().skip(1).collect();
    let wants = |row: &str| asked.is_empty() || asked.iter().any(|name| name == row);
    if wants("memory") {
        size::memory();
    }
    if wants("merge") {
        merge::merge();
    }
    if wants("exchange") {
        size::exchange();
    }
    if wants("wan") {
        wan::wan();
    }
}
