//! The bytes of a row of the snapshot store: a checksum that begins with the row's key, then what the row says. Pure
//! functions of bytes; which rows there are and what they are worth together is `snapshot.rs`.

use super::SnapshotInfo;

pub(super) const CRC_BYTES: usize = 4;
/// Checksum, complete, chunks, bytes; then the metadata.
const INFO_HEADER_BYTES: usize = CRC_BYTES + 1 + 4 + 8;

/// The value of the snapshot's row.
pub fn encode_info(info: &SnapshotInfo) -> Vec<u8> {
    let mut value = vec![0; CRC_BYTES];
    value.push(u8::from(info.complete));
    value.extend_from_slice(&info.chunks.to_le_bytes());
    value.extend_from_slice(&info.bytes.to_le_bytes());
    value.extend_from_slice(&info.meta);
    let crc = info_crc(info.seq, &value);
    value[..CRC_BYTES].copy_from_slice(&crc.to_le_bytes());
    value
}

/// What the row of snapshot `seq` says; `None` when it fails its checksum.
pub fn read_info(seq: u64, value: &[u8]) -> Option<SnapshotInfo> {
    if value.len() < INFO_HEADER_BYTES || value[..CRC_BYTES] != info_crc(seq, value).to_le_bytes() {
        return None;
    }
    Some(SnapshotInfo {
        seq,
        complete: value[4] != 0,
        chunks: u32::from_le_bytes(value[5..9].try_into().expect("four bytes were cut")),
        bytes: u64::from_le_bytes(value[9..17].try_into().expect("eight bytes were cut")),
        meta: value[INFO_HEADER_BYTES..].to_vec(),
    })
}

/// The value of a chunk's row: its checksum, then its bytes.
#[must_use]
pub fn seal_chunk(seq: u64, index: u32, bytes: &[u8]) -> Vec<u8> {
    let mut value = vec![0; CRC_BYTES + bytes.len()];
    seal_into(seq, index, bytes, &mut value);
    value
}

pub(super) fn seal_into(seq: u64, index: u32, bytes: &[u8], value: &mut [u8]) {
    let (crc, body) = value.split_at_mut(CRC_BYTES);
    crc.copy_from_slice(&chunk_crc(seq, index, bytes).to_le_bytes());
    body.copy_from_slice(bytes);
}

/// The chunk in this row; `None` when it fails its checksum.
pub fn read_chunk(seq: u64, index: u32, value: &[u8]) -> Option<&[u8]> {
    let (crc, bytes) = value.split_at_checked(CRC_BYTES)?;
    (crc == chunk_crc(seq, index, bytes).to_le_bytes()).then_some(bytes)
}

/// The named value in this row; `None` when it fails its checksum.
pub fn read_meta<'a>(key: &str, value: &'a [u8]) -> Option<&'a [u8]> {
    let (crc, bytes) = value.split_at_checked(CRC_BYTES)?;
    (crc == meta_crc(key, bytes).to_le_bytes()).then_some(bytes)
}

fn info_crc(seq: u64, value: &[u8]) -> u32 {
    seeded_crc(&seq.to_le_bytes(), &value[CRC_BYTES..])
}

pub(super) fn chunk_crc(seq: u64, index: u32, bytes: &[u8]) -> u32 {
    let mut key = [0; 12];
    key[..8].copy_from_slice(&seq.to_le_bytes());
    key[8..].copy_from_slice(&index.to_le_bytes());
    seeded_crc(&key, bytes)
}

pub(super) fn meta_crc(key: &str, bytes: &[u8]) -> u32 {
    seeded_crc(key.as_bytes(), bytes)
}

fn seeded_crc(key: &[u8], bytes: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(key);
    crc.update(bytes);
    crc.finalize()
}
