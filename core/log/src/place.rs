//! Places inside a segment: term, index, and the chain hash that says what lies up to there.
//! Epochs and positions are the virtual log's own and come from `dwcp-base`.

use borsh::{BorshDeserialize, BorshSerialize};
use core::fmt;
use dwcp_base::Hash;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, BorshSerialize, BorshDeserialize)]
        pub struct $name(pub u64);

        impl $name {
            pub const ZERO: Self = Self(0);

            /// The one after this one. Panics at the end of the number range, which the border keeps out.
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0.checked_add(1).expect("numbers of places do not run out"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

number!(
    /// The number of a leadership within one epoch. 0 is before the first.
    Term, "T"
);
number!(
    /// A place within a segment. The first entry has index 1; 0 is the segment's base.
    Index, "x"
);

impl Index {
    /// The one before this one; 0 before 1 and before 0.
    #[must_use]
    pub fn before(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

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
