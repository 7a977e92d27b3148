//! The judge of one history: what was proposed, committed, promised, asked and sealed, and whether it fits together. It
//! is told facts and knows neither nets nor disks; of a node it sees only what `world` passes to it. The first broken
//! rule ends the history.

use crate::rule::{Rule, Violation};
use dwcp_base::{Hash, ReplicaId};
use dwcp_log::VirtualLog;
use dwcp_raft::message::{Kind, Payload};
use dwcp_raft::{Entry, Index, Place, RaftNode, Term};
use std::collections::{BTreeMap, BTreeSet};

/// What became of a proposal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// `propose` said no.
    Refused,
    /// `propose` named this place.
    Taken(Place),
}

/// One committed entry.
#[derive(Clone, Debug)]
pub struct Committed {
    pub place: Place,
    pub entry: Entry,
    /// A term in which it was committed already.
    pub by_term: Term,
}

/// A read that was taken and is not answered.
#[derive(Clone, Debug)]
pub struct Read {
    pub seat: usize,
    pub life: u32,
    /// Everything up to here was committed before the read was asked.
    pub floor: Index,
    pub asked_us: u64,
    /// Asked after the Marker was committed.
    pub after_marker: bool,
    /// The reader, and whoever said something since that has arrived, being neither sealed nor with a Marker.
    pub could_confirm: BTreeSet<usize>,
}

/// What one history has shown so far.
#[derive(Debug)]
pub struct Judge {
    pub subject: String,
    pub part: &'static str,
    pub seed: u64,
    pub now_us: u64,
    pub found: Option<Violation>,
    /// A member lies: judges that compare members rest, those of a single member go on.
    pub lies: bool,
    pub majority: usize,
    pub committed: Vec<Committed>,
    /// Of lies: what each seat said in its present life.
    pub by_seat: Vec<BTreeMap<Index, Place>>,
    chain: VirtualLog,
    pub proposals: BTreeMap<u64, Fate>,
    pub leaders: BTreeMap<Term, usize>,
    logs: BTreeMap<(Index, Term), Hash>,
    votes: BTreeMap<(usize, Term), ReplicaId>,
    acks: Vec<BTreeMap<Index, (Term, Place)>>,
    pub reads: BTreeMap<u64, Read>,
    pub read_high: Index,
    pub marker: Option<Index>,
    pub counts: BTreeMap<&'static str, u64>,
}

/// The number a proposal carries, if it is one of the suite's.
#[must_use]
pub fn number_of(payload: &Payload) -> Option<u64> {
    match payload {
        Payload::Batch { frames, .. } => {
            Some(u64::from_le_bytes(frames.first()?.get(..8)?.try_into().expect("eight bytes")))
        }
        Payload::Tick { time } => Some(time.0),
        Payload::Empty | Payload::Marker => None,
    }
}

impl Judge {
    #[must_use]
    pub fn new(subject: &str, part: &'static str, seed: u64, seats: usize, base: VirtualLog) -> Self {
        Self {
            subject: subject.to_owned(),
            part,
            seed,
            now_us: 0,
            found: None,
            lies: false,
            majority: seats / 2 + 1,
            committed: Vec::new(),
            by_seat: vec![BTreeMap::new(); seats],
            chain: base,
            proposals: BTreeMap::new(),
            leaders: BTreeMap::new(),
            logs: BTreeMap::new(),
            votes: BTreeMap::new(),
            acks: vec![BTreeMap::new(); seats],
            reads: BTreeMap::new(),
            read_high: Index::ZERO,
            marker: None,
            counts: BTreeMap::new(),
        }
    }

    /// Notes that something worth covering happened.
    pub fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// A rule is broken, unless one was already.
    pub fn broken(&mut self, rule: Rule, detail: String) {
        if self.found.is_none() {
            self.found = Some(Violation {
                rule,
                subject: self.subject.clone(),
                part: self.part,
                seed: self.seed,
                at_us: self.now_us,
                detail,
            });
        }
    }

    pub fn hold(&mut self, rule: Rule, holds: bool, detail: impl FnOnce() -> String) {
        if !holds {
            self.broken(rule, detail());
        }
    }

    /// How far anything is known to be committed.
    #[must_use]
    pub fn high(&self) -> Index {
        Index(self.committed.len() as u64)
    }

    #[must_use]
    pub fn committed_at(&self, index: Index) -> Option<&Committed> {
        self.committed.get(usize::try_from(index.0.checked_sub(1)?).ok()?)
    }

    /// A proposal's fate, which is told once.
    pub fn on_proposed(&mut self, number: u64, fate: Fate) {
        self.proposals.insert(number, fate);
    }

    /// A member reports this entry as committed. True if nobody had.
    pub fn on_committed(&mut self, seat: usize, said: Place, entry: Entry, term: Term) -> bool {
        if let Some(before) = self.by_seat[seat].insert(said.index, said) {
            self.hold(Rule::CommittedNeverChanges, before == said, || {
                format!("seat {seat} said {before:?} and now {said:?}")
            });
        }
        if self.lies {
            return false;
        }
        if let Some(known) = self.committed_at(said.index) {
            let same = known.place == said && known.entry == entry;
            let detail = format!("seat {seat} commits {said:?} {entry:?}, known as {known:?}");
            self.hold(Rule::CommittedNeverChanges, same, || detail);
            return false;
        }
        if said.index != self.high().next() {
            self.broken(Rule::FaceIsConsistent, format!("seat {seat} commits {said:?} with a gap before it"));
            return false;
        }
        self.chain.append(&entry.digest());
        let truth = Place { index: said.index, term: entry.term, chain: self.chain.chain };
        self.hold(Rule::LogsMatch, truth == said, || {
            format!("seat {seat} calls {truth:?} {said:?}: the entry or the chain before it is another")
        });
        if let Some(marker) = self.marker {
            self.broken(Rule::MarkerEnds, format!("{said:?} is committed after the Marker at {marker}"));
        }
        match (entry.body.kind(), number_of(&entry.payload())) {
            (Kind::Marker, _) => self.marker = Some(said.index),
            (Kind::Empty, _) => {}
            (_, Some(number)) => {
                let fate = self.proposals.get(&number).copied();
                self.hold(Rule::CommittedWasProposed, fate == Some(Fate::Taken(said)), || {
                    format!("proposal {number} is committed at {said:?}, its fate was {fate:?}")
                });
            }
            (kind, None) => self.broken(Rule::CommittedWasProposed, format!("nobody proposed {kind:?}")),
        }
        self.committed.push(Committed { place: said, entry, by_term: term });
        self.count("committed");
        true
    }

    /// A member says that it leads this term.
    pub fn on_leader(&mut self, seat: usize, term: Term, node: &dyn RaftNode) {
        if self.lies {
            return;
        }
        match self.leaders.insert(term, seat) {
            Some(before) => self.hold(Rule::OneLeaderPerTerm, before == seat, || {
                format!("seats {before} and {seat} lead {term:?}")
            }),
            None => {
                self.count("elections");
                let earlier = self.leaders.range(..term).next_back();
                if earlier.is_some_and(|(_, leader)| *leader != seat) {
                    self.count("leaders replaced by another");
                }
                let Some(last) = self.committed.iter().rev().find(|c| c.by_term < term) else { return };
                let (place, border) = (last.place, node.border());
                let has = node.place(place.index) == Some(place) || border.index > place.index;
                self.hold(Rule::LeaderIsComplete, has, || {
                    format!(
                        "seat {seat} leads {term:?} with {:?} and misses {place:?}: it holds {:?}",
                        node.last(),
                        node.place(place.index)
                    )
                });
            }
        }
    }

    /// Some log holds this place.
    pub fn on_place(&mut self, seat: usize, place: Place) {
        if self.lies || place.index == Index::ZERO {
            return;
        }
        let known = *self.logs.entry((place.index, place.term)).or_insert(place.chain);
        self.hold(Rule::LogsMatch, known == place.chain, || {
            format!("seat {seat} holds {place:?}, another log has chain {known:?} there")
        });
        if let Some(committed) = self.committed_at(place.index).map(|c| c.place) {
            let fits = committed.term != place.term || committed == place;
            self.hold(Rule::LogsMatch, fits, || {
                format!("seat {seat} holds {place:?}, committed {committed:?}")
            });
        }
    }

    /// A vote leaves.
    pub fn on_vote(&mut self, seat: usize, term: Term, to: ReplicaId) {
        if self.lies {
            return;
        }
        let before = *self.votes.entry((seat, term)).or_insert(to);
        self.hold(Rule::VotesOnce, before == to, || {
            format!("seat {seat} votes for {before} and {to} in {term:?}")
        });
    }

    /// In how many terms this seat is known to have voted.
    #[must_use]
    pub fn votes_of(&self, seat: usize) -> usize {
        self.votes.keys().filter(|(voter, _)| *voter == seat).count()
    }

    /// An acknowledgement leaves: as a member of `term` the seat holds everything up to `place`.
    pub fn on_ack(&mut self, seat: usize, term: Term, place: Place) {
        self.acks[seat].insert(place.index, (term, place));
        self.count("acknowledged");
    }

    /// Does this seal cover what the seat acknowledged? What a later leader replaced needs no cover.
    pub fn on_sealed(&mut self, seat: usize, point: Place, node: &dyn RaftNode) {
        self.count("seals");
        if self.lies {
            return;
        }
        for (term, place) in self.acks[seat].clone().values() {
            let has = place.index <= point.index && node.place(place.index) == Some(*place);
            let gone = node.border().index > place.index || node.term() > *term;
            self.hold(Rule::SealIsTrue, has || gone, || {
                format!("seat {seat} acknowledged {place:?} in {term:?} and seals {point:?}")
            });
        }
    }

    /// Whether no member that lacks the last committed entry could be elected by, or chosen from, any majority. `logs`:
    /// for each member that could take part, where its durable log ends and whether it holds that entry.
    pub fn on_logs(&mut self, rule: Rule, logs: &[(usize, Place, bool)]) {
        for (seat, last, _) in logs.iter().filter(|(_, _, has)| !has) {
            let behind = logs.iter().filter(|(_, other, _)| last.is_as_good_as(other)).count();
            let place = self.committed.last().map(|c| c.place);
            self.hold(rule, behind < self.majority, || {
                format!(
                    "{place:?} is committed; seat {seat} holds up to {last:?} without it and is as good as {behind} of {logs:?}"
                )
            });
        }
    }

    /// Reads that a node answered.
    pub fn on_reads_ready(&mut self, seat: usize, life: u32, tokens: &[u64], index: Index) {
        for token in tokens {
            let Some(read) = self.reads.remove(token) else {
                self.broken(
                    Rule::ReadsAreAnswered,
                    format!("seat {seat} answers read {token}, which nobody waits for"),
                );
                return;
            };
            self.count("reads ready");
            self.hold(Rule::ReadsAreAnswered, (read.seat, read.life) == (seat, life), || {
                format!("seat {seat} answers read {token} of seat {}", read.seat)
            });
            if self.lies {
                continue;
            }
            self.hold(Rule::ReadsAreLinearizable, index >= read.floor, || {
                format!(
                    "seat {seat} answers read {token} at {index}, but {} was committed before it",
                    read.floor
                )
            });
            let confirmed = read.could_confirm.len();
            self.hold(Rule::ReadsAreConfirmed, confirmed >= self.majority && !read.after_marker, || {
                format!(
                    "read {token} is ready, though only seats {:?} spoke since, unsealed and without a Marker{}",
                    read.could_confirm,
                    if read.after_marker { "; it was asked after the Marker was committed" } else { "" }
                )
            });
            self.read_high = self.read_high.max(index);
        }
    }

    pub fn on_reads_failed(&mut self, seat: usize, tokens: &[u64]) {
        for token in tokens {
            let known = self.reads.remove(token);
            self.hold(Rule::ReadsAreAnswered, known.is_some(), || {
                format!("seat {seat} fails read {token}, which nobody waits for")
            });
            self.count("reads failed");
        }
    }

    /// A member crashed: what it said of itself counts no more, but what it said to others does.
    pub fn on_crash(&mut self, seat: usize) {
        self.by_seat[seat].clear();
        self.reads.retain(|_, read| read.seat != seat);
        self.count("crashes");
    }
}
