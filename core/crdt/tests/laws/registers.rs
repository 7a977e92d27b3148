//! Registers: what is seen as a conflict, how often it counts, who wins.

use crate::world::{Replica, assert_same, settle, text};
use dwcp_crdt::{Applied, Bundle, Dot, Kind, Missing, Op, Outcome, View};

#[test]
fn a_later_write_replaces_what_it_saw_and_is_no_conflict() {
    let (mut a, mut b) = (Replica::new(1), Replica::new(2));
    for round in 0..10 {
        a.put("k", &format!("a{round}"));
        b.pull(&a);
        b.put("k", &format!("b{round}"));
        a.pull(&b);
    }
    settle(&mut [&mut a, &mut b]);
    assert_eq!(a.register("k").as_deref(), Some("b9"));
    assert_eq!(a.store.conflict_count(), 0);
    assert_eq!(a.siblings("k").len(), 1);
}

#[test]
fn concurrent_writes_are_siblings_and_count_once_however_long_the_branches() {
    let (mut a, mut b) = (Replica::new(1), Replica::new(2));
    a.put("k", "common");
    b.pull(&a);
    for n in 0..5 {
        a.put("k", &format!("a{n}"));
    }
    for n in 0..3 {
        b.put("k", &format!("b{n}"));
    }
    settle(&mut [&mut a, &mut b]);
    assert_eq!(a.siblings("k").len(), 2);
    assert_eq!((a.store.conflict_count(), a.store.conflicts_open()), (1, 1));
    a.put("k", "settled");
    settle(&mut [&mut a, &mut b]);
    assert_eq!((b.store.conflict_count(), b.store.conflicts_open()), (1, 0));
    assert_eq!(b.register("k").as_deref(), Some("settled"));
}

#[test]
fn the_first_writes_of_a_key_conflict_and_every_replica_counts_alike_in_every_order() {
    let mut writers: Vec<Replica> = (1..=3).map(Replica::new).collect();
    let bundles: Vec<_> = writers.iter_mut().map(|w| w.put("k", "x")).collect();
    // A write over two of the three, and one over the third alone.
    let (one, two) = (bundles[0].clone(), bundles[1].clone());
    writers[0].receive(&two);
    let over_two = writers[0].put("k", "y");
    writers[1].receive(&one);
    let over_two_as_well = writers[1].put("k", "z");
    let all = [&bundles[0], &bundles[1], &bundles[2], &over_two, &over_two_as_well];
    let mut results = Vec::new();
    for order in permutations(all.len()) {
        let mut reader = Replica::new(9);
        for index in order {
            reader.receive(all[index]);
        }
        assert_eq!(reader.store.held_count(), 0);
        results.push((reader.store.conflict_count(), reader.store.digest(), reader.siblings("k")));
    }
    results.dedup();
    assert_eq!(results.len(), 1);
    // Absence was replaced by three (2), and each of two versions by two (1 + 1).
    assert_eq!(results[0].0, 4);
    assert_eq!(results[0].2.len(), 3);
}

fn permutations(n: usize) -> Vec<Vec<usize>> {
    if n == 0 {
        return vec![Vec::new()];
    }
    let shorter = permutations(n - 1);
    shorter.iter().flat_map(|p| (0..n).map(move |at| [&p[..at], &[n - 1], &p[at..]].concat())).collect()
}

#[test]
fn a_gap_hides_nothing_and_invents_no_conflict() {
    let (mut a, mut c) = (Replica::new(1), Replica::new(3));
    let first = a.put("k", "1");
    let second = a.put("k", "2");
    let third = a.put("k", "3");
    let other = a.put("other", "x");
    c.receive(&first);
    let missing = Missing::Dot(Dot::new(second.origin(), second.first()));
    assert_eq!(c.receive(&third), Applied::Held { missing });
    assert_eq!(c.store.missing().collect::<Vec<_>>(), [missing]);
    assert!(matches!(c.receive(&other), Applied::Done { .. }), "other keys do not wait");
    assert_eq!(c.register("k").as_deref(), Some("1"));
    let Applied::Done { released, conflicts } = c.receive(&second) else { panic!("nothing is missing") };
    assert_eq!((released.len(), conflicts), (1, 0));
    assert_eq!(c.register("k").as_deref(), Some("3"));
    assert_same(&mut a, &mut c);
    assert_eq!(c.store.conflict_count(), 0);
}

#[test]
fn equal_timestamps_are_settled_by_origin_alike_everywhere() {
    let (mut a, mut b) = (Replica::new(1), Replica::new(2));
    let (x, y) = (a.put("k", "x"), b.put("k", "y"));
    assert_eq!(x.hlc(), y.hlc());
    settle(&mut [&mut a, &mut b]);
    assert_eq!(a.register("k").as_deref(), Some("y"));
    let event = a.store.history().next_back().cloned().expect("a conflict was remembered");
    assert_eq!(event.siblings, [Dot::new(x.origin(), 1), Dot::new(y.origin(), 1)]);
    assert_eq!(event.outcome, Outcome::Won(Dot::new(y.origin(), 1)));
    assert_eq!(event.strategy, "last_writer_wins");
}

#[test]
fn an_mv_register_shows_all_that_was_written_at_once() {
    let (mut a, mut b) = (Replica::new(1), Replica::new(2));
    a.write("k", Op::PutMulti(text("x")));
    b.write("k", Op::PutMulti(text("y")));
    settle(&mut [&mut a, &mut b]);
    assert_eq!(a.get("k"), Some(View::Siblings(vec![text("x"), text("y")])));
    a.write("k", Op::PutMulti(text("z")));
    settle(&mut [&mut a, &mut b]);
    assert_eq!(b.get("k"), Some(View::Siblings(vec![text("z")])));
    assert_eq!(b.store.conflict_count(), 1);
}

#[test]
fn a_delete_against_a_write_is_a_conflict_and_a_delete_alone_is_none() {
    let (mut a, mut b) = (Replica::new(1), Replica::new(2));
    a.put("k", "x");
    a.put("gone", "x");
    b.pull(&a);
    b.now_ms += 50;
    b.put("k", "y");
    a.write("k", Op::Delete);
    a.write("gone", Op::Delete);
    settle(&mut [&mut a, &mut b]);
    assert_eq!(a.register("k").as_deref(), Some("y"), "the later write wins");
    assert_eq!(a.get("gone"), None);
    assert_eq!(a.store.conflict_count(), 1);
    a.put("gone", "back");
    settle(&mut [&mut a, &mut b]);
    assert_eq!(b.register("gone").as_deref(), Some("back"));
    assert_eq!(b.store.conflict_count(), 1, "writing after a delete that was seen is no conflict");
    assert_eq!(b.store.keys(b"").count(), 2);
}

/// A deleted MV register leaves its tombstone behind the register that took its place; its versions are nobody's any more.
#[test]
fn siblings_are_those_of_the_register_that_is_there() {
    let (mut a, mut b) = (Replica::new(1), Replica::new(2));
    a.write("k", Op::PutMulti(text("old")));
    a.write("k", Op::Delete);
    b.pull(&a);
    let (ours, theirs) = (a.put("k", "a"), b.put("k", "b"));
    settle(&mut [&mut a, &mut b]);
    assert_eq!(a.kinds("k"), [Kind::LwwRegister]);
    let dot = |bundle: &Bundle| Dot::new(bundle.origin(), bundle.first());
    assert_eq!(a.siblings("k"), [dot(&ours), dot(&theirs)]);
    assert_eq!(b.siblings("k"), a.siblings("k"));
}
