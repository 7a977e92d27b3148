//! The crash-tolerant segment protocol: Raft (Ongaro & Ousterhout, USENIX ATC 2014; Ongaro's thesis, 2014) for one epoch of
//! the virtual log, as a deterministic machine without input or output.
//!
//! [`Raft`] orders opaque bodies. It is told what time it is, hands out [`Action`]s in order, and never touches the world;
//! what bodies mean, how snapshots travel and when a segment opens and closes is its caller's business, who sees it
//! through [`RaftNode`]. Read `node`, then `message`, then `state`, then the phases: `election`, `replicate`, `read`,
//! `seal`. `docs/protocol/raft.md` has the pictures.
#![no_std]

extern crate alloc;

mod check;
pub mod config;
mod election;
mod log;
pub mod message;
pub mod node;
pub mod output;
mod read;
pub mod record;
mod replicate;
mod seal;
pub mod state;
pub mod step;
pub mod tickets;
mod timer;

pub use config::{Limits, SegmentSetup, Timing};
pub use dwcp_log::place::{Index, Place, Term};
pub use message::{Body, Conflict, Entry, Kind, Message, Payload, Said};
pub use node::{
    InstallError, OpenError, ProposeError, RaftMaker, RaftNode, ReadError, SealPoint, Sealed, TransferError,
};
pub use output::{Action, Output};
pub use record::{Border, HardState, Record};
pub use state::Raft;
pub use step::OwnRaft;
pub use tickets::TicketMap;
