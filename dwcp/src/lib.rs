//! State that is the same on every node of a cluster, whatever network lies between the nodes.
//!
//! A program embeds a node by implementing [`SmallMachine`] or [`StateMachine`] (or by taking the built-in key-value store)
//! and starting a [`Server`]; it speaks to a cluster through [`client::Client`], which believes nothing that f + 1 nodes
//! have not signed alike. The program `dwcp` in this package does both from the command line.
//!
//! # A node
//!
//! `dwcp init` (or [`init::trial_cluster`], or [`init::keygen`] and [`init::from_members`]) writes keys, genesis, data
//! directories and one settings file a node. From there:
//!
//! ```no_run
//! use dwcp::{NodeConfig, Server};
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let config = NodeConfig::load("trial/node0/config.toml".as_ref())?;
//! // `Server::start_with(config, |_genesis| Small::new(MyMachine::default()))` runs a machine of your own.
//! let server = Server::start(config).await?;
//! println!("clients are served on {}", server.client_addr());
//! let stop = server.run(async { drop(tokio::signal::ctrl_c().await) }).await?;
//! println!("the node ended: {stop:?}");
//! # Ok(())
//! # }
//! ```
//!
//! A machine must be deterministic: equal commands in equal order give equal results and equal bytes on every computer.
//! Every node of a cluster runs the same one. `examples/counter_bank.rs` is a whole cluster with a machine of its own.
//!
//! # A client
//!
//! ```no_run
//! use dwcp::client::{Client, ClientConfig};
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::connect(ClientConfig::read("trial/client.toml".as_ref(), None)?).await?;
//! let put = client.kv().put("a", "1").await?;
//! println!("revision {}, {}", put.revision, put.receipt);
//! # Ok(())
//! # }
//! ```
//!
//! Each result comes with a [`client::Receipt`]: label, position, view. An error tells *not applied* from *unknown*
//! ([`client::ClientError::fate`]); after *unknown*, read before writing again. `examples/client.rs` does.
//!
//! # Both at once
//!
//! [`AdaptiveConsensus`] is a node and a client in one object: it proposes values, orders modes, and says how it fares,
//! whichever protocol orders commands at the moment. `examples/adaptive.rs` starts four of them.
//!
//! # What stands where
//!
//! | | |
//! |---|---|
//! | [`AdaptiveConsensus`], [`adaptive`] | a node, a client and an operator in one |
//! | [`operator`] | mode orders: numbered, signed, handed in |
//! | [`Server`], [`Node`], [`NodeHandle`], [`Stop`], [`StartOptions`] | a node with and without its client port |
//! | [`raft`] | what a Raft of your own must be |
//! | [`NodeConfig`], [`settings`], [`init`] | settings files, keys, genesis |
//! | [`SmallMachine`], [`Small`], [`StateMachine`], [`Context`], [`MachineRefusal`] | machines of your own |
//! | [`kv`], [`txn_text`] | commands and answers of the built-in store; transactions as people write them |
//! | [`client`] | sessions, retries, f + 1 equal replies |
//! | [`api`], [`proto`] | the `dwcp.v3` service, for those who serve or speak it themselves |
//!
//! Only names and [`Server`] stand here; each is documented where it lives.

pub mod adaptive;
#[cfg(feature = "cli")]
pub mod child;
pub mod operator;
pub mod plain_http;
pub mod proxy;
mod server;
pub mod state_sync;
pub mod txn_text;

pub use adaptive::AdaptiveConsensus;
pub use dwcp_base as base;
pub use dwcp_client as client;
pub use dwcp_proto as proto;
pub use dwcp_state as state;

pub use dwcp_base::{Ack, NetworkMode};
pub use dwcp_node::{
    DropReason, Drops, Health, Hint, HintReport, Mode, Node, NodeConfig, NodeError, NodeHandle, Standing,
    StartOptions, Stop, init, settings,
};
pub use dwcp_replica::{Label, ProtocolName, Status, raft};
pub use dwcp_state::kv;
pub use dwcp_state::{Context, MachineRefusal, Small, SmallMachine, StateMachine};
pub use server::{Server, ServerError};
pub use state_sync::StateSync;

/// What clients speak to a node.
pub use dwcp_api as api;
