//! Whoever watches hears of every key that changed, whatever changed it: the frame that came, one that had waited for it, a
//! floor or an end, or a snapshot in place of the store.

use super::syncing::{json, put, raft};
use super::*;
use dwcp_crdt::{Floor, Origin, Resolvers, Store, VersionVector};
use dwcp_replica::sync::values::{View, Write};
use dwcp_replica::{SyncReply, SyncRequest};
use dwcp_sync::{Frame, Message};

const WATCH: u64 = 97;

impl Cluster {
    fn watch(&mut self, at: u8, prefix: &'static str) {
        self.ask(at, WATCH, SyncRequest::Watch { prefix: Bytes::from_static(prefix.as_bytes()) });
        self.run(0);
        assert_eq!(self.heard(at), [], "the first message is empty");
    }

    /// All changes that the watcher there heard of, in order.
    fn heard(&self, at: u8) -> Vec<(Bytes, Option<View>)> {
        let changed = self.replies.iter().filter_map(|(node, reply)| match reply {
            ClientReply::Sync { id: WATCH, reply: SyncReply::Changed { items } } if *node == at => {
                Some(items)
            }
            _ => None,
        });
        changed.flatten().cloned().collect()
    }

    fn last_heard(&self, at: u8, key: &str) -> Option<Option<View>> {
        let heard = self.heard(at);
        heard.into_iter().rev().find(|(name, _)| name == key.as_bytes()).map(|(_, view)| view)
    }

    /// The first frame of a node that wrote nothing else, as whoever has its key makes it.
    pub fn first_frame(&self, store: &mut Store, writes: &[Write]) -> Frame {
        let crypto = Ed25519::new(seed(1, store.me().id.0 as u8), &[]);
        let bundle = store.write(writes, 0, self.now().wall_ms).unwrap().unwrap();
        Frame::seal(&bundle, dwcp_base::Hash::ZERO, self.genesis.cluster(), &crypto)
    }

    pub fn push(&mut self, from: u8, to: u8, frame: &Frame) {
        let message = Message::Push { hops: 0, frame: frame.bytes().clone() }.to_bytes();
        let bytes = dwcp_base::encode(&dwcp_replica::PeerMessage::Sync(message)).into();
        let input = Input::Peer { from: ReplicaId(from), incarnation: Incarnation(0), bytes };
        self.nodes[usize::from(to)].inbox.push_back(input);
    }
}

fn internet() -> Cluster {
    let policy = Policy::root_only(Trust::Byzantine, Quorum::new(4, None).unwrap());
    Cluster::with(4, policy, NetworkMode::Internet)
}

fn store(id: u32) -> Store {
    Store::new(Origin::new(id, 0), Resolvers::default())
}

#[test]
fn of_what_had_waited_for_a_frame() {
    let mut cluster = internet();
    (1..4).for_each(|id| cluster.stop(id));
    let (mut one, mut two) = (store(1), store(2));
    let first = cluster.first_frame(&mut one, &[put("a", "1")]);
    two.apply(first.bundle(), first.bundle().hlc().ms()).unwrap();
    let second = cluster.first_frame(&mut two, &[put("a", "2"), put("b", "2")]);
    cluster.watch(0, "b");
    cluster.push(1, 0, &second);
    cluster.run(10);
    let status = cluster.sync_status(0);
    assert_eq!((cluster.heard(0), status.frames_applied), (vec![], 0), "it waits for the first");
    cluster.push(1, 0, &first);
    cluster.run(10);
    assert_eq!(cluster.heard(0), [(Bytes::from_static(b"b"), json("2"))]);
    assert_eq!(cluster.sync_status(0).frames_applied, 2);
}

#[test]
fn of_what_had_waited_for_a_floor() {
    let mut cluster = internet();
    cluster.write(0, 1, vec![put("a", "1")]);
    cluster.run(60_000);
    let floor = cluster.sync_status(0).floor;
    assert!(floor > 0, "there is one");
    let mut three = store(3);
    for number in 1..=floor + 1 {
        let floor =
            Floor { number, seen: VersionVector::new(), written: BTreeMap::new(), retired: BTreeMap::new() };
        three.raise_floor(floor).unwrap();
    }
    let frame = cluster.first_frame(&mut three, &[put("b", "3")]);
    cluster.watch(0, "b");
    cluster.push(3, 0, &frame);
    cluster.run(1_000);
    assert_eq!((cluster.heard(0), cluster.sync_status(0).floor), (vec![], floor), "it waits for the floor");
    cluster.write(1, 2, vec![put("a", "2")]);
    cluster.run(60_000);
    assert!(cluster.sync_status(0).floor > floor);
    assert_eq!(cluster.heard(0), [(Bytes::from_static(b"b"), json("3"))]);
}

#[test]
fn of_what_had_waited_for_an_end() {
    let mut cluster = Cluster::with(3, raft(), NetworkMode::Hybrid);
    cluster.run(500);
    cluster.write(2, 1, vec![put("a", "1")]);
    cluster.run(10_000);
    cluster.stop(2);
    // Node 1 built upon a change of node 2 that nobody else will ever see.
    let (mut one, mut two) = (store(1), store(2));
    for (value, written) in [("1", 0), ("2", 1)] {
        let bundle = two.write(&[put("a", value)], written, cluster.now().wall_ms).unwrap().unwrap();
        one.apply(&bundle, bundle.hlc().ms()).unwrap();
    }
    let frame = cluster.first_frame(&mut one, &[put("a", "3"), put("b", "3")]);
    cluster.watch(0, "b");
    cluster.push(1, 0, &frame);
    cluster.run(5_000);
    assert_eq!(cluster.heard(0), [], "it waits for what it was built upon");
    cluster.exclude(0, 2, 0);
    cluster.run(60_000);
    assert_eq!(cluster.heard(0), [(Bytes::from_static(b"b"), json("3"))]);
}

#[test]
fn of_what_a_snapshot_brought_and_took_away() {
    let policy = Policy::root_only(Trust::Byzantine, Quorum::new(7, None).unwrap());
    let mut cluster = Cluster::with(7, policy, NetworkMode::Internet);
    cluster.write(0, 1, vec![put("kept", "1")]);
    cluster.run(10_000);
    cluster.stop(6);
    cluster.apart = vec![5];
    let (mut one, mut other) = (store(6), store(6));
    let one = cluster.first_frame(&mut one, &[put("one", "1"), put("both", "1")]);
    let other = cluster.first_frame(&mut other, &[put("other", "2"), put("both", "2")]);
    cluster.watch(5, "");
    (0..5).for_each(|to| cluster.push(6, to, &one));
    cluster.push(6, 5, &other);
    cluster.run(5_000);
    assert_eq!(cluster.last_heard(5, "other"), Some(json("2")));
    cluster.apart.clear();
    cluster.run(120_000);
    let sync = cluster.sync_status(5);
    assert_eq!((sync.snapshots_installed, sync.needs_snapshot), (1, false), "{sync:?}");
    assert_eq!(cluster.last_heard(5, "other"), Some(None), "it was on the branch that does not count");
    assert_eq!(cluster.last_heard(5, "one"), Some(json("1")));
    assert_eq!(cluster.last_heard(5, "both"), Some(json("1")));
    assert_eq!(cluster.last_heard(5, "kept"), None, "it did not change");
}
