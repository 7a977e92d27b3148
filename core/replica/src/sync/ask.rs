//! What clients ask that changes nothing, and how nodes compare what they hold.

use crate::io::{Class, ClientId, Effect};
use crate::replica::{Outbox, Replica};
use crate::sync::face::{SyncReply, SyncRequest, view_bytes};
use crate::sync::write::{NOT_A_MEMBER, Order};
use crate::sync::{COMPARISONS_MAX, Comparison, SyncRoom, WATCHES_MAX, Watch};
use crate::wire::PeerMessage;
use alloc::collections::BTreeSet;
use alloc::format;
use alloc::vec::Vec;
use bytes::Bytes;
use core::ops::Bound;
use dwcp_base::{Hash, Hasher, Now, ReplicaId, Ticket, encode};
use dwcp_state::StateMachine;

/// Keys, and about how many bytes, of one answer to `List`.
const LIST_MAX: u32 = 1_000;
const LIST_BYTES_MAX: usize = 1 << 20;
/// Conflicts of one answer.
const CONFLICTS_MAX: u32 = 1_000;
/// Patience of a comparison, in milliseconds.
const COMPARE_MS: (u32, u32) = (30_000, 3_000);

impl SyncRoom {
    /// A key that this store has, of those that an ordered command names: it, or one of the range up to its end.
    pub(crate) fn convergent_key(&self, key: &[u8], range_end: &[u8]) -> Option<&Bytes> {
        let end = match range_end {
            [] => Bound::Included(key),
            [0] => Bound::Unbounded,
            end if key < end => Bound::Excluded(end),
            _ => return None,
        };
        let mut named = self.store()?.keys_within((Bound::Included(key), end));
        named.find(|found| self.setup.ordered_prefix(found).is_none())
    }

    /// Nobody declared to which store this key belongs, and this one does not have it.
    fn is_free(&self, key: &[u8]) -> bool {
        !self.setup.convergent.iter().any(|prefix| key.starts_with(prefix))
            && self.convergent_key(key, &[]).is_none()
    }

    fn get(&self, key: &[u8], path: &[Bytes]) -> Option<SyncReply> {
        let store = self.store()?;
        if self.setup.ordered_prefix(key).is_some() {
            return Some(SyncReply::Value { view: None, kinds: Vec::new(), siblings: 0 });
        }
        let siblings = u32::try_from(store.siblings(key, path).len()).unwrap_or(u32::MAX);
        Some(SyncReply::Value { view: store.get_at(key, path), kinds: store.kinds(key, path), siblings })
    }

    fn list(&self, prefix: &Bytes, after: Option<&Bytes>, limit: u32) -> Option<SyncReply> {
        let store = self.store()?;
        let from = after.filter(|after| *after > prefix).unwrap_or(prefix);
        let limit = if limit == 0 { LIST_MAX } else { limit.min(LIST_MAX) };
        let (mut items, mut bytes, mut more) = (Vec::new(), 0, false);
        let below = store.keys(from).take_while(|key| key.starts_with(prefix));
        let below = below.filter(|key| self.setup.ordered_prefix(key).is_none());
        for key in below.filter(|key| after.is_none_or(|after| *key > after)) {
            if items.len() >= limit as usize || bytes > LIST_BYTES_MAX {
                more = true;
                break;
            }
            if let Some(view) = store.get(key) {
                bytes += key.len() + view_bytes(&view);
                items.push((key.clone(), view));
            }
        }
        Some(SyncReply::Keys { items, more })
    }

    fn conflicts(&self, limit: u32) -> Option<SyncReply> {
        let store = self.store()?;
        let limit = if limit == 0 { CONFLICTS_MAX } else { limit.min(CONFLICTS_MAX) } as usize;
        let skip = store.history().len().saturating_sub(limit);
        let events = store.history().skip(skip).cloned().collect();
        Some(SyncReply::Conflicts { count: store.conflict_count(), open: store.conflicts_open(), events })
    }

    /// The digest of everything here.
    pub(crate) fn digest(&mut self) -> Option<Hash> {
        self.open.as_mut().map(|open| open.store.digest())
    }

    /// The same with the settings that decide what it shows: two nodes of different settings never say that they agree.
    fn digest_with_settings(&mut self) -> Option<Hash> {
        let (store, settings) = (self.digest()?, self.setup.digest());
        let mut hasher = Hasher::new("dwcp v3 sync stand");
        hasher.update(&store.0).update(&settings.0);
        Some(hasher.finish())
    }

    fn stand(&mut self) -> Option<SyncReply> {
        let digest = self.digest()?;
        let store = self.store()?;
        let (applied, floor) = (store.applied().clone(), store.floor_number());
        let keys = store.keys_count() as u64;
        Some(SyncReply::Stand { digest, applied, floor, conflicts: store.conflict_count(), keys })
    }

    fn watch(&mut self, client: ClientId, id: u64, prefix: Bytes, out: &mut Outbox) {
        if self.watches.len() >= WATCHES_MAX {
            return Self::refuse(client, id, "too many watches: ask another node", true, out);
        }
        self.watches.push(Watch { client, id, prefix });
        // So that whoever watches knows that nothing is missed from here on.
        Self::reply(client, id, SyncReply::Changed { items: Vec::new() }, out);
    }

    fn compare(
        &mut self,
        now: Now,
        (client, id): (ClientId, u64),
        peers: BTreeSet<ReplicaId>,
        timeout_ms: u32,
        out: &mut Outbox,
    ) {
        if self.comparisons.len() >= COMPARISONS_MAX {
            return Self::refuse(client, id, "too many comparisons: try again soon", true, out);
        }
        let token = self.next_token;
        self.next_token += 1;
        for to in &peers {
            let bytes = Bytes::from(encode(&PeerMessage::SyncStand { token, digest: None }));
            out.push(Effect::Send { to: *to, class: Class::Request, after: Ticket::ZERO, bytes });
        }
        let until = now.mono.plus(crate::sync::engine::at_most(timeout_ms, COMPARE_MS.0, COMPARE_MS.1));
        let (level, differs) = (Vec::new(), Vec::new());
        let comparison = Comparison { client, id, waits_for: peers, level, differs, until };
        self.comparisons.insert(token, comparison);
    }

    /// A peer asks what this node holds, or answers.
    pub(crate) fn on_stand(&mut self, from: ReplicaId, token: u64, digest: Option<Hash>, out: &mut Outbox) {
        let Some(own) = self.digest_with_settings() else { return };
        let Some(theirs) = digest else {
            let bytes = Bytes::from(encode(&PeerMessage::SyncStand { token, digest: Some(own) }));
            return out.push(Effect::Send { to: from, class: Class::Request, after: Ticket::ZERO, bytes });
        };
        if let Some(comparison) = self.comparisons.get_mut(&token)
            && comparison.waits_for.remove(&from)
        {
            if theirs == own {
                comparison.level.push(from);
            } else {
                comparison.differs.push(from);
            }
        }
    }

    pub(super) fn end_comparisons(&mut self, now: Now, out: &mut Outbox) {
        let over = |c: &Comparison| c.waits_for.is_empty() || c.until <= now.mono;
        let over: Vec<u64> =
            self.comparisons.iter().filter(|(_, c)| over(c)).map(|(token, _)| *token).collect();
        for comparison in over.into_iter().filter_map(|token| self.comparisons.remove(&token)) {
            let Comparison { client, id, waits_for, level, differs, .. } = comparison;
            let silent = waits_for.into_iter().collect();
            Self::reply(client, id, SyncReply::Compared { level, differs, silent }, out);
        }
    }
}

impl<M: StateMachine> Replica<M> {
    /// A client asks for something convergent.
    pub(crate) fn on_sync_request(
        &mut self,
        now: Now,
        client: ClientId,
        id: u64,
        request: SyncRequest,
        out: &mut Outbox,
    ) {
        let (me, n) = (self.setup.me, self.pbft.quorum().n());
        let mode = self.control.steering.mode;
        let fast_path = self.fast_path_timeout();
        let Some(room) = &mut self.sync else {
            return SyncRoom::refuse(client, id, "state sync is turned off on this node", true, out);
        };
        let reply = match request {
            SyncRequest::Write { writes, wait, timeout_ms } => {
                let ordered = |write: &&crate::sync::values::Write| {
                    room.is_free(&write.key) && self.state.machine().has_key(&write.key)
                };
                if let Some(write) = writes.iter().find(ordered) {
                    let reason = format!(
                        "{:?} is a key of the ordered store: write it with `dwcp kv`, or delete it there first",
                        write.key
                    );
                    room.figures.writes_refused += 1;
                    return SyncRoom::refuse(client, id, reason, true, out);
                }
                let nodes = usize::from(n);
                let order = Order { client, id, wait, timeout_ms, mode, nodes, fast_path };
                return room.write(now, &order, &writes, out);
            }
            SyncRequest::Watch { prefix } => return room.watch(client, id, prefix, out),
            SyncRequest::Compare { peers, timeout_ms } => {
                let is_peer = |peer: &ReplicaId| *peer != me && u16::from(peer.0) < u16::from(n);
                // With whoever is not there nobody differs, which would be told as agreement.
                if let Some(nobody) = peers.iter().find(|peer| !is_peer(peer)) {
                    let reason = format!(
                        "replica {nobody} is no peer of this one: compare with others of 0 to {}",
                        u16::from(n).saturating_sub(1)
                    );
                    return SyncRoom::refuse(client, id, reason, true, out);
                }
                let all = (0..n).map(ReplicaId).filter(is_peer);
                let peers = all.filter(|peer| peers.is_empty() || peers.contains(peer)).collect();
                return room.compare(now, (client, id), peers, timeout_ms, out);
            }
            SyncRequest::Get { key, path } => room.get(&key, &path),
            SyncRequest::List { prefix, after, limit } => room.list(&prefix, after.as_ref(), limit),
            SyncRequest::Conflicts { limit } => room.conflicts(limit),
            SyncRequest::Stand => room.stand(),
        };
        match reply {
            Some(reply) => SyncRoom::reply(client, id, reply, out),
            None => SyncRoom::refuse(client, id, NOT_A_MEMBER, true, out),
        }
    }
}
