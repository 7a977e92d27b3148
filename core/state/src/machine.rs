//! What a state machine must offer to be replicated. The built-in key-value store is one; a user may bring another.
//!
//! A small machine, whose whole state is cheap to write down, implements [`SmallMachine`] and is wrapped in [`Small`]:
//! one chunk, one hash. A large one implements [`StateMachine`]: many chunks, digests that follow writes, and a freeze
//! that shares instead of copying. Neither knows of sessions: each command reaches `apply` exactly once.

use crate::snapshot::{RestoreError, SnapshotError};
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use borsh::{BorshDeserialize, BorshSerialize};
use bytes::Bytes;
use core::fmt;
use dwcp_base::configuration::Role;
use dwcp_base::{Hash, Hasher, LogTime, Position};

/// Where, when and by whom a command runs. Equal at every replica.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    pub position: Position,
    pub log_time: LogTime,
    /// The expiry clock: advances with log time, but at most `EXPIRY_STEP_MAX_MS` per entry.
    pub expiry_ms: u64,
    pub principal: &'a str,
    pub role: Role,
}

/// Why a machine refused a command. It must have changed nothing that a client can read.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct MachineRefusal {
    /// The machine's own number for the reason.
    pub code: u16,
    /// One line for people, saying what to do.
    pub message: String,
    /// The machine's own encoding of the reason, for programs; may be empty.
    pub detail: Bytes,
}

impl MachineRefusal {
    #[must_use]
    pub fn new(code: u16, message: impl fmt::Display) -> Self {
        Self { code, message: message.to_string(), detail: Bytes::new() }
    }
}

impl fmt::Display for MachineRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.message)
    }
}

/// Why a local read has no answer.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum QueryError {
    Malformed,
    NotReadOnly,
    Refused(MachineRefusal),
}

impl fmt::Display for QueryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed => write!(f, "not a query"),
            Self::NotReadOnly => write!(f, "a query may only read: send this as a command of a session"),
            Self::Refused(refusal) => write!(f, "{refusal}"),
        }
    }
}

impl core::error::Error for QueryError {}

/// A snapshot that no longer changes. Cheap to clone; chunks are written out on demand, on any thread.
pub trait FrozenMachine: Clone + fmt::Debug + Send + Sync + 'static {
    /// # Errors
    /// When there is no such chunk or it cannot be written out.
    fn chunk(&self, index: u32) -> Result<Vec<u8>, SnapshotError>;
}

/// A deterministic machine: equal commands in equal order give equal results and equal digests, on every computer.
/// No clock, no randomness, no float, no unordered map; no panic on any bytes.
pub trait StateMachine: Sized + Send + 'static {
    type Frozen: FrozenMachine;

    /// Part of every snapshot; a snapshot of another machine is refused.
    const NAME: &'static str;

    /// The version of the machine's chunk format. A snapshot of a newer one is refused.
    fn version(&self) -> u32;

    /// Runs one command. `context.expiry_ms` never goes back.
    ///
    /// # Errors
    /// A refusal, which changed nothing.
    fn apply(&mut self, context: &Context<'_>, command: &[u8]) -> Result<Bytes, MachineRefusal>;

    /// True when the command changes nothing, whatever the state. Cheap: asked before every `apply`.
    fn read_only(&self, command: &[u8]) -> bool;

    /// Is one of the keys or ranges wanted that the command writes or compares? They are told as etcd does: a key and an empty
    /// end, or a key and the end of a range, of which a single zero byte stands for none. Asked where clients come in, of keys
    /// that are convergent: such commands are refused. A machine without keys says no.
    fn orders_any(&self, _command: &[u8], _wanted: &dyn Fn(&[u8], &[u8]) -> bool) -> bool {
        false
    }

    /// Does this key exist now? Convergent state asks before it takes a key that nobody declared.
    fn has_key(&self, _key: &[u8]) -> bool {
        false
    }

    /// The expiry clock moved. Called once per entry of the log, before its commands.
    fn advance(&mut self, expiry_ms: u64);

    /// When `advance` next has something to do; `None` when nothing waits for time.
    fn next_expiry(&self) -> Option<u64>;

    /// A read of the state as it is.
    ///
    /// # Errors
    /// When it is no query, would write, or the machine refuses it.
    fn query(&self, query: &[u8]) -> Result<Bytes, QueryError>;

    /// How many chunks a snapshot has: at least one, the same for an empty machine.
    fn chunk_count(&self) -> u32;

    /// The digest of a chunk. Costs at most what changed since it was last asked.
    fn chunk_digest(&mut self, index: u32) -> Hash;

    /// A snapshot that later commands do not change.
    fn freeze(&mut self) -> Self::Frozen;

    /// Takes one chunk into an empty machine, in any order.
    ///
    /// # Errors
    /// When the bytes do not have the expected digest; nothing changed then.
    fn restore_chunk(&mut self, index: u32, bytes: &[u8], expected: &Hash) -> Result<(), RestoreError>;

    /// All chunks are in.
    ///
    /// # Errors
    /// When they do not fit together.
    fn restore_finish(&mut self) -> Result<(), RestoreError>;
}

/// A machine whose whole state is written down as one chunk. Wrap it in [`Small`] to run it.
pub trait SmallMachine: Sized + Send + 'static {
    const NAME: &'static str;

    fn version(&self) -> u32 {
        1
    }

    /// See [`StateMachine::apply`].
    ///
    /// # Errors
    /// A refusal, which changed nothing.
    fn apply(&mut self, context: &Context<'_>, command: &[u8]) -> Result<Bytes, MachineRefusal>;

    /// See [`StateMachine::read_only`].
    fn read_only(&self, command: &[u8]) -> bool;

    /// See [`StateMachine::query`].
    ///
    /// # Errors
    /// When it is no query, would write, or the machine refuses it.
    fn query(&self, query: &[u8]) -> Result<Bytes, QueryError>;

    /// Returns true when it changed anything.
    fn advance(&mut self, expiry_ms: u64) -> bool {
        let _ = expiry_ms;
        false
    }

    fn next_expiry(&self) -> Option<u64> {
        None
    }

    /// The whole state; equal states give equal bytes.
    fn save(&self) -> Vec<u8>;

    /// Replaces the state by one that was saved; `None` when the bytes are not one.
    fn load(&self, bytes: &[u8]) -> Option<Self>;
}

/// Runs a [`SmallMachine`] as a [`StateMachine`]: one chunk, whose digest is a hash of its bytes, written out at most
/// once between two writes.
#[derive(Clone, Debug)]
pub struct Small<M> {
    machine: M,
    saved: Option<(Arc<Vec<u8>>, Hash)>,
}

impl<M: SmallMachine> Small<M> {
    #[must_use]
    pub fn new(machine: M) -> Self {
        Self { machine, saved: None }
    }

    #[must_use]
    pub fn machine(&self) -> &M {
        &self.machine
    }

    fn saved(&mut self) -> (Arc<Vec<u8>>, Hash) {
        if let Some(saved) = &self.saved {
            return saved.clone();
        }
        let bytes = self.machine.save();
        let digest = whole_digest(M::NAME, &bytes);
        let saved = (Arc::new(bytes), digest);
        self.saved = Some(saved.clone());
        saved
    }
}

fn whole_digest(name: &str, bytes: &[u8]) -> Hash {
    let mut hasher = Hasher::new("dwcp v3 whole machine");
    hasher.field(name.as_bytes()).field(bytes);
    hasher.finish()
}

/// The frozen form of a [`Small`] machine.
#[derive(Clone, Debug)]
pub struct FrozenWhole(Arc<Vec<u8>>);

impl FrozenMachine for FrozenWhole {
    fn chunk(&self, index: u32) -> Result<Vec<u8>, SnapshotError> {
        if index == 0 { Ok(self.0.as_ref().clone()) } else { Err(SnapshotError::NoSuchChunk { index }) }
    }
}

impl<M: SmallMachine> StateMachine for Small<M> {
    type Frozen = FrozenWhole;
    const NAME: &'static str = M::NAME;

    fn version(&self) -> u32 {
        self.machine.version()
    }

    fn apply(&mut self, context: &Context<'_>, command: &[u8]) -> Result<Bytes, MachineRefusal> {
        if !self.machine.read_only(command) {
            self.saved = None;
        }
        self.machine.apply(context, command)
    }

    fn read_only(&self, command: &[u8]) -> bool {
        self.machine.read_only(command)
    }

    fn advance(&mut self, expiry_ms: u64) {
        if self.machine.advance(expiry_ms) {
            self.saved = None;
        }
    }

    fn next_expiry(&self) -> Option<u64> {
        self.machine.next_expiry()
    }

    fn query(&self, query: &[u8]) -> Result<Bytes, QueryError> {
        self.machine.query(query)
    }

    fn chunk_count(&self) -> u32 {
        1
    }

    fn chunk_digest(&mut self, index: u32) -> Hash {
        if index == 0 { self.saved().1 } else { Hash::ZERO }
    }

    fn freeze(&mut self) -> FrozenWhole {
        FrozenWhole(self.saved().0)
    }

    fn restore_chunk(&mut self, index: u32, bytes: &[u8], expected: &Hash) -> Result<(), RestoreError> {
        if index != 0 {
            return Err(RestoreError::NoSuchChunk { index });
        }
        if whole_digest(M::NAME, bytes) != *expected {
            return Err(RestoreError::Digest { index });
        }
        self.machine = self.machine.load(bytes).ok_or(RestoreError::Malformed { index })?;
        self.saved = None;
        Ok(())
    }

    fn restore_finish(&mut self) -> Result<(), RestoreError> {
        Ok(())
    }
}
