//! Who wins when a register has siblings. A resolver belongs to a prefix of keys and is a pure function of the set of
//! siblings, so every replica reads the same. The built-in ones are; a custom one is run twice, on siblings in opposite
//! order, and when the answers differ it is not believed: the last writer wins and the failure is counted.
//!
//! Resolving never writes. Siblings stay until somebody writes over them, so a later and better resolver sees them too.

use crate::causal::Stamp;
use crate::dots::Origin;
use crate::json;
use crate::register::Register;
use crate::value::{Plain, PlainForm};
use alloc::sync::Arc;
use alloc::vec::Vec;
use bytes::Bytes;
use core::fmt;

/// One of several concurrent writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sibling<'a> {
    pub stamp: Stamp,
    /// Nothing for a delete.
    pub value: Option<&'a Plain>,
}

/// A user's own rule. Must be a pure function of the set of siblings: no clock, no chance, no order.
pub trait Resolver: fmt::Debug + Send + Sync {
    /// Stands in the conflict history.
    fn name(&self) -> &str;

    /// The value that the siblings amount to; nothing for "deleted".
    fn resolve(&self, key: &[u8], siblings: &[Sibling<'_>]) -> Option<Plain>;
}

/// How the siblings below a prefix are settled.
#[derive(Clone, Debug, Default)]
pub enum Strategy {
    /// The highest stamp: clock, then origin, then counter.
    #[default]
    LastWriterWins,
    /// JSON objects are joined field by field, and the last writer wins each field; anything else as above.
    Merge,
    Custom(Arc<dyn Resolver>),
}

impl Strategy {
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::LastWriterWins => "last_writer_wins",
            Self::Merge => "merge",
            Self::Custom(resolver) => resolver.name(),
        }
    }
}

/// Strategies by prefix; the longest that fits decides. A setting: every node of a cluster must have the same.
#[derive(Clone, Debug, Default)]
pub struct Resolvers {
    by_prefix: Vec<(Bytes, Strategy)>,
}

/// What siblings amount to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// Nothing for "deleted".
    pub value: Option<Plain>,
    /// The custom resolver gave two answers for one set of siblings, and the last writer won instead.
    pub impure: bool,
}

impl Resolvers {
    /// Sets the strategy of a prefix, in place of an earlier one.
    pub fn set(&mut self, prefix: impl Into<Bytes>, strategy: Strategy) {
        let prefix = prefix.into();
        self.by_prefix.retain(|(p, _)| *p != prefix);
        self.by_prefix.push((prefix, strategy));
        self.by_prefix.sort_by(|a, b| b.0.len().cmp(&a.0.len()).then_with(|| a.0.cmp(&b.0)));
    }

    /// Each prefix with the name of its strategy, in one order whatever the order they were set in.
    pub fn names(&self) -> impl Iterator<Item = (&Bytes, &str)> {
        self.by_prefix.iter().map(|(prefix, strategy)| (prefix, strategy.name()))
    }

    #[must_use]
    pub fn strategy(&self, key: &[u8]) -> &Strategy {
        const DEFAULT: &Strategy = &Strategy::LastWriterWins;
        self.by_prefix.iter().find(|(prefix, _)| key.starts_with(prefix)).map_or(DEFAULT, |(_, s)| s)
    }

    pub(crate) fn resolve(&self, key: &[u8], register: &Register) -> Resolved {
        if let [only] = register.versions() {
            return Resolved { value: only.value.clone(), impure: false };
        }
        let versions = register.versions().iter();
        let siblings = versions.map(|v| Sibling { stamp: v.stamp, value: v.value.as_ref() }).collect();
        resolve(self.strategy(key), key, siblings)
    }
}

impl Resolvers {
    /// The mutant that asks once, and hands the siblings over as this replica met them: its own first.
    pub(crate) fn resolve_as_met(&self, me: Origin, key: &[u8], register: &Register) -> Resolved {
        let Strategy::Custom(resolver) = self.strategy(key) else { return self.resolve(key, register) };
        let versions = register.versions();
        let (before, after) = versions.split_at(versions.partition_point(|v| v.stamp.dot.origin < me));
        let met = after.iter().chain(before);
        let siblings: Vec<_> = met.map(|v| Sibling { stamp: v.stamp, value: v.value.as_ref() }).collect();
        Resolved { value: resolver.resolve(key, &siblings), impure: false }
    }
}

fn resolve(strategy: &Strategy, key: &[u8], mut siblings: Vec<Sibling<'_>>) -> Resolved {
    siblings.sort_by_key(|s| core::cmp::Reverse(s.stamp));
    let last_writer = siblings.first().and_then(|s| s.value.cloned());
    match strategy {
        Strategy::LastWriterWins => Resolved { value: last_writer, impure: false },
        Strategy::Merge => Resolved { value: merged(&siblings).or(last_writer), impure: false },
        Strategy::Custom(resolver) => {
            let value = resolver.resolve(key, &siblings);
            siblings.reverse();
            let again = resolver.resolve(key, &siblings);
            let impure = value != again;
            Resolved { value: if impure { last_writer } else { value }, impure }
        }
    }
}

/// The join of siblings that are all JSON; a delete among them has nothing to add. Nothing when they cannot be joined.
fn merged(ranked: &[Sibling<'_>]) -> Option<Plain> {
    let texts: Option<Vec<&[u8]>> = ranked
        .iter()
        .filter_map(|s| s.value)
        .map(|value| match &value.0 {
            PlainForm::Json(text) => Some(text.as_ref()),
            PlainForm::Bytes(_) => None,
        })
        .collect();
    let texts = texts.filter(|texts| !texts.is_empty())?;
    // Joined objects may exceed the limit of one value; then the last writer wins.
    Plain::json_bytes(Bytes::from(json::merge(&texts))).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Hlc;
    use crate::dots::Dot;
    use alloc::string::ToString;
    use alloc::vec;

    fn stamp(ms: u64, origin: u32, counter: u64) -> Stamp {
        Stamp { hlc: Hlc::new(ms, 0), dot: Dot::new(Origin::new(origin, 0), counter) }
    }

    fn answer(strategy: &Strategy, siblings: &[(Stamp, Option<&Plain>)]) -> Resolved {
        let siblings: Vec<Sibling<'_>> =
            siblings.iter().map(|(stamp, value)| Sibling { stamp: *stamp, value: *value }).collect();
        let mut reversed = siblings.clone();
        reversed.reverse();
        let resolved = resolve(strategy, b"k", siblings);
        assert_eq!(resolve(strategy, b"k", reversed), resolved);
        resolved
    }

    fn json(text: &str) -> Plain {
        Plain::json(text).unwrap()
    }

    #[test]
    fn equal_clocks_are_told_apart_by_the_dot() {
        let (a, b) = (json("1"), json("2"));
        let resolved =
            answer(&Strategy::LastWriterWins, &[(stamp(5, 1, 9), Some(&a)), (stamp(5, 2, 1), Some(&b))]);
        assert_eq!(resolved.value, Some(b.clone()));
        let resolved =
            answer(&Strategy::LastWriterWins, &[(stamp(6, 1, 9), Some(&a)), (stamp(5, 2, 1), Some(&b))]);
        assert_eq!(resolved.value, Some(a.clone()));
        let resolved =
            answer(&Strategy::LastWriterWins, &[(stamp(6, 1, 9), None), (stamp(5, 2, 1), Some(&b))]);
        assert_eq!(resolved.value, None, "a later delete wins");
    }

    #[test]
    fn merge_joins_objects_and_leaves_the_rest_to_the_last_writer() {
        let (a, b, c) = (json(r#"{"x":1,"y":1}"#), json(r#"{"y":2,"z":2}"#), Plain::bytes("raw").unwrap());
        let siblings = [(stamp(5, 1, 1), Some(&a)), (stamp(7, 2, 1), Some(&b)), (stamp(6, 3, 1), None)];
        assert_eq!(answer(&Strategy::Merge, &siblings).value, Some(json(r#"{"x":1,"y":2,"z":2}"#)));
        let siblings = [(stamp(5, 1, 1), Some(&a)), (stamp(7, 2, 1), Some(&c))];
        assert_eq!(answer(&Strategy::Merge, &siblings).value, Some(c));
    }

    #[derive(Debug)]
    struct First;
    impl Resolver for First {
        fn name(&self) -> &'static str {
            "first"
        }
        fn resolve(&self, _: &[u8], siblings: &[Sibling<'_>]) -> Option<Plain> {
            siblings.first().and_then(|s| s.value.cloned())
        }
    }

    #[derive(Debug)]
    struct Longest;
    impl Resolver for Longest {
        fn name(&self) -> &'static str {
            "longest"
        }
        fn resolve(&self, _: &[u8], siblings: &[Sibling<'_>]) -> Option<Plain> {
            siblings.iter().filter_map(|s| s.value).max_by_key(|v| (v.as_bytes().len(), *v)).cloned()
        }
    }

    #[test]
    fn a_resolver_that_depends_on_order_is_found_out_and_not_believed() {
        let (a, b) = (json("111"), json("2"));
        let siblings = [(stamp(5, 1, 1), Some(&a)), (stamp(6, 2, 1), Some(&b))];
        let resolved = answer(&Strategy::Custom(Arc::new(First)), &siblings);
        assert_eq!(resolved, Resolved { value: Some(b.clone()), impure: true });
        let resolved = answer(&Strategy::Custom(Arc::new(Longest)), &siblings);
        assert_eq!(resolved, Resolved { value: Some(a.clone()), impure: false });
    }

    #[test]
    fn the_longest_prefix_decides() {
        let mut resolvers = Resolvers::default();
        resolvers.set("a/", Strategy::Merge);
        resolvers.set("a/b/", Strategy::Custom(Arc::new(Longest)));
        let names = |key: &str| resolvers.strategy(key.as_bytes()).name().to_string();
        assert_eq!(vec![names("a/x"), names("a/b/x"), names("b")], ["merge", "longest", "last_writer_wins"]);
    }
}
