//! What replicas sign about the end of an epoch: that it should end, and where their own logs ended. One signature each;
//! `close` says what many of them together are worth.

use crate::place::Place;
use alloc::vec::Vec;
use borsh::{BorshDeserialize, BorshSerialize};
use dwcp_base::{
    ClusterId, ConfigurationId, Crypto, Epoch, Hash, Incarnation, PublicKey, ReplicaId, Signature,
    SigningKind, encode, signing_hash,
};

/// Who says something about an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, BorshSerialize, BorshDeserialize)]
pub struct Speaker {
    pub id: ReplicaId,
    pub incarnation: Incarnation,
    /// The configuration it speaks under.
    pub configuration: ConfigurationId,
}

/// "The epoch is over here for ever, and my log of it ends at `last`." Durable before it is said: an election of that epoch
/// that needs this replica can never be won again, and nothing past `last` was ever acknowledged by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
pub struct Sealed {
    pub epoch: Epoch,
    pub speaker: Speaker,
    pub last: Place,
}

/// "The segment does not move, or leaves somebody unserved." It names the last Anchor that its speaker has executed, so
/// that old complaints do not add up with new ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
pub struct Suspect {
    pub epoch: Epoch,
    pub speaker: Speaker,
    /// The number of that Anchor within the epoch.
    pub anchor: u64,
}

/// One of the two under its speaker's signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
pub struct Signed<T> {
    pub said: T,
    pub signature: Signature,
}

/// What can be signed about the end of an epoch.
pub trait Statement: BorshSerialize {
    const KIND: SigningKind;
    fn epoch(&self) -> Epoch;
    fn speaker(&self) -> Speaker;
}

impl Statement for Sealed {
    const KIND: SigningKind = SigningKind::Sealed;

    fn epoch(&self) -> Epoch {
        self.epoch
    }

    fn speaker(&self) -> Speaker {
        self.speaker
    }
}

impl Statement for Suspect {
    const KIND: SigningKind = SigningKind::Suspect;

    fn epoch(&self) -> Epoch {
        self.epoch
    }

    fn speaker(&self) -> Speaker {
        self.speaker
    }
}

impl<T: Statement> Signed<T> {
    #[must_use]
    pub fn new(said: T, cluster: ClusterId, crypto: &dyn Crypto) -> Self {
        let signature = crypto.sign(&signing_hash(T::KIND, cluster, &encode(&said)));
        Self { said, signature }
    }

    /// What must verify for this to be the key holder's.
    #[must_use]
    pub fn signature_item(&self, cluster: ClusterId, key: PublicKey) -> (PublicKey, Hash, Signature) {
        (key, signing_hash(T::KIND, cluster, &encode(&self.said)), self.signature)
    }
}

/// `q` SUSPECTs of one epoch, within one Anchor of each other: the only thing that ends an epoch without having been
/// ordered first.
#[derive(Clone, Debug, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
pub struct StopCert {
    pub suspects: Vec<Signed<Suspect>>,
}
