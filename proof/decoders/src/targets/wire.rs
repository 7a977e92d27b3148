//! The gRPC messages and what both ends do with the bytes in them: the API hands frames to the core, a client reads
//! replies and refusals of a node that may lie.

use crate::Seal::Form;
use crate::keys::START_MS;
use crate::meter::bounded;
use crate::world::{commands_frame, open_frame, operator_orders, world};
use crate::{Target, Verdict};
use bytes::Bytes;
use dwcp_base::{decode, encode};
use dwcp_log::OperatorOrder;
use dwcp_proto::v3::{
    self, Attach, ClientMessage, OrderReply, OrderRequest, QueryReply, QueryRequest, Refused, ServerMessage,
    StatusReply, StatusRequest, order_reply, query_reply,
};
use dwcp_replica::{ClientReply, ClientRequest, ExecutedReply};
use dwcp_state::{ClientFrame, Refusal, SessionId};
use prost::Message;

pub static CLIENT_MESSAGE: Target = Target::new(
    "client_message",
    run_client_message,
    client_messages,
    Form(|b| ClientMessage::decode(b).is_ok()),
)
.bombs(varint_bombs);
pub static SERVER_MESSAGE: Target = Target::new(
    "server_message",
    run_server_message,
    server_messages,
    Form(|b| ServerMessage::decode(b).is_ok()),
)
.bombs(varint_bombs);

fn run_client_message(bytes: &[u8]) -> Verdict {
    let Ok(message) = bounded(bytes, || ClientMessage::decode(bytes)) else { return Verdict::Refused };
    let _ = message.items();
    for frame in &message.frames {
        let claimed = SessionId::claimed_by(frame);
        if let Ok(checked) = bounded(frame, || ClientFrame::decode(frame.clone())) {
            assert_eq!(claimed, Some(checked.session()), "a frame claims the session it belongs to");
        }
    }
    for order in &message.orders {
        let _ = bounded(&order.order, || decode::<OperatorOrder>(&order.order));
    }
    message.queries.iter().for_each(asked);
    survives(&message);
    Verdict::Accepted
}

fn run_server_message(bytes: &[u8]) -> Verdict {
    let Ok(message) = bounded(bytes, || ServerMessage::decode(bytes)) else { return Verdict::Refused };
    let _ = message.items();
    for reply in &message.executed {
        if let Ok(reply) = bounded(reply, || decode::<ExecutedReply>(reply)) {
            let _ = reply.leaf_hash();
        }
    }
    for refused in &message.refused {
        let _ = bounded(&refused.refusal, || decode::<Refusal>(&refused.refusal));
    }
    bounded(bytes, || message.statuses.iter().for_each(shown));
    survives(&message);
    Verdict::Accepted
}

/// The node takes a question as it was meant, or says which it was that it does not take.
fn asked(query: &QueryRequest) {
    match dwcp_api::reading::question(query.clone()) {
        Ok(ClientRequest::Query { id, bytes }) => {
            assert_eq!(
                (id, &bytes, query.consistency),
                (query.id, &query.query, v3::Consistency::Stale.into())
            );
        }
        Ok(ClientRequest::Read { id, bytes, .. }) => {
            let consistency = v3::Consistency::Linearizable.into();
            assert_eq!((id, &bytes, query.consistency), (query.id, &query.query, consistency));
            assert!(v3::Ack::try_from(query.ack).is_ok(), "an acknowledgement that nobody knows is read");
        }
        Ok(other) => panic!("a question became {other:?}"),
        Err(reply) => {
            assert_eq!(reply.id, query.id);
            let Some(query_reply::Outcome::Error(reason)) = reply.outcome else {
                panic!("no reason: {reply:?}")
            };
            assert!(!reason.is_empty() && !reason.contains('\n'), "a refusal is one line: {reason:?}");
        }
    }
}

/// What a client shows of a node's word about itself is what was said.
fn shown(wire: &StatusReply) {
    let mut said = wire.clone();
    let Some(hints) = dwcp_client::reading::hints(&mut said) else { return };
    let Some(status) = dwcp_client::reading::status(said) else { return };
    assert_eq!((hints.peers.len(), status.peers.len()), (wire.hints.len(), wire.peers.len()));
    assert_eq!((u32::from(status.replica.0), &status.chain.0[..]), (wire.replica, &wire.chain[..]));
    assert_eq!(status.segment.is_some(), wire.segment.is_some());
    assert_eq!(status.sync.is_some(), wire.sync.is_some());
}

/// Protobuf has many encodings of one value; the value itself must survive.
pub(super) fn survives<M: Message + Default + PartialEq>(message: &M) {
    let again = M::decode(&message.encode_to_vec()[..]).expect("own bytes");
    assert!(again == *message, "a message does not survive its own bytes");
}

fn client_messages() -> Vec<Vec<u8>> {
    let orders = operator_orders();
    let orders = (2..)
        .zip(&orders)
        .map(|(id, order)| OrderRequest { id, order: Bytes::from(encode(order)) })
        .collect();
    let query = Bytes::from_static(&[0, 1, 2]);
    let message = ClientMessage {
        attaches: vec![Attach {
            session_key: Bytes::from_static(&[3; 32]),
            signature: Bytes::from_static(&[4; 64]),
        }],
        frames: vec![open_frame(0, 7, START_MS), commands_frame(0, 9, vec![Bytes::from_static(&[3])])],
        frame_acks: vec![v3::Ack::Policy.into(), v3::Ack::Anchored.into()],
        queries: vec![
            QueryRequest { id: 1, query: query.clone(), consistency: 1, ack: 2 },
            QueryRequest { id: 2, query, consistency: 0, ack: 0 },
        ],
        orders,
        statuses: vec![StatusRequest { id: 3 }],
    };
    let only = ClientMessage { frames: message.frames.clone(), ..ClientMessage::default() };
    vec![message.encode_to_vec(), only.encode_to_vec(), Vec::new()]
}

fn server_messages() -> Vec<Vec<u8>> {
    let executed = world().replies.iter().filter_map(|reply| match reply {
        ClientReply::Executed(reply) => Some(Bytes::from(encode(reply))),
        _ => None,
    });
    let message = ServerMessage {
        executed: executed.take(3).collect(),
        refused: vec![Refused {
            session: Bytes::from_static(&[1; 16]),
            first: 4,
            refusal: Bytes::from(encode(&Refusal::SessionExpired)),
            reason: "expired".into(),
            definite: false,
        }],
        challenge: Bytes::from_static(&[2; 32]),
        malformed: vec!["no frame".into()],
        queries: vec![
            QueryReply {
                id: 1,
                outcome: Some(query_reply::Outcome::Result(Bytes::from_static(b"r"))),
                label: v3::ReadLabel::Crash.into(),
                position: 7,
                view: 2,
                ..QueryReply::default()
            },
            QueryReply {
                id: 2,
                outcome: Some(query_reply::Outcome::Error("e".into())),
                advice: v3::Advice::Leader.into(),
                leader: Some(1),
                ..QueryReply::default()
            },
        ],
        orders: vec![OrderReply { id: 1, outcome: Some(order_reply::Outcome::InForceFrom(9)) }],
        statuses: vec![status_reply()],
    };
    let small = ServerMessage { queries: message.queries.clone(), ..ServerMessage::default() };
    let status = ServerMessage { statuses: message.statuses.clone(), ..ServerMessage::default() };
    vec![message.encode_to_vec(), small.encode_to_vec(), status.encode_to_vec()]
}

/// One that a client shows.
fn status_reply() -> StatusReply {
    let hash = || Bytes::from_static(&[1; 32]);
    let peer =
        v3::SyncPeerStatus { id: 3, lag_frames: 2, fault: "f".into(), ..v3::SyncPeerStatus::default() };
    let refused = vec![v3::Counter { name: "late".into(), value: 2 }];
    StatusReply {
        id: 1,
        n: 4,
        f: 1,
        chain: hash(),
        state_digest: hash(),
        vote_key: hash(),
        mode: v3::NetworkMode::Hybrid.into(),
        trust: v3::Trust::Crash.into(),
        protocol: v3::Protocol::Raft.into(),
        default_ack: v3::Ack::Majority.into(),
        orderer: Some(2),
        peers: vec![v3::PeerStatus { id: 2, silent_ms: Some(4), ..v3::PeerStatus::default() }],
        segment: Some(v3::SegmentStatus { term: 3, leader: Some(2), ..v3::SegmentStatus::default() }),
        last_switch: Some(v3::SwitchStatus {
            epoch: 4,
            to: v3::Protocol::Pbft.into(),
            cause: "c".into(),
            ..v3::SwitchStatus::default()
        }),
        hints: vec![v3::HintStatus { id: 1, standing: "alive".into(), ..v3::HintStatus::default() }],
        hint_drops: refused.clone(),
        sync: Some(v3::SyncStatus { keys: 7, peers: vec![peer], refused, ..v3::SyncStatus::default() }),
        ..StatusReply::default()
    }
}

/// Lengths beyond the message, groups within groups, and endless numbers.
fn varint_bombs() -> Vec<Vec<u8>> {
    let endless = vec![0xff; 4_096];
    let groups = vec![0x7b; 100_000];
    let long = vec![0x12, 0xff, 0xff, 0xff, 0xff, 0x07, 1];
    vec![endless, groups, long]
}
