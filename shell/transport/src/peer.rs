//! What is shared about one peer: its target, its queue, its counters, and the signals that end its links. Also the
//! state all tasks of one transport share. The links themselves are in `dial.rs` and `accept.rs`.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};

use crate::config::{Limits, PeerConfig, PeerId};
use crate::frame::Class;
use crate::hello::Local;
use crate::identity::{PinSet, PublicKey, TlsIdentity};
use crate::measure::Measures;
use crate::queue::Queue;
use crate::reason::{LinkEnd, Reason, ReasonCounts};

/// Addresses at which hints say that a peer may be.
const HINTED_MAX: usize = 2;
/// Addresses of one peer that are remembered.
const ADDRESSES_MAX: usize = 16;

/// Whether the sink took a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Delivery {
    Taken,
    /// Not now. The link stops reading, so the peer's kernel and then the peer itself hold back; the same frame is
    /// offered again after [`crate::Transport::sink_has_room`], and every few milliseconds in any case.
    Busy,
}

/// A link to a peer that has just come up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkUp {
    /// The round trip of the hello, in microseconds.
    pub rtt_us: u64,
    pub peer_incarnation: u32,
    pub wire_version: u16,
}

/// Where frames go. All calls come from the transport's runtime threads and must not block. Frames of one peer come
/// one at a time and, within a class, in the order they were sent.
pub trait Sink: Send + Sync + 'static {
    fn frame(&self, from: PeerId, class: Class, frame: Bytes) -> Delivery;
    /// Frames can be sent to `peer` now. (Frames from it may arrive before: each direction has its own link.)
    fn link_up(&self, peer: PeerId, link: LinkUp);
    /// Follows each `link_up`, once.
    fn link_down(&self, peer: PeerId, end: &LinkEnd);
    /// Whether the peer has a link to us over which its frames come. Each call tells the other than the one before.
    fn incoming(&self, peer: PeerId, up: bool);
}

/// Where and who a peer is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) addr: String,
    pub(crate) pin: PublicKey,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) bytes_in: AtomicU64,
    pub(crate) bytes_out: AtomicU64,
    pub(crate) frames_in: AtomicU64,
    pub(crate) links_up: AtomicU64,
    pub(crate) sink_waits: AtomicU64,
}

/// Where the peer may be beside its configured address.
#[derive(Debug, Default)]
struct Elsewhere {
    /// Bound: [`HINTED_MAX`].
    hinted: Vec<String>,
    /// They have changed since the dialler last looked.
    fresh: bool,
    /// The address of the link, or of the last one.
    dialled: Option<String>,
}

/// Which addresses a dialler may try next.
#[derive(Debug)]
pub(crate) struct Candidates {
    /// The configured one first; never empty.
    pub(crate) addresses: Vec<String>,
    /// There is a new one: it deserves the next attempt.
    pub(crate) fresh: bool,
}

#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) id: u8,
    target: Mutex<Target>,
    elsewhere: Mutex<Elsewhere>,
    /// Changes with every new target: the dialler starts anew.
    pub(crate) target_changes: watch::Sender<u64>,
    /// Changes with every new key, and at removal: links that rest on the old one end.
    pub(crate) key_changes: watch::Sender<u64>,
    pub(crate) removed: AtomicBool,
    /// What its host name last meant. Bound: [`ADDRESSES_MAX`].
    addresses: Mutex<Vec<IpAddr>>,
    queue: Mutex<Queue>,
    pub(crate) queued: Notify,
    /// The peer has just dialled in, so it is worth dialling it now.
    pub(crate) nudge: Notify,
    /// The number of the newest incoming link; older ones end.
    pub(crate) incoming: watch::Sender<u64>,
    /// Held by the one incoming link that delivers, so that a new one starts only after the old one has stopped.
    pub(crate) incoming_slot: tokio::sync::Mutex<()>,
    pub(crate) up: AtomicBool,
    pub(crate) incoming_up: AtomicBool,
    /// As told in the last welcome; valid once `links_up > 0`.
    pub(crate) incarnation: AtomicU32,
    pub(crate) counters: Counters,
    pub(crate) ends: ReasonCounts,
    measures: Mutex<Measures>,
}

impl Peer {
    pub(crate) fn new(config: PeerConfig, limits: &Limits) -> Self {
        Self {
            id: config.id,
            target: Mutex::new(Target { addr: config.addr, pin: config.pin }),
            elsewhere: Mutex::new(Elsewhere::default()),
            target_changes: watch::Sender::new(0),
            key_changes: watch::Sender::new(0),
            removed: AtomicBool::new(false),
            addresses: Mutex::new(vec![]),
            queue: Mutex::new(Queue::new(limits.queue.clone())),
            queued: Notify::new(),
            nudge: Notify::new(),
            incoming: watch::Sender::new(0),
            incoming_slot: tokio::sync::Mutex::new(()),
            up: AtomicBool::new(false),
            incoming_up: AtomicBool::new(false),
            incarnation: AtomicU32::new(0),
            counters: Counters::default(),
            ends: ReasonCounts::default(),
            measures: Mutex::new(Measures::default()),
        }
    }

    pub(crate) fn target(&self) -> Target {
        self.target.lock().expect("no panic while a target is held").clone()
    }

    fn elsewhere(&self) -> MutexGuard<'_, Elsewhere> {
        self.elsewhere.lock().expect("no panic while addresses are held")
    }

    /// Where to dial, given its configured address.
    pub(crate) fn candidates(&self, configured: &str) -> Candidates {
        let mut elsewhere = self.elsewhere();
        let fresh = std::mem::take(&mut elsewhere.fresh);
        let hinted = elsewhere.hinted.iter().filter(|hinted| *hinted != configured);
        let addresses = std::iter::once(configured.to_string()).chain(hinted.cloned()).collect();
        Candidates { addresses, fresh }
    }

    /// True when that is news.
    pub(crate) fn hint(&self, mut addresses: Vec<String>) -> bool {
        addresses.truncate(HINTED_MAX);
        let mut elsewhere = self.elsewhere();
        let news = elsewhere.hinted != addresses;
        elsewhere.fresh |= news;
        elsewhere.hinted = addresses;
        news
    }

    pub(crate) fn dialled(&self) -> Option<String> {
        self.elsewhere().dialled.clone()
    }

    pub(crate) fn note_dialled(&self, addr: &str) {
        self.elsewhere().dialled = Some(addr.to_string());
    }

    pub(crate) fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().expect("no panic while a queue is held")
    }

    pub(crate) fn measures(&self) -> MutexGuard<'_, Measures> {
        self.measures.lock().expect("no panic while measures are held")
    }

    pub(crate) fn note_addresses(&self, addresses: &[SocketAddr]) {
        let addresses = addresses.iter().take(ADDRESSES_MAX).map(|address| address.ip().to_canonical());
        *self.addresses.lock().expect("no panic while addresses are held") = addresses.collect();
    }

    fn has_address(&self, address: IpAddr) -> bool {
        self.addresses.lock().expect("no panic while addresses are held").contains(&address)
    }

    /// Points the peer elsewhere. Ends the links that no longer fit; with a new key also empties the queue.
    pub(crate) fn retarget(&self, new: Target) {
        let old = std::mem::replace(
            &mut *self.target.lock().expect("no panic while a target is held"),
            new.clone(),
        );
        if old == new {
            return;
        }
        // What was said of the old one's whereabouts is void.
        *self.elsewhere() = Elsewhere::default();
        if old.pin != new.pin {
            self.queue().discard();
            self.key_changes.send_modify(|count| *count += 1);
        }
        self.target_changes.send_modify(|count| *count += 1);
    }

    pub(crate) fn remove(&self) {
        self.removed.store(true, Ordering::SeqCst);
        self.queue().discard();
        self.key_changes.send_modify(|count| *count += 1);
        self.target_changes.send_modify(|count| *count += 1);
    }

    pub(crate) fn stats(&self) -> PeerStats {
        let now = Instant::now();
        let (rtt_p50_us, rtt_p95_us, delivery_rate_bytes_per_s) = {
            let mut measures = self.measures();
            let (p50, p95) = measures.rtt_us(now);
            (p50, p95, measures.rate_bytes_per_s(now))
        };
        let (queue_bytes, dropped, frames_out) = {
            let queue = self.queue();
            (queue.bytes(), queue.dropped(), queue.frames_sent())
        };
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let links_up = read(&self.counters.links_up);
        PeerStats {
            id: PeerId(self.id),
            addr: self.target().addr,
            dialled: self.dialled(),
            up: self.up.load(Ordering::SeqCst),
            incoming_up: self.incoming_up.load(Ordering::SeqCst),
            peer_incarnation: (links_up > 0).then(|| self.incarnation.load(Ordering::Relaxed)),
            rtt_p50_us,
            rtt_p95_us,
            delivery_rate_bytes_per_s,
            bytes_in: read(&self.counters.bytes_in),
            bytes_out: read(&self.counters.bytes_out),
            frames_in: read(&self.counters.frames_in),
            frames_out,
            queue_bytes,
            dropped,
            reconnects: links_up.saturating_sub(1),
            sink_waits: read(&self.counters.sink_waits),
            ends: self.ends.read(),
        }
    }
}

/// One peer, as of now. Counters never go back while the peer stays configured.
#[derive(Clone, Debug)]
pub struct PeerStats {
    pub id: PeerId,
    /// Where it is configured to be.
    pub addr: String,
    /// Where the link to it leads, or the last one led. `None`: there was none yet.
    pub dialled: Option<String>,
    /// Frames can be sent to it.
    pub up: bool,
    /// Frames can arrive from it.
    pub incoming_up: bool,
    pub peer_incarnation: Option<u32>,
    /// Round trips of the last ten seconds.
    pub rtt_p50_us: Option<u64>,
    pub rtt_p95_us: Option<u64>,
    /// The best rate seen in the last ten seconds while the link was kept busy; `None` when it never was.
    pub delivery_rate_bytes_per_s: Option<u64>,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub frames_in: u64,
    /// Frames handed to the socket; those of a link that broke may not have arrived.
    pub frames_out: u64,
    pub queue_bytes: usize,
    /// Frames dropped at the queue: vote, order, request, bulk, hint.
    pub dropped: [u64; Class::COUNT],
    pub reconnects: u64,
    /// How often a frame waited because the sink was busy.
    pub sink_waits: u64,
    /// Refusals and ends of links to and from it, by reason.
    pub ends: Vec<(Reason, u64)>,
}

#[derive(Clone, Debug, Default)]
pub struct TransportStats {
    /// In the order of their ids.
    pub peers: Vec<PeerStats>,
    /// Refusals of connections that did not prove to come from a configured peer.
    pub strangers: Vec<(Reason, u64)>,
    pub pending_handshakes: usize,
}

impl TransportStats {
    pub fn peer(&self, id: PeerId) -> Option<&PeerStats> {
        self.peers.iter().find(|peer| peer.id == id)
    }
}

impl PeerStats {
    pub fn ends_by(&self, reason: Reason) -> u64 {
        count_of(&self.ends, reason)
    }
}

impl TransportStats {
    pub fn strangers_by(&self, reason: Reason) -> u64 {
        count_of(&self.strangers, reason)
    }
}

fn count_of(counts: &[(Reason, u64)], reason: Reason) -> u64 {
    counts.iter().find(|(counted, _)| *counted == reason).map_or(0, |(_, count)| *count)
}

/// What all tasks of one transport share.
pub(crate) struct Shared {
    pub(crate) local: Local,
    pub(crate) identity: Arc<TlsIdentity>,
    pub(crate) limits: Limits,
    pub(crate) seed: u64,
    pub(crate) sink: Arc<dyn Sink>,
    /// Bound: 255 peers, as many as there are ids.
    pub(crate) peers: RwLock<BTreeMap<u8, Arc<Peer>>>,
    pub(crate) pins: PinSet,
    pub(crate) strangers: ReasonCounts,
    pub(crate) handshake_slots: Arc<Semaphore>,
    /// The part of the handshakes that connections from unknown addresses may hold.
    pub(crate) stranger_slots: Arc<Semaphore>,
    pub(crate) incoming_numbers: AtomicU64,
    pub(crate) sink_room: Notify,
    pub(crate) stop: watch::Sender<bool>,
    pub(crate) tasks: Arc<Tasks>,
}

impl Shared {
    pub(crate) fn peer(&self, id: u8) -> Option<Arc<Peer>> {
        self.peers.read().expect("no panic while the peers are held").get(&id).cloned()
    }

    pub(crate) fn peer_of_key(&self, key: &PublicKey) -> Option<Arc<Peer>> {
        let peers = self.peers.read().expect("no panic while the peers are held");
        peers.values().find(|peer| peer.target().pin == *key).cloned()
    }

    /// A place among the pending handshakes, if one is free. A quarter is kept for addresses at which some peer was
    /// found, so that a flood from elsewhere cannot lock the peers out. The address proves nothing and opens nothing.
    pub(crate) fn take_handshake_slot(&self, from: IpAddr) -> Option<HandshakeSlot> {
        let from = from.to_canonical();
        let known = {
            let peers = self.peers.read().expect("no panic while the peers are held");
            peers.values().any(|peer| peer.has_address(from))
        };
        let stranger = match known {
            true => None,
            false => Some(self.stranger_slots.clone().try_acquire_owned().ok()?),
        };
        let slot = self.handshake_slots.clone().try_acquire_owned().ok()?;
        Some(HandshakeSlot { _stranger: stranger, _slot: slot })
    }

    /// Resolves when the transport stops.
    pub(crate) async fn stopped(&self) {
        let mut stop = self.stop.subscribe();
        // An error means the sender is gone, which it cannot be while `self` lives.
        let _ = stop.wait_for(|stop| *stop).await;
    }
}

/// One pending handshake; frees its place when dropped.
pub(crate) struct HandshakeSlot {
    _stranger: Option<OwnedSemaphorePermit>,
    _slot: OwnedSemaphorePermit,
}

/// Counts the running tasks, so that a shutdown can wait until the last has let go of its socket.
#[derive(Debug, Default)]
pub(crate) struct Tasks {
    running: Mutex<usize>,
    ended: Condvar,
}

pub(crate) struct TaskGuard(Arc<Tasks>);

impl Tasks {
    pub(crate) fn enter(self: &Arc<Self>) -> TaskGuard {
        *self.running.lock().expect("no panic while the count is held") += 1;
        TaskGuard(self.clone())
    }

    /// False when some task still ran after `patience`.
    pub(crate) fn wait(&self, patience: Duration) -> bool {
        let running = self.running.lock().expect("no panic while the count is held");
        let (running, _) = self
            .ended
            .wait_timeout_while(running, patience, |running| *running > 0)
            .expect("no panic while the count is held");
        *running == 0
    }
}

impl Drop for TaskGuard {
    fn drop(&mut self) {
        *self.0.running.lock().expect("no panic while the count is held") -= 1;
        self.0.ended.notify_all();
    }
}
