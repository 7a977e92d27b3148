//! What is dropped, and why: one counter for each reason.

/// Why a message, or a part of it, was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum DropReason {
    /// Longer than a message may be.
    Oversize,
    /// Not a message.
    Malformed,
    /// The sender sent too many within a short time.
    Flood,
    /// It names somebody who is no member.
    Stranger,
    /// It claims to come from another than who sent it.
    NotTheSender,
    /// It is for somebody else.
    Misaddressed,
    /// A record of another incarnation than the log's.
    OtherIncarnation,
    /// A record that its owner did not sign, or signed for another cluster.
    BadSignature,
    /// A record whose address is none.
    BadAddress,
    /// A record older than the one that is held.
    Stale,
    /// It speaks of a member under an identity for which no signed record is held.
    Unproven,
    /// SWIM would not have it.
    Refused,
}

impl DropReason {
    pub const ALL: [Self; 12] = [
        Self::Oversize,
        Self::Malformed,
        Self::Flood,
        Self::Stranger,
        Self::NotTheSender,
        Self::Misaddressed,
        Self::OtherIncarnation,
        Self::BadSignature,
        Self::BadAddress,
        Self::Stale,
        Self::Unproven,
        Self::Refused,
    ];

    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Oversize => "oversize",
            Self::Malformed => "malformed",
            Self::Flood => "flood",
            Self::Stranger => "stranger",
            Self::NotTheSender => "not_the_sender",
            Self::Misaddressed => "misaddressed",
            Self::OtherIncarnation => "other_incarnation",
            Self::BadSignature => "bad_signature",
            Self::BadAddress => "bad_address",
            Self::Stale => "stale",
            Self::Unproven => "unproven",
            Self::Refused => "refused",
        }
    }
}

/// Counters by reason; they never go back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drops([u64; DropReason::ALL.len()]);

impl Drops {
    pub(crate) fn add(&mut self, reason: DropReason) {
        self.0[reason as usize] += 1;
    }

    #[must_use]
    pub fn of(&self, reason: DropReason) -> u64 {
        self.0[reason as usize]
    }

    pub fn iter(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL.into_iter().map(|reason| (reason, self.of(reason)))
    }

    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }
}
