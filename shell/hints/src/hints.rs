//! The face of hints, for whoever drives them: what comes in, what goes out, what is believed at the moment.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use bytes::Bytes;
use dwcp_base::{Incarnation, Micros, Now, PublicKey, ReplicaId};

use crate::drops::Drops;

/// A member as the log knows it. Only of these are records taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    pub id: ReplicaId,
    pub incarnation: Incarnation,
    /// Verifies what this incarnation says of its address.
    pub key: PublicKey,
}

/// What can happen to hints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// `next_wakeup` has come.
    Tick,
    /// A message came over a link whose far end proved to be this member.
    Peer {
        from: ReplicaId,
        bytes: Bytes,
    },
    /// Messages can be sent to this member from now on.
    LinkUp {
        peer: ReplicaId,
    },
    LinkDown {
        peer: ReplicaId,
    },
    /// This member's key was found at an address that a setting names.
    Seed {
        replica: ReplicaId,
        address: String,
    },
    /// Whom the log knows, all of them.
    Members(Vec<Known>),
}

/// What hints want done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Over the link to this member, if there is one; it may be lost.
    Send { to: ReplicaId, bytes: Bytes },
    /// What is thought of a member is now this.
    Changed(Hint),
}

/// How a member seems to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// Nothing was heard of it since this node started.
    Unknown,
    Alive,
    /// It did not answer, and may still contradict.
    Suspect,
    /// It did not contradict in time.
    Down,
}

impl Standing {
    pub const ALL: [Self; 4] = [Self::Unknown, Self::Alive, Self::Suspect, Self::Down];

    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Alive => "alive",
            Self::Suspect => "suspect",
            Self::Down => "down",
        }
    }
}

/// What is thought of one other member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hint {
    pub replica: ReplicaId,
    pub standing: Standing,
    /// Since when, by the node's monotonic clock.
    pub since: Micros,
    /// Where it says that it is.
    pub address: Option<String>,
    /// Where a seed turned out to be it.
    pub seed: Option<String>,
    /// Of the record that says so; zero without one.
    pub version: u64,
}

/// Hints of one replica, as a machine without input or output.
pub trait Hints: fmt::Debug + Send {
    /// Takes one input and appends what it wants done.
    fn step(&mut self, now: Now, input: Input, effects: &mut Vec<Effect>);

    /// When the next `Tick` is due.
    fn next_wakeup(&self) -> Micros;

    /// One for each other member, in the order of their ids.
    fn hints(&self) -> Vec<Hint>;

    /// The address that this replica has told the others.
    fn own_address(&self) -> &str;

    /// What was not taken, by reason.
    fn drops(&self) -> &Drops;

    /// Asserts what must always hold.
    ///
    /// # Panics
    /// When it does not.
    fn check(&self);
}
