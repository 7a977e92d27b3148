//! A replica's beginning: from nothing, or from what its disk remembers. Runs once.

use crate::admit::Clients;
use crate::config::Setup;
use crate::control::{Control, snapshot_digest};
use crate::io::Event;
use crate::pool::Pool;
use crate::replica::{MachineFactory, Outbox, Replica};
use crate::serve::Donor;
use crate::wire::{LogRecord, SNAPSHOT_FORMAT, SnapshotMeta};
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use bytes::Bytes;
use core::fmt;
use dwcp_base::{Crypto, Epoch, Hash, Now, Sequence, SettingsError, Ticket, decode};
use dwcp_pbft::{Output, Pbft, PbftSetup};
use dwcp_state::{State, StateMachine};

/// A whole, durable snapshot.
pub struct RecoveredSnapshot {
    pub sequence: Sequence,
    /// As given with `SaveSnapshot` or `FinishSnapshot`.
    pub meta: Vec<u8>,
    /// Chunks 0, 1, 2, ... in order.
    pub chunks: Box<dyn Iterator<Item = Result<Vec<u8>, String>>>,
}

impl fmt::Debug for RecoveredSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RecoveredSnapshot({:?})", self.sequence)
    }
}

/// What the disk remembers. The default is a disk on which nothing was ever written.
#[derive(Debug, Default)]
pub struct Recovery {
    /// The newest whole snapshot.
    pub snapshot: Option<RecoveredSnapshot>,
    /// Chunks of snapshots that were being fetched.
    pub partial: Vec<(Sequence, Vec<(u32, Bytes)>)>,
    /// The log's records, oldest first.
    pub records: Vec<(Ticket, Bytes)>,
    /// What the next record will get; at least one more than the last.
    pub next_ticket: Ticket,
}

/// Why a replica cannot begin. Nothing was said or written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecoverError {
    Settings(SettingsError),
    /// A record that was written whole is not one of ours.
    Record {
        ticket: Ticket,
    },
    Snapshot {
        sequence: Sequence,
        reason: String,
    },
    /// Convergent state.
    Sync {
        reason: String,
    },
}

impl fmt::Display for RecoverError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Settings(error) => write!(f, "{error}"),
            Self::Record { ticket } => write!(
                f,
                "log record {ticket} cannot be read: it was written by a newer version (upgrade), or the disk is \
                 damaged (run `dwcp member replace`)"
            ),
            Self::Snapshot { sequence, reason } => write!(
                f,
                "the snapshot at sequence {sequence} cannot be read ({reason}): the disk is damaged, run `dwcp member replace`"
            ),
            Self::Sync { reason } => f.write_str(&crate::sync::lost(reason)),
        }
    }
}

impl core::error::Error for RecoverError {}

impl<M: StateMachine> Replica<M> {
    /// Begins. With an empty `recovery` this is a replica that has never said anything.
    ///
    /// # Errors
    /// Impossible settings, or a disk whose contents make no sense.
    pub fn recover(
        setup: Setup,
        make_machine: MachineFactory<M>,
        crypto: Arc<dyn Crypto>,
        recovery: Recovery,
        now: Now,
        out: &mut Outbox,
    ) -> Result<Self, RecoverError> {
        setup.genesis.check().map_err(RecoverError::Settings)?;
        setup.settings.check().map_err(RecoverError::Settings)?;
        if let Some(sync) = &setup.sync {
            sync.check().map_err(RecoverError::Settings)?;
        }
        let cluster = setup.genesis.cluster();
        let mut pbft = Pbft::new(&PbftSetup {
            genesis: Arc::clone(&setup.genesis),
            me: setup.me,
            incarnation: setup.incarnation,
            timing: setup.settings.timing,
            history_bytes_max: setup.settings.history_bytes_max,
            pipeline_depth: setup.settings.pipeline_depth,
            crypto: Arc::clone(&crypto),
            mutants: setup.mutants,
        });
        let mut donor = Donor::default();
        let (control, state) = match recovery.snapshot {
            None => (Control::new(&setup.genesis), State::new(&setup.genesis, make_machine(), setup.mutants)),
            Some(snapshot) => {
                let sequence = snapshot.sequence;
                let wrong = |reason: String| RecoverError::Snapshot { sequence, reason };
                let (meta, control, state) = rebuild(&setup, make_machine(), snapshot).map_err(wrong)?;
                donor.prepare(meta);
                donor.saved(now, sequence);
                (control, state)
            }
        };
        let covered = control.fold.epoch();
        let remembers_from = if control.fold.segment().is_some() { covered } else { Epoch(covered.0 + 1) };
        let certificate = donor.certificate(control.executed);
        // The snapshot's own checkpoint is not executed again; what it says of the state holds all the same.
        let last_digest = certificate
            .as_ref()
            .map_or((Sequence::ZERO, Hash::ZERO), |known| (known.claim.sequence, known.claim.digest));
        pbft.start_from(control.executed, control.configurations.clone(), certificate);
        let records = recovery.records.len() as u64;
        let mut remembered: BTreeMap<Epoch, Vec<(Ticket, Bytes)>> = BTreeMap::new();
        let mut fetched = Vec::new();
        let mut convergent = crate::sync::Disk::default();
        for (ticket, bytes) in recovery.records {
            match LogRecord::read(&bytes).ok_or(RecoverError::Record { ticket })? {
                LogRecord::Root(record) => pbft.replay(ticket, record),
                // Of segments that were over by the snapshot nothing is needed.
                LogRecord::Segment { epoch, bytes } if epoch >= covered => {
                    remembered.entry(epoch).or_default().push((ticket, bytes));
                }
                LogRecord::Fetched(record) if record.epoch >= covered => fetched.push((ticket, record)),
                LogRecord::Segment { .. } | LogRecord::Fetched(_) => {}
                LogRecord::Sync { number, bytes } => convergent.remember(ticket, number, bytes),
                LogRecord::SyncSnapshot { id, part, parts, needs, bytes } => {
                    convergent.remember_part(ticket, id, (part, parts), needs, bytes);
                }
            }
        }
        let inside_view_change = !pbft.is_active();
        let bytes_at_checkpoint = control.bytes_executed;
        let mut replica = Self {
            protocol: Output::new(recovery.next_ticket),
            pbft,
            cluster,
            crypto,
            make_machine,
            live: control.fold.log(),
            control,
            state,
            segment: None,
            retired: BTreeMap::new(),
            dropped: None,
            remembered,
            early: crate::segment::Early::default(),
            bodies: BTreeMap::new(),
            body_ticket: Ticket::ZERO,
            remembers_from,
            fetch: None,
            ahead: None,
            blocked: VecDeque::new(),
            kept: VecDeque::new(),
            opening: None,
            base_seen: None,
            down: BTreeSet::new(),
            straggler_helped: BTreeMap::new(),
            found_diverged: None,
            segment_at_snapshot: (0, 0),
            closed_uncovered: 0,
            switches: crate::status::Switches::default(),
            pool: Pool::default(),
            sync: None,
            clients: Clients::default(),
            donor,
            transfer: None,
            partial: recovery.partial,
            frozen: None,
            saving: None,
            saving_epoch: (Epoch::ZERO, None),
            last_digest,
            next_tick: now.mono,
            readmitted_to: Sequence::ZERO,
            counters: BTreeMap::new(),
            last_heard: BTreeMap::new(),
            recovering: true,
            bytes_at_checkpoint,
            snapshot_wanted: false,
            diverged: false,
            halted: false,
            newborn: true,
            setup,
        };
        for (ticket, record) in fetched {
            replica.replay_fetched(ticket, record);
        }
        replica.begin_sync(convergent);
        replica.begin_segment(now, out);
        replica.pbft.replayed(now, &mut replica.protocol);
        replica.carry_out(now, out);
        replica.execute_anchored(now, out);
        replica.open_sync(now)?;
        replica.drive_sync(now, out);
        replica.recovering = false;
        // What was being fetched and is no longer ahead of us will not be asked for again.
        let executed = replica.control.executed;
        let old: Vec<_> = replica.partial.extract_if(.., |(sequence, _)| *sequence <= executed).collect();
        for (sequence, _) in old {
            replica.drop_partial(sequence, out);
        }
        replica.readmitted_to = replica.pbft.stable_sequence();
        out.event(Event::Recovered {
            view: replica.pbft.view(),
            executed: replica.control.executed,
            stable: replica.pbft.stable_sequence(),
            inside_view_change,
            records,
        });
        Ok(replica)
    }
}

fn rebuild<M: StateMachine>(
    setup: &Setup,
    machine: M,
    snapshot: RecoveredSnapshot,
) -> Result<(SnapshotMeta, Control, State<M>), String> {
    let meta: SnapshotMeta = decode(&snapshot.meta).map_err(|error| error.to_string())?;
    if meta.format != SNAPSHOT_FORMAT {
        return Err("its format is newer than this program".to_string());
    }
    if meta.certificate.claim.sequence != snapshot.sequence
        || snapshot_digest(&meta.digests) != Some(meta.certificate.claim.digest)
    {
        return Err("its digests are not those of its certificate".to_string());
    }
    let mut control: Option<Control> = None;
    let mut restorer = State::restore(&setup.genesis, machine, setup.mutants);
    let mut chunks = snapshot.chunks;
    for (index, expected) in meta.digests.iter().enumerate() {
        let bytes = chunks.next().ok_or_else(|| "a chunk is missing".to_string())??;
        match index.checked_sub(1) {
            None if Hash::of(&bytes) == *expected => {
                control = Some(decode(&bytes).map_err(|error| error.to_string())?);
            }
            None => return Err("its control chunk is damaged".to_string()),
            Some(index) => {
                let index = u32::try_from(index).map_err(|_| "it has too many chunks".to_string())?;
                restorer.chunk(index, &bytes, expected).map_err(|error| error.to_string())?;
            }
        }
    }
    let control = control.ok_or_else(|| "it has no control chunk".to_string())?;
    let state = restorer.finish().map_err(|error| error.to_string())?;
    Ok((meta, control, state))
}
