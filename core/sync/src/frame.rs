//! The frame: one bundle under one signature, linked by hash to its origin's frame before. The unit on every road.
//!
//! What is signed is the hash of a small header that names the bundle by its hash, so a header alone, without its
//! bundle, still proves what its origin said: a contradiction weighs 320 bytes. A frame is read in two steps. [`Received`]
//! has a sound header, which is all it takes to drop what is known and to check signatures, many as one; a [`Frame`] has
//! its bundle read and compared with the header.

use crate::limits::FRAME_BYTES_MAX;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use borsh::{BorshDeserialize, BorshSerialize};
use bytes::Bytes;
use core::fmt;
use dwcp_base::{
    ClusterId, Crypto, Hash, Hasher, PublicKey, Signature, SigningKind, decode, encode, signing_hash,
};
use dwcp_crdt::limits::COUNTER_MAX;
use dwcp_crdt::{Bundle, BundleError, Hlc, Origin};

/// The format of frames. Part of what is hashed.
const VERSION: u8 = 1;

/// What a frame says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
pub struct Header {
    pub origin: Origin,
    /// First and last counter of the bundle's dots. The chain has no holes: the next frame's first is this last plus one.
    pub first: u64,
    pub last: u64,
    /// The hash of the origin's frame that ends at `first - 1`; zero in its first frame.
    pub prev: Hash,
    /// Grows along the chain.
    pub hlc: Hlc,
    /// The hash of the bundle's bytes.
    pub body: Hash,
}

impl Header {
    /// The hash that the next frame names, and that is signed.
    #[must_use]
    pub fn hash(&self) -> Hash {
        let mut hasher = Hasher::new("dwcp v3 sync frame");
        hasher.update(&[VERSION]).update(&encode(self));
        hasher.finish()
    }

    /// Could an honest origin have said this, whatever the reader knows?
    fn is_sound(&self) -> bool {
        self.first >= 1
            && self.first <= self.last
            && self.last <= COUNTER_MAX
            && (self.first == 1) == (self.prev == Hash::ZERO)
    }
}

/// A header with its origin's signature: enough to prove what the origin said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct SignedHeader {
    pub header: Header,
    pub signature: Signature,
}

impl SignedHeader {
    #[must_use]
    pub fn verify(&self, cluster: ClusterId, key: &PublicKey, crypto: &dyn Crypto) -> bool {
        let message = signing_hash(SigningKind::SyncFrame, cluster, &self.header.hash().0);
        self.header.is_sound() && crypto.verify(key, &message, &self.signature)
    }
}

/// Why bytes are no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    TooLong {
        bytes: usize,
    },
    Malformed,
    /// Another format than this reader knows.
    Version {
        version: u8,
    },
    /// Counters or previous hash that no chain has.
    Header,
    Bundle(BundleError),
    /// The bundle is not what the header says.
    Mismatch,
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong { bytes } => write!(f, "frame of {bytes} bytes exceeds {FRAME_BYTES_MAX}"),
            Self::Malformed => write!(f, "malformed frame"),
            Self::Version { version } => {
                write!(f, "frame of format {version}; this node reads format {VERSION}: upgrade it")
            }
            Self::Header => write!(f, "a frame's counters or previous hash cannot be"),
            Self::Bundle(error) => error.fmt(f),
            Self::Mismatch => write!(f, "a frame's bundle is not what its header says"),
        }
    }
}

impl core::error::Error for FrameError {}

/// Everything before the bundle. Every field has a fixed width, so a frame has one encoding.
#[derive(Clone, Copy, BorshSerialize, BorshDeserialize)]
struct Front {
    version: u8,
    origin: Origin,
    first: u64,
    last: u64,
    prev: Hash,
    hlc: Hlc,
    signature: Signature,
}

const FRONT_BYTES: usize = 1 + 8 + 8 + 8 + 32 + 8 + 64;

fn body_hash(bundle: &[u8]) -> Hash {
    let mut hasher = Hasher::new("dwcp v3 sync bundle");
    hasher.update(bundle);
    hasher.finish()
}

/// A frame whose header is sound. Nothing is known of its signature and its bundle yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    signed: SignedHeader,
    hash: Hash,
    bytes: Bytes,
}

impl Received {
    /// # Errors
    /// Bytes that begin with no header, or are too many.
    pub fn read(bytes: Bytes) -> Result<Self, FrameError> {
        if bytes.len() > FRAME_BYTES_MAX {
            return Err(FrameError::TooLong { bytes: bytes.len() });
        }
        let (front, bundle) = bytes.split_at_checked(FRONT_BYTES).ok_or(FrameError::Malformed)?;
        let front: Front = decode(front).map_err(|_| FrameError::Malformed)?;
        let Front { version, origin, first, last, prev, hlc, signature } = front;
        if version != VERSION {
            return Err(FrameError::Version { version });
        }
        let header = Header { origin, first, last, prev, hlc, body: body_hash(bundle) };
        if !header.is_sound() {
            return Err(FrameError::Header);
        }
        Ok(Self { signed: SignedHeader { header, signature }, hash: header.hash(), bytes })
    }

    #[must_use]
    pub fn header(&self) -> &Header {
        &self.signed.header
    }

    #[must_use]
    pub fn signed(&self) -> &SignedHeader {
        &self.signed
    }

    #[must_use]
    pub fn hash(&self) -> Hash {
        self.hash
    }

    /// Reads the bundle. The signature is the caller's business.
    ///
    /// # Errors
    /// A bundle that is none, or not the header's.
    pub fn open(self) -> Result<Frame, FrameError> {
        let Self { signed, hash, bytes } = self;
        let bundle = Bundle::decode(bytes.slice(FRONT_BYTES..)).map_err(FrameError::Bundle)?;
        let Header { origin, first, last, hlc, .. } = signed.header;
        let said = (bundle.origin(), bundle.first(), bundle.last(), bundle.hlc());
        if said == (origin, first, last, hlc) {
            Ok(Frame { signed, hash, bytes, bundle })
        } else {
            Err(FrameError::Mismatch)
        }
    }
}

/// Which of these carry a good signature of a known origin. All are checked as one; only when one of them is bad, each
/// by itself.
#[must_use]
pub fn verify(
    frames: &[Received],
    keys: &BTreeMap<Origin, PublicKey>,
    cluster: ClusterId,
    crypto: &dyn Crypto,
) -> Vec<bool> {
    let item = |frame: &Received| {
        let key = keys.get(&frame.header().origin)?;
        Some((*key, signing_hash(SigningKind::SyncFrame, cluster, &frame.hash.0), frame.signed.signature))
    };
    let items: Vec<Option<(PublicKey, Hash, Signature)>> = frames.iter().map(item).collect();
    let known: Vec<_> = items.iter().flatten().copied().collect();
    if crypto.verify_all(&known) {
        return items.iter().map(Option::is_some).collect();
    }
    let good =
        |(key, message, signature): &(PublicKey, Hash, Signature)| crypto.verify(key, message, signature);
    items.iter().map(|item| item.as_ref().is_some_and(good)).collect()
}

/// A frame whose bundle is what its header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    signed: SignedHeader,
    hash: Hash,
    bytes: Bytes,
    bundle: Bundle,
}

impl Frame {
    /// Signs a bundle with the own key, as what follows the frame with the hash `prev`.
    ///
    /// # Panics
    /// Never: the longest bundle, its header and signature are less than a frame may be.
    #[must_use]
    pub fn seal(bundle: &Bundle, prev: Hash, cluster: ClusterId, crypto: &dyn Crypto) -> Self {
        let body = bundle.encode();
        let (origin, first, last, hlc) = (bundle.origin(), bundle.first(), bundle.last(), bundle.hlc());
        let header = Header { origin, first, last, prev, hlc, body: body_hash(&body) };
        let hash = header.hash();
        let signature = crypto.sign(&signing_hash(SigningKind::SyncFrame, cluster, &hash.0));
        let mut bytes = encode(&Front { version: VERSION, origin, first, last, prev, hlc, signature });
        bytes.extend_from_slice(&body);
        assert!(bytes.len() <= FRAME_BYTES_MAX, "a bundle leaves room for header and signature");
        let signed = SignedHeader { header, signature };
        Self { signed, hash, bytes: Bytes::from(bytes), bundle: bundle.clone() }
    }

    #[must_use]
    pub fn header(&self) -> &Header {
        &self.signed.header
    }

    #[must_use]
    pub fn signed(&self) -> &SignedHeader {
        &self.signed
    }

    #[must_use]
    pub fn hash(&self) -> Hash {
        self.hash
    }

    /// The bytes that travel.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    #[must_use]
    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    /// Header and hash, bytes, bundle.
    pub(crate) fn into_parts(self) -> (SignedHeader, Hash, Bytes, Bundle) {
        (self.signed, self.hash, self.bytes, self.bundle)
    }
}
