//! What replicas send each other: the root protocol's messages, relayed client frames and orders, and snapshots.

use alloc::vec::Vec;
use borsh::{BorshDeserialize, BorshSerialize};
use bytes::Bytes;
use dwcp_base::{Epoch, Hash, Index, Sequence, Signature};
use dwcp_log::anchor::AnchorVote;
use dwcp_log::consent::{Ground, Matter, Stance};
use dwcp_log::seal::{Sealed, Signed, StopCert, Suspect};
use dwcp_log::{Agreed, OperatorOrder, Place, SignedMemberOrder, VirtualLog};
use dwcp_pbft::{Certificate, Message, Record};
use dwcp_raft::Entry;

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
    Order(OperatorOrder) = 3,
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
    /// What members of a segment say to each other, in that protocol's own bytes.
    Segment {
        epoch: Epoch,
        bytes: Bytes,
    } = 9,
    /// "The segment does not move."
    Suspect(Signed<Suspect>) = 10,
    /// Enough of them.
    Stop {
        epoch: Epoch,
        stop: StopCert,
    } = 11,
    /// "The epoch is over here; my log of it ends there."
    Sealed(Signed<Sealed>) = 12,
    /// "This is what I hold and computed at that Tick."
    AnchorVote(Signed<AnchorVote>) = 13,
    /// Asks for entries of an epoch's log, open or closed, from this index on: those that lead to the tail.
    FetchEntries {
        epoch: Epoch,
        from: Index,
        tail: Place,
    } = 14,
    /// Consecutive entries; none when the sender does not hold the first.
    Entries {
        epoch: Epoch,
        first: Index,
        entries: Vec<Entry>,
    } = 15,
    /// "What you need of this segment I have discarded: fetch a snapshot."
    Behind {
        epoch: Epoch,
    } = 16,
    /// What members say to each other about convergent state, in that room's own bytes.
    Sync(Bytes) = 17,
    /// A convergent frame on its way into the log.
    SyncOrder {
        frame: Bytes,
    } = 18,
    /// "What do you hold?", and the answer.
    SyncStand {
        token: u64,
        digest: Option<Hash>,
    } = 19,
    /// Asks for the convergent store as it stands (`id` 0), or for a part of what was offered.
    SyncFetch {
        id: u64,
        part: u32,
    } = 20,
    SyncOffer {
        id: u64,
        parts: u32,
        bytes: u64,
        digest: Hash,
        base: Bytes,
    } = 21,
    SyncPart {
        id: u64,
        part: u32,
        bytes: Bytes,
    } = 22,
    /// The primary, or in its stead another: "do you find this true by yourself?"
    SyncAsk {
        matter: Matter,
        ground: Ground,
        bytes: Bytes,
    } = 23,
    /// "I do", or where I stand. The content is the hash of what was asked; `stands` is this replica's own end of the origin,
    /// for whoever looks for a better one, and empty about floors.
    SyncConsent {
        matter: Matter,
        ground: Ground,
        content: Hash,
        stance: Stance,
        signature: Signature,
        stands: Bytes,
    } = 24,
    /// "A quorum agreed to what I asked about: let it be ordered."
    SyncAgreed {
        matter: Matter,
        agreed: Agreed,
    } = 25,
}

/// One record of the node's log: the root protocol's, or a segment's. Discriminants are part of the format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogRecord {
    Root(Record),
    Segment {
        epoch: Epoch,
        bytes: Bytes,
    },
    Fetched(FetchedEntries),
    /// One of convergent state. The same number again is the same record, moved.
    Sync {
        number: u64,
        bytes: Bytes,
    },
    /// Part of a snapshot of the convergent store.
    SyncSnapshot {
        id: u64,
        part: u32,
        parts: u32,
        /// It counts only beside the record with this number; 0 for none.
        needs: u64,
        bytes: Bytes,
    },
}

/// Entries of a segment that came from others because its end was not in this replica's own log: all of them, or a part
/// that goes on where the record before it ended.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct FetchedEntries {
    pub epoch: Epoch,
    /// Where they lead, in the end.
    pub tail: Place,
    /// The virtual log before the first of them, and the segment's index there.
    pub from: VirtualLog,
    pub from_index: Index,
    pub entries: Vec<Entry>,
}

const ROOT_RECORD: u8 = 1;
const SEGMENT_RECORD: u8 = 2;
const FETCHED_RECORD: u8 = 3;
const SYNC_RECORD: u8 = 4;
const SYNC_SNAPSHOT_RECORD: u8 = 5;

impl LogRecord {
    #[must_use]
    pub fn root(record: &Record) -> Vec<u8> {
        let mut bytes = Vec::from([ROOT_RECORD]);
        record.serialize(&mut bytes).expect("writing to memory cannot fail");
        bytes
    }

    #[must_use]
    pub fn segment(epoch: Epoch, record: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(9 + record.len());
        bytes.push(SEGMENT_RECORD);
        bytes.extend_from_slice(&epoch.0.to_le_bytes());
        bytes.extend_from_slice(record);
        bytes
    }

    #[must_use]
    pub fn fetched(record: &FetchedEntries) -> Vec<u8> {
        let mut bytes = Vec::from([FETCHED_RECORD]);
        record.serialize(&mut bytes).expect("writing to memory cannot fail");
        bytes
    }

    #[must_use]
    pub fn sync(number: u64, record: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(9 + record.len());
        bytes.push(SYNC_RECORD);
        bytes.extend_from_slice(&number.to_le_bytes());
        bytes.extend_from_slice(record);
        bytes
    }

    #[must_use]
    pub fn sync_snapshot(id: u64, part: u32, parts: u32, needs: u64, piece: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(25 + piece.len());
        bytes.push(SYNC_SNAPSHOT_RECORD);
        bytes.extend_from_slice(&id.to_le_bytes());
        bytes.extend_from_slice(&part.to_le_bytes());
        bytes.extend_from_slice(&parts.to_le_bytes());
        bytes.extend_from_slice(&needs.to_le_bytes());
        bytes.extend_from_slice(piece);
        bytes
    }

    /// `None` for bytes that are no record of this version.
    #[must_use]
    pub fn read(bytes: &Bytes) -> Option<Self> {
        match *bytes.first()? {
            ROOT_RECORD => dwcp_base::decode(&bytes[1..]).ok().map(Self::Root),
            SEGMENT_RECORD => {
                let epoch = bytes.get(1..9)?.try_into().ok().map(u64::from_le_bytes)?;
                Some(Self::Segment { epoch: Epoch(epoch), bytes: bytes.slice(9..) })
            }
            FETCHED_RECORD => dwcp_base::decode(&bytes[1..]).ok().map(Self::Fetched),
            SYNC_RECORD => {
                let number = bytes.get(1..9)?.try_into().ok().map(u64::from_le_bytes)?;
                Some(Self::Sync { number, bytes: bytes.slice(9..) })
            }
            SYNC_SNAPSHOT_RECORD => {
                let id = bytes.get(1..9)?.try_into().ok().map(u64::from_le_bytes)?;
                let part = bytes.get(9..13)?.try_into().ok().map(u32::from_le_bytes)?;
                let parts = bytes.get(13..17)?.try_into().ok().map(u32::from_le_bytes)?;
                let needs = bytes.get(17..25)?.try_into().ok().map(u64::from_le_bytes)?;
                Some(Self::SyncSnapshot { id, part, parts, needs, bytes: bytes.slice(25..) })
            }
            _ => None,
        }
    }
}

/// The format of snapshots and of [`SnapshotMeta`].
pub const SNAPSHOT_FORMAT: u16 = 2;

/// What a snapshot proves about itself: `q` replicas signed a digest that is the digest of these chunk digests.
#[derive(Clone, Debug, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
pub struct SnapshotMeta {
    /// [`SNAPSHOT_FORMAT`].
    pub format: u16,
    pub certificate: Certificate,
    /// Of chunk 0 (control) and the state's chunks after it.
    pub digests: Vec<Hash>,
    /// For a reader that missed changes of members: the orders behind today's keys.
    pub orders: Vec<SignedMemberOrder>,
}
