//! Two threads beside the core loop: one writes snapshots, one reads their chunks for peers that fetch them.
//!
//! A snapshot of millions of keys takes seconds to write; the core goes on meanwhile and hears of the outcome as an
//! input. Both step back behind the core where processors are few: nobody waits for a snapshot, and everybody for a vote.
//! For the same reason the writer takes its time with the disk, which the log needs, and its turn among the replicas: all
//! of them come to a checkpoint at one moment, and a quorum of slow disks makes a slow cluster.
//! A full disk fails the snapshot and nothing else: the node keeps its longer log and tries again later. What a chunk
//! holds is not known here.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use dwcp_base::{ReplicaId, Sequence};
use dwcp_replica::{FrozenChunks, Input, READS_MAX};
use dwcp_storage::{DataDir, Lsn, SnapshotInfo, SnapshotStore, StorageError};

use crate::inbox::Inbox;
use crate::metrics::Metrics;

/// Jobs that may wait for the writer. At the bound the core loop waits: it only comes to that while a whole snapshot
/// arrives faster than this disk takes it.
const WRITES_WAITING_MAX: usize = 256;
/// Chunks kept in memory while peers fetch them part by part, in number and in bytes; the newest is always kept.
const CHUNKS_KEPT_MAX: usize = 16;
const CHUNKS_KEPT_BYTES_MAX: usize = 32 << 20;
/// A pause between two chunks is as long as the first took to write: half of the disk's time is the log's.
const PAUSE_MAX: Duration = Duration::from_millis(50);
/// Replica 0 writes at once, 1 when 0 should be done, by the time it took itself the last time, and so on.
const TURN_MAX: Duration = Duration::from_millis(500);
/// How far these threads step back, in the units of `nice`.
#[cfg(target_os = "linux")]
const NICE: i32 = 10;

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
        me: ReplicaId,
    ) -> std::io::Result<Self> {
        let (writes, write_jobs) = sync_channel(WRITES_WAITING_MAX);
        let (reads, read_jobs) = sync_channel(READS_MAX);
        let writer = Writer {
            jobs: Jobs { coming: write_jobs, come: VecDeque::new() },
            turn: u32::from(me.0),
            took: Duration::ZERO,
            dir,
            store: store.clone(),
            inbox: inbox.clone(),
            metrics: metrics.clone(),
            fetching: None,
            fetch_failed: false,
        };
        let (reader_inbox, reader_metrics) = (inbox.clone(), metrics.clone());
        let threads = vec![
            std::thread::Builder::new().name("snapshot-writer".into()).spawn(move || {
                step_back();
                writer.run();
            })?,
            std::thread::Builder::new().name("snapshot-reader".into()).spawn(move || {
                step_back();
                serve_reads(&store, &reader_inbox, &reader_metrics, &read_jobs);
            })?,
        ];
        Ok(Self { writes, reads, inbox: inbox.clone(), metrics: metrics.clone(), threads })
    }

    pub(crate) fn write(&self, job: Write) {
        // The thread only ends when this end does.
        let _ = self.writes.send(job);
    }

    pub(crate) fn read(&self, job: Read) {
        // The core has no more than fit under way: only a reader that is gone takes none.
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

/// What is to be written, in order.
struct Jobs {
    coming: Receiver<Write>,
    /// Came during a pause, which it ended: at most one.
    come: VecDeque<Write>,
}

impl Jobs {
    /// `None` once nobody can send any more.
    fn next(&mut self) -> Option<Write> {
        self.come.pop_front().or_else(|| self.coming.recv().ok())
    }

    /// Lets time pass while nothing else is to be done.
    fn pause(&mut self, time: Duration) {
        if !self.come.is_empty() {
            return;
        }
        match self.coming.recv_timeout(time) {
            Ok(job) => self.come.push_back(job),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
        }
    }
}

struct Writer {
    jobs: Jobs,
    /// How many replicas write before this one.
    turn: u32,
    /// How long the last snapshot took.
    took: Duration,
    dir: DataDir,
    store: Arc<SnapshotStore>,
    inbox: Arc<Inbox>,
    metrics: Arc<Metrics>,
    /// The snapshot whose chunks arrive.
    fetching: Option<Sequence>,
    fetch_failed: bool,
}

impl Writer {
    fn run(mut self) {
        while let Some(job) = self.jobs.next() {
            match job {
                Write::Save { sequence, meta, frozen } => {
                    self.jobs.pause(self.took.min(TURN_MAX) * self.turn);
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

    fn save(&mut self, sequence: Sequence, meta: &[u8], frozen: &dyn FrozenChunks) -> Result<(), String> {
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

    fn write_chunks(
        &mut self,
        sequence: Sequence,
        meta: &[u8],
        frozen: &dyn FrozenChunks,
    ) -> Result<(), String> {
        let stored = |outcome: Result<(), StorageError>| outcome.map_err(|error| error.to_string());
        let begun = Instant::now();
        stored(self.store.begin(sequence.0, meta))?;
        for index in 0..frozen.chunk_count() {
            let begun = Instant::now();
            let chunk = frozen.chunk(index)?;
            stored(self.store.put_chunk(sequence.0, index, &chunk))?;
            self.jobs.pause(begun.elapsed().min(PAUSE_MAX));
        }
        stored(self.store.finish(sequence.0))?;
        self.took = begun.elapsed();
        Ok(())
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

/// Lets the core's thread go first. Best effort: a system that refuses only shares the processor more evenly.
fn step_back() {
    #[cfg(target_os = "linux")]
    {
        // On Linux a thread's id names that thread alone.
        let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), NICE);
    }
}

fn serve_reads(store: &SnapshotStore, inbox: &Inbox, metrics: &Metrics, jobs: &Receiver<Read>) {
    let mut kept = KeptChunks::default();
    while let Ok(job) = jobs.recv() {
        let bytes = match kept.part(store, &job) {
            Ok(bytes) => Some(bytes),
            Err(error) => {
                metrics.chunk_reads_refused.add(1);
                tracing::debug!(sequence = %job.sequence, index = job.index, %error, "no chunk for a peer");
                None
            }
        };
        inbox.push_disk(Input::ChunkRead { token: job.token, bytes });
    }
}

/// The chunks read last, oldest first. A peer asks for a chunk in many parts, and the store verifies a chunk as a whole.
#[derive(Debug, Default)]
struct KeptChunks {
    /// At most `CHUNKS_KEPT_MAX` and `CHUNKS_KEPT_BYTES_MAX`, but for the newest.
    chunks: VecDeque<((Sequence, u32), Bytes)>,
    bytes: usize,
}

impl KeptChunks {
    /// Less than was asked for at the end of a chunk; nothing at or past its end.
    fn part(&mut self, store: &SnapshotStore, job: &Read) -> Result<Bytes, StorageError> {
        let chunk = self.chunk(store, (job.sequence, job.index))?;
        let from = usize::try_from(job.offset).unwrap_or(usize::MAX).min(chunk.len());
        let to = from.saturating_add(job.bytes_max as usize).min(chunk.len());
        let part = chunk.slice(from..to);
        // Who asks past the end takes nothing, and nothing from others either.
        if to == chunk.len() && (from < to || chunk.is_empty()) {
            self.forget((job.sequence, job.index));
        }
        Ok(part)
    }

    fn chunk(&mut self, store: &SnapshotStore, name: (Sequence, u32)) -> Result<Bytes, StorageError> {
        if let Some((_, chunk)) = self.chunks.iter().find(|(kept, _)| *kept == name) {
            return Ok(chunk.clone());
        }
        let chunk = Bytes::from(store.read_chunk(name.0.0, name.1)?);
        self.bytes += chunk.len();
        self.chunks.push_back((name, chunk.clone()));
        while self.chunks.len() > 1
            && (self.chunks.len() > CHUNKS_KEPT_MAX || self.bytes > CHUNKS_KEPT_BYTES_MAX)
        {
            let (oldest, _) = self.chunks[0];
            self.forget(oldest);
        }
        Ok(chunk)
    }

    fn forget(&mut self, name: (Sequence, u32)) {
        if let Some(place) = self.chunks.iter().position(|(kept, _)| *kept == name)
            && let Some((_, chunk)) = self.chunks.remove(place)
        {
            self.bytes -= chunk.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(index: u32, offset: u64) -> Read {
        Read { token: 0, sequence: Sequence(7), index, offset, bytes_max: 1 << 20 }
    }

    fn store_of(dir: &std::path::Path, chunks: &[Vec<u8>]) -> SnapshotStore {
        let store = SnapshotStore::open(&dir.join("snapshots")).expect("an empty directory");
        store.begin(7, b"meta").expect("begun");
        for (index, chunk) in (0..).zip(chunks) {
            store.put_chunk(7, index, chunk).expect("put");
        }
        store.finish(7).expect("whole");
        store
    }

    #[test]
    fn parts_put_together_are_the_chunk_and_end_with_a_short_one() {
        let dir = tempfile::tempdir().expect("a directory");
        let exact = vec![3; 2 << 20];
        let longer = (0..(2 << 20) + 5).map(|byte| byte as u8).collect::<Vec<_>>();
        let store = store_of(dir.path(), &[exact.clone(), longer.clone(), vec![]]);
        let mut kept = KeptChunks::default();
        let mut whole = |index| {
            let mut got = Vec::new();
            loop {
                let part = kept.part(&store, &read(index, got.len() as u64)).expect("it is there");
                got.extend_from_slice(&part);
                if part.len() < 1 << 20 {
                    return got;
                }
            }
        };
        assert_eq!((whole(0), whole(1), whole(2)), (exact, longer, vec![]));
        assert!(kept.part(&store, &read(0, u64::MAX)).expect("past the end").is_empty());
        assert!(kept.part(&store, &read(9, 0)).is_err(), "no such chunk");
    }

    #[test]
    fn a_pause_ends_when_something_is_to_be_done_or_nobody_is_left_and_keeps_the_order() {
        let hour = Duration::from_secs(3600);
        let (jobs, coming) = sync_channel(4);
        let mut waiting = Jobs { coming, come: VecDeque::new() };
        let sequence = |job: Option<Write>| match job {
            Some(Write::Drop { sequence }) => sequence.0,
            _ => 0,
        };
        for number in 1..=3 {
            jobs.send(Write::Drop { sequence: Sequence(number) }).expect("there is room");
        }
        waiting.pause(hour);
        waiting.pause(hour);
        assert_eq!(waiting.come.len(), 1, "what has come already is reason enough");
        assert_eq!([sequence(waiting.next()), sequence(waiting.next())], [1, 2]);
        drop(jobs);
        assert_eq!(sequence(waiting.next()), 3);
        waiting.pause(hour);
        assert_eq!(sequence(waiting.next()), 0, "a node that stops does not wait for turns");
    }

    #[test]
    fn what_is_kept_is_bounded_and_goes_when_its_end_was_sent() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = store_of(dir.path(), &vec![vec![1; 3 << 20]; 20]);
        let mut kept = KeptChunks::default();
        for index in 0..20 {
            kept.part(&store, &read(index, 0)).expect("it is there");
            assert!(kept.chunks.len() <= CHUNKS_KEPT_MAX && kept.bytes <= CHUNKS_KEPT_BYTES_MAX);
            assert_eq!(kept.bytes, kept.chunks.iter().map(|(_, chunk)| chunk.len()).sum::<usize>());
        }
        let held = kept.chunks.len();
        kept.part(&store, &read(19, u64::MAX)).expect("nothing past the end");
        assert_eq!(kept.chunks.len(), held);
        kept.part(&store, &read(19, 2 << 20)).expect("its last part");
        assert_eq!(kept.chunks.len(), held - 1);
    }
}
