//! The world of state sync: nodes that write convergent values, meet by gossip and by an ordered log, die, lie and sleep,
//! in virtual time, judged by `check::sync`.
//!
//! Each node is a `dwcp_sync::Sync` with its store, driven as a server would drive it. The log is no protocol here: it is
//! a list that everybody reads in one order at his own pace. Read `world`, then `driver`, then `faults`; `ending` for what
//! is demanded.

pub mod command;
pub mod coverage;
pub mod dials;
pub mod driver;
pub mod ending;
pub mod faults;
pub mod liar;
pub mod log;
pub mod mutants;
pub mod node;
pub mod translate;
pub mod workload;
pub mod world;
