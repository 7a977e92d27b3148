//! The API over real sockets, with a node in memory behind it. Waits end by what happens; `PATIENCE` only turns a hang
//! into a failure.

mod reads;
mod sync;

use crate::{Api, ApiConfig, ApiError, Busy, Limits, Port, Readers, Replies, Requests};
use bytes::Bytes;
use dwcp_base::configuration::{Principal, Role};
use dwcp_base::crypto::Ed25519;
use dwcp_base::{
    Ack, ClusterId, Epoch, Hash, Incarnation, Index, NetworkMode, Position, PublicKey, ReplicaId, Sequence,
    Term, Trust, View,
};
use dwcp_node::init::{ClusterOptions, Ports, TrialOptions, trial_cluster};
use dwcp_node::keys::{SecretSeed, read_tls_identity};
use dwcp_node::{Mode, Node, NodeConfig};
use dwcp_proto::v3::dwcp_client::DwcpClient;
use dwcp_proto::v3::{
    self, Attach, ClientMessage, OrderRequest, QueryRequest, ServerMessage, StatusRequest, order_reply,
    query_reply,
};
use dwcp_proto::{MESSAGE_BYTES_MAX, REPLY_BYTES_MAX};
use dwcp_replica::io::{
    ClientReply, ClientRequest, Label, OrderOutcome, ProtocolName, SegmentStatus, Status, SwitchStatus,
};
use dwcp_replica::{Advice, Answered, ExecutedReply, PeerStatus, ReadLabel, Unanswered};
use dwcp_state::kv::KvCommand;
use dwcp_state::{
    AdminCommand, AdminReply, CHALLENGE_BYTES, ClientFrame, Command, SessionAttach, SessionFrame, SessionId,
    SessionOpen,
};
use dwcp_transport::{PinSet, TlsIdentity, client_config};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Streaming};

const PATIENCE: Duration = Duration::from_secs(60);

/// What stands before a frame's commands: kind, length, session key.
const FRAME_HEAD_BYTES: usize = 37;
const CLUSTER: ClusterId = ClusterId([6; 32]);
const REPLICA: ReplicaId = ReplicaId(2);

/// A node that answers at once: frames with an executed reply whose first sequence is the frame's length behind its head.
#[derive(Clone, Default)]
struct FakeNode(Arc<FakeState>);

#[derive(Default)]
struct FakeState {
    busy: AtomicBool,
    /// Answers nothing.
    mute: AtomicBool,
    open: AtomicUsize,
    closed: Notify,
    attaches: AtomicUsize,
    frames: AtomicUsize,
    /// What each frame's sender wanted.
    acks: Mutex<Vec<Option<Ack>>>,
    principals: Mutex<Vec<Principal>>,
    /// Pushed into every new client's replies.
    flood: AtomicUsize,
    /// All that was asked of convergent state, and what is answered to one question after the other; a watch hears all
    /// that is left.
    sync_requests: Mutex<Vec<dwcp_replica::SyncRequest>>,
    sync_replies: Mutex<VecDeque<dwcp_replica::SyncReply>>,
    sync_status: Mutex<Option<dwcp_replica::SyncStatus>>,
}

struct FakeRequests {
    node: FakeNode,
    replies: mpsc::UnboundedSender<ClientReply>,
}

struct FakeReplies {
    node: FakeNode,
    replies: mpsc::UnboundedReceiver<ClientReply>,
}

impl Drop for FakeReplies {
    fn drop(&mut self) {
        self.node.0.open.fetch_sub(1, Ordering::SeqCst);
        self.node.0.closed.notify_one();
    }
}

fn executed(first: u64, filler: usize) -> ClientReply {
    ClientReply::Executed(ExecutedReply {
        session: SessionId([7; 16]),
        first,
        results: Vec::new(),
        label: Label::Byzantine,
        view: View(1),
        ask: ReplicaId(2),
        replica: ReplicaId(2),
        incarnation: Incarnation(0),
        leaf_index: 0,
        leaf_count: 1,
        path: vec![Hash::ZERO; filler / 32],
        signature: None,
    })
}

fn an_answer(bytes: Bytes, label: ReadLabel) -> Answered {
    Answered { bytes, label, position: Position(17), view: View(5) }
}

fn a_status() -> Status {
    Status {
        replica: ReplicaId(2),
        incarnation: Incarnation(3),
        n: 4,
        f: 1,
        view: View(5),
        view_active: true,
        primary: ReplicaId(1),
        executed: Sequence(10),
        stable: Sequence(8),
        highest_seen: Sequence(11),
        position: Position(12),
        chain: Hash([1; 32]),
        state_digest_sequence: Sequence(8),
        state_digest: Hash([2; 32]),
        pending_frames: 13,
        pending_bytes: 14,
        executed_commands: 15,
        log_time_ms: 16,
        voter: true,
        transferring: false,
        not_ready: vec!["warming up".into()],
        counters: vec![("views".into(), 17)],
        peers: vec![PeerStatus {
            id: ReplicaId(0),
            view: View(5),
            executed: Sequence(9),
            stable: Sequence(8),
            silent_ms: u64::MAX,
        }],
        vote_key: PublicKey([3; 32]),
        mode: NetworkMode::Hybrid,
        trust: Trust::Crash,
        raft: true,
        default_ack: Ack::Majority,
        next_order: 18,
        epoch: Epoch(19),
        protocol: ProtocolName::Raft,
        orderer: Some(ReplicaId(3)),
        segment: Some(SegmentStatus {
            term: Term(20),
            leader: Some(ReplicaId(3)),
            last: Index(24),
            committed: Index(23),
            applied: Index(22),
            anchored: Index(21),
            anchored_position: Position(121),
            sealed: false,
            suspecting: true,
        }),
        failovers: 25,
        last_switch: Some(SwitchStatus {
            epoch: Epoch(19),
            to: ProtocolName::Raft,
            planned: true,
            sequence: Sequence(9),
            gap_us: 26,
            at_unix_ms: 27,
            cause: "the operator ordered a mode".into(),
        }),
        no_segment: "none".into(),
        sync: None,
    }
}

impl Port for FakeNode {
    type Requests = FakeRequests;
    type Replies = FakeReplies;

    fn identity(&self) -> (ClusterId, ReplicaId) {
        (CLUSTER, REPLICA)
    }

    fn open(&self) -> Result<(FakeRequests, FakeReplies), Busy> {
        let (sender, receiver) = mpsc::unbounded_channel();
        for first in 0..self.0.flood.load(Ordering::SeqCst) as u64 {
            let _ = sender.send(executed(first, 64 * 1024));
        }
        self.0.open.fetch_add(1, Ordering::SeqCst);
        Ok((
            FakeRequests { node: self.clone(), replies: sender },
            FakeReplies { node: self.clone(), replies: receiver },
        ))
    }
}

impl Requests for FakeRequests {
    fn send(&self, request: ClientRequest) -> Result<(), Busy> {
        if self.node.0.busy.load(Ordering::SeqCst) {
            return Err(Busy);
        }
        if self.node.0.mute.load(Ordering::SeqCst) {
            return Ok(());
        }
        let reply = match request {
            ClientRequest::Attach { .. } => {
                self.node.0.attaches.fetch_add(1, Ordering::SeqCst);
                return Ok(());
            }
            ClientRequest::Frame { bytes, ack } => {
                self.node.0.frames.fetch_add(1, Ordering::SeqCst);
                self.node.0.acks.lock().expect("no panic").push(ack);
                executed((bytes.len() - FRAME_HEAD_BYTES) as u64, 0)
            }
            ClientRequest::Order { id, .. } => {
                ClientReply::Order { id, outcome: OrderOutcome::Done { sequence: Sequence(44) } }
            }
            ClientRequest::Read { id, bytes, ack } => {
                self.node.0.acks.lock().expect("no panic").push(ack);
                let outcome = match &bytes[..] {
                    b"led" => Ok(an_answer(bytes, ReadLabel::Crash)),
                    b"elsewhere" => Err(Advice::Elsewhere),
                    b"root" => Err(Advice::Order),
                    b"nonsense" => Err(Advice::Nowhere),
                    _ => Err(Advice::Leader(ReplicaId(3))),
                };
                let outcome = outcome.map_err(|advice| Unanswered { reason: format!("{advice:?}"), advice });
                ClientReply::Query { id, outcome }
            }
            ClientRequest::Sync { id, request } => {
                let watches = matches!(request, dwcp_replica::SyncRequest::Watch { .. });
                self.node.0.sync_requests.lock().expect("no panic").push(request);
                let mut replies = self.node.0.sync_replies.lock().expect("no panic");
                let count = if watches { replies.len() } else { 1 };
                for reply in replies.drain(..count) {
                    let _ = self.replies.send(ClientReply::Sync { id, reply });
                }
                return Ok(());
            }
            ClientRequest::Query { id, bytes } => {
                let outcome = if bytes == Command::Admin(AdminCommand::PrincipalList).encode() {
                    let principals = self.node.0.principals.lock().expect("no panic").clone();
                    Bytes::from(dwcp_base::encode(&AdminReply::Principals(principals)))
                } else {
                    bytes
                };
                ClientReply::Query { id, outcome: Ok(an_answer(outcome, ReadLabel::Stale)) }
            }
            ClientRequest::Status { id } => {
                let sync = self.node.0.sync_status.lock().expect("no panic").clone();
                ClientReply::Status { id, status: Box::new(Status { sync, ..a_status() }) }
            }
        };
        let _ = self.replies.send(reply);
        Ok(())
    }
}

impl Replies for FakeReplies {
    fn poll_recv(&mut self, context: &mut Context<'_>) -> Poll<Option<ClientReply>> {
        self.replies.poll_recv(context)
    }
}

struct Served {
    node: FakeNode,
    address: SocketAddr,
    key: [u8; 32],
    stop: Option<oneshot::Sender<()>>,
    server: JoinHandle<Result<(), ApiError>>,
}

async fn serve(readers: Readers, limits: Limits) -> Served {
    let identity = TlsIdentity::from_seed(&[1; 32]).expect("a key");
    let key = identity.public_key();
    let listen = "127.0.0.1:0".parse().expect("an address");
    let api =
        Api::bind(ApiConfig { listen, tls: Some(identity), readers, limits }).await.expect("a free port");
    let (stop, stopped) = oneshot::channel::<()>();
    let node = FakeNode::default();
    let address = api.local_address();
    let server = tokio::spawn(api.serve(node.clone(), async {
        let _ = stopped.await;
    }));
    Served { node, address, key, stop: Some(stop), server }
}

impl Served {
    async fn connect(&self, identity: Option<&TlsIdentity>) -> Result<DwcpClient<Channel>, String> {
        connect(self.address, self.key, identity).await
    }
}

async fn connect(
    address: SocketAddr,
    pin: [u8; 32],
    identity: Option<&TlsIdentity>,
) -> Result<DwcpClient<Channel>, String> {
    Ok(DwcpClient::new(channel(address, pin, identity).await?)
        .max_decoding_message_size(REPLY_BYTES_MAX)
        .max_encoding_message_size(2 * MESSAGE_BYTES_MAX))
}

async fn channel(
    address: SocketAddr,
    pin: [u8; 32],
    identity: Option<&TlsIdentity>,
) -> Result<Channel, String> {
    let mut tls = client_config(identity, &PinSet::new([pin])).expect("a configuration");
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let tcp = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
    let name = ServerName::try_from("replica.dwcp").expect("a name");
    let stream =
        TlsConnector::from(Arc::new(tls)).connect(name, tcp).await.map_err(|error| error.to_string())?;
    let mut stream = Some(stream);
    let connector = tower::service_fn(move |_: tonic::transport::Uri| {
        let stream = stream.take();
        async move { stream.map(TokioIo::new).ok_or(std::io::Error::from(std::io::ErrorKind::NotConnected)) }
    });
    Endpoint::from_static("http://replica.dwcp")
        .connect_with_connector(connector)
        .await
        .map_err(|error| error.to_string())
}

/// A stream to which nothing is attached, and its challenge.
async fn bare_session(
    client: &mut DwcpClient<Channel>,
) -> (mpsc::Sender<ClientMessage>, Streaming<ServerMessage>, [u8; CHALLENGE_BYTES]) {
    let (sender, receiver) = mpsc::channel(16);
    let mut stream = client.session(ReceiverStream::new(receiver)).await.expect("a stream").into_inner();
    let greeting = next(&mut stream).await;
    (sender, stream, greeting.challenge[..].try_into().expect("the first message is a challenge"))
}

/// A stream that has proved `key()`.
async fn session(
    client: &mut DwcpClient<Channel>,
) -> (mpsc::Sender<ClientMessage>, Streaming<ServerMessage>) {
    let (sender, stream, challenge) = bare_session(client).await;
    sender.send(attach(&key(), REPLICA, &challenge)).await.expect("open");
    (sender, stream)
}

fn key() -> Ed25519 {
    Ed25519::new([4; 32], &[])
}

fn attach(key: &Ed25519, replica: ReplicaId, challenge: &[u8; CHALLENGE_BYTES]) -> ClientMessage {
    let proof = SessionAttach::new(key, key.public_key(), CLUSTER, replica, challenge);
    let attach = Attach {
        session_key: Bytes::copy_from_slice(&proof.session_key.0),
        signature: Bytes::copy_from_slice(&proof.signature.0),
    };
    ClientMessage { attaches: vec![attach], ..ClientMessage::default() }
}

async fn next(stream: &mut Streaming<ServerMessage>) -> ServerMessage {
    timeout(PATIENCE, stream.message()).await.expect("no hang").expect("no error").expect("open")
}

fn frames(lengths: &[usize]) -> ClientMessage {
    let head = [[1, 0, 0, 0, 0].as_slice(), &key().public_key().0].concat();
    let frame = |length: &usize| Bytes::from([head.as_slice(), &vec![0; *length]].concat());
    let frames = lengths.iter().map(frame).collect();
    ClientMessage { frames, ..ClientMessage::default() }
}

async fn firsts(stream: &mut Streaming<ServerMessage>, count: usize) -> Vec<u64> {
    let mut firsts = Vec::new();
    while firsts.len() < count {
        let message = next(stream).await;
        for bytes in message.executed {
            firsts.push(dwcp_base::decode::<ExecutedReply>(&bytes).expect("a reply").first);
        }
    }
    firsts
}

#[tokio::test]
async fn frames_go_in_and_their_replies_come_out_in_order() {
    let served = serve(Readers::Anybody, Limits::default()).await;
    let mut client = served.connect(None).await.expect("pinned");
    let (sender, mut stream) = session(&mut client).await;
    sender.send(frames(&[1, 2, 3])).await.expect("open");
    sender.send(frames(&[4])).await.expect("open");
    assert_eq!(firsts(&mut stream, 4).await, [1, 2, 3, 4]);
}

#[tokio::test]
async fn a_sessions_results_go_only_where_its_key_was_proved() {
    let served = serve(Readers::Anybody, Limits::default()).await;
    let mut owner = served.connect(None).await.expect("pinned");
    let (sender, mut stream, challenge) = bare_session(&mut owner).await;
    let proof = attach(&key(), REPLICA, &challenge);
    sender.send(proof.clone()).await.expect("open");
    sender.send(frames(&[1])).await.expect("open");
    assert_eq!(firsts(&mut stream, 1).await, [1]);

    // Somebody who read the owner's messages, on a connection of their own.
    let mut attacker = served.connect(None).await.expect("pinned");
    let (sender, mut stream, challenge) = bare_session(&mut attacker).await;
    assert_ne!(proof, attach(&key(), REPLICA, &challenge), "another stream, another challenge");
    let another_key = {
        let mut forged = attach(&Ed25519::new([5; 32], &[]), REPLICA, &challenge);
        forged.attaches[0].session_key = proof.attaches[0].session_key.clone();
        forged
    };
    // What a lying replica gets by passing this node's challenge on to the owner.
    let for_another_replica = attach(&key(), ReplicaId(3), &challenge);
    let short = {
        let mut short = proof.clone();
        short.attaches[0].signature.truncate(63);
        short
    };
    for forged in [proof, another_key, for_another_replica, short] {
        sender.send(forged).await.expect("open");
        let answer = next(&mut stream).await;
        assert_eq!(answer.malformed.len(), 1, "{answer:?}");
        sender.send(frames(&[1])).await.expect("open");
        let answer = next(&mut stream).await;
        // These frames are no sound ones; a sound one is refused with its place.
        assert!(answer.executed.is_empty() && answer.malformed.len() == 1, "{answer:?}");
    }
    let sound = SessionFrame {
        session_key: key().public_key(),
        low_water: 1,
        first: 1,
        commands: vec![Bytes::from_static(b"c")],
    };
    let sound = ClientFrame::commands(&key(), CLUSTER, &sound).encode();
    sender.send(ClientMessage { frames: vec![sound], ..ClientMessage::default() }).await.expect("open");
    let refused = &next(&mut stream).await.refused[0];
    assert!(refused.first == 1 && refused.definite && refused.reason.contains("prove"), "{refused:?}");
    let FakeState { attaches, frames, .. } = &*served.node.0;
    assert_eq!((attaches.load(Ordering::SeqCst), frames.load(Ordering::SeqCst)), (1, 1), "the owner's alone");
}

/// The same with a real node: replies to a replayed frame would hold the owner's results.
#[tokio::test(flavor = "multi_thread")]
async fn a_real_node_answers_a_replayed_frame_to_its_owner_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let cluster = ClusterOptions { mode: Mode::Datacenter, ..ClusterOptions::default() };
    let options = TrialOptions { cluster, ports: Ports::Free, ..TrialOptions::default() };
    let trial = trial_cluster(1, &folder.path().join("trial"), &options).expect("a cluster");
    let id = trial.genesis.cluster();
    let node = Node::start(NodeConfig::load(&trial.nodes[0].config_file).expect("settings")).expect("a node");
    let tls = read_tls_identity(&node.config().tls_key_file).expect("its key");
    let pin = tls.public_key();
    let listen = "127.0.0.1:0".parse().expect("an address");
    let config =
        ApiConfig { listen, tls: Some(tls), readers: Readers::Principals, limits: Limits::default() };
    let api = Api::bind(config).await.expect("a free port");
    let address = api.local_address();
    let (stop, stopped) = oneshot::channel::<()>();
    let served = tokio::spawn(api.serve(node.clone(), async { drop(stopped.await) }));

    let mut owner = connect(address, pin, None).await.expect("pinned");
    let (sender, mut stream, challenge) = bare_session(&mut owner).await;
    let proof = SessionAttach::new(&key(), key().public_key(), id, ReplicaId(0), &challenge);
    let attach = Attach {
        session_key: Bytes::copy_from_slice(&proof.session_key.0),
        signature: Bytes::copy_from_slice(&proof.signature.0),
    };
    let writer = SecretSeed::read(&folder.path().join("trial/writer.key")).expect("its key").signer(&[]);
    let wall = std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_millis();
    let open = SessionOpen {
        principal: "writer".into(),
        session_key: key().public_key(),
        ttl_ms: 0,
        valid_until_ms: u64::try_from(wall).expect("not that late") + 30_000,
    };
    let open = ClientFrame::open(&writer, writer.public_key(), id, &open).encode();
    let secret = SessionFrame {
        session_key: key().public_key(),
        low_water: 1,
        first: 1,
        commands: vec![KvCommand::put("a", "secret").to_command()],
    };
    let secret = ClientFrame::commands(&key(), id, &secret).encode();
    let all =
        ClientMessage { attaches: vec![attach], frames: vec![open.clone()], ..ClientMessage::default() };
    sender.send(all.clone()).await.expect("open");
    assert_eq!(firsts(&mut stream, 1).await, [0], "the session is open");
    let put = ClientMessage { frames: vec![secret.clone()], ..ClientMessage::default() };
    sender.send(put.clone()).await.expect("open");
    assert_eq!(firsts(&mut stream, 1).await, [1]);

    let mut attacker = connect(address, pin, None).await.expect("pinned");
    let (attacking, mut heard, _) = bare_session(&mut attacker).await;
    for replayed in [all, put.clone()] {
        attacking.send(replayed).await.expect("open");
    }
    let (mut refused, mut malformed) = (0, 0);
    while refused < 2 || malformed < 1 {
        let answer = next(&mut heard).await;
        assert!(answer.executed.is_empty(), "the owner's results were told to another");
        (refused, malformed) = (refused + answer.refused.len(), malformed + answer.malformed.len());
    }
    sender.send(put).await.expect("open");
    // The owner may first be told again of the opening that was replayed.
    let mut again = firsts(&mut stream, 1).await;
    if again == [0] {
        again = firsts(&mut stream, 1).await;
    }
    assert_eq!(again, [1], "the very frame is answered, where it may be");
    stop.send(()).expect("serving");
    served.await.expect("no panic").expect("a clean end");
    node.shutdown().await;
}

#[tokio::test]
async fn a_client_with_too_many_sessions_is_cut_off_and_may_begin_afresh() {
    let served = serve(Readers::Anybody, Limits { attaches_max: 1, ..Limits::default() }).await;
    let mut client = served.connect(None).await.expect("pinned");
    let (sender, mut stream, challenge) = bare_session(&mut client).await;
    for _ in 0..2 {
        sender.send(attach(&key(), REPLICA, &challenge)).await.expect("open");
    }
    sender.send(frames(&[1])).await.expect("open");
    assert_eq!(firsts(&mut stream, 1).await, [1], "the same session twice is one");
    sender.send(attach(&Ed25519::new([5; 32], &[]), REPLICA, &challenge)).await.expect("open");
    timeout(PATIENCE, stream.message()).await.expect("no hang").expect_err("cut off");
    let mut client = served.connect(None).await.expect("pinned");
    let (sender, mut stream) = session(&mut client).await;
    sender.send(frames(&[2])).await.expect("open");
    assert_eq!(firsts(&mut stream, 1).await, [2]);
}

#[tokio::test]
async fn every_field_of_a_status_arrives() {
    let served = serve(Readers::Anybody, Limits::default()).await;
    let mut client = served.connect(None).await.expect("pinned");
    let status = client.status(StatusRequest { id: 6 }).await.expect("answered").into_inner();
    assert_eq!((status.id, status.replica, status.incarnation, status.n, status.f), (6, 2, 3, 4, 1));
    assert_eq!((status.view, status.primary, status.executed, status.stable), (5, 1, 10, 8));
    assert_eq!((status.highest_seen, status.position, status.log_time_ms), (11, 12, 16));
    assert_eq!((status.pending_frames, status.pending_bytes, status.executed_commands), (13, 14, 15));
    assert!(status.view_active && status.voter && !status.transferring);
    assert_eq!((status.chain[0], status.state_digest[0], status.vote_key[0]), (1, 2, 3));
    assert_eq!((status.not_ready[0].as_str(), status.counters[0].value), ("warming up", 17));
    assert_eq!((status.peers[0].executed, status.peers[0].silent_ms), (9, None));
    assert_eq!((status.mode(), status.trust()), (v3::NetworkMode::Hybrid, v3::Trust::Crash));
    assert_eq!((status.raft, status.default_ack()), (true, v3::Ack::Majority));
    assert_eq!((status.next_order, status.epoch, status.failovers), (18, 19, 25));
    assert_eq!((status.protocol(), status.orderer), (v3::Protocol::Raft, Some(3)));
    assert_eq!(status.no_segment, "none");
    let segment = status.segment.expect("one is open");
    assert_eq!((segment.term, segment.leader, segment.anchored_position), (20, Some(3), 121));
    assert_eq!((segment.anchored, segment.applied, segment.committed, segment.last), (21, 22, 23, 24));
    assert!(segment.suspecting && !segment.sealed);
    let switch = status.last_switch.expect("there was one");
    assert_eq!(
        (switch.epoch, switch.to(), switch.planned, switch.sequence),
        (19, v3::Protocol::Raft, true, 9)
    );
    assert_eq!((switch.gap_us, switch.at_unix_ms), (26, 27));
    assert_eq!(switch.cause, "the operator ordered a mode");
}

#[tokio::test]
async fn each_frame_is_acknowledged_as_its_sender_wants() {
    let served = serve(Readers::Anybody, Limits::default()).await;
    let mut client = served.connect(None).await.expect("pinned");
    let (sender, mut stream) = session(&mut client).await;
    let [policy, anchored] = [v3::Ack::Policy, v3::Ack::Anchored].map(i32::from);
    // The last frame's wish is not said: as the policy says.
    let message = ClientMessage { frame_acks: vec![anchored, policy], ..frames(&[1, 2, 3]) };
    sender.send(message).await.expect("open");
    assert_eq!(firsts(&mut stream, 3).await, [1, 2, 3]);
    assert_eq!(*served.node.0.acks.lock().expect("no panic"), [Some(Ack::Anchored), None, None]);
    // A wish of a later version must not be taken for another one.
    sender.send(ClientMessage { frame_acks: vec![9], ..frames(&[4]) }).await.expect("open");
    let answer = next(&mut stream).await;
    assert!(answer.executed.is_empty() && answer.malformed.len() == 1, "{answer:?}");
    sender.send(ClientMessage { frame_acks: vec![anchored; 2], ..frames(&[5]) }).await.expect("open");
    let answer = next(&mut stream).await;
    assert!(answer.malformed[0].contains("2 acks for 1 frames"), "{answer:?}");
    assert_eq!(served.node.0.frames.load(Ordering::SeqCst), 3, "the others were not taken");
}

#[tokio::test]
async fn stale_reads_are_for_those_who_prove_a_known_key() {
    let known = TlsIdentity::from_seed(&[2; 32]).expect("a key");
    let stranger = TlsIdentity::from_seed(&[3; 32]).expect("a key");
    let served = serve(Readers::Principals, Limits::default()).await;
    let principal = |identity: &TlsIdentity| Principal {
        name: "ann".into(),
        key: PublicKey(identity.public_key()),
        role: Role::Reader,
    };
    *served.node.0.principals.lock().expect("no panic") = vec![principal(&known)];
    let query = || QueryRequest { id: 1, query: Bytes::from_static(b"q"), ..QueryRequest::default() };
    for identity in [None, Some(&stranger)] {
        let mut client = served.connect(identity).await.expect("pinned");
        assert_eq!(client.query(query()).await.expect_err("refused").code(), Code::PermissionDenied);
        let (sender, mut stream) = session(&mut client).await;
        let message = ClientMessage { queries: vec![query()], ..ClientMessage::default() };
        sender.send(message).await.expect("open");
        let answer = next(&mut stream).await;
        assert!(
            matches!(&answer.queries[0].outcome, Some(query_reply::Outcome::Error(why)) if why.contains("key"))
        );
    }
    let mut client = served.connect(Some(&known)).await.expect("pinned");
    let answer = client.query(query()).await.expect("answered").into_inner();
    assert_eq!(answer.outcome, Some(query_reply::Outcome::Result(Bytes::from_static(b"q"))));

    // The registry changes: the stranger becomes known, and the other is no longer, on the stream it has open.
    let (sender, mut stream) = session(&mut client).await;
    *served.node.0.principals.lock().expect("no panic") = vec![principal(&stranger)];
    let mut newcomer = served.connect(Some(&stranger)).await.expect("pinned");
    let until_known = async { while newcomer.query(query()).await.is_err() {} };
    timeout(PATIENCE, until_known).await.expect("who was added may read");
    let until_unknown = async {
        loop {
            let message = ClientMessage { queries: vec![query()], ..ClientMessage::default() };
            sender.send(message).await.expect("open");
            let answer = next(&mut stream).await;
            if matches!(&answer.queries[0].outcome, Some(query_reply::Outcome::Error(why)) if why.contains("key"))
            {
                return;
            }
        }
    };
    timeout(PATIENCE, until_unknown).await.expect("who was removed may not");
}

#[tokio::test]
async fn an_order_is_answered_with_where_it_is_in_force() {
    let served = serve(Readers::Anybody, Limits::default()).await;
    let mut client = served.connect(None).await.expect("pinned");
    let answer = client.submit_order(OrderRequest { id: 3, order: Bytes::new() }).await.expect("answered");
    assert_eq!(answer.into_inner().outcome, Some(order_reply::Outcome::InForceFrom(44)));
}

#[tokio::test]
async fn a_port_in_use_is_one_clear_line() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let listen = taken.local_addr().expect("its address");
    let config = ApiConfig { listen, tls: None, readers: Readers::Anybody, limits: Limits::default() };
    let error = Api::bind(config).await.expect_err("in use").to_string();
    assert_eq!(
        error,
        format!("{listen} is in use by another program: stop it or choose another client_listen")
    );
}

#[tokio::test]
async fn plain_text_is_refused_beyond_this_machine() {
    let listen = "0.0.0.0:0".parse().expect("an address");
    let config = ApiConfig { listen, tls: None, readers: Readers::Anybody, limits: Limits::default() };
    let error = Api::bind(config).await.expect_err("refused");
    assert!(matches!(error, ApiError::PlainTextAbroad(_)) && error.to_string().ends_with("turn TLS on"));
}

#[tokio::test]
async fn another_key_than_the_pinned_one_ends_the_handshake() {
    let served = serve(Readers::Anybody, Limits::default()).await;
    let error = connect(served.address, [9; 32], None).await.expect_err("not pinned");
    assert!(error.contains("NotPinned"), "{error}");
    served.connect(None).await.expect("the right pin still enters");
}

#[tokio::test]
async fn an_oversized_message_ends_its_stream_and_no_other() {
    let served = serve(Readers::Anybody, Limits::default()).await;
    let mut client = served.connect(None).await.expect("pinned");
    let (sender, mut stream) = session(&mut client).await;
    let (other, mut other_stream) = session(&mut client).await;
    sender.send(frames(&[MESSAGE_BYTES_MAX + 1])).await.expect("open");
    while let Ok(Some(message)) = timeout(PATIENCE, stream.message()).await.expect("no hang") {
        assert!(message.executed.is_empty(), "it must not reach the node");
    }
    other.send(frames(&[5])).await.expect("open");
    assert_eq!(firsts(&mut other_stream, 1).await, [5]);
}

#[tokio::test]
async fn a_node_without_room_answers_busy_and_not_applied() {
    let limits = Limits { busy_patience: Duration::ZERO, ..Limits::default() };
    let served = serve(Readers::Anybody, limits).await;
    let mut client = served.connect(None).await.expect("pinned");
    let (sender, mut stream) = session(&mut client).await;
    sender.send(frames(&[1])).await.expect("open");
    assert_eq!(firsts(&mut stream, 1).await, [1]);
    served.node.0.busy.store(true, Ordering::SeqCst);
    let session_key = key();
    let frame = SessionFrame {
        session_key: session_key.public_key(),
        low_water: 5,
        first: 6,
        commands: vec![Bytes::from_static(b"c")],
    };
    let frame = ClientFrame::commands(&session_key, CLUSTER, &frame).encode();
    let message =
        ClientMessage { frames: vec![frame, Bytes::from_static(b"noise")], ..ClientMessage::default() };
    sender.send(message).await.expect("open");
    let (mut refused, mut malformed) = (Vec::new(), Vec::new());
    while refused.is_empty() || malformed.is_empty() {
        let answer = next(&mut stream).await;
        refused.extend(answer.refused);
        malformed.extend(answer.malformed);
    }
    assert_eq!(refused[0].session[..], SessionId::of(&session_key.public_key()).0);
    assert!(refused[0].first == 6 && refused[0].definite && refused[0].reason.contains("busy"));
    assert!(malformed[0].contains("not a session frame"), "{}", malformed[0]);
}

/// What has run is not called *not applied*, however busy the node is.
#[test]
fn only_what_was_not_taken_is_definitely_not_applied() {
    use dwcp_replica::NotNow;
    let session = SessionId([3; 16]);
    for (why, definite) in
        [(NotNow::Full, true), (NotNow::Behind, true), (NotNow::LogFull, true), (NotNow::PutOff, false)]
    {
        let item = crate::convert::Item::of(ClientReply::Busy { session, first: 4, why });
        let crate::convert::Item::Refused(refused) = item else { panic!("{why:?}: another answer") };
        assert_eq!((refused.first, refused.definite, refused.reason), (4, definite, why.to_string()));
    }
}

#[tokio::test]
async fn unanswered_questions_of_a_stream_are_bounded() {
    let limits = Limits { questions_max: 2, busy_patience: Duration::ZERO, ..Limits::default() };
    let served = serve(Readers::Anybody, limits).await;
    served.node.0.mute.store(true, Ordering::SeqCst);
    let mut client = served.connect(None).await.expect("pinned");
    let (sender, mut stream) = session(&mut client).await;
    let queries = (0..3).map(|id| QueryRequest { id, ..QueryRequest::default() }).collect();
    sender.send(ClientMessage { queries, ..ClientMessage::default() }).await.expect("open");
    let answer = next(&mut stream).await;
    assert_eq!(answer.queries.iter().map(|reply| reply.id).collect::<Vec<_>>(), [2]);
}

#[tokio::test]
async fn a_client_that_does_not_read_is_cut_off() {
    let limits = Limits { slow_reader_timeout: Duration::from_millis(20), ..Limits::default() };
    let served = serve(Readers::Anybody, limits).await;
    // Far more than all windows hold.
    served.node.0.flood.store(2000, Ordering::SeqCst);
    let mut client = served.connect(None).await.expect("pinned");
    let (_sender, stream) = session(&mut client).await;
    timeout(PATIENCE, served.node.0.closed.notified()).await.expect("cut off");
    assert_eq!(served.node.0.open.load(Ordering::SeqCst), 0);
    drop(stream);
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_place() {
    let served = serve(Readers::Anybody, Limits::default()).await;
    let mut client = served.connect(None).await.expect("pinned");
    let (sender, stream) = session(&mut client).await;
    drop((sender, stream, client));
    timeout(PATIENCE, served.node.0.closed.notified()).await.expect("freed");
}

#[tokio::test]
async fn connections_beyond_the_bound_are_dropped_and_a_freed_one_may_be_taken() {
    let served = serve(Readers::Anybody, Limits { connections_max: 1, ..Limits::default() }).await;
    let first = served.connect(None).await.expect("room for one");
    served.connect(None).await.expect_err("no room for two");
    drop(first);
    let again = async {
        while served.connect(None).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, again).await.expect("the place was freed");
}

#[tokio::test]
async fn a_stopping_node_tells_its_streams_and_ends() {
    let limits = Limits { stop_patience: Duration::from_millis(50), ..Limits::default() };
    let mut served = serve(Readers::Anybody, limits).await;
    let mut client = served.connect(None).await.expect("pinned");
    let (_sender, mut stream) = session(&mut client).await;
    served.stop.take().expect("once").send(()).expect("serving");
    let error = timeout(PATIENCE, stream.message()).await.expect("no hang").expect_err("ended");
    assert!(error.message().contains("stopping"), "{error}");
    timeout(PATIENCE, &mut served.server).await.expect("no hang").expect("no panic").expect("a clean end");
    connect(served.address, served.key, None).await.expect_err("nobody listens");
}
