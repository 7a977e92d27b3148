//! Collection floors and ends of origins: found here, agreed to by a quorum ([`super::asking`]), ordered as root entries, and
//! told to the engine in their order.
//!
//! Origins end that contradicted themselves, that are past incarnations, and that the operator excludes.

use crate::io::OrderOutcome;
use crate::replica::{Outbox, Replica};
use crate::steering::Ending;
use crate::sync::engine::{Surroundings, writer};
use crate::sync::{Open, SyncRoom, origins};
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::ToString;
use alloc::vec::Vec;
use bytes::Bytes;
use dwcp_base::{Micros, Mutant, Now, ReplicaId, Sequence, decode, encode};
use dwcp_crdt::{Floor, FloorState, Missing, Origin};
use dwcp_log::{Agreed, Matter, OperatorOrder, SignedExcludeOrder, Stance};
use dwcp_state::StateMachine;
use dwcp_sync::{Cut, End, Stand};

/// Bytes of an encoded floor; far above what 31 members and their past incarnations take.
pub(crate) const FLOOR_BYTES_MAX: usize = 1 << 20;
/// Executed and not yet told to the engine, within one step.
const ARRIVED_MAX: usize = 1_024;

/// Intervals of exchanges that a frame waits for its floor before that counts as missed.
const FLOOR_LATE_INTERVALS: u64 = 4;

/// An origin that is over is halted after so many intervals of exchanges: when a quorum stands alike by then, and anyway. What
/// only one member has gets around until then.
const HALT_INTERVALS: (u64, u64) = (2, 8);
/// Ends asked about in vain that are remembered; a liar may name a new one each time.
const TRIED_MAX: usize = 64;

/// What was found, and what was agreed.
#[derive(Debug, Default)]
pub(crate) struct Collecting {
    /// None of a matter is looked for before.
    next_look: BTreeMap<Matter, Micros>,
    /// The origin whose end was asked for last: another has its turn next.
    last_end: Option<Origin>,
    /// Origins that have to end, and since when that is known.
    over: BTreeMap<Origin, Micros>,
    /// Where members said that their stores stand with one of them: at most one for each.
    pub(super) stands: BTreeMap<Origin, BTreeMap<ReplicaId, Cut>>,
    /// Ends that were asked about in vain. At most `TRIED_MAX`.
    tried: BTreeSet<Cut>,
    arrived: Vec<Bytes>,
    /// So many of the ends that were decided.
    ends_told: usize,
    /// Since when a frame has waited for a floor that the log did not bring, or that was missed and cannot be gone beyond.
    lacks_since: Option<Micros>,
}

impl SyncRoom {
    /// What to ask next of this matter, if anything is due.
    pub(super) fn find(
        &mut self,
        now: Now,
        matter: Matter,
        around: &Surroundings<'_>,
        unheard: bool,
    ) -> Option<Bytes> {
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
                let stands = |origin: Origin| {
                    let cut = open.sync.standing(origin)?;
                    let says = open.sync.stance(&cut, least(around, origin));
                    (unheard || says == Some(Stand::Ready)).then_some(cut)
                };
                let cuts: Vec<Cut> = open.sync.endings().into_iter().filter_map(stands).collect();
                let last = self.collecting.last_end;
                let own = *cuts.iter().find(|cut| Some(cut.origin) > last).or(cuts.first())?;
                self.collecting.last_end = Some(own.origin);
                let proof = open.sync.proof(own.origin).copied();
                let cut = if unheard { own } else { self.best_end(own) };
                Some(Bytes::from(encode(&End { cut, proof: proof.map(Box::new) })))
            }
        }
    }

    /// Of all places at which members say that their stores stand, the farthest that was not asked about in vain, as long as
    /// there is one. To the farthest honest one all can come. Liars may name others: each costs one question.
    fn best_end(&mut self, own: Cut) -> Cut {
        let told = self.collecting.stands.get(&own.origin);
        let all: Vec<Cut> =
            core::iter::once(own).chain(told.into_iter().flatten().map(|(_, cut)| *cut)).collect();
        if all.iter().all(|cut| self.collecting.tried.contains(cut)) {
            self.collecting.tried.retain(|cut| cut.origin != own.origin);
        }
        let tried = &self.collecting.tried;
        let worth = |cut: &&Cut| (!tried.contains(*cut), cut.last, cut.hash);
        all.iter().max_by_key(worth).copied().unwrap_or(own)
    }

    /// Does somebody say that his store is farther than this end? Then that is asked about first, once: what he alone has may
    /// have been acknowledged.
    pub(super) fn has_farther(&self, cut: &Cut) -> bool {
        let told = self.collecting.stands.get(&cut.origin);
        let is_farther = |told: &Cut| told.last > cut.last && !self.collecting.tried.contains(told);
        told.into_iter().flatten().any(|(_, told)| is_farther(told))
    }

    /// Takes note of where somebody's store stands. That does not change, so the first word counts, until that end was asked
    /// about in vain.
    pub(super) fn note_stand(&mut self, from: ReplicaId, cut: Cut) {
        let tried = &self.collecting.tried;
        let stands = self.collecting.stands.entry(cut.origin).or_default();
        if stands.get(&from).is_none_or(|told| tried.contains(told)) {
            stands.insert(from, cut);
        }
    }

    /// What this replica says to it, if anything; and where it stands itself.
    pub(super) fn judge(
        &self,
        matter: Matter,
        bytes: &[u8],
        around: &Surroundings<'_>,
    ) -> Option<(Stance, Bytes)> {
        let open = self.open.as_ref()?;
        match matter {
            Matter::Floor => {
                let floor = decode::<Floor>(bytes).ok()?;
                open.sync.judge_floor(&floor).is_ok().then_some((Stance::Agrees, Bytes::new()))
            }
            Matter::End => {
                let cut = decode::<End>(bytes).ok()?.cut;
                let stance = match open.sync.stance(&cut, least(around, cut.origin))? {
                    Stand::Ready => Stance::Agrees,
                    Stand::Beyond => Stance::Beyond,
                    Stand::Below => Stance::Below,
                    Stand::Elsewhere => Stance::Elsewhere,
                };
                let here = open.sync.standing(cut.origin)?;
                Some((stance, Bytes::from(encode(&here))))
            }
        }
    }

    /// This end was asked about, and what a quorum said of it does not suffice.
    pub(super) fn asked_in_vain(&mut self, cut: Cut) {
        let tried = &mut self.collecting.tried;
        if tried.len() == TRIED_MAX {
            tried.clear();
        }
        tried.insert(cut);
    }

    /// Hands nothing more to the store of origins that are to write no more, before anybody says where it stands with them: else
    /// the replicas go on applying frames that are still on their way while the end is decided, and once all have passed it nobody
    /// has a store to give to the others. What the log has of them is here by then, or waited for.
    pub(super) fn halt_what_is_over(&mut self, now: Now, around: &Surroundings<'_>, open: &mut Open) {
        let endings = open.sync.endings();
        if endings.is_empty() {
            self.collecting.over.clear();
            self.collecting.stands.clear();
            self.collecting.tried.clear();
            return;
        }
        self.collecting.over.retain(|origin, _| endings.contains(origin));
        self.collecting.stands.retain(|origin, _| endings.contains(origin));
        self.collecting.tried.retain(|cut| endings.contains(&cut.origin));
        if around.setup.mutants.on(Mutant::RoomEndMoves) {
            return;
        }
        let interval = self.setup.timing.exchange_interval;
        for origin in endings.into_iter().filter(|origin| !open.sync.is_frozen(*origin)).collect::<Vec<_>>() {
            let waited = now.mono.since(*self.collecting.over.entry(origin).or_insert(now.mono));
            let is_settled = writer(origin).is_some_and(|writer| around.control.is_settled(writer));
            let here = open.sync.head(origin).map_or(0, |head| head.last);
            let lacks = here < least(around, origin) && !open.sync.is_unreadable(origin);
            let is_whole = open.sync.needs().next().is_none();
            if !is_settled || !is_whole || lacks || waited < interval.times(HALT_INTERVALS.0) {
                continue;
            }
            let alike =
                open.sync.standing(origin).is_some_and(|cut| open.sync.standing_alike(&cut) >= around.quorum);
            if alike || waited >= interval.times(HALT_INTERVALS.1) {
                open.sync.halt(origin);
            }
        }
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

    /// The log committed one. Of those that find no room the control state says what they come to.
    pub(crate) fn note_floor(&mut self, bytes: Bytes) {
        if self.collecting.arrived.len() < ARRIVED_MAX {
            self.collecting.arrived.push(bytes);
        }
    }

    /// Tells the engine of each floor, and of what all come to where some were committed in slots that this replica skipped
    /// with a snapshot of the root.
    pub(super) fn commit_floors(&mut self, floors: &FloorState, open: &mut Open) {
        for bytes in core::mem::take(&mut self.collecting.arrived) {
            let Ok(floor) = decode::<Floor>(&bytes) else { continue };
            // Refused is one after others that are missing.
            let _ = open.sync.commit_floor(floor);
        }
        if floors.number() > newest_floor(open) {
            self.figures.floors_missed += floors.number() - newest_floor(open);
            open.sync.adopt_floors(floors.clone());
        }
    }

    /// A frame may wait for a floor that does not come: one that this replica's log does not have yet, or one that it missed and
    /// cannot go beyond, for what the floors after it cover is not here. Whoever is only late has a while to catch up.
    pub(super) fn look_for_missed_floors(&mut self, now: Now, open: &Open) {
        let newest = newest_floor(open);
        let is_short = open.sync.is_short_of_missed_floors();
        let is_missed = |missing| matches!(missing, Missing::Floor(number) if is_short || number > newest);
        if !open.store.missing().any(is_missed) {
            self.collecting.lacks_since = None;
            return;
        }
        let since = *self.collecting.lacks_since.get_or_insert(now.mono);
        if now.mono.since(since) >= self.setup.timing.exchange_interval.times(FLOOR_LATE_INTERVALS) {
            self.collecting.lacks_since = None;
            self.transfer.wanted = true;
        }
    }
}

/// The newest floor that the engine or the store knows.
fn newest_floor(open: &Open) -> u64 {
    open.sync.newest_floor().map_or(0, |floor| floor.number).max(open.store.floor_number())
}

/// What the log has of an origin.
fn least(around: &Surroundings<'_>, origin: Origin) -> u64 {
    if around.setup.mutants.on(Mutant::RoomEndBelowLog) {
        return 0;
    }
    writer(origin).map_or(0, |writer| around.control.logged(around.carried, writer))
}

impl<M: StateMachine> Replica<M> {
    /// Did a quorum agree, on the ground on which this is executed?
    fn is_agreed(&mut self, matter: Matter, agreed: &Agreed) -> bool {
        if self.setup.mutants.on(Mutant::RoomConsentUnjudged) {
            return true;
        }
        let judged = self.court().consents(matter, &agreed.bytes).judge(matter, agreed);
        if judged.is_err() {
            self.count("floors and ends without effect");
        }
        judged.is_ok()
    }

    /// An end was decided. The first about an origin stands; one of nobody, or that cannot be read, is a no-op.
    pub(crate) fn apply_end(&mut self, agreed: Agreed) {
        let Ok(End { cut, .. }) = decode::<End>(&agreed.bytes) else { return };
        let is_known = origins(&self.setup, &self.control).contains_key(&cut.origin);
        let of = |bytes: &Bytes| decode::<Cut>(bytes).map(|cut| cut.origin);
        let is_decided = self.control.ends.iter().any(|end| of(end) == Ok(cut.origin));
        if is_known && !is_decided && self.is_agreed(Matter::End, &agreed) {
            let convicted = self.court().convicted_by(&agreed.bytes).and_then(|_| writer(cut.origin));
            self.control.convicted.extend(convicted);
            self.control.ends.push(Bytes::from(encode(&cut)));
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
                self.control.excluded.push((sequence, signed.order.id, signed.order.incarnation));
                // What it wrote last may be part of the segment: where it ends is decided when that is known.
                if self.control.fold.segment().is_some() && self.control.steering.ending.is_none() {
                    self.control.steering.ending = Some(Ending::Excluded);
                }
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
                excluded.map(|(_, id, incarnation)| Origin::new(u32::from(id.0), incarnation.0)).collect(),
            );
        }
    }

    /// A floor was ordered. Which floor a number stands for is decided by the log alone: the first ordered right after the one
    /// before. A primary may ask for another before it has executed the first, and a replica whose store is behind would
    /// take that one for the next.
    pub(crate) fn apply_floor(&mut self, agreed: Agreed) {
        let Ok(floor) = decode::<Floor>(&agreed.bytes) else { return };
        if floor.number != self.control.floors.number().saturating_add(1) {
            return self.count("floors and ends without effect");
        }
        if !self.is_agreed(Matter::Floor, &agreed) {
            return;
        }
        self.control.floors.pass(floor);
        if let Some(room) = &mut self.sync {
            room.note_floor(agreed.bytes);
        }
    }
}
