//! The end of a Raft segment, checked against every short history of an abstract Raft: elections vote by vote, appends
//! that are under way for ever, acknowledgements that count at the earliest moment, seals at any replica at any time, and
//! Anchors, and Markers if the model has them. In every state all Closes that can be built from what was sealed so far
//! are looked at (see `closing`).
//!
//! Left out because it only takes possibilities away: terms that are heard of without a vote, and elections that nobody
//! wins. A replica that hears nothing does the same. The liar votes for everybody and acknowledges everything at once; it
//! does not lead. Members are kept sorted: which of them is which makes no difference.

use stateright::{Model, Property};
use std::sync::Arc;

use crate::closing::{Closing, LOG_MAX, Log, MARKER, Slip, Tail};

/// Terms a model can have.
pub const TERMS_MAX: usize = 3;

/// A replica that does not lie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Replica {
    log: Log,
    /// Its log as it was when it sealed.
    sealed: Option<Log>,
    term: u8,
    /// It stands for election in its term, or has won it.
    stands: bool,
    /// How much of each leader's log it said it holds.
    acknowledged: [u8; TERMS_MAX],
}

/// One term of the segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Election {
    /// The log of who stands, and of the leader as it grows. Parts of it are under way for ever.
    log: Option<Log>,
    votes: u8,
    won: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    replicas: Vec<Replica>,
    /// From term 1 on.
    terms: [Election; TERMS_MAX],
    /// What was acknowledged as committed; nobody in the model reads it.
    committed: Log,
    anchored: Log,
    /// Two leaders committed different entries.
    forked: bool,
    /// Something was acknowledged first when a Close was possible already.
    late_acknowledgement: bool,
    /// An election was won when a Close was possible already.
    late_election: bool,
}

/// What may happen next; each replica is named by its log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Stand {
        at: u8,
        log: Log,
        term: u8,
    },
    Vote {
        at: u8,
        log: Log,
        term: u8,
    },
    Append {
        at: u8,
        log: Log,
    },
    /// The leader appends a Marker.
    Mark {
        at: u8,
        log: Log,
    },
    Take {
        at: u8,
        log: Log,
        leaders: Log,
        term: u8,
    },
    Anchor {
        holds: Log,
    },
    Seal {
        at: u8,
        log: Log,
    },
}

/// How much a model has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    pub replicas: u8,
    /// 0 or 1.
    pub liars: u8,
    pub terms: u8,
    pub entries: u8,
    /// Leaders may end the segment by a Marker.
    pub markers: bool,
}

#[derive(Debug)]
pub struct Sealing {
    terms: u8,
    entries: u8,
    markers: bool,
    closing: Closing,
}

impl Sealing {
    /// # Panics
    /// When the model has no room for so much.
    #[must_use]
    pub fn new(size: Size, slip: Option<Slip>) -> Self {
        let Size { replicas, liars, terms, entries, markers } = size;
        assert!(liars <= 1 && usize::from(terms) <= TERMS_MAX, "the model has one liar and few terms");
        assert!(usize::from(entries) <= LOG_MAX, "the model has short logs");
        let closing = Closing::new(replicas, liars, terms, entries, slip);
        Self { terms, entries, markers, closing }
    }

    #[must_use]
    pub fn slip(&self) -> Option<Slip> {
        self.closing.slip
    }

    fn liars(&self) -> usize {
        self.closing.quorum.f().into()
    }

    fn is_majority(&self, honest: usize) -> bool {
        honest + self.liars() > usize::from(self.closing.quorum.n()) / 2
    }

    fn slips(&self, slip: Slip) -> bool {
        self.slip() == Some(slip)
    }

    fn closes(&self, state: &State) -> Arc<Vec<Tail>> {
        let mut marked: Vec<Log> = state.committed.marked().into_iter().collect();
        if self.slips(Slip::MarkerUncommitted) {
            marked = state.replicas.iter().filter_map(|replica| replica.log.marked()).collect();
        }
        self.closing.possible(state.sealed(), marked, state.anchored)
    }

    /// The Closes without those that rest on a Marker.
    fn collected(&self, state: &State) -> Arc<Vec<Tail>> {
        self.closing.possible(state.sealed(), Vec::new(), state.anchored)
    }

    /// How much of its log a replica may say it holds: nothing past a Marker.
    fn acknowledges(&self, log: &Log) -> u8 {
        let marked = log.marked().filter(|_| !self.slips(Slip::MarkerIgnored));
        marked.map_or(log.len(), |marked| marked.len())
    }

    fn possible(&self, state: &State, actions: &mut Vec<Action>) {
        for (index, replica) in state.replicas.iter().enumerate() {
            // Its neighbour does the same.
            if index > 0 && state.replicas[index - 1] == *replica {
                continue;
            }
            let (at, log) = (u8::try_from(index).expect("few replicas"), replica.log);
            let is_open = replica.sealed.is_none();
            for (term, election) in (1..=self.terms).zip(&state.terms) {
                let Some(leaders) = election.log else {
                    if is_open && replica.term < term {
                        actions.push(Action::Stand { at, log, term });
                    }
                    continue;
                };
                let may_vote = replica.term < term && leaders.is_as_good_as(&log) && !election.won;
                if may_vote && state.stands(term) && (is_open || self.slips(Slip::SealedVotes)) {
                    actions.push(Action::Vote { at, log, term });
                }
                let leads = replica.stands && replica.term == term;
                let may_take = election.won && replica.term <= term && !leads;
                if may_take && (is_open || self.slips(Slip::SealedAppends)) {
                    let known = replica.acknowledged[usize::from(term) - 1];
                    actions.extend((known + 1..=leaders.len()).map(|len| Action::Take {
                        at,
                        log,
                        leaders: leaders.prefix(len),
                        term,
                    }));
                }
                if leads && election.won && is_open && log.len() < self.entries {
                    // After an earlier leader's Marker there is the new leader's empty entry, and nothing else.
                    let begins = log.term() < term || self.slips(Slip::MarkerIgnored);
                    if log.marked().is_none() || begins {
                        actions.push(Action::Append { at, log });
                    }
                    if self.markers && log.marked().is_none() {
                        actions.push(Action::Mark { at, log });
                    }
                }
            }
            if is_open {
                actions.push(Action::Seal { at, log });
            }
        }
        for len in state.anchored.len() + 1..=state.committed.len() {
            let holds = state.committed.prefix(len);
            let holders = state.replicas.iter().filter(|replica| replica.log.starts_with(&holds)).count();
            if holders + self.liars() >= self.closing.quorum.q() {
                actions.push(Action::Anchor { holds });
            }
        }
    }

    fn follow(&self, before: &State, action: Action) -> State {
        let mut state = before.clone();
        match action {
            Action::Stand { at, log, term } => {
                let replica = &mut state.replicas[usize::from(at)];
                (replica.term, replica.stands) = (term, true);
                replica.acknowledged[usize::from(term) - 1] = self.acknowledges(&log);
                *state.election(term) = Election { log: Some(log), votes: 1, won: false };
            }
            Action::Vote { at, term, .. } => {
                let replica = &mut state.replicas[usize::from(at)];
                (replica.term, replica.stands) = (term, false);
                state.election(term).votes += 1;
            }
            Action::Append { at, log } | Action::Mark { at, log } => {
                let marker = if matches!(action, Action::Mark { .. }) { MARKER } else { 0 };
                let replica = &mut state.replicas[usize::from(at)];
                let term = replica.term;
                replica.log = log.with(term | marker);
                replica.acknowledged[usize::from(term) - 1] = self.acknowledges(&replica.log);
                state.election(term).log = Some(log.with(term | marker));
            }
            Action::Take { at, leaders, term, .. } => {
                let replica = &mut state.replicas[usize::from(at)];
                if replica.term < term {
                    (replica.term, replica.stands) = (term, false);
                }
                // Raft figure 2, AppendEntries 3: only a conflict removes entries.
                if !replica.log.starts_with(&leaders) {
                    replica.log = leaders;
                }
                replica.acknowledged[usize::from(term) - 1] = self.acknowledges(&leaders);
            }
            Action::Anchor { holds } => state.anchored = holds,
            Action::Seal { at, log } => state.replicas[usize::from(at)].sealed = Some(log),
        }
        if !matches!(action, Action::Anchor { .. } | Action::Seal { .. }) {
            self.settle(before, &mut state);
        }
        state.replicas.sort();
        state
    }

    /// Votes and acknowledgements count as soon as they are given.
    fn settle(&self, before: &State, state: &mut State) {
        for term in 1..=self.terms {
            if !state.stands(term) {
                continue;
            }
            let election = state.election(term);
            if !election.won && self.is_majority(election.votes.into()) {
                election.won = true;
                state.late_election |= !self.collected(before).is_empty();
            }
            let (Some(log), true) = (state.election(term).log, state.election(term).won) else { continue };
            let holders = |len| {
                let holds = |replica: &&Replica| replica.acknowledged[usize::from(term) - 1] >= len;
                state.replicas.iter().filter(holds).count()
            };
            // Raft section 5.4.2: a leader counts for entries of its own term only.
            let own = |len: &u8| log.prefix(*len).term() == term || self.slips(Slip::EarlierTermCounts);
            let Some(len) = (1..=log.len()).rev().filter(own).find(|len| self.is_majority(holders(*len)))
            else {
                continue;
            };
            let committed = log.prefix(len);
            if state.committed.starts_with(&committed) {
                continue;
            }
            state.forked |= !committed.starts_with(&state.committed);
            state.committed = committed;
            state.late_acknowledgement |= !self.closes(before).is_empty();
        }
    }
}

impl State {
    /// Whether somebody who has not sealed stands in this term, or leads it.
    fn stands(&self, term: u8) -> bool {
        let stands = |replica: &Replica| replica.stands && replica.term == term && replica.sealed.is_none();
        self.replicas.iter().any(stands)
    }

    fn sealed(&self) -> Vec<Log> {
        self.replicas.iter().filter_map(|replica| replica.sealed).collect()
    }

    fn election(&mut self, term: u8) -> &mut Election {
        &mut self.terms[usize::from(term) - 1]
    }
}

/// The model's Raft is one: what is committed stays committed in it.
pub const RAFT: &str = "the segment itself never forks";
/// Nobody lies: every acknowledged entry is in every Close that can be built.
pub const ACKNOWLEDGED: &str = "no Close drops what was acknowledged";
/// Every entry below an executed Anchor is in every Close that can be built, whoever lies.
pub const ANCHORED: &str = "no Close drops what is anchored";
/// Once a Close can be built nothing is acknowledged any more.
pub const SILENCE: &str = "silence after the seals";
/// Once the reports suffice for a Close nobody becomes leader any more.
pub const NO_LEADER: &str = "nobody is elected after the seals";
/// Somebody has the log that a Close names.
pub const SHOWN: &str = "a Close names a log that can be shown";
/// When all honest replicas have sealed there is a Close.
pub const NOT_STUCK: &str = "the sealed can always close";
/// And whoever hears all of them comes to one, whatever the liar says and shows.
pub const COLLECTED: &str = "a primary that hears the sealed comes to a Close";

fn keeps(model: &Sealing, state: &State, log: &Log) -> bool {
    model.closes(state).iter().all(|tail| tail.log.is_none_or(|tail| tail.starts_with(log)))
}

fn acknowledged(model: &Sealing, state: &State) -> bool {
    model.liars() > 0 || keeps(model, state, &state.committed)
}

fn anchored(model: &Sealing, state: &State) -> bool {
    keeps(model, state, &state.anchored)
}

fn shown(model: &Sealing, state: &State) -> bool {
    model.closes(state).iter().all(|tail| tail.log.is_some())
}

fn not_stuck(model: &Sealing, state: &State) -> bool {
    state.replicas.iter().any(|replica| replica.sealed.is_none()) || !model.closes(state).is_empty()
}

fn collected(model: &Sealing, state: &State) -> bool {
    let sealed = state.sealed();
    sealed.len() < state.replicas.len() || model.closing.is_collected(sealed, state.anchored)
}

fn closes_after_an_anchor(model: &Sealing, state: &State) -> bool {
    !state.anchored.is_empty()
        && state.committed.len() > state.anchored.len()
        && !model.closes(state).is_empty()
}

/// The sealed logs disagree, an older one is longer, and something was acknowledged.
fn a_longer_log_of_an_older_term(model: &Sealing, state: &State) -> bool {
    let sealed = || state.replicas.iter().filter_map(|replica| replica.sealed);
    let (best, longest) =
        (sealed().map(|log| (log.term(), log.len())).max(), sealed().map(|log| log.len()).max());
    !state.committed.is_empty() && best.map(|(_, len)| len) < longest && !model.closes(state).is_empty()
}

fn two_closes(model: &Sealing, state: &State) -> bool {
    model.closes(state).len() > 1 && !state.committed.is_empty()
}

fn a_later_leader_commits(_: &Sealing, state: &State) -> bool {
    state.committed.term() > 1 && state.committed.prefix(1).term() < state.committed.term()
}

fn marker_or_reports(model: &Sealing, state: &State) -> bool {
    let collected = model.collected(state);
    !collected.is_empty() && model.closes(state).iter().any(|tail| !collected.contains(tail))
}

/// What `trust = crash` means: a liar among the sealers costs what no Anchor covers.
fn a_lie_costs_an_acknowledgement(model: &Sealing, state: &State) -> bool {
    !keeps(model, state, &state.committed)
}

impl Model for Sealing {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let honest = usize::from(self.closing.quorum.n()) - self.liars();
        vec![State {
            replicas: vec![Replica::default(); honest],
            terms: Default::default(),
            committed: Log::default(),
            anchored: Log::default(),
            forked: false,
            late_acknowledgement: false,
            late_election: false,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        self.possible(state, actions);
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        Some(self.follow(state, action))
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always(RAFT, |_, state: &State| !state.forked),
            Property::always(ACKNOWLEDGED, acknowledged),
            Property::always(ANCHORED, anchored),
            Property::always(SILENCE, |_, state: &State| !state.late_acknowledgement),
            Property::always(NO_LEADER, |_, state: &State| !state.late_election),
            Property::always(SHOWN, shown),
            Property::always(NOT_STUCK, not_stuck),
            Property::always(COLLECTED, collected),
            Property::sometimes("a Close after an Anchor with more acknowledged", closes_after_an_anchor),
            Property::sometimes("a longer log of an older term", a_longer_log_of_an_older_term),
            Property::sometimes("two different Closes", two_closes),
            Property::sometimes("a later leader commits an earlier one's entry", a_later_leader_commits),
        ];
        if self.markers {
            properties
                .push(Property::sometimes("a Marker and the reports end it differently", marker_or_reports));
        }
        if self.liars() > 0 {
            let costs = a_lie_costs_an_acknowledgement;
            properties.push(Property::sometimes("a lie costs an acknowledgement", costs));
        }
        properties
    }
}
