//! What one slot of the root log holds. Client frames are opaque here: bytes whose signature and meaning are checked
//! by whoever prepares and executes them.

use crate::anchor::Anchor;
use crate::close::Close;
use crate::consent::Agreed;
use crate::order::{SignedExcludeOrder, SignedMemberOrder, SignedModeOrder, SignedPolicyOrder};
use crate::seal::{Sealed, Signed};
use crate::segment::Open;
use alloc::boxed::Box;
use alloc::vec::Vec;
use borsh::{BorshDeserialize, BorshSerialize};
use bytes::Bytes;
use dwcp_base::codec::CodecError;
use dwcp_base::limits::{PROPOSAL_BYTES_MAX, PROPOSAL_ENTRIES_MAX};
use dwcp_base::{Hash, Hasher, LogTime, decode, encode};

/// Ends the open segment, opens another, or both: all or nothing.
#[derive(Clone, Debug, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
pub struct Switch {
    pub close: Option<Close>,
    pub open: Option<Open>,
}

/// "This member is out of the open segment for good, by its own word: hand over to a fresh one." Without effect in a segment
/// that is younger than the calm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
pub struct Decide {
    pub sealed: Signed<Sealed>,
}

/// One entry of the root log. Discriminants are part of the format and are never reused: 6 is kept for Report.
#[derive(Clone, Debug, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
#[borsh(use_discriminant = true)]
#[repr(u8)]
pub enum RootEntry {
    /// Client frames, each signed by its session or principal; executed in this order.
    Batch(Vec<Bytes>) = 1,
    Switch(Box<Switch>) = 2,
    Decide(Box<Decide>) = 3,
    /// The operator says what the network is.
    Mode(SignedModeOrder) = 4,
    /// `q` replicas held and computed the same at one place of the open segment.
    Anchor(Box<Anchor>) = 5,
    /// The operator says what is trusted.
    Policy(SignedPolicyOrder) = 7,
    /// An operator replaces a member's lost disk by a new incarnation.
    Member(SignedMemberOrder) = 8,
    /// Where an origin of convergent state ends: it contradicted itself, or its node came back with another disk. Its bytes are
    /// state sync's. Judged where it is executed; what nobody agreed to is a no-op.
    Evidence(Box<Agreed>) = 9,
    /// Nothing: it only moves the window on. (Log time passes with a batch, which may be empty.)
    Noop = 10,
    /// What all members have acknowledged of convergent state, so that what lies below may be forgotten. Its bytes are state
    /// sync's; it is no part of the virtual log. Judged as an end is.
    Floor(Box<Agreed>) = 11,
    /// The operator has state sync go on without a member.
    Exclude(SignedExcludeOrder) = 12,
}

/// What the primary proposes for one sequence: its clock and the entries to execute.
#[derive(Clone, Debug, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
pub struct Proposal {
    /// The proposer's wall clock. Log time becomes the larger of this and what it was.
    pub time: LogTime,
    pub entries: Vec<RootEntry>,
}

impl Proposal {
    /// The payload bytes that PBFT orders. The null request is the empty payload, which is no `Proposal`.
    #[must_use]
    pub fn to_payload(&self) -> Bytes {
        Bytes::from(encode(self))
    }

    /// Reads a payload; `None` for the null request.
    ///
    /// # Errors
    /// Bytes that are too long or are not a proposal.
    pub fn from_payload(payload: &Bytes) -> Result<Option<Self>, CodecError> {
        if payload.is_empty() {
            return Ok(None);
        }
        if payload.len() > PROPOSAL_BYTES_MAX {
            return Err(CodecError::TooLong { bytes: payload.len(), bytes_max: PROPOSAL_BYTES_MAX });
        }
        // The number of entries stands behind the time. A byte of payload must not become hundreds in memory.
        let count = payload.get(8..12).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes);
        if count.is_none_or(|count| count > PROPOSAL_ENTRIES_MAX) {
            return Err(CodecError::Malformed);
        }
        decode(payload).map(Some)
    }
}

/// The digest under which PBFT orders a payload.
#[must_use]
pub fn payload_digest(payload: &[u8]) -> Hash {
    let mut hasher = Hasher::new("dwcp v3 payload");
    hasher.update(payload);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    #[test]
    fn a_proposal_survives_its_bytes_and_null_is_empty() {
        let proposal = Proposal {
            time: LogTime(7),
            entries: vec![RootEntry::Batch(vec![Bytes::from_static(b"frame")]), RootEntry::Noop],
        };
        let payload = proposal.to_payload();
        assert_eq!(Proposal::from_payload(&payload), Ok(Some(proposal)));
        assert_eq!(Proposal::from_payload(&Bytes::new()), Ok(None));
    }

    #[test]
    fn a_proposal_of_too_many_entries_is_refused_unread() {
        let entries = vec![RootEntry::Noop; PROPOSAL_ENTRIES_MAX as usize + 1];
        let payload = Proposal { time: LogTime(1), entries }.to_payload();
        assert_eq!(Proposal::from_payload(&payload), Err(CodecError::Malformed));
    }

    #[test]
    fn trailing_and_unknown_bytes_are_refused() {
        let mut bytes = encode(&Proposal { time: LogTime(1), entries: vec![RootEntry::Noop] });
        bytes.push(0);
        assert!(Proposal::from_payload(&Bytes::from(bytes.clone())).is_err());
        bytes.pop();
        *bytes.last_mut().expect("the discriminant is last") = 6;
        assert!(Proposal::from_payload(&Bytes::from(bytes)).is_err());
    }
}
