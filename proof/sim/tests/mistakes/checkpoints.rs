//! OSDI '99 section 4.3: checkpoints, what their digests cover, garbage collection; and the snapshots that travel under
//! their certificates (TOCS '02 section 6.2).

use super::cluster::{Cluster, Session};
use super::table::{Table, WALL_MS, genesis, with_rule, without};
use bytes::Bytes;
use dwcp_base::{LogTime, Mutant, Mutants, Position, ReplicaId, Sequence, decode, encode};
use dwcp_pbft::{Message, Vote};
use dwcp_replica::{Control, Event, PeerMessage, SnapshotMeta};
use dwcp_state::kv::Kv;
use dwcp_state::{CheckedFrame, ClientFrame, RestoreError, State, state_digest};

/// The liar and one honest replica that it misled sign a digest that nobody else has.
fn two_of_four(mutants: Mutants) -> Sequence {
    let mut table = Table::new(4, &[3], mutants);
    for voter in [2, 3] {
        table.hand(voter, 1, table.vote(voter, Vote::Checkpoint, 0, 8, b"a state nobody has"));
    }
    table.seat(1).core().stable_sequence()
}

/// A checkpoint is stable when a quorum signed it. f + 1 prove that one honest replica has it, not that a later quorum
/// must meet somebody who has.
#[test]
fn a_checkpoint_is_stable_with_a_quorum_and_not_before() {
    assert_eq!(two_of_four(with_rule()), Sequence::ZERO);
    assert_eq!(two_of_four(without(Mutant::WeakCheckpoint)), Sequence(8));
}

/// The log is cut at stable checkpoints: however long the run, the slots in memory stay within the window.
#[test]
fn the_log_is_cut_at_stable_checkpoints() {
    let mut table = Table::new(4, &[], with_rule());
    for round in 0..100 {
        let sequence = table.propose(0, b"payload");
        assert_eq!(sequence, Sequence(round + 1));
        table.pass(|_| true);
    }
    for id in 0..4 {
        let core = table.seat(id).core();
        assert_eq!((core.delivered(), core.stable_sequence()), (Sequence(100), Sequence(96)));
        let slots = format!("{core:?}").matches("Slot {").count();
        assert!(slots <= 16, "r{id} keeps {slots} slots");
    }
}

/// Without the other replicas' checkpoints the window closes, and the primary stops rather than run ahead.
#[test]
fn without_checkpoints_the_primary_stops_at_the_window() {
    let mut table = Table::new(4, &[], with_rule());
    for _ in 0..100 {
        if table.seat(0).core().room() == 0 {
            break;
        }
        table.propose(0, b"payload");
        table.pass(|letter| {
            !matches!(&letter.message, Message::Vote(vote) if vote.statement.claim.vote == Vote::Checkpoint)
        });
    }
    assert_eq!(table.seat(0).core().delivered(), Sequence(16));
}

fn state_of(frames: &[CheckedFrame], mutants: Mutants) -> State<Kv> {
    let genesis = genesis(4, "state");
    let mut state = State::new(&genesis, Kv::new(genesis.quota_bytes), mutants);
    for (index, frame) in frames.iter().enumerate() {
        state.begin_entry(Position(index as u64 + 1), LogTime(genesis.created_unix_ms));
        state.execute(frame);
    }
    state
}

/// A copy made chunk by chunk from the last to the first, so that everything is inserted in another order. None when a
/// chunk is not what its digest says.
fn copy_of(state: &mut State<Kv>, mutants: Mutants) -> Option<State<Kv>> {
    let genesis = genesis(4, "state");
    let frozen = state.freeze();
    let mut restorer = State::restore(&genesis, Kv::new(genesis.quota_bytes), mutants);
    for index in (0..frozen.chunk_count()).rev() {
        let chunk = frozen.chunk(index).unwrap();
        restorer.chunk(index, &chunk, &frozen.digests()[index as usize]).ok()?;
    }
    Some(restorer.finish().unwrap())
}

fn frames(sessions: u8, commands: u64) -> Vec<CheckedFrame> {
    let cluster = genesis(4, "state").cluster();
    let mut frames = Vec::new();
    let mut open = Vec::new();
    for number in 0..sessions {
        let session = Session::new(number, cluster);
        frames.push(session.open_frame(WALL_MS + 1_000));
        open.push(session);
    }
    for round in 0..commands {
        for session in &mut open {
            frames.push(session.put(&format!("key {}", round * 7 % 13), b"value"));
        }
    }
    frames.iter().map(|frame| ClientFrame::decode(frame.encode()).unwrap()).collect()
}

/// Five commands of one session, which come in another order than they were numbered.
fn out_of_order() -> Vec<CheckedFrame> {
    let mut session = Session::new(0, genesis(4, "state").cluster());
    let open = session.open_frame(WALL_MS + 1_000);
    let puts: Vec<ClientFrame> =
        (0..5).map(|index| session.put_above(1, &format!("k{index}"), b"v")).collect();
    let came = [&open, &puts[3], &puts[0], &puts[4], &puts[2], &puts[1]];
    came.iter().map(|frame| ClientFrame::decode(frame.encode()).unwrap()).collect()
}

/// Whether one replica that lived through the commands and another that was restored from a snapshot backwards have equal
/// digests, then and after whatever both execute next.
fn digests_agree(frames: &[CheckedFrame], mutants: Mutants) -> bool {
    let (before, after) = frames.split_at(frames.len() / 2 + 1);
    let mut lived = state_of(before, mutants);
    let Some(mut restored) = copy_of(&mut lived, mutants) else { return false };
    let then = lived.chunk_digests() == restored.chunk_digests();
    for (index, frame) in after.iter().enumerate() {
        for state in [&mut lived, &mut restored] {
            state.begin_entry(Position(1_000 + index as u64), LogTime(WALL_MS));
            state.execute(frame);
        }
    }
    assert_ne!(
        state_digest(&lived.chunk_digests()),
        state_digest(&state_of(before, mutants).chunk_digests())
    );
    then && lived.chunk_digests() == restored.chunk_digests()
}

/// The rule: equal states have equal digests, however they came about.
#[test]
fn a_digest_does_not_depend_on_the_order_in_which_a_state_was_filled() {
    for frames in [frames(20, 12), out_of_order()] {
        assert!(digests_agree(&frames, with_rule()));
    }
    assert!(!digests_agree(&out_of_order(), without(Mutant::DigestInArrivalOrder)));
}

/// Whether a command replayed to a replica that was restored from a snapshot runs a second time.
fn replay_across_a_snapshot(mutants: Mutants) -> u64 {
    let frames = frames(1, 1);
    let mut lived = state_of(&frames, mutants);
    let mut restored = copy_of(&mut lived, mutants).expect("it is what it says");
    let before = restored.machine().revision();
    restored.begin_entry(Position(1_000), LogTime(WALL_MS));
    // The liar replays everything it ever saw, the session's open included.
    for frame in &frames {
        restored.execute(frame);
    }
    restored.machine().revision() - before
}

/// The session table is state: a snapshot without it opens every command to replay.
#[test]
fn a_command_replayed_across_a_snapshot_does_not_run_again() {
    assert_eq!(replay_across_a_snapshot(with_rule()), 0);
    assert_eq!(replay_across_a_snapshot(without(Mutant::SnapshotWithoutSessions)), 1);
}

/// Whether two replicas that disagree about sessions alone would sign the same checkpoint.
fn sessions_differ_unseen(mutants: Mutants) -> bool {
    let frames = frames(2, 1);
    // The same command under another number.
    let digest_with = |first: u64| {
        let mut state = state_of(&frames, mutants);
        let nothing = dwcp_state::SessionFrame {
            session_key: Session::new(0, genesis(4, "state").cluster()).key(),
            low_water: 2,
            first,
            commands: vec![dwcp_state::Command::Nothing.encode()],
        };
        let frame = Session::new(0, genesis(4, "state").cluster()).sign(&nothing);
        state.execute(&ClientFrame::decode(frame.encode()).unwrap());
        state.digest()
    };
    digest_with(2) == digest_with(3)
}

#[test]
fn the_digest_covers_the_session_table() {
    assert!(!sessions_differ_unseen(with_rule()));
    assert!(sessions_differ_unseen(without(Mutant::DigestWithoutSessions)));
}

/// A cluster whose client filled sixty keys with this byte while r3 slept.
pub fn filled_with(byte: u8, mutants: Mutants) -> Cluster {
    let mut cluster = Cluster::new(4, mutants);
    let mut session = Session::new(1, cluster.genesis.cluster());
    cluster.send(1, &session.open_frame(cluster.wall_ms() + 30_000));
    cluster.run(50);
    cluster.stop(3);
    for index in 0..60 {
        cluster.send(1, &session.put(&format!("k{index}"), &[byte; 8_000]));
        cluster.run(10);
    }
    cluster
}

/// r3 comes back and at first reaches no donor but r2.
fn wake_r3_beside_r2(cluster: &mut Cluster) {
    cluster.cut = Some(|from, to, message| {
        to == 3 && from != 2 && matches!(message, PeerMessage::Offer(_) | PeerMessage::Chunk { .. })
    });
    cluster.start(3);
    cluster.run(1_000);
    cluster.cut = None;
    cluster.run(4_000);
}

/// What r3 answers to whoever reads k0.
fn first_byte(cluster: &Cluster) -> Option<u8> {
    cluster.value(3, "k0").and_then(|value| value.first().copied())
}

fn assert_r3_has_the_truth(cluster: &mut Cluster) {
    let dropped = cluster.events(3, |event| matches!(event, Event::DonorDropped { donor: ReplicaId(2), .. }));
    assert!(dropped >= 1, "r2 was found out");
    assert_eq!(cluster.events(3, |event| matches!(event, Event::StateTransferFinished { .. })), 1);
    assert_eq!(cluster.events(3, |event| matches!(event, Event::Diverged { .. })), 0);
    assert_eq!(first_byte(cluster), Some(7));
    assert!(cluster.agreed(&[0, 1, 2, 3]));
}

/// A donor proves nothing by itself: every chunk is compared with its digest, whoever sends it.
#[test]
fn a_donor_that_alters_a_chunk_is_dropped_and_the_truth_fetched_from_others() {
    let mut cluster = filled_with(7, with_rule());
    cluster.spoil = Some(Box::new(|from, _, message| {
        if from == 2
            && let PeerMessage::Chunk { bytes, .. } = message
        {
            let mut spoiled = bytes.to_vec();
            spoiled.iter_mut().filter(|byte| **byte == 7).for_each(|byte| *byte = 8);
            *bytes = Bytes::from(spoiled);
        }
    }));
    wake_r3_beside_r2(&mut cluster);
    assert_r3_has_the_truth(&mut cluster);
}

/// r2 offers the truth and changes one number in the chunk of what is neither sessions nor keys.
fn given_another_control(mutants: Mutants) -> Cluster {
    let mut cluster = filled_with(7, mutants);
    cluster.spoil = Some(Box::new(|from, _, message| {
        if from == 2
            && let PeerMessage::Chunk { index: 0, bytes, .. } = message
        {
            let mut control: Control = decode(bytes).unwrap();
            control.bytes_executed += 1;
            *bytes = Bytes::from(encode(&control));
        }
    }));
    wake_r3_beside_r2(&mut cluster);
    cluster
}

/// The offer was good, and all the other chunks are: it is the chunk's own digest that tells.
#[test]
fn a_chunk_is_compared_with_its_own_digest() {
    assert_r3_has_the_truth(&mut given_another_control(with_rule()));
    let cluster = given_another_control(without(Mutant::StateTransferUnchecked));
    let dropped = |event: &Event| matches!(event, Event::DonorDropped { .. });
    let finished = |event: &Event| matches!(event, Event::StateTransferFinished { .. });
    let diverged = |event: &Event| matches!(event, Event::Diverged { .. });
    assert_eq!(cluster.events(3, dropped), 0, "nobody was found out");
    assert!(
        cluster.events(3, finished) >= 1 && cluster.events(3, diverged) >= 1,
        "r3 took what nobody signed"
    );
}

/// r2 offers a snapshot that fits together in itself, but is of a history that never was, under a genuine certificate.
fn offered_another_history(mutants: Mutants) -> Cluster {
    let mut cluster = filled_with(7, mutants);
    let invented = filled_with(8, with_rule()).snapshot_of(2);
    cluster.plant_snapshot(2, &invented);
    let digests = decode::<SnapshotMeta>(&invented.meta).unwrap().digests;
    cluster.spoil = Some(Box::new(move |from, _, message| {
        if from == 2
            && let PeerMessage::Offer(meta) = message
        {
            meta.digests.clone_from(&digests);
        }
    }));
    wake_r3_beside_r2(&mut cluster);
    cluster
}

/// What a quorum signed is the digest of all chunk digests; an offer that does not lead there is a lie.
#[test]
fn a_donor_that_offers_another_history_is_dropped() {
    assert_r3_has_the_truth(&mut offered_another_history(with_rule()));
    let cluster = offered_another_history(without(Mutant::StateTransferUnchecked));
    let finished = |event: &Event| matches!(event, Event::StateTransferFinished { .. });
    let diverged = |event: &Event| matches!(event, Event::Diverged { .. });
    assert!(
        cluster.events(3, finished) >= 1 && cluster.events(3, diverged) >= 1,
        "r3 served what nobody wrote"
    );
}

/// A genuine snapshot of a cluster is of no use in another.
#[test]
fn a_snapshot_of_another_cluster_is_refused() {
    let mut state = state_of(&frames(1, 1), with_rule());
    let frozen = state.freeze();
    let other = genesis(4, "another state");
    let mut restorer = State::restore(&other, Kv::new(other.quota_bytes), with_rule());
    let control = frozen.chunk(0).unwrap();
    let refused = restorer.chunk(0, &control, &frozen.digests()[0]);
    assert!(matches!(refused, Err(RestoreError::OtherCluster)), "{refused:?}");
    // That name is all that tells: the very chunk is taken where it is the right one, and all the others fit here too.
    let own = genesis(4, "state");
    let mut unaware = State::restore(&own, Kv::new(own.quota_bytes), with_rule());
    assert!(unaware.chunk(0, &control, &frozen.digests()[0]).is_ok());
    for index in 1..frozen.chunk_count() {
        let chunk = frozen.chunk(index).unwrap();
        assert!(restorer.chunk(index, &chunk, &frozen.digests()[index as usize]).is_ok());
    }
    assert_eq!(restorer.missing().collect::<Vec<_>>(), [0]);
    assert!(restorer.finish().is_err(), "a state without it is none");
}
