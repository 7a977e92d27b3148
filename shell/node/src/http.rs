//! What operators and their tools ask over plain HTTP: `/metrics`, `/livez`, `/readyz`.
//!
//! Read-only and unencrypted: bind it where only they can reach it. Health answers in plain text, one reason a line,
//! with 503 when the answer is no. Clients of the cluster never come here.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;

use crate::exposition::CONTENT_TYPE;
use crate::node::{Health, WeakNode};
use crate::settings::SyncHttp;

/// Connections at once; further ones wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 64;
/// A connection may stay this long, busy or not, so that idle ones cannot keep probes out.
const CONNECTION_LIFETIME: Duration = Duration::from_secs(30);

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
pub(crate) fn serve(listener: TcpListener, node: WeakNode, convergent: SyncHttp) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let stopped = node.clone();
    let listener = Bounded { listener, places: Arc::new(Semaphore::new(CONNECTIONS_MAX)) };
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .merge(crate::sync_http::routes(convergent))
        .with_state(Arc::new(node));
    tokio::spawn(async move {
        let served =
            axum::serve(listener, router).with_graceful_shutdown(async move { stopped.stopped().await });
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
}

impl axum::serve::Listener for Bounded {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        let place = self.places.clone().acquire_owned().await.expect("the places are never closed");
        let (stream, addr) = axum::serve::Listener::accept(&mut self.listener).await;
        let end = Box::pin(tokio::time::sleep(CONNECTION_LIFETIME));
        (Connection { stream, end, _place: place }, addr)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection with a place and an end.
struct Connection {
    stream: TcpStream,
    end: Pin<Box<Sleep>>,
    _place: OwnedSemaphorePermit,
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.end.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.end.as_mut().poll(cx).is_ready() {
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
