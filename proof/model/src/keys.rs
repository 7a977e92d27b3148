//! Signatures a thousand times cheaper than a curve's: a keyed hash per replica. Replicas are handed a verifier; only
//! this file can sign in anybody's name, and `liar` asks it for nothing but its own (and for forgeries that must fail).

use dwcp_base::configuration::{Principal, Role};
use dwcp_base::{
    Crypto, Genesis, Hash, Incarnation, Member, Policy, PublicKey, Quorum, ReplicaId, Sequence, Signature,
    Trust,
};
use std::fmt;
use std::sync::Arc;

fn key(kind: u8, id: u8) -> PublicKey {
    let mut key = [kind; 32];
    key[0] = id;
    PublicKey(key)
}

fn mark(key: &PublicKey, message: &Hash) -> Signature {
    let mut signature = [0; 64];
    signature[..32].copy_from_slice(blake3::keyed_hash(&key.0, &message.0).as_bytes());
    Signature(signature)
}

/// The key a member votes with.
#[must_use]
pub fn vote_key(id: u8) -> PublicKey {
    key(1, id)
}

/// What signs as one replica and verifies anybody.
pub struct KeyedHash(PublicKey);

impl KeyedHash {
    #[must_use]
    pub fn of(id: u8) -> Self {
        Self(vote_key(id))
    }
}

impl fmt::Debug for KeyedHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyedHash")
    }
}

impl Crypto for KeyedHash {
    fn sign(&self, message: &Hash) -> Signature {
        mark(&self.0, message)
    }

    fn verify(&self, key: &PublicKey, message: &Hash, signature: &Signature) -> bool {
        mark(key, message) == *signature
    }
}

/// `n` members; no checkpoint is ever due in the few slots of a model.
///
/// # Panics
/// When `n` is not a possible size.
#[must_use]
pub fn genesis(n: u8) -> Arc<Genesis> {
    let members = (0..n)
        .map(|id| Member {
            id: ReplicaId(id),
            incarnation: Incarnation(0),
            vote_key: vote_key(id),
            tls_key: key(2, id),
            peer_address: String::new(),
            client_address: String::new(),
            votes_after: Sequence::ZERO,
        })
        .collect();
    let quorum = Quorum::new(n.into(), None).expect("models have possible sizes");
    let genesis = Genesis {
        version: 1,
        name: "model".into(),
        created_unix_ms: 0,
        policy: Policy::root_only(Trust::Byzantine, quorum),
        mode: dwcp_base::NetworkMode::Hybrid,
        calm_ms: dwcp_base::configuration::CALM_MS,
        members,
        principals: vec![Principal { name: "admin".into(), key: key(3, 0), role: Role::Admin }],
        checkpoint_interval: 128,
        window: 256,
        quota_bytes: 1 << 20,
    };
    genesis.check().expect("the model's genesis is sound");
    Arc::new(genesis)
}
