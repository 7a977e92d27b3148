//! Who may read this node's state without ordering the read. The registry of principals is replicated state, so it is
//! asked of the node and remembered for a moment: a principal that was added reads at once, one that was removed reads no
//! more after `FRESH`, also on streams that were open before. What is read is not known here.

use crate::listen::PeerKey;
use crate::port::{Port, Replies, Requests};
use dwcp_base::configuration::Role;
use dwcp_base::{PublicKey, decode};
use dwcp_replica::io::{ClientReply, ClientRequest};
use dwcp_state::{AdminCommand, AdminReply, Command};
use dwcp_transport::PinSet;
use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Mutex;
use tokio::time::timeout;
use tonic::Status;

/// How long the registry is taken for what it was.
const FRESH: Duration = Duration::from_secs(1);

/// A key that was not found makes the node look again, but not more often than this, whoever knocks.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// What a reader without a known key is told.
pub(crate) const NOT_A_READER: &str = "a read that is not ordered needs a connection that proves a known principal's key: connect with it, or read in a session";

/// Who may read this node's state without ordering the read.
#[derive(Clone, Debug)]
pub enum Readers {
    /// Whoever proves the key of a principal in the cluster's registry, as this node knows it: all may at least read.
    Principals,
    /// Whoever proves one of these keys. Clones of the set share it.
    Keys(PinSet),
    /// Everybody who can connect.
    Anybody,
}

/// The rule, with the node that knows the registry. Shared by all streams.
#[derive(Debug)]
pub(crate) struct Readership<P> {
    port: Arc<P>,
    readers: Readers,
    call_timeout: Duration,
    /// At most as many as the registry holds.
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// As many as the registry holds.
    keys: HashMap<PublicKey, Role>,
    read_at: Option<Instant>,
}

impl<P: Port> Readership<P> {
    pub fn new(port: Arc<P>, readers: Readers, call_timeout: Duration) -> Self {
        Self { port, readers, call_timeout, known: Mutex::default() }
    }

    /// Whether whoever is at the other end may read now.
    pub async fn admits(&self, peer: PeerKey) -> Result<bool, Status> {
        match (&self.readers, peer) {
            (Readers::Anybody, _) | (_, PeerKey::Local) => Ok(true),
            (_, PeerKey::Anonymous) => Ok(false),
            (Readers::Keys(keys), PeerKey::Proven(key)) => Ok(keys.contains(&key.0)),
            (Readers::Principals, PeerKey::Proven(key)) => Ok(self.role(key).await?.is_some()),
        }
    }

    /// May whoever holds this key write what needs no order? Whoever may read may not for that.
    pub async fn admits_writer(&self, peer: PeerKey) -> Result<bool, Status> {
        match peer {
            PeerKey::Local => Ok(true),
            PeerKey::Anonymous => Ok(false),
            PeerKey::Proven(key) => Ok(self.role(key).await?.is_some_and(|role| role != Role::Reader)),
        }
    }

    async fn role(&self, key: PublicKey) -> Result<Option<Role>, Status> {
        // Held while the node is asked: those who come meanwhile wait for the same answer.
        let mut known = self.known.lock().await;
        let limit = if known.keys.contains_key(&key) { FRESH } else { LOOK_AGAIN };
        if known.read_at.is_none_or(|at| at.elapsed() >= limit) {
            known.keys = self.registry().await?;
            known.read_at = Some(Instant::now());
        }
        Ok(known.keys.get(&key).copied())
    }

    async fn registry(&self) -> Result<HashMap<PublicKey, Role>, Status> {
        let bytes = Command::Admin(AdminCommand::PrincipalList).encode();
        let reply = ask(&*self.port, self.call_timeout, ClientRequest::Query { id: 0, bytes }).await?;
        let ClientReply::Query { outcome, .. } = reply else { return Err(mixed_up()) };
        match outcome.map(|answered| decode::<AdminReply>(&answered.bytes)) {
            Ok(Ok(AdminReply::Principals(principals))) => {
                Ok(principals.into_iter().map(|principal| (principal.key, principal.role)).collect())
            }
            Ok(_) => Err(mixed_up()),
            Err(refused) => Err(Status::unavailable(refused.reason)),
        }
    }
}

/// Puts one question in a place of its own and waits for its answer.
pub(crate) async fn ask<P: Port>(
    port: &P,
    patience: Duration,
    request: ClientRequest,
) -> Result<ClientReply, Status> {
    let busy = |busy: crate::Busy| Status::resource_exhausted(busy.to_string());
    let (requests, mut replies) = port.open().map_err(busy)?;
    requests.send(request).map_err(busy)?;
    match timeout(patience, poll_fn(|context| replies.poll_recv(context))).await {
        Ok(Some(reply)) => Ok(reply),
        Ok(None) => Err(Status::unavailable("the node is stopping: ask another one")),
        Err(_) => Err(Status::deadline_exceeded("the node gave no answer in time: ask another one")),
    }
}

/// A place of its own gets only the answer to its question; anything else is this node's mistake.
pub(crate) fn mixed_up() -> Status {
    Status::internal("the node answered another question")
}
