//! What every row writes with: members and their keys, resolvers, and writes of 16 bytes under keys of 16 bytes.

use dwcp_base::crypto::Ed25519;
use dwcp_base::{ClusterId, Crypto, Hash, Hasher, Micros, Mutants, Now, PublicKey, Signature};
use dwcp_crdt::{Op, Origin, Plain, Resolvers, Strategy, Write};
use dwcp_sync::{Limits, Setup, Timing};
use std::collections::BTreeMap;
use std::sync::Arc;

pub const CLUSTER: ClusterId = ClusterId([5; 32]);
pub const NOON_MS: u64 = 1_700_000_000_000;
pub const MILLION: u64 = 1_000_000;

/// A keyed hash, for whoever asks for figures without the cost of signatures.
#[derive(Debug)]
struct Keyed(PublicKey);

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

/// Members 0..count, with Ed25519, or with keyed hashes.
pub fn setups(count: u32, keyed: bool) -> Vec<Setup> {
    let seed = |id: u32| {
        let mut seed = [9; 32];
        seed[..4].copy_from_slice(&id.to_le_bytes());
        seed
    };
    let key = |id: u32| if keyed { PublicKey(seed(id)) } else { Ed25519::new(seed(id), &[]).public_key() };
    let members: BTreeMap<Origin, PublicKey> = (0..count).map(|id| (origin(id), key(id))).collect();
    let known: Vec<PublicKey> = members.values().copied().collect();
    let setup = |id: u32| {
        let crypto: Arc<dyn Crypto> =
            if keyed { Arc::new(Keyed(key(id))) } else { Arc::new(Ed25519::new(seed(id), &known)) };
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

/// In words, for a row's line.
pub fn signatures(keyed: bool) -> &'static str {
    if keyed { "a keyed hash for signatures" } else { "Ed25519" }
}

pub fn now(ms: u64) -> Now {
    Now { mono: Micros::from_millis(ms), wall_ms: NOON_MS + ms }
}

/// One strategy for every key; beside it one for a prefix that no key here has, so that there is something to look up.
pub fn resolvers(strategy: Strategy) -> Resolvers {
    let mut resolvers = Resolvers::default();
    resolvers.set("", strategy);
    resolvers.set("settings/", Strategy::LastWriterWins);
    resolvers
}

/// The key of 16 bytes with this number.
pub fn key(number: u64) -> String {
    format!("{number:016x}")
}

/// A register write with a value of 16 bytes.
pub fn put(key: u64, value: u64) -> Write {
    let value = Plain::bytes(format!("{value:016x}")).expect("short");
    Write::new(self::key(key), Op::Put(value))
}

/// A register write of a JSON object of 16 bytes with this one field.
pub fn put_json(key: u64, field: char, value: u32) -> Write {
    let value = Plain::json(&format!("{{\"{field}\":\"{value:08x}\"}}")).expect("an object");
    Write::new(self::key(key), Op::Put(value))
}

/// Resident memory of this process, in bytes.
///
/// # Panics
/// Where the system does not tell: a figure that was made up is worse than none.
pub fn resident_bytes() -> u64 {
    kilobytes("/proc/self/smaps_rollup", "Rss:") * 1_024
}

/// The most that was ever resident.
///
/// # Panics
/// As [`resident_bytes`].
pub fn resident_bytes_most() -> u64 {
    kilobytes("/proc/self/status", "VmHWM:") * 1_024
}

fn kilobytes(file: &str, name: &str) -> u64 {
    let text = std::fs::read_to_string(file).expect("Linux tells what is resident");
    let line = text.lines().find(|line| line.starts_with(name)).expect("it has a line of that name");
    line.split_whitespace().nth(1).and_then(|field| field.parse().ok()).expect("it is a number of kB")
}
