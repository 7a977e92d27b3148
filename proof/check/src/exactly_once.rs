//! Exactly-once in the log: every acknowledged command was executed once by the honest replicas, with the result its client got.
//!
//! A command is known by (session, seq). Acknowledged: once, same result digest. Unknown outcome: at most once. Refused as not
//! applied: never. The log is the union of what honest replicas executed, by position; that they agree there is the matter
//! of `prefix` and `one_log`. What clients can tell without any look at a log is the matter of `read_back`.

use crate::history::{ClientJournal, Command, CommandId, Label, Outcome, ReplicaJournal};
use crate::one_log::Branch;
use crate::text::short;
use crate::verdict::{Findings, Judge};
use std::collections::{BTreeSet, HashMap, HashSet};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub acknowledged: u64,
    /// Acknowledged with the label `crash` and nowhere in the log.
    pub lost_crash: u64,
    /// Acknowledged with the label `byzantine` and nowhere in the log.
    pub lost_byzantine: u64,
    /// Executions beyond the first, over all commands.
    pub doubled: u64,
    pub findings: Findings,
}

impl Report {
    pub fn lost(&self) -> u64 {
        self.lost_crash + self.lost_byzantine
    }
}

struct Run {
    /// Position, place within its entry.
    places: BTreeSet<(u64, usize)>,
    result: [u8; 32],
}

/// `discarded`: what replicas executed of segments and is not part of the log. Commands that are answered outside the log (stale reads) must be left out of `is_logged`.
pub fn judge(
    clients: &[ClientJournal],
    replicas: &[ReplicaJournal],
    discarded: &HashSet<Branch>,
    is_logged: impl Fn(&Command) -> bool,
) -> Report {
    let mut runs: HashMap<CommandId, Run> = HashMap::new();
    let discards = |epoch: u64, index: u64, chain| discarded.contains(&(epoch, index, chain));
    for (position, commands) in
        replicas.iter().filter(|journal| journal.honest).flat_map(|journal| journal.ran_unless(discards))
    {
        for (index, command) in commands.iter().enumerate() {
            let fresh = || Run { places: BTreeSet::new(), result: command.result };
            let run = runs.entry(command.id).or_insert_with(fresh);
            run.places.insert((position, index));
        }
    }
    let mut report = Report::default();
    let mut doubled: Vec<_> = runs.iter().filter(|(_, run)| run.places.len() > 1).collect();
    doubled.sort_by_key(|(id, _)| **id);
    for (id, run) in doubled {
        report.doubled += run.places.len() as u64 - 1;
        let places = run.places.iter().map(|(position, _)| format!("at position {position}"));
        report.findings.push(
            Judge::ExactlyOnce,
            format!("doubled: command {id} was executed {} times", run.places.len()),
            places.collect(),
        );
    }
    let mut ids = BTreeSet::new();
    for journal in clients.iter().filter(|journal| journal.honest) {
        for command in &journal.commands {
            if !ids.insert(command.id) {
                let reason = format!("client {} used the id {} for two commands", journal.client, command.id);
                report.findings.push(Judge::ExactlyOnce, reason, vec![]);
            }
            if is_logged(command) {
                judge_command(journal.client, command, runs.get(&command.id), &mut report);
            }
        }
    }
    report
}

fn judge_command(client: u64, command: &Command, run: Option<&Run>, report: &mut Report) {
    let id = command.id;
    match (&command.outcome, run) {
        (Outcome::Ok { returned_at_us, reply, label }, run) => {
            report.acknowledged += 1;
            let Some(run) = run else {
                let lost = match label {
                    Label::Crash => &mut report.lost_crash,
                    Label::Byzantine => &mut report.lost_byzantine,
                };
                *lost += 1;
                let reason = format!("lost: command {id} was acknowledged and no honest replica executed it");
                let evidence = format!("client {client}, acknowledged at {returned_at_us} us as {label:?}");
                report.findings.push(Judge::ExactlyOnce, reason, vec![evidence]);
                return;
            };
            if let Some(digest) = reply.digest.filter(|digest| *digest != run.result) {
                let reason = format!("command {id} was acknowledged with another result than it had");
                let evidence = format!(
                    "client {client} got {}, replicas computed {}",
                    short(&digest),
                    short(&run.result)
                );
                report.findings.push(Judge::ExactlyOnce, reason, vec![evidence]);
            }
        }
        (Outcome::Refused { returned_at_us, reason }, Some(run)) => {
            let finding = format!("command {id} was refused as not applied and was executed");
            let place = run.places.first().map(|(position, _)| format!("at position {position}"));
            let evidence = format!("client {client}, refused at {returned_at_us} us: {reason}");
            report.findings.push(Judge::ExactlyOnce, finding, place.into_iter().chain([evidence]).collect());
        }
        (Outcome::Refused { .. }, None) | (Outcome::Unknown { .. }, _) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::History;
    use crate::sample;

    fn run(spoil: impl FnOnce(&mut History)) -> Report {
        let mut history = sample::cluster();
        spoil(&mut history);
        judge(&history.clients, &history.replicas, &HashSet::new(), |_| true)
    }

    #[test]
    fn a_log_with_restarts_and_one_unknown_outcome_is_accepted() {
        let report = run(|_| {});
        assert!(report.findings.is_empty(), "{}", report.findings);
        assert!(report.acknowledged > 0);
        assert_eq!((report.lost(), report.doubled), (0, 0));
    }

    #[test]
    fn an_acknowledged_command_missing_from_every_log_is_lost() {
        let report = run(|history| {
            for replica in &mut history.replicas {
                sample::entries(replica, 3).for_each(|entry| entry.commands.truncate(1));
            }
        });
        assert_eq!((report.lost_byzantine, report.lost_crash, report.doubled), (1, 0, 0));
        assert!(report.findings.has("lost: command"));
    }

    #[test]
    fn a_command_only_a_liar_executed_is_lost() {
        let report = run(|history| {
            for replica in &mut history.replicas {
                if replica.replica != 0 {
                    sample::entries(replica, 3).for_each(|entry| entry.commands.truncate(1));
                }
            }
            history.replicas[0].honest = false;
        });
        assert_eq!(report.lost(), 1);
    }

    #[test]
    fn a_command_executed_at_two_places_is_doubled() {
        let report = run(|history| {
            for replica in &mut history.replicas {
                let again = sample::entries(replica, 3).next().map(|entry| entry.commands[0].clone());
                if let Some(again) = again {
                    sample::entries(replica, 5).for_each(|entry| entry.commands.push(again.clone()));
                }
            }
        });
        assert_eq!((report.doubled, report.lost()), (1, 0));
        assert!(report.findings.has("doubled: command"));
    }

    #[test]
    fn a_command_twice_in_one_entry_is_doubled() {
        let report = run(|history| {
            for replica in &mut history.replicas {
                sample::entries(replica, 3).for_each(|entry| entry.commands.push(entry.commands[0].clone()));
            }
        });
        assert_eq!(report.doubled, 1);
    }

    #[test]
    fn a_result_that_differs_from_the_replicas_is_refused() {
        let report = run(|history| {
            if let Outcome::Ok { reply, .. } = &mut history.clients[0].commands[0].outcome {
                reply.digest = Some([0xee; 32]);
            }
        });
        assert!(report.findings.has("another result"));
    }

    #[test]
    fn a_refused_command_that_ran_is_refused() {
        let report = run(|history| history.clients[0].refused(0, 99, "session window"));
        assert!(report.findings.has("refused as not applied and was executed"));
    }

    #[test]
    fn an_id_used_for_two_commands_is_refused() {
        let report = run(|history| {
            let again = history.clients[0].commands[0].clone();
            history.clients[0].commands.push(again);
        });
        assert!(report.findings.has("for two commands"));
    }
}
