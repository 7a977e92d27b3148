//! Where members are: moves, stale settings, seeds.

use crate::world::{World, address_of};

const FOUND_WITHIN_MS: u64 = 10_000;

fn all_know(world: &World, of: u8, address: &str) -> bool {
    let others = world.running().into_iter().filter(|at| *at != of);
    others.into_iter().all(|at| world.address(of, at).as_deref() == Some(address))
}

#[test]
fn a_moved_address_reaches_all() {
    for count in [3, 7, 31] {
        // Its clock may have gone back by a day meanwhile: the others show its own last record to it.
        for clock_ahead_ms in [0, -86_400_000] {
            let mut world = World::new(u64::from(count), count);
            world.run(10_000);
            assert!(all_know(&world, 2, &address_of(2)));
            world.crash(2);
            world.run(20_000);
            world.restart(2, "elsewhere.example:7002", clock_ahead_ms);
            let took = world.run_until(FOUND_WITHIN_MS, "all know where it is", |world| {
                all_know(world, 2, "elsewhere.example:7002") && world.all_alive()
            });
            println!(
                "{count} members, clock {clock_ahead_ms} ms ahead: a move is known to all after {took} ms"
            );
        }
    }
}

#[test]
fn a_move_is_known_where_the_mover_cannot_be_reached_from() {
    let mut world = World::new(3, 5);
    world.run(10_000);
    world.crash(2);
    world.cut.insert((2, 4));
    world.restart(2, "elsewhere.example:7002", 0);
    let took = world.run_until(FOUND_WITHIN_MS, "all know where it is", |world| {
        all_know(world, 2, "elsewhere.example:7002")
    });
    println!("a move is known after {took} ms to a member that only others told");
}

#[test]
fn a_member_with_nothing_but_stale_addresses_finds_all_through_one_seed() {
    for count in [3, 7, 31] {
        let mut world = World::new(u64::from(count), count);
        let node = &mut world.nodes[0];
        node.configured = (0..usize::from(count)).map(|id| address_of(100 + id)).collect();
        // One of the seeds is nobody's.
        node.seeds = vec![address_of(77), address_of(1)];
        // And the others do not know where it is either.
        for node in &mut world.nodes {
            node.configured[0] = address_of(50);
        }
        world.restart(0, &address_of(60), 0);
        let took = world.run_until(FOUND_WITHIN_MS, "all know all", |world| {
            world.all_alive() && (1..count).all(|of| world.address(of, 0) == Some(address_of(of.into())))
        });
        println!("{count} members: found through one seed after {took} ms");
    }
}

#[test]
fn everybody_has_moved_and_one_seed_brings_them_together() {
    let count = 7;
    let mut world = World::new(11, count);
    for id in 0..count {
        world.nodes[usize::from(id)].configured =
            (0..usize::from(count)).map(|id| address_of(100 + id)).collect();
        if id > 0 {
            world.nodes[usize::from(id)].seeds = vec![address_of(0)];
        }
    }
    world.run_until(FOUND_WITHIN_MS, "all know all", World::all_alive);
}
