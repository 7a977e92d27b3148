//! Linearizable reads of a segment's leader: asked of one replica after the other until one leads, given up without harm when
//! none does. A read that is not answered changed nothing.

use crate::world::World;
use check::{CommandId, Label, Operation, Reply};
use dwcp_base::Ack;
use dwcp_replica::{Answered, ClientRequest, ReadLabel, Unanswered};
use dwcp_state::kv::KvReply;

/// Replicas asked before a client gives up.
const TRIES_MAX: u64 = 12;
/// Numbers of reads, above those of commands.
const READS_FROM: u64 = 1 << 40;

/// A read under way. One at a time and client.
#[derive(Debug)]
pub struct Asked {
    pub place: usize,
    id: u64,
    operation: Operation,
    node: usize,
    tries: u64,
    asked_at_us: u64,
}

impl World {
    /// Takes a read off these operations and asks a leader for it; None when nothing is left.
    pub fn ask_leader(&mut self, ix: usize, mut operations: Vec<Operation>) -> Option<Vec<Operation>> {
        let pm = self.dials.leader_reads_pm;
        let (n, now_us) = (self.genesis.policy.quorum.n(), self.now_us);
        let client = &mut self.clients[ix];
        if pm == 0 || client.asked.is_some() || client.reader || !client.chance.per_mille(pm) {
            return Some(operations);
        }
        let is_read = |operation: &Operation| matches!(operation, Operation::Range { stale: false, .. });
        let Some(at) = operations.iter().position(is_read) else { return Some(operations) };
        let operation = operations.remove(at);
        client.reads_asked += 1;
        let id = READS_FROM + client.reads_asked;
        let command = CommandId { session: client.number as u128, seq: id };
        let place = client.journal.invoked(command, now_us, operation.clone());
        let node = usize::try_from(client.chance.below(u64::from(n))).expect("few replicas");
        client.asked = Some(Asked { place, id, operation, node, tries: 0, asked_at_us: 0 });
        self.follow_read(ix);
        (!operations.is_empty()).then_some(operations)
    }

    /// Asks the next replica when the last one did not answer.
    pub fn follow_read(&mut self, ix: usize) {
        let patience_us = self.dials.retry_ms * 1000;
        let (n, now_us) = (usize::from(self.genesis.policy.quorum.n()), self.now_us);
        let client = &mut self.clients[ix];
        let Some(asked) = client.asked.as_mut() else { return };
        if asked.tries > 0 && now_us < asked.asked_at_us + patience_us {
            return;
        }
        if asked.tries >= TRIES_MAX {
            let place = asked.place;
            client.asked = None;
            return client.journal.refused(place, now_us, "nobody leads");
        }
        asked.tries += 1;
        asked.asked_at_us = now_us;
        asked.node = (asked.node + 1) % n;
        let (node, id) = (asked.node, asked.id);
        let bytes = crate::translate::command(&asked.operation);
        // Whatever the policy: a leader that could answer is to be judged by its answer.
        self.request(ix, node, ClientRequest::Read { id, bytes, ack: Some(Ack::Majority) });
    }

    pub fn on_read_answer(&mut self, ix: usize, id: u64, outcome: Result<Answered, Unanswered>) {
        let now_us = self.now_us;
        let client = &mut self.clients[ix];
        let Some(asked) = client.asked.as_mut().filter(|asked| asked.id == id) else { return };
        let Ok(Answered { bytes, label, .. }) = outcome else {
            // At once somewhere else, but for a breath after all were asked.
            asked.asked_at_us = 0;
            return self.follow_read(ix);
        };
        let answer = KvReply::decode(&bytes)
            .ok()
            .and_then(|reply| Some((reply.revision, crate::translate::answer(reply.body)?)));
        let (place, operation) = (asked.place, asked.operation.clone());
        let command = client.journal.commands[place].id;
        client.asked = None;
        if label != ReadLabel::Crash {
            return self.complain(format!("client {ix} was answered {operation:?} under {label:?}"));
        }
        let Some((revision, answer)) = answer else {
            return self.complain(format!("client {ix} cannot read the answer to {operation:?}"));
        };
        client.learn(&operation, revision, &answer);
        let reply = Reply { revision: Some(revision), answer, digest: None };
        client.journal.returned(place, now_us, reply, Label::Crash);
        self.coverage.leader_reads += 1;
        self.crash_answers.insert(command);
    }
}
