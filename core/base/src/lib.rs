//! What every other room stands on: identities, places in the log as distinct types, quorum arithmetic, time and
//! chance as values, the canonical codec, signature domains, and the shared limits.
//!
//! This crate computes and nothing else: no clock, no randomness source, no thread, no socket, no file.
//! It knows no protocol. Read `ids`, then `quorum`, then `crypto`.
#![no_std]

extern crate alloc;

pub mod chance;
pub mod codec;
pub mod configuration;
pub mod crypto;
pub mod ids;
pub mod limits;
pub mod lthash;
pub mod mutants;
pub mod quorum;
pub mod time;

pub use chance::Chance;
pub use codec::{CodecError, decode, encode};
pub use configuration::{Ack, Configuration, Genesis, Member, NetworkMode, Policy, SettingsError, Trust};
pub use crypto::{Crypto, Hash, Hasher, PublicKey, Signature, SigningKind, signing_hash};
pub use ids::{
    ClusterId, ConfigurationId, Epoch, Incarnation, Index, Position, ReplicaId, Sequence, Term, Ticket, View,
};
pub use mutants::{Mutant, Mutants};
pub use quorum::Quorum;
pub use time::{LogTime, Micros, Now};
