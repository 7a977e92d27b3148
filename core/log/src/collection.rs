//! What the root's primary makes of the sealed logs that it hears of: which reports it puts into a Close, and whose it leaves
//! out. Backups collect as well, for the next view. A pure function of the words and of which logs can be shown; that its
//! Close holds is judged by `close`, by the same rules for everybody.
//!
//! A liar among the sealers can name a log that nobody has, one that lacks the last Anchor, or another one at an honest log's
//! place. `q` honest reports remain without its word, so it costs time and nothing else.

use crate::close::{Bench, Close, CloseProof, choose, worth};
use crate::place::Place;
use crate::seal::{Sealed, Signed, Speaker};
use crate::segment::Segment;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use dwcp_base::{Mutant, Mutants, ReplicaId};

/// The reports about one epoch, the first of each replica. Bounded by the members, whoever inserts sees to that.
#[derive(Clone, Debug, Default)]
pub struct Collection {
    reports: BTreeMap<ReplicaId, Signed<Sealed>>,
    /// Those whose log nobody shows: left out as long as enough others remain.
    doubted: BTreeSet<ReplicaId>,
}

impl Collection {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.reports.is_empty()
    }

    #[must_use]
    pub fn heard(&self, from: ReplicaId) -> bool {
        self.reports.contains_key(&from)
    }

    /// Takes a report whose signature holds. Another of the same replica is not taken: a log is sealed once.
    pub fn insert(&mut self, report: Signed<Sealed>) {
        self.reports.entry(report.said.speaker.id).or_insert(report);
    }

    /// Who says that its log ends at this place, or at any.
    #[must_use]
    pub fn claimants(&self, tail: Option<Place>) -> Vec<ReplicaId> {
        let says = |report: &Signed<Sealed>| tail.is_none_or(|tail| report.said.last == tail);
        self.reports.iter().filter(|(_, report)| says(report)).map(|(id, _)| *id).collect()
    }

    /// The first report, by replica, whose speaker is wanted.
    pub fn find(&self, wanted: impl Fn(Speaker) -> bool) -> Option<Signed<Sealed>> {
        self.reports.values().find(|report| wanted(report.said.speaker)).copied()
    }

    /// Whether all reports are `needed` at least, and this place is the best of them.
    #[must_use]
    pub fn chooses(&self, tail: &Place, needed: usize, mutants: Mutants) -> bool {
        let reports: Vec<Signed<Sealed>> = self.reports.values().copied().collect();
        reports.len() >= needed && choose(&reports, mutants) == Ok(Some(*tail))
    }

    /// The Close that these reports make. `is_shown` says whether a log that ends there, and holds the last Anchor, is here;
    /// of the best places one that is shown is taken before others. The tail of what is returned need not be shown: it is then
    /// to be fetched, and doubted when nobody has it.
    pub fn close(
        &self,
        bench: &Bench<'_>,
        segment: &Segment,
        is_shown: impl Fn(&Place) -> bool,
    ) -> Option<Close> {
        let needed = bench.reports_needed(segment);
        let undoubted = self.reports.iter().filter(|(id, _)| !self.doubted.contains(id));
        let mut reports: Vec<Signed<Sealed>> = undoubted.map(|(_, report)| *report).collect();
        if reports.len() < needed {
            reports = self.reports.values().copied().collect();
        }
        let mutants = bench.mutants;
        while reports.len() >= needed {
            let best = reports.iter().map(|report| worth(&report.said.last, mutants)).max()?;
            let at_best = |report: &Signed<Sealed>| worth(&report.said.last, mutants) == best;
            let holds_anchor =
                |place: &Place| segment.may_hold_anchor(place) || mutants.on(Mutant::CloseBelowAnchor);
            let places = reports.iter().filter(|report| at_best(report)).map(|report| report.said.last);
            let mut places: Vec<Place> = places.filter(holds_anchor).collect();
            // An honest log that is the best of q holds what q anchored, and two honest logs do not differ at one place:
            // whoever says otherwise is left out while enough others remain.
            places.sort_by_key(|place| !is_shown(place));
            for tail in places {
                let is_kept = |report: &&Signed<Sealed>| !at_best(report) || report.said.last == tail;
                let kept: Vec<Signed<Sealed>> = reports.iter().filter(is_kept).copied().collect();
                if kept.len() >= needed {
                    let anchor = segment.anchor.number;
                    let proof = CloseProof::Reports(kept);
                    return Some(Close { epoch: segment.epoch, tail, anchor, proof });
                }
            }
            reports.retain(|report| !at_best(report));
        }
        None
    }

    /// Nobody showed the log that ends there: those who say that theirs does are left out, if enough others remain;
    /// otherwise all are heard anew.
    pub fn doubt(&mut self, tail: &Place, needed: usize) {
        self.doubted.extend(self.claimants(Some(*tail)));
        if self.reports.len() - self.doubted.len() < needed {
            self.doubted.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::close::tests::{place, report, segment, with_bench};
    use dwcp_base::Hash;

    /// What comes of these ends, of five members of which one may lie: four reports are needed, and the last Anchor is at
    /// (1, 10).
    fn collection(ends: &[Place]) -> Collection {
        let mut collection = Collection::new();
        (0..).zip(ends).for_each(|(id, end)| collection.insert(report(id, *end)));
        collection
    }

    fn tail_of(collection: &Collection, shown: impl Fn(&Place) -> bool) -> Option<Place> {
        with_bench(|bench| {
            let close = collection.close(bench, &segment(), shown)?;
            assert_eq!(bench.judge_close(Some(&segment()), &close), Ok(()), "what is collected must hold");
            Some(close.tail)
        })
    }

    #[test]
    fn too_few_reports_make_no_close_and_one_replica_is_one_report() {
        let mut few = collection(&[place(1, 12); 3]);
        assert_eq!(tail_of(&few, |_| true), None);
        few.insert(report(2, place(1, 13)));
        assert_eq!(tail_of(&few, |_| true), None);
        few.insert(report(3, place(1, 13)));
        assert_eq!(tail_of(&few, |_| true), Some(place(1, 13)));
    }

    #[test]
    fn a_log_that_nobody_shows_is_left_out_once_it_is_doubted() {
        let phantom = place(9, 90);
        let mut ends = collection(&[place(1, 12), place(1, 12), phantom, place(1, 11), place(1, 12)]);
        let shown = |place: &Place| *place != phantom;
        assert_eq!(tail_of(&ends, shown), Some(phantom), "it may be an honest one, and is to be fetched");
        ends.doubt(&phantom, 4);
        assert_eq!(tail_of(&ends, shown), Some(place(1, 12)));
        let mut four = collection(&[place(1, 12), place(1, 12), phantom, place(1, 11)]);
        four.doubt(&phantom, 4);
        assert_eq!(tail_of(&four, shown), Some(phantom), "without it there are too few");
    }

    #[test]
    fn of_two_logs_at_one_place_the_one_that_is_shown_is_taken() {
        let other = Place { chain: Hash::of(b"another log"), ..place(1, 12) };
        let ends = collection(&[other, place(1, 12), place(1, 12), place(1, 12), place(1, 11)]);
        assert_eq!(tail_of(&ends, |shown| *shown == place(1, 12)), Some(place(1, 12)));
        assert_eq!(tail_of(&ends, |_| false), Some(place(1, 12)), "with the other one there are too few");
        let others = collection(&[other, place(1, 12), place(1, 11), place(1, 11), place(1, 11)]);
        assert_eq!(tail_of(&others, |_| false), Some(other), "one of them is to be fetched");
    }

    #[test]
    fn a_log_that_cannot_hold_the_last_anchor_is_left_out() {
        let beside = place(2, 10);
        let ends = collection(&[beside, place(1, 12), place(1, 12), place(1, 11), place(1, 10)]);
        assert_eq!(tail_of(&ends, |_| true), Some(place(1, 12)));
        let four = collection(&[beside, place(1, 12), place(1, 12), place(1, 11)]);
        assert_eq!(tail_of(&four, |_| true), None);
    }
}
