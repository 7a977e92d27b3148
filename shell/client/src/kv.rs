//! The key-value store as an application writes it: `client.kv().put("a", "1").lease(7).await?`.
//!
//! Every request that changes something is ordered. What is read is at least as new as anything acknowledged before the call: a
//! Raft segment's leader answers it without an entry where it may be believed, and it is ordered where not (see
//! `Session::read`). Each reply comes with its receipt (`Believed`). Only `.stale()` reads one node's own state instead.
//! Nothing here knows sessions beyond handing commands to one.

use crate::client::{CallOptions, Session, read_reply};
use crate::error::{ClientError, NodeError};
use crate::receipt::{Believed, OwnState};
use bytes::Bytes;
use dwcp_base::Ack;
use dwcp_state::Command;
use dwcp_state::kv::{
    DeleteRange, KeyValue, KvBody, KvCommand, KvReply, Put, Range, SortBy, SortOrder, Txn, prefix_end,
};
use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::time::Duration;

/// The store, through one session.
#[derive(Clone, Copy, Debug)]
pub struct Kv<'a> {
    session: &'a Session,
}

/// A request being put together; `.await` sends it.
#[derive(Debug)]
#[must_use = "a request does nothing until it is awaited"]
pub struct Request<'a, C> {
    session: &'a Session,
    command: C,
    options: CallOptions,
}

/// What a command is on the wire and what its answer reads as.
pub trait KvRequest: Send + 'static {
    type Reply: Send;
    fn into_command(self) -> KvCommand;
    /// `None` when the body is of another kind.
    fn read(revision: u64, body: KvBody) -> Option<Self::Reply>;
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PutReply {
    /// The store's revision after the command.
    pub revision: u64,
    /// The key as it was, when asked for and there was one.
    pub prev_kv: Option<KeyValue>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeReply {
    pub revision: u64,
    pub kvs: Vec<KeyValue>,
    /// The limit cut some off.
    pub more: bool,
    /// Keys in the range, whatever the limit.
    pub count: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeleteReply {
    pub revision: u64,
    pub deleted: u64,
    /// The keys as they were, when asked for.
    pub prev_kvs: Vec<KeyValue>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TxnReply {
    pub revision: u64,
    /// All comparisons held.
    pub succeeded: bool,
    /// The answers to the branch that ran.
    pub responses: Vec<KvBody>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RevisionReply {
    pub revision: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrantReply {
    pub revision: u64,
    pub id: i64,
    pub ttl_s: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseReply {
    pub revision: u64,
    pub id: i64,
    /// Seconds left; -1 when there is no such lease.
    pub ttl_s: i64,
    pub granted_ttl_s: u64,
    pub keys: Vec<Bytes>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AlarmReply {
    pub revision: u64,
    pub no_space: bool,
    pub bytes: u64,
    pub quota_bytes: u64,
}

impl RangeReply {
    /// The first key, for reads of one key.
    #[must_use]
    pub fn kv(&self) -> Option<&KeyValue> {
        self.kvs.first()
    }

    /// The first key's value.
    #[must_use]
    pub fn value(&self) -> Option<&[u8]> {
        self.kv().map(|kv| &kv.value[..])
    }
}

impl<'a> Kv<'a> {
    pub(crate) fn new(session: &'a Session) -> Self {
        Self { session }
    }

    fn request<C>(&self, command: C) -> Request<'a, C> {
        Request { session: self.session, command, options: CallOptions::default() }
    }

    /// Sets a key.
    pub fn put(&self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Request<'a, Put> {
        self.request(Put::new(key, value))
    }

    /// Reads one key, or a range of keys when widened.
    pub fn get(&self, key: impl Into<Bytes>) -> Request<'a, Range> {
        self.request(Range::key(key))
    }

    /// Reads keys from `key` up to but without `end`; an `end` of one zero byte means: all from `key` on.
    pub fn range(&self, key: impl Into<Bytes>, end: impl Into<Bytes>) -> Request<'a, Range> {
        self.request(Range { key: key.into(), range_end: end.into(), ..Range::default() })
    }

    /// Deletes one key, or a range when widened.
    pub fn delete(&self, key: impl Into<Bytes>) -> Request<'a, DeleteRange> {
        self.request(DeleteRange { key: key.into(), ..DeleteRange::default() })
    }

    /// Runs a transaction in one revision.
    pub fn txn(&self, txn: Txn) -> Request<'a, Txn> {
        self.request(txn)
    }

    /// Forgets what was superseded at or before this revision.
    pub fn compact(&self, revision: u64) -> Request<'a, Compact> {
        self.request(Compact { revision })
    }

    /// Grants a lease; an id of 0 lets the store choose one.
    pub fn lease_grant(&self, id: i64, ttl_s: u64) -> Request<'a, LeaseGrant> {
        self.request(LeaseGrant { id, ttl_s })
    }

    /// Ends a lease and deletes the keys that hang on it.
    pub fn lease_revoke(&self, id: i64) -> Request<'a, LeaseRevoke> {
        self.request(LeaseRevoke { id })
    }

    pub fn lease_keep_alive(&self, id: i64) -> Request<'a, LeaseKeepAlive> {
        self.request(LeaseKeepAlive { id })
    }

    /// How long a lease still lives, and with `keys` what hangs on it.
    pub fn lease_time_to_live(&self, id: i64, keys: bool) -> Request<'a, LeaseTimeToLive> {
        self.request(LeaseTimeToLive { id, keys })
    }

    pub fn lease_list(&self) -> Request<'a, LeaseList> {
        self.request(LeaseList)
    }

    pub fn alarms(&self) -> Request<'a, Alarms> {
        self.request(Alarms { disarm: false })
    }

    /// Lifts the quota alarm. Admins only.
    pub fn alarm_disarm(&self) -> Request<'a, Alarms> {
        self.request(Alarms { disarm: true })
    }
}

impl<C> Request<'_, C> {
    /// Instead of the configured `call_timeout`.
    pub fn within(mut self, timeout: Duration) -> Self {
        self.options.within = Some(timeout);
        self
    }

    /// When to be answered: once it is committed, or once a certificate of the root log covers it.
    pub fn ack(mut self, ack: Ack) -> Self {
        self.options.ack = Some(ack);
        self
    }
}

impl<'a, C: KvRequest> IntoFuture for Request<'a, C> {
    /// The reply with its [`Receipt`](crate::Receipt).
    type Output = Result<Believed<C::Reply>, ClientError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send + 'a>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let command = self.command.into_command();
            let answer = if command.read_only() {
                self.session.read_encoded(command.to_command(), self.options).await?
            } else {
                self.session.one(command.to_command(), self.options).await?
            };
            answer.try_map(|bytes| {
                let KvReply { revision, body } = read_reply(bytes)?;
                C::read(revision, body)
                    .ok_or_else(|| ClientError::UnexpectedAnswer("another command's answer".into()))
            })
        })
    }
}

impl Request<'_, Put> {
    /// The key lives as long as this lease.
    pub fn lease(mut self, id: i64) -> Self {
        self.command.lease = id;
        self
    }

    /// Answer with the key as it was.
    pub fn prev_kv(mut self) -> Self {
        self.command.prev_kv = true;
        self
    }

    /// Keep the value; change only the lease.
    pub fn ignore_value(mut self) -> Self {
        self.command.ignore_value = true;
        self
    }

    /// Keep the lease.
    pub fn ignore_lease(mut self) -> Self {
        self.command.ignore_lease = true;
        self
    }
}

impl Request<'_, Range> {
    /// Every key that begins with the given one.
    pub fn prefix(mut self) -> Self {
        (self.command.key, self.command.range_end) = prefix_range(std::mem::take(&mut self.command.key));
        self
    }

    /// As the store was at this revision.
    pub fn revision(mut self, revision: u64) -> Self {
        self.command.revision = revision;
        self
    }

    /// At most so many keys; 0 for all.
    pub fn limit(mut self, limit: u64) -> Self {
        self.command.limit = limit;
        self
    }

    pub fn sort(mut self, by: SortBy, order: SortOrder) -> Self {
        (self.command.sort_by, self.command.sort_order) = (by, order);
        self
    }

    pub fn keys_only(mut self) -> Self {
        self.command.keys_only = true;
        self
    }

    pub fn count_only(mut self) -> Self {
        self.command.count_only = true;
        self
    }

    /// Is ordered as a command, whatever orders commands now: with f >= 1 the answer waits for f + 1 signatures where the root
    /// orders.
    pub fn ordered(mut self) -> Self {
        self.options.ordered = true;
        self
    }

    /// Reads one node's own state: fast, unsigned, and possibly old.
    ///
    /// # Errors
    /// When no node answers or the node refuses.
    pub async fn stale(self) -> Result<OwnState<RangeReply>, NodeError> {
        let command = Command::Machine(KvCommand::Range(self.command).encode()).encode();
        let answer = self.session.query(command).await?;
        answer.try_map(|bytes| {
            let malformed = || NodeError::Malformed("not the answer to a range".into());
            let reply = KvReply::decode(&bytes).map_err(|_| malformed())?;
            Range::read(reply.revision, reply.body).ok_or_else(malformed)
        })
    }
}

impl Request<'_, DeleteRange> {
    /// Every key that begins with the given one.
    pub fn prefix(mut self) -> Self {
        (self.command.key, self.command.range_end) = prefix_range(std::mem::take(&mut self.command.key));
        self
    }

    /// Up to but without `end`.
    pub fn range_end(mut self, end: impl Into<Bytes>) -> Self {
        self.command.range_end = end.into();
        self
    }

    /// Answer with the keys as they were.
    pub fn prev_kv(mut self) -> Self {
        self.command.prev_kv = true;
        self
    }
}

fn prefix_range(prefix: Bytes) -> (Bytes, Bytes) {
    let end = prefix_end(&prefix);
    // No key is empty, so "all keys" begins at the smallest key there can be.
    (if prefix.is_empty() { Bytes::from_static(&[0]) } else { prefix }, end)
}

impl KvRequest for Put {
    type Reply = PutReply;

    fn into_command(self) -> KvCommand {
        KvCommand::Put(self)
    }

    fn read(revision: u64, body: KvBody) -> Option<PutReply> {
        if let KvBody::Put { prev_kv } = body { Some(PutReply { revision, prev_kv }) } else { None }
    }
}

impl KvRequest for Range {
    type Reply = RangeReply;

    fn into_command(self) -> KvCommand {
        KvCommand::Range(self)
    }

    fn read(revision: u64, body: KvBody) -> Option<RangeReply> {
        let KvBody::Range { kvs, more, count } = body else { return None };
        Some(RangeReply { revision, kvs, more, count })
    }
}

impl KvRequest for DeleteRange {
    type Reply = DeleteReply;

    fn into_command(self) -> KvCommand {
        KvCommand::DeleteRange(self)
    }

    fn read(revision: u64, body: KvBody) -> Option<DeleteReply> {
        let KvBody::DeleteRange { deleted, prev_kvs } = body else { return None };
        Some(DeleteReply { revision, deleted, prev_kvs })
    }
}

impl KvRequest for Txn {
    type Reply = TxnReply;

    fn into_command(self) -> KvCommand {
        KvCommand::Txn(self)
    }

    fn read(revision: u64, body: KvBody) -> Option<TxnReply> {
        let KvBody::Txn(reply) = body else { return None };
        Some(TxnReply { revision, succeeded: reply.succeeded, responses: reply.responses })
    }
}

/// See [`Kv::compact`].
#[derive(Clone, Copy, Debug)]
pub struct Compact {
    revision: u64,
}

impl KvRequest for Compact {
    type Reply = RevisionReply;

    fn into_command(self) -> KvCommand {
        KvCommand::Compact { revision: self.revision }
    }

    fn read(revision: u64, body: KvBody) -> Option<RevisionReply> {
        matches!(body, KvBody::Compact).then_some(RevisionReply { revision })
    }
}

/// See [`Kv::lease_grant`].
#[derive(Clone, Copy, Debug)]
pub struct LeaseGrant {
    id: i64,
    ttl_s: u64,
}

impl KvRequest for LeaseGrant {
    type Reply = GrantReply;

    fn into_command(self) -> KvCommand {
        KvCommand::LeaseGrant { id: self.id, ttl_s: self.ttl_s }
    }

    fn read(revision: u64, body: KvBody) -> Option<GrantReply> {
        let KvBody::LeaseGrant { id, ttl_s } = body else { return None };
        Some(GrantReply { revision, id, ttl_s })
    }
}

/// See [`Kv::lease_revoke`].
#[derive(Clone, Copy, Debug)]
pub struct LeaseRevoke {
    id: i64,
}

impl KvRequest for LeaseRevoke {
    type Reply = RevisionReply;

    fn into_command(self) -> KvCommand {
        KvCommand::LeaseRevoke { id: self.id }
    }

    fn read(revision: u64, body: KvBody) -> Option<RevisionReply> {
        matches!(body, KvBody::LeaseRevoke).then_some(RevisionReply { revision })
    }
}

/// See [`Kv::lease_keep_alive`].
#[derive(Clone, Copy, Debug)]
pub struct LeaseKeepAlive {
    id: i64,
}

impl KvRequest for LeaseKeepAlive {
    type Reply = GrantReply;

    fn into_command(self) -> KvCommand {
        KvCommand::LeaseKeepAlive { id: self.id }
    }

    fn read(revision: u64, body: KvBody) -> Option<GrantReply> {
        let KvBody::LeaseKeepAlive { id, ttl_s } = body else { return None };
        Some(GrantReply { revision, id, ttl_s })
    }
}

/// See [`Kv::lease_time_to_live`].
#[derive(Clone, Copy, Debug)]
pub struct LeaseTimeToLive {
    id: i64,
    keys: bool,
}

impl KvRequest for LeaseTimeToLive {
    type Reply = LeaseReply;

    fn into_command(self) -> KvCommand {
        KvCommand::LeaseTimeToLive { id: self.id, keys: self.keys }
    }

    fn read(revision: u64, body: KvBody) -> Option<LeaseReply> {
        let KvBody::LeaseTimeToLive { id, ttl_s, granted_ttl_s, keys } = body else { return None };
        Some(LeaseReply { revision, id, ttl_s, granted_ttl_s, keys })
    }
}

/// See [`Kv::lease_list`].
#[derive(Clone, Copy, Debug)]
pub struct LeaseList;

impl KvRequest for LeaseList {
    type Reply = Vec<i64>;

    fn into_command(self) -> KvCommand {
        KvCommand::LeaseList
    }

    fn read(_revision: u64, body: KvBody) -> Option<Vec<i64>> {
        if let KvBody::LeaseList { ids } = body { Some(ids) } else { None }
    }
}

/// See [`Kv::alarms`] and [`Kv::alarm_disarm`].
#[derive(Clone, Copy, Debug)]
pub struct Alarms {
    disarm: bool,
}

impl KvRequest for Alarms {
    type Reply = AlarmReply;

    fn into_command(self) -> KvCommand {
        if self.disarm { KvCommand::AlarmDisarm } else { KvCommand::AlarmList }
    }

    fn read(revision: u64, body: KvBody) -> Option<AlarmReply> {
        let KvBody::Alarms { no_space, bytes, quota_bytes } = body else { return None };
        Some(AlarmReply { revision, no_space, bytes, quota_bytes })
    }
}
