//! Updates of small registers per second on a second replica, in frames of 1,000 operations.

use crate::{Replica, now, put, setups};
use bytes::Bytes;
use dwcp_crdt::{Bundle, Resolvers, Store};
use dwcp_sync::Message;
use std::time::{Duration, Instant};

const FRAMES: u64 = 300;
const OPERATIONS: u64 = 1_000;
const KEYS: u64 = 100_000;

pub fn merge() {
    let updates = (FRAMES * OPERATIONS) as f64;
    let setups = setups(2, true);
    let mut writer = Replica::new(&setups[0]);
    let mut frames: Vec<Bytes> = Vec::new();
    for frame in 0..FRAMES {
        let key = |n: u64| (frame * OPERATIONS + n).wrapping_mul(0x9e37_79b9_7f4a_7c15) % KEYS;
        let writes: Vec<_> = (0..OPERATIONS).map(|n| put(key(n), n)).collect();
        frames.push(writer.write(frame, &writes));
    }
    let bytes: usize = frames.iter().map(Bytes::len).sum();
    println!(
        "on the wire              {:>12.1} B per update, key and value 16 B each",
        bytes as f64 / updates
    );

    // Mathematics alone: bundles that are read already are joined into the state.
    let bundles: Vec<Bundle> = frames.iter().map(read).collect();
    let mut store = Store::new(crate::origin(1), Resolvers::default());
    let begun = Clock::now();
    for bundle in &bundles {
        store.apply(bundle, bundle.hlc().ms()).expect("in order");
    }
    rate("mathematics alone", updates, begun);
    drop(bundles);

    let mut store = Store::new(crate::origin(1), Resolvers::default());
    let begun = Clock::now();
    for frame in &frames {
        let bundle = read(frame);
        store.apply(&bundle, bundle.hlc().ms()).expect("in order");
    }
    rate("and reading the bytes", updates, begun);

    // Everything but the disk's own time: links, hash chains, Ed25519, records.
    let mut reader = Replica::new(&setups[1]);
    let pushes: Vec<Bytes> =
        frames.into_iter().map(|frame| Message::Push { hops: 8, frame }.to_bytes()).collect();
    let begun = Clock::now();
    for push in &pushes {
        reader.sync.on_message(now(FRAMES), crate::origin(0).id, push);
        reader.run();
    }
    rate("and signatures, records", updates, begun);
    assert_eq!(reader.store.digest(), writer.store.digest(), "all of it arrived");
}

fn read(frame: &Bytes) -> Bundle {
    let received = dwcp_sync::Received::read(frame.clone()).expect("our own frame");
    received.open().expect("our own bundle").bundle().clone()
}

fn rate(what: &str, updates: f64, begun: Clock) {
    println!(
        "{what:<24} {:>12.0} updates/s merged on a second replica",
        updates / begun.elapsed().as_secs_f64()
    );
}

/// The processor's time of this thread, where the system tells: other work on the machine has no part in it then.
struct Clock {
    wall: Instant,
    processor: Option<Duration>,
}

impl Clock {
    fn now() -> Self {
        let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
        let nanos = text.split(' ').next().and_then(|field| field.parse().ok());
        Self { wall: Instant::now(), processor: nanos.map(Duration::from_nanos) }
    }

    fn elapsed(&self) -> Duration {
        match (self.processor, Self::now().processor) {
            (Some(then), Some(now)) => now - then,
            _ => self.wall.elapsed(),
        }
    }
}
