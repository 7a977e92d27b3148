//! Signed replies: one signature over a Merkle root of everything one proposal answered, a short path per frame.

use crate::io::{ExecutedReply, Label};
use alloc::vec::Vec;
use dwcp_base::{
    ClusterId, Crypto, Hash, Hasher, Incarnation, PublicKey, ReplicaId, SigningKind, encode, signing_hash,
};
use dwcp_state::{FrameOutcome, SessionId};

/// What two replicas' replies must share to count as equal: the results, where each command ran, and whom the
/// acknowledgement trusts.
#[must_use]
pub fn leaf_hash(
    session: SessionId,
    first: u64,
    label: Label,
    results: &[dwcp_state::CommandResult],
) -> Hash {
    let mut hasher = Hasher::new("dwcp v3 reply leaf");
    hasher.update(&session.0).update(&first.to_le_bytes()).field(&encode(&label)).field(&encode(results));
    hasher.finish()
}

fn parent(left: &Hash, right: &Hash) -> Hash {
    let mut hasher = Hasher::new("dwcp v3 reply node");
    hasher.update(&left.0).update(&right.0);
    hasher.finish()
}

/// A Merkle tree over a proposal's leaves. A node without a sibling moves up as it is.
#[derive(Clone, Debug)]
pub struct ReplyTree {
    levels: Vec<Vec<Hash>>,
}

impl ReplyTree {
    #[must_use]
    pub fn new(leaves: Vec<Hash>) -> Self {
        let mut levels = Vec::from([leaves]);
        while levels.last().is_some_and(|level| level.len() > 1) {
            let level = levels.last().expect("there is one");
            let next = level
                .chunks(2)
                .map(|pair| if let [left, right] = pair { parent(left, right) } else { pair[0] })
                .collect();
            levels.push(next);
        }
        Self { levels }
    }

    /// The root; `Hash::ZERO` of no leaves.
    #[must_use]
    pub fn root(&self) -> Hash {
        self.levels.last().and_then(|level| level.first()).copied().unwrap_or(Hash::ZERO)
    }

    /// The siblings on the way from a leaf to the root; levels without one are skipped.
    #[must_use]
    pub fn path(&self, leaf: usize) -> Vec<Hash> {
        let mut index = leaf;
        let mut path = Vec::new();
        for level in &self.levels {
            path.extend(level.get(index ^ 1).filter(|_| level.len() > 1));
            index /= 2;
        }
        path
    }

    #[must_use]
    pub fn leaves(&self) -> usize {
        self.levels.first().map_or(0, Vec::len)
    }
}

/// The root that a path leads to; `leaves` tells which levels have no sibling.
fn climb(leaf: Hash, mut index: usize, mut leaves: usize, path: &[Hash]) -> Option<Hash> {
    let mut node = leaf;
    let mut path = path.iter();
    if index >= leaves {
        return None;
    }
    while leaves > 1 {
        if index ^ 1 < leaves {
            let sibling = path.next()?;
            node = if index.is_multiple_of(2) { parent(&node, sibling) } else { parent(sibling, &node) };
        }
        index /= 2;
        leaves = leaves.div_ceil(2);
    }
    path.next().is_none().then_some(node)
}

/// What a replica signs for one executed proposal.
#[must_use]
pub fn reply_signing_hash(
    cluster: ClusterId,
    replica: ReplicaId,
    incarnation: Incarnation,
    leaves: u32,
    root: Hash,
) -> Hash {
    signing_hash(SigningKind::Reply, cluster, &encode(&(replica, incarnation, leaves, root)))
}

impl ExecutedReply {
    /// What must be equal in replies of `f + 1` replicas for a client to believe them.
    #[must_use]
    pub fn leaf_hash(&self) -> Hash {
        leaf_hash(self.session, self.first, self.label, &self.results)
    }

    /// Whether the replica that holds `key` vouches for this reply. Only for signed ones.
    #[must_use]
    pub fn verify(&self, cluster: ClusterId, key: &PublicKey, crypto: &dyn Crypto) -> bool {
        let Some(signature) = &self.signature else { return false };
        let root = climb(self.leaf_hash(), self.leaf_index as usize, self.leaf_count as usize, &self.path);
        root.is_some_and(|root| {
            let hash = reply_signing_hash(cluster, self.replica, self.incarnation, self.leaf_count, root);
            crypto.verify(key, &hash, signature)
        })
    }
}

/// Leaves of a proposal's outcomes.
pub(crate) fn tree_of<'a>(outcomes: impl Iterator<Item = &'a FrameOutcome>, label: Label) -> ReplyTree {
    let leaf = |outcome: &FrameOutcome| leaf_hash(outcome.session, outcome.first, label, &outcome.results);
    ReplyTree::new(outcomes.map(leaf).collect())
}

/// The label of a reply from the root log.
pub(crate) fn label(f: u8) -> Label {
    if f >= 1 { Label::Byzantine } else { Label::Crash }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_leaf_of_every_tree_climbs_to_the_root_and_no_other_does() {
        for count in 1..40usize {
            let leaves: Vec<Hash> = (0..count).map(|index| Hash::of(&index.to_le_bytes())).collect();
            let tree = ReplyTree::new(leaves.clone());
            for (index, leaf) in leaves.iter().enumerate() {
                let path = tree.path(index);
                assert_eq!(climb(*leaf, index, count, &path), Some(tree.root()), "{index} of {count}");
                assert_ne!(climb(Hash::of(b"other"), index, count, &path), Some(tree.root()));
                if count > 1 {
                    assert_ne!(climb(*leaf, (index + 1) % count, count, &path), Some(tree.root()));
                    assert_eq!(climb(*leaf, index, count, &path[1..]), None);
                }
            }
        }
    }
}
