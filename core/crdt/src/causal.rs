//! What the types share: the stamp of a change, the set of dots its writer had seen, and which dots are stable.
//!
//! Every type keeps *live* dots only. Whether a dot that is not live was ever here is answered by the node's own version
//! vector: each dot belongs to one change of one key, and a change is applied once. So the causal context of a key costs
//! nothing, whatever was written to it before (Almeida, Shoker & Baquero, JPDC 2018, keep it beside each value; sharing
//! one per node follows Gonçalves et al., "DottedDB", SRDS 2017).

use crate::clock::Hlc;
use crate::dots::{Dot, Origin, VersionVector};
use alloc::collections::BTreeSet;
use alloc::vec::Vec;

/// When and by whom a change was made. The order of stamps is total and settles last-writer-wins and list positions:
/// equal clocks are told apart by the dot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp {
    pub hlc: Hlc,
    pub dot: Dot,
}

/// The dots that the writer of a change had seen: what it knew before its bundle, and what stood earlier in the bundle.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen<'a> {
    pub(crate) before: &'a VersionVector,
    pub(crate) own: Dot,
}

impl Seen<'_> {
    pub(crate) fn contains(&self, dot: Dot) -> bool {
        // A writer has seen all of its own earlier changes, or it may not write.
        (dot.origin == self.own.origin && dot.counter < self.own.counter) || self.before.contains(dot)
    }
}

/// What collection may rely on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stable<'a> {
    /// Whoever makes a change that is still to be applied here has seen all of these.
    pub(crate) dots: &'a VersionVector,
    /// Origins that will never write again, all of whose changes are everywhere.
    pub(crate) retired: &'a BTreeSet<Origin>,
}

/// Inserts into a small ascending list; does nothing when it is there.
pub(crate) fn insert_dot(dots: &mut Vec<Dot>, dot: Dot) {
    if let Err(index) = dots.binary_search(&dot) {
        dots.insert(index, dot);
    }
}
