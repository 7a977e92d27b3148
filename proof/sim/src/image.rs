//! A write-ahead log as bytes: what the real store's own writer makes of records, in files that are kept in memory, and
//! what its own scanner makes of those bytes again. Between the two a write can be cut, or a bit flipped.
//!
//! It knows neither record nor format: what may be damaged is found by what the writer wrote. Who is struck, and when,
//! stands in `faults`; what it costs the owner, in `disk`.

use bytes::Bytes;
use dwcp_base::Chance;
use dwcp_storage::{Disk, DiskFile, DiskLock, StorageError, Wal, WalSettings, Warning};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

/// The smallest segment there may be: some batches fill one.
const SEGMENT_BYTES: u64 = 64 << 10;
/// Records that fill such a segment to the last page: the first of a log, which has a mark before them, and any other.
const FILLER_BYTES: [usize; 2] = [13 << 12, 14 << 12];
const FOLDER: &str = "log";

/// Something that the writer wrote at once.
#[derive(Clone, Debug)]
struct Write {
    file: usize,
    offset: usize,
    len: usize,
    /// What lay there before.
    before: Vec<u8>,
}

#[derive(Debug)]
struct Files {
    names: BTreeMap<PathBuf, usize>,
    bytes: Vec<Vec<u8>>,
    /// In order; those into files that are part of the log.
    writes: Vec<Write>,
    salts: Chance,
}

#[derive(Clone, Debug)]
struct Memory(Arc<Mutex<Files>>);

/// The bytes of a log.
#[derive(Debug)]
pub struct Image(Memory);

/// What the scanner found.
#[derive(Debug)]
pub struct Scanned {
    pub records: Vec<Vec<u8>>,
    /// It warned that a write was cut off.
    pub torn: bool,
}

impl Image {
    /// The log that comes of these batches, each written and synced at once. With `recycled` in files that had a life before:
    /// behind the last batch lie old bytes instead of zeros.
    ///
    /// # Panics
    /// When the store refuses to write into memory.
    #[must_use]
    pub fn write(batches: &[Vec<Bytes>], recycled: bool, salts: Chance) -> Self {
        let memory = Memory(Arc::new(Mutex::new(Files {
            names: BTreeMap::new(),
            bytes: Vec::new(),
            writes: Vec::new(),
            salts,
        })));
        let (mut wal, ..) = memory.open(true).expect("memory takes a new log");
        let recycled = recycled && !batches.is_empty();
        if recycled {
            for bytes in FILLER_BYTES {
                write(&mut wal, &[Bytes::from(vec![0xa5; bytes])]);
            }
            // The first segment is given back, to be the next one.
            let next = wal.next_lsn();
            wal.discard_before(next).expect("memory does not fail");
        }
        let next = wal.next_lsn();
        for batch in batches {
            write(&mut wal, batch);
        }
        if recycled {
            wal.discard_before(next).expect("memory does not fail");
        }
        drop(wal);
        Self(memory)
    }

    /// The power failed while the last batch was written: of what it changed, a drawn part landed, never all. False when
    /// there is nothing to cut.
    pub fn tear(&mut self, chance: &mut Chance) -> bool {
        let mut files = self.0.files();
        let Some(Write { file, offset, len, before }) = files.writes.last().cloned() else { return false };
        let now = &mut files.bytes[file][offset..offset + len];
        // The room behind a batch says nothing, in a recycled file too, where it differs from what lay there.
        let mut differs = (0..meant(now)).filter(|at| now[*at] != before[*at]);
        let Some(first) = differs.next() else { return false };
        let last = differs.next_back().unwrap_or(first);
        let cut = usize::try_from(chance.between(first as u64 + 1, last as u64)).expect("it is an index");
        now[cut..].copy_from_slice(&before[cut..]);
        cut > first && cut <= last
    }

    /// A drawn bit of what was synced flips: in the page that begins a segment, or in a batch with another behind it. The
    /// last batch is spared, for the store does not tell it from one that a crash cut off (`docs/durable.md`), and so is
    /// the room behind a batch, which means nothing.
    pub fn flip(&mut self, chance: &mut Chance) {
        let mut files = self.0.files();
        let count = files.writes.len().saturating_sub(1);
        let written = files.writes[..count].to_vec();
        let Write { file, offset, len, .. } = chance.pick(&written).expect("a log has a header");
        let bytes = &mut files.bytes[*file][*offset..offset + len];
        let bit = usize::try_from(chance.below(meant(bytes) as u64 * 8)).expect("it is an index");
        bytes[bit / 8] ^= 1 << (bit % 8);
    }

    /// What the store finds when it opens this log. The image stays as it is.
    ///
    /// # Errors
    /// The store refuses it.
    pub fn scan(&self) -> Result<Scanned, StorageError> {
        let copy = {
            let files = self.0.files();
            let (names, bytes, salts) = (files.names.clone(), files.bytes.clone(), files.salts.clone());
            Memory(Arc::new(Mutex::new(Files { names, bytes, writes: Vec::new(), salts })))
        };
        let (_wal, records, warnings) = copy.open(false)?;
        let torn = warnings.iter().any(|warning| matches!(warning, Warning::TornTail { .. }));
        Ok(Scanned { records: records.into_iter().map(|record| record.bytes).collect(), torn })
    }

    /// Puts another image's bytes in place of this one's, as damage would that no checksum notices.
    #[cfg(test)]
    pub fn replace(&mut self, other: &Self) {
        let other = other.0.files().bytes.clone();
        self.0.files().bytes = other;
    }
}

/// How many bytes of a write mean something: behind it is room up to the next page, in zeros.
fn meant(bytes: &[u8]) -> usize {
    bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1)
}

fn write(wal: &mut Wal, batch: &[Bytes]) {
    for record in batch {
        wal.append(record).expect("a batch of a simulated node is small");
    }
    wal.sync().expect("memory does not fail");
}

impl Memory {
    fn files(&self) -> MutexGuard<'_, Files> {
        self.0.lock().expect("nothing panics while it holds this")
    }

    fn open(
        &self,
        may_create: bool,
    ) -> Result<(Wal, Vec<dwcp_storage::WalRecord>, Vec<Warning>), StorageError> {
        let settings =
            WalSettings { segment_bytes: SEGMENT_BYTES, prepare_ahead: false, ..WalSettings::default() };
        Wal::open_on(Arc::new(self.clone()), Path::new(FOLDER), settings, may_create)
    }
}

impl Files {
    fn id(&self, path: &Path) -> io::Result<usize> {
        self.names.get(path).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Disk for Memory {
    fn create_dir_all(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let files = self.files();
        let inside = files.names.keys().filter(|path| path.parent() == Some(dir));
        Ok(inside.filter_map(|path| Some(path.file_name()?.to_str()?.to_owned())).collect())
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let file = self.files().id(path)?;
        Ok(Box::new(MemoryFile { memory: self.clone(), file }))
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let mut files = self.files();
        files.bytes.push(Vec::new());
        let file = files.bytes.len() - 1;
        files.names.insert(path.into(), file);
        Ok(Box::new(MemoryFile { memory: self.clone(), file }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut files = self.files();
        let file = files.id(from)?;
        files.names.remove(from);
        files.names.insert(to.into(), file);
        // Given back: what was written there is no part of the log any more.
        if to.extension().is_none() {
            files.writes.retain(|write| write.file != file);
        }
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut files = self.files();
        let file = files.id(path)?;
        files.names.remove(path);
        files.bytes[file] = Vec::new();
        files.writes.retain(|write| write.file != file);
        Ok(())
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn lock(&self, _: &Path) -> io::Result<Result<Box<dyn DiskLock>, String>> {
        Ok(Ok(Box::new(Unshared)))
    }

    fn salt(&self) -> io::Result<u64> {
        Ok(self.files().salts.next_u64())
    }
}

/// Nobody else knows this memory.
#[derive(Debug)]
struct Unshared;

impl DiskLock for Unshared {}

#[derive(Debug)]
struct MemoryFile {
    memory: Memory,
    file: usize,
}

impl DiskFile for MemoryFile {
    fn len_bytes(&self) -> io::Result<u64> {
        Ok(self.memory.files().bytes[self.file].len() as u64)
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let files = self.memory.files();
        let part = usize::try_from(offset).ok().and_then(|at| files.bytes[self.file].get(at..));
        let part = part.and_then(|rest| rest.get(..buffer.len()));
        buffer.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_all_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut files = self.memory.files();
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        let place = files.bytes[self.file].get_mut(offset..offset + bytes.len());
        let place = place.ok_or(io::ErrorKind::StorageFull)?;
        let before = place.to_vec();
        place.copy_from_slice(bytes);
        files.writes.push(Write { file: self.file, offset, len: bytes.len(), before });
        Ok(())
    }

    fn preallocate(&mut self, len: u64) -> io::Result<()> {
        let len = usize::try_from(len).map_err(io::Error::other)?;
        self.memory.files().bytes[self.file].resize(len, 0);
        Ok(())
    }

    fn sync_data(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn sync_all(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batches(count: u8) -> Vec<Vec<Bytes>> {
        // One batch of three records, with zeros at the end, which a cut must not mistake for room.
        (1..=count).map(|batch| (0..3).map(|at| Bytes::from(vec![batch, at, 7, 0, 0])).collect()).collect()
    }

    fn image(batches: &[Vec<Bytes>], recycled: bool) -> Image {
        Image::write(batches, recycled, Chance::new(5))
    }

    fn records(batches: &[Vec<Bytes>]) -> Vec<Vec<u8>> {
        batches.concat().iter().map(|record| record.to_vec()).collect()
    }

    #[test]
    fn what_was_written_is_read_back() {
        for recycled in [false, true] {
            for count in [0, 1, 5, 40] {
                let batches = batches(count);
                let scanned = image(&batches, recycled).scan().expect("it is whole");
                assert_eq!((scanned.records, scanned.torn), (records(&batches), false));
            }
        }
    }

    #[test]
    fn a_cut_write_is_dropped_whole_wherever_it_was_cut() {
        let batches = batches(6);
        let mut warned = [0, 0];
        for seed in 0..300 {
            for recycled in [false, true] {
                let mut image = image(&batches, recycled);
                assert!(image.tear(&mut Chance::new(seed)));
                let scanned = image.scan().expect("a torn tail is no damage");
                assert_eq!(scanned.records, records(&batches[..5]), "seed {seed}");
                warned[usize::from(recycled)] += u64::from(scanned.torn);
            }
        }
        assert_eq!(warned[0], 300);
        assert!(warned[1] > 0 && warned[1] < 300, "old bytes may hide that a write began: {}", warned[1]);
    }

    #[test]
    fn any_flipped_bit_before_the_last_batch_is_refused() {
        // Enough for several segments.
        let batches: Vec<Vec<Bytes>> =
            (1..=40).map(|batch| vec![Bytes::from(vec![batch; 5_000]), Bytes::from_static(b"x")]).collect();
        for seed in 0..300 {
            for recycled in [false, true] {
                let mut image = image(&batches, recycled);
                image.flip(&mut Chance::new(seed));
                assert!(image.scan().is_err(), "seed {seed}, recycled {recycled}");
            }
        }
    }
}
