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

/// What kind of network lies between the members, as the operator orders it: which protocol may extend the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, BorshSerialize, BorshDeserialize)]
#[borsh(use_discriminant = false)]
pub enum NetworkMode {
    /// One datacenter: a segment is always open, and another follows when one fails.
    Datacenter,
    /// The open internet: the root log alone.
    Internet,
    /// Changes by the hour: a segment while it moves, the root log when it does not.
    Hybrid,
}

impl NetworkMode {
    /// The word in settings, on the command line and in figures.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Datacenter => "datacenter",
            Self::Internet => "internet",
            Self::Hybrid => "hybrid",
        }
    }
}

impl fmt::Display for NetworkMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// When a command is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, BorshSerialize, BorshDeserialize)]
#[borsh(use_discriminant = false)]
pub enum Ack {
    /// As soon as it is committed by the protocol that ordered it.
    Majority,
    /// Once a certificate of the root covers it: in a segment, an Anchor.
    Anchored,
}

/// The signed, ordered policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
pub struct Policy {
    pub trust: Trust,
    pub quorum: Quorum,
    /// Whether Raft segments may be opened at all. Without effect under `Trust::Byzantine`, which never allows them.
    pub raft: bool,
    /// For commands that do not say themselves.
    pub default_ack: Ack,
}

impl Policy {
    /// Everything that this trust allows.
    #[must_use]
    pub const fn new(trust: Trust, quorum: Quorum) -> Self {
        Self { trust, quorum, raft: true, default_ack: Ack::Majority }
    }

    /// The root log alone, whatever the mode.
    #[must_use]
    pub const fn root_only(trust: Trust, quorum: Quorum) -> Self {
        Self { raft: false, ..Self::new(trust, quorum) }
    }

    /// Whether a segment among members that only crash may be opened: trust is policy, never measurement.
    #[must_use]
    pub fn allows_raft(&self) -> bool {
        self.raft && self.trust == Trust::Crash
    }
}

/// Milliseconds without a forced Close after which hybrid mode tries a segment again: the default.
pub const CALM_MS: u64 = 10_000;

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
    /// The mode until the operator orders another.
    pub mode: NetworkMode,
    /// How long hybrid mode stays in the root log after a segment was forced to close, in milliseconds of log time; each
    /// further failure doubles it. 0 to 3,600,000; [`CALM_MS`] unless set.
    pub calm_ms: u64,
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
        check_mode(self.mode, &self.policy)?;
        if self.calm_ms > 3_600_000 {
            return Err(SettingsError::Genesis("calm_ms must be 0 to 3600000"));
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

/// Whether a cluster under this policy may run in this mode.
///
/// # Errors
/// Why not.
pub fn check_mode(mode: NetworkMode, policy: &Policy) -> Result<(), SettingsError> {
    match mode {
        NetworkMode::Datacenter if policy.trust == Trust::Byzantine => {
            Err(SettingsError::Genesis("datacenter mode trusts every member: it needs trust = crash"))
        }
        NetworkMode::Datacenter if !policy.raft => {
            Err(SettingsError::Genesis("datacenter mode runs Raft, which the policy does not allow"))
        }
        NetworkMode::Internet if policy.quorum.n() < 4 => Err(SettingsError::TooFewForByzantine),
        NetworkMode::Datacenter | NetworkMode::Internet | NetworkMode::Hybrid => Ok(()),
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
