//! Contradictions between acknowledged replies alone, which no call of unknown outcome can explain.
//!
//! A reply that shows a record as of some revision says that nobody changed the key since the record's own revision, and that the
//! writer of that revision put exactly this. An acknowledged put or delete of that key in between, or another writer there, refutes
//! it without any search. What this misses `fill` still finds; but on a busy key with many unknown outcomes it may take for ever there.

use super::{Order, Placed};
use crate::operation::{Answer, Interval, Operation};
use crate::text::show;
use crate::verdict::Verdict;
use std::collections::{BTreeMap, HashMap};

/// What a writer certainly left under a key: value and lease, or None where it deleted it.
type Left<'a> = Option<(&'a [u8], u64)>;

pub(super) fn find(order: &Order<'_>) -> Option<Verdict> {
    let mut changes: HashMap<&[u8], Vec<(u64, Left<'_>)>> = HashMap::new();
    for (revision, writer) in &order.writers {
        for (key, left) in effects(&writer.call.command.operation, &writer.reply.answer) {
            changes.entry(key).or_default().push((*revision, left));
        }
    }
    let mut records = Vec::new();
    for placed in order.writers.values().chain(order.readers.values().flatten()) {
        placed.reply.answer.records(&placed.call.command.operation, &mut records);
        // Inside a writer's reply a record may show the state before the writer.
        let latest = placed.revision - u64::from(placed.is_writer);
        for (record, asked_at) in records.drain(..) {
            let key = record.key.as_slice();
            let seen_at = asked_at.unwrap_or(latest).min(placed.revision);
            let known = changes.get(key).map_or(&[][..], Vec::as_slice);
            let after = known.partition_point(|(revision, _)| *revision <= record.mod_revision);
            if let Some((revision, _)) = known.get(after).filter(|(revision, _)| *revision <= seen_at) {
                let reason = format!(
                    "{} shows {} of revision {} as of revision {seen_at}, although it had changed at revision {revision}",
                    placed.call.name(),
                    show(key),
                    record.mod_revision
                );
                return Some(refuted(reason, order, *revision, placed));
            }
            let own = known[..after].last().filter(|(revision, _)| *revision == record.mod_revision);
            let is_refuted = match own {
                Some((_, left)) => *left != Some((record.value.as_slice(), record.lease)),
                None => order.writers.get(&record.mod_revision).is_some_and(|writer| {
                    let footprint = writer.call.command.operation.write_footprint();
                    !footprint.iter().any(|interval| interval.contains(key))
                }),
            };
            if is_refuted {
                let reason = format!(
                    "{} shows {record}, which the writer of that revision did not put",
                    placed.call.name()
                );
                return Some(refuted(reason, order, record.mod_revision, placed));
            }
        }
    }
    None
}

fn refuted(reason: String, order: &Order<'_>, writer: u64, placed: &Placed<'_>) -> Verdict {
    let writer = order.writers.get(&writer).map(|writer| writer.call.line());
    Verdict::violation(reason, writer.into_iter().chain([placed.call.line()]).collect())
}

/// Changes an acknowledged call certainly made, one per key; keys about which its answer leaves a doubt are left out.
fn effects<'a>(operation: &'a Operation, answer: &Answer) -> BTreeMap<&'a [u8], Left<'a>> {
    let (mut certain, mut doubtful) = (BTreeMap::new(), Vec::new());
    collect(operation, answer, &mut certain, &mut doubtful);
    certain.retain(|key, _| !doubtful.iter().any(|interval: &Interval| interval.contains(key)));
    certain
}

fn collect<'a>(
    operation: &'a Operation,
    answer: &Answer,
    certain: &mut BTreeMap<&'a [u8], Left<'a>>,
    doubtful: &mut Vec<Interval>,
) {
    let mut take = |key: &'a [u8], left: Left<'a>| {
        if certain.insert(key, left).is_some() {
            doubtful.push(Interval::key(key));
        }
    };
    match (operation, answer) {
        (Operation::Put { key, value, lease, .. }, Answer::Put { .. }) => take(key, Some((value, *lease))),
        (Operation::DeleteRange { over, .. }, Answer::DeleteRange { deleted, .. }) if over.is_single() => {
            if *deleted > 0 {
                take(&over.key, None);
            }
        }
        (Operation::Txn { then, otherwise, .. }, Answer::Txn { succeeded, answers }) => {
            let branch = if *succeeded { then } else { otherwise };
            for (inner, answer) in branch.iter().zip(answers) {
                collect(inner, answer, certain, doubtful);
            }
        }
        (Operation::Range { .. } | Operation::Opaque(_), _) => {}
        _ => doubtful.extend(operation.write_footprint()),
    }
}
