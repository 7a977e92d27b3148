//! Sixteen nodes, 200 ms from one to another and back, one message in twenty lost, a thousand updates a second: when is each
//! on all nodes? Time is virtual, so the processor has no part in the figure.

use crate::{Replica, now, put, setups};
use bytes::Bytes;
use dwcp_base::Chance;
use std::collections::BTreeMap;

const NODES: u32 = 16;
const ONE_WAY_MS: u64 = 100;
const LOSS_PM: u64 = 50;
const UPDATES: u64 = 20_000;

#[derive(Debug)]
enum Event {
    Write(u64),
    Deliver { from: u32, to: u32, bytes: Bytes },
    Wake(u32),
}

#[derive(Debug)]
struct Wan {
    replicas: Vec<Replica>,
    queue: BTreeMap<(u64, u64), Event>,
    count: u64,
    chance: Chance,
    bytes: u64,
    now_ms: u64,
    /// When each node is to be woken next.
    wakes_ms: Vec<u64>,
}

impl Wan {
    fn at(&mut self, ms: u64, event: Event) {
        self.count += 1;
        self.queue.insert((ms, self.count), event);
    }

    /// What came may have made something due sooner.
    fn wake_in_time(&mut self, node: u32) {
        let due_ms = self.replicas[node as usize].sync.next_wakeup().0.div_ceil(1_000).max(self.now_ms + 1);
        let planned = &mut self.wakes_ms[node as usize];
        if *planned <= self.now_ms || due_ms < *planned {
            *planned = due_ms;
            self.at(due_ms, Event::Wake(node));
        }
    }

    fn ship(&mut self, from: u32) {
        for (to, bytes) in std::mem::take(&mut self.replicas[from as usize].outbox) {
            self.bytes += bytes.len() as u64;
            if !self.chance.per_mille(LOSS_PM) {
                let at_ms = self.now_ms + ONE_WAY_MS + self.chance.below(10);
                self.at(at_ms, Event::Deliver { from, to, bytes });
            }
        }
    }
}

pub fn wan() {
    let replicas = setups(NODES, false).iter().map(Replica::new).collect();
    let mut wan = Wan {
        replicas,
        queue: BTreeMap::new(),
        count: 0,
        chance: Chance::new(1),
        bytes: 0,
        now_ms: 0,
        wakes_ms: vec![0; NODES as usize],
    };
    // A thousand a second.
    (0..UPDATES).for_each(|update| wan.at(1_000 + update, Event::Write(update)));
    (0..NODES).for_each(|node| wan.at(1, Event::Wake(node)));
    // By writer and counter: when it was made, and how many other nodes have it.
    let mut made: BTreeMap<(u32, u64), u64> = BTreeMap::new();
    let mut reached: BTreeMap<(u32, u32), u64> = BTreeMap::new();
    let mut everywhere: BTreeMap<(u32, u64), (u32, u64)> = BTreeMap::new();
    let mut finished = 0;
    while finished < UPDATES && wan.now_ms < 120_000 {
        let ((at_ms, _), event) = wan.queue.pop_first().expect("somebody always wakes");
        wan.now_ms = at_ms;
        let node = match event {
            Event::Write(update) => {
                let node = (update % u64::from(NODES)) as u32;
                let replica = &mut wan.replicas[node as usize];
                replica.write(at_ms, &[put(update % 10_000, update)]);
                made.insert((node, replica.store.applied().last(crate::origin(node))), at_ms);
                node
            }
            Event::Deliver { from, to, bytes } => {
                let replica = &mut wan.replicas[to as usize];
                replica.sync.on_message(now(at_ms), crate::origin(from).id, &bytes);
                replica.run();
                to
            }
            Event::Wake(node) => {
                let replica = &mut wan.replicas[node as usize];
                replica.sync.on_time(now(at_ms));
                replica.run();
                node
            }
        };
        wan.ship(node);
        wan.wake_in_time(node);
        for writer in (0..NODES).filter(|writer| *writer != node) {
            let has = wan.replicas[node as usize].store.applied().prefix(crate::origin(writer));
            let before = reached.entry((node, writer)).or_default();
            for counter in *before + 1..=has {
                let (nodes, last_ms) = everywhere.entry((writer, counter)).or_default();
                *nodes += 1;
                *last_ms = at_ms;
                finished += u64::from(*nodes == NODES - 1);
            }
            *before = has;
        }
    }
    let mut took: Vec<u64> = everywhere
        .iter()
        .filter(|(_, (nodes, _))| *nodes == NODES - 1)
        .map(|(update, (_, last_ms))| last_ms - made[update])
        .collect();
    took.sort_unstable();
    let share =
        |pm: usize| took.get((took.len() * pm / 1_000).min(took.len().max(1) - 1)).copied().unwrap_or(0);
    println!(
        "WAN, 16 nodes            {:>12} ms until 99 % of updates are on all nodes; half {} ms, 99.9 % {} ms, all {} of {UPDATES} {} ms",
        share(990),
        share(500),
        share(999),
        took.len(),
        took.last().copied().unwrap_or(0)
    );
    println!(
        "                         {:>12.0} B sent per update, by all nodes together",
        wan.bytes as f64 / UPDATES as f64
    );
}
