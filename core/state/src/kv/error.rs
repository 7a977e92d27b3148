//! Why the store refused a command: numbered, typed, and with a line for people. A refused command changed nothing that
//! can be read (a put refused for lack of space raises the alarm).

use crate::machine::MachineRefusal;
use alloc::string::ToString;
use borsh::{BorshDeserialize, BorshSerialize};
use bytes::Bytes;
use core::fmt;
use dwcp_base::limits::{TXN_DEPTH_MAX, TXN_OPERATIONS_MAX};
use dwcp_base::{decode, encode};

/// Why the store refused a command. The order is part of the encoding: new reasons go to the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum KvError {
    Malformed,
    TooDeep,
    TooManyOperations,
    EmptyKey,
    KeyNotFound,
    ValueProvided,
    LeaseProvided,
    LeaseNotFound { id: i64 },
    LeaseExists { id: i64 },
    LeaseTtl { ttl_s: u64 },
    LeasesFull,
    DuplicateKey,
    Compacted { compacted: u64 },
    FutureRevision { revision: u64 },
    NoSpace { bytes: u64, quota_bytes: u64 },
    ReplyTooLarge { bytes_max: u64 },
    AdminOnly,
}

impl KvError {
    /// Its number in [`MachineRefusal::code`].
    #[must_use]
    pub fn code(&self) -> u16 {
        match self {
            Self::Malformed => 1,
            Self::TooDeep => 2,
            Self::TooManyOperations => 3,
            Self::EmptyKey => 4,
            Self::KeyNotFound => 5,
            Self::ValueProvided => 6,
            Self::LeaseProvided => 7,
            Self::LeaseNotFound { .. } => 8,
            Self::LeaseExists { .. } => 9,
            Self::LeaseTtl { .. } => 10,
            Self::LeasesFull => 11,
            Self::DuplicateKey => 12,
            Self::Compacted { .. } => 13,
            Self::FutureRevision { .. } => 14,
            Self::NoSpace { .. } => 15,
            Self::ReplyTooLarge { .. } => 16,
            Self::AdminOnly => 17,
        }
    }

    /// Reads it back out of a refusal; `None` when the refusal is not the store's.
    #[must_use]
    pub fn of(refusal: &MachineRefusal) -> Option<Self> {
        decode(&refusal.detail).ok().filter(|error: &Self| error.code() == refusal.code)
    }
}

impl From<KvError> for MachineRefusal {
    fn from(error: KvError) -> Self {
        Self { code: error.code(), message: error.to_string(), detail: Bytes::from(encode(&error)) }
    }
}

impl fmt::Display for KvError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed => write!(f, "not a key-value command"),
            Self::TooDeep => write!(f, "the transaction nests deeper than {TXN_DEPTH_MAX}: flatten it"),
            Self::TooManyOperations => {
                write!(
                    f,
                    "the transaction has more than {TXN_OPERATIONS_MAX} operations or comparisons: split it"
                )
            }
            Self::EmptyKey => write!(f, "the key is empty: give one"),
            Self::KeyNotFound => write!(f, "key not found: put it with a value and lease first"),
            Self::ValueProvided => write!(f, "a value is given although it is to be ignored: leave it out"),
            Self::LeaseProvided => write!(f, "a lease is given although it is to be ignored: leave it out"),
            Self::LeaseNotFound { id } => {
                write!(f, "lease {id} not found: it expired or was revoked; grant a new one")
            }
            Self::LeaseExists { id } => write!(f, "lease {id} exists already: use another id or 0"),
            Self::LeaseTtl { ttl_s } => {
                write!(f, "a lease of {ttl_s} s is not possible: use 1 to {} s", crate::kv::LEASE_TTL_MAX_S)
            }
            Self::LeasesFull => write!(f, "{} leases are held: revoke one first", crate::kv::LEASES_MAX),
            Self::DuplicateKey => {
                write!(f, "a transaction changes one key twice: put or delete each key once")
            }
            Self::Compacted { compacted } => {
                write!(f, "the revision has been compacted: ask for revision {compacted} or later")
            }
            Self::FutureRevision { revision } => {
                write!(f, "the revision is in the future: the store is at revision {revision}")
            }
            Self::NoSpace { bytes, quota_bytes } => write!(
                f,
                "no space: {bytes} bytes are held and the quota is {quota_bytes}; delete, compact, then disarm the alarm"
            ),
            Self::ReplyTooLarge { bytes_max } => {
                write!(f, "the reply would exceed {bytes_max} bytes: set a limit and page")
            }
            Self::AdminOnly => write!(f, "only an admin may do this"),
        }
    }
}

impl core::error::Error for KvError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_reads_back_out_of_its_refusal() {
        for error in
            [KvError::Malformed, KvError::Compacted { compacted: 7 }, KvError::LeaseNotFound { id: -1 }]
        {
            let refusal = MachineRefusal::from(error);
            assert_eq!(KvError::of(&refusal), Some(error));
            assert_eq!(KvError::of(&MachineRefusal { code: refusal.code + 1, ..refusal }), None);
        }
        assert_eq!(KvError::of(&MachineRefusal::new(1, "another machine's")), None);
    }
}
