//! What is written to the node's log before the segment speaks, and therefore what a restart remembers.

use crate::election::TERM_MAX;
use crate::message::{Entry, encode_sized, entries_bytes};
use crate::step::INDEX_MAX;
use alloc::vec::Vec;
use borsh::{BorshDeserialize, BorshSerialize};
use bytes::Bytes;
use dwcp_base::{CodecError, Epoch, ReplicaId, decode};
use dwcp_log::place::{Index, Place, Term};

/// The promises of Raft figure 2: no vote in earlier terms, and no second one in this.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
pub struct HardState {
    pub term: Term,
    pub vote: Option<ReplicaId>,
}

/// Where a log begins, and all that earlier records said beside the entries above it: what lies before this record, but
/// for entries above `place`, may be forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
pub struct Border {
    pub place: Place,
    pub hard: HardState,
    pub sealed: Option<Place>,
}

/// One record of a segment. Discriminants are part of the format and are never reused.
#[derive(Clone, Debug, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
#[borsh(use_discriminant = true)]
#[repr(u8)]
pub enum Record {
    Hard(HardState) = 1,
    /// From `first` on the log is this, whatever it was.
    Entries {
        first: Index,
        entries: Vec<Entry>,
    } = 2,
    /// This replica takes no further part in the epoch; its log ends here.
    Sealed(Place) = 3,
    /// Entries up to the place are dropped, for the virtual state holds them.
    Discarded(Border) = 4,
    /// The log begins anew at the place, as if discarded up to there; entries written before this record do not count.
    Installed(Border) = 5,
    /// The log is committed up to here, and this replica has vouched for it: it never parts from that.
    Pinned(Index) = 6,
}

impl Record {
    /// The record's bytes, which name the epoch: a segment's log is never read as another's.
    #[must_use]
    pub fn to_bytes(&self, epoch: Epoch) -> Bytes {
        let entries = if let Self::Entries { entries, .. } = self { entries.as_slice() } else { &[] };
        encode_sized(&(epoch, self), 160 + entries_bytes(entries))
    }

    /// Whether a member can have written it. Beyond these numbers there is no next place, and counting on would wrap.
    pub(crate) fn is_sound(&self) -> bool {
        let place = |place: &Place| place.index.0 <= INDEX_MAX && place.term <= TERM_MAX;
        match self {
            Self::Hard(hard) => hard.term <= TERM_MAX,
            Self::Entries { first, entries } => {
                (1..=INDEX_MAX).contains(&first.0) && entries.iter().all(|entry| entry.term <= TERM_MAX)
            }
            Self::Sealed(last) => place(last),
            Self::Pinned(index) => index.0 <= INDEX_MAX,
            Self::Discarded(border) | Self::Installed(border) => {
                place(&border.place)
                    && border.hard.term <= TERM_MAX
                    && border.sealed.is_none_or(|last| place(&last))
            }
        }
    }

    /// # Errors
    /// Bytes that are no record.
    pub fn from_bytes(bytes: &[u8]) -> Result<(Epoch, Self), CodecError> {
        decode(bytes)
    }
}
