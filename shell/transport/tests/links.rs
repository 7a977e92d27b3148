//! Real links over loopback, honest and hostile. Every wait is for a condition, with a limit far beyond need; no
//! outcome depends on how fast the machine is.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use dwcp_transport::*;
use rustls::pki_types::ServerName;

const PATIENCE: Duration = Duration::from_secs(60);
const CLUSTER: [u8; 32] = [42; 32];

#[derive(Default)]
struct Seen {
    frames: Vec<(u8, Class, Bytes)>,
    ups: Vec<(u8, LinkUp)>,
    downs: Vec<(u8, LinkEnd)>,
    incoming: Vec<(u8, bool)>,
}

/// Keeps all it is given; says busy while told to.
#[derive(Default)]
struct Recorder {
    seen: Mutex<Seen>,
    changed: Condvar,
    busy: AtomicBool,
}

impl Recorder {
    fn note(&self, what: impl FnOnce(&mut Seen)) {
        what(&mut self.seen.lock().unwrap());
        self.changed.notify_all();
    }

    /// Waits until `question` has an answer.
    fn wait<T>(&self, what: &str, mut question: impl FnMut(&Seen) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        let mut seen = self.seen.lock().unwrap();
        loop {
            if let Some(answer) = question(&seen) {
                return answer;
            }
            let left = deadline.checked_duration_since(Instant::now());
            let left = left.unwrap_or_else(|| panic!("not within {PATIENCE:?}: {what}"));
            seen = self.changed.wait_timeout(seen, left).unwrap().0;
        }
    }

    fn wait_up(&self, peer: u8) -> LinkUp {
        self.wait_ups(peer, 1)
    }

    fn wait_ups(&self, peer: u8, count: usize) -> LinkUp {
        self.wait("link up", |seen| {
            seen.ups.iter().filter(|(id, _)| *id == peer).nth(count - 1).map(|up| up.1)
        })
    }

    fn wait_frame(&self, from: u8, frame: &[u8]) {
        self.wait("frame", |seen| seen.frames.iter().any(|f| f.0 == from && f.2 == frame).then_some(()));
    }
}

impl Sink for Recorder {
    fn frame(&self, from: PeerId, class: Class, frame: Bytes) -> Delivery {
        if self.busy.load(Ordering::SeqCst) {
            return Delivery::Busy;
        }
        self.note(|seen| seen.frames.push((from.0, class, frame)));
        Delivery::Taken
    }

    fn link_up(&self, peer: PeerId, link: LinkUp) {
        self.note(|seen| seen.ups.push((peer.0, link)));
    }

    fn link_down(&self, peer: PeerId, end: &LinkEnd) {
        self.note(|seen| seen.downs.push((peer.0, end.clone())));
    }

    fn incoming(&self, peer: PeerId, up: bool) {
        self.note(|seen| seen.incoming.push((peer.0, up)));
    }
}

fn wait_until(what: &str, mut question: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !question() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn identity() -> Arc<TlsIdentity> {
    Arc::new(TlsIdentity::generate().unwrap())
}

fn any_port() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

fn config(me: u8, identity: &Arc<TlsIdentity>) -> TransportConfig {
    TransportConfig {
        cluster: CLUSTER,
        me,
        incarnation: 1,
        listen: any_port(),
        identity: identity.clone(),
        peers: vec![],
        versions: VersionRange::only(1),
        seed: 7,
        runtime: RuntimeChoice::Own { worker_threads: 1 },
        limits: Limits {
            ping_interval: Duration::from_millis(50),
            silence_max: Duration::from_secs(30),
            handshake_timeout: Duration::from_secs(30),
            reconnect_pause_max: Duration::from_millis(100),
            ..Limits::default()
        },
    }
}

struct Node {
    id: u8,
    identity: Arc<TlsIdentity>,
    sink: Arc<Recorder>,
    transport: Transport,
}

impl Node {
    fn start(config: TransportConfig) -> Self {
        let sink = Arc::new(Recorder::default());
        let (id, identity) = (config.me, config.identity.clone());
        let transport = Transport::start(config, sink.clone()).unwrap();
        Self { id, identity, sink, transport }
    }

    fn new(id: u8) -> Self {
        Self::start(config(id, &identity()))
    }

    fn as_peer(&self) -> PeerConfig {
        let addr = self.transport.local_addr().to_string();
        PeerConfig { id: self.id, addr, pin: self.identity.public_key() }
    }

    fn knows(&self, peer: PeerConfig) -> &Self {
        self.transport.update_peer(peer).unwrap();
        self
    }

    fn send(&self, to: u8, class: Class, frame: &[u8]) -> Sent {
        self.transport.send(PeerId(to), class, Bytes::copy_from_slice(frame))
    }

    fn peer_stats(&self, id: u8) -> PeerStats {
        self.transport.stats().peer(PeerId(id)).unwrap().clone()
    }

    fn wait_end(&self, peer: u8, reason: Reason) {
        wait_until(&format!("{} counts {reason} for {peer}", self.id), || {
            self.peer_stats(peer).ends_by(reason) > 0
        });
    }

    fn wait_stranger(&self, reason: Reason) {
        wait_until(&format!("{} counts a stranger's {reason}", self.id), || {
            self.transport.stats().strangers_by(reason) > 0
        });
    }
}

fn meet(a: &Node, b: &Node) {
    a.knows(b.as_peer());
    b.knows(a.as_peer());
}

fn pair() -> (Node, Node) {
    let (a, b) = (Node::new(1), Node::new(2));
    meet(&a, &b);
    a.sink.wait_up(2);
    b.sink.wait_up(1);
    (a, b)
}

/// Both directions carry a frame.
fn assert_linked(a: &Node, b: &Node) {
    let tag = format!("from {} to {}", a.id, b.id);
    // Sent until it arrives: a link may be lost while it carries a frame, and nobody promises otherwise.
    for (from, to) in [(a, b), (b, a)] {
        let has =
            || to.sink.seen.lock().unwrap().frames.iter().any(|f| f.0 == from.id && f.2 == tag.as_bytes());
        wait_until("a frame in each direction", || {
            let _ = from.send(to.id, Class::Vote, tag.as_bytes());
            std::thread::sleep(Duration::from_millis(5));
            has()
        });
    }
}

/// A TLS connection made by hand, to misbehave on.
fn raw_tls(
    to: SocketAddr,
    config: rustls::ClientConfig,
) -> rustls::StreamOwned<rustls::ClientConnection, TcpStream> {
    let name = ServerName::try_from(CERTIFICATE_NAME).unwrap();
    let connection = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let tcp = TcpStream::connect(to).unwrap();
    tcp.set_read_timeout(Some(PATIENCE)).unwrap();
    rustls::StreamOwned::new(connection, tcp)
}

/// Long before the silence that would end its links.
#[test]
fn a_peer_whose_connections_break_is_known_to_be_gone_in_both_directions_at_once() {
    let (a, b) = pair();
    a.sink.wait("frames can come", |seen| (seen.incoming == [(2, true)]).then_some(()));
    // Dropped without a farewell: the system closes its connections, as it does for a process that is killed.
    drop(b.transport);
    a.sink.wait("both broke", |seen| {
        (seen.downs.len() == 1 && seen.incoming == [(2, true), (2, false)]).then_some(())
    });
}

#[test]
fn three_replicas_exchange_frames_in_order_per_class() {
    let nodes = [Node::new(0), Node::new(1), Node::new(2)];
    let each_pair = || [(0, 1), (0, 2), (1, 2)].into_iter();
    each_pair().for_each(|(i, j)| meet(&nodes[i], &nodes[j]));
    let count = 300u32;
    for from in &nodes {
        for to in nodes.iter().filter(|to| to.id != from.id) {
            from.sink.wait_up(to.id);
            for n in 0..count {
                for class in Class::ALL {
                    // Some frames span several fragments.
                    let length = if class == Class::Bulk && n % 50 == 0 { 100_000 } else { 0 };
                    let mut frame = n.to_be_bytes().to_vec();
                    frame.resize(4 + length, n as u8);
                    assert_eq!(from.send(to.id, class, &frame), Sent::Queued);
                }
            }
        }
    }
    for node in &nodes {
        let expected = 2 * Class::COUNT * count as usize;
        node.sink.wait("all frames", |seen| (seen.frames.len() == expected).then_some(()));
        let mut streams: BTreeMap<(u8, Class), Vec<u32>> = BTreeMap::new();
        for (from, class, frame) in &node.sink.seen.lock().unwrap().frames {
            let (number, rest) = frame.split_first_chunk::<4>().unwrap();
            let number = u32::from_be_bytes(*number);
            assert!(rest.iter().all(|byte| *byte == number as u8));
            streams.entry((*from, *class)).or_default().push(number);
        }
        assert_eq!(streams.len(), 2 * Class::COUNT);
        for numbers in streams.values() {
            assert_eq!(*numbers, (0..count).collect::<Vec<_>>());
        }
    }
}

#[test]
fn a_link_tells_incarnation_version_and_round_trip() {
    let mut first = config(1, &identity());
    first.versions = VersionRange { min: 1, max: 3 };
    let mut second = config(2, &identity());
    (second.versions, second.incarnation) = (VersionRange { min: 2, max: 9 }, 77);
    let (a, b) = (Node::start(first), Node::start(second));
    meet(&a, &b);
    let up = a.sink.wait_up(2);
    assert_eq!((up.peer_incarnation, up.wire_version), (77, 3));
    assert_eq!(b.sink.wait_up(1).wire_version, 3);
    wait_until("pings are answered", || a.peer_stats(2).rtt_p95_us.is_some());
    let stats = a.peer_stats(2);
    assert!(stats.up && stats.peer_incarnation == Some(77) && stats.rtt_p50_us <= stats.rtt_p95_us);
    assert_linked(&a, &b);
    let stats = a.peer_stats(2);
    assert!(stats.bytes_in > 0 && stats.bytes_out > 0 && stats.frames_in > 0 && stats.frames_out > 0);
}

#[test]
fn an_unknown_key_is_refused_and_both_ends_say_so() {
    let (a, b) = (Node::new(1), Node::new(2));
    // B expects another key of replica 1; A expects another key of replica 2.
    b.knows(PeerConfig { pin: identity().public_key(), ..a.as_peer() });
    a.knows(b.as_peer());
    b.wait_stranger(Reason::UnknownKey);
    a.wait_end(2, Reason::KeyRefusedByPeer);
    b.wait_end(1, Reason::UnknownKey);
    a.wait_stranger(Reason::KeyRefusedByPeer);
    assert!(a.sink.seen.lock().unwrap().ups.is_empty());
    assert!(b.sink.seen.lock().unwrap().ups.is_empty());
    // Corrected, it works without a restart.
    b.knows(a.as_peer());
    assert_linked(&a, &b);
}

#[test]
fn another_cluster_is_refused_and_both_ends_say_so() {
    let mut other = config(2, &identity());
    other.cluster = [43; 32];
    let (a, b) = (Node::new(1), Node::start(other));
    meet(&a, &b);
    a.wait_end(2, Reason::WrongCluster);
    b.wait_end(1, Reason::WrongCluster);
    assert!(a.sink.seen.lock().unwrap().ups.is_empty());
}

#[test]
fn no_common_version_is_refused_and_both_ends_say_so() {
    let mut newer = config(2, &identity());
    newer.versions = VersionRange { min: 2, max: 3 };
    let (a, b) = (Node::new(1), Node::start(newer));
    meet(&a, &b);
    a.wait_end(2, Reason::VersionMismatch);
    b.wait_end(1, Reason::VersionMismatch);
    assert!(b.sink.seen.lock().unwrap().ups.is_empty());
}

#[test]
fn a_replica_reached_under_a_wrong_id_refuses() {
    let (a, b) = (Node::new(1), Node::new(2));
    b.knows(a.as_peer());
    a.knows(PeerConfig { id: 7, ..b.as_peer() });
    a.wait_end(7, Reason::WrongReplica);
    b.wait_end(1, Reason::WrongReplica);
}

#[test]
fn a_pinned_key_cannot_claim_another_replicas_id() {
    let b = Node::new(2);
    let (honest, liar_key) = (Node::new(1), identity());
    let pin = liar_key.public_key();
    b.knows(honest.as_peer()).knows(PeerConfig { id: 3, addr: "127.0.0.1:1".into(), pin });
    let claims_one = Node::start(config(1, &liar_key));
    claims_one.knows(b.as_peer()).wait_end(2, Reason::WrongKeyForReplica);
    b.wait_end(3, Reason::WrongKeyForReplica);
    let claims_nine = Node::start(config(9, &liar_key));
    claims_nine.knows(b.as_peer()).wait_end(2, Reason::UnknownReplica);
    b.wait_end(3, Reason::UnknownReplica);
    assert!(b.sink.seen.lock().unwrap().frames.is_empty());
    honest.knows(b.as_peer());
    assert_linked(&honest, &b);
}

#[test]
fn tls_1_2_plaintext_and_nonsense_are_refused_by_name() {
    let (a, b) = pair();
    let to = b.transport.local_addr();

    let mut config = client_config(Some(&a.identity), &PinSet::any_key()).unwrap();
    assert!(raw_tls(to, config.clone()).flush().is_ok(), "the same by TLS 1.3 would pass");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions = [&rustls::version::TLS12];
    config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&versions)
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    assert!(raw_tls(to, config).flush().is_err());
    b.wait_stranger(Reason::TlsVersion);

    let mut plain = TcpStream::connect(to).unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\nhost: replica\r\n\r\n").unwrap();
    b.wait_stranger(Reason::NotTls);

    // With a pinned key, but then something that is no hello: the refusal is told inside TLS.
    let pins = PinSet::new([b.identity.public_key()]);
    let mut stream = raw_tls(to, client_config(Some(&a.identity), &pins).unwrap());
    stream.write_all(&[0, 20]).unwrap();
    stream.write_all(b"certainly not a hello").unwrap();
    stream.flush().unwrap();
    b.wait_end(1, Reason::NotLinkProtocol);
    let mut answer = [0; 11];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer[2..], *b"DWCPLINK\x06");

    assert_linked(&a, &b);
}

#[test]
fn half_a_handshake_is_given_up_after_its_time() {
    let mut hasty = config(2, &identity());
    hasty.limits.handshake_timeout = Duration::from_millis(300);
    let (a, b) = (Node::new(1), Node::start(hasty));
    b.knows(a.as_peer());
    let to = b.transport.local_addr();
    let mut silent = TcpStream::connect(to).unwrap();
    silent.set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(matches!(silent.read(&mut [0; 1]), Ok(0) | Err(_)));
    b.wait_stranger(Reason::HandshakeTimeout);

    let pins = PinSet::new([b.identity.public_key()]);
    let mut stream = raw_tls(to, client_config(Some(&a.identity), &pins).unwrap());
    stream.write_all(&[0, 50, b'D', b'W']).unwrap();
    stream.flush().unwrap();
    b.wait_end(1, Reason::HandshakeTimeout);
    wait_until("its slot is free again", || b.transport.stats().pending_handshakes == 0);
}

#[test]
fn pending_handshakes_are_bounded() {
    let mut small = config(2, &identity());
    small.limits.handshakes_max = 2;
    let (a, b) = (Node::new(1), Node::start(small));
    let to = b.transport.local_addr();
    let idle = [TcpStream::connect(to).unwrap(), TcpStream::connect(to).unwrap()];
    wait_until("both are pending", || b.transport.stats().pending_handshakes == 2);
    let mut third = TcpStream::connect(to).unwrap();
    third.set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(matches!(third.read(&mut [0; 1]), Ok(0) | Err(_)));
    b.wait_stranger(Reason::TooManyHandshakes);
    drop(idle);
    meet(&a, &b);
    assert_linked(&a, &b);
}

/// Other systems have only one loopback address.
#[cfg(target_os = "linux")]
#[test]
fn a_flood_of_strangers_does_not_lock_peers_out() {
    let mut small = config(2, &identity());
    (small.limits.handshakes_max, small.listen) = (4, "0.0.0.0:0".parse().unwrap());
    let b = Node::start(small);
    let to: SocketAddr = format!("127.0.0.1:{}", b.transport.local_addr().port()).parse().unwrap();
    // B finds its peer at 127.0.0.1, so what comes from 127.0.0.9 is a stranger's.
    let a = Node::new(1);
    b.knows(a.as_peer()).wait_end(1, Reason::KeyRefusedByPeer);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let idle: Vec<_> = (0..4)
        .map(|_| {
            runtime.block_on(async {
                let socket = tokio::net::TcpSocket::new_v4().unwrap();
                socket.bind("127.0.0.9:0".parse().unwrap()).unwrap();
                socket.connect(to).await.unwrap()
            })
        })
        .collect();
    b.wait_stranger(Reason::TooManyHandshakes);
    assert_eq!(b.transport.stats().pending_handshakes, 3);
    a.knows(PeerConfig { addr: to.to_string(), ..b.as_peer() });
    assert_linked(&a, &b);
    drop(idle);
}

#[test]
fn an_oversized_frame_ends_the_link_and_the_next_link_works() {
    let mut strict = config(2, &identity());
    strict.limits.frame_bytes_max = 50_000;
    let (a, b) = (Node::new(1), Node::start(strict));
    meet(&a, &b);
    a.sink.wait_up(2);
    assert_eq!(b.send(1, Class::Vote, &[0; 50_001]), Sent::TooLarge);
    assert_eq!(b.peer_stats(1).dropped, [1, 0, 0, 0, 0]);
    assert_eq!(a.send(2, Class::Order, &[0; 50_001]), Sent::Queued);
    b.wait_end(1, Reason::Oversize);
    a.sink.wait("the link is down", |seen| seen.downs.iter().any(|down| down.0 == 2).then_some(()));
    a.sink.wait_ups(2, 2);
    assert_linked(&a, &b);
    assert!(b.sink.seen.lock().unwrap().frames.iter().all(|frame| frame.2.len() < 50_000));
}

#[test]
fn links_come_back_after_a_peer_restarts() {
    let (a, b) = pair();
    let (addr, key, as_peer) = (b.transport.local_addr(), b.identity.clone(), a.as_peer());
    assert_linked(&a, &b);
    b.transport.shutdown();
    assert_eq!(b.send(1, Class::Vote, b"late"), Sent::Stopped);
    let end = a.sink.wait("the link is down", |seen| seen.downs.first().map(|down| down.1.clone()));
    assert!(matches!(end.reason, Reason::Shutdown | Reason::Closed | Reason::Io), "{end}");
    assert_eq!(a.send(2, Class::Vote, b"kept while it was away"), Sent::Queued);

    let mut again = config(2, &key);
    (again.listen, again.incarnation, again.peers) = (addr, 2, vec![as_peer]);
    let (sink, mut restarted) = (Arc::new(Recorder::default()), None);
    wait_until("the port is free again", || {
        restarted = Transport::start(again.clone(), sink.clone()).ok();
        restarted.is_some()
    });
    let b = Node { id: 2, identity: key, sink, transport: restarted.unwrap() };
    assert_eq!(a.sink.wait_ups(2, 2).peer_incarnation, 2);
    b.sink.wait_frame(1, b"kept while it was away");
    assert_linked(&a, &b);
    assert!(a.peer_stats(2).reconnects >= 1);
}

#[test]
fn the_queue_to_a_dead_peer_is_bounded_and_keeps_its_votes() {
    let mut small = config(1, &identity());
    small.limits.queue = QueueLimits {
        class_bytes_max: [64 << 10; Class::COUNT],
        total_bytes_max: 64 << 10,
        patience_bytes: 256 << 10,
    };
    let (a, b) = (Node::start(small), Node::new(2));
    b.knows(a.as_peer());
    // Nobody listens on port 1 of loopback.
    a.knows(PeerConfig { addr: "127.0.0.1:1".into(), ..b.as_peer() });
    a.wait_end(2, Reason::Unreachable);
    for class in [Class::Bulk, Class::Request, Class::Order] {
        for _ in 0..100 {
            let _ = a.send(2, class, &[class as u8; 1000]);
        }
    }
    let votes = 30u8;
    for n in 0..votes {
        assert_ne!(a.send(2, Class::Vote, &[n; 1000]), Sent::Dropped);
    }
    let stats = a.peer_stats(2);
    assert!(stats.queue_bytes <= 64 << 10, "{}", stats.queue_bytes);
    // 61 frames fit: all votes and the newest of the next class.
    assert_eq!(stats.dropped, [0, 69, 100, 100, 0]);
    a.knows(b.as_peer());
    b.sink.wait("votes and the rest", |seen| (seen.frames.len() == 61).then_some(()));
    let frames = std::mem::take(&mut b.sink.seen.lock().unwrap().frames);
    let of = |class| frames.iter().filter(move |frame| frame.1 == class);
    assert!(of(Class::Vote).map(|frame| frame.2[0]).eq(0..votes));
    assert_eq!(of(Class::Order).count(), 31);
}

#[test]
fn a_replaced_peer_loses_its_links_and_its_successor_gets_them() {
    let (a, old) = pair();
    assert_linked(&a, &old);
    // The old links end because of the new key, not only once the successor dials in.
    let key = identity();
    a.knows(PeerConfig { id: 2, addr: "127.0.0.1:1".into(), pin: key.public_key() });
    old.wait_end(1, Reason::KeyRefusedByPeer);
    assert!(!a.peer_stats(2).incoming_up);
    let new = Node::start(TransportConfig { incarnation: 2, ..config(2, &key) });
    new.knows(a.as_peer());
    a.knows(new.as_peer());
    let end = a.sink.wait("the old link is down", |seen| seen.downs.first().map(|down| down.1.clone()));
    assert_eq!(end.reason, Reason::Reconfigured);
    assert_eq!(a.sink.wait_ups(2, 2).peer_incarnation, 2);
    assert_linked(&a, &new);
    let _ = old.send(1, Class::Vote, b"a voice from the past");
    assert_linked(&a, &new);
    let frames = &a.sink.seen.lock().unwrap().frames;
    assert!(frames.iter().all(|frame| frame.2 != b"a voice from the past"[..]));
}

#[test]
fn a_removed_peer_is_cut_off_and_may_return() {
    let (a, b) = pair();
    assert!(a.transport.remove_peer(PeerId(2)));
    assert!(!a.transport.remove_peer(PeerId(2)));
    a.sink.wait("the link is down", |seen| seen.downs.first().map(|_| ()));
    assert_eq!(a.send(2, Class::Vote, b"x"), Sent::UnknownPeer);
    b.wait_end(1, Reason::KeyRefusedByPeer);
    a.knows(b.as_peer());
    assert_linked(&a, &b);
}

#[test]
fn a_busy_sink_stops_the_reader_and_loses_nothing() {
    let (a, b) = pair();
    b.sink.busy.store(true, Ordering::SeqCst);
    let before = b.peer_stats(1).frames_in;
    for n in 0..200u8 {
        assert_eq!(a.send(2, Class::Order, &[n; 2000]), Sent::Queued);
    }
    wait_until("the reader waits", || b.peer_stats(1).sink_waits > 3);
    assert_eq!(b.peer_stats(1).frames_in, before);
    b.sink.busy.store(false, Ordering::SeqCst);
    b.transport.sink_has_room();
    b.sink.wait("all frames", |seen| (seen.frames.len() == 200).then_some(()));
    assert!(b.sink.seen.lock().unwrap().frames.iter().map(|frame| frame.2[0]).eq(0..200));
}

#[test]
fn a_frame_cut_in_two_by_a_lost_link_never_arrives_in_part() {
    let mut roomy = config(1, &identity());
    roomy.limits.queue.class_bytes_max[Class::Bulk as usize] = 64 << 20;
    roomy.limits.queue.total_bytes_max = 64 << 20;
    let (a, b) = (Node::start(roomy), Node::new(2));
    meet(&a, &b);
    a.sink.wait_up(2);
    // The receiver stands still, so the sender is stuck within a frame once the sockets are full.
    b.sink.busy.store(true, Ordering::SeqCst);
    let (length, count) = (5 << 20, 8u8);
    for n in 0..count {
        assert_eq!(a.send(2, Class::Bulk, &vec![n; length]), Sent::Queued);
    }
    wait_until("the reader waits", || b.peer_stats(1).sink_waits > 20);
    let addr = format!("localhost:{}", b.transport.local_addr().port());
    a.knows(PeerConfig { addr, ..b.as_peer() });
    b.sink.busy.store(false, Ordering::SeqCst);
    b.sink.wait("the last frame", |seen| seen.frames.iter().any(|f| f.2[0] == count - 1).then_some(()));
    for (_, _, frame) in &b.sink.seen.lock().unwrap().frames {
        assert_eq!(frame.len(), length);
        assert!(frame.iter().all(|byte| *byte == frame[0]));
    }
}

#[test]
fn a_stopped_peer_is_noticed_by_its_silence() {
    let mut hasty = config(1, &identity());
    hasty.limits.ping_interval = Duration::from_millis(100);
    hasty.limits.silence_max = Duration::from_millis(400);
    let mut lazy = config(2, &identity());
    // It gives no sign of life for half a minute, which to the other side is what a stopped process looks like.
    (lazy.limits.ping_interval, lazy.limits.silence_max) = (Duration::from_secs(30), Duration::from_secs(60));
    let (a, b) = (Node::start(hasty), Node::start(lazy));
    b.knows(a.as_peer());
    a.knows(b.as_peer());
    b.sink.wait_up(1);
    // B pings A once and then no more, so A hears nothing on the link from B.
    a.wait_end(2, Reason::Silent);
    b.sink.wait("told or cut", |seen| seen.downs.first().map(|_| ()));
}

#[test]
fn links_run_on_a_runtime_of_the_callers() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let given = |id| {
        let runtime = RuntimeChoice::Given(runtime.handle().clone());
        Node::start(TransportConfig { runtime, ..config(id, &identity()) })
    };
    let (a, b) = (given(1), given(2));
    meet(&a, &b);
    assert_linked(&a, &b);
    a.transport.shutdown();
    b.sink.wait("the link is down", |seen| seen.downs.first().map(|_| ()));
}

#[test]
fn a_port_in_use_is_one_line_that_says_what_to_do() {
    let a = Node::new(1);
    let addr = a.transport.local_addr();
    let second = TransportConfig { listen: addr, ..config(2, &identity()) };
    let error = Transport::start(second, a.sink.clone()).unwrap_err();
    let expected = format!(
        "peer address {addr} is already in use: stop the process that holds it or set another peer_listen"
    );
    assert_eq!(error.to_string(), expected);
}

#[test]
fn impossible_configurations_are_refused_with_the_remedy() {
    let (me, other) = (identity(), identity());
    let peer = |id, pin| PeerConfig { id, addr: "127.0.0.1:1".into(), pin };
    let with = |peers: Vec<PeerConfig>| {
        let config = TransportConfig { peers, ..config(1, &me) };
        Transport::start(config, Arc::new(Recorder::default())).unwrap_err().to_string()
    };
    let key = other.public_key();
    assert!(with(vec![peer(1, key)]).contains("remove it from the peers"));
    assert!(with(vec![peer(2, key), peer(2, key)]).contains("remove one of the two"));
    assert!(with(vec![peer(2, key), peer(3, key)]).contains("give each replica its own"));
    assert!(with(vec![peer(2, me.public_key())]).contains("replicas 1 and 2 have the same key"));
    let mut silent = config(1, &me);
    silent.limits.silence_max = silent.limits.ping_interval;
    let error = Transport::start(silent, Arc::new(Recorder::default())).unwrap_err().to_string();
    assert!(error.contains("silence_max") && error.contains("twice the ping_interval"), "{error}");
}

#[test]
fn a_peer_that_moved_is_found_by_a_hint_and_its_key_decides() {
    let (a, b, c) = (Node::new(1), Node::new(2), Node::new(3));
    meet(&a, &c);
    // Where nobody listens: the port was free a moment ago.
    let gone = std::net::TcpListener::bind(any_port()).unwrap().local_addr().unwrap().to_string();
    a.knows(PeerConfig { addr: gone.clone(), ..b.as_peer() });
    b.knows(PeerConfig { addr: gone.clone(), ..a.as_peer() });
    a.wait_end(2, Reason::Unreachable);
    // A hint that leads to somebody else harms nobody.
    a.transport.hint_addresses(PeerId(2), vec![c.transport.local_addr().to_string()]);
    a.wait_end(2, Reason::UnknownKey);
    assert!(!a.peer_stats(2).up && a.transport.unreached() == [PeerId(2)]);
    let right = b.transport.local_addr().to_string();
    a.transport.hint_addresses(PeerId(2), vec![right.clone()]);
    a.sink.wait_up(2);
    let stats = a.peer_stats(2);
    assert_eq!((stats.addr, stats.dialled), (gone, Some(right)));
    assert!(a.transport.unreached().is_empty());
    // The way back is still unknown to the other, which hears from it all the same.
    assert_eq!(a.send(2, Class::Hint, b"here I am"), Sent::Queued);
    b.sink.wait_frame(1, b"here I am");
    b.transport.hint_addresses(PeerId(1), vec![a.transport.local_addr().to_string()]);
    assert_linked(&a, &b);
}

#[test]
fn an_address_says_whose_it_is_and_takes_no_link_away() {
    let (a, b) = pair();
    let stranger = Node::new(9);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let ask = |addr: &str| runtime.block_on(a.transport.who_is_at(addr));
    assert_eq!(ask(&b.transport.local_addr().to_string()), Ok(PeerId(2)));
    assert_eq!(ask(&stranger.transport.local_addr().to_string()).unwrap_err().reason, Reason::UnknownKey);
    let nobody = std::net::TcpListener::bind(any_port()).unwrap().local_addr().unwrap();
    assert_eq!(ask(&nobody.to_string()).unwrap_err().reason, Reason::Unreachable);
    // The peer's key at a port that answers no links.
    let clients = std::net::TcpListener::bind(any_port()).unwrap();
    let addr = clients.local_addr().unwrap();
    let config = Arc::new(server_config(&b.identity, &PinSet::any_key(), false).unwrap());
    let serving = std::thread::spawn(move || {
        let (tcp, _) = clients.accept().unwrap();
        let mut stream = rustls::StreamOwned::new(rustls::ServerConnection::new(config).unwrap(), tcp);
        let mut word = [0; 16];
        let _ = stream.read(&mut word);
        let _ = stream.write_all(&[0, 30, b'n', b'o', b't', b' ', b'a', b' ', b'l', b'i', b'n', b'k']);
    });
    let end = ask(&addr.to_string()).unwrap_err();
    serving.join().unwrap();
    assert!(matches!(end.reason, Reason::NotLinkProtocol | Reason::Closed | Reason::TlsFailed), "{end}");
    assert_linked(&a, &b);
    assert_eq!((a.peer_stats(2).reconnects, b.peer_stats(1).reconnects), (0, 0));
}
