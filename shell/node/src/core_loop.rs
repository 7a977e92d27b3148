//! The one thread that steps the replica and owns its log: take what waits, step each, settle, make durable what must
//! be, then let out what waited for it.
//!
//! A vote that leaves before it is durable can be contradicted after a crash, so everything leaves behind one sync a
//! burst, in the order the core gave it. Records that nothing waits for are synced with the next that something does, or
//! when the node has nothing else to do. If a sync fails nobody knows what is on the disk: the process aborts. What
//! messages and records say is not known here; where effects go is all this file knows.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use dwcp_base::{Micros, ReplicaId, Ticket};
use dwcp_log::MemberOrder;
use dwcp_replica::{ClientId, ClientReply, ClientRequest, Effect, Event, Input, Outbox, Replica};
use dwcp_state::{ClientFrame, SessionId, StateMachine};
use dwcp_storage::{Lsn, StorageError, Wal};
use dwcp_transport::{Class, PeerConfig, PeerId, Sent, Transport};

use crate::client::ReplySender;
use crate::clock::Clock;
use crate::events;
use crate::hinting::HintBox;
use crate::inbox::{Inbox, Item};
use crate::links::Incarnations;
use crate::logging::LIFE;
use crate::metrics::Metrics;
use crate::node::Stop;
use crate::snapshots::{Read, SnapshotThreads, Write};

/// The loop looks up at least this often, so that its age tells a stuck one from an idle one.
const SLEEP_MAX: Duration = Duration::from_secs(1);
/// How often at most the manifest is told how far the log has come.
const FLOOR_INTERVAL: Micros = Micros::from_millis(1_000);
/// A sampled frame without a result is given up after this time.
const SAMPLE_PATIENCE: Micros = Micros::from_millis(60_000);

pub(crate) struct CoreLoop<M: StateMachine> {
    me: ReplicaId,
    replica: Replica<M>,
    wal: Wal,
    snapshots: SnapshotThreads,
    inbox: Arc<Inbox>,
    transport: Arc<Transport>,
    incarnations: Arc<Incarnations>,
    hints: Arc<HintBox>,
    metrics: Arc<Metrics>,
    clock: Clock,
    outbox: Outbox,
    /// Bounded by the inbox' `clients_max`.
    clients: BTreeMap<ClientId, ReplySender>,
    /// Clients that were cut off and of which the core has not heard yet. Bounded by `clients`.
    cut_off: Vec<ClientId>,
    sample: Option<Sample>,
    floor_raised: Micros,
    /// Records were appended since the last sync.
    unsynced: bool,
}

/// One client frame whose way through consensus is timed.
pub(crate) struct Sample {
    session: SessionId,
    first: u64,
    since: Micros,
}

impl<M: StateMachine> CoreLoop<M> {
    /// `outbox` holds what recovery wants to be done.
    #[expect(
        clippy::too_many_arguments,
        reason = "each is a part the loop owns; a struct would repeat this one"
    )]
    pub(crate) fn new(
        me: ReplicaId,
        replica: Replica<M>,
        wal: Wal,
        snapshots: SnapshotThreads,
        inbox: Arc<Inbox>,
        transport: Arc<Transport>,
        incarnations: Arc<Incarnations>,
        hints: Arc<HintBox>,
        metrics: Arc<Metrics>,
        clock: Clock,
        outbox: Outbox,
    ) -> Self {
        Self {
            me,
            replica,
            wal,
            snapshots,
            inbox,
            transport,
            incarnations,
            hints,
            metrics,
            clock,
            outbox,
            clients: BTreeMap::new(),
            cut_off: Vec::new(),
            sample: None,
            floor_raised: Micros::ZERO,
            unsynced: false,
        }
    }

    /// Runs until told to stop or unable to go on.
    pub(crate) fn run(mut self) -> Stop {
        let stop = self.work();
        self.finish(stop)
    }

    fn work(&mut self) -> Stop {
        // What recovery wants to be sent and written.
        if let Err(stop) = self.carry_out_all() {
            return stop;
        }
        let mut burst = Vec::new();
        loop {
            if self.inbox.take(self.patience(), &mut burst) {
                self.transport.sink_has_room();
            }
            if burst.is_empty() && self.unsynced {
                if let Err(stop) = self.sync() {
                    return stop;
                }
                self.step(Input::Durable { through: self.durable() });
            }
            self.metrics.loops.add(1);
            if !burst.is_empty() {
                self.metrics.burst_inputs.observe(burst.len() as u64);
            }
            for client in std::mem::take(&mut self.cut_off) {
                self.step(Input::ClientGone { client });
            }
            let mut inputs = Vec::with_capacity(burst.len());
            for item in burst.drain(..) {
                match item {
                    Item::Step(input) => {
                        self.note_input(&input);
                        inputs.push(input);
                    }
                    Item::ClientOpened { client, replies } => {
                        self.clients.insert(client, replies);
                    }
                    Item::Status(answer) => {
                        // Whoever asked may have stopped waiting.
                        let _ = answer.0.send(self.replica.status(self.clock.now()));
                    }
                    Item::Stop => return Stop::Asked,
                }
            }
            self.replica.step_all(self.clock.now(), inputs, &mut self.outbox);
            if self.clock.mono() >= self.replica.next_wakeup() {
                self.step(Input::Wake);
            }
            self.step(Input::Settle);
            if let Err(stop) = self.carry_out_all() {
                return stop;
            }
        }
    }

    /// Carries out what the core wants done, tells it what became durable by that, and so on until it wants nothing more.
    fn carry_out_all(&mut self) -> Result<(), Stop> {
        while self.carry_out()? {
            self.step(Input::Durable { through: self.durable() });
            self.step(Input::Settle);
        }
        Ok(())
    }

    fn patience(&self) -> Duration {
        if !self.cut_off.is_empty() {
            return Duration::ZERO;
        }
        let until = self.replica.next_wakeup().since(self.clock.mono());
        Duration::from_micros(until.0).min(SLEEP_MAX)
    }

    fn step(&mut self, input: Input) {
        self.replica.step(self.clock.now(), input, &mut self.outbox);
    }

    fn note_input(&mut self, input: &Input) {
        match input {
            Input::ClientGone { client } => {
                self.clients.remove(client);
            }
            Input::Client { request: ClientRequest::Frame { bytes, .. }, .. } => self.sample_frame(bytes),
            _ => {}
        }
    }

    /// Persists; lets out what promises nothing that is not durable yet; syncs once if something waits for it; then carries
    /// out everything else in order. True when there was a sync.
    fn carry_out(&mut self) -> Result<bool, Stop> {
        let mut effects = self.outbox.drain();
        let mut awaited = Ticket::ZERO;
        for effect in &effects {
            match effect {
                Effect::Persist { ticket, record, prompt } => {
                    self.append(*ticket, record)?;
                    self.unsynced = true;
                    if *prompt {
                        awaited = awaited.max(*ticket);
                    }
                }
                Effect::Send { after, .. } | Effect::Reply { after, .. } => awaited = awaited.max(*after),
                // What stands for the discarded records is among those just appended.
                Effect::DiscardLog { .. } => awaited = Ticket(u64::MAX),
                Effect::SaveSnapshot { .. }
                | Effect::SaveChunk { .. }
                | Effect::FinishSnapshot { .. }
                | Effect::ReadChunk { .. }
                | Effect::DropSnapshot { .. }
                | Effect::MemberChanged { .. }
                | Effect::Event(_)
                | Effect::Halt { .. } => {}
            }
        }
        let syncs = self.unsynced && awaited > self.durable();
        if syncs {
            // A leader's entries travel while they are written (Ongaro's thesis, section 10.2.1).
            let durable = self.durable();
            let mut kept = Vec::with_capacity(effects.len());
            for effect in effects {
                match effect {
                    Effect::Send { to, class, after, bytes } if after <= durable => {
                        self.send(to, class, bytes)
                    }
                    Effect::Persist { .. } => {}
                    effect => kept.push(effect),
                }
            }
            effects = kept;
            self.sync()?;
        }
        let durable = self.durable();
        for effect in effects {
            self.carry_out_one(effect, durable)?;
        }
        Ok(syncs)
    }

    fn durable(&self) -> Ticket {
        Ticket(self.wal.durable_lsn().0 - 1)
    }

    fn carry_out_one(&mut self, effect: Effect, durable: Ticket) -> Result<(), Stop> {
        match effect {
            // Appended already.
            Effect::Persist { .. } => {}
            Effect::Send { to, class, after, bytes } => {
                assert!(after <= durable, "a message waits for {after:?}, which was never to be written");
                self.send(to, class, bytes);
            }
            Effect::Reply { client, after, reply } => {
                assert!(after <= durable, "a reply waits for {after:?}, which was never to be written");
                self.reply(client, reply);
            }
            Effect::SaveSnapshot { sequence, meta, frozen } => {
                self.snapshots.write(Write::Save { sequence, meta, frozen });
            }
            Effect::SaveChunk { sequence, index, bytes } => {
                self.snapshots.write(Write::Chunk { sequence, index, bytes });
            }
            Effect::FinishSnapshot { sequence, meta } => {
                self.snapshots.write(Write::Finish { sequence, meta });
            }
            Effect::ReadChunk { token, sequence, index, offset, bytes_max } => {
                self.snapshots.read(Read { token, sequence, index, offset, bytes_max });
            }
            Effect::DropSnapshot { sequence } => self.snapshots.write(Write::Drop { sequence }),
            Effect::DiscardLog { before } => self.discard(before)?,
            Effect::MemberChanged { order } => self.follow_member(&order),
            Effect::Event(event) => self.tell(&event),
            Effect::Halt { reason } => return Err(Stop::Halted { reason }),
        }
        Ok(())
    }

    fn append(&mut self, ticket: Ticket, record: &[u8]) -> Result<(), Stop> {
        let lsn = match self.wal.append(record) {
            Err(StorageError::BatchFull { .. }) => {
                self.sync()?;
                self.wal.append(record)
            }
            other => other,
        };
        let lsn = lsn.map_err(|error| log_failed(&error))?;
        // Both count this log's records from 1, so that one number serves for both.
        assert_eq!(lsn.0, ticket.0, "tickets count the records of the log");
        self.metrics.wal_records.add(1);
        self.metrics.wal_record_bytes.add(record.len() as u64);
        Ok(())
    }

    fn sync(&mut self) -> Result<(), Stop> {
        let start = Instant::now();
        let outcome = self.wal.sync();
        self.unsynced = false;
        let micros = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.metrics.sync_us.observe(micros);
        self.metrics.wal_bytes_used.set(self.wal.bytes_used());
        self.metrics.wal_bytes_on_disk.set(self.wal.bytes_on_disk());
        outcome.map(|_| ()).map_err(|error| log_failed(&error))
    }

    fn discard(&mut self, before: Ticket) -> Result<(), Stop> {
        self.wal.discard_before(Lsn(before.0)).map_err(|error| log_failed(&error))?;
        self.metrics.wal_bytes_used.set(self.wal.bytes_used());
        self.metrics.wal_bytes_on_disk.set(self.wal.bytes_on_disk());
        Ok(())
    }

    fn send(&self, to: ReplicaId, class: dwcp_replica::Class, bytes: Bytes) {
        let class = match class {
            dwcp_replica::Class::Vote => Class::Vote,
            dwcp_replica::Class::Order => Class::Order,
            dwcp_replica::Class::Request => Class::Request,
            dwcp_replica::Class::Bulk => Class::Bulk,
        };
        let length = bytes.len();
        // What is dropped is counted by the link and sent again by the core when it is missed.
        if self.transport.send(PeerId(to.0), class, bytes) == Sent::TooLarge {
            tracing::error!(%to, bytes = length, "a message is larger than links carry; please report this");
        }
    }

    fn reply(&mut self, client: ClientId, reply: ClientReply) {
        self.end_sample(&reply);
        let Some(replies) = self.clients.get(&client) else { return };
        if replies.send(reply).is_err() {
            self.clients.remove(&client);
            self.cut_off.push(client);
            self.metrics.clients_cut_off.add(1);
            tracing::warn!(client = client.0, "a client that does not read its replies was cut off");
            return;
        }
        self.metrics.replies.add(1);
    }

    fn follow_member(&self, order: &MemberOrder) {
        if order.id == self.me {
            return;
        }
        let addr = self.incarnations.address(order.id, &order.peer_address);
        let peer = PeerConfig { id: order.id.0, addr, pin: order.tls_key.0 };
        match self.transport.update_peer(peer) {
            Ok(()) => {
                self.incarnations.set(order.id, order.incarnation);
                self.hints.push_members(&self.replica.control().configurations.latest().members);
            }
            Err(error) => tracing::error!(
                member = %order.id, incarnation = %order.incarnation, %error,
                "the member's new keys and address cannot be used: it stays unreachable from here"
            ),
        }
    }

    fn tell(&mut self, event: &Event) {
        let now = self.clock.now();
        events::tell(event, &self.metrics, now.wall_ms);
        if matches!(event, Event::StableCheckpoint { .. })
            && now.mono.since(self.floor_raised) >= FLOOR_INTERVAL
        {
            self.floor_raised = now.mono;
            self.snapshots.write(Write::RaiseFloor { lsn: self.wal.durable_lsn() });
        }
    }

    fn sample_frame(&mut self, bytes: &Bytes) {
        let now = self.clock.mono();
        let busy = self.sample.as_ref().is_some_and(|sample| now.since(sample.since) < SAMPLE_PATIENCE);
        if busy {
            return;
        }
        if let Ok(frame) = ClientFrame::decode(bytes.clone()) {
            let (session, first) = (frame.session(), frame.sequences().start);
            self.sample = Some(Sample { session, first, since: now });
        }
    }

    fn end_sample(&mut self, reply: &ClientReply) {
        let (Some(sample), ClientReply::Executed(executed)) = (&self.sample, reply) else { return };
        if (executed.session, executed.first) == (sample.session, sample.first) {
            self.metrics.consensus_us.observe(self.clock.mono().since(sample.since).0);
            self.sample = None;
        }
    }

    /// Lets go of everything in order: no client, no link, then the disk.
    fn finish(self, stop: Stop) -> Stop {
        let Self { wal, snapshots, inbox, transport, clients, replica, .. } = self;
        inbox.close();
        drop(clients);
        transport.shutdown();
        drop(replica);
        snapshots.finish();
        if let Err(error) = wal.close() {
            tracing::warn!(%error, "the log was not marked as closed; the next start checks its end");
        }
        match &stop {
            Stop::Asked => tracing::info!(target: LIFE, "stopped"),
            Stop::Halted { reason } | Stop::Failed { reason } => {
                tracing::error!(target: LIFE, reason, "stopped")
            }
        }
        stop
    }
}

/// A full disk is a clean end: nothing that was not written has been promised. After anything else what the disk holds
/// is unknown, and no code of this process may run on it.
fn log_failed(error: &StorageError) -> Stop {
    if error.is_disk_full() {
        return Stop::Failed { reason: error.to_string() };
    }
    tracing::error!(target: LIFE, %error, "the log cannot be trusted any more: aborting");
    std::process::abort();
}
