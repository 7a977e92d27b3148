//! Rewrites what a stopped node's log says of one entry, with all checksums and digests right: what nothing but the entry's
//! own content and the signatures can tell, and a log's reader does not verify those. Reads and writes by `docs/durable.md` alone, not with the storage's code.

use std::path::Path;

use bytes::Bytes;
use dwcp_base::{Hash, decode};
use dwcp_log::entry::payload_digest;
use dwcp_log::{Proposal, RootEntry};

const PAGE: usize = 4096;
const BATCH_HEADER: usize = 32;
/// Whose the record is (the root log's), and what it is (an accepted pre-prepare).
const ACCEPTED: [u8; 2] = [1, 1];
const SIGNED_VOTE: usize = 122;

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn crc(seed: u32, parts: &[&[u8]]) -> u32 {
    let mut crc = crc32fast::Hasher::new_with_initial(seed);
    parts.iter().for_each(|part| crc.update(part));
    crc.finalize()
}

/// One batch: the LSN of its first record, and its records.
struct Batch {
    first: u64,
    records: Vec<Vec<u8>>,
}

fn batches(segment: &[u8], seed: u32) -> Vec<Batch> {
    let mut found = Vec::new();
    let mut at = PAGE;
    while segment.len() >= at + BATCH_HEADER && segment[at..at + 4] == *b"BTCH" {
        let header = &segment[at..at + BATCH_HEADER];
        if crc(seed, &[&header[..4], &header[8..]]) != u32_at(header, 4) {
            break;
        }
        let (count, bytes) = (u32_at(header, 16), u32_at(header, 20) as usize);
        let mut body = &segment[at + BATCH_HEADER..at + BATCH_HEADER + bytes];
        let mut records = Vec::new();
        for _ in 0..count {
            let (record, rest) = body[4..].split_at(u32_at(body, 0) as usize);
            records.push(record.to_vec());
            body = rest;
        }
        found.push(Batch { first: u64_at(header, 8), records });
        at += (BATCH_HEADER + bytes).next_multiple_of(PAGE);
    }
    found
}

fn write_batches(segment: &[u8], seed: u32, batches: &[Batch]) -> Vec<u8> {
    let mut bytes = segment[..PAGE].to_vec();
    for Batch { first, records } in batches {
        let mut body = Vec::new();
        for record in records {
            body.extend_from_slice(&u32::try_from(record.len()).expect("records are small").to_le_bytes());
            body.extend_from_slice(record);
        }
        let mut header = [0; BATCH_HEADER];
        header[..4].copy_from_slice(b"BTCH");
        header[8..16].copy_from_slice(&first.to_le_bytes());
        header[16..20].copy_from_slice(&u32::try_from(records.len()).expect("few").to_le_bytes());
        header[20..24].copy_from_slice(&u32::try_from(body.len()).expect("small").to_le_bytes());
        header[24..28].copy_from_slice(&crc(seed, &[&body]).to_le_bytes());
        let sum = crc(seed, &[&header[..4], &header[8..]]);
        header[4..8].copy_from_slice(&sum.to_le_bytes());
        bytes.extend_from_slice(&header);
        bytes.extend_from_slice(&body);
        bytes.resize(bytes.len().next_multiple_of(PAGE), 0);
    }
    assert!(bytes.len() <= segment.len(), "the segment has room");
    bytes.resize(segment.len(), 0);
    bytes
}

/// Changes the client frames of the entry that has this key, at the place of the frame that has it. The payload's digests
/// before and after, when there is one.
fn edit(record: &mut Vec<u8>, key: &[u8], change: impl Fn(&mut Vec<Bytes>, usize)) -> Option<(Hash, Hash)> {
    let at = ACCEPTED.len() + SIGNED_VOTE;
    if !record.starts_with(&ACCEPTED) || record.get(at) != Some(&1) {
        return None;
    }
    let payload: Bytes = decode(&record[at + 1..]).expect("the payload's bytes");
    let Ok(Some(mut proposal)) = Proposal::from_payload(&payload) else { return None };
    let before = payload_digest(&payload);
    let has = |frame: &Bytes| frame.windows(key.len()).any(|window| window == key);
    for entry in &mut proposal.entries {
        if let RootEntry::Batch(frames) = entry
            && let Some(place) = frames.iter().position(has)
        {
            change(frames, place);
            let payload = proposal.to_payload();
            record.truncate(at + 1);
            record.extend_from_slice(&u32::try_from(payload.len()).expect("small").to_le_bytes());
            record.extend_from_slice(&payload);
            return Some((before, payload_digest(&payload)));
        }
    }
    None
}

/// Every record that speaks of the one digest speaks of the other.
fn rename(record: &mut [u8], (before, after): (Hash, Hash)) {
    let places: Vec<usize> = (0..record.len()).filter(|at| record[*at..].starts_with(&before.0)).collect();
    places.into_iter().for_each(|at| record[at..at + 32].copy_from_slice(&after.0));
}

/// The log segment's bytes with that entry changed, and everything else as it was.
pub fn rewritten(segment: &Path, key: &str, change: impl Fn(&mut Vec<Bytes>, usize)) -> Vec<u8> {
    let bytes = std::fs::read(segment).expect("the segment can be read");
    let seed = crc(0, &[&bytes[16..24], &bytes[40..48]]);
    let mut batches = batches(&bytes, seed);
    assert_eq!(write_batches(&bytes, seed, &batches), bytes, "what is read is what was written");
    let records = batches.iter_mut().flat_map(|batch| &mut batch.records);
    // One record, or one for each view that the entry was proposed in: it is changed in all of them.
    let changed: Vec<_> = records.filter_map(|record| edit(record, key.as_bytes(), &change)).collect();
    assert!(!changed.is_empty(), "a record orders {key}");
    for pair in changed {
        batches.iter_mut().flat_map(|batch| &mut batch.records).for_each(|record| rename(record, pair));
    }
    write_batches(&bytes, seed, &batches)
}
