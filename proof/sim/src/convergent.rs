//! State sync as replicas have it: somebody writes convergent values through honest replicas, and what replicas hold and
//! decide is noted for `check::sync`, whose model works out what each value should be.
//!
//! A write is noted where the core takes it, with what its replica had applied at that moment; an acknowledgement when it
//! leaves. Liars and disks that lie about syncs take part and are not written through: what their word is worth is nobody's
//! concern.

use crate::puppet::{Puppet, Trick};
use crate::sync::translate;
use crate::sync::workload::{KEYS, Workload, resolvers, rules};
use crate::world::{Event, Phase, World};
use bytes::Bytes;
use check::sync::judge::Outcome;
use check::sync::{self as say, Note, Place, Stand, Terms};
use dwcp_base::{Chance, Hash, Micros, Ticket, decode, encode};
use dwcp_crdt::{Origin, Restore, Store, VersionVector};
use dwcp_replica::sync::{SyncTiming, SyncWritten};
use dwcp_replica::{
    ClientReply, ClientRequest, Convergent, Input, PeerMessage, Road, SyncReply, SyncRequest, SyncSetup,
};
use dwcp_sync::{Cut, Frame, Received};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// The client number under which convergent values are written.
pub const WRITER: usize = usize::MAX - 1;
/// Bytes of a piece of a store.
const PART_BYTES: usize = 256 * 1024;
/// Clocks farther off than this write nothing: what they sign is taken by the others when its time has come.
const CLOCK_OFF_US: u64 = 210_000;

/// What a replica was known to hold.
#[derive(Debug, Default)]
struct Held {
    applied: VersionVector,
    /// With the frames that are durably here and that the store has yet to come to again, since one was taken from a peer.
    here: VersionVector,
}

impl Held {
    fn of(convergent: &Convergent<'_>) -> Self {
        let applied = convergent.store.applied().clone();
        let mut here = applied.clone();
        let durable = |(origin, _)| (origin, convergent.sync.durable_last(origin));
        here.join(&VersionVector::up_to(applied.iter().map(durable)));
        Self { here, applied }
    }
}

/// By origin.
type Lines = BTreeMap<Origin, Vec<Place>>;

/// What the disk of a replica had of chains when it went down, or was lost.
#[derive(Debug)]
struct Left {
    lines: Lines,
    halted: BTreeMap<Origin, u64>,
}

/// Chains, as far as a replica durably has their frames, each with the place before them.
fn lines(convergent: &Convergent<'_>) -> Lines {
    let sync = convergent.sync;
    let mut lines = Lines::new();
    for (ticket, bytes) in sync.kept() {
        let frame = Received::read(bytes.clone()).expect("what is in line was read before");
        let header = frame.header();
        let before = Place { last: header.first - 1, hash: header.prev.0 };
        let line = lines.entry(header.origin).or_insert_with(|| vec![before]);
        if ticket <= sync.durable() {
            line.push(Place { last: header.last, hash: frame.hash().0 });
        }
    }
    // Of others no frame is kept: what they stand at was dropped, or came with a store, and is durable.
    for (origin, _) in convergent.store.applied().iter() {
        if let Some(head) = sync.head(origin).filter(|head| head.last > 0) {
            lines.entry(origin).or_insert_with(|| vec![Place { last: head.last, hash: head.hash.0 }]);
        }
    }
    lines
}

/// What the world knows of state sync.
#[derive(Debug)]
pub struct Rooms {
    pub chance: Chance,
    workload: Workload,
    next_id: u64,
    pub notes: Vec<Note>,
    /// By node: what it held when it went down, unless its disk is gone.
    asleep: BTreeMap<usize, Held>,
    left: BTreeMap<usize, Left>,
    /// By node: floor and ends it was last seen to know.
    known: BTreeMap<usize, (u64, usize)>,
    /// By node that began with a blank disk: what the others held then, and it has to come to.
    owed: BTreeMap<usize, VersionVector>,
    /// By node: what it learned of floors and ends, and the record that must be durable before that is so.
    learned: BTreeMap<usize, Vec<Learned>>,
    /// By liar and the number it offers it under.
    false_stores: BTreeMap<(usize, u64), Option<FalseStore>>,
    /// Numbers of floors and of ends that were counted.
    floors: BTreeSet<u64>,
    ends: BTreeSet<u64>,
    /// Liars that signed two histories, with the last change that both share; and of which of the two a frame is, by its hash.
    forked: BTreeMap<Origin, u64>,
    branch_of: BTreeMap<Hash, u32>,
    /// By node: of which history it had frames in line last. Where another was decided, a restart has none of them in line and
    /// may still have them in its store.
    branches: BTreeMap<(usize, Origin), u32>,
    /// By node and origin: how far it had come when it was last seen to hold a proof, and stores it had taken by then.
    convicted: BTreeMap<(usize, Origin), (u64, u64)>,
    /// By liar: who said that it does not acknowledge.
    named: BTreeMap<usize, BTreeSet<usize>>,
    /// Liars that the operator has had enough of.
    excluded: BTreeSet<usize>,
}

impl Rooms {
    /// What a replica has applied, and which history of those who signed two.
    fn applied(&self, ix: usize, convergent: &Convergent<'_>) -> say::Applied {
        translate::applied(convergent.store.applied(), &self.branches(ix, convergent))
    }

    fn branch_in_line(&self, origin: Origin, convergent: &Convergent<'_>) -> Option<u32> {
        self.branch_of.get(&convergent.sync.settled(origin)?.hash).copied()
    }

    /// Frames are applied in the order of their chain, so the last one in line says which history a store has.
    pub(crate) fn branches(&self, ix: usize, convergent: &Convergent<'_>) -> BTreeMap<Origin, u32> {
        let applied = convergent.store.applied();
        let parted = self.forked.iter().filter(|(origin, shared)| applied.last(**origin) > **shared);
        let branch = |(origin, _): (&Origin, &u64)| {
            let before = self.branches.get(&(ix, *origin)).copied();
            Some((*origin, self.branch_in_line(*origin, convergent).or(before)?))
        };
        parted.filter_map(branch).collect()
    }

    /// A liar signed this frame, of one of its histories, or of what they share (0).
    pub(crate) fn note_fork(&mut self, frame: &Frame, branch: u32, asked: Note) {
        let header = frame.header();
        let shared = self.forked.entry(header.origin).or_default();
        if branch == 0 {
            *shared = header.last;
        } else {
            self.branch_of.insert(frame.hash(), branch);
        }
        self.notes.push(asked);
    }

    #[must_use]
    pub fn new(keys: u64, root: &Chance) -> Self {
        let chance = root.fork("convergent");
        Self {
            workload: Workload::new(chance.fork("values"), keys, 3),
            chance,
            next_id: 0,
            notes: Vec::new(),
            asleep: BTreeMap::new(),
            left: BTreeMap::new(),
            known: BTreeMap::new(),
            owed: BTreeMap::new(),
            learned: BTreeMap::new(),
            false_stores: BTreeMap::new(),
            floors: BTreeSet::new(),
            ends: BTreeSet::new(),
            forked: BTreeMap::new(),
            branch_of: BTreeMap::new(),
            branches: BTreeMap::new(),
            convicted: BTreeMap::new(),
            named: BTreeMap::new(),
            excluded: BTreeSet::new(),
        }
    }
}

/// Decisions that were executed, and count once they are durable.
#[derive(Debug)]
struct Learned {
    after: Ticket,
    notes: Vec<Note>,
    floor: Option<u64>,
    ends: Vec<u64>,
}

/// A store that is nobody's: a letter of one value was changed, and nothing else.
#[derive(Debug)]
struct FalseStore {
    parts: Vec<Bytes>,
    digest: Hash,
}

/// A store as it is given to another.
pub(crate) fn pieces(store: &Store) -> Vec<Vec<u8>> {
    let mut parts = vec![store.snapshot_head()];
    let mut piece = store.snapshot_piece(None, PART_BYTES);
    while let Some(next) = piece.next {
        parts.push(piece.bytes);
        piece = store.snapshot_piece(Some(&next), PART_BYTES);
    }
    parts.push(piece.bytes);
    parts
}

impl FalseStore {
    /// None where there is no such value.
    fn of(store: &Store) -> Option<Self> {
        let parts = pieces(store);
        // Values of registers and of items of lists are a letter and a number.
        let is_value = |pair: &[u8]| pair[0] == b'v' && pair[1].is_ascii_digit();
        let places = parts.iter().enumerate().flat_map(|(part, bytes)| {
            bytes.windows(2).enumerate().filter(move |(_, w)| is_value(w)).map(move |(at, _)| (part, at + 1))
        });
        for (part, at) in places.collect::<Vec<_>>() {
            let mut parts = parts.clone();
            parts[part][at] ^= 1;
            let mut restore = Restore::new(store.me(), resolvers(), &parts[0]).ok()?;
            let read = parts[1..].iter().try_for_each(|part| restore.piece(part));
            if let (Ok(()), Ok(mut other)) = (read, restore.finish()) {
                let digest = other.digest();
                return Some(Self { parts: parts.into_iter().map(Bytes::from).collect(), digest });
            }
        }
        None
    }
}

/// What somebody had applied who is about to write.
#[derive(Debug)]
pub struct Before {
    applied: say::Applied,
    last: u64,
}

impl World {
    /// What the replicas of this run are told of state sync.
    #[must_use]
    pub fn sync_setup(&self) -> Option<SyncSetup> {
        (self.dials.convergent_ms > 0).then(|| SyncSetup {
            timing: SyncTiming {
                exchange_interval: Micros::from_millis(self.dials.exchange_ms.max(50)),
                ack_patience: match self.dials.ack_patience_ms {
                    0 => SyncTiming::default().ack_patience,
                    ms => Micros::from_millis(ms.max(1_000)),
                },
                // Audits are longer apart than a run is long: nothing is damaged here.
                ..SyncTiming::default()
            },
            resolvers: resolvers(),
            ..SyncSetup::default()
        })
    }

    pub fn begin_convergent(&mut self) {
        if self.dials.convergent_ms > 0 {
            self.schedule(1_000_000, Event::ConvergentBeat);
            self.begin_exclusions();
        }
    }

    /// Somebody writes something through an honest replica, and another is looked at.
    pub fn on_convergent_beat(&mut self) {
        let mean_us = self.dials.convergent_ms * 1_000;
        if !self.last_orders {
            let after = self.rooms.chance.between(mean_us / 4, mean_us * 7 / 4);
            self.schedule(after, Event::ConvergentBeat);
        }
        let honest: Vec<usize> = self.honest_nodes().filter(|ix| self.nodes[*ix].is_up()).collect();
        let at_us = self.now_us;
        let right = |ix: &usize| {
            let drift_us = self.nodes[*ix].clock.drift_ppm.unsigned_abs() * at_us / 1_000_000;
            self.nodes[*ix].clock.offset_us.unsigned_abs() + drift_us <= CLOCK_OFF_US
        };
        let writers: Vec<usize> = honest.iter().copied().filter(right).collect();
        if let Some(ix) = self.rooms.chance.pick(&writers).copied()
            && let Some(convergent) = self.nodes[ix].core.as_ref().and_then(|core| core.convergent())
        {
            let writes = self.rooms.workload.writes(convergent.store);
            let wait =
                if self.rooms.chance.per_mille(300) { self.rooms.chance.between(1, self.dials.n) } else { 0 };
            let timeout_ms = u32::try_from(self.rooms.chance.between(500, 8_000)).expect("seconds");
            self.rooms.next_id += 1;
            let request =
                SyncRequest::Write { writes, wait: u8::try_from(wait).expect("few replicas"), timeout_ms };
            self.request(WRITER, ix, ClientRequest::Sync { id: self.rooms.next_id, request });
        }
        if let Some(ix) = self.rooms.chance.pick(&honest).copied() {
            let all = self.rooms.chance.per_mille(100);
            let some = self.rooms.chance.below(7);
            self.look_at_convergent(ix, |index| all || index % 7 == some, all);
        }
    }

    /// Writes down what a replica shows of some keys.
    fn look_at_convergent(&mut self, ix: usize, which: impl Fn(u64) -> bool, counts: bool) {
        let Some(convergent) = self.nodes[ix].core.as_ref().and_then(|core| core.convergent()) else {
            return;
        };
        let store = convergent.store;
        let keys =
            KEYS.iter().zip(0..).filter(|(_, index)| which(*index)).map(|((key, _), _)| key.as_bytes());
        let views = keys.map(|key| (key.to_vec(), store.get(key).as_ref().map(translate::view))).collect();
        let applied = self.rooms.applied(ix, &convergent);
        let conflicts = counts.then(|| store.conflict_count());
        let node = u32::from(self.nodes[ix].replica.0);
        self.rooms.notes.push(Note::Cut { node, applied, views, conflicts });
    }

    fn origin_of(&self, ix: usize) -> Origin {
        let node = &self.nodes[ix];
        Origin::new(u32::from(node.replica.0), node.incarnation.0)
    }

    /// An honest replica is about to take a write.
    #[must_use]
    pub fn before_write(&self, ix: usize, input: &Input) -> Option<Before> {
        let Input::Client { request: ClientRequest::Sync { request: SyncRequest::Write { .. }, .. }, .. } =
            input
        else {
            return None;
        };
        let node = &self.nodes[ix];
        let convergent = node.core.as_ref().filter(|_| node.honest)?.convergent()?;
        let last = convergent.store.applied().last(self.origin_of(ix));
        Some(Before { last, applied: self.rooms.applied(ix, &convergent) })
    }

    /// It has taken it, or refused it. What is refused, or changes nothing, is left to the world of state sync alone.
    pub fn after_write(&mut self, ix: usize, input: &Input, before: &Before) {
        let Input::Client {
            request: ClientRequest::Sync { request: SyncRequest::Write { writes, .. }, .. },
            ..
        } = input
        else {
            return;
        };
        let me = self.origin_of(ix);
        let Some(convergent) = self.nodes[ix].core.as_ref().and_then(|core| core.convergent()) else {
            return;
        };
        let last = convergent.store.applied().last(me);
        if last == before.last {
            self.coverage.convergent_refused += 1;
            return;
        }
        let clock = convergent.store.latest().0;
        let origin = translate::origin(me);
        let outcome = Outcome::Made { origin, branch: 0, first: before.last + 1, last, clock };
        let seen = Rc::new(before.applied.clone());
        let writes = writes.iter().map(translate::write).collect();
        self.coverage.convergent_frames += 1;
        self.rooms.notes.push(Note::Asked { node: origin.id, seen, writes, outcome });
    }

    /// A reply about convergent values leaves a replica.
    pub fn observe_convergent_reply(&mut self, ix: usize, reply: &ClientReply) {
        let ClientReply::Sync { reply: SyncReply::Written(SyncWritten { road, last, nodes, .. }), .. } =
            reply
        else {
            return;
        };
        if !self.nodes[ix].honest {
            return;
        }
        let (origin, last) = (translate::origin(self.origin_of(ix)), *last);
        match road {
            Road::Nothing => return,
            Road::Log => {
                self.coverage.told_by_log += 1;
                self.rooms.notes.push(Note::Logged { origin, last });
            }
            Road::Gossip => {
                self.coverage.told_by_gossip += 1;
                self.coverage.told_on_several += u64::from(*nodes > 1);
            }
        }
        self.rooms.notes.push(Note::Acknowledged { origin, last });
    }

    /// A replica came back from its disk.
    pub fn observe_convergent_start(&mut self, ix: usize) {
        self.rooms.known.remove(&ix);
        let node = &self.nodes[ix];
        let Some(convergent) = node.core.as_ref().filter(|_| node.honest).and_then(|core| core.convergent())
        else {
            return;
        };
        let me = self.origin_of(ix);
        let last = convergent.sync.head(me).map_or(0, |head| head.last);
        let (node, origin) = (me.id.0, translate::origin(me));
        self.rooms.notes.push(Note::Opened { node, origin, last, frozen: Vec::new() });
    }

    /// Which histories a replica follows, whom it holds proofs against, and what it takes of them all the same.
    pub fn observe_convictions(&mut self, ix: usize) {
        let node = &self.nodes[ix];
        let Some(convergent) = node.core.as_ref().and_then(|core| core.convergent()) else { return };
        for origin in self.rooms.forked.keys().copied().collect::<Vec<_>>() {
            if let Some(branch) = self.rooms.branch_in_line(origin, &convergent) {
                self.rooms.branches.insert((ix, origin), branch);
            }
        }
        if !node.honest {
            return;
        }
        let id = u32::from(node.replica.0);
        let stores = convergent.snapshots_installed;
        for liar in convergent.sync.convicted() {
            let last = convergent.sync.settled(liar).map_or(0, |head| head.last);
            let origin = translate::origin(liar);
            match self.rooms.convicted.insert((ix, liar), (last, stores)) {
                None => {
                    self.coverage.convictions += 1;
                    self.rooms.notes.push(Note::Froze { node: id, origin, at_us: self.now_us });
                }
                // A store that another end made necessary may stand elsewhere.
                Some((before, then)) if last > before && stores == then => {
                    self.rooms.notes.push(Note::Taken { node: id, origin, last });
                }
                Some(_) => {}
            }
        }
    }

    /// A replica names a member that does not acknowledge.
    pub fn observe_withholder(&mut self, ix: usize, member: &str) {
        let is_it = |liar: &usize| {
            let withholds = |puppet: &Puppet| puppet.has(Trick::WithholdAcks);
            self.nodes[*liar].puppet.as_ref().is_some_and(withholds)
                && self.origin_of(*liar).to_string() == member
        };
        let Some(liar) = (0..self.nodes.len()).find(is_it) else { return };
        self.coverage.withholders_named += 1;
        self.rooms.named.entry(liar).or_default().insert(ix);
    }

    /// Enough have named a liar, and the operator knows that it never will.
    pub fn exclude_who_withholds(&mut self, liar: usize) {
        let names = self.rooms.named.get(&liar).map_or(0, BTreeSet::len) as u64;
        if names > self.dials.f && !self.rooms.excluded.contains(&liar) && self.exclude_liar(liar) {
            self.coverage.withholders_excluded += 1;
            self.rooms.excluded.insert(liar);
        }
    }

    /// A process is about to die.
    pub fn observe_convergent_death(&mut self, ix: usize) {
        self.rooms.convicted.retain(|(node, _), _| *node != ix);
        let node = &self.nodes[ix];
        let Some(convergent) = node.core.as_ref().filter(|_| node.honest).and_then(|core| core.convergent())
        else {
            return;
        };
        let open = convergent.sync.endings();
        let settled = |origin: Origin| Some((origin, convergent.sync.settled(origin)?.last));
        let halted = open.into_iter().filter(|origin| convergent.sync.is_frozen(*origin));
        let halted = halted.filter_map(settled).collect();
        let (held, left) = (Held::of(&convergent), Left { lines: lines(&convergent), halted });
        let coverage = &mut self.coverage;
        coverage.frames_by_log += convergent.frames_ordered;
        coverage.frames_by_both += convergent.frames_ordered_late;
        coverage.stores_fetched += convergent.snapshots_installed;
        coverage.floors_missed += convergent.floors_missed;
        coverage.fallbacks += convergent.fallbacks;
        self.rooms.asleep.insert(ix, held);
        self.rooms.left.insert(ix, left);
    }

    /// Its disk is gone, with what it wrote and showed nobody.
    pub fn observe_convergent_loss(&mut self, ix: usize) {
        self.rooms.asleep.remove(&ix);
        self.rooms.owed.remove(&ix);
        if self.dials.convergent_ms > 0 && self.nodes[ix].honest {
            let mut owed = VersionVector::new();
            self.each_held(|_, held| held.applied.clone()).iter().for_each(|applied| owed.join(applied));
            self.rooms.owed.insert(ix, owed);
            let origin = translate::origin(self.origin_of(ix));
            self.rooms.notes.push(Note::Wiped { origin });
        }
    }

    /// Members whose new disk has not yet what the others held when the old one was lost, as far as that counts: were theirs lost
    /// now, nobody might have it. While the end of an origin is not decided nobody knows what counts.
    #[must_use]
    pub fn owing(&self) -> BTreeSet<usize> {
        let owes = |(ix, owed): (&usize, &VersionVector)| {
            let core = self.nodes[*ix].core.as_ref();
            let Some((core, convergent)) = core.and_then(|core| Some((core, core.convergent()?))) else {
                return true;
            };
            let cuts = core.control().ends.iter().filter_map(|end| decode::<Cut>(end).ok());
            let ends: BTreeMap<Origin, u64> = cuts.map(|cut| (cut.origin, cut.last)).collect();
            let applied = convergent.store.applied();
            let lacks = |origin: Origin| {
                let due = owed.last(origin).min(ends.get(&origin).copied().unwrap_or(u64::MAX));
                applied.prefix(origin) < due
            };
            !convergent.sync.endings().is_empty() || owed.iter().any(|(origin, _)| lacks(origin))
        };
        self.rooms.owed.iter().filter(|each| owes(*each)).map(|(ix, _)| *ix).collect()
    }

    /// State sync goes on without an honest replica: what it has shown nobody is lost, by order.
    pub fn observe_exclusion(&mut self, ix: usize) {
        let origin = translate::origin(self.origin_of(ix));
        self.rooms.notes.push(Note::Wiped { origin });
    }

    /// What an honest replica has learned of floors and ends since it was last looked at; its last record is `after`.
    pub fn observe_decisions(&mut self, ix: usize, after: Ticket) {
        let node = &self.nodes[ix];
        let Some(core) = node.core.as_ref().filter(|_| node.honest && self.dials.convergent_ms > 0) else {
            return;
        };
        let Some(convergent) = core.convergent() else { return };
        let floor = convergent.sync.newest_floor();
        let number = floor.map_or(0, |floor| floor.number);
        let ends = &core.control().ends;
        let (known_floor, known_ends) = self.rooms.known.get(&ix).copied().unwrap_or_default();
        if (number, ends.len()) == (known_floor, known_ends) {
            return;
        }
        let id = u32::from(node.replica.0);
        let mut learned = Learned { after, notes: Vec::new(), floor: None, ends: Vec::new() };
        if let Some(floor) = floor.filter(|_| number > known_floor) {
            let new = !self.rooms.floors.contains(&number);
            learned.floor = new.then_some(number);
            let members = floor.written.keys().copied().map(translate::origin).collect();
            let holds = if new { self.holdings() } else { Vec::new() };
            let covers = translate::applied(&floor.seen, &BTreeMap::new());
            learned.notes.push(Note::Floor { node: id, number, covers, members, holds });
        }
        for (nth, end) in (0..).zip(ends).skip(known_ends) {
            let Ok(cut) = decode::<Cut>(end) else { continue };
            let new = !self.rooms.ends.contains(&nth);
            learned.ends.extend(new.then_some(nth));
            self.coverage.forks_ended += u64::from(new && self.rooms.forked.contains_key(&cut.origin));
            let place = Place { last: cut.last, hash: cut.hash.0 };
            let origin = translate::origin(cut.origin);
            let stands = if new { self.stands(cut.origin) } else { Vec::new() };
            learned.notes.push(Note::Decided { node: id, nth, origin, place, stands });
            learned.notes.push(Note::Ended { node: id, origin, last: cut.last });
        }
        self.rooms.known.insert(ix, (number, ends.len()));
        self.rooms.floors.extend(learned.floor);
        self.rooms.ends.extend(learned.ends.iter().copied());
        self.rooms.learned.entry(ix).or_default().push(learned);
        self.settle_decisions(ix, self.nodes[ix].disk.claimed());
    }

    /// Records of a node up to this one are durable.
    pub fn settle_decisions(&mut self, ix: usize, through: Ticket) {
        for learned in self.rooms.learned.remove(&ix).unwrap_or_default() {
            if learned.after <= through {
                self.coverage.floors_committed += u64::from(learned.floor.is_some());
                self.coverage.ends_decided += learned.ends.len() as u64;
                self.rooms.notes.extend(learned.notes);
            } else {
                self.rooms.learned.entry(ix).or_default().push(learned);
            }
        }
    }

    /// What was not durable when the power failed did not happen: another may be decided in its place.
    pub fn forget_decisions(&mut self, ix: usize) {
        for learned in self.rooms.learned.remove(&ix).unwrap_or_default() {
            if let Some(number) = learned.floor {
                self.rooms.floors.remove(&number);
            }
            for nth in learned.ends {
                self.rooms.ends.remove(&nth);
            }
        }
    }

    /// Each honest replica that has a disk, awake or not, with what it holds.
    fn each_held<T>(&self, take: impl Fn(usize, &Held) -> T) -> Vec<T> {
        let of = |ix: usize| {
            let core = self.nodes[ix].core.as_ref();
            if let Some(convergent) = core.and_then(|core| core.convergent()) {
                return Some(take(ix, &Held::of(&convergent)));
            }
            // Until it has executed again what it had, its disk has more than it knows. A new disk has nothing.
            let asleep = self.rooms.asleep.get(&ix).map(|held| take(ix, held));
            asleep.or_else(|| core.map(|_| take(ix, &Held::default())))
        };
        self.honest_nodes().filter_map(of).collect()
    }

    fn holdings(&self) -> Vec<(check::sync::Origin, check::sync::Applied)> {
        self.each_held(|ix, held| {
            (translate::origin(self.origin_of(ix)), translate::applied(&held.here, &BTreeMap::new()))
        })
    }

    /// How each honest replica stands with an origin. What one said whose disk is gone counts until it is replaced by order, so
    /// it stands where it stood then.
    fn stands(&self, origin: Origin) -> Vec<Stand> {
        let of = |ix: usize| {
            let node = &self.nodes[ix];
            let core = node.core.as_ref();
            let (line, settled, is_halted) = match core.and_then(|core| Some((core, core.convergent()?))) {
                Some((core, convergent)) => {
                    // The first to hear it has just been told where it ends, and is no longer waiting for that.
                    let mut ends = core.control().ends.iter().filter_map(|end| decode::<Cut>(end).ok());
                    let is_told = ends.any(|cut| cut.origin == origin);
                    let settled = convergent.sync.settled(origin).map_or(0, |place| place.last);
                    (
                        lines(&convergent).remove(&origin),
                        settled,
                        is_told || convergent.sync.is_frozen(origin),
                    )
                }
                None => {
                    let left = self.rooms.left.get(&ix)?;
                    let settled = left.halted.get(&origin).copied();
                    (left.lines.get(&origin).cloned(), settled.unwrap_or(u64::MAX), settled.is_some())
                }
            };
            Some(Stand {
                node: u32::from(node.replica.0),
                line: line.unwrap_or_default(),
                settled,
                is_halted,
            })
        };
        self.honest_nodes().filter_map(of).collect()
    }

    /// What honest replicas have not come to in state sync, with nobody writing any more.
    #[must_use]
    pub fn convergent_missing(&self) -> Vec<String> {
        let mut missing = Vec::new();
        if self.dials.convergent_ms == 0 {
            return missing;
        }
        let mut first: Option<(VersionVector, u64, Hash)> = None;
        for ix in self.honest_nodes() {
            let node = &self.nodes[ix];
            let Some(convergent) = node.core.as_ref().and_then(|core| core.convergent()) else {
                missing.push(format!("{node:?} takes no part in state sync"));
                continue;
            };
            let needs: Vec<_> = convergent.sync.needs().collect();
            let endings = convergent.sync.endings();
            let held = convergent.store.held_count();
            if !needs.is_empty() || !endings.is_empty() || held > 0 {
                let lacks: BTreeSet<String> =
                    convergent.store.missing().map(|missing| format!("{missing:?}")).collect();
                let floor = convergent.sync.newest_floor().map_or(0, |floor| floor.number);
                missing.push(format!(
                    "{node:?} needs {needs:?}, waits for the end of {endings:?}, holds back {held} for {lacks:?}, knows floor \
                     {floor}"
                ));
                continue;
            }
            let mut store = convergent.store.clone();
            let here = (store.applied().clone(), store.floor_number(), store.digest());
            match &first {
                None => first = Some(here),
                Some(first) if *first != here => {
                    missing
                        .push(format!("{node:?} stands at {:?} floor {}, others elsewhere", here.0, here.1));
                }
                Some(_) => {}
            }
        }
        missing
    }

    /// The last word of each honest replica, for the judge.
    pub fn note_convergent_end(&mut self) {
        for ix in self.honest_nodes().collect::<Vec<_>>() {
            self.look_at_convergent(ix, |_| true, true);
            let node = u32::from(self.nodes[ix].replica.0);
            let Some(convergent) = self.nodes[ix].core.as_ref().and_then(|core| core.convergent()) else {
                continue;
            };
            let mut store = convergent.store.clone();
            let note = Note::End {
                node,
                applied: self.rooms.applied(ix, &convergent),
                digest: store.digest().0,
                floor: store.floor_number(),
                waiting: store.held_count() as u64,
                needs: convergent.sync.needs().count() as u64,
            };
            self.rooms.notes.push(note);
            self.observe_convergent_death(ix);
        }
    }

    /// What a liar says in place of its own store, if it lies about that.
    pub fn spoil_store(&mut self, ix: usize, bytes: Bytes) -> Bytes {
        let lies = self.nodes[ix].puppet.as_ref().is_some_and(|puppet| puppet.has(Trick::FalseStore));
        let Some(message) = lies.then(|| decode::<PeerMessage>(&bytes).ok()).flatten() else { return bytes };
        let lie = match message {
            PeerMessage::SyncOffer { id, base, .. } => {
                let made = self.nodes[ix].core.as_ref().and_then(|core| core.convergent());
                let known = self.rooms.false_stores.entry((ix, id));
                let made =
                    known.or_insert_with(|| made.and_then(|convergent| FalseStore::of(convergent.store)));
                made.as_ref().map(|FalseStore { parts, digest }| PeerMessage::SyncOffer {
                    id,
                    parts: u32::try_from(parts.len()).expect("few parts"),
                    bytes: parts.iter().map(|part| part.len() as u64).sum(),
                    digest: *digest,
                    base,
                })
            }
            PeerMessage::SyncPart { id, part, .. } => {
                let made = self.rooms.false_stores.get(&(ix, id)).and_then(Option::as_ref);
                let bytes = made.and_then(|made| made.parts.get(usize::try_from(part).ok()?)).cloned();
                bytes.map(|bytes| PeerMessage::SyncPart { id, part, bytes })
            }
            _ => None,
        };
        let Some(lie) = lie else { return bytes };
        self.coverage.false_stores += 1;
        if let Some(puppet) = self.nodes[ix].puppet.as_mut() {
            puppet.plays(Trick::FalseStore);
        }
        Bytes::from(encode(&lie))
    }

    /// What the judge of state sync says of this run.
    #[must_use]
    pub fn judge_convergent(&self) -> check::Findings {
        let Phase::Calm { since_us } = self.phase else { return check::Findings::default() };
        let (n, f) = (self.dials.n, self.dials.f);
        let small = |value: u64| u32::try_from(value).expect("few replicas");
        let liars = (0..self.nodes.len()).filter(|ix| self.nodes[*ix].puppet.is_some());
        let terms = Terms {
            nodes: small(n),
            faults: small(f),
            quorum: small((n + f) / 2 + 1),
            liars: liars.map(|ix| u32::from(self.nodes[ix].replica.0)).collect(),
            rules: rules(),
            calm_at_us: since_us,
            slack_us: 0,
        };
        check::sync::judge(&self.rooms.notes, &terms)
    }
}
