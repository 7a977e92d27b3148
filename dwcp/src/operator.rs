//! An operator's mode orders: numbered, signed with an admin's key, handed in until one is in force. What an order does is
//! decided in the replicas; here is only how to get one there, exactly once, beside other operators.

use std::time::{Duration, Instant};

use dwcp_base::crypto::Ed25519;
use dwcp_base::{ClusterId, NetworkMode, ReplicaId, encode};
use dwcp_client::{Client, ClientConfig, ConnectError, NodeError, NodeReport, OrderOutcome, PrincipalConfig};
use dwcp_log::{ModeOrder, OperatorOrder, SignedModeOrder};

/// Between two attempts while no node answers.
const PAUSE: Duration = Duration::from_millis(100);
/// One node's time to say what became of an order: a view change or two. Then another is asked.
const ATTEMPT: Duration = Duration::from_secs(3);

/// An order that is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ordered {
    /// The order's own number; the next order has the next one.
    pub number: u64,
    pub mode: NetworkMode,
}

/// Why an order is not in force as far as is known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OrderError {
    /// The cluster will not do it.
    #[error("{0}")]
    Refused(String),
    /// It may have been ordered, or may yet be.
    #[error("no answer to the order within {seconds} s ({last}): look at the mode before ordering again")]
    Unknown { seconds: u64, last: String },
}

/// Who may order a mode, and the way to the cluster.
#[derive(Clone, Debug)]
pub struct Operator {
    client: Client,
    cluster: ClusterId,
    f: usize,
    admin: PrincipalConfig,
    patience: Duration,
}

impl Operator {
    /// An operator with connections of its own; the configuration's principal must be an admin. To be called within a tokio
    /// runtime.
    ///
    /// # Errors
    /// A configuration that cannot work.
    pub fn start(config: ClientConfig) -> Result<Self, ConnectError> {
        let admin = config.principal.clone();
        Ok(Self::over(Client::start(config.clone())?, &config, admin))
    }

    /// An operator that shares the connections of a client of this configuration.
    #[must_use]
    pub fn over(client: Client, config: &ClientConfig, admin: PrincipalConfig) -> Self {
        let patience = config.settings.call_timeout;
        Self { client, cluster: config.cluster, f: config.f.into(), admin, patience }
    }

    /// Orders a mode and waits until it is in force, at most the configured `call_timeout`. An order that came too late,
    /// because another operator's was first, is numbered anew.
    ///
    /// # Errors
    /// See [`OrderError`].
    pub async fn order_mode(
        &self,
        mode: NetworkMode,
        first_leader: Option<ReplicaId>,
    ) -> Result<Ordered, OrderError> {
        let until = Instant::now() + self.patience;
        let mut last = String::from("no node answers");
        let mut numbered: Option<u64> = None;
        let mut attempt = 0;
        while Instant::now() < until {
            let reports = self.client.status_all().await;
            let seen = words(&reports);
            let Some(next) = next_number(&seen, self.f) else {
                last = silence(&reports);
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            if let Some(number) = numbered {
                // The answer was lost. What was executed under this number is ours if it did what ours asks for.
                if next == number + 1 && in_force(&seen, self.f, number, mode) {
                    return Ok(Ordered { number, mode });
                }
            }
            let order = ModeOrder { number: next, mode, first_leader };
            numbered = Some(next);
            let first = turn(&seen, next, attempt);
            attempt += 1;
            match self.hand_in(order, first, until).await {
                Ok(OrderOutcome::Done { .. }) => return Ok(Ordered { number: next, mode }),
                Ok(OrderOutcome::Refused { reason }) => {
                    if is_final(&words(&self.client.status_all().await), next) {
                        return Err(OrderError::Refused(reason));
                    }
                    tokio::time::sleep(PAUSE).await;
                    last = reason;
                }
                Err(error) => {
                    last = error;
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
        Err(OrderError::Unknown { seconds: self.patience.as_secs(), last })
    }

    async fn hand_in(
        &self,
        order: ModeOrder,
        first: Option<ReplicaId>,
        until: Instant,
    ) -> Result<OrderOutcome, String> {
        let key = Ed25519::new(self.admin.seed, &[]);
        let signed = SignedModeOrder::new(order, self.cluster, self.admin.public_key(), &key);
        let bytes = encode(&OperatorOrder::Mode(signed)).into();
        let left = until.saturating_duration_since(Instant::now()).min(ATTEMPT);
        match tokio::time::timeout(left, self.client.submit_order(first, bytes)).await {
            Ok(answer) => answer.map_err(|error: NodeError| error.to_string()),
            Err(_) => Err("no answer".into()),
        }
    }
}

/// What one node says: the number that the next order must have, and the mode in force.
type Word = (ReplicaId, u64, NetworkMode);

fn words(reports: &[NodeReport]) -> Vec<Word> {
    let word = |report: &NodeReport| {
        let status = report.status.as_ref().ok()?;
        Some((report.id, status.next_order, status.mode))
    };
    reports.iter().filter_map(word).collect()
}

/// Whom to hand the order first: one of those that wait for this number, another one with each attempt.
fn turn(words: &[Word], number: u64, attempt: usize) -> Option<ReplicaId> {
    let ready: Vec<ReplicaId> =
        words.iter().filter(|(_, next, _)| *next == number).map(|(id, ..)| *id).collect();
    ready.get(attempt % ready.len().max(1)).copied()
}

/// Whether a refusal tells of the order itself. While some node is behind, it may be that node's, which cannot judge an order
/// before the one that precedes it; where some node is ahead, another order was first, or this one was and its answer lost.
fn is_final(words: &[Word], number: u64) -> bool {
    !words.is_empty() && words.iter().all(|(_, next, _)| *next == number)
}

/// The number that f + 1 nodes say the next order must have at least: one of them is honest, so one liar cannot push it up.
fn next_number(words: &[Word], f: usize) -> Option<u64> {
    let mut numbers: Vec<u64> = words.iter().map(|(_, next, _)| *next).collect();
    numbers.sort_unstable_by(|a, b| b.cmp(a));
    numbers.get(f).copied()
}

/// Whether f + 1 nodes have executed order `number` as their last and are in this mode.
fn in_force(words: &[Word], f: usize, number: u64, mode: NetworkMode) -> bool {
    words.iter().filter(|(_, next, now)| *next == number + 1 && *now == mode).count() > f
}

fn silence(reports: &[NodeReport]) -> String {
    let reasons = reports.iter().filter_map(|r| Some(format!("node {}: {}", r.id, r.status.as_ref().err()?)));
    reasons.collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(numbers: &[u64], mode: NetworkMode) -> Vec<Word> {
        (0..).map(ReplicaId).zip(numbers).map(|(id, next)| (id, *next, mode)).collect()
    }

    #[test]
    fn one_liar_does_not_choose_the_number() {
        let internet = NetworkMode::Internet;
        assert_eq!(next_number(&said(&[4, 4, 3, 99], internet), 1), Some(4));
        assert_eq!(next_number(&said(&[2], internet), 1), None, "one voice is none");
        assert_eq!(next_number(&said(&[7], internet), 0), Some(7));
    }

    #[test]
    fn an_order_whose_answer_was_lost_is_known_by_its_number_and_what_it_did() {
        let hybrid = NetworkMode::Hybrid;
        let seen = said(&[6, 6, 5], hybrid);
        assert!(in_force(&seen, 1, 5, hybrid));
        assert!(!in_force(&seen, 1, 5, NetworkMode::Internet), "another operator's, and another mode");
        assert!(!in_force(&seen, 1, 6, hybrid), "not executed yet");
        assert!(!in_force(&seen, 2, 5, hybrid), "two voices where two may lie");
    }

    #[test]
    fn each_attempt_goes_to_another_node_that_waits_for_this_number() {
        let seen = said(&[4, 5, 5, 6], NetworkMode::Hybrid);
        let turns: Vec<_> = (0..3).map(|attempt| turn(&seen, 5, attempt).map(|id| id.0)).collect();
        assert_eq!(turns, [Some(1), Some(2), Some(1)]);
        assert_eq!((turn(&seen, 9, 0), turn(&[], 5, 5)), (None, None));
    }

    #[test]
    fn a_refusal_is_final_when_nobody_is_behind_or_ahead() {
        let hybrid = NetworkMode::Hybrid;
        assert!(is_final(&said(&[5, 5, 5], hybrid), 5));
        assert!(!is_final(&said(&[5, 4, 5], hybrid), 5), "perhaps the word of the one that is behind");
        assert!(!is_final(&said(&[5, 5, 6], hybrid), 5), "overtaken");
        assert!(!is_final(&[], 5));
    }
}
