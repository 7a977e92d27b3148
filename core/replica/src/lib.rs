//! One node's whole mind, deterministic: `step(now, input, outbox)`.
//!
//! ```text
//!  Input ──> admit ──> order ──> pbft ──> apply ──> Effect::Reply
//!              │          ▲        │         │
//!              └─ relay ──┘        └ Persist, Send
//!  transfer: fetches a certified snapshot from peers     recover: rebuilds all this from disk
//! ```
//! The rooms: `arrival` reads what came and verifies its signatures, many at once; `admit` takes client frames and may
//! not order; `order` proposes and may not execute; `apply` executes
//! and may not send votes; `transfer` and `serve` move snapshots and may not touch the log; `recover` only runs once.
//! Nothing here knows of sockets, files, clocks or threads. Read `io`, then `replica`.
#![no_std]

extern crate alloc;

mod admit;
mod anchors;
mod apply;
mod arrival;
mod bodies;
mod chunks;
pub mod config;
pub mod control;
mod court;
mod escape;
mod failover;
pub mod io;
mod order;
mod pool;
mod recover;
mod replica;
pub mod reply;
mod segment;
mod serve;
mod status;
pub mod steering;
mod switch;
pub mod sync;
mod transfer;
pub mod wire;

/// The face of a Raft node, for whoever brings another.
pub mod raft {
    pub use dwcp_raft::*;
}

pub use admit::ATTACHES_MAX;
pub use config::{SegmentSettings, Settings, Setup};
pub use control::Control;
pub use io::{
    Advice, Answered, Class, ClientId, ClientReply, ClientRequest, Effect, Event, ExecutedCommand,
    ExecutedReply, FrozenChunks, Input, Label, NotNow, OrderOutcome, PeerStatus, ProtocolName, ReadLabel,
    SegmentStatus, Status, SwitchStatus, Unanswered,
};
pub use recover::{RecoverError, RecoveredSnapshot, Recovery};
pub use replica::{MachineFactory, Outbox, Replica};
pub use serve::READS_MAX;
pub use steering::{Ending, Steering};
pub use sync::{Convergent, Road, SyncReply, SyncRequest, SyncSetup, SyncStatus};
pub use wire::{LogRecord, PeerMessage, SnapshotMeta};
