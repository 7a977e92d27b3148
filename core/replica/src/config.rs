//! What a replica is told at birth, and the settings of its own that need not agree with its peers'.

use alloc::sync::Arc;
use dwcp_base::{Genesis, Incarnation, Micros, Mutants, ReplicaId, SettingsError};
use dwcp_pbft::Timing;
use dwcp_raft::RaftMaker;

/// Bounds and patience of one replica. Peers may differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Settings {
    pub timing: Timing,
    /// Slots proposed but not yet executed at once; 1 to 64. More hides latency, fewer makes larger batches.
    pub pipeline_depth: u64,
    /// Bytes of client frames in one proposal; 1 KiB to 3 MiB.
    pub batch_bytes_max: usize,
    /// Client frames in one proposal; 1 to 4,096.
    pub batch_frames_max: usize,
    /// Bytes of client frames that wait for execution; beyond it clients are told to come back. At least 4 MiB.
    pub pending_bytes_max: usize,
    /// After how long an unexecuted frame is shown to all replicas, who then watch the primary. Shrinks to eight
    /// measured rounds where those are quick, but not below a quarter of this or 300 ms.
    pub relay_after: Micros,
    /// A snapshot is written at the first checkpoint after every so many bytes of log. Replicas with equal settings
    /// snapshot at equal sequences, so that one that lags can fetch from several at once; 64 KiB to 1 GiB.
    pub snapshot_log_bytes: u64,
    /// Decided payloads kept in memory to help replicas that lag; at least twice `snapshot_log_bytes`. Those above the
    /// newest snapshot stay up to four times this, for nothing else leads there.
    pub history_bytes_max: usize,
    /// How often the primary lets log time pass while nothing happens and something waits for time; 100 ms to 2 s.
    pub tick_interval: Micros,
    pub segment: SegmentSettings,
}

/// How a replica behaves while a segment is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SegmentSettings {
    pub timing: dwcp_raft::Timing,
    pub limits: dwcp_raft::Limits,
    /// Hybrid mode: commands that wait this long while nothing commits are grounds for suspicion; grows to 20 measured
    /// commits where those are slow. In datacenter mode it is three election timeouts, for elections are the cheaper cure.
    /// 50 ms to 60 s. `None`: 20 measured commits, at least 100 ms, twice that for every failure that the calm counts.
    pub fast_path_timeout: Option<Micros>,
    /// How often the segment's leader gives Anchors a place, while anything changed; 10 ms to 10 s.
    pub anchor_interval: Micros,
    /// Bytes of committed entries executed in one turn, and one entry more; at least 1. Whoever has much to catch up with
    /// looks at its messages and timers between two turns.
    pub apply_bytes: usize,
}

impl SegmentSettings {
    /// For replicas a few milliseconds apart.
    #[must_use]
    pub fn lan() -> Self {
        Self {
            timing: dwcp_raft::Timing::lan(),
            limits: dwcp_raft::Limits::default(),
            fast_path_timeout: None,
            anchor_interval: Micros::from_millis(100),
            apply_bytes: 512 << 10,
        }
    }

    /// For replicas 50 to 500 ms apart.
    #[must_use]
    pub fn wan() -> Self {
        Self { timing: dwcp_raft::Timing::wan(), anchor_interval: Micros::from_millis(1_000), ..Self::lan() }
    }

    /// # Errors
    /// The first setting outside its range.
    pub fn check(&self) -> Result<(), SettingsError> {
        self.timing.check()?;
        self.limits.check()?;
        let within = |value: Micros, low_ms: u64, high_ms: u64| {
            (Micros::from_millis(low_ms)..=Micros::from_millis(high_ms)).contains(&value)
        };
        if self.fast_path_timeout.is_some_and(|fixed| !within(fixed, 50, 60_000)) {
            return Err(SettingsError::Genesis("fast_path_timeout must be 50 ms to 60 s"));
        }
        if !within(self.anchor_interval, 10, 10_000) {
            return Err(SettingsError::Genesis("anchor_interval must be 10 ms to 10 s"));
        }
        if self.apply_bytes == 0 {
            return Err(SettingsError::Genesis("apply_bytes must be at least 1"));
        }
        Ok(())
    }
}

impl Settings {
    /// For replicas a few milliseconds apart.
    #[must_use]
    pub fn lan() -> Self {
        Self {
            timing: Timing::lan(),
            pipeline_depth: 4,
            batch_bytes_max: 1 << 20,
            batch_frames_max: 1_024,
            pending_bytes_max: 64 << 20,
            relay_after: Micros::from_millis(125),
            snapshot_log_bytes: 32 << 20,
            history_bytes_max: 96 << 20,
            tick_interval: Micros::from_millis(1_000),
            segment: SegmentSettings::lan(),
        }
    }

    /// For replicas 50 to 500 ms apart.
    #[must_use]
    pub fn internet() -> Self {
        Self {
            timing: Timing::internet(),
            pipeline_depth: 16,
            relay_after: Micros::from_millis(1_000),
            segment: SegmentSettings::wan(),
            ..Self::lan()
        }
    }

    /// # Errors
    /// The first setting outside its range.
    pub fn check(&self) -> Result<(), SettingsError> {
        self.timing.check()?;
        self.segment.check()?;
        let refuse = |reason| Err(SettingsError::Genesis(reason));
        if !(1..=64).contains(&self.pipeline_depth) {
            return refuse("pipeline_depth must be 1 to 64");
        }
        if !(1024..=3 << 20).contains(&self.batch_bytes_max) {
            return refuse("batch_bytes_max must be 1 KiB to 3 MiB");
        }
        if !(1..=4096).contains(&self.batch_frames_max) {
            return refuse("batch_frames_max must be 1 to 4096");
        }
        if self.pending_bytes_max < 4 << 20 {
            return refuse("pending_bytes_max must be at least 4 MiB");
        }
        if !(64 << 10..=1 << 30).contains(&self.snapshot_log_bytes) {
            return refuse("snapshot_log_bytes must be 64 KiB to 1 GiB");
        }
        if (self.history_bytes_max as u64) < 2 * self.snapshot_log_bytes {
            return refuse("history_bytes_max must be at least twice snapshot_log_bytes");
        }
        if !(Micros::from_millis(100)..=Micros::from_millis(2000)).contains(&self.tick_interval) {
            return refuse("tick_interval must be 100 ms to 2 s");
        }
        if self.relay_after == Micros::ZERO || self.relay_after > self.timing.view_timeout {
            return refuse("relay_after must be above 0 and at most view_timeout");
        }
        Ok(())
    }
}

/// Everything a replica is born with.
#[derive(Clone, Debug)]
pub struct Setup {
    pub genesis: Arc<Genesis>,
    pub me: ReplicaId,
    pub incarnation: Incarnation,
    pub settings: Settings,
    /// Makes this replica's part in a segment. Without one it takes part in none, and the modes that want segments are
    /// refused here: Raft node not initialized.
    pub raft: Option<Arc<dyn RaftMaker>>,
    /// State sync: convergent keys beside the ordered ones. `None`: this replica takes no part in it.
    pub sync: Option<crate::sync::SyncSetup>,
    /// Where election timeouts come from. Another one at each member.
    pub seed: u64,
    pub mutants: Mutants,
}
