//! Client frames and orders that wait to be executed. Bounded in bytes, and per session in frames.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;
use bytes::Bytes;
use dwcp_base::{Hash, Micros, ReplicaId};
use dwcp_log::OperatorOrder;
use dwcp_state::{CheckedFrame, SessionId};

/// Frames of one session that may wait here; more than its window could need.
const SESSION_FRAMES_MAX: usize = 1_024;
/// Executed frames that are remembered.
const RECENT_MAX: usize = 4_096;
/// Orders that may wait here.
const ORDERS_MAX: usize = 16;

/// One waiting frame. Its signature has been verified.
#[derive(Clone, Debug)]
pub(crate) struct Pending {
    pub frame: CheckedFrame,
    pub hash: Hash,
    pub since: Micros,
    /// The turn in which we, as primary or leader, proposed it.
    pub proposed_in: Option<u64>,
    /// It came from a client of ours: we see to it that the others hear of it.
    pub ours: bool,
    /// The peer that passed it on, if one did.
    pub from: Option<ReplicaId>,
    /// All replicas were told; from then on everybody watches the primary.
    pub known_to_all: bool,
}

/// Why a frame was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PoolFull {
    Bytes,
    Session,
    /// The peer that passes it on has used up its share, or all of them theirs.
    Peer,
}

/// Frames take at most the bytes that `insert` is told, half of them our own clients' and half what peers pass on, of which
/// each peer has its part, and `SESSION_FRAMES_MAX` of a session: our clients cannot have us drop what the others' wait for,
/// which would have us blamed for it as primary. Every other map of frames has at most an entry for each of them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pool {
    /// In order of arrival.
    frames: BTreeMap<u64, Pending>,
    by_hash: BTreeMap<Hash, u64>,
    by_session: BTreeMap<SessionId, BTreeSet<u64>>,
    /// Frames that all replicas know of, and since when.
    known: BTreeMap<u64, Micros>,
    /// Frames of our clients that they do not all know of.
    unrelayed: BTreeSet<u64>,
    next: u64,
    bytes: usize,
    /// Of these, what each peer passed on.
    by_peer: BTreeMap<ReplicaId, usize>,
    /// Counts the changes of who orders: views, leaders, epochs. What was proposed in an older turn may be proposed again.
    turn: u64,
    /// Frames at or after this one have not been looked at for proposing in this turn.
    unproposed_from: u64,
    /// At most `ORDERS_MAX`.
    orders: Vec<(OperatorOrder, Option<u64>)>,
    /// Frames executed lately, at most `RECENT_MAX`: a copy that a peer relays late is not ordered again.
    recent: BTreeSet<Hash>,
    recent_in_order: VecDeque<Hash>,
}

impl Pool {
    pub(crate) fn len(&self) -> usize {
        self.frames.len()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// From now on all replicas know of this frame. True when that is news.
    pub(crate) fn mark_known(&mut self, hash: &Hash, now: Micros) -> bool {
        if let Some(id) = self.by_hash.get(hash)
            && let Some(pending) = self.frames.get_mut(id)
            && !pending.known_to_all
        {
            pending.known_to_all = true;
            self.known.insert(*id, now);
            self.unrelayed.remove(id);
            return true;
        }
        false
    }

    /// This frame is (also) a client's of ours.
    pub(crate) fn mark_ours(&mut self, hash: &Hash) {
        if let Some(id) = self.by_hash.get(hash)
            && let Some(pending) = self.frames.get_mut(id)
        {
            pending.ours = true;
            if !pending.known_to_all {
                self.unrelayed.insert(*id);
            }
        }
    }

    /// Since when this frame waits here.
    pub(crate) fn waits_since(&self, hash: &Hash) -> Option<Micros> {
        let id = self.by_hash.get(hash)?;
        self.frames.get(id).map(|pending| pending.since)
    }

    pub(crate) fn holds(&self, hash: &Hash) -> bool {
        self.by_hash.contains_key(hash)
    }

    pub(crate) fn insert(
        &mut self,
        pending: Pending,
        bytes_max: usize,
        replicas: u8,
    ) -> Result<(), PoolFull> {
        let size = pending.frame.bytes().len();
        let half = bytes_max / 2;
        let relayed: usize = self.by_peer.values().sum();
        if let Some(peer) = pending.from {
            let share = self.by_peer.get(&peer).copied().unwrap_or_default();
            let shares = usize::from(replicas.saturating_sub(1)).max(1);
            // One frame of each finds room while there is any, however large.
            let fits = share == 0 || share + size <= half / shares;
            if !fits || relayed + size > half {
                return Err(PoolFull::Peer);
            }
        } else if self.bytes - relayed + size > half {
            return Err(PoolFull::Bytes);
        }
        let of_session = self.by_session.entry(pending.frame.session()).or_default();
        if of_session.len() >= SESSION_FRAMES_MAX {
            return Err(PoolFull::Session);
        }
        of_session.insert(self.next);
        if let Some(peer) = pending.from {
            *self.by_peer.entry(peer).or_default() += size;
        }
        self.by_hash.insert(pending.hash, self.next);
        if pending.known_to_all {
            self.known.insert(self.next, pending.since);
        } else if pending.ours {
            self.unrelayed.insert(self.next);
        }
        self.frames.insert(self.next, pending);
        self.next += 1;
        self.bytes += size;
        Ok(())
    }

    fn remove(&mut self, id: u64) -> Option<Pending> {
        let pending = self.frames.remove(&id)?;
        self.by_hash.remove(&pending.hash);
        self.known.remove(&id);
        self.unrelayed.remove(&id);
        let size = pending.frame.bytes().len();
        self.bytes -= size;
        if let Some(share) = pending.from.and_then(|peer| self.by_peer.get_mut(&peer)) {
            *share -= size;
        }
        let session = pending.frame.session();
        if let Some(ids) = self.by_session.get_mut(&session) {
            ids.remove(&id);
            if ids.is_empty() {
                self.by_session.remove(&session);
            }
        }
        Some(pending)
    }

    /// A frame was executed, whether it waited here or not. True when a client of ours sent it here.
    pub(crate) fn executed(&mut self, hash: Hash) -> bool {
        let ours = self.remove_hash(&hash).is_some_and(|pending| pending.ours);
        if self.recent.insert(hash) {
            self.recent_in_order.push_back(hash);
        }
        if self.recent_in_order.len() > RECENT_MAX
            && let Some(oldest) = self.recent_in_order.pop_front()
        {
            self.recent.remove(&oldest);
        }
        ours
    }

    pub(crate) fn executed_lately(&self, hash: &Hash) -> bool {
        self.recent.contains(hash)
    }

    pub(crate) fn remove_hash(&mut self, hash: &Hash) -> Option<Pending> {
        let id = self.by_hash.get(hash).copied()?;
        self.remove(id)
    }

    /// Takes out the frames of a session that `settled` says need no ordering any more.
    pub(crate) fn take_settled(
        &mut self,
        session: SessionId,
        mut settled: impl FnMut(&CheckedFrame) -> bool,
    ) -> Vec<Pending> {
        let ids: Vec<u64> = self.by_session.get(&session).into_iter().flatten().copied().collect();
        let gone: Vec<u64> = ids.into_iter().filter(|id| settled(&self.frames[id].frame)).collect();
        gone.into_iter().filter_map(|id| self.remove(id)).collect()
    }

    /// Somebody else orders now, or in another way: what was proposed before may be proposed again.
    pub(crate) fn new_turn(&mut self) {
        self.turn += 1;
        self.unproposed_from = 0;
    }

    /// Whoever orders from now on is not to blame for what was waited for before.
    pub(crate) fn restart_clocks(&mut self, now: Micros) {
        self.known.values_mut().for_each(|since| *since = now);
    }

    /// The next frames to propose, marked as proposed in this turn.
    pub(crate) fn next_batch(&mut self, bytes_max: usize, frames_max: usize) -> Vec<Bytes> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        let turn = self.turn;
        for (id, pending) in self.frames.range_mut(self.unproposed_from..) {
            let size = pending.frame.bytes().len();
            if !batch.is_empty() && (bytes + size > bytes_max || batch.len() >= frames_max) {
                break;
            }
            self.unproposed_from = id + 1;
            if pending.proposed_in == Some(turn) {
                continue;
            }
            pending.proposed_in = Some(turn);
            bytes += size;
            batch.push(pending.frame.bytes().clone());
        }
        batch
    }

    /// A batch was not taken after all: its frames are the next again.
    pub(crate) fn put_back(&mut self, batch: &[Bytes]) {
        for frame in batch {
            if let Some(id) = self.by_hash.get(&Hash::of(frame))
                && let Some(pending) = self.frames.get_mut(id)
            {
                pending.proposed_in = None;
                self.unproposed_from = self.unproposed_from.min(*id);
            }
        }
    }

    /// Frames that all replicas have known of since `before` or longer, in the order of their arrival.
    pub(crate) fn long_known(&self, before: Micros) -> impl Iterator<Item = &Pending> {
        let late = self.known.iter().filter(move |(_, since)| **since <= before);
        late.filter_map(|(id, _)| self.frames.get(id))
    }

    /// When the frame that waits longest arrived.
    pub(crate) fn oldest(&self) -> Option<Micros> {
        self.frames.values().next().map(|pending| pending.since)
    }

    /// Since when the oldest frame waits that all replicas know of.
    pub(crate) fn oldest_known_to_all(&self) -> Option<Micros> {
        self.known.values().next().copied()
    }

    /// The frame that has waited longest of those that all replicas know of.
    pub(crate) fn oldest_known(&self) -> Option<&Pending> {
        self.known.keys().next().and_then(|id| self.frames.get(id))
    }

    /// Frames of our clients that arrived at or before `before` and that not all replicas know of; from `now` on they
    /// do, the caller sees to it.
    pub(crate) fn relay_due(&mut self, before: Micros, now: Micros) -> Vec<Bytes> {
        let due: Vec<u64> =
            self.unrelayed.iter().copied().take_while(|id| self.frames[id].since <= before).collect();
        let mut frames = Vec::new();
        for id in due {
            self.unrelayed.remove(&id);
            self.known.insert(id, now);
            if let Some(pending) = self.frames.get_mut(&id) {
                pending.known_to_all = true;
                frames.push(pending.frame.bytes().clone());
            }
        }
        frames
    }

    /// When the oldest of them arrived.
    pub(crate) fn oldest_unrelayed(&self) -> Option<Micros> {
        self.unrelayed.first().map(|id| self.frames[id].since)
    }

    /// All frames, oldest first: what a new primary has to be told.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Pending> {
        self.frames.values()
    }

    pub(crate) fn add_order(&mut self, order: OperatorOrder) -> bool {
        if self.orders.iter().any(|(known, _)| *known == order) {
            return true;
        }
        if self.orders.len() >= ORDERS_MAX {
            return false;
        }
        self.orders.push((order, None));
        true
    }

    /// Takes out an order that was executed and those that are void because of it.
    pub(crate) fn remove_order(&mut self, done: &OperatorOrder) {
        self.orders.retain(|(known, _)| !done.overtakes(known));
    }

    pub(crate) fn next_order(&mut self) -> Option<OperatorOrder> {
        let turn = self.turn;
        let waiting = self.orders.iter_mut().find(|(_, proposed_in)| *proposed_in != Some(turn))?;
        waiting.1 = Some(turn);
        Some(waiting.0.clone())
    }

    pub(crate) fn orders(&self) -> impl Iterator<Item = &OperatorOrder> {
        self.orders.iter().map(|(order, _)| order)
    }
}
