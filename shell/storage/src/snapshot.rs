//! Snapshots in chunks, and a few named values, in one `redb` file. A snapshot being written or received is
//! visible as incomplete and survives a restart up to the last durable chunk; `finish` makes it durable.
//!
//! It knows numbers, chunks and checksums, not what a snapshot is of. `redb` verifies its pages only when it
//! repairs, so every value carries a checksum of its own, seeded with its key, verified at every read.

pub mod row;

use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use redb::{Builder, Database, DatabaseError, Durability, ReadableDatabase, ReadableTable, TableDefinition};

use self::row::{CRC_BYTES, encode_info, meta_crc};
use crate::error::StorageError;

/// Largest chunk.
pub const CHUNK_BYTES_MAX: usize = 1 << 30;
/// Largest metadata of a snapshot, and largest named value.
pub const META_BYTES_MAX: usize = 1 << 20;
/// Chunks put since the last durable commit, in bytes: what a crash may cost an unfinished snapshot.
const UNSYNCED_BYTES_MAX: u64 = 4 << 20;
/// Left alone, `redb` takes a gigabyte.
const CACHE_BYTES: usize = 32 << 20;

const SNAPSHOTS: TableDefinition<u64, &[u8]> = TableDefinition::new("snapshots");
const CHUNKS: TableDefinition<(u64, u32), &[u8]> = TableDefinition::new("chunks");
const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotInfo {
    pub seq: u64,
    pub meta: Vec<u8>,
    /// Distinct chunks present; of a complete snapshot they are 0..chunks.
    pub chunks: u32,
    pub bytes: u64,
    pub complete: bool,
}

type Opener = Box<dyn Fn() -> Result<Database, DatabaseError> + Send + Sync>;

/// Shared between threads as it is; writers take turns, readers never wait for them.
pub struct SnapshotStore {
    path: PathBuf,
    opener: Opener,
    /// `None` after a failure: `redb` refuses everything then, so the next call opens the file again.
    database: RwLock<Option<Database>>,
    unsynced_bytes: AtomicU64,
    /// A failure took chunks that were not yet durable. Until a snapshot is begun again nothing is added or
    /// finished, or one could be declared complete without its end.
    chunks_lost: AtomicBool,
}

impl fmt::Debug for SnapshotStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SnapshotStore").field("path", &self.path).finish_non_exhaustive()
    }
}

impl SnapshotStore {
    /// Opens the store, or begins an empty one.
    pub fn open(path: &Path) -> Result<Self, StorageError> {
        let file = path.to_path_buf();
        Self::open_with(path, Box::new(move || builder().create(&file)))
    }

    fn open_with(path: &Path, opener: Opener) -> Result<Self, StorageError> {
        let store = Self {
            path: path.into(),
            opener,
            database: RwLock::new(None),
            unsynced_bytes: AtomicU64::new(0),
            chunks_lost: AtomicBool::new(false),
        };
        // Readers find the tables there from now on.
        store.write(Durability::Immediate, |write| {
            write.open_table(SNAPSHOTS)?;
            write.open_table(CHUNKS)?;
            write.open_table(META)?;
            Ok(())
        })?;
        Ok(store)
    }

    /// Begins a snapshot, or takes up an incomplete one that was begun with the same metadata.
    pub fn begin(&self, seq: u64, meta: &[u8]) -> Result<(), StorageError> {
        refuse_above("snapshot metadata", meta, META_BYTES_MAX)?;
        self.write(Durability::None, |write| {
            let mut snapshots = write.open_table(SNAPSHOTS)?;
            if let Some(info) = self.info(&snapshots, seq)? {
                return match (info.complete, info.meta == meta) {
                    (true, _) => refused(StorageError::SnapshotComplete { seq }),
                    (false, true) => Ok(()),
                    (false, false) => refused(StorageError::SnapshotMetaDiffers { seq }),
                };
            }
            let info = SnapshotInfo { seq, meta: meta.into(), chunks: 0, bytes: 0, complete: false };
            snapshots.insert(seq, &encode_info(&info)[..])?;
            Ok(())
        })?;
        self.chunks_lost.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// Adds a chunk, or replaces it. In any order.
    pub fn put_chunk(&self, seq: u64, index: u32, bytes: &[u8]) -> Result<(), StorageError> {
        refuse_above("chunk", bytes, CHUNK_BYTES_MAX)?;
        self.refuse_after_loss(seq)?;
        let unsynced = self.unsynced_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        let durable = unsynced + bytes.len() as u64 >= UNSYNCED_BYTES_MAX;
        let durability = if durable { Durability::Immediate } else { Durability::None };
        self.write(durability, |write| {
            let mut snapshots = write.open_table(SNAPSHOTS)?;
            let mut info = self.incomplete(&snapshots, seq)?;
            let mut chunks = write.open_table(CHUNKS)?;
            let replaced = chunks.get((seq, index))?.map(|old| old.value().len().saturating_sub(CRC_BYTES));
            let more = u32::from(replaced.is_none());
            let counted = info.chunks.checked_add(more).zip(info.bytes.checked_add(bytes.len() as u64));
            let (count, total) = counted.ok_or_else(|| self.miscounted(seq))?;
            info.chunks = count;
            info.bytes = total.saturating_sub(replaced.unwrap_or(0) as u64);
            let mut value = chunks.insert_reserve((seq, index), CRC_BYTES + bytes.len())?;
            row::seal_into(seq, index, bytes, value.as_mut());
            drop(value);
            snapshots.insert(seq, &encode_info(&info)[..])?;
            Ok(())
        })
    }

    /// Declares the snapshot complete: chunks 0..n without a gap, durable when this returns.
    pub fn finish(&self, seq: u64) -> Result<(), StorageError> {
        self.refuse_after_loss(seq)?;
        self.write(Durability::Immediate, |write| {
            let mut snapshots = write.open_table(SNAPSHOTS)?;
            let mut info = match self.incomplete(&snapshots, seq) {
                Err(Fault::Refused(StorageError::SnapshotComplete { .. })) => return Ok(()),
                info => info?,
            };
            let chunks = write.open_table(CHUNKS)?;
            let mut next = 0;
            for entry in chunks.range(all_chunks(seq))? {
                if next == info.chunks {
                    return refused(self.miscounted(seq));
                }
                if entry?.0.value().1 != next {
                    return refused(StorageError::ChunkMissing { seq, index: next });
                }
                next += 1;
            }
            // The count is a row's word: it may be of more than there is.
            if next < info.chunks {
                return refused(StorageError::ChunkMissing { seq, index: next });
            }
            info.complete = true;
            snapshots.insert(seq, &encode_info(&info)[..])?;
            Ok(())
        })
    }

    /// Makes durable what was put so far.
    pub fn flush(&self) -> Result<(), StorageError> {
        self.write(Durability::Immediate, |_| Ok(()))
    }

    /// All snapshots, lowest first, incomplete ones included.
    pub fn list(&self) -> Result<Vec<SnapshotInfo>, StorageError> {
        self.read(|read| {
            let snapshots = read.open_table(SNAPSHOTS)?;
            let mut infos = Vec::new();
            for entry in snapshots.iter()? {
                let (seq, value) = entry?;
                infos.push(self.decode_info(seq.value(), value.value())?);
            }
            Ok(infos)
        })
    }

    /// Which chunks are present: what a resumed transfer need not fetch again.
    pub fn chunk_indexes(&self, seq: u64) -> Result<Vec<u32>, StorageError> {
        self.read(|read| {
            let chunks = read.open_table(CHUNKS)?;
            chunks.range(all_chunks(seq))?.map(|entry| Ok(entry?.0.value().1)).collect()
        })
    }

    pub fn read_chunk(&self, seq: u64, index: u32) -> Result<Vec<u8>, StorageError> {
        self.read(|read| {
            let chunks = read.open_table(CHUNKS)?;
            let Some(value) = chunks.get((seq, index))? else {
                return refused(StorageError::ChunkMissing { seq, index });
            };
            let bytes = row::read_chunk(seq, index, value.value());
            let damaged = || StorageError::ChunkDamaged { path: self.path.clone(), seq, index };
            Ok(bytes.ok_or_else(damaged)?.to_vec())
        })
    }

    /// Removes a snapshot, complete or not; durable. The space is used again, the file does not shrink.
    pub fn delete(&self, seq: u64) -> Result<(), StorageError> {
        self.write(Durability::Immediate, |write| {
            write.open_table(SNAPSHOTS)?.remove(seq)?;
            write.open_table(CHUNKS)?.retain_in(all_chunks(seq), |_, _| false)?;
            Ok(())
        })
    }

    pub fn get_meta(&self, key: &str) -> Result<Option<Vec<u8>>, StorageError> {
        self.read(|read| {
            let table = read.open_table(META)?;
            let Some(value) = table.get(key)? else { return Ok(None) };
            let bytes = row::read_meta(key, value.value());
            let damaged = || self.damaged(format!("value {key:?} fails its checksum"));
            Ok(Some(bytes.ok_or_else(damaged)?.to_vec()))
        })
    }

    /// Sets a named value; durable when this returns.
    pub fn put_meta(&self, key: &str, value: &[u8]) -> Result<(), StorageError> {
        refuse_above("key", key.as_bytes(), META_BYTES_MAX)?;
        refuse_above("value", value, META_BYTES_MAX)?;
        self.write(Durability::Immediate, |write| {
            let mut bytes = meta_crc(key, value).to_le_bytes().to_vec();
            bytes.extend_from_slice(value);
            write.open_table(META)?.insert(key, &bytes[..])?;
            Ok(())
        })
    }

    fn incomplete(
        &self,
        snapshots: &impl ReadableTable<u64, &'static [u8]>,
        seq: u64,
    ) -> Result<SnapshotInfo, Fault> {
        match self.info(snapshots, seq)? {
            None => refused(StorageError::SnapshotMissing { seq }),
            Some(info) if info.complete => refused(StorageError::SnapshotComplete { seq }),
            Some(info) => Ok(info),
        }
    }

    fn info(
        &self,
        snapshots: &impl ReadableTable<u64, &'static [u8]>,
        seq: u64,
    ) -> Result<Option<SnapshotInfo>, Fault> {
        snapshots.get(seq)?.map(|value| self.decode_info(seq, value.value())).transpose()
    }

    fn decode_info(&self, seq: u64, value: &[u8]) -> Result<SnapshotInfo, Fault> {
        let damaged = || self.damaged(format!("the entry of snapshot {seq} fails its checksum"));
        Ok(row::read_info(seq, value).ok_or_else(damaged)?)
    }

    fn refuse_after_loss(&self, seq: u64) -> Result<(), StorageError> {
        match self.chunks_lost.load(Ordering::Relaxed) {
            true => Err(StorageError::ChunksLost { seq }),
            false => Ok(()),
        }
    }

    fn damaged(&self, what: impl Into<String>) -> StorageError {
        StorageError::StoreDamaged { path: self.path.clone(), what: what.into() }
    }

    fn miscounted(&self, seq: u64) -> StorageError {
        self.damaged(format!("the entry of snapshot {seq} counts other chunks than there are"))
    }

    fn read<T>(
        &self,
        work: impl FnOnce(&redb::ReadTransaction) -> Result<T, Fault>,
    ) -> Result<T, StorageError> {
        self.attempt(|database| work(&database.begin_read()?))
    }

    fn write<T>(
        &self,
        durability: Durability,
        work: impl FnOnce(&redb::WriteTransaction) -> Result<T, Fault>,
    ) -> Result<T, StorageError> {
        self.attempt(|database| {
            let mut write = database.begin_write()?;
            write.set_durability(durability).map_err(redb::Error::from)?;
            // Otherwise the first start after a crash walks the whole file.
            write.set_quick_repair(matches!(durability, Durability::Immediate));
            let result = work(&write)?;
            write.commit()?;
            if matches!(durability, Durability::Immediate) {
                self.unsynced_bytes.store(0, Ordering::Relaxed);
            }
            Ok(result)
        })
    }

    /// Runs `work` on the database. A damaged file can make `redb` panic; here that is an error as any other.
    fn attempt<T>(&self, work: impl FnOnce(&Database) -> Result<T, Fault>) -> Result<T, StorageError> {
        let outcome = {
            let database = self.opened()?;
            let database = database.as_ref().expect("an opened database is there");
            catch_unwind(AssertUnwindSafe(|| work(database)))
        };
        let error = match outcome {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(Fault::Refused(error))) => return Err(error),
            Ok(Err(Fault::Redb(error))) => self.translate(error),
            Err(_) => self.damaged("the database stopped in the middle of an operation"),
        };
        if self.unsynced_bytes.swap(0, Ordering::Relaxed) > 0 {
            self.chunks_lost.store(true, Ordering::Relaxed);
        }
        let failed = self.database.write().unwrap_or_else(PoisonError::into_inner).take();
        let _ = catch_unwind(AssertUnwindSafe(|| drop(failed)));
        Err(error)
    }

    fn opened(&self) -> Result<RwLockReadGuard<'_, Option<Database>>, StorageError> {
        loop {
            let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
            if database.is_some() {
                return Ok(database);
            }
            drop(database);
            let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
            if database.is_none() {
                *database = match catch_unwind(AssertUnwindSafe(|| (self.opener)())) {
                    Ok(Ok(opened)) => Some(opened),
                    Ok(Err(error)) => return Err(self.translate(error.into())),
                    Err(_) => return Err(self.damaged("the database cannot be opened")),
                };
            }
        }
    }

    fn translate(&self, error: redb::Error) -> StorageError {
        match error {
            redb::Error::Io(source) if source.kind() == io::ErrorKind::InvalidData => {
                self.damaged(source.to_string())
            }
            redb::Error::Io(source) if source.kind() == io::ErrorKind::UnexpectedEof => {
                self.damaged("the file ends too early")
            }
            redb::Error::Io(source) => StorageError::io("use", &self.path, source),
            redb::Error::DatabaseAlreadyOpen => {
                StorageError::Locked { path: self.path.clone(), holder: "unknown".into() }
            }
            other => self.damaged(other.to_string()),
        }
    }
}

impl Drop for SnapshotStore {
    /// An orderly stop keeps the chunks of an unfinished snapshot; a crash may cost the last few.
    fn drop(&mut self) {
        if self.unsynced_bytes.load(Ordering::Relaxed) > 0 {
            let _ = self.flush();
        }
    }
}

/// `redb` failed, or we say no.
enum Fault {
    Redb(redb::Error),
    Refused(StorageError),
}

fn refused<T>(error: StorageError) -> Result<T, Fault> {
    Err(Fault::Refused(error))
}

impl From<StorageError> for Fault {
    fn from(error: StorageError) -> Self {
        Self::Refused(error)
    }
}

impl From<redb::Error> for Fault {
    fn from(error: redb::Error) -> Self {
        Self::Redb(error)
    }
}

impl From<redb::StorageError> for Fault {
    fn from(error: redb::StorageError) -> Self {
        Self::Redb(error.into())
    }
}

impl From<redb::TableError> for Fault {
    fn from(error: redb::TableError) -> Self {
        Self::Redb(error.into())
    }
}

impl From<redb::TransactionError> for Fault {
    fn from(error: redb::TransactionError) -> Self {
        Self::Redb(error.into())
    }
}

impl From<redb::CommitError> for Fault {
    fn from(error: redb::CommitError) -> Self {
        Self::Redb(error.into())
    }
}

fn builder() -> Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES);
    builder
}

fn refuse_above(what: &'static str, bytes: &[u8], max: usize) -> Result<(), StorageError> {
    match bytes.len() > max {
        true => Err(StorageError::ValueTooLarge { what, bytes: bytes.len(), max }),
        false => Ok(()),
    }
}

fn all_chunks(seq: u64) -> std::ops::RangeInclusive<(u64, u32)> {
    (seq, 0)..=(seq, u32::MAX)
}

#[cfg(test)]
mod tests;
