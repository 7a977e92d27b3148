//! State sync (ASS v3) for a program that embeds a node: typed values that any node may change at any time, with or without the
//! others, and that are equal wherever the same changes have arrived.
//!
//! It speaks to the own node alone, which answers for itself: what it wrote is durable there, what it shows it has seen. The
//! mode decides the road: through the log in datacenter mode, by gossip in internet mode, log first in hybrid. The log is
//! the node's own, of which there is one: [`StateSync::over`] takes the node, and its Raft is named where the node is made
//! ([`Builder::set_raft_node`](crate::adaptive::Builder::set_raft_node)). Beside it
//! [`AdaptiveConsensus`](crate::AdaptiveConsensus) orders what must be ordered; `AdaptiveConsensus::state_sync` gives both
//! on one node.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use dwcp_base::{NetworkMode, ReplicaId, Trust};
use dwcp_node::{Busy, ClientPort, NodeHandle, NotAnswering, sync_json};
/// The types of convergent values.
pub use dwcp_replica::sync::values;
use dwcp_replica::sync::values::{Conflict, Op, Plain, View, Write};
use dwcp_replica::sync::{SyncPeerStatus, SyncWritten};
use dwcp_replica::{ClientReply, ClientRequest, SyncReply, SyncRequest};
use serde::Serialize;

use crate::operator::{Operator, OrderError};

/// A write that does not say waits so long.
const PATIENCE: Duration = Duration::from_secs(10);
/// Beyond what the node waits.
const GRACE: Duration = Duration::from_secs(5);

/// Why nothing, or nothing certain, came of a call.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateSyncError {
    /// Nothing was written.
    #[error("refused: {0}")]
    Refused(String),
    /// Written on this node; it spreads, and must not be repeated.
    #[error("not acknowledged in time: {0}")]
    Unacknowledged(String),
    #[error("the value cannot be written as JSON: {0}")]
    Value(#[from] serde_json::Error),
    #[error("the value cannot be: {0}")]
    Plain(String),
    /// The mode wants Raft segments, and this program was started without one. Nothing was written.
    #[error("Raft node not initialized")]
    RaftNotInitialized,
    #[error("no admin key was given: name one with `admin` before `start`")]
    NoAdmin,
    #[error(transparent)]
    Order(#[from] OrderError),
    #[error(transparent)]
    Busy(#[from] Busy),
    #[error(transparent)]
    NotAnswering(#[from] NotAnswering),
    #[error("the node has stopped")]
    Stopped,
}

/// What a node says of its state sync, in the words of the interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyncMetrics {
    pub mode: NetworkMode,
    /// Writes acknowledged here.
    pub sync_count: u64,
    pub last_sync_time: Option<SystemTime>,
    pub avg_sync_latency: Duration,
    /// Real concurrent writes; alike on every node that has applied the same.
    pub conflict_count: u64,
    pub peers: Vec<SyncPeerStatus>,
}

/// Peers that hold exactly what this node holds, that hold something else, and that said nothing in time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compared {
    pub level: Vec<ReplicaId>,
    pub differs: Vec<ReplicaId>,
    pub silent: Vec<ReplicaId>,
}

/// What a node saw of concurrent writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflicts {
    /// Of all time, but for clashes of types of which one side was emptied before anybody settled; alike on every node that has
    /// applied the same.
    pub count: u64,
    /// Of those, the ones that nobody has settled.
    pub open: u64,
    /// The newest that this node saw, oldest first; of the last thousand.
    pub events: Vec<Conflict>,
}

/// Changes below a prefix, as they come.
#[derive(Debug)]
pub struct Watch {
    port: ClientPort,
}

impl Watch {
    /// The next changes; `None` in place of a value that was deleted.
    ///
    /// # Errors
    /// The node has stopped, or this watch read too slowly: read what may have changed, and watch again.
    pub async fn next(&mut self) -> Result<Vec<(Bytes, Option<View>)>, StateSyncError> {
        match self.port.recv().await {
            Some(ClientReply::Sync { reply: SyncReply::Changed { items }, .. }) => Ok(items),
            Some(ClientReply::Sync { reply: SyncReply::Refused { reason, .. }, .. }) => {
                Err(StateSyncError::Refused(reason))
            }
            _ => Err(StateSyncError::Stopped),
        }
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub struct StateSync {
    node: NodeHandle,
    operator: Option<Operator>,
    wait: u8,
    patience: Duration,
}

impl StateSync {
    /// Over a running node.
    #[must_use]
    pub fn over(node: NodeHandle) -> Self {
        Self { node, operator: None, wait: 1, patience: PATIENCE }
    }

    /// With somebody who may order modes.
    #[must_use]
    pub fn with_operator(mut self, operator: Operator) -> Self {
        self.operator = Some(operator);
        self
    }

    /// From now on a change that goes by gossip is acknowledged once it is durable on so many nodes.
    #[must_use]
    pub fn wait(mut self, nodes: u8) -> Self {
        self.wait = nodes;
        self
    }

    /// How long a write may take to be acknowledged; at most a minute.
    #[must_use]
    pub fn within(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Sets every key of the map, all or none, in one frame.
    ///
    /// # Errors
    /// See [`StateSyncError`].
    pub async fn sync_state<K: AsRef<[u8]>, V: Serialize>(
        &self,
        state: impl IntoIterator<Item = (K, V)>,
    ) -> Result<SyncWritten, StateSyncError> {
        let put = |(key, value): (K, V)| {
            Ok(Write::new(Bytes::copy_from_slice(key.as_ref()), Op::Put(plain(&value)?)))
        };
        let writes = state.into_iter().map(put).collect::<Result<Vec<_>, StateSyncError>>()?;
        self.write(writes).await
    }

    /// Typed operations, all or none, in one frame.
    ///
    /// # Errors
    /// See [`StateSyncError`].
    pub async fn write(&self, writes: Vec<Write>) -> Result<SyncWritten, StateSyncError> {
        if self.lacks_raft(None).await? {
            return Err(StateSyncError::RaftNotInitialized);
        }
        let timeout_ms = u32::try_from(self.patience.as_millis()).unwrap_or(u32::MAX).max(1);
        let request = SyncRequest::Write { writes, wait: self.wait, timeout_ms };
        match self.ask(request, self.patience + GRACE).await? {
            SyncReply::Written(written) => Ok(written),
            _ => Err(StateSyncError::Stopped),
        }
    }

    async fn one(&self, key: impl AsRef<[u8]>, op: Op) -> Result<SyncWritten, StateSyncError> {
        self.write(vec![Write::new(Bytes::copy_from_slice(key.as_ref()), op)]).await
    }

    /// Sets a register; of concurrent values the last writer's is read, or what the prefix's resolver makes of them.
    ///
    /// # Errors
    /// See [`StateSyncError`].
    pub async fn put<V: Serialize>(
        &self,
        key: impl AsRef<[u8]>,
        value: &V,
    ) -> Result<SyncWritten, StateSyncError> {
        self.one(key, Op::Put(plain(value)?)).await
    }

    /// Moves a counter; concurrent changes add up.
    ///
    /// # Errors
    /// See [`StateSyncError`].
    pub async fn adjust(&self, key: impl AsRef<[u8]>, by: i64) -> Result<SyncWritten, StateSyncError> {
        self.one(key, Op::Adjust(by)).await
    }

    /// Adds to a set; wins over a removal that had not seen it.
    ///
    /// # Errors
    /// See [`StateSyncError`].
    pub async fn add<V: Serialize>(
        &self,
        key: impl AsRef<[u8]>,
        element: &V,
    ) -> Result<SyncWritten, StateSyncError> {
        self.one(key, Op::Add(plain(element)?)).await
    }

    /// Removes from a set what this node has seen there.
    ///
    /// # Errors
    /// See [`StateSyncError`].
    pub async fn remove<V: Serialize>(
        &self,
        key: impl AsRef<[u8]>,
        element: &V,
    ) -> Result<SyncWritten, StateSyncError> {
        self.one(key, Op::Remove(plain(element)?)).await
    }

    /// Removes a value of any type, as it is seen here.
    ///
    /// # Errors
    /// See [`StateSyncError`].
    pub async fn delete(&self, key: impl AsRef<[u8]>) -> Result<SyncWritten, StateSyncError> {
        self.one(key, Op::Delete).await
    }

    /// What this node shows at a key.
    ///
    /// # Errors
    /// See [`StateSyncError`].
    pub async fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<View>, StateSyncError> {
        self.get_at(key, [""; 0]).await
    }

    /// What this node shows at a field of a map; the names lead from the key inwards.
    ///
    /// # Errors
    /// See [`StateSyncError`].
    pub async fn get_at(
        &self,
        key: impl AsRef<[u8]>,
        fields: impl IntoIterator<Item = impl AsRef<[u8]>>,
    ) -> Result<Option<View>, StateSyncError> {
        let path = fields.into_iter().map(|name| Bytes::copy_from_slice(name.as_ref())).collect();
        let request = SyncRequest::Get { key: Bytes::copy_from_slice(key.as_ref()), path };
        match self.ask(request, GRACE).await? {
            SyncReply::Value { view, .. } => Ok(view),
            _ => Err(StateSyncError::Stopped),
        }
    }

    /// The same as JSON.
    ///
    /// # Errors
    /// See [`StateSyncError`].
    pub async fn get_json(&self, key: impl AsRef<[u8]>) -> Result<Option<serde_json::Value>, StateSyncError> {
        Ok(self.get(key).await?.as_ref().map(sync_json::view))
    }

    /// Every change below a prefix from now on, made here or elsewhere.
    ///
    /// # Errors
    /// See [`StateSyncError`].
    pub async fn watch(&self, prefix: impl AsRef<[u8]>) -> Result<Watch, StateSyncError> {
        let port = self.node.client()?;
        let request = SyncRequest::Watch { prefix: Bytes::copy_from_slice(prefix.as_ref()) };
        port.send(ClientRequest::Sync { id: 0, request })?;
        let mut watch = Watch { port };
        // Says that nothing is missed from here on.
        watch.next().await?;
        Ok(watch)
    }

    /// Orders the mode for the whole cluster, as [`AdaptiveConsensus::set_mode`](crate::AdaptiveConsensus::set_mode) does.
    ///
    /// # Errors
    /// No admin key was given, the order was refused, or the mode wants a Raft that this program was started without.
    pub async fn set_mode(&self, mode: NetworkMode) -> Result<(), StateSyncError> {
        let operator = self.operator.as_ref().ok_or(StateSyncError::NoAdmin)?;
        if self.lacks_raft(Some(mode)).await? {
            return Err(StateSyncError::RaftNotInitialized);
        }
        operator.order_mode(mode, None).await?;
        Ok(())
    }

    /// The mode in force on this node.
    ///
    /// # Errors
    /// The node does not answer.
    pub async fn mode(&self) -> Result<NetworkMode, StateSyncError> {
        Ok(self.node.status().await?.mode)
    }

    /// # Errors
    /// The node does not answer, or takes no part.
    pub async fn metrics(&self) -> Result<SyncMetrics, StateSyncError> {
        let status = self.node.status().await?;
        let sync = status.sync.ok_or_else(|| StateSyncError::Refused("state sync is turned off".into()))?;
        let last = (sync.last_sync_unix_ms > 0).then(|| Duration::from_millis(sync.last_sync_unix_ms));
        Ok(SyncMetrics {
            mode: status.mode,
            sync_count: sync.sync_count,
            last_sync_time: last.map(|last| UNIX_EPOCH + last),
            avg_sync_latency: Duration::from_micros(sync.avg_sync_latency_us),
            conflict_count: sync.conflict_count,
            peers: sync.peers,
        })
    }

    /// How many concurrent writes there were, and the newest of them; at most `limit`, all that are kept for 0.
    ///
    /// # Errors
    /// See [`StateSyncError`].
    pub async fn conflicts(&self, limit: u32) -> Result<Conflicts, StateSyncError> {
        match self.ask(SyncRequest::Conflicts { limit }, GRACE).await? {
            SyncReply::Conflicts { count, open, events } => Ok(Conflicts { count, open, events }),
            _ => Err(StateSyncError::Stopped),
        }
    }

    /// Do these peers (all of them, for none) hold exactly what this node holds, values and all? Each is asked for the digest
    /// of its store. [`StateSyncError::Refused`] when one of them is no peer of this node.
    ///
    /// # Errors
    /// See [`StateSyncError`].
    pub async fn compare(&self, peers: &[ReplicaId], within: Duration) -> Result<Compared, StateSyncError> {
        let timeout_ms = u32::try_from(within.as_millis()).unwrap_or(u32::MAX).max(1);
        let request = SyncRequest::Compare { peers: peers.to_vec(), timeout_ms };
        match self.ask(request, within + GRACE).await? {
            SyncReply::Compared { level, differs, silent } => Ok(Compared { level, differs, silent }),
            _ => Err(StateSyncError::Stopped),
        }
    }

    /// Waits until they do; false when they do not within this time.
    ///
    /// # Errors
    /// See [`StateSyncError`].
    pub async fn converged_with(
        &self,
        peers: &[ReplicaId],
        within: Duration,
    ) -> Result<bool, StateSyncError> {
        let until = tokio::time::Instant::now() + within;
        loop {
            let left = until.saturating_duration_since(tokio::time::Instant::now());
            let compared =
                self.compare(peers, left.clamp(Duration::from_millis(50), Duration::from_secs(1))).await?;
            if compared.differs.is_empty() && compared.silent.is_empty() {
                return Ok(true);
            }
            if tokio::time::Instant::now() >= until {
                return Ok(false);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Everything below a prefix, as JSON.
    ///
    /// # Errors
    /// See [`StateSyncError`].
    pub async fn state(
        &self,
        prefix: impl AsRef<[u8]>,
    ) -> Result<BTreeMap<String, serde_json::Value>, StateSyncError> {
        let prefix = Bytes::copy_from_slice(prefix.as_ref());
        let mut all = BTreeMap::new();
        let mut after: Option<Bytes> = None;
        loop {
            let request = SyncRequest::List { prefix: prefix.clone(), after, limit: 0 };
            let SyncReply::Keys { items, more } = self.ask(request, GRACE).await? else {
                return Err(StateSyncError::Stopped);
            };
            after = items.last().map(|(key, _)| key.clone());
            all.extend(items.iter().map(|(key, view)| (sync_json::text(key), sync_json::view(view))));
            if !more || after.is_none() {
                return Ok(all);
            }
        }
    }

    /// Does a mode order what is written here through a Raft that this program does not have? In datacenter mode there is
    /// no other road. `wanted`: a mode that is to be ordered; `None`: the one in force.
    async fn lacks_raft(&self, wanted: Option<NetworkMode>) -> Result<bool, StateSyncError> {
        if self.node.has_raft_node() {
            return Ok(false);
        }
        let status = self.node.status().await?;
        let is_meant = match wanted {
            Some(mode) => mode != NetworkMode::Internet,
            None => status.mode == NetworkMode::Datacenter,
        };
        Ok(is_meant && status.trust == Trust::Crash && status.raft)
    }

    async fn ask(&self, request: SyncRequest, patience: Duration) -> Result<SyncReply, StateSyncError> {
        let mut port = self.node.client()?;
        port.send(ClientRequest::Sync { id: 0, request })?;
        match tokio::time::timeout(patience, port.recv()).await {
            Ok(Some(ClientReply::Sync { reply: SyncReply::Refused { reason, definite }, .. })) => {
                Err(if definite {
                    StateSyncError::Refused(reason)
                } else {
                    StateSyncError::Unacknowledged(reason)
                })
            }
            Ok(Some(ClientReply::Sync { reply, .. })) => Ok(reply),
            Ok(_) => Err(StateSyncError::Stopped),
            Err(_) => Err(NotAnswering.into()),
        }
    }
}

fn plain<V: Serialize + ?Sized>(value: &V) -> Result<Plain, StateSyncError> {
    sync_json::to_plain(&serde_json::to_value(value)?).map_err(StateSyncError::Plain)
}
