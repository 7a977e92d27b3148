//! Collection floors: proposed by the root's primary, agreed on as root entries, and told to the engine in their order.
//!
//! A floor rests on what members said in exchanges, and members hear of each other at different times. So the primary waits
//! with what it has found until everybody has had time to hear the same; whoever then has not heard it does not prepare it.
//! Where members only crash nobody need look.
//!
//! Ends of origins go the same road: of those that contradicted themselves, and of past incarnations. Everybody looks there.

use crate::io::OrderOutcome;
use crate::replica::{Outbox, Replica};
use crate::sync::{Open, SyncRoom, origins};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::ToString;
use alloc::vec::Vec;
use bytes::Bytes;
use dwcp_base::{Micros, Now, Sequence, decode, encode};
use dwcp_crdt::{Floor, Origin};
use dwcp_log::{OperatorOrder, RootEntry, SignedExcludeOrder};
use dwcp_state::StateMachine;
use dwcp_sync::Cut;

/// Bytes of an encoded floor; far above what 31 members and their past incarnations take.
pub(crate) const FLOOR_BYTES_MAX: usize = 1 << 20;
/// Executed and not yet told to the engine, within one step.
const ARRIVED_MAX: usize = 1_024;

/// An end that is not agreed to is proposed again after this time at most.
const END_PATIENCE_MAX: Micros = Micros::from_millis(600_000);

/// What is found and what was agreed.
#[derive(Debug, Default)]
pub(crate) struct Collecting {
    /// Found, and from when it may be proposed.
    found: Option<(Floor, Micros)>,
    /// Not looked for before.
    next_look: Micros,
    arrived: Vec<Bytes>,
    /// Origins that have to end, and where; at most one entry for each.
    endings: BTreeMap<Origin, Ending>,
    next_end_look: Micros,
    ended: Vec<Bytes>,
}

/// Where an origin should end, when that may be proposed, and how long to wait after that.
#[derive(Clone, Copy, Debug)]
struct Ending {
    cut: Cut,
    from: Micros,
    patience: Micros,
}

impl SyncRoom {
    /// The next floor to propose, if one was found long enough ago. Only the primary asks.
    pub(super) fn next_floor(&mut self, now: Now) -> Option<Bytes> {
        let open = self.open.as_ref()?;
        if let Some((floor, from)) = &self.collecting.found
            && *from <= now.mono
        {
            let bytes = Bytes::from(encode(floor));
            self.collecting.found = None;
            return (bytes.len() <= FLOOR_BYTES_MAX).then_some(bytes);
        }
        if self.collecting.found.is_some() || now.mono < self.collecting.next_look {
            return None;
        }
        let interval = self.setup.timing.exchange_interval;
        self.collecting.next_look = now.mono.plus(interval);
        // A past incarnation whose end nobody decided may have changes on their way that know no floor.
        if open.sync.has_open_past() {
            return None;
        }
        let floor = open.sync.floor_candidate()?;
        // Each member asks every other once in a round; two rounds, for messages that were lost.
        let hearing = interval.times(2 * (open.sync.peers().count() as u64 + 1));
        self.collecting.found = Some((floor, now.mono.plus(hearing)));
        None
    }

    /// Where an origin should end that has to, once a quorum has stood there for as long as it takes to hear of it.
    pub(super) fn next_end(&mut self, now: Now, quorum: usize) -> Option<Bytes> {
        if now.mono < self.collecting.next_end_look {
            return None;
        }
        let interval = self.setup.timing.exchange_interval;
        self.collecting.next_end_look = now.mono.plus(interval);
        let open = self.open.as_ref()?;
        let hearing = interval.times(2 * (open.sync.peers().count() as u64 + 1));
        let standing = |origin| open.sync.standing(origin);
        let agreed = |cut: &Cut| open.sync.standing_alike(cut) >= quorum;
        let endings: BTreeMap<Origin, Cut> = open
            .sync
            .endings()
            .into_iter()
            .filter_map(|origin| Some((origin, standing(origin).filter(|cut| agreed(cut))?)))
            .collect();
        let seen = &mut self.collecting.endings;
        seen.retain(|origin, ending| endings.get(origin) == Some(&ending.cut));
        for (origin, cut) in endings {
            let patience = hearing;
            let from = now.mono.plus(hearing);
            seen.entry(origin).or_insert(Ending { cut, from, patience });
        }
        let ending = seen.values_mut().find(|ending| ending.from <= now.mono)?;
        // Should it not be agreed to, it is not asked again for longer and longer.
        ending.patience = ending.patience.times(2).min(END_PATIENCE_MAX);
        ending.from = now.mono.plus(ending.patience);
        Some(Bytes::from(encode(&ending.cut)))
    }

    /// The log decided where an origin ends.
    pub(crate) fn note_end(&mut self, bytes: Bytes) {
        if self.collecting.ended.len() < ARRIVED_MAX {
            self.collecting.ended.push(bytes);
        }
    }

    /// These have to end, by order.
    pub(crate) fn exclude(&mut self, origins: BTreeSet<Origin>) {
        if let Some(open) = &mut self.open {
            open.sync.exclude(origins);
        }
    }

    pub(super) fn end_origins(&mut self, open: &mut Open) {
        for bytes in core::mem::take(&mut self.collecting.ended) {
            let Ok(cut) = decode::<Cut>(&bytes) else { continue };
            self.collecting.endings.remove(&cut.origin);
            self.collecting.found = None;
            open.sync.set_cut(cut);
        }
    }

    /// May an origin end where it is proposed to, as far as this replica knows?
    pub(crate) fn judges_end(&self, bytes: &[u8]) -> Result<(), &'static str> {
        let cut = decode::<Cut>(bytes).map_err(|_| "a malformed end of an origin")?;
        match &self.open {
            Some(open) if !open.sync.may_end(&cut) => {
                Err("an origin's end where this replica does not stand")
            }
            _ => Ok(()),
        }
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
            self.collecting.found = None;
            // Those before it were committed while this replica took a snapshot of the root.
            self.transfer.wanted |= open.sync.commit_floor(floor).is_err();
        }
    }

    /// Does a proposed floor rest on what was said, as far as this replica heard?
    pub(crate) fn judges(&self, bytes: &[u8]) -> Result<(), &'static str> {
        let floor = decode::<Floor>(bytes).map_err(|_| "a malformed floor")?;
        match &self.open {
            Some(open) => {
                open.sync.judge_floor(&floor).map_err(|_| "a floor that rests on nothing heard here")
            }
            None => Ok(()),
        }
    }
}

impl<M: StateMachine> Replica<M> {
    /// The next collection floor, from the primary.
    pub(crate) fn next_floor(&mut self, now: Now) -> Option<RootEntry> {
        self.sync.as_mut()?.next_floor(now).map(RootEntry::Floor)
    }

    /// The end of an origin that has to end, from the primary.
    pub(crate) fn next_end(&mut self, now: Now) -> Option<RootEntry> {
        let quorum = self.pbft.quorum().q();
        self.sync.as_mut()?.next_end(now, quorum).map(RootEntry::Evidence)
    }

    /// An end was decided. The first about an origin stands; one of nobody, or that cannot be read, is a no-op.
    pub(crate) fn apply_end(&mut self, bytes: Bytes) {
        let Ok(cut) = decode::<Cut>(&bytes) else { return };
        let is_known = origins(&self.setup, &self.control).contains_key(&cut.origin);
        let of = |bytes: &Bytes| decode::<Cut>(bytes).map(|cut| cut.origin);
        let is_decided = self.control.ends.iter().any(|end| of(end) == Ok(cut.origin));
        if is_known && !is_decided {
            self.control.ends.push(bytes);
            self.tell_ends();
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
                self.tell_ends();
                OrderOutcome::Done { sequence }
            }
            Err(reason) => {
                self.count("exclude orders refused");
                OrderOutcome::Refused { reason: reason.to_string() }
            }
        };
        self.settle_order(&OperatorOrder::Exclude(signed.clone()), &outcome, out);
    }

    /// Has the room take note of all decisions; of those it knows nothing comes.
    pub(crate) fn tell_ends(&mut self) {
        if let Some(room) = &mut self.sync {
            self.control.ends.iter().for_each(|end| room.note_end(end.clone()));
            let excluded = self.control.excluded.iter();
            room.exclude(
                excluded.map(|(id, incarnation)| Origin::new(u32::from(id.0), incarnation.0)).collect(),
            );
        }
    }

    pub(crate) fn apply_floor(&mut self, bytes: Bytes) {
        if let Some(room) = &mut self.sync {
            room.note_floor(bytes);
        }
    }
}
