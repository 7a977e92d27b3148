//! The whole client over real sockets and TLS, against nodes that share the in-memory cluster of the engine's tests.
//! Waits end by what happens; the call timeout only turns a hang into a failure.

use crate::engine::tests::{Cluster, Mood, tls_identity};
use crate::store::{CompareOp, CompareTarget, Put, Txn, TxnOp};
use crate::{
    Client, ClientConfig, ClientError, Command, ConnectError, KvRequest, Label, NodeError, PrincipalConfig,
    Receipt, View,
};
use bytes::Bytes;
use dwcp_base::{LogTime, Position, ReplicaId};
use dwcp_proto::v3::dwcp_server::{Dwcp, DwcpServer};
use dwcp_proto::v3::{
    self, ClientMessage, OrderReply, OrderRequest, QueryReply, QueryRequest, ServerMessage, StatusReply,
    StatusRequest, order_reply, query_reply,
};
use dwcp_state::kv::{KvBody, KvCommand};
use dwcp_transport::{PinSet, server_config};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::{ReceiverStream, UnboundedReceiverStream};
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

struct Net {
    cluster: Cluster,
    streams: Vec<Vec<mpsc::UnboundedSender<ServerMessage>>>,
}

#[derive(Clone)]
struct FakeNode {
    net: Arc<Mutex<Net>>,
    node: usize,
}

impl FakeNode {
    fn take(&self, message: ClientMessage) {
        let mut net = self.net.lock().expect("no panic");
        let Net { cluster, streams } = &mut *net;
        cluster.wall_ms = wall_ms();
        message.attaches.iter().for_each(|attach| cluster.attach(self.node, attach));
        for frame in message.frames {
            for (from, answer) in cluster.frame(self.node, &frame, None) {
                streams[from].retain(|stream| stream.send(answer.clone()).is_ok());
            }
        }
    }

    fn own_status(&self, id: u64) -> StatusReply {
        let net = self.net.lock().expect("no panic");
        let hash = Bytes::from(vec![1; 32]);
        StatusReply {
            id,
            replica: u32::try_from(self.node).expect("few"),
            n: 4,
            f: 1,
            chain: hash.clone(),
            state_digest: hash,
            vote_key: Bytes::copy_from_slice(&net.cluster.keys[self.node].public_key().0),
            mode: v3::NetworkMode::Internet.into(),
            trust: v3::Trust::Byzantine.into(),
            protocol: v3::Protocol::Pbft.into(),
            default_ack: v3::Ack::Majority.into(),
            ..StatusReply::default()
        }
    }
}

fn wall_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    u64::try_from(since.as_millis()).expect("not that late")
}

#[tonic::async_trait]
impl Dwcp for FakeNode {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<ServerMessage, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<ClientMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (sender, receiver) = mpsc::unbounded_channel();
        {
            let mut net = self.net.lock().expect("no panic");
            let challenge = Bytes::copy_from_slice(&net.cluster.connected(self.node));
            let _ = sender.send(ServerMessage { challenge, ..ServerMessage::default() });
            net.streams[self.node].push(sender.clone());
        }
        let (node, mut inbound) = (self.clone(), request.into_inner());
        tokio::spawn(async move {
            while let Ok(Some(message)) = inbound.message().await {
                let statuses = message.statuses.iter().map(|status| node.own_status(status.id)).collect();
                let _ = sender.send(ServerMessage { statuses, ..ServerMessage::default() });
                node.take(message);
            }
        });
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(receiver).map(Ok))))
    }

    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusReply>, Status> {
        Ok(Response::new(self.own_status(request.into_inner().id)))
    }

    async fn submit_order(&self, request: Request<OrderRequest>) -> Result<Response<OrderReply>, Status> {
        let outcome = Some(order_reply::Outcome::Refused("not now".into()));
        Ok(Response::new(OrderReply { id: request.into_inner().id, outcome }))
    }

    async fn query(&self, request: Request<QueryRequest>) -> Result<Response<QueryReply>, Status> {
        let QueryRequest { id, query, .. } = request.into_inner();
        let outcome = match self.net.lock().expect("no panic").cluster.state.query(&query) {
            Ok(bytes) => query_reply::Outcome::Result(bytes),
            Err(error) => query_reply::Outcome::Error(error.to_string()),
        };
        let label = v3::ReadLabel::Stale.into();
        Ok(Response::new(QueryReply {
            id,
            outcome: Some(outcome),
            label,
            position: 3,
            ..QueryReply::default()
        }))
    }
}

struct Served {
    net: Arc<Mutex<Net>>,
    config: ClientConfig,
    nodes: Vec<JoinSet<()>>,
}

async fn serve(n: u8, f: u8) -> Served {
    let mut cluster = Cluster::new(n, f);
    // A cluster that has lately ordered something knows what time it is.
    cluster.state.begin_entry(Position(0), LogTime(wall_ms()));
    let principal = PrincipalConfig { name: "ann".into(), seed: [77; 32] };
    let mut config = ClientConfig::of_genesis(&cluster.genesis, principal);
    config.settings.call_timeout = Duration::from_secs(60);
    config.settings.reconnect_after = Duration::from_millis(1);
    let net = Arc::new(Mutex::new(Net { cluster, streams: vec![Vec::new(); n.into()] }));
    let mut nodes = Vec::new();
    for node in 0..usize::from(n) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        config.nodes[node].address = listener.local_addr().expect("its address").to_string();
        nodes.push(run_node(net.clone(), node, listener));
    }
    Served { net, config, nodes }
}

/// One node; dropping the set stops it and hangs up on everybody.
fn run_node(net: Arc<Mutex<Net>>, node: usize, listener: TcpListener) -> JoinSet<()> {
    let identity = tls_identity(u8::try_from(node).expect("few"));
    let mut tls = server_config(&identity, &PinSet::any_key(), true).expect("a configuration");
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let tls = TlsAcceptor::from(Arc::new(tls));
    let (sender, accepted) = mpsc::channel(16);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            // A client that pins another key hangs up here.
            if let Ok(mut stream) = tls.accept(stream).await {
                let (mut outside, inside) = tokio::io::duplex(1 << 16);
                connections
                    .spawn(async move { tokio::io::copy_bidirectional(&mut stream, &mut outside).await });
                let _ = sender.send(Ok::<_, std::io::Error>(inside)).await;
            }
        }
    });
    tasks.spawn(async move {
        let service =
            DwcpServer::new(FakeNode { net, node }).max_decoding_message_size(dwcp_proto::MESSAGE_BYTES_MAX);
        let incoming = ReceiverStream::new(accepted);
        let _ = tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming).await;
    });
    tasks
}

#[tokio::test]
async fn the_store_works_end_to_end_over_tls() {
    let served = serve(4, 1).await;
    let client = Client::connect(served.config.clone()).await.expect("a session");
    let kv = client.kv();
    assert_eq!(kv.put("a", "1").await.expect("put").revision, 2);
    let again = kv.put("a", "2").prev_kv().await.expect("put");
    assert_eq!(again.reply.prev_kv.expect("there was one").value, "1");
    let Receipt { label, position, view } = again.receipt;
    assert_eq!((label, view), (Label::Byzantine, View(0)));
    let next = kv.put("ab", "3").await.expect("put").receipt;
    assert_eq!(next.position, Position(position.0 + 1));
    assert_eq!(kv.get("a").await.expect("get").value(), Some(&b"2"[..]));
    let all = kv.get("a").prefix().await.expect("range");
    assert_eq!((all.count, all.kvs.len()), (2, 2));
    assert_eq!(kv.get("a").revision(2).await.expect("old").value(), Some(&b"1"[..]));
    assert_eq!(kv.get("").prefix().limit(1).await.map(|range| range.more), Ok(true));
    let txn = Txn::default()
        .when("a", CompareOp::Equal, CompareTarget::Version(2))
        .then(TxnOp::Put(Put::new("c", "4")))
        .or_else(TxnOp::Put(Put::new("d", "5")));
    let txn = kv.txn(txn).await.expect("txn");
    assert!(txn.succeeded && matches!(txn.responses[..], [KvBody::Put { .. }]));
    let lease = kv.lease_grant(0, 60).await.expect("grant");
    kv.put("l", "x").lease(lease.id).await.expect("put");
    assert_eq!(kv.lease_list().await.expect("list").reply, [lease.id]);
    let left = kv.lease_time_to_live(lease.id, true).await.expect("ttl");
    assert_eq!((left.granted_ttl_s, left.keys.len()), (60, 1));
    kv.lease_keep_alive(lease.id).await.expect("alive");
    kv.lease_revoke(lease.id).await.expect("revoked");
    assert_eq!(kv.get("l").await.expect("get").kv(), None);
    assert_eq!(kv.delete("a").prefix().await.expect("delete").deleted, 2);
    let revision = kv.get("c").await.expect("get").revision;
    kv.compact(revision).await.expect("compact");
    let error = kv.get("c").revision(2).await.expect_err("compacted");
    assert!(error.definitely_not_applied() && error.to_string().contains("compacted"), "{error}");
    assert_eq!(kv.get("c").stale().await.expect("one node").value(), Some(&b"4"[..]));
    assert!(!kv.alarms().await.expect("alarms").no_space);
    let clone = client.session().clone();
    client.close().await;
    let error = clone.kv().put("a", "1").await.expect_err("closed");
    assert_eq!(error, ClientError::Refused(crate::Refusal::SessionExpired));
}

#[tokio::test]
async fn many_callers_share_one_session_and_many_sessions_share_connections() {
    let served = serve(4, 1).await;
    let client = Client::connect(served.config.clone()).await.expect("a session");
    let mut callers = JoinSet::new();
    for caller in 0..200 {
        let session = if caller % 2 == 0 { client.session().clone() } else { client.new_session() };
        callers.spawn(async move {
            for _ in 0..5 {
                session.kv().put(format!("k{caller}"), "v").await.expect("put");
            }
        });
    }
    callers.join_all().await;
    let answers = client.execute((0..200).map(|caller| KvCommand::get(format!("k{caller}"))).collect()).await;
    for answer in answers {
        let KvBody::Range { kvs, .. } = answer.expect("read").reply.body else { panic!("not a range") };
        assert_eq!(kvs[0].version, 5, "each write ran once");
    }
    let counters = client.counters().await;
    assert_eq!((counters.opens, counters.forged, counters.malformed), (101, 0, 0));
    assert_eq!(served.net.lock().expect("no panic").streams.iter().map(Vec::len).max(), Some(1));
}

#[tokio::test]
async fn a_node_with_another_key_is_not_believed_and_named() {
    let mut served = serve(4, 1).await;
    served.config.nodes[2].tls_key = Some(dwcp_base::PublicKey([5; 32]));
    let client = Client::connect(served.config.clone()).await.expect("three others");
    client.kv().put("a", "1").await.expect("put");
    let reports = client.status_all().await;
    assert_eq!(reports.iter().filter(|report| report.status.is_ok()).count(), 3);
    let error = reports[2].status.as_ref().expect_err("an impostor").to_string();
    assert!(error.contains("it is not the node expected there") && error.contains("tls_key"), "{error}");
    let query = client.query(Some(ReplicaId(2)), &Command::Nothing).await;
    assert!(matches!(query, Err(NodeError::Unreachable(_))), "{query:?}");
}

#[tokio::test]
async fn a_node_may_die_and_return_under_load() {
    let mut served = serve(4, 1).await;
    served.config.settings.retry_after = Duration::from_millis(50);
    let client = Client::connect(served.config.clone()).await.expect("a session");
    let address: SocketAddr = served.config.nodes[0].address.parse().expect("an address");
    for round in 0..3 {
        client.kv().put("a", "1").await.expect("before");
        served.nodes[0].shutdown().await;
        {
            let mut net = served.net.lock().expect("no panic");
            net.streams[0].clear();
            net.cluster.moods[0] = Mood::Silent;
        }
        for _ in 0..10 {
            client.kv().put("a", "1").await.expect("meanwhile");
        }
        served.net.lock().expect("no panic").cluster.moods[0] = Mood::Honest;
        let listener = TcpListener::bind(address).await.expect("its port");
        served.nodes[0] = run_node(served.net.clone(), 0, listener);
        let version = client.kv().get("a").await.expect("after").kv().expect("there").version;
        assert_eq!(version, 11 * (round + 1), "each ran once");
    }
}

#[tokio::test]
async fn nobody_there_is_said_node_by_node_and_nothing_was_applied() {
    let mut served = serve(4, 1).await;
    served.nodes.clear();
    served.config.settings.call_timeout = Duration::from_millis(300);
    let error = Client::connect(served.config.clone()).await.expect_err("nobody");
    let ConnectError::NoSession(error) = error else { panic!("{error}") };
    assert!(matches!(error, ClientError::NotSent(_)), "{error}");
    for node in 0..4 {
        assert!(error.to_string().contains(&format!("node {node}: ")), "{error}");
    }
}

#[tokio::test]
async fn an_answer_of_another_kind_is_no_answer() {
    assert!(Put::read(1, KvBody::Compact).is_none());
    let served = serve(1, 0).await;
    let client = Client::connect(served.config.clone()).await.expect("a session");
    let order = client.submit_order(None, Bytes::new()).await.expect("answered");
    assert_eq!(order, crate::OrderOutcome::Refused { reason: "not now".into() });
}
