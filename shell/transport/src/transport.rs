//! The transport as its owner sees it: start, send, update, measure, stop. The work is in `dial.rs` and `accept.rs`.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use bytes::Bytes;
use tokio::net::TcpListener;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::{Notify, Semaphore, watch};
use tokio_rustls::TlsAcceptor;

use crate::accept::keep_accepting;
use crate::config::{PeerConfig, PeerId, RuntimeChoice, TransportConfig, TransportError, check_peer};
use crate::dial::keep_dialling;
use crate::frame::Class;
use crate::hello::Local;
use crate::identity::{PinSet, PublicKey, server_config};
use crate::peer::{Peer, Shared, Sink, Target, Tasks, TransportStats};
use crate::queue::Sent;
use crate::reason::{LinkEnd, ReasonCounts};
use crate::seek::who_is_at;

/// How long a shutdown waits for the links' farewells.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(3);

/// Links to all peers of one replica. Shared by reference between threads; dropping it stops it without waiting.
pub struct Transport {
    shared: Arc<Shared>,
    handle: Handle,
    runtime: Mutex<Option<Runtime>>,
    local_addr: SocketAddr,
    /// One change of the peers at a time: pins and peers must not drift apart.
    updating: Mutex<()>,
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transport")
            .field("me", &self.shared.local.me)
            .field("local_addr", &self.local_addr)
            .finish_non_exhaustive()
    }
}

impl Transport {
    /// Listens, and starts to dial every peer. Returns at once; links come up as peers answer.
    pub fn start(config: TransportConfig, sink: Arc<dyn Sink>) -> Result<Self, TransportError> {
        config.check()?;
        let pins = PinSet::new(config.peers.iter().map(|peer| peer.pin));
        let acceptor = TlsAcceptor::from(Arc::new(server_config(&config.identity, &pins, true)?));
        let (listener, local_addr) = listen(config.listen)?;
        let (runtime, handle) = match config.runtime {
            RuntimeChoice::Given(handle) => (None, handle),
            RuntimeChoice::Own { worker_threads } => {
                let runtime = tokio::runtime::Builder::new_multi_thread()
                    .worker_threads(worker_threads.max(1))
                    .thread_name("dwcp-transport")
                    .enable_io()
                    .enable_time()
                    .build()
                    .map_err(TransportError::Runtime)?;
                let handle = runtime.handle().clone();
                (Some(runtime), handle)
            }
        };
        let listener = {
            let _inside = handle.enter();
            TcpListener::from_std(listener)
                .map_err(|source| TransportError::Listen { addr: config.listen, source })?
        };
        let shared = Arc::new(Shared {
            local: Local {
                cluster: config.cluster,
                me: config.me,
                incarnation: config.incarnation,
                versions: config.versions,
            },
            identity: config.identity,
            handshake_slots: Arc::new(Semaphore::new(config.limits.handshakes_max)),
            stranger_slots: Arc::new(Semaphore::new(
                config.limits.handshakes_max - config.limits.handshakes_max / 4,
            )),
            limits: config.limits,
            seed: config.seed,
            sink,
            peers: RwLock::new(BTreeMap::new()),
            pins,
            strangers: ReasonCounts::default(),
            incoming_numbers: AtomicU64::new(0),
            sink_room: Notify::new(),
            stop: watch::Sender::new(false),
            tasks: Arc::new(Tasks::default()),
        });
        let transport = Self {
            shared: shared.clone(),
            handle,
            runtime: Mutex::new(runtime),
            local_addr,
            updating: Mutex::new(()),
        };
        for peer in config.peers {
            transport.add_peer(peer);
        }
        transport.spawn(keep_accepting(shared, listener, acceptor));
        Ok(transport)
    }

    /// Where it listens; tells the port when the configuration left it open with port 0.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Queues a frame. Never blocks and never waits for the network; may be called from any thread. A frame accepted
    /// here may still be lost with a link: whoever needs it to arrive sends it again.
    pub fn send(&self, peer: PeerId, class: Class, frame: Bytes) -> Sent {
        if *self.shared.stop.borrow() {
            return Sent::Stopped;
        }
        let peers = self.shared.peers.read().expect("no panic while the peers are held");
        let Some(peer) = peers.get(&peer.0) else { return Sent::UnknownPeer };
        if frame.len() > self.shared.limits.frame_bytes_max {
            peer.queue().count_too_large(class);
            return Sent::TooLarge;
        }
        let sent = peer.queue().push(class, frame);
        peer.queued.notify_one();
        sent
    }

    /// Adds a peer, or points a known one to a new address or key. With a new key all its links are cut, its queue is
    /// emptied, and only the new key enters from now on.
    pub fn update_peer(&self, peer: PeerConfig) -> Result<(), TransportError> {
        let _one_at_a_time = self.updating.lock().expect("no panic during an update");
        if *self.shared.stop.borrow() {
            return Err(TransportError::Stopped);
        }
        let others: Vec<(u8, PublicKey)> = {
            let peers = self.shared.peers.read().expect("no panic while the peers are held");
            peers.values().map(|other| (other.id, other.target().pin)).collect()
        };
        check_peer(&peer, self.shared.local.me, &self.shared.identity.public_key(), &others)?;
        let keys = others.into_iter().filter(|(id, _)| *id != peer.id).map(|(_, key)| key);
        self.shared.pins.replace(keys.chain([peer.pin]).collect::<Vec<_>>());
        match self.shared.peer(peer.id) {
            Some(known) => known.retarget(Target { addr: peer.addr, pin: peer.pin }),
            None => self.add_peer(peer),
        }
        Ok(())
    }

    /// Where else this peer may be: tried in turn with its configured address, the first at once. Two are kept. A link that is
    /// up stays where it is.
    pub fn hint_addresses(&self, peer: PeerId, addresses: Vec<String>) {
        let Some(peer) = self.shared.peer(peer.0) else { return };
        if peer.hint(addresses) {
            peer.nudge.notify_one();
        }
    }

    /// The peers to which there is no link.
    pub fn unreached(&self) -> Vec<PeerId> {
        let peers = self.shared.peers.read().expect("no panic while the peers are held");
        let down = peers.values().filter(|peer| !peer.up.load(Ordering::SeqCst));
        down.map(|peer| PeerId(peer.id)).collect()
    }

    /// Where the link to each peer leads, or last led, by its id.
    pub fn dialled(&self) -> BTreeMap<u8, String> {
        let peers = self.shared.peers.read().expect("no panic while the peers are held");
        peers.values().filter_map(|peer| Some((peer.id, peer.dialled()?))).collect()
    }

    /// Which peer proves its key at this address. To be awaited within the runtime the links run on.
    ///
    /// # Errors
    /// Nobody answers there, or none of the peers.
    pub fn who_is_at(&self, addr: &str) -> impl Future<Output = Result<PeerId, LinkEnd>> + Send + use<> {
        let (shared, addr) = (self.shared.clone(), addr.to_string());
        async move { who_is_at(&shared, &addr).await }
    }

    /// Cuts the links of a peer and forgets it. False when there is none.
    pub fn remove_peer(&self, peer: PeerId) -> bool {
        let _one_at_a_time = self.updating.lock().expect("no panic during an update");
        let (removed, pins) = {
            let mut peers = self.shared.peers.write().expect("no panic while the peers are held");
            let removed = peers.remove(&peer.0);
            (removed, peers.values().map(|peer| peer.target().pin).collect::<Vec<_>>())
        };
        self.shared.pins.replace(pins);
        removed.inspect(|peer| peer.remove()).is_some()
    }

    /// The sink can take frames again: links that wait for it try at once.
    pub fn sink_has_room(&self) {
        self.shared.sink_room.notify_waiters();
    }

    pub fn stats(&self) -> TransportStats {
        let peers = self.shared.peers.read().expect("no panic while the peers are held");
        let free = self.shared.handshake_slots.available_permits();
        TransportStats {
            peers: peers.values().map(|peer| peer.stats()).collect(),
            strangers: self.shared.strangers.read(),
            pending_handshakes: self.shared.limits.handshakes_max.saturating_sub(free),
        }
    }

    /// Says farewell on every link, closes the port and waits for both, a few seconds at most. Queued frames are not
    /// sent any more. Must not be called from a thread of the runtime the links run on. Doing it twice is harmless.
    pub fn shutdown(&self) {
        self.shared.stop.send_replace(true);
        if !self.shared.tasks.wait(SHUTDOWN_PATIENCE) {
            tracing::warn!(
                "some links did not end within {SHUTDOWN_PATIENCE:?}; their threads are abandoned"
            );
        }
        self.stop_runtime();
    }

    fn stop_runtime(&self) {
        if let Some(runtime) = self.runtime.lock().expect("no panic while the runtime is held").take() {
            runtime.shutdown_background();
        }
    }

    fn add_peer(&self, config: PeerConfig) {
        let peer = Arc::new(Peer::new(config, &self.shared.limits));
        let mut peers = self.shared.peers.write().expect("no panic while the peers are held");
        peers.insert(peer.id, peer.clone());
        drop(peers);
        self.spawn(keep_dialling(self.shared.clone(), peer));
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let guard = self.shared.tasks.enter();
        self.handle.spawn(async move {
            task.await;
            drop(guard);
        });
    }
}

impl Drop for Transport {
    fn drop(&mut self) {
        self.shared.stop.send_replace(true);
        self.stop_runtime();
    }
}

fn listen(addr: SocketAddr) -> Result<(std::net::TcpListener, SocketAddr), TransportError> {
    let bind = || {
        let listener = std::net::TcpListener::bind(addr)?;
        listener.set_nonblocking(true)?;
        let local_addr = listener.local_addr()?;
        io::Result::Ok((listener, local_addr))
    };
    bind().map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => TransportError::PortInUse { addr },
        _ => TransportError::Listen { addr, source },
    })
}

/// `send` is called from the replica's own thread, so the transport must be shareable.
const _: fn() = || {
    fn shared_between_threads<T: Send + Sync>() {}
    shared_between_threads::<Transport>();
};
