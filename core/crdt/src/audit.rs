//! For finding and mending silent damage: hashes of single keys, and one key's whole state as bytes.
//!
//! Replicas with the same applied dots and the same floor hold the same bytes for every key. Where one differs, a bit has
//! flipped somewhere; which copy is right is for the caller to know (most replicas agree on one).

use crate::limits::KEY_BYTES_MAX;
use crate::snapshot::RestoreError;
use crate::store::{Entry, Store};
use crate::wire::Reader;
use alloc::vec::Vec;
use bytes::Bytes;
use core::ops::Bound;
use dwcp_base::Hash;

impl Store {
    /// Every key with the hash of its value and metadata, tombstones included, ascending. What the digest is made of.
    pub fn key_hashes(&mut self) -> impl Iterator<Item = (&Bytes, Hash)> {
        self.hash_dirty();
        self.entries.iter().map(|(key, entry)| (key, entry.hashed))
    }

    /// The hashes worked out anew from what is in memory now, not from what was there when a key last changed.
    pub fn key_hashes_anew(&self) -> impl Iterator<Item = (&Bytes, Hash)> {
        self.entries.iter().map(|(key, entry)| (key, entry.hash(key)))
    }

    /// The same for the keys after `after` (from the start without one) up to and including `until` (to the end).
    pub fn key_hashes_between<'a>(
        &'a self,
        after: Option<&[u8]>,
        until: Option<&[u8]>,
    ) -> impl Iterator<Item = (&'a Bytes, Hash)> + use<'a> {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let end = until.map_or(Bound::Unbounded, Bound::Included);
        // An empty range would panic.
        let is_empty = matches!((after, until), (Some(after), Some(until)) if after >= until);
        let range = (!is_empty).then(|| self.entries.range::<[u8], _>((start, end)));
        range.into_iter().flatten().map(|(key, entry)| (key, entry.hash(key)))
    }

    /// Is what is in memory of a key still what it was when the key last changed? Also when there is none.
    #[must_use]
    pub fn is_intact(&self, key: &[u8]) -> bool {
        self.entries.get(key).is_none_or(|entry| entry.is_dirty || entry.hash(key) == entry.hashed)
    }

    /// What a bad bit of memory does to a key: its state is another, and nothing here has noticed. Takes the first bit from this
    /// one on that makes it a state which counts as many conflicts and has as much to collect, so that only its content is
    /// wrong; false when there is none.
    #[cfg(feature = "mutants")]
    pub fn flip_bit(&mut self, key: &[u8], from: usize) -> bool {
        self.hash_dirty();
        let (Some(bytes), Some(entry)) = (self.key_bytes(key), self.entries.get_mut(key)) else {
            return false;
        };
        let bits = bytes.len() * 8;
        let flipped = (0..bits).find_map(|bit| {
            let bit = (from + bit) % bits;
            let mut bytes = bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let other = Entry::decode_all(&bytes)?;
            let is_quiet = other.node.conflicts_open() == entry.node.conflicts_open()
                && other.has_graves() == entry.has_graves();
            is_quiet.then_some(other)
        });
        let Some(mut flipped) = flipped else { return false };
        flipped.hashed = entry.hashed;
        *entry = flipped;
        true
    }

    /// One key's value and metadata.
    #[must_use]
    pub fn key_bytes(&self, key: &[u8]) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        self.entries.get(key)?.encode(&mut bytes);
        Some(bytes)
    }

    /// Puts another replica's state of a key in place of ours; nothing for "there is none". Only for a replica with the
    /// same applied dots and the same floor as the donor: this is a repair, not a join.
    ///
    /// # Errors
    /// When the bytes are no state of a key; ours stays then.
    pub fn replace_key(&mut self, key: &[u8], bytes: Option<&[u8]>) -> Result<(), RestoreError> {
        let entry = match bytes {
            None => None,
            Some(_) if key.is_empty() || key.len() > KEY_BYTES_MAX => return Err(RestoreError::Piece),
            Some(bytes) => Some(Entry::decode_all(bytes).ok_or(RestoreError::Piece)?),
        };
        self.remove_entry(key);
        if let Some(entry) = entry {
            self.restore_entry(Bytes::copy_from_slice(key), entry);
        }
        // What was here may have counted for something else than when it was counted.
        self.count_open_conflicts();
        Ok(())
    }
}

impl Entry {
    /// The state that has exactly these bytes.
    fn decode_all(bytes: &[u8]) -> Option<Self> {
        let entry = Self::decode(&mut Reader::new(Bytes::copy_from_slice(bytes))).ok()?;
        let mut again = Vec::with_capacity(bytes.len());
        entry.encode(&mut again);
        (again == bytes).then_some(entry)
    }
}
