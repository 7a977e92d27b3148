//! What cannot be judged alike by everybody: whether members said this or that to each other. Such a matter is put to the
//! replicas before the root orders it. Each signs only what it finds true by itself, and the entry carries the consents of a
//! quorum. So every replica judges the entry alike, by signatures; and whoever tells everybody something else keeps the matter
//! from being ordered, and never the slot it would have been part of.

use alloc::collections::{BTreeMap, BTreeSet};
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

/// What a replica says to what it is asked about. To a floor there is only agreement; to an end, where its store stands, and
/// will stand until the end is decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, BorshSerialize, BorshDeserialize)]
#[borsh(use_discriminant = true)]
#[repr(u8)]
pub enum Stance {
    /// It finds it true; its store holds nothing after this end, and all frames before it are there.
    Agrees = 1,
    /// Its store holds all up to this end, and more after it.
    Beyond = 2,
    /// It lacks some of what is before this end, and has nothing that is known to part from it.
    Below = 3,
    /// What it holds parts from this end.
    Elsewhere = 4,
}

/// Do these say enough, of a quorum of `q` among whom `faults` may lie?
///
/// A floor wants the agreement of all of them. An end wants more honest ones than may lie who stand at it once it is decided:
/// a state is taken from so many alike. One of them would do for those who only lack frames; those whose state is beyond the
/// end, or of another history, would wait for ever for the others. Whoever collects chooses which quorum it shows, so nothing
/// follows from what the rest of it says.
#[must_use]
pub fn suffices(
    matter: Matter,
    stances: impl IntoIterator<Item = Stance>,
    quorum: usize,
    faults: usize,
) -> bool {
    let (mut all, mut agree) = (0, 0);
    for stance in stances {
        all += 1;
        agree += usize::from(stance == Stance::Agrees);
    }
    match matter {
        Matter::Floor => agree == all && all >= quorum,
        Matter::End => all >= quorum && agree > 2 * faults,
    }
}

/// What a replica signs.
#[derive(BorshSerialize)]
struct Consent {
    matter: Matter,
    ground: Ground,
    content: Hash,
    stance: Stance,
    by: ReplicaId,
}

/// What a replica signs to consent.
#[must_use]
pub fn consent_hash(
    cluster: ClusterId,
    matter: Matter,
    ground: Ground,
    content: Hash,
    stance: Stance,
    by: ReplicaId,
) -> Hash {
    signing_hash(SigningKind::Consent, cluster, &encode(&Consent { matter, ground, content, stance, by }))
}

/// Signs this replica's consent.
#[must_use]
pub fn consent(
    cluster: ClusterId,
    matter: Matter,
    ground: Ground,
    content: Hash,
    stance: Stance,
    by: ReplicaId,
    crypto: &dyn Crypto,
) -> Signature {
    crypto.sign(&consent_hash(cluster, matter, ground, content, stance, by))
}

/// Something that a quorum consents to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
pub struct Agreed {
    pub bytes: Bytes,
    pub ground: Ground,
    /// Ascending by replica.
    pub consents: Vec<(ReplicaId, Stance, Signature)>,
}

/// Why it proves nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConsentRefusal {
    /// Another configuration, or other ends, are in force: an honest proposer may have been too slow.
    Stale,
    /// Fewer than a quorum, or they do not say enough: see [`suffices`].
    TooFew,
    /// Not ascending by replica, so one may count twice.
    NotAscending,
    /// A stranger, a member that does not vote yet, or one that is convicted.
    NoVoice,
    Signature,
}

/// What judging needs to know.
#[derive(Clone, Debug)]
pub struct ConsentCourt<'a> {
    pub cluster: ClusterId,
    pub configuration: &'a Configuration,
    /// The last slot executed: members that vote only after it do not count.
    pub executed: Sequence,
    pub ends: u64,
    /// Members that are known to lie, by proof: they have no voice, and of the others so many fewer may lie.
    pub convicted: BTreeSet<ReplicaId>,
    pub crypto: &'a dyn Crypto,
}

impl ConsentCourt<'_> {
    /// Where questions are asked from now.
    #[must_use]
    pub fn ground(&self) -> Ground {
        Ground { configuration: self.configuration.id, ends: self.ends }
    }

    /// How many of those who have a voice may lie.
    #[must_use]
    pub fn faults(&self) -> usize {
        usize::from(self.configuration.quorum().f()).saturating_sub(self.convicted.len())
    }

    fn key(&self, by: ReplicaId) -> Option<PublicKey> {
        let member = self.configuration.member(by).filter(|_| !self.convicted.contains(&by))?;
        (member.votes_after <= self.executed).then_some(member.vote_key)
    }

    /// Is this a consent that counts?
    #[must_use]
    pub fn counts(
        &self,
        matter: Matter,
        content: Hash,
        (by, stance): (ReplicaId, Stance),
        signature: &Signature,
    ) -> bool {
        let hash = consent_hash(self.cluster, matter, self.ground(), content, stance, by);
        self.key(by).is_some_and(|key| self.crypto.verify(&key, &hash, signature))
    }

    /// # Errors
    /// See [`ConsentRefusal`].
    pub fn judge(&self, matter: Matter, agreed: &Agreed) -> Result<(), ConsentRefusal> {
        if agreed.ground != self.ground() {
            return Err(ConsentRefusal::Stale);
        }
        let quorum = self.configuration.quorum();
        let stances = agreed.consents.iter().map(|(_, stance, _)| *stance);
        if !suffices(matter, stances, quorum.q(), self.faults()) {
            return Err(ConsentRefusal::TooFew);
        }
        if !agreed.consents.windows(2).all(|pair| pair[0].0 < pair[1].0) {
            return Err(ConsentRefusal::NotAscending);
        }
        let content = Hash::of(&agreed.bytes);
        let mut items = Vec::with_capacity(agreed.consents.len());
        for (by, stance, signature) in &agreed.consents {
            let key = self.key(*by).ok_or(ConsentRefusal::NoVoice)?;
            let hash = consent_hash(self.cluster, matter, agreed.ground, content, *stance, *by);
            items.push((key, hash, *signature));
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
    pub consents: BTreeMap<ReplicaId, (Stance, Signature)>,
}

impl Question {
    #[must_use]
    pub fn new(bytes: Bytes, ground: Ground) -> Self {
        Self { content: Hash::of(&bytes), bytes, ground, consents: BTreeMap::new() }
    }

    /// Is it agreed to, by what was said so far?
    #[must_use]
    pub fn is_agreed(&self, matter: Matter, quorum: usize, faults: usize) -> bool {
        suffices(matter, self.consents.values().map(|(stance, _)| *stance), quorum, faults)
    }

    /// As the root orders it.
    #[must_use]
    pub fn agreed(&self) -> Agreed {
        let consents = self.consents.iter().map(|(by, (stance, signature))| (*by, *stance, *signature));
        Agreed { bytes: self.bytes.clone(), ground: self.ground, consents: consents.collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dwcp_base::crypto::Ed25519;
    use dwcp_base::{Incarnation, Member, Policy, Quorum, Trust};

    const CLUSTER: ClusterId = ClusterId([4; 32]);
    const AGREES: Stance = Stance::Agrees;

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
        judged_without(&[], who, ground, spoil, executed)
    }

    /// The same where these are convicted.
    fn judged_without(
        convicted: &[u8],
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
                    let signer = signer(*id);
                    (by, AGREES, consent(CLUSTER, Matter::Floor, ground, content, AGREES, by, &signer))
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
            convicted: convicted.iter().copied().map(ReplicaId).collect(),
            crypto: &signer(0),
        };
        court.judge(Matter::Floor, &agreed)
    }

    #[test]
    fn who_is_convicted_has_no_voice_and_of_the_others_one_fewer_may_lie() {
        let ground = Ground { configuration: ConfigurationId(7), ends: 2 };
        let keep = |_: &mut Agreed| {};
        assert_eq!(judged_without(&[0], &[1, 2, 3], ground, keep, 10), Ok(()));
        assert_eq!(judged_without(&[0], &[0, 2, 3], ground, keep, 10), Err(ConsentRefusal::NoVoice));
        let faults = |convicted: &[u8]| {
            let convicted = convicted.iter().copied().map(ReplicaId).collect();
            let configuration = configuration();
            let crypto = signer(0);
            ConsentCourt {
                cluster: CLUSTER,
                configuration: &configuration,
                executed: Sequence(9),
                ends: 2,
                convicted,
                crypto: &crypto,
            }
            .faults()
        };
        assert_eq!((faults(&[]), faults(&[2]), faults(&[1, 2])), (1, 0, 0));
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
            let (one, two) = (agreed.consents[0].2, agreed.consents[1].2);
            (agreed.consents[0].2, agreed.consents[1].2) = (two, one);
        };
        assert_eq!(judged(&[0, 1, 2], ground, swapped, 9), Err(ConsentRefusal::Signature));
        let below = |agreed: &mut Agreed| agreed.consents[0].1 = Stance::Below;
        assert_eq!(
            judged(&[0, 1, 2], ground, below, 9),
            Err(ConsentRefusal::TooFew),
            "a floor wants agreement"
        );
    }

    #[test]
    fn an_end_wants_more_honest_ones_than_may_lie_who_are_ready_for_it() {
        use Stance::{Agrees, Below, Beyond, Elsewhere};
        let of_seven = |stances: &[Stance]| suffices(Matter::End, stances.iter().copied(), 5, 2);
        assert!(of_seven(&[Agrees; 5]));
        assert!(!of_seven(&[Agrees; 4]), "no quorum");
        for other in [Beyond, Below, Elsewhere] {
            let four = [Agrees, Agrees, Agrees, Agrees, other, other];
            assert!(!of_seven(&four), "two of the four may lie, and two offer no store that is believed");
        }
        let of_convicted = |stances: &[Stance]| suffices(Matter::End, stances.iter().copied(), 5, 1);
        assert!(of_convicted(&[Agrees, Agrees, Agrees, Elsewhere, Elsewhere]));
        assert!(!of_convicted(&[Agrees, Agrees, Below, Beyond, Elsewhere]));
        let of_three = |stances: &[Stance]| suffices(Matter::End, stances.iter().copied(), 2, 0);
        assert!(of_three(&[Agrees, Below]) && of_three(&[Agrees, Elsewhere]) && !of_three(&[Agrees]));
        assert!(!of_three(&[Below, Below]) && !of_three(&[Beyond, Beyond]) && !of_three(&[Beyond, Below]));
    }
}
