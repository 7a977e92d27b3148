//! Where the store answers otherwise than etcd, on purpose. `docs/state.md` has the table; its rows name these tests.

use crate::{apply, context};
use bytes::Bytes;
use dwcp_base::configuration::Role;
use dwcp_base::limits::{TXN_DEPTH_MAX, TXN_OPERATIONS_MAX};
use dwcp_state::StateMachine;
use dwcp_state::kv::{
    CompareOp, CompareTarget, Kv, KvBody, KvCommand, KvError, Put, Range, Txn, TxnOp, VERSION_BYTES,
};

const QUOTA: u64 = 1 << 20;

fn put(key: &'static str) -> TxnOp {
    TxnOp::Put(Put::new(key, "v"))
}

fn run(kv: &mut Kv, txn: Txn) -> Result<KvBody, KvError> {
    apply(kv, &KvCommand::Txn(txn), 0).map(|reply| reply.body)
}

#[test]
fn a_read_in_a_transaction_may_not_name_the_revision_being_written() {
    let mut kv = Kv::new(QUOTA);
    apply(&mut kv, &KvCommand::put("a", "1"), 0).unwrap();
    let at = |revision| TxnOp::Range(Range { revision, ..Range::key("a") });
    let before = Txn::default().then(TxnOp::Put(Put::new("a", "2"))).then(at(2));
    let KvBody::Txn(reply) = run(&mut kv, before).unwrap() else { panic!() };
    let KvBody::Range { kvs, .. } = &reply.responses[1] else { panic!() };
    assert_eq!(kvs[0].value, "1", "revision 2 is the one before this transaction");
    let own = Txn::default().then(TxnOp::Put(Put::new("a", "3"))).then(at(4));
    assert_eq!(run(&mut kv, own), Err(KvError::FutureRevision { revision: 3 }));
}

#[test]
fn keeping_an_unknown_lease_alive_is_refused() {
    let mut kv = Kv::new(QUOTA);
    let keep_alive = KvCommand::LeaseKeepAlive { id: 5 };
    assert_eq!(apply(&mut kv, &keep_alive, 0), Err(KvError::LeaseNotFound { id: 5 }));
    apply(&mut kv, &KvCommand::LeaseGrant { id: 5, ttl_s: 2 }, 0).unwrap();
    assert!(apply(&mut kv, &keep_alive, 0).is_ok());
}

#[test]
fn operations_of_both_branches_and_of_all_levels_count_together() {
    let many = |count: usize| vec![TxnOp::Range(Range::key("a")); count];
    let half = TXN_OPERATIONS_MAX / 2;
    let mut kv = Kv::new(QUOTA);
    let full = Txn { success: many(half), failure: many(half), ..Txn::default() };
    assert!(run(&mut kv, full.clone()).is_ok());
    let over = Txn { failure: many(half + 1), ..full };
    assert_eq!(run(&mut kv, over), Err(KvError::TooManyOperations));
    // The nested transaction is an operation itself.
    let nested = |below| Txn::default().then(TxnOp::Txn(Txn { success: many(below), ..Txn::default() }));
    assert!(run(&mut kv, nested(TXN_OPERATIONS_MAX - 1)).is_ok());
    assert_eq!(run(&mut kv, nested(TXN_OPERATIONS_MAX)), Err(KvError::TooManyOperations));
    let compare = |count: usize| {
        (0..count).fold(Txn::default(), |txn, _| txn.when("a", CompareOp::Equal, CompareTarget::Version(0)))
    };
    assert!(run(&mut kv, compare(TXN_OPERATIONS_MAX)).is_ok());
    assert_eq!(run(&mut kv, compare(TXN_OPERATIONS_MAX + 1)), Err(KvError::TooManyOperations));
}

#[test]
fn transactions_nest_eight_deep() {
    let deep = |levels: usize| {
        (1..levels).fold(Txn::default().then(put("a")), |txn, _| Txn::default().then(TxnOp::Txn(txn)))
    };
    let mut kv = Kv::new(QUOTA);
    assert!(run(&mut kv, deep(TXN_DEPTH_MAX)).is_ok());
    assert_eq!(run(&mut kv, deep(TXN_DEPTH_MAX + 1)), Err(KvError::TooDeep));
}

#[test]
fn only_a_put_that_would_run_meets_the_alarm() {
    let mut kv = Kv::new(VERSION_BYTES);
    assert!(matches!(apply(&mut kv, &KvCommand::put("a", "v"), 0), Err(KvError::NoSpace { .. })));
    assert!(kv.no_space());
    let not_taken = Txn::default().or_else(put("a"));
    assert!(run(&mut kv, not_taken).is_ok());
    assert!(matches!(run(&mut kv, Txn::default().then(put("a"))), Err(KvError::NoSpace { .. })));
}

#[test]
fn a_reply_holds_four_mebibytes() {
    let mut kv = Kv::new(1 << 30);
    let value = Bytes::from(vec![1; 1_400_000]);
    for key in ["a", "b", "c"] {
        apply(&mut kv, &KvCommand::put(key, value.clone()), 0).unwrap();
    }
    let all = KvCommand::Range(Range::prefix(""));
    assert!(matches!(apply(&mut kv, &all, 0), Err(KvError::ReplyTooLarge { .. })));
    let page = KvCommand::Range(Range { limit: 2, ..Range::prefix("") });
    assert!(apply(&mut kv, &page, 0).is_ok());
}

#[test]
fn a_lease_lasts_as_long_as_it_was_asked_to() {
    let mut kv = Kv::new(QUOTA);
    let reply = apply(&mut kv, &KvCommand::LeaseGrant { id: 5, ttl_s: 1 }, 0).unwrap();
    assert_eq!(reply.body, KvBody::LeaseGrant { id: 5, ttl_s: 1 });
    let lives = |kv: &mut Kv, at_ms| {
        kv.advance(at_ms);
        let left = kv.apply(&context(Role::Admin, at_ms), &KvCommand::LeaseList.encode()).unwrap();
        dwcp_state::kv::KvReply::decode(&left).unwrap().body == KvBody::LeaseList { ids: vec![5] }
    };
    assert!(lives(&mut kv, 999));
    assert!(!lives(&mut kv, 1_000));
}
