//! Notarising the open segment: what this replica computed at each Tick, its signed word on it, the words of the others,
//! and what an executed Anchor means here: labels rise, snapshots have a state to be of, a divergence is found.

use crate::config::Settings;
use crate::io::{Class, ClientId, ClientReply, Effect, Event, NotNow};
use crate::replica::{Outbox, Replica};
use crate::transfer::Purpose;
use crate::wire::PeerMessage;
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;
use dwcp_base::{
    Crypto, Hash, Index, Micros, Mutant, Now, Position, PublicKey, ReplicaId, Sequence, Signature, Ticket,
    View,
};
use dwcp_log::anchor::{Anchor, AnchorVote, Held, OwnView, compare};
use dwcp_log::seal::{Signed, Speaker, Statement};
use dwcp_log::{Place, RootEntry, VirtualLog};
use dwcp_state::{FrameOutcome, FrozenState, StateMachine, state_digest};

/// Ticks that wait for their Anchor; beyond it the oldest are forgotten.
const TICKS_MAX: usize = 64;
/// Of these, how many keep a copy of the state.
const FROZEN_MAX: usize = 8;
/// Words of one replica that wait for company.
const VOTES_MAX: usize = 64;
/// Signatures in entries that wait to be verified together.
const UNVERIFIED_MAX: usize = 4_096;
/// A replica that executes nothing for so many anchor intervals while others are anchored ahead of it fetches a snapshot.
const STUCK_INTERVALS: u64 = 50;
/// Acknowledgements that wait for an Anchor; beyond it clients have to ask again.
const WAITING_MAX: usize = 65_536;
const WAITING_BYTES_MAX: usize = 64 << 20;

/// A state of the past, and where in the log it was.
pub(crate) struct FrozenAt<M: StateMachine> {
    pub place: Place,
    pub log: VirtualLog,
    /// Of the segment's entries up to here, as `Anchors::bytes_applied` counts.
    pub bytes: u64,
    pub state: FrozenState<M>,
}

/// What this replica held and computed at one Tick.
struct Tick<M: StateMachine> {
    place: Place,
    log: VirtualLog,
    bytes: u64,
    state: Hash,
    frozen: Option<FrozenState<M>>,
    /// When we gave our word on it.
    voted: Option<Micros>,
}

/// An acknowledgement that its client wants anchored.
struct Waiting {
    position: Position,
    client: ClientId,
    outcome: FrameOutcome,
}

pub(crate) struct Anchors<M: StateMachine> {
    /// At the last Anchor that we could compare, or at the base.
    pub frozen: FrozenAt<M>,
    /// At most `TICKS_MAX`, of which `FROZEN_MAX` have a copy of the state.
    ticks: BTreeMap<Index, Tick<M>>,
    /// Of each member at most `VOTES_MAX`; the furthest goes.
    votes: BTreeMap<Index, BTreeMap<ReplicaId, Signed<AnchorVote>>>,
    pub signatures: Signatures,
    /// For the leader: when it proposed its last Tick, and where that stands.
    pub ticked: Option<Micros>,
    pub last_tick: Index,
    /// Bytes of entries executed here in this epoch.
    pub bytes_applied: u64,
    proposed: Option<(Index, View, Sequence)>,
    /// At most `WAITING_MAX`, and `WAITING_BYTES_MAX` of results.
    waiting: VecDeque<Waiting>,
    waiting_bytes: usize,
    next_resend: Micros,
    /// The record behind which our newest word may be said.
    word_ticket: Ticket,
    /// Since when we have given our word and no Anchor came.
    unanchored_since: Option<Micros>,
    /// Where our execution stood at the last Anchor, and since when.
    stuck_at: Option<(Index, Micros)>,
    /// The first root sequence whose snapshots are of an Anchor that our execution had not reached.
    ahead_of_us: Option<Sequence>,
}

/// Client signatures that came in entries and that we have not verified: at a Tick all are, and before it once there are
/// `UNVERIFIED_MAX`.
#[derive(Debug, Default)]
pub(crate) struct Signatures {
    waiting: Vec<(PublicKey, Hash, Signature)>,
    /// One of them was bad: we give no word on this segment any more.
    pub forged: bool,
}

impl Signatures {
    /// An entry holds what this key should have signed.
    pub(crate) fn verify_later(&mut self, item: (PublicKey, Hash, Signature), crypto: &dyn Crypto) {
        self.waiting.push(item);
        if self.waiting.len() >= UNVERIFIED_MAX {
            self.verify_all(crypto);
        }
    }

    /// Together they cost less than half of what they cost one by one.
    fn verify_all(&mut self, crypto: &dyn Crypto) {
        let items = core::mem::take(&mut self.waiting);
        if !items.is_empty() && !crypto.verify_all(&items) {
            self.forged = true;
        }
    }
}

impl<M: StateMachine> Anchors<M> {
    pub(crate) fn new(now: Now, place: Place, log: VirtualLog, state: FrozenState<M>) -> Self {
        Self {
            frozen: FrozenAt { place, log, bytes: 0, state },
            ticks: BTreeMap::new(),
            votes: BTreeMap::new(),
            signatures: Signatures::default(),
            ticked: None,
            last_tick: Index::ZERO,
            bytes_applied: 0,
            proposed: None,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            next_resend: now.mono,
            word_ticket: Ticket::ZERO,
            unanchored_since: None,
            stuck_at: None,
            ahead_of_us: None,
        }
    }

    /// When the leader, whose log ends at `last`, owes a Tick: soon after an entry, and for the sake of log time now and
    /// then. The two have their own measure, or a change would wait for its Anchor as long as time may stand still.
    pub(crate) fn tick_due(&self, last: Index, timed: bool, settings: &Settings) -> Micros {
        let interval = match (last > self.last_tick, timed) {
            (true, _) => settings.segment.anchor_interval,
            (false, true) => settings.tick_interval,
            (false, false) => return Micros::NEVER,
        };
        self.ticked.map_or(Micros::ZERO, |ticked| ticked.plus(interval))
    }

    /// Acknowledgements of entries behind this position wait no longer.
    pub(crate) fn forget_waiting_after(&mut self, position: Position) {
        self.waiting.retain(|one| one.position <= position);
        self.waiting_bytes = self.waiting.iter().map(|one| one.outcome.cost()).sum();
    }

    /// Snapshots from this root sequence on are further in this segment than our execution; none before any other is.
    pub(crate) fn ahead_of(&self, applied: Index, anchored: Index) -> Option<Sequence> {
        self.ahead_of_us.filter(|_| applied < anchored)
    }

    /// The state now in use is of an earlier Anchor than the root's last: snapshots behind this one may be further.
    pub(crate) fn begins_behind(&mut self, snapshot: Sequence) {
        self.ahead_of_us = Some(snapshot.next());
    }

    /// For the primary of this view: whether it has proposed an Anchor that is not executed here yet.
    pub(crate) fn is_under_way(&self, view: View, executed: Sequence) -> bool {
        self.proposed.is_some_and(|(_, of, at)| of == view && at > executed)
    }

    /// Since when our oldest word waits for its Anchor.
    pub(crate) fn waiting_since(&self) -> Option<Micros> {
        self.ticks.values().find_map(|tick| tick.voted)
    }

    /// Since when we have given our word and no Anchor came, ours or an earlier one.
    pub(crate) fn unanchored_since(&self) -> Option<Micros> {
        self.unanchored_since
    }

    pub(crate) fn next_resend(&self) -> Micros {
        if self.waiting_since().is_some() { self.next_resend } else { Micros::NEVER }
    }
}

impl<M: StateMachine> Replica<M> {
    /// Ourselves, as a speaker about the open segment; `None` when our word does not count.
    pub(crate) fn own_speaker(&self) -> Option<Speaker> {
        let voters = self.control.steering.voters.as_ref()?;
        let speaker =
            Speaker { id: self.setup.me, incarnation: self.setup.incarnation, configuration: voters.id };
        self.court().voter_key(speaker).map(|_| speaker)
    }

    pub(crate) fn word_holds<T: Statement>(&self, signed: &Signed<T>) -> bool {
        self.court().voter_key(signed.said.speaker()).is_some_and(|key| {
            let (key, hash, signature) = signed.signature_item(self.cluster, key);
            self.setup.mutants.on(Mutant::SignatureUnchecked) || self.crypto.verify(&key, &hash, &signature)
        })
    }

    /// A Tick was just executed: what we hold and computed there is written down.
    pub(crate) fn note_tick(&mut self) {
        let state = state_digest(&self.state.chunk_digests());
        let wanted = self.pbft.quorum().f() > 0 || self.snapshot_is_near();
        let frozen = wanted.then(|| self.state.freeze());
        let log = self.live;
        let Some(segment) = &mut self.segment else { return };
        let (place, anchors) = (segment.applied, &mut segment.anchors);
        let bytes = anchors.bytes_applied;
        anchors.signatures.verify_all(&*self.crypto);
        let known = self.control.fold.segment().map(|segment| segment.anchor);
        if let Some(anchor) = known.filter(|anchor| anchor.index >= place.index) {
            // The Anchor was executed before we came here: no word of ours is waited for any more.
            if anchor.index == place.index && (anchor.chain, anchor.state) != (place.chain, state) {
                self.found_diverged = Some(place.index);
            } else if anchor.index == place.index
                && let Some(state) = frozen
            {
                anchors.frozen = FrozenAt { place, log, bytes, state };
            }
            return;
        }
        anchors.ticks.insert(place.index, Tick { place, log, bytes, state, frozen, voted: None });
        let old = anchors.ticks.len().saturating_sub(FROZEN_MAX);
        anchors.ticks.values_mut().take(old).for_each(|tick| tick.frozen = None);
        while anchors.ticks.len() > TICKS_MAX {
            anchors.ticks.pop_first();
        }
    }

    /// Whether the next checkpoint will want a copy of the state at an Anchor.
    fn snapshot_is_near(&self) -> bool {
        self.snapshot_wanted || self.segment_uncovered(self.setup.settings.snapshot_log_bytes / 2, 8)
    }

    /// Gives our word on every Tick that is durable with us.
    pub(crate) fn vote_on_ticks(&mut self, now: Now, out: &mut Outbox) {
        if let Some(index) = self.found_diverged.take() {
            return self.on_anchor_diverged(now, index, out);
        }
        let Some(speaker) = self.own_speaker().filter(|_| self.pbft.is_voter()) else { return };
        let Some(segment) = &mut self.segment else { return };
        let Some(raft) = &segment.raft else { return };
        if segment.anchors.signatures.forged || self.diverged {
            return;
        }
        let (epoch, durable) = (segment.epoch, raft.durable());
        let Some(newest) = segment
            .anchors
            .ticks
            .range(..=durable)
            .rfind(|(_, tick)| tick.voted.is_none())
            .map(|(index, _)| *index)
        else {
            return;
        };
        // The promise is written down first: what we vouch for stays in our log.
        let pinned = segment.raft.as_mut().map_or(Ticket::ZERO, |raft| raft.pin(newest));
        self.drain_segment(now, out);
        let Some(segment) = self.segment.as_mut().filter(|segment| segment.epoch == epoch) else { return };
        // "I hold this" also means whatever the segments before it left.
        let after = segment.tickets.to_node(pinned).max(self.body_ticket);
        segment.anchors.word_ticket = after;
        segment.anchors.unanchored_since.get_or_insert(now.mono);
        let mut words = Vec::new();
        for (index, tick) in
            segment.anchors.ticks.range_mut(..=newest).filter(|(_, tick)| tick.voted.is_none())
        {
            tick.voted = Some(now.mono);
            let held = Held {
                epoch,
                index: *index,
                term: tick.place.term,
                chain: tick.place.chain,
                state: tick.state,
            };
            words.push(AnchorVote { held, speaker, clock_ms: now.wall_ms });
        }
        for word in words {
            let signed = Signed::new(word, self.cluster, &*self.crypto);
            if let Some(segment) = &mut self.segment {
                segment.anchors.votes.entry(word.held.index).or_default().insert(speaker.id, signed);
            }
            self.send_all(&PeerMessage::AnchorVote(signed), Class::Vote, after, out);
        }
    }

    /// Our newest word that has no Anchor yet is said again.
    pub(crate) fn repeat_anchor_vote(&mut self, now: Now, out: &mut Outbox) {
        let interval = self.setup.settings.timing.resend_interval.times(4);
        let me = self.setup.me;
        let Some(segment) = &mut self.segment else { return };
        if segment.anchors.waiting_since().is_none() || now.mono < segment.anchors.next_resend {
            return;
        }
        segment.anchors.next_resend = now.mono.plus(interval);
        let newest = segment.anchors.votes.values().rev().find_map(|words| words.get(&me)).copied();
        let after = segment.anchors.word_ticket;
        if let Some(word) = newest {
            self.send_all(&PeerMessage::AnchorVote(word), Class::Vote, after, out);
        }
    }

    pub(crate) fn on_anchor_vote(&mut self, from: ReplicaId, signed: Signed<AnchorVote>, out: &mut Outbox) {
        let Some(known) = self.control.fold.segment() else { return };
        let held = signed.said.held;
        if held.epoch != known.epoch || held.index <= known.anchor.index {
            return;
        }
        if signed.said.speaker.id != from {
            return self.refuse_peer(from, "a word about a Tick in another's name", out);
        }
        let Some(segment) = &self.segment else { return };
        if segment.anchors.votes.get(&held.index).is_some_and(|words| words.contains_key(&from)) {
            return;
        }
        if !self.word_holds(&signed) {
            return self.refuse_peer(from, "a word about a Tick with a bad signature", out);
        }
        let Some(segment) = &mut self.segment else { return };
        let votes = &mut segment.anchors.votes;
        votes.entry(held.index).or_default().insert(from, signed);
        let of_sender: Vec<Index> =
            votes.iter().filter(|(_, words)| words.contains_key(&from)).map(|(index, _)| *index).collect();
        if of_sender.len() > VOTES_MAX {
            // Its furthest claim goes: honest replicas are close to one another.
            let last = of_sender[of_sender.len() - 1];
            if let Some(words) = votes.get_mut(&last) {
                words.remove(&from);
                if words.is_empty() {
                    votes.remove(&last);
                }
            }
        }
    }

    /// For the primary: the latest Tick on which `q` replicas agree, if it was not proposed yet.
    pub(crate) fn next_anchor(&mut self) -> Option<RootEntry> {
        let (q, view) = (self.pbft.quorum().q(), self.pbft.view());
        let executed = self.control.executed;
        let segment = self.segment.as_mut()?;
        let proposed = segment.anchors.proposed;
        for (index, words) in segment.anchors.votes.iter().rev() {
            if proposed.is_some_and(|(to, of, at)| of == view && *index <= to && at > executed) {
                return None;
            }
            for word in words.values() {
                let held = word.said.held;
                let equal: Vec<Signed<AnchorVote>> =
                    words.values().filter(|word| word.said.held == held).copied().collect();
                if equal.len() >= q {
                    let next = self.pbft.next_sequence();
                    segment.anchors.proposed = Some((*index, view, next));
                    return Some(RootEntry::Anchor(Box::new(Anchor { held, votes: equal })));
                }
            }
        }
        None
    }

    /// An Anchor was ordered. It is judged here, by what was ordered before it.
    pub(crate) fn apply_anchor(&mut self, now: Now, anchor: &Anchor, sequence: Sequence, out: &mut Outbox) {
        let unchecked = self.setup.mutants.on(Mutant::AnchorComparesNothing);
        if !self.court().anchor_holds(anchor) {
            return self.count("anchors that prove nothing");
        }
        let Ok(segment) = self.control.fold.anchor(anchor.held.epoch, anchor.point()) else {
            return self.count("anchors that count for nothing");
        };
        let position = segment.position(anchor.held.index).expect("the fold has seen to it");
        let epoch = segment.epoch;
        let index = anchor.held.index;
        out.event(Event::Anchored { epoch, sequence, index, position });
        let Held { term, chain, .. } = anchor.held;
        self.drop_bodies_beside(epoch, Place { index, term, chain });
        let Some(segment) = &mut self.segment else { return };
        if let Some(raft) = &mut segment.raft {
            // Its voters had executed it, as committed.
            raft.learn_commit(Place { index, term, chain });
        }
        let anchors = &mut segment.anchors;
        if segment.applied.index >= index {
            anchors.ahead_of_us = None;
        } else if anchors.ahead_of_us.is_none() {
            anchors.ahead_of_us = Some(sequence);
        }
        let own = anchors.ticks.get(&index).map(|tick| (tick.place, tick.state));
        let mut view = if unchecked { OwnView::Behind } else { compare(anchor, own) };
        // What was executed past it without being remembered must at least be the same log.
        let place = segment.raft.as_ref().and_then(|raft| raft.place(index));
        if own.is_none() && segment.applied.index >= index && !unchecked {
            let same = place.is_none_or(|place| place.chain == anchor.held.chain);
            view = if same { OwnView::Behind } else { OwnView::Diverged };
        }
        // Who stands still behind the Anchors holds something that the leader's log does not follow from.
        let patience = self.setup.settings.segment.anchor_interval.times(STUCK_INTERVALS);
        if segment.applied.index >= index
            || anchors.stuck_at.is_none_or(|(at, _)| at != segment.applied.index)
        {
            anchors.stuck_at = Some((segment.applied.index, now.mono));
        }
        let stuck = anchors.stuck_at.is_some_and(|(_, since)| now.mono.since(since) >= patience)
            && segment.raft.is_some()
            && !self.recovering;
        if view == OwnView::Agrees
            && let Some(tick) = anchors.ticks.get_mut(&index)
            && let Some(state) = tick.frozen.take()
        {
            anchors.frozen = FrozenAt { place: tick.place, log: tick.log, bytes: tick.bytes, state };
        }
        anchors.ticks = anchors.ticks.split_off(&index.next());
        anchors.unanchored_since = anchors.waiting_since().map(|_| now.mono);
        anchors.votes = anchors.votes.split_off(&index.next());
        segment.failover.anchored();
        if view == OwnView::Diverged {
            return self.on_anchor_diverged(now, index, out);
        }
        if stuck {
            self.on_behind(now, epoch, out);
        }
        self.answer_anchored(out);
    }

    /// What we hold or computed is not what `q` replicas did: nobody is answered from it until it is replaced.
    fn on_anchor_diverged(&mut self, now: Now, index: Index, out: &mut Outbox) {
        let Some(segment) = self.control.fold.segment() else { return };
        let (epoch, opened_at) = (segment.epoch, segment.opened_at);
        self.count("diverged");
        out.event(Event::AnchorDiverged { epoch, index });
        // What the root has ordered is right here, so its votes count on: with a liar there may be none to spare.
        self.diverged = true;
        self.start_transfer(now, opened_at, Purpose::Wrong, out);
    }

    /// Whether a certificate of the root covers this position.
    pub(crate) fn is_certified(&self, position: Position) -> bool {
        let open = self.control.fold.segment();
        self.setup.mutants.on(Mutant::LabelAtCommit)
            || open.is_none_or(|segment| {
                segment.position(segment.anchor.index).is_some_and(|anchored| position <= anchored)
            })
    }

    /// An acknowledgement that its client wants anchored waits for it.
    pub(crate) fn await_anchor(
        &mut self,
        position: Position,
        client: ClientId,
        outcome: FrameOutcome,
        out: &mut Outbox,
    ) {
        let Some(segment) = &mut self.segment else { return };
        let anchors = &mut segment.anchors;
        let cost = outcome.cost();
        if anchors.waiting.len() >= WAITING_MAX || anchors.waiting_bytes + cost > WAITING_BYTES_MAX {
            // It has run; who asks again under the same number is told what came of it.
            let (session, first) = (outcome.session, outcome.first);
            let reply = ClientReply::Busy { session, first, why: NotNow::PutOff };
            out.push(Effect::Reply { client, after: Ticket::ZERO, reply });
            return self.count("anchored acknowledgements put off: too many wait");
        }
        anchors.waiting_bytes += cost;
        anchors.waiting.push_back(Waiting { position, client, outcome });
    }

    /// Answers what waited for an Anchor that has come.
    fn answer_anchored(&mut self, out: &mut Outbox) {
        let Some(known) = self.control.fold.segment() else { return };
        let Some(covered) = known.position(known.anchor.index) else { return };
        let Some(segment) = &mut self.segment else { return };
        let (ready, waiting): (VecDeque<_>, VecDeque<_>) = core::mem::take(&mut segment.anchors.waiting)
            .into_iter()
            .partition(|one| one.position <= covered);
        segment.anchors.waiting_bytes = waiting.iter().map(|one| one.outcome.cost()).sum();
        segment.anchors.waiting = waiting;
        let answers = ready.into_iter().map(|one| (one.outcome, Vec::from([one.client]))).collect();
        self.send_answers(answers, out);
    }

    /// Answers all that waited for an Anchor: the segment's Close covers it.
    pub(crate) fn answer_all_waiting(&mut self, out: &mut Outbox) {
        let Some(segment) = &mut self.segment else { return };
        let waiting = core::mem::take(&mut segment.anchors.waiting);
        segment.anchors.waiting_bytes = 0;
        if self.diverged {
            return; // What was computed here is known to be wrong: clients ask again, others answer.
        }
        let answers = waiting.into_iter().map(|one| (one.outcome, Vec::from([one.client]))).collect();
        self.send_answers(answers, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dwcp_base::crypto::Ed25519;

    #[test]
    fn signatures_are_verified_together_before_they_are_too_many() {
        let signer = Ed25519::new([1; 32], &[]);
        let item =
            |message: &Hash| (signer.public_key(), *message, signer.sign(&Hash::of(b"what was signed")));
        let mut signatures = Signatures::default();
        for _ in 1..UNVERIFIED_MAX {
            signatures.verify_later(item(&Hash::of(b"what was signed")), &signer);
        }
        assert_eq!((signatures.waiting.len(), signatures.forged), (UNVERIFIED_MAX - 1, false));
        signatures.verify_later(item(&Hash::of(b"something else")), &signer);
        assert_eq!((signatures.waiting.len(), signatures.forged), (0, true), "no Tick was waited for");
    }
}
