//! What one segment is told at birth: who takes part, where it begins, how patient it is and how much it may hold.

use alloc::vec::Vec;
use dwcp_base::limits::{MESSAGE_BYTES_MAX, PROPOSAL_BYTES_MAX};
use dwcp_base::quorum::REPLICAS_MAX;
use dwcp_base::{Epoch, Micros, Mutants, ReplicaId, SettingsError};
use dwcp_log::VirtualLog;
use dwcp_log::place::{Index, Place, Term};

/// How long things may take before somebody acts. All in microseconds of the monotonic clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Timing {
    /// A follower that hears no leader for this long, or up to twice this by chance, asks to be elected; a leader that
    /// hears no majority for this long steps down. Range 10 ms to 60 s.
    pub election_timeout: Micros,
    /// How often a leader is heard when there is nothing else to say. At most a third of the election timeout; 1 ms to 20 s.
    pub heartbeat_interval: Micros,
}

impl Timing {
    /// Patience for links of at most a few milliseconds.
    #[must_use]
    pub fn lan() -> Self {
        Self { election_timeout: Micros::from_millis(200), heartbeat_interval: Micros::from_millis(40) }
    }

    /// Patience for links of up to 300 ms.
    #[must_use]
    pub fn wan() -> Self {
        Self { election_timeout: Micros::from_millis(3_000), heartbeat_interval: Micros::from_millis(500) }
    }

    /// # Errors
    /// A duration outside its range.
    pub fn check(&self) -> Result<(), SettingsError> {
        let within = |value: Micros, low_ms: u64, high_ms: u64| {
            (Micros::from_millis(low_ms)..=Micros::from_millis(high_ms)).contains(&value)
        };
        if !within(self.election_timeout, 10, 60_000) {
            return Err(SettingsError::Genesis("election_timeout must be 10 ms to 60 s"));
        }
        if !within(self.heartbeat_interval, 1, 20_000)
            || self.heartbeat_interval.times(3) > self.election_timeout
        {
            return Err(SettingsError::Genesis(
                "heartbeat_interval must be 1 ms to 20 s and at most a third of election_timeout",
            ));
        }
        Ok(())
    }
}

/// How much a segment holds and sends at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Limits {
    /// Entries and body bytes kept in memory and not yet discarded; at the bound batches are refused until the caller
    /// discards. Ranges 16 to 2^24 and 4 MiB to 16 GiB. A follower takes up to twice this from its leader.
    pub log_entries_max: u64,
    pub log_bytes_max: u64,
    /// Body bytes proposed and not yet committed; beyond it proposals are refused as busy. Range 4 MiB to 1 GiB.
    pub uncommitted_bytes_max: u64,
    /// Entries and body bytes of one Append; one entry goes whatever its size. Ranges 1 to 65,536 and 1 KiB to 4 MiB.
    pub append_entries_max: u64,
    pub append_bytes_max: u64,
    /// Entries and body bytes sent to one follower and not yet answered. Ranges 1 to 2^20 and 1 KiB to 1 GiB.
    pub inflight_entries_max: u64,
    pub inflight_bytes_max: u64,
    /// Reads that wait at once; beyond it they are refused as busy. Range 1 to 2^20.
    pub reads_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            log_entries_max: 1_048_576,
            log_bytes_max: 256 << 20,
            uncommitted_bytes_max: 64 << 20,
            append_entries_max: 1_024,
            append_bytes_max: 1 << 20,
            inflight_entries_max: 16_384,
            inflight_bytes_max: 16 << 20,
            reads_max: 65_536,
        }
    }
}

impl Limits {
    /// # Errors
    /// A number outside its range.
    pub fn check(&self) -> Result<(), SettingsError> {
        let proposal = PROPOSAL_BYTES_MAX as u64;
        let rows = [
            ((16..=1 << 24).contains(&self.log_entries_max), "log_entries_max must be 16 to 2^24"),
            ((proposal..=16 << 30).contains(&self.log_bytes_max), "log_bytes_max must be 4 MiB to 16 GiB"),
            (
                (proposal..=1 << 30).contains(&self.uncommitted_bytes_max),
                "uncommitted_bytes_max must be 4 MiB to 1 GiB",
            ),
            ((1..=65_536).contains(&self.append_entries_max), "append_entries_max must be 1 to 65536"),
            (
                (1 << 10..=MESSAGE_BYTES_MAX as u64 / 2).contains(&self.append_bytes_max),
                "append_bytes_max must be 1 KiB to 4 MiB",
            ),
            ((1..=1 << 20).contains(&self.inflight_entries_max), "inflight_entries_max must be 1 to 2^20"),
            (
                (1 << 10..=1 << 30).contains(&self.inflight_bytes_max),
                "inflight_bytes_max must be 1 KiB to 1 GiB",
            ),
            ((1..=1 << 20).contains(&self.reads_max), "reads_max must be 1 to 2^20"),
        ];
        match rows.into_iter().find(|(holds, _)| !holds) {
            Some((_, reason)) => Err(SettingsError::Genesis(reason)),
            None => Ok(()),
        }
    }
}

/// Everything a segment is born with. Equal at all members but for `me` and `seed`.
#[derive(Clone, Debug)]
pub struct SegmentSetup {
    pub epoch: Epoch,
    pub me: ReplicaId,
    /// The voters, strictly ascending; 1 to 31 of them, `me` among them.
    pub members: Vec<ReplicaId>,
    /// Who should lead first: it asks to be elected at once, the others give it an election timeout.
    pub first_leader: Option<ReplicaId>,
    /// Where the virtual log stands when the segment opens.
    pub base: VirtualLog,
    pub timing: Timing,
    pub limits: Limits,
    /// Where this replica's election timeouts come from.
    pub seed: u64,
    pub mutants: Mutants,
}

impl SegmentSetup {
    /// # Errors
    /// Members out of order or number, `me` not among them, or a setting outside its range.
    pub fn check(&self) -> Result<(), SettingsError> {
        let count = self.members.len();
        if !(1..=usize::from(REPLICAS_MAX)).contains(&count) {
            return Err(SettingsError::Genesis("a segment has 1 to 31 members"));
        }
        if !self.members.is_sorted_by(|a, b| a < b) {
            return Err(SettingsError::Genesis("members of a segment must be strictly ascending"));
        }
        if !self.members.contains(&self.me) {
            return Err(SettingsError::Genesis("only a member may take part in a segment"));
        }
        self.timing.check()?;
        self.limits.check()
    }

    /// Index 0: what came before the segment.
    #[must_use]
    pub fn base_place(&self) -> Place {
        Place { index: Index::ZERO, term: Term::ZERO, chain: self.base.chain }
    }
}
