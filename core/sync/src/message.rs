//! What replicas say to each other about convergent data. The link proves who speaks; frames and proofs carry signatures
//! of their own, so it does not matter who brings them.

use crate::audit::Work;
use crate::frame::SignedHeader;
use crate::limits::{HEAD_STRETCHES_MAX, HEADS_MAX, HINTS_MAX, MESSAGE_BYTES_MAX, MESSAGE_FRAMES_MAX};
use crate::proof::Proof;
use crate::repair::{self, Copy, Question};
use alloc::boxed::Box;
use alloc::vec::Vec;
use borsh::{BorshDeserialize, BorshSerialize};
use bytes::Bytes;
use dwcp_base::codec::decode_canonical;
use dwcp_base::{CodecError, Hash, encode};
use dwcp_crdt::limits::COUNTER_MAX;
use dwcp_crdt::{Interval, Origin};

/// Half of a hash: enough to see that two chains differ, for finding two frames that share it takes 2^64 tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, BorshSerialize, BorshDeserialize)]
pub struct ShortHash(pub [u8; 16]);

impl From<&Hash> for ShortHash {
    fn from(hash: &Hash) -> Self {
        let mut short = [0; 16];
        short.copy_from_slice(&hash.0[..16]);
        Self(short)
    }
}

/// How much of one origin's chain somebody has.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Head {
    pub origin: Origin,
    /// Frames up to this counter are no longer kept here.
    pub base: u64,
    /// The last counter of the chain without gaps, and the hash of the frame that ends there.
    pub last: u64,
    pub hash: ShortHash,
    /// Up to here the dots are durable here and part of the state.
    pub acked: u64,
    /// The origin contradicted itself, and its end is not decided yet: nothing of it is taken.
    pub frozen: bool,
    /// What is here already behind the first gap. Ascending.
    pub stretches: Vec<Interval>,
}

/// Where somebody stands with every origin.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Heads {
    pub me: Origin,
    /// The last counter its sender has used, durable or not.
    pub written: u64,
    /// The newest floor it knows.
    pub floor: u64,
    /// Ascending by origin.
    pub heads: Vec<Head>,
}

impl Heads {
    /// Could anybody stand like this?
    fn is_sound(&self) -> bool {
        let ascending = self.heads.windows(2).all(|w| w[0].origin < w[1].origin);
        let sound = |head: &Head| {
            if head.base > head.last || head.last > COUNTER_MAX || head.acked > COUNTER_MAX {
                return false;
            }
            let mut before = head.last;
            let ascending = head.stretches.iter().all(|stretch| {
                let follows = stretch.first > before + 1 && stretch.first <= stretch.last;
                before = stretch.last.min(COUNTER_MAX);
                follows && stretch.last <= COUNTER_MAX
            });
            ascending && head.stretches.len() <= HEAD_STRETCHES_MAX
        };
        ascending
            && self.heads.len() <= HEADS_MAX
            && self.written <= COUNTER_MAX
            && self.heads.iter().all(sound)
    }

    #[must_use]
    pub fn of(&self, origin: Origin) -> Option<&Head> {
        let place = self.heads.binary_search_by_key(&origin, |head| head.origin).ok()?;
        Some(&self.heads[place])
    }
}

/// What one side of an exchange has and the other lacks.
#[derive(Clone, Debug, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Load {
    /// In the order of each origin's chain.
    pub frames: Vec<Bytes>,
    /// Headers that contradict what the receiver said of its chains.
    pub hints: Vec<SignedHeader>,
    /// There is more than fits one message.
    pub more: bool,
}

impl Load {
    pub(crate) fn is_empty(&self) -> bool {
        self.frames.is_empty() && self.hints.is_empty()
    }
}

/// One message. Discriminants are part of the format and are never reused.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
#[borsh(use_discriminant = true)]
#[repr(u8)]
pub enum Message {
    /// A frame that is new, by its origin or by somebody who has just learned of it.
    Push { hops: u8, frame: Bytes } = 1,
    /// Here I stand: what have you more?
    Ask { round: u64, heads: Heads } = 2,
    /// This; and here I stand.
    Answer { round: u64, heads: Heads, load: Load } = 3,
    /// What the answer's sender lacked.
    Rest { load: Load } = 4,
    /// An origin contradicted itself.
    Contradiction { proof: Box<Proof> } = 5,
    /// A step of an audit.
    Audit { work: Work } = 6,
    /// Which states of keys have you, where some differ?
    Copy { question: Question } = 7,
    /// These.
    Copied { round: u64, copies: Vec<Copy> } = 8,
}

impl Message {
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        Bytes::from(encode(self))
    }

    /// # Errors
    /// Bytes that are no message, or beyond a limit.
    pub fn read(bytes: &[u8]) -> Result<Self, CodecError> {
        let message: Self = decode_canonical(bytes, MESSAGE_BYTES_MAX)?;
        let load = |load: &Load| load.frames.len() <= MESSAGE_FRAMES_MAX && load.hints.len() <= HINTS_MAX;
        let sound = match &message {
            Self::Push { .. } | Self::Contradiction { .. } => true,
            Self::Ask { heads, .. } => heads.is_sound(),
            Self::Answer { heads, load: l, .. } => heads.is_sound() && load(l),
            Self::Rest { load: l } => load(l),
            Self::Audit { work } => work.is_sound(),
            Self::Copy { question } => question.is_sound(),
            Self::Copied { copies, .. } => repair::are_sound(copies),
        };
        if sound { Ok(message) } else { Err(CodecError::Malformed) }
    }
}
