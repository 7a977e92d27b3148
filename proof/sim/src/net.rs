//! The simulated network: given a message's ends, when does it arrive, how often, or not at all?
//!
//! It knows places (replicas' nodes and clients) and the dials; not what the bytes mean. Cuts are directed, so that a
//! partition may be one-way. Delays are drawn per message, so messages overtake each other.

use crate::dials::Dials;
use dwcp_base::Chance;
use std::collections::BTreeSet;

/// An end of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// Index of a node of the world.
    Node(usize),
    Client(usize),
}

/// What became of messages.
#[derive(Clone, Copy, Debug, Default)]
pub struct NetCounts {
    pub sent: u64,
    pub dropped: u64,
    pub duplicated: u64,
    pub cut: u64,
}

#[derive(Debug)]
pub struct Net {
    chance: Chance,
    delay_us: u64,
    jitter_us: u64,
    drop_pm: u64,
    duplicate_pm: u64,
    commits_lost_pm: u64,
    stray_pm: u64,
    /// Directed links over which nothing passes. At most all pairs of nodes.
    cuts: BTreeSet<(usize, usize)>,
    /// Directed links that take twenty times as long.
    slow: BTreeSet<(usize, usize)>,
    pub counts: NetCounts,
}

impl Net {
    #[must_use]
    pub fn new(dials: &Dials, chance: Chance) -> Self {
        Self {
            chance,
            delay_us: dials.delay_us,
            jitter_us: dials.jitter_us,
            drop_pm: dials.drop_pm,
            duplicate_pm: dials.duplicate_pm,
            commits_lost_pm: dials.commits_lost_pm,
            stray_pm: dials.stray_pm,
            cuts: BTreeSet::new(),
            slow: BTreeSet::new(),
            counts: NetCounts::default(),
        }
    }

    /// The delays after which copies of this message arrive: none when it is lost, two when it is duplicated.
    pub fn delays_us(&mut self, from: Place, to: Place) -> ([u64; 2], usize) {
        self.counts.sent += 1;
        let mut slow = false;
        if let (Place::Node(from), Place::Node(to)) = (from, to) {
            if self.cuts.contains(&(from, to)) {
                self.counts.cut += 1;
                return ([0; 2], 0);
            }
            slow = self.slow.contains(&(from, to));
        }
        if self.drop_pm > 0 && self.chance.per_mille(self.drop_pm) {
            self.counts.dropped += 1;
            return ([0; 2], 0);
        }
        let mut one = || {
            let mut delay = self.delay_us + self.chance.below(self.jitter_us + 1);
            if self.stray_pm > 0 && self.chance.per_mille(self.stray_pm) {
                delay *= self.chance.between(2, 20);
            }
            if slow { delay * 20 } else { delay }
        };
        let first = one();
        if self.duplicate_pm > 0 && self.chance.per_mille(self.duplicate_pm) {
            self.counts.duplicated += 1;
            let second = first + self.delay_us + self.chance.below(4 * self.jitter_us + 50_000);
            return ([first, second], 2);
        }
        ([first, 0], 1)
    }

    /// Whether COMMITs get lost more often than other messages.
    #[must_use]
    pub const fn loses_commits(&self) -> bool {
        self.commits_lost_pm > 0
    }

    /// Whether the next COMMIT is lost.
    pub fn loses_commit(&mut self) -> bool {
        let lost = self.chance.per_mille(self.commits_lost_pm);
        self.counts.dropped += u64::from(lost);
        lost
    }

    pub fn is_cut(&self, from: usize, to: usize) -> bool {
        self.cuts.contains(&(from, to))
    }

    pub fn cut(&mut self, from: usize, to: usize) {
        self.cuts.insert((from, to));
    }

    /// Ends all cuts and says which links they were.
    pub fn heal(&mut self) -> Vec<(usize, usize)> {
        std::mem::take(&mut self.cuts).into_iter().collect()
    }

    pub fn slow_link(&mut self, from: usize, to: usize) {
        self.slow.insert((from, to));
    }

    pub fn heal_slow_links(&mut self) {
        self.slow.clear();
    }

    /// No more faults: nothing is lost, doubled or late.
    pub fn calm(&mut self) {
        self.drop_pm = 0;
        self.commits_lost_pm = 0;
        self.duplicate_pm = 0;
        self.stray_pm = 0;
        self.slow.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dials::Profile;

    #[test]
    fn a_cut_is_directed_and_ends_when_healed() {
        let mut dials = Profile::named("calm").expect("a profile").draw(1, 10);
        dials.jitter_us = 0;
        let mut net = Net::new(&dials, Chance::new(1));
        net.cut(0, 1);
        assert_eq!(net.delays_us(Place::Node(0), Place::Node(1)).1, 0);
        assert_eq!(net.delays_us(Place::Node(1), Place::Node(0)), ([dials.delay_us, 0], 1));
        assert_eq!(net.heal(), vec![(0, 1)]);
        assert_eq!(net.delays_us(Place::Node(0), Place::Node(1)).1, 1);
    }
}
