//! Sets: who wins when one adds what another removes.

use crate::world::{Replica, settle, text};
use dwcp_crdt::{Kind, Op, Write, WriteRefused};

#[test]
fn an_or_set_keeps_what_was_added_while_it_was_removed_elsewhere() {
    let (mut a, mut b) = (Replica::new(1), Replica::new(2));
    a.write("s", Op::Add(text("x")));
    a.write("s", Op::Add(text("y")));
    b.pull(&a);
    a.write("s", Op::Add(text("x")));
    b.write("s", Op::Remove(text("x")));
    b.write("s", Op::Remove(text("y")));
    settle(&mut [&mut a, &mut b]);
    assert_eq!(a.set("s"), ["x"]);
    assert_eq!(a.store.conflict_count(), 0);
    a.write("s", Op::Remove(text("x")));
    settle(&mut [&mut a, &mut b]);
    assert_eq!(b.get("s"), None, "a set without elements does not exist");
}

#[test]
fn a_remove_that_arrives_before_its_add_waits_for_it() {
    let (mut a, mut c) = (Replica::new(1), Replica::new(3));
    let add = a.write("s", Op::Add(text("x")));
    let remove = a.write("s", Op::Remove(text("x")));
    c.receive(&remove);
    assert_eq!(c.store.held_count(), 1);
    c.receive(&add);
    assert_eq!((c.store.held_count(), c.get("s")), (0, None));
    settle(&mut [&mut a, &mut c]);
}

#[test]
fn a_two_phase_set_never_takes_back_what_was_removed() {
    let (mut a, mut b) = (Replica::new(1), Replica::new(2));
    a.write("s", Op::AddOnce(text("x")));
    a.write("s", Op::AddOnce(text("y")));
    b.pull(&a);
    a.write("s", Op::AddOnce(text("x")));
    b.write("s", Op::RemoveForGood(text("x")));
    settle(&mut [&mut a, &mut b]);
    assert_eq!(a.set("s"), ["y"]);
    let again = a.try_write(&[Write::new("s", Op::AddOnce(text("x")))]);
    assert_eq!(again, Err(WriteRefused::RemovedForGood { key: "s".into() }));
}

#[test]
fn clearing_a_set_removes_what_was_seen_and_nothing_else() {
    for (add, clear_kind) in
        [(Op::AddForever as fn(_) -> _, Kind::GSet), (Op::Add, Kind::OrSet), (Op::AddOnce, Kind::TwoPhaseSet)]
    {
        let (mut a, mut b) = (Replica::new(1), Replica::new(2));
        a.write("s", add(text("x")));
        a.write("s", add(text("y")));
        b.pull(&a);
        a.write("s", add(text("x")));
        a.write("s", add(text("z")));
        b.write("s", Op::Delete);
        settle(&mut [&mut a, &mut b]);
        assert_eq!(a.set("s"), ["x", "z"], "{clear_kind}");
        assert_eq!(a.kinds("s"), [clear_kind]);
    }
}

#[test]
fn adding_a_thousand_times_costs_what_adding_once_costs() {
    let (mut a, mut b) = (Replica::new(1), Replica::new(2));
    let piece = |replica: &Replica| replica.store.snapshot_piece(None, usize::MAX).bytes.len();
    a.write("s", Op::Add(text("x")));
    b.write("s", Op::Add(text("x")));
    settle(&mut [&mut a, &mut b]);
    let two_tags = piece(&a);
    for _ in 0..60 {
        a.write("s", Op::Add(text("x")));
        b.pull(&a);
        b.write("s", Op::Add(text("x")));
        a.pull(&b);
    }
    assert!(piece(&a) <= two_tags, "{} > {two_tags}", piece(&a));
}

#[test]
fn a_write_of_another_kind_is_refused_and_says_which_kind_there_is() {
    let mut a = Replica::new(1);
    a.write("s", Op::Add(text("x")));
    let refused = a.try_write(&[Write::new("t", Op::Grow(1)), Write::new("s", Op::Put(text("1")))]);
    let (is, asked) = (Kind::OrSet, Kind::LwwRegister);
    assert_eq!(refused, Err(WriteRefused::KindClash { key: "s".into(), is, asked }));
    assert_eq!(a.get("t"), None, "no operation of a refused write happens");
}

#[test]
fn kinds_created_at_once_are_a_counted_clash_with_one_winner_until_settled() {
    let (mut a, mut b, mut c) = (Replica::new(1), Replica::new(2), Replica::new(3));
    a.write("k", Op::Adjust(7));
    b.write("k", Op::Add(text("x")));
    c.put("k", "v");
    settle(&mut [&mut a, &mut b, &mut c]);
    assert_eq!(a.kinds("k"), [Kind::LwwRegister, Kind::PnCounter, Kind::OrSet]);
    assert_eq!(a.set("k"), ["x"]);
    assert_eq!((a.store.conflict_count(), a.store.conflicts_open()), (2, 2));
    assert!(a.try_write(&[Write::new("k", Op::Adjust(1))]).is_err(), "the hidden kind takes no writes");
    a.write("k", Op::Settle);
    settle(&mut [&mut a, &mut b, &mut c]);
    assert_eq!(c.kinds("k"), [Kind::OrSet]);
    assert_eq!((c.store.conflict_count(), c.store.conflicts_open()), (2, 0));
    c.write("k", Op::Delete);
    settle(&mut [&mut a, &mut b, &mut c]);
    b.write("k", Op::Adjust(1));
    settle(&mut [&mut a, &mut b, &mut c]);
    assert_eq!(a.count("k"), Some(1));
    assert_eq!(a.store.conflict_count(), 2);
}
