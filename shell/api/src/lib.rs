//! What clients speak: the `dwcp.v3` gRPC service of one node, over TLS 1.3.
//!
//! It turns streams of messages into requests to the core and the core's replies into streams, and bounds what either
//! side can make the other hold. It verifies no frame and believes nothing: signatures are the core's matter, so a node's
//! API need not be trusted by anybody. It knows the node only through [`Port`].
//! Read `server`, then `session`, then `port`.

mod convert;
mod listen;
mod node_port;
mod port;
mod server;
mod service;
mod session;

pub use port::{Busy, Port, Replies, Requests};
pub use server::{Api, ApiConfig, ApiError, Limits, Readers};

#[cfg(test)]
mod tests;
