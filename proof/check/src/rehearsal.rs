//! Judges must be judged: histories known to be good, and the same with one known fault.
//!
//! Clients run concurrently against the reference model in virtual time; each command takes effect at one instant between its
//! invocation and its return. A fault is built in while the history grows, so that everything after it is consistent with it, as it would
//! be in a real broken store. Everything is drawn from one seed. The tests, the bench and anybody's doubts are served from here.

use crate::history::{ClientJournal, CommandId, Label, Outcome, Reply};
use crate::model::{Model, Start};
use crate::operation::{Answer, Compare, Interval, KeyValue, Operation, Relation, Target};
use crate::read_back;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A read answers as of a revision older than one acknowledged before it was invoked.
    StaleRead,
    /// The same, claiming to be current.
    StaleContent,
    /// A put is acknowledged and undone.
    LostWrite,
    /// A put is acknowledged and consumes its revision, and what it wrote never shows.
    LostEffect,
    /// A put takes effect twice.
    DoubledWrite,
    /// Two reads get each other's result.
    SwappedResults,
    /// A put answers an older previous record than the one it replaced.
    WrongPrev,
    /// A transaction takes the branch its comparison forbids.
    WrongBranch,
}

impl Fault {
    pub const ALL: [Self; 8] = [
        Self::StaleRead,
        Self::StaleContent,
        Self::LostWrite,
        Self::LostEffect,
        Self::DoubledWrite,
        Self::SwappedResults,
        Self::WrongPrev,
        Self::WrongBranch,
    ];
}

#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub seed: u64,
    pub clients: u64,
    pub commands_each: u64,
    pub keys: u64,
    /// Of a thousand commands, this many never return; half of them take effect, some much later.
    pub unknown_per_mille: u64,
    /// The fault strikes the first command it can after this share (in hundredths) of the history.
    pub fault: Option<(Fault, u64)>,
    /// Ends with a read of the whole store.
    pub final_read: bool,
}

#[derive(Clone, Debug)]
pub struct Rehearsal {
    pub clients: Vec<ClientJournal>,
    /// Commands in the order in which they took effect, also those whose outcome nobody learned.
    pub log: Vec<CommandId>,
    /// The store at the end.
    pub records: Vec<KeyValue>,
    /// False if the fault found no command to strike.
    pub struck: bool,
}

/// SplitMix64 (Steele, Lea & Flood 2014): small, seeded, good enough to draw workloads from.
#[derive(Clone, Debug)]
pub struct Chance(pub u64);

impl Chance {
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// 0 <= result < bound; 0 for bound 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.draw() % bound.max(1)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Invoke { client: usize },
    Apply { client: usize, place: usize, acknowledged: bool },
    Return { revision: u64 },
}

struct Stage {
    shape: Shape,
    chance: Chance,
    model: Model,
    clients: Vec<ClientJournal>,
    /// What each client last saw of a counter.
    seen: HashMap<(usize, Vec<u8>), KeyValue>,
    /// Highest revision that had returned when a command was invoked.
    floors: HashMap<(usize, usize), u64>,
    highest_returned: u64,
    agenda: BinaryHeap<Reverse<(u64, u64, Event)>>,
    ticket: u64,
    applied: u64,
    log: Vec<CommandId>,
    struck: bool,
}

pub fn rehearse(shape: Shape) -> Rehearsal {
    let mut stage = Stage {
        shape,
        chance: Chance(shape.seed),
        model: Model::new(&Start::empty(1)),
        clients: (0..shape.clients).map(ClientJournal::new).collect(),
        seen: HashMap::new(),
        floors: HashMap::new(),
        highest_returned: 1,
        agenda: BinaryHeap::new(),
        ticket: 0,
        applied: 0,
        log: Vec::new(),
        struck: false,
    };
    for client in 0..stage.clients.len() {
        stage.schedule(client as u64, Event::Invoke { client });
    }
    let mut now_us = 0;
    while let Some(Reverse((at_us, _, event))) = stage.agenda.pop() {
        now_us = at_us;
        match event {
            Event::Invoke { client } => stage.invoke(client, at_us),
            Event::Apply { client, place, acknowledged } => stage.apply(client, place, acknowledged, at_us),
            Event::Return { revision } => stage.highest_returned = revision.max(stage.highest_returned),
        }
    }
    let everything = Operation::range(Interval::all());
    let answer = stage.model.apply(&everything).expect("a read of the latest state has an answer");
    let Answer::Range { records, .. } = answer.clone() else { unreachable!("a range answers a range") };
    if shape.final_read && !stage.clients.is_empty() {
        let id = CommandId { session: 1, seq: shape.commands_each };
        let place = stage.clients[0].invoked(id, now_us + 10, everything);
        stage.clients[0].returned(
            place,
            now_us + 20,
            Reply::new(stage.model.revision(), answer),
            Label::Crash,
        );
    }
    if let Some((Fault::SwappedResults, _)) = shape.fault {
        stage.struck = swap_results(&mut stage.clients);
    }
    Rehearsal { clients: stage.clients, log: stage.log, records, struck: stage.struck }
}

impl Stage {
    fn schedule(&mut self, at_us: u64, event: Event) {
        self.ticket += 1;
        self.agenda.push(Reverse((at_us, self.ticket, event)));
    }

    fn invoke(&mut self, client: usize, at_us: u64) {
        let seq = self.clients[client].commands.len() as u64;
        if seq >= self.shape.commands_each {
            return;
        }
        let operation = self.choose(client, seq);
        let id = CommandId { session: client as u128 + 1, seq };
        let place = self.clients[client].invoked(id, at_us, operation);
        self.floors.insert((client, place), self.highest_returned);
        if self.chance.below(1_000) < self.shape.unknown_per_mille {
            if self.chance.below(2) == 0 {
                let late_us = 1 + self.chance.below(2_000);
                self.schedule(at_us + late_us, Event::Apply { client, place, acknowledged: false });
            }
            self.schedule(at_us + 100, Event::Invoke { client });
        } else {
            let wait_us = 1 + self.chance.below(40);
            self.schedule(at_us + wait_us, Event::Apply { client, place, acknowledged: true });
        }
    }

    fn choose(&mut self, client: usize, seq: u64) -> Operation {
        let key = format!("k{:04}", self.chance.below(self.shape.keys));
        let other = format!("k{:04}", self.chance.below(self.shape.keys));
        let value = format!("c{client}-{seq}");
        match self.chance.below(100) {
            0..=14 => Operation::put(key, value),
            15..=29 => Operation::put_prev(key, value),
            30..=54 => Operation::get(key),
            55..=59 => Operation::range(Interval::between(key, "l")),
            60..=64 => {
                let revision = 1 + self.chance.below(self.highest_returned);
                Operation::Range { over: Interval::between("k", "l"), revision, limit: 3, stale: false }
            }
            65..=67 => Operation::get_stale(key),
            68..=72 => Operation::DeleteRange { over: Interval::key(key), want_prev: true },
            73..=74 => Operation::DeleteRange { over: Interval::between("k", key), want_prev: false },
            75..=86 => {
                let key = format!("counter/{}", self.chance.below(1 + self.shape.keys / 8)).into_bytes();
                let seen = self.seen.get(&(client, key.clone()));
                read_back::increment(&key, seen)
            }
            _ => {
                let version = self.chance.below(4);
                let target = Target::Version(version);
                let compares =
                    vec![Compare { over: Interval::key(key.clone()), relation: Relation::Less, target }];
                let then =
                    vec![Operation::put_prev(key.clone(), value.clone()), Operation::get(other.clone())];
                let nested = Operation::Txn {
                    compares: vec![],
                    then: vec![Operation::delete(other)],
                    otherwise: vec![],
                };
                Operation::Txn { compares, then, otherwise: vec![Operation::get(key), nested] }
            }
        }
    }

    fn apply(&mut self, client: usize, place: usize, acknowledged: bool, at_us: u64) {
        let operation = self.clients[client].commands[place].operation.clone();
        self.applied += 1;
        let total = self.shape.clients * self.shape.commands_each;
        let strikes = |stage: &Self| match stage.shape.fault {
            Some((fault, after)) if acknowledged && !stage.struck && stage.applied * 100 >= total * after => {
                Some(fault)
            }
            _ => None,
        };
        let faulty =
            strikes(self).and_then(|fault| self.strike(fault, &operation, self.floors[&(client, place)]));
        self.struck |= faulty.is_some();
        let honest = |model: &mut Model| Some(Reply::new(0, model.apply(&operation).ok()?));
        let Some(mut reply) = faulty.clone().or_else(|| honest(&mut self.model)) else {
            // It asked for a revision that a lost write has taken away.
            if acknowledged {
                self.clients[client].refused(place, at_us, "no such revision");
                self.schedule(at_us + 1, Event::Invoke { client });
            }
            return;
        };
        self.log.push(self.clients[client].commands[place].id);
        if faulty.is_none() {
            reply.revision = Some(self.model.revision());
        }
        if !acknowledged {
            return;
        }
        self.remember(client, &operation, &reply);
        let returned_at_us = at_us + 1 + self.chance.below(40);
        self.schedule(returned_at_us, Event::Return { revision: reply.revision.unwrap_or(0) });
        self.clients[client].returned(place, returned_at_us, reply, Label::Crash);
        let pause_us = 1 + self.chance.below(20);
        self.schedule(returned_at_us + pause_us, Event::Invoke { client });
    }

    /// What a client learns about counters: the records it reads, and the outcome of its own steps.
    fn remember(&mut self, client: usize, operation: &Operation, reply: &Reply) {
        let mut records = Vec::new();
        reply.answer.records(operation, &mut records);
        let mut learnt: Vec<KeyValue> = records.into_iter().map(|(record, _)| record.clone()).collect();
        if let Operation::Txn { then, .. } = operation
            && let [Operation::Put { key, .. }] = then.as_slice()
            && matches!(reply.answer, Answer::Txn { succeeded: true, .. })
        {
            learnt.extend(self.model.latest(key).cloned());
        }
        for record in learnt.into_iter().filter(|record| record.key.starts_with(read_back::COUNTER)) {
            self.seen.insert((client, record.key.clone()), record);
        }
    }

    /// The faulty reply, or None if the fault cannot strike this command.
    fn strike(&mut self, fault: Fault, operation: &Operation, floor: u64) -> Option<Reply> {
        match (fault, operation) {
            (
                Fault::StaleRead | Fault::StaleContent,
                Operation::Range { over, revision: 0, limit, stale: false },
            ) => {
                let old = floor.checked_sub(1).filter(|old| *old >= 1)?;
                let asked =
                    Operation::Range { over: over.clone(), revision: old, limit: *limit, stale: false };
                let now = self.model.apply(operation).ok()?;
                let then = self.model.apply(&asked).ok()?;
                let claimed = if fault == Fault::StaleRead { old } else { self.model.revision() };
                (fault == Fault::StaleRead || now != then).then(|| Reply::new(claimed, then))
            }
            (Fault::LostWrite, Operation::Put { .. }) => {
                let before = self.model.revision();
                let answer = self.model.apply(operation).ok()?;
                self.model.rewind(before);
                Some(Reply::new(before + 1, answer))
            }
            (Fault::LostEffect, Operation::Put { .. }) => {
                let before = self.model.revision();
                let answer = self.model.apply(operation).ok()?;
                self.model.rewind(before);
                self.model.apply(&Operation::put("ghost", "boo")).ok()?;
                Some(Reply::new(self.model.revision(), answer))
            }
            (Fault::DoubledWrite, Operation::Put { .. }) => {
                let answer = self.model.apply(operation).ok()?;
                let revision = self.model.revision();
                self.model.apply(operation).ok()?;
                Some(Reply::new(revision, answer))
            }
            (Fault::WrongPrev, Operation::Put { key, want_prev: true, .. }) => {
                let before = self.model.latest(key)?.mod_revision - 1;
                let answer = self.model.apply(operation).ok()?;
                let older = Operation::Range {
                    over: Interval::key(key.clone()),
                    revision: before,
                    limit: 0,
                    stale: false,
                };
                let Ok(Answer::Range { records, .. }) = self.model.apply(&older) else { return None };
                debug_assert!(matches!(answer, Answer::Put { .. }));
                Some(Reply::new(self.model.revision(), Answer::Put { prev: records.into_iter().next() }))
            }
            (Fault::WrongBranch, Operation::Txn { compares, then, otherwise }) => {
                let probe = Operation::Txn { compares: compares.clone(), then: vec![], otherwise: vec![] };
                let Ok(Answer::Txn { succeeded, .. }) = self.model.apply(&probe) else { return None };
                let wrong = if succeeded { otherwise } else { then };
                let forced = Operation::Txn { compares: vec![], then: wrong.clone(), otherwise: vec![] };
                let Ok(Answer::Txn { answers, .. }) = self.model.apply(&forced) else { return None };
                let answer = Answer::Txn { succeeded: !succeeded, answers };
                Some(Reply::new(self.model.revision(), answer))
            }
            _ => None,
        }
    }
}

/// Exchanges the replies of two reads of different keys that both found something.
fn swap_results(clients: &mut [ClientJournal]) -> bool {
    let mut found: Vec<(usize, usize)> = Vec::new();
    for (client, journal) in clients.iter().enumerate() {
        for (place, command) in journal.commands.iter().enumerate() {
            if let (Operation::Range { over, stale: false, .. }, Outcome::Ok { reply, .. }) =
                (&command.operation, &command.outcome)
                && over.is_single()
                && matches!(&reply.answer, Answer::Range { count: 1, .. })
            {
                let differs =
                    |(c, p): &&(usize, usize)| clients[*c].commands[*p].operation != command.operation;
                if let Some((c, p)) = found.iter().find(differs).copied() {
                    let theirs = reply.answer.clone();
                    let Outcome::Ok { reply, .. } = &mut clients[c].commands[p].outcome else { return false };
                    let ours = std::mem::replace(&mut reply.answer, theirs);
                    let Outcome::Ok { reply, .. } = &mut clients[client].commands[place].outcome else {
                        return false;
                    };
                    reply.answer = ours;
                    return true;
                }
                found.push((client, place));
            }
        }
    }
    false
}
