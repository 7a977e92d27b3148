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
mod apply;
mod arrival;
pub mod config;
pub mod control;
pub mod io;
mod order;
mod pool;
mod recover;
mod replica;
pub mod reply;
mod serve;
mod status;
mod transfer;
pub mod wire;

pub use config::{Settings, Setup};
pub use control::Control;
pub use io::{
    Class, ClientId, ClientReply, ClientRequest, Effect, Event, ExecutedCommand, ExecutedReply, FrozenChunks,
    Input, Label, OrderOutcome, PeerStatus, Status,
};
pub use recover::{RecoverError, RecoveredSnapshot, Recovery};
pub use replica::{MachineFactory, Outbox, Replica};
pub use wire::{PeerMessage, SnapshotMeta};
