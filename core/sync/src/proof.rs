//! What an origin must not sign, and the proof that it did. Two signed headers convince anybody who has the origin's key.

use crate::frame::{Header, SignedHeader};
use alloc::boxed::Box;
use borsh::{BorshDeserialize, BorshSerialize};
use dwcp_base::{ClusterId, Crypto, Hash, PublicKey};
use dwcp_crdt::Origin;

/// Can the two not stand in one chain? An honest origin never makes such a pair: it numbers its dots without overlap,
/// names the frame before, and its clock goes forward.
#[must_use]
pub fn contradict(one: &Header, other: &Header) -> bool {
    let (a, b) = if one.first <= other.first { (one, other) } else { (other, one) };
    if a.origin != b.origin || a == b {
        return false;
    }
    let overlap = b.first <= a.last;
    // A header that nobody has checked yet may have no next counter.
    let breaks_the_chain = a.last.checked_add(1) == Some(b.first) && b.prev != a.hash();
    overlap || breaks_the_chain || b.hlc <= a.hlc
}

/// Two headers by one origin that contradict each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Proof {
    one: SignedHeader,
    other: SignedHeader,
}

impl Proof {
    /// The pair in its one order; nothing when there is no contradiction. Signatures are the caller's business.
    #[must_use]
    pub fn of(one: SignedHeader, other: SignedHeader) -> Option<Self> {
        let place = |signed: &SignedHeader| (signed.header.first, signed.header.last, signed.header.hash());
        let (one, other) = if place(&one) <= place(&other) { (one, other) } else { (other, one) };
        contradict(&one.header, &other.header).then_some(Self { one, other })
    }

    #[must_use]
    pub fn origin(&self) -> Origin {
        self.one.header.origin
    }

    #[must_use]
    pub fn headers(&self) -> [&SignedHeader; 2] {
        [&self.one, &self.other]
    }

    /// Does it convince somebody who knows nothing but the origin's key?
    #[must_use]
    pub fn holds(&self, cluster: ClusterId, key: &PublicKey, crypto: &dyn Crypto) -> bool {
        let signed = self.headers().iter().all(|signed| signed.verify(cluster, key, crypto));
        signed && Self::of(self.one, self.other).as_ref() == Some(self)
    }
}

/// Where an origin's chain ends, by decision of all: its frames count up to this one, and none after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, BorshSerialize, BorshDeserialize)]
pub struct Cut {
    pub origin: Origin,
    /// The last counter that counts; 0 for none.
    pub last: u64,
    /// The hash of the frame that ends there; zero for none.
    pub hash: Hash,
}

/// What replicas are asked about an origin that has to end: where, and the proof if it contradicted itself.
///
/// With the proof everybody knows one of those who lie. A member that is convicted has no voice about ends, and of the others
/// one fewer may lie.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct End {
    pub cut: Cut,
    pub proof: Option<Box<Proof>>,
}

impl End {
    /// Is its origin, which signs with this key, convicted by the proof in it?
    #[must_use]
    pub fn convicts(&self, cluster: ClusterId, key: &PublicKey, crypto: &dyn Crypto) -> bool {
        let proof = self.proof.as_ref().filter(|proof| proof.origin() == self.cut.origin);
        proof.is_some_and(|proof| proof.holds(cluster, key, crypto))
    }
}
