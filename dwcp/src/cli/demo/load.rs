//! The demo's clients: each in a loop of its own, one command at a time, writing down what it asked and was told.
//!
//! Seven of eight commands put a key that nobody else ever writes; the eighth increments one of a few shared counters by
//! compare-and-swap. A client never gives up on a command by itself: the library retries under the same number until
//! it is answered or its patience ends, which the journal then says.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dwcp_client::ClientError;
use dwcp_state::Fate;
use dwcp_state::kv::{CompareOp, CompareTarget, KvBody, KvCommand, Put, Txn, TxnOp};
use tokio::task::JoinHandle;

use super::journal::{Ask, Entry, Told, counter_key, mark_key, write_key};
use crate::cli::cluster::{Link, LinkSession};
use crate::cli::output::{Failure, Outcome};

/// Counters that clients fight over.
const COUNTERS: u32 = 4;
/// Every so many commands, one increments a counter.
const COUNT_EVERY: u64 = 8;
/// Filler that brings a value to about a hundred bytes.
const FILLER: &str = "................................................................................";

/// What can be seen of the load while it runs.
#[derive(Debug, Default)]
pub struct Pulse {
    acknowledged: AtomicU64,
    stop: AtomicBool,
}

impl Pulse {
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }
}

/// Clients at work.
#[derive(Debug)]
pub struct Load {
    pub pulse: Arc<Pulse>,
    clients: Vec<JoinHandle<Vec<Entry>>>,
}

impl Load {
    /// Starts `clients` loops. Their journals count time from `clock`.
    pub fn start(link: &Link, clients: u32, clock: Instant) -> Self {
        let pulse = Arc::new(Pulse::default());
        let clients = (0..clients)
            .map(|number| {
                let client = DemoClient {
                    number,
                    session: link.session(),
                    clock,
                    pulse: pulse.clone(),
                    journal: Vec::new(),
                };
                tokio::spawn(client.run())
            })
            .collect();
        Self { pulse, clients }
    }

    /// Every client finishes the command it is at; all journals.
    pub async fn stop(self) -> Outcome<Vec<Entry>> {
        self.pulse.stop.store(true, Ordering::Relaxed);
        let mut journal = Vec::new();
        for client in self.clients {
            let entries = client
                .await
                .map_err(|error| Failure::refused(format!("a client of the demo ended: {error}")))?;
            journal.extend(entries);
        }
        Ok(journal)
    }
}

struct DemoClient {
    number: u32,
    session: LinkSession,
    clock: Instant,
    pulse: Arc<Pulse>,
    journal: Vec<Entry>,
}

impl DemoClient {
    async fn run(mut self) -> Vec<Entry> {
        let mut number = 0;
        while !self.pulse.stop.load(Ordering::Relaxed) {
            let done = if number % COUNT_EVERY == COUNT_EVERY - 1 {
                self.count(number).await
            } else {
                self.write(number).await
            };
            number += 1;
            if !done {
                // Nobody there: do not spin.
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        self.journal
    }

    /// False when the cluster did not answer.
    async fn write(&mut self, number: u64) -> bool {
        let key = write_key(self.number, number);
        let value = format!("{}-{number}-{FILLER}", self.number);
        let sent_us = self.now_us();
        let answer = self.session.run(&KvCommand::put(key.clone(), value.clone())).await;
        let told = match answer {
            Ok(reply) => Told::Acknowledged { revision: reply.revision },
            Err(error) => told_of(&error),
        };
        self.note(number, Ask::Write { key, value }, told, sent_us)
    }

    async fn count(&mut self, number: u64) -> bool {
        let counter = counter_key((self.number + u32::try_from(number % 1024).unwrap_or(0)) % COUNTERS);
        // A read that fails leaves nothing to be judged; the attempt is simply not made.
        let Ok(reply) = self.session.run(&KvCommand::get(counter.clone())).await else { return false };
        let KvBody::Range { kvs, .. } = reply.body else { return false };
        let (value, revision) = match kvs.first() {
            Some(kv) => (
                std::str::from_utf8(&kv.value).ok().and_then(|v| v.parse().ok()).unwrap_or(0),
                kv.mod_revision,
            ),
            None => (0u64, 0),
        };
        let (to, mark) = (value + 1, mark_key(self.number, number));
        let txn = Txn::default()
            .when(counter.clone(), CompareOp::Equal, CompareTarget::Mod(revision))
            .then(TxnOp::Put(Put::new(counter.clone(), to.to_string())))
            .then(TxnOp::Put(Put::new(mark.clone(), to.to_string())));
        let sent_us = self.now_us();
        let told = match self.session.run(&KvCommand::Txn(txn)).await {
            Ok(reply) => match reply.body {
                KvBody::Txn(branch) if branch.succeeded => Told::Acknowledged { revision: reply.revision },
                _ => Told::NotApplied { why: "another client was first".into() },
            },
            Err(error) => told_of(&error),
        };
        self.note(number, Ask::Count { counter, to, mark }, told, sent_us)
    }

    fn note(&mut self, number: u64, ask: Ask, told: Told, sent_us: u64) -> bool {
        let done_us = self.now_us();
        let answered = match &told {
            Told::Acknowledged { .. } => {
                self.pulse.acknowledged.fetch_add(1, Ordering::Relaxed);
                true
            }
            Told::NotApplied { why } => why.starts_with("another"),
            Told::Unknown { .. } => false,
        };
        self.journal.push(Entry { client: self.number, number, ask, told, sent_us, done_us });
        answered
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.clock.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

fn told_of(error: &ClientError) -> Told {
    let why = error.to_string();
    match error.fate() {
        Fate::NotApplied => Told::NotApplied { why },
        // Applied without an answer is as good as unknown to whoever wanted the answer.
        Fate::Applied | Fate::Unknown => Told::Unknown { why },
    }
}
