//! An input that is a whole story: steps that are handed to a live replica one after the other. Any bytes are some
//! story. Every step is followed by the questions that must be answered the same whatever strangers send.

use crate::seal::Sealer;
use crate::steps;
use crate::world::Base;
use borsh::BorshDeserialize;
use bytes::Bytes;
use dwcp_base::{Chance, Hash, Incarnation, Micros, Now, ReplicaId, Sequence, View, decode, encode};
use dwcp_log::OperatorOrder;
use dwcp_pbft::message::{Message, Standing, Vote};
use dwcp_replica::{
    ClientId, ClientReply, ClientRequest, Effect, Event, Input, LogRecord, Outbox, PeerMessage, Replica,
};
use dwcp_state::SessionId;
use dwcp_state::kv::Kv;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// One thing that happens to the replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Peer { from: u8, bytes: Vec<u8> },
    Frame(Vec<u8>),
    Order(Vec<u8>),
    Query(Vec<u8>),
    Status,
    Wake,
    LinkUp(u8),
    Attach(Vec<u8>),
}

impl Step {
    /// The step that this input is, if a story can hold it.
    #[must_use]
    pub fn of(input: &Input) -> Option<Self> {
        match input {
            Input::Peer { from, bytes, .. } => Some(Self::Peer { from: from.0, bytes: bytes.to_vec() }),
            Input::LinkUp { peer } => Some(Self::LinkUp(peer.0)),
            Input::Client { request, .. } => match request {
                ClientRequest::Attach { session } => Some(Self::Attach(session.0.to_vec())),
                ClientRequest::Frame { bytes, .. } => Some(Self::Frame(bytes.to_vec())),
                ClientRequest::Order { bytes, .. } => Some(Self::Order(bytes.to_vec())),
                ClientRequest::Query { bytes, .. } => Some(Self::Query(bytes.to_vec())),
                ClientRequest::Status { .. } => Some(Self::Status),
                ClientRequest::Read { .. } | ClientRequest::Sync { .. } => None,
            },
            Input::Wake => Some(Self::Wake),
            Input::ClientGone { .. }
            | Input::LinkDown { .. }
            | Input::Durable { .. }
            | Input::Settle
            | Input::ChunkRead { .. }
            | Input::SnapshotSaved { .. }
            | Input::SnapshotFailed { .. } => None,
        }
    }

    fn tag(&self) -> u8 {
        match self {
            Self::Peer { from, .. } => *from,
            Self::Frame(_) => 4,
            Self::Order(_) => 5,
            Self::Query(_) => 6,
            Self::Status => 7,
            Self::Wake => 8,
            Self::LinkUp(_) => 9,
            Self::Attach(_) => 10,
        }
    }

    fn body(&self) -> &[u8] {
        match self {
            Self::Peer { bytes, .. }
            | Self::Frame(bytes)
            | Self::Order(bytes)
            | Self::Query(bytes)
            | Self::Attach(bytes) => bytes,
            Self::LinkUp(peer) => std::slice::from_ref(peer),
            Self::Status | Self::Wake => &[],
        }
    }

    fn read(tag: u8, body: &[u8]) -> Self {
        match tag % 11 {
            from @ 0..=3 => Self::Peer { from, bytes: body.to_vec() },
            4 => Self::Frame(body.to_vec()),
            5 => Self::Order(body.to_vec()),
            6 => Self::Query(body.to_vec()),
            7 => Self::Status,
            8 => Self::Wake,
            9 => Self::LinkUp(body.first().copied().unwrap_or(0) % 4),
            _ => Self::Attach(body.to_vec()),
        }
    }
}

/// A story as bytes: a list of `steps`.
#[must_use]
pub fn write(story: &[Step]) -> Vec<u8> {
    let list: Vec<steps::Step> = story.iter().map(|step| (step.tag(), step.body().to_vec())).collect();
    steps::write(&list)
}

/// The story that these bytes tell.
#[must_use]
pub fn read(bytes: &[u8]) -> Vec<Step> {
    steps::read(bytes).into_iter().map(|(tag, body)| Step::read(tag, &body)).collect()
}

/// Damages a story as a whole or in one of its steps; now and then time passes in it.
pub fn damage(bytes: &mut Vec<u8>, other: &[u8], gentle: bool, chance: &mut Chance) {
    steps::damage(bytes, other, gentle, chance);
    if chance.per_mille(200) {
        let mut story = read(bytes);
        let at = chance.below(story.len() as u64 + 1);
        story.insert(usize::try_from(at).expect("a place"), Step::Wake);
        *bytes = write(&story);
    }
}

/// Seals every step. False when no step that strangers wrote could be read.
pub fn seal(bytes: &mut Vec<u8>) -> bool {
    let mut sealer = Sealer::of(bytes);
    let mut steps = read(bytes);
    let (mut sealed, mut lost) = (0, 0);
    for step in &mut steps {
        let good = match step {
            Step::Peer { from, bytes } => sealer.peer_message(bytes, ReplicaId(*from)),
            Step::Frame(body) => {
                let mut frame = Bytes::from(std::mem::take(body));
                let good = sealer.client_frame(&mut frame);
                *body = frame.to_vec();
                good
            }
            Step::Order(body) => match decode::<OperatorOrder>(body) {
                Ok(mut order) => {
                    sealer.operator_order(&mut order);
                    *body = encode(&order);
                    true
                }
                Err(_) => false,
            },
            Step::Query(_) | Step::Status | Step::Wake | Step::LinkUp(_) | Step::Attach(_) => continue,
        };
        if good { sealed += 1 } else { lost += 1 }
    }
    *bytes = write(&steps);
    sealed > 0 && lost == 0
}

/// A replica in the middle of its history, and what it has said.
struct Live {
    replica: Replica<Kv>,
    now: Now,
    inputs: VecDeque<Input>,
    /// What it signed: one digest for each vote, view and sequence.
    said: BTreeMap<(Vote, View, Sequence), Hash>,
    me: ReplicaId,
    halted: bool,
    reasons: BTreeSet<&'static str>,
}

/// Plays a story to a replica, and tells for which reasons it refused what peers said.
///
/// # Panics
/// When the replica does, or when it does what no input may make it do.
pub fn play(base: &Base, bytes: &[u8]) -> BTreeSet<&'static str> {
    let mut out = Outbox::default();
    let replica = base.revive(&[], &mut out).expect("the base is honest");
    let mut live = Live {
        replica,
        now: base.now(),
        inputs: VecDeque::new(),
        said: BTreeMap::new(),
        me: base.me,
        halted: false,
        reasons: BTreeSet::new(),
    };
    live.observe(&mut out);
    live.introduce();
    for step in read(bytes) {
        live.take(step);
    }
    live.reasons
}

impl Live {
    /// A replica that began votes once its peers have said where they stand.
    fn introduce(&mut self) {
        let standing = Standing {
            view: View::ZERO,
            active: true,
            stable: Sequence::ZERO,
            executed: Sequence::ZERO,
            decided_from: Sequence(1),
            snapshot: Sequence::ZERO,
            stuck: Vec::new(),
            answer: false,
        };
        let bytes = encode(&PeerMessage::Pbft(Message::Standing(standing)));
        let me = self.me.0;
        for from in (0..4).filter(|from| *from != me) {
            self.take(Step::Peer { from, bytes: bytes.clone() });
        }
    }

    fn pass(&mut self, until: Micros) {
        let mono = self.now.mono.max(until).plus(Micros(100));
        let passed = mono.since(self.now.mono).0;
        self.now = Now { mono, wall_ms: self.now.wall_ms.saturating_add(passed / 1000) };
    }

    fn take(&mut self, step: Step) {
        self.pass(Micros::ZERO);
        let client = ClientId(7);
        let input = match step {
            Step::Peer { from, bytes } => {
                let from = if from == self.me.0 { (from + 1) % 4 } else { from };
                Input::Peer { from: ReplicaId(from), incarnation: Incarnation(0), bytes: Bytes::from(bytes) }
            }
            Step::Frame(bytes) => {
                Input::Client { client, request: ClientRequest::Frame { bytes: bytes.into(), ack: None } }
            }
            Step::Order(bytes) => {
                Input::Client { client, request: ClientRequest::Order { id: 1, bytes: bytes.into() } }
            }
            Step::Query(bytes) => {
                Input::Client { client, request: ClientRequest::Query { id: 2, bytes: bytes.into() } }
            }
            Step::Status => Input::Client { client, request: ClientRequest::Status { id: 3 } },
            Step::Wake => {
                let due = self.replica.next_wakeup();
                if due == Micros::NEVER {
                    return;
                }
                self.pass(due);
                Input::Wake
            }
            Step::LinkUp(peer) if peer == self.me.0 => return,
            Step::LinkUp(peer) => Input::LinkUp { peer: ReplicaId(peer) },
            Step::Attach(bytes) => {
                let mut id = [0; 16];
                id.iter_mut().zip(&bytes).for_each(|(to, from)| *to = *from);
                Input::Client { client, request: ClientRequest::Attach { session: SessionId(id) } }
            }
        };
        self.inputs.push_back(input);
        // A read of a chunk leads to no read of a chunk: this ends.
        while let Some(input) = self.inputs.pop_front() {
            self.step(input);
        }
    }

    fn step(&mut self, input: Input) {
        let from_client = matches!(input, Input::Client { .. });
        let several = several_at_once(&input);
        let before = (self.replica.control().digest(), self.replica.protocol().view());
        let mut out = Outbox::default();
        self.replica.step(self.now, input, &mut out);
        let effects = out.drain();
        let refused = effects.iter().any(|effect| {
            matches!(effect, Effect::Event(Event::Refused { .. }))
                || (from_client
                    && matches!(
                        effect,
                        Effect::Reply {
                            reply: ClientReply::Refused { .. } | ClientReply::Malformed { .. },
                            ..
                        }
                    ))
        });
        if refused && !several {
            let moved = effects.iter().any(|effect| matches!(effect, Effect::Persist { .. }));
            assert!(!moved, "what was refused was written to the log");
            assert!(before.0 == self.replica.control().digest(), "what was refused changed the log's state");
            assert!(before.1 == self.replica.protocol().view(), "what was refused changed the view");
        }
        for effect in effects {
            out.push(effect);
        }
        self.replica.step(self.now, Input::Settle, &mut out);
        self.observe(&mut out);
        if !self.halted {
            self.replica.check();
        }
    }

    fn observe(&mut self, out: &mut Outbox) {
        for effect in out.drain() {
            match effect {
                Effect::Persist { record, .. } => {
                    canonical_record(&record);
                }
                Effect::Send { to, bytes, .. } => {
                    assert!(to != self.me, "a replica does not write to itself");
                    let message = canonical::<PeerMessage>(&bytes, "a message that was sent");
                    self.hear(&message);
                }
                Effect::SaveSnapshot { sequence, .. } | Effect::FinishSnapshot { sequence, .. } => {
                    self.inputs.push_back(Input::SnapshotSaved { sequence });
                }
                Effect::ReadChunk { token, bytes_max, .. } => {
                    let bytes = Some(Bytes::from(vec![3; 16.min(bytes_max as usize)]));
                    self.inputs.push_back(Input::ChunkRead { token, bytes });
                }
                Effect::Reply { reply: ClientReply::Executed(reply), .. } => {
                    canonical::<dwcp_replica::ExecutedReply>(&encode(&reply), "a reply");
                }
                Effect::Halt { .. } => self.halted = true,
                Effect::Event(Event::Refused { from: Some(_), reason }) => {
                    self.reasons.insert(reason);
                }
                Effect::Reply { .. }
                | Effect::SaveChunk { .. }
                | Effect::DropSnapshot { .. }
                | Effect::DiscardLog { .. }
                | Effect::MemberChanged { .. }
                | Effect::Event(_) => {}
            }
        }
    }

    /// Whatever strangers do, an honest replica never signs two digests for one vote.
    fn hear(&mut self, message: &PeerMessage) {
        let signed = match message {
            PeerMessage::Pbft(Message::Vote(signed) | Message::PrePrepare { proposal: signed, .. }) => signed,
            _ => return,
        };
        let statement = signed.statement;
        if statement.sender != self.me || statement.incarnation != Incarnation(0) {
            return;
        }
        let claim = statement.claim;
        let place = (claim.vote, claim.view, claim.sequence);
        let first = *self.said.entry(place).or_insert(claim.digest);
        assert!(first == claim.digest, "two digests were signed for {place:?}");
    }
}

/// One message may hold many decided slots or frames, or release votes that waited: the first good ones count though a
/// later one is refused. And whoever shows that somebody lied is believed, though what he showed is not taken.
fn several_at_once(input: &Input) -> bool {
    let Input::Peer { bytes, .. } = input else { return false };
    matches!(
        decode::<PeerMessage>(bytes),
        Ok(PeerMessage::Pbft(
            Message::Decided(_) | Message::NewView(_) | Message::ViewChange(_) | Message::Stable(_)
        ) | PeerMessage::Sync(_))
    )
}

/// # Panics
/// When the bytes are not the one encoding of what they decode to.
pub fn canonical<T: BorshDeserialize + borsh::BorshSerialize>(bytes: &[u8], what: &str) -> T {
    let value = decode::<T>(bytes).unwrap_or_else(|error| panic!("{what} cannot be read: {error}"));
    assert!(encode(&value) == bytes, "{what} encodes to other bytes");
    value
}

/// # Panics
/// When the bytes are no record, or not the one encoding of it.
fn canonical_record(bytes: &[u8]) {
    let record = LogRecord::read(&Bytes::copy_from_slice(bytes)).expect("a record that was written");
    assert!(crate::targets::messages::record_bytes(&record) == bytes, "a record encodes to other bytes");
}
