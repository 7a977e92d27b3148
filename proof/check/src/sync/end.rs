//! Where an origin may end: which honest nodes have its last frame, and which of them have nothing that the end leaves out.
//!
//! Whoever is short of the end goes on to it by frames, so somebody honest must have them all. Whoever went past it, or has
//! another branch, needs a store, which only somebody can give who came to the end by frames alone. A decision that leaves
//! nobody of either kind leaves all waiting for ever. `judge` says how many there must be; nothing here knows of liars.

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
    /// The origin's chain, ascending, as far as its disk still has the frames, with the place before them. Where the node
    /// stands comes last; with none it stands before the first frame.
    pub line: Vec<Place>,
    /// Takes nothing more of it until its end is decided. Whoever has not stopped may be elsewhere soon: what it says of
    /// where it stands is worth nothing.
    pub is_halted: bool,
}

impl Stand {
    #[must_use]
    pub fn place(&self) -> Place {
        self.line.last().copied().unwrap_or_default()
    }
}

/// How many have stopped taking frames of an origin, and how these stand to an end. Who stands at it is both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) halted: u32,
    /// At the end, or beyond it on the same chain.
    pub(super) holders: u32,
    /// At the end, or before it on the same chain.
    pub(super) givers: u32,
}

pub(super) fn tally(end: Place, stands: &[Stand]) -> Tally {
    // What lies before each place. A frame names the one before it, so one node's frames tell of another's chain, too.
    let steps = stands.iter().flat_map(|stand| stand.line.windows(2));
    let steps = steps.filter(|step| step[0].last < step[1].last);
    let before: BTreeMap<[u8; 32], Place> = steps.map(|step| (step[1].hash, step[0])).collect();
    let count = |is_so: &dyn Fn(Place) -> bool| {
        let halted = stands.iter().filter(|stand| stand.is_halted);
        halted.filter(|stand| is_so(stand.place())).count().try_into().expect("few nodes")
    };
    Tally {
        halted: count(&|_| true),
        holders: count(&|place| follows(&before, place, end)),
        givers: count(&|place| follows(&before, end, place)),
    }
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

    /// Whoever has a branch from one change to another, each in a frame.
    fn stand(branch: u8, first: u64, last: u64) -> Stand {
        Stand { node: 0, is_halted: true, line: (first..=last).map(|last| place(branch, last)).collect() }
    }

    fn counts(end: Place, stands: &[Stand]) -> (u32, u32) {
        let Tally { holders, givers, .. } = tally(end, stands);
        (holders, givers)
    }

    #[test]
    fn who_stands_at_the_end_has_it_and_can_give_it() {
        assert_eq!(counts(place(1, 5), &[stand(1, 0, 5)]), (1, 1));
        assert_eq!(counts(place(1, 5), &[stand(1, 5, 5)]), (1, 1), "with no frame left");
        assert_eq!(counts(Place::default(), &[stand(1, 0, 0)]), (1, 1));
        let nothing = Stand { node: 0, is_halted: true, line: vec![] };
        assert_eq!(counts(Place::default(), &[nothing]), (1, 1));
    }

    #[test]
    fn who_is_beyond_has_it_and_who_is_before_it_can_give_it() {
        assert_eq!(counts(place(1, 5), &[stand(1, 0, 7)]), (1, 0));
        assert_eq!(counts(place(1, 5), &[stand(1, 0, 7), stand(1, 0, 4)]), (1, 1));
        assert_eq!(counts(place(1, 5), &[stand(1, 0, 7), stand(1, 0, 0)]), (1, 1));
        assert_eq!(counts(Place::default(), &[stand(1, 0, 7)]), (1, 0));
    }

    #[test]
    fn who_is_on_another_branch_is_neither() {
        let there = || stand(1, 0, 5);
        assert_eq!(counts(place(1, 5), &[there(), stand(2, 0, 5)]), (1, 1), "level with it");
        assert_eq!(counts(place(1, 5), &[there(), stand(2, 0, 7)]), (1, 1), "past it");
        assert_eq!(counts(place(1, 5), &[there(), stand(2, 0, 4)]), (1, 1), "short of it");
        assert_eq!(counts(place(1, 5), &[there(), stand(2, 0, 3)]), (1, 2), "where they are one");
        // Frames may end elsewhere there.
        let leap = Stand { node: 0, is_halted: true, line: vec![place(2, 3), place(2, 6)] };
        assert_eq!(counts(place(1, 5), &[there(), leap]), (1, 1));
    }

    #[test]
    fn who_has_not_stopped_counts_for_nothing_and_tells_of_others() {
        let moving = |stand| Stand { is_halted: false, ..stand };
        let all = [stand(1, 0, 5), moving(stand(1, 0, 5)), stand(2, 6, 7), moving(stand(2, 0, 6))];
        assert_eq!(tally(place(1, 5), &all), Tally { halted: 2, holders: 1, givers: 1 });
    }

    #[test]
    fn what_one_has_dropped_another_may_still_tell() {
        // It kept 6 and 7; that 6 is of the other branch, somebody else knows.
        assert_eq!(counts(place(1, 5), &[stand(2, 6, 7), stand(2, 0, 6)]), (0, 0));
        assert_eq!(counts(place(1, 5), &[stand(2, 6, 7), stand(1, 0, 5)]), (2, 1), "nobody knows");
        // Where the end comes from is told by whoever has it.
        assert_eq!(counts(place(1, 5), &[stand(2, 4, 4), stand(1, 0, 6)]), (1, 0));
        assert_eq!(counts(place(1, 5), &[stand(2, 4, 4)]), (0, 1), "nobody knows");
    }

    #[test]
    fn a_line_that_leads_nowhere_is_not_followed_for_ever() {
        let circle = Stand { node: 0, is_halted: true, line: vec![place(1, 7), place(1, 6), place(1, 7)] };
        assert_eq!(counts(place(2, 5), &[circle]), (1, 0));
    }
}
