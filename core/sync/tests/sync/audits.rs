//! The audit: equal stores stay silent, one damaged key is named on both sides, and it costs little.

use crate::net::Net;
use crate::world::{NOON_MS, text};
use bytes::Bytes;
use dwcp_base::{Hash, Mutants, encode};
use dwcp_crdt::{Op, Origin, OriginId, Resolvers, Store, Write};
use dwcp_sync::audit::{Leaf, Range, Span, Work, step};
use dwcp_sync::{Message, Reason};
use std::collections::BTreeSet;

/// Stores that applied the same.
fn twins(keys: usize) -> (Store, Store) {
    let mut a = Store::new(Origin::new(0, 0), Resolvers::default());
    let mut b = Store::new(Origin::new(1, 0), Resolvers::default());
    for part in 0..keys.div_ceil(1_000) {
        let write = |n: usize| Write::new(format!("key {n:07}"), Op::Put(text("a value")));
        let writes: Vec<Write> = (part * 1_000..keys.min((part + 1) * 1_000)).map(write).collect();
        let bundle = a.write(&writes, 0, NOON_MS).expect("good").expect("a change");
        b.apply(&bundle, NOON_MS).expect("good");
    }
    (a, b)
}

/// A store whose keys are not what they should be.
fn damage(store: &mut Store, keys: &[&str]) {
    for key in keys {
        let mut other = Store::new(Origin::new(9, 0), Resolvers::default());
        other.write(&[Write::new(key.to_string(), Op::Put(text("flipped")))], 0, 1).expect("good");
        let bytes = other.key_bytes(key.as_bytes()).expect("there");
        store.replace_key(key.as_bytes(), Some(&bytes)).expect("bytes of a key");
    }
}

/// Runs an audit between two stores: keys named by each, messages, bytes.
fn audit(a: &Store, b: &Store) -> (BTreeSet<Bytes>, BTreeSet<Bytes>, usize, usize) {
    let (mut named, mut messages, mut bytes) = ([BTreeSet::new(), BTreeSet::new()], 0, 0);
    let mut work: Option<Work> = None;
    for turn in 0.. {
        let side = turn % 2;
        let result = step(if side == 0 { a } else { b }, Hash::ZERO, work.as_ref());
        named[side].extend(result.differs);
        assert!(!result.elsewhere);
        let Some(reply) = result.reply else { break };
        let message = Message::Audit { work: reply.clone() }.to_bytes();
        assert!(Message::read(&message).is_ok(), "a step is a message");
        messages += 1;
        bytes += message.len();
        work = Some(reply);
    }
    let [first, second] = named;
    (first, second, messages, bytes)
}

fn keys(keys: &[&str]) -> BTreeSet<Bytes> {
    keys.iter().map(|key| Bytes::copy_from_slice(key.as_bytes())).collect()
}

#[test]
fn equal_stores_need_one_message() {
    let (a, b) = twins(2_500);
    let (first, second, messages, bytes) = audit(&a, &b);
    assert!(first.is_empty() && second.is_empty());
    assert_eq!(messages, 1);
    assert!(bytes < 80, "{bytes}");
}

#[test]
fn one_damaged_key_is_named_on_both_sides() {
    for key in ["key 0000000", "key 0001234", "key 0002499", "before all", "~ after all", "key 0001234x"] {
        let (a, mut b) = twins(2_500);
        damage(&mut b, &[key]);
        let (first, second, messages, bytes) = audit(&a, &b);
        assert_eq!((first, second), (keys(&[key]), keys(&[key])), "{key}");
        assert!(messages <= 6 && bytes < 3_000, "{key}: {messages} messages, {bytes} bytes");
        // A key that is gone.
        let (a, mut b) = twins(100);
        b.replace_key(b"key 0000050", None).expect("gone");
        assert_eq!(audit(&a, &b).0, keys(&["key 0000050"]));
        assert_eq!(audit(&b, &a).0, keys(&["key 0000050"]));
    }
}

#[test]
fn several_are_named_and_an_empty_store_is_no_special_case() {
    let wrong = ["key 0000001", "key 0000400", "key 0000401", "key 0001999"];
    let (mut a, b) = twins(2_000);
    damage(&mut a, &wrong);
    assert_eq!(audit(&a, &b).0, keys(&wrong));
    let (a, mut b) = twins(30);
    for n in 0..30 {
        b.replace_key(format!("key {n:07}").as_bytes(), None).expect("gone");
    }
    assert!(audit(&a, &b).1.len() >= 16, "as many as fit a leaf, the rest next time");
    assert_eq!(audit(&b, &a).0.len(), audit(&b, &a).1.len());
}

#[test]
fn stores_at_different_places_are_not_compared() {
    let (a, mut b) = twins(10);
    b.write(&[Write::new("more", Op::Put(text("v")))], 0, NOON_MS).expect("good");
    let question = step(&a, Hash::ZERO, None).reply.expect("a question");
    assert!(step(&b, Hash::ZERO, Some(&question)).elsewhere);
}

#[cfg(feature = "mutants")]
#[test]
fn damage_in_memory_is_found_alone() {
    use dwcp_sync::audit::damaged;
    for bit in [0, 9, 40, 77] {
        let (mut a, mut b) = twins(50);
        assert!(damaged(&mut a).is_empty());
        assert!(a.flip_bit(b"key 0000007", bit), "there is a bit that makes it another state");
        assert_ne!(a.key_bytes(b"key 0000007"), b.key_bytes(b"key 0000007"));
        assert_eq!(a.digest(), b.digest(), "nothing here has noticed");
        assert_eq!(damaged(&mut a), vec![Bytes::from_static(b"key 0000007")]);
        assert!(!a.is_intact(b"key 0000007") && a.is_intact(b"key 0000008") && a.is_intact(b"no key"));
        a.replace_key(b"key 0000007", b.key_bytes(b"key 0000007").as_deref()).expect("bytes of a key");
        assert!(damaged(&mut a).is_empty() && a.digest() == b.digest());
        a.check();
    }
}

#[test]
fn the_slow_beat_finds_a_flipped_key_between_replicas_at_rest() {
    let mut net = Net::new(3, 3, Mutants::default());
    net.is_judged = false;
    for n in 0..40 {
        let now = net.now(n % 3);
        net.nodes[n % 3].put(now, &format!("k{n}"), "v");
    }
    net.heal();
    damage(&mut net.nodes[1].store, &["k7"]);
    net.pass(1_300_000);
    let named: Vec<(usize, OriginId)> = (0..3)
        .flat_map(|who| net.nodes[who].differs.iter().map(move |(peer, found)| (who, *peer, found)))
        .filter(|(_, _, found)| **found == keys(&["k7"]))
        .map(|(who, peer, _)| (who, peer))
        .collect();
    assert!(!named.is_empty());
    assert!(named.iter().all(|(who, peer)| *who == 1 || peer.0 == 1), "only pairs with node 1: {named:?}");
}

#[test]
fn audits_asked_for_without_end_are_refused() {
    let mut net = Net::new(3, 2, Mutants::default());
    let work = step(&net.nodes[1].store, Hash::ZERO, None).reply.expect("a question");
    let message = Message::Audit { work }.to_bytes();
    for _ in 0..40 {
        let now = net.now(0);
        net.nodes[0].message(now, OriginId(1), &message);
    }
    assert_eq!(net.nodes[0].sync.refused(Reason::TooOften), 24);
}

#[test]
fn unsound_steps_are_no_messages() {
    let (a, _) = twins(100);
    let good = step(&a, Hash::ZERO, None).reply.expect("a question");
    let bad = |change: &dyn Fn(&mut Work)| {
        let mut work = good.clone();
        change(&mut work);
        assert!(Message::read(&encode(&Message::Audit { work })).is_err());
    };
    bad(&|w| {
        w.ranges[0].span.after = Some("b".into());
        w.ranges[0].span.until = Some("a".into());
    });
    bad(&|w| w.ranges[0].span.until = Some(vec![0; 2_000].into()));
    bad(&|w| w.ranges = vec![w.ranges[0].clone(); 100]);
    // Each of these would have the same keys read twice and more.
    let range = |after: Option<&'static str>, until: Option<&'static str>| Range {
        span: Span { after: after.map(Bytes::from), until: until.map(Bytes::from) },
        print: good.ranges[0].print,
    };
    let leaf = |range: Range| Leaf { span: range.span, keys: Vec::new(), is_answer: false };
    bad(&|w| w.ranges = vec![w.ranges[0].clone(); 2]);
    bad(&|w| w.leaves = vec![leaf(range(Some("a"), Some("b")))]);
    bad(&|w| w.ranges = vec![range(None, Some("b")), range(Some("a"), None)]);
    bad(&|w| w.ranges = vec![range(Some("a"), None), range(Some("c"), Some("d"))]);
    bad(&|w| w.ranges = vec![range(Some("c"), Some("d")), range(None, Some("d"))]);
    bad(&|w| {
        w.ranges = vec![range(None, Some("a")), range(Some("b"), None)];
        w.leaves = vec![leaf(range(Some("a"), Some("bb")))];
    });
    let mut work = good.clone();
    work.ranges = vec![range(Some("b"), None), range(None, Some("a"))];
    work.leaves = vec![leaf(range(Some("a"), Some("b")))];
    assert!(Message::read(&encode(&Message::Audit { work })).is_ok(), "side by side, in any order");
}

/// Figures for the document, shown with `--nocapture`.
#[test]
fn what_an_audit_costs() {
    for (count, wrong) in [(10_000, 1), (10_000, 10), (100_000, 1), (100_000, 10)] {
        let (a, mut b) = twins(count);
        let names: Vec<String> = (0..wrong).map(|n| format!("key {:07}", n * (count / wrong) + 7)).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        damage(&mut b, &names);
        let (first, _, messages, bytes) = audit(&a, &b);
        assert!(first.len() >= wrong.min(4), "{} of {wrong}", first.len());
        println!("{count} keys, {wrong} damaged: {messages} messages, {bytes} bytes, {} named", first.len());
    }
}
