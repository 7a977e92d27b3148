//! A disk for tests that behaves as badly as real ones may. What was not synced is, after a crash, sector by
//! sector the old bytes, the new ones or noise; names not synced are old or new, from some point on or at
//! will. It can run full, fail a sync, or lie about one. Everything is drawn from the test's own seed.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::disk::{Disk, DiskFile, DiskLock};

pub const SECTOR_BYTES: usize = 512;

/// A small generator (xorshift); the seed is the test's.
#[derive(Debug, Clone)]
pub struct Chance(u64);

impl Chance {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 11) % bound
    }
}

#[derive(Debug, Clone, Default)]
struct Content {
    now: Vec<u8>,
    durable: Vec<u8>,
    /// Sectors the system believes written and will not write again, though they never landed.
    lost: BTreeSet<usize>,
}

#[derive(Debug, Clone)]
enum NameChange {
    Create(PathBuf, u64),
    Rename(PathBuf, PathBuf, u64),
    Remove(PathBuf),
}

#[derive(Debug, Clone, Default)]
struct State {
    contents: BTreeMap<u64, Content>,
    names: BTreeMap<PathBuf, u64>,
    durable_names: BTreeMap<PathBuf, u64>,
    unsynced_names: Vec<NameChange>,
    locked: bool,
    next_id: u64,
    salts: u64,
    faults: Faults,
    /// Syncs of a file's data so far.
    syncs: u64,
    /// Bytes that sit in files.
    capacity_bytes: Option<u64>,
}

#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// The next so many data syncs succeed, then one fails.
    pub sync_fails_after: Option<u64>,
    /// Likewise for directory syncs.
    pub sync_dir_fails_after: Option<u64>,
    /// The next so many data syncs are honest, then one says yes and does nothing.
    pub sync_lies_after: Option<u64>,
    /// The process dies at the so-many-th operation from now: that one and all later ones fail.
    pub dies_after: Option<u64>,
}

#[derive(Debug, Clone, Default)]
pub struct MemoryDisk(Arc<Mutex<State>>);

impl MemoryDisk {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no test panics while holding it")
    }

    pub fn set_faults(&self, faults: Faults) {
        self.state().faults = faults;
    }

    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.state().capacity_bytes = bytes;
    }

    pub fn data_syncs(&self) -> u64 {
        self.state().syncs
    }

    pub fn dead(&self) -> bool {
        self.state().faults.dies_after == Some(0)
    }

    /// A copy that shares nothing with this one, as it is now, unlocked and without faults.
    pub fn copy(&self) -> Self {
        let mut state = self.state().clone();
        state.locked = false;
        state.faults = Faults::default();
        Self(Arc::new(Mutex::new(state)))
    }

    /// The power goes. What comes back is a new disk; handles to this one mean nothing any more.
    pub fn crash(&self, chance: &mut Chance) -> Self {
        let mut state = self.state().clone();
        let kept = chance.below(state.unsynced_names.len() as u64 + 1) as usize;
        let mut names = state.durable_names.clone();
        // A journal keeps their order; nothing promises that there is one.
        let ordered = chance.below(2) == 0;
        for (at, change) in state.unsynced_names.iter().enumerate() {
            let lands = if ordered { at < kept } else { chance.below(2) == 0 };
            if lands {
                apply(&mut names, change);
            }
        }
        for content in state.contents.values_mut() {
            content.now = tear(content, chance);
            content.durable = content.now.clone();
            content.lost.clear();
        }
        state.contents.retain(|id, _| names.values().any(|named| named == id));
        state.names = names.clone();
        state.durable_names = names;
        state.unsynced_names.clear();
        state.locked = false;
        state.faults = Faults::default();
        Self(Arc::new(Mutex::new(state)))
    }

    pub fn names(&self) -> Vec<PathBuf> {
        self.state().names.keys().cloned().collect()
    }

    pub fn read(&self, path: &Path) -> Vec<u8> {
        let state = self.state();
        state.contents[&state.names[path]].now.clone()
    }

    /// Changes a file behind its owner's back, durably.
    pub fn alter(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.state();
        let id = state.names[path];
        let content = state.contents.get_mut(&id).expect("named");
        change(&mut content.now);
        content.durable = content.now.clone();
    }
}

fn apply(names: &mut BTreeMap<PathBuf, u64>, change: &NameChange) {
    match change {
        NameChange::Create(path, id) => {
            names.insert(path.clone(), *id);
        }
        NameChange::Rename(from, to, id) => {
            names.remove(from);
            names.insert(to.clone(), *id);
        }
        NameChange::Remove(path) => {
            names.remove(path);
        }
    }
}

fn tear(content: &Content, chance: &mut Chance) -> Vec<u8> {
    let mut bytes = content.durable.clone();
    // A length not synced may or may not have grown.
    if content.now.len() > bytes.len() && chance.below(2) == 0 {
        bytes.resize(content.now.len(), 0);
    }
    // Four moods: everything landed, nothing landed, an even mix, mostly there.
    let lands_of_16 = [16, 0, 8, 14][chance.below(4) as usize];
    for at in (0..bytes.len()).step_by(SECTOR_BYTES) {
        let end = (at + SECTOR_BYTES).min(bytes.len());
        let Some(new) = content.now.get(at..end) else { continue };
        if bytes[at..end] == *new || content.lost.contains(&(at / SECTOR_BYTES)) {
            continue;
        }
        if chance.below(16) < lands_of_16 {
            bytes[at..end].copy_from_slice(new);
        } else if chance.below(4) == 0 {
            bytes[at..end].fill_with(|| chance.next() as u8);
        }
    }
    bytes
}

impl State {
    fn count_down(&mut self) -> io::Result<()> {
        match &mut self.faults.dies_after {
            Some(0) => Err(io::Error::other("the process is dead")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn change(&mut self, change: NameChange) {
        apply(&mut self.names, &change);
        self.unsynced_names.push(change);
    }

    fn id(&self, path: &Path) -> io::Result<u64> {
        self.names.get(path).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn check_capacity(&self, growth: u64) -> io::Result<()> {
        let used: u64 = self.names.values().map(|id| self.contents[id].now.len() as u64).sum();
        match self.capacity_bytes {
            Some(capacity) if growth > 0 && used + growth > capacity => {
                Err(io::ErrorKind::StorageFull.into())
            }
            _ => Ok(()),
        }
    }
}

/// True when this call is the one to hit.
fn hits(after: &mut Option<u64>) -> bool {
    match after {
        Some(0) => {
            *after = None;
            true
        }
        Some(left) => {
            *left -= 1;
            false
        }
        None => false,
    }
}

impl Disk for MemoryDisk {
    fn create_dir_all(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let state = self.state();
        let inside = state.names.keys().filter(|path| path.parent() == Some(dir));
        Ok(inside.filter_map(|path| Some(path.file_name()?.to_str()?.to_owned())).collect())
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.state();
        state.count_down()?;
        let id = state.id(path)?;
        Ok(Box::new(MemoryFile { disk: self.clone(), id }))
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.state();
        state.count_down()?;
        state.next_id += 1;
        let id = state.next_id;
        state.contents.insert(id, Content::default());
        state.change(NameChange::Create(path.into(), id));
        Ok(Box::new(MemoryFile { disk: self.clone(), id }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.count_down()?;
        let id = state.id(from)?;
        state.change(NameChange::Rename(from.into(), to.into(), id));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.count_down()?;
        state.id(path)?;
        state.change(NameChange::Remove(path.into()));
        Ok(())
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.count_down()?;
        if hits(&mut state.faults.sync_dir_fails_after) {
            return Err(io::Error::other("input/output error"));
        }
        state.durable_names = state.names.clone();
        state.unsynced_names.clear();
        Ok(())
    }

    fn lock(&self, _: &Path) -> io::Result<Result<Box<dyn DiskLock>, String>> {
        let mut state = self.state();
        if std::mem::replace(&mut state.locked, true) {
            return Ok(Err("test".into()));
        }
        Ok(Ok(Box::new(MemoryLock(self.clone()))))
    }

    fn salt(&self) -> io::Result<u64> {
        let mut state = self.state();
        state.salts += 1;
        Ok(Chance::new(state.salts).next())
    }
}

#[derive(Debug)]
struct MemoryLock(MemoryDisk);

impl DiskLock for MemoryLock {}

impl Drop for MemoryLock {
    fn drop(&mut self) {
        self.0.state().locked = false;
    }
}

#[derive(Debug)]
struct MemoryFile {
    disk: MemoryDisk,
    id: u64,
}

impl MemoryFile {
    fn sync(&mut self) -> io::Result<()> {
        let mut state = self.disk.state();
        state.count_down()?;
        state.syncs += 1;
        if hits(&mut state.faults.sync_fails_after) {
            return Err(io::Error::other("input/output error"));
        }
        let lies = hits(&mut state.faults.sync_lies_after);
        let content = state.contents.get_mut(&self.id).expect("an open file has contents");
        content.durable.resize(content.now.len(), 0);
        let sectors = content.now.chunks(SECTOR_BYTES).zip(content.durable.chunks_mut(SECTOR_BYTES));
        for (sector, (now, durable)) in sectors.enumerate() {
            if lies && now != durable {
                content.lost.insert(sector);
            } else if !content.lost.contains(&sector) {
                durable.copy_from_slice(now);
            }
        }
        Ok(())
    }
}

impl DiskFile for MemoryFile {
    fn len_bytes(&self) -> io::Result<u64> {
        Ok(self.disk.state().contents[&self.id].now.len() as u64)
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let state = self.disk.state();
        let content = &state.contents[&self.id].now;
        let part = content.get(offset as usize..).and_then(|rest| rest.get(..buffer.len()));
        buffer.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_all_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        state.count_down()?;
        let end = offset as usize + bytes.len();
        let growth = end.saturating_sub(state.contents[&self.id].now.len());
        state.check_capacity(growth as u64)?;
        let content = state.contents.get_mut(&self.id).expect("an open file has contents");
        if growth > 0 {
            content.now.resize(end, 0);
        }
        content.now[offset as usize..end].copy_from_slice(bytes);
        if !content.lost.is_empty() {
            let sectors = offset as usize / SECTOR_BYTES..end.div_ceil(SECTOR_BYTES);
            content.lost.retain(|sector| !sectors.contains(sector));
        }
        Ok(())
    }

    fn preallocate(&mut self, len: u64) -> io::Result<()> {
        self.write_all_at(&vec![0; len as usize], 0)
    }

    fn sync_data(&mut self) -> io::Result<()> {
        self.sync()
    }

    fn sync_all(&mut self) -> io::Result<()> {
        self.sync()
    }
}
