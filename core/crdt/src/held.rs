//! Bundles that came before what they build upon. They wait here, outside the state, until the missing dot or floor
//! comes; then they are applied. A crash forgets them: they are not counted as applied, so they are asked for again.
//!
//! Bounded per origin, so a liar who names dots that will never exist fills his own share only.

use crate::delta::Bundle;
use crate::dots::{Dot, Origin};
use crate::limits::{HELD_BUNDLEES_MAX, HELD_BYTES_MAX};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

/// What a bundle waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Missing {
    /// A change; there may be more.
    Dot(Dot),
    /// A collection floor of this number.
    Floor(u64),
}

/// Origin, first and last counter.
type Name = (Origin, u64, u64);

#[derive(Clone, Debug)]
struct Waiting {
    bundle: Bundle,
    bytes: usize,
    missing: Missing,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Held {
    bundles: BTreeMap<Name, Waiting>,
    by_missing: BTreeMap<Missing, BTreeSet<Name>>,
    /// Bundles and bytes of each origin. Each incarnation has a share of its own: whoever hands bundles over counts them by it.
    shares: BTreeMap<Origin, (usize, usize)>,
}

impl Held {
    pub(crate) fn contains(&self, bundle: &Bundle) -> bool {
        self.bundles.contains_key(&name(bundle))
    }

    pub(crate) fn len(&self) -> usize {
        self.bundles.len()
    }

    /// What is waited for, lowest first, each once.
    pub(crate) fn missing(&self) -> impl Iterator<Item = Missing> {
        self.by_missing.keys().copied()
    }

    /// Takes a bundle in; false when its origin's share is full.
    pub(crate) fn hold(&mut self, bundle: &Bundle, missing: Missing) -> bool {
        // Memory of its own: the received bytes may be a whole frame or more.
        let encoded = bundle.encode();
        let bytes = encoded.len();
        let share = self.shares.entry(bundle.origin()).or_default();
        if share.0 >= HELD_BUNDLEES_MAX || share.1 + bytes > HELD_BYTES_MAX {
            return false;
        }
        *share = (share.0 + 1, share.1 + bytes);
        let bundle = Bundle::decode(encoded).expect("a bundle decodes from its own bytes");
        let name = name(&bundle);
        self.by_missing.entry(missing).or_default().insert(name);
        self.bundles.insert(name, Waiting { bundle, bytes, missing });
        true
    }

    /// Takes out what waited for one of these dots.
    pub(crate) fn release_dots(&mut self, origin: Origin, first: u64, last: u64) -> Vec<Bundle> {
        let range = Missing::Dot(Dot::new(origin, first))..=Missing::Dot(Dot::new(origin, last));
        let names: Vec<Name> = self.by_missing.range(range).flat_map(|(_, names)| names).copied().collect();
        self.take(&names)
    }

    /// Takes out what waited for a floor up to this one.
    pub(crate) fn release_floors(&mut self, number: u64) -> Vec<Bundle> {
        let range = Missing::Floor(0)..=Missing::Floor(number);
        let names: Vec<Name> = self.by_missing.range(range).flat_map(|(_, names)| names).copied().collect();
        self.take(&names)
    }

    fn take(&mut self, names: &[Name]) -> Vec<Bundle> {
        names.iter().filter_map(|name| self.take_one(name)).collect()
    }

    fn take_one(&mut self, name: &Name) -> Option<Bundle> {
        let waiting = self.bundles.remove(name)?;
        if let Some(names) = self.by_missing.get_mut(&waiting.missing) {
            names.remove(name);
            if names.is_empty() {
                self.by_missing.remove(&waiting.missing);
            }
        }
        if let Some(share) = self.shares.get_mut(&name.0) {
            *share = (share.0 - 1, share.1 - waiting.bytes);
            if share.0 == 0 {
                self.shares.remove(&name.0);
            }
        }
        Some(waiting.bundle)
    }
}

fn name(bundle: &Bundle) -> Name {
    (bundle.origin(), bundle.first(), bundle.last())
}
