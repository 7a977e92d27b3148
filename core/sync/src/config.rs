//! What a replica's sync is told at birth: who takes part, how patient it is and how much it may hold.

use crate::limits::FRAME_BYTES_MAX;
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use dwcp_base::{ClusterId, Crypto, Micros, Mutants, PublicKey, SettingsError};
use dwcp_crdt::Origin;
use dwcp_crdt::limits::{HELD_BUNDLEES_MAX, HELD_BYTES_MAX, ORIGINS_MAX};

/// How long things may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// How often heads are compared with peers. What a lost push delays is delayed by about this much. 50 ms to 60 s.
    pub exchange_interval: Micros,
    /// How often a peer with the same changes is asked whether its keys are the same too. Reads the whole store. 1 s to 7 d.
    pub audit_interval: Micros,
    /// How long a member may leave unacknowledged what this replica has, before it is named. 1 s to 7 d.
    pub ack_patience: Micros,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            exchange_interval: Micros::from_millis(2_000),
            audit_interval: Micros::from_millis(300_000),
            ack_patience: Micros::from_millis(60_000),
        }
    }
}

impl Timing {
    /// # Errors
    /// A duration outside its range.
    pub fn check(&self) -> Result<(), SettingsError> {
        const WEEK_MS: u64 = 7 * 24 * 3_600_000;
        let within = |value: Micros, low_ms: u64, high_ms: u64| {
            (Micros::from_millis(low_ms)..=Micros::from_millis(high_ms)).contains(&value)
        };
        let rows = [
            (within(self.exchange_interval, 50, 60_000), "exchange_interval must be 50 ms to 60 s"),
            (within(self.audit_interval, 1_000, WEEK_MS), "audit_interval must be 1 s to 7 d"),
            (within(self.ack_patience, 1_000, WEEK_MS), "ack_patience must be 1 s to 7 d"),
        ];
        first_broken(&rows)
    }
}

/// How much is kept and sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Peers that a new frame is pushed to at once. With more peers than this the receivers pass it on. 1 to 64.
    pub fanout: usize,
    /// Peers asked in each round of exchanges. 1 to 16.
    pub exchange_peers: usize,
    /// Bytes of frames in one message; one frame goes whatever its size. 256 KiB to 4 MiB.
    pub answer_bytes_max: usize,
    /// Bytes of frames answered to one peer within one exchange interval. 256 KiB to 1 GiB.
    pub budget_bytes_max: usize,
    /// Bytes of frames kept for peers. At the bound the oldest that the saved snapshot holds go, and peers that lack them
    /// need a snapshot; when there are none, frames are refused and come again later. 1 MiB to 1 TiB.
    pub log_bytes_max: usize,
    /// Frames of one origin that wait for one before them. At the bound the farthest gives way. 1 to 4,096.
    pub waiting_frames_max: usize,
    /// Bytes of those, and of those of all origins. At least a frame; at most 1 GiB.
    pub waiting_bytes_max: usize,
    pub waiting_total_bytes_max: usize,
    /// Frames and bytes of one origin that are handed to the store and not yet part of its state. Below what the store
    /// holds, so that it never refuses one: 1 to 511, and at least a frame up to 15 MiB.
    pub apply_frames_max: usize,
    pub apply_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            fanout: 8,
            exchange_peers: 1,
            answer_bytes_max: 1 << 20,
            budget_bytes_max: 32 << 20,
            log_bytes_max: 256 << 20,
            waiting_frames_max: 256,
            waiting_bytes_max: 4 << 20,
            waiting_total_bytes_max: 64 << 20,
            apply_frames_max: 256,
            apply_bytes_max: 8 << 20,
        }
    }
}

impl Limits {
    /// # Errors
    /// A number outside its range.
    pub fn check(&self) -> Result<(), SettingsError> {
        let frame = FRAME_BYTES_MAX;
        let rows = [
            ((1..=64).contains(&self.fanout), "fanout must be 1 to 64"),
            ((1..=16).contains(&self.exchange_peers), "exchange_peers must be 1 to 16"),
            ((frame..=4 << 20).contains(&self.answer_bytes_max), "answer_bytes_max must be 256 KiB to 4 MiB"),
            ((frame..=1 << 30).contains(&self.budget_bytes_max), "budget_bytes_max must be 256 KiB to 1 GiB"),
            ((1 << 20..=1 << 40).contains(&self.log_bytes_max), "log_bytes_max must be 1 MiB to 1 TiB"),
            ((1..=4_096).contains(&self.waiting_frames_max), "waiting_frames_max must be 1 to 4096"),
            (
                (frame..=1 << 30).contains(&self.waiting_bytes_max)
                    && (self.waiting_bytes_max..=1 << 30).contains(&self.waiting_total_bytes_max),
                "waiting_bytes_max must be 256 KiB to waiting_total_bytes_max, that at most 1 GiB",
            ),
            ((1..HELD_BUNDLEES_MAX).contains(&self.apply_frames_max), "apply_frames_max must be 1 to 511"),
            (
                (frame..=HELD_BYTES_MAX - (1 << 20)).contains(&self.apply_bytes_max),
                "apply_bytes_max must be 256 KiB to 15 MiB",
            ),
        ];
        first_broken(&rows)
    }
}

fn first_broken(rows: &[(bool, &'static str)]) -> Result<(), SettingsError> {
    match rows.iter().find(|(holds, _)| !holds) {
        Some((_, reason)) => Err(SettingsError::Genesis(reason)),
        None => Ok(()),
    }
}

/// Everything a replica's sync is born with.
#[derive(Clone, Debug)]
pub struct Setup {
    pub cluster: ClusterId,
    /// This replica, as a writer.
    pub me: Origin,
    /// Every origin whose frames may come, with the key that verifies them; past incarnations too, as long as their frames
    /// count. Of one node only the newest incarnation that is not cut takes part.
    pub members: BTreeMap<Origin, PublicKey>,
    /// How many members may lie: what fewer than one more say is not believed without proof.
    pub faults: usize,
    pub timing: Timing,
    pub limits: Limits,
    /// Where the choice of peers comes from.
    pub seed: u64,
    pub crypto: Arc<dyn Crypto>,
    pub mutants: Mutants,
}

impl Setup {
    /// # Errors
    /// Too many members, this replica not among them, or a setting outside its range.
    pub fn check(&self) -> Result<(), SettingsError> {
        if !self.members.contains_key(&self.me) {
            return Err(SettingsError::Genesis("a replica must be among the members it syncs with"));
        }
        if self.members.len() > ORIGINS_MAX {
            return Err(SettingsError::Genesis("more than 4096 origins, past incarnations included"));
        }
        self.timing.check()?;
        self.limits.check()
    }
}
