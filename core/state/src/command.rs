//! What one command of a frame may be: bytes for the state machine, an order to the registry, or a word about the
//! session itself. One tag byte, then the payload without a length, so a machine command costs one byte and no copy.

use alloc::string::String;
use alloc::vec::Vec;
use borsh::{BorshDeserialize, BorshSerialize};
use bytes::Bytes;
use dwcp_base::configuration::{Principal, Role};
use dwcp_base::{CodecError, PublicKey, decode};

const TAG_MACHINE: u8 = 0;
const TAG_ADMIN: u8 = 1;
const TAG_CLOSE_SESSION: u8 = 2;
const TAG_NOTHING: u8 = 3;

/// The highest version of a cluster whose formats and rules this program knows.
pub const CLUSTER_VERSION_MAX: u32 = 1;

/// One command of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// For the state machine, which alone knows what it means.
    Machine(Bytes),
    /// For the registry and the versions. Changes need the role admin.
    Admin(AdminCommand),
    /// Ends the session; what follows it in the frame is not run.
    CloseSession,
    /// Does nothing but keep the session alive.
    Nothing,
}

/// Orders that every state machine's cluster understands.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum AdminCommand {
    /// Adds a principal, or changes its key (which ends its sessions) or role (which holds at once).
    PrincipalPut { name: String, key: PublicKey, role: Role },
    /// Removes a principal and ends its sessions.
    PrincipalRemove { name: String },
    /// Lists principals. Read-only.
    PrincipalList,
    /// Raises the version of formats and rules that all nodes may use.
    ClusterVersionSet { version: u32 },
    /// Reads it. Read-only.
    ClusterVersion,
}

impl AdminCommand {
    #[must_use]
    pub fn read_only(&self) -> bool {
        match self {
            Self::PrincipalList | Self::ClusterVersion => true,
            Self::PrincipalPut { .. } | Self::PrincipalRemove { .. } | Self::ClusterVersionSet { .. } => {
                false
            }
        }
    }
}

/// Answers to [`AdminCommand`], encoded in `Outcome::Done`.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum AdminReply {
    PrincipalPut { sessions_ended: u32 },
    PrincipalRemoved { sessions_ended: u32 },
    Principals(Vec<Principal>),
    ClusterVersion { version: u32 },
}

impl Command {
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut bytes;
        match self {
            Self::Machine(command) => {
                bytes = Vec::with_capacity(1 + command.len());
                bytes.push(TAG_MACHINE);
                bytes.extend_from_slice(command);
            }
            Self::Admin(command) => {
                bytes = Vec::with_capacity(64);
                bytes.push(TAG_ADMIN);
                command.serialize(&mut bytes).expect("writing to memory cannot fail");
            }
            Self::CloseSession => bytes = Vec::from([TAG_CLOSE_SESSION]),
            Self::Nothing => bytes = Vec::from([TAG_NOTHING]),
        }
        Bytes::from(bytes)
    }

    /// Reads one command; a machine command shares the bytes it came in.
    ///
    /// # Errors
    /// When the bytes are no command, or more than one.
    pub fn decode(bytes: &Bytes) -> Result<Self, CodecError> {
        match bytes.split_first() {
            Some((&TAG_MACHINE, _)) => Ok(Self::Machine(bytes.slice(1..))),
            Some((&TAG_ADMIN, rest)) => decode(rest).map(Self::Admin),
            Some((&TAG_CLOSE_SESSION, [])) => Ok(Self::CloseSession),
            Some((&TAG_NOTHING, [])) => Ok(Self::Nothing),
            _ => Err(CodecError::Malformed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn every_command_reads_back_and_nothing_may_follow() {
        for command in [
            Command::Machine(Bytes::from_static(b"")),
            Command::Machine(Bytes::from_static(b"xyz")),
            Command::Admin(AdminCommand::PrincipalRemove { name: "ann".to_string() }),
            Command::Admin(AdminCommand::PrincipalList),
            Command::CloseSession,
            Command::Nothing,
        ] {
            let bytes = command.encode();
            assert_eq!(Command::decode(&bytes), Ok(command.clone()));
            let mut longer = bytes.to_vec();
            longer.push(0);
            if !matches!(command, Command::Machine(_)) {
                assert_eq!(Command::decode(&Bytes::from(longer)), Err(CodecError::Malformed));
            }
        }
        for bad in [&b""[..], &[4], &[255], &[1, 9]] {
            assert_eq!(Command::decode(&Bytes::copy_from_slice(bad)), Err(CodecError::Malformed));
        }
    }
}
