//! One session as the client keeps it: its key, its numbering, what waits, what is in flight, and its low-water mark.
//!
//! Sequences count up by one; the low-water mark is the lowest sequence still in flight, and what is in flight spans at
//! most the window above it. A frame's bytes never change once signed: every retry, through whatever node, sends the
//! same bytes, which is what makes it safe. Nothing here knows nodes beyond their index in a bit mask, nor sockets.

use crate::trust::Tally;
use bytes::Bytes;
use dwcp_base::crypto::Ed25519;
use dwcp_base::limits::{FRAME_BYTES_MAX, SESSION_WINDOW};
use dwcp_base::{Ack, ClusterId, Crypto, PublicKey};
use dwcp_state::{ClientFrame, Refusal, SessionFrame, SessionId, SessionOpen};
use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

/// Bytes kept free in a frame for its envelope: key, marks, lengths, signature.
const ENVELOPE_BYTES: usize = 512;

/// The sequence under which an open is answered.
pub(crate) const OPEN_SEQUENCE: u64 = 0;

/// A set of nodes by their index in the configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct NodeSet(u32);

impl NodeSet {
    pub fn insert(&mut self, node: usize) {
        self.0 |= 1 << node;
    }

    pub fn remove(&mut self, node: usize) {
        self.0 &= !(1 << node);
    }

    pub fn contains(self, node: usize) -> bool {
        self.0 & (1 << node) != 0
    }

    pub fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// Which command of which call an answer belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    pub call: u64,
    pub index: u32,
}

/// A command that has no sequence yet.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub slot: Slot,
    pub ack: Option<Ack>,
    pub bytes: Bytes,
}

/// A signed frame without believed answer.
#[derive(Debug)]
pub(crate) struct Flight {
    /// Sent again as they are.
    pub bytes: Bytes,
    /// When its sender wants to hear of it.
    pub ack: Option<Ack>,
    pub slots: Vec<Slot>,
    /// Results a right answer has: one per command; one for an open.
    pub results: usize,
    pub tally: Tally,
    /// Nodes it was handed to, ever.
    pub sent: NodeSet,
    /// Nodes that may still answer or forward it: handed over and neither refused nor disconnected since.
    pub working: NodeSet,
    /// Nodes that refused it, with the last refusal.
    pub refused: NodeSet,
    pub refusal: Option<(Option<Refusal>, String)>,
    pub attempts: u32,
    pub first_sent: Option<Instant>,
    pub retry_at: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// No session with the cluster yet, or not any more.
    Closed,
    /// The open is in flight; it is given up at this moment.
    Opening {
        until: Instant,
    },
    Open,
}

/// What a session signs with.
#[derive(Debug)]
pub(crate) struct Keys {
    pub crypto: Ed25519,
    pub public: PublicKey,
}

#[derive(Debug)]
pub(crate) struct Session {
    pub phase: Phase,
    pub id: SessionId,
    pub keys: Keys,
    next: u64,
    /// At most `waiting_max` of the settings; one more is refused.
    pub waiting: VecDeque<Waiting>,
    /// By first sequence: together at most `SESSION_WINDOW` commands.
    pub flights: BTreeMap<u64, Flight>,
    /// Nodes that send this session's results over their present connection.
    pub attached: NodeSet,
    pub last_heard: Instant,
    /// Opens refused in a row because the cluster's clock is another.
    pub clock_refusals: u32,
}

impl Session {
    /// `seed` is a fresh secret: one key, one session.
    pub fn new(now: Instant, seed: [u8; 32]) -> Self {
        let crypto = Ed25519::new(seed, &[]);
        let key = crypto.public_key();
        Self {
            phase: Phase::Closed,
            id: SessionId::of(&key),
            keys: Keys { crypto, public: key },
            next: 1,
            waiting: VecDeque::new(),
            flights: BTreeMap::new(),
            attached: NodeSet::default(),
            last_heard: now,
            clock_refusals: 0,
        }
    }

    /// Takes a fresh key; what waits stays, what was in flight must have been settled before.
    pub fn renew(&mut self, now: Instant, seed: [u8; 32]) {
        debug_assert!(self.flights.is_empty(), "flights of the old key are settled first");
        let waiting = std::mem::take(&mut self.waiting);
        *self = Self { waiting, clock_refusals: self.clock_refusals, ..Self::new(now, seed) };
    }

    /// The open, to be signed by the principal.
    pub fn open(&self, principal: &str, ttl_ms: u64, valid_until_ms: u64) -> SessionOpen {
        SessionOpen { principal: principal.into(), session_key: self.keys.public, ttl_ms, valid_until_ms }
    }

    /// Everything below has its answer, or is no longer asked for.
    pub fn low_water(&self) -> u64 {
        self.flights.keys().next().copied().unwrap_or(self.next)
    }

    /// Builds the next frame from what waits; `None` when nothing waits or the window is full.
    pub fn next_frame(&mut self, now: Instant, cluster: ClusterId, frame_max: usize) -> Option<u64> {
        let low_water = self.low_water();
        let room = (low_water + SESSION_WINDOW).saturating_sub(self.next);
        let count_max = frame_max.min(usize::try_from(room).expect("the window is small"));
        let (mut slots, mut commands, mut bytes) = (Vec::new(), Vec::new(), ENVELOPE_BYTES);
        let ack = self.waiting.front()?.ack;
        while commands.len() < count_max {
            // A frame is acknowledged as a whole.
            let Some(next) = self.waiting.front().filter(|next| next.ack == ack) else { break };
            bytes += next.bytes.len() + 4;
            if bytes > FRAME_BYTES_MAX {
                break;
            }
            let next = self.waiting.pop_front().expect("just seen");
            slots.push(next.slot);
            commands.push(next.bytes);
        }
        if commands.is_empty() {
            return None;
        }
        let first = self.next;
        self.next += commands.len() as u64;
        let results = commands.len();
        let frame = SessionFrame { session_key: self.keys.public, low_water, first, commands };
        let bytes = ClientFrame::commands(&self.keys.crypto, cluster, &frame).encode();
        self.flights.insert(first, Flight::new(now, bytes, ack, slots, results));
        Some(first)
    }
}

impl Flight {
    pub fn new(now: Instant, bytes: Bytes, ack: Option<Ack>, slots: Vec<Slot>, results: usize) -> Self {
        Self {
            bytes,
            ack,
            slots,
            results,
            tally: Tally::default(),
            sent: NodeSet::default(),
            working: NodeSet::default(),
            refused: NodeSet::default(),
            refusal: None,
            attempts: 0,
            first_sent: None,
            retry_at: now,
        }
    }
}

/// The bytes of an open. Only this needs the principal's key.
pub(crate) fn signed_open(
    principal: &dyn Crypto,
    key: PublicKey,
    cluster: ClusterId,
    open: &SessionOpen,
) -> Bytes {
    ClientFrame::open(principal, key, cluster, open).encode()
}

#[cfg(test)]
mod tests {
    use super::*;
    use dwcp_base::limits::COMMAND_BYTES_MAX;
    use dwcp_state::FrameContent;

    const CLUSTER: ClusterId = ClusterId([5; 32]);

    fn session(commands: usize, bytes: usize) -> (Session, Instant) {
        let now = Instant::now();
        let mut session = Session::new(now, [3; 32]);
        for index in 0..commands {
            let slot = Slot { call: 0, index: u32::try_from(index).expect("few") };
            session.waiting.push_back(Waiting { slot, ack: None, bytes: Bytes::from(vec![1; bytes]) });
        }
        (session, now)
    }

    fn read(session: &Session, first: u64) -> SessionFrame {
        let checked =
            ClientFrame::decode(session.flights[&first].bytes.clone()).expect("an own frame is sound");
        let (key, message, signature) = checked.signature_item(CLUSTER);
        assert!(Ed25519::new([0; 32], &[]).verify(&key, &message, &signature));
        match checked.content() {
            FrameContent::Commands(frame) => frame.clone(),
            FrameContent::Open(_) => panic!("not an open"),
        }
    }

    #[test]
    fn what_waits_together_leaves_together_up_to_the_bound() {
        let (mut session, now) = session(300, 10);
        assert_eq!(session.next_frame(now, CLUSTER, 256), Some(1));
        assert_eq!(session.next_frame(now, CLUSTER, 256), Some(257));
        assert_eq!(session.next_frame(now, CLUSTER, 256), None);
        assert_eq!((read(&session, 1).commands.len(), read(&session, 257).commands.len()), (256, 44));
        assert_eq!(read(&session, 257).low_water, 1);
    }

    #[test]
    fn commands_that_wish_for_another_acknowledgement_travel_in_another_frame() {
        let (mut session, now) = session(5, 10);
        session.waiting[2].ack = Some(Ack::Anchored);
        session.waiting[3].ack = Some(Ack::Anchored);
        let firsts: Vec<u64> = std::iter::from_fn(|| session.next_frame(now, CLUSTER, 256)).collect();
        assert_eq!(firsts, [1, 3, 5]);
        let acks: Vec<Option<Ack>> = session.flights.values().map(|flight| flight.ack).collect();
        assert_eq!(acks, [None, Some(Ack::Anchored), None]);
    }

    #[test]
    fn the_window_above_the_lowest_unanswered_sequence_is_never_left() {
        let (mut session, now) = session(1500, 10);
        while session.next_frame(now, CLUSTER, 100).is_some() {}
        assert_eq!(session.flights.values().map(|flight| flight.results).sum::<usize>(), 1024);
        // A later answer frees nothing, the lowest does.
        session.flights.remove(&101);
        assert_eq!(session.next_frame(now, CLUSTER, 100), None);
        session.flights.remove(&1);
        assert_eq!(session.low_water(), 201);
        assert_eq!(session.next_frame(now, CLUSTER, 256), Some(1025));
        assert_eq!((read(&session, 1025).low_water, read(&session, 1025).commands.len()), (201, 200));
    }

    #[test]
    fn large_commands_fill_frames_by_bytes() {
        let (mut session, now) = session(3, COMMAND_BYTES_MAX);
        for first in [1, 2, 3] {
            assert_eq!(session.next_frame(now, CLUSTER, 256), Some(first));
            assert_eq!(read(&session, first).commands.len(), 1);
        }
    }
}
