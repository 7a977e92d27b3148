//! Orders of the operator that stand in the log by themselves, signed with an admin key of the registry.

use borsh::{BorshDeserialize, BorshSerialize};
use dwcp_base::{
    ClusterId, Crypto, Hash, Incarnation, PublicKey, ReplicaId, Signature, SigningKind, encode, signing_hash,
};

extern crate alloc;
use alloc::string::String;

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

/// The order under an admin's signature. Whether the key is an admin's is judged at execution.
#[derive(Clone, Debug, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
pub struct SignedMemberOrder {
    pub order: MemberOrder,
    pub admin_key: PublicKey,
    pub signature: Signature,
}

impl SignedMemberOrder {
    #[must_use]
    pub fn new(order: MemberOrder, cluster: ClusterId, admin_key: PublicKey, crypto: &dyn Crypto) -> Self {
        let signature = crypto.sign(&signing_hash(SigningKind::MemberOrder, cluster, &encode(&order)));
        Self { order, admin_key, signature }
    }

    /// What must verify for the order to be the key holder's.
    #[must_use]
    pub fn signature_item(&self, cluster: ClusterId) -> (PublicKey, Hash, Signature) {
        let hash = signing_hash(SigningKind::MemberOrder, cluster, &encode(&self.order));
        (self.admin_key, hash, self.signature)
    }
}
