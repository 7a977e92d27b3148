//! Delta-state CRDTs: values that any node may change at any time and that are equal wherever the same changes were
//! applied. Mathematics only: no messages, no signatures, no disk. A [`Bundle`] is what a frame will carry.
//!
//! ```text
//!   user's Op ──write──▶ Bundle of Deltas ──(any road, any order, any number of times)──▶ apply ──▶ Store
//! ```
//!
//! ```
//! use dwcp_crdt::{Applied, Bundle, Op, Origin, Plain, Resolvers, Store, View, Write};
//!
//! let now_ms = 1_700_000_000_000; // time is an argument
//! let mut a = Store::new(Origin::new(1, 0), Resolvers::default());
//! let mut b = Store::new(Origin::new(2, 0), Resolvers::default());
//!
//! // One write is one bundle, whole or not at all. The second argument is how far this node is known to have written.
//! let writes = [
//!     Write::new("likes", Op::Adjust(2)),
//!     Write::at("user/7", ["tags"], Op::Add(Plain::json("\"blue\"")?)),
//! ];
//! let bundle = a.write(&writes, 0, now_ms)?.expect("it changes something");
//! b.write(&[Write::new("likes", Op::Adjust(1))], 0, now_ms)?;
//!
//! // Bytes travel on any road; applying twice is applying once.
//! let bundle = Bundle::decode(bundle.encode())?;
//! assert!(matches!(b.apply(&bundle, now_ms)?, Applied::Done { .. }));
//! assert_eq!(b.apply(&bundle, now_ms)?, Applied::Duplicate);
//! assert_eq!(b.get(b"likes"), Some(View::Count(3)));
//! assert_eq!(b.conflict_count(), 0);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A bundle that comes before what it builds upon is held, and applied when that comes ([`Store::missing`] says what to
//! fetch). The value of a key is a function of the dots applied ([`Store::applied`]), gaps or not; the digest, of those
//! and the newest floor ([`Store::raise_floor`]). Read `dots`, then `delta`, then `store`; one file per type says what it does when two
//! people change it at once, and `docs/protocol/types.md` says it for users.
#![no_std]

extern crate alloc;

pub mod audit;
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
pub use collect::{Floor, FloorRefused, FloorState};
pub use delta::{Bundle, BundleError, Change, Delta};
pub use dots::{Dot, Interval, Origin, OriginId, VersionVector};
pub use held::Missing;
pub use history::{Conflict, Outcome};
pub use register::Version;
pub use resolver::{Resolver, Resolvers, Sibling, Strategy};
pub use snapshot::{Piece, Restore, RestoreError};
pub use store::{Applied, Refused, Store};
pub use value::{Kind, Plain, PlainError, View};
pub use write::{Op, Write, WriteRefused};
