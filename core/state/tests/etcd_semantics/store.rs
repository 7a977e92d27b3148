//! The store answers as the model does, for random histories and for the corners one by one.

use crate::model::Model;
use crate::{apply, context, kv_copy, kv_digests};
use bytes::Bytes;
use dwcp_base::configuration::Role;
use dwcp_base::limits::TXN_OPERATIONS_MAX;
use dwcp_state::StateMachine;
use dwcp_state::kv::{
    Compare, CompareOp, CompareTarget, DeleteRange, EventKind, Kv, KvBody, KvCommand, KvError, KvReply, Put,
    Range, SortBy, SortOrder, Txn, TxnOp, VERSION_BYTES,
};
use proptest::prelude::*;

const QUOTA: u64 = 1 << 30;

fn a_key() -> impl Strategy<Value = Bytes> {
    prop_oneof![Just("a"), Just("a\0"), Just("ab"), Just("b"), Just("c"), Just("d\u{7f}"), Just("\0")]
        .prop_map(|key| Bytes::from_static(key.as_bytes()))
}

fn an_end() -> impl Strategy<Value = Bytes> {
    prop_oneof![
        4 => Just(Bytes::new()),
        2 => Just(Bytes::from_static(b"\0")),
        3 => a_key(),
        1 => Just(Bytes::from_static(b"\xff")),
    ]
}

fn a_value() -> impl Strategy<Value = Bytes> {
    (0u8..4).prop_map(|byte| Bytes::from(vec![b'v', byte]))
}

fn a_put() -> impl Strategy<Value = Put> {
    (a_key(), a_value(), 0i64..4, any::<bool>(), 0u8..12, 0u8..12).prop_map(
        |(key, value, lease, prev_kv, ignore_value, ignore_lease)| Put {
            key,
            value: if ignore_value == 1 { Bytes::new() } else { value },
            lease: if ignore_lease == 1 || lease == 3 { 0 } else { lease },
            prev_kv,
            ignore_value: ignore_value <= 1,
            ignore_lease: ignore_lease <= 1,
        },
    )
}

fn a_range() -> impl Strategy<Value = Range> {
    let shape = (a_key(), an_end(), 0u64..4, prop_oneof![3 => Just(0u64), 2 => 0u64..30]);
    let order = (
        prop_oneof![Just(SortOrder::Unsorted), Just(SortOrder::Ascend), Just(SortOrder::Descend)],
        prop_oneof![
            2 => Just(SortBy::Key),
            1 => Just(SortBy::Version),
            1 => Just(SortBy::Create),
            1 => Just(SortBy::Mod),
            1 => Just(SortBy::Value)
        ],
    );
    let bound = || prop_oneof![5 => Just(0u64), 1 => 0u64..20];
    (shape, order, any::<bool>(), 0u8..6, (bound(), bound(), bound(), bound())).prop_map(
        |((key, range_end, limit, revision), (sort_order, sort_by), keys_only, count_only, bounds)| Range {
            key,
            range_end,
            limit,
            revision,
            sort_order,
            sort_by,
            keys_only,
            count_only: count_only == 0,
            min_mod_revision: bounds.0,
            max_mod_revision: bounds.1,
            min_create_revision: bounds.2,
            max_create_revision: bounds.3,
        },
    )
}

fn a_delete() -> impl Strategy<Value = DeleteRange> {
    (a_key(), an_end(), any::<bool>()).prop_map(|(key, range_end, prev_kv)| DeleteRange {
        key,
        range_end,
        prev_kv,
    })
}

fn a_compare() -> impl Strategy<Value = Compare> {
    let target = prop_oneof![
        (0u64..4).prop_map(CompareTarget::Version),
        (0u64..12).prop_map(CompareTarget::Create),
        (0u64..12).prop_map(CompareTarget::Mod),
        a_value().prop_map(CompareTarget::Value),
        (0i64..3).prop_map(CompareTarget::Lease),
    ];
    let op = prop_oneof![
        Just(CompareOp::Equal),
        Just(CompareOp::NotEqual),
        Just(CompareOp::Greater),
        Just(CompareOp::Less)
    ];
    (a_key(), an_end(), op, target).prop_map(|(key, range_end, op, target)| Compare {
        key,
        range_end,
        op,
        target,
    })
}

fn a_txn() -> impl Strategy<Value = Txn> {
    let leaf = prop_oneof![
        3 => a_put().prop_map(TxnOp::Put),
        2 => a_range().prop_map(TxnOp::Range),
        1 => a_delete().prop_map(TxnOp::DeleteRange),
    ];
    let op = leaf.prop_recursive(3, 8, 2, |inner| {
        let ops = || prop::collection::vec(inner.clone(), 0..3);
        (prop::collection::vec(a_compare(), 0..2), ops(), ops())
            .prop_map(|(compare, success, failure)| TxnOp::Txn(Txn { compare, success, failure }))
    });
    let op = std::rc::Rc::new(op);
    let ops = move || prop::collection::vec(op.clone(), 0..4);
    (prop::collection::vec(a_compare(), 0..3), ops(), ops()).prop_map(|(compare, success, failure)| Txn {
        compare,
        success,
        failure,
    })
}

#[derive(Clone, Debug)]
enum Act {
    Run(KvCommand),
    Advance(u64),
    /// Go on with a copy made through a snapshot.
    Restore,
}

fn an_act() -> impl Strategy<Value = Act> {
    prop_oneof![
        8 => a_put().prop_map(|put| Act::Run(KvCommand::Put(put))),
        4 => a_range().prop_map(|range| Act::Run(KvCommand::Range(range))),
        3 => a_delete().prop_map(|delete| Act::Run(KvCommand::DeleteRange(delete))),
        6 => a_txn().prop_map(|txn| Act::Run(KvCommand::Txn(txn))),
        2 => (0u64..25).prop_map(|revision| Act::Run(KvCommand::Compact { revision })),
        3 => (1i64..4, 1u64..6).prop_map(|(id, ttl_s)| Act::Run(KvCommand::LeaseGrant { id, ttl_s })),
        1 => (1i64..4).prop_map(|id| Act::Run(KvCommand::LeaseRevoke { id })),
        1 => (1i64..4).prop_map(|id| Act::Run(KvCommand::LeaseKeepAlive { id })),
        1 => (1i64..4, any::<bool>()).prop_map(|(id, keys)| Act::Run(KvCommand::LeaseTimeToLive { id, keys })),
        1 => Just(Act::Run(KvCommand::LeaseList)),
        3 => (0u64..2500).prop_map(Act::Advance),
        1 => Just(Act::Restore),
    ]
}

/// Everything the store can still say about the past is what the model remembers.
fn compare_histories(kv: &Kv, model: &Model) {
    let everything =
        Range { key: Bytes::from_static(b"\0"), range_end: Bytes::from_static(b"\0"), ..Range::default() };
    for revision in model.compacted.max(1)..=model.revision() {
        let query = KvCommand::Range(Range { revision, ..everything.clone() });
        let KvReply { body, .. } = KvReply::decode(&kv.query(&query.encode()).unwrap()).unwrap();
        let KvBody::Range { kvs, .. } = body else { panic!("a range answers a range") };
        assert_eq!(kvs, model.at(revision).values().cloned().collect::<Vec<_>>(), "at revision {revision}");
    }
    for revision in model.compacted..=model.revision() + 1 {
        let events: Vec<_> = kv.events_since(revision).unwrap().collect();
        let expected: Vec<_> = model.events.iter().filter(|event| event.revision >= revision).collect();
        assert_eq!(events.len(), expected.len(), "events since {revision}");
        for (event, expected) in events.iter().zip(expected) {
            assert_eq!((event.revision, &event.kv.key), (expected.revision, &expected.key));
            assert_eq!(event.kind == EventKind::Put, expected.now.is_some());
            if let Some(now) = &expected.now {
                assert_eq!(&event.kv, now);
            }
            let before = if expected.revision > model.compacted { expected.before.clone() } else { None };
            assert_eq!(event.prev_kv, before, "before {expected:?}");
        }
        let places: Vec<_> = events.iter().map(|event| (event.revision, event.sub)).collect();
        assert!(places.windows(2).all(|pair| pair[0] < pair[1]), "events are in order");
    }
    if let Some(before) = model.compacted.checked_sub(1) {
        let error = kv.events_since(before).err();
        assert_eq!(error, Some(KvError::Compacted { compacted: model.compacted }));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_store_answers_as_the_model_does(acts in prop::collection::vec(an_act(), 1..60)) {
        let (mut kv, mut model) = (Kv::new(QUOTA), Model::new());
        for act in acts {
            match act {
                Act::Run(command) => {
                    let before = kv_digests(&mut kv);
                    let answer = apply(&mut kv, &command, model.now_ms);
                    let expected = model.run(&command);
                    let expected = expected.map(|body| KvReply { revision: model.revision(), body });
                    prop_assert_eq!(&answer, &expected, "{:?}", command);
                    if answer.is_err() || command.read_only() {
                        prop_assert_eq!(before, kv_digests(&mut kv), "{:?} left something behind", command);
                    }
                }
                Act::Advance(ms) => {
                    model.advance(model.now_ms + ms);
                    kv.advance(model.now_ms);
                }
                Act::Restore => {
                    let mut copy = kv_copy(&mut kv);
                    prop_assert_eq!(kv_digests(&mut kv), kv_digests(&mut copy));
                    prop_assert_eq!(kv.bytes(), copy.bytes());
                    kv = copy;
                }
            }
            prop_assert_eq!(kv.revision(), model.revision());
        }
        compare_histories(&kv, &model);
        // The digest kept up to date while writing is the digest of what is there.
        let mut copy = kv_copy(&mut kv);
        prop_assert_eq!(kv_digests(&mut kv), kv_digests(&mut copy));
        compare_histories(&copy, &model);
    }
}

fn kv() -> Kv {
    Kv::new(QUOTA)
}

fn put_value(kv: &mut Kv, key: &'static str, value: &'static str) -> KvReply {
    apply(kv, &KvCommand::put(key, value), 0).unwrap()
}

#[test]
fn the_first_write_makes_revision_two() {
    let mut kv = kv();
    assert_eq!(kv.revision(), 1);
    assert_eq!(put_value(&mut kv, "a", "1").revision, 2);
    // A deletion that finds nothing, a read and a refused command make none.
    assert_eq!(apply(&mut kv, &KvCommand::delete("z"), 0).unwrap().revision, 2);
    assert_eq!(apply(&mut kv, &KvCommand::get("a"), 0).unwrap().revision, 2);
    assert_eq!(apply(&mut kv, &KvCommand::put("", "x"), 0), Err(KvError::EmptyKey));
    assert_eq!(kv.revision(), 2);
}

#[test]
fn a_recreated_key_counts_its_version_from_one() {
    let mut kv = kv();
    put_value(&mut kv, "a", "1");
    put_value(&mut kv, "a", "2");
    apply(&mut kv, &KvCommand::delete("a"), 0).unwrap();
    put_value(&mut kv, "a", "3");
    let KvBody::Range { kvs, .. } = apply(&mut kv, &KvCommand::get("a"), 0).unwrap().body else { panic!() };
    assert_eq!((kvs[0].create_revision, kvs[0].mod_revision, kvs[0].version), (5, 5, 1));
}

#[test]
fn a_transaction_that_fails_late_leaves_nothing() {
    let mut kv = kv();
    apply(&mut kv, &KvCommand::LeaseGrant { id: 1, ttl_s: 10 }, 0).unwrap();
    apply(&mut kv, &KvCommand::Put(Put { lease: 1, ..Put::new("a", "1") }), 0).unwrap();
    let before = kv_digests(&mut kv);
    let txn = Txn::default()
        .then(TxnOp::DeleteRange(DeleteRange { key: "a".into(), ..DeleteRange::default() }))
        .then(TxnOp::Put(Put { lease: 1, ..Put::new("b", "1") }))
        .then(TxnOp::Put(Put { lease: 9, ..Put::new("c", "1") }));
    assert_eq!(apply(&mut kv, &KvCommand::Txn(txn), 0), Err(KvError::LeaseNotFound { id: 9 }));
    assert_eq!(kv_digests(&mut kv), before);
    // The rolled-back deletion did not cost `a` its lease, nor did `b` stay on it.
    let reply = apply(&mut kv, &KvCommand::LeaseTimeToLive { id: 1, keys: true }, 0).unwrap();
    let KvBody::LeaseTimeToLive { keys, .. } = reply.body else { panic!() };
    assert_eq!(keys, vec![Bytes::from_static(b"a")]);
}

#[test]
fn a_put_and_a_deletion_of_siblings_are_refused_in_either_order() {
    let mut kv = kv();
    let put = TxnOp::Txn(Txn::default().then(TxnOp::Put(Put::new("k", "v"))));
    let delete = DeleteRange { key: "a".into(), range_end: "z".into(), prev_kv: false };
    let delete = TxnOp::Txn(Txn::default().or_else(TxnOp::DeleteRange(delete)));
    for ops in [[put.clone(), delete.clone()], [delete, put]] {
        let txn = Txn { success: ops.to_vec(), ..Txn::default() };
        assert_eq!(apply(&mut kv, &KvCommand::Txn(txn), 0), Err(KvError::DuplicateKey));
    }
    // The two branches of one transaction may put the same key.
    let txn = Txn::default().then(TxnOp::Put(Put::new("k", "1"))).or_else(TxnOp::Put(Put::new("k", "2")));
    assert!(apply(&mut kv, &KvCommand::Txn(txn), 0).is_ok());
}

#[test]
fn nested_comparisons_see_the_store_before_the_transaction() {
    let mut kv = kv();
    let nested = Txn::default()
        .when("a", CompareOp::Equal, CompareTarget::Version(0))
        .then(TxnOp::Put(Put::new("b", "absent")))
        .or_else(TxnOp::Put(Put::new("b", "present")));
    let txn = Txn::default().then(TxnOp::Put(Put::new("a", "1"))).then(TxnOp::Txn(nested));
    apply(&mut kv, &KvCommand::Txn(txn), 0).unwrap();
    let KvBody::Range { kvs, .. } = apply(&mut kv, &KvCommand::get("b"), 0).unwrap().body else { panic!() };
    assert_eq!(kvs[0].value, "absent");
    assert_eq!(kvs[0].mod_revision, 2, "all changes of a transaction share one revision");
}

#[test]
fn comparing_the_value_of_a_missing_key_never_holds() {
    let mut kv = kv();
    for op in [CompareOp::Equal, CompareOp::NotEqual, CompareOp::Greater, CompareOp::Less] {
        let txn = Txn::default().when("x", op, CompareTarget::Value(Bytes::new()));
        let KvBody::Txn(reply) = apply(&mut kv, &KvCommand::Txn(txn), 0).unwrap().body else { panic!() };
        assert!(!reply.succeeded, "{op:?}");
    }
}

#[test]
fn compacted_and_future_revisions_are_told_apart() {
    let mut kv = kv();
    for value in ["1", "2", "3"] {
        put_value(&mut kv, "a", value);
    }
    let at = |revision| KvCommand::Range(Range { revision, ..Range::key("a") });
    apply(&mut kv, &KvCommand::Compact { revision: 3 }, 0).unwrap();
    assert_eq!(apply(&mut kv, &at(2), 0), Err(KvError::Compacted { compacted: 3 }));
    assert!(apply(&mut kv, &at(3), 0).is_ok());
    assert_eq!(apply(&mut kv, &at(5), 0), Err(KvError::FutureRevision { revision: 4 }));
    assert_eq!(
        apply(&mut kv, &KvCommand::Compact { revision: 3 }, 0),
        Err(KvError::Compacted { compacted: 3 })
    );
    let future = KvCommand::Compact { revision: 5 };
    assert_eq!(apply(&mut kv, &future, 0), Err(KvError::FutureRevision { revision: 4 }));
}

/// Compaction at once moves the mark; the versions go as entries pass, and then the store holds as much as one that
/// never had them.
#[test]
fn compaction_frees_what_was_superseded_a_few_changes_at_a_time() {
    let mut kv = kv();
    for round in 0..3000u32 {
        let key = format!("key{:02}", round % 50);
        apply(&mut kv, &KvCommand::put(key, "value"), 0).unwrap();
    }
    let full = kv.bytes();
    let now = kv.revision();
    apply(
        &mut kv,
        &KvCommand::DeleteRange(DeleteRange { key: "key".into(), range_end: "key4".into(), prev_kv: false }),
        0,
    )
    .unwrap();
    assert_eq!(kv.next_expiry(), None);
    apply(&mut kv, &KvCommand::Compact { revision: now + 1 }, 0).unwrap();
    assert_eq!(kv.next_expiry(), Some(0), "a pending sweep asks for entries");
    kv.advance(0);
    let after_one = kv.bytes();
    assert!(after_one < full && after_one > full / 2, "one entry sweeps some, not all");
    let mut entries = 1;
    while kv.next_expiry().is_some() {
        kv.advance(0);
        entries += 1;
        // A copy made in the middle of a sweep goes on where it stood.
        if entries == 3 {
            let mut copy = kv_copy(&mut kv);
            copy.advance(0);
            kv.advance(0);
            assert_eq!(kv_digests(&mut kv), kv_digests(&mut copy));
            kv = copy;
        }
    }
    assert!(entries > 3);
    // Ten keys live, and forty deletions at the very revision are kept for watches from there.
    assert_eq!(kv.bytes(), 10 * (5 + 5 + VERSION_BYTES) + 40 * (5 + VERSION_BYTES));
    assert_eq!(kv.events_since(now + 1).unwrap().count(), 40);
    put_value(&mut kv, "last", "x");
    apply(&mut kv, &KvCommand::Compact { revision: now + 2 }, 0).unwrap();
    kv.advance(0);
    assert_eq!(kv.bytes(), 10 * (5 + 5 + VERSION_BYTES) + 4 + 1 + VERSION_BYTES);
}

#[test]
fn a_lease_takes_its_keys_in_one_revision_when_its_time_comes() {
    let mut kv = kv();
    apply(&mut kv, &KvCommand::LeaseGrant { id: 5, ttl_s: 2 }, 0).unwrap();
    for key in ["c", "a", "b"] {
        apply(&mut kv, &KvCommand::Put(Put { lease: 5, ..Put::new(key, "v") }), 0).unwrap();
    }
    // Putting a key again without the lease takes it off.
    put_value(&mut kv, "b", "free");
    assert_eq!(kv.next_expiry(), Some(2000));
    kv.advance(1999);
    assert_eq!(kv.revision(), 5);
    apply(&mut kv, &KvCommand::LeaseKeepAlive { id: 5 }, 1999).unwrap();
    kv.advance(3998);
    assert_eq!(kv.revision(), 5);
    kv.advance(3999);
    assert_eq!(kv.revision(), 6);
    let deleted: Vec<_> = kv.events_since(6).unwrap().map(|event| (event.sub, event.kv.key)).collect();
    assert_eq!(deleted, vec![(0, Bytes::from_static(b"a")), (1, Bytes::from_static(b"c"))]);
    assert_eq!(
        apply(&mut kv, &KvCommand::LeaseKeepAlive { id: 5 }, 3999),
        Err(KvError::LeaseNotFound { id: 5 })
    );
    // A lease without keys makes no revision when it goes.
    apply(&mut kv, &KvCommand::LeaseGrant { id: 6, ttl_s: 1 }, 3999).unwrap();
    apply(&mut kv, &KvCommand::LeaseRevoke { id: 6 }, 3999).unwrap();
    assert_eq!(kv.revision(), 6);
}

#[test]
fn chosen_lease_ids_are_positive_fresh_and_equal_at_every_replica() {
    let (mut one, mut other) = (kv(), kv());
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..100 {
        let grant = KvCommand::LeaseGrant { id: 0, ttl_s: 5 };
        let reply = apply(&mut one, &grant, 0).unwrap();
        assert_eq!(reply, apply(&mut other, &grant, 0).unwrap());
        let KvBody::LeaseGrant { id, .. } = reply.body else { panic!() };
        assert!(id > 0 && seen.insert(id));
    }
    assert_eq!(
        apply(&mut one, &KvCommand::LeaseGrant { id: 1, ttl_s: 0 }, 0),
        Err(KvError::LeaseTtl { ttl_s: 0 })
    );
}

#[test]
fn the_quota_alarm_refuses_puts_until_space_is_made_and_it_is_disarmed() {
    let mut kv = Kv::new(4 * (VERSION_BYTES + 2));
    for key in ["a", "b", "c", "d"] {
        put_value(&mut kv, key, "v");
    }
    let before = kv.revision();
    assert!(matches!(apply(&mut kv, &KvCommand::put("e", "v"), 0), Err(KvError::NoSpace { .. })));
    assert!(kv.no_space());
    assert_eq!(kv.revision(), before);
    // The alarm is part of the state and survives a copy.
    let mut kv = kv_copy(&mut kv);
    assert!(kv.no_space());
    assert!(matches!(apply(&mut kv, &KvCommand::put("a", ""), 0), Err(KvError::NoSpace { .. })));
    assert!(matches!(
        apply(&mut kv, &KvCommand::LeaseGrant { id: 1, ttl_s: 5 }, 0),
        Err(KvError::NoSpace { .. })
    ));
    assert!(apply(&mut kv, &KvCommand::get("a"), 0).is_ok());
    let all = DeleteRange { key: "a".into(), range_end: "z".into(), prev_kv: false };
    apply(&mut kv, &KvCommand::DeleteRange(all), 0).unwrap();
    let revision = kv.revision();
    apply(&mut kv, &KvCommand::Compact { revision }, 0).unwrap();
    kv.advance(0);
    assert!(matches!(apply(&mut kv, &KvCommand::put("e", "v"), 0), Err(KvError::NoSpace { .. })));
    let writer = context(Role::Writer, 0);
    let refused = kv.apply(&writer, &KvCommand::AlarmDisarm.encode()).unwrap_err();
    assert_eq!(KvError::of(&refused), Some(KvError::AdminOnly));
    let refused = kv.apply(&writer, &KvCommand::QuotaSet { quota_bytes: 1 }.encode()).unwrap_err();
    assert_eq!(KvError::of(&refused), Some(KvError::AdminOnly));
    apply(&mut kv, &KvCommand::QuotaSet { quota_bytes: QUOTA }, 0).unwrap();
    assert!(matches!(apply(&mut kv, &KvCommand::put("e", "v"), 0), Err(KvError::NoSpace { .. })));
    apply(&mut kv, &KvCommand::AlarmDisarm, 0).unwrap();
    assert_eq!(put_value(&mut kv, "e", "v").revision, revision + 1);
}

#[test]
fn a_reply_that_would_be_too_large_is_refused_before_anything_changes() {
    let mut kv = kv();
    let value = Bytes::from(vec![1; 1_000_000]);
    for key in ["a", "b", "c", "d", "e"] {
        apply(&mut kv, &KvCommand::put(key, value.clone()), 0).unwrap();
    }
    let before = kv_digests(&mut kv);
    let too_large = |result| matches!(result, Err(KvError::ReplyTooLarge { .. }));
    assert!(too_large(apply(&mut kv, &KvCommand::Range(Range::prefix("")), 0)));
    let delete = DeleteRange { key: "\0".into(), range_end: "\0".into(), prev_kv: true };
    assert!(too_large(apply(&mut kv, &KvCommand::DeleteRange(delete), 0)));
    let txn = Txn::default().then(TxnOp::Put(Put::new("f", "1"))).then(TxnOp::Range(Range::prefix("")));
    assert!(too_large(apply(&mut kv, &KvCommand::Txn(txn), 0)));
    assert_eq!(kv_digests(&mut kv), before);
    let keys = Range { keys_only: true, ..Range::prefix("") };
    assert!(apply(&mut kv, &KvCommand::Range(keys), 0).is_ok());
    let page = Range { limit: 4, ..Range::prefix("") };
    let KvBody::Range { kvs, more, count } = apply(&mut kv, &KvCommand::Range(page), 0).unwrap().body else {
        panic!()
    };
    assert_eq!((kvs.len(), more, count), (4, true, 5));
}

#[test]
fn queries_only_read() {
    let mut kv = kv();
    put_value(&mut kv, "a", "1");
    assert!(kv.query(&KvCommand::get("a").encode()).is_ok());
    let write = Txn::default().or_else(TxnOp::Put(Put::new("a", "2")));
    for command in [KvCommand::put("a", "2"), KvCommand::Txn(write), KvCommand::AlarmDisarm] {
        assert_eq!(kv.query(&command.encode()), Err(dwcp_state::QueryError::NotReadOnly));
    }
    assert!(matches!(kv.query(b"\xff"), Err(dwcp_state::QueryError::Refused(_))));
    let many = Txn { success: vec![TxnOp::Range(Range::key("a")); TXN_OPERATIONS_MAX], ..Txn::default() };
    let KvBody::Txn(reply) = apply(&mut kv, &KvCommand::Txn(many), 0).unwrap().body else { panic!() };
    assert_eq!(reply.responses.len(), TXN_OPERATIONS_MAX, "the largest reply reads back");
}

/// What is not sent to the digest of one chunk shows up in another: no two different stores below share a digest.
#[test]
fn digests_tell_stores_apart() {
    let build = |acts: &[KvCommand]| {
        let mut kv = kv();
        for act in acts {
            apply(&mut kv, act, 0).unwrap();
        }
        kv_digests(&mut kv)
    };
    let lease = KvCommand::LeaseGrant { id: 1, ttl_s: 9 };
    let put = KvCommand::put("a", "1");
    let leased = KvCommand::Put(Put { lease: 1, ..Put::new("a", "1") });
    let stores = [
        build(&[]),
        build(std::slice::from_ref(&lease)),
        build(&[KvCommand::LeaseGrant { id: 1, ttl_s: 8 }]),
        build(std::slice::from_ref(&put)),
        build(&[KvCommand::put("a", "2")]),
        build(&[KvCommand::put("b", "1")]),
        build(&[lease.clone(), put.clone()]),
        build(&[lease, leased]),
        build(&[put.clone(), put.clone()]),
        build(&[put.clone(), KvCommand::delete("a")]),
        build(&[put, KvCommand::Compact { revision: 2 }]),
        build(&[KvCommand::QuotaSet { quota_bytes: 5 }]),
    ];
    for (place, one) in stores.iter().enumerate() {
        assert!(stores[place + 1..].iter().all(|other| other != one), "store {place}");
    }
}
