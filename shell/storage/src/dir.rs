//! A node's data directory: the manifest, the log, the snapshots and one lock over them.
//!
//! `DataDir::create` is for `dwcp init` alone. `DataDir::open` never makes anything that should be there
//! already: what is missing was lost, and a node that lost its past must not rejoin as itself.

use std::path::{Path, PathBuf};

use crate::disk::{Disk, DiskLock, RealDisk};
use crate::error::{StorageError, Warning};
use crate::manifest::{DATA_FORMAT_VERSION, Manifest};
use crate::snapshot::SnapshotStore;
use crate::wal::{Lsn, OWNER_BYTES, Wal, WalRecord, WalSettings};

const MANIFEST_NAME: &str = "manifest";
const LOCK_NAME: &str = "lock";
const WAL_NAME: &str = "wal";
const SNAPSHOTS_NAME: &str = "snapshots.redb";

/// Whose directory it becomes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub cluster: [u8; 32],
    pub replica: u8,
    pub incarnation: u32,
    pub genesis_hash: [u8; 32],
    pub created_unix_ms: u64,
}

/// The directory itself. Keep it for as long as the log or the snapshots are in use: it holds the lock.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    manifest: Manifest,
    _lock: Box<dyn DiskLock>,
}

/// What opening yields. The parts may go to different threads.
#[derive(Debug)]
pub struct OpenedDir {
    pub dir: DataDir,
    pub wal: Wal,
    pub snapshots: SnapshotStore,
    /// All the log holds, in order.
    pub records: Vec<WalRecord>,
    pub warnings: Vec<Warning>,
}

impl DataDir {
    /// Makes the directory of a new node. The manifest comes last, so an interrupted `create` may be repeated.
    pub fn create(path: &Path, identity: &Identity, wal: &WalSettings) -> Result<(), StorageError> {
        RealDisk.create_dir_all(path).map_err(|e| StorageError::io("create", path, e))?;
        let _lock = lock(path)?;
        let manifest = Manifest {
            format_version: DATA_FORMAT_VERSION,
            cluster: identity.cluster,
            replica: identity.replica,
            incarnation: identity.incarnation,
            genesis_hash: identity.genesis_hash,
            created_unix_ms: identity.created_unix_ms,
            boots: 0,
            wal_floor_lsn: 1,
        };
        match Manifest::load(&path.join(MANIFEST_NAME)) {
            Err(StorageError::NotInitialised { .. }) => {}
            _ => return Err(StorageError::AlreadyInitialised { path: path.join(MANIFEST_NAME) }),
        }
        // A log with records but no manifest is a node that lost its manifest, no empty directory.
        let wal_path = path.join(WAL_NAME);
        match Wal::open(&wal_path, owned(wal, &manifest)) {
            Ok((log, records, _)) if records.is_empty() && log.next_lsn() == Lsn(1) => log.close()?,
            Ok(_) | Err(StorageError::OwnerDiffers { .. } | StorageError::Damaged { .. }) => {
                return Err(StorageError::AlreadyInitialised { path: wal_path });
            }
            Err(error) => return Err(error),
        }
        drop(SnapshotStore::open(&path.join(SNAPSHOTS_NAME))?);
        RealDisk.sync_dir(path).map_err(|e| StorageError::io("fsync", path, e))?;
        manifest.create_new(&path.join(MANIFEST_NAME))
    }

    /// Opens a directory that was created before. Refuses when the log ends before the manifest's floor.
    pub fn open(path: &Path, wal: &WalSettings) -> Result<OpenedDir, StorageError> {
        // Before the lock, so that a wrong path gets the helpful answer and no file is made there.
        Manifest::load(&path.join(MANIFEST_NAME))?;
        let lock = lock(path)?;
        let manifest = Manifest::load(&path.join(MANIFEST_NAME))?;
        let (wal, records, warnings) = Wal::open_existing(&path.join(WAL_NAME), owned(wal, &manifest))?;
        if wal.next_lsn().0 < manifest.wal_floor_lsn {
            return Err(StorageError::RolledBack {
                path: path.join(WAL_NAME),
                found: wal.next_lsn().0,
                required: manifest.wal_floor_lsn,
            });
        }
        let snapshots = SnapshotStore::open(&path.join(SNAPSHOTS_NAME))?;
        let dir = Self { path: path.into(), manifest, _lock: lock };
        Ok(OpenedDir { dir, wal, snapshots, records, warnings })
    }

    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Counts a start of the server and remembers how far the log has come; durable when this returns.
    pub fn record_boot(&mut self, durable_lsn: Lsn) -> Result<(), StorageError> {
        self.store(Manifest { boots: self.manifest.boots + 1, ..self.manifest.clone() }, durable_lsn)
    }

    /// Remembers how far the log has come. The more often, the less a rolled-back disk can hide; at every
    /// stable checkpoint and at an orderly stop is a fair price.
    pub fn raise_floor(&mut self, durable_lsn: Lsn) -> Result<(), StorageError> {
        self.store(self.manifest.clone(), durable_lsn)
    }

    fn store(&mut self, mut manifest: Manifest, durable_lsn: Lsn) -> Result<(), StorageError> {
        manifest.wal_floor_lsn = manifest.wal_floor_lsn.max(durable_lsn.0);
        manifest.store(&self.path.join(MANIFEST_NAME))?;
        self.manifest = manifest;
        Ok(())
    }
}

fn lock(path: &Path) -> Result<Box<dyn DiskLock>, StorageError> {
    let file = path.join(LOCK_NAME);
    let locked = RealDisk.lock(&file).map_err(|e| StorageError::io("lock", &file, e))?;
    locked.map_err(|holder| StorageError::Locked { path: path.into(), holder })
}

/// The log is bound to cluster, member and incarnation, so another node's log does not pass beside this
/// manifest.
fn owned(settings: &WalSettings, manifest: &Manifest) -> WalSettings {
    let mut owner = [0; OWNER_BYTES];
    owner[..32].copy_from_slice(&manifest.cluster);
    owner[32] = manifest.replica;
    owner[36..40].copy_from_slice(&manifest.incarnation.to_le_bytes());
    WalSettings { owner, ..settings.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity {
            cluster: [1; 32],
            replica: 3,
            incarnation: 1,
            genesis_hash: [2; 32],
            created_unix_ms: 1_700_000_000_000,
        }
    }

    fn settings() -> WalSettings {
        WalSettings { segment_bytes: 64 << 10, prepare_ahead: false, ..WalSettings::default() }
    }

    fn new_dir() -> (tempfile::TempDir, PathBuf) {
        let temporary = tempfile::tempdir().expect("temporary directory");
        let path = temporary.path().join("node");
        DataDir::create(&path, &identity(), &settings()).expect("create");
        (temporary, path)
    }

    fn write(path: &Path, records: &[&[u8]]) {
        let mut opened = DataDir::open(path, &settings()).expect("open");
        for record in records {
            opened.wal.append(record).expect("append");
        }
        let durable = opened.wal.sync().expect("sync");
        opened.dir.record_boot(durable).expect("boot");
    }

    #[test]
    fn a_directory_is_created_once_and_keeps_what_it_is_given() {
        let (_temporary, path) = new_dir();
        write(&path, &[b"one"]);
        write(&path, &[b"two"]);
        let again = DataDir::create(&path, &identity(), &settings());
        assert!(matches!(again, Err(StorageError::AlreadyInitialised { .. })));
        let opened = DataDir::open(&path, &settings()).expect("open");
        assert_eq!(opened.records.len(), 2);
        let manifest = opened.dir.manifest();
        assert_eq!((manifest.boots, manifest.wal_floor_lsn, manifest.replica), (2, 3, 3));
        let second = DataDir::open(&path, &settings()).expect_err("in use");
        assert!(matches!(second, StorageError::Locked { .. }), "{second}");
    }

    #[test]
    fn a_directory_never_initialised_is_refused_and_left_untouched() {
        let temporary = tempfile::tempdir().expect("temporary directory");
        let error = DataDir::open(temporary.path(), &settings()).expect_err("nothing there");
        assert!(matches!(error, StorageError::NotInitialised { .. }), "{error}");
        assert_eq!(std::fs::read_dir(temporary.path()).expect("list").count(), 0);
    }

    #[test]
    fn a_wiped_log_beside_a_kept_manifest_is_refused() {
        let (_temporary, path) = new_dir();
        write(&path, &[b"one"]);
        std::fs::remove_dir_all(path.join("wal")).expect("wipe");
        let error = DataDir::open(&path, &settings()).expect_err("wiped");
        assert!(matches!(error, StorageError::LogMissing { .. }), "{error}");
        std::fs::create_dir(path.join("wal")).expect("an empty directory is no log either");
        let error = DataDir::open(&path, &settings()).expect_err("wiped");
        assert!(matches!(error, StorageError::LogMissing { .. }), "{error}");
    }

    #[test]
    fn a_log_rolled_back_to_an_older_copy_is_refused() {
        let (temporary, path) = new_dir();
        write(&path, &[b"one"]);
        let copy = temporary.path().join("copy");
        std::fs::create_dir(&copy).expect("copy");
        let copy_files = |from: &Path, to: &Path| {
            for entry in std::fs::read_dir(from).expect("list") {
                let entry = entry.expect("entry");
                std::fs::copy(entry.path(), to.join(entry.file_name())).expect("copy");
            }
        };
        copy_files(&path.join("wal"), &copy);
        write(&path, &[b"two"]);
        std::fs::remove_dir_all(path.join("wal")).expect("remove");
        std::fs::create_dir(path.join("wal")).expect("make");
        copy_files(&copy, &path.join("wal"));
        let error = DataDir::open(&path, &settings()).expect_err("rolled back");
        assert!(matches!(error, StorageError::RolledBack { found: 2, required: 3, .. }), "{error}");
        assert!(error.to_string().contains("dwcp member replace"), "{error}");
    }

    #[test]
    fn the_log_of_another_incarnation_is_refused() {
        let (temporary, path) = new_dir();
        let other = temporary.path().join("other");
        DataDir::create(&other, &Identity { incarnation: 2, ..identity() }, &settings()).expect("create");
        std::fs::remove_dir_all(path.join("wal")).expect("remove");
        std::fs::rename(other.join("wal"), path.join("wal")).expect("move");
        let error = DataDir::open(&path, &settings()).expect_err("not its log");
        assert!(matches!(error, StorageError::OwnerDiffers { .. }), "{error}");
    }

    #[test]
    fn a_lost_manifest_cannot_be_made_again_over_a_log_that_holds_records() {
        let (_temporary, path) = new_dir();
        write(&path, &[b"one"]);
        std::fs::remove_file(path.join("manifest")).expect("lose it");
        let error = DataDir::create(&path, &identity(), &settings()).expect_err("it has a past");
        assert!(matches!(error, StorageError::AlreadyInitialised { .. }), "{error}");
    }

    #[test]
    fn an_interrupted_create_may_be_repeated() {
        let (_temporary, path) = new_dir();
        std::fs::remove_file(path.join("manifest")).expect("as if it had not come that far");
        DataDir::create(&path, &identity(), &settings()).expect("again");
        DataDir::open(&path, &settings()).expect("open");
    }
}
