//! State that is the same on every node of a cluster, whatever network lies between the nodes.
//!
//! A program embeds a node by implementing [`StateMachine`] (or by taking the built-in key-value store) and calling
//! [`Node::start_with`]; it speaks to a cluster through [`client::Client`], which believes nothing that f + 1 nodes have
//! not signed alike. The program `dwcp` in this package does both from the command line.
//!
//! Only names stand here; each is documented where it lives. What clients speak to a node is [`api`], settings and keys
//! are [`settings`] and [`init`].

pub use dwcp_base as base;
pub use dwcp_client as client;
pub use dwcp_proto as proto;
pub use dwcp_state as state;

pub use dwcp_node::{Mode, Node, NodeConfig, NodeError, NodeHandle, Stop, init, settings};
pub use dwcp_replica::{Label, Status};
pub use dwcp_state::kv;
pub use dwcp_state::{Context, MachineRefusal, Small, SmallMachine, StateMachine};

/// What clients speak to a node.
pub use dwcp_api as api;
