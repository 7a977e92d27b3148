//! What a segment wants done, in order. Handlers push; the caller drains. Messages and records are bytes here, so that a
//! foreign Raft can speak its own language behind the same face.

use alloc::vec::Vec;
use bytes::Bytes;
use dwcp_base::{ReplicaId, Ticket};
use dwcp_log::place::{Index, Term};

/// One effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Append to the write-ahead log. Tickets of one segment count its records: replayed ones first, from 1, then one up
    /// each. `prompt`: the segment itself waits for `on_durable`, so the disk should not wait for company.
    Persist { ticket: Ticket, record: Bytes, prompt: bool },
    /// Leaves once every record up to `after` is on disk; ticket 0 waits for nothing.
    Send { to: ReplicaId, message: Bytes, after: Ticket },
    /// Entries up to here are committed. The caller reads them with `entries` and applies them in order. They need not be
    /// durable here yet: a majority holds them.
    Committed { through: Index },
    /// The Marker is committed: the segment ends here in order, and no later entry will ever be.
    MarkerCommitted { index: Index },
    /// These reads may be answered from any state at or past `index`.
    ReadsReady { tokens: Vec<u64>, index: Index },
    /// These reads must be asked again, of another leader or epoch.
    ReadsFailed { tokens: Vec<u64> },
    /// Who leads, as far as this replica knows; also when it stops knowing.
    LeaderChanged { term: Term, leader: Option<ReplicaId> },
    /// Entries from here on were replaced by the leader's; they had not been committed.
    Replaced { from: Index },
    /// The follower needs entries from `next` on, which this leader has discarded: it wants a snapshot. Said again, at
    /// leisure, until the follower's log goes on from one.
    Behind { follower: ReplicaId, next: Index },
    /// A peer's message was dropped.
    Refused { from: ReplicaId, reason: &'static str },
}

/// Actions and the segment's count of its records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Output {
    actions: Vec<Action>,
    last_ticket: Ticket,
}

impl Output {
    /// The count goes on after so many replayed records.
    #[must_use]
    pub fn after_replay(records: u64) -> Self {
        Self { actions: Vec::new(), last_ticket: Ticket(records) }
    }

    /// Queues an effect.
    pub fn push(&mut self, action: Action) {
        self.actions.push(action);
    }

    /// Queues a record and says its ticket.
    pub fn persist(&mut self, record: Bytes, prompt: bool) -> Ticket {
        self.last_ticket = self.last_ticket.next();
        self.actions.push(Action::Persist { ticket: self.last_ticket, record, prompt });
        self.last_ticket
    }

    /// The ticket of the newest record; 0 before the first.
    #[must_use]
    pub fn last_ticket(&self) -> Ticket {
        self.last_ticket
    }

    /// Takes what has gathered.
    pub fn take(&mut self) -> Vec<Action> {
        core::mem::take(&mut self.actions)
    }
}
