//! Liveness: once the calm has begun, every command of an honest client finishes in time.
//!
//! A command has until `limit_us` after the beginning of the calm or after its own invocation, whichever is later. It is finished by a
//! reply or by a definite refusal. A client that gave up before the calm is excused; one that gave up during it is stuck. Commands
//! whose time was not over when the run ended are counted as undecided. A calm in which everything is refused is not alive.

use crate::history::{ClientJournal, Outcome};
use crate::verdict::{Findings, Judge};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Calm {
    pub begins_at_us: u64,
    pub limit_us: u64,
    pub run_ended_at_us: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub finished: u64,
    pub refused: u64,
    pub stuck: u64,
    pub excused: u64,
    pub undecided: u64,
    pub findings: Findings,
}

pub fn judge(clients: &[ClientJournal], calm: Calm) -> Report {
    let mut report = Report::default();
    for journal in clients.iter().filter(|journal| journal.honest) {
        for command in &journal.commands {
            let deadline_us = command.invoked_at_us.max(calm.begins_at_us).saturating_add(calm.limit_us);
            let (ended_at_us, how) = match &command.outcome {
                Outcome::Ok { returned_at_us, .. } => (Some(*returned_at_us), "was answered late"),
                Outcome::Refused { returned_at_us, .. } => (Some(*returned_at_us), "was refused late"),
                Outcome::Unknown { gave_up_at_us: Some(at_us) } if *at_us < calm.begins_at_us => {
                    report.excused += 1;
                    continue;
                }
                Outcome::Unknown { gave_up_at_us: Some(_) } => (None, "was given up during the calm"),
                Outcome::Unknown { gave_up_at_us: None } => (None, "never returned"),
            };
            let in_time = ended_at_us.is_some_and(|at_us| at_us <= deadline_us);
            let in_calm = ended_at_us.is_some_and(|at_us| at_us >= calm.begins_at_us);
            match &command.outcome {
                Outcome::Ok { .. } if in_time => report.finished += u64::from(in_calm),
                Outcome::Refused { .. } if in_time => report.refused += u64::from(in_calm),
                Outcome::Unknown { gave_up_at_us: None } if deadline_us > calm.run_ended_at_us => {
                    report.undecided += 1;
                }
                Outcome::Ok { .. } | Outcome::Refused { .. } | Outcome::Unknown { .. } => {
                    report.stuck += 1;
                    let reason = format!("stuck: command {} of client {} {how}", command.id, journal.client);
                    let ended =
                        ended_at_us.map_or("no end".to_string(), |at_us| format!("ended at {at_us} us"));
                    let times =
                        format!("invoked at {} us, due at {deadline_us} us, {ended}", command.invoked_at_us);
                    report.findings.push(Judge::Live, reason, vec![times]);
                }
            }
        }
    }
    if report.refused > 0 && report.finished == 0 {
        let reason = format!("the calm brought {} refusals and not one answer", report.refused);
        report.findings.push(Judge::Live, reason, vec![]);
    }
    report
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{CommandId, Label, Reply};
    use crate::operation::{Answer, Operation};

    const CALM: Calm = Calm { begins_at_us: 1_000, limit_us: 500, run_ended_at_us: 3_000 };

    fn journal(calls: &[(u64, Option<u64>)]) -> ClientJournal {
        let mut journal = ClientJournal::new(1);
        for (seq, (invoked, returned)) in (0..).zip(calls) {
            let place = journal.invoked(CommandId { session: 1, seq }, *invoked, Operation::get("a"));
            if let Some(at_us) = returned {
                let reply = Reply::new(1, Answer::Range { records: vec![], count: 0 });
                journal.returned(place, *at_us, reply, Label::Crash);
            }
        }
        journal
    }

    fn run(calls: &[(u64, Option<u64>)]) -> Report {
        judge(&[journal(calls)], CALM)
    }

    #[test]
    fn commands_finished_in_time_are_accepted() {
        let report = run(&[(10, Some(20)), (20, Some(1_500)), (2_000, Some(2_500)), (2_800, None)]);
        assert!(report.findings.is_empty(), "{}", report.findings);
        assert_eq!((report.finished, report.undecided), (2, 1));
    }

    #[test]
    fn a_command_that_never_returns_is_named() {
        let report = run(&[(20, Some(1_500)), (30, None)]);
        assert_eq!(report.stuck, 1);
        assert!(report.findings.has("command 1/1 of client 1 never returned"));
    }

    #[test]
    fn an_answer_after_the_deadline_is_late() {
        assert!(run(&[(30, Some(1_501))]).findings.has("answered late"));
        assert!(run(&[(2_000, Some(2_501))]).findings.has("answered late"));
    }

    #[test]
    fn giving_up_is_excused_before_the_calm_and_not_after() {
        let mut journal = journal(&[(10, None)]);
        journal.gave_up(0, 999);
        assert_eq!(judge(&[journal.clone()], CALM).excused, 1);
        journal.gave_up(0, 1_001);
        assert!(judge(&[journal], CALM).findings.has("given up during the calm"));
    }

    #[test]
    fn nothing_but_refusals_is_not_alive() {
        let mut journal = journal(&[(1_010, None), (1_020, Some(1_030))]);
        journal.refused(0, 1_020, "no quorum");
        assert!(judge(&[journal.clone()], CALM).findings.is_empty());
        journal.refused(1, 1_030, "no quorum");
        assert!(judge(&[journal], CALM).findings.has("not one answer"));
    }

    #[test]
    fn a_lying_client_may_hang() {
        let mut journal = journal(&[(10, None)]);
        journal.honest = false;
        assert!(judge(&[journal], CALM).findings.is_empty());
    }
}
