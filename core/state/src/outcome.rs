//! What became of a command, in words a client can act on. Every refusal tells whether the command was definitely not
//! applied, was applied, or may have been: a client that guesses here loses or doubles a write.

use crate::frame::SessionId;
use crate::machine::MachineRefusal;
use crate::principal::PrincipalError;
use alloc::vec::Vec;
use borsh::{BorshDeserialize, BorshSerialize};
use bytes::Bytes;
use core::fmt;
use dwcp_base::Position;
use dwcp_base::configuration::Role;

/// What is known about a refused command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It was not applied and, under this sequence, never will be.
    NotApplied,
    /// It was applied, once; only its result is gone.
    Applied,
    /// It may have been applied, or may yet be if the same frame comes again.
    Unknown,
}

/// Why there is no result.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Refusal {
    /// Not a command.
    Malformed,
    /// The principal's role does not allow it.
    Forbidden { role: Role },
    /// The machine refused it and changed nothing.
    Machine(MachineRefusal),
    /// The registry refused it and changed nothing.
    Principal(PrincipalError),
    /// Cluster versions only rise, one at a time.
    ClusterVersion { version: u32 },
    /// The client has said that it has this result.
    BelowLowWater { low_water: u64 },
    /// Too far above the low-water mark.
    BeyondWindow { low_water: u64 },
    /// Executed, but its result is no longer (or, being large, was never) kept.
    ResultDiscarded,
    /// The session is not open: it expired, was closed, its principal was removed, or it was never opened.
    SessionExpired,
    /// The session table holds as many bytes of results as it may.
    SessionTableFull,
    /// As many sessions are open as may be.
    SessionsFull,
    /// The session key names a session of another principal.
    SessionKeyTaken,
    /// No such principal, or its key is another.
    PrincipalUnknown,
    /// The open's validity has passed, or reaches too far ahead.
    OpenNotValid { log_time_ms: u64, valid_until_ms: u64 },
}

impl Refusal {
    #[must_use]
    pub fn fate(&self) -> Fate {
        match self {
            Self::Malformed
            | Self::Forbidden { .. }
            | Self::Machine(_)
            | Self::Principal(_)
            | Self::ClusterVersion { .. }
            | Self::BeyondWindow { .. }
            | Self::SessionsFull
            | Self::SessionKeyTaken
            | Self::PrincipalUnknown
            | Self::OpenNotValid { .. } => Fate::NotApplied,
            Self::ResultDiscarded => Fate::Applied,
            Self::BelowLowWater { .. } | Self::SessionExpired | Self::SessionTableFull => Fate::Unknown,
        }
    }

    /// True when the command was definitely not applied and never will be under this sequence.
    #[must_use]
    pub fn definite(&self) -> bool {
        self.fate() == Fate::NotApplied
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed => write!(f, "not a command: not applied"),
            Self::Forbidden { role } => {
                write!(f, "forbidden to role {role:?}: not applied; use a principal with a wider role")
            }
            Self::Machine(refusal) => write!(f, "{refusal}: not applied"),
            Self::Principal(error) => write!(f, "{error}: not applied"),
            Self::ClusterVersion { version } => {
                write!(f, "the cluster version is {version} and rises one at a time: not applied")
            }
            Self::BelowLowWater { low_water } => {
                write!(
                    f,
                    "below the session's low-water mark {low_water}: outcome unknown; number commands upwards"
                )
            }
            Self::BeyondWindow { low_water } => write!(
                f,
                "beyond the session's window above {low_water}: not applied; wait for older replies, then send again"
            ),
            Self::ResultDiscarded => {
                write!(f, "applied, but its result is no longer kept: read the state instead")
            }
            Self::SessionExpired => {
                write!(f, "session expired, outcome unknown: open a new session and read first")
            }
            Self::SessionTableFull => {
                write!(f, "the session table is full: outcome unknown; retry under the same sequence later")
            }
            Self::SessionsFull => {
                write!(f, "too many sessions are open: not opened; close some or wait for expiry")
            }
            Self::SessionKeyTaken => {
                write!(
                    f,
                    "the session key belongs to another principal's session: not opened; take a fresh key"
                )
            }
            Self::PrincipalUnknown => {
                write!(f, "no principal has this name and key: not opened; ask an admin to add it")
            }
            Self::OpenNotValid { log_time_ms, valid_until_ms } => write!(
                f,
                "the open is valid until {valid_until_ms} ms, log time is {log_time_ms} ms, and it must lie within \
                 the next minute: not opened; sign a new one with a fresh key"
            ),
        }
    }
}

impl core::error::Error for Refusal {}

/// What became of one command.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Outcome {
    Done(Bytes),
    Refused(Refusal),
}

/// One command's outcome under its number.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct CommandResult {
    pub sequence: u64,
    /// The entry of the virtual log at which it ran or was refused; a retry is told the same one. Zero where that is no
    /// longer remembered.
    pub position: Position,
    pub outcome: Outcome,
}

/// The outcome of a whole frame, one result per command in order. An open has one result, of sequence 0, whose bytes
/// are an encoded [`crate::OpenReply`].
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct FrameOutcome {
    pub session: SessionId,
    pub first: u64,
    pub results: Vec<CommandResult>,
    /// For each result, whether its command ran now; the others are answered with what came of them before, or refused.
    pub ran: Vec<bool>,
}

impl FrameOutcome {
    /// What keeping it costs, in bytes.
    #[must_use]
    pub fn cost(&self) -> usize {
        let bytes = |result: &CommandResult| match &result.outcome {
            Outcome::Done(bytes) => bytes.len(),
            Outcome::Refused(_) => 0,
        };
        self.results.iter().map(|result| RESULT_OVERHEAD_BYTES + bytes(result)).sum()
    }
}

/// What a result costs beside its bytes.
const RESULT_OVERHEAD_BYTES: usize = 128;

/// What a gateway should do with a frame it did not refuse.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Order it.
    Fresh,
    /// A retry: here are the answers, nothing needs ordering.
    AllExecuted(Vec<CommandResult>),
}
