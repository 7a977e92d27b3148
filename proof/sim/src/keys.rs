//! Who can sign what. An identity is a secret; most runs sign with a keyed hash, a thousand times cheaper than a curve,
//! and a few with the real Ed25519.
//!
//! The keyed hash derives every identity's secret from one root secret and the public key. The root never leaves this
//! file: a puppet is handed the signers of its own identities and nothing else, so what it sends in another's name is
//! a forgery that must be refused.

use dwcp_base::crypto::Ed25519;
use dwcp_base::{Crypto, Hash, Hasher, PublicKey, Signature};
use std::fmt;
use std::sync::Arc;

/// A kind of identity, and which one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    Vote { replica: u8, incarnation: u32 },
    Link { replica: u8, incarnation: u32 },
    Principal { number: u64 },
    Session { client: u64, number: u64 },
}

impl Identity {
    fn seed(self, root: &[u8; 32]) -> [u8; 32] {
        let (kind, a, b) = match self {
            Self::Vote { replica, incarnation } => (1u8, u64::from(replica), u64::from(incarnation)),
            Self::Link { replica, incarnation } => (2, u64::from(replica), u64::from(incarnation)),
            Self::Principal { number } => (3, number, 0),
            Self::Session { client, number } => (4, client, number),
        };
        let mut hasher = Hasher::new("sim identity");
        hasher.update(root).update(&[kind]).update(&a.to_le_bytes()).update(&b.to_le_bytes());
        hasher.finish().0
    }
}

/// The keys of one simulated world.
pub struct Keys {
    root: [u8; 32],
    real: bool,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keys({})", if self.real { "ed25519" } else { "keyed hash" })
    }
}

impl Keys {
    #[must_use]
    pub fn new(seed: u64, real: bool) -> Self {
        let mut hasher = Hasher::new("sim root secret");
        hasher.update(&seed.to_le_bytes());
        Self { root: hasher.finish().0, real }
    }

    #[must_use]
    pub fn public(&self, identity: Identity) -> PublicKey {
        let seed = identity.seed(&self.root);
        if self.real { Ed25519::new(seed, &[]).public_key() } else { PublicKey(seed) }
    }

    /// What signs as this identity and verifies anybody's signatures.
    #[must_use]
    pub fn signer(&self, identity: Identity, known: &[PublicKey]) -> Arc<dyn Crypto> {
        let seed = identity.seed(&self.root);
        if self.real {
            Arc::new(Ed25519::new(seed, known))
        } else {
            Arc::new(KeyedHash { root: self.root, own: secret(&self.root, &PublicKey(seed)) })
        }
    }
}

fn secret(root: &[u8; 32], key: &PublicKey) -> [u8; 32] {
    *blake3::keyed_hash(root, &key.0).as_bytes()
}

/// A signature scheme for a closed world: secret = keyed_hash(root, public key), signature = keyed_hash(secret, message).
struct KeyedHash {
    root: [u8; 32],
    own: [u8; 32],
}

impl fmt::Debug for KeyedHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyedHash")
    }
}

fn mark(secret: &[u8; 32], message: &Hash) -> Signature {
    let half = *blake3::keyed_hash(secret, &message.0).as_bytes();
    let mut bytes = [0; 64];
    bytes[..32].copy_from_slice(&half);
    // The second half carries nothing new, but a signature whose any byte was altered must be refused.
    for (to, from) in bytes[32..].iter_mut().zip(half) {
        *to = !from;
    }
    Signature(bytes)
}

impl Crypto for KeyedHash {
    fn sign(&self, message: &Hash) -> Signature {
        mark(&self.own, message)
    }

    fn verify(&self, key: &PublicKey, message: &Hash, signature: &Signature) -> bool {
        mark(&secret(&self.root, key), message) == *signature
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_the_identitys_alone_under_both_schemes() {
        for real in [false, true] {
            let keys = Keys::new(3, real);
            let (me, other) = (
                Identity::Vote { replica: 1, incarnation: 0 },
                Identity::Vote { replica: 1, incarnation: 1 },
            );
            let signer = keys.signer(me, &[]);
            let message = Hash::of(b"m");
            let signature = signer.sign(&message);
            assert!(signer.verify(&keys.public(me), &message, &signature));
            assert!(!signer.verify(&keys.public(other), &message, &signature));
            assert!(!signer.verify(&keys.public(me), &Hash::of(b"n"), &signature));
            for byte in [0, 31, 32, 63] {
                let mut altered = signature;
                altered.0[byte] ^= 1;
                assert!(!signer.verify(&keys.public(me), &message, &altered));
            }
        }
    }
}
