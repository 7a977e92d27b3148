//! Counters: nothing is lost, nothing counts twice, and a reset takes what it saw.

use crate::world::{Replica, settle};
use dwcp_crdt::{Op, Write, WriteRefused};

#[test]
fn concurrent_increments_add_up_and_are_no_conflict() {
    let (mut a, mut b) = (Replica::new(1), Replica::new(2));
    for _ in 0..10 {
        a.write("n", Op::Adjust(3));
        b.write("n", Op::Adjust(-1));
        a.write("g", Op::Grow(2));
    }
    settle(&mut [&mut a, &mut b]);
    assert_eq!((a.count("n"), a.count("g")), (Some(20), Some(20)));
    assert_eq!(a.store.conflict_count(), 0);
}

#[test]
fn duplicates_gaps_and_reordering_do_not_matter() {
    let (mut a, mut c) = (Replica::new(1), Replica::new(3));
    let bundles: Vec<_> = (1..=4).map(|n| a.write("n", Op::Adjust(n))).collect();
    for (index, shown) in
        [(3, None), (0, Some(1)), (3, Some(1)), (2, Some(1)), (0, Some(1)), (1, Some(10)), (1, Some(10))]
    {
        c.receive(&bundles[index]);
        assert_eq!(c.count("n"), shown, "an increment waits for the one before it");
    }
    settle(&mut [&mut a, &mut c]);
}

#[test]
fn a_reset_takes_what_it_saw_and_leaves_concurrent_increments() {
    let (mut a, mut b) = (Replica::new(1), Replica::new(2));
    a.write("n", Op::Adjust(10));
    b.pull(&a);
    a.write("n", Op::Adjust(5));
    b.write("n", Op::Delete);
    assert_eq!(b.get("n"), None);
    settle(&mut [&mut a, &mut b]);
    assert_eq!(a.count("n"), Some(5), "not 15: the reset is not undone by the next increment");
    a.write("n", Op::Adjust(1));
    settle(&mut [&mut a, &mut b]);
    assert_eq!(b.count("n"), Some(6));
}

#[test]
fn two_resets_of_the_same_increments_subtract_them_once() {
    let (mut a, mut b, mut c) = (Replica::new(1), Replica::new(2), Replica::new(3));
    a.write("n", Op::Adjust(10));
    b.pull(&a);
    c.pull(&a);
    b.write("n", Op::Delete);
    c.write("n", Op::Delete);
    c.write("n", Op::Adjust(4));
    a.write("n", Op::Adjust(-3));
    settle(&mut [&mut a, &mut b, &mut c]);
    assert_eq!(a.count("n"), Some(1));
}

#[test]
fn increments_after_a_reset_that_was_seen_count_from_zero() {
    let (mut a, mut b) = (Replica::new(1), Replica::new(2));
    a.write("n", Op::Grow(10));
    b.pull(&a);
    b.write("n", Op::Delete);
    a.pull(&b);
    assert_eq!(a.get("n"), None);
    a.write("n", Op::Grow(2));
    settle(&mut [&mut a, &mut b]);
    assert_eq!(b.count("n"), Some(2));
    assert_eq!(b.store.conflict_count(), 0);
}

#[test]
fn a_total_beyond_64_bits_is_refused_and_nothing_happens() {
    let mut a = Replica::new(1);
    a.write("n", Op::Grow(u64::MAX));
    let before = a.store.digest();
    let refused = a.try_write(&[Write::new("m", Op::Grow(1)), Write::new("n", Op::Grow(1))]);
    assert_eq!(refused, Err(WriteRefused::CounterFull { key: "n".into() }));
    assert_eq!(a.store.digest(), before);
    assert_eq!(a.get("m"), None);
}
