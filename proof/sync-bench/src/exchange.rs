//! A million keys on both sides, 100 written on one of them afterwards: what one exchange costs beside the keys and
//! values themselves, when they were written one by one and when they were written at once.

use crate::Ask;
use crate::clock::Spent;
use crate::node::Replica;
use crate::report::{Found, Line, figure, line};
use crate::world::{MILLION, now, origin, put, resolvers, setups, signatures};
use anyhow::ensure;
use bytes::Bytes;
use dwcp_crdt::Strategy;
use dwcp_sync::{Message, Received};

const NEW: u64 = 100;
/// Bytes of a key and a value.
const PAYLOAD: u64 = 32;
/// Frames for one sync of the log.
const BURST: u64 = 64;

pub fn exchange(ask: &Ask) -> anyhow::Result<Found> {
    let dirs = [tempfile::tempdir_in(&ask.dir)?, tempfile::tempdir_in(&ask.dir)?];
    let setups = setups(2, ask.keyed);
    let new = |id: usize| Replica::with_log(&setups[id], resolvers(Strategy::Merge), dirs[id].path());
    let mut replicas = [new(0)?, new(1)?];
    let mut at_ms = 0;
    for first in (0..MILLION).step_by(1_000) {
        let writes: Vec<_> = (first..first + 1_000).map(|key| put(key, key)).collect();
        let [a, b] = &mut replicas;
        let frame = a.write(at_ms, &writes);
        at_ms += 1;
        b.sync.deliver_from_log(now(at_ms), frame);
        b.run();
        if at_ms.is_multiple_of(BURST) {
            replicas.iter_mut().for_each(Replica::settle);
        }
        // Else a million names of changed keys would be given back to the allocator in the midst of what is measured.
        replicas.iter_mut().for_each(|replica| {
            replica.store.digest();
        });
    }
    replicas.iter_mut().for_each(Replica::settle);
    let mut lines = Vec::new();
    for (at_once, what) in [(1, "100 frames of one key each"), (NEW, "one frame of 100 keys")] {
        at_ms += 10_000;
        for first in (0..NEW).step_by(usize::try_from(at_once)?) {
            let writes: Vec<_> = (first..first + at_once).map(|n| put(n * 9_973, n + at_once)).collect();
            replicas[0].write(at_ms, &writes);
        }
        replicas[0].settle();
        lines.extend(one(&mut replicas, at_ms + 10_000, what)?);
    }
    let with = format!("{}, a resolver, the write-ahead logs of both on files", signatures(ask.keyed));
    Ok(Found { with, lines })
}

/// One exchange, begun by the side that lacks something.
fn one(replicas: &mut [Replica; 2], at_ms: u64, what: &str) -> anyhow::Result<Vec<Line>> {
    // Pushes are lost.
    replicas.iter_mut().for_each(|replica| replica.outbox.clear());
    let mut heard: Vec<Bytes> = Vec::new();
    let ((), spent) = Spent::measured(|| {
        replicas[1].sync.ask_everybody(now(at_ms));
        replicas[1].run();
        let mut from = 1;
        loop {
            let said: Vec<(u32, Bytes)> = replicas[from].outbox.drain(..).collect();
            if said.is_empty() {
                return;
            }
            let to = 1 - from;
            for (_, message) in said {
                replicas[to].sync.on_message(now(at_ms), origin(from as u32).id, &message);
                replicas[to].run();
                heard.push(message);
            }
            replicas[to].settle();
            from = to;
        }
    });
    let [a, b] = replicas;
    ensure!(a.store.digest() == b.store.digest(), "one exchange was enough");
    let bytes: usize = heard.iter().map(Bytes::len).sum();
    let (mut frames, mut count, mut headers) = (0, 0, 0);
    for message in &heard {
        let (Message::Answer { load, .. } | Message::Rest { load }) = Message::read(message)? else {
            continue;
        };
        for frame in load.frames {
            (frames, count) = (frames + frame.len(), count + 1);
            headers += frame.len() - Received::read(frame.clone())?.open()?.bundle().encode().len();
        }
    }
    let payload = NEW * PAYLOAD;
    let beside = frames as u64 - payload;
    let before = (bytes - frames) as u64;
    Ok(vec![
        line(
            format!("{what}: before the frames"),
            [figure(before as f64, 0, "B"), figure(heard.len() as f64, 0, "messages (2 are one round trip)")],
            "4 KB before payload, 2 round trips",
        ),
        line(
            "  of the frames what is no key and no value",
            [
                figure(beside as f64, 0, "B"),
                figure(f64::from(count), 0, "frames"),
                figure(headers as f64, 0, "B of it headers with signatures"),
                figure(payload as f64, 0, "B of keys and values"),
            ],
            "",
        ),
        line("  both", [figure((before + beside) as f64, 0, "B")], "4 KB before payload"),
        line("  processor of both sides", [figure(spent.thread.as_secs_f64() * 1e3, 2, "ms")], ""),
    ])
}
