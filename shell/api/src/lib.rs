//! What clients speak: the `dwcp.v3` gRPC service of one node, over TLS 1.3.
//!
//! It turns streams of messages into requests to the core and the core's replies into streams, and bounds what either
//! side can make the other hold. It verifies no frame and believes nothing it carries: signatures are the core's matter, so a
//! node's API need not be trusted by anybody. It checks only who may hear what: a stream hears of a session whose key it
//! proved to hold. It knows the node only through [`Port`]. Read `server`, then `session`, then `gate` and `port`.

mod convert;
mod gate;
mod listen;
mod node_port;
mod port;
mod readers;
mod server;
mod service;
mod session;
mod sync;
mod sync_convert;

pub use port::{Busy, Port, Replies, Requests};
pub use readers::Readers;
/// What a node makes of the messages of strangers, and shows: pure, for whoever judges that without a server.
pub mod reading {
    pub use crate::convert::question;
    pub use crate::sync_convert::{compare, conflicts, get, list, stand, view, watch, write, written};
}

pub use server::{Api, ApiConfig, ApiError, Limits};

#[cfg(test)]
mod tests;
