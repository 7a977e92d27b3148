//! Was the promise kept? From the clients' journals, one read-back and the nodes' digests, by the judges of `check`.
//!
//! *Lost* and *doubled* are what `check::read_back` counts; *stale* counts answers that claim to be current and are older
//! than something acknowledged before they were asked for; everything at once is what linearizability says. A judge that
//! runs out of budget has not passed anything.

use check::{
    Budget, ClientJournal, Command, Label, Operation, Outcome, Start, Verdict, label, linear, live, read_back,
};
use dwcp_base::Trust;
use serde::Serialize;

use crate::campaign::Record;

/// Findings told; more are only counted.
const FINDINGS_MAX: usize = 20;

#[derive(Clone, Debug, Default, Serialize)]
pub struct Judgement {
    /// Commands acknowledged to clients, reads included.
    pub acknowledged: u64,
    pub unknown: u64,
    pub refused: u64,
    /// Answers of single nodes, which may be old; judged, too.
    pub stale_reads: u64,
    /// Of the acknowledged: linearizable reads that were not ordered. Judged like all others.
    pub reads_by_index: u64,
    pub lost: u64,
    pub doubled: u64,
    pub stale: u64,
    /// Acknowledgements whose label says more than it may, or less than it must.
    pub mislabelled: u64,
    pub diverged: bool,
    pub linearizable: bool,
    /// The longest time in which no client was told anything good, while blows fell.
    pub longest_gap_ms: u64,
    pub findings: Vec<String>,
}

impl Judgement {
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty()
            && self.lost + self.doubled + self.stale + self.mislabelled == 0
            && !self.diverged
            && self.linearizable
    }

    pub(crate) fn find(&mut self, what: String) {
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(what);
        }
    }
}

#[must_use]
pub fn judge(record: &Record) -> Judgement {
    let mut judgement = Judgement::default();
    let clients = &record.history.clients;
    tally(clients, &mut judgement);
    judgement.reads_by_index = record.reads_by_index;
    judgement.longest_gap_ms = longest_gap_us(clients, record.faults_ended_at_us) / 1000;
    if let Some(trouble) = &record.trouble {
        judgement.find(format!("not finished: {trouble}"));
    }
    if let Some(records) = &record.read_back {
        let tally = read_back::judge(clients, records);
        (judgement.lost, judgement.doubled) = (tally.lost, tally.doubled);
        tally.findings.iter().for_each(|finding| judgement.find(finding.to_string()));
    }
    if let Some(calm) = record.calm {
        live::judge(clients, calm).findings.iter().for_each(|finding| judgement.find(finding.to_string()));
    }
    judge_labels(clients, record, &mut judgement);
    judge_stale(clients, &mut judgement);
    judge_digests(record, &mut judgement);
    match linear::judge(clients, &Start::empty(1), Budget::default()) {
        Verdict::Linearizable => judgement.linearizable = true,
        Verdict::Violation { reason, evidence } => {
            judgement.find(format!("linear: {reason}\n    {}", evidence.join("\n    ")));
        }
        Verdict::BudgetExceeded { steps } => {
            judgement.find(format!("linear: undecided after {steps} steps; run fewer blows"));
        }
    }
    judgement
}

fn tally(clients: &[ClientJournal], judgement: &mut Judgement) {
    for command in clients.iter().flat_map(|journal| &journal.commands) {
        let is_stale_read = is_stale_read(command);
        match &command.outcome {
            Outcome::Ok { .. } if is_stale_read => judgement.stale_reads += 1,
            Outcome::Ok { .. } => judgement.acknowledged += 1,
            Outcome::Refused { .. } if is_stale_read => {}
            Outcome::Refused { .. } => judgement.refused += 1,
            Outcome::Unknown { .. } => judgement.unknown += 1,
        }
    }
}

/// Whatever was asked of the cluster is labelled `byzantine` where members may lie, and never where f is 0. Where they only crash, a
/// segment's acknowledgements are labelled `crash`.
fn judge_labels(clients: &[ClientJournal], record: &Record, judgement: &mut Judgement) {
    let f = record.f;
    let too_strong = label::judge(clients, f.into());
    too_strong.iter().for_each(|finding| judgement.find(finding.to_string()));
    judgement.mislabelled = too_strong.total();
    for journal in clients.iter().filter(|_| f >= 1 && record.trust == Trust::Byzantine) {
        let is_weak = |command: &&Command| {
            !is_stale_read(command) && matches!(command.outcome, Outcome::Ok { label: Label::Crash, .. })
        };
        for command in journal.commands.iter().filter(is_weak) {
            judgement.mislabelled += 1;
            judgement
                .find(format!("label: command {} was answered with f = {f} and labelled crash", command.id));
        }
    }
}

pub(crate) fn is_stale_read(command: &Command) -> bool {
    matches!(command.operation, Operation::Range { stale: true, .. })
}

/// Counts what the linearizability judge would name only once: whatever was answered from before something that had been
/// acknowledged already.
fn judge_stale(clients: &[ClientJournal], judgement: &mut Judgement) {
    let mut returned = Vec::new();
    let mut asked = Vec::new();
    for command in clients.iter().flat_map(|journal| &journal.commands) {
        if is_stale_read(command) {
            continue;
        }
        if let Outcome::Ok { returned_at_us, reply, .. } = &command.outcome {
            let revision = reply.revision.unwrap_or(0);
            returned.push((*returned_at_us, revision));
            asked.push((command.invoked_at_us, revision));
        }
    }
    returned.sort_unstable();
    asked.sort_unstable();
    let (mut highest, mut next) = (0, 0);
    for (invoked_at_us, revision) in asked {
        while let Some((_, known)) = returned.get(next).filter(|(at_us, _)| *at_us < invoked_at_us) {
            highest = highest.max(*known);
            next += 1;
        }
        judgement.stale += u64::from(revision < highest);
    }
}

fn judge_digests(record: &Record, judgement: &mut Judgement) {
    let Some(first) = record.digests.first() else { return };
    for other in &record.digests {
        if (other.sequence, other.digest) != (first.sequence, first.digest) {
            judgement.diverged = true;
            judgement.find(format!(
                "digest: node {} has {} at sequence {}, node {} has {} at {}",
                first.node,
                hex::encode(&first.digest[..4]),
                first.sequence,
                other.node,
                hex::encode(&other.digest[..4]),
                other.sequence
            ));
        }
    }
    if record.digests.len() != record.nodes {
        judgement.diverged = true;
        judgement.find(format!("digest: {} of {} nodes gave one", record.digests.len(), record.nodes));
    }
}

fn longest_gap_us(clients: &[ClientJournal], until_us: u64) -> u64 {
    let times = acknowledged_at_us(clients);
    let until = times.partition_point(|at_us| *at_us <= until_us);
    times[..until].windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0)
}

/// When commands were acknowledged, in order.
pub(crate) fn acknowledged_at_us(clients: &[ClientJournal]) -> Vec<u64> {
    let commands = clients.iter().flat_map(|journal| &journal.commands);
    let acknowledged =
        commands.filter(|command| !is_stale_read(command)).filter_map(|command| match command.outcome {
            Outcome::Ok { returned_at_us, .. } => Some(returned_at_us),
            Outcome::Refused { .. } | Outcome::Unknown { .. } => None,
        });
    let mut times: Vec<u64> = acknowledged.collect();
    times.sort_unstable();
    times
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch::NodeDigest;
    use check::model::Model;
    use check::{Answer, CommandId, History, Interval, KeyValue, Reply};

    /// Two clients and the judges' own model of the store: thirty commands, one after the other.
    fn good() -> Record {
        let mut model = Model::new(&Start::empty(1));
        let mut history = History::default();
        for number in 0..30_u64 {
            let key = format!("unique/{}", number % 3);
            let seen = |key: &str| model.latest(key.as_bytes()).cloned();
            let operation = match number % 4 {
                0 => Operation::put(key, format!("v{number}")),
                1 => read_back::increment(b"counter/0", seen("counter/0").as_ref()),
                2 => read_back::append(b"append/0", seen("append/0").as_ref(), &format!("t{number}")),
                _ => Operation::get(key),
            };
            let answer = model.apply(&operation).unwrap();
            let journal = history.client(number % 2);
            let place = journal.invoked(CommandId { session: 1, seq: number }, number * 10, operation);
            journal.returned(place, number * 10 + 5, Reply::new(model.revision(), answer), Label::Byzantine);
        }
        let records = match model.apply(&Operation::range(Interval::all())) {
            Ok(Answer::Range { records, .. }) => records,
            other => panic!("a range answers {other:?}"),
        };
        let digest = |node| NodeDigest { node, sequence: 32, digest: [7; 32] };
        Record {
            nodes: 4,
            f: 1,
            trust: Trust::Byzantine,
            blows: 1,
            rounds: 1,
            over_budget: 0,
            all_at_once: 0,
            while_starting: 0,
            view: 0,
            seconds: 1.0,
            faults_ended_at_us: 1_000,
            history,
            reads_by_index: 0,
            calm: None,
            read_back: Some(records),
            digests: (0..4).map(digest).collect(),
            trouble: None,
        }
    }

    fn spoiled(spoil: impl FnOnce(&mut Record)) -> Judgement {
        let mut record = good();
        spoil(&mut record);
        let judgement = judge(&record);
        assert!(!judgement.is_clean());
        judgement
    }

    fn found<'a>(record: &'a mut Record, key: &[u8]) -> &'a mut KeyValue {
        record.read_back.as_mut().unwrap().iter_mut().find(|kv| kv.key == key).unwrap()
    }

    #[test]
    fn a_kept_promise_is_clean() {
        let judgement = judge(&good());
        assert!(judgement.is_clean(), "{judgement:?}");
        assert_eq!((judgement.acknowledged, judgement.unknown), (30, 0));
    }

    #[test]
    fn a_dropped_a_doubled_and_an_altered_entry_are_seen() {
        let dropped = spoiled(|record| record.read_back.as_mut().unwrap().truncate(2));
        assert!(dropped.lost > 0);
        let doubled = spoiled(|record| found(record, b"unique/0").version += 1);
        assert_eq!((doubled.lost, doubled.doubled), (0, 1));
        let altered = spoiled(|record| found(record, b"unique/0").value = b"v0".to_vec());
        assert!(altered.lost > 0);
    }

    #[test]
    fn a_read_from_before_an_acknowledged_write_is_stale_and_not_linearizable() {
        let judgement = spoiled(|record| {
            let journal = record.history.client(1);
            let last = journal.commands.last_mut().unwrap();
            if let Outcome::Ok { reply, .. } = &mut last.outcome {
                reply.revision = Some(3);
            }
        });
        assert_eq!((judgement.stale, judgement.linearizable), (1, false));
    }

    #[test]
    fn a_label_is_byzantine_exactly_where_liars_are_tolerated() {
        let every = good().history.clients.iter().map(|journal| journal.commands.len() as u64).sum::<u64>();
        assert_eq!(spoiled(|record| record.f = 0).mislabelled, every);
        let weaken = |record: &mut Record| {
            let commands = &mut record.history.client(0).commands;
            let Outcome::Ok { label, .. } = &mut commands[3].outcome else { panic!("it was answered") };
            *label = Label::Crash;
        };
        let judgement = spoiled(weaken);
        assert_eq!((judgement.mislabelled, judgement.lost), (1, 0));
        let mut trusting = Record { trust: Trust::Crash, ..good() };
        weaken(&mut trusting);
        assert!(judge(&trusting).is_clean(), "where members only crash either label may stand");
    }

    #[test]
    fn two_states_at_one_sequence_a_silent_node_and_a_run_cut_short_are_seen() {
        assert!(spoiled(|record| record.digests[2].digest[0] ^= 1).diverged);
        assert!(spoiled(|record| record.digests[3].sequence = 64).diverged);
        assert!(spoiled(|record| record.digests.truncate(3)).diverged);
        spoiled(|record| record.trouble = Some("stuck".into()));
    }
}
