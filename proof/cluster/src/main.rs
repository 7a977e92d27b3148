//! `cargo run --release -p cluster -- kills --count 200`: real processes are killed, paused or robbed of their disk under
//! load, and the clients' journals are judged. Only arguments, the progress bar and the exit code are handled here.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use cluster::campaign::{Progress, Record};
use cluster::load::Pulse;
use cluster::report::{MetReport, Report, SoakReport};
use cluster::{Campaign, Cluster, Fault, Options, Plan, Soak, judgement, network, parted, serve, soak};
use indicatif::{ProgressBar, ProgressStyle};

/// The log of a node whose disk fills up soon needs the next segment.
const SMALL_SEGMENT_BYTES: u64 = 1 << 20;
/// Nobody who looks on is left without a word for longer.
const SILENT_MAX: Duration = Duration::from_secs(15);

#[derive(Debug, Parser)]
#[command(
    name = "cluster",
    about = "Real processes over loopback: killed, paused, cut off, robbed of their disk; then judged",
    version
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// SIGKILL under load until so many nodes were killed; then judge
    #[command(after_help = "Example:\n  cargo run --release -p cluster -- kills --count 200 --seed 7")]
    Kills(Blows),
    /// SIGSTOP and SIGCONT under load; then judge
    #[command(after_help = "Example:\n  cargo run --release -p cluster -- pauses --count 100")]
    Pauses(Blows),
    /// Wipe one disk, bring the member back as its next incarnation, kill another; then judge
    #[command(after_help = "Example:\n  cargo run --release -p cluster -- wipe")]
    Wipe(Run),
    /// Cut links between nodes, one way and both ways, and heal them, under load; then judge (needs root)
    #[command(after_help = "Example:\n  sudo cargo run --release -p cluster -- partitions --count 40")]
    Partitions(Blows),
    /// Fill one node's disk under load, make room again, kill another; then judge (needs root)
    #[command(after_help = "Example:\n  sudo cargo run --release -p cluster -- full")]
    Full(Run),
    /// Order one mode after another under load, with or without faults; then judge
    #[command(after_help = "\
Examples:
  cargo run --release -p cluster -- soak --switches 1000
  sudo cargo run --release -p cluster -- soak --switches 100 --faults

The orders go round internet, hybrid, datacenter, until so many epochs were opened. Without faults there must be no client
error at all, no failover but by --leaders, and an acknowledged command in every epoch. With faults one node at a time is killed, stopped or
(as root) cut off, and no client may wait longer than 30 s. While a segment is open the root may order 20 slots a second.")]
    Soak(Soaking),
    /// Part the nodes into halves, write convergent keys on both sides, kill a writer on each, heal; then judge
    #[command(after_help = "Example:\n  cargo run --release -p cluster -- sync --rounds 10 --seed 7")]
    Sync(Syncing),
    /// Does anything come back from this address? (run by `partitions`)
    #[command(hide = true)]
    Reach { address: std::net::IpAddr },
    /// One node, as `dwcp server` runs it (started by the other subcommands)
    #[command(hide = true)]
    Node {
        #[arg(long)]
        config: PathBuf,
        #[arg(long)]
        with_parent: i32,
    },
}

#[derive(Clone, Debug, Args)]
struct Blows {
    /// Nodes to hit, each counted
    #[arg(long, value_name = "COUNT", default_value_t = 200)]
    count: u64,
    #[command(flatten)]
    run: Run,
}

#[derive(Clone, Debug, Args)]
struct Run {
    /// The network mode [default: internet, with fewer than 4 nodes datacenter]
    #[arg(long, value_enum)]
    mode: Option<ModeWord>,
    /// Nodes of the cluster; f = (n - 1) / 3
    #[arg(long, value_name = "COUNT", default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=31))]
    nodes: u8,
    /// Draws whom to hit and what clients ask; the operating system still decides the rest [default: by the clock]
    #[arg(long)]
    seed: Option<u64>,
    /// Clients, each with one command under way
    #[arg(long, value_name = "COUNT", default_value_t = 16)]
    clients: u64,
    /// Mean pause of a client between two commands
    #[arg(long, value_name = "MS", default_value_t = 20)]
    think_ms: u64,
    #[command(flatten)]
    ending: Ending,
}

#[derive(Clone, Debug, Args)]
struct Soaking {
    /// Epochs to be opened
    #[arg(long, value_name = "COUNT", default_value_t = 1000)]
    switches: u64,
    /// Kill, stop and cut off nodes meanwhile
    #[arg(long)]
    faults: bool,
    /// Spread the orders over so long [default: one as soon as the last was followed]
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    seconds: u64,
    /// When the orders are done, order hybrid mode and kill the leader of the open segment, so many times
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    leaders: u64,
    #[command(flatten)]
    run: Run,
}

#[derive(Clone, Debug, Args)]
struct Syncing {
    /// Times that the halves part and meet
    #[arg(long, value_name = "COUNT", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    rounds: u64,
    /// Draws who is parted, killed, and writes what [default: by the clock]
    #[arg(long)]
    seed: Option<u64>,
    #[command(flatten)]
    ending: Ending,
}

/// What is left of a run.
#[derive(Clone, Debug, Args)]
struct Ending {
    /// Leave the folder with the nodes' data, their logs and the clients' journals (also left when something was found)
    #[arg(long)]
    keep: bool,
    /// Where to make the temporary folder [default: the system's]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Print one JSON object instead of the table
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ModeWord {
    Internet,
    Datacenter,
    Hybrid,
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Node { config, with_parent } => serve::serve(&config, with_parent),
        Command::Reach { address } => {
            Ok(if network::reach(address) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Command::Kills(run) => hit("kills", Fault::Kill, run.count, &run.run),
        Command::Pauses(run) => hit("pauses", Fault::Pause, run.count, &run.run),
        Command::Wipe(run) if run.nodes < 3 => {
            bail!("--nodes must be at least 3: with fewer, nobody is left to fetch the lost state from")
        }
        // The one that loses its disk, and those that are killed to see it vote: one story.
        Command::Wipe(run) => hit("wiped", Fault::Wipe, 1, &run),
        Command::Partitions(run) => {
            network::enter()?;
            hit("partitions", Fault::Partition, run.count, &run.run)
        }
        Command::Soak(soaking) if soaking.run.mode.is_some() => {
            bail!("--mode is not for soak: its orders go round all modes")
        }
        Command::Soak(soaking) if soaking.run.nodes < 4 => {
            bail!("--nodes must be at least 4: the orders go round, and internet mode needs them")
        }
        Command::Soak(soaking) => {
            if soaking.faults && network::is_available() {
                network::enter()?;
            } else if soaking.faults {
                eprintln!(
                    "no partitions in this run: they need root, `unshare`, `ip` and a kernel with namespaces"
                );
            }
            soak(&soaking)
        }
        Command::Sync(syncing) => sync(&syncing),
        Command::Full(run) if run.nodes < 3 => {
            bail!("--nodes must be at least 3: with fewer, nobody goes on while one node stops")
        }
        Command::Full(run) => {
            network::enter()?;
            hit("full disks", Fault::Full, 1, &run)
        }
    }
}

fn hit(name: &'static str, fault: Fault, count: u64, run: &Run) -> anyhow::Result<ExitCode> {
    let seed = run.seed();
    let program = std::env::current_exe().context("cannot find this very program")?;
    let options = match run.mode {
        None if run.nodes < 4 => Options::datacenter(program),
        None | Some(ModeWord::Internet) => Options::new(program),
        Some(ModeWord::Datacenter) => Options::datacenter(program),
        Some(ModeWord::Hybrid) => Options::hybrid(program),
    };
    let options = Options {
        within: run.ending.dir.clone(),
        namespaces: fault == Fault::Partition,
        segment_bytes: (fault == Fault::Full).then_some(SMALL_SEGMENT_BYTES),
        ..options
    };
    on_a_cluster(run.nodes.into(), &run.ending, options, async |cluster| {
        cluster.start_all()?;
        let plan = Plan { clients: run.clients, think_ms: run.think_ms, ..Plan::new(fault, count, seed) };
        let mut stage = Stage::new(name, plan.count);
        let campaign = Campaign::new(cluster, plan);
        let pulse = campaign.pulse();
        let _teller = stage.tell(&pulse);
        let record = campaign.run(&mut |progress| stage.show(progress)).await?;
        stage.judge(&record, &pulse);
        let (record, report) =
            aside(record, move |record| Report::new(name, seed, record, judgement::judge(record))).await?;
        stage.end();
        let is_clean = report.judgement.is_clean();
        Ok(Told {
            is_clean,
            json: serde_json::to_string(&report)?,
            text: report.text(),
            journals: Some(record.history),
        })
    })
}

fn soak(soaking: &Soaking) -> anyhow::Result<ExitCode> {
    let run = &soaking.run;
    let program = std::env::current_exe().context("cannot find this very program")?;
    let namespaces = soaking.faults && network::is_available();
    let options = Options { within: run.ending.dir.clone(), namespaces, ..Options::hybrid(program) };
    on_a_cluster(run.nodes.into(), &run.ending, options, async |cluster| {
        cluster.start_all()?;
        let plan = soak::Plan {
            switches: soaking.switches,
            faults: soaking.faults,
            seed: run.seed(),
            clients: run.clients,
            think_ms: run.think_ms,
            spread: Duration::from_secs(soaking.seconds),
            leaders: soaking.leaders,
            calm: Duration::from_secs(3),
        };
        let mut stage = Stage::new("epochs", plan.switches + plan.leaders);
        let soak = Soak::new(cluster, plan);
        let pulse = soak.pulse();
        let _teller = stage.tell(&pulse);
        let soaked = soak.run(&mut |progress| stage.show(progress)).await?;
        stage.judge(&soaked.record, &pulse);
        let (soaked, report) = aside(soaked, |soaked| SoakReport::new(soaked, soak::judge(soaked))).await?;
        stage.end();
        let is_clean = report.judgement.is_clean();
        let (json, text) = (serde_json::to_string(&report)?, report.text());
        Ok(Told { is_clean, json, text, journals: Some(soaked.record.history) })
    })
}

fn sync(syncing: &Syncing) -> anyhow::Result<ExitCode> {
    let ending = &syncing.ending;
    let program = std::env::current_exe().context("cannot find this very program")?;
    let options = Options { within: ending.dir.clone(), ..Options::hybrid(program) };
    on_a_cluster(parted::NODES, ending, options, async |cluster| {
        let seed = syncing.seed.unwrap_or_else(seed_by_the_clock);
        let plan = parted::Plan { rounds: syncing.rounds, seed, forget: false };
        let stage = Stage::new("rounds", plan.rounds);
        let met = parted::run(cluster, plan, &mut |rounds| stage.show_count(rounds)).await?;
        let report = MetReport::new(&met, parted::judge(&met));
        stage.end();
        let is_clean = report.judgement.is_clean();
        Ok(Told { is_clean, json: serde_json::to_string(&report)?, text: report.text(), journals: None })
    })
}

/// What is left to say when all is judged.
struct Told {
    is_clean: bool,
    json: String,
    text: String,
    journals: Option<check::History>,
}

/// Makes a cluster, has the story told on it, and says how it went. Its folder stays when it is asked for or needed.
fn on_a_cluster(
    nodes: usize,
    ending: &Ending,
    options: Options,
    story: impl AsyncFnOnce(&mut Cluster) -> anyhow::Result<Told>,
) -> anyhow::Result<ExitCode> {
    // Nodes are tied to the thread that starts them, so all of this stays on the main thread.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let code = runtime.block_on(async {
        let mut cluster = Cluster::create(nodes, options)?;
        let told = tokio::select! {
            told = story(&mut cluster) => told,
            _ = interrupted() => bail!("interrupted; all nodes are stopped"),
        };
        let Told { is_clean, json, text, journals } = told?;
        if ending.keep || !is_clean {
            let folder = cluster.keep().to_path_buf();
            if let Some(journals) = journals {
                let path = folder.join("journals.jsonl");
                let file = std::fs::File::create(&path)
                    .with_context(|| format!("cannot write {}", path.display()))?;
                journals.write_lines(std::io::BufWriter::new(file)).context("cannot write the journals")?;
            }
            eprintln!("kept: {}", folder.display());
        }
        if ending.json {
            println!("{json}");
        } else {
            print!("{text}");
        }
        Ok(if is_clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    });
    // A judge whose verdict nobody waits for any more is not waited for either.
    runtime.shutdown_background();
    code
}

/// Judges beside the main thread, which goes on listening for whoever wants an end.
async fn aside<T: Send + 'static, R: Send + 'static>(
    of: T,
    judge: impl FnOnce(&T) -> R + Send + 'static,
) -> anyhow::Result<(T, R)> {
    let judging = tokio::task::spawn_blocking(move || {
        let verdict = judge(&of);
        (of, verdict)
    });
    judging.await.context("a judge panicked")
}

impl Run {
    fn seed(&self) -> u64 {
        self.seed.unwrap_or_else(seed_by_the_clock)
    }
}

fn seed_by_the_clock() -> u64 {
    std::time::UNIX_EPOCH.elapsed().map_or(1, |since| since.as_millis() as u64 % 1_000_000)
}

/// Resolves when a person (Ctrl-C) or the system (SIGTERM) wants an end.
async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut terminate) = signal(SignalKind::terminate()) else { return std::future::pending().await };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}

/// What is seen meanwhile: a bar on a terminal, now and then a line elsewhere.
struct Stage {
    name: &'static str,
    bar: Option<ProgressBar>,
    count: u64,
    told: u64,
    said_at: Arc<Mutex<Instant>>,
    judged_from: Option<Instant>,
}

impl Stage {
    fn new(name: &'static str, count: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{prefix} {bar:30} {pos}/{len} {elapsed} {msg}")
                .expect("the template is fixed");
            ProgressBar::new(count).with_style(style).with_prefix(name)
        });
        let said_at = Arc::new(Mutex::new(Instant::now()));
        Self { name, bar, count, told: 0, said_at, judged_from: None }
    }

    fn show(&mut self, progress: Progress) {
        let Progress { blows, acknowledged, unknown, view } = progress;
        let message = format!("{acknowledged} acknowledged, {unknown} unknown, view {view}");
        if let Some(bar) = &self.bar {
            bar.set_position(blows.min(self.count));
            bar.set_message(message);
        } else if blows >= self.told + 25 {
            self.told = blows;
            self.say(&format!("{blows}/{} {}: {message}", self.count, self.name));
        }
    }

    fn show_count(&self, count: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(count.min(self.count));
        }
    }

    fn say(&self, line: &str) {
        *self.said_at.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        eprintln!("{line}");
    }

    /// While it lives, says what the run is at whenever that takes long.
    fn tell(&self, pulse: &Arc<Pulse>) -> Teller {
        let (bar, said_at, pulse) = (self.bar.clone(), self.said_at.clone(), pulse.clone());
        Teller(tokio::spawn(async move {
            let began = Instant::now();
            loop {
                tokio::time::sleep(Duration::from_secs(1)).await;
                let told = format!(
                    "{}: {} acknowledged, {} unknown",
                    pulse.phase(),
                    pulse.acknowledged(),
                    pulse.unknown()
                );
                if let Some(bar) = &bar {
                    bar.set_message(told);
                    continue;
                }
                let mut said_at = said_at.lock().unwrap_or_else(PoisonError::into_inner);
                if said_at.elapsed() >= SILENT_MAX {
                    *said_at = Instant::now();
                    eprintln!("{} s: {told}", began.elapsed().as_secs());
                }
            }
        }))
    }

    fn judge(&mut self, record: &Record, pulse: &Pulse) {
        let clients = &record.history.clients;
        let commands: usize = clients.iter().map(|journal| journal.commands.len()).sum();
        let what = format!("judging all {commands} commands");
        pulse.enter(&*what);
        self.judged_from = Some(Instant::now());
        match &self.bar {
            Some(bar) => bar.set_message(what),
            None => self.say(&what),
        }
    }

    fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        } else if let Some(from) = self.judged_from {
            self.say(&format!("judged in {:.1} s", from.elapsed().as_secs_f64()));
        }
    }
}

/// Says no more once it is dropped.
struct Teller(tokio::task::JoinHandle<()>);

impl Drop for Teller {
    fn drop(&mut self) {
        self.0.abort();
    }
}
