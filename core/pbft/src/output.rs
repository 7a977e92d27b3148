//! What the protocol wants done, in order. Handlers push; the caller drains.

use crate::message::{Decided, Message};
use crate::record::Record;
use alloc::vec::Vec;
use dwcp_base::{Hash, ReplicaId, Sequence, Ticket, View};

/// One effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Persist {
        ticket: Ticket,
        record: Record,
    },
    /// To every other member.
    Broadcast {
        message: Message,
        after: Ticket,
    },
    Send {
        to: ReplicaId,
        message: Message,
        after: Ticket,
    },
    /// The next slot in order is decided. Carried out at once by the caller, which reports a checkpoint's digest back
    /// through `Pbft::on_executed`.
    Deliver(Decided, View),
    /// A checkpoint is stable (`q` replicas signed its digest).
    Stable {
        sequence: Sequence,
        digest: Hash,
    },
    /// The certified digest differs from what this replica computed.
    Diverged {
        sequence: Sequence,
        own: Hash,
        certified: Hash,
    },
    ViewChangeStarted {
        view: View,
        reason: &'static str,
    },
    ViewEntered {
        view: View,
        primary: ReplicaId,
        gaps: u32,
        carried: u32,
    },
    /// What is missing is no longer kept as decided slots by this peer; a snapshot is.
    NeedSnapshot {
        from: ReplicaId,
        at_least: Sequence,
    },
    /// A peer's message was dropped.
    Refused {
        from: ReplicaId,
        reason: &'static str,
    },
    /// This replica must not go on.
    Halt {
        reason: &'static str,
    },
}

/// Actions and the counter of tickets, shared by everything in a replica that persists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    actions: Vec<Action>,
    next_ticket: Ticket,
}

impl Output {
    /// `next_ticket` is what the first record will get; at least 1.
    #[must_use]
    pub fn new(next_ticket: Ticket) -> Self {
        Self { actions: Vec::new(), next_ticket: Ticket(next_ticket.0.max(1)) }
    }

    pub(crate) fn push(&mut self, action: Action) {
        self.actions.push(action);
    }

    pub(crate) fn persist(&mut self, record: Record) -> Ticket {
        let ticket = self.next_ticket;
        self.next_ticket = ticket.next();
        self.actions.push(Action::Persist { ticket, record });
        ticket
    }

    /// A ticket for a record that another room of the replica writes. Tickets count the records of one log, so everything
    /// that was persisted here must have been taken and handed on before.
    ///
    /// # Panics
    /// When a record persisted earlier is still here.
    pub fn allocate(&mut self) -> Ticket {
        let waits = self.actions.iter().any(|action| matches!(action, Action::Persist { .. }));
        assert!(!waits, "records are written in the order of their tickets");
        let ticket = self.next_ticket;
        self.next_ticket = ticket.next();
        ticket
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.actions.is_empty()
    }

    /// The ticket of the newest record; 0 before the first.
    #[must_use]
    pub fn last_ticket(&self) -> Ticket {
        Ticket(self.next_ticket.0 - 1)
    }

    /// Takes what has gathered.
    pub fn take(&mut self) -> Vec<Action> {
        core::mem::take(&mut self.actions)
    }
}
