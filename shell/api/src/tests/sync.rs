//! The `StateSync` service over real sockets: every operation and every answer arrives as it was said, and only those write
//! who prove a writer's key.

use super::*;
use dwcp_proto::v3::state_sync_client::StateSyncClient;
use dwcp_proto::v3::sync_operation::Op as WireOp;
use dwcp_proto::v3::sync_plain::Form;
use dwcp_proto::v3::sync_view::View as WireView;
use dwcp_replica::sync::values::{Conflict, Dot, Kind, Op, Origin, Outcome, Plain, View as Value, Write};
use dwcp_replica::sync::{Road, SyncPeerStatus, SyncReply, SyncRequest, SyncStatus, SyncWritten};
use std::collections::BTreeMap;

fn json(text: &str) -> v3::SyncPlain {
    v3::SyncPlain { form: Some(Form::Json(text.into())) }
}

fn raw(bytes: &'static [u8]) -> v3::SyncPlain {
    v3::SyncPlain { form: Some(Form::Raw(Bytes::from_static(bytes))) }
}

fn plain(text: &str) -> Plain {
    Plain::json(text).expect("JSON")
}

fn operation(op: Option<WireOp>) -> v3::SyncOperation {
    v3::SyncOperation { key: Bytes::from_static(b"k"), path: vec![Bytes::from_static(b"f")], op }
}

fn writing(op: Option<WireOp>) -> v3::SyncWriteRequest {
    v3::SyncWriteRequest { operations: vec![operation(op)], wait: 2, timeout_ms: 0 }
}

impl Served {
    async fn sync(&self, identity: Option<&TlsIdentity>) -> StateSyncClient<Channel> {
        let channel = channel(self.address, self.key, identity).await.expect("pinned");
        StateSyncClient::new(channel)
    }

    /// What the node answers from now on.
    fn answers(&self, replies: impl IntoIterator<Item = SyncReply>) {
        *self.node.0.sync_replies.lock().expect("no panic") = replies.into_iter().collect();
    }

    /// What it was asked.
    fn asked(&self) -> Vec<SyncRequest> {
        std::mem::take(&mut *self.node.0.sync_requests.lock().expect("no panic"))
    }
}

/// A node to which everybody of the registry speaks, and who that is.
async fn served_by_role() -> (Served, TlsIdentity, TlsIdentity) {
    let (writer, reader) =
        (TlsIdentity::from_seed(&[2; 32]).expect("a key"), TlsIdentity::from_seed(&[3; 32]).expect("a key"));
    let served = serve(Readers::Principals, Limits::default()).await;
    let principal = |name: &str, identity: &TlsIdentity, role| Principal {
        name: name.into(),
        key: PublicKey(identity.public_key()),
        role,
    };
    *served.node.0.principals.lock().expect("no panic") =
        vec![principal("w", &writer, Role::Writer), principal("r", &reader, Role::Reader)];
    (served, writer, reader)
}

#[tokio::test]
async fn every_operation_arrives_as_it_was_said() {
    let (served, writer, _) = served_by_role().await;
    let mut client = served.sync(Some(&writer)).await;
    let rows = [
        (WireOp::Put(json("{\"a\": 1.50}")), Op::Put(plain("{\"a\": 1.50}"))),
        (WireOp::Put(raw(b"\xff\x00")), Op::Put(Plain::bytes(vec![0xff, 0]).expect("short"))),
        (WireOp::PutMulti(json("1")), Op::PutMulti(plain("1"))),
        (WireOp::Grow(u64::MAX), Op::Grow(u64::MAX)),
        (WireOp::Adjust(i64::MIN), Op::Adjust(i64::MIN)),
        (WireOp::AddForever(json("1")), Op::AddForever(plain("1"))),
        (WireOp::AddOnce(json("1")), Op::AddOnce(plain("1"))),
        (WireOp::RemoveForGood(json("1")), Op::RemoveForGood(plain("1"))),
        (WireOp::Add(json("1")), Op::Add(plain("1"))),
        (WireOp::Remove(json("1")), Op::Remove(plain("1"))),
        (
            WireOp::Insert(v3::SyncInsert { index: 3, value: Some(json("1")) }),
            Op::Insert { index: 3, value: plain("1") },
        ),
        (WireOp::Erase(4), Op::Erase { index: 4 }),
        (WireOp::Delete(true), Op::Delete),
        (WireOp::Settle(true), Op::Settle),
    ];
    for (wire, op) in rows {
        let written = SyncWritten { road: Road::Gossip, last: 5, nodes: 2, latency_us: 6 };
        served.answers([SyncReply::Written(written)]);
        let told = client.write(writing(Some(wire))).await.expect("written").into_inner();
        assert_eq!((told.road(), told.last, told.nodes, told.latency_us), (v3::SyncRoad::Gossip, 5, 2, 6));
        let writes = vec![Write::at("k", ["f"], op)];
        assert_eq!(served.asked(), [SyncRequest::Write { writes, wait: 2, timeout_ms: 0 }]);
    }
}

/// What is read is read before it is known who asks, and holds many times its bytes.
#[tokio::test]
async fn a_request_longer_than_any_write_is_not_read() {
    let (served, writer, _) = served_by_role().await;
    let mut client = served.sync(Some(&writer)).await;
    let empty = |count| v3::SyncWriteRequest {
        operations: vec![v3::SyncOperation::default(); count],
        ..writing(None)
    };
    // Two bytes an operation, and two each for the other fields.
    let most = dwcp_proto::SYNC_REQUEST_BYTES_MAX / 2;
    let read = client.write(empty(most - 2)).await.expect_err("there are too many");
    assert_eq!(read.code(), Code::InvalidArgument, "{read:?}");
    let longer = client.write(empty(most)).await.expect_err("it is too long");
    assert_eq!(longer.code(), Code::OutOfRange, "{longer:?}");
    // The longest value.
    let long = 128 * 1024;
    let value = || v3::SyncPlain { form: Some(Form::Raw(vec![7; long].into())) };
    let two = vec![operation(Some(WireOp::Put(value()))), operation(Some(WireOp::Put(value())))];
    served.answers([SyncReply::Written(SyncWritten { road: Road::Log, last: 1, nodes: 1, latency_us: 1 })]);
    let request = v3::SyncWriteRequest { operations: two, ..writing(None) };
    client.write(request).await.expect("more than a frame holds is read, for the core to judge");
    assert_eq!(served.asked().len(), 1);
}

#[tokio::test]
async fn operations_that_cannot_be_are_refused_before_the_node_hears_of_them() {
    let (served, writer, _) = served_by_role().await;
    let mut client = served.sync(Some(&writer)).await;
    let many =
        v3::SyncWriteRequest { operations: vec![operation(Some(WireOp::Grow(1))); 8_193], ..writing(None) };
    for (request, words) in [
        (writing(None), "an operation that does nothing"),
        (writing(Some(WireOp::Put(v3::SyncPlain { form: None }))), "neither JSON nor bytes"),
        (writing(Some(WireOp::Put(json("{")))), "not a JSON document"),
        (
            writing(Some(WireOp::Insert(v3::SyncInsert { index: 0, value: None }))),
            "an insert without a value",
        ),
        (v3::SyncWriteRequest { wait: 256, ..writing(Some(WireOp::Grow(1))) }, "at most 31 nodes"),
        (many, "more than 8192 operations: split them"),
    ] {
        let status = client.write(request).await.expect_err("refused");
        assert!(
            status.code() == Code::InvalidArgument && status.message().contains(words),
            "{words}: {status}"
        );
    }
    let compare = v3::SyncCompareRequest { peers: vec![256], timeout_ms: 1 };
    assert_eq!(client.compare(compare).await.expect_err("refused").code(), Code::InvalidArgument);
    assert_eq!(served.asked(), [], "the node heard of none");
}

#[tokio::test]
async fn writers_write_readers_read_and_strangers_do_neither() {
    let (served, writer, reader) = served_by_role().await;
    let stranger = TlsIdentity::from_seed(&[4; 32]).expect("a key");
    let mut heard = Vec::new();
    for (who, reads, writes) in [
        (Some(&writer), true, true),
        (Some(&reader), true, false),
        (Some(&stranger), false, false),
        (None, false, false),
    ] {
        let mut client = served.sync(who).await;
        let refused = || SyncReply::Refused { reason: "no".into(), definite: true };
        served.answers(std::iter::repeat_with(refused).take(8));
        let key = || Bytes::from_static(b"k");
        let codes = [
            client.write(writing(Some(WireOp::Grow(1)))).await.expect_err("refused").code(),
            client.get(v3::SyncGetRequest { key: key(), path: vec![] }).await.expect_err("refused").code(),
            client.list(v3::SyncListRequest::default()).await.expect_err("refused").code(),
            client.conflicts(v3::SyncConflictsRequest { limit: 1 }).await.expect_err("refused").code(),
            client.stand(v3::SyncStandRequest {}).await.expect_err("refused").code(),
            client.compare(v3::SyncCompareRequest::default()).await.expect_err("refused").code(),
            match client.watch(v3::SyncWatchRequest { prefix: key() }).await {
                Ok(stream) => stream.into_inner().message().await.expect_err("refused").code(),
                Err(status) => status.code(),
            },
        ];
        // The node's refusal, where the question came so far.
        let code = |may| if may { Code::FailedPrecondition } else { Code::PermissionDenied };
        let expected = [writes, reads, reads, reads, reads, reads, reads].map(code);
        assert_eq!(codes, expected);
        heard.push(served.asked().len());
    }
    assert_eq!(heard, [7, 6, 0, 0]);
}

#[tokio::test]
async fn every_answer_arrives_as_the_node_gave_it() {
    let served = serve(Readers::Anybody, Limits::default()).await;
    let mut client = served.sync(None).await;
    let get = || v3::SyncGetRequest { key: Bytes::from_static(b"k"), path: vec![Bytes::from_static(b"f")] };
    let plains = |values: Vec<v3::SyncPlain>| v3::SyncPlains { values };
    let field = v3::SyncField {
        name: Bytes::from_static(b"f"),
        view: Some(v3::SyncView { view: Some(WireView::Count("1".into())) }),
    };
    let rows = [
        (Value::Register(plain("1")), WireView::Register(json("1"))),
        (Value::Register(Plain::bytes(vec![0xff]).expect("short")), WireView::Register(raw(b"\xff"))),
        (
            Value::Siblings(vec![plain("1"), plain("2")]),
            WireView::Siblings(plains(vec![json("1"), json("2")])),
        ),
        (Value::Count(-(1 << 100)), WireView::Count((-(1_i128 << 100)).to_string())),
        (Value::Set([plain("2"), plain("1")].into()), WireView::Set(plains(vec![json("1"), json("2")]))),
        (Value::List(vec![plain("2"), plain("1")]), WireView::List(plains(vec![json("2"), json("1")]))),
        (
            Value::Map(BTreeMap::from([(Bytes::from_static(b"f"), Value::Count(1))])),
            WireView::Map(v3::SyncFields { fields: vec![field] }),
        ),
    ];
    for (view, wire) in rows {
        served.answers([SyncReply::Value {
            view: Some(view),
            kinds: vec![Kind::LwwRegister, Kind::List],
            siblings: 2,
        }]);
        let told = client.get(get()).await.expect("answered").into_inner();
        assert_eq!(told.view.and_then(|view| view.view), Some(wire));
        assert_eq!((told.kinds, told.siblings), (vec!["register".to_string(), "list".into()], 2));
    }
    served.answers([SyncReply::Value { view: None, kinds: vec![], siblings: 0 }]);
    assert_eq!(client.get(get()).await.expect("answered").into_inner().view, None);
    let expected = SyncRequest::Get { key: get().key, path: get().path };
    assert_eq!(served.asked(), vec![expected; 8]);

    let key = || Bytes::from_static(b"k");
    served.answers([SyncReply::Keys { items: vec![(key(), Value::Count(1))], more: true }]);
    let list = v3::SyncListRequest { prefix: key(), after: Some(key()), limit: 9 };
    let told = client.list(list).await.expect("answered").into_inner();
    assert_eq!((told.items.len(), &told.items[0].key, told.more), (1, &key(), true));
    assert_eq!(served.asked(), [SyncRequest::List { prefix: key(), after: Some(key()), limit: 9 }]);

    let dot = |node: u32| Dot::new(Origin::new(node, 1), 7);
    let event = Conflict {
        key: key(),
        path: vec![Bytes::from_static(b"f")],
        by: dot(2),
        siblings: vec![dot(1), dot(2)],
        strategy: "longest".into(),
        outcome: Outcome::Won(dot(1)),
    };
    served.answers([SyncReply::Conflicts { count: 4, open: 3, events: vec![event] }]);
    let told = client.conflicts(v3::SyncConflictsRequest { limit: 5 }).await.expect("answered").into_inner();
    assert_eq!(served.asked(), [SyncRequest::Conflicts { limit: 5 }]);
    assert_eq!((told.count, told.open, told.events.len()), (4, 3, 1));
    let event = &told.events[0];
    assert_eq!(
        (&event.key, &event.path, event.by.clone()),
        (&key(), &vec![Bytes::from_static(b"f")], dot(2).to_string())
    );
    assert_eq!(event.siblings, [dot(1).to_string(), dot(2).to_string()]);
    assert_eq!((&event.strategy[..], event.outcome.clone()), ("longest", format!("{} won", dot(1))));

    served.answers([SyncReply::Compared {
        level: vec![ReplicaId(1)],
        differs: vec![ReplicaId(2)],
        silent: vec![ReplicaId(3)],
    }]);
    let compare = v3::SyncCompareRequest { peers: vec![1, 2, 3], timeout_ms: 8 };
    let told = client.compare(compare).await.expect("answered").into_inner();
    assert_eq!((told.level, told.differs, told.silent), (vec![1], vec![2], vec![3]));
    let peers = [1, 2, 3].map(ReplicaId).to_vec();
    assert_eq!(served.asked(), [SyncRequest::Compare { peers, timeout_ms: 8 }]);

    // Refused for certain, or written and not acknowledged: a client must be able to tell.
    for (definite, code) in [(true, Code::FailedPrecondition), (false, Code::Unknown)] {
        served.answers([SyncReply::Refused { reason: "why".into(), definite }]);
        let status = client.get(get()).await.expect_err("refused");
        assert_eq!((status.code(), status.message()), (code, "why"));
    }
}

#[tokio::test]
async fn a_watch_goes_on_until_the_node_or_its_reader_ends_it() {
    let mut served = serve(Readers::Anybody, Limits::default()).await;
    let mut client = served.sync(None).await;
    let key = || Bytes::from_static(b"k");
    let watch = || v3::SyncWatchRequest { prefix: key() };
    let nothing = || SyncReply::Changed { items: vec![] };
    let change = SyncReply::Changed { items: vec![(key(), Some(Value::Count(1))), (key(), None)] };
    let end = SyncReply::Refused { reason: "too many watches".into(), definite: true };
    served.answers([nothing(), change, end]);
    let mut stream = client.watch(watch()).await.expect("a stream").into_inner();
    assert_eq!(served.asked(), [SyncRequest::Watch { prefix: key() }]);
    let mut next = async || timeout(PATIENCE, stream.message()).await.expect("no hang");
    assert_eq!(next().await.expect("goes on").expect("a message").items, []);
    let items = next().await.expect("goes on").expect("a message").items;
    assert_eq!(
        items.iter().map(|item| (item.key.clone(), item.view.is_some())).collect::<Vec<_>>(),
        [(key(), true), (key(), false)]
    );
    let status = next().await.expect_err("the end");
    assert_eq!((status.code(), status.message()), (Code::FailedPrecondition, "too many watches"));

    // Its reader goes: the place in the node is free.
    let open = |served: &Served| served.node.0.open.load(Ordering::SeqCst);
    served.answers([nothing()]);
    let stream = client.watch(watch()).await.expect("a stream");
    assert_eq!(open(&served), 1);
    drop(stream);
    let freed = async {
        while open(&served) > 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, freed).await.expect("freed");

    served.answers([nothing()]);
    let mut stream = client.watch(watch()).await.expect("a stream").into_inner();
    timeout(PATIENCE, stream.message()).await.expect("no hang").expect("goes on");
    served.stop.take().expect("once").send(()).expect("serving");
    let status = timeout(PATIENCE, stream.message()).await.expect("no hang").expect_err("ended");
    assert!(status.code() == Code::Unavailable && status.message().contains("stopping"), "{status}");
}

#[tokio::test]
async fn every_figure_of_state_sync_arrives() {
    let served = serve(Readers::Anybody, Limits::default()).await;
    let peer = |id: u8, last_exchange_ms| SyncPeerStatus {
        id: ReplicaId(id),
        lag_frames: 40,
        lag_ms: 41,
        last_exchange_ms,
        exchanges: 42,
        bytes_in: 43,
        bytes_out: 44,
        withholds: true,
        fault: "does not acknowledge".into(),
    };
    let sync = SyncStatus {
        sync_count: 1,
        last_sync_unix_ms: 2,
        avg_sync_latency_us: 3,
        conflict_count: 4,
        conflicts_open: 5,
        not_open: "not yet".into(),
        keys: 6,
        tombstones: 7,
        frames_written: 8,
        frames_applied: 9,
        frames_ordered: 10,
        fallbacks: 11,
        writes_refused: 12,
        exchanges: 13,
        frames_kept: 14,
        frames_kept_bytes: 15,
        frames_waiting: 16,
        ordering: 17,
        floor: 18,
        keys_damaged: 19,
        keys_repaired: 27,
        bundles_refused: 20,
        frozen_origins: 21,
        frozen: vec!["o3".into()],
        resolutions_impure: 22,
        needs_snapshot: true,
        snapshots_installed: 23,
        snapshots_refused: 24,
        donors_stalled: 25,
        floors_missed: 28,
        refused: vec![("forged".into(), 26)],
        peers: vec![peer(1, 45), peer(2, u64::MAX)],
    };
    *served.node.0.sync_status.lock().expect("no panic") = Some(sync);
    let mut client = served.connect(None).await.expect("pinned");
    let told =
        client.status(StatusRequest { id: 1 }).await.expect("answered").into_inner().sync.expect("told");
    let figures = [
        told.sync_count,
        told.last_sync_unix_ms,
        told.avg_sync_latency_us,
        told.conflict_count,
        told.conflicts_open,
        told.keys,
        told.tombstones,
        told.frames_written,
        told.frames_applied,
        told.frames_ordered,
        told.fallbacks,
        told.writes_refused,
        told.exchanges,
        told.frames_kept,
        told.frames_kept_bytes,
        told.frames_waiting,
        told.ordering,
        told.floor,
        told.keys_damaged,
        told.bundles_refused,
        told.frozen_origins,
        told.resolutions_impure,
        told.snapshots_installed,
        told.snapshots_refused,
        told.donors_stalled,
        told.refused[0].value,
        told.keys_repaired,
        told.floors_missed,
    ];
    assert_eq!(figures.to_vec(), (1..=28).collect::<Vec<u64>>());
    assert_eq!(
        (&told.not_open[..], told.needs_snapshot, &told.frozen[..]),
        ("not yet", true, &["o3".to_string()][..])
    );
    assert_eq!((told.refused.len(), &told.refused[0].name[..]), (1, "forged"), "drops by their reason");
    let peer = &told.peers[0];
    assert_eq!((peer.id, peer.lag_frames, peer.lag_ms, peer.last_exchange_ms), (1, 40, 41, Some(45)));
    assert_eq!((peer.exchanges, peer.bytes_in, peer.bytes_out), (42, 43, 44));
    assert_eq!((peer.withholds, &peer.fault[..]), (true, "does not acknowledge"));
    assert_eq!(told.peers[1].last_exchange_ms, None, "never");
}
