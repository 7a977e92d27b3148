//! Registers: a value that is replaced as a whole. LWW and MV registers keep the same state, all versions that nobody
//! has replaced yet; they differ in what a read shows (Shapiro et al., RR-7506, sections 3.2.1 and 3.2.2).
//!
//! A write names the versions it saw and replaces exactly those. Deleting writes "nothing": a version without a value,
//! the tombstone, so that a write which did not see the delete meets it as a sibling and the conflict is seen. A lone
//! tombstone goes once it is stable; one that has siblings stays until somebody writes over both.

use crate::causal::{Stable, Stamp};
use crate::clock::Hlc;
use crate::dots::Dot;
use crate::value::Plain;
use crate::wire::{Malformed, Reader, put_dot, put_number, put_plain};
use alloc::vec::Vec;

/// One write that nobody has replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    pub stamp: Stamp,
    /// Nothing for a delete.
    pub value: Option<Plain>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Register {
    /// Ascending by dot; at most one of each origin that writes honestly.
    versions: Vec<Version>,
}

impl Register {
    pub(crate) fn versions(&self) -> &[Version] {
        &self.versions
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.versions.is_empty()
    }

    pub(crate) fn is_live(&self) -> bool {
        self.versions.iter().any(|v| v.value.is_some())
    }

    /// Conflicts that nobody has settled yet: each version beyond the first is one.
    pub(crate) fn conflicts_open(&self) -> u64 {
        (self.versions.len() as u64).saturating_sub(1)
    }

    pub(crate) fn dots(&self) -> Vec<Dot> {
        self.versions.iter().map(|v| v.stamp.dot).collect()
    }

    /// Are these its versions, no more and no less?
    pub(crate) fn has_exactly(&self, dots: &[Dot]) -> bool {
        self.versions.iter().map(|v| &v.stamp.dot).eq(dots)
    }

    pub(crate) fn write(&mut self, stamp: Stamp, value: Option<Plain>, over: &[Dot]) {
        if let [only] = self.versions.as_mut_slice()
            && over == [only.stamp.dot]
        {
            *only = Version { stamp, value };
            return;
        }
        self.versions.retain(|v| over.binary_search(&v.stamp.dot).is_err());
        let index = self.versions.partition_point(|v| v.stamp.dot < stamp.dot);
        self.versions.reserve_exact(1);
        self.versions.insert(index, Version { stamp, value });
    }

    /// For mutants.
    pub(crate) fn retain(&mut self, stays: impl FnMut(&Version) -> bool) {
        self.versions.retain(stays);
    }

    pub(crate) fn cut(&mut self, seen: &dyn Fn(Dot) -> bool) {
        self.versions.retain(|v| !seen(v.stamp.dot));
    }

    pub(crate) fn has_graves(&self) -> bool {
        self.versions.iter().any(|v| v.value.is_none())
    }

    pub(crate) fn collect(&mut self, stable: Stable<'_>) {
        if let [Version { stamp, value: None }] = self.versions.as_slice()
            && stable.dots.contains(stamp.dot)
        {
            self.versions.clear();
        }
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        put_number(out, self.versions.len() as u64);
        for version in &self.versions {
            put_dot(out, version.stamp.dot);
            out.extend_from_slice(&version.stamp.hlc.0.to_le_bytes());
            put_plain(out, version.value.as_ref());
        }
    }

    pub(crate) fn decode(reader: &mut Reader) -> Result<Self, Malformed> {
        let count = reader.count(usize::MAX)?;
        let mut versions: Vec<Version> = Vec::new();
        versions.reserve_exact(count.min(64));
        for _ in 0..count {
            let dot = reader.dot()?;
            let stamp = Stamp { hlc: Hlc(reader.u64_fixed()?), dot };
            if versions.last().is_some_and(|v| v.stamp.dot >= dot) {
                return Err(Malformed);
            }
            versions.push(Version { stamp, value: reader.plain()?.map(|v| v.detached()) });
        }
        Ok(Self { versions })
    }
}
