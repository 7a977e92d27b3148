//! A replica that sleeps through more than one thing: views that began and ended without it, and checkpoints behind which the
//! others let go of what it needs.

use super::*;

const SLEEPER: u8 = 6;

fn protocol(cluster: &Cluster, id: u8) -> &dwcp_pbft::Pbft {
    cluster.nodes[usize::from(id)].replica.as_ref().unwrap().protocol()
}

/// Commands of 8,000 bytes, each of which somebody executes.
fn write(cluster: &mut Cluster, session: &mut Session, at: u8, times: usize) {
    for index in 0..times {
        let before = cluster.executed(at).len();
        let frame = session.put(&format!("k{index}"), &[7; 8_000]);
        cluster.send(at, &frame);
        let mut waited = 0;
        while cluster.executed(at).len() == before {
            cluster.run(10);
            waited += 10;
            assert!(waited < 10_000, "command {index} at r{at} is not executed");
        }
    }
}

/// Seven replicas of which three primaries fail one after the other, each for a while, and each view passes two checkpoints.
/// `falls_asleep` and `wakes` are what becomes of the last one meanwhile. Afterwards two others stop, so that nothing goes on
/// without its vote.
fn sleeps_through_three_views(falls_asleep: fn(&mut Cluster), wakes: fn(&mut Cluster)) {
    let mut cluster = Cluster::new(7);
    let mut session = Session::open(&mut cluster, 5);
    write(&mut cluster, &mut session, 5, 3);
    cluster.run(300);
    let slept_at = (protocol(&cluster, SLEEPER).view(), protocol(&cluster, SLEEPER).delivered());
    assert_eq!(slept_at.0.0, 0);
    falls_asleep(&mut cluster);
    for primary in 0..3 {
        cluster.stop(primary);
        write(&mut cluster, &mut session, 5, 18);
        assert_eq!(protocol(&cluster, 5).view().0, u64::from(primary) + 1, "the next has taken over");
        cluster.start(primary);
        cluster.run(3_000);
    }
    let missed = protocol(&cluster, 5).stable_sequence().0 - slept_at.1.0;
    assert!(missed >= 6 * 8, "{missed} sequences of six checkpoints");
    wakes(&mut cluster);
    cluster.run(5_000);
    cluster.assert_agreed(&[0, 1, 2, 3, 4, 5, SLEEPER]);
    let (own, others) = (protocol(&cluster, SLEEPER), protocol(&cluster, 5));
    assert_eq!((own.view(), own.stable_sequence()), (others.view(), others.stable_sequence()));
    assert_eq!(own.view().0, 3, "it entered the view in force and left none by itself");
    let fetched = |event: &Event| matches!(event, Event::StateTransferFinished { .. });
    assert_eq!(cluster.events(SLEEPER, fetched), 1, "what was let go of came in one snapshot");
    let diverged = |event: &Event| matches!(event, Event::Diverged { .. });
    assert_eq!((0..7).map(|id| cluster.events(id, diverged)).sum::<usize>(), 0);

    cluster.stop(0);
    cluster.stop(1);
    write(&mut cluster, &mut session, 5, 18);
    cluster.run(300);
    cluster.assert_agreed(&[2, 3, 4, 5, SLEEPER]);
    let stable = protocol(&cluster, SLEEPER).stable_sequence().0;
    assert!(stable >= slept_at.1.0 + missed + 16, "checkpoints hold by its vote: {stable}");
}

#[test]
fn a_replica_that_was_stopped_for_three_views_and_six_checkpoints_comes_back_as_one_of_them() {
    sleeps_through_three_views(|cluster| cluster.stop(SLEEPER), |cluster| cluster.start(SLEEPER));
}

#[test]
fn a_replica_that_was_cut_off_for_three_views_and_six_checkpoints_comes_back_as_one_of_them() {
    sleeps_through_three_views(|cluster| cluster.apart = vec![SLEEPER], |cluster| cluster.apart = Vec::new());
}
