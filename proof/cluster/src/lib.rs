//! Real processes over loopback, real signals, real disks, and judges who only read what the clients wrote down.
//!
//! ```text
//!   campaign ── SIGKILL, SIGSTOP, wiped and full disks, partitions ──► cluster ── processes ──► serve (one node, as `dwcp server` runs it)
//!                                                    ▲
//!   load ── sessions of dwcp-client ─────────────────┘
//!     │
//!     └─ journals ──► judgement ── `check` ──► report
//! ```
//!
//! The simulator finds what a seed can find; here is what it cannot see: the runtime, the disk, the sockets, the client
//! library and the kernel between them. Nothing of a server is believed but what it answered to a client; the one
//! exception are state digests, which must be equal at an equal sequence. Read `campaign`, then `judgement`.

pub mod campaign;
pub mod cluster;
pub mod error;
pub mod judgement;
pub mod load;
pub mod network;
pub mod parted;
pub mod process;
pub mod replace;
pub mod report;
pub mod serve;
pub mod soak;
pub mod stretch;
pub mod translate;
pub mod watch;

pub use campaign::{Campaign, Fault, Plan};
pub use cluster::{Cluster, Options};
pub use error::Trouble;
pub use judgement::Judgement;
pub use load::Load;
pub use soak::Soak;
