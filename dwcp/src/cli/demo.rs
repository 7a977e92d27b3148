//! `dwcp demo`: a cluster of real processes that is killed in front of you, and the proof that nothing was lost.
//!
//! The parts: `story` and `switching` decide what happens, `load` are the clients, `journal` what they wrote down, `verify` the judge,
//! `report` the figures, `stage` what is seen meanwhile. Here they are put together and cleaned up after.

mod disks;
mod journal;
mod load;
mod parting;
mod report;
mod stage;
mod story;
mod switching;
mod verify;

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use dwcp_node::init::ClusterOptions;
use dwcp_node::settings::Mode;

use self::report::Report;
use self::story::Story;
use self::verify::NodeView;
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
  dwcp demo --mode internet         (PBFT alone, among nodes of which some may lie)
  dwcp --json demo | tail -1 | jq .lost,.sync
  dwcp demo --keep                  (then: dwcp demo --judge FOLDER)

What happens in hybrid mode: start, load under Raft, switch to PBFT and back under load by an operator's order, twice;
SIGKILL the Raft leader under load: the others fall back to PBFT by themselves, and return to Raft after a while; restart
the dead node and let it catch up, SIGKILL all nodes at once, restart all, verify. The commit gap of a switch is the longest
time between two acknowledgements around it.

In the other modes: start, load, SIGKILL the primary (datacenter: the Raft leader) under load, go on without it, restart it
and let it catch up, SIGKILL all nodes at once, restart all, verify.

Before the end the cluster is parted into two halves, convergent keys are written on both sides by a script, the halves meet
again, and every node must hold the same. The conflicts that must be counted follow from the script alone.

Every client keeps a journal of what it was told; at the end a fresh client reads
everything back through consensus and once more from each node's own state; when all nodes have stopped their disks are read
too; and the state digests of all of these are compared at one sequence. Latencies and gaps are what the clients saw. `longest gap` of the whole run leaves out the time in which no
node was running; each phase's own includes it.

Exit code 0 when nothing was lost, doubled or different and all conflicts were counted; 5 when not.")]
pub struct DemoArgs {
    /// How many nodes; internet and hybrid need at least 4
    #[arg(long, value_name = "COUNT", default_value_t = 4)]
    nodes: usize,

    /// hybrid: Raft, and PBFT where it fails; internet: PBFT among nodes of which some may lie; datacenter: Raft alone
    #[arg(long, value_enum, default_value = "hybrid")]
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

    /// Judge a folder that --keep left once more: its journal against what the stopped nodes have on their disks
    #[arg(long, value_name = "DIR", conflicts_with_all = ["nodes", "mode", "seconds", "clients", "at_least", "keep", "dir"])]
    judge: Option<PathBuf>,

    /// Where to make the temporary folder [default: the system's]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

pub fn run(args: &DemoArgs, json: bool) -> Outcome {
    if let Some(kept) = &args.judge {
        return judge(kept, json);
    }
    if args.nodes < 3 {
        return Err(Failure::usage(
            "--nodes must be at least 3: with fewer, nothing is left when the primary is killed",
        ));
    }
    let mode = args.mode.into();
    if mode == Mode::Hybrid && args.nodes < 4 {
        // Such a cluster can be, but it could not be switched to PBFT and back.
        return Err(Failure::refused(dwcp_base::SettingsError::TooFewForByzantine));
    }
    let options = ClusterOptions { mode, calm_ms: switching::CALM_MS, ..ClusterOptions::default() };
    let mut cluster = LocalCluster::create(args.nodes, options, "demo", args.keep, args.dir.as_deref())?;
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
    fail_on(report.lost, report.doubled, report.diverged)?;
    let sync = &report.sync;
    if sync.holds() {
        return Ok(());
    }
    let differ = if sync.converged { "equal" } else { "different" };
    Err(Failure::new(
        Kind::Broken,
        format!(
            "state sync: {} lost, {} of {} conflicts counted, nodes {differ}",
            sync.lost, sync.conflicts_counted, sync.conflicts_expected
        ),
    ))
}

async fn tell(args: &DemoArgs, cluster: &mut LocalCluster) -> Outcome<Report> {
    let load_for = Duration::from_secs(args.seconds);
    let record = Story::new(cluster, load_for, args.at_least).tell(args.clients).await?;
    if args.keep {
        let path = cluster.path().join("journal.jsonl");
        journal::save(&record.journal, &path)
            .map_err(|error| Failure::refused(format!("cannot write {}: {error}", path.display())))?;
    }
    cluster.stop_all(Duration::from_secs(5)).await;
    let (on_disk, unreadable) = disks::read_all(&cluster.config_files());
    let seen: Vec<NodeView> = record.nodes.iter().cloned().chain(on_disk).collect();
    let mut verdict = verify::verify(&record.journal, &record.agreed, &seen);
    disks::add_unreadable(&mut verdict, unreadable);
    Ok(Report::new(cluster.nodes.len(), cluster.mode_word(), args.clients, &record, verdict))
}

/// No process is started: the journal and the disks are all there is.
fn judge(kept: &Path, json: bool) -> Outcome {
    let path = kept.join("journal.jsonl");
    let entries = journal::load(&path).map_err(|error| {
        Failure::usage(format!("cannot read {}: {error}; `dwcp demo --keep` leaves one", path.display()))
    })?;
    let (on_disk, unreadable) = disks::read_all(&disks::config_files(kept)?);
    let agreed = on_disk.first().map(|view| view.holding.clone()).unwrap_or_default();
    let mut verdict = verify::verify(&entries, &agreed, &on_disk);
    disks::add_unreadable(&mut verdict, unreadable);
    if json {
        print_json(&verdict)?;
    } else {
        let counts = format!(
            "{} acknowledged, {} lost, {} doubled",
            verdict.acknowledged, verdict.lost, verdict.doubled
        );
        let lines: Vec<String> = verdict.findings.iter().map(|finding| format!("  {finding}\n")).collect();
        print_bytes(format!("{counts}, {} differences\n{}", verdict.differences, lines.concat()).as_bytes())?;
    }
    fail_on(verdict.lost, verdict.doubled, verdict.diverged())
}

fn fail_on(lost: u64, doubled: u64, diverged: bool) -> Outcome {
    if lost == 0 && doubled == 0 && !diverged {
        return Ok(());
    }
    let differ = if diverged { "differ" } else { "agree" };
    Err(Failure::new(Kind::Broken, format!("{lost} lost, {doubled} doubled, nodes {differ}")))
}
