//! What a judge says. A judge that is content returns an empty `Findings`; each finding names its judge, one reason in one line, and
//! the evidence a person needs to see it. A judge never panics on a history, however corrupt.

use std::fmt;

/// Findings kept per judge; the rest is only counted.
pub const FINDINGS_MAX: usize = 32;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Judge {
    Prefix,
    OneLog,
    ExactlyOnce,
    ReadBack,
    SignOnce,
    Silence,
    Stop,
    Decision,
    Watch,
    Lease,
    Digest,
    Live,
    Label,
    Bounds,
    Linear,
    SyncValue,
    SyncConflict,
    SyncWhole,
    SyncLost,
    SyncConverge,
    SyncFrozen,
    SyncClock,
    SyncFloor,
    SyncEnd,
}

impl Judge {
    pub const ALL: [Self; 24] = [
        Self::Prefix,
        Self::OneLog,
        Self::ExactlyOnce,
        Self::ReadBack,
        Self::SignOnce,
        Self::Silence,
        Self::Stop,
        Self::Decision,
        Self::Watch,
        Self::Lease,
        Self::Digest,
        Self::Live,
        Self::Label,
        Self::Bounds,
        Self::Linear,
        Self::SyncValue,
        Self::SyncConflict,
        Self::SyncWhole,
        Self::SyncLost,
        Self::SyncConverge,
        Self::SyncFrozen,
        Self::SyncClock,
        Self::SyncFloor,
        Self::SyncEnd,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Prefix => "prefix",
            Self::OneLog => "one-log",
            Self::ExactlyOnce => "exactly-once",
            Self::ReadBack => "read-back",
            Self::SignOnce => "sign-once",
            Self::Silence => "silence",
            Self::Stop => "stop",
            Self::Decision => "decision",
            Self::Watch => "watch",
            Self::Lease => "lease",
            Self::Digest => "digest",
            Self::Live => "live",
            Self::Label => "label",
            Self::Bounds => "bounds",
            Self::Linear => "linear",
            Self::SyncValue => "sync-value",
            Self::SyncConflict => "sync-conflict",
            Self::SyncWhole => "sync-whole",
            Self::SyncLost => "sync-lost",
            Self::SyncConverge => "sync-converge",
            Self::SyncFrozen => "sync-frozen",
            Self::SyncClock => "sync-clock",
            Self::SyncFloor => "sync-floor",
            Self::SyncEnd => "sync-end",
        }
    }
}

impl fmt::Display for Judge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub judge: Judge,
    pub reason: String,
    pub evidence: Vec<String>,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.judge, self.reason)?;
        self.evidence.iter().try_for_each(|line| write!(f, "\n    {line}"))
    }
}

/// At most `FINDINGS_MAX` findings, and how many there were in all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    kept: Vec<Finding>,
    total: u64,
}

impl Findings {
    pub fn is_empty(&self) -> bool {
        self.total == 0
    }

    pub fn total(&self) -> u64 {
        self.total
    }

    pub fn iter(&self) -> impl Iterator<Item = &Finding> {
        self.kept.iter()
    }

    pub fn first(&self) -> Option<&Finding> {
        self.kept.first()
    }

    pub fn push(&mut self, judge: Judge, reason: impl Into<String>, evidence: Vec<String>) {
        self.total += 1;
        if self.kept.len() < FINDINGS_MAX {
            self.kept.push(Finding { judge, reason: reason.into(), evidence });
        }
    }

    pub fn has(&self, text: &str) -> bool {
        self.kept.iter().any(|finding| finding.reason.contains(text))
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.kept.iter().try_for_each(|finding| writeln!(f, "{finding}"))?;
        let hidden = self.total - self.kept.len() as u64;
        if hidden > 0 { writeln!(f, "... and {hidden} more") } else { Ok(()) }
    }
}

/// The outcome of a linearizability check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Linearizable,
    Violation {
        reason: String,
        evidence: Vec<String>,
    },
    /// Neither shown nor refuted within the budget. Never to be read as a pass.
    BudgetExceeded {
        steps: u64,
    },
}

impl Verdict {
    pub fn is_linearizable(&self) -> bool {
        *self == Self::Linearizable
    }

    pub fn is_violation(&self) -> bool {
        matches!(self, Self::Violation { .. })
    }

    pub(crate) fn violation(reason: impl Into<String>, evidence: Vec<String>) -> Self {
        Self::Violation { reason: reason.into(), evidence }
    }
}

/// Bounds a search by the number of operations it may try to place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    pub steps_max: u64,
}

impl Default for Budget {
    /// Some seconds of work in a release build.
    fn default() -> Self {
        Self { steps_max: 5_000_000 }
    }
}
