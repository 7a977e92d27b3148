//! The listening side: accepts, proves this node's key by TLS, notes which key the client showed, and hands streams to
//! the server. Connections are bounded in number; a handshake that dawdles is dropped; any connection can be cut from
//! outside, which is how a client that does not read is got rid of.

use dwcp_base::PublicKey;
use dwcp_transport::{PinSet, TlsIdentity, peer_public_key, server_config};
use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tonic::transport::server::Connected;

use crate::server::{ApiError, Limits};

/// A pause after the system refused to accept (out of descriptors, say), so that the loop does not burn.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Finished handshakes that the server has not picked up yet.
pub(crate) const ACCEPTED_MAX: usize = 64;

/// What the service knows of the connection a request came over.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub key: PeerKey,
    pub cut: Cut,
}

/// Who is at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PeerKey {
    /// Proved to hold this key.
    Proven(PublicKey),
    /// Showed no certificate.
    Anonymous,
    /// No TLS, hence on this machine.
    Local,
}

/// Ends a connection from outside.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cut(Arc<CutState>);

#[derive(Debug, Default)]
struct CutState {
    cut: AtomicBool,
    reader: Mutex<Option<Waker>>,
}

impl Cut {
    pub fn cut(&self) {
        self.0.cut.store(true, Ordering::Release);
        if let Some(reader) = self.0.reader.lock().expect("no panic while it is held").take() {
            reader.wake();
        }
    }

    fn is_cut(&self, context: &Context<'_>) -> bool {
        *self.0.reader.lock().expect("no panic while it is held") = Some(context.waker().clone());
        self.0.cut.load(Ordering::Acquire)
    }
}

/// All open connections, so that a stopping node can end those that do not end by themselves. Bound: the permits.
#[derive(Clone, Debug, Default)]
pub(crate) struct Connections(Arc<ConnectionsState>);

#[derive(Debug, Default)]
struct ConnectionsState {
    /// One for each permit that is out.
    open: Mutex<HashMap<u64, Cut>>,
    next: AtomicU64,
}

impl Connections {
    fn add(&self, cut: &Cut) -> u64 {
        let id = self.0.next.fetch_add(1, Ordering::Relaxed);
        self.0.open.lock().expect("no panic while it is held").insert(id, cut.clone());
        id
    }

    pub fn cut_all(&self) {
        self.0.open.lock().expect("no panic while it is held").values().for_each(Cut::cut);
    }
}

/// What reading and writing needs.
trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A client's connection.
pub(crate) struct ClientIo {
    io: Box<dyn Io>,
    peer: Peer,
    id: u64,
    connections: Connections,
    _permit: OwnedSemaphorePermit,
}

impl Drop for ClientIo {
    fn drop(&mut self) {
        self.connections.0.open.lock().expect("no panic while it is held").remove(&self.id);
    }
}

impl Connected for ClientIo {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for ClientIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.peer.cut.is_cut(context) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Pin::new(&mut self.io).poll_read(context, buf)
    }
}

impl AsyncWrite for ClientIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

/// Accepts for ever.
pub(crate) struct Acceptor {
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    permits: Arc<Semaphore>,
    handshake_timeout: Duration,
    connections: Connections,
}

impl Acceptor {
    pub fn new(
        listener: TcpListener,
        identity: Option<&TlsIdentity>,
        limits: &Limits,
        connections: Connections,
    ) -> Result<Self, ApiError> {
        let tls = match identity {
            // Clients need no certificate to send signed frames; one that shows a key must hold it.
            Some(identity) => {
                let mut config = server_config(identity, &PinSet::any_key(), false)?;
                config.alpn_protocols = vec![b"h2".to_vec()];
                Some(TlsAcceptor::from(Arc::new(config)))
            }
            None => None,
        };
        let permits = Arc::new(Semaphore::new(limits.connections_max));
        Ok(Self { listener, tls, permits, handshake_timeout: limits.handshake_timeout, connections })
    }

    pub async fn run(self, accepted: mpsc::Sender<io::Result<ClientIo>>) {
        loop {
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "a client connection could not be accepted");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            // At the bound the newcomer is dropped: those who are here go on undisturbed.
            let Ok(permit) = self.permits.clone().try_acquire_owned() else {
                tracing::debug!("a client connection was turned away: connections_max is reached");
                continue;
            };
            let (tls, accepted, connections) = (self.tls.clone(), accepted.clone(), self.connections.clone());
            let patience = self.handshake_timeout;
            tokio::spawn(async move {
                match timeout(patience, shake_hands(stream, tls)).await {
                    Ok(Ok((io, key))) => {
                        let peer = Peer { key, cut: Cut::default() };
                        let id = connections.add(&peer.cut);
                        let io = ClientIo { io, peer, id, connections, _permit: permit };
                        let _ = accepted.send(Ok(io)).await;
                    }
                    Ok(Err(error)) => tracing::debug!(%error, "a client's handshake failed"),
                    Err(_) => tracing::debug!("a client's handshake took too long"),
                }
            });
        }
    }
}

async fn shake_hands(stream: TcpStream, tls: Option<TlsAcceptor>) -> io::Result<(Box<dyn Io>, PeerKey)> {
    stream.set_nodelay(true)?;
    let Some(tls) = tls else { return Ok((Box::new(stream), PeerKey::Local)) };
    let stream = tls.accept(stream).await?;
    let shown = peer_public_key(stream.get_ref().1.peer_certificates());
    let key = shown.map_or(PeerKey::Anonymous, |key| PeerKey::Proven(PublicKey(key)));
    Ok((Box::new(stream), key))
}
