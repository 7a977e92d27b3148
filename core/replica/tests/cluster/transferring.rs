//! State transfer among peers that are slow on purpose, send without end, ask without end, or have no time just now: what
//! the others can give arrives all the same, and nothing that was verified is thrown away.

use super::*;
use dwcp_replica::PeerMessage;
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// Of a part that is not a chunk's last.
const PART_BYTES: usize = 256 * 1024;

/// Four nodes with something to fetch, of which the last was away all the time.
fn with_a_sleeper() -> (Cluster, Session) {
    let mut cluster = Cluster::new(4);
    let mut session = Session::open(&mut cluster, 1);
    cluster.stop(3);
    write(&mut cluster, &mut session, 100);
    (cluster, session)
}

fn write(cluster: &mut Cluster, session: &mut Session, times: usize) {
    for index in 0..times {
        let frame = session.put(&format!("k{index}"), &[7; 8_000]);
        cluster.send(1, &frame);
        cluster.run(10);
    }
}

fn finished(cluster: &Cluster) -> usize {
    cluster.events(3, |event| matches!(event, Event::StateTransferFinished { .. }))
}

fn hand(cluster: &mut Cluster, from: u8, to: u8, message: &PeerMessage) {
    let bytes = dwcp_base::encode(message).into();
    let input = Input::Peer { from: ReplicaId(from), incarnation: Incarnation(0), bytes };
    cluster.nodes[usize::from(to)].inbox.push_back(input);
}

/// Changes what is said of snapshots on the way.
fn twist(
    cluster: &mut Cluster,
    mut change: impl FnMut(u8, u8, PeerMessage) -> Option<PeerMessage> + 'static,
) {
    cluster.twist = Some(Box::new(move |from, to, bytes| {
        if !(4..=8).contains(&bytes[0]) {
            return Some(bytes);
        }
        let message = change(from, to, dwcp_base::decode(&bytes).unwrap())?;
        Some(dwcp_base::encode(&message).into())
    }));
}

/// A whole part of nothing.
fn rubbish(sequence: Sequence, index: u32, offset: u64) -> PeerMessage {
    let bytes = Bytes::from(vec![0; PART_BYTES]);
    PeerMessage::Chunk { sequence, index, offset, bytes }
}

/// What one node was asked for and has not answered: snapshot, chunk and offset.
type Asked = Rc<RefCell<Vec<(Sequence, u32, u64)>>>;

/// Node 0 answers whoever fetches only when the story says so. What the others give is as it is.
fn with_a_slow_donor(cluster: &mut Cluster, others_offer: Rc<Cell<bool>>) -> Asked {
    let asked = Asked::default();
    let noted = Rc::clone(&asked);
    twist(cluster, move |from, to, message| match message {
        PeerMessage::FetchChunk { sequence, index, offset } if to == 0 => {
            noted.borrow_mut().push((sequence, index, offset));
            None
        }
        PeerMessage::Offer(_) if from != 0 && !others_offer.get() => None,
        message => Some(message),
    });
    asked
}

/// Lets time pass in which node 0 answers each question with a whole part of rubbish, up to 400 ms later: just in time.
fn run_with_rubbish(cluster: &mut Cluster, asked: &Asked, seconds: u64) {
    let until = cluster.now.plus(Micros::from_millis(1_000 * seconds));
    while cluster.now < until {
        let due: Vec<_> = asked.borrow_mut().drain(..).collect();
        cluster.run(200);
        for (sequence, index, offset) in due {
            hand(cluster, 0, 3, &rubbish(sequence, index, offset));
        }
    }
}

#[test]
fn a_donor_that_is_slow_without_end_holds_up_a_transfer_for_seconds() {
    let (mut cluster, _session) = with_a_sleeper();
    let asked = with_a_slow_donor(&mut cluster, Rc::new(Cell::new(true)));
    cluster.start(3);
    run_with_rubbish(&mut cluster, &asked, 1);
    assert_eq!(finished(&cluster), 0, "what node 0 was asked for is not here");
    run_with_rubbish(&mut cluster, &asked, 9);
    assert_eq!(finished(&cluster), 1, "another was asked for it");
    cluster.assert_agreed(&[0, 1, 2, 3]);
}

#[test]
fn a_donor_that_is_quick_without_end_fills_no_memory() {
    let (mut cluster, _session) = with_a_sleeper();
    let parts = Rc::new(Cell::new(0_u32));
    let counted = Rc::clone(&parts);
    // A quarter of what it could fill without a bound, so that this ends in any case.
    let most = 4_096;
    twist(&mut cluster, move |from, _, message| match message {
        PeerMessage::Chunk { sequence, index, offset, .. } if from == 0 => {
            counted.set(counted.get() + 1);
            (counted.get() < most).then(|| rubbish(sequence, index, offset))
        }
        message => Some(message),
    });
    cluster.start(3);
    cluster.run(20_000);
    assert!(parts.get() > 4, "it was asked");
    let filled = u64::from(parts.get()) * PART_BYTES as u64;
    assert!(filled < 200 << 20, "{} MiB were taken", filled >> 20);
    assert_eq!(finished(&cluster), 1);
    cluster.assert_agreed(&[0, 1, 2, 3]);
}

#[test]
fn a_newer_snapshot_is_fetched_instead_of_one_that_does_not_come() {
    let (mut cluster, mut session) = with_a_sleeper();
    let others_offer = Rc::new(Cell::new(false));
    let asked = with_a_slow_donor(&mut cluster, Rc::clone(&others_offer));
    cluster.start(3);
    run_with_rubbish(&mut cluster, &asked, 1);
    let (first, ..) = asked.borrow()[0];
    // The others go on, and what node 0 pretends to give is gone there.
    write(&mut cluster, &mut session, 40);
    others_offer.set(true);
    run_with_rubbish(&mut cluster, &asked, 3);
    assert_eq!(finished(&cluster), 0, "what is under way has its time");
    run_with_rubbish(&mut cluster, &asked, 20);
    let newer =
        |event: &Event| matches!(event, Event::StateTransferFinished { sequence } if *sequence > first);
    assert_eq!(cluster.events(3, newer), 1);
    cluster.assert_agreed(&[0, 1, 2, 3]);
}

#[test]
fn a_donor_that_gives_the_truth_a_drop_at_a_time_does_not_keep_others_away() {
    let (mut cluster, mut session) = with_a_sleeper();
    let others_offer = Rc::new(Cell::new(false));
    let offer = Rc::clone(&others_offer);
    let mut asked = 0;
    twist(&mut cluster, move |from, to, message| match message {
        // Four questions, each asked twice within half a second: a chunk in little more than a second.
        PeerMessage::FetchChunk { .. } if to == 0 => {
            asked += 1;
            Some(message).filter(|_| asked % 20 == 0)
        }
        PeerMessage::Offer(_) if from != 0 && !offer.get() => None,
        message => Some(message),
    });
    cluster.start(3);
    cluster.run(1_000);
    write(&mut cluster, &mut session, 40);
    others_offer.set(true);
    cluster.run(20_000);
    assert_eq!(finished(&cluster), 1);
    cluster.assert_agreed(&[0, 1, 2, 3]);
}

#[test]
fn a_peer_that_asks_without_end_leaves_others_their_share_of_reads() {
    let (mut cluster, _session) = with_a_sleeper();
    let sequence = *cluster.nodes[0].disk.snapshots.keys().next_back().unwrap();
    let mut out = Outbox::default();
    let now = cluster.now();
    let mut ask = |from: u8, index: u32| {
        let bytes = dwcp_base::encode(&PeerMessage::FetchChunk { sequence, index, offset: 0 }).into();
        let input = Input::Peer { from: ReplicaId(from), incarnation: Incarnation(0), bytes };
        cluster.nodes[0].replica.as_mut().unwrap().step(now, input, &mut out);
        let effects = out.drain();
        effects.into_iter().filter(|effect| matches!(effect, Effect::ReadChunk { .. })).count()
    };
    let flood: usize = (0..300).map(|index| ask(2, index)).sum();
    assert!((4..=16).contains(&flood), "{flood} reads for one peer");
    let honest: usize = (0..4).map(|index| ask(3, index)).sum();
    assert_eq!(honest, 4, "the other is served as if there was nobody else");
}

/// Runs until node 3 has 100 chunks on its disk.
fn run_to_the_middle(cluster: &mut Cluster) {
    let mut rounds = 0;
    while chunks_fetched(cluster) < 100 {
        cluster.one_round();
        rounds += 1;
        assert!(rounds < 100_000, "it does not fetch: {} chunks", chunks_fetched(cluster));
    }
}

#[test]
fn chunks_that_are_here_stay_when_nobody_has_more_of_them_for_a_while() {
    let (mut cluster, _session) = with_a_sleeper();
    let nobody = Rc::new(Cell::new(false));
    let has_none = Rc::clone(&nobody);
    twist(&mut cluster, move |_, _, message| match message {
        PeerMessage::Chunk { sequence, index, .. } if has_none.get() => {
            Some(PeerMessage::NoChunk { sequence, index })
        }
        message => Some(message),
    });
    cluster.start(3);
    run_to_the_middle(&mut cluster);
    let had = chunks_fetched(&cluster);
    nobody.set(true);
    cluster.run(2_000);
    assert!(chunks_fetched(&cluster) >= had, "{had} chunks were here, now {}", chunks_fetched(&cluster));
    nobody.set(false);
    cluster.run(2_000);
    assert_eq!(finished(&cluster), 1);
    cluster.assert_agreed(&[0, 1, 2, 3]);
}

/// A donor with too much to do says nothing, as if the question or the answer had been lost.
#[test]
fn what_is_not_answered_is_asked_for_again_and_its_donor_stays() {
    let (mut cluster, _session) = with_a_sleeper();
    let mut answered = std::collections::BTreeSet::new();
    twist(&mut cluster, move |_, _, message| match message {
        PeerMessage::Chunk { index, .. } if answered.insert(index) => None,
        message => Some(message),
    });
    cluster.start(3);
    // A quarter of a second for each dozen of chunks, not half a second.
    cluster.run(11_000);
    assert_eq!(finished(&cluster), 1);
    cluster.assert_agreed(&[0, 1, 2, 3]);
}

/// Where each node last said that it stands.
type Stands = Rc<RefCell<BTreeMap<u8, dwcp_pbft::Standing>>>;

/// A sleeper that is back. It asks for chunks only when it may, gets their last ones only when it may, and meanwhile the others
/// go on.
struct Fetching {
    cluster: Cluster,
    session: Session,
    stands: Stands,
    asks: Rc<Cell<bool>>,
    gets: Rc<Cell<bool>>,
}

impl Fetching {
    fn begun() -> Self {
        let (mut cluster, session) = with_a_sleeper();
        let (asks, gets) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(false)));
        let (may_ask, may_get) = (Rc::clone(&asks), Rc::clone(&gets));
        let stands = Stands::default();
        let noted = Rc::clone(&stands);
        cluster.twist = Some(Box::new(move |from, to, bytes| {
            let passes = match dwcp_base::decode(&bytes).unwrap() {
                PeerMessage::Pbft(dwcp_pbft::Message::Standing(standing)) => {
                    noted.borrow_mut().insert(from, standing);
                    true
                }
                PeerMessage::FetchChunk { .. } => may_ask.get(),
                PeerMessage::Chunk { index, .. } => to != 3 || index < 100 || may_get.get(),
                _ => true,
            };
            passes.then_some(bytes)
        }));
        cluster.start(3);
        cluster.run(60);
        Self { cluster, session, stands, asks, gets }
    }

    fn write(&mut self, times: usize) {
        write(&mut self.cluster, &mut self.session, times);
        self.cluster.run(60);
    }

    fn stands(&self, node: u8) -> dwcp_pbft::Standing {
        self.stands.borrow()[&node].clone()
    }

    /// It gets what it lacks, and goes on from the one snapshot that it had begun to fetch.
    fn ends_with_one(&mut self) {
        self.gets.set(true);
        self.cluster.run(5_000);
        assert_eq!(finished(&self.cluster), 1, "one snapshot was enough");
        self.cluster.assert_agreed(&[0, 1, 2, 3]);
    }
}

/// What a node keeps for laggards where nobody fetches: 128 KiB, at 8,000 bytes of payload and 2 KiB for the rest of a slot.
const SLOTS_KEPT: u64 = 13;

/// While somebody fetches a snapshot the others write the next but one: it needs neither.
#[test]
fn whoever_has_fetched_a_snapshot_finds_what_follows_it_though_newer_ones_were_written() {
    let mut fetching = Fetching::begun();
    let fetched = fetching.stands(0).snapshot;
    fetching.asks.set(true);
    run_to_the_middle(&mut fetching.cluster);
    fetching.write(20);
    for node in 0..3 {
        let stands = fetching.stands(node);
        assert!(
            stands.snapshot.0 >= fetched.0 + 16 && stands.executed.0 > fetched.0 + SLOTS_KEPT,
            "{stands:?}"
        );
        assert_eq!(stands.decided_from, fetched.next(), "r{node} has all that follows");
    }
    fetching.ends_with_one();
}

/// The donors learn of it by the first question for a chunk, not only when they write the next snapshot.
#[test]
fn what_follows_a_snapshot_is_kept_from_the_first_question_on() {
    let mut fetching = Fetching::begun();
    let fetched = fetching.stands(0).snapshot;
    let newer = |fetching: &Fetching| (0..3).all(|node| fetching.stands(node).snapshot > fetched);
    while !newer(&fetching) {
        fetching.write(1);
    }
    assert_eq!(finished(&fetching.cluster), 0);
    let written = fetching.stands(0).executed.0 - fetched.0;
    assert!(written < SLOTS_KEPT, "{written} slots since, all are still there");
    fetching.asks.set(true);
    run_to_the_middle(&mut fetching.cluster);
    // Until there are too many for those who do not know, and no snapshot is written meanwhile.
    while fetching.stands(0).executed.0 - fetched.0 <= SLOTS_KEPT {
        fetching.write(1);
    }
    fetching.ends_with_one();
}

/// A peer that has what it wanted, or went away, makes nobody keep anything for ever.
#[test]
fn no_more_is_kept_once_nobody_has_fetched_for_a_while() {
    let mut fetching = Fetching::begun();
    fetching.asks.set(true);
    run_to_the_middle(&mut fetching.cluster);
    fetching.write(20);
    fetching.ends_with_one();
    fetching.cluster.run(10_000);
    fetching.write(30);
    for node in 0..3 {
        let stands = fetching.stands(node);
        let kept = stands.executed.0 + 1 - stands.decided_from.0;
        assert!(kept <= SLOTS_KEPT, "r{node} keeps {kept} slots: {stands:?}");
    }
}
