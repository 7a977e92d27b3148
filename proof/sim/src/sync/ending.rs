//! The two phases of a run, and what is demanded at its end.

use crate::ending::{Finder, Found};
use crate::runner::quiet_panics;
use crate::sync::coverage::Coverage;
use crate::sync::dials::Dials;
use crate::sync::liar::place;
use crate::sync::translate;
use crate::sync::workload::rules;
use crate::sync::world::{Event, Phase, World};
use check::sync::{Note, Terms, judge};
use dwcp_base::{Hash, Hasher, Mutants};
use dwcp_crdt::{Origin, Store};
use std::collections::BTreeSet;

/// How long the calm lasts at least, so that everybody has met everybody.
const CALM_LEAST_US: u64 = 3_000_000;

/// What came of one seed.
#[derive(Debug)]
pub struct Report {
    pub seed: u64,
    pub dials: Dials,
    pub found: Vec<Found>,
    pub coverage: Coverage,
    pub trace_hash: u64,
    pub events: u64,
    pub ended_at_us: u64,
}

impl Report {
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.found.is_empty()
    }
}

/// What a store holds: as it knows it, and as it is.
fn digest(store: &mut Store) -> Hash {
    let mut hasher = Hasher::new("sim sync digest");
    hasher.update(&store.digest().0);
    for (_, hash) in store.key_hashes_anew() {
        hasher.update(&hash.0);
    }
    hasher.finish()
}

/// Runs one seed to its end.
#[must_use]
pub fn run(seed: u64, dials: &Dials, mutants: Mutants) -> Report {
    run_with(seed, dials, mutants, false, |_| {})
}

/// The same; `tell` gets the lines of the trace.
#[must_use]
pub fn run_with(
    seed: u64,
    dials: &Dials,
    mutants: Mutants,
    trace: bool,
    mut tell: impl FnMut(String),
) -> Report {
    quiet_panics();
    let mut world = World::new(seed, dials, mutants, trace);
    let safety_us = dials.safety_ms * 1_000;
    while world.step(safety_us) {}
    world.calm();
    let until_us = safety_us + dials.calm_ms * 1_000;
    while world.complaints.is_empty() && world.now_us < until_us {
        let next_us = world.now_us + 250_000;
        while world.step(next_us) {}
        world.trace.take_lines().into_iter().for_each(&mut tell);
        if world.now_us > safety_us + CALM_LEAST_US && world.has_converged() {
            if world.is_damage_done || world.dials.damage == 0 {
                break;
            }
            world.damage();
        }
    }
    world.report(tell)
}

impl World {
    /// The faults stop; liars go on.
    fn calm(&mut self) {
        self.phase = Phase::Calm;
        self.calm_at_us = self.now_us;
        self.net.heal();
        self.net.calm();
        for node in 0..self.nodes.len() as u32 {
            self.after_ms(1, Event::Restart { node });
        }
    }

    /// Is there nothing left to wait for?
    fn has_converged(&mut self) -> bool {
        let honest = self.honest_up();
        if honest.len() < self.nodes.iter().filter(|node| node.is_honest()).count() || !self.is_log_read() {
            return false;
        }
        let mut first = None;
        for id in honest {
            let decided = &self.log.decided;
            let node = &mut self.nodes[id as usize];
            let members = &node.setup.members;
            let Some(live) = &mut node.live else { return false };
            let undecided =
                members.keys().any(|origin| live.sync.is_frozen(*origin) && !decided.contains(origin));
            let unfinished =
                live.store.held_count() > 0 || live.sync.needs().next().is_some() || live.is_syncing;
            if undecided || unfinished {
                return false;
            }
            let here = (live.store.applied().clone(), live.store.floor_number(), digest(&mut live.store));
            match &first {
                None => first = Some(here),
                Some(first) if *first != here => return false,
                Some(_) => {}
            }
        }
        true
    }

    fn report(mut self, tell: impl FnMut(String)) -> Report {
        let honest: Vec<u32> =
            self.nodes.iter().filter(|node| node.is_honest()).map(|node| node.id).collect();
        for id in &honest {
            if self.nodes[*id as usize].live.is_none() && self.complaints.is_empty() {
                self.complain(format!("node {id} is not back"));
            }
            self.look_at(*id, |_| true, true);
            self.look_for_false_accusations(*id);
            let me = self.nodes[*id as usize].me();
            let Some(live) = &mut self.nodes[*id as usize].live else { continue };
            self.trace.line(self.now_us, || {
                let (store, sync) = (&live.store, &live.sync);
                let (needs, missing): (Vec<_>, Vec<_>) =
                    (sync.needs().collect(), store.missing().take(5).collect());
                format!("{me} ends with {:?}, needs {needs:?}, misses {missing:?}", store.applied())
            });
            let note = Note::End {
                node: *id,
                applied: translate::applied(live.store.applied(), &live.branches),
                digest: digest(&mut live.store).0,
                floor: live.store.floor_number(),
                // What waits in a chain may be a liar's, and its predecessor never come.
                waiting: live.store.held_count() as u64,
                needs: live.sync.needs().count() as u64,
            };
            self.trace.mix_bytes(&digest(&mut live.store).0);
            self.notes.push(note);
        }
        self.trace.take_lines().into_iter().for_each(tell);
        let liars: BTreeSet<u32> =
            self.nodes.iter().filter(|node| !node.is_honest()).map(|node| node.id).collect();
        let slack_us = 2 * (self.dials.delay_us + self.dials.jitter_us) + 20_000;
        let (rules, calm_at_us) = (rules(), self.calm_at_us);
        let terms = Terms { liars, rules, calm_at_us, slack_us, ..Terms::default() };
        let findings = judge(&self.notes, &terms);
        let mut found: Vec<Found> = findings
            .iter()
            .map(|finding| Found { by: Finder::Judge(finding.judge), text: finding.to_string() })
            .collect();
        found.extend(self.complaints.iter().map(|text| Found { by: Finder::Simulator, text: text.clone() }));
        self.count_at_end(&honest);
        Report {
            seed: self.seed,
            dials: self.dials,
            found,
            coverage: self.coverage,
            trace_hash: self.trace.hash(),
            events: self.trace.count(),
            ended_at_us: self.now_us,
        }
    }

    /// In the end everybody has given what it wrote.
    fn look_for_false_accusations(&mut self, id: u32) {
        let Some(live) = &self.nodes[id as usize].live else { return };
        let is_honest = |origin: &Origin| {
            let node = &self.nodes[place(origin.id)];
            node.is_honest() && node.setup.me == *origin
        };
        let accused = live.sync.accused().find(|(origin, _)| is_honest(origin));
        if let Some((origin, fault)) = accused.filter(|_| !self.mutants.any()) {
            self.complain(format!("node {id} accuses honest {origin}: {}", fault.word()));
        }
    }

    fn count_at_end(&mut self, honest: &[u32]) {
        let coverage = &mut self.coverage;
        coverage.messages_lost = self.net.counts.dropped + self.net.counts.cut;
        coverage.messages_doubled = self.net.counts.duplicated;
        coverage.many_origins = u64::from(self.dials.n >= 16);
        coverage.most_origins = u64::from(self.dials.n >= 64);
        coverage.real_signatures = self.dials.ed25519;
        for node in &self.nodes {
            coverage.lies_told += node.puppet.as_ref().map_or(0, |puppet| puppet.lies_told);
        }
        for (place, id) in honest.iter().enumerate() {
            let Some(live) = &self.nodes[*id as usize].live else { continue };
            coverage.known_again += live.sync.refused(dwcp_sync::Reason::Known);
            coverage.impure += live.store.resolutions_impure();
            if place == 0 {
                coverage.conflicts += live.store.conflict_count();
            }
        }
    }
}
