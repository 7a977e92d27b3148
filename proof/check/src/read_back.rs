//! Lost and doubled as the clients themselves can tell: from their journals and one read-back of the data at the end.
//!
//! Three workloads are understood, recognised by key prefix so that one run can hold all of them:
//! - `UNIQUE_PUT`: plain puts of values never used twice. The version of a key counts its puts, so with a acknowledged and u unknown
//!   puts it must end within a..=a+u, holding a value that no acknowledged put follows in real time.
//! - `COUNTER`: read, then a transaction that writes n + 1 if the key was not changed meanwhile (`increment`).
//! - `APPEND`: the same with a list of unique tags (`append`).
//!
//! No key of these prefixes may be deleted or written in any other way. A client that is not honest is believed to have asked for
//! what it noted, and nothing else. No server counter is consulted.

use crate::history::{ClientJournal, Command, CommandId, Outcome};
use crate::operation::{Answer, Compare, Interval, KeyValue, Operation, Relation, Target};
use crate::text::show;
use crate::verdict::{Findings, Judge};
use std::collections::{BTreeMap, HashMap, HashSet};

pub const UNIQUE_PUT: &[u8] = b"unique/";
pub const COUNTER: &[u8] = b"counter/";
pub const APPEND: &[u8] = b"append/";

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Writes of the three workloads that were acknowledged as applied.
    pub acknowledged: u64,
    pub unknown: u64,
    /// Refused, or a transaction whose comparison failed.
    pub not_applied: u64,
    pub lost: u64,
    pub doubled: u64,
    pub findings: Findings,
}

/// The transaction that adds one to a counter last seen as `seen`.
pub fn increment(key: &[u8], seen: Option<&KeyValue>) -> Operation {
    let next = seen.map_or(0, |record| number(&record.value).unwrap_or(0)) + 1;
    swap(key, seen, next.to_string().into_bytes())
}

/// The transaction that appends a tag (unique over the history, without spaces) to a list last seen as `seen`.
pub fn append(key: &[u8], seen: Option<&KeyValue>, tag: &str) -> Operation {
    let mut list = seen.map_or(Vec::new(), |record| record.value.clone());
    if !list.is_empty() {
        list.push(b' ');
    }
    list.extend_from_slice(tag.as_bytes());
    swap(key, seen, list)
}

fn swap(key: &[u8], seen: Option<&KeyValue>, value: Vec<u8>) -> Operation {
    let target = Target::ModRevision(seen.map_or(0, |record| record.mod_revision));
    Operation::Txn {
        compares: vec![Compare { over: Interval::key(key), relation: Relation::Equal, target }],
        then: vec![Operation::put(key, value)],
        otherwise: vec![Operation::get(key)],
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Applied { returned_at_us: u64 },
    NotApplied,
    Maybe,
}

struct Write<'a> {
    id: CommandId,
    value: &'a [u8],
    invoked_at_us: u64,
    fate: Fate,
}

impl Write<'_> {
    fn may_be_applied(&self) -> bool {
        self.fate != Fate::NotApplied
    }

    fn returned_before(&self, other: &Self) -> bool {
        matches!(self.fate, Fate::Applied { returned_at_us } if returned_at_us < other.invoked_at_us)
    }
}

/// `read_back`: every record under the three prefixes, read after the last command.
pub fn judge(clients: &[ClientJournal], read_back: &[KeyValue]) -> Tally {
    judge_besides(clients, read_back, &HashSet::new())
}

/// The same where members of a segment lied. `taken_back`: commands that ran in entries that are no part of the log. Under the
/// label `crash` somebody may have read what one of them wrote, and revisions come again after it is taken back: a comparison
/// with the one that he read then holds, and what he writes carries it back in.
pub fn judge_besides(
    clients: &[ClientJournal],
    read_back: &[KeyValue],
    taken_back: &HashSet<CommandId>,
) -> Tally {
    let mut tally = Tally::default();
    let mut keys: BTreeMap<&[u8], Vec<Write<'_>>> = BTreeMap::new();
    let commands =
        clients.iter().flat_map(|journal| journal.commands.iter().map(|command| (journal.honest, command)));
    for (honest, command) in commands {
        if let Some((key, mut write)) = write_of(command) {
            if !honest {
                write.fate = Fate::Maybe;
            }
            match write.fate {
                Fate::Applied { .. } => tally.acknowledged += 1,
                Fate::NotApplied => tally.not_applied += 1,
                Fate::Maybe => tally.unknown += 1,
            }
            keys.entry(key).or_default().push(write);
        }
    }
    let mut records: BTreeMap<&[u8], &KeyValue> = BTreeMap::new();
    for record in read_back {
        let key = record.key.as_slice();
        if is_ours(key) {
            keys.entry(key).or_default();
            if records.insert(key, record).is_some() {
                let reason = format!("key {} stands twice in the read-back", show(key));
                tally.findings.push(Judge::ReadBack, reason, vec![]);
            }
        }
    }
    for (key, writes) in &keys {
        let record = records.get(key).copied();
        if key.starts_with(UNIQUE_PUT) {
            judge_puts(key, writes, record, &mut tally);
        } else if key.starts_with(COUNTER) {
            judge_counter(key, writes, record, &mut tally);
        } else {
            judge_list(key, writes, record, taken_back, &mut tally);
        }
    }
    tally
}

fn is_ours(key: &[u8]) -> bool {
    [UNIQUE_PUT, COUNTER, APPEND].iter().any(|prefix| key.starts_with(prefix))
}

fn write_of(command: &Command) -> Option<(&[u8], Write<'_>)> {
    let (key, value) = match &command.operation {
        Operation::Put { key, value, .. } if is_ours(key) => (key, value),
        Operation::Txn { then, .. } => match then.as_slice() {
            [Operation::Put { key, value, .. }] if is_ours(key) => (key, value),
            _ => return None,
        },
        _ => return None,
    };
    let fate = match &command.outcome {
        Outcome::Ok { reply, returned_at_us, .. } => match &reply.answer {
            Answer::Txn { succeeded: false, .. } => Fate::NotApplied,
            _ => Fate::Applied { returned_at_us: *returned_at_us },
        },
        Outcome::Refused { .. } => Fate::NotApplied,
        Outcome::Unknown { .. } => Fate::Maybe,
    };
    Some((key, Write { id: command.id, value, invoked_at_us: command.invoked_at_us, fate }))
}

/// What must lie within applied..=applied+unknown, else the difference was lost or doubled.
fn judge_count(key: &[u8], what: &str, found: u64, writes: &[Write<'_>], tally: &mut Tally) {
    let applied = writes.iter().filter(|write| matches!(write.fate, Fate::Applied { .. })).count() as u64;
    let most = writes.iter().filter(|write| write.may_be_applied()).count() as u64;
    let evidence = vec![format!("{applied} acknowledged, {} unknown, {what} {found}", most - applied)];
    if found < applied {
        tally.lost += applied - found;
        let reason = format!("lost: {} of {applied} acknowledged writes to {}", applied - found, show(key));
        tally.findings.push(Judge::ReadBack, reason, evidence);
    } else if found > most {
        tally.doubled += found - most;
        let reason = format!("doubled: {} shows {} writes too many", show(key), found - most);
        tally.findings.push(Judge::ReadBack, reason, evidence);
    }
}

fn judge_puts(key: &[u8], writes: &[Write<'_>], record: Option<&KeyValue>, tally: &mut Tally) {
    judge_count(key, "version", record.map_or(0, |record| record.version), writes, tally);
    let Some(record) = record else { return };
    let Some(last) = writes.iter().find(|write| write.value == record.value) else {
        let reason = format!("{} holds {}, which no client wrote", show(key), show(&record.value));
        tally.findings.push(Judge::ReadBack, reason, vec![]);
        return;
    };
    if !last.may_be_applied() {
        let reason =
            format!("{} holds the value of {}, which was refused as not applied", show(key), last.id);
        tally.findings.push(Judge::ReadBack, reason, vec![]);
    }
    if let Some(later) = writes.iter().find(|write| is_applied(write) && last.returned_before(write)) {
        tally.lost += 1;
        let reason = format!(
            "lost: {} was acknowledged, yet {} holds the older value of {}",
            later.id,
            show(key),
            last.id
        );
        tally.findings.push(Judge::ReadBack, reason, vec![format!("value {}", show(&record.value))]);
    }
}

fn is_applied(write: &Write<'_>) -> bool {
    matches!(write.fate, Fate::Applied { .. })
}

fn number(value: &[u8]) -> Option<u64> {
    std::str::from_utf8(value).ok()?.parse().ok()
}

fn judge_counter(key: &[u8], writes: &[Write<'_>], record: Option<&KeyValue>, tally: &mut Tally) {
    let found = match record {
        None => 0,
        Some(record) => match number(&record.value) {
            Some(found) => found,
            None => {
                let reason = format!("counter {} holds {}, not a number", show(key), show(&record.value));
                tally.findings.push(Judge::ReadBack, reason, vec![]);
                return;
            }
        },
    };
    judge_count(key, "value", found, writes, tally);
    if let Some(record) = record.filter(|record| record.version != found) {
        let reason = format!("counter {} was written {} times and holds {found}", show(key), record.version);
        tally.findings.push(Judge::ReadBack, reason, vec![]);
    }
    // Two acknowledged steps to one value: the second overwrote the first, even if the sum came out right again.
    let mut steps: HashMap<&[u8], CommandId> = HashMap::new();
    for write in writes.iter().filter(|write| is_applied(write)) {
        if let Some(other) = steps.insert(write.value, write.id) {
            tally.lost += 1;
            let reason =
                format!("lost: {other} and {} both stepped {} to {}", write.id, show(key), show(write.value));
            tally.findings.push(Judge::ReadBack, reason, vec![]);
        }
    }
}

fn tags(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b' ').filter(|tag| !tag.is_empty())
}

fn judge_list(
    key: &[u8],
    writes: &[Write<'_>],
    record: Option<&KeyValue>,
    taken_back: &HashSet<CommandId>,
    tally: &mut Tally,
) {
    let list: Vec<&[u8]> = record.map_or(Vec::new(), |record| tags(&record.value).collect());
    let mut places: HashMap<&[u8], usize> = HashMap::new();
    for (place, tag) in list.iter().enumerate() {
        if places.insert(tag, place).is_some() {
            tally.doubled += 1;
            let reason = format!("doubled: tag {} stands twice in {}", show(tag), show(key));
            tally.findings.push(Judge::ReadBack, reason, vec![]);
        }
    }
    // A tag may have been tried by several transactions, of which at most one succeeded.
    let mut tries: BTreeMap<&[u8], Vec<&Write<'_>>> = BTreeMap::new();
    for write in writes {
        if let Some(tag) = tags(write.value).last() {
            tries.entry(tag).or_default().push(write);
        }
    }
    let mut in_list: Vec<(usize, &Write<'_>)> = Vec::new();
    for (tag, tries) in &tries {
        let applied: Vec<_> = tries.iter().filter(|write| is_applied(write)).collect();
        match (applied.first(), places.get(tag)) {
            (Some(write), None) => {
                tally.lost += 1;
                let reason = format!("lost: tag {} of {} is not in {}", show(tag), write.id, show(key));
                tally.findings.push(Judge::ReadBack, reason, vec![]);
            }
            (Some(write), Some(place)) => in_list.push((*place, write)),
            (None, Some(_))
                if tries.iter().any(|write| taken_back.contains(&write.id)) && is_carried(tag, writes) => {}
            (None, Some(_)) if tries.iter().all(|write| !write.may_be_applied()) => {
                let reason = format!("tag {} is in {} although it was not applied", show(tag), show(key));
                tally.findings.push(Judge::ReadBack, reason, vec![format!("command {}", tries[0].id)]);
            }
            (None, _) => {}
        }
    }
    for tag in list.iter().filter(|tag| !tries.contains_key(*tag)) {
        let reason = format!("tag {} in {} was written by no client", show(tag), show(key));
        tally.findings.push(Judge::ReadBack, reason, vec![]);
    }
    judge_list_order(key, in_list, tally);
}

/// Did somebody else write it along with a tag of his own?
fn is_carried(tag: &[u8], writes: &[Write<'_>]) -> bool {
    let carries = |write: &&Write<'_>| {
        let mut tags: Vec<&[u8]> = tags(write.value).collect();
        tags.pop();
        write.may_be_applied() && tags.contains(&tag)
    };
    writes.iter().any(|write| carries(&write))
}

/// Real time: what returned before another was invoked stands before it. One sweep from the end: everything to the right of a
/// write must have returned no earlier than this write was invoked.
fn judge_list_order(key: &[u8], mut in_list: Vec<(usize, &Write<'_>)>, tally: &mut Tally) {
    in_list.sort_by_key(|(place, _)| *place);
    let mut earliest_return: Option<&Write<'_>> = None;
    for (_, write) in in_list.iter().rev() {
        if let Some(later) = earliest_return.filter(|later| later.returned_before(write)) {
            let reason = format!(
                "{} stands after {} in {} although it returned before",
                later.id,
                write.id,
                show(key)
            );
            tally.findings.push(Judge::ReadBack, reason, vec![]);
        }
        let returned = |write: &Write<'_>| match write.fate {
            Fate::Applied { returned_at_us } => returned_at_us,
            Fate::NotApplied | Fate::Maybe => u64::MAX,
        };
        if earliest_return.is_none_or(|later| returned(write) < returned(later)) {
            earliest_return = Some(write);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{Label, Reply};
    use crate::model::{Model, Start};

    /// A store and one client that runs commands against it, one after the other.
    struct Bench {
        model: Model,
        journal: ClientJournal,
        now_us: u64,
    }

    impl Bench {
        fn new() -> Self {
            Self { model: Model::new(&Start::empty(1)), journal: ClientJournal::new(1), now_us: 0 }
        }

        fn call(&mut self, operation: Operation) {
            let id = CommandId { session: 1, seq: self.journal.commands.len() as u64 };
            let place = self.journal.invoked(id, self.now_us, operation.clone());
            let answer = self.model.apply(&operation).unwrap();
            self.journal.returned(
                place,
                self.now_us + 5,
                Reply::new(self.model.revision(), answer),
                Label::Crash,
            );
            self.now_us += 10;
        }

        fn unknown(&mut self, operation: Operation, applied: bool) {
            self.call_without_effect(operation.clone());
            if applied {
                self.model.apply(&operation).unwrap();
            }
        }

        fn call_without_effect(&mut self, operation: Operation) {
            let id = CommandId { session: 1, seq: self.journal.commands.len() as u64 };
            self.journal.invoked(id, self.now_us, operation);
            self.now_us += 10;
        }

        fn seen(&self, key: &str) -> Option<KeyValue> {
            self.model.latest(key.as_bytes()).cloned()
        }

        fn increment(&mut self, key: &str) {
            self.call(increment(key.as_bytes(), self.seen(key).as_ref()));
        }

        fn append(&mut self, key: &str, tag: &str) {
            self.call(append(key.as_bytes(), self.seen(key).as_ref(), tag));
        }

        fn tally(&mut self) -> Tally {
            self.tally_of(|_| {})
        }

        fn records(&mut self) -> Vec<KeyValue> {
            match self.model.apply(&Operation::range(Interval::all())) {
                Ok(Answer::Range { records, .. }) => records,
                other => panic!("a range always answers: {other:?}"),
            }
        }

        fn tally_of(&mut self, spoil: impl FnOnce(&mut Vec<KeyValue>)) -> Tally {
            let mut records = self.records();
            spoil(&mut records);
            judge(std::slice::from_ref(&self.journal), &records)
        }
    }

    fn good() -> Bench {
        let mut bench = Bench::new();
        bench.call(Operation::put("unique/a", "v1"));
        bench.call(Operation::put("unique/a", "v2"));
        bench.call(Operation::put("unique/b", "v3"));
        bench.unknown(Operation::put("unique/b", "v4"), true);
        bench.unknown(Operation::put("unique/c", "v5"), false);
        for _ in 0..3 {
            bench.increment("counter/x");
        }
        bench.unknown(increment(b"counter/x", bench.seen("counter/x").as_ref()), true);
        bench.call(increment(b"counter/x", None));
        for tag in ["t1", "t2", "t3"] {
            bench.append("append/l", tag);
        }
        bench.unknown(append(b"append/l", bench.seen("append/l").as_ref(), "t4"), true);
        bench.call(append(b"append/l", None, "t5"));
        bench
    }

    fn record<'a>(records: &'a mut [KeyValue], key: &str) -> &'a mut KeyValue {
        records.iter_mut().find(|record| record.key == key.as_bytes()).unwrap()
    }

    #[test]
    fn a_good_run_with_unknown_outcomes_is_accepted() {
        let tally = good().tally();
        assert!(tally.findings.is_empty(), "{}", tally.findings);
        assert_eq!((tally.acknowledged, tally.unknown, tally.not_applied), (9, 4, 2));
        assert_eq!((tally.lost, tally.doubled), (0, 0));
    }

    #[test]
    fn a_missing_key_counts_every_write_to_it_as_lost() {
        let tally = good().tally_of(|records| records.retain(|record| record.key != b"unique/a"));
        assert_eq!((tally.lost, tally.doubled), (2, 0));
    }

    #[test]
    fn a_put_applied_twice_is_doubled_even_when_its_value_is_right() {
        let tally = good().tally_of(|records| record(records, "unique/a").version = 3);
        assert_eq!((tally.lost, tally.doubled), (0, 1));
    }

    #[test]
    fn an_older_value_in_place_of_an_acknowledged_one_is_lost() {
        let tally = good().tally_of(|records| record(records, "unique/a").value = b"v1".to_vec());
        assert_eq!((tally.lost, tally.doubled), (1, 0));
    }

    #[test]
    fn a_value_nobody_wrote_is_refused() {
        let tally = good().tally_of(|records| record(records, "unique/a").value = b"v9".to_vec());
        assert!(tally.findings.has("which no client wrote"));
    }

    #[test]
    fn a_refused_put_that_shows_is_refused() {
        let mut bench = good();
        let place = bench.journal.commands.len();
        bench.call(Operation::put("unique/a", "v6"));
        bench.journal.refused(place, bench.now_us, "too large");
        let tally = bench.tally();
        assert!(tally.findings.has("refused as not applied"));
        assert_eq!(tally.doubled, 1);
    }

    #[test]
    fn a_counter_below_or_above_its_acknowledgements_is_lost_or_doubled() {
        let at = |value: &str| {
            good().tally_of(|records| record(records, "counter/x").value = value.as_bytes().to_vec())
        };
        assert_eq!((at("2").lost, at("2").doubled), (1, 0));
        assert_eq!((at("5").lost, at("5").doubled), (0, 1));
        assert!(at("3").findings.has("was written 4 times and holds 3"));
        assert!(at("many").findings.has("not a number"));
    }

    #[test]
    fn two_acknowledged_steps_to_one_value_are_a_lost_update() {
        let mut bench = good();
        let mut again = bench.journal.commands[5].clone();
        again.id.seq = 500;
        bench.journal.commands.push(again);
        let tally = bench.tally();
        assert!(tally.findings.has("both stepped"));
        assert_eq!(tally.lost, 1);
    }

    #[test]
    fn a_list_shows_lost_doubled_foreign_and_misplaced_tags() {
        let with = |list: &str| {
            good().tally_of(|records| record(records, "append/l").value = list.as_bytes().to_vec())
        };
        assert!(with("t1 t2 t3").findings.is_empty(), "an unknown append may be missing");
        assert_eq!((with("t1 t3 t4").lost, with("t1 t3 t4").doubled), (1, 0));
        assert_eq!((with("t1 t2 t2 t3 t4").lost, with("t1 t2 t2 t3 t4").doubled), (0, 1));
        assert!(with("t1 t2 t3 t9").findings.has("written by no client"));
        assert!(with("t2 t1 t3").findings.has("stands after"));
        assert!(with("t1 t2 t3 t5").findings.has("although it was not applied"));
    }

    /// Who read `t5` in what was taken back, and wrote it along with `t6`.
    #[test]
    fn what_was_taken_back_may_be_carried_back_in_by_another() {
        let mut bench = good();
        let refused = bench.journal.commands.last().expect("it appended t5").id;
        let found = |bench: &mut Bench, list: &str, taken_back: &[CommandId]| {
            let mut records = bench.records();
            record(&mut records, "append/l").value = list.as_bytes().to_vec();
            let taken_back = taken_back.iter().copied().collect();
            judge_besides(std::slice::from_ref(&bench.journal), &records, &taken_back).findings
        };
        let alone = found(&mut bench, "t1 t2 t3 t5", &[refused]);
        assert!(alone.has("although it was not applied"), "nobody carried it");
        bench.unknown(Operation::put("append/l", "t1 t2 t3 t5 t6"), false);
        assert!(found(&mut bench, "t1 t2 t3 t5 t6", &[refused]).is_empty());
        assert!(found(&mut bench, "t1 t2 t3 t5 t6", &[]).has("although it was not applied"), "it never ran");
    }
}
