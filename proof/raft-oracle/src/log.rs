//! The log of the foreign Raft as our chain sees it, and at once the storage it reads from. It holds no more than was
//! handed to it: what is durable is the adapter's business. Bounded by the segment's own log limits.

use dwcp_log::VirtualLog;
use dwcp_raft::message::Kind;
use dwcp_raft::{Body, Index, Place, Term};
use raft::eraftpb::{ConfState, Entry as Foreign, HardState, Snapshot};
use raft::{Error, GetEntriesContext, RaftState, StorageError};
use std::cell::RefCell;
use std::collections::BTreeSet;

/// One entry, read and chained.
#[derive(Clone, Debug)]
pub struct Slot {
    pub foreign: Foreign,
    pub entry: dwcp_raft::Entry,
    pub place: Place,
}

#[derive(Debug)]
pub struct Log {
    /// Position of the virtual log at index 0.
    base: VirtualLog,
    pub border: Place,
    pub slots: Vec<Slot>,
    pub hard: HardState,
    pub voters: Vec<u64>,
    /// Who was found to need entries that are discarded.
    pub behind: RefCell<BTreeSet<u64>>,
}

/// The body of a foreign entry; an entry without data is a new leader's first. `None`: nobody of ours made it.
pub fn body_of(foreign: &Foreign) -> Option<Body> {
    if foreign.get_entry_type() != raft::eraftpb::EntryType::EntryNormal || !foreign.context.is_empty() {
        return None;
    }
    if foreign.data.is_empty() {
        return Body::new(&dwcp_raft::Payload::Empty).ok();
    }
    let body = Body::read(bytes::Bytes::copy_from_slice(&foreign.data)).ok()?;
    (body.kind() != Kind::Empty).then_some(body)
}

impl Log {
    pub fn new(base: VirtualLog, border: Place, voters: Vec<u64>) -> Self {
        Self {
            base,
            border,
            slots: Vec::new(),
            hard: HardState::default(),
            voters,
            behind: RefCell::new(BTreeSet::new()),
        }
    }

    pub fn last(&self) -> Place {
        self.slots.last().map_or(self.border, |slot| slot.place)
    }

    fn at(&self, index: u64) -> Option<usize> {
        let at = usize::try_from(index.checked_sub(self.border.index.0 + 1)?).ok()?;
        (at < self.slots.len()).then_some(at)
    }

    pub fn slot(&self, index: u64) -> Option<&Slot> {
        self.at(index).map(|at| &self.slots[at])
    }

    pub fn place(&self, index: Index) -> Option<Place> {
        if index == self.border.index {
            return Some(self.border);
        }
        self.slot(index.0).map(|slot| slot.place)
    }

    pub fn marker(&self) -> Option<Index> {
        self.slots.iter().find(|slot| slot.entry.body.kind() == Kind::Marker).map(|slot| slot.place.index)
    }

    pub fn has_marker(&self) -> bool {
        self.marker().is_some()
    }

    /// Takes an entry for its index, dropping what stood there and after. True if something was dropped.
    pub fn put(&mut self, foreign: &Foreign) -> bool {
        let replaced = if let Some(at) = self.at(foreign.index) {
            self.slots.truncate(at);
            true
        } else {
            false
        };
        let last = self.last();
        assert_eq!(foreign.index, last.index.0 + 1, "the log has no gaps");
        let body = body_of(foreign).expect("entries were read at the border");
        let entry = dwcp_raft::Entry { term: Term(foreign.term), body };
        let mut chain = VirtualLog {
            position: dwcp_base::Position(self.base.position.0 + last.index.0),
            chain: last.chain,
        };
        chain.append(&entry.digest());
        let place = Place { index: Index(foreign.index), term: entry.term, chain: chain.chain };
        self.slots.push(Slot { foreign: foreign.clone(), entry, place });
        replaced
    }

    /// Forgets entries up to this index, which it holds.
    pub fn discard(&mut self, through: Index) {
        let Some(at) = self.at(through.0) else { return };
        self.border = self.slots[at].place;
        self.slots.drain(..=at);
    }

    /// Begins anew after this place.
    pub fn restart_at(&mut self, place: Place) {
        self.slots.clear();
        self.border = place;
    }

    pub fn body_bytes(&self, above: Index) -> u64 {
        self.slots
            .iter()
            .filter(|slot| slot.place.index > above)
            .map(|slot| slot.entry.body.bytes().len() as u64)
            .sum()
    }
}

impl raft::Storage for Log {
    fn initial_state(&self) -> raft::Result<RaftState> {
        let mut conf = ConfState::default();
        conf.set_voters(self.voters.clone());
        Ok(RaftState::new(self.hard.clone(), conf))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _: GetEntriesContext,
    ) -> raft::Result<Vec<Foreign>> {
        let Some(from) = self.at(low) else { return Err(Error::Store(StorageError::Compacted)) };
        let bytes_max = max_size.into().unwrap_or(u64::MAX);
        let (mut taken, mut bytes) = (Vec::new(), 0_u64);
        for slot in &self.slots[from..] {
            bytes += slot.entry.body.bytes().len() as u64 + 24;
            if slot.place.index.0 >= high || (!taken.is_empty() && bytes > bytes_max) {
                break;
            }
            taken.push(slot.foreign.clone());
        }
        Ok(taken)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index < self.border.index.0 {
            return Err(Error::Store(StorageError::Compacted));
        }
        self.place(Index(index)).map(|place| place.term.0).ok_or(Error::Store(StorageError::Unavailable))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.border.index.0 + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last().index.0)
    }

    /// Snapshots are of the virtual state and travel by the caller's roads: it is only told who needs one.
    fn snapshot(&self, _: u64, to: u64) -> raft::Result<Snapshot> {
        self.behind.borrow_mut().insert(to);
        Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable))
    }
}
