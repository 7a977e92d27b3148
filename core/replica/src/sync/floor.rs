//! Collection floors: proposed by the root's primary, agreed on as root entries, and told to the engine in their order.
//!
//! A floor rests on what members said in exchanges, and members hear of each other at different times. So the primary waits
//! with what it has found until everybody has had time to hear the same; whoever then has not heard it does not prepare it.
//! Where members only crash nobody need look.

use crate::replica::Replica;
use crate::sync::{Open, SyncRoom};
use alloc::vec::Vec;
use bytes::Bytes;
use dwcp_base::{Micros, Now, decode, encode};
use dwcp_crdt::Floor;
use dwcp_log::RootEntry;
use dwcp_state::StateMachine;

/// Bytes of an encoded floor; far above what 31 members and their past incarnations take.
pub(crate) const FLOOR_BYTES_MAX: usize = 1 << 20;
/// Executed and not yet told to the engine, within one step.
const ARRIVED_MAX: usize = 1_024;

/// What is found and what was agreed.
#[derive(Debug, Default)]
pub(crate) struct Collecting {
    /// Found, and from when it may be proposed.
    found: Option<(Floor, Micros)>,
    /// Not looked for before.
    next_look: Micros,
    arrived: Vec<Bytes>,
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
        let origins = open.sync.peers().count() + 1;
        if open.sync.origins_count() != origins {
            return None;
        }
        let floor = open.sync.floor_candidate()?;
        // Each member asks every other once in a round; two rounds, for messages that were lost.
        let round = interval.times(origins as u64);
        self.collecting.found = Some((floor, now.mono.plus(round.times(2))));
        None
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

    pub(crate) fn apply_floor(&mut self, bytes: Bytes) {
        if let Some(room) = &mut self.sync {
            room.note_floor(bytes);
        }
    }
}
