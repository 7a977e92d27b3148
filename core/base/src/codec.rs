//! The canonical codec: borsh, whose encoding of a value is unique (fixed-width little-endian integers, length-prefixed
//! sequences, strictly ascending map keys), plus the two checks borsh leaves to us: nothing may follow the value, and
//! what was read must encode to the very bytes it was read from. Signatures and hashes are over received bytes.

use alloc::vec::Vec;
use borsh::{BorshDeserialize, BorshSerialize};
use core::fmt;

/// Why bytes were refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodecError {
    /// Not a value of the expected type, or bytes followed it.
    Malformed,
    /// Longer than the limit for this kind.
    TooLong { bytes: usize, bytes_max: usize },
    /// Decodes, but to a value with another encoding.
    NotCanonical,
}

impl fmt::Display for CodecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed => write!(f, "malformed bytes"),
            Self::TooLong { bytes, bytes_max } => write!(f, "{bytes} bytes exceed the limit of {bytes_max}"),
            Self::NotCanonical => write!(f, "bytes are not the canonical encoding of their value"),
        }
    }
}

impl core::error::Error for CodecError {}

/// The canonical bytes of a value.
///
/// # Panics
/// Never for our types: writing to memory cannot fail and no map or sequence exceeds u32.
pub fn encode<T: BorshSerialize + ?Sized>(value: &T) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(128);
    value.serialize(&mut bytes).expect("writing to memory cannot fail");
    bytes
}

/// Reads exactly one value from all of `bytes`.
///
/// # Errors
/// See [`CodecError`]. Types whose encoding nests (transactions) check their depth before they recurse.
pub fn decode<T: BorshDeserialize>(bytes: &[u8]) -> Result<T, CodecError> {
    borsh::from_slice(bytes).map_err(|_| CodecError::Malformed)
}

/// As [`decode`], with a size limit, and refusing bytes that are not the value's own encoding.
///
/// # Errors
/// See [`CodecError`].
pub fn decode_canonical<T: BorshDeserialize + BorshSerialize>(
    bytes: &[u8],
    bytes_max: usize,
) -> Result<T, CodecError> {
    if bytes.len() > bytes_max {
        return Err(CodecError::TooLong { bytes: bytes.len(), bytes_max });
    }
    let value: T = decode(bytes)?;
    if encode(&value) == bytes { Ok(value) } else { Err(CodecError::NotCanonical) }
}
