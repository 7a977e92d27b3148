//! What a Raft must show before a segment is trusted to it: seeded histories with every fault the net, the disk and the
//! clock can have, directed stories for what chance seldom meets, and judges of both. It sees a node only through
//! `dwcp_raft::RaftNode`, and knows no implementation but by the `Subject` it is given.
//!
//! Read `rule` (what must hold), `subject` (what an implementation hands in), `world`, `judge`, `schedule`, `stories`.
//! `lies` holds nodes that are wrong on purpose, to show that the judges see. `docs/protocol/raft-node.md` is the guide
//! for whoever brings another Raft.

pub mod cli;
pub mod coverage;
pub mod judge;
pub mod lies;
pub mod own;
pub mod rule;
pub mod schedule;
pub mod stories;
pub mod subject;
pub mod world;

use std::collections::BTreeMap;
use std::ops::Range;

pub use own::Own;
pub use rule::{Rule, Violation};
pub use schedule::{Outcome, Schedule, explain, play};
pub use stories::{STORIES, Story};
pub use subject::{Claim, Excuse, Scene, Subject};

/// What the suite saw of one subject.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub violations: Vec<Violation>,
    pub histories: u64,
    pub stories: u64,
    pub counts: BTreeMap<&'static str, u64>,
}

impl Report {
    fn add(&mut self, counts: &BTreeMap<&'static str, u64>) {
        for (what, count) in counts {
            *self.counts.entry(what).or_default() += count;
        }
    }
}

/// The whole suite: every story that the subject is not excused from with some seeds, and one schedule a seed. Stops a
/// part at its first violation.
#[must_use]
pub fn run(subject: &dyn Subject, seeds: Range<u64>) -> Report {
    let mut report = run_stories(subject, seeds.start..(seeds.start + 8).min(seeds.end));
    for seed in seeds {
        let outcome = play(subject, &Schedule::new(seed));
        report.histories += 1;
        report.add(&outcome.counts);
        if let Some(violation) = outcome.violation {
            report.violations.push(violation);
            break;
        }
    }
    report
}

/// The stories alone.
#[must_use]
pub fn run_stories(subject: &dyn Subject, seeds: Range<u64>) -> Report {
    let mut report = Report::default();
    for story in
        STORIES.iter().filter(|story| !subject.excuses().iter().any(|excuse| excuse.part == story.name))
    {
        for seed in seeds.clone() {
            let (violation, counts) = stories::tell(subject, story, seed);
            report.stories += 1;
            report.add(&counts);
            if let Some(violation) = violation {
                report.violations.push(violation);
                break;
            }
        }
    }
    report
}

/// What finds this subject first under one of these rules, or under any if none is named: the stories with a few seeds,
/// then so many schedules. Meant for subjects that are wrong on purpose.
#[must_use]
pub fn hunt(subject: &dyn Subject, schedules: u64, rules: &[Rule]) -> Option<Violation> {
    let wanted = |violation: &Violation| rules.is_empty() || rules.contains(&violation.rule);
    let found = run_stories(subject, 0..4).violations.into_iter().find(wanted);
    found.or_else(|| {
        (0..schedules).find_map(|seed| play(subject, &Schedule::new(seed)).violation.filter(wanted))
    })
}
