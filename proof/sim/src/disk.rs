//! One replica's disk: a write-ahead log whose records count once a sync has completed, and snapshots.
//!
//! A crash keeps what was synced and any prefix of what was not; the write that was under way may be cut at any byte. A
//! lying disk reports syncs that did not happen. A flipped bit within the synced part is damage. What a start makes of
//! either is not decided here: records live as records while the process does, but what a crash cut, a bit struck or a
//! start reads goes through the real store's writer and scanner (`image`), and its word is held against what was written.

use crate::image::{Image, Scanned};
use bytes::Bytes;
use dwcp_base::{Chance, Sequence, Ticket};
use dwcp_storage::StorageError;
use std::collections::{BTreeMap, VecDeque};

/// Bytes of the log's end that are framed where nothing but the end is struck. A whole log would say no more.
const STRETCH_BYTES: usize = 16 << 10;
/// Batches of the same; each takes a page at least.
const STRETCH_BATCHES: usize = 8;
/// Share of logs whose files had a life before.
const RECYCLED_PM: u64 = 250;

/// A complete snapshot.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub meta: Vec<u8>,
    pub chunks: Vec<Vec<u8>>,
}

/// A snapshot that is being fetched.
pub type Partial = BTreeMap<u32, Bytes>;

/// Chunks as they are read, or why one cannot be.
pub type ReadChunks = Vec<Result<Vec<u8>, String>>;

#[derive(Debug, Default)]
pub struct Disk {
    /// Records in order of ticket.
    log: VecDeque<(Ticket, Bytes)>,
    next_ticket: u64,
    /// Records with tickets up to this one survive a crash.
    durable: u64,
    /// What the disk claims; above `durable` only when it lies.
    claimed: u64,
    pub snapshots: BTreeMap<Sequence, Snapshot>,
    pub partial: BTreeMap<Sequence, Partial>,
    /// The last ticket of each batch that a sync made durable, ascending; those of records that are still there.
    batches: VecDeque<u64>,
    /// The end of the log as bytes, and the records that must be read from it, since a crash or a flip touched them.
    struck: Option<(Image, Vec<Bytes>)>,
    pub flipped: Option<Flip>,
    pub full: bool,
    pub slow: bool,
    /// Chance per sync that it is only claimed.
    pub lying_pm: u64,
}

/// Where a bit flipped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Flip {
    Log,
    /// What the store now holds of a chunk of the newest snapshot, checksum included.
    Chunk {
        sequence: Sequence,
        index: u32,
        sealed: Vec<u8>,
    },
}

/// What a crash did to a disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Damage {
    pub records_lost: u64,
    /// A write was cut off in the middle.
    pub torn: bool,
    /// The store warns of that.
    pub warned: bool,
    /// Records were lost whose sync had been reported done.
    pub broke_promise: bool,
    /// The store reads something else than what was written.
    pub wrong: Option<String>,
}

/// What the store says of a log when a process starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opened {
    Sound,
    /// It refuses a damaged disk, as it should.
    Refused(String),
    /// It refuses a sound disk, or takes a damaged one, or reads other records than were written.
    Wrong(String),
}

/// Holds what the store found against what it should find.
#[must_use]
pub fn judge(is_damaged: bool, written: &[Bytes], found: &Result<Scanned, StorageError>) -> Opened {
    match found {
        Err(refusal) if is_damaged => Opened::Refused(refusal.to_string()),
        Err(refusal) => Opened::Wrong(format!("a sound disk is refused: {refusal}")),
        Ok(_) if is_damaged => Opened::Wrong("a damaged disk starts all the same".into()),
        Ok(scanned) => {
            match scanned.records.iter().zip(written).position(|(read, written)| read != written) {
                None if scanned.records.len() == written.len() => Opened::Sound,
                None => {
                    let (read, written) = (scanned.records.len(), written.len());
                    Opened::Wrong(format!("{read} records are read where {written} were written"))
                }
                Some(at) => Opened::Wrong(format!("record {at} of the log's end is read as another")),
            }
        }
    }
}

impl Disk {
    #[must_use]
    pub fn new() -> Self {
        Self { next_ticket: 1, ..Self::default() }
    }

    /// # Panics
    /// When the core skips or repeats a ticket.
    pub fn append(&mut self, ticket: Ticket, record: Vec<u8>) {
        assert_eq!(ticket.0, self.next_ticket, "tickets count up by one");
        self.next_ticket += 1;
        self.log.push_back((ticket, Bytes::from(record)));
    }

    #[must_use]
    pub fn last_ticket(&self) -> Ticket {
        Ticket(self.next_ticket - 1)
    }

    /// The ticket whose sync was last reported done.
    #[must_use]
    pub fn claimed(&self) -> Ticket {
        Ticket(self.claimed)
    }

    /// A sync of everything up to `ticket` ends.
    pub fn sync(&mut self, ticket: Ticket, chance: &mut Chance) {
        let lies = self.lying_pm > 0 && chance.per_mille(self.lying_pm);
        if !lies && ticket.0 > self.durable {
            self.durable = ticket.0;
            self.batches.push_back(ticket.0);
        }
        self.claimed = self.claimed.max(ticket.0);
    }

    pub fn discard(&mut self, before: Ticket) {
        while self.log.front().is_some_and(|(ticket, _)| *ticket < before) {
            self.log.pop_front();
        }
        while self.batches.front().is_some_and(|last| *last < before.0) {
            self.batches.pop_front();
        }
    }

    /// The power fails. `chance` draws what is lost, `bytes` how it looks.
    pub fn crash(&mut self, torn_pm: u64, chance: &mut Chance, bytes: &mut Chance) -> Damage {
        let last = self.next_ticket - 1;
        let unsynced = last - self.durable;
        let kept = chance.below(unsynced + 1);
        let survives = self.durable + kept;
        let torn = survives < last && chance.per_mille(torn_pm);
        self.cut(Ticket(survives), torn, bytes)
    }

    /// The power fails: records up to `survives` were written, the rest was not, or was being written when it was cut.
    pub fn cut(&mut self, survives: Ticket, torn: bool, bytes: &mut Chance) -> Damage {
        let (last, survives) = (self.next_ticket - 1, survives.0);
        let behind = self.log.partition_point(|(ticket, _)| ticket.0 <= survives);
        let cut: Vec<Bytes> = self.log.drain(behind..).map(|(_, record)| record).collect();
        self.next_ticket = survives + 1;
        let mut damage = Damage {
            records_lost: last - survives,
            broke_promise: survives < self.claimed,
            ..Damage::default()
        };
        if survives > self.durable {
            self.batches.push_back(survives);
        }
        self.durable = survives;
        self.claimed = survives;
        self.struck = None;
        if torn {
            let whole = self.stretch(STRETCH_BYTES, STRETCH_BATCHES);
            let written = whole.concat();
            let mut image = self.image([whole, vec![cut]].concat(), bytes);
            damage.torn = image.tear(bytes);
            let found = image.scan();
            damage.warned = found.as_ref().is_ok_and(|scanned| scanned.torn);
            if let Opened::Wrong(text) = judge(false, &written, &found) {
                damage.wrong = Some(text);
            }
            self.struck = Some((image, written));
        }
        damage
    }

    /// Batches from the end of the log, as many as fit.
    fn stretch(&self, bytes_max: usize, batches_max: usize) -> Vec<Vec<Bytes>> {
        let mut stretch = Vec::new();
        let (mut end, mut bytes) = (self.log.len(), 0);
        for at in (0..self.batches.len()).rev() {
            if stretch.len() == batches_max || (bytes > bytes_max && stretch.len() > 1) {
                break;
            }
            let before = at.checked_sub(1).map_or(0, |before| self.batches[before]);
            let begin = self.log.partition_point(|(ticket, _)| ticket.0 <= before);
            let batch: Vec<Bytes> = self.log.range(begin..end).map(|(_, record)| record.clone()).collect();
            end = begin;
            bytes += batch.iter().map(Bytes::len).sum::<usize>();
            if !batch.is_empty() {
                stretch.push(batch);
            }
        }
        stretch.reverse();
        stretch
    }

    fn image(&self, batches: Vec<Vec<Bytes>>, bytes: &mut Chance) -> Image {
        let recycled = bytes.per_mille(RECYCLED_PM);
        Image::write(&batches, recycled, Chance::new(bytes.next_u64()))
    }

    /// A drawn bit of what was synced flips while nobody looks.
    pub fn flip(&mut self, chunk_pm: u64, bytes: &mut Chance) {
        if bytes.per_mille(chunk_pm)
            && let Some((sequence, snapshot)) = self.snapshots.last_key_value()
            && !snapshot.chunks.is_empty()
        {
            let index = u32::try_from(bytes.below(snapshot.chunks.len() as u64)).expect("few chunks");
            let mut sealed = seal(*sequence, index, &snapshot.chunks[index as usize]);
            let bit = usize::try_from(bytes.below(sealed.len() as u64 * 8)).expect("it is an index");
            sealed[bit / 8] ^= 1 << (bit % 8);
            self.flipped = Some(Flip::Chunk { sequence: *sequence, index, sealed });
            return;
        }
        // The whole log, or only its end could be struck.
        let whole = self.stretch(usize::MAX, usize::MAX);
        let written = whole.concat();
        let mut image = self.image(whole, bytes);
        image.flip(bytes);
        self.struck = Some((image, written));
        self.flipped = Some(Flip::Log);
    }

    /// A process starts: the store opens the log.
    pub fn open(&mut self, bytes: &mut Chance) -> Opened {
        let (image, written) = self.struck.take().unwrap_or_else(|| {
            let whole = self.stretch(STRETCH_BYTES, STRETCH_BATCHES);
            let written = whole.concat();
            (self.image(whole, bytes), written)
        });
        judge(self.flipped == Some(Flip::Log), &written, &image.scan())
    }

    /// The damage that no checksum notices: a record of the log becomes another, and is sealed anew.
    #[cfg(test)]
    fn reseal(&mut self) {
        let whole = self.stretch(usize::MAX, usize::MAX);
        let written = whole.concat();
        let mut altered = whole;
        let batch = altered.first_mut().expect("something was synced");
        batch[0] = batch[0].iter().map(|byte| byte ^ 1).collect();
        self.struck = Some((Image::write(&altered, false, Chance::new(1)), written));
    }

    /// The chunks of the newest snapshot as the store gives them: those whose checksum holds.
    pub fn newest(&self) -> Option<(Sequence, &Snapshot, ReadChunks)> {
        let (sequence, snapshot) = self.snapshots.last_key_value()?;
        let read = |(index, chunk): (u32, &Vec<u8>)| {
            let sealed = match &self.flipped {
                Some(Flip::Chunk { sequence: of, index: at, sealed }) if (*of, *at) == (*sequence, index) => {
                    sealed.clone()
                }
                _ => seal(*sequence, index, chunk),
            };
            let opened = dwcp_storage::row::read_chunk(sequence.0, index, &sealed).map(<[u8]>::to_vec);
            opened.ok_or_else(|| format!("chunk {index} does not match its checksum"))
        };
        Some((*sequence, snapshot, (0..).zip(&snapshot.chunks).map(read).collect()))
    }

    /// What the log holds, oldest first.
    pub fn records(&self) -> Vec<(Ticket, Bytes)> {
        self.log.iter().cloned().collect()
    }

    #[must_use]
    pub fn next_ticket(&self) -> Ticket {
        Ticket(self.next_ticket)
    }

    #[must_use]
    pub fn log_len(&self) -> usize {
        self.log.len()
    }

    pub fn save_chunk(&mut self, sequence: Sequence, index: u32, bytes: Bytes) {
        self.partial.entry(sequence).or_default().insert(index, bytes);
    }

    /// A fetched snapshot becomes a whole one.
    pub fn finish(&mut self, sequence: Sequence, meta: Vec<u8>) {
        let chunks = self.partial.remove(&sequence).unwrap_or_default();
        let chunks = chunks.into_values().map(|bytes| bytes.to_vec()).collect();
        self.snapshots.insert(sequence, Snapshot { meta, chunks });
    }

    pub fn drop_snapshot(&mut self, sequence: Sequence) {
        self.snapshots.remove(&sequence);
        self.partial.remove(&sequence);
    }

    pub fn read_chunk(&self, sequence: Sequence, index: u32, offset: u64, bytes_max: u32) -> Option<Bytes> {
        let chunk = self.snapshots.get(&sequence)?.chunks.get(usize::try_from(index).ok()?)?;
        let from = usize::try_from(offset).ok()?.min(chunk.len());
        let to = from.saturating_add(usize::try_from(bytes_max).ok()?).min(chunk.len());
        Some(Bytes::copy_from_slice(&chunk[from..to]))
    }
}

fn seal(sequence: Sequence, index: u32, chunk: &[u8]) -> Vec<u8> {
    dwcp_storage::row::seal_chunk(sequence.0, index, chunk)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(count: u64) -> Disk {
        let mut disk = Disk::new();
        (1..=count).for_each(|ticket| disk.append(Ticket(ticket), vec![7]));
        disk
    }

    #[test]
    fn a_crash_keeps_what_was_synced_and_at_most_a_prefix_of_the_rest() {
        for seed in 0..50 {
            let mut chance = Chance::new(seed);
            let mut disk = written(10);
            disk.sync(Ticket(4), &mut chance);
            let damage = disk.crash(500, &mut chance, &mut Chance::new(seed));
            let last = disk.last_ticket().0;
            assert!((4..=10).contains(&last));
            assert_eq!(damage.records_lost, 10 - last);
            assert!(!damage.broke_promise);
            assert_eq!(damage.wrong, None);
            assert_eq!(disk.open(&mut Chance::new(seed)), Opened::Sound);
            assert!(disk.records().iter().map(|(ticket, _)| ticket.0).eq(1..=last));
            disk.append(Ticket(last + 1), vec![8]);
        }
    }

    #[test]
    fn a_lying_disk_loses_what_it_claimed_and_is_found_out() {
        let mut chance = Chance::new(1);
        let mut disk = written(10);
        disk.lying_pm = 1000;
        disk.sync(Ticket(10), &mut chance);
        assert_eq!(disk.claimed(), Ticket(10));
        let broke = (0..20).any(|seed| {
            let mut disk = written(10);
            disk.lying_pm = 1000;
            let mut chance = Chance::new(seed);
            disk.sync(Ticket(10), &mut chance);
            disk.crash(0, &mut chance, &mut Chance::new(seed)).broke_promise
        });
        assert!(broke);
    }

    /// Ten records in five batches.
    fn synced() -> Disk {
        let mut disk = Disk::new();
        for ticket in 1..=10 {
            disk.append(Ticket(ticket), vec![7; 20]);
            if ticket % 2 == 0 {
                disk.sync(Ticket(ticket), &mut Chance::new(1));
            }
        }
        disk
    }

    #[test]
    fn a_cut_write_takes_its_batch_and_nothing_else() {
        let mut told = 0;
        for seed in 0..200 {
            let mut bytes = Chance::new(seed);
            let mut disk = synced();
            (11..=14).for_each(|ticket| disk.append(Ticket(ticket), vec![8; 300]));
            let damage = disk.cut(Ticket(11), true, &mut bytes);
            assert!(damage.torn && damage.records_lost == 3, "seed {seed}: {damage:?}");
            assert_eq!(damage.wrong, None);
            told += u64::from(damage.warned);
            assert_eq!(disk.open(&mut bytes), Opened::Sound);
            assert_eq!(disk.next_ticket(), Ticket(12));
        }
        assert!(told > 100, "{told}");
    }

    #[test]
    fn a_flipped_bit_is_refused_in_the_log_and_in_a_chunk() {
        for seed in 0..200 {
            let mut bytes = Chance::new(seed);
            let mut disk = synced();
            disk.snapshots
                .insert(Sequence(4), Snapshot { meta: vec![], chunks: vec![vec![1; 40], vec![2; 9]] });
            let (.., sound) = disk.newest().expect("a snapshot");
            assert!(sound.iter().all(Result::is_ok));
            disk.flip(500, &mut bytes);
            let opened = disk.open(&mut bytes);
            let (.., chunks) = disk.newest().expect("a snapshot");
            let bad = chunks.iter().filter(|chunk| chunk.is_err()).count();
            match disk.flipped {
                Some(Flip::Log) => assert!(matches!(opened, Opened::Refused(_)) && bad == 0, "{opened:?}"),
                Some(Flip::Chunk { .. }) => assert_eq!((opened, bad), (Opened::Sound, 1)),
                None => panic!("nothing flipped"),
            }
        }
    }

    #[test]
    fn a_record_sealed_anew_passes_the_store_and_not_the_judge() {
        let mut disk = synced();
        disk.reseal();
        let (image, written) = disk.struck.as_ref().expect("it was struck");
        let found = image.scan();
        assert!(found.as_ref().is_ok_and(|found| found.records.len() == written.len()), "{found:?}");
        let Opened::Wrong(text) = judge(true, written, &found) else { panic!("it is damaged") };
        assert!(text.contains("starts all the same"), "{text}");
        let Opened::Wrong(text) = judge(false, written, &found) else { panic!("it reads otherwise") };
        assert!(text.contains("record 0"), "{text}");
        // And the other way round: what is refused must have been damaged.
        disk.flip(0, &mut Chance::new(1));
        let (image, written) = disk.struck.as_ref().expect("it was struck");
        let Opened::Wrong(text) = judge(false, written, &image.scan()) else { panic!("it says it is sound") };
        assert!(text.contains("sound disk is refused"), "{text}");
    }

    /// A bit flips in a running cluster; what the run finds. `seal`: no checksum notices.
    fn cluster_with_a_flip(chunk_pm: u64, seal: bool) -> (crate::coverage::Coverage, Vec<String>) {
        crate::runner::quiet_panics();
        let mut dials = crate::dials::Profile::named("calm").expect("a profile").draw(2, 32);
        (dials.n, dials.f, dials.mode, dials.chunk_flip_pm) = (4, 1, 0, chunk_pm);
        (dials.checkpoint_interval, dials.snapshot_log_bytes, dials.convergent_ms) = (4, 65_536, 0);
        (dials.think_ms, dials.value_bytes_max) = (40, 3_000);
        let mut world = crate::world::World::new(2, &dials, dwcp_base::Mutants::default(), false);
        while world.now_us < 1_500_000 || (chunk_pm > 0 && world.nodes[2].disk.snapshots.is_empty()) {
            assert!(world.advance() && !world.in_calm(), "no snapshot in time");
        }
        world.flip_bit(2);
        if seal {
            world.nodes[2].disk.reseal();
        }
        world.run_to_end();
        let report = world.report();
        (report.coverage, report.found.into_iter().map(|found| found.text).collect())
    }

    #[test]
    fn a_cluster_replaces_whom_a_flipped_bit_stops_and_a_run_fails_where_it_does_not_stop_him() {
        for (chunk_pm, chunks) in [(0, 0), (1_000, 1)] {
            let (coverage, found) = cluster_with_a_flip(chunk_pm, false);
            assert_eq!(found, [""; 0]);
            assert_eq!((coverage.bits_flipped, coverage.disks_damaged), (1, 1));
            assert_eq!((coverage.chunks_damaged, coverage.members_readmitted > 0), (chunks, true));
        }
        let (coverage, found) = cluster_with_a_flip(0, true);
        assert_eq!(coverage.disks_damaged, 0);
        assert!(found.iter().any(|text| text.contains("a damaged disk starts all the same")), "{found:?}");
    }
}
