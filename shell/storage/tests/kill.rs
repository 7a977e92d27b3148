//! A real process, really killed. The test starts itself as a writer, reads on a pipe what the writer says is
//! durable, kills it at a moment of its choice and reads the log.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use dwcp_storage::{Lsn, Wal, WalSettings};

const DIR_VARIABLE: &str = "DWCP_STORAGE_KILL_DIR";
const SEED_VARIABLE: &str = "DWCP_STORAGE_KILL_SEED";
const TEST_NAME: &str = "no_acknowledged_record_is_lost_to_sigkill";
const KILLS: u64 = 60;

fn settings() -> WalSettings {
    WalSettings { segment_bytes: 64 << 10, ..WalSettings::default() }
}

fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state >> 8
}

/// The record of `lsn` in the life of `seed`, recomputable by the judge.
fn record(seed: u64, lsn: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ lsn.wrapping_mul(0xff51_afd7_ed55_8ccd) | 1;
    let len = 8 + next(&mut state) % 3000;
    let mut bytes = seed.to_le_bytes().to_vec();
    bytes.extend((8..len).map(|_| next(&mut state) as u8));
    bytes
}

/// Appends, syncs and says so until killed.
fn write_until_killed(dir: &Path, seed: u64) {
    let (mut wal, _, _) = Wal::open_existing(dir, settings()).expect("open");
    let mut state = seed | 1;
    let mut out = std::io::stdout().lock();
    loop {
        for _ in 0..1 + next(&mut state) % 8 {
            wal.append(&record(seed, wal.next_lsn().0)).expect("append");
        }
        let first = wal.durable_lsn().0;
        let end = wal.sync().expect("sync").0;
        // One write call per line: a killed writer leaves at most one line unfinished.
        out.write_all(format!("acknowledged {first} {end}\n").as_bytes()).expect("pipe");
        out.flush().expect("pipe");
        if next(&mut state).is_multiple_of(16) {
            let floor = end.saturating_sub(200);
            out.write_all(format!("discard {floor}\n").as_bytes()).expect("pipe");
            out.flush().expect("pipe");
            wal.discard_before(Lsn(floor)).expect("discard");
        }
    }
}

#[test]
fn no_acknowledged_record_is_lost_to_sigkill() {
    if let (Ok(dir), Ok(seed)) = (std::env::var(DIR_VARIABLE), std::env::var(SEED_VARIABLE)) {
        write_until_killed(Path::new(&dir), seed.parse().expect("a number"));
        return;
    }
    let dir = tempfile::tempdir().expect("temporary directory");
    drop(Wal::open(dir.path(), settings()).expect("begin"));
    let mut state = 0x5eed_u64;
    // Which life wrote the acknowledged record of each number.
    let mut acknowledged: BTreeMap<u64, u64> = BTreeMap::new();
    let mut discarded_before = 0;
    let mut total = 0;
    for seed in 1..=KILLS {
        let mut child = Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", TEST_NAME, "--nocapture"])
            .env(DIR_VARIABLE, dir.path())
            .env(SEED_VARIABLE, seed.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start");
        let mut lines = BufReader::new(child.stdout.take().expect("piped"));
        let mut line = String::new();
        let mut left = next(&mut state) % 60;
        let mut killed = false;
        loop {
            if left == 0 && !killed {
                child.kill().expect("kill");
                killed = true;
            }
            line.clear();
            // What it said before it died counts, also when read after the kill.
            if lines.read_line(&mut line).expect("read") == 0 {
                break;
            }
            left = left.saturating_sub(1);
            let Some(words) = line.strip_suffix('\n') else { continue };
            let words: Vec<&str> = words.split(' ').collect();
            let number = |at: usize| words[at].parse::<u64>().expect("a number");
            match words[0] {
                "acknowledged" => {
                    acknowledged.extend((number(1)..number(2)).map(|lsn| (lsn, seed)));
                    total += number(2) - number(1);
                }
                "discard" => discarded_before = discarded_before.max(number(1)),
                _ => {}
            }
        }
        child.wait().expect("wait");
        assert!(killed, "the writer of life {seed} stopped by itself");

        let (wal, records, warnings) = Wal::open_existing(dir.path(), settings()).expect("no damage");
        let found: BTreeMap<u64, Vec<u8>> = records.into_iter().map(|r| (r.lsn.0, r.bytes)).collect();
        assert!(wal.first_lsn().0 <= discarded_before.max(1), "more was discarded than asked for");
        acknowledged.retain(|&lsn, _| lsn >= discarded_before);
        for (&lsn, &life) in &acknowledged {
            let bytes = found.get(&lsn);
            assert!(bytes.is_some(), "life {seed}: record {lsn} is lost ({warnings:?})");
            assert!(bytes == Some(&record(life, lsn)), "life {seed}: record {lsn} is altered");
        }
    }
    assert!(total > 1000, "only {total} records were acknowledged");
}
