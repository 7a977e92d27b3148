//! Snapshots of the whole state as numbered chunks, each with its own digest: 0 is control, then the session buckets,
//! then the machine's. A chunk is verified by itself before anything is taken from it, so chunks may come from several
//! donors and in any order, and a lying donor wastes one chunk.

use crate::machine::{FrozenMachine, StateMachine};
use crate::session::{Bucket, SESSION_BUCKETS, SessionTable, encode_bucket};
use crate::state::{Control, State, control_digest};
use alloc::collections::BTreeSet;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use dwcp_base::{ClusterId, Genesis, Hash, Mutant, Mutants, decode, encode};

/// Why a chunk cannot be written out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotError {
    NoSuchChunk {
        index: u32,
    },
    /// The machine could not write it.
    Machine(&'static str),
}

impl fmt::Display for SnapshotError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchChunk { index } => write!(f, "the snapshot has no chunk {index}"),
            Self::Machine(reason) => write!(f, "the machine cannot write its snapshot: {reason}"),
        }
    }
}

impl core::error::Error for SnapshotError {}

/// Why a chunk was not taken. The restorer is as it was before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestoreError {
    NoSuchChunk {
        index: u32,
    },
    /// The bytes are not what the digest promises: ask another donor.
    Digest {
        index: u32,
    },
    /// The bytes have the promised digest but are no chunk: the certificate covers a state this program cannot read.
    Malformed {
        index: u32,
    },
    /// Written by another machine or a newer version: upgrade.
    Version {
        index: u32,
    },
    /// The snapshot of a cluster with another genesis.
    OtherCluster,
    /// `finish` before this chunk was in.
    Missing {
        index: u32,
    },
    /// Each chunk is well formed, but together they make no state.
    Inconsistent,
}

impl fmt::Display for RestoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchChunk { index } => write!(f, "the state has no chunk {index}"),
            Self::Digest { index } => write!(f, "chunk {index} does not match its digest: ask another donor"),
            Self::Malformed { index } => write!(f, "chunk {index} is malformed: ask another donor"),
            Self::Version { index } => {
                write!(
                    f,
                    "chunk {index} was written by another machine or a newer version: upgrade this program"
                )
            }
            Self::OtherCluster => {
                write!(f, "the snapshot belongs to another cluster: use this cluster's data")
            }
            Self::Missing { index } => write!(f, "chunk {index} is missing: fetch it first"),
            Self::Inconsistent => {
                write!(f, "the chunks do not fit together: fetch all of them from one checkpoint")
            }
        }
    }
}

impl core::error::Error for RestoreError {}

/// A state that no longer changes. Cheap to clone; may go to another thread.
pub struct FrozenState<M: StateMachine> {
    control: Arc<Vec<u8>>,
    sessions: Vec<Arc<Bucket>>,
    machine: M::Frozen,
    digests: Arc<Vec<Hash>>,
}

impl<M: StateMachine> Clone for FrozenState<M> {
    fn clone(&self) -> Self {
        Self {
            control: self.control.clone(),
            sessions: self.sessions.clone(),
            machine: self.machine.clone(),
            digests: self.digests.clone(),
        }
    }
}

impl<M: StateMachine> fmt::Debug for FrozenState<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrozenState").field("chunks", &self.digests.len()).finish_non_exhaustive()
    }
}

impl<M: StateMachine> FrozenState<M> {
    pub(crate) fn new(
        control: &Control,
        sessions: &SessionTable,
        machine: M::Frozen,
        digests: Vec<Hash>,
        mutants: Mutants,
    ) -> Self {
        let mut sessions = sessions.freeze();
        if mutants.on(Mutant::SnapshotWithoutSessions) {
            sessions = (0..SESSION_BUCKETS).map(|_| Arc::new(Bucket::new())).collect();
        }
        Self { control: Arc::new(encode(control)), sessions, machine, digests: Arc::new(digests) }
    }

    #[must_use]
    pub fn chunk_count(&self) -> u32 {
        u32::try_from(self.digests.len()).expect("chunks are few")
    }

    /// One per chunk, as [`State::chunk_digests`] gave them when it was frozen.
    #[must_use]
    pub fn digests(&self) -> &[Hash] {
        &self.digests
    }

    /// A chunk's bytes. Their number has no small bound: the shell sends a large chunk in pieces.
    ///
    /// # Errors
    /// When there is no such chunk, or the machine cannot write it.
    pub fn chunk(&self, index: u32) -> Result<Vec<u8>, SnapshotError> {
        if index >= self.chunk_count() {
            return Err(SnapshotError::NoSuchChunk { index });
        }
        match index.checked_sub(1) {
            None => Ok(self.control.as_ref().clone()),
            Some(bucket) if bucket < SESSION_BUCKETS => Ok(encode_bucket(&self.sessions[bucket as usize])),
            Some(rest) => self.machine.chunk(rest - SESSION_BUCKETS),
        }
    }
}

/// A state under construction from chunks.
#[derive(Debug)]
pub struct Restorer<M: StateMachine> {
    cluster: ClusterId,
    machine: M,
    sessions: SessionTable,
    control: Option<Control>,
    /// Chunks still to come; at most the machine's chunk count plus `SESSION_BUCKETS` plus one.
    missing: BTreeSet<u32>,
    mutants: Mutants,
}

impl<M: StateMachine> Restorer<M> {
    pub(crate) fn new(genesis: &Genesis, machine: M, mutants: Mutants) -> Self {
        let missing = (0..1 + SESSION_BUCKETS + machine.chunk_count()).collect();
        Self {
            cluster: genesis.cluster(),
            machine,
            sessions: SessionTable::new(),
            control: None,
            missing,
            mutants,
        }
    }

    /// Chunks that are not in yet, in order.
    pub fn missing(&self) -> impl Iterator<Item = u32> + '_ {
        self.missing.iter().copied()
    }

    /// Takes one chunk. One that is already in is ignored.
    ///
    /// # Errors
    /// When the bytes are not what `expected` promises, or cannot be read; nothing changed then.
    pub fn chunk(&mut self, index: u32, bytes: &[u8], expected: &Hash) -> Result<(), RestoreError> {
        if !self.missing.contains(&index) {
            let known = index < 1 + SESSION_BUCKETS + self.machine.chunk_count();
            return if known { Ok(()) } else { Err(RestoreError::NoSuchChunk { index }) };
        }
        match index.checked_sub(1) {
            None => self.control_chunk(bytes, expected)?,
            Some(bucket) if bucket < SESSION_BUCKETS => {
                let unchecked = self.mutants.on(Mutant::SnapshotWithoutSessions)
                    || self.mutants.on(Mutant::DigestWithoutSessions);
                let expected = (!unchecked).then_some(expected);
                self.sessions.restore_bucket(index, bucket, bytes, expected)?;
            }
            Some(rest) => {
                // The machine counts its own chunks; the caller counts the state's.
                let own = |error| match error {
                    RestoreError::NoSuchChunk { .. } => RestoreError::NoSuchChunk { index },
                    RestoreError::Digest { .. } => RestoreError::Digest { index },
                    RestoreError::Malformed { .. } => RestoreError::Malformed { index },
                    RestoreError::Version { .. } => RestoreError::Version { index },
                    RestoreError::Missing { .. } => RestoreError::Missing { index },
                    RestoreError::OtherCluster => RestoreError::OtherCluster,
                    RestoreError::Inconsistent => RestoreError::Inconsistent,
                };
                self.machine.restore_chunk(rest - SESSION_BUCKETS, bytes, expected).map_err(own)?;
            }
        }
        self.missing.remove(&index);
        Ok(())
    }

    fn control_chunk(&mut self, bytes: &[u8], expected: &Hash) -> Result<(), RestoreError> {
        if control_digest(bytes) != *expected {
            return Err(RestoreError::Digest { index: 0 });
        }
        let control: Control = decode(bytes).map_err(|_| RestoreError::Malformed { index: 0 })?;
        if control.cluster() != self.cluster {
            return Err(RestoreError::OtherCluster);
        }
        if !control.readable_by(M::NAME, self.machine.version()) {
            return Err(RestoreError::Version { index: 0 });
        }
        self.control = Some(control);
        Ok(())
    }

    /// The state, once every chunk is in.
    ///
    /// # Errors
    /// The first missing chunk, or what does not fit together.
    pub fn finish(mut self) -> Result<State<M>, RestoreError> {
        if let Some(index) = self.missing.first() {
            return Err(RestoreError::Missing { index: *index });
        }
        let control = self.control.take().ok_or(RestoreError::Missing { index: 0 })?;
        self.machine.restore_finish()?;
        Ok(State::assemble(control, self.sessions, self.machine, self.mutants))
    }
}
