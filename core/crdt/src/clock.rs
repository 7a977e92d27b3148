//! A hybrid logical clock: timestamps that follow cause and effect and stay near real time (Kulkarni, Demirbas,
//! Madappa, Avva & Leone, "Logical Physical Clocks", OPODIS 2014). The clock is told what time it is; it never asks.
//!
//! One number: 48 bits of milliseconds, 16 bits of count. A remote time more than 500 ms ahead of ours is refused, so
//! a fast or lying clock can neither drag the cluster into the future nor win every tie for long.

use crate::limits::DRIFT_MAX_MS;
use borsh::{BorshDeserialize, BorshSerialize};
use core::fmt;

const COUNT_BITS: u32 = 16;

/// A moment of the hybrid clock.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, BorshSerialize, BorshDeserialize)]
pub struct Hlc(pub u64);

impl Hlc {
    #[must_use]
    pub const fn new(ms: u64, count: u16) -> Self {
        let ms_max = u64::MAX >> COUNT_BITS;
        let ms = if ms > ms_max { ms_max } else { ms };
        Self((ms << COUNT_BITS) | count as u64)
    }

    /// Milliseconds since the Unix epoch.
    #[must_use]
    pub const fn ms(self) -> u64 {
        self.0 >> COUNT_BITS
    }

    /// Orders moments of one millisecond.
    #[must_use]
    pub const fn count(self) -> u16 {
        (self.0 & ((1 << COUNT_BITS) - 1)) as u16
    }
}

impl fmt::Debug for Hlc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.ms(), self.count())
    }
}

/// A timestamp from the future.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockAhead {
    pub ahead_ms: u64,
}

impl fmt::Display for ClockAhead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ahead_ms } = self;
        write!(
            f,
            "timestamp is {ahead_ms} ms ahead of this node's clock, more than the {DRIFT_MAX_MS} ms allowed: synchronise the clocks (NTP)"
        )
    }
}

impl core::error::Error for ClockAhead {}

/// The highest moment seen or made. Must survive a restart, or be rebuilt from what was applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, BorshSerialize, BorshDeserialize)]
pub struct Clock {
    latest: Hlc,
}

impl Clock {
    #[must_use]
    pub const fn latest(&self) -> Hlc {
        self.latest
    }

    /// A moment after everything seen and made so far. A count beyond 16 bits carries into the milliseconds.
    pub fn tick(&mut self, now_ms: u64) -> Hlc {
        let next = Hlc(self.latest.0.saturating_add(1));
        self.latest = next.max(Hlc::new(now_ms, 0));
        self.latest
    }

    /// The moment that `tick` would return if the wall clock stood still.
    pub(crate) const fn next(&self) -> Hlc {
        Hlc(self.latest.0.saturating_add(1))
    }

    /// This clock after a moment that was admitted before.
    pub(crate) fn after(self, seen: Hlc) -> Self {
        Self { latest: self.latest.max(seen) }
    }

    /// Takes note of a remote moment, so that what is made here next comes after it.
    ///
    /// # Errors
    /// When it is too far ahead; nothing is noted then.
    pub fn observe(&mut self, remote: Hlc, now_ms: u64) -> Result<(), ClockAhead> {
        let ahead_ms = remote.ms().saturating_sub(now_ms);
        if ahead_ms > DRIFT_MAX_MS {
            return Err(ClockAhead { ahead_ms });
        }
        self.latest = self.latest.max(remote);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_grow_when_the_wall_clock_stands_or_goes_back() {
        let mut clock = Clock::default();
        let a = clock.tick(1_000);
        let b = clock.tick(1_000);
        let c = clock.tick(400);
        let d = clock.tick(1_001);
        assert!(a < b && b < c && c < d);
        assert_eq!((a.ms(), a.count(), c.ms(), c.count(), d.ms(), d.count()), (1_000, 0, 1_000, 2, 1_001, 0));
    }

    #[test]
    fn what_is_made_after_seeing_a_moment_is_later_than_it() {
        let mut clock = Clock::default();
        clock.observe(Hlc::new(1_400, 9), 1_000).unwrap();
        assert!(clock.tick(1_000) > Hlc::new(1_400, 9));
    }

    #[test]
    fn a_moment_more_than_500_ms_ahead_is_refused_and_leaves_no_trace() {
        let mut clock = Clock::default();
        assert_eq!(clock.observe(Hlc::new(1_500, u16::MAX), 1_000), Ok(()));
        let before = clock;
        assert_eq!(clock.observe(Hlc::new(1_501, 0), 1_000), Err(ClockAhead { ahead_ms: 501 }));
        assert_eq!(clock, before);
        assert_eq!(clock.observe(Hlc(u64::MAX), 1_000).unwrap_err().ahead_ms, (u64::MAX >> 16) - 1_000);
    }

    #[test]
    fn counts_beyond_a_millisecond_carry() {
        let mut clock = Clock::default();
        clock.observe(Hlc::new(5, u16::MAX), 5).unwrap();
        assert_eq!(clock.tick(5), Hlc::new(6, 0));
        clock.latest = Hlc(u64::MAX);
        assert_eq!(clock.tick(5), Hlc(u64::MAX));
    }
}
