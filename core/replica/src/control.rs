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

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::String;
    use alloc::{format, vec};
    use dwcp_base::configuration::{Principal, Role};
    use dwcp_base::{NetworkMode, Policy, PublicKey, Quorum, Signature, Trust};

    const WINDOW: u64 = 16;
    const LEARNERS: &str = "too many members are learners already: wait until one votes again";
    const INCARNATION: &str = "the incarnation must be the one in force plus one";
    const KEYS: &str = "a new incarnation needs new keys";

    fn key(byte: u8) -> PublicKey {
        PublicKey([byte; 32])
    }

    /// Member `id` has the keys `10 + id` and `20 + id`.
    fn control(n: u8) -> Control {
        let member = |id: u8| Member {
            id: ReplicaId(id),
            incarnation: Incarnation(0),
            vote_key: key(10 + id),
            tls_key: key(20 + id),
            peer_address: format!("h{id}:1"),
            client_address: format!("h{id}:2"),
            votes_after: Sequence::ZERO,
        };
        let genesis = Genesis {
            version: 1,
            name: "test".into(),
            created_unix_ms: 0,
            policy: Policy::new(Trust::Byzantine, Quorum::new(n.into(), None).unwrap()),
            mode: NetworkMode::Internet,
            calm_ms: 0,
            members: (0..n).map(member).collect(),
            principals: vec![Principal { name: "admin".into(), key: key(1), role: Role::Admin }],
            checkpoint_interval: WINDOW / 2,
            window: WINDOW,
            quota_bytes: 0,
        };
        genesis.check().unwrap();
        Control::new(&genesis)
    }

    fn order(id: u8, incarnation: u32, vote_key: u8, tls_key: u8) -> SignedMemberOrder {
        let (peer_address, client_address) = (String::from("new:1"), String::from("new:2"));
        let (id, incarnation) = (ReplicaId(id), Incarnation(incarnation));
        let (vote_key, tls_key) = (key(vote_key), key(tls_key));
        let order = MemberOrder { id, incarnation, vote_key, tls_key, peer_address, client_address };
        SignedMemberOrder { order, admin_key: key(1), signature: Signature([0; 64]) }
    }

    #[track_caller]
    fn refused(control: &Control, signed: &SignedMemberOrder, (at, stable): (u64, u64), why: &str) {
        let mut after = control.clone();
        let said = after.replace_member(signed, Sequence(at), WINDOW, Sequence(stable)).map(|_| ());
        assert_eq!(said, Err(why));
        assert_eq!((&after, after.digest()), (control, control.digest()), "a refused order changes nothing");
    }

    #[track_caller]
    fn replaced(control: &mut Control, signed: &SignedMemberOrder, (at, stable): (u64, u64)) {
        control.replace_member(signed, Sequence(at), WINDOW, Sequence(stable)).unwrap();
    }

    #[test]
    fn a_replaced_member_has_its_new_name_in_force_a_window_later_and_the_others_theirs() {
        let mut control = control(4);
        let before = control.configurations.latest().clone();
        let signed = order(2, 1, 31, 32);
        replaced(&mut control, &signed, (5, 0));
        let latest = control.configurations.latest();
        let mut members = before.members.clone();
        members[2] = Member {
            id: ReplicaId(2),
            incarnation: Incarnation(1),
            vote_key: key(31),
            tls_key: key(32),
            peer_address: "new:1".into(),
            client_address: "new:2".into(),
            votes_after: Sequence(5 + WINDOW),
        };
        assert_eq!((latest.id, &latest.members), (ConfigurationId(2), &members));
        assert_eq!(control.configurations.at(Sequence(5 + WINDOW)), &before, "not before");
        assert_eq!(control.configurations.at(Sequence(6 + WINDOW)).members, members);
        assert_eq!(control.orders, [(Sequence(5), signed)]);
    }

    #[test]
    fn nobody_is_replaced_who_is_no_member() {
        for id in [4, 255] {
            refused(&control(4), &order(id, 1, 31, 32), (5, 0), "there is no such member");
        }
    }

    #[test]
    fn only_the_next_incarnation_replaces_one_and_does_so_once() {
        let mut control = control(4);
        for incarnation in [0, 2, u32::MAX] {
            refused(&control, &order(2, incarnation, 31, 32), (5, 0), INCARNATION);
        }
        let first = order(2, 1, 31, 32);
        replaced(&mut control, &first, (5, 0));
        refused(&control, &first, (6, 0), INCARNATION);
        // With other keys neither: two orders for one disk cannot both hold.
        refused(&control, &order(2, 1, 33, 34), (6, 0), INCARNATION);
        replaced(&mut control, &order(2, 2, 33, 34), (6, 0));
    }

    #[test]
    fn orders_are_refused_once_there_were_as_many_as_are_remembered() {
        let mut control = control(4);
        let past = order(0, 1, 40, 41);
        control.orders = vec![(Sequence(1), past); ORDERS_MAX - 1];
        let mut full = control.clone();
        replaced(&mut full, &order(2, 1, 31, 32), (5, 0));
        assert_eq!(full.orders.len(), ORDERS_MAX);
        let why = "members were replaced too often: start a new cluster from a backup";
        refused(&full, &order(2, 2, 33, 34), (6, 0), why);
        // Whoever follows the orders of a snapshot reads no more of them than these.
        control.orders.push((Sequence(2), order(1, 1, 42, 43)));
        refused(&control, &order(2, 1, 31, 32), (5, 0), why);
    }

    #[test]
    fn a_new_incarnation_takes_no_key_that_a_member_has() {
        let mut control = control(4);
        // Its own old ones (12, 22), those of another (13, 23), each in either place, and one key for both.
        for (vote_key, tls_key) in [12, 22, 13, 23].iter().flat_map(|taken| [(*taken, 32), (31, *taken)]) {
            refused(&control, &order(2, 1, vote_key, tls_key), (5, 0), KEYS);
        }
        refused(&control, &order(2, 1, 31, 31), (5, 0), KEYS);
        replaced(&mut control, &order(2, 1, 31, 32), (5, 0));
        for (vote_key, tls_key) in [(31, 34), (33, 32), (32, 34), (33, 31)] {
            refused(&control, &order(2, 2, vote_key, tls_key), (6, 0), KEYS);
        }
    }

    #[test]
    fn no_more_members_learn_at_once_than_a_quorum_can_do_without() {
        for (n, learners) in [(4, 1), (5, 1), (7, 2)] {
            let mut control = control(n);
            for id in 0..learners {
                replaced(&mut control, &order(id, 1, 50 + 2 * id, 51 + 2 * id), (5, 0));
            }
            let next = order(learners, 1, 80, 81);
            refused(&control, &next, (6, 0), LEARNERS);
            refused(&control, &next, (6 + WINDOW, 4 + WINDOW), LEARNERS);
            // One that learns may lose its disk again: that leaves no more of them.
            replaced(&mut control.clone(), &order(0, 2, 90, 91), (6, 0));
            replaced(&mut control, &next, (6 + WINDOW, 5 + WINDOW));
        }
    }
}
