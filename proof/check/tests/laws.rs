//! Laws of the judges over many drawn histories: good ones pass, faulty ones are refused, and independent deciders agree.

use check::exactly_once;
use check::history::{
    ClientJournal, Command, CommandId, Executed, ExecutedCommand, History, Label, Outcome, ReplicaEvent,
    ReplicaJournal, Reply, Vote, VoteKind,
};
use check::lines::Reader;
use check::model::{Model, Start};
use check::operation::{Answer, Compare, Interval, KeyValue, Operation, Relation, Target};
use check::register::{Action, RegisterCall, judge_clients, judge_register};
use check::rehearsal::{Chance, Fault, Rehearsal, Shape, rehearse};
use check::{Budget, Calm, Judge, Terms, Verdict, judge_all, linear, read_back};
use proptest::prelude::*;
use std::collections::HashSet;
use todc_utils::specifications::Specification;
use todc_utils::{Action as TodcAction, History as TodcHistory, WGLChecker};

fn shape(seed: u64) -> Shape {
    Shape {
        seed,
        clients: 6,
        commands_each: 60,
        keys: 8,
        unknown_per_mille: 0,
        fault: None,
        final_read: true,
    }
}

fn judged(rehearsal: &Rehearsal) -> Verdict {
    linear::judge(&rehearsal.clients, &Start::empty(1), Budget::default())
}

// ---- the whole store ----

#[test]
fn concurrent_histories_with_every_outcome_known_are_linearizable() {
    for seed in 0..60 {
        let verdict = judged(&rehearse(shape(seed)));
        assert!(verdict.is_linearizable(), "seed {seed}: {verdict:?}");
    }
}

#[test]
fn calls_of_unknown_outcome_explain_the_revisions_nobody_acknowledged() {
    let mut gaps = 0;
    for seed in 0..60 {
        let rehearsal = rehearse(Shape { unknown_per_mille: 120, ..shape(seed) });
        let verdict = judged(&rehearsal);
        assert!(verdict.is_linearizable(), "seed {seed}: {verdict:?}");
        let commands = rehearsal.clients.iter().flat_map(|journal| &journal.commands);
        gaps += commands.filter(|command| matches!(command.outcome, Outcome::Unknown { .. })).count();
    }
    assert!(gaps > 1_000, "only {gaps} unknown outcomes were drawn");
}

#[test]
fn every_fault_is_refused_wherever_it_strikes() {
    for fault in Fault::ALL {
        let mut struck = 0;
        for seed in 0..40 {
            let rehearsal = rehearse(Shape { fault: Some((fault, 10 + seed * 2)), ..shape(seed) });
            if rehearsal.struck {
                struck += 1;
                let verdict = judged(&rehearsal);
                assert!(verdict.is_violation(), "{fault:?}, seed {seed}: {verdict:?}");
            }
        }
        assert!(struck >= 35, "{fault:?} struck only {struck} of 40 histories");
    }
}

/// The size that `examples/linear_bench.rs` measures: the search ends with an answer, be it yes or no.
#[test]
fn a_history_of_twenty_clients_with_a_thousand_commands_each_is_decided() {
    let whole = Shape { seed: 1, clients: 20, commands_each: 1_000, keys: 200, ..shape(1) };
    let good = rehearse(whole);
    let commands: Vec<&Command> = good.clients.iter().flat_map(|journal| &journal.commands).collect();
    let transactions =
        commands.iter().filter(|command| matches!(command.operation, Operation::Txn { .. })).count();
    assert!(commands.len() >= 20_000 && transactions > 1_000, "{transactions} of {}", commands.len());
    let verdict = judged(&good);
    assert!(verdict.is_linearizable(), "{verdict:?}");
    for fault in [Fault::StaleRead, Fault::LostWrite, Fault::WrongBranch] {
        let faulty = rehearse(Shape { fault: Some((fault, 50)), ..whole });
        let verdict = judged(&faulty);
        assert!(faulty.struck && verdict.is_violation(), "{fault:?}: {verdict:?}");
    }
}

#[test]
fn faults_that_no_unknown_call_can_explain_are_refused_among_unknown_outcomes() {
    for fault in
        [Fault::StaleRead, Fault::StaleContent, Fault::LostEffect, Fault::SwappedResults, Fault::WrongPrev]
    {
        for seed in 0..25 {
            let shape = Shape { unknown_per_mille: 60, fault: Some((fault, 40)), ..shape(seed) };
            let rehearsal = rehearse(shape);
            if rehearsal.struck {
                let verdict = judged(&rehearsal);
                assert!(verdict.is_violation(), "{fault:?}, seed {seed}: {verdict:?}");
            }
        }
    }
}

#[test]
fn a_violation_names_the_calls_that_show_it() {
    let rehearsal = rehearse(Shape { fault: Some((Fault::StaleRead, 50)), ..shape(3) });
    let Verdict::Violation { reason, evidence } = judged(&rehearsal) else { panic!("must be refused") };
    assert!(reason.contains("real time is broken"), "{reason}");
    assert_eq!(evidence.len(), 2);
}

#[test]
fn a_revision_beyond_all_reason_is_refused_at_once() {
    let mut rehearsal = rehearse(shape(1));
    let last = rehearsal.clients[0].commands.last_mut().unwrap();
    let Outcome::Ok { reply, .. } = &mut last.outcome else { panic!("the final read returned") };
    reply.revision = Some(u64::MAX);
    assert!(judged(&rehearsal).is_violation());
}

#[test]
fn a_search_that_ends_without_an_answer_says_so() {
    let rehearsal = rehearse(Shape { unknown_per_mille: 120, ..shape(1) });
    let verdict = linear::judge(&rehearsal.clients, &Start::empty(1), Budget { steps_max: 10 });
    assert!(matches!(verdict, Verdict::BudgetExceeded { .. }), "{verdict:?}");
}

fn replica_that_executed(log: &[CommandId]) -> ReplicaJournal {
    let mut journal = ReplicaJournal::new(0, 0, true, true);
    for (sequence, id) in (1..).zip(log) {
        let commands = vec![ExecutedCommand { id: *id, result: [0; 32] }];
        let entry =
            Executed { epoch: 0, sequence, position: sequence, digest: [0; 32], chain: None, commands };
        journal.note(0, ReplicaEvent::Executed(entry));
    }
    journal
}

/// Steps the search takes, found by halving; None where it needs more than a hundred thousand.
fn steps_needed(rehearsal: &Rehearsal, replicas: &[ReplicaJournal]) -> Option<u64> {
    let is_decided = |steps_max| {
        let budget = Budget { steps_max };
        linear::judge_beside_a_log(&rehearsal.clients, &Start::empty(1), budget, replicas).is_linearizable()
    };
    let (mut low, mut high) = (0, 100_000);
    if !is_decided(high) {
        return None;
    }
    while high - low > 1 {
        let middle = (low + high) / 2;
        if is_decided(middle) { high = middle } else { low = middle }
    }
    Some(high)
}

#[test]
fn the_replicas_log_shortens_the_search() {
    let (mut alone, mut beside) = (0, 0);
    for seed in 0..20 {
        let rehearsal = rehearse(Shape { unknown_per_mille: 200, ..shape(seed) });
        let log = replica_that_executed(&rehearsal.log);
        alone += steps_needed(&rehearsal, &[]).unwrap_or(100_000);
        beside += steps_needed(&rehearsal, &[log]).expect("the log is the answer");
    }
    assert!(beside * 2 < alone, "{beside} steps with the log, {alone} without");
}

#[test]
fn no_log_makes_a_broken_history_pass_or_a_good_one_fail() {
    for seed in 0..20 {
        for fault in [None, Some((Fault::LostEffect, 50)), Some((Fault::StaleContent, 50))] {
            let rehearsal = rehearse(Shape { unknown_per_mille: 60, fault, ..shape(seed) });
            let mut backwards = rehearsal.log.clone();
            backwards.reverse();
            for log in [&rehearsal.log, &backwards] {
                let replicas = [replica_that_executed(log)];
                let budget = Budget::default();
                let verdict =
                    linear::judge_beside_a_log(&rehearsal.clients, &Start::empty(1), budget, &replicas);
                assert_eq!(
                    verdict.is_violation(),
                    judged(&rehearsal).is_violation(),
                    "seed {seed} {fault:?}"
                );
                assert_eq!(verdict.is_linearizable(), !rehearsal.struck, "seed {seed} {fault:?}");
            }
        }
    }
}

/// One client's operations against a model. A call of unknown outcome takes effect where `takes_effect` says.
struct Script {
    journal: ClientJournal,
    model: Model,
    now_us: u64,
}

impl Script {
    fn new() -> Self {
        Self { journal: ClientJournal::new(1), model: Model::new(&Start::empty(1)), now_us: 0 }
    }

    fn unknown(&mut self, operation: Operation) {
        self.now_us += 10;
        let id = CommandId { session: 1, seq: self.now_us };
        self.journal.invoked(id, self.now_us, operation);
    }

    fn takes_effect(&mut self, operation: Operation) {
        self.model.apply(&operation).unwrap();
    }

    fn acknowledged(&mut self, operation: Operation) {
        self.now_us += 10;
        let answer = self.model.apply(&operation).unwrap();
        let id = CommandId { session: 1, seq: self.now_us };
        let place = self.journal.invoked(id, self.now_us, operation);
        self.journal.returned(
            place,
            self.now_us + 5,
            Reply::new(self.model.revision(), answer),
            Label::Crash,
        );
    }

    fn verdict(self) -> Verdict {
        linear::judge(&[self.journal], &Start::empty(1), Budget::default())
    }
}

#[test]
fn a_call_used_for_an_early_revision_is_taken_back_when_a_later_one_needs_it() {
    let mut script = Script::new();
    script.acknowledged(Operation::put("w", "0"));
    let (early, late) = (Operation::put("w", "unseen"), Operation::put("z", "unseen"));
    script.unknown(early.clone());
    script.unknown(late.clone());
    script.takes_effect(early);
    script.acknowledged(Operation::put("w", "1"));
    script.takes_effect(late);
    script.acknowledged(Operation::get("w"));
    assert_eq!(script.verdict(), Verdict::Linearizable);
}

#[test]
fn a_call_used_below_a_told_state_may_still_be_needed_above_it() {
    let mut script = Script::new();
    script.acknowledged(Operation::put("k", "0"));
    let (early, late) = (Operation::put("z", "unseen"), Operation::put("k", "unseen"));
    script.unknown(early.clone());
    script.unknown(late.clone());
    script.takes_effect(early);
    script.acknowledged(Operation::delete("k"));
    script.acknowledged(Operation::get("k"));
    script.takes_effect(late);
    let over = Interval::key("k");
    let exists = Compare { over, relation: Relation::Equal, target: Target::Version(1) };
    let txn =
        Operation::Txn { compares: vec![exists], then: vec![Operation::put("y", "1")], otherwise: vec![] };
    script.acknowledged(txn);
    assert_eq!(script.verdict(), Verdict::Linearizable);
}

/// Every order, tried one by one. Slow and obvious: the law for small histories.
fn explained(commands: &[&Command], done: u32, model: &Model) -> bool {
    let returned = |command: &Command| match &command.outcome {
        Outcome::Ok { returned_at_us, .. } => Some(*returned_at_us),
        _ => None,
    };
    let is_open = |index: usize| done & (1 << index) == 0;
    if (0..commands.len()).all(|index| !is_open(index) || returned(commands[index]).is_none()) {
        return true;
    }
    (0..commands.len()).filter(|index| is_open(*index)).any(|index| {
        let command = commands[index];
        let precedes = |other: usize| {
            is_open(other) && returned(commands[other]).is_some_and(|at_us| at_us < command.invoked_at_us)
        };
        if (0..commands.len()).any(precedes) {
            return false;
        }
        let mut next = model.clone();
        let answer = next.apply(&command.operation);
        let fits = match &command.outcome {
            Outcome::Ok { reply, .. } => {
                answer.as_ref() == Ok(&reply.answer) && Some(next.revision()) == reply.revision
            }
            _ => answer.is_ok(),
        };
        fits && explained(commands, done | (1 << index), &next)
    })
}

#[test]
fn the_judge_agrees_with_trying_every_order() {
    let (mut good, mut bad) = (0, 0);
    for seed in 0..4_000 {
        let mut chance = Chance(seed ^ 0xabcd);
        let fault = (seed % 3 == 1).then(|| (Fault::ALL[chance.below(8) as usize], 20));
        let unknown_per_mille = if seed % 2 == 0 { 0 } else { 400 };
        let small = Shape {
            seed,
            clients: 3,
            commands_each: 2 + seed % 2,
            keys: 1 + seed / 7 % 2,
            unknown_per_mille,
            fault,
            final_read: seed % 5 == 0,
        };
        let mut rehearsal = rehearse(small);
        for journal in &mut rehearsal.clients {
            journal
                .commands
                .retain(|command| !matches!(command.operation, Operation::Range { stale: true, .. }));
        }
        if seed % 3 == 2 {
            tamper(&mut rehearsal.clients, &mut chance);
        }
        let commands: Vec<&Command> =
            rehearsal.clients.iter().flat_map(|journal| &journal.commands).collect();
        let truth = explained(&commands, 0, &Model::new(&Start::empty(1)));
        let verdict = judged(&rehearsal);
        assert_eq!(verdict.is_linearizable(), truth, "seed {seed}: {verdict:?}\n{commands:#?}");
        assert_eq!(verdict.is_violation(), !truth, "seed {seed}");
        if truth { good += 1 } else { bad += 1 }
    }
    assert!(good > 1_000 && bad > 500, "{good} good and {bad} bad histories are too few to tell");
}

/// One careless change anywhere: another revision, another time, another reply, an outcome forgotten or a command never noted.
fn tamper(clients: &mut [ClientJournal], chance: &mut Chance) {
    let theirs = clients[0].commands.first().map(|command| command.outcome.clone());
    let client = chance.below(clients.len() as u64) as usize;
    let commands = &mut clients[client].commands;
    if commands.is_empty() {
        return;
    }
    let place = chance.below(commands.len() as u64) as usize;
    let invoked_at_us = commands[place].invoked_at_us;
    match (chance.below(6), &mut commands[place].outcome) {
        (0, Outcome::Ok { reply, .. }) => reply.revision = reply.revision.map(|revision| revision + 1),
        (1, Outcome::Ok { reply, .. }) => {
            reply.revision = reply.revision.map(|revision| revision.saturating_sub(1))
        }
        (2, Outcome::Ok { returned_at_us, .. }) => *returned_at_us = invoked_at_us,
        (3, outcome) => *outcome = Outcome::Unknown { gave_up_at_us: None },
        (4, outcome) => *outcome = theirs.unwrap_or(Outcome::Unknown { gave_up_at_us: None }),
        _ => {
            commands.remove(place);
        }
    }
}

// ---- registers ----

fn any_order(calls: &[RegisterCall], done: u32, state: Option<Vec<u8>>) -> bool {
    let is_open = |index: usize| done & (1 << index) == 0;
    if (0..calls.len()).all(|index| !is_open(index) || calls[index].returned_at_us.is_none()) {
        return true;
    }
    (0..calls.len()).filter(|index| is_open(*index)).any(|index| {
        let call = &calls[index];
        let precedes =
            |other: &RegisterCall| other.returned_at_us.is_some_and(|at_us| at_us < call.invoked_at_us);
        if (0..calls.len()).any(|other| is_open(other) && precedes(&calls[other])) {
            return false;
        }
        let known = call.returned_at_us.is_some();
        let after = match &call.action {
            Action::Read(seen) => (!known || *seen == state).then(|| state.clone()),
            Action::Write(new) => Some(new.clone()),
            Action::Cas { expected, new, swapped } => {
                let does = *expected == state;
                (!known || does == *swapped).then(|| if does { new.clone() } else { state.clone() })
            }
        };
        after.is_some_and(|after| any_order(calls, done | (1 << index), after))
    })
}

/// Calls of `processes` sequential clients on one register with values 0..3; each took effect at an instant within, and then a few
/// replies may have been spoilt. All times differ.
fn register_calls(
    chance: &mut Chance,
    processes: u64,
    each: u64,
    spoilt: u64,
    unknown: bool,
) -> Vec<(u64, RegisterCall)> {
    let mut planned: Vec<(u64, u64, u64, u64)> = Vec::new();
    for process in 0..processes {
        let mut now = process;
        for _ in 0..each {
            let (wait, until_effect, until_return) = (chance.below(6), chance.below(8), chance.below(8));
            let invoked = now + wait * 64;
            let effect = invoked + 64 * (1 + until_effect);
            let returned = effect + 64 * (1 + until_return) + 32;
            planned.push((effect, process, invoked, returned));
            now = returned + 64 - 32;
        }
    }
    planned.sort_unstable();
    let value = |n: u64| Some(vec![n as u8]);
    let mut state = value(0);
    let mut calls = Vec::new();
    for (seq, (_, process, invoked, returned)) in (0..).zip(planned) {
        let drawn = value(chance.below(3));
        let action = match chance.below(3) {
            0 => Action::Read(state.clone()),
            1 => {
                state = drawn.clone();
                Action::Write(drawn)
            }
            _ => {
                let expected = value(chance.below(3));
                let swapped = expected == state;
                if swapped {
                    state = drawn.clone();
                }
                Action::Cas { expected, new: drawn, swapped }
            }
        };
        let returned_at_us = (!unknown || chance.below(4) > 0).then_some(returned);
        let id = CommandId { session: u128::from(process), seq };
        calls.push((process, RegisterCall { id, invoked_at_us: invoked, returned_at_us, action }));
    }
    for _ in 0..spoilt {
        let place = chance.below(calls.len() as u64) as usize;
        match &mut calls[place].1.action {
            Action::Read(seen) => *seen = value(chance.below(3)),
            Action::Write(_) => {}
            Action::Cas { swapped, .. } => *swapped = !*swapped,
        }
    }
    calls
}

#[derive(Debug)]
struct RegisterSpec;

impl Specification for RegisterSpec {
    type State = Option<Vec<u8>>;
    type Operation = Action;

    fn init() -> Self::State {
        Some(vec![0])
    }

    fn apply(operation: &Action, state: &Self::State) -> (bool, Self::State) {
        match operation {
            Action::Read(seen) => (seen == state, state.clone()),
            Action::Write(new) => (true, new.clone()),
            Action::Cas { expected, new, swapped } => {
                let does = expected == state;
                (does == *swapped, if does { new.clone() } else { state.clone() })
            }
        }
    }
}

fn todc_says(calls: &[(u64, RegisterCall)]) -> bool {
    let mut events = Vec::new();
    for (process, call) in calls {
        let returned = call.returned_at_us.expect("todc-utils takes only complete histories");
        events.push((call.invoked_at_us, *process as usize, TodcAction::Call(call.action.clone())));
        events.push((returned, *process as usize, TodcAction::Response(call.action.clone())));
    }
    events.sort_by_key(|(at_us, ..)| *at_us);
    let actions = events.into_iter().map(|(_, process, action)| (process, action)).collect();
    WGLChecker::<RegisterSpec>::is_linearizable(TodcHistory::from_actions(actions))
}

#[test]
fn the_register_search_agrees_with_todc_utils() {
    let (mut good, mut bad) = (0, 0);
    for seed in 0..6_000 {
        let mut chance = Chance(seed);
        let (processes, each) = (2 + chance.below(3), 1 + chance.below(5));
        let calls = register_calls(&mut chance, processes, each, seed % 3, false);
        let truth = todc_says(&calls);
        let own: Vec<RegisterCall> = calls.into_iter().map(|(_, call)| call).collect();
        let verdict = judge_register(&own, &Some(vec![0]), Budget::default());
        assert_eq!(verdict.is_linearizable(), truth, "seed {seed}: {verdict:?}\n{own:#?}");
        assert_eq!(verdict.is_violation(), !truth, "seed {seed}");
        if truth { good += 1 } else { bad += 1 }
    }
    assert!(good > 2_000 && bad > 1_000, "{good} good and {bad} bad histories are too few to tell");
}

#[test]
fn the_register_search_agrees_with_trying_every_order_when_outcomes_are_unknown() {
    let (mut good, mut bad) = (0, 0);
    for seed in 0..3_000 {
        let mut chance = Chance(seed);
        let calls = register_calls(&mut chance, 3, 2, seed % 3, true);
        let own: Vec<RegisterCall> = calls.into_iter().map(|(_, call)| call).collect();
        let truth = any_order(&own, 0, Some(vec![0]));
        let verdict = judge_register(&own, &Some(vec![0]), Budget::default());
        assert_eq!(verdict.is_linearizable(), truth, "seed {seed}: {verdict:?}\n{own:#?}");
        if truth { good += 1 } else { bad += 1 }
    }
    assert!(good > 1_000 && bad > 300, "{good} good and {bad} bad histories are too few to tell");
}

#[test]
fn a_long_register_history_is_judged_within_the_default_budget() {
    let mut chance = Chance(5);
    let calls = register_calls(&mut chance, 5, 100, 0, true);
    let own: Vec<RegisterCall> = calls.into_iter().map(|(_, call)| call).collect();
    assert_eq!(judge_register(&own, &Some(vec![0]), Budget::default()), Verdict::Linearizable);
    let spent = judge_register(&own, &Some(vec![0]), Budget { steps_max: 20 });
    assert!(matches!(spent, Verdict::BudgetExceeded { .. }));
}

#[test]
fn client_journals_without_revisions_are_judged_key_by_key() {
    let journal = |seen: Option<&str>| {
        let mut journal = ClientJournal::new(1);
        let id = |seq| CommandId { session: 1, seq };
        let reply = |answer| Reply { revision: None, answer, digest: None };
        for (seq, value) in [(1, "x"), (2, "y")] {
            let place = journal.invoked(id(seq), seq * 10, Operation::put("a", value));
            journal.returned(place, seq * 10 + 5, reply(Answer::Put { prev: None }), Label::Crash);
        }
        let place = journal.invoked(id(3), 30, Operation::get("a"));
        let record = |value: &str| KeyValue {
            key: b"a".to_vec(),
            value: value.as_bytes().to_vec(),
            create_revision: 0,
            mod_revision: 0,
            version: 0,
            lease: 0,
        };
        let records: Vec<KeyValue> = seen.map(record).into_iter().collect();
        let count = records.len() as u64;
        journal.returned(place, 35, reply(Answer::Range { records, count }), Label::Crash);
        judge_clients(&[journal], &Start::empty(0), Budget::default())
    };
    assert!(journal(Some("y")).is_linearizable());
    assert!(journal(Some("x")).is_violation());
    assert!(journal(None).is_violation());
}

// ---- all judges together ----

/// A history of a cluster that executed exactly what the clients of a rehearsal saw, in revision order.
fn cluster(seed: u64) -> (History, Terms) {
    let Rehearsal { mut clients, records, .. } = rehearse(shape(seed));
    let mut logged: Vec<(u64, bool, u64, CommandId)> = Vec::new();
    for command in clients.iter_mut().flat_map(|journal| &mut journal.commands) {
        let Outcome::Ok { reply, label, returned_at_us } = &mut command.outcome else { continue };
        let mut digest = [0; 32];
        digest[..8].copy_from_slice(&command.id.seq.to_be_bytes());
        reply.digest = Some(digest);
        *label = Label::Byzantine;
        let revision = reply.revision.unwrap();
        if !matches!(command.operation, Operation::Range { stale: true, .. }) {
            logged.push((revision, !reply.answer.tells_of_a_write(), *returned_at_us, command.id));
        }
    }
    logged.sort_unstable();
    let mut history = History { clients, replicas: vec![] };
    for replica in 0..4 {
        let mut journal = ReplicaJournal::new(replica, 1, true, true);
        journal.note(0, ReplicaEvent::Boot);
        for (sequence, batch) in (1..).zip(logged.chunks(5)) {
            let (at_us, tag) = (batch[0].2, [sequence as u8; 32]);
            let vote = |kind| ReplicaEvent::Voted(Vote { kind, epoch: 0, view: 0, sequence, digest: tag });
            journal.note(at_us, vote(VoteKind::Prepare));
            journal.note(at_us, vote(VoteKind::Commit));
            let run = |(.., id): &(u64, bool, u64, CommandId)| {
                let mut result = [0; 32];
                result[..8].copy_from_slice(&id.seq.to_be_bytes());
                ExecutedCommand { id: *id, result }
            };
            let commands = batch.iter().map(run).collect();
            journal.note(
                at_us,
                ReplicaEvent::Executed(Executed {
                    epoch: 0,
                    sequence,
                    position: sequence,
                    digest: tag,
                    chain: None,
                    commands,
                }),
            );
            if sequence % 8 == 0 {
                journal.note(at_us, ReplicaEvent::Checkpoint { epoch: 0, sequence, state: tag });
            }
        }
        history.replicas.push(journal);
    }
    let mut terms = Terms::new(1);
    terms.calm = Some(Calm { begins_at_us: 0, limit_us: 1_000, run_ended_at_us: 1 << 40 });
    terms.read_back = Some(records);
    (history, terms)
}

#[test]
fn a_good_cluster_satisfies_every_judge_also_when_read_from_lines() {
    let (history, terms) = cluster(9);
    let judgement = judge_all(&history, &terms);
    assert!(judgement.is_clean(), "{:?}", judgement.findings);
    assert!(judgement.acknowledged > 300);
    let mut lines = Vec::new();
    history.write_lines(&mut lines).unwrap();
    let again = History::read_lines(lines.as_slice()).unwrap();
    assert_eq!(again, history);
    assert_eq!(judge_all(&again, &terms), judgement);
}

#[test]
fn each_kind_of_damage_is_found_by_the_judge_it_belongs_to() {
    let found = |spoil: &dyn Fn(&mut History, &mut Terms)| {
        let (mut history, mut terms) = cluster(9);
        spoil(&mut history, &mut terms);
        let judgement = judge_all(&history, &terms);
        assert!(!judgement.is_clean());
        judgement
    };
    fn entry(history: &mut History, replica: usize) -> &mut Executed {
        let mut entries =
            history.replicas[replica].events.iter_mut().filter_map(|stamped| match &mut stamped.event {
                ReplicaEvent::Executed(entry) => Some(entry),
                _ => None,
            });
        entries.nth(7).unwrap()
    }
    let fork = found(&|history, _| entry(history, 2).digest[5] ^= 1);
    assert_eq!(fork.judges(), [Judge::Prefix]);
    let lost = found(&|history, _| (0..4).for_each(|replica| entry(history, replica).commands.truncate(4)));
    assert_eq!((lost.judges(), lost.lost), (vec![Judge::ExactlyOnce], 1));
    let lost = found(&|_, terms| {
        terms.read_back.as_mut().unwrap().retain(|record| !record.key.starts_with(b"counter/0"))
    });
    assert_eq!(lost.judges(), [Judge::ReadBack]);
    assert!(lost.lost > 0);
    let equivocated = found(&|history, _| {
        let again = history.replicas[1].events.iter().rev().find_map(|stamped| match &stamped.event {
            ReplicaEvent::Voted(vote) => Some(vote.clone()),
            _ => None,
        });
        history.replicas[1].note(9_999, ReplicaEvent::Voted(Vote { digest: [9; 32], ..again.unwrap() }));
    });
    assert_eq!(equivocated.judges(), [Judge::SignOnce]);
    let state = [1; 32];
    let diverged = found(&|history, _| {
        history.replicas[3].note(9_999, ReplicaEvent::Checkpoint { epoch: 0, sequence: 8, state })
    });
    assert_eq!(diverged.judges(), [Judge::Digest]);
    let stuck = found(&|history, _| {
        let id = CommandId { session: 99, seq: 1 };
        history.client(99).invoked(id, 5, Operation::get("a"));
    });
    assert_eq!(stuck.judges(), [Judge::Live]);
    assert_eq!(found(&|_, terms| terms.f = 0).judges(), [Judge::Label]);
    let stale = found(&|history, _| {
        let command = history.clients[0].commands.last_mut().unwrap();
        let Outcome::Ok { reply, .. } = &mut command.outcome else { panic!("the final read returned") };
        reply.revision = Some(3);
    });
    assert_eq!(stale.judges(), [Judge::Linear]);
}

#[test]
fn lost_and_doubled_come_from_the_clients_even_if_every_replica_lies_alike() {
    let rehearsal = rehearse(Shape { unknown_per_mille: 0, ..shape(12) });
    let tally = read_back::judge(&rehearsal.clients, &rehearsal.records);
    assert!(tally.findings.is_empty() && tally.acknowledged > 5, "{}", tally.findings);
    let mut records = rehearsal.records.clone();
    let counter = records.iter_mut().find(|record| record.key.starts_with(b"counter/")).unwrap();
    counter.value = (counter.version + 1).to_string().into_bytes();
    assert_eq!(read_back::judge(&rehearsal.clients, &records).doubled, 1);
    // Without replica journals everything acknowledged counts as lost: silence is no proof.
    let report = exactly_once::judge(&rehearsal.clients, &[], &HashSet::new(), |_| true);
    assert_eq!(report.lost(), report.acknowledged);
}

// ---- files ----

#[test]
fn a_torn_last_line_is_dropped_and_a_damaged_one_is_named() {
    let (history, _) = cluster(4);
    let mut lines = Vec::new();
    history.write_lines(&mut lines).unwrap();
    let mut reader = Reader::default();
    reader.read(&lines[..lines.len() - 20]).unwrap();
    assert_eq!(reader.torn(), 1);
    let mut damaged = lines.clone();
    let second = lines.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    damaged[second] = b'?';
    let error = History::read_lines(damaged.as_slice()).unwrap_err().to_string();
    assert!(error.starts_with("journal line 2:"), "{error}");
}

#[test]
fn a_killed_client_leaves_commands_of_unknown_outcome() {
    let (history, _) = cluster(4);
    let mut lines = Vec::new();
    history.write_lines(&mut lines).unwrap();
    let text = String::from_utf8(lines).unwrap();
    let kept: String = text
        .lines()
        .filter(|line| !line.starts_with("{\"finished\""))
        .map(|line| format!("{line}\n"))
        .collect();
    let read = History::read_lines(kept.as_bytes()).unwrap();
    let unknown = |command: &Command| command.outcome == Outcome::Unknown { gave_up_at_us: None };
    assert!(read.honest_commands().all(unknown) && read.honest_commands().count() > 300);
}

#[test]
fn lines_that_contradict_each_other_are_refused() {
    let refused = |text: &str, reason: &str| {
        let error = History::read_lines(text.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    };
    let id = r#"{"session":"01","seq":1}"#;
    let invoked = format!(
        r#"{{"invoked":{{"client":1,"id":{id},"at_us":5,"operation":{{"LeaseRevoke":{{"lease":1}}}}}}}}"#
    );
    let finished =
        format!(r#"{{"finished":{{"client":1,"id":{id},"outcome":{{"Unknown":{{"gave_up_at_us":7}}}}}}}}"#);
    assert!(History::read_lines(format!("{invoked}\n{finished}\n").as_bytes()).is_ok());
    refused(&format!("{invoked}\n{invoked}\n"), "line 2: command 1/1 of client 1 is invoked twice");
    refused(&format!("{finished}\n"), "without an open invocation");
    refused(
        "{\"event\":{\"replica\":1,\"incarnation\":1,\"at_us\":1,\"event\":\"Boot\"}}\n",
        "was not introduced",
    );
}

fn any_key() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(0u8..4, 0..3)
}

fn any_operation() -> impl Strategy<Value = Operation> {
    let interval = || (any_key(), any_key()).prop_map(|(key, end)| Interval { key, end });
    let simple = prop_oneof![
        (any_key(), any_key(), any::<bool>()).prop_map(|(key, value, want_prev)| Operation::Put {
            key,
            value,
            lease: 0,
            want_prev
        }),
        interval().prop_map(Operation::range),
        (interval(), any::<bool>()).prop_map(|(over, want_prev)| Operation::DeleteRange { over, want_prev }),
    ];
    simple.prop_recursive(3, 12, 4, |inner| {
        let list = || prop::collection::vec(inner.clone(), 0..3);
        (list(), list()).prop_map(|(then, otherwise)| Operation::Txn { compares: vec![], then, otherwise })
    })
}

proptest! {
    #[test]
    fn rewinding_the_model_undoes_exactly_what_came_after(
        before in prop::collection::vec(any_operation(), 0..8),
        after in prop::collection::vec(any_operation(), 0..8),
    ) {
        let mut model = Model::new(&Start::empty(1));
        for operation in &before {
            let _ = model.apply(operation);
        }
        let everything = Operation::range(Interval { key: vec![], end: vec![0] });
        let (seen, revision) = (model.apply(&everything), model.revision());
        for operation in &after {
            let _ = model.apply(operation);
        }
        model.rewind(revision);
        prop_assert_eq!(model.apply(&everything), seen);
        prop_assert_eq!(model.revision(), revision);
    }

    #[test]
    fn an_operation_changes_nothing_outside_its_write_footprint(
        before in prop::collection::vec(any_operation(), 0..6),
        operation in any_operation(),
    ) {
        let mut model = Model::new(&Start::empty(1));
        for earlier in &before {
            let _ = model.apply(earlier);
        }
        let revision = model.revision();
        let _ = model.apply(&operation);
        if model.revision() > revision {
            let footprint = operation.write_footprint();
            for key in model.last_changed() {
                prop_assert!(footprint.iter().any(|interval| interval.contains(key)));
            }
        }
    }

    #[test]
    fn intervals_overlap_if_they_share_a_key(a in any_key(), b in any_key(), c in any_key(), d in any_key(), key in any_key()) {
        let (one, other) = (Interval { key: a, end: b }, Interval { key: c, end: d });
        prop_assert_eq!(one.overlaps(&other), other.overlaps(&one));
        if one.contains(&key) && other.contains(&key) {
            prop_assert!(one.overlaps(&other));
        }
    }

    #[test]
    fn any_bytes_at_all_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = History::read_lines(bytes.as_slice());
    }
}
