//! Frames by themselves: their bytes, their signatures, and what of one chain fits together.

use crate::world::{CLUSTER, Keyed, Liar, NOON_MS, at, key_of, origin, text};
use bytes::Bytes;
use dwcp_base::crypto::Ed25519;
use dwcp_base::{Chance, Crypto, Hash, PublicKey};
use dwcp_crdt::{Op, Resolvers, Store, Write};
use dwcp_sync::frame::verify;
use dwcp_sync::limits::FRAME_BYTES_MAX;
use dwcp_sync::{Frame, FrameError, Proof, Received, contradict};
use std::collections::BTreeMap;

fn chain(count: usize) -> Vec<Frame> {
    let mut liar = Liar::new(origin(1));
    (0..count).map(|n| liar.put(at(n as u64), &format!("k{n}"), "v")).collect()
}

#[test]
fn a_frame_survives_the_wire() {
    let frame = &chain(2)[1];
    let read = Received::read(frame.bytes().clone()).and_then(Received::open).expect("a good frame");
    assert_eq!(read, *frame);
    assert_eq!((read.header().first, read.header().last), (2, 2));
    assert!(read.signed().verify(CLUSTER, &key_of(origin(1)), &Keyed(PublicKey([0; 32]))));
}

#[test]
fn no_changed_byte_goes_unnoticed() {
    let frame = &chain(2)[1];
    let keys = BTreeMap::from([(origin(1), key_of(origin(1)))]);
    let crypto = Keyed(PublicKey([0; 32]));
    for place in 0..frame.bytes().len() {
        let mut bytes = frame.bytes().to_vec();
        bytes[place] ^= 1;
        let Ok(received) = Received::read(Bytes::from(bytes)) else { continue };
        assert_eq!(verify(&[received], &keys, CLUSTER, &crypto), [false], "byte {place}");
    }
    for length in 0..frame.bytes().len() {
        let Ok(received) = Received::read(frame.bytes().slice(..length)) else { continue };
        assert_eq!(verify(&[received], &keys, CLUSTER, &crypto), [false], "cut to {length}");
    }
}

#[test]
fn a_frame_is_as_long_as_the_longest_bundle_and_no_longer() {
    let mut store = Store::new(origin(1), Resolvers::default());
    let put = |n: usize, bytes: usize| Write::new(format!("k{n}"), Op::Put(text(&"v".repeat(bytes))));
    let bundle =
        store.write(&[put(1, 128 * 1024), put(2, 126 * 1024)], 0, NOON_MS).expect("fits").expect("a change");
    let frame = Frame::seal(&bundle, Hash::ZERO, CLUSTER, &Keyed(key_of(origin(1))));
    assert!(Received::read(frame.bytes().clone()).and_then(Received::open).is_ok());
    let long = Bytes::from(vec![1; FRAME_BYTES_MAX + 1]);
    assert_eq!(Received::read(long), Err(FrameError::TooLong { bytes: FRAME_BYTES_MAX + 1 }));
}

/// A frame signed over a header that says something else than its bundle.
#[test]
fn a_header_that_does_not_fit_its_bundle_is_refused() {
    let one = chain(1).remove(0);
    let mut bytes = one.bytes().to_vec();
    // `last`, eight bytes behind version, origin and `first`.
    bytes[17] = 2;
    let received = Received::read(Bytes::from(bytes)).expect("a sound header");
    assert_eq!(received.open(), Err(FrameError::Mismatch));
    for (place, value) in [(9, 0), (17, 0), (0, 9)] {
        let mut bytes = one.bytes().to_vec();
        bytes[place] = value;
        assert!(Received::read(Bytes::from(bytes)).is_err(), "byte {place}");
    }
}

#[test]
fn a_chain_fits_together_and_nothing_else_does() {
    let frames = chain(4);
    for a in &frames {
        for b in &frames {
            assert!(!contradict(a.header(), b.header()));
            assert_eq!(Proof::of(*a.signed(), *b.signed()), None);
        }
    }
    // Another second frame; a third that names no second here; a fourth that is older than the second.
    let mut fork = Liar::new(origin(1));
    let shared = fork.put(at(0), "k0", "v");
    assert_eq!(shared.hash(), frames[0].hash());
    let second = fork.put(at(1), "k1", "another");
    let third = fork.put(at(2), "k2", "v");
    assert!(contradict(frames[1].header(), second.header()), "one place, two frames");
    assert!(contradict(frames[1].header(), third.header()), "it names another frame before it");
    assert!(!contradict(frames[0].header(), third.header()), "nothing to compare");
    let mut slow = Liar::new(origin(1));
    let mut late = Vec::new();
    for n in 0..4 {
        late.push(slow.put(at(0), &format!("s{n}"), "v"));
    }
    assert!(contradict(frames[1].header(), late[3].header()), "its clock went back");
    let proof = Proof::of(*second.signed(), *frames[1].signed()).expect("a contradiction");
    assert_eq!(Some(proof), Proof::of(*frames[1].signed(), *second.signed()), "one pair, one proof");
    let crypto = Keyed(PublicKey([0; 32]));
    assert!(proof.holds(CLUSTER, &key_of(origin(1)), &crypto));
    assert!(!proof.holds(CLUSTER, &key_of(origin(2)), &crypto));
}

/// The real thing once: a batch of Ed25519 signatures is good exactly where each is.
#[test]
fn many_signatures_are_checked_as_one_and_a_bad_one_is_found() {
    let signers: Vec<Ed25519> = (0..4).map(|n| Ed25519::new([n + 1; 32], &[])).collect();
    let mut keys: BTreeMap<_, _> = (0..4).map(|n| (origin(n), signers[n as usize].public_key())).collect();
    let mut frames = Vec::new();
    for n in 0..4_u32 {
        let mut store = Store::new(origin(n), Resolvers::default());
        let mut prev = Hash::ZERO;
        for k in 0..5 {
            let write = Write::new(format!("k{k}"), Op::Put(text("v")));
            let bundle = store.write(&[write], 0, NOON_MS + k).expect("good").expect("a change");
            let frame = Frame::seal(&bundle, prev, CLUSTER, &signers[n as usize]);
            prev = frame.hash();
            frames.push(Received::read(frame.bytes().clone()).expect("good"));
        }
    }
    let judge: &dyn Crypto = &signers[0];
    assert_eq!(verify(&frames, &keys, CLUSTER, judge), vec![true; 20]);
    let mut bytes = Vec::new();
    let mut store = Store::new(origin(2), Resolvers::default());
    let bundle =
        store.write(&[Write::new("forged", Op::Put(text("v")))], 0, NOON_MS).expect("good").expect("one");
    bytes.extend_from_slice(Frame::seal(&bundle, Hash::ZERO, CLUSTER, &signers[1]).bytes());
    frames.insert(7, Received::read(Bytes::from(bytes)).expect("readable"));
    let good: Vec<bool> = (0..21).map(|n| n != 7).collect();
    assert_eq!(verify(&frames, &keys, CLUSTER, judge), good);
    keys.remove(&origin(3));
    assert_eq!(
        verify(&frames, &keys, CLUSTER, judge).iter().filter(|good| **good).count(),
        15,
        "an unknown origin"
    );
    // Another cluster's frames are nothing here.
    let other = dwcp_base::ClusterId([8; 32]);
    assert!(verify(&frames, &keys, other, judge).iter().all(|good| !good));
}

#[test]
fn damaged_messages_are_refused_and_never_panic() {
    use dwcp_sync::Message;
    use dwcp_sync::message::{Head, Heads, Load, ShortHash};
    let frames = chain(3);
    let head = Head {
        origin: origin(1),
        base: 0,
        last: 1,
        hash: ShortHash::default(),
        acked: 1,
        frozen: false,
        stretches: vec![dwcp_crdt::Interval { first: 3, last: 3 }],
    };
    let heads = Heads { me: origin(1), written: 1, floor: 0, heads: vec![head] };
    let load = Load {
        frames: frames.iter().map(|f| f.bytes().clone()).collect(),
        hints: vec![*frames[0].signed()],
        more: true,
    };
    let messages = [
        Message::Push { hops: 0, frame: frames[0].bytes().clone() },
        Message::Ask { round: 1, heads: heads.clone() },
        Message::Answer { round: 1, heads: heads.clone(), load: load.clone() },
        Message::Rest { load },
    ];
    let mut chance = Chance::new(4);
    for message in messages {
        let good = message.to_bytes();
        assert_eq!(Message::read(&good), Ok(message));
        for _ in 0..2_000 {
            let mut bytes = good.to_vec();
            for _ in 0..chance.between(1, 4) {
                let place = chance.below(bytes.len() as u64) as usize;
                bytes[place] = chance.next_u64() as u8;
            }
            bytes.truncate(chance.between(1, bytes.len() as u64 + 20) as usize);
            if let Ok(read) = Message::read(&bytes) {
                assert_eq!(read.to_bytes(), bytes, "one message, one encoding");
            }
        }
    }
    let unsound = |change: &dyn Fn(&mut Heads)| {
        let mut heads = heads.clone();
        change(&mut heads);
        assert!(Message::read(&Message::Ask { round: 1, heads }.to_bytes()).is_err());
    };
    unsound(&|h| h.heads[0].base = 2);
    unsound(&|h| h.heads[0].last = u64::MAX);
    unsound(&|h| h.heads[0].stretches[0].first = 2);
    unsound(&|h| h.heads[0].stretches = vec![dwcp_crdt::Interval { first: 5, last: 4 }]);
    unsound(&|h| h.heads.push(h.heads[0].clone()));
    unsound(&|h| h.written = u64::MAX);
}
