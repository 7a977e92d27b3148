//! The log's own vocabulary: what a root proposal holds, and how entries become positions of the virtual log with a
//! hash chain over all of them. Pure data and folding; it knows neither PBFT nor what commands mean.
//! Read `entry`, then `chain`.
#![no_std]

extern crate alloc;

pub mod chain;
pub mod entry;
pub mod order;

pub use chain::VirtualLog;
pub use entry::{Proposal, RootEntry};
pub use order::{MemberOrder, SignedMemberOrder};
