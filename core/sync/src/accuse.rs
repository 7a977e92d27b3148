//! Members whose own words keep everybody from collecting, though they acknowledge: named, for the operator to end.
//!
//! A floor settles when everybody has all that its members said they had written. A member that says it wrote more than it
//! ever gives keeps every floor open, and so does one whose own signed frame nobody can read: nothing can follow it.
//!
//! A member that writes, is cut off and comes back has its patience too. What keeps its frames out here (no room, a snapshot
//! that is needed) is not held against it.

use crate::limits::FRAME_BYTES_MAX;
use crate::output::{Action, Fault};
use crate::state::Sync;
use alloc::vec::Vec;
use dwcp_base::{Micros, Now};
use dwcp_crdt::{Origin, OriginId};

/// A member said that it had written this far, and since when it has not been here.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Claim {
    written: u64,
    since: Micros,
    is_named: bool,
}

impl Sync {
    /// Has this peer given what it said it had written when that was last measured? If so it is measured anew.
    pub(crate) fn note_claim(&mut self, now: Now, id: OriginId) {
        let is_kept_out =
            !self.needs.is_empty() || self.log_bytes() + FRAME_BYTES_MAX > self.limits.log_bytes_max;
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let Some(ack) = &peer.ack else { return };
        let Some(chain) = self.chains.get(&ack.origin) else { return };
        let (said, here) = (ack.vector.last(ack.origin), chain.last());
        let is_open = !chain.is_frozen() && chain.cut.is_none();
        if said <= here || !is_open {
            peer.claim = None;
            return;
        }
        let claim = peer.claim.filter(|claim| claim.written > here);
        let claim = claim.unwrap_or(Claim { written: said, since: now.mono, is_named: false });
        peer.claim = Some(if is_kept_out { Claim { since: now.mono, ..claim } } else { claim });
    }

    /// Names those whose patience is over, each once for what it said.
    pub(crate) fn name_overstaters(&mut self, now: Now) {
        let ids: Vec<OriginId> = self.peers.keys().copied().collect();
        for id in ids {
            self.note_claim(now, id);
            let Some(peer) = self.peers.get_mut(&id) else { continue };
            let (Some(claim), Some(ack)) = (&mut peer.claim, &peer.ack) else { continue };
            let is_late = now.mono.since(claim.since) >= self.timing.ack_patience;
            if is_late && !core::mem::replace(&mut claim.is_named, true) {
                self.out.push(Action::Accuses { member: ack.origin, fault: Fault::Overstates });
            }
        }
    }

    /// A frame with its origin's own signature that nobody can read.
    pub(crate) fn note_bad_bundle(&mut self, origin: Origin) {
        if self.bad_bundles.insert(origin) {
            self.out.push(Action::Accuses { member: origin, fault: Fault::BadBundle });
        }
    }

    /// Origins that contradicted themselves and whose end is not decided yet; a restart remembers them.
    pub fn convicted(&self) -> impl Iterator<Item = Origin> {
        let open = |chain: &crate::chain::Chain| chain.proof.is_some() && chain.cut.is_none();
        self.chains.iter().filter(move |(_, chain)| open(chain)).map(|(origin, _)| *origin)
    }

    /// Members that are at fault now, and how. One that gives what it had promised is not any more.
    pub fn accused(&self) -> impl Iterator<Item = (Origin, Fault)> {
        let named = |peer: &crate::state::Peer| peer.claim.is_some_and(|claim| claim.is_named);
        let late = self.peers.values().filter(move |peer| named(peer)).filter_map(|peer| peer.ack.as_ref());
        let late = late.map(|ack| (ack.origin, Fault::Overstates));
        let counts = |origin: &&Origin| self.chains.get(origin).is_some_and(|chain| chain.cut.is_none());
        late.chain(self.bad_bundles.iter().filter(counts).map(|origin| (*origin, Fault::BadBundle)))
    }
}
