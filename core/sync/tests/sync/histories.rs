//! Many histories of a few replicas, judged by the model and by each other.

use crate::net::{Faults, Net, Ordered, Seen};
use crate::world::origin;
use dwcp_base::Mutants;
use dwcp_sync::Reason;
use std::collections::BTreeMap;

/// One history: faults for a while, then none. Panics where a promise was broken.
pub fn play(seed: u64, mutants: Mutants) -> Net {
    let count = 2 + (seed % 4) as u32;
    let mut net = Net::new(seed, count, mutants);
    let chance = &mut net.chance;
    net.faults = Faults {
        loss: chance.below(300),
        double: chance.below(200),
        delay_ms_max: chance.between(1, 800),
        crash: chance.below(60),
    };
    let (quiet, logs) = (net.chance.per_mille(300), net.chance.per_mille(500));
    for _ in 0..net.chance.between(60, 160) {
        let who = net.chance.below(u64::from(count)) as usize;
        match net.chance.below(100) {
            0..40 => {
                let by_log = logs && net.chance.per_mille(400);
                net.write(who, by_log);
            }
            40..60 => net.sync_disk(who),
            60..70 => {
                let ms = net.chance.below(if quiet { 5_000 } else { 600 });
                net.pass(ms);
            }
            70..74 => net.partition(),
            74..78 => net.cut.clear(),
            78..83 => net.floor(),
            83..90 => {
                net.order();
                let count = net.chance.below(4) as usize;
                net.read_log(who, count);
            }
            90..93 => {
                net.nodes[who].save();
                net.seen.saved += 1;
            }
            93..95 => net.judge(who),
            95..97 => net.serve_snapshots(),
            _ if net.chance.per_mille(net.faults.crash * 10) => net.crash(who),
            _ => net.pass(50),
        }
        net.ship(who);
    }
    net.heal();
    judge_end(&mut net);
    net
}

/// What must hold when a history without a liar is over.
fn judge_end(net: &mut Net) {
    for node in &net.nodes {
        assert!(node.evidence.is_empty(), "nobody lied");
        assert!(node.needs.is_empty(), "nobody lacks anything");
    }
    // A frame is applied whole or not at all, so every replica's changes end where frames end.
    net.assert_converged();
    // Nothing durable was lost, and a clock is after whatever its writer had applied.
    for node in &net.nodes {
        let me = node.me();
        let last = node.standing(me).last;
        for other in &net.nodes {
            assert_eq!(other.standing(me).last, last, "everybody has all of {me}");
            assert_eq!(other.standing(me).hash, node.standing(me).hash, "and the same of it");
        }
    }
}

fn play_all(seeds: std::ops::Range<u64>) -> Seen {
    let mut seen = Seen::default();
    for seed in seeds {
        let result = std::panic::catch_unwind(|| play(seed, Mutants::default()).seen);
        let one = result.unwrap_or_else(|_| panic!("seed {seed} fails: see above"));
        seen.add(&one);
    }
    seen
}

#[test]
fn replicas_converge_whatever_lies_between_them() {
    let seeds = 150;
    let seen = play_all(0..seeds);
    assert!(seen.writes > 10 * seeds && seen.crashes > seeds / 10 && seen.torn > 0, "{seen:?}");
    assert!(seen.floors > 0 && seen.saved > seeds && seen.ordered > seeds && seen.conflicts > 0, "{seen:?}");
    assert!(seen.dropped_frames > 0, "{seen:?}");
}

#[test]
fn a_frame_is_there_at_once_with_everybody_the_fan_out_reaches() {
    let mut net = Net::with(1, 4, |setup| setup.limits.fanout = 3);
    let now = net.now(0);
    net.nodes[0].put(now, "k", "v");
    net.is_judged = false;
    net.sync_disk(0);
    net.pass(2);
    net.assert_converged();
}

#[test]
fn a_lost_frame_is_asked_for_soon_after_the_next_one_came() {
    let mut net =
        Net::with(2, 3, |setup| setup.timing.exchange_interval = dwcp_base::Micros::from_millis(8_000));
    net.is_judged = false;
    // Beyond the first exchanges, which come at chance moments.
    net.pass(9_000);
    let now = net.now(0);
    net.nodes[0].put(now, "k", "lost");
    net.sync_disk(0);
    net.nodes[0].outbox.clear();
    net.nodes[0].put(now, "k", "early");
    net.sync_disk(0);
    net.pass(5);
    let has = |net: &Net, who: usize| net.nodes[who].standing(origin(0)).last;
    assert_eq!((has(&net, 1), has(&net, 2)), (0, 0));
    net.pass(1_000);
    assert_eq!(has(&net, 1).max(has(&net, 2)), 2, "an eighth of the interval is over");
    let asked = |net: &Net| net.nodes[2].sync.peers().map(|(_, figures)| figures.bytes_out).sum::<u64>();
    // Nothing more is asked while nothing comes early.
    net.pass(20_000);
    let before = asked(&net);
    net.pass(7_000);
    assert!(asked(&net) - before < 2_000, "only the usual exchange");
    net.assert_converged();
}

/// A gap is noticed again long before the only peer, half a second away, has answered.
#[test]
fn answers_of_a_distant_peer_are_taken_though_it_is_asked_again_meanwhile() {
    let mut net = Net::new(8, 2, Mutants::default());
    net.faults = Faults { loss: 100, delay_ms_max: 300, ..Faults::default() };
    for n in 0..600 {
        let now = net.now(0);
        net.nodes[0].put(now, &format!("k{n}"), "v");
        net.sync_disk(0);
        net.pass(20);
    }
    let lost = net.nodes[1].sync.frames_count().1;
    for node in &net.nodes {
        assert_eq!(node.sync.refused(Reason::Unasked), 0, "of {}", node.me());
    }
    assert!(lost > 0, "frames wait for lost ones while this is looked at");
    assert!(net.nodes[1].standing(origin(0)).last > 500, "{:?}", net.nodes[1].standing(origin(0)));
}

#[test]
fn with_many_peers_receivers_pass_a_frame_on() {
    let mut reached = 0;
    for seed in 0..10 {
        let mut net = Net::with(seed, 24, |setup| setup.limits.fanout = 8);
        let now = net.now(0);
        net.nodes[0].put(now, "k", "v");
        net.sync_disk(0);
        net.pass(20);
        reached += net.nodes.iter().filter(|n| n.sync.head(origin(0)).is_some_and(|s| s.last > 0)).count();
    }
    assert!(reached > 10 * 22, "{reached} of 240 before the first exchange");
}

#[test]
fn both_roads_in_any_order_are_one() {
    let mut net = Net::new(3, 2, Mutants::default());
    net.write(0, true);
    net.sync_disk(0);
    net.order();
    // By the log first, then by gossip.
    net.read_log(1, usize::MAX);
    let before = net.nodes[1].sync.last_ticket();
    let last = net.nodes[0].standing(origin(0)).last;
    net.nodes[0].sync.push(last);
    net.nodes[0].run();
    net.pass(100);
    assert_eq!(net.nodes[1].sync.last_ticket(), before, "nothing new to write down");
    // And the other way round.
    net.write(0, true);
    net.sync_disk(0);
    let last = net.nodes[0].standing(origin(0)).last;
    net.nodes[0].sync.push(last);
    net.nodes[0].run();
    net.pass(100);
    let before = net.nodes[1].sync.last_ticket();
    net.order();
    net.read_log(1, usize::MAX);
    net.read_log(0, usize::MAX);
    assert_eq!(net.nodes[1].sync.last_ticket(), before);
    net.assert_converged();
}

#[test]
fn the_cost_of_an_exchange_does_not_depend_on_the_number_of_keys() {
    let mut sizes = BTreeMap::new();
    for keys in [10, 300] {
        let mut net = Net::with(5, 16, |setup| setup.limits.fanout = 64);
        net.is_judged = false;
        for who in 0..16 {
            for key in 0..keys / 10 {
                let now = net.now(who);
                net.nodes[who].put(now, &format!("{who}/{key}"), "some value of a few bytes");
            }
            net.sync_disk(who);
        }
        net.pass(1);
        net.pass(30_000);
        net.assert_converged();
        let out =
            |net: &Net| net.nodes.iter().flat_map(|n| n.sync.peers()).map(|(_, f)| f.bytes_out).sum::<u64>();
        let exchanges = |net: &Net| {
            net.nodes.iter().flat_map(|n| n.sync.peers()).map(|(_, f)| f.exchanges).sum::<u64>() / 2
        };
        let (bytes, count) = (out(&net), exchanges(&net));
        net.pass(60_000);
        sizes.insert(keys, (out(&net) - bytes) / (exchanges(&net) - count));
    }
    println!("bytes of one idle exchange of 16 origins, both ways, by keys: {sizes:?}");
    let (few, many) = (sizes[&10], sizes[&300]);
    assert!(few == many && many <= 2 * 1_024, "{sizes:?}");
}

#[test]
fn a_long_absence_is_made_good_in_bounded_messages() {
    let mut net = Net::with(8, 2, |setup| {
        setup.limits.answer_bytes_max = 256 << 10;
        setup.limits.fanout = 1;
    });
    net.is_judged = false;
    net.down.insert(1);
    let value = "v".repeat(60_000);
    for n in 0..40 {
        let now = net.now(0);
        net.nodes[0].put(now, &format!("k{n}"), &value);
    }
    net.sync_disk(0);
    net.pass(10);
    net.down.clear();
    net.faults.delay_ms_max = 20;
    net.pass(3_000);
    net.assert_converged();
    let largest = 256 * 1024 + 4_096;
    assert!(
        net.nodes[0].sync.peers().all(|(_, f)| f.bytes_out < 2 * 40 * 61_000),
        "sent about once: {largest}"
    );
}

#[test]
fn the_network_plays_the_log_to_all() {
    let mut net = Net::new(2, 3, Mutants::default());
    for _ in 0..3 {
        net.write(1, true);
        net.sync_disk(1);
        net.order();
    }
    assert!(net.log.iter().all(|o| matches!(o, Ordered::Frame(_))));
    (0..3).for_each(|who| net.read_log(who, usize::MAX));
    net.assert_converged();
}
