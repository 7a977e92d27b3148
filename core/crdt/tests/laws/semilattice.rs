//! The laws by name, for each type (Shapiro et al., RR-7506, section 2.3; Almeida, Shoker & Baquero, JPDC 2018, section 4).
//! Joining a replica with another is applying all that the other knows, held bundles included.

use crate::random::unfinished;
use crate::world::{NOON_MS, Replica};
use dwcp_base::{Chance, Hash};
use dwcp_crdt::{Bundle, Kind, Piece, Store, VersionVector};

fn joined(a: &Replica, b: &Replica) -> Replica {
    let mut joined = a.clone();
    joined.pull(b);
    joined
}

/// All that can be told of a state, what waits included.
fn all_of(store: &Store) -> (VersionVector, Piece, u64, Hash) {
    let mut store = store.clone();
    let digest = store.digest();
    (store.applied().clone(), store.snapshot_piece(None, usize::MAX), store.conflict_count(), digest)
}

fn assert_equal(a: &Replica, b: &Replica, law: &str) {
    assert_eq!(all_of(&a.store), all_of(&b.store), "{law}");
    let missing = |r: &Replica| r.store.missing().collect::<Vec<_>>();
    assert_eq!(missing(a), missing(b), "{law}");
}

fn kinds_of(kind: Kind) -> Vec<Kind> {
    if kind == Kind::Map { vec![Kind::Map, Kind::OrSet, Kind::PnCounter] } else { vec![kind] }
}

fn each(check: impl Fn(&[Replica], &[Bundle], &mut Chance)) {
    for (n, kind) in Kind::ALL.into_iter().enumerate() {
        for seed in 0..12 {
            let (mut replicas, bundles) = unfinished(seed * 100 + n as u64, &kinds_of(kind));
            while replicas.len() < 3 {
                replicas.push(Replica::new(7));
            }
            check(&replicas, &bundles, &mut Chance::new(seed));
        }
    }
}

#[test]
fn join_is_idempotent() {
    each(|replicas, _, _| assert_equal(&joined(&replicas[0], &replicas[0]), &replicas[0], "a + a = a"));
}

#[test]
fn join_is_commutative() {
    each(|r, _, _| assert_equal(&joined(&r[0], &r[1]), &joined(&r[1], &r[0]), "a + b = b + a"));
}

#[test]
fn join_is_associative() {
    each(|r, _, _| {
        let left = joined(&joined(&r[0], &r[1]), &r[2]);
        let right = joined(&r[0], &joined(&r[1], &r[2]));
        assert_equal(&left, &right, "(a + b) + c = a + (b + c)");
    });
}

#[test]
fn a_join_only_grows() {
    each(|r, _, _| {
        let both = joined(&r[0], &r[1]);
        assert!(
            both.store.applied().covers(r[0].store.applied())
                && both.store.applied().covers(r[1].store.applied())
        );
        assert!(both.store.conflict_count() >= r[0].store.conflict_count().max(r[1].store.conflict_count()));
    });
}

#[test]
fn applying_the_deltas_one_by_one_or_in_groups_is_joining_the_states() {
    each(|r, _, chance| {
        let whole = joined(&r[0], &r[1]);
        let mut pieces: Vec<Bundle> = Vec::new();
        for bundle in &r[1].log {
            // A bundle that waits as a whole may have parts that need not wait; those are other histories.
            if whole.store.applied().contains_range(bundle.origin(), bundle.first(), bundle.last()) {
                let middle = chance.between(bundle.first(), bundle.last());
                pieces.extend(bundle.part(bundle.first(), middle));
                pieces.extend(bundle.part(middle, bundle.last()));
            } else {
                pieces.push(bundle.clone());
            }
        }
        chance.shuffle(&mut pieces);
        let mut one_by_one = r[0].store.clone();
        for piece in &pieces {
            one_by_one.apply(piece, NOON_MS + 100_000).expect("a good bundle");
        }
        assert_eq!(all_of(&whole.store), all_of(&one_by_one));
    });
}

#[test]
fn all_orders_with_repetitions_end_in_one_state() {
    each(|_, bundles, chance| {
        let mut ends = Vec::new();
        for _ in 0..3 {
            let mut twice = [bundles, bundles].concat();
            chance.shuffle(&mut twice);
            let mut reader = Replica::new(7);
            twice.iter().for_each(|bundle| {
                reader.store.apply(bundle, NOON_MS + 100_000).expect("a good bundle");
            });
            assert_eq!(reader.store.held_count(), 0);
            ends.push(all_of(&reader.store));
        }
        ends.dedup();
        assert_eq!(ends.len(), 1);
    });
}
