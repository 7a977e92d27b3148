//! How a segment ends: complaints, seals, the collection of where logs end, and the Close that the root's primary proposes
//! from it. What the signed words are worth is judged by `dwcp_log::close`, which knows no Raft; here is only when to say
//! them, and the two timers behind a complaint.
//!
//! Progress: commands wait and nothing commits. Service: a command that the root has ordered meanwhile is not executed
//! though the leader had to take it first. Overload alone does neither: then commits go on, and what the root ordered
//! goes first.

use crate::escape::Escapes;
use crate::io::{Class, Event};
use crate::replica::{Outbox, Replica};
use crate::segment::{SegmentNode, Unserved};
use crate::wire::PeerMessage;
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use bytes::Bytes;
use dwcp_base::{
    Epoch, Index, LogTime, Micros, Mutant, NetworkMode, Now, ReplicaId, Sequence, Term, Ticket, View,
};
use dwcp_log::seal::{Sealed, Signed, StopCert, Suspect};
use dwcp_log::segment::Protocol;
use dwcp_log::{Close, CloseProof, Collection, Decide, Open, Place, Proposal, RootEntry, Segment, Switch};
use dwcp_raft::step::INDEX_MAX;
use dwcp_state::StateMachine;

/// Commits of which the slowness stretches the patience, and by how much of each the average moves.
const ROUNDS: u64 = 20;
/// What a fast path may take that was never measured, at the least, and at the most.
const FAST_PATH_UNMEASURED: Micros = Micros::from_millis(500);
const FAST_PATH_MIN: Micros = Micros::from_millis(100);
const FAST_PATH_MAX: Micros = Micros::from_millis(8_000);
/// By each failure in a row the next segment may take twice as long, so often: some of them were judged too soon.
const FAST_PATH_DOUBLINGS_MAX: u32 = 3;
/// A Marker that does not commit in so many average commits, and not in this time either, is not waited for.
const MARKER_ROUNDS: u64 = 4;
const MARKER_PATIENCE_MIN: Micros = Micros::from_millis(50);
/// Words about the log for which so many anchor intervals and view timeouts bring no Anchor are about different logs, or
/// the root cannot move; in that case the complaint counts once it can.
const ANCHOR_INTERVALS: u64 = 40;
const ANCHOR_VIEWS: u64 = 4;
/// A command that the root has ordered may wait so many patiences for the leader.
const SERVICE_FACTOR: u64 = 10;

/// What is known about the end of the open segment. May be forgotten: everything in it is said again.
pub(crate) struct Failover {
    suspects: BTreeMap<ReplicaId, Signed<Suspect>>,
    /// Where the members' logs end.
    pub reports: Collection,
    suspecting: Option<&'static str>,
    stop: Option<StopCert>,
    /// Sealed, and the record that remembers it is `sealed_after`.
    sealing: Option<(Place, Ticket)>,
    own_report: Option<(Signed<Sealed>, Ticket)>,
    told: bool,
    next_send: Micros,
    /// When something last committed, or nothing waited.
    progress: Micros,
    /// A slow average of the time from a command's arrival, or an entry's, to its commit here.
    round: Micros,
    /// The entry whose commit is waited for to measure it, and since when.
    sample: Option<(Index, Micros)>,
    pub leader: Option<ReplicaId>,
    pub marker_proposed: Option<Term>,
    /// An ordered ending that comes without a Marker by then falls to the collection.
    marker_deadline: Option<Micros>,
    leader_at_ending: Option<ReplicaId>,
    pub unserved: Unserved,
    pub log_full: bool,
    pub escapes: Escapes,
    /// When the first report came.
    first_report: Option<Micros>,
    /// The decision under way, as `proposed`.
    decided: Option<(View, Sequence)>,
    /// The Close under way: in which view it was proposed, and where.
    proposed: Option<(View, Sequence)>,
    /// For the root's primary: the last slot that it did not fill itself in this view, as far as this segment is concerned.
    /// An Anchor may be in it.
    taken_over: Option<(View, Sequence)>,
    /// Since when a Close is due.
    due_since: Option<Micros>,
}

impl Failover {
    pub(crate) fn new(now: Now) -> Self {
        Self {
            suspects: BTreeMap::new(),
            reports: Collection::new(),
            suspecting: None,
            stop: None,
            sealing: None,
            own_report: None,
            told: false,
            next_send: now.mono,
            progress: now.mono,
            round: Micros::ZERO,
            sample: None,
            leader: None,
            marker_proposed: None,
            marker_deadline: None,
            leader_at_ending: None,
            unserved: Unserved::default(),
            log_full: false,
            escapes: Escapes::default(),
            first_report: None,
            decided: None,
            proposed: None,
            taken_over: None,
            due_since: None,
        }
    }

    pub(crate) fn progressed(&mut self, now: Now) {
        self.progress = now.mono;
    }

    pub(crate) fn leader_changed(&mut self, now: Now, leader: Option<ReplicaId>) {
        self.leader = leader;
        self.sample = None;
        if leader.is_some() {
            self.progress = now.mono;
        }
    }

    /// Old complaints do not add up with new ones.
    pub(crate) fn anchored(&mut self) {
        self.log_full = false;
    }

    pub(crate) fn is_suspecting(&self) -> bool {
        self.suspecting.is_some()
    }

    /// A command waited so long until it was executed.
    pub(crate) fn note_round(&mut self, took: Micros) {
        self.round = Micros((self.round.0 * 15 + took.0) / 16);
    }

    /// Measures on the log what those who serve no client do not see on commands.
    pub(crate) fn sample(&mut self, now: Now, last: Index, commit: Index) {
        if let Some((_, since)) = self.sample.take_if(|(index, _)| *index <= commit) {
            self.note_round(now.mono.since(since));
        }
        if self.sample.is_none() && last > commit {
            self.sample = Some((last, now.mono));
        }
    }

    pub(crate) fn due_since(&self) -> Option<Micros> {
        self.due_since
    }
}

impl<M: StateMachine> Replica<M> {
    /// How long commands may wait while nothing commits.
    fn patience(&self, failover: &Failover) -> Micros {
        match self.control.steering.mode {
            NetworkMode::Hybrid => self.fast_path_patience(failover.round),
            NetworkMode::Datacenter | NetworkMode::Internet => {
                let elections = self.setup.settings.segment.timing.election_timeout.times(3);
                elections.max(self.fast_path_patience(failover.round))
            }
        }
    }

    /// How long the fast path may take before another is taken.
    pub(crate) fn fast_path_timeout(&self) -> Micros {
        let round = self.segment.as_ref().map_or(Micros::ZERO, |segment| segment.failover.round);
        self.fast_path_patience(round)
    }

    /// By the slow average of a command's time.
    fn fast_path_patience(&self, round: Micros) -> Micros {
        let measured = round.times(ROUNDS);
        if let Some(fixed) = self.setup.settings.segment.fast_path_timeout {
            return fixed.max(measured.min(fixed.times(8)));
        }
        let measured = if round == Micros::ZERO { FAST_PATH_UNMEASURED } else { measured.max(FAST_PATH_MIN) };
        let doublings = self.control.steering.failures.min(FAST_PATH_DOUBLINGS_MAX);
        measured.times(1 << doublings).min(FAST_PATH_MAX)
    }

    /// How long a word about the log may wait for its Anchor. Members that lie can have two leaders in one term, each with
    /// half of the others: commands commit on both sides, nobody misses anything, and no quorum ever vouches for one log.
    fn anchor_patience(&self) -> Micros {
        let settings = &self.setup.settings;
        let intervals = settings.segment.anchor_interval.times(ANCHOR_INTERVALS);
        intervals.max(settings.timing.view_timeout.times(ANCHOR_VIEWS))
    }

    /// Since when commands wait for the segment.
    fn waiting_since(&self, failover: &Failover) -> Option<Micros> {
        match (self.pool.oldest(), failover.unserved.oldest()) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// What there is to complain of now.
    fn suspicion(&self, now: Now, segment: &SegmentNode<M>) -> Option<&'static str> {
        let failover = &segment.failover;
        if segment.anchors.signatures.forged {
            return Some("a forged client signature in the segment");
        }
        let patience = self.patience(failover);
        let late = |since: Micros, factor: u64| now.mono.since(since) >= patience.times(factor);
        if failover.unserved.oldest().is_some_and(|since| late(since, SERVICE_FACTOR)) {
            return Some("a command that the root ordered is not served");
        }
        let unanchored = segment.anchors.unanchored_since();
        if unanchored.is_some_and(|since| now.mono.since(since) >= self.anchor_patience()) {
            return Some("nothing is anchored");
        }
        let waiting = self.waiting_since(failover)?;
        if failover.log_full {
            return None; // Commands wait for Anchors, not for the leader.
        }
        let since = waiting.max(failover.progress);
        if self.leader_is_gone(failover) {
            return Some("the leader is gone");
        }
        late(since, 1).then_some("nothing commits")
    }

    /// Hybrid mode: the link to the leader broke.
    pub(crate) fn leader_is_gone(&self, failover: &Failover) -> bool {
        self.control.steering.mode == NetworkMode::Hybrid
            && failover.leader.is_some_and(|leader| self.down.contains(&leader))
    }

    /// When the end of the segment needs `Wake`.
    pub(crate) fn failover_wakeup(&self, segment: &SegmentNode<M>) -> Micros {
        let failover = &segment.failover;
        let mut due = segment.anchors.next_resend();
        if failover.sealing.is_some() || failover.suspecting.is_some() {
            due = due.min(failover.next_send);
        }
        let may_seal = failover.sealing.is_none() && segment.raft.is_some();
        if let Some(deadline) = failover.marker_deadline.filter(|_| may_seal && segment.marker.is_none()) {
            due = due.min(deadline);
        }
        if failover.sealing.is_none() && failover.suspecting.is_none() && !self.diverged {
            let patience = self.patience(failover);
            if let Some(waiting) = self.waiting_since(failover).filter(|_| !failover.log_full) {
                let gone = self.leader_is_gone(failover);
                let patience = if gone { Micros::ZERO } else { patience };
                due = due.min(waiting.max(failover.progress).plus(patience));
            }
            if let Some(unanchored) = segment.anchors.unanchored_since() {
                due = due.min(unanchored.plus(self.anchor_patience()));
            }
            if let Some(unserved) = failover.unserved.oldest() {
                due = due.min(unserved.plus(patience.times(SERVICE_FACTOR)));
            }
        }
        if let Some(fetch) = &self.fetch {
            due = due.min(fetch.deadline);
        }
        due
    }

    /// Whatever the end of the segment has due.
    pub(crate) fn failover_on_time(&mut self, now: Now, out: &mut Outbox) {
        self.fetch_on_time(now, out);
        self.doubt_who_shows_nothing(now);
        self.repeat_anchor_vote(now, out);
        self.note_ending(now);
        let ending = self.control.steering.ending;
        let suspicion = self.segment.as_ref().and_then(|segment| self.suspicion(now, segment));
        let interval = self.setup.settings.timing.resend_interval;
        let Some(segment) = &mut self.segment else { return };
        let epoch = segment.epoch;
        let leader = segment.leader();
        let failover = &mut segment.failover;
        let mut seal = false;
        if let Some(deadline) = failover.marker_deadline
            && segment.marker.is_none()
            && failover.sealing.is_none()
        {
            let moved = failover.leader_at_ending.is_none() || leader != failover.leader_at_ending;
            seal = (now.mono >= deadline || moved) && segment.raft.is_some();
        }
        // Somebody sealed, maybe before the end was ordered: who is sealed waits for no Marker and may not prepare a Close by
        // one, so the collection needs us too.
        seal |= ending.is_some()
            && failover.sealing.is_none()
            && !failover.reports.is_empty()
            && segment.raft.is_some();
        let resend = now.mono >= failover.next_send;
        if failover.sealing.is_none() && !seal {
            let fresh = failover.suspecting.is_none();
            failover.suspecting = suspicion;
            if let Some(reason) = suspicion
                && (fresh || resend)
            {
                failover.next_send = now.mono.plus(interval);
                if fresh {
                    out.event(Event::Suspected { epoch, reason });
                }
                self.say_suspect(now, out);
            }
        } else if resend {
            failover.next_send = now.mono.plus(interval);
            failover.told = false;
            if failover.stop.is_none() && ending.is_none() {
                // We are out of a segment that the others go on with, since a stop was forgotten: it would be missed if
                // another of them fell.
                self.say_suspect(now, out);
            }
        }
        if seal {
            self.seal_segment(now, out);
        }
    }

    /// The segment is to end by order: from now on its leader has so long for a Marker.
    pub(crate) fn note_ending(&mut self, now: Now) {
        let Some(segment) = self.segment.as_mut().filter(|_| self.control.steering.ending.is_some()) else {
            return;
        };
        let leader = segment.leader();
        let failover = &mut segment.failover;
        if failover.marker_deadline.is_none() {
            let patience = failover.round.times(MARKER_ROUNDS).max(MARKER_PATIENCE_MIN);
            failover.marker_deadline = Some(now.mono.plus(patience));
            failover.leader_at_ending = leader;
            failover.due_since = Some(now.mono);
        }
    }

    fn say_suspect(&mut self, now: Now, out: &mut Outbox) {
        let Some(speaker) = self.own_speaker().filter(|_| self.pbft.is_voter() && !self.diverged) else {
            return;
        };
        let Some(known) = self.control.fold.segment() else { return };
        let said = Suspect { epoch: known.epoch, speaker, anchor: known.anchor.number };
        let signed = Signed::new(said, self.cluster, &*self.crypto);
        self.send_all(&PeerMessage::Suspect(signed), Class::Vote, Ticket::ZERO, out);
        self.count_suspect(now, signed, out);
    }

    /// A peer speaks of an epoch that is not open here. If it is over, the peer lacks the slots that ended it.
    fn help_out_of(&mut self, now: Now, from: ReplicaId, epoch: Epoch, out: &mut Outbox) {
        if self.control.fold.epoch() >= epoch {
            self.count("messages of epochs that are over");
            self.show_where_we_stand(now, from, out);
        }
    }

    pub(crate) fn on_suspect(
        &mut self,
        now: Now,
        from: ReplicaId,
        signed: Signed<Suspect>,
        out: &mut Outbox,
    ) {
        let open = self.control.fold.segment().map(|segment| segment.epoch);
        if open != Some(signed.said.epoch) {
            return self.help_out_of(now, from, signed.said.epoch, out);
        }
        if signed.said.speaker.id != from {
            return self.refuse_peer(from, "a SUSPECT in another's name", out);
        }
        if !self.word_holds(&signed) {
            return self.refuse_peer(from, "a SUSPECT with a bad signature", out);
        }
        self.count_suspect(now, signed, out);
    }

    fn count_suspect(&mut self, now: Now, signed: Signed<Suspect>, out: &mut Outbox) {
        let needed = if self.setup.mutants.on(Mutant::WeakSuspect) {
            self.pbft.quorum().weak()
        } else {
            self.pbft.quorum().q()
        };
        let Some(segment) = &mut self.segment else { return };
        let failover = &mut segment.failover;
        if failover.stop.is_some() {
            return;
        }
        let said = &signed.said;
        let newer =
            failover.suspects.get(&said.speaker.id).is_none_or(|known| known.said.anchor <= said.anchor);
        if !newer {
            return;
        }
        failover.suspects.insert(said.speaker.id, signed);
        // A stop needs q of one time: within one Anchor of each other.
        let anchors: BTreeSet<u64> = failover.suspects.values().map(|word| word.said.anchor).collect();
        let stop = anchors.iter().find_map(|first| {
            let near =
                |word: &&Signed<Suspect>| (*first..=first.saturating_add(1)).contains(&word.said.anchor);
            let suspects: Vec<_> = failover.suspects.values().filter(near).copied().collect();
            (suspects.len() >= needed).then_some(StopCert { suspects })
        });
        if let Some(stop) = stop {
            self.stop_segment(now, stop, out);
        }
    }

    pub(crate) fn on_stop(
        &mut self,
        now: Now,
        from: ReplicaId,
        epoch: Epoch,
        stop: StopCert,
        out: &mut Outbox,
    ) {
        let open = self.control.fold.segment().map(|segment| segment.epoch);
        if open != Some(epoch) {
            return self.help_out_of(now, from, epoch, out);
        }
        if self.segment.as_ref().is_none_or(|segment| segment.failover.stop.is_some()) {
            return;
        }
        if stop.suspects.len() > usize::from(self.pbft.quorum().n())
            || self.court().with_bench(|bench| bench.judge_stop(epoch, &stop)).is_err()
        {
            return self.refuse_peer(from, "a stop that q replicas did not ask for", out);
        }
        self.stop_segment(now, stop, out);
    }

    fn stop_segment(&mut self, now: Now, stop: StopCert, out: &mut Outbox) {
        let Some(segment) = &mut self.segment else { return };
        let epoch = segment.epoch;
        segment.failover.stop = Some(stop.clone());
        self.send_all(&PeerMessage::Stop { epoch, stop }, Class::Vote, Ticket::ZERO, out);
        self.seal_segment(now, out);
    }

    /// Ends this replica's part in the epoch: first on disk, then in words.
    fn seal_segment(&mut self, now: Now, out: &mut Outbox) {
        let unsynced = self.setup.mutants.on(Mutant::SealBeforeSync);
        let Some(segment) = &mut self.segment else { return };
        segment.failover.due_since.get_or_insert(now.mono);
        if segment.failover.sealing.is_some() {
            return;
        }
        let Some(raft) = &mut segment.raft else { return };
        let sealed = raft.seal(now);
        let ticket = if unsynced { Ticket::ZERO } else { sealed.ticket };
        segment.failover.sealing = Some((sealed.point, ticket));
        segment.failover.next_send = now.mono;
        let (epoch, Place { index, term, .. }) = (segment.epoch, sealed.point);
        out.event(Event::SegmentSealed { epoch, index, term });
        self.pool.new_turn();
    }

    /// After a restart: what was sealed stays sealed, and is said again.
    pub(crate) fn resume_seal(&mut self, now: Now, out: &mut Outbox) {
        let Some(segment) = &mut self.segment else { return };
        let Some(raft) = segment.raft.as_mut().filter(|raft| raft.sealed().is_some()) else { return };
        let sealed = raft.seal(now);
        let point = sealed.point;
        segment.failover.sealing = Some((point, sealed.ticket));
        let (epoch, Place { index, term, .. }) = (segment.epoch, point);
        if !self.recovering {
            out.event(Event::SegmentSealed { epoch, index, term });
        }
    }

    /// Says where our log of the epoch ends, behind the record that remembers it.
    pub(crate) fn tell_sealed(&mut self, now: Now, out: &mut Outbox) {
        let speaker = self.own_speaker();
        let voter = self.pbft.is_voter() && !self.diverged;
        let Some(segment) = &mut self.segment else { return };
        let Some((last, ticket)) = segment.failover.sealing else { return };
        if segment.failover.told || !voter || self.recovering {
            return;
        }
        let Some(speaker) = speaker else { return };
        segment.failover.due_since.get_or_insert(now.mono);
        let after = segment.tickets.to_node(ticket);
        let epoch = segment.epoch;
        let report = match segment.failover.own_report {
            Some((report, _)) => report,
            None => Signed::new(Sealed { epoch, speaker, last }, self.cluster, &*self.crypto),
        };
        segment.failover.own_report = Some((report, after));
        segment.failover.told = true;
        segment.failover.next_send = now.mono.plus(self.setup.settings.timing.resend_interval);
        segment.failover.reports.insert(report);
        segment.failover.first_report.get_or_insert(now.mono);
        let stop = segment.failover.stop.clone();
        self.send_all(&PeerMessage::Sealed(report), Class::Vote, after, out);
        if let Some(stop) = stop {
            self.send_all(&PeerMessage::Stop { epoch, stop }, Class::Vote, Ticket::ZERO, out);
        }
    }

    pub(crate) fn on_sealed(&mut self, now: Now, from: ReplicaId, signed: Signed<Sealed>, out: &mut Outbox) {
        let open = self.control.fold.segment().map(|segment| segment.epoch);
        if open != Some(signed.said.epoch) {
            return self.help_out_of(now, from, signed.said.epoch, out);
        }
        if signed.said.speaker.id != from {
            return self.refuse_peer(from, "a SEALED in another's name", out);
        }
        if signed.said.last.index.0 > INDEX_MAX {
            return self.refuse_peer(from, "a SEALED beyond all places", out);
        }
        let Some(segment) = &self.segment else { return };
        if segment.failover.reports.heard(from) {
            return;
        }
        if !self.word_holds(&signed) {
            return self.refuse_peer(from, "a SEALED with a bad signature", out);
        }
        let Some(segment) = &mut self.segment else { return };
        segment.failover.reports.insert(signed);
        segment.failover.first_report.get_or_insert(now.mono);
        if self.control.steering.ending.is_some() {
            self.seal_segment(now, out);
        }
    }

    /// The Close that could be proposed or prepared now, by the reports that are here.
    fn best_close(&self, segment: &Segment) -> Option<Close> {
        let open = self.segment.as_ref()?;
        let epoch = segment.epoch;
        if let Some(close) = self.collected_close(segment) {
            return Some(close);
        }
        let index = open.marker.filter(|_| self.control.steering.ending.is_some())?;
        let tail = open.raft.as_ref().and_then(|raft| raft.place(index))?;
        Some(Close { epoch, tail, anchor: segment.anchor.number, proof: CloseProof::Marker })
    }

    fn collected_close(&self, segment: &Segment) -> Option<Close> {
        let open = self.segment.as_ref().filter(|open| open.epoch == segment.epoch)?;
        let (court, reports) = (self.court(), &open.failover.reports);
        court.with_bench(|bench| reports.close(bench, segment, |place| court.holds_tail(segment, place)))
    }

    /// A report whose log nobody can show is left out when others suffice.
    fn doubt_who_shows_nothing(&mut self, now: Now) {
        let patience = self.setup.settings.timing.resend_interval.times(12);
        let needed = self.control.fold.segment().map_or(1, |segment| self.court().reports_needed(segment));
        let (Some(fetch), Some(segment)) = (&mut self.fetch, &mut self.segment) else { return };
        if now.mono.since(fetch.since) < patience {
            return;
        }
        fetch.since = now.mono;
        segment.failover.reports.doubt(&fetch.tail, needed);
    }

    /// For the primary: a member says that it is sealed and nobody has ordered or asked for the end of the segment: it is
    /// handed over to a fresh one once it is older than the calm, and twice as old each time the same member says so.
    pub(crate) fn next_decision(&mut self, now: Now) -> Option<RootEntry> {
        let steering = &self.control.steering;
        let time = steering.time.max(LogTime(now.wall_ms));
        let calm_ms = self.setup.genesis.calm_ms;
        let reports = &self.segment.as_ref()?.failover.reports;
        let sealed = reports.find(|speaker| steering.may_end_sealed(speaker, time, calm_ms))?;
        let (view, executed) = (self.pbft.view(), self.control.executed);
        let next = self.pbft.next_sequence();
        let patience = self.setup.settings.segment.timing.election_timeout.times(3);
        let segment = self.segment.as_mut()?;
        let failover = &mut segment.failover;
        let under_way = failover.decided.is_some_and(|(of, at)| of == view && at > executed);
        let since = failover.first_report?;
        if under_way || failover.stop.is_some() || now.mono.since(since) < patience {
            return None;
        }
        failover.decided = Some((view, next));
        Some(RootEntry::Decide(Box::new(Decide { sealed })))
    }

    /// For the primary: the switch to propose now, if one is due.
    pub(crate) fn next_switch(&mut self, now: Now, out: &mut Outbox) -> Option<RootEntry> {
        let (view, executed) = (self.pbft.view(), self.control.executed);
        let under_way =
            |proposed: Option<(View, Sequence)>| proposed.is_some_and(|(of, at)| of == view && at > executed);
        let time = self.control.steering.time.max(LogTime(now.wall_ms));
        let Some(segment) = self.control.fold.segment().cloned() else {
            if under_way(self.opening) || self.setup.raft.is_none() {
                return None;
            }
            self.control.steering.wants_segment(time).ok()?;
            let open = self.make_open(&[])?;
            self.opening = Some((view, self.pbft.next_sequence()));
            self.base_seen = Some(self.live);
            return Some(RootEntry::Switch(Box::new(Switch { close: None, open: Some(open) })));
        };
        if self.segment.as_ref().is_none_or(|open| under_way(open.failover.proposed)) {
            return None;
        }
        if self.anchor_may_be_under_way() {
            return None; // It would void the Close behind it.
        }
        let close = self.best_close(&segment)?;
        if !self.court().holds_tail(&segment, &close.tail) {
            self.fetch_tail(now, close.tail, false, out);
            return None;
        }
        if self.court().judge_close(&segment, &close).is_err() {
            return None;
        }
        let forced = self.control.steering.is_forced(&close);
        let mut after = self.control.steering.clone();
        after.on_close(time, forced, self.setup.genesis.calm_ms);
        let mut failed = Vec::new();
        if forced {
            failed.extend(self.segment.as_ref().and_then(|open| open.failover.leader));
            failed.extend(segment.open.first_leader.filter(|_| segment.open.members.len() > 1));
        }
        let open = after.wants_segment(time).ok().and_then(|()| self.make_open(&failed));
        let next = self.pbft.next_sequence();
        self.base_seen = Some(self.live);
        if let Some(segment) = &mut self.segment {
            segment.failover.proposed = Some((view, next));
        }
        Some(RootEntry::Switch(Box::new(Switch { close: Some(close), open })))
    }

    /// Whether a slot that is not executed here yet may hold an Anchor: one that we proposed, or one that we took over with
    /// the view.
    fn anchor_may_be_under_way(&mut self) -> bool {
        let (view, executed) = (self.pbft.view(), self.control.executed);
        let before = self.pbft.next_sequence().before();
        let Some(open) = &mut self.segment else { return false };
        let known = open.failover.taken_over.filter(|(of, _)| *of == view);
        let (_, taken_over) = *open.failover.taken_over.insert(known.unwrap_or((view, before)));
        taken_over > executed || open.anchors.is_under_way(view, executed)
    }

    /// The next segment, led first by somebody who is there, and better not by the primary: one crash must not take both.
    fn make_open(&self, failed: &[ReplicaId]) -> Option<Open> {
        self.setup.raft.as_ref()?;
        let sequence = self.pbft.next_sequence();
        let members = self.control.segment_members(sequence, self.setup.genesis.window);
        if members.len() < self.pbft.quorum().q() {
            return None;
        }
        let wanted = self.control.steering.first_leader.filter(|wanted| {
            members.contains(wanted) && !self.down.contains(wanted) && !failed.contains(wanted)
        });
        let me = self.setup.me;
        let later = members.iter().filter(|id| **id > me);
        let earlier = members.iter().filter(|id| **id < me);
        let others: Vec<ReplicaId> = later.chain(earlier).copied().collect();
        let there = |id: &&ReplicaId| !self.down.contains(id) && !failed.contains(id);
        let first_leader = wanted.or_else(|| others.iter().find(there).copied()).or(Some(me));
        let first_leader = first_leader.filter(|leader| members.contains(leader) && !failed.contains(leader));
        Some(Open { protocol: Protocol::Raft, first_leader, members })
    }

    /// A proposal that holds a switch which cannot be prepared yet is kept, and whatever it lacks is asked for. False when
    /// it may go on.
    pub(crate) fn keep_switch(&mut self, now: Now, payload: &Bytes, out: &mut Outbox) -> bool {
        let Ok(Some(proposal)) = Proposal::from_payload(payload) else { return false };
        for entry in &proposal.entries {
            let RootEntry::Switch(switch) = entry else { continue };
            self.base_seen = Some(self.live);
            let Err(reason) = self.court().may_prepare_switch(switch) else { continue };
            self.count(reason);
            if let Some(close) = &switch.close
                && let Some(segment) = self.control.fold.segment().cloned()
                && self.court().judge_close(&segment, close).is_ok()
                && !self.court().holds_tail(&segment, &close.tail)
            {
                self.fetch_tail(now, close.tail, false, out);
            }
            return true;
        }
        false
    }

    /// Since when the root owes us something while a segment is open.
    pub(crate) fn root_owes_since(&self, now: Now) -> Option<Micros> {
        let segment = self.segment.as_ref()?;
        // The words of the others may take a while to come: only then is the primary to blame.
        let grace = self.setup.settings.timing.resend_interval.times(4);
        let words = segment.anchors.waiting_since().map(|since| since.plus(grace));
        let since = [segment.failover.due_since(), words.filter(|since| *since <= now.mono)];
        since.into_iter().flatten().min()
    }

    pub(crate) fn show_where_we_stand(&mut self, now: Now, to: ReplicaId, out: &mut Outbox) {
        let patience = self.setup.settings.timing.resend_interval;
        let due = self.straggler_helped.get(&to).is_none_or(|at| now.mono.since(*at) >= patience);
        if due {
            self.straggler_helped.insert(to, now.mono);
            self.pbft.on_link_up(to, &mut self.protocol);
            self.carry_out(now, out);
        }
    }
}
