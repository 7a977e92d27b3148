//! Labels: an acknowledgement may call itself `byzantine` only where at least one liar is tolerated and a certificate of the
//! root covers the position at which the command ran: a batch of the root, a Close, or an Anchor that has been executed.
//!
//! That certificate is looked for among what honest replicas had executed when the client was told; one of the f + 1 that
//! told it is honest. Labels of commands that no honest replica's journal holds, reads among them, are not judged.

use crate::history::{ClientJournal, CommandId, Label, Outcome, ReplicaEvent, ReplicaJournal};
use crate::one_log::Branch;
use crate::verdict::{Findings, Judge};
use std::collections::{HashMap, HashSet};

/// `f` is the number of liars the cluster's policy tolerated during the history.
pub fn judge(clients: &[ClientJournal], f: u32) -> Findings {
    let mut findings = Findings::default();
    if f >= 1 {
        return findings;
    }
    for journal in clients.iter().filter(|journal| journal.honest) {
        for command in &journal.commands {
            if let Outcome::Ok { label: Label::Byzantine, returned_at_us, .. } = &command.outcome {
                let reason = format!("command {} was labelled byzantine with f = 0", command.id);
                let evidence = format!("client {}, acknowledged at {returned_at_us} us", journal.client);
                findings.push(Judge::Label, reason, vec![evidence]);
            }
        }
    }
    findings
}

/// What certificates of the root cover, as honest replicas came to know it: (when, up to which position), both ascending.
fn covered(replicas: &[ReplicaJournal]) -> Vec<(u64, u64)> {
    let mut known: Vec<(u64, u64)> = replicas
        .iter()
        .filter(|journal| journal.honest)
        .flat_map(|journal| &journal.events)
        .filter_map(|stamped| match stamped.event {
            ReplicaEvent::Covered { position } => Some((stamped.at_us, position)),
            _ => None,
        })
        .collect();
    known.sort_unstable();
    let mut highest = None;
    known.retain(|(_, position)| {
        let higher = highest.is_none_or(|highest| *position > highest);
        if higher {
            highest = Some(*position);
        }
        higher
    });
    known
}

/// Whether the label is true. `discarded`: entries that are no part of the log. Journals that do not say what is covered are
/// not judged, nor is what f + 1 replicas may have said that are none of the honest ones.
pub fn judge_truth(
    clients: &[ClientJournal],
    replicas: &[ReplicaJournal],
    discarded: &HashSet<Branch>,
    f: u32,
) -> Findings {
    let mut findings = Findings::default();
    let covered = covered(replicas);
    let liars: HashSet<u32> =
        replicas.iter().filter(|journal| !journal.honest).map(|journal| journal.replica).collect();
    if covered.is_empty() || liars.len() > f as usize {
        return findings;
    }
    let discards = |epoch: u64, index: u64, chain| discarded.contains(&(epoch, index, chain));
    let mut places: HashMap<CommandId, u64> = HashMap::new();
    for journal in replicas.iter().filter(|journal| journal.honest) {
        for (position, commands) in journal.ran_unless(discards) {
            for command in commands {
                let place = places.entry(command.id).or_insert(position);
                *place = position.min(*place);
            }
        }
    }
    for journal in clients.iter().filter(|journal| journal.honest) {
        for command in &journal.commands {
            let Outcome::Ok { label: Label::Byzantine, returned_at_us, .. } = &command.outcome else {
                continue;
            };
            let Some(position) = places.get(&command.id) else { continue };
            let first = covered.partition_point(|(_, upto)| upto < position);
            let since = covered.get(first).map(|(at_us, _)| *at_us);
            if since.is_none_or(|at_us| at_us > *returned_at_us) {
                let reason = format!(
                    "command {} was labelled byzantine before a certificate of the root covered it",
                    command.id
                );
                let since = since.map_or("never".to_string(), |at_us| format!("at {at_us} us"));
                let evidence = format!(
                    "client {}, position {position}, acknowledged at {returned_at_us} us, covered {since}",
                    journal.client
                );
                findings.push(Judge::Label, reason, vec![evidence]);
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    #[test]
    fn the_label_byzantine_needs_a_tolerated_liar() {
        let mut clients = sample::cluster().clients;
        assert!(judge(&clients, 1).is_empty());
        assert!(judge(&clients, 0).has("labelled byzantine with f = 0"));
        clients[0].honest = false;
        assert!(judge(&clients, 0).is_empty(), "a liar may claim anything");
        clients[0].honest = true;
        for command in &mut clients[0].commands {
            if let Outcome::Ok { label, .. } = &mut command.outcome {
                *label = Label::Crash;
            }
        }
        assert!(judge(&clients, 0).is_empty());
    }

    /// The sample's commands, all `byzantine`, with the certificates that cover them known `late_us` after they ran.
    fn truth(late_us: u64, label: Label) -> Findings {
        let mut history = sample::cluster();
        for journal in &mut history.replicas {
            for stamped in journal.events.clone() {
                if let ReplicaEvent::Executed(entry) = &stamped.event {
                    journal.note(stamped.at_us + late_us, ReplicaEvent::Covered { position: entry.position });
                }
            }
        }
        for command in history.clients.iter_mut().flat_map(|journal| &mut journal.commands) {
            if let Outcome::Ok { label: own, .. } = &mut command.outcome {
                *own = label;
            }
        }
        judge_truth(&history.clients, &history.replicas, &HashSet::new(), 1)
    }

    #[test]
    fn the_label_byzantine_needs_a_certificate_that_covers_the_command() {
        let found = truth(0, Label::Byzantine);
        assert!(found.is_empty(), "{found}");
        assert!(truth(1 << 40, Label::Byzantine).has("before a certificate of the root covered it"));
        assert!(truth(1 << 40, Label::Crash).is_empty(), "crash promises none");
        let history = sample::cluster();
        let found = judge_truth(&history.clients, &history.replicas, &HashSet::new(), 1);
        assert!(found.is_empty(), "nothing is known of certificates");
    }
}
