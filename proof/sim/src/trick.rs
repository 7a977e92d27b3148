//! The ways to lie there are, each with its bit in the dial `tricks`, and which of them a liar may draw by itself. What
//! each of them does stands in `puppet`, `false_words`, `false_frames`, `held_back` and `convergent`.

use crate::dials::Dials;
use dwcp_base::Chance;

/// A way to lie. The number is its bit in the dial `tricks`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Trick {
    /// Two payloads for one slot, and votes for both, each to its half of the peers.
    Equivocate,
    /// Prepares and commits do not leave, or only to some.
    Withhold,
    /// A different VIEW-CHANGE for every peer, most of them forgetful.
    SplitViewChange,
    /// Old messages, its own and others', again.
    Replay,
    /// One client's frames are not heard.
    Censor,
    /// Proposals leave at 0.9 of the view timer.
    Delay,
    /// Chunks for state transfer are altered.
    LieAsDonor,
    /// Far-future votes and garbage.
    Flood,
    /// A second core under the same key, the peers split between the two.
    Twins,
    /// Every vote several times, and votes for what was not proposed.
    VoteTwice,
    /// Votes in others' names.
    Forge,
    /// Proposals with frames no client signed.
    ForgeFrames,
    /// CHECKPOINTs with wrong digests.
    FalseCheckpoint,
    /// NEW-VIEWs that do not follow from their VIEW-CHANGEs.
    BogusNewView,
    /// Clients get altered results.
    SpoilReplies,
    /// Proposals from the future.
    WrongTime,
    /// Says nothing at all for a while.
    Silence,
    /// VIEW-CHANGEs with another digest's pre-prepare before the prepares of a slot it equivocated about.
    MixProofs,
    /// VIEW-CHANGEs with the oldest proof of each slot that it has seen anywhere.
    OldProofs,
    /// The same NEW-VIEW to all, with null requests for what it should carry.
    NullNewView,
    /// Donates snapshots whose sessions are gone.
    ForgetSessions,
    /// Its clock runs at three times the pace for a while, and what it proposes says so, to all alike.
    FastClock,
    /// Proposals leave late, though well within the view timer.
    Dawdle,
    /// Frames of its clients are shown to all but the primary.
    HideFromPrimary,
    /// Several liars keep a proof to themselves: of a slot that no honest replica can prepare they collect the prepares,
    /// are silent about it when the view changes, and show it a view later. Goes with `liars_first` of 2.
    SecretProof,
    /// SEALEDs that look best, of logs that are not there, whether the segment ends or not; as the primary, Closes by them.
    FalseSealed,
    /// SEALEDs that are best by their term and cannot be the end, or contradict the best.
    LowSeal,
    /// Whoever asks for entries gets none, or made-up ones.
    FalseEntries,
    /// SUSPECTs of every segment, all the time.
    Storm,
    /// Words about Ticks that say another state or log; as the primary, Anchors that do.
    FalseAnchors,
    /// What members said in earlier epochs, again, as it was and as if it were of the open one.
    OldEpochs,
    /// Garbage between members of a segment.
    SegmentGarbage,
    /// Acknowledges entries that it does not hold, and votes for everybody.
    FalseRaft,
    /// Keeps Anchors back, says that it is sealed with a log made up behind the last one, shows that log, and as the primary
    /// orders the Anchor it kept together with a Close by that log.
    AnchorHeldBack,
    /// As the primary it asks for floors and ends of origins that follow from its own stand alone.
    AsksUnheard,
    /// As the primary it orders floors and ends that nobody was asked about.
    OrdersUnasked,
    /// Whoever needs a convergent store is offered one in which a value is another.
    FalseStore,
    /// Chunks for state transfer have no end: part after part of nothing, each just in time.
    EndlessDonor,
    /// Asks everybody for chunks that it does not need, all the time.
    AsksForChunks,
    /// Signs two histories of convergent values, shows each to some, and goes on along both.
    Fork,
    /// Says that it has not applied the convergent frames that it has.
    WithholdAcks,
    /// Says that it has convergent frames that are not, or no longer has what it keeps.
    FalseHeads,
    /// Convergent frames in others' names.
    ForgeOrigins,
    /// Asks everybody about ends of origins and hands over what was said as if it sufficed; says nothing about any other end.
    FalseEnds,
    /// The same where it does suffice, with its own lie that it stands there: the lowest end of all that can be had.
    LowEnds,
}

impl Trick {
    pub const ALL: [Self; 45] = [
        Self::Equivocate,
        Self::Withhold,
        Self::SplitViewChange,
        Self::Replay,
        Self::Censor,
        Self::Delay,
        Self::LieAsDonor,
        Self::Flood,
        Self::Twins,
        Self::VoteTwice,
        Self::Forge,
        Self::ForgeFrames,
        Self::FalseCheckpoint,
        Self::BogusNewView,
        Self::SpoilReplies,
        Self::WrongTime,
        Self::Silence,
        Self::MixProofs,
        Self::OldProofs,
        Self::NullNewView,
        Self::ForgetSessions,
        Self::FastClock,
        Self::Dawdle,
        Self::HideFromPrimary,
        Self::SecretProof,
        Self::FalseSealed,
        Self::LowSeal,
        Self::FalseEntries,
        Self::Storm,
        Self::FalseAnchors,
        Self::OldEpochs,
        Self::SegmentGarbage,
        Self::FalseRaft,
        Self::AnchorHeldBack,
        Self::AsksUnheard,
        Self::OrdersUnasked,
        Self::FalseStore,
        Self::EndlessDonor,
        Self::AsksForChunks,
        Self::Fork,
        Self::WithholdAcks,
        Self::FalseHeads,
        Self::ForgeOrigins,
        Self::FalseEnds,
        Self::LowEnds,
    ];

    /// Some liars draw one of these besides.
    pub(crate) const OF_TRANSFERS: [Self; 2] = [Self::EndlessDonor, Self::AsksForChunks];

    /// Where replicas have state sync, a liar draws one of these besides, or none; and half of them `FalseStore`.
    pub(crate) const OF_ROOMS: [Self; 3] = [Self::AsksUnheard, Self::OrdersUnasked, Self::FalseStore];

    /// There it draws one or two of these as well, or none.
    pub(crate) const OF_FRAMES: [Self; 5] =
        [Self::Fork, Self::WithholdAcks, Self::FalseHeads, Self::ForgeOrigins, Self::FalseEnds];

    /// Where segments open, a liar draws one or two of these besides, and now and then `AnchorHeldBack`.
    pub(crate) const OF_SEGMENTS: [Self; 8] = [
        Self::FalseSealed,
        Self::LowSeal,
        Self::FalseEntries,
        Self::Storm,
        Self::FalseAnchors,
        Self::OldEpochs,
        Self::SegmentGarbage,
        Self::FalseRaft,
    ];

    /// Those that are in what a liar is, and not in single acts: counted once per liar.
    pub(crate) const INNATE: [Self; 4] =
        [Self::Twins, Self::FastClock, Self::AsksUnheard, Self::OrdersUnasked];

    /// The tricks a liar draws by itself, the first ones of `ALL`; the others are for those who ask for them.
    pub(crate) const DRAWN: usize = 17;

    #[must_use]
    pub const fn bit(self) -> u64 {
        1 << self as u8
    }

    /// What a liar draws that nobody made for something, as bits.
    #[must_use]
    pub(crate) fn drawn(dials: &Dials, chance: &mut Chance) -> u64 {
        let mut all = [Self::Equivocate; Self::DRAWN];
        all.copy_from_slice(&Self::ALL[..Self::DRAWN]);
        chance.shuffle(&mut all);
        let count = usize::try_from(chance.between(2, 5)).expect("few tricks");
        let mut tricks = all[..count].iter().map(|trick| trick.bit()).sum::<u64>();
        if dials.switches() {
            let mut chance = chance.fork("of segments");
            let mut all = Self::OF_SEGMENTS;
            chance.shuffle(&mut all);
            let count = usize::try_from(chance.between(1, 2)).expect("few tricks");
            tricks |= all[..count].iter().map(|trick| trick.bit()).sum::<u64>();
            let held_back = chance.fork("of borders").per_mille(200);
            tricks |= if held_back { Self::AnchorHeldBack.bit() } else { 0 };
        }
        if dials.convergent_ms > 0 {
            let mut of_rooms = chance.fork("of rooms");
            let drawn = of_rooms.per_mille(600).then(|| of_rooms.pick(&Self::OF_ROOMS).copied()).flatten();
            tricks |= drawn.map_or(0, Self::bit);
            let mut chance = chance.fork("of frames");
            let mut all = Self::OF_FRAMES;
            chance.shuffle(&mut all);
            let count = if chance.per_mille(700) { chance.between(1, 2) } else { 0 };
            let count = usize::try_from(count).expect("few tricks");
            tricks |= all[..count].iter().map(|trick| trick.bit()).sum::<u64>();
            // Few stores are fetched at all, and fewer from a liar.
            let falsifies = chance.fork("of stores").per_mille(500);
            tricks |= if falsifies { Self::FalseStore.bit() } else { 0 };
            let asks_low = chance.fork("of ends").per_mille(150);
            tricks |= if asks_low { Self::LowEnds.bit() } else { 0 };
        }
        let mut chance = chance.fork("of transfers");
        let drawn = chance.per_mille(500).then(|| chance.pick(&Self::OF_TRANSFERS).copied()).flatten();
        tricks |= drawn.map_or(0, Self::bit);
        tricks
    }
}
