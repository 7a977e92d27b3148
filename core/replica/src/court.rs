//! What a replica knows when it judges signed words about the open segment, and proposals that end it: the control state
//! as executed so far, and its own log. Reads only; `admit` asks it before PREPARE, `apply` at execution.

use crate::control::Control;
use crate::segment::SegmentNode;
use crate::sync::writer;
use dwcp_base::{ClusterId, Crypto, Index, Mutant, Mutants, PublicKey, Quorum, ReplicaId, decode};
use dwcp_log::anchor::Anchor;
use dwcp_log::close::{Bench, CloseRefusal};
use dwcp_log::consent::{ConsentCourt, ConsentRefusal, Ground};
use dwcp_log::seal::Speaker;
use dwcp_log::{Agreed, Close, CloseProof, Matter, Place, Segment, Switch};
use dwcp_state::StateMachine;
use dwcp_sync::End;

pub(crate) struct Court<'a, M: StateMachine> {
    pub cluster: ClusterId,
    pub crypto: &'a dyn Crypto,
    pub quorum: Quorum,
    pub mutants: Mutants,
    pub control: &'a Control,
    pub segment: Option<&'a SegmentNode<M>>,
}

impl<'a, M: StateMachine> Court<'a, M> {
    /// Whose consents about this count now.
    pub(crate) fn consents(&self, matter: Matter, bytes: &[u8]) -> ConsentCourt<'a> {
        let liar = if matter == Matter::End { self.convicted_by(bytes) } else { None };
        self.consents_without(liar)
    }

    /// The same where it was found before whom the question convicts: a proof takes two signatures to check.
    pub(crate) fn consents_without(&self, liar: Option<ReplicaId>) -> ConsentCourt<'a> {
        let mut convicted = self.control.convicted_members();
        convicted.extend(liar);
        ConsentCourt {
            cluster: self.cluster,
            configuration: self.control.configurations.latest(),
            executed: self.control.executed,
            ends: self.control.ends.len() as u64,
            convicted,
            crypto: self.crypto,
        }
    }

    /// Where questions are asked from now.
    pub(crate) fn ground(&self) -> Ground {
        let configuration = self.control.configurations.latest().id;
        Ground { configuration, ends: self.control.ends.len() as u64 }
    }

    /// The member in force that what is asked about an end proves to lie.
    pub(crate) fn convicted_by(&self, bytes: &[u8]) -> Option<ReplicaId> {
        let end = decode::<End>(bytes).ok()?;
        let (id, incarnation) = writer(end.cut.origin)?;
        let member = self.control.configurations.latest().member(id)?;
        let convicts = end.convicts(self.cluster, &member.vote_key, self.crypto)
            || self.mutants.on(Mutant::RoomDoubtUnproven);
        (convicts && member.incarnation == incarnation).then_some(id)
    }
}

impl<M: StateMachine> Court<'_, M> {
    /// The key under which a speaker's words about the open segment count: those of the members at its Open.
    pub(crate) fn voter_key(&self, speaker: Speaker) -> Option<PublicKey> {
        let segment = self.control.fold.segment()?;
        let voters = self.control.steering.voters.as_ref()?;
        let member = voters.member(speaker.id)?;
        let counts = voters.id == speaker.configuration
            && member.incarnation == speaker.incarnation
            && segment.open.members.contains(&speaker.id);
        counts.then_some(member.vote_key)
    }

    pub(crate) fn with_bench<T>(&self, judge: impl FnOnce(&Bench<'_>) -> T) -> T {
        let voters = |speaker: Speaker| self.voter_key(speaker);
        let Self { cluster, quorum, crypto, mutants, .. } = *self;
        judge(&Bench { cluster, quorum, crypto, voters: &voters, gone: self.control.gone(), mutants })
    }

    /// Whether this Close would end the open segment, by what was ordered so far.
    pub(crate) fn judge_close(&self, segment: &Segment, close: &Close) -> Result<(), CloseRefusal> {
        if matches!(close.proof, CloseProof::Marker) && self.control.steering.ending.is_none() {
            return Err(CloseRefusal::NotTheBest);
        }
        self.with_bench(|bench| bench.judge_close(Some(segment), close))
    }

    pub(crate) fn reports_needed(&self, segment: &Segment) -> usize {
        self.with_bench(|bench| bench.reports_needed(segment))
    }

    pub(crate) fn anchor_holds(&self, anchor: &Anchor) -> bool {
        self.mutants.on(Mutant::AnchorUnchecked)
            || self.with_bench(|bench| bench.judge_anchor(anchor).is_ok())
    }

    /// Whether this replica holds the segment's log up to this tail, and the last Anchor is in it.
    pub(crate) fn holds_tail(&self, segment: &Segment, tail: &Place) -> bool {
        let Some(open) = self.segment.filter(|open| open.epoch == segment.epoch) else { return false };
        if tail.index == Index::ZERO {
            return segment.anchor.index == Index::ZERO || self.mutants.on(Mutant::CloseBelowAnchor);
        }
        if *tail == segment.anchored() {
            return true; // The Anchor itself: q replicas hold what leads there.
        }
        if open.body.as_ref().is_some_and(|body| body.tail == *tail) {
            return true;
        }
        let anchored = segment.anchored();
        let Some(raft) = &open.raft else { return false };
        let passes_anchor = anchored.index == Index::ZERO
            || raft.place(anchored.index).is_some_and(|place| place.chain == anchored.chain)
            || self.mutants.on(Mutant::CloseBelowAnchor);
        raft.place(tail.index) == Some(*tail) && passes_anchor
    }

    /// # Errors
    /// What no honest primary proposes. One that was too slow is without effect where it is executed.
    pub(crate) fn may_prepare_agreed(&self, matter: Matter, agreed: &Agreed) -> Result<(), &'static str> {
        if agreed.bytes.len() > crate::sync::FLOOR_BYTES_MAX {
            return Err("a floor that is too long");
        }
        match self.consents(matter, &agreed.bytes).judge(matter, agreed) {
            _ if self.mutants.on(Mutant::RoomConsentUnjudged) => Ok(()),
            Ok(()) | Err(ConsentRefusal::Stale) => Ok(()),
            Err(_) => Err("a floor or an end that no quorum agreed to"),
        }
    }

    /// Whether a backup may prepare a proposal with this switch now.
    ///
    /// # Errors
    /// Why not yet; most reasons pass.
    pub(crate) fn may_prepare_switch(&self, switch: &Switch) -> Result<(), &'static str> {
        let Some(close) = &switch.close else { return Ok(()) };
        if close.epoch > self.control.fold.epoch() {
            return Err("a Close of a segment that is not open here yet");
        }
        let Some(segment) = self.control.fold.segment().filter(|segment| segment.epoch == close.epoch) else {
            return Ok(()); // It is over: a no-op.
        };
        if self.judge_close(segment, close).is_err() {
            return Err("a Close that would not hold");
        }
        if !self.holds_tail(segment, &close.tail) && !self.mutants.on(Mutant::CloseWithoutData) {
            return Err("a Close whose entries are not here yet");
        }
        // Whoever sealed will not see the Marker commit; q reports that choose it say as much.
        let known = self.segment.is_some_and(|open| {
            open.marker == Some(close.tail.index)
                || open.failover.reports.chooses(&close.tail, self.reports_needed(segment), self.mutants)
                // Nobody outside the segment sees what commits: those inside, who are needed for q, answer for that.
                || (open.raft.is_none() && open.ends_with_marker(&close.tail))
        });
        if matches!(close.proof, CloseProof::Marker) && !known {
            return Err("a Marker that is not committed here yet");
        }
        Ok(())
    }
}
