//! The incoming half: one listener, one task per accepted connection. Strangers cost one of a bounded number of
//! handshakes for a bounded time; a proven peer's frames are handed to the sink, no faster than it takes them.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::config::PeerId;
use crate::dial::read_more;
use crate::frame::{Arrival, Class, Pong, Reading, Reassembler, put_beat, put_bye, put_pong};
use crate::handshake::{linger, read_hello, stream_end};
use crate::hello::Hello;
use crate::identity::{key_text, peer_public_key};
use crate::peer::{Delivery, HandshakeSlot, Peer, Shared};
use crate::reason::{LinkEnd, Reason};

/// Read at once from the socket at most.
const READ_BYTES: usize = 64 * 1024;
/// How long a busy sink is left alone when it does not say that it has room.
const SINK_PAUSE: Duration = Duration::from_millis(5);
/// Pongs that wait to be sent; the oldest are dropped.
const PONGS_MAX: usize = 16;
/// How long the last word to a peer may take.
const BYE_TIMEOUT: Duration = Duration::from_millis(500);
/// How long the listener rests when the system is out of sockets.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

pub(crate) async fn keep_accepting(shared: Arc<Shared>, listener: TcpListener, acceptor: TlsAcceptor) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shared.stopped() => return,
        };
        let (tcp, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Mostly "too many open files": resting lets links end and sockets come back.
                count_stranger(&shared, None, &LinkEnd::io(&error));
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Some(slot) = shared.take_handshake_slot(from.ip()) else {
            let detail =
                format!("too many of at most {} handshakes are pending", shared.limits.handshakes_max);
            count_stranger(&shared, Some(from), &LinkEnd::new(Reason::TooManyHandshakes, detail));
            continue;
        };
        let guard = shared.tasks.enter();
        let (shared, acceptor) = (shared.clone(), acceptor.clone());
        tokio::spawn(async move {
            serve(&shared, tcp, from, acceptor, slot).await;
            drop(guard);
        });
    }
}

/// Counts a refusal and logs the first, second, fourth, eighth ... of its kind: strangers must not fill the disk.
fn count_stranger(shared: &Shared, from: Option<SocketAddr>, end: &LinkEnd) {
    if shared.strangers.add(end.reason).is_power_of_two() {
        match from {
            Some(from) => tracing::warn!(%from, "connection from {from} refused: {end}"),
            None => tracing::warn!("no connection accepted: {end}"),
        }
    }
}

fn count_peer(peer: &Peer, from: SocketAddr, end: &LinkEnd) {
    if peer.ends.add(end.reason).is_power_of_two() {
        tracing::warn!(peer = peer.id, %from, "link from replica {}: {end}", peer.id);
    }
}

/// A connection whose peer is proven and which may deliver once it holds the peer's slot.
struct Opened {
    peer: Arc<Peer>,
    hello: Hello,
    version: u16,
    key_changes: watch::Receiver<u64>,
}

async fn serve(
    shared: &Shared,
    tcp: TcpStream,
    from: SocketAddr,
    acceptor: TlsAcceptor,
    slot: HandshakeSlot,
) {
    // A failed option costs latency only; a dead socket shows at the first read.
    let _ = tcp.set_nodelay(true);
    let deadline = tokio::time::Instant::now() + shared.limits.handshake_timeout;
    let timed_out = || {
        let detail = format!("no hello within {:?}", shared.limits.handshake_timeout);
        LinkEnd::new(Reason::HandshakeTimeout, detail)
    };
    let accepting = acceptor.accept(tcp).into_fallible();
    let accepted = tokio::select! {
        accepted = tokio::time::timeout_at(deadline, accepting) => accepted,
        () = shared.stopped() => return,
    };
    let mut stream = match accepted {
        Ok(Ok(stream)) => stream,
        Ok(Err((error, mut tcp))) => {
            count_stranger(shared, Some(from), &stream_end(&error));
            return linger(&mut tcp).await;
        }
        Err(_) => return count_stranger(shared, Some(from), &timed_out()),
    };
    let known = peer_public_key(stream.get_ref().1.peer_certificates())
        .and_then(|key| Some((key, shared.peer_of_key(&key)?)));
    let opening = tokio::select! {
        opening = tokio::time::timeout_at(deadline, read_opening(shared, &mut stream)) => opening,
        () = shared.stopped() => return,
    };
    match opening.unwrap_or_else(|_| Err(timed_out())) {
        Ok(opened) => run_incoming(shared, stream, from, opened, slot).await,
        Err(end) => {
            match known {
                Some((_, peer)) => count_peer(&peer, from, &end),
                None => count_stranger(shared, Some(from), &end),
            }
            refuse(shared, &mut stream, end.reason).await;
        }
    }
}

/// Tells the dialler why, so that both ends log the same reason.
async fn refuse(shared: &Shared, stream: &mut TlsStream<TcpStream>, reason: Reason) {
    let answer = shared.local.answer(Err(reason)).encode();
    let say = async {
        stream.write_all(&answer).await?;
        stream.flush().await
    };
    if let Ok(Ok(())) = tokio::time::timeout(BYE_TIMEOUT, say).await {
        linger(stream).await;
    }
}

/// Reads the hello and judges it together with the key the connection has proven.
async fn read_opening(shared: &Shared, stream: &mut TlsStream<TcpStream>) -> Result<Opened, LinkEnd> {
    let hello = Hello::decode(&read_hello(stream).await?)?;
    let version = hello.judge(&shared.local)?;
    let Some(peer) = shared.peer(hello.from) else {
        let detail = format!("replica {} is not among this one's peers", hello.from);
        return Err(LinkEnd::new(Reason::UnknownReplica, detail));
    };
    // Subscribed before the key is compared: a change after the comparison then ends the link.
    let key_changes = peer.key_changes.subscribe();
    let key = peer_public_key(stream.get_ref().1.peer_certificates());
    if key != Some(peer.target().pin) || peer.removed.load(Ordering::SeqCst) {
        let shown = key.map_or_else(|| "none".to_string(), |key| key_text(&key));
        let detail =
            format!("who calls itself replica {} showed key {shown}, not that replica's", hello.from);
        return Err(LinkEnd::new(Reason::WrongKeyForReplica, detail));
    }
    Ok(Opened { peer, hello, version, key_changes })
}

/// Shows the peer as delivering for as long as it lives.
struct IncomingMark<'a> {
    shared: &'a Shared,
    peer: &'a Peer,
}

impl<'a> IncomingMark<'a> {
    fn set(shared: &'a Shared, peer: &'a Peer) -> Self {
        peer.incoming_up.store(true, Ordering::SeqCst);
        shared.sink.incoming(PeerId(peer.id), true);
        Self { shared, peer }
    }
}

impl Drop for IncomingMark<'_> {
    fn drop(&mut self) {
        self.peer.incoming_up.store(false, Ordering::SeqCst);
        self.shared.sink.incoming(PeerId(self.peer.id), false);
    }
}

async fn run_incoming(
    shared: &Shared,
    stream: TlsStream<TcpStream>,
    from: SocketAddr,
    opened: Opened,
    slot: HandshakeSlot,
) {
    let Opened { peer, hello, version, mut key_changes } = opened;
    let number = shared.incoming_numbers.fetch_add(1, Ordering::Relaxed) + 1;
    peer.incoming.send_modify(|newest| *newest = number.max(*newest));
    let mut newest = peer.incoming.subscribe();
    let mut superseded = pin!(async {
        // An error means the peer's state is gone, which it cannot be while `peer` lives.
        let _ = newest.wait_for(|newest| *newest != number).await;
    });
    let mut out = BytesMut::new();
    let mut welcomed = false;
    let (mut reader, mut writer) = tokio::io::split(stream);
    let pongs = Pongs::default();
    let link = async {
        let _delivering = peer.incoming_slot.lock().await;
        out.extend_from_slice(&shared.local.answer(Ok(version)).encode());
        welcomed = true;
        drop(slot);
        // Declared after the slot, so dropped before it: a newer link must not see its mark erased.
        let _mark = IncomingMark::set(shared, &peer);
        peer.nudge.notify_one();
        tracing::info!(
            peer = peer.id, %from, incarnation = hello.incarnation, "link from replica {} is up", peer.id
        );
        tokio::select! {
            end = read_frames(shared, &peer, &mut reader, &pongs) => end,
            end = send_control(shared, &peer, &mut writer, &mut out, &pongs) => end,
        }
    };
    let end = tokio::select! {
        end = link => end,
        () = &mut superseded => LinkEnd::new(Reason::Superseded, "the peer opened a newer link"),
        _ = key_changes.changed() => LinkEnd::new(Reason::Reconfigured, "the peer's key was replaced"),
        () = shared.stopped() => LinkEnd::new(Reason::Shutdown, "this replica is stopping"),
    };
    if end.reason == Reason::Shutdown {
        tracing::debug!(peer = peer.id, %from, "link from replica {}: {end}", peer.id);
    } else {
        count_peer(&peer, from, &end);
    }
    let mut stream = reader.unsplit(writer);
    if matches!(end.reason, Reason::Io | Reason::Closed) {
        return;
    }
    match welcomed {
        true => put_bye(&mut out, end.reason),
        // The dialler still waits for its answer.
        false => return refuse(shared, &mut stream, end.reason).await,
    }
    let say = async {
        stream.write_all(&out).await?;
        stream.flush().await
    };
    if let Ok(Ok(())) = tokio::time::timeout(BYE_TIMEOUT, say).await {
        linger(&mut stream).await;
    }
}

/// Pongs on their way from the reader to the writer of one link.
#[derive(Debug, Default)]
struct Pongs {
    waiting: Mutex<VecDeque<Pong>>,
    added: Notify,
}

impl Pongs {
    fn add(&self, pong: Pong) {
        let mut waiting = self.waiting.lock().expect("no panic while the pongs are held");
        if waiting.len() == PONGS_MAX {
            waiting.pop_front();
        }
        waiting.push_back(pong);
        self.added.notify_one();
    }

    fn put_all(&self, out: &mut BytesMut) {
        for pong in self.waiting.lock().expect("no panic while the pongs are held").drain(..) {
            put_pong(out, &pong);
        }
    }
}

async fn read_frames(
    shared: &Shared,
    peer: &Peer,
    reader: &mut (impl AsyncRead + Unpin),
    pongs: &Pongs,
) -> LinkEnd {
    let started = Instant::now();
    let mut buffer = BytesMut::with_capacity(READ_BYTES);
    let mut frames = Reassembler::new(Reading::Frames, shared.limits.frame_bytes_max);
    let mut received_bytes = 0;
    let mut receiver_limited = false;
    loop {
        match frames.next(&mut buffer) {
            Ok(Some(Arrival::Frame(class, frame))) => {
                receiver_limited |= deliver(shared, peer, class, frame).await;
            }
            Ok(Some(Arrival::Ping(nonce))) => {
                let at_us = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
                pongs.add(Pong { nonce, received_bytes, at_us, receiver_limited });
                receiver_limited = false;
            }
            Ok(Some(Arrival::Pong(_) | Arrival::Beat | Arrival::Bye(_))) => {
                unreachable!("a reader of frames yields no control words of the other direction")
            }
            Ok(None) => {
                buffer.reserve(READ_BYTES);
                match read_more(shared, reader, &mut buffer).await {
                    Ok(bytes) => {
                        received_bytes += bytes;
                        peer.counters.bytes_in.fetch_add(bytes, Ordering::Relaxed);
                    }
                    Err(end) => return end,
                }
            }
            Err(end) => return end,
        }
    }
}

/// Offers a frame until the sink takes it. True when it had to wait.
async fn deliver(shared: &Shared, peer: &Peer, class: Class, frame: Bytes) -> bool {
    let mut waited = false;
    loop {
        // Created before the sink is asked, so that room made in between is not missed.
        let room = shared.sink_room.notified();
        match shared.sink.frame(PeerId(peer.id), class, frame.clone()) {
            Delivery::Taken => {
                peer.counters.frames_in.fetch_add(1, Ordering::Relaxed);
                return waited;
            }
            Delivery::Busy => {
                waited = true;
                peer.counters.sink_waits.fetch_add(1, Ordering::Relaxed);
                tokio::select! {
                    () = room => {}
                    () = tokio::time::sleep(SINK_PAUSE) => {}
                }
            }
        }
    }
}

/// Sends the welcome already in `out`, then pongs, and beats when there are none. What is not yet written stays in
/// `out`, so that a farewell put behind it never lands in the middle of a word.
async fn send_control(
    shared: &Shared,
    peer: &Peer,
    writer: &mut (impl AsyncWrite + Unpin),
    out: &mut BytesMut,
    pongs: &Pongs,
) -> LinkEnd {
    loop {
        while !out.is_empty() {
            match writer.write_buf(out).await {
                Ok(0) => return LinkEnd::new(Reason::Closed, "the peer takes nothing any more"),
                Ok(bytes) => _ = peer.counters.bytes_out.fetch_add(bytes as u64, Ordering::Relaxed),
                Err(error) => return stream_end(&error),
            }
        }
        if let Err(error) = writer.flush().await {
            return stream_end(&error);
        }
        tokio::select! {
            () = pongs.added.notified() => pongs.put_all(out),
            () = tokio::time::sleep(shared.limits.ping_interval) => put_beat(out),
        }
    }
}
