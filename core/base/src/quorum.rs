//! Quorum arithmetic, and the only place where it is done.
//!
//! `q = floor((n+f)/2) + 1`: any two quorums share at least `f + 1` replicas, hence an honest one, and the
//! `n - f` that answer always make one. The familiar `2f+1` is the same number only when `n = 3f + 1`; at n = 5 and
//! n = 6 with f = 1 it lets two quorums meet in liars alone.

use crate::configuration::SettingsError;
use crate::mutants::{Mutant, Mutants};
use borsh::{BorshDeserialize, BorshSerialize};

/// The most replicas a cluster may have.
pub const REPLICAS_MAX: u8 = 31;

/// n replicas of which f may lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
pub struct Quorum {
    n: u8,
    f: u8,
    /// Proof builds only; never on the wire or on disk.
    #[borsh(skip)]
    two_f_plus_one: bool,
}

impl Quorum {
    /// `f = None` takes the largest tolerated number, floor((n-1)/3).
    ///
    /// # Errors
    /// When n is outside `1..=31` or f above floor((n-1)/3).
    pub fn new(n: usize, f: Option<u8>) -> Result<Self, SettingsError> {
        let n = u8::try_from(n)
            .ok()
            .filter(|n| (1..=REPLICAS_MAX).contains(n))
            .ok_or(SettingsError::ReplicaCount { given: n })?;
        let f_max = (n - 1) / 3;
        let f = f.unwrap_or(f_max);
        if f > f_max {
            return Err(SettingsError::FaultBound { n, f, f_max });
        }
        Ok(Self { n, f, two_f_plus_one: false })
    }

    /// The same arithmetic with the rules in `mutants` switched off (a no-op outside proof builds).
    #[must_use]
    pub fn with_mutants(mut self, mutants: Mutants) -> Self {
        self.two_f_plus_one = mutants.on(Mutant::QuorumTwoFPlusOne);
        self
    }

    /// Replicas in the cluster.
    #[must_use]
    pub fn n(self) -> u8 {
        self.n
    }

    /// Liars assumed at most.
    #[must_use]
    pub fn f(self) -> u8 {
        self.f
    }

    /// Votes that decide: floor((n+f)/2) + 1.
    ///
    /// Departs: OSDI '99 has n = 3f + 1 and so 2f + 1, which lets two quorums of n = 5 or 6 share liars alone.
    /// Covered by `two_quorums_share_an_honest_replica_and_the_honest_make_one`.
    #[must_use]
    pub fn q(self) -> usize {
        if self.two_f_plus_one {
            return 2 * usize::from(self.f) + 1;
        }
        deciding(usize::from(self.n), usize::from(self.f))
    }

    /// Voices of which at least one is honest: f + 1.
    #[must_use]
    pub fn weak(self) -> usize {
        usize::from(self.f) + 1
    }

    /// VIEW-CHANGEs for higher views at which a replica joins: max(f+1, min(2, n)).
    ///
    /// Departs: OSDI '99 section 4.5.2 says f + 1. With f = 0 that would let a single delayed replica drag everybody
    /// along. Covered by the simulator's `one_impatient_replica_of_three_moves_nobody`.
    #[must_use]
    pub fn join(self) -> usize {
        joining(usize::from(self.n), usize::from(self.f))
    }
}

const fn deciding(n: usize, f: usize) -> usize {
    (n + f) / 2 + 1
}

const fn joining(n: usize, f: usize) -> usize {
    let weak = f + 1;
    let pair = if n < 2 { n } else { 2 };
    if weak > pair { weak } else { pair }
}

#[cfg(test)]
mod tests {
    use super::{Quorum, deciding, joining};

    #[test]
    fn two_quorums_share_an_honest_replica_and_the_honest_make_one() {
        for n in 1..=100usize {
            for f in 0..=(n - 1) / 3 {
                let q = deciding(n, f);
                assert!(2 * q - n > f, "n={n} f={f}");
                assert!(q <= n - f, "n={n} f={f}");
                assert!((f + 1..=n).contains(&joining(n, f)), "n={n} f={f}");
                if n <= 31 {
                    let quorum = Quorum::new(n, Some(u8::try_from(f).unwrap())).unwrap();
                    assert_eq!((quorum.q(), quorum.join()), (q, joining(n, f)));
                }
            }
        }
    }

    #[test]
    fn at_three_f_plus_one_the_quorum_is_the_papers() {
        for f in 0..=33 {
            assert_eq!(deciding(3 * f + 1, f), 2 * f + 1);
        }
    }

    #[test]
    fn two_f_plus_one_forks_at_five_and_six() {
        for n in [5usize, 6] {
            let f = 1;
            assert!(2 * (2 * f + 1) - n <= f);
        }
    }

    #[test]
    fn impossible_sizes_are_refused() {
        assert!(Quorum::new(0, None).is_err());
        assert!(Quorum::new(32, None).is_err());
        assert!(Quorum::new(4, Some(2)).is_err());
        assert_eq!(Quorum::new(3, None).unwrap().f(), 0);
        assert_eq!(Quorum::new(4, None).unwrap().q(), 3);
        assert_eq!(Quorum::new(5, None).unwrap().q(), 4);
    }
}
