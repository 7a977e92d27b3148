//! The same bursts through all sides in turn, and what each took. Also the proof that they did the same.

use crate::bare::{self, Bare};
use crate::clock::processor;
use crate::load::{Clients, genesis};
use crate::whole::{self, Whole};
use crate::world::{Arrival, Node, Seen, World};
use anyhow::ensure;
use bytes::Bytes;
use dwcp_base::{Hash, Hasher, Micros, ReplicaId, encode};
use dwcp_replica::Settings;
use dwcp_state::kv::Kv;
use dwcp_state::{Outcome, SESSION_BUCKETS, State};
use std::time::Duration;

/// The anchor interval of a datacenter.
const DIGEST_INTERVAL: Micros = Micros::from_millis(100);

/// One kind of load.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Each has one frame under way.
    pub clients: usize,
    /// Commands in a frame.
    pub frame: usize,
    /// Operations in a second of the nodes' clock: how many share one Anchor, one heartbeat.
    pub rate: u64,
    /// Whether whoever takes a frame verifies its signature.
    pub checked: bool,
    /// Milliseconds of the nodes' clock in one round.
    pub round_ms: u64,
}

impl Load {
    fn operations_of_a_burst(&self) -> u64 {
        (self.clients * self.frame) as u64
    }

    /// Of a round; each is one entry.
    pub fn bursts(&self) -> usize {
        (self.rate * self.round_ms / 1_000 / self.operations_of_a_burst()).max(1) as usize
    }

    fn interval(&self) -> Micros {
        Micros(self.operations_of_a_burst() * 1_000_000 / self.rate)
    }

    pub fn operations_of_a_round(&self) -> u64 {
        self.bursts() as u64 * self.operations_of_a_burst()
    }
}

/// What one side took in one round.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spent {
    /// From a burst's arrival until nothing was under way.
    pub bursts: Duration,
    /// Between bursts: heartbeats, and at a whole replica Ticks, Anchors, the root and whatever else waits for time.
    pub between: Duration,
    /// At the bare side only: digests of the states as often as a whole replica makes them. A snapshot would make them less
    /// often, of as many versions; what they cost is in neither of the two above.
    pub digests: Duration,
    /// How many bursts of inputs nodes took while frames were under way.
    pub steps: u64,
    pub anchors: u64,
}

/// What a side did since it began, to be equal at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    pub operations: u64,
    pub refused: Vec<String>,
    /// Over sessions, numbers and results in the order of the replies, without positions.
    pub results: Hash,
    /// Of every version of every key at each node.
    pub stores: Vec<Hash>,
    pub revisions: Vec<u64>,
    pub executed: Vec<u64>,
    /// Whether all nodes have the same state to the last bit: sessions, log time and positions included.
    pub one_state: bool,
}

/// The three that are driven in turn.
pub const SIDES: usize = 3;
const BARE: usize = 0;
const WHOLE: usize = 1;
const LEAN: usize = 2;

pub struct Sides {
    pub load: Load,
    clients: Clients,
    leader: ReplicaId,
    pub bare: World<Bare>,
    pub whole: World<Whole>,
    /// Whole replicas that keep no copies of their states for snapshots.
    lean: World<Whole>,
    told: [(u64, Hash); SIDES],
    refused: [Vec<String>; SIDES],
}

impl Sides {
    /// All of them with all sessions open.
    pub fn new(load: Load) -> anyhow::Result<Self> {
        let genesis = genesis();
        let clients = Clients::new(&genesis, load.clients, load.checked);
        let (whole, leader) = whole::world(&genesis, &clients, Settings::lan())?;
        let (lean, other) = whole::world(&genesis, &clients, without_snapshots())?;
        let mut bare = bare::world(&genesis, &clients, leader);
        bare.pass(whole.now.since(bare.now));
        ensure!(
            leader == other && bare.nodes[usize::from(leader.0)].raft.is_leader(),
            "they have different leaders"
        );
        let (told, refused) = ([(0, Hash::ZERO); SIDES], [const { Vec::new() }; SIDES]);
        let mut sides = Self { load, clients, leader, bare, whole, lean, told, refused };
        let opens = [sides.clients.opens(sides.whole.clock().wall_ms)];
        for side in 0..SIDES {
            sides.drive(side, &opens, Micros::ZERO);
        }
        sides.rest();
        sides.agree()?;
        Ok(sides)
    }

    fn drive(&mut self, side: usize, bursts: &[Vec<Bytes>], interval: Micros) -> Spent {
        match side {
            BARE => drive(&mut self.bare, self.leader, bursts, interval),
            WHOLE => drive(&mut self.whole, self.leader, bursts, interval),
            _ => drive(&mut self.lean, self.leader, bursts, interval),
        }
    }

    /// One round of each: bare, whole, whole without copies; `first` of them goes ahead.
    pub fn round(&mut self, first: usize) -> [Spent; SIDES] {
        let bursts = self.begin_round();
        let mut spent = [Spent::default(); SIDES];
        for turn in 0..SIDES {
            let side = (first + turn) % SIDES;
            spent[side] = self.drive(side, &bursts, self.load.interval());
        }
        self.rest();
        spent
    }

    /// The bursts of a round. One goes ahead and is not timed: after a rest the leader writes a Tick behind the first entry,
    /// from then on one every interval, which falls between bursts.
    fn begin_round(&mut self) -> Vec<Vec<Bytes>> {
        let first = [self.clients.burst(self.load.frame)];
        for side in 0..SIDES {
            self.drive(side, &first, Micros::ZERO);
        }
        (0..self.load.bursts()).map(|_| self.clients.burst(self.load.frame)).collect()
    }

    /// A round that nobody times, with what the bare side sends and writes kept.
    pub fn watched_round(&mut self) -> Seen {
        self.bare.seen = Some(Seen::default());
        self.round(BARE);
        self.bare.seen.take().unwrap_or_default()
    }

    /// Time passes until everybody knows all; what was answered is counted. Not part of any figure.
    fn rest(&mut self) {
        let time = Micros::from_millis(500);
        self.bare.pass(time);
        self.whole.pass(time);
        self.lean.pass(time);
        let heard = [self.bare.heard(), self.whole.heard(), self.lean.heard()];
        for (at, (replies, refused)) in heard.into_iter().enumerate() {
            self.refused[at].extend(refused);
            for reply in replies {
                let (operations, results) = &mut self.told[at];
                *operations += reply.results.len() as u64;
                let mut hasher = Hasher::new("layer bench results");
                hasher.update(&results.0).update(&reply.session.0).update(&reply.first.to_le_bytes());
                for result in &reply.results {
                    hasher.field(&encode(&result.outcome));
                    if let Outcome::Refused(refusal) = &result.outcome {
                        self.refused[at].push(refusal.to_string());
                    }
                }
                *results = hasher.finish();
            }
        }
    }

    /// # Errors
    /// They did not do the same, or something went wrong at all of them.
    pub fn agree(&self) -> anyhow::Result<Done> {
        let bare = self.done(BARE, self.bare.nodes.iter().map(|node| node.state.clone()));
        let states = |world: &World<Whole>| -> Vec<State<Kv>> {
            world.nodes.iter().map(|node| node.replica.state().clone()).collect()
        };
        for (side, world) in [(WHOLE, &self.whole), (LEAN, &self.lean)] {
            let done = self.done(side, states(world));
            ensure!(bare == done, "they did not do the same: {bare:?} and, with the log, {done:?}");
        }
        ensure!(bare.refused.is_empty() && bare.one_state, "something went wrong everywhere: {bare:?}");
        Ok(bare)
    }

    fn done(&self, side: usize, states: impl IntoIterator<Item = State<Kv>>) -> Done {
        let (operations, results) = self.told[side];
        let mut states: Vec<State<Kv>> = states.into_iter().collect();
        let executed = states.iter().map(State::commands_executed).collect();
        let revisions = states.iter().map(|state| state.machine().revision()).collect();
        let digests: Vec<Vec<Hash>> = states.iter_mut().map(State::chunk_digests).collect();
        let one_state = digests.windows(2).all(|pair| pair[0] == pair[1]);
        // What comes first is the control state, sessions and the store's clock: they know positions and log time, and a
        // segment has Ticks of its own.
        let versions =
            |digests: &Vec<Hash>| dwcp_state::state_digest(&digests[1 + SESSION_BUCKETS as usize + 1..]);
        let stores = digests.iter().map(versions).collect();
        Done {
            operations,
            refused: self.refused[side].clone(),
            results,
            stores,
            revisions,
            executed,
            one_state,
        }
    }
}

/// Snapshots so rare that none is near in any run.
fn without_snapshots() -> Settings {
    let mut settings =
        Settings { snapshot_log_bytes: 1 << 30, history_bytes_max: 2 << 30, ..Settings::lan() };
    settings.segment.limits.log_bytes_max = 8 << 30;
    settings
}

/// Bursts at this distance from one another.
fn drive<N: Node>(world: &mut World<N>, leader: ReplicaId, bursts: &[Vec<Bytes>], interval: Micros) -> Spent {
    let (anchors, steps_before) = (world.anchors, world.steps);
    let mut spent = Spent::default();
    let mut between_steps = 0;
    let mut digested = world.now;
    let mut begun = processor();
    for burst in bursts {
        let steps = world.steps;
        world.pass(interval);
        between_steps += world.steps - steps;
        let arrived = processor();
        for (client, bytes) in (0..).zip(burst) {
            world.hand(leader, Arrival::Frame { client, bytes: bytes.clone() });
        }
        world.settle();
        let settled = processor();
        spent.between += arrived - begun;
        spent.bursts += settled - arrived;
        begun = settled;
        if world.now.since(digested) >= DIGEST_INTERVAL {
            digested = digested.plus(DIGEST_INTERVAL);
            world.nodes.iter_mut().for_each(Node::digest);
            begun = processor();
            spent.digests += begun - settled;
        }
    }
    spent.steps = world.steps - steps_before - between_steps;
    spent.anchors = world.anchors - anchors;
    spent
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_do_the_same(load: Load) {
        let mut sides = Sides::new(load).unwrap();
        let mut anchors = 0;
        for round in 0..3 {
            let [bare, whole, lean] = sides.round(round);
            assert_eq!(bare.anchors, 0);
            assert_eq!(whole.anchors, lean.anchors);
            assert_eq!([bare.steps; 2], [whole.steps, lean.steps], "as many bursts of messages");
            assert!(bare.digests > Duration::ZERO && bare.bursts > Duration::ZERO);
            assert!(whole.bursts > Duration::ZERO && lean.bursts > Duration::ZERO);
            anchors += whole.anchors;
        }
        assert_eq!(anchors, 3 * load.round_ms / 100, "one each 100 ms, inside the rounds");
        let done = sides.agree().unwrap();
        let writes = 3 * (load.operations_of_a_round() + (load.clients * load.frame) as u64);
        assert_eq!(done.operations, writes + load.clients as u64, "the sessions' opens among them");
        assert_eq!(done.executed, [done.operations; 3], "each once");
        assert_eq!(done.stores, vec![done.stores[0]; 3]);
        assert_eq!(done.revisions, [1 + writes; 3], "each write is one revision");
        // The comparison sees a difference: one frame more at one side.
        let more = [sides.clients.burst(load.frame)];
        sides.drive(WHOLE, &more, Micros::ZERO);
        sides.rest();
        assert!(sides.agree().unwrap_err().to_string().starts_with("they did not do the same"));
    }

    #[test]
    fn all_sides_execute_the_same_frames_of_one() {
        all_do_the_same(Load { clients: 5, frame: 1, rate: 1_000, checked: true, round_ms: 400 });
    }

    #[test]
    fn all_sides_execute_the_same_frames_of_many_whose_signatures_nobody_checks() {
        all_do_the_same(Load { clients: 3, frame: 64, rate: 9_600, checked: false, round_ms: 400 });
    }
}
