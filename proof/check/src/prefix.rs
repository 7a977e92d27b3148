//! Prefix agreement: honest replicas executed the same entries at the same places.
//!
//! Compared are, for each (epoch, sequence): the entry's digest, its place in the virtual log, the commands it ran and their results;
//! and for each position of the virtual log, the entry that stands there. A replica is also compared with itself across boots, and
//! within one boot its sequence grows one by one: execution that jumps without a snapshot has skipped something.

use crate::history::{Executed, ReplicaEvent, ReplicaJournal};
use crate::text::short;
use crate::verdict::{Findings, Judge};
use std::collections::HashMap;

pub fn judge(replicas: &[ReplicaJournal]) -> Findings {
    let mut findings = Findings::default();
    let mut at_sequence: HashMap<(u64, u64), (&ReplicaJournal, &Executed)> = HashMap::new();
    let mut at_position: HashMap<u64, (&ReplicaJournal, &Executed)> = HashMap::new();
    for journal in replicas.iter().filter(|journal| journal.honest) {
        judge_order(journal, &mut findings);
        for entry in journal.executed() {
            let here = (entry.epoch, entry.sequence);
            let (other, first) = *at_sequence.entry(here).or_insert((journal, entry));
            if let Some(what) = difference(first, entry) {
                let reason = format!("two {what} at epoch {}, sequence {}", entry.epoch, entry.sequence);
                findings.push(Judge::Prefix, reason, vec![line(other, first), line(journal, entry)]);
            } else if !entry.commands.is_empty() {
                let (other, first) = *at_position.entry(entry.position).or_insert((journal, entry));
                if (first.epoch, first.sequence) != here {
                    let reason = format!("two entries at position {}", entry.position);
                    findings.push(Judge::Prefix, reason, vec![line(other, first), line(journal, entry)]);
                }
            }
        }
    }
    findings
}

fn judge_order(journal: &ReplicaJournal, findings: &mut Findings) {
    let mut last: Option<(u64, u64)> = None;
    // A snapshot of a segment's state may leave the root where it was, and several may come before the root goes on.
    let mut or_last: Vec<(u64, u64)> = Vec::new();
    let mut position = 0;
    for stamped in &journal.events {
        match &stamped.event {
            ReplicaEvent::Boot => {
                (last, position) = (None, 0);
                or_last.clear();
            }
            ReplicaEvent::Restored { epoch, sequence } => {
                or_last.extend(last);
                (last, position) = (Some((*epoch, *sequence)), 0);
            }
            ReplicaEvent::Executed(entry) => {
                if let Some((epoch, sequence)) = last {
                    let after = |(epoch, sequence): (u64, u64)| {
                        entry.epoch == epoch && Some(entry.sequence) == sequence.checked_add(1)
                    };
                    let follows = after((epoch, sequence)) || or_last.iter().any(|stood| after(*stood));
                    if !(follows || entry.epoch > epoch) {
                        let reason = format!(
                            "{} executed sequence {} of epoch {} right after sequence {sequence} of epoch {epoch}",
                            journal.name(),
                            entry.sequence,
                            entry.epoch
                        );
                        findings.push(Judge::Prefix, reason, vec![line(journal, entry)]);
                    }
                }
                if entry.position < position {
                    let reason = format!("{} went back from position {position}", journal.name());
                    findings.push(Judge::Prefix, reason, vec![line(journal, entry)]);
                }
                last = Some((entry.epoch, entry.sequence));
                or_last.clear();
                position = entry.position;
            }
            ReplicaEvent::Admitted
            | ReplicaEvent::Installs { .. }
            | ReplicaEvent::Checkpoint { .. }
            | ReplicaEvent::Voted(_)
            | ReplicaEvent::Holds { .. }
            | ReplicaEvent::Opened { .. }
            | ReplicaEvent::Knows { .. }
            | ReplicaEvent::Covered { .. }
            | ReplicaEvent::Decided { .. }
            | ReplicaEvent::Changes { .. }
            | ReplicaEvent::SegmentExecuted { .. }
            | ReplicaEvent::DeferredExecuted { .. }
            | ReplicaEvent::Anchored { .. }
            | ReplicaEvent::Sealing { .. }
            | ReplicaEvent::Sealed { .. }
            | ReplicaEvent::Spoke { .. }
            | ReplicaEvent::Complained { .. }
            | ReplicaEvent::Closed(_)
            | ReplicaEvent::Leased(_)
            | ReplicaEvent::HoldsLeases { .. }
            | ReplicaEvent::Stands { .. } => {}
        }
    }
}

fn difference(a: &Executed, b: &Executed) -> Option<&'static str> {
    if a.digest != b.digest {
        Some("entries")
    } else if a.position != b.position {
        Some("positions")
    } else if a.commands.iter().map(|c| c.id).ne(b.commands.iter().map(|c| c.id)) {
        Some("lists of executed commands")
    } else if a.commands != b.commands {
        Some("results")
    } else {
        None
    }
}

fn line(journal: &ReplicaJournal, entry: &Executed) -> String {
    let commands: Vec<String> =
        entry.commands.iter().take(8).map(|c| format!("{}={}", c.id, short(&c.result))).collect();
    format!(
        "{}: epoch {} sequence {} position {} entry {} commands [{}]",
        journal.name(),
        entry.epoch,
        entry.sequence,
        entry.position,
        short(&entry.digest),
        commands.join(" ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    fn refused(spoil: impl FnOnce(&mut Vec<ReplicaJournal>), reason: &str) {
        let mut replicas = sample::cluster().replicas;
        spoil(&mut replicas);
        let findings = judge(&replicas);
        assert!(findings.has(reason), "expected {reason:?}, got: {findings}");
    }

    #[test]
    fn equal_logs_with_a_restart_and_a_state_transfer_are_accepted() {
        let findings = judge(&sample::cluster().replicas);
        assert!(findings.is_empty(), "{findings}");
    }

    #[test]
    fn another_entry_at_one_sequence_is_refused() {
        refused(
            |replicas| sample::entry(&mut replicas[1], 3).digest[0] ^= 1,
            "two entries at epoch 0, sequence 3",
        );
    }

    #[test]
    fn another_result_of_the_same_entry_is_refused() {
        refused(|replicas| sample::entry(&mut replicas[2], 3).commands[0].result[0] ^= 1, "two results at");
    }

    #[test]
    fn a_command_skipped_by_one_replica_is_refused() {
        refused(
            |replicas| sample::entry(&mut replicas[2], 3).commands.truncate(1),
            "two lists of executed commands",
        );
    }

    #[test]
    fn another_position_of_the_same_entry_is_refused() {
        refused(|replicas| sample::entry(&mut replicas[2], 6).position += 1, "two positions at");
    }

    #[test]
    fn one_position_cannot_hold_two_entries_even_of_different_sequences() {
        let move_all = |replicas: &mut Vec<ReplicaJournal>| {
            for replica in replicas {
                sample::entries(replica, 4).for_each(|entry| entry.position = 3);
            }
        };
        refused(move_all, "two entries at position");
    }

    #[test]
    fn a_skipped_sequence_is_refused() {
        let skip = |replicas: &mut Vec<ReplicaJournal>| {
            let is_third =
                |event: &ReplicaEvent| matches!(event, ReplicaEvent::Executed(entry) if entry.sequence == 3);
            replicas[0].events.retain(|stamped| !is_third(&stamped.event));
        };
        refused(skip, "executed sequence 4 of epoch 0 right after sequence 2");
    }

    #[test]
    fn execution_that_steps_back_without_a_boot_is_refused() {
        let forget_boots = |replicas: &mut Vec<ReplicaJournal>| {
            replicas[1].events.retain(|stamped| stamped.event != ReplicaEvent::Boot);
        };
        refused(forget_boots, "right after");
    }

    #[test]
    fn a_liar_is_not_held_to_account() {
        let mut replicas = sample::cluster().replicas;
        sample::entry(&mut replicas[1], 3).digest[0] ^= 1;
        replicas[1].honest = false;
        assert!(judge(&replicas).is_empty());
    }
}
