//! Clients at work: sessions of the real client library, each in a loop with one command under way, each writing down
//! what it asked, when, and what it was told. The journals are the only witness of what was acknowledged.
//!
//! The workloads are those that `check::read_back` can judge (unique puts, counters, lists), mixed with reads, deletes and
//! transactions over further keys, and with stale reads of single nodes. Half of the linearizable reads are asked of a segment's
//! leader, while there is one, and the other half ordered. Every fourth client is impatient: it gives up
//! early and goes on, so that outcomes stay unknown. Lists start afresh now and then, which bounds their length.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use check::operation::{Compare, Relation, Target};
use check::{
    Answer, ClientJournal, CommandId, History, Interval, KeyValue, Label, Operation, Outcome, Reply,
    read_back,
};
use dwcp_base::{Chance, ReplicaId};
use dwcp_client::{Believed, CallOptions, Client, ClientConfig, Receipt, Session};
use dwcp_state::kv::KvReply;
use dwcp_state::{Command, Fate};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::error::Trouble;
use crate::translate;

/// Prefix of keys that are deleted and written several at once.
pub const MIXED: &str = "mixed/";
const UNIQUE_KEYS: u64 = 64;
const COUNTERS: u64 = 24;
const LISTS: u64 = 24;
const MIXED_KEYS: u64 = 32;
/// After so many commands a client appends to lists of a new generation.
const LIST_COMMANDS_MAX: u64 = 1500;
/// Sessions that share one set of connections.
const SESSIONS_PER_CLIENT: u64 = 8;
/// What an impatient client grants, until it is asked for calm.
const IMPATIENT: Duration = Duration::from_millis(1200);
/// A node that was stopped answers no question put to it alone.
const STALE_PATIENCE: Duration = Duration::from_secs(1);
/// Where nobody answers, do not spin.
const PAUSE_UNANSWERED: Duration = Duration::from_millis(50);

/// What can be seen of the load while it runs, and what it is told.
#[derive(Debug)]
pub struct Pulse {
    clock: Instant,
    acknowledged: AtomicU64,
    unknown: AtomicU64,
    is_calm: AtomicBool,
    stop: AtomicBool,
    phase: Mutex<String>,
}

impl Pulse {
    /// Times in all journals count from now.
    #[must_use]
    pub fn start() -> Arc<Self> {
        Arc::new(Self {
            clock: Instant::now(),
            acknowledged: AtomicU64::new(0),
            unknown: AtomicU64::new(0),
            is_calm: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            phase: Mutex::new("waiting for all nodes to be ready".into()),
        })
    }

    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    pub fn unknown(&self) -> u64 {
        self.unknown.load(Ordering::Relaxed)
    }

    pub fn now_us(&self) -> u64 {
        u64::try_from(self.clock.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// What is done or waited for from now on. Whoever watches a run that takes long wants to know it.
    pub fn enter(&self, phase: impl Into<String>) {
        *self.phase.lock().unwrap_or_else(PoisonError::into_inner) = phase.into();
    }

    pub fn phase(&self) -> String {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// From now on everybody is patient.
    pub fn calm(&self) {
        self.is_calm.store(true, Ordering::Relaxed);
    }
}

/// A client that writes down whatever it asks.
#[derive(Debug)]
pub struct Scribe {
    pulse: Arc<Pulse>,
    journal: Arc<Mutex<ClientJournal>>,
    client: Client,
    session: Session,
    is_impatient: bool,
    number: u64,
    asked: u64,
}

impl Scribe {
    #[must_use]
    pub fn new(number: u64, client: &Client, pulse: &Arc<Pulse>) -> Self {
        Self {
            pulse: pulse.clone(),
            journal: Arc::new(Mutex::new(ClientJournal::new(number))),
            client: client.clone(),
            session: client.new_session(),
            is_impatient: false,
            number,
            asked: 0,
        }
    }

    pub fn journal(&self) -> Arc<Mutex<ClientJournal>> {
        self.journal.clone()
    }

    /// The label of the last answer; `None` when there was none to the last question.
    pub fn last_label(&self) -> Option<Label> {
        let journal = lock(&self.journal);
        match journal.commands.last()?.outcome {
            Outcome::Ok { label, .. } => Some(label),
            Outcome::Refused { .. } | Outcome::Unknown { .. } => None,
        }
    }

    /// Asks the cluster; `None` when there was no answer, whatever the reason.
    pub async fn ask(&mut self, operation: Operation) -> Option<Answer> {
        let command = translate::command(&operation).expect("the workload asks for what has a translation");
        let place = self.note(operation);
        let within = (self.is_impatient && !self.pulse.is_calm.load(Ordering::Relaxed)).then_some(IMPATIENT);
        let options = CallOptions { within, ..CallOptions::default() };
        // Half of what only reads is asked of whoever leads a segment, the other half ordered: neither road may be stale.
        let options = CallOptions { ordered: self.asked.is_multiple_of(2), ..options };
        let answer = if command.read_only() {
            self.session.read(&Command::Machine(command.encode()), options).await
        } else {
            let mut answers = self.session.execute_raw(vec![command.to_command()], options).await;
            answers.pop().expect("one answer for one command")
        };
        let at_us = self.pulse.now_us();
        let mut journal = lock(&self.journal);
        match answer {
            Ok(Believed { reply: bytes, receipt }) => match read(&bytes) {
                Some((revision, answer)) => {
                    journal.returned(place, at_us, Reply::new(revision, answer.clone()), label(receipt));
                    drop(journal);
                    self.pulse.acknowledged.fetch_add(1, Ordering::Relaxed);
                    return Some(answer);
                }
                // It ran and says so in words nobody knows: as good as unknown to whoever wanted the answer.
                None => journal.gave_up(place, at_us),
            },
            Err(error) if error.fate() == Fate::NotApplied => {
                journal.refused(place, at_us, error.to_string());
            }
            Err(_) => {
                journal.gave_up(place, at_us);
                self.pulse.unknown.fetch_add(1, Ordering::Relaxed);
            }
        }
        None
    }

    /// Reads one node's own state, which may be old but must never be ahead or wrong.
    async fn ask_node(&mut self, node: u8, key: &str) -> Option<Answer> {
        let operation = Operation::get_stale(key);
        let command = translate::command(&operation)?;
        let place = self.note(operation);
        let query = Command::Machine(command.encode());
        let answer = timeout(STALE_PATIENCE, self.client.query(Some(ReplicaId(node)), &query)).await;
        let at_us = self.pulse.now_us();
        let mut journal = lock(&self.journal);
        match answer.map(|answer| answer.map(|own| read(&own.reply))) {
            Ok(Ok(Some((revision, answer)))) => {
                // One node's word.
                journal.returned(place, at_us, Reply::new(revision, answer.clone()), Label::Crash);
                return Some(answer);
            }
            Ok(Ok(None)) => journal.refused(place, at_us, "unreadable"),
            Ok(Err(error)) => journal.refused(place, at_us, error.to_string()),
            Err(_) => journal.refused(place, at_us, "no answer"),
        }
        None
    }

    fn note(&mut self, operation: Operation) -> usize {
        self.asked += 1;
        let id = CommandId { session: u128::from(self.number), seq: self.asked };
        let at_us = self.pulse.now_us();
        lock(&self.journal).invoked(id, at_us, operation)
    }

    /// One record as the cluster has it; `None`: no answer.
    async fn look(&mut self, key: &str) -> Option<Option<KeyValue>> {
        match self.ask(Operation::get(key)).await? {
            Answer::Range { records, .. } => Some(records.into_iter().next()),
            _ => None,
        }
    }
}

/// What the cluster itself claims, in the judges' words.
fn label(receipt: Receipt) -> Label {
    match receipt.label {
        dwcp_client::Label::Byzantine => Label::Byzantine,
        dwcp_client::Label::Crash => Label::Crash,
    }
}

/// Reads a reply's bytes in the judges' words.
fn read(bytes: &[u8]) -> Option<(u64, Answer)> {
    let reply = KvReply::decode(bytes).ok()?;
    Some((reply.revision, translate::answer(reply.body)?))
}

fn lock(journal: &Mutex<ClientJournal>) -> std::sync::MutexGuard<'_, ClientJournal> {
    journal.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How much work.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    pub clients: u64,
    /// Mean pause between two commands of a client.
    pub think_ms: u64,
    pub seed: u64,
    /// Whether every fourth client gives up early.
    pub impatient: bool,
}

/// Clients at work.
#[derive(Debug)]
pub struct Load {
    pub pulse: Arc<Pulse>,
    clients: Vec<Client>,
    journals: Vec<Arc<Mutex<ClientJournal>>>,
    workers: Vec<JoinHandle<()>>,
}

impl Load {
    /// # Errors
    /// A configuration no client can be made of.
    pub fn start(config: &ClientConfig, work: Work, pulse: &Arc<Pulse>) -> Result<Self, Trouble> {
        let nodes = u8::try_from(config.nodes.len()).expect("at most 31");
        let (clients, journals, workers) = (Vec::new(), Vec::new(), Vec::new());
        let mut load = Self { pulse: pulse.clone(), clients, journals, workers };
        for number in 0..work.clients {
            if number % SESSIONS_PER_CLIENT == 0 {
                load.clients.push(Client::start(config.clone())?);
            }
            let shared = load.clients.last().expect("the first session makes a client");
            let mut scribe = Scribe::new(number, shared, pulse);
            scribe.is_impatient = work.impatient && number % 4 == 3;
            load.journals.push(scribe.journal());
            let chance = Chance::new(work.seed).fork(&format!("client {number}"));
            let worker = Worker { scribe, chance, nodes, think_ms: work.think_ms };
            load.workers.push(tokio::spawn(worker.run()));
        }
        Ok(load)
    }

    /// Every client finishes the command it is at. Those that do not within `patience` stay in the journals as commands
    /// without an end; how many they are is returned.
    pub async fn stop(&mut self, patience: Duration) -> usize {
        self.pulse.stop.store(true, Ordering::Relaxed);
        let until = Instant::now() + patience;
        let mut stuck = 0;
        for worker in &mut self.workers {
            match timeout(until.saturating_duration_since(Instant::now()), &mut *worker).await {
                Ok(Ok(())) => {}
                // A client that panicked is a fault of this program and must not look like a good end.
                Ok(Err(error)) => panic!("a client ended: {error}"),
                Err(_) => {
                    worker.abort();
                    stuck += 1;
                }
            }
        }
        self.workers.clear();
        stuck
    }

    /// Linearizable reads that were answered without an entry.
    pub async fn reads_by_index(&self) -> u64 {
        let mut reads = 0;
        for client in &self.clients {
            reads += client.counters().await.reads_by_index;
        }
        reads
    }

    /// What was written down so far, by these clients and by `others`.
    pub fn history(&self, others: &[Arc<Mutex<ClientJournal>>]) -> History {
        let clients = self.journals.iter().chain(others).map(|journal| lock(journal).clone()).collect();
        History { clients, replicas: Vec::new() }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.workers.iter().for_each(JoinHandle::abort);
    }
}

struct Worker {
    scribe: Scribe,
    chance: Chance,
    nodes: u8,
    think_ms: u64,
}

impl Worker {
    async fn run(mut self) {
        while !self.scribe.pulse.stop.load(Ordering::Relaxed) {
            let is_answered = match self.chance.below(100) {
                0..30 => self.put().await,
                30..50 => self.count().await,
                50..65 => self.append().await,
                65..75 => self.get().await,
                75..78 => self.range().await,
                78..88 => self.mix().await,
                _ => self.get_stale().await,
            };
            let think = Duration::from_millis(self.chance.between(0, 2 * self.think_ms));
            tokio::time::sleep(if is_answered.is_some() { think } else { think + PAUSE_UNANSWERED }).await;
        }
    }

    /// No two puts have the same value, over the whole run.
    async fn put(&mut self) -> Option<()> {
        let key = format!("unique/{:02}", self.chance.below(UNIQUE_KEYS));
        let value = self.value();
        let want_prev = self.chance.per_mille(250);
        let put = if want_prev { Operation::put_prev(key, value) } else { Operation::put(key, value) };
        self.scribe.ask(put).await.map(drop)
    }

    async fn count(&mut self) -> Option<()> {
        let key = format!("counter/{:02}", self.chance.below(COUNTERS));
        let seen = self.scribe.look(&key).await?;
        self.scribe.ask(read_back::increment(key.as_bytes(), seen.as_ref())).await.map(drop)
    }

    async fn append(&mut self) -> Option<()> {
        let generation = self.scribe.asked / LIST_COMMANDS_MAX;
        let key = format!("append/{generation:03}/{:02}", self.chance.below(LISTS));
        let seen = self.scribe.look(&key).await?;
        let tag = self.value();
        self.scribe.ask(read_back::append(key.as_bytes(), seen.as_ref(), &tag)).await.map(drop)
    }

    async fn get(&mut self) -> Option<()> {
        let key = self.any_key();
        self.scribe.look(&key).await.map(drop)
    }

    async fn range(&mut self) -> Option<()> {
        let over = Interval::between("counter/", "counter0");
        self.scribe.ask(Operation::range(over)).await.map(drop)
    }

    async fn get_stale(&mut self) -> Option<()> {
        let node = u8::try_from(self.chance.below(u64::from(self.nodes))).expect("at most 31");
        let key = self.any_key();
        self.scribe.ask_node(node, &key).await.map(drop)
    }

    /// Writes and deletes of two keys at once, under a condition that holds about half the time.
    async fn mix(&mut self) -> Option<()> {
        let (one, two) = (self.mixed_key(), self.mixed_key());
        if one == two || self.chance.per_mille(300) {
            return self.scribe.ask(Operation::delete(one)).await.map(drop);
        }
        let absent =
            Compare { over: Interval::key(&*one), relation: Relation::Equal, target: Target::Version(0) };
        let operation = Operation::Txn {
            compares: vec![absent],
            then: vec![Operation::put(&*one, self.value()), Operation::put(&*two, self.value())],
            otherwise: vec![Operation::get(&*two), Operation::delete(one)],
        };
        self.scribe.ask(operation).await.map(drop)
    }

    fn mixed_key(&mut self) -> String {
        format!("{MIXED}{:02}", self.chance.below(MIXED_KEYS))
    }

    fn any_key(&mut self) -> String {
        match self.chance.below(3) {
            0 => format!("unique/{:02}", self.chance.below(UNIQUE_KEYS)),
            1 => format!("counter/{:02}", self.chance.below(COUNTERS)),
            _ => self.mixed_key(),
        }
    }

    /// Never used twice: the number of the command that will carry it, and a letter of its own.
    fn value(&mut self) -> String {
        let salt = char::from(b'a' + u8::try_from(self.chance.below(26)).expect("a letter"));
        format!("{}.{}{salt}", self.scribe.number, self.scribe.asked + 1)
    }
}
