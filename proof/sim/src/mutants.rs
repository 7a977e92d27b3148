//! Does anybody notice when a safety rule is switched off? For every mutant: where to look, and what the judges said.
//!
//! A mutant counts as caught only by a judge of `proof/check`, from generated seeds, with the core's own assertions
//! standing back. On every seed that a mutant was tried on, the unmutated core and the harmless mutant are tried, too:
//! both must be clean, and their histories the same to the last event.

use crate::dials::Profile;
use crate::ending::{Finder, Report, run};
use crate::puppet::Trick;
use crate::runner::{Recipe, quiet_panics, thread_cpu};
use check::Judge;
use dwcp_base::{Mutant, Mutants};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

/// Seeds within which a mutant must be caught.
pub const SEEDS_MAX: u64 = 2_000;

/// Where a mutant shows itself.
#[derive(Clone, Debug)]
pub struct Hunt {
    pub mutant: Mutant,
    pub profile: &'static str,
    pub seconds: u64,
    pub overrides: Vec<(&'static str, u64)>,
}

/// Rules whose loss shows late when seeds are tried from 0 on, and a seed that showed it. Only ever tried first: where the seed
/// shows it no more, because something else has changed, the search goes on as without it.
const LATE: &[(Mutant, u64)] = &[
    (Mutant::FirstProofNotHighest, 63),
    (Mutant::NewViewUnchecked, 22),
    (Mutant::StateTransferUnchecked, 37),
    (Mutant::RaftVoteBeforeSync, 15),
    (Mutant::RaftCommitOldTerm, 102),
    (Mutant::RaftMarkerHolderConfirmsReads, 74),
    (Mutant::EpochUnchecked, 73),
    (Mutant::SealBeforeSync, 30),
    (Mutant::AnchorComparesNothing, 21),
    (Mutant::CloseLongestLog, 155),
    (Mutant::SegmentLogReused, 264),
    (Mutant::RoomToldWithGap, 33),
    (Mutant::RoomStoreOfOneDonor, 26),
];

/// Which seeds a hunt tries, and in which order.
#[derive(Clone, Copy, Debug)]
pub struct Search {
    /// So many, from 0 on.
    pub seeds_max: u64,
    /// The seed that showed the loss before goes first.
    pub known_first: bool,
}

impl Search {
    fn seeds(self, mutant: Mutant) -> impl Iterator<Item = u64> {
        let late = LATE.iter().find(|(of, _)| self.known_first && *of == mutant);
        let known = late.map(|(_, seed)| *seed).filter(|seed| *seed < self.seeds_max);
        known.into_iter().chain((0..self.seeds_max).filter(move |seed| Some(*seed) != known))
    }
}

/// Half the patience of `sim run`, so that a cluster that hangs costs half the time; the controls keep to it as well. Policies
/// that allow no segments would only make most hunts longer.
/// State sync and leases have hunts of their own.
const PATIENCE: [(&str, u64); 5] = [
    ("answer_ms", 60_000),
    ("calm_ms", 75_000),
    ("policy_order_pm", 0),
    ("convergent_ms", 0),
    ("lease_life_pm", 0),
];

pub(crate) fn hunt(mutant: Mutant, profile: &'static str, overrides: &[(&'static str, u64)]) -> Hunt {
    let unsaid = |dial: &&(&str, u64)| overrides.iter().all(|(name, _)| *name != dial.0);
    let overrides = PATIENCE.iter().filter(unsaid).chain(overrides).copied().collect();
    Hunt { mutant, profile, seconds: 30, overrides }
}

/// Members of segments die, often right before or after a sync; nobody lies.
pub(crate) const MEMBERS_CRASH: &[(&str, u64)] = &[
    ("n", 3),
    ("liars", 0),
    ("fsync_liars", 0),
    ("mode", 2),
    ("think_ms", 40),
    ("crash_ticket_ppm", 10_000),
    ("crash_ms", 2_000),
    ("down_ms", 200),
];

/// Members of segments are cut off from one another; nobody lies.
pub(crate) const MEMBERS_PART: &[(&str, u64)] = &[
    ("n", 5),
    ("liars", 0),
    ("fsync_liars", 0),
    ("mode", 2),
    ("think_ms", 40),
    ("drop_pm", 50),
    ("partition_ms", 1_000),
    ("partition_long_ms", 1_500),
    ("crash_ms", 3_000),
    ("down_ms", 500),
];

pub(crate) fn with(
    dials: &[(&'static str, u64)],
    besides: &[(&'static str, u64)],
) -> Vec<(&'static str, u64)> {
    let unsaid = |dial: &&(&str, u64)| besides.iter().all(|(name, _)| *name != dial.0);
    dials.iter().filter(unsaid).chain(besides).copied().collect()
}

/// One hunt per mutant, in the order of `Mutant::ALL`, and a second one for rules that must hold in more than one kind of
/// world; the harmless one is in every hunt.
#[must_use]
pub fn hunts() -> Vec<Hunt> {
    // The root's own rules are looked for where nothing but the root is at work.
    let root = Mutant::ALL.iter().copied().filter_map(hunt_for).map(|mut hunt| {
        if hunt.overrides.iter().all(|(name, _)| *name != "mode") {
            hunt.overrides.extend([("mode", 0), ("leader_reads_pm", 0)]);
        }
        hunt
    });
    let segments = [Mutant::RAFT, Mutant::SEGMENT, Mutant::TIME].concat();
    let rooms = Mutant::ROOM.iter().copied().filter_map(crate::room_hunts::hunt_for);
    root.chain(segments.into_iter().filter_map(hunt_for))
        .chain(crate::segment_hunts::again())
        .chain(rooms)
        .collect()
}

/// Rules that no hunt looks for; `docs/testing.md` says why.
#[must_use]
pub fn unhunted() -> Vec<Mutant> {
    let all = [Mutant::ALL, Mutant::RAFT, Mutant::SEGMENT, Mutant::TIME].concat();
    let rooms = Mutant::ROOM.iter().copied().filter(|mutant| crate::room_hunts::hunt_for(*mutant).is_none());
    all.into_iter()
        .filter(|mutant| *mutant != Mutant::Harmless && hunt_for(*mutant).is_none())
        .chain(rooms)
        .collect()
}

/// None: nothing that was tried on a cluster shows the rule.
fn hunt_for(mutant: Mutant) -> Option<Hunt> {
    use Mutant as M;
    let trick = |tricks: &[Trick]| ("tricks", tricks.iter().map(|trick| trick.bit()).sum::<u64>());
    let hunt = match mutant {
        M::QuorumTwoFPlusOne => hunt(mutant, "byzantine", &[("n", 5), trick(&[Trick::Equivocate])]),
        M::VoteBeforeSync => hunt(mutant, "crash", &[("sync_us", 5_000), ("crash_ticket_ppm", 20_000)]),
        // Two liars prove a slot in secret, the next view decides something else there, and a later one is shown the old
        // proof first. A replica that was cut off meanwhile believes it.
        M::FirstProofNotHighest => hunt(
            mutant,
            "partition",
            &[
                ("n", 7),
                ("liars", 2),
                ("liars_first", 2),
                ("clients", 2),
                ("drop_pm", 150),
                ("partition_ms", 1_200),
                ("partition_long_ms", 2_500),
                ("blackout_ms", 4_000),
                ("down_ms", 500),
                ("view_timeout_ms", 500),
                ("pipeline_depth", 8),
                ("think_ms", 60),
                ("checkpoint_interval", 64),
                trick(&[Trick::OldProofs, Trick::SecretProof]),
            ],
        ),
        // The same liars; here the null request that the next view decided is forgotten by all who had it when the power
        // fails, and nothing but the secret proof is left.
        M::NullNotDurable => hunt(
            mutant,
            "partition",
            &[
                ("n", 7),
                ("liars", 2),
                ("liars_first", 2),
                ("clients", 2),
                ("drop_pm", 50),
                ("partition_ms", 2_000),
                ("partition_long_ms", 1_500),
                ("blackout_ms", 1_500),
                ("down_ms", 300),
                ("view_timeout_ms", 500),
                ("pipeline_depth", 8),
                ("think_ms", 60),
                ("checkpoint_interval", 64),
                trick(&[Trick::OldProofs, Trick::SecretProof]),
            ],
        ),
        M::ViewChangeForgetsPrepared => hunt(
            mutant,
            "partition",
            &[
                ("n", 4),
                ("liars", 0),
                ("delay_us", 2_000),
                ("jitter_us", 4_000),
                ("drop_pm", 150),
                ("crash_ms", 2_500),
                ("down_ms", 800),
                ("partition_ms", 1_500),
                ("partition_long_ms", 1_500),
                ("pipeline_depth", 8),
                ("think_ms", 60),
                ("checkpoint_interval", 16),
            ],
        ),
        M::DuplicateVotesCounted => {
            hunt(mutant, "byzantine", &[("n", 4), trick(&[Trick::Equivocate, Trick::VoteTwice])])
        }
        M::SnapshotWithoutSessions => hunt(mutant, "transfer", &[]),
        M::PreparedDigestUnchecked => hunt(
            mutant,
            "partition",
            &[
                ("n", 4),
                ("liars", 1),
                ("liars_first", 1),
                ("partition_ms", 1_500),
                ("checkpoint_interval", 64),
                trick(&[Trick::Equivocate, Trick::MixProofs]),
            ],
        ),
        M::PrepareTwice => hunt(mutant, "byzantine", &[("n", 4), trick(&[Trick::Equivocate])]),
        M::SignatureUnchecked => {
            hunt(mutant, "byzantine", &[("n", 4), trick(&[Trick::Equivocate, Trick::Forge])])
        }
        M::ClientSignatureUnchecked => {
            hunt(mutant, "byzantine", &[("lying_clients", 2), trick(&[Trick::ForgeFrames])])
        }
        M::StaleViewVotesCounted => hunt(
            mutant,
            "partition",
            &[
                ("n", 4),
                ("liars", 1),
                ("clients", 2),
                ("calm_ms", 125_000),
                ("checkpoint_interval", 8),
                trick(&[Trick::Replay, Trick::Equivocate]),
            ],
        ),
        M::NewViewUnchecked => hunt(
            mutant,
            "partition",
            &[
                ("n", 4),
                ("liars", 1),
                ("liars_first", 0),
                ("partition_ms", 1_500),
                ("checkpoint_interval", 64),
                trick(&[Trick::NullNewView]),
            ],
        ),
        // Frames are sent again; frames overtake one another.
        M::NoDeduplication => hunt(mutant, "clients", &[("in_flight_max", 2), ("retry_pm", 700)]),
        M::SingleSequenceSession => hunt(mutant, "clients", &[("in_flight_max", 4)]),
        M::ExecutePrepared => hunt(mutant, "partition", &[("n", 4)]),
        M::ExecuteOutOfOrder => hunt(mutant, "partition", &[("pipeline_depth", 8)]),
        M::StateTransferUnchecked => hunt(mutant, "transfer", &[("liars", 1), trick(&[Trick::LieAsDonor])]),
        M::WeakCheckpoint => {
            hunt(mutant, "transfer", &[("n", 4), ("liars", 1), trick(&[Trick::FalseCheckpoint])])
        }
        M::ForgetVotesOnRestart => hunt(mutant, "crash", &[]),
        M::LearnerVotes => hunt(mutant, "disk", &[("n", 4), ("wipe_ms", 4_000), ("fsync_liars", 0)]),
        M::WipedDiskRejoins => hunt(mutant, "disk", &[("wipe_ms", 4_000), ("fsync_liars", 0)]),
        M::ReplyBeforeCommit => hunt(mutant, "partition", &[]),
        // What is lent for some seconds is taken back too early.
        M::ClockUnchecked => hunt(
            mutant,
            "calm",
            &[
                ("n", 4),
                ("liars", 1),
                ("liars_first", 1),
                ("clients", 4),
                ("think_ms", 100),
                ("leases_pm", 100),
                ("skew_ms", 0),
                trick(&[Trick::FastClock]),
            ],
        ),
        // A round takes longer than the first timer allows.
        M::TimerWithoutBackoff => hunt(
            mutant,
            "calm",
            &[("n", 4), ("view_timeout_ms", 500), ("delay_us", 250_000), ("jitter_us", 20_000)],
        ),
        M::ViewChangeSentOnce => hunt(mutant, "partition", &[("drop_pm", 150)]),
        M::NoWatermarks => hunt(mutant, "byzantine", &[trick(&[Trick::Flood])]),
        M::DigestWithoutSessions => {
            hunt(mutant, "transfer", &[("liars", 1), trick(&[Trick::ForgetSessions])])
        }
        // The censored client has one frame under way at a time and the others many, so nothing but its waiting can
        // betray the liar: progress never stops, and the primary owes nothing on average.
        M::CensorshipIgnored => hunt(
            mutant,
            "calm",
            &[
                ("n", 4),
                ("liars", 1),
                ("liars_first", 1),
                ("clients", 4),
                ("steady", 1),
                ("think_ms", 40),
                ("delay_us", 2_000),
                ("jitter_us", 2_000),
                ("view_timeout_ms", 1_000),
                ("answer_ms", 20_000),
                ("calm_ms", 40_000),
                trick(&[Trick::Censor]),
            ],
        ),
        // Time is what these cost, so the judge's patience is short: a frame takes tens of milliseconds. One client with
        // one frame at a time has the primary owe it all its waiting, yet never for as long as the timer.
        M::SlowPrimaryTolerated => hunt(
            mutant,
            "calm",
            &[
                ("n", 4),
                ("liars", 1),
                ("liars_first", 1),
                ("clients", 1),
                ("in_flight_max", 1),
                ("think_ms", 20),
                ("retry_ms", 60_000),
                ("retry_pm", 0),
                ("delay_us", 2_000),
                ("jitter_us", 2_000),
                ("sync_us", 100),
                ("view_timeout_ms", 500),
                ("answer_ms", 200),
                trick(&[Trick::Dawdle]),
            ],
        ),
        M::FixedBatch => hunt(
            mutant,
            "calm",
            &[
                ("n", 4),
                ("clients", 20),
                ("in_flight_max", 4),
                ("think_ms", 40),
                ("commands_max", 1),
                ("delay_us", 10_000),
                ("jitter_us", 2_000),
                ("pipeline_depth", 1),
                ("retry_ms", 60_000),
                ("retry_pm", 0),
                ("answer_ms", 1_500),
                ("safety_ms", 3_000),
            ],
        ),
        M::RelayNotForwarded => hunt(
            mutant,
            "calm",
            &[
                ("n", 4),
                ("liars", 1),
                ("delay_us", 2_000),
                ("jitter_us", 2_000),
                ("think_ms", 100),
                ("retry_ms", 60_000),
                ("retry_pm", 0),
                ("view_timeout_ms", 2_000),
                ("answer_ms", 400),
                ("safety_ms", 3_000),
                trick(&[Trick::HideFromPrimary]),
            ],
        ),
        // A round takes 60 ms or so, a lone client's command stays alone, and nobody says anything twice.
        M::BatchWaits => hunt(
            mutant,
            "calm",
            &[
                ("n", 4),
                ("liars", 0),
                ("clients", 1),
                ("in_flight_max", 1),
                ("think_ms", 40),
                ("delay_us", 10_000),
                ("jitter_us", 2_000),
                ("view_timeout_ms", 4_000),
                ("retry_ms", 60_000),
                ("retry_pm", 0),
                ("answer_ms", 400),
                ("safety_ms", 3_000),
            ],
        ),
        M::AdmittedUnverified => hunt(mutant, "calm", &[("n", 4), ("liars", 0), ("lying_clients", 2)]),
        M::DigestInArrivalOrder => hunt(mutant, "transfer", &[("liars", 0), ("in_flight_max", 4)]),
        // A crash right after the words left: what was said is forgotten. In mode 2 members elect each other.
        M::RaftVoteBeforeSync => hunt(mutant, "switch", &with(MEMBERS_CRASH, &[("sync_us", 5_000)])),
        M::RaftAckBeforeSync => {
            hunt(mutant, "switch", &with(MEMBERS_CRASH, &[("sync_us", 5_000), ("blackout_ms", 2_000)]))
        }
        M::RaftLeaderCountsUnsynced => {
            hunt(mutant, "switch", &with(MEMBERS_CRASH, &[("n", 1), ("sync_us", 5_000)]))
        }
        M::RaftLeaseReads => {
            hunt(mutant, "switch", &with(MEMBERS_PART, &[("leader_reads_pm", 900), ("think_ms", 30)]))
        }
        M::RaftIgnoresSeal => hunt(mutant, "switch", &with(MEMBERS_PART, &[("mode", 1)])),
        M::WeakSuspect => hunt(
            mutant,
            "switch",
            &[
                ("n", 4),
                ("liars", 1),
                ("fsync_liars", 0),
                ("mode", 1),
                ("link_down_pm", 1_000),
                ("partition_ms", 1_500),
                trick(&[Trick::Storm]),
            ],
        ),
        M::CloseWithoutData => hunt(
            mutant,
            "switch",
            &[
                ("n", 4),
                ("liars", 1),
                ("liars_first", 1),
                ("mode", 1),
                ("partition_ms", 2_000),
                trick(&[Trick::FalseSealed]),
            ],
        ),
        M::AnchorUnchecked => hunt(
            mutant,
            "switch",
            &[("n", 4), ("liars", 1), ("liars_first", 1), ("mode", 1), trick(&[Trick::FalseAnchors])],
        ),
        // Liars vote for everybody and acknowledge what they do not hold: two members lead, one of them commits what the
        // others then replace, and both live to see the Anchor.
        M::AnchorComparesNothing => hunt(
            mutant,
            "switch",
            &[
                ("n", 7),
                ("liars", 2),
                ("fsync_liars", 0),
                ("mode", 2),
                ("election_ms", 100),
                ("partition_ms", 500),
                ("partition_long_ms", 300),
                ("drop_pm", 50),
                ("fast_path_ms", 5_000),
                ("anchor_ms", 50),
                trick(&[Trick::FalseRaft]),
            ],
        ),
        M::DeferredFirst => hunt(mutant, "switch", &with(MEMBERS_PART, &[("mode", 1), ("n", 4)])),
        M::LiveCheckpoint => hunt(mutant, "switch", &[("n", 4), ("mode", 2), ("checkpoint_interval", 4)]),
        // Nobody says anything twice, so what the pool forgets is never answered.
        M::PoolForgetsAtClose => hunt(
            mutant,
            "orders",
            &[
                ("n", 4),
                ("mode", 2),
                ("mode_order_ms", 500),
                ("retry_ms", 60_000),
                ("retry_pm", 0),
                ("think_ms", 30),
                ("answer_ms", 10_000),
                ("calm_ms", 20_000),
            ],
        ),
        // A crash between the word and the disk, which is slow.
        M::SealBeforeSync => hunt(
            mutant,
            "switch",
            &with(
                MEMBERS_PART,
                &[
                    ("n", 4),
                    ("mode", 1),
                    ("segment_calm_ms", 300),
                    ("link_down_pm", 1_000),
                    ("sync_us", 20_000),
                    ("slow_disk_ms", 2_000),
                    ("crash_ticket_ppm", 2_000),
                ],
            ),
        ),
        M::RaftForgetsVoteOnRestart => {
            hunt(mutant, "switch", &with(MEMBERS_PART, &[("election_ms", 60), ("crash_ticket_ppm", 3_000)]))
        }
        // Segment after segment ends by a Marker, and where the root takes over its next slots are voted for by members that
        // have not heard of the end's COMMITs: the leader among them, who goes on answering reads.
        M::RaftMarkerHolderConfirmsReads => Hunt {
            seconds: 60,
            ..hunt(
                mutant,
                "orders",
                &[
                    ("n", 4),
                    ("f", 0),
                    ("liars", 0),
                    ("fsync_liars", 0),
                    ("mode", 2),
                    ("mode_order_ms", 500),
                    ("leader_reads_pm", 600),
                    ("drop_pm", 0),
                    ("commits_lost_pm", 700),
                    ("think_ms", 10),
                    ("clients", 4),
                    ("election_ms", 600),
                    ("fast_path_ms", 2_000),
                    ("delay_us", 300),
                    ("jitter_us", 300),
                    ("commands_max", 1),
                    ("pipeline_depth", 8),
                    ("value_bytes_max", 16),
                ],
            )
        },
        // The harmless one is hunted nowhere.
        _ => return crate::segment_hunts::hunt_for(mutant),
    };
    Some(hunt)
}

impl Hunt {
    #[must_use]
    pub fn recipe(&self, mutants: Mutants) -> Recipe {
        Recipe {
            profile: Profile::named(self.profile).expect("hunts name profiles"),
            seconds: self.seconds,
            overrides: self.overrides.iter().map(|(name, value)| ((*name).to_string(), *value)).collect(),
            mutants,
        }
    }

    /// The flags that show a seed of this hunt again.
    #[must_use]
    pub fn flags(&self, seed: u64) -> String {
        let mut flags = format!("--seed {seed} --seconds {} --profile {}", self.seconds, self.profile);
        for (name, value) in &self.overrides {
            flags.push_str(&format!(" --dial {name}={value}"));
        }
        flags
    }

    fn run(&self, seed: u64, mutants: Mutants) -> Report {
        run(seed, &self.recipe(mutants).dials(seed), mutants)
    }
}

/// What became of a hunt.
#[derive(Debug)]
pub struct Catch {
    /// The seed, who caught it, and the finding in one line.
    pub caught: Option<(u64, Judge, String)>,
    /// Seeds tried, the catching one included.
    pub seeds: u64,
    /// What went wrong with a core that has every rule, or with the harmless mutant, on the seeds tried.
    pub control_failures: Vec<String>,
    /// Processor time of the whole, where the system tells.
    pub cpu: Option<Duration>,
}

impl Catch {
    /// Caught, and by nothing that a core with all rules would have shown.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.caught.is_some() && self.control_failures.is_empty()
    }
}

/// Tries seeds with the mutant until a judge catches it, then the controls on every seed tried.
#[must_use]
pub fn pursue(hunt: &Hunt, search: Search, mut after_each: impl FnMut()) -> Catch {
    quiet_panics();
    let begun = thread_cpu();
    let mut catch = Catch { caught: None, seeds: 0, control_failures: Vec::new(), cpu: None };
    let mutants = Mutants::default().with(hunt.mutant);
    let mut tried = Vec::new();
    for seed in search.seeds(hunt.mutant) {
        tried.push(seed);
        catch.caught = judged(&hunt.run(seed, mutants));
        after_each();
        if catch.caught.is_some() {
            break;
        }
    }
    catch.seeds = tried.len() as u64;
    if catch.caught.is_some() {
        for seed in tried {
            catch.control_failures.extend(control(hunt, seed));
            after_each();
        }
    }
    catch.cpu = begun.zip(thread_cpu()).map(|(begun, now)| now.saturating_sub(begun));
    catch
}

fn judged(report: &Report) -> Option<(u64, Judge, String)> {
    report.found.iter().find_map(|found| match found.by {
        Finder::Judge(judge) => {
            let line = found.text.lines().next().unwrap_or_default();
            Some((report.seed, judge, line.to_string()))
        }
        Finder::Simulator => None,
    })
}

/// The core with every rule, and the mutant that changes nothing: clean, and event for event the same.
fn control(hunt: &Hunt, seed: u64) -> Option<String> {
    let unmutated = hunt.run(seed, Mutants::default());
    let harmless = hunt.run(seed, Mutants::default().with(Mutant::Harmless));
    for (who, report) in [("unmutated", &unmutated), ("harmless", &harmless)] {
        if let Some(found) = report.found.first() {
            return Some(format!("the {who} core fails at seed {seed}: {}: {}", found.by, found.text));
        }
        if report.undecided {
            return Some(format!("the {who} core's history of seed {seed} could not be judged"));
        }
    }
    let differ = (unmutated.trace_hash, unmutated.events) != (harmless.trace_hash, harmless.events);
    differ.then(|| format!("the harmless mutant changed the history of seed {seed}"))
}

/// News of `pursue_all`.
#[derive(Debug)]
pub enum News<'a> {
    /// One more history was run.
    History,
    /// In the order of the hunts.
    Ended(&'a Hunt, Catch),
}

/// All hunts, one per thread at a time.
pub fn pursue_all(hunts: &[Hunt], search: Search, jobs: usize, mut tell: impl FnMut(News<'_>)) {
    let next = AtomicUsize::new(0);
    let (sender, receiver) = mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            let (sender, next) = (sender.clone(), &next);
            scope.spawn(move || {
                while let Some((index, hunt)) = {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    hunts.get(index).map(|hunt| (index, hunt))
                } {
                    // Nobody listens any more only when the command is being ended.
                    let catch = pursue(hunt, search, || drop(sender.send(None)));
                    drop(sender.send(Some((index, catch))));
                }
            });
        }
        drop(sender);
        let mut waiting = BTreeMap::new();
        let mut due = 0;
        for news in receiver {
            let Some((index, catch)) = news else {
                tell(News::History);
                continue;
            };
            waiting.insert(index, catch);
            while let Some(catch) = waiting.remove(&due) {
                tell(News::Ended(&hunts[due], catch));
                due += 1;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_known_seed_is_tried_first_and_every_seed_once() {
        let seeds = |mutant, known_first| -> Vec<u64> {
            Search { seeds_max: 40, known_first }.seeds(mutant).collect()
        };
        let known = seeds(Mutant::RoomToldWithGap, true);
        assert_eq!(known[..3], [33, 0, 1]);
        let mut sorted = known.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..40).collect::<Vec<_>>());
        assert_eq!(seeds(Mutant::RoomToldWithGap, false), (0..40).collect::<Vec<_>>());
        // Beyond what is to be tried, or not known: as without.
        assert_eq!(seeds(Mutant::SegmentLogReused, true), (0..40).collect::<Vec<_>>());
        assert_eq!(seeds(Mutant::NoDeduplication, true), (0..40).collect::<Vec<_>>());
    }

    #[test]
    fn what_shows_late_is_hunted_in_one_world() {
        for (mutant, _) in LATE {
            assert_eq!(hunts().iter().filter(|hunt| hunt.mutant == *mutant).count(), 1, "{mutant:?}");
        }
    }
}
