//! Reads a log directory and decides what its bytes mean. It writes nothing, so it also serves inspection.
//!
//! The rule. Only one batch is ever in flight, and it is in the last segment. So an invalid batch with nothing
//! valid behind it is the write a crash interrupted: it was never acknowledged and is cut. An invalid batch
//! with a valid one behind it had been acknowledged: the disk lost it and the node must not go on as if
//! nothing happened.

use std::path::{Path, PathBuf};

use super::segment::{
    BATCH_HEADER_BYTES, BatchHeader, HeaderFault, OWNER_BYTES, PAGE_BYTES, SEGMENT_FORMAT, SegmentHeader,
    body_crc, split_body, u64_at,
};
use super::{Lsn, RECORD_BYTES_MAX, SEGMENT_BYTES_MAX, WalRecord};
use crate::disk::{Disk, DiskFile};
use crate::error::{StorageError, Warning};

/// The largest file any writer makes; a longer one is not read into memory.
const FILE_BYTES_MAX: u64 = SEGMENT_BYTES_MAX;
/// Far beyond any real log; keeps the arithmetic of hostile files from overflowing.
const PLACE_MAX: u64 = 1 << 62;
const _: () = assert!(SEGMENT_BYTES_MAX as usize > super::BATCH_BYTES_MAX + 2 * PAGE_BYTES);
const _: () = assert!(super::BATCH_BYTES_MAX > RECORD_BYTES_MAX);

#[derive(Debug)]
pub(super) struct Recovered {
    pub records: Vec<WalRecord>,
    pub warnings: Vec<Warning>,
    /// Oldest first, never empty.
    pub segments: Vec<SegmentHeader>,
    pub next_lsn: Lsn,
    /// Where the next batch goes in the last segment.
    pub tail_offset: u64,
}

pub(super) fn segment_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:016x}.wal"))
}

pub(super) fn segment_number(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".wal")?;
    (digits.len() == 16).then(|| u64::from_str_radix(digits, 16).ok())?
}

/// `None` when the directory holds no segment at all.
pub(super) fn recover(
    disk: &dyn Disk,
    dir: &Path,
    owner: &[u8; OWNER_BYTES],
) -> Result<Option<Recovered>, StorageError> {
    let names = disk.list(dir).map_err(|e| StorageError::io("list", dir, e))?;
    let numbers: Vec<u64> = names.iter().filter_map(|name| segment_number(name)).collect();
    if numbers.is_empty() {
        return Ok(None);
    }
    // Sixteen hex digits sort as the numbers do.
    for pair in numbers.windows(2) {
        if pair[0] + 1 != pair[1] {
            return Err(StorageError::SegmentMissing { path: segment_path(dir, pair[0] + 1) });
        }
    }

    let mut headers = Vec::with_capacity(numbers.len());
    for &number in &numbers {
        headers.push(read_header(disk, dir, number, owner)?);
    }
    let mut records = Vec::new();
    let mut warnings = Vec::new();
    let mut next_lsn = headers[0].first_lsn;
    let mut tail_offset = PAGE_BYTES as u64;
    for (index, header) in headers.iter().enumerate() {
        let path = segment_path(dir, header.number);
        let scan = scan(disk, &path, header, next_lsn, &mut records)?;
        if let Some(next) = headers.get(index + 1) {
            if scan.next_lsn != next.first_lsn {
                let what = format!(
                    "the batch of record {} is invalid, but a later segment follows",
                    scan.next_lsn.0
                );
                return Err(StorageError::damaged(&path, scan.end_offset, what));
            }
        } else if scan.torn {
            warnings.push(Warning::TornTail { path, offset: scan.end_offset });
        }
        next_lsn = scan.next_lsn;
        tail_offset = scan.end_offset;
    }
    Ok(Some(Recovered { records, warnings, segments: headers, next_lsn, tail_offset }))
}

fn read_header(
    disk: &dyn Disk,
    dir: &Path,
    number: u64,
    owner: &[u8; OWNER_BYTES],
) -> Result<SegmentHeader, StorageError> {
    let path = segment_path(dir, number);
    let (file, len) = open(disk, &path)?;
    if len < PAGE_BYTES as u64 {
        return Err(StorageError::damaged(&path, len, "the file ends inside its header"));
    }
    let mut page = vec![0; PAGE_BYTES];
    file.read_exact_at(&mut page, 0).map_err(|e| StorageError::io("read", &path, e))?;
    let header = SegmentHeader::decode(&page).map_err(|fault| match fault {
        HeaderFault::Checksum => StorageError::damaged(&path, 0, "the segment header fails its checksum"),
        HeaderFault::NotASegment => StorageError::damaged(&path, 0, "this is not a log segment"),
        HeaderFault::Format(found) => {
            StorageError::FormatUnknown { path: path.clone(), found, supported: SEGMENT_FORMAT }
        }
    })?;
    // A segment gets its name only after its header is durable, so these hold after any crash.
    if header.owner != *owner {
        return Err(StorageError::OwnerDiffers { path });
    }
    if header.number != number {
        let what = format!("the file holds segment {:016x}", header.number);
        return Err(StorageError::damaged(&path, 16, what));
    }
    if header.number > PLACE_MAX || header.first_lsn.0 > PLACE_MAX {
        return Err(StorageError::damaged(
            &path,
            16,
            "segment and record numbers this large are never reached",
        ));
    }
    if header.file_bytes != len || len > FILE_BYTES_MAX {
        let what = format!("the file has {len} bytes, it was made with {}", header.file_bytes);
        return Err(StorageError::damaged(&path, len.min(header.file_bytes), what));
    }
    Ok(header)
}

fn open(disk: &dyn Disk, path: &Path) -> Result<(Box<dyn DiskFile>, u64), StorageError> {
    let file = disk.open(path).map_err(|e| StorageError::io("open", path, e))?;
    let len = file.len_bytes().map_err(|e| StorageError::io("measure", path, e))?;
    Ok((file, len))
}

struct Scan {
    next_lsn: Lsn,
    end_offset: u64,
    /// Something other than a clean end was found at `end_offset`.
    torn: bool,
}

fn scan(
    disk: &dyn Disk,
    path: &Path,
    header: &SegmentHeader,
    mut next_lsn: Lsn,
    records: &mut Vec<WalRecord>,
) -> Result<Scan, StorageError> {
    let (file, len) = open(disk, path)?;
    let mut bytes = vec![0; len as usize];
    file.read_exact_at(&mut bytes, 0).map_err(|e| StorageError::io("read", path, e))?;
    let seed = header.seed();
    let mut at = PAGE_BYTES;
    loop {
        let Some(batch) = bytes.get(at..).and_then(|rest| BatchHeader::decode(rest, seed)) else {
            let torn = at < bytes.len() && looks_begun(&bytes[at..], header, next_lsn);
            return stop(path, &bytes, at, seed, next_lsn, torn);
        };
        if batch.first_lsn != next_lsn {
            let what = format!("a batch begins at record {}, expected {}", batch.first_lsn.0, next_lsn.0);
            return Err(StorageError::damaged(path, at as u64, what));
        }
        let body_at = at + BATCH_HEADER_BYTES;
        let body = bytes.get(body_at..body_at + batch.body_bytes as usize);
        let Some(body) = body.filter(|body| body_crc(seed, body) == batch.body_crc) else {
            return stop(path, &bytes, at, seed, next_lsn, true);
        };
        let Some(parts) = split_body(body, batch.count) else {
            return Err(StorageError::damaged(path, at as u64, "record lengths do not add up"));
        };
        for part in parts {
            records.push(WalRecord { lsn: next_lsn, bytes: part.to_vec() });
            next_lsn = Lsn(next_lsn.0 + 1);
        }
        at += batch.padded_bytes();
    }
}

/// The batch at `at` is invalid or absent. Whatever valid batch header lies behind it was written after it had
/// been acknowledged, so its mere presence makes this damage.
fn stop(
    path: &Path,
    bytes: &[u8],
    at: usize,
    seed: u32,
    next_lsn: Lsn,
    torn: bool,
) -> Result<Scan, StorageError> {
    let mut later = at + PAGE_BYTES;
    while later < bytes.len() {
        if let Some(batch) = BatchHeader::decode(&bytes[later..], seed) {
            let what = format!(
                "the batch of record {} is invalid, but a later one (record {}) follows at byte {later}",
                next_lsn.0, batch.first_lsn.0
            );
            return Err(StorageError::damaged(path, at as u64, what));
        }
        later += PAGE_BYTES;
    }
    Ok(Scan { next_lsn, end_offset: at as u64, torn })
}

/// Did a write begin here? In a fresh file anything but zeros says so; in a recycled one old bytes lie around,
/// and only a place in the log that its old life cannot have reached says so. This decides on a warning only.
fn looks_begun(page: &[u8], header: &SegmentHeader, next_lsn: Lsn) -> bool {
    let page = &page[..PAGE_BYTES.min(page.len())];
    if header.recycled {
        return page.len() >= BATCH_HEADER_BYTES && u64_at(page, 8) == next_lsn.0;
    }
    page.iter().any(|&byte| byte != 0)
}
