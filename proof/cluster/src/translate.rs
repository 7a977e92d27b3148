//! Between the words of the judges and those of the store. The judges share no code with what they judge, so this is the
//! one place in this package where the two meet; an operation the workload does not make has no translation.

use check::operation::{Compare, Relation, Target};
use check::{Answer, Interval, KeyValue, Operation};
use dwcp_state::kv;

/// `None`: not an operation of these workloads (leases, opaque, nested transactions).
#[must_use]
pub fn command(operation: &Operation) -> Option<kv::KvCommand> {
    Some(match operation {
        Operation::Txn { compares, then, otherwise } => {
            let branch = |ops: &[Operation]| ops.iter().map(step).collect::<Option<Vec<_>>>();
            kv::KvCommand::Txn(kv::Txn {
                compare: compares.iter().map(compare).collect::<Option<_>>()?,
                success: branch(then)?,
                failure: branch(otherwise)?,
            })
        }
        simple => match step(simple)? {
            kv::TxnOp::Put(put) => kv::KvCommand::Put(put),
            kv::TxnOp::Range(range) => kv::KvCommand::Range(range),
            kv::TxnOp::DeleteRange(delete) => kv::KvCommand::DeleteRange(delete),
            kv::TxnOp::Txn(_) => return None,
        },
    })
}

fn step(operation: &Operation) -> Option<kv::TxnOp> {
    let ends = |over: &Interval| (over.key.clone().into(), over.end.clone().into());
    Some(match operation {
        Operation::Put { key, value, lease: 0, want_prev } => {
            kv::TxnOp::Put(kv::Put { prev_kv: *want_prev, ..kv::Put::new(key.clone(), value.clone()) })
        }
        Operation::Range { over, revision, limit, .. } => {
            let (key, range_end) = ends(over);
            let (revision, limit) = (*revision, *limit);
            kv::TxnOp::Range(kv::Range { key, range_end, revision, limit, ..kv::Range::default() })
        }
        Operation::DeleteRange { over, want_prev } => {
            let (key, range_end) = ends(over);
            kv::TxnOp::DeleteRange(kv::DeleteRange { key, range_end, prev_kv: *want_prev })
        }
        Operation::Put { .. }
        | Operation::Txn { .. }
        | Operation::LeaseRevoke { .. }
        | Operation::Opaque(_) => {
            return None;
        }
    })
}

fn compare(compare: &Compare) -> Option<kv::Compare> {
    let op = match compare.relation {
        Relation::Equal => kv::CompareOp::Equal,
        Relation::NotEqual => kv::CompareOp::NotEqual,
        Relation::Greater => kv::CompareOp::Greater,
        Relation::Less => kv::CompareOp::Less,
    };
    let target = match &compare.target {
        Target::Value(value) => kv::CompareTarget::Value(value.clone().into()),
        Target::Version(version) => kv::CompareTarget::Version(*version),
        Target::CreateRevision(revision) => kv::CompareTarget::Create(*revision),
        Target::ModRevision(revision) => kv::CompareTarget::Mod(*revision),
        Target::Lease(_) => return None,
    };
    let (key, range_end) = (compare.over.key.clone().into(), compare.over.end.clone().into());
    Some(kv::Compare { key, range_end, op, target })
}

/// `None`: an answer to nothing these workloads ask.
#[must_use]
pub fn answer(body: kv::KvBody) -> Option<Answer> {
    let records = |kvs: Vec<kv::KeyValue>| kvs.into_iter().map(record).collect();
    Some(match body {
        kv::KvBody::Put { prev_kv } => Answer::Put { prev: prev_kv.map(record) },
        kv::KvBody::Range { kvs, count, .. } => Answer::Range { records: records(kvs), count },
        kv::KvBody::DeleteRange { deleted, prev_kvs } => {
            Answer::DeleteRange { deleted, prev: records(prev_kvs) }
        }
        kv::KvBody::Txn(kv::TxnReply { succeeded, responses }) => {
            let answers = responses.into_iter().map(answer).collect::<Option<_>>()?;
            Answer::Txn { succeeded, answers }
        }
        _ => return None,
    })
}

fn record(kv: kv::KeyValue) -> KeyValue {
    let kv::KeyValue { key, value, create_revision, mod_revision, version, lease } = kv;
    // No workload grants a lease; one that shows up all the same must not look like none.
    let lease = u64::try_from(lease).unwrap_or(u64::MAX);
    KeyValue { key: key.to_vec(), value: value.to_vec(), create_revision, mod_revision, version, lease }
}
