//! Healing: whatever was lost is noticed through standings and sent again, by whoever has it.
//!
//! Replicas tell each other where they stand. From a standing one sees what its sender lacks: a view, a stable
//! checkpoint, decided slots, votes. Decided slots carry their proof, so they may come from anybody.
//!
//! Departs: TOCS '02 retransmits each message on a timer of its own. One standing heals any loss, and nothing is kept for
//! each message. Covered by the simulator's `every_lost_letter_of_the_normal_case_heals`.

use crate::message::{Decided, Introduction, Message, Signed, SlotHeld, Standing, Vote};
use crate::output::{Action, Output};
use crate::record::Record;
use crate::state::{Application, Pbft};
use crate::timer::HELP_BYTES_MAX;
use alloc::vec::Vec;
use dwcp_base::{Hash, Micros, Mutant, Now, ReplicaId, Sequence, Ticket};
use dwcp_log::entry::payload_digest;

/// What a slot costs beside its payload, in memory and in the log: its certificate and its records.
pub const SLOT_BYTES: usize = 2_048;
/// No honest replica gets beyond this view or sequence; larger claims are not even compared.
pub(crate) const PLACE_MAX: u64 = 1 << 62;
/// Decided slots sent in one answer, in payload bytes and in number.
const ANSWER_BYTES_MAX: usize = 1 << 20;
const ANSWER_SLOTS_MAX: usize = 256;
/// How many times its bound the history may grow while no snapshot gets written.
const HISTORY_STRETCH: usize = 4;
/// The same for the sake of a peer that fetches an older snapshot than our newest. Less, for a liar may pretend to.
const HISTORY_STRETCH_HELD: usize = 2;
/// Slots a stuck replica describes.
const STUCK_SLOTS_MAX: usize = 32;
/// Votes in one introduction.
const SHOWN_MAX: usize = 2;

impl Pbft {
    /// Where this replica stands. `stuck` describes the slots that do not move.
    fn standing(&self, stuck: bool, answer: bool) -> Standing {
        let mut held = Vec::new();
        if stuck && self.active {
            let mut sequence = self.delivered;
            let last = self.slots.keys().next_back().copied().unwrap_or(sequence).max(self.delivered.next());
            while sequence < last && held.len() < STUCK_SLOTS_MAX {
                sequence = sequence.next();
                let slot = self.slots.get(&sequence);
                held.push(SlotHeld {
                    pre_prepare: slot
                        .is_some_and(|slot| slot.digest().is_some_and(|digest| slot.holds(&digest))),
                    prepared: slot.is_some_and(|slot| slot.prepared_in(self.view)),
                });
            }
        }
        Standing {
            view: self.view,
            active: self.active,
            stable: self.stable_sequence(),
            executed: self.delivered,
            decided_from: self.history.keys().next().copied().unwrap_or_else(|| self.delivered.next()),
            snapshot: self.snapshot,
            stuck: held,
            answer,
        }
    }

    pub(crate) fn broadcast_standing(&mut self, now: Now, out: &mut Output) {
        let stuck = self.has_work() && self.is_stalled(now);
        self.timers.next_standing =
            now.mono.plus(if stuck { self.timing.resend_interval } else { self.timing.standing_interval });
        let message = Message::Standing(self.standing(stuck, false));
        out.push(Action::Broadcast { message, after: Ticket::ZERO });
        if !self.is_introduced() {
            let message = Message::Introduce { boot: self.boot };
            out.push(Action::Broadcast { message, after: Ticket::ZERO });
        }
    }

    /// Slots are under way or a view is being looked for.
    pub(crate) fn has_work(&self) -> bool {
        !self.active
            || self.timers.waiting_since.is_some()
            || self.slots.range(self.delivered.next()..).next().is_some()
    }

    /// A link to `peer` came up: either of us may have missed anything. It is first shown what it signed, in case it has
    /// forgotten.
    pub fn on_link_up(&mut self, peer: ReplicaId, out: &mut Output) {
        for vote in self.votes_of(peer) {
            out.push(Action::Send { to: peer, message: Message::Reminder(vote), after: Ticket::ZERO });
        }
        let asked = self.view_changes.get(&peer).map(|asked| asked.signed.clone());
        if let Some(signed) = asked {
            out.push(Action::Send { to: peer, message: Message::ViewChange(signed), after: Ticket::ZERO });
        }
        let message = Message::Standing(self.standing(true, true));
        out.push(Action::Send { to: peer, message, after: Ticket::ZERO });
        if !self.is_introduced() {
            let message = Message::Introduce { boot: self.boot };
            out.push(Action::Send { to: peer, message, after: Ticket::ZERO });
        }
    }

    /// The highest votes seen of a peer, by view and by sequence.
    fn votes_of(&self, peer: ReplicaId) -> Vec<Signed> {
        [self.last_votes.get(&peer), self.highest_votes.get(&peer)].into_iter().flatten().copied().collect()
    }

    /// A peer has just begun.
    pub(crate) fn on_introduce(&mut self, now: Now, from: ReplicaId, boot: u64, out: &mut Output) {
        let view_change = self.view_changes.get(&from).map(|asked| asked.signed.clone());
        let bytes = view_change.as_ref().map_or(0, |signed| signed.body.len());
        if !self.timers.may_help(now, from, bytes + SLOT_BYTES, &self.timing) {
            return; // It asks again.
        }
        let introduction = Introduction { boot, votes: self.votes_of(from), view_change };
        let message = Message::Introduction(introduction);
        out.push(Action::Send { to: from, message, after: Ticket::ZERO });
    }

    /// A peer shows us what it holds that we signed, in one message: whatever else got lost or came late, by this we know.
    pub(crate) fn on_introduction(
        &mut self,
        now: Now,
        from: ReplicaId,
        introduction: &Introduction,
        application: &mut dyn Application,
        out: &mut Output,
    ) {
        if self.is_introduced() || introduction.boot != self.boot {
            return; // Enough have, or it answers an earlier life.
        }
        if introduction.votes.len() > SHOWN_MAX {
            return self.refuse(from, "an introduction that is too long", out);
        }
        let mut forgotten = introduction.votes.iter().any(|vote| self.on_reminder(from, vote, out));
        if let Some(signed) = &introduction.view_change {
            forgotten |= self.on_own_view_change(from, signed, out);
        }
        if !forgotten && self.introduced_by.insert(from) && self.is_introduced() {
            self.replay_future(now, application, out);
        }
    }

    pub(crate) fn on_standing(&mut self, now: Now, from: ReplicaId, standing: Standing, out: &mut Output) {
        let places = [standing.stable, standing.executed, standing.decided_from, standing.snapshot];
        if standing.view.0 > PLACE_MAX || places.iter().any(|place| place.0 > PLACE_MAX) {
            return self.refuse(from, "a standing beyond all places", out);
        }
        if standing.answer {
            let message = Message::Standing(self.standing(true, false));
            out.push(Action::Send { to: from, message, after: Ticket::ZERO });
        }
        self.help_with_view(now, from, &standing, out);
        self.help_with_checkpoint(from, &standing, out);
        self.help_with_slots(now, from, &standing, out);
        // A link keeps a few words while it is down. Whoever was asked because of an old one has let go of those slots
        // since, and will not answer.
        if self.timers.asked == Some(from) && standing.decided_from > self.delivered.next() {
            self.timers.asked = None;
            self.timers.catching_up_until = Micros::ZERO;
        }
        self.standings.insert(from, (now.mono, standing));
        self.seek_help(now, out);
    }

    /// Enough peers have shown us our highest votes: see [`Pbft::begin`].
    pub(crate) fn is_introduced(&self) -> bool {
        self.introduced_by.len() >= self.introductions_due
    }

    fn help_with_view(&mut self, now: Now, to: ReplicaId, standing: &Standing, out: &mut Output) {
        let behind = standing.view < self.view || (standing.view == self.view && !standing.active);
        if !behind {
            return;
        }
        if self.active {
            self.send_new_view(now, to, out);
        } else if !self.mutants.on(Mutant::ViewChangeSentOnce) {
            self.send_view_change(Some(to), out);
        }
    }

    fn help_with_checkpoint(&self, to: ReplicaId, standing: &Standing, out: &mut Output) {
        match &self.stable {
            Some(stable) if stable.claim.sequence > standing.stable => {
                let message = Message::Stable(stable.clone());
                let after = out.last_ticket();
                out.push(Action::Send { to, message, after });
            }
            _ => {
                let own = self.own_checkpoint.filter(|own| own.statement.claim.sequence > standing.stable);
                if let Some(own) = own {
                    let after = out.last_ticket();
                    out.push(Action::Send { to, message: Message::Vote(own), after });
                }
            }
        }
    }

    /// Sends our part of each slot the peer is stuck at.
    fn help_with_slots(&mut self, now: Now, to: ReplicaId, standing: &Standing, out: &mut Output) {
        let reachable = self.delivered.max(self.stable_sequence()).0.saturating_add(2 * self.window);
        if !self.active
            || standing.view != self.view
            || standing.stuck.is_empty()
            || standing.executed.0 > reachable
        {
            return;
        }
        let mut we_lack = false;
        let after = self.after(self.vote_ticket);
        let send = |message: Message, out: &mut Output| out.push(Action::Send { to, message, after });
        for (index, held) in standing.stuck.iter().take(STUCK_SLOTS_MAX).enumerate() {
            let sequence = standing.executed.plus(index as u64 + 1);
            let slot = self.slots.get(&sequence);
            let held_here = slot.is_some_and(|slot| slot.digest().is_some_and(|digest| slot.holds(&digest)));
            we_lack |= held.pre_prepare && !held_here && sequence > self.delivered;
            if !held.pre_prepare
                && let Some((proposal, payload)) = self.assignment(sequence)
                && self.timers.may_help(now, to, payload.len(), &self.timing)
            {
                send(Message::PrePrepare { proposal, payload }, out);
            }
            let Some(slot) = self.slots.get(&sequence) else { continue };
            if !held.prepared
                && let Some(prepare) = slot.prepares.get(self.me)
            {
                send(Message::Vote(*prepare), out);
            }
            if let Some(commit) = slot.commits.get(self.me) {
                send(Message::Vote(*commit), out);
            }
        }
        if we_lack && now.mono >= self.timers.next_plea {
            self.timers.next_plea = now.mono.plus(self.timing.resend_interval);
            let message = Message::Standing(self.standing(true, false));
            out.push(Action::Send { to, message, after: Ticket::ZERO });
        }
    }

    /// Asks for decided slots, or a snapshot, when others are ahead and our own votes do not get us there.
    pub(crate) fn seek_help(&mut self, now: Now, out: &mut Output) {
        if now.mono < self.timers.catching_up_until {
            return;
        }
        let idle = self.is_stalled(now);
        let below_stable = self.delivered < self.stable_sequence();
        let gap = |executed: Sequence| executed.0.saturating_sub(self.delivered.0);
        let mut ahead: Vec<(ReplicaId, Sequence, Sequence, Sequence)> = self
            .standings
            .iter()
            .filter(|(_, (_, standing))| {
                gap(standing.executed) > 0
                    && (idle || below_stable || gap(standing.executed) > self.window / 4)
            })
            .map(|(id, (_, standing))| (*id, standing.executed, standing.decided_from, standing.snapshot))
            .collect();
        // Whoever has given its share gives nothing now. When all have, their next words come soon.
        ahead.retain(|(id, ..)| self.timers.gives_from(*id, &self.timing) <= now.mono);
        if ahead.is_empty() {
            return;
        }
        // Another one each time, so that a peer that does not answer, or lies about how far it is, costs one round.
        let turn = usize::try_from(self.timers.help_turn % ahead.len() as u64).unwrap_or(0);
        ahead.rotate_left(turn);
        self.timers.help_turn += 1;
        self.timers.catching_up_until = now.mono.plus(self.timing.resend_interval.times(4));
        let next = self.delivered.next();
        if let Some((peer, ..)) = ahead.iter().find(|(_, _, decided_from, _)| *decided_from <= next) {
            let message = Message::FetchDecided { from: next };
            self.timers.asked = Some(*peer);
            out.push(Action::Send { to: *peer, message, after: Ticket::ZERO });
        } else {
            let (peer, ..) =
                ahead.iter().find(|(_, _, _, snapshot)| *snapshot > self.delivered).unwrap_or(&ahead[0]);
            self.timers.asked = None;
            // Nobody may have one yet; being asked makes them write one. How new it is said to be proves nothing: whatever is ahead of us and certified will do.
            out.push(Action::NeedSnapshot { from: *peer, at_least: next });
        }
    }

    pub(crate) fn on_fetch_decided(&mut self, now: Now, from: ReplicaId, first: Sequence, out: &mut Output) {
        let mut answer = Vec::new();
        let mut bytes = 0;
        let mut expected = first;
        for (sequence, decided) in self.history.range(first..) {
            if *sequence != expected || answer.len() >= ANSWER_SLOTS_MAX || bytes >= ANSWER_BYTES_MAX {
                break;
            }
            expected = expected.next();
            bytes += decided.payload.len();
            answer.push(decided.clone());
        }
        if answer.is_empty() {
            return;
        }
        if !self.timers.may_help(now, from, bytes, &self.timing) {
            // It need not wait to find out: other help than this may have taken up its share.
            answer.clear();
        }
        // The certificates may hold our own commits, which must not leave before they are durable.
        let after = self.after(self.vote_ticket);
        out.push(Action::Send { to: from, message: Message::Decided(answer), after });
    }

    pub(crate) fn on_decided(&mut self, now: Now, from: ReplicaId, decided: Vec<Decided>, out: &mut Output) {
        if self.held {
            return; // The caller cannot execute more; it is asked for again.
        }
        if decided.is_empty() {
            return self.on_share_given(now, from, out);
        }
        let mut refused = None;
        let bytes = decided.iter().map(|one| one.payload.len()).sum();
        self.timers.took(now, from, bytes, &self.timing);
        for one in decided {
            let claim = one.certificate.claim;
            if claim.sequence <= self.delivered {
                continue;
            }
            if claim.sequence != self.delivered.next() {
                break;
            }
            if payload_digest(&one.payload) != claim.digest {
                refused = Some("a decided slot whose digest is not its payload's");
                break;
            }
            // Only our own decision on the very digest spares the certificate, and then it is ours that counts.
            let own = self.slots.get(&claim.sequence).and_then(|slot| slot.decided.clone());
            let own = own.filter(|own| own.claim.digest == claim.digest);
            let known = own.is_some();
            let one = Decided { certificate: own.unwrap_or(one.certificate), payload: one.payload };
            if !known && let Err(reason) = self.verifier().certificate(&one.certificate, Vote::Commit) {
                refused = Some(reason);
                break;
            }
            let ticket = out.persist(Record::Decided(one.clone()));
            self.kept_tickets.keep(claim.sequence, ticket);
            if claim.sequence > self.stable_sequence() {
                let slot = self.slots.entry(claim.sequence).or_default();
                slot.note_ticket(ticket);
                slot.payloads.insert(claim.digest, one.payload.clone());
                slot.decided = Some(one.certificate.clone());
            }
            self.deliver_one(now, one, out);
        }
        // What came before a bad slot was taken and settles as any other.
        self.deliver_ready(now, out);
        self.forget_settled();
        if let Some(reason) = refused {
            // The timers ask again, and others too: at once would let a liar keep us busy at the speed of the link.
            return self.refuse(from, reason, out);
        }
        self.timers.asked = None;
        self.timers.catching_up_until = Micros::ZERO;
        // What is under way here comes by itself, unless we are far behind it.
        let farthest = self.standings.values().map(|(_, standing)| standing.executed.0).max().unwrap_or(0);
        let is_far = farthest.saturating_sub(self.delivered.0) > self.window / 4;
        let under_way = self.slots.range(self.delivered.next()..).next().is_some();
        if self.delivered < self.stable_sequence() || is_far || !under_way {
            self.fetch_on(now, from, out);
        }
    }

    /// A peer has what we asked for, and will give no more for a while.
    fn on_share_given(&mut self, now: Now, from: ReplicaId, out: &mut Output) {
        self.timers.took(now, from, HELP_BYTES_MAX, &self.timing);
        // Whoever was not asked cannot make us ask.
        if self.timers.asked.take_if(|asked| *asked == from).is_some() {
            self.timers.catching_up_until = Micros::ZERO;
            self.seek_help(now, out);
        }
    }

    /// Asks for what follows: the same peer as long as it gives, then the one after it that has it, so that a silent one has its
    /// turn only now and then. When all have given their share the next standing finds one that gives again.
    fn fetch_on(&mut self, now: Now, from: ReplicaId, out: &mut Output) {
        let next = self.delivered.next();
        let has_more = |(id, (_, standing)): (&ReplicaId, &(Micros, Standing))| {
            let has = standing.executed > self.delivered && (standing.decided_from <= next || *id == from);
            (has && self.timers.gives_from(*id, &self.timing) <= now.mono).then_some(*id)
        };
        let able: Vec<ReplicaId> = self.standings.iter().filter_map(has_more).collect();
        let Some(to) = able.iter().find(|id| **id >= from).or(able.first()).copied() else { return };
        self.timers.catching_up_until = now.mono.plus(self.timing.resend_interval.times(4));
        self.timers.asked = Some(to);
        out.push(Action::Send { to, message: Message::FetchDecided { from: next }, after: Ticket::ZERO });
    }

    pub(crate) fn on_fetch_payload(
        &mut self,
        now: Now,
        from: ReplicaId,
        sequence: Sequence,
        digest: Hash,
        out: &mut Output,
    ) {
        let kept = self.slots.get(&sequence).and_then(|slot| slot.payloads.get(&digest)).cloned();
        let decided =
            self.history.get(&sequence).filter(|decided| decided.certificate.claim.digest == digest);
        if let Some(payload) = kept.or_else(|| decided.map(|decided| decided.payload.clone()))
            && self.timers.may_help(now, from, payload.len(), &self.timing)
        {
            let message = Message::Payload { sequence, payload };
            out.push(Action::Send { to: from, message, after: Ticket::ZERO });
        }
    }

    pub(crate) fn on_stable(
        &mut self,
        now: Now,
        from: ReplicaId,
        certificate: crate::Certificate,
        out: &mut Output,
    ) {
        if certificate.claim.sequence <= self.stable_sequence() {
            return;
        }
        match self.verifier().certificate(&certificate, Vote::Checkpoint) {
            Ok(()) => self.adopt_stable(now, certificate, out),
            Err(reason) => self.refuse(from, reason, out),
        }
    }

    /// Whether `q` replicas signed this checkpoint, as far as we know their keys.
    ///
    /// # Errors
    /// Why not.
    pub fn verify_checkpoint(&self, certificate: &crate::Certificate) -> Result<(), &'static str> {
        self.verifier().certificate(certificate, Vote::Checkpoint)
    }

    /// A peer shows us a vote of ours. Every vote is durable before it leaves, so a vote that we do not remember was
    /// made by a disk that is gone. True when that is so.
    pub(crate) fn on_reminder(&self, from: ReplicaId, signed: &Signed, out: &mut Output) -> bool {
        let statement = &signed.statement;
        let ours = statement.sender == self.me && statement.incarnation == self.incarnation;
        let forgiven =
            self.mutants.on(Mutant::WipedDiskRejoins) || self.mutants.on(Mutant::ForgetVotesOnRestart);
        if !ours || forgiven || statement.claim.vote == Vote::Checkpoint {
            return false;
        }
        if self.verifier().vote(signed).is_err() {
            self.refuse(from, "a reminder of a vote we did not sign", out);
            return false;
        }
        let claim = statement.claim;
        // What our disk accounted for when we began, or what we may have voted on since and let go of.
        let settled_since = self.first_vote.is_some_and(|first| claim.sequence >= first)
            && claim.sequence <= self.delivered.max(self.stable_sequence());
        let known_at_start = claim.sequence <= self.settled_at_start
            || self.voted_at_start.get(&claim.sequence).is_some_and(|view| *view >= claim.view);
        let settled = known_at_start || settled_since;
        let remembered = self.slots.get(&claim.sequence).is_some_and(|slot| {
            slot.pre_prepared.values().any(|view| *view >= claim.view) || slot.decided.is_some()
        });
        let forgotten = claim.view > self.view || !(settled || remembered);
        if forgotten {
            self.halt_forgetful(out);
        }
        forgotten
    }

    pub(crate) fn halt_forgetful(&self, out: &mut Output) {
        out.push(Action::Halt {
            reason: "this disk has forgotten votes that this replica signed (wiped or rolled back): \
                     run `dwcp member replace` to bring it back as a new incarnation",
        });
    }

    /// Keeps a decided slot for laggards; beyond the bound the oldest go.
    pub(crate) fn remember_decided(&mut self, decided: Decided) {
        self.history_bytes += decided.payload.len() + SLOT_BYTES;
        self.history.insert(decided.certificate.claim.sequence, decided);
        // What is above our newest snapshot is the only way forward for a peer that has just that snapshot: it goes only
        // when snapshots have failed for so long that memory is at stake.
        let stretch = |sequence: Sequence| match sequence {
            sequence if sequence > self.snapshot => HISTORY_STRETCH,
            sequence if self.fetched.is_some_and(|fetched| sequence > fetched) => HISTORY_STRETCH_HELD,
            _ => 1,
        };
        while let Some((oldest, _)) = self.history.first_key_value()
            && self.history_bytes > stretch(*oldest) * self.history_bytes_max
        {
            let (_, oldest) = self.history.pop_first().expect("there is an oldest");
            self.history_bytes -= oldest.payload.len() + SLOT_BYTES;
        }
    }

    pub(crate) fn count_history(&mut self) {
        self.history_bytes = self.history.values().map(|decided| decided.payload.len() + SLOT_BYTES).sum();
    }

    /// Sends again what a NEW-VIEW's adoption or a slot still waits for.
    pub(crate) fn ask_again(&mut self, now: Now, application: &mut dyn Application, out: &mut Output) {
        for hash in self.awaited_view_changes() {
            out.push(Action::Broadcast { message: Message::FetchViewChange { hash }, after: Ticket::ZERO });
        }
        self.try_adopt(now, application, out);
        let lacking: Vec<(Sequence, Hash)> = self
            .slots
            .range(self.delivered.next()..)
            .filter_map(|(sequence, slot)| {
                let digest = slot.decided.as_ref().map(|decided| decided.claim.digest).or(slot.digest())?;
                (!slot.holds(&digest)).then_some((*sequence, digest))
            })
            .take(STUCK_SLOTS_MAX)
            .collect();
        for (sequence, digest) in lacking {
            let message = Message::FetchPayload { sequence, digest };
            out.push(Action::Broadcast { message, after: Ticket::ZERO });
        }
    }
}
