//! While a segment is open the root only notarises it: data goes through Raft, and the root orders an Anchor now and then.
//! Shown by two looks at all nodes between which one epoch was open everywhere: how far the root came, and how far the
//! virtual log.

use std::time::Duration;

use dwcp::ProtocolName;
use dwcp_client::Status;
use serde::Serialize;

use crate::judgement::Judgement;
use crate::load::Pulse;
use crate::watch::Watch;

/// Entries a second that the root may order while a segment is open.
pub const ROOT_PER_SECOND_MAX: f64 = 20.0;
/// Over less, one entry more or less counts too much.
pub const JUDGED_FROM: Duration = Duration::from_secs(2);

/// All nodes at one time, as they say themselves.
#[derive(Clone, Debug)]
pub struct Look {
    /// The answers came between these.
    pub asked_at_us: u64,
    pub answered_at_us: u64,
    pub acknowledged: u64,
    pub statuses: Vec<Status>,
}

impl Look {
    pub async fn take(watch: &Watch, pulse: &Pulse) -> Self {
        let (asked_at_us, acknowledged) = (pulse.now_us(), pulse.acknowledged());
        let statuses = watch.statuses().await;
        Self { asked_at_us, answered_at_us: pulse.now_us(), acknowledged, statuses }
    }
}

/// Between two looks that found the same segment open on all nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    pub epoch: u64,
    pub lasted_us: u64,
    /// Entries that the root executed, on the node with most of them.
    pub root: u64,
    /// Positions of the virtual log, on the node with fewest of them.
    pub positions: u64,
    pub acknowledged: u64,
}

impl Stretch {
    /// `None`: not all of so many nodes answered both times and had one and the same segment open.
    #[must_use]
    pub fn between(before: &Look, after: &Look, nodes: usize) -> Option<Self> {
        let (first, second) = (&before.statuses, &after.statuses);
        if first.len() != nodes || second.len() != nodes {
            return None;
        }
        let epoch = first.first()?.epoch;
        let is_open = |status: &Status| {
            let is_sealed = status.segment.as_ref().is_none_or(|segment| segment.sealed);
            status.epoch == epoch && status.protocol == ProtocolName::Raft && !is_sealed
        };
        if !first.iter().chain(second).all(is_open) {
            return None;
        }
        let grown = |of: fn(&Status) -> u64| {
            first.iter().map(move |earlier| {
                let later = second.iter().find(|later| later.replica == earlier.replica);
                later.map(|later| of(later).saturating_sub(of(earlier)))
            })
        };
        let root: Option<Vec<u64>> = grown(|status| status.executed.0).collect();
        let positions: Option<Vec<u64>> = grown(|status| status.position.0).collect();
        Some(Self {
            epoch: epoch.0,
            // The shorter of what it may have been, so that no rate is flattered.
            lasted_us: after.asked_at_us.saturating_sub(before.answered_at_us),
            root: root?.into_iter().max()?,
            positions: positions?.into_iter().min()?,
            acknowledged: after.acknowledged.saturating_sub(before.acknowledged),
        })
    }

    fn seconds(&self) -> f64 {
        self.lasted_us as f64 / 1e6
    }

    fn is_judged(&self) -> bool {
        u128::from(self.lasted_us) >= JUDGED_FROM.as_micros() && self.acknowledged > 0
    }
}

/// What the root and the virtual log did while segments were open, per second, over all stretches that were judged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Rates {
    /// Stretches with an open segment, and those among them that were long enough and had commands acknowledged.
    pub stretches: u64,
    pub judged: u64,
    pub judged_seconds: f64,
    pub root_mean: f64,
    pub root_worst: f64,
    pub positions_mean: f64,
    pub positions_worst: f64,
    pub acknowledged_mean: f64,
}

/// Finds stretches in which the root ordered too much, or the virtual log stood still although commands were acknowledged.
#[must_use]
pub fn judge(stretches: &[Stretch], base: &mut Judgement) -> Rates {
    let judged: Vec<&Stretch> = stretches.iter().filter(|stretch| stretch.is_judged()).collect();
    let mut rates =
        Rates { stretches: stretches.len() as u64, judged: judged.len() as u64, ..Rates::default() };
    let seconds: f64 = judged.iter().map(|stretch| stretch.seconds()).sum();
    if judged.is_empty() {
        return rates;
    }
    let mean = |of: fn(&Stretch) -> u64| {
        tenths(judged.iter().map(|stretch| of(stretch)).sum::<u64>() as f64 / seconds)
    };
    rates.judged_seconds = tenths(seconds);
    rates.root_mean = mean(|stretch| stretch.root);
    rates.positions_mean = mean(|stretch| stretch.positions);
    rates.acknowledged_mean = mean(|stretch| stretch.acknowledged);
    rates.positions_worst = f64::INFINITY;
    for stretch in judged {
        let Stretch { epoch, acknowledged, .. } = stretch;
        let (root, positions) =
            (stretch.root as f64 / stretch.seconds(), stretch.positions as f64 / stretch.seconds());
        rates.root_worst = rates.root_worst.max(tenths(root));
        rates.positions_worst = rates.positions_worst.min(tenths(positions));
        if root > ROOT_PER_SECOND_MAX {
            base.find(format!(
                "epoch {epoch}: the root ordered {root:.1} slots a second while its segment was open and {acknowledged} \
                 commands were acknowledged; {ROOT_PER_SECOND_MAX} are allowed"
            ));
        }
        if stretch.positions == 0 {
            base.find(format!(
                "epoch {epoch}: a node's virtual log stood still for {:.1} s while {acknowledged} commands were acknowledged",
                stretch.seconds()
            ));
        }
    }
    rates
}

fn tenths(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stretch(root: u64, positions: u64) -> Stretch {
        Stretch { epoch: 4, lasted_us: 2_000_000, root, positions, acknowledged: 100 }
    }

    #[test]
    fn a_root_that_carries_the_data_itself_is_found() {
        let mut base = Judgement::default();
        let rates = judge(&[stretch(40, 900), stretch(20, 300)], &mut base);
        assert!(base.findings.is_empty(), "exactly the limit is within it");
        assert_eq!((rates.root_mean, rates.root_worst), (15.0, 20.0));
        assert_eq!((rates.positions_mean, rates.positions_worst), (300.0, 150.0));
        let rates = judge(&[stretch(41, 900), stretch(20, 0)], &mut base);
        assert_eq!((rates.judged, base.findings.len()), (2, 2), "{:?}", base.findings);
    }

    #[test]
    fn what_was_short_or_idle_is_not_judged() {
        let mut base = Judgement::default();
        let short = Stretch { lasted_us: 1_999_999, ..stretch(1000, 0) };
        let idle = Stretch { acknowledged: 0, ..stretch(1000, 0) };
        let rates = judge(&[short, idle], &mut base);
        assert_eq!((rates.stretches, rates.judged, base.findings.len()), (2, 0, 0));
    }
}
