//! Who may vote on what, and what a certificate is worth: every signature check of the protocol is here.
//!
//! A vote counts under the configuration of its sequence. A member replaced by an entry at sequence `s` is replaced
//! for sequences above `s + window`: nobody can have voted there before knowing of `s`.
//!
//! Departs: the papers' membership is static. A lost disk is a lost promise, so a replica comes back from one as a new
//! incarnation that learns before it votes. Covered by the simulator's
//! `a_wiped_disk_does_not_vote_under_the_old_identity`.

use crate::message::{
    Certificate, Claim, NewView, PreparedCertificate, Signed, SignedBody, ViewChange, Vote, Voucher,
};
use crate::slot::DIGESTS_MAX;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec;
use alloc::vec::Vec;
use borsh::{BorshDeserialize, BorshSerialize};
use dwcp_base::{
    ClusterId, Configuration, Crypto, Hash, Incarnation, Mutant, Mutants, PublicKey, Quorum, ReplicaId,
    Sequence, Signature, SigningKind, decode, signing_hash,
};

/// The configurations that still matter, oldest first, each with the last sequence it does *not* govern.
#[derive(Clone, Debug, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
pub struct Configurations {
    /// At most `HISTORY_MAX`.
    history: Vec<(Sequence, Configuration)>,
}

impl Configurations {
    /// Configurations remembered at most; replacing members faster than this many per window is refused upstream.
    pub const HISTORY_MAX: usize = 64;

    #[must_use]
    pub fn new(first: Configuration) -> Self {
        Self { history: vec![(Sequence::ZERO, first)] }
    }

    /// The configuration that governs a sequence.
    #[must_use]
    pub fn at(&self, sequence: Sequence) -> &Configuration {
        let found = self.history.iter().rev().find(|(after, _)| *after < sequence);
        &found.unwrap_or(&self.history[0]).1
    }

    /// The newest configuration known, in force or about to be.
    #[must_use]
    pub fn latest(&self) -> &Configuration {
        &self.history.last().expect("there is always one configuration").1
    }

    /// `configuration` governs everything after `after`.
    pub fn push(&mut self, after: Sequence, configuration: Configuration) {
        self.history.push((after, configuration));
        if self.history.len() > Self::HISTORY_MAX {
            self.history.remove(0);
        }
    }

    /// Forgets what no sequence above `stable` needs.
    pub fn forget_before(&mut self, stable: Sequence) {
        while self.history.len() > 1 && self.history[1].0 <= stable {
            self.history.remove(0);
        }
    }

    /// The key of an incarnation, if any remembered configuration knows it.
    #[must_use]
    pub fn key_of(&self, sender: ReplicaId, incarnation: Incarnation) -> Option<PublicKey> {
        self.history.iter().rev().find_map(|(_, configuration)| {
            configuration
                .member(sender)
                .filter(|member| member.incarnation == incarnation)
                .map(|member| member.vote_key)
        })
    }
}

/// Checks signatures and certificates against the configurations.
pub(crate) struct Verifier<'a> {
    pub cluster: ClusterId,
    pub crypto: &'a dyn Crypto,
    pub configurations: &'a Configurations,
    pub quorum: Quorum,
    pub mutants: Mutants,
    /// Votes whose signatures this replica has verified before, so that certificates made of them cost little.
    pub known: BTreeSet<Signed>,
    /// Votes verified just now, together with others.
    pub proven: &'a BTreeSet<Signed>,
}

impl Verifier<'_> {
    /// The key that must have signed this claim, if its sender may make it.
    fn key_for(&self, claim: &Claim, sender: ReplicaId, incarnation: Incarnation) -> Option<PublicKey> {
        let configuration = self.configurations.at(claim.sequence);
        let unchecked = self.mutants.on(Mutant::ConfigurationUnchecked);
        if claim.configuration != configuration.id && !unchecked {
            return None;
        }
        configuration
            .member(sender)
            .filter(|member| member.incarnation == incarnation || unchecked)
            .map(|member| member.vote_key)
    }

    fn signature_holds(&self, key: &PublicKey, hash: &Hash, signature: &Signature) -> bool {
        self.mutants.on(Mutant::SignatureUnchecked) || self.crypto.verify(key, hash, signature)
    }

    /// What must verify for a vote to be its sender's; `None` when this replica has verified it before.
    pub(crate) fn vote_item(
        &self,
        signed: &Signed,
    ) -> Result<Option<(PublicKey, Hash, Signature)>, &'static str> {
        let statement = &signed.statement;
        let key = self
            .key_for(&statement.claim, statement.sender, statement.incarnation)
            .ok_or("a vote by an unknown member or under another configuration")?;
        if self.known.contains(signed) || self.proven.contains(signed) {
            return Ok(None);
        }
        Ok(Some((key, statement.signing_hash(self.cluster), signed.signature)))
    }

    fn all_hold(&self, items: &[(PublicKey, Hash, Signature)]) -> Result<(), &'static str> {
        if self.mutants.on(Mutant::SignatureUnchecked) || self.crypto.verify_all(items) {
            Ok(())
        } else {
            Err("a vote with a bad signature")
        }
    }

    /// A single vote.
    pub(crate) fn vote(&self, signed: &Signed) -> Result<(), &'static str> {
        match self.vote_item(signed)? {
            Some(item) => self.all_hold(&[item]),
            None => Ok(()),
        }
    }

    /// A quorum of equal votes.
    pub(crate) fn certificate(&self, certificate: &Certificate, vote: Vote) -> Result<(), &'static str> {
        if certificate.claim.vote != vote {
            return Err("a certificate of another kind");
        }
        let weak = vote == Vote::Checkpoint && self.mutants.on(Mutant::WeakCheckpoint);
        let needed = if weak { 1 } else { self.quorum.q() };
        if certificate.vouchers.len() < needed {
            return Err("a certificate with fewer than q votes");
        }
        let twice = !certificate.vouchers.windows(2).all(|pair| pair[0].sender < pair[1].sender);
        if twice && !self.mutants.on(Mutant::DuplicateVotesCounted) {
            return Err("a certificate that counts a sender twice");
        }
        let mut items = Vec::with_capacity(certificate.vouchers.len());
        for voucher in &certificate.vouchers {
            let statement = crate::message::Statement {
                claim: certificate.claim,
                sender: voucher.sender,
                incarnation: voucher.incarnation,
            };
            items.extend(self.vote_item(&Signed { statement, signature: voucher.signature })?);
        }
        self.all_hold(&items)
    }

    /// A prepared certificate: the pre-prepare is the primary's, and `q - 1` others prepared the same.
    /// Its signatures are added to `items`, for the caller to verify.
    fn prepared(
        &self,
        certificate: &PreparedCertificate,
        items: &mut Vec<(PublicKey, Hash, Signature)>,
    ) -> Result<(), &'static str> {
        let proposal = &certificate.pre_prepare.statement;
        if proposal.claim.vote != Vote::PrePrepare
            || proposal.sender != proposal.claim.view.primary(self.quorum.n())
        {
            return Err("a prepared certificate without its primary's pre-prepare");
        }
        if certificate.prepares.len() + 1 < self.quorum.q() {
            return Err("a prepared certificate with fewer than q votes");
        }
        let distinct =
            certificate.prepares.windows(2).all(|pair| pair[0].statement.sender < pair[1].statement.sender);
        if !distinct && !self.mutants.on(Mutant::DuplicateVotesCounted) {
            return Err("a prepared certificate that counts a sender twice");
        }
        items.extend(self.vote_item(&certificate.pre_prepare)?);
        let expected = Claim { vote: Vote::Prepare, ..proposal.claim };
        for prepare in &certificate.prepares {
            let claim = prepare.statement.claim;
            let same = if self.mutants.on(Mutant::PreparedDigestUnchecked) {
                Claim { digest: expected.digest, ..claim } == expected
            } else {
                claim == expected
            };
            if !same {
                return Err("a prepared certificate whose votes do not match");
            }
            if prepare.statement.sender == proposal.sender {
                return Err("a prepared certificate that counts the primary twice");
            }
            items.extend(self.vote_item(prepare)?);
        }
        Ok(())
    }

    fn body_key(&self, sender: ReplicaId, incarnation: Incarnation) -> Result<PublicKey, &'static str> {
        self.configurations.key_of(sender, incarnation).ok_or("a message by an unknown member or incarnation")
    }

    /// Whether the member named in a VIEW-CHANGE signed it.
    pub(crate) fn signed_view_change(&self, signed: &SignedBody, body: &ViewChange) -> bool {
        let hash = signing_hash(SigningKind::ViewChange, self.cluster, &signed.body);
        self.body_key(body.sender, body.incarnation)
            .is_ok_and(|key| self.signature_holds(&key, &hash, &signed.signature))
    }

    /// A VIEW-CHANGE, with everything it claims.
    ///
    /// What it says of slots up to `settled`, our own stable checkpoint, is not checked: those are decided for us, and
    /// the configurations they were voted under may be forgotten.
    pub(crate) fn view_change(
        &self,
        signed: &SignedBody,
        window: u64,
        settled: Sequence,
    ) -> Result<ViewChange, &'static str> {
        let body: ViewChange = decode(&signed.body).map_err(|_| "a malformed VIEW-CHANGE")?;
        let key = self.body_key(body.sender, body.incarnation)?;
        let hash = signing_hash(SigningKind::ViewChange, self.cluster, &signed.body);
        if !self.signature_holds(&key, &hash, &signed.signature) {
            return Err("a VIEW-CHANGE with a bad signature");
        }
        if let Some(stable) = body.stable.as_ref().filter(|stable| stable.claim.sequence > settled) {
            self.certificate(stable, Vote::Checkpoint)?;
        }
        let low = body.stable_sequence();
        let inside = |sequence: Sequence| sequence > low && sequence <= low.plus(window);
        if !body.prepared.windows(2).all(|pair| pair[0].sequence() < pair[1].sequence())
            || !body
                .pre_prepared
                .windows(2)
                .all(|pair| (pair[0].sequence, pair[0].digest) < (pair[1].sequence, pair[1].digest))
        {
            return Err("a VIEW-CHANGE whose sets are not ascending");
        }
        if body.prepared.iter().any(|entry| !inside(entry.sequence()) || entry.view() >= body.view)
            || body.pre_prepared.iter().any(|entry| !inside(entry.sequence) || entry.view >= body.view)
        {
            return Err("a VIEW-CHANGE with entries outside its window or views");
        }
        let many = body
            .pre_prepared
            .windows(DIGESTS_MAX + 1)
            .any(|run| run[0].sequence == run[DIGESTS_MAX].sequence);
        if many {
            return Err("a VIEW-CHANGE with more digests for a slot than anybody keeps");
        }
        let mut items = Vec::new();
        for entry in body.prepared.iter().filter(|entry| entry.sequence() > settled) {
            self.prepared(entry, &mut items)?;
        }
        self.all_hold(&items)?;
        Ok(body)
    }

    /// A NEW-VIEW's signature and form; whether it follows from its VIEW-CHANGEs is for `new_view`.
    pub(crate) fn new_view(&self, signed: &SignedBody) -> Result<NewView, &'static str> {
        let body: NewView = decode(&signed.body).map_err(|_| "a malformed NEW-VIEW")?;
        let key = self.body_key(body.sender, body.incarnation)?;
        let hash = signing_hash(SigningKind::NewView, self.cluster, &signed.body);
        if !self.signature_holds(&key, &hash, &signed.signature) {
            return Err("a NEW-VIEW with a bad signature");
        }
        if body.sender != body.view.primary(self.quorum.n()) {
            return Err("a NEW-VIEW by another than the view's primary");
        }
        Ok(body)
    }
}

/// The votes one slot or checkpoint has received, one per sender.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Votes {
    by_sender: BTreeMap<ReplicaId, Signed>,
    /// Proof builds only: repeats that a mutant counts.
    repeats: usize,
}

impl Votes {
    /// Remembers a verified vote; the first of each sender stays. True when it is new.
    pub(crate) fn add(&mut self, signed: Signed, mutants: Mutants) -> bool {
        if self.by_sender.contains_key(&signed.statement.sender) {
            if mutants.on(Mutant::DuplicateVotesCounted) {
                self.repeats += 1;
                return true;
            }
            return false;
        }
        self.by_sender.insert(signed.statement.sender, signed);
        true
    }

    /// Whether this sender voted already.
    pub(crate) fn has(&self, sender: ReplicaId) -> bool {
        self.by_sender.contains_key(&sender)
    }

    pub(crate) fn get(&self, sender: ReplicaId) -> Option<&Signed> {
        self.by_sender.get(&sender)
    }

    /// How many voted for this digest.
    pub(crate) fn count(&self, digest: &Hash) -> usize {
        self.by_sender.values().filter(|signed| signed.statement.claim.digest == *digest).count()
            + self.repeats
    }

    /// The digest that at least `needed` voted for.
    pub(crate) fn winner(&self, needed: usize) -> Option<Hash> {
        self.by_sender
            .values()
            .map(|signed| signed.statement.claim.digest)
            .find(|digest| self.count(digest) >= needed)
    }

    /// The votes for a digest, ascending by sender.
    pub(crate) fn matching<'a>(&'a self, digest: &'a Hash) -> impl Iterator<Item = &'a Signed> + 'a {
        self.by_sender.values().filter(move |signed| signed.statement.claim.digest == *digest)
    }

    /// A certificate of the first `needed` votes for `claim`'s digest.
    pub(crate) fn certificate(&self, claim: Claim, needed: usize) -> Certificate {
        let vouchers = self
            .matching(&claim.digest)
            .take(needed)
            .map(|signed| Voucher {
                sender: signed.statement.sender,
                incarnation: signed.statement.incarnation,
                signature: signed.signature,
            })
            .collect();
        Certificate { claim, vouchers }
    }

    pub(crate) fn clear(&mut self) {
        self.by_sender.clear();
        self.repeats = 0;
    }
}
