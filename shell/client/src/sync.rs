//! Convergent keys of one node: what an application writes there and reads there, without anybody's order.
//!
//! One node answers and is taken at its word: what it wrote is durable there, what it shows is what it has seen. Whom to
//! ask is the application's choice; without one the first node that is reached is asked, and a write is never repeated at
//! another once it may have been taken.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dwcp_base::{Hash, ReplicaId};
use dwcp_proto::v3;
use dwcp_replica::sync::SyncWritten;
use dwcp_replica::sync::values::{View, Write};
use tokio::time::timeout;
use tonic::{Code, Response, Status};

use crate::client::Shared;
use crate::connection::{NodeClient, status_text};
use crate::error::NodeError;
use crate::sync_convert as convert;

/// Waited beyond what the node waits.
const GRACE: Duration = Duration::from_secs(5);

/// Why a call was not answered as hoped.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SyncError {
    #[error("{0}: not written")]
    NotReached(NodeError),
    #[error("refused: {0}")]
    Refused(String),
    #[error("outcome unknown: {0}")]
    Unknown(String),
    #[error("the answer cannot be read: {0}")]
    Malformed(&'static str),
}

impl SyncError {
    /// Was nothing written, for certain?
    #[must_use]
    pub fn definitely_not_written(&self) -> bool {
        matches!(self, Self::NotReached(_) | Self::Refused(_))
    }
}

/// What stands at a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyncValue {
    /// `None`: the key does not exist.
    pub view: Option<View>,
    /// Names of its types; more than one while a clash waits to be settled.
    pub kinds: Vec<String>,
    /// Versions of a register that stand side by side.
    pub siblings: u32,
}

/// One conflict that a node saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyncConflict {
    pub key: Bytes,
    pub path: Vec<Bytes>,
    pub by: String,
    pub siblings: Vec<String>,
    pub strategy: String,
    pub outcome: String,
}

/// How many there were, how many stand open, and the newest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyncConflicts {
    pub count: u64,
    pub open: u64,
    pub events: Vec<SyncConflict>,
}

/// Where a node stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyncStanding {
    /// Of everything convergent that it holds.
    pub digest: Hash,
    /// Per origin, how far.
    pub applied: Vec<(String, u64)>,
    pub floor: u64,
    pub conflicts: u64,
    pub keys: u64,
}

/// Peers that hold the same as the asked node, that hold something else, and that said nothing in time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyncCompared {
    pub level: Vec<ReplicaId>,
    pub differs: Vec<ReplicaId>,
    pub silent: Vec<ReplicaId>,
}

/// Changes as they come.
#[derive(Debug)]
pub struct SyncWatch {
    stream: tonic::Streaming<v3::SyncChanges>,
}

const UNKNOWN_TYPE: SyncError = SyncError::Malformed("a value of no known type");

/// See the module.
#[derive(Clone, Debug)]
pub struct SyncClient {
    shared: Arc<Shared>,
    node: Option<ReplicaId>,
}

type Answered<T> = Result<Response<T>, Status>;

impl SyncClient {
    pub(crate) fn new(shared: Arc<Shared>, node: Option<ReplicaId>) -> Self {
        Self { shared, node }
    }

    /// A connection to the node asked for, or to the first that there is.
    async fn reach(&self) -> Result<NodeClient, SyncError> {
        let mut last = NodeError::Unreachable("no such node is configured".into());
        for index in self.shared.indexes(self.node) {
            match self.shared.reach(index).await {
                Ok(client) => return Ok(client),
                Err(error) => last = error,
            }
        }
        Err(SyncError::NotReached(last))
    }

    async fn answered<T>(
        &self,
        patience: Duration,
        question: impl Future<Output = Answered<T>>,
    ) -> Result<T, SyncError> {
        match timeout(patience, question).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(refused(&status)),
            Err(_) => Err(SyncError::Unknown(format!("no answer within {} ms", patience.as_millis()))),
        }
    }

    /// Writes one frame: all or nothing. `wait`: where it goes by gossip, on how many nodes it is to be durable first.
    ///
    /// # Errors
    /// See [`SyncError::definitely_not_written`].
    pub async fn write(
        &self,
        writes: &[Write],
        wait: u8,
        within: Option<Duration>,
    ) -> Result<SyncWritten, SyncError> {
        let mut client = self.reach().await?;
        let within = within.unwrap_or(self.shared.call_timeout);
        let request = v3::SyncWriteRequest {
            operations: writes.iter().map(convert::operation).collect(),
            wait: wait.into(),
            timeout_ms: u32::try_from(within.as_millis()).unwrap_or(u32::MAX).max(1),
        };
        let answer = self.answered(within + GRACE, client.sync.write(request)).await?;
        convert::written(answer).ok_or(SyncError::Malformed("a road of a later version"))
    }

    /// # Errors
    /// The node was not reached or refused.
    pub async fn get(&self, key: impl Into<Bytes>, path: Vec<Bytes>) -> Result<SyncValue, SyncError> {
        let mut client = self.reach().await?;
        let request = v3::SyncGetRequest { key: key.into(), path };
        let answer = self.answered(self.shared.call_timeout, client.sync.get(request)).await?;
        convert::value(answer).ok_or(UNKNOWN_TYPE)
    }

    /// Keys below a prefix, after one of them; true when there are more.
    ///
    /// # Errors
    /// As [`SyncClient::get`].
    pub async fn list(
        &self,
        prefix: impl Into<Bytes>,
        after: Option<Bytes>,
        limit: u32,
    ) -> Result<(Vec<(Bytes, View)>, bool), SyncError> {
        let mut client = self.reach().await?;
        let request = v3::SyncListRequest { prefix: prefix.into(), after, limit };
        let answer = self.answered(self.shared.call_timeout, client.sync.list(request)).await?;
        convert::keys(answer).ok_or(UNKNOWN_TYPE)
    }

    /// Every change below a prefix from now on.
    ///
    /// # Errors
    /// As [`SyncClient::get`].
    pub async fn watch(&self, prefix: impl Into<Bytes>) -> Result<SyncWatch, SyncError> {
        let mut client = self.reach().await?;
        let request = v3::SyncWatchRequest { prefix: prefix.into() };
        let stream = self.answered(self.shared.call_timeout, client.sync.watch(request)).await?;
        let mut watch = SyncWatch { stream };
        // The first message says that nothing is missed from here on.
        watch.next().await?;
        Ok(watch)
    }

    /// # Errors
    /// As [`SyncClient::get`].
    pub async fn conflicts(&self, limit: u32) -> Result<SyncConflicts, SyncError> {
        let mut client = self.reach().await?;
        let request = v3::SyncConflictsRequest { limit };
        let answer = self.answered(self.shared.call_timeout, client.sync.conflicts(request)).await?;
        Ok(convert::conflicts(answer))
    }

    /// # Errors
    /// As [`SyncClient::get`].
    pub async fn stand(&self) -> Result<SyncStanding, SyncError> {
        let mut client = self.reach().await?;
        let answer =
            self.answered(self.shared.call_timeout, client.sync.stand(v3::SyncStandRequest {})).await?;
        convert::standing(answer).ok_or(SyncError::Malformed("a digest"))
    }

    /// Has the node ask peers (all of them, for none) whether they hold the same.
    ///
    /// # Errors
    /// As [`SyncClient::get`].
    pub async fn compare(&self, peers: &[ReplicaId], within: Duration) -> Result<SyncCompared, SyncError> {
        let mut client = self.reach().await?;
        let timeout_ms = u32::try_from(within.as_millis()).unwrap_or(u32::MAX).max(1);
        let request =
            v3::SyncCompareRequest { peers: peers.iter().map(|id| id.0.into()).collect(), timeout_ms };
        let answer = self.answered(within + GRACE, client.sync.compare(request)).await?;
        convert::compared(answer).ok_or(SyncError::Malformed("a replica's number"))
    }
}

impl SyncWatch {
    /// The next changes; nothing in place of a value that was deleted.
    ///
    /// # Errors
    /// The watch ended: read what may have changed, and watch again.
    pub async fn next(&mut self) -> Result<Vec<(Bytes, Option<View>)>, SyncError> {
        match self.stream.message().await {
            Ok(Some(changes)) => convert::changes(changes).ok_or(UNKNOWN_TYPE),
            Ok(None) => Err(SyncError::Unknown("the node ended the watch".into())),
            Err(status) => Err(refused(&status)),
        }
    }
}

fn refused(status: &Status) -> SyncError {
    let text = status_text(status);
    match status.code() {
        Code::FailedPrecondition
        | Code::InvalidArgument
        // Longer than the node reads: it never saw what was asked.
        | Code::OutOfRange
        | Code::PermissionDenied
        | Code::ResourceExhausted => SyncError::Refused(text),
        Code::Unimplemented => SyncError::Refused("this node knows no state sync: upgrade it".into()),
        _ => SyncError::Unknown(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_node_never_read_is_definitely_not_written() {
        let not_written = |status: Status| refused(&status).definitely_not_written();
        assert!(not_written(Status::out_of_range("longer than a request may be")));
        assert!(not_written(Status::failed_precondition("refused")));
        assert!(!not_written(Status::unknown("not acknowledged in time")));
        assert!(!not_written(Status::unavailable("the node is stopping")));
    }
}
