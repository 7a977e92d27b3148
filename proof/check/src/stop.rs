//! Stop: a segment that nobody ordered to end is closed only when a quorum complained of it. Liars complain of anything, so
//! what can be counted is the others: at least the quorum less the liars.
//!
//! Overload is no fault, and complaints of liars alone are not enough: where nothing failed and nobody lied otherwise, no
//! segment is stopped at all.
//!
//! A complaint counts from the moment it was decided on, whether it reached anybody or not; what they were about is not
//! judged.

use crate::history::{ReplicaEvent, ReplicaJournal};
use crate::verdict::{Findings, Judge};
use std::collections::{BTreeMap, BTreeSet};

/// `quorum`: voices that stop a segment. `faultless`: nothing failed during the history, and liars did no more than complain.
pub fn judge(replicas: &[ReplicaJournal], quorum: u32, faultless: bool) -> Findings {
    let mut findings = Findings::default();
    let liars: BTreeSet<u32> =
        replicas.iter().filter(|journal| !journal.honest).map(|journal| journal.replica).collect();
    let needed = (quorum as usize).saturating_sub(liars.len());
    let mut complained: BTreeMap<u64, BTreeSet<u32>> = BTreeMap::new();
    let mut forced: BTreeMap<u64, &ReplicaJournal> = BTreeMap::new();
    for journal in replicas.iter().filter(|journal| journal.honest) {
        for stamped in &journal.events {
            match &stamped.event {
                ReplicaEvent::Complained { epoch } => {
                    complained.entry(*epoch).or_default().insert(journal.replica);
                }
                ReplicaEvent::Closed(close) if close.forced => {
                    forced.entry(close.epoch).or_insert(journal);
                }
                _ => {}
            }
        }
    }
    for (epoch, journal) in forced {
        if faultless {
            let evidence = vec![format!("{} closed it", journal.name())];
            findings.push(Judge::Stop, format!("epoch {epoch} was stopped without any fault"), evidence);
        }
        let voices = complained.get(&epoch).cloned().unwrap_or_default();
        if voices.len() < needed {
            let reason = format!(
                "epoch {epoch} was stopped by the complaints of {} honest replicas, and {needed} are needed",
                voices.len()
            );
            let evidence = vec![format!("{} closed it; complained: {voices:?}", journal.name())];
            findings.push(Judge::Stop, reason, evidence);
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Closed;

    /// Four replicas, the last a liar; the first `complaining` complain, and the first closes the segment.
    fn judged(complaining: u32, forced: bool) -> Findings {
        judged_in(complaining, forced, false)
    }

    fn judged_in(complaining: u32, forced: bool, faultless: bool) -> Findings {
        let mut replicas: Vec<ReplicaJournal> =
            (0..4).map(|id| ReplicaJournal::new(id, 0, id < 3, true)).collect();
        for journal in replicas.iter_mut().filter(|journal| journal.replica < complaining || !journal.honest)
        {
            journal.note(1, ReplicaEvent::Complained { epoch: 1 });
        }
        let closed =
            Closed { epoch: 1, sequence: 9, tail: 4, chain: None, marker: false, forced, rolled_back: 0 };
        replicas[0].note(2, ReplicaEvent::Closed(closed));
        judge(&replicas, 3, faultless)
    }

    #[test]
    fn a_stop_needs_a_quorum_less_the_liars() {
        assert!(judged(2, true).is_empty());
        assert!(judged(1, true).has("stopped by the complaints of 1 honest replicas, and 2 are needed"));
    }

    #[test]
    fn without_a_fault_nothing_is_stopped() {
        assert!(judged_in(2, true, true).has("epoch 1 was stopped without any fault"));
        assert!(judged_in(0, false, true).is_empty());
    }

    #[test]
    fn an_ordered_end_needs_no_complaint() {
        assert!(judged(0, false).is_empty());
    }
}
