//! Authenticated links between the replicas of one cluster: TLS 1.3 with pinned Ed25519 keys, frames of opaque bytes
//! in five classes, bounded queues that drop rather than block, reconnects, and measurements of the network.
//!
//! It does not know what a frame means, which protocol runs, or what an incarnation is worth; it only carries them.
//! Read `transport.rs` for the verbs, `dial.rs` and `accept.rs` for the life of a link, `identity.rs` for who may
//! enter. Every replica dials every other one and sends on the link it dialled, so a pair shares two connections.
//!
//! ```text
//! send -> queue -> dial ==TLS==> accept -> Sink::frame        (frames, pings)
//!                  dial <==TLS== accept                       (pongs, beats, farewells)
//! ```
//!
//! Where a peer is dialled is a setting; hints (`hint_addresses`) add places that are tried in turn with it, and
//! `seek.rs` asks an address whose it is. Whatever the address, the pinned key decides.

mod accept;
mod config;
mod dial;
mod frame;
mod handshake;
mod hello;
mod identity;
mod measure;
mod peer;
mod queue;
pub mod readers;
mod reason;
mod seek;
mod transport;

pub use config::{Limits, PeerConfig, PeerId, RuntimeChoice, TransportConfig, TransportError};
pub use frame::Class;
pub use hello::VersionRange;
pub use identity::{
    CERTIFICATE_NAME, IdentityError, PinSet, PublicKey, TlsIdentity, client_config, key_text,
    peer_public_key, server_config,
};
pub use peer::{Delivery, LinkUp, PeerStats, Sink, TransportStats};
pub use queue::{QueueLimits, Sent};
pub use reason::{LinkEnd, Reason};
pub use transport::Transport;
