//! One node as a process: exactly what `dwcp server --config FILE` does, so that this package is whole by itself and its
//! tests need no other package's binary. No rule of the cluster stands here: it is the library's `Server`.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use dwcp::child::end_with_parent;
use dwcp::{NodeConfig, Server, Stop};
use dwcp_node::start_journal;

/// Runs the node until it stops by itself; its stop is the exit code. Never returns otherwise: the owner kills it.
///
/// # Errors
/// What keeps it from starting, as `dwcp server` would say it.
pub fn serve(config: &Path, parent: i32) -> anyhow::Result<ExitCode> {
    end_with_parent(parent).context("cannot be tied to the parent process")?;
    let config = NodeConfig::load(config)?;
    start_journal(config.log_level);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        // The owner kills it: nobody asks it to stop.
        let stop = Server::start(config).await?.run(std::future::pending()).await?;
        if let Stop::Halted { reason } | Stop::Failed { reason } = &stop {
            eprintln!("error: {}", reason.replace('\n', "; "));
        }
        Ok(ExitCode::from(stop.exit_code()))
    })
}
