//! The operator: replaces members whose disks are lost, as `dwcp member replace` does. Orders are signed with the
//! admin's key and sent to every replica until f + 1 have said that it is in force; then the new disk is started.

use crate::keys::Identity;
use crate::world::{Event, OPERATOR, World};
use bytes::Bytes;
use dwcp_base::{Incarnation, PublicKey, encode};
use dwcp_log::{MemberOrder, OperatorOrder, SignedMemberOrder};
use dwcp_replica::{ClientReply, ClientRequest, OrderOutcome};
use std::collections::{BTreeMap, BTreeSet};

const RESEND_US: u64 = 700_000;

/// One member being replaced.
#[derive(Debug)]
pub struct Replacement {
    pub node: usize,
    pub incarnation: Incarnation,
    /// Replicas that said it is done.
    pub done: BTreeSet<usize>,
    pub started: bool,
}

#[derive(Debug, Default)]
pub struct Operator {
    /// By order id. At most one per node.
    pub replacements: BTreeMap<u64, Replacement>,
    next_id: u64,
    awake: bool,
    /// The last refusal heard, for people.
    pub last_refusal: String,
}

impl Operator {
    /// Members without a working disk or without a vote yet; the fsync liars among them are counted by their dial.
    #[must_use]
    pub fn replacing_count(&self) -> u64 {
        self.replacements.len() as u64
    }

    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.replacements.is_empty()
    }
}

impl World {
    pub fn ask_for_replacement(&mut self, node: usize) {
        let incarnation = self.nodes[node].incarnation.next();
        let operator = &mut self.operator;
        if operator.replacements.values().any(|replacement| replacement.node == node && !replacement.started)
        {
            return;
        }
        // A disk lost again before the new one had a vote: the next order takes over.
        operator.replacements.retain(|_, replacement| replacement.node != node);
        operator.next_id += 1;
        let id = operator.next_id;
        operator
            .replacements
            .insert(id, Replacement { node, incarnation, done: BTreeSet::new(), started: false });
        let replica = self.nodes[node].replica;
        let key = self.keys.public(Identity::Vote { replica: replica.0, incarnation: incarnation.0 });
        self.vote_keys.insert((replica, incarnation), key);
        if !self.operator.awake {
            self.operator.awake = true;
            self.schedule(300_000, Event::OperatorWake);
        }
    }

    pub fn on_operator_wake(&mut self) {
        let pending: Vec<(u64, usize, Incarnation)> = self
            .operator
            .replacements
            .iter()
            .filter(|(_, replacement)| !replacement.started)
            .map(|(id, replacement)| (*id, replacement.node, replacement.incarnation))
            .collect();
        if pending.is_empty() {
            self.operator.awake = false;
            return;
        }
        for (id, node, incarnation) in pending {
            let bytes = self.order(node, incarnation);
            for to in 0..self.nodes.len() {
                if to != node {
                    self.request(OPERATOR, to, ClientRequest::Order { id, bytes: bytes.clone() });
                }
            }
        }
        self.schedule(RESEND_US, Event::OperatorWake);
    }

    fn order(&self, node: usize, incarnation: Incarnation) -> Bytes {
        let replica = self.nodes[node].replica;
        let public = |identity| -> PublicKey { self.keys.public(identity) };
        let order = MemberOrder {
            id: replica,
            incarnation,
            vote_key: public(Identity::Vote { replica: replica.0, incarnation: incarnation.0 }),
            tls_key: public(Identity::Link { replica: replica.0, incarnation: incarnation.0 }),
            peer_address: format!("r{}:1", replica.0),
            client_address: format!("r{}:2", replica.0),
        };
        let admin = Identity::Principal { number: 0 };
        let signer = self.keys.signer(admin, &[]);
        let signed = SignedMemberOrder::new(order, self.cluster, public(admin), &*signer);
        Bytes::from(encode(&OperatorOrder::Member(signed)))
    }

    pub fn on_operator_reply(&mut self, from: usize, reply: ClientReply) {
        let ClientReply::Order { id, outcome } = reply else { return };
        match outcome {
            OrderOutcome::Done { .. } => {
                let enough = usize::try_from(self.dials.f).expect("few liars") + 1;
                let replica = usize::from(self.nodes[from].replica.0);
                let Some(replacement) = self.operator.replacements.get_mut(&id) else { return };
                replacement.done.insert(replica);
                if replacement.done.len() >= enough && !replacement.started {
                    replacement.started = true;
                    let (node, incarnation) = (replacement.node, replacement.incarnation);
                    self.replace_disk(node, incarnation);
                }
            }
            OrderOutcome::Refused { reason } => self.operator.last_refusal = reason,
        }
    }

    /// The cluster counts the new incarnation again: the budget has room.
    pub fn replacement_is_admitted(&mut self, node: usize, incarnation: Incarnation) {
        self.operator
            .replacements
            .retain(|_, replacement| replacement.node != node || replacement.incarnation != incarnation);
    }
}
