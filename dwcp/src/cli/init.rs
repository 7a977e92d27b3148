//! `dwcp init` and `dwcp keygen`: everything that must exist before a node can run.
//!
//! Two roads. A trial cluster is one command on one machine. Parties that do not share keys each make their own, pass
//! public blocks around, and all end up with one genesis. The files themselves are made by `dwcp_node::init`; here is
//! what to say about them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use dwcp_base::configuration::{CALM_MS, Role};
use dwcp_base::{Ack, Genesis, ReplicaId};
use dwcp_client::ClientFile;
use dwcp_node::genesis_file::{read_genesis, trust_word};
use dwcp_node::init::{
    CHECKPOINT_INTERVAL, ClusterOptions, GENESIS_FILE, Listen, Ports, TrialOptions, from_members, keygen,
    keygen_principal, node_data, trial_cluster,
};
use dwcp_node::settings::Mode;
use serde::Deserialize;
use serde_json::json;

use super::output::{Failure, Outcome, print_json, print_line};

const INIT_EXAMPLES: &str = "\
Examples:
  A trial cluster of four nodes, all keys in one folder, on this machine:
    dwcp init --nodes 4 --out trial
    dwcp server --config trial/node0/config.toml     (each in its own shell: node0 .. node3)
    export DWCP_CLUSTER=trial/client.toml
    dwcp kv put a 1
    dwcp status

  The same on a network that is near and trusted, or sometimes so:
    dwcp init --nodes 3 --mode datacenter --out trial
    dwcp init --nodes 4 --mode hybrid --out trial

  Parties that do not share keys:
    dwcp keygen --out keys --peer-address a.example.org:7100 --client-address a.example.org:7101   (on each host)
    dwcp keygen --out keys --principal admin --role admin                                         (the operator)
    cat */member.toml admin.toml > members.toml       (public blocks, in the order of the replicas' numbers)
    dwcp init --members members.toml --out cluster    (makes genesis.toml and client.toml; give both to everybody)
    dwcp init --genesis cluster/genesis.toml --id 0 --out keys    (on each host, with its own number)
    dwcp server --config keys/config.toml

Nothing is ever overwritten. A server makes no keys and no data directory: whose disk is lost comes back with
`dwcp member replace`.";

/// Make what a cluster needs before it can start: keys, genesis, one settings file a node, data directories
#[derive(Debug, Args)]
#[command(after_help = INIT_EXAMPLES)]
pub struct InitArgs {
    /// Make a trial cluster of this many nodes (1 to 31; internet mode needs 4) [default: 4]
    #[arg(long, value_name = "COUNT", conflicts_with_all = ["members", "genesis"])]
    nodes: Option<usize>,

    /// Make a genesis from the public blocks in this file, which `dwcp keygen` wrote
    #[arg(long, value_name = "FILE", conflicts_with_all = ["genesis", "base_port", "host"])]
    members: Option<PathBuf>,

    /// Prepare this host for a cluster that has a genesis already; needs --id, and --out must hold this member's keys
    #[arg(long, value_name = "FILE", requires = "id")]
    genesis: Option<PathBuf>,

    /// This host's replica number in the genesis
    #[arg(long, value_name = "NUMBER", requires = "genesis")]
    id: Option<u8>,

    /// The folder to write into
    #[arg(long, value_name = "DIR")]
    out: PathBuf,

    /// The network to begin in. internet: PBFT, f members may lie (trust = byzantine). datacenter: Raft, members only
    /// crash (trust = crash). hybrid: Raft while it moves, else PBFT (trust = crash)
    #[arg(long, value_enum, default_value = "internet", conflicts_with = "genesis")]
    mode: ModeWord,

    /// How many lying members PBFT outvotes; where trust is crash, what its certificates withstand [default: floor((n-1)/3)]
    #[arg(long, value_name = "COUNT", conflicts_with = "genesis")]
    faults: Option<u8>,

    /// When commands that do not say are acknowledged: once committed, or once PBFT vouches for them
    #[arg(long, value_enum, value_name = "ACK", default_value = "majority", conflicts_with = "genesis")]
    default_ack: AckWord,

    /// Hybrid mode: milliseconds after a failed Raft segment before the next; doubles with each failure
    #[arg(long, value_name = "MS", default_value_t = CALM_MS, conflicts_with = "genesis")]
    calm_ms: u64,

    /// Bytes that the store may hold: keys, values and 256 for each version kept. Beyond it puts are refused until an admin
    /// disarms the alarm
    #[arg(long, value_name = "BYTES", default_value_t = 2 << 30, conflicts_with = "genesis")]
    quota_bytes: u64,

    /// Proposals of the root log between two checkpoints, 1 to 65536: more make checkpoints rarer, fewer free memory sooner
    #[arg(long, value_name = "COUNT", default_value_t = CHECKPOINT_INTERVAL, conflicts_with = "genesis",
        value_parser = clap::value_parser!(u64).range(1..=65_536))]
    checkpoint_interval: u64,

    /// How far proposals may run ahead of the last stable checkpoint: a multiple of the checkpoint interval, at least twice it;
    /// what a view change may carry bounds it, and how much that is depends on the number of members [default: 4 checkpoint
    /// intervals]
    #[arg(long, value_name = "COUNT", conflicts_with = "genesis")]
    window: Option<u64>,

    /// Never use Raft, whatever the mode (datacenter mode needs it)
    #[arg(long, conflicts_with = "genesis")]
    no_raft: bool,

    /// A name that tells this cluster from others
    #[arg(long, value_name = "TEXT", default_value = "trial", conflicts_with = "genesis")]
    name: String,

    /// First port of a trial cluster; three a node; 0 takes whichever are free now
    #[arg(long, value_name = "PORT", default_value_t = 7100, conflicts_with = "genesis")]
    base_port: u16,

    /// Address on which all nodes of a trial cluster listen
    #[arg(long, value_name = "IP", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST), conflicts_with = "genesis")]
    host: IpAddr,

    /// With --genesis: where to listen for replicas [default: all addresses, the port of the genesis]
    #[arg(long, value_name = "IP:PORT", requires = "genesis")]
    peer_listen: Option<SocketAddr>,

    /// With --genesis: where to listen for clients [default: all addresses, the port of the genesis]
    #[arg(long, value_name = "IP:PORT", requires = "genesis")]
    client_listen: Option<SocketAddr>,

    /// With --genesis: where to serve metrics and health, unencrypted
    #[arg(long, value_name = "IP:PORT", requires = "genesis", default_value = "127.0.0.1:7102")]
    http_listen: SocketAddr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ModeWord {
    Internet,
    Datacenter,
    Hybrid,
}

/// When a command is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AckWord {
    /// As soon as the protocol that orders it has committed it
    Majority,
    /// Once a PBFT certificate covers it; inside a Raft segment that takes until the next Anchor
    Anchored,
}

impl From<AckWord> for Ack {
    fn from(word: AckWord) -> Self {
        match word {
            AckWord::Majority => Self::Majority,
            AckWord::Anchored => Self::Anchored,
        }
    }
}

impl From<ModeWord> for Mode {
    fn from(word: ModeWord) -> Self {
        match word {
            ModeWord::Internet => Self::Internet,
            ModeWord::Datacenter => Self::Datacenter,
            ModeWord::Hybrid => Self::Hybrid,
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RoleWord {
    Reader,
    Writer,
    Admin,
}

impl From<RoleWord> for Role {
    fn from(word: RoleWord) -> Self {
        match word {
            RoleWord::Reader => Self::Reader,
            RoleWord::Writer => Self::Writer,
            RoleWord::Admin => Self::Admin,
        }
    }
}

/// Make the keys of one host, or of one client identity, and print the public half for the members file
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dwcp keygen --out keys --peer-address a.example.org:7100 --client-address a.example.org:7101
      writes keys/vote.key and keys/tls.pem (secret) and keys/member.toml (public, also printed)
  dwcp keygen --out keys --principal admin --role admin > admin.toml
      writes keys/admin.key (secret) and prints the public block

Send the public blocks to whoever runs `dwcp init --members`. Secret files never leave the host.")]
pub struct KeygenArgs {
    /// The folder for the secret keys
    #[arg(long, value_name = "DIR")]
    out: PathBuf,

    /// HOST:PORT by which the other replicas reach this host
    #[arg(
        long,
        value_name = "HOST:PORT",
        required_unless_present = "principal",
        conflicts_with = "principal"
    )]
    peer_address: Option<String>,

    /// HOST:PORT by which clients reach this host
    #[arg(
        long,
        value_name = "HOST:PORT",
        required_unless_present = "principal",
        conflicts_with = "principal"
    )]
    client_address: Option<String>,

    /// Make the key of a client identity of this name instead
    #[arg(long, value_name = "NAME", requires = "role")]
    principal: Option<String>,

    /// What that identity may do
    #[arg(long, value_enum, requires = "principal")]
    role: Option<RoleWord>,
}

pub fn run_keygen(args: &KeygenArgs, json: bool) -> Outcome {
    let block = match (&args.principal, args.role, &args.peer_address, &args.client_address) {
        (Some(name), Some(role), ..) => keygen_principal(&args.out, name, role.into())?,
        (None, _, Some(peer), Some(client)) => keygen(&args.out, peer, client)?,
        _ => {
            return Err(Failure::usage(
                "give --peer-address and --client-address, or --principal and --role",
            ));
        }
    };
    if json {
        print_json(&json!({ "folder": args.out, "public": block }))
    } else {
        print_line(block.trim_end())
    }
}

pub fn run(args: &InitArgs, json: bool) -> Outcome {
    match (&args.members, &args.genesis, args.id) {
        (Some(members), ..) => make_genesis(args, members, json),
        (None, Some(genesis), Some(id)) => prepare_host(args, genesis, ReplicaId(id), json),
        _ => make_trial(args, json),
    }
}

fn options(args: &InitArgs) -> ClusterOptions {
    ClusterOptions {
        name: args.name.clone(),
        mode: args.mode.into(),
        faults: args.faults,
        calm_ms: args.calm_ms,
        raft: !args.no_raft,
        quota_bytes: args.quota_bytes,
        default_ack: args.default_ack.into(),
        checkpoint_interval: args.checkpoint_interval,
        window: args.window.unwrap_or_else(|| args.checkpoint_interval.saturating_mul(4)),
    }
}

fn make_trial(args: &InitArgs, json: bool) -> Outcome {
    let nodes = args.nodes.unwrap_or(4);
    let ports = if args.base_port == 0 { Ports::Free } else { Ports::From(args.base_port) };
    let options = TrialOptions { cluster: options(args), ip: args.host, ports };
    let is_new = !args.out.exists();
    let made = trial_cluster(nodes, &args.out, &options).inspect_err(|_| {
        if is_new {
            // Half a cluster would be in the way of the next attempt; nobody has used its keys.
            let _ = std::fs::remove_dir_all(&args.out);
        }
    })?;
    let configs: Vec<&Path> = made.nodes.iter().map(|node| node.config_file.as_path()).collect();
    if json {
        return print_json(&json!({
            "cluster": hex::encode(made.genesis.cluster().0),
            "genesis": made.genesis_file,
            "client": made.client_file,
            "configs": configs,
        }));
    }
    let mut text = format!(
        "Cluster {} of {nodes} nodes, mode {}, trust {}, f = {}, in {}. Start each node in its own shell:\n",
        cluster_short(&made.genesis),
        made.genesis.mode,
        trust_word(made.genesis.policy.trust),
        made.genesis.policy.quorum.f(),
        args.out.display()
    );
    for config in configs {
        text.push_str(&format!("  dwcp server --config {}\n", config.display()));
    }
    let client = made.client_file.display();
    text.push_str(&format!("Then:\n  export DWCP_CLUSTER={client}\n  dwcp kv put a 1\n  dwcp status"));
    print_line(text)
}

fn make_genesis(args: &InitArgs, members: &Path, json: bool) -> Outcome {
    std::fs::create_dir_all(&args.out)
        .map_err(|error| Failure::refused(format!("cannot make folder {}: {error}", args.out.display())))?;
    let genesis_file = args.out.join(GENESIS_FILE);
    let genesis = from_members(members, &genesis_file, &options(args))?;
    let client_file = args.out.join("client.toml");
    write_new(&client_file, &ClientFile::of_genesis(&genesis).to_toml())?;
    if json {
        return print_json(&json!({
            "cluster": hex::encode(genesis.cluster().0), "genesis": genesis_file, "client": client_file,
        }));
    }
    print_line(format!(
        "Genesis of cluster {} ({} nodes, mode {}, trust {}, f = {}): {}\n\
         Give it to every member, who compares the cluster id {} and then runs, each with its own number:\n  \
         dwcp init --genesis {} --id NUMBER --out KEYS\n\
         Clients use {}; put each identity's .key file beside it.",
        cluster_short(&genesis),
        genesis.members.len(),
        genesis.mode,
        trust_word(genesis.policy.trust),
        genesis.policy.quorum.f(),
        genesis_file.display(),
        hex::encode(genesis.cluster().0),
        genesis_file.display(),
        client_file.display(),
    ))
}

fn prepare_host(args: &InitArgs, genesis_file: &Path, id: ReplicaId, json: bool) -> Outcome {
    let genesis = read_genesis(genesis_file)?;
    let member = genesis.members.get(usize::from(id.0)).ok_or_else(|| {
        Failure::refused(format!(
            "replica {id} is no member: the genesis has 0..={}",
            genesis.members.len() - 1
        ))
    })?;
    let listen = Listen {
        peer: args.peer_listen.map_or_else(|| any_address(&member.peer_address), Ok)?,
        client: args.client_listen.map_or_else(|| any_address(&member.client_address), Ok)?,
        http: args.http_listen,
    };
    let config = node_data(genesis_file, id, &args.out, &listen)?;
    if json {
        return print_json(&json!({ "cluster": hex::encode(genesis.cluster().0), "config": config }));
    }
    print_line(format!(
        "Replica {id} of cluster {} is prepared. Start it:\n  dwcp server --config {}",
        cluster_short(&genesis),
        config.display()
    ))
}

/// All addresses of this host, on the port by which it is reached.
pub fn any_address(address: &str) -> Outcome<SocketAddr> {
    let port = address.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
    let port =
        port.ok_or_else(|| Failure::refused(format!("\"{address}\" is no address: write HOST:PORT")))?;
    Ok(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port))
}

fn write_new(path: &Path, text: &str) -> Outcome {
    use std::io::Write;
    let file = std::fs::File::options().write(true).create_new(true).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|error| Failure::refused(format!("cannot write {}: {error}", path.display())))
}

fn cluster_short(genesis: &Genesis) -> String {
    format!("\"{}\" ({})", genesis.name, &hex::encode(genesis.cluster().0)[..8])
}
