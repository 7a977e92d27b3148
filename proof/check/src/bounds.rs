//! Memory: no honest replica holds more slots ahead of what it has executed than the window allows, whatever its peers say.
//!
//! The bound is the run's word, in slots; what a replica held is noted by whoever drove it, each time it was more than ever before.

use crate::history::{ReplicaEvent, ReplicaJournal};
use crate::verdict::{Findings, Judge};

pub fn judge(replicas: &[ReplicaJournal], slots_max: u64) -> Findings {
    let mut findings = Findings::default();
    for journal in replicas.iter().filter(|journal| journal.honest) {
        let above = journal.events.iter().find_map(|stamped| match &stamped.event {
            ReplicaEvent::Holds { slots } if *slots > slots_max => Some((stamped.at_us, *slots)),
            _ => None,
        });
        if let Some((at_us, slots)) = above {
            let reason = format!("{} holds {slots} slots ahead, and {slots_max} are allowed", journal.name());
            findings.push(Judge::Bounds, reason, vec![format!("first at {at_us} us")]);
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn journal(honest: bool, held: &[u64]) -> ReplicaJournal {
        let mut journal = ReplicaJournal::new(1, 0, honest, true);
        for (at_us, slots) in (0..).zip(held) {
            journal.note(at_us, ReplicaEvent::Holds { slots: *slots });
        }
        journal
    }

    #[test]
    fn slots_within_the_bound_are_accepted() {
        assert!(judge(&[journal(true, &[1, 7, 16]), journal(true, &[])], 16).is_empty());
    }

    #[test]
    fn one_slot_too_many_is_told_once_with_its_time() {
        let findings = judge(&[journal(true, &[16, 17, 500])], 16);
        assert_eq!(findings.total(), 1);
        assert!(
            findings.has("replica 1 (incarnation 0) holds 17 slots ahead, and 16 are allowed"),
            "{findings}"
        );
    }

    #[test]
    fn a_liar_may_hold_what_it_likes() {
        assert!(judge(&[journal(false, &[1_000])], 16).is_empty());
    }
}
