//! What replicas say to each other in the root protocol, and what they sign.
//!
//! The four votes share one shape, the [`Statement`]; certificates are a statement's common part and the signatures of
//! those who made it. Nothing here decides anything: `certificate` verifies, the phases count.
//!
//! Departs: TOCS '02 authenticates the normal case by codes for each receiver; here every vote is signed, so that a
//! certificate convinces who was not there and no view-change acknowledgements are needed. Covered by the simulator's
//! `a_frame_is_authentic_at_every_replica_or_at_none`.

use alloc::vec::Vec;
use borsh::{BorshDeserialize, BorshSerialize};
use bytes::Bytes;
use dwcp_base::{
    ClusterId, ConfigurationId, Crypto, Hash, Incarnation, ReplicaId, Sequence, Signature, SigningKind, View,
    encode, signing_hash,
};

/// Which vote a statement is. PBFT (OSDI '99) sections 4.2 and 4.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, BorshSerialize, BorshDeserialize)]
#[borsh(use_discriminant = false)]
pub enum Vote {
    /// The primary assigns a payload to a sequence. Counts as its prepare.
    PrePrepare,
    /// A backup has accepted that assignment.
    Prepare,
    /// A replica holds a prepared certificate.
    Commit,
    /// A replica's state digest after a sequence; the view is 0.
    Checkpoint,
}

impl Vote {
    #[must_use]
    pub fn signing_kind(self) -> SigningKind {
        match self {
            Self::PrePrepare => SigningKind::PrePrepare,
            Self::Prepare => SigningKind::Prepare,
            Self::Commit => SigningKind::Commit,
            Self::Checkpoint => SigningKind::Checkpoint,
        }
    }
}

/// What a vote says, whoever says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, BorshSerialize, BorshDeserialize)]
pub struct Claim {
    pub vote: Vote,
    /// The configuration in force for `sequence`.
    pub configuration: ConfigurationId,
    pub view: View,
    pub sequence: Sequence,
    /// Of the payload, or of the state for a checkpoint.
    pub digest: Hash,
}

/// A claim and who makes it: the signed body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, BorshSerialize, BorshDeserialize)]
pub struct Statement {
    pub claim: Claim,
    pub sender: ReplicaId,
    pub incarnation: Incarnation,
}

impl Statement {
    /// The 32 bytes its signature covers.
    #[must_use]
    pub fn signing_hash(&self, cluster: ClusterId) -> Hash {
        signing_hash(self.claim.vote.signing_kind(), cluster, &encode(self))
    }
}

/// A signed statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, BorshSerialize, BorshDeserialize)]
pub struct Signed {
    pub statement: Statement,
    pub signature: Signature,
}

impl Signed {
    #[must_use]
    pub fn new(statement: Statement, cluster: ClusterId, crypto: &dyn Crypto) -> Self {
        Self { statement, signature: crypto.sign(&statement.signing_hash(cluster)) }
    }
}

/// One signature within a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, BorshSerialize, BorshDeserialize)]
pub struct Voucher {
    pub sender: ReplicaId,
    pub incarnation: Incarnation,
    pub signature: Signature,
}

/// A claim that a quorum signed: `q` commits decide a slot, `q` checkpoints make one stable.
#[derive(Clone, Debug, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
pub struct Certificate {
    pub claim: Claim,
    /// Strictly ascending by sender.
    pub vouchers: Vec<Voucher>,
}

/// A payload was assigned to a slot and `q - 1` backups accepted it: the primary's pre-prepare and their prepares,
/// all for one view, sequence and digest. No other digest can be prepared for that slot in that view.
#[derive(Clone, Debug, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
pub struct PreparedCertificate {
    pub pre_prepare: Signed,
    /// Prepares by others than the primary, strictly ascending by sender; each signs the digest it accepted.
    pub prepares: Vec<Signed>,
}

impl PreparedCertificate {
    #[must_use]
    pub fn view(&self) -> View {
        self.pre_prepare.statement.claim.view
    }

    #[must_use]
    pub fn sequence(&self) -> Sequence {
        self.pre_prepare.statement.claim.sequence
    }

    #[must_use]
    pub fn digest(&self) -> Hash {
        self.pre_prepare.statement.claim.digest
    }
}

/// An entry of the Q set: "I accepted this digest for this slot, last in this view, and hold its payload".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, BorshSerialize, BorshDeserialize)]
pub struct PrePrepared {
    pub sequence: Sequence,
    pub digest: Hash,
    pub view: View,
}

/// VIEW-CHANGE: "I have left the views below `view`; this is what I know that a later view must not forget."
#[derive(Clone, Debug, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
pub struct ViewChange {
    pub view: View,
    pub configuration: ConfigurationId,
    pub sender: ReplicaId,
    pub incarnation: Incarnation,
    /// Proof of the last stable checkpoint; `None` at the genesis.
    pub stable: Option<Certificate>,
    /// P: the prepared certificate of the highest view for each slot above the stable checkpoint, ascending.
    pub prepared: Vec<PreparedCertificate>,
    /// Q: what was accepted above the stable checkpoint, ascending by (sequence, digest).
    pub pre_prepared: Vec<PrePrepared>,
}

impl ViewChange {
    /// The sequence of its stable checkpoint.
    #[must_use]
    pub fn stable_sequence(&self) -> Sequence {
        self.stable.as_ref().map_or(Sequence::ZERO, |certificate| certificate.claim.sequence)
    }
}

/// NEW-VIEW: the primary's proof that `view` may begin and what it begins with.
#[derive(Clone, Debug, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
pub struct NewView {
    pub view: View,
    pub configuration: ConfigurationId,
    pub sender: ReplicaId,
    pub incarnation: Incarnation,
    /// Which VIEW-CHANGEs (by hash of their signed bytes) it is computed from, strictly ascending by sender.
    pub view_changes: Vec<(ReplicaId, Hash)>,
    /// O: a pre-prepare in the new view for every slot from the highest stable checkpoint to the highest prepared one.
    pub pre_prepares: Vec<Signed>,
}

/// A body of type `T`, carried as the very bytes that were signed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
pub struct SignedBody {
    pub body: Bytes,
    pub signature: Signature,
}

impl SignedBody {
    #[must_use]
    pub fn new(kind: SigningKind, body: Vec<u8>, cluster: ClusterId, crypto: &dyn Crypto) -> Self {
        let signature = crypto.sign(&signing_hash(kind, cluster, &body));
        Self { body: Bytes::from(body), signature }
    }

    /// Names exactly these signed bytes.
    #[must_use]
    pub fn hash(&self) -> Hash {
        Hash::of(&self.body)
    }
}

/// A slot whose digest is decided, with the proof.
#[derive(Clone, Debug, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
pub struct Decided {
    pub certificate: Certificate,
    /// Empty for the null request.
    pub payload: Bytes,
}

/// What a replica tells its peers about where it stands, so that they can send what it lacks. Unsigned: it proves
/// nothing and only steers retransmission.
#[derive(Clone, Debug, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
pub struct Standing {
    pub view: View,
    /// False while it waits for a NEW-VIEW.
    pub active: bool,
    pub stable: Sequence,
    pub executed: Sequence,
    /// The lowest sequence it can send as [`Decided`]; above `executed` when none.
    pub decided_from: Sequence,
    /// The latest snapshot it can donate; 0 for none.
    pub snapshot: Sequence,
    /// Set when the slots from `executed + 1` on have stood still: what it holds of each of the next ones.
    pub stuck: Vec<SlotHeld>,
    /// Set when the sender wants a standing in return (it has just started, or lost its links).
    pub answer: bool,
}

/// What a peer holds that another signed, for one that has just begun: by it a disk that was rolled back is found out.
#[derive(Clone, Debug, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
pub struct Introduction {
    /// The life of the receiver that asked for it. One that was meant for an earlier life may be older than what that
    /// life signed last.
    pub boot: u64,
    /// Its highest votes by view and by sequence; at most `SHOWN_MAX`.
    pub votes: Vec<Signed>,
    /// Its last VIEW-CHANGE.
    pub view_change: Option<SignedBody>,
}

/// What a stuck replica holds of one slot in its view.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
pub struct SlotHeld {
    pub pre_prepare: bool,
    pub prepared: bool,
}

/// A message of the root protocol.
#[derive(Clone, Debug, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
#[borsh(use_discriminant = true)]
#[repr(u8)]
pub enum Message {
    /// `PrePrepare` with the payload it assigns.
    PrePrepare {
        proposal: Signed,
        payload: Bytes,
    } = 1,
    /// `Prepare`, `Commit` or `Checkpoint`.
    Vote(Signed) = 2,
    /// Body: [`ViewChange`].
    ViewChange(SignedBody) = 3,
    /// Body: [`NewView`].
    NewView(SignedBody) = 4,
    /// A backup lacks a VIEW-CHANGE that a NEW-VIEW names.
    FetchViewChange {
        hash: Hash,
    } = 5,
    Standing(Standing) = 6,
    FetchPayload {
        sequence: Sequence,
        digest: Hash,
    } = 7,
    Payload {
        sequence: Sequence,
        payload: Bytes,
    } = 8,
    /// Asks for decided slots from this one on, as many as the answerer likes to send at once.
    FetchDecided {
        from: Sequence,
    } = 9,
    /// Consecutive decided slots.
    Decided(Vec<Decided>) = 10,
    /// The newest stable checkpoint the sender can prove.
    Stable(Certificate) = 11,
    /// "You signed this." Sent when a link comes up; a replica that does not remember its own vote has lost its disk.
    Reminder(Signed) = 12,
    /// "I have just begun, and call this life of mine so: what have I signed?"
    Introduce {
        boot: u64,
    } = 13,
    /// The answer.
    Introduction(Introduction) = 14,
}
