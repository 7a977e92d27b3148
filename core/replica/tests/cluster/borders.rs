//! What a liar can do where segments end: stories in which it is both the root's primary and a member of the segment, or
//! says of a healthy segment what only its leader can know.

use super::switching::{Liar, crash};
use super::*;
use dwcp_base::{ConfigurationId, Epoch, Index, LogTime, Term, View};
use dwcp_log::anchor::AnchorVote;
use dwcp_log::entry::payload_digest;
use dwcp_log::seal::{Sealed, Signed, StopCert, Suspect};
use dwcp_log::{
    Anchor, Close, CloseProof, ModeOrder, Place, Proposal, RootEntry, Segment, SignedOrder, Switch,
    VirtualLog,
};
use dwcp_pbft::{Claim, Message, Statement, Vote};
use dwcp_replica::raft::{Body, Entry, Message as RaftMessage, Payload, Said};
use dwcp_replica::{PeerMessage, ProtocolName};

impl Cluster {
    pub fn control(&self, id: u8) -> &dwcp_replica::Control {
        self.nodes[usize::from(id)].replica.as_ref().unwrap().control()
    }

    fn segment(&self, id: u8) -> Segment {
        self.control(id).fold.segment().expect("one is open").clone()
    }

    /// What the others told the liar, who does not run.
    fn heard_by<T>(&self, liar: &Liar, take: impl Fn(PeerMessage) -> Option<T>) -> Vec<T> {
        let to_it = self.to_the_dead.iter().filter(|(_, to, _)| *to == liar.id);
        to_it.filter_map(|(_, _, bytes)| take(dwcp_base::decode(bytes).ok()?)).collect()
    }
}

impl Liar {
    /// Proposes this as the root's primary of the first view.
    pub fn propose(&self, cluster: &mut Cluster, sequence: Sequence, time: LogTime, entries: Vec<RootEntry>) {
        let payload = Proposal { time, entries }.to_payload();
        let claim = Claim {
            vote: Vote::PrePrepare,
            configuration: ConfigurationId(1),
            view: View::ZERO,
            sequence,
            digest: payload_digest(&payload),
        };
        let statement = Statement { claim, sender: ReplicaId(self.id), incarnation: Incarnation(0) };
        let proposal = dwcp_pbft::Signed::new(statement, cluster.genesis.cluster(), &self.crypto);
        self.say_to_all(cluster, &PeerMessage::Pbft(Message::PrePrepare { proposal, payload }));
    }
}

#[test]
fn a_close_that_was_prepared_before_an_anchor_does_not_hold_behind_it() {
    let mut cluster = Cluster::with(4, crash(4), NetworkMode::Hybrid);
    cluster.run(500);
    cluster.order_mode(0, NetworkMode::Hybrid, Some(1));
    cluster.run(500);
    let mut session = Session::open(&mut cluster, 2);
    cluster.load(&mut session, 2, 30);
    cluster.run(500);
    // From here on the root's primary, a member of the segment, says only what the story has it say.
    let liar = Liar::new(0);
    cluster.nodes[0].replica = None;
    cluster.nodes[0].inbox.clear();
    cluster.to_the_dead.clear();
    let kept = session.put("kept", b"1");
    cluster.send(2, &kept);
    cluster.run(120);
    let known = cluster.segment(2);
    let (id, epoch) = (cluster.genesis.cluster(), known.epoch);

    // Three vouch for what is committed now, and the liar keeps the Anchor to itself.
    let words = cluster.heard_by(&liar, |message| match message {
        PeerMessage::AnchorVote(word) => Some(word),
        _ => None,
    });
    let mut of_one_tick: BTreeMap<Index, BTreeMap<ReplicaId, Signed<AnchorVote>>> = BTreeMap::new();
    for word in words {
        of_one_tick.entry(word.said.held.index).or_default().insert(word.said.speaker.id, word);
    }
    let (_, votes) = of_one_tick.into_iter().rev().find(|(_, words)| words.len() == 3).expect("a Tick");
    let votes: Vec<Signed<AnchorVote>> = votes.into_values().collect();
    let anchor = Anchor { held: votes[0].said.held, votes };
    assert!(anchor.held.index > known.anchor.index && anchor.held.epoch == epoch);

    // It has the end of the segment ordered, and says that its own log, which it makes up, is the best.
    let admin = Ed25519::new(seed(3, 0), &[]);
    let number = cluster.status(2).next_order;
    let order = ModeOrder { number, mode: NetworkMode::Hybrid, first_leader: None };
    let order = SignedOrder::new(order, id, admin.public_key(), &admin);
    let executed = cluster.control(2).executed;
    let time = cluster.control(2).steering.time;
    liar.propose(&mut cluster, executed.next(), time, vec![RootEntry::Mode(order)]);
    cluster.run(5);
    assert_eq!(cluster.control(2).executed, executed.next());
    let made_up = Entry { term: Term(9), body: Body::new(&Payload::Tick { time: LogTime(1) }).unwrap() };
    let count = anchor.held.index.0 - known.anchor.index.0 + 1;
    let entries = vec![made_up; usize::try_from(count).unwrap()];
    let position = known.position(known.anchor.index).unwrap();
    let mut log = VirtualLog { position, chain: known.anchor.chain };
    entries.iter().for_each(|entry| {
        log.append(&entry.digest());
    });
    let last = Place { index: anchor.held.index.next(), term: Term(9), chain: log.chain };
    let sealed = Signed::new(Sealed { epoch, speaker: liar.speaker, last }, id, &liar.crypto);
    liar.say_to_all(&mut cluster, &PeerMessage::Sealed(sealed));
    cluster.run(5);
    let heard = cluster.heard_by(&liar, |message| match message {
        PeerMessage::Sealed(word) if word.said.epoch == epoch => Some((word.said.speaker.id, word)),
        _ => None,
    });
    let mut reports: BTreeMap<ReplicaId, Signed<Sealed>> = heard.into_iter().collect();
    assert_eq!(reports.len(), 3, "the honest have sealed");
    reports.pop_last();
    reports.insert(ReplicaId(0), sealed);
    let proof = CloseProof::Reports(reports.into_values().collect());
    let close = Close { epoch, tail: last, anchor: known.anchor.number, proof };

    // Both in one proposal: whoever prepares it has not executed the Anchor.
    let switch = RootEntry::Switch(Box::new(Switch { close: Some(close), open: None }));
    let entries_of_both = vec![RootEntry::Anchor(Box::new(anchor.clone())), switch];
    liar.propose(&mut cluster, executed.next().next(), time, entries_of_both);
    for _ in 0..20 {
        liar.show(&mut cluster, known.anchor.index.next(), &entries);
        cluster.run(5);
    }
    assert_eq!(cluster.control(2).executed, executed.next().next(), "three prepare it");
    for honest in 1..4 {
        assert_eq!(cluster.segment(honest).anchored().index, anchor.held.index, "replica {honest}");
        assert_eq!(cluster.counted(honest, "switches without effect"), 1, "replica {honest}");
    }
    // What the Anchor covers is there when the honest end the segment, and the cluster goes on.
    cluster.run(8_000);
    for honest in 1..4 {
        let closed = |event: &Event| matches!(event, Event::SegmentClosed { epoch: of, rolled_back: 0, .. } if *of == epoch);
        assert_eq!(cluster.events(honest, closed), 1, "replica {honest}: {:#?}", cluster.status(honest));
    }
    cluster.load(&mut session, 2, 5);
    cluster.run(1_000);
    cluster.assert_one_log(&[1, 2, 3]);
    assert_eq!(cluster.status(2).executed_commands, 37, "the session, 36 values");
}

#[test]
fn nobody_but_the_leader_can_say_that_a_member_is_behind() {
    let mut cluster = Cluster::with(4, crash(4), NetworkMode::Hybrid);
    cluster.run(500);
    cluster.order_mode(0, NetworkMode::Hybrid, Some(1));
    cluster.run(500);
    let mut session = Session::open(&mut cluster, 2);
    cluster.load(&mut session, 2, 30);
    cluster.run(500);
    let liar = Liar::new(3);
    cluster.nodes[3].replica = None;
    let epoch = cluster.status(2).epoch;
    for round in 0..20 {
        liar.say_to_all(&mut cluster, &PeerMessage::Behind { epoch });
        let frame = session.put(&format!("r{round}"), b"v");
        cluster.send(2, &frame);
        cluster.run(30);
        for honest in 0..3 {
            assert!(!cluster.status(honest).transferring, "replica {honest} fetches what it has");
        }
    }
    let status = cluster.status(2);
    assert_eq!((status.protocol, status.epoch), (ProtocolName::Raft, epoch));
    assert!(cluster.counted(2, "told to be behind by somebody who cannot know") >= 20);
    // Nor can the leader, of one that has executed what is anchored.
    let leader = Liar::new(1);
    cluster.nodes[1].replica = None;
    leader.say(&mut cluster, 2, &PeerMessage::Behind { epoch });
    cluster.run(2);
    assert!(!cluster.status(2).transferring);
}

#[test]
fn a_word_beyond_all_places_is_refused() {
    let mut cluster = Cluster::with(4, crash(4), NetworkMode::Hybrid);
    cluster.run(1_000);
    let liar = Liar::new(3);
    cluster.nodes[3].replica = None;
    let known = cluster.segment(2);
    let id = cluster.genesis.cluster();
    let last = Place { index: Index(u64::MAX), term: Term(1 << 60), chain: known.anchor.chain };
    let sealed = Sealed { epoch: known.epoch, speaker: liar.speaker, last };
    liar.say_to_all(&mut cluster, &PeerMessage::Sealed(Signed::new(sealed, id, &liar.crypto)));
    for anchor in [u64::MAX, u64::MAX - 1] {
        let suspect = dwcp_log::seal::Suspect { epoch: known.epoch, speaker: liar.speaker, anchor };
        liar.say_to_all(&mut cluster, &PeerMessage::Suspect(Signed::new(suspect, id, &liar.crypto)));
    }
    let empty = PeerMessage::Entries { epoch: known.epoch, first: Index(u64::MAX), entries: Vec::new() };
    liar.say_to_all(&mut cluster, &empty);
    cluster.run(3_000);
    assert_eq!(cluster.status(2).epoch, Epoch(1), "a segment goes on");
    let mut session = Session::open(&mut cluster, 2);
    cluster.load(&mut session, 2, 5);
    cluster.assert_one_log(&[0, 1, 2]);
}

/// What a lying leader sends one member in place of its log: the same entries without their commands, under chains that
/// fit.
fn led_astray(leader: u8, member: u8, base: VirtualLog) -> impl FnMut(u8, u8, Bytes) -> Option<Bytes> {
    let mut chains: BTreeMap<Index, VirtualLog> = BTreeMap::new();
    move |from, to, bytes| {
        let Ok(PeerMessage::Segment { epoch, bytes: inner }) = dwcp_base::decode(&bytes) else {
            return Some(bytes);
        };
        if (from, to) != (leader, member) {
            return Some(bytes);
        }
        let Ok(mut message) = RaftMessage::from_bytes(&inner) else { return Some(bytes) };
        let Said::Append { prev, entries, .. } = &mut message.said else { return Some(bytes) };
        let mut log = chains.get(&prev.index).copied().unwrap_or(VirtualLog { chain: prev.chain, ..base });
        prev.chain = log.chain;
        for (index, entry) in (prev.index.0 + 1..).map(Index).zip(entries.iter_mut()) {
            if let Payload::Batch { time, .. } = entry.payload() {
                entry.body = Body::new(&Payload::Batch { time, frames: Vec::new() }).unwrap();
            }
            log.append(&entry.digest());
            chains.insert(index, log);
        }
        Some(Bytes::from(dwcp_base::encode(&PeerMessage::Segment { epoch, bytes: message.to_bytes() })))
    }
}

#[test]
fn a_member_that_a_leader_led_astray_follows_the_anchored_log_again() {
    let mut cluster = Cluster::with(4, crash(4), NetworkMode::Hybrid);
    cluster.run(500);
    cluster.order_mode(0, NetworkMode::Hybrid, Some(1));
    cluster.run(500);
    let mut session = Session::open(&mut cluster, 2);
    cluster.load(&mut session, 2, 10);
    cluster.run(300);
    let known = cluster.segment(3);
    cluster.twist = Some(Box::new(led_astray(1, 3, known.base)));
    let epoch = cluster.status(3).epoch;
    // Commands come all the while, so what it takes for committed goes beyond the Anchor that shows it; then no more, so that
    // Anchor is the last.
    let diverged = |event: &Event| matches!(event, Event::AnchorDiverged { .. });
    for index in 0..500 {
        if cluster.events(3, diverged) > 0 {
            break;
        }
        let frame = session.put(&format!("a{index}"), b"v");
        cluster.send(2, &frame);
        cluster.run(1);
    }
    assert_eq!(cluster.events(3, diverged), 1, "it was led astray, and noticed: {:#?}", cluster.status(3));
    cluster.twist = None;
    cluster.run(2_000);
    let before = cluster.events(3, diverged);
    cluster.load(&mut session, 2, 30);
    cluster.run(2_000);
    assert_eq!(cluster.events(3, diverged), before, "it does not go astray by itself again");
    assert_eq!(cluster.status(3).epoch, epoch, "the segment is still open");
    cluster.assert_one_log(&[0, 1, 2, 3]);
}

#[test]
fn a_convergent_frame_that_the_root_ordered_is_served_by_the_segment() {
    let mut cluster = Cluster::with(4, crash(4), NetworkMode::Hybrid);
    cluster.run(500);
    cluster.order_mode(0, NetworkMode::Hybrid, Some(1));
    cluster.run(500);
    // A frame on its way to the leader is kept back, and the root's primary orders it past the leader.
    let (keep, kept) = std::sync::mpsc::channel();
    cluster.twist = Some(Box::new(move |_, _, bytes| match dwcp_base::decode(&bytes) {
        Ok(PeerMessage::SyncOrder { frame }) => {
            keep.send(frame).unwrap();
            None
        }
        _ => Some(bytes),
    }));
    cluster.write(2, 1, vec![syncing::put("a", "1")]);
    cluster.run(20);
    cluster.twist = None;
    let frame = kept.try_recv().expect("it asks for its place in the log");
    let epoch = cluster.status(2).epoch;
    let (executed, time) = (cluster.control(2).executed, cluster.control(2).steering.time);
    let liar = Liar::new(0);
    cluster.nodes[0].replica = None;
    cluster.nodes[0].inbox.clear();
    liar.propose(&mut cluster, executed.next(), time, vec![RootEntry::Batch(vec![frame])]);
    cluster.run(10);
    assert_eq!(cluster.control(2).executed, executed.next());
    cluster.run(12_000);
    let suspected = |event: &Event| matches!(event, Event::Suspected { .. });
    for honest in 1..4 {
        assert_eq!(cluster.events(honest, suspected), 0, "replica {honest}: it was served");
        assert_eq!(cluster.status(honest).epoch, epoch);
    }
}

/// A member that slept through a segment's end speaks of it until it knows that it is over.
#[test]
fn whoever_speaks_of_an_epoch_that_is_over_is_told_where_the_others_stand() {
    let mut cluster = Cluster::with(4, crash(4), NetworkMode::Hybrid);
    cluster.run(500);
    let over = cluster.segment(0);
    cluster.order_mode(0, NetworkMode::Hybrid, Some(1));
    cluster.run(500);
    let liar = Liar::new(3);
    cluster.nodes[3].replica = None;
    cluster.nodes[3].inbox.clear();
    cluster.run(2_000);
    assert!(cluster.control(0).fold.epoch() > over.epoch, "the operator's order ended it");

    let (id, epoch) = (cluster.genesis.cluster(), over.epoch);
    let suspect = Suspect { epoch, speaker: liar.speaker, anchor: over.anchor.number };
    let suspect = Signed::new(suspect, id, &liar.crypto);
    let last = Place { index: over.anchor.index, term: Term(1), chain: over.anchor.chain };
    let sealed = Signed::new(Sealed { epoch, speaker: liar.speaker, last }, id, &liar.crypto);
    let stop = StopCert { suspects: vec![suspect] };
    let words =
        [PeerMessage::Suspect(suspect), PeerMessage::Sealed(sealed), PeerMessage::Stop { epoch, stop }];
    let told = |cluster: &mut Cluster| {
        cluster.to_the_dead.clear();
        cluster.run(5);
        let stands = |message| match message {
            PeerMessage::Pbft(Message::Standing(standing)) => Some(standing.executed),
            _ => None,
        };
        cluster.heard_by(&liar, stands)
    };
    let counted = |cluster: &Cluster| -> u64 {
        (0..3).map(|of| cluster.counted(of, "messages of epochs that are over")).sum()
    };
    for word in words {
        // Help has its pace, so that who asks all the time gets no more.
        cluster.run(1_500);
        let quiet = (0..100).any(|_| told(&mut cluster).is_empty() && told(&mut cluster).is_empty());
        assert!(quiet, "nobody says it unasked just now");
        let before = counted(&cluster);
        liar.say_to_all(&mut cluster, &word);
        let stand = told(&mut cluster);
        assert_eq!(stand.len(), 3, "{word:?}");
        assert!(stand.iter().all(|executed| *executed == cluster.control(0).executed), "{stand:?}");
        liar.say_to_all(&mut cluster, &word);
        assert!(told(&mut cluster).is_empty(), "{word:?} again, at once");
        assert_eq!(counted(&cluster) - before, 6, "{word:?}");
    }
}
