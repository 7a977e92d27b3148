//! Orders of the operator that stand in the log by themselves, signed with an admin key of the registry. An order is judged
//! where it is executed; each names what it follows, so that none can be repeated.

use crate::entry::RootEntry;
use alloc::string::String;
use borsh::{BorshDeserialize, BorshSerialize};
use dwcp_base::{
    Ack, ClusterId, Crypto, Hash, Incarnation, NetworkMode, PublicKey, ReplicaId, Signature, SigningKind,
    Trust, encode, signing_hash,
};

/// What an operator may sign.
pub trait OrderBody: BorshSerialize {
    const KIND: SigningKind;
}

/// "The disk of member `id` is lost; its next incarnation has these keys and addresses."
#[derive(Clone, Debug, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
pub struct MemberOrder {
    pub id: ReplicaId,
    /// Must be the incarnation in force plus one, which also makes the order unrepeatable.
    pub incarnation: Incarnation,
    pub vote_key: PublicKey,
    pub tls_key: PublicKey,
    pub peer_address: String,
    pub client_address: String,
}

/// "From now on the network is this." Ends the segment that is open, if one is; where the mode wants a segment the next one
/// opens at once, so that ordering the mode in force hands over to a fresh segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
pub struct ModeOrder {
    /// Must be the number of the last mode or policy order plus one; the first has 1.
    pub number: u64,
    pub mode: NetworkMode,
    /// Who should lead the next segment first.
    pub first_leader: Option<ReplicaId>,
}

/// "From now on this is trusted." The number of assumed liars stays what it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
pub struct PolicyOrder {
    /// As [`ModeOrder::number`].
    pub number: u64,
    pub trust: Trust,
    pub raft: bool,
    pub default_ack: Ack,
}

/// "State sync goes on without this incarnation of a member." What it wrote counts as far as the others have it; what it alone
/// has does not, and it writes no more until its disk is replaced. It votes as before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
pub struct ExcludeOrder {
    pub id: ReplicaId,
    /// Must be the incarnation in force. Ordered once, an order does nothing more.
    pub incarnation: Incarnation,
}

impl OrderBody for ExcludeOrder {
    const KIND: SigningKind = SigningKind::ExcludeOrder;
}

impl OrderBody for MemberOrder {
    const KIND: SigningKind = SigningKind::MemberOrder;
}

impl OrderBody for ModeOrder {
    const KIND: SigningKind = SigningKind::ModeOrder;
}

impl OrderBody for PolicyOrder {
    const KIND: SigningKind = SigningKind::PolicyOrder;
}

/// An order under an admin's signature. Whether the key is an admin's is judged at execution.
#[derive(Clone, Debug, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
pub struct SignedOrder<O> {
    pub order: O,
    pub admin_key: PublicKey,
    pub signature: Signature,
}

pub type SignedMemberOrder = SignedOrder<MemberOrder>;
pub type SignedModeOrder = SignedOrder<ModeOrder>;
pub type SignedPolicyOrder = SignedOrder<PolicyOrder>;
pub type SignedExcludeOrder = SignedOrder<ExcludeOrder>;

impl<O: OrderBody> SignedOrder<O> {
    #[must_use]
    pub fn new(order: O, cluster: ClusterId, admin_key: PublicKey, crypto: &dyn Crypto) -> Self {
        let signature = crypto.sign(&signing_hash(O::KIND, cluster, &encode(&order)));
        Self { order, admin_key, signature }
    }

    /// What must verify for the order to be the key holder's.
    #[must_use]
    pub fn signature_item(&self, cluster: ClusterId) -> (PublicKey, Hash, Signature) {
        let hash = signing_hash(O::KIND, cluster, &encode(&self.order));
        (self.admin_key, hash, self.signature)
    }
}

/// Any order on its way into the log. Discriminants are part of the format and are never reused.
#[derive(Clone, Debug, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
#[borsh(use_discriminant = true)]
#[repr(u8)]
pub enum OperatorOrder {
    Member(SignedMemberOrder) = 1,
    Mode(SignedModeOrder) = 2,
    Policy(SignedPolicyOrder) = 3,
    Exclude(SignedExcludeOrder) = 4,
}

impl From<OperatorOrder> for RootEntry {
    fn from(order: OperatorOrder) -> Self {
        match order {
            OperatorOrder::Member(order) => Self::Member(order),
            OperatorOrder::Mode(order) => Self::Mode(order),
            OperatorOrder::Policy(order) => Self::Policy(order),
            OperatorOrder::Exclude(order) => Self::Exclude(order),
        }
    }
}

impl OperatorOrder {
    #[must_use]
    pub fn signature_item(&self, cluster: ClusterId) -> (PublicKey, Hash, Signature) {
        match self {
            Self::Member(order) => order.signature_item(cluster),
            Self::Mode(order) => order.signature_item(cluster),
            Self::Policy(order) => order.signature_item(cluster),
            Self::Exclude(order) => order.signature_item(cluster),
        }
    }

    /// Whether this order, executed, leaves `other` without effect for good.
    #[must_use]
    pub fn overtakes(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Member(done), Self::Member(other)) => {
                done.order.id == other.order.id && other.order.incarnation <= done.order.incarnation
            }
            (Self::Exclude(done), Self::Exclude(other)) => done.order == other.order,
            _ => match (self.number(), other.number()) {
                (Some(done), Some(other)) => other <= done,
                _ => false,
            },
        }
    }

    /// The number of a mode or policy order.
    #[must_use]
    pub fn number(&self) -> Option<u64> {
        match self {
            Self::Member(_) | Self::Exclude(_) => None,
            Self::Mode(order) => Some(order.order.number),
            Self::Policy(order) => Some(order.order.number),
        }
    }
}
