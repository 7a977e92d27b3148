//! Sixteen nodes, 200 ms from one to another and back, one message in twenty lost, a thousand updates a second: when
//! is each on all nodes, durable there and part of the state? Time is virtual, so the processor has no part in that;
//! what the processor does for an update is told beside it.
//!
//! A node is the core loop of `shell/node` in small: it takes all that waits, writes, and does nothing more until its
//! sync has ended, which takes [`SYNC_MS`]. One update in ten is of the key that another node wrote a millisecond
//! before.

use crate::Ask;
use crate::clock::Spent;
use crate::node::{Disk, Replica};
use crate::report::{Found, figure, line};
use crate::world::{now, origin, put_json, resolvers, setups, signatures};
use anyhow::{Context, ensure};
use bytes::Bytes;
use dwcp_base::Chance;
use dwcp_crdt::Strategy;
use std::collections::BTreeMap;

const NODES: u32 = 16;
const ONE_WAY_MS: u64 = 100;
const LOSS_PM: u64 = 50;
const UPDATES: u64 = 20_000;
const KEYS: u64 = 10_000;
/// A slow disk: the rows with a real log say what this machine's takes.
const SYNC_MS: u64 = 5;
/// One update in so many meets another of its key.
const MEETS: u64 = 10;

#[derive(Debug)]
enum Input {
    Write(u64),
    Message { from: u32, bytes: Bytes },
    Wake,
}

#[derive(Debug)]
enum Event {
    Arrives(u32, Input),
    /// The node takes all that has arrived.
    Burst(u32),
    Synced(u32),
}

#[derive(Debug)]
struct Node {
    replica: Replica,
    inbox: Vec<Input>,
    /// A burst is planned or a sync under way.
    is_busy: bool,
    /// When it is to be woken next.
    wake_ms: u64,
    /// Up to here each writer's updates have been seen to be here.
    has: Vec<u64>,
}

#[derive(Debug)]
struct Wan {
    nodes: Vec<Node>,
    queue: BTreeMap<(u64, u64), Event>,
    count: u64,
    chance: Chance,
    bytes: u64,
    now_ms: u64,
    /// By writer and counter: when it was made, on how many nodes it is, and since when it was on the last of them.
    updates: BTreeMap<(u32, u64), (u64, u32, u64)>,
    finished: u64,
}

impl Wan {
    fn new(keyed: bool) -> Self {
        let node = |setup| Node {
            replica: Replica::new(setup, resolvers(Strategy::Merge), Disk::Told),
            inbox: Vec::new(),
            is_busy: false,
            wake_ms: 0,
            has: vec![0; NODES as usize],
        };
        let mut wan = Self {
            nodes: setups(NODES, keyed).iter().map(node).collect(),
            queue: BTreeMap::new(),
            count: 0,
            chance: Chance::new(1),
            bytes: 0,
            now_ms: 0,
            updates: BTreeMap::new(),
            finished: 0,
        };
        for update in 0..UPDATES {
            let node = (update % u64::from(NODES)) as u32;
            // A thousand a second.
            wan.at(1_000 + update, Event::Arrives(node, Input::Write(update)));
        }
        (0..NODES).for_each(|node| wan.at(1, Event::Arrives(node, Input::Wake)));
        wan
    }

    fn at(&mut self, ms: u64, event: Event) {
        self.count += 1;
        self.queue.insert((ms, self.count), event);
    }

    fn run(&mut self) {
        while self.finished < UPDATES && self.now_ms < 120_000 {
            let ((at_ms, _), event) = self.queue.pop_first().expect("somebody always wakes");
            self.now_ms = at_ms;
            match event {
                Event::Arrives(node, input) => {
                    self.nodes[node as usize].inbox.push(input);
                    self.plan_burst(node);
                }
                Event::Burst(node) => self.burst(node),
                Event::Synced(node) => self.synced(node),
            }
        }
    }

    fn plan_burst(&mut self, node: u32) {
        if !std::mem::replace(&mut self.nodes[node as usize].is_busy, true) {
            self.at(self.now_ms, Event::Burst(node));
        }
    }

    fn burst(&mut self, id: u32) {
        let at_ms = self.now_ms;
        let Node { replica, inbox, .. } = &mut self.nodes[id as usize];
        for input in std::mem::take(inbox) {
            match input {
                Input::Write(update) => {
                    let number = if update % MEETS == 1 { update - 1 } else { update };
                    let field = if update % MEETS == 1 { 'b' } else { 'a' };
                    let value = u32::try_from(update).expect("few updates");
                    replica.write(at_ms, &[put_json(number % KEYS, field, value)]);
                    let counter = replica.store.applied().last(origin(id));
                    self.updates.insert((id, counter), (at_ms, 0, at_ms));
                }
                Input::Message { from, bytes } => {
                    replica.sync.on_message(now(at_ms), origin(from).id, &bytes);
                    replica.run();
                }
                Input::Wake => {
                    replica.sync.on_time(now(at_ms));
                    replica.run();
                }
            }
        }
        let is_synced = replica.sync.durable() == replica.sync.last_ticket();
        self.ship(id);
        if is_synced {
            self.synced(id);
        } else {
            self.at(at_ms + SYNC_MS, Event::Synced(id));
        }
    }

    /// What was written is durable.
    fn synced(&mut self, id: u32) {
        let node = &mut self.nodes[id as usize];
        let through = node.replica.sync.last_ticket();
        node.replica.on_durable(through);
        node.is_busy = false;
        let waits = !node.inbox.is_empty();
        for writer in 0..NODES {
            let sync = &node.replica.sync;
            let durable = sync.durable_last(origin(writer));
            let has = node.replica.store.applied().prefix(origin(writer)).min(durable);
            let before = std::mem::replace(&mut node.has[writer as usize], has);
            for counter in before + 1..=has {
                let update = self.updates.get_mut(&(writer, counter)).expect("it was written before");
                (update.1, update.2) = (update.1 + 1, self.now_ms);
                self.finished += u64::from(update.1 == NODES);
            }
        }
        self.ship(id);
        self.wake_in_time(id);
        if waits {
            self.plan_burst(id);
        }
    }

    fn ship(&mut self, from: u32) {
        for (to, bytes) in std::mem::take(&mut self.nodes[from as usize].replica.outbox) {
            self.bytes += bytes.len() as u64;
            if !self.chance.per_mille(LOSS_PM) {
                let at_ms = self.now_ms + ONE_WAY_MS + self.chance.below(10);
                self.at(at_ms, Event::Arrives(to, Input::Message { from, bytes }));
            }
        }
    }

    /// What came may have made something due sooner.
    fn wake_in_time(&mut self, id: u32) {
        let node = &mut self.nodes[id as usize];
        let due_ms = node.replica.sync.next_wakeup().0.div_ceil(1_000).max(self.now_ms + 1);
        if node.wake_ms <= self.now_ms || due_ms < node.wake_ms {
            node.wake_ms = due_ms;
            self.at(due_ms, Event::Arrives(id, Input::Wake));
        }
    }
}

pub fn wan(ask: &Ask) -> anyhow::Result<Found> {
    let mut wan = Wan::new(ask.keyed);
    let ((), spent) = Spent::measured(|| wan.run());
    let done = wan.updates.values().filter(|(_, nodes, _)| *nodes == NODES);
    let mut took: Vec<u64> = done.map(|(made_ms, _, last_ms)| last_ms - made_ms).collect();
    took.sort_unstable();
    ensure!(took.len() as u64 == UPDATES, "only {} of {UPDATES} updates came to all nodes", took.len());
    let digests: Vec<_> = wan.nodes.iter_mut().map(|node| node.replica.store.digest()).collect();
    ensure!(digests.windows(2).all(|two| two[0] == two[1]), "the nodes hold different stores");
    let share = |pm: usize| took[(took.len() * pm / 1_000).min(took.len() - 1)] as f64;
    let last = took.last().copied().context("there were updates")?;
    let conflicts = wan.nodes[0].replica.store.conflict_count();
    let each = spent.thread.as_secs_f64() * 1e6 / (UPDATES * u64::from(NODES)) as f64;
    let lines = vec![
        line("99 % of updates on all nodes", [figure(share(990), 0, "ms")], "2,000 ms"),
        line("all of them", [figure(last as f64, 0, "ms")], "5,000 ms"),
        line("half, 99.9 %", [figure(share(500), 0, "ms"), figure(share(999), 0, "ms")], ""),
        line(
            "sent for an update",
            [figure(wan.bytes as f64 / UPDATES as f64, 0, "B by all nodes together")],
            "",
        ),
        line(
            "processor, this model included",
            [
                figure(each, 1, "µs an update and node"),
                figure(each / 10.0, 1, "% of a core a node at 1,000/s"),
            ],
            "",
        ),
        line("conflicts, as the store counts them", [figure(conflicts as f64, 0, "")], ""),
    ];
    let with = format!(
        "{}, the strategy merge on JSON objects, a disk whose sync takes {SYNC_MS} ms of virtual time",
        signatures(ask.keyed)
    );
    Ok(Found { with, lines })
}
