//! Writers that wait for several nodes while writes come thick and fast: they are told after about two round trips, not when
//! their peers happen to ask.

use super::syncing::put;
use super::*;
use dwcp_replica::{SyncReply, SyncRequest};
use std::collections::BTreeSet;

/// So many writes a second at node 0 for three seconds, each to be on three nodes of four. How long the slowest took, in
/// milliseconds.
fn slowest_ms(cluster: &mut Cluster, per_second: u64) -> u64 {
    let writes = per_second * 3;
    for write in 0..writes {
        let writes = vec![put(&format!("k{}", write % 50), &write.to_string())];
        cluster.ask(0, 1_000 + write, SyncRequest::Write { writes, wait: 3, timeout_ms: 20_000 });
        cluster.run_until(cluster.now.plus(Micros(1_000_000 / per_second)));
    }
    cluster.run(8_000);
    let latency_ms = |write| match cluster.told(0, 1_000 + write) {
        Some(SyncReply::Written(written)) => {
            assert!(written.nodes >= 3, "{written:?}");
            written.latency_us / 1_000
        }
        other => panic!("write {write}: {other:?}"),
    };
    (0..writes).map(latency_ms).max().unwrap()
}

fn unasked(cluster: &Cluster) -> u64 {
    let of = |id| {
        cluster.sync_status(id).refused.iter().find(|(word, _)| word == "unasked").map_or(0, |(_, n)| *n)
    };
    (0..4).map(of).sum()
}

fn cluster() -> Cluster {
    let policy = Policy::root_only(Trust::Byzantine, Quorum::new(4, None).unwrap());
    Cluster::with(4, policy, NetworkMode::Internet)
}

#[test]
fn whoever_waits_for_distant_nodes_is_told_within_a_second_whatever_is_written() {
    for (delay_ms, per_second) in [(100, 20), (100, 50), (100, 200), (200, 50)] {
        let mut cluster = cluster();
        cluster.delay = Micros::from_millis(delay_ms);
        let slowest = slowest_ms(&mut cluster, per_second);
        let told = format!("{slowest} ms at {per_second} writes/s over {delay_ms} ms");
        println!("{told}, {} unasked", unasked(&cluster));
        assert!(slowest < 10 * delay_ms, "{told}");
        assert_eq!(unasked(&cluster), 0, "every answer was taken: {told}");
    }
}

#[test]
fn whoever_waits_for_near_nodes_is_told_at_once_however_fast_others_write() {
    let mut cluster = cluster();
    let slowest = slowest_ms(&mut cluster, 400);
    assert!(slowest < 50, "{slowest} ms");
}

/// The mode is the operator's to choose, also one that the links do not carry: in the calm the root serves, and the status says
/// what is wrong with the mode. Without a calm nothing was ever executed but what the root had ordered past the leader.
#[test]
fn a_mode_for_near_nodes_between_distant_ones_serves_by_the_root_and_says_why() {
    let mut cluster = Cluster::unstarted(4, super::switching::crash(4), NetworkMode::Datacenter);
    // As `dwcp init` writes it: longer than what failing segments live.
    Arc::get_mut(&mut cluster.genesis).unwrap().calm_ms = 10_000;
    (0..4).for_each(|id| cluster.start(id));
    cluster.run(500);
    let mut session = Session::open(&mut cluster, 1);
    cluster.delay = Micros::from_millis(400);
    cluster.run(60_000);
    for key in ["a", "b", "c"] {
        let frame = session.put(key, b"1");
        cluster.send(1, &frame);
        cluster.run(10_000);
    }
    let told = (0..200).find_map(|_| {
        cluster.run(500);
        Some(cluster.status(0).no_segment).filter(|reason| reason.contains("in a row had to be left"))
    });
    let told = told.unwrap_or_else(|| panic!("{:#?}", cluster.status(0)));
    assert!(told.contains("is the election timeout, 200 ms, well above a round trip"), "{told}");
    let served: BTreeSet<u64> = cluster.executed(1).iter().map(|reply| reply.first).collect();
    assert!((1..=3).all(|command| served.contains(&command)), "{served:?}");
}
