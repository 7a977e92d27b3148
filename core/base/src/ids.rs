//! Identities and places. Each is its own type, so that a view can never be passed where a sequence is meant.
//! Nothing here knows what the numbers are used for.

use borsh::{BorshDeserialize, BorshSerialize};
use core::fmt;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident, $inner:ty, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, BorshSerialize, BorshDeserialize)]
        pub struct $name(pub $inner);

        impl $name {
            pub const ZERO: Self = Self(0);

            /// The one after this one. Panics at the end of the number range, which no cluster reaches.
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
    /// A replica's number within the cluster, `0..n`.
    ReplicaId, u8, "r"
);
number!(
    /// How often this replica's disk was replaced. A lost disk is a lost promise, so it returns as the next one.
    Incarnation, u32, "i"
);
number!(
    /// Which configuration (members and policy) a vote or certificate was made under.
    ConfigurationId, u32, "c"
);
number!(
    /// The number of a delegated stretch of the virtual log. Never reused.
    Epoch, u64, "e"
);
number!(
    /// PBFT's view: its primary is `view mod n`.
    View, u64, "v"
);
number!(
    /// A slot of the root log. The first proposal has sequence 1; 0 is the genesis state.
    Sequence, u64, "s"
);
number!(
    /// A place in the virtual log.
    Position, u64, "g"
);
number!(
    /// Raft's term: the number of a leadership within one epoch. 0 is before the first.
    Term, u64, "T"
);
number!(
    /// A place within a segment. The first entry has index 1; 0 is the segment's base.
    Index, u64, "x"
);
number!(
    /// A durability ticket: everything persisted up to and including it must be on disk before what waits for it leaves.
    /// Ticket 0 waits for nothing.
    Ticket, u64, "t"
);

impl View {
    /// The primary of this view among `n` replicas.
    #[must_use]
    pub fn primary(self, n: u8) -> ReplicaId {
        ReplicaId(u8::try_from(self.0 % u64::from(n)).expect("n fits a byte"))
    }
}

impl Index {
    /// The one before this one; 0 before 1 and before 0.
    #[must_use]
    pub fn before(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

impl Sequence {
    /// The one before this one; 0 before 1 and before 0.
    #[must_use]
    pub fn before(self) -> Self {
        Self(self.0.saturating_sub(1))
    }

    /// This sequence plus `count`.
    #[must_use]
    pub fn plus(self, count: u64) -> Self {
        Self(self.0.checked_add(count).expect("numbers of places do not run out"))
    }
}

/// The hash of the genesis: two clusters with equal settings but different keys differ here.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, BorshSerialize, BorshDeserialize)]
pub struct ClusterId(pub [u8; 32]);

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cluster:")?;
        for byte in &self.0[..4] {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}
