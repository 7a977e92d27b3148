//! The harness itself: damage, lists of steps, stories, the meter, and digests that are written down a second time.
//! Here and not beside the code, because the library takes long to compile and would be compiled twice.

use decoders::meter::{bounded, peak_bytes};
use decoders::story::{self, Step};
use decoders::targets::{chunks, replica};
use decoders::world::world;
use decoders::{mutate, steps};
use dwcp_base::{Chance, decode, encode};
use dwcp_replica::PeerMessage;
use std::collections::BTreeSet;

#[test]
fn equal_seeds_damage_equally_and_gentle_damage_keeps_every_place() {
    let good: Vec<u8> = (0..200u8).collect();
    let mut changed = 0;
    for seed in 0..2_000 {
        let (mut a, mut b, mut c) = (good.clone(), good.clone(), good.clone());
        mutate::damage(&mut a, b"other", false, &mut Chance::new(seed));
        mutate::damage(&mut b, b"other", false, &mut Chance::new(seed));
        mutate::damage(&mut c, b"other", true, &mut Chance::new(seed));
        assert_eq!(a, b);
        assert_eq!(c.len(), good.len());
        changed += usize::from(a != good);
    }
    assert!(changed > 1_900, "{changed}");
}

#[test]
fn the_peak_is_what_was_held_at_once_and_a_spendthrift_is_caught() {
    let ((), peak) = peak_bytes(|| {
        drop(std::hint::black_box(vec![1u8; 1 << 20]));
        drop(std::hint::black_box(vec![1u8; 1 << 20]));
    });
    assert!((1 << 20..1 << 21).contains(&peak), "{peak}");
    let caught =
        std::panic::catch_unwind(|| bounded(&[1], || std::hint::black_box(vec![1u8; 2 << 20]).len()));
    assert!(caught.is_err());
}

#[test]
fn a_list_survives_its_bytes_and_any_bytes_are_a_list() {
    let list = vec![(2, vec![1, 2, 3]), (0, vec![]), (250, vec![9; 16])];
    assert_eq!(steps::read(&steps::write(&list)), list);
    assert_eq!(steps::read(&[1, 255, 255, 255, 255, 7]), vec![(1, vec![7])]);
    assert_eq!(steps::read(&[2, 9]), vec![(2, vec![9])]);
}

#[test]
fn a_story_survives_its_bytes_and_any_bytes_are_a_story() {
    let steps = vec![
        Step::Peer { from: 2, bytes: vec![1, 2, 3] },
        Step::Wake,
        Step::LinkUp(3),
        Step::Frame(vec![]),
        Step::Attach(vec![9; 16]),
    ];
    assert_eq!(story::read(&story::write(&steps)), steps);
    assert_eq!(story::read(&[1, 255, 255, 255, 255, 7]), vec![Step::Peer { from: 1, bytes: vec![7] }]);
    assert_eq!(story::read(&[2, 9]), vec![Step::Peer { from: 2, bytes: vec![9] }]);
}

/// What refuses one damaged input in three hundred or more of either kind.
fn reasons(sealed: bool) -> BTreeSet<&'static str> {
    let mut chance = Chance::new(5);
    let seeds = (replica::BACKUP.seeds)();
    let mut reasons = BTreeSet::new();
    for seed in seeds.iter().cycle().filter(|seed| seed.len() < 3_000).take(300) {
        let mut told = seed.clone();
        story::damage(&mut told, seed, true, &mut chance);
        if !sealed || story::seal(&mut told) {
            reasons.extend(story::play(&world().backup, &told));
        }
    }
    reasons
}

#[test]
fn a_sealed_lie_is_refused_for_what_it_says_and_never_for_its_signature() {
    let bad_signature = |reason: &&&str| reason.contains("signature");
    let (plain, sealed) = (reasons(false), reasons(true));
    assert!(plain.iter().any(|reason| bad_signature(&reason)), "{plain:?}");
    assert!(!sealed.iter().any(|reason| bad_signature(&reason)), "{sealed:?}");
    assert!(sealed.len() >= 6, "few handlers were reached: {sealed:?}");
}

/// Convergent state is said to the live replica, too: its frames are taken as they are, and refused when altered.
#[test]
fn frames_of_state_sync_reach_the_engine_of_the_live_replica() {
    let said: Vec<Step> = decoders::sync_world::world()
        .all
        .iter()
        .filter(|frame| frame.header().origin.id.0 != 1)
        .map(|frame| {
            let push = dwcp_sync::Message::Push { hops: 0, frame: frame.bytes().clone() };
            Step::Peer { from: 0, bytes: encode(&PeerMessage::Sync(push.to_bytes())) }
        })
        .collect();
    let reasons = story::play(&world().heir, &story::write(&said));
    assert!(reasons.is_empty(), "{reasons:?}");
    let Step::Peer { from, mut bytes } = said[0].clone() else { unreachable!("they were just made") };
    // The last byte of the bundle: signature and hash no longer fit.
    *bytes.last_mut().expect("a message") ^= 1;
    let reasons = story::play(&world().heir, &story::write(&[Step::Peer { from, bytes }]));
    assert_eq!(reasons.into_iter().collect::<Vec<_>>(), ["forged"]);
}

#[test]
fn the_digests_of_chunks_written_down_twice_are_those_of_the_certificate() {
    let (meta, good) = &world().snapshot;
    let meta: dwcp_replica::SnapshotMeta = decode(meta).unwrap();
    for (at, expected) in meta.digests.iter().enumerate().skip(1) {
        let number = u32::try_from(at).unwrap();
        assert_eq!(chunks::digest(number - 1, &good[&number]), Some(*expected), "chunk {}", number - 1);
    }
}
