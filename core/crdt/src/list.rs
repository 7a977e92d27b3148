//! The list: a replicated growable array (Roh, Jeon, Kim & Lee, JPDC 2011), kept as the tree behind it. Every item hangs
//! below the item it was inserted after; items below one parent stand newest first; the list is the tree read top down.
//! The place of an item depends on its parent and stamps alone, so the order of arrival cannot matter, not even for
//! stamps that a liar chose.
//!
//! Text typed forwards at one place by two people does not interleave, because each run hangs below its own first item.
//! Text typed backwards may, as in every RGA.
//!
//! An erased item stays as a tombstone: somebody who has not seen the erasure may be inserting after it. It goes once
//! stable; its children then take its place. That is safe because by then everybody who can still insert has seen the
//! erasure and all of these children, so whatever comes is newer than they are and lands before them either way.

use crate::causal::{Stable, Stamp, insert_dot};
use crate::clock::Hlc;
use crate::dots::Dot;
use crate::value::Plain;
use crate::wire::{Malformed, Reader, put_dot, put_dots, put_number, put_plain};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Item {
    hlc: Hlc,
    /// Nothing when it stands at the top.
    parent: Option<Dot>,
    /// Nothing when erased.
    value: Option<Plain>,
    erased_by: Vec<Dot>,
    /// In reading order.
    children: Vec<Dot>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct List {
    items: BTreeMap<Dot, Item>,
    top: Vec<Dot>,
    live_count: usize,
}

impl List {
    pub(crate) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    pub(crate) fn is_live(&self) -> bool {
        self.live_count > 0
    }

    pub(crate) fn len(&self) -> usize {
        self.live_count
    }

    /// All items in reading order, erased ones included. A loop with a stack of its own: the tree may be as deep as the
    /// list is long.
    fn walk(&self, mut visit: impl FnMut(Dot, &Item) -> bool) {
        let mut stack: Vec<Dot> = self.top.iter().rev().copied().collect();
        while let Some(dot) = stack.pop() {
            let item = &self.items[&dot];
            if !visit(dot, item) {
                return;
            }
            stack.extend(item.children.iter().rev());
        }
    }

    pub(crate) fn view(&self) -> Vec<Plain> {
        let mut values = Vec::with_capacity(self.live_count);
        self.walk(|_, item| {
            values.extend(item.value.clone());
            true
        });
        values
    }

    /// The dot of the item that a reader sees at this index.
    pub(crate) fn dot_at(&self, index: usize) -> Option<Dot> {
        let (mut left, mut found) = (index, None);
        self.walk(|dot, item| {
            if item.value.is_none() {
                return true;
            }
            if left == 0 {
                found = Some(dot);
                return false;
            }
            left -= 1;
            true
        });
        found
    }

    pub(crate) fn insert(&mut self, stamp: Stamp, after: Option<Dot>, value: &Plain) {
        let place_of = |items: &BTreeMap<Dot, Item>, siblings: &[Dot]| {
            let newer = |dot: &&Dot| Stamp { hlc: items[*dot].hlc, dot: **dot } > stamp;
            siblings.iter().take_while(newer).count()
        };
        let parent_children = after.map(|parent| self.items.get(&parent).map(|p| &p.children));
        let place = match parent_children {
            None => place_of(&self.items, &self.top),
            Some(Some(children)) => place_of(&self.items, children),
            // The parent was collected, so its writer had acknowledged the erasure and inserts after it all the same:
            // only a liar does.
            Some(None) => return,
        };
        let siblings = match after {
            None => &mut self.top,
            Some(parent) => &mut self.items.get_mut(&parent).expect("looked up above").children,
        };
        siblings.insert(place, stamp.dot);
        let item = Item {
            hlc: stamp.hlc,
            parent: after,
            value: Some(value.detached()),
            erased_by: Vec::new(),
            children: Vec::new(),
        };
        self.items.insert(stamp.dot, item);
        self.live_count += 1;
    }

    pub(crate) fn erase(&mut self, eraser: Dot, element: Dot) {
        let Some(item) = self.items.get_mut(&element) else { return };
        if item.value.take().is_some() {
            self.live_count -= 1;
        }
        insert_dot(&mut item.erased_by, eraser);
    }

    pub(crate) fn cut(&mut self, cut: Dot, seen: &dyn Fn(Dot) -> bool) {
        for (_, item) in self.items.iter_mut().filter(|(dot, _)| seen(**dot)) {
            // Erasing again what the writer of the cut knew to be erased would keep the tombstone longer.
            if item.erased_by.iter().any(|eraser| seen(*eraser)) {
                continue;
            }
            if item.value.take().is_some() {
                self.live_count -= 1;
            }
            insert_dot(&mut item.erased_by, cut);
        }
    }

    pub(crate) fn has_graves(&self) -> bool {
        self.items.len() > self.live_count
    }

    pub(crate) fn collect(&mut self, stable: Stable<'_>) {
        let may_go = |item: &Item| item.erased_by.iter().any(|dot| stable.dots.contains(*dot));
        let dots: Vec<Dot> =
            self.items.iter().filter(|(_, item)| may_go(item)).map(|(dot, _)| *dot).collect();
        for dot in dots {
            let item = self.items.remove(&dot).expect("listed above");
            for child in &item.children {
                self.items.get_mut(child).expect("children are items").parent = item.parent;
            }
            let siblings = match item.parent {
                None => &mut self.top,
                Some(parent) => &mut self.items.get_mut(&parent).expect("parents are items").children,
            };
            let place = siblings.iter().position(|d| *d == dot).expect("an item hangs below its parent");
            siblings.splice(place..=place, item.children);
        }
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        put_number(out, self.items.len() as u64);
        self.walk(|dot, item| {
            put_dot(out, dot);
            out.extend_from_slice(&item.hlc.0.to_le_bytes());
            put_dots(out, item.parent.as_slice());
            put_plain(out, item.value.as_ref());
            put_dots(out, &item.erased_by);
            true
        });
    }

    pub(crate) fn decode(reader: &mut Reader) -> Result<Self, Malformed> {
        let mut list = Self::default();
        for _ in 0..reader.count(usize::MAX)? {
            let dot = reader.dot()?;
            let hlc = Hlc(reader.u64_fixed()?);
            let parent = match reader.dots()?.as_slice() {
                [] => None,
                [parent] => Some(*parent),
                _ => return Err(Malformed),
            };
            let value = reader.plain()?.map(|v| v.detached());
            let erased_by = reader.dots()?;
            if value.is_some() != erased_by.is_empty() {
                return Err(Malformed);
            }
            list.live_count += usize::from(value.is_some());
            // A parent stands before its children in reading order, so there are no cycles.
            match parent {
                None => list.top.push(dot),
                Some(parent) => list.items.get_mut(&parent).ok_or(Malformed)?.children.push(dot),
            }
            let item = Item { hlc, parent, value, erased_by, children: Vec::new() };
            if list.items.insert(dot, item).is_some() {
                return Err(Malformed);
            }
        }
        Ok(list)
    }
}
