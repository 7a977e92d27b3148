//! How the cluster fares, as its nodes say themselves: used to decide what to do next and when to go on, never to judge.
//! The one exception are state digests: at an equal sequence they must be equal, and that is judged.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use check::Operation;
use dwcp_client::{Client, ClientConfig, Status};
use tokio::task::JoinHandle;

use crate::cluster::Cluster;
use crate::error::Trouble;
use crate::load::Scribe;

/// A two-core machine that does other things besides meets these by far.
pub const PATIENCE: Duration = Duration::from_secs(90);
/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Where all nodes' states were compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeDigest {
    pub node: u8,
    pub sequence: u64,
    pub digest: [u8; 32],
}

/// Polls all nodes in the background.
#[derive(Debug)]
pub struct Watch {
    client: Client,
    view: Arc<AtomicU64>,
    poll: JoinHandle<()>,
}

impl Watch {
    /// # Errors
    /// A configuration no client can be made of.
    pub fn start(config: ClientConfig) -> Result<Self, Trouble> {
        let client = Client::start(config)?;
        let view = Arc::new(AtomicU64::new(0));
        let (polled, highest) = (client.clone(), view.clone());
        let poll = tokio::spawn(async move {
            loop {
                for status in statuses(&polled).await {
                    if status.view_active {
                        highest.fetch_max(status.view.0, Ordering::Relaxed);
                    }
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        });
        Ok(Self { client, view, poll })
    }

    /// The highest view any node was seen to work in: so many primaries were given up.
    pub fn view(&self) -> u64 {
        self.view.load(Ordering::Relaxed)
    }

    pub fn client(&self) -> &Client {
        &self.client
    }

    pub async fn statuses(&self) -> Vec<Status> {
        statuses(&self.client).await
    }

    pub async fn status(&self, node: u8) -> Option<Status> {
        self.statuses().await.into_iter().find(|status| status.replica.0 == node)
    }

    /// Waits until every node answers, is ready, and stands in one view.
    ///
    /// # Errors
    /// A node that ended, or one that is not ready in time.
    pub async fn all_ready(&self, cluster: &mut Cluster) -> Result<(), Trouble> {
        let began = Instant::now();
        loop {
            cluster.check_alive()?;
            let seen = self.statuses().await;
            if seen.len() == cluster.n() && seen.iter().all(|status| status.not_ready.is_empty()) {
                return Ok(());
            }
            if began.elapsed() > PATIENCE {
                let told: Vec<String> = seen
                    .iter()
                    .map(|status| format!("node {}: {}", status.replica, status.not_ready.join(", ")))
                    .collect();
                return Err(stuck(cluster, format!("not all nodes are ready ({})", told.join("; "))));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Writes until every node has digested one checkpoint that covers all that came before.
    ///
    /// # Errors
    /// A node that ended, or nodes that do not come to the same place in time.
    pub async fn level(
        &self,
        cluster: &mut Cluster,
        scribe: &mut Scribe,
    ) -> Result<Vec<NodeDigest>, Trouble> {
        let began = Instant::now();
        let before = self.statuses().await.iter().map(|status| status.executed.0).max().unwrap_or(0);
        let mut written = 0_u64;
        loop {
            cluster.check_alive()?;
            let seen = self.statuses().await;
            let at = |status: &Status| status.state_digest_sequence.0;
            let lowest = seen.iter().map(at).min().unwrap_or(0);
            if seen.len() == cluster.n() && lowest >= before && seen.iter().all(|s| at(s) == lowest) {
                let digest = |status: &Status| NodeDigest {
                    node: status.replica.0,
                    sequence: at(status),
                    digest: status.state_digest.0,
                };
                return Ok(seen.iter().map(digest).collect());
            }
            if began.elapsed() > PATIENCE {
                let told: Vec<String> =
                    seen.iter().map(|status| format!("node {} {}", status.replica, at(status))).collect();
                let what =
                    format!("the nodes do not come to one checkpoint above {before} ({})", told.join(", "));
                return Err(stuck(cluster, what));
            }
            if lowest < before {
                for _ in 0..8 {
                    written += 1;
                    scribe.ask(Operation::put("level", written.to_string())).await;
                }
            } else {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.poll.abort();
    }
}

/// Of those nodes that answer.
async fn statuses(client: &Client) -> Vec<Status> {
    client.status_all().await.into_iter().filter_map(|report| report.status.ok()).collect()
}

pub(crate) fn stuck(cluster: &Cluster, what: String) -> Trouble {
    Trouble::Stuck { what, seconds: PATIENCE.as_secs(), folder: cluster.path().to_path_buf() }
}
