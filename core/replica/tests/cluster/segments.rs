//! What may befall a segment while it is open and while it ends, each in a story of its own: leadership that moves under a
//! Marker, an older command that comes back after a younger one ran, a log that nobody can anchor, a replica whose
//! memory is another one.

use super::faulty::{self, Fault};
use super::*;
use dwcp_base::Epoch;
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
