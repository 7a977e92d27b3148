//! Parts of the virtual log measured apart, on the very bytes that the bare side sent, wrote and agreed on. In a loop that
//! does nothing else a part runs with warm caches, so these are lower bounds of what it costs in place.

use crate::clock::{median, took};
use crate::rounds::Sides;
use crate::world::{NODES, Node, Seen, World};
use bytes::Bytes;
use dwcp_base::{Epoch, encode};
use dwcp_log::VirtualLog;
use dwcp_raft::{Entry, Kind, Payload};
use dwcp_replica::{LogRecord, PeerMessage};
use std::hint::black_box;
use std::time::Duration;

const TIMES: usize = 9;

/// Microseconds an operation, all three nodes together.
#[derive(Clone, Copy, Debug, Default)]
pub struct Parts {
    /// Once at every node: what its Raft log does with an entry that it takes, and its execution once more.
    pub chain: f64,
    /// Each message between members of the segment put into one between replicas, and taken out again.
    pub messages: f64,
    /// Each record of the segment put into one of the node's log.
    pub records: f64,
    /// Whether a certificate covers a reply's position.
    pub labels: f64,
    /// Steps in which nothing is to be done: a whole replica's less a bare node's. Root and segment are asked for what they
    /// want each time.
    pub polls: f64,
    /// Not a part of the layer: hashes by which a replica's pool knows frames.
    pub pool_hashes: f64,
}

/// How often a replica hashes a frame for its pool: twice where it arrives, once where it is executed.
const POOL_HASHES: u32 = 2 + NODES as u32;

pub fn measure(sides: &mut Sides, steps_per_operation: f64) -> anyhow::Result<Parts> {
    let operations = sides.load.operations_of_a_round() as f64;
    let (seen, entries) = whole_round(sides)?;
    let per_operation = |work: &mut dyn FnMut()| {
        let times = (0..TIMES).map(|_| micros(took(&mut *work))).collect();
        median(times) / operations
    };
    let mut log = VirtualLog::default();
    let chain = per_operation(&mut || {
        for entry in &entries {
            black_box(log.append(&entry.digest()));
        }
    });
    let epoch = Epoch(1);
    let messages = per_operation(&mut || {
        for message in &seen.messages {
            let wrapped = PeerMessage::Segment { epoch, bytes: message.clone() };
            let bytes = Bytes::from(encode(&wrapped));
            black_box(dwcp_base::decode::<PeerMessage>(&bytes).expect("our own message"));
        }
    });
    let records = per_operation(&mut || {
        for record in &seen.records {
            black_box(LogRecord::segment(epoch, record));
        }
    });
    let frames = frames(&entries);
    let control = sides.whole.nodes[0].replica.control();
    let position = sides.whole.nodes[0].replica.head().position;
    let labels = per_operation(&mut || {
        // Asked when a frame is executed and again when its reply is made.
        for _ in 0..2 * frames.len() {
            let open = black_box(control).fold.segment();
            black_box(open.and_then(|open| open.position(open.anchor.index)) >= Some(position));
        }
    });
    let pool_hashes = f64::from(POOL_HASHES)
        * per_operation(&mut || {
            for frame in &frames {
                black_box(dwcp_base::Hash::of(frame));
            }
        });
    let polls = (empty_step(&mut sides.whole) - empty_step(&mut sides.bare)) * steps_per_operation;
    let nodes = f64::from(NODES);
    Ok(Parts { chain: chain * nodes, messages, records, labels, polls, pool_hashes })
}

/// A round of which all entries are still held, for the log is cut now and then.
fn whole_round(sides: &mut Sides) -> anyhow::Result<(Seen, Vec<Entry>)> {
    for _ in 0..3 {
        let seen = sides.watched_round();
        let raft = &sides.bare.nodes[0].raft;
        let held = raft.entries(raft.border().index.next(), raft.commit(), usize::MAX);
        let batches: Vec<Entry> = held.into_iter().filter(|entry| entry.body.kind() == Kind::Batch).collect();
        if let Some(before) = batches.len().checked_sub(sides.load.bursts()) {
            return Ok((seen, batches[before..].to_vec()));
        }
    }
    anyhow::bail!("a round is longer than what the log may hold: take a shorter one")
}

fn frames(entries: &[Entry]) -> Vec<Bytes> {
    let frames = |entry: &Entry| match entry.payload() {
        Payload::Batch { frames, .. } => frames,
        Payload::Empty | Payload::Tick { .. } | Payload::Marker => Vec::new(),
    };
    entries.iter().flat_map(frames).collect()
}

/// Microseconds of a step that brings nothing and finds nothing to do, the mean of all three nodes.
fn empty_step<N: Node>(world: &mut World<N>) -> f64 {
    const STEPS: usize = 2_000;
    let now = world.clock();
    let mut wishes = Vec::new();
    let times = (0..TIMES).map(|_| {
        let took = took(|| {
            for step in 0..STEPS {
                let at = step % world.nodes.len();
                world.nodes[at].step(now, Vec::new(), &mut wishes);
            }
        });
        micros(took) / STEPS as f64
    });
    median(times.collect())
}

pub fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rounds::Load;

    #[test]
    fn parts_are_measured_on_a_round_s_own_entries() {
        let load = Load { clients: 4, frame: 8, rate: 3_200, checked: false, round_ms: 300 };
        let mut sides = Sides::new(load).unwrap();
        sides.round(0);
        let (seen, entries) = whole_round(&mut sides).unwrap();
        assert!(!seen.messages.is_empty() && !seen.records.is_empty());
        assert_eq!(entries.len() as u64 * 32, load.operations_of_a_round());
        assert_eq!(frames(&entries).len(), entries.len() * 4);
        // Hash for hash what the segment's log and the replica compute.
        let raft = &sides.bare.nodes[0].raft;
        let last = raft.commit();
        let before = raft.place(dwcp_base::Index(last.0 - entries.len() as u64)).unwrap();
        let mut log = VirtualLog { position: dwcp_base::Position(before.index.0), chain: before.chain };
        for entry in &entries {
            log.append(&entry.digest());
        }
        assert_eq!(log.chain, raft.place(last).unwrap().chain);
        let control = sides.whole.nodes[0].replica.control();
        assert!(control.fold.segment().is_some(), "labels are asked of an open segment");
    }
}
