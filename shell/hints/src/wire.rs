//! The bytes of hints: a message is some records and at most one packet of SWIM. All integers but one are little-endian
//! (borsh); the number of a packet's updates is big-endian because foca writes it.
//!
//! A packet is read here first, by the same definitions by which foca reads it, so that each identity in it can be judged
//! before foca hears of it.

use alloc::vec::Vec;

use borsh::{BorshDeserialize, BorshSerialize};
use bytes::{Buf, BufMut};
use dwcp_base::codec::decode_canonical;
use dwcp_base::{CodecError, Incarnation, ReplicaId, encode};

use crate::record::Record;

/// Bytes of a message, so that one never waits behind another's fragments.
pub const MESSAGE_BYTES_MAX: usize = 1_400;
/// Bytes of a packet: a header, and an update for each of 31 members.
pub(crate) const PACKET_BYTES_MAX: usize = 640;
/// Records of one message.
pub const RECORDS_MAX: usize = 12;
/// Updates of one packet: foca has one for each member at most.
const UPDATES_MAX: usize = 32;

/// What SWIM calls a member: a new version is another identity of the same replica, and wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, BorshSerialize, BorshDeserialize)]
pub struct Identity {
    pub replica: ReplicaId,
    pub incarnation: Incarnation,
    /// Of the record that proves it.
    pub version: u64,
}

impl foca::Identity for Identity {
    type Addr = ReplicaId;

    /// A new version needs a new record, and not at whatever rate others wish: see `gossip.rs`.
    fn renew(&self) -> Option<Self> {
        None
    }

    fn addr(&self) -> ReplicaId {
        self.replica
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        self > adversary
    }
}

/// What travels in one frame.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Message {
    pub records: Vec<Record>,
    /// Empty, or one [`Packet`].
    pub packet: Vec<u8>,
}

impl Message {
    /// # Errors
    /// Too long, not a message, or not as it would be written.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let message: Self = decode_canonical(bytes, MESSAGE_BYTES_MAX)?;
        if message.records.len() > RECORDS_MAX || message.packet.len() > PACKET_BYTES_MAX {
            return Err(CodecError::Malformed);
        }
        Ok(message)
    }

    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }
}

/// What a packet asks or answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Word {
    Ping(u8),
    Ack(u8),
    PingReq { target: Identity, probe: u8 },
    IndirectPing { origin: Identity, probe: u8 },
    IndirectAck { target: Identity, probe: u8 },
    ForwardedAck { origin: Identity, probe: u8 },
    Announce,
    Feed,
    Gossip,
    Broadcast,
    TurnUndead,
}

impl Word {
    /// Of whom it speaks beside sender and receiver.
    pub(crate) fn third(&self) -> Option<Identity> {
        match self {
            Self::PingReq { target: third, .. }
            | Self::IndirectPing { origin: third, .. }
            | Self::IndirectAck { target: third, .. }
            | Self::ForwardedAck { origin: third, .. } => Some(*third),
            Self::Ping(_)
            | Self::Ack(_)
            | Self::Announce
            | Self::Feed
            | Self::Gossip
            | Self::Broadcast
            | Self::TurnUndead => None,
        }
    }

    /// A bare word is followed by nothing, not even a number of updates.
    fn is_bare(&self) -> bool {
        matches!(self, Self::Announce | Self::TurnUndead | Self::Broadcast)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(crate) struct Head {
    pub(crate) from: Identity,
    /// SWIM's own count within one identity, by which a suspicion is contradicted.
    pub(crate) from_round: u16,
    pub(crate) to: Identity,
    pub(crate) word: Word,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(crate) enum State {
    Alive,
    Suspect,
    Down,
}

/// What somebody says of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Update {
    pub(crate) id: Identity,
    pub(crate) round: u16,
    pub(crate) state: State,
}

/// A packet of SWIM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    pub(crate) head: Head,
    pub(crate) updates: Vec<Update>,
}

impl Packet {
    /// # Errors
    /// Not a packet, or something follows it.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        if bytes.len() > PACKET_BYTES_MAX {
            return Err(CodecError::TooLong { bytes: bytes.len(), bytes_max: PACKET_BYTES_MAX });
        }
        let mut rest = bytes;
        let head: Head = take(&mut rest)?;
        let mut updates = Vec::new();
        if !head.word.is_bare() {
            let (count, after) = rest.split_first_chunk::<2>().ok_or(CodecError::Malformed)?;
            rest = after;
            let count = usize::from(u16::from_be_bytes(*count));
            if count > UPDATES_MAX {
                return Err(CodecError::Malformed);
            }
            for _ in 0..count {
                updates.push(take(&mut rest)?);
            }
        }
        match rest.is_empty() {
            true => Ok(Self { head, updates }),
            false => Err(CodecError::Malformed),
        }
    }

    /// # Panics
    /// Never for a packet that was decoded.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = encode(&self.head);
        if !self.head.word.is_bare() {
            let count = u16::try_from(self.updates.len()).expect("at most 32 updates");
            bytes.extend(count.to_be_bytes());
            for update in &self.updates {
                bytes.extend(encode(update));
            }
        }
        bytes
    }

    #[must_use]
    pub fn word(&self) -> Word {
        self.head.word
    }
}

/// All types of a packet have one encoding for each value: what is read here would be written the same.
fn take<T: BorshDeserialize>(bytes: &mut &[u8]) -> Result<T, CodecError> {
    T::deserialize(bytes).map_err(|_| CodecError::Malformed)
}

/// foca's way to these bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Codec;

fn put(bytes: &[u8], mut into: impl BufMut) -> Result<(), CodecError> {
    let bytes_max = into.remaining_mut();
    if bytes.len() > bytes_max {
        return Err(CodecError::TooLong { bytes: bytes.len(), bytes_max });
    }
    into.put_slice(bytes);
    Ok(())
}

fn get<T: BorshDeserialize>(mut from: impl Buf) -> Result<T, CodecError> {
    let mut rest = from.chunk();
    let before = rest.len();
    let value = take(&mut rest)?;
    let used = before - rest.len();
    from.advance(used);
    Ok(value)
}

impl foca::Codec<Identity> for Codec {
    type Error = CodecError;

    fn encode_header(&mut self, header: &foca::Header<Identity>, buf: impl BufMut) -> Result<(), CodecError> {
        use foca::Message as M;
        let word = match header.message {
            M::Ping(probe) => Word::Ping(probe),
            M::Ack(probe) => Word::Ack(probe),
            M::PingReq { target, probe_number } => Word::PingReq { target, probe: probe_number },
            M::IndirectPing { origin, probe_number } => Word::IndirectPing { origin, probe: probe_number },
            M::IndirectAck { target, probe_number } => Word::IndirectAck { target, probe: probe_number },
            M::ForwardedAck { origin, probe_number } => Word::ForwardedAck { origin, probe: probe_number },
            M::Announce => Word::Announce,
            M::Feed => Word::Feed,
            M::Gossip => Word::Gossip,
            M::Broadcast => Word::Broadcast,
            M::TurnUndead => Word::TurnUndead,
        };
        let head = Head { from: header.src, from_round: header.src_incarnation, to: header.dst, word };
        put(&encode(&head), buf)
    }

    fn decode_header(&mut self, buf: impl Buf) -> Result<foca::Header<Identity>, CodecError> {
        use foca::Message as M;
        let Head { from, from_round, to, word } = get(buf)?;
        let message = match word {
            Word::Ping(probe) => M::Ping(probe),
            Word::Ack(probe) => M::Ack(probe),
            Word::PingReq { target, probe } => M::PingReq { target, probe_number: probe },
            Word::IndirectPing { origin, probe } => M::IndirectPing { origin, probe_number: probe },
            Word::IndirectAck { target, probe } => M::IndirectAck { target, probe_number: probe },
            Word::ForwardedAck { origin, probe } => M::ForwardedAck { origin, probe_number: probe },
            Word::Announce => M::Announce,
            Word::Feed => M::Feed,
            Word::Gossip => M::Gossip,
            Word::Broadcast => M::Broadcast,
            Word::TurnUndead => M::TurnUndead,
        };
        Ok(foca::Header { src: from, src_incarnation: from_round, dst: to, message })
    }

    fn encode_member(&mut self, member: &foca::Member<Identity>, buf: impl BufMut) -> Result<(), CodecError> {
        let state = match member.state() {
            foca::State::Alive => State::Alive,
            foca::State::Suspect => State::Suspect,
            foca::State::Down => State::Down,
        };
        put(&encode(&Update { id: *member.id(), round: member.incarnation(), state }), buf)
    }

    fn decode_member(&mut self, buf: impl Buf) -> Result<foca::Member<Identity>, CodecError> {
        let Update { id, round, state } = get(buf)?;
        let state = match state {
            State::Alive => foca::State::Alive,
            State::Suspect => foca::State::Suspect,
            State::Down => foca::State::Down,
        };
        Ok(foca::Member::new(id, round, state))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    fn id(replica: u8) -> Identity {
        Identity { replica: ReplicaId(replica), incarnation: Incarnation(1), version: 7 }
    }

    #[test]
    fn a_packet_is_read_back_and_nothing_may_follow_it() {
        let update = |replica, state| Update { id: id(replica), round: 3, state };
        let updates: Vec<_> = (0..31).map(|replica| update(replica, State::Suspect)).collect();
        for word in [Word::Ping(1), Word::PingReq { target: id(3), probe: 9 }, Word::Feed, Word::Gossip] {
            let head = Head { from: id(1), from_round: 2, to: id(2), word };
            let packet = Packet { head, updates: updates.clone() };
            let mut bytes = packet.encode();
            assert!(bytes.len() <= PACKET_BYTES_MAX, "{} bytes for 31 members", bytes.len());
            assert_eq!(Packet::decode(&bytes), Ok(packet));
            for cut in 0..bytes.len() {
                assert!(Packet::decode(&bytes[..cut]).is_err());
            }
            bytes.push(0);
            assert_eq!(Packet::decode(&bytes), Err(CodecError::Malformed));
        }
        let bare = Packet {
            head: Head { from: id(1), from_round: 0, to: id(2), word: Word::Announce },
            updates: vec![],
        };
        assert_eq!(Packet::decode(&bare.encode()), Ok(bare));
    }

    #[test]
    fn a_new_version_wins_and_never_against_itself() {
        use foca::Identity as _;
        let (old, new) = (id(1), Identity { version: 8, ..id(1) });
        assert!(new.win_addr_conflict(&old) && !old.win_addr_conflict(&new) && !old.win_addr_conflict(&old));
        let reborn = Identity { incarnation: Incarnation(2), version: 1, ..id(1) };
        assert!(reborn.win_addr_conflict(&new));
    }
}
