//! `dwcp server`: one node as a process. It starts the node and what clients speak to it, waits for a signal or for the
//! node's own end, and turns that end into an exit code. All of the work is done by the library's `Server`.

use std::path::PathBuf;

use clap::Args;
use dwcp::child::end_with_parent;
use dwcp::{Server, Stop};
use dwcp_node::settings::{NodeConfig, settings_table};
use dwcp_node::{LIFE, start_journal};

use super::cluster::runtime;
use super::local::interrupted;
use super::output::{Failure, Outcome, print_bytes};

/// Run one node until it is asked to stop
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dwcp server --config trial/node0/config.toml
  dwcp server --help-settings                   (every setting: unit, default, range, reason)

SIGTERM and Ctrl-C end it in good order; SIGKILL loses nothing that was acknowledged either. The journal goes to standard
error. /metrics, /livez and /readyz are served on the settings' http_listen.

Exit codes: 0 asked to stop, 1 not started (the reason says what to correct), 2 wrong usage, 3 this replica must not go on
(its disk is not what it was: see `dwcp member replace --help`), 4 failed while running.")]
pub struct ServerArgs {
    /// The node's settings file; `dwcp init` writes one
    #[arg(long, value_name = "FILE", required_unless_present = "help_settings")]
    config: Option<PathBuf>,

    /// Print all settings and end
    #[arg(long)]
    help_settings: bool,

    /// End when the process with this id, which started this one, has ended
    #[arg(long, value_name = "PID", hide = true)]
    with_parent: Option<i32>,
}

pub fn run(args: &ServerArgs) -> Outcome<u8> {
    if args.help_settings {
        print_bytes(settings_table().as_bytes())?;
        return Ok(0);
    }
    if let Some(parent) = args.with_parent {
        // Children of `demo` and `bench` must not outlive them, even if those are killed outright.
        end_with_parent(parent)
            .map_err(|error| Failure::refused(format!("cannot be tied to the parent process: {error}")))?;
    }
    let path = args.config.as_ref().ok_or_else(|| Failure::usage("name the settings: --config FILE"))?;
    let config = NodeConfig::load(path)?;
    start_journal(config.log_level);
    runtime()?.block_on(serve(config))
}

async fn serve(config: NodeConfig) -> Outcome<u8> {
    let server = Server::start(config).await?;
    let asked = async {
        interrupted().await;
        tracing::info!(target: LIFE, "asked to stop");
    };
    let stop = server.run(asked).await?;
    // One line on standard error whatever the journal's level.
    if let Stop::Halted { reason } | Stop::Failed { reason } = &stop {
        eprintln!("error: {}", reason.replace('\n', "; "));
    }
    Ok(stop.exit_code())
}
