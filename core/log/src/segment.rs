//! A segment: a stretch of the virtual log that the root has handed to another protocol. What opens one, what it is while
//! it is open, and how far it is anchored. Knows nothing of how the protocol inside agrees, nor of how a segment ends.

use crate::chain::VirtualLog;
use crate::place::{Index, Place, Term};
use alloc::vec::Vec;
use borsh::{BorshDeserialize, BorshSerialize};
use dwcp_base::{Epoch, Hash, Position, ReplicaId, Sequence};

/// What runs inside a segment. Numbers are part of the format and are never reused; 2 is kept for a protocol among liars.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, BorshSerialize, BorshDeserialize)]
#[borsh(use_discriminant = true)]
#[repr(u8)]
pub enum Protocol {
    /// Raft among replicas that only crash.
    Raft = 1,
}

/// Hands the right to extend the virtual log to a segment. Epoch and base are not proposed: they follow from what was
/// ordered before, and a change of views may null some of that.
#[derive(Clone, Debug, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
pub struct Open {
    pub protocol: Protocol,
    /// Who should lead first; best not the root's primary, so that one crash does not take both.
    pub first_leader: Option<ReplicaId>,
    /// The segment's voters, ascending.
    pub members: Vec<ReplicaId>,
}

/// How far a segment is notarised: `q` replicas held this prefix, applied and durable, and computed this state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
pub struct AnchorPoint {
    /// How many Anchors of this epoch came before, itself included; 0 at the base.
    pub number: u64,
    pub index: Index,
    /// Of the entry at `index`; 0 at the base.
    pub term: Term,
    /// The chain of the virtual log with this entry.
    pub chain: Hash,
    /// The digest of the state after it; at the base, of the state in which the segment opened.
    pub state: Hash,
}

/// A segment that is open.
#[derive(Clone, Debug, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
pub struct Segment {
    pub epoch: Epoch,
    /// The root entry that opened it.
    pub opened_at: Sequence,
    /// The virtual log before its first entry.
    pub base: VirtualLog,
    pub open: Open,
    pub anchor: AnchorPoint,
}

impl Segment {
    #[must_use]
    pub fn new(epoch: Epoch, opened_at: Sequence, base: VirtualLog, state: Hash, open: Open) -> Self {
        let anchor = AnchorPoint { chain: base.chain, state, ..AnchorPoint::default() };
        Self { epoch, opened_at, base, open, anchor }
    }

    /// The position of one of its entries: every index is one position, whatever it holds.
    #[must_use]
    pub fn position(&self, index: Index) -> Option<Position> {
        self.base.position.0.checked_add(index.0).map(Position)
    }

    /// The place of the last Anchor.
    #[must_use]
    pub fn anchored(&self) -> Place {
        Place { index: self.anchor.index, term: self.anchor.term, chain: self.anchor.chain }
    }

    /// Whether a log that ends at `tail` can hold the last Anchor, as far as the places alone can tell.
    #[must_use]
    pub fn may_hold_anchor(&self, tail: &Place) -> bool {
        tail.index > self.anchor.index || (tail.index == self.anchor.index && tail.chain == self.anchor.chain)
    }

    /// The virtual log as it stands when the segment ends at `tail`; `None` when positions would run out.
    #[must_use]
    pub fn ends(&self, tail: &Place) -> Option<VirtualLog> {
        Some(VirtualLog { position: self.position(tail.index)?, chain: tail.chain })
    }
}
