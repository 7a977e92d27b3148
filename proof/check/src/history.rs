//! What was seen from outside: the clients' own journals and what each replica incarnation did.
//!
//! Plain numbers and bytes only, so that a history may come from the simulator, from real processes or from a file (see `lines`), and
//! so that no judge can inherit a mistake from the code it judges. All times come from one clock (the simulator's, or the
//! driver's machine), in microseconds. Two calls are ordered in real time when one returned strictly before the other was invoked.

use crate::operation::{Answer, KeyValue, Operation};
use crate::text;
use serde::{Deserialize, Serialize};
use std::fmt;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CommandId {
    #[serde(with = "text::session")]
    pub session: u128,
    pub seq: u64,
}

impl fmt::Display for CommandId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}/{}", self.session, self.seq)
    }
}

/// The strength an acknowledgement claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Label {
    Crash,
    Byzantine,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// Store revision after the operation. None only for stores without revisions (then only the per-key search applies).
    pub revision: Option<u64>,
    pub answer: Answer,
    /// Digest of the result as the client received it, to be compared with what the replicas say they computed.
    #[serde(with = "text::optional_digest", default)]
    pub digest: Option<[u8; 32]>,
}

impl Reply {
    pub fn new(revision: u64, answer: Answer) -> Self {
        Self { revision: Some(revision), answer, digest: None }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    Ok {
        returned_at_us: u64,
        reply: Reply,
        label: Label,
    },
    /// Definitely not applied, now or later.
    Refused {
        returned_at_us: u64,
        reason: String,
    },
    /// Never returned, or returned with the outcome unknown; then the client gave up at that time.
    Unknown {
        gave_up_at_us: Option<u64>,
    },
}

/// One command, however often the client library sent it: retries under one id are one command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    pub id: CommandId,
    pub invoked_at_us: u64,
    pub operation: Operation,
    pub outcome: Outcome,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientJournal {
    pub client: u64,
    pub honest: bool,
    pub commands: Vec<Command>,
}

impl ClientJournal {
    pub fn new(client: u64) -> Self {
        Self { client, honest: true, commands: Vec::new() }
    }

    /// Notes an invocation; returns its place in the journal, for `returned`, `refused` or `gave_up`. Until one of them is called
    /// the outcome is unknown.
    pub fn invoked(&mut self, id: CommandId, at_us: u64, operation: Operation) -> usize {
        let outcome = Outcome::Unknown { gave_up_at_us: None };
        self.commands.push(Command { id, invoked_at_us: at_us, operation, outcome });
        self.commands.len() - 1
    }

    /// # Panics
    /// When `place` was not given out by `invoked`; so do `refused` and `gave_up`.
    pub fn returned(&mut self, place: usize, at_us: u64, reply: Reply, label: Label) {
        self.commands[place].outcome = Outcome::Ok { returned_at_us: at_us, reply, label };
    }

    pub fn refused(&mut self, place: usize, at_us: u64, reason: impl Into<String>) {
        self.commands[place].outcome = Outcome::Refused { returned_at_us: at_us, reason: reason.into() };
    }

    pub fn gave_up(&mut self, place: usize, at_us: u64) {
        self.commands[place].outcome = Outcome::Unknown { gave_up_at_us: Some(at_us) };
    }
}

/// A command as an entry executed it. Commands skipped because their session had already run them are not listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecutedCommand {
    pub id: CommandId,
    #[serde(with = "text::digest")]
    pub result: [u8; 32],
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Executed {
    pub epoch: u64,
    pub sequence: u64,
    /// Place in the virtual log after this entry; an entry that takes no place of its own repeats the one before.
    pub position: u64,
    #[serde(with = "text::digest")]
    pub digest: [u8; 32],
    /// The chain of the virtual log at `position`.
    #[serde(with = "text::optional_digest", default)]
    pub chain: Option<[u8; 32]>,
    pub commands: Vec<ExecutedCommand>,
}

/// An entry of the virtual log that takes one position: of a segment, or one that the root had deferred.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub position: u64,
    /// The chain of the virtual log with this entry.
    #[serde(with = "text::digest")]
    pub chain: [u8; 32],
    pub commands: Vec<ExecutedCommand>,
}

/// The end of a segment as a replica executed it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Closed {
    pub epoch: u64,
    /// Of the root entry.
    pub sequence: u64,
    pub tail: u64,
    /// The chain of the virtual log at the tail, where the bytes of the Close were seen.
    #[serde(with = "text::optional_digest", default)]
    pub chain: Option<[u8; 32]>,
    /// Ended by its leader's Marker, not by reports.
    pub marker: bool,
    /// Nobody had ordered it: members complained.
    #[serde(default)]
    pub forced: bool,
    /// Entries that this replica had executed and that are not part of the log.
    pub rolled_back: u64,
}

/// What a member of a segment says to another that binds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Word {
    /// Asks for a vote, or grants one.
    Vote,
    /// Acknowledges entries.
    Ack,
    /// Leads: entries or heartbeats.
    Lead,
    /// Confirms a leader, for its reads.
    Confirm,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum VoteKind {
    PrePrepare,
    Prepare,
    Commit,
    Checkpoint,
    ViewChange,
    NewView,
    AnchorVote,
    Suspect,
    Sealed,
    /// Any other kind that may be signed once per slot.
    Other(u16),
}

/// A vote as it left the replica. A kind that has no view or no sequence puts 0 there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vote {
    pub kind: VoteKind,
    pub epoch: u64,
    pub view: u64,
    pub sequence: u64,
    #[serde(with = "text::digest")]
    pub digest: [u8; 32],
}

/// One change of a key, as a watch is told of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    pub revision: u64,
    /// The place within the revision.
    pub sub: u32,
    #[serde(with = "text::bytes")]
    pub key: Vec<u8>,
    /// None: deleted.
    pub record: Option<KeyValue>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReplicaEvent {
    /// The process started. What it executes next may repeat what it executed before.
    Boot,
    /// State came from a snapshot (state transfer, or a roll-back): execution goes on from there.
    Restored {
        epoch: u64,
        sequence: u64,
    },
    /// As [`ReplicaEvent::Restored`], but noted in the order of what is executed of segments, which is noted at once,
    /// where what is executed of the root is noted as it leaves.
    Installs {
        epoch: u64,
        sequence: u64,
    },
    /// The cluster took this incarnation in as a voter.
    Admitted,
    Executed(Executed),
    Checkpoint {
        epoch: u64,
        sequence: u64,
        #[serde(with = "text::digest")]
        state: [u8; 32],
    },
    Voted(Vote),
    /// It holds this many slots ahead of what it has executed, more than ever before.
    Holds {
        slots: u64,
    },
    /// It executed an Open: from `base` on the log is the segment's. Noted when it is decided, before anything that
    /// follows from it leaves.
    Opened {
        epoch: u64,
        sequence: u64,
        base: u64,
    },
    /// After a boot or a snapshot: the control state knows the epochs up to this one.
    Knows {
        epoch: u64,
    },
    SegmentExecuted {
        epoch: u64,
        index: u64,
        entry: Entry,
    },
    /// The root's batch of this sequence, executed after the segment's end.
    DeferredExecuted {
        sequence: u64,
        entry: Entry,
    },
    /// An Anchor took effect. `chain`: as its bytes say, where they were seen.
    Anchored {
        epoch: u64,
        index: u64,
        #[serde(with = "text::optional_digest", default)]
        chain: Option<[u8; 32]>,
    },
    /// It decided to say that it takes no further part in an epoch. `order` counts what it decided in this boot.
    Sealing {
        epoch: u64,
        order: u64,
    },
    /// That is durable.
    Sealed {
        epoch: u64,
    },
    /// Words of a segment left it, decided on at this place of the count.
    Spoke {
        epoch: u64,
        word: Word,
        order: u64,
    },
    /// It complained of an epoch's segment.
    Complained {
        epoch: u64,
    },
    Closed(Closed),
    /// A certificate of the root covers the virtual log up to here, as it knows from now on: a batch of the root, a Close or an
    /// Anchor that it has executed.
    Covered {
        position: u64,
    },
    /// What it has decided about protocols once it has executed the root up to here.
    Decided {
        sequence: u64,
        decision: String,
    },
    /// What its watches would be told when the run is over: every change up to `revision`, from behind `forgotten` on.
    Changes {
        forgotten: u64,
        revision: u64,
        changes: Vec<Change>,
    },
    /// What an entry of the virtual log did to leases, as the store under it showed.
    Leased(crate::lease::Turn),
    /// Its state came from a snapshot, which has these leases: those of the log up to here.
    HoldsLeases {
        position: u64,
        leases: Vec<u64>,
    },
    /// Where it stands when the run is over and nothing is under way.
    Stands {
        position: u64,
        #[serde(with = "text::digest")]
        chain: [u8; 32],
        #[serde(with = "text::digest")]
        state: [u8; 32],
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamped {
    pub at_us: u64,
    pub event: ReplicaEvent,
}

/// What one incarnation of one replica did, in the order it did it, over all its boots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaJournal {
    pub replica: u32,
    pub incarnation: u64,
    /// Judges hold only honest replicas to account: not liars, not puppets.
    pub honest: bool,
    /// A voter by the genesis; every other incarnation must be admitted before it votes.
    pub founding: bool,
    pub events: Vec<Stamped>,
}

impl ReplicaJournal {
    pub fn new(replica: u32, incarnation: u64, honest: bool, founding: bool) -> Self {
        Self { replica, incarnation, honest, founding, events: Vec::new() }
    }

    pub fn note(&mut self, at_us: u64, event: ReplicaEvent) {
        self.events.push(Stamped { at_us, event });
    }

    pub fn executed(&self) -> impl Iterator<Item = &Executed> {
        self.events.iter().filter_map(|stamped| match &stamped.event {
            ReplicaEvent::Executed(entry) => Some(entry),
            _ => None,
        })
    }

    /// Everything that ran commands, as (position, commands), in the order in which it did.
    pub fn ran(&self) -> impl Iterator<Item = (u64, &[ExecutedCommand])> {
        self.ran_unless(|_, _, _| false)
    }

    /// As [`Self::ran`], without the entries of segments (epoch, index, chain) that are discarded.
    pub fn ran_unless(
        &self,
        discards: impl Fn(u64, u64, [u8; 32]) -> bool,
    ) -> impl Iterator<Item = (u64, &[ExecutedCommand])> {
        self.events.iter().filter_map(move |stamped| match &stamped.event {
            ReplicaEvent::SegmentExecuted { epoch, index, entry }
                if discards(*epoch, *index, entry.chain) =>
            {
                None
            }
            ReplicaEvent::Executed(Executed { position, commands, .. })
            | ReplicaEvent::SegmentExecuted { entry: Entry { position, commands, .. }, .. }
            | ReplicaEvent::DeferredExecuted { entry: Entry { position, commands, .. }, .. } => {
                Some((*position, commands.as_slice()))
            }
            _ => None,
        })
    }

    /// What ran in the entries of segments (epoch, index, chain) that are discarded, and nowhere else perhaps.
    pub fn taken_back(
        &self,
        discards: impl Fn(u64, u64, [u8; 32]) -> bool,
    ) -> impl Iterator<Item = CommandId> {
        let ran = self.events.iter().filter_map(move |stamped| match &stamped.event {
            ReplicaEvent::SegmentExecuted { epoch, index, entry }
                if discards(*epoch, *index, entry.chain) =>
            {
                Some(entry.commands.as_slice())
            }
            _ => None,
        });
        ran.flatten().map(|command| command.id)
    }

    /// "replica 2 (incarnation 1)"
    pub fn name(&self) -> String {
        format!("replica {} (incarnation {})", self.replica, self.incarnation)
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    pub clients: Vec<ClientJournal>,
    pub replicas: Vec<ReplicaJournal>,
}

impl History {
    /// The journal of a client, made on first use.
    pub fn client(&mut self, client: u64) -> &mut ClientJournal {
        let place = self.clients.iter().position(|journal| journal.client == client).unwrap_or_else(|| {
            self.clients.push(ClientJournal::new(client));
            self.clients.len() - 1
        });
        &mut self.clients[place]
    }

    pub fn honest_replicas(&self) -> impl Iterator<Item = &ReplicaJournal> {
        self.replicas.iter().filter(|journal| journal.honest)
    }

    pub fn honest_commands(&self) -> impl Iterator<Item = &Command> {
        self.clients.iter().filter(|journal| journal.honest).flat_map(|journal| &journal.commands)
    }
}
