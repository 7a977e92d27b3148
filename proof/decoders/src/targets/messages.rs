//! What replicas send each other and write to their logs: decoding, the one encoding, and memory in proportion.

use crate::Seal::{Form, Sums};
use crate::meter::bounded;
use crate::seal::Sealer;
use crate::story::Step;
use crate::world::{member_order, operator_orders, world};
use crate::{Target, Verdict};
use borsh::{BorshDeserialize, BorshSerialize};
use bytes::Bytes;
use dwcp_base::{ReplicaId, SigningKind, decode, encode};
use dwcp_log::{OperatorOrder, Proposal};
use dwcp_pbft::message::{Message, NewView, SignedBody, ViewChange};
use dwcp_pbft::record::Record;
use dwcp_replica::{ClientReply, Control, ExecutedReply, LogRecord, PeerMessage, SnapshotMeta};
use std::collections::BTreeMap;

pub static PEER_MESSAGE: Target =
    Target::new("peer_message", run_peer_message, peer_messages, Sums(seal_peer_message)).bombs(peer_bombs);
pub static RECORD: Target = Target::new("record", run_record, records, Sums(|b| Sealer::of(b).record(b)));
pub static VIEW_CHANGE: Target =
    Target::new("view_change", plain::<ViewChange>, view_changes, Sums(seal_view_change));
pub static NEW_VIEW: Target = Target::new("new_view", plain::<NewView>, new_views, Sums(seal_new_view));
pub static PROPOSAL: Target =
    Target::new("proposal", run_proposal, proposals, Sums(seal_proposal)).bombs(proposal_bombs);
pub static OPERATOR_ORDER: Target = Target::new("operator_order", run_order, orders, Sums(seal_order));
pub static SNAPSHOT_META: Target =
    Target::new("snapshot_meta", plain::<SnapshotMeta>, metas, Sums(seal_meta));
pub static CONTROL: Target = Target::new("control", plain::<Control>, controls, Form(reads::<Control>));
pub static EXECUTED_REPLY: Target =
    Target::new("executed_reply", run_reply, replies, Sums(|b| Sealer::of(b).executed_reply(b)));

/// Decodes; what decodes must be the one encoding of itself.
fn plain<T: BorshDeserialize + BorshSerialize>(bytes: &[u8]) -> Verdict {
    Verdict::of(checked::<T>(bytes).is_some())
}

pub(crate) fn reads<T: BorshDeserialize>(bytes: &[u8]) -> bool {
    decode::<T>(bytes).is_ok()
}

pub(crate) fn checked<T: BorshDeserialize + BorshSerialize>(bytes: &[u8]) -> Option<T> {
    let value = bounded(bytes, || decode::<T>(bytes)).ok()?;
    assert!(encode(&value) == bytes, "bytes were accepted that are not the encoding of what they mean");
    Some(value)
}

/// What lies inside is read as its receiver reads it, and counts as the message does.
fn run_peer_message(bytes: &[u8]) -> Verdict {
    let Some(message) = checked::<PeerMessage>(bytes) else { return Verdict::Refused };
    match message {
        PeerMessage::Pbft(Message::ViewChange(signed)) => plain::<ViewChange>(&signed.body),
        PeerMessage::Pbft(Message::NewView(signed)) => plain::<NewView>(&signed.body),
        PeerMessage::Pbft(Message::PrePrepare { payload, .. } | Message::Payload { payload, .. }) => {
            run_proposal(&payload)
        }
        _ => Verdict::Accepted,
    }
}

fn run_record(bytes: &[u8]) -> Verdict {
    let shared = Bytes::copy_from_slice(bytes);
    let Some(record) = bounded(bytes, || LogRecord::read(&shared)) else { return Verdict::Refused };
    assert!(record_bytes(&record) == bytes, "a record was accepted that is not its own encoding");
    if let LogRecord::Segment { bytes, .. } = record {
        return Verdict::of(bounded(&bytes, || dwcp_replica::raft::Record::from_bytes(&bytes)).is_ok());
    }
    Verdict::Accepted
}

/// A record as it is written.
pub(crate) fn record_bytes(record: &LogRecord) -> Vec<u8> {
    match record {
        LogRecord::Root(record) => LogRecord::root(record),
        LogRecord::Segment { epoch, bytes } => LogRecord::segment(*epoch, bytes),
        LogRecord::Fetched(record) => LogRecord::fetched(record),
        LogRecord::Sync { number, bytes } => LogRecord::sync(*number, bytes),
        LogRecord::SyncSnapshot { id, part, parts, needs, bytes } => {
            LogRecord::sync_snapshot(*id, *part, *parts, *needs, bytes)
        }
    }
}

fn run_proposal(bytes: &[u8]) -> Verdict {
    let payload = Bytes::copy_from_slice(bytes);
    let Ok(read) = bounded(bytes, || Proposal::from_payload(&payload)) else { return Verdict::Refused };
    if let Some(proposal) = read {
        assert!(proposal.to_payload() == payload, "a proposal was accepted that is not its own encoding");
    }
    Verdict::Accepted
}

fn run_order(bytes: &[u8]) -> Verdict {
    let Some(order) = checked::<OperatorOrder>(bytes) else { return Verdict::Refused };
    let (key, hash, signature) = order.signature_item(crate::keys::cluster());
    Verdict::of(crate::keys::sign(&key, &hash) == signature)
}

fn run_reply(bytes: &[u8]) -> Verdict {
    let Some(reply) = checked::<ExecutedReply>(bytes) else { return Verdict::Refused };
    let key = crate::keys::vote_key(reply.replica, reply.incarnation);
    let signer = crate::keys::Signer(key);
    let cluster = crate::keys::cluster();
    if !reply.verify(cluster, &key, &signer) {
        return Verdict::Refused;
    }
    // The same word under another key is worth nothing.
    assert!(!reply.verify(cluster, &crate::keys::admin_key(), &signer), "any key verifies");
    Verdict::Accepted
}

fn seal_peer_message(bytes: &mut Vec<u8>) -> bool {
    Sealer::of(bytes).peer_message(bytes, ReplicaId(0))
}

fn seal_body<T: BorshDeserialize + BorshSerialize>(bytes: &mut Vec<u8>, kind: SigningKind) -> bool {
    if decode::<T>(bytes).is_err() {
        return false;
    }
    let mut signed =
        SignedBody { body: Bytes::copy_from_slice(bytes), signature: dwcp_base::Signature([0; 64]) };
    Sealer::of(bytes).body(kind, &mut signed, ReplicaId(0));
    *bytes = signed.body.to_vec();
    true
}

fn seal_view_change(bytes: &mut Vec<u8>) -> bool {
    seal_body::<ViewChange>(bytes, SigningKind::ViewChange)
}

fn seal_new_view(bytes: &mut Vec<u8>) -> bool {
    seal_body::<NewView>(bytes, SigningKind::NewView)
}

fn seal_proposal(bytes: &mut Vec<u8>) -> bool {
    let mut payload = Bytes::copy_from_slice(bytes);
    let good = Sealer::of(bytes).payload(&mut payload);
    *bytes = payload.to_vec();
    good
}

fn seal_order(bytes: &mut Vec<u8>) -> bool {
    let Ok(mut order) = decode::<OperatorOrder>(bytes) else { return false };
    Sealer::of(bytes).operator_order(&mut order);
    *bytes = encode(&order);
    true
}

fn seal_meta(bytes: &mut Vec<u8>) -> bool {
    let Ok(mut meta) = decode::<SnapshotMeta>(bytes) else { return false };
    Sealer::of(bytes).snapshot_meta(&mut meta);
    *bytes = encode(&meta);
    true
}

/// The first two of each kind, told by the first `tags` bytes, in order of appearance.
pub(crate) fn few_of_each(all: impl Iterator<Item = Vec<u8>>, tags: usize) -> Vec<Vec<u8>> {
    let mut seen: BTreeMap<Vec<u8>, usize> = BTreeMap::new();
    all.filter(|bytes| bytes.len() < 20_000)
        .filter(|bytes| {
            let count = seen.entry(bytes[..bytes.len().min(tags)].to_vec()).or_default();
            *count += 1;
            *count <= 2
        })
        .collect()
}

/// Messages of every kind that the honest ever sent.
pub(crate) fn peer_messages() -> Vec<Vec<u8>> {
    let world = world();
    let heard = [
        &world.heir_normal,
        &world.heir_change,
        &world.backup_normal,
        &world.backup_change,
        &world.sleeper_wakes,
    ];
    let bytes = heard.into_iter().flatten().filter_map(|step| match step {
        Step::Peer { bytes, .. } => Some(bytes.clone()),
        _ => None,
    });
    let rare = [
        PeerMessage::FetchOffer { at_least: dwcp_base::Sequence(8) },
        PeerMessage::FetchChunk { sequence: dwcp_base::Sequence(8), index: 3, offset: 0 },
        PeerMessage::NoChunk { sequence: dwcp_base::Sequence(8), index: 3 },
        PeerMessage::Pbft(Message::FetchDecided { from: dwcp_base::Sequence(1) }),
        PeerMessage::Pbft(Message::Introduce { boot: 7 }),
        PeerMessage::Pbft(Message::FetchPayload {
            sequence: dwcp_base::Sequence(3),
            digest: dwcp_base::Hash::ZERO,
        }),
        PeerMessage::Pbft(Message::FetchViewChange { hash: dwcp_base::Hash::ZERO }),
        PeerMessage::Pbft(Message::Payload { sequence: dwcp_base::Sequence(21), payload: Bytes::new() }),
    ];
    let orders = operator_orders().into_iter().map(|order| encode(&PeerMessage::Order(order)));
    // A message's kind, and below it a PBFT message's kind and a vote's.
    few_of_each(bytes.chain(rare.iter().map(encode)).chain(orders), 3)
}

fn records() -> Vec<Vec<u8>> {
    few_of_each(world().records.iter().map(|record| record.to_vec()), 2)
}

fn bodies(wanted: fn(&Message) -> Option<&SignedBody>) -> Vec<Vec<u8>> {
    let found = peer_messages().into_iter().filter_map(|bytes| match decode::<PeerMessage>(&bytes) {
        Ok(PeerMessage::Pbft(message)) => wanted(&message).map(|signed| signed.body.to_vec()),
        _ => None,
    });
    found.collect()
}

fn view_changes() -> Vec<Vec<u8>> {
    bodies(|message| if let Message::ViewChange(signed) = message { Some(signed) } else { None })
}

fn new_views() -> Vec<Vec<u8>> {
    bodies(|message| if let Message::NewView(signed) = message { Some(signed) } else { None })
}

fn proposals() -> Vec<Vec<u8>> {
    let payloads = world().records.iter().filter_map(|record| match LogRecord::read(record) {
        Some(LogRecord::Root(Record::PrePrepared { payload: Some(payload), .. })) => Some(payload.to_vec()),
        _ => None,
    });
    let mut seeds: Vec<Vec<u8>> = payloads.filter(|payload| payload.len() < 5_000).collect();
    seeds.sort_by_key(|payload| std::cmp::Reverse(payload.len()));
    seeds.dedup();
    seeds.truncate(6);
    seeds
}

/// A list of entries that are one byte each: the most memory for the fewest bytes.
fn noops(bytes: usize) -> Vec<u8> {
    let mut bomb = encode(&Proposal { time: dwcp_base::LogTime(1), entries: Vec::new() });
    bomb.truncate(8);
    bomb.extend_from_slice(&u32::try_from(bytes).expect("small").to_le_bytes());
    bomb.resize(12 + bytes, 10);
    bomb
}

fn proposal_bombs() -> Vec<Vec<u8>> {
    let mut lying = noops(4);
    lying[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
    // As large as a proposal may be.
    vec![lying, noops(dwcp_base::limits::PROPOSAL_BYTES_MAX - 12)]
}

/// Every four bytes of every message of the honest, made the longest length there is.
fn peer_bombs() -> Vec<Vec<u8>> {
    let mut bombs = Vec::new();
    for seed in peer_messages().into_iter().filter(|seed| seed.len() < 2_000) {
        for at in 0..seed.len().saturating_sub(4).min(300) {
            let mut bomb = seed.clone();
            bomb[at..at + 4].copy_from_slice(&[255, 255, 255, 127]);
            bombs.push(bomb);
        }
    }
    bombs
}

fn orders() -> Vec<Vec<u8>> {
    operator_orders().iter().map(encode).collect()
}

fn metas() -> Vec<Vec<u8>> {
    let mut meta: SnapshotMeta = decode(&world().snapshot.0).expect("an honest snapshot");
    let whole = encode(&meta);
    meta.digests.truncate(5);
    meta.orders.push(member_order());
    vec![encode(&meta), whole]
}

fn controls() -> Vec<Vec<u8>> {
    vec![world().snapshot.1[&0].clone()]
}

fn replies() -> Vec<Vec<u8>> {
    let replies = world().replies.iter().filter_map(|reply| match reply {
        ClientReply::Executed(reply) => Some(encode(reply)),
        _ => None,
    });
    let mut seeds: Vec<Vec<u8>> = replies.collect();
    seeds.sort_by_key(|seed| std::cmp::Reverse(seed.len()));
    seeds.dedup();
    seeds.truncate(6);
    seeds
}
