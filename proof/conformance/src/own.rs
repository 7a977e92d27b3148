//! Our own Raft before the judges: how its messages read, and how to forge them. Nothing here looks inside a node.

use crate::subject::{Claim, Scene, Subject};
use bytes::Bytes;
use dwcp_base::{Chance, Epoch, Hash, LogTime, Mutants};
use dwcp_raft::message::Payload;
use dwcp_raft::{Body, Conflict, Entry, Index, Message, OwnRaft, Place, RaftMaker, Said, Term};

/// `dwcp_raft::Raft`, with rules switched off where a test says so.
#[derive(Clone, Copy, Debug, Default)]
pub struct Own {
    pub mutants: Mutants,
}

impl Subject for Own {
    fn name(&self) -> &str {
        "dwcp-raft"
    }

    fn maker(&self) -> &dyn RaftMaker {
        &OwnRaft
    }

    fn claim(&self, message: &[u8]) -> Claim {
        let Ok(message) = Message::from_bytes(message) else { return Claim::Nothing };
        match message.said {
            Said::VoteReply { granted: true } => Claim::Vote { term: message.term },
            Said::Accepted { matched } => Claim::Holds { term: message.term, index: matched },
            Said::Append { .. } => Claim::Entries,
            _ => Claim::Nothing,
        }
    }

    fn forge(&self, chance: &mut Chance, scene: &Scene) -> Option<Bytes> {
        Some(forge(chance, scene).to_bytes())
    }

    fn mutants(&self) -> Mutants {
        self.mutants
    }
}

/// A number near what is true, or at an end of the range.
pub fn odd_number(chance: &mut Chance, near: u64) -> u64 {
    match chance.below(10) {
        0 => 0,
        1 => u64::MAX - chance.below(3),
        2 => u64::MAX / 2 + chance.below(3),
        3 => chance.below(1 << 20),
        4 => near.saturating_add(1 << 33),
        _ => near.saturating_add(chance.below(7)).saturating_sub(3),
    }
}

fn odd_place(chance: &mut Chance, scene: &Scene) -> Place {
    let near = *chance.pick(&[scene.last, scene.committed, Place::default()]).expect("three places");
    match chance.below(3) {
        0 => near,
        1 => Place { index: Index(odd_number(chance, near.index.0)), ..near },
        _ => Place {
            index: Index(odd_number(chance, near.index.0)),
            term: Term(odd_number(chance, near.term.0)),
            chain: Hash::of(&chance.next_u64().to_le_bytes()),
        },
    }
}

fn odd_entries(chance: &mut Chance, scene: &Scene) -> Vec<Entry> {
    let count = chance.below(5);
    (0..count)
        .map(|_| {
            let payload = match chance.below(5) {
                0 => Payload::Empty,
                1 => Payload::Marker,
                2 => Payload::Tick { time: LogTime(chance.next_u64()) },
                _ => Payload::Batch {
                    time: LogTime(chance.below(9)),
                    frames: vec![Bytes::from(vec![7; 1 + chance.below(40) as usize])],
                },
            };
            let body = Body::new(&payload).expect("a small payload is sound");
            Entry { term: Term(odd_number(chance, scene.term.0)), body }
        })
        .collect()
}

fn forge(chance: &mut Chance, scene: &Scene) -> Message {
    let commit = Index(odd_number(chance, scene.commit.0));
    let said = match chance.below(14) {
        0 => Said::PreVote { last: odd_place(chance, scene) },
        1 => Said::PreVoteReply { granted: chance.per_mille(800) },
        2 => Said::Vote { last: odd_place(chance, scene), transfer: chance.per_mille(500) },
        3 => Said::VoteReply { granted: chance.per_mille(800) },
        4..=6 => Said::Append { prev: odd_place(chance, scene), commit, entries: odd_entries(chance, scene) },
        7 => Said::Accepted { matched: Index(odd_number(chance, scene.last.index.0)) },
        8 => Said::Refused(Conflict {
            refused: Index(odd_number(chance, scene.last.index.0)),
            index: Index(odd_number(chance, scene.commit.0)),
            term: Term(odd_number(chance, scene.term.0)),
        }),
        9 => Said::Heartbeat { commit, round: odd_number(chance, 3) },
        10 => Said::HeartbeatReply { round: odd_number(chance, 3) },
        11 => Said::TimeoutNow,
        12 => Said::Stale,
        _ => Said::Committed { through: commit },
    };
    let epoch = if chance.per_mille(950) { scene.epoch } else { Epoch(odd_number(chance, scene.epoch.0)) };
    Message { epoch, term: Term(odd_number(chance, scene.term.0)), said }
}
