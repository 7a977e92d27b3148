//! Who the members are, what is trusted, and the genesis that a cluster starts from.
//! Every vote and certificate names the configuration it was made under.

use crate::codec::encode;
use crate::crypto::{Hash, PublicKey};
use crate::ids::{ClusterId, ConfigurationId, Incarnation, ReplicaId, Sequence};
use crate::quorum::Quorum;
use alloc::string::String;
use alloc::vec::Vec;
use borsh::{BorshDeserialize, BorshSerialize};
use core::fmt;

/// Who may lie. Policy, never measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
#[borsh(use_discriminant = false)]
pub enum Trust {
    /// Members may crash but do not lie.
    Crash,
    /// Up to f members may do anything.
    Byzantine,
}

/// The signed, ordered policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
pub struct Policy {
    pub trust: Trust,
    pub quorum: Quorum,
}

/// One member as the configuration knows it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
pub struct Member {
    pub id: ReplicaId,
    pub incarnation: Incarnation,
    /// Verifies this incarnation's votes.
    pub vote_key: PublicKey,
    /// The raw Ed25519 key of this incarnation's TLS certificate.
    pub tls_key: PublicKey,
    /// Where the other replicas reach it, `host:port`.
    pub peer_address: String,
    /// Where clients reach it, `host:port`.
    pub client_address: String,
    /// Its votes count for sequences above this one, and only once a stable checkpoint at or past it is known.
    /// Zero for members of the genesis.
    pub votes_after: Sequence,
}

/// What a principal of the key registry may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, BorshSerialize, BorshDeserialize)]
#[borsh(use_discriminant = false)]
pub enum Role {
    /// Reads only.
    Reader,
    /// Reads and writes keys.
    Writer,
    /// Everything, including the registry, members and policy.
    Admin,
}

/// A principal of the genesis registry.
#[derive(Clone, Debug, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
pub struct Principal {
    /// 1 to 64 bytes.
    pub name: String,
    pub key: PublicKey,
    pub role: Role,
}

/// What all replicas are born with. Its hash is the cluster's id.
#[derive(Clone, Debug, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
pub struct Genesis {
    /// Format of this structure; 1.
    pub version: u16,
    /// Tells clusters of one operator apart; also makes ids unique when keys are reused.
    pub name: String,
    pub created_unix_ms: u64,
    pub policy: Policy,
    /// In order of id, `0..n`.
    pub members: Vec<Member>,
    pub principals: Vec<Principal>,
    /// Sequences between checkpoints; 128 unless set.
    pub checkpoint_interval: u64,
    /// Sequences a proposal may run ahead of the stable checkpoint; a multiple of the interval, at least two.
    pub window: u64,
    /// Bytes of keys and values at which the ordered quota alarm refuses writes.
    pub quota_bytes: u64,
}

impl Genesis {
    #[must_use]
    pub fn cluster(&self) -> ClusterId {
        ClusterId(Hash::of(&encode(self)).0)
    }

    /// Checks everything a genesis promises.
    ///
    /// # Errors
    /// The first promise that does not hold.
    pub fn check(&self) -> Result<(), SettingsError> {
        let quorum = Quorum::new(self.members.len(), Some(self.policy.quorum.f()))?;
        if quorum != self.policy.quorum {
            return Err(SettingsError::Genesis("policy and members disagree about n"));
        }
        if self.policy.trust == Trust::Byzantine && quorum.n() < 4 {
            return Err(SettingsError::TooFewForByzantine);
        }
        if self.version != 1 {
            return Err(SettingsError::Genesis("the genesis format version is not 1: upgrade this program"));
        }
        if self.members.iter().enumerate().any(|(index, member)| usize::from(member.id.0) != index) {
            return Err(SettingsError::Genesis("members must be numbered 0..n in order"));
        }
        let mut keys: Vec<PublicKey> =
            self.members.iter().flat_map(|member| [member.vote_key, member.tls_key]).collect();
        keys.extend(self.principals.iter().map(|principal| principal.key));
        let count = keys.len();
        keys.sort();
        keys.dedup();
        if keys.len() != count {
            return Err(SettingsError::Genesis("two members or principals share a key: give each its own"));
        }
        if !self.principals.iter().any(|principal| principal.role == Role::Admin) {
            return Err(SettingsError::Genesis(
                "no principal has the role admin: nobody could replace a member",
            ));
        }
        if self.checkpoint_interval == 0 || self.checkpoint_interval > 65_536 {
            return Err(SettingsError::Genesis("checkpoint_interval must be 1..=65536 sequences"));
        }
        if self.window < 2 * self.checkpoint_interval
            || !self.window.is_multiple_of(self.checkpoint_interval)
            || self.window > 1 << 20
        {
            return Err(SettingsError::Genesis(
                "window must be a multiple of checkpoint_interval, at least twice it, at most 2^20",
            ));
        }
        // A VIEW-CHANGE may hold a prepared certificate for every slot of the window and must fit one message.
        let certificate_bytes = 160 * (quorum.q() as u64 + 1);
        let message_bytes = (crate::limits::MESSAGE_BYTES_MAX as u64) * 3 / 4;
        if self.window * certificate_bytes > message_bytes {
            return Err(SettingsError::Window {
                given: self.window,
                window_max: message_bytes / certificate_bytes,
            });
        }
        Ok(())
    }
}

/// The members and policy in force.
#[derive(Clone, Debug, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
pub struct Configuration {
    pub id: ConfigurationId,
    pub policy: Policy,
    /// In order of id, `0..n`.
    pub members: Vec<Member>,
}

impl Configuration {
    #[must_use]
    pub fn of(genesis: &Genesis) -> Self {
        Self { id: ConfigurationId(1), policy: genesis.policy, members: genesis.members.clone() }
    }

    #[must_use]
    pub fn quorum(&self) -> Quorum {
        self.policy.quorum
    }

    #[must_use]
    pub fn member(&self, id: ReplicaId) -> Option<&Member> {
        self.members.get(usize::from(id.0))
    }
}

/// A setting that cannot be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SettingsError {
    ReplicaCount {
        given: usize,
    },
    FaultBound {
        n: u8,
        f: u8,
        f_max: u8,
    },
    TooFewForByzantine,
    /// A VIEW-CHANGE over such a window would not fit one message.
    Window {
        given: u64,
        window_max: u64,
    },
    Genesis(&'static str),
}

impl fmt::Display for SettingsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ReplicaCount { given } => write!(f, "{given} replicas: a cluster has 1 to 31"),
            Self::FaultBound { n, f: faults, f_max } => {
                write!(
                    f,
                    "f = {faults} is more than {n} replicas tolerate: set f to 0..={f_max} or add replicas"
                )
            }
            Self::TooFewForByzantine => write!(f, "minimum 4 replicas required for Byzantine tolerance"),
            Self::Window { given, window_max } => {
                write!(
                    f,
                    "window = {given} is too large for this many members: lower it to {window_max} or less"
                )
            }
            Self::Genesis(reason) => write!(f, "{reason}"),
        }
    }
}

impl core::error::Error for SettingsError {}
