//! Digest equality: honest replicas that checkpoint at the same place hold the same state, also across boots and incarnations.

use crate::history::{ReplicaEvent, ReplicaJournal};
use crate::text::short;
use crate::verdict::{Findings, Judge};
use std::collections::HashMap;

pub fn judge(replicas: &[ReplicaJournal]) -> Findings {
    let mut findings = Findings::default();
    let mut seen: HashMap<(u64, u64), (&ReplicaJournal, [u8; 32])> = HashMap::new();
    for journal in replicas.iter().filter(|journal| journal.honest) {
        for stamped in &journal.events {
            let ReplicaEvent::Checkpoint { epoch, sequence, state } = &stamped.event else { continue };
            let (other, first) = *seen.entry((*epoch, *sequence)).or_insert((journal, *state));
            if first != *state {
                let reason = format!("two states at epoch {epoch}, sequence {sequence}");
                let line =
                    |journal: &ReplicaJournal, state| format!("{}: state {}", journal.name(), short(state));
                findings.push(Judge::Digest, reason, vec![line(other, &first), line(journal, state)]);
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    fn flip(journal: &mut ReplicaJournal, at: u64) {
        let states = journal.events.iter_mut().filter_map(|stamped| match &mut stamped.event {
            ReplicaEvent::Checkpoint { sequence, state, .. } if *sequence == at => Some(state),
            _ => None,
        });
        states.last().unwrap()[31] ^= 1;
    }

    #[test]
    fn equal_states_are_accepted() {
        let history = sample::cluster();
        assert!(judge(&history.replicas).is_empty());
    }

    #[test]
    fn one_flipped_bit_of_a_state_is_refused_unless_its_owner_lies_anyway() {
        let mut replicas = sample::cluster().replicas;
        flip(&mut replicas[2], 8);
        assert!(judge(&replicas).has("two states at epoch 0, sequence"));
        replicas[2].honest = false;
        assert!(judge(&replicas).is_empty());
    }

    #[test]
    fn a_replica_that_contradicts_its_own_checkpoint_after_a_restart_is_refused() {
        let mut replicas = sample::cluster().replicas;
        replicas.retain(|journal| journal.replica == 1);
        assert!(judge(&replicas).is_empty());
        flip(&mut replicas[0], 4);
        assert!(judge(&replicas).has("two states"));
    }
}
