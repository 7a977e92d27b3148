//! Limits that every replica must agree on, because they decide what is valid. Local resource bounds are settings.

/// Bytes of one client command.
pub const COMMAND_BYTES_MAX: usize = 1_572_864;
/// Commands in one session frame.
pub const FRAME_COMMANDS_MAX: usize = 256;
/// Bytes of one encoded session frame (one command of the largest size and its envelope fit).
pub const FRAME_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Commands of one session beyond its low-water mark that may be in flight or remembered.
pub const SESSION_WINDOW: u64 = 1024;
/// Sessions that may be open at once.
pub const SESSIONS_MAX: usize = 65_536;
/// Bytes of one proposal of the root log.
pub const PROPOSAL_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Entries of one proposal of the root log: a batch, and whatever the operator ordered.
pub const PROPOSAL_ENTRIES_MAX: u32 = 32;
/// Bytes of one message between replicas.
pub const MESSAGE_BYTES_MAX: usize = 8 * 1024 * 1024;
/// How deep a transaction may nest.
pub const TXN_DEPTH_MAX: usize = 8;
/// Operations in one transaction, nested ones included.
pub const TXN_OPERATIONS_MAX: usize = 128;
/// How far a proposer's clock may be ahead of a backup's, in milliseconds.
pub const CLOCK_AHEAD_MAX_MS: u64 = 500;
/// The most by which one entry advances expiry, in milliseconds: an outage does not expire leases by itself.
pub const EXPIRY_STEP_MAX_MS: u64 = 2_000;
