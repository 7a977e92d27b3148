//! `dwcp kv lease`: leases are granted in seconds of log time, which stands still while the cluster does, so an outage
//! of the cluster expires nothing.

use std::time::Duration;

use clap::Subcommand;
use dwcp_state::kv::{KvBody, KvCommand};

use super::print_answer;
use super::show::Shape;
use crate::cli::cluster::Link;
use crate::cli::output::{Failure, Outcome};

#[derive(Debug, Subcommand)]
#[command(after_help = "\
Example:
  dwcp kv lease grant 60            (lease 123 granted with TTL(60s))
  dwcp kv put --lease 123 online yes
  dwcp kv lease keepalive 123       (until Ctrl-C; `online` goes within a minute after it)")]
pub enum LeaseCommand {
    /// Make a lease; prints its id
    #[command(after_help = "Example:\n  dwcp kv lease grant 60")]
    Grant {
        /// Seconds
        ttl_s: u64,
        /// Choose the id [default: chosen by the cluster]
        #[arg(long, default_value_t = 0, hide_default_value = true)]
        id: i64,
    },
    /// End a lease and delete its keys
    #[command(after_help = "Example:\n  dwcp kv lease revoke 123")]
    Revoke {
        /// The number `grant` printed
        id: i64,
    },
    /// Renew a lease at a third of its time, until interrupted
    #[command(after_help = "Example:\n  dwcp kv lease keepalive 123")]
    Keepalive {
        /// The number `grant` printed
        id: i64,
        /// Renew once and end
        #[arg(long)]
        once: bool,
    },
    /// Show what is left of a lease
    #[command(after_help = "Example:\n  dwcp kv lease ttl --keys 123")]
    Ttl {
        /// The number `grant` printed
        id: i64,
        /// Also list its keys
        #[arg(long)]
        keys: bool,
    },
    /// List leases
    #[command(after_help = "Example:\n  dwcp kv lease list")]
    List,
}

impl LeaseCommand {
    pub fn command(&self) -> KvCommand {
        match *self {
            Self::Grant { ttl_s, id } => KvCommand::LeaseGrant { id, ttl_s },
            Self::Revoke { id } => KvCommand::LeaseRevoke { id },
            Self::Keepalive { id, .. } => KvCommand::LeaseKeepAlive { id },
            Self::Ttl { id, keys } => KvCommand::LeaseTimeToLive { id, keys },
            Self::List => KvCommand::LeaseList,
        }
    }
}

/// Renews until interrupted or refused.
pub async fn keep_alive(link: &Link, id: i64, verbose: bool, json: bool) -> Outcome {
    loop {
        let answer = link.run(&KvCommand::LeaseKeepAlive { id }).await?;
        print_answer(&answer, Shape::default(), verbose, json)?;
        let KvBody::LeaseKeepAlive { ttl_s, .. } = answer.reply.body else {
            return Err(Failure::refused("the cluster answered something else: use a client of its version"));
        };
        let pause = Duration::from_secs(ttl_s).div_f64(3.0).max(Duration::from_millis(300));
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = crate::cli::local::interrupted() => return Ok(()),
        }
    }
}
