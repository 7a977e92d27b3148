//! Hashes, keys, signatures, and the domains that keep one kind of signature from being taken for another.
//!
//! The core signs through [`Crypto`], an argument: the server gives it Ed25519, the simulator a keyed hash that is a
//! thousand times cheaper. Ed25519 follows ZIP 215 (`ed25519-zebra`), under which single and batched verification
//! agree; replicas that disagreed about a certificate would split.

use crate::ids::ClusterId;
use alloc::vec::Vec;
use borsh::{BorshDeserialize, BorshSerialize};
use core::fmt;

/// A BLAKE3 hash.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, BorshSerialize, BorshDeserialize)]
pub struct Hash(pub [u8; 32]);

/// An Ed25519 public key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, BorshSerialize, BorshDeserialize)]
pub struct PublicKey(pub [u8; 32]);

/// An Ed25519 signature.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, BorshSerialize, BorshDeserialize)]
pub struct Signature(pub [u8; 64]);

macro_rules! short_hex {
    ($($name:ident),*) => {$(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                for byte in &self.0[..4] {
                    write!(f, "{byte:02x}")?;
                }
                Ok(())
            }
        }
    )*};
}
short_hex!(Hash, PublicKey, Signature);

impl Hash {
    pub const ZERO: Self = Self([0; 32]);

    /// The plain BLAKE3 hash of bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }
}

/// Incremental hashing under a named purpose, so that equal bytes hashed for two purposes differ.
#[derive(Clone, Debug)]
pub struct Hasher(blake3::Hasher);

impl Hasher {
    #[must_use]
    pub fn new(purpose: &str) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&(purpose.len() as u64).to_le_bytes());
        hasher.update(purpose.as_bytes());
        Self(hasher)
    }

    pub fn update(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.update(bytes);
        self
    }

    /// Length first, so that neighbouring fields cannot be shifted into one another.
    pub fn field(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.update(&(bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
        self
    }

    #[must_use]
    pub fn finish(&self) -> Hash {
        Hash(*self.0.finalize().as_bytes())
    }

    /// `output.len()` bytes of extendable output.
    pub fn fill(&self, output: &mut [u8]) {
        self.0.finalize_xof().fill(output);
    }
}

/// What a signature is for. The number is part of the signed bytes and is never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum SigningKind {
    PrePrepare = 1,
    Prepare = 2,
    Commit = 3,
    Checkpoint = 4,
    ViewChange = 5,
    NewView = 6,
    SessionFrame = 7,
    SessionOpen = 8,
    Reply = 9,
    MemberOrder = 10,
    PolicyOrder = 11,
    Status = 12,
    SessionAttach = 13,
}

/// The 32 bytes that are signed: cluster, kind, body. The body carries view, sequence, configuration and incarnation.
#[must_use]
pub fn signing_hash(kind: SigningKind, cluster: ClusterId, body: &[u8]) -> Hash {
    let mut hasher = Hasher::new("dwcp v3 signature");
    hasher.update(&[kind as u8]).update(&cluster.0).field(body);
    hasher.finish()
}

/// Signing with this node's key, and verifying with anybody's.
pub trait Crypto: fmt::Debug + Send + Sync {
    /// Signs with this node's own key.
    fn sign(&self, message: &Hash) -> Signature;

    fn verify(&self, key: &PublicKey, message: &Hash, signature: &Signature) -> bool;

    /// True when every one verifies. Must agree with `verify` on each; implementations may be faster, never laxer.
    fn verify_all(&self, items: &[(PublicKey, Hash, Signature)]) -> bool {
        items.iter().all(|(key, message, signature)| self.verify(key, message, signature))
    }
}

/// Ed25519 with this node's key.
pub struct Ed25519 {
    signing: ed25519_zebra::SigningKey,
    known: Vec<(PublicKey, ed25519_zebra::VerificationKey)>,
}

impl fmt::Debug for Ed25519 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ed25519({:?})", self.public_key())
    }
}

impl Ed25519 {
    /// `seed` is the 32-byte secret key. `known` keys are decompressed once (the members').
    #[must_use]
    pub fn new(seed: [u8; 32], known: &[PublicKey]) -> Self {
        let mut parsed: Vec<_> = known
            .iter()
            .filter_map(|key| Some((*key, ed25519_zebra::VerificationKey::try_from(key.0).ok()?)))
            .collect();
        parsed.sort_by_key(|(key, _)| *key);
        Self { signing: ed25519_zebra::SigningKey::from(seed), known: parsed }
    }

    #[must_use]
    pub fn public_key(&self) -> PublicKey {
        let key: [u8; 32] = ed25519_zebra::VerificationKey::from(&self.signing).into();
        PublicKey(key)
    }
}

impl Crypto for Ed25519 {
    fn sign(&self, message: &Hash) -> Signature {
        Signature(self.signing.sign(&message.0).into())
    }

    fn verify(&self, key: &PublicKey, message: &Hash, signature: &Signature) -> bool {
        let signature = ed25519_zebra::Signature::from(signature.0);
        if let Ok(index) = self.known.binary_search_by_key(key, |(known, _)| *known) {
            return self.known[index].1.verify(&signature, &message.0).is_ok();
        }
        ed25519_zebra::VerificationKey::try_from(key.0)
            .is_ok_and(|key| key.verify(&signature, &message.0).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_holds_for_its_kind_cluster_and_body_only() {
        let signer = Ed25519::new([7; 32], &[]);
        let key = signer.public_key();
        let message = signing_hash(SigningKind::Prepare, ClusterId([1; 32]), b"body");
        let signature = signer.sign(&message);
        assert!(signer.verify(&key, &message, &signature));
        for other in [
            signing_hash(SigningKind::Commit, ClusterId([1; 32]), b"body"),
            signing_hash(SigningKind::Prepare, ClusterId([2; 32]), b"body"),
            signing_hash(SigningKind::Prepare, ClusterId([1; 32]), b"bode"),
        ] {
            assert!(!signer.verify(&key, &other, &signature));
        }
        let known = Ed25519::new([8; 32], &[key]);
        assert!(known.verify(&key, &message, &signature));
    }
}
