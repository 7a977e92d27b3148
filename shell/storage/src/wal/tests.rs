//! The log against a disk that misbehaves (`memory_disk.rs`), judged by a model that remembers what was
//! acknowledged.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::memory_disk::{Chance, Faults, MemoryDisk};

const SEGMENT_BYTES: u64 = SEGMENT_BYTES_MIN;

type Opened = Result<(Wal, Vec<WalRecord>, Vec<Warning>), StorageError>;

fn dir() -> &'static Path {
    Path::new("/wal")
}

fn settings() -> WalSettings {
    WalSettings { segment_bytes: SEGMENT_BYTES, prepare_ahead: false, ..WalSettings::default() }
}

fn open(disk: &MemoryDisk) -> Opened {
    Wal::open_on(Arc::new(disk.clone()), dir(), settings(), true)
}

fn segment(number: u64) -> PathBuf {
    segment_path(dir(), number)
}

/// Bytes no two records share.
fn record(chance: &mut Chance, len: usize) -> Vec<u8> {
    (0..len).map(|_| chance.next() as u8).collect()
}

fn write(wal: &mut Wal, batches: &[&[&[u8]]]) {
    for batch in batches {
        for record in *batch {
            wal.append(record).expect("append");
        }
        wal.sync().expect("sync");
    }
}

fn contents(records: &[WalRecord]) -> Vec<&[u8]> {
    records.iter().map(|record| &record.bytes[..]).collect()
}

/// What a caller knows: the records it appended and how many of them are acknowledged.
#[derive(Debug, Default)]
struct Model {
    records: Vec<Vec<u8>>,
    acknowledged: usize,
    discarded_before: u64,
}

impl Model {
    /// Judges what came back and continues from there.
    fn accept(&mut self, wal: &Wal, found: &[WalRecord]) {
        let first = wal.first_lsn().0 as usize;
        assert!(first as u64 <= self.discarded_before.max(1), "more was discarded than asked for");
        let end = wal.next_lsn().0 as usize - 1;
        assert!(end >= self.acknowledged, "acknowledged {} but the log ends at {end}", self.acknowledged);
        assert!(end <= self.records.len(), "the log made up records");
        assert_eq!(found.len(), end + 1 - first);
        for (lsn, record) in (first..).zip(found) {
            assert_eq!(record.lsn.0, lsn as u64);
            assert_eq!(record.bytes, self.records[lsn - 1], "record {lsn}");
        }
        self.records.truncate(end);
        self.acknowledged = end;
    }
}

#[derive(Debug, Clone)]
enum Step {
    Append(usize),
    Sync,
    DiscardTo(u64),
    Crash,
    /// The process dies in the middle of what follows, then the power goes.
    DieSoon(u64),
    Reopen,
    Close,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => prop_oneof![8 => 0usize..300, 4 => 0usize..20_000, 1 => 50_000usize..90_000].prop_map(Step::Append),
        8 => Just(Step::Sync),
        2 => (0u64..100).prop_map(Step::DiscardTo),
        2 => Just(Step::Crash),
        3 => (0u64..24).prop_map(Step::DieSoon),
        1 => Just(Step::Reopen),
        1 => Just(Step::Close),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_crash_loses_an_acknowledged_record_or_is_refused(seed: u64, steps in prop::collection::vec(step(), 1..80)) {
        let mut chance = Chance::new(seed);
        let mut disk = MemoryDisk::default();
        let mut model = Model::default();
        let (mut wal, _, _) = open(&disk).expect("open");
        for step in steps {
            let mut crash = false;
            match step {
                Step::Append(len) => {
                    let bytes = record(&mut chance, len);
                    let lsn = wal.append(&bytes).expect("append");
                    model.records.push(bytes);
                    prop_assert_eq!(lsn.0, model.records.len() as u64);
                }
                Step::Sync => match wal.sync() {
                    Ok(_) => model.acknowledged = model.records.len(),
                    Err(_) => crash = true,
                },
                Step::DiscardTo(percent) => {
                    let lsn = model.acknowledged as u64 * percent / 100;
                    model.discarded_before = model.discarded_before.max(lsn);
                    crash = wal.discard_before(Lsn(lsn)).is_err();
                }
                Step::DieSoon(operations) => {
                    disk.set_faults(Faults { dies_after: Some(operations), ..Faults::default() });
                }
                Step::Crash => crash = true,
                Step::Reopen => {
                    drop(wal);
                    match open(&disk) {
                        Ok((opened, records, _)) => {
                            wal = opened;
                            model.accept(&wal, &records);
                        }
                        Err(error) => {
                            prop_assert!(disk.dead(), "{}", error);
                            disk = disk.crash(&mut chance);
                            let (opened, records, _) = open(&disk).expect("a crash while opening is no damage");
                            wal = opened;
                            model.accept(&wal, &records);
                        }
                    }
                }
                Step::Close => {
                    if wal.close().is_ok() {
                        model.acknowledged = model.records.len();
                    }
                    disk = disk.crash(&mut chance);
                    let (opened, records, _) = open(&disk).expect("a crash is no damage");
                    wal = opened;
                    model.accept(&wal, &records);
                }
            }
            if crash {
                drop(wal);
                if chance.below(3) == 0 {
                    // Only the process died. What it wrote is still to be read, but not yet durable.
                    disk.set_faults(Faults::default());
                } else {
                    disk = disk.crash(&mut chance);
                }
                // Crashing again while it recovers must do no harm either.
                if chance.below(2) == 0 {
                    disk.set_faults(Faults { dies_after: Some(chance.below(8)), ..Faults::default() });
                    drop(open(&disk));
                    disk = disk.crash(&mut chance);
                }
                let (opened, records, _) = open(&disk).expect("a crash is no damage");
                wal = opened;
                model.accept(&wal, &records);
            }
        }
    }
}

#[test]
fn a_batch_left_in_the_page_cache_is_made_durable_before_the_mark_behind_it() {
    for seed in 0..400 {
        let disk = MemoryDisk::default();
        let (mut wal, _, _) = open(&disk).expect("open");
        wal.append(&[7; 10_000]).expect("append");
        disk.set_faults(Faults { dies_after: Some(1), ..Faults::default() });
        wal.sync().expect_err("killed between write and sync");
        drop(wal);
        // Killed again at some point of the recovery, and now the power goes too.
        disk.set_faults(Faults { dies_after: Some(seed % 8), ..Faults::default() });
        drop(open(&disk));
        open(&disk.crash(&mut Chance::new(seed))).expect("nothing was acknowledged, nothing is damaged");
    }
}

/// Three acknowledged batches of known content.
fn small_log(closed: bool) -> (MemoryDisk, Vec<Vec<u8>>) {
    let disk = MemoryDisk::default();
    let (mut wal, _, _) = open(&disk).expect("open");
    let mut chance = Chance::new(1);
    let records: Vec<Vec<u8>> = (0..5).map(|n| record(&mut chance, 40 + n * 7)).collect();
    write(&mut wal, &[&[&records[0], &records[1]], &[&records[2]], &[&records[3], &records[4]]]);
    if closed {
        wal.close().expect("close");
    }
    (disk, records)
}

#[test]
fn a_flip_of_any_bit_never_yields_wrong_records() {
    let (disk, records) = small_log(false);
    // Header page, the mark written at opening, then one page per batch.
    let (mut refused, mut cut, mut harmless) = (0, 0, 0);
    for byte in 0..6 * PAGE_BYTES {
        let copy = disk.copy();
        copy.alter(&segment(1), |bytes| bytes[byte] ^= 1 << (byte % 8));
        match open(&copy) {
            Err(StorageError::Damaged { .. }) => {
                assert!(byte < 4 * PAGE_BYTES, "byte {byte}: only the last batch is ambiguous");
                refused += 1;
            }
            Err(other) => panic!("byte {byte}: {other}"),
            Ok((_, found, warnings)) => {
                let found = contents(&found);
                if found.len() == records.len() {
                    assert!(byte >= PAGE_BYTES, "byte {byte}: the header is checked whole");
                    harmless += 1;
                } else {
                    assert_eq!(found.len(), 3, "byte {byte}: only the last batch may be cut");
                    assert!((4 * PAGE_BYTES..5 * PAGE_BYTES).contains(&byte), "byte {byte}");
                    assert!(matches!(&warnings[..], [Warning::TornTail { .. }]), "byte {byte}: {warnings:?}");
                    cut += 1;
                }
                assert_eq!(found, records[..found.len()], "byte {byte}");
            }
        }
    }
    let bodies = [(40 + 47) + 8, 54 + 4, (61 + 68) + 8];
    assert_eq!(refused, PAGE_BYTES + BATCH_HEADER_BYTES * 3 + bodies[0] + bodies[1]);
    assert_eq!(cut, BATCH_HEADER_BYTES + bodies[2]);
    assert_eq!(harmless, 6 * PAGE_BYTES - refused - cut, "the rest is padding");
}

#[test]
fn after_a_clean_close_damage_to_the_last_batch_is_refused_too() {
    let (disk, _) = small_log(true);
    disk.alter(&segment(1), |bytes| bytes[4 * PAGE_BYTES + BATCH_HEADER_BYTES + 9] ^= 1);
    let error = open(&disk).expect_err("acknowledged and gone");
    let text = error.to_string();
    assert!(
        matches!(error, StorageError::Damaged { offset, .. } if offset == 4 * PAGE_BYTES as u64),
        "{text}"
    );
    assert!(text.contains("0000000000000001.wal") && text.contains("dwcp member replace"), "{text}");
}

#[test]
fn a_torn_tail_is_cut_with_a_warning_and_the_log_goes_on() {
    let (disk, records) = small_log(false);
    disk.alter(&segment(1), |bytes| bytes[4 * PAGE_BYTES + 100..].fill(0));
    let (mut wal, found, warnings) = open(&disk).expect("open");
    assert_eq!(contents(&found), records[..3]);
    assert_eq!(warnings, [Warning::TornTail { path: segment(1), offset: 4 * PAGE_BYTES as u64 }]);
    assert_eq!(wal.append(b"again").expect("append"), Lsn(4));
    wal.sync().expect("sync");
    drop(wal);
    let (_, found, warnings) = open(&disk).expect("open");
    assert_eq!(found[3].bytes, b"again");
    assert_eq!(found.len(), 4);
    assert!(warnings.is_empty(), "{warnings:?}");
}

/// Six segments of which each holds one large record.
fn long_log() -> (MemoryDisk, Wal, Vec<Vec<u8>>) {
    let disk = MemoryDisk::default();
    let (mut wal, _, _) = open(&disk).expect("open");
    let mut chance = Chance::new(2);
    let records: Vec<Vec<u8>> = (0..6).map(|_| record(&mut chance, 50_000)).collect();
    for record in &records {
        write(&mut wal, &[&[record]]);
    }
    assert_eq!(disk.names().len(), 6);
    (disk, wal, records)
}

#[test]
fn a_missing_segment_in_the_middle_is_refused() {
    let (disk, wal, _) = long_log();
    drop(wal);
    disk.remove(&segment(3)).expect("remove");
    let error = open(&disk).expect_err("a hole");
    assert!(matches!(&error, StorageError::SegmentMissing { path } if *path == segment(3)), "{error}");
}

#[test]
fn damage_in_an_earlier_segment_is_refused_with_its_place() {
    for page in 1..3 {
        let (disk, wal, _) = long_log();
        drop(wal);
        // Segment 1 holds a mark before its record, the others begin with theirs.
        let offset = (page * PAGE_BYTES) as u64;
        let (number, damaged_at) = if page == 1 { (3, offset) } else { (1, offset) };
        disk.alter(&segment(number), |bytes| bytes[page * PAGE_BYTES + 5000] ^= 4);
        let error = open(&disk).expect_err("acknowledged and gone");
        let place = matches!(&error, StorageError::Damaged { path, offset, .. }
            if *path == segment(number) && *offset == damaged_at);
        assert!(place, "{error}");
    }
}

#[test]
fn a_sound_batch_in_the_wrong_place_is_refused() {
    for wrong in [1, 3, 5, u64::MAX] {
        let disk = MemoryDisk::default();
        let (mut wal, _, _) = open(&disk).expect("open");
        write(&mut wal, &[&[b"one"], &[b"two"], &[b"three"]]);
        let seed = wal.active().seed();
        drop(wal);
        disk.alter(&segment(1), |bytes| {
            let at = 3 * PAGE_BYTES;
            let batch = BatchHeader::decode(&bytes[at..], seed).expect("the second record's batch");
            assert_eq!(batch.first_lsn, Lsn(2));
            let moved = BatchHeader { first_lsn: Lsn(wrong), ..batch }.encode(seed);
            bytes[at..at + BATCH_HEADER_BYTES].copy_from_slice(&moved);
        });
        let error = open(&disk).expect_err("records are not where they belong");
        let offset = 3 * PAGE_BYTES as u64;
        assert!(matches!(error, StorageError::Damaged { offset: at, .. } if at == offset), "{error}");
    }
}

#[test]
fn a_missing_last_segment_shows_against_the_floor() {
    let (disk, wal, _) = long_log();
    let floor = wal.durable_lsn();
    drop(wal);
    disk.remove(&segment(6)).expect("remove");
    let (wal, _, _) = open(&disk).expect("this alone cannot know");
    let error = wal.require_from(floor).expect_err("rolled back");
    assert!(matches!(error, StorageError::RolledBack { found: 6, required: 7, .. }), "{error}");
    assert!(error.to_string().contains("dwcp member replace"), "{error}");
}

#[test]
fn missing_oldest_segments_show_against_the_place_replay_starts_at() {
    let (disk, wal, _) = long_log();
    drop(wal);
    disk.remove(&segment(1)).expect("remove");
    let (wal, _, _) = open(&disk).expect("they might have been discarded");
    wal.require_from(Lsn(2)).expect("present");
    let error = wal.require_from(Lsn(1)).expect_err("absent");
    assert!(matches!(error, StorageError::RecordsMissing { first: 2, required: 1, .. }), "{error}");
}

#[test]
fn a_segment_cut_short_or_grown_is_refused() {
    for len in [0, 100, PAGE_BYTES, SEGMENT_BYTES as usize - 1, SEGMENT_BYTES as usize + 1] {
        let (disk, _) = small_log(false);
        disk.alter(&segment(1), |bytes| bytes.resize(len, 0));
        assert!(matches!(open(&disk), Err(StorageError::Damaged { .. })), "len {len}");
    }
}

#[test]
fn segments_that_changed_places_are_refused() {
    let (disk, wal, _) = long_log();
    drop(wal);
    let (second, third) = (disk.read(&segment(2)), disk.read(&segment(3)));
    disk.alter(&segment(2), |bytes| *bytes = third);
    disk.alter(&segment(3), |bytes| *bytes = second);
    assert!(matches!(open(&disk), Err(StorageError::Damaged { .. })));
}

#[test]
fn a_recycled_segment_never_brings_old_records_back() {
    let disk = MemoryDisk::default();
    let (mut wal, _, _) = open(&disk).expect("open");
    // Equal lengths put new batches exactly where old ones were: the worst case.
    for n in 0..200u64 {
        write(&mut wal, &[&[&[n as u8; 9_000]]]);
        if n % 10 == 9 {
            wal.discard_before(wal.durable_lsn()).expect("discard");
        }
    }
    assert!(disk.names().len() <= 6, "space is reused: {:?}", disk.names());
    let last = wal.segments.back().expect("one").clone();
    assert!(last.recycled);
    let (first, next) = (wal.first_lsn(), wal.next_lsn());
    drop(wal);
    let (_, found, warnings) = open(&disk).expect("open");
    assert!(warnings.is_empty(), "old bytes are no torn tail: {warnings:?}");
    assert_eq!(found.len() as u64, next.0 - first.0);
    for (lsn, record) in (first.0..).zip(&found) {
        assert_eq!(record.bytes, vec![(lsn - 1) as u8; 9_000]);
    }
    // Even when the whole old life lies under a fresh header.
    disk.alter(&segment(last.number), |bytes| {
        let header = SegmentHeader { salt: last.salt ^ 1, ..last.clone() };
        bytes[..PAGE_BYTES].copy_from_slice(&header.encode());
    });
    let (wal, _, _) = open(&disk).expect("open");
    assert_eq!(wal.next_lsn(), last.first_lsn);
}

#[test]
fn data_shaped_like_a_batch_is_not_taken_for_one() {
    let disk = MemoryDisk::default();
    let (mut wal, _, _) = open(&disk).expect("open");
    // An attacker knows everything but the salt.
    let guess = SegmentHeader { salt: 0, ..wal.active().clone() };
    let fake = BatchHeader { first_lsn: Lsn(2), count: 0, body_bytes: 0, body_crc: 0 }.encode(guess.seed());
    let mut bytes = vec![0; 3 * PAGE_BYTES];
    let at = PAGE_BYTES - BATCH_HEADER_BYTES - RECORD_HEADER_BYTES;
    bytes[at..at + BATCH_HEADER_BYTES].copy_from_slice(&fake);
    write(&mut wal, &[&[&bytes]]);
    drop(wal);
    // The batch is torn, so its forged page is looked at as a possible batch start.
    disk.alter(&segment(1), |file| file[2 * PAGE_BYTES + 50] ^= 1);
    let (_, found, warnings) = open(&disk).expect("a torn tail, no damage");
    assert!(found.is_empty());
    assert_eq!(warnings.len(), 1);
}

#[test]
fn a_failed_sync_is_final() {
    for failing in 0..2 {
        let disk = MemoryDisk::default();
        let (mut wal, _, _) = open(&disk).expect("open");
        write(&mut wal, &[&[b"kept"]]);
        wal.append(&[7; 60_000]).expect("append");
        disk.set_faults(Faults { sync_fails_after: Some(failing), ..Faults::default() });
        let error = wal.sync().expect_err("the disk refused");
        assert!(matches!(error, StorageError::SyncFailed { .. }), "{error}");
        // The disk is well again, the log is not.
        for _ in 0..2 {
            assert!(matches!(wal.sync(), Err(StorageError::Poisoned { .. })));
            assert!(matches!(wal.append(b"x"), Err(StorageError::Poisoned { .. })));
            assert!(matches!(wal.discard_before(Lsn(1)), Err(StorageError::Poisoned { .. })));
        }
        drop(wal);
        let (_, found, _) = open(&disk.crash(&mut Chance::new(3))).expect("open");
        assert_eq!(found[0].bytes, b"kept");
    }
}

#[test]
fn a_failed_directory_sync_is_final() {
    let disk = MemoryDisk::default();
    let (mut wal, _, _) = open(&disk).expect("open");
    wal.append(&[7; 50_000]).expect("append");
    // Rotation: the spare's name first, then the segment's.
    disk.set_faults(Faults { sync_dir_fails_after: Some(1), ..Faults::default() });
    wal.sync().expect("still fits");
    wal.append(&[8; 50_000]).expect("append");
    assert!(matches!(wal.sync(), Err(StorageError::SyncFailed { .. })));
    assert!(matches!(wal.sync(), Err(StorageError::Poisoned { .. })));
}

#[test]
fn a_sync_that_lied_is_noticed_once_a_later_batch_landed() {
    let disk = MemoryDisk::default();
    let (mut wal, _, _) = open(&disk).expect("open");
    write(&mut wal, &[&[b"one"]]);
    disk.set_faults(Faults { sync_lies_after: Some(0), ..Faults::default() });
    write(&mut wal, &[&[b"two"], &[b"three"]]);
    drop(wal);
    let error = open(&disk.crash(&mut Chance::new(4))).expect_err("record 2 was acknowledged");
    assert!(matches!(error, StorageError::Damaged { .. }), "{error}");
}

#[test]
fn a_sync_that_lied_at_the_end_shows_against_the_floor() {
    let disk = MemoryDisk::default();
    let (mut wal, _, _) = open(&disk).expect("open");
    write(&mut wal, &[&[b"one"]]);
    disk.set_faults(Faults { sync_lies_after: Some(0), ..Faults::default() });
    write(&mut wal, &[&[b"two"]]);
    let floor = wal.durable_lsn();
    drop(wal);
    let (wal, found, _) = open(&disk.crash(&mut Chance::new(5))).expect("looks like a torn tail");
    assert_eq!(found.len(), 1);
    assert!(matches!(wal.require_from(floor), Err(StorageError::RolledBack { found: 2, required: 3, .. })));
}

#[test]
fn a_full_disk_is_a_refusal_that_can_be_waited_out() {
    let disk = MemoryDisk::default();
    disk.set_capacity(Some(SEGMENT_BYTES + 1000));
    let (mut wal, _, _) = open(&disk).expect("open");
    write(&mut wal, &[&[&[1; 50_000]]]);
    wal.append(&[2; 50_000]).expect("append");
    for _ in 0..2 {
        let error = wal.sync().expect_err("no room for a second segment");
        assert!(error.is_disk_full(), "{error}");
    }
    assert_eq!(disk.names().len(), 1, "no half-made file stays");
    disk.set_capacity(None);
    assert_eq!(wal.sync().expect("room again"), Lsn(3));
    drop(wal);
    let (_, found, _) = open(&disk).expect("open");
    assert_eq!(contents(&found), [&[1u8; 50_000][..], &[2; 50_000]]);
}

#[test]
fn a_full_disk_does_not_keep_a_log_from_opening() {
    let (disk, records) = small_log(false);
    disk.set_capacity(Some(0));
    let (_, found, _) = open(&disk).expect("its room was reserved");
    assert_eq!(contents(&found), records);
}

#[test]
fn a_group_costs_one_sync() {
    let disk = MemoryDisk::default();
    let (mut wal, _, _) = open(&disk).expect("open");
    let (before, counted) = (disk.data_syncs(), wal.sync_count());
    for n in 0..500u32 {
        wal.append(&n.to_le_bytes()).expect("append");
    }
    wal.sync().expect("sync");
    wal.sync().expect("nothing to do");
    assert_eq!(disk.data_syncs(), before + 1);
    assert_eq!(wal.sync_count(), counted + 1);
}

#[test]
fn a_record_larger_than_a_segment_gets_a_file_of_its_own_which_is_not_kept() {
    let disk = MemoryDisk::default();
    let (mut wal, _, _) = open(&disk).expect("open");
    let large = vec![5; 4 * SEGMENT_BYTES as usize];
    write(&mut wal, &[&[b"a"], &[&large], &[b"b"], &[&[6; 60_000]]]);
    drop(wal);
    let (mut wal, found, _) = open(&disk).expect("open");
    assert_eq!(contents(&found), [&b"a"[..], &large, b"b", &[6; 60_000]]);
    wal.discard_before(wal.next_lsn()).expect("discard");
    assert!(wal.bytes_on_disk() <= 3 * SEGMENT_BYTES, "{}", wal.bytes_on_disk());
}

#[test]
fn impossible_sizes_are_refused_with_the_bound() {
    let disk = MemoryDisk::default();
    let (mut wal, _, _) = open(&disk).expect("open");
    let too_large = vec![0; RECORD_BYTES_MAX + 1];
    let refused = wal.append(&too_large);
    assert!(matches!(refused, Err(StorageError::RecordTooLarge { max: RECORD_BYTES_MAX, .. })));
    assert_eq!(wal.next_lsn(), Lsn(1), "a refused record takes no place");
    let largest = &too_large[..RECORD_BYTES_MAX];
    for _ in 0..3 {
        wal.append(largest).expect("fits");
    }
    assert!(matches!(wal.append(largest), Err(StorageError::BatchFull { max: BATCH_BYTES_MAX, .. })));
    for bytes in [0, 4096, SEGMENT_BYTES_MIN - 4096, SEGMENT_BYTES_MIN + 1, SEGMENT_BYTES_MAX + 4096] {
        let settings = WalSettings { segment_bytes: bytes, ..WalSettings::default() };
        let refused = Wal::open_on(Arc::new(MemoryDisk::default()), dir(), settings, true);
        assert!(matches!(refused, Err(StorageError::SettingImpossible { name: "segment_bytes", .. })));
    }
}

#[test]
fn a_log_of_another_owner_is_refused() {
    let (disk, _) = small_log(false);
    let other = WalSettings { owner: [1; OWNER_BYTES], ..settings() };
    let refused = Wal::open_on(Arc::new(disk), dir(), other, true);
    assert!(matches!(refused, Err(StorageError::OwnerDiffers { .. })));
}

#[test]
fn a_segment_size_may_change_between_openings() {
    let (disk, wal, records) = long_log();
    drop(wal);
    let larger = WalSettings { segment_bytes: 4 * SEGMENT_BYTES, ..settings() };
    let (mut wal, found, _) = Wal::open_on(Arc::new(disk.clone()), dir(), larger, true).expect("open");
    assert_eq!(contents(&found), records);
    write(&mut wal, &[&[&[3; 60_000]]]);
    wal.discard_before(wal.durable_lsn()).expect("discard");
    assert_eq!(wal.bytes_on_disk(), 4 * SEGMENT_BYTES, "files of the old size are not kept");
}

#[test]
fn a_wiped_log_is_not_begun_anew_where_one_must_exist() {
    let refused = Wal::open_on(Arc::new(MemoryDisk::default()), dir(), settings(), false);
    let error = refused.expect_err("nothing there");
    assert!(matches!(error, StorageError::LogMissing { .. }), "{error}");
    assert!(error.to_string().contains("dwcp member replace"), "{error}");
}

#[test]
fn two_openings_exclude_each_other_until_the_first_is_dropped() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (wal, _, _) = Wal::open(dir.path(), settings()).expect("open");
    let error = Wal::open(dir.path(), settings()).expect_err("taken");
    let own = std::process::id().to_string();
    assert!(matches!(&error, StorageError::Locked { holder, .. } if *holder == own), "{error}");
    drop(wal);
    Wal::open(dir.path(), settings()).expect("free again");
}

#[test]
fn the_real_disk_keeps_a_log_over_rotations_and_background_preparation() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let settings = WalSettings { prepare_ahead: true, ..settings() };
    let mut chance = Chance::new(6);
    let mut records: Vec<Vec<u8>> = Vec::new();
    for _ in 0..5 {
        let (mut wal, found, warnings) = Wal::open(dir.path(), settings.clone()).expect("open");
        assert!(warnings.is_empty(), "{warnings:?}");
        assert_eq!(contents(&found), records[wal.first_lsn().0 as usize - 1..]);
        for _ in 0..20 {
            let len = chance.below(20_000) as usize;
            records.push(record(&mut chance, len));
            write(&mut wal, &[&[records.last().expect("pushed")]]);
        }
        wal.discard_before(Lsn(wal.next_lsn().0 - 10)).expect("discard");
        let files = std::fs::read_dir(dir.path()).expect("list").count();
        assert!(files < 20, "{files} files");
        assert!(wal.bytes_used() <= wal.bytes_on_disk());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any damage at all: refused, or what comes back is a prefix of the truth.
    #[test]
    fn no_damage_makes_it_panic_or_invent(seed: u64, reseal: bool, wounds in prop::collection::vec((0usize..6 * 4096, any::<u8>()), 1..6)) {
        let (disk, records) = small_log(seed % 2 == 0);
        let mut touched_content = false;
        disk.alter(&segment(1), |bytes| {
            for &(at, value) in &wounds {
                bytes[at] = value;
            }
            // With the checksums put right again the wounds reach the fields behind them.
            if reseal {
                let crc = {
                    let mut crc = crc32fast::Hasher::new();
                    crc.update(&bytes[..12]);
                    crc.update(&bytes[16..PAGE_BYTES]);
                    crc.finalize()
                };
                bytes[12..16].copy_from_slice(&crc.to_le_bytes());
                if let Ok(header) = SegmentHeader::decode(&bytes[..PAGE_BYTES]) {
                    for page in 1..6 {
                        let at = page * PAGE_BYTES;
                        let mut batch = [0; BATCH_HEADER_BYTES];
                        batch.copy_from_slice(&bytes[at..at + BATCH_HEADER_BYTES]);
                        let field = |at: usize| u32::from_le_bytes(batch[at..at + 4].try_into().expect("four"));
                        let body_bytes = field(20) as usize;
                        let body = bytes.get(at + 32..at + 32 + body_bytes).unwrap_or(&[]);
                        let first_lsn = Lsn(segment::u64_at(&batch, 8));
                        let sealed = BatchHeader {
                            first_lsn,
                            count: field(16),
                            body_bytes: field(20),
                            body_crc: body_crc(header.seed(), body),
                        };
                        let sealed = sealed.encode(header.seed());
                        bytes[at..at + BATCH_HEADER_BYTES].copy_from_slice(&sealed);
                    }
                }
                touched_content = true;
            }
        });
        if let Ok((mut wal, found, _)) = open(&disk) {
            if !touched_content {
                prop_assert!(found.len() <= records.len());
                prop_assert_eq!(contents(&found), &records[..found.len()]);
            }
            wal.append(b"on").expect("append");
            wal.sync().expect("sync");
        }
    }
}
