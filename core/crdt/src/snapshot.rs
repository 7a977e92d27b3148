//! The whole state as bytes, in pieces: a head, then entries in ascending order of keys. For a replica that fell below
//! the collection floor, and for a disk. Held bundles, the history and the resolvers are not part of it.
//!
//! Pieces of one snapshot must be taken from one state: clone the store, or do not change it in between. Whoever restores
//! compares the digest in the end; until then the pieces of a lying donor have changed nothing but the restorer.

use crate::clock::Clock;
use crate::collect::FloorState;
use crate::dots::{Origin, VersionVector};
use crate::limits::KEY_BYTES_MAX;
use crate::resolver::Resolvers;
use crate::store::{Entry, Store};
use crate::wire::{Malformed, Reader, put_bytes, put_number};
use alloc::vec::Vec;
use borsh::{BorshDeserialize, BorshSerialize};
use bytes::Bytes;
use core::fmt;
use core::ops::Bound;
use dwcp_base::codec::decode_canonical;
use dwcp_base::encode;

const VERSION: u8 = 1;
/// Bytes of a head: version vector and floors at their bounds stay far below it.
const HEAD_BYTES_MAX: usize = 256 * 1024 * 1024;

#[derive(Clone, Debug, BorshSerialize, BorshDeserialize)]
struct Head {
    version: u8,
    applied: VersionVector,
    clock: Clock,
    floors: FloorState,
    conflicts_settled: u64,
    entries: u64,
}

/// Why a piece was refused. The restorer is as it was before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestoreError {
    Head,
    Piece,
    /// Keys not ascending, or more than the head promised.
    Order,
    /// Pieces are missing.
    Short {
        entries: u64,
        promised: u64,
    },
}

impl fmt::Display for RestoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Head => write!(f, "malformed head of a snapshot: take it from another donor"),
            Self::Piece => write!(f, "malformed piece of a snapshot: take it from another donor"),
            Self::Order => write!(f, "a piece of a snapshot is out of order: take it from another donor"),
            Self::Short { entries, promised } => {
                write!(f, "snapshot has {entries} of {promised} entries: fetch the missing pieces")
            }
        }
    }
}

impl core::error::Error for RestoreError {}

/// Entries in the order of their keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    pub bytes: Vec<u8>,
    /// Where the next piece starts (after this key); nothing when this is the last.
    pub next: Option<Bytes>,
}

impl Store {
    /// The first piece: everything but the entries.
    #[must_use]
    pub fn snapshot_head(&self) -> Vec<u8> {
        encode(&Head {
            version: VERSION,
            applied: self.applied.clone(),
            clock: self.clock,
            floors: self.floors.clone(),
            conflicts_settled: self.conflicts_settled,
            entries: self.entries.len() as u64,
        })
    }

    /// Entries after a key (from the start without one), until `bytes_max` is reached; at least one.
    #[must_use]
    pub fn snapshot_piece(&self, after: Option<&[u8]>, bytes_max: usize) -> Piece {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut range = self.entries.range::<[u8], _>((start, Bound::Unbounded));
        let (mut body, mut count, mut last) = (Vec::new(), 0_u64, None);
        let mut next = None;
        for (key, entry) in &mut range {
            if body.len() >= bytes_max && count > 0 {
                next.clone_from(&last);
                break;
            }
            put_bytes(&mut body, key);
            entry.encode(&mut body);
            count += 1;
            last = Some(key.clone());
        }
        let mut bytes = Vec::with_capacity(body.len() + 8);
        put_number(&mut bytes, count);
        bytes.extend_from_slice(&body);
        Piece { bytes, next }
    }

    /// The head, then all pieces of about so many bytes.
    #[must_use]
    pub fn snapshot_parts(&self, bytes_max: usize) -> Vec<Vec<u8>> {
        let mut parts = Vec::from([self.snapshot_head()]);
        let mut after: Option<Bytes> = None;
        loop {
            let piece = self.snapshot_piece(after.as_deref(), bytes_max);
            parts.push(piece.bytes);
            match piece.next {
                Some(next) => after = Some(next),
                None => return parts,
            }
        }
    }
}

/// Builds a store from the pieces of a snapshot.
#[derive(Debug)]
pub struct Restore {
    store: Store,
    promised: u64,
}

impl Restore {
    /// Starts with the head; the store will write as `me`.
    ///
    /// # Errors
    /// When the bytes are no head.
    pub fn new(me: Origin, resolvers: Resolvers, head: &[u8]) -> Result<Self, RestoreError> {
        let head: Head = decode_canonical(head, HEAD_BYTES_MAX).map_err(|_| RestoreError::Head)?;
        if head.version != VERSION || !head.floors.is_sound() {
            return Err(RestoreError::Head);
        }
        let mut store = Store::new(me, resolvers);
        store.applied = head.applied;
        store.clock = head.clock;
        store.floors = head.floors;
        store.conflicts_settled = head.conflicts_settled;
        Ok(Self { store, promised: head.entries })
    }

    /// Takes the next piece.
    ///
    /// # Errors
    /// When it is malformed or not the next one; nothing of it is taken then.
    pub fn piece(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
        let entries = read_piece(bytes).map_err(|Malformed| RestoreError::Piece)?;
        let last = self.store.entries.last_key_value().map(|(key, _)| key.clone());
        let first = entries.first().map(|(key, _)| key);
        let ascending = entries.windows(2).all(|w| w[0].0 < w[1].0);
        let follows = last.is_none() || first.is_none() || first > last.as_ref();
        let fits = (self.store.entries.len() + entries.len()) as u64 <= self.promised;
        if !ascending || !follows || !fits {
            return Err(RestoreError::Order);
        }
        for (key, entry) in entries {
            self.store.restore_entry(key, entry);
        }
        Ok(())
    }

    /// The store, once all pieces are in. Compare its digest with a certified one before use.
    ///
    /// # Errors
    /// When pieces are missing; the restorer is gone then, because a donor that ends early is not worth waiting for.
    pub fn finish(self) -> Result<Store, RestoreError> {
        let entries = self.store.entries.len() as u64;
        if entries < self.promised {
            return Err(RestoreError::Short { entries, promised: self.promised });
        }
        Ok(self.store)
    }
}

fn read_piece(bytes: &[u8]) -> Result<Vec<(Bytes, Entry)>, Malformed> {
    let mut reader = Reader::new(Bytes::copy_from_slice(bytes));
    let count = reader.count(usize::MAX)?;
    let mut entries = Vec::new();
    for _ in 0..count {
        let key = Bytes::copy_from_slice(&reader.bytes(KEY_BYTES_MAX)?);
        let entry = Entry::decode(&mut reader)?;
        if key.is_empty() {
            return Err(Malformed);
        }
        entries.push((key, entry));
    }
    reader.end()?;
    // One state, one encoding: sets and maps that were out of order come out differently.
    let mut again = Vec::with_capacity(bytes.len());
    put_number(&mut again, count as u64);
    for (key, entry) in &entries {
        put_bytes(&mut again, key);
        entry.encode(&mut again);
    }
    if again == bytes { Ok(entries) } else { Err(Malformed) }
}
