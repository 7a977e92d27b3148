//! Leases: what clients do with them where the dial `lease_life_pm` says so, what each honest replica's store is seen to do to
//! them at each entry (`store`), and what the judge must be told of both.
//!
//! A client grants leases, hangs keys on them, keeps some alive for a while and lets others run out, revokes some, asks how
//! long they have to live, and goes on talking of leases that are gone. All of it is drawn from a chance of its own.

use crate::client::Client;
use crate::node::EPOCH_MS;
use crate::store::{Notes, Turn};
use crate::world::World;
use check::history::ReplicaEvent;
use check::lease::{Ask, Look, Terms, Wish, end_id};
use check::{CommandId, Operation};
use dwcp_base::limits::{CLOCK_AHEAD_MAX_MS, EXPIRY_STEP_MAX_MS};
use dwcp_base::{Incarnation, ReplicaId, Ticket};
use dwcp_state::Command;
use dwcp_state::kv::{KvBody, KvCommand, KvReply};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Leases a client looks after at a time.
const HELD_MAX: usize = 3;
/// Numbers of these leases, above those of `workload`.
const IDS_FROM: u64 = 500_000;
/// By how much a lease may outlive its time in the calm: a view change or an election, a tick, a round. The most that was seen is
/// two seconds.
const LATE_US: u64 = 5_000_000;
/// What a message, a sync and a rounded millisecond may add to where clocks stand.
const SLACK_MS: u64 = 300;

/// An entry of a segment: epoch, index, and the chain of the log with it.
type Branch = (u64, u64, [u8; 32]);

/// What is known of leases, besides what journals say.
#[derive(Debug, Default)]
pub struct Leases {
    pub asks: HashMap<CommandId, Ask>,
    pub looks: HashMap<CommandId, Look>,
    /// What nodes executed last at each position: an entry of a segment, or one of the root.
    executed: BTreeMap<usize, BTreeMap<u64, Option<Branch>>>,
    /// What a node saw that is not on its disk yet.
    waiting: BTreeMap<usize, Vec<(Ticket, u64, ReplicaEvent)>>,
    /// Keep-alives under way by the epoch that was open when they were asked for, and by the first in which a leader proposed them.
    asked_in: HashMap<CommandId, u64>,
    proposed: HashMap<CommandId, u64>,
    /// Replacements that were seen to have their vote, and when the last of them had.
    pub readmitted: BTreeSet<(ReplicaId, Incarnation)>,
    pub whole_since_us: u64,
}

fn lease_id(id: i64) -> u64 {
    u64::try_from(id).unwrap_or(u64::MAX)
}

fn opaque(command: &KvCommand) -> Operation {
    Operation::Opaque(command.to_command().to_vec())
}

impl World {
    /// Somebody uses leases, so stores are watched.
    #[must_use]
    pub fn watches_leases(&self) -> bool {
        self.dials.leases_pm > 0 || self.dials.lease_life_pm > 0
    }

    /// How much earlier than by true time a lease may seem to end: clocks are apart, a clock far ahead leads nowhere, for the others
    /// do not follow, and one far behind ends in a leap that takes one period off a lease.
    #[must_use]
    pub fn clocks_apart_us(&self) -> u64 {
        let right = self.dials.wrong_clocks == 0 && !self.dials.members_may_lie();
        let leap_ms = if right { 0 } else { EXPIRY_STEP_MAX_MS };
        (2 * self.dials.skew_ms + CLOCK_AHEAD_MAX_MS + SLACK_MS + leap_ms) * 1000
    }

    /// Nobody may hold log time still.
    fn time_goes_on(&self) -> bool {
        self.dials.wrong_clocks == 0 && self.dials.liars == 0
    }

    /// What a client does with its leases in a frame.
    pub fn lease_operations(&mut self, ix: usize) -> Vec<Operation> {
        let client = &mut self.clients[ix];
        if !client.lease_chance.per_mille(self.dials.lease_life_pm) {
            return Vec::new();
        }
        let what = client.lease_chance.below(100);
        let known = client.lease_chance.pick(&client.leases_held).copied();
        let Some(lease) = known.filter(|_| what >= 35) else { return self.grant(ix) };
        let id = i64::try_from(lease).expect("small");
        match what {
            35..65 => {
                // Now and then it is not kept alive again.
                if client.lease_chance.below(4) == 0 {
                    client.leases_held.retain(|other| *other != lease);
                }
                vec![opaque(&KvCommand::LeaseKeepAlive { id })]
            }
            65..72 => {
                client.leases_held.retain(|other| *other != lease);
                // The call of unknown outcome that says what it does: the reply does not tell how many keys it took.
                let at_us = self.now_us;
                let ends = Operation::LeaseRevoke { lease };
                let place = self.expiries.invoked(end_id(lease, true), at_us, ends);
                self.expiries.gave_up(place, 0);
                vec![opaque(&KvCommand::LeaseRevoke { id })]
            }
            72..85 => vec![opaque(&KvCommand::LeaseTimeToLive { id, keys: false })],
            _ => vec![client.hang(lease)],
        }
    }

    fn grant(&mut self, ix: usize) -> Vec<Operation> {
        let client = &mut self.clients[ix];
        client.lives += 1;
        let lease = (client.number as u64 + 1) * 1_000_000 + IDS_FROM + client.lives;
        let ttl_s = client.lease_chance.between(1, 6);
        if client.leases_held.len() >= HELD_MAX {
            client.leases_held.remove(0);
        }
        client.leases_held.push(lease);
        let put = client.hang(lease);
        self.will_expire(lease, ttl_s);
        vec![opaque(&KvCommand::LeaseGrant { id: i64::try_from(lease).expect("small"), ttl_s }), put]
    }

    /// The cluster will end a lease by itself, sooner or later: a call that nobody answers.
    pub fn will_expire(&mut self, lease: u64, ttl_s: u64) {
        let earliest_us = self.now_us + (ttl_s * 1_000_000).saturating_sub(self.clocks_apart_us());
        let ends = Operation::LeaseRevoke { lease };
        let place = self.expiries.invoked(end_id(lease, false), earliest_us, ends);
        // Nobody waits for it.
        self.expiries.gave_up(place, 0);
    }

    /// A client is about to send this. True for a question that is answered without an entry's leave to change anything.
    pub fn note_ask(&mut self, id: CommandId, operation: &Operation) -> bool {
        let Operation::Opaque(bytes) = operation else { return false };
        let Ok(Command::Machine(bytes)) = Command::decode(&bytes.clone().into()) else { return false };
        let at_us = self.now_us;
        let (lease, wish) = match KvCommand::decode(&bytes) {
            Ok(KvCommand::LeaseGrant { id, ttl_s }) => (id, Wish::Grant { ttl_s }),
            Ok(KvCommand::LeaseKeepAlive { id }) => (id, Wish::Keep),
            Ok(KvCommand::LeaseRevoke { id }) => (id, Wish::Revoke),
            Ok(KvCommand::LeaseTimeToLive { id: lease, .. }) => {
                let look = Look { lease: lease_id(lease), at_us, answer: None };
                self.leases.looks.insert(id, look);
                return true;
            }
            _ => return false,
        };
        if let Some(epoch) = self.segments.open_epoch().filter(|_| wish == Wish::Keep) {
            self.leases.asked_in.insert(id, epoch);
        }
        self.leases.asks.insert(id, Ask { lease: lease_id(lease), at_us, wish });
        false
    }

    /// A client believes an answer. `doubtful`: it may be a lie.
    pub fn note_look(&mut self, id: CommandId, bytes: &[u8], doubtful: bool) {
        let Some(look) = self.leases.looks.get_mut(&id).filter(|_| !doubtful) else { return };
        if let Ok(KvReply { body: KvBody::LeaseTimeToLive { ttl_s, .. }, .. }) = KvReply::decode(bytes) {
            look.answer = Some((self.now_us, u64::try_from(ttl_s).ok()));
        }
    }

    /// A command leaves a leader: whether it is a keep-alive.
    pub fn note_proposed(&mut self, epoch: u64, id: CommandId) {
        if self.leases.asks.get(&id).is_some_and(|ask| ask.wish == Wish::Keep) {
            self.leases.proposed.entry(id).or_insert(epoch);
        }
    }

    /// A command runs, in a segment or (0) in the root.
    pub fn note_kept(&mut self, id: CommandId, epoch: u64) {
        if let Some(proposed) = self.leases.proposed.remove(&id) {
            self.coverage.keeps_proposed_in_vain += u64::from(proposed != epoch);
        }
        if let Some(asked) = self.leases.asked_in.remove(&id) {
            self.coverage.keeps_returned += u64::from(asked != epoch);
        }
    }

    /// A replica executed an entry, of a segment or (None) of the root.
    pub fn note_entry(&mut self, ix: usize, position: u64, branch: Option<Branch>) {
        if self.watches_leases() {
            self.leases.executed.entry(ix).or_default().insert(position, branch);
        }
    }

    /// Looks at what a replica's store did since the last time.
    pub fn observe_leases(&mut self, ix: usize) {
        let node = &self.nodes[ix];
        let Some(core) = node.core.as_ref().filter(|_| node.honest) else { return };
        let state = core.state();
        let Some(Notes { restored, turns, .. }) = state.machine().take_notes() else { return };
        // Every entry is one position, and the store is told of each once.
        let (last, log_time_ms) = (state.position().0, state.log_time().0);
        let before = last.saturating_sub(turns.len() as u64);
        let after = node.disk.last_ticket();
        let restored = restored.map(|leases| ReplicaEvent::HoldsLeases { position: before, leases });
        let mut notes: Vec<ReplicaEvent> = restored.into_iter().collect();
        let (mut wrong, may_lie) = (None, self.dials.members_may_lie());
        let executed = self.leases.executed.entry(ix).or_default();
        for (position, turn) in (before + 1..).zip(turns) {
            if turn.position.is_some_and(|told| told != position) {
                wrong = Some(format!("{node:?} executes {:?} where {position} is due", turn.position));
            }
            let log_time_ms = turn.log_time_ms.or((position == last).then_some(log_time_ms));
            // In silence, after a restart, only what was executed before; a liar may have handed it the rest.
            let branch = match executed.get(&position) {
                Some(branch) => *branch,
                None if may_lie => continue,
                None => None,
            };
            notes.push(ReplicaEvent::Leased(judged(position, branch, log_time_ms, turn)));
        }
        if let Some(text) = wrong {
            self.complain(text);
        }
        let at_us = self.now_us;
        let waiting = self.leases.waiting.entry(ix).or_default();
        waiting.extend(notes.into_iter().map(|note| (after, at_us, note)));
        // Alone, a replica executes before its disk knows: what a crash takes back was decided for nobody.
        let known = if self.dials.n == 1 { self.nodes[ix].disk.claimed() } else { after };
        self.settle_leases(ix, known);
    }

    /// Records of a node up to this one are durable.
    pub fn settle_leases(&mut self, ix: usize, through: Ticket) {
        let journal = self.nodes[ix].journal;
        for (after, at_us, note) in self.leases.waiting.remove(&ix).unwrap_or_default() {
            if after <= through {
                self.journals[journal].note(at_us, note);
            } else {
                self.leases.waiting.entry(ix).or_default().push((after, at_us, note));
            }
        }
    }

    /// A process dies with records up to this one on its disk.
    pub fn forget_leases(&mut self, ix: usize, survives: Ticket) {
        self.settle_leases(ix, survives);
        self.leases.waiting.remove(&ix);
    }

    /// A replacement has its vote.
    pub fn note_readmitted(&mut self, id: ReplicaId, incarnation: Incarnation) {
        if self.leases.readmitted.insert((id, incarnation)) {
            self.leases.whole_since_us = self.now_us;
        }
    }

    /// What the judge is told; None where nobody uses leases.
    #[must_use]
    pub fn lease_terms(&mut self) -> Option<Terms> {
        self.watches_leases().then(|| Terms {
            asks: std::mem::take(&mut self.leases.asks),
            looks: std::mem::take(&mut self.leases.looks),
            begun_unix_ms: EPOCH_MS,
            ahead_ms: self.dials.skew_ms + CLOCK_AHEAD_MAX_MS + SLACK_MS,
            apart_us: self.clocks_apart_us(),
            late_us: self.time_goes_on().then_some(LATE_US),
            whole_since_us: self.leases.whole_since_us,
        })
    }

    /// What became of leases, counted.
    pub fn count_leases(&mut self, counts: &check::lease::Counts) {
        let coverage = &mut self.coverage;
        coverage.leases_granted += counts.granted;
        coverage.leases_kept += counts.kept;
        coverage.leases_revoked += counts.revoked;
        coverage.leases_expired += counts.expired;
        coverage.expired_in_segment += counts.expired_in_segment;
        coverage.expired_near_switch += counts.expired_near_switch;
        coverage.expired_elsewhere += counts.expired_elsewhere;
        coverage.leases_restored += counts.restored;
        coverage.lease_log_unseen += counts.unseen;
    }

    /// Leases that are left where all should have run out.
    #[must_use]
    pub fn leases_missing(&self) -> Vec<String> {
        if self.dials.lease_life_pm == 0 || !self.time_goes_on() {
            return Vec::new();
        }
        let cores = self.honest_nodes().filter_map(|ix| Some((ix, self.nodes[ix].core.as_ref()?)));
        cores
            .map(|(ix, core)| (ix, core.state().machine().leases()))
            .filter(|(_, left)| !left.is_empty())
            .map(|(ix, left)| format!("{:?} still has the leases {left:?}", self.nodes[ix]))
            .collect()
    }
}

fn judged(position: u64, branch: Option<Branch>, log_time_ms: Option<u64>, turn: Turn) -> check::lease::Turn {
    let Turn { expiry_ms, ended, begun, revoked, strayed, vanished, .. } = turn;
    check::lease::Turn { position, branch, log_time_ms, expiry_ms, ended, begun, revoked, strayed, vanished }
}

impl Client {
    /// A key on a lease; of three, so that leases take keys from one another.
    fn hang(&mut self, lease: u64) -> Operation {
        let key = format!("lease/{}/life/{}", self.number, self.lease_chance.below(3));
        Operation::Put { key: key.into_bytes(), value: b"kept".to_vec(), lease, want_prev: false }
    }
}
