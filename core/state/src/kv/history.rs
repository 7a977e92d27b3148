//! The versions of one key, oldest first. Most keys of a large store have one version, which costs no list.

use crate::kv::store::Version;
use alloc::collections::VecDeque;
use alloc::sync::Arc;

/// See the head of this file. Never empty in the index; bounded by the quota, as every version counts.
#[derive(Clone, Debug)]
pub(crate) enum History {
    One(Arc<Version>),
    /// Any number but one.
    Many(VecDeque<Arc<Version>>),
}

impl History {
    /// The key whose history it is; empty only when there are no versions.
    pub(crate) fn key(&self) -> &[u8] {
        self.back().map_or(&[], |version| version.key.as_ref())
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            Self::One(_) => 1,
            Self::Many(versions) => versions.len(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn get(&self, place: usize) -> Option<&Arc<Version>> {
        match self {
            Self::One(version) => Some(version).filter(|_| place == 0),
            Self::Many(versions) => versions.get(place),
        }
    }

    pub(crate) fn front(&self) -> Option<&Arc<Version>> {
        self.get(0)
    }

    pub(crate) fn back(&self) -> Option<&Arc<Version>> {
        match self {
            Self::One(version) => Some(version),
            Self::Many(versions) => versions.back(),
        }
    }

    /// How many versions, from the oldest on, `before` holds for.
    pub(crate) fn partition_point(&self, before: impl Fn(&Version) -> bool) -> usize {
        match self {
            Self::One(version) => usize::from(before(version)),
            Self::Many(versions) => versions.partition_point(|version| before(version)),
        }
    }

    pub(crate) fn push_back(&mut self, version: Arc<Version>) {
        match self {
            Self::One(one) => *self = Self::Many(VecDeque::from([one.clone(), version])),
            Self::Many(versions) if versions.is_empty() => *self = Self::One(version),
            Self::Many(versions) => versions.push_back(version),
        }
    }

    pub(crate) fn pop_front(&mut self) -> Option<Arc<Version>> {
        self.pop(VecDeque::pop_front)
    }

    pub(crate) fn pop_back(&mut self) -> Option<Arc<Version>> {
        self.pop(VecDeque::pop_back)
    }

    fn pop(
        &mut self,
        end: impl FnOnce(&mut VecDeque<Arc<Version>>) -> Option<Arc<Version>>,
    ) -> Option<Arc<Version>> {
        match self {
            Self::One(version) => {
                let version = version.clone();
                *self = Self::Many(VecDeque::new());
                Some(version)
            }
            Self::Many(versions) => {
                let popped = end(versions);
                if let (1, Some(left)) = (versions.len(), versions.front()) {
                    *self = Self::One(left.clone());
                }
                popped
            }
        }
    }
}
