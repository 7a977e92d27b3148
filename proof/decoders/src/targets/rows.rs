//! The rows of a snapshot store, written past the store into its database: what a bad disk, or a copy put together wrongly,
//! may leave there. Whatever they hold, every question is answered, or refused with a typed error of one line.
//!
//! An input is the rows, one a step: its table, then its key and its value. Sealing makes each row's checksum good, as
//! written in `docs/durable.md`.

use crate::Seal::Sums;
use crate::meter::bounded;
use crate::steps::{self, Step};
use crate::{Target, Verdict};
use dwcp_storage::{SnapshotInfo, SnapshotStore, StorageError, row};
use redb::{Database, TableDefinition};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

pub static SNAPSHOT_ROWS: Target =
    Target { damage: steps::damage, ..Target::new("snapshot_rows", run, seeds, Sums(seal)) }
        .bombs(bombs)
        .live(50, "each is a database of its own, opened twice", &["snapshot_row"]);
pub static SNAPSHOT_ROW: Target =
    Target { damage: steps::damage, ..Target::new("snapshot_row", run_row, seeds, Sums(seal)) }.bombs(bombs);

const SNAPSHOTS: TableDefinition<u64, &[u8]> = TableDefinition::new("snapshots");
const CHUNKS: TableDefinition<(u64, u32), &[u8]> = TableDefinition::new("chunks");
const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");

const CRC_BYTES: usize = 4;
const HEADER_BYTES: usize = CRC_BYTES + 1 + 4 + 8;
/// More than any honest store of these few rows can count.
const ASKED_MAX: u32 = 64;

/// Values by key, checksums included.
#[derive(Debug, Default)]
struct Rows {
    snapshots: BTreeMap<u64, Vec<u8>>,
    chunks: BTreeMap<(u64, u32), Vec<u8>>,
    meta: BTreeMap<String, Vec<u8>>,
}

fn number(bytes: &[u8]) -> u64 {
    bytes.first_chunk::<8>().map_or(0, |field| u64::from_le_bytes(*field))
}

/// Key and value of a row: 8 bytes, 12, or a length and so many.
fn split(table: u8, body: &[u8]) -> (&[u8], &[u8]) {
    let (at, skipped) = match table {
        0 => (8, 0),
        1 => (12, 0),
        _ => (body.first().map_or(0, |len| usize::from(*len)), 1),
    };
    let body = &body[skipped.min(body.len())..];
    body.split_at(at.min(body.len()))
}

fn crc(key: &[u8], value: &[u8]) -> [u8; CRC_BYTES] {
    let mut crc = crc32fast::Hasher::new();
    crc.update(key);
    crc.update(value);
    crc.finalize().to_le_bytes()
}

fn is_good(key: &[u8], value: &[u8]) -> bool {
    value.split_at_checked(CRC_BYTES).is_some_and(|(sum, rest)| *sum == crc(key, rest))
}

fn chunk_key(seq: u64, index: u32) -> Vec<u8> {
    [&seq.to_le_bytes()[..], &index.to_le_bytes()].concat()
}

fn read(bytes: &[u8]) -> Rows {
    let mut rows = Rows::default();
    for (table, body) in steps::read(bytes) {
        let table = table % 3;
        let (key, value) = split(table, &body);
        match table {
            0 => drop(rows.snapshots.insert(number(key), value.to_vec())),
            1 => {
                let index = key.get(8..).and_then(|rest| rest.first_chunk::<4>());
                let index = index.map_or(0, |field| u32::from_le_bytes(*field));
                rows.chunks.insert((number(key), index), value.to_vec());
            }
            _ => drop(rows.meta.insert(String::from_utf8_lossy(key).into_owned(), value.to_vec())),
        }
    }
    rows
}

/// Each row by itself, without a database. Accepted when no row is refused.
fn run_row(bytes: &[u8]) -> Verdict {
    let rows = read(bytes);
    let mut good = true;
    for (seq, value) in &rows.snapshots {
        let info = bounded(value, || row::read_info(*seq, value));
        let whole = value.len() >= HEADER_BYTES && is_good(&seq.to_le_bytes(), value);
        assert!(info.is_some() == whole, "a row does not read as its checksum says");
        good &= whole;
        if let Some(info) = info {
            // Any number but zero says that it is complete; it is written as one.
            let mut own = row::encode_info(&info);
            assert!(own[CRC_BYTES] == value[CRC_BYTES].min(1), "a snapshot is complete, or it is not");
            own[..=CRC_BYTES].copy_from_slice(&value[..=CRC_BYTES]);
            assert!(own == *value, "a row was accepted that is not its own encoding");
        }
    }
    for ((seq, index), value) in &rows.chunks {
        let chunk = row::read_chunk(*seq, *index, value);
        let expected = is_good(&chunk_key(*seq, *index), value).then(|| &value[CRC_BYTES..]);
        assert!(chunk == expected, "a chunk is not what its checksum says");
        good &= chunk.is_some();
    }
    for (key, value) in &rows.meta {
        let named = row::read_meta(key, value);
        let expected = is_good(key.as_bytes(), value).then(|| &value[CRC_BYTES..]);
        assert!(named == expected, "a named value is not what its checksum says");
        good &= named.is_some();
    }
    Verdict::of(good && !bytes.is_empty())
}

/// Where databases are made: in memory, if the system has a place for that, for each is synced several times.
fn folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    made.expect("a temporary folder")
}

fn write(path: &Path, rows: &Rows) {
    let mut builder = Database::builder();
    builder.set_cache_size(1 << 20);
    let database = builder.create(path).expect("a new database");
    let write = database.begin_write().expect("a new database takes writes");
    {
        let mut snapshots = write.open_table(SNAPSHOTS).expect("a table");
        let mut chunks = write.open_table(CHUNKS).expect("a table");
        let mut meta = write.open_table(META).expect("a table");
        for (seq, value) in &rows.snapshots {
            snapshots.insert(seq, &value[..]).expect("room");
        }
        for (key, value) in &rows.chunks {
            chunks.insert(key, &value[..]).expect("room");
        }
        for (key, value) in &rows.meta {
            meta.insert(&key[..], &value[..]).expect("room");
        }
    }
    write.commit().expect("room");
}

/// Accepted when no row was refused.
fn run(bytes: &[u8]) -> Verdict {
    thread_local! {
        static FOLDER: TempDir = folder();
    }
    let path: PathBuf = FOLDER.with(|folder| folder.path().join("rows.redb"));
    let _ = std::fs::remove_file(&path);
    let rows = read(bytes);
    write(&path, &rows);
    let store = SnapshotStore::open(&path).expect("what its rows say is no reason not to open");
    let mut all = Asked { rows: &rows, good: true };
    all.read(&store);
    all.write(&store);
    drop(store);
    // What was written meanwhile is good, and what was bad before is still refused and nothing worse.
    let store = SnapshotStore::open(&path).expect("a store that was open opens again");
    let _ = store.list().map_err(|error| one_line(&error));
    Verdict::of(all.good)
}

fn one_line(error: &StorageError) {
    let text = error.to_string();
    assert!(!text.is_empty() && !text.contains('\n'), "a refusal is one line: {text:?}");
    assert!(!text.contains("stopped in the middle"), "a row made the store panic");
}

struct Asked<'a> {
    rows: &'a Rows,
    good: bool,
}

impl Asked<'_> {
    fn told<T>(&mut self, answer: Result<T, StorageError>) -> Option<T> {
        answer.inspect_err(one_line).inspect_err(|_| self.good = false).ok()
    }

    /// Every row is what it is, if its checksum says so, and refused otherwise.
    fn read(&mut self, store: &SnapshotStore) {
        let whole = |(seq, value): (&u64, &Vec<u8>)| {
            value.len() >= HEADER_BYTES && is_good(&seq.to_le_bytes(), value)
        };
        let all_whole = self.rows.snapshots.iter().all(whole);
        let infos = self.told(store.list());
        assert!(infos.is_some() == all_whole, "the list does not say what its rows' checksums say");
        for (info, (seq, value)) in infos.iter().flatten().zip(&self.rows.snapshots) {
            let chunks = u32::from_le_bytes(value[5..9].try_into().expect("four bytes"));
            let (bytes, complete) = (number(&value[9..17]), value[4] != 0);
            let meta = value[HEADER_BYTES..].to_vec();
            assert!(
                *info == SnapshotInfo { seq: *seq, meta, chunks, bytes, complete },
                "a row reads otherwise"
            );
        }
        for ((seq, index), value) in &self.rows.chunks {
            let read = self.told(store.read_chunk(*seq, *index));
            let expected = is_good(&chunk_key(*seq, *index), value).then(|| value[CRC_BYTES..].to_vec());
            assert!(read == expected, "a chunk is not what its checksum says");
        }
        for (key, value) in &self.rows.meta {
            let read = self.told(store.get_meta(key)).flatten();
            let expected = is_good(key.as_bytes(), value).then(|| value[CRC_BYTES..].to_vec());
            assert!(read == expected, "a named value is not what its checksum says");
        }
    }

    /// Whatever a row says, snapshots can be gone on with, finished and dropped, or that is refused.
    fn write(&mut self, store: &SnapshotStore) {
        let sequences: Vec<u64> = self.rows.snapshots.keys().copied().take(8).collect();
        for seq in sequences {
            let indexes = self.told(store.chunk_indexes(seq)).unwrap_or_default();
            let _ = store.begin(seq, b"another").map_err(|error| one_line(&error));
            let next = u32::try_from(indexes.len()).expect("few rows");
            let _ = store.put_chunk(seq, next, b"more").map_err(|error| one_line(&error));
            match store.finish(seq) {
                Ok(()) => self.is_whole(store, seq),
                Err(error) => one_line(&error),
            }
            if seq % 2 == 1 {
                store.delete(seq).expect("what is damaged can be dropped");
                let left = store.chunk_indexes(seq).expect("an empty range");
                assert!(left.is_empty(), "what was dropped is still there");
            }
        }
        store.put_meta("replay", b"new").expect("a named value can always be written");
        assert!(store.get_meta("replay").expect("it was just written") == Some(b"new".to_vec()));
    }

    /// A snapshot that was declared complete just now has every chunk it counts. One that its row called complete before is
    /// as it was left.
    fn is_whole(&self, store: &SnapshotStore, seq: u64) {
        let was_complete = self.rows.snapshots.get(&seq).is_some_and(|value| value.get(4) != Some(&0));
        let Ok(infos) = store.list() else { return };
        let Some(info) = infos.iter().find(|info| info.seq == seq).filter(|_| !was_complete) else { return };
        let present = store.chunk_indexes(seq).expect("its rows were just counted");
        let counted: Vec<u32> = (0..info.chunks.min(ASKED_MAX)).collect();
        assert!(
            info.complete && present == counted,
            "{} chunks are counted, there are {present:?}",
            info.chunks
        );
    }
}

fn seal(bytes: &mut Vec<u8>) -> bool {
    let mut rows = steps::read(bytes);
    let mut good = !rows.is_empty();
    for (table, body) in &mut rows {
        let table = *table % 3;
        let (key, value) = split(table, body);
        // A key of which a part is missing, or which is no text, is another key in the database.
        let whole = match table {
            0 => key.len() == 8,
            1 => key.len() == 12,
            _ => std::str::from_utf8(key).is_ok(),
        };
        let least = if table == 0 { HEADER_BYTES } else { CRC_BYTES };
        if !whole || value.len() < least {
            good = false;
            continue;
        }
        let sum = crc(key, &value[CRC_BYTES..]);
        let at = body.len() - value.len();
        body[at..at + CRC_BYTES].copy_from_slice(&sum);
    }
    *bytes = steps::write(&rows);
    good
}

fn row(table: u8, key: &[u8], value: &[u8]) -> Step {
    let len = if table == 2 { vec![u8::try_from(key.len()).expect("short")] } else { Vec::new() };
    (table, [&len[..], key, &crc(key, value), value].concat())
}

fn snapshot(seq: u64, complete: bool, chunks: u32, bytes: u64, meta: &[u8]) -> Step {
    let value = [&[u8::from(complete)][..], &chunks.to_le_bytes(), &bytes.to_le_bytes(), meta].concat();
    row(0, &seq.to_le_bytes(), &value)
}

fn chunk(seq: u64, index: u32, bytes: &[u8]) -> Step {
    row(1, &chunk_key(seq, index), bytes)
}

/// Rows as the store writes them: read back from a store that was written through its own doors.
fn written() -> Vec<Step> {
    let folder = folder();
    let path = folder.path().join("seeds.redb");
    let store = SnapshotStore::open(&path).expect("a new store");
    for seq in [8, 17] {
        store.begin(seq, b"about it").expect("begun");
        for index in 0..3 {
            store.put_chunk(seq, index, &vec![7; 40 * index as usize]).expect("room");
        }
    }
    store.finish(8).expect("whole");
    store.put_meta("meta.a", b"a named value").expect("room");
    store.flush().expect("room");
    drop(store);
    let database = Database::open(&path).expect("it was closed");
    let read = redb::ReadableDatabase::begin_read(&database).expect("it reads");
    let mut steps = Vec::new();
    let table = read.open_table(SNAPSHOTS).expect("a table");
    for entry in redb::ReadableTable::iter(&table).expect("rows") {
        let (seq, value) = entry.expect("a row");
        steps.push((0, [&seq.value().to_le_bytes()[..], value.value()].concat()));
    }
    let table = read.open_table(CHUNKS).expect("a table");
    for entry in redb::ReadableTable::iter(&table).expect("rows") {
        let (key, value) = entry.expect("a row");
        let (seq, index) = key.value();
        steps.push((1, [&chunk_key(seq, index)[..], value.value()].concat()));
    }
    let table = read.open_table(META).expect("a table");
    for entry in redb::ReadableTable::iter(&table).expect("rows") {
        let (key, value) = entry.expect("a row");
        let len = u8::try_from(key.value().len()).expect("short");
        steps.push((2, [&[len][..], key.value().as_bytes(), value.value()].concat()));
    }
    steps
}

fn seeds() -> Vec<Vec<u8>> {
    let all = written();
    let open = vec![snapshot(5, false, 2, 6, b"m"), chunk(5, 0, b"abc"), chunk(5, 1, b"def")];
    let mut seeds: Vec<Vec<u8>> = all.iter().map(|row| steps::write(std::slice::from_ref(row))).collect();
    seeds.push(steps::write(&all));
    seeds.push(steps::write(&open));
    seeds
}

/// Counts that lie under good checksums, rows that changed places, and keys at both ends.
fn bombs() -> Vec<Vec<u8>> {
    let open = |chunks, bytes| snapshot(5, false, chunks, bytes, b"m");
    let (zero, one) = (chunk(5, 0, b"abc"), chunk(5, 1, b"def"));
    let swapped = (1, [&one.1[..12], &zero.1[12..]].concat());
    [
        vec![open(u32::MAX, 6), zero.clone(), one.clone()],
        vec![open(2, u64::MAX), zero.clone(), one.clone()],
        vec![open(0, 0), zero.clone(), one.clone()],
        vec![open(5, 6), zero.clone(), one.clone()],
        vec![open(2, 6), zero.clone(), swapped],
        vec![open(2, 6), zero.clone(), chunk(5, u32::MAX, b"far")],
        vec![snapshot(u64::MAX, false, 1, 1, b""), chunk(u64::MAX, 0, b"a")],
        vec![snapshot(3, true, u32::MAX, u64::MAX, &[9; 5_000])],
        vec![zero, one],
    ]
    .iter()
    .map(|rows| steps::write(rows))
    .collect()
}
