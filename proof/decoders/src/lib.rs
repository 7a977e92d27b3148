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
pub mod steps;
pub mod story;
pub mod sync_world;
pub mod targets;
pub mod world;

use dwcp_base::Chance;

/// Damages the first, may take from the second; see [`mutate::damage`].
pub type Damage = fn(&mut Vec<u8>, &[u8], bool, &mut Chance);

/// What became of an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Accepted,
    Refused,
}

impl Verdict {
    const fn of(accepted: bool) -> Self {
        if accepted { Self::Accepted } else { Self::Refused }
    }
}

/// How a damaged input is made to reach the fields behind a format's first check.
#[derive(Clone, Copy, Debug)]
pub enum Seal {
    /// Makes checksums, digests and signatures good again. False when the bytes are too broken for that.
    Sums(fn(&mut Vec<u8>) -> bool),
    /// The format carries none of these: its first check is its form, and what still has that form counts as sealed.
    Form(fn(&[u8]) -> bool),
}

impl Seal {
    /// True when the bytes reach the fields now.
    pub fn make_good(&self, bytes: &mut Vec<u8>) -> bool {
        match self {
            Self::Sums(seal) => seal(bytes),
            Self::Form(has_form) => has_form(bytes),
        }
    }
}

/// Who hears the bytes, and so how many damaged inputs it gets.
#[derive(Clone, Copy, Debug)]
pub enum Hearer {
    /// A decoder, and what is pure about what it yields: it gets every damaged input.
    Decoder,
    /// Somebody who acts on what was read, and whose life costs much beside the reading.
    Live {
        /// It gets one of so many damaged inputs that a decoder gets.
        one_in: u32,
        why_fewer: &'static str,
        /// The decoders that read the same bytes, and get all.
        read_by: &'static [&'static str],
    },
}

/// One decoder, or one road that bytes take through several.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Names its folder in the corpus.
    pub name: &'static str,
    /// Panics when a promise is broken.
    pub run: fn(&[u8]) -> Verdict,
    /// Good inputs. Equal in every run of one build.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Inputs made to exhaust memory, stack or time; run as they are, never damaged.
    pub bombs: fn() -> Vec<Vec<u8>>,
    pub seal: Seal,
    pub damage: Damage,
    pub hearer: Hearer,
}

impl Target {
    const fn new(
        name: &'static str,
        run: fn(&[u8]) -> Verdict,
        seeds: fn() -> Vec<Vec<u8>>,
        seal: Seal,
    ) -> Self {
        let damage = mutate::damage;
        Self { name, run, seeds, bombs: Vec::new, seal, damage, hearer: Hearer::Decoder }
    }

    const fn bombs(self, bombs: fn() -> Vec<Vec<u8>>) -> Self {
        Self { bombs, ..self }
    }

    const fn live(self, one_in: u32, why_fewer: &'static str, read_by: &'static [&'static str]) -> Self {
        Self { hearer: Hearer::Live { one_in, why_fewer, read_by }, ..self }
    }

    #[must_use]
    pub const fn is_live(&self) -> bool {
        matches!(self.hearer, Hearer::Live { .. })
    }

    /// Its part of a campaign of so many damaged inputs a target.
    #[must_use]
    pub fn share_of(&self, count: u64) -> u64 {
        match self.hearer {
            Hearer::Decoder => count,
            Hearer::Live { one_in, .. } => count.div_ceil(one_in.into()),
        }
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
    let _ = (named(name).run)(bytes);
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
    if chance.per_mille(500) {
        return None;
    }
    let mut bytes = buffer.get(..len)?.to_vec();
    let other = bytes.clone();
    let gentle = chance.per_mille(700);
    (target.damage)(&mut bytes, &other, gentle, &mut chance);
    if !target.seal.make_good(&mut bytes) {
        return None;
    }
    buffer.get_mut(..bytes.len())?.copy_from_slice(&bytes);
    Some(bytes.len())
}
