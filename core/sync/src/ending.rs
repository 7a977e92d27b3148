//! Which origins have to end, and where this replica may agree that they do: for whoever lets the log decide.
//!
//! An origin has to end when it contradicted itself, when its node came back with another disk, or by the operator's order. It ends where replicas
//! stand: so many of them that the decision can be carried by honest ones alone. Where a liar's branches split them, nobody
//! agrees, and the origin stays frozen.

use crate::message::ShortHash;
use crate::proof::Cut;
use crate::state::Sync;
use alloc::collections::BTreeSet;
use alloc::vec::Vec;
use dwcp_crdt::Origin;

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

    /// May this replica agree that an origin ends there? Also when that was decided before, for then it changes nothing.
    #[must_use]
    pub fn may_end(&self, cut: &Cut) -> bool {
        let decided = self.chains.get(&cut.origin).is_none_or(|chain| chain.cut.is_some());
        decided || (self.has_to_end(cut.origin) && self.standing(cut.origin).as_ref() == Some(cut))
    }
}
