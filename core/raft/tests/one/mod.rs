//! One member, and a test that plays all the others by hand.

use crate::net::{BASE, EPOCH, base, batch};
use bytes::Bytes;
use dwcp_base::{Micros, Mutants, Now, Position, ReplicaId, Ticket};
use dwcp_log::VirtualLog;
use dwcp_raft::{
    Action, Body, Entry, HardState, Index, Limits, Message, Payload, Place, Raft, RaftNode, Record, Said,
    SegmentSetup, Term, Timing,
};

#[derive(Debug)]
pub struct One {
    pub raft: Raft,
    pub now: Micros,
    /// Of the clock on the wall.
    pub wall_ms: u64,
    pub records: Vec<Bytes>,
    setup: SegmentSetup,
    /// What it did since it was last asked.
    pub did: Vec<Action>,
}

pub fn entry(term: u64, frame: &str) -> Entry {
    Entry { term: Term(term), body: Body::new(&batch(frame)).unwrap() }
}

pub fn marker(term: u64) -> Entry {
    Entry { term: Term(term), body: Body::new(&Payload::Marker).unwrap() }
}

/// Records of a member in this term whose log has entries of these terms; equal terms at equal indices are equal entries.
pub fn records(term: u64, vote: Option<u8>, terms: &[u64]) -> Vec<Bytes> {
    let entries = terms.iter().enumerate().map(|(at, term)| entry(*term, &format!("{}", at + 1))).collect();
    let hard = HardState { term: Term(term), vote: vote.map(ReplicaId) };
    [Record::Hard(hard), Record::Entries { first: Index(1), entries }]
        .iter()
        .map(|record| record.to_bytes(EPOCH))
        .collect()
}

/// The places of a log with these entries.
pub fn places(entries: &[Entry]) -> Vec<Place> {
    let mut fold = VirtualLog { position: Position(BASE), chain: base().chain };
    let mut places = vec![base()];
    for entry in entries {
        fold.append(&entry.digest());
        places.push(Place { index: Index(fold.position.0 - BASE), term: entry.term, chain: fold.chain });
    }
    places
}

pub fn append(prev: Place, commit: u64, entries: &[Entry]) -> Said {
    Said::Append { prev, commit: Index(commit), entries: entries.to_vec() }
}

impl One {
    pub fn new(n: u8, me: u8) -> Self {
        Self::open(n, me, &[], |_| {})
    }

    pub fn open(n: u8, me: u8, records: &[Bytes], change: impl FnOnce(&mut SegmentSetup)) -> Self {
        let mut setup = SegmentSetup {
            epoch: EPOCH,
            me: ReplicaId(me),
            members: (0..n).map(ReplicaId).collect(),
            first_leader: None,
            base: VirtualLog { position: Position(BASE), chain: base().chain },
            timing: Timing::lan(),
            limits: Limits::default(),
            seed: u64::from(me),
            mutants: Mutants::default(),
        };
        change(&mut setup);
        let now = Micros(1_000_000);
        let raft = Raft::open(&setup, records, Now { mono: now, wall_ms: 0 }).unwrap();
        Self { raft, now, wall_ms: 0, records: records.to_vec(), setup, did: Vec::new() }
    }

    /// From its disk as it is now.
    pub fn restart(&mut self) {
        let now = self.at();
        self.raft = Raft::open(&self.setup, &self.records, now).unwrap();
        self.did.clear();
    }

    pub fn at(&self) -> Now {
        Now { mono: self.now, wall_ms: self.wall_ms }
    }

    pub fn settle(&mut self) {
        let at = self.at();
        self.raft.settle(at);
        self.raft.check();
        for action in self.raft.take() {
            if let Action::Persist { record, .. } = &action {
                self.records.push(record.clone());
            }
            self.did.push(action);
        }
    }

    pub fn hear(&mut self, from: u8, term: u64, said: Said) {
        let at = self.at();
        let message = Message { epoch: EPOCH, term: Term(term), said };
        self.raft.step(at, ReplicaId(from), &message.to_bytes());
        self.settle();
    }

    pub fn raft_timeout(&self) -> Micros {
        self.setup.timing.election_timeout
    }

    /// Everything it wrote is on disk.
    pub fn sync(&mut self) {
        let at = self.at();
        self.raft.on_durable(at, Ticket(u64::MAX));
        self.settle();
    }

    pub fn wait(&mut self, ms: u64) {
        self.now = self.now.plus(Micros::from_millis(ms));
        let at = self.at();
        self.raft.tick(at);
        self.settle();
    }

    pub fn propose(&mut self, frame: &str) -> Place {
        let at = self.at();
        let place = self.raft.propose(at, &batch(frame)).unwrap();
        self.settle();
        place
    }

    /// Makes it the leader with the votes of `voters`, in the term after the one it is in.
    pub fn elect(&mut self, voters: &[u8]) {
        for _ in 0..100 {
            let term = self.raft.term().0;
            for voter in voters {
                self.hear(*voter, term, Said::PreVoteReply { granted: true });
            }
            if self.raft.term().0 > term {
                break;
            }
            self.wait(10);
        }
        self.sync();
        let term = self.raft.term().0;
        for voter in voters {
            self.hear(*voter, term, Said::VoteReply { granted: true });
        }
        assert!(self.raft.is_leader(), "elected by {voters:?}");
    }

    /// What it said to whom since last asked, and after which record.
    pub fn said(&mut self) -> Vec<(u8, Said, Ticket)> {
        let said = self.did.iter().filter_map(|action| match action {
            Action::Send { to, message, after } => {
                Some((to.0, Message::from_bytes(message).unwrap().said, *after))
            }
            _ => None,
        });
        let said = said.collect();
        self.did.retain(|action| !matches!(action, Action::Send { .. }));
        said
    }

    /// Why it refused what it heard since last asked.
    pub fn refused(&mut self) -> Vec<&'static str> {
        let refused = self.did.iter().filter_map(|action| match action {
            Action::Refused { reason, .. } => Some(*reason),
            _ => None,
        });
        let refused = refused.collect();
        self.did.retain(|action| !matches!(action, Action::Refused { .. }));
        refused
    }

    pub fn terms(&self) -> Vec<u64> {
        let entries = self.raft.entries(self.raft.border().index.next(), Index(u64::MAX), usize::MAX);
        entries.iter().map(|entry| entry.term.0).collect()
    }
}
