//! Memory, by the resident set of this process, in which nothing else has been done: of the store alone, and of a
//! replica with all of state sync and its log, which takes the frames of a writer in another process, so that nobody
//! else's memory is counted. What is freed stays part of the resident set where the allocator keeps it; what is
//! really left shows after a restart, which is another process once more.

use crate::Ask;
use crate::node::Replica;
use crate::report::{Figure, Found, Line, figure, line};
use crate::world::{
    MILLION, NOON_MS, put, resident_bytes, resident_bytes_most, resolvers, setups, signatures,
};
use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use dwcp_crdt::{Store, Strategy, Write};
use dwcp_sync::Message;
use std::io::{Read, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

const FEW: u64 = 10_000;
const OPERATIONS: u64 = 1_000;
/// Frames for one sync of the log.
const BURST: usize = 64;

/// What is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Load {
    /// A million keys, each once.
    Keys,
    /// A million updates of ten thousand keys.
    Updates,
}

impl Load {
    const fn word(self) -> &'static str {
        match self {
            Self::Keys => "keys",
            Self::Updates => "updates",
        }
    }

    fn of(word: &str) -> Option<Self> {
        [Self::Keys, Self::Updates].into_iter().find(|load| load.word() == word)
    }

    fn writes(self) -> impl Iterator<Item = Vec<Write>> {
        let keys = if self == Self::Keys { MILLION } else { FEW };
        (0..MILLION)
            .step_by(usize::try_from(OPERATIONS).expect("small"))
            .map(move |first| (first..first + OPERATIONS).map(|n| put(n % keys, n)).collect())
    }

    /// What has grown, in the unit of this load's aim.
    fn grown(self, bytes: u64) -> Figure {
        match self {
            Self::Keys => figure(bytes as f64 / MILLION as f64, 1, "B a key"),
            Self::Updates => figure(bytes as f64 / 1e6, 1, "MB"),
        }
    }

    const fn aim(self) -> &'static str {
        match self {
            Self::Keys => "400 B",
            Self::Updates => "10 MB",
        }
    }
}

fn grown(load: Load, before: u64) -> Figure {
    load.grown(resident_bytes().saturating_sub(before))
}

pub fn store(_: &Ask) -> anyhow::Result<Found> {
    Ok(store_alone(Load::Keys, true))
}

pub fn store_late(_: &Ask) -> anyhow::Result<Found> {
    Ok(store_alone(Load::Keys, false))
}

pub fn updates(_: &Ask) -> anyhow::Result<Found> {
    Ok(store_alone(Load::Updates, true))
}

/// A store lists the keys that changed since its digest was last asked for. `often`: it is asked for after every frame.
fn store_alone(load: Load, often: bool) -> Found {
    let before = resident_bytes();
    let mut store = Store::new(dwcp_crdt::Origin::new(0, 0), resolvers(Strategy::Merge));
    for (at_ms, writes) in (0..).zip(load.writes()) {
        store.write(&writes, 0, NOON_MS + at_ms).expect("a good write");
        if often {
            store.digest();
        }
    }
    let mut lines = vec![line("resident", [grown(load, before)], load.aim())];
    if !often {
        store.digest();
        lines.push(line("and after its digest was asked for", [grown(load, before)], load.aim()));
    }
    let snapshot: usize = store.snapshot_parts(crate::log::PART_BYTES).iter().map(Vec::len).sum();
    lines.push(line("the same as a snapshot", [load.grown(snapshot as u64)], ""));
    let asked =
        if often { "its digest is asked for after every frame" } else { "nobody asks for its digest" };
    Found { with: format!("a store alone: no frames, no signatures, no disk; a resolver; {asked}"), lines }
}

pub fn sync(ask: &Ask) -> anyhow::Result<Found> {
    with_sync(ask, Load::Keys)
}

pub fn updates_sync(ask: &Ask) -> anyhow::Result<Found> {
    with_sync(ask, Load::Updates)
}

/// This program again, in a process of its own, to write or to restart.
fn again(ask: &Ask, words: &[&str]) -> anyhow::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(words).stdin(Stdio::null()).stdout(Stdio::piped());
    if ask.keyed {
        command.arg("--keyed");
    }
    Ok(command)
}

fn with_sync(ask: &Ask, load: Load) -> anyhow::Result<Found> {
    let dir = tempfile::tempdir_in(&ask.dir)?;
    let setup = setups(2, ask.keyed).remove(1);
    let mut feed = again(ask, &["--feed", load.word()])?.spawn()?;
    let mut frames = feed.stdout.take().context("what it writes comes by a pipe")?;

    let before = resident_bytes();
    let mut replica = Replica::with_log(&setup, resolvers(Strategy::Merge), dir.path())?;
    let mut burst = Vec::with_capacity(BURST);
    while let Some(push) = next(&mut frames)? {
        burst.push(push);
        if burst.len() == BURST {
            replica.take_burst(MILLION, 0, &std::mem::take(&mut burst));
        }
    }
    replica.take_burst(MILLION, 0, &std::mem::take(&mut burst));
    ensure!(feed.wait()?.success(), "whoever writes failed");
    ensure!(replica.store.applied().last(crate::world::origin(0)) == MILLION, "not all of it came");

    let kept = |replica: &Replica| load.grown(replica.sync.log_bytes() as u64);
    let disk = |replica: &mut Replica| load.grown(replica.log().bytes_used());
    let mut lines = vec![line("resident before its digest was asked for", [grown(load, before)], "")];
    let digest = replica.store.digest();
    let state = |what: &str, replica: &mut Replica, aim| -> Line {
        let mut figures = vec![grown(load, before), kept(replica), disk(replica)];
        (figures[1].unit, figures[2].unit) = match load {
            Load::Keys => ("B a key of frames kept for peers", "B a key in use on disk"),
            Load::Updates => ("MB of frames kept for peers", "MB in use on disk"),
        };
        line(what, figures, aim)
    };
    lines.push(state("resident, no floor yet: all frames are kept", &mut replica, load.aim()));
    let saved = replica.collect(2);
    ensure!(replica.sync.log_bytes() == 0, "a frame is kept that everybody has");
    lines.push(state("after a floor was collected and the store saved", &mut replica, load.aim()));
    lines.push(line("the store as saved", [load.grown(saved as u64)], ""));
    let most = resident_bytes_most().saturating_sub(before);
    lines.push(line("the most that was resident, while it was saved", [load.grown(most)], ""));
    drop(replica);
    let after = restarted(ask, dir.path(), &format!("{digest:?}"))?;
    let what = "after a restart, large blocks given back";
    lines.push(line(what, [load.grown(after)], load.aim()));
    let with = format!(
        "{}, a resolver, the write-ahead log on a file, {BURST} frames for one fdatasync",
        signatures(ask.keyed)
    );
    Ok(Found { with, lines })
}

fn next(from: &mut impl Read) -> anyhow::Result<Option<Bytes>> {
    let mut length = [0; 4];
    match from.read_exact(&mut length) {
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let mut bytes = vec![0; u32::from_le_bytes(length) as usize];
    from.read_exact(&mut bytes)?;
    Ok(Some(Bytes::from(bytes)))
}

/// The other process that writes: pushes on the standard output, each behind its length.
pub fn feed(word: &str, keyed: bool) -> anyhow::Result<()> {
    let Some(load) = Load::of(word) else { bail!("there is no load {word}") };
    let setup = setups(2, keyed).remove(0);
    let mut writer = Replica::new(&setup, resolvers(Strategy::Merge), crate::node::Disk::Instant);
    let mut out = std::io::stdout().lock();
    for (at_ms, writes) in (0..).zip(load.writes()) {
        let push = Message::Push { hops: 8, frame: writer.write(at_ms, &writes) }.to_bytes();
        writer.outbox.clear();
        out.write_all(&u32::try_from(push.len())?.to_le_bytes())?;
        out.write_all(&push)?;
    }
    Ok(())
}

/// What is resident in a process that has just read this log. Blocks as large as a frame go back to the system there
/// as soon as they are freed, so that what was only read is not counted.
fn restarted(ask: &Ask, dir: &Path, digest: &str) -> anyhow::Result<u64> {
    let dir = dir.to_str().context("a folder that can be named")?;
    let mut command = again(ask, &["--restart", dir])?;
    command.env("MALLOC_MMAP_THRESHOLD_", "16384").stderr(Stdio::inherit());
    let output = command.output()?;
    ensure!(output.status.success(), "the log cannot be read again");
    let text = String::from_utf8(output.stdout)?;
    let mut words = text.split_whitespace();
    let (bytes, found) = (words.next().context("bytes")?, words.next().context("a digest")?);
    ensure!(found == digest, "another store was read from the log than was saved");
    Ok(bytes.parse()?)
}

/// The other process that restarts: says what is resident, and the digest of its store.
pub fn restart(dir: &str, keyed: bool) -> anyhow::Result<()> {
    let setup = setups(2, keyed).remove(1);
    let before = resident_bytes();
    let mut replica = Replica::restart(&setup, resolvers(Strategy::Merge), Path::new(dir))?;
    let digest = replica.store.digest();
    println!("{} {digest:?}", resident_bytes().saturating_sub(before));
    Ok(())
}
