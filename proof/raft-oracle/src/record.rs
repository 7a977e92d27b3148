//! What the adapter writes down, and how a restart reads it. Every record names its epoch and carries a checksum, so that
//! damage is told from content. It knows no Raft.

use borsh::{BorshDeserialize, BorshSerialize};
use bytes::Bytes;
use dwcp_base::{CodecError, Epoch, Hash, decode, encode};
use dwcp_raft::{Index, OpenError, Place};
use std::collections::BTreeMap;

/// Term and vote; vote 0 is nobody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Hard {
    pub term: u64,
    pub vote: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Border {
    pub place: Place,
    pub hard: Hard,
    pub sealed: Option<Place>,
}

#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Record {
    Hard(Hard),
    /// From the first on the log is this. Each is its term and data.
    Entries {
        first: u64,
        entries: Vec<(u64, Vec<u8>)>,
    },
    Sealed(Place),
    Discarded(Border),
    Installed(Border),
}

impl Record {
    pub fn to_bytes(&self, epoch: Epoch) -> Bytes {
        let mut bytes = encode(&(epoch, self));
        let sum = Hash::of(&bytes);
        bytes.extend_from_slice(&sum.0[..8]);
        bytes.into()
    }

    pub fn from_bytes(bytes: &[u8]) -> Result<(Epoch, Self), CodecError> {
        let (body, sum) = bytes.split_at_checked(bytes.len().wrapping_sub(8)).ok_or(CodecError::Malformed)?;
        if Hash::of(body).0[..8] != *sum {
            return Err(CodecError::Malformed);
        }
        decode(body)
    }
}

/// What the records of a former life come to.
#[derive(Clone, Debug)]
pub struct Found {
    pub border: Border,
    /// From the one after the border on, without gaps: term, data, and the record it stands in.
    pub entries: Vec<(u64, Vec<u8>, u64)>,
    /// The record of the newest border; 0 without.
    pub border_record: u64,
}

pub fn replay(epoch: Epoch, base: Place, records: &[Bytes]) -> Result<Found, OpenError> {
    let mut border = Border { place: base, hard: Hard::default(), sealed: None };
    let mut border_record = 0;
    let mut entries: BTreeMap<u64, (u64, Vec<u8>, u64)> = BTreeMap::new();
    for (number, bytes) in (1..).zip(records) {
        let (found, record) =
            Record::from_bytes(bytes).map_err(|error| OpenError::Record { number, error })?;
        if found != epoch {
            return Err(OpenError::Epoch { number, found });
        }
        match record {
            Record::Hard(hard) => border.hard = hard,
            Record::Entries { first, entries: new } => {
                entries.split_off(&first);
                for (at, (term, data)) in (first..).zip(new) {
                    entries.insert(at, (term, data, number));
                }
            }
            Record::Sealed(place) => border.sealed = Some(place),
            Record::Discarded(new) => {
                (border, border_record) = (new, number);
                entries = entries.split_off(&(new.place.index.0 + 1));
            }
            Record::Installed(new) => {
                (border, border_record) = (new, number);
                entries.clear();
            }
        }
    }
    let first = border.place.index.0 + 1;
    if let Some(gap) = (first..).zip(entries.keys()).find(|(wanted, found)| wanted != *found) {
        let number = entries[gap.1].2;
        return Err(OpenError::Gap { number });
    }
    Ok(Found { border, entries: entries.into_values().collect(), border_record })
}

/// The place before the first entry of a new segment.
pub fn base_place(chain: Hash) -> Place {
    Place { index: Index::ZERO, chain, ..Place::default() }
}
