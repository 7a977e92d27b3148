//! Time as a value. The core is told what time it is; it never asks.

use borsh::{BorshDeserialize, BorshSerialize};

/// Microseconds, both for durations and for moments of a node's monotonic clock (its zero is the node's start).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, BorshSerialize, BorshDeserialize,
)]
pub struct Micros(pub u64);

impl Micros {
    pub const ZERO: Self = Self(0);
    pub const NEVER: Self = Self(u64::MAX);

    #[must_use]
    pub const fn from_millis(ms: u64) -> Self {
        Self(ms * 1000)
    }

    /// This moment plus a duration, at most `NEVER`.
    #[must_use]
    pub const fn plus(self, duration: Self) -> Self {
        Self(self.0.saturating_add(duration.0))
    }

    /// How long after `earlier` this moment is; zero when it is not after it.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Self {
        Self(self.0.saturating_sub(earlier.0))
    }

    /// This duration times `factor`, at most `NEVER`.
    #[must_use]
    pub const fn times(self, factor: u64) -> Self {
        Self(self.0.saturating_mul(factor))
    }
}

/// Milliseconds since the Unix epoch as the log carries them. Monotonic along the log, not a claim about real time.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, BorshSerialize, BorshDeserialize,
)]
pub struct LogTime(pub u64);

/// What the driver's clocks say: `mono` never goes back and times waiting; `wall_ms` (Unix) only feeds log time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Now {
    pub mono: Micros,
    pub wall_ms: u64,
}
