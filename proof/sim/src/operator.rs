//! The operator: replaces members whose disks are lost, as `dwcp member replace` does, and orders modes, as `dwcp mode` does. Orders are signed with the
//! admin's key and sent to every replica until f + 1 have said that it is in force; then the new disk is started.

use crate::keys::Identity;
use crate::world::{Event, OPERATOR, World};
use bytes::Bytes;
use dwcp_base::configuration::check_mode;
use dwcp_base::{Ack, Incarnation, NetworkMode, Policy, PublicKey, ReplicaId, Trust, encode};
use dwcp_log::{
    ExcludeOrder, MemberOrder, ModeOrder, OperatorOrder, PolicyOrder, SignedExcludeOrder, SignedMemberOrder,
    SignedModeOrder, SignedPolicyOrder,
};
use dwcp_replica::{ClientReply, ClientRequest, OrderOutcome};
use std::collections::{BTreeMap, BTreeSet};

const RESEND_US: u64 = 700_000;
/// Numbers of requests for mode orders lie above this.
const MODE_ORDERS: u64 = 1 << 32;
/// Those of orders to go on without a member above this.
const EXCLUDE_ORDERS: u64 = 1 << 33;

/// One member being replaced.
#[derive(Debug)]
pub struct Replacement {
    pub node: usize,
    pub incarnation: Incarnation,
    /// Replicas that said it is done.
    pub done: BTreeSet<usize>,
    pub started: bool,
    /// The cluster counts it already; nobody told the operator so far that it may be started.
    pub admitted: bool,
}

/// A member that state sync is to go on without; then its disk is replaced.
#[derive(Debug)]
struct Exclusion {
    id: u64,
    node: usize,
    incarnation: Incarnation,
    /// It lies: state sync goes on without it, and its disk is nobody's concern.
    lies: bool,
    /// The order is in force.
    is_done: bool,
    /// Replicas that said it is done.
    done: BTreeSet<usize>,
}

/// What the operator has ordered last.
#[derive(Clone, Copy, Debug)]
struct InForce {
    mode: NetworkMode,
    policy: Policy,
}

#[derive(Debug, Default)]
pub struct Operator {
    /// By order id. At most one per node.
    pub replacements: BTreeMap<u64, Replacement>,
    next_id: u64,
    awake: bool,
    excluding: Option<Exclusion>,
    /// The mode or policy order under way: its number, its bytes, and what is in force after it.
    mode: Option<(u64, Bytes, InForce)>,
    /// What the orders done so far have brought; None: what the genesis says.
    in_force: Option<InForce>,
    /// What each replica last said the next order's number is.
    next_numbers: BTreeMap<usize, u64>,
    /// The last refusal heard, for people.
    pub last_refusal: String,
}

impl Operator {
    /// Members without a working disk or without a vote yet; the fsync liars among them are counted by their dial.
    #[must_use]
    pub fn replacing_count(&self) -> u64 {
        self.replacements.len() as u64 + u64::from(self.excluding.is_some())
    }

    /// Is this node's disk being replaced?
    #[must_use]
    pub fn replaces(&self, node: usize) -> bool {
        self.replacements.values().any(|replacement| replacement.node == node)
    }

    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.replacements.is_empty() && self.mode.is_none() && self.excluding.is_none()
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
        operator.replacements.insert(
            id,
            Replacement { node, incarnation, done: BTreeSet::new(), started: false, admitted: false },
        );
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

    /// The operator's beat of exclusions begins.
    pub fn begin_exclusions(&mut self) {
        if self.dials.exclude_ms > 0 {
            self.plan_exclusion();
        }
    }

    fn plan_exclusion(&mut self) {
        let mean_ms = self.dials.exclude_ms;
        let after = self.rooms.chance.between(mean_ms * 500, mean_ms * 1500);
        self.schedule(after, Event::ExcludeWanted);
    }

    /// The operator has had enough of a member that may well be honest, if the budget allows for one disk less.
    pub fn on_exclude_wanted(&mut self) {
        if self.in_calm() {
            return;
        }
        self.plan_exclusion();
        let members: Vec<usize> = self.honest_nodes().filter(|ix| self.nodes[*ix].is_up()).collect();
        if self.operator.excluding.is_some() || self.faults_in_force() >= self.dials.f {
            return;
        }
        let Some(node) = self.rooms.chance.pick(&members).copied() else { return };
        self.operator.next_id += 1;
        let (id, incarnation) = (EXCLUDE_ORDERS + self.operator.next_id, self.nodes[node].incarnation);
        self.operator.excluding =
            Some(Exclusion { id, node, incarnation, lies: false, is_done: false, done: BTreeSet::new() });
        let at = self.now_us;
        self.trace.line(at, || format!("## the operator excludes {:?}", self.nodes[node]));
        self.observe_exclusion(node);
        self.on_exclude_resend();
    }

    /// State sync is to go on without a liar. False when the operator is at another.
    pub fn exclude_liar(&mut self, node: usize) -> bool {
        if self.operator.excluding.is_some() {
            return false;
        }
        self.operator.next_id += 1;
        let (id, incarnation) = (EXCLUDE_ORDERS + self.operator.next_id, self.nodes[node].incarnation);
        self.operator.excluding =
            Some(Exclusion { id, node, incarnation, lies: true, is_done: false, done: BTreeSet::new() });
        let at = self.now_us;
        self.trace.line(at, || format!("## the operator excludes {:?}, which lies", self.nodes[node]));
        self.on_exclude_resend();
        true
    }

    /// Says it again until enough say that it is done.
    pub fn on_exclude_resend(&mut self) {
        let Some(Exclusion { id, node, incarnation, is_done: false, .. }) = &self.operator.excluding else {
            return;
        };
        let (id, node, incarnation) = (*id, *node, *incarnation);
        let member = &self.nodes[node];
        if member.incarnation != incarnation || member.down == Some(crate::node::Down::DiskLost) {
            // Its disk is lost: it ends as every past incarnation does.
            self.operator.excluding = None;
            return;
        }
        let order = ExcludeOrder { id: member.replica, incarnation };
        let admin = Identity::Principal { number: 0 };
        let signer = self.keys.signer(admin, &[]);
        let signed = SignedExcludeOrder::new(order, self.cluster, self.keys.public(admin), &*signer);
        let bytes = Bytes::from(encode(&OperatorOrder::Exclude(signed)));
        for to in 0..self.nodes.len() {
            self.request(OPERATOR, to, ClientRequest::Order { id, bytes: bytes.clone() });
        }
        self.schedule(RESEND_US, Event::ExcludeResend);
    }

    /// A replica says that the order is in force.
    fn on_excluded(&mut self, from: usize, id: u64) {
        let replica = usize::from(self.nodes[from].replica.0);
        let enough = usize::try_from(self.dials.f).expect("few liars") + 1;
        let Some(exclusion) = self.operator.excluding.as_mut().filter(|exclusion| exclusion.id == id) else {
            return;
        };
        exclusion.done.insert(replica);
        if exclusion.done.len() >= enough {
            if exclusion.lies {
                self.operator.excluding = None;
                return;
            }
            if core::mem::replace(&mut exclusion.is_done, true) {
                return;
            }
            self.coverage.members_excluded += 1;
            match self.dials.excluded_ms {
                0 => self.on_excluded_replaced(),
                ms => self.schedule(ms * 1_000, Event::ExcludedReplaced),
            }
        }
    }

    /// The disk of a member is replaced that state sync goes on without.
    pub fn on_excluded_replaced(&mut self) {
        let Some(Exclusion { node, incarnation, is_done: true, .. }) = self.operator.excluding else {
            return;
        };
        self.operator.excluding = None;
        let member = &self.nodes[node];
        if member.incarnation == incarnation && member.down != Some(crate::node::Down::DiskLost) {
            self.lose_disk(node);
        }
    }

    /// The operator's beat of mode orders begins.
    pub fn begin_mode_orders(&mut self) {
        if self.dials.mode_order_ms > 0 {
            self.plan_mode_order();
            self.schedule(RESEND_US, Event::ModeLook);
        }
    }

    fn plan_mode_order(&mut self) {
        let mean_ms = self.dials.mode_order_ms;
        let after = self.chances.operator.between(mean_ms * 500, mean_ms * 1500);
        self.schedule(after, Event::ModeWanted);
    }

    /// The operator wants a mode: any that the cluster can run in, the one in force too.
    pub fn on_mode_wanted(&mut self) {
        if self.in_calm() {
            return;
        }
        self.plan_mode_order();
        if self.operator.mode.is_some() {
            return;
        }
        // As many replicas as may lie are not believed.
        let mut said: Vec<u64> = self.operator.next_numbers.values().copied().collect();
        said.sort_unstable_by(|a, b| b.cmp(a));
        let number = said.get(usize::try_from(self.dials.f).expect("few liars")).copied().unwrap_or(1);
        let n = self.genesis.policy.quorum.n();
        let genesis = InForce { mode: self.genesis.mode, policy: self.genesis.policy };
        let in_force = self.operator.in_force.unwrap_or(genesis);
        let chance = &mut self.chances.operator;
        if chance.per_mille(self.dials.policy_order_pm) {
            return self.order_policy(number, in_force);
        }
        let mut modes = vec![NetworkMode::Hybrid, NetworkMode::Hybrid, NetworkMode::Datacenter];
        modes.extend((n >= 4).then_some(NetworkMode::Internet));
        modes.retain(|mode| check_mode(*mode, &in_force.policy).is_ok());
        let mode = *chance.pick(&modes).expect("hybrid is always there");
        let leader = u8::try_from(chance.below(u64::from(n))).expect("few replicas");
        let first_leader = chance.per_mille(500).then_some(ReplicaId(leader));
        let order = ModeOrder { number, mode, first_leader };
        let at = self.now_us;
        self.trace.line(at, || format!("## the operator orders {order:?}"));
        let admin = Identity::Principal { number: 0 };
        let signer = self.keys.signer(admin, &[]);
        let signed = SignedModeOrder::new(order, self.cluster, self.keys.public(admin), &*signer);
        let bytes = Bytes::from(encode(&OperatorOrder::Mode(signed)));
        self.operator.mode = Some((number, bytes, InForce { mode, ..in_force }));
        self.say_mode();
    }

    /// Any policy that so many replicas may have in the mode in force. Two of three allow segments.
    fn order_policy(&mut self, number: u64, in_force: InForce) {
        let chance = &mut self.chances.operator;
        let wide = chance.per_mille(667);
        let trust = if wide || chance.per_mille(500) { Trust::Crash } else { Trust::Byzantine };
        let raft = wide || chance.per_mille(500);
        let default_ack = if chance.per_mille(300) { Ack::Anchored } else { Ack::Majority };
        let policy = Policy { trust, raft, default_ack, ..in_force.policy };
        let too_few = trust == Trust::Byzantine && policy.quorum.n() < 4;
        if too_few || check_mode(in_force.mode, &policy).is_err() {
            return;
        }
        let order = PolicyOrder { number, trust, raft, default_ack };
        let at = self.now_us;
        self.trace.line(at, || format!("## the operator orders {order:?}"));
        let admin = Identity::Principal { number: 0 };
        let signer = self.keys.signer(admin, &[]);
        let signed = SignedPolicyOrder::new(order, self.cluster, self.keys.public(admin), &*signer);
        let bytes = Bytes::from(encode(&OperatorOrder::Policy(signed)));
        self.operator.mode = Some((number, bytes, InForce { policy, ..in_force }));
        self.say_mode();
    }

    fn say_mode(&mut self) {
        let Some((number, bytes, _)) = self.operator.mode.clone() else { return };
        for to in 0..self.nodes.len() {
            let id = MODE_ORDERS + number;
            self.request(OPERATOR, to, ClientRequest::Order { id, bytes: bytes.clone() });
        }
    }

    /// Looks how replicas stand and says again what is not done.
    pub fn on_mode_look(&mut self) {
        if self.last_orders && self.operator.mode.is_none() {
            return;
        }
        for to in 0..self.nodes.len() {
            self.request(OPERATOR, to, ClientRequest::Status { id: 0 });
        }
        self.say_mode();
        self.schedule(RESEND_US, Event::ModeLook);
    }

    fn on_status(&mut self, from: usize, next_order: u64) {
        let replica = usize::from(self.nodes[from].replica.0);
        self.operator.next_numbers.insert(replica, next_order);
        let Some((number, _, after)) = self.operator.mode else { return };
        let past = self.operator.next_numbers.values().filter(|next| **next > number).count();
        if past as u64 > self.dials.f {
            self.operator.mode = None;
            let before = self.operator.in_force.map_or(self.genesis.policy, |in_force| in_force.policy);
            self.coverage.policies_ordered += u64::from(before != after.policy);
            self.operator.in_force = Some(after);
        }
    }

    pub fn on_operator_reply(&mut self, from: usize, reply: ClientReply) {
        if let ClientReply::Status { status, .. } = reply {
            return self.on_status(from, status.next_order);
        }
        let ClientReply::Order { id, outcome } = reply else { return };
        if id >= EXCLUDE_ORDERS {
            return match outcome {
                OrderOutcome::Done { .. } => self.on_excluded(from, id),
                // The word that it was done may have been lost.
                OrderOutcome::Refused { reason } if reason.contains("excluded already") => {
                    self.on_excluded(from, id);
                }
                OrderOutcome::Refused { reason } => self.operator.last_refusal = reason,
            };
        }
        if id >= MODE_ORDERS {
            return;
        }
        match outcome {
            OrderOutcome::Done { .. } => {
                let enough = usize::try_from(self.dials.f).expect("few liars") + 1;
                let replica = usize::from(self.nodes[from].replica.0);
                let Some(replacement) = self.operator.replacements.get_mut(&id) else { return };
                replacement.done.insert(replica);
                if replacement.done.len() >= enough && !replacement.started {
                    replacement.started = true;
                    let (node, incarnation) = (replacement.node, replacement.incarnation);
                    self.operator
                        .replacements
                        .retain(|_, replacement| !(replacement.started && replacement.admitted));
                    self.replace_disk(node, incarnation);
                }
            }
            OrderOutcome::Refused { reason } => self.operator.last_refusal = reason,
        }
    }

    /// The cluster counts the new incarnation again: the budget has room.
    pub fn replacement_is_admitted(&mut self, node: usize, incarnation: Incarnation) {
        for replacement in self.operator.replacements.values_mut() {
            replacement.admitted |= replacement.node == node && replacement.incarnation == incarnation;
        }
        self.operator.replacements.retain(|_, replacement| !(replacement.started && replacement.admitted));
    }
}
