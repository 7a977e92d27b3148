//! Nodes of one process over loopback, with real TLS, real disks and the real core: they agree, outlive a stop, catch
//! up, and refuse what is not theirs with one clear line.
//!
//! Nothing here asserts how fast anything is. Waiting ends when what is waited for is seen; the bound on it only turns a
//! hang into a failure.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use dwcp_base::crypto::Ed25519;
use dwcp_base::{ClusterId, Hash, ReplicaId};
use dwcp_log::{OperatorOrder, SignedMemberOrder};
use dwcp_node::init::{ClusterOptions, Ports, TrialCluster, TrialOptions, replacement, trial_cluster};
use dwcp_node::keys::SecretSeed;
use dwcp_node::{ClientPort, Mode, Node, NodeConfig, NodeHandle, Stop};
use dwcp_replica::{ClientReply, ClientRequest, ExecutedReply, OrderOutcome};
use dwcp_state::kv::{KvCommand, KvReply, Put, Range};
use dwcp_state::{ClientFrame, Command, Outcome, SessionFrame, SessionId, SessionOpen};

const PATIENCE: Duration = Duration::from_secs(60);

fn made(nodes: usize, mode: Mode, out: &Path) -> TrialCluster {
    if std::env::var_os("DWCP_TEST_JOURNAL").is_some() {
        dwcp_node::start_journal(dwcp_node::LogLevel::Debug);
    }
    let cluster = ClusterOptions {
        mode,
        checkpoint_interval: 8,
        window: 32,
        name: "t".into(),
        ..ClusterOptions::default()
    };
    trial_cluster(nodes, out, &TrialOptions { cluster, ports: Ports::Free, ..TrialOptions::default() })
        .unwrap()
}

fn config(cluster: &TrialCluster, id: usize) -> NodeConfig {
    NodeConfig::load(&cluster.nodes[id].config_file).unwrap()
}

fn start(cluster: &TrialCluster, id: usize) -> NodeHandle {
    Node::start(config(cluster, id)).unwrap_or_else(|error| panic!("node {id}: {error}"))
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// Asks again until it is so.
async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut ask: impl FnMut() -> F) -> T {
    let asking = async {
        loop {
            if let Some(found) = ask().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, asking).await.unwrap_or_else(|_| panic!("waited in vain until {what}"))
}

async fn ready(node: &NodeHandle) {
    until(&format!("node {} is ready", node.replica()), async || node.ready().await.ok().then_some(())).await;
}

/// A client that asks every node it is given, resends, and believes f + 1 equal signed answers.
struct Client {
    cluster: ClusterId,
    believe: usize,
    vote_keys: Vec<dwcp_base::PublicKey>,
    principal: Ed25519,
    session: Ed25519,
    next: u64,
    crypto: Ed25519,
}

impl Client {
    async fn open(cluster: &TrialCluster, nodes: &[&NodeHandle]) -> Self {
        let folder = cluster.genesis_file.parent().unwrap();
        let principal = SecretSeed::read(&folder.join("writer.key")).unwrap().signer(&[]);
        let client = Self {
            cluster: cluster.genesis.cluster(),
            believe: usize::from(cluster.genesis.policy.quorum.f()) + 1,
            vote_keys: cluster.genesis.members.iter().map(|member| member.vote_key).collect(),
            principal,
            session: SecretSeed::generate().unwrap().signer(&[]),
            next: 1,
            crypto: SecretSeed::generate().unwrap().signer(&[]),
        };
        let wall = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let open = SessionOpen {
            principal: "writer".into(),
            session_key: client.session.public_key(),
            ttl_ms: 0,
            valid_until_ms: u64::try_from(wall.as_millis()).unwrap() + 30_000,
        };
        let key = client.principal.public_key();
        let frame = ClientFrame::open(&client.principal, key, client.cluster, &open).encode();
        let outcomes = client.submit(nodes, frame, 0).await;
        assert!(matches!(outcomes[..], [Outcome::Done(_)]), "{outcomes:?}");
        client
    }

    async fn run(&mut self, nodes: &[&NodeHandle], commands: &[KvCommand]) -> Vec<KvReply> {
        let frame = SessionFrame {
            session_key: self.session.public_key(),
            low_water: self.next,
            first: self.next,
            commands: commands.iter().map(|command| Command::Machine(command.encode()).encode()).collect(),
        };
        let bytes = ClientFrame::commands(&self.session, self.cluster, &frame).encode();
        let first = self.next;
        self.next += commands.len() as u64;
        let outcomes = self.submit(nodes, bytes, first).await;
        let reply = |outcome: Outcome| match outcome {
            Outcome::Done(bytes) => KvReply::decode(&bytes).unwrap(),
            Outcome::Refused(refusal) => panic!("{refusal}"),
        };
        outcomes.into_iter().map(reply).collect()
    }

    async fn put(&mut self, nodes: &[&NodeHandle], key: &str, value: &str) {
        let put = Put::new(Bytes::from(key.to_string()), Bytes::from(value.to_string()));
        self.run(nodes, &[KvCommand::Put(put)]).await;
    }

    async fn submit(&self, nodes: &[&NodeHandle], bytes: Bytes, first: u64) -> Vec<Outcome> {
        let session = SessionId::of(&self.session.public_key());
        let mut ports: Vec<ClientPort> = nodes.iter().map(|node| node.client().unwrap()).collect();
        let collect = async {
            let mut votes: Vec<(ReplicaId, Hash)> = Vec::new();
            loop {
                for port in &ports {
                    let _ = port.send(ClientRequest::Attach { session });
                    let _ = port.send(ClientRequest::Frame { bytes: bytes.clone(), ack: None });
                }
                let round = tokio::time::Instant::now() + Duration::from_millis(1_000);
                for port in &mut ports {
                    while let Ok(Some(reply)) = tokio::time::timeout_at(round, port.recv()).await {
                        let Some(executed) = self.judge(reply, session, first) else { continue };
                        let vote = (executed.replica, executed.leaf_hash());
                        if !votes.contains(&vote) {
                            votes.push(vote);
                        }
                        if votes.iter().filter(|(_, hash)| *hash == vote.1).count() >= self.believe {
                            return executed.results.into_iter().map(|result| result.outcome).collect();
                        }
                        // One answer a node and frame is all there is to wait for.
                        break;
                    }
                }
            }
        };
        tokio::time::timeout(PATIENCE, collect).await.expect("the cluster answers")
    }

    fn judge(&self, reply: ClientReply, session: SessionId, first: u64) -> Option<ExecutedReply> {
        match reply {
            ClientReply::Executed(executed) if (executed.session, executed.first) == (session, first) => {
                if self.believe > 1 {
                    let key = &self.vote_keys[usize::from(executed.replica.0)];
                    assert!(
                        executed.verify(self.cluster, key, &self.crypto),
                        "an honest node signs what it says"
                    );
                }
                Some(executed)
            }
            // What one node refuses another may take: a node that lags knows no young session.
            ClientReply::Executed(_) | ClientReply::Busy { .. } | ClientReply::Refused { .. } => None,
            other => panic!("{other:?}"),
        }
    }
}

fn all(nodes: &[NodeHandle]) -> Vec<&NodeHandle> {
    nodes.iter().collect()
}

/// Waits until these nodes have executed equally far and says their one chain and digest.
async fn agree(nodes: &[&NodeHandle]) -> (Hash, u64) {
    until("all nodes stand at one place", async || {
        let mut places = Vec::new();
        for node in nodes {
            let status = node.status().await.ok()?;
            places.push((
                status.executed,
                status.chain,
                status.position,
                status.state_digest_sequence,
                status.state_digest,
            ));
        }
        let same_place = places.iter().all(|place| (place.0, place.2) == (places[0].0, places[0].2));
        if same_place {
            assert!(places.iter().all(|place| place.1 == places[0].1), "one place, one chain: {places:?}");
            let digests = places.iter().filter(|place| place.3 == places[0].3);
            assert!(digests.into_iter().all(|place| place.4 == places[0].4), "one digest: {places:?}");
        }
        same_place.then_some((places[0].1, places[0].0.0))
    })
    .await
}

#[test]
fn four_nodes_agree_lose_one_and_it_catches_up() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = made(4, Mode::Internet, folder.path());
    runtime().block_on(async {
        let mut nodes: Vec<NodeHandle> = (0..4).map(|id| start(&cluster, id)).collect();
        for node in &nodes {
            ready(node).await;
        }
        let mut client = Client::open(&cluster, &all(&nodes)).await;
        for i in 0..20 {
            client.put(&all(&nodes), &format!("key{i}"), "before").await;
        }
        agree(&all(&nodes)).await;

        // The last handle dropped is the end of a node, its links and its lock.
        let stopped = nodes.remove(3);
        assert_eq!(stopped.shutdown().await, Stop::Asked);
        assert!(!stopped.live().await.ok() && stopped.client().is_err());
        drop(stopped);
        for i in 0..40 {
            client.put(&all(&nodes), &format!("key{i}"), "meanwhile").await;
        }
        let (_, far) = agree(&all(&nodes)).await;

        nodes.push(start(&cluster, 3));
        until("the node that was away has caught up", async || {
            let status = nodes[3].status().await.ok()?;
            (status.executed.0 >= far).then_some(())
        })
        .await;
        client.put(&all(&nodes), "key0", "after").await;
        agree(&all(&nodes)).await;
        let found = keys(&mut client, &all(&nodes)).await;
        assert_eq!(found.len(), 40);
        let value = |key: &str| &found.iter().find(|kv| kv.key == key).unwrap().value;
        assert_eq!((&value("key0")[..], &value("key39")[..]), (&b"after"[..], &b"meanwhile"[..]));

        let text = nodes[0].metrics().await;
        assert!(text.contains("dwcp_pbft_replicas 4\n") && text.contains("dwcp_core_up 1\n"), "{text}");
        assert!(!text.contains("dwcp_wal_fsync_duration_seconds_count 0\n"));
        for node in &nodes {
            assert_eq!(node.shutdown().await, Stop::Asked);
        }
    });
}

#[test]
fn one_node_alone_keeps_what_it_acknowledged_over_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = made(1, Mode::Datacenter, folder.path());
    runtime().block_on(async {
        let node = start(&cluster, 0);
        let mut client = Client::open(&cluster, &[&node]).await;
        // Several checkpoints' worth, so that the restart begins behind a truncated log or not, but never empty.
        for i in 0..50 {
            client.put(&[&node], &format!("k{i:02}"), "v").await;
        }
        let before = node.status().await.unwrap();
        let second = Node::start(config(&cluster, 0)).unwrap_err().to_string();
        assert!(second.contains("is in use by another process"), "{second}");
        node.shutdown().await;

        let node = start(&cluster, 0);
        // What it decided before it stopped is decided again from the log, and what its segment committed is executed again
        // once it leads there anew; an election is an entry of its own.
        until("it stands where it stood", async || {
            let status = node.status().await.ok()?;
            (status.executed >= before.executed && status.position >= before.position).then_some(status)
        })
        .await;
        assert_eq!(keys(&mut client, &[&node]).await.len(), 50);
        node.shutdown().await;
    });
}

#[test]
fn a_cluster_that_stopped_as_a_whole_starts_again_with_everything() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = made(4, Mode::Internet, folder.path());
    runtime().block_on(async {
        let nodes: Vec<NodeHandle> = (0..4).map(|id| start(&cluster, id)).collect();
        for node in &nodes {
            ready(node).await;
        }
        let mut client = Client::open(&cluster, &all(&nodes)).await;
        // More than a window of sequences, and no snapshot yet: all of it is in the logs alone.
        for i in 0..40 {
            client.put(&all(&nodes), &format!("k{i:02}"), "v").await;
        }
        for node in &nodes {
            node.shutdown().await;
        }
        drop(nodes);
        let nodes: Vec<NodeHandle> = (0..4).map(|id| start(&cluster, id)).collect();
        assert_eq!(keys(&mut client, &all(&nodes)).await.len(), 40);
        agree(&all(&nodes)).await;
        for node in &nodes {
            node.shutdown().await;
        }
    });
}

/// What a linearizable read of all keys finds.
async fn keys(client: &mut Client, nodes: &[&NodeHandle]) -> Vec<dwcp_state::kv::KeyValue> {
    let replies = client.run(nodes, &[KvCommand::Range(Range::prefix("k"))]).await;
    match replies.into_iter().next().map(|reply| reply.body) {
        Some(dwcp_state::kv::KvBody::Range { kvs, .. }) => kvs,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_lost_disk_comes_back_as_the_next_incarnation() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = made(4, Mode::Internet, &folder.path().join("trial"));
    runtime().block_on(async {
        let mut nodes: Vec<NodeHandle> = (0..4).map(|id| start(&cluster, id)).collect();
        for node in &nodes {
            ready(node).await;
        }
        let mut client = Client::open(&cluster, &all(&nodes)).await;
        for i in 0..10 {
            client.put(&all(&nodes), &format!("key{i}"), "v").await;
        }
        nodes.remove(2).shutdown().await;
        // Made on the new host; listens where the old one did.
        let listen = &cluster.nodes[2].listen;
        let (peer, client_address) = (listen.peer.to_string(), listen.client.to_string());
        let incarnation = dwcp_base::Incarnation(1);
        let home = folder.path().join("new2");
        let made = replacement(
            &cluster.genesis_file,
            ReplicaId(2),
            incarnation,
            &home,
            listen,
            &peer,
            &client_address,
        )
        .unwrap();
        let admin = SecretSeed::read(&cluster.genesis_file.with_file_name("admin.key")).unwrap();
        let signed = SignedMemberOrder::new(
            made.order,
            cluster.genesis.cluster(),
            admin.public_key(),
            &admin.signer(&[]),
        );
        let bytes = Bytes::from(dwcp_base::encode(&OperatorOrder::Member(signed)));
        let mut port = nodes[0].client().unwrap();
        port.send(ClientRequest::Order { id: 1, bytes }).unwrap();
        let answer = tokio::time::timeout(PATIENCE, port.recv()).await.unwrap().unwrap();
        assert!(
            matches!(answer, ClientReply::Order { outcome: OrderOutcome::Done { .. }, .. }),
            "{answer:?}"
        );

        let renewed = Node::start(NodeConfig::load(&made.config_file).unwrap()).unwrap();
        until("the new incarnation votes", async || {
            let status = renewed.status().await.ok()?;
            (status.voter && status.not_ready.is_empty()).then_some(())
        })
        .await;
        nodes.push(renewed);
        client.put(&all(&nodes), "again", "v").await;
        agree(&all(&nodes)).await;
        for node in &nodes {
            node.shutdown().await;
        }
    });
}

#[test]
fn a_node_refuses_what_is_not_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = made(4, Mode::Internet, &folder.path().join("a"));
    let other = made(4, Mode::Internet, &folder.path().join("b"));
    let _runtime = runtime();
    let _inside = _runtime.enter();
    let refusal = |line: &str, instead: &str| {
        let text = std::fs::read_to_string(&cluster.nodes[1].config_file).unwrap();
        assert!(text.contains(line), "{line} in {text}");
        let path = cluster.nodes[1].folder.join("config.toml");
        let config = NodeConfig::parse(&path, &text.replace(line, instead)).unwrap();
        let error = Node::start(config).unwrap_err().to_string();
        assert_eq!(error.lines().count(), 1, "{error}");
        error
    };
    let data = "data_dir = \"data\"";
    let path = |cluster: &TrialCluster, id: usize, file: &str| {
        cluster.nodes[id].folder.join(file).display().to_string()
    };

    let wiped = refusal(data, "data_dir = \"nothing-here\"");
    assert!(
        wiped.contains("nothing-here/manifest does not exist") && wiped.contains("`dwcp member replace`"),
        "{wiped}"
    );
    assert!(!cluster.nodes[1].folder.join("nothing-here").exists(), "a server makes no data directory");
    let foreign = refusal(data, &format!("data_dir = {:?}", path(&other, 1, "data")));
    assert!(
        foreign.contains("belongs to cluster") && foreign.ends_with("correct data_dir or genesis_file"),
        "{foreign}"
    );
    let neighbour = refusal(data, &format!("data_dir = {:?}", path(&cluster, 2, "data")));
    assert!(
        neighbour.ends_with("belongs to replica 2, this is replica 1: correct data_dir or replica"),
        "{neighbour}"
    );
    let vote = refusal("\"vote.key\"", &format!("{:?}", path(&cluster, 2, "vote.key")));
    assert!(
        vote.contains("the vote key of replica 1") && vote.ends_with("correct vote_key_file or replica"),
        "{vote}"
    );
    let tls = refusal("\"tls.pem\"", &format!("{:?}", path(&cluster, 2, "tls.pem")));
    assert!(
        tls.contains("the TLS key of replica 1") && tls.ends_with("correct tls_key_file or replica"),
        "{tls}"
    );
    let missing = refusal("\"vote.key\"", "\"no.key\"");
    assert!(missing.contains("cannot read key file") && missing.contains("no.key"), "{missing}");
    let genesis = refusal("\"../genesis.toml\"", "\"../client.toml\"");
    assert!(genesis.contains("client.toml:"), "{genesis}");
    let mode = refusal("mode = \"internet\"", "mode = \"datacenter\"");
    assert!(mode.contains("set mode = \"internet\""), "{mode}");

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap();
    let listen = cluster.nodes[1].listen;
    let http = refusal(&format!("http_listen = \"{}\"", listen.http), &format!("http_listen = \"{addr}\""));
    assert_eq!(
        http,
        format!(
            "HTTP address {addr} is already in use: stop the process that holds it or set another http_listen"
        )
    );
    let peer = refusal(&format!("peer_listen = \"{}\"", listen.peer), &format!("peer_listen = \"{addr}\""));
    assert!(peer.starts_with(&format!("peer address {addr} is already in use")), "{peer}");

    // Nothing of all that stays in the way of the right settings.
    let node = start(&cluster, 1);
    _runtime.block_on(node.shutdown());
}

#[test]
fn health_and_figures_are_served_over_http_until_the_node_stops() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = made(4, Mode::Internet, folder.path());
    runtime().block_on(async {
        let lonely = start(&cluster, 0);
        let (code, body) = get(&lonely, "/livez").await;
        assert_eq!((code, body.as_str()), (200, "ok\n"));
        let (code, body) = get(&lonely, "/readyz").await;
        assert!(code == 503 && body.contains("of the 3 replicas a quorum needs"), "{code} {body}");
        let (code, body) = get(&lonely, "/metrics").await;
        assert!(
            code == 200 && body.contains("# TYPE dwcp_pbft_view gauge\ndwcp_pbft_view 0\n"),
            "{code} {body}"
        );
        assert_eq!(get(&lonely, "/secret").await.0, 404);

        let others: Vec<NodeHandle> = (1..3).map(|id| start(&cluster, id)).collect();
        ready(&lonely).await;
        assert_eq!(get(&lonely, "/readyz").await.0, 200);
        drop(others);
        let addr = lonely.http_addr();
        lonely.shutdown().await;
        until("the port is closed", async || tokio::net::TcpStream::connect(addr).await.err()).await;
    });
}

/// One request, one answer: the code and the body.
async fn get(node: &NodeHandle, path: &str) -> (u16, String) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(node.http_addr()).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.into())
}
