//! What one instance's own proposals took, by the protocol that ordered them. A pure record: whoever proposes brings the
//! times.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime};

use dwcp_base::NetworkMode;
use dwcp_replica::ProtocolName;

/// The last so many proposals of a protocol tell what to expect of it.
const SAMPLES_MAX: usize = 128;

/// Counts since the start, and the last latencies of each protocol.
#[derive(Clone, Debug, Default)]
pub(crate) struct Measured {
    count: u64,
    last: Option<SystemTime>,
    total: Duration,
    pbft: VecDeque<Duration>,
    raft: VecDeque<Duration>,
    /// Of either, and of those of which nobody knows.
    any: VecDeque<Duration>,
}

impl Measured {
    /// A proposal was acknowledged. `protocol`: which one ordered it; `None` when that is not known, or when the answer
    /// waited for more than the protocol's own agreement.
    pub fn add(&mut self, protocol: Option<ProtocolName>, took: Duration, at: SystemTime) {
        self.count += 1;
        self.total += took;
        self.last = Some(at);
        let own = protocol.map(|protocol| match protocol {
            ProtocolName::Pbft => &mut self.pbft,
            ProtocolName::Raft => &mut self.raft,
        });
        for samples in own.into_iter().chain([&mut self.any]) {
            if samples.len() == SAMPLES_MAX {
                samples.pop_front();
            }
            samples.push_back(took);
        }
    }

    pub fn count(&self) -> u64 {
        self.count
    }

    pub fn last(&self) -> Option<SystemTime> {
        self.last
    }

    pub fn average(&self) -> Duration {
        u32::try_from(self.count)
            .ok()
            .filter(|count| *count > 0)
            .map_or(Duration::ZERO, |count| self.total / count)
    }

    /// The median of this protocol's last proposals; before the first of them, of the last ones whoever ordered them; before
    /// any, what the mode is made for.
    pub fn expected(&self, protocol: ProtocolName, mode: NetworkMode) -> Duration {
        let own = match protocol {
            ProtocolName::Pbft => &self.pbft,
            ProtocolName::Raft => &self.raft,
        };
        let samples = if own.is_empty() { &self.any } else { own };
        let mut sorted: Vec<Duration> = samples.iter().copied().collect();
        sorted.sort_unstable();
        sorted.get(sorted.len() / 2).copied().unwrap_or(match mode {
            NetworkMode::Datacenter => Duration::from_millis(100),
            NetworkMode::Internet => Duration::from_secs(2),
            NetworkMode::Hybrid => Duration::from_millis(500),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn before_the_first_proposal_the_mode_says_what_to_expect() {
        let measured = Measured::default();
        let expected = |mode| measured.expected(ProtocolName::Raft, mode);
        assert_eq!(expected(NetworkMode::Datacenter), MS * 100);
        assert_eq!(expected(NetworkMode::Internet), MS * 2000);
        assert_eq!(expected(NetworkMode::Hybrid), MS * 500);
        assert_eq!((measured.count(), measured.average(), measured.last()), (0, Duration::ZERO, None));
    }

    #[test]
    fn each_protocol_is_expected_to_take_the_median_of_what_it_took_lately() {
        let mut measured = Measured::default();
        let at = SystemTime::UNIX_EPOCH;
        for took in [9, 1, 500, 3, 2] {
            measured.add(Some(ProtocolName::Raft), MS * took, at);
        }
        measured.add(Some(ProtocolName::Pbft), MS * 40, at);
        assert_eq!(measured.expected(ProtocolName::Raft, NetworkMode::Internet), MS * 3);
        assert_eq!(measured.expected(ProtocolName::Pbft, NetworkMode::Datacenter), MS * 40);
        // What is older than the last hundred or so is forgotten.
        for _ in 0..SAMPLES_MAX {
            measured.add(Some(ProtocolName::Raft), MS * 7, at);
        }
        assert_eq!(measured.expected(ProtocolName::Raft, NetworkMode::Hybrid), MS * 7);
        assert_eq!(measured.raft.len(), SAMPLES_MAX);
    }

    #[test]
    fn a_proposal_whose_protocol_is_not_known_tells_of_both_until_they_have_their_own() {
        let mut measured = Measured::default();
        measured.add(None, MS * 30, SystemTime::UNIX_EPOCH);
        measured.add(None, MS * 10, SystemTime::UNIX_EPOCH + MS);
        assert_eq!((measured.count(), measured.average()), (2, MS * 20));
        assert_eq!(measured.last(), Some(SystemTime::UNIX_EPOCH + MS));
        assert_eq!(measured.expected(ProtocolName::Pbft, NetworkMode::Hybrid), MS * 30);
        measured.add(Some(ProtocolName::Raft), MS * 2, SystemTime::UNIX_EPOCH);
        assert_eq!(measured.expected(ProtocolName::Raft, NetworkMode::Hybrid), MS * 2);
        assert_eq!(measured.expected(ProtocolName::Pbft, NetworkMode::Hybrid), MS * 10);
    }
}
