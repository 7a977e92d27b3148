//! The built-in state machine: a multi-version key-value store with etcd's data model. One revision counts for the whole
//! store; each key has the revision it was created and last changed at, a version, and perhaps a lease.
//!
//! Rooms: `wire` is what commands and replies look like, `index` finds a key's `history` (over `heads`, which spare it the
//! keys themselves), `store` keeps versions, `machine` runs commands, `lease` knows when keys die, `snapshot` writes and
//! reads chunks. Nothing here knows sessions, principals' names or positions in the
//! log beyond what `Context` says.

mod border;
mod error;
mod heads;
mod history;
mod index;
mod lease;
mod machine;
mod snapshot;
mod store;
pub mod wire;

pub use border::range_meets;
pub use error::KvError;
pub use lease::{LEASE_TTL_MAX_S, LEASES_MAX};
pub use machine::{Kv, REPLY_BYTES_MAX};
pub use snapshot::FrozenKv;
pub use store::{Event, EventKind, VERSION_BYTES};
pub use wire::{
    Compare, CompareOp, CompareTarget, DeleteRange, KeyValue, KvBody, KvCommand, KvReply, Put, Range, SortBy,
    SortOrder, Txn, TxnOp, TxnReply, prefix_end,
};
