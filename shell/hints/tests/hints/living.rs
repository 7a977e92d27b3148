//! Who is there: crashes, partitions, sleep and loss.

use dwcp_base::Chance;
use dwcp_hints::Standing;

use crate::world::{World, address_of};

/// Without loss everybody knows of a crash within this time: each asks each in turn, the suspect has five seconds, and news
/// spread in one or two more.
const KNOWN_WITHIN_MS: u64 = 15_000;
/// And of everybody alive within this time after the last fault.
const HEALED_WITHIN_MS: u64 = 30_000;

#[test]
fn a_crash_is_suspected_then_down_on_all() {
    for count in [3, 4, 7, 16, 31] {
        let mut slowest = 0;
        for seed in 0..if count > 8 { 1 } else { 6 } {
            let mut world = World::new(seed, count);
            world.run_until(5_000, "all know all", World::all_alive);
            world.run(10_000);
            world.changes.clear();
            let victim = u8::try_from(seed).expect("few") % count;
            world.crash(victim);
            let took = world.run_until(KNOWN_WITHIN_MS, "all know of the crash", |world| {
                world.all_hold(victim, Standing::Down)
            });
            slowest = slowest.max(took);
            let of_victim: Vec<_> =
                world.changes.iter().filter(|(_, _, hint)| hint.replica.0 == victim).collect();
            assert_eq!(of_victim[0].2.standing, Standing::Suspect, "down without having been suspected");
            assert!(
                world.changes.iter().all(|(_, _, hint)| hint.replica.0 == victim),
                "only the victim is doubted"
            );
        }
        println!("{count} members: a crash is known to all within {slowest} ms of {KNOWN_WITHIN_MS}");
    }
}

#[test]
fn a_crash_is_known_to_all_though_a_fifth_of_the_messages_is_lost() {
    for count in [3, 7, 31] {
        let mut world = World::new(u64::from(count), count);
        world.run(20_000);
        world.lost_per_mille = 200;
        world.crash(1);
        let took = world.run_until(2 * KNOWN_WITHIN_MS, "all know of the crash", |world| {
            world.all_hold(1, Standing::Down)
        });
        println!("{count} members, 20 % lost: a crash is known to all within {took} ms");
        world.heal();
        world.run_until(HEALED_WITHIN_MS, "the others are alive", World::all_alive);
    }
}

#[test]
fn an_isolated_member_comes_back_by_itself() {
    for (count, losses) in [(3, &[0, 200][..]), (5, &[0, 200]), (31, &[200])] {
        for lost_per_mille in losses.iter().copied() {
            let mut world = World::new(40 + u64::from(count), count);
            world.run(10_000);
            world.isolate(0);
            world.run(60_000);
            assert!(world.all_hold(0, Standing::Down), "{}", world.picture());
            assert!((1..count).all(|of| world.standing(of, 0) == Standing::Down), "{}", world.picture());
            world.cut.clear();
            world.lost_per_mille = lost_per_mille;
            let took = world.run_until(2 * HEALED_WITHIN_MS, "all are alive again", World::all_alive);
            println!(
                "{count} members, {lost_per_mille} of 1000 lost: alone for a minute, back after {took} ms"
            );
        }
    }
}

#[test]
fn two_halves_find_together_again() {
    for count in [4, 9, 16] {
        let mut world = World::new(60 + u64::from(count), count);
        world.run(10_000);
        let half = count / 2;
        for a in 0..half {
            for b in half..count {
                world.cut.insert((a, b));
            }
        }
        world.run(60_000);
        assert_eq!(world.standing(count - 1, 0), Standing::Down);
        assert_eq!(world.standing(1, 0), Standing::Alive);
        world.heal();
        let took = world.run_until(HEALED_WITHIN_MS, "all are alive again", World::all_alive);
        println!("{count} members in two halves for a minute: together after {took} ms");
    }
}

/// A link that is gone for good between two members that both are there: others vouch for either.
#[test]
fn who_cannot_be_reached_from_here_is_alive_when_others_reach_it() {
    let mut world = World::new(77, 5);
    world.run(10_000);
    world.cut.insert((0, 1));
    world.run(20_000);
    world.changes.clear();
    world.run(300_000);
    let doubted = world.changes.iter().filter(|(_, _, hint)| hint.standing == Standing::Down).count();
    assert_eq!(doubted, 0, "{:?}", world.changes);
    assert!(world.all_alive(), "{}", world.picture());
}

fn fault(world: &mut World, chance: &mut Chance) {
    let count = world.count();
    let any = |chance: &mut Chance| u8::try_from(chance.below(u64::from(count))).expect("few");
    match chance.below(7) {
        0 => world.lost_per_mille = chance.below(400),
        1 => world.isolate(any(chance)),
        2 => {
            let side: Vec<bool> = (0..count).map(|_| chance.per_mille(500)).collect();
            for a in 0..count {
                for b in a + 1..count {
                    if side[usize::from(a)] != side[usize::from(b)] {
                        world.cut.insert((a, b));
                    }
                }
            }
        }
        3 => world.cut.clear(),
        4 => world.sleep(any(chance), chance.between(500, 20_000)),
        5 => world.crash(any(chance)),
        _ => {
            let down: Vec<u8> = (0..count).filter(|id| !world.nodes[usize::from(*id)].running).collect();
            if let Some(id) = chance.pick(&down).copied() {
                // Half the time its wall clock has gone back, so that its first record is older than its last.
                let clock = if chance.per_mille(500) { -3_600_000 } else { 0 };
                let address = world.nodes[usize::from(id)].address.clone();
                world.restart(id, &address, clock);
            }
        }
    }
}

const HISTORIES: u64 = 30;

#[test]
fn nobody_alive_is_held_down_for_ever() {
    let (mut slowest, mut downs) = (0, 0);
    for seed in 0..HISTORIES {
        let mut chance = Chance::new(seed).fork("faults");
        let count = u8::try_from(if seed % 15 == 0 { 31 } else { chance.between(3, 12) }).expect("few");
        let mut world = World::new(seed, count);
        for _ in 0..20 {
            fault(&mut world, &mut chance);
            world.run(chance.between(500, 8_000));
        }
        downs += world.changes.iter().filter(|(_, _, hint)| hint.standing == Standing::Down).count();
        world.heal();
        let crashed: Vec<u8> = (0..count).filter(|id| !world.nodes[usize::from(*id)].running).collect();
        let what = format!("seed {seed}: {count} members, crashed {crashed:?}");
        let took = world.run_until(2 * HEALED_WITHIN_MS, &what, |world| {
            world.all_alive()
                && crashed.iter().all(|id| {
                    !world
                        .running()
                        .iter()
                        .any(|at| matches!(world.standing(*id, *at), Standing::Alive | Standing::Suspect))
                })
        });
        slowest = slowest.max(took);
        // What is still on its way may cost somebody another version.
        world.run(HEALED_WITHIN_MS);
        world.changes.clear();
        world.run(30_000);
        let runs = |id: u8| !crashed.contains(&id);
        let doubts = |hint: &dwcp_hints::Hint| runs(hint.replica.0) != (hint.standing == Standing::Alive);
        let doubted = world.changes.iter().filter(|(_, _, hint)| doubts(hint)).count();
        assert_eq!(doubted, 0, "seed {seed}: without faults nobody is doubted: {:?}", world.changes);
        assert!(world.all_alive(), "seed {seed}\n{}", world.picture());
    }
    assert!(downs > 100, "the faults must have told: {downs}");
    println!(
        "{HISTORIES} histories: {downs} times somebody was held down, the right picture within {slowest} ms of the last fault"
    );
}

#[test]
fn one_seed_is_one_history() {
    let play = |seed| {
        let mut chance = Chance::new(seed);
        let mut world = World::new(seed, 7);
        for _ in 0..10 {
            fault(&mut world, &mut chance);
            world.run(3_000);
        }
        world.history.finish()
    };
    assert_eq!(play(5), play(5));
    assert_ne!(play(5), play(6));
}

#[test]
fn the_traffic_of_a_member_is_bounded() {
    for count in [3, 7, 31] {
        let mut world = World::new(9, count);
        world.run(30_000);
        let measure = |world: &mut World, ms: u64| {
            for node in &mut world.nodes {
                (node.bytes_out, node.messages_out) = (0, 0);
            }
            world.run(ms);
            let most = |figure: fn(&crate::world::Node) -> u64| {
                world.nodes.iter().map(figure).max().expect("some") * 1_000 / ms
            };
            (most(|node| node.bytes_out), most(|node| node.messages_out))
        };
        let (quiet, quiet_messages) = measure(&mut world, 120_000);
        world.isolate(0);
        world.crash(1);
        world.run(30_000);
        world.cut.clear();
        world.restart(1, &address_of(99), 0);
        let (busy, busy_messages) = measure(&mut world, 10_000);
        println!(
            "{count} members, each at most: quiet {quiet} B/s in {quiet_messages} messages/s, \
             after an isolation and a move {busy} B/s in {busy_messages} messages/s"
        );
        assert!(quiet < 2_500, "{count} members: {quiet} B/s when nothing happens");
        assert!(busy < 20_000, "{count} members: {busy} B/s");
    }
}
