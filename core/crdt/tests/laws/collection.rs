//! Collection: what frees space, when, and that it changes nothing anybody reads.

use crate::world::{Replica, settle, text};
use dwcp_crdt::{
    Applied, Dot, Floor, FloorRefused, FloorState, Missing, Op, Origin, Resolvers, Store, View, Write,
};
use std::collections::BTreeMap;

fn next_floor(number: u64, replicas: &[&mut Replica]) -> Floor {
    let acknowledged = replicas.iter().map(|r| (r.store.me(), r.store.applied().clone())).collect();
    Floor::of(number, &acknowledged, BTreeMap::new())
}

/// Three quiet floors: everything that was there before is stable.
fn settle_floors(from: u64, replicas: &mut [&mut Replica]) {
    for number in from..from + 3 {
        let floor = next_floor(number, replicas);
        for replica in replicas.iter_mut() {
            replica.store.raise_floor(floor.clone()).expect("everybody has everything");
            replica.store.check();
        }
    }
}

#[test]
fn keys_are_counted_without_their_tombstones() {
    let mut store = Store::new(Origin::new(0, 0), Resolvers::default());
    for (key, op) in [
        ("a", Op::Adjust(1)),
        ("b", Op::Adjust(1)),
        ("b", Op::Delete),
        ("c", Op::Put(text("1"))),
        ("c", Op::Delete),
    ] {
        let written = store.applied().last(store.me());
        store.write(&[Write::new(key, op)], written, 1_000).expect("a good write");
    }
    assert_eq!((store.entries_count(), store.keys_count()), (3, 1));
    assert_eq!(store.keys(b"").count(), 1);
}

#[test]
fn deletes_of_every_kind_free_their_space_once_stable() {
    let (mut a, mut b) = (Replica::new(1), Replica::new(2));
    let ops = [
        Op::Put(text("x")),
        Op::PutMulti(text("x")),
        Op::Grow(1),
        Op::Adjust(1),
        Op::AddForever(text("x")),
        Op::AddOnce(text("x")),
        Op::Add(text("x")),
        Op::Insert { index: 0, value: text("x") },
    ];
    for (n, op) in ops.iter().enumerate() {
        a.write(&format!("k{n}"), op.clone());
        b.pull(&a);
        b.write_at("map", &[&format!("f{n}")], op.clone());
        b.write(&format!("k{n}"), Op::Delete);
        b.write_at("map", &[&format!("f{n}")], Op::Delete);
        a.pull(&b);
    }
    b.write("last", Op::Add(text("x")));
    b.write("last", Op::Remove(text("x")));
    settle(&mut [&mut a, &mut b]);
    assert!(a.store.entries_count() > 0, "tombstones are kept");
    settle_floors(1, &mut [&mut a, &mut b]);
    assert_eq!((a.store.entries_count(), a.store.graves_count()), (0, 0));
    settle(&mut [&mut a, &mut b]);
    assert_eq!(a.store.conflict_count(), 0);
}

#[test]
fn a_latecomer_who_had_not_seen_the_delete_keeps_its_tombstone_alive() {
    let (mut a, mut b) = (Replica::new(1), Replica::new(2));
    a.put("k", "x");
    b.pull(&a);
    let late = b.put("k", "late");
    a.write("k", Op::Delete);
    let delete = a.log.last().cloned().expect("the delete");
    b.receive(&delete);
    // Both have the delete now, but b's write is still on its way to a: the floor is not settled.
    for number in 1..=5 {
        let floor = next_floor(number, &[&mut a, &mut b]);
        a.store.raise_floor(floor.clone()).expect("in order");
        b.store.raise_floor(floor).expect("in order");
    }
    assert_eq!(a.store.graves_count(), 1);
    a.receive(&late);
    settle(&mut [&mut a, &mut b]);
    assert_eq!(a.store.conflict_count(), 1, "the conflict of write and delete was not forgotten");
    settle_floors(6, &mut [&mut a, &mut b]);
    assert_eq!(a.siblings("k").len(), 2, "an open conflict is not collected");
    a.put("k", "settled");
    settle(&mut [&mut a, &mut b]);
    assert_eq!(a.store.conflict_count(), 1);
}

#[test]
fn what_was_written_knowing_a_floor_waits_where_the_floor_is_not_known() {
    let (mut a, mut b) = (Replica::new(1), Replica::new(2));
    a.put("k", "x");
    a.write("k", Op::Delete);
    settle(&mut [&mut a, &mut b]);
    let floors: Vec<Floor> = (1..=3).map(|number| next_floor(number, &[&mut a, &mut b])).collect();
    for floor in &floors {
        a.store.raise_floor(floor.clone()).expect("in order");
    }
    assert_eq!(a.store.entries_count(), 0);
    let again = a.put("k", "y");
    assert_eq!(b.receive(&again), Applied::Held { missing: Missing::Floor(3) });
    let early = FloorRefused::Early { number: 3, next: 1 };
    assert_eq!(b.store.raise_floor(floors[2].clone()), Err(early));
    for floor in &floors {
        b.store.raise_floor(floor.clone()).expect("in order");
    }
    assert_eq!(b.register("k").as_deref(), Some("y"));
    settle(&mut [&mut a, &mut b]);
    assert_eq!(b.store.conflict_count(), 0, "a write after a collected delete is no conflict");
}

/// Whatever was written and deleted between floors, and whichever of them one missed.
#[test]
fn who_leaps_over_floors_has_the_store_of_who_took_each() {
    let ops = |round: u64| {
        [
            ("register", Op::Put(text("x"))),
            ("register", Op::Delete),
            ("set", Op::Add(text(&round.to_string()))),
            ("set", Op::Remove(text(&(round / 2).to_string()))),
            ("list", Op::Insert { index: 0, value: text(&round.to_string()) }),
            ("list", Op::Erase { index: 0 }),
            ("list", Op::Insert { index: 0, value: text("stays") }),
            ("counter", Op::Adjust(i64::try_from(round).expect("small"))),
        ]
    };
    for leap in 2..=12 {
        let (mut a, mut b) = (Replica::new(1), Replica::new(2));
        let mut passed = FloorState::default();
        for round in 1..=24 {
            for (n, (key, op)) in ops(round).into_iter().enumerate() {
                let writer = if (round as usize + n / 2).is_multiple_of(3) { &mut b } else { &mut a };
                // What is not there cannot be removed: no change.
                writer.try_write(&[Write::new(key, op)]).expect("a good write");
            }
            b.pull(&a);
            a.pull(&b);
            let floor = next_floor(round, &[&mut a, &mut b]);
            passed.pass(floor.clone());
            a.store.raise_floor(floor).expect("in order");
            if round % leap == 0 {
                b.store.adopt_floors(passed.clone()).expect("all is here that they cover");
                b.store.check();
                settle(&mut [&mut a, &mut b]);
                assert_eq!(b.store.digest(), a.store.digest(), "round {round}, every {leap}");
                assert_eq!(b.store.graves_count(), a.store.graves_count());
                assert_eq!(b.store.floor_number(), round);
            }
        }
        assert!(a.store.stable().prefix(a.store.me()) > 0, "something was collected");
    }
}

#[test]
fn who_lacks_something_below_missed_floors_does_not_leap() {
    let (mut a, mut b) = (Replica::new(1), Replica::new(2));
    let first = a.put("k", "x");
    let mut passed = FloorState::default();
    passed.pass(next_floor(1, &[&mut a]));
    passed.pass(next_floor(2, &[&mut a]));
    let missing = Dot::new(a.store.me(), 1);
    assert_eq!(b.store.adopt_floors(passed.clone()), Err(FloorRefused::Behind { missing }));
    assert_eq!(b.store.floor_number(), 0);
    b.receive(&first);
    assert_eq!(b.store.adopt_floors(passed.clone()), Ok(Vec::new()));
    assert_eq!(b.store.floor_number(), 2);
    let mut older = FloorState::default();
    older.pass(next_floor(1, &[&mut a]));
    assert_eq!(b.store.adopt_floors(older), Ok(Vec::new()), "what is known changes nothing");
    assert_eq!(b.store.floor_number(), 2);
}

#[test]
fn a_replica_below_the_floor_is_told_to_reset() {
    let (mut a, mut b) = (Replica::new(1), Replica::new(2));
    a.put("k", "x");
    let floor = next_floor(1, &[&mut a]);
    let missing = Dot::new(a.store.me(), 1);
    assert_eq!(b.store.raise_floor(floor), Err(FloorRefused::Behind { missing }));
    assert_eq!(b.store.floor_number(), 0);
}

#[test]
fn past_incarnations_cost_a_counter_nothing() {
    let mut replica = Replica::new(1);
    let (mut number, mut sizes) = (1, Vec::new());
    for life in 0..20 {
        replica.write("n", Op::Adjust(2));
        replica.write("n", Op::Adjust(-1));
        let me = replica.store.me();
        let retired = BTreeMap::from([(me, replica.store.applied().last(me))]);
        let mut next = replica.reborn();
        for _ in 0..3 {
            let acknowledged = BTreeMap::from([(next.store.me(), next.store.applied().clone())]);
            next.store.raise_floor(Floor::of(number, &acknowledged, retired.clone())).expect("in order");
            number += 1;
        }
        assert_eq!(next.count("n"), Some(life + 1));
        sizes.push(next.store.snapshot_piece(None, usize::MAX).bytes.len());
        replica = next;
    }
    assert!(sizes.iter().all(|size| *size <= sizes[0] + 4), "{sizes:?}");
}

#[test]
fn rewriting_a_key_ten_thousand_times_costs_what_writing_it_once_costs() {
    let mut a = Replica::new(1);
    a.put("k", "0000");
    let once = a.store.snapshot_piece(None, usize::MAX).bytes.len();
    for n in 0..10_000 {
        a.put("k", &format!("{n:04}"));
    }
    let often = a.store.snapshot_piece(None, usize::MAX).bytes.len();
    assert!(often <= once + 4, "{often} > {once}");
    assert_eq!(a.store.snapshot_head().len(), Replica::new(1).store.snapshot_head().len() + 28);
}

#[test]
fn an_erased_item_goes_only_when_no_insert_can_land_on_the_other_side_of_its_children() {
    let item = |index: usize, value: &str| Op::Insert { index, value: text(value) };
    let (mut a, mut b, mut c) = (Replica::new(1), Replica::new(2), Replica::new(3));
    a.write("l", item(0, "v"));
    a.write("l", item(1, "e"));
    b.pull(&a);
    c.pull(&a);
    // Floors that settle each other were there before.
    settle_floors(1, &mut [&mut a, &mut b, &mut c]);
    // A child of "e", by somebody whose clock is ahead and who does not know that "e" is erased.
    b.now_ms += 400;
    let child = b.write("l", item(2, "child"));
    let erase = a.write("l", Op::Erase { index: 1 });
    b.receive(&erase);
    c.receive(&erase);
    let first = next_floor(4, &[&mut a, &mut b, &mut c]);
    // Knows the erasure, does not know the child, and is older than the child by the clock.
    let late = c.write("l", item(1, "late"));
    assert!(late.hlc() < child.hlc());
    a.receive(&child);
    c.receive(&child);
    let second = next_floor(5, &[&mut a, &mut b, &mut c]);
    for floor in [&first, &second] {
        a.store.raise_floor(floor.clone()).expect("in order");
    }
    a.receive(&late);
    b.receive(&late);
    for floor in [&first, &second] {
        b.store.raise_floor(floor.clone()).expect("in order");
        c.store.raise_floor(floor.clone()).expect("in order");
    }
    settle(&mut [&mut a, &mut b, &mut c]);
    settle_floors(6, &mut [&mut a, &mut b, &mut c]);
    assert_eq!(a.store.graves_count(), 0);
    settle(&mut [&mut a, &mut b, &mut c]);
    let read = [text("v"), text("late"), text("child")];
    assert_eq!(a.get("l"), Some(View::List(read.into())));
}

#[test]
fn collecting_before_or_after_a_write_ends_in_the_same_bytes() {
    let (mut a, mut b) = (Replica::new(1), Replica::new(2));
    a.write("k", Op::PutMulti(text("x")));
    a.write("k", Op::Delete);
    settle(&mut [&mut a, &mut b]);
    let floors: Vec<Floor> = (1..=3).map(|number| next_floor(number, &[&mut a, &mut b])).collect();
    let other_kind = a.put("k", "y");
    for floor in floors {
        a.store.raise_floor(floor.clone()).expect("in order");
        b.store.raise_floor(floor).expect("in order");
    }
    assert_eq!((a.store.graves_count(), b.store.entries_count()), (0, 0));
    b.receive(&other_kind);
    settle(&mut [&mut a, &mut b]);
}

#[test]
fn nobody_waits_for_a_change_that_was_decided_never_to_exist() {
    let (mut a, mut b, mut lost) = (Replica::new(1), Replica::new(2), Replica::new(3));
    let first = lost.put("k", "counts");
    a.receive(&first);
    b.receive(&first);
    let second = lost.put("k", "was cut off");
    // Somebody wrote over the second, and emptied a set having seen it; the store that did is gone.
    let mut builder = Replica::new(4);
    builder.receive(&first);
    builder.receive(&second);
    let over = builder.put("k", "built upon");
    builder.write("s", Op::Add(text("x")));
    let cleared = builder.write("s", Op::Delete);
    for replica in [&mut a, &mut b] {
        let missing = Missing::Dot(Dot::new(lost.store.me(), 2));
        assert_eq!(replica.receive(&over), Applied::Held { missing });
    }
    let released = a.store.end_origin(lost.store.me(), 1);
    let released: Vec<Dot> = released.iter().map(|b| Dot::new(b.origin(), b.first())).collect();
    assert_eq!(released, [Dot::new(builder.store.me(), 1)]);
    for bundle in builder.log.iter().filter(|b| b.origin() == builder.store.me()) {
        a.receive(bundle);
    }
    // Told first, or told last: the same.
    b.receive(&cleared);
    b.store.end_origin(lost.store.me(), 1);
    for bundle in builder.log.iter().filter(|b| b.origin() == builder.store.me()) {
        b.receive(bundle);
    }
    assert_eq!(a.siblings("k").len(), 2, "the first still stands beside what was built upon the second");
    settle(&mut [&mut a, &mut b]);
}
