//! Places inside a segment: term, index, and the chain hash that says what lies up to there.

use borsh::{BorshDeserialize, BorshSerialize};
use dwcp_base::Hash;

pub use dwcp_base::{Index, Term};

/// An entry's place and what the log holds up to and with it. Two logs that are equal in all three are equal up to there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
pub struct Place {
    pub index: Index,
    /// Of the entry at `index`; 0 at the base.
    pub term: Term,
    /// The chain of the virtual log at `base.position + index`.
    pub chain: Hash,
}

impl Place {
    /// Raft section 5.4.1: of two logs the one whose last entry has the later term is the more up to date, and with equal
    /// terms the longer one.
    #[must_use]
    pub fn is_as_good_as(&self, other: &Self) -> bool {
        (self.term, self.index) >= (other.term, other.index)
    }
}
