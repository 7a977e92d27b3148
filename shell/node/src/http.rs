//! What operators and their tools ask over plain HTTP: `/metrics`, `/livez`, `/readyz`, and convergent keys where the
//! settings say so (`sync_http.rs`).
//!
//! Unencrypted: bind it where only they can reach it. Health answers in plain text, one reason a line,
//! with 503 when the answer is no. Sessions of the cluster's clients never come here.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::extract::connect_info::Connected;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::serve::IncomingStream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;

use crate::exposition::CONTENT_TYPE;
use crate::node::{Health, WeakNode};
use crate::settings::{HttpBounds, SyncHttp};

#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    #[error(
        "HTTP address {addr} is already in use: stop the process that holds it or set another http_listen"
    )]
    PortInUse { addr: SocketAddr },
    #[error("cannot listen on HTTP address {addr} ({source}): set http_listen to an address of this host")]
    Listen { addr: SocketAddr, source: io::Error },
}

/// Takes the port, so that a second node on it is refused before it has done anything.
pub(crate) fn listen(addr: SocketAddr) -> Result<TcpListener, HttpError> {
    let bind = || {
        let listener = TcpListener::bind(addr)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    bind().map_err(|source: io::Error| match source.kind() {
        io::ErrorKind::AddrInUse => HttpError::PortInUse { addr },
        _ => HttpError::Listen { addr, source },
    })
}

/// Serves until the node stops. To be called within a runtime.
pub(crate) fn serve(
    listener: TcpListener,
    node: WeakNode,
    convergent: SyncHttp,
    bounds: HttpBounds,
) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let stopped = node.clone();
    let places = Arc::new(Semaphore::new(bounds.connections_max));
    let listener = Bounded { listener, places, lifetime: bounds.connection_lifetime };
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .merge(crate::sync_http::routes(convergent, bounds.watches_max))
        .with_state(Arc::new(node));
    tokio::spawn(async move {
        let service = router.into_make_service_with_connect_info::<Lease>();
        let served =
            axum::serve(listener, service).with_graceful_shutdown(async move { stopped.stopped().await });
        if let Err(error) = served.await {
            tracing::warn!(%error, "the HTTP server ended");
        }
    });
    Ok(())
}

async fn metrics(State(node): State<Arc<WeakNode>>) -> Response {
    match node.upgrade() {
        Some(node) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], node.metrics().await).into_response(),
        None => gone(),
    }
}

async fn livez(State(node): State<Arc<WeakNode>>) -> Response {
    match node.upgrade() {
        Some(node) => told(&node.live().await),
        None => gone(),
    }
}

async fn readyz(State(node): State<Arc<WeakNode>>) -> Response {
    match node.upgrade() {
        Some(node) => told(&node.ready().await),
        None => gone(),
    }
}

fn told(health: &Health) -> Response {
    let code = if health.ok() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, health.to_string()).into_response()
}

fn gone() -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, "the node has stopped\n").into_response()
}

/// Accepts as long as there are places.
struct Bounded {
    listener: tokio::net::TcpListener,
    places: Arc<Semaphore>,
    lifetime: Duration,
}

impl axum::serve::Listener for Bounded {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        let place = self.places.clone().acquire_owned().await.expect("the places are never closed");
        let (stream, addr) = axum::serve::Listener::accept(&mut self.listener).await;
        let end = Box::pin(tokio::time::sleep(self.lifetime));
        (Connection { stream, end, lease: Lease::default(), _place: place }, addr)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// Whether a connection may outlive `HttpBounds::connection_lifetime`. Whoever lets it bounds how many there are.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lease(Arc<AtomicBool>);

impl Lease {
    pub(crate) fn lasts(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Connected<IncomingStream<'_, Bounded>> for Lease {
    fn connect_info(stream: IncomingStream<'_, Bounded>) -> Self {
        stream.io().lease.clone()
    }
}

/// A connection with a place and an end.
struct Connection {
    stream: TcpStream,
    end: Pin<Box<Sleep>>,
    lease: Lease,
    _place: OwnedSemaphorePermit,
}

impl Connection {
    fn is_over(&mut self, cx: &mut Context<'_>) -> bool {
        !self.lease.0.load(Ordering::Relaxed) && self.end.as_mut().poll(cx).is_ready()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.is_over(cx) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.is_over(cx) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// A connection whose time is up, and its other end.
    async fn ended() -> (Connection, TcpStream) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let other = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let places = Arc::new(Semaphore::new(1));
        let mut end = Box::pin(tokio::time::sleep(Duration::ZERO));
        end.as_mut().await;
        let _place = places.acquire_owned().await.unwrap();
        (Connection { stream, end, lease: Lease::default(), _place }, other)
    }

    #[tokio::test]
    async fn a_connection_ends_with_its_time_unless_it_was_let_to_last() {
        let (mut connection, _other) = ended().await;
        let error = connection.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);

        let (mut connection, mut other) = ended().await;
        connection.lease.lasts();
        other.write_all(b"a").await.unwrap();
        assert_eq!(connection.read_u8().await.unwrap(), b'a');
        connection.write_all(b"b").await.unwrap();
        assert_eq!(other.read_u8().await.unwrap(), b'b');
    }
}
