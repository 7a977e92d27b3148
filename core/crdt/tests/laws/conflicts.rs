//! Resolvers at work, the conflict history, and repairs.

use crate::world::{NOON_MS, Replica, assert_same, origin, settle, text};
use dwcp_crdt::limits::HISTORY_EVENTS_MAX;
use dwcp_crdt::{Op, Outcome, Plain, Resolver, Resolvers, Sibling, Store, Strategy, View, Write};
use std::sync::Arc;

/// Chooses one of the siblings.
#[derive(Debug)]
pub(crate) struct Longest;
impl Resolver for Longest {
    fn name(&self) -> &'static str {
        "longest"
    }
    fn resolve(&self, _: &[u8], siblings: &[Sibling<'_>]) -> Option<Plain> {
        siblings.iter().filter_map(|s| s.value).max_by_key(|v| (v.as_bytes().len(), *v)).cloned()
    }
}

/// Whatever stands first: depends on the order of siblings.
#[derive(Debug)]
struct First;
impl Resolver for First {
    fn name(&self) -> &'static str {
        "first"
    }
    fn resolve(&self, _: &[u8], siblings: &[Sibling<'_>]) -> Option<Plain> {
        siblings.first()?.value.cloned()
    }
}

fn replica(id: u32) -> Replica {
    let mut resolvers = Resolvers::default();
    resolvers.set("docs/", Strategy::Merge);
    resolvers.set("docs/long/", Strategy::Custom(Arc::new(Longest)));
    resolvers.set("bad/", Strategy::Custom(Arc::new(First)));
    Replica { store: Store::new(origin(id), resolvers), log: Vec::new(), now_ms: NOON_MS }
}

fn json(text: &str) -> Plain {
    Plain::json(text).expect("json")
}

#[test]
fn each_prefix_settles_its_siblings_in_its_own_way_and_alike_everywhere() {
    let (mut a, mut b) = (replica(1), replica(2));
    for (key, x, y) in [
        ("docs/d", r#"{"x":1,"n":1}"#, r#"{"y":2,"n":2}"#),
        ("docs/long/d", "12345", "6"),
        ("bad/d", "1", "2"),
        ("d", "1", "2"),
    ] {
        a.write(key, Op::Put(json(x)));
        b.write(key, Op::Put(json(y)));
    }
    settle(&mut [&mut a, &mut b]);
    let read = |key: &str| match a.get(key) {
        Some(View::Register(value)) => value.as_json().expect("json").to_string(),
        other => panic!("{other:?}"),
    };
    assert_eq!(read("docs/d"), r#"{"n":2,"x":1,"y":2}"#);
    assert_eq!(read("docs/long/d"), "12345");
    assert_eq!((read("bad/d"), read("d")), ("2".into(), "2".into()));
    assert_eq!((a.store.conflict_count(), a.store.conflicts_open()), (4, 4));
    assert_eq!((a.store.resolutions_impure(), b.store.resolutions_impure()), (1, 1));
    let told: Vec<_> = a.store.history().map(|c| (c.strategy.as_str(), c.outcome.clone())).collect();
    let (ours, theirs) = (a.siblings("d")[0], a.siblings("d")[1]);
    let won = |counter| Outcome::Won(dwcp_crdt::Dot::new(origin(2), counter));
    assert_eq!((ours.origin, theirs), (origin(1), dwcp_crdt::Dot::new(origin(2), 4)));
    assert_eq!(told[0], ("merge", Outcome::Merged));
    assert_eq!(told[1], ("longest", Outcome::Won(dwcp_crdt::Dot::new(origin(1), 2))));
    assert_eq!(told[2..], [("first", won(3)), ("last_writer_wins", won(4))]);
}

#[test]
fn the_history_keeps_the_newest_thousand_and_the_count_keeps_all() {
    let (mut a, mut b) = (Replica::new(1), Replica::new(2));
    let conflicts = HISTORY_EVENTS_MAX + 50;
    let writes = |value: &str| -> Vec<Write> {
        (0..conflicts).map(|n| Write::new(format!("k{n:05}"), Op::Put(text(value)))).collect()
    };
    a.try_write(&writes("x")).expect("good");
    let theirs = b.try_write(&writes("y")).expect("good").expect("a change");
    a.receive(&theirs);
    assert_eq!(a.store.conflict_count(), conflicts as u64);
    assert_eq!(a.store.history().len(), HISTORY_EVENTS_MAX);
    assert_eq!(a.store.history().next().map(|c| c.key.clone()), Some("k00050".into()));
}

#[test]
fn a_damaged_key_is_found_by_its_hash_and_mended_from_another_replica() {
    let (mut a, mut b) = (Replica::new(1), Replica::new(2));
    a.put("k", "good");
    a.write("s", Op::Add(text("x")));
    b.put("k", "sibling");
    settle(&mut [&mut a, &mut b]);
    // What a flipped bit might make of it: another state of the key.
    let mut other = Replica::new(3);
    other.put("k", "bad");
    let bad = other.store.key_bytes(b"k").expect("there");
    b.store.replace_key(b"k", Some(&bad)).expect("well formed");
    b.store.replace_key(b"s", None).expect("removed");
    b.store.check();
    assert_ne!(a.store.digest(), b.store.digest());
    let good: Vec<_> = a.store.key_hashes().map(|(key, hash)| (key.clone(), hash)).collect();
    assert_eq!(a.store.key_hashes_anew().map(|(key, hash)| (key.clone(), hash)).collect::<Vec<_>>(), good);
    let theirs: Vec<_> = b.store.key_hashes().map(|(key, hash)| (key.clone(), hash)).collect();
    for (key, _) in good.iter().filter(|entry| !theirs.contains(entry)) {
        let bytes = a.store.key_bytes(key).expect("there");
        assert!(b.store.replace_key(key, Some(&bytes[1..])).is_err());
        b.store.replace_key(key, Some(&bytes)).expect("well formed");
    }
    assert_same(&mut a, &mut b);
}
