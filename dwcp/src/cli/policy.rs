//! `dwcp policy`: who may lie, whether Raft may be used, and when commands are acknowledged that do not say themselves.
//!
//! Policy is ordered and signed like a mode. The number of assumed liars, f, stays what it was.

use clap::{Args, Subcommand, ValueEnum};
use dwcp_base::Trust;
use dwcp_client::Status;
use dwcp_log::{OperatorOrder, PolicyOrder};
use dwcp_node::genesis_file::{ack_word, trust_word};
use serde_json::json;

use super::cluster::{ClusterArgs, Link, runtime};
use super::init::AckWord;
use super::order::{read_client, sign, standing, submit_numbered, write_client};
use super::output::{Failure, Outcome, print_json, print_line, thousands};

/// Show or order the policy: who may lie, whether Raft may be used, how commands are acknowledged
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dwcp policy get
  dwcp policy set --trust byzantine  (from now on members may lie: no Raft; needs 4 nodes)
  dwcp policy set --raft false       (PBFT alone, though members only crash)
  dwcp policy set --ack anchored     (commands that do not say are answered once a PBFT certificate covers them)

What is not said stays as it is.")]
pub struct PolicyArgs {
    #[command(flatten)]
    cluster: ClusterArgs,

    #[command(subcommand)]
    command: PolicyCommand,
}

#[derive(Debug, Subcommand)]
enum PolicyCommand {
    /// Show the policy in force
    #[command(after_help = "Example:\n  dwcp policy get")]
    Get,
    /// Order a policy, signed by an admin; prints the sequence of the root log from which it is in force
    #[command(after_help = "\
Examples:
  dwcp policy set --trust crash --raft true
  dwcp policy set --ack anchored

Whom clients believe stands in their files: after --trust this one is rewritten; give it to your other clients, before
the order where it makes them believe less, after it where more.")]
    Set(SetArgs),
}

#[derive(Debug, Args)]
struct SetArgs {
    /// Who may lie: nobody (crash), or up to f members (byzantine)
    #[arg(long, value_enum, required_unless_present_any = ["raft", "ack"])]
    trust: Option<PolicyTrust>,

    /// Whether Raft segments may be opened; only where trust is crash
    #[arg(long, value_name = "BOOL")]
    raft: Option<bool>,

    /// When commands that do not say are acknowledged
    #[arg(long, value_enum)]
    ack: Option<AckWord>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum PolicyTrust {
    Crash,
    Byzantine,
}

impl From<PolicyTrust> for Trust {
    fn from(word: PolicyTrust) -> Self {
        match word {
            PolicyTrust::Crash => Self::Crash,
            PolicyTrust::Byzantine => Self::Byzantine,
        }
    }
}

pub fn run(args: &PolicyArgs, json: bool) -> Outcome {
    match &args.command {
        PolicyCommand::Get => get(&args.cluster, json),
        PolicyCommand::Set(set) => run_set(&args.cluster, set, json),
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
            "trust": trust_word(status.trust), "f": status.f, "raft": status.raft,
            "default_ack": ack_word(status.default_ack), "next_order": status.next_order,
        }));
    }
    print_line(phrase(&status))
}

/// `trust crash, f 1, raft allowed, default ack majority`.
pub fn phrase(status: &Status) -> String {
    format!(
        "trust {}, f {}, raft {}, default ack {}",
        trust_word(status.trust),
        status.f,
        if status.raft && status.trust == Trust::Crash { "allowed" } else { "not allowed" },
        ack_word(status.default_ack)
    )
}

fn run_set(cluster: &ClusterArgs, set: &SetArgs, json: bool) -> Outcome {
    let ordered = std::cell::Cell::new(None);
    let done = submit_numbered(cluster, |config, status| {
        let order = PolicyOrder {
            number: status.next_order,
            trust: set.trust.map_or(status.trust, Into::into),
            raft: set.raft.unwrap_or(status.raft),
            default_ack: set.ack.map_or(status.default_ack, Into::into),
        };
        ordered.set(Some(order));
        Ok(OperatorOrder::Policy(sign(config, order)))
    })?;
    let order = ordered.take().ok_or_else(|| Failure::refused("no order was made"))?;
    let path = cluster.file()?;
    let mut client = read_client(&path)?;
    let follows = Trust::from(client.trust) != order.trust;
    if follows {
        client.trust = order.trust.into();
        write_client(&path, &client)?;
    }
    if json {
        return print_json(&json!({
            "trust": trust_word(order.trust), "raft": order.raft, "default_ack": ack_word(order.default_ack),
            "order": done.number, "in_force_from": done.sequence,
        }));
    }
    let mut text = format!(
        "Policy trust {}, raft {}, default ack {} is in force from sequence {} on (order {})",
        trust_word(order.trust),
        order.raft,
        ack_word(order.default_ack),
        thousands(done.sequence),
        done.number
    );
    if follows {
        text.push_str(&format!("\n{} now says whom to trust: give it to your other clients", path.display()));
    }
    print_line(text)
}
