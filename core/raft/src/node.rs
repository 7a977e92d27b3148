//! The face of a Raft node: all that the rest of a replica knows of the protocol inside a segment. `Raft` has it, and a
//! library from elsewhere may have it behind an adapter, which is why messages and records are bytes here.
//!
//! The contract, beyond the signatures:
//! - One node serves one epoch. Indices begin at 1, and each is one position of the virtual log, whoever proposed it.
//! - The caller hands over whatever came in, then calls `settle` once, then drains `take`. What one burst brought leaves
//!   together; nothing is promised to leave before `settle`.
//! - A vote or acknowledgement waits for its record: its `Send` names the ticket. `on_durable` tells the node itself.
//! - A node sealed by `seal` answers nothing and accepts nothing for ever, also after a restart; it still serves entries.
//! - A node with a Marker in its log proposes nothing, acknowledges nothing past it and helps to confirm no read, until
//!   the Marker is replaced by a later leader's entries.
//! - Bytes from members may be anything. A node drops what it cannot use, says `Action::Refused`, and never panics.

use crate::config::SegmentSetup;
use crate::message::{Body, Entry, Payload};
use crate::output::Action;
use alloc::boxed::Box;
use alloc::vec::Vec;
use bytes::Bytes;
use core::fmt;
use dwcp_base::{CodecError, Epoch, Micros, Now, ReplicaId, SettingsError, Ticket};
use dwcp_log::place::{Index, Place, Term};

/// Where a sealed log ends.
pub type SealPoint = Place;

/// A seal, and the record that must be durable before anybody is told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sealed {
    pub point: SealPoint,
    pub ticket: Ticket,
}

/// Why a payload was not taken. It is definitely not in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProposeError {
    /// Ask this one.
    NotLeader { leader: Option<ReplicaId> },
    /// Leadership is being handed to this one; ask it in a moment.
    Transferring { to: ReplicaId },
    /// Too much is uncommitted; ask again when something has committed.
    Busy,
    /// The log is full; the caller must discard what a snapshot covers first.
    LogFull,
    /// The log ends with a Marker; wait for the next epoch.
    Marker,
    /// The epoch is over here; wait for the next one.
    Sealed,
    /// No member would accept this payload.
    Invalid(CodecError),
}

impl fmt::Display for ProposeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotLeader { leader: Some(leader) } => write!(f, "not the leader: ask replica {leader}"),
            Self::NotLeader { leader: None } => write!(f, "no leader is known: ask again soon"),
            Self::Transferring { to } => write!(f, "leadership is moving to replica {to}: ask it soon"),
            Self::Busy => write!(f, "too much is uncommitted: ask again soon"),
            Self::LogFull => write!(f, "the log is full: a snapshot must be written first"),
            Self::Marker => write!(f, "the segment is ending: wait for the next epoch"),
            Self::Sealed => write!(f, "the segment is sealed: wait for the next epoch"),
            Self::Invalid(error) => write!(f, "no member would accept this payload: {error}"),
        }
    }
}

impl core::error::Error for ProposeError {}

/// Why a read was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadError {
    /// Ask this one.
    NotLeader { leader: Option<ReplicaId> },
    /// Too many reads wait; ask again soon.
    Busy,
    /// The log holds a Marker; wait for the next epoch.
    Marker,
    /// The epoch is over here; wait for the next one.
    Sealed,
}

/// Why leadership does not move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransferError {
    NotLeader {
        leader: Option<ReplicaId>,
    },
    /// Not another member of the segment.
    NotAMember,
    /// The segment is ending or over.
    Ending,
}

/// Why a log does not begin where it was told to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InstallError {
    /// The log is committed up to or past there already.
    NotAhead { commit: Index },
    /// The epoch is over here.
    Sealed,
}

/// Why a segment cannot begin from what was found on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpenError {
    Setup(SettingsError),
    /// This record (counted from 1) cannot be read.
    Record {
        number: u64,
        error: CodecError,
    },
    /// This record is another epoch's: a segment's log is never used again.
    Epoch {
        number: u64,
        found: Epoch,
    },
    /// This record does not follow from those before it: records were lost.
    Gap {
        number: u64,
    },
    /// A foreign implementation's own reason.
    Other(&'static str),
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Setup(error) => write!(f, "{error}"),
            Self::Record { number, error } => write!(f, "record {number} of the segment: {error}"),
            Self::Epoch { number, found } => {
                write!(f, "record {number} of the segment belongs to epoch {found}: the log was mixed up")
            }
            Self::Gap { number } => {
                write!(
                    f,
                    "record {number} of the segment does not follow from those before it: the log is damaged"
                )
            }
            Self::Other(reason) => write!(f, "{reason}"),
        }
    }
}

impl core::error::Error for OpenError {}

/// One replica's part in one segment.
pub trait RaftNode: fmt::Debug + Send {
    /// Appends to the leader's log. Success says where it stands, not that it will stay.
    ///
    /// # Errors
    /// The payload is definitely not in the log.
    fn propose(&mut self, now: Now, payload: &Payload) -> Result<Place, ProposeError>;

    /// Asks for an index at which a read that begins now is linearizable. Answered by `Action::ReadsReady` or
    /// `ReadsFailed` with the caller's token.
    ///
    /// # Errors
    /// The read was not taken and no action will name it.
    fn read_index(&mut self, now: Now, token: u64) -> Result<(), ReadError>;

    /// Hands leadership to another member, or gives up on it after an election timeout.
    ///
    /// # Errors
    /// Nothing was begun.
    fn transfer_leadership(&mut self, now: Now, to: ReplicaId) -> Result<(), TransferError>;

    fn is_leader(&self) -> bool;
    /// Who leads, as far as known.
    fn leader(&self) -> Option<ReplicaId>;
    fn term(&self) -> Term;
    /// Whether the log takes no batch before its caller has discarded some of it. A foreign node may leave it at this: its
    /// caller hears of it when it proposes.
    fn is_full(&self) -> bool {
        false
    }
    /// The last index known to be committed.
    fn commit(&self) -> Index;
    /// The last entry.
    fn last(&self) -> Place;
    /// At the leader, up to where each other member is known to hold its log durably; nothing elsewhere. A caller that
    /// discards past one of these sends that member a snapshot later.
    fn followers(&self) -> Vec<(ReplicaId, Index)>;
    /// The place before the first entry that is still held; index 0 until something was discarded or installed.
    fn border(&self) -> Place;
    /// The last entry that is durable here.
    fn durable(&self) -> Index;
    /// The place of this index, if it is the border or held.
    fn place(&self, index: Index) -> Option<Place>;
    /// Entries from `from` through `through`, as far as held, consecutive, at least one if there is one, then as many as
    /// stay within `bytes_max` of bodies. Entries past `commit` may still be replaced.
    fn entries(&self, from: Index, through: Index, bytes_max: usize) -> Vec<Entry>;

    /// Takes a message that the link proved to be `from`'s. Entries of a leader whose time is more than
    /// [`CLOCK_AHEAD_MAX_MS`](dwcp_base::limits::CLOCK_AHEAD_MAX_MS) beyond `now.wall_ms` are not taken yet.
    fn step(&mut self, now: Now, from: ReplicaId, bytes: &[u8]);
    /// Does whatever is due by now.
    fn tick(&mut self, now: Now);
    /// When `tick` is due (a moment of the monotonic clock).
    fn next_wakeup(&self) -> Micros;
    /// The link to this member broke. Only a hint, and only of use if that member leads: a follower need not wait out its
    /// patience for a process that is gone.
    fn on_link_down(&mut self, _now: Now, _peer: ReplicaId) {}
    /// Every record up to this ticket is on disk.
    fn on_durable(&mut self, now: Now, through: Ticket);
    /// Everything that was there has been handed over: what it brought about is written down and sent.
    fn settle(&mut self, now: Now);

    /// Ends this replica's part in the epoch for ever and says where its log ends. The promise holds once the ticket's
    /// record is durable; nobody may be told before. Sealing again gives the same answer.
    fn seal(&mut self, now: Now) -> Sealed;
    /// Where the log was sealed, if it was.
    fn sealed(&self) -> Option<SealPoint>;

    /// Drops entries up to this index, which the caller's snapshots cover; never past `commit`. Says where the log begins
    /// now.
    fn discard(&mut self, through: Index) -> Place;
    /// The oldest record that a restart still needs; earlier ones may go from the disk. Only what is durable counts, so
    /// this may be acted on at once.
    fn needed_from(&self) -> Ticket;
    /// The caller holds, durably, the virtual state at this committed place: the log goes on from there. Never the place of
    /// a Marker, which nobody could tell from other entries then: a caller who has executed one names the place before
    /// it (a Marker changes no state, and every log that holds it keeps it). A node that holds something else there, called
    /// committed by a leader that lied, should take the caller's word for it; one that does not waits for the segment's end.
    ///
    /// # Errors
    /// Nothing changed.
    fn install(&mut self, now: Now, place: Place) -> Result<(), InstallError>;

    /// The caller knows from elsewhere that this place is committed: a node that holds it need not wait for a leader to say
    /// so, which after a restart of all takes an election. Without effect where the log holds something else or ends
    /// before. A foreign node may well learn it the slow way.
    fn learn_commit(&mut self, _place: Place) {}

    /// The caller is about to vouch for the committed log up to this index: once the ticket's record is durable the log never
    /// parts from it, in no later life either. A majority's word would see to that alone if nobody lied; a member that
    /// lies can have a log called committed that a later leader replaces. `Ticket::ZERO`, the default, is for a node whose
    /// commit index is as durable as its entries.
    fn pin(&mut self, _index: Index) -> Ticket {
        Ticket::ZERO
    }

    /// What is to be done, in order.
    fn take(&mut self) -> Vec<Action>;

    /// Asserts what must always hold. A foreign node may have nothing to say.
    fn check(&self) {}
}

/// Where nodes come from: one per epoch, from what the disk holds of it.
pub trait RaftMaker: fmt::Debug + Send + Sync {
    /// A node for this segment, having taken back every record that it persisted in this epoch, in order (from
    /// `needed_from` on). No records: the segment is new.
    ///
    /// # Errors
    /// Why it cannot begin.
    fn open(&self, setup: SegmentSetup, records: &[Bytes], now: Now) -> Result<Box<dyn RaftNode>, OpenError>;
}

/// The bytes of a payload, or why nobody would accept it.
///
/// # Errors
/// [`ProposeError::Invalid`].
pub fn body_of(payload: &Payload) -> Result<Body, ProposeError> {
    Body::new(payload).map_err(ProposeError::Invalid)
}
