//! Updates of small registers per second on a second replica, in frames of 1,000 operations: the mathematics alone,
//! and step by step all that a node does for them, down to a file that is synced.

use crate::Ask;
use crate::clock::{Spent, rate};
use crate::node::{Disk, Replica};
use crate::report::{Figure, Found, figure, line};
use crate::world::{now, origin, put, resolvers, setups, signatures};
use anyhow::{Context, ensure};
use bytes::Bytes;
use dwcp_crdt::{Bundle, Resolvers, Store, Strategy};
use dwcp_sync::Message;
use std::path::Path;
use std::time::Duration;

const FRAMES: u64 = 300;
/// Enough for the log to go on to its next file, which is made ready beside the work.
const FRAMES_LONG: u64 = 3_000;
pub const OPERATIONS: u64 = 1_000;
const KEYS: u64 = 100_000;
/// A burst of the node ends at these bytes or at 4,096 messages: `shell/node/src/inbox.rs`.
const BURST_BYTES_MAX: usize = 16 << 20;
const BURST: usize = 64;

pub const AIM: &str = "1,000,000";

/// A writer and what it wrote.
#[derive(Debug)]
struct Written {
    writer: Replica,
    frames: Vec<Bytes>,
}

impl Written {
    fn new(frames: u64, keyed: bool) -> Self {
        let mut writer = Replica::new(&setups(2, keyed)[0], merging(), Disk::Instant);
        let write = |frame: u64| {
            let key = |n: u64| (frame * OPERATIONS + n).wrapping_mul(0x9e37_79b9_7f4a_7c15) % KEYS;
            let writes: Vec<_> = (0..OPERATIONS).map(|n| put(key(n), n)).collect();
            writer.write(frame, &writes)
        };
        let frames = (0..frames).map(write).collect();
        writer.outbox.clear();
        Self { writer, frames }
    }

    fn updates(&self) -> u64 {
        self.frames.len() as u64 * OPERATIONS
    }

    fn bundles(&self) -> Vec<Bundle> {
        self.frames.iter().map(read).collect()
    }

    /// As they come over a link.
    fn pushes(&self) -> Vec<Bytes> {
        let push = |frame: &Bytes| Message::Push { hops: 8, frame: frame.clone() }.to_bytes();
        self.frames.iter().map(push).collect()
    }

    fn is_in(&mut self, store: &mut Store) -> anyhow::Result<()> {
        ensure!(self.writer.store.digest() == store.digest(), "not all of it arrived");
        Ok(())
    }
}

fn merging() -> Resolvers {
    resolvers(Strategy::Merge)
}

fn read(frame: &Bytes) -> Bundle {
    let received = dwcp_sync::Received::read(frame.clone()).expect("our own frame");
    received.open().expect("our own bundle").bundle().clone()
}

/// So many updates a second of this thread's processor, and by the wall.
pub fn rates(updates: u64, spent: Spent) -> Vec<Figure> {
    vec![
        figure(rate(updates, spent.thread), 0, "updates/s of processor"),
        figure(rate(updates, spent.wall), 0, "by the wall"),
    ]
}

fn apply_all(store: &mut Store, bundles: &[Bundle]) {
    for bundle in bundles {
        store.apply(bundle, bundle.hlc().ms()).expect("in order");
    }
}

pub fn wire(ask: &Ask) -> anyhow::Result<Found> {
    let written = Written::new(FRAMES, ask.keyed);
    let bytes: usize = written.frames.iter().map(Bytes::len).sum();
    let each = figure(bytes as f64 / written.updates() as f64, 1, "B an update");
    let lines = vec![line("key and value of 16 B each", [each], "45 B")];
    Ok(Found { with: signatures(ask.keyed).to_string(), lines })
}

/// Bundles that are read already are joined into the state.
pub fn math(ask: &Ask) -> anyhow::Result<Found> {
    let mut written = Written::new(FRAMES, ask.keyed);
    let bundles = written.bundles();
    let mut store = Store::new(origin(1), merging());
    let ((), spent) = Spent::measured(|| apply_all(&mut store, &bundles));
    written.is_in(&mut store)?;
    let lines = vec![line("merged", rates(written.updates(), spent), AIM)];
    Ok(Found { with: "nothing but a resolver: no bytes, no signatures, no disk".to_string(), lines })
}

pub fn reading(ask: &Ask) -> anyhow::Result<Found> {
    let mut written = Written::new(FRAMES, ask.keyed);
    let mut store = Store::new(origin(1), merging());
    let ((), spent) = Spent::measured(|| {
        for frame in &written.frames {
            let bundle = read(frame);
            store.apply(&bundle, bundle.hlc().ms()).expect("in order");
        }
    });
    written.is_in(&mut store)?;
    let lines = vec![line("merged", rates(written.updates(), spent), "")];
    Ok(Found { with: "a resolver; the bytes are read; no signatures, no disk".to_string(), lines })
}

/// What it costs that a strategy is set where no two writes are concurrent: mathematics alone with and without, in
/// turns.
pub fn resolver(ask: &Ask) -> anyhow::Result<Found> {
    const ROUNDS: usize = 9;
    let mut written = Written::new(FRAMES, ask.keyed);
    let bundles = written.bundles();
    let mut all = [Spent::default(); 2];
    let mut ratios = Vec::with_capacity(ROUNDS);
    for round in 0..ROUNDS {
        let mut times = [0.0; 2];
        // Who goes first changes.
        for side in [round % 2, (round + 1) % 2] {
            let resolvers = if side == 0 { Resolvers::default() } else { merging() };
            let mut store = Store::new(origin(1), resolvers);
            let ((), spent) = Spent::measured(|| apply_all(&mut store, &bundles));
            all[side].add(spent);
            times[side] = spent.thread.as_secs_f64();
            written.is_in(&mut store)?;
        }
        ratios.push(100.0 * (times[1] / times[0] - 1.0));
    }
    ratios.sort_by(f64::total_cmp);
    let updates = written.updates() * ROUNDS as u64;
    let lines = vec![
        line("no strategy set", rates(updates, all[0]), ""),
        line("strategies for two prefixes", rates(updates, all[1]), ""),
        line(
            "what they cost, of nine rounds in turns",
            [
                figure(ratios[ROUNDS / 2], 1, "% the median"),
                figure(ratios[0], 1, "% the least"),
                figure(ratios[ROUNDS - 1], 1, "% the most"),
            ],
            "",
        ),
    ];
    Ok(Found { with: "no bytes, no signatures, no disk; no concurrent writes".to_string(), lines })
}

/// Everything but the disk: links, hash chains, signatures, records.
pub fn signed(ask: &Ask) -> anyhow::Result<Found> {
    let mut written = Written::new(FRAMES, ask.keyed);
    let mut reader = Replica::new(&setups(2, ask.keyed)[1], merging(), Disk::Instant);
    let pushes = written.pushes();
    let ((), spent) = Spent::measured(|| reader.take_burst(FRAMES, 0, &pushes));
    written.is_in(&mut reader.store)?;
    let with = format!("{}, a resolver; records are made and go nowhere", signatures(ask.keyed));
    Ok(Found { with, lines: vec![line("merged", rates(written.updates(), spent), AIM)] })
}

/// How many messages one sync is for.
#[derive(Clone, Copy, Debug)]
enum Bursts {
    Of(usize),
    /// As many as the node takes when as many wait.
    Whole,
}

pub fn disk(ask: &Ask) -> anyhow::Result<Found> {
    durable(ask, FRAMES, Bursts::Of(BURST))
}

pub fn disk_one(ask: &Ask) -> anyhow::Result<Found> {
    durable(ask, FRAMES, Bursts::Of(1))
}

pub fn disk_long(ask: &Ask) -> anyhow::Result<Found> {
    durable(ask, FRAMES_LONG, Bursts::Whole)
}

fn durable(ask: &Ask, frames: u64, bursts: Bursts) -> anyhow::Result<Found> {
    let dir = tempfile::tempdir_in(&ask.dir)?;
    let mut written = Written::new(frames, ask.keyed);
    let setup = setups(2, ask.keyed).remove(1);
    let mut reader = Replica::with_log(&setup, merging(), dir.path())?;
    let pushes = written.pushes();
    let count = match bursts {
        Bursts::Of(count) => count,
        Bursts::Whole => BURST_BYTES_MAX.div_ceil(pushes[0].len()),
    };
    let (acked, spent) = Spent::measured(|| {
        for burst in pushes.chunks(count) {
            reader.take_burst(frames, 0, burst);
        }
        acknowledge(&mut written.writer, &mut reader, frames)
    });
    let all = written.updates();
    ensure!(acked == all, "{acked} of {all} updates were acknowledged");
    written.is_in(&mut reader.store)?;
    let log = reader.log();
    let (syncs, sync, longest) = (log.syncs(), log.sync, log.longest);
    is_on_disk(reader, &setup, dir.path())?;
    let helpers = spent.process.saturating_sub(spent.thread);
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let lines = vec![
        line("merged, durable and acknowledged", rates(all, spent), AIM),
        line("beside it, files made ready for the log", [figure(ms(helpers), 0, "ms of processor")], ""),
        line(
            "syncs of the log",
            [
                figure(syncs as f64, 0, "syncs"),
                figure(ms(sync.wall) / syncs as f64, 2, "ms each"),
                figure(ms(longest), 1, "ms the longest"),
                figure(100.0 * sync.wall.as_secs_f64() / spent.wall.as_secs_f64(), 0, "% of the wall"),
                figure(100.0 * sync.thread.as_secs_f64() / spent.thread.as_secs_f64(), 0, "% of processor"),
            ],
            "",
        ),
    ];
    let with = format!(
        "{}, a resolver, the write-ahead log on a file, {count} frames for one fdatasync",
        signatures(ask.keyed)
    );
    Ok(Found { with, lines })
}

/// The writer asks, and hears how far the reader has everything durably and in its state.
pub fn acknowledge(writer: &mut Replica, reader: &mut Replica, at_ms: u64) -> u64 {
    let reader_id = reader.sync.me().id.0;
    writer.sync.ask_everybody(now(at_ms));
    writer.run();
    for (_, question) in writer.outbox.drain(..).filter(|(to, _)| *to == reader_id) {
        reader.sync.on_message(now(at_ms), writer.sync.me().id, &question);
    }
    reader.run();
    for (_, answer) in reader.outbox.drain(..) {
        writer.sync.on_message(now(at_ms), reader.sync.me().id, &answer);
    }
    writer.run();
    let last = writer.store.applied().last(writer.sync.me());
    if writer.sync.acked_by(last) == 1 { last } else { 0 }
}

/// What was acknowledged is there when the log is read again, as after a crash: without being closed.
pub fn is_on_disk(mut replica: Replica, setup: &dwcp_sync::Setup, dir: &Path) -> anyhow::Result<()> {
    let digest = replica.store.digest();
    drop(replica);
    let mut again = Replica::restart(setup, merging(), dir).context("reading the log again")?;
    ensure!(again.store.digest() == digest, "the log held something else than was acknowledged");
    Ok(())
}
