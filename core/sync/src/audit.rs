//! The audit: do two replicas that applied the same hold the same? Anti-entropy compares what was *applied*; a bit that
//! flipped in memory or on disk afterwards is seen by nobody else.
//!
//! Ranges of keys are compared by fingerprint, and the ones that differ are split until single keys are named (Meyer,
//! "Range-Based Set Reconciliation", SRDS 2023). A fingerprint is a hash over the hashes of the range's keys in order, worked
//! out from what is in memory now. `docs/protocol/sync.md` says why not a rateless IBLT.
//!
//! This file computes on a store that is its argument. A replica finds part of its own damage alone ([`damaged`]); which copy of
//! any other key is right, and how it comes to the others, is `repair`.

use crate::chain::Chain;
use crate::limits::{
    AUDIT_KEYS_NAMED_MAX, AUDIT_LEAF_KEYS, AUDIT_LEAF_KEYS_MAX, AUDIT_RANGES_MAX, AUDIT_SPLIT,
};
use crate::message::{Message, ShortHash};
use crate::output::{Action, Reason};
use crate::repair::QUESTIONS_MAX;
use crate::state::Sync;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use borsh::{BorshDeserialize, BorshSerialize};
use bytes::Bytes;
use dwcp_base::{Hash, Hasher, Now, Ticket, encode};
use dwcp_crdt::limits::KEY_BYTES_MAX;
use dwcp_crdt::{OriginId, Store, VersionVector};

/// Steps that one peer may ask for within an audit interval. Each may read the whole store; an audit of 10^9 keys takes 9.
const STEPS_MAX: u32 = 16;

/// Keys after `after` up to and including `until`; without one, from the first or to the last.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Span {
    pub after: Option<Bytes>,
    pub until: Option<Bytes>,
}

impl Span {
    fn is_sound(&self) -> bool {
        let short = |key: &Option<Bytes>| key.as_ref().is_none_or(|key| key.len() <= KEY_BYTES_MAX);
        let grows = match (&self.after, &self.until) {
            (Some(after), Some(until)) => after < until,
            _ => true,
        };
        short(&self.after) && short(&self.until) && grows
    }

    fn holds(&self, key: &Bytes) -> bool {
        self.after.as_ref().is_none_or(|after| key > after)
            && self.until.as_ref().is_none_or(|until| key <= until)
    }

    fn keys<'a>(&self, store: &'a Store) -> impl Iterator<Item = (&'a Bytes, Hash)> + use<'a> {
        store.key_hashes_between(self.after.as_deref(), self.until.as_deref())
    }
}

/// A span and what its sender has in it.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Range {
    pub span: Span,
    pub print: ShortHash,
}

/// A span with few keys, one by one.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Leaf {
    pub span: Span,
    /// Ascending by key.
    pub keys: Vec<(Bytes, ShortHash)>,
    /// An answer is not answered.
    pub is_answer: bool,
}

/// One message of an audit.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Work {
    /// What its sender has applied, frame by frame, and its floor. For others who are not at the same place it means nothing.
    pub at: Hash,
    pub ranges: Vec<Range>,
    pub leaves: Vec<Leaf>,
}

impl Work {
    pub(crate) fn is_sound(&self) -> bool {
        let leaf = |leaf: &Leaf| {
            let ascending = leaf.keys.windows(2).all(|w| w[0].0 < w[1].0);
            let inside = leaf.keys.iter().all(|(key, _)| key.len() <= KEY_BYTES_MAX && leaf.span.holds(key));
            leaf.span.is_sound() && ascending && inside && leaf.keys.len() <= AUDIT_LEAF_KEYS_MAX
        };
        self.ranges.len() + self.leaves.len() <= AUDIT_RANGES_MAX
            && self.ranges.iter().all(|range| range.span.is_sound())
            && self.leaves.iter().all(leaf)
            && self.is_disjoint()
    }

    /// No key lies in two spans: whatever is asked, the store is read once.
    fn is_disjoint(&self) -> bool {
        let spans =
            self.ranges.iter().map(|range| &range.span).chain(self.leaves.iter().map(|leaf| &leaf.span));
        let mut spans: Vec<&Span> = spans.collect();
        spans.sort_unstable_by_key(|span| &span.after);
        spans.windows(2).all(|w| match (&w[0].until, &w[1].after) {
            (Some(until), Some(after)) => until <= after,
            _ => false,
        })
    }
}

/// What came of one step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// To be sent back.
    pub reply: Option<Work>,
    /// Keys that differ, and keys that are damaged here for sure.
    pub differs: Vec<Bytes>,
    pub damaged: Vec<Bytes>,
    /// Where the store stood.
    pub at: Hash,
    /// The two are not at the same place, so nothing was compared.
    pub elsewhere: bool,
}

/// What decides what a store should hold: the frames that were applied, as `Sync::stand` says, and the floor.
#[must_use]
pub fn place(store: &Store, chains: Hash) -> Hash {
    let mut hasher = Hasher::new("dwcp v3 audit place");
    hasher.field(&encode(store.applied())).update(&store.floor_number().to_le_bytes()).update(&chains.0);
    hasher.finish()
}

/// The fingerprint of some keys.
#[derive(Clone, Debug)]
struct Print(Hasher);

impl Print {
    fn new() -> Self {
        Self(Hasher::new("dwcp v3 audit range"))
    }

    fn add(&mut self, hash: &Hash) {
        self.0.update(&hash.0);
    }

    fn short(&self) -> ShortHash {
        ShortHash::from(&self.0.finish())
    }
}

fn print(store: &Store, span: &Span) -> (ShortHash, usize) {
    let (mut print, mut count) = (Print::new(), 0);
    for (_, hash) in span.keys(store) {
        print.add(&hash);
        count += 1;
    }
    (print.short(), count)
}

/// What a replica that stands so makes of a step, or of the time for the first of an audit. Only then it looks for its own
/// damage, too.
#[must_use]
pub fn answer(store: &mut Store, chains: Option<Hash>, work: Option<&Work>) -> Step {
    let Some(chains) = chains else { return Step { elsewhere: true, ..Step::default() } };
    let mut step = step(store, chains, work);
    if work.is_none() {
        step.damaged = damaged(store);
        step.damaged.truncate(AUDIT_KEYS_NAMED_MAX);
    }
    step
}

/// One step on this replica's store: the first of an audit without `work`.
#[must_use]
pub fn step(store: &Store, chains: Hash, work: Option<&Work>) -> Step {
    let at = place(store, chains);
    let mut reply = Work { at, ranges: Vec::new(), leaves: Vec::new() };
    let Some(work) = work else {
        let span = Span { after: None, until: None };
        let (print, _) = print(store, &span);
        reply.ranges.push(Range { span, print });
        return Step { reply: Some(reply), at, ..Step::default() };
    };
    if work.at != at {
        return Step { elsewhere: true, ..Step::default() };
    }
    let mut differs = Vec::new();
    for leaf in &work.leaves {
        let ours = compare(store, leaf, &mut differs);
        if !leaf.is_answer {
            reply.leaves.push(Leaf { span: leaf.span.clone(), keys: ours, is_answer: true });
        }
    }
    for range in &work.ranges {
        let (ours, count) = print(store, &range.span);
        if ours == range.print {
            continue;
        }
        let room = AUDIT_RANGES_MAX - reply.ranges.len() - reply.leaves.len();
        if count <= AUDIT_LEAF_KEYS && room >= 1 {
            let keys =
                range.span.keys(store).map(|(key, hash)| (key.clone(), ShortHash::from(&hash))).collect();
            reply.leaves.push(Leaf { span: range.span.clone(), keys, is_answer: false });
        } else if room >= AUDIT_SPLIT {
            reply.ranges.extend(split(store, &range.span, count));
        }
        // What finds no room differs still at the next audit.
    }
    differs.truncate(AUDIT_KEYS_NAMED_MAX);
    let has_more = !reply.ranges.is_empty() || !reply.leaves.is_empty();
    Step { reply: has_more.then_some(reply), differs, at, ..Step::default() }
}

/// Parts of a span with about as many keys each.
fn split(store: &Store, span: &Span, count: usize) -> Vec<Range> {
    let per_part = count.div_ceil(AUDIT_SPLIT);
    let mut parts = Vec::with_capacity(AUDIT_SPLIT);
    let (mut print, mut held, mut after) = (Print::new(), 0, span.after.clone());
    for (key, hash) in span.keys(store) {
        print.add(&hash);
        held += 1;
        if held == per_part && parts.len() + 1 < AUDIT_SPLIT {
            held = 0;
            let until = Some(key.clone());
            let done = core::mem::replace(&mut print, Print::new());
            parts.push(Range {
                span: Span { after: core::mem::replace(&mut after, until.clone()), until },
                print: done.short(),
            });
        }
    }
    parts.push(Range { span: Span { after, until: span.until.clone() }, print: print.short() });
    parts
}

/// Notes which keys of a leaf differ here; says what is here.
fn compare(store: &Store, leaf: &Leaf, differs: &mut Vec<Bytes>) -> Vec<(Bytes, ShortHash)> {
    let ours = leaf.span.keys(store).map(|(key, hash)| (key.clone(), ShortHash::from(&hash)));
    let ours: Vec<(Bytes, ShortHash)> = ours.take(AUDIT_LEAF_KEYS_MAX).collect();
    let theirs: BTreeMap<&Bytes, &ShortHash> = leaf.keys.iter().map(|(key, hash)| (key, hash)).collect();
    let mine: BTreeMap<&Bytes, &ShortHash> = ours.iter().map(|(key, hash)| (key, hash)).collect();
    let keys: alloc::collections::BTreeSet<&Bytes> = theirs.keys().chain(mine.keys()).copied().collect();
    differs.extend(keys.into_iter().filter(|key| theirs.get(key) != mine.get(key)).cloned());
    ours
}

/// Keys whose state is not what it was when it last changed: the damage is here. Needs no peer, and does not find what was
/// wrong when it was read from disk.
#[must_use]
pub fn damaged(store: &mut Store) -> Vec<Bytes> {
    let then: Vec<Hash> = store.key_hashes().map(|(_, hash)| hash).collect();
    let now = store.key_hashes_anew().zip(then);
    now.filter(|((_, now), then)| now != then).map(|((key, _), _)| key.clone()).collect()
}

impl Sync {
    /// Asks a peer that has the same, if there is one.
    pub(crate) fn begin_audit(&mut self, now: Now) {
        let acked = self.acked_vector();
        let level =
            self.peers.iter().filter(|(_, peer)| peer.ack.as_ref().is_some_and(|ack| ack.vector == acked));
        let level: Vec<OriginId> = level.map(|(id, _)| *id).collect();
        let stands = self.stand(&self.applied).is_some();
        let Some(peer) = self.chance.pick(&level).copied().filter(|_| stands) else {
            // Soon again: a quiet moment is enough.
            self.next_audit = now.mono.plus(self.timing.exchange_interval);
            return;
        };
        self.next_audit = now.mono.plus(self.timing.audit_interval);
        self.out.push(Action::Audit { peer, work: None });
    }

    pub(crate) fn on_audit(&mut self, now: Now, from: OriginId, work: Work) {
        self.refill_audits(now, from);
        let Some(peer) = self.peers.get_mut(&from) else { return };
        match peer.audits_left.checked_sub(1) {
            Some(left) => {
                peer.audits_left = left;
                self.out.push(Action::Audit { peer: from, work: Some(work) });
            }
            None => self.out.refuse(Some(from), Reason::TooOften),
        }
    }

    pub(crate) fn refill_audits(&mut self, now: Now, from: OriginId) {
        let Some(peer) = self.peers.get_mut(&from) else { return };
        if now.mono >= peer.audits_until {
            peer.audits_until = now.mono.plus(self.timing.audit_interval);
            (peer.audits_left, peer.copies_left) = (STEPS_MAX, QUESTIONS_MAX);
        }
    }

    /// Names the frames that make up a store which has applied this, if they are exactly those in line here. Nothing while it
    /// has others, or while an origin's end is not decided or not reached: until then replicas may have applied the same
    /// counters of different frames.
    #[must_use]
    pub fn stand(&self, applied: &VersionVector) -> Option<Hash> {
        let mut hasher = Hasher::new("dwcp v3 audit chains");
        let is_open = |chain: &Chain| {
            chain.is_frozen() || chain.off_branch || (chain.cut.is_some() && !chain.has_ended())
        };
        if !self.needs.is_empty() || self.chains.values().any(is_open) {
            return None;
        }
        for (origin, chain) in &self.chains {
            let last = chain.last();
            if applied.prefix(*origin) != last || applied.last(*origin) != last {
                return None;
            }
            if last > 0 {
                hasher.field(&encode(origin)).update(&chain.hash().0);
            }
        }
        Some(hasher.finish())
    }

    /// Takes what a step of an audit came to.
    pub fn on_audited(&mut self, now: Now, peer: OriginId, step: Step) {
        let Step { reply, differs, damaged, at, elsewhere: _ } = step;
        for keys in [&differs, &damaged] {
            if !keys.is_empty() {
                self.begin_repair(now, at, keys);
            }
        }
        if !differs.is_empty() {
            self.out.push(Action::Differs { peer, keys: differs });
        }
        if !damaged.is_empty() {
            self.out.push(Action::Damaged { keys: damaged });
        }
        if let Some(work) = reply {
            self.send(peer, Message::Audit { work }.to_bytes(), Ticket::ZERO);
        }
    }
}
