//! A live transport behind TLS on the loopback: one target dials it and lies in its hello and frames, the other lets
//! itself be dialled and lies in the answer. What is not public is reached the way an attacker with a member's key would.
//!
//! An input is what is sent inside TLS. Sealing makes the hello or answer good, so that the frames behind it are read.

use crate::Seal::Sums;
use crate::meter::bounded;
use crate::{Target, Verdict};
use dwcp_transport::readers::{Heard, Reader};
use dwcp_transport::{
    CERTIFICATE_NAME, Class, Delivery, Limits, LinkEnd, LinkUp, PeerConfig, PeerId, PinSet, RuntimeChoice,
    Sink, TlsIdentity, Transport, TransportConfig, VersionRange, client_config, server_config,
};
use rustls::pki_types::ServerName;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub static ACCEPTOR: Target =
    Target::new("link_acceptor", run_acceptor, acceptor_seeds, Sums(|b| seal_opening(b, &hello()))).live(
        100,
        HANDSHAKE,
        &["link_hello"],
    );
pub static DIALLER: Target =
    Target::new("link_dialler", run_dialler, dialler_seeds, Sums(|b| seal_opening(b, &answer(0, 1)))).live(
        100,
        HANDSHAKE,
        &["link_answer"],
    );

pub static HELLO_READ: Target =
    Target::new("link_hello", run_hello, acceptor_seeds, Sums(|b| seal_opening(b, &hello())));
pub static ANSWER_READ: Target =
    Target::new("link_answer", run_answer, dialler_seeds, Sums(|b| seal_opening(b, &answer(0, 1))));

const HANDSHAKE: &str = "each is a connection with a TLS handshake of its own";

const CLUSTER: [u8; 32] = [42; 32];
const FRAME_BYTES_MAX: usize = 64 * 1024;
/// Far beyond any need; only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(60);
const HELLO: usize = 50;
const MAGIC: &[u8; 8] = b"DWCPLINK";

#[derive(Debug, Default)]
struct Counts {
    frames: AtomicU64,
    ups: AtomicU64,
    oversize: AtomicU64,
}

impl Sink for Counts {
    fn frame(&self, _: PeerId, _: Class, frame: bytes::Bytes) -> Delivery {
        self.frames.fetch_add(1, Ordering::SeqCst);
        if frame.len() > FRAME_BYTES_MAX {
            self.oversize.fetch_add(1, Ordering::SeqCst);
        }
        Delivery::Taken
    }

    fn link_up(&self, _: PeerId, _: LinkUp) {
        self.ups.fetch_add(1, Ordering::SeqCst);
    }

    fn link_down(&self, _: PeerId, _: &LinkEnd) {}

    fn incoming(&self, _: PeerId, _: bool) {}
}

/// One transport (replica 0) and the liar's ends (replica 1).
struct Arena {
    transport: Transport,
    counts: Arc<Counts>,
    identity: TlsIdentity,
    pins: PinSet,
    /// Where replica 0 dials replica 1.
    listener: TcpListener,
    runs: u64,
}

fn arena(dials: bool) -> MutexGuard<'static, Arena> {
    static ACCEPTS: LazyLock<Mutex<Arena>> = LazyLock::new(|| Mutex::new(Arena::new(false)));
    static DIALS: LazyLock<Mutex<Arena>> = LazyLock::new(|| Mutex::new(Arena::new(true)));
    let arena = if dials { &DIALS } else { &ACCEPTS };
    arena.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Arena {
    fn new(dials: bool) -> Self {
        let (zero, one) =
            ([TlsIdentity::generate(), TlsIdentity::generate()]).map(|made| made.expect("keys")).into();
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        // Nobody answers at port 9 of the loopback, so the acceptor's arena is not disturbed by its own dialling.
        let addr =
            if dials { listener.local_addr().expect("bound").to_string() } else { "127.0.0.1:9".into() };
        let counts = Arc::new(Counts::default());
        let limits = Limits {
            frame_bytes_max: FRAME_BYTES_MAX,
            reconnect_pause_min: Duration::from_millis(1),
            reconnect_pause_max: Duration::from_millis(if dials { 1 } else { 60_000 }),
            ..Limits::default()
        };
        let config = TransportConfig {
            cluster: CLUSTER,
            me: 0,
            incarnation: 3,
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            identity: Arc::new(zero),
            peers: vec![PeerConfig { id: 1, addr, pin: one.public_key() }],
            versions: VersionRange { min: 1, max: 2 },
            seed: 1,
            runtime: RuntimeChoice::Own { worker_threads: 1 },
            limits,
        };
        let zero_key = config.identity.public_key();
        let transport = Transport::start(config, counts.clone()).expect("a transport on the loopback");
        Self { transport, counts, identity: one, pins: PinSet::new([zero_key]), listener, runs: 0 }
    }

    fn tcp(&self, tcp: TcpStream) -> TcpStream {
        tcp.set_read_timeout(Some(PATIENCE)).expect("a socket");
        tcp.set_write_timeout(Some(PATIENCE)).expect("a socket");
        tcp.set_nodelay(true).expect("a socket");
        tcp
    }

    /// Dials, says `bytes`, and reads until the transport hangs up: all that was said has been read by then.
    fn dial(&self, bytes: &[u8]) -> Vec<u8> {
        let config = client_config(Some(&self.identity), &self.pins).expect("keys");
        let name = ServerName::try_from(CERTIFICATE_NAME).expect("a name");
        let tls = rustls::ClientConnection::new(Arc::new(config), name).expect("a connection");
        let tcp = TcpStream::connect(self.transport.local_addr()).expect("the transport still listens");
        let mut stream = rustls::StreamOwned::new(tls, self.tcp(tcp));
        // It may hang up in the middle of what we say.
        let _ = stream.write_all(bytes).and_then(|()| stream.flush());
        stream.conn.send_close_notify();
        let _ = stream.flush();
        let _ = stream.sock.shutdown(std::net::Shutdown::Write);
        read_all(&mut stream)
    }

    /// Waits to be dialled, hears the hello, answers `bytes`.
    fn answer(&self, bytes: &[u8]) {
        let (tcp, _) = self.listener.accept().expect("the transport still dials");
        let config = server_config(&self.identity, &self.pins, true).expect("keys");
        let tls = rustls::ServerConnection::new(Arc::new(config)).expect("a connection");
        let mut stream = rustls::StreamOwned::new(tls, self.tcp(tcp));
        let mut hello = [0; 2 + HELLO];
        stream.read_exact(&mut hello).expect("the transport says hello");
        assert!(hello[2..10] == *MAGIC, "a hello begins with its magic");
        let _ = stream.write_all(bytes).and_then(|()| stream.flush());
        stream.conn.send_close_notify();
        let _ = stream.flush();
        let _ = stream.sock.shutdown(std::net::Shutdown::Write);
        read_all(&mut stream);
    }

    fn judge(&self) {
        assert!(self.counts.oversize.load(Ordering::SeqCst) == 0, "a frame over the limit was delivered");
    }
}

fn read_all(stream: &mut impl Read) -> Vec<u8> {
    let mut all = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return all,
            Ok(count) => all.extend_from_slice(&buffer[..count]),
            Err(error) => {
                let hung =
                    matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut);
                assert!(!hung, "the transport neither answers nor hangs up");
                return all;
            }
        }
    }
}

fn run_hello(bytes: &[u8]) -> Verdict {
    judge(bytes, bounded(bytes, || reader(0).accept(bytes)))
}

fn run_answer(bytes: &[u8]) -> Verdict {
    judge(bytes, bounded(bytes, || reader(0).dial(1, bytes)))
}

fn reader(me: u8) -> Reader {
    let versions = VersionRange { min: 1, max: 2 };
    Reader { cluster: CLUSTER, me, versions, frame_bytes_max: FRAME_BYTES_MAX }
}

/// Accepted when nothing ends the link before the bytes do.
fn judge(bytes: &[u8], heard: Result<Heard, LinkEnd>) -> Verdict {
    let heard = match heard {
        Ok(heard) => heard,
        Err(end) => return refused(&end),
    };
    let said = &bytes[2..];
    assert!(said.starts_with(&heard.opening), "an opening was accepted that is not its own encoding");
    assert!((1..=2).contains(&heard.version), "a version was chosen that was not offered");
    let longest = heard.frames.iter().map(|(_, frame)| frame.len()).max().unwrap_or(0);
    assert!(longest <= FRAME_BYTES_MAX, "a frame over the limit was delivered");
    let delivered: usize = heard.frames.iter().map(|(_, frame)| frame.len() + 5).sum();
    assert!(delivered + 5 * heard.words <= said.len() - heard.opening.len(), "more was heard than said");
    heard.end.as_ref().map_or(Verdict::Accepted, refused)
}

fn refused(end: &LinkEnd) -> Verdict {
    let text = end.to_string();
    assert!(!text.is_empty() && !text.contains('\n'), "a refusal is one line: {text:?}");
    Verdict::Refused
}

/// Accepted when some frame was delivered.
fn run_acceptor(bytes: &[u8]) -> Verdict {
    let mut arena = arena(false);
    let heard = arena.counts.frames.load(Ordering::SeqCst);
    arena.dial(bytes);
    let accepted = arena.counts.frames.load(Ordering::SeqCst) > heard;
    arena.judge();
    arena.runs += 1;
    if arena.runs % 16 == 1 {
        let before = arena.counts.frames.load(Ordering::SeqCst);
        arena.dial(&[hello(), fragment(0, b"honest")].concat());
        assert!(
            arena.counts.frames.load(Ordering::SeqCst) > before,
            "after this the honest are not heard any more"
        );
    }
    Verdict::of(accepted)
}

/// Accepted when the link came up.
fn run_dialler(bytes: &[u8]) -> Verdict {
    let arena = arena(true);
    let ups = arena.counts.ups.load(Ordering::SeqCst);
    arena.answer(bytes);
    arena.judge();
    Verdict::of(arena.counts.ups.load(Ordering::SeqCst) > ups)
}

fn with_len(body: Vec<u8>) -> Vec<u8> {
    let len = u16::try_from(body.len()).expect("small");
    [&len.to_be_bytes()[..], &body].concat()
}

fn hello() -> Vec<u8> {
    with_len([&MAGIC[..], &[0, 1, 0, 1], &CLUSTER, &[1, 0], &[0, 0, 0, 7]].concat())
}

fn answer(refused: u8, version: u8) -> Vec<u8> {
    with_len([&MAGIC[..], &[refused, 0, version, 0, 1, 0, 2, 1], &[0, 0, 0, 7]].concat())
}

fn fragment(kind: u8, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).expect("small");
    [&len.to_be_bytes()[..], &[kind], payload].concat()
}

const MORE: u8 = 0x80;
const PING: u8 = 8;
const PONG: u8 = 9;
const BEAT: u8 = 10;
const BYE: u8 = 11;

fn acceptor_seeds() -> Vec<Vec<u8>> {
    let mixed = [
        fragment(3 | MORE, &[1; 300]),
        fragment(0, b"vote"),
        fragment(3 | MORE, &[2; 300]),
        fragment(1, b"order"),
        fragment(PING, &[9; 8]),
        fragment(3, &[3; 10]),
        fragment(2, b""),
        fragment(BYE, &[1]),
    ];
    let flood = (0..80).map(|n| fragment(2 | MORE, &[n; 1_000]));
    vec![
        [hello(), mixed.concat()].concat(),
        [hello(), flood.flatten().collect()].concat(),
        [hello(), fragment(0, b"one")].concat(),
        with_len([&hello()[2..], &b"what a later release adds"[..]].concat()),
    ]
}

fn dialler_seeds() -> Vec<Vec<u8>> {
    let control = [fragment(PONG, &[0; 25]), fragment(BEAT, &[]), fragment(BYE, &[2])];
    vec![
        [answer(0, 1), control.concat()].concat(),
        answer(1, 0),
        [answer(0, 2), fragment(BEAT, &[])].concat(),
    ]
}

/// Puts a good opening of `len` bytes before what stands behind the damaged one, keeping of it what may differ.
fn seal_opening(bytes: &mut [u8], good: &[u8]) -> bool {
    if bytes.len() < good.len() {
        return false;
    }
    bytes[..good.len()].copy_from_slice(good);
    // Fragments whose lengths run past the end wait for more for ever: the last one is made to fit.
    let mut at = good.len();
    while let Some(field) = bytes.get(at..).and_then(|rest| rest.first_chunk::<4>()) {
        let next = (at + 5).saturating_add(u32::from_be_bytes(*field) as usize);
        if next > bytes.len() {
            let Some(left) = bytes.len().checked_sub(at + 5) else { break };
            let left = u32::try_from(left).expect("small");
            bytes[at..at + 4].copy_from_slice(&left.to_be_bytes());
            break;
        }
        at = next;
    }
    true
}
