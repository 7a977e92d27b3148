//! Bytes: of an exchange over a million keys, and of memory.

use crate::{Replica, now, put, resident_bytes, setups};
use dwcp_crdt::{Resolvers, Store};
use dwcp_sync::Message;

const MILLION: u64 = 1_000_000;

/// A million keys on both sides, 100 written on one of them afterwards.
pub fn exchange() {
    let setups = setups(2, false);
    let (mut a, mut b) = (Replica::new(&setups[0]), Replica::new(&setups[1]));
    let mut at_ms = 0;
    for first in (0..MILLION).step_by(1_000) {
        let writes: Vec<_> = (first..first + 1_000).map(|key| put(key, key)).collect();
        let frame = a.write(at_ms, &writes);
        at_ms += 1;
        b.sync.deliver_from_log(now(at_ms), frame);
        b.run();
    }
    let new: usize = (0..100).map(|n| a.write(at_ms, &[put(n * 9_973, n)]).len()).sum();
    a.outbox.clear();
    b.outbox.clear();
    let (mut messages, mut bytes, mut frames) = (0, 0, 0);
    b.sync.on_time(now(at_ms + 10_000));
    b.run();
    let mut replicas = [a, b];
    loop {
        let said: Vec<(usize, u32, bytes::Bytes)> = (0..2)
            .flat_map(|from| {
                replicas[from]
                    .outbox
                    .drain(..)
                    .map(move |(to, message)| (from, to, message))
                    .collect::<Vec<_>>()
            })
            .collect();
        if said.is_empty() {
            break;
        }
        for (from, to, message) in said {
            messages += 1;
            bytes += message.len();
            if let Ok(Message::Answer { load, .. } | Message::Rest { load }) = Message::read(&message) {
                frames += load.frames.iter().map(bytes::Bytes::len).sum::<usize>();
            }
            let to = to as usize;
            replicas[to].sync.on_message(now(at_ms + 10_000), crate::origin(from as u32).id, &message);
            replicas[to].run();
        }
    }
    let [a, b] = &mut replicas;
    assert_eq!(a.store.digest(), b.store.digest(), "one exchange was enough");
    println!(
        "exchange, 10^6 keys      {:>12} B before the frames, {messages} messages (2 are one round trip); 100 frames of one key each: {frames} B ({new} B written)",
        bytes - frames
    );
}

pub fn memory() {
    // The smaller one first: what is freed stays part of the resident set.
    let before = resident_bytes();
    let mut store = Store::new(crate::origin(0), Resolvers::default());
    for round in 0..1_000 {
        let writes: Vec<_> = (0..1_000).map(|n| put((round * 1_000 + n) % 10_000, round)).collect();
        store.write(&writes, 0, crate::NOON_MS + round).expect("a good write");
        store.digest();
    }
    let snapshot = store.snapshot_piece(None, usize::MAX).bytes.len();
    println!(
        "10^6 updates, 10^4 keys  {:>12.1} MB as a snapshot; the resident set grew by {:.1} MB",
        snapshot as f64 / 1e6,
        resident_bytes().saturating_sub(before) as f64 / 1e6
    );
    drop(store);

    let before = resident_bytes();
    let mut store = Store::new(crate::origin(0), Resolvers::default());
    for first in (0..MILLION).step_by(1_000) {
        let writes: Vec<_> = (first..first + 1_000).map(|key| put(key, key)).collect();
        store.write(&writes, 0, crate::NOON_MS).expect("a good write");
        store.digest();
    }
    let each = (resident_bytes() - before) / MILLION;
    println!("memory per small key     {each:>12} B, 10^6 registers with keys and values of 16 B");
}
