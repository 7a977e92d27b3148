//! Collection floors that the log orders twice under one number: everybody takes the first, whenever he is ready for it.

use super::switching::Liar;
use super::syncing::{collected, put};
use super::*;
use dwcp_base::ConfigurationId;
use dwcp_crdt::{Floor, Origin, VersionVector};
use dwcp_log::consent::{Ground, consent};
use dwcp_log::{Agreed, Matter, RootEntry, Stance};
use dwcp_replica::sync::values::{Op, Write};
use dwcp_replica::{PeerMessage, SyncReply, SyncRequest};
use std::cell::Cell;
use std::rc::Rc;

/// The floor under what all members have acknowledged alike.
fn floor(number: u64, acknowledged: &VersionVector) -> Floor {
    let members = (0..4).map(|id| (Origin::new(id, 0), acknowledged.clone())).collect();
    Floor::of(number, &members, BTreeMap::new())
}

impl Cluster {
    /// What a node has applied, its floor, and the digest of its store.
    fn place(&mut self, id: u8) -> (VersionVector, u64, dwcp_base::Hash) {
        self.ask(id, 97, SyncRequest::Stand);
        self.run(0);
        match self.told(id, 97) {
            Some(SyncReply::Stand { applied, floor, digest, .. }) => (applied.clone(), *floor, *digest),
            other => panic!("{other:?}"),
        }
    }

    /// Has the primary, who does not run, order a floor that the three first members agreed to.
    fn order_floor(&mut self, primary: &Liar, floor: &Floor) {
        let (bytes, cluster) = (Bytes::from(dwcp_base::encode(floor)), self.genesis.cluster());
        let ground = Ground { configuration: ConfigurationId(1), ends: 0 };
        let of = |id: u8| {
            let (by, crypto) = (ReplicaId(id), Ed25519::new(seed(1, id), &[]));
            let content = dwcp_base::Hash::of(&bytes);
            (
                by,
                Stance::Agrees,
                consent(cluster, Matter::Floor, ground, content, Stance::Agrees, by, &crypto),
            )
        };
        let consents = vec![of(0), of(1), of(2)];
        let entry = RootEntry::Floor(Box::new(Agreed { bytes: bytes.clone(), ground, consents }));
        let next = self.control(1).executed.next();
        let time = self.control(1).steering.time;
        primary.propose(self, next, time, vec![entry]);
        self.run(100);
        (1..4).for_each(|id| assert_eq!(self.control(id).executed, next, "node {id} executed it"));
    }
}

/// A primary asks for a floor, has it ordered, and asks for another under the same number before it has executed the first.
/// Node 3 executes the first while it fetches a store that ends just below it.
#[test]
fn who_is_late_takes_the_floor_that_the_others_took() {
    let policy = Policy::root_only(Trust::Byzantine, Quorum::new(4, None).unwrap());
    let (mut cluster, _session) = collected(policy, 4, NetworkMode::Internet);
    cluster.stop(3);
    cluster.nodes[3].disk.records.retain(|(_, record)| !matches!(record[0], 4 | 5));
    cluster.run(1_000);
    let primary = Liar::new(0);
    cluster.stop(0);
    let (before, last, _) = cluster.place(1);
    cluster.write(1, 1, vec![put("gone", "1"), Write::new("gone".to_string(), Op::Delete)]);
    cluster.run(5_000);
    let (after, ..) = cluster.place(2);
    assert!(after.covers(&before) && after != before);

    let (gives, asks) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(true)));
    let (given, asked) = (Rc::clone(&gives), Rc::clone(&asks));
    cluster.twist = Some(Box::new(move |_, _, bytes| match dwcp_base::decode(&bytes) {
        Ok(PeerMessage::SyncPart { .. }) if !given.get() => None,
        Ok(PeerMessage::SyncFetch { id: 0, .. }) if !asked.get() => None,
        _ => Some(bytes),
    }));
    cluster.start(3);
    cluster.run(5_000);
    asks.set(false);
    cluster.order_floor(&primary, &floor(last + 1, &after));
    gives.set(true);
    cluster.run(2_000);
    let places: Vec<_> = (1..4).map(|id| cluster.place(id)).collect();
    assert!(places.iter().all(|place| (&place.0, place.1) == (&after, last + 1)), "{places:?}");
    assert_eq!(
        cluster.sync_status(3).snapshots_installed,
        1,
        "it took the store as it was, and the floor after it"
    );

    cluster.order_floor(&primary, &floor(last + 1, &before));
    (1..4).for_each(|id| assert_eq!(cluster.place(id).1, last + 1, "this is not the floor after the last"));
    (1..4).for_each(|id| assert_eq!(cluster.counted(id, "floors and ends without effect"), 1, "node {id}"));
    // Whatever the first of three floors saw is stable with the third.
    cluster.order_floor(&primary, &floor(last + 2, &after));
    cluster.order_floor(&primary, &floor(last + 3, &after));
    asks.set(true);
    cluster.run(30_000);
    let places: Vec<_> = (1..4).map(|id| cluster.place(id)).collect();
    assert!(places.iter().all(|place| *place == places[0] && place.1 == last + 3), "{places:?}");
    (1..4).for_each(|id| assert_eq!(cluster.sync_status(id).tombstones, 0, "node {id}"));
}
