//! What the servers spend while they are driven: processor time and memory from their process ids, batch sizes and syncs
//! from their metrics pages. What cannot be known is left out of the table.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::process::{Usage, own_usage, usage};
use dwcp::plain_http;

const PAGE_PATIENCE: Duration = Duration::from_secs(3);

/// Where to look.
#[derive(Clone, Debug, Default)]
pub struct Servers {
    pub pids: Vec<u32>,
    pub pages: Vec<SocketAddr>,
}

/// One look.
#[derive(Debug)]
pub struct Reading {
    at: Instant,
    servers: Vec<Option<Usage>>,
    client: Option<Usage>,
    pages: Vec<Page>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Page {
    syncs: f64,
    batches: f64,
    batch_commands: f64,
    cpu_s: Option<f64>,
    resident_bytes: Option<f64>,
}

/// The difference of two looks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spent {
    pub seconds: f64,
    /// Of all servers together.
    pub servers_cpu: Option<Duration>,
    pub client_cpu: Option<Duration>,
    /// Of the largest server, at the end.
    pub resident_bytes: Option<u64>,
    /// Commands in an executed proposal, on average.
    pub batch: Option<f64>,
    /// Of one node, on average.
    pub syncs_per_s: Option<f64>,
}

impl Servers {
    pub async fn read(&self) -> Reading {
        let mut pages = Vec::new();
        for address in &self.pages {
            if let Ok(answer) = plain_http::get(*address, "/metrics", PAGE_PATIENCE).await {
                pages.push(Page::of(&answer.body));
            }
        }
        Reading {
            at: Instant::now(),
            servers: self.pids.iter().map(|pid| usage(*pid)).collect(),
            client: own_usage(),
            pages,
        }
    }
}

impl Page {
    fn of(text: &str) -> Self {
        let samples = plain_http::samples(text);
        let get = |name: &str| samples.get(name).copied();
        Self {
            syncs: get("dwcp_wal_fsync_duration_seconds_count").unwrap_or(0.0),
            batches: get("dwcp_batch_commands_count").unwrap_or(0.0),
            batch_commands: get("dwcp_batch_commands_sum").unwrap_or(0.0),
            cpu_s: get("process_cpu_seconds_total"),
            resident_bytes: get("process_resident_memory_bytes"),
        }
    }
}

impl Reading {
    /// What was spent from `earlier` to this one.
    pub fn since(&self, earlier: &Self) -> Spent {
        let seconds = (self.at - earlier.at).as_secs_f64().max(1e-6);
        let cpu = |now: Option<Usage>, then: Option<Usage>| Some(now?.cpu.saturating_sub(then?.cpu));
        let by_pid = || -> Option<Duration> {
            let pairs = self.servers.iter().zip(&earlier.servers);
            pairs
                .map(|(now, then)| cpu(*now, *then))
                .sum::<Option<Duration>>()
                .filter(|_| !self.servers.is_empty())
        };
        let same = self.pages.len() == earlier.pages.len() && !self.pages.is_empty();
        let page_pairs = || self.pages.iter().zip(&earlier.pages).filter(|_| same);
        let sum = |of: fn(&Page) -> f64| page_pairs().map(|(now, then)| of(now) - of(then)).sum::<f64>();
        let by_page = || -> Option<Duration> {
            let spent = page_pairs().map(|(now, then)| Some((now.cpu_s? - then.cpu_s?).max(0.0)));
            spent.sum::<Option<f64>>().filter(|_| same).map(Duration::from_secs_f64)
        };
        let largest = self.servers.iter().flatten().map(|usage| usage.resident_bytes).max();
        let largest_page = || {
            self.pages
                .iter()
                .filter_map(|page| page.resident_bytes)
                .fold(None, |most: Option<f64>, bytes| Some(most.map_or(bytes, |most| most.max(bytes))))
        };
        let batches = sum(|page| page.batches);
        Spent {
            seconds,
            servers_cpu: by_pid().or_else(by_page),
            client_cpu: cpu(self.client, earlier.client),
            resident_bytes: largest.or_else(|| largest_page().map(|bytes| bytes as u64)),
            batch: (same && batches > 0.0).then(|| sum(|page| page.batch_commands) / batches),
            syncs_per_s: same.then(|| sum(|page| page.syncs) / seconds / self.pages.len() as f64),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(at: Instant, cpu_ms: u64, page: Page) -> Reading {
        let usage = Usage { cpu: Duration::from_millis(cpu_ms), resident_bytes: 1 << 20 };
        Reading { at, servers: vec![Some(usage), Some(usage)], client: Some(usage), pages: vec![page, page] }
    }

    #[test]
    fn what_is_spent_is_the_difference_of_two_looks() {
        let began = Instant::now();
        let page =
            |syncs, batches, batch_commands| Page { syncs, batches, batch_commands, ..Page::default() };
        let before = reading(began, 1_000, page(10.0, 100.0, 1_000.0));
        let after = reading(began + Duration::from_secs(2), 1_500, page(30.0, 110.0, 1_320.0));
        let spent = after.since(&before);
        assert_eq!(spent.servers_cpu, Some(Duration::from_secs(1)));
        assert_eq!(spent.client_cpu, Some(Duration::from_millis(500)));
        assert_eq!((spent.batch, spent.syncs_per_s), (Some(32.0), Some(10.0)));
        assert_eq!(spent.resident_bytes, Some(1 << 20));
    }

    #[test]
    fn what_is_unknown_stays_unknown() {
        let nothing = |at| Reading { at, servers: vec![], client: None, pages: vec![] };
        let began = Instant::now();
        let spent = nothing(began + Duration::from_secs(1)).since(&nothing(began));
        assert!(spent.servers_cpu.is_none() && spent.client_cpu.is_none() && spent.batch.is_none());
        assert!(spent.syncs_per_s.is_none() && spent.resident_bytes.is_none());
        let half = Reading { servers: vec![None], ..nothing(began + Duration::from_secs(1)) };
        assert!(half.since(&half).servers_cpu.is_none());
    }
}
