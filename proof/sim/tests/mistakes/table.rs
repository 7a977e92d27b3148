//! A table around which PBFT replicas sit: the real protocol core with real keys, and a dealer who decides which letter
//! is handed over, whose disk is synced and whose clock runs. Liars own a seat's key and nothing else: what they say is
//! crafted by the test. Time moves only when told to, so every story is the same every time.
//!
//! Knows nothing of client frames or state; see `cluster` for whole replicas.

use bytes::Bytes;
use dwcp_base::configuration::{Principal, Role};
use dwcp_base::crypto::Ed25519;
use dwcp_base::{
    ClusterId, ConfigurationId, Crypto, Genesis, Hash, Hasher, Incarnation, Member, Micros, Mutant, Mutants,
    Now, Policy, PublicKey, Quorum, ReplicaId, Sequence, SigningKind, Ticket, Trust, View, encode,
};
use dwcp_log::entry::payload_digest;
use dwcp_pbft::{
    Action, Application, Claim, Message, NewView, Output, Pbft, PbftSetup, PrePrepared, PreparedCertificate,
    Record, Signed, SignedBody, Statement, Timing, ViewChange, Vote,
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

pub const WALL_MS: u64 = 1_700_000_000_000;

/// Letters one story may hand over; a story that needs more runs in circles.
const LETTERS_MAX: usize = 200_000;

fn seed(kind: u8, id: u8) -> [u8; 32] {
    let mut seed = [kind; 32];
    seed[0] = id;
    seed
}

/// The vote key of a seat.
pub fn vote_crypto(id: u8) -> Ed25519 {
    Ed25519::new(seed(1, id), &[])
}

/// The key of the genesis' only principal, an admin.
pub fn admin_crypto() -> Ed25519 {
    Ed25519::new(seed(3, 0), &[])
}

/// A cluster of `n` with checkpoints every 8 sequences and a window of 16. Two names, two clusters with equal keys.
pub fn genesis(n: u8, name: &str) -> Arc<Genesis> {
    let public = |kind, id| Ed25519::new(seed(kind, id), &[]).public_key();
    let members = (0..n)
        .map(|id| Member {
            id: ReplicaId(id),
            incarnation: Incarnation(0),
            vote_key: public(1, id),
            tls_key: public(2, id),
            peer_address: format!("h{id}:1"),
            client_address: format!("h{id}:2"),
            votes_after: Sequence::ZERO,
        })
        .collect();
    let quorum = Quorum::new(n.into(), None).unwrap();
    let genesis = Genesis {
        version: 1,
        name: name.into(),
        created_unix_ms: WALL_MS,
        policy: Policy::root_only(if n >= 4 { Trust::Byzantine } else { Trust::Crash }, quorum),
        mode: dwcp_base::NetworkMode::Hybrid,
        calm_ms: dwcp_base::configuration::CALM_MS,
        members,
        principals: vec![Principal { name: "admin".into(), key: public(3, 0), role: Role::Admin }],
        checkpoint_interval: 8,
        window: 16,
        quota_bytes: 1 << 30,
    };
    genesis.check().unwrap();
    Arc::new(genesis)
}

/// The payload that no honest replica may prepare.
pub const INVALID: &[u8] = b"invalid";

struct Judge;

impl Application for Judge {
    fn check(&mut self, _: Now, payload: &Bytes) -> Result<(), &'static str> {
        if payload.as_ref() == INVALID { Err("an invalid payload") } else { Ok(()) }
    }
}

/// A letter on its way.
#[derive(Clone, Debug)]
pub struct Letter {
    pub from: u8,
    pub to: u8,
    pub message: Message,
    due: Micros,
}

pub struct Seat {
    /// `None` while it is down, or when a liar sits here.
    pub pbft: Option<Pbft>,
    out: Output,
    pub clock: Micros,
    /// What was written, in order, and up to where it would survive a power failure.
    pub disk: Vec<(Ticket, Record)>,
    pub synced: Ticket,
    held: Vec<(Ticket, Letter)>,
    pub delivered: BTreeMap<Sequence, Bytes>,
    digest: Hash,
    pub halted: Option<&'static str>,
    /// Why this seat left a view, in order.
    pub left: Vec<&'static str>,
    pub refused: Vec<(ReplicaId, &'static str)>,
    /// Votes whose letters left this seat.
    pub said: BTreeSet<Statement>,
}

impl Seat {
    pub fn core(&mut self) -> &mut Pbft {
        self.pbft.as_mut().expect("an honest replica sits here")
    }

    pub fn view(&self) -> View {
        self.pbft.as_ref().expect("an honest replica sits here").view()
    }
}

pub struct Table {
    pub genesis: Arc<Genesis>,
    pub seats: Vec<Seat>,
    pub wire: VecDeque<Letter>,
    pub now: Micros,
    /// How long a letter travels.
    pub delay: Micros,
    /// Whether every seat syncs at once what it wrote.
    pub auto_sync: bool,
    pub timing: Timing,
    mutants: Mutants,
    handed: usize,
}

impl Table {
    /// `n` seats; a liar sits at each of `liars`.
    pub fn new(n: u8, liars: &[u8], mutants: Mutants) -> Self {
        let mut table = Self { mutants, ..Self::named(n, "table") };
        for id in (0..n).filter(|id| !liars.contains(id)) {
            table.restart(id);
        }
        table
    }

    /// Empty seats in a cluster of this name, for what liars write there.
    pub fn named(n: u8, name: &str) -> Self {
        let seat = |_| Seat {
            pbft: None,
            out: Output::new(Ticket(1)),
            clock: Micros::ZERO,
            disk: Vec::new(),
            synced: Ticket::ZERO,
            held: Vec::new(),
            delivered: BTreeMap::new(),
            digest: Hash::ZERO,
            halted: None,
            left: Vec::new(),
            refused: Vec::new(),
            said: BTreeSet::new(),
        };
        Self {
            genesis: genesis(n, name),
            seats: (0..n).map(seat).collect(),
            wire: VecDeque::new(),
            now: Micros::from_millis(1_000),
            delay: Micros::ZERO,
            auto_sync: true,
            timing: Timing::lan(),
            mutants: Mutants::default(),
            handed: 0,
        }
    }

    pub fn cluster(&self) -> ClusterId {
        self.genesis.cluster()
    }

    fn n(&self) -> u8 {
        self.genesis.policy.quorum.n()
    }

    pub fn seat(&mut self, id: u8) -> &mut Seat {
        &mut self.seats[usize::from(id)]
    }

    // --- power ---------------------------------------------------------------------------------------------------

    /// Power failure: what was not synced is gone, and so is whatever waited for it.
    pub fn crash(&mut self, id: u8) {
        let seat = self.seat(id);
        seat.pbft = None;
        seat.held.clear();
        let synced = seat.synced;
        seat.disk.retain(|(ticket, _)| *ticket <= synced);
        self.wire.retain(|letter| letter.to != id);
    }

    /// A blank disk of the same make.
    pub fn wipe(&mut self, id: u8) {
        self.crash(id);
        let seat = self.seat(id);
        seat.disk.clear();
        seat.synced = Ticket::ZERO;
    }

    /// Starts from what the disk holds. Links stay silent until `link_up`.
    pub fn restart(&mut self, id: u8) {
        let keys: Vec<PublicKey> = self.genesis.members.iter().map(|member| member.vote_key).collect();
        let mut pbft = Pbft::new(&PbftSetup {
            genesis: self.genesis.clone(),
            me: ReplicaId(id),
            incarnation: Incarnation(0),
            timing: self.timing,
            history_bytes_max: 1 << 20,
            pipeline_depth: 4,
            crypto: Arc::new(Ed25519::new(seed(1, id), &keys)),
            mutants: self.mutants,
        });
        let now = self.clock_of(id);
        let seat = self.seat(id);
        for (ticket, record) in &seat.disk {
            pbft.replay(*ticket, record.clone());
        }
        let next = seat.disk.last().map_or(Ticket(1), |(ticket, _)| ticket.next());
        seat.out = Output::new(next);
        seat.digest = Hash::ZERO;
        pbft.replayed(now, &mut seat.out);
        seat.pbft = Some(pbft);
        self.collect(id);
    }

    /// Everything written so far survives a power failure from now on, and what waited for it leaves.
    pub fn sync(&mut self, id: u8) {
        let seat = self.seat(id);
        seat.synced = seat.disk.last().map_or(seat.synced, |(ticket, _)| *ticket);
        self.release(id);
    }

    // --- letters -------------------------------------------------------------------------------------------------

    fn clock_of(&mut self, id: u8) -> Now {
        let now = self.now;
        let seat = self.seat(id);
        seat.clock = seat.clock.max(now);
        Now { mono: seat.clock, wall_ms: WALL_MS + seat.clock.0 / 1000 }
    }

    /// Hands one letter over, whoever wrote it.
    pub fn hand(&mut self, from: u8, to: u8, message: Message) {
        self.handed += 1;
        assert!(self.handed < LETTERS_MAX, "the table runs in circles");
        let now = self.clock_of(to);
        let seat = self.seat(to);
        let Some(pbft) = seat.pbft.as_mut().filter(|_| seat.halted.is_none()) else { return };
        pbft.on_message(now, ReplicaId(from), message, &mut Judge, &mut seat.out);
        pbft.check();
        self.collect(to);
    }

    /// Hands the same letter to several.
    pub fn hand_all(&mut self, from: u8, to: &[u8], message: &Message) {
        for id in to {
            self.hand(from, *id, message.clone());
        }
    }

    /// Hands over what is due and `allowed`, and whatever that leads to; the rest of what is due is lost.
    pub fn pass(&mut self, allowed: impl Fn(&Letter) -> bool) {
        while let Some(place) = self.wire.iter().position(|letter| letter.due <= self.now) {
            let letter = self.wire.remove(place).expect("it was just found");
            if allowed(&letter) {
                self.hand(letter.from, letter.to, letter.message);
            }
        }
    }

    /// As [`Table::pass`] among these seats only.
    pub fn pass_among(&mut self, ids: &[u8]) {
        self.pass(|letter| ids.contains(&letter.from) && ids.contains(&letter.to));
    }

    /// Every letter under way is lost.
    pub fn lose_all(&mut self) {
        self.wire.clear();
    }

    pub fn link_up(&mut self, a: u8, b: u8) {
        for (id, peer) in [(a, b), (b, a)] {
            let seat = self.seat(id);
            if let Some(pbft) = &mut seat.pbft {
                pbft.on_link_up(ReplicaId(peer), &mut seat.out);
            }
            self.collect(id);
        }
    }

    pub fn propose(&mut self, id: u8, payload: &'static [u8]) -> Sequence {
        let now = self.clock_of(id);
        let seat = self.seat(id);
        let pbft = seat.pbft.as_mut().expect("an honest replica sits here");
        let sequence = pbft.propose(now, Bytes::from_static(payload), &mut seat.out);
        self.collect(id);
        sequence
    }

    fn collect(&mut self, id: u8) {
        loop {
            let actions = self.seat(id).out.take();
            if actions.is_empty() {
                break;
            }
            for action in actions {
                self.carry_out(id, action);
            }
        }
        if self.auto_sync {
            self.sync(id);
        }
        self.release(id);
    }

    fn carry_out(&mut self, id: u8, action: Action) {
        let now = self.clock_of(id);
        let due = self.now.plus(self.delay);
        let n = self.n();
        let seat = self.seat(id);
        match action {
            Action::Persist { ticket, record } => seat.disk.push((ticket, record)),
            Action::Broadcast { message, after } => {
                for to in (0..n).filter(|to| *to != id) {
                    seat.held.push((after, Letter { from: id, to, message: message.clone(), due }));
                }
            }
            Action::Send { to, message, after } => {
                seat.held.push((after, Letter { from: id, to: to.0, message, due }));
            }
            Action::Deliver(decided, _) => {
                let sequence = decided.certificate.claim.sequence;
                let mut hasher = Hasher::new("table");
                hasher.update(&seat.digest.0).update(&decided.certificate.claim.digest.0);
                seat.digest = hasher.finish();
                let (digest, mut pbft) = (seat.digest, seat.pbft.take());
                seat.delivered.insert(sequence, decided.payload);
                if let Some(pbft) = pbft.as_mut().filter(|pbft| pbft.is_checkpoint(sequence)) {
                    pbft.on_executed(now, sequence, digest, &mut seat.out);
                }
                seat.pbft = pbft;
            }
            Action::ViewChangeStarted { reason, .. } => seat.left.push(reason),
            Action::Refused { from, reason } => seat.refused.push((from, reason)),
            Action::Halt { reason } => seat.halted = Some(reason),
            Action::Stable { .. }
            | Action::Diverged { .. }
            | Action::ViewEntered { .. }
            | Action::NeedSnapshot { .. } => {}
        }
    }

    /// What waits for nothing that is not durable leaves.
    fn release(&mut self, id: u8) {
        let seat = self.seat(id);
        let synced = seat.synced;
        let (free, held): (Vec<_>, Vec<_>) = seat.held.drain(..).partition(|(after, _)| *after <= synced);
        seat.held = held;
        for (_, letter) in &free {
            match &letter.message {
                Message::Vote(signed) if signed.statement.sender.0 == id => {
                    seat.said.insert(signed.statement);
                }
                Message::PrePrepare { proposal, .. } if proposal.statement.sender.0 == id => {
                    seat.said.insert(proposal.statement);
                }
                _ => {}
            }
        }
        self.wire.extend(free.into_iter().map(|(_, letter)| letter));
    }

    // --- time ----------------------------------------------------------------------------------------------------

    /// This seat's patience runs out: its clock runs ahead until it leaves its view.
    pub fn leave(&mut self, id: u8) {
        let before = self.seat(id).view();
        let since = self.clock_of(id).mono;
        for _ in 0..1_000 {
            let seat = self.seat(id);
            let clock = seat.clock;
            let pbft = seat.core();
            if pbft.view() > before {
                return;
            }
            if pbft.is_active() {
                pbft.set_waiting(Some(since));
            }
            seat.clock = clock.max(seat.core().next_wakeup());
            self.wake(id);
        }
        panic!("r{id} never leaves {before:?}");
    }

    fn wake(&mut self, id: u8) {
        let now = self.clock_of(id);
        let seat = self.seat(id);
        let Some(pbft) = seat.pbft.as_mut().filter(|_| seat.halted.is_none()) else { return };
        pbft.on_time(now, &mut Judge, &mut seat.out);
        pbft.check();
        self.collect(id);
    }

    /// Lets time pass in steps of a millisecond: letters that are due and allowed arrive, timers fire, `each` acts.
    pub fn run(&mut self, ms: u64, allowed: impl Fn(&Letter) -> bool, mut each: impl FnMut(&mut Self)) {
        let slowest = self.seats.iter().map(|seat| seat.clock).max().unwrap_or_default();
        self.now = self.now.max(slowest);
        for _ in 0..ms {
            self.now = self.now.plus(Micros::from_millis(1));
            self.pass(&allowed);
            for id in 0..self.n() {
                let now = self.now;
                if self.seat(id).pbft.as_ref().is_some_and(|pbft| pbft.next_wakeup() <= now) {
                    self.wake(id);
                }
            }
            each(self);
            self.pass(&allowed);
        }
    }

    /// From now on every honest replica knows of a request that waits, or of none.
    pub fn everybody_waits(&mut self, since: Option<Micros>) {
        for seat in &mut self.seats {
            if let Some(pbft) = &mut seat.pbft {
                pbft.set_waiting(since);
            }
        }
    }

    // --- what is judged ------------------------------------------------------------------------------------------

    /// A sequence at which two honest replicas delivered different payloads.
    pub fn fork(&self) -> Option<Sequence> {
        let mut all: BTreeMap<Sequence, &Bytes> = BTreeMap::new();
        let mut delivered = self.seats.iter().flat_map(|seat| &seat.delivered);
        delivered
            .find(|(sequence, payload)| {
                all.insert(**sequence, payload).is_some_and(|known| known != *payload)
            })
            .map(|(sequence, _)| *sequence)
    }

    /// A view and sequence for which honest replicas hold prepared certificates of different digests. OSDI '99
    /// section 4.2: there never are two.
    pub fn prepared_twice(&self) -> Option<(View, Sequence)> {
        let mut all: BTreeMap<(View, Sequence), Hash> = BTreeMap::new();
        let records = self.seats.iter().flat_map(|seat| &seat.disk);
        let mut prepared = records.filter_map(|(_, record)| match record {
            Record::Prepared(certificate) => Some(certificate),
            _ => None,
        });
        prepared
            .find(|one| {
                let place = (one.view(), one.sequence());
                all.insert(place, one.digest()).is_some_and(|known| known != one.digest())
            })
            .map(|one| (one.view(), one.sequence()))
    }

    /// A vote of this seat that contradicts another one it sent: same kind, view and sequence, another digest.
    pub fn contradiction(&self, id: u8) -> Option<Statement> {
        let mut all: BTreeMap<(Vote, View, Sequence), Hash> = BTreeMap::new();
        let mut said = self.seats[usize::from(id)].said.iter();
        said.find(|statement| {
            let claim = statement.claim;
            let place = (claim.vote, claim.view, claim.sequence);
            all.insert(place, claim.digest).is_some_and(|known| known != claim.digest)
        })
        .copied()
    }

    // --- what liars write ----------------------------------------------------------------------------------------

    pub fn claim(vote: Vote, view: u64, sequence: u64, payload: &[u8]) -> Claim {
        Claim {
            vote,
            configuration: ConfigurationId(1),
            view: View(view),
            sequence: Sequence(sequence),
            digest: payload_digest(payload),
        }
    }

    /// A vote under the real key of `id`.
    pub fn signed(&self, id: u8, claim: Claim) -> Signed {
        let statement = Statement { claim, sender: ReplicaId(id), incarnation: Incarnation(0) };
        Signed::new(statement, self.cluster(), &vote_crypto(id))
    }

    pub fn vote(&self, id: u8, vote: Vote, view: u64, sequence: u64, payload: &[u8]) -> Message {
        Message::Vote(self.signed(id, Self::claim(vote, view, sequence, payload)))
    }

    pub fn pre_prepare(&self, id: u8, view: u64, sequence: u64, payload: &'static [u8]) -> Message {
        let proposal = self.signed(id, Self::claim(Vote::PrePrepare, view, sequence, payload));
        Message::PrePrepare { proposal, payload: Bytes::from_static(payload) }
    }

    /// A pre-prepare for one payload with prepares of others, each for the payload it names.
    pub fn certificate(
        &self,
        view: u64,
        sequence: u64,
        payload: &[u8],
        prepares: &[(u8, &[u8])],
    ) -> PreparedCertificate {
        let primary = View(view).primary(self.n()).0;
        PreparedCertificate {
            pre_prepare: self.signed(primary, Self::claim(Vote::PrePrepare, view, sequence, payload)),
            prepares: prepares
                .iter()
                .map(|(id, payload)| self.signed(*id, Self::claim(Vote::Prepare, view, sequence, payload)))
                .collect(),
        }
    }

    /// A VIEW-CHANGE under the real key of `id`. `accepted`: (sequence, payload, view).
    pub fn view_change(
        &self,
        id: u8,
        view: u64,
        prepared: Vec<PreparedCertificate>,
        accepted: &[(u64, &[u8], u64)],
    ) -> Message {
        let mut pre_prepared: Vec<PrePrepared> = accepted
            .iter()
            .map(|(sequence, payload, view)| PrePrepared {
                sequence: Sequence(*sequence),
                digest: payload_digest(payload),
                view: View(*view),
            })
            .collect();
        pre_prepared.sort_by_key(|entry| (entry.sequence, entry.digest));
        let body = ViewChange {
            view: View(view),
            configuration: ConfigurationId(1),
            sender: ReplicaId(id),
            incarnation: Incarnation(0),
            stable: None,
            prepared,
            pre_prepared,
        };
        let crypto = vote_crypto(id);
        Message::ViewChange(SignedBody::new(SigningKind::ViewChange, encode(&body), self.cluster(), &crypto))
    }

    /// A NEW-VIEW under the real key of the view's primary.
    pub fn new_view(
        &self,
        view: u64,
        view_changes: Vec<(ReplicaId, Hash)>,
        slots: &[(u64, &[u8])],
    ) -> Message {
        let primary = View(view).primary(self.n());
        let body = NewView {
            view: View(view),
            configuration: ConfigurationId(1),
            sender: primary,
            incarnation: Incarnation(0),
            view_changes,
            pre_prepares: slots
                .iter()
                .map(|(sequence, payload)| {
                    self.signed(primary.0, Self::claim(Vote::PrePrepare, view, *sequence, payload))
                })
                .collect(),
        };
        let crypto: &dyn Crypto = &vote_crypto(primary.0);
        Message::NewView(SignedBody::new(SigningKind::NewView, encode(&body), self.cluster(), crypto))
    }
}

/// No rule is off.
pub fn with_rule() -> Mutants {
    Mutants::default()
}

/// One rule is off.
pub fn without(mutant: Mutant) -> Mutants {
    Mutants::default().with(mutant)
}
