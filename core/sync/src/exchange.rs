//! Anti-entropy: two replicas compare heads, and each sends what the other lacks. Its cost depends on the number of origins
//! and on what is missing, never on the number of keys.
//!
//! ```text
//!   A ──Ask(heads of A)──────────────────────────▶ B
//!   A ◀─Answer(heads of B, what A lacks)────────── B     one round trip
//!   A ──Rest(what B lacks)───────────────────────▶ B
//! ```
//!
//! A side that was told `more` asks again at once as long as it gets something new, so a long absence is made good in
//! bounded messages, and one that breaks off goes on where it stopped. Nobody ever waits for what a head promises:
//! a head is a claim, frames are signed.

use crate::chain::{Chain, Verdict};
use crate::frame::SignedHeader;
use crate::limits::{HINTS_MAX, MESSAGE_FRAMES_MAX};
use crate::message::{Head, Heads, Load, Message, ShortHash};
use crate::output::{Action, Need, Reason};
use crate::proof::Proof;
use crate::receive::{Road, Taken};
use crate::state::{Ack, Peer, PeerHead, Sync};
use alloc::boxed::Box;
use alloc::collections::{BTreeSet, VecDeque};
use alloc::vec::Vec;
use dwcp_base::{Micros, Now, Ticket};
use dwcp_crdt::{Origin, OriginId, VersionVector};

/// Questions whose answers may still come. A distant peer's answer is under way while others are asked: the frames in it
/// are wanted all the same.
const QUESTIONS_MAX: usize = 8;
/// How long an answer is waited for before the same peer is asked once more for somebody's sake: twice what the last one
/// took, within these, and twice as long for each question since that it did not answer.
const AWAITED: (Micros, Micros) = (Micros::from_millis(10), Micros::from_millis(1_000));

/// What was asked of a peer. See [`QUESTIONS_MAX`].
#[derive(Clone, Debug, Default)]
pub(crate) struct Questions {
    /// Rounds, and when each was asked; ascending.
    open: VecDeque<(u64, Micros)>,
    /// The newest round that was answered, and how long its answer took.
    answered: Option<(u64, Micros)>,
}

impl Questions {
    fn ask(&mut self, round: u64, now: Micros) {
        if self.open.len() == QUESTIONS_MAX {
            self.open.pop_front();
        }
        self.open.push_back((round, now));
    }

    /// Was this asked, and not answered before?
    fn answer(&mut self, round: u64, now: Micros) -> bool {
        let Some(place) = self.open.iter().position(|(open, _)| *open == round) else { return false };
        let (_, asked) = self.open.remove(place).expect("just found");
        if self.answered.is_none_or(|(newest, _)| newest < round) {
            self.answered = Some((round, now.since(asked)));
        }
        true
    }

    /// Is an answer likely on its way?
    fn is_awaited(&self, now: Micros) -> bool {
        let Some((round, asked)) = self.open.back() else { return false };
        let (newest, took) = self.answered.unwrap_or((0, AWAITED.1));
        if *round < newest {
            return false;
        }
        let doublings = self.open.iter().filter(|(round, _)| *round > newest).count() as u32;
        let patience = took.max(AWAITED.0).times(1 << doublings).min(AWAITED.1);
        now.since(*asked) < patience
    }
}

impl Sync {
    /// Asks the next peers of the round.
    pub(crate) fn begin_exchanges(&mut self, now: Now) {
        for _ in 0..self.limits.exchange_peers.min(self.peers.len()) {
            self.refill_rota();
            if let Some(peer) = self.rota.pop() {
                self.ask(now, peer);
            }
        }
    }

    /// Asks the next peer of the round from whom no answer is under way. When there is none, what is missing may be in one
    /// of those.
    pub(crate) fn ask_next_free(&mut self, now: Now) {
        self.refill_rota();
        let peers = &self.peers;
        let is_free = |id: &OriginId| peers.get(id).is_some_and(|peer| !peer.questions.is_awaited(now.mono));
        if let Some(place) = self.rota.iter().rposition(is_free) {
            let peer = self.rota.remove(place);
            self.ask(now, peer);
        }
    }

    fn refill_rota(&mut self) {
        if self.rota.is_empty() {
            self.rota = self.peers.keys().copied().collect();
            self.chance.shuffle(&mut self.rota);
        }
    }

    /// Begins an exchange with every peer from whom no answer is under way, for somebody who waits to hear what they have.
    /// False when there was none to ask.
    pub fn ask_everybody(&mut self, now: Now) -> bool {
        let free = self.peers.iter().filter(|(_, peer)| !peer.questions.is_awaited(now.mono));
        let free: Vec<OriginId> = free.map(|(id, _)| *id).collect();
        let asks = !free.is_empty();
        free.into_iter().for_each(|peer| self.ask(now, peer));
        asks
    }

    /// Does some frame wait for one before it?
    pub(crate) fn has_gaps(&self) -> bool {
        self.chains.values().any(|chain| !chain.waiting.is_empty())
    }

    /// A frame that came early shows that one was lost, or is late. What is late comes within an eighth of an interval; what
    /// was lost holds up all that its origin writes after it, and is asked for then: once for each that comes early, so a gap
    /// that a liar leaves open costs no more than what he sends.
    pub(crate) fn watch_gaps(&mut self, now: Now) {
        if self.gap_due.is_none() {
            self.gap_due = Some(now.mono.plus(Micros(self.timing.exchange_interval.0 / 8)));
        }
    }

    pub(crate) fn ask(&mut self, now: Now, to: OriginId) {
        self.round += 1;
        let round = self.round;
        let Some(peer) = self.peers.get_mut(&to) else { return };
        peer.questions.ask(round, now.mono);
        let heads = self.heads();
        self.send(to, Message::Ask { round, heads }.to_bytes(), Ticket::ZERO);
    }

    /// How far an origin's dots are durable here and part of the state: what this replica answers for.
    pub(crate) fn acked(&self, origin: Origin) -> u64 {
        let durable = self.chains.get(&origin).map_or(0, |chain| chain.durable_last(self.durable));
        durable.min(self.applied.prefix(origin))
    }

    /// All of that.
    pub(crate) fn acked_vector(&self) -> VersionVector {
        VersionVector::up_to(self.chains.keys().map(|origin| (*origin, self.acked(*origin))))
    }

    /// How far a chain is shown. An own frame is not mentioned before it is durable: a crash could lose it, and another
    /// would take its dots.
    fn shown(&self, origin: Origin, chain: &Chain) -> (u64, ShortHash) {
        let head = if origin == self.me { chain.durable(self.durable) } else { chain.head() };
        head.map_or((0, ShortHash::default()), |(signed, hash)| (signed.header.last, ShortHash::from(&hash)))
    }

    fn heads(&mut self) -> Heads {
        let head = |(origin, chain): (&Origin, &Chain)| {
            let (last, hash) = self.shown(*origin, chain);
            let base = chain.base_last().min(last);
            let (acked, frozen, stretches) = (self.acked(*origin), chain.is_frozen(), chain.stretches());
            Head { origin: *origin, base, last, hash, acked, frozen, stretches }
        };
        let is_something = |head: &Head| head.last > 0 || head.frozen || !head.stretches.is_empty();
        let heads: Vec<Head> = self.chains.iter().map(head).filter(is_something).collect();
        let written = self.chains.get(&self.me).map_or(0, Chain::last);
        self.floors.said(written, &heads);
        Heads { me: self.me, written, floor: self.floors.raised(), heads }
    }

    pub(crate) fn on_ask(&mut self, now: Now, from: OriginId, round: u64, heads: &Heads) {
        if !self.note_heads(now, from, heads) {
            return;
        }
        if self.budget(now, from) == 0 {
            self.out.refuse(Some(from), Reason::TooOften);
            return;
        }
        let load = self.load_for(now, from, heads);
        let heads = self.heads();
        let answer = Message::Answer { round, heads, load }.to_bytes();
        // Empty answers cost something too, so that questions are bounded.
        self.spend(from, answer.len());
        self.send(from, answer, Ticket::ZERO);
        self.note_exchange(now, from);
    }

    pub(crate) fn on_answer(&mut self, now: Now, from: OriginId, round: u64, heads: &Heads, load: Load) {
        let Some(peer) = self.peers.get_mut(&from) else { return };
        if !peer.questions.answer(round, now.mono) {
            self.out.refuse(Some(from), Reason::Unasked);
            return;
        }
        if !self.note_heads(now, from, heads) {
            return;
        }
        let more = load.more;
        let hinted: BTreeSet<Origin> = load.hints.iter().map(|hint| hint.header.origin).collect();
        let taken = self.take_load(now, from, load);
        let rest = self.load_for(now, from, heads);
        if !rest.is_empty() {
            self.send(from, Message::Rest { load: rest }.to_bytes(), Ticket::ZERO);
        }
        if more && !taken.fresh.is_empty() {
            self.ask(now, from);
        } else if !more {
            self.find_false_heads(from, heads, &hinted, &taken);
        }
        self.note_exchange(now, from);
    }

    pub(crate) fn on_rest(&mut self, now: Now, from: OriginId, load: Load) {
        let more = load.more;
        let taken = self.take_load(now, from, load);
        if more && !taken.fresh.is_empty() {
            self.ask(now, from);
        }
    }

    fn take_load(&mut self, now: Now, from: OriginId, load: Load) -> Taken {
        for hint in &load.hints {
            self.take_hint(from, hint);
        }
        self.take_frames(now, Some(from), load.frames, Road::Gossip)
    }

    /// A header that its sender thinks cannot stand with what is here.
    fn take_hint(&mut self, from: OriginId, hint: &SignedHeader) {
        let origin = hint.header.origin;
        let (Some(chain), Some(key)) = (self.chains.get(&origin), self.keys.get(&origin)) else { return };
        let verdict = chain.judge(&hint.header, hint.header.hash());
        if !matches!(verdict, Verdict::Contradicts(_) | Verdict::OtherBranch) {
            return;
        }
        if !hint.verify(self.cluster, key, &*self.crypto) {
            self.out.refuse(Some(from), Reason::Forged);
            return;
        }
        match verdict {
            Verdict::Contradicts(other) => {
                let proof = Proof::of(other, *hint).expect("the two contradict each other");
                // Who brought it has one of the two.
                self.freeze(&proof, None);
            }
            Verdict::OtherBranch => self.suspect(origin),
            Verdict::Known | Verdict::Next | Verdict::Ahead | Verdict::Frozen | Verdict::BeyondCut => {}
        }
    }

    /// Who promised what he did not deliver, though nothing kept him from it.
    fn find_false_heads(&mut self, from: OriginId, heads: &Heads, hinted: &BTreeSet<Origin>, taken: &Taken) {
        let is_false = |head: &&Head| {
            let Some(chain) = self.chains.get(&head.origin) else { return false };
            let is_open = !chain.is_frozen() && chain.cut.is_none() && !head.frozen;
            let could = head.base <= chain.last() && head.last > chain.last();
            is_open && could && !hinted.contains(&head.origin) && !taken.offered.contains(&head.origin)
        };
        let count = heads.heads.iter().filter(is_false).count();
        for _ in 0..count {
            self.out.refuse(Some(from), Reason::FalseHead);
        }
    }

    /// Takes note of where a peer stands; false when it is not who it says.
    fn note_heads(&mut self, now: Now, from: OriginId, heads: &Heads) -> bool {
        if heads.me.id != from || self.active().get(&from) != Some(&heads.me) {
            self.out.refuse(Some(from), Reason::Stranger);
            return false;
        }
        let keys = &self.keys;
        let Some(peer) = self.peers.get_mut(&from) else { return false };
        let known = heads.heads.iter().filter(|head| keys.contains_key(&head.origin));
        let of = |h: &Head| (h.origin, PeerHead { base: h.base, last: h.last, hash: h.hash });
        peer.heads = known.clone().map(of).collect();
        let mut vector = VersionVector::up_to(known.map(|head| (head.origin, head.acked)));
        vector.insert(heads.me, 1, heads.written);
        // Whoever was past a decided end goes back to it, and acknowledges less from then on.
        let has_end = |origin: Origin| self.chains.get(&origin).is_some_and(|chain| chain.cut.is_some());
        let of_others = |vector: &VersionVector| {
            let others = vector.iter().filter(|(origin, _)| *origin != heads.me && !has_end(*origin));
            VersionVector::up_to(others.map(|(origin, _)| (origin, vector.prefix(origin))))
        };
        let grows = |ack: &Ack| ack.origin != heads.me || of_others(&vector).covers(&of_others(&ack.vector));
        // An older one that was overtaken on the way says nothing new. How far it wrote itself may go back: a crash takes what
        // was not durable, and what it writes from there on has seen all the same.
        if peer.ack.as_ref().is_none_or(grows) {
            peer.ack = Some(Ack { origin: heads.me, vector });
            peer.figures.floor = heads.floor;
        }
        self.note_lag(now, from);
        self.note_claim(now, from);
        let lost = |head: &Head| self.chains.get(&head.origin).is_some_and(|chain| head.base > chain.last());
        if heads.heads.iter().any(lost) {
            self.find_gone(now);
        }
        true
    }

    /// Is there something that more peers than may lie no longer keep, while it is missing here? Or that fewer no longer
    /// keep, and that nobody has given for long: whoever has the only copy in a snapshot may be one.
    pub(crate) fn find_gone(&mut self, now: Now) {
        let mut donors = BTreeSet::new();
        let (faults, patience) = (self.faults, self.timing.ack_patience);
        for (origin, chain) in &mut self.chains {
            let last = chain.last();
            let is_gone = |peer: &Peer| peer.heads.get(origin).is_some_and(|head| head.base > last);
            let dropped = self.peers.iter().filter(|(_, peer)| is_gone(peer));
            let dropped: Vec<OriginId> = dropped.map(|(id, _)| *id).collect();
            if dropped.is_empty() || chain.is_frozen() || chain.has_ended() {
                chain.stuck = None;
                continue;
            }
            let since = chain.stuck.filter(|(at, _)| *at == last).map_or(now.mono, |(_, since)| since);
            chain.stuck = Some((last, since));
            if dropped.len() > faults || now.mono.since(since) >= patience {
                donors.extend(dropped);
            }
        }
        if donors.is_empty() {
            self.needs.remove(&Need::Gone);
        } else {
            self.need(Need::Gone, donors.into_iter().collect());
        }
    }

    pub(crate) fn need(&mut self, need: Need, donors: Vec<OriginId>) {
        if self.needs.insert(need, donors.clone()).is_none() {
            self.out.push(Action::NeedSnapshot { need, donors });
        }
    }

    /// Bytes that may still be answered to this peer in this interval.
    fn budget(&mut self, now: Now, to: OriginId) -> usize {
        let Some(peer) = self.peers.get_mut(&to) else { return 0 };
        if now.mono >= peer.budget_until {
            peer.budget_until = now.mono.plus(self.timing.exchange_interval);
            peer.budget_bytes = self.limits.budget_bytes_max;
        }
        peer.budget_bytes
    }

    fn spend(&mut self, to: OriginId, bytes: usize) {
        if let Some(peer) = self.peers.get_mut(&to) {
            peer.budget_bytes = peer.budget_bytes.saturating_sub(bytes);
        }
    }

    /// What somebody with these heads lacks: of each origin the frames after his head, one origin's after another's, so that
    /// none waits for another's end.
    fn load_for(&mut self, now: Now, to: OriginId, theirs: &Heads) -> Load {
        let bytes_max = self.limits.answer_bytes_max.min(self.budget(now, to));
        let mut load = Load::default();
        let mut proofs = Vec::new();
        let mut lines: Vec<(&Chain, core::ops::Range<usize>, Option<&Head>)> = Vec::new();
        for (origin, chain) in &self.chains {
            let head = theirs.of(*origin);
            // Whoever takes no more of it may have halted it, and not know that it lied: the proof was sent to everybody once.
            if chain.is_frozen() {
                proofs.extend(chain.proof);
            }
            // Whoever is past a decided end gives what is before it: those who are short of it may have it from nobody else.
            let mut until = self.shown(*origin, chain).0;
            if chain.is_past_cut() {
                let Some(end) = chain.cut.filter(|cut| chain.holds(cut)) else { continue };
                until = until.min(end.last);
            }
            if let Some(hint) = head.and_then(|head| hint_for(chain, head)) {
                // Against whom there is a proof, another says nothing.
                if load.hints.len() < HINTS_MAX && !(chain.is_frozen() && chain.proof.is_some()) {
                    load.hints.push(hint);
                }
                continue;
            }
            let from = head.map_or(0, |head| head.last);
            if from < until && from >= chain.base_last() {
                lines.push((chain, chain.place(from + 1)..chain.place(until) + 1, head));
            }
        }
        // Another origin goes first each time.
        if !lines.is_empty() {
            let turn = usize::try_from(self.round % lines.len() as u64).unwrap_or(0);
            lines.rotate_left(turn);
        }
        let mut bytes = 0;
        let mut goes_on = true;
        while core::mem::take(&mut goes_on) {
            for (chain, line, head) in &mut lines {
                let has = |first: u64, last: u64| {
                    head.is_some_and(|h| h.stretches.iter().any(|s| s.first <= first && last <= s.last))
                };
                let Some(place) =
                    line.find(|place| !has(chain.kept[*place].first(), chain.kept[*place].last()))
                else {
                    continue;
                };
                let frame = &chain.kept[place].bytes;
                let fits = load.frames.is_empty() || bytes + frame.len() <= bytes_max;
                if !fits || load.frames.len() == MESSAGE_FRAMES_MAX {
                    load.more = true;
                    *line = place..place;
                    continue;
                }
                bytes += frame.len();
                load.frames.push(frame.clone());
                goes_on = true;
            }
        }
        self.spend(to, bytes);
        for proof in proofs {
            self.send(to, Message::Contradiction { proof: Box::new(proof) }.to_bytes(), Ticket::ZERO);
        }
        load
    }

    fn note_exchange(&mut self, now: Now, with: OriginId) {
        let Some(peer) = self.peers.get_mut(&with) else { return };
        peer.figures.exchanges += 1;
        peer.figures.last_exchange = Some(now.mono);
        let figures = peer.figures;
        self.out.push(Action::Exchanged { peer: with, figures });
    }
}

/// A header of this chain that a chain with that head cannot hold, if this one goes there.
fn hint_for(chain: &Chain, head: &Head) -> Option<SignedHeader> {
    if head.last == 0 || head.last > chain.last() || head.last < chain.base_last() {
        return None;
    }
    if let Some((signed, hash)) = chain.ending_at(head.last) {
        return (ShortHash::from(&hash) != head.hash).then_some(*signed);
    }
    // No frame of ours ends there: the one that goes across it.
    chain.kept.get(chain.place(head.last)).map(|kept| kept.signed)
}
