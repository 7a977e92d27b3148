//! Leaders of segments killed one after another, in hybrid mode. Each must meet the same cluster: failures in a row double
//! the calm without a segment, so without an order between them the eighth kill waits two minutes for its segment.

use std::time::Duration;

use cluster::report::SoakReport;
use cluster::{Cluster, Options, Soak, soak};

use super::{PROGRAM, alone, runtime};

const LEADERS: u64 = 3;

#[test]
fn each_leader_that_is_killed_leaves_a_segment_that_opens_by_itself_and_the_next_is_ordered() {
    let _alone = alone();
    runtime().block_on(async {
        let mut cluster = Cluster::start(4, Options::hybrid(PROGRAM)).unwrap();
        let plan = soak::Plan {
            switches: 2,
            faults: false,
            seed: 5,
            clients: 8,
            think_ms: 15,
            spread: Duration::ZERO,
            leaders: LEADERS,
            calm: Duration::from_secs(1),
        };
        let soak = Soak::new(&mut cluster, plan);
        let pulse = soak.pulse();
        let mut soaked = soak.run(&mut |_| {}).await.unwrap();
        assert_eq!(pulse.phase(), "reading everything back", "whoever looks on is told what it is at");
        let judgement = soak::judge(&soaked);
        assert!(judgement.is_clean(), "{judgement:#?}");
        assert_eq!((soaked.blows.kills, soaked.failovers), (LEADERS, LEADERS));
        let orders = |from: u64, until: u64| {
            soaked.switches.iter().filter(|switch| (from..until).contains(&switch.ordered_at_us)).count()
        };
        for fall in &soaked.falls {
            assert!(fall.reopened_at_us > fall.over_at_us, "{fall:?}");
            assert_eq!(
                fall.next_epoch > fall.epoch,
                fall.detected_us.is_some(),
                "another where one closed: {fall:?}"
            );
            assert_eq!(orders(fall.killed_at_us, fall.reopened_at_us), 0, "it opened by itself");
        }
        for pair in soaked.falls.windows(2) {
            assert_eq!(orders(pair[0].reopened_at_us, pair[1].killed_at_us), 1, "a new count of failures");
        }
        let falls = SoakReport::new(&soaked, judgement).leaders;
        assert!(falls.killed == LEADERS && falls.closed > 0, "{falls:?}");
        assert!(falls.reopened_p99_ms > falls.gap_p99_ms, "{falls:?}");
        // The same judge, shown a cluster that fell over once more than anybody was killed, and a kill left out.
        soaked.failovers += 1;
        assert!(!soak::judge(&soaked).is_clean(), "a segment failed without a fault");
        soaked.failovers = LEADERS;
        soaked.plan.leaders += 1;
        assert!(!soak::judge(&soaked).is_clean(), "one leader was never killed");
    });
}
