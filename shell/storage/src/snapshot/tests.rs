//! The snapshot store as its users see it, on a real file and on one that fills up.

use std::sync::{Arc, Mutex};

use super::*;
use crate::memory_disk::Chance;

fn at(dir: &tempfile::TempDir) -> PathBuf {
    dir.path().join("snapshots.redb")
}

fn chunk(seed: u64, len: usize) -> Vec<u8> {
    let mut chance = Chance::new(seed + 1);
    (0..len).map(|_| chance.next() as u8).collect()
}

#[test]
fn a_finished_snapshot_reads_back_after_reopening() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let store = SnapshotStore::open(&at(&dir)).expect("open");
    store.begin(7, b"about seven").expect("begin");
    for index in [2, 0, 1] {
        store.put_chunk(7, index, &chunk(index.into(), 5000)).expect("put");
    }
    store.put_chunk(7, 1, &chunk(9, 100)).expect("replace");
    store.finish(7).expect("finish");
    store.finish(7).expect("finishing twice is the same");
    store.put_meta("replay", b"42").expect("meta");
    drop(store);
    let store = SnapshotStore::open(&at(&dir)).expect("open");
    let info =
        SnapshotInfo { seq: 7, meta: b"about seven".to_vec(), chunks: 3, bytes: 10_100, complete: true };
    assert_eq!(store.list().expect("list"), [info]);
    assert_eq!(store.read_chunk(7, 0).expect("read"), chunk(0, 5000));
    assert_eq!(store.read_chunk(7, 1).expect("read"), chunk(9, 100));
    assert_eq!(store.read_chunk(7, 2).expect("read"), chunk(2, 5000));
    assert_eq!(store.get_meta("replay").expect("meta").as_deref(), Some(&b"42"[..]));
    assert_eq!(store.get_meta("other").expect("meta"), None);
}

#[test]
fn an_incomplete_snapshot_survives_a_restart_and_is_taken_up() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let store = SnapshotStore::open(&at(&dir)).expect("open");
    store.begin(3, b"m").expect("begin");
    store.put_chunk(3, 0, b"zero").expect("put");
    store.put_chunk(3, 2, b"two").expect("put");
    drop(store);
    let store = SnapshotStore::open(&at(&dir)).expect("open");
    assert!(!store.list().expect("list")[0].complete);
    assert_eq!(store.chunk_indexes(3).expect("indexes"), [0, 2]);
    assert!(matches!(store.begin(3, b"n"), Err(StorageError::SnapshotMetaDiffers { seq: 3 })));
    store.begin(3, b"m").expect("taken up");
    assert!(matches!(store.finish(3), Err(StorageError::ChunkMissing { seq: 3, index: 1 })));
    store.put_chunk(3, 1, b"one").expect("put");
    store.finish(3).expect("finish");
    assert!(matches!(store.begin(3, b"m"), Err(StorageError::SnapshotComplete { seq: 3 })));
    assert!(matches!(store.put_chunk(3, 1, b"x"), Err(StorageError::SnapshotComplete { seq: 3 })));
    assert_eq!(store.read_chunk(3, 1).expect("read"), b"one");
}

#[test]
fn a_deleted_snapshot_is_gone_and_its_space_is_used_again() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let store = SnapshotStore::open(&at(&dir)).expect("open");
    let mut bytes_max = 0;
    for seq in 0..12 {
        store.begin(seq, b"").expect("begin");
        for index in 0..8 {
            store.put_chunk(seq, index, &chunk(index.into(), 100_000)).expect("put");
        }
        store.finish(seq).expect("finish");
        if seq > 0 {
            store.delete(seq - 1).expect("delete");
        }
        let bytes = std::fs::metadata(at(&dir)).expect("file").len();
        if seq == 5 {
            bytes_max = bytes;
        }
        assert!(seq <= 5 || bytes <= bytes_max, "{bytes} after {seq}");
    }
    assert_eq!(store.list().expect("list").len(), 1);
    assert!(matches!(store.read_chunk(3, 0), Err(StorageError::ChunkMissing { .. })));
    assert_eq!(store.read_chunk(11, 7).expect("read"), chunk(7, 100_000));
}

#[test]
fn what_cannot_be_is_refused_by_type() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let store = SnapshotStore::open(&at(&dir)).expect("open");
    assert!(matches!(store.put_chunk(1, 0, b"x"), Err(StorageError::SnapshotMissing { seq: 1 })));
    assert!(matches!(store.finish(1), Err(StorageError::SnapshotMissing { seq: 1 })));
    store.begin(1, b"").expect("begin");
    let large = vec![0; CHUNK_BYTES_MAX + 1];
    assert!(matches!(store.put_chunk(1, 0, &large), Err(StorageError::ValueTooLarge { .. })));
    store.put_chunk(1, 0, &large[..48 << 20]).expect("a large one");
    store.put_chunk(1, 1, b"abc").expect("put");
    assert!(matches!(SnapshotStore::open(&at(&dir)), Err(StorageError::Locked { .. })));
}

/// Two chunks, and an entry that counts so many chunks and bytes under a good checksum.
fn miscounted(dir: &tempfile::TempDir, chunks: u32, bytes: u64) -> SnapshotStore {
    let store = SnapshotStore::open(&at(dir)).expect("open");
    store.begin(5, b"m").expect("begin");
    store.put_chunk(5, 0, b"abc").expect("put");
    store.put_chunk(5, 1, b"def").expect("put");
    drop(store);
    let database = Database::create(at(dir)).expect("the store's own file");
    let write = database.begin_write().expect("a transaction");
    let info = SnapshotInfo { seq: 5, meta: b"m".to_vec(), chunks, bytes, complete: false };
    write.open_table(SNAPSHOTS).expect("a table").insert(5, &encode_info(&info)[..]).expect("a row");
    write.commit().expect("commit");
    drop(database);
    SnapshotStore::open(&at(dir)).expect("open")
}

#[test]
fn a_snapshot_with_fewer_chunks_than_its_entry_counts_is_not_complete() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let store = miscounted(&dir, 5, 6);
    assert!(matches!(store.finish(5), Err(StorageError::ChunkMissing { seq: 5, index: 2 })));
    assert!(!store.list().expect("list")[0].complete);
    let dir = tempfile::tempdir().expect("temporary directory");
    let store = miscounted(&dir, 1, 6);
    assert!(matches!(store.finish(5), Err(StorageError::StoreDamaged { .. })), "nor one with more");
}

#[test]
fn counts_at_the_end_of_the_numbers_are_damage_and_not_counted_on() {
    for (chunks, bytes) in [(u32::MAX, 6), (2, u64::MAX)] {
        let dir = tempfile::tempdir().expect("temporary directory");
        let store = miscounted(&dir, chunks, bytes);
        let refused = store.put_chunk(5, 2, b"ghi").expect_err("it cannot be counted").to_string();
        assert!(refused.contains("counts other chunks than there are"), "{refused}");
    }
}

#[test]
fn a_snapshot_is_written_by_one_thread_while_others_read() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let store = SnapshotStore::open(&at(&dir)).expect("open");
    store.begin(1, b"").expect("begin");
    store.put_chunk(1, 0, &chunk(1, 9000)).expect("put");
    store.finish(1).expect("finish");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            store.begin(2, b"").expect("begin");
            for index in 0..100 {
                store.put_chunk(2, index, &chunk(index.into(), 1000)).expect("put");
            }
            store.finish(2).expect("finish");
        });
        for _ in 0..100 {
            assert_eq!(store.read_chunk(1, 0).expect("read"), chunk(1, 9000));
        }
    });
    assert_eq!(store.list().expect("list").len(), 2);
}

#[test]
fn a_flipped_bit_anywhere_is_an_error_or_harmless() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let store = SnapshotStore::open(&at(&dir)).expect("open");
    store.begin(1, b"about one").expect("begin");
    let chunks: Vec<Vec<u8>> = (0..8).map(|n| chunk(n, 20_000)).collect();
    for (index, bytes) in (0..).zip(&chunks) {
        store.put_chunk(1, index, bytes).expect("put");
    }
    store.finish(1).expect("finish");
    store.put_meta("k", b"value").expect("meta");
    drop(store);
    let sound = std::fs::read(at(&dir)).expect("read");
    // Places that hold something, and among them the database's own pages rather more often than chance.
    let used: Vec<usize> = (0..sound.len()).filter(|&byte| sound[byte] != 0).collect();
    let mut chance = Chance::new(11);
    let (mut noticed, mut damaged_chunks) = (0, 0);
    for round in 0..300 {
        let byte = match round % 2 {
            0 => used[chance.below(used.len() as u64) as usize],
            _ => used[chance.below(2000.min(used.len() as u64)) as usize],
        };
        let mut bad = sound.clone();
        bad[byte] ^= 1 << chance.below(8);
        let path = dir.path().join("bad.redb");
        std::fs::write(&path, &bad).expect("write");
        let Ok(store) = SnapshotStore::open(&path) else {
            noticed += 1;
            continue;
        };
        match store.list() {
            Ok(list) => assert!(list.is_empty() || list[0].meta == b"about one", "byte {byte}"),
            Err(_) => noticed += 1,
        }
        for (index, bytes) in (0..).zip(&chunks) {
            match store.read_chunk(1, index) {
                Ok(found) => assert!(found == *bytes, "byte {byte}: garbage"),
                Err(StorageError::ChunkDamaged { .. }) => damaged_chunks += 1,
                Err(_) => noticed += 1,
            }
        }
        if let Ok(Some(found)) = store.get_meta("k") {
            assert_eq!(found, b"value", "byte {byte}");
        }
    }
    assert!(damaged_chunks > 50 && noticed > 5, "flips were seen: {damaged_chunks} {noticed}");
}

/// A file of bounded size.
#[derive(Debug, Clone)]
struct SmallDisk {
    bytes: Arc<Mutex<Vec<u8>>>,
    max: Arc<AtomicU64>,
}

impl redb::StorageBackend for SmallDisk {
    fn len(&self) -> Result<u64, io::Error> {
        Ok(self.bytes.lock().expect("sound").len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        let bytes = self.bytes.lock().expect("sound");
        let part = bytes.get(offset as usize..offset as usize + out.len());
        out.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        if len > self.max.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.bytes.lock().expect("sound").resize(len as usize, 0);
        Ok(())
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        self.bytes.lock().expect("sound")[offset as usize..][..data.len()].copy_from_slice(data);
        Ok(())
    }
}

#[test]
fn a_full_disk_is_told_apart_and_the_store_works_again_once_there_is_room() {
    let small = SmallDisk { bytes: Arc::default(), max: Arc::new(AtomicU64::new(4 << 20)) };
    let backend = small.clone();
    let opener = Box::new(move || builder().create_with_backend(backend.clone()));
    let store = SnapshotStore::open_with(Path::new("/small"), opener).expect("open");
    store.begin(1, b"").expect("begin");
    store.put_chunk(1, 0, &chunk(1, 50_000)).expect("put");
    store.finish(1).expect("finish");
    store.begin(2, b"").expect("begin");
    let full = (0..200).find_map(|index| store.put_chunk(2, index, &chunk(2, 50_000)).err());
    let full = full.expect("ten megabytes do not fit into four");
    assert!(full.is_disk_full(), "{full}");
    // What was durable is still served, now and when there is room again.
    assert_eq!(store.read_chunk(1, 0).expect("read"), chunk(1, 50_000));
    small.max.store(64 << 20, Ordering::Relaxed);
    // Chunks that were never durable went with the failure: nobody may finish what lacks its end.
    assert!(matches!(store.put_chunk(2, 0, b"x"), Err(StorageError::ChunksLost { seq: 2 })));
    assert!(matches!(store.finish(2), Err(StorageError::ChunksLost { seq: 2 })));
    store.begin(2, b"").expect("begin");
    for index in 0..200 {
        store.put_chunk(2, index, &chunk(2, 50_000)).expect("put");
    }
    store.finish(2).expect("finish");
    assert_eq!(store.read_chunk(2, 199).expect("read"), chunk(2, 50_000));
}
