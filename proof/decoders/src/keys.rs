//! The identities of the test cluster. Everybody's secret follows from the public key, so that a damaged message can be
//! sealed again as whoever it claims to be from: what is under test are the fields behind a good signature.
//!
//! A keyed hash instead of a curve: a thousand times cheaper, and still refused when any bit is altered.

use dwcp_base::configuration::{Principal, Role};
use dwcp_base::{
    ClusterId, Crypto, Genesis, Hash, Incarnation, Member, Policy, PublicKey, Quorum, ReplicaId, Sequence,
    Signature, Trust,
};
use std::sync::{Arc, LazyLock};

/// When the cluster was made; its clocks start here.
pub const START_MS: u64 = 1_700_000_000_000;
/// Replicas of the test cluster.
pub const N: u8 = 4;

/// A public key of the test world.
#[must_use]
pub fn key(kind: &str, a: u64, b: u64) -> PublicKey {
    let mut hasher = blake3::Hasher::new();
    hasher.update(kind.as_bytes()).update(&a.to_le_bytes()).update(&b.to_le_bytes());
    PublicKey(*hasher.finalize().as_bytes())
}

/// The key with which a replica's incarnation votes.
#[must_use]
pub fn vote_key(replica: ReplicaId, incarnation: Incarnation) -> PublicKey {
    key("vote", replica.0.into(), incarnation.0.into())
}

/// The one admin of the genesis.
#[must_use]
pub fn admin_key() -> PublicKey {
    key("principal", 0, 0)
}

/// Signs as the holder of any key.
#[must_use]
pub fn sign(key: &PublicKey, message: &Hash) -> Signature {
    let half = *blake3::keyed_hash(&key.0, &message.0).as_bytes();
    let mut bytes = [0; 64];
    bytes[..32].copy_from_slice(&half);
    for (to, from) in bytes[32..].iter_mut().zip(half) {
        *to = !from;
    }
    Signature(bytes)
}

/// Signs as one identity, verifies all.
#[derive(Clone, Debug)]
pub struct Signer(pub PublicKey);

impl Crypto for Signer {
    fn sign(&self, message: &Hash) -> Signature {
        sign(&self.0, message)
    }

    fn verify(&self, key: &PublicKey, message: &Hash, signature: &Signature) -> bool {
        sign(key, message) == *signature
    }
}

/// The genesis of the test cluster: four replicas of which one may lie, a short window.
#[must_use]
pub fn genesis() -> Arc<Genesis> {
    static GENESIS: LazyLock<Arc<Genesis>> = LazyLock::new(|| Arc::new(make_genesis()));
    GENESIS.clone()
}

/// The cluster's id.
#[must_use]
pub fn cluster() -> ClusterId {
    static CLUSTER: LazyLock<ClusterId> = LazyLock::new(|| genesis().cluster());
    *CLUSTER
}

fn make_genesis() -> Genesis {
    let member = |id| Member {
        id: ReplicaId(id),
        incarnation: Incarnation(0),
        vote_key: vote_key(ReplicaId(id), Incarnation(0)),
        tls_key: key("tls", id.into(), 0),
        peer_address: format!("h{id}:1"),
        client_address: format!("h{id}:2"),
        votes_after: Sequence::ZERO,
    };
    let principal =
        |number, name: &str, role| Principal { name: name.into(), key: key("principal", number, 0), role };
    let genesis = Genesis {
        version: 1,
        name: "decoders".into(),
        created_unix_ms: START_MS,
        policy: Policy::root_only(Trust::Byzantine, Quorum::new(N.into(), None).expect("four are enough")),
        mode: dwcp_base::NetworkMode::Hybrid,
        calm_ms: dwcp_base::configuration::CALM_MS,
        members: (0..N).map(member).collect(),
        principals: vec![
            principal(0, "admin", Role::Admin),
            principal(1, "ann", Role::Writer),
            principal(2, "bob", Role::Reader),
        ],
        checkpoint_interval: 8,
        window: 16,
        quota_bytes: 1 << 20,
    };
    genesis.check().expect("the test genesis keeps its promises");
    genesis
}
