//! Membership hints: who of the members seems to be there, and where each says that it can be reached.
//!
//! ```text
//!   Input::Peer, LinkUp, LinkDown, Seed, Members, Tick ─▶ SwimHints ─▶ Effect::Send, Changed
//!                                                          │
//!                          who is there: `swim.rs` (SWIM, by foca)    where it is: `record.rs`, signed by its owner
//! ```
//!
//! A hint decides nothing. Who votes, and with which key, is what the log says; a record of anybody else is dropped. The worst
//! that a liar reaches is that a member is shown as down, and that an address is tried at which nobody holds its key.
//!
//! The room stands in the shell because foca wants `rand`, which no room of the core may link. It obeys the core's rules all
//! the same: time and seed are arguments, nothing is read from the machine, and equal inputs have equal effects. Links, files
//! and settings are not known here. Read `hints`, then `gossip`; `wire` for the bytes. docs/protocol/sync.md tells what
//! travels when.
#![no_std]

extern crate alloc;

mod drops;
mod gossip;
mod hints;
mod record;
mod swim;
mod wire;

pub use drops::{DropReason, Drops};
pub use gossip::{Setup, SwimHints};
pub use hints::{Effect, Hint, Hints, Input, Known, Standing};
pub use record::{ADDRESS_BYTES_MAX, Record, RecordFault, check_address};
pub use swim::Timing;
pub use wire::{Identity, MESSAGE_BYTES_MAX, Message, Packet, RECORDS_MAX, Update, Word};
