//! What the liar can say. It has its own key, hears everything that is sent to it, repeats and recombines it, and forges
//! what it cannot sign.

use bytes::Bytes;
use dwcp_base::{ConfigurationId, Hash, Incarnation, ReplicaId, Sequence, SigningKind, View, decode, encode};
use dwcp_log::entry::payload_digest;
use dwcp_pbft::new_view::choose;
use dwcp_pbft::{
    Claim, Message, NewView, PrePrepared, PreparedCertificate, Signed, SignedBody, Statement, ViewChange,
    Vote,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::cluster::{Cluster, Letter, State};
use crate::keys::KeyedHash;
use crate::node::INVALID;

/// One thing said to one replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lie {
    /// As primary of this view, whatever others were told.
    PrePrepare {
        to: u8,
        view: View,
        sequence: Sequence,
        payload: &'static [u8],
    },
    Vote {
        to: u8,
        vote: Vote,
        view: View,
        sequence: Sequence,
        digest: Hash,
    },
    ViewChange {
        to: u8,
        view: View,
        pretence: Pretence,
    },
    /// As primary of this view: begins it with what follows from the VIEW-CHANGEs heard, or with `A` in slot 1.
    NewView {
        to: u8,
        view: View,
        honest: bool,
    },
    /// The payload of its own proposals.
    Payload {
        to: u8,
        sequence: Sequence,
        payload: &'static [u8],
    },
}

/// What the liar pretends to have prepared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pretence {
    Nothing,
    /// The genuine certificate of this view for slot 1 that its ears allow it to put together.
    Old(View),
    /// Its own pre-prepare for B in view `v`, with the prepares that others made for something else.
    Mixed(View),
}

const SLOTS: [Sequence; 2] = [Sequence(1), Sequence(2)];

impl Cluster {
    fn claim(vote: Vote, view: View, sequence: Sequence, digest: Hash) -> Claim {
        Claim { vote, configuration: ConfigurationId(1), view, sequence, digest }
    }

    /// A vote in `name`'s name under the liar's own key: good when it is the liar's name, a forgery otherwise.
    fn signed_as(&self, name: u8, claim: Claim) -> Signed {
        let statement = Statement { claim, sender: ReplicaId(name), incarnation: Incarnation(0) };
        Signed::new(statement, self.genesis.cluster(), &KeyedHash::of(self.liar))
    }

    fn body(&self, kind: SigningKind, bytes: Vec<u8>) -> SignedBody {
        SignedBody::new(kind, bytes, self.genesis.cluster(), &KeyedHash::of(self.liar))
    }

    /// Everything an equivocating primary of view 0 may say about slot 1 to everybody: two payloads and an
    /// invalid one, commits for both, and commits forged in the others' names.
    #[must_use]
    pub fn equivocation(&self) -> Vec<Letter> {
        let mut letters = Vec::new();
        for to in (0..self.n()).filter(|id| *id != self.liar) {
            let mut put = |message: Message| letters.push(Letter::new(self.liar, to, Arc::new(message)));
            for payload in [b"A".as_slice(), b"B", INVALID] {
                let claim = Self::claim(Vote::PrePrepare, View(0), SLOTS[0], payload_digest(payload));
                let proposal = self.signed_as(self.liar, claim);
                put(Message::PrePrepare { proposal, payload: Bytes::from_static(payload) });
            }
            for payload in [b"A", b"B"] {
                let claim = Self::claim(Vote::Commit, View(0), SLOTS[0], payload_digest(payload));
                put(Message::Vote(self.signed_as(self.liar, claim)));
                for name in (0..self.n()).filter(|name| *name != self.liar && *name != to) {
                    put(Message::Vote(self.signed_as(name, claim)));
                }
            }
        }
        letters
    }

    /// What it may say in this state.
    #[must_use]
    pub fn lies(&self, state: &State) -> Vec<Lie> {
        let mut lies = Vec::new();
        let digests = self.digests_heard(state);
        let old = self.views_prepared(state);
        for (to, node) in state.honest() {
            let now = node.pbft().view();
            for view in [now, now.next()].into_iter().filter(|view| view.0 <= self.limits.view_max) {
                let primary = view.primary(self.n()).0 == self.liar;
                for sequence in SLOTS {
                    for payload in [b"A", b"B"].into_iter().filter(|_| primary) {
                        lies.push(Lie::PrePrepare { to, view, sequence, payload });
                    }
                    for digest in digests.get(&(view, sequence)).into_iter().flatten() {
                        for vote in [Vote::Prepare, Vote::Commit] {
                            lies.push(Lie::Vote { to, vote, view, sequence, digest: *digest });
                        }
                    }
                    for payload in [b"A", b"B"] {
                        lies.push(Lie::Payload { to, sequence, payload });
                    }
                }
                if view > View::ZERO {
                    lies.push(Lie::ViewChange { to, view, pretence: Pretence::Nothing });
                    for earlier in old.iter().filter(|earlier| **earlier < view) {
                        lies.push(Lie::ViewChange { to, view, pretence: Pretence::Old(*earlier) });
                        if earlier.primary(self.n()).0 == self.liar {
                            lies.push(Lie::ViewChange { to, view, pretence: Pretence::Mixed(*earlier) });
                        }
                    }
                    for honest in [true, false].into_iter().filter(|_| primary) {
                        lies.push(Lie::NewView { to, view, honest });
                    }
                }
            }
        }
        lies
    }

    /// The letter behind a lie; `None` when it cannot be put together after all.
    #[must_use]
    pub fn say(&self, state: &State, lie: &Lie) -> Option<(u8, Message)> {
        Some(match *lie {
            Lie::PrePrepare { to, view, sequence, payload } => {
                let claim = Self::claim(Vote::PrePrepare, view, sequence, payload_digest(payload));
                let proposal = self.signed_as(self.liar, claim);
                (to, Message::PrePrepare { proposal, payload: Bytes::from_static(payload) })
            }
            Lie::Vote { to, vote, view, sequence, digest } => {
                let claim = Self::claim(vote, view, sequence, digest);
                (to, Message::Vote(self.signed_as(self.liar, claim)))
            }
            Lie::ViewChange { to, view, pretence } => {
                (to, Message::ViewChange(self.view_change(state, view, pretence)?))
            }
            Lie::NewView { to, view, honest } => (to, Message::NewView(self.new_view(state, view, honest)?)),
            Lie::Payload { to, sequence, payload } => {
                (to, Message::Payload { sequence, payload: Bytes::from_static(payload) })
            }
        })
    }

    fn view_change(&self, state: &State, view: View, pretence: Pretence) -> Option<SignedBody> {
        let prepared: Vec<PreparedCertificate> = match pretence {
            Pretence::Nothing => Vec::new(),
            Pretence::Old(earlier) => vec![self.certificate_heard(state, earlier)?],
            Pretence::Mixed(earlier) => {
                let mut certificate = self.certificate_heard(state, earlier)?;
                let claim = Self::claim(Vote::PrePrepare, earlier, SLOTS[0], payload_digest(b"B"));
                certificate.pre_prepare = self.signed_as(self.liar, claim);
                vec![certificate]
            }
        };
        let pre_prepared = prepared
            .iter()
            .map(|one| PrePrepared { sequence: one.sequence(), digest: one.digest(), view: one.view() })
            .collect();
        let body = ViewChange {
            view,
            configuration: ConfigurationId(1),
            sender: ReplicaId(self.liar),
            incarnation: Incarnation(0),
            stable: None,
            prepared,
            pre_prepared,
        };
        Some(self.body(SigningKind::ViewChange, encode(&body)))
    }

    fn new_view(&self, state: &State, view: View, honest: bool) -> Option<SignedBody> {
        let mut heard: BTreeMap<ReplicaId, (ViewChange, SignedBody)> = BTreeMap::new();
        for letter in &state.heard {
            if let Message::ViewChange(signed) = &*letter.message
                && let Ok(body) = decode::<ViewChange>(&signed.body)
                && body.view == view
            {
                heard.insert(body.sender, (body, signed.clone()));
            }
        }
        let own = self.view_change(state, view, Pretence::Nothing)?;
        heard.insert(ReplicaId(self.liar), (decode(&own.body).ok()?, own));
        let bodies: Vec<&ViewChange> = heard.values().map(|(body, _)| body).collect();
        let choice = choose(&bodies, self.genesis.policy.quorum, self.mutants)?;
        let mut slots: Vec<(Sequence, Hash)> = choice
            .slots
            .iter()
            .map(|(sequence, digest)| (*sequence, digest.unwrap_or_else(|| payload_digest(&[]))))
            .collect();
        if !honest {
            slots = vec![(SLOTS[0], payload_digest(b"A"))];
        }
        let pre_prepares = slots
            .into_iter()
            .map(|(sequence, digest)| {
                self.signed_as(self.liar, Self::claim(Vote::PrePrepare, view, sequence, digest))
            })
            .collect();
        let body = NewView {
            view,
            configuration: ConfigurationId(1),
            sender: ReplicaId(self.liar),
            incarnation: Incarnation(0),
            view_changes: heard.iter().map(|(sender, (_, signed))| (*sender, signed.hash())).collect(),
            pre_prepares,
        };
        Some(self.body(SigningKind::NewView, encode(&body)))
    }

    fn votes_heard<'a>(&self, state: &'a State) -> impl Iterator<Item = &'a Signed> {
        state.heard.iter().filter_map(|letter| match &*letter.message {
            Message::Vote(vote) => Some(vote),
            Message::PrePrepare { proposal, .. } => Some(proposal),
            _ => None,
        })
    }

    /// Digests that anybody spoke of, by place; the liar's own are always to hand.
    fn digests_heard(&self, state: &State) -> BTreeMap<(View, Sequence), BTreeSet<Hash>> {
        let mut digests: BTreeMap<(View, Sequence), BTreeSet<Hash>> = BTreeMap::new();
        for vote in self.votes_heard(state) {
            let claim = vote.statement.claim;
            digests.entry((claim.view, claim.sequence)).or_default().insert(claim.digest);
        }
        digests
    }

    /// Views for whose slot 1 a prepared certificate can be put together.
    fn views_prepared(&self, state: &State) -> BTreeSet<View> {
        let views: BTreeSet<View> = self.votes_heard(state).map(|vote| vote.statement.claim.view).collect();
        views.into_iter().filter(|view| self.certificate_heard(state, *view).is_some()).collect()
    }

    fn certificate_heard(&self, state: &State, view: View) -> Option<PreparedCertificate> {
        let primary = view.primary(self.n());
        let of_slot = |kind: Vote| {
            self.votes_heard(state).filter(move |vote| {
                let claim = vote.statement.claim;
                claim.vote == kind && claim.view == view && claim.sequence == SLOTS[0]
            })
        };
        let mut by_digest: BTreeMap<Hash, BTreeMap<ReplicaId, Signed>> = BTreeMap::new();
        for prepare in of_slot(Vote::Prepare) {
            let statement = prepare.statement;
            by_digest.entry(statement.claim.digest).or_default().insert(statement.sender, *prepare);
        }
        for (digest, mut prepares) in by_digest {
            let claim = Self::claim(Vote::Prepare, view, SLOTS[0], digest);
            let pre_prepare = if primary.0 == self.liar {
                Some(self.signed_as(self.liar, Claim { vote: Vote::PrePrepare, ..claim }))
            } else {
                prepares.insert(ReplicaId(self.liar), self.signed_as(self.liar, claim));
                of_slot(Vote::PrePrepare).find(|vote| vote.statement.claim.digest == digest).copied()
            };
            let needed = self.genesis.policy.quorum.q() - 1;
            if let Some(pre_prepare) = pre_prepare
                && prepares.len() >= needed
            {
                return Some(PreparedCertificate {
                    pre_prepare,
                    prepares: prepares.into_values().take(needed).collect(),
                });
            }
        }
        None
    }
}
