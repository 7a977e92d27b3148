//! What one instance of the protocol is told at birth: who it is, who the others are, and how patient it is.

use alloc::sync::Arc;
use dwcp_base::{Crypto, Genesis, Incarnation, Micros, Mutants, ReplicaId, SettingsError};

/// How long things may take before somebody acts. All in microseconds of the monotonic clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Timing {
    /// A view in which nothing executes for this long, although something waits, is left. Doubles with every view
    /// change that brings no progress (OSDI '99 section 4.5.2). Where rounds turn out to be quick it shrinks to 20 of
    /// them, but not below a quarter of this or 300 ms. Range 20 ms to 60 s.
    pub view_timeout: Micros,
    /// One request that waits this many view timeouts while others execute is grounds to leave the view too.
    pub censorship_factor: u64,
    /// How often an otherwise silent replica says where it stands. Range 10 ms to 60 s.
    pub standing_interval: Micros,
    /// After how long without progress lost messages are asked for again. Range 5 ms to 10 s.
    pub resend_interval: Micros,
}

impl Timing {
    /// Patience for links of at most a few milliseconds.
    #[must_use]
    pub fn lan() -> Self {
        Self {
            view_timeout: Micros::from_millis(500),
            censorship_factor: 5,
            standing_interval: Micros::from_millis(250),
            resend_interval: Micros::from_millis(50),
        }
    }

    /// Patience for links of 50 to 500 ms.
    #[must_use]
    pub fn internet() -> Self {
        Self {
            view_timeout: Micros::from_millis(4_000),
            censorship_factor: 5,
            standing_interval: Micros::from_millis(1_000),
            resend_interval: Micros::from_millis(1_000),
        }
    }

    /// # Errors
    /// A duration outside its range.
    pub fn check(&self) -> Result<(), SettingsError> {
        let within = |value: Micros, low_ms: u64, high_ms: u64| {
            (Micros::from_millis(low_ms)..=Micros::from_millis(high_ms)).contains(&value)
        };
        if !within(self.view_timeout, 20, 60_000) {
            return Err(SettingsError::Genesis("view_timeout must be 20 ms to 60 s"));
        }
        if !(2..=100).contains(&self.censorship_factor) {
            return Err(SettingsError::Genesis("censorship_factor must be 2 to 100"));
        }
        if !within(self.standing_interval, 10, 60_000) {
            return Err(SettingsError::Genesis("standing_interval must be 10 ms to 60 s"));
        }
        if !within(self.resend_interval, 5, 10_000) || self.resend_interval > self.view_timeout {
            return Err(SettingsError::Genesis(
                "resend_interval must be 5 ms to 10 s and at most view_timeout",
            ));
        }
        Ok(())
    }
}

/// Everything an instance is born with.
#[derive(Clone, Debug)]
pub struct PbftSetup {
    pub genesis: Arc<Genesis>,
    pub me: ReplicaId,
    pub incarnation: Incarnation,
    pub timing: Timing,
    /// Decided payloads kept to help replicas that lag, in bytes; beyond it the oldest go and laggards fetch a snapshot.
    pub history_bytes_max: usize,
    /// Slots proposed but not yet executed at once.
    pub pipeline_depth: u64,
    pub crypto: Arc<dyn Crypto>,
    pub mutants: Mutants,
}
