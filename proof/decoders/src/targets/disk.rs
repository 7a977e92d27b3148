//! What a node finds on its disk: a log segment and the manifest, on a disk in memory.
//!
//! A segment is mostly padding, so an input is its parts without it: for each page-aligned part a length (u32) and the
//! part, the header first, then batches. Sealing makes header, batch and body checksums good again, as written in
//! `docs/durable.md`.

use crate::Seal::Sums;
use crate::meter::bounded;
use crate::{Target, Verdict};
use dwcp_storage::{Disk, DiskFile, DiskLock, Manifest, OWNER_BYTES, Wal, WalRecord, WalSettings, Warning};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub static WAL_SEGMENT: Target = Target::new("wal_segment", run_segment, short_seeds, Sums(seal_wal));
pub static WAL_REOPENED: Target = Target::new("wal_reopened", run_wal, wal_seeds, Sums(seal_wal)).live(
    20,
    "each is a whole log, added to and opened again",
    &["wal_segment"],
);
pub static MANIFEST: Target =
    Target::new("manifest", run_manifest, manifest_seeds, Sums(|b| seal_manifest(b)));

const PAGE: usize = 4096;
const SEGMENT_BYTES: usize = 64 << 10;
const HEADER_BYTES: usize = 88;
const BATCH_BYTES: usize = 32;
const OWNER: [u8; OWNER_BYTES] = [7; OWNER_BYTES];
const DIR: &str = "/d";

/// Files in memory; every write is durable at once.
#[derive(Clone, Debug, Default)]
struct MemoryDisk(Arc<Mutex<BTreeMap<PathBuf, Vec<u8>>>>);

impl MemoryDisk {
    fn files(&self) -> MutexGuard<'_, BTreeMap<PathBuf, Vec<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with(path: &Path, bytes: Vec<u8>) -> Self {
        let disk = Self::default();
        disk.files().insert(path.into(), bytes);
        disk
    }
}

#[derive(Debug)]
struct MemoryFile {
    disk: MemoryDisk,
    path: PathBuf,
}

#[derive(Debug)]
struct Lock;

impl DiskLock for Lock {}

impl MemoryFile {
    fn with<T>(&self, work: impl FnOnce(&mut Vec<u8>) -> io::Result<T>) -> io::Result<T> {
        work(self.disk.files().get_mut(&self.path).ok_or(io::ErrorKind::NotFound)?)
    }
}

impl DiskFile for MemoryFile {
    fn len_bytes(&self) -> io::Result<u64> {
        self.with(|bytes| Ok(bytes.len() as u64))
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.with(|bytes| {
            let from = usize::try_from(offset).map_err(|_| io::ErrorKind::UnexpectedEof)?;
            let part = bytes.get(from..).and_then(|rest| rest.get(..buffer.len()));
            buffer.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        })
    }

    fn write_all_at(&mut self, part: &[u8], offset: u64) -> io::Result<()> {
        self.with(|bytes| {
            let from = usize::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
            if bytes.len() < from + part.len() {
                bytes.resize(from + part.len(), 0);
            }
            bytes[from..from + part.len()].copy_from_slice(part);
            Ok(())
        })
    }

    fn preallocate(&mut self, len: u64) -> io::Result<()> {
        assert!(len <= 16 << 20, "a file of {len} bytes was asked for");
        self.with(|bytes| {
            bytes.resize(bytes.len().max(len as usize), 0);
            Ok(())
        })
    }

    fn sync_data(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn sync_all(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Disk for MemoryDisk {
    fn create_dir_all(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let inside =
            |path: &PathBuf| path.strip_prefix(dir).ok().map(|name| name.to_string_lossy().into_owned());
        Ok(self.files().keys().filter_map(inside).collect())
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        if !self.files().contains_key(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(Box::new(MemoryFile { disk: self.clone(), path: path.into() }))
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.files().insert(path.into(), Vec::new());
        Ok(Box::new(MemoryFile { disk: self.clone(), path: path.into() }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut files = self.files();
        let bytes = files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        files.insert(to.into(), bytes);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.files().remove(path).map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn lock(&self, _: &Path) -> io::Result<Result<Box<dyn DiskLock>, String>> {
        Ok(Ok(Box::new(Lock)))
    }

    fn salt(&self) -> io::Result<u64> {
        Ok(0x5eed)
    }
}

fn parts(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut parts = Vec::new();
    while let Some((len, rest)) = bytes.split_first_chunk::<4>()
        && parts.len() < 64
    {
        let (part, rest) = rest.split_at((u32::from_le_bytes(*len) as usize).min(rest.len()));
        parts.push(part.to_vec());
        bytes = rest;
    }
    parts
}

fn join(parts: &[Vec<u8>]) -> Vec<u8> {
    let with_len =
        |part: &Vec<u8>| [&u32::try_from(part.len()).expect("small").to_le_bytes()[..], part].concat();
    parts.iter().flat_map(with_len).collect()
}

/// The file: every part on a page of its own, as long as the header says, if that is sane.
fn segment(bytes: &[u8]) -> Vec<u8> {
    let mut file = Vec::new();
    for part in parts(bytes) {
        file.extend_from_slice(&part);
        file.resize(file.len().next_multiple_of(PAGE), 0);
    }
    let claimed = number(&file, 32).unwrap_or(0) as usize;
    if claimed <= 1 << 20 {
        file.resize(claimed.max(1), 0);
    }
    file
}

fn number(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk::<8>().map(|field| u64::from_le_bytes(*field))
}

fn settings() -> WalSettings {
    WalSettings { segment_bytes: SEGMENT_BYTES as u64, prepare_ahead: false, owner: OWNER }
}

/// The file goes by the name its header claims, else no header with another number would be read.
fn disk_of(file: Vec<u8>) -> MemoryDisk {
    let name = number(&file, 16).unwrap_or(1);
    MemoryDisk::with(&Path::new(DIR).join(format!("{name:016x}.wal")), file)
}

type Opened = (Wal, Vec<WalRecord>, Vec<Warning>);

fn open(disk: &MemoryDisk) -> Option<Opened> {
    let opened = match Wal::open_on(Arc::new(disk.clone()), Path::new(DIR), settings(), false) {
        Ok(opened) => opened,
        Err(error) => {
            assert!(!error.to_string().contains('\n'), "a refusal is one line: {error}");
            return None;
        }
    };
    let (wal, records, _) = &opened;
    let mut lsn = wal.first_lsn();
    for record in records {
        assert!(record.lsn == lsn, "records are numbered without gaps");
        lsn.0 += 1;
    }
    assert!(lsn == wal.next_lsn(), "the next record follows the last");
    Some(opened)
}

/// What is read is there, one record after the other, in batches that begin a page each.
fn run_segment(bytes: &[u8]) -> Verdict {
    let file = segment(bytes);
    let Some((_, records, _)) = bounded(&file, || open(&disk_of(file.clone()))) else {
        return Verdict::Refused;
    };
    let (mut at, mut left) = (PAGE, &records[..]);
    while !left.is_empty() {
        let bytes = u32::from_le_bytes(file[at + 20..at + 24].try_into().expect("four bytes")) as usize;
        let mut body = &file[at + BATCH_BYTES..][..bytes];
        while !body.is_empty() {
            let (record, later) = left.split_first().expect("a batch holds what was not read");
            let len = u32::try_from(record.bytes.len()).expect("small").to_le_bytes();
            let behind = body.strip_prefix(&len).and_then(|rest| rest.strip_prefix(&record.bytes[..]));
            (body, left) = (behind.expect("a record is not its own encoding"), later);
        }
        at = (at + BATCH_BYTES + bytes).next_multiple_of(PAGE);
    }
    Verdict::Accepted
}

fn run_wal(bytes: &[u8]) -> Verdict {
    let disk = disk_of(segment(bytes));
    let Some((mut wal, records, torn)) = open(&disk) else { return Verdict::Refused };
    let added = wal.append(b"after").expect("a log that opened takes records");
    wal.sync().expect("a disk in memory syncs");
    drop(wal);
    let (_, again, warnings) = open(&disk).expect("what was repaired opens");
    // Pages of a torn write that nothing has overwritten yet may be warned of once more.
    assert!(warnings.is_empty() || !torn.is_empty(), "a whole log is torn by appending: {warnings:?}");
    assert!(again[..records.len()] == records[..], "what was read once is read again");
    assert!(again.len() == records.len() + 1 && again[records.len()].lsn == added, "and what was added");
    Verdict::Accepted
}

fn crc(initial: u32, pieces: &[&[u8]]) -> u32 {
    let mut crc = crc32fast::Hasher::new_with_initial(initial);
    pieces.iter().for_each(|piece| crc.update(piece));
    crc.finalize()
}

fn seal_wal(bytes: &mut Vec<u8>) -> bool {
    let mut all = parts(bytes);
    let Some((header, batches)) = all.split_first_mut() else { return false };
    header.resize(PAGE.max(header.len().next_multiple_of(PAGE)), 0);
    let sum = crc(0, &[&header[..12], &header[16..PAGE]]);
    header[12..16].copy_from_slice(&sum.to_le_bytes());
    let seed = crc(0, &[&header[16..24], &header[40..48]]);
    for batch in batches.iter_mut().filter(|batch| batch.len() >= BATCH_BYTES) {
        let body_bytes = u32::from_le_bytes(batch[20..24].try_into().expect("four bytes")) as usize;
        if let Some(body) = batch.get(BATCH_BYTES..).and_then(|rest| rest.get(..body_bytes)) {
            let sum = crc(seed, &[body]);
            batch[24..28].copy_from_slice(&sum.to_le_bytes());
        }
        let sum = crc(seed, &[&batch[..4], &batch[8..BATCH_BYTES]]);
        batch[4..8].copy_from_slice(&sum.to_le_bytes());
    }
    header.truncate(
        header
            .len()
            .min(header.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1))
            .max(HEADER_BYTES),
    );
    *bytes = join(&all);
    true
}

/// Segments as the log writes them, taken apart again.
fn wal_seeds() -> Vec<Vec<u8>> {
    let batches: [&[&[u8]]; 4] =
        [&[b"one"], &[b"two", b"", b"three"], &[&[9; 5_000]], &[b"four", b"five", b"six", b"seven"]];
    (0..=batches.len())
        .map(|count| {
            let disk = MemoryDisk::default();
            let opened = Wal::open_on(Arc::new(disk.clone()), Path::new(DIR), settings(), true);
            let (mut wal, _, _) = opened.expect("an empty disk");
            for batch in &batches[..count] {
                for record in *batch {
                    wal.append(record).expect("room");
                }
                wal.sync().expect("a disk in memory");
            }
            drop(wal);
            let files = disk.files();
            let segment = files.iter().find(|(path, _)| path.extension().is_some_and(|end| end == "wal"));
            take_apart(segment.expect("the log has a segment").1)
        })
        .collect()
}

/// The same logs in files that are no longer than they have to be, which are read sooner.
fn short_seeds() -> Vec<Vec<u8>> {
    let mut seeds = wal_seeds();
    for seed in &mut seeds {
        let mut all = parts(seed);
        let pages: usize = all.iter().map(|part| part.len().div_ceil(PAGE)).sum();
        let bytes = ((pages + 1) * PAGE) as u64;
        all[0][32..40].copy_from_slice(&bytes.to_le_bytes());
        *seed = join(&all);
        seal_wal(seed);
    }
    seeds
}

fn take_apart(file: &[u8]) -> Vec<u8> {
    let mut found = vec![file[..HEADER_BYTES].to_vec()];
    let mut at = PAGE;
    while file.get(at..at + 4) == Some(b"BTCH") {
        let body = u32::from_le_bytes(file[at + 20..at + 24].try_into().expect("four bytes")) as usize;
        found.push(file[at..at + BATCH_BYTES + body].to_vec());
        at += (BATCH_BYTES + body).next_multiple_of(PAGE);
    }
    join(&found)
}

fn run_manifest(bytes: &[u8]) -> Verdict {
    let path = Path::new("/d/manifest");
    let disk = MemoryDisk::with(path, bytes.to_vec());
    let loaded = Manifest::load_on(&disk, path);
    match &loaded {
        Ok(manifest) => {
            manifest.store_on(&disk, path).expect("a disk in memory");
            assert!(Manifest::load_on(&disk, path).expect("own bytes") == *manifest, "a manifest reads back");
        }
        Err(error) => assert!(!error.to_string().contains('\n'), "a refusal is one line: {error}"),
    }
    // Damaged or not, it is there: nobody may make a new one over it.
    let new = Manifest { boots: 77, ..good_manifest() };
    assert!(new.create_new_on(&disk, path).is_err(), "a manifest was made over another");
    Verdict::of(loaded.is_ok())
}

fn good_manifest() -> Manifest {
    Manifest {
        format_version: dwcp_storage::DATA_FORMAT_VERSION,
        cluster: [3; 32],
        replica: 2,
        incarnation: 5,
        genesis_hash: [8; 32],
        created_unix_ms: 1_700_000_000_123,
        boots: 9,
        wal_floor_lsn: 77,
    }
}

fn manifest_seeds() -> Vec<Vec<u8>> {
    let path = Path::new("/d/manifest");
    let manifests = [good_manifest(), Manifest { boots: 0, wal_floor_lsn: u64::MAX, ..good_manifest() }];
    let bytes = manifests.iter().map(|manifest| {
        let disk = MemoryDisk::default();
        manifest.create_new_on(&disk, path).expect("a disk in memory");
        let files = disk.files();
        files[path].clone()
    });
    bytes.collect()
}

fn seal_manifest(bytes: &mut [u8]) -> bool {
    let Some(at) = bytes.len().checked_sub(4) else { return false };
    let sum = crc32fast::hash(&bytes[..at]);
    bytes[at..].copy_from_slice(&sum.to_le_bytes());
    at == 124
}
