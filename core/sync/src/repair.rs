//! Putting damaged keys right. An audit names keys that two replicas hold differently though they have applied the same; which
//! of the two is right neither can tell. So whoever hears of such keys asks all members for theirs, and takes what enough say who
//! stand at the very same place: more members than may lie, or where nobody may lie more than half of all. What is here itself
//! has no voice: a damaged copy is never among those that agree, and nothing is changed where they agree in what is here.
//!
//! ```text
//!   A ── Copy(place, keys), to all ──▶ B, C, D     who stands there and whose copy is what it hashed when the key changed
//!   A ◀─ Copied(copies) ──────────────             equal copies are counted; what enough say is adopted
//! ```
//!
//! Between question and adoption nothing may change here; what was left is asked for again with the next exchange, and what the
//! next audit still finds differs then. The functions compute on a store that is their argument, like those of `audit`.

use crate::audit::place;
use crate::limits::{AUDIT_KEYS_NAMED_MAX, COPIES_BYTES_MAX, COPY_KEYS_MAX};
use crate::message::Message;
use crate::output::{Action, Reason};
use crate::state::Sync;
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;
use borsh::{BorshDeserialize, BorshSerialize};
use bytes::Bytes;
use dwcp_base::{Hash, Micros, Mutant, Now, Ticket};
use dwcp_crdt::limits::KEY_BYTES_MAX;
use dwcp_crdt::{OriginId, Store, VersionVector};

/// Questions for copies that one peer may ask within an audit interval.
pub(crate) const QUESTIONS_MAX: u32 = 64;
/// How often all are asked for copies of the same keys.
const ROUNDS_MAX: u32 = 8;

/// Which states have you of these keys?
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Question {
    pub round: u64,
    /// Where its sender stands; see `audit`.
    pub at: Hash,
    /// Ascending.
    pub keys: Vec<Bytes>,
}

/// A key and its state, nothing where there is none.
pub type Copy = (Bytes, Option<Bytes>);

fn is_ascending<'a>(keys: impl Iterator<Item = &'a Bytes> + Clone) -> bool {
    let next = keys.clone().skip(1);
    keys.clone().zip(next).all(|(a, b)| a < b) && keys.into_iter().all(|key| key.len() <= KEY_BYTES_MAX)
}

impl Question {
    pub(crate) fn is_sound(&self) -> bool {
        self.keys.len() <= COPY_KEYS_MAX && is_ascending(self.keys.iter())
    }
}

pub(crate) fn are_sound(copies: &[Copy]) -> bool {
    copies.len() <= COPY_KEYS_MAX && is_ascending(copies.iter().map(|(key, _)| key))
}

/// What this store has of the keys asked for: nothing where it stands elsewhere. A copy that is damaged, as this replica can see
/// for itself, is left out, and so are copies that find no room.
#[must_use]
pub fn copies(store: &Store, chains: Option<Hash>, question: &Question) -> Option<Vec<Copy>> {
    if place(store, chains?) != question.at {
        return None;
    }
    let mut room = COPIES_BYTES_MAX;
    let copy = |key: &Bytes| {
        let bytes = store.key_bytes(key);
        let size = bytes.as_ref().map_or(0, Vec::len);
        if size > room || !store.is_intact(key) {
            return None;
        }
        room -= size;
        Some((key.clone(), bytes.map(Bytes::from)))
    };
    Some(question.keys.iter().filter_map(copy).collect())
}

/// Takes what enough members say of some keys, if the store still stands there; says which keys were others.
pub fn adopt(store: &mut Store, chains: Option<Hash>, at: Hash, copies: &[Copy]) -> Vec<Bytes> {
    if chains.map(|chains| place(store, chains)) != Some(at) {
        return Vec::new();
    }
    let mut adopted = Vec::new();
    for (key, copy) in copies {
        let is_same = store.key_bytes(key).as_deref() == copy.as_deref();
        if !is_same && store.replace_key(key, copy.as_deref()).is_ok() {
            adopted.push(key.clone());
        }
    }
    adopted
}

/// Who says what of a key: each peer says one thing.
type Said = Vec<(Option<Bytes>, BTreeSet<OriginId>)>;

/// Keys that differ somewhere. At most `AUDIT_KEYS_NAMED_MAX`; what peers said of `COPY_KEYS_MAX` of them, within a message of each.
#[derive(Clone, Debug)]
pub(crate) struct Repair {
    at: Hash,
    applied: VersionVector,
    waiting: VecDeque<Bytes>,
    asked: BTreeMap<Bytes, Said>,
    round: u64,
    rounds_left: u32,
    pub(crate) next_ask: Micros,
}

impl Sync {
    /// These keys differ between this replica, which stands at that place, and another.
    pub(crate) fn begin_repair(&mut self, now: Now, at: Hash, keys: &[Bytes]) {
        if self.repair.as_ref().is_none_or(|repair| repair.at != at) {
            let applied = self.applied.clone();
            let (waiting, asked) = (VecDeque::new(), BTreeMap::new());
            let (round, rounds_left, next_ask) = (0, ROUNDS_MAX, now.mono);
            self.repair = Some(Repair { at, applied, waiting, asked, round, rounds_left, next_ask });
        }
        let Some(repair) = &mut self.repair else { return };
        for key in keys {
            let is_known = repair.asked.contains_key(key) || repair.waiting.contains(key);
            if !is_known && repair.waiting.len() + repair.asked.len() < AUDIT_KEYS_NAMED_MAX {
                repair.waiting.push_back(key.clone());
            }
        }
        if repair.asked.is_empty() {
            self.ask_for_copies(now);
        }
    }

    /// Asks everybody, for so many keys as fit a question.
    pub(crate) fn ask_for_copies(&mut self, now: Now) {
        let Some(repair) = &mut self.repair else { return };
        let unsettled = core::mem::take(&mut repair.asked).into_keys();
        repair.waiting.extend(unsettled);
        let is_over = repair.waiting.is_empty() || repair.rounds_left == 0;
        if is_over || repair.applied != self.applied {
            self.repair = None;
            return;
        }
        self.round += 1;
        repair.round = self.round;
        repair.rounds_left -= 1;
        repair.next_ask = now.mono.plus(self.timing.exchange_interval);
        let count = repair.waiting.len().min(COPY_KEYS_MAX);
        repair.asked = repair.waiting.drain(..count).map(|key| (key, Said::new())).collect();
        let question =
            Question { round: repair.round, at: repair.at, keys: repair.asked.keys().cloned().collect() };
        let message = Message::Copy { question }.to_bytes();
        let peers: Vec<OriginId> = self.peers.keys().copied().collect();
        for peer in peers {
            self.send(peer, message.clone(), Ticket::ZERO);
        }
    }

    pub(crate) fn on_copy(&mut self, now: Now, from: OriginId, question: Question) {
        self.refill_audits(now, from);
        let Some(peer) = self.peers.get_mut(&from) else { return };
        match peer.copies_left.checked_sub(1) {
            Some(left) => {
                peer.copies_left = left;
                self.out.push(Action::Copies { peer: from, question });
            }
            None => self.out.refuse(Some(from), Reason::TooOften),
        }
    }

    /// Sends what [`copies`] says.
    pub fn give_copies(&mut self, peer: OriginId, round: u64, copies: Vec<Copy>) {
        self.send(peer, Message::Copied { round, copies }.to_bytes(), Ticket::ZERO);
    }

    /// So many peers must say the same of a key.
    fn voices_needed(&self) -> usize {
        if self.mutants.on(Mutant::SyncRepairByOne) {
            return 1;
        }
        let members = self.peers.len() + 1;
        if self.faults > 0 { self.faults + 1 } else { members / 2 + 1 }
    }

    pub(crate) fn on_copied(&mut self, now: Now, from: OriginId, round: u64, copies: Vec<Copy>) {
        let needed = self.voices_needed();
        let Some(repair) = self.repair.as_mut().filter(|repair| repair.round == round) else {
            return self.out.refuse(Some(from), Reason::Unasked);
        };
        let mut agreed = Vec::new();
        for (key, copy) in copies {
            let Some(said) = repair.asked.get_mut(&key) else { continue };
            if said.iter().any(|(_, who)| who.contains(&from)) {
                continue;
            }
            let place = said.iter().position(|(other, _)| *other == copy).unwrap_or(said.len());
            if place == said.len() {
                said.push((copy.clone(), BTreeSet::new()));
            }
            said[place].1.insert(from);
            if said[place].1.len() >= needed {
                repair.asked.remove(&key);
                agreed.push((key, copy));
            }
        }
        if !agreed.is_empty() {
            self.out.push(Action::Repair { at: repair.at, copies: agreed });
        }
        if repair.asked.is_empty() {
            self.ask_for_copies(now);
        }
    }

    /// So many keys were put right. There may be more than one audit names.
    pub fn on_repaired(&mut self, now: Now, keys: usize) {
        if keys > 0 {
            self.next_audit = self.next_audit.min(now.mono.plus(self.timing.exchange_interval));
        }
    }
}
