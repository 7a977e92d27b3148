//! What a node must still know after its power is cut: a write-ahead log, a manifest that says whose disk
//! this is, and a store of snapshots.
//!
//! This crate moves bytes and refuses to know what they mean: no vote, command or key is named here. It
//! promises three things. What `Wal::sync` acknowledged is there at the next open, or the open is refused
//! with what to do. Bytes that are returned are the bytes that were given. A disk that lost its past (wiped,
//! rolled back, another node's) cannot pass for itself.
//!
//! Every byte is described in `docs/durable.md`. Start reading at [`DataDir`], then [`Wal`].

mod dir;
mod disk;
mod error;
mod manifest;
#[cfg(test)]
mod memory_disk;
mod snapshot;
mod wal;

pub use dir::{DataDir, Identity, OpenedDir};
pub use disk::{Disk, DiskFile, DiskLock, RealDisk};
pub use error::{StorageError, Warning};
pub use manifest::{DATA_FORMAT_VERSION, Manifest};
pub use snapshot::{CHUNK_BYTES_MAX, META_BYTES_MAX, SnapshotInfo, SnapshotStore, row};
pub use wal::{BATCH_BYTES_MAX, Lsn, OWNER_BYTES, RECORD_BYTES_MAX, Wal, WalRecord, WalSettings};
