//! The judge of the demo: were acknowledged commands lost, were commands run twice, do nodes differ?
//!
//! A pure function of three things that come from different places: the clients' journals, what the store holds (read
//! back by a fresh client, once linearizably and once from each node's own state), and the nodes' state digests at one
//! sequence. It never asks a server what it believes to have done, and knows nothing of processes or phases.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::journal::{Ask, Entry, PREFIX, Told};

/// Findings written out per kind; more are only counted.
const FINDINGS_MAX: usize = 20;

/// One key as it was read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    pub value: Vec<u8>,
    /// How often the key was written since it was created.
    pub version: u64,
    pub create_revision: u64,
    pub mod_revision: u64,
}

/// Everything under the demo's prefix as somebody holds it.
pub type Holding = BTreeMap<String, Held>;

/// What one node holds and says of itself, after all nodes had come to the same place.
#[derive(Clone, Debug)]
pub struct NodeView {
    /// As findings call it: `node 2`, `the disk of node 2`.
    pub name: String,
    /// Read from its disk after it had stopped.
    pub on_disk: bool,
    pub holding: Holding,
    /// The sequence its digest is of, and the digest in hexadecimal.
    pub digest: (u64, String),
}

/// What was found. All counts are zero when every promise was kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Verdict {
    pub acknowledged: u64,
    pub not_applied: u64,
    pub unknown: u64,
    /// Acknowledged, and missing or changed somewhere.
    pub lost: u64,
    /// Ran more than once, or although the client was told that it never would.
    pub doubled: u64,
    /// Differences between nodes, and keys nobody wrote.
    pub differences: u64,
    pub findings: Vec<String>,
    /// Which entries of the journal were lost, and which doubled, by their names; counters stand there under theirs.
    #[serde(skip)]
    pub lost_names: BTreeSet<String>,
    #[serde(skip)]
    pub doubled_names: BTreeSet<String>,
}

impl Verdict {
    pub fn diverged(&self) -> bool {
        self.differences > 0
    }
}

#[derive(Default)]
struct Found {
    lost: BTreeSet<String>,
    doubled: BTreeSet<String>,
    differences: u64,
    findings: Vec<String>,
}

impl Found {
    fn lost(&mut self, entry: String, what: String) {
        self.lost.insert(entry);
        self.note("lost", what);
    }

    fn doubled(&mut self, entry: String, what: String) {
        self.doubled.insert(entry);
        self.note("doubled", what);
    }

    fn differs(&mut self, what: String) {
        self.differences += 1;
        self.note("diverged", what);
    }

    fn note(&mut self, kind: &str, what: String) {
        if self.findings.iter().filter(|finding| finding.starts_with(kind)).count() < FINDINGS_MAX {
            self.findings.push(format!("{kind}: {what}"));
        }
    }
}

/// Compares what clients were told with what is there. `agreed` is the linearizable reading.
pub fn verify(journal: &[Entry], agreed: &Holding, nodes: &[NodeView]) -> Verdict {
    let mut found = Found::default();
    judge_revisions(journal, &mut found);
    judge_holding("the cluster", journal, agreed, &mut found);
    for node in nodes {
        judge_holding(&node.name, journal, &node.holding, &mut found);
        compare(&node.name, &node.holding, agreed, &mut found);
    }
    compare_digests(nodes, &mut found);
    let count = |is: fn(&Told) -> bool| journal.iter().filter(|entry| is(&entry.told)).count() as u64;
    Verdict {
        acknowledged: count(|told| matches!(told, Told::Acknowledged { .. })),
        not_applied: count(|told| matches!(told, Told::NotApplied { .. })),
        unknown: count(|told| matches!(told, Told::Unknown { .. })),
        lost: found.lost.len() as u64,
        doubled: found.doubled.len() as u64,
        differences: found.differences,
        findings: found.findings,
        lost_names: found.lost,
        doubled_names: found.doubled,
    }
}

/// Every write has a revision of its own, so two acknowledgements with one revision are two clients told one truth.
fn judge_revisions(journal: &[Entry], found: &mut Found) {
    let mut seen: BTreeMap<u64, &Entry> = BTreeMap::new();
    for entry in journal {
        let Some(revision) = entry.acknowledged() else { continue };
        if let Some(other) = seen.insert(revision, entry) {
            found.lost(entry.to_string(), format!("{entry} and {other} were both told revision {revision}"));
        }
    }
}

fn judge_holding(name: &str, journal: &[Entry], holding: &Holding, found: &mut Found) {
    let mut explained: BTreeSet<&str> = BTreeSet::new();
    let mut counters: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    for entry in journal {
        let (key, value) = entry.trace();
        explained.insert(key);
        if let Ask::Count { counter, to, .. } = &entry.ask {
            explained.insert(counter);
            let steps = counters.entry(counter).or_default();
            if holding.contains_key(key) {
                steps.push(*to);
            }
        }
        judge_entry(name, entry, key, &value, holding.get(key), found);
    }
    for (counter, steps) in counters {
        judge_counter(name, counter, steps, holding.get(counter), found);
    }
    for key in holding.keys().filter(|key| !explained.contains(key.as_str())) {
        found.differs(format!("{name} holds {key}, which no client wrote"));
    }
}

fn judge_entry(name: &str, entry: &Entry, key: &str, value: &str, held: Option<&Held>, found: &mut Found) {
    match (&entry.told, held) {
        (Told::Acknowledged { .. }, None) => {
            found.lost(entry.to_string(), format!("{entry} was acknowledged, and {name} has no {key}"));
        }
        (Told::Acknowledged { revision }, Some(held)) => {
            if held.value != value.as_bytes() {
                found.lost(
                    entry.to_string(),
                    format!("{name} holds another value of {key} than {entry} wrote"),
                );
            } else if held.create_revision != *revision {
                let there = held.create_revision;
                found.lost(
                    entry.to_string(),
                    format!("{entry} was told revision {revision}, {name} has {key} since revision {there}"),
                );
            }
        }
        (Told::NotApplied { why }, Some(_)) => {
            found.doubled(
                entry.to_string(),
                format!("{entry} was told \"{why}\" (not applied), and {name} has {key}"),
            );
        }
        (Told::Unknown { .. }, Some(held)) if held.value != value.as_bytes() => {
            found.differs(format!("{name} holds a value of {key} that nobody wrote"));
        }
        (Told::NotApplied { .. } | Told::Unknown { .. }, _) => {}
    }
    // Nobody else writes this key, so whatever was told: a second version is a second run.
    if let Some(held) = held.filter(|held| held.version != 1 || held.create_revision != held.mod_revision) {
        found.doubled(
            entry.to_string(),
            format!("{entry} ran {} times by the version of {key} at {name}", held.version),
        );
    }
}

/// `steps` are the values that this counter's transactions left marks of: each once, and the last is its value.
fn judge_counter(name: &str, counter: &str, mut steps: Vec<u64>, held: Option<&Held>, found: &mut Found) {
    let value = held.and_then(|held| std::str::from_utf8(&held.value).ok()?.parse::<u64>().ok()).unwrap_or(0);
    let version = held.map_or(0, |held| held.version);
    steps.sort_unstable();
    for pair in steps.windows(2).filter(|pair| pair[0] == pair[1]) {
        found.lost(
            format!("{counter} at {}", pair[0]),
            format!("two increments took {counter} to {} at {name}", pair[0]),
        );
    }
    steps.dedup();
    if steps.len() as u64 != value {
        found.lost(
            counter.to_string(),
            format!("{counter} is {value} at {name}, and {} increments left their mark", steps.len()),
        );
    }
    if version != value {
        found.doubled(
            counter.to_string(),
            format!("{counter} is {value} at {name} and was written {version} times"),
        );
    }
}

fn compare(name: &str, holding: &Holding, agreed: &Holding, found: &mut Found) {
    for (key, held) in agreed {
        match holding.get(key) {
            None => found.differs(format!("{name} has no {key}, the cluster does")),
            Some(own) if own != held => found.differs(format!("{name} and the cluster differ in {key}")),
            Some(_) => {}
        }
    }
    for key in holding.keys().filter(|key| !agreed.contains_key(*key) && key.starts_with(PREFIX)) {
        found.differs(format!("{name} has {key}, the cluster does not"));
    }
}

/// Nodes that run were read at one place, and so were the disks after they had stopped; between the two the cluster may
/// have passed a checkpoint.
fn compare_digests(nodes: &[NodeView], found: &mut Found) {
    if nodes.is_empty() {
        return found.differs("no node was read".into());
    }
    for node in nodes {
        let (sequence, digest) = &node.digest;
        if *sequence == 0 || digest.is_empty() {
            found.differs(format!("{} gave no digest", node.name));
            continue;
        }
        let comparable = |other: &&NodeView| other.on_disk == node.on_disk || other.digest.0 == node.digest.0;
        let first = nodes.iter().find(comparable).unwrap_or(node);
        if node.digest != first.digest {
            found.differs(format!(
                "the state digest of {} is {digest:.16} at sequence {sequence}, that of {} {:.16} at {}",
                node.name, first.name, first.digest.1, first.digest.0
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::journal::{counter_key, mark_key, write_key};
    use super::*;

    fn held(value: &str, revision: u64, version: u64, created: u64) -> Held {
        Held { value: value.into(), version, create_revision: created, mod_revision: revision }
    }

    /// Forty writes and twenty increments by four clients, all acknowledged, and what a faithful store then holds.
    fn faithful() -> (Vec<Entry>, Holding) {
        let (mut journal, mut holding) = (Vec::new(), Holding::new());
        let mut revision = 1;
        let mut count = 0;
        for number in 0..15 {
            for client in 0..4 {
                revision += 1;
                let ask = if number % 3 == 2 {
                    count += 1;
                    let (counter, mark) = (counter_key(0), mark_key(client, number));
                    holding.insert(mark.clone(), held(&count.to_string(), revision, 1, revision));
                    let created = holding.get(&counter).map_or(revision, |held| held.create_revision);
                    holding.insert(counter.clone(), held(&count.to_string(), revision, count, created));
                    Ask::Count { counter, to: count, mark }
                } else {
                    let (key, value) = (write_key(client, number), format!("{client}-{number}"));
                    holding.insert(key.clone(), held(&value, revision, 1, revision));
                    Ask::Write { key, value }
                };
                let told = Told::Acknowledged { revision };
                journal.push(Entry { client, number, ask, told, sent_us: revision, done_us: revision + 1 });
            }
        }
        (journal, holding)
    }

    fn views(holding: &Holding) -> Vec<NodeView> {
        let view = |node| NodeView {
            name: format!("node {node}"),
            on_disk: false,
            holding: holding.clone(),
            digest: (128, "feed".into()),
        };
        (0..4).map(view).collect()
    }

    impl Verdict {
        fn good(&self) -> bool {
            self.lost == 0 && self.doubled == 0 && !self.diverged()
        }
    }

    #[test]
    fn a_faithful_cluster_passes() {
        let (journal, holding) = faithful();
        let verdict = verify(&journal, &holding, &views(&holding));
        assert!(verdict.good(), "{verdict:?}");
        assert_eq!(verdict.acknowledged, 60);
    }

    #[test]
    fn an_entry_dropped_anywhere_is_lost() {
        let (journal, holding) = faithful();
        for key in holding.keys() {
            let mut less = holding.clone();
            less.remove(key);
            let verdict = verify(&journal, &less, &views(&less));
            assert!(verdict.lost > 0, "{key}: {verdict:?}");
            let mut nodes = views(&holding);
            nodes[2].holding.remove(key);
            let verdict = verify(&journal, &holding, &nodes);
            assert!(verdict.lost > 0 && verdict.diverged(), "{key}: {verdict:?}");
        }
    }

    #[test]
    fn an_entry_run_twice_anywhere_is_doubled() {
        let (journal, holding) = faithful();
        for (key, held) in &holding {
            let twice =
                Held { version: held.version + 1, mod_revision: held.mod_revision + 1, ..held.clone() };
            let mut more = holding.clone();
            more.insert(key.clone(), twice.clone());
            let verdict = verify(&journal, &more, &views(&more));
            assert!(verdict.doubled > 0, "{key}: {verdict:?}");
            let mut nodes = views(&holding);
            nodes[3].holding.insert(key.clone(), twice);
            let verdict = verify(&journal, &holding, &nodes);
            assert!(verdict.doubled > 0 && verdict.diverged(), "{key}: {verdict:?}");
        }
    }

    #[test]
    fn an_entry_altered_anywhere_is_found() {
        let (journal, holding) = faithful();
        for (key, held) in &holding {
            let altered = Held { value: b"77".to_vec(), ..held.clone() };
            let mut other = holding.clone();
            other.insert(key.clone(), altered.clone());
            let verdict = verify(&journal, &other, &views(&other));
            assert!(verdict.lost > 0, "{key}: {verdict:?}");
            let mut nodes = views(&holding);
            nodes[0].holding.insert(key.clone(), altered);
            let verdict = verify(&journal, &holding, &nodes);
            assert!(
                verdict.diverged() && verdict.findings.iter().any(|f| f.contains(key)),
                "{key}: {verdict:?}"
            );
        }
    }

    #[test]
    fn what_was_refused_must_not_be_there_and_what_is_unknown_may() {
        let (mut journal, holding) = faithful();
        let original = journal[0].told.clone();
        journal[0].told = Told::Unknown { why: "no answer".into() };
        assert!(verify(&journal, &holding, &views(&holding)).good());
        let mut without = holding.clone();
        without.remove(journal[0].trace().0);
        assert!(verify(&journal, &without, &views(&without)).good());
        journal[0].told = Told::NotApplied { why: "refused".into() };
        assert_eq!(verify(&journal, &holding, &views(&holding)).doubled, 1);
        journal[0].told = original;
        assert!(verify(&journal, &holding, &views(&holding)).good());
    }

    #[test]
    fn a_key_nobody_wrote_and_a_digest_that_differs_are_divergence() {
        let (journal, holding) = faithful();
        let mut more = holding.clone();
        more.insert(format!("{PREFIX}ghost"), held("x", 900, 1, 900));
        assert!(verify(&journal, &more, &views(&more)).diverged());
        let mut nodes = views(&holding);
        nodes[1].digest.1 = "f00d".into();
        assert_eq!(verify(&journal, &holding, &nodes).differences, 1);
        nodes[1].digest = (256, "feed".into());
        assert_eq!(verify(&journal, &holding, &nodes).differences, 1);
        let mut twice = views(&holding);
        twice.extend(views(&holding));
        let half = twice.len() / 2;
        for disk in &mut twice[half..] {
            (disk.on_disk, disk.digest) = (true, (256, "beef".into()));
        }
        assert_eq!(verify(&journal, &holding, &twice).differences, 0, "disks are read a checkpoint later");
        twice[half].digest.1 = "f00d".into();
        assert!(verify(&journal, &holding, &twice).diverged(), "one of the disks is another");
        twice[half..].iter_mut().for_each(|disk| disk.digest = (128, "beef".into()));
        assert!(verify(&journal, &holding, &twice).diverged(), "at one sequence there is one digest");
        nodes[1].digest = (0, String::new());
        assert_eq!(verify(&journal, &holding, &nodes).differences, 1);
        assert!(verify(&journal, &holding, &[]).diverged());
    }

    #[test]
    fn two_acknowledgements_of_one_revision_are_one_lost_write() {
        let (mut journal, holding) = faithful();
        let revision = journal[0].acknowledged().unwrap();
        journal[1].told = Told::Acknowledged { revision };
        assert!(verify(&journal, &holding, &views(&holding)).lost > 0);
    }
}
