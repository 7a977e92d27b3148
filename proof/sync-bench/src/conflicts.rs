//! Two writers on the same keys at the same time, and a third replica on which their siblings meet: what conflicts
//! cost where they are merged, and where they are read. In each round both write all keys without having seen the
//! other's round, over what both wrote in the round before; so every write but the first settles a conflict and every
//! second one makes one.

use crate::Ask;
use crate::clock::{Spent, rate};
use crate::merge::{OPERATIONS, is_on_disk, rates};
use crate::node::{Disk, Replica};
use crate::report::{Found, Line, figure, line};
use crate::world::{key, now, origin, put_json, resolvers, setups, signatures};
use anyhow::ensure;
use bytes::Bytes;
use dwcp_crdt::{Bundle, Store, Strategy, View};
use dwcp_sync::Message;

const KEYS: u64 = 10_000;
const ROUNDS: u64 = 15;
/// Frames for one sync of the log.
const BURST: usize = 64;

/// Frames in the order in which they come, each with its writer; and where they leave everybody.
struct Written {
    frames: Vec<(u32, Bytes)>,
    writer: Replica,
}

fn write_all(writer: &mut Replica, at_ms: u64, field: char, value: u64) -> Vec<Bytes> {
    let write = |first: u64| {
        let value = u32::try_from(value).expect("a small round");
        let writes: Vec<_> =
            (first..first + OPERATIONS).map(|number| put_json(number, field, value)).collect();
        writer.write(at_ms, &writes)
    };
    (0..KEYS).step_by(usize::try_from(OPERATIONS).expect("small")).map(write).collect()
}

impl Written {
    /// `writers`: 1 or 2. As many updates by one as by two; then one writes over everything.
    fn new(writers: u32, strategy: &Strategy, keyed: bool) -> Self {
        let setups = setups(3, keyed);
        let new = |id: usize| Replica::new(&setups[id], resolvers(strategy.clone()), Disk::Instant);
        let (mut a, mut b) = (new(0), new(1));
        let mut frames = Vec::new();
        for round in 0..ROUNDS {
            let of_a = write_all(&mut a, round, 'a', round);
            let of_b = if writers == 1 {
                write_all(&mut a, round, 'b', round)
            } else {
                write_all(&mut b, round, 'b', round)
            };
            let writer_b = writers - 1;
            for (of_a, of_b) in of_a.iter().zip(&of_b) {
                b.sync.deliver_from_log(now(round), of_a.clone());
                a.sync.deliver_from_log(now(round), of_b.clone());
            }
            // One writer's second half follows all of its first.
            if writers == 1 {
                frames.extend(of_a.into_iter().chain(of_b).map(|frame| (0, frame)));
            } else {
                let pairs = of_a.into_iter().zip(of_b);
                frames.extend(pairs.flat_map(|(of_a, of_b)| [(0, of_a), (writer_b, of_b)]));
            }
            a.run();
            b.run();
        }
        frames.extend(write_all(&mut a, ROUNDS, 'a', ROUNDS).into_iter().map(|frame| (0, frame)));
        Self { frames, writer: a }
    }

    fn updates(&self) -> u64 {
        self.frames.len() as u64 * OPERATIONS
    }
}

pub fn none(ask: &Ask) -> anyhow::Result<Found> {
    conflicts(ask, 1, &Strategy::Merge)
}

pub fn last_writer_wins(ask: &Ask) -> anyhow::Result<Found> {
    conflicts(ask, 2, &Strategy::LastWriterWins)
}

pub fn merge(ask: &Ask) -> anyhow::Result<Found> {
    conflicts(ask, 2, &Strategy::Merge)
}

fn conflicts(ask: &Ask, writers: u32, strategy: &Strategy) -> anyhow::Result<Found> {
    let mut written = Written::new(writers, strategy, ask.keyed);
    let updates = written.updates();
    let met = if writers == 1 { 0 } else { ROUNDS * KEYS };
    let mut lines = vec![mathematics(&mut written, strategy, met)?];
    lines.extend(reads(&written, strategy, met > 0)?);

    let dir = tempfile::tempdir_in(&ask.dir)?;
    let setup = setups(3, ask.keyed).remove(2);
    let mut reader = Replica::with_log(&setup, resolvers(strategy.clone()), dir.path())?;
    let push =
        |(from, frame): &(u32, Bytes)| (*from, Message::Push { hops: 8, frame: frame.clone() }.to_bytes());
    let pushes: Vec<(u32, Bytes)> = written.frames.iter().map(push).collect();
    let ((), spent) = Spent::measured(|| {
        for burst in pushes.chunks(BURST) {
            for (from, push) in burst {
                reader.sync.on_message(now(ROUNDS), origin(*from).id, push);
                reader.run();
            }
            reader.settle();
        }
    });
    ensure!(reader.store.digest() == written.writer.store.digest(), "not all of it arrived");
    ensure!(reader.sync.durable() == reader.sync.last_ticket(), "not all of it is durable");
    ensure!(reader.store.conflicts_open() == 0, "a conflict is left that nobody settled");
    let syncs = reader.log().syncs();
    let mut figures = rates(updates, spent);
    if met > 0 {
        figures.push(figure(rate(met, spent.thread), 0, "conflicts/s met, resolved and settled"));
    }
    figures.push(figure(syncs as f64, 0, "syncs"));
    lines.push(line("merged, signatures and disk on", figures, ""));
    is_on_disk(reader, &setup, dir.path())?;
    let with = format!(
        "the strategy {}; {} and the write-ahead log ({BURST} frames for one fdatasync) in the last line",
        strategy.name(),
        signatures(ask.keyed)
    );
    Ok(Found { with, lines })
}

fn bundle(frame: &Bytes) -> Bundle {
    let received = dwcp_sync::Received::read(frame.clone()).expect("our own frame");
    received.open().expect("our own bundle").bundle().clone()
}

fn mathematics(written: &mut Written, strategy: &Strategy, met: u64) -> anyhow::Result<Line> {
    let bundles: Vec<Bundle> = written.frames.iter().map(|(_, frame)| bundle(frame)).collect();
    let mut store = Store::new(origin(2), resolvers(strategy.clone()));
    let ((), spent) = Spent::measured(|| {
        for bundle in &bundles {
            store.apply(bundle, bundle.hlc().ms()).expect("in order");
        }
    });
    ensure!(store.digest() == written.writer.store.digest(), "not all of it arrived");
    let mut figures = rates(written.updates(), spent);
    if met > 0 {
        figures.push(figure(rate(met, spent.thread), 0, "conflicts/s met, resolved and settled"));
    }
    Ok(line("merged, mathematics alone", figures, ""))
}

/// A resolver runs once more at each read: what a read costs while siblings stand, and after they are settled.
fn reads(written: &Written, strategy: &Strategy, siblings: bool) -> anyhow::Result<Vec<Line>> {
    let mut store = Store::new(origin(2), resolvers(strategy.clone()));
    let settling = usize::try_from(KEYS / OPERATIONS)?;
    let (standing, last) = written.frames.split_at(written.frames.len() - settling);
    let take = |store: &mut Store, frames: &[(u32, Bytes)]| {
        for (_, frame) in frames {
            let bundle = bundle(frame);
            store.apply(&bundle, bundle.hlc().ms()).expect("in order");
        }
    };
    take(&mut store, standing);
    ensure!(store.conflicts_open() == if siblings { KEYS } else { 0 }, "every key is in conflict, or none");
    let is_joined = siblings && matches!(strategy, Strategy::Merge);
    let keys: Vec<String> = (0..KEYS).map(key).collect();
    let read = |store: &Store| {
        Spent::measured(|| {
            let both = |key: &String| match store.get(key.as_bytes()) {
                Some(View::Register(value)) => {
                    value.as_json().is_some_and(|text| text.contains("\"a\"") && text.contains("\"b\""))
                }
                _ => false,
            };
            keys.iter().filter(|key| both(key)).count()
        })
    };
    let (joined, before) = read(&store);
    ensure!(
        joined as u64 == if is_joined { KEYS } else { 0 },
        "the fields of both writers are read, or of one"
    );
    take(&mut store, last);
    let (_, after) = read(&store);
    let each = |spent: Spent| [figure(rate(KEYS, spent.thread), 0, "reads/s of processor")];
    let what = if siblings { "reads while two siblings stand" } else { "reads before the last write" };
    Ok(vec![line(what, each(before), ""), line("reads after the last write", each(after), "")])
}
