//! The doors: a message came, time passed.

use crate::message::Message;
use crate::output::{Action, Reason};
use crate::state::Sync;
use bytes::Bytes;
use dwcp_base::{CodecError, Micros, Now};
use dwcp_crdt::OriginId;

impl Sync {
    /// Takes a message from a peer, who was proved by the link.
    pub fn on_message(&mut self, now: Now, from: OriginId, bytes: &Bytes) {
        let Some(peer) = self.peers.get_mut(&from) else {
            self.out.refuse(Some(from), Reason::Stranger);
            return;
        };
        peer.figures.bytes_in += bytes.len() as u64;
        let message = match Message::read(bytes) {
            Ok(message) => message,
            Err(CodecError::TooLong { .. }) => return self.out.refuse(Some(from), Reason::TooLong),
            Err(CodecError::Malformed | CodecError::NotCanonical) => {
                return self.out.refuse(Some(from), Reason::Malformed);
            }
        };
        match message {
            Message::Push { hops, frame } => self.on_push(now, from, hops, frame),
            Message::Ask { round, heads } => self.on_ask(now, from, round, &heads),
            Message::Answer { round, heads, load } => self.on_answer(now, from, round, &heads, load),
            Message::Rest { load } => self.on_rest(now, from, load),
            Message::Contradiction { proof } => self.on_contradiction(from, &proof),
            Message::Audit { work } => self.on_audit(now, from, work),
            Message::Copy { question } => self.on_copy(now, from, question),
            Message::Copied { round, copies } => self.on_copied(now, from, round, copies),
        }
    }

    /// Does what is due.
    pub fn on_time(&mut self, now: Now) {
        if now.mono >= self.next_exchange {
            // A little earlier or later each time, so that a cluster started at once does not breathe in step.
            let interval = self.timing.exchange_interval.0;
            let jitter = self.chance.below(interval / 4);
            self.next_exchange = now.mono.plus(Micros(interval - interval / 8 + jitter));
            self.name_withholders(now);
            self.name_overstaters(now);
            self.find_gone(now);
            for (need, donors) in self.needs.clone() {
                self.out.push(Action::NeedSnapshot { need, donors });
            }
            self.begin_exchanges(now);
        }
        if self.gap_due.is_some_and(|due| now.mono >= due) {
            self.gap_due = None;
            if self.has_gaps() {
                self.ask_next_free(now);
            }
        }
        if now.mono >= self.next_audit {
            self.begin_audit(now);
        }
        if self.repair.as_ref().is_some_and(|repair| now.mono >= repair.next_ask) {
            self.ask_for_copies(now);
        }
    }

    /// When `on_time` is due. Whatever came may have made it due sooner, so ask after each input.
    #[must_use]
    pub fn next_wakeup(&self) -> Micros {
        let gap_due = self.gap_due.unwrap_or(self.next_exchange);
        let repair = self.repair.as_ref().map_or(self.next_exchange, |repair| repair.next_ask);
        self.next_exchange.min(self.next_audit).min(gap_due).min(repair)
    }
}
