//! The virtual log as every replica folds it: a position and a hash chain,
//! `H(g) = hash(H(g-1) | g | entry(g))`. Two replicas with equal chains agree on everything before.

use borsh::{BorshDeserialize, BorshSerialize};
use dwcp_base::{Hash, Hasher, Position};

/// How far the virtual log goes and what it holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
pub struct VirtualLog {
    pub position: Position,
    pub chain: Hash,
}

impl VirtualLog {
    /// Appends the entry with this digest and returns its position.
    pub fn append(&mut self, entry: &Hash) -> Position {
        self.position = self.position.next();
        let mut hasher = Hasher::new("dwcp v3 virtual log");
        hasher.update(&self.chain.0).update(&self.position.0.to_le_bytes()).update(&entry.0);
        self.chain = hasher.finish();
        self.position
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chain_depends_on_every_entry_and_its_place() {
        let (a, b) = (Hash::of(b"a"), Hash::of(b"b"));
        let fold = |entries: &[Hash]| {
            let mut log = VirtualLog::default();
            entries.iter().for_each(|entry| {
                log.append(entry);
            });
            log
        };
        assert_eq!(fold(&[a, b]), fold(&[a, b]));
        assert_ne!(fold(&[a, b]).chain, fold(&[b, a]).chain);
        assert_eq!(fold(&[a, b]).position, Position(2));
    }
}
