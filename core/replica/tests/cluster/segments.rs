//! What may befall a segment while it is open and while it ends, each in a story of its own: leadership that moves under a
//! Marker, an older command that comes back after a younger one ran, a log that nobody can anchor, a replica whose
//! memory is another one.

use super::faulty::{self, Fault};
use super::*;
use dwcp_base::Epoch;
use dwcp_base::limits::CLOCK_AHEAD_MAX_MS;
use dwcp_replica::raft::{Kind, Message as RaftMessage, Said};
use dwcp_replica::{Label, PeerMessage, ProtocolName};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

fn crash(n: u8) -> Policy {
    Policy::new(Trust::Crash, Quorum::new(n.into(), None).unwrap())
}

/// What members of a segment say to each other, if it is that.
fn of_segment(bytes: &Bytes) -> Option<(Epoch, RaftMessage)> {
    // The discriminant of a message between members.
    if bytes.first() != Some(&9) {
        return None;
    }
    let Ok(PeerMessage::Segment { epoch, bytes }) = dwcp_base::decode(bytes) else { return None };
    Some((epoch, RaftMessage::from_bytes(&bytes).unwrap()))
}

impl Cluster {
    /// Rounds go by until it is so.
    fn wait(&mut self, what: &str, mut is_so: impl FnMut(&mut Self) -> bool) {
        let until = self.now.plus(Micros::from_millis(30_000));
        while !is_so(self) {
            self.one_round();
            assert!(self.now < until, "in vain: {what}; {:#?}", self.status(0));
        }
    }

    /// Every change of a key that was executed there, in order.
    fn changes(&self, at: u8) -> Vec<(String, Vec<u8>)> {
        let machine = self.nodes[usize::from(at)].replica.as_ref().unwrap().state().machine();
        let events = machine.events_since(machine.compacted() + 1).unwrap();
        events
            .map(|event| (String::from_utf8(event.kv.key.to_vec()).unwrap(), event.kv.value.to_vec()))
            .collect()
    }

    /// What this node told of this command, the same each time it did.
    fn results_of(&self, node: u8, sequence: u64) -> Option<&ExecutedReply> {
        let told: Vec<_> = self.executed(node).into_iter().filter(|reply| reply.first == sequence).collect();
        assert!(told.windows(2).all(|pair| pair[0].results == pair[1].results), "{told:#?}");
        told.first().copied()
    }
}

/// What the story about the Marker lets pass between members.
#[derive(Default)]
struct UnderTheMarker {
    /// From here on what its leader writes reaches only some.
    armed: Cell<bool>,
    marker_left: Cell<bool>,
}

/// A cluster whose segment is to end in order. The leader's last entries, a command and the Marker, have come to `reached`
/// and were not acknowledged; then leadership moves to replica 2.
fn leadership_moves_under_a_marker(reached: &'static [u8]) {
    const LEADER: u8 = 1;
    const NEXT: u8 = 2;
    let mut cluster = Cluster::with(4, crash(4), NetworkMode::Hybrid);
    cluster.run(500);
    let mut session = Session::open(&mut cluster, 3);
    assert_eq!(cluster.leader(3), Some(LEADER));
    // Commits that take long make the others patient with a Marker: it is not the time that ends this segment.
    let acknowledged = Rc::new(Cell::new(0_u32));
    cluster.twist = Some(Box::new({
        let acknowledged = Rc::clone(&acknowledged);
        move |_, to, bytes| {
            let accepts =
                of_segment(&bytes).is_some_and(|(_, said)| matches!(said.said, Said::Accepted { .. }));
            acknowledged.set(acknowledged.get() + u32::from(accepts && to == LEADER));
            let lost = accepts && to == LEADER && !acknowledged.get().is_multiple_of(8);
            (!lost).then_some(bytes)
        }
    }));
    for index in 0..20 {
        let frame = session.put(&format!("slow{index}"), b"v");
        (0..4).for_each(|id| cluster.send(id, &frame));
        cluster.run(400);
    }
    let story = Rc::new(UnderTheMarker::default());
    let term = cluster.status(LEADER).segment.unwrap().term;
    cluster.twist = Some(Box::new({
        let story = Rc::clone(&story);
        move |from, to, bytes| {
            let Some((_, message)) = of_segment(&bytes).filter(|_| story.armed.get()) else {
                return Some(bytes);
            };
            let passes = match &message.said {
                Said::Append { entries, .. } => {
                    let ends = entries.iter().any(|entry| entry.body.kind() == Kind::Marker);
                    story.marker_left.set(story.marker_left.get() || ends);
                    // A Marker that its own leader proposes does not get through either.
                    let own = ends && message.term > term;
                    !(own && reached.is_empty())
                        && (from != LEADER || entries.is_empty() || reached.contains(&to))
                }
                Said::Accepted { .. } => to != LEADER,
                _ => true,
            };
            passes.then_some(bytes)
        }
    }));
    story.armed.set(true);
    let epoch = cluster.status(0).epoch;
    let under_way = session.put("under way", b"1");
    cluster.send(3, &under_way);
    cluster.order_mode(0, NetworkMode::Internet, None);
    cluster.wait("the Marker leaves", |_| story.marker_left.get());
    // The leader hands over: what it says is believed, for it leads.
    let bytes = RaftMessage { epoch, term, said: Said::TimeoutNow }.to_bytes();
    let bytes = Bytes::from(dwcp_base::encode(&PeerMessage::Segment { epoch, bytes }));
    let from = ReplicaId(LEADER);
    cluster.run(1);
    let moved_at = cluster.now;
    cluster.nodes[usize::from(NEXT)].inbox.push_back(Input::Peer {
        from,
        incarnation: Incarnation(0),
        bytes,
    });
    let led = |event: &Event| matches!(event, Event::LeaderChanged { epoch: of, leader: Some(leader), .. } if *of == epoch && leader.0 == NEXT);
    cluster.wait("another leads", |cluster| (0..4).any(|id| cluster.events(id, led) > 0));
    let later = session.put("later", b"2");
    cluster.send(3, &later);
    let closed = |event: &Event| matches!(event, Event::SegmentClosed { epoch: of, .. } if *of == epoch);
    cluster.wait("the switch ends", |cluster| (0..4).all(|id| cluster.events(id, closed) == 1));
    let took = cluster.now.since(moved_at);
    assert!(took < Micros::from_millis(100), "nobody waits for a Marker that cannot come: {} us", took.0);
    cluster.twist = None;
    cluster.run(1_000);
    cluster.assert_one_log(&[0, 1, 2, 3]);
    let by_reports = |event: &Event| matches!(event, Event::SegmentClosed { epoch: of, forced: false, marker: false, .. } if *of == epoch);
    for id in 0..4 {
        assert_eq!(cluster.events(id, by_reports), 1, "replica {id}: by the collection, as it was ordered");
        let changes = cluster.changes(id);
        assert_eq!(changes.len(), 22, "each once: {changes:?}");
        assert_eq!(changes[20..], [("under way".into(), b"1".to_vec()), ("later".into(), b"2".to_vec())]);
    }
    for sequence in 1..=22 {
        let told = cluster.results_of(3, sequence).expect("every command is answered");
        assert!(matches!(told.results[0].outcome, Outcome::Done(_)), "{told:?}");
    }
    assert_eq!((cluster.status(3).protocol, cluster.orders_done()), (ProtocolName::Pbft, 1));
    assert_eq!(cluster.status(3).executed_commands, 22 + 1);
}

#[test]
fn leadership_that_moves_under_a_marker_has_the_epoch_end_by_collection() {
    for reached in [&[][..], &[2], &[2, 3]] {
        leadership_moves_under_a_marker(reached);
    }
}

#[test]
fn an_older_command_that_comes_back_from_a_segment_runs_after_a_younger_one() {
    let mut cluster = Cluster::with(4, crash(4), NetworkMode::Hybrid);
    cluster.run(500);
    let mut session = Session::open(&mut cluster, 0);
    cluster.load(&mut session, 0, 3);
    assert_eq!(cluster.leader(0), Some(1));
    let epoch = cluster.status(0).epoch;
    let put = |value: &[u8]| Command::Machine(KvCommand::put(b"both".to_vec(), value.to_vec()).encode());
    let (older, younger) = (other(&session, 4, 4, put(b"older")), other(&session, 5, 4, put(b"younger")));
    // The older one stands in the leader's log and nowhere else when the segment ends.
    cluster.apart = vec![1];
    let last = cluster.status(1).segment.unwrap().last;
    cluster.send(1, &older);
    cluster.run(20);
    let segment = cluster.status(1).segment.unwrap();
    assert!(segment.last > last && segment.committed == last, "{segment:?}");
    cluster.order_mode(0, NetworkMode::Internet, None);
    cluster.wait("the segment ends", |cluster| cluster.status(0).protocol == ProtocolName::Pbft);
    cluster.send(0, &younger);
    cluster.run(200);
    let first = cluster.results_of(0, 5).expect("the younger one is answered").clone();
    assert_eq!(first.label, Label::Byzantine, "the root ran it");
    assert!((0..4).all(|id| cluster.results_of(id, 4).is_none()), "the older one has not run");
    cluster.apart.clear();
    cluster.run(3_000);
    let cut = |event: &Event| matches!(event, Event::SegmentClosed { epoch: of, cut, .. } if *of == epoch && *cut > 0);
    assert_eq!(cluster.events(1, cut), 1, "its log was longer than the segment");
    let second = cluster.results_of(1, 4).expect("the older one is answered").clone();
    cluster.assert_one_log(&[0, 1, 2, 3]);
    for reply in [&first, &second] {
        assert!(matches!(reply.results[0].outcome, Outcome::Done(_)), "{reply:?}");
    }
    assert!(first.results[0].position < second.results[0].position, "{first:?} {second:?}");
    for id in 0..4 {
        let changes = cluster.changes(id);
        let both: Vec<_> =
            changes.iter().filter(|(key, _)| key == "both").map(|(_, value)| value.as_slice()).collect();
        assert_eq!(both, [&b"younger"[..], b"older"], "each once, and in the order in which they ran");
    }
    assert_eq!(cluster.status(2).executed_commands, 5 + 1);
    // Whoever asks again, anywhere, is told the same and runs nothing.
    for frame in [&older, &younger] {
        cluster.send(2, frame);
    }
    cluster.run(100);
    assert_eq!(cluster.results_of(2, 4).unwrap().results, second.results);
    assert_eq!(cluster.results_of(2, 5).unwrap().results, first.results);
    assert_eq!(cluster.status(2).executed_commands, 5 + 1);
}

/// Entries that a segment's log may hold in this story.
const ENTRIES_MAX: u64 = 64;

#[test]
fn a_log_that_three_of_five_cannot_anchor_is_bounded_and_goes_on_with_a_fourth() {
    let mut cluster = Cluster::unstarted(5, crash(5), NetworkMode::Datacenter);
    cluster.tuned = |settings| settings.segment.limits.log_entries_max = ENTRIES_MAX;
    (0..5).for_each(|id| cluster.start(id));
    cluster.run(500);
    let mut session = Session::open(&mut cluster, 0);
    cluster.load(&mut session, 0, 10);
    cluster.run(500);
    let leader = cluster.leader(0).unwrap();
    assert_eq!(leader, 1);
    [3, 4].into_iter().for_each(|id| cluster.stop(id));
    // A majority goes on, though no quorum anchors what it does.
    let anchored = cluster.status(leader).segment.unwrap().anchored;
    cluster.load(&mut session, 0, 20);
    assert_eq!(cluster.status(leader).segment.unwrap().anchored, anchored);
    let full = "the segment's log is full: it waits for a quorum to anchor it";
    assert!(!cluster.status(leader).not_ready.iter().any(|reason| reason == full));
    // Many times the bound is asked of it.
    let before = cluster.executed(0).len();
    const ASKED: usize = 300;
    const HELD: usize = 60;
    let mut frames = Vec::new();
    for index in 0..ASKED {
        // Its client still waits for all of them.
        let put = KvCommand::put(format!("more{index}").into_bytes(), vec![7; 100]).encode();
        let frame = other(&session, session.next, 31, Command::Machine(put));
        session.next += 1;
        cluster.send(0, &frame);
        frames.push(frame);
        // Those that come before it is clear that nobody anchors are held.
        cluster.run(if index == HELD { 1_500 } else { 2 });
    }
    cluster.run(1_000);
    let status = cluster.status(leader);
    assert!(status.not_ready.iter().any(|reason| reason == full), "{status:#?}");
    let (epoch, segment) = (status.epoch, status.segment.unwrap());
    assert_eq!(segment.anchored, anchored);
    let answered = cluster.executed(0).len() - before;
    let refused = |cluster: &Cluster, at: u8| {
        let full = |reply: &ClientReply| matches!(reply, ClientReply::Busy { why: NotNow::LogFull, .. });
        cluster.replies.iter().filter(|(from, reply)| *from == at && full(reply)).count()
    };
    let told = refused(&cluster, 0);
    assert!(answered > 0 && told > 0, "{answered} of {ASKED} are answered, {told} refused with the reason");
    assert_eq!(told, ASKED - HELD - 1, "all others are held or answered");
    assert!(answered < HELD, "{answered} are answered");
    // Whoever asks is told at every node, so whether they asked in vain is known.
    for at in [1, 2] {
        cluster.send(at, &frames[ASKED - 1]);
        cluster.run(2);
        assert_eq!(refused(&cluster, at), 1);
    }
    assert!(segment.last.0 <= anchored.0 + ENTRIES_MAX + 4, "the log is bounded: {segment:?}");
    // However long it lasts, nobody gives the segment up. Ticks alone are appended, up to a bound of their own: time goes on.
    cluster.run(100_000);
    let later = cluster.status(leader);
    let last = later.segment.as_ref().unwrap().last;
    assert!(last > segment.last && last.0 <= anchored.0 + 2 * ENTRIES_MAX + 4, "{last}");
    assert_eq!((later.epoch, later.protocol), (epoch, ProtocolName::Raft));
    assert_eq!(cluster.executed(0).len() - before, answered);
    // A fourth is a quorum.
    cluster.start(3);
    cluster.run(3_000);
    let status = cluster.status(leader);
    assert!(!status.not_ready.iter().any(|reason| reason == full), "{status:#?}");
    assert!(status.segment.as_ref().unwrap().anchored > last, "{status:#?}");
    assert_eq!((status.epoch, status.failovers), (epoch, 0), "the segment was healthy all along");
    frames.iter().for_each(|frame| cluster.send(0, frame));
    cluster.run(1_000);
    for sequence in 31..=30 + ASKED as u64 {
        let told = cluster.results_of(0, sequence).expect("whatever was held is answered");
        assert!(matches!(told.results[0].outcome, Outcome::Done(_)), "{told:?}");
    }
    cluster.assert_one_log(&[0, 1, 2, 3]);
    let changes = cluster.changes(0);
    assert_eq!(changes.len(), 10 + 20 + ASKED, "each once");
    assert_eq!(cluster.status(leader).executed_commands, (10 + 20 + ASKED) as u64 + 1);
    cluster.load(&mut session, 0, 20);
    cluster.start(4);
    cluster.run(3_000);
    cluster.assert_one_log(&[0, 1, 2, 3, 4]);
}

/// How a replica comes to hold something else than the others.
#[derive(Clone, Copy, Debug)]
enum Damage {
    /// An entry of its log was read from a damaged memory: the chain is another one.
    Chain,
    /// Its store began otherwise: the log is the same, and what it computes from it is not.
    State,
}

impl Cluster {
    fn ask_all_ways(&mut self, at: u8, frame: &ClientFrame) {
        self.send(at, frame);
        let bytes = Command::Machine(KvCommand::get(b"k0".to_vec()).encode()).encode();
        let requests = [
            ClientRequest::Query { id: 71, bytes: bytes.clone() },
            ClientRequest::Read { id: 72, bytes, ack: None },
        ];
        for request in requests {
            self.nodes[usize::from(at)].inbox.push_back(Input::Client { client: ClientId(7), request });
        }
    }

    /// What this node told clients since, and whether it was more than that it cannot say.
    fn answers_since(&self, at: u8, since: usize) -> (usize, Vec<&ClientReply>) {
        let told = self.replies[since..].iter().filter(|(from, _)| *from == at).map(|(_, reply)| reply);
        let refuses = |reply: &&ClientReply| {
            matches!(reply, ClientReply::Busy { .. } | ClientReply::Query { outcome: Err(_), .. })
        };
        let (refused, answered): (Vec<_>, Vec<_>) = told.partition(refuses);
        (refused.len(), answered)
    }
}

fn what_an_anchor_contradicts_is_replaced(damage: Damage, who: u8) {
    let mut cluster = Cluster::unstarted(4, crash(4), NetworkMode::Datacenter);
    match damage {
        Damage::Chain => cluster.rafts.insert(who, faulty::maker(Fault::Damage("damaged"))).map(drop),
        Damage::State => cluster.quotas.insert(who, 1 << 29).map(drop),
    };
    // Its words at Ticks are noted, and no snapshot comes to it before the story says so.
    let (words, fetches) = (Rc::new(RefCell::new(Vec::new())), Rc::new(Cell::new(false)));
    cluster.twist = Some(Box::new({
        let (words, fetches) = (Rc::clone(&words), Rc::clone(&fetches));
        move |from, to, bytes| match dwcp_base::decode(&bytes) {
            Ok(PeerMessage::Offer(_)) if to == who && !fetches.get() => None,
            Ok(PeerMessage::AnchorVote(word)) if from == who => {
                words.borrow_mut().push(word.said.held);
                Some(bytes)
            }
            _ => Some(bytes),
        }
    }));
    (0..4).for_each(|id| cluster.start(id));
    let gate = if who == 0 { 1 } else { 0 };
    let diverged = |event: &Event| matches!(event, Event::AnchorDiverged { .. });
    let damaged_at = match damage {
        Damage::Chain => None,
        Damage::State => {
            let opened = |event: &Event| matches!(event, Event::SegmentOpened { .. });
            cluster.wait("a segment opens", |cluster| cluster.events(who, opened) == 1);
            Some(cluster.now)
        }
    };
    let damaged_at = damaged_at.unwrap_or_else(|| {
        cluster.run(500);
        let mut session = Session::open(&mut cluster, gate);
        cluster.load(&mut session, gate, 20);
        // Right after a Tick that was for the sake of time alone it has the longest to wait for the next.
        let tick = cluster.status(gate).segment.unwrap().last;
        cluster.wait("an idle Tick", |cluster| cluster.status(who).segment.unwrap().applied > tick);
        assert_eq!(cluster.events(who, diverged), 0);
        let frame = session.put("damaged", b"1");
        cluster.send(gate, &frame);
        let before = cluster.status(who).segment.unwrap().applied;
        cluster.wait("it is executed there", |cluster| cluster.status(who).segment.unwrap().applied > before);
        cluster.now
    });
    cluster.wait("it finds out", |cluster| cluster.events(who, diverged) == 1);
    let took = cluster.now.since(damaged_at);
    let interval = Settings::lan().segment.anchor_interval;
    assert!(took <= interval.times(2), "{} us are more than two periods", took.0);
    let reason = "its state differs from what a quorum certified: it fetches the certified one";
    let says_so = |cluster: &Cluster| cluster.status(who).not_ready.iter().any(|why| why == reason);
    assert!(says_so(&cluster), "{:?}", cluster.status(who).not_ready);
    assert_eq!(cluster.counted(who, "diverged"), 1);
    // The others go on. It tells nobody anything, and does not speak at Ticks.
    let (since, words_before) = (cluster.replies.len(), words.borrow().len());
    let mut session =
        Session { crypto: Ed25519::new(seed(9, 7), &[]), next: 1, cluster: cluster.genesis.cluster() };
    let open = cluster.open_frame(&session);
    cluster.send(gate, &open);
    cluster.send(who, &open);
    cluster.run(1_500);
    cluster.load(&mut session, gate, 20);
    let asked = session.put("asked", b"1");
    cluster.ask_all_ways(who, &asked);
    cluster.run(500);
    let (refused, answered) = cluster.answers_since(who, since);
    assert_eq!((refused, answered.len()), (4, 0), "{answered:#?}");
    assert_eq!(words.borrow().len(), words_before);
    assert!(says_so(&cluster));
    // Then it fetches what is certified, and says so no more.
    fetches.set(true);
    let finished = |event: &Event| matches!(event, Event::StateTransferFinished { .. });
    cluster.wait("it has another state", |cluster| cluster.events(who, finished) == 1);
    cluster.run(1_000);
    assert!(!says_so(&cluster), "{:?}", cluster.status(who).not_ready);
    cluster.assert_one_log(&[0, 1, 2, 3]);
    assert_eq!((cluster.events(who, diverged), cluster.counted(who, "diverged")), (1, 1));
    let others: Vec<u8> = (0..4).filter(|id| *id != who).collect();
    assert!(others.iter().all(|id| cluster.counted(*id, "diverged") == 0));
    // Its word is needed again, and it gives it: of the three others one dies.
    let leader = cluster.leader(gate).unwrap();
    let dies = others.iter().find(|id| ![gate, leader].contains(id)).unwrap();
    cluster.stop(*dies);
    let words_before = words.borrow().len();
    cluster.load(&mut session, gate, 20);
    cluster.run(2_000);
    let segment = cluster.status(gate).segment.unwrap();
    let last_word = words.borrow()[words_before..].last().copied().expect("it speaks at Ticks again");
    assert!(
        segment.anchored >= last_word.index && segment.anchored.0 + 2 >= segment.applied.0,
        "{segment:?}"
    );
    let since = cluster.replies.len();
    cluster.ask_all_ways(who, &asked);
    cluster.run(100);
    let (_, answered) = cluster.answers_since(who, since);
    let asks: Vec<bool> = answered.iter().map(|reply| matches!(reply, ClientReply::Query { .. })).collect();
    assert!(asks.contains(&true) && asks.contains(&false), "it answers both again: {answered:#?}");
}

#[test]
fn a_replica_that_an_anchor_contradicts_is_silent_until_its_state_is_replaced() {
    what_an_anchor_contradicts_is_replaced(Damage::Chain, 3);
    what_an_anchor_contradicts_is_replaced(Damage::State, 3);
}

#[test]
fn a_leader_that_an_anchor_contradicts_is_replaced_while_it_mends_itself() {
    what_an_anchor_contradicts_is_replaced(Damage::Chain, 1);
    what_an_anchor_contradicts_is_replaced(Damage::State, 1);
}

/// Leases and sessions end by log time. A leader whose clock is a little ahead is followed, one whose clock runs ever further is
/// not: not even step by step from where it has brought log time.
#[test]
fn no_leader_hurries_log_time_step_by_step() {
    let mut cluster = Cluster::with(4, crash(4), NetworkMode::Hybrid);
    cluster.run(500);
    let mut session = Session::open(&mut cluster, 3);
    assert_eq!(cluster.leader(3), Some(1));
    let mut ahead_most = 0;
    for step in 1..=20 {
        cluster.ahead_ms.insert(1, step * 100);
        let frame = session.put("a", step.to_string().as_bytes());
        cluster.send(3, &frame);
        cluster.run(200);
        for id in [0, 2, 3] {
            let log_time = cluster.nodes[id].replica.as_ref().unwrap().state().log_time();
            ahead_most = ahead_most.max(log_time.0.saturating_sub(cluster.now().wall_ms));
        }
    }
    assert!(ahead_most > 100, "it led, and its time was the log's: {ahead_most} ms");
    assert!(ahead_most <= CLOCK_AHEAD_MAX_MS, "{ahead_most} ms");
    cluster.run(10_000);
    let values: Vec<Vec<u8>> = cluster.changes(3).into_iter().map(|(_, value)| value).collect();
    let all: Vec<Vec<u8>> = (1..=20).map(|step: u64| step.to_string().into_bytes()).collect();
    assert_eq!(values, all, "others lead, or the root serves");
}
