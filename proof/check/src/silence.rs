//! Silence: a member says nothing that binds it in a segment before it has executed the segment's Open, nor after it has
//! decided to seal it, restarts or not.
//!
//! Words may leave later than they were decided on, because they wait for a disk; so within a boot the order of decisions
//! counts, and across boots what was durable.

use crate::history::{ReplicaEvent, ReplicaJournal};
use crate::verdict::{Findings, Judge};
use std::collections::{HashMap, HashSet};

pub fn judge(replicas: &[ReplicaJournal]) -> Findings {
    let mut findings = Findings::default();
    replicas.iter().filter(|journal| journal.honest).for_each(|journal| judge_one(journal, &mut findings));
    findings
}

fn judge_one(journal: &ReplicaJournal, findings: &mut Findings) {
    let mut known = 0;
    let mut sealing: HashMap<u64, u64> = HashMap::new();
    let mut sealed: HashSet<u64> = HashSet::new();
    let mut sealed_before_boot: HashSet<u64> = HashSet::new();
    for stamped in &journal.events {
        match &stamped.event {
            ReplicaEvent::Opened { epoch, .. } | ReplicaEvent::Knows { epoch } => known = known.max(*epoch),
            ReplicaEvent::Sealing { epoch, order } => {
                sealing.entry(*epoch).or_insert(*order);
            }
            ReplicaEvent::Sealed { epoch } => {
                sealed.insert(*epoch);
            }
            ReplicaEvent::Boot => {
                sealing.clear();
                sealed_before_boot.clone_from(&sealed);
            }
            ReplicaEvent::Spoke { epoch, word, order } => {
                let when = if *epoch > known {
                    "before it executed its Open"
                } else if sealed_before_boot.contains(epoch) {
                    "though it had sealed it before it was restarted"
                } else if sealing.get(epoch).is_some_and(|sealed| sealed < order) {
                    "after it had sealed it"
                } else {
                    continue;
                };
                let reason = format!("{} spoke ({word:?}) in epoch {epoch} {when}", journal.name());
                findings.push(Judge::Silence, reason, vec![format!("at {} us", stamped.at_us)]);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Word;

    fn judged(events: Vec<ReplicaEvent>) -> Findings {
        let mut journal = ReplicaJournal::new(0, 0, true, true);
        events.into_iter().zip(1..).for_each(|(event, at_us)| journal.note(at_us, event));
        judge(&[journal])
    }

    fn spoke(epoch: u64, order: u64) -> ReplicaEvent {
        ReplicaEvent::Spoke { epoch, word: Word::Ack, order }
    }

    const OPENED: ReplicaEvent = ReplicaEvent::Opened { epoch: 1, sequence: 4, base: 10 };
    const SEALING: ReplicaEvent = ReplicaEvent::Sealing { epoch: 1, order: 5 };

    #[test]
    fn words_between_open_and_seal_are_accepted_though_they_leave_later() {
        assert!(judged(vec![OPENED, spoke(1, 2), SEALING, spoke(1, 4)]).is_empty());
    }

    #[test]
    fn words_before_the_open_and_after_the_seal_are_refused() {
        assert!(judged(vec![spoke(1, 2)]).has("before it executed its Open"));
        assert!(judged(vec![OPENED, spoke(2, 2)]).has("in epoch 2 before"));
        assert!(judged(vec![OPENED, SEALING, spoke(1, 6)]).has("after it had sealed it"));
    }

    #[test]
    fn a_seal_binds_the_next_boot_only_once_it_was_durable() {
        let again = |sealed: Vec<ReplicaEvent>| {
            let mut events = vec![OPENED, SEALING];
            events.extend(sealed);
            events.extend([ReplicaEvent::Boot, spoke(1, 1)]);
            judged(events)
        };
        assert!(again(vec![]).is_empty());
        assert!(again(vec![ReplicaEvent::Sealed { epoch: 1 }]).has("before it was restarted"));
    }
}
