//! An origin that contradicts itself: the proof is kept and passed on, and nothing more of it reaches the store until its end
//! is decided from outside, by the log, so that everybody ends it at the same frame. Frames that follow what is here are kept
//! meanwhile, for whoever's store holds them: so all can come to one end, and nobody's store goes beyond it.
//!
//! Which branch counts is the decider's choice; what was applied of another is undone by a snapshot from somebody on
//! the right one. Honest replicas may have built upon dots that the decision leaves out: for everybody those become
//! changes that did nothing (`Store::end_origin`).

use crate::message::Message;
use crate::output::{Action, Need, Reason};
use crate::proof::{Cut, Proof};
use crate::record::Record;
use crate::state::Sync;
use alloc::boxed::Box;
use alloc::vec::Vec;
use dwcp_base::{Mutant, Ticket};
use dwcp_crdt::{Origin, OriginId};

impl Sync {
    /// Takes note of a proof that holds, once, and tells of it.
    pub(crate) fn freeze(&mut self, proof: &Proof, from: Option<OriginId>) {
        let Some(chain) = self.chains.get(&proof.origin()) else { return };
        if chain.proof.is_some() {
            return;
        }
        self.settle(proof.origin());
        self.note_proof(proof);
        let ticket = self.out.persist(&Record::Proof(*proof));
        if let Some(chain) = self.chains.get_mut(&proof.origin()) {
            chain.frozen_ticket = ticket;
        }
        self.out.push(Action::Evidence(Box::new(*proof)));
        // To everybody: it is 320 bytes, and happens once per liar.
        let message = Message::Contradiction { proof: Box::new(*proof) }.to_bytes();
        let peers: Vec<OriginId> = self.peers.keys().filter(|id| Some(**id) != from).copied().collect();
        for to in peers {
            self.send(to, message.clone(), Ticket::ZERO);
        }
    }

    pub(crate) fn on_contradiction(&mut self, from: OriginId, proof: &Proof) {
        let origin = proof.origin();
        let (Some(chain), Some(key)) = (self.chains.get(&origin), self.keys.get(&origin)) else {
            self.out.refuse(Some(from), Reason::UnknownOrigin);
            return;
        };
        if chain.proof.is_some() || chain.cut.is_some() {
            self.out.refuse(Some(from), Reason::Known);
        } else if proof.holds(self.cluster, key, &*self.crypto) {
            self.freeze(proof, Some(from));
        } else {
            self.out.refuse(Some(from), Reason::FalseProof);
        }
    }

    /// What is here is handed to the store, and nothing more before the end is decided.
    fn settle(&mut self, origin: Origin) {
        let Some(chain) = self.chains.get_mut(&origin).filter(|chain| chain.settled.is_none()) else {
            return;
        };
        if self.mutants.on(Mutant::SyncLiarNotFrozen) {
            return;
        }
        let last = chain.last();
        chain.settle(last);
        self.out.persist(&Record::Settled(origin, last));
    }

    /// It was decided, for all replicas alike, that an origin is about to end though it did not lie: nothing more of it reaches
    /// the store. Without this replicas go on taking its frames while the end is decided, and when all of them have passed the
    /// end before they learn of it, nobody has a store to give to the others.
    pub fn halt(&mut self, origin: Origin) {
        if self.chains.get(&origin).is_none_or(|chain| chain.is_halted || chain.cut.is_some()) {
            return;
        }
        self.settle(origin);
        self.note_halt(origin);
        let ticket = self.out.persist(&Record::Halt(origin));
        if let Some(chain) = self.chains.get_mut(&origin) {
            chain.frozen_ticket = chain.frozen_ticket.max(ticket);
        }
    }

    /// It was decided, for all replicas alike, that an origin's frames count up to this one: because it contradicted itself,
    /// because the operator excludes it from the floor, or because its node came back as the next incarnation. The first
    /// decision about an origin stands.
    pub fn set_cut(&mut self, cut: Cut) {
        if self.chains.get(&cut.origin).is_none_or(|chain| chain.cut.is_some()) {
            return;
        }
        self.note_cut(&cut);
        self.out.persist(&Record::Cut(cut));
        self.out.push(Action::EndOrigin { origin: cut.origin, last: cut.last });
        self.refresh_peers();
        self.hand_over(cut.origin);
        self.find_needs();
    }

    /// Is there something here that a decision took back, or missing here that a decision presumes? Asked after each
    /// decision, and after a restart.
    pub(crate) fn find_needs(&mut self) {
        let everybody: Vec<OriginId> = self.peers.keys().copied().collect();
        let applied = &self.applied;
        let mut is_off = false;
        for (origin, chain) in &mut self.chains {
            let Some(cut) = chain.cut else { continue };
            chain.off_branch |= chain.is_past_cut() || applied.last(*origin) > cut.last;
            chain.is_suspect &= !chain.has_ended();
            is_off |= chain.off_branch || chain.is_suspect;
        }
        if is_off {
            self.need(Need::Branch, everybody.clone());
        } else {
            self.needs.remove(&Need::Branch);
        }
        if self.is_below_floor() {
            self.need(Need::BelowFloor, everybody);
        }
    }
    /// A frame came with a good signature that fits an origin's cut and does not fit what is here.
    pub(crate) fn suspect(&mut self, origin: Origin) {
        if let Some(chain) = self.chains.get_mut(&origin) {
            chain.is_suspect = true;
            self.find_needs();
        }
    }
}
