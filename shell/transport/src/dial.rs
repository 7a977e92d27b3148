//! The outgoing half: one task per peer that dials it, sends its queue, and dials again when the link ends.
//!
//! Each replica dials every other one and sends only on links it dialled itself, so there is never a question which
//! of two connections to keep. What comes back on such a link is control only: pongs, signs of life, a farewell.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::config::{Limits, PeerId};
use crate::frame::{Arrival, FRAGMENT_BYTES_MAX, FRAGMENT_HEADER_BYTES, Reading, Reassembler, put_ping};
use crate::handshake::{read_hello, stream_end};
use crate::hello::Answer;
use crate::identity::{CERTIFICATE_NAME, PinSet, client_config};
use crate::measure::{Meter, PingKind};
use crate::peer::{LinkUp, Peer, Shared, Target};
use crate::reason::{LinkEnd, Reason};

/// After this much data a busy link pings for a sample of its delivery rate.
const PROBE_BYTES: u64 = 512 * 1024;

/// Pauses that double and are jittered, from a seed of their own.
#[derive(Debug)]
struct Backoff {
    min: Duration,
    max: Duration,
    next: Duration,
    state: u64,
}

impl Backoff {
    fn new(limits: &Limits, seed: u64) -> Self {
        let max = limits.reconnect_pause_max.max(limits.reconnect_pause_min);
        Self { min: limits.reconnect_pause_min, max, next: limits.reconnect_pause_min, state: seed }
    }

    fn reset(&mut self) {
        self.next = self.min;
    }

    /// Between half of the current pause and all of it.
    fn pause(&mut self) -> Duration {
        let current = self.next;
        self.next = (current * 2).min(self.max);
        let share = self.draw() % 1024;
        current / 2 + current / 2 * u32::try_from(share).expect("below 1024") / 1024
    }

    /// SplitMix64: enough to keep replicas out of step.
    fn draw(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// Keeps a link to `peer` until it is removed or the transport stops.
pub(crate) async fn keep_dialling(shared: Arc<Shared>, peer: Arc<Peer>) {
    let seed = shared.seed ^ (u64::from(shared.local.me) << 8 | u64::from(peer.id)).wrapping_mul(0x1000_0001);
    let mut backoff = Backoff::new(&shared.limits, seed);
    let mut changes = peer.target_changes.subscribe();
    // By address. Bounded by the candidates.
    let mut last_logged: BTreeMap<String, Reason> = BTreeMap::new();
    // Which candidate's turn it is: it stays with one that works.
    let mut turn = 0;
    loop {
        changes.mark_unchanged();
        if peer.removed.load(Ordering::SeqCst) {
            return;
        }
        let mut target = peer.target();
        let candidates = peer.candidates(&target.addr);
        if candidates.fresh {
            turn = 1;
        }
        target.addr.clone_from(&candidates.addresses[turn % candidates.addresses.len()]);
        last_logged.retain(|addr, _| candidates.addresses.contains(addr));
        let started = Instant::now();
        let end = tokio::select! {
            end = run_link(&shared, &peer, &target) => end,
            _ = changes.changed() => LinkEnd::new(Reason::Reconfigured, "the peer's address or key changed"),
            () = shared.stopped() => LinkEnd::new(Reason::Shutdown, "this replica is stopping"),
        };
        peer.ends.add(end.reason);
        peer.queue().rewind();
        let was_up = peer.up.swap(false, Ordering::SeqCst);
        if was_up {
            shared.sink.link_down(PeerId(peer.id), &end);
        }
        match end.reason {
            Reason::Shutdown if !end.told_by_peer => return,
            Reason::Reconfigured if !end.told_by_peer => {
                backoff.reset();
                last_logged.clear();
                turn = 0;
                continue;
            }
            // One line per change, not one per attempt.
            reason if was_up || last_logged.get(&target.addr) != Some(&reason) => {
                tracing::warn!(peer = peer.id, addr = %target.addr, "link to replica {}: {end}", peer.id);
                last_logged.insert(target.addr.clone(), reason);
            }
            _ => {}
        }
        if !was_up {
            turn = (turn + 1) % candidates.addresses.len();
        }
        // Only a link that lived counts as success: one that is cut at once must not be redialled at full speed.
        if was_up && started.elapsed() >= shared.limits.reconnect_pause_max {
            backoff.reset();
        }
        let pause = backoff.pause();
        let nudged = async {
            tokio::time::sleep(shared.limits.reconnect_pause_min).await;
            peer.nudge.notified().await;
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = nudged => {}
            _ = changes.changed() => {}
            () = shared.stopped() => return,
        }
    }
}

/// One link, from the look-up of the address to its end.
async fn run_link(shared: &Shared, peer: &Peer, target: &Target) -> LinkEnd {
    let handshake = open_link(shared, peer, target);
    let (stream, link) = match tokio::time::timeout(shared.limits.handshake_timeout, handshake).await {
        Ok(Ok(opened)) => opened,
        Ok(Err(end)) => return end,
        Err(_) => {
            let detail = format!("no link to {} within {:?}", target.addr, shared.limits.handshake_timeout);
            return LinkEnd::new(Reason::HandshakeTimeout, detail);
        }
    };
    peer.note_dialled(&target.addr);
    peer.incarnation.store(link.peer_incarnation, Ordering::Relaxed);
    peer.counters.links_up.fetch_add(1, Ordering::Relaxed);
    peer.up.store(true, Ordering::SeqCst);
    tracing::info!(peer = peer.id, addr = %target.addr, rtt_us = link.rtt_us, "link to replica {} is up", peer.id);
    shared.sink.link_up(PeerId(peer.id), link);
    run_open_link(shared, peer, stream).await
}

async fn open_link(
    shared: &Shared,
    peer: &Peer,
    target: &Target,
) -> Result<(TlsStream<TcpStream>, LinkUp), LinkEnd> {
    let tcp =
        connect(&target.addr, shared.limits.connect_timeout, |addresses| peer.note_addresses(addresses))
            .await?;
    let mut stream = shake_hands(shared, tcp, &target.addr, &PinSet::new([target.pin])).await?;
    let hello = shared.local.hello(peer.id);
    let asked = Instant::now();
    stream.write_all(&hello.encode()).await.map_err(|error| stream_end(&error))?;
    stream.flush().await.map_err(|error| stream_end(&error))?;
    let answer = Answer::decode(&read_hello(&mut stream).await?)?;
    let rtt_us = u64::try_from(asked.elapsed().as_micros()).unwrap_or(u64::MAX);
    answer.judge(&hello)?;
    let link = LinkUp { rtt_us, peer_incarnation: answer.incarnation, wire_version: answer.version };
    Ok((stream, link))
}

/// TLS with whoever answers, who must hold one of these keys.
pub(crate) async fn shake_hands(
    shared: &Shared,
    tcp: TcpStream,
    addr: &str,
    pins: &PinSet,
) -> Result<TlsStream<TcpStream>, LinkEnd> {
    tcp.set_nodelay(true).map_err(|error| LinkEnd::io(&error))?;
    let config = client_config(Some(&shared.identity), pins)
        .map_err(|error| LinkEnd::new(Reason::TlsFailed, error.to_string()))?;
    let name = ServerName::try_from(CERTIFICATE_NAME).expect("the certificate's name is a DNS name");
    let connector = TlsConnector::from(Arc::new(config));
    connector.connect(name, tcp).await.map_err(|error| {
        let mut end = stream_end(&error);
        end.detail = format!("{addr}: {}", end.detail);
        end
    })
}

/// Tries the addresses of the host one after the other, having shown them to `note`.
pub(crate) async fn connect(
    addr: &str,
    patience: Duration,
    note: impl FnOnce(&[SocketAddr]),
) -> Result<TcpStream, LinkEnd> {
    let addresses: Vec<SocketAddr> = tokio::net::lookup_host(addr)
        .await
        .map_err(|error| LinkEnd::new(Reason::Unresolved, format!("{addr}: {error}")))?
        .collect();
    note(&addresses);
    let mut last = LinkEnd::new(Reason::Unresolved, format!("{addr} has no address"));
    for address in addresses {
        let detail = match tokio::time::timeout(patience, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => format!("{address}: {error}"),
            Err(_) => format!("{address}: no answer within {patience:?}"),
        };
        last = LinkEnd::new(Reason::Unreachable, detail);
    }
    Err(last)
}

async fn run_open_link(shared: &Shared, peer: &Peer, stream: TlsStream<TcpStream>) -> LinkEnd {
    let (reader, writer) = tokio::io::split(stream);
    let meter = Mutex::new(Meter::default());
    tokio::select! {
        end = send_frames(shared, peer, writer, &meter) => end,
        end = read_control(shared, peer, reader, &meter) => end,
    }
}

async fn send_frames(
    shared: &Shared,
    peer: &Peer,
    mut writer: impl AsyncWrite + Unpin,
    meter: &Mutex<Meter>,
) -> LinkEnd {
    let write_bytes_max = shared.limits.write_bytes_max;
    let room_bytes = write_bytes_max + FRAGMENT_HEADER_BYTES + FRAGMENT_BYTES_MAX;
    let mut out = BytesMut::with_capacity(room_bytes);
    let mut next_beat = tokio::time::Instant::now();
    let mut bytes_since_ping = 0;
    let put = |out: &mut BytesMut, kind| {
        let nonce = meter.lock().expect("no panic while the meter is held").on_ping(Instant::now(), kind);
        put_ping(out, nonce);
    };
    loop {
        out.clear();
        out.reserve(room_bytes);
        // Pings go first, and a busy link's beat is not put off by its traffic.
        if tokio::time::Instant::now() >= next_beat {
            put(&mut out, PingKind::Beat);
            next_beat = tokio::time::Instant::now() + shared.limits.ping_interval;
            bytes_since_ping = 0;
        } else if bytes_since_ping >= PROBE_BYTES {
            put(&mut out, PingKind::Probe);
            bytes_since_ping = 0;
        }
        let drained = peer.queue().fill(&mut out, write_bytes_max);
        if out.is_empty() {
            meter.lock().expect("no panic while the meter is held").on_idle();
            let queued = pin!(peer.queued.notified());
            tokio::select! {
                () = queued => {}
                () = tokio::time::sleep_until(next_beat) => {}
            }
            continue;
        }
        if let Err(error) = writer.write_all(&out).await {
            return stream_end(&error);
        }
        bytes_since_ping += out.len() as u64;
        peer.counters.bytes_out.fetch_add(out.len() as u64, Ordering::Relaxed);
        // While more waits, the next write pushes this one out; one flush serves many frames.
        if drained && let Err(error) = writer.flush().await {
            return stream_end(&error);
        }
    }
}

async fn read_control(
    shared: &Shared,
    peer: &Peer,
    mut reader: impl AsyncRead + Unpin,
    meter: &Mutex<Meter>,
) -> LinkEnd {
    let mut buffer = BytesMut::with_capacity(1024);
    let mut words = Reassembler::new(Reading::Control, 0);
    loop {
        match words.next(&mut buffer) {
            Ok(Some(Arrival::Pong(pong))) => meter.lock().expect("no panic while the meter is held").on_pong(
                Instant::now(),
                pong,
                &mut peer.measures(),
            ),
            Ok(Some(Arrival::Beat)) => {}
            Ok(Some(Arrival::Bye(reason))) => return LinkEnd::told(reason, "the peer ended the link"),
            Ok(Some(Arrival::Frame(..) | Arrival::Ping(_))) => {
                unreachable!("a reader of control words yields no frames")
            }
            Ok(None) => match read_more(shared, &mut reader, &mut buffer).await {
                Ok(bytes) => _ = peer.counters.bytes_in.fetch_add(bytes, Ordering::Relaxed),
                Err(end) => return end,
            },
            Err(end) => return end,
        }
    }
}

/// Reads what is there, but waits no longer than the allowed silence. Yields the number of bytes.
pub(crate) async fn read_more(
    shared: &Shared,
    reader: &mut (impl AsyncRead + Unpin),
    buffer: &mut BytesMut,
) -> Result<u64, LinkEnd> {
    let silence_max = shared.limits.silence_max;
    match tokio::time::timeout(silence_max, reader.read_buf(buffer)).await {
        Ok(Ok(0)) => Err(LinkEnd::new(Reason::Closed, "the peer closed the connection")),
        Ok(Ok(bytes)) => Ok(bytes as u64),
        Ok(Err(error)) => Err(stream_end(&error)),
        Err(_) => Err(LinkEnd::new(Reason::Silent, format!("nothing arrived for {silence_max:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_to_the_cap_are_jittered_and_follow_the_seed() {
        let limits = Limits::default();
        let pauses = |seed| {
            let mut backoff = Backoff::new(&limits, seed);
            (0..12).map(|_| backoff.pause()).collect::<Vec<_>>()
        };
        let mut full = limits.reconnect_pause_min;
        for pause in pauses(1) {
            assert!((full / 2..=full).contains(&pause), "{pause:?} of {full:?}");
            full = (full * 2).min(limits.reconnect_pause_max);
        }
        assert_eq!(pauses(1), pauses(1));
        assert_ne!(pauses(1), pauses(2));
        let mut backoff = Backoff::new(&limits, 1);
        for _ in 0..12 {
            backoff.pause();
        }
        backoff.reset();
        assert!(backoff.pause() <= limits.reconnect_pause_min);
    }
}
