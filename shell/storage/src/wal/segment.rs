//! The bytes of a log segment: its header page and its batches. Pure functions of bytes; no file is touched
//! and no decision is taken here about what an invalid batch means (see `recover.rs`).
//!
//! A batch is what one `sync` made durable. It starts on a page boundary and its checksum is seeded with the
//! segment's number and secret salt, so neither the old life of a recycled file nor data shaped like a batch
//! can pass for one. A page that was synced is never written again.

use super::Lsn;

pub(super) const PAGE_BYTES: usize = 4096;
pub(super) const SEGMENT_MAGIC: [u8; 8] = *b"DWCPWAL\0";
pub(super) const SEGMENT_FORMAT: u16 = 1;
pub(super) const BATCH_MAGIC: [u8; 4] = *b"BTCH";
pub(super) const BATCH_HEADER_BYTES: usize = 32;
pub(super) const RECORD_HEADER_BYTES: usize = 4;

/// Bytes that name whose log this is; opaque here.
pub const OWNER_BYTES: usize = 40;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub number: u64,
    pub first_lsn: Lsn,
    /// The whole file, this page included.
    pub file_bytes: u64,
    pub salt: u64,
    /// The file had another life: pages past the tail hold its old bytes instead of zeros.
    pub recycled: bool,
    pub owner: [u8; OWNER_BYTES],
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum HeaderFault {
    Checksum,
    Format(u16),
    NotASegment,
}

impl SegmentHeader {
    pub fn encode(&self) -> Vec<u8> {
        let mut page = vec![0u8; PAGE_BYTES];
        page[0..8].copy_from_slice(&SEGMENT_MAGIC);
        page[8..10].copy_from_slice(&SEGMENT_FORMAT.to_le_bytes());
        page[10] = u8::from(self.recycled);
        page[16..24].copy_from_slice(&self.number.to_le_bytes());
        page[24..32].copy_from_slice(&self.first_lsn.0.to_le_bytes());
        page[32..40].copy_from_slice(&self.file_bytes.to_le_bytes());
        page[40..48].copy_from_slice(&self.salt.to_le_bytes());
        page[48..48 + OWNER_BYTES].copy_from_slice(&self.owner);
        let crc = page_crc(&page);
        page[12..16].copy_from_slice(&crc.to_le_bytes());
        page
    }

    pub fn decode(page: &[u8]) -> Result<Self, HeaderFault> {
        assert_eq!(page.len(), PAGE_BYTES, "a header is read as one page");
        if page_crc(page) != u32_at(page, 12) {
            return Err(HeaderFault::Checksum);
        }
        if page[0..8] != SEGMENT_MAGIC {
            return Err(HeaderFault::NotASegment);
        }
        let format = u16::from_le_bytes([page[8], page[9]]);
        if format != SEGMENT_FORMAT {
            return Err(HeaderFault::Format(format));
        }
        Ok(Self {
            number: u64_at(page, 16),
            first_lsn: Lsn(u64_at(page, 24)),
            file_bytes: u64_at(page, 32),
            salt: u64_at(page, 40),
            recycled: page[10] != 0,
            owner: page[48..48 + OWNER_BYTES].try_into().expect("the range has that length"),
        })
    }

    /// Every batch checksum of this segment starts from here.
    pub fn seed(&self) -> u32 {
        let mut crc = crc32fast::Hasher::new();
        crc.update(&self.number.to_le_bytes());
        crc.update(&self.salt.to_le_bytes());
        crc.finalize()
    }
}

fn page_crc(page: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&page[..12]);
    crc.update(&page[16..]);
    crc.finalize()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BatchHeader {
    pub first_lsn: Lsn,
    pub count: u32,
    pub body_bytes: u32,
    pub body_crc: u32,
}

impl BatchHeader {
    pub fn encode(&self, seed: u32) -> [u8; BATCH_HEADER_BYTES] {
        let mut bytes = [0u8; BATCH_HEADER_BYTES];
        bytes[0..4].copy_from_slice(&BATCH_MAGIC);
        bytes[8..16].copy_from_slice(&self.first_lsn.0.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.count.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.body_bytes.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.body_crc.to_le_bytes());
        let crc = batch_crc(seed, &bytes);
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// `None` unless exactly these bytes were written as a batch header of this very segment.
    pub fn decode(bytes: &[u8], seed: u32) -> Option<Self> {
        let bytes = bytes.get(..BATCH_HEADER_BYTES)?;
        if bytes[0..4] != BATCH_MAGIC || batch_crc(seed, bytes) != u32_at(bytes, 4) {
            return None;
        }
        Some(Self {
            first_lsn: Lsn(u64_at(bytes, 8)),
            count: u32_at(bytes, 16),
            body_bytes: u32_at(bytes, 20),
            body_crc: u32_at(bytes, 24),
        })
    }

    /// Bytes this batch takes in the file, padding included.
    pub fn padded_bytes(&self) -> usize {
        padded(BATCH_HEADER_BYTES + self.body_bytes as usize)
    }
}

fn batch_crc(seed: u32, header: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new_with_initial(seed);
    crc.update(&header[0..4]);
    crc.update(&header[8..BATCH_HEADER_BYTES]);
    crc.finalize()
}

pub(super) fn body_crc(seed: u32, body: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new_with_initial(seed);
    crc.update(body);
    crc.finalize()
}

/// Cuts a verified body into its records. `None` when lengths and count do not add up, which no writer does.
pub(super) fn split_body(mut body: &[u8], count: u32) -> Option<Vec<&[u8]>> {
    let mut records = Vec::new();
    for _ in 0..count {
        let (len, rest) = body.split_at_checked(RECORD_HEADER_BYTES)?;
        let (record, rest) = rest.split_at_checked(u32_at(len, 0) as usize)?;
        records.push(record);
        body = rest;
    }
    body.is_empty().then_some(records)
}

pub(super) fn padded(bytes: usize) -> usize {
    bytes.next_multiple_of(PAGE_BYTES)
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes were cut"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes were cut"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> SegmentHeader {
        SegmentHeader {
            number: 7,
            first_lsn: Lsn(19),
            file_bytes: 65536,
            salt: 0x5eed,
            recycled: true,
            owner: [9; OWNER_BYTES],
        }
    }

    #[test]
    fn a_header_reads_back_and_any_flipped_bit_is_refused() {
        let page = header().encode();
        assert_eq!(SegmentHeader::decode(&page), Ok(header()));
        for bit in 0..PAGE_BYTES * 8 {
            let mut bad = page.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(SegmentHeader::decode(&bad).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_batch_of_another_segment_or_salt_is_no_batch_here() {
        let batch = BatchHeader { first_lsn: Lsn(19), count: 1, body_bytes: 5, body_crc: 3 };
        let bytes = batch.encode(header().seed());
        assert_eq!(BatchHeader::decode(&bytes, header().seed()), Some(batch));
        assert_eq!(BatchHeader::decode(&bytes, SegmentHeader { number: 8, ..header() }.seed()), None);
        assert_eq!(BatchHeader::decode(&bytes, SegmentHeader { salt: 1, ..header() }.seed()), None);
    }

    #[test]
    fn a_body_whose_lengths_do_not_add_up_is_refused() {
        assert_eq!(split_body(&[1, 0, 0, 0, 42], 1), Some(vec![&[42u8][..]]));
        assert_eq!(split_body(&[1, 0, 0, 0, 42], 2), None);
        assert_eq!(split_body(&[1, 0, 0, 0, 42, 0], 1), None);
        assert_eq!(split_body(&[255, 255, 255, 255, 42], 1), None);
        assert_eq!(split_body(&[], u32::MAX), None);
    }
}
