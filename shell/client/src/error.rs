//! What a caller learns when there is no result: above all whether the command was applied.
//!
//! Three answers exist: *not applied* (and it never will be), *applied* (but its result is gone), *unknown*. A client
//! that takes unknown for not applied writes twice; one that takes it for applied loses a write. Nothing a single node
//! says without f + 1 matching signatures turns unknown into anything else.

use dwcp_state::{Fate, Refusal};

/// Why a command has no result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The cluster ordered the command and refused it, by the word of f + 1 replicas.
    #[error("{0}")]
    Refused(Refusal),
    /// The command never left this client.
    #[error("{0}: not applied")]
    NotSent(String),
    /// The command left this client and no believed answer came in time.
    #[error("{0}: outcome unknown, it may have been applied or may yet be; read before writing again")]
    Unknown(String),
    /// The command ran, but the bytes of its result are not of the expected kind.
    #[error(
        "applied, but the answer is not of the expected kind: {0}; use a client of the cluster's version"
    )]
    UnexpectedAnswer(String),
}

impl ClientError {
    /// What is known about the command.
    #[must_use]
    pub fn fate(&self) -> Fate {
        match self {
            Self::Refused(refusal) => refusal.fate(),
            Self::NotSent(_) => Fate::NotApplied,
            Self::Unknown(_) => Fate::Unknown,
            Self::UnexpectedAnswer(_) => Fate::Applied,
        }
    }

    /// True when the command was not applied and never will be.
    #[must_use]
    pub fn definitely_not_applied(&self) -> bool {
        self.fate() == Fate::NotApplied
    }
}

/// Why one node gave no answer to a question put to it alone (status, stale read, operator's order).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    #[error("{0}")]
    Unreachable(String),
    #[error("no answer within {0} ms")]
    TimedOut(u128),
    #[error("refused: {0}")]
    Refused(String),
    #[error("the answer cannot be read: {0}")]
    Malformed(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_says_what_is_known_about_the_command() {
        let said = |error: &ClientError| (error.fate(), error.to_string());
        let (fate, text) = said(&ClientError::NotSent("no node was reached".into()));
        assert!(fate == Fate::NotApplied && text.ends_with(": not applied"), "{text}");
        let (fate, text) = said(&ClientError::Unknown("no answer in 10 s".into()));
        assert!(fate == Fate::Unknown && text.contains("outcome unknown"), "{text}");
        assert_eq!(ClientError::Refused(Refusal::SessionExpired).fate(), Fate::Unknown);
        assert_eq!(ClientError::Refused(Refusal::ResultDiscarded).fate(), Fate::Applied);
        assert!(ClientError::Refused(Refusal::Malformed).definitely_not_applied());
        assert!(!ClientError::Refused(Refusal::SessionTableFull).definitely_not_applied());
    }
}
