//! The core's replies as messages of the wire, and back where the API must answer in the core's place.

use bytes::Bytes;
use dwcp_base::{Ack, NetworkMode, Trust, encode};
use dwcp_proto::REPLY_BYTES_MAX;
use dwcp_proto::v3::{
    self, Counter, OrderReply, PeerStatus, QueryReply, QueryRequest, Refused, SegmentStatus, ServerMessage,
    StatusReply, SwitchStatus, order_reply, query_reply,
};
use dwcp_replica::io::{
    Advice, Answered, ClientReply, ClientRequest, ExecutedReply, OrderOutcome, ProtocolName, ReadLabel,
    Status, Unanswered,
};
use dwcp_state::{ClientFrame, SessionId};

/// Room left in a message for what surrounds the largest reply.
const ENVELOPE_BYTES: usize = 64 * 1024;

/// One item of a server's message.
#[derive(Debug)]
pub(crate) enum Item {
    Executed(Bytes),
    Refused(Refused),
    Malformed(String),
    Query(QueryReply),
    Order(OrderReply),
    Status(Box<StatusReply>),
}

impl Item {
    pub fn of(reply: ClientReply) -> Self {
        match reply {
            ClientReply::Executed(reply) => executed(&reply),
            ClientReply::Refused { session, first, refusal } => Self::Refused(Refused {
                session: Bytes::copy_from_slice(&session.0),
                first,
                refusal: Bytes::from(encode(&refusal)),
                reason: refusal.to_string(),
                definite: refusal.definite(),
            }),
            ClientReply::Busy { session, first, why } => {
                refused_here(session, first, &why.to_string(), why.is_definite())
            }
            ClientReply::Malformed { reason } => Self::Malformed(reason),
            ClientReply::Order { id, outcome } => Self::Order(order(id, outcome)),
            ClientReply::Query { id, outcome } => Self::Query(query(id, outcome)),
            ClientReply::Status { id, status } => Self::Status(Box::new(self::status(id, *status))),
            // Asked and answered on connections of its own (`sync.rs`), never on a session's stream.
            ClientReply::Sync { .. } => Self::Malformed("an answer of state sync strayed here".into()),
        }
    }

    /// True for answers to questions that are counted per stream.
    pub fn answers_question(&self) -> bool {
        matches!(self, Self::Query(_) | Self::Order(_) | Self::Status(_))
    }

    pub fn bytes(&self) -> usize {
        16 + match self {
            Self::Executed(bytes) => bytes.len(),
            Self::Refused(refused) => 64 + refused.refusal.len() + refused.reason.len(),
            Self::Malformed(reason) => reason.len(),
            Self::Query(reply) => match &reply.outcome {
                Some(query_reply::Outcome::Result(bytes)) => bytes.len(),
                Some(query_reply::Outcome::Error(reason)) => reason.len(),
                None => 0,
            },
            Self::Order(_) => 128,
            Self::Status(status) => 1024 + 32 * (status.peers.len() + status.counters.len()),
        }
    }

    pub fn add_to(self, message: &mut ServerMessage) {
        match self {
            Self::Executed(bytes) => message.executed.push(bytes),
            Self::Refused(refused) => message.refused.push(refused),
            Self::Malformed(reason) => message.malformed.push(reason),
            Self::Query(reply) => message.queries.push(reply),
            Self::Order(reply) => message.orders.push(reply),
            Self::Status(reply) => message.statuses.push(*reply),
        }
    }
}

fn executed(reply: &ExecutedReply) -> Item {
    let bytes = encode(reply);
    if bytes.len() + ENVELOPE_BYTES <= REPLY_BYTES_MAX {
        return Item::Executed(Bytes::from(bytes));
    }
    // The commands ran; their results do not fit a message. Reads are the only results this large.
    Item::Refused(Refused {
        session: Bytes::copy_from_slice(&reply.session.0),
        first: reply.first,
        refusal: Bytes::new(),
        reason: format!(
            "executed, but its results exceed {REPLY_BYTES_MAX} bytes: send fewer reads in one frame"
        ),
        definite: false,
    })
}

pub(crate) fn query(id: u64, outcome: Result<Answered, Unanswered>) -> QueryReply {
    match outcome {
        Ok(Answered { bytes, label, position, view }) if bytes.len() + ENVELOPE_BYTES <= REPLY_BYTES_MAX => {
            let label = match label {
                ReadLabel::Stale => v3::ReadLabel::Stale,
                ReadLabel::Crash => v3::ReadLabel::Crash,
            };
            QueryReply {
                id,
                outcome: Some(query_reply::Outcome::Result(bytes)),
                label: label.into(),
                position: position.0,
                view: view.0,
                ..QueryReply::default()
            }
        }
        Ok(_) => {
            let reason = format!("the result exceeds {REPLY_BYTES_MAX} bytes: set a limit");
            unanswered(id, reason, Advice::Nowhere)
        }
        Err(Unanswered { reason, advice }) => unanswered(id, reason, advice),
    }
}

/// The answer to a question that this node does not answer.
pub(crate) fn unanswered(id: u64, reason: String, advice: Advice) -> QueryReply {
    let (advice, leader) = match advice {
        Advice::Nowhere => (v3::Advice::Nowhere, None),
        Advice::Elsewhere => (v3::Advice::Elsewhere, None),
        Advice::Leader(leader) => (v3::Advice::Leader, Some(leader.0.into())),
        Advice::Order => (v3::Advice::Order, None),
    };
    let outcome = Some(query_reply::Outcome::Error(reason));
    QueryReply { id, outcome, advice: advice.into(), leader, ..QueryReply::default() }
}

/// A question as the node takes it; what is wrong with it, when it is of a later version.
pub fn question(request: QueryRequest) -> Result<ClientRequest, QueryReply> {
    let QueryRequest { id, query: bytes, consistency, ack } = request;
    let Ok(consistency) = v3::Consistency::try_from(consistency) else {
        let reason = "it wants a consistency that this node does not know: upgrade the node".to_string();
        return Err(unanswered(id, reason, Advice::Order));
    };
    match consistency {
        v3::Consistency::Stale => Ok(ClientRequest::Query { id, bytes }),
        v3::Consistency::Linearizable => match self::ack(Some(&ack)) {
            Some(ack) => Ok(ClientRequest::Read { id, bytes, ack }),
            None => {
                let reason = "it wants an acknowledgement that this node does not know: upgrade the node";
                Err(unanswered(id, reason.to_string(), Advice::Order))
            }
        },
    }
}

pub(crate) fn order(id: u64, outcome: OrderOutcome) -> OrderReply {
    let outcome = match outcome {
        OrderOutcome::Done { sequence } => order_reply::Outcome::InForceFrom(sequence.0),
        OrderOutcome::Refused { reason } => order_reply::Outcome::Refused(reason),
    };
    OrderReply { id, outcome: Some(outcome) }
}

pub(crate) fn status(id: u64, status: Status) -> StatusReply {
    let hash = |hash: &[u8; 32]| Bytes::copy_from_slice(hash);
    let peers = status.peers.into_iter().map(|peer| PeerStatus {
        id: peer.id.0.into(),
        view: peer.view.0,
        executed: peer.executed.0,
        stable: peer.stable.0,
        silent_ms: (peer.silent_ms != u64::MAX).then_some(peer.silent_ms),
    });
    let segment = status.segment.map(|segment| SegmentStatus {
        term: segment.term.0,
        leader: segment.leader.map(|leader| leader.0.into()),
        last: segment.last.0,
        committed: segment.committed.0,
        applied: segment.applied.0,
        anchored: segment.anchored.0,
        anchored_position: segment.anchored_position.0,
        sealed: segment.sealed,
        suspecting: segment.suspecting,
    });
    let last_switch = status.last_switch.map(|switch| SwitchStatus {
        epoch: switch.epoch.0,
        to: protocol(switch.to).into(),
        planned: switch.planned,
        sequence: switch.sequence.0,
        gap_us: switch.gap_us,
        at_unix_ms: switch.at_unix_ms,
        cause: switch.cause,
    });
    StatusReply {
        id,
        replica: status.replica.0.into(),
        incarnation: status.incarnation.0,
        n: status.n.into(),
        f: status.f.into(),
        view: status.view.0,
        view_active: status.view_active,
        primary: status.primary.0.into(),
        executed: status.executed.0,
        stable: status.stable.0,
        highest_seen: status.highest_seen.0,
        position: status.position.0,
        chain: hash(&status.chain.0),
        state_digest_sequence: status.state_digest_sequence.0,
        state_digest: hash(&status.state_digest.0),
        pending_frames: status.pending_frames,
        pending_bytes: status.pending_bytes,
        executed_commands: status.executed_commands,
        log_time_ms: status.log_time_ms,
        voter: status.voter,
        transferring: status.transferring,
        not_ready: status.not_ready,
        counters: status.counters.into_iter().map(|(name, value)| Counter { name, value }).collect(),
        peers: peers.collect(),
        vote_key: hash(&status.vote_key.0),
        mode: mode(status.mode).into(),
        trust: trust(status.trust).into(),
        next_order: status.next_order,
        epoch: status.epoch.0,
        protocol: protocol(status.protocol).into(),
        orderer: status.orderer.map(|orderer| orderer.0.into()),
        segment,
        failovers: status.failovers,
        last_switch,
        no_segment: status.no_segment,
        sync: status.sync.map(crate::sync_convert::status),
        // Not the core's to tell: see `Port::add_hints`.
        hints: Vec::new(),
        hint_drops: Vec::new(),
        raft: status.raft,
        default_ack: match status.default_ack {
            Ack::Majority => v3::Ack::Majority.into(),
            Ack::Anchored => v3::Ack::Anchored.into(),
        },
    }
}

fn mode(mode: NetworkMode) -> v3::NetworkMode {
    match mode {
        NetworkMode::Datacenter => v3::NetworkMode::Datacenter,
        NetworkMode::Internet => v3::NetworkMode::Internet,
        NetworkMode::Hybrid => v3::NetworkMode::Hybrid,
    }
}

fn trust(trust: Trust) -> v3::Trust {
    match trust {
        Trust::Crash => v3::Trust::Crash,
        Trust::Byzantine => v3::Trust::Byzantine,
    }
}

fn protocol(protocol: ProtocolName) -> v3::Protocol {
    match protocol {
        ProtocolName::Pbft => v3::Protocol::Pbft,
        ProtocolName::Raft => v3::Protocol::Raft,
    }
}

/// What a frame's sender wants; `None` for a word of a later version.
pub(crate) fn ack(wire: Option<&i32>) -> Option<Option<Ack>> {
    let Some(wire) = wire else { return Some(None) };
    match v3::Ack::try_from(*wire).ok()? {
        v3::Ack::Policy => Some(None),
        v3::Ack::Majority => Some(Some(Ack::Majority)),
        v3::Ack::Anchored => Some(Some(Ack::Anchored)),
    }
}

/// The answer to a frame that is not handed to the node. Read only now: frames that go through are not decoded here.
pub(crate) fn not_taken(frame: &Bytes, reason: &str) -> Item {
    match ClientFrame::decode(frame.clone()) {
        Ok(checked) => refused_here(checked.session(), checked.sequences().start, reason, true),
        Err(error) => Item::Malformed(error.to_string()),
    }
}

fn refused_here(session: SessionId, first: u64, reason: &str, definite: bool) -> Item {
    Item::Refused(Refused {
        session: Bytes::copy_from_slice(&session.0),
        first,
        refusal: Bytes::new(),
        reason: reason.to_string(),
        definite,
    })
}
