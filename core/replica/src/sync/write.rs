//! Writing: which road a frame takes in which mode, and when its writer is told.
//!
//! | mode | told when |
//! |---|---|
//! | datacenter | the log committed it and it was applied here |
//! | internet | it is durable here, or on `wait` nodes |
//! | hybrid | as datacenter; when the log does not answer within the fast path's patience, as internet |
//!
//! The frame is durable here before anything else happens to it, whatever the road. One that the log did not take in time
//! is never taken back: it spreads by gossip, and the log may deliver it later.

use crate::io::ClientId;
use crate::replica::Outbox;
use crate::sync::face::{Road, SyncReply, SyncWritten};
use crate::sync::values::Write;
use crate::sync::{Open, SyncRoom};
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use dwcp_base::{Micros, Mutant, Mutants, NetworkMode, Now, Ticket};

/// Writes that wait for their answer.
const WAITING_MAX: usize = 4_096;
/// Patience of a write, in milliseconds: at most, and of one that does not say.
const TIMEOUT_MS: (u32, u32) = (60_000, 10_000);
/// How often peers are asked whether they have what somebody waits for: at first, and at most.
const ASK: (Micros, Micros) = (Micros::from_millis(5), Micros::from_millis(500));

/// A write whose writer waits.
#[derive(Clone, Copy, Debug)]
struct Pending {
    client: ClientId,
    id: u64,
    last: u64,
    ticket: Ticket,
    since: Micros,
    until: Micros,
    wait: u8,
    /// Told when the log has it.
    wants_log: bool,
    /// Hybrid: when it takes the other road.
    falls_back: Option<Micros>,
}

/// See the module. At most `WAITING_MAX`.
#[derive(Debug, Default)]
pub(crate) struct Writing {
    pending: BTreeMap<u64, Pending>,
    ask_at: Option<Micros>,
    ask_pause: Micros,
}

impl Writing {
    pub(crate) fn gone(&mut self, client: ClientId) {
        self.pending.retain(|_, pending| pending.client != client);
    }

    /// Somebody new waits: peers are asked soon, and not later than they would have been without him.
    fn ask_soon(&mut self, now: Now) {
        self.ask_pause = ASK.0;
        self.ask_at = self.ask_at.map(|at| at.min(now.mono.plus(ASK.0)));
    }

    pub(crate) fn next_wakeup(&self) -> Micros {
        let due = |pending: &Pending| pending.falls_back.unwrap_or(Micros::NEVER).min(pending.until);
        let due = self.pending.values().map(due).min().unwrap_or(Micros::NEVER);
        due.min(self.ask_at.unwrap_or(Micros::NEVER))
    }
}

/// What a write is told to do.
pub(crate) struct Order {
    pub(crate) client: ClientId,
    pub(crate) id: u64,
    pub(crate) wait: u8,
    pub(crate) timeout_ms: u32,
    pub(crate) mode: NetworkMode,
    pub(crate) nodes: usize,
    pub(crate) fast_path: Micros,
}

impl SyncRoom {
    /// Writes, or says why not.
    pub(crate) fn write(&mut self, now: Now, order: &Order, writes: &[Write], out: &mut Outbox) {
        let (client, id) = (order.client, order.id);
        let Some(mut open) = self.open.take() else {
            return Self::refuse(client, id, NOT_A_MEMBER, true, out);
        };
        let outcome = self.try_write(now, order, writes, &mut open);
        self.open = Some(open);
        match outcome {
            Ok(Some(pending)) => {
                self.writing.pending.insert(pending.last, pending);
            }
            Ok(None) => {
                let nothing = SyncWritten { road: Road::Nothing, last: 0, nodes: 1, latency_us: 0 };
                Self::reply(client, id, SyncReply::Written(nothing), out);
            }
            Err(reason) => {
                self.figures.writes_refused += 1;
                Self::refuse(client, id, reason, true, out);
            }
        }
    }

    fn try_write(
        &mut self,
        now: Now,
        order: &Order,
        writes: &[Write],
        open: &mut Open,
    ) -> Result<Option<Pending>, String> {
        for write in writes {
            if let Some(prefix) = self.setup.ordered_prefix(&write.key) {
                return Err(format!(
                    "{:?} is below the ordered prefix {prefix:?}: write it with `dwcp kv`",
                    write.key
                ));
            }
        }
        let wait = order.wait.max(1);
        if usize::from(wait) > order.nodes {
            return Err(format!("wait for {wait} of {} nodes: there are not so many", order.nodes));
        }
        if self.writing.pending.len() >= WAITING_MAX {
            return Err("too many writes wait: try again soon".to_string());
        }
        // There is no other road: what is written must be able to take this one.
        if order.mode == NetworkMode::Datacenter && !self.ordering.has_room(self.me) {
            return Err("as many convergent frames wait for the log as may: try again soon".to_string());
        }
        let written = open.sync.may_write().map_err(|refused| refused.to_string())?;
        let bundle = open.store.write(writes, written, now.wall_ms).map_err(|refused| refused.to_string())?;
        let Some(bundle) = bundle else { return Ok(None) };
        let by_log = order.mode != NetworkMode::Internet;
        let made = if by_log { open.sync.write_for_log(&bundle) } else { open.sync.write(&bundle) };
        let made = made.expect("whoever may write has his bundle taken");
        self.changed.extend(bundle.deltas().iter().map(|delta| delta.key.clone()));
        let until = now.mono.plus(crate::sync::engine::at_most(order.timeout_ms, TIMEOUT_MS.0, TIMEOUT_MS.1));
        let mut falls_back =
            (order.mode == NetworkMode::Hybrid).then(|| now.mono.plus(order.fast_path).min(until));
        if by_log {
            self.feed(now.mono, until, open);
            if !self.is_fed(made.last) {
                // The log has no room for it: in hybrid mode the other road is open, and nothing is lost.
                falls_back = (order.mode == NetworkMode::Hybrid).then_some(now.mono);
            }
        }
        self.figures.frames_written += 1;
        self.writing.ask_soon(now);
        Ok(Some(Pending {
            client: order.client,
            id: order.id,
            last: made.last,
            ticket: made.ticket,
            since: now.mono,
            until,
            wait,
            wants_log: by_log,
            falls_back,
        }))
    }

    /// Tells writers what became of their frames.
    pub(super) fn settle_writes(&mut self, now: Now, mutants: Mutants, out: &mut Outbox) {
        let unsynced = mutants.on(Mutant::RoomToldBeforeSync);
        let gaps = mutants.on(Mutant::RoomToldWithGap);
        self.feed_again(now);
        let Some(open) = self.open.as_mut().filter(|_| !self.writing.pending.is_empty()) else {
            self.writing.ask_at = None;
            return;
        };
        let (durable, logged) = (open.sync.durable(), self.own.logged);
        let mut asks = false;
        let mut told = Vec::new();
        for (last, pending) in &mut self.writing.pending {
            if pending.falls_back.is_some_and(|at| at <= now.mono) && *last > logged {
                (pending.falls_back, pending.wants_log) = (None, false);
                open.sync.push(*last);
                self.figures.fallbacks += 1;
            }
            let is_durable = pending.ticket <= durable || unsynced;
            let nodes = if is_durable { 1 + open.sync.acked_by(*last) } else { 0 };
            let nodes = u8::try_from(nodes).unwrap_or(u8::MAX);
            let latency_us = now.mono.since(pending.since).0;
            let done = |road| SyncReply::Written(SyncWritten { road, last: *last, nodes, latency_us });
            let has_it = *last <= logged || (gaps && self.own.has(*last, *last));
            if is_durable && has_it {
                told.push((*last, done(Road::Log)));
            } else if is_durable && !pending.wants_log && nodes >= pending.wait {
                told.push((*last, done(Road::Gossip)));
            } else if pending.until <= now.mono {
                told.push((*last, late(pending, nodes)));
            } else {
                asks |= is_durable && !pending.wants_log;
            }
        }
        for (last, reply) in told {
            let Some(pending) = self.writing.pending.remove(&last) else { continue };
            if let SyncReply::Written(written) = &reply {
                self.figures.completed(now, written.latency_us);
            }
            Self::reply(pending.client, pending.id, reply, out);
        }
        self.ask_who_has_it(now, asks);
    }

    /// There was no room for a frame whose writer waits, or one before it left in vain.
    fn feed_again(&mut self, now: Now) {
        let waits = self.writing.pending.values().filter(|pending| pending.wants_log);
        let Some((last, until)) = waits.map(|pending| (pending.last, pending.until)).next_back() else {
            return;
        };
        if !self.is_fed(last)
            && let Some(open) = self.open.take()
        {
            self.feed(now.mono, until, &open);
            self.open = Some(open);
        }
    }

    fn ask_who_has_it(&mut self, now: Now, asks: bool) {
        let (Some(open), true) = (self.open.as_mut(), asks) else {
            self.writing.ask_at = None;
            return;
        };
        match self.writing.ask_at {
            None => {
                self.writing.ask_pause = ASK.0;
                self.writing.ask_at = Some(now.mono.plus(ASK.0));
            }
            Some(at) if at <= now.mono => {
                // Where all answers are still under way, this looks again soon.
                if open.sync.ask_everybody(now) {
                    self.writing.ask_pause = self.writing.ask_pause.times(2).min(ASK.1);
                }
                self.writing.ask_at = Some(now.mono.plus(self.writing.ask_pause));
            }
            Some(_) => {}
        }
    }
}

pub(super) const NOT_A_MEMBER: &str = "this node's incarnation is not in force yet: wait until `dwcp status` shows it as a member, or ask another";

fn late(pending: &Pending, nodes: u8) -> SyncReply {
    let reason = if pending.wants_log {
        format!(
            "written here as change {} and not ordered in time: it will spread without the log; do not repeat it",
            pending.last
        )
    } else {
        format!(
            "written as change {} and durable on {nodes} of {} nodes in time: it will spread; do not repeat it",
            pending.last, pending.wait
        )
    };
    SyncReply::Refused { reason, definite: false }
}
