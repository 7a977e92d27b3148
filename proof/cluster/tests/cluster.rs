//! Real processes, short: what `cargo run --release -p cluster` does for minutes. No test asserts a speed; deadlines say only
//! that something must come at all.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use check::{Answer, KeyValue, Operation, read_back};
use cluster::campaign::Record;
use cluster::campaign::read_everything;
use cluster::judgement::judge;
use cluster::load::{Pulse, Scribe};
use cluster::watch::Watch;
use cluster::{Campaign, Cluster, Fault, Options, Plan, Soak, soak};
use dwcp::ProtocolName;
use dwcp_client::Client;
use tokio::runtime::Runtime;

#[path = "cluster/leaders.rs"]
mod leaders;
#[path = "cluster/parting.rs"]
mod parting;

const PROGRAM: &str = env!("CARGO_BIN_EXE_cluster");

/// One cluster at a time: on two cores, several at once only wait for each other.
fn alone() -> MutexGuard<'static, ()> {
    static MACHINE: Mutex<()> = Mutex::new(());
    MACHINE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Nodes are tied to the thread that starts them: the test's own, on which `block_on` keeps its future.
fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn plan(fault: Fault, count: u64, seed: u64) -> Plan {
    Plan { clients: 8, think_ms: 15, calm: Duration::from_secs(1), ..Plan::new(fault, count, seed) }
}

/// Runs a campaign and insists on a clean judgement; the cluster's folder stays if there is none.
fn judged(nodes: usize, options: Options, plan: Plan) -> Record {
    let _alone = alone();
    runtime().block_on(async {
        let mut cluster = Cluster::start(nodes, options).unwrap();
        let record = Campaign::new(&mut cluster, plan).run(&mut |_| {}).await.unwrap();
        let judgement = judge(&record);
        assert!(judgement.is_clean(), "{judgement:#?}");
        assert_eq!(record.digests.len(), nodes);
        assert!(judgement.acknowledged > 100, "hardly any load: {judgement:#?}");
        record
    })
}

#[test]
fn nodes_killed_under_load_lose_and_double_nothing() {
    let mut record = judged(4, Options::new(PROGRAM), plan(Fault::Kill, 12, 1));
    // The same judges, shown what a worse cluster would have left behind.
    let records = record.read_back.clone().unwrap();
    let mut spoiled = |spoil: &dyn Fn(&mut Vec<KeyValue>)| {
        let mut worse = records.clone();
        spoil(&mut worse);
        record.read_back = Some(worse);
        judge(&record)
    };
    for prefix in [read_back::UNIQUE_PUT, read_back::COUNTER, read_back::APPEND] {
        let dropped = spoiled(&|records| records.retain(|record| !record.key.starts_with(prefix)));
        assert!(dropped.lost > 0, "{dropped:#?}");
    }
    // More than all unknown outcomes could explain.
    let doubled = spoiled(&|records| {
        records.iter_mut().for_each(|record| record.version += 1000);
    });
    assert!(doubled.doubled > 0, "{doubled:#?}");
}

#[test]
fn stopped_and_continued_nodes_lose_and_double_nothing() {
    judged(4, Options::new(PROGRAM), plan(Fault::Pause, 6, 2));
}

#[test]
fn three_nodes_that_only_crash_survive_kills_as_well() {
    judged(3, Options::datacenter(PROGRAM), plan(Fault::Kill, 6, 3));
}

#[test]
fn a_cluster_that_changes_its_protocol_under_kills_loses_and_doubles_nothing() {
    judged(4, Options::hybrid(PROGRAM), plan(Fault::Kill, 12, 6));
    judged(4, Options::datacenter(PROGRAM), plan(Fault::Kill, 8, 7));
}

#[test]
fn a_single_node_finds_all_it_acknowledged_after_each_kill() {
    judged(1, Options::datacenter(PROGRAM), plan(Fault::Kill, 4, 4));
}

#[test]
fn a_member_whose_disk_was_lost_comes_back_only_as_its_next_incarnation_and_votes() {
    judged(4, Options::new(PROGRAM), plan(Fault::Wipe, 2, 5));
}

#[test]
fn modes_ordered_one_after_another_serve_every_epoch_and_lose_nothing() {
    let _alone = alone();
    runtime().block_on(async {
        let mut cluster = Cluster::start(4, Options::hybrid(PROGRAM)).unwrap();
        let plan = soak::Plan {
            switches: 8,
            faults: false,
            seed: 7,
            clients: 8,
            think_ms: 15,
            spread: Duration::ZERO,
            leaders: 0,
            calm: Duration::from_secs(1),
        };
        let mut soaked = Soak::new(&mut cluster, plan).run(&mut |_| {}).await.unwrap();
        let judgement = soak::judge(&soaked);
        assert!(judgement.is_clean(), "{judgement:#?}");
        assert!(judgement.epochs >= 8 && judgement.base.acknowledged > 20, "{judgement:#?}");
        let (raft, pbft) = (ProtocolName::Raft, ProtocolName::Pbft);
        for (from, to) in [(raft, pbft), (pbft, raft), (raft, raft)] {
            let gaps = soak::gaps(&soaked, from, to);
            assert!(gaps.count >= 3 && gaps.max_ms >= gaps.p50_ms, "{from:?} to {to:?}: {gaps:?}");
        }
        // The same judge, shown a cluster that did not follow, fell over, or served nobody in an epoch.
        soaked.epochs_after[2] = soaked.epochs_before[2] + 7;
        assert!(!soak::judge(&soaked).is_clean(), "one node lags");
        soaked.epochs_after[2] = soaked.epochs_after[0];
        soaked.failovers = 1;
        assert!(!soak::judge(&soaked).is_clean(), "a segment failed without a fault");
        soaked.failovers = 0;
        soaked.switches[3].label = None;
        assert_eq!(soak::judge(&soaked).unproved, 1);
        // Or one whose root carried the data although a segment was open; or nothing to tell by.
        let findings = |soaked: &soak::Soaked| soak::judge(soaked).base.findings.len();
        let before = findings(&soaked);
        assert!(judgement.while_open.judged >= 1, "{judgement:#?}");
        let measured = soaked.stretches.clone();
        soaked.stretches.iter_mut().for_each(|stretch| stretch.root += stretch.positions + 60);
        assert!(findings(&soaked) > before, "{measured:?}");
        soaked.stretches.clear();
        assert!(findings(&soaked) > before, "nothing was measured");
    });
}

#[test]
fn nodes_cut_off_from_each_other_lose_and_double_nothing() {
    let Some(report) = in_namespaces(
        "nodes_cut_off_from_each_other_lose_and_double_nothing",
        "partitions",
        &["--count", "8"],
    ) else {
        return;
    };
    assert_eq!(report["blows"], 8, "{report}");
    // One of the eight leaves two halves for at least 1.5 s, and neither may acknowledge anything.
    assert!(report["longest_gap_ms"].as_u64() >= Some(1000), "{report}");
}

#[test]
fn a_node_with_a_full_disk_says_so_and_comes_back_when_there_is_room() {
    let name = "a_node_with_a_full_disk_says_so_and_comes_back_when_there_is_room";
    let Some(report) = in_namespaces(name, "full", &[]) else { return };
    assert_eq!(report["blows"], 2, "the full disk, and the kill after it: {report}");
}

/// Runs a campaign in namespaces of its own and insists on a clean judgement. `None` where this machine gives none.
fn in_namespaces(test: &str, campaign: &str, args: &[&str]) -> Option<serde_json::Value> {
    if !cluster::network::is_available() {
        let line = format!("SKIPPED(needs-root): cluster {test}");
        println!("{line}");
        if let Some(log) = std::env::var_os("DWCP_SKIP_LOG") {
            let mut log = std::fs::OpenOptions::new().create(true).append(true).open(log).unwrap();
            std::io::Write::write_all(&mut log, format!("{line}\n").as_bytes()).unwrap();
        }
        return None;
    }
    let _alone = alone();
    let ran = std::process::Command::new(PROGRAM)
        .arg(campaign)
        .args(["--json", "--seed", "6", "--clients", "8", "--think-ms", "15"])
        .args(args)
        .output()
        .unwrap();
    let (out, err) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert!(ran.status.success(), "{out}\n{err}");
    let report: serde_json::Value = serde_json::from_str(&out).unwrap();
    for promise in ["lost", "doubled", "stale", "mislabelled"] {
        assert_eq!(report[promise], 0, "{report}");
    }
    assert_eq!((&report["diverged"], &report["linearizable"]), (&false.into(), &true.into()), "{report}");
    assert!(report["acknowledged"].as_u64() > Some(100), "hardly any load: {report}");
    Some(report)
}

#[test]
fn a_whole_cluster_killed_at_once_remembers_everything() {
    let _alone = alone();
    runtime().block_on(async {
        let mut cluster = Cluster::start(4, Options::new(PROGRAM)).unwrap();
        let config = cluster.client_config().unwrap();
        let watch = Watch::start(config.clone()).unwrap();
        watch.all_ready(&mut cluster).await.unwrap();
        let pulse = Pulse::start();
        let mut scribe = Scribe::new(0, &Client::start(config.clone()).unwrap(), &pulse);
        for number in 0..100 {
            let put = Operation::put(format!("unique/{number:03}"), format!("v{number}"));
            assert!(scribe.ask(put).await.is_some(), "put {number} was not acknowledged");
        }
        let before = read_everything(&mut scribe).await.unwrap();
        assert_eq!(before.len(), 100);
        for round in 0..2 {
            assert_eq!(cluster.kill_all(), 4);
            cluster.start_all().unwrap();
            watch.all_ready(&mut cluster).await.unwrap();
            // A fresh client: nothing is remembered but by the disks.
            let fresh = Client::start(config.clone()).unwrap();
            let mut reader = Scribe::new(1 + round, &fresh, &pulse);
            assert_eq!(read_everything(&mut reader).await.unwrap(), before);
        }
        // The old session goes on as well.
        let answer = scribe.ask(Operation::get("unique/042")).await;
        assert!(matches!(answer, Some(Answer::Range { records, .. }) if records[0].value == b"v42"));
    });
}

#[test]
fn a_killed_owner_leaves_no_node_behind() {
    let _alone = alone();
    // A campaign that would run for hours, killed outright.
    let folder = tempfile::tempdir().unwrap();
    let mut owner = std::process::Command::new(PROGRAM)
        .args(["kills", "--count", "100000", "--clients", "1", "--dir"])
        .arg(folder.path())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let began = std::time::Instant::now();
    let nodes = || nodes_below(folder.path());
    while nodes() < 4 {
        assert!(began.elapsed() < cluster::watch::PATIENCE, "the nodes do not start");
        std::thread::sleep(Duration::from_millis(20));
    }
    owner.kill().unwrap();
    owner.wait().unwrap();
    while nodes() > 0 {
        assert!(began.elapsed() < cluster::watch::PATIENCE, "a node outlived its owner");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Processes whose command line names a file below `folder`.
fn nodes_below(folder: &Path) -> usize {
    let needle = folder.join("").to_string_lossy().into_owned();
    let names_it = |entry: std::io::Result<std::fs::DirEntry>| {
        let line = std::fs::read(entry.ok()?.path().join("cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line).into_owned();
        (line.contains(&needle) && line.contains("--with-parent")).then_some(())
    };
    std::fs::read_dir("/proc").map_or(0, |entries| entries.filter_map(names_it).count())
}

#[test]
fn a_node_that_cannot_start_says_why_in_its_last_words() {
    let mut cluster = Cluster::create(1, Options::datacenter(PROGRAM)).unwrap();
    cluster.wipe(0).unwrap();
    cluster.start_all().unwrap();
    let node = &mut cluster.members[0].process;
    let (status, words) = node.wait_for_end(cluster::watch::PATIENCE).expect("it ends by itself");
    assert_eq!(status.code(), Some(1), "{words}");
    assert!(words.contains("dwcp init") || words.contains("member replace"), "{words}");
    assert_eq!(dwcp::child::last_words(node.log_file()), words);
}
