//! Frames of convergent state in the ordered log: how they are told from clients' frames, who waits to be ordered, and
//! what happens when one was.
//!
//! Such a frame stands among the clients' frames of a batch. It is signed by its origin, so it needs no session; it runs no
//! command and touches nothing that a digest covers. It is not the root's duty: nobody is suspected because one waits, for
//! it reaches everybody without the log too. Delivered twice, or by gossip before, it is a no-op.

use crate::control::Control;
use crate::io::{Class, Effect};
use crate::replica::Outbox;
use crate::sync::engine::{Surroundings, writer};
use crate::sync::{Open, SyncRoom};
use crate::wire::PeerMessage;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use bytes::Bytes;
use dwcp_base::{ClusterId, Hash, Micros, Now, PublicKey, ReplicaId, Signature, SigningKind, Ticket};
use dwcp_base::{encode, signing_hash};
use dwcp_crdt::Origin;
use dwcp_crdt::limits::DRIFT_MAX_MS;
use dwcp_state::Carried;
use dwcp_sync::limits::FRAME_BYTES_MAX;
use dwcp_sync::{Header, Received};

/// The first bytes of such a frame; no client's frame begins like this.
const MARK: [u8; 4] = [0xd5, b'S', b'Y', 1];
/// Whose frames they are, where deferred frames are counted by client.
pub(crate) const TAG: [u8; 16] = *b"convergent state";
/// Frames that wait, of one origin and in all, and bytes of all.
const ORIGIN_FRAMES_MAX: usize = 256;
const FRAMES_MAX: usize = 2_048;
const BYTES_MAX: usize = 32 << 20;
/// How long somebody else's frame waits here.
const PATIENCE: Micros = Micros::from_millis(10_000);
/// When a frame is sent again to whoever orders: at first, and at most.
const RESEND: (Micros, Micros) = (Micros::from_millis(200), Micros::from_millis(2_000));

pub(crate) fn is_sync(frame: &[u8]) -> bool {
    frame.starts_with(&MARK)
}

/// A frame as the log carries it.
#[must_use]
pub fn wrap(frame: &[u8]) -> Bytes {
    let mut bytes = Vec::with_capacity(MARK.len() + frame.len());
    bytes.extend_from_slice(&MARK);
    bytes.extend_from_slice(frame);
    Bytes::from(bytes)
}

/// What the log carries, without its bundle being read.
pub(crate) fn unwrap(frame: &Bytes) -> Option<Received> {
    Received::read(frame.slice(MARK.len()..)).ok()
}

/// Own changes, as far as the log has them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Own {
    /// All up to this one: every change before one that is acknowledged must survive this disk as well.
    pub(crate) logged: u64,
    /// What else there is, ascending.
    stretches: Vec<(u64, u64)>,
}

impl Own {
    /// Nothing when it is what it was.
    fn news(&self, around: &Surroundings<'_>, me: Origin) -> Option<Self> {
        let me = writer(me)?;
        let (logged, stretches) = (around.control.logged(around.carried, me), around.carried.of(me));
        (logged != self.logged || stretches != self.stretches)
            .then(|| Self { logged, stretches: stretches.to_vec() })
    }

    /// Is there something here that was there before?
    fn lost_since(&self, before: &Self) -> bool {
        self.logged < before.logged || !before.stretches.iter().all(|(first, last)| self.has(*first, *last))
    }

    pub(super) fn has(&self, first: u64, last: u64) -> bool {
        last <= self.logged || self.stretches.iter().any(|(from, to)| *from <= first && last <= *to)
    }
}

/// What must hold of a frame that is proposed: its origin is a member in force, its clock not far ahead, and this its
/// signature.
///
/// # Errors
/// Why it must not be ordered.
pub(crate) fn signature_item(
    control: &Control,
    cluster: ClusterId,
    now: Now,
    frame: &Bytes,
) -> Result<(PublicKey, Hash, Signature), &'static str> {
    let received = unwrap(frame).ok_or("a malformed convergent frame")?;
    let header = received.header();
    // Twice what the proposer allows: its clock and ours differ.
    if header.hlc.ms() > now.wall_ms.saturating_add(2 * DRIFT_MAX_MS) {
        return Err("a convergent frame from the future");
    }
    let Origin { id, incarnation } = header.origin;
    let member = u8::try_from(id.0).ok().and_then(|id| control.configurations.latest().member(ReplicaId(id)));
    let member = member.filter(|member| member.incarnation == incarnation);
    let key = member.ok_or("a convergent frame of nobody in force")?.vote_key;
    let message = signing_hash(SigningKind::SyncFrame, cluster, &received.hash().0);
    Ok((key, message, received.signed().signature))
}

/// One frame that waits to be ordered.
#[derive(Debug)]
struct Waiting {
    bytes: Bytes,
    hash: Hash,
    origin: Origin,
    first: u64,
    /// Ours: the ticket of its record, while that is not durable, so nobody may see it.
    unsynced: Option<Ticket>,
    ours: bool,
    proposed_in: Option<(u64, u64)>,
    until: Micros,
    send_at: Micros,
    pause: Micros,
    sent_to: Option<ReplicaId>,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Ordering {
    frames: BTreeMap<u64, Waiting>,
    by_hash: BTreeMap<Hash, u64>,
    next: u64,
    bytes: usize,
    /// Own frames up to this one wait here, or did.
    fed: u64,
    /// Executed and not yet given to the engine. Bounded by what one step executes.
    arrived: Vec<(Header, Bytes)>,
}

impl Ordering {
    fn insert(&mut self, waiting: Waiting) -> bool {
        let of_origin = self.frames.values().filter(|frame| frame.origin == waiting.origin).count();
        if of_origin >= ORIGIN_FRAMES_MAX
            || self.frames.len() >= FRAMES_MAX
            || self.bytes + waiting.bytes.len() > BYTES_MAX
            || self.by_hash.contains_key(&waiting.hash)
        {
            return false;
        }
        self.bytes += waiting.bytes.len();
        self.by_hash.insert(waiting.hash, self.next);
        self.frames.insert(self.next, waiting);
        self.next += 1;
        true
    }

    /// Is there room for one more frame of this origin, whatever its size?
    pub(crate) fn has_room(&self, origin: Origin) -> bool {
        let of_origin = self.frames.values().filter(|frame| frame.origin == origin).count();
        of_origin < ORIGIN_FRAMES_MAX
            && self.frames.len() < FRAMES_MAX
            && self.bytes + MARK.len() + FRAME_BYTES_MAX <= BYTES_MAX
    }

    /// An own frame, whose record has this ticket. False when too many wait.
    pub(crate) fn add_own(
        &mut self,
        origin: Origin,
        first: u64,
        frame: &[u8],
        ticket: Ticket,
        now: Micros,
        until: Micros,
    ) -> bool {
        let bytes = wrap(frame);
        let hash = Hash::of(&bytes);
        if self.by_hash.contains_key(&hash) {
            return true;
        }
        self.insert(Waiting {
            bytes,
            hash,
            origin,
            first,
            unsynced: Some(ticket),
            ours: true,
            proposed_in: None,
            until,
            send_at: now,
            pause: RESEND.0,
            sent_to: None,
        })
    }

    fn remove(&mut self, hash: &Hash) -> Option<Waiting> {
        let frame = self.frames.remove(&self.by_hash.remove(hash)?)?;
        self.bytes -= frame.bytes.len();
        Some(frame)
    }

    /// An own frame that waits no longer, though the log has not got it, is offered again with the next one.
    fn give_up(&mut self, hash: &Hash) {
        if let Some(frame) = self.remove(hash).filter(|frame| frame.ours) {
            self.fed = self.fed.min(frame.first - 1);
        }
    }

    pub(crate) fn on_durable(&mut self, ticket: Ticket) {
        for frame in self.frames.values_mut() {
            frame.unsynced = frame.unsynced.filter(|unsynced| *unsynced > ticket);
        }
    }

    /// Oldest first, what was not proposed in this turn.
    pub(crate) fn next_batch(&mut self, turn: (u64, u64), bytes_max: usize, frames_max: usize) -> Vec<Bytes> {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        let ready = |frame: &&mut Waiting| frame.unsynced.is_none() && frame.proposed_in != Some(turn);
        for frame in self.frames.values_mut().filter(ready) {
            if !batch.is_empty() && (bytes + frame.bytes.len() > bytes_max || batch.len() >= frames_max) {
                break;
            }
            frame.proposed_in = Some(turn);
            bytes += frame.bytes.len();
            batch.push(frame.bytes.clone());
        }
        batch
    }

    pub(crate) fn put_back(&mut self, batch: &[Bytes]) {
        for bytes in batch.iter().filter(|bytes| is_sync(bytes)) {
            if let Some(frame) = self.by_hash.get(&Hash::of(bytes)).and_then(|id| self.frames.get_mut(id)) {
                frame.proposed_in = None;
            }
        }
    }

    pub(crate) fn next_wakeup(&self) -> Micros {
        let due = |frame: &Waiting| {
            let send = if frame.ours && frame.unsynced.is_none() { frame.send_at } else { Micros::NEVER };
            send.min(frame.until)
        };
        self.frames.values().map(due).min().unwrap_or(Micros::NEVER)
    }

    pub(crate) fn len(&self) -> usize {
        self.frames.len()
    }
}

impl SyncRoom {
    /// See [`Ordering::next_batch`].
    pub(crate) fn next_batch(&mut self, turn: (u64, u64), bytes_max: usize, frames_max: usize) -> Vec<Bytes> {
        self.ordering.next_batch(turn, bytes_max, frames_max)
    }

    /// They were not proposed after all.
    pub(crate) fn put_back(&mut self, batch: &[Bytes]) {
        self.ordering.put_back(batch);
    }

    /// The log executed it. What the engine makes of it comes with the next `drive`.
    pub(crate) fn note_ordered(&mut self, header: Header, frame: Bytes) {
        self.ordering.arrived.push((header, frame));
    }

    pub(super) fn deliver_ordered(&mut self, now: Now, open: &mut Open) {
        for (header, bytes) in core::mem::take(&mut self.ordering.arrived) {
            self.ordering.remove(&Hash::of(&bytes));
            if header.origin != self.me {
                let known = open.sync.head(header.origin).is_some_and(|head| head.last >= header.last);
                self.figures.frames_ordered_late += u64::from(known);
            }
            self.figures.frames_ordered += 1;
            open.sync.deliver_from_log(now, bytes.slice(MARK.len()..));
        }
    }

    /// Somebody wants his frame ordered.
    pub(crate) fn on_order(
        &mut self,
        now: Now,
        (control, carried): (&Control, &Carried),
        cluster: ClusterId,
        frame: Bytes,
    ) -> Result<(), &'static str> {
        let hash = Hash::of(&frame);
        if self.ordering.by_hash.contains_key(&hash) {
            return Ok(());
        }
        if !is_sync(&frame) {
            return Err("no convergent frame");
        }
        let (key, message, signature) = signature_item(control, cluster, now, &frame)?;
        let received = unwrap(&frame).ok_or("a malformed convergent frame")?;
        let Header { origin, first, last, .. } = *received.header();
        let writer = writer(origin).ok_or("a convergent frame of nobody in force")?;
        if control.over_since(writer).is_some() {
            return Err("a convergent frame of nobody in force");
        }
        if control.covers(writer) >= last {
            return Err("a convergent frame that everybody has");
        }
        if carried.has(writer, first, last) {
            return Ok(()); // Sent again before its origin knew.
        }
        if received.header().hlc.ms() > now.wall_ms.saturating_add(DRIFT_MAX_MS) {
            return Err("a convergent frame from the future");
        }
        if !self.crypto.verify(&key, &message, &signature) {
            return Err("a convergent frame with a bad signature");
        }
        self.ordering.insert(Waiting {
            bytes: frame,
            hash,
            origin,
            first,
            unsynced: None,
            ours: false,
            proposed_in: None,
            until: now.mono.plus(PATIENCE),
            send_at: Micros::NEVER,
            pause: RESEND.0,
            sent_to: None,
        });
        Ok(())
    }

    /// Offers own frames to the log, in line: those that were written for the other road alone as well, or that it did not
    /// take in time. What comes after them counts for little without them.
    pub(super) fn feed(&mut self, now: Micros, until: Micros, open: &Open) {
        let fed = self.ordering.fed.max(self.own.logged);
        for (first, last, ticket, frame) in open.sync.own_after(fed) {
            if !self.own.has(first, last) && !self.ordering.add_own(self.me, first, frame, ticket, now, until)
            {
                return;
            }
            self.ordering.fed = last;
        }
    }

    /// What the log has of own changes now. Where it took some back, a segment having been cut below them, they are offered again.
    pub(super) fn note_own(&mut self, around: &Surroundings<'_>) {
        let Some(own) = self.own.news(around, self.me) else { return };
        if own.lost_since(&self.own) {
            self.ordering.fed = 0;
        }
        self.own = own;
    }

    /// Is this own frame offered to the log, and all before it?
    pub(super) fn is_fed(&self, last: u64) -> bool {
        self.ordering.fed >= last
    }

    /// Shows own frames to whoever orders: once they are durable, when that one changes, and now and then.
    pub(super) fn send_for_ordering(&mut self, now: Now, orderer: Option<ReplicaId>, out: &mut Outbox) {
        let late: Vec<Hash> =
            self.ordering.frames.values().filter(|f| f.until <= now.mono).map(|f| f.hash).collect();
        late.iter().for_each(|hash| self.ordering.give_up(hash));
        let me = self.me.id.0;
        for frame in self.ordering.frames.values_mut().filter(|f| f.ours && f.unsynced.is_none()) {
            let moved = orderer.is_some() && frame.sent_to != orderer;
            if !moved && now.mono < frame.send_at {
                continue;
            }
            frame.send_at = now.mono.plus(frame.pause);
            frame.pause = frame.pause.times(2).min(RESEND.1);
            frame.sent_to = orderer;
            if let Some(to) = orderer.filter(|to| u32::from(to.0) != me) {
                let bytes = Bytes::from(encode(&PeerMessage::SyncOrder { frame: frame.bytes.clone() }));
                out.push(Effect::Send { to, class: Class::Request, after: Ticket::ZERO, bytes });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(logged: u64, stretches: &[(u64, u64)]) -> Own {
        Own { logged, stretches: stretches.to_vec() }
    }

    #[test]
    fn what_a_cut_segment_takes_back_is_noticed() {
        let before = own(4, &[(1, 4), (7, 9)]);
        let lost = |logged, stretches: &[(u64, u64)]| own(logged, stretches).lost_since(&before);
        assert!(
            !lost(4, &[(1, 4), (7, 9)]) && !lost(9, &[(1, 9)]) && !lost(12, &[]),
            "there is more, or a floor"
        );
        assert!(lost(3, &[(1, 3), (7, 9)]), "the last of what came without gap");
        assert!(lost(4, &[(1, 4)]) && lost(5, &[(1, 5), (7, 8)]), "what came behind a gap");
    }
}
