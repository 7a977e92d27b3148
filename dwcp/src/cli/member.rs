//! `dwcp member`: who is in the cluster, and the way back for a member whose disk was lost.
//!
//! A lost disk is a lost promise: whoever lost it may have signed what it no longer remembers, so it may never vote again
//! under that name. It comes back with new keys as its next incarnation, by an order that an admin signs and that the
//! cluster executes like any other entry. What is made here is useless until then.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use dwcp_base::{Incarnation, ReplicaId};
use dwcp_client::Status;
use dwcp_log::{ExcludeOrder, MemberOrder, OperatorOrder};
use dwcp_node::genesis_file::read_genesis;
use dwcp_node::init::{GENESIS_FILE, Listen, read_order, replacement};
use serde_json::json;

use super::cluster::{ClusterArgs, Link, runtime};
use super::init::any_address;
use super::order::{admin, read_client, sign, write_client};
use super::output::{
    Failure, GREEN, Outcome, RED, YELLOW, align_numbers, paint_words, print_json, print_line, table,
    thousands,
};

const REPLACE_HELP: &str = "\
Example (node 2 of a trial cluster has lost its disk):
  dwcp member replace --id 2 --out trial/node2-new
  dwcp server --config trial/node2-new/config.toml
  dwcp status --watch               (`learner` until a checkpoint has passed its admission by a full window)

On the way back in:
  1. new keys, a settings file and a data directory whose manifest says `incarnation + 1` are made in --out;
  2. an order with the new public keys is signed with an admin's key and ordered by the cluster;
  3. the client file is rewritten with the new public keys (give it to your other clients too);
  4. you start the server on it. It fetches the state, listens, and votes again once that is safe.

Where the admin's key is elsewhere: run this with --prepare-only on the new host, carry order.toml to the admin, who runs
`dwcp member submit order.toml`. Never bring a copy of the old data directory back: the others refuse its incarnation.";

/// List members; bring back one whose disk was lost
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dwcp member list
  dwcp member replace --id 2 --out trial/node2-new")]
pub struct MemberArgs {
    #[command(flatten)]
    cluster: ClusterArgs,

    #[command(subcommand)]
    command: MemberCommand,
}

#[derive(Debug, Subcommand)]
enum MemberCommand {
    /// Show members: addresses, incarnation, whether they vote
    #[command(after_help = "Example:\n  dwcp member list")]
    List,
    /// Replace a member whose disk was lost by its next incarnation
    #[command(after_help = REPLACE_HELP)]
    Replace(ReplaceArgs),
    /// Have state sync go on without a member that does not acknowledge: nothing is collected while one is away
    #[command(after_help = "\
Example (node 2 is away for longer than frames can be kept for it; `dwcp sync peers` shows it):
  dwcp member exclude --id 2

What it wrote counts as far as the others have it. It still votes; it writes convergent keys again once its disk is replaced
(`dwcp member replace`).")]
    Exclude {
        /// The member's replica number
        #[arg(long, value_name = "NUMBER")]
        id: u8,
        /// Its incarnation in force [default: as the client file says]
        #[arg(long, value_name = "NUMBER")]
        incarnation: Option<u32>,
    },
    /// Sign and submit an order that `replace --prepare-only` made
    #[command(after_help = "Example:\n  dwcp member submit --as admin order.toml")]
    Submit {
        /// order.toml
        order: PathBuf,
    },
}

#[derive(Debug, Args)]
struct ReplaceArgs {
    /// The member's replica number
    #[arg(long, value_name = "NUMBER")]
    id: u8,

    /// A new, empty folder for keys, settings and data
    #[arg(long, value_name = "DIR")]
    out: PathBuf,

    /// The cluster's genesis [default: genesis.toml beside the client file]
    #[arg(long, value_name = "FILE")]
    genesis: Option<PathBuf>,

    /// The new incarnation [default: the client file's plus one]
    #[arg(long, value_name = "NUMBER")]
    incarnation: Option<u32>,

    /// HOST:PORT by which the other replicas will reach it [default: as in the genesis]
    #[arg(long, value_name = "HOST:PORT")]
    peer_address: Option<String>,

    /// HOST:PORT by which clients will reach it [default: as in the client file]
    #[arg(long, value_name = "HOST:PORT")]
    client_address: Option<String>,

    /// Where to listen for replicas [default: all addresses, the port of --peer-address]
    #[arg(long, value_name = "IP:PORT")]
    peer_listen: Option<SocketAddr>,

    /// Where to listen for clients [default: all addresses, the port of --client-address]
    #[arg(long, value_name = "IP:PORT")]
    client_listen: Option<SocketAddr>,

    /// Where to serve metrics and health [default: 127.0.0.1, the port above the clients']
    #[arg(long, value_name = "IP:PORT")]
    http_listen: Option<SocketAddr>,

    /// Make files and order, submit nothing
    #[arg(long)]
    prepare_only: bool,
}

pub fn run(args: &MemberArgs, json: bool) -> Outcome {
    match &args.command {
        MemberCommand::List => list(&args.cluster, json),
        MemberCommand::Replace(replace) => run_replace(&args.cluster, replace, json),
        MemberCommand::Exclude { id, incarnation } => exclude(&args.cluster, *id, *incarnation, json),
        MemberCommand::Submit { order } => {
            let order = read_order(order)?;
            let from = submit(&args.cluster, &order)?;
            follow(&args.cluster.file()?, &order)?;
            if json {
                return print_json(
                    &json!({ "member": order.id.0, "incarnation": order.incarnation.0, "in_force_from": from }),
                );
            }
            print_line(format!(
                "Member {} is incarnation {} since sequence {}. Its server can be started now; it learns before it votes.",
                order.id,
                order.incarnation,
                thousands(from)
            ))
        }
    }
}

fn run_replace(cluster: &ClusterArgs, args: &ReplaceArgs, json: bool) -> Outcome {
    let client_path = cluster.file()?;
    let client = read_client(&client_path)?;
    let known = client.nodes.iter().find(|node| node.id == args.id).ok_or_else(|| {
        Failure::refused(format!(
            "node {} is not in {}: choose one of its nodes",
            args.id,
            client_path.display()
        ))
    })?;
    let incarnation = Incarnation(args.incarnation.unwrap_or(known.incarnation.saturating_add(1)));
    let beside = client_path.parent().unwrap_or(Path::new(".")).join(GENESIS_FILE);
    let genesis_path = args.genesis.clone().unwrap_or(beside);
    let genesis = read_genesis(&genesis_path)?;
    let id = ReplicaId(args.id);
    let member = genesis.members.get(usize::from(args.id)).ok_or_else(|| {
        Failure::refused(format!(
            "replica {id} is no member: the genesis has 0..={}",
            genesis.members.len() - 1
        ))
    })?;
    let peer_address = args.peer_address.clone().unwrap_or_else(|| member.peer_address.clone());
    let client_address = args.client_address.clone().unwrap_or_else(|| known.address.clone());
    let client_listen = args.client_listen.map_or_else(|| listen_at(&client_address), Ok)?;
    let beside_clients = || SocketAddr::from(([127, 0, 0, 1], client_listen.port().saturating_add(1)));
    let listen = Listen {
        peer: args.peer_listen.map_or_else(|| listen_at(&peer_address), Ok)?,
        client: client_listen,
        http: args.http_listen.unwrap_or_else(beside_clients),
    };
    if !args.prepare_only {
        // Before anything is written: is there an admin's key at all?
        admin(cluster)?;
    }
    let made =
        replacement(&genesis_path, id, incarnation, &args.out, &listen, &peer_address, &client_address)?;
    let start = format!("dwcp server --config {}", made.config_file.display());
    if args.prepare_only {
        if json {
            return print_json(&json!({ "order": made.order_file, "config": made.config_file }));
        }
        return print_line(format!(
            "Prepared incarnation {incarnation} of member {id}. An admin now runs\n  dwcp member submit {}\nand then you\n  {start}",
            made.order_file.display()
        ));
    }
    let from = submit(cluster, &made.order).map_err(|failure| {
        let order = made.order_file.display();
        Failure::new(
            failure.kind,
            format!("{}; the order is kept: retry with `dwcp member submit {order}`", failure.message),
        )
    })?;
    follow(&client_path, &made.order)?;
    if json {
        return print_json(&json!({
            "member": args.id, "incarnation": incarnation.0, "in_force_from": from, "config": made.config_file,
        }));
    }
    print_line(format!(
        "Member {id} is incarnation {incarnation} since sequence {}. Start it:\n  {start}\n\
         It learns first (`learner` in `dwcp status`) and votes again once a checkpoint past sequence {} is stable.\n\
         {} now has its new keys: give it to your other clients.",
        thousands(from),
        thousands(from.saturating_add(genesis.window)),
        client_path.display()
    ))
}

/// The address itself when it is one of this host's numbers, else every address on its port.
fn listen_at(address: &str) -> Outcome<SocketAddr> {
    address.parse().map_or_else(|_| any_address(address), Ok)
}

fn submit(cluster: &ClusterArgs, order: &MemberOrder) -> Outcome<u64> {
    let config = admin(cluster)?;
    let signed = OperatorOrder::Member(sign(&config, order.clone()));
    runtime()?.block_on(async { Link::connect(config)?.order(None, &signed).await })
}

/// Rewrites the client file with a member's new keys, whole or not at all.
fn follow(path: &Path, order: &MemberOrder) -> Outcome {
    let mut client = read_client(path)?;
    for node in client.nodes.iter_mut().filter(|node| node.id == order.id.0) {
        node.incarnation = order.incarnation.0;
        node.vote_key = hex::encode(order.vote_key.0);
        node.tls_key = Some(hex::encode(order.tls_key.0));
        node.address.clone_from(&order.client_address);
    }
    write_client(path, &client)
}

fn exclude(cluster: &ClusterArgs, id: u8, incarnation: Option<u32>, json: bool) -> Outcome {
    let file = read_client(&cluster.file()?)?;
    let known = file.nodes.iter().find(|node| node.id == id);
    let known = known.ok_or_else(|| Failure::usage(format!("node {id} is not in the client file")))?;
    let incarnation = Incarnation(incarnation.unwrap_or(known.incarnation));
    let config = admin(cluster)?;
    let order = OperatorOrder::Exclude(sign(&config, ExcludeOrder { id: ReplicaId(id), incarnation }));
    let from = runtime()?.block_on(async { Link::connect(config)?.order(None, &order).await })?;
    if json {
        return print_json(&json!({ "excluded": id, "incarnation": incarnation.0, "in_force_from": from }));
    }
    print_line(format!(
        "State sync goes on without node {id}, incarnation {incarnation}, as soon as a quorum has heard of the same end \
         (order in force from sequence {})",
        thousands(from)
    ))
}

fn list(cluster: &ClusterArgs, json: bool) -> Outcome {
    let config = cluster.config()?;
    let members = config.nodes.clone();
    let statuses = runtime()?.block_on(async { Outcome::Ok(Link::connect(config)?.statuses().await) })?;
    let status = |id: ReplicaId| {
        statuses.iter().find(|(node, _)| *node == id.0).and_then(|(_, status)| status.as_ref().ok())
    };
    if json {
        let member = |member: &dwcp_client::NodeConfig| {
            let status = status(member.id);
            json!({
                "member": member.id.0,
                "address": member.address,
                "incarnation": member.incarnation.0,
                "vote_key": hex::encode(member.vote_key.0),
                "reachable": status.is_some(),
                "voter": status.map(|status| status.voter),
            })
        };
        return print_json(&json!({ "members": members.iter().map(member).collect::<Vec<_>>() }));
    }
    let mut rows = table(&["member", "address", "incarnation", "role", "vote key"]);
    align_numbers(&mut rows, [2]);
    for member in &members {
        let key = hex::encode(member.vote_key.0);
        rows.add_row([
            member.id.to_string(),
            member.address.clone(),
            member.incarnation.to_string(),
            role(status(member.id)),
            format!("{}..", &key[..16]),
        ]);
    }
    let words = [("unreachable", RED), ("learner", YELLOW), ("voter", GREEN)];
    print_line(paint_words(&rows.to_string(), &words))
}

fn role(status: Option<&Status>) -> String {
    match status {
        None => "unreachable",
        Some(status) if status.voter => "voter",
        Some(_) => "learner",
    }
    .into()
}
