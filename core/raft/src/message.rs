//! What members of a segment say to each other, and the entries they agree on. Who said it is proved by the link; a
//! message that says nonsense is refused where it is handled, not here.

use alloc::vec::Vec;
use borsh::io::{Error, ErrorKind, Read, Result as IoResult};
use borsh::{BorshDeserialize, BorshSerialize};
use bytes::Bytes;
use core::fmt;
use core::ops::Range;
use dwcp_base::limits::{MESSAGE_BYTES_MAX, PROPOSAL_BYTES_MAX};
use dwcp_base::{CodecError, Epoch, Hash, Hasher, LogTime};
use dwcp_log::place::{Index, Place, Term};

/// Frames in one batch.
pub const BATCH_FRAMES_MAX: usize = 16_384;

/// What an entry means.
#[derive(Clone, Debug, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
#[borsh(use_discriminant = true)]
#[repr(u8)]
pub enum Payload {
    /// A new leader's first entry; by committing it the leader learns what is committed (thesis section 6.4).
    Empty = 0,
    /// Client frames, executed in this order at this log time.
    Batch { time: LogTime, frames: Vec<Bytes> } = 1,
    /// Log time goes on, and Anchors have a place to stand at.
    Tick { time: LogTime } = 2,
    /// The last entry of an orderly ended segment.
    Marker = 3,
}

/// Which payload bytes are, without reading them all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Empty,
    Batch,
    Tick,
    Marker,
}

/// The canonical bytes of one payload, checked: whoever holds a `Body` can read it. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Body(Bytes);

impl Body {
    /// The bytes of a payload.
    ///
    /// # Errors
    /// A batch that no member would accept: too many bytes or frames, or an empty frame.
    pub fn new(payload: &Payload) -> Result<Self, CodecError> {
        let frames = if let Payload::Batch { frames, .. } = payload { frames.as_slice() } else { &[] };
        Self::read(encode_sized(payload, 13 + frames.iter().map(|frame| 4 + frame.len()).sum::<usize>()))
    }

    /// Takes received bytes for a payload, without copying them.
    ///
    /// # Errors
    /// Bytes that are no payload, or exceed a limit.
    pub fn read(bytes: Bytes) -> Result<Self, CodecError> {
        if bytes.len() > PROPOSAL_BYTES_MAX {
            return Err(CodecError::TooLong { bytes: bytes.len(), bytes_max: PROPOSAL_BYTES_MAX });
        }
        let sound = match bytes.first() {
            Some(0 | 3) => bytes.len() == 1,
            Some(2) => bytes.len() == 9,
            Some(1) => frames(&bytes).is_some_and(|mut frames| frames.all(|frame| frame.is_some())),
            _ => false,
        };
        if sound { Ok(Self(bytes)) } else { Err(CodecError::Malformed) }
    }

    #[must_use]
    pub fn kind(&self) -> Kind {
        match self.0[0] {
            0 => Kind::Empty,
            1 => Kind::Batch,
            2 => Kind::Tick,
            _ => Kind::Marker,
        }
    }

    /// The log time it brings, if it is of a kind that does.
    #[must_use]
    pub fn time(&self) -> Option<LogTime> {
        let bytes = self.0.get(1..9)?;
        Some(LogTime(u64::from_le_bytes(bytes.try_into().expect("eight bytes"))))
    }

    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.0
    }

    /// The payload; its frames share these bytes.
    #[must_use]
    pub fn payload(&self) -> Payload {
        let time = || self.time().expect("a body of this kind has a time");
        match self.kind() {
            Kind::Empty => Payload::Empty,
            Kind::Marker => Payload::Marker,
            Kind::Tick => Payload::Tick { time: time() },
            Kind::Batch => {
                let frames = frames(&self.0).expect("a batch was checked when its body was made");
                Payload::Batch {
                    time: time(),
                    frames: frames.flatten().map(|frame| self.0.slice(frame)).collect(),
                }
            }
        }
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}({} B)", self.kind(), self.0.len())
    }
}

impl BorshSerialize for Body {
    fn serialize<W: borsh::io::Write>(&self, writer: &mut W) -> IoResult<()> {
        self.0.serialize(writer)
    }
}

impl BorshDeserialize for Body {
    fn deserialize_reader<R: Read>(reader: &mut R) -> IoResult<Self> {
        Self::read(Bytes::deserialize_reader(reader)?)
            .map_err(|_| Error::new(ErrorKind::InvalidData, "not the bytes of a payload"))
    }
}

/// Where the frames of a batch lie in its bytes; a `None` among them says that the bytes are damaged from there on.
fn frames(batch: &[u8]) -> Option<impl Iterator<Item = Option<Range<usize>>> + '_> {
    let mut left = read_u32(batch, 9)?;
    if left > BATCH_FRAMES_MAX {
        return None;
    }
    let mut at = 13;
    Some(core::iter::from_fn(move || {
        if left == 0 {
            // Nothing may follow the last frame.
            let over = at != batch.len();
            at = batch.len();
            return over.then_some(None);
        }
        let frame = read_u32(batch, at)
            .map(|length| at + 4..at + 4 + length)
            .filter(|frame| !frame.is_empty() && frame.end <= batch.len());
        (at, left) = frame.as_ref().map_or((batch.len(), 0), |frame| (frame.end, left - 1));
        Some(frame)
    }))
}

fn read_u32(bytes: &[u8], at: usize) -> Option<usize> {
    let four = bytes.get(at..at + 4)?.try_into().ok()?;
    usize::try_from(u32::from_le_bytes(four)).ok()
}

/// One entry of the segment's log.
#[derive(Clone, Debug, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
pub struct Entry {
    /// Of the leader that made it.
    pub term: Term,
    pub body: Body,
}

impl Entry {
    /// What the chain of the virtual log takes in for this entry.
    #[must_use]
    pub fn digest(&self) -> Hash {
        let mut hasher = Hasher::new("dwcp v3 segment entry");
        hasher.update(&self.term.0.to_le_bytes()).update(self.body.bytes());
        hasher.finish()
    }

    #[must_use]
    pub fn payload(&self) -> Payload {
        self.body.payload()
    }
}

/// How many bytes these entries take, so that writing them moves them once.
pub(crate) fn entries_bytes(entries: &[Entry]) -> usize {
    entries.iter().map(|entry| 12 + entry.body.bytes().len()).sum()
}

/// The canonical bytes of a value that takes at most so many.
pub(crate) fn encode_sized<T: BorshSerialize>(value: &T, bytes_max: usize) -> Bytes {
    let mut bytes = Vec::with_capacity(bytes_max);
    value.serialize(&mut bytes).expect("writing to memory cannot fail");
    Bytes::from(bytes)
}

/// Where a follower's log parts from the leader's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
pub struct Conflict {
    /// The index before the refused entries, as the leader gave it.
    pub refused: Index,
    /// The follower's last place at or before it with no later term than the leader's there: nothing between the two can
    /// agree.
    pub index: Index,
    pub term: Term,
}

/// What is said. Raft figure 2, with pre-vote (thesis section 9.6), ReadIndex (6.4) and leadership transfer (3.10).
#[derive(Clone, Debug, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
#[borsh(use_discriminant = true)]
#[repr(u8)]
pub enum Said {
    /// "Would you vote for me in the term after the one I am in?"
    PreVote {
        last: Place,
    } = 1,
    PreVoteReply {
        granted: bool,
    } = 2,
    /// RequestVote. `transfer`: the leader asked for it, so a live leader is no reason to ignore it.
    Vote {
        last: Place,
        transfer: bool,
    } = 3,
    VoteReply {
        granted: bool,
    } = 4,
    /// AppendEntries. Without entries it asks whether the logs agree at `prev`.
    Append {
        prev: Place,
        commit: Index,
        entries: Vec<Entry>,
    } = 5,
    /// "My log is yours up to `matched`, durably."
    Accepted {
        matched: Index,
    } = 6,
    Refused(Conflict) = 7,
    /// `commit` is no further than the receiver is known to agree. `round` is the newest ReadIndex round, 0 before the
    /// first.
    Heartbeat {
        commit: Index,
        round: u64,
    } = 8,
    /// `round` 0 confirms no read.
    HeartbeatReply {
        round: u64,
    } = 9,
    /// The leader wants the receiver to take over.
    TimeoutNow = 10,
    /// "There is a later term": to a leader that has not noticed.
    Stale = 11,
    /// As a heartbeat that wants no answer: what is committed now, and nothing else to say.
    Committed {
        through: Index,
    } = 12,
}

/// A message between two members.
#[derive(Clone, Debug, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
pub struct Message {
    pub epoch: Epoch,
    /// The sender's current term.
    pub term: Term,
    pub said: Said,
}

impl Message {
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        let entries = if let Said::Append { entries, .. } = &self.said { entries.as_slice() } else { &[] };
        encode_sized(self, 128 + entries_bytes(entries))
    }

    /// # Errors
    /// Bytes that are too long or are no message.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CodecError> {
        if bytes.len() > MESSAGE_BYTES_MAX {
            return Err(CodecError::TooLong { bytes: bytes.len(), bytes_max: MESSAGE_BYTES_MAX });
        }
        dwcp_base::decode(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    fn batch(frames: &[&'static [u8]]) -> Payload {
        Payload::Batch {
            time: LogTime(7),
            frames: frames.iter().map(|frame| Bytes::from_static(frame)).collect(),
        }
    }

    #[test]
    fn a_payload_survives_its_bytes() {
        for payload in [
            Payload::Empty,
            Payload::Marker,
            Payload::Tick { time: LogTime(u64::MAX) },
            batch(&[]),
            batch(&[b"a", b"bcd"]),
        ] {
            let body = Body::new(&payload).unwrap();
            assert_eq!(body.payload(), payload);
            assert_eq!(Body::read(body.bytes().clone()).unwrap(), body);
        }
    }

    #[test]
    fn damaged_bodies_are_refused() {
        let sound = Body::new(&batch(&[b"ab", b"c"])).unwrap();
        let sound = sound.bytes().to_vec();
        for cut in 0..sound.len() {
            assert!(Body::read(Bytes::from(sound[..cut].to_vec())).is_err(), "cut at {cut}");
        }
        let longer = [sound.clone(), vec![0]].concat();
        assert!(Body::read(Bytes::from(longer)).is_err());
        for (at, value) in [(0, 4), (9, 1), (9, 3), (13, 0), (13, 255), (16, 255)] {
            let mut bytes = sound.clone();
            bytes[at] = value;
            assert!(Body::read(Bytes::from(bytes)).is_err(), "byte {at} = {value}");
        }
        assert!(Body::new(&batch(&[b""])).is_err(), "an empty frame is nobody's");
        assert!(Body::new(&batch(&vec![&b"x"[..]; BATCH_FRAMES_MAX + 1])).is_err());
    }

    #[test]
    fn the_digest_depends_on_term_and_body() {
        let entry = |term, payload: &Payload| Entry { term: Term(term), body: Body::new(payload).unwrap() };
        let digest = entry(1, &batch(&[b"a"])).digest();
        assert_ne!(digest, entry(2, &batch(&[b"a"])).digest());
        assert_ne!(digest, entry(1, &batch(&[b"b"])).digest());
    }

    #[test]
    fn a_message_survives_its_bytes_and_nothing_follows_it() {
        let entries = vec![Entry { term: Term(2), body: Body::new(&batch(&[b"a"])).unwrap() }];
        let message = Message {
            epoch: Epoch(3),
            term: Term(2),
            said: Said::Append { prev: Place::default(), commit: Index(1), entries },
        };
        let bytes = message.to_bytes();
        assert_eq!(Message::from_bytes(&bytes), Ok(message));
        assert!(Message::from_bytes(&[&bytes[..], &[0]].concat()).is_err());
        assert!(Message::from_bytes(&bytes[..bytes.len() - 1]).is_err());
    }
}
