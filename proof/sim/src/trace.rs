//! The trace of a run: a running hash over everything that happened, by which two runs of one seed are compared, and,
//! when asked for, one line per happening for people.

use std::fmt::{Display, Write as _};

/// Lines kept at most; beyond it the oldest half goes.
const LINES_MAX: usize = 400_000;

#[derive(Debug, Default)]
pub struct Trace {
    hash: u64,
    count: u64,
    keeps_lines: bool,
    lines: Vec<String>,
}

impl Trace {
    #[must_use]
    pub fn new(keeps_lines: bool) -> Self {
        Self { hash: 0xcbf2_9ce4_8422_2325, keeps_lines, ..Self::default() }
    }

    /// Mixes numbers into the hash (the finaliser of splitmix64 per word).
    pub fn mix(&mut self, words: &[u64]) {
        for word in words {
            let mut z = (self.hash.rotate_left(5) ^ word).wrapping_add(0x9e37_79b9_7f4a_7c15);
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            self.hash = z ^ (z >> 27);
        }
        self.count += 1;
    }

    /// Length and both ends of the bytes; their middle shows in what they cause.
    pub fn mix_bytes(&mut self, bytes: &[u8]) {
        let end = |slice: &[u8]| {
            let mut word = [0; 8];
            word[..slice.len()].copy_from_slice(slice);
            u64::from_le_bytes(word)
        };
        let n = bytes.len().min(8);
        self.mix(&[bytes.len() as u64, end(&bytes[..n]), end(&bytes[bytes.len() - n..])]);
    }

    /// A line for people; the closure runs only when lines are kept.
    pub fn line<T: Display>(&mut self, at_us: u64, text: impl FnOnce() -> T) {
        if self.keeps_lines {
            if self.lines.len() >= LINES_MAX {
                self.lines.drain(..LINES_MAX / 2);
            }
            let mut line = format!("{:>5}.{:06} ", at_us / 1_000_000, at_us % 1_000_000);
            write!(line, "{}", text()).expect("writing to memory");
            self.lines.push(line);
        }
    }

    #[must_use]
    pub fn keeps_lines(&self) -> bool {
        self.keeps_lines
    }

    #[must_use]
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// How often something was mixed in: events, roughly.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Lines since the last call.
    pub fn take_lines(&mut self) -> Vec<String> {
        std::mem::take(&mut self.lines)
    }
}
