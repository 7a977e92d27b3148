//! What is written to the node's log before sync speaks, and therefore what a restart remembers.

use crate::frame::SignedHeader;
use crate::proof::{Cut, Proof};
use alloc::vec::Vec;
use borsh::{BorshDeserialize, BorshSerialize};
use bytes::Bytes;
use dwcp_base::{CodecError, decode, encode};
use dwcp_crdt::{Floor, FloorState, Origin, VersionVector};

/// Where a snapshot of the store stands, and all that earlier records said beside the frames above it. Each head is signed
/// by its origin, so a donor cannot invent one.
#[derive(Clone, Debug, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Base {
    /// The last frame of each origin that the snapshot holds with all before it. Ascending by origin.
    pub heads: Vec<SignedHeader>,
    /// Origins that contradicted themselves, ascending.
    pub proofs: Vec<Proof>,
    /// Origins that ended, ascending.
    pub cuts: Vec<Cut>,
    /// Origins that were about to end without having lied, ascending.
    pub halted: Vec<Origin>,
    /// Of origins that have to end: the counter after which nothing was handed to the store before it was known to count.
    /// Ascending.
    pub settled: Vec<(Origin, u64)>,
    /// Origins of which the store holds something that a cut leaves out; it must be replaced.
    pub off_branch: Vec<Origin>,
    /// The newest floor that the snapshot's store has taken note of.
    pub floor: u64,
    /// Floors after that one, in order; and the last one known, if it is no later.
    pub floors: Vec<FloorStep>,
    pub floor_last: Option<Floor>,
}

/// What the log said of floors. Discriminants are part of the format and are never reused.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
#[borsh(use_discriminant = true)]
#[repr(u8)]
pub enum FloorStep {
    One(Floor) = 1,
    /// What all floors up to one come to, for whoever missed some of them.
    Through(FloorState) = 2,
}

impl FloorStep {
    #[must_use]
    pub const fn number(&self) -> u64 {
        match self {
            Self::One(floor) => floor.number,
            Self::Through(floors) => floors.number(),
        }
    }

    /// The last floor that it speaks of.
    #[must_use]
    pub fn newest(&self) -> Option<&Floor> {
        match self {
            Self::One(floor) => Some(floor),
            Self::Through(floors) => floors.newest(),
        }
    }

    /// What a store must hold to take it.
    pub fn seen(&self) -> impl Iterator<Item = &VersionVector> {
        let (one, through) = match self {
            Self::One(floor) => (Some(&floor.seen), None),
            Self::Through(floors) => (None, Some(floors)),
        };
        one.into_iter().chain(through.into_iter().flat_map(FloorState::seen))
    }
}

/// One record. Discriminants are part of the format and are never reused.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
#[borsh(use_discriminant = true)]
#[repr(u8)]
pub enum Record {
    /// The next frame of its origin's chain.
    Frame(Bytes) = 1,
    /// An origin contradicted itself.
    Proof(Proof) = 2,
    /// An origin ends.
    Cut(Cut) = 3,
    /// All members acknowledged this.
    Floor(Floor) = 4,
    /// Chains begin here. Frames written before count if they follow.
    Base(Base) = 5,
    /// An origin is about to end.
    Halt(Origin) = 6,
    /// Nothing of an origin after this counter is handed to the store before it is known to count. Written before the record
    /// that says why, and nothing without it.
    Settled(Origin, u64) = 7,
    /// What all floors up to one come to: some between the last one and this were missed.
    Floors(FloorState) = 8,
}

impl Record {
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        Bytes::from(encode(self))
    }

    /// # Errors
    /// Bytes that are no record.
    pub fn read(bytes: &[u8]) -> Result<Self, CodecError> {
        decode(bytes)
    }
}
