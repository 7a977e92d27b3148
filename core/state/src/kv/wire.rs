//! What the store is asked and what it answers, byte for byte (borsh). Clients and gateways encode commands and read
//! replies here. Transactions nest: depth and number of operations are checked before recursing, in both directions,
//! so neither a client nor a server can be overrun by crafted bytes.

use crate::command::Command;
use crate::kv::error::KvError;
use alloc::vec::Vec;
use borsh::de::EnumExt;
use borsh::io::{Error, ErrorKind, Read};
use borsh::{BorshDeserialize, BorshSerialize};
use bytes::Bytes;
use dwcp_base::limits::{TXN_DEPTH_MAX, TXN_OPERATIONS_MAX};
use dwcp_base::{CodecError, decode, encode};

/// A command for the store. The order is part of the encoding: new commands go to the end.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum KvCommand {
    Put(Put),
    Range(Range),
    DeleteRange(DeleteRange),
    Txn(Txn),
    /// Forgets what was superseded at or before this revision.
    Compact {
        revision: u64,
    },
    /// `id` 0 asks the store to choose one.
    LeaseGrant {
        id: i64,
        ttl_s: u64,
    },
    /// Deletes the keys that hang on it, in one revision.
    LeaseRevoke {
        id: i64,
    },
    LeaseKeepAlive {
        id: i64,
    },
    LeaseTimeToLive {
        id: i64,
        keys: bool,
    },
    LeaseList,
    /// The quota alarm and the bytes that count towards it.
    AlarmList,
    /// Admins only.
    AlarmDisarm,
    /// Admins only. Does not disarm.
    QuotaSet {
        quota_bytes: u64,
    },
}

const COMMAND_PUT: u8 = 0;
const COMMAND_RANGE: u8 = 1;
const COMMAND_DELETE_RANGE: u8 = 2;
const COMMAND_TXN: u8 = 3;
const OP_TXN: u8 = 3;
const BODY_TXN: u8 = 3;

/// Sets one key.
#[derive(Clone, Debug, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Put {
    pub key: Bytes,
    pub value: Bytes,
    /// 0: none.
    pub lease: i64,
    pub prev_kv: bool,
    /// Keep the present value; the key must exist.
    pub ignore_value: bool,
    /// Keep the present lease; the key must exist.
    pub ignore_lease: bool,
}

/// Reads keys. `range_end` empty: the one key; a single zero byte: from `key` on; else up to but without `range_end`.
#[derive(Clone, Debug, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Range {
    pub key: Bytes,
    pub range_end: Bytes,
    /// 0: all.
    pub limit: u64,
    /// 0: now.
    pub revision: u64,
    pub sort_order: SortOrder,
    pub sort_by: SortBy,
    pub keys_only: bool,
    pub count_only: bool,
    /// The four bounds: 0 does not bound.
    pub min_mod_revision: u64,
    pub max_mod_revision: u64,
    pub min_create_revision: u64,
    pub max_create_revision: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
#[borsh(use_discriminant = false)]
pub enum SortOrder {
    /// By key; ascending by `sort_by` when that is not the key.
    #[default]
    Unsorted,
    Ascend,
    Descend,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
#[borsh(use_discriminant = false)]
pub enum SortBy {
    #[default]
    Key,
    Version,
    Create,
    Mod,
    Value,
}

/// Deletes keys; the range as in [`Range`].
#[derive(Clone, Debug, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct DeleteRange {
    pub key: Bytes,
    pub range_end: Bytes,
    pub prev_kv: bool,
}

/// If all comparisons hold, `success` runs, else `failure`; all of it in one revision. Comparisons of nested
/// transactions see the store as it was before the outermost began.
#[derive(Clone, Debug, Default, PartialEq, Eq, BorshSerialize)]
pub struct Txn {
    pub compare: Vec<Compare>,
    pub success: Vec<TxnOp>,
    pub failure: Vec<TxnOp>,
}

/// One operation of a transaction.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum TxnOp {
    Put(Put),
    Range(Range),
    DeleteRange(DeleteRange),
    Txn(Txn),
}

/// Holds when every key of the range compares so. A key that does not exist has version, revisions and lease 0, and no
/// value: comparing its value never holds.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Compare {
    pub key: Bytes,
    /// As in [`Range`].
    pub range_end: Bytes,
    pub op: CompareOp,
    pub target: CompareTarget,
}

/// The key's on the left, the given on the right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
#[borsh(use_discriminant = false)]
pub enum CompareOp {
    Equal,
    NotEqual,
    Greater,
    Less,
}

#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum CompareTarget {
    Version(u64),
    Create(u64),
    Mod(u64),
    Value(Bytes),
    Lease(i64),
}

/// A key as it stood at some revision.
#[derive(Clone, Debug, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct KeyValue {
    pub key: Bytes,
    pub value: Bytes,
    pub create_revision: u64,
    pub mod_revision: u64,
    /// 1 when created, counts changes since; 0 in the event of a deletion.
    pub version: u64,
    /// 0: none.
    pub lease: i64,
}

/// An answer: the store's revision after the command, and the body.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct KvReply {
    pub revision: u64,
    pub body: KvBody,
}

/// The answer to each kind of command. The order is part of the encoding.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum KvBody {
    Put {
        prev_kv: Option<KeyValue>,
    },
    Range {
        kvs: Vec<KeyValue>,
        /// The limit cut some off.
        more: bool,
        /// Keys in the range whatever limit and bounds said.
        count: u64,
    },
    DeleteRange {
        deleted: u64,
        prev_kvs: Vec<KeyValue>,
    },
    Txn(TxnReply),
    Compact,
    LeaseGrant {
        id: i64,
        ttl_s: u64,
    },
    LeaseRevoke,
    LeaseKeepAlive {
        id: i64,
        ttl_s: u64,
    },
    /// `ttl_s` is -1 when there is no such lease.
    LeaseTimeToLive {
        id: i64,
        ttl_s: i64,
        granted_ttl_s: u64,
        keys: Vec<Bytes>,
    },
    LeaseList {
        ids: Vec<i64>,
    },
    Alarms {
        no_space: bool,
        bytes: u64,
        quota_bytes: u64,
    },
}

/// The answers to the branch that ran.
#[derive(Clone, Debug, Default, PartialEq, Eq, BorshSerialize)]
pub struct TxnReply {
    pub succeeded: bool,
    pub responses: Vec<KvBody>,
}

/// The smallest key above all that begin with `prefix`: the `range_end` for a prefix. A prefix of 0xff bytes only (or
/// an empty one) has none, and the answer is the single zero byte that means "from `key` on".
#[must_use]
pub fn prefix_end(prefix: &[u8]) -> Bytes {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if let Some(next) = last.checked_add(1) {
            end.push(next);
            return Bytes::from(end);
        }
    }
    Bytes::from_static(&[0])
}

impl KvCommand {
    /// The command's own bytes: what [`crate::StateMachine::apply`] takes.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        Bytes::from(encode(self))
    }

    /// The bytes of one command of a session frame, which [`crate::State::query`] takes as well.
    #[must_use]
    pub fn to_command(&self) -> Bytes {
        Command::Machine(self.encode()).encode()
    }

    /// # Errors
    /// `Malformed`, `TooDeep` or `TooManyOperations`.
    pub fn decode(bytes: &[u8]) -> Result<Self, KvError> {
        if let Some((&COMMAND_TXN, mut rest)) = bytes.split_first() {
            let txn = read_txn(&mut rest, 1, &mut Budget::new()).map_err(|error| match error {
                ReadError::Io(_) => KvError::Malformed,
                ReadError::TooDeep => KvError::TooDeep,
                ReadError::TooMany => KvError::TooManyOperations,
            })?;
            return if rest.is_empty() { Ok(Self::Txn(txn)) } else { Err(KvError::Malformed) };
        }
        decode(bytes).map_err(|_| KvError::Malformed)
    }

    /// Sets a key to a value.
    #[must_use]
    pub fn put(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        Self::Put(Put::new(key, value))
    }

    /// Reads one key as it is now.
    #[must_use]
    pub fn get(key: impl Into<Bytes>) -> Self {
        Self::Range(Range::key(key))
    }

    /// Deletes one key.
    #[must_use]
    pub fn delete(key: impl Into<Bytes>) -> Self {
        Self::DeleteRange(DeleteRange { key: key.into(), ..DeleteRange::default() })
    }

    /// True when it changes nothing, whatever the state.
    #[must_use]
    pub fn read_only(&self) -> bool {
        match self {
            Self::Range(_) | Self::LeaseTimeToLive { .. } | Self::LeaseList | Self::AlarmList => true,
            Self::Txn(txn) => txn.read_only(),
            Self::Put(_)
            | Self::DeleteRange(_)
            | Self::Compact { .. }
            | Self::LeaseGrant { .. }
            | Self::LeaseRevoke { .. }
            | Self::LeaseKeepAlive { .. }
            | Self::AlarmDisarm
            | Self::QuotaSet { .. } => false,
        }
    }
}

/// As [`KvCommand::read_only`] of the decoded bytes, without decoding the common kinds.
pub(crate) fn bytes_read_only(bytes: &[u8]) -> bool {
    match bytes.first() {
        Some(&(COMMAND_PUT | COMMAND_DELETE_RANGE)) | None => false,
        Some(&COMMAND_RANGE) => true,
        Some(_) => KvCommand::decode(bytes).is_ok_and(|command| command.read_only()),
    }
}

impl Put {
    #[must_use]
    pub fn new(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        Self { key: key.into(), value: value.into(), ..Self::default() }
    }
}

impl Range {
    /// One key.
    #[must_use]
    pub fn key(key: impl Into<Bytes>) -> Self {
        Self { key: key.into(), ..Self::default() }
    }

    /// Every key that begins with `prefix`; all keys when it is empty.
    #[must_use]
    pub fn prefix(prefix: impl Into<Bytes>) -> Self {
        let prefix: Bytes = prefix.into();
        let range_end = prefix_end(&prefix);
        let key = if prefix.is_empty() { Bytes::from_static(&[0]) } else { prefix };
        Self { key, range_end, ..Self::default() }
    }
}

impl Txn {
    #[must_use]
    pub fn read_only(&self) -> bool {
        self.success.iter().chain(&self.failure).all(|op| match op {
            TxnOp::Range(_) => true,
            TxnOp::Txn(txn) => txn.read_only(),
            TxnOp::Put(_) | TxnOp::DeleteRange(_) => false,
        })
    }

    /// Adds a comparison.
    #[must_use]
    pub fn when(mut self, key: impl Into<Bytes>, op: CompareOp, target: CompareTarget) -> Self {
        self.compare.push(Compare { key: key.into(), range_end: Bytes::new(), op, target });
        self
    }

    /// Adds an operation to the branch that runs when all comparisons hold.
    #[must_use]
    pub fn then(mut self, op: TxnOp) -> Self {
        self.success.push(op);
        self
    }

    /// Adds an operation to the branch that runs when one does not.
    #[must_use]
    pub fn or_else(mut self, op: TxnOp) -> Self {
        self.failure.push(op);
        self
    }
}

impl KvReply {
    #[must_use]
    pub fn encode(&self) -> Bytes {
        Bytes::from(encode(self))
    }

    /// # Errors
    /// When the bytes are no reply; also when its transactions nest deeper than any command may.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        decode(bytes)
    }
}

enum ReadError {
    Io(Error),
    TooDeep,
    TooMany,
}

impl From<Error> for ReadError {
    fn from(error: Error) -> Self {
        Self::Io(error)
    }
}

impl From<ReadError> for Error {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Io(error) => error,
            ReadError::TooDeep => Self::new(ErrorKind::InvalidData, "a transaction nests too deep"),
            ReadError::TooMany => Self::new(ErrorKind::InvalidData, "a transaction has too many operations"),
        }
    }
}

/// What is left of the operations and comparisons one outermost transaction may have.
struct Budget {
    operations: usize,
    comparisons: usize,
}

impl Budget {
    fn new() -> Self {
        Self { operations: TXN_OPERATIONS_MAX, comparisons: TXN_OPERATIONS_MAX }
    }
}

fn take(count: u32, left: &mut usize) -> Result<(), ReadError> {
    let count = usize::try_from(count).map_err(|_| ReadError::TooMany)?;
    *left = left.checked_sub(count).ok_or(ReadError::TooMany)?;
    Ok(())
}

fn read_txn<R: Read>(reader: &mut R, depth: usize, budget: &mut Budget) -> Result<Txn, ReadError> {
    if depth > TXN_DEPTH_MAX {
        return Err(ReadError::TooDeep);
    }
    let comparisons = u32::deserialize_reader(reader)?;
    take(comparisons, &mut budget.comparisons)?;
    let mut compare = Vec::new();
    for _ in 0..comparisons {
        compare.push(Compare::deserialize_reader(reader)?);
    }
    let success = read_ops(reader, depth, budget)?;
    let failure = read_ops(reader, depth, budget)?;
    Ok(Txn { compare, success, failure })
}

fn read_ops<R: Read>(reader: &mut R, depth: usize, budget: &mut Budget) -> Result<Vec<TxnOp>, ReadError> {
    let count = u32::deserialize_reader(reader)?;
    take(count, &mut budget.operations)?;
    let mut ops = Vec::new();
    for _ in 0..count {
        ops.push(match u8::deserialize_reader(reader)? {
            OP_TXN => TxnOp::Txn(read_txn(reader, depth + 1, budget)?),
            tag => TxnOp::deserialize_variant(reader, tag)?,
        });
    }
    Ok(ops)
}

impl BorshDeserialize for Txn {
    fn deserialize_reader<R: Read>(reader: &mut R) -> Result<Self, Error> {
        Ok(read_txn(reader, 1, &mut Budget::new())?)
    }
}

fn read_txn_reply<R: Read>(reader: &mut R, depth: usize, left: &mut usize) -> Result<TxnReply, ReadError> {
    if depth > TXN_DEPTH_MAX {
        return Err(ReadError::TooDeep);
    }
    let succeeded = bool::deserialize_reader(reader)?;
    let count = u32::deserialize_reader(reader)?;
    take(count, left)?;
    let mut responses = Vec::new();
    for _ in 0..count {
        responses.push(match u8::deserialize_reader(reader)? {
            BODY_TXN => KvBody::Txn(read_txn_reply(reader, depth + 1, left)?),
            tag => KvBody::deserialize_variant(reader, tag)?,
        });
    }
    Ok(TxnReply { succeeded, responses })
}

impl BorshDeserialize for TxnReply {
    fn deserialize_reader<R: Read>(reader: &mut R) -> Result<Self, Error> {
        Ok(read_txn_reply(reader, 1, &mut { TXN_OPERATIONS_MAX })?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    fn nested(depth: usize) -> Txn {
        let mut txn = Txn::default().then(TxnOp::Put(Put::new("k", "v")));
        for _ in 1..depth {
            txn = Txn::default().then(TxnOp::Txn(txn));
        }
        txn
    }

    #[test]
    fn the_tags_are_those_of_the_encoding() {
        assert_eq!(KvCommand::put("k", "v").encode()[0], COMMAND_PUT);
        assert_eq!(KvCommand::get("k").encode()[0], COMMAND_RANGE);
        assert_eq!(KvCommand::delete("k").encode()[0], COMMAND_DELETE_RANGE);
        assert_eq!(KvCommand::Txn(Txn::default()).encode()[0], COMMAND_TXN);
        assert_eq!(encode(&TxnOp::Txn(Txn::default()))[0], OP_TXN);
        assert_eq!(encode(&KvBody::Txn(TxnReply::default()))[0], BODY_TXN);
    }

    #[test]
    fn depth_is_bounded_before_recursing() {
        let deepest = KvCommand::Txn(nested(TXN_DEPTH_MAX));
        assert_eq!(KvCommand::decode(&deepest.encode()), Ok(deepest));
        let deeper = KvCommand::Txn(nested(TXN_DEPTH_MAX + 1));
        assert_eq!(KvCommand::decode(&deeper.encode()), Err(KvError::TooDeep));
        // Each level: no comparison, one operation, which is a transaction. A reader that recursed would overflow.
        let mut bomb = vec![COMMAND_TXN];
        for _ in 0..200_000 {
            bomb.extend_from_slice(&[0, 0, 0, 0, 1, 0, 0, 0, OP_TXN]);
        }
        assert_eq!(KvCommand::decode(&bomb), Err(KvError::TooDeep));
        assert!(decode::<KvCommand>(&bomb).is_err());
        let mut reply = vec![0; 8];
        for _ in 0..200_000 {
            reply.extend_from_slice(&[BODY_TXN, 1, 1, 0, 0, 0]);
        }
        assert_eq!(KvReply::decode(&reply), Err(CodecError::Malformed));
    }

    #[test]
    fn operations_are_counted_through_all_levels_and_branches() {
        let ops = |count| vec![TxnOp::Range(Range::key("k")); count];
        let inner = |count| TxnOp::Txn(Txn { success: ops(count), ..Txn::default() });
        // 127 in the branches and the inner transaction itself: 128.
        let full = Txn { success: ops(60), failure: vec![inner(67)], ..Txn::default() };
        assert!(KvCommand::decode(&KvCommand::Txn(full).encode()).is_ok());
        let over = Txn { success: ops(60), failure: vec![inner(68)], ..Txn::default() };
        assert_eq!(KvCommand::decode(&KvCommand::Txn(over).encode()), Err(KvError::TooManyOperations));
        // A huge count allocates nothing.
        assert_eq!(
            KvCommand::decode(&[COMMAND_TXN, 0, 0, 0, 0, 255, 255, 255, 255]),
            Err(KvError::TooManyOperations)
        );
        assert_eq!(KvCommand::decode(&[COMMAND_TXN, 255, 255, 255, 255]), Err(KvError::TooManyOperations));
    }

    #[test]
    fn nothing_may_follow_a_command() {
        for command in [KvCommand::put("k", "v"), KvCommand::Txn(nested(3)), KvCommand::LeaseList] {
            let mut bytes = command.encode().to_vec();
            assert_eq!(KvCommand::decode(&bytes), Ok(command));
            bytes.push(0);
            assert_eq!(KvCommand::decode(&bytes), Err(KvError::Malformed));
        }
    }

    #[test]
    fn a_prefix_ends_where_the_next_begins() {
        assert_eq!(prefix_end(b"a"), Bytes::from_static(b"b"));
        assert_eq!(prefix_end(b"a\xff"), Bytes::from_static(b"b"));
        assert_eq!(prefix_end(b"\xff\xff"), Bytes::from_static(b"\0"));
        assert_eq!(prefix_end(b""), Bytes::from_static(b"\0"));
    }

    #[test]
    fn a_transaction_reads_only_when_no_branch_writes() {
        let read = Txn::default().then(TxnOp::Range(Range::key("k")));
        assert!(KvCommand::Txn(read.clone()).read_only());
        assert!(!KvCommand::Txn(read.clone().or_else(TxnOp::Txn(nested(2)))).read_only());
        assert!(bytes_read_only(&KvCommand::Txn(read).encode()));
        assert!(!bytes_read_only(&KvCommand::Txn(nested(2)).encode()));
        assert!(!bytes_read_only(&[COMMAND_TXN]));
    }
}
