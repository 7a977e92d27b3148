//! Seeded chance. Every purpose forks its own stream from the seed, so that drawing more for one purpose does not
//! shift what another draws. Not for keys: cryptographic randomness belongs to the shell.

/// xoshiro256++ seeded by splitmix64 (Blackman & Vigna, "Scrambled linear pseudorandom number generators", 2021).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Chance {
    state: [u64; 4],
}

fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Chance {
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut state = seed;
        Self { state: core::array::from_fn(|_| splitmix(&mut state)) }
    }

    /// An independent stream for one purpose, named by a label; does not advance this stream.
    #[must_use]
    pub fn fork(&self, purpose: &str) -> Self {
        let mut state = self.state[0] ^ self.state[2].rotate_left(17);
        for byte in purpose.bytes() {
            state = splitmix(&mut state) ^ u64::from(byte);
        }
        Self { state: core::array::from_fn(|_| splitmix(&mut state)) }
    }

    pub fn next_u64(&mut self) -> u64 {
        let s = &mut self.state;
        let result = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// Uniform in `0..bound` (0 when bound is 0), by Lemire's multiplication without the rejection step: the bias is
    /// below bound / 2^64.
    pub fn below(&mut self, bound: u64) -> u64 {
        let wide = u128::from(self.next_u64()) * u128::from(bound);
        u64::try_from(wide >> 64).expect("the high half fits")
    }

    /// Uniform in `low..=high`; `low` when the range is empty.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high.saturating_sub(low).saturating_add(1))
    }

    /// True with probability `per_mille` / 1000.
    pub fn per_mille(&mut self, per_mille: u64) -> bool {
        self.below(1000) < per_mille
    }

    /// One of the items.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        let index = usize::try_from(self.below(items.len() as u64)).expect("an index fits");
        items.get(index)
    }

    /// Fisher-Yates.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            let j = usize::try_from(self.below(i as u64 + 1)).expect("an index fits");
            items.swap(i, j);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Chance;

    #[test]
    fn equal_seeds_give_equal_streams_and_forks_are_independent() {
        let (mut a, mut b) = (Chance::new(7), Chance::new(7));
        let fork_before = a.fork("net");
        assert_eq!(a.next_u64(), b.next_u64());
        assert_eq!(fork_before, Chance::new(7).fork("net"));
        assert_ne!(Chance::new(7).fork("net"), Chance::new(7).fork("disk"));
    }

    #[test]
    fn bounds_hold() {
        let mut chance = Chance::new(1);
        for _ in 0..10_000 {
            assert!(chance.below(7) < 7);
            assert!((3..=5).contains(&chance.between(3, 5)));
        }
        assert_eq!(chance.below(0), 0);
    }
}
