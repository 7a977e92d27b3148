//! Maps: an update inside a field against the removal of the field.

use crate::world::{Replica, settle, text};
use bytes::Bytes;
use dwcp_crdt::{BundleError, Kind, Op, View, Write, WriteRefused};
use std::collections::BTreeMap;

fn fields(replica: &Replica, key: &str) -> BTreeMap<Bytes, View> {
    match replica.get(key) {
        None => BTreeMap::new(),
        Some(View::Map(map)) => map,
        other => panic!("{key} is {other:?}"),
    }
}

#[test]
fn a_nested_update_survives_the_removal_of_its_field_and_what_was_seen_does_not() {
    let (mut a, mut b) = (Replica::new(1), Replica::new(2));
    a.write_at("m", &["user", "tags"], Op::Add(text("old")));
    a.write_at("m", &["user", "visits"], Op::Adjust(10));
    a.write_at("m", &["user", "name"], Op::Put(text("ann")));
    a.write_at("m", &["other"], Op::Put(text("stays")));
    b.pull(&a);
    a.write_at("m", &["user", "tags"], Op::Add(text("new")));
    a.write_at("m", &["user", "visits"], Op::Adjust(1));
    b.write_at("m", &["user"], Op::Delete);
    assert_eq!(fields(&b, "m").len(), 1);
    settle(&mut [&mut a, &mut b]);
    let view = |key: &[&str]| {
        let path: Vec<Bytes> = key.iter().map(|f| Bytes::copy_from_slice(f.as_bytes())).collect();
        b.store.get_at(b"m", &path)
    };
    assert_eq!(view(&["user", "tags"]), Some(View::Set([text("new")].into())));
    assert_eq!(view(&["user", "visits"]), Some(View::Count(1)));
    assert_eq!(view(&["user", "name"]), None);
    assert_eq!(view(&["other"]), Some(View::Register(text("stays"))));
    assert_eq!(b.store.conflict_count(), 0, "the type's rule settles it");
}

#[test]
fn a_field_that_is_removed_and_written_again_does_not_bring_the_old_value_back() {
    let (mut a, mut b) = (Replica::new(1), Replica::new(2));
    a.write_at("m", &["f"], Op::Put(text("1")));
    b.pull(&a);
    b.write_at("m", &["f"], Op::Delete);
    let again = b.write_at("m", &["f"], Op::Put(text("2")));
    let mut c = Replica::new(3);
    c.pull(&a);
    c.receive(&again);
    assert_eq!(c.store.held_count(), 1, "what comes after a delete waits for it");
    settle(&mut [&mut a, &mut b, &mut c]);
    assert_eq!(fields(&c, "m"), BTreeMap::from([("f".into(), View::Register(text("2")))]));
    assert_eq!(c.store.conflict_count(), 0);
}

#[test]
fn registers_inside_maps_conflict_like_any_other() {
    let (mut a, mut b) = (Replica::new(1), Replica::new(2));
    a.write_at("m", &["x", "y"], Op::Put(text("1")));
    b.write_at("m", &["x", "y"], Op::Put(text("2")));
    settle(&mut [&mut a, &mut b]);
    assert_eq!((a.store.conflict_count(), a.store.conflicts_open()), (1, 1));
    let event = a.store.history().next_back().cloned().expect("remembered");
    assert_eq!((event.path.len(), event.siblings.len()), (2, 2));
    b.write("m", Op::Delete);
    settle(&mut [&mut a, &mut b]);
    assert_eq!((a.store.conflict_count(), a.store.conflicts_open()), (1, 0));
    assert_eq!(a.get("m"), None);
}

#[test]
fn a_clash_inside_a_map_stays_inside_it() {
    let (mut a, mut b) = (Replica::new(1), Replica::new(2));
    a.write_at("m", &["f"], Op::Adjust(1));
    b.write_at("m", &["f", "g"], Op::Add(text("x")));
    settle(&mut [&mut a, &mut b]);
    let path = [Bytes::from("f")];
    assert_eq!(a.kinds("m"), [Kind::Map]);
    assert_eq!(a.store.kinds(b"m", &path), [Kind::PnCounter, Kind::Map]);
    assert_eq!(a.store.conflict_count(), 1);
}

#[test]
fn depth_eight_is_the_limit_and_a_register_is_no_map() {
    let mut a = Replica::new(1);
    let path: Vec<String> = (0..8).map(|n| n.to_string()).collect();
    let refused = a.try_write(&[Write::at("m", path.clone(), Op::Grow(1))]);
    assert_eq!(refused, Err(WriteRefused::Invalid(BundleError::Path { fields: 8 })));
    a.try_write(&[Write::at("m", path[..7].to_vec(), Op::Grow(1))]).expect("seven fields and a value");
    a.put("k", "v");
    let refused = a.try_write(&[Write::at("k", ["f"], Op::Grow(1))]);
    let (is, asked) = (Kind::LwwRegister, Kind::Map);
    assert_eq!(refused, Err(WriteRefused::KindClash { key: "k".into(), is, asked }));
}
