//! Every decoder that reads what strangers or disks wrote, each as a function of bytes that must not panic, must not let
//! a length prefix choose its memory, and must keep what the decoder promises.
//!
//! ```text
//!   seeds ──► damage ──► seal again (at least 30 %) ──► run ──► panics, broken promises ──► shrunk input
//!   corpus ─────────────────────────────────────────────┘
//! ```
//!
//! `targets` says what is run, `mutate` how bytes are damaged, `seal` how a damaged message gets a good signature,
//! `story` how a live replica is reached, `campaign` how much of it all is run. `proof/fuzz` hands the same targets to
//! a coverage-guided fuzzer. What the decoders mean is not known here.

pub mod campaign;
pub mod corpus;
pub mod keys;
pub mod meter;
pub mod mutate;
pub mod seal;
pub mod story;
pub mod targets;
pub mod world;

use dwcp_base::Chance;

/// Damages the first, may take from the second; see [`mutate::damage`].
pub type Damage = fn(&mut Vec<u8>, &[u8], bool, &mut Chance);

/// One decoder, or one road that bytes take through several.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Names its folder in the corpus.
    pub name: &'static str,
    /// Panics when a promise is broken.
    pub run: fn(&[u8]),
    /// Good inputs. Equal in every run of one build.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Inputs made to exhaust memory, stack or time; run as they are, never damaged.
    pub bombs: fn() -> Vec<Vec<u8>>,
    /// Makes checksums, digests and signatures good again. False when the bytes are too broken for that. `None` where the
    /// format has nothing of the kind.
    pub reseal: Option<fn(&mut Vec<u8>) -> bool>,
    pub damage: Damage,
    /// Its share of a campaign; one run of a heavy target counts as many of a light one.
    pub weight: u32,
}

impl Target {
    const fn new(name: &'static str, run: fn(&[u8]), seeds: fn() -> Vec<Vec<u8>>) -> Self {
        Self { name, run, seeds, bombs: Vec::new, reseal: None, damage: mutate::damage, weight: 16 }
    }

    const fn sealed(self, reseal: fn(&mut Vec<u8>) -> bool) -> Self {
        Self { reseal: Some(reseal), ..self }
    }

    const fn bombs(self, bombs: fn() -> Vec<Vec<u8>>) -> Self {
        Self { bombs, ..self }
    }

    const fn weight(self, weight: u32) -> Self {
        Self { weight, ..self }
    }
}

fn named(name: &str) -> &'static Target {
    let target = targets::ALL.iter().find(|target| target.name == name);
    target.unwrap_or_else(|| panic!("there is no target {name}"))
}

/// Runs the target of this name once; what `proof/fuzz` calls.
///
/// # Panics
/// When the target does, or there is none of this name.
pub fn run(name: &str, bytes: &[u8]) {
    (named(name).run)(bytes);
}

/// Damages the first `len` bytes of `buffer` and seals them again, for a fuzzer that brings its own buffer. `None` when
/// the fuzzer should rather use its own damage: half of the time, and when the result is too broken to be sealed.
///
/// # Panics
/// When there is no target of this name.
#[must_use]
pub fn damage_and_seal(name: &str, buffer: &mut [u8], len: usize, seed: u32) -> Option<usize> {
    let target = named(name);
    let mut chance = Chance::new(seed.into());
    let reseal = target.reseal.filter(|_| chance.per_mille(500))?;
    let mut bytes = buffer.get(..len)?.to_vec();
    let other = bytes.clone();
    let gentle = chance.per_mille(700);
    (target.damage)(&mut bytes, &other, gentle, &mut chance);
    if !reseal(&mut bytes) {
        return None;
    }
    buffer.get_mut(..bytes.len())?.copy_from_slice(&bytes);
    Some(bytes.len())
}
