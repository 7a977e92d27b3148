//! Between the judges' operations and the store's bytes, both ways. The judges share no code with the store, so the one
//! place where the two meet is this.

use bytes::Bytes;
use check::operation::{Relation, Target};
use check::{Answer, KeyValue, Operation};
use dwcp_state::kv::{self, KvBody, KvCommand};

fn lease(id: u64) -> i64 {
    i64::try_from(id).expect("small lease numbers")
}

fn put(operation: &Operation) -> Option<kv::Put> {
    let Operation::Put { key, value, lease: id, want_prev } = operation else { return None };
    let mut put = kv::Put::new(key.clone(), value.clone());
    put.lease = lease(*id);
    put.prev_kv = *want_prev;
    Some(put)
}

fn range(operation: &Operation) -> Option<kv::Range> {
    let Operation::Range { over, revision, limit, .. } = operation else { return None };
    Some(kv::Range {
        key: over.key.clone().into(),
        range_end: over.end.clone().into(),
        limit: *limit,
        revision: *revision,
        ..kv::Range::default()
    })
}

fn delete(operation: &Operation) -> Option<kv::DeleteRange> {
    let Operation::DeleteRange { over, want_prev } = operation else { return None };
    let (key, range_end) = (over.key.clone().into(), over.end.clone().into());
    Some(kv::DeleteRange { key, range_end, prev_kv: *want_prev })
}

fn inner(operation: &Operation) -> Option<kv::TxnOp> {
    put(operation)
        .map(kv::TxnOp::Put)
        .or_else(|| range(operation).map(kv::TxnOp::Range))
        .or_else(|| delete(operation).map(kv::TxnOp::DeleteRange))
}

fn compare(compare: &check::operation::Compare) -> kv::Compare {
    kv::Compare {
        key: compare.over.key.clone().into(),
        range_end: compare.over.end.clone().into(),
        op: match compare.relation {
            Relation::Equal => kv::CompareOp::Equal,
            Relation::NotEqual => kv::CompareOp::NotEqual,
            Relation::Greater => kv::CompareOp::Greater,
            Relation::Less => kv::CompareOp::Less,
        },
        target: match &compare.target {
            Target::Value(value) => kv::CompareTarget::Value(value.clone().into()),
            Target::Version(version) => kv::CompareTarget::Version(*version),
            Target::CreateRevision(revision) => kv::CompareTarget::Create(*revision),
            Target::ModRevision(revision) => kv::CompareTarget::Mod(*revision),
            Target::Lease(id) => kv::CompareTarget::Lease(lease(*id)),
        },
    }
}

/// The command's bytes within a frame. An opaque operation carries them already.
///
/// # Panics
/// On a revocation inside a transaction and other operations the workload does not make.
#[must_use]
pub fn command(operation: &Operation) -> Bytes {
    let command = match operation {
        Operation::Put { .. } => KvCommand::Put(put(operation).expect("a put")),
        Operation::Range { .. } => KvCommand::Range(range(operation).expect("a range")),
        Operation::DeleteRange { .. } => KvCommand::DeleteRange(delete(operation).expect("a delete")),
        Operation::Txn { compares, then, otherwise } => {
            let branch = |operations: &[Operation]| {
                operations.iter().map(|operation| inner(operation).expect("a flat transaction")).collect()
            };
            KvCommand::Txn(kv::Txn {
                compare: compares.iter().map(compare).collect(),
                success: branch(then),
                failure: branch(otherwise),
            })
        }
        Operation::LeaseRevoke { lease: id } => KvCommand::LeaseRevoke { id: lease(*id) },
        Operation::Opaque(bytes) => return Bytes::copy_from_slice(bytes),
    };
    command.to_command()
}

pub fn record(record: kv::KeyValue) -> KeyValue {
    KeyValue {
        key: record.key.to_vec(),
        value: record.value.to_vec(),
        create_revision: record.create_revision,
        mod_revision: record.mod_revision,
        version: record.version,
        lease: u64::try_from(record.lease).unwrap_or(u64::MAX),
    }
}

/// What the store's answer says, in the judges' words; None for kinds the workload does not ask for.
#[must_use]
pub fn answer(body: KvBody) -> Option<Answer> {
    Some(match body {
        KvBody::Put { prev_kv } => Answer::Put { prev: prev_kv.map(record) },
        KvBody::Range { kvs, count, .. } => {
            Answer::Range { records: kvs.into_iter().map(record).collect(), count }
        }
        KvBody::DeleteRange { deleted, prev_kvs } => {
            Answer::DeleteRange { deleted, prev: prev_kvs.into_iter().map(record).collect() }
        }
        KvBody::Txn(reply) => Answer::Txn {
            succeeded: reply.succeeded,
            answers: reply.responses.into_iter().map(answer).collect::<Option<_>>()?,
        },
        _ => return None,
    })
}
