//! Watches: the changes that a watch from any revision is served are the same at every replica, in one order, without a gap,
//! whichever protocol ordered them; and they are what acknowledged writes say they did.
//!
//! Read at the end, from the first revision that each replica has not forgotten.

use crate::history::{Change, ClientJournal, Command, Outcome, ReplicaEvent, ReplicaJournal};
use crate::operation::{Answer, KeyValue, Operation};
use crate::verdict::{Findings, Judge};
use std::collections::BTreeMap;

/// `clients`: those whose acknowledgements are beyond doubt. `unread`: keys under this prefix are written by clients that say
/// two things under one number; which of them came to pass is nobody's concern.
pub fn judge(clients: &[ClientJournal], replicas: &[ReplicaJournal], unread: Option<&[u8]>) -> Findings {
    let mut findings = Findings::default();
    let mut first: BTreeMap<u64, (&ReplicaJournal, &[Change])> = BTreeMap::new();
    let mut newest = 0;
    for journal in replicas.iter().filter(|journal| journal.honest) {
        for stamped in &journal.events {
            let ReplicaEvent::Changes { forgotten, revision, changes } = &stamped.event else { continue };
            newest = newest.max(*revision);
            let order = |change: &Change| (change.revision, change.sub);
            if let Some(pair) = changes.windows(2).find(|pair| order(&pair[0]) >= order(&pair[1])) {
                let reason = format!("{} tells revision {} out of order", journal.name(), pair[1].revision);
                findings.push(Judge::Watch, reason, vec![]);
            }
            let mut due = forgotten + 1;
            for group in changes.chunk_by(|a, b| a.revision == b.revision) {
                let at = group[0].revision;
                if at != due {
                    let reason = format!("{} tells revision {at} where {due} is due", journal.name());
                    findings.push(Judge::Watch, reason, vec![]);
                }
                due = at + 1;
                let (other, known) = *first.entry(at).or_insert((journal, group));
                if known != group {
                    let line = |journal: &ReplicaJournal, group: &[Change]| {
                        let told: Vec<String> = group.iter().map(describe).collect();
                        format!("{}: {}", journal.name(), told.join(", "))
                    };
                    let evidence = vec![line(other, known), line(journal, group)];
                    findings.push(Judge::Watch, format!("two changes of revision {at}"), evidence);
                }
            }
            if due != revision + 1 {
                let reason = format!("{} stands at {revision} and tells none from {due} on", journal.name());
                findings.push(Judge::Watch, reason, vec![]);
            }
        }
    }
    for command in clients.iter().filter(|journal| journal.honest).flat_map(|journal| &journal.commands) {
        let Outcome::Ok { reply, .. } = &command.outcome else { continue };
        let Some(revision) = reply.revision else { continue };
        let Some((journal, group)) = first.get(&revision) else { continue };
        for (key, value) in written(&command.operation, &reply.answer) {
            let is_told = |change: &Change| {
                let told = change.record.as_ref().map(|record| record.value.as_slice());
                change.key == key && told == value
            };
            let is_read = unread.is_none_or(|prefix| !key.starts_with(prefix));
            if is_read && !group.iter().any(is_told) {
                let told: Vec<String> = group.iter().map(describe).collect();
                let evidence = vec![line(command), format!("{}: {}", journal.name(), told.join(", "))];
                let reason = format!("revision {revision} is not told as {} was acknowledged", command.id);
                findings.push(Judge::Watch, reason, evidence);
                break;
            }
        }
    }
    findings
}

/// The keys that an acknowledged operation says it wrote; None for one it deleted. Of ranges it only tells those it returned.
fn written<'a>(operation: &'a Operation, answer: &'a Answer) -> BTreeMap<&'a [u8], Option<&'a [u8]>> {
    let mut keys = BTreeMap::new();
    match (operation, answer) {
        (Operation::Put { key, value, .. }, Answer::Put { .. }) => {
            keys.insert(key.as_slice(), Some(value.as_slice()));
        }
        (Operation::DeleteRange { .. }, Answer::DeleteRange { prev, .. }) => {
            keys.extend(prev.iter().map(|KeyValue { key, .. }| (key.as_slice(), None)));
        }
        (Operation::Txn { then, otherwise, .. }, Answer::Txn { succeeded, answers }) => {
            let branch = if *succeeded { then } else { otherwise };
            for (operation, answer) in branch.iter().zip(answers) {
                keys.extend(written(operation, answer));
            }
        }
        _ => {}
    }
    keys
}

fn describe(change: &Change) -> String {
    let key = String::from_utf8_lossy(&change.key);
    match &change.record {
        Some(record) => format!("{key} = {} B, version {}", record.value.len(), record.version),
        None => format!("{key} deleted"),
    }
}

fn line(command: &Command) -> String {
    format!("command {}: {}", command.id, command.operation)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{CommandId, Label, Reply};

    fn change(revision: u64, value: &str) -> Change {
        let (key, value) = (b"k".to_vec(), value.as_bytes().to_vec());
        let record = KeyValue {
            key: key.clone(),
            value,
            create_revision: 2,
            mod_revision: revision,
            version: revision - 1,
            lease: 0,
        };
        Change { revision, sub: 0, key, record: Some(record) }
    }

    /// Two replicas that tell revisions 2 to 5, one of which has forgotten the first two; a client that wrote the fourth.
    fn history() -> (ClientJournal, Vec<ReplicaJournal>) {
        let mut replicas: Vec<_> = (0..2).map(|id| ReplicaJournal::new(id, 0, true, true)).collect();
        for (journal, forgotten) in replicas.iter_mut().zip([1, 3]) {
            let changes = (forgotten + 1..=5).map(|at| change(at, &format!("v{at}"))).collect();
            journal.note(9, ReplicaEvent::Changes { forgotten, revision: 5, changes });
        }
        let mut client = ClientJournal::new(1);
        let place = client.invoked(CommandId { session: 1, seq: 1 }, 1, Operation::put("k", "v4"));
        client.returned(place, 2, Reply::new(4, Answer::Put { prev: None }), Label::Crash);
        (client, replicas)
    }

    fn refused(spoil: impl FnOnce(&mut u64, &mut Vec<Change>), reason: &str) {
        let (client, mut replicas) = history();
        let ReplicaEvent::Changes { revision, changes, .. } = &mut replicas[0].events[0].event else {
            panic!("it was noted")
        };
        spoil(revision, changes);
        let found = judge(&[client], &replicas, None);
        assert!(found.has(reason), "expected {reason:?}, got: {found}");
    }

    #[test]
    fn one_history_is_accepted_though_some_have_forgotten_its_beginning() {
        let (client, replicas) = history();
        let found = judge(&[client], &replicas, None);
        assert!(found.is_empty(), "{found}");
    }

    #[test]
    fn another_order_a_gap_and_another_change_are_refused() {
        refused(|_, changes| changes.swap(1, 2), "out of order");
        refused(|_, changes| drop(changes.remove(1)), "tells revision 4 where 3 is due");
        refused(|revision, _| *revision = 6, "tells none from 6 on");
        refused(|_, changes| changes[3] = change(5, "other"), "two changes of revision 5");
    }

    #[test]
    fn a_change_that_is_not_what_was_acknowledged_is_refused() {
        let (mut client, replicas) = history();
        client.commands[0].operation = Operation::put("k", "something else");
        let reason = "revision 4 is not told as 1/1 was acknowledged";
        assert!(judge(std::slice::from_ref(&client), &replicas, None).has(reason));
        assert!(judge(&[client], &replicas, Some(b"k")).is_empty(), "nobody reads it");
    }
}
