//! State sync: changes of convergent data on their way between replicas, without anybody's order.
//!
//! ```text
//!   Store::write ─▶ Bundle ─▶ Sync::write ─▶ Frame ─┬─ Push, at once ───────────────┐
//!                                                   ├─ Ask/Answer/Rest, every 2 s ──┤
//!                                                   └─ the ordered log ─────────────┤
//!   Store::apply ◀─ Action::Apply ◀── in the order of its origin's chain ◀── Sync ◀─┘
//! ```
//!
//! [`Sync`] is one replica's part as a deterministic machine without input or output: it is told what time it is and what
//! came, and hands out [`Action`]s in order. It holds the frames, not the values: the store is its caller's, who applies
//! what it is handed and reports back (`on_applied`). It knows no virtual log; a frame that comes by the log is delivered
//! with `deliver_from_log` and is the same frame.
//!
//! Read `frame`, then `chain`, then `receive` and `exchange`; `freeze` for liars, `floor` for collection, `install` for
//! snapshots, `audit` for damage. `docs/protocol/sync.md` has the pictures.
#![no_std]

extern crate alloc;

mod accuse;
pub mod audit;
mod chain;
mod check;
pub mod config;
mod ending;
mod exchange;
pub mod floor;
pub mod frame;
mod freeze;
pub mod install;
pub mod limits;
pub mod message;
pub mod output;
pub mod proof;
mod receive;
pub mod record;
pub mod repair;
pub mod state;
mod step;
pub mod write;

pub use config::{Limits, Setup, Timing};
pub use ending::Stand;
pub use floor::FloorProblem;
pub use frame::{Frame, FrameError, Header, Received, SignedHeader};
pub use install::InstallError;
pub use message::Message;
pub use output::{Action, Fault, Need, Reason};
pub use proof::{Cut, End, Proof, contradict};
pub use record::{Base, FloorStep, Record};
pub use state::{Figures, OpenError, Restored, Sync};
pub use write::{WriteRefused, Written};
