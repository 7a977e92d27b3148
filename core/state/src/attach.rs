//! How whoever holds a session's key asks one replica to hear the session's results, on one stream only.
//!
//! The replica draws a challenge for every stream. The signature covers cluster, replica and challenge, so what was signed
//! for one stream proves nothing on another, and a lying replica gains nothing by passing another's challenge on. Nothing
//! of this is replicated; whether the session exists is not asked.

use crate::frame::SessionId;
use dwcp_base::{
    ClusterId, Crypto, Hash, PublicKey, ReplicaId, Signature, SigningKind, encode, signing_hash,
};

/// Bytes of the challenge a replica draws for each stream.
pub const CHALLENGE_BYTES: usize = 32;

/// Proof, towards one replica and on one stream, that a session's key is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionAttach {
    pub session_key: PublicKey,
    pub signature: Signature,
}

impl SessionAttach {
    /// Answers the challenge with the session's key.
    #[must_use]
    pub fn new(
        session_crypto: &dyn Crypto,
        session_key: PublicKey,
        cluster: ClusterId,
        replica: ReplicaId,
        challenge: &[u8; CHALLENGE_BYTES],
    ) -> Self {
        let signature = session_crypto.sign(&answer(cluster, replica, challenge, &session_key));
        Self { session_key, signature }
    }

    /// The session whose results are asked for.
    #[must_use]
    pub fn session(&self) -> SessionId {
        SessionId::of(&self.session_key)
    }

    /// Whether it answers the challenge that this replica drew.
    #[must_use]
    pub fn verify(
        &self,
        crypto: &dyn Crypto,
        cluster: ClusterId,
        replica: ReplicaId,
        challenge: &[u8; CHALLENGE_BYTES],
    ) -> bool {
        let message = answer(cluster, replica, challenge, &self.session_key);
        crypto.verify(&self.session_key, &message, &self.signature)
    }
}

fn answer(
    cluster: ClusterId,
    replica: ReplicaId,
    challenge: &[u8; CHALLENGE_BYTES],
    session_key: &PublicKey,
) -> Hash {
    signing_hash(SigningKind::SessionAttach, cluster, &encode(&(replica, *challenge, *session_key)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use dwcp_base::crypto::Ed25519;

    #[test]
    fn a_proof_holds_for_its_key_cluster_replica_and_challenge_alone() {
        let (key, other) = (Ed25519::new([1; 32], &[]), Ed25519::new([2; 32], &[]));
        let (cluster, replica, challenge) = (ClusterId([3; 32]), ReplicaId(1), [4; 32]);
        let proof = SessionAttach::new(&key, key.public_key(), cluster, replica, &challenge);
        assert!(proof.verify(&other, cluster, replica, &challenge));
        assert_eq!(proof.session(), SessionId::of(&key.public_key()));
        assert!(!proof.verify(&other, ClusterId([5; 32]), replica, &challenge));
        assert!(!proof.verify(&other, cluster, ReplicaId(2), &challenge));
        assert!(!proof.verify(&other, cluster, replica, &[5; 32]));
        let claimed = SessionAttach { session_key: other.public_key(), ..proof };
        assert!(!claimed.verify(&other, cluster, replica, &challenge), "another's session");
        let frame = signing_hash(
            SigningKind::SessionFrame,
            cluster,
            &encode(&(replica, challenge, key.public_key())),
        );
        let signature = key.sign(&frame);
        assert!(
            !SessionAttach { signature, ..proof }.verify(&other, cluster, replica, &challenge),
            "another kind"
        );
    }
}
