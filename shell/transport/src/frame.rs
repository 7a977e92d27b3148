//! Frames on the wire: cut into fragments by the sender, put together by the receiver. Pure bytes.
//!
//! A frame larger than one fragment travels in several, marked MORE but for the last, so that a vote waits behind at
//! most one fragment of a bulk frame and not behind the whole of it. Fragments of one class never interleave with
//! each other, those of different classes may. A fragment is: length (u32, big endian), kind (u8), payload.
//! What a frame means is not known here.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::reason::{LinkEnd, Reason};

/// What a frame is for; decides who goes first and who is dropped first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Class {
    /// Small and indispensable for progress: sent first, dropped last.
    Vote = 0,
    /// Proposals and what else carries the order.
    Order = 1,
    /// Clients' requests on their way to the primary.
    Request = 2,
    /// State transfer and other volume: sent late, dropped early, but never starved.
    Bulk = 3,
    /// Hints about who is where: sent last, dropped first. Nothing waits for them.
    Hint = 4,
}

impl Class {
    /// How many there are.
    pub const COUNT: usize = 5;
    pub const ALL: [Class; Self::COUNT] =
        [Class::Vote, Class::Order, Class::Request, Class::Bulk, Class::Hint];

    pub fn label(self) -> &'static str {
        match self {
            Class::Vote => "vote",
            Class::Order => "order",
            Class::Request => "request",
            Class::Bulk => "bulk",
            Class::Hint => "hint",
        }
    }
}

pub(crate) const FRAGMENT_HEADER_BYTES: usize = 5;
/// The largest payload of one fragment: two TLS records' worth.
pub(crate) const FRAGMENT_BYTES_MAX: usize = 32 * 1024;

const KIND_PING: u8 = 8;
const KIND_PONG: u8 = 9;
const KIND_BEAT: u8 = 10;
const KIND_BYE: u8 = 11;
const MORE: u8 = 0x80;

/// The acceptor's reply to a ping, with what the dialler needs to estimate the delivery rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pong {
    pub(crate) nonce: u64,
    /// Bytes received on this link when the ping arrived.
    pub(crate) received_bytes: u64,
    /// The acceptor's clock at that moment, counted from the link's start.
    pub(crate) at_us: u64,
    /// The reader waited for its sink since the last pong: the rate was the receiver's, not the network's.
    pub(crate) receiver_limited: bool,
}

const PONG_BYTES: usize = 8 + 8 + 8 + 1;

/// One thing that arrived.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    Frame(Class, Bytes),
    Ping(u64),
    Pong(Pong),
    Beat,
    Bye(Reason),
}

fn put(out: &mut BytesMut, kind: u8, payload: &[u8]) {
    debug_assert!(payload.len() <= FRAGMENT_BYTES_MAX);
    out.put_u32(u32::try_from(payload.len()).expect("a fragment is at most 32 KiB"));
    out.put_u8(kind);
    out.put_slice(payload);
}

pub(crate) fn put_fragment(out: &mut BytesMut, class: Class, payload: &[u8], more: bool) {
    put(out, class as u8 | if more { MORE } else { 0 }, payload);
}

pub(crate) fn put_ping(out: &mut BytesMut, nonce: u64) {
    put(out, KIND_PING, &nonce.to_be_bytes());
}

pub(crate) fn put_pong(out: &mut BytesMut, pong: &Pong) {
    let mut payload = [0u8; PONG_BYTES];
    let mut fields = &mut payload[..];
    fields.put_u64(pong.nonce);
    fields.put_u64(pong.received_bytes);
    fields.put_u64(pong.at_us);
    fields.put_u8(u8::from(pong.receiver_limited));
    put(out, KIND_PONG, &payload);
}

pub(crate) fn put_beat(out: &mut BytesMut) {
    put(out, KIND_BEAT, &[]);
}

pub(crate) fn put_bye(out: &mut BytesMut, reason: Reason) {
    put(out, KIND_BYE, &[reason as u8]);
}

/// Which end of the link reads: each may only be sent what belongs to its direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reading {
    /// The acceptor reads frames and pings.
    Frames,
    /// The dialler reads pongs and beats.
    Control,
}

/// Puts fragments together. Bound: `frame_bytes_max` for each of the classes.
#[derive(Debug)]
pub(crate) struct Reassembler {
    reading: Reading,
    frame_bytes_max: usize,
    partial: [Vec<u8>; Class::COUNT],
}

impl Reassembler {
    pub(crate) fn new(reading: Reading, frame_bytes_max: usize) -> Self {
        Self { reading, frame_bytes_max, partial: Default::default() }
    }

    /// Takes the next complete arrival from `buffer`; `None` when more bytes are needed. After an error the link is
    /// useless: the place of the next fragment is lost.
    pub(crate) fn next(&mut self, buffer: &mut BytesMut) -> Result<Option<Arrival>, LinkEnd> {
        loop {
            let Some((header, _)) = buffer.split_first_chunk::<FRAGMENT_HEADER_BYTES>() else {
                return Ok(None);
            };
            let [a, b, c, d, kind] = *header;
            let length = u32::from_be_bytes([a, b, c, d]) as usize;
            if length > FRAGMENT_BYTES_MAX {
                let detail = format!("a fragment of {length} bytes, {FRAGMENT_BYTES_MAX} are allowed");
                return Err(LinkEnd::new(Reason::Oversize, detail));
            }
            if buffer.len() < FRAGMENT_HEADER_BYTES + length {
                return Ok(None);
            }
            let payload = &buffer[FRAGMENT_HEADER_BYTES..FRAGMENT_HEADER_BYTES + length];
            let arrival = match self.reading {
                Reading::Frames => self.on_fragment(kind, payload),
                Reading::Control => on_control(kind, payload),
            }?;
            buffer.advance(FRAGMENT_HEADER_BYTES + length);
            if arrival.is_some() {
                return Ok(arrival);
            }
        }
    }

    fn on_fragment(&mut self, kind: u8, payload: &[u8]) -> Result<Option<Arrival>, LinkEnd> {
        let class = match kind & !MORE {
            0 => Class::Vote,
            1 => Class::Order,
            2 => Class::Request,
            3 => Class::Bulk,
            4 => Class::Hint,
            KIND_PING if kind & MORE == 0 => {
                let nonce = payload.try_into().map_err(|_| bad_frame("a ping of a wrong length"))?;
                return Ok(Some(Arrival::Ping(u64::from_be_bytes(nonce))));
            }
            _ => return Err(bad_frame(&format!("kind {kind} does not belong here"))),
        };
        let more = kind & MORE != 0;
        if more && payload.is_empty() {
            return Err(bad_frame("an empty fragment that announces more"));
        }
        let partial = &mut self.partial[class as usize];
        let length = partial.len() + payload.len();
        if length > self.frame_bytes_max {
            let detail = format!("a frame of {length} bytes or more, {} are allowed", self.frame_bytes_max);
            return Err(LinkEnd::new(Reason::Oversize, detail));
        }
        if more {
            partial.extend_from_slice(payload);
            return Ok(None);
        }
        // Copied, not sliced: a slice would keep the whole read buffer alive for one small vote.
        let frame = if partial.is_empty() {
            Bytes::copy_from_slice(payload)
        } else {
            partial.extend_from_slice(payload);
            Bytes::from(std::mem::take(partial))
        };
        Ok(Some(Arrival::Frame(class, frame)))
    }
}

fn bad_frame(detail: &str) -> LinkEnd {
    LinkEnd::new(Reason::BadFrame, detail)
}

fn on_control(kind: u8, payload: &[u8]) -> Result<Option<Arrival>, LinkEnd> {
    match (kind, payload) {
        (KIND_PONG, mut fields) if fields.len() == PONG_BYTES => Ok(Some(Arrival::Pong(Pong {
            nonce: fields.get_u64(),
            received_bytes: fields.get_u64(),
            at_us: fields.get_u64(),
            receiver_limited: fields.get_u8() != 0,
        }))),
        (KIND_BEAT, []) => Ok(Some(Arrival::Beat)),
        (KIND_BYE, &[code]) => Ok(Some(Arrival::Bye(Reason::from_code(code).unwrap_or(Reason::Closed)))),
        _ => Err(bad_frame(&format!("kind {kind} with {} bytes does not belong here", payload.len()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(limit: usize) -> Reassembler {
        Reassembler::new(Reading::Frames, limit)
    }

    #[test]
    fn fragments_of_several_classes_interleave_and_come_out_whole() {
        let mut wire = BytesMut::new();
        put_fragment(&mut wire, Class::Bulk, b"one ", true);
        put_fragment(&mut wire, Class::Vote, b"vote", false);
        put_ping(&mut wire, 5);
        put_fragment(&mut wire, Class::Bulk, b"two", false);
        let mut reader = frames(100);
        // One byte at a time: the reader must not depend on where the network cuts.
        let (mut buffer, mut seen) = (BytesMut::new(), Vec::new());
        for byte in wire {
            buffer.put_u8(byte);
            seen.extend(reader.next(&mut buffer).expect("valid"));
        }
        let frame = |class, bytes: &'static [u8]| Arrival::Frame(class, Bytes::from_static(bytes));
        assert_eq!(seen, [frame(Class::Vote, b"vote"), Arrival::Ping(5), frame(Class::Bulk, b"one two")]);
    }

    #[test]
    fn a_frame_above_the_limit_is_refused_before_it_is_kept() {
        let mut wire = BytesMut::new();
        put_fragment(&mut wire, Class::Order, &[1; 60], true);
        put_fragment(&mut wire, Class::Order, &[1; 41], true);
        let end = frames(100).next(&mut wire).expect_err("101 bytes");
        assert_eq!(end.reason, Reason::Oversize);
        let mut wire = BytesMut::from(&[0xff, 0xff, 0xff, 0xff, 0][..]);
        assert_eq!(frames(100).next(&mut wire).expect_err("4 GiB").reason, Reason::Oversize);
    }

    #[test]
    fn what_belongs_to_the_other_direction_is_refused() {
        let mut wire = BytesMut::new();
        put_beat(&mut wire);
        assert_eq!(frames(9).next(&mut wire).expect_err("a beat").reason, Reason::BadFrame);
        let mut wire = BytesMut::new();
        put_fragment(&mut wire, Class::Vote, b"x", false);
        let mut control = Reassembler::new(Reading::Control, 0);
        assert_eq!(control.next(&mut wire).expect_err("a frame").reason, Reason::BadFrame);
        let mut wire = BytesMut::new();
        put_fragment(&mut wire, Class::Vote, b"", true);
        assert_eq!(frames(9).next(&mut wire).expect_err("endless").reason, Reason::BadFrame);
    }

    #[test]
    fn control_words_survive_their_bytes() {
        let pong = Pong { nonce: 1, received_bytes: 2, at_us: 3, receiver_limited: true };
        let mut wire = BytesMut::new();
        put_pong(&mut wire, &pong);
        put_beat(&mut wire);
        put_bye(&mut wire, Reason::Oversize);
        let mut reader = Reassembler::new(Reading::Control, 0);
        assert_eq!(reader.next(&mut wire), Ok(Some(Arrival::Pong(pong))));
        assert_eq!(reader.next(&mut wire), Ok(Some(Arrival::Beat)));
        assert_eq!(reader.next(&mut wire), Ok(Some(Arrival::Bye(Reason::Oversize))));
        assert_eq!(reader.next(&mut wire), Ok(None));
    }

    #[test]
    fn arbitrary_bytes_never_panic() {
        let mut state = 1u64;
        for _ in 0..20_000 {
            let mut wire = BytesMut::new();
            for _ in 0..24 {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                // Mostly small values, so that lengths and kinds are often plausible.
                wire.put_u8((state >> 56) as u8 & if state & 1 == 0 { 0x8b } else { 0x01 });
            }
            for reading in [Reading::Frames, Reading::Control] {
                let (mut reader, mut wire) = (Reassembler::new(reading, 16), wire.clone());
                while let Ok(Some(_)) = reader.next(&mut wire) {}
            }
        }
    }
}
