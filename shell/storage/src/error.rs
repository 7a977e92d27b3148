//! Every way storage can refuse, one line each, ending in what to do.
//!
//! Three families: the caller asked for what cannot be (retry differently), the disk is full (free space and
//! retry), the disk lied or lost something (stop; the remedy is named). The last family is never retried.

use std::io;
use std::path::{Path, PathBuf};

/// Why storage refused. The text is meant for an operator and fits one line.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    #[error("cannot {action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },

    #[error("no space left for {}: free disk space on that volume, then retry", path.display())]
    DiskFull { path: PathBuf, source: io::Error },

    #[error("{} is in use by another process (pid {holder}): stop it first; one data directory serves one process", path.display())]
    Locked { path: PathBuf, holder: String },

    #[error(
        "{} is damaged at byte {offset}: {what}. Do not delete it to get going: promises this node signed may \
         be lost. Restore the disk, or re-admit the node with `dwcp member replace`", path.display()
    )]
    Damaged { path: PathBuf, offset: u64, what: String },

    #[error(
        "log segment {} is missing although later ones exist: restore it, or re-admit the node with \
         `dwcp member replace`", path.display()
    )]
    SegmentMissing { path: PathBuf },

    #[error(
        "{} holds no log although this node was initialised: its disk was wiped; it cannot rejoin as itself, \
         re-admit it with `dwcp member replace`", path.display()
    )]
    LogMissing { path: PathBuf },

    #[error(
        "{} ends before record {found} but this node had reached record {required}: its disk was rolled back \
         to an older state; re-admit it with `dwcp member replace`", path.display()
    )]
    RolledBack { path: PathBuf, found: u64, required: u64 },

    #[error(
        "{} begins at record {first} but replay must start at record {required}: older segments were removed; \
         restore them, or re-admit the node with `dwcp member replace`", path.display()
    )]
    RecordsMissing { path: PathBuf, first: u64, required: u64 },

    #[error(
        "{} does not exist: this directory has never been initialised or its disk was lost; run `dwcp init` \
         for a new cluster, or `dwcp member replace` for a member whose disk was lost", path.display()
    )]
    NotInitialised { path: PathBuf },

    #[error("{} already exists: this directory belongs to a node; choose an empty one", path.display())]
    AlreadyInitialised { path: PathBuf },

    #[error("{} has format {found}, this program reads format {supported}: use the version of dwcp that wrote it or newer", path.display())]
    FormatUnknown { path: PathBuf, found: u16, supported: u16 },

    #[error("{} was written by another node or incarnation: point this node at its own data directory", path.display())]
    OwnerDiffers { path: PathBuf },

    #[error("setting {name} = {value} is impossible: allowed is {range}")]
    SettingImpossible { name: &'static str, value: u64, range: &'static str },

    #[error("record of {bytes} bytes refused: the largest is {max}; split it")]
    RecordTooLarge { bytes: usize, max: usize },

    #[error("batch would hold {bytes} bytes, the largest is {max}: sync what is buffered, then append again")]
    BatchFull { bytes: usize, max: usize },

    /// The kernel could not promise durability. What it did write is unknown, and asking again may be answered
    /// with a false yes, so this is final.
    #[error("{action} of {} failed: {source}; what is on disk is unknown, the process must stop and restart", path.display())]
    SyncFailed { action: &'static str, path: PathBuf, source: io::Error },

    #[error("the log stopped at an earlier failure ({cause}): the process must stop and restart")]
    Poisoned { cause: String },

    #[error("snapshot {seq} does not exist: begin it first")]
    SnapshotMissing { seq: u64 },

    #[error("snapshot {seq} is already complete: delete it before writing it again")]
    SnapshotComplete { seq: u64 },

    #[error("snapshot {seq} was begun with other metadata: delete it before beginning it anew")]
    SnapshotMetaDiffers { seq: u64 },

    #[error("snapshot {seq} has no chunk {index}: put it first")]
    ChunkMissing { seq: u64, index: u32 },

    #[error(
        "a failure took the latest chunks of snapshot {seq}: begin it again and put those that are missing"
    )]
    ChunksLost { seq: u64 },

    #[error("{what} of {bytes} bytes refused: the largest is {max}; split it")]
    ValueTooLarge { what: &'static str, bytes: usize, max: usize },

    #[error(
        "snapshot {seq} chunk {index} in {} does not match its checksum: delete the snapshot and take or fetch \
         another", path.display()
    )]
    ChunkDamaged { path: PathBuf, seq: u64, index: u32 },

    #[error(
        "snapshot store {} is damaged ({what}): move it away; the node fetches a snapshot from its peers",
        path.display()
    )]
    StoreDamaged { path: PathBuf, what: String },
}

impl StorageError {
    /// Sorts an I/O failure: a full disk can be waited out, everything else is named as it is.
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        if is_disk_full(&source) {
            return Self::DiskFull { path: path.into(), source };
        }
        Self::Io { action, path: path.into(), source }
    }

    pub(crate) fn damaged(path: &Path, offset: u64, what: impl Into<String>) -> Self {
        Self::Damaged { path: path.into(), offset, what: what.into() }
    }

    /// True when freeing space and calling again may succeed.
    pub fn is_disk_full(&self) -> bool {
        matches!(self, Self::DiskFull { .. })
    }
}

pub(crate) fn is_disk_full(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

/// Something was repaired while opening; nothing acknowledged was lost by it as far as the disk can tell.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Warning {
    #[error("{}: an unfinished write at byte {offset} was cut off (the last write before the crash)", path.display())]
    TornTail { path: PathBuf, offset: u64 },
    #[error("{}: an unfinished file was removed", path.display())]
    UnfinishedFile { path: PathBuf },
}
