//! OSDI '99 section 4.1, the client's side: who may be believed to have asked for what, that it happens once, and how
//! long it has to wait for company.

use super::cluster::{Cluster, Session};
use super::table::{Table, with_rule, without};
use bytes::Bytes;
use dwcp_base::{ClusterId, LogTime, Mutant, Mutants};
use dwcp_log::{Proposal, RootEntry};
use dwcp_pbft::{Message, Vote};
use dwcp_replica::{ClientReply, PeerMessage, Settings};
use dwcp_state::{ClientFrame, SessionFrame};

fn opened(n: u8, mutants: Mutants, settings: Option<Settings>) -> (Cluster, Session) {
    let mut cluster = match settings {
        Some(settings) => Cluster::with_settings(n, mutants, settings),
        None => Cluster::new(n, mutants),
    };
    let session = Session::new(1, cluster.genesis.cluster());
    cluster.send(1, &session.open_frame(cluster.wall_ms() + 30_000));
    cluster.run(50);
    (cluster, session)
}

/// A frame in the name of somebody else's session.
fn forged(victim: &Session, thief: &Session) -> ClientFrame {
    let commands = vec![super::cluster::put_of("stolen", b"yes")];
    thief.sign(&SessionFrame { session_key: victim.key(), low_water: 1, first: 1, commands })
}

/// r0, the primary, lies: it proposes what it likes for the next slot and votes for it.
fn propose_as_r0(cluster: &mut Cluster, proposal: &Proposal) {
    let payload = proposal.to_payload();
    let sequence = cluster.replica(1).control().executed.next().0;
    let table = Table::named(4, "cluster");
    let assign = table.signed(0, Table::claim(Vote::PrePrepare, 0, sequence, &payload));
    let commit = table.vote(0, Vote::Commit, 0, sequence, &payload);
    for to in 1..4 {
        let message = Message::PrePrepare { proposal: assign, payload: payload.clone() };
        cluster.put_in(0, to, &PeerMessage::Pbft(message));
        cluster.put_in(0, to, &PeerMessage::Pbft(commit.clone()));
    }
    cluster.run(100);
}

fn stolen(mutants: Mutants) -> Option<Bytes> {
    let (mut cluster, session) = opened(4, mutants, None);
    cluster.stop(0);
    let frame = forged(&session, &Session::new(2, cluster.genesis.cluster()));
    let time = LogTime(cluster.wall_ms());
    propose_as_r0(&mut cluster, &Proposal { time, entries: vec![RootEntry::Batch(vec![frame.encode()])] });
    cluster.value(2, "stolen")
}

/// "Non-faulty replicas never execute what no client asked for": backups check clients' signatures before they prepare.
#[test]
fn a_command_that_no_client_signed_is_not_prepared() {
    assert_eq!(stolen(with_rule()), None);
    assert_eq!(stolen(without(Mutant::ClientSignatureUnchecked)), Some(Bytes::from_static(b"yes")));
}

/// How many of the others leave the view of an honest primary, to which a client sent what it did not sign.
fn blamed_for_a_client(mutants: Mutants) -> usize {
    let (mut cluster, session) = opened(4, mutants, None);
    let thief = Session::new(2, cluster.genesis.cluster());
    cluster.send(0, &forged(&session, &thief));
    cluster.run(5_000);
    (1..4).filter(|id| cluster.replica(*id).protocol().view().0 > 0).count()
}

/// The rule: whether a frame is authentic is a function of its bytes, so all replicas say the same of it, and an honest
/// primary never proposes what backups refuse. (OSDI '99 section 5.2 has one code per replica, and a lying client that makes
/// some of them wrong brings down whoever proposes its request.)
#[test]
fn a_frame_is_authentic_at_every_replica_or_at_none() {
    assert_eq!(blamed_for_a_client(with_rule()), 0);
    assert!(blamed_for_a_client(without(Mutant::AdmittedUnverified)) > 0);
    let (mut cluster, mut session) = opened(4, with_rule(), None);
    let genuine = session.put("a", b"1").encode();
    let thief = Session::new(2, cluster.genesis.cluster());
    let elsewhere = Session::new(1, ClusterId([9; 32])).put("a", b"1");
    let mut frames = vec![forged(&session, &thief).encode(), elsewhere.encode()];
    // Every bit of the signature counts everywhere.
    for place in 1..=64 {
        let mut spoiled = genuine.to_vec();
        let end = spoiled.len();
        spoiled[end - place] ^= 1;
        frames.push(Bytes::from(spoiled));
    }
    for frame in &frames {
        cluster.replies.clear();
        (0..4).for_each(|id| cluster.send_bytes(id, frame.clone()));
        cluster.run(5);
        let malformed = |(_, reply): &&(u8, ClientReply)| matches!(reply, ClientReply::Malformed { .. });
        assert_eq!(cluster.replies.iter().filter(malformed).count(), 4, "all four refuse it");
    }
    cluster.run(5_000);
    cluster.send_bytes(2, genuine);
    cluster.run(100);
    assert!((0..4).all(|id| cluster.replica(id).protocol().view().0 == 0), "the primary is not to blame");
    assert!((0..4).all(|id| cluster.value(id, "a") == Some(Bytes::from_static(b"1"))));
}

/// A lying backup tells two others of a request, in the name of all, and not the primary.
fn hidden_from_the_primary(mutants: Mutants) -> Cluster {
    let (mut cluster, mut session) = opened(4, mutants, None);
    let frame = session.put("a", b"1").encode();
    for to in [1, 2] {
        cluster.put_in(3, to, &PeerMessage::Request { to_all: true, frame: frame.clone() });
    }
    cluster.run(10_000);
    cluster
}

#[test]
fn a_request_hidden_from_the_primary_does_not_cost_it_its_view() {
    let cluster = hidden_from_the_primary(with_rule());
    assert!((0..4).all(|id| cluster.replica(id).protocol().view().0 == 0));
    assert_eq!(cluster.value(1, "a"), Some(Bytes::from_static(b"1")));
    let cluster = hidden_from_the_primary(without(Mutant::RelayNotForwarded));
    assert!((0..4).any(|id| cluster.replica(id).protocol().view().0 > 0));
}

/// Whether a proposal whose clock is an hour ahead moves the log's time.
fn from_the_future(mutants: Mutants) -> bool {
    let (mut cluster, _) = opened(4, mutants, None);
    cluster.stop(0);
    let time = LogTime(cluster.wall_ms() + 3_600_000);
    propose_as_r0(&mut cluster, &Proposal { time, entries: vec![RootEntry::Batch(Vec::new())] });
    cluster.replica(1).state().log_time() == time
}

/// Log time is the proposer's word; backups bound it by their own clocks, or a liar expires everybody's sessions.
#[test]
fn a_proposal_from_the_future_is_not_prepared() {
    assert!(!from_the_future(with_rule()));
    assert!(from_the_future(without(Mutant::ClockUnchecked)));
}

/// How often a command runs that the client sends to one replica after the other.
fn runs(mutants: Mutants) -> usize {
    let (mut cluster, mut session) = opened(4, mutants, None);
    let (frame, other) = (session.put_above(1, "a", b"1"), session.put_above(1, "b", b"2"));
    cluster.send(1, &frame);
    cluster.run(50);
    cluster.send(2, &other);
    cluster.run(50);
    // A liar proposes again what was ordered long ago.
    cluster.stop(0);
    let time = LogTime(cluster.wall_ms());
    propose_as_r0(&mut cluster, &Proposal { time, entries: vec![RootEntry::Batch(vec![frame.encode()])] });
    cluster.batches(3).iter().sum::<usize>() - 1
}

/// Section 4.1: "replicas discard requests whose timestamp is lower"; here a window of results, but once is once.
#[test]
fn a_replayed_request_does_not_run_again() {
    assert_eq!(runs(with_rule()), 2);
    assert_eq!(runs(without(Mutant::NoDeduplication)), 3);
}

/// An older command that arrives after a younger one.
fn late_command_runs(mutants: Mutants) -> bool {
    let (mut cluster, mut session) = opened(4, mutants, None);
    let older = session.put_above(1, "older", b"1");
    let younger = session.put_above(1, "younger", b"1");
    cluster.send(1, &younger);
    cluster.run(50);
    cluster.send(1, &older);
    cluster.run(50);
    cluster.value(2, "older").is_some()
}

/// Commands of one session may be ordered in another order than they were numbered: each still runs.
#[test]
fn an_older_command_that_comes_late_still_runs() {
    assert!(late_command_runs(with_rule()));
    assert!(!late_command_runs(without(Mutant::SingleSequenceSession)));
}

/// Sizes of the batches in which 300 commands of one burst are ordered, given the most frames a batch may hold.
fn burst(frames_max: usize, mutants: Mutants) -> Vec<usize> {
    let settings = Settings { batch_frames_max: frames_max, ..Settings::lan() };
    let (mut cluster, mut session) = opened(4, mutants, Some(settings));
    for index in 0..300 {
        cluster.send(0, &session.put_above(1, &format!("k{index}"), b"v"));
    }
    cluster.run(500);
    let batches = cluster.batches(2)[1..].to_vec();
    assert_eq!(batches.iter().sum::<usize>(), 300);
    batches
}

/// A batch is as large as what waits: many commands share a slot under load.
#[test]
fn a_batch_grows_with_what_waits() {
    assert!(burst(1_024, with_rule()).len() <= 8, "the pipe's room, then whatever gathered meanwhile");
    assert_eq!(burst(1, with_rule()).len(), 300, "a fixed size of one pays a quorum for every command");
    assert_eq!(burst(1_024, without(Mutant::FixedBatch)).len(), 300);
}

/// How long 20 commands of a lone client took, the slowest of them, and the sizes of their batches.
fn lone_client(mutants: Mutants) -> (u64, Vec<usize>) {
    let (mut cluster, mut session) = opened(4, mutants, None);
    cluster.run(1_000);
    let before = cluster.batches(0).len();
    let mut slowest_us = 0;
    for index in 0..20 {
        let sent_us = cluster.now_us();
        cluster.send(0, &session.put(&format!("k{index}"), b"v"));
        slowest_us = slowest_us.max(cluster.run_until_reply(0) - sent_us);
        cluster.run(5);
    }
    (slowest_us, cluster.batches(0)[before..].to_vec())
}

/// And as small: a lone client's command is proposed at once. With a fixed size (or a fixed wait for company) it waits for
/// others that never come.
#[test]
fn a_lone_command_waits_for_nobody() {
    let (slowest_us, batches) = lone_client(with_rule());
    // Hand-over, pre-prepare, prepare, commit: four hops of 100 us each in this cluster, and some.
    assert!(slowest_us <= 1_000, "{slowest_us} us");
    assert_eq!(batches, [1; 20]);
    let (slowest_us, _) = lone_client(without(Mutant::BatchWaits));
    assert!(slowest_us >= 100_000, "{slowest_us} us: it did not wait");
}
