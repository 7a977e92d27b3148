//! The last thousand conflicts, for people to look at. It tells what this node saw in the order it saw it, so it differs
//! between nodes; the count of conflicts, which is part of the state, does not.

use crate::dots::Dot;
use crate::limits::HISTORY_EVENTS_MAX;
use crate::value::Kind;
use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;
use bytes::Bytes;

/// What readers see after a conflict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// One of the siblings.
    Won(Dot),
    /// Something made of several siblings.
    Merged,
    /// All of them (an MV register).
    AllShown,
    /// A delete.
    Deleted,
    /// The change met replacements of what it replaced, and a later change already covers them all.
    Overtaken,
    /// Values of different kinds; this kind is shown.
    KindShown(Kind),
}

/// One conflict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    pub key: Bytes,
    /// Fields of nested maps below the key.
    pub path: Vec<Bytes>,
    /// The change with which the conflict came to light here.
    pub by: Dot,
    /// The versions that stand side by side, with their origins; empty when kinds clash.
    pub siblings: Vec<Dot>,
    pub strategy: String,
    pub outcome: Outcome,
}

/// The newest conflicts, oldest first; beyond the bound the oldest is forgotten.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    events: VecDeque<Conflict>,
}

impl History {
    pub(crate) fn push(&mut self, conflict: Conflict) {
        if self.events.len() >= HISTORY_EVENTS_MAX {
            self.events.pop_front();
        }
        self.events.push_back(conflict);
    }

    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = &Conflict> + ExactSizeIterator {
        self.events.iter()
    }
}
