//! Fetching a certified snapshot: chunk by chunk, from every peer that offers the same one, each chunk verified against
//! the digests that `q` replicas signed. A donor whose chunk does not verify is dropped; what it did not spoil stays.

use crate::chunks::{Chunks, Part};
use crate::control::{Control, follow_orders, key_among, snapshot_digest};
use crate::io::{Class, Effect, Event};
use crate::replica::{Outbox, Replica};
use crate::wire::{PeerMessage, SNAPSHOT_FORMAT, SnapshotMeta};
use alloc::collections::BTreeSet;
use alloc::vec::Vec;
use bytes::Bytes;
use dwcp_base::{Epoch, Hash, Index, Micros, Mutant, Now, ReplicaId, Sequence, Ticket, decode, encode};
use dwcp_pbft::{Certificate, Statement, Vote};
use dwcp_state::{Restorer, State, StateMachine};

/// Chunks of one snapshot.
const CHUNKS_MAX: usize = 65_536;

/// The snapshot being fetched.
struct Target<M: StateMachine> {
    meta: SnapshotMeta,
    control: Option<Control>,
    restorer: Restorer<M>,
    chunks: Chunks,
}

/// What a snapshot is fetched for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Our state is old: slots that come sooner serve as well.
    Old,
    /// Entries of this segment are out of our reach: one of a later Anchor replaces the segment's state while it is open.
    Segment(Epoch),
    /// Our state is wrong: whatever we have is replaced.
    Wrong,
}

/// A state transfer under way.
pub(crate) struct Transfer<M: StateMachine> {
    at_least: Sequence,
    purpose: Purpose,
    target: Option<Target<M>>,
    /// Whole and verified, waiting to be durable.
    ready: Option<(Control, State<M>)>,
    /// Donors that lied, at most the members.
    dropped: BTreeSet<ReplicaId>,
    /// How many snapshots were given up for newer ones because they did not come.
    stalled: u32,
    next_ask: Micros,
}

impl<M: StateMachine> Transfer<M> {
    pub(crate) fn next_look(&self) -> Micros {
        let chunks = self.target.as_ref().map(|target| target.chunks.next_look());
        chunks.unwrap_or(Micros::NEVER).min(self.next_ask)
    }

    pub(crate) fn check(&self) {
        if let Some(target) = &self.target {
            target.chunks.check();
        }
    }
}

impl<M: StateMachine> Replica<M> {
    pub(crate) fn start_transfer(
        &mut self,
        now: Now,
        at_least: Sequence,
        purpose: Purpose,
        out: &mut Outbox,
    ) {
        let at_least = at_least.max(self.donor.newest_sequence().unwrap_or_default());
        if let Some(transfer) = &mut self.transfer {
            match (transfer.purpose, purpose) {
                (_, Purpose::Old) => {}
                (Purpose::Wrong, Purpose::Segment(_)) => {}
                (_, purpose) => {
                    transfer.purpose = purpose;
                    transfer.at_least = transfer.at_least.min(at_least);
                }
            }
            return;
        }
        out.event(Event::StateTransferStarted { sequence: at_least });
        self.count("state transfers started");
        self.transfer = Some(Transfer {
            at_least,
            purpose,
            target: None,
            ready: None,
            dropped: BTreeSet::new(),
            stalled: 0,
            next_ask: now.mono,
        });
        self.transfer_on_time(now, out);
    }

    /// Whether a snapshot of this sequence would be of use to the transfer under way. None is that is older than what we
    /// have on disk: the records behind an older one are gone, what we signed since among them.
    fn is_useful(&self, sequence: Sequence) -> bool {
        let Some(transfer) = &self.transfer else { return false };
        let open = self.control.fold.segment().map(|segment| segment.epoch);
        let replaces = match transfer.purpose {
            Purpose::Old => false,
            Purpose::Segment(epoch) => open == Some(epoch),
            Purpose::Wrong => true,
        };
        let newest = self.donor.newest_sequence();
        sequence > self.control.executed || (replaces && newest.is_none_or(|newest| sequence >= newest))
    }

    /// Our state is still wrong, and what was looked for is older by now than what is on our own disk.
    fn look_for_newer(&mut self, out: &mut Outbox) {
        let newest = self.donor.newest_sequence().unwrap_or_default();
        let Some(transfer) = &mut self.transfer else { return };
        transfer.at_least = transfer.at_least.max(newest);
        let old = transfer.target.take_if(|target| target.meta.certificate.claim.sequence < newest);
        if let Some(old) = old {
            self.drop_partial(old.meta.certificate.claim.sequence, out);
        }
    }

    pub(crate) fn abandon_transfer(&mut self, out: &mut Outbox) {
        let target = self.transfer.take().and_then(|transfer| transfer.target);
        if let Some(target) = target {
            self.drop_partial(target.meta.certificate.claim.sequence, out);
        }
    }

    /// Forgets the fetched chunks of a snapshot that will not be finished, unless we have since written one of that very
    /// sequence ourselves.
    pub(crate) fn drop_partial(&self, sequence: Sequence, out: &mut Outbox) {
        if self.donor.certificate(sequence).is_none() && self.saving != Some(sequence) {
            out.push(Effect::DropSnapshot { sequence });
        }
    }

    /// Whatever the transfer has due: asking for offers, asking again for chunks that do not come.
    pub(crate) fn transfer_on_time(&mut self, now: Now, out: &mut Outbox) {
        let patience = self.setup.settings.timing.resend_interval.times(4);
        let Some(transfer) = &mut self.transfer else { return };
        // Slots may have come in the meantime that make it needless.
        let obsolete = transfer
            .target
            .as_ref()
            .map_or(transfer.at_least, |target| target.meta.certificate.claim.sequence);
        let is_ready = transfer.ready.is_some();
        if !is_ready && !self.is_useful(obsolete) {
            if self.transfer.as_ref().is_none_or(|transfer| transfer.purpose != Purpose::Wrong) {
                return self.abandon_transfer(out);
            }
            self.look_for_newer(out);
        }
        let Some(transfer) = &mut self.transfer else { return };
        if now.mono >= transfer.next_ask {
            transfer.next_ask = now.mono.plus(patience);
            let at_least = transfer.at_least;
            if transfer.target.as_ref().is_none_or(|target| !target.chunks.has_donors()) {
                // Nobody useful is left: everybody is as good as anybody. Chunks that are here stay: whoever has the rest
                // of them may come back.
                transfer.dropped.clear();
            }
            self.send_all(&PeerMessage::FetchOffer { at_least }, Class::Vote, Ticket::ZERO, out);
        }
        let Some(target) = self.transfer.as_mut().and_then(|transfer| transfer.target.as_mut()) else {
            return;
        };
        let sequence = target.meta.certificate.claim.sequence;
        for (donor, index, offset) in target.chunks.on_time(now) {
            self.send_one(donor, &PeerMessage::FetchChunk { sequence, index, offset }, Class::Vote, out);
        }
        self.ask_chunks(now, out);
    }

    pub(crate) fn on_offer(&mut self, now: Now, from: ReplicaId, meta: SnapshotMeta, out: &mut Outbox) {
        let faults = usize::from(self.pbft.quorum().f());
        let Some(transfer) = &mut self.transfer else { return };
        let sequence = meta.certificate.claim.sequence;
        let useless =
            sequence < transfer.at_least || transfer.ready.is_some() || transfer.dropped.contains(&from);
        if useless || !self.is_useful(sequence) {
            return;
        }
        let Some(transfer) = &mut self.transfer else { return };
        if let Some(target) = &mut transfer.target {
            if target.meta.certificate.claim == meta.certificate.claim && target.meta.digests == meta.digests
            {
                target.chunks.add_donor(from);
                return self.ask_chunks(now, out);
            }
            let is_newer = sequence > target.meta.certificate.claim.sequence;
            let stalled = is_newer && target.chunks.is_stalled(now, transfer.stalled, faults);
            if target.chunks.has_donors() && !target.chunks.is_quiet(now) && !stalled {
                // The one under way is good enough, slots fill the rest.
                return;
            }
        }
        if let Err(reason) = self.judge_offer(&meta) {
            if let Some(transfer) = &mut self.transfer {
                transfer.dropped.insert(from);
            }
            out.event(Event::DonorDropped { donor: from, sequence });
            return self.refuse_peer(from, reason, out);
        }
        let Some(transfer) = &mut self.transfer else { return };
        if let Some(replaced) = transfer.target.take() {
            transfer.stalled += u32::from(replaced.chunks.is_stalled(now, transfer.stalled, faults));
            self.drop_partial(replaced.meta.certificate.claim.sequence, out);
        }
        let machine = (self.make_machine)();
        let restorer = State::restore(&self.setup.genesis, machine, self.setup.mutants);
        let count = u32::try_from(meta.digests.len()).expect("the judge bounds it");
        let mut chunks = Chunks::new(now, count, self.setup.settings.timing.resend_interval);
        chunks.add_donor(from);
        let mut target = Target { control: None, restorer, chunks, meta };
        // What an earlier life fetched of this snapshot is used, of any other dropped.
        let mut kept = Vec::new();
        for (earlier, chunks) in core::mem::take(&mut self.partial) {
            if earlier == sequence {
                kept = chunks;
            } else {
                self.drop_partial(earlier, out);
            }
        }
        for (index, bytes) in kept {
            // What an earlier life fetched is verified like everything else.
            let _ = target.take(now, index, &bytes, self.setup.mutants.on(Mutant::StateTransferUnchecked));
        }
        let chunks = count - u32::try_from(target.chunks.missing()).expect("no more than there are");
        if chunks > 0 {
            out.event(Event::ChunksTakenUp { sequence, chunks });
        }
        if let Some(transfer) = &mut self.transfer {
            transfer.target = Some(target);
        }
        self.finish_if_whole(out);
        self.ask_chunks(now, out);
    }

    /// `q` replicas signed the digest of these chunk digests.
    fn judge_offer(&self, meta: &SnapshotMeta) -> Result<(), &'static str> {
        if meta.format != SNAPSHOT_FORMAT || meta.digests.is_empty() || meta.digests.len() > CHUNKS_MAX {
            return Err("a snapshot of an unknown format");
        }
        if self.setup.mutants.on(Mutant::StateTransferUnchecked) {
            return Ok(());
        }
        if snapshot_digest(&meta.digests) != Some(meta.certificate.claim.digest) {
            return Err("a snapshot whose chunks are not those of its certificate");
        }
        if self.pbft.verify_checkpoint(&meta.certificate).is_ok() || self.follows_from_orders(meta) {
            Ok(())
        } else {
            Err("a snapshot without a valid certificate")
        }
    }

    /// We may have missed that members were replaced: the orders, signed by an admin of the genesis, name their keys.
    fn follows_from_orders(&self, meta: &SnapshotMeta) -> bool {
        let Some(members) = follow_orders(&self.setup.genesis, &meta.orders, &*self.crypto) else {
            return false;
        };
        let Certificate { claim, vouchers } = &meta.certificate;
        let distinct = vouchers.windows(2).all(|pair| pair[0].sender < pair[1].sender);
        claim.vote == Vote::Checkpoint
            && distinct
            && vouchers.len() >= self.pbft.quorum().q()
            && vouchers.iter().all(|voucher| {
                let statement =
                    Statement { claim: *claim, sender: voucher.sender, incarnation: voucher.incarnation };
                // An incarnation that was replaced since may still have signed this one.
                let keys = key_among(&members, voucher.sender)
                    .filter(|member| member.incarnation == voucher.incarnation)
                    .map(|member| member.vote_key)
                    .into_iter()
                    .chain(meta.orders.iter().filter_map(|signed| {
                        let order = &signed.order;
                        (order.id == voucher.sender && order.incarnation == voucher.incarnation)
                            .then_some(order.vote_key)
                    }))
                    .chain(self.setup.genesis.members.iter().filter_map(|member| {
                        (member.id == voucher.sender && member.incarnation == voucher.incarnation)
                            .then_some(member.vote_key)
                    }));
                let hash = statement.signing_hash(self.cluster);
                let mut keys = keys;
                keys.any(|key| self.crypto.verify(&key, &hash, &voucher.signature))
            })
    }

    fn ask_chunks(&mut self, now: Now, out: &mut Outbox) {
        let Some(target) = self.transfer.as_mut().and_then(|transfer| transfer.target.as_mut()) else {
            return;
        };
        let sequence = target.meta.certificate.claim.sequence;
        let asks = target.chunks.ask(now);
        for donor in target.chunks.take_left() {
            out.event(Event::DonorLate { donor, sequence });
        }
        for (donor, index) in asks {
            self.send_one(donor, &PeerMessage::FetchChunk { sequence, index, offset: 0 }, Class::Vote, out);
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one message")]
    pub(crate) fn on_chunk(
        &mut self,
        now: Now,
        from: ReplicaId,
        sequence: Sequence,
        index: u32,
        offset: u64,
        bytes: Bytes,
        out: &mut Outbox,
    ) {
        let unchecked = self.setup.mutants.on(Mutant::StateTransferUnchecked);
        let Some(target) = self.transfer.as_mut().and_then(|transfer| transfer.target.as_mut()) else {
            return;
        };
        if sequence != target.meta.certificate.claim.sequence {
            return;
        }
        let whole = match target.chunks.on_part(now, from, index, offset, &bytes) {
            Part::Unasked => return,
            Part::More { offset } => {
                let message = PeerMessage::FetchChunk { sequence, index, offset };
                return self.send_one(from, &message, Class::Vote, out);
            }
            Part::PutAside => {
                self.count("chunks put aside: too long");
                return self.ask_chunks(now, out);
            }
            Part::Endless => return self.drop_donor(now, from, sequence, out),
            Part::Whole(whole) => whole,
        };
        if target.take(now, index, &whole, unchecked).is_err() {
            return self.drop_donor(now, from, sequence, out);
        }
        out.push(Effect::SaveChunk { sequence, index, bytes: Bytes::from(whole) });
        self.finish_if_whole(out);
        self.ask_chunks(now, out);
    }

    pub(crate) fn on_no_chunk(&mut self, now: Now, from: ReplicaId, sequence: Sequence, out: &mut Outbox) {
        let Some(target) = self.transfer.as_mut().and_then(|transfer| transfer.target.as_mut()) else {
            return;
        };
        if target.meta.certificate.claim.sequence == sequence {
            target.chunks.forget_donor(from);
            self.ask_chunks(now, out);
        }
    }

    fn drop_donor(&mut self, now: Now, donor: ReplicaId, sequence: Sequence, out: &mut Outbox) {
        self.count("donors dropped");
        out.event(Event::DonorDropped { donor, sequence });
        if let Some(transfer) = &mut self.transfer {
            transfer.dropped.insert(donor);
            if let Some(target) = &mut transfer.target {
                target.chunks.forget_donor(donor);
            }
        }
        self.ask_chunks(now, out);
    }

    fn finish_if_whole(&mut self, out: &mut Outbox) {
        let Some(transfer) = &mut self.transfer else { return };
        let Some(target) = transfer.target.take_if(|target| target.chunks.missing() == 0) else { return };
        let sequence = target.meta.certificate.claim.sequence;
        let Target { meta, control, restorer, .. } = target;
        match (control, restorer.finish()) {
            (Some(control), Ok(state)) => {
                transfer.ready = Some((control, state));
                out.push(Effect::FinishSnapshot { sequence, meta: encode(&meta) });
                self.donor.prepare(meta);
            }
            _ => {
                // Every chunk verified and yet they do not fit: more than f replicas signed nonsense.
                self.count("snapshots that do not fit together");
                self.abandon_transfer(out);
            }
        }
    }

    /// The fetched snapshot is durable: it becomes our state.
    pub(crate) fn install_fetched(&mut self, now: Now, sequence: Sequence, out: &mut Outbox) {
        let useful = self.is_useful(sequence);
        let Some(transfer) = self.transfer.take() else { return };
        let Some((control, state)) = transfer.ready else {
            self.transfer = Some(transfer);
            return;
        };
        let covered = (control.fold.epoch(), control.fold.segment().map(dwcp_log::Segment::anchored));
        self.snapshot_is_durable(now, sequence, covered, out);
        if !useful {
            // Slots brought us here sooner, or past it; the snapshot serves others.
            if transfer.purpose == Purpose::Wrong {
                self.start_transfer(now, sequence, Purpose::Wrong, out);
            }
            return;
        }
        let Some(certificate) = self.donor.certificate(sequence) else { return };
        out.event(Event::StateTransferFinished { sequence });
        self.count("state transfers finished");
        if sequence <= self.control.executed && self.is_of_our_segment(&control) {
            // The root is where it was; only what the segment did to the state was wrong or out of reach.
            self.rejoin_segment(now, &control, state, out);
        } else {
            self.install_all(now, control, state, certificate, out);
        }
        self.carry_out(now, out);
        self.settle_pool(out);
    }

    fn install_all(
        &mut self,
        now: Now,
        control: Control,
        state: State<M>,
        certificate: Certificate,
        out: &mut Outbox,
    ) {
        let before = self.control.configurations.latest().clone();
        self.park_segment(out);
        self.blocked.clear();
        self.kept.clear();
        self.fetch = None;
        self.opening = None;
        self.live = control.fold.log();
        self.control = control;
        self.state = state;
        self.last_digest = (certificate.claim.sequence, certificate.claim.digest);
        self.frozen = None;
        self.diverged = false;
        self.found_diverged = None;
        self.bytes_at_checkpoint = self.control.bytes_executed;
        self.sync_follow_members(now, out);
        let configurations = self.control.configurations.clone();
        self.announce_members(&before, out);
        self.begin_segment(now, out);
        self.pbft.on_installed(now, certificate, configurations, &mut self.protocol);
    }

    /// Whether a snapshot is of the segment that is open here, at an Anchor that we know too.
    fn is_of_our_segment(&self, control: &Control) -> bool {
        match (control.fold.segment(), self.control.fold.segment()) {
            (Some(theirs), Some(ours)) => {
                theirs.epoch == ours.epoch && theirs.anchor.index <= ours.anchor.index
            }
            _ => false,
        }
    }

    /// Takes the state of a snapshot of the open segment and goes on from its Anchor.
    fn rejoin_segment(&mut self, now: Now, snapshot: &Control, state: State<M>, out: &mut Outbox) {
        let Some(anchored) = snapshot.fold.segment().map(|segment| segment.anchor) else { return };
        let last = self.control.fold.segment().map(|segment| segment.anchor.index);
        self.park_segment(out);
        self.fetch = None;
        self.state = state;
        self.diverged = false;
        self.found_diverged = None;
        self.pbft.unmute();
        self.begin_segment_at(now, anchored, out);
        if let Some(open) = self.segment.as_mut().filter(|_| last > Some(anchored.index)) {
            open.anchors.begins_behind(snapshot.executed);
        }
        // A Close may have waited for nothing but this.
        self.execute_ready(now, out);
    }

    /// The leader of a segment says that it has discarded what we need of it. Only a leader can know, and only of somebody
    /// who has not come as far as the last Anchor: nothing behind that is discarded.
    pub(crate) fn on_told_behind(&mut self, now: Now, from: ReplicaId, epoch: Epoch, out: &mut Outbox) {
        let Some(open) = self.segment.as_ref().filter(|open| open.epoch == epoch) else { return };
        let anchored = self.control.fold.segment().map_or(Index::ZERO, |segment| segment.anchor.index);
        if open.leader() != Some(from) || open.applied.index >= anchored {
            return self.count("told to be behind by somebody who cannot know");
        }
        self.on_behind(now, epoch, out);
    }

    /// What we need of the open segment cannot be had entry by entry: a snapshot of it is needed.
    pub(crate) fn on_behind(&mut self, now: Now, epoch: Epoch, out: &mut Outbox) {
        let Some(segment) = self.control.fold.segment().filter(|segment| segment.epoch == epoch) else {
            return;
        };
        let opened_at = segment.opened_at;
        self.count("too far behind in a segment");
        self.start_transfer(now, opened_at, Purpose::Segment(epoch), out);
    }

    /// Links must follow members that were replaced while we were away.
    fn announce_members(&self, before: &dwcp_base::Configuration, out: &mut Outbox) {
        for (_, signed) in &self.control.orders {
            let order = &signed.order;
            let newer = before.member(order.id).is_some_and(|member| member.incarnation < order.incarnation);
            if newer {
                out.push(Effect::MemberChanged { order: alloc::boxed::Box::new(order.clone()) });
            }
        }
    }

    /// Frames in the pool that the new state has executed need no ordering.
    fn settle_pool(&mut self, out: &mut Outbox) {
        let sessions: BTreeSet<_> = self.pool.iter().map(|pending| pending.frame.session()).collect();
        for session in sessions {
            self.settle_session(session, out);
        }
    }
}

impl<M: StateMachine> Target<M> {
    /// Takes a whole chunk if it is the certified one.
    fn take(&mut self, now: Now, index: u32, bytes: &[u8], unchecked: bool) -> Result<(), ()> {
        let expected = *self.meta.digests.get(index as usize).ok_or(())?;
        if !self.chunks.is_missing(index) {
            return Ok(());
        }
        match index.checked_sub(1) {
            None => {
                if Hash::of(bytes) != expected && !unchecked {
                    return Err(());
                }
                self.control = Some(decode(bytes).map_err(|_| ())?);
            }
            Some(index) => self.restorer.chunk(index, bytes, &expected).map_err(|_| ())?,
        }
        self.chunks.taken(now, index, bytes.len());
        Ok(())
    }
}
