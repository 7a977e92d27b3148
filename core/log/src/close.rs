//! Where an epoch ends: the choice among sealed logs, and what a Close must show. Pure functions of signed words, the same
//! for the primary that proposes and every backup that recomputes; they know no Raft.
//!
//! Why the choice keeps what was committed: a majority of the segment's members held every committed entry when it was
//! committed, `q` sealed, and any majority meets any `q`. A sealed member votes and acknowledges no more, so no election
//! after the seals can have decided otherwise, and by Raft's up-to-dateness rule the best of the sealed logs holds whatever
//! any of them helped to commit. A liar among the sealers can name a log that nobody can show: the primary then takes the
//! word of `q` others.

use crate::place::Place;
use crate::seal::{Sealed, Signed, Speaker, Statement, StopCert};
use crate::segment::Segment;
use alloc::vec::Vec;
use borsh::{BorshDeserialize, BorshSerialize};
use dwcp_base::{ClusterId, Crypto, Epoch, Hash, Mutant, Mutants, PublicKey, Quorum, Signature};

/// Takes the right to extend the virtual log back from a segment.
#[derive(Clone, Debug, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
pub struct Close {
    pub epoch: Epoch,
    /// The segment's last entry; index 0 when it ends as it began.
    pub tail: Place,
    /// The number of the last Anchor that was executed when it was proposed: whoever prepares it has seen its log hold that
    /// very Anchor. A later one may be ordered in between, and nobody has looked whether the log holds that.
    pub anchor: u64,
    pub proof: CloseProof,
}

/// Why the segment may end there.
#[derive(Clone, Debug, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
#[borsh(use_discriminant = true)]
#[repr(u8)]
pub enum CloseProof {
    /// `q` sealed logs, ascending by sender, of which the tail is the best.
    Reports(Vec<Signed<Sealed>>) = 1,
    /// The tail is a committed Marker: everything before it is committed too, and nothing can follow it. Every replica
    /// that prepares the Close has seen it committed; the `q` prepares are the proof.
    Marker = 2,
}

/// Why a Close is none. Judged at execution, so that every replica judges alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseRefusal {
    NoSegment,
    OtherEpoch,
    /// Its tail cannot hold the last Anchor that was executed.
    BelowAnchor,
    /// It was prepared when another Anchor was the last.
    OtherAnchor,
    Voices(VoicesRefusal),
    /// The tail is not the best of the reported logs.
    NotTheBest,
    /// Two reports name one place and different logs: one of them lies, and who wants to close takes others.
    Ambiguous,
    PositionsRunOut,
}

/// Why signed words do not count together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VoicesRefusal {
    TooFew,
    /// Not ascending by sender, so one may count twice.
    NotAscending,
    OtherEpoch,
    /// A stranger, a learner, or a member under another configuration or incarnation.
    NoVoice,
    Signature,
    /// SUSPECTs that are more than one Anchor apart.
    Apart,
}

/// Who may speak about an epoch, and with which key.
pub trait Voters {
    fn key_of(&self, speaker: Speaker) -> Option<PublicKey>;
}

impl<F: Fn(Speaker) -> Option<PublicKey>> Voters for F {
    fn key_of(&self, speaker: Speaker) -> Option<PublicKey> {
        self(speaker)
    }
}

/// What judging needs to know beside the words themselves.
#[derive(Clone, Copy)]
pub struct Bench<'a> {
    pub cluster: ClusterId,
    pub quorum: Quorum,
    pub crypto: &'a dyn Crypto,
    pub voters: &'a dyn Voters,
    /// Members of the segment that were replaced since it opened: as who they were they never speak again.
    pub gone: usize,
    pub mutants: Mutants,
}

impl core::fmt::Debug for Bench<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Bench").field("quorum", &self.quorum).finish_non_exhaustive()
    }
}

impl Bench<'_> {
    /// At least `q` different voters said something about this epoch.
    pub(crate) fn voices<T: Statement>(
        &self,
        epoch: Epoch,
        words: &[Signed<T>],
        needed: usize,
    ) -> Result<(), VoicesRefusal> {
        if words.len() < needed {
            return Err(VoicesRefusal::TooFew);
        }
        if !words.windows(2).all(|pair| pair[0].said.speaker().id < pair[1].said.speaker().id) {
            return Err(VoicesRefusal::NotAscending);
        }
        let mut items: Vec<(PublicKey, Hash, Signature)> = Vec::with_capacity(words.len());
        for word in words {
            if word.said.epoch() != epoch {
                return Err(VoicesRefusal::OtherEpoch);
            }
            let key = self.voters.key_of(word.said.speaker()).ok_or(VoicesRefusal::NoVoice)?;
            items.push(word.signature_item(self.cluster, key));
        }
        if self.crypto.verify_all(&items) { Ok(()) } else { Err(VoicesRefusal::Signature) }
    }

    /// Whether these SUSPECTs end the epoch.
    ///
    /// `q` and not `f + 1`: f liars and one replica on a bad link must not be able to stop a healthy segment.
    ///
    /// # Errors
    /// Why they do not.
    pub fn judge_stop(&self, epoch: Epoch, stop: &StopCert) -> Result<(), VoicesRefusal> {
        self.voices(epoch, &stop.suspects, self.quorum.q())?;
        let anchors = || stop.suspects.iter().map(|suspect| suspect.said.anchor);
        match (anchors().min(), anchors().max()) {
            (Some(first), Some(last)) if last - first <= 1 => Ok(()),
            _ => Err(VoicesRefusal::Apart),
        }
    }

    /// How many sealed logs end this segment.
    #[must_use]
    pub fn reports_needed(&self, segment: &Segment) -> usize {
        if self.mutants.on(Mutant::CloseOfFewReports) {
            return self.quorum.weak();
        }
        reports_needed(self.quorum, segment.open.members.len(), self.gone)
    }

    /// Whether this Close ends the open segment, if there is one.
    ///
    /// # Errors
    /// Why it does not; it is then a no-op.
    pub fn judge_close(&self, segment: Option<&Segment>, close: &Close) -> Result<(), CloseRefusal> {
        let segment = segment.ok_or(CloseRefusal::NoSegment)?;
        if close.epoch != segment.epoch {
            return Err(CloseRefusal::OtherEpoch);
        }
        if !segment.may_hold_anchor(&close.tail) && !self.mutants.on(Mutant::CloseBelowAnchor) {
            return Err(CloseRefusal::BelowAnchor);
        }
        if close.anchor != segment.anchor.number && !self.mutants.on(Mutant::CloseAnchorUnchecked) {
            return Err(CloseRefusal::OtherAnchor);
        }
        segment.ends(&close.tail).ok_or(CloseRefusal::PositionsRunOut)?;
        match &close.proof {
            CloseProof::Marker if close.tail.index.0 == 0 => Err(CloseRefusal::NotTheBest),
            CloseProof::Marker => Ok(()),
            CloseProof::Reports(reports) => {
                let needed = self.reports_needed(segment);
                self.voices(close.epoch, reports, needed).map_err(CloseRefusal::Voices)?;
                match choose(reports, self.mutants)? {
                    Some(best) if best == close.tail => Ok(()),
                    _ => Err(CloseRefusal::NotTheBest),
                }
            }
        }
    }
}

/// How many sealed logs end a segment of so many members: `q`, where all replicas are members. A segment that opened without
/// a learner has fewer members, and must be able to end when as many of them are lost as the cluster withstands, or one where
/// that is none: then all but those. Of members that were replaced since nothing more will be heard: then all the others. In
/// any case never fewer than meet every majority of the members, so that what was committed is in one of the logs, and no
/// leader commits any more.
#[must_use]
pub fn reports_needed(quorum: Quorum, members: usize, gone: usize) -> usize {
    let majority = members / 2 + 1;
    let lost = gone.max(usize::from(quorum.f())).max(1);
    (members + 1 - majority).max(quorum.q().min(members.saturating_sub(lost))).max(1)
}

/// What a log that ends there is worth: by Raft's measure, (term, index), for a longer log of an older term may hold what a
/// later leader has replaced.
#[must_use]
pub fn worth(last: &Place, mutants: Mutants) -> (u64, u64) {
    let Place { index, term, .. } = last;
    if mutants.on(Mutant::CloseLongestLog) { (index.0, term.0) } else { (term.0, index.0) }
}

/// The best of the reported logs; `None` of no reports.
///
/// # Errors
/// [`CloseRefusal::Ambiguous`] when two reports name the best place with different logs.
pub fn choose(reports: &[Signed<Sealed>], mutants: Mutants) -> Result<Option<Place>, CloseRefusal> {
    let lasts = reports.iter().map(|report| report.said.last);
    let Some(best) = lasts.max_by_key(|last| worth(last, mutants)) else {
        return Ok(None);
    };
    let same = |last: &Place| (last.term, last.index) == (best.term, best.index);
    if reports.iter().map(|report| report.said.last).any(|last| same(&last) && last.chain != best.chain) {
        return Err(CloseRefusal::Ambiguous);
    }
    Ok(Some(best))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::chain::VirtualLog;
    use crate::place::{Index, Term};
    use crate::seal::Suspect;
    use crate::segment::{AnchorPoint, Open, Protocol};
    use alloc::vec;
    use dwcp_base::crypto::Ed25519;
    use dwcp_base::{ConfigurationId, Incarnation, Position, ReplicaId, Sequence};

    pub(crate) const CLUSTER: ClusterId = ClusterId([7; 32]);
    pub(crate) const EPOCH: Epoch = Epoch(3);

    pub(crate) fn key(id: u8) -> Ed25519 {
        Ed25519::new([id + 1; 32], &[])
    }

    pub(crate) fn speaker(id: u8) -> Speaker {
        Speaker { id: ReplicaId(id), incarnation: Incarnation(0), configuration: ConfigurationId(1) }
    }

    fn voters(speaker: Speaker) -> Option<PublicKey> {
        let member = speaker.id.0 < 5
            && speaker.incarnation == Incarnation(0)
            && speaker.configuration == ConfigurationId(1);
        member.then(|| key(speaker.id.0).public_key())
    }

    /// Five members, of which one may lie: q = 4.
    pub(crate) fn with_bench<T>(run: impl FnOnce(&Bench<'_>) -> T) -> T {
        let crypto = key(100);
        let quorum = Quorum::new(5, Some(1)).unwrap();
        run(&Bench {
            cluster: CLUSTER,
            quorum,
            crypto: &crypto,
            voters: &voters,
            gone: 0,
            mutants: Mutants::default(),
        })
    }

    pub(crate) fn place(term: u64, index: u64) -> Place {
        Place { index: Index(index), term: Term(term), chain: Hash::of(&[term as u8, index as u8]) }
    }

    pub(crate) fn report(id: u8, last: Place) -> Signed<Sealed> {
        Signed::new(Sealed { epoch: EPOCH, speaker: speaker(id), last }, CLUSTER, &key(id))
    }

    pub(crate) fn reports(ends: [(u64, u64); 4]) -> Vec<Signed<Sealed>> {
        (0..).zip(ends).map(|(id, (term, index))| report(id, place(term, index))).collect()
    }

    pub(crate) fn segment() -> Segment {
        let base = VirtualLog { position: Position(100), chain: Hash::of(b"base") };
        let members = (0..5).map(ReplicaId).collect();
        let open = Open { protocol: Protocol::Raft, first_leader: None, members };
        let mut segment = Segment::new(EPOCH, Sequence(9), base, Hash::ZERO, open);
        segment.anchor = AnchorPoint {
            number: 2,
            index: Index(10),
            term: Term(1),
            chain: place(1, 10).chain,
            state: Hash::ZERO,
        };
        segment
    }

    fn judge(close: &Close) -> Result<(), CloseRefusal> {
        with_bench(|bench| bench.judge_close(Some(&segment()), close))
    }

    fn close(tail: Place, reports: Vec<Signed<Sealed>>) -> Close {
        Close { epoch: EPOCH, tail, anchor: 2, proof: CloseProof::Reports(reports) }
    }

    #[test]
    fn the_later_term_is_taken_and_not_the_longer_log() {
        let ends = [(2, 12), (1, 40), (1, 12), (2, 11)];
        assert_eq!(judge(&close(place(2, 12), reports(ends))), Ok(()));
        assert_eq!(judge(&close(place(1, 40), reports(ends))), Err(CloseRefusal::NotTheBest));
        assert_eq!(judge(&close(place(2, 11), reports(ends))), Err(CloseRefusal::NotTheBest));
    }

    #[test]
    fn fewer_than_q_reports_close_nothing_and_nobody_counts_twice() {
        let mut few = reports([(1, 12); 4]);
        few.pop();
        let refused = |words| judge(&close(place(1, 12), words));
        assert_eq!(refused(few.clone()), Err(CloseRefusal::Voices(VoicesRefusal::TooFew)));
        few.push(few[2]);
        assert_eq!(refused(few), Err(CloseRefusal::Voices(VoicesRefusal::NotAscending)));
        let mut swapped = reports([(1, 12); 4]);
        swapped.swap(0, 1);
        assert_eq!(refused(swapped), Err(CloseRefusal::Voices(VoicesRefusal::NotAscending)));
    }

    #[test]
    fn only_members_speak_and_only_for_themselves_and_this_epoch() {
        let spoil = |change: fn(&mut Signed<Sealed>)| {
            let mut words = reports([(1, 12); 4]);
            change(&mut words[3]);
            judge(&close(place(1, 12), words))
        };
        let refused = |refusal| Err(CloseRefusal::Voices(refusal));
        assert_eq!(spoil(|_| {}), Ok(()));
        assert_eq!(spoil(|word| word.said.last.index.0 += 1), refused(VoicesRefusal::Signature));
        assert_eq!(spoil(|word| *word = report(9, place(1, 12))), refused(VoicesRefusal::NoVoice));
        assert_eq!(
            spoil(|word| word.said.speaker.incarnation = Incarnation(1)),
            refused(VoicesRefusal::NoVoice)
        );
        assert_eq!(
            spoil(|word| word.said.speaker.configuration = ConfigurationId(2)),
            refused(VoicesRefusal::NoVoice)
        );
        assert_eq!(
            spoil(|word| {
                let said = Sealed { epoch: Epoch(2), ..word.said };
                *word = Signed::new(said, CLUSTER, &key(3));
            }),
            refused(VoicesRefusal::OtherEpoch)
        );
    }

    #[test]
    fn nothing_closes_below_the_last_anchor_or_beside_it() {
        let below = reports([(1, 9), (1, 9), (1, 8), (1, 7)]);
        assert_eq!(judge(&close(place(1, 9), below)), Err(CloseRefusal::BelowAnchor));
        assert_eq!(judge(&close(place(1, 10), reports([(1, 10); 4]))), Ok(()), "at the Anchor itself");
        let beside = close(place(2, 10), reports([(2, 10); 4]));
        assert_eq!(judge(&beside), Err(CloseRefusal::BelowAnchor), "another log of the same length");
        let marker = Close { epoch: EPOCH, tail: place(1, 9), anchor: 2, proof: CloseProof::Marker };
        assert_eq!(judge(&marker), Err(CloseRefusal::BelowAnchor));
    }

    #[test]
    fn a_close_that_was_prepared_before_the_last_anchor_is_none() {
        let good = close(place(1, 12), reports([(1, 12); 4]));
        for anchor in [0, 1, 3, u64::MAX] {
            let other = Close { anchor, ..good.clone() };
            assert_eq!(judge(&other), Err(CloseRefusal::OtherAnchor), "nobody looked into it for Anchor 2");
        }
        assert_eq!(judge(&good), Ok(()));
    }

    #[test]
    fn two_logs_at_the_best_place_are_a_lie_and_no_choice() {
        let mut words = reports([(1, 12); 4]);
        let other = Place { chain: Hash::of(b"another log"), ..place(1, 12) };
        words[1] = report(1, other);
        assert_eq!(judge(&close(place(1, 12), words.clone())), Err(CloseRefusal::Ambiguous));
        words[2] = report(2, place(2, 11));
        assert_eq!(judge(&close(place(2, 11), words)), Ok(()), "below the best it does not matter");
    }

    #[test]
    fn a_close_needs_its_own_open_segment() {
        let good = close(place(1, 12), reports([(1, 12); 4]));
        with_bench(|bench| {
            assert_eq!(bench.judge_close(None, &good), Err(CloseRefusal::NoSegment));
            let next = Segment { epoch: Epoch(4), ..segment() };
            assert_eq!(bench.judge_close(Some(&next), &good), Err(CloseRefusal::OtherEpoch));
            let mut last = segment();
            last.base.position = Position(u64::MAX - 5);
            assert_eq!(bench.judge_close(Some(&last), &good), Err(CloseRefusal::PositionsRunOut));
        });
        let empty = Close { epoch: EPOCH, tail: Place::default(), anchor: 0, proof: CloseProof::Marker };
        let mut fresh = segment();
        fresh.anchor = AnchorPoint::default();
        let judged = with_bench(|bench| bench.judge_close(Some(&fresh), &empty));
        assert_eq!(judged, Err(CloseRefusal::NotTheBest), "there is no Marker at the base");
    }

    #[test]
    fn the_reports_needed_are_q_among_all_and_meet_every_majority() {
        for n in 3..=31 {
            let quorum = Quorum::new(n, None).unwrap();
            assert_eq!(reports_needed(quorum, n, 0), quorum.q().min(n - 1), "n = {n}");
            for members in quorum.q()..=n {
                let needed = reports_needed(quorum, members, 0);
                let majority = members / 2 + 1;
                assert!(needed + majority > members && needed < members.max(2), "{members} of {n}");
                let lost = usize::from(quorum.f());
                assert!(needed + lost <= members, "{members} of {n} cannot end without {lost}");
                for gone in 0..=members {
                    let needed = reports_needed(quorum, members, gone);
                    assert!(needed + majority > members, "{gone} of {members} replaced");
                    let speak = members - gone;
                    assert!(needed <= speak || speak + majority <= members, "{gone} of {members} replaced");
                }
            }
        }
    }

    fn stop(anchors: &[u64]) -> Result<(), VoicesRefusal> {
        let suspects = (0..)
            .zip(anchors)
            .map(|(id, anchor)| {
                let said = Suspect { epoch: EPOCH, speaker: speaker(id), anchor: *anchor };
                Signed::new(said, CLUSTER, &key(id))
            })
            .collect();
        with_bench(|bench| bench.judge_stop(EPOCH, &StopCert { suspects }))
    }

    #[test]
    fn q_suspicions_of_one_time_stop_a_segment_and_f_plus_one_do_not() {
        assert_eq!(stop(&[7, 7, 8, 7]), Ok(()));
        assert_eq!(
            stop(&[7, 8, 9, 8]),
            Err(VoicesRefusal::Apart),
            "old complaints do not add up with new ones"
        );
        assert_eq!(stop(&[7, 7]), Err(VoicesRefusal::TooFew));
        assert_eq!(stop(&[7, 7, 7]), Err(VoicesRefusal::TooFew));
        assert_eq!(stop(&[]), Err(VoicesRefusal::TooFew));
    }

    #[test]
    fn a_word_about_sealing_is_no_word_about_suspicion() {
        let said = Suspect { epoch: EPOCH, speaker: speaker(0), anchor: 1 };
        let suspect = Signed::new(said, CLUSTER, &key(0));
        let sealed = Sealed { epoch: EPOCH, speaker: speaker(0), last: Place::default() };
        let (item, other) = (
            suspect.signature_item(CLUSTER, key(0).public_key()),
            Signed { said: sealed, signature: suspect.signature }
                .signature_item(CLUSTER, key(0).public_key()),
        );
        let crypto = key(100);
        assert!(crypto.verify(&item.0, &item.1, &item.2) && !crypto.verify(&other.0, &other.1, &other.2));
        assert!(vec![item] != vec![other]);
    }
}
