//! What goes into a replica and what comes out: the whole surface between the core and the world.
//!
//! The driver calls `step(now, input, &mut outbox)` for every input, or `step_all` for a burst of them, and
//! `Input::Settle` when it has handed over all it had; proposals leave at Settle, so that what arrived together is ordered together. Effects are carried out in
//! order. `Persist` has a ticket; whatever names that ticket in `after` leaves only when it is on disk.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use borsh::{BorshDeserialize, BorshSerialize};
use bytes::Bytes;
use core::fmt;
use dwcp_base::{
    Ack, Epoch, Hash, Incarnation, Index, NetworkMode, Position, PublicKey, ReplicaId, Sequence, Signature,
    Term, Ticket, Trust, View,
};
use dwcp_log::MemberOrder;
use dwcp_state::{CommandResult, Refusal, SessionId};

/// The driver's name for one client connection. The driver never reuses one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientId(pub u64);

/// Something happened outside.
#[derive(Clone, Debug)]
pub enum Input {
    /// Bytes from a peer over a link whose other end proved to be this incarnation of this replica.
    Peer { from: ReplicaId, incarnation: Incarnation, bytes: Bytes },
    /// A link to this peer came up: what it may have missed is sent again.
    LinkUp { peer: ReplicaId },
    /// The link to this peer broke. Only a hint that spares waiting for a process that is gone.
    LinkDown { peer: ReplicaId },
    /// Every record up to this ticket is on disk. Handed in after each sync, before the next `Settle`.
    Durable { through: Ticket },
    /// A client asks for something.
    Client { client: ClientId, request: ClientRequest },
    /// A client's connection ended; nothing is sent to it any more.
    ClientGone { client: ClientId },
    /// The moment named by `next_wakeup` has come (or passed; waking too often is harmless).
    Wake,
    /// All inputs that were there have been handed over.
    Settle,
    /// `Effect::ReadChunk` was carried out. `None`: it cannot be read (any more).
    ChunkRead { token: u64, bytes: Option<Bytes> },
    /// `Effect::SaveSnapshot` or `FinishSnapshot` was carried out and is durable.
    SnapshotSaved { sequence: Sequence },
    /// It could not be carried out (full disk, say); the replica goes on with its longer log and tries a later one.
    SnapshotFailed { sequence: Sequence },
}

/// What a client may ask.
#[derive(Clone, Debug)]
pub enum ClientRequest {
    /// From now on results of this session, wherever its frames entered the cluster, also go to this client. The driver
    /// hands this in, and frames of the session, only for a client that proved to it that it holds the session's key.
    Attach { session: SessionId },
    /// An encoded `dwcp_state::ClientFrame`. Attaches the client to the frame's session. `ack`: when this client wants to
    /// hear of it; `None`: as the policy says.
    Frame { bytes: Bytes, ack: Option<Ack> },
    /// An operator's order, encoded `dwcp_log::OperatorOrder`.
    Order { id: u64, bytes: Bytes },
    /// A linearizable read of the state, if this replica leads the open segment: answered by `ClientReply::Query` once a
    /// majority confirmed that it still leads. Anybody else refuses; the same bytes can be ordered as a command instead.
    /// `ack` as of a frame: who wants to hear of what is anchored alone must order the read, no majority knows that.
    Read { id: u64, bytes: Bytes, ack: Option<Ack> },
    /// A read of this replica's own state; may be stale.
    Query { id: u64, bytes: Bytes },
    /// How this replica sees itself and the cluster.
    Status { id: u64 },
    /// Something of convergent state; answered by `ClientReply::Sync` with the same id.
    Sync { id: u64, request: crate::sync::SyncRequest },
}

/// Why a replica has no answer to a client's frame now. Asking again under the same number, here or elsewhere, is safe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotNow {
    /// What waits here to be ordered leaves no room.
    Full,
    /// Others have executed what this replica has not, or its state is wrong.
    Behind,
    /// The open segment's log waits for a quorum to anchor what it holds, and takes nothing more.
    LogFull,
    /// It ran, and too many others wait for the same Anchor.
    PutOff,
}

impl NotNow {
    /// Whether the frame was not taken: not applied by this replica.
    #[must_use]
    pub const fn is_definite(self) -> bool {
        !matches!(self, Self::PutOff)
    }
}

impl fmt::Display for NotNow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "this node is busy: not applied; wait a little or ask another node",
            Self::Behind => "this node is behind: not applied; wait a little or ask another node",
            Self::LogFull => {
                "the segment's log is full: it waits for a quorum to anchor it; not applied; start the nodes that are down"
            }
            Self::PutOff => "too many answers wait for an Anchor: ask again, it runs once",
        })
    }
}

/// An answer to a client.
#[derive(Clone, Debug)]
pub enum ClientReply {
    /// A frame was executed (or had been).
    Executed(ExecutedReply),
    /// A frame will not be ordered by this replica.
    Refused {
        session: SessionId,
        first: u64,
        refusal: Refusal,
    },
    /// This replica has no answer to the frame now.
    Busy {
        session: SessionId,
        first: u64,
        why: NotNow,
    },
    /// A frame that cannot even be read, or whose signature is bad.
    Malformed {
        reason: String,
    },
    Order {
        id: u64,
        outcome: OrderOutcome,
    },
    /// To a query or a linearizable read.
    Query {
        id: u64,
        outcome: Result<Answered, Unanswered>,
    },
    Status {
        id: u64,
        status: Box<Status>,
    },
    Sync {
        id: u64,
        reply: crate::sync::SyncReply,
    },
}

/// What one replica read of its state, and what that is worth. The link proves whose word it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    pub bytes: Bytes,
    pub label: ReadLabel,
    /// The last entry of the virtual log in the state that was read.
    pub position: Position,
    pub view: View,
}

/// What one replica's word about its state is worth. It is never [`Label::Byzantine`]: no certificate covers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ReadLabel {
    /// Its own state, which may be old.
    Stale,
    /// Linearizable as long as members only crash.
    Crash,
}

/// Why a question has no answer here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unanswered {
    pub reason: String,
    pub advice: Advice,
}

/// Where else a question may find its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Advice {
    /// Nowhere: the question itself is refused.
    Nowhere,
    /// At another replica, or here a little later.
    Elsewhere,
    /// At the segment's leader.
    Leader(ReplicaId),
    /// As an ordered command: nobody answers a linearizable read otherwise now.
    Order,
}

/// What became of an operator's order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OrderOutcome {
    /// In force from this sequence on.
    Done {
        sequence: Sequence,
    },
    Refused {
        reason: String,
    },
}

/// Whom an acknowledgement trusts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, BorshSerialize, BorshDeserialize)]
#[borsh(use_discriminant = false)]
pub enum Label {
    /// Holds as long as members only crash.
    Crash,
    /// f >= 1 and a certificate of the root covers it: holds though f members lie.
    Byzantine,
}

/// One replica's signed word on what a frame's commands returned.
///
/// The signature covers a Merkle root over one executed proposal, so one signature serves every frame in it.
/// A client of a cluster with f liars believes `f + 1` equal `leaf_hash`es from different replicas.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct ExecutedReply {
    pub session: SessionId,
    /// The frame's first sequence; `results` are in the frame's order.
    pub first: u64,
    pub results: Vec<CommandResult>,
    pub label: Label,
    /// Hints, not signed: the view, and who orders commands now.
    pub view: View,
    pub ask: ReplicaId,
    pub replica: ReplicaId,
    pub incarnation: Incarnation,
    /// Index of this frame's leaf and the hashes beside the way to the root.
    pub leaf_index: u32,
    pub leaf_count: u32,
    pub path: Vec<Hash>,
    /// `None` under f = 0, where one replica's word suffices and the link proves whose it is.
    pub signature: Option<Signature>,
}

/// How urgent bytes to a peer are; queues drop `Bulk` first and `Vote` last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    Vote,
    Order,
    Request,
    Bulk,
}

/// A consistent copy of the replicated state at one sequence, to be written chunk by chunk beside the core.
pub trait FrozenChunks: Send {
    fn chunk_count(&self) -> u32;
    /// # Errors
    /// A machine that cannot write a chunk says why; the snapshot is then abandoned.
    fn chunk(&self, index: u32) -> Result<Vec<u8>, String>;
}

/// Something to be done outside, in this order.
pub enum Effect {
    /// Append to the write-ahead log. Tickets count up by one. `prompt`: the core itself waits for `Input::Durable`, so the
    /// disk should not wait for company.
    Persist {
        ticket: Ticket,
        record: Vec<u8>,
        prompt: bool,
    },
    Send {
        to: ReplicaId,
        class: Class,
        after: Ticket,
        bytes: Bytes,
    },
    Reply {
        client: ClientId,
        after: Ticket,
        reply: ClientReply,
    },
    /// Write a snapshot in the background; answer with `SnapshotSaved` or `SnapshotFailed`.
    SaveSnapshot {
        sequence: Sequence,
        meta: Vec<u8>,
        frozen: Box<dyn FrozenChunks>,
    },
    /// One chunk of a snapshot that is being fetched; kept across a restart.
    SaveChunk {
        sequence: Sequence,
        index: u32,
        bytes: Bytes,
    },
    /// The fetched snapshot is whole; answer with `SnapshotSaved` once it is durable.
    FinishSnapshot {
        sequence: Sequence,
        meta: Vec<u8>,
    },
    /// Read part of a chunk for a peer; answer with `ChunkRead`.
    ReadChunk {
        token: u64,
        sequence: Sequence,
        index: u32,
        offset: u64,
        bytes_max: u32,
    },
    DropSnapshot {
        sequence: Sequence,
    },
    /// Records before this ticket are no longer needed.
    DiscardLog {
        before: Ticket,
    },
    /// A member's keys or addresses changed: links must follow.
    MemberChanged {
        order: Box<MemberOrder>,
    },
    /// For logs, metrics and judges. Never needed for correctness.
    Event(Event),
    /// This replica must not go on; the reason says what to do.
    Halt {
        reason: String,
    },
}

impl core::fmt::Debug for Effect {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Persist { ticket, record, .. } => write!(f, "Persist({ticket:?}, {} B)", record.len()),
            Self::Send { to, class, after, bytes } => {
                write!(f, "Send({to:?}, {class:?}, after {after:?}, {} B)", bytes.len())
            }
            Self::Reply { client, after, reply } => {
                write!(f, "Reply({client:?}, after {after:?}, {reply:?})")
            }
            Self::SaveSnapshot { sequence, .. } => write!(f, "SaveSnapshot({sequence:?})"),
            Self::SaveChunk { sequence, index, bytes } => {
                write!(f, "SaveChunk({sequence:?}, {index}, {} B)", bytes.len())
            }
            Self::FinishSnapshot { sequence, .. } => write!(f, "FinishSnapshot({sequence:?})"),
            Self::ReadChunk { token, sequence, index, offset, .. } => {
                write!(f, "ReadChunk({token}, {sequence:?}, {index} at {offset})")
            }
            Self::DropSnapshot { sequence } => write!(f, "DropSnapshot({sequence:?})"),
            Self::DiscardLog { before } => write!(f, "DiscardLog({before:?})"),
            Self::MemberChanged { order } => write!(f, "MemberChanged({order:?})"),
            Self::Event(event) => write!(f, "Event({event:?})"),
            Self::Halt { reason } => write!(f, "Halt({reason})"),
        }
    }
}

/// What is worth telling people and judges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// An origin of convergent state contradicted itself: nothing of it is taken until the log has decided where it ends.
    OriginFrozen {
        origin: String,
    },
    /// A member keeps everybody from collecting convergent state.
    MemberHoldsUp {
        member: String,
        how: &'static str,
    },
    /// Convergent keys whose state had changed by itself: put right by what enough members hold.
    KeysRepaired {
        keys: u64,
    },
    /// This replica gave up on a view and asks for this one.
    ViewChangeStarted {
        view: View,
        reason: &'static str,
    },
    /// This replica works in this view now. `gaps`: slots filled with the null request; `carried`: slots re-proposed.
    ViewEntered {
        view: View,
        primary: ReplicaId,
        gaps: u32,
        carried: u32,
    },
    /// A slot was executed. `commands` lists every command that ran now, not those that had run before.
    Executed {
        sequence: Sequence,
        position: Position,
        view: View,
        payload_digest: Hash,
        chain: Hash,
        commands: Vec<ExecutedCommand>,
    },
    /// An operator's mode order took effect.
    ModeOrdered {
        sequence: Sequence,
        mode: NetworkMode,
    },
    /// A segment opened: from here on the virtual log is extended by it.
    SegmentOpened {
        epoch: Epoch,
        sequence: Sequence,
        base: Position,
        first_leader: Option<ReplicaId>,
        /// Whether this replica takes part.
        member: bool,
    },
    /// An entry of a segment was executed here. After a restart entries are executed anew on the state of the last
    /// snapshot; an entry has the same chain each time.
    SegmentExecuted {
        epoch: Epoch,
        index: Index,
        position: Position,
        chain: Hash,
        commands: Vec<ExecutedCommand>,
    },
    /// A batch that the root had ordered while the segment was open was executed after its Close.
    DeferredExecuted {
        sequence: Sequence,
        position: Position,
        chain: Hash,
        commands: Vec<ExecutedCommand>,
    },
    /// Who leads the segment, as far as this replica knows.
    LeaderChanged {
        epoch: Epoch,
        term: Term,
        leader: Option<ReplicaId>,
    },
    /// This replica complains that the segment does not move.
    Suspected {
        epoch: Epoch,
        reason: &'static str,
    },
    /// This replica takes no further part in the epoch; its log ends here.
    SegmentSealed {
        epoch: Epoch,
        index: Index,
        term: Term,
    },
    /// A Close was executed. `forced`: nobody had ordered it. `marker`: the leader ended the segment in order, without
    /// collecting reports. `cut`: own entries past the tail that were dropped. `rolled_back`: entries that had been
    /// executed here and are not part of the log (somebody lied).
    SegmentClosed {
        epoch: Epoch,
        sequence: Sequence,
        tail: Index,
        position: Position,
        forced: bool,
        marker: bool,
        cut: u64,
        rolled_back: u64,
        deferred: u32,
    },
    /// An Anchor was executed: `q` replicas held and computed the same here.
    Anchored {
        epoch: Epoch,
        sequence: Sequence,
        index: Index,
        position: Position,
    },
    /// What this replica holds at an Anchor is something else; it fetches the certified state.
    AnchorDiverged {
        epoch: Epoch,
        index: Index,
    },
    /// The state's digest after a checkpoint's sequence, as this replica computed it.
    Digest {
        sequence: Sequence,
        digest: Hash,
    },
    StableCheckpoint {
        sequence: Sequence,
        digest: Hash,
    },
    /// This replica's own digest differs from the certified one; it fetches the state anew.
    Diverged {
        sequence: Sequence,
        own: Hash,
        certified: Hash,
    },
    StateTransferStarted {
        sequence: Sequence,
    },
    /// Chunks of this snapshot that an earlier life of this replica had fetched are used.
    ChunksTakenUp {
        sequence: Sequence,
        chunks: u32,
    },
    StateTransferFinished {
        sequence: Sequence,
    },
    /// A donor sent what does not match the certificate; it is not asked again for this snapshot.
    DonorDropped {
        donor: ReplicaId,
        sequence: Sequence,
    },
    /// A donor did not give a chunk in time, or sends more of it than it may before others are asked; it is asked for
    /// nothing for a while.
    DonorLate {
        donor: ReplicaId,
        sequence: Sequence,
    },
    /// This replica recovered from its disk.
    Recovered {
        view: View,
        executed: Sequence,
        stable: Sequence,
        inside_view_change: bool,
        records: u64,
    },
    /// A member's new incarnation is in force; it votes after `votes_after`.
    MemberReplaced {
        id: ReplicaId,
        incarnation: Incarnation,
        votes_after: Sequence,
    },
    /// A new incarnation counts again.
    MemberReadmitted {
        id: ReplicaId,
        incarnation: Incarnation,
    },
    /// A retry was answered from the session table instead of being run again.
    RetryAnswered {
        session: SessionId,
        first: u64,
    },
    /// Something from a peer or client was refused, under a named reason.
    Refused {
        from: Option<ReplicaId>,
        reason: &'static str,
    },
}

/// A command that ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExecutedCommand {
    pub session: SessionId,
    pub sequence: u64,
    pub result: Hash,
}

/// How a replica sees itself and the cluster.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Status {
    pub replica: ReplicaId,
    pub incarnation: Incarnation,
    pub n: u8,
    pub f: u8,
    pub view: View,
    /// False while a view change is under way.
    pub view_active: bool,
    pub primary: ReplicaId,
    pub executed: Sequence,
    pub stable: Sequence,
    /// The highest sequence anybody showed us evidence of.
    pub highest_seen: Sequence,
    pub position: Position,
    pub chain: Hash,
    pub state_digest_sequence: Sequence,
    pub state_digest: Hash,
    pub pending_frames: u32,
    pub pending_bytes: u64,
    pub executed_commands: u64,
    pub log_time_ms: u64,
    pub voter: bool,
    pub transferring: bool,
    /// Reasons why this replica is not ready; empty when it is.
    pub not_ready: Vec<String>,
    pub counters: Vec<(String, u64)>,
    pub peers: Vec<PeerStatus>,
    /// The key that signs this replica's replies.
    pub vote_key: PublicKey,
    pub mode: NetworkMode,
    pub trust: Trust,
    /// Whether the policy allows Raft segments.
    pub raft: bool,
    pub default_ack: Ack,
    /// The number that the next mode or policy order must have.
    pub next_order: u64,
    /// The last epoch that was opened; 0 before the first.
    pub epoch: Epoch,
    /// What extends the virtual log now.
    pub protocol: ProtocolName,
    /// Who orders commands now, as far as this replica knows: the segment's leader or the root's primary.
    pub orderer: Option<ReplicaId>,
    pub segment: Option<SegmentStatus>,
    /// Closes that nobody had ordered, since the genesis.
    pub failovers: u64,
    pub last_switch: Option<SwitchStatus>,
    /// Why no segment serves in hybrid or datacenter mode; empty when one does, or need not.
    pub no_segment: String,
    /// State sync; `None` where it is turned off.
    pub sync: Option<crate::sync::SyncStatus>,
}

/// Names of what may extend the virtual log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
#[borsh(use_discriminant = false)]
pub enum ProtocolName {
    Pbft,
    Raft,
}

impl ProtocolName {
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Pbft => "pbft",
            Self::Raft => "raft",
        }
    }
}

/// The open segment as this replica sees it.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct SegmentStatus {
    pub term: Term,
    pub leader: Option<ReplicaId>,
    pub last: Index,
    pub committed: Index,
    pub applied: Index,
    /// The last Anchor's index, and the position it covers.
    pub anchored: Index,
    pub anchored_position: Position,
    pub sealed: bool,
    pub suspecting: bool,
}

/// The last change of what extends the virtual log.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct SwitchStatus {
    /// The epoch that was closed or opened.
    pub epoch: Epoch,
    pub to: ProtocolName,
    pub planned: bool,
    pub sequence: Sequence,
    /// How long a command waited around it at most, as seen here, in microseconds: the interval between two executions,
    /// less the time in which nothing waited here. 0 while nothing was executed since.
    pub gap_us: u64,
    /// This replica's clock when it happened, Unix milliseconds.
    pub at_unix_ms: u64,
    pub cause: String,
}

/// What a replica last heard of a peer.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct PeerStatus {
    pub id: ReplicaId,
    pub view: View,
    pub executed: Sequence,
    pub stable: Sequence,
    /// Milliseconds since anything came from it; `u64::MAX` for never.
    pub silent_ms: u64,
}
