//! `dwcp bench`: how much, how fast, at what cost. One row per way of driving the cluster.
//!
//! It drives a cluster that runs already, or starts one of real processes (`--local`). `bench/load.rs` are the clients,
//! `bench/servers.rs` the meter, `bench/row.rs` the table. Figures depend on machine, disk and neighbours: compare
//! ratios and processor time per command before absolute numbers.

mod load;
mod process;
mod row;
mod servers;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use dwcp_node::init::ClusterOptions;
use serde_json::json;

use self::load::Work;
use self::row::Row;
use self::servers::{Servers, Spent};
use super::cluster::{ClusterArgs, Link, runtime};
use super::init::ModeWord;
use super::local::{LocalCluster, interrupted};
use super::output::{Failure, Kind, Outcome, print_bytes, print_json, say, thousands};

/// A local cluster that needs longer for anything is stuck.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long the processes of an idle cluster are watched.
const IDLE_FOR: Duration = Duration::from_secs(10);

/// Measure throughput, latency and cost
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dwcp bench --local 4                              (its own cluster of real processes, 64 clients)
  dwcp bench --local 4 --all                        (every row of docs/performance.md; some minutes)
  dwcp bench --clients 1,64,256                     (against the cluster of DWCP_CLUSTER)
  dwcp bench --clients 16 --frame 64                (64 commands under one signature)
  dwcp bench --rate 2000                            (open loop: latency from when each command was due)
  dwcp bench --local 3 --mode datacenter --sync --rate 1000   (writes of state sync)
  dwcp bench --local 3 --mode datacenter --reads 100 [--ordered]   (linearizable reads by the leader's word, or as commands)
  dwcp bench --metrics 127.0.0.1:7102 --pids 4711   (where to read what servers spend)

A closed loop has one call under way per client, so a pause of the cluster is one slow sample; the open loop keeps
sending by the clock and shows it. Reads, if any, are linearizable; those of a frame of several commands are ordered.")]
pub struct BenchArgs {
    #[command(flatten)]
    cluster: ClusterArgs,

    /// Start a cluster of this many nodes on this machine and remove it afterwards
    #[arg(long, value_name = "NODES")]
    local: Option<usize>,

    /// With --local: the network mode, which says what orders commands
    #[arg(long, value_enum, default_value = "internet", requires = "local")]
    mode: ModeWord,

    /// With --local: where to make the data directories; what disk it is on decides much [default: the system's]
    #[arg(long, value_name = "DIR", requires = "local")]
    dir: Option<PathBuf>,

    /// With --local: every row of docs/performance.md
    #[arg(long, requires = "local", conflicts_with_all = ["clients", "frame", "rate"])]
    all: bool,

    /// Clients of the closed loop, one row for each number
    #[arg(long, value_name = "COUNT,...", value_delimiter = ',', value_parser = clap::value_parser!(u64).range(1..=10_000))]
    clients: Vec<u64>,

    /// Commands each client sends at once, under one signature
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=256))]
    frame: u64,

    /// Open loop with so many commands a second, instead of closed loops
    #[arg(long, value_name = "PER_SECOND", conflicts_with = "clients", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    rate: Option<u64>,

    /// Drive state sync instead of the store, in an open loop: each write one frame, told as its mode has it
    #[arg(long, requires = "rate", conflicts_with = "reads")]
    sync: bool,

    /// Size of each value written
    #[arg(long, value_name = "BYTES", default_value_t = 256, value_parser = clap::value_parser!(u64).range(0..=1_500_000))]
    value_bytes: u64,

    /// Seconds measured per row
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,

    /// Seconds driven before measuring
    #[arg(long, value_name = "SECONDS", default_value_t = 2)]
    warm_up: u64,

    /// Of a hundred commands, so many read
    #[arg(long, value_name = "PERCENT", default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=100))]
    reads: u64,

    /// Order the reads as commands, also where a Raft segment's leader would answer them without an entry
    #[arg(long)]
    ordered: bool,

    /// Keys written over and over; with --all also how many are loaded for the rows `keys` and `transfer`
    /// [default: 100000; with --all 1000000 are loaded]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    keys: Option<u64>,

    /// Process ids of the servers, if they run on this machine
    #[arg(long, value_name = "PID,...", value_delimiter = ',', conflicts_with = "local")]
    pids: Vec<u32>,

    /// The servers' http_listen addresses, for batch sizes and syncs
    #[arg(long, value_name = "IP:PORT,...", value_delimiter = ',', conflicts_with = "local")]
    metrics: Vec<SocketAddr>,
}

pub fn run(args: &BenchArgs, json: bool) -> Outcome {
    let mut local = match args.local {
        Some(nodes) => {
            let options = ClusterOptions { mode: args.mode.into(), ..ClusterOptions::default() };
            Some(LocalCluster::create(nodes, options, "bench", false, args.dir.as_deref())?)
        }
        None => None,
    };
    let config = match &local {
        Some(cluster) => Link::patient(cluster)?,
        None => args.cluster.config()?,
    };
    let rows = runtime()?.block_on(async {
        tokio::select! {
            rows = drive(args, config, local.as_mut()) => rows,
            () = interrupted() => Err(Failure::refused("interrupted")),
        }
    });
    drop(local);
    let rows = rows?;
    if json {
        let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
        print_json(&json!({
            "cores": cores, "value_bytes": args.value_bytes, "seconds": args.seconds, "rows": rows,
        }))
    } else {
        print_bytes(row::text(&rows).as_bytes())
    }
}

struct Bench<'a> {
    link: Link,
    work: Work,
    servers: Servers,
    local: Option<&'a mut LocalCluster>,
    rows: Vec<Row>,
}

async fn drive(
    args: &BenchArgs,
    config: dwcp_client::ClientConfig,
    mut local: Option<&mut LocalCluster>,
) -> Outcome<Vec<Row>> {
    if let Some(cluster) = &mut local {
        cluster.start_all()?;
        cluster.ready(PATIENCE).await?;
    }
    let servers = match &local {
        Some(cluster) => Servers {
            pids: cluster.pids().into_iter().map(|(_, pid)| pid).collect(),
            pages: cluster.nodes.iter().map(|node| node.http).collect(),
        },
        None => Servers { pids: args.pids.clone(), pages: args.metrics.clone() },
    };
    let work = Work {
        value_bytes: usize::try_from(args.value_bytes).unwrap_or(256),
        keys: args.keys.filter(|_| !args.all).unwrap_or(100_000),
        reads_percent: args.reads,
        ordered: args.ordered,
        warm_up: Duration::from_secs(args.warm_up),
        measure: Duration::from_secs(args.seconds),
    };
    let mut bench = Bench { link: Link::connect(config)?, work, servers, local, rows: Vec::new() };
    // Before anything is measured: is there a cluster that answers?
    bench.link.run(&dwcp_state::kv::KvCommand::get("bench")).await?;
    let frame = usize::try_from(args.frame).unwrap_or(1);
    if args.all {
        bench.all(args.keys.unwrap_or(1_000_000)).await?;
    } else if let Some(rate) = args.rate {
        bench.open(rate, args.sync).await?;
    } else {
        let clients = if args.clients.is_empty() { &[64][..] } else { &args.clients };
        for clients in clients {
            bench.closed(usize::try_from(*clients).unwrap_or(1), frame).await?;
        }
    }
    let errors: u64 = bench.rows.iter().map(|row| row.errors).sum();
    if errors > 0 {
        say(format!(
            "{} commands failed; the first reason of each row stands in its note",
            thousands(errors)
        ));
    }
    if let Some(cluster) = &mut bench.local {
        cluster.all_alive()?;
        cluster.stop_all(Duration::from_secs(5)).await;
    }
    Ok(bench.rows)
}

impl Bench<'_> {
    /// The rows of docs/performance.md, in its order.
    async fn all(&mut self, keys: u64) -> Outcome {
        self.idle().await?;
        for clients in [1, 64, 256, 1000] {
            self.closed(clients, 1).await?;
        }
        self.closed(16, 64).await?;
        let most =
            self.rows.iter().filter(|row| row.name.ends_with("frame 1")).filter_map(|row| row.ops_per_s);
        let half = most.fold(0.0, f64::max) / 2.0;
        self.open((half as u64).max(1), false).await?;
        self.keys_and_transfer(keys).await
    }

    async fn closed(&mut self, clients: usize, frame: usize) -> Outcome {
        let name = format!("closed, {clients} clients, frame {frame}");
        say(format!("# {name}"));
        let (servers, mut readings) = (self.servers.clone(), Vec::new());
        let sample =
            load::closed(&self.link, clients, frame, self.work, async || readings.push(servers.read().await))
                .await?;
        self.rows.push(Row::new(name, &sample, &spent(&readings)));
        Ok(())
    }

    async fn open(&mut self, rate: u64, sync: bool) -> Outcome {
        let name = format!("{}, {}/s", if sync { "sync" } else { "open" }, thousands(rate));
        say(format!("# {name}"));
        let (servers, mut readings) = (self.servers.clone(), Vec::new());
        let sample =
            load::open(&self.link, rate, sync, self.work, async || readings.push(servers.read().await))
                .await?;
        self.rows.push(Row::new(name, &sample, &spent(&readings)));
        Ok(())
    }

    async fn idle(&mut self) -> Outcome {
        say("# idle");
        tokio::time::sleep(Duration::from_secs(2)).await;
        let before = self.servers.read().await;
        tokio::time::sleep(IDLE_FOR).await;
        let spent = self.servers.read().await.since(&before);
        let nodes = self.servers.pids.len().max(1) as f64;
        let share = spent.servers_cpu.map(|cpu| cpu.as_secs_f64() / spent.seconds / nodes * 100.0);
        let note = share.map_or("n/a".into(), |share| format!("{share:.2} % of a core per node"));
        self.rows.push(Row::quiet("idle", &spent, note));
        Ok(())
    }

    /// Loads keys while one node is dead, then times how long that node needs to have them all.
    async fn keys_and_transfer(&mut self, keys: u64) -> Outcome {
        let Some(cluster) = &mut self.local else { return Ok(()) };
        let last = cluster.nodes.len() - 1;
        cluster.kill(last);
        self.servers.pids = cluster.pids().into_iter().map(|(_, pid)| pid).collect();
        self.servers.pages = cluster.nodes[..last].iter().map(|node| node.http).collect();
        let before = self.servers.read().await;
        let mut said = Instant::now();
        let took = load::fill(&self.link, keys, self.work.value_bytes, |done| {
            if said.elapsed() > Duration::from_secs(5) {
                said = Instant::now();
                say(format!("# keys: {} of {}", thousands(done), thousands(keys)));
            }
        })
        .await?;
        let spent = self.servers.read().await.since(&before);
        let per_s = keys as f64 / took.as_secs_f64();
        let note = format!("{} keys in {:.1} s with one node dead", thousands(keys), took.as_secs_f64());
        self.rows.push(Row {
            ops_per_s: Some(per_s.round()),
            commands: keys,
            ..Row::quiet("keys", &spent, note)
        });

        let target = self
            .link
            .statuses()
            .await
            .iter()
            .filter_map(|(_, s)| s.as_ref().ok())
            .map(|s| s.executed.0)
            .max();
        let target =
            target.ok_or_else(|| Failure::new(Kind::Unreachable, "no node answers after the load"))?;
        let Some(cluster) = &mut self.local else { return Ok(()) };
        say("# transfer");
        let began = Instant::now();
        cluster.start(last)?;
        let id = cluster.nodes[last].id;
        loop {
            cluster.all_alive()?;
            if began.elapsed() > PATIENCE {
                return Err(Failure::new(Kind::Broken, "the restarted node does not catch up"));
            }
            if self
                .link
                .status(id)
                .await
                .is_ok_and(|status| status.executed.0 >= target && !status.transferring)
            {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let took = began.elapsed();
        self.servers.pids = cluster.pids().into_iter().map(|(_, pid)| pid).collect();
        let now = self.servers.read().await;
        let note = format!("{} keys in {:.1} s, process start included", thousands(keys), took.as_secs_f64());
        self.rows.push(Row::quiet("transfer", &now.since(&now), note));
        Ok(())
    }
}

fn spent(readings: &[servers::Reading]) -> Spent {
    match readings {
        [before, after] => after.since(before),
        _ => Spent::default(),
    }
}
