//! Collection floors and ends of origins: found by the root's primary, agreed to by a quorum, ordered as root entries, and told
//! to the engine in their order.
//!
//! Both rest on what members said in exchanges, and members hear of each other at different times; a liar may tell each of
//! them something else. So the primary asks first (`dwcp_log::consent`), and orders only what a quorum has signed. Nobody's
//! word, and nobody's silence, can make a slot of the root one that honest replicas do not prepare.
//!
//! Origins end that contradicted themselves, that are past incarnations, and that the operator excludes.

use crate::io::{Class, OrderOutcome};
use crate::replica::{Outbox, Replica};
use crate::sync::{Open, SyncRoom, origins};
use crate::wire::PeerMessage;
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::ToString;
use alloc::vec::Vec;
use bytes::Bytes;
use dwcp_base::{Hash, Micros, Mutant, Now, ReplicaId, Sequence, Signature, Ticket, decode, encode};
use dwcp_crdt::{Floor, Missing, Origin};
use dwcp_log::consent::{Ground, Question, consent};
use dwcp_log::{Agreed, Matter, OperatorOrder, RootEntry, SignedExcludeOrder};
use dwcp_state::StateMachine;
use dwcp_sync::Cut;

/// Bytes of an encoded floor; far above what 31 members and their past incarnations take.
pub(crate) const FLOOR_BYTES_MAX: usize = 1 << 20;
/// Executed and not yet told to the engine, within one step.
const ARRIVED_MAX: usize = 1_024;

/// Intervals of exchanges that a frame waits for its floor before that counts as missed.
const FLOOR_LATE_INTERVALS: u64 = 4;

/// What is asked and what was agreed.
#[derive(Debug, Default)]
pub(crate) struct Collecting {
    /// The question under way of each matter.
    asking: BTreeMap<Matter, Asking>,
    /// None of a matter is looked for before.
    next_look: BTreeMap<Matter, Micros>,
    /// The origin whose end was asked for last: another has its turn next.
    last_end: Option<Origin>,
    arrived: Vec<Bytes>,
    /// So many of the ends that were decided.
    ends_told: usize,
    /// Slots were skipped with a snapshot of the root, and no floor came since that follows the newest known here.
    may_lack: bool,
    /// The newest floor that came and could not be taken, for one before it is missing.
    refused: u64,
    /// Since when that is so, or a frame has waited for a floor that the log did not bring.
    lacks_since: Option<Micros>,
}

/// A question, and its times.
#[derive(Debug)]
struct Asking {
    question: Question,
    next_send: Micros,
    /// Given up then: whoever does not agree by now has heard something else.
    until: Micros,
}

impl SyncRoom {
    /// What to ask next of this matter, if anything is due.
    fn find(&mut self, now: Now, matter: Matter, quorum: usize, unheard: bool) -> Option<Bytes> {
        let open = self.open.as_ref()?;
        let next_look = self.collecting.next_look.entry(matter).or_default();
        if now.mono < *next_look {
            return None;
        }
        *next_look = now.mono.plus(self.setup.timing.exchange_interval);
        match matter {
            // A past incarnation whose end nobody decided may have changes on their way that know no floor.
            Matter::Floor if open.sync.has_open_past() => None,
            Matter::Floor => {
                let bytes = encode(&open.sync.floor_candidate()?);
                (bytes.len() <= FLOOR_BYTES_MAX).then(|| Bytes::from(bytes))
            }
            Matter::End => {
                // Where it stands here, once a quorum says that it stands there.
                let standing = |origin: Origin| {
                    open.sync
                        .standing(origin)
                        .filter(|cut| unheard || open.sync.standing_alike(cut) >= quorum)
                };
                let cuts: Vec<Cut> = open.sync.endings().into_iter().filter_map(standing).collect();
                let last = self.collecting.last_end;
                let cut = cuts.iter().find(|cut| Some(cut.origin) > last).or(cuts.first())?;
                self.collecting.last_end = Some(cut.origin);
                Some(Bytes::from(encode(cut)))
            }
        }
    }

    /// Does this replica find it true by itself?
    fn finds_true(&self, matter: Matter, bytes: &[u8]) -> bool {
        let Some(open) = &self.open else { return false };
        match matter {
            Matter::Floor => decode::<Floor>(bytes).is_ok_and(|floor| open.sync.judge_floor(&floor).is_ok()),
            Matter::End => decode::<Cut>(bytes).is_ok_and(|cut| open.sync.may_end(&cut)),
        }
    }

    /// How long the replicas are asked: each member asks every other once in a round of exchanges; two rounds, for
    /// messages that were lost, and one more for the question itself.
    fn hearing(&self) -> Micros {
        let peers = self.open.as_ref().map_or(0, |open| open.sync.peers().count() as u64);
        self.setup.timing.exchange_interval.times(3 * (peers + 1))
    }

    /// These have to end, by order.
    pub(crate) fn exclude(&mut self, origins: BTreeSet<Origin>) {
        if let Some(open) = &mut self.open {
            open.sync.exclude(origins);
        }
    }

    /// Tells the engine of the ends that the log has decided since it was told last. Of those of whom it knows nothing it is told
    /// again when there are others ([`Self::follow_members`]).
    pub(super) fn end_origins(&mut self, ends: &[Bytes], open: &mut Open) {
        for bytes in ends.iter().skip(self.collecting.ends_told) {
            let Ok(cut) = decode::<Cut>(bytes) else { continue };
            open.sync.set_cut(cut);
        }
        self.collecting.ends_told = ends.len();
    }

    pub(super) fn tell_all_ends(&mut self) {
        self.collecting.ends_told = 0;
    }

    /// The log committed one.
    pub(crate) fn note_floor(&mut self, bytes: Bytes) {
        if self.collecting.arrived.len() < ARRIVED_MAX {
            self.collecting.arrived.push(bytes);
        } else {
            self.transfer.wanted = true;
        }
    }

    pub(super) fn commit_floors(&mut self, open: &mut Open) {
        for bytes in core::mem::take(&mut self.collecting.arrived) {
            let Ok(floor) = decode::<Floor>(&bytes) else { continue };
            let (number, own) = (floor.number, floor.seen.prefix(self.me));
            let is_next = open.sync.commit_floor(floor).is_ok();
            if is_next {
                self.writing.on_covered(own);
            }
            if !is_next {
                self.collecting.refused = self.collecting.refused.max(number);
            }
            // Those before it were committed while this replica took a snapshot of the root.
            self.transfer.wanted |= !is_next;
            self.collecting.may_lack = !is_next;
        }
    }

    /// This replica's control state came from a peer: floors may be among the slots that it stands for.
    pub(crate) fn note_skipped(&mut self) {
        self.collecting.may_lack = true;
    }

    /// Whoever took a snapshot of the root may lack floors that no slot after it repeats. The next floor would tell, but
    /// none need come: nothing may be written, or what is written may wait here for the floor that is missing, so that
    /// this replica cannot acknowledge it. Whoever is only late has a while to catch up.
    pub(super) fn look_for_missed_floors(&mut self, now: Now, open: &Open) {
        let newest = open.sync.newest_floor().map_or(0, |floor| floor.number).max(open.store.floor_number());
        let is_missed = |missing| matches!(missing, Missing::Floor(number) if number > newest);
        if !self.collecting.may_lack && !open.store.missing().any(is_missed) {
            self.collecting.lacks_since = None;
            return;
        }
        let since = *self.collecting.lacks_since.get_or_insert(now.mono);
        if now.mono.since(since) >= self.setup.timing.exchange_interval.times(FLOOR_LATE_INTERVALS) {
            self.collecting.lacks_since = None;
            self.transfer.wanted = true;
        }
    }

    /// A store came with all floors up to this one. Those that came while it was on its way may go beyond it.
    pub(super) fn has_floors(&mut self, number: u64) {
        self.collecting.may_lack = self.collecting.refused > number;
        self.transfer.wanted = self.collecting.may_lack;
    }
}

impl<M: StateMachine> Replica<M> {
    /// From the primary: floors and ends that a quorum has agreed to. Asks for what is not agreed to yet.
    pub(crate) fn next_agreed(&mut self, now: Now, out: &mut Outbox) -> Vec<RootEntry> {
        [Matter::End, Matter::Floor]
            .into_iter()
            .filter_map(|matter| {
                let agreed = Box::new(self.ask_for(now, matter, out)?);
                Some(match matter {
                    Matter::Floor => RootEntry::Floor(agreed),
                    Matter::End => RootEntry::Evidence(agreed),
                })
            })
            .collect()
    }

    fn ask_for(&mut self, now: Now, matter: Matter, out: &mut Outbox) -> Option<Agreed> {
        let (quorum, me) = (self.pbft.quorum().q(), self.setup.me);
        let ground = self.court().consents().ground();
        let room = self.sync.as_mut()?;
        room.collecting
            .asking
            .retain(|_, asking| asking.question.ground == ground && now.mono < asking.until);
        if !room.collecting.asking.contains_key(&matter) {
            let bytes = room.find(now, matter, quorum, self.setup.mutants.on(Mutant::RoomAsksUnheard))?;
            let (question, until) = (Question::new(bytes, ground), now.mono.plus(room.hearing()));
            room.collecting.asking.insert(matter, Asking { question, next_send: now.mono, until });
        }
        let asking = room.collecting.asking.get_mut(&matter)?;
        if !asking.question.consents.contains_key(&me) && self.pbft.is_voter() {
            let content = asking.question.content;
            let signature = consent(self.cluster, matter, ground, content, me, &*self.crypto);
            asking.question.consents.insert(me, signature);
        }
        let enough = if self.setup.mutants.on(Mutant::RoomOrdersUnasked) { 0 } else { quorum };
        if let Some(agreed) = asking.question.agreed(enough) {
            room.collecting.asking.remove(&matter);
            return Some(agreed);
        }
        if asking.next_send <= now.mono {
            asking.next_send = now.mono.plus(room.setup.timing.exchange_interval);
            let bytes = asking.question.bytes.clone();
            self.send_all(&PeerMessage::SyncAsk { matter, ground, bytes }, Class::Bulk, Ticket::ZERO, out);
        }
        None
    }

    /// The primary asks. Whoever cannot agree yet says nothing: it is asked again.
    pub(crate) fn on_ask(
        &mut self,
        from: ReplicaId,
        matter: Matter,
        ground: Ground,
        bytes: &Bytes,
        out: &mut Outbox,
    ) {
        if bytes.len() > FLOOR_BYTES_MAX {
            return self.refuse_peer(from, "a question that is too long", out);
        }
        let asks = self.pbft.is_active() && self.pbft.primary() == from && self.pbft.is_voter();
        let blind = match matter {
            Matter::Floor => self.setup.mutants.on(Mutant::RoomFloorUnchecked),
            Matter::End => self.setup.mutants.on(Mutant::RoomEndUnchecked),
        };
        let agrees = || blind || self.sync.as_ref().is_some_and(|room| room.finds_true(matter, bytes));
        if !asks || self.court().consents().ground() != ground || !agrees() {
            return self.count("questions not answered");
        }
        let content = Hash::of(bytes);
        let signature = consent(self.cluster, matter, ground, content, self.setup.me, &*self.crypto);
        let answer = PeerMessage::SyncConsent { matter, ground, content, signature };
        self.send_one(from, &answer, Class::Request, out);
    }

    /// Somebody agrees.
    pub(crate) fn on_consent(
        &mut self,
        from: ReplicaId,
        (matter, ground, content): (Matter, Ground, Hash),
        signature: Signature,
        out: &mut Outbox,
    ) {
        let asked = |asking: &Asking| {
            let question = &asking.question;
            (question.ground, question.content) == (ground, content) && !question.consents.contains_key(&from)
        };
        let asking = self.sync.as_ref().and_then(|room| room.collecting.asking.get(&matter));
        if !asking.is_some_and(asked) || self.court().consents().ground() != ground {
            return; // Late, or twice.
        }
        if !self.court().consents().counts(matter, content, from, &signature) {
            return self.refuse_peer(from, "a consent that does not count", out);
        }
        if let Some(asking) = self.sync.as_mut().and_then(|room| room.collecting.asking.get_mut(&matter)) {
            asking.question.consents.insert(from, signature);
        }
    }

    /// Did a quorum agree, on the ground on which this is executed?
    fn is_agreed(&mut self, matter: Matter, agreed: &Agreed) -> bool {
        if self.setup.mutants.on(Mutant::RoomConsentUnjudged) {
            return true;
        }
        let judged = self.court().consents().judge(matter, agreed);
        if judged.is_err() {
            self.count("floors and ends without effect");
        }
        judged.is_ok()
    }

    /// An end was decided. The first about an origin stands; one of nobody, or that cannot be read, is a no-op.
    pub(crate) fn apply_end(&mut self, agreed: Agreed) {
        let Ok(cut) = decode::<Cut>(&agreed.bytes) else { return };
        let is_known = origins(&self.setup, &self.control).contains_key(&cut.origin);
        let of = |bytes: &Bytes| decode::<Cut>(bytes).map(|cut| cut.origin);
        let is_decided = self.control.ends.iter().any(|end| of(end) == Ok(cut.origin));
        if is_known && !is_decided && self.is_agreed(Matter::End, &agreed) {
            self.control.ends.push(agreed.bytes);
        }
    }

    /// The operator has state sync go on without a member. Where it ends is then decided as for one that lost its disk.
    pub(crate) fn apply_exclude(
        &mut self,
        signed: &SignedExcludeOrder,
        sequence: Sequence,
        out: &mut Outbox,
    ) {
        let (key, ..) = signed.signature_item(self.cluster);
        let judged = if self.is_admin(&key) {
            self.control.judge_exclude(&signed.order)
        } else {
            Err("the order is not signed by an admin of the registry")
        };
        let outcome = match judged {
            Ok(()) => {
                self.control.excluded.push((signed.order.id, signed.order.incarnation));
                self.tell_exclusions();
                OrderOutcome::Done { sequence }
            }
            Err(reason) => {
                self.count("exclude orders refused");
                OrderOutcome::Refused { reason: reason.to_string() }
            }
        };
        self.settle_order(&OperatorOrder::Exclude(signed.clone()), &outcome, out);
    }

    /// Has the room take note of whom the operator excludes.
    pub(crate) fn tell_exclusions(&mut self) {
        if let Some(room) = &mut self.sync {
            let excluded = self.control.excluded.iter();
            room.exclude(
                excluded.map(|(id, incarnation)| Origin::new(u32::from(id.0), incarnation.0)).collect(),
            );
        }
    }

    /// A floor was ordered. Which floor a number stands for is decided by the log alone: the first ordered right after the one
    /// before. A primary may ask for another before it has executed the first, and a replica whose store is behind would
    /// take that one for the next.
    pub(crate) fn apply_floor(&mut self, agreed: Agreed) {
        let Ok(floor) = decode::<Floor>(&agreed.bytes) else { return };
        if floor.number != self.control.floor.saturating_add(1) {
            return self.count("floors and ends without effect");
        }
        if !self.is_agreed(Matter::Floor, &agreed) {
            return;
        }
        self.control.floor = floor.number;
        if let Some(room) = &mut self.sync {
            room.note_floor(agreed.bytes);
        }
    }
}
