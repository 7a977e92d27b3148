//! The part of the replicated state that is not sessions or the machine: the virtual log's head, the configurations,
//! and the operator's orders. Chunk 0 of every snapshot, and covered by every checkpoint's digest.

use alloc::vec::Vec;
use borsh::{BorshDeserialize, BorshSerialize};
use dwcp_base::{
    ClusterId, Configuration, ConfigurationId, Crypto, Genesis, Hash, Member, ReplicaId, Sequence, encode,
};
use dwcp_log::{MemberOrder, SignedMemberOrder, VirtualLog};
use dwcp_pbft::Configurations;

/// Member orders remembered; enough for each of 31 members to lose 33 disks.
pub const ORDERS_MAX: usize = 1024;

/// Replicated, and equal at all honest replicas after the same sequence.
#[derive(Clone, Debug, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
pub struct Control {
    /// Format of this structure; 1.
    pub format: u16,
    /// The last root sequence executed.
    pub executed: Sequence,
    pub log: VirtualLog,
    pub configurations: Configurations,
    /// Every member order that took effect, and where: what a newcomer needs to know today's keys.
    pub orders: Vec<(Sequence, SignedMemberOrder)>,
    /// What has been executed since the genesis, in bytes of log. Replicas with equal settings derive from it equal
    /// sequences to take snapshots at.
    pub bytes_executed: u64,
    /// Client commands that ran since the genesis.
    pub commands_executed: u64,
}

impl Control {
    #[must_use]
    pub fn new(genesis: &Genesis) -> Self {
        Self {
            format: 1,
            executed: Sequence::ZERO,
            log: VirtualLog::default(),
            configurations: Configurations::new(Configuration::of(genesis)),
            orders: Vec::new(),
            bytes_executed: 0,
            commands_executed: 0,
        }
    }

    /// The orders without their places.
    #[must_use]
    pub fn member_orders(&self) -> Vec<SignedMemberOrder> {
        self.orders.iter().map(|(_, order)| order.clone()).collect()
    }

    #[must_use]
    pub fn digest(&self) -> Hash {
        Hash::of(&encode(self))
    }

    /// Judges an order against the ordered prefix and, if it holds, puts it in force.
    ///
    /// # Errors
    /// Why it does not hold; nothing changed.
    pub(crate) fn replace_member(
        &mut self,
        signed: &SignedMemberOrder,
        sequence: Sequence,
        window: u64,
        stable: Sequence,
    ) -> Result<&Configuration, &'static str> {
        let order = &signed.order;
        let current = self.configurations.latest();
        let member = current.member(order.id).ok_or("there is no such member")?;
        if order.incarnation != member.incarnation.next() {
            return Err("the incarnation must be the one in force plus one");
        }
        if self.orders.len() >= ORDERS_MAX {
            return Err("members were replaced too often: start a new cluster from a backup");
        }
        let taken = current.members.iter().any(|other| {
            [other.vote_key, other.tls_key].contains(&order.vote_key)
                || [other.vote_key, other.tls_key].contains(&order.tls_key)
        });
        if taken || order.vote_key == order.tls_key {
            return Err("a new incarnation needs new keys");
        }
        let waiting =
            current.members.iter().filter(|other| other.id != order.id && other.votes_after > stable).count();
        if waiting + 1 > usize::from(current.quorum().n()) - current.quorum().q() {
            return Err("too many members are learners already: wait until one votes again");
        }
        let votes_after = sequence.plus(window);
        let mut members = current.members.clone();
        members[usize::from(order.id.0)] = Member {
            id: order.id,
            incarnation: order.incarnation,
            vote_key: order.vote_key,
            tls_key: order.tls_key,
            peer_address: order.peer_address.clone(),
            client_address: order.client_address.clone(),
            votes_after,
        };
        let configuration =
            Configuration { id: ConfigurationId(current.id.0 + 1), policy: current.policy, members };
        self.configurations.push(votes_after, configuration);
        self.orders.push((sequence, signed.clone()));
        Ok(self.configurations.latest())
    }
}

/// The configurations that a newcomer derives from a chain of orders, each signed by an admin of the genesis. Only for
/// judging a snapshot's certificate; the snapshot then brings the real ones.
pub(crate) fn follow_orders(
    genesis: &Genesis,
    orders: &[SignedMemberOrder],
    crypto: &dyn Crypto,
) -> Option<Vec<Member>> {
    let cluster: ClusterId = genesis.cluster();
    let mut members = genesis.members.clone();
    for signed in orders.iter().take(ORDERS_MAX) {
        let admin = genesis.principals.iter().any(|principal| {
            principal.role == dwcp_base::configuration::Role::Admin && principal.key == signed.admin_key
        });
        let (key, hash, signature) = signed.signature_item(cluster);
        let MemberOrder { id, incarnation, .. } = signed.order;
        let member = members.get_mut(usize::from(id.0))?;
        if !admin || !crypto.verify(&key, &hash, &signature) || incarnation != member.incarnation.next() {
            return None;
        }
        member.incarnation = incarnation;
        member.vote_key = signed.order.vote_key;
    }
    Some(members)
}

/// The member with this number among those given.
pub(crate) fn key_among(members: &[Member], id: ReplicaId) -> Option<&Member> {
    members.get(usize::from(id.0))
}
