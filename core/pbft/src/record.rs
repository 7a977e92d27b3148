//! What is written to the log before the protocol speaks, and therefore what a restart remembers.
//!
//! Departs: the papers keep a replica's promises in memory. Here each vote waits for its record to be durable, because
//! crash and restart are the ordinary case. Covered by the simulator's `every_vote_names_the_record_that_remembers_it`.

use crate::message::{Certificate, Decided, PreparedCertificate, Signed, SignedBody};
use alloc::vec::Vec;
use borsh::{BorshDeserialize, BorshSerialize};
use bytes::Bytes;

/// A NEW-VIEW and the VIEW-CHANGEs it names, so that whoever missed them can be shown.
#[derive(Clone, Debug, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
pub struct NewViewProof {
    pub new_view: SignedBody,
    /// In the order in which the NEW-VIEW names them. Empty for view 0, which needs no proof.
    pub view_changes: Vec<SignedBody>,
}

/// One record of the write-ahead log. Discriminants are part of the format and are never reused.
#[derive(Clone, Debug, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
#[borsh(use_discriminant = true)]
#[repr(u8)]
pub enum Record {
    /// Before a pre-prepare or prepare leaves: this payload was accepted for this slot. The payload is `None` when an
    /// earlier record holds it.
    PrePrepared { proposal: Signed, payload: Option<Bytes> } = 1,
    /// Before a commit leaves.
    Prepared(PreparedCertificate) = 2,
    /// A slot is decided; its payload is in an earlier record.
    Committed(Certificate) = 3,
    /// A slot is decided, learned from others.
    Decided(Decided) = 4,
    /// Before our VIEW-CHANGE leaves.
    ViewChange(SignedBody) = 5,
    /// Before anything is said in a new view.
    NewView(NewViewProof) = 6,
    /// A checkpoint became stable.
    Stable(Certificate) = 7,
    /// A payload that arrived after its slot was accepted without it.
    Payload { sequence: dwcp_base::Sequence, payload: Bytes } = 8,
}
