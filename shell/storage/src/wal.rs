//! The write-ahead log: records in, one write and one fdatasync per group, the same records out after a crash.
//!
//! Segments are files of fixed size, filled with zeros beforehand and recycled afterwards, so that a sync
//! changes no metadata. What a record says is nobody's business here. Format: `wal/segment.rs` and
//! `docs/durable.md`; what a damaged disk means: `wal/recover.rs`; where files come from: `wal/spares.rs`.

mod recover;
mod segment;
mod spares;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use self::recover::{Recovered, recover, segment_path};
pub use self::segment::OWNER_BYTES;
use self::segment::{
    BATCH_HEADER_BYTES, BatchHeader, PAGE_BYTES, RECORD_HEADER_BYTES, SegmentHeader, body_crc, padded,
};
use self::spares::Spares;
use crate::disk::{Disk, DiskFile, DiskLock, RealDisk};
use crate::error::{StorageError, Warning};

/// Largest record.
pub const RECORD_BYTES_MAX: usize = 64 << 20;
/// Most that may be appended between two syncs; beyond it `append` refuses.
pub const BATCH_BYTES_MAX: usize = 256 << 20;
pub(crate) const SEGMENT_BYTES_MIN: u64 = 64 << 10;
pub(crate) const SEGMENT_BYTES_MAX: u64 = 1 << 30;
/// A larger buffer is given back after the sync that needed it.
const BUFFER_KEPT_BYTES: usize = 8 << 20;

/// A record's place in the log: 1, 2, 3, without gaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalRecord {
    pub lsn: Lsn,
    pub bytes: Vec<u8>,
}

#[derive(Debug, Clone)]
pub struct WalSettings {
    /// Size of a segment file in bytes: 64 KiB to 1 GiB, a multiple of 4096, default 64 MiB. Smaller ones free
    /// space sooner, larger ones rotate (three extra syncs) less often. A batch that is larger gets a file of
    /// its own.
    pub segment_bytes: u64,
    /// Fill the next segment with zeros on a thread of its own when the current one is half full. Without it
    /// a sync now and then takes as long as writing a whole segment.
    pub prepare_ahead: bool,
    /// Whose log this is; a log of another owner is refused.
    pub owner: [u8; OWNER_BYTES],
}

impl Default for WalSettings {
    fn default() -> Self {
        Self { segment_bytes: 64 << 20, prepare_ahead: true, owner: [0; OWNER_BYTES] }
    }
}

impl WalSettings {
    fn check(&self) -> Result<(), StorageError> {
        let bytes = self.segment_bytes;
        if (SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&bytes) && bytes.is_multiple_of(PAGE_BYTES as u64)
        {
            return Ok(());
        }
        let range = "65536..=1073741824, a multiple of 4096";
        Err(StorageError::SettingImpossible { name: "segment_bytes", value: bytes, range })
    }
}

/// The open log. It holds the directory's lock until dropped.
#[derive(Debug)]
pub struct Wal {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    settings: WalSettings,
    /// Oldest first; the last one is written to. Bounded by what the caller discards.
    segments: VecDeque<SegmentHeader>,
    file: Box<dyn DiskFile>,
    /// Where the next batch goes in the last segment.
    offset: u64,
    spares: Spares,
    /// Room for the batch header, then the buffered records. At most `BATCH_BYTES_MAX`.
    buffer: Vec<u8>,
    buffered: u32,
    next_lsn: Lsn,
    durable_lsn: Lsn,
    sync_count: u64,
    poisoned: Option<String>,
    _lock: Box<dyn DiskLock>,
}

impl Wal {
    /// Opens the log in `dir`, or begins one if there is none. Returns what it holds, in order.
    pub fn open(
        dir: &Path,
        settings: WalSettings,
    ) -> Result<(Self, Vec<WalRecord>, Vec<Warning>), StorageError> {
        Self::open_on(Arc::new(RealDisk), dir, settings, true)
    }

    /// Opens the log in `dir`; that there is none means the disk was wiped.
    pub fn open_existing(
        dir: &Path,
        settings: WalSettings,
    ) -> Result<(Self, Vec<WalRecord>, Vec<Warning>), StorageError> {
        Self::open_on(Arc::new(RealDisk), dir, settings, false)
    }

    /// Reads a log without locking, repairing or writing. For inspection of a stopped node.
    pub fn inspect(
        dir: &Path,
        owner: &[u8; OWNER_BYTES],
    ) -> Result<(Vec<WalRecord>, Vec<Warning>), StorageError> {
        let found = recover(&RealDisk, dir, owner)?;
        let found = found.ok_or_else(|| StorageError::LogMissing { path: dir.into() })?;
        Ok((found.records, found.warnings))
    }

    /// As [`Wal::open`], on a disk of the caller's choice.
    pub fn open_on(
        disk: Arc<dyn Disk>,
        dir: &Path,
        settings: WalSettings,
        may_create: bool,
    ) -> Result<(Self, Vec<WalRecord>, Vec<Warning>), StorageError> {
        settings.check()?;
        if may_create {
            disk.create_dir_all(dir).map_err(|e| StorageError::io("create", dir, e))?;
        } else if disk.list(dir).is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound) {
            return Err(StorageError::LogMissing { path: dir.into() });
        }
        let lock_path = dir.join("lock");
        let lock = disk
            .lock(&lock_path)
            .map_err(|e| StorageError::io("lock", &lock_path, e))?
            .map_err(|holder| StorageError::Locked { path: dir.into(), holder })?;

        let found = recover(&*disk, dir, &settings.owner)?;
        if found.is_none() && !may_create {
            return Err(StorageError::LogMissing { path: dir.into() });
        }
        let mut warnings = Vec::new();
        let mut spares = Spares::collect(disk.clone(), dir, settings.segment_bytes, &mut warnings)?;
        let found = match found {
            Some(found) => found,
            None => begin(&*disk, dir, &settings, &mut spares)?,
        };
        let Recovered { records, warnings: torn, segments, next_lsn, tail_offset } = found;
        warnings.extend(torn);
        let last = segments.last().expect("a recovered log has a segment");
        let path = segment_path(dir, last.number);
        let file = disk.open(&path).map_err(|e| StorageError::io("open", &path, e))?;
        let mut wal = Self {
            disk,
            dir: dir.into(),
            settings,
            segments: segments.into(),
            file,
            offset: tail_offset,
            spares,
            buffer: vec![0; BATCH_HEADER_BYTES],
            buffered: 0,
            next_lsn,
            durable_lsn: next_lsn,
            sync_count: 0,
            poisoned: None,
            _lock: lock,
        };
        wal.settle()?;
        Ok((wal, records, warnings))
    }

    /// What was just read may sit in the page cache only, the names too. The caller will act on it, so it is
    /// made durable first; and before the mark is written, or two batches would be in flight at once.
    fn settle(&mut self) -> Result<(), StorageError> {
        self.sync_dir()?;
        self.file.sync_data().map_err(|e| self.poison("fdatasync", e))?;
        self.write_mark()
    }

    /// Writes an empty batch behind the last one. From then on a last batch that is gone is damage and no torn
    /// tail. Where no page is left for it, the next segment will be the mark.
    fn write_mark(&mut self) -> Result<(), StorageError> {
        if self.offset + PAGE_BYTES as u64 <= self.active().file_bytes {
            return self.write_batch();
        }
        self.file.sync_data().map_err(|e| self.poison("fdatasync", e))
    }

    /// Buffers a record. It is neither written nor durable before [`Wal::sync`].
    pub fn append(&mut self, record: &[u8]) -> Result<Lsn, StorageError> {
        self.refuse_if_poisoned()?;
        if record.len() > RECORD_BYTES_MAX {
            return Err(StorageError::RecordTooLarge { bytes: record.len(), max: RECORD_BYTES_MAX });
        }
        let bytes = self.buffer.len() + RECORD_HEADER_BYTES + record.len();
        if bytes > BATCH_BYTES_MAX {
            return Err(StorageError::BatchFull { bytes, max: BATCH_BYTES_MAX });
        }
        self.buffer.extend_from_slice(&(record.len() as u32).to_le_bytes());
        self.buffer.extend_from_slice(record);
        self.buffered += 1;
        let lsn = self.next_lsn;
        self.next_lsn = Lsn(lsn.0 + 1);
        Ok(lsn)
    }

    /// Makes everything buffered durable with one write and one fdatasync. Returns the place below which all
    /// is durable. After [`StorageError::DiskFull`] the records are still buffered and sync may be called
    /// again; after any other failure the log is poisoned and the process must stop.
    pub fn sync(&mut self) -> Result<Lsn, StorageError> {
        self.refuse_if_poisoned()?;
        if self.buffered == 0 {
            return Ok(self.durable_lsn);
        }
        let need = padded(self.buffer.len()) as u64;
        if self.offset + need > self.active().file_bytes {
            self.rotate(need)?;
        }
        self.write_batch()?;
        self.spares.prepare_ahead(self.settings.prepare_ahead && self.offset * 2 > self.active().file_bytes);
        Ok(self.durable_lsn)
    }

    /// A batch never spans segments, so every segment but the last is known to be whole.
    fn write_batch(&mut self) -> Result<(), StorageError> {
        let seed = self.active().seed();
        let body = &self.buffer[BATCH_HEADER_BYTES..];
        let header = BatchHeader {
            first_lsn: self.durable_lsn,
            count: self.buffered,
            body_bytes: body.len() as u32,
            body_crc: body_crc(seed, body),
        };
        self.buffer[..BATCH_HEADER_BYTES].copy_from_slice(&header.encode(seed));
        self.buffer.resize(header.padded_bytes(), 0);
        let written = self.file.write_all_at(&self.buffer, self.offset);
        written.map_err(|e| self.poison("write", e))?;
        self.file.sync_data().map_err(|e| self.poison("fdatasync", e))?;
        self.offset += self.buffer.len() as u64;
        self.durable_lsn = self.next_lsn;
        self.sync_count += 1;
        self.buffered = 0;
        self.buffer.truncate(BATCH_HEADER_BYTES);
        self.buffer.shrink_to(BUFFER_KEPT_BYTES);
        Ok(())
    }

    fn rotate(&mut self, need: u64) -> Result<(), StorageError> {
        let number = self.active().number + 1;
        let bytes = self.settings.segment_bytes.max(PAGE_BYTES as u64 + need);
        // Until the header is written nothing has happened: a full disk may be waited out.
        let spare = self.spares.take(bytes).map_err(|e| self.poison_unless_full(e))?;
        let (header, file) =
            name_segment(&*self.disk, &self.dir, &self.settings, spare, number, self.durable_lsn)
                .map_err(|e| self.poison_with(e))?;
        self.segments.push_back(header);
        self.file = file;
        self.offset = PAGE_BYTES as u64;
        Ok(())
    }

    /// Frees whole segments that hold only records below `lsn`. Oldest first, each step durable before the
    /// next, so that a crash never leaves a hole.
    pub fn discard_before(&mut self, lsn: Lsn) -> Result<(), StorageError> {
        self.refuse_if_poisoned()?;
        while self.segments.len() > 1 && self.segments[1].first_lsn <= lsn {
            let oldest = &self.segments[0];
            let path = segment_path(&self.dir, oldest.number);
            let bytes = oldest.file_bytes;
            self.spares.recycle(&path, bytes).map_err(|e| self.poison_unless_full(e))?;
            self.segments.pop_front();
        }
        Ok(())
    }

    /// Refuses unless every record from `lsn` on is here: call it with the place replay must start at.
    pub fn require_from(&self, lsn: Lsn) -> Result<(), StorageError> {
        let path = || self.dir.clone();
        if self.next_lsn < lsn {
            return Err(StorageError::RolledBack { path: path(), found: self.next_lsn.0, required: lsn.0 });
        }
        if self.first_lsn() > lsn {
            let first = self.first_lsn().0;
            return Err(StorageError::RecordsMissing { path: path(), first, required: lsn.0 });
        }
        Ok(())
    }

    /// Syncs what is buffered and marks the end, so that damage to the last batch is recognised as such.
    pub fn close(mut self) -> Result<(), StorageError> {
        self.sync()?;
        self.write_mark()
    }

    /// The oldest record that is still held; `next_lsn` when none is.
    pub fn first_lsn(&self) -> Lsn {
        self.segments[0].first_lsn
    }

    /// The place the next appended record gets.
    pub fn next_lsn(&self) -> Lsn {
        self.next_lsn
    }

    /// Everything below is durable.
    pub fn durable_lsn(&self) -> Lsn {
        self.durable_lsn
    }

    /// Bytes of the log between its oldest segment's start and its end.
    pub fn bytes_used(&self) -> u64 {
        let whole: u64 = self.segments.iter().map(|segment| segment.file_bytes).sum();
        whole - self.active().file_bytes + self.offset
    }

    /// Bytes of all files, room not yet written and spares included.
    pub fn bytes_on_disk(&self) -> u64 {
        self.segments.iter().map(|segment| segment.file_bytes).sum::<u64>() + self.spares.bytes()
    }

    /// How many batches were made durable since opening (the mark written at opening is one).
    pub fn sync_count(&self) -> u64 {
        self.sync_count
    }

    fn active(&self) -> &SegmentHeader {
        self.segments.back().expect("a log has a segment")
    }

    fn sync_dir(&mut self) -> Result<(), StorageError> {
        self.disk.sync_dir(&self.dir).map_err(|e| {
            let error = StorageError::SyncFailed { action: "fsync", path: self.dir.clone(), source: e };
            self.poison_with(error)
        })
    }

    fn refuse_if_poisoned(&self) -> Result<(), StorageError> {
        match &self.poisoned {
            Some(cause) => Err(StorageError::Poisoned { cause: cause.clone() }),
            None => Ok(()),
        }
    }

    fn poison(&mut self, action: &'static str, source: std::io::Error) -> StorageError {
        let path = segment_path(&self.dir, self.active().number);
        self.poison_with(StorageError::SyncFailed { action, path, source })
    }

    fn poison_with(&mut self, error: StorageError) -> StorageError {
        self.poisoned = Some(error.to_string());
        error
    }

    fn poison_unless_full(&mut self, error: StorageError) -> StorageError {
        if error.is_disk_full() { error } else { self.poison_with(error) }
    }
}

fn begin(
    disk: &dyn Disk,
    dir: &Path,
    settings: &WalSettings,
    spares: &mut Spares,
) -> Result<Recovered, StorageError> {
    let spare = spares.take(settings.segment_bytes)?;
    let (header, _) = name_segment(disk, dir, settings, spare, 1, Lsn(1))?;
    Ok(Recovered {
        records: Vec::new(),
        warnings: Vec::new(),
        segments: vec![header],
        next_lsn: Lsn(1),
        tail_offset: PAGE_BYTES as u64,
    })
}

/// Turns a spare into segment `number`: the header is durable before the file gets the name, the name before
/// the first record. So a file with a segment's name and a bad header is damage, whenever the crash came.
fn name_segment(
    disk: &dyn Disk,
    dir: &Path,
    settings: &WalSettings,
    spare: spares::Spare,
    number: u64,
    first_lsn: Lsn,
) -> Result<(SegmentHeader, Box<dyn DiskFile>), StorageError> {
    let salt = disk.salt().map_err(|e| StorageError::io("salt", dir, e))?;
    let header = SegmentHeader {
        number,
        first_lsn,
        file_bytes: spare.bytes,
        salt,
        recycled: spare.recycled,
        owner: settings.owner,
    };
    let path = segment_path(dir, number);
    let failed = |action, path: &Path, source| StorageError::SyncFailed { action, path: path.into(), source };
    let mut file = disk.open(&spare.path).map_err(|e| StorageError::io("open", &spare.path, e))?;
    file.write_all_at(&header.encode(), 0).map_err(|e| failed("write", &spare.path, e))?;
    file.sync_data().map_err(|e| failed("fdatasync", &spare.path, e))?;
    disk.rename(&spare.path, &path).map_err(|e| failed("rename", &spare.path, e))?;
    disk.sync_dir(dir).map_err(|e| failed("fsync", dir, e))?;
    Ok((header, file))
}
