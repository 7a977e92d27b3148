//! Collection: nothing goes before everybody has it, what everybody has goes, and who holds it up is named.

use crate::net::Net;
use crate::world::{Node, origin};
use dwcp_base::Mutants;
use dwcp_crdt::{Floor, FloorRefused, FloorState, Missing, Op, OriginId, View, Write};
use dwcp_sync::{Cut, FloorProblem, Need, WriteRefused};

fn net(count: u32) -> Net {
    let mut net = Net::new(1, count, Mutants::default());
    net.is_judged = false;
    net
}

fn settle(net: &mut Net) {
    for who in 0..net.nodes.len() {
        net.sync_disk(who);
    }
    net.pass(2_500 * net.nodes.len() as u64);
    // What was received is durable; the next round says so.
    for who in 0..net.nodes.len() {
        net.sync_disk(who);
    }
    net.pass(2_500 * net.nodes.len() as u64);
}

fn commit(net: &mut Net, floor: &Floor) {
    for who in 0..net.nodes.len() {
        if !net.down.contains(&who) {
            net.nodes[who].sync.commit_floor(floor.clone()).expect("in order");
            net.nodes[who].run();
        }
    }
}

#[test]
fn frames_and_tombstones_go_when_all_have_acknowledged_and_saved() {
    let mut net = net(3);
    let now = net.now(0);
    net.nodes[0].put(now, "k", "v");
    net.nodes[0].try_write(now, &[Write::new("k", Op::Delete)]).expect("a change");
    assert_eq!(net.nodes[1].sync.floor_candidate(), None);
    for number in 1..=3 {
        settle(&mut net);
        let floor = net.nodes[1].sync.floor_candidate().expect("all have said enough");
        assert_eq!(floor.number, number);
        for node in &net.nodes {
            assert_eq!(node.sync.judge_floor(&floor), Ok(()));
        }
        commit(&mut net, &floor);
    }
    for node in &mut net.nodes {
        assert_eq!(node.store.graves_count(), 0, "the tombstone is collected");
        assert_eq!(node.sync.frames_count(), (2, 0), "no snapshot holds the frames yet");
        node.save();
        assert_eq!(node.sync.frames_count(), (0, 0));
        node.sync_disk();
        assert!(node.disk.len() <= 1, "one record is left");
    }
    settle(&mut net);
    let quiet = net.nodes[2].sync.floor_candidate().expect("one more settles the last");
    commit(&mut net, &quiet);
    settle(&mut net);
    assert_eq!(net.nodes[2].sync.floor_candidate(), None, "nothing more to settle");
    net.assert_converged();
}

#[test]
fn what_is_not_durable_or_not_applied_is_not_acknowledged() {
    let mut net = net(2);
    let now = net.now(0);
    net.nodes[0].put(now, "k", "v");
    net.sync_disk(0);
    net.pass(10_000);
    assert_eq!(net.nodes[1].standing(origin(0)).last, 1, "it has it");
    assert_eq!(net.nodes[0].sync.floor_candidate(), None, "and could still lose it");
    assert_eq!(net.nodes[0].sync.held_by(1), 1);
    net.sync_disk(1);
    net.pass(10_000);
    assert!(net.nodes[0].sync.floor_candidate().is_some());
    assert_eq!(net.nodes[0].sync.held_by(1), 2);
}

#[test]
fn who_withholds_is_named_and_can_be_excluded() {
    let mut net = net(4);
    settle(&mut net);
    net.down.insert(3);
    let now = net.now(0);
    net.nodes[0].put(now, "k", "v");
    settle(&mut net);
    assert!(net.nodes[0].withholds.is_empty(), "it has a minute");
    net.pass(70_000);
    for who in 0..3 {
        assert_eq!(net.nodes[who].withholds, [origin(3)], "named once by node {who}");
        assert_eq!(net.nodes[who].sync.withholding().collect::<Vec<_>>(), [origin(3)]);
        let (_, figures) = net.nodes[who].sync.peers().find(|(id, _)| *id == OriginId(3)).expect("a peer");
        assert!(figures.lag_dots > 0 && figures.lag.0 >= 60_000_000, "{figures:?}");
        assert_eq!(net.nodes[who].sync.floor_candidate(), None);
    }
    let cut = net.nodes[0].standing(origin(3));
    for who in 0..3 {
        net.nodes[who].sync.set_cut(cut);
        net.nodes[who].run();
    }
    settle(&mut net);
    let floor = net.nodes[0].sync.floor_candidate().expect("nobody holds it up any more");
    assert_eq!(floor.retired.get(&origin(3)), Some(&cut.last));
    commit(&mut net, &floor);
    assert!(net.nodes[1].sync.withholding().next().is_none());
    // The sleeper wakes: it is told the decision, and writes no more under this name.
    let sleeper = &mut net.nodes[3];
    sleeper.sync.set_cut(cut);
    sleeper.run();
    assert_eq!(sleeper.sync.may_write(), Err(WriteRefused::Ended));
}

#[test]
fn a_replica_below_a_floor_says_so_and_goes_on_from_a_snapshot() {
    let mut net = net(3);
    net.down.insert(2);
    let now = net.now(0);
    net.nodes[0].put(now, "k", "v");
    net.nodes[0].try_write(now, &[Write::new("k", Op::Delete)]).expect("a change");
    // What the sleeper wrote itself, alone, is still its own.
    let now = net.now(2);
    net.nodes[2].put(now, "mine", "alone");
    net.nodes[2].sync_disk();
    net.nodes[2].outbox.clear();
    settle(&mut net);
    // As if the log had been wrong about the sleeper: it never acknowledged this.
    let floor = of_two(&net, 1);
    assert!(matches!(net.nodes[0].sync.judge_floor(&floor), Err(FloorProblem::Members)));
    commit(&mut net, &floor);
    for who in 0..2 {
        net.nodes[who].save();
    }
    net.down.clear();
    let sleeper = &mut net.nodes[2];
    sleeper.sync.commit_floor(floor).expect("in order");
    sleeper.run();
    assert!(sleeper.needs.contains_key(&Need::BelowFloor));
    assert_eq!(sleeper.sync.may_write(), Err(WriteRefused::BelowFloor));
    net.pass(10_000);
    net.serve_snapshots();
    assert_eq!(net.seen.installed, 1);
    assert_eq!(net.nodes[2].store.get(b"mine"), Some(View::Register(crate::world::text("alone"))));
    net.heal();
    net.assert_converged();
    assert!(net.nodes[2].sync.may_write().is_ok());
}

#[test]
fn a_member_that_lags_behind_what_the_others_keep_is_told_by_more_than_may_lie() {
    let mut net = Net::with(4, 4, |setup| setup.limits.log_bytes_max = 1 << 20);
    net.is_judged = false;
    net.down.insert(3);
    let value = "v".repeat(100_000);
    for n in 0..20 {
        let now = net.now(0);
        net.nodes[0].put(now, &format!("k{}", n % 4), &value);
        net.sync_disk(0);
        net.pass(3_000);
        for who in 1..3 {
            net.nodes[who].save();
        }
        // Its own frames stay with their writer until all have them: it must stop.
        if net.nodes[0].sync.may_write().is_err() {
            break;
        }
    }
    assert!(matches!(net.nodes[0].sync.may_write(), Err(WriteRefused::LogFull { .. })));
    // The writer is gone; the others have dropped some of its frames to make room for each other's.
    net.down.insert(0);
    for n in 0..8 {
        for who in 1..3 {
            let now = net.now(who);
            if net.nodes[who].sync.may_write().is_ok() {
                net.nodes[who].put(now, &format!("{who}/{n}"), &value);
            }
            net.sync_disk(who);
            net.pass(3_000);
            net.nodes[3 - who].save();
        }
    }
    net.down.remove(&3);
    net.pass(20_000);
    assert!(net.nodes[3].needs.contains_key(&Need::Gone), "{:?}", net.nodes[3].needs);
    net.serve_snapshots();
    net.pass(20_000);
    for who in 1..3 {
        assert_eq!(net.nodes[3].standing(origin(who)), net.nodes[who as usize].standing(origin(who)));
    }
    assert!(net.nodes[3].needs.is_empty());
}

#[test]
fn what_the_only_one_left_has_in_a_snapshot_alone_reaches_everybody() {
    let mut net = Net::with(4, 4, |_| {});
    net.is_judged = false;
    net.down.extend([2, 3]);
    let now = net.now(0);
    net.nodes[0].put(now, "k", "v");
    let (snapshot, base) = net.nodes[0].donate().expect("all of it is durable");
    net.nodes[0].outbox.clear();
    net.nodes[1].install(&snapshot, &base).expect("a good snapshot");
    // Its writer is gone for good, and one member's word is not more than may lie.
    net.down = [0].into();
    net.pass(30_000);
    assert!(net.nodes[2].needs.is_empty() && net.nodes[2].standing(origin(0)).last == 0);
    net.pass(60_000);
    assert!(net.nodes[2].needs.contains_key(&Need::Gone), "{:?}", net.nodes[2].needs);
    net.serve_snapshots();
    net.pass(20_000);
    assert!(net.nodes[1..].iter().all(|node| node.needs.is_empty()));
    net.assert_converged();
}

/// Three floors of which node 2 is told only what they come to; each is `settle`d before the next, over a new write and delete.
fn missed(net: &mut Net) -> FloorState {
    let mut passed = FloorState::default();
    for number in 1..=3 {
        let now = net.now(0);
        net.nodes[0].put(now, &format!("k{number}"), "v");
        net.nodes[0].try_write(now, &[Write::new(format!("k{number}"), Op::Delete)]).expect("a change");
        settle(net);
        let floor = net.nodes[1].sync.floor_candidate().expect("all have said enough");
        assert_eq!(floor.number, number);
        passed.pass(floor.clone());
        for node in &mut net.nodes[..2] {
            node.sync.commit_floor(floor.clone()).expect("in order");
            node.run();
        }
    }
    passed
}

#[test]
fn who_missed_floors_takes_what_they_come_to_and_keeps_it_across_restarts() {
    let mut net = net(3);
    let passed = missed(&mut net);
    // What was written by somebody who knew the floors waits where they are not known.
    let now = net.now(0);
    net.nodes[0].put(now, "later", "v");
    settle(&mut net);
    assert_eq!(net.nodes[2].store.missing().last(), Some(Missing::Floor(3)));
    let late = &mut net.nodes[2];
    late.sync.adopt_floors(passed.clone());
    late.run();
    assert_eq!(late.store.floor_number(), 3);
    assert!(late.store.get(b"later").is_some() && late.needs.is_empty());
    assert_eq!(late.store.graves_count(), net.nodes[0].store.graves_count());
    settle(&mut net);
    net.assert_converged();
    // From its records alone; then from a snapshot and the records behind it; and the next floor follows in both.
    let now = net.now(2);
    let records = net.nodes[2].disk.len();
    net.nodes[2].crash(records, now);
    assert_eq!(net.nodes[2].sync.newest_floor().map(|floor| floor.number), Some(3));
    net.assert_converged();
    net.nodes[2].save();
    net.sync_disk(2);
    let records = net.nodes[2].disk.len();
    net.nodes[2].crash(records, now);
    net.assert_converged();
    settle(&mut net);
    let floor = net.nodes[2].sync.floor_candidate().expect("more is acknowledged now");
    assert_eq!(floor.number, 4);
    commit(&mut net, &floor);
    assert_eq!(net.nodes[2].store.floor_number(), 4);
    net.assert_converged();
    net.nodes[2].sync.adopt_floors(passed);
    net.nodes[2].run();
    assert_eq!(net.nodes[2].store.floor_number(), 4, "what is known changes nothing");
}

/// Floors of the first two nodes, which nobody else acknowledged.
fn of_two(net: &Net, number: u64) -> Floor {
    let acknowledged = net.nodes[..2].iter().map(|n| (n.me(), n.store.applied().clone())).collect();
    Floor::of(number, &acknowledged, std::collections::BTreeMap::new())
}

#[test]
fn a_store_from_among_the_missed_floors_goes_on_to_the_last() {
    let mut net = net(3);
    net.down.insert(2);
    let now = net.now(0);
    net.nodes[0].put(now, "k", "v");
    settle(&mut net);
    let floors = [1, 2, 3].map(|number| of_two(&net, number));
    commit(&mut net, &floors[0]);
    let (store, base) = net.nodes[0].donate().expect("it may give its store");
    let mut passed = FloorState::default();
    floors.into_iter().for_each(|floor| passed.pass(floor));
    let late = &mut net.nodes[2];
    late.sync.adopt_floors(passed);
    late.run();
    late.install(&store, &base).expect("it ends at floor 1, and what comes behind is here");
    late.run();
    assert_eq!(late.store.floor_number(), 3);
    assert!(!late.sync.is_short_of_missed_floors());
}

#[test]
fn who_lacks_what_missed_floors_cover_needs_a_store() {
    let mut net = net(3);
    net.down.insert(2);
    let now = net.now(0);
    net.nodes[0].put(now, "k", "v");
    settle(&mut net);
    let mut passed = FloorState::default();
    for number in 1..=2 {
        let floor = of_two(&net, number);
        passed.pass(floor.clone());
        commit(&mut net, &floor);
    }
    net.down.clear();
    let late = &mut net.nodes[2];
    late.sync.adopt_floors(passed);
    late.run();
    assert!(late.needs.contains_key(&Need::BelowFloor) && late.sync.is_short_of_missed_floors());
    assert_eq!(late.sync.may_write(), Err(WriteRefused::BelowFloor));
    net.pass(10_000);
    net.serve_snapshots();
    net.heal();
    net.assert_converged();
    assert!(!net.nodes[2].sync.is_short_of_missed_floors());
    assert!(net.nodes[2].sync.may_write().is_ok());
}

#[test]
fn floors_come_in_order_and_a_false_one_is_seen() {
    let mut net = net(3);
    for who in [0, 0, 1] {
        let now = net.now(who);
        net.nodes[who].put(now, "k", "v");
    }
    settle(&mut net);
    let floor = net.nodes[0].sync.floor_candidate().expect("all have said enough");
    let judge = |net: &Net, floor: &Floor| net.nodes[1].sync.judge_floor(floor);
    assert_eq!(judge(&net, &floor), Ok(()));
    let mut second = floor.clone();
    second.number = 2;
    assert_eq!(judge(&net, &second), Err(FloorProblem::Number { number: 2, next: 1 }));
    let node = &mut net.nodes[1];
    assert_eq!(node.sync.commit_floor(second), Err(FloorRefused::Early { number: 2, next: 1 }));
    let mut ahead = floor.clone();
    ahead.seen.insert(origin(2), 1, 5);
    assert!(matches!(judge(&net, &ahead), Err(FloorProblem::Unacknowledged { .. })));
    let mut gaps = floor.clone();
    gaps.seen = floor.seen.without(&dwcp_crdt::VersionVector::up_to([(origin(0), 1)]));
    assert_eq!(gaps.seen.prefix(origin(0)), 0, "its second change alone");
    assert_eq!(judge(&net, &gaps), Err(FloorProblem::Gaps));
    // The floor says that node 1 had written nothing when it acknowledged what node 0 wrote; by then it had.
    let mut understated = floor.clone();
    understated.written.insert(origin(1), 0);
    assert_eq!(judge(&net, &understated), Err(FloorProblem::Written));
    let mut fewer = floor;
    fewer.written.remove(&origin(2));
    assert_eq!(judge(&net, &fewer), Err(FloorProblem::Members));
}

#[test]
fn a_donor_cannot_invent_what_nobody_signed() {
    let mut net = net(3);
    let now = net.now(0);
    net.nodes[0].put(now, "k", "v");
    settle(&mut net);
    let (snapshot, base) = net.nodes[1].donate().expect("it has one");
    let refuses = |node: &mut Node, change: &dyn Fn(&mut dwcp_sync::Base)| {
        let mut base = base.clone();
        change(&mut base);
        assert!(node.install(&snapshot, &base).is_err());
    };
    let node = &mut net.nodes[2];
    refuses(node, &|base| base.heads[0].header.last += 1);
    refuses(node, &|base| base.heads[0].header.origin = origin(2));
    let twice = base.heads[0];
    refuses(node, &|base| base.heads.push(twice));
    assert_eq!(node.install(&snapshot, &base), Ok(()));
    // A donor that lacks what this replica wrote and no longer keeps is no donor.
    let now = net.now(2);
    let cut = Cut { origin: origin(0), last: 0, hash: dwcp_base::Hash::ZERO };
    net.nodes[2].put(now, "k", "v");
    net.nodes[2].sync.set_cut(cut);
    net.nodes[2].run();
    let (snapshot, base) = net.nodes[1].donate().expect("it has one");
    assert_eq!(
        net.nodes[2].install(&snapshot, &base),
        Err(dwcp_sync::InstallError::Branch { origin: origin(0) }),
        "a snapshot of what was decided away"
    );
}
