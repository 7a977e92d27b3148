//! A replicated store that is a Raft group and nothing else: the node's own Raft, session table and store, and the least that
//! makes them serve clients. There is no root, no second epoch, no Anchor: a position is an index.
//!
//! What a server of one Raft group cannot do without is here: frames are read, verified a burst at a time, admitted by
//! the session table, gathered into entries while others are under way; records are handed over before they are
//! counted on; committed frames run once and are answered; the log is cut where a frozen state covers it.

use crate::load::{Clients, QUOTA_BYTES};
use crate::world::{Arrival, NODES, Node, Wish, World};
use bytes::Bytes;
use dwcp_base::{
    Crypto, Epoch, Genesis, Incarnation, LogTime, Micros, Mutants, Now, Position, ReplicaId, View,
};
use dwcp_log::VirtualLog;
use dwcp_raft::{Action, Index, OwnRaft, Payload, RaftMaker, RaftNode, SegmentSetup};
use dwcp_replica::{ExecutedReply, Label, Settings};
use dwcp_state::kv::Kv;
use dwcp_state::{Admission, CheckedFrame, ClientFrame, FrameOutcome, SessionId, State};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

pub struct Bare {
    me: ReplicaId,
    genesis: Arc<Genesis>,
    settings: Settings,
    crypto: Arc<dyn Crypto>,
    pub raft: Box<dyn RaftNode>,
    pub state: State<Kv>,
    applied: Index,
    committed: Index,
    waiting: VecDeque<Bytes>,
    /// Whose results this node tells.
    clients: BTreeMap<SessionId, u64>,
    /// Bytes of entries since the state was frozen last.
    uncovered: u64,
}

/// Three of them, of which the first leads once time passes.
pub fn world(genesis: &Arc<Genesis>, clients: &Clients, leader: ReplicaId) -> World<Bare> {
    let node = |id: u8| {
        let settings = Settings::lan();
        let setup = SegmentSetup {
            epoch: Epoch(1),
            me: ReplicaId(id),
            members: (0..NODES).map(ReplicaId).collect(),
            first_leader: Some(leader),
            base: VirtualLog::default(),
            timing: settings.segment.timing,
            limits: settings.segment.limits,
            seed: id.into(),
            mutants: Mutants::default(),
        };
        let raft = OwnRaft.open(setup, &[], World::<Bare>::beginning()).expect("a good setup");
        Bare {
            me: ReplicaId(id),
            genesis: Arc::clone(genesis),
            settings,
            crypto: clients.crypto(genesis, id),
            raft,
            state: State::new(genesis, Kv::new(QUOTA_BYTES), Mutants::default()),
            applied: Index::ZERO,
            committed: Index::ZERO,
            waiting: VecDeque::new(),
            clients: BTreeMap::new(),
            uncovered: 0,
        }
    };
    World::new((0..NODES).map(node).collect())
}

impl Node for Bare {
    fn step(&mut self, now: Now, burst: Vec<Arrival>, wishes: &mut Vec<Wish>) {
        let mut frames = Vec::new();
        for arrival in burst {
            match arrival {
                Arrival::Peer { from, bytes } => self.raft.step(now, from, &bytes),
                Arrival::Frame { client, bytes } => match ClientFrame::decode(bytes) {
                    Ok(frame) => frames.push((client, frame)),
                    Err(error) => wishes.push(Wish::Refused(error.to_string())),
                },
                Arrival::Durable(through) => self.raft.on_durable(now, through),
                Arrival::Wake => self.raft.tick(now),
                Arrival::Saved(_) => {}
            }
        }
        self.admit(frames, wishes);
        self.propose(now);
        self.raft.settle(now);
        self.drain(wishes);
    }

    fn next_wakeup(&self) -> Micros {
        self.raft.next_wakeup()
    }

    fn digest(&mut self) {
        std::hint::black_box(self.state.chunk_digests());
    }
}

impl Bare {
    fn admit(&mut self, frames: Vec<(u64, CheckedFrame)>, wishes: &mut Vec<Wish>) {
        if frames.is_empty() {
            return;
        }
        let cluster = self.genesis.cluster();
        let items: Vec<_> = frames.iter().map(|(_, frame)| frame.signature_item(cluster)).collect();
        if !self.crypto.verify_all(&items) {
            return wishes.push(Wish::Refused("a bad signature".into()));
        }
        for (client, frame) in frames {
            match self.state.admit(&frame) {
                Ok(Admission::Fresh) => {
                    self.clients.insert(frame.session(), client);
                    self.waiting.push_back(frame.bytes().clone());
                }
                Ok(Admission::AllExecuted(_)) => wishes.push(Wish::Refused("sent twice".into())),
                Err(refusal) => wishes.push(Wish::Refused(refusal.to_string())),
            }
        }
    }

    /// By the same rule as a replica: a few entries under way, whatever gathers meanwhile in the next one.
    fn propose(&mut self, now: Now) {
        if !self.raft.is_leader() {
            return;
        }
        let time = self.state.log_time().max(LogTime(now.wall_ms));
        while !self.waiting.is_empty()
            && self.raft.last().index.0 - self.raft.commit().0 < self.settings.pipeline_depth
        {
            let (mut frames, mut bytes) = (Vec::new(), 0);
            while let Some(frame) = self.waiting.front()
                && frames.len() < self.settings.batch_frames_max
                && (frames.is_empty() || bytes + frame.len() <= self.settings.batch_bytes_max)
            {
                bytes += frame.len();
                frames.extend(self.waiting.pop_front());
            }
            self.raft.propose(now, &Payload::Batch { time, frames }).expect("there is room");
        }
    }

    fn drain(&mut self, wishes: &mut Vec<Wish>) {
        loop {
            let actions = self.raft.take();
            if actions.is_empty() {
                return;
            }
            for action in actions {
                match action {
                    Action::Persist { ticket, record, .. } => {
                        wishes.push(Wish::Record { ticket, bytes: record });
                    }
                    Action::Send { to, message, .. } => wishes.push(Wish::Send { to, bytes: message }),
                    Action::Committed { through } => self.committed = self.committed.max(through),
                    Action::Refused { reason, .. } => wishes.push(Wish::Refused(reason.into())),
                    Action::MarkerCommitted { .. }
                    | Action::ReadsReady { .. }
                    | Action::ReadsFailed { .. }
                    | Action::LeaderChanged { .. }
                    | Action::Replaced { .. }
                    | Action::Behind { .. } => {}
                }
            }
            self.execute(wishes);
        }
    }

    fn execute(&mut self, wishes: &mut Vec<Wish>) {
        while self.applied < self.committed {
            let bytes_max = self.settings.segment.apply_bytes;
            let entries = self.raft.entries(self.applied.next(), self.committed, bytes_max);
            if entries.is_empty() {
                break;
            }
            for entry in &entries {
                self.applied = self.applied.next();
                self.uncovered += entry.body.bytes().len() as u64;
                let position = Position(self.applied.0);
                match entry.payload() {
                    Payload::Batch { time, frames } => {
                        self.state.begin_entry(position, time);
                        self.run(&frames, wishes);
                    }
                    Payload::Tick { time } => self.state.begin_entry(position, time),
                    Payload::Empty | Payload::Marker => {
                        self.state.begin_entry(position, LogTime::default());
                    }
                }
            }
        }
        if self.uncovered >= self.settings.snapshot_log_bytes {
            self.uncovered = 0;
            drop(self.state.freeze());
            self.raft.discard(self.applied);
        }
    }

    fn run(&mut self, frames: &[Bytes], wishes: &mut Vec<Wish>) {
        for bytes in frames {
            let frame = ClientFrame::decode(bytes.clone()).expect("it was admitted");
            let FrameOutcome { session, first, results, ran: _ } = self.state.execute(&frame);
            if self.clients.contains_key(&session) {
                wishes.push(Wish::Reply(ExecutedReply {
                    session,
                    first,
                    results,
                    label: Label::Crash,
                    view: View::default(),
                    ask: self.me,
                    replica: self.me,
                    incarnation: Incarnation(0),
                    leaf_index: 0,
                    leaf_count: 1,
                    path: Vec::new(),
                    signature: None,
                }));
            }
        }
    }
}
