//! What a durable write costs on this disk: `cargo run --release -p dwcp-storage --example wal_bench [DIR]`.
//! Compares fdatasync of preallocated and growing files, then group commit through the log.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dwcp_storage::{Disk, RealDisk, Wal, WalSettings};

const ROUNDS: u64 = 2000;
const PAGE: [u8; 4096] = [7; 4096];

fn main() {
    let parent = std::env::args().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = tempfile::tempdir_in(parent).expect("a directory to write in");
    println!("{:<44} {:>8} {:>8} {:>8}", "one 4 KiB page, microseconds", "p50", "p99", "max");
    print_row("fdatasync, growing file", growing(dir.path()));
    print_row("fdatasync, preallocated file", preallocated(dir.path()));
    println!("{:<44} {:>12} {:>12}", "group commit, 256-byte records", "records/s", "syncs/s");
    for group in [1, 8, 64, 512] {
        group_commit(dir.path(), group);
    }
}

fn growing(dir: &Path) -> Vec<Duration> {
    let mut file = File::create(dir.join("growing")).expect("create");
    measure(|_| {
        file.write_all(&PAGE).expect("write");
        file.sync_data().expect("sync");
    })
}

fn preallocated(dir: &Path) -> Vec<Duration> {
    let path = dir.join("preallocated");
    let mut made = RealDisk.create(&path).expect("create");
    made.preallocate(ROUNDS * PAGE.len() as u64).expect("preallocate");
    made.sync_all().expect("sync");
    let file = File::options().write(true).open(&path).expect("open");
    measure(|round| {
        file.write_all_at(&PAGE, round * PAGE.len() as u64).expect("write");
        file.sync_data().expect("sync");
    })
}

fn measure(mut once: impl FnMut(u64)) -> Vec<Duration> {
    let mut times: Vec<Duration> = (0..ROUNDS)
        .map(|round| {
            let start = Instant::now();
            once(round);
            start.elapsed()
        })
        .collect();
    times.sort();
    times
}

fn print_row(name: &str, times: Vec<Duration>) {
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_micros();
    println!("{name:<44} {:>8} {:>8} {:>8}", at(0.5), at(0.99), at(1.0));
}

fn group_commit(dir: &Path, group: u64) {
    let path = dir.join(format!("wal-{group}"));
    let (mut wal, _, _) = Wal::open(&path, WalSettings::default()).expect("open");
    let start = Instant::now();
    let before = wal.sync_count();
    for _ in 0..ROUNDS {
        for _ in 0..group {
            wal.append(&PAGE[..256]).expect("append");
        }
        wal.sync().expect("sync");
        wal.discard_before(wal.durable_lsn()).expect("discard");
    }
    let seconds = start.elapsed().as_secs_f64();
    let syncs = (wal.sync_count() - before) as f64;
    let name = format!("groups of {group}");
    println!("{name:<44} {:>12.0} {:>12.0}", syncs * group as f64 / seconds, syncs / seconds);
}
