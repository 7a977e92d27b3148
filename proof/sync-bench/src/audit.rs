//! How two replicas find the keys that they hold differently: by the ranges of `dwcp_sync::audit`, by the same ranges
//! without the bounds that one message and one audit have, and by a rateless table (`rateless.rs`). All three read
//! what is in memory at that moment, must name exactly the keys that were changed (bounded ranges: none but those),
//! and are measured on the same two stores.

use crate::clock::Spent;
use crate::rateless::{Cell, Reader, Row, Secret, expected};
use crate::report::{Found, Line, figure, line};
use crate::world::{MILLION, NOON_MS, key, origin, put, resolvers};
use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use dwcp_base::{Chance, Hash};
use dwcp_crdt::{Restore, Store, Strategy};
use dwcp_sync::audit::{self, Work, place};
use dwcp_sync::limits::{AUDIT_LEAF_KEYS, AUDIT_RANGES_MAX, AUDIT_SPLIT};
use dwcp_sync::message::{Message, ShortHash};
use std::collections::{BTreeSet, HashSet};

const DIFFERENT: [u64; 5] = [0, 1, 10, 100, 1_000];
const SECRET: Secret = 0x5eed;
/// What frames the two have applied; the same at both.
const CHAINS: Hash = Hash::ZERO;
/// After cell 0, which shows whether anything differs, so many cells go in a message; in each further one as many as
/// all before.
const CELLS_FIRST: usize = 32;

/// What finding the difference took.
#[derive(Debug, Default)]
struct Outcome {
    named: BTreeSet<Bytes>,
    messages: u64,
    /// Messages that were under way one after another.
    steps: u64,
    bytes: usize,
    /// Of both sides.
    spent: Spent,
    /// Of one side, for as long as it lasts, beyond the store.
    memory: usize,
    /// Cells that would have been enough, had the other side been stopped at once; and their bytes.
    enough: Option<(usize, usize)>,
}

impl Outcome {
    fn said(&mut self, bytes: usize) {
        self.messages += 1;
        self.bytes += bytes;
    }

    fn line(&self, different: u64, how: &str) -> Line {
        let round_trips = self.steps as f64 / 2.0;
        let mut figures = vec![
            figure(self.named.len() as f64, 0, "named"),
            figure(self.bytes as f64, 0, "B"),
            figure(self.messages as f64, 0, "messages"),
            figure(round_trips, 1, "round trips"),
            figure(self.spent.thread.as_secs_f64() * 1e3, 0, "ms of processor, both sides"),
        ];
        if let Some((cells, bytes)) = self.enough {
            figures.push(figure(self.memory as f64 / 1e6, 1, "MB on each side meanwhile"));
            figures.push(figure(cells as f64, 0, "cells were enough"));
            figures.push(figure(bytes as f64, 0, "B those"));
        }
        line(format!("{different} different: {how}"), figures, "")
    }
}

pub fn hundred_thousand(_: &crate::Ask) -> anyhow::Result<Found> {
    compare(MILLION / 10)
}

pub fn million(_: &crate::Ask) -> anyhow::Result<Found> {
    compare(MILLION)
}

fn compare(keys: u64) -> anyhow::Result<Found> {
    let snapshot = Snapshot::of(keys);
    let ours = snapshot.restore(&BTreeSet::new())?;
    let mut lines = Vec::new();
    for different in DIFFERENT {
        let mut chance = Chance::new(different);
        let mut wrong = BTreeSet::new();
        while (wrong.len() as u64) < different {
            wrong.insert(Bytes::from(key(chance.below(keys))));
        }
        let theirs = snapshot.restore(&wrong)?;
        let bounded = ranges(&ours, &theirs, true)?;
        ensure!(bounded.named.is_subset(&wrong), "ranges name a key that does not differ");
        lines.push(bounded.line(different, "ranges, one audit as it is"));
        let whole = ranges(&ours, &theirs, false)?;
        ensure!(whole.named == wrong, "ranges without bounds name other keys than differ");
        lines.push(whole.line(different, "ranges without bounds"));
        let table = rateless::<32>(&ours, &theirs, |key, hash| {
            let mut item = [0; 32];
            let (front, back) = item.split_at_mut(16);
            // Longer keys would need items of another size; every key here has sixteen bytes.
            front.copy_from_slice(key);
            back.copy_from_slice(&ShortHash::from(hash).0);
            item
        })?;
        ensure!(table.named == wrong, "the table of keys names other keys than differ");
        lines.push(table.line(different, "rateless, items of key and hash, 32 B"));
        let table = rateless::<16>(&ours, &theirs, |_, hash| ShortHash::from(hash).0)?;
        ensure!(table.named == wrong, "the table of hashes names other keys than differ");
        lines.push(table.line(different, "rateless, items of the hash alone, 16 B"));
    }
    Ok(Found {
        with: "nothing else: two stores at the same place; hashes worked out anew".to_string(),
        lines,
    })
}

/// A store's snapshot, from which stores are restored that differ in some keys and in nothing else.
struct Snapshot {
    head: Vec<u8>,
    piece: Vec<u8>,
}

impl Snapshot {
    fn of(keys: u64) -> Self {
        let mut store = Store::new(origin(0), resolvers(Strategy::Merge));
        for first in (0..keys).step_by(1_000) {
            let writes: Vec<_> = (first..first + 1_000).map(|number| put(number, number)).collect();
            store.write(&writes, 0, NOON_MS).expect("a good write");
        }
        Self { head: store.snapshot_head(), piece: store.snapshot_piece(None, usize::MAX).bytes }
    }

    /// With a wrong bit in the values of these keys, as bad memory leaves it.
    fn restore(&self, wrong: &BTreeSet<Bytes>) -> anyhow::Result<Store> {
        let mut piece = self.piece.clone();
        let mut from = 0;
        // Keys ascend in a snapshot, and each one's value, which is its key's text here, comes behind it.
        for key in wrong {
            let find = |from: usize| piece[from..].windows(key.len()).position(|bytes| bytes == &key[..]);
            let at = from + find(from).context("the key is in the snapshot")? + key.len();
            let value = at + find(at).context("its value is behind it")?;
            piece[value] ^= 1;
            from = value + key.len();
        }
        let mut restore = Restore::new(origin(0), resolvers(Strategy::Merge), &self.head)?;
        restore.piece(&piece)?;
        Ok(restore.finish()?)
    }
}

/// Reads what the other side would, from the bytes that travel.
fn travel(work: Work, outcome: &mut Outcome) -> anyhow::Result<Work> {
    let bytes = Message::Audit { work }.to_bytes();
    outcome.said(bytes.len());
    match Message::read(&bytes)? {
        Message::Audit { work } => Ok(work),
        other => bail!("an audit became {other:?}"),
    }
}

fn ranges(ours: &Store, theirs: &Store, is_bounded: bool) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome::default();
    let (first, spent) = Spent::on(|| audit::step(ours, CHAINS, None));
    outcome.spent.add(spent);
    let mut under_way = Vec::from_iter(first.reply);
    let mut sides = [theirs, ours].into_iter().cycle();
    while !under_way.is_empty() {
        outcome.steps += 1;
        let side = sides.next().context("sides take turns for ever")?;
        let mut replies = Vec::new();
        for work in std::mem::take(&mut under_way) {
            let work = travel(work, &mut outcome)?;
            let (step, spent) = Spent::on(|| audit::step(side, CHAINS, Some(&work)));
            outcome.spent.add(spent);
            ensure!(!step.elsewhere, "the two stand at one place");
            outcome.named.extend(step.differs);
            replies.extend(step.reply);
        }
        under_way = if is_bounded { replies } else { replies.into_iter().flat_map(in_parts).collect() };
    }
    Ok(outcome)
}

/// So few ranges in a message that the answer has room for the parts of all of them, and so few leaves that it may
/// name all of their keys.
fn in_parts(work: Work) -> Vec<Work> {
    let Work { at, ranges, leaves } = work;
    let of_ranges = ranges.chunks(AUDIT_RANGES_MAX / AUDIT_SPLIT);
    let of_ranges = of_ranges.map(|ranges| Work { at, ranges: ranges.to_vec(), leaves: Vec::new() });
    let of_leaves = leaves.chunks(AUDIT_LEAF_KEYS);
    let of_leaves = of_leaves.map(|leaves| Work { at, ranges: Vec::new(), leaves: leaves.to_vec() });
    of_ranges.chain(of_leaves).collect()
}

/// One side sends cells until the other, who reads, has the difference and says which keys it is.
fn rateless<const N: usize>(
    ours: &Store,
    theirs: &Store,
    item: impl Fn(&[u8], &Hash) -> [u8; N],
) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome::default();
    let row = |store: &Store| {
        let hashes = store.key_hashes_between(None, None);
        Row::new(SECRET, hashes.map(|(key, hash)| item(key, &hash)))
    };
    let ((mut sender, mut reader_row), spent) = Spent::on(|| (row(theirs), row(ours)));
    outcome.spent.add(spent);
    outcome.memory = sender.bytes();
    let at = place(theirs, CHAINS);
    let items = sender.items().len() as u64;
    let mut reader = Reader::new(SECRET);
    let mut until = 1;
    loop {
        let from = reader.len();
        let (message, spent) = Spent::on(|| write_cells(at, items, from, &sender.cells(until)[from..]));
        outcome.spent.add(spent);
        outcome.said(message.len());
        outcome.steps += 1;
        let (taken, spent) = Spent::on(|| {
            let cells = read_cells::<N>(&message, place(ours, CHAINS))?;
            let own = reader_row.cells(until);
            cells.iter().zip(&own[from..]).for_each(|(theirs, ours)| reader.take(theirs, ours));
            anyhow::Ok(())
        });
        outcome.spent.add(spent);
        taken?;
        if reader.is_done() {
            break;
        }
        // «More»: where it stands and from which cell on.
        outcome.said(at.0.len() + size_of::<u64>());
        outcome.steps += 1;
        until = if until == 1 { 1 + CELLS_FIRST } else { 2 * until - 1 };
    }
    let (named, spent) = Spent::on(|| {
        let alone: HashSet<&[u8; N]> = reader.found(false).collect();
        if alone.is_empty() {
            return Vec::new();
        }
        // Nothing was deleted here, so the keys that exist and the items go in step.
        let differs = reader_row.items().map(|item| alone.contains(item));
        ours.keys(&[]).zip(differs).filter(|(_, differs)| *differs).map(|(key, _)| key.clone()).collect()
    });
    outcome.spent.add(spent);
    let both = [reader.found(true).count(), reader.found(false).count()];
    ensure!(both == [named.len(); 2], "each key that differs is an item of both sides: {both:?}");
    if !named.is_empty() {
        let keys: usize = named.iter().map(|key| 2 + key.len()).sum();
        outcome.said(at.0.len() + keys);
        outcome.steps += 1;
    }
    outcome.named = named.into_iter().collect();
    outcome.enough = Some(enough(&mut sender, &mut reader_row, at)?);
    Ok(outcome)
}

/// Cells after which the difference could be read, and their bytes in one message.
fn enough<const N: usize>(sender: &mut Row<N>, own: &mut Row<N>, at: Hash) -> anyhow::Result<(usize, usize)> {
    let mut reader = Reader::new(SECRET);
    while !reader.is_done() {
        let place = reader.len();
        reader.take(&sender.cells(place + 1)[place], &own.cells(place + 1)[place]);
    }
    let items = sender.items().len() as u64;
    let cells = reader.len();
    let bytes = write_cells(at, items, 0, sender.cells(cells)).len();
    Ok((cells, bytes))
}

/// Where its sender stands, how many items it has, from which cell on; then each cell: sum, check, and the count as its
/// difference to what is expected, in seven bits a byte.
fn write_cells<const N: usize>(at: Hash, items: u64, from: usize, cells: &[Cell<N>]) -> Vec<u8> {
    let mut out = Vec::with_capacity(48 + cells.len() * (N + 10));
    out.extend_from_slice(&at.0);
    out.extend_from_slice(&items.to_le_bytes());
    out.extend_from_slice(&(from as u64).to_le_bytes());
    for (place, cell) in (from as u64..).zip(cells) {
        out.extend_from_slice(&cell.sum);
        out.extend_from_slice(&cell.check.to_le_bytes());
        let off = cell.count - expected(items, place);
        let mut number = (off << 1 ^ off >> 63).cast_unsigned();
        while number >= 0x80 {
            out.push(number as u8 | 0x80);
            number >>= 7;
        }
        out.push(number as u8);
    }
    out
}

fn read_cells<const N: usize>(message: &[u8], at: Hash) -> anyhow::Result<Vec<Cell<N>>> {
    fn number(bytes: &mut &[u8]) -> anyhow::Result<u64> {
        let (number, rest) = bytes.split_first_chunk::<8>().context("a number")?;
        *bytes = rest;
        Ok(u64::from_le_bytes(*number))
    }
    let (place, mut rest) = message.split_first_chunk::<32>().context("a place")?;
    ensure!(Hash(*place) == at, "the two stand at one place");
    let (items, mut from) = (number(&mut rest)?, number(&mut rest)?);
    let mut cells = Vec::new();
    while !rest.is_empty() {
        let (sum, behind) = rest.split_first_chunk::<N>().context("a sum")?;
        rest = behind;
        let check = number(&mut rest)?;
        let (mut off, mut shift) = (0_u64, 0);
        loop {
            let (byte, behind) = rest.split_first().context("a count")?;
            rest = behind;
            off |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
            ensure!(shift < 64, "a count of more than 64 bits");
        }
        let off = (off >> 1).cast_signed() ^ -(off & 1).cast_signed();
        cells.push(Cell { sum: *sum, check, count: off + expected(items, from) });
        from += 1;
    }
    Ok(cells)
}
