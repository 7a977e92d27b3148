//! Messages in the foreign language that no honest member would send.

use crate::border::foreign_id;
use conformance::Scene;
use conformance::own::odd_number;
use dwcp_base::Chance;
use dwcp_raft::{Body, Payload};
use raft::eraftpb::{Entry, EntryType, Message, MessageType};

pub fn forge(chance: &mut Chance, scene: &Scene) -> Message {
    use MessageType as T;
    const KINDS: [MessageType; 19] = [
        T::MsgHup,
        T::MsgBeat,
        T::MsgPropose,
        T::MsgAppend,
        T::MsgAppend,
        T::MsgAppend,
        T::MsgAppendResponse,
        T::MsgRequestVote,
        T::MsgRequestVoteResponse,
        T::MsgSnapshot,
        T::MsgHeartbeat,
        T::MsgHeartbeatResponse,
        T::MsgUnreachable,
        T::MsgTransferLeader,
        T::MsgTimeoutNow,
        T::MsgReadIndex,
        T::MsgReadIndexResp,
        T::MsgRequestPreVote,
        T::MsgRequestPreVoteResponse,
    ];
    let mut message = Message::default();
    message.set_msg_type(*chance.pick(&KINDS).expect("kinds"));
    message.from = if chance.per_mille(950) { foreign_id(scene.from) } else { chance.below(9) };
    message.to = if chance.per_mille(950) { foreign_id(scene.to) } else { chance.below(9) };
    message.term = odd_number(chance, scene.term.0);
    message.log_term =
        if chance.per_mille(500) { scene.last.term.0 } else { odd_number(chance, scene.term.0) };
    message.index =
        if chance.per_mille(500) { scene.last.index.0 } else { odd_number(chance, scene.commit.0) };
    message.commit = odd_number(chance, scene.commit.0);
    message.commit_term = odd_number(chance, scene.term.0);
    message.reject = chance.per_mille(300);
    message.reject_hint = odd_number(chance, scene.last.index.0);
    if chance.per_mille(50) {
        message.request_snapshot = odd_number(chance, scene.last.index.0);
    }
    if chance.per_mille(200) {
        message.context = chance.below(4).to_le_bytes().to_vec().into();
    }
    for step in 0..chance.below(4) {
        let payload = match chance.below(3) {
            0 => Payload::Marker,
            _ => Payload::Tick { time: dwcp_base::LogTime(chance.next_u64()) },
        };
        let mut entry = Entry::default();
        if chance.per_mille(50) {
            entry.set_entry_type(EntryType::EntryConfChange);
        }
        entry.index = if chance.per_mille(800) {
            message.index.saturating_add(1 + step)
        } else {
            odd_number(chance, scene.commit.0)
        };
        entry.term = if chance.per_mille(700) { message.term } else { odd_number(chance, scene.term.0) };
        let body = Body::new(&payload).expect("a small payload is sound").bytes().to_vec();
        entry.data = if chance.per_mille(900) { body } else { vec![9; 3] }.into();
        message.mut_entries().push(entry);
    }
    message
}
