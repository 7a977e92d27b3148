//! A Raft of one's own with one fault: it does all that ours does, but for that.

use super::*;
use dwcp_base::{Index, Term};
use dwcp_log::Place;
use dwcp_replica::raft::{
    Action, Body, Entry, InstallError, OpenError, Payload, ProposeError, RaftNode, ReadError, Sealed,
    SegmentSetup, TransferError,
};
use std::cell::Cell;

#[derive(Clone, Debug)]
pub enum Fault {
    /// It leads well but leaves this session out.
    Censor(dwcp_state::SessionId),
    /// The entry with this key in it is read from a damaged memory, once: there are no commands in it then.
    Damage(&'static str),
}

pub fn maker(fault: Fault) -> Arc<dyn RaftMaker> {
    Arc::new(FaultyMaker(fault))
}

#[derive(Debug)]
struct FaultyMaker(Fault);

#[derive(Debug)]
struct Faulty {
    fault: Fault,
    /// It has been read.
    damaged: Cell<bool>,
    inner: Box<dyn RaftNode>,
}

impl RaftMaker for FaultyMaker {
    fn open(&self, setup: SegmentSetup, records: &[Bytes], now: Now) -> Result<Box<dyn RaftNode>, OpenError> {
        let inner = OwnRaft.open(setup, records, now)?;
        Ok(Box::new(Faulty { fault: self.0.clone(), damaged: Cell::new(false), inner }))
    }
}

impl RaftNode for Faulty {
    fn propose(&mut self, now: Now, payload: &Payload) -> Result<Place, ProposeError> {
        let (Fault::Censor(victim), Payload::Batch { time, frames }) = (&self.fault, payload) else {
            return self.inner.propose(now, payload);
        };
        let others = frames
            .iter()
            .filter(|frame| ClientFrame::decode((*frame).clone()).unwrap().session() != *victim)
            .cloned()
            .collect();
        self.inner.propose(now, &Payload::Batch { time: *time, frames: others })
    }
    fn entries(&self, from: Index, through: Index, bytes_max: usize) -> Vec<Entry> {
        let mut entries = self.inner.entries(from, through, bytes_max);
        if let Fault::Damage(key) = &self.fault {
            let holds = |frame: &Bytes| frame.windows(key.len()).any(|part| part == key.as_bytes());
            for entry in &mut entries {
                if let Payload::Batch { time, frames } = entry.payload()
                    && frames.iter().any(holds)
                    && !self.damaged.replace(true)
                {
                    entry.body = Body::new(&Payload::Batch { time, frames: vec![] }).unwrap();
                }
            }
        }
        entries
    }
    fn read_index(&mut self, now: Now, token: u64) -> Result<(), ReadError> {
        self.inner.read_index(now, token)
    }
    fn transfer_leadership(&mut self, now: Now, to: ReplicaId) -> Result<(), TransferError> {
        self.inner.transfer_leadership(now, to)
    }
    fn is_leader(&self) -> bool {
        self.inner.is_leader()
    }
    fn leader(&self) -> Option<ReplicaId> {
        self.inner.leader()
    }
    fn term(&self) -> Term {
        self.inner.term()
    }
    fn commit(&self) -> Index {
        self.inner.commit()
    }
    fn last(&self) -> Place {
        self.inner.last()
    }
    fn followers(&self) -> Vec<(ReplicaId, Index)> {
        self.inner.followers()
    }
    fn border(&self) -> Place {
        self.inner.border()
    }
    fn durable(&self) -> Index {
        self.inner.durable()
    }
    fn place(&self, index: Index) -> Option<Place> {
        self.inner.place(index)
    }
    fn step(&mut self, now: Now, from: ReplicaId, bytes: &[u8]) {
        self.inner.step(now, from, bytes);
    }
    fn tick(&mut self, now: Now) {
        self.inner.tick(now);
    }
    fn next_wakeup(&self) -> Micros {
        self.inner.next_wakeup()
    }
    fn on_durable(&mut self, now: Now, through: Ticket) {
        self.inner.on_durable(now, through);
    }
    fn settle(&mut self, now: Now) {
        self.inner.settle(now);
    }
    fn seal(&mut self, now: Now) -> Sealed {
        self.inner.seal(now)
    }
    fn sealed(&self) -> Option<Place> {
        self.inner.sealed()
    }
    fn discard(&mut self, through: Index) -> Place {
        self.inner.discard(through)
    }
    fn needed_from(&self) -> Ticket {
        self.inner.needed_from()
    }
    fn install(&mut self, now: Now, place: Place) -> Result<(), InstallError> {
        self.inner.install(now, place)
    }
    fn learn_commit(&mut self, place: Place) {
        self.inner.learn_commit(place);
    }
    fn pin(&mut self, index: Index) -> Ticket {
        self.inner.pin(index)
    }
    fn take(&mut self) -> Vec<Action> {
        self.inner.take()
    }
    fn check(&self) {
        self.inner.check();
    }
}
