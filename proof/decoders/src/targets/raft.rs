//! A segment: messages and records as members send and keep them, and two live members, the leader and a follower, to whom
//! the others say damaged things. Who speaks is proved by the link, so nothing here is signed; sealing makes a message's
//! envelope good, its epoch and its term, so that what is in it is looked at.

use super::messages::reads;
use crate::Seal::{Form, Sums};
use crate::meter::bounded;
use crate::steps::{self, Step};
use crate::{Target, Verdict};
use bytes::Bytes;
use dwcp_base::limits::CLOCK_AHEAD_MAX_MS;
use dwcp_base::{Chance, Epoch, Hash, LogTime, Micros, Mutants, Now, Position, ReplicaId, decode, encode};
use dwcp_log::VirtualLog;
use dwcp_raft::{
    Action, Body, Conflict, Entry, Index, Limits, Message, Payload, Place, Raft, RaftNode, Record, Said,
    SegmentSetup, Term, Timing,
};
use std::collections::BTreeMap;
use std::sync::LazyLock;

pub static MESSAGE: Target =
    Target::new("raft_message", run_message, messages, Form(reads::<Message>)).bombs(message_bombs);
pub static RECORD: Target =
    Target::new("raft_record", run_record, records, Form(is_record)).bombs(record_bombs);
pub static LOG: Target =
    Target { damage: steps::damage, ..Target::new("raft_log", run_log, logs, Sums(seal_log)) }.live(
        4,
        "each opens a segment with its log",
        &["raft_record"],
    );
pub static FOLLOWER: Target =
    Target { damage: steps::damage, ..Target::new("raft_follower", run_follower, stories, Sums(seal_story)) }
        .live(2, MEMBER, &["raft_message"]);
pub static LEADER: Target =
    Target { damage: steps::damage, ..Target::new("raft_leader", run_leader, stories, Sums(seal_story)) }
        .live(2, MEMBER, &["raft_message"]);

const MEMBER: &str =
    "each is told to a member with its log, which is checked after every step and opened again";

const EPOCH: Epoch = Epoch(7);
const MEMBERS: u8 = 3;
const WALL_MS: u64 = 1_700_000_000_000;

fn at(mono: Micros) -> Now {
    Now { mono, wall_ms: WALL_MS }
}

fn setup(me: u8) -> SegmentSetup {
    SegmentSetup {
        epoch: EPOCH,
        me: ReplicaId(me),
        members: (0..MEMBERS).map(ReplicaId).collect(),
        first_leader: Some(ReplicaId(1)),
        base: VirtualLog { position: Position(1_000), chain: Hash::of(b"before the segment") },
        timing: Timing::lan(),
        limits: Limits { log_entries_max: 16, ..Limits::default() },
        seed: me.into(),
        mutants: Mutants::default(),
    }
}

/// A member in the middle of its segment.
#[derive(Clone, Debug)]
struct Base {
    raft: Raft,
    records: Vec<Bytes>,
    now: Micros,
}

struct World {
    follower: Base,
    leader: Base,
    /// Who said what to whom, after that moment too.
    heard: Vec<(u8, u8, Bytes)>,
    term: Term,
}

fn batch(time: u64, frames: &[&'static str]) -> Payload {
    let frames = frames.iter().map(|frame| Bytes::from_static(frame.as_bytes())).collect();
    Payload::Batch { time: LogTime(WALL_MS + time), frames }
}

/// Three members elect the second, which has six entries accepted; then a quiet while, another entry, and the leader falls
/// silent until another is elected.
fn world() -> &'static World {
    static WORLD: LazyLock<World> = LazyLock::new(|| {
        let mut now = Micros(1_000_000);
        let open = |me| Raft::open(&setup(me), &[], at(now)).expect("a good setup");
        let mut members: Vec<Raft> = (0..MEMBERS).map(open).collect();
        let mut records: Vec<Vec<Bytes>> = vec![Vec::new(); MEMBERS.into()];
        let mut heard: Vec<(u8, u8, Bytes)> = Vec::new();
        let mut bases = None;
        let mut silent = None;
        for turn in 0..60u64 {
            let (proposes, others) = members.split_at_mut(1);
            let leader = others.iter_mut().chain(proposes).find(|member| member.is_leader());
            if let Some(leader) = leader.filter(|_| turn % 4 == 3 && turn < 36) {
                let _ = leader.propose(at(now), &batch(turn, &["one", "two and a half"]));
                let _ = leader.propose(at(now), &Payload::Tick { time: LogTime(WALL_MS + turn) });
                let _ = leader.read_index(at(now), turn);
            }
            if turn == 20 {
                let base = |me: usize| Base { raft: members[me].clone(), records: records[me].clone(), now };
                bases = Some((base(0), base(1)));
            }
            silent = silent.or((turn == 44).then_some(1));
            // All that is said is heard at once, until there is nothing more to say.
            let mut flying = Vec::new();
            let due = members.iter().map(RaftNode::next_wakeup).min().expect("there are members");
            now = due.max(now.plus(Micros(500)));
            members.iter_mut().for_each(|member| member.tick(at(now)));
            loop {
                for (me, member) in (0..).zip(&mut members) {
                    member.settle(at(now));
                    for action in member.take() {
                        match action {
                            Action::Persist { ticket, record, .. } => {
                                records[usize::from(me)].push(record);
                                member.on_durable(at(now), ticket);
                            }
                            Action::Send { to, message, .. } => flying.push((me, to.0, message)),
                            _ => {}
                        }
                    }
                }
                if flying.is_empty() {
                    break;
                }
                for (from, to, bytes) in flying.drain(..) {
                    if silent != Some(from) {
                        members[usize::from(to)].step(at(now), ReplicaId(from), &bytes);
                    }
                    heard.push((from, to, bytes));
                }
            }
        }
        let (follower, leader) = bases.expect("there was a twentieth turn");
        assert!(leader.raft.is_leader() && follower.raft.commit() > Index(3), "the story went otherwise");
        let term = leader.raft.term();
        World { follower, leader, heard, term }
    });
    &WORLD
}

fn run_message(bytes: &[u8]) -> Verdict {
    let Ok(message) = bounded(bytes, || Message::from_bytes(bytes)) else { return Verdict::Refused };
    assert!(message.to_bytes() == bytes, "a message was accepted that is not its own encoding");
    if let Said::Append { entries, .. } = &message.said {
        for entry in entries {
            let again = Body::new(&entry.payload()).expect("a body that was read");
            assert!(again == entry.body, "a body is not the encoding of its payload");
        }
    }
    Verdict::Accepted
}

fn is_record(bytes: &[u8]) -> bool {
    Record::from_bytes(bytes).is_ok()
}

fn run_record(bytes: &[u8]) -> Verdict {
    let Ok((epoch, record)) = bounded(bytes, || Record::from_bytes(bytes)) else { return Verdict::Refused };
    assert!(record.to_bytes(epoch) == bytes, "a record was accepted that is not its own encoding");
    Verdict::Accepted
}

/// The follower's log, then these records: it begins, and stands by its log, or says why not.
fn run_log(bytes: &[u8]) -> Verdict {
    let base = &world().follower;
    let extra = steps::read(bytes).into_iter().map(|(_, record)| Bytes::from(record));
    let records: Vec<Bytes> = base.records.iter().cloned().chain(extra).collect();
    let log: Vec<u8> = records.concat();
    let opened = bounded(&log, || Raft::open(&setup(0), &records, at(base.now)));
    let Ok(mut raft) = opened else { return Verdict::Refused };
    let due = raft.next_wakeup();
    raft.tick(at(due));
    for (from, _, message) in world().heard.iter().filter(|(_, to, _)| *to == 0) {
        raft.step(at(due), ReplicaId(*from), message);
    }
    raft.settle(at(due));
    raft.take();
    let _ = (raft.entries(Index(1), raft.last().index, 10_000), raft.needed_from(), raft.sealed());
    Verdict::Accepted
}

const WAKE: u8 = 3;
const DURABLE: u8 = 4;
const PROPOSE: u8 = 5;
const SEAL: u8 = 6;
const DISCARD: u8 = 7;
const LINK_DOWN: u8 = 8;
const READ: u8 = 9;
const TRANSFER: u8 = 10;
const TAGS: u8 = 11;

fn run_follower(bytes: &[u8]) -> Verdict {
    play(0, &world().follower, bytes)
}

fn run_leader(bytes: &[u8]) -> Verdict {
    play(1, &world().leader, bytes)
}

struct Live {
    me: u8,
    raft: Raft,
    records: Vec<Bytes>,
    now: Now,
    refused: bool,
    /// Whom it gave its vote, by term.
    votes: BTreeMap<Term, ReplicaId>,
    /// What it said was committed.
    committed: BTreeMap<Index, Place>,
}

fn play(me: u8, base: &Base, bytes: &[u8]) -> Verdict {
    let mut live = Live {
        me,
        raft: base.raft.clone(),
        records: base.records.clone(),
        now: at(base.now),
        refused: false,
        votes: BTreeMap::new(),
        committed: BTreeMap::new(),
    };
    live.observe();
    for (tag, body) in steps::read(bytes) {
        live.take(tag % TAGS, &body);
    }
    live.end();
    Verdict::of(!live.refused)
}

impl Live {
    fn take(&mut self, tag: u8, body: &[u8]) {
        self.now.mono = self.now.mono.plus(Micros(100));
        let before = (self.raft.commit(), self.raft.sealed());
        let number = body.first_chunk::<8>().map_or(0, |field| u64::from_le_bytes(*field));
        match tag {
            from @ 0..=2 => {
                let from = if from == self.me { (from + 1) % MEMBERS } else { from };
                bounded(body, || self.raft.step(self.now, ReplicaId(from), body));
            }
            WAKE => {
                self.now.mono = self.now.mono.max(self.raft.next_wakeup());
                self.raft.tick(self.now);
            }
            DURABLE => self.raft.on_durable(self.now, dwcp_base::Ticket(self.records.len() as u64)),
            PROPOSE => {
                let proposed = decode::<Payload>(body).map(|payload| self.raft.propose(self.now, &payload));
                self.refused |= !matches!(proposed, Ok(Ok(_)));
            }
            SEAL => {
                let sealed = self.raft.seal(self.now);
                assert!(
                    before.1.is_none_or(|first| first == sealed.point),
                    "a second seal says something else"
                );
            }
            DISCARD => {
                let border = self.raft.discard(Index(number));
                assert!(border.index <= before.0, "what is not committed was discarded");
            }
            LINK_DOWN => self.raft.on_link_down(self.now, ReplicaId(body.first().copied().unwrap_or(1))),
            READ => self.refused |= self.raft.read_index(self.now, number).is_err(),
            _ => {
                let to = ReplicaId(body.first().copied().unwrap_or(2));
                self.refused |= self.raft.transfer_leadership(self.now, to).is_err();
            }
        }
        self.raft.settle(self.now);
        self.observe();
        assert!(self.raft.commit() >= before.0, "a commit was taken back");
        assert!(before.1.is_none() || self.raft.sealed() == before.1, "a sealed log moved");
    }

    fn observe(&mut self) {
        for action in self.raft.take() {
            match action {
                Action::Persist { record, .. } => {
                    Record::from_bytes(&record).expect("what it writes down can be read");
                    self.records.push(record);
                }
                Action::Send { to, message, .. } => {
                    assert!(to.0 != self.me && to.0 < MEMBERS, "it speaks to the other members");
                    let message = Message::from_bytes(&message).expect("what it says can be read");
                    if matches!(message.said, Said::VoteReply { granted: true }) {
                        let first = *self.votes.entry(message.term).or_insert(to);
                        assert!(first == to, "two votes in {:?}", message.term);
                    }
                }
                Action::Committed { through } => {
                    if let Some(place) = self.raft.place(through) {
                        self.committed.insert(through, place);
                    }
                }
                Action::Refused { .. } | Action::ReadsFailed { .. } => self.refused = true,
                Action::MarkerCommitted { .. }
                | Action::ReadsReady { .. }
                | Action::LeaderChanged { .. }
                | Action::Replaced { .. }
                | Action::Behind { .. } => {}
            }
        }
        self.raft.check();
    }

    /// What was committed is still there, and a restart has the same log and the same promises.
    fn end(&mut self) {
        for (index, place) in &self.committed {
            let now = self.raft.place(*index);
            assert!(now.is_none_or(|now| now == *place), "a committed entry was replaced");
        }
        let again = Raft::open(&setup(self.me), &self.records, self.now).expect("its own records");
        assert!(again.term() == self.raft.term(), "a restart forgets its term");
        assert!(again.last() == self.raft.last(), "a restart has another log");
        assert!(again.sealed() == self.raft.sealed(), "a restart forgets its seal");
    }
}

fn chance_of(bytes: &[u8]) -> Chance {
    let hash = Hash::of(bytes);
    Chance::new(u64::from_le_bytes(hash.0[..8].try_into().expect("eight bytes")))
}

/// Puts a message into this epoch, and its term where it is looked at: three times in four.
fn seal_message(bytes: &mut Vec<u8>) -> bool {
    let mut chance = chance_of(bytes);
    let Ok(mut message) = decode::<Message>(bytes) else { return false };
    if chance.per_mille(750) {
        message.epoch = EPOCH;
        let term = world().term.0;
        if !(term..term + 3).contains(&message.term.0) {
            message.term = Term(term + chance.below(3));
        }
        // Entries that claim a later clock are put off: then they are not looked at either.
        if let Said::Append { entries, .. } = &mut message.said {
            for entry in entries {
                if entry.body.time().is_some_and(|time| time.0 > WALL_MS + CLOCK_AHEAD_MAX_MS) {
                    let tick = Payload::Tick { time: LogTime(WALL_MS) };
                    entry.body = Body::new(&tick).expect("a tick is a payload");
                }
            }
        }
    }
    *bytes = encode(&message);
    true
}

fn seal_story(bytes: &mut Vec<u8>) -> bool {
    let mut told = steps::read(bytes);
    let mut good = !told.is_empty();
    for (tag, body) in &mut told {
        good &= match *tag % TAGS {
            0..=2 => seal_message(body),
            PROPOSE => reads::<Payload>(body),
            _ => true,
        };
    }
    *bytes = steps::write(&told);
    good
}

/// Records name their epoch.
fn seal_log(bytes: &mut Vec<u8>) -> bool {
    let mut records = steps::read(bytes);
    let mut good = !records.is_empty();
    for (_, record) in &mut records {
        match Record::from_bytes(record) {
            Ok((_, read)) => *record = read.to_bytes(EPOCH).to_vec(),
            Err(_) => good = false,
        }
    }
    *bytes = steps::write(&records);
    good
}

/// Some of each kind that was said, and those that were not.
fn said() -> Vec<(u8, Bytes)> {
    let mut seen: BTreeMap<(u8, u8), usize> = BTreeMap::new();
    let mut said: Vec<(u8, Bytes)> = world()
        .heard
        .iter()
        .filter(|(_, to, bytes)| {
            // The kind stands behind epoch and term.
            let count = seen.entry((*to, bytes[16])).or_default();
            *count += 1;
            *count <= 3
        })
        .map(|(from, _, bytes)| (*from, bytes.clone()))
        .collect();
    let term = world().term;
    let last = world().leader.raft.last();
    let entry = |payload: &Payload| Entry { term, body: Body::new(payload).expect("a good payload") };
    let entries = vec![entry(&Payload::Empty), entry(&batch(3, &["x"])), entry(&Payload::Marker)];
    let rare = [
        Said::Append { prev: last, commit: last.index, entries },
        Said::Refused(Conflict { refused: last.index, index: Index(2), term: Term(1) }),
        Said::Refused(Conflict { refused: Index(1), index: Index::ZERO, term: Term::ZERO }),
        Said::Accepted { matched: last.index },
        Said::TimeoutNow,
        Said::Stale,
        Said::Committed { through: last.index },
        Said::Vote { last, transfer: true },
        Said::PreVote { last },
        Said::VoteReply { granted: true },
        Said::HeartbeatReply { round: 3 },
    ];
    for (from, said_rarely) in (0..).zip(rare) {
        let later = matches!(said_rarely, Said::Vote { .. } | Said::PreVote { .. });
        let term = Term(term.0 + u64::from(later));
        said.push((from % MEMBERS, Message { epoch: EPOCH, term, said: said_rarely }.to_bytes()));
    }
    said
}

fn messages() -> Vec<Vec<u8>> {
    said().into_iter().map(|(_, bytes)| bytes.to_vec()).collect()
}

fn stories() -> Vec<Vec<u8>> {
    let all: Vec<Step> = said().into_iter().map(|(from, bytes)| (from, bytes.to_vec())).collect();
    let after = vec![
        (WAKE, Vec::new()),
        (PROPOSE, encode(&batch(9, &["y"]))),
        (DURABLE, Vec::new()),
        (READ, vec![5; 8]),
        (WAKE, Vec::new()),
    ];
    let mut end = vec![(DURABLE, Vec::new()), (DISCARD, 3u64.to_le_bytes().to_vec()), (LINK_DOWN, vec![1])];
    end.extend([(TRANSFER, vec![2]), (PROPOSE, encode(&Payload::Marker)), (SEAL, Vec::new())]);
    let mut stories: Vec<Vec<u8>> = all
        .iter()
        .map(|step| steps::write(&[vec![(WAKE, Vec::new()), step.clone()], after.clone()].concat()))
        .collect();
    stories.extend(all.iter().map(|step| steps::write(std::slice::from_ref(step))));
    stories.extend(all.chunks(12).map(|some| steps::write(&[some, &after, &end].concat())));
    stories.push(steps::write(&after));
    stories.push(steps::write(&end));
    stories
}

/// One of every kind, some in several shapes.
fn record_steps() -> Vec<Step> {
    let place = world().follower.raft.place(Index(3)).expect("it holds its first entries");
    let hard = dwcp_raft::HardState { term: Term(4), vote: Some(ReplicaId(2)) };
    let border = dwcp_raft::Border { place, hard, sealed: None };
    let last = world().follower.raft.last();
    let next = Entry { term: Term(4), body: Body::new(&batch(1, &["z"])).expect("a good payload") };
    let entries = |first: u64| Record::Entries { first: Index(first), entries: vec![next.clone(); 2] };
    let rest = [
        Record::Hard(hard),
        entries(last.index.0 + 1),
        entries(3),
        Record::Discarded(border),
        Record::Installed(border),
        entries(4),
        Record::Pinned(last.index),
        Record::Sealed(last),
    ];
    rest.iter().map(|record| (0, record.to_bytes(EPOCH).to_vec())).collect()
}

fn records() -> Vec<Vec<u8>> {
    record_steps().into_iter().map(|(_, record)| record).collect()
}

fn record_bombs() -> Vec<Vec<u8>> {
    records().iter().flat_map(|record| crate::mutate::sweep(record, &[4, 8])).collect()
}

fn logs() -> Vec<Vec<u8>> {
    let records = record_steps();
    let mut logs: Vec<Vec<u8>> =
        records.iter().map(|record| steps::write(std::slice::from_ref(record))).collect();
    logs.push(steps::write(&records[..2]));
    logs.push(steps::write(&records[..6]));
    logs
}

fn message_bombs() -> Vec<Vec<u8>> {
    messages().iter().flat_map(|message| crate::mutate::sweep(message, &[4, 8])).collect()
}
