//! `dwcp demo`: a cluster of real processes that is killed in front of you, and the proof that nothing was lost.
//!
//! The parts: `story` decides what happens, `load` are the clients, `journal` what they wrote down, `verify` the judge,
//! `report` the figures, `stage` what is seen meanwhile. Here they are put together and cleaned up after.

mod journal;
mod load;
mod report;
mod stage;
mod story;
mod verify;

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use self::report::Report;
use self::story::Story;
use super::cluster::runtime;
use super::init::ModeWord;
use super::local::{LocalCluster, interrupted};
use super::output::{Failure, Kind, Outcome, print_bytes, print_json, say};

/// Start a cluster on this machine, kill it under load, and check that nothing was lost, doubled or different
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dwcp demo
  dwcp demo --nodes 7 --seconds 60
  dwcp --json demo | tail -1 | jq .lost

What happens: start, load, SIGKILL the primary under load, go on without it, restart it and let it catch up, SIGKILL all
nodes at once, restart all, verify. Every client keeps a journal of what it was told; at the end a fresh client reads
everything back through consensus and once more from each node's own state, and the nodes' state digests are compared at
one sequence. Latencies and gaps are what the clients saw. `longest gap` of the whole run leaves out the time in which no
node was running; each phase's own includes it.

Exit code 0 when nothing was lost, doubled or different; 5 when something was.")]
pub struct DemoArgs {
    /// How many nodes; internet mode needs at least 4
    #[arg(long, value_name = "COUNT", default_value_t = 4)]
    nodes: usize,

    /// internet: some may lie; datacenter: they only crash
    #[arg(long, value_enum, default_value = "internet")]
    mode: ModeWord,

    /// Seconds of load in all, not counting recoveries
    #[arg(long, value_name = "SECONDS", default_value_t = 24, value_parser = clap::value_parser!(u64).range(4..=86_400))]
    seconds: u64,

    /// Clients, each with one command under way
    #[arg(long, value_name = "COUNT", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=999))]
    clients: u32,

    /// Go on with the load until so many commands were acknowledged
    #[arg(long, value_name = "COUNT", default_value_t = 10_000)]
    at_least: u64,

    /// Leave the folder with the nodes' data, their logs and the clients' journal
    #[arg(long)]
    keep: bool,

    /// Where to make the temporary folder [default: the system's]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

pub fn run(args: &DemoArgs, json: bool) -> Outcome {
    if args.nodes < 3 {
        return Err(Failure::usage(
            "--nodes must be at least 3: with fewer, nothing is left when the primary is killed",
        ));
    }
    let mode = args.mode.into();
    let mut cluster = LocalCluster::create(args.nodes, mode, "demo", args.keep, args.dir.as_deref())?;
    // Children are tied to the thread that starts them, so all of this stays on the main thread.
    let report = runtime()?.block_on(async {
        tokio::select! {
            told = tell(args, &mut cluster) => told,
            () = interrupted() => Err(Failure::refused("interrupted; all nodes are stopped")),
        }
    });
    if args.keep {
        say(format!("kept: {}", cluster.path().display()));
    }
    drop(cluster);
    let report = report?;
    if json {
        print_json(&report)?;
    } else {
        print_bytes(report.text().as_bytes())?;
    }
    if report.lost > 0 || report.doubled > 0 || report.diverged {
        let (lost, doubled) = (report.lost, report.doubled);
        let differ = if report.diverged { "differ" } else { "agree" };
        return Err(Failure::new(Kind::Broken, format!("{lost} lost, {doubled} doubled, nodes {differ}")));
    }
    Ok(())
}

async fn tell(args: &DemoArgs, cluster: &mut LocalCluster) -> Outcome<Report> {
    let load_for = Duration::from_secs(args.seconds);
    let record = Story::new(cluster, load_for, args.at_least).tell(args.clients).await?;
    if args.keep {
        let path = cluster.path().join("journal.jsonl");
        journal::save(&record.journal, &path)
            .map_err(|error| Failure::refused(format!("cannot write {}: {error}", path.display())))?;
    }
    let verdict = verify::verify(&record.journal, &record.agreed, &record.nodes);
    let digest = record.nodes.first().map(|node| node.digest.clone()).unwrap_or_default();
    cluster.stop_all(Duration::from_secs(5)).await;
    Ok(Report::new(
        cluster.nodes.len(),
        cluster.mode_word(),
        args.clients,
        &record.phases,
        &record.journal,
        verdict,
        digest,
        &record.dead,
    ))
}
