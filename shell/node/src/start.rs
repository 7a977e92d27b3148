//! From settings to a running core loop: reads, compares, opens, recovers. See `node.rs` for what may be refused.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use dwcp_base::{ClusterId, Crypto, Genesis, Incarnation, Member, Mutants, PublicKey, Sequence, Ticket};
use dwcp_hints::{SwimHints, Timing};
use dwcp_replica::{MachineFactory, Outbox, RecoveredSnapshot, Recovery, Replica, Setup};
use dwcp_state::StateMachine;
use dwcp_storage::{DataDir, Lsn, OpenedDir, SnapshotStore, StorageError, Wal, WalRecord, WalSettings};
use dwcp_transport::{PeerConfig, RuntimeChoice, TlsIdentity, Transport, TransportConfig, VersionRange};
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::clock::Clock;
use crate::core_loop::CoreLoop;
use crate::genesis_file::read_genesis;
use crate::hinting::{HINTS_SINCE, HintBox, Hinting, known, own_address};
use crate::http;
use crate::inbox::Inbox;
use crate::keys::{SecretSeed, key_hex, read_tls_identity};
use crate::links::{Incarnations, Links};
use crate::logging::LIFE;
use crate::metrics::Metrics;
use crate::node::{NodeError, NodeHandle, Shared, StartOptions, Stop, WeakNode};
use crate::settings::NodeConfig;
use crate::snapshots::{SnapshotThreads, meta_of};

/// The versions of the messages between replicas that this program speaks. 2 adds hints.
const WIRE_VERSIONS: VersionRange = VersionRange { min: 1, max: HINTS_SINCE };

pub(crate) fn start<M: StateMachine>(
    config: NodeConfig,
    options: StartOptions,
    empty: impl Fn(&Genesis) -> M + Send + Sync + 'static,
) -> Result<NodeHandle, NodeError> {
    let runtime = Handle::try_current().map_err(|_| NodeError::NoRuntime)?;
    let genesis = read_genesis(&config.genesis_file)?;
    config.check_against(&genesis)?;
    let me = &genesis.members[usize::from(config.replica.0)];
    let seed = SecretSeed::read(&config.vote_key_file)?;
    let identity = Arc::new(read_tls_identity(&config.tls_key_file)?);

    let wal_settings = WalSettings { segment_bytes: config.segment_bytes, ..WalSettings::default() };
    let opened = DataDir::open(&config.data_dir, &wal_settings)?;
    for warning in &opened.warnings {
        tracing::warn!(%warning, "repaired while opening");
    }
    let incarnation = check_owner(&config, &genesis, opened.dir.manifest())?;
    check_keys(&config, me, incarnation, &seed, &identity)?;

    let http_listener = http::listen(config.http_listen)?;
    let http_addr = http_listener.local_addr().unwrap_or(config.http_listen);
    let metrics = Arc::new(Metrics::default());
    let inbox = Arc::new(Inbox::new(config.queues.clone(), genesis.members.len()));
    let clock = Clock::start();

    let OpenedDir { mut dir, wal, snapshots, records, .. } = opened;
    dir.record_boot(wal.durable_lsn())?;
    let snapshots = Arc::new(snapshots);
    let recovery = recovery(&wal, &snapshots, records)?;
    let vote_keys: Vec<PublicKey> = genesis.members.iter().map(|member| member.vote_key).collect();
    let crypto: Arc<dyn Crypto> = Arc::new(seed.signer(&vote_keys));
    let hint_crypto = crypto.clone();
    let has_raft_node = options.raft.is_some();
    let setup = Setup {
        genesis: Arc::new(genesis.clone()),
        me: config.replica,
        incarnation,
        settings: config.to_settings(),
        raft: options.raft,
        sync: Some(config.sync.to_setup(options.resolvers)),
        seed: random_u64()?,
        mutants: Mutants::default(),
    };
    let born_with = setup.genesis.clone();
    let machines: MachineFactory<M> = Arc::new(move || empty(&born_with));
    let mut outbox = Outbox::default();
    let replica = Replica::recover(setup, machines, crypto, recovery, clock.now(), &mut outbox)
        .map_err(|error| NodeError::Recovery(error.to_string()))?;

    // Members may have been replaced since the genesis.
    let members = replica.control().configurations.latest().members.clone();
    check_in_force(&config, &members[usize::from(config.replica.0)], incarnation, seed.public_key())?;
    let incarnations = Arc::new(Incarnations::new(&members, config.peer_via.clone()));
    let hints = Arc::new(HintBox::new(members.len()));
    let links = Links::new(inbox.clone(), hints.clone(), incarnations.clone());
    let transport_config =
        transport_config(&config, genesis.cluster(), &members, incarnation, &identity, runtime.clone())?;
    let transport = Arc::new(Transport::start(transport_config, Arc::new(links))?);
    let hinting = Hinting {
        hints: Box::new(SwimHints::new(
            dwcp_hints::Setup {
                cluster: genesis.cluster(),
                me: config.replica,
                incarnation,
                address: own_address(
                    &config,
                    &members[usize::from(config.replica.0)].peer_address,
                    transport.local_addr(),
                ),
                members: known(&members),
                timing: Timing::default(),
                seed: random_u64()?,
            },
            hint_crypto,
            clock.now(),
        )),
        inbox: hints.clone(),
        transport: Arc::downgrade(&transport),
        clock,
        fixed: config.peer_via.keys().copied().collect(),
        seeds: config.seeds.clone(),
    };
    runtime.spawn(hinting.run());
    let (stop_sender, stopped) = watch::channel(None);
    let node = NodeHandle {
        shared: Arc::new(Shared {
            incarnation,
            vote_key: seed.public_key(),
            peer_addr: transport.local_addr(),
            http_addr,
            inbox: inbox.clone(),
            transport: Arc::downgrade(&transport),
            hints: hints.clone(),
            metrics: metrics.clone(),
            clock,
            has_raft_node,
            next_client: AtomicU64::new(1),
            stopped,
            config,
            genesis,
            identity,
        }),
    };
    let snapshots = SnapshotThreads::start(dir, snapshots, &inbox, &metrics, node.replica())
        .map_err(NodeError::NoThread)?;
    let core_loop = CoreLoop::new(
        node.replica(),
        replica,
        wal,
        snapshots,
        inbox.clone(),
        transport,
        incarnations,
        hints,
        metrics,
        clock,
        outbox,
    );
    std::thread::Builder::new()
        .name(format!("core-{}", node.replica()))
        .spawn(move || run(core_loop, inbox, &stop_sender))
        .map_err(NodeError::NoThread)?;
    let (convergent, bounds) = (node.config().sync.http, node.config().http);
    http::serve(http_listener, WeakNode::of(&node), convergent, bounds).map_err(NodeError::NoThread)?;
    say_started(&node);
    Ok(node)
}

/// The replica of a node that does not run, as its disk remembers it: to look at, nothing is sent or written down.
///
/// # Errors
/// As [`start`]; also when the node runs.
pub(crate) fn read_stopped<M: StateMachine>(
    config: &NodeConfig,
    empty: impl Fn(&Genesis) -> M + Send + Sync + 'static,
) -> Result<Replica<M>, NodeError> {
    let genesis = read_genesis(&config.genesis_file)?;
    config.check_against(&genesis)?;
    let seed = SecretSeed::read(&config.vote_key_file)?;
    let wal_settings = WalSettings { segment_bytes: config.segment_bytes, ..WalSettings::default() };
    let OpenedDir { dir, wal, snapshots, records, .. } = DataDir::open(&config.data_dir, &wal_settings)?;
    let incarnation = check_owner(config, &genesis, dir.manifest())?;
    let recovery = recovery(&wal, &Arc::new(snapshots), records)?;
    let vote_keys: Vec<PublicKey> = genesis.members.iter().map(|member| member.vote_key).collect();
    let crypto: Arc<dyn Crypto> = Arc::new(seed.signer(&vote_keys));
    let settings = config.to_settings();
    let genesis = Arc::new(genesis);
    let (me, mutants) = (config.replica, Mutants::default());
    let StartOptions { raft, resolvers } = StartOptions::default();
    let sync = Some(config.sync.to_setup(resolvers));
    let setup = Setup { genesis: genesis.clone(), me, incarnation, settings, raft, sync, seed: 0, mutants };
    let machines: MachineFactory<M> = Arc::new(move || empty(&genesis));
    Replica::recover(setup, machines, crypto, recovery, Clock::start().now(), &mut Outbox::default())
        .map_err(|error| NodeError::Recovery(error.to_string()))
}

fn run<M: StateMachine>(core_loop: CoreLoop<M>, inbox: Arc<Inbox>, stopped: &watch::Sender<Option<Stop>>) {
    // A core that panics leaves nobody waiting: requests are refused, and the dropped sender says that it ended.
    let _closing = Closing(inbox);
    let stop = core_loop.run();
    stopped.send_replace(Some(stop));
}

struct Closing(Arc<Inbox>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.close();
    }
}

fn say_started(node: &NodeHandle) {
    let shared = &node.shared;
    tracing::info!(
        target: LIFE,
        replica = %node.replica(), incarnation = %shared.incarnation, cluster = ?node.cluster(),
        mode = shared.genesis.mode.word(), n = shared.genesis.members.len(), f = shared.genesis.policy.quorum.f(),
        peers = %shared.peer_addr, clients = %shared.config.client_listen, http = %shared.http_addr,
        "started"
    );
}

/// Whose directory is it? The incarnation it is at when it is this replica's.
fn check_owner(
    config: &NodeConfig,
    genesis: &Genesis,
    manifest: &dwcp_storage::Manifest,
) -> Result<Incarnation, NodeError> {
    let path = config.data_dir.display().to_string();
    let expected = genesis.cluster().0;
    if manifest.cluster != expected {
        let short = |id: &[u8; 32]| hex::encode(&id[..8]);
        return Err(NodeError::OtherCluster {
            path,
            found: short(&manifest.cluster),
            expected: short(&expected),
        });
    }
    if manifest.replica != config.replica.0 {
        return Err(NodeError::OtherReplica { path, found: manifest.replica, expected: config.replica });
    }
    Ok(Incarnation(manifest.incarnation))
}

fn check_keys(
    config: &NodeConfig,
    me: &Member,
    incarnation: Incarnation,
    seed: &SecretSeed,
    identity: &TlsIdentity,
) -> Result<(), NodeError> {
    let pairs = [
        (&config.vote_key_file, "the vote key", "vote_key_file", seed.public_key(), me.vote_key),
        (&config.tls_key_file, "the TLS key", "tls_key_file", PublicKey(identity.public_key()), me.tls_key),
    ];
    for (path, which, setting, found, expected) in pairs {
        let (path, replica) = (path.display().to_string(), me.id);
        let short = |key: &PublicKey| key_hex(key)[..16].to_string();
        if incarnation == me.incarnation && found != expected {
            let (found, expected) = (short(&found), short(&expected));
            return Err(NodeError::OtherKey { path, which, setting, replica, found, expected });
        }
        if incarnation != me.incarnation && found == expected {
            return Err(NodeError::KeyOfLostIncarnation { path, replica, incarnation });
        }
    }
    Ok(())
}

/// Is this the incarnation the cluster knows, as far as this disk can tell? A new one's own order comes only with the log.
fn check_in_force(
    config: &NodeConfig,
    me: &Member,
    incarnation: Incarnation,
    vote_key: PublicKey,
) -> Result<(), NodeError> {
    let path = config.data_dir.display().to_string();
    if me.incarnation > incarnation {
        return Err(NodeError::Replaced {
            path,
            replica: me.id,
            found: incarnation,
            in_force: me.incarnation,
        });
    }
    if me.incarnation == incarnation && me.vote_key != vote_key {
        let short = |key: &PublicKey| key_hex(key)[..16].to_string();
        return Err(NodeError::OtherKey {
            path: config.vote_key_file.display().to_string(),
            which: "the vote key",
            setting: "vote_key_file",
            replica: me.id,
            found: short(&vote_key),
            expected: short(&me.vote_key),
        });
    }
    Ok(())
}

/// What the disk remembers, in the core's terms. The records of the log are numbered from 1 like the core's tickets.
fn recovery(wal: &Wal, store: &Arc<SnapshotStore>, records: Vec<WalRecord>) -> Result<Recovery, NodeError> {
    let mut snapshot = None;
    let mut partial = Vec::new();
    for info in store.list()?.into_iter().rev() {
        let sequence = Sequence(info.seq);
        match (info.complete, info.meta.is_empty()) {
            (true, _) if snapshot.is_none() => {
                let Some(meta) = meta_of(store, &info)? else {
                    let reason = format!("snapshot {sequence} has lost its metadata: re-admit this member");
                    return Err(NodeError::Recovery(reason));
                };
                let reader = store.clone();
                let chunks = (0..info.chunks).map(move |index| {
                    reader.read_chunk(sequence.0, index).map_err(|error| error.to_string())
                });
                snapshot = Some(RecoveredSnapshot { sequence, meta, chunks: Box::new(chunks) });
            }
            // An older one was about to be removed; one that this node was writing cannot be continued.
            (true, _) | (false, false) => store.delete(info.seq)?,
            (false, true) => {
                let chunk = |index| Ok((index, Bytes::from(store.read_chunk(info.seq, index)?)));
                let chunks: Result<Vec<_>, StorageError> =
                    store.chunk_indexes(info.seq)?.into_iter().map(chunk).collect();
                partial.push((sequence, chunks?));
            }
        }
    }
    if snapshot.is_none() {
        wal.require_from(Lsn(1))?;
    }
    let records =
        records.into_iter().map(|record| (Ticket(record.lsn.0), Bytes::from(record.bytes))).collect();
    Ok(Recovery { snapshot, partial, records, next_ticket: Ticket(wal.next_lsn().0) })
}

fn transport_config(
    config: &NodeConfig,
    cluster: ClusterId,
    members: &[Member],
    incarnation: Incarnation,
    identity: &Arc<TlsIdentity>,
    runtime: Handle,
) -> Result<TransportConfig, NodeError> {
    let others = members.iter().filter(|member| member.id != config.replica);
    let peers = others
        .map(|member| PeerConfig {
            id: member.id.0,
            addr: config.peer_via.get(&member.id.0).unwrap_or(&member.peer_address).clone(),
            pin: member.tls_key.0,
        })
        .collect();
    Ok(TransportConfig {
        cluster: cluster.0,
        me: config.replica.0,
        incarnation: incarnation.0,
        listen: config.peer_listen,
        identity: identity.clone(),
        peers,
        versions: WIRE_VERSIONS,
        seed: random_u64()?,
        runtime: RuntimeChoice::Given(runtime),
        limits: config.link_limits(),
    })
}

fn random_u64() -> Result<u64, NodeError> {
    getrandom::u64().map_err(|error| NodeError::NoRandomness(error.to_string()))
}
