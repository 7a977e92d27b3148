//! What the suite needs to know of an implementation: how to open a node, and, if it will say, how to read its messages.
//! Everything but `maker` is optional; what is left out weakens single judges, which `Subject::excuses` must then name.

use bytes::Bytes;
use dwcp_base::{Chance, Epoch, Mutants, ReplicaId};
use dwcp_raft::{Index, Place, RaftMaker, Term};

/// What a message promises, as far as judges care.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// The suite is not told what this implementation's messages mean.
    Unreadable,
    /// Nothing that binds the sender.
    Nothing,
    /// "I vote for you in this term."
    Vote { term: Term },
    /// "As a member of this term I hold your log up to here, durably."
    Holds { term: Term, index: Index },
    /// Asks the receiver to append.
    Entries,
}

/// What a forger knows: enough to make messages that are nearly right.
#[derive(Clone, Debug)]
pub struct Scene {
    pub epoch: Epoch,
    pub from: ReplicaId,
    pub to: ReplicaId,
    /// The receiver's.
    pub term: Term,
    pub commit: Index,
    pub last: Place,
    /// A committed place, if there is one.
    pub committed: Place,
}

/// A part of the suite that an implementation is not held to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Excuse {
    /// The story's name, or `schedule`.
    pub part: &'static str,
    pub why: &'static str,
}

/// An implementation of `RaftNode` before the judges.
pub trait Subject: Sync {
    fn name(&self) -> &str;
    fn maker(&self) -> &dyn RaftMaker;

    /// What this message of its own promises.
    fn claim(&self, _message: &[u8]) -> Claim {
        Claim::Unreadable
    }

    /// A well-formed message that no honest member would send; `None` if the suite may only damage real ones.
    fn forge(&self, _chance: &mut Chance, _scene: &Scene) -> Option<Bytes> {
        None
    }

    /// Stories that are not played to it, each with its reason. They are printed with every verdict.
    fn excuses(&self) -> &[Excuse] {
        &[]
    }

    /// Rules switched off in a proof build of our own Raft.
    fn mutants(&self) -> Mutants {
        Mutants::default()
    }
}
