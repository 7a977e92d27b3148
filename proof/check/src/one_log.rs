//! One virtual log: whichever protocol brought an entry, honest replicas have the same chain at the same position, segments
//! begin and end at one place for all, and what an Anchor covers stays.
//!
//! A claim is "at this position the chain of the log is that". Of the root's entries, of what it had deferred, of Closes and of
//! Anchors claims are final. Those of a segment's entries are final where every member is honest; where one may lie they are
//! final as far as the segment's Close or an Anchor leads back to them, and what a replica executed besides is counted.

use crate::history::{Closed, Entry, ReplicaEvent, ReplicaJournal};
use crate::text::short;
use crate::verdict::{Findings, Judge};
use std::collections::{BTreeMap, HashMap, HashSet};

/// An entry of a segment: epoch, index, and the chain of the log with it.
pub type Branch = (u64, u64, [u8; 32]);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub findings: Findings,
    /// Entries of segments that some honest replica executed and that are not part of the log. Empty unless somebody may lie.
    pub discarded: HashSet<Branch>,
}

#[derive(Clone, Copy)]
struct Claim<'a> {
    journal: &'a ReplicaJournal,
    at_us: u64,
    chain: [u8; 32],
    what: &'static str,
}

#[derive(Default)]
struct Log<'a> {
    findings: Findings,
    opens: BTreeMap<u64, (&'a ReplicaJournal, u64, u64)>,
    closes: BTreeMap<u64, (&'a ReplicaJournal, &'a Closed)>,
    claims: HashMap<u64, Claim<'a>>,
}

/// `members_may_lie`: what segments acknowledge under the label `crash` may be lost.
pub fn judge(replicas: &[ReplicaJournal], members_may_lie: bool) -> Report {
    let honest = || replicas.iter().filter(|journal| journal.honest);
    let mut log = Log::default();
    honest().for_each(|journal| log.take_borders(journal));
    honest().for_each(|journal| log.take_final_claims(journal));
    let mut discarded = HashSet::new();
    if members_may_lie {
        let on_log = log.lead_back(honest());
        let covered: HashSet<(u64, u64)> = on_log.iter().map(|(epoch, index, _)| (*epoch, *index)).collect();
        for branch in honest().flat_map(branches) {
            let (epoch, index, _) = branch;
            let past_tail = log.closes.get(&epoch).is_some_and(|(_, close)| index > close.tail);
            if past_tail || (covered.contains(&(epoch, index)) && !on_log.contains(&branch)) {
                discarded.insert(branch);
            }
        }
    }
    honest().for_each(|journal| log.take_segments(journal, members_may_lie, &discarded));
    honest().for_each(|journal| judge_order(journal, members_may_lie, &mut log.findings));
    judge_standing(honest(), &mut log.findings);
    Report { findings: log.findings, discarded }
}

fn branches(journal: &ReplicaJournal) -> impl Iterator<Item = Branch> {
    journal.events.iter().filter_map(|stamped| match &stamped.event {
        ReplicaEvent::SegmentExecuted { epoch, index, entry } => Some((*epoch, *index, entry.chain)),
        _ => None,
    })
}

impl<'a> Log<'a> {
    fn find(&mut self, reason: String, evidence: Vec<String>) {
        self.findings.push(Judge::OneLog, reason, evidence);
    }

    fn claim(&mut self, position: u64, claim: Claim<'a>) {
        let first = *self.claims.entry(position).or_insert(claim);
        if first.chain != claim.chain {
            let line = |claim: &Claim<'_>| {
                let Claim { journal, at_us, chain, what } = claim;
                format!("at {at_us} us {}: {what}, chain {}", journal.name(), short(chain))
            };
            self.find(format!("two logs at position {position}"), vec![line(&first), line(&claim)]);
        }
    }

    /// Where segments begin and end.
    fn take_borders(&mut self, journal: &'a ReplicaJournal) {
        for stamped in &journal.events {
            match &stamped.event {
                ReplicaEvent::Opened { epoch, sequence, base } => {
                    let (other, at, from) = *self.opens.entry(*epoch).or_insert((journal, *sequence, *base));
                    if (at, from) != (*sequence, *base) {
                        let line = |journal: &ReplicaJournal, sequence, base| {
                            format!("{}: by sequence {sequence}, base {base}", journal.name())
                        };
                        let evidence = vec![line(other, at, from), line(journal, *sequence, *base)];
                        self.find(format!("two Opens of epoch {epoch}"), evidence);
                    }
                }
                ReplicaEvent::Closed(close) => {
                    let (other, first) = *self.closes.entry(close.epoch).or_insert((journal, close));
                    let key = |close: &Closed| (close.sequence, close.tail, close.marker);
                    let chains = first.chain.zip(close.chain).is_none_or(|(a, b)| a == b);
                    if key(first) != key(close) || !chains {
                        let line = |journal: &ReplicaJournal, close: &Closed| {
                            let Closed { sequence, tail, marker, chain, .. } = close;
                            let chain = chain.map_or_else(|| "unseen".to_string(), |chain| short(&chain));
                            let name = journal.name();
                            format!(
                                "{name}: by sequence {sequence}, tail {tail}, marker {marker}, chain {chain}"
                            )
                        };
                        let evidence = vec![line(other, first), line(journal, close)];
                        self.find(format!("two Closes of epoch {}", close.epoch), evidence);
                    }
                }
                _ => {}
            }
        }
    }

    fn base(&self, epoch: u64) -> Option<u64> {
        self.opens.get(&epoch).map(|(_, _, base)| *base)
    }

    fn take_final_claims(&mut self, journal: &'a ReplicaJournal) {
        for stamped in &journal.events {
            let at_us = stamped.at_us;
            let claim = |chain, what| Claim { journal, at_us, chain, what };
            match &stamped.event {
                ReplicaEvent::Executed(entry) => {
                    if let Some(chain) = entry.chain {
                        self.claim(entry.position, claim(chain, "the root's log"));
                    }
                }
                ReplicaEvent::DeferredExecuted { entry: Entry { position, chain, .. }, .. } => {
                    self.claim(*position, claim(*chain, "a deferred batch"));
                }
                ReplicaEvent::Closed(close) => {
                    if let Some((base, chain)) = self.base(close.epoch).zip(close.chain) {
                        self.claim(base + close.tail, claim(chain, "the tail of a Close"));
                    }
                }
                ReplicaEvent::Anchored { epoch, index, chain } => {
                    let tail = self.closes.get(epoch).map(|(_, close)| close.tail);
                    if let Some(tail) = tail.filter(|tail| tail < index) {
                        let reason =
                            format!("epoch {epoch} was closed at {tail}, below its Anchor at {index}");
                        self.find(reason, vec![format!("at {at_us} us {}", journal.name())]);
                    }
                    if let Some((base, chain)) = self.base(*epoch).zip(*chain) {
                        self.claim(base + index, claim(chain, "an Anchor"));
                    }
                }
                _ => {}
            }
        }
    }

    /// What the final claims lead back to, entry by entry, as replicas executed one after the other.
    fn lead_back(&self, honest: impl Iterator<Item = &'a ReplicaJournal>) -> HashSet<Branch> {
        let mut parents: HashMap<Branch, [u8; 32]> = HashMap::new();
        let mut ends: HashSet<Branch> = HashSet::new();
        for journal in honest {
            let mut last: Option<Branch> = None;
            for stamped in &journal.events {
                match &stamped.event {
                    ReplicaEvent::SegmentExecuted { epoch, index, entry } => {
                        let branch = (*epoch, *index, entry.chain);
                        if let Some((_, _, chain)) =
                            last.filter(|(of, at, _)| (*of, at + 1) == (*epoch, *index))
                        {
                            parents.insert(branch, chain);
                        }
                        last = Some(branch);
                    }
                    ReplicaEvent::Closed(Closed { epoch, tail, chain: Some(chain), .. })
                    | ReplicaEvent::Anchored { epoch, index: tail, chain: Some(chain) } => {
                        ends.insert((*epoch, *tail, *chain));
                    }
                    ReplicaEvent::Boot | ReplicaEvent::Installs { .. } => last = None,
                    _ => {}
                }
            }
            // The last epoch may be open still.
            ends.extend(last.filter(|(epoch, ..)| !self.closes.contains_key(epoch)));
        }
        let mut on_log = HashSet::new();
        for end in ends {
            let mut here = Some(end);
            while let Some(branch) = here.filter(|branch| on_log.insert(*branch)) {
                let (epoch, index, _) = branch;
                here = parents.get(&branch).map(|chain| (epoch, index - 1, *chain));
            }
        }
        on_log
    }

    fn take_segments(
        &mut self,
        journal: &'a ReplicaJournal,
        members_may_lie: bool,
        discarded: &HashSet<Branch>,
    ) {
        for stamped in &journal.events {
            let ReplicaEvent::SegmentExecuted { epoch, index, entry } = &stamped.event else { continue };
            let (chain, at_us) = (entry.chain, stamped.at_us);
            let evidence = || vec![format!("at {at_us} us {}, chain {}", journal.name(), short(&chain))];
            if let Some(base) = self.base(*epoch).filter(|base| base + index != entry.position) {
                let position = entry.position;
                let reason = format!(
                    "index {index} of epoch {epoch} (base {base}) was executed at position {position}"
                );
                self.find(reason, evidence());
                continue;
            }
            let is_closed = self.closes.contains_key(epoch);
            if discarded.contains(&(*epoch, *index, chain)) || (members_may_lie && !is_closed) {
                continue;
            }
            if let Some(tail) =
                self.closes.get(epoch).map(|(_, close)| close.tail).filter(|tail| tail < index)
            {
                self.find(
                    format!("index {index} of epoch {epoch} was executed past its tail {tail}"),
                    evidence(),
                );
                continue;
            }
            self.claim(entry.position, Claim { journal, at_us, chain, what: "a segment's entry" });
        }
    }
}

/// Within a boot a segment's entries are executed one by one, up to the tail of its Close; only a snapshot, or a roll-back where
/// somebody lies, goes back.
fn judge_order(journal: &ReplicaJournal, members_may_lie: bool, findings: &mut Findings) {
    let mut last: Option<Branch> = None;
    let mut anchored: Option<(u64, u64)> = None;
    for stamped in &journal.events {
        match &stamped.event {
            ReplicaEvent::SegmentExecuted { epoch, index, entry } => {
                let follows = last.is_none_or(|(of, at, _)| match epoch.cmp(&of) {
                    std::cmp::Ordering::Equal => *index == at + 1 || (members_may_lie && *index <= at),
                    std::cmp::Ordering::Greater => *index == 1,
                    std::cmp::Ordering::Less => false,
                });
                if !follows {
                    let (of, at, _) = last.unwrap_or_default();
                    let name = journal.name();
                    let reason = format!(
                        "{name} executed index {index} of epoch {epoch} right after index {at} of epoch {of}"
                    );
                    findings.push(Judge::OneLog, reason, vec![format!("at {} us", stamped.at_us)]);
                }
                last = Some((*epoch, *index, entry.chain));
            }
            ReplicaEvent::Anchored { epoch, index, .. } => anchored = Some((*epoch, *index)),
            ReplicaEvent::Closed(close) => {
                let Closed { epoch, tail, rolled_back, .. } = *close;
                let at_us = || vec![format!("at {} us", stamped.at_us)];
                if rolled_back > 0 && !members_may_lie {
                    let reason = format!(
                        "{} rolled {rolled_back} entries of epoch {epoch} back though nobody lies",
                        journal.name(),
                    );
                    findings.push(Judge::OneLog, reason, at_us());
                }
                // Where it rolled back to the very tail, to the last Anchor or the base, there was nothing left to execute.
                let taken_back = rolled_back > 0 && (tail == 0 || anchored == Some((epoch, tail)));
                if let Some((_, at, chain)) = last.filter(|(of, ..)| *of == epoch && !taken_back)
                    && (at != tail || close.chain.is_some_and(|ends| ends != chain))
                {
                    let reason = format!(
                        "{} closed epoch {epoch} at {tail} without the entries that lead there",
                        journal.name(),
                    );
                    let mut evidence = at_us();
                    evidence.push(format!("it had executed up to {at}, chain {}", short(&chain)));
                    findings.push(Judge::OneLog, reason, evidence);
                }
            }
            ReplicaEvent::Boot | ReplicaEvent::Installs { .. } => last = None,
            _ => {}
        }
    }
}

/// Where replicas stand when all is quiet.
fn judge_standing<'a>(honest: impl Iterator<Item = &'a ReplicaJournal>, findings: &mut Findings) {
    let mut first: Option<(&ReplicaJournal, u64, [u8; 32], [u8; 32])> = None;
    for journal in honest {
        for stamped in &journal.events {
            let ReplicaEvent::Stands { position, chain, state } = stamped.event else { continue };
            let (other, at, log, held) = *first.get_or_insert((journal, position, chain, state));
            let what = match (at == position, log == chain, held == state) {
                (false, ..) => "positions",
                (_, false, _) => "logs",
                (.., false) => "states",
                _ => continue,
            };
            let line = |journal: &ReplicaJournal, position, chain, state| {
                format!(
                    "{}: position {position}, chain {}, state {}",
                    journal.name(),
                    short(chain),
                    short(state)
                )
            };
            let evidence = vec![line(other, at, &log, &held), line(journal, position, &chain, &state)];
            findings.push(Judge::OneLog, format!("two {what} at the end"), evidence);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(index: u64) -> [u8; 32] {
        [index as u8; 32]
    }

    fn ran(index: u64, chain: [u8; 32]) -> ReplicaEvent {
        let entry = Entry { position: 10 + index, chain, commands: vec![] };
        ReplicaEvent::SegmentExecuted { epoch: 1, index, entry }
    }

    fn close(tail: u64) -> ReplicaEvent {
        let chain = Some(chain(tail));
        ReplicaEvent::Closed(Closed {
            epoch: 1,
            sequence: 9,
            tail,
            chain,
            marker: false,
            forced: false,
            rolled_back: 0,
        })
    }

    fn anchored(index: u64) -> ReplicaEvent {
        ReplicaEvent::Anchored { epoch: 1, index, chain: Some(chain(index)) }
    }

    /// Two replicas that executed a segment of five entries, anchored at the third.
    fn cluster() -> Vec<ReplicaJournal> {
        (0..2)
            .map(|id| {
                let mut journal = ReplicaJournal::new(id, 0, true, true);
                journal.note(1, ReplicaEvent::Opened { epoch: 1, sequence: 4, base: 10 });
                for index in 1..=5 {
                    journal.note(1 + index, ran(index, chain(index)));
                }
                journal.note(7, anchored(3));
                journal.note(8, close(5));
                journal.note(9, ReplicaEvent::Stands { position: 15, chain: chain(5), state: [1; 32] });
                journal
            })
            .collect()
    }

    /// Before its Close the replica goes back to the Anchor, and on to the tail.
    fn goes_back(journal: &mut ReplicaJournal) {
        let place =
            journal.events.iter().position(|one| matches!(one.event, ReplicaEvent::Closed(_))).unwrap();
        let ReplicaEvent::Closed(close) = &mut journal.events[place].event else { panic!("a Close") };
        close.rolled_back = 1;
        journal.events.splice(place..place, (4..=5).map(|index| at(ran(index, chain(index)))));
    }

    fn refused(spoil: impl FnOnce(&mut Vec<ReplicaJournal>), reason: &str) {
        let mut replicas = cluster();
        spoil(&mut replicas);
        let findings = judge(&replicas, false).findings;
        assert!(findings.has(reason), "expected {reason:?}, got: {findings}");
    }

    #[test]
    fn one_log_is_accepted() {
        for may_lie in [false, true] {
            let report = judge(&cluster(), may_lie);
            assert!(report.findings.is_empty() && report.discarded.is_empty(), "{}", report.findings);
        }
    }

    #[test]
    fn another_entry_at_one_position_is_refused() {
        refused(|replicas| replicas[1].events[5].event = ran(5, chain(77)), "two logs at position 15");
    }

    #[test]
    fn a_segment_has_one_beginning_and_one_end() {
        refused(
            |replicas| replicas[1].events[0].event = ReplicaEvent::Opened { epoch: 1, sequence: 5, base: 10 },
            "two Opens of epoch 1",
        );
        refused(|replicas| replicas[1].events[7].event = close(4), "two Closes of epoch 1");
    }

    #[test]
    fn an_end_below_an_anchor_is_refused_whoever_lies() {
        let mut replicas = cluster();
        replicas.iter_mut().for_each(|journal| journal.events[7].event = close(2));
        for may_lie in [false, true] {
            assert!(judge(&replicas, may_lie).findings.has("closed at 2, below its Anchor at 3"));
        }
    }

    #[test]
    fn what_was_executed_past_the_tail_is_refused_unless_somebody_may_lie() {
        let past = |replicas: &mut Vec<ReplicaJournal>| replicas[1].events.insert(6, at(ran(6, chain(66))));
        refused(past, "executed past its tail 5");
        let mut replicas = cluster();
        past(&mut replicas);
        goes_back(&mut replicas[1]);
        let report = judge(&replicas, true);
        assert!(report.findings.is_empty(), "{}", report.findings);
        assert_eq!(report.discarded, HashSet::from([(1, 6, chain(66))]));
    }

    #[test]
    fn a_close_without_the_entries_that_lead_to_its_tail_is_refused_whoever_lies() {
        let without = "closed epoch 1 at 5 without the entries that lead there";
        let spoils: [fn(&mut ReplicaJournal); 2] = [
            |journal| drop(journal.events.remove(5)),
            // It went back to its Anchor, and on from there by nothing.
            |journal| {
                let ReplicaEvent::Closed(close) = &mut journal.events[7].event else { panic!("a Close") };
                (close.chain, close.rolled_back) = (Some(chain(77)), 2);
            },
        ];
        for spoil in spoils {
            let mut replicas = cluster();
            replicas.iter_mut().for_each(spoil);
            assert!(judge(&replicas, true).findings.has(without));
        }
        // What a replica executed before it started again, or took over with a snapshot, is nobody's to see.
        let mut replicas = cluster();
        replicas[1].events.splice(5..=5, [at(ReplicaEvent::Boot)]);
        assert!(judge(&replicas, false).findings.is_empty());
        // All that a liar made it execute past the Anchor is gone, and the Anchor is the tail.
        replicas = cluster();
        for journal in &mut replicas {
            journal.events[7].event = close(3);
            let ReplicaEvent::Closed(close) = &mut journal.events[7].event else { panic!("a Close") };
            close.rolled_back = 2;
            journal.events[8].event = ReplicaEvent::Stands { position: 13, chain: chain(3), state: [1; 32] };
        }
        assert!(judge(&replicas, true).findings.is_empty());
    }

    #[test]
    fn another_branch_is_discarded_where_somebody_may_lie_and_a_root_entry_never_is() {
        let mut replicas = cluster();
        replicas[1].events[5].event = ran(5, chain(77));
        goes_back(&mut replicas[1]);
        let report = judge(&replicas, true);
        assert_eq!(report.discarded, HashSet::from([(1, 5, chain(77))]));
        assert!(report.findings.is_empty(), "{}", report.findings);
        let entry = Entry { position: 15, chain: chain(78), commands: vec![] };
        replicas[1].note(10, ReplicaEvent::DeferredExecuted { sequence: 8, entry });
        assert!(judge(&replicas, true).findings.has("two logs at position 15"));
    }

    #[test]
    fn a_skipped_index_and_another_end_are_refused() {
        let skip = |replicas: &mut Vec<ReplicaJournal>| drop(replicas[0].events.remove(3));
        refused(skip, "executed index 4 of epoch 1 right after index 2");
        let other = ReplicaEvent::Stands { position: 15, chain: chain(5), state: [2; 32] };
        refused(|replicas| replicas[1].events[8].event = other, "two states at the end");
    }

    fn at(event: ReplicaEvent) -> crate::history::Stamped {
        crate::history::Stamped { at_us: 7, event }
    }
}
