//! Does anybody notice when a safety rule is switched off? For every mutant: where to look, and what the judges said.
//!
//! A mutant counts as caught only by a judge of `proof/check`, from generated seeds, with the core's own assertions
//! standing back. The harmless mutant and the unmutated core must pass every seed that caught anything.

use crate::dials::Profile;
use crate::ending::Report;
use crate::puppet::Trick;
use crate::runner::{Recipe, run_seeds};
use check::Judge;
use dwcp_base::{Mutant, Mutants};

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

fn hunt(mutant: Mutant, profile: &'static str, overrides: &[(&'static str, u64)]) -> Hunt {
    Hunt { mutant, profile, seconds: 30, overrides: overrides.to_vec() }
}

/// One hunt per mutant, in the order of `Mutant::ALL`.
#[must_use]
pub fn hunts() -> Vec<Hunt> {
    Mutant::ALL.iter().map(|mutant| hunt_for(*mutant)).collect()
}

fn hunt_for(mutant: Mutant) -> Hunt {
    use Mutant as M;
    let trick = |tricks: &[Trick]| ("tricks", tricks.iter().map(|trick| trick.bit()).sum::<u64>());
    match mutant {
        M::Harmless => hunt(mutant, "mixed", &[]),
        M::QuorumTwoFPlusOne => hunt(mutant, "byzantine", &[("n", 5), trick(&[Trick::Equivocate])]),
        M::VoteBeforeSync => hunt(mutant, "crash", &[("sync_us", 5_000), ("crash_ticket_ppm", 20_000)]),
        M::FirstProofNotHighest => hunt(
            mutant,
            "partition",
            &[
                ("n", 4),
                ("liars", 1),
                ("liars_first", 1),
                ("drop_pm", 150),
                ("partition_ms", 1_500),
                ("partition_long_ms", 1_500),
                ("pipeline_depth", 8),
                ("think_ms", 60),
                ("checkpoint_interval", 64),
                trick(&[Trick::OldProofs, Trick::Withhold]),
            ],
        ),
        M::NullNotDurable => hunt(
            mutant,
            "partition",
            &[
                ("n", 4),
                ("liars", 0),
                ("delay_us", 2_000),
                ("jitter_us", 4_000),
                ("drop_pm", 100),
                ("blackout_ms", 3_000),
                ("down_ms", 500),
                ("partition_ms", 1_500),
                ("partition_long_ms", 1_000),
                ("pipeline_depth", 8),
                ("think_ms", 60),
                ("checkpoint_interval", 64),
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
        M::NoDeduplication | M::SingleSequenceSession => hunt(mutant, "clients", &[("in_flight_max", 4)]),
        M::ExecutePrepared => hunt(mutant, "partition", &[("n", 4)]),
        M::ExecuteOutOfOrder => hunt(mutant, "partition", &[("pipeline_depth", 8)]),
        M::StateTransferUnchecked => hunt(mutant, "transfer", &[("liars", 1), trick(&[Trick::LieAsDonor])]),
        M::WeakCheckpoint => {
            hunt(mutant, "transfer", &[("n", 4), ("liars", 1), trick(&[Trick::FalseCheckpoint])])
        }
        M::ForgetVotesOnRestart => hunt(mutant, "crash", &[]),
        M::LearnerVotes | M::WipedDiskRejoins => {
            hunt(mutant, "disk", &[("wipe_ms", 4_000), ("fsync_liars", 0)])
        }
        M::ReplyBeforeCommit => hunt(mutant, "partition", &[]),
        M::ClockUnchecked => hunt(
            mutant,
            "byzantine",
            &[
                ("n", 4),
                ("clients", 2),
                ("leases_pm", 100),
                ("wrong_clocks", 0),
                trick(&[Trick::SameWrongTime]),
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
        M::SlowPrimaryTolerated | M::FixedBatch | M::RelayNotForwarded => hunt(mutant, "calm", &[]),
        // Others are served all the time, so nothing but the censored client's waiting can betray the liar.
        M::CensorshipIgnored => hunt(
            mutant,
            "calm",
            &[
                ("n", 4),
                ("liars", 1),
                ("liars_first", 1),
                ("clients", 4),
                ("steady", 3),
                trick(&[Trick::Censor]),
            ],
        ),
    }
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

    #[must_use]
    pub fn place(&self) -> String {
        let overrides: Vec<String> =
            self.overrides.iter().map(|(name, value)| format!("{name}={value}")).collect();
        format!("{} {}", self.profile, overrides.join(" ")).trim_end().to_string()
    }
}

/// What became of a hunt.
#[derive(Debug)]
pub struct Catch {
    /// Seeds needed, and who caught it.
    pub caught: Option<(u64, Judge, String)>,
    pub seeds: u64,
}

/// Runs seeds with a mutant until a judge catches it.
#[must_use]
pub fn catch(hunt: &Hunt, seeds_max: u64, jobs: usize) -> Catch {
    let recipe = hunt.recipe(Mutants::default().with(hunt.mutant));
    let mut result = Catch { caught: None, seeds: 0 };
    run_seeds(0..seeds_max, jobs, &recipe, |report| {
        result.seeds += 1;
        if let Some(judge) = report.judge() {
            let text = first_text(&report);
            result.caught = Some((report.seed, judge, text));
        }
        result.caught.is_none()
    });
    result
}

fn first_text(report: &Report) -> String {
    let found = report.found.iter().find(|found| matches!(found.by, crate::ending::Finder::Judge(_)));
    found.map_or(String::new(), |found| found.text.lines().next().unwrap_or_default().to_string())
}

/// Seeds of a hunt's place at which a core that must pass does not.
#[must_use]
pub fn failures(hunt: &Hunt, mutants: Mutants, seeds: u64, jobs: usize) -> Vec<(u64, String)> {
    let mut failures = Vec::new();
    run_seeds(0..seeds, jobs, &hunt.recipe(mutants), |report| {
        if let Some(found) = report.found.first() {
            failures.push((report.seed, format!("{}: {}", found.by, found.text)));
        }
        true
    });
    failures
}
