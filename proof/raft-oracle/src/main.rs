//! tikv's Raft before the judges of ours, and both given the same schedules: what either commits must be explainable by
//! the other. A summary line, and an exit code that says whether all held.

mod border;
mod forge;
mod log;
mod node;
mod record;

use bytes::Bytes;
use conformance::coverage::shortfalls;
use conformance::judge::number_of;
use conformance::lies::{Liar, Lie};
use conformance::schedule::Deed;
use conformance::{
    Claim, Excuse, Own, Rule, Scene, Schedule, Subject, cli, explain, hunt, play, run_stories,
};
use dwcp_base::Chance;
use dwcp_raft::{Body, Entry, Index, RaftMaker, Term};
use raft::eraftpb::MessageType;
use std::collections::BTreeMap;
use std::process::ExitCode;

/// What the adapter is not held to, and why. Printed with every verdict. Nothing: every story and every schedule is played
/// to it, for what the library cannot do by itself the adapter does.
const EXCUSES: &[Excuse] = &[];

/// What the library would not pass by itself, and what the adapter does about it. Printed with every verdict.
const HELPED: &[(&str, &str)] = &[
    (
        "lies change nothing that was committed",
        "the library trusts its peers and panics (one heartbeat whose commit lies past the log is enough): `border.rs` judges every message first",
    ),
    (
        "lies change nothing that was committed",
        "a term above 2^48 is refused as from nowhere; a liar may still use up the terms below, and then only the next epoch helps",
    ),
    (
        "a Marker ends the segment in order",
        "Markers are unknown to it: the adapter refuses what follows one and cuts it from messages",
    ),
    (
        "who holds a Marker confirms no read",
        "the adapter takes the read's context out of heartbeats while it holds a Marker",
    ),
    (
        "a seal ends everything for this member",
        "seals are unknown to it: a sealed adapter calls the library no more",
    ),
    (
        "only the leader takes proposals, reads and transfers",
        "it forgets reads that come before the first commit of a term, and when it steps down: the adapter keeps and fails them",
    ),
    (
        "who slept past a discard goes on from a snapshot",
        "its own snapshot messages are refused; the caller's roads carry the state, and the adapter installs the place",
    ),
    (
        "queues keep their bounds",
        "bounds on reads, on the log and on uncommitted bytes are the adapter's; entries of a message are bounded by bytes only, or are one",
    ),
    (
        "a lone member commits and answers reads",
        "it leads before its term is durable when it is alone: the adapter says so only when it is",
    ),
];

/// tikv's Raft as a subject.
#[derive(Debug)]
struct Tikv {
    maker: node::TikvRaft,
}

static TIKV: Tikv = Tikv { maker: node::TikvRaft { bordered: true } };

impl Subject for Tikv {
    fn name(&self) -> &str {
        "tikv/raft"
    }

    fn maker(&self) -> &dyn RaftMaker {
        &self.maker
    }

    fn claim(&self, message: &[u8]) -> Claim {
        let Ok(message) = border::read(conformance::world::EPOCH, message) else { return Claim::Nothing };
        match message.get_msg_type() {
            MessageType::MsgRequestVoteResponse if !message.reject => {
                Claim::Vote { term: Term(message.term) }
            }
            // Index 0 without a refusal tells a deposed leader that there is a later term.
            MessageType::MsgAppendResponse if !message.reject && message.index > 0 => {
                Claim::Holds { term: Term(message.term), index: Index(message.index) }
            }
            MessageType::MsgAppend => Claim::Entries,
            _ => Claim::Nothing,
        }
    }

    fn forge(&self, chance: &mut Chance, scene: &Scene) -> Option<Bytes> {
        Some(border::to_bytes(scene.epoch, &forge::forge(chance, scene)))
    }

    fn excuses(&self) -> &[Excuse] {
        EXCUSES
    }
}

/// Whether the judges see tikv's Raft when it lies, and when nothing stands before it. How many were seen.
fn controls(found: &mut Vec<String>) -> usize {
    // They are meant to panic, and each panic is one line of the judge's.
    std::panic::set_hook(Box::new(|_| {}));
    let mut seen = 0;
    for lie in Lie::ALL.iter().filter(|lie| **lie != Lie::None) {
        match hunt(&Liar { inner: &TIKV, lie: *lie }, 40, lie.caught_as()) {
            Some(_) => seen += 1,
            None => found.push(format!("control: tikv/raft that {lie:?} passes unseen")),
        }
    }
    let bare = Tikv { maker: node::TikvRaft { bordered: false } };
    match hunt(&bare, 0, &[Rule::NonsenseIsHarmless]) {
        Some(_) => seen += 1,
        None => found.push("control: without the border lies do no harm: take it away".to_owned()),
    }
    let _ = std::panic::take_hook();
    seen
}

/// What was committed of the schedule's first proposals, by number.
fn numbered(committed: &[Entry], through: u64) -> BTreeMap<u64, Body> {
    let numbered =
        committed.iter().filter_map(|entry| Some((number_of(&entry.payload())?, entry.body.clone())));
    numbered.filter(|(number, _)| *number <= through).collect()
}

fn main() -> ExitCode {
    let seeds = match cli::seeds(std::env::args(), 0..200) {
        Ok(seeds) => seeds,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    };
    let own = Own::default();
    let mut found = Vec::new();
    let mut counts: BTreeMap<&'static str, u64> = BTreeMap::new();
    for excuse in EXCUSES {
        println!("{}: not held to: {}: {}", TIKV.name(), excuse.part, excuse.why);
    }
    for (story, how) in HELPED {
        println!("{}: helped in: {story}: {how}", TIKV.name());
    }
    let told = run_stories(&TIKV, seeds.start..seeds.end.min(seeds.start + 20));
    found.extend(told.violations.iter().map(ToString::to_string));
    for (what, count) in &told.counts {
        *counts.entry(what).or_default() += count;
    }
    let (mut entries, mut shared, mut histories) = ([0, 0], 0, 0);
    let mut scheduled: [BTreeMap<&'static str, u64>; 2] = Default::default();
    for seed in seeds {
        let schedule = Schedule::new(seed);
        let outcomes = [play(&TIKV, &schedule), play(&own, &schedule)];
        histories += 1;
        for (at, (outcome, other)) in outcomes.iter().zip([&own as &dyn Subject, &TIKV]).enumerate() {
            found.extend(outcome.violation.iter().map(ToString::to_string));
            entries[at] += outcome.committed.len();
            if let Err(why) = explain(other, &outcome.committed) {
                found.push(format!("seed {seed}: {why}"));
            }
        }
        // The caller offers both the same: a number means the same bytes in both histories.
        let offered = schedule.deeds.iter().filter(|(_, deed)| matches!(deed, Deed::Propose { .. })).count();
        let [theirs, ours] = outcomes.each_ref().map(|outcome| numbered(&outcome.committed, offered as u64));
        shared += theirs.keys().filter(|number| ours.contains_key(*number)).count();
        if let Some((number, _)) =
            theirs.iter().find(|(number, body)| ours.get(*number).is_some_and(|o| o != *body))
        {
            found.push(format!("seed {seed}: proposal {number} is not the same in both histories"));
        }
        for (outcome, counts) in outcomes.iter().zip(&mut scheduled) {
            for (what, count) in &outcome.counts {
                *counts.entry(what).or_default() += count;
            }
        }
        if found.len() > 5 {
            break;
        }
    }
    // Schedules in which little happens show little, at whomever it is.
    for (subject, scheduled) in [&TIKV as &dyn Subject, &own].iter().zip(&scheduled) {
        let short = shortfalls(scheduled, histories);
        found.extend(short.iter().map(|line| format!("coverage of {}: {line}", subject.name())));
        let told: Vec<String> = scheduled.iter().map(|(what, count)| format!("{count} {what}")).collect();
        println!("{}: its schedules showed {}", subject.name(), told.join(", "));
    }
    for (what, count) in &scheduled[0] {
        *counts.entry(what).or_default() += count;
    }
    let seen = controls(&mut found);
    for violation in &found {
        println!("VIOLATION {violation}");
    }
    let counts: Vec<String> = counts.iter().map(|(what, count)| format!("{count} {what}")).collect();
    println!(
        "raft-oracle: {} stories, {histories} schedules played to both, {} and {} entries committed and explained by the other, {shared} proposals in both, {seen} controls seen, {} violations; tikv/raft: {}",
        told.stories,
        entries[0],
        entries[1],
        found.len(),
        counts.join(", ")
    );
    if found.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
