//! Leases: each ends once, at one entry of the virtual log and the same for every replica, when its time has come by the log's
//! clock and not before; and no sooner by true time than clocks may be apart, nor much later once the faults have stopped.
//!
//! The rule is worked out anew here, from what clients asked and from where honest replicas executed it: a lease runs from the
//! entry that granted it or last kept it alive, on a clock that follows log time by at most `STEP_MAX_MS` an entry, and ends at
//! the first entry at which it has run, before that entry's commands. What the stores under the replicas showed is compared
//! with it entry by entry, whoever executed it, as often as it was executed: before a switch and behind it, after a restart, a
//! snapshot or a state transfer. Knows no store; how keys hang on leases it takes from what vanished.

use crate::history::{CommandId, ExecutedCommand, ReplicaEvent, ReplicaJournal};
use crate::live::Calm;
use crate::one_log::Branch;
use crate::verdict::{Findings, Judge};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap, HashSet};

/// What one entry may take off a lease: an outage, or a switch, takes no more by itself.
pub const STEP_MAX_MS: u64 = 2_000;
/// Positions between an expiry and the beginning or end of a segment that count as near.
pub const NEAR: u64 = 8;

/// The id under which the cluster's own journal holds the end of a lease: a call of unknown outcome, by its expiry or by a
/// client's revocation. So the search for an order can look up where time took its keys.
pub fn end_id(lease: u64, by_client: bool) -> CommandId {
    CommandId { session: u128::from(by_client), seq: lease }
}

/// What an entry of the virtual log did to leases.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turn {
    pub position: u64,
    /// Of an entry of a segment: its epoch, index and chain. None where it cannot be taken back.
    pub branch: Option<(u64, u64, [u8; 32])>,
    /// Where it was seen.
    pub log_time_ms: Option<u64>,
    pub expiry_ms: u64,
    /// Leases that ended because time had moved, before the entry's commands.
    pub ended: Vec<u64>,
    /// Leases that its commands granted, and those that they ended.
    pub begun: Vec<u64>,
    pub revoked: Vec<u64>,
    /// Leases that came or went since the entry before.
    pub strayed: Vec<u64>,
    /// Keys that time took, one after the other, each with the lease it hung on.
    pub vanished: Vec<(Vec<u8>, u64)>,
}

/// What a client asks of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    Grant { ttl_s: u64 },
    Keep,
    Revoke,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    pub lease: u64,
    pub at_us: u64,
    pub wish: Wish,
}

/// A question how long a lease has to live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    pub lease: u64,
    pub at_us: u64,
    /// When it was answered beyond doubt, with the seconds left. None: there is no such lease.
    pub answer: Option<(u64, Option<u64>)>,
}

/// What the judge must be told.
#[derive(Clone, Debug, Default)]
pub struct Terms {
    pub asks: HashMap<CommandId, Ask>,
    pub looks: HashMap<CommandId, Look>,
    /// The Unix time at which true time was 0.
    pub begun_unix_ms: u64,
    /// How far log time may be ahead of true time.
    pub ahead_ms: u64,
    /// By how much a lease may seem to end early by true time, for clocks are apart.
    pub apart_us: u64,
    /// How much longer than its time a lease may live in the calm. None: not judged, for somebody may hold time still.
    pub late_us: Option<u64>,
    /// Since when every member has a vote. Before, the log may stand still, and lateness is not counted.
    pub whole_since_us: u64,
}

/// What became of leases, each counted once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub granted: u64,
    pub kept: u64,
    pub revoked: u64,
    pub expired: u64,
    /// Of these, at an entry of a segment; near the beginning or end of one; in another epoch than they were last kept alive in.
    pub expired_in_segment: u64,
    pub expired_near_switch: u64,
    pub expired_elsewhere: u64,
    /// Snapshots with leases in them that replicas went on from.
    pub restored: u64,
    /// The longest that a lease outlived its time in the calm.
    pub late_max_us: u64,
    /// Positions at which the judge lost sight of the log. What comes after them is not judged.
    pub unseen: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub findings: Findings,
    pub counts: Counts,
}

/// One entry as honest replicas agree on it.
struct Seen<'a> {
    turn: &'a Turn,
    journal: &'a ReplicaJournal,
    log_time_ms: Option<u64>,
    /// When the first of them executed it.
    at_us: u64,
}

/// A lease in force.
#[derive(Clone, Copy)]
struct Held {
    ttl_ms: u64,
    deadline_ms: u64,
    asked_us: u64,
    renewed_us: u64,
    /// The epoch of the entry that renewed it; None: the root's.
    epoch: Option<u64>,
}

/// When it was granted and when it ended first, by the first execution.
struct Life {
    granted_us: u64,
    ended: Option<(u64, u64)>,
    grants: u64,
    ttl_s: u64,
}

/// Stretches of the log that were segments': from, epoch, to.
struct Stretches(Vec<(u64, u64, u64)>);

impl Stretches {
    fn of<'a>(replicas: impl Iterator<Item = &'a ReplicaJournal>) -> Self {
        let mut opens = BTreeMap::new();
        let mut tails = BTreeMap::new();
        for stamped in replicas.flat_map(|journal| &journal.events) {
            match &stamped.event {
                ReplicaEvent::Opened { epoch, base, .. } => drop(opens.insert(*epoch, *base)),
                ReplicaEvent::Closed(close) => drop(tails.insert(close.epoch, close.tail)),
                _ => {}
            }
        }
        let end = |epoch: &u64, base: u64| tails.get(epoch).map_or(u64::MAX, |tail| base + tail);
        Self(opens.iter().map(|(epoch, base)| (*base, *epoch, end(epoch, *base))).collect())
    }

    fn epoch(&self, position: u64) -> Option<u64> {
        let holds = |(from, _, to): &&(u64, u64, u64)| *from < position && position <= *to;
        self.0.iter().find(holds).map(|(_, epoch, _)| *epoch)
    }

    fn is_near(&self, position: u64) -> bool {
        self.0.iter().any(|(from, _, to)| position.abs_diff(*from) <= NEAR || position.abs_diff(*to) <= NEAR)
    }
}

struct Walk<'a> {
    terms: &'a Terms,
    calm: Option<Calm>,
    stretches: Stretches,
    held: BTreeMap<u64, Held>,
    lives: BTreeMap<u64, Life>,
    report: Report,
}

/// `discarded`: entries of segments that are not part of the log. `calm`: when the faults stopped.
pub fn judge(
    replicas: &[ReplicaJournal],
    discarded: &HashSet<Branch>,
    terms: &Terms,
    calm: Option<Calm>,
) -> Report {
    let honest = || replicas.iter().filter(|journal| journal.honest);
    let mut walk = Walk {
        terms,
        calm,
        stretches: Stretches::of(honest()),
        held: BTreeMap::new(),
        lives: BTreeMap::new(),
        report: Report::default(),
    };
    let seen = walk.merge(honest(), discarded);
    let discards = |epoch: u64, index: u64, chain| discarded.contains(&(epoch, index, chain));
    let mut ran: HashMap<u64, &[ExecutedCommand]> = HashMap::new();
    for (position, commands) in honest().flat_map(|journal| journal.ran_unless(discards)) {
        if !commands.is_empty() {
            ran.insert(position, commands);
        }
    }
    let mut snapshots: HashMap<u64, Vec<(&ReplicaJournal, &[u64])>> = HashMap::new();
    for journal in honest() {
        for stamped in &journal.events {
            if let ReplicaEvent::HoldsLeases { position, leases } = &stamped.event {
                snapshots.entry(*position).or_default().push((journal, leases));
            }
        }
    }
    let mut clock = LogClock::default();
    let mut last = 0;
    for (position, entry) in &seen {
        if *position != last + 1 {
            // Everybody who executed it lost it again before it was written down; what is in force now is not known.
            walk.report.counts.unseen = seen.range(position..).count() as u64;
            break;
        }
        last = *position;
        walk.tell_time(&mut clock, entry);
        walk.pass(entry, ran.get(position).copied().unwrap_or_default());
        for (journal, leases) in snapshots.get(position).into_iter().flatten() {
            walk.compare_snapshot(*position, journal, leases);
        }
    }
    if walk.report.counts.unseen == 0 {
        walk.judge_end();
        walk.judge_looks();
    }
    walk.report
}

/// What is known of log time and the expiry clock behind an entry.
#[derive(Default)]
struct LogClock {
    expiry_ms: u64,
    /// The last entry whose log time is known: log time, expiry clock.
    known: Option<(u64, u64)>,
    /// A gap was cut since.
    cut: bool,
}

impl<'a> Walk<'a> {
    fn find(&mut self, reason: String, evidence: Vec<String>) {
        self.report.findings.push(Judge::Lease, reason, evidence);
    }

    /// What honest replicas say each entry did, which must be the same.
    fn merge(
        &mut self,
        honest: impl Iterator<Item = &'a ReplicaJournal>,
        discarded: &HashSet<Branch>,
    ) -> BTreeMap<u64, Seen<'a>> {
        let mut seen: BTreeMap<u64, Seen<'a>> = BTreeMap::new();
        for journal in honest {
            for stamped in &journal.events {
                let ReplicaEvent::Leased(turn) = &stamped.event else { continue };
                if turn.branch.is_some_and(|branch| discarded.contains(&branch)) {
                    continue;
                }
                if !turn.strayed.is_empty() {
                    let reason = format!(
                        "leases {:?} came or went between entries before {}",
                        turn.strayed, turn.position
                    );
                    self.find(reason, vec![line(journal, stamped.at_us, turn)]);
                }
                let log_time_ms = turn.log_time_ms;
                let first = Seen { turn, journal, log_time_ms, at_us: stamped.at_us };
                let known = seen.entry(turn.position).or_insert(first);
                let (other, who, at_us) = (known.turn, known.journal, known.at_us);
                let times = known.log_time_ms.zip(log_time_ms).is_none_or(|(a, b)| a == b);
                known.log_time_ms = known.log_time_ms.or(log_time_ms);
                known.at_us = known.at_us.min(stamped.at_us);
                if !times || !is_same(other, turn) {
                    let evidence = vec![line(who, at_us, other), line(journal, stamped.at_us, turn)];
                    self.find(format!("two accounts of leases at position {}", turn.position), evidence);
                }
            }
        }
        seen
    }

    /// Log time never goes back and is never far ahead; the expiry clock follows it, gaps cut.
    fn tell_time(&mut self, clock: &mut LogClock, entry: &Seen<'a>) {
        let evidence = |entry: &Seen<'_>| vec![line(entry.journal, entry.at_us, entry.turn)];
        let (position, expiry_ms) = (entry.turn.position, entry.turn.expiry_ms);
        let step = i128::from(expiry_ms) - i128::from(clock.expiry_ms);
        if step < 0 {
            self.find(
                format!("the expiry clock goes back by {} ms at position {position}", -step),
                evidence(entry),
            );
        } else if step > i128::from(STEP_MAX_MS) {
            self.find(format!("the expiry clock leaps {step} ms at position {position}"), evidence(entry));
        }
        clock.cut |= step >= i128::from(STEP_MAX_MS);
        clock.expiry_ms = expiry_ms;
        let Some(time_ms) = entry.log_time_ms else { return };
        if let Some((before_ms, expiry_before_ms)) = clock.known {
            let run = i128::from(expiry_ms) - i128::from(expiry_before_ms);
            let passed = i128::from(time_ms) - i128::from(before_ms);
            if passed < 0 {
                let reason = format!("log time goes back by {} ms at position {position}", -passed);
                self.find(reason, evidence(entry));
            } else if run > passed || (run < passed && !clock.cut) {
                let reason =
                    format!("the expiry clock ran {run} ms in {passed} ms up to position {position}");
                self.find(reason, evidence(entry));
            }
        }
        clock.known = Some((time_ms, expiry_ms));
        clock.cut = false;
        let latest_ms = self.terms.begun_unix_ms + entry.at_us / 1000 + self.terms.ahead_ms;
        if time_ms > latest_ms {
            let reason = format!(
                "log time is {} ms further than clocks may be at position {position}",
                time_ms - latest_ms
            );
            self.find(reason, evidence(entry));
        }
    }

    fn pass(&mut self, entry: &Seen<'a>, commands: &[ExecutedCommand]) {
        let Turn { position, expiry_ms, ended, begun, revoked, vanished, .. } = entry.turn;
        let (position, expiry_ms, at_us) = (*position, *expiry_ms, entry.at_us);
        let evidence = || vec![line(entry.journal, at_us, entry.turn)];
        for lease in ended {
            self.expire(*lease, entry);
        }
        let stays: Vec<u64> = self
            .held
            .iter()
            .filter(|(_, held)| held.deadline_ms <= expiry_ms)
            .map(|(lease, _)| *lease)
            .collect();
        for lease in stays {
            let held = self.held.get_mut(&lease).expect("just seen");
            let late_ms = expiry_ms - held.deadline_ms;
            held.deadline_ms = u64::MAX;
            let reason = format!(
                "lease {lease} had run out {late_ms} ms before position {position}, and does not end there"
            );
            self.find(reason, evidence());
        }
        for (key, lease) in vanished {
            if !ended.contains(lease) {
                let key = String::from_utf8_lossy(key);
                let reason =
                    format!("time took {key} at position {position}, whose lease {lease} had not run out");
                self.find(reason, evidence());
            }
        }
        let epoch = self.stretches.epoch(position);
        let (mut grants, mut ends) = (Vec::new(), Vec::new());
        for command in commands {
            let Some(Ask { lease, at_us: asked_us, wish }) = self.terms.asks.get(&command.id).copied() else {
                continue;
            };
            let renewed = |ttl_ms: u64| Held {
                ttl_ms,
                deadline_ms: expiry_ms.saturating_add(ttl_ms),
                asked_us,
                renewed_us: at_us,
                epoch,
            };
            let known = self.held.get(&lease).copied();
            match (wish, known) {
                (Wish::Grant { ttl_s }, None) => {
                    self.held.insert(lease, renewed(ttl_s * 1000));
                    self.report.counts.granted += 1;
                    let fresh = Life { granted_us: at_us, ended: None, grants: 0, ttl_s };
                    self.lives.entry(lease).or_insert(fresh).grants += 1;
                    grants.push(lease);
                }
                (Wish::Keep, Some(held)) => {
                    self.held.insert(lease, renewed(held.ttl_ms));
                    self.report.counts.kept += 1;
                }
                (Wish::Revoke, Some(_)) => {
                    self.held.remove(&lease);
                    self.report.counts.revoked += 1;
                    self.note_end(lease, position, at_us);
                    ends.push(lease);
                }
                // Refused: it exists, or it does not.
                (Wish::Grant { .. }, Some(_)) | (Wish::Keep | Wish::Revoke, None) => {}
            }
        }
        for (what, due, told) in [("grants", grants, begun), ("revokes", ends, revoked)] {
            let (mut due, mut told) = (due, told.clone());
            due.sort_unstable();
            told.sort_unstable();
            if due != told {
                let reason = format!("position {position} {what} leases {told:?}, and it should be {due:?}");
                self.find(reason, evidence());
            }
        }
    }

    fn note_end(&mut self, lease: u64, position: u64, at_us: u64) {
        if let Some(life) = self.lives.get_mut(&lease) {
            life.ended = life.ended.or(Some((position, at_us)));
        }
    }

    /// A lease ends at this entry, as replicas say.
    fn expire(&mut self, lease: u64, entry: &Seen<'a>) {
        let (position, at_us) = (entry.turn.position, entry.at_us);
        let evidence = vec![line(entry.journal, at_us, entry.turn)];
        let Some(held) = self.held.remove(&lease) else {
            let before = self.lives.get(&lease).and_then(|life| life.ended);
            let reason = match before {
                Some((first, _)) => {
                    format!("lease {lease} ends twice: at position {first} and at position {position}")
                }
                None => format!("lease {lease} ends at position {position}, and nobody had it"),
            };
            return self.find(reason, evidence);
        };
        self.note_end(lease, position, at_us);
        let epoch = self.stretches.epoch(position);
        let counts = &mut self.report.counts;
        counts.expired += 1;
        counts.expired_in_segment += u64::from(epoch.is_some());
        counts.expired_near_switch += u64::from(self.stretches.is_near(position));
        counts.expired_elsewhere += u64::from(epoch != held.epoch);
        if held.deadline_ms > entry.turn.expiry_ms && held.deadline_ms != u64::MAX {
            let early_ms = held.deadline_ms - entry.turn.expiry_ms;
            let reason =
                format!("lease {lease} ends {early_ms} ms early by the log's clock, at position {position}");
            self.find(reason, evidence.clone());
        }
        let earliest_us =
            held.asked_us.saturating_add(held.ttl_ms * 1000).saturating_sub(self.terms.apart_us);
        if at_us < earliest_us {
            let reason = format!(
                "lease {lease} ends {} ms before it can have run by any clock, at position {position}",
                (earliest_us - at_us) / 1000
            );
            self.find(reason, evidence.clone());
        }
        self.judge_lateness(lease, held, at_us, "ends", evidence);
    }

    /// How long a lease has outlived its time, counted from the calm at the earliest, and from when every member has a vote.
    fn judge_lateness(&mut self, lease: u64, held: Held, now_us: u64, what: &str, evidence: Vec<String>) {
        let (Some(calm), Some(late_us)) = (self.calm, self.terms.late_us) else { return };
        let due_us = held.renewed_us.max(calm.begins_at_us).saturating_add(held.ttl_ms * 1000);
        let over_us = now_us.saturating_sub(due_us.max(self.terms.whole_since_us));
        let counts = &mut self.report.counts;
        counts.late_max_us = counts.late_max_us.max(over_us);
        if over_us > late_us {
            let reason = format!("lease {lease} {what} {} ms after its time in the calm", over_us / 1000);
            self.find(reason, evidence);
        }
    }

    fn compare_snapshot(&mut self, position: u64, journal: &ReplicaJournal, leases: &[u64]) {
        let due: Vec<u64> = self.held.keys().copied().collect();
        let mut told = leases.to_vec();
        told.sort_unstable();
        self.report.counts.restored += u64::from(!told.is_empty());
        if due != told {
            let reason = format!("{} goes on from position {position} with leases {told:?}", journal.name());
            self.find(reason, vec![format!("the log up to there leaves {due:?}")]);
        }
    }

    /// Leases that nobody kept alive have ended, but for those whose time is not over.
    fn judge_end(&mut self) {
        let Some(calm) = self.calm else { return };
        for (lease, held) in self.held.clone() {
            self.judge_lateness(lease, held, calm.run_ended_at_us, "is still there", Vec::new());
        }
    }

    /// What clients were told of how long leases have to live. An answer comes of an entry between the question and itself, of
    /// which all that was executed before the question is part.
    fn judge_looks(&mut self) {
        let mut looks: Vec<(&CommandId, &Look)> = self.terms.looks.iter().collect();
        looks.sort_by_key(|(id, _)| **id);
        for (id, look) in looks {
            let Some((answered_us, left_s)) = look.answer else { continue };
            let Some(life) = self.lives.get(&look.lease).filter(|life| life.grants == 1) else { continue };
            let (ttl_s, granted_us, ended_us) =
                (life.ttl_s, life.granted_us, life.ended.map(|(_, at_us)| at_us));
            let evidence = vec![format!(
                "asked at {} us, answered at {answered_us} us, granted at {granted_us} us for {ttl_s} s, ended {ended_us:?}",
                look.at_us
            )];
            let lease = look.lease;
            match left_s {
                Some(left_s) if left_s > ttl_s => {
                    self.find(
                        format!("{id} was told that lease {lease} lives for another {left_s} s"),
                        evidence,
                    );
                }
                Some(_) if ended_us.is_some_and(|ended_us| ended_us < look.at_us) => {
                    self.find(format!("{id} was told that lease {lease} lives, after its end"), evidence);
                }
                None if granted_us < look.at_us && ended_us.is_none_or(|ended_us| ended_us > answered_us) => {
                    self.find(format!("{id} was told that lease {lease} is gone, before its end"), evidence);
                }
                Some(_) | None => {}
            }
        }
    }
}

fn is_same(a: &Turn, b: &Turn) -> bool {
    let key = |turn: &Turn| {
        (turn.expiry_ms, turn.ended.clone(), turn.begun.clone(), turn.revoked.clone(), turn.vanished.clone())
    };
    key(a) == key(b)
}

fn line(journal: &ReplicaJournal, at_us: u64, turn: &Turn) -> String {
    let Turn { position, log_time_ms, expiry_ms, ended, begun, revoked, .. } = turn;
    let time = log_time_ms.map_or_else(|| "?".to_string(), |time| time.to_string());
    format!(
        "at {at_us} us {}: position {position}, log time {time}, expiry clock {expiry_ms} ms, ended {ended:?}, granted {begun:?}, \
         revoked {revoked:?}",
        journal.name()
    )
}

#[cfg(test)]
mod tests;
