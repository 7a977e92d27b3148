//! One real replica under the checker: the core, its clock, what it wrote, and the facts that claims are about.
//!
//! The core has no notion of equality, so a node is known by a fingerprint of everything its `Debug` shows. Tickets are
//! left out: here every record is durable at once, so that they decide nothing and would only tell apart states that
//! behave alike.

use bytes::Bytes;
use dwcp_base::{Genesis, Hash, Incarnation, Micros, Mutants, Now, ReplicaId, Sequence, Ticket, View};
use dwcp_pbft::{Action, Application, Message, Output, Pbft, PbftSetup, Record, Timing};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write};
use std::sync::Arc;

use crate::keys::KeyedHash;

/// The payload that no honest replica may prepare.
pub const INVALID: &[u8] = b"invalid";

/// What every payload is held to.
struct Judge;

impl Application for Judge {
    fn check(&mut self, _: Now, payload: &Bytes) -> Result<(), &'static str> {
        if payload.as_ref() == INVALID { Err("an invalid payload") } else { Ok(()) }
    }
}

/// A message and for whom; `None` is everybody else.
pub type Sent = (Option<ReplicaId>, Message);

/// See the head of this file.
#[derive(Clone, Debug)]
pub struct Node {
    setup: PbftSetup,
    pbft: Pbft,
    out: Output,
    clock: Micros,
    /// Everything ever written; a restart begins from it. Bounded by the depth of a walk.
    records: Vec<Record>,
    pub delivered: BTreeMap<Sequence, Hash>,
    /// Every digest ever prepared, by view and sequence.
    pub prepared: BTreeSet<(View, Sequence, Hash)>,
    pub carried: u32,
    /// It has accepted some assignment.
    pub accepted: bool,
    pub halted: bool,
    /// Whether links come up in this model: only then does it matter which of a peer's votes was the last.
    links: bool,
    print: [u8; 16],
}

impl Node {
    #[must_use]
    pub fn new(genesis: &Arc<Genesis>, id: u8, mutants: Mutants, links: bool) -> Self {
        let setup = PbftSetup {
            genesis: Arc::clone(genesis),
            me: ReplicaId(id),
            incarnation: Incarnation(0),
            timing: Timing::lan(),
            history_bytes_max: 1 << 20,
            pipeline_depth: 2,
            crypto: Arc::new(KeyedHash::of(id)),
            mutants,
        };
        let mut node = Self {
            pbft: Pbft::new(&setup),
            setup,
            out: Output::new(Ticket(1)),
            clock: Micros::from_millis(1_000),
            records: Vec::new(),
            delivered: BTreeMap::new(),
            prepared: BTreeSet::new(),
            carried: 0,
            accepted: false,
            halted: false,
            links,
            print: [0; 16],
        };
        node.step(|pbft, now, out| pbft.replayed(now, out));
        node
    }

    /// Tells nodes apart.
    #[must_use]
    pub fn print(&self) -> &[u8; 16] {
        &self.print
    }

    #[must_use]
    pub fn pbft(&self) -> &Pbft {
        &self.pbft
    }

    fn now(&self) -> Now {
        Now { mono: self.clock, wall_ms: 0 }
    }

    pub fn hear(&mut self, from: u8, message: Message) -> Vec<Sent> {
        self.step(|pbft, now, out| pbft.on_message(now, ReplicaId(from), message, &mut Judge, out))
    }

    pub fn propose(&mut self, payload: Bytes) -> Vec<Sent> {
        self.step(|pbft, now, out| {
            pbft.propose(now, payload, out);
        })
    }

    /// Whatever this replica waits for, it has waited too long.
    pub fn lose_patience(&mut self) -> Vec<Sent> {
        self.pbft.set_waiting(Some(self.clock));
        self.clock = self.clock.plus(Micros::from_millis(3_600_000));
        let sent = self.step(|pbft, now, out| pbft.on_time(now, &mut Judge, out));
        self.pbft.set_waiting(None);
        self.take_print();
        sent
    }

    /// Power fails and comes back; then every link comes up.
    pub fn restart(&mut self) -> Vec<Sent> {
        self.pbft = Pbft::new(&self.setup);
        for (index, record) in self.records.iter().enumerate() {
            self.pbft.replay(Ticket(index as u64 + 1), record.clone());
        }
        self.out = Output::new(Ticket(self.records.len() as u64 + 1));
        let n = self.setup.genesis.policy.quorum.n();
        let me = self.setup.me;
        self.step(|pbft, now, out| {
            pbft.replayed(now, out);
            for peer in (0..n).map(ReplicaId).filter(|peer| *peer != me) {
                pbft.on_link_up(peer, out);
            }
        })
    }

    fn step(&mut self, act: impl FnOnce(&mut Pbft, Now, &mut Output)) -> Vec<Sent> {
        if self.halted {
            return Vec::new();
        }
        let now = self.now();
        act(&mut self.pbft, now, &mut self.out);
        self.pbft.check();
        let mut sent = Vec::new();
        for action in self.out.take() {
            match action {
                Action::Persist { record, .. } => {
                    if let Record::Prepared(certificate) = &record {
                        let place = (certificate.view(), certificate.sequence(), certificate.digest());
                        self.prepared.insert(place);
                    }
                    self.accepted |= matches!(record, Record::PrePrepared { .. });
                    self.records.push(record);
                }
                Action::Broadcast { message, .. } => sent.push((None, message)),
                Action::Send { to, message, .. } => sent.push((Some(to), message)),
                Action::Deliver(decided, _) => {
                    let claim = decided.certificate.claim;
                    // A restart delivers again what was delivered; another digest then is a fork with oneself.
                    let known = self.delivered.insert(claim.sequence, claim.digest);
                    let same = known.is_none_or(|known| known == claim.digest);
                    assert!(same || self.setup.mutants.any(), "a restart does not change what was delivered");
                }
                Action::ViewEntered { carried, .. } => self.carried = self.carried.max(carried),
                Action::Halt { .. } => self.halted = true,
                Action::Stable { .. }
                | Action::Diverged { .. }
                | Action::ViewChangeStarted { .. }
                | Action::NeedSnapshot { .. }
                | Action::Refused { .. } => {}
            }
        }
        self.take_print();
        sent
    }

    fn take_print(&mut self) {
        let mut print = Print { hasher: blake3::Hasher::new(), before: ' ', inside_ticket: false };
        let facts = (&self.clock, &self.delivered, &self.prepared, self.halted);
        let mut shown = format!("{:?}", self.pbft);
        if !self.links {
            forget_proofs(&mut shown);
        }
        write!(print, "{shown} {facts:?}").expect("hashing does not fail");
        self.print.copy_from_slice(&print.hasher.finalize().as_bytes()[..16]);
    }
}

/// Where nobody restarts, leaves a view or asks for what is decided, it decides nothing which of the votes ended up in a
/// certificate, which vote of a peer was the last, or how many bytes (some dozens) a peer was helped with.
fn forget_proofs(shown: &mut String) {
    for (field, after) in [("last_votes: ", ", standings: "), ("helped: ", ", view_shown: ")] {
        let (from, to) = (shown.find(field), shown.find(after));
        shown.replace_range(from.expect("the core has it")..to.expect("the core has it"), "");
    }
    for list in ["vouchers: [", "prepares: ["] {
        let mut place = 0;
        while let Some(found) = shown[place..].find(list) {
            let from = place + found + list.len();
            let mut depth = 1;
            let end = shown[from..].find(|letter| {
                depth += i32::from(letter == '[') - i32::from(letter == ']');
                depth == 0
            });
            shown.replace_range(from..from + end.expect("what opens is closed"), "");
            place = from;
        }
    }
}

/// Hashes text, leaving out the numbers of tickets (`t` and digits, standing alone).
struct Print {
    hasher: blake3::Hasher,
    before: char,
    inside_ticket: bool,
}

impl Write for Print {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut kept = String::with_capacity(text.len());
        for letter in text.chars() {
            self.inside_ticket = letter.is_ascii_digit() && (self.inside_ticket || self.before == 'T');
            if !self.inside_ticket {
                kept.push(letter);
            }
            // A capital T stands for a `t` that begins a word.
            let begins = letter == 't' && !self.before.is_alphanumeric() && self.before != '_';
            self.before = if begins { 'T' } else { letter };
        }
        self.hasher.update(kept.as_bytes());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn print_of(text: &str) -> blake3::Hash {
        let mut print = Print { hasher: blake3::Hasher::new(), before: ' ', inside_ticket: false };
        // In pieces, as formatting does.
        text.chars().for_each(|letter| write!(print, "{letter}").unwrap());
        print.hasher.finalize()
    }

    #[test]
    fn a_print_forgets_tickets_and_nothing_else() {
        assert_eq!(print_of("vote_ticket: t12, at: Some(t7)"), print_of("vote_ticket: t3, at: Some(t)"));
        for (a, b) in [("s1", "s2"), ("at1", "at2"), ("_t1", "_t2"), ("t1 2", "t1 3"), ("v1: t1", "v2: t1")] {
            assert_ne!(print_of(a), print_of(b), "{a} {b}");
        }
    }
}
