//! What a link reveals about the network: round-trip times and the rate at which it delivers. Pure arithmetic over
//! samples; `now` is an argument.
//!
//! The delivery rate is passive: no traffic is made to measure it. Between two pings the acceptor has received so
//! many bytes in so much of its own time; the sample counts only if the dialler always had something to send and the
//! acceptor never waited for its own replica. An idle link is thus not taken for a slow one.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::frame::Pong;

/// Samples older than this are forgotten.
const WINDOW: Duration = Duration::from_secs(10);
/// Most samples kept per window; the oldest go first.
const SAMPLES_MAX: usize = 512;
/// Most pings without answer that are remembered; the oldest go first.
const PINGS_MAX: usize = 64;
/// A shorter stretch says more about scheduling than about the network.
const RATE_STRETCH_MIN_US: u128 = 1_000;

#[derive(Debug, Default)]
struct Window {
    samples: VecDeque<(Instant, u64)>,
}

impl Window {
    fn add(&mut self, now: Instant, value: u64) {
        if self.samples.len() == SAMPLES_MAX {
            self.samples.pop_front();
        }
        self.samples.push_back((now, value));
        self.forget(now);
    }

    fn forget(&mut self, now: Instant) {
        while self.samples.front().is_some_and(|(at, _)| now.saturating_duration_since(*at) > WINDOW) {
            self.samples.pop_front();
        }
    }

    fn sorted(&mut self, now: Instant) -> Vec<u64> {
        self.forget(now);
        let mut values: Vec<u64> = self.samples.iter().map(|(_, value)| *value).collect();
        values.sort_unstable();
        values
    }
}

/// The smallest sample that at least `percent` of all samples do not exceed.
fn percentile(sorted: &[u64], percent: usize) -> Option<u64> {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied()
}

/// One peer's measurements over the last ten seconds; they outlive a single link.
#[derive(Debug, Default)]
pub(crate) struct Measures {
    rtt_us: Window,
    rate_bytes_per_s: Window,
}

impl Measures {
    pub(crate) fn add_rtt(&mut self, now: Instant, rtt: Duration) {
        self.rtt_us.add(now, u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX));
    }

    /// p50 and p95.
    pub(crate) fn rtt_us(&mut self, now: Instant) -> (Option<u64>, Option<u64>) {
        let sorted = self.rtt_us.sorted(now);
        (percentile(&sorted, 50), percentile(&sorted, 95))
    }

    /// The best stretch of the window: what the network was seen to carry.
    pub(crate) fn rate_bytes_per_s(&mut self, now: Instant) -> Option<u64> {
        self.rate_bytes_per_s.sorted(now).last().copied()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PingKind {
    /// Sent at a steady beat: a round-trip sample.
    Beat,
    /// Sent after much data, only for the delivery rate: its round trip is the queue's, not the network's.
    Probe,
}

#[derive(Debug)]
struct Ping {
    nonce: u64,
    at: Instant,
    kind: PingKind,
    idle_count: u64,
}

/// One outgoing link's pings.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    next_nonce: u64,
    pings: VecDeque<Ping>,
    /// How often the writer found nothing to send.
    idle_count: u64,
    last: Option<(Pong, Ping)>,
}

impl Meter {
    /// Notes a ping that leaves now and yields its nonce.
    pub(crate) fn on_ping(&mut self, now: Instant, kind: PingKind) -> u64 {
        if self.pings.len() == PINGS_MAX {
            self.pings.pop_front();
        }
        self.next_nonce += 1;
        self.pings.push_back(Ping { nonce: self.next_nonce, at: now, kind, idle_count: self.idle_count });
        self.next_nonce
    }

    pub(crate) fn on_idle(&mut self) {
        self.idle_count += 1;
    }

    /// Takes samples from an answer; one to a ping nobody sent, or sent long ago, is ignored.
    pub(crate) fn on_pong(&mut self, now: Instant, pong: Pong, measures: &mut Measures) {
        let Some(place) = self.pings.iter().position(|ping| ping.nonce == pong.nonce) else { return };
        let ping = self.pings.drain(..=place).next_back().expect("the range holds the place found");
        if ping.kind == PingKind::Beat {
            measures.add_rtt(now, now.saturating_duration_since(ping.at));
        }
        let ended = ping.at;
        let idle_count = ping.idle_count;
        let Some((last_pong, last_ping)) = self.last.replace((pong, ping)) else { return };
        let bytes = pong.received_bytes.saturating_sub(last_pong.received_bytes);
        // The longer of both ends' stretches: data that piled up in a buffer arrives faster than the network carries.
        let sent_us = ended.saturating_duration_since(last_ping.at).as_micros();
        let received_us = u128::from(pong.at_us.saturating_sub(last_pong.at_us));
        let stretch_us = sent_us.max(received_us);
        let application_limited = idle_count != last_ping.idle_count;
        if !application_limited && !pong.receiver_limited && stretch_us >= RATE_STRETCH_MIN_US {
            let rate = u128::from(bytes) * 1_000_000 / stretch_us;
            measures.rate_bytes_per_s.add(now, u64::try_from(rate).unwrap_or(u64::MAX));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pong(nonce: u64, received_bytes: u64, at_us: u64) -> Pong {
        Pong { nonce, received_bytes, at_us, receiver_limited: false }
    }

    #[test]
    fn percentiles_take_the_nearest_rank() {
        let values: Vec<u64> = (1..=20).collect();
        assert_eq!(percentile(&values, 50), Some(10));
        assert_eq!(percentile(&values, 95), Some(19));
        assert_eq!(percentile(&[7], 95), Some(7));
        assert_eq!(percentile(&[], 50), None);
    }

    #[test]
    fn samples_are_forgotten_after_the_window() {
        let start = Instant::now();
        let mut measures = Measures::default();
        measures.add_rtt(start, Duration::from_micros(100));
        measures.add_rtt(start + WINDOW / 2, Duration::from_micros(300));
        assert_eq!(measures.rtt_us(start + WINDOW), (Some(100), Some(300)));
        assert_eq!(measures.rtt_us(start + WINDOW * 5 / 4), (Some(300), Some(300)));
        assert_eq!(measures.rtt_us(start + WINDOW * 2), (None, None));
    }

    #[test]
    fn a_busy_stretch_gives_a_rate_and_an_idle_one_does_not() {
        let now = Instant::now();
        let (mut meter, mut measures) = (Meter::default(), Measures::default());
        let first = meter.on_ping(now, PingKind::Beat);
        let second = meter.on_ping(now, PingKind::Probe);
        meter.on_pong(now, pong(first, 0, 0), &mut measures);
        meter.on_pong(now, pong(second, 1_000_000, 100_000), &mut measures);
        assert_eq!(measures.rate_bytes_per_s(now), Some(10_000_000));
        // After an idle moment the next stretch would look a thousand times slower; it must not count.
        let mut measures = Measures::default();
        meter.on_idle();
        let third = meter.on_ping(now, PingKind::Beat);
        meter.on_pong(now, pong(third, 1_001_000, 200_000), &mut measures);
        assert_eq!(measures.rate_bytes_per_s(now), None);
        // Nor a stretch in which the receiver was the brake.
        let fourth = meter.on_ping(now, PingKind::Probe);
        let limited = Pong { receiver_limited: true, ..pong(fourth, 2_000_000, 300_000) };
        meter.on_pong(now, limited, &mut measures);
        assert_eq!(measures.rate_bytes_per_s(now), None);
    }

    #[test]
    fn data_that_piled_up_in_a_buffer_does_not_look_like_a_faster_network() {
        let now = Instant::now();
        let (mut meter, mut measures) = (Meter::default(), Measures::default());
        let first = meter.on_ping(now, PingKind::Beat);
        let second = meter.on_ping(now + Duration::from_millis(500), PingKind::Probe);
        meter.on_pong(now, pong(first, 0, 0), &mut measures);
        meter.on_pong(now, pong(second, 1_000_000, 2_000), &mut measures);
        assert_eq!(measures.rate_bytes_per_s(now), Some(2_000_000));
    }

    #[test]
    fn a_probe_is_no_round_trip_sample_and_a_made_up_answer_is_ignored() {
        let now = Instant::now();
        let (mut meter, mut measures) = (Meter::default(), Measures::default());
        let nonce = meter.on_ping(now, PingKind::Probe);
        meter.on_pong(now + WINDOW / 10, pong(nonce, 0, 0), &mut measures);
        meter.on_pong(now, pong(999, u64::MAX, u64::MAX), &mut measures);
        meter.on_pong(now, pong(nonce, 5, 5), &mut measures);
        assert_eq!(measures.rtt_us(now), (None, None));
        for _ in 0..1000 {
            meter.on_ping(now, PingKind::Beat);
        }
        assert_eq!(meter.pings.len(), PINGS_MAX);
    }
}
