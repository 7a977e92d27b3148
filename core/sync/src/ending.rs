//! Which origins have to end, and where this replica may agree that they do: for whoever lets the log decide.
//!
//! An origin has to end when it contradicted itself, when its node came back with another disk, or by the operator's order.
//! First everybody stops handing its frames to the store (`Sync::halt`, or the proof), durably. What follows is kept, and not
//! applied. So from then on each has two places: how far its store has come, which stays, and how far it could go, which
//! grows by what others have. Who is *ready* for an end has a store that holds nothing after it and all frames before it.
//! When more than twice as many as may lie are ready, more honest ones than may lie are: they stand at the end as soon as it
//! is decided, with equal stores, for everybody else. The farthest that an honest store has come is an end that all honest
//! replicas can be ready for, as soon as they have exchanged what they have. Where a liar's branches split them, it may stay
//! frozen.

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
    /// Its store holds nothing after the end, and all before it is here, durably.
    Ready,
    /// Its store holds all up to the end, and more.
    Beyond,
    /// It lacks frames before the end, and holds nothing that is known to part from it.
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

    /// How many replicas, this one included, have come with this origin exactly there, as far as they said.
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

    /// Where this replica stands, if an origin were to end there. Nothing while its store may still move, or it has not to end. `least`
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
        let is_beginning = cut.last == 0 && cut.hash == Hash::ZERO;
        let is_here = is_beginning || chain.holds(cut);
        let is_short = cut.last > chain.last();
        Some(match here.last.cmp(&cut.last) {
            Ordering::Greater if is_here => Stand::Beyond,
            Ordering::Less | Ordering::Equal if is_here && chain.durable_last(self.durable) >= cut.last => {
                Stand::Ready
            }
            // A crash could still take it.
            Ordering::Less if is_here => Stand::Below,
            // What a liar wrote before its histories part, nobody can tell by where they end.
            Ordering::Less if is_short && !is_convicted => Stand::Below,
            _ => Stand::Elsewhere,
        })
    }

    /// Did this origin sign a frame whose bundle nobody can read? Then nobody comes to what it wrote after it.
    #[must_use]
    pub fn is_unreadable(&self, origin: Origin) -> bool {
        self.bad_bundles.contains(&origin)
    }
}
