//! Two threads beside the core loop: one writes snapshots, one reads their chunks for peers that fetch them.
//!
//! A snapshot of millions of keys takes seconds to write; the core goes on meanwhile and hears of the outcome as an
//! input. A full disk fails the snapshot and nothing else: the node keeps its longer log and tries again later. What
//! a chunk holds is not known here.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

use bytes::Bytes;
use dwcp_base::Sequence;
use dwcp_replica::{FrozenChunks, Input};
use dwcp_storage::{DataDir, Lsn, SnapshotInfo, SnapshotStore, StorageError};

use crate::inbox::Inbox;
use crate::metrics::Metrics;

/// Jobs that may wait for the writer. At the bound the core loop waits: it only comes to that while a whole snapshot
/// arrives faster than this disk takes it.
const WRITES_WAITING_MAX: usize = 256;
/// Reads that may wait; further ones are answered *cannot be read*, and the peer asks another donor.
const READS_WAITING_MAX: usize = 64;

pub(crate) enum Write {
    Save {
        sequence: Sequence,
        meta: Vec<u8>,
        frozen: Box<dyn FrozenChunks>,
    },
    Chunk {
        sequence: Sequence,
        index: u32,
        bytes: Bytes,
    },
    Finish {
        sequence: Sequence,
        meta: Vec<u8>,
    },
    Drop {
        sequence: Sequence,
    },
    /// The log has come this far: a disk that later shows less was rolled back.
    RaiseFloor {
        lsn: Lsn,
    },
}

#[derive(Debug)]
pub(crate) struct Read {
    pub(crate) token: u64,
    pub(crate) sequence: Sequence,
    pub(crate) index: u32,
    pub(crate) offset: u64,
    pub(crate) bytes_max: u32,
}

/// The core loop's end of both threads. Dropping it ends them; `finish` also waits.
#[derive(Debug)]
pub(crate) struct SnapshotThreads {
    writes: SyncSender<Write>,
    reads: SyncSender<Read>,
    inbox: Arc<Inbox>,
    metrics: Arc<Metrics>,
    threads: Vec<JoinHandle<()>>,
}

impl SnapshotThreads {
    pub(crate) fn start(
        dir: DataDir,
        store: Arc<SnapshotStore>,
        inbox: &Arc<Inbox>,
        metrics: &Arc<Metrics>,
    ) -> std::io::Result<Self> {
        let (writes, write_jobs) = sync_channel(WRITES_WAITING_MAX);
        let (reads, read_jobs) = sync_channel(READS_WAITING_MAX);
        let writer = Writer {
            dir,
            store: store.clone(),
            inbox: inbox.clone(),
            metrics: metrics.clone(),
            fetching: None,
            fetch_failed: false,
        };
        let reader_inbox = inbox.clone();
        let threads = vec![
            std::thread::Builder::new()
                .name("snapshot-writer".into())
                .spawn(move || writer.run(&write_jobs))?,
            std::thread::Builder::new()
                .name("snapshot-reader".into())
                .spawn(move || serve_reads(&store, &reader_inbox, &read_jobs))?,
        ];
        Ok(Self { writes, reads, inbox: inbox.clone(), metrics: metrics.clone(), threads })
    }

    pub(crate) fn write(&self, job: Write) {
        // The thread only ends when this end does.
        let _ = self.writes.send(job);
    }

    pub(crate) fn read(&self, job: Read) {
        if let Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) = self.reads.try_send(job) {
            self.metrics.chunk_reads_refused.add(1);
            self.inbox.push_disk(Input::ChunkRead { token: job.token, bytes: None });
        }
    }

    /// Lets the threads finish what they were told, and waits for them.
    pub(crate) fn finish(self) {
        let Self { writes, reads, threads, .. } = self;
        drop((writes, reads));
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a snapshot thread panicked; the snapshot it wrote stays incomplete");
            }
        }
    }
}

struct Writer {
    dir: DataDir,
    store: Arc<SnapshotStore>,
    inbox: Arc<Inbox>,
    metrics: Arc<Metrics>,
    /// The snapshot whose chunks arrive.
    fetching: Option<Sequence>,
    fetch_failed: bool,
}

impl Writer {
    fn run(mut self, jobs: &Receiver<Write>) {
        while let Ok(job) = jobs.recv() {
            match job {
                Write::Save { sequence, meta, frozen } => {
                    let outcome = self.save(sequence, &meta, &*frozen);
                    self.report(sequence, outcome);
                }
                Write::Chunk { sequence, index, bytes } => {
                    // A chunk that is not kept is missed at `Finish`, which then fails and says so.
                    if let Err(error) = self.put_fetched(sequence, index, &bytes) {
                        self.fetch_failed = true;
                        tracing::warn!(%sequence, index, %error, "a fetched chunk was not kept");
                    }
                }
                Write::Finish { sequence, meta } => {
                    let outcome = self.finish_fetched(sequence, &meta);
                    self.report(sequence, outcome);
                }
                Write::Drop { sequence } => {
                    if let Err(error) = self.store.delete(sequence.0) {
                        tracing::warn!(%sequence, %error, "an old snapshot was not removed");
                    }
                }
                Write::RaiseFloor { lsn } => {
                    if let Err(error) = self.dir.raise_floor(lsn) {
                        tracing::warn!(%error, "the manifest was not updated");
                    }
                }
            }
        }
    }

    fn report(&self, sequence: Sequence, outcome: Result<(), String>) {
        match outcome {
            Ok(()) => {
                self.metrics.snapshots_saved.add(1);
                self.inbox.push_disk(Input::SnapshotSaved { sequence });
            }
            Err(error) => {
                self.metrics.snapshots_failed.add(1);
                tracing::warn!(%sequence, error, "the snapshot was not saved; the log grows until a later one is");
                self.inbox.push_disk(Input::SnapshotFailed { sequence });
            }
        }
    }

    fn save(&self, sequence: Sequence, meta: &[u8], frozen: &dyn FrozenChunks) -> Result<(), String> {
        // What an earlier attempt left would be taken for this one's chunks.
        let left = self.store.list().map_err(|error| error.to_string())?;
        if left.iter().any(|info| info.seq == sequence.0) {
            self.store.delete(sequence.0).map_err(|error| error.to_string())?;
        }
        let written = self.write_chunks(sequence, meta, frozen);
        if written.is_err() {
            // Half a snapshot only takes the space that the log needs now.
            if let Err(error) = self.store.delete(sequence.0) {
                tracing::warn!(%sequence, %error, "an incomplete snapshot was not removed");
            }
        }
        written
    }

    fn write_chunks(&self, sequence: Sequence, meta: &[u8], frozen: &dyn FrozenChunks) -> Result<(), String> {
        let stored = |outcome: Result<(), StorageError>| outcome.map_err(|error| error.to_string());
        stored(self.store.begin(sequence.0, meta))?;
        for index in 0..frozen.chunk_count() {
            let chunk = frozen.chunk(index)?;
            stored(self.store.put_chunk(sequence.0, index, &chunk))?;
        }
        stored(self.store.finish(sequence.0))
    }

    /// Chunks come before the snapshot's metadata is known here, so it is begun under none.
    fn put_fetched(&mut self, sequence: Sequence, index: u32, bytes: &[u8]) -> Result<(), StorageError> {
        if self.fetching != Some(sequence) {
            self.store.begin(sequence.0, &[])?;
            self.fetching = Some(sequence);
            self.fetch_failed = false;
        }
        self.store.put_chunk(sequence.0, index, bytes)
    }

    fn finish_fetched(&mut self, sequence: Sequence, meta: &[u8]) -> Result<(), String> {
        let failed = std::mem::take(&mut self.fetch_failed);
        if self.fetching.take() == Some(sequence) && failed {
            // Whether the missing chunk was the last one cannot be seen from those that are there.
            return Err("a fetched chunk could not be kept; see the warning before".into());
        }
        let slot = self.meta_slot(sequence).map_err(|error| error.to_string())?;
        let slot = slot.ok_or("more snapshots are kept than this node knows of")?;
        self.store
            .put_meta(slot, &[&sequence.0.to_le_bytes(), meta].concat())
            .and_then(|()| self.store.finish(sequence.0))
            .map_err(|error| error.to_string())
    }

    /// The slot that is this snapshot's, or one whose snapshot is gone.
    fn meta_slot(&self, sequence: Sequence) -> Result<Option<&'static str>, StorageError> {
        let kept: Vec<u64> = self.store.list()?.into_iter().map(|info| info.seq).collect();
        let mut free = None;
        for slot in META_SLOTS {
            let owner = self.store.get_meta(slot)?.and_then(|value| split_meta(&value).map(|(seq, _)| seq));
            match owner {
                Some(owner) if owner == sequence.0 => return Ok(Some(slot)),
                Some(owner) if kept.contains(&owner) => {}
                _ => free = Some(slot),
            }
        }
        Ok(free)
    }
}

/// Where the metadata of fetched snapshots stands, each under its sequence. The core keeps at most two snapshots and
/// fetches one more, so a slot whose snapshot is gone is always found.
const META_SLOTS: [&str; 4] = ["fetched-0", "fetched-1", "fetched-2", "fetched-3"];

fn split_meta(value: &[u8]) -> Option<(u64, &[u8])> {
    let (sequence, meta) = value.split_first_chunk::<8>()?;
    Some((u64::from_le_bytes(*sequence), meta))
}

/// The metadata of a complete snapshot, taken here or fetched.
pub(crate) fn meta_of(store: &SnapshotStore, info: &SnapshotInfo) -> Result<Option<Vec<u8>>, StorageError> {
    if !info.meta.is_empty() {
        return Ok(Some(info.meta.clone()));
    }
    for slot in META_SLOTS {
        let value = store.get_meta(slot)?.unwrap_or_default();
        if let Some((_, meta)) = split_meta(&value).filter(|(sequence, _)| *sequence == info.seq) {
            return Ok(Some(meta.to_vec()));
        }
    }
    Ok(None)
}

fn serve_reads(store: &SnapshotStore, inbox: &Inbox, jobs: &Receiver<Read>) {
    while let Ok(job) = jobs.recv() {
        let bytes = match read_part(store, &job) {
            Ok(bytes) => Some(Bytes::from(bytes)),
            Err(error) => {
                tracing::debug!(sequence = %job.sequence, index = job.index, %error, "no chunk for a peer");
                None
            }
        };
        inbox.push_disk(Input::ChunkRead { token: job.token, bytes });
    }
}

/// Less than was asked for at the end of a chunk; nothing at or past its end.
fn read_part(store: &SnapshotStore, job: &Read) -> Result<Vec<u8>, StorageError> {
    let length = job.bytes_max as usize;
    match store.read_chunk_part(job.sequence.0, job.index, job.offset, length) {
        Err(StorageError::RangeOutside { bytes, .. }) => {
            let left = (bytes as u64).saturating_sub(job.offset);
            let length = usize::try_from(left).unwrap_or(usize::MAX).min(length);
            let offset = job.offset.min(bytes as u64);
            store.read_chunk_part(job.sequence.0, job.index, offset, length)
        }
        other => other,
    }
}
