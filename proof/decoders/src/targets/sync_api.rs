//! The `StateSync` service: what a node makes of a stranger's requests, and a client of the answers of a node that may lie.
//! The two ends were written apart: what one makes of bytes, the other must be able to say.

use super::wire::survives;
use crate::Seal::Form;
use crate::meter::bounded;
use crate::{Target, Verdict};
use bytes::Bytes;
use dwcp_api::reading as api;
use dwcp_base::ReplicaId;
use dwcp_client::reading as client;
use dwcp_client::values::View;
use dwcp_proto::v3::{
    self, SyncApplied, SyncConflict, SyncItem, SyncOperation, SyncPlain, SyncPlains, SyncView,
    sync_operation::Op, sync_plain::Form as PlainForm, sync_view::View as WireView,
};
use dwcp_replica::SyncRequest;
use prost::Message;
use std::fmt::Debug;

pub static REQUEST: Target =
    Target::new("sync_request", run_request, requests, Form(is_request)).bombs(bombs);
pub static ANSWER: Target = Target::new("sync_answer", run_answer, answers, Form(is_answer)).bombs(bombs);

const KINDS: u8 = 7;
/// Deeper than stores nest, and than clients believe.
const DEPTH_MAX: usize = 16;

/// The message, if it is one; the first byte of an input says of which kind the others are.
fn read<M: Message + Default + PartialEq>(bytes: &[u8]) -> Option<M> {
    let message = bounded(bytes, || M::decode(bytes)).ok()?;
    survives(&message);
    Some(message)
}

fn is<M: Message + Default>(bytes: &[u8]) -> bool {
    M::decode(bytes).is_ok()
}

// --- what a node is asked ---

fn is_request(bytes: &[u8]) -> bool {
    bytes.split_first().is_some_and(|(kind, rest)| match kind % KINDS {
        0 => is::<v3::SyncWriteRequest>(rest),
        1 => is::<v3::SyncGetRequest>(rest),
        2 => is::<v3::SyncListRequest>(rest),
        3 => is::<v3::SyncWatchRequest>(rest),
        4 => is::<v3::SyncConflictsRequest>(rest),
        5 => is::<v3::SyncStandRequest>(rest),
        _ => is::<v3::SyncCompareRequest>(rest),
    })
}

fn run_request(bytes: &[u8]) -> Verdict {
    let Some((kind, rest)) = bytes.split_first() else { return Verdict::Refused };
    match kind % KINDS {
        0 => asked(rest, api::write, written_anew),
        1 => asked(
            rest,
            |wire| Ok(api::get(wire)),
            |_, request| match request {
                SyncRequest::Get { key, path } => Some(v3::SyncGetRequest { key, path }),
                _ => None,
            },
        ),
        2 => asked(
            rest,
            |wire| Ok(api::list(wire)),
            |_, request| match request {
                SyncRequest::List { prefix, after, limit } => {
                    Some(v3::SyncListRequest { prefix, after, limit })
                }
                _ => None,
            },
        ),
        3 => asked(
            rest,
            |wire| Ok(api::watch(wire)),
            |_, request| match request {
                SyncRequest::Watch { prefix } => Some(v3::SyncWatchRequest { prefix }),
                _ => None,
            },
        ),
        4 => asked(
            rest,
            |wire| Ok(api::conflicts(wire)),
            |_, request| match request {
                SyncRequest::Conflicts { limit } => Some(v3::SyncConflictsRequest { limit }),
                _ => None,
            },
        ),
        5 => asked(
            rest,
            |wire| Ok(api::stand(wire)),
            |_, request| match request {
                SyncRequest::Stand => Some(v3::SyncStandRequest {}),
                _ => None,
            },
        ),
        _ => asked(rest, api::compare, |_, request| match request {
            SyncRequest::Compare { peers, timeout_ms } => {
                let peers = peers.iter().map(|id| id.0.into()).collect();
                Some(v3::SyncCompareRequest { peers, timeout_ms })
            }
            _ => None,
        }),
    }
}

/// What a request becomes must say all that it said.
fn asked<M: Message + Default + PartialEq + Clone + Debug>(
    bytes: &[u8],
    convert: impl FnOnce(M) -> Result<SyncRequest, String>,
    anew: impl FnOnce(&M, SyncRequest) -> Option<M>,
) -> Verdict {
    let Some(wire) = read::<M>(bytes) else { return Verdict::Refused };
    let said = wire.clone();
    match bounded(bytes, || convert(said)) {
        Ok(request) => {
            let again = anew(&wire, request.clone());
            assert!(again.as_ref() == Some(&wire), "{wire:?} became {request:?}, which says {again:?}");
            Verdict::Accepted
        }
        Err(reason) => {
            assert!(!reason.is_empty() && !reason.contains('\n'), "a refusal is one line: {reason:?}");
            Verdict::Refused
        }
    }
}

/// As a client would ask for just these writes. A value has several texts, and a flag means nothing: those of `wire` are given
/// back once the same was understood by both.
fn written_anew(wire: &v3::SyncWriteRequest, request: SyncRequest) -> Option<v3::SyncWriteRequest> {
    let SyncRequest::Write { writes, wait, timeout_ms } = &request else { return None };
    let operations = writes.iter().map(client::operation).collect();
    let mut again = v3::SyncWriteRequest { operations, wait: (*wait).into(), timeout_ms: *timeout_ms };
    assert!(
        api::write(again.clone()).as_ref() == Ok(&request),
        "{request:?} does not survive being asked anew"
    );
    for (said, again) in wire.operations.iter().zip(&mut again.operations) {
        if std::mem::discriminant(&said.op) == std::mem::discriminant(&again.op) {
            again.op.clone_from(&said.op);
        }
    }
    Some(again)
}

fn json(text: &str) -> SyncPlain {
    SyncPlain { form: Some(PlainForm::Json(text.into())) }
}

fn raw(bytes: &'static [u8]) -> SyncPlain {
    SyncPlain { form: Some(PlainForm::Raw(Bytes::from_static(bytes))) }
}

fn requests() -> Vec<Vec<u8>> {
    let insert = |index| Op::Insert(v3::SyncInsert { index, value: Some(json("[1, \"2\"]")) });
    let all = [
        Op::Put(json("{\"a\": [1, -2.5, null], \"b\": \"x\\n\"}")),
        Op::PutMulti(raw(b"\x00\xff")),
        Op::Grow(3),
        Op::Adjust(-2),
        Op::AddForever(json("true")),
        Op::AddOnce(json("18446744073709551615")),
        Op::RemoveForGood(raw(b"")),
        Op::Add(json("\"t\"")),
        Op::Remove(json("\"t\"")),
        insert(0),
        insert(u64::MAX),
        Op::Erase(u64::MAX),
        Op::Delete(true),
        Op::Settle(false),
    ];
    let operation = |op: &Op| SyncOperation {
        key: Bytes::from_static(b"key"),
        path: vec![Bytes::from_static(b"x"), Bytes::new()],
        op: Some(op.clone()),
    };
    let write = |ops: &[Op], wait, timeout_ms| v3::SyncWriteRequest {
        operations: ops.iter().map(operation).collect(),
        wait,
        timeout_ms,
    };
    let key = Bytes::from_static(b"user/7");
    let after = Some(key.clone());
    let seed = |kind: u8, bytes: Vec<u8>| [&[kind][..], &bytes].concat();
    let mut seeds: Vec<_> =
        all.iter().map(|op| seed(0, write(std::slice::from_ref(op), 0, 0).encode_to_vec())).collect();
    seeds.extend([
        seed(0, write(&all, 31, 60_000).encode_to_vec()),
        seed(
            1,
            v3::SyncGetRequest { key: key.clone(), path: vec![Bytes::from_static(b"field")] }.encode_to_vec(),
        ),
        seed(
            2,
            v3::SyncListRequest { prefix: Bytes::from_static(b"user/"), after, limit: 1_000 }.encode_to_vec(),
        ),
        seed(3, v3::SyncWatchRequest { prefix: key }.encode_to_vec()),
        seed(4, v3::SyncConflictsRequest { limit: u32::MAX }.encode_to_vec()),
        seed(5, v3::SyncStandRequest {}.encode_to_vec()),
        seed(6, v3::SyncCompareRequest { peers: vec![0, 30, 255], timeout_ms: 1 }.encode_to_vec()),
    ]);
    seeds
}

// --- what a client is answered ---

fn is_answer(bytes: &[u8]) -> bool {
    bytes.split_first().is_some_and(|(kind, rest)| match kind % KINDS {
        0 => is::<v3::SyncWritten>(rest),
        1 => is::<v3::SyncValue>(rest),
        2 => is::<v3::SyncKeys>(rest),
        3 => is::<v3::SyncChanges>(rest),
        4 => is::<v3::SyncConflicts>(rest),
        5 => is::<v3::SyncStanding>(rest),
        _ => is::<v3::SyncCompared>(rest),
    })
}

fn run_answer(bytes: &[u8]) -> Verdict {
    let Some((kind, rest)) = bytes.split_first() else { return Verdict::Refused };
    match kind % KINDS {
        0 => answered(rest, client::written, |_, read| api::written(read)),
        1 => answered(rest, client::value, |wire: &v3::SyncValue, read| v3::SyncValue {
            view: shown_anew(read.view, wire.view.as_ref()),
            kinds: read.kinds,
            siblings: read.siblings,
        }),
        2 => answered(rest, client::keys, |wire: &v3::SyncKeys, (items, more)| v3::SyncKeys {
            items: items_anew(items.into_iter().map(|(key, view)| (key, Some(view))), &wire.items),
            more,
        }),
        3 => answered(rest, client::changes, |wire: &v3::SyncChanges, items| v3::SyncChanges {
            items: items_anew(items, &wire.items),
        }),
        4 => answered(
            rest,
            |wire| Some(client::conflicts(wire)),
            |_, read| v3::SyncConflicts {
                count: read.count,
                open: read.open,
                events: read.events.into_iter().map(event).collect(),
            },
        ),
        5 => answered(rest, client::standing, |_, read| v3::SyncStanding {
            digest: Bytes::copy_from_slice(&read.digest.0),
            applied: read.applied.into_iter().map(|(origin, last)| SyncApplied { origin, last }).collect(),
            floor: read.floor,
            conflicts: read.conflicts,
            keys: read.keys,
        }),
        _ => answered(rest, client::compared, |_, read| {
            let ids = |ids: Vec<ReplicaId>| ids.into_iter().map(|id| id.0.into()).collect();
            v3::SyncCompared { level: ids(read.level), differs: ids(read.differs), silent: ids(read.silent) }
        }),
    }
}

fn event(event: dwcp_client::SyncConflict) -> SyncConflict {
    let dwcp_client::SyncConflict { key, path, by, siblings, strategy, outcome } = event;
    SyncConflict { key, path, by, siblings, strategy, outcome }
}

/// What a client takes an answer for must say all that it said.
fn answered<M: Message + Default + PartialEq + Clone + Debug, T>(
    bytes: &[u8],
    convert: impl FnOnce(M) -> Option<T>,
    anew: impl FnOnce(&M, T) -> M,
) -> Verdict {
    let Some(wire) = read::<M>(bytes) else { return Verdict::Refused };
    let said = wire.clone();
    let Some(read) = bounded(bytes, || convert(said)) else { return Verdict::Refused };
    let again = anew(&wire, read);
    assert!(again == wire, "{wire:?} became {again:?}");
    Verdict::Accepted
}

fn depth(view: &View) -> usize {
    match view {
        View::Map(fields) => 1 + fields.values().map(depth).max().unwrap_or(0),
        _ => 1,
    }
}

/// As a node that holds just this would show it. A value has several texts: that of `said` is given back once the same was
/// understood by both.
fn shown_anew(view: Option<View>, said: Option<&SyncView>) -> Option<SyncView> {
    let view = view?;
    assert!(depth(&view) <= DEPTH_MAX, "values nest {} deep", depth(&view));
    let shown = api::view(&view);
    let again = client::view(shown.clone());
    assert!(again.as_ref() == Some(&view), "{view:?} does not survive being shown: {again:?}");
    let kind = |view: &SyncView| view.view.as_ref().map(std::mem::discriminant);
    Some(said.filter(|said| kind(said) == kind(&shown)).cloned().unwrap_or(shown))
}

fn items_anew(items: impl IntoIterator<Item = (Bytes, Option<View>)>, said: &[SyncItem]) -> Vec<SyncItem> {
    let said = said.iter().map(|item| item.view.as_ref());
    let items = items.into_iter().zip(said);
    items.map(|((key, view), said)| SyncItem { key, view: shown_anew(view, said) }).collect()
}

fn wire_view(view: WireView) -> SyncView {
    SyncView { view: Some(view) }
}

fn nested(depth: usize) -> SyncView {
    let least = wire_view(WireView::Count(i128::MIN.to_string()));
    (1..depth).fold(least, |inner, _| {
        let field = v3::SyncField { name: Bytes::from_static(b"f"), view: Some(inner) };
        wire_view(WireView::Map(v3::SyncFields { fields: vec![field] }))
    })
}

fn answers() -> Vec<Vec<u8>> {
    let plains = || SyncPlains { values: vec![json("[]"), raw(b"\xfe"), json("[]")] };
    let views = [
        wire_view(WireView::Register(json("{\"k\": 1e300}"))),
        wire_view(WireView::Siblings(plains())),
        wire_view(WireView::Count("7".into())),
        wire_view(WireView::Set(plains())),
        wire_view(WireView::List(plains())),
        nested(3),
    ];
    let item = |view: &SyncView| SyncItem { key: Bytes::from_static(b"a"), view: Some(view.clone()) };
    let value =
        |view: &SyncView| v3::SyncValue { view: Some(view.clone()), kinds: vec!["map".into()], siblings: 2 };
    let conflict = SyncConflict {
        key: Bytes::from_static(b"a"),
        path: vec![Bytes::from_static(b"x")],
        by: "1.0:7".into(),
        siblings: vec!["1.0:6".into(), "2.0:3".into()],
        strategy: "lww".into(),
        outcome: "kept".into(),
    };
    let standing = v3::SyncStanding {
        digest: Bytes::from_static(&[7; 32]),
        applied: vec![SyncApplied { origin: "1.0".into(), last: 9 }],
        floor: 3,
        conflicts: 1,
        keys: 2,
    };
    let seed = |kind: u8, bytes: Vec<u8>| [&[kind][..], &bytes].concat();
    let mut items: Vec<SyncItem> = views.iter().map(item).collect();
    let mut seeds: Vec<_> = views.iter().map(|view| seed(1, value(view).encode_to_vec())).collect();
    seeds.push(seed(1, value(&nested(DEPTH_MAX)).encode_to_vec()));
    seeds.push(seed(2, v3::SyncKeys { items: items.clone(), more: true }.encode_to_vec()));
    items.push(SyncItem { key: Bytes::from_static(b"gone"), view: None });
    seeds.extend([
        seed(0, v3::SyncWritten { road: 2, last: 7, nodes: 4, latency_us: 90 }.encode_to_vec()),
        seed(3, v3::SyncChanges { items }.encode_to_vec()),
        seed(4, v3::SyncConflicts { count: 2, open: 1, events: vec![conflict] }.encode_to_vec()),
        seed(5, standing.encode_to_vec()),
        seed(6, v3::SyncCompared { level: vec![0, 1], differs: vec![2], silent: vec![3] }.encode_to_vec()),
    ]);
    seeds
}

/// Of each kind: lengths beyond the message, groups within groups, endless numbers, empty items, and values too deep.
fn bombs() -> Vec<Vec<u8>> {
    let deep =
        |depth| v3::SyncValue { view: Some(nested(depth)), ..v3::SyncValue::default() }.encode_to_vec();
    let long = vec![0x0a, 0xff, 0xff, 0xff, 0xff, 0x07, 1];
    let bodies = [
        vec![0xff; 4_096],
        vec![0x7b; 100_000],
        long,
        [0x0a, 0].repeat(4_000),
        deep(DEPTH_MAX + 1),
        deep(30),
        deep(300),
    ];
    (0..KINDS).flat_map(|kind| bodies.iter().map(move |body| [&[kind][..], body].concat())).collect()
}
