//! One node's connection: dials it, proves whom it reached, keeps one stream open, and dials again when it breaks.
//!
//! One task per node, whatever the number of sessions. It moves messages and understands none of them. Everything it
//! buffers is bounded, so a driver that falls behind makes the node wait (or cut this client off), not memory grow.

use crate::config::{NodeConfig, Settings};
use dwcp_base::Chance;
use dwcp_proto::v3::dwcp_client::DwcpClient;
use dwcp_proto::v3::state_sync_client::StateSyncClient;
use dwcp_proto::v3::{ClientMessage, ServerMessage};
use dwcp_proto::{MESSAGE_BYTES_MAX, REPLY_BYTES_MAX};
use dwcp_state::CHALLENGE_BYTES;
use hyper_util::rt::TokioIo;
use rustls::CertificateError;
use rustls::pki_types::ServerName;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};

/// Messages handed over and not yet on the wire.
const OUTGOING_MAX: usize = 16;

const WINDOW_BYTES: u32 = 8 * 1024 * 1024;

/// A node that does not answer pings for this long is gone.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// The name asked for in the handshake. The key is what is checked.
const SERVER_NAME: &str = "replica.dwcp";

/// Both services of a node, over one connection.
#[derive(Clone, Debug)]
pub(crate) struct NodeClient {
    pub dwcp: DwcpClient<Channel>,
    pub sync: StateSyncClient<Channel>,
}

/// What happened on a node's connection, in order.
#[derive(Debug)]
pub(crate) enum Happening {
    Connected {
        wire: mpsc::Sender<ClientMessage>,
        /// What proofs of sessions' keys on this stream must answer.
        challenge: [u8; CHALLENGE_BYTES],
    },
    Message(ServerMessage),
    Disconnected(String),
}

/// Whether questions can be put to a node now.
#[derive(Clone, Debug)]
pub(crate) enum Link {
    /// The first attempt is under way.
    Dialling,
    Up(Box<NodeClient>),
    Down(String),
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// What one connection's task needs.
#[derive(Debug)]
pub(crate) struct Connection {
    pub index: usize,
    pub node: NodeConfig,
    pub tls: Option<Arc<rustls::ClientConfig>>,
    pub settings: Settings,
    pub happenings: mpsc::Sender<(usize, Happening)>,
    pub link: watch::Sender<Link>,
    pub chance: Chance,
}

impl Connection {
    /// Runs until the driver is gone.
    pub async fn run(mut self) {
        let mut failures = 0u32;
        loop {
            let (reason, lived) = self.live().await;
            failures = if lived { 0 } else { failures.saturating_add(1) };
            tracing::debug!(node = %self.node.id, reason, "not connected");
            self.link.send_replace(Link::Down(reason.clone()));
            if self.happenings.send((self.index, Happening::Disconnected(reason))).await.is_err() {
                return;
            }
            let pause = self.settings.reconnect_after * 2u32.pow(failures.saturating_sub(1).min(4));
            let jitter = self.chance.below(u64::try_from(pause.as_micros() / 2).unwrap_or(u64::MAX));
            sleep(pause + Duration::from_micros(jitter)).await;
        }
    }

    /// One connection from dialling to its end. Says why it ended, and whether it ever worked.
    async fn live(&mut self) -> (String, bool) {
        let opening = async {
            let io = self.dial().await?;
            let client = grpc(io).await?;
            let (sender, receiver) = mpsc::channel(OUTGOING_MAX);
            let mut session = client.dwcp.clone();
            let stream = session
                .session(ReceiverStream::new(receiver))
                .await
                .map_err(|status| status_text(&status))?;
            let mut stream = stream.into_inner();
            let greeting = stream.message().await.map_err(|status| status_text(&status))?;
            let challenge = greeting.and_then(|greeting| greeting.challenge[..].try_into().ok());
            let challenge =
                challenge.ok_or("it does not greet with a challenge: it is no node of this version")?;
            Ok::<_, String>((client, sender, stream, challenge))
        };
        let waited = self.settings.connect_timeout;
        let (client, wire, mut stream, challenge) = match timeout(waited, opening).await {
            Ok(Ok(opened)) => opened,
            Ok(Err(reason)) => return (format!("{}: {reason}", self.node.address), false),
            Err(_) => {
                return (format!("{}: no answer within {} ms", self.node.address, waited.as_millis()), false);
            }
        };
        self.link.send_replace(Link::Up(Box::new(client)));
        if self.happenings.send((self.index, Happening::Connected { wire, challenge })).await.is_err() {
            return (String::new(), true);
        }
        loop {
            let reason = match stream.message().await {
                Ok(Some(message)) => {
                    if self.happenings.send((self.index, Happening::Message(message))).await.is_err() {
                        return (String::new(), true);
                    }
                    continue;
                }
                Ok(None) => "the node closed the stream".to_string(),
                Err(status) => status_text(&status),
            };
            return (format!("{}: {reason}", self.node.address), true);
        }
    }

    async fn dial(&self) -> Result<Box<dyn Io>, String> {
        let stream = TcpStream::connect(&self.node.address).await.map_err(|error| error.to_string())?;
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        let Some(tls) = &self.tls else { return Ok(Box::new(stream)) };
        let name = ServerName::try_from(SERVER_NAME).expect("a valid name");
        let stream =
            TlsConnector::from(tls.clone()).connect(name, stream).await.map_err(|error| tls_text(&error))?;
        Ok(Box::new(stream))
    }
}

/// Speaks gRPC over a stream that is already there.
async fn grpc(io: Box<dyn Io>) -> Result<NodeClient, String> {
    let io = Arc::new(Mutex::new(Some(io)));
    let connector = tower::service_fn(move |_: tonic::transport::Uri| {
        // A second dial would skip the checks of the first: the task above makes a new channel instead.
        let io = io.lock().expect("no panic while the stream is held").take();
        async move { io.map(TokioIo::new).ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)) }
    });
    let channel = Endpoint::from_static("http://replica.dwcp")
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true)
        .connect_with_connector(connector)
        .await
        .map_err(|error| source_text(&error))?;
    let sync = StateSyncClient::new(channel.clone())
        .max_decoding_message_size(REPLY_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let dwcp = DwcpClient::new(channel)
        .max_decoding_message_size(REPLY_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    Ok(NodeClient { dwcp, sync })
}

/// A TLS failure in words an operator can act on.
fn tls_text(error: &io::Error) -> String {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(CertificateError::Other(cause))) => {
            format!(
                "it is not the node expected there ({cause}): correct its tls_key, or somebody else answers"
            )
        }
        Some(rustls::Error::InvalidMessage(_)) => {
            "it does not speak TLS: is this the client port, and is TLS on there?".to_string()
        }
        _ if error.kind() == io::ErrorKind::UnexpectedEof => {
            "it hung up during the TLS handshake: is this the client port?".to_string()
        }
        _ => format!("TLS failed: {error}"),
    }
}

pub(crate) fn status_text(status: &tonic::Status) -> String {
    if status.message().is_empty() { source_text(status) } else { status.message().to_string() }
}

/// The innermost cause says most.
fn source_text(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}
