//! `dwcp mode`: which network the cluster is told it runs in, and with that which protocol may extend its log.
//!
//! A mode is a signed order that every node executes at one place of the log. What is measured never changes it.

use clap::{Args, Subcommand};
use dwcp_base::{NetworkMode, ReplicaId};
use dwcp_client::Status;
use dwcp_log::{ModeOrder, OperatorOrder};
use dwcp_node::genesis_file::{ack_word, trust_word};
use serde_json::json;

use super::cluster::{ClusterArgs, Link, runtime};
use super::init::ModeWord;
use super::order::{sign, standing, submit_numbered};
use super::output::{Failure, Outcome, print_json, print_line, thousands};

/// Show or order the network mode: datacenter, internet or hybrid
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dwcp mode get
  dwcp mode set datacenter           (Raft orders commands; PBFT only after three failures in a row; needs trust = crash)
  dwcp mode set internet             (PBFT orders commands; needs 4 nodes)
  dwcp mode set hybrid               (Raft while it moves; PBFT when it does not, and Raft again after a calm)
  dwcp mode set hybrid --leader 2    (node 2 should lead)

Nothing stops and nothing is lost: commands under way are executed once, under the old mode or the new one. Ordering the
mode in force ends the Raft segment that is open and begins the next, which moves its leadership with --leader.")]
pub struct ModeArgs {
    #[command(flatten)]
    cluster: ClusterArgs,

    #[command(subcommand)]
    command: ModeCommand,
}

#[derive(Debug, Subcommand)]
enum ModeCommand {
    /// Show the mode in force and which protocol orders commands now
    #[command(after_help = "Examples:\n  dwcp mode get\n  dwcp --json mode get | jq -r .mode")]
    Get,
    /// Order a mode, signed by an admin; prints the sequence of the root log from which it is in force
    #[command(after_help = "\
Examples:
  dwcp mode set datacenter
  dwcp mode set hybrid --leader 2
  dwcp mode set internet --as admin  (sign as this principal of the client file)")]
    Set {
        /// datacenter: below 10 ms, members only crash. internet: 50 to 500 ms. hybrid: changes by the hour
        #[arg(value_enum)]
        mode: ModeWord,
        /// The node that should lead the next Raft segment first [default: any but the root log's primary]
        #[arg(long, value_name = "NODE")]
        leader: Option<u8>,
    },
}

pub fn run(args: &ModeArgs, json: bool) -> Outcome {
    match args.command {
        ModeCommand::Get => get(&args.cluster, json),
        ModeCommand::Set { mode, leader } => set(&args.cluster, mode.into(), leader, json),
    }
}

fn get(cluster: &ClusterArgs, json: bool) -> Outcome {
    let config = cluster.config()?;
    let status = runtime()?.block_on(async {
        let link = Link::connect(config.clone())?;
        standing(&config, link.statuses().await)
    })?;
    if json {
        return print_json(&json!({
            "mode": status.mode.word(),
            "trust": trust_word(status.trust),
            "f": status.f,
            "raft": status.raft,
            "default_ack": ack_word(status.default_ack),
            "protocol": status.protocol.word(),
            "epoch": status.epoch.0,
            "orderer": status.orderer.map(|orderer| orderer.0),
            "no_segment": status.no_segment,
            "next_order": status.next_order,
        }));
    }
    print_line(phrase(&status))
}

/// The mode and what it means just now: `hybrid: raft, epoch 3, led by node 2`.
pub fn phrase(status: &Status) -> String {
    let mut text = format!("{}: {}", status.mode, status.protocol.word());
    let who = |id: Option<ReplicaId>| id.map_or("nobody known".to_string(), |id| format!("node {id}"));
    match &status.segment {
        Some(_) => text.push_str(&format!(", epoch {}, led by {}", status.epoch, who(status.orderer))),
        None => text.push_str(&format!(", primary {}", who(status.orderer))),
    }
    if !status.no_segment.is_empty() {
        text.push_str(&format!(" ({})", status.no_segment));
    }
    text
}

fn set(cluster: &ClusterArgs, mode: NetworkMode, leader: Option<u8>, json: bool) -> Outcome {
    if leader.is_some() && mode == NetworkMode::Internet {
        return Err(Failure::usage("internet mode has no Raft segment to lead: leave --leader out"));
    }
    let nodes = cluster.config()?.nodes;
    if let Some(leader) = leader.filter(|leader| nodes.iter().all(|node| node.id.0 != *leader)) {
        let last = nodes.len() - 1;
        return Err(Failure::usage(format!("node {leader} is not in the client file: it lists 0..={last}")));
    }
    let done = submit_numbered(cluster, |config, status| {
        let order = ModeOrder { number: status.next_order, mode, first_leader: leader.map(ReplicaId) };
        Ok(OperatorOrder::Mode(sign(config, order)))
    })?;
    if json {
        return print_json(&json!({
            "mode": mode.word(), "order": done.number, "in_force_from": done.sequence,
        }));
    }
    print_line(format!(
        "Mode {mode} is in force from sequence {} on (order {})",
        thousands(done.sequence),
        done.number
    ))
}
