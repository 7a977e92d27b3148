//! A rateless invertible Bloom lookup table: one side writes an endless row of cells, each the sum of some of its
//! items; the other subtracts its own row, and reads the difference of the two sets from as many cells as that takes,
//! whatever their size (Yang, Gilad & Alizadeh, "Practical Rateless Set Reconciliation", SIGCOMM 2024). Only for
//! comparison with the ranges of `dwcp_sync::audit`; what items mean, and how cells travel, is `audit.rs`.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::hash_map::DefaultHasher;
use std::hash::Hasher as _;

/// Makes checks and places unpredictable to whoever chooses items, as the paper's section 4 asks for where some may be
/// hostile: both sides would draw it for one audit.
pub type Secret = u64;

/// Where one item goes: into cell 0, and into cell i with probability 1 / (1 + i/2) (section 4, with α = 1/2).
#[derive(Clone, Copy, Debug)]
struct Places {
    state: u64,
    next: u64,
}

impl Places {
    const fn new(check: u64) -> Self {
        Self { state: check, next: 0 }
    }

    /// Goes on to the item's next cell. None of the g cells after i is one with probability (i+1)(i+2) /
    /// (i+g+1)(i+g+2): the product of j/(j+2). Set equal to a number u drawn from (0, 1] that is, but for less than a
    /// cell, g = (i + 3/2) (u^-1/2 - 1).
    fn advance(&mut self) {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        let chance = ((mixed >> 11) + 1) as f64 / (1_u64 << 53) as f64;
        let gap = ((self.next as f64 + 1.5) * (1.0 / chance.sqrt() - 1.0)).ceil();
        // Beyond any row that is ever written the place does not matter.
        self.next += gap.clamp(1.0, 1e15) as u64;
    }
}

/// The hash of an item that cells add up beside it: what a sum of several items does not have.
fn check<const N: usize>(secret: Secret, item: &[u8; N]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write_u64(secret);
    hasher.write(item);
    hasher.finish()
}

/// A sum of items.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell<const N: usize> {
    pub sum: [u8; N],
    pub check: u64,
    pub count: i64,
}

impl<const N: usize> Cell<N> {
    const EMPTY: Self = Self { sum: [0; N], check: 0, count: 0 };

    fn add(&mut self, item: &[u8; N], check: u64, count: i64) {
        self.sum.iter_mut().zip(item).for_each(|(sum, byte)| *sum ^= byte);
        self.check ^= check;
        self.count += count;
    }

    fn is_empty(&self) -> bool {
        *self == Self::EMPTY
    }
}

/// About how many of `items` are in a cell: what a count is written as the difference to (as the authors'
/// implementation does).
pub fn expected(items: u64, place: u64) -> i64 {
    (items as f64 / (1.0 + place as f64 / 2.0)).round() as i64
}

/// One side's items and the row of cells they make. Memory: an item, 8 bytes of check and 16 bytes of place each.
#[derive(Debug)]
pub struct Row<const N: usize> {
    items: Vec<([u8; N], u64, Places)>,
    cells: Vec<Cell<N>>,
}

impl<const N: usize> Row<N> {
    pub fn new(secret: Secret, items: impl Iterator<Item = [u8; N]>) -> Self {
        let with_place = |item: [u8; N]| {
            let check = check(secret, &item);
            (item, check, Places::new(check))
        };
        Self { items: items.map(with_place).collect(), cells: Vec::new() }
    }

    pub fn items(&self) -> impl ExactSizeIterator<Item = &[u8; N]> {
        self.items.iter().map(|(item, ..)| item)
    }

    pub fn bytes(&self) -> usize {
        self.items.len() * size_of::<([u8; N], u64, Places)>()
    }

    /// The first `count` cells.
    pub fn cells(&mut self, count: usize) -> &[Cell<N>] {
        if self.cells.len() < count {
            self.cells.resize(count, Cell::EMPTY);
            let until = count as u64;
            for (item, check, places) in &mut self.items {
                while places.next < until {
                    let place = usize::try_from(places.next).expect("within the row");
                    self.cells[place].add(item, *check, 1);
                    places.advance();
                }
            }
        }
        &self.cells[..count]
    }
}

/// Reads the difference out of cells of which the own ones were subtracted.
#[derive(Debug)]
pub struct Reader<const N: usize> {
    secret: Secret,
    cells: Vec<Cell<N>>,
    /// Cells that may hold one item alone.
    single: Vec<usize>,
    /// Items that were read, each with its sign; and the next cell that holds each, the nearest first.
    read: Vec<([u8; N], u64, i64)>,
    next: BinaryHeap<Reverse<(u64, usize)>>,
    places: Vec<Places>,
}

impl<const N: usize> Reader<N> {
    pub const fn new(secret: Secret) -> Self {
        Self {
            secret,
            cells: Vec::new(),
            single: Vec::new(),
            read: Vec::new(),
            next: BinaryHeap::new(),
            places: Vec::new(),
        }
    }

    pub fn len(&self) -> usize {
        self.cells.len()
    }

    /// Takes the next cell of the other side and the own one of that place.
    pub fn take(&mut self, theirs: &Cell<N>, ours: &Cell<N>) {
        let place = self.cells.len();
        let mut cell = *theirs;
        cell.add(&ours.sum, ours.check, -ours.count);
        while let Some(Reverse((next, item))) = self.next.peek().copied()
            && next == place as u64
        {
            self.next.pop();
            let (bytes, check, sign) = self.read[item];
            cell.add(&bytes, check, -sign);
            self.places[item].advance();
            self.next.push(Reverse((self.places[item].next, item)));
        }
        self.cells.push(cell);
        self.single.push(place);
        self.peel();
    }

    /// Takes single items out of all cells they are in, which may leave others single.
    fn peel(&mut self) {
        while let Some(place) = self.single.pop() {
            let Cell { sum, check: sum_of_checks, count } = self.cells[place];
            if count.abs() != 1 || check(self.secret, &sum) != sum_of_checks {
                continue;
            }
            let mut places = Places::new(sum_of_checks);
            while let Ok(place) = usize::try_from(places.next)
                && let Some(cell) = self.cells.get_mut(place)
            {
                cell.add(&sum, sum_of_checks, -count);
                if cell.count.abs() == 1 {
                    self.single.push(place);
                }
                places.advance();
            }
            self.next.push(Reverse((places.next, self.read.len())));
            self.places.push(places);
            self.read.push((sum, sum_of_checks, count));
        }
    }

    /// Every item is in cell 0: nothing is left in it when all of the difference was read (section 4).
    pub fn is_done(&self) -> bool {
        self.cells.first().is_some_and(Cell::is_empty)
    }

    /// What the other side alone has, or this side alone.
    pub fn found(&self, theirs: bool) -> impl Iterator<Item = &[u8; N]> {
        let sign = if theirs { 1 } else { -1 };
        self.read.iter().filter(move |(.., of)| *of == sign).map(|(item, ..)| item)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dwcp_base::Chance;
    use std::collections::BTreeSet;

    type Set = BTreeSet<[u8; 16]>;

    fn drawn(chance: &mut Chance, count: u64) -> Set {
        let item = |chance: &mut Chance| {
            let mut item = [0; 16];
            item[..8].copy_from_slice(&chance.next_u64().to_le_bytes());
            item[8..].copy_from_slice(&chance.next_u64().to_le_bytes());
            item
        };
        (0..count).map(|_| item(chance)).collect()
    }

    /// Cells it takes; what was found must be the difference.
    fn reconcile(ours: &Set, theirs: &Set, secret: Secret) -> usize {
        let row = |set: &Set| Row::new(secret, set.iter().copied());
        let (mut mine, mut other) = (row(ours), row(theirs));
        let mut reader = Reader::new(secret);
        while !reader.is_done() {
            let place = reader.len();
            assert!(place < 100_000, "it ends");
            reader.take(&other.cells(place + 1)[place].clone(), &mine.cells(place + 1)[place]);
        }
        let found = |theirs| reader.found(theirs).copied().collect::<Set>();
        assert_eq!(found(true), theirs - ours);
        assert_eq!(found(false), ours - theirs);
        reader.len()
    }

    #[test]
    fn what_is_found_is_the_difference_whatever_its_size() {
        let mut chance = Chance::new(1);
        for round in 0..60 {
            let common = chance.below(500);
            let common = drawn(&mut chance, common);
            let (more, most) = (chance.below(1 << (round % 8)), chance.below(1 << (round % 5)));
            let ours = &common | &drawn(&mut chance, more);
            let theirs = &common | &drawn(&mut chance, most);
            reconcile(&ours, &theirs, chance.next_u64());
        }
    }

    #[test]
    fn equal_sets_take_one_cell_and_large_differences_less_than_two_cells_an_item() {
        let mut chance = Chance::new(2);
        let common = drawn(&mut chance, 1_000);
        assert_eq!(reconcile(&common, &common, 7), 1);
        let theirs = &common | &drawn(&mut chance, 500);
        let cells = reconcile(&common, &theirs, 7);
        // The paper has 1.35 for many and at most 1.72 on average for few.
        assert!((500..1_000).contains(&cells), "{cells} cells for 500 items");
    }

    #[test]
    fn a_cell_holds_about_as_many_items_as_expected() {
        let mut chance = Chance::new(3);
        let mut row = Row::new(9, drawn(&mut chance, 20_000).into_iter());
        for (place, cell) in (0..).zip(row.cells(64)) {
            let expected = expected(20_000, place);
            let off = (cell.count - expected).unsigned_abs();
            assert!(off * off <= 25 * expected.unsigned_abs(), "cell {place}: {} for {expected}", cell.count);
        }
    }
}
