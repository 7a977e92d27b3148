//! What sync wants done, in order, and the reasons for which something was dropped. Handlers push; the caller drains.

use crate::audit::Work;
use crate::proof::Proof;
use crate::record::Record;
use crate::repair::{Copy, Question};
use crate::state::Figures;
use alloc::boxed::Box;
use alloc::vec::Vec;
use bytes::Bytes;
use core::fmt;
use dwcp_base::{Hash, Ticket};
use dwcp_crdt::{Bundle, Floor, FloorState, Origin, OriginId};

/// One effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Append to the write-ahead log. Tickets count the records of this sync: replayed ones first, from 1, then one up each.
    Persist { ticket: Ticket, record: Bytes },
    /// Leaves once every record up to `after` is on disk; ticket 0 waits for nothing.
    Send { to: OriginId, message: Bytes, after: Ticket },
    /// Join into the store, with the bundle's own time for `now`: its clock was judged. Of one origin they come in the
    /// order of its chain. The caller reports with `on_applied` what the store has then.
    Apply { bundle: Bundle },
    /// Tell the store of floors that were missed, by `Store::adopt_floors`.
    AdoptFloors(FloorState),
    /// Tell the store of a floor, by `Store::raise_floor`.
    RaiseFloor(Floor),
    /// Tell the store that an origin's changes end here, by `Store::end_origin`.
    EndOrigin { origin: Origin, last: u64 },
    /// Something that came was dropped. `from` is nothing for what came by the log.
    Refused { from: Option<OriginId>, reason: Reason },
    /// An origin contradicted itself; the log should decide where it ends. Nothing of it is taken until then.
    Evidence(Box<Proof>),
    /// What is missing cannot be had frame by frame: fetch a snapshot and `install` it. Said again while it lasts.
    NeedSnapshot { need: Need, donors: Vec<OriginId> },
    /// A member has not acknowledged for `ack_patience` what is here: nothing is collected until it does or is cut.
    Withholds { member: Origin },
    /// A member's own words keep everybody from collecting: said once for each fault.
    Accuses { member: Origin, fault: Fault },
    /// Run `audit::answer` on the store, with what `stand` says, and hand the outcome to `on_audited`.
    Audit { peer: OriginId, work: Option<Work> },
    /// Keys whose state differs from the peer's though both applied the same: one copy is damaged.
    Differs { peer: OriginId, keys: Vec<Bytes> },
    /// Keys that have changed in memory since they were last written: the damage is here.
    Damaged { keys: Vec<Bytes> },
    /// Run `repair::copies` on the store and hand the outcome to `give_copies`.
    Copies { peer: OriginId, question: Question },
    /// Enough members at this place say this of these keys: run `repair::adopt` on the store, have it saved where anything was
    /// another, and say so with `on_repaired`.
    Repair { at: Hash, copies: Vec<Copy> },
    /// An exchange with the peer ended; so it stands with it.
    Exchanged { peer: OriginId, figures: Figures },
}

/// What a member does, beside not acknowledging, that keeps everybody from collecting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// For `ack_patience` it has said that it wrote more than anybody gave.
    Overstates,
    /// It signed a frame whose bundle cannot be read, so nothing of it can follow.
    BadBundle,
}

impl Fault {
    /// The word in figures.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Overstates => "says it wrote more than it gives",
            Self::BadBundle => "signed a frame that cannot be read",
        }
    }
}

/// Why a snapshot is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// More members than may lie have dropped what is missing here, or fewer have and nobody gave it for `ack_patience`.
    Gone,
    /// An origin's end was decided on another branch of its chain than the one applied here.
    Branch,
    /// A floor was committed that covers what this replica lacks. It may not write until it has it.
    BelowFloor,
}

/// Why something was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Reason {
    /// Known already. Counted, not told of: duplicates are the normal case.
    Known,
    TooLong,
    Malformed,
    /// Its sender is no member, or not in this incarnation.
    Stranger,
    /// Its origin is no member.
    UnknownOrigin,
    /// Its signature is not its origin's.
    Forged,
    /// Its bundle is none, or not the one its header names.
    BadBundle,
    /// Its time is too far ahead of the clock here.
    ClockAhead,
    /// Its origin contradicted itself.
    Frozen,
    /// Its origin ended before it.
    BeyondCut,
    /// Its origin ended on another branch than the one here.
    OtherBranch,
    /// Too much waits for what comes before it.
    WaitingFull,
    /// There is no room to keep it.
    LogFull,
    /// A peer claimed to have what it did not deliver.
    FalseHead,
    /// A proof that proves nothing.
    FalseProof,
    /// An answer to no question.
    Unasked,
    /// More questions than one may ask.
    TooOften,
}

impl Reason {
    pub const ALL: [Self; 17] = [
        Self::Known,
        Self::TooLong,
        Self::Malformed,
        Self::Stranger,
        Self::UnknownOrigin,
        Self::Forged,
        Self::BadBundle,
        Self::ClockAhead,
        Self::Frozen,
        Self::BeyondCut,
        Self::OtherBranch,
        Self::WaitingFull,
        Self::LogFull,
        Self::FalseHead,
        Self::FalseProof,
        Self::Unasked,
        Self::TooOften,
    ];

    /// The word in figures.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Known => "known",
            Self::TooLong => "too long",
            Self::Malformed => "malformed",
            Self::Stranger => "stranger",
            Self::UnknownOrigin => "unknown origin",
            Self::Forged => "forged",
            Self::BadBundle => "bad bundle",
            Self::ClockAhead => "clock ahead",
            Self::Frozen => "frozen",
            Self::BeyondCut => "beyond cut",
            Self::OtherBranch => "other branch",
            Self::WaitingFull => "waiting full",
            Self::LogFull => "log full",
            Self::FalseHead => "false head",
            Self::FalseProof => "false proof",
            Self::Unasked => "unasked",
            Self::TooOften => "too often",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// Actions, the count of records, and how often each reason came up.
#[derive(Clone, Debug, Default)]
pub(crate) struct Output {
    /// Bounded by what one step makes; the caller drains it after each.
    actions: Vec<Action>,
    last_ticket: Ticket,
    counts: [u64; Reason::ALL.len()],
}

impl Output {
    pub(crate) fn after_replay(records: usize) -> Self {
        Self { last_ticket: Ticket(records as u64), ..Self::default() }
    }

    pub(crate) fn push(&mut self, action: Action) {
        self.actions.push(action);
    }

    pub(crate) fn persist(&mut self, record: &Record) -> Ticket {
        self.last_ticket = self.last_ticket.next();
        self.push(Action::Persist { ticket: self.last_ticket, record: record.to_bytes() });
        self.last_ticket
    }

    pub(crate) fn last_ticket(&self) -> Ticket {
        self.last_ticket
    }

    pub(crate) fn refuse(&mut self, from: Option<OriginId>, reason: Reason) {
        self.counts[reason as usize] += 1;
        if reason != Reason::Known {
            self.push(Action::Refused { from, reason });
        }
    }

    pub(crate) fn count(&self, reason: Reason) -> u64 {
        self.counts[reason as usize]
    }

    pub(crate) fn take(&mut self) -> Vec<Action> {
        core::mem::take(&mut self.actions)
    }
}
