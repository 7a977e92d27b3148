//! Leaving a view: VIEW-CHANGE messages, OSDI '99 section 4.4 and TOCS '02 section 4.5.
//!
//! Departs: P entries carry their proof, the signed prepared certificate, as in OSDI '99, so a liar cannot claim what was
//! not prepared; the Q set of TOCS '02 then guards availability: what is carried over is held by an honest replica.
//! Covered by the simulator's `a_new_view_carries_over_the_highest_proof_not_the_first`.

use crate::catchup::PLACE_MAX;
use crate::message::{Message, PrePrepared, SignedBody, ViewChange};
use crate::output::{Action, Output};
use crate::record::Record;
use crate::state::{Application, Asked, Pbft};
use alloc::collections::BTreeSet;
use alloc::vec::Vec;
use dwcp_base::{Hash, Mutant, Now, ReplicaId, SigningKind, Ticket, View, decode};

impl Pbft {
    /// Leaves the current view for `view`: from here on this replica says nothing in lower ones.
    pub(crate) fn start_view_change(
        &mut self,
        now: Now,
        view: View,
        reason: &'static str,
        application: &mut dyn Application,
        out: &mut Output,
    ) {
        debug_assert!(view > self.view, "views only grow");
        out.push(Action::ViewChangeStarted { view, reason });
        self.view = view;
        let body = self.describe(view);
        for slot in self.slots.values_mut() {
            slot.leave_view();
        }
        self.active = false;
        self.fetched_view_changes.clear();
        self.timers.left_view(now, &self.timing);
        let signed = self.sign_body(SigningKind::ViewChange, &body);
        self.view_ticket = out.persist(Record::ViewChange(signed.clone()));
        self.vote_ticket = self.view_ticket;
        self.own_view_change = Some(signed.clone());
        if self.is_voter() {
            self.view_changes.insert(self.me, Asked::new(body, signed));
            self.send_view_change(None, out);
        }
        self.view_changes.retain(|_, asked| asked.body.view >= view);
        self.try_new_view(now, application, out);
    }

    /// What a later view must not forget.
    fn describe(&self, view: View) -> ViewChange {
        let low = self.stable_sequence();
        let above = self.slots.range(low.next()..=low.plus(self.window));
        let mut prepared = Vec::new();
        let mut pre_prepared = Vec::new();
        for (sequence, slot) in above {
            if !self.mutants.on(Mutant::ViewChangeForgetsPrepared) {
                prepared.extend(slot.prepared.clone());
            }
            pre_prepared.extend(
                slot.pre_prepared
                    .iter()
                    .filter(|(digest, _)| slot.holds(digest))
                    .map(|(digest, view)| PrePrepared { sequence: *sequence, digest: *digest, view: *view }),
            );
        }
        ViewChange {
            view,
            configuration: self.configurations.latest().id,
            sender: self.me,
            incarnation: self.incarnation,
            stable: self.stable.clone(),
            prepared,
            pre_prepared,
        }
    }

    /// Sends our VIEW-CHANGE to one peer, or to all.
    pub(crate) fn send_view_change(&mut self, to: Option<ReplicaId>, out: &mut Output) {
        let Some(signed) = self.own_view_change.clone().filter(|_| self.is_voter()) else { return };
        let after = self.after(self.view_ticket);
        let message = Message::ViewChange(signed);
        match to {
            None => out.push(Action::Broadcast { message, after }),
            Some(to) => out.push(Action::Send { to, message, after }),
        }
    }

    pub(crate) fn on_view_change(
        &mut self,
        now: Now,
        from: ReplicaId,
        signed: SignedBody,
        application: &mut dyn Application,
        out: &mut Output,
    ) {
        let hash = signed.hash();
        let awaited = self.awaited_view_changes().contains(&hash);
        // The view and sender stand at the front of the body; reading them spares the signatures of what is late.
        let Ok((view, sender)) = peek(&signed) else {
            return self.refuse(from, "a malformed VIEW-CHANGE", out);
        };
        if sender == self.me {
            self.on_own_view_change(from, &signed, out);
            return;
        }
        if view.0 > PLACE_MAX {
            return self.refuse(from, "a VIEW-CHANGE for a view beyond all places", out);
        }
        let late = view < self.view || (view == self.view && self.active);
        let known = self.view_changes.get(&sender).is_some_and(|known| known.body.view >= view);
        if (late || known) && !awaited {
            return;
        }
        let body = match self.verifier_with_known().view_change(&signed, self.window, self.stable_sequence())
        {
            Ok(body) => body,
            Err(reason) => return self.refuse(from, reason, out),
        };
        if awaited {
            self.fetched_view_changes.insert(hash, Asked::new(body.clone(), signed.clone()));
            self.try_adopt(now, application, out);
        }
        if late || known || !self.has_weight(body.sender, body.incarnation) {
            return;
        }
        self.view_changes.insert(sender, Asked::new(body, signed));
        self.try_join(now, application, out);
        self.try_new_view(now, application, out);
    }

    /// A peer shows us a VIEW-CHANGE of ours. It was durable before it left; one beyond what we remember was signed by a
    /// disk that is gone. True when that is so.
    pub(crate) fn on_own_view_change(&self, from: ReplicaId, signed: &SignedBody, out: &mut Output) -> bool {
        let forgiven =
            self.mutants.on(Mutant::WipedDiskRejoins) || self.mutants.on(Mutant::ForgetVotesOnRestart);
        let ours = |(view, sender): &(View, ReplicaId)| *sender == self.me && *view > self.view;
        if forgiven || !peek(signed).is_ok_and(|named| ours(&named)) {
            return false;
        }
        let Ok(body) = decode::<ViewChange>(&signed.body) else {
            self.refuse(from, "a malformed VIEW-CHANGE", out);
            return false;
        };
        let forgotten =
            body.incarnation == self.incarnation && self.verifier().signed_view_change(signed, &body);
        if forgotten {
            self.halt_forgetful(out);
        }
        forgotten
    }

    /// Enough others have left for higher views: at least one of them is honest (OSDI '99 section 4.5.2), so we follow
    /// to the smallest of those views even if our own timer has not run out.
    fn try_join(&mut self, now: Now, application: &mut dyn Application, out: &mut Output) {
        let mut higher: Vec<View> = self
            .view_changes
            .iter()
            .filter(|(sender, asked)| **sender != self.me && asked.body.view > self.view)
            .map(|(_, asked)| asked.body.view)
            .collect();
        if higher.len() < self.quorum.join() {
            return;
        }
        higher.sort_unstable();
        self.start_view_change(now, higher[0], "others left the view", application, out);
    }

    /// VIEW-CHANGEs that pending NEW-VIEWs name and we lack: at most n for each of at most n.
    pub(crate) fn awaited_view_changes(&self) -> Vec<Hash> {
        self.pending_new_views
            .values()
            .filter_map(crate::new_view::parse)
            .flat_map(|new_view| new_view.view_changes)
            .map(|(_, hash)| hash)
            .filter(|hash| self.named_view_change(hash).is_none())
            .collect()
    }

    pub(crate) fn named_view_change(&self, hash: &Hash) -> Option<&Asked> {
        let kept = || self.view_changes.values().find(|asked| asked.hash == *hash);
        self.fetched_view_changes.get(hash).or_else(kept)
    }

    /// Keeps of the fetched VIEW-CHANGEs only those that a pending NEW-VIEW still names.
    pub(crate) fn forget_unnamed(&mut self) {
        let pending = self.pending_new_views.values().filter_map(crate::new_view::parse);
        let named: BTreeSet<Hash> =
            pending.flat_map(|new_view| new_view.view_changes).map(|(_, hash)| hash).collect();
        self.fetched_view_changes.retain(|hash, _| named.contains(hash));
    }

    pub(crate) fn on_fetch_view_change(&mut self, from: ReplicaId, hash: Hash, out: &mut Output) {
        let mine =
            self.own_view_change.as_ref().filter(|signed| self.is_voter() && signed.hash() == hash).cloned();
        let stored = self.named_view_change(&hash).map(|asked| asked.signed.clone());
        let proof =
            self.new_view.iter().flat_map(|proof| &proof.view_changes).find(|signed| signed.hash() == hash);
        let (signed, after) = match (mine, stored, proof) {
            (Some(signed), ..) => (signed, self.after(self.view_ticket)),
            (None, Some(signed), _) => (signed, Ticket::ZERO),
            (None, None, Some(signed)) => (signed.clone(), Ticket::ZERO),
            (None, None, None) => return,
        };
        out.push(Action::Send { to: from, message: Message::ViewChange(signed), after });
    }
}

/// The view and sender at the front of a VIEW-CHANGE, without reading the rest.
fn peek(signed: &SignedBody) -> Result<(View, ReplicaId), ()> {
    let bytes = signed.body.get(..13).ok_or(())?;
    let view = u64::from_le_bytes(bytes[..8].try_into().map_err(|_| ())?);
    Ok((View(view), ReplicaId(bytes[12])))
}
