//! Linearizability of a whole multi-version store, judged by its revisions.
//!
//! Every mutation consumes one revision of the store and says which, so the order is not searched but read off: the writer of
//! revision r stands at r, and what changed nothing stands at the revision it was answered with, after that writer. Three things are judged:
//! 1. real time: a call invoked after another returned stands no earlier (stale reads are free to look back, never ahead);
//! 2. replies: each equals what the reference model answers at that place;
//! 3. revisions nobody acknowledged are filled with calls of unknown outcome, which is the one part that needs a search (`fill`).
//!
//! Replies that contradict each other whoever filled a gap are found first, without a search (`contradict`).
//!
//! Journals of replicas, where there are any, only say in which order that search tries things: their log is nearly always the answer,
//! and an explanation is judged the same wherever it came from.
//!
//! Opaque operations are left out; a client that is not honest counts as a source of calls of unknown outcome. A journal must not
//! hold two calls of one id. Registers without revisions are the matter of `register`.

mod contradict;
mod fill;

use crate::history::{ClientJournal, Command, CommandId, Outcome, ReplicaEvent, ReplicaJournal, Reply};
use crate::lease;
use crate::model::Start;
use crate::operation::Operation;
use crate::verdict::{Budget, Verdict};
use std::collections::{BTreeMap, HashMap};

#[derive(Clone, Copy)]
struct Call<'a> {
    client: u64,
    command: &'a Command,
}

impl Call<'_> {
    fn name(&self) -> String {
        format!("client {} command {}", self.client, self.command.id)
    }

    fn line(&self) -> String {
        let (command, name) = (self.command, self.name());
        match &command.outcome {
            Outcome::Ok { returned_at_us, reply, .. } => format!(
                "{name} [{}..{returned_at_us} us] {} -> revision {}: {}",
                command.invoked_at_us,
                command.operation,
                reply.revision.map_or("none".to_string(), |revision| revision.to_string()),
                reply.answer
            ),
            Outcome::Refused { .. } => format!("{name} {} -> refused", command.operation),
            Outcome::Unknown { .. } => {
                format!("{name} [{}.. us] {} -> unknown", command.invoked_at_us, command.operation)
            }
        }
    }
}

/// An acknowledged call and its place.
#[derive(Clone, Copy)]
struct Placed<'a> {
    call: Call<'a>,
    reply: &'a Reply,
    returned_at_us: u64,
    revision: u64,
    is_writer: bool,
}

/// A call that may have been the writer of any revision above `floor`, or of none.
struct Floating<'a> {
    call: Call<'a>,
    floor: u64,
}

struct Order<'a> {
    start: u64,
    last: u64,
    writers: BTreeMap<u64, Placed<'a>>,
    readers: BTreeMap<u64, Vec<Placed<'a>>>,
    floating: Vec<Floating<'a>>,
}

/// Judges the histories of all clients of one store that held `start` before the first command.
pub fn judge(clients: &[ClientJournal], start: &Start, budget: Budget) -> Verdict {
    judge_beside_a_log(clients, start, budget, &[])
}

/// The same verdict, found sooner with the help of what honest replicas executed.
pub fn judge_beside_a_log(
    clients: &[ClientJournal],
    start: &Start,
    budget: Budget,
    replicas: &[ReplicaJournal],
) -> Verdict {
    match place(clients, start) {
        Ok(order) => contradict::find(&order).unwrap_or_else(|| {
            let hints = if order.floating.is_empty() { Hints::new() } else { hints(replicas) };
            fill::Search::new(order, start, budget, &hints).run()
        }),
        Err(verdict) => verdict,
    }
}

/// Where each command stands in the log that replicas executed: position, index. A guess, never evidence.
type Hints = HashMap<CommandId, (u64, usize)>;

fn hints(replicas: &[ReplicaJournal]) -> Hints {
    let mut hints = Hints::new();
    for (position, commands) in replicas.iter().filter(|journal| journal.honest).flat_map(ReplicaJournal::ran)
    {
        for (index, command) in commands.iter().enumerate() {
            hints.entry(command.id).or_insert((position, index));
        }
    }
    let events = replicas.iter().filter(|journal| journal.honest).flat_map(|journal| &journal.events);
    for turn in events.filter_map(|stamped| match &stamped.event {
        ReplicaEvent::Leased(turn) => Some(turn),
        _ => None,
    }) {
        // Time takes its share before an entry's commands, one lease after the other.
        let first = usize::MAX - turn.vanished.len();
        for (nth, (_, lease)) in turn.vanished.iter().enumerate() {
            hints
                .entry(lease::end_id(*lease, false))
                .or_insert((turn.position.saturating_sub(1), first + nth));
        }
    }
    hints
}

fn place<'a>(clients: &'a [ClientJournal], start: &Start) -> Result<Order<'a>, Verdict> {
    let (mut placed, mut floating) = (Vec::new(), Vec::new());
    for journal in clients {
        for command in &journal.commands {
            if matches!(command.operation, Operation::Opaque(_)) {
                continue;
            }
            let call = Call { client: journal.client, command };
            match &command.outcome {
                Outcome::Ok { returned_at_us, reply, .. } if journal.honest => {
                    placed.push(place_one(call, reply, *returned_at_us, start)?);
                }
                Outcome::Refused { .. } if journal.honest => {}
                _ if command.operation.may_write() => floating.push(Floating { call, floor: start.revision }),
                _ => {}
            }
        }
    }
    judge_real_time(clients, &placed, &mut floating)?;
    let mut order = Order {
        start: start.revision,
        last: start.revision,
        writers: BTreeMap::new(),
        readers: BTreeMap::new(),
        floating,
    };
    for placed in placed {
        order.last = order.last.max(placed.revision);
        if !placed.is_writer {
            order.readers.entry(placed.revision).or_default().push(placed);
        } else if let Some(other) = order.writers.insert(placed.revision, placed) {
            let reason = format!("two writers were acknowledged with revision {}", placed.revision);
            return Err(Verdict::violation(reason, vec![other.call.line(), placed.call.line()]));
        }
    }
    let gaps = order.last - order.start - order.writers.len() as u64;
    if gaps > order.floating.len() as u64 {
        let free = first_gap(&order);
        let reason = format!(
            "{gaps} revisions have no acknowledged writer and only {} calls of unknown outcome could have written them",
            order.floating.len()
        );
        let mut evidence = vec![format!("the first such revision is {free}")];
        evidence.extend(order.writers.range(..free).next_back().map(|(_, placed)| placed.call.line()));
        evidence.extend(order.writers.range(free..).next().map(|(_, placed)| placed.call.line()));
        return Err(Verdict::violation(reason, evidence));
    }
    Ok(order)
}

fn place_one<'a>(
    call: Call<'a>,
    reply: &'a Reply,
    returned_at_us: u64,
    start: &Start,
) -> Result<Placed<'a>, Verdict> {
    let is_writer = reply.answer.tells_of_a_write();
    let refuse = |reason: String| Err(Verdict::violation(reason, vec![call.line()]));
    let Some(revision) = reply.revision else {
        return refuse(format!(
            "{} was acknowledged without a revision; judge it as a register",
            call.name()
        ));
    };
    if returned_at_us < call.command.invoked_at_us {
        return refuse(format!("{} returned before it was invoked", call.name()));
    }
    if revision < start.revision + u64::from(is_writer) {
        let first = start.revision;
        return refuse(format!(
            "{} stands at revision {revision}, yet the store began at {first}",
            call.name()
        ));
    }
    Ok(Placed { call, reply, returned_at_us, revision, is_writer })
}

fn first_gap(order: &Order<'_>) -> u64 {
    let expected = (order.start + 1)..;
    let taken = order.writers.keys().copied();
    let full = expected.clone().zip(taken).take_while(|(expected, taken)| expected == taken).count();
    order.start + 1 + full as u64
}

/// One sweep over invocations and returns. What has returned sets a floor for everything invoked later; on equal times the
/// invocation comes first, so that calls which merely touch count as concurrent.
fn judge_real_time(
    clients: &[ClientJournal],
    placed: &[Placed<'_>],
    floating: &mut [Floating<'_>],
) -> Result<(), Verdict> {
    #[derive(PartialEq, Eq, PartialOrd, Ord)]
    enum Step {
        Floats(usize),
        Invoked(usize),
        Returned(usize),
    }
    let is_honest = |client| clients.iter().any(|journal| journal.client == client && journal.honest);
    let mut steps: Vec<(u64, Step)> = Vec::with_capacity(placed.len() * 2 + floating.len());
    for (index, placed) in placed.iter().enumerate() {
        steps.push((placed.call.command.invoked_at_us, Step::Invoked(index)));
        steps.push((placed.returned_at_us, Step::Returned(index)));
    }
    for (index, floating) in floating.iter().enumerate() {
        if is_honest(floating.call.client) {
            steps.push((floating.call.command.invoked_at_us, Step::Floats(index)));
        }
    }
    steps.sort_unstable();
    let mut highest: Option<&Placed<'_>> = None;
    for (_, step) in &steps {
        match step {
            Step::Floats(index) => {
                let floor = highest.map_or(floating[*index].floor, |highest| highest.revision);
                floating[*index].floor = floor;
            }
            Step::Invoked(index) => {
                let (later, Some(earlier)) = (&placed[*index], highest) else { continue };
                let is_stale = matches!(later.call.command.operation, Operation::Range { stale: true, .. });
                let floor = earlier.revision + u64::from(later.is_writer);
                if later.revision < floor && !is_stale {
                    let what = if later.is_writer { "write" } else { "read" };
                    let reason = format!(
                        "real time is broken: a {what} stands at revision {} although revision {} had been acknowledged before it was invoked",
                        later.revision, earlier.revision
                    );
                    return Err(Verdict::violation(reason, vec![earlier.call.line(), later.call.line()]));
                }
            }
            Step::Returned(index) => {
                let placed = &placed[*index];
                if highest.is_none_or(|highest| highest.revision < placed.revision) {
                    highest = Some(placed);
                }
            }
        }
    }
    Ok(())
}
