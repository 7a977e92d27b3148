//! The runtime of one node: everything around the core that touches the world, except what clients speak.
//!
//! ```text
//!            links (TLS)         API                disk threads
//!                 │               │                      │
//!                 ▼               ▼                      ▼
//!   inbox:   [ per peer ]   [ per client ]         [ outcomes ]      bounded per source, emptied in turns
//!                 └───────────────┼──────────────────────┘
//!                                 ▼
//!   core loop:     step each ─ settle ─ append ─ one sync ─ release in order        one thread
//!                                 │
//!            links ◄──────── replies ────────► snapshots
//! ```
//!
//! `init` makes what must exist before a node can run; [`Node::start`] runs one; [`NodeHandle`] is how the API, HTTP and
//! the server's main talk to it. The meaning of messages, commands and state is the core's and not known here.
//! Read `node.rs`, then `start.rs`, then `core_loop.rs`.

mod client;
mod clock;
mod core_loop;
mod events;
mod exposition;
pub mod genesis_file;
mod hinting;
mod http;
mod inbox;
pub mod init;
pub mod keys;
mod links;
mod logging;
mod metrics;
mod node;
mod process;
pub mod settings;
mod snapshots;
mod start;
mod sync_http;
pub mod sync_json;
pub mod sync_question;

pub use dwcp_hints::{DropReason, Drops, Hint, Standing};

pub use client::{Busy, ClientPort, ClientReplies, ClientRequests};
pub use hinting::HintReport;
pub use http::HttpError;
pub use logging::{LIFE, start_journal};
pub use node::{
    EXIT_FAILED, EXIT_HALTED, Health, Node, NodeError, NodeHandle, NotAnswering, StartOptions, Stop,
};
pub use settings::{LogLevel, Mode, NodeConfig, SettingsError};
