//! What must exist before a node can run: keys, genesis, settings files, data directories with their manifest.
//!
//! Two roads lead to a cluster. A trial cluster is made by one person on one machine (`trial.rs`). Parties that do not
//! share keys each make their own (`keygen`, `keygen_principal`), exchange the public blocks, agree on one genesis made
//! from them (`from_members`) and prepare their own host (`node_data`). A third road leads back in: a member whose disk
//! was lost returns as its next incarnation (`replacement`).
//!
//! Nothing here overwrites anything, and no server calls any of it: a server that could make its own manifest could
//! not tell a new disk from a lost one.

mod order;
mod trial;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use dwcp_base::configuration::CALM_MS;
use dwcp_base::configuration::{Principal, Role};
use dwcp_base::quorum::REPLICAS_MAX;
use dwcp_base::{Ack, Genesis, Incarnation, Member, Policy, PublicKey, Quorum, ReplicaId, Sequence, Trust};
use dwcp_storage::{DataDir, Identity, StorageError, WalSettings};
use dwcp_transport::TlsIdentity;

pub use self::order::{Replacement, parse_order, read_order, replacement};
use self::trial::judge_options;
pub use self::trial::{Ports, TrialCluster, TrialNode, TrialOptions, free_ports, trial_cluster};

use crate::genesis_file::{
    GenesisError, MEMBERS_WRITER, check, genesis_text, member_block, principal_block, quoted, read_genesis,
    read_members, read_text,
};
use crate::keys::{KeyError, SecretSeed, read_tls_identity, write_new};
use crate::settings::{Mode, SETTINGS};

/// File names inside a node's folder.
pub const CONFIG_FILE: &str = "config.toml";
pub const VOTE_KEY_FILE: &str = "vote.key";
pub const TLS_KEY_FILE: &str = "tls.pem";
pub const MEMBER_FILE: &str = "member.toml";
pub const DATA_FOLDER: &str = "data";
pub const GENESIS_FILE: &str = "genesis.toml";

#[derive(Debug, thiserror::Error)]
pub enum InitError {
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Genesis(#[from] GenesisError),
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// No file is wrong: what was asked for is.
    #[error("{what}")]
    Options { what: String },
    #[error("cannot make TLS keys: {0}")]
    Tls(#[from] dwcp_transport::IdentityError),
    #[error("cannot make folder {}: {source}", path.display())]
    Folder { path: PathBuf, source: std::io::Error },
    #[error("{} exists already and is not overwritten: choose another folder", path.display())]
    Exists { path: PathBuf },
    #[error("{nodes} nodes: a cluster has 1 to 31")]
    NodeCount { nodes: usize },
    #[error("ports {first}..={last} are not all there: choose a lower first port")]
    PortsExceeded { first: u16, last: u32 },
    #[error("no free port was found on {ip}: {source}")]
    NoFreePort { ip: std::net::IpAddr, source: std::io::Error },
    #[error("replica {id} is not a member: the genesis has replicas 0..={last}")]
    NoSuchReplica { id: ReplicaId, last: usize },
    #[error(
        "{} is not replica {id}'s {which} in the genesis: prepare this host with the folder `dwcp keygen` wrote, \
         or with its own replica number", path.display()
    )]
    KeyIsNotTheMembers { path: PathBuf, id: ReplicaId, which: &'static str },
    #[error("\"{address}\" is no address: write IP:PORT, for example 127.0.0.1:7000")]
    NotAnAddress { address: String },
    #[error(
        "incarnation 0 is the genesis' own: a replacement is incarnation 1 or later (the one in force plus one)"
    )]
    NotAReplacement,
    #[error("the system clock stands before 1970: set it")]
    Clock,
}

/// What holds for the whole cluster and stands in its genesis.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    pub name: String,
    /// Internet mode comes with `trust = byzantine`, the others with `trust = crash`, which Raft needs.
    pub mode: Mode,
    /// `None`: floor((n-1)/3).
    pub faults: Option<u8>,
    /// How long hybrid mode stays without a segment after one has failed.
    pub calm_ms: u64,
    /// Whether Raft segments may be opened at all.
    pub raft: bool,
    /// For commands that do not say themselves.
    pub default_ack: Ack,
    pub checkpoint_interval: u64,
    pub window: u64,
    pub quota_bytes: u64,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        Self {
            name: "dwcp".into(),
            mode: Mode::Internet,
            faults: None,
            calm_ms: CALM_MS,
            raft: true,
            default_ack: Ack::Majority,
            checkpoint_interval: CHECKPOINT_INTERVAL,
            window: 4 * CHECKPOINT_INTERVAL,
            quota_bytes: 2 << 30,
        }
    }
}

/// Proposals between checkpoints where nobody says otherwise.
pub const CHECKPOINT_INTERVAL: u64 = 128;

/// Where one node listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listen {
    pub peer: SocketAddr,
    pub client: SocketAddr,
    pub http: SocketAddr,
}

/// Makes one host's member keys in `folder` and returns the public block for the members file, which is also written
/// there as `member.toml`. The addresses are those by which others reach this host, `HOST:PORT`.
///
/// # Errors
/// Files that exist, a disk that refuses, addresses that are none.
pub fn keygen(folder: &Path, peer_address: &str, client_address: &str) -> Result<String, InitError> {
    for address in [peer_address, client_address] {
        if !crate::genesis_file::is_host_and_port(address) {
            return Err(InitError::NotAnAddress { address: address.into() });
        }
    }
    make_folder(folder)?;
    let (vote_key, tls_key) = make_member_keys(folder)?;
    let member = member(ReplicaId(0), vote_key, tls_key, peer_address.into(), client_address.into());
    let block = member_block(&member);
    write_new(&folder.join(MEMBER_FILE), block.as_bytes(), 0o644)?;
    Ok(block)
}

/// Makes the key of a principal (a client identity) as `NAME.key` in `folder`; returns the public block for the members
/// file.
///
/// # Errors
/// A key that exists, a disk that refuses.
pub fn keygen_principal(folder: &Path, name: &str, role: Role) -> Result<String, InitError> {
    make_folder(folder)?;
    let seed = SecretSeed::generate()?;
    seed.write_new(&folder.join(principal_key_file(name)))?;
    Ok(principal_block(&Principal { name: name.into(), key: seed.public_key(), role }))
}

/// Makes the genesis from the public blocks of all parties. Every party must end up with this very file: compare the
/// cluster id.
///
/// # Errors
/// A members file or options that make no cluster; a file at `out` already.
pub fn from_members(members_file: &Path, out: &Path, options: &ClusterOptions) -> Result<Genesis, InitError> {
    let (members, principals) = read_members(members_file)?;
    if (1..=usize::from(REPLICAS_MAX)).contains(&members.len()) {
        judge_options(members.len(), members_file, options)?;
    }
    let genesis = make_genesis(members_file, members, principals, options).map_err(|error| match error {
        InitError::Genesis(error) => {
            error.with_line(&read_text(members_file, MEMBERS_WRITER).unwrap_or_default()).into()
        }
        other => other,
    })?;
    write_new(out, genesis_text(&genesis).as_bytes(), 0o644)?;
    Ok(genesis)
}

/// Prepares this host as member `id`: checks that the keys in `folder` (written by `keygen`) are that member's, writes
/// `config.toml` and the data directory with its manifest. Returns the settings file.
///
/// # Errors
/// Keys of another member; anything that exists already.
pub fn node_data(
    genesis_file: &Path,
    id: ReplicaId,
    folder: &Path,
    listen: &Listen,
) -> Result<PathBuf, InitError> {
    let genesis = read_genesis(genesis_file)?;
    let member = member_of(&genesis, id)?;
    let (vote_file, tls_file) = (folder.join(VOTE_KEY_FILE), folder.join(TLS_KEY_FILE));
    if SecretSeed::read(&vote_file)?.public_key() != member.vote_key {
        return Err(InitError::KeyIsNotTheMembers { path: vote_file, id, which: "vote key" });
    }
    if PublicKey(read_tls_identity(&tls_file)?.public_key()) != member.tls_key {
        return Err(InitError::KeyIsNotTheMembers { path: tls_file, id, which: "TLS key" });
    }
    let genesis_path = std::path::absolute(genesis_file)
        .map_err(|source| InitError::Folder { path: genesis_file.into(), source })?;
    prepare(&genesis, &genesis_path.to_string_lossy(), id, Incarnation(0), folder, listen)
}

/// Writes settings and manifest for one incarnation of one member into `folder`.
fn prepare(
    genesis: &Genesis,
    genesis_path: &str,
    id: ReplicaId,
    incarnation: Incarnation,
    folder: &Path,
    listen: &Listen,
) -> Result<PathBuf, InitError> {
    let config = folder.join(CONFIG_FILE);
    write_new(&config, config_text(genesis, genesis_path, id, listen).as_bytes(), 0o644)?;
    let cluster = genesis.cluster().0;
    let identity = Identity {
        cluster,
        replica: id.0,
        incarnation: incarnation.0,
        genesis_hash: cluster,
        created_unix_ms: wall_clock_ms()?,
    };
    // The log starts small, so that making many nodes is quick; its later files have the size of the settings.
    let wal = WalSettings { segment_bytes: 1 << 20, prepare_ahead: false, ..WalSettings::default() };
    DataDir::create(&folder.join(DATA_FOLDER), &identity, &wal)?;
    Ok(config)
}

/// A settings file with what must be set; everything else is shown as a comment with its default.
fn config_text(genesis: &Genesis, genesis_path: &str, id: ReplicaId, listen: &Listen) -> String {
    use std::fmt::Write;
    let mode = genesis.mode;
    let mut text = format!(
        "# Settings of replica {id} of cluster {name}; `dwcp server --help-settings` explains them all.\n\
         replica = {id}\n\
         mode = \"{mode}\"\n\
         genesis_file = {genesis}\n\
         data_dir = \"{DATA_FOLDER}\"\n\
         vote_key_file = \"{VOTE_KEY_FILE}\"\n\
         tls_key_file = \"{TLS_KEY_FILE}\"\n\
         peer_listen = \"{peer}\"\n\
         client_listen = \"{client}\"\n\
         http_listen = \"{http}\"\n",
        name = quoted(&genesis.name),
        mode = mode.word(),
        genesis = quoted(genesis_path),
        peer = listen.peer,
        client = listen.client,
        http = listen.http,
    );
    text.push_str("\n# What follows shows the defaults.\n");
    let mut section = "";
    for setting in SETTINGS {
        let Some(default) = setting.preset.toml(mode) else { continue };
        let (in_section, name) = setting.key.split_once('.').unwrap_or(("", setting.key));
        if name == "mode" {
            continue;
        }
        if in_section != section {
            section = in_section;
            let _ = write!(text, "\n[{section}]\n");
        }
        if setting.key == "segment.fast_path_timeout_ms" && is_crowded(genesis) {
            text.push_str(CROWDED);
            continue;
        }
        let _ = writeln!(text, "# {name} = {default}");
    }
    text
}

/// What a settings file says where all nodes share one machine's processors.
const CROWDED: &str = "# All nodes share this machine: one that has no processor for a moment is not gone. 0 is for nodes with machines of \
                       their own.\nfast_path_timeout_ms = 500\n";

/// Several nodes, all reached over the loopback.
fn is_crowded(genesis: &Genesis) -> bool {
    let is_here = |member: &Member| {
        member.peer_address.parse::<SocketAddr>().is_ok_and(|address| address.ip().is_loopback())
    };
    genesis.members.len() > 1 && genesis.members.iter().all(is_here)
}

fn make_genesis(
    named: &Path,
    members: Vec<Member>,
    principals: Vec<Principal>,
    options: &ClusterOptions,
) -> Result<Genesis, InitError> {
    let trust = match options.mode {
        Mode::Internet => Trust::Byzantine,
        Mode::Datacenter | Mode::Hybrid => Trust::Crash,
    };
    if options.mode == Mode::Internet && members.len() < 4 {
        return Err(GenesisError::TooFewForByzantine.into());
    }
    let quorum =
        Quorum::new(members.len(), options.faults).map_err(|error| GenesisError::impossible(named, error))?;
    let genesis = Genesis {
        version: 1,
        name: options.name.clone(),
        created_unix_ms: wall_clock_ms()?,
        policy: Policy { raft: options.raft, default_ack: options.default_ack, ..Policy::new(trust, quorum) },
        mode: options.mode,
        calm_ms: options.calm_ms,
        members,
        principals,
        checkpoint_interval: options.checkpoint_interval,
        window: options.window,
        quota_bytes: options.quota_bytes,
    };
    check(named, &genesis)?;
    Ok(genesis)
}

fn make_member_keys(folder: &Path) -> Result<(PublicKey, PublicKey), InitError> {
    let seed = SecretSeed::generate()?;
    seed.write_new(&folder.join(VOTE_KEY_FILE))?;
    let tls = TlsIdentity::generate()?;
    write_new(&folder.join(TLS_KEY_FILE), tls.to_pem().as_bytes(), 0o600)?;
    Ok((seed.public_key(), PublicKey(tls.public_key())))
}

fn member(
    id: ReplicaId,
    vote_key: PublicKey,
    tls_key: PublicKey,
    peer_address: String,
    client_address: String,
) -> Member {
    let (incarnation, votes_after) = (Incarnation(0), Sequence(0));
    Member { id, incarnation, vote_key, tls_key, peer_address, client_address, votes_after }
}

fn member_of(genesis: &Genesis, id: ReplicaId) -> Result<&Member, InitError> {
    let last = genesis.members.len().saturating_sub(1);
    genesis.members.get(usize::from(id.0)).ok_or(InitError::NoSuchReplica { id, last })
}

fn principal_key_file(name: &str) -> String {
    // A principal's name is free text; a file name is not.
    let safe: String = name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c } else { '_' })
        .collect();
    format!("{safe}.key")
}

fn make_folder(folder: &Path) -> Result<(), InitError> {
    std::fs::create_dir_all(folder).map_err(|source| InitError::Folder { path: folder.into(), source })
}

fn wall_clock_ms() -> Result<u64, InitError> {
    crate::clock::wall_ms().ok_or(InitError::Clock)
}

#[cfg(test)]
mod tests;
