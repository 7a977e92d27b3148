//! Decisions: replicas that have executed the same prefix of the root have decided the same about protocols: mode, policy,
//! calm, who leads first. What they decide is compared as text, wherever two of them stopped at one sequence.

use crate::history::{ReplicaEvent, ReplicaJournal};
use crate::verdict::{Findings, Judge};
use std::collections::HashMap;

pub fn judge(replicas: &[ReplicaJournal]) -> Findings {
    let mut findings = Findings::default();
    let mut first: HashMap<u64, (&ReplicaJournal, &str)> = HashMap::new();
    for journal in replicas.iter().filter(|journal| journal.honest) {
        for stamped in &journal.events {
            let ReplicaEvent::Decided { sequence, decision } = &stamped.event else { continue };
            let (other, known) = *first.entry(*sequence).or_insert((journal, decision));
            if known != decision {
                let evidence =
                    vec![format!("{}: {known}", other.name()), format!("{}: {decision}", journal.name())];
                findings.push(Judge::Decision, format!("two decisions at sequence {sequence}"), evidence);
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(second: (u64, &str), honest: bool) -> Findings {
        let mut replicas =
            vec![ReplicaJournal::new(0, 0, true, true), ReplicaJournal::new(1, 0, honest, true)];
        replicas[0].note(1, ReplicaEvent::Decided { sequence: 7, decision: "hybrid".into() });
        let (sequence, decision) = (second.0, second.1.to_string());
        replicas[1].note(1, ReplicaEvent::Decided { sequence, decision });
        judge(&replicas)
    }

    #[test]
    fn equal_prefixes_decide_alike() {
        assert!(judged((7, "hybrid"), true).is_empty());
        assert!(judged((8, "internet"), true).is_empty(), "another prefix");
        assert!(judged((7, "internet"), true).has("two decisions at sequence 7"));
        assert!(judged((7, "internet"), false).is_empty(), "a liar may decide what it likes");
    }
}
