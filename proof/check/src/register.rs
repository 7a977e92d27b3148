//! Linearizability of single-key registers whose replies carry no revision: a search per key.
//!
//! The search is Wing & Gong's (1993) with Lowe's memory of (calls placed, state) pairs already seen (2017): place a call that no
//! unplaced call precedes in real time, go on, take back. Locality lets every key be judged alone (Herlihy & Wing 1990, theorem 1).
//! A call of unknown outcome may take place at any time after its invocation, or never. Histories with transactions over several keys
//! or with revisions belong to `linear`.

use crate::history::{ClientJournal, Command, CommandId, Outcome};
use crate::model::Start;
use crate::operation::{Answer, Compare, Operation, Relation, Target};
use crate::text::show;
use crate::verdict::{Budget, Verdict};
use std::collections::{BTreeMap, HashMap, HashSet};

/// Memory the search may spend on remembering what it has seen; beyond it the budget counts as exceeded.
const SEEN_BYTES_MAX: usize = 512 << 20;

/// The state of a register; None: the key does not exist.
pub type Value = Option<Vec<u8>>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Returned this. Unknown reads constrain nothing and are dropped.
    Read(Value),
    Write(Value),
    /// Writes `new` if the register holds `expected`. `swapped` is what the reply said; ignored while the outcome is unknown.
    Cas {
        expected: Value,
        new: Value,
        swapped: bool,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegisterCall {
    pub id: CommandId,
    pub invoked_at_us: u64,
    /// None: unknown outcome.
    pub returned_at_us: Option<u64>,
    pub action: Action,
}

/// Judges one register. The budget bounds the number of placements tried.
pub fn judge_register(calls: &[RegisterCall], initial: &Value, budget: Budget) -> Verdict {
    let backwards =
        calls.iter().find(|call| call.returned_at_us.is_some_and(|at_us| at_us < call.invoked_at_us));
    if let Some(call) = backwards {
        return Verdict::violation("a call returned before it was invoked", vec![line(call)]);
    }
    Search::new(calls, initial).run(budget)
}

/// Splits the clients' journals by key and judges each. Understood: put, get of one key, delete of one key, and the transaction that
/// compares the value (or the absence, as version = 0) of the key it puts.
pub fn judge_clients(clients: &[ClientJournal], start: &Start, budget: Budget) -> Verdict {
    let mut keys: BTreeMap<&[u8], Vec<RegisterCall>> = BTreeMap::new();
    for journal in clients {
        for command in &journal.commands {
            match register_call(command, journal.honest) {
                Ok(Some((key, call))) => keys.entry(key).or_default().push(call),
                Ok(None) => {}
                Err(reason) => {
                    let evidence = vec![format!(
                        "client {} command {}: {}",
                        journal.client, command.id, command.operation
                    )];
                    return Verdict::violation(reason, evidence);
                }
            }
        }
    }
    let mut spent = None;
    for (key, calls) in &keys {
        let initial =
            start.records.iter().find(|record| record.key == *key).map(|record| record.value.clone());
        match judge_register(calls, &initial, budget) {
            Verdict::Linearizable => {}
            Verdict::Violation { reason, evidence } => {
                return Verdict::violation(format!("key {}: {reason}", show(key)), evidence);
            }
            Verdict::BudgetExceeded { steps } => spent = Some(steps),
        }
    }
    spent.map_or(Verdict::Linearizable, |steps| Verdict::BudgetExceeded { steps })
}

fn register_call(command: &Command, honest: bool) -> Result<Option<(&[u8], RegisterCall)>, String> {
    let (answer, returned_at_us) = match &command.outcome {
        Outcome::Ok { reply, returned_at_us, .. } if honest => (Some(&reply.answer), Some(*returned_at_us)),
        Outcome::Refused { .. } if honest => return Ok(None),
        _ => (None, None),
    };
    let (key, action) = match (&command.operation, answer) {
        (Operation::Put { key, value, .. }, _) => (key, Action::Write(Some(value.clone()))),
        (Operation::DeleteRange { over, .. }, _) if over.is_single() => (&over.key, Action::Write(None)),
        (Operation::Range { stale: true, .. } | Operation::Opaque(_), _)
        | (Operation::Range { .. }, None) => return Ok(None),
        (Operation::Range { over, revision: 0, .. }, Some(Answer::Range { records, .. }))
            if over.is_single() =>
        {
            (&over.key, Action::Read(records.first().map(|record| record.value.clone())))
        }
        (Operation::Txn { compares, then, otherwise }, answer) => {
            let Some((key, expected, new)) = swap(compares, then, otherwise) else {
                return Err("only a transaction that compares and puts one key is a register's; judge it by revisions".into());
            };
            let swapped = match answer {
                Some(Answer::Txn { succeeded, .. }) => *succeeded,
                None => false,
                Some(_) => return Err("the answer does not belong to the operation".into()),
            };
            (key, Action::Cas { expected, new, swapped })
        }
        _ => return Err("not an operation on one register; judge the store by revisions".into()),
    };
    let call = RegisterCall { id: command.id, invoked_at_us: command.invoked_at_us, returned_at_us, action };
    if honest { Ok(Some((key, call))) } else { Ok(Some((key, RegisterCall { invoked_at_us: 0, ..call }))) }
}

fn swap<'a>(
    compares: &[Compare],
    then: &'a [Operation],
    otherwise: &[Operation],
) -> Option<(&'a Vec<u8>, Value, Value)> {
    let ([compare], [Operation::Put { key, value, .. }]) = (compares, then) else { return None };
    let own = |operation: &Operation| matches!(operation, Operation::Range { over, .. } if over.is_single() && over.key == *key);
    let expected = match (&compare.target, compare.relation) {
        (Target::Value(value), Relation::Equal) => Some(value.clone()),
        (Target::Version(0), Relation::Equal) => None,
        _ => return None,
    };
    let one_key = compare.over.is_single() && compare.over.key == *key && otherwise.iter().all(own);
    one_key.then(|| (key, expected, Some(value.clone())))
}

#[derive(Clone, Copy)]
enum Act {
    Read(u32),
    Write(u32),
    Cas { expected: u32, new: u32, swapped: Option<bool> },
}

impl Act {
    /// The state after the call, or None where its reply does not fit.
    fn apply(self, state: u32) -> Option<u32> {
        match self {
            Self::Read(seen) => (seen == state).then_some(state),
            Self::Write(new) => Some(new),
            Self::Cas { expected, new, swapped } => {
                let does = state == expected;
                swapped.is_none_or(|said| said == does).then_some(if does { new } else { state })
            }
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Event {
    Invoked(usize),
    Returned(usize),
}

struct Search<'a> {
    calls: Vec<&'a RegisterCall>,
    acts: Vec<Act>,
    /// Invocations and returns in real time; unknown outcomes have no return.
    events: Vec<Event>,
    /// The list of events still to be explained: `next[i]` and `prev[i]` of event i, with the head at `events.len()`.
    next: Vec<usize>,
    prev: Vec<usize>,
    invoked: Vec<usize>,
    returned: Vec<Option<usize>>,
    state: u32,
}

impl<'a> Search<'a> {
    fn new(all: &'a [RegisterCall], initial: &'a Value) -> Self {
        let is_free_read =
            |call: &&RegisterCall| call.returned_at_us.is_none() && matches!(call.action, Action::Read(_));
        let calls: Vec<&RegisterCall> = all.iter().filter(|call| !is_free_read(call)).collect();
        let mut names: HashMap<&Value, u32> = HashMap::from([(initial, 0)]);
        let mut name = |value: &'a Value| {
            let next = u32::try_from(names.len()).expect("a history holds fewer than 2^32 values");
            *names.entry(value).or_insert(next)
        };
        let act = |call: &&'a RegisterCall| match &call.action {
            Action::Read(value) => Act::Read(name(value)),
            Action::Write(value) => Act::Write(name(value)),
            Action::Cas { expected, new, swapped } => {
                let swapped = call.returned_at_us.map(|_| *swapped);
                Act::Cas { expected: name(expected), new: name(new), swapped }
            }
        };
        let acts: Vec<Act> = calls.iter().map(act).collect();
        // On equal times invocations come first: calls that merely touch are concurrent.
        let mut timed: Vec<(u64, bool, usize)> = Vec::new();
        for (index, call) in calls.iter().enumerate() {
            timed.push((call.invoked_at_us, false, index));
            timed.extend(call.returned_at_us.map(|at_us| (at_us, true, index)));
        }
        timed.sort_unstable();
        let (mut invoked, mut returned) = (vec![0; calls.len()], vec![None; calls.len()]);
        let mut events = Vec::with_capacity(timed.len());
        for (place, (_, is_return, index)) in timed.into_iter().enumerate() {
            events.push(if is_return { Event::Returned(index) } else { Event::Invoked(index) });
            if is_return { returned[index] = Some(place) } else { invoked[index] = place }
        }
        let ring = events.len() + 1;
        let next = (0..ring).map(|i| (i + 1) % ring).collect();
        let prev = (0..ring).map(|i| (i + ring - 1) % ring).collect();
        Self { calls, acts, events, next, prev, invoked, returned, state: 0 }
    }

    fn unlink(&mut self, event: usize) {
        self.next[self.prev[event]] = self.next[event];
        self.prev[self.next[event]] = self.prev[event];
    }

    fn relink(&mut self, event: usize) {
        self.next[self.prev[event]] = event;
        self.prev[self.next[event]] = event;
    }

    fn run(mut self, budget: Budget) -> Verdict {
        let head = self.events.len();
        let mut open = self.returned.iter().flatten().count();
        let mut placed = vec![0u64; self.calls.len().div_ceil(64)];
        let mut seen: HashSet<(Box<[u64]>, u32)> = HashSet::new();
        let seen_max = SEEN_BYTES_MAX / (placed.len() * 8 + 64);
        let mut path: Vec<(usize, u32)> = Vec::new();
        let mut steps = 0;
        let mut deepest: (usize, Option<(usize, u32)>) = (0, None);
        let mut at = self.next[head];
        while open > 0 {
            steps += 1;
            if steps > budget.steps_max || seen.len() > seen_max {
                return Verdict::BudgetExceeded { steps };
            }
            match self.events.get(at).copied() {
                Some(Event::Invoked(index)) => {
                    let after = self.acts[index].apply(self.state).filter(|after| {
                        let mut with = placed.clone();
                        with[index / 64] |= 1 << (index % 64);
                        seen.insert((with.into_boxed_slice(), *after))
                    });
                    let Some(after) = after else {
                        at = self.next[at];
                        continue;
                    };
                    placed[index / 64] |= 1 << (index % 64);
                    path.push((index, self.state));
                    self.state = after;
                    self.unlink(self.invoked[index]);
                    if let Some(returned) = self.returned[index] {
                        self.unlink(returned);
                        open -= 1;
                    }
                    at = self.next[head];
                }
                // A return that no placement could explain, or the end of the list: take back.
                stop => {
                    if let Some(Event::Returned(index)) = stop
                        && (deepest.1.is_none() || path.len() > deepest.0)
                    {
                        deepest = (path.len(), Some((index, self.state)));
                    }
                    let Some((index, before)) = path.pop() else { return self.refuted(deepest.1) };
                    placed[index / 64] &= !(1 << (index % 64));
                    self.state = before;
                    if let Some(returned) = self.returned[index] {
                        self.relink(returned);
                        open += 1;
                    }
                    self.relink(self.invoked[index]);
                    at = self.next[self.invoked[index]];
                }
            }
        }
        Verdict::Linearizable
    }

    fn refuted(&self, stuck: Option<(usize, u32)>) -> Verdict {
        let evidence = stuck.map(|(index, _)| {
            let call = self.calls[index];
            let overlaps = |other: &&&RegisterCall| {
                other.invoked_at_us <= call.returned_at_us.unwrap_or(u64::MAX)
                    && other.returned_at_us.is_none_or(|at_us| at_us >= call.invoked_at_us)
                    && other.id != call.id
            };
            let others =
                self.calls.iter().filter(overlaps).take(6).map(|other| format!("overlaps {}", line(other)));
            std::iter::once(format!("cannot be placed: {}", line(call))).chain(others).collect()
        });
        Verdict::violation("no order of the calls explains every reply", evidence.unwrap_or_default())
    }
}

fn line(call: &RegisterCall) -> String {
    let value = |value: &Value| value.as_ref().map_or("nothing".to_string(), |value| show(value));
    let action = match &call.action {
        Action::Read(seen) => format!("read {}", value(seen)),
        Action::Write(new) => format!("write {}", value(new)),
        Action::Cas { expected, new, swapped } => {
            format!("swap {} for {}: {swapped}", value(expected), value(new))
        }
    };
    let returned = call.returned_at_us.map_or("never".to_string(), |at_us| format!("{at_us} us"));
    format!("{} [{} us..{returned}] {action}", call.id, call.invoked_at_us)
}
