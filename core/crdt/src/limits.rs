//! Limits that every replica must agree on, because they decide which bundles are valid, and the bounds of what one
//! node keeps. A bundle beyond the first kind is refused by everybody; the second kind only delays.

/// Bytes of one encoded bundle: what a frame of 256 KiB leaves beside its header and signature.
pub const BUNDLE_BYTES_MAX: usize = 255 * 1024;
/// Deltas in one bundle.
pub const BUNDLE_DELTAS_MAX: usize = 8_192;
/// Bytes of a key.
pub const KEY_BYTES_MAX: usize = 1_024;
/// Bytes of the name of a map's field.
pub const FIELD_BYTES_MAX: usize = 1_024;
/// How deep values nest: a key that holds a set has depth 1, a map of maps of registers depth 3.
pub const DEPTH_MAX: usize = 8;
/// Fields on the way to a value: one less than the depth.
pub const PATH_FIELDS_MAX: usize = DEPTH_MAX - 1;
/// Bytes of one register value, set element or list item.
pub const VALUE_BYTES_MAX: usize = 128 * 1024;
/// How deep a JSON document nests.
pub const JSON_DEPTH_MAX: usize = 64;
/// Dots that one delta may name. An honest one names as many as there are siblings.
pub const NAMES_MAX: usize = 4_096;
/// The highest counter of a dot. At a million writes a second it lasts a hundred thousand years.
pub const COUNTER_MAX: u64 = 1 << 62;
/// Origins, past incarnations included, that a version vector may name.
pub const ORIGINS_MAX: usize = 4_096;
/// Intervals of one origin in a version vector: a bundle that would make more gaps is refused until some are filled.
pub const INTERVALS_MAX: usize = 1_024;
/// Bundles of one origin that may wait for what they build upon; beyond it they are refused and fetched again later.
pub const HELD_BUNDLEES_MAX: usize = 512;
/// Encoded bytes of one origin's waiting bundles.
pub const HELD_BYTES_MAX: usize = 16 * 1024 * 1024;
/// How far ahead of the local clock a remote timestamp may be, in milliseconds.
pub const DRIFT_MAX_MS: u64 = 500;
/// How far ahead of the local clock a writer's own timestamp may be, because of what it has seen or written before. As far as
/// the log lets a frame pass: whoever orders one allows [`DRIFT_MAX_MS`] by his clock, and others' clocks differ from his. So a
/// member that hurries its clock as far as it may keeps nobody from writing.
pub const WRITE_AHEAD_MAX_MS: u64 = 2 * DRIFT_MAX_MS;
/// Conflicts remembered for people to look at.
pub const HISTORY_EVENTS_MAX: usize = 1_000;
/// Collection floors remembered while they wait to become stable.
pub const FLOORS_MAX: usize = 8;
