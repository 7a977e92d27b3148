//! Starting and stopping the API of one node.

use crate::listen::{ACCEPTED_MAX, Acceptor, Connections};
use crate::port::Port;
use crate::readers::{Readers, Readership};
use crate::service::Service;
use crate::sync::SyncService;
use dwcp_proto::v3::dwcp_server::DwcpServer;
use dwcp_proto::v3::state_sync_server::StateSyncServer;
use dwcp_proto::{MESSAGE_BYTES_MAX, REPLY_BYTES_MAX, SYNC_REQUEST_BYTES_MAX};
use dwcp_transport::{IdentityError, TlsIdentity};
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;

/// What one connection may send before it is read on. Well above a link's bandwidth times its delay.
const WINDOW_BYTES: u32 = 2 * 1024 * 1024;

/// A client that answers no ping for this long is gone.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// What clients may make this node hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once; further ones are dropped. Default 1024.
    pub connections_max: usize,
    /// Streams and calls at once on one connection. Default 32.
    pub streams_max: u32,
    /// Queries, orders and statuses of one stream without answer; further ones are refused. Default 256.
    pub questions_max: usize,
    /// Sessions that one stream attaches; a client that attaches one more is cut off and may begin afresh with those it
    /// still uses. Default 4,096.
    pub attaches_max: usize,
    /// A TLS handshake that takes longer is dropped. Default 5 s.
    pub handshake_timeout: Duration,
    /// A client that takes nothing of what waits for it for so long is cut off. Default 10 s.
    pub slow_reader_timeout: Duration,
    /// How long a single call waits for the node. Default 30 s.
    pub call_timeout: Duration,
    /// How long a frame waits for room in the node before it is refused as busy. Default 1 s.
    pub busy_patience: Duration,
    /// How long a stopping node lets clients finish. Default 2 s.
    pub stop_patience: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 1024,
            streams_max: 32,
            questions_max: 256,
            attaches_max: 4_096,
            handshake_timeout: Duration::from_secs(5),
            slow_reader_timeout: Duration::from_secs(10),
            call_timeout: Duration::from_secs(30),
            busy_patience: Duration::from_secs(1),
            stop_patience: Duration::from_secs(2),
        }
    }
}

/// How the API listens.
#[derive(Debug)]
pub struct ApiConfig {
    pub listen: SocketAddr,
    /// This node's key and certificate; `None` speaks plain text and is refused for other than loopback addresses.
    pub tls: Option<TlsIdentity>,
    pub readers: Readers,
    pub limits: Limits,
}

/// Why the API does not run. One line, with what to do.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    #[error("{0} is not a loopback address: clients must not be served there without TLS; turn TLS on")]
    PlainTextAbroad(SocketAddr),
    #[error("{0} is in use by another program: stop it or choose another client_listen")]
    InUse(SocketAddr),
    #[error("{0} is no address of this machine: correct client_listen")]
    NotOurs(SocketAddr),
    #[error("cannot listen on {address} ({source}): correct client_listen")]
    Listen { address: SocketAddr, source: io::Error },
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("the client server failed: {0}")]
    Serve(#[from] tonic::transport::Error),
}

/// A bound listener that does not serve yet.
#[derive(Debug)]
pub struct Api {
    listener: TcpListener,
    address: SocketAddr,
    config: ApiConfig,
}

impl Api {
    /// Binds the address, so that a port in use is known before anything else starts.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn bind(config: ApiConfig) -> Result<Self, ApiError> {
        let asked = config.listen;
        if config.tls.is_none() && !asked.ip().is_loopback() {
            return Err(ApiError::PlainTextAbroad(asked));
        }
        let listener = TcpListener::bind(asked).await.map_err(|source| match source.kind() {
            io::ErrorKind::AddrInUse => ApiError::InUse(asked),
            io::ErrorKind::AddrNotAvailable => ApiError::NotOurs(asked),
            _ => ApiError::Listen { address: asked, source },
        })?;
        let address = listener.local_addr().map_err(|source| ApiError::Listen { address: asked, source })?;
        Ok(Self { listener, address, config })
    }

    /// Where it listens; tells the port when port 0 was asked for.
    #[must_use]
    pub fn local_address(&self) -> SocketAddr {
        self.address
    }

    /// Serves clients of this node until `stop` resolves; then accepts nobody, tells every stream, waits a little for
    /// them to end, and cuts the rest.
    ///
    /// # Errors
    /// When the server itself fails; a client's failure ends only that client.
    pub async fn serve<P: Port>(
        self,
        port: P,
        stop: impl Future<Output = ()> + Send,
    ) -> Result<(), ApiError> {
        let ApiConfig { tls, readers, limits, .. } = self.config;
        let connections = Connections::default();
        let acceptor = Acceptor::new(self.listener, tls.as_ref(), &limits, connections.clone())?;
        let (accepted_sender, accepted) = mpsc::channel(ACCEPTED_MAX);
        let accepting = tokio::spawn(acceptor.run(accepted_sender));
        let (stop_sender, stopping) = watch::channel(false);
        let port = Arc::new(port);
        let readership = Arc::new(Readership::new(port.clone(), readers, limits.call_timeout));
        let sync = SyncService::new(port.clone(), readership.clone(), limits.clone(), stopping.clone());
        let sync = StateSyncServer::new(sync)
            .max_decoding_message_size(SYNC_REQUEST_BYTES_MAX)
            .max_encoding_message_size(REPLY_BYTES_MAX);
        let service = Service::new(port, readership, limits.clone(), stopping.clone());
        let service = DwcpServer::new(service)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(REPLY_BYTES_MAX);
        let wait = |mut stopping: watch::Receiver<bool>| async move {
            let _ = stopping.wait_for(|stop| *stop).await;
        };
        let server = Server::builder()
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .max_concurrent_streams(limits.streams_max)
            .http2_keepalive_interval(Some(KEEP_ALIVE))
            .http2_keepalive_timeout(Some(KEEP_ALIVE))
            .add_service(service)
            .add_service(sync)
            .serve_with_incoming_shutdown(ReceiverStream::new(accepted), wait(stopping.clone()));
        let stopper = async {
            stop.await;
            accepting.abort();
            stop_sender.send_replace(true);
            sleep(limits.stop_patience).await;
            connections.cut_all();
            // A cut connection ends at once; this future must not end before the server does.
            std::future::pending::<()>().await;
        };
        let outcome = tokio::select! {
            outcome = server => outcome,
            () = stopper => unreachable!("the stopper waits for ever"),
        };
        accepting.abort();
        connections.cut_all();
        Ok(outcome?)
    }
}
