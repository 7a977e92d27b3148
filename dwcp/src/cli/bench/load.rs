//! The bench's clients: closed loops with one call under way each, and an open loop at a fixed rate.
//!
//! A closed loop slows down with the cluster and so hides its pauses; the open loop does not: commands are due by the
//! clock, whatever became of earlier ones, and latency counts from the moment a command was due. Nothing here starts
//! or looks at servers.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dwcp_client::CallOptions;
use dwcp_client::values::{Op, Plain, Write};
use dwcp_state::kv::KvCommand;
use hdrhistogram::Histogram;
use tokio::task::JoinSet;

use crate::cli::cluster::{Link, LinkSession};
use crate::cli::output::{Failure, Outcome};

/// Samples a client gathers before it takes the lock of the common histogram.
const SAMPLES_PER_LOCK: usize = 64;
/// Longest latency told apart; longer ones count as this.
const LATENCY_US_MAX: u64 = 600_000_000;
/// Sessions that share the open loop's commands.
const OPEN_SESSIONS: usize = 64;
/// Commands of the open loop under way at once. At the bound the loop waits, and latency goes on counting.
const OPEN_FLIGHT_MAX: usize = 32_768;

/// What is written and how long.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    pub value_bytes: usize,
    /// Keys that are written over and over.
    pub keys: u64,
    /// Of a hundred commands, so many read (linearizably).
    pub reads_percent: u64,
    /// Reads are ordered even where a segment's leader would answer them without an entry.
    pub ordered: bool,
    pub warm_up: Duration,
    pub measure: Duration,
}

impl Work {
    fn options(&self) -> CallOptions {
        CallOptions { ordered: self.ordered, ..CallOptions::default() }
    }
}

/// What came of it.
#[derive(Debug)]
pub struct Sample {
    pub latency_us: Histogram<u64>,
    pub commands: u64,
    pub errors: u64,
    /// Of the first error, in words.
    pub error: Option<String>,
    pub took: Duration,
}

#[derive(Debug)]
struct Score {
    measuring: AtomicBool,
    stop: AtomicBool,
    commands: AtomicU64,
    errors: AtomicU64,
    error: Mutex<Option<String>>,
    latency_us: Mutex<Histogram<u64>>,
}

impl Score {
    fn new() -> Arc<Self> {
        let latency_us = Histogram::new_with_max(LATENCY_US_MAX, 3).expect("the bounds are sound");
        Arc::new(Self {
            measuring: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            commands: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            error: Mutex::new(None),
            latency_us: Mutex::new(latency_us),
        })
    }

    fn measuring(&self) -> bool {
        self.measuring.load(Ordering::Relaxed)
    }

    fn failed(&self, error: &impl std::fmt::Display) {
        self.errors.fetch_add(1, Ordering::Relaxed);
        self.error.lock().expect("no one panics with it").get_or_insert_with(|| error.to_string());
    }

    fn record(&self, samples_us: &mut Vec<u64>) {
        let mut histogram = self.latency_us.lock().expect("no one panics with it");
        samples_us.drain(..).for_each(|us| histogram.saturating_record(us.max(1)));
    }

    fn sample(&self, took: Duration) -> Sample {
        Sample {
            latency_us: self.latency_us.lock().expect("no one panics with it").clone(),
            commands: self.commands.load(Ordering::Relaxed),
            errors: self.errors.load(Ordering::Relaxed),
            error: self.error.lock().expect("no one panics with it").clone(),
            took,
        }
    }
}

/// Who carries a command of the open loop.
#[derive(Clone, Debug)]
enum Caller {
    Store(LinkSession),
    /// A put becomes a register's new value, through one node.
    Sync(dwcp_client::SyncClient),
}

impl Caller {
    async fn call(&self, command: KvCommand, options: CallOptions) -> Result<(), String> {
        match (self, command) {
            (Self::Store(session), command) => {
                session.run_with(&command, options).await.map(drop).map_err(|error| error.to_string())
            }
            (Self::Sync(client), KvCommand::Put(put)) => {
                let value = Plain::bytes(put.value).map_err(|error| error.to_string())?;
                let write = Write::new(put.key, Op::Put(value));
                client.write(&[write], 0, None).await.map(drop).map_err(|error| error.to_string())
            }
            (Self::Sync(_), _) => Err("state sync is driven with writes alone".into()),
        }
    }
}

/// Cheap numbers that need not surprise anybody: which key, whether to read.
#[derive(Debug)]
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound.max(1)
    }
}

fn command(work: &Work, dice: &mut Dice) -> KvCommand {
    let key = format!("bench/{:012}", dice.below(work.keys));
    if dice.below(100) < work.reads_percent {
        return KvCommand::get(key);
    }
    let mut value = vec![b'v'; work.value_bytes];
    let tag = dice.below(u64::MAX).to_le_bytes();
    let length = tag.len().min(value.len());
    value[..length].copy_from_slice(&tag[..length]);
    KvCommand::put(key, value)
}

/// `clients` loops in sessions of their own, each calling with `frame` commands at once and waiting for all answers.
/// `between` runs when measuring begins and ends.
pub async fn closed(
    link: &Link,
    clients: usize,
    frame: usize,
    work: Work,
    between: impl AsyncFnMut(),
) -> Outcome<Sample> {
    let score = Score::new();
    let mut loops = JoinSet::new();
    for number in 0..clients {
        let (session, score) = (link.session(), score.clone());
        loops.spawn(closed_loop(session, score, work, frame, Dice(number as u64 + 1)));
    }
    let took = measure(&score, work, between).await;
    while let Some(ended) = loops.join_next().await {
        ended.map_err(|error| Failure::refused(format!("a client of the bench ended: {error}")))?;
    }
    Ok(score.sample(took))
}

async fn closed_loop(session: LinkSession, score: Arc<Score>, work: Work, frame: usize, mut dice: Dice) {
    let mut samples_us = Vec::with_capacity(SAMPLES_PER_LOCK);
    while !score.stop.load(Ordering::Relaxed) {
        let commands: Vec<KvCommand> = (0..frame).map(|_| command(&work, &mut dice)).collect();
        let sent = Instant::now();
        let answers = match &commands[..] {
            [one] => vec![session.run_with(one, work.options()).await],
            _ => session.run_all(commands).await,
        };
        if !score.measuring() {
            continue;
        }
        let mut failed = false;
        for answer in answers {
            match answer {
                Ok(_) => drop(score.commands.fetch_add(1, Ordering::Relaxed)),
                Err(error) => {
                    failed = true;
                    score.failed(&error);
                }
            }
        }
        if failed {
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        }
        samples_us.push(micros(sent.elapsed()));
        if samples_us.len() == SAMPLES_PER_LOCK {
            score.record(&mut samples_us);
        }
    }
    score.record(&mut samples_us);
}

/// `rate` commands a second, each due at its own moment.
pub async fn open(
    link: &Link,
    rate: u64,
    sync: bool,
    work: Work,
    between: impl AsyncFnMut(),
) -> Outcome<Sample> {
    let score = Score::new();
    let callers: Vec<Caller> = if sync {
        link.syncs().into_iter().map(Caller::Sync).collect()
    } else {
        (0..OPEN_SESSIONS).map(|_| Caller::Store(link.session())).collect()
    };
    let dispatcher = tokio::spawn(open_loop(callers, score.clone(), work, rate));
    let took = measure(&score, work, between).await;
    dispatcher.await.map_err(|error| Failure::refused(format!("the open loop ended: {error}")))?;
    Ok(score.sample(took))
}

async fn open_loop(callers: Vec<Caller>, score: Arc<Score>, work: Work, rate: u64) {
    let began = Instant::now();
    let mut due = 0u64;
    let mut dice = Dice(7);
    let mut flight = JoinSet::new();
    while !score.stop.load(Ordering::Relaxed) {
        let by_now =
            u64::try_from(began.elapsed().as_micros() * u128::from(rate) / 1_000_000).unwrap_or(u64::MAX);
        while due < by_now {
            while flight.len() >= OPEN_FLIGHT_MAX {
                flight.join_next().await;
            }
            let moment = began + Duration::from_micros(due.saturating_mul(1_000_000) / rate);
            let caller = callers[usize::try_from(due).unwrap_or(0) % callers.len()].clone();
            let (command, score) = (command(&work, &mut dice), score.clone());
            // Judged by when it was due, not by when it ended: what was due in the measured time is measured.
            let counts = score.measuring();
            flight.spawn(async move {
                let answer = caller.call(command, work.options()).await;
                match (answer, counts) {
                    (Ok(()), true) => {
                        score.commands.fetch_add(1, Ordering::Relaxed);
                        score.record(&mut vec![micros(moment.elapsed())]);
                    }
                    (Err(error), true) => score.failed(&error),
                    (_, false) => {}
                }
            });
            due += 1;
        }
        while flight.try_join_next().is_some() {}
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    while flight.join_next().await.is_some() {}
}

async fn measure(score: &Score, work: Work, mut between: impl AsyncFnMut()) -> Duration {
    tokio::time::sleep(work.warm_up).await;
    between().await;
    score.measuring.store(true, Ordering::Relaxed);
    let began = Instant::now();
    tokio::time::sleep(work.measure).await;
    let took = began.elapsed();
    score.measuring.store(false, Ordering::Relaxed);
    between().await;
    score.stop.store(true, Ordering::Relaxed);
    took
}

/// Writes `keys` keys once, in large frames, as fast as the cluster takes them.
pub async fn fill(
    link: &Link,
    keys: u64,
    value_bytes: usize,
    mut progress: impl FnMut(u64),
) -> Outcome<Duration> {
    const FRAME: u64 = 128;
    const FRAMES_AT_ONCE: usize = 32;
    let began = Instant::now();
    let sessions: Vec<LinkSession> = (0..FRAMES_AT_ONCE).map(|_| link.session()).collect();
    let mut flight: JoinSet<Result<u64, dwcp_client::ClientError>> = JoinSet::new();
    let (mut next, mut done) = (0, 0);
    while done < keys {
        while next < keys && flight.len() < FRAMES_AT_ONCE {
            let (from, to) = (next, (next + FRAME).min(keys));
            let session = sessions[usize::try_from(from / FRAME).unwrap_or(0) % FRAMES_AT_ONCE].clone();
            flight.spawn(async move {
                let put = |number: u64| {
                    let mut value = vec![b'v'; value_bytes];
                    let tag = number.to_le_bytes();
                    let length = tag.len().min(value.len());
                    value[..length].copy_from_slice(&tag[..length]);
                    KvCommand::put(format!("fill/{number:011}"), value)
                };
                let answers = session.run_all((from..to).map(put).collect()).await;
                answers.into_iter().collect::<Result<Vec<_>, _>>().map(|_| to - from)
            });
            next = to;
        }
        let Some(ended) = flight.join_next().await else { break };
        done += ended.map_err(|error| Failure::refused(format!("filling ended: {error}")))??;
        progress(done);
    }
    Ok(began.elapsed())
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_their_size_and_reads_their_share() {
        let work = Work {
            value_bytes: 256,
            keys: 10,
            reads_percent: 30,
            ordered: false,
            warm_up: Duration::ZERO,
            measure: Duration::ZERO,
        };
        let mut dice = Dice(1);
        let mut reads = 0;
        for _ in 0..10_000 {
            match command(&work, &mut dice) {
                KvCommand::Put(put) => assert_eq!(put.value.len(), 256),
                KvCommand::Range(_) => reads += 1,
                other => panic!("{other:?}"),
            }
        }
        assert!((2_700..3_300).contains(&reads), "{reads}");
        let tiny = Work { value_bytes: 3, ..work };
        assert!((0..100).all(|_| match command(&tiny, &mut dice) {
            KvCommand::Put(put) => put.value.len() == 3,
            _ => true,
        }));
    }
}
