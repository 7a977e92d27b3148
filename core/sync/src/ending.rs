//! Which origins have to end, and where this replica may agree that they do: for whoever lets the log decide.
//!
//! An origin has to end when it contradicted itself, when its node came back with another disk, or by the operator's order.
//! First everybody stops taking its frames (`Sync::halt`, or the proof), durably. From then on each stands where it stands,
//! and may say so: at a proposed end, beyond it, below it, or on another branch. Where so many say so that somebody honest
//! holds all that is before the end, and somebody honest nothing after it, it can end: those below get the frames, those
//! beyond a snapshot. Where a liar's branches split them all, it stays frozen.

use crate::message::ShortHash;
use crate::proof::Cut;
use crate::state::Sync;
use alloc::collections::BTreeSet;
use alloc::vec::Vec;
use core::cmp::Ordering;
use dwcp_base::{Hash, Mutant};
use dwcp_crdt::Origin;

/// Where a replica stands that takes no more of an origin, seen from a proposed end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stand {
    At,
    /// It holds all up to the end, and more.
    Beyond,
    /// It holds less, and nothing that is known to part from it.
    Below,
    /// Its frames part from the end.
    Elsewhere,
}

impl Sync {
    fn has_to_end(&self, origin: Origin) -> bool {
        let Some(chain) = self.chains.get(&origin).filter(|chain| chain.cut.is_none()) else { return false };
        let later = Origin { id: origin.id, incarnation: origin.incarnation.next() };
        let is_replaced = self.chains.range(later..).next().is_some_and(|(next, _)| next.id == origin.id);
        chain.proof.is_some() || is_replaced || self.excluded.contains(&origin)
    }

    /// These have to end, whatever else: the operator wants to go on without them.
    pub fn exclude(&mut self, origins: BTreeSet<Origin>) {
        self.excluded = origins;
    }

    /// Origins whose end is not decided and has to be.
    #[must_use]
    pub fn endings(&self) -> Vec<Origin> {
        self.chains.keys().copied().filter(|origin| self.has_to_end(*origin)).collect()
    }

    /// Past incarnations whose end is not decided: what they wrote may still be on its way, so nothing is collected.
    #[must_use]
    pub fn has_open_past(&self) -> bool {
        let active = self.active();
        let past = |origin: &Origin| active.get(&origin.id) != Some(origin);
        self.chains.iter().any(|(origin, chain)| chain.cut.is_none() && past(origin))
    }

    /// How many replicas, this one included, stand with this origin exactly there, as far as they said.
    #[must_use]
    pub fn standing_alike(&self, cut: &Cut) -> usize {
        let here = usize::from(self.standing(cut.origin).as_ref() == Some(cut));
        let hash = if cut.last == 0 { ShortHash::default() } else { ShortHash::from(&cut.hash) };
        let there = self.peers.values().filter(|peer| {
            let head = peer.heads.get(&cut.origin).copied().unwrap_or_default();
            peer.ack.is_some() && (head.last, head.hash) == (cut.last, hash)
        });
        here + there.count()
    }

    /// Where this replica stands, if an origin were to end there. Nothing while it may still move, or has not to end. `least`
    /// is what the log has of it: who did not contradict himself counts on that, and it is not cut off.
    #[must_use]
    pub fn stance(&self, cut: &Cut, least: u64) -> Option<Stand> {
        let chain = self.chains.get(&cut.origin)?;
        let stays = chain.is_frozen() || self.mutants.on(Mutant::RoomEndMoves);
        let here = self.standing(cut.origin).filter(|_| stays && self.has_to_end(cut.origin))?;
        let is_convicted = chain.proof.is_some();
        if !is_convicted && cut.last < least {
            return None;
        }
        if here == *cut {
            return Some(Stand::At);
        }
        Some(match here.last.cmp(&cut.last) {
            Ordering::Greater if cut.last == 0 && cut.hash == Hash::ZERO => Stand::Beyond,
            Ordering::Greater if chain.holds(cut) => Stand::Beyond,
            // What a liar wrote before its histories part, nobody can tell by where they end.
            Ordering::Less if !is_convicted => Stand::Below,
            _ => Stand::Elsewhere,
        })
    }

    /// Did this origin sign a frame whose bundle nobody can read? Then nobody comes to what it wrote after it.
    #[must_use]
    pub fn is_unreadable(&self, origin: Origin) -> bool {
        self.bad_bundles.contains(&origin)
    }
}
