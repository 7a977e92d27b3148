//! Where segment files come from and where they go: filled with zeros ahead of need, recycled after use.
//! A spare has no place in the log and its bytes mean nothing.
//!
//! At most `SPARES_MAX` are kept; a further one is deleted. A file is complete and durable before it is called
//! a spare, so what a crash leaves unfinished is recognised by its name and removed.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use crate::disk::Disk;
use crate::error::{StorageError, Warning, is_disk_full};

const SPARES_MAX: usize = 2;

#[derive(Debug)]
pub(super) struct Spare {
    pub path: PathBuf,
    pub bytes: u64,
    pub recycled: bool,
}

#[derive(Debug)]
pub(super) struct Spares {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    segment_bytes: u64,
    ready: Vec<Spare>,
    preparing: Option<JoinHandle<Result<Spare, StorageError>>>,
    next_id: u64,
}

impl Spares {
    /// Takes stock of what an earlier process left.
    pub fn collect(
        disk: Arc<dyn Disk>,
        dir: &Path,
        segment_bytes: u64,
        warnings: &mut Vec<Warning>,
    ) -> Result<Self, StorageError> {
        let mut spares =
            Self { disk, dir: dir.into(), segment_bytes, ready: Vec::new(), preparing: None, next_id: 0 };
        let names = spares.disk.list(dir).map_err(|e| StorageError::io("list", dir, e))?;
        for name in names {
            let path = dir.join(&name);
            if name.ends_with(".unfinished") {
                spares.remove(&path)?;
                warnings.push(Warning::UnfinishedFile { path });
            } else if let Some(id) = spare_id(&name) {
                spares.next_id = spares.next_id.max(id + 1);
                let file = spares.disk.open(&path).map_err(|e| StorageError::io("open", &path, e))?;
                let bytes = file.len_bytes().map_err(|e| StorageError::io("measure", &path, e))?;
                // Nothing says whether it had an earlier life, so assume it had.
                spares.keep(Spare { path, bytes, recycled: true })?;
            }
        }
        Ok(spares)
    }

    /// A file of `bytes`, ready to become a segment. Takes as long as writing it when none was prepared.
    pub fn take(&mut self, bytes: u64) -> Result<Spare, StorageError> {
        if bytes == self.segment_bytes {
            // What failed on the thread is tried again here, where the failure has someone to go to.
            if let Some(Ok(spare)) = self.preparing.take().map(join) {
                self.ready.push(spare);
            }
            if let Some(spare) = self.ready.pop() {
                return Ok(spare);
            }
        }
        let id = self.new_id();
        prepare(&*self.disk, &self.dir, id, bytes)
    }

    /// Starts filling a file on a thread if one is wanted and none is there.
    pub fn prepare_ahead(&mut self, wanted: bool) {
        if !wanted || self.preparing.is_some() || !self.ready.is_empty() {
            return;
        }
        let (disk, dir, id, bytes) = (self.disk.clone(), self.dir.clone(), self.new_id(), self.segment_bytes);
        let thread = std::thread::Builder::new().name("wal-prepare".into());
        // A system without a thread to give makes the next rotation slower, nothing else.
        self.preparing = thread.spawn(move || prepare(&*disk, &dir, id, bytes)).ok();
    }

    /// Takes the oldest segment out of the log. Durable when it returns.
    pub fn recycle(&mut self, segment: &Path, bytes: u64) -> Result<(), StorageError> {
        if bytes != self.segment_bytes || self.ready.len() >= SPARES_MAX {
            return self.remove(segment);
        }
        let id = self.new_id();
        let path = self.dir.join(spare_name(id));
        self.disk.rename(segment, &path).map_err(|e| StorageError::io("rename", segment, e))?;
        self.sync_dir()?;
        self.ready.push(Spare { path, bytes, recycled: true });
        Ok(())
    }

    pub fn bytes(&self) -> u64 {
        self.ready.iter().map(|spare| spare.bytes).sum()
    }

    fn keep(&mut self, spare: Spare) -> Result<(), StorageError> {
        if spare.bytes != self.segment_bytes || self.ready.len() >= SPARES_MAX {
            return self.remove(&spare.path);
        }
        self.ready.push(spare);
        Ok(())
    }

    fn remove(&self, path: &Path) -> Result<(), StorageError> {
        self.disk.remove(path).map_err(|e| StorageError::io("remove", path, e))?;
        self.sync_dir()
    }

    fn sync_dir(&self) -> Result<(), StorageError> {
        self.disk.sync_dir(&self.dir).map_err(|source| StorageError::SyncFailed {
            action: "fsync",
            path: self.dir.clone(),
            source,
        })
    }

    fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }
}

impl Drop for Spares {
    /// The lock is let go after this; no thread of ours may still write in the directory then.
    fn drop(&mut self) {
        let _ = self.preparing.take().map(join);
    }
}

fn join(thread: JoinHandle<Result<Spare, StorageError>>) -> Result<Spare, StorageError> {
    thread.join().expect("preparing a file does not panic")
}

fn spare_name(id: u64) -> String {
    format!("spare-{id:08}")
}

fn spare_id(name: &str) -> Option<u64> {
    let id: u64 = name.strip_prefix("spare-")?.parse().ok()?;
    (spare_name(id) == name && id < 1 << 48).then_some(id)
}

fn prepare(disk: &dyn Disk, dir: &Path, id: u64, bytes: u64) -> Result<Spare, StorageError> {
    let path = dir.join(spare_name(id));
    let unfinished = dir.join(format!("{}.unfinished", spare_name(id)));
    let made = (|| {
        let mut file = disk.create(&unfinished)?;
        file.preallocate(bytes)?;
        file.sync_all()
    })();
    if let Err(source) = made {
        // It holds nothing and gives the space back; if even that fails the next open removes it.
        let _ = disk.remove(&unfinished);
        if is_disk_full(&source) {
            return Err(StorageError::DiskFull { path: unfinished, source });
        }
        return Err(StorageError::SyncFailed { action: "preparation", path: unfinished, source });
    }
    disk.rename(&unfinished, &path).map_err(|e| StorageError::io("rename", &unfinished, e))?;
    disk.sync_dir(dir).map_err(|source| StorageError::SyncFailed {
        action: "fsync",
        path: dir.into(),
        source,
    })?;
    Ok(Spare { path, bytes, recycled: false })
}
