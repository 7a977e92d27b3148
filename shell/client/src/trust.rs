//! What the client believes: f + 1 equal answers from different replicas, each signed with the key its configuration
//! names. Of f + 1 replicas one is honest, and an honest replica tells only what was ordered and executed. Where the
//! configuration says that members only crash, an answer labelled `crash` needs no second voice: that is what the label says.
//!
//! Equality is that of `leaf_hash`, which covers results, their places and the label, so answers are compared by 32 bytes;
//! signatures are verified only once enough answers agree. A replica signs one root for all frames of a proposal, hence the memory of signatures already seen to
//! hold: a thousand sessions in one proposal cost one verification per replica. Nothing here knows connections or time.

use crate::config::NodeConfig;
use dwcp_base::crypto::Ed25519;
use dwcp_base::{Ack, ClusterId, Crypto, Hash, PublicKey, ReplicaId, Signature, Trust as Policy, View};
use dwcp_replica::{ExecutedReply, Label};
use std::collections::{HashSet, VecDeque};
use std::sync::Mutex;

/// Signatures remembered as good. At the bound the oldest is forgotten and would be verified anew.
const REMEMBERED_MAX: usize = 4096;

/// Verifies, and remembers what held.
#[derive(Debug)]
pub(crate) struct Trust {
    cluster: ClusterId,
    /// Equal voices needed: f + 1.
    weak: usize,
    /// The configuration's word, never a node's.
    policy: Policy,
    verifier: Remembering,
}

/// One replica's answer about one frame, not yet verified.
#[derive(Debug)]
pub(crate) struct Voice {
    pub replica: ReplicaId,
    pub vote_key: PublicKey,
    pub leaf: Hash,
    pub reply: ExecutedReply,
}

/// The answers about one frame: at most one per replica, the latest.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    voices: Vec<Voice>,
    /// Somebody said that it was committed, which is less than the caller wants.
    pub committed: bool,
}

impl Trust {
    pub fn new(cluster: ClusterId, policy: Policy, f: u8, nodes: &[NodeConfig]) -> Self {
        let keys: Vec<PublicKey> = nodes.iter().map(|node| node.vote_key).collect();
        // This client never signs as a replica: the seed only fills the place.
        let ed25519 = Ed25519::new([0; 32], &keys);
        let remembered = Mutex::new(Remembered { order: VecDeque::new(), good: HashSet::new() });
        Self { cluster, weak: usize::from(f) + 1, policy, verifier: Remembering { ed25519, remembered } }
    }

    /// Equal voices needed.
    pub fn weak(&self) -> usize {
        self.weak
    }

    /// Equal voices needed for a reply with this label.
    fn needed(&self, label: Label) -> usize {
        match (label, self.policy) {
            (Label::Crash, Policy::Crash) => 1,
            (Label::Crash, Policy::Byzantine) | (Label::Byzantine, _) => self.weak,
        }
    }

    /// Where one voice is enough nobody lies and the link proves who spoke, so such replies carry no signature. A signature
    /// that is there must hold in any case.
    fn holds(&self, voice: &Voice) -> bool {
        if voice.reply.signature.is_none() {
            return self.needed(voice.reply.label) == 1;
        }
        voice.reply.verify(self.cluster, &voice.vote_key, &self.verifier)
    }
}

/// What adding a voice led to.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// Too few agree yet.
    Open,
    /// As many different replicas said this as must. The view is one that an honest replica among them has reached.
    Believed(Box<ExecutedReply>, View),
}

impl Tally {
    /// Different replicas that answered, agreeing or not.
    pub fn len(&self) -> usize {
        self.voices.len()
    }

    /// Adds a voice, in place of an earlier one of the same replica. `forged` counts signatures that did not hold.
    pub fn add(&mut self, trust: &Trust, voice: Voice, wanted: Option<Ack>, forged: &mut u64) -> Verdict {
        // With f = 0 no label says more than `crash`, and the node itself waited for the Anchor.
        if voice.reply.label == Label::Crash && wanted == Some(Ack::Anchored) && trust.weak > 1 {
            self.committed |= trust.policy == Policy::Crash;
            return Verdict::Open;
        }
        let needed = trust.needed(voice.reply.label);
        let leaf = voice.leaf;
        self.voices.retain(|other| other.replica != voice.replica);
        self.voices.push(voice);
        let agree = |voices: &[Voice]| voices.iter().filter(|voice| voice.leaf == leaf).count();
        if agree(&self.voices) < needed {
            return Verdict::Open;
        }
        // Every voice is verified before any is believed; forged ones no longer stand in the way of true ones.
        self.voices.retain(|voice| {
            let keep = voice.leaf != leaf || trust.holds(voice);
            *forged += u64::from(!keep);
            keep
        });
        let mut agreeing: Vec<&Voice> = self.voices.iter().filter(|voice| voice.leaf == leaf).collect();
        if agreeing.len() < needed {
            return Verdict::Open;
        }
        // Of the highest views of so many replicas one is an honest one's, so the lowest of them was reached.
        agreeing.sort_unstable_by_key(|voice| core::cmp::Reverse(voice.reply.view));
        let view = agreeing[needed - 1].reply.view;
        Verdict::Believed(Box::new(agreeing[0].reply.clone()), view)
    }
}

/// Ed25519 with a memory of what held.
#[derive(Debug)]
struct Remembering {
    ed25519: Ed25519,
    remembered: Mutex<Remembered>,
}

type Item = (PublicKey, Hash, Signature);

#[derive(Debug)]
struct Remembered {
    /// At most `REMEMBERED_MAX`, oldest first; the oldest goes.
    order: VecDeque<Item>,
    /// The same.
    good: HashSet<Item>,
}

impl Crypto for Remembering {
    /// A client never signs with a replica's key.
    fn sign(&self, message: &Hash) -> Signature {
        self.ed25519.sign(message)
    }

    fn verify(&self, key: &PublicKey, message: &Hash, signature: &Signature) -> bool {
        let item = (*key, *message, *signature);
        let mut remembered = self.remembered.lock().expect("no panic while the memory is held");
        if remembered.good.contains(&item) {
            return true;
        }
        if !self.ed25519.verify(key, message, signature) {
            return false;
        }
        if remembered.order.len() >= REMEMBERED_MAX
            && let Some(oldest) = remembered.order.pop_front()
        {
            remembered.good.remove(&oldest);
        }
        remembered.order.push_back(item);
        remembered.good.insert(item);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_never_lets_a_bad_signature_pass_and_stays_bounded() {
        let signer = Ed25519::new([1; 32], &[]);
        let key = signer.public_key();
        let remembered = Mutex::new(Remembered { order: VecDeque::new(), good: HashSet::new() });
        let memory = Remembering { ed25519: Ed25519::new([0; 32], &[key]), remembered };
        let message = Hash::of(b"m");
        let signature = signer.sign(&message);
        for _ in 0..2 {
            assert!(memory.verify(&key, &message, &signature));
            assert!(!memory.verify(&key, &Hash::of(b"other"), &signature));
            assert!(!memory.verify(&PublicKey([9; 32]), &message, &signature));
        }
        let mut bad = signature;
        bad.0[0] ^= 1;
        assert!(!memory.verify(&key, &message, &bad));
        for i in 0..REMEMBERED_MAX as u64 {
            let message = Hash::of(&i.to_le_bytes());
            assert!(memory.verify(&key, &message, &signer.sign(&message)));
        }
        let remembered = memory.remembered.lock().expect("held by nobody");
        assert_eq!((remembered.order.len(), remembered.good.len()), (REMEMBERED_MAX, REMEMBERED_MAX));
        assert!(!remembered.good.contains(&(key, message, signature)), "the oldest was forgotten");
    }
}
