//! Delta-state CRDTs: values that any node may change at any time and that are equal wherever the same changes were
//! applied. Mathematics only: no messages, no signatures, no disk. A [`Batch`] is what a frame will carry.
//!
//! ```text
//!   user's Op ──write──▶ Batch of Deltas ──(any road, any order, any number of times)──▶ apply ──▶ Store
//! ```
//!
//! Make a [`Store`] per node, [`Store::write`] operations, [`Store::apply`] the batches that others wrote, [`Store::get`]
//! values. Time is an argument. Read `dots`, then `delta`, then `store`; one file per type says what it does when two
//! people change it at once, and `docs/protocol/types.md` says it for users.
#![no_std]

extern crate alloc;

pub mod causal;
pub mod clock;
pub mod collect;
pub mod counter;
pub mod delta;
pub mod dots;
pub mod held;
pub mod history;
mod json;
pub mod limits;
mod list;
mod map;
mod node;
pub mod register;
pub mod resolver;
mod set;
pub mod snapshot;
pub mod store;
pub mod value;
mod wire;
pub mod write;

pub use causal::Stamp;
pub use clock::{Clock, ClockAhead, Hlc};
pub use collect::{Floor, FloorRefused};
pub use delta::{Batch, BatchError, Change, Delta};
pub use dots::{Dot, Interval, Origin, OriginId, VersionVector};
pub use held::Missing;
pub use history::{Conflict, Outcome};
pub use register::Version;
pub use resolver::{Resolver, Resolvers, Sibling, Strategy};
pub use snapshot::{Piece, Restore, RestoreError};
pub use store::{Applied, Refused, Store};
pub use value::{Kind, Plain, PlainError, View};
pub use write::{Op, Write, WriteRefused};
