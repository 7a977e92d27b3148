//! Bytes of bundles and snapshots: variable-length integers and length-prefixed fields.
//!
//! Departs from the borsh of the other rooms: small updates are the bulk of all traffic here, and fixed-width lengths,
//! counters and origins would double each of them. Decoders compare the re-encoded value with what they read, so one
//! value still has one encoding.

use crate::dots::{Dot, Interval, Origin, VersionVector};
use crate::value::{Plain, PlainForm};
use alloc::vec::Vec;
use bytes::Bytes;

/// The bytes are not what they should be. Callers turn it into their own typed refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

pub(crate) fn put_number(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

pub(crate) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_number(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

pub(crate) fn put_origin(out: &mut Vec<u8>, origin: Origin) {
    put_number(out, origin.id.0.into());
    put_number(out, origin.incarnation.0.into());
}

pub(crate) fn put_dot(out: &mut Vec<u8>, dot: Dot) {
    put_origin(out, dot.origin);
    put_number(out, dot.counter);
}

pub(crate) fn put_dots(out: &mut Vec<u8>, dots: &[Dot]) {
    put_number(out, dots.len() as u64);
    for dot in dots {
        put_dot(out, *dot);
    }
}

/// Zero for nothing, else one more than twice the length, plus one for JSON.
pub(crate) fn put_plain(out: &mut Vec<u8>, value: Option<&Plain>) {
    match value.map(|v| &v.0) {
        None => put_number(out, 0),
        Some(PlainForm::Bytes(bytes)) => {
            put_number(out, bytes.len() as u64 * 2 + 1);
            out.extend_from_slice(bytes);
        }
        Some(PlainForm::Json(text)) => {
            put_number(out, text.len() as u64 * 2 + 2);
            out.extend_from_slice(text);
        }
    }
}

pub(crate) fn put_vector(out: &mut Vec<u8>, vector: &VersionVector) {
    put_number(out, vector.origins_count() as u64);
    for (origin, list) in vector.iter() {
        put_origin(out, origin);
        put_number(out, list.len() as u64);
        let mut last = 0;
        for interval in list {
            put_number(out, interval.first - last);
            put_number(out, interval.last - interval.first);
            last = interval.last;
        }
    }
}

/// Reads from the front of some bytes; what it hands out shares their memory.
#[derive(Debug)]
pub(crate) struct Reader {
    rest: Bytes,
}

impl Reader {
    pub(crate) fn new(bytes: Bytes) -> Self {
        Self { rest: bytes }
    }

    pub(crate) fn left(&self) -> usize {
        self.rest.len()
    }

    pub(crate) fn end(&self) -> Result<(), Malformed> {
        if self.rest.is_empty() { Ok(()) } else { Err(Malformed) }
    }

    pub(crate) fn byte(&mut self) -> Result<u8, Malformed> {
        let byte = *self.rest.first().ok_or(Malformed)?;
        let _ = self.rest.split_to(1);
        Ok(byte)
    }

    pub(crate) fn number(&mut self) -> Result<u64, Malformed> {
        let (mut number, mut shift, mut read) = (0_u64, 0_u32, 0_usize);
        loop {
            let byte = *self.rest.get(read).ok_or(Malformed)?;
            read += 1;
            let part = u64::from(byte & 0x7f);
            if shift == 63 && part > 1 {
                return Err(Malformed);
            }
            number |= part << shift;
            if byte & 0x80 == 0 {
                break;
            }
            shift += 7;
            if shift > 63 {
                return Err(Malformed);
            }
        }
        // Not minimal: another encoding of the same number.
        if read > 1 && self.rest[read - 1] == 0 {
            return Err(Malformed);
        }
        let _ = self.rest.split_to(read);
        Ok(number)
    }

    pub(crate) fn number_u32(&mut self) -> Result<u32, Malformed> {
        u32::try_from(self.number()?).map_err(|_| Malformed)
    }

    /// A count of things that take at least one byte each, so that a lie cannot reserve memory.
    pub(crate) fn count(&mut self, max: usize) -> Result<usize, Malformed> {
        let count = usize::try_from(self.number()?).map_err(|_| Malformed)?;
        if count > max || count > self.left() { Err(Malformed) } else { Ok(count) }
    }

    pub(crate) fn take(&mut self, count: usize) -> Result<Bytes, Malformed> {
        if count > self.rest.len() { Err(Malformed) } else { Ok(self.rest.split_to(count)) }
    }

    pub(crate) fn bytes(&mut self, max: usize) -> Result<Bytes, Malformed> {
        let count = self.count(max)?;
        self.take(count)
    }

    pub(crate) fn u64_fixed(&mut self) -> Result<u64, Malformed> {
        let bytes = self.take(8)?;
        let array: [u8; 8] = bytes.as_ref().try_into().map_err(|_| Malformed)?;
        Ok(u64::from_le_bytes(array))
    }

    pub(crate) fn origin(&mut self) -> Result<Origin, Malformed> {
        Ok(Origin::new(self.number_u32()?, self.number_u32()?))
    }

    pub(crate) fn dot(&mut self) -> Result<Dot, Malformed> {
        Ok(Dot::new(self.origin()?, self.number()?))
    }

    pub(crate) fn dots(&mut self) -> Result<Vec<Dot>, Malformed> {
        let count = self.count(usize::MAX)?;
        (0..count).map(|_| self.dot()).collect()
    }

    pub(crate) fn plain(&mut self) -> Result<Option<Plain>, Malformed> {
        let head = self.number()?;
        let Some(head) = head.checked_sub(1) else { return Ok(None) };
        let bytes = self.take(usize::try_from(head / 2).map_err(|_| Malformed)?)?;
        let value = if head % 2 == 0 { Plain::bytes(bytes) } else { Plain::json_bytes(bytes) };
        value.map(Some).map_err(|_| Malformed)
    }

    pub(crate) fn vector(&mut self) -> Result<VersionVector, Malformed> {
        let mut vector = VersionVector::new();
        for _ in 0..self.count(usize::MAX)? {
            let origin = self.origin()?;
            let intervals = self.count(usize::MAX)?;
            if intervals == 0 || !vector.intervals_of(origin).is_empty() {
                return Err(Malformed);
            }
            let mut last = 0_u64;
            for _ in 0..intervals {
                let first = last.checked_add(self.number()?).ok_or(Malformed)?;
                last = first.checked_add(self.number()?).ok_or(Malformed)?;
                if !vector.push_checked(origin, Interval { first, last }) {
                    return Err(Malformed);
                }
            }
        }
        Ok(vector)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    #[test]
    fn numbers_have_one_encoding() {
        for number in [0, 1, 127, 128, 300, u64::from(u32::MAX), 1 << 62, u64::MAX] {
            let mut out = Vec::new();
            put_number(&mut out, number);
            let mut reader = Reader::new(Bytes::from(out));
            assert_eq!(reader.number(), Ok(number));
            assert_eq!(reader.end(), Ok(()));
        }
        for bad in
            [vec![0x80], vec![0x80, 0], vec![0xff; 9], vec![0xff; 10], [vec![0xff; 9], vec![2]].concat()]
        {
            assert_eq!(Reader::new(Bytes::from(bad.clone())).number(), Err(Malformed), "{bad:?}");
        }
    }

    #[test]
    fn a_count_cannot_promise_more_than_there_is() {
        let mut out = Vec::new();
        put_number(&mut out, 1 << 40);
        assert_eq!(Reader::new(Bytes::from(out)).dots(), Err(Malformed));
    }

    #[test]
    fn vectors_survive_the_wire() {
        let mut vector = VersionVector::up_to([(Origin::new(1, 0), 5), (Origin::new(1, 2), 900)]);
        vector.insert(Origin::new(1, 0), 7, 7);
        vector.insert(Origin::new(9, 0), 10, 1_000_000);
        let mut out = Vec::new();
        put_vector(&mut out, &vector);
        assert_eq!(Reader::new(Bytes::from(out)).vector(), Ok(vector));
    }
}
