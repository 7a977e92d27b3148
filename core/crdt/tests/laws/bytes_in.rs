//! Bytes and bundles from others: what is malformed, absurd or too much is refused with its reason, changes nothing, and
//! never panics.

use crate::world::{NOON_MS, Replica, assert_same, origin, text};
use dwcp_base::Chance;
use dwcp_crdt::limits::{
    BUNDLE_BYTES_MAX, BUNDLE_DELTAS_MAX, HELD_BUNDLEES_MAX, INTERVALS_MAX, KEY_BYTES_MAX, WRITE_AHEAD_MAX_MS,
};
use dwcp_crdt::{
    Applied, Bundle, BundleError, ClockAhead, Dot, Missing, Op, Origin, Plain, PlainError, Refused,
    Resolvers, Restore, RestoreError, Store, Write, WriteRefused,
};

/// One bundle with a delta of every shape.
fn every_shape() -> Bundle {
    let (mut a, mut b) = (Replica::new(9), Replica::new(2));
    write_first(&mut b);
    a.pull(&b);
    let json = Plain::json(r#"{"a":[1,2]}"#).expect("json");
    let write = |key: &str, op| Write::new(key.as_bytes().to_vec(), op);
    let writes = [
        write("r", Op::Put(json)),
        write("r", Op::Delete),
        write("v", Op::PutMulti(text(""))),
        write("c", Op::Adjust(5)),
        write("s", Op::Add(text("x"))),
        write("s", Op::Remove(text("x"))),
        write("t", Op::RemoveForGood(text("x"))),
        write("l", Op::Insert { index: 1, value: text("y") }),
        write("l", Op::Erase { index: 0 }),
        write("c", Op::Delete),
        write("m", Op::Delete),
        Write::at("m", ["f"], Op::Add(text("z"))),
    ];
    a.try_write(&writes).expect("good").expect("a change")
}

/// A store with all that [`every_shape`] names.
fn what_every_shape_builds_upon() -> Replica {
    let (mut full, mut b) = (Replica::new(3), Replica::new(2));
    write_first(&mut b);
    full.pull(&b);
    full
}

fn write_first(b: &mut Replica) {
    b.put("r", "x");
    b.write("c", Op::Adjust(-3));
    b.write("s", Op::Add(text("x")));
    b.write("t", Op::AddOnce(text("x")));
    b.write("l", Op::Insert { index: 0, value: text("x") });
    b.write_at("m", &["f", "g"], Op::Grow(3));
}

#[test]
fn every_bundle_that_decodes_is_the_one_that_was_encoded() {
    let good = every_shape();
    assert_eq!(Bundle::decode(good.encode()).as_ref(), Ok(&good));
    let bytes = good.encode().to_vec();
    let mut chance = Chance::new(1);
    let mut decoded = 0;
    for round in 0..6_000_usize {
        let mut bad = bytes.clone();
        match round % 3 {
            0 => bad.truncate(chance.below(bytes.len() as u64) as usize),
            1 => {
                let at = chance.below(bad.len() as u64) as usize;
                bad[at] ^= 1 << chance.below(8);
            }
            _ => {
                for _ in 0..chance.between(1, 4) {
                    let at = chance.below(bad.len() as u64) as usize;
                    bad[at] = chance.next_u64() as u8;
                }
            }
        }
        if let Ok(bundle) = Bundle::decode(bad.clone().into()) {
            assert_eq!(bundle.encode(), bad, "one bundle, one encoding");
            decoded += 1;
            // Whatever it says, it is applied or refused, and the running figures hold.
            let mut store = Store::new(origin(8), Resolvers::default());
            let _ = store.apply(&bundle, NOON_MS);
            store.check();
        }
    }
    assert!(decoded > 150, "{decoded} altered bundles still decode");
    let mut long = bytes;
    long.push(0);
    assert_eq!(Bundle::decode(long.into()), Err(BundleError::Malformed));
    assert_eq!(
        Bundle::decode(vec![0; BUNDLE_BYTES_MAX + 1].into()),
        Err(BundleError::TooLong { bytes: BUNDLE_BYTES_MAX + 1 })
    );
}

#[test]
fn altered_bundles_on_a_full_store_never_break_it() {
    let mut chance = Chance::new(2);
    let good = every_shape();
    let full = what_every_shape_builds_upon();
    let bytes = good.encode();
    for _ in 0..3_000 {
        let mut bad = bytes.to_vec();
        let at = chance.below(bad.len() as u64) as usize;
        bad[at] = bad[at].wrapping_add(chance.between(1, 255) as u8);
        let Ok(bundle) = Bundle::decode(bad.into()) else { continue };
        let mut store = full.store.clone();
        let before = store.digest();
        match store.apply(&bundle, NOON_MS + 1_000) {
            Ok(Applied::Done { .. }) => store.check(),
            Ok(Applied::Duplicate | Applied::Held { .. }) | Err(_) => assert_eq!(store.digest(), before),
        }
    }
}

#[test]
fn honest_nodes_that_apply_the_same_nonsense_in_any_order_stay_equal() {
    let mut chance = Chance::new(4);
    let full = what_every_shape_builds_upon();
    let bytes = every_shape().encode();
    let (mut applied, mut conflicts) = (0, 0);
    for _ in 0..60 {
        let mut nonsense = Vec::new();
        // Each liar has an origin of its own: two bundles with one dot are for the hash chain of frames to notice.
        for liar in 10..34 {
            let mut bad = bytes.to_vec();
            for _ in 0..chance.below(3) {
                let at = chance.between(2, bad.len() as u64 - 1) as usize;
                bad[at] = if chance.per_mille(700) { chance.below(8) as u8 } else { chance.next_u64() as u8 };
            }
            bad[1] = liar;
            nonsense.extend(Bundle::decode(bad.into()).ok());
        }
        let mut seen: Option<(Store, dwcp_base::Hash)> = None;
        for _ in 0..3 {
            let mut store = full.store.clone();
            chance.shuffle(&mut nonsense);
            for bundle in &nonsense {
                let _ = store.apply(bundle, NOON_MS + 1_000);
                store.check();
            }
            let digest = store.digest();
            if let Some((first, first_digest)) = &seen {
                assert_eq!(first.applied(), store.applied());
                assert_eq!(first.conflict_count(), store.conflict_count());
                assert_eq!(first.snapshot_piece(None, usize::MAX), store.snapshot_piece(None, usize::MAX));
                assert_eq!(*first_digest, digest);
            }
            applied += store.applied().origins_count();
            conflicts += store.conflict_count();
            seen = Some((store, digest));
        }
    }
    assert!(applied > 1_000 && conflicts > 1_000, "{applied} {conflicts}");
}

#[test]
fn a_delete_that_hides_what_it_builds_upon_waits_for_all_it_claims_to_have_seen() {
    let mut a = Replica::new(1);
    let add = a.write("s", Op::Add(text("x")));
    // By hand, as no honest writer would: origin 9, change 1, no names, seen {o1: 1-1}, a cut of every kind at "s".
    let mut bytes = vec![1, 9, 0, 1];
    bytes.extend_from_slice(&add.hlc().0.to_le_bytes());
    bytes.extend_from_slice(&[0, 0, 1, 1, 1, 0, 1, 1, 0, 1, 6, 1, b's', 0xff, 0x03, 0, 0]);
    let cut = Bundle::decode(bytes.into()).expect("well formed");
    let (mut early, mut late) = (Replica::new(2), Replica::new(3));
    late.receive(&add);
    late.receive(&cut);
    assert_eq!(late.get("s"), None);
    let missing = Missing::Dot(Dot::new(origin(1), 1));
    assert_eq!(early.receive(&cut), Applied::Held { missing });
    early.receive(&add);
    assert_same(&mut early, &mut late);
}

#[test]
fn a_timestamp_from_the_future_is_refused_and_the_bundle_may_come_again_later() {
    let (mut a, mut b) = (Replica::new(1), Replica::new(2));
    a.now_ms = NOON_MS + 700;
    let bundle = a.put("k", "x");
    assert_eq!(b.store.apply(&bundle, NOON_MS), Err(Refused::ClockAhead(ClockAhead { ahead_ms: 701 })));
    assert!(b.store.applied().is_empty() && b.store.latest().ms() == 0);
    assert!(matches!(b.store.apply(&bundle, NOON_MS + 300), Ok(Applied::Done { .. })));
    let next = b.put("k", "y");
    assert!(next.hlc() > bundle.hlc(), "what follows is later, though this clock is behind");
}

#[test]
fn who_was_an_hour_ahead_writes_nothing_that_others_would_drop_for_an_hour() {
    const HOUR_MS: u64 = 3_600_000;
    let mut a = Replica::new(1);
    a.now_ms = NOON_MS + HOUR_MS;
    a.put("k", "early");
    a.now_ms = NOON_MS;
    let write = [Write::new("k", Op::Put(text("late")))];
    assert_eq!(a.try_write(&write), Err(WriteRefused::ClockAhead { ahead_ms: HOUR_MS }));
    assert_eq!(a.register("k").as_deref(), Some("early"), "nothing happened");
    assert_eq!(a.store.applied().last(origin(1)), 1);
    a.now_ms = NOON_MS + HOUR_MS - WRITE_AHEAD_MAX_MS - 1;
    assert!(a.try_write(&write).is_err());
    assert!(a.try_write(&write).is_ok());
}

#[test]
fn bundles_that_wait_for_nothing_real_are_bounded_per_origin() {
    let (mut a, mut b) = (Replica::new(1), Replica::new(2));
    a.put("k", "never sent");
    let mut last = Ok(Applied::Duplicate);
    for n in 0..=HELD_BUNDLEES_MAX {
        let bundle = a.put("k", &n.to_string());
        last = b.store.apply(&bundle, NOON_MS + 100_000);
    }
    assert_eq!(last, Err(Refused::HeldFull { origin: origin(1) }));
    let mut c = Replica::new(3);
    let honest = c.put("other", "x");
    assert!(matches!(b.receive(&honest), Applied::Done { .. }), "others are not in the way");
    let all = a.log.clone();
    for bundle in all {
        b.receive(&bundle);
    }
    assert_eq!(b.register("k"), a.register("k"), "what was refused came again");
}

/// An engine hands over so many of each incarnation, and counts on all of them being held.
#[test]
fn what_waits_of_a_lost_incarnation_takes_no_room_from_the_next() {
    let mut b = Replica::new(2);
    for incarnation in 0..3 {
        let mut writer = Store::new(Origin::new(1, incarnation), Resolvers::default());
        for n in 0..=HELD_BUNDLEES_MAX {
            let write = Write::new("k", Op::Put(text(&n.to_string())));
            let bundle = writer.write(&[write], 0, NOON_MS).expect("good").expect("a change");
            if n > 0 {
                let held = b.store.apply(&bundle, NOON_MS);
                assert!(matches!(held, Ok(Applied::Held { .. })), "{incarnation}, {n}: {held:?}");
            }
        }
    }
    assert_eq!(b.store.held_count(), 3 * HELD_BUNDLEES_MAX);
}

#[test]
fn holes_of_one_origin_are_bounded() {
    let (mut a, mut b) = (Replica::new(1), Replica::new(2));
    let mut refused = None;
    for n in 0..2 * INTERVALS_MAX + 2 {
        let bundle = a.put(&format!("k{n}"), "x");
        if n % 2 == 0 {
            refused = b.store.apply(&bundle, NOON_MS + 100_000).err();
        }
    }
    assert_eq!(refused, Some(Refused::Gaps { origin: origin(1) }));
    b.pull(&a);
    assert_eq!(b.store.applied().intervals_of(origin(1)).len(), 1, "filling holes is always allowed");
}

#[test]
fn a_node_that_lost_its_own_changes_may_not_write() {
    let mut a = Replica::new(1);
    let bundles: Vec<Bundle> = (0..3).map(|n| a.put("k", &n.to_string())).collect();
    let mut lost = Replica::new(1);
    let write = [Write::new("k", Op::Put(text("x")))];
    let missing = Dot::new(origin(1), 1);
    assert_eq!(lost.store.write(&write, 3, NOON_MS), Err(WriteRefused::OwnChangesMissing { missing }));
    // A peer returns the newest first: the hole is noticed without being told.
    lost.receive(&bundles[0]);
    lost.receive(&a.put("unrelated", "x"));
    let missing = Dot::new(origin(1), 2);
    assert_eq!(lost.try_write(&write), Err(WriteRefused::OwnChangesMissing { missing }));
    lost.receive(&bundles[1]);
    lost.receive(&bundles[2]);
    let bundle = lost.try_write(&write).expect("all is here").expect("a change");
    assert_eq!(bundle.first(), 5);
}

#[test]
fn what_is_too_large_is_refused_before_anything_happens() {
    let mut a = Replica::new(1);
    let long_key = vec![b'k'; KEY_BYTES_MAX + 1];
    let refused = a.try_write(&[Write::new(long_key, Op::Grow(1))]);
    assert_eq!(refused, Err(WriteRefused::Invalid(BundleError::Key { bytes: KEY_BYTES_MAX + 1 })));
    let refused = a.try_write(&[Write::new("", Op::Grow(1))]);
    assert_eq!(refused, Err(WriteRefused::Invalid(BundleError::Key { bytes: 0 })));
    assert_eq!(a.try_write(&[]), Err(WriteRefused::WriteCount { count: 0 }));
    let many = vec![Write::new("k", Op::Grow(1)); BUNDLE_DELTAS_MAX + 1];
    assert_eq!(a.try_write(&many), Err(WriteRefused::WriteCount { count: BUNDLE_DELTAS_MAX + 1 }));
    let big = |key: &str| {
        Write::new(key.as_bytes().to_vec(), Op::Put(Plain::bytes(vec![0; 100_000]).expect("fits one value")))
    };
    assert!(matches!(
        a.try_write(&[big("a"), big("b"), big("c")]),
        Err(WriteRefused::TooLarge { bytes: 300_000.. })
    ));
    assert_eq!(a.store.entries_count(), 0);
    assert_eq!(Plain::bytes(vec![0; 200_000]), Err(PlainError::TooLong { bytes: 200_000 }));
    assert_eq!(Plain::json("{"), Err(PlainError::NotJson { at_byte: 1 }));
}

#[test]
fn a_snapshot_is_taken_whole_and_in_order_or_refused() {
    let mut a = Replica::new(1);
    for n in 0..20 {
        a.write(&format!("k{n:02}"), Op::Add(text("x")));
        a.write_at("map", &["f", &n.to_string()], Op::Put(text("x")));
    }
    let first = a.store.snapshot_piece(None, 100);
    let second = a.store.snapshot_piece(first.next.as_deref(), 1_000_000);
    assert_eq!(second.next, None);
    let head = a.store.snapshot_head();
    let new = || Restore::new(origin(2), Resolvers::default(), &head).expect("a head");
    let mut restore = new();
    restore.piece(&first.bytes).expect("first");
    assert_eq!(restore.piece(&first.bytes), Err(RestoreError::Order));
    restore.piece(&second.bytes).expect("second");
    let mut store = restore.finish().expect("whole");
    assert_eq!(store.digest(), a.store.digest());
    let mut short = new();
    short.piece(&first.bytes).expect("first");
    assert!(matches!(short.finish(), Err(RestoreError::Short { promised: 21, .. })));
    assert_eq!(Restore::new(origin(2), Resolvers::default(), &head[1..]).err(), Some(RestoreError::Head));
    let mut chance = Chance::new(3);
    for _ in 0..2_000 {
        let mut bad = first.bytes.clone();
        let at = chance.below(bad.len() as u64) as usize;
        bad[at] ^= 1 << chance.below(8);
        let mut restore = new();
        if restore.piece(&bad).is_ok()
            && restore.piece(&second.bytes).is_ok()
            && let Ok(mut store) = restore.finish()
        {
            assert_ne!(store.digest(), a.store.digest());
        }
    }
}

#[test]
fn nesting_in_a_snapshot_is_counted_before_it_is_followed() {
    // Key "k", no newest; then maps in maps: one slot, kind 7, one field "f", and so on.
    let mut piece = vec![1, 1, b'k', 0];
    for _ in 0..100_000 {
        piece.extend([1, 7, 1, 1, b'f']);
    }
    let mut a = Replica::new(1);
    a.put("k", "x");
    let mut restore =
        Restore::new(origin(2), Resolvers::default(), &a.store.snapshot_head()).expect("a head");
    assert_eq!(restore.piece(&piece), Err(RestoreError::Piece));
}
