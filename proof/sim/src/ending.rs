//! The end of a run: when everything asked is answered, one client reads everything back, replicas come to stand at one
//! place, and the judges are called.

use crate::client::Client;
use crate::coverage::Coverage;
use crate::dials::Dials;
use crate::trick::Trick;
use crate::world::{EXPIRIES, Event, Phase, World};
use check::history::ReplicaEvent;
use check::{Calm, History, Judge, Terms};
use dwcp_base::{Mutants, NetworkMode, Sequence};
use std::collections::{BTreeMap, HashSet};
use std::fmt;

/// Events of one history. One that needs more runs in circles: a history of 60 seconds takes fifty thousand.
pub const EVENTS_MAX: u64 = 3_000_000;
/// A client that has waited for so long keeps steady clients going.
const LONG_WAIT_US: u64 = 2_000_000;
/// How often the end is looked for.
const LOOK_US: u64 = 250_000;

/// Who found something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Finder {
    /// A judge of `proof/check`.
    Judge(Judge),
    /// The simulator itself, or an assertion of the core.
    Simulator,
}

impl fmt::Display for Finder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Judge(judge) => write!(f, "{judge}"),
            Self::Simulator => write!(f, "simulator"),
        }
    }
}

/// Something that must not be.
#[derive(Clone, Debug)]
pub struct Found {
    pub by: Finder,
    pub text: String,
}

/// What came of one seed.
#[derive(Debug)]
pub struct Report {
    pub seed: u64,
    pub dials: Dials,
    pub found: Vec<Found>,
    /// The linearizability search ran out of steps: not a violation, and not a proof either. The other judges judged.
    pub undecided: bool,
    pub coverage: Coverage,
    pub refusals: BTreeMap<&'static str, u64>,
    /// How often liars played each trick.
    pub tricks: BTreeMap<Trick, u64>,
    pub trace_hash: u64,
    pub events: u64,
    pub ended_at_us: u64,
    pub acknowledged: u64,
    pub lost: u64,
    pub doubled: u64,
}

impl Report {
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.found.is_empty()
    }

    /// The first judge that caught something.
    #[must_use]
    pub fn judge(&self) -> Option<Judge> {
        self.found.iter().find_map(|found| match found.by {
            Finder::Judge(judge) => Some(judge),
            Finder::Simulator => None,
        })
    }
}

/// Runs one seed to its end.
#[must_use]
pub fn run(seed: u64, dials: &Dials, mutants: Mutants) -> Report {
    let mut world = World::new(seed, dials, mutants, false);
    world.run_to_end();
    world.report()
}

/// The search again, with the unanswered commands that no honest replica executed left out: an order that explains the
/// rest explains all, for what was never answered need not have happened.
fn is_linear_when_pruned(mut history: History, terms: &Terms) -> bool {
    if terms.members_may_lie {
        history.clients = check::doubt_crash_answers(&history.clients, &terms.crash_answers);
    }
    let ran: HashSet<check::CommandId> = history
        .honest_replicas()
        .flat_map(check::ReplicaJournal::ran)
        .flat_map(|(_, commands)| commands.iter().map(|command| command.id))
        .collect();
    // What the cluster revokes by itself stands in no log.
    let theirs = |client: &&mut check::ClientJournal| client.honest && client.client != EXPIRIES;
    for client in history.clients.iter_mut().filter(theirs) {
        client.commands.retain(|command| {
            !matches!(command.outcome, check::Outcome::Unknown { .. }) || ran.contains(&command.id)
        });
    }
    let History { clients, replicas } = &history;
    check::linear::judge_beside_a_log(clients, &terms.start, terms.budget, replicas).is_linearizable()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Working,
    Reading,
    Converging,
    Done,
}

impl World {
    /// Lets events happen until the run is over.
    pub fn run_to_end(&mut self) {
        let mut ending = Ending::default();
        while !ending.step(self) {}
    }

    #[must_use]
    pub fn report(&mut self) -> Report {
        self.note_convergent_end();
        let mut clients: Vec<check::ClientJournal> = self
            .clients
            .iter_mut()
            .map(|client| {
                std::mem::replace(&mut client.journal, check::ClientJournal::new(client.number as u64))
            })
            .collect();
        clients.push(std::mem::replace(&mut self.expiries, check::ClientJournal::new(EXPIRIES)));
        let history = History { clients, replicas: std::mem::take(&mut self.journals) };
        let mut terms = Terms::new(u32::try_from(self.dials.f).expect("few liars"));
        if let Phase::Calm { since_us } = self.phase {
            terms.calm = Some(Calm {
                begins_at_us: since_us,
                limit_us: self.dials.answer_ms * 1000,
                run_ended_at_us: self.now_us,
            });
        }
        terms.budget = check::Budget { steps_max: 1_000_000 };
        // A read asked again runs again, so it has no one place in the log.
        terms.reads_are_logged = false;
        terms.slots_max = Some(2 * self.genesis.window);
        let (n, f) = (self.dials.n, self.dials.f);
        terms.quorum = Some(u32::try_from((n + f) / 2 + 1).expect("few replicas"));
        terms.unread = Some(b"lie/".to_vec());
        terms.faultless = self.dials.is_faultless();
        terms.members_may_lie = self.dials.members_may_lie();
        terms.crash_answers.clone_from(&self.crash_answers);
        terms.unfinished.clone_from(&self.unfinished);
        terms.leases = self.lease_terms();
        terms.read_back = self.clients.iter().find_map(|client| client.read.clone());
        let judgement = check::judge_all(&history, &terms);
        self.coverage.lost_to_liars = judgement.lost_to_liars;
        self.coverage.discarded = judgement.discarded;
        self.count_leases(&judgement.leases);
        let mut found: Vec<Found> = judgement
            .findings
            .iter()
            .map(|finding| Found { by: Finder::Judge(finding.judge), text: finding.to_string() })
            .collect();
        let convergent = self.judge_convergent();
        let by_judge =
            |finding: &check::Finding| Found { by: Finder::Judge(finding.judge), text: finding.to_string() };
        found.extend(convergent.iter().map(by_judge));
        let undecided = judgement.undecided && !is_linear_when_pruned(history, &terms);
        let complaints = self.complaints.iter().chain(&self.divergences);
        found.extend(complaints.map(|text| Found { by: Finder::Simulator, text: text.clone() }));
        self.coverage.messages_lost = self.net.counts.dropped + self.net.counts.cut;
        self.coverage.messages_doubled = self.net.counts.duplicated;
        let mut tricks = BTreeMap::new();
        for puppet in self.nodes.iter().filter_map(|node| node.puppet.as_ref()) {
            for trick in Trick::ALL {
                let played = puppet.played[trick as usize];
                *tricks.entry(trick).or_default() += played;
                self.coverage.lies_told += played;
                if let Some(of_family) = self.coverage.family(trick) {
                    *of_family += played;
                }
            }
            self.coverage.equivocations += puppet.equivocations;
            self.coverage.chunks_asked_in_vain += puppet.chunks_asked;
            self.coverage.parts_without_end += puppet.parts_without_end;
            self.coverage.storms_met += puppet.storms.len() as u64;
        }
        Report {
            seed: self.seed,
            dials: self.dials.clone(),
            found,
            undecided,
            coverage: self.coverage.clone(),
            refusals: self.refusals.clone(),
            tricks,
            trace_hash: self.trace.hash(),
            events: self.trace.count(),
            ended_at_us: self.now_us,
            acknowledged: judgement.acknowledged,
            lost: judgement.lost,
            doubled: judgement.doubled,
        }
    }

    /// Steady clients stop once nobody waits for long, or once whoever does has waited for too long.
    fn release_steady_clients(&mut self, since_us: u64) {
        if !self.last_orders || self.dials.steady == 0 {
            return;
        }
        let long_ago = self.now_us.saturating_sub(LONG_WAIT_US);
        let waits = self.clients.iter().any(|client| client.waits_since(long_ago));
        if !waits || self.now_us > since_us + self.dials.answer_ms * 1000 + 5_000_000 {
            self.clients.iter_mut().for_each(Client::stop);
        }
    }

    /// Where each honest replica stands; None while one is down.
    fn standings(&self) -> Vec<(usize, Option<Sequence>)> {
        self.honest_nodes()
            .map(|ix| (ix, self.nodes[ix].core.as_ref().map(|core| core.control().executed)))
            .collect()
    }

    /// What is still to come about segments, with all honest replicas at one sequence of the root.
    fn segments_missing(&self) -> Vec<String> {
        let mut missing = Vec::new();
        let cores: Vec<_> =
            self.honest_nodes().filter_map(|ix| Some((ix, self.nodes[ix].core.as_ref()?))).collect();
        let highest = cores.iter().map(|(_, core)| core.head().position).max();
        let behind: Vec<String> = cores
            .iter()
            .filter(|(_, core)| Some(core.head().position) != highest)
            .map(|(ix, core)| format!("{:?} at {:?}", self.nodes[*ix], core.head().position))
            .collect();
        if !behind.is_empty() {
            missing.push(format!("replicas lag in the segment, of {highest:?}: {behind:?}"));
        }
        // A liar may lead, and fail, again and again.
        let Some((ix, core)) =
            cores.first().filter(|_| self.dials.switches() && !self.dials.members_may_lie())
        else {
            return missing;
        };
        let (steering, fold) = (&core.control().steering, &core.control().fold);
        let wall_ms = self.nodes[*ix].now(self.now_us).wall_ms;
        let ends_ms = crate::node::EPOCH_MS + (self.dials.safety_ms + self.dials.calm_ms);
        let calm = steering.mode == NetworkMode::Hybrid && steering.calm_until.0 + 10_000 > ends_ms;
        if steering.wants_segments() && fold.segment().is_none() && !calm {
            let after = steering.calm_until.0.saturating_sub(wall_ms);
            missing.push(format!("no segment is open in {} mode ({after} ms of calm left)", steering.mode));
        }
        missing
    }

    /// Where honest replicas stand, for the judges.
    fn note_standing(&mut self) {
        for ix in self.honest_nodes().collect::<Vec<_>>() {
            let Some(core) = self.nodes[ix].core.as_ref() else { continue };
            let (head, state) = (core.head(), core.state().clone().digest());
            let journal = self.nodes[ix].journal;
            let (position, chain, state) = (head.position.0, head.chain.0, state.0);
            self.journals[journal].note(self.now_us, ReplicaEvent::Stands { position, chain, state });
            self.note_changes(ix);
        }
    }

    fn add_reader(&mut self) {
        let number = self.clients.len();
        let chance = dwcp_base::Chance::new(self.seed).fork("reader");
        let mut reader = Client::new(number, false, self, chance);
        reader.reader = true;
        self.clients.push(reader);
        self.schedule(1_000, Event::ClientWake { client: number });
    }
}

/// Looks for the end of a run while it goes on.
#[derive(Debug)]
pub struct Ending {
    stage: Stage,
    look_at_us: u64,
    events: u64,
}

impl Default for Ending {
    fn default() -> Self {
        Self { stage: Stage::Working, look_at_us: 0, events: 0 }
    }
}

impl Ending {
    /// One event; true when the run is over.
    pub fn step(&mut self, world: &mut World) -> bool {
        if !world.advance() {
            return true;
        }
        self.events += 1;
        if self.events > EVENTS_MAX {
            world.complain(format!("{EVENTS_MAX} events and no end: the history runs in circles"));
            return true;
        }
        if world.now_us < self.look_at_us {
            return false;
        }
        self.look_at_us = world.now_us + LOOK_US;
        self.look(world);
        self.stage == Stage::Done
    }

    fn look(&mut self, world: &mut World) {
        let Phase::Calm { since_us } = world.phase else { return };
        let late = world.now_us >= since_us + world.dials.calm_ms * 1000;
        match self.stage {
            Stage::Working => {
                world.release_steady_clients(since_us);
                if world.clients.iter().all(Client::is_done) && world.operator.is_idle() {
                    world.add_reader();
                    self.stage = Stage::Reading;
                } else if late {
                    let stuck: Vec<String> = world
                        .operator
                        .replacements
                        .values()
                        .map(|r| format!("{:?} started {} done {:?}", world.nodes[r.node], r.started, r.done))
                        .collect();
                    if !stuck.is_empty() {
                        let refusal = world.operator.last_refusal.clone();
                        world.complain(format!(
                            "members are not re-admitted: {stuck:?}, last refusal: {refusal}"
                        ));
                    }
                    let waiting: Vec<String> = world
                        .clients
                        .iter()
                        .filter(|client| !client.is_done())
                        .map(|client| {
                            format!("{client:?} waits for {:?}", client.in_flight.keys().collect::<Vec<_>>())
                        })
                        .collect();
                    if !waiting.is_empty() {
                        world.complain(format!("clients wait: {waiting:?}"));
                    }
                    self.stage = Stage::Done;
                }
            }
            Stage::Reading => {
                if world.clients.iter().any(|client| client.read.is_some()) {
                    self.stage = Stage::Converging;
                } else if late {
                    world.complain("the reader at the end got no answer".into());
                    self.stage = Stage::Done;
                }
            }
            Stage::Converging => {
                let standings = world.standings();
                let highest = standings.iter().filter_map(|(_, executed)| *executed).max();
                if standings.iter().all(|(_, executed)| *executed == highest) {
                    let mut missing = world.segments_missing();
                    missing.extend(world.leases_missing());
                    let convergent = world.convergent_missing();
                    let only_convergent = missing.is_empty();
                    missing.extend(convergent);
                    if missing.is_empty() {
                        world.note_standing();
                        self.stage = Stage::Done;
                    } else if late {
                        if only_convergent {
                            world.note_standing();
                        }
                        world.unfinished.extend(missing);
                        self.stage = Stage::Done;
                    }
                } else if late {
                    let text: Vec<String> = standings
                        .iter()
                        .map(|(ix, executed)| format!("{:?} at {executed:?}", world.nodes[*ix]))
                        .collect();
                    world.complain(format!("replicas do not come together: {text:?}"));
                    self.stage = Stage::Done;
                }
            }
            Stage::Done => {}
        }
    }
}
