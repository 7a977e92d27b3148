//! Where an origin may end: which honest nodes are sure to stand there once it is decided.
//!
//! Whoever is short of the end goes on to it by frames. Whoever went past it, or has another branch, needs a store, which only
//! those can give who come to the end by frames alone; and one of them is not believed where others may lie. A decision that
//! leaves too few of these leaves the others waiting for ever. `judge` says how many there must be; nothing here knows of
//! liars.

use std::collections::BTreeMap;
use std::fmt;

/// A place in an origin's chain of frames: the last counter, and the hash of the frame that ends there. By default the one
/// before the first frame.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Place {
    pub last: u64,
    pub hash: [u8; 32],
}

impl fmt::Debug for Place {
    /// As much of the hash as tells branches apart.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, ..] = self.hash;
        write!(f, "{} ({a:02x}{b:02x}{c:02x}{d:02x})", self.last)
    }
}

/// How an honest node stands with an origin.
#[derive(Clone, Debug)]
pub struct Stand {
    pub node: u32,
    /// The origin's chain, ascending, as far as its disk still has the frames, with the place before them.
    pub line: Vec<Place>,
    /// The last change of it that its store has or is bound to get, whatever is decided. What follows in the line is not
    /// applied.
    pub settled: u64,
    /// Applies nothing more of it until its end is decided. Whoever has not stopped may be elsewhere soon: what it says of
    /// where it stands is worth nothing.
    pub is_halted: bool,
}

impl Stand {
    /// Where its store stands; with no frame before the first.
    #[must_use]
    pub fn place(&self) -> Place {
        let up_to = self.line.iter().rev().find(|place| place.last <= self.settled);
        up_to.copied().unwrap_or_default()
    }

    fn has(&self, end: Place) -> bool {
        self.line.contains(&end) || self.place() == end
    }
}

/// How many have stopped applying frames of an origin, and how many of these have all up to an end and nothing after it in
/// their store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) halted: u32,
    pub(super) ready: u32,
}

pub(super) fn tally(end: Place, stands: &[Stand]) -> Tally {
    // What lies before each place. A frame names the one before it, so one node's frames tell of another's chain, too.
    let steps = stands.iter().flat_map(|stand| stand.line.windows(2));
    let steps = steps.filter(|step| step[0].last < step[1].last);
    let before: BTreeMap<[u8; 32], Place> = steps.map(|step| (step[1].hash, step[0])).collect();
    let halted = || stands.iter().filter(|stand| stand.is_halted);
    let ready = halted().filter(|stand| stand.has(end) && follows(&before, end, stand.place())).count();
    let [halted, ready] = [halted().count(), ready].map(|count| count.try_into().expect("few nodes"));
    Tally { halted, ready }
}

/// Is the one place on the way to the other, or the same? Where nobody keeps the frames between the two any more nobody can
/// tell, and it counts as so: no judge finds what may be well.
fn follows(before: &BTreeMap<[u8; 32], Place>, later: Place, earlier: Place) -> bool {
    let mut at = later;
    while at.last > earlier.last {
        let Some(step) = before.get(&at.hash) else { return true };
        at = *step;
    }
    at == earlier
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The frame of a branch that ends there. Branches part after change 3.
    fn place(branch: u8, last: u64) -> Place {
        let branch = if last > 3 { branch } else { 1 };
        let hash = if last == 0 { [0; 32] } else { [branch * 16 + last as u8; 32] };
        Place { last, hash }
    }

    /// Whoever has a branch from one change to another, each in a frame, and has applied some of it.
    fn stand(branch: u8, first: u64, settled: u64, last: u64) -> Stand {
        let line = (first..=last).map(|last| place(branch, last)).collect();
        Stand { node: 0, is_halted: true, line, settled }
    }

    fn ready(end: Place, stands: &[Stand]) -> u32 {
        tally(end, stands).ready
    }

    #[test]
    fn who_stands_at_the_end_is_ready() {
        assert_eq!(ready(place(1, 5), &[stand(1, 0, 5, 5)]), 1);
        assert_eq!(ready(place(1, 5), &[stand(1, 5, 5, 5)]), 1, "with no frame left");
        assert_eq!(ready(Place::default(), &[stand(1, 0, 0, 0)]), 1);
        let nothing = Stand { node: 0, is_halted: true, line: vec![], settled: 0 };
        assert_eq!(ready(Place::default(), &[nothing]), 1);
    }

    #[test]
    fn who_has_all_before_the_end_and_applied_nothing_after_it_is_ready() {
        for settled in 0..=5 {
            for last in settled..=7 {
                let is_ready = u32::from(last >= 5);
                assert_eq!(ready(place(1, 5), &[stand(1, 0, settled, last)]), is_ready, "{settled} {last}");
            }
        }
        for settled in 6..=7 {
            assert_eq!(ready(place(1, 5), &[stand(1, 0, settled, 7)]), 0, "{settled}");
        }
        assert_eq!(ready(Place::default(), &[stand(1, 0, 1, 7), stand(1, 0, 0, 7)]), 1);
    }

    #[test]
    fn who_is_on_another_branch_is_not() {
        let there = || stand(1, 0, 5, 5);
        for (settled, last) in [(5, 5), (7, 7), (4, 4), (4, 5), (4, 7), (3, 3), (3, 5), (0, 7)] {
            assert_eq!(ready(place(1, 5), &[there(), stand(2, 0, settled, last)]), 1, "{settled} {last}");
        }
    }

    #[test]
    fn who_has_not_stopped_counts_for_nothing() {
        let moving = |stand| Stand { is_halted: false, ..stand };
        let all =
            [stand(1, 0, 5, 5), moving(stand(1, 0, 5, 5)), stand(2, 6, 7, 7), moving(stand(2, 0, 6, 6))];
        assert_eq!(tally(place(1, 5), &all), Tally { halted: 2, ready: 1 });
    }

    #[test]
    fn where_nobody_keeps_the_frames_between_it_counts_as_so() {
        let leap = Stand { line: vec![place(1, 3), place(1, 7)], ..stand(1, 3, 3, 3) };
        assert_eq!(ready(place(1, 7), std::slice::from_ref(&leap)), 1);
        let beside = Stand { line: vec![place(1, 4), place(1, 7)], ..stand(1, 4, 4, 4) };
        assert_eq!(ready(place(1, 7), &[beside]), 1);
    }

    #[test]
    fn a_line_that_leads_nowhere_is_not_followed_for_ever() {
        let line = vec![place(1, 7), place(1, 6), place(1, 7)];
        let circle = Stand { node: 0, is_halted: true, line, settled: 0 };
        assert_eq!(ready(place(1, 7), &[circle]), 1, "nobody can tell");
    }
}
