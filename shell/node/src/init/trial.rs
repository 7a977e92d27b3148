//! A whole cluster for one machine: every key in one place, which is what makes it a trial.
//!
//! ```text
//! DIR/genesis.toml
//! DIR/client.toml admin.key writer.key      what `dwcp kv` and friends are pointed at
//! DIR/node0/config.toml vote.key tls.pem data/
//! DIR/node1/...
//! ```

use std::fmt::Write;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use dwcp_base::configuration::{Principal, Role};
use dwcp_base::{Genesis, Incarnation, ReplicaId};

use super::{
    ClusterOptions, GENESIS_FILE, InitError, Listen, make_folder, make_genesis, make_member_keys, member,
    prepare, principal_key_file,
};
use crate::genesis_file::{GenesisError, genesis_text, quoted, role_word, trust_word};
use crate::keys::{SecretSeed, key_hex, write_new};

/// Which ports a trial cluster listens on; three per node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ports {
    /// This one and those that follow.
    From(u16),
    /// Whatever is free now. Another process may still take one before the nodes start.
    Free,
}

#[derive(Clone, Debug)]
pub struct TrialOptions {
    pub cluster: ClusterOptions,
    /// The address all nodes listen on and are reached at.
    pub ip: IpAddr,
    pub ports: Ports,
}

impl Default for TrialOptions {
    fn default() -> Self {
        let cluster = ClusterOptions { name: "trial".into(), ..ClusterOptions::default() };
        Self { cluster, ip: Ipv4Addr::LOCALHOST.into(), ports: Ports::From(7100) }
    }
}

#[derive(Clone, Debug)]
pub struct TrialCluster {
    pub genesis: Genesis,
    pub genesis_file: PathBuf,
    pub client_file: PathBuf,
    pub nodes: Vec<TrialNode>,
}

#[derive(Clone, Debug)]
pub struct TrialNode {
    pub id: ReplicaId,
    pub folder: PathBuf,
    pub config_file: PathBuf,
    pub listen: Listen,
}

/// Writes everything a trial cluster of `nodes` needs into `out`, which must not exist or be empty.
///
/// # Errors
/// Options that make no cluster (nothing is written then), a folder with something in it, a disk that refuses.
pub fn trial_cluster(nodes: usize, out: &Path, options: &TrialOptions) -> Result<TrialCluster, InitError> {
    if !(1..=31).contains(&nodes) {
        return Err(InitError::NodeCount { nodes });
    }
    // Judge before anything is written: keys of a cluster that cannot be would be in the way of the next attempt.
    judge_options(nodes, out, &options.cluster)?;
    if std::fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(InitError::Exists { path: out.into() });
    }
    let listens = choose_ports(nodes, options.ip, options.ports)?;
    make_folder(out)?;

    let mut members = Vec::new();
    for (listen, id) in listens.iter().zip(0u8..) {
        let folder = node_folder(out, id);
        make_folder(&folder)?;
        let (vote_key, tls_key) = make_member_keys(&folder)?;
        let (peer, client) = (listen.peer.to_string(), listen.client.to_string());
        members.push(member(ReplicaId(id), vote_key, tls_key, peer, client));
    }
    let mut principals = Vec::new();
    for (name, role) in [("admin", Role::Admin), ("writer", Role::Writer)] {
        let seed = SecretSeed::generate()?;
        seed.write_new(&out.join(principal_key_file(name)))?;
        principals.push(Principal { name: name.into(), key: seed.public_key(), role });
    }
    let genesis_file = out.join(GENESIS_FILE);
    let genesis = make_genesis(&genesis_file, members, principals, &options.cluster)?;
    write_new(&genesis_file, genesis_text(&genesis).as_bytes(), 0o644)?;
    let client_file = out.join("client.toml");
    write_new(&client_file, client_text(&genesis).as_bytes(), 0o644)?;

    let genesis_path = format!("../{GENESIS_FILE}");
    let mut made = Vec::new();
    for (listen, id) in listens.into_iter().zip(0u8..) {
        let folder = node_folder(out, id);
        let config_file = prepare(&genesis, &genesis_path, ReplicaId(id), Incarnation(0), &folder, &listen)?;
        made.push(TrialNode { id: ReplicaId(id), folder, config_file, listen });
    }
    Ok(TrialCluster { genesis, genesis_file, client_file, nodes: made })
}

fn node_folder(out: &Path, id: u8) -> PathBuf {
    out.join(format!("node{id}"))
}

/// A dry run with keys that nobody holds.
pub(super) fn judge_options(nodes: usize, out: &Path, options: &ClusterOptions) -> Result<(), InitError> {
    let key =
        |kind, id| dwcp_base::PublicKey([[kind; 16], [id; 16]].concat().try_into().expect("twice 16 is 32"));
    let address = || String::from("localhost:1");
    let members = (0..u8::try_from(nodes).expect("at most 31"))
        .map(|id| member(ReplicaId(id), key(1, id), key(2, id), address(), address()))
        .collect();
    let admin = Principal { name: "admin".into(), key: key(3, 0), role: Role::Admin };
    match make_genesis(out, members, vec![admin], options) {
        Err(InitError::Genesis(GenesisError::Impossible { what, .. })) => Err(InitError::Options { what }),
        judged => judged.map(|_| ()),
    }
}

fn choose_ports(nodes: usize, ip: IpAddr, ports: Ports) -> Result<Vec<Listen>, InitError> {
    let count = nodes * 3;
    let chosen: Vec<u16> = match ports {
        Ports::From(first) => {
            let last = u32::from(first) + u32::try_from(count).expect("at most 93") - 1;
            let last_port = u16::try_from(last).ok().filter(|_| first != 0);
            (first..=last_port.ok_or(InitError::PortsExceeded { first, last })?).collect()
        }
        Ports::Free => free_ports(ip, count).map_err(|source| InitError::NoFreePort { ip, source })?,
    };
    let at = |port| SocketAddr::new(ip, port);
    Ok(chosen.chunks(3).map(|p| Listen { peer: at(p[0]), client: at(p[1]), http: at(p[2]) }).collect())
}

/// Ports that nobody listens on now. They lie below those the system gives to outgoing connections: one of those may be
/// taken by any program's call in the moment when a node is down. Where they begin to be looked for is chance.
///
/// # Errors
/// When there are not so many.
pub fn free_ports(ip: IpAddr, count: usize) -> io::Result<Vec<u16>> {
    const LOWEST: u16 = 10_240;
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let first_given = range.split_whitespace().next().and_then(|port| port.parse().ok()).unwrap_or(32_768);
    let span = u32::from(u16::saturating_sub(first_given, LOWEST));
    let mut seed = [0; 2];
    getrandom::fill(&mut seed).map_err(|error| io::Error::other(error.to_string()))?;
    let start = u32::from(u16::from_le_bytes(seed));
    let candidates =
        (0..span).filter_map(|step| u16::try_from(u32::from(LOWEST) + (start + step) % span).ok());
    // All are held until all are known. Last come those that the system gives, in case all others are taken.
    let mut held: Vec<TcpListener> =
        candidates.filter_map(|port| TcpListener::bind((ip, port)).ok()).take(count).collect();
    while held.len() < count {
        held.push(TcpListener::bind((ip, 0))?);
    }
    held.iter().map(|port| Ok(port.local_addr()?.port())).collect()
}

/// What a client must know: whom to reach, by which key to recognise them, and as whom to speak.
fn client_text(genesis: &Genesis) -> String {
    let mut text = format!(
        "# How clients reach cluster {}. Key files are relative to this file.\n\
         cluster = \"{}\"\n\
         # Who may lie: \"byzantine\" (up to f replicas do anything) or \"crash\" (they only stop). Follows `dwcp policy set --trust`.\n\
         trust = \"{}\"\n\
         # A reply is believed once f + 1 different replicas signed the same; one labelled crash of a single replica, only where\n\
         # trust is \"crash\".\n\
         f = {}\n",
        quoted(&genesis.name),
        hex::encode(genesis.cluster().0),
        trust_word(genesis.policy.trust),
        genesis.policy.quorum.f(),
    );
    for member in &genesis.members {
        let _ = write!(
            text,
            "\n[[node]]\nid = {}\naddress = {}\nincarnation = {}\nvote_key = \"{}\"\ntls_key = \"{}\"\n",
            member.id,
            quoted(&member.client_address),
            member.incarnation,
            key_hex(&member.vote_key),
            key_hex(&member.tls_key),
        );
    }
    for principal in &genesis.principals {
        let _ = write!(
            text,
            "\n[[principal]]\nname = {}\nrole = \"{}\"\nkey_file = \"{}\"\n",
            quoted(&principal.name),
            role_word(principal.role),
            principal_key_file(&principal.name),
        );
    }
    text
}
