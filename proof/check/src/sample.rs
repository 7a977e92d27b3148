//! A small good history that the judges' tests spoil in one way at a time: three founding replicas, one of which restarts and
//! executes again what it had executed, one that is restored from a snapshot; a replaced incarnation; two clients.

use crate::history::*;
use crate::operation::{Answer, Operation};

const SEQUENCES: u64 = 8;
/// Sequence whose entry is empty and takes no position.
const NOOP: u64 = 5;

fn id(seq: u64) -> CommandId {
    CommandId { session: 7 << 100, seq }
}

fn executed(sequence: u64) -> ReplicaEvent {
    let position = sequence - u64::from(sequence >= NOOP);
    let run = |seq| ExecutedCommand { id: id(seq), result: [seq as u8; 32] };
    let commands = if sequence == NOOP { vec![] } else { vec![run(2 * sequence), run(2 * sequence + 1)] };
    ReplicaEvent::Executed(Executed {
        epoch: 0,
        sequence,
        position,
        digest: [100 + sequence as u8; 32],
        chain: None,
        commands,
    })
}

fn vote(kind: VoteKind, sequence: u64) -> ReplicaEvent {
    let vote = Vote { kind, epoch: 0, view: 0, sequence, digest: [100 + sequence as u8; 32] };
    ReplicaEvent::Voted(vote)
}

fn run(journal: &mut ReplicaJournal, sequences: std::ops::RangeInclusive<u64>) {
    for sequence in sequences {
        let at_us = 1_000 + 10 * sequence;
        journal.note(at_us, vote(VoteKind::Prepare, sequence));
        journal.note(at_us, vote(VoteKind::Commit, sequence));
        journal.note(at_us, executed(sequence));
        if sequence.is_multiple_of(4) {
            journal.note(at_us, ReplicaEvent::Checkpoint { epoch: 0, sequence, state: [sequence as u8; 32] });
        }
    }
}

pub(crate) fn cluster() -> History {
    let mut history = History::default();
    let mut steady = ReplicaJournal::new(0, 1, true, true);
    steady.note(0, ReplicaEvent::Boot);
    run(&mut steady, 1..=SEQUENCES);
    let mut restarted = ReplicaJournal::new(1, 1, true, true);
    restarted.note(0, ReplicaEvent::Boot);
    run(&mut restarted, 1..=6);
    restarted.note(1_500, ReplicaEvent::Boot);
    run(&mut restarted, 3..=SEQUENCES);
    let mut restored = ReplicaJournal::new(2, 1, true, true);
    restored.note(0, ReplicaEvent::Boot);
    run(&mut restored, 1..=3);
    restored.note(1_500, ReplicaEvent::Restored { epoch: 0, sequence: 5 });
    run(&mut restored, 6..=SEQUENCES);
    let mut replaced = ReplicaJournal::new(3, 2, true, false);
    replaced.note(0, ReplicaEvent::Boot);
    replaced.note(900, ReplicaEvent::Restored { epoch: 0, sequence: 3 });
    replaced.note(901, ReplicaEvent::Admitted);
    run(&mut replaced, 4..=SEQUENCES);
    history.replicas = vec![steady, restarted, restored, replaced];

    let mut client = ClientJournal::new(1);
    for sequence in (1..=SEQUENCES).filter(|sequence| *sequence != NOOP) {
        for seq in [2 * sequence, 2 * sequence + 1] {
            let invoked_at_us = 900 + 10 * sequence;
            let place = client.invoked(id(seq), invoked_at_us, Operation::put(format!("k{seq}"), "v"));
            let mut reply = Reply::new(seq, Answer::Put { prev: None });
            reply.digest = Some([seq as u8; 32]);
            client.returned(place, invoked_at_us + 300, reply, Label::Byzantine);
        }
    }
    client.commands.last_mut().unwrap().outcome = Outcome::Unknown { gave_up_at_us: Some(1_200) };
    let refused = client.invoked(id(1_000), 1_010, Operation::put("x", "y"));
    client.refused(refused, 1_020, "too large");
    client.invoked(id(1_001), 1_030, Operation::put("x", "z"));
    history.clients = vec![client];
    history
}

pub(crate) fn entries(journal: &mut ReplicaJournal, sequence: u64) -> impl Iterator<Item = &mut Executed> {
    journal.events.iter_mut().filter_map(move |stamped| match &mut stamped.event {
        ReplicaEvent::Executed(entry) if entry.sequence == sequence => Some(entry),
        _ => None,
    })
}

pub(crate) fn entry(journal: &mut ReplicaJournal, sequence: u64) -> &mut Executed {
    entries(journal, sequence).last().unwrap()
}
