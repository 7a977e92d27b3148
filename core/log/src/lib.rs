//! The log's own vocabulary: what a root proposal holds, how entries become positions of the virtual log with a hash chain
//! over all of them, and how a stretch of it is handed to a segment and taken back. Pure data and folding; it knows
//! neither PBFT nor Raft nor what commands mean. Read `entry`, then `chain`, `segment`, `seal`, `close`, `collection`, `anchor`, `cursor`, `fold`; `consent` stands by itself.
#![no_std]

extern crate alloc;

pub mod anchor;
pub mod chain;
pub mod close;
pub mod collection;
pub mod consent;
pub mod cursor;
pub mod entry;
pub mod fold;
pub mod order;
pub mod place;
pub mod seal;
pub mod segment;

pub use anchor::{Anchor, AnchorVote};
pub use chain::VirtualLog;
pub use close::{Close, CloseProof};
pub use collection::Collection;
pub use consent::{Agreed, Matter, Stance};
pub use cursor::Cursor;
pub use entry::{Decide, Proposal, RootEntry, Switch};
pub use fold::Fold;
pub use order::{
    ExcludeOrder, MemberOrder, ModeOrder, OperatorOrder, PolicyOrder, SignedExcludeOrder, SignedMemberOrder,
    SignedModeOrder, SignedOrder, SignedPolicyOrder,
};
pub use place::{Index, Place, Term};
pub use segment::{Open, Segment};
