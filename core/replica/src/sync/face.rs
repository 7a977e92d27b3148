//! What a client may ask of convergent state and what it hears, and the settings of the room. Who may ask is decided
//! where clients come in.

use crate::sync::values::{Conflict, Kind, Resolvers, View, Write};
use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::vec::Vec;
use bytes::Bytes;
use dwcp_base::{Hash, Hasher, ReplicaId, SettingsError};
use dwcp_crdt::VersionVector;
use dwcp_sync::{Limits, Timing};

/// Bytes of a prefix, and how many prefixes there may be.
const PREFIX_BYTES_MAX: usize = 1_024;
const PREFIXES_MAX: usize = 64;

/// Settings of state sync. Prefixes and resolvers must be the same on every node.
#[derive(Clone, Debug, Default)]
pub struct SyncSetup {
    pub timing: Timing,
    pub limits: Limits,
    pub resolvers: Resolvers,
    /// Keys below one of these belong to the ordered store alone; all others may be written here.
    pub ordered: Vec<Bytes>,
    /// Commands of the ordered store that write or compare keys below one of these are refused.
    pub convergent: Vec<Bytes>,
}

impl SyncSetup {
    /// # Errors
    /// The first setting outside its range.
    pub fn check(&self) -> Result<(), SettingsError> {
        self.timing.check()?;
        self.limits.check()?;
        for prefixes in [&self.ordered, &self.convergent] {
            let long = prefixes.iter().any(|prefix| prefix.is_empty() || prefix.len() > PREFIX_BYTES_MAX);
            if long || prefixes.len() > PREFIXES_MAX {
                return Err(SettingsError::Genesis("prefixes of keys are at most 64, of 1 to 1024 bytes"));
            }
        }
        let meets = |a: &Bytes, b: &Bytes| a.starts_with(b) || b.starts_with(a);
        if self.ordered.iter().any(|a| self.convergent.iter().any(|b| meets(a, b))) {
            return Err(SettingsError::Genesis("a prefix of keys is either ordered or convergent, not both"));
        }
        Ok(())
    }

    /// Stands for what must be the same on every node: prefixes, and the names of resolvers. Two custom resolvers of one
    /// name and different minds are not told apart.
    #[must_use]
    pub fn digest(&self) -> Hash {
        let mut hasher = Hasher::new("dwcp v3 sync settings");
        for prefixes in [&self.ordered, &self.convergent] {
            let prefixes: BTreeSet<&Bytes> = prefixes.iter().collect();
            hasher.update(&(prefixes.len() as u64).to_le_bytes());
            prefixes.into_iter().for_each(|prefix| {
                hasher.field(prefix);
            });
        }
        for (prefix, name) in self.resolvers.names() {
            hasher.field(prefix).field(name.as_bytes());
        }
        hasher.finish()
    }

    /// The ordered prefix that a key lies under.
    #[must_use]
    pub fn ordered_prefix(&self, key: &[u8]) -> Option<&Bytes> {
        self.ordered.iter().find(|prefix| key.starts_with(prefix))
    }
}

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SyncRequest {
    /// One frame: all of these or none. `wait`: on how many nodes, this one included, it must be durable before it is
    /// answered, where it goes by gossip; 0 and 1 are the same.
    Write {
        writes: Vec<Write>,
        wait: u8,
        timeout_ms: u32,
    },
    Get {
        key: Bytes,
        path: Vec<Bytes>,
    },
    /// Keys below a prefix, after one of them.
    List {
        prefix: Bytes,
        after: Option<Bytes>,
        limit: u32,
    },
    /// From now on every change below the prefix, until the client is gone.
    Watch {
        prefix: Bytes,
    },
    /// The newest conflicts that this node saw.
    Conflicts {
        limit: u32,
    },
    /// Where this node stands, and the digest of all it holds.
    Stand,
    /// Do these peers hold exactly the same? None: all of them.
    Compare {
        peers: Vec<ReplicaId>,
        timeout_ms: u32,
    },
}

impl SyncRequest {
    /// May a reader ask it?
    #[must_use]
    pub fn reads(&self) -> bool {
        !matches!(self, Self::Write { .. })
    }

    /// About what it weighs.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match self {
            Self::Write { writes, .. } => writes.iter().map(weight).sum(),
            Self::Get { key, path } => key.len() + path.iter().map(Bytes::len).sum::<usize>(),
            Self::List { prefix, .. } | Self::Watch { prefix } => prefix.len(),
            Self::Conflicts { .. } | Self::Stand => 0,
            Self::Compare { peers, .. } => peers.len(),
        }
    }
}

fn weight(write: &Write) -> usize {
    use crate::sync::values::Op;
    let value = match &write.op {
        Op::Put(value) | Op::PutMulti(value) | Op::Insert { value, .. } => value.as_bytes().len(),
        Op::AddForever(value)
        | Op::AddOnce(value)
        | Op::RemoveForGood(value)
        | Op::Add(value)
        | Op::Remove(value) => value.as_bytes().len(),
        Op::Grow(_) | Op::Adjust(_) | Op::Erase { .. } | Op::Delete | Op::Settle => 8,
    };
    64 + write.key.len() + write.path.iter().map(Bytes::len).sum::<usize>() + value
}

/// By which road a frame was acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Road {
    /// The operations changed nothing, so there is no frame.
    Nothing,
    /// Committed in the ordered log and applied.
    Log,
    /// Durable here; it spreads by push and exchange.
    Gossip,
}

impl Road {
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Log => "log",
            Self::Gossip => "gossip",
        }
    }
}

/// A write that was acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SyncWritten {
    pub road: Road,
    /// The last counter of its frame; 0 for none.
    pub last: u64,
    /// On how many nodes it is known to be durable, this one included.
    pub nodes: u8,
    pub latency_us: u64,
}

/// What a client hears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SyncReply {
    Written(SyncWritten),
    /// `kinds`: more than one while a clash of types waits to be settled.
    Value {
        view: Option<View>,
        kinds: Vec<Kind>,
        siblings: u32,
    },
    Keys {
        items: Vec<(Bytes, View)>,
        more: bool,
    },
    Changed {
        items: Vec<(Bytes, Option<View>)>,
    },
    Conflicts {
        count: u64,
        open: u64,
        events: Vec<Conflict>,
    },
    Stand {
        digest: Hash,
        applied: VersionVector,
        floor: u64,
        conflicts: u64,
        keys: u64,
    },
    /// Peers that hold the same, that hold something else, and that said nothing.
    Compared {
        level: Vec<ReplicaId>,
        differs: Vec<ReplicaId>,
        silent: Vec<ReplicaId>,
    },
    /// `definite`: nothing was written and nothing will be.
    Refused {
        reason: String,
        definite: bool,
    },
}

impl SyncReply {
    /// About what it weighs.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match self {
            Self::Value { view, .. } => view.as_ref().map_or(0, view_bytes),
            Self::Keys { items, .. } => items.iter().map(|(key, view)| key.len() + view_bytes(view)).sum(),
            Self::Changed { items } => {
                items.iter().map(|(key, view)| key.len() + view.as_ref().map_or(0, view_bytes)).sum()
            }
            Self::Conflicts { events, .. } => events.iter().map(|event| 256 + event.key.len()).sum(),
            Self::Stand { applied, .. } => 64 + applied.origins_count() * 32,
            Self::Refused { reason, .. } => reason.len(),
            Self::Written(_) | Self::Compared { .. } => 64,
        }
    }
}

pub(crate) fn view_bytes(view: &View) -> usize {
    32 + match view {
        View::Register(value) => value.as_bytes().len(),
        View::Siblings(values) | View::List(values) => values.iter().map(|v| 16 + v.as_bytes().len()).sum(),
        View::Set(values) => values.iter().map(|v| 16 + v.as_bytes().len()).sum(),
        View::Count(_) => 16,
        View::Map(fields) => fields.iter().map(|(name, view)| name.len() + view_bytes(view)).sum(),
    }
}
