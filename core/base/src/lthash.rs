//! A set digest that can be updated: LtHash16 with 1,024 lanes (Bellare & Micciancio 1997; Lewi et al., "Securing
//! Update Propagation with Homomorphic Hashing", 2019). Adding or removing an element costs the same whatever the size
//! of the set, and the digest does not depend on the order of updates.

use crate::crypto::{Hash, Hasher};
use alloc::boxed::Box;
use core::fmt;

const LANES: usize = 1024;

/// The digest of a set of byte strings. The empty set is all zeros.
#[derive(Clone, PartialEq, Eq)]
pub struct LtHash {
    lanes: Box<[u16; LANES]>,
}

impl fmt::Debug for LtHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LtHash({:?})", self.digest())
    }
}

impl Default for LtHash {
    fn default() -> Self {
        Self { lanes: Box::new([0; LANES]) }
    }
}

fn expand(element: &Hasher) -> [u8; LANES * 2] {
    let mut bytes = [0u8; LANES * 2];
    element.fill(&mut bytes);
    bytes
}

impl LtHash {
    /// Adds an element, given as a hasher that has absorbed it.
    pub fn add(&mut self, element: &Hasher) {
        let bytes = expand(element);
        for (lane, pair) in self.lanes.iter_mut().zip(bytes.chunks_exact(2)) {
            *lane = lane.wrapping_add(u16::from_le_bytes([pair[0], pair[1]]));
        }
    }

    /// Removes an element that was added before.
    pub fn remove(&mut self, element: &Hasher) {
        let bytes = expand(element);
        for (lane, pair) in self.lanes.iter_mut().zip(bytes.chunks_exact(2)) {
            *lane = lane.wrapping_sub(u16::from_le_bytes([pair[0], pair[1]]));
        }
    }

    /// 32 bytes that stand for the set.
    #[must_use]
    pub fn digest(&self) -> Hash {
        let mut hasher = Hasher::new("dwcp v3 set digest");
        let mut bytes = [0u8; LANES * 2];
        for (pair, lane) in bytes.chunks_exact_mut(2).zip(self.lanes.iter()) {
            pair.copy_from_slice(&lane.to_le_bytes());
        }
        hasher.update(&bytes);
        hasher.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn element(bytes: &[u8]) -> Hasher {
        let mut hasher = Hasher::new("test");
        hasher.update(bytes);
        hasher
    }

    #[test]
    fn order_does_not_matter_and_removal_undoes_addition() {
        let (mut a, mut b) = (LtHash::default(), LtHash::default());
        for x in [b"x", b"y", b"z"] {
            a.add(&element(x));
        }
        for x in [b"z", b"x", b"w", b"y"] {
            b.add(&element(x));
        }
        assert_ne!(a.digest(), b.digest());
        b.remove(&element(b"w"));
        assert_eq!(a, b);
        assert_ne!(a.digest(), LtHash::default().digest());
    }
}
