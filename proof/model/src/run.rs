//! The models by name, how each is searched, and what came of it.

use dwcp_base::{Mutant, Mutants};
use stateright::{Checker, Expectation, HasDiscoveries, Model};
use std::fmt::{Debug, Write as _};
use std::hash::Hash as StdHash;
use std::sync::Arc;
use std::time::Instant;

use crate::closing::Slip;
use crate::cluster::{Action, Cluster, Limits, State};
use crate::keys::genesis;
use crate::sealing::{ACKNOWLEDGED, ANCHORED, COLLECTED, NO_LEADER, SHOWN, SILENCE, Sealing, Size};

/// How a model is searched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Search {
    /// Every reachable state, the nearest first.
    Exhaustive,
    /// Random histories of at most `steps` actions each, until `states` were seen.
    Walk { seed: u64, steps: usize, states: usize },
}

/// What came of a search.
#[derive(Debug)]
pub struct Outcome {
    pub model: &'static str,
    /// The rule that is switched off.
    pub mutant: Option<String>,
    pub states: usize,
    pub depth: usize,
    pub seconds: f64,
    /// Claims that do not hold, with the history that shows it.
    pub broken: Vec<(&'static str, Vec<String>)>,
    /// What ought to be reached and was not.
    pub unreached: Vec<&'static str>,
}

impl Outcome {
    /// An intact core keeps every claim and reaches everything; a mutated one breaks a claim.
    #[must_use]
    pub fn as_expected(&self) -> bool {
        match &self.mutant {
            None => self.broken.is_empty() && self.unreached.is_empty(),
            Some(_) => !self.broken.is_empty(),
        }
    }

    /// The claims that do not hold, in the order of the model.
    #[must_use]
    pub fn broken_claims(&self) -> Vec<&'static str> {
        self.broken.iter().map(|(claim, _)| *claim).collect()
    }

    #[must_use]
    pub fn verdict(&self) -> String {
        let mut verdict = match (self.broken.first(), &self.mutant) {
            (None, None) => "holds".to_string(),
            (Some((claim, history)), _) => format!("broken in {} steps: {claim}", history.len()),
            (None, Some(_)) => "NOT CAUGHT".to_string(),
        };
        if self.mutant.is_none() && !self.unreached.is_empty() {
            let _ = write!(verdict, "; never reached: {}", self.unreached.join(", "));
        }
        verdict
    }
}

const STILL: Limits = Limits { proposals: 0, timeouts: 0, restarts: 0, lies: 0, view_max: 0 };

/// The normal case with a primary that says everything it can to everybody: see `Cluster::equivocation`.
#[must_use]
pub fn normal_case(n: u8, mutants: Mutants) -> Cluster {
    let name = if n == 4 { "normal case, n = 4, primary lies" } else { "normal case, n = 5, primary lies" };
    let genesis = genesis(n);
    let mut cluster = Cluster {
        name,
        genesis,
        liar: 0,
        script: Vec::new(),
        limits: STILL,
        mutants,
        view_changes: false,
        known: Arc::default(),
    };
    cluster.script = cluster.equivocation();
    cluster
}

/// View changes with timeouts, restarts and a liar at `liar` who speaks at any time.
#[must_use]
pub fn view_changes(name: &'static str, liar: u8, mutants: Mutants) -> Cluster {
    let limits = Limits { proposals: 4, timeouts: 10, restarts: 2, lies: 16, view_max: 4 };
    Cluster {
        name,
        genesis: genesis(4),
        liar,
        script: Vec::new(),
        limits,
        mutants,
        view_changes: true,
        known: Arc::default(),
    }
}

/// Deliveries are far more numerous than timeouts in any real history; a uniform choice would hardly ever let a view
/// begin before it is left.
#[derive(Clone, Copy, Debug)]
struct MostlyDeliveries;

/// xorshift64*: which history a seed stands for must not depend on a library's version.
fn draw(state: &mut u64, below: usize) -> usize {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    let drawn = state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33;
    usize::try_from(drawn).expect("31 bits fit") % below
}

impl stateright::Chooser<Cluster> for MostlyDeliveries {
    type State = u64;

    fn new_state(&self, seed: u64) -> u64 {
        (seed ^ 0x9E37_79B9_7F4A_7C15) | 1
    }

    fn choose_initial_state(&self, _: &mut u64, _: &[State]) -> usize {
        0
    }

    fn choose_action(&self, chance: &mut u64, _: &State, actions: &[Action]) -> usize {
        let class = |action: &Action| match action {
            Action::Deliver(_) => 0,
            Action::Propose(_) => 1,
            Action::LosePatience(_) => 2,
            Action::Restart(_) => 3,
            Action::Lie(_) => 4,
        };
        // Of 64 draws: 44 deliveries, 6 proposals, 5 timeouts, 1 restart, 8 lies.
        let wanted = match draw(chance, 64) {
            0..44 => 0,
            44..50 => 1,
            50..55 => 2,
            55 => 3,
            _ => 4,
        };
        let of_class: Vec<usize> = (0..actions.len()).filter(|at| class(&actions[*at]) == wanted).collect();
        if of_class.is_empty() { draw(chance, actions.len()) } else { of_class[draw(chance, of_class.len())] }
    }
}

/// Searches a model.
#[must_use]
pub fn search(cluster: Cluster, mutant: Option<Mutant>, search: Search) -> Outcome {
    let began = Instant::now();
    let name = cluster.name;
    let mut builder = cluster.checker();
    let mutant = mutant.map(|mutant| format!("{mutant:?}"));
    if mutant.is_some() {
        builder = builder.finish_when(HasDiscoveries::AnyFailures);
    }
    match search {
        Search::Exhaustive => conclude(builder.threads(2).spawn_bfs().join(), name, mutant, began),
        Search::Walk { seed, steps, states } => {
            let builder = builder.target_max_depth(steps).target_state_count(states);
            conclude(builder.spawn_simulation(seed, MostlyDeliveries).join(), name, mutant, began)
        }
    }
}

/// A model of a segment's end: its name, and how much is in it.
pub type SegmentEnd = (&'static str, Size);

const fn size(replicas: u8, liars: u8, terms: u8, entries: u8) -> Size {
    Size { replicas, liars, terms, entries, markers: false }
}

const fn with_markers(size: Size) -> Size {
    Size { markers: true, ..size }
}

/// The large ones, in which every claim holds.
pub const SEGMENT_ENDS: [SegmentEnd; 5] = [
    ("sealing, n = 3, 3 terms", size(3, 0, 3, 3)),
    ("sealing, n = 4, 3 terms", size(4, 0, 3, 2)),
    ("sealing, n = 4, a sealer lies", size(4, 1, 3, 3)),
    ("sealing, n = 3, Markers", with_markers(size(3, 0, 3, 2))),
    ("sealing, n = 4, Markers", with_markers(size(4, 0, 2, 3))),
];
const THREE: SegmentEnd = ("sealing, n = 3", size(3, 0, 2, 2));
const THREE_TERMS: SegmentEnd = ("sealing, n = 3, 3 terms", size(3, 0, 3, 2));
const THREE_MARKED: SegmentEnd = ("sealing, n = 3, Markers", with_markers(size(3, 0, 2, 2)));
const FOUR: SegmentEnd = ("sealing, n = 4", size(4, 0, 2, 2));
const FOUR_LIE: SegmentEnd = ("sealing, n = 4, a sealer lies", size(4, 1, 2, 2));

/// Rules that are switched off, where, and every claim that breaks then; the others must hold.
///
/// How few reports are too few: with one of three, or one of four, acknowledged entries are lost. Two of four would keep
/// them, as any two meet any majority, but the segment could go on beside its Close. A vote of a sealed replica loses
/// nothing by itself, because a leader that nobody may follow commits nothing.
pub const SLIPS: [(Slip, SegmentEnd, &[&str]); 18] = [
    (Slip::LongestLog, THREE, &[ACKNOWLEDGED]),
    (Slip::LongestLog, FOUR, &[ACKNOWLEDGED]),
    (Slip::Reports(1), THREE, &[ACKNOWLEDGED, SILENCE, NO_LEADER]),
    (Slip::Reports(1), FOUR, &[ACKNOWLEDGED, SILENCE, NO_LEADER]),
    (Slip::Reports(2), FOUR, &[SILENCE, NO_LEADER]),
    (Slip::Reports(2), FOUR_LIE, &[SILENCE, NO_LEADER]),
    (Slip::SealedVotes, THREE, &[NO_LEADER]),
    (Slip::SealedVotes, FOUR_LIE, &[NO_LEADER]),
    (Slip::SealedAppends, THREE, &[ACKNOWLEDGED, SILENCE]),
    (Slip::SealedAppends, FOUR_LIE, &[SILENCE]),
    (Slip::BelowAnchor, FOUR_LIE, &[ANCHORED]),
    (Slip::AnchorByIndexAlone, FOUR_LIE, &[ANCHORED]),
    (Slip::AnchorOfThePrepare, FOUR_LIE, &[ANCHORED]),
    (Slip::CloseWithoutData, FOUR_LIE, &[SHOWN]),
    (Slip::MarkerIgnored, THREE_MARKED, &[ACKNOWLEDGED, SILENCE]),
    (Slip::MarkerUncommitted, THREE_MARKED, &[ACKNOWLEDGED, SILENCE]),
    (Slip::EarlierTermCounts, THREE_TERMS, &[ACKNOWLEDGED]),
    (Slip::NobodyDoubted, FOUR_LIE, &[COLLECTED]),
];

/// Every state of every history in which a segment can end.
#[must_use]
pub fn segment_ends((name, size): SegmentEnd, slip: Option<Slip>) -> Outcome {
    let began = Instant::now();
    // One thread finds the same counterexample every time; the checker keeps its last, not its shortest.
    let threads = if slip.is_some() { 1 } else { 2 };
    let checker = Sealing::new(size, slip).checker().threads(threads).spawn_bfs().join();
    conclude(checker, name, slip.map(|slip| format!("{slip:?}")), began)
}

fn conclude<M: Model<Action: Debug + Clone + PartialEq>>(
    checker: impl Checker<M>,
    model: &'static str,
    mutant: Option<String>,
    began: Instant,
) -> Outcome
where
    M::State: StdHash + Clone + PartialEq,
{
    let mut broken = Vec::new();
    let mut unreached = Vec::new();
    for property in checker.model().properties() {
        let discovery = checker.discovery(property.name);
        match (property.expectation, discovery) {
            (Expectation::Always, Some(path)) => {
                let history = path.into_actions().iter().map(|action| format!("{action:?}")).collect();
                broken.push((property.name, history));
            }
            (Expectation::Sometimes, None) => unreached.push(property.name),
            _ => {}
        }
    }
    Outcome {
        model,
        mutant,
        states: checker.unique_state_count(),
        depth: checker.max_depth(),
        seconds: began.elapsed().as_secs_f64(),
        broken,
        unreached,
    }
}
