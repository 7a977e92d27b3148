//! Counters. Each origin keeps running totals of its own ups and downs, which only grow and join by maximum (G- and
//! PN-Counter: Shapiro et al., RR-7506, specifications 6 and 7).
//!
//! Resetting is where counters usually go wrong: zero written over a total loses increments that the writer had not
//! seen, and dropping an origin's entry comes undone by its next increment. Here a cut says per *run* (one origin's
//! totals since the run's first change) how much of it had been seen; that much is subtracted, once, however many cuts
//! saw it. A run that is cut entirely stays as a tombstone until its cut is stable, because its origin may not have
//! seen the cut and go on counting from the old totals. Runs of origins that will never write again are folded into one
//! number, so past incarnations cost nothing.

use crate::causal::{Stable, Stamp, insert_dot};
use crate::dots::Dot;
use crate::wire::{Malformed, Reader, put_dot, put_dots, put_number};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

/// Totals of one run, as its origin sends them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub up: u64,
    pub down: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Run {
    totals: Totals,
    /// The highest counter of the origin that changed this run.
    last: u64,
    /// How much of it the cut that saw most had seen, and up to which change.
    cut: Totals,
    cut_last: u64,
    /// The cuts that saw that much.
    cut_by: Vec<Dot>,
}

impl Run {
    fn is_cut(&self) -> bool {
        self.cut_last >= self.last
    }

    /// What still counts. Saturating, because a liar may cut more than there is.
    fn left(&self) -> i128 {
        let left = |total: u64, cut: u64| i128::from(total.saturating_sub(cut));
        left(self.totals.up, self.cut.up) - left(self.totals.down, self.cut.down)
    }
}

/// How much of a run the writer of a cut had seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CutRun {
    pub birth: Dot,
    /// The counter of the last change it had seen of the run.
    pub last: u64,
    pub totals: Totals,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counter {
    /// Keyed by the dot of the run's first change. One per origin that counts, beside tombstones.
    runs: BTreeMap<Dot, Run>,
    /// What retired origins have left.
    base: Option<i128>,
}

impl Counter {
    pub(crate) fn is_empty(&self) -> bool {
        self.runs.is_empty() && self.base.is_none()
    }

    pub(crate) fn is_live(&self) -> bool {
        self.base.is_some() || self.runs.values().any(|run| !run.is_cut())
    }

    pub(crate) fn value(&self) -> i128 {
        self.runs.values().map(Run::left).fold(self.base.unwrap_or(0), i128::saturating_add)
    }

    /// The run that this origin goes on with: birth and totals. None once somebody cut it: a new run keeps what
    /// comes after the cut apart from what the cut saw.
    pub(crate) fn run_of(&self, own: Dot) -> Option<(u64, Totals)> {
        let from = Dot::new(own.origin, 0);
        let newest = self.runs.range(from..own).next_back();
        let (birth, run) = newest.filter(|(_, run)| run.cut_last == 0)?;
        Some((birth.counter, run.totals))
    }

    pub(crate) fn count(&mut self, stamp: Stamp, birth: u64, totals: Totals) {
        let run = self.runs.entry(Dot::new(stamp.dot.origin, birth)).or_default();
        run.totals.up = run.totals.up.max(totals.up);
        run.totals.down = run.totals.down.max(totals.down);
        run.last = run.last.max(stamp.dot.counter);
    }

    /// What a cut made now would have seen: every run that has anything left.
    pub(crate) fn seen_runs(&self) -> Vec<CutRun> {
        let left = self.runs.iter().filter(|(_, run)| !run.is_cut());
        left.map(|(birth, run)| CutRun { birth: *birth, last: run.last, totals: run.totals }).collect()
    }

    pub(crate) fn cut(&mut self, cut: Dot, seen: &[CutRun]) {
        // Whoever makes a change that is still to be applied here has seen all that was folded.
        self.base = None;
        for CutRun { birth, last, totals } in seen {
            // A run that is missing was cut before and collected since.
            let Some(run) = self.runs.get_mut(birth) else { continue };
            run.cut.up = run.cut.up.max(totals.up);
            run.cut.down = run.cut.down.max(totals.down);
            if *last > run.cut_last {
                run.cut_last = *last;
                run.cut_by.clear();
            }
            if *last == run.cut_last {
                insert_dot(&mut run.cut_by, cut);
            }
        }
    }

    pub(crate) fn has_graves(&self) -> bool {
        self.runs.values().any(Run::is_cut)
    }

    pub(crate) fn collect(&mut self, stable: Stable<'_>) {
        let base = &mut self.base;
        self.runs.retain(|birth, run| {
            if !stable.dots.contains(Dot::new(birth.origin, run.last)) {
                return true;
            }
            if run.is_cut() && run.cut_by.iter().any(|cut| stable.dots.contains(*cut)) {
                return false;
            }
            if !stable.retired.contains(&birth.origin) {
                return true;
            }
            if !run.is_cut() {
                *base = Some(base.unwrap_or(0).saturating_add(run.left()));
            }
            false
        });
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        match self.base {
            None => out.push(0),
            Some(base) => {
                out.push(1);
                out.extend_from_slice(&base.to_le_bytes());
            }
        }
        put_number(out, self.runs.len() as u64);
        for (birth, run) in &self.runs {
            put_dot(out, *birth);
            for number in [run.totals.up, run.totals.down, run.last, run.cut.up, run.cut.down, run.cut_last] {
                put_number(out, number);
            }
            put_dots(out, &run.cut_by);
        }
    }

    pub(crate) fn decode(reader: &mut Reader) -> Result<Self, Malformed> {
        let base = match reader.byte()? {
            0 => None,
            1 => {
                let bytes: [u8; 16] = reader.take(16)?.as_ref().try_into().map_err(|_| Malformed)?;
                Some(i128::from_le_bytes(bytes))
            }
            _ => return Err(Malformed),
        };
        let mut runs = BTreeMap::new();
        for _ in 0..reader.count(usize::MAX)? {
            let birth = reader.dot()?;
            let totals = Totals { up: reader.number()?, down: reader.number()? };
            let last = reader.number()?;
            let cut = Totals { up: reader.number()?, down: reader.number()? };
            let run = Run { totals, last, cut, cut_last: reader.number()?, cut_by: reader.dots()? };
            runs.insert(birth, run);
        }
        Ok(Self { runs, base })
    }
}
