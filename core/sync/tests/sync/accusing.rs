//! Who keeps everybody from collecting though he acknowledges is named, and nobody else is.

use crate::net::Net;
use crate::world::{CLUSTER, Keyed, Liar, Node, at, key_of, members, origin, setup};
use bytes::Bytes;
use dwcp_base::{Crypto, Mutants, SigningKind, signing_hash};
use dwcp_crdt::{Origin, OriginId, VersionVector};
use dwcp_sync::message::{Head, Heads, ShortHash};
use dwcp_sync::{Fault, Message, Reason, Received};

fn says(net: &mut Net, to: usize, me: Origin, written: u64, applied: &VersionVector) {
    let head = |(origin, _): (Origin, &[dwcp_crdt::Interval])| {
        let last = applied.prefix(origin);
        Head {
            origin,
            base: 0,
            last,
            hash: ShortHash::default(),
            acked: last,
            frozen: false,
            stretches: Vec::new(),
        }
    };
    // Its heads say what is here, so that nothing but `written` is false.
    let heads = applied.iter().map(head).collect();
    let now = net.now(to);
    let message = Message::Ask { round: 1, heads: Heads { me, written, floor: 0, heads } }.to_bytes();
    net.nodes[to].message(now, me.id, &message);
}

#[test]
fn who_says_it_wrote_more_than_it_gives_is_named_until_it_gives_it() {
    let mut net = Net::new(1, 4, Mutants::default());
    net.is_judged = false;
    net.down.insert(3);
    let mut liar = Liar::new(origin(3));
    let frames: Vec<_> = (0..3).map(|n| liar.put(at(n), "k", &n.to_string())).collect();
    let give = |net: &mut Net, place: usize| {
        let now = net.now(0);
        let push = Message::Push { hops: 8, frame: frames[place].bytes().clone() }.to_bytes();
        net.nodes[0].message(now, OriginId(3), &push);
    };
    give(&mut net, 0);
    let lie = |net: &mut Net, written| {
        for _ in 0..8 {
            let applied = net.nodes[0].store.applied().clone();
            says(net, 0, origin(3), written, &applied);
            net.pass(10_000);
        }
    };
    lie(&mut net, 1);
    assert_eq!(net.nodes[0].accused, [], "it gave what it says");
    says(&mut net, 0, origin(3), 2, &VersionVector::new());
    net.pass(50_000);
    assert_eq!(net.nodes[0].accused, [], "it has a minute");
    lie(&mut net, 3);
    assert_eq!(net.nodes[0].accused, [(origin(3), Fault::Overstates)], "once");
    assert_eq!(net.nodes[0].sync.accused().collect::<Vec<_>>(), [(origin(3), Fault::Overstates)]);
    give(&mut net, 1);
    net.pass(5_000);
    assert_eq!(net.nodes[0].sync.accused().count(), 0, "it gave what it was named for");
    lie(&mut net, u64::MAX / 2);
    assert_eq!(net.nodes[0].accused.len(), 2, "and goes on");
    assert_eq!(net.nodes[1].accused, [], "said to one alone, of which the others know nothing");
    give(&mut net, 2);
    // Its end settles what it said.
    let cut = net.nodes[0].standing(origin(3));
    net.nodes[0].sync.set_cut(cut);
    net.nodes[0].run();
    assert_eq!(net.nodes[0].sync.accused().count(), 0);
}

#[test]
fn who_lost_what_it_had_not_yet_synced_is_not_named_and_acknowledges_on() {
    let mut net = Net::new(2, 3, Mutants::default());
    net.is_judged = false;
    let now = net.now(2);
    net.nodes[2].put(now, "k", "lost");
    net.pass(10_000);
    let now = net.now(2);
    net.nodes[2].crash(0, now);
    let now = net.now(0);
    net.nodes[0].put(now, "k", "kept");
    for _ in 0..15 {
        (0..3).for_each(|who| net.sync_disk(who));
        net.pass(10_000);
    }
    assert!(net.nodes[..2].iter().all(|node| node.accused.is_empty()));
    let floor = net.nodes[0].sync.floor_candidate().expect("all acknowledge what is kept");
    assert_eq!(floor.written.get(&origin(2)), Some(&0), "{floor:?}");
}

#[test]
fn who_signs_what_cannot_be_read_is_named_and_not_its_bringer() {
    let mut node = Node::new(setup(origin(0), members(3)));
    let good = Liar::new(origin(2)).put(at(0), "k", "v");
    let mut bytes = good.bytes().to_vec();
    let end = bytes.len() - 1;
    bytes.truncate(end);
    let unsigned = Received::read(Bytes::from(bytes.clone())).expect("the header is whole");
    let push = |bytes: &[u8]| Message::Push { hops: 8, frame: Bytes::copy_from_slice(bytes) }.to_bytes();
    node.message(at(1), OriginId(1), &push(&bytes));
    assert_eq!((node.sync.refused(Reason::Forged), node.accused.len()), (1, 0), "anybody can cut bytes off");
    let message = signing_hash(SigningKind::SyncFrame, CLUSTER, &unsigned.hash().0);
    bytes[65..129].copy_from_slice(&Keyed(key_of(origin(2))).sign(&message).0);
    for _ in 0..2 {
        node.message(at(1), OriginId(1), &push(&bytes));
    }
    assert_eq!(node.sync.refused(Reason::BadBundle), 2);
    assert_eq!(node.accused, [(origin(2), Fault::BadBundle)], "once");
    assert_eq!(node.sync.accused().collect::<Vec<_>>(), [(origin(2), Fault::BadBundle)]);
}

#[test]
fn what_is_not_taken_here_is_not_held_against_its_writer() {
    let mut net = Net::new(1, 3, Mutants::default());
    net.is_judged = false;
    net.down.insert(2);
    net.nodes[0].sync.halt(origin(2));
    net.nodes[0].run();
    for _ in 0..10 {
        says(&mut net, 0, origin(2), 7, &VersionVector::new());
        net.pass(10_000);
    }
    assert_eq!(net.nodes[0].accused, [], "its end is about to be decided");
}
