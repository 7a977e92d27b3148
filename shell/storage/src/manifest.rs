//! Who this disk belongs to: one small file, replaced as a whole. Written by `dwcp init`; a server never
//! creates one, so a wiped disk is noticed by its absence.
//!
//! It knows the node's identity and how far the log had come, and nothing of what the log says.

use std::path::Path;

use crate::disk::{Disk, RealDisk};
use crate::error::StorageError;

/// Format of the data directory as a whole; stands in every manifest.
pub const DATA_FORMAT_VERSION: u16 = 1;

const MAGIC: [u8; 8] = *b"DWCPMANI";
const MANIFEST_BYTES: usize = 128;
const CRC_AT: usize = MANIFEST_BYTES - 4;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    pub format_version: u16,
    pub cluster: [u8; 32],
    pub replica: u8,
    /// Counts this member's disks: a lost one comes back as the next incarnation.
    pub incarnation: u32,
    pub genesis_hash: [u8; 32],
    pub created_unix_ms: u64,
    /// How often a server has opened this directory.
    pub boots: u64,
    /// The log had reached this record when the manifest was stored; one that ends earlier was rolled back.
    pub wal_floor_lsn: u64,
}

impl Manifest {
    /// Writes the first manifest; refuses where one exists.
    pub fn create_new(&self, path: &Path) -> Result<(), StorageError> {
        self.create_new_on(&RealDisk, path)
    }

    pub fn load(path: &Path) -> Result<Self, StorageError> {
        Self::load_on(&RealDisk, path)
    }

    /// Replaces the manifest: after a crash there is the old one or the new one.
    pub fn store(&self, path: &Path) -> Result<(), StorageError> {
        self.store_on(&RealDisk, path)
    }

    pub fn create_new_on(&self, disk: &dyn Disk, path: &Path) -> Result<(), StorageError> {
        // A damaged or unreadable one exists all the same.
        match Self::load_on(disk, path) {
            Err(StorageError::NotInitialised { .. }) => self.store_on(disk, path),
            _ => Err(StorageError::AlreadyInitialised { path: path.into() }),
        }
    }

    pub fn load_on(disk: &dyn Disk, path: &Path) -> Result<Self, StorageError> {
        let file = disk.open(path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => StorageError::NotInitialised { path: path.into() },
            _ => StorageError::io("open", path, e),
        })?;
        let len = file.len_bytes().map_err(|e| StorageError::io("measure", path, e))?;
        if len != MANIFEST_BYTES as u64 {
            let what = format!("a manifest has {MANIFEST_BYTES} bytes, this file has {len}");
            return Err(StorageError::damaged(path, len.min(MANIFEST_BYTES as u64), what));
        }
        let mut bytes = [0; MANIFEST_BYTES];
        file.read_exact_at(&mut bytes, 0).map_err(|e| StorageError::io("read", path, e))?;
        Self::decode(&bytes, path)
    }

    pub fn store_on(&self, disk: &dyn Disk, path: &Path) -> Result<(), StorageError> {
        let dir = match path.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir,
            _ => Path::new("."),
        };
        let unfinished = path.with_extension("unfinished");
        let failed =
            |action, path: &Path, source| StorageError::SyncFailed { action, path: path.into(), source };
        let mut file = disk.create(&unfinished).map_err(|e| StorageError::io("create", &unfinished, e))?;
        file.write_all_at(&self.encode(), 0).map_err(|e| StorageError::io("write", &unfinished, e))?;
        file.sync_all().map_err(|e| failed("fsync", &unfinished, e))?;
        disk.rename(&unfinished, path).map_err(|e| StorageError::io("rename", &unfinished, e))?;
        disk.sync_dir(dir).map_err(|e| failed("fsync", dir, e))
    }

    fn encode(&self) -> [u8; MANIFEST_BYTES] {
        let mut bytes = [0; MANIFEST_BYTES];
        bytes[0..8].copy_from_slice(&MAGIC);
        bytes[8..10].copy_from_slice(&self.format_version.to_le_bytes());
        bytes[10] = self.replica;
        bytes[12..16].copy_from_slice(&self.incarnation.to_le_bytes());
        bytes[16..48].copy_from_slice(&self.cluster);
        bytes[48..80].copy_from_slice(&self.genesis_hash);
        bytes[80..88].copy_from_slice(&self.created_unix_ms.to_le_bytes());
        bytes[88..96].copy_from_slice(&self.boots.to_le_bytes());
        bytes[96..104].copy_from_slice(&self.wal_floor_lsn.to_le_bytes());
        let crc = crc32fast::hash(&bytes[..CRC_AT]);
        bytes[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8; MANIFEST_BYTES], path: &Path) -> Result<Self, StorageError> {
        let cut = |from: usize, to: usize| &bytes[from..to];
        let u64_at = |at| u64::from_le_bytes(cut(at, at + 8).try_into().expect("eight bytes were cut"));
        let u32_at = |at| u32::from_le_bytes(cut(at, at + 4).try_into().expect("four bytes were cut"));
        if crc32fast::hash(&bytes[..CRC_AT]) != u32_at(CRC_AT) {
            return Err(StorageError::damaged(path, 0, "the manifest fails its checksum"));
        }
        if cut(0, 8) != MAGIC {
            return Err(StorageError::damaged(path, 0, "this is not a manifest"));
        }
        let format_version = u16::from_le_bytes([bytes[8], bytes[9]]);
        if format_version != DATA_FORMAT_VERSION {
            return Err(StorageError::FormatUnknown {
                path: path.into(),
                found: format_version,
                supported: DATA_FORMAT_VERSION,
            });
        }
        Ok(Self {
            format_version,
            replica: bytes[10],
            incarnation: u32_at(12),
            cluster: cut(16, 48).try_into().expect("the range has that length"),
            genesis_hash: cut(48, 80).try_into().expect("the range has that length"),
            created_unix_ms: u64_at(80),
            boots: u64_at(88),
            wal_floor_lsn: u64_at(96),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory_disk::{Chance, Faults, MemoryDisk};

    fn manifest() -> Manifest {
        Manifest {
            format_version: DATA_FORMAT_VERSION,
            cluster: [3; 32],
            replica: 2,
            incarnation: 5,
            genesis_hash: [8; 32],
            created_unix_ms: 1_700_000_000_123,
            boots: 9,
            wal_floor_lsn: 77,
        }
    }

    #[test]
    fn a_manifest_reads_back_and_is_created_once() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("manifest");
        let missing = Manifest::load(&path).expect_err("nothing there");
        assert!(missing.to_string().contains("dwcp init"), "{missing}");
        assert!(missing.to_string().contains("dwcp member replace"), "{missing}");
        manifest().create_new(&path).expect("first");
        assert!(matches!(manifest().create_new(&path), Err(StorageError::AlreadyInitialised { .. })));
        assert_eq!(Manifest::load(&path).expect("load"), manifest());
        let later = Manifest { boots: 10, ..manifest() };
        later.store(&path).expect("store");
        assert_eq!(Manifest::load(&path).expect("load"), later);
    }

    #[test]
    fn every_flipped_bit_and_every_truncation_is_refused() {
        let disk = MemoryDisk::default();
        let path = Path::new("/d/manifest");
        manifest().create_new_on(&disk, path).expect("create");
        for bit in 0..MANIFEST_BYTES * 8 {
            let copy = disk.copy();
            copy.alter(path, |bytes| bytes[bit / 8] ^= 1 << (bit % 8));
            assert!(matches!(Manifest::load_on(&copy, path), Err(StorageError::Damaged { .. })), "bit {bit}");
            let over = manifest().create_new_on(&copy, path);
            assert!(matches!(over, Err(StorageError::AlreadyInitialised { .. })), "bit {bit}");
        }
        for len in 0..MANIFEST_BYTES {
            let copy = disk.copy();
            copy.alter(path, |bytes| bytes.truncate(len));
            assert!(matches!(Manifest::load_on(&copy, path), Err(StorageError::Damaged { .. })), "len {len}");
        }
    }

    #[test]
    fn an_unknown_format_is_refused_as_such() {
        let disk = MemoryDisk::default();
        let path = Path::new("/d/manifest");
        Manifest { format_version: 2, ..manifest() }.create_new_on(&disk, path).expect("create");
        let error = Manifest::load_on(&disk, path).expect_err("from the future");
        assert!(matches!(error, StorageError::FormatUnknown { found: 2, supported: 1, .. }), "{error}");
    }

    #[test]
    fn a_crash_anywhere_in_store_leaves_the_old_or_the_new_one() {
        let path = Path::new("/d/manifest");
        let later = Manifest { boots: 10, wal_floor_lsn: 99, ..manifest() };
        let (mut old, mut new) = (0, 0);
        for seed in 0..400 {
            let disk = MemoryDisk::default();
            manifest().create_new_on(&disk, path).expect("create");
            let mut chance = Chance::new(seed);
            disk.set_faults(Faults { dies_after: Some(seed % 6), ..Faults::default() });
            let stored = later.store_on(&disk, path).is_ok();
            let found = Manifest::load_on(&disk.crash(&mut chance), path).expect("one of the two");
            if found == later {
                new += 1;
            } else {
                assert_eq!(found, manifest());
                assert!(!stored, "an acknowledged store was lost");
                old += 1;
            }
        }
        assert!(old > 50 && new > 50, "both outcomes occur: {old} {new}");
    }
}
