//! Three nodes of either kind in one thread: messages arrive at once, disks take no time, and the clock stands still while
//! anything is under way. Both sides are driven by this same code, so what it costs is in both alike.

use bytes::Bytes;
use dwcp_base::{Micros, Now, ReplicaId, Sequence, Ticket};
use dwcp_replica::ExecutedReply;

pub const NODES: u8 = 3;
pub const NOON_MS: u64 = 1_700_000_000_000;
const BEGINS: Micros = Micros(1_000_000);

/// What comes to a node.
#[derive(Debug)]
pub enum Arrival {
    Peer { from: ReplicaId, bytes: Bytes },
    Frame { client: u64, bytes: Bytes },
    Durable(Ticket),
    Saved(Sequence),
    Wake,
}

/// What a node wants done.
#[derive(Debug)]
pub enum Wish {
    Send {
        to: ReplicaId,
        bytes: Bytes,
    },
    /// It is handed over, and dropped: there is no disk.
    Record {
        ticket: Ticket,
        bytes: Bytes,
    },
    Reply(ExecutedReply),
    /// A frame was not taken.
    Refused(String),
    /// A snapshot is to be written. Nobody writes its chunks: a node does so beside its core.
    Save(Sequence),
    Anchored,
}

pub trait Node {
    /// Takes a burst and does all that follows from it.
    fn step(&mut self, now: Now, burst: Vec<Arrival>, wishes: &mut Vec<Wish>);
    fn next_wakeup(&self) -> Micros;
    /// Brings the digest of its state up to date, if nothing else has it do so.
    fn digest(&mut self);
}

/// What went between nodes and to disks, for whoever measures parts of it again.
#[derive(Debug, Default)]
pub struct Seen {
    pub messages: Vec<Bytes>,
    pub records: Vec<Bytes>,
}

pub struct World<N> {
    pub nodes: Vec<N>,
    inboxes: Vec<Vec<Arrival>>,
    wishes: Vec<Wish>,
    pub now: Micros,
    replies: Vec<ExecutedReply>,
    refused: Vec<String>,
    /// Bursts that nodes took.
    pub steps: u64,
    /// Anchors that took effect and snapshots that were written, counted at node 0.
    pub anchors: u64,
    pub snapshots: u64,
    pub seen: Option<Seen>,
}

impl<N: Node> World<N> {
    pub fn new(nodes: Vec<N>) -> Self {
        let inboxes = nodes.iter().map(|_| Vec::new()).collect();
        let (wishes, replies, refused) = (Vec::new(), Vec::new(), Vec::new());
        Self {
            nodes,
            inboxes,
            wishes,
            now: BEGINS,
            replies,
            refused,
            steps: 0,
            anchors: 0,
            snapshots: 0,
            seen: None,
        }
    }

    pub fn beginning() -> Now {
        Now { mono: BEGINS, wall_ms: NOON_MS + BEGINS.0 / 1_000 }
    }

    pub fn clock(&self) -> Now {
        Now { mono: self.now, wall_ms: NOON_MS + self.now.0 / 1_000 }
    }

    pub fn hand(&mut self, to: ReplicaId, arrival: Arrival) {
        self.inboxes[usize::from(to.0)].push(arrival);
    }

    /// What clients were told since this was asked last.
    pub fn heard(&mut self) -> (Vec<ExecutedReply>, Vec<String>) {
        (core::mem::take(&mut self.replies), core::mem::take(&mut self.refused))
    }

    /// Until nothing is under way any more.
    pub fn settle(&mut self) {
        let now = self.clock();
        let mut busy = true;
        while busy {
            busy = false;
            for id in 0..self.nodes.len() {
                let burst = core::mem::take(&mut self.inboxes[id]);
                if burst.is_empty() {
                    continue;
                }
                busy = true;
                self.steps += 1;
                self.nodes[id].step(now, burst, &mut self.wishes);
                self.carry_out(id);
            }
        }
    }

    fn carry_out(&mut self, id: usize) {
        let mut durable = None;
        for wish in self.wishes.drain(..) {
            match wish {
                Wish::Send { to, bytes } => {
                    if let Some(seen) = &mut self.seen {
                        seen.messages.push(bytes.clone());
                    }
                    let from = ReplicaId(u8::try_from(id).expect("nodes are few"));
                    self.inboxes[usize::from(to.0)].push(Arrival::Peer { from, bytes });
                }
                Wish::Record { ticket, bytes } => {
                    durable = Some(ticket);
                    if let Some(seen) = &mut self.seen {
                        seen.records.push(bytes);
                    }
                }
                Wish::Reply(reply) => self.replies.push(reply),
                Wish::Refused(reason) => self.refused.push(reason),
                Wish::Save(sequence) => {
                    self.snapshots += u64::from(id == 0);
                    self.inboxes[id].push(Arrival::Saved(sequence));
                }
                Wish::Anchored => self.anchors += u64::from(id == 0),
            }
        }
        if let Some(through) = durable {
            self.inboxes[id].push(Arrival::Durable(through));
        }
    }

    /// Lets time pass, with whatever falls due meanwhile.
    pub fn pass(&mut self, time: Micros) {
        let until = self.now.plus(time);
        loop {
            let next = self.nodes.iter().map(Node::next_wakeup).min().unwrap_or(Micros::NEVER);
            if next > until {
                break;
            }
            self.now = self.now.max(next);
            let now = self.now;
            for id in 0..self.nodes.len() {
                if self.nodes[id].next_wakeup() <= now {
                    self.inboxes[id].push(Arrival::Wake);
                }
            }
            self.settle();
            // Who is due again at once must not stop the clock.
            self.now = self.now.plus(Micros(1));
        }
        self.now = self.now.max(until);
    }
}
