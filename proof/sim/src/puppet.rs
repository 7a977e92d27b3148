//! Replicas that lie. A puppet wraps an honest core and spoils what passes between it and the world: it alters,
//! withholds, delays, replays and invents, with the signer of its own identity and no other.
//!
//! Liars of one run share a notebook, so that two of them can push the same false proposal. What they do to their own
//! disk or core is nobody's concern; what matters is what honest replicas and clients see.

use crate::dials::Dials;
use crate::false_frames::FalseFrames;
use crate::false_words::OpenSegment;
use crate::held_back::HeldBack;
use crate::keys::Identity;
pub use crate::trick::Trick;
use crate::world::{Event, World};
use bytes::Bytes;
use dwcp_base::{
    Chance, ClusterId, Crypto, Epoch, Hash, LogTime, Mutant, Mutants, ReplicaId, Sequence, Signature, View,
    decode, encode,
};
use dwcp_log::seal::{self, Sealed};
use dwcp_log::{Proposal, RootEntry};
use dwcp_pbft::{Message, NewView, PrePrepared, PreparedCertificate, Signed, SignedBody, ViewChange, Vote};
use dwcp_replica::wire::CHUNK_PART_BYTES;
use dwcp_replica::{Class, ClientReply, ClientRequest, Control, Input, PeerMessage};
use dwcp_state::{ClientFrame, SessionFrame};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};

/// A false proposal that the liars push together.
#[derive(Clone, Debug)]
struct Alternative {
    digest: Hash,
    payload: Bytes,
    /// Peers that are shown it, as bits.
    shown_to: u64,
}

/// What the liars of one run agreed on, by (view, sequence). Bounded by what their cores propose; old ones are dropped.
type Notebook = Arc<Mutex<BTreeMap<(View, Sequence), Alternative>>>;

const NOTEBOOK_MAX: usize = 256;
const MEMORY_MAX: usize = 200;
/// A part of a chunk that is not its last.
static NOTHING: [u8; CHUNK_PART_BYTES as usize] = [0; CHUNK_PART_BYTES as usize];
/// How far a fast clock gets ahead: within the validity of the bytes that open a session.
const CLOCK_AHEAD_MAX_US: u64 = 30_000_000;

/// Bytes that a puppet sends instead of what its core wanted to send.
#[derive(Debug)]
pub struct Lie {
    pub to: ReplicaId,
    pub bytes: Bytes,
    pub extra_us: u64,
}

pub struct Puppet {
    pub(crate) me: ReplicaId,
    pub(crate) n: u8,
    tricks: u64,
    pub(crate) chance: Chance,
    pub(crate) crypto: Arc<dyn Crypto>,
    pub(crate) cluster: ClusterId,
    notebook: Notebook,
    view_timeout_us: u64,
    /// Messages seen or sent, to be replayed.
    memory: VecDeque<Bytes>,
    /// The same of segments, and what it said last of where one ends.
    pub(crate) old_epochs: VecDeque<Bytes>,
    pub(crate) false_seals: BTreeMap<Epoch, seal::Signed<Sealed>>,
    pub(crate) held_back: HeldBack,
    pub(crate) false_frames: FalseFrames,
    highest: (View, Sequence),
    silent_until_us: u64,
    /// The newest snapshot that others say they have.
    snapshot: Sequence,
    censored: Option<dwcp_state::SessionId>,
    /// To whom its core sent a client's frame last.
    hidden_from: Option<ReplicaId>,
    /// For each slot the prepared certificate of the lowest view seen; at most `NOTEBOOK_MAX`, the newest slots stay.
    oldest: BTreeMap<Sequence, PreparedCertificate>,
    /// How often each trick was played, by its bit.
    pub(crate) played: [u64; Trick::ALL.len()],
    pub chunks_asked: u64,
    pub parts_without_end: u64,
    pub equivocations: u64,
    /// Epochs of whose segments it complained all the time.
    pub storms: BTreeSet<Epoch>,
}

impl std::fmt::Debug for Puppet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let tricks: Vec<Trick> =
            Trick::ALL.into_iter().filter(|trick| self.tricks & trick.bit() != 0).collect();
        write!(f, "Puppet({:?}, {tricks:?})", self.me)
    }
}

impl Puppet {
    #[must_use]
    pub fn new(replica: u8, dials: &Dials, world: &World, chance: Chance) -> Self {
        let mut chance = chance.fork(&format!("liar {replica}"));
        let tricks = if dials.tricks == 0 { Trick::drawn(dials, &mut chance) } else { dials.tricks };
        let false_frames = FalseFrames::new(dials, chance.fork("frames"));
        let earlier = world.nodes.iter().find_map(|node| node.puppet.as_ref());
        let mut puppet = Self {
            me: ReplicaId(replica),
            n: u8::try_from(dials.n).expect("few replicas"),
            tricks,
            chance,
            crypto: world.keys.signer(Identity::Vote { replica, incarnation: 0 }, &world.known_keys),
            cluster: world.cluster,
            notebook: earlier.map(|puppet| Arc::clone(&puppet.notebook)).unwrap_or_default(),
            view_timeout_us: dials.view_timeout_ms * 1000,
            memory: VecDeque::new(),
            old_epochs: VecDeque::new(),
            false_seals: BTreeMap::new(),
            held_back: HeldBack::default(),
            false_frames,
            highest: (View::ZERO, Sequence::ZERO),
            silent_until_us: 0,
            snapshot: Sequence::ZERO,
            censored: None,
            hidden_from: None,
            oldest: BTreeMap::new(),
            played: [0; Trick::ALL.len()],
            chunks_asked: 0,
            parts_without_end: 0,
            equivocations: 0,
            storms: BTreeSet::new(),
        };
        // These are what a liar is, from its first moment on.
        for trick in Trick::INNATE {
            if puppet.has(trick) {
                puppet.plays(trick);
            }
        }
        puppet
    }

    /// A trick is played once more.
    pub(crate) fn plays(&mut self, trick: Trick) {
        self.played[trick as usize] += 1;
    }

    /// What leaves instead of `bytes`; whatever differs is a trick played.
    fn told(&mut self, trick: Trick, bytes: Bytes, lie: Option<Bytes>) -> Bytes {
        let Some(lie) = lie.filter(|lie| *lie != bytes) else { return bytes };
        self.plays(trick);
        lie
    }

    /// Two payloads for one slot, to be believed at once or to be kept for a later view. An accomplice who has neither trick
    /// votes for what another equivocated about.
    fn double_dealing(&self) -> Trick {
        let keeps = self.has(Trick::SecretProof) && !self.has(Trick::Equivocate);
        if keeps { Trick::SecretProof } else { Trick::Equivocate }
    }

    /// Its tricks, by their bits.
    #[must_use]
    pub fn tricks(&self) -> u64 {
        self.tricks
    }

    #[must_use]
    pub fn has(&self, trick: Trick) -> bool {
        self.tricks & trick.bit() != 0
    }

    /// How far its clock is ahead of what it should be.
    #[must_use]
    pub fn clock_ahead_us(&self, at_us: u64) -> u64 {
        if self.has(Trick::FastClock) { (2 * at_us).min(CLOCK_AHEAD_MAX_US) } else { 0 }
    }

    /// Rules that its core does without, whatever the others keep to.
    #[must_use]
    pub fn lacks(&self, mut mutants: Mutants) -> Mutants {
        let tricks = [
            (Trick::AsksUnheard, Mutant::RoomAsksUnheard),
            (Trick::OrdersUnasked, Mutant::RoomOrdersUnasked),
        ];
        for (_, mutant) in tricks.into_iter().filter(|(trick, _)| self.has(*trick)) {
            mutants = mutants.with(mutant);
        }
        mutants
    }

    #[must_use]
    pub fn wants_twin(&self) -> bool {
        self.has(Trick::Twins)
    }

    fn remember(&mut self, bytes: &Bytes) {
        if self.has(Trick::Replay) && self.chance.per_mille(100) {
            if self.memory.len() >= MEMORY_MAX {
                let at = usize::try_from(self.chance.below(MEMORY_MAX as u64)).expect("small");
                self.memory.remove(at);
            }
            self.memory.push_back(bytes.clone());
        }
    }

    /// With `liars_first` of 2: the first replica and the last f - 1.
    fn is_accomplice(&self, replica: ReplicaId) -> bool {
        let f = (self.n - 1) / 3;
        replica.0 == 0 || replica.0 > self.n - f
    }

    /// As bits, the honest replicas that a quorum of the liars and the others does without.
    fn left_out(&self) -> u64 {
        let f = (self.n - 1) / 3;
        let q = (self.n + f) / 2 + 1;
        let honest = (0..self.n).map(ReplicaId).filter(|id| !self.is_accomplice(*id));
        honest.skip(usize::from(q - f)).map(|id| 1 << id.0).sum()
    }

    /// What the puppet lets its core hear. None: nothing.
    pub fn hear(&mut self, input: Input) -> Option<Input> {
        match &input {
            Input::Peer { from, bytes, .. } => {
                self.remember(bytes);
                self.remember_epoch(bytes);
                if self.holds_back(bytes) {
                    return None;
                }
                if self.ends_falsely() {
                    self.hear_of_ends(*from, bytes);
                }
                if self.has(Trick::OldProofs) {
                    self.hoard(bytes);
                }
                if self.has(Trick::AsksForChunks)
                    && let Ok(PeerMessage::Pbft(Message::Standing(standing))) = decode::<PeerMessage>(bytes)
                {
                    self.snapshot = self.snapshot.max(standing.snapshot);
                }
                if self.has(Trick::Censor)
                    && let Ok(PeerMessage::Request { frame, .. }) = decode::<PeerMessage>(bytes)
                {
                    return (!self.censors(&frame)).then_some(input);
                }
            }
            Input::Client { request: ClientRequest::Frame { bytes, .. }, .. } if self.has(Trick::Censor) => {
                return (!self.censors(&bytes.clone())).then_some(input);
            }
            _ => {}
        }
        Some(input)
    }

    fn censors(&mut self, frame: &Bytes) -> bool {
        let Ok(frame) = ClientFrame::decode(frame.clone()) else { return false };
        // A client whose session does not open takes another; one whose commands do not run waits.
        if !matches!(frame.content(), dwcp_state::FrameContent::Commands(_)) {
            return false;
        }
        let censored = *self.censored.get_or_insert(frame.session());
        let hit = censored == frame.session();
        if hit {
            self.plays(Trick::Censor);
        }
        hit
    }

    fn sign(&self, signed: &Signed, change: impl FnOnce(&mut dwcp_pbft::Statement)) -> Signed {
        let mut statement = signed.statement;
        change(&mut statement);
        Signed::new(statement, self.cluster, &*self.crypto)
    }

    /// What leaves for `to` instead of `bytes`.
    pub fn speak(&mut self, now_us: u64, to: ReplicaId, class: Class, bytes: Bytes, out: &mut Vec<Lie>) {
        let _ = class;
        self.remember(&bytes);
        if self.has(Trick::Silence) {
            if now_us < self.silent_until_us {
                self.plays(Trick::Silence);
                return;
            }
            if self.chance.per_mille(2) {
                self.silent_until_us = now_us + self.chance.between(1, 6) * self.view_timeout_us;
            }
        }
        let plain = |bytes: Bytes| Lie { to, bytes, extra_us: 0 };
        let message = match decode::<PeerMessage>(&bytes) {
            Ok(PeerMessage::Pbft(message)) => message,
            Ok(PeerMessage::Request { to_all, frame }) if self.has(Trick::HideFromPrimary) => {
                return self.hide(to, to_all, frame, out);
            }
            Ok(message) if Self::is_of_rooms(&message) => {
                return self.speak_in_room(to, bytes, &message, out);
            }
            Ok(message)
                if self.has(Trick::AnchorHeldBack)
                    || Trick::OF_SEGMENTS.iter().any(|trick| self.has(*trick)) =>
            {
                return self.speak_in_segment(to, bytes, message, out);
            }
            _ => {
                out.push(plain(bytes));
                return;
            }
        };
        match message {
            Message::PrePrepare { proposal, payload } => self.propose(to, bytes, proposal, payload, out),
            Message::Vote(signed) => self.vote(to, bytes, signed, out),
            Message::ViewChange(body) if self.has(Trick::MixProofs) => {
                let lie = self.mix_proofs(&body);
                out.push(plain(self.told(Trick::MixProofs, bytes, lie)));
            }
            Message::ViewChange(body) if self.has(Trick::OldProofs) => {
                self.hoard(&bytes);
                let lie = self.old_proofs(&body);
                out.push(plain(self.told(Trick::OldProofs, bytes, lie)));
            }
            Message::NewView(body) if self.has(Trick::NullNewView) => {
                let lie = self.null_new_view(&body);
                out.push(plain(self.told(Trick::NullNewView, bytes, lie)));
            }
            Message::ViewChange(body) if self.has(Trick::SplitViewChange) => {
                let lie = self.split_view_change(&body);
                out.push(plain(self.told(Trick::SplitViewChange, bytes, lie)));
            }
            Message::NewView(body) if self.has(Trick::BogusNewView) => {
                let lie = self.bogus_new_view(&body);
                out.push(plain(self.told(Trick::BogusNewView, bytes, lie)));
            }
            _ => out.push(plain(bytes)),
        }
    }

    /// What its core sends to the primary alone goes to all others, and what it sends to all to all but the primary.
    fn hide(&mut self, to: ReplicaId, to_all: bool, frame: Bytes, out: &mut Vec<Lie>) {
        self.plays(Trick::HideFromPrimary);
        if !to_all {
            self.hidden_from = Some(to);
        }
        let told = Bytes::from(encode(&PeerMessage::Request { to_all: true, frame }));
        for peer in (0..self.n).map(ReplicaId) {
            let due = if to_all { peer == to } else { true };
            if due && peer != self.me && Some(peer) != self.hidden_from {
                out.push(Lie { to: peer, bytes: told.clone(), extra_us: 0 });
            }
        }
    }

    fn propose(&mut self, to: ReplicaId, bytes: Bytes, proposal: Signed, payload: Bytes, out: &mut Vec<Lie>) {
        let claim = proposal.statement.claim;
        let slot = (claim.view, claim.sequence);
        self.highest = self.highest.max(slot);
        let extra_us = if self.has(Trick::Delay) {
            self.plays(Trick::Delay);
            self.view_timeout_us * 9 / 10
        } else if self.has(Trick::Dawdle) {
            self.plays(Trick::Dawdle);
            self.view_timeout_us * 66 / 100
        } else {
            0
        };
        let mine = proposal.statement.sender == self.me;
        if mine
            && (self.has(Trick::Equivocate) || self.has(Trick::SecretProof))
            && let Some(alternative) = self.alternative_for(slot, &payload)
        {
            self.plays(self.double_dealing());
            let shown = alternative.shown_to & (1 << to.0) != 0;
            let digest = if shown { alternative.digest } else { claim.digest };
            let payload = if shown { alternative.payload } else { payload };
            let signed = self.sign(&proposal, |statement| statement.claim.digest = digest);
            // The liar commits at once to whatever this peer was shown.
            let commit = self.sign(&signed, |statement| statement.claim.vote = Vote::Commit);
            out.push(Lie { to, bytes: wire(Message::PrePrepare { proposal: signed, payload }), extra_us });
            if self.has(Trick::Equivocate) {
                out.push(Lie { to, bytes: wire(Message::Vote(commit)), extra_us: extra_us + 1_000 });
            }
            return;
        }
        let spoiled = if !mine {
            None
        } else if self.has(Trick::ForgeFrames) && self.chance.per_mille(300) {
            forge_frame(&payload, &mut self.chance).map(|forged| (Trick::ForgeFrames, forged))
        } else if self.has(Trick::WrongTime) && self.chance.per_mille(300) {
            let ahead = self.chance.between(600, 1_000_000);
            altered(&payload, |proposal| proposal.time = LogTime(proposal.time.0 + ahead))
                .map(|altered| (Trick::WrongTime, altered))
        } else if let Some(payload) = self.with_false_end(slot, &payload) {
            Some((Trick::FalseEnds, payload))
        } else if self.has(Trick::FalseSealed)
            || self.has(Trick::FalseAnchors)
            || self.has(Trick::AnchorHeldBack)
        {
            self.false_border(&payload)
        } else {
            None
        };
        if let Some((trick, payload)) = spoiled {
            self.plays(trick);
            let digest = dwcp_log::entry::payload_digest(&payload);
            let signed = self.sign(&proposal, |statement| statement.claim.digest = digest);
            out.push(Lie { to, bytes: wire(Message::PrePrepare { proposal: signed, payload }), extra_us });
            return;
        }
        out.push(Lie { to, bytes, extra_us });
    }

    fn alternative_for(&mut self, slot: (View, Sequence), payload: &Bytes) -> Option<Alternative> {
        let mut notebook = self.notebook.lock().expect("one thread");
        if let Some(found) = notebook.get(&slot) {
            return Some(found.clone());
        }
        if !self.chance.per_mille(400) {
            return None;
        }
        let payload = altered(payload, |proposal| {
            proposal.time = LogTime(proposal.time.0 + 1);
            for entry in &mut proposal.entries {
                if let RootEntry::Batch(frames) = entry {
                    frames.reverse();
                    if frames.len() > 1 {
                        frames.pop();
                    }
                }
            }
        })?;
        let digest = dwcp_log::entry::payload_digest(&payload);
        // A quorum, the liars in it, is shown the one, the rest the other: enough prepares for whoever hears them all.
        let shown_to = if self.has(Trick::SecretProof) { self.left_out() } else { self.chance.next_u64() };
        let alternative = Alternative { digest, payload, shown_to };
        while notebook.len() >= NOTEBOOK_MAX {
            notebook.pop_first();
        }
        notebook.insert(slot, alternative.clone());
        self.equivocations += 1;
        Some(alternative)
    }

    fn vote(&mut self, to: ReplicaId, bytes: Bytes, signed: Signed, out: &mut Vec<Lie>) {
        let claim = signed.statement.claim;
        self.highest = self.highest.max((claim.view, claim.sequence));
        if signed.statement.sender != self.me {
            out.push(Lie { to, bytes, extra_us: 0 });
            return;
        }
        if self.has(Trick::Withhold) && claim.vote != Vote::Checkpoint && self.chance.per_mille(700) {
            self.plays(Trick::Withhold);
            return;
        }
        let alternative =
            self.notebook.lock().expect("one thread").get(&(claim.view, claim.sequence)).cloned();
        if self.has(Trick::SecretProof) && alternative.is_some() {
            self.plays(Trick::SecretProof);
            if self.is_accomplice(to) {
                out.push(Lie { to, bytes, extra_us: 0 });
            }
            return;
        }
        if let Some(alternative) = alternative.filter(|alternative| alternative.shown_to & (1 << to.0) != 0) {
            // Whoever was shown the other payload gets the votes for it, prepared or not.
            self.plays(self.double_dealing());
            for vote in [Vote::Prepare, Vote::Commit] {
                let lie = self.sign(&signed, |statement| {
                    statement.claim.vote = vote;
                    statement.claim.digest = alternative.digest;
                });
                out.push(Lie { to, bytes: wire(Message::Vote(lie)), extra_us: 0 });
            }
            return;
        }
        if self.has(Trick::FalseCheckpoint) && claim.vote == Vote::Checkpoint {
            self.plays(Trick::FalseCheckpoint);
            let digest = Hash::of(&[to.0]);
            let lie = self.sign(&signed, |statement| statement.claim.digest = digest);
            out.push(Lie { to, bytes: wire(Message::Vote(lie)), extra_us: 0 });
            return;
        }
        if self.has(Trick::VoteTwice) {
            self.plays(Trick::VoteTwice);
            for _ in 0..2 {
                out.push(Lie { to, bytes: bytes.clone(), extra_us: self.chance.below(20_000) });
            }
            if claim.vote == Vote::Prepare {
                // A commit for what is not prepared, and for something else.
                let early = self.sign(&signed, |statement| statement.claim.vote = Vote::Commit);
                out.push(Lie { to, bytes: wire(Message::Vote(early)), extra_us: 0 });
                let other =
                    self.sign(&signed, |statement| statement.claim.digest = Hash::of(b"something else"));
                out.push(Lie { to, bytes: wire(Message::Vote(other)), extra_us: 0 });
            }
        }
        if self.has(Trick::Forge) {
            self.plays(Trick::Forge);
            for sender in 0..self.n {
                if sender != self.me.0 && sender != to.0 {
                    let lie = self.sign(&signed, |statement| statement.sender = ReplicaId(sender));
                    out.push(Lie { to, bytes: wire(Message::Vote(lie)), extra_us: 0 });
                    let early = self.sign(&signed, |statement| {
                        statement.sender = ReplicaId(sender);
                        statement.claim.vote = Vote::Commit;
                    });
                    out.push(Lie { to, bytes: wire(Message::Vote(early)), extra_us: 0 });
                }
            }
        }
        out.push(Lie { to, bytes, extra_us: 0 });
    }

    fn split_view_change(&mut self, body: &SignedBody) -> Option<Bytes> {
        let mut change: ViewChange = decode(&body.body).ok()?;
        if change.sender != self.me {
            return None;
        }
        match self.chance.below(6) {
            0 | 1 => {
                // As the primary it was, it signs a second assignment and shows it with the prepares of the first.
                let null = dwcp_log::entry::payload_digest(&[]);
                for prepared in &mut change.prepared {
                    if prepared.pre_prepare.statement.sender == self.me {
                        prepared.pre_prepare =
                            self.sign(&prepared.pre_prepare, |statement| statement.claim.digest = null);
                    }
                }
                for accepted in &mut change.pre_prepared {
                    accepted.digest = null;
                }
            }
            2 => change.prepared.clear(),
            3 => change.pre_prepared.clear(),
            4 => {
                change.prepared.clear();
                change.pre_prepared.clear();
            }
            _ => {
                // Claims to have accepted something nobody proposed, in the latest view before this one.
                for accepted in &mut change.pre_prepared {
                    accepted.digest = Hash::of(&accepted.digest.0);
                }
            }
        }
        let body =
            SignedBody::new(dwcp_base::SigningKind::ViewChange, encode(&change), self.cluster, &*self.crypto);
        Some(wire(Message::ViewChange(body)))
    }

    /// A VIEW-CHANGE of its own, changed and signed again.
    fn altered_view_change(&self, body: &SignedBody, change: impl FnOnce(&mut ViewChange)) -> Option<Bytes> {
        let mut altered: ViewChange = decode(&body.body).ok()?;
        if altered.sender != self.me {
            return None;
        }
        change(&mut altered);
        let kind = dwcp_base::SigningKind::ViewChange;
        let body = SignedBody::new(kind, encode(&altered), self.cluster, &*self.crypto);
        Some(wire(Message::ViewChange(body)))
    }

    /// The slots it equivocated about: the prepares are those of one payload, the pre-prepare that of the other.
    fn mix_proofs(&self, body: &SignedBody) -> Option<Bytes> {
        let notebook = self.notebook.lock().expect("one thread").clone();
        self.altered_view_change(body, |change| {
            let mut claimed = Vec::new();
            for prepared in &mut change.prepared {
                let Some(other) = notebook.get(&(prepared.view(), prepared.sequence())) else { continue };
                if prepared.pre_prepare.statement.sender == self.me {
                    prepared.pre_prepare =
                        self.sign(&prepared.pre_prepare, |statement| statement.claim.digest = other.digest);
                    claimed.push((prepared.sequence(), other.digest, prepared.view()));
                }
            }
            for (sequence, digest, view) in claimed {
                claim_accepted(&mut change.pre_prepared, PrePrepared { sequence, digest, view });
            }
        })
    }

    /// Keeps the oldest proofs that a VIEW-CHANGE shows.
    fn hoard(&mut self, bytes: &Bytes) {
        let Ok(PeerMessage::Pbft(Message::ViewChange(body))) = decode::<PeerMessage>(bytes) else { return };
        let Ok(change) = decode::<ViewChange>(&body.body) else { return };
        for prepared in change.prepared {
            let known = self.oldest.get(&prepared.sequence());
            if known.is_none_or(|known| known.view() > prepared.view()) {
                self.oldest.insert(prepared.sequence(), prepared);
            }
        }
        while self.oldest.len() > NOTEBOOK_MAX {
            self.oldest.pop_first();
        }
    }

    fn old_proofs(&self, body: &SignedBody) -> Option<Bytes> {
        let secrets: Vec<(View, Sequence)> = match self.has(Trick::SecretProof) {
            true => self.notebook.lock().expect("one thread").keys().copied().collect(),
            false => Vec::new(),
        };
        self.altered_view_change(body, |change| {
            let low = change.stable_sequence();
            let latest = change.view;
            // What the view just left must not know of.
            let secret = |view: View, sequence| view.next() == latest && secrets.contains(&(view, sequence));
            let mut proofs: BTreeMap<Sequence, PreparedCertificate> = BTreeMap::new();
            for prepared in std::mem::take(&mut change.prepared) {
                if !secret(prepared.view(), prepared.sequence()) {
                    proofs.insert(prepared.sequence(), prepared);
                }
            }
            let highest = proofs.keys().next_back().copied().unwrap_or(low);
            for (sequence, old) in self.oldest.range(low.next()..) {
                if *sequence <= highest && old.view() < change.view && !secret(old.view(), *sequence) {
                    proofs.insert(*sequence, old.clone());
                }
            }
            for proof in proofs.values() {
                let (sequence, digest, view) = (proof.sequence(), proof.digest(), proof.view());
                claim_accepted(&mut change.pre_prepared, PrePrepared { sequence, digest, view });
            }
            change.prepared = proofs.into_values().collect();
        })
    }

    fn null_new_view(&self, body: &SignedBody) -> Option<Bytes> {
        let mut view: NewView = decode(&body.body).ok()?;
        if view.sender != self.me {
            return None;
        }
        let null = dwcp_log::entry::payload_digest(&[]);
        for signed in &mut view.pre_prepares {
            *signed = self.sign(signed, |statement| statement.claim.digest = null);
        }
        let kind = dwcp_base::SigningKind::NewView;
        let body = SignedBody::new(kind, encode(&view), self.cluster, &*self.crypto);
        Some(wire(Message::NewView(body)))
    }

    fn bogus_new_view(&mut self, body: &SignedBody) -> Option<Bytes> {
        let mut view: NewView = decode(&body.body).ok()?;
        if view.sender != self.me {
            return None;
        }
        match self.chance.below(3) {
            0 => view.pre_prepares.clear(),
            1 => {
                let null = dwcp_log::entry::payload_digest(&[]);
                view.pre_prepares = view
                    .pre_prepares
                    .iter()
                    .map(|signed| self.sign(signed, |statement| statement.claim.digest = null))
                    .collect();
            }
            _ => {
                view.view_changes.pop();
            }
        }
        let body =
            SignedBody::new(dwcp_base::SigningKind::NewView, encode(&view), self.cluster, &*self.crypto);
        Some(wire(Message::NewView(body)))
    }

    /// What the puppet says of its own accord.
    pub fn invent(&mut self, out: &mut Vec<Lie>) {
        let peers: Vec<ReplicaId> = (0..self.n).map(ReplicaId).filter(|peer| *peer != self.me).collect();
        if self.has(Trick::Replay) {
            for _ in 0..6 {
                let memory: Vec<Bytes> = self.memory.iter().cloned().collect();
                if let (Some(bytes), Some(to)) = (self.chance.pick(&memory), self.chance.pick(&peers)) {
                    out.push(Lie { to: *to, bytes: bytes.clone(), extra_us: 0 });
                    self.plays(Trick::Replay);
                }
            }
        }
        if self.has(Trick::Flood) {
            for to in &peers {
                self.flood(*to, out);
            }
        }
        if self.has(Trick::AsksForChunks) && self.snapshot > Sequence::ZERO {
            for to in peers {
                self.ask_for_chunks(to, out);
            }
        }
    }

    /// More than any donor would do at once for all of its peers.
    fn ask_for_chunks(&mut self, to: ReplicaId, out: &mut Vec<Lie>) {
        let sequence = self.snapshot;
        for _ in 0..150 {
            self.plays(Trick::AsksForChunks);
            self.chunks_asked += 1;
            let index = u32::try_from(self.chance.below(400)).expect("small");
            let offset = self.chance.below(3) * u64::from(CHUNK_PART_BYTES);
            let message = PeerMessage::FetchChunk { sequence, index, offset };
            out.push(Lie { to, bytes: Bytes::from(encode(&message)), extra_us: 0 });
        }
    }

    fn flood(&mut self, to: ReplicaId, out: &mut Vec<Lie>) {
        self.plays(Trick::Flood);
        for _ in 0..8 {
            let ahead = 1 << self.chance.between(8, 60);
            let vote = *self
                .chance
                .pick(&[Vote::Prepare, Vote::Commit, Vote::Checkpoint, Vote::PrePrepare])
                .expect("not empty");
            let view =
                if self.chance.per_mille(500) { self.highest.0 } else { View(self.highest.0.0 + ahead) };
            let statement = dwcp_pbft::Statement {
                claim: dwcp_pbft::Claim {
                    vote,
                    configuration: dwcp_base::ConfigurationId(1),
                    view: if vote == Vote::Checkpoint { View::ZERO } else { view },
                    sequence: Sequence(self.highest.1.0 + ahead),
                    digest: Hash::of(&ahead.to_le_bytes()),
                },
                sender: self.me,
                incarnation: dwcp_base::Incarnation::ZERO,
            };
            let signed = Signed::new(statement, self.cluster, &*self.crypto);
            out.push(Lie { to, bytes: wire(Message::Vote(signed)), extra_us: 0 });
        }
        let mut garbage = vec![0; usize::try_from(self.chance.below(300)).expect("small")];
        garbage.iter_mut().for_each(|byte| *byte = u8::try_from(self.chance.below(256)).expect("a byte"));
        out.push(Lie { to, bytes: Bytes::from(garbage), extra_us: 0 });
        if let Some(mut cut) = self.memory.back().map(|bytes| bytes.to_vec()) {
            cut.truncate(cut.len() / 2);
            out.push(Lie { to, bytes: Bytes::from(cut), extra_us: 0 });
        }
    }

    /// A chunk of a snapshot as the puppet serves it.
    pub fn spoil_chunk(&mut self, index: u32, bytes: Option<Bytes>) -> Option<Bytes> {
        if self.has(Trick::EndlessDonor) {
            self.plays(Trick::EndlessDonor);
            self.parts_without_end += 1;
            return bytes.map(|_| Bytes::from_static(&NOTHING));
        }
        if self.has(Trick::ForgetSessions) && (1..=dwcp_state::SESSION_BUCKETS).contains(&index) {
            self.plays(Trick::ForgetSessions);
            // The chunk of a bucket without sessions.
            return bytes.map(|_| Bytes::from(encode(&Vec::<u8>::new())));
        }
        if !self.has(Trick::LieAsDonor) || !self.chance.per_mille(300) {
            return bytes;
        }
        let bytes = bytes?;
        self.plays(Trick::LieAsDonor);
        if let Some(mut control) = (index == 0).then(|| decode::<Control>(&bytes).ok()).flatten() {
            // One that can be read: only its digest gives it away.
            control.bytes_executed ^= 1;
            return Some(Bytes::from(encode(&control)));
        }
        let mut spoiled = bytes.to_vec();
        match spoiled.last_mut() {
            Some(last) => *last ^= 1,
            None => spoiled.push(7),
        }
        Some(Bytes::from(spoiled))
    }

    /// How late the puppet gives a part of a chunk: it is waited for ten times as long as messages are, which are asked for
    /// again after an eighth of the view's timer.
    pub fn chunk_late_us(&mut self) -> u64 {
        if !self.has(Trick::EndlessDonor) {
            return 0;
        }
        self.chance.between(1, 8) * (self.view_timeout_us / 8)
    }

    /// A reply as the puppet gives it.
    pub fn spoil_reply(&mut self, reply: ClientReply) -> ClientReply {
        let ClientReply::Executed(mut executed) = reply else { return reply };
        if self.has(Trick::SpoilReplies) {
            self.plays(Trick::SpoilReplies);
            for result in &mut executed.results {
                if let dwcp_state::Outcome::Done(bytes) = &result.outcome {
                    let mut spoiled = bytes.to_vec();
                    match spoiled.first_mut() {
                        Some(first) => *first ^= 1,
                        None => spoiled.push(1),
                    }
                    result.outcome = dwcp_state::Outcome::Done(Bytes::from(spoiled));
                }
            }
        }
        ClientReply::Executed(executed)
    }
}

/// Adds an entry to a Q set, which stays ascending.
fn claim_accepted(accepted: &mut Vec<PrePrepared>, entry: PrePrepared) {
    accepted.retain(|known| (known.sequence, known.digest) != (entry.sequence, entry.digest));
    accepted.push(entry);
    accepted.sort_unstable();
}

fn wire(message: Message) -> Bytes {
    Bytes::from(encode(&PeerMessage::Pbft(message)))
}

/// The payload with its proposal changed; None when it is the null request.
pub(crate) fn altered(payload: &Bytes, change: impl FnOnce(&mut Proposal)) -> Option<Bytes> {
    let mut proposal = Proposal::from_payload(payload).ok()??;
    change(&mut proposal);
    Some(proposal.to_payload())
}

/// Adds a frame in a client's name whose signature is not the client's.
fn forge_frame(payload: &Bytes, chance: &mut Chance) -> Option<Bytes> {
    altered(payload, |proposal| {
        for entry in &mut proposal.entries {
            let RootEntry::Batch(frames) = entry else { continue };
            let Some(Ok(checked)) = frames.first().map(|frame| ClientFrame::decode(frame.clone())) else {
                continue;
            };
            let dwcp_state::FrameContent::Commands(original) = checked.content() else { continue };
            let mut forged: SessionFrame = original.clone();
            forged.first += forged.commands.len() as u64;
            let mut bytes = [0; 64];
            bytes.iter_mut().for_each(|byte| *byte = u8::try_from(chance.below(256)).expect("a byte"));
            let frame =
                ClientFrame::Commands { body: Bytes::from(encode(&forged)), signature: Signature(bytes) };
            frames.push(frame.encode());
        }
    })
}

impl World {
    pub fn send_as_puppet(&mut self, ix: usize, to: ReplicaId, class: Class, bytes: Bytes) {
        let mut lies = Vec::new();
        let now_us = self.now_us;
        let bytes = self.spoil_store(ix, bytes);
        let node = &mut self.nodes[ix];
        let Some(puppet) = node.puppet.as_mut() else { return };
        if puppet.has(Trick::AnchorHeldBack)
            && let Some(core) = node.core.as_ref()
            && let Some(open) = OpenSegment::seen_by(core.control(), node.replica)
            && (open.ends || bytes.first() == Some(&12))
        {
            puppet.make_up_log(&open, &mut lies);
        }
        puppet.speak(now_us, to, class, bytes, &mut lies);
        self.tell(ix, lies);
    }

    fn tell(&mut self, ix: usize, lies: Vec<Lie>) {
        for lie in lies {
            self.send(ix, lie.to, lie.bytes, lie.extra_us);
        }
    }

    pub fn on_puppet_wake(&mut self, node: usize) {
        let mut lies = Vec::new();
        let me = self.nodes[node].replica;
        let open = self.nodes[node].core.as_ref().and_then(|core| OpenSegment::seen_by(core.control(), me));
        let Some(puppet) = self.nodes[node].puppet.as_mut() else { return };
        puppet.invent(&mut lies);
        if let Some(open) = open {
            puppet.invent_in_segment(open, &mut lies);
        }
        self.invent_frames(node, &mut lies);
        if self.nodes[node].is_up() {
            self.tell(node, lies);
        }
        let after = 300_000 + self.chances.puppet.below(1_000_000);
        self.schedule(after, Event::PuppetWake { node });
    }

    pub fn spoil_reply(&mut self, ix: usize, reply: ClientReply) -> Option<ClientReply> {
        Some(self.nodes[ix].puppet.as_mut()?.spoil_reply(reply))
    }

    /// A part as the puppet gives it, and how late.
    pub fn spoil_chunk(&mut self, ix: usize, index: u32, bytes: Option<Bytes>) -> (Option<Bytes>, u64) {
        let Some(puppet) = self.nodes[ix].puppet.as_mut() else { return (bytes, 0) };
        let late_us = puppet.chunk_late_us();
        (puppet.spoil_chunk(index, bytes), late_us)
    }
}
