//! One node as a process: exactly what `dwcp server --config FILE` does, so that this package is whole by itself and its
//! tests need no other package's binary. No rule of the cluster stands here: `dwcp_node` runs the node, `dwcp_api` serves
//! its clients.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, ensure};
use dwcp_api::{Api, ApiConfig, Limits, Readers};
use dwcp_node::keys::read_tls_identity;
use dwcp_node::settings::NodeConfig;
use dwcp_node::{Node, Stop, start_journal};

/// Runs the node until it stops by itself; its stop is the exit code. Never returns otherwise: the owner kills it.
///
/// # Errors
/// What keeps it from starting, as `dwcp server` would say it.
pub fn serve(config: &Path, parent: i32) -> anyhow::Result<ExitCode> {
    tie_to_parent(parent)?;
    let config = NodeConfig::load(config)?;
    start_journal(config.log_level);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let node = Node::start(config)?;
        let api = Api::bind(ApiConfig {
            listen: node.config().client_listen,
            tls: Some(read_tls_identity(&node.config().tls_key_file)?),
            readers: Readers::Principals,
            limits: Limits::default(),
        })
        .await?;
        let stopped = node.clone();
        let serving = api.serve(node.clone(), async move { drop(stopped.stopped().await) });
        let (served, stop) = tokio::join!(serving, node.stopped());
        if let Stop::Halted { reason } | Stop::Failed { reason } = &stop {
            eprintln!("error: {}", reason.replace('\n', "; "));
        }
        served?;
        Ok(ExitCode::from(stop.exit_code()))
    })
}

/// A node must not outlive those who test it, even if they are killed outright.
fn tie_to_parent(parent: i32) -> anyhow::Result<()> {
    #[cfg(target_os = "linux")]
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .context("cannot be tied to the parent process")?;
    // It may have ended before the line above.
    let now = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get());
    ensure!(now == Some(parent), "the parent process has ended");
    Ok(())
}
