//! Safety rules that a proof-only build can switch off, one at a time, to show that the judges notice.
//! Without the feature `mutants` the set has no storage and every question is the constant `false`.

/// A rule that may be switched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Mutant {
    /// Harmless: changes nothing. The suite must *not* catch it.
    Harmless = 0,
    /// Quorums of 2f+1 (forks at n = 5 and 6).
    QuorumTwoFPlusOne,
    /// Votes leave before they are durable.
    VoteBeforeSync,
    /// The new view takes the first proof found for a sequence, not the one of the highest view.
    FirstProofNotHighest,
    /// A sender's vote is counted as often as it arrives.
    DuplicateVotesCounted,
    /// Snapshots leave the session table out.
    SnapshotWithoutSessions,
    /// The prepared certificates' digests are not compared with their pre-prepare.
    PreparedDigestUnchecked,
    /// A backup prepares every proposal for a slot, not only the first.
    PrepareTwice,
    /// Signatures of votes are not verified.
    SignatureUnchecked,
    /// Client signatures are not verified before preparing.
    ClientSignatureUnchecked,
    /// Votes of an earlier view count in this one.
    StaleViewVotesCounted,
    /// VIEW-CHANGE messages leave out what was prepared.
    ViewChangeForgetsPrepared,
    /// Backups take the primary's NEW-VIEW without recomputing its choice.
    NewViewUnchecked,
    /// Commands execute again when they come again.
    NoDeduplication,
    /// Only the last sequence of a session is remembered, so an older one that arrives late is skipped or doubled.
    SingleSequenceSession,
    /// Commit on prepares alone: a slot executes once it is prepared.
    ExecutePrepared,
    /// Slots execute as they commit, not in order.
    ExecuteOutOfOrder,
    /// A snapshot from one donor is installed without checking it against the certificate.
    StateTransferUnchecked,
    /// One CHECKPOINT makes a stable one, instead of q.
    WeakCheckpoint,
    /// A restarted replica forgets the view and votes it signed.
    ForgetVotesOnRestart,
    /// A new incarnation votes at once.
    LearnerVotes,
    /// A wiped disk rejoins under the same incarnation.
    WipedDiskRejoins,
    /// Slots execute, and replies leave, as soon as the primary has assigned them.
    ReplyBeforeCommit,
    /// Null requests of a new view are not made durable.
    NullNotDurable,
    /// The log time of a proposal is not checked against the backup's clock.
    ClockUnchecked,
    /// The view-change timer neither doubles nor grows.
    TimerWithoutBackoff,
    /// A lost VIEW-CHANGE is never sent again.
    ViewChangeSentOnce,
    /// Watermarks are not enforced: far-future messages are stored.
    NoWatermarks,
    /// The digest does not cover the session table.
    DigestWithoutSessions,
    /// A request that stays unexecuted never leads to a view change (a censoring primary goes free).
    CensorshipIgnored,
    /// A primary that proposes slowly, though within the timer, is never left for it.
    SlowPrimaryTolerated,
    /// Batches do not grow with load: a frame a slot.
    FixedBatch,
    /// A backup that is shown a client's frame by another backup does not pass it on to the primary.
    RelayNotForwarded,
    /// A batch waits until it is full, or for a fixed time.
    BatchWaits,
    /// A gateway takes a client's frame without looking at the signature; the others look before they prepare.
    AdmittedUnverified,
    /// The digest of a session is over its results in the order in which they came to be here.
    DigestInArrivalOrder,
    /// A vote counts whatever configuration and incarnation it was cast under.
    ConfigurationUnchecked,
    /// What was said in another epoch is taken as if said in this one.
    EpochUnchecked,
    /// Raft: a vote leaves before it is durable.
    RaftVoteBeforeSync,
    /// Raft: an acknowledgement leaves before the entries are durable.
    RaftAckBeforeSync,
    /// Raft: a leader counts itself for entries that are not durable with it.
    RaftLeaderCountsUnsynced,
    /// Raft: a restarted member forgets for whom it voted in its term.
    RaftForgetsVoteOnRestart,
    /// Raft: votes go to the longest log, not to the one with the latest term.
    RaftLongestIndexVote,
    /// Raft: entries of earlier terms commit by counting (figure 8).
    RaftCommitOldTerm,
    /// Raft: a leader answers reads without asking whether it still leads.
    RaftLeaseReads,
    /// Raft: a member that holds a Marker helps to confirm reads.
    RaftMarkerHolderConfirmsReads,
    /// Raft: a sealed member goes on taking part.
    RaftIgnoresSeal,
    /// A Close holds though the last Anchor is not in the log that ends there.
    CloseBelowAnchor,
    /// A Close that was prepared before the last Anchor holds behind it.
    CloseAnchorUnchecked,
    /// A replica says where its log ends before that is durable.
    SealBeforeSync,
    /// f + 1 complaints stop a segment.
    WeakSuspect,
    /// A Close is prepared without its entries.
    CloseWithoutData,
    /// Anchors are executed whoever vouched for them.
    AnchorUnchecked,
    /// Nobody compares an Anchor with what it executed itself.
    AnchorComparesNothing,
    /// A restarted replica forgets up to where it has vouched for a segment's log.
    AnchorForgotten,
    /// What was deferred is executed before the segment's own entries.
    DeferredFirst,
    /// A root checkpoint covers the live state while a segment is open.
    LiveCheckpoint,
    /// Commands that come back from a segment's end are forgotten.
    PoolForgetsAtClose,
    /// f + 1 sealed logs justify a Close.
    CloseOfFewReports,
    /// The choice among sealed logs goes by length, not by term first.
    CloseLongestLog,
    /// A replica takes part in a segment whose Open it has not seen decided.
    AckBeforeOpen,
    /// All segments share one log: what was said of an earlier one's counts in this one.
    SegmentLogReused,
    /// A segment begins where the log stood when its Open was proposed, not where the fold has come to.
    BaseAsProposed,
    /// What is committed in a segment is labelled as if a certificate of the root covered it.
    LabelAtCommit,
    /// The calm after a forced Close is counted by the replica's own clock, not by ordered times.
    CalmByOwnClock,
    /// Sync: frames are put in line by their numbers; whether they name their predecessor's hash is not looked at.
    SyncHashIgnored,
    /// Sync: the first half of a frame is applied.
    SyncFrameInPart,
    /// Sync: a restarted replica forgets the last frame it made, and uses its dots again.
    SyncDotsReused,
    /// Sync: frames are dropped as soon as this replica has applied them, whatever the others acknowledged.
    SyncCollectsWithoutFloor,
    /// Sync: frames of an origin that contradicted itself are still applied.
    SyncLiarNotFrozen,
    /// Sync: a frame leaves before it is durable.
    SyncPushBeforeSync,
    /// Sync: what one member says of a damaged key is adopted.
    SyncRepairByOne,
    /// Log time follows each entry's own time, also back: to what was deferred when a segment ends, say.
    LogTimeGoesBack,
    /// The expiry clock takes gaps in log time whole, so that an outage or a slow switch ends leases.
    ExpiryLeaps,
    /// The entries of a segment have, for each replica, the time at which its own clock stands.
    ExpiryByOwnClock,
    /// In a segment log time may go on to half a second beyond log time, with every entry, instead of beyond a follower's clock.
    LogTimeRatchets,
    /// State sync in a node: floors and ends are prepared and take effect whoever consented.
    RoomConsentUnjudged,
    /// State sync in a node: a member consents to any floor it is asked about.
    RoomFloorUnchecked,
    /// State sync in a node: a member consents to any end of an origin it is asked about.
    RoomEndUnchecked,
    /// State sync in a node: who says where it stands with an origin that is to end goes on taking its frames.
    RoomEndMoves,
    /// State sync in a node: an end may leave out what the log has.
    RoomEndBelowLog,
    /// State sync in a node: whose end is asked about counts as known to lie, without proof.
    RoomDoubtUnproven,
    /// State sync in a node: a writer is told that the log has its frame, though it lacks one before it.
    RoomToldWithGap,
    /// State sync in a node: a writer is told before its frame is durable.
    RoomToldBeforeSync,
    /// State sync in a node: a store is taken from one donor that offers it, though nobody offers the same.
    RoomStoreOfOneDonor,
    /// State sync in a node: the primary takes its own stand for that of all members, and asks about what follows from it.
    RoomAsksUnheard,
    /// State sync in a node: the primary orders floors and ends without asking anybody.
    RoomOrdersUnasked,
    /// Values: a deleted register leaves nothing behind.
    CrdtDeleteWithoutTombstone,
    /// Values: of a register's versions the one that arrived last stays.
    CrdtArrivalOrder,
    /// Values: a key's hash is that of the change that came, not of what it made of the value.
    CrdtDigestOfRemote,
    /// Values: tombstones go as soon as this replica has applied the delete, whatever the others acknowledged.
    CrdtCollectsWithoutFloor,
    /// Values: the clock takes no note of what others wrote.
    CrdtClockNotMerged,
    /// Values: a resolver is handed siblings as this replica met them, and its first answer is believed.
    CrdtResolverByOrder,
}

impl Mutant {
    /// Every mutant, the harmless one first.
    pub const ALL: &'static [Self] = &[
        Self::Harmless,
        Self::QuorumTwoFPlusOne,
        Self::VoteBeforeSync,
        Self::FirstProofNotHighest,
        Self::DuplicateVotesCounted,
        Self::SnapshotWithoutSessions,
        Self::PreparedDigestUnchecked,
        Self::PrepareTwice,
        Self::SignatureUnchecked,
        Self::ClientSignatureUnchecked,
        Self::StaleViewVotesCounted,
        Self::ViewChangeForgetsPrepared,
        Self::NewViewUnchecked,
        Self::NoDeduplication,
        Self::SingleSequenceSession,
        Self::ExecutePrepared,
        Self::ExecuteOutOfOrder,
        Self::StateTransferUnchecked,
        Self::WeakCheckpoint,
        Self::ForgetVotesOnRestart,
        Self::LearnerVotes,
        Self::WipedDiskRejoins,
        Self::ReplyBeforeCommit,
        Self::NullNotDurable,
        Self::ClockUnchecked,
        Self::TimerWithoutBackoff,
        Self::ViewChangeSentOnce,
        Self::NoWatermarks,
        Self::DigestWithoutSessions,
        Self::CensorshipIgnored,
        Self::SlowPrimaryTolerated,
        Self::FixedBatch,
        Self::RelayNotForwarded,
        Self::BatchWaits,
        Self::AdmittedUnverified,
        Self::DigestInArrivalOrder,
        Self::ConfigurationUnchecked,
    ];

    /// Those of the segment protocol. The tests of `core/raft` show what each of them breaks, the simulator some of them in
    /// whole clusters.
    pub const RAFT: &'static [Self] = &[
        Self::RaftVoteBeforeSync,
        Self::RaftAckBeforeSync,
        Self::RaftLeaderCountsUnsynced,
        Self::RaftForgetsVoteOnRestart,
        Self::RaftLongestIndexVote,
        Self::RaftCommitOldTerm,
        Self::RaftLeaseReads,
        Self::RaftMarkerHolderConfirmsReads,
        Self::RaftIgnoresSeal,
    ];

    /// Those of opening, anchoring and ending a segment.
    pub const SEGMENT: &'static [Self] = &[
        Self::EpochUnchecked,
        Self::CloseBelowAnchor,
        Self::CloseAnchorUnchecked,
        Self::SealBeforeSync,
        Self::WeakSuspect,
        Self::CloseWithoutData,
        Self::AnchorUnchecked,
        Self::AnchorComparesNothing,
        Self::AnchorForgotten,
        Self::DeferredFirst,
        Self::LiveCheckpoint,
        Self::PoolForgetsAtClose,
        Self::CloseOfFewReports,
        Self::CloseLongestLog,
        Self::AckBeforeOpen,
        Self::SegmentLogReused,
        Self::BaseAsProposed,
        Self::LabelAtCommit,
        Self::CalmByOwnClock,
    ];

    /// Those of log time, by which leases and sessions end.
    pub const TIME: &'static [Self] =
        &[Self::LogTimeGoesBack, Self::ExpiryLeaps, Self::ExpiryByOwnClock, Self::LogTimeRatchets];

    /// Those of state sync: the tests of `core/sync` and the simulator show what each of them breaks.
    pub const SYNC: &'static [Self] = &[
        Self::SyncHashIgnored,
        Self::SyncFrameInPart,
        Self::SyncDotsReused,
        Self::SyncCollectsWithoutFloor,
        Self::SyncLiarNotFrozen,
        Self::SyncPushBeforeSync,
        Self::SyncRepairByOne,
    ];

    /// Those of state sync as part of a node: the simulator of whole clusters shows what each of them breaks.
    pub const ROOM: &'static [Self] = &[
        Self::RoomConsentUnjudged,
        Self::RoomFloorUnchecked,
        Self::RoomEndUnchecked,
        Self::RoomEndMoves,
        Self::RoomEndBelowLog,
        Self::RoomDoubtUnproven,
        Self::RoomToldWithGap,
        Self::RoomToldBeforeSync,
        Self::RoomStoreOfOneDonor,
        Self::RoomAsksUnheard,
        Self::RoomOrdersUnasked,
    ];

    /// Those of convergent values: the simulator shows what each of them breaks.
    pub const CRDT: &'static [Self] = &[
        Self::CrdtDeleteWithoutTombstone,
        Self::CrdtArrivalOrder,
        Self::CrdtDigestOfRemote,
        Self::CrdtCollectsWithoutFloor,
        Self::CrdtClockNotMerged,
        Self::CrdtResolverByOrder,
    ];
}

/// The rules that are switched off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Mutants {
    #[cfg(feature = "mutants")]
    off: u128,
}

impl Mutants {
    /// True when the rule is switched off. Constant `false` outside proof builds.
    #[inline]
    #[must_use]
    pub const fn on(self, mutant: Mutant) -> bool {
        #[cfg(feature = "mutants")]
        {
            self.off & (1u128 << mutant as u8) != 0
        }
        #[cfg(not(feature = "mutants"))]
        {
            let _ = mutant;
            false
        }
    }

    /// Switches one rule off.
    #[cfg(feature = "mutants")]
    #[must_use]
    pub const fn with(self, mutant: Mutant) -> Self {
        Self { off: self.off | (1u128 << mutant as u8) }
    }

    /// True when any rule but the harmless one is off: the core's own assertions then stand back, so that the judges
    /// must notice by themselves.
    #[must_use]
    pub const fn any(self) -> bool {
        #[cfg(feature = "mutants")]
        {
            self.off > 1
        }
        #[cfg(not(feature = "mutants"))]
        {
            false
        }
    }
}
