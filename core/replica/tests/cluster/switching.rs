//! Segments open, end and open again under a cluster's feet: the road of every switch, without faults of disk.

use super::faulty::{self, Fault};
use super::*;
use dwcp_base::{Ack, ConfigurationId, Epoch, Index, Position, Term};
use dwcp_log::seal::{Sealed, Signed, Speaker, Suspect};
use dwcp_log::{ModeOrder, OperatorOrder, Place, SignedOrder, VirtualLog};
use dwcp_replica::raft::{Body, Entry, Payload};
use dwcp_replica::{Label, OrderOutcome, PeerMessage, ProtocolName, Status};

pub fn crash(n: u8) -> Policy {
    Policy::new(Trust::Crash, Quorum::new(n.into(), None).unwrap())
}

impl Cluster {
    pub fn status(&self, id: u8) -> Status {
        self.nodes[usize::from(id)].replica.as_ref().unwrap().status(self.now())
    }

    pub fn counted(&self, id: u8, what: &str) -> u64 {
        self.status(id).counters.iter().find(|(name, _)| *name == what).map_or(0, |(_, count)| *count)
    }

    pub fn leader(&self, at: u8) -> Option<u8> {
        self.status(at).segment.and_then(|segment| segment.leader).map(|leader| leader.0)
    }

    /// All have executed the same log.
    pub fn assert_one_log(&mut self, nodes: &[u8]) {
        let seen: Vec<_> = nodes
            .iter()
            .map(|id| {
                let replica = self.nodes[usize::from(*id)].replica.as_ref().unwrap();
                (replica.head(), replica.state().commands_executed(), replica.state().position())
            })
            .collect();
        assert!(seen.windows(2).all(|pair| pair[0] == pair[1]), "{seen:#?}");
    }

    pub fn order_mode(&mut self, at: u8, mode: NetworkMode, first_leader: Option<u8>) {
        let number = self.status(at).next_order;
        let admin = Ed25519::new(seed(3, 0), &[]);
        let order = ModeOrder { number, mode, first_leader: first_leader.map(ReplicaId) };
        let signed = SignedOrder::new(order, self.genesis.cluster(), admin.public_key(), &admin);
        let bytes = Bytes::from(dwcp_base::encode(&OperatorOrder::Mode(signed)));
        let request = ClientRequest::Order { id: number, bytes };
        self.nodes[usize::from(at)].inbox.push_back(Input::Client { client: ClientId(8), request });
    }

    pub fn orders_done(&self) -> usize {
        let done = |reply: &ClientReply| {
            matches!(reply, ClientReply::Order { outcome: OrderOutcome::Done { .. }, .. })
        };
        self.replies.iter().filter(|(_, reply)| done(reply)).count()
    }

    pub fn load(&mut self, session: &mut Session, at: u8, count: usize) {
        let before = self.executed(at).len();
        for index in 0..count {
            let frame = session.put(&format!("k{index}"), b"v");
            self.send(at, &frame);
            self.run(2);
        }
        self.run(100);
        assert_eq!(self.executed(at).len() - before, count, "every command is answered");
    }
}

#[test]
fn a_datacenter_orders_through_raft_and_the_root_stays_quiet() {
    for n in [1, 3, 4] {
        let mut cluster = Cluster::with(n, crash(n), NetworkMode::Datacenter);
        cluster.run(500);
        let status = cluster.status(0);
        assert_eq!((status.protocol, status.epoch), (ProtocolName::Raft, Epoch(1)), "n = {n}");
        let mut session = Session::open(&mut cluster, 0);
        let root_before = cluster.status(0).executed;
        cluster.load(&mut session, 0, 200);
        cluster.run(1_000);
        let all: Vec<u8> = (0..n).collect();
        cluster.assert_one_log(&all);
        let status = cluster.status(0);
        let segment = status.segment.clone().unwrap();
        assert!(segment.applied.0 > 100 && segment.anchored > Index(100), "{segment:?}");
        let root = status.executed.0 - root_before.0;
        assert!(root < 40, "n = {n}: the root orders Anchors only, not {root} entries");
        let left =
            (0..n).map(|id| cluster.events(id, |event| matches!(event, Event::ViewChangeStarted { .. })));
        assert_eq!(left.sum::<usize>(), 0, "nobody blames the root");
        let labels: Vec<Label> = cluster.executed(0).iter().map(|reply| reply.label).collect();
        assert!(labels[1..].iter().all(|label| *label == Label::Crash));
    }
}

#[test]
fn a_fast_path_is_missed_by_what_it_usually_takes_and_after_a_failure_an_election_comes_first() {
    let mut cluster = Cluster::with(4, crash(4), NetworkMode::Hybrid);
    cluster.run(500);
    let mut session = Session::open(&mut cluster, 2);
    let mut silence_the_leader = |cluster: &mut Cluster| {
        cluster.load(&mut session, 2, 40);
        assert_eq!(cluster.status(2).protocol, ProtocolName::Raft);
        let leader = cluster.leader(2).unwrap();
        assert!(leader != 0 && leader != 2, "neither the root's primary nor whom we ask");
        cluster.twist = Some(Box::new(move |from, _, bytes| (from != leader).then_some(bytes)));
        let (asked, answered) = (cluster.now, cluster.executed(2).len());
        let frame = session.put("late", b"v");
        cluster.send(2, &frame);
        while cluster.executed(2).len() == answered {
            cluster.run(5);
            assert!(cluster.now.since(asked) < Micros::from_millis(2_000), "nobody moves");
        }
        cluster.twist = None;
        cluster.now.since(asked).0 / 1_000
    };
    let took = silence_the_leader(&mut cluster);
    // Half of it until all know of the command, then all of it; the shortest election is 200 ms.
    assert!((150..200).contains(&took), "{took} ms");
    let status = cluster.status(2);
    assert_eq!((status.protocol, status.failovers), (ProtocolName::Pbft, 1));
    cluster.run(1_500);
    let took = silence_the_leader(&mut cluster);
    assert!((200..450).contains(&took), "{took} ms");
    let status = cluster.status(2);
    assert_eq!((status.protocol, status.failovers), (ProtocolName::Raft, 1), "twice the patience");
    cluster.run(1_000);
    cluster.assert_one_log(&[0, 1, 2, 3]);
}

#[test]
fn a_segment_for_which_no_quorum_vouches_is_left_though_everybody_is_served() {
    for mode in [NetworkMode::Hybrid, NetworkMode::Datacenter] {
        let mut cluster = Cluster::with(4, crash(4), mode);
        cluster.run(500);
        let mut session = Session::open(&mut cluster, 2);
        let is_word =
            |bytes: &Bytes| matches!(dwcp_base::decode::<PeerMessage>(bytes), Ok(PeerMessage::AnchorVote(_)));
        cluster.twist = Some(Box::new(move |_, _, bytes| (!is_word(&bytes)).then_some(bytes)));
        cluster.load(&mut session, 2, 10);
        let anchored = cluster.status(2).segment.unwrap().anchored;
        for _ in 0..30 {
            cluster.load(&mut session, 2, 1);
        }
        let status = cluster.status(2);
        assert_eq!(
            (status.epoch, status.segment.unwrap().anchored),
            (Epoch(1), anchored),
            "{mode:?}: a while"
        );
        for _ in 0..30 {
            cluster.load(&mut session, 2, 1);
        }
        let complained =
            |event: &Event| matches!(event, Event::Suspected { reason: "nothing is anchored", .. });
        assert!(cluster.events(2, complained) > 0, "{mode:?}");
        assert_eq!(cluster.status(2).failovers, 1, "{mode:?}");
        cluster.twist = None;
        cluster.run(3_000);
        cluster.load(&mut session, 2, 5);
        cluster.assert_one_log(&[0, 1, 2, 3]);
    }
}

#[test]
fn whoever_restarts_stands_at_the_last_anchor_before_it_hears_of_anybody() {
    let mut cluster = Cluster::with(4, crash(4), NetworkMode::Datacenter);
    cluster.run(500);
    let mut session = Session::open(&mut cluster, 2);
    cluster.load(&mut session, 2, 60);
    cluster.run(500);
    let before = cluster.status(2).segment.unwrap();
    assert!(before.anchored > Index(50), "{before:?}");
    (0..4).for_each(|id| cluster.stop(id));
    cluster.start(2);
    let after = cluster.status(2).segment.unwrap();
    assert_eq!((after.anchored, after.applied >= before.anchored), (before.anchored, true), "{after:?}");
    [0, 1, 3].iter().for_each(|id| cluster.start(*id));
    cluster.run(3_000);
    cluster.load(&mut session, 2, 5);
    cluster.run(500);
    cluster.assert_one_log(&[0, 1, 2, 3]);
    assert_eq!(cluster.status(2).epoch, Epoch(1), "the segment goes on");
}

#[test]
fn whoever_catches_up_executes_turn_by_turn_and_stays_awake_for_the_next() {
    let mut cluster = Cluster::with(3, crash(3), NetworkMode::Datacenter);
    cluster.run(500);
    cluster.stop(2);
    let mut session = Session::open(&mut cluster, 0);
    cluster.load(&mut session, 0, 40);
    cluster.tuned = |settings| settings.segment.apply_bytes = 1;
    cluster.start(2);
    let applied = |cluster: &Cluster| cluster.status(2).segment.unwrap().applied.0;
    let (mut last, mut turns) = (applied(&cluster), 0);
    let goal = cluster.status(0).segment.unwrap().applied.0;
    for _ in 0..10_000 {
        while let Some(input) = cluster.nodes[2].inbox.pop_front() {
            cluster.step(2, input);
            let now = applied(&cluster);
            assert!(now - last <= 2, "{} entries in one turn", now - last);
            turns += u64::from(now > last);
            last = now;
            let replica = cluster.nodes[2].replica.as_ref().unwrap();
            let more = cluster.status(2).segment.unwrap().committed.0 > now;
            assert!(!more || replica.next_wakeup() <= cluster.now, "sleeps with {last} of {goal} executed");
        }
        if last >= goal {
            break;
        }
        cluster.one_round();
    }
    assert!(last >= goal && turns >= 10, "{last} of {goal} in {turns} turns");
    cluster.run(500);
    cluster.assert_one_log(&[0, 1, 2]);
}

#[test]
fn an_anchored_acknowledgement_waits_and_is_byzantine() {
    let mut cluster = Cluster::with(4, crash(4), NetworkMode::Datacenter);
    cluster.run(500);
    let mut session = Session::open(&mut cluster, 2);
    let frame = session.put("a", b"1");
    let request = ClientRequest::Frame { bytes: frame.encode(), ack: Some(Ack::Anchored) };
    cluster.nodes[2].inbox.push_back(Input::Client { client: ClientId(7), request });
    cluster.run(20);
    assert_eq!(cluster.executed(2).len(), 1, "no Anchor covers it yet");
    cluster.run(500);
    let replies = cluster.executed(2);
    assert_eq!((replies.len(), replies[1].label), (2, Label::Byzantine));
    let verifier = Ed25519::new(seed(8, 8), &[]);
    assert!(replies[1].verify(cluster.genesis.cluster(), &key(1, 2), &verifier));
}

#[test]
fn the_operator_moves_the_cluster_to_and_fro() {
    let mut cluster = Cluster::with(4, crash(4), NetworkMode::Hybrid);
    cluster.run(500);
    let mut session = Session::open(&mut cluster, 1);
    for round in 0..3 {
        cluster.load(&mut session, 1, 20);
        cluster.order_mode(1, NetworkMode::Internet, None);
        cluster.load(&mut session, 1, 20);
        cluster.run(300);
        let status = cluster.status(1);
        assert_eq!(status.protocol, ProtocolName::Pbft, "round {round}: {status:#?}");
        assert!(status.last_switch.unwrap().planned);
        cluster.order_mode(1, NetworkMode::Hybrid, Some(2));
        cluster.load(&mut session, 1, 20);
        cluster.run(300);
        assert_eq!(cluster.status(1).protocol, ProtocolName::Raft, "round {round}");
        assert_eq!(cluster.leader(1), Some(2));
        cluster.assert_one_log(&[0, 1, 2, 3]);
    }
    assert_eq!(cluster.orders_done(), 6);
    assert_eq!(cluster.status(0).failovers, 0);
    let markers = cluster.events(1, |event| matches!(event, Event::SegmentClosed { marker: true, .. }));
    assert_eq!(markers, 3, "each was ended in order");
}

#[test]
fn the_same_mode_again_hands_over_to_a_fresh_segment() {
    let mut cluster = Cluster::with(3, crash(3), NetworkMode::Datacenter);
    cluster.run(500);
    let mut session = Session::open(&mut cluster, 1);
    for leader in [2, 0, 1] {
        cluster.order_mode(1, NetworkMode::Datacenter, Some(leader));
        cluster.load(&mut session, 1, 30);
        cluster.run(300);
        assert_eq!(cluster.leader(1), Some(leader));
    }
    assert_eq!(cluster.status(0).epoch, Epoch(4));
    cluster.assert_one_log(&[0, 1, 2]);
}

#[test]
fn a_dead_leader_costs_hybrid_mode_a_forced_close_and_a_calm() {
    let mut cluster = Cluster::with(4, crash(4), NetworkMode::Hybrid);
    cluster.run(500);
    let mut session = Session::open(&mut cluster, 0);
    cluster.load(&mut session, 0, 20);
    let leader = cluster.leader(0).unwrap();
    let gate = (0..4).find(|id| *id != leader).unwrap();
    cluster.stop(leader);
    let before = cluster.executed(gate).len();
    let frame = session.put("after", b"1");
    cluster.send(gate, &frame);
    cluster.run(1_000);
    assert_eq!(cluster.executed(gate).len(), before + 1, "{:#?}", cluster.status(gate));
    assert_eq!(cluster.status(gate).failovers, 1);
    let alive: Vec<u8> = (0..4).filter(|id| *id != leader).collect();
    cluster.load(&mut session, gate, 20);
    cluster.run(3_000);
    assert_eq!(cluster.status(gate).protocol, ProtocolName::Raft, "{:#?}", cluster.status(gate));
    cluster.load(&mut session, gate, 20);
    cluster.run(500);
    cluster.assert_one_log(&alive);
    cluster.start(leader);
    cluster.run(2_000);
    cluster.assert_one_log(&[0, 1, 2, 3]);
}

#[test]
fn a_dead_leader_costs_a_datacenter_an_election() {
    let mut cluster = Cluster::with(3, crash(3), NetworkMode::Datacenter);
    cluster.run(500);
    let mut session = Session::open(&mut cluster, 0);
    cluster.load(&mut session, 0, 20);
    let leader = cluster.leader(0).unwrap();
    let gate = (0..3).find(|id| *id != leader).unwrap();
    cluster.stop(leader);
    let frame = session.put("after", b"1");
    cluster.send(gate, &frame);
    cluster.run(2_000);
    assert_eq!(cluster.status(gate).epoch, Epoch(1), "elections inside the epoch are the cheaper cure");
    cluster.load(&mut session, gate, 20);
    cluster.start(leader);
    cluster.run(1_000);
    cluster.assert_one_log(&[0, 1, 2]);
}

#[test]
fn a_sleeper_over_three_epochs_catches_up() {
    let mut cluster = Cluster::with(4, crash(4), NetworkMode::Hybrid);
    cluster.run(500);
    let mut session = Session::open(&mut cluster, 1);
    cluster.stop(3);
    for _ in 0..3 {
        cluster.load(&mut session, 1, 20);
        cluster.order_mode(1, NetworkMode::Internet, None);
        cluster.load(&mut session, 1, 20);
        cluster.order_mode(1, NetworkMode::Hybrid, Some(2));
        cluster.load(&mut session, 1, 20);
    }
    cluster.start(3);
    cluster.run(3_000);
    cluster.assert_one_log(&[0, 1, 2, 3]);
    cluster.load(&mut session, 3, 20);
}

/// More epochs go by than a replica whose disk ends no snapshot keeps in memory. What left memory is still on its disk: after
/// a restart it remembers all.
#[test]
fn a_disk_slower_than_the_switches_fills_no_memory_and_forgets_nothing() {
    const EPOCHS: usize = 75;
    let mut cluster = Cluster::with(4, crash(4), NetworkMode::Datacenter);
    cluster.slow = Some(3);
    cluster.run(500);
    let mut session = Session::open(&mut cluster, 1);
    for leader in (0..3).cycle().take(EPOCHS) {
        cluster.order_mode(1, NetworkMode::Datacenter, Some(leader));
        cluster.load(&mut session, 1, 4);
        cluster.run(300);
    }
    assert_eq!(cluster.status(0).epoch, Epoch(EPOCHS as u64 + 1));
    cluster.assert_one_log(&[0, 1, 2, 3]);
    let dropped = "closed segments dropped from memory before a snapshot covered them";
    assert_eq!(cluster.counted(3, dropped), EPOCHS as u64 - 64, "64 are kept");
    assert_eq!(cluster.counted(0, dropped), 0, "a snapshot covered them in time");
    // A snapshot from the beginning is durable at last, and what lies before it is discarded, no more.
    assert_eq!(cluster.late.len(), 1);
    let records = cluster.nodes[3].disk.records.len();
    let saved = cluster.late.remove(0);
    cluster.step(3, saved);
    assert!(cluster.nodes[3].disk.records.len() < records);
    // Alone with its disk: nothing of what it executed is lacking there.
    (0..4).for_each(|id| cluster.stop(id));
    cluster.start(3);
    let remembered = cluster.status(3).executed_commands;
    assert!(remembered >= 4 * (EPOCHS as u64 - 1), "{remembered} commands came back from the disk");
    (0..3).for_each(|id| cluster.start(id));
    cluster.run(3_000);
    cluster.assert_one_log(&[0, 1, 2, 3]);
    assert_eq!(cluster.status(3).executed_commands, 4 * EPOCHS as u64 + 1);
}

#[test]
fn all_may_restart_inside_a_segment_again_and_again() {
    let mut cluster = Cluster::with(3, crash(3), NetworkMode::Datacenter);
    cluster.run(500);
    let mut session = Session::open(&mut cluster, 1);
    for _ in 0..5 {
        cluster.load(&mut session, 1, 40);
        (0..3).for_each(|id| cluster.stop(id));
        (0..3).for_each(|id| cluster.start(id));
        cluster.run(2_000);
        cluster.replies.clear();
        cluster.assert_one_log(&[0, 1, 2]);
    }
    assert_eq!(cluster.status(0).executed_commands, 200 + 1);
    assert!(cluster.status(0).position > Position(200));
}

#[test]
fn snapshots_inside_a_segment_are_of_its_anchors_and_serve_those_who_are_behind() {
    let mut cluster = Cluster::with(3, crash(3), NetworkMode::Datacenter);
    cluster.run(500);
    let mut session = Session::open(&mut cluster, 1);
    cluster.stop(2);
    for index in 0..400 {
        let frame = session.put(&format!("k{index}"), &[7; 4_000]);
        cluster.send(1, &frame);
        cluster.run(20);
    }
    cluster.run(2_000);
    assert!(!cluster.nodes[1].disk.snapshots.is_empty(), "a snapshot was written");
    cluster.start(2);
    cluster.run(10_000);
    cluster.assert_one_log(&[0, 1, 2]);
    (0..3).for_each(|id| cluster.stop(id));
    (0..3).for_each(|id| cluster.start(id));
    cluster.run(2_000);
    cluster.assert_one_log(&[0, 1, 2]);
    assert_eq!(cluster.status(2).executed_commands, 401);
}

/// Speaks for a replica that does not run.
pub struct Liar {
    pub id: u8,
    pub crypto: Ed25519,
    pub speaker: Speaker,
}

impl Liar {
    pub fn new(id: u8) -> Self {
        let speaker =
            Speaker { id: ReplicaId(id), incarnation: Incarnation(0), configuration: ConfigurationId(1) };
        Self { id, crypto: Ed25519::new(seed(1, id), &[]), speaker }
    }

    pub fn say(&self, cluster: &mut Cluster, to: u8, message: &PeerMessage) {
        let bytes = Bytes::from(dwcp_base::encode(message));
        let from = ReplicaId(self.id);
        cluster.nodes[usize::from(to)].inbox.push_back(Input::Peer {
            from,
            incarnation: Incarnation(0),
            bytes,
        });
    }

    pub fn say_to_all(&self, cluster: &mut Cluster, message: &PeerMessage) {
        for to in 0..cluster.nodes.len() as u8 {
            if cluster.nodes[usize::from(to)].replica.is_some() {
                self.say(cluster, to, message);
            }
        }
    }

    /// Answers whoever asks for the log that this liar made up behind the last Anchor.
    pub fn show(&self, cluster: &mut Cluster, first: Index, entries: &[Entry]) {
        for (asker, to, bytes) in std::mem::take(&mut cluster.to_the_dead) {
            if to == self.id
                && let Ok(PeerMessage::FetchEntries { epoch, from, .. }) = dwcp_base::decode(&bytes)
                && from == first
            {
                self.say(cluster, asker, &PeerMessage::Entries { epoch, first, entries: entries.to_vec() });
            }
        }
    }
}

#[test]
fn a_lying_sealer_costs_only_what_no_anchor_covers() {
    let mut cluster = Cluster::with(4, crash(4), NetworkMode::Hybrid);
    cluster.run(500);
    cluster.order_mode(0, NetworkMode::Hybrid, Some(1));
    cluster.run(500);
    let mut session = Session::open(&mut cluster, 0);
    cluster.load(&mut session, 0, 30);
    cluster.run(500);
    let liar = Liar::new(3);
    // Its links stay up: it only says nothing but lies.
    cluster.nodes[3].replica = None;
    cluster.nodes[3].inbox.clear();
    cluster.load(&mut session, 0, 10);
    cluster.run(300);
    // Acknowledged under the label `crash`, and not anchored yet: a Tick was just before it.
    let before = session.put("before", b"1");
    cluster.send(0, &before);
    cluster.run(5);
    let anchored = cluster.status(0).segment.unwrap().anchored;
    let unanchored = session.put("lost", b"1");
    cluster.send(0, &unanchored);
    cluster.run(5);
    let status = cluster.status(0);
    let (epoch, segment) = (status.epoch, status.segment.unwrap());
    assert!(segment.applied > segment.anchored && segment.anchored == anchored, "{segment:?}");
    let known = cluster.nodes[0].replica.as_ref().unwrap().control().fold.segment().unwrap().clone();
    cluster.stop(1);
    let after = session.put("after", b"1");
    cluster.send(0, &after);
    // The liar complains with the two honest ones and names a log that looks best and that it made up.
    let body = Body::new(&Payload::Tick { time: dwcp_base::LogTime(1) }).unwrap();
    let entry = Entry { term: Term(9), body };
    let mut log = VirtualLog { position: segment.anchored_position, chain: known.anchor.chain };
    log.append(&entry.digest());
    let first = known.anchor.index.next();
    let last = Place { index: first, term: Term(9), chain: log.chain };
    let id = cluster.genesis.cluster();
    let suspect = Suspect { epoch, speaker: liar.speaker, anchor: known.anchor.number };
    let sealed = Sealed { epoch, speaker: liar.speaker, last };
    for _ in 0..200 {
        liar.say_to_all(&mut cluster, &PeerMessage::Suspect(Signed::new(suspect, id, &liar.crypto)));
        liar.say_to_all(&mut cluster, &PeerMessage::Sealed(Signed::new(sealed, id, &liar.crypto)));
        liar.show(&mut cluster, first, std::slice::from_ref(&entry));
        cluster.run(10);
    }
    // The root needs q = 3 to order the Close: the third is the one that was down.
    cluster.start(1);
    for _ in 0..100 {
        liar.say_to_all(&mut cluster, &PeerMessage::Sealed(Signed::new(sealed, id, &liar.crypto)));
        liar.show(&mut cluster, first, std::slice::from_ref(&entry));
        cluster.run(20);
    }
    let rolled =
        |event: &Event| matches!(event, Event::SegmentClosed { rolled_back, .. } if *rolled_back > 0);
    let closed = |event: &Event| matches!(event, Event::SegmentClosed { epoch: of, .. } if *of == epoch);
    assert_eq!(cluster.events(0, closed), 1, "{:#?}", cluster.status(0));
    assert_eq!((cluster.events(0, rolled), cluster.events(2, rolled)), (1, 1));
    cluster.run(2_000);
    cluster.assert_one_log(&[0, 1, 2]);
    // What was fetched to execute the Close is on each disk: alone, a replica comes back to where it stood.
    let executed = |cluster: &Cluster, id: u8| {
        cluster.nodes[usize::from(id)].replica.as_ref().unwrap().control().executed
    };
    for id in [0, 1, 2] {
        let before = executed(&cluster, id);
        cluster.stop(id);
        cluster.start(id);
        assert!(executed(&cluster, id) == before, "replica {id} stands at the Close again");
    }
    cluster.run(2_000);
    // What was anchored is there, and the cluster goes on.
    cluster.load(&mut session, 0, 5);
    cluster.start(3);
    cluster.run(3_000);
    cluster.assert_one_log(&[0, 1, 2, 3]);
}

#[test]
fn a_leader_that_leaves_one_client_out_loses_its_segment() {
    let mut cluster = Cluster::with(4, crash(4), NetworkMode::Hybrid);
    cluster.run(300);
    let mut victim = Session::open(&mut cluster, 2);
    let victim_id = dwcp_state::SessionId::of(&victim.crypto.public_key());
    cluster.stop(1);
    cluster.rafts.insert(1, faulty::maker(Fault::Censor(victim_id)));
    cluster.start(1);
    cluster.run(500);
    cluster.order_mode(0, NetworkMode::Hybrid, Some(1));
    cluster.run(500);
    assert_eq!(cluster.leader(0), Some(1), "{:#?}", cluster.status(0));
    let epoch = cluster.status(0).epoch;
    let frame = victim.put("a", b"1");
    cluster.send(2, &frame);
    let mut others =
        Session { crypto: Ed25519::new(seed(9, 8), &[]), next: 1, cluster: cluster.genesis.cluster() };
    let open = cluster.open_frame(&others);
    cluster.send(0, &open);
    // The others are served all the while: nothing but the service clock can notice.
    for index in 0..200 {
        cluster.run(50);
        let frame = others.put(&format!("o{index}"), b"v");
        cluster.send(0, &frame);
    }
    let suspected = |event: &Event| {
        matches!(event, Event::Suspected { reason: "a command that the root ordered is not served", .. })
    };
    assert!(cluster.events(0, suspected) + cluster.events(3, suspected) > 0);
    let closed = |event: &Event| matches!(event, Event::SegmentClosed { epoch: of, forced: true, deferred, .. } if *of == epoch && *deferred > 0);
    assert_eq!(cluster.events(0, closed), 1, "{:#?}", cluster.status(0));
    let answered =
        cluster.executed(2).iter().filter(|reply| reply.session == victim_id && reply.first == 1).count();
    assert!(answered > 0, "the victim is answered");
    cluster.run(1_000);
    cluster.assert_one_log(&[0, 1, 2, 3]);
}

#[test]
fn failures_in_a_row_double_the_calm_and_an_order_begins_a_new_count() {
    const GATE: u8 = 0;
    let mut cluster = Cluster::with(4, crash(4), NetworkMode::Hybrid);
    cluster.run(500);
    let mut session = Session::open(&mut cluster, GATE);
    cluster.load(&mut session, GATE, 5);
    let mut calms_ms = Vec::new();
    for failed in 1..=5 {
        let leader = cluster.leader(GATE).unwrap();
        assert_ne!(leader, GATE);
        cluster.stop(leader);
        let frame = session.put("after", b"1");
        cluster.send(GATE, &frame);
        let is_closed = (0..100_000).any(|_| {
            cluster.one_round();
            cluster.status(GATE).failovers == failed
        });
        assert!(is_closed, "{:#?}", cluster.status(GATE));
        let steering = &cluster.control(GATE).steering;
        let calm_until = steering.calm_until;
        calms_ms.push(calm_until.0 - steering.time.0);
        cluster.start(leader);
        if failed == 4 {
            // Within the calm, and not at its end.
            cluster.order_mode(GATE, NetworkMode::Hybrid, None);
            cluster.run(500);
            assert_eq!(cluster.control(GATE).steering.failures, 0);
            assert!(cluster.control(GATE).steering.opened < calm_until, "the order ends it");
        } else if failed < 4 {
            cluster.run(calms_ms[calms_ms.len() - 1] + 500);
            assert!(
                cluster.control(GATE).steering.opened >= calm_until,
                "no segment opens before it is over"
            );
        }
        if failed < 5 {
            assert_eq!(cluster.status(GATE).protocol, ProtocolName::Raft, "{:#?}", cluster.status(GATE));
        }
    }
    assert_eq!(calms_ms, [500, 1_000, 2_000, 4_000, 500]);
    cluster.run(2_000);
    cluster.assert_one_log(&[0, 1, 2, 3]);
}
