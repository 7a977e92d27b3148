//! Limits that every replica must agree on, because they decide which frames and messages are valid. What one replica keeps
//! is bounded by its settings (`config`).

use dwcp_base::limits::MESSAGE_BYTES_MAX as LINK_MESSAGE_BYTES_MAX;
use dwcp_crdt::limits::{BUNDLE_BYTES_MAX, ORIGINS_MAX};

/// Bytes of one encoded frame: a bundle of the largest size, its header and signature.
pub const FRAME_BYTES_MAX: usize = 256 * 1024;
/// Bytes of one message.
pub const MESSAGE_BYTES_MAX: usize = LINK_MESSAGE_BYTES_MAX;
/// Frames in one message.
pub const MESSAGE_FRAMES_MAX: usize = 4_096;
/// Origins that one replica tells of.
pub const HEADS_MAX: usize = ORIGINS_MAX;
/// Stretches behind a gap that one head tells of; those beyond are sent once more than needed.
pub const HEAD_STRETCHES_MAX: usize = 16;
/// Headers in one message that may show their receiver a contradiction.
pub const HINTS_MAX: usize = 64;
/// How often a pushed frame is passed on.
pub const HOPS_MAX: u8 = 8;
/// Ranges of keys in one message of an audit.
pub const AUDIT_RANGES_MAX: usize = 64;
/// Parts that a differing range is split into.
pub const AUDIT_SPLIT: usize = 16;
/// Keys of a range that is not split further; their fingerprints are sent one by one.
pub const AUDIT_LEAF_KEYS: usize = 16;
/// Keys in one leaf of a message. More than [`AUDIT_LEAF_KEYS`], for the other side may have grown a few.
pub const AUDIT_LEAF_KEYS_MAX: usize = 64;
/// Ranges of one origin's keys that differ are followed until so many keys are named; the next audit finds the rest.
pub const AUDIT_KEYS_NAMED_MAX: usize = 256;
/// Keys that members are asked for copies of at once, and bytes of copies in one answer. A larger state is not put right this way.
pub const COPY_KEYS_MAX: usize = 64;
pub const COPIES_BYTES_MAX: usize = 1 << 20;

const _: () = assert!(BUNDLE_BYTES_MAX + 1024 <= FRAME_BYTES_MAX, "header and signature fit beside a bundle");
