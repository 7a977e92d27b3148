//! The rules a Raft node is held to, each one sentence, and what it looks like when one is broken. It knows no node and
//! no schedule. Read `judge` next for how each is decided.

use core::fmt;

macro_rules! rules {
    ($($(#[$doc:meta])* $name:ident => $sentence:literal,)*) => {
        /// What must hold of every implementation.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Rule { $($(#[$doc])* $name,)* }

        impl Rule {
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The rule in one sentence.
            #[must_use]
            pub fn sentence(self) -> &'static str {
                match self { $(Self::$name => $sentence,)* }
            }
        }
    };
}

rules! {
    OneLeaderPerTerm => "at most one member leads in a term",
    LeaderIsComplete => "a leader holds every entry that was committed in an earlier term",
    LogsMatch => "two logs with the same index and term in an entry are equal up to it, and say the same chain",
    CommittedNeverChanges => "what was once reported committed stays, at every member, with its index, term, bytes and chain",
    CommitSurvivesCrashes => "whatever members crash now, nobody without a committed entry can be elected, and no choice among seals misses it",
    CommittedWasProposed => "a committed payload was taken by `propose` at exactly that place, once; a refused one is nowhere",
    VotesOnce => "a member votes for one candidate in a term, across restarts",
    PromisesAreDurable => "what a vote or acknowledgement promises is on disk before it leaves",
    ReadsAreLinearizable => "a read is answered at or past everything that was committed before it was asked",
    ReadsAreAnswered => "a read that was taken is answered once, ready or failed, unless the member crashed",
    SealIsSilent => "a sealed member sends nothing, takes nothing and leads nothing, for ever, across restarts",
    SealIsTrue => "a seal names the end of the log, which holds all that was acknowledged, and a restart says the same",
    SealChoiceCovers => "of any majority of seals the best by (term, index) holds everything that was committed",
    MarkerEnds => "nothing is proposed or committed after a Marker, and its commit is told",
    ReadsAreConfirmed => "a read is answered after a majority, neither sealed nor with a Marker in its log, spoke since it was asked",
    TransferMoves => "leadership can be handed over, and is not lost when it cannot",
    QueuesAreBounded => "uncommitted bytes, waiting reads and bytes in flight stay within their limits",
    NonsenseIsHarmless => "no message makes a node panic, change what it called committed, or stop a healthy majority for good",
    ForeignRecordsAreRefused => "records of another epoch, or damaged ones, are refused with a reason",
    RestartKeepsPromises => "a node opened from what is on disk is the node that wrote it",
    SnapshotsCatchUp => "a member that needs discarded entries is reported, and goes on from a snapshot",
    FaceIsConsistent => "what a node says of itself agrees with itself and with what it does",
    Progress => "when the faults end, something new commits at every member that is not sealed, within a bounded time",
}

/// A broken rule: where, when and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub rule: Rule,
    /// The implementation.
    pub subject: String,
    /// The story, or `schedule`.
    pub part: &'static str,
    pub seed: u64,
    /// Virtual microseconds since the beginning.
    pub at_us: u64,
    pub detail: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {} seed {} at {} us: {:?} ({}): {}",
            self.subject,
            self.part,
            self.seed,
            self.at_us,
            self.rule,
            self.rule.sentence(),
            self.detail
        )
    }
}
