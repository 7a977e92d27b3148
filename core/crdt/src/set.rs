//! Sets of plain values: grow-only, two-phase and observed-remove (Shapiro et al., RR-7506, specifications 11, 12, 15).
//! All three tag an element with the dots of its adds; an add replaces the tags it saw, so their number does not grow
//! with the number of adds.
//!
//! Observed-remove takes away the tags that its writer saw; an add it did not see keeps the element. Two-phase keeps a
//! mark for what was removed: nothing brings it back. Deleting the whole set forgets seen tags and seen marks alike.

use crate::causal::insert_dot;
use crate::dots::Dot;
use crate::value::{Kind, Plain};
use crate::wire::{Malformed, Reader, put_dots, put_number, put_plain};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tags {
    adds: Vec<Dot>,
    /// Two-phase only.
    removes: Vec<Dot>,
}

impl Tags {
    fn is_live(&self) -> bool {
        self.removes.is_empty() && !self.adds.is_empty()
    }

    fn is_empty(&self) -> bool {
        self.removes.is_empty() && self.adds.is_empty()
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Set {
    elements: BTreeMap<Plain, Tags>,
}

impl Set {
    pub(crate) fn is_empty(&self) -> bool {
        self.elements.is_empty()
    }

    pub(crate) fn is_live(&self) -> bool {
        self.elements.values().any(Tags::is_live)
    }

    pub(crate) fn contains(&self, element: &Plain) -> bool {
        self.elements.get(element).is_some_and(Tags::is_live)
    }

    /// Was it removed for good?
    pub(crate) fn is_barred(&self, element: &Plain) -> bool {
        self.elements.get(element).is_some_and(|tags| !tags.removes.is_empty())
    }

    pub(crate) fn view(&self) -> BTreeSet<Plain> {
        self.elements.iter().filter(|(_, tags)| tags.is_live()).map(|(element, _)| element.clone()).collect()
    }

    /// The tags of an element that a change made now would have seen.
    pub(crate) fn tags(&self, element: &Plain) -> Vec<Dot> {
        self.elements.get(element).map_or_else(Vec::new, |tags| tags.adds.clone())
    }

    pub(crate) fn include(&mut self, dot: Dot, element: &Plain, over: &[Dot]) {
        let tags = match self.elements.get_mut(element) {
            Some(tags) => tags,
            None => self.elements.entry(element.detached()).or_default(),
        };
        tags.adds.retain(|tag| over.binary_search(tag).is_err());
        insert_dot(&mut tags.adds, dot);
    }

    pub(crate) fn exclude(&mut self, kind: Kind, dot: Dot, element: &Plain, over: &[Dot]) {
        if kind == Kind::TwoPhaseSet {
            let tags = self.elements.entry(element.detached()).or_default();
            insert_dot(&mut tags.removes, dot);
        }
        let Some(tags) = self.elements.get_mut(element) else { return };
        tags.adds.retain(|tag| over.binary_search(tag).is_err());
        if tags.is_empty() {
            self.elements.remove(element);
        }
    }

    pub(crate) fn cut(&mut self, seen: &dyn Fn(Dot) -> bool) {
        self.elements.retain(|_, tags| {
            tags.adds.retain(|dot| !seen(*dot));
            tags.removes.retain(|dot| !seen(*dot));
            !tags.is_empty()
        });
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        put_number(out, self.elements.len() as u64);
        for (element, tags) in &self.elements {
            put_plain(out, Some(element));
            put_dots(out, &tags.adds);
            put_dots(out, &tags.removes);
        }
    }

    pub(crate) fn decode(reader: &mut Reader) -> Result<Self, Malformed> {
        let mut elements = BTreeMap::new();
        for _ in 0..reader.count(usize::MAX)? {
            let element = reader.plain()?.ok_or(Malformed)?.detached();
            let tags = Tags { adds: reader.dots()?, removes: reader.dots()? };
            elements.insert(element, tags);
        }
        Ok(Self { elements })
    }
}
