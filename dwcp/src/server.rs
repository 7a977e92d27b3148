//! A node together with what its clients speak: what `dwcp server` runs, for programs that embed it. No rule stands here:
//! `dwcp_node` runs the node, `dwcp_api` serves its clients.

use std::future::Future;
use std::net::SocketAddr;

use dwcp_api::{Api, ApiConfig, ApiError, Limits, Readers};
use dwcp_base::Genesis;
use dwcp_node::keys::{KeyError, read_tls_identity};
use dwcp_node::{Node, NodeConfig, NodeError, NodeHandle, StartOptions, Stop};
use dwcp_state::StateMachine;
use dwcp_state::kv::Kv;

/// Why a server does not run. One line, with what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    #[error(transparent)]
    Node(#[from] NodeError),
    #[error(transparent)]
    Api(#[from] ApiError),
    #[error(transparent)]
    Key(#[from] KeyError),
}

/// A started node whose client port is bound; [`Server::run`] serves clients.
#[derive(Debug)]
pub struct Server {
    node: NodeHandle,
    api: Api,
}

impl Server {
    /// Starts a node with the built-in key-value store. Opens its disk and recovers, so it may take a while; to be called
    /// inside a tokio runtime.
    ///
    /// # Errors
    /// Anything that is not as it must be; nothing keeps running then.
    pub async fn start(config: NodeConfig) -> Result<Self, ServerError> {
        Self::start_with(config, |genesis| Kv::new(genesis.quota_bytes)).await
    }

    /// As [`Server::start`], with a machine of the caller's. `empty` makes one without any state; every node of a cluster
    /// must run the same machine.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub async fn start_with<M: StateMachine>(
        config: NodeConfig,
        empty: impl Fn(&Genesis) -> M + Send + Sync + 'static,
    ) -> Result<Self, ServerError> {
        Self::start_as(config, StartOptions::default(), empty).await
    }

    /// As [`Server::start_with`], with a Raft of the caller's, or none.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub async fn start_as<M: StateMachine>(
        config: NodeConfig,
        options: StartOptions,
        empty: impl Fn(&Genesis) -> M + Send + Sync + 'static,
    ) -> Result<Self, ServerError> {
        let node = Node::start_as(config, options, empty)?;
        match bind(&node).await {
            Ok(api) => Ok(Self { node, api }),
            Err(error) => {
                node.shutdown().await;
                Err(error)
            }
        }
    }

    /// The node: its status, its figures, its end.
    #[must_use]
    pub fn node(&self) -> &NodeHandle {
        &self.node
    }

    /// Where clients are served.
    #[must_use]
    pub fn client_addr(&self) -> SocketAddr {
        self.api.local_address()
    }

    /// Serves clients until the node ends by itself or `stop` resolves; says why it ended. The disk is free then.
    ///
    /// # Errors
    /// When the serving itself fails; the node has been stopped then.
    pub async fn run(self, stop: impl Future<Output = ()>) -> Result<Stop, ServerError> {
        let Self { node, api } = self;
        let stopped = node.clone();
        let serving = api.serve(node.clone(), async move { drop(stopped.stopped().await) });
        let ended = async {
            tokio::select! {
                stop = node.stopped() => stop,
                () = stop => node.shutdown().await,
            }
        };
        let (served, stop) = tokio::join!(serving, ended);
        served?;
        Ok(stop)
    }
}

/// Clients meet the node under the key of its links; every principal of the registry may read its own state.
async fn bind(node: &NodeHandle) -> Result<Api, ServerError> {
    let config = ApiConfig {
        listen: node.config().client_listen,
        tls: Some(read_tls_identity(&node.config().tls_key_file)?),
        readers: Readers::Principals,
        limits: limits(node.config()),
    };
    Ok(Api::bind(config).await?)
}

/// What clients may make this node hold, as its settings have it.
fn limits(config: &NodeConfig) -> Limits {
    let bounds = &config.clients;
    Limits {
        connections_max: config.queues.clients_max,
        streams_max: bounds.streams_max,
        questions_max: bounds.questions_max,
        attaches_max: bounds.attaches_max,
        handshake_timeout: bounds.handshake_timeout,
        slow_reader_timeout: bounds.slow_reader_timeout,
        call_timeout: bounds.call_timeout,
        busy_patience: bounds.busy_patience,
        stop_patience: bounds.stop_patience,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn of(lines: &str) -> Limits {
        let must = "replica = 0\ngenesis_file = \"g\"\ndata_dir = \"d\"\nvote_key_file = \"v\"\ntls_key_file = \"t\"\n\
                    peer_listen = \"127.0.0.1:1\"\nclient_listen = \"127.0.0.1:2\"\nhttp_listen = \"127.0.0.1:3\"\n";
        limits(&NodeConfig::parse(Path::new("config.toml"), &format!("{must}{lines}")).unwrap())
    }

    #[test]
    fn what_the_settings_say_of_clients_is_what_the_api_is_told() {
        assert_eq!(of(""), Limits { connections_max: 4_096, ..Limits::default() });
        let said = of(
            "[queues]\nclients_max = 1\n[clients]\nstreams_max = 2\nquestions_max = 3\nattaches_max = 4\n\
                       handshake_timeout_ms = 5\nslow_reader_timeout_ms = 6\ncall_timeout_ms = 7\n\
                       busy_patience_ms = 8\nstop_patience_ms = 9\n",
        );
        let ms = std::time::Duration::from_millis;
        assert_eq!(
            said,
            Limits {
                connections_max: 1,
                streams_max: 2,
                questions_max: 3,
                attaches_max: 4,
                handshake_timeout: ms(5),
                slow_reader_timeout: ms(6),
                call_timeout: ms(7),
                busy_patience: ms(8),
                stop_patience: ms(9),
            }
        );
    }
}
