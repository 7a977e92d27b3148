//! The part of the replicated state that is not sessions or the machine: the virtual log's head, the configurations,
//! and the operator's orders. Chunk 0 of every snapshot, and covered by every checkpoint's digest.

use crate::steering::Steering;
use alloc::collections::BTreeSet;
use alloc::vec::Vec;
use borsh::{BorshDeserialize, BorshSerialize};
use bytes::Bytes;
use dwcp_base::{
    ClusterId, Configuration, ConfigurationId, Crypto, Genesis, Hash, Incarnation, Member, ReplicaId,
    Sequence, encode,
};
use dwcp_crdt::{FloorState, Origin};
use dwcp_log::{ExcludeOrder, Fold, MemberOrder, SignedMemberOrder};
use dwcp_pbft::Configurations;
use dwcp_state::{Carried, Writer, state_digest};

/// The format of [`Control`]; 1 knew no segments.
pub const CONTROL_FORMAT: u16 = 7;

/// Member orders remembered; enough for each of 31 members to lose 33 disks.
pub const ORDERS_MAX: usize = 1024;

/// Replicated, and equal at all honest replicas after the same sequence.
#[derive(Clone, Debug, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
pub struct Control {
    /// [`CONTROL_FORMAT`].
    pub format: u16,
    /// The last root sequence executed.
    pub executed: Sequence,
    /// The virtual log as far as the root alone says, the open segment, and what waits for its Close.
    pub fold: Fold,
    pub steering: Steering,
    pub configurations: Configurations,
    /// Every member order that took effect, and where: what a newcomer needs to know today's keys. At most `ORDERS_MAX`; one
    /// more is refused.
    pub orders: Vec<(Sequence, SignedMemberOrder)>,
    /// What has been executed since the genesis, in bytes of log. Replicas with equal settings derive from it equal
    /// sequences to take snapshots at.
    pub bytes_executed: u64,
    /// Where origins of convergent state end, as it was decided, in that order: a replica that missed decisions learns them
    /// from a snapshot. State sync's own bytes; at most one for each incarnation there ever was.
    pub ends: Vec<Bytes>,
    /// Incarnations that state sync goes on without, by order, and where that was ordered. At most one for each there ever was.
    pub excluded: Vec<(Sequence, ReplicaId, Incarnation)>,
    /// What the collection floors that took effect come to. Another entry with a number that had its floor is without effect at
    /// everybody, so that whoever takes floors late takes the same ones; and whoever skips slots with a snapshot, and floors
    /// with them, has from it what they come to.
    pub floors: FloorState,
    /// Incarnations that the log was shown to have contradicted themselves. At most one for each there ever was.
    pub convicted: BTreeSet<Writer>,
}

impl Control {
    #[must_use]
    pub fn new(genesis: &Genesis) -> Self {
        Self {
            format: CONTROL_FORMAT,
            executed: Sequence::ZERO,
            fold: Fold::default(),
            steering: Steering::new(genesis),
            configurations: Configurations::new(Configuration::of(genesis)),
            orders: Vec::new(),
            bytes_executed: 0,
            ends: Vec::new(),
            excluded: Vec::new(),
            floors: FloorState::default(),
            convicted: BTreeSet::new(),
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

    /// # Errors
    /// Why the order would not take effect.
    pub(crate) fn judge_exclude(&self, order: &ExcludeOrder) -> Result<(), &'static str> {
        let member = self.configurations.latest().member(order.id).ok_or("there is no such member")?;
        if member.incarnation != order.incarnation {
            return Err("the incarnation must be the one in force");
        }
        if self
            .excluded
            .iter()
            .any(|(_, id, incarnation)| (*id, *incarnation) == (order.id, order.incarnation))
        {
            return Err("it is excluded already");
        }
        if self.excluded.len() >= ORDERS_MAX {
            return Err("members were excluded too often: start a new cluster from a backup");
        }
        Ok(())
    }

    /// Where it was ordered that a writer of convergent state is to write no more: by its replacement, or its exclusion.
    #[must_use]
    pub fn over_since(&self, (id, incarnation): Writer) -> Option<Sequence> {
        let replaced = self
            .orders
            .iter()
            .filter(|(_, signed)| signed.order.id == id && signed.order.incarnation > incarnation);
        let excluded = self.excluded.iter().filter(|(_, i, n)| (*i, *n) == (id, incarnation));
        replaced.map(|(at, _)| *at).chain(excluded.map(|(at, ..)| *at)).min()
    }

    /// Nothing more of this writer can become part of the log: it is over, and no segment that knew it in force is open.
    #[must_use]
    pub fn is_settled(&self, writer: Writer) -> bool {
        let opened_at = self.fold.segment().map(|segment| segment.opened_at);
        self.over_since(writer).is_some_and(|over| opened_at.is_none_or(|opened_at| opened_at > over))
    }

    /// What the log has of a writer without gap: all it may have been told that it is safe there.
    #[must_use]
    pub fn logged(&self, carried: &Carried, writer: Writer) -> u64 {
        carried.through(writer, self.covers(writer))
    }

    /// What the last collection floor covers of a writer: all members have it.
    #[must_use]
    pub fn covers(&self, writer: Writer) -> u64 {
        let origin = Origin::new(u32::from(writer.0.0), writer.1.0);
        self.floors.newest().map_or(0, |floor| floor.seen.prefix(origin))
    }

    /// Members in force that are known to lie: of those who may, so many fewer are among the others.
    #[must_use]
    pub fn convicted_members(&self) -> BTreeSet<ReplicaId> {
        let of = |(id, incarnation): &Writer| self.in_force(*id, *incarnation).then_some(*id);
        self.convicted.iter().filter_map(of).collect()
    }

    /// Is this the incarnation of that member that counts now?
    #[must_use]
    pub fn in_force(&self, id: ReplicaId, incarnation: Incarnation) -> bool {
        self.configurations.latest().member(id).is_some_and(|member| member.incarnation == incarnation)
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

/// What a checkpoint certifies: the control state and one state of the machine and its sessions. With no segment open that is
/// the state at the checkpoint; with one, the state at its last Anchor (at its base before the first), because replicas
/// at one root sequence have applied different amounts of the segment.
#[must_use]
pub fn checkpoint_digest(control: Hash, state: Hash) -> Hash {
    state_digest(&[control, state])
}

/// The same from a snapshot's chunk digests, of which the first is the control chunk's. `None` of none.
#[must_use]
pub fn snapshot_digest(digests: &[Hash]) -> Option<Hash> {
    let (control, state) = digests.split_first()?;
    Some(checkpoint_digest(*control, state_digest(state)))
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
