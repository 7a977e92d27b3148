//! Lists: places that everybody agrees on.

use crate::world::{Replica, settle, text};
use dwcp_crdt::{Op, View, Write, WriteRefused};

fn items(replica: &Replica) -> String {
    match replica.get("l") {
        None => String::new(),
        Some(View::List(items)) => {
            items.iter().map(|i| String::from_utf8(i.as_bytes().to_vec()).expect("text")).collect()
        }
        other => panic!("l is {other:?}"),
    }
}

fn insert(replica: &mut Replica, index: usize, letters: &str) {
    for (offset, letter) in letters.chars().enumerate() {
        replica.write("l", Op::Insert { index: index + offset, value: text(&letter.to_string()) });
    }
}

#[test]
fn words_typed_at_one_place_at_once_do_not_interleave() {
    let (mut a, mut b) = (Replica::new(1), Replica::new(2));
    insert(&mut a, 0, "[]");
    b.pull(&a);
    insert(&mut a, 1, "hello");
    insert(&mut b, 1, "world");
    settle(&mut [&mut a, &mut b]);
    assert!(["[helloworld]", "[worldhello]"].contains(&items(&a).as_str()), "{}", items(&a));
    assert_eq!(a.store.conflict_count(), 0);
}

#[test]
fn what_is_inserted_behind_an_item_keeps_its_place_when_the_item_is_erased() {
    let (mut a, mut b) = (Replica::new(1), Replica::new(2));
    insert(&mut a, 0, "abc");
    b.pull(&a);
    a.write("l", Op::Erase { index: 1 });
    b.write("l", Op::Insert { index: 2, value: text("X") });
    settle(&mut [&mut a, &mut b]);
    assert_eq!(items(&a), "aXc");
}

#[test]
fn one_item_erased_twice_is_erased_once() {
    let (mut a, mut b) = (Replica::new(1), Replica::new(2));
    insert(&mut a, 0, "abc");
    b.pull(&a);
    a.write("l", Op::Erase { index: 1 });
    b.write("l", Op::Erase { index: 1 });
    settle(&mut [&mut a, &mut b]);
    assert_eq!(items(&a), "ac");
}

#[test]
fn clearing_a_list_leaves_what_was_inserted_meanwhile() {
    let (mut a, mut b) = (Replica::new(1), Replica::new(2));
    insert(&mut a, 0, "abc");
    b.pull(&a);
    insert(&mut a, 2, "XY");
    b.write("l", Op::Delete);
    settle(&mut [&mut a, &mut b]);
    assert_eq!(items(&b), "XY");
}

#[test]
fn an_index_outside_is_refused() {
    let mut a = Replica::new(1);
    insert(&mut a, 0, "ab");
    let refused = a.try_write(&[Write::new("l", Op::Insert { index: 3, value: text("x") })]);
    assert_eq!(refused, Err(WriteRefused::NoSuchIndex { index: 3, length: 2 }));
    let refused = a.try_write(&[Write::new("l", Op::Erase { index: 2 })]);
    assert_eq!(refused, Err(WriteRefused::NoSuchIndex { index: 2, length: 2 }));
}

#[test]
fn several_operations_of_one_write_see_each_other() {
    let (mut a, mut b) = (Replica::new(1), Replica::new(2));
    let insert = |index, letter: &str| Write::new("l", Op::Insert { index, value: text(letter) });
    let writes = [
        insert(0, "a"),
        insert(1, "b"),
        insert(2, "c"),
        Write::new("l", Op::Erase { index: 0 }),
        insert(0, "z"),
    ];
    let bundle = a.try_write(&writes).expect("good").expect("a change");
    assert_eq!(items(&a), "zbc");
    b.receive(&bundle.part(3, 5).expect("inside"));
    assert_eq!((b.store.held_count(), items(&b).as_str()), (1, ""));
    b.receive(&bundle.part(1, 2).expect("inside"));
    settle(&mut [&mut a, &mut b]);
}

#[test]
fn a_list_of_ten_thousand_items_is_no_recursion() {
    let mut a = Replica::new(1);
    for start in (0..10_000).step_by(1_000) {
        let writes: Vec<Write> = (0..1_000)
            .map(|n| {
                Write::new(
                    "l",
                    Op::Insert {
                        index: usize::from(start > 0) * (n % 2),
                        value: text(&(start + n).to_string()),
                    },
                )
            })
            .collect();
        a.try_write(&writes).expect("good");
    }
    let Some(View::List(items)) = a.get("l") else { panic!("a list") };
    assert_eq!(items.len(), 10_000);
}
