//! What cannot be judged alike by everybody: whether members said this or that to each other. Such a matter is put to the
//! replicas before the root orders it. Each signs only what it finds true by itself, and the entry carries the consents of a
//! quorum. So every replica judges the entry alike, by signatures; and whoever tells everybody something else keeps the matter
//! from being ordered, and never the slot it would have been part of.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use borsh::{BorshDeserialize, BorshSerialize};
use bytes::Bytes;
use dwcp_base::{
    ClusterId, Configuration, ConfigurationId, Crypto, Hash, PublicKey, ReplicaId, Sequence, Signature,
    SigningKind, encode, signing_hash,
};

/// What is consented to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, BorshSerialize, BorshDeserialize)]
#[borsh(use_discriminant = true)]
#[repr(u8)]
pub enum Matter {
    /// A collection floor of convergent state.
    Floor = 1,
    /// Where an origin of convergent state ends.
    End = 2,
}

/// Where a question was asked from: it counts nowhere else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
pub struct Ground {
    /// The newest configuration; it says whose consents count, and under which keys.
    pub configuration: ConfigurationId,
    /// Ends of origins decided before.
    pub ends: u64,
}

/// What a replica signs.
#[derive(BorshSerialize)]
struct Consent {
    matter: Matter,
    ground: Ground,
    content: Hash,
    by: ReplicaId,
}

/// What a replica signs to consent.
#[must_use]
pub fn consent_hash(
    cluster: ClusterId,
    matter: Matter,
    ground: Ground,
    content: Hash,
    by: ReplicaId,
) -> Hash {
    signing_hash(SigningKind::Consent, cluster, &encode(&Consent { matter, ground, content, by }))
}

/// Signs this replica's consent.
#[must_use]
pub fn consent(
    cluster: ClusterId,
    matter: Matter,
    ground: Ground,
    content: Hash,
    by: ReplicaId,
    crypto: &dyn Crypto,
) -> Signature {
    crypto.sign(&consent_hash(cluster, matter, ground, content, by))
}

/// Something that a quorum consents to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
pub struct Agreed {
    pub bytes: Bytes,
    pub ground: Ground,
    /// Ascending by replica.
    pub consents: Vec<(ReplicaId, Signature)>,
}

/// Why it proves nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConsentRefusal {
    /// Another configuration, or other ends, are in force: an honest proposer may have been too slow.
    Stale,
    TooFew,
    /// Not ascending by replica, so one may count twice.
    NotAscending,
    /// A stranger, or a member that does not vote yet.
    NoVoice,
    Signature,
}

/// What judging needs to know.
#[derive(Clone, Copy, Debug)]
pub struct ConsentCourt<'a> {
    pub cluster: ClusterId,
    pub configuration: &'a Configuration,
    /// The last slot executed: members that vote only after it do not count.
    pub executed: Sequence,
    pub ends: u64,
    pub crypto: &'a dyn Crypto,
}

impl ConsentCourt<'_> {
    /// Where questions are asked from now.
    #[must_use]
    pub fn ground(&self) -> Ground {
        Ground { configuration: self.configuration.id, ends: self.ends }
    }

    fn key(&self, by: ReplicaId) -> Option<PublicKey> {
        let member = self.configuration.member(by)?;
        (member.votes_after <= self.executed).then_some(member.vote_key)
    }

    /// Is this a consent that counts?
    #[must_use]
    pub fn counts(&self, matter: Matter, content: Hash, by: ReplicaId, signature: &Signature) -> bool {
        let hash = consent_hash(self.cluster, matter, self.ground(), content, by);
        self.key(by).is_some_and(|key| self.crypto.verify(&key, &hash, signature))
    }

    /// # Errors
    /// See [`ConsentRefusal`].
    pub fn judge(&self, matter: Matter, agreed: &Agreed) -> Result<(), ConsentRefusal> {
        if agreed.ground != self.ground() {
            return Err(ConsentRefusal::Stale);
        }
        if agreed.consents.len() < self.configuration.quorum().q() {
            return Err(ConsentRefusal::TooFew);
        }
        if !agreed.consents.windows(2).all(|pair| pair[0].0 < pair[1].0) {
            return Err(ConsentRefusal::NotAscending);
        }
        let content = Hash::of(&agreed.bytes);
        let mut items = Vec::with_capacity(agreed.consents.len());
        for (by, signature) in &agreed.consents {
            let key = self.key(*by).ok_or(ConsentRefusal::NoVoice)?;
            items.push((key, consent_hash(self.cluster, matter, agreed.ground, content, *by), *signature));
        }
        if self.crypto.verify_all(&items) { Ok(()) } else { Err(ConsentRefusal::Signature) }
    }
}

/// A question under way, at whoever asks it.
#[derive(Clone, Debug)]
pub struct Question {
    pub bytes: Bytes,
    pub content: Hash,
    pub ground: Ground,
    /// At most one for each member.
    pub consents: BTreeMap<ReplicaId, Signature>,
}

impl Question {
    #[must_use]
    pub fn new(bytes: Bytes, ground: Ground) -> Self {
        Self { content: Hash::of(&bytes), bytes, ground, consents: BTreeMap::new() }
    }

    /// With so many consents it is agreed to.
    #[must_use]
    pub fn agreed(&self, quorum: usize) -> Option<Agreed> {
        let consents = self.consents.iter().map(|(by, signature)| (*by, *signature));
        (self.consents.len() >= quorum).then(|| Agreed {
            bytes: self.bytes.clone(),
            ground: self.ground,
            consents: consents.collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dwcp_base::crypto::Ed25519;
    use dwcp_base::{Incarnation, Member, Policy, Quorum, Trust};

    const CLUSTER: ClusterId = ClusterId([4; 32]);

    fn signer(id: u8) -> Ed25519 {
        Ed25519::new([id + 1; 32], &[])
    }

    fn configuration() -> Configuration {
        let members = (0..4)
            .map(|id| Member {
                id: ReplicaId(id),
                incarnation: Incarnation(0),
                vote_key: signer(id).public_key(),
                tls_key: signer(id + 50).public_key(),
                peer_address: "a:1".into(),
                client_address: "a:2".into(),
                votes_after: Sequence(if id == 3 { 10 } else { 0 }),
            })
            .collect();
        let policy = Policy::root_only(Trust::Byzantine, Quorum::new(4, None).expect("four"));
        Configuration { id: ConfigurationId(7), policy, members }
    }

    /// Agreed to by `who` on `ground`; judged at slot 9 with two ends decided.
    fn judged(
        who: &[u8],
        ground: Ground,
        spoil: impl Fn(&mut Agreed),
        executed: u64,
    ) -> Result<(), ConsentRefusal> {
        let configuration = configuration();
        let bytes = Bytes::from_static(b"a floor");
        let mut agreed = Agreed {
            consents: who
                .iter()
                .map(|id| {
                    let by = ReplicaId(*id);
                    let content = Hash::of(&bytes);
                    (by, consent(CLUSTER, Matter::Floor, ground, content, by, &signer(*id)))
                })
                .collect(),
            bytes,
            ground,
        };
        spoil(&mut agreed);
        let court = ConsentCourt {
            cluster: CLUSTER,
            configuration: &configuration,
            executed: Sequence(executed),
            ends: 2,
            crypto: &signer(0),
        };
        court.judge(Matter::Floor, &agreed)
    }

    #[test]
    fn a_quorum_of_voting_members_agrees_to_these_bytes_here_and_now() {
        let ground = Ground { configuration: ConfigurationId(7), ends: 2 };
        let keep = |_: &mut Agreed| {};
        assert_eq!(judged(&[0, 1, 2], ground, keep, 9), Ok(()));
        assert_eq!(judged(&[0, 2, 3], ground, keep, 10), Ok(()));
        assert_eq!(judged(&[0, 2, 3], ground, keep, 9), Err(ConsentRefusal::NoVoice), "it does not vote yet");
        assert_eq!(judged(&[0, 2, 4], ground, keep, 9), Err(ConsentRefusal::NoVoice), "a stranger");
        assert_eq!(judged(&[0, 1], ground, keep, 9), Err(ConsentRefusal::TooFew));
        assert_eq!(judged(&[0, 1, 1], ground, keep, 9), Err(ConsentRefusal::NotAscending));
        let earlier = Ground { ends: 1, ..ground };
        assert_eq!(judged(&[0, 1, 2], earlier, keep, 9), Err(ConsentRefusal::Stale));
        let other = Ground { configuration: ConfigurationId(6), ..ground };
        assert_eq!(judged(&[0, 1, 2], other, keep, 9), Err(ConsentRefusal::Stale));
        let other_bytes = |agreed: &mut Agreed| agreed.bytes = Bytes::from_static(b"another floor");
        assert_eq!(judged(&[0, 1, 2], ground, other_bytes, 9), Err(ConsentRefusal::Signature));
        let replayed =
            |agreed: &mut Agreed| agreed.ground = Ground { configuration: ConfigurationId(7), ends: 2 };
        assert_eq!(judged(&[0, 1, 2], earlier, replayed, 9), Err(ConsentRefusal::Signature));
        let swapped = |agreed: &mut Agreed| {
            let (one, two) = (agreed.consents[0].1, agreed.consents[1].1);
            (agreed.consents[0].1, agreed.consents[1].1) = (two, one);
        };
        assert_eq!(judged(&[0, 1, 2], ground, swapped, 9), Err(ConsentRefusal::Signature));
    }
}
