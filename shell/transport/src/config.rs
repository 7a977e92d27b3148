//! What a transport is told when it starts, and why it may refuse to. No defaults are taken from the machine: seed,
//! runtime and addresses are arguments.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::frame::FRAGMENT_BYTES_MAX;
use crate::hello::VersionRange;
use crate::identity::{IdentityError, PublicKey, TlsIdentity, key_text};
use crate::queue::QueueLimits;

/// A replica's number within its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId(pub u8);

impl std::fmt::Display for PeerId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// One other replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerConfig {
    pub id: u8,
    /// `host:port`; the host is looked up anew at each attempt to connect.
    pub addr: String,
    /// The Ed25519 public key it must show, and no other.
    pub pin: PublicKey,
}

/// Where the links' tasks run.
#[derive(Clone, Debug)]
pub enum RuntimeChoice {
    /// A runtime of the transport's own. One thread carries a full link of some hundred MB/s; more help beyond that.
    Own { worker_threads: usize },
    /// The caller's runtime, with time and io enabled. [`crate::Transport::shutdown`] must then not be called from a
    /// worker thread of that runtime.
    Given(tokio::runtime::Handle),
}

/// Bounds and times. The defaults suit both a datacenter and the open internet.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Largest frame sent or accepted. Default 8 MiB, range 1 KiB..=1 GiB; equal on all replicas.
    pub frame_bytes_max: usize,
    pub queue: QueueLimits,
    /// Connections that have not yet proven who they are. Default 64, a quarter of it kept for addresses at which a
    /// peer was found; further ones are closed at once.
    pub handshakes_max: usize,
    /// From the TCP connection to the end of the hello. Default 5 s.
    pub handshake_timeout: Duration,
    /// For one address of a peer. Default 2 s.
    pub connect_timeout: Duration,
    /// First and last pause between attempts to connect; each doubles and is jittered down to its half. Default 20 ms
    /// and 2 s.
    pub reconnect_pause_min: Duration,
    pub reconnect_pause_max: Duration,
    /// Each dialler pings this often, each acceptor gives a sign of life this often. Default 1 s.
    pub ping_interval: Duration,
    /// A link on which nothing arrived for so long is cut. Default 5 s.
    pub silence_max: Duration,
    /// Up to this many bytes leave in one write. Default 64 KiB.
    pub write_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            frame_bytes_max: 8 * 1024 * 1024,
            queue: QueueLimits::default(),
            handshakes_max: 64,
            handshake_timeout: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(2),
            reconnect_pause_min: Duration::from_millis(20),
            reconnect_pause_max: Duration::from_secs(2),
            ping_interval: Duration::from_secs(1),
            silence_max: Duration::from_secs(5),
            write_bytes_max: 64 * 1024,
        }
    }
}

#[derive(Clone, Debug)]
pub struct TransportConfig {
    /// Names the cluster; links to any other are refused.
    pub cluster: [u8; 32],
    pub me: u8,
    /// Told to every peer in the hello; what it means is for the caller to judge.
    pub incarnation: u32,
    pub listen: SocketAddr,
    pub identity: Arc<TlsIdentity>,
    pub peers: Vec<PeerConfig>,
    /// The versions of the frames' content this program speaks.
    pub versions: VersionRange,
    /// Draws the jitter of reconnects.
    pub seed: u64,
    pub runtime: RuntimeChoice,
    pub limits: Limits,
}

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    #[error(
        "peer address {addr} is already in use: stop the process that holds it or set another peer_listen"
    )]
    PortInUse { addr: SocketAddr },
    #[error("cannot listen on peer address {addr} ({source}): set peer_listen to an address of this host")]
    Listen { addr: SocketAddr, source: std::io::Error },
    #[error("replica {id} is listed as its own peer: remove it from the peers")]
    PeerIsSelf { id: u8 },
    #[error("replica {id} is listed twice among the peers: remove one of the two")]
    PeerTwice { id: u8 },
    #[error("replicas {first} and {second} have the same key {key}: give each replica its own")]
    KeyTwice { first: u8, second: u8, key: String },
    #[error("{setting} = {value} is out of range: set it within {range}")]
    OutOfRange { setting: &'static str, value: String, range: &'static str },
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("the transport's threads could not be started ({0}): raise the limit of threads")]
    Runtime(std::io::Error),
    #[error("the transport has been shut down: start a new one")]
    Stopped,
}

fn within(
    setting: &'static str,
    value: usize,
    min: usize,
    max: usize,
    range: &'static str,
) -> Result<(), TransportError> {
    if (min..=max).contains(&value) {
        Ok(())
    } else {
        Err(TransportError::OutOfRange { setting, value: value.to_string(), range })
    }
}

fn positive(setting: &'static str, value: Duration) -> Result<(), TransportError> {
    if (Duration::from_millis(1)..=Duration::from_secs(3600)).contains(&value) {
        return Ok(());
    }
    Err(TransportError::OutOfRange { setting, value: format!("{value:?}"), range: "1 ms..=1 h" })
}

impl Limits {
    /// # Errors
    /// The first bound or time outside its range.
    pub fn check(&self) -> Result<(), TransportError> {
        within("frame_bytes_max", self.frame_bytes_max, 1024, 1 << 30, "1 KiB..=1 GiB")?;
        within("handshakes_max", self.handshakes_max, 1, 65_536, "1..=65536")?;
        within("write_bytes_max", self.write_bytes_max, 1024, 1 << 24, "1 KiB..=16 MiB")?;
        within(
            "queue.patience_bytes",
            self.queue.patience_bytes,
            FRAGMENT_BYTES_MAX,
            1 << 30,
            "32 KiB..=1 GiB",
        )?;
        for bytes in self.queue.class_bytes_max.into_iter().chain([self.queue.total_bytes_max]) {
            within("queue bytes", bytes, 1024, 1 << 40, "1 KiB..=1 TiB")?;
        }
        positive("handshake_timeout", self.handshake_timeout)?;
        positive("connect_timeout", self.connect_timeout)?;
        positive("reconnect_pause_min", self.reconnect_pause_min)?;
        positive("reconnect_pause_max", self.reconnect_pause_max)?;
        positive("ping_interval", self.ping_interval)?;
        positive("silence_max", self.silence_max)?;
        if self.silence_max < 2 * self.ping_interval {
            let value = format!("{:?}", self.silence_max);
            let range = "twice the ping_interval or more";
            return Err(TransportError::OutOfRange { setting: "silence_max", value, range });
        }
        Ok(())
    }
}

impl TransportConfig {
    pub(crate) fn check(&self) -> Result<(), TransportError> {
        self.limits.check()?;
        if self.versions.min > self.versions.max {
            let value = format!("{}..={}", self.versions.min, self.versions.max);
            return Err(TransportError::OutOfRange { setting: "versions", value, range: "min <= max" });
        }
        let mut seen: Vec<(u8, PublicKey)> = vec![];
        for peer in &self.peers {
            check_peer(peer, self.me, &self.identity.public_key(), &seen)?;
            if seen.iter().any(|(id, _)| *id == peer.id) {
                return Err(TransportError::PeerTwice { id: peer.id });
            }
            seen.push((peer.id, peer.pin));
        }
        Ok(())
    }
}

/// Refuses a peer that is this replica or holds a key another one has.
pub(crate) fn check_peer(
    peer: &PeerConfig,
    me: u8,
    my_key: &PublicKey,
    others: &[(u8, PublicKey)],
) -> Result<(), TransportError> {
    if peer.id == me {
        return Err(TransportError::PeerIsSelf { id: me });
    }
    let holders = others.iter().map(|(id, key)| (*id, key)).chain([(me, my_key)]);
    match holders.into_iter().find(|(id, key)| *id != peer.id && **key == peer.pin) {
        Some((first, key)) => Err(TransportError::KeyTwice { first, second: peer.id, key: key_text(key) }),
        None => Ok(()),
    }
}
