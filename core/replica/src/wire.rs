//! What replicas send each other: the root protocol's messages, relayed client frames and orders, and snapshots.

use alloc::vec::Vec;
use borsh::{BorshDeserialize, BorshSerialize};
use bytes::Bytes;
use dwcp_base::{Hash, Sequence};
use dwcp_log::SignedMemberOrder;
use dwcp_pbft::{Certificate, Message};

/// Bytes of a chunk that travel in one message.
pub const CHUNK_PART_BYTES: u32 = 256 * 1024;

/// Everything that may come from a peer. Discriminants are part of the format and are never reused.
#[derive(Clone, Debug, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
#[borsh(use_discriminant = true)]
#[repr(u8)]
pub enum PeerMessage {
    Pbft(Message) = 1,
    /// A client's frame. `to_all`: every replica is being told, so every replica watches whether it gets executed.
    Request {
        to_all: bool,
        frame: Bytes,
    } = 2,
    /// An operator's order on its way to the primary.
    Order(SignedMemberOrder) = 3,
    /// Asks for the newest snapshot at or above this sequence.
    FetchOffer {
        at_least: Sequence,
    } = 4,
    Offer(SnapshotMeta) = 5,
    FetchChunk {
        sequence: Sequence,
        index: u32,
        offset: u64,
    } = 6,
    /// Part of a chunk; one shorter than [`CHUNK_PART_BYTES`] is the last.
    Chunk {
        sequence: Sequence,
        index: u32,
        offset: u64,
        bytes: Bytes,
    } = 7,
    /// The donor does not have that snapshot any more.
    NoChunk {
        sequence: Sequence,
        index: u32,
    } = 8,
}

/// What a snapshot proves about itself: `q` replicas signed a digest that is the digest of these chunk digests.
#[derive(Clone, Debug, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
pub struct SnapshotMeta {
    /// Format of snapshots; 1.
    pub format: u16,
    pub certificate: Certificate,
    /// Of chunk 0 (control) and the state's chunks after it.
    pub digests: Vec<Hash>,
    /// For a reader that missed changes of members: the orders behind today's keys.
    pub orders: Vec<SignedMemberOrder>,
}
