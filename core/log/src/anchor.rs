//! Notarising a segment: replicas sign what they hold and computed at a Tick, and `q` equal words make an Anchor. A Raft
//! leader's word is not signed, so this is what turns its log into something that holds against liars too; and a replica
//! that computed something else learns it here. Pure functions of signed words.

use crate::close::{Bench, VoicesRefusal};
use crate::place::{Index, Place, Term};
use crate::seal::{Signed, Speaker, Statement};
use crate::segment::AnchorPoint;
use alloc::vec::Vec;
use borsh::{BorshDeserialize, BorshSerialize};
use dwcp_base::{Epoch, Hash, SigningKind};

/// What a replica holds of a segment at one Tick: committed, applied and durable here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, BorshSerialize, BorshDeserialize)]
pub struct Held {
    pub epoch: Epoch,
    pub index: Index,
    /// Of the entry at `index`. The chain covers it; it stands here for whoever continues a log from this place.
    pub term: Term,
    /// The chain of the virtual log with that Tick.
    pub chain: Hash,
    /// The digest of the state after it.
    pub state: Hash,
}

/// A replica's word on it, and its clock when it said so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
pub struct AnchorVote {
    pub held: Held,
    pub speaker: Speaker,
    /// Milliseconds since the Unix epoch on the speaker's own clock.
    pub clock_ms: u64,
}

impl Statement for AnchorVote {
    const KIND: SigningKind = SigningKind::AnchorVote;

    fn epoch(&self) -> Epoch {
        self.held.epoch
    }

    fn speaker(&self) -> Speaker {
        self.speaker
    }
}

/// `q` equal words about one Tick, ascending by sender. An entry of the root log.
#[derive(Clone, Debug, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
pub struct Anchor {
    pub held: Held,
    pub votes: Vec<Signed<AnchorVote>>,
}

/// Why an Anchor proves nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnchorProofRefusal {
    Voices(VoicesRefusal),
    /// Somebody signed something else.
    NotEqual,
}

impl Anchor {
    /// Where the segment is anchored if this counts. The number is the fold's to give.
    #[must_use]
    pub fn point(&self) -> AnchorPoint {
        AnchorPoint {
            number: 0,
            index: self.held.index,
            term: self.held.term,
            chain: self.held.chain,
            state: self.held.state,
        }
    }

    /// The median of the signed clocks, the lower one of two: with at most f liars among `q` voters it lies between the
    /// clocks of honest ones. For decisions that need real time; log time is another matter.
    #[must_use]
    pub fn clock_ms(&self) -> Option<u64> {
        let mut clocks: Vec<u64> = self.votes.iter().map(|vote| vote.said.clock_ms).collect();
        clocks.sort_unstable();
        clocks.get(clocks.len().checked_sub(1)? / 2).copied()
    }
}

impl Bench<'_> {
    /// Whether `q` replicas said exactly this. Needs no copy of the segment: a replica that lags can judge it too.
    ///
    /// # Errors
    /// Why it proves nothing.
    pub fn judge_anchor(&self, anchor: &Anchor) -> Result<(), AnchorProofRefusal> {
        if anchor.votes.iter().any(|vote| vote.said.held != anchor.held) {
            return Err(AnchorProofRefusal::NotEqual);
        }
        self.voices(anchor.held.epoch, &anchor.votes, self.quorum.q()).map_err(AnchorProofRefusal::Voices)
    }
}

/// What a replica's own log says about an Anchor that was executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnView {
    /// It holds the same.
    Agrees,
    /// It has not come that far.
    Behind,
    /// Its log or its state is another one: it must fetch the certified one, and say so.
    Diverged,
}

/// Compares what this replica holds at the Anchor's index, if it has come there, with what `q` signed.
#[must_use]
pub fn compare(anchor: &Anchor, own: Option<(Place, Hash)>) -> OwnView {
    match own {
        None => OwnView::Behind,
        Some((place, state)) if (place.chain, state) == (anchor.held.chain, anchor.held.state) => {
            OwnView::Agrees
        }
        Some(_) => OwnView::Diverged,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::close::tests::{CLUSTER, EPOCH, key, place, speaker, with_bench};

    fn held() -> Held {
        Held {
            epoch: EPOCH,
            index: Index(12),
            term: Term(2),
            chain: place(2, 12).chain,
            state: Hash::of(b"state"),
        }
    }

    fn vote(id: u8, held: Held, clock_ms: u64) -> Signed<AnchorVote> {
        Signed::new(AnchorVote { held, speaker: speaker(id), clock_ms }, CLUSTER, &key(id))
    }

    fn anchor(clocks: [u64; 4]) -> Anchor {
        Anchor { held: held(), votes: (0..).zip(clocks).map(|(id, clock)| vote(id, held(), clock)).collect() }
    }

    fn judge(anchor: &Anchor) -> Result<(), AnchorProofRefusal> {
        with_bench(|bench| bench.judge_anchor(anchor))
    }

    #[test]
    fn q_equal_words_are_an_anchor_whatever_their_clocks() {
        assert_eq!(judge(&anchor([5, 6, 7, 8])), Ok(()));
        let mut few = anchor([5; 4]);
        few.votes.pop();
        assert_eq!(judge(&few), Err(AnchorProofRefusal::Voices(VoicesRefusal::TooFew)));
    }

    #[test]
    fn another_log_or_another_state_is_another_word() {
        let other = [
            Held { chain: Hash::of(b"another log"), ..held() },
            Held { state: Hash::of(b"another state"), ..held() },
            Held { index: Index(13), ..held() },
        ];
        for held in other {
            let mut mixed = anchor([5; 4]);
            mixed.votes[2] = vote(2, held, 5);
            assert_eq!(judge(&mixed), Err(AnchorProofRefusal::NotEqual));
            let mut relabelled = anchor([5; 4]);
            relabelled.votes[2].said.held = held;
            relabelled.held = held;
            assert_eq!(judge(&relabelled), Err(AnchorProofRefusal::NotEqual));
        }
        let mut altered = anchor([5; 4]);
        altered.votes[1].said.clock_ms = 9;
        assert_eq!(
            judge(&altered),
            Err(AnchorProofRefusal::Voices(VoicesRefusal::Signature)),
            "clocks are signed"
        );
    }

    #[test]
    fn one_liars_clock_does_not_move_the_median_past_honest_ones() {
        for lie in [0, u64::MAX] {
            for place in 0..4 {
                let mut clocks = [100, 101, 102, 103];
                clocks[place] = lie;
                let median = anchor(clocks).clock_ms().expect("there are votes");
                assert!((100..=103).contains(&median), "{clocks:?} {median}");
            }
        }
        assert_eq!(Anchor { held: held(), votes: Vec::new() }.clock_ms(), None);
    }

    #[test]
    fn a_replica_that_computed_something_else_learns_it() {
        let anchor = anchor([5; 4]);
        let own = (place(2, 12), Hash::of(b"state"));
        assert_eq!(compare(&anchor, Some(own)), OwnView::Agrees);
        assert_eq!(compare(&anchor, None), OwnView::Behind);
        assert_eq!(compare(&anchor, Some((own.0, Hash::of(b"bit rot")))), OwnView::Diverged);
        assert_eq!(compare(&anchor, Some((place(1, 12), own.1))), OwnView::Diverged);
    }
}
