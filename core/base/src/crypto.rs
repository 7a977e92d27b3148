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
    Sealed = 14,
    Suspect = 15,
    AnchorVote = 16,
    ModeOrder = 17,
    SyncFrame = 18,
    ExcludeOrder = 19,
    Consent = 20,
    AddressRecord = 21,
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

/// Fewer signatures than this cost less one by one.
const BATCH_MIN: usize = 3;

/// Ed25519 with this node's key.
pub struct Ed25519 {
    signing: ed25519_zebra::SigningKey,
    known: Vec<(PublicKey, ed25519_zebra::VerificationKey)>,
    /// Makes the coefficients of a batch unpredictable to whoever made its signatures.
    batch_secret: Hash,
}

/// The coefficients of one batch: a secret and all its items, hashed. A source of chance that needs none from outside.
struct Coefficients(blake3::OutputReader);

impl rand_core::TryRng for Coefficients {
    type Error = core::convert::Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
        let mut bytes = [0; 4];
        self.0.fill(&mut bytes);
        Ok(u32::from_le_bytes(bytes))
    }

    fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        Ok(u64::from_le_bytes(bytes))
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Self::Error> {
        self.0.fill(bytes);
        Ok(())
    }
}

impl rand_core::TryCryptoRng for Coefficients {}

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
        let mut secret = Hasher::new("dwcp v3 batch secret");
        secret.update(&seed);
        Self { signing: ed25519_zebra::SigningKey::from(seed), known: parsed, batch_secret: secret.finish() }
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

    /// One equation for all of them, at a half to a third of the cost. ZIP 215 makes it agree with `verify`, but for a
    /// chance of one in 2^128.
    fn verify_all(&self, items: &[(PublicKey, Hash, Signature)]) -> bool {
        if items.len() < BATCH_MIN {
            return items.iter().all(|(key, message, signature)| self.verify(key, message, signature));
        }
        let mut batch = ed25519_zebra::batch::Verifier::new();
        let mut coefficients = blake3::Hasher::new_keyed(&self.batch_secret.0);
        for (key, message, signature) in items {
            coefficients.update(&key.0).update(&message.0).update(&signature.0);
            let key = ed25519_zebra::VerificationKeyBytes::from(key.0);
            batch.queue((key, ed25519_zebra::Signature::from(signature.0), &message.0));
        }
        batch.verify(Coefficients(coefficients.finalize_xof())).is_ok()
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

    /// What this file declares, and what the page's table has, in order.
    #[test]
    fn the_page_lists_every_kind_of_signature() {
        let declared = include_str!("crypto.rs").split("pub enum SigningKind {").nth(1).expect("it is above");
        let declared: Vec<(&str, &str)> = declared
            .lines()
            .take_while(|line| *line != "}")
            .filter_map(|line| line.trim().strip_suffix(',')?.split_once(" = "))
            .collect();
        assert!(declared.contains(&("PrePrepare", "1")), "{declared:?}");
        let page = include_str!("../../../docs/protocol/pbft.md");
        let listed: Vec<(&str, &str)> = page
            .lines()
            .skip_while(|line| !line.starts_with("| kind | name in `SigningKind` |"))
            .skip(2)
            .take_while(|line| line.starts_with('|'))
            .filter_map(|line| {
                let mut cells = line.split('|').map(str::trim).skip(1);
                let number = cells.next()?;
                Some((cells.next()?, number))
            })
            .collect();
        assert_eq!(listed, declared, "docs/protocol/pbft.md lists other kinds of signatures");
    }

    fn items(count: u8) -> Vec<(PublicKey, Hash, Signature)> {
        (0..count)
            .map(|index| {
                let signer = Ed25519::new([index % 5 + 1; 32], &[]);
                let message = Hash::of(&[index]);
                (signer.public_key(), message, signer.sign(&message))
            })
            .collect()
    }

    #[test]
    fn many_verify_together_exactly_when_each_verifies() {
        let judge = Ed25519::new([9; 32], &[]);
        for count in 0..20 {
            let good = items(count);
            assert!(judge.verify_all(&good), "{count} good ones");
            for bad in 0..good.len() {
                let mut spoiled = good.clone();
                spoiled[bad].1 = Hash::of(b"another message");
                assert!(!judge.verify_all(&spoiled), "{bad} of {count} is for another message");
                let mut spoiled = good.clone();
                spoiled[bad].2.0[bad % 64] ^= 1;
                assert!(!judge.verify_all(&spoiled), "{bad} of {count} has a bad signature");
                let mut spoiled = good.clone();
                spoiled[bad].0 = Ed25519::new([77; 32], &[]).public_key();
                assert!(!judge.verify_all(&spoiled), "{bad} of {count} is by another key");
            }
        }
    }

    #[test]
    fn two_wrongs_do_not_cancel_out() {
        let judge = Ed25519::new([9; 32], &[]);
        let mut swapped = items(6);
        let first = swapped[0].2;
        swapped[0].2 = swapped[5].2;
        swapped[5].2 = first;
        assert_eq!(swapped[0].0, swapped[5].0, "the two are by one key");
        assert!(!judge.verify_all(&swapped));
    }

    /// Points of small order and mixed ones are where rules for single and batched verification used to part.
    #[test]
    fn signatures_of_small_order_are_judged_alike_alone_and_together() {
        let judge = Ed25519::new([9; 32], &[]);
        // The identity and the point of order two, each with encodings that only ZIP 215 takes; s = 0.
        let mut identity = [0; 32];
        identity[0] = 1;
        let mut unreduced = [0xff; 32];
        (unreduced[0], unreduced[31]) = (0xee, 0x7f);
        let mut order_two = [0xff; 32];
        (order_two[0], order_two[31]) = (0xec, 0x7f);
        let points = [identity, unreduced, order_two];
        for key in points {
            for r in points {
                let mut signature = [0; 64];
                signature[..32].copy_from_slice(&r);
                let odd = (PublicKey(key), Hash::of(b"any"), Signature(signature));
                let alone = judge.verify(&odd.0, &odd.1, &odd.2);
                let mut crowd = items(4);
                crowd.push(odd);
                assert_eq!(judge.verify_all(&crowd), alone, "{key:?} {r:?}");
            }
        }
    }
}
