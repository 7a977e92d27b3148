//! Patience: when a view is left, when lost messages are asked for again, and when somebody merely says hello.
//! OSDI '99 section 4.5.2 gives the doubling.
//!
//! Departs: timers run on requests that all replicas were told of, not on any that a backup knows, and a primary must not
//! only make progress, but progress for everybody, and not at nine tenths of the timer (after Aardvark, NSDI '09).
//! Covered by the simulator's `a_primary_that_censors_one_client_is_replaced` and
//! `a_primary_that_is_slow_on_purpose_is_replaced`.

use crate::config::Timing;
use crate::message::Decided;
use crate::output::Output;
use crate::state::{Application, Pbft};
use alloc::collections::BTreeMap;
use dwcp_base::{Micros, Mutant, Now, ReplicaId, Sequence, View};

/// Slots that must have been waited for before the primary's pace is judged.
const PACE_SLOTS_MIN: u64 = 8;
/// How far ahead a lone peer is followed: honest ones are few views ahead, a liar must not take us to the end of them.
const STRAY_VIEWS_MAX: u64 = 64;
/// View timeouts after which a peer that waits alone in a later view is followed.
const STRAY_TIMEOUTS: u64 = 8;
/// Below this a busy processor looks like a dead primary.
const PATIENCE_MIN: Micros = Micros::from_millis(300);
/// Slots after which the measured round is believed.
const ROUNDS_MIN: u64 = 16;
/// Bytes of help for one peer in one resend interval.
pub(crate) const HELP_BYTES_MAX: usize = 8 << 20;
/// The doubling stops at this power of two.
const BACKOFF_MAX: u32 = 10;

/// Moments of the monotonic clock. May be forgotten.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Timers {
    /// When this view was entered (or the replica started).
    pub(crate) view_since: Micros,
    pub(crate) last_progress: Micros,
    /// View changes since the last progress.
    pub(crate) attempts: u32,
    /// While a NEW-VIEW is awaited from a view that a quorum asked for: when to give it up.
    pub(crate) new_view_deadline: Option<Micros>,
    pub(crate) next_resend: Micros,
    pub(crate) next_standing: Micros,
    pub(crate) next_plea: Micros,
    pub(crate) catching_up_until: Micros,
    /// Who was asked for decided slots and is waited for.
    pub(crate) asked: Option<ReplicaId>,
    pub(crate) help_turn: u64,
    /// Where we stood when we last moved or had nothing to do, and when that was.
    pub(crate) stalled_at: (Sequence, View, bool),
    pub(crate) stalled_since: Micros,
    /// Bytes sent to each peer to help it, and since when they are counted.
    pub(crate) helped: Shares,
    /// The same of what peers gave us in decided slots: whoever gave its share gives no more for a while.
    pub(crate) gave: Shares,
    /// At most the members: peers that ask for a view above ours: which, since when, and how often we followed one for its sake.
    pub(crate) strays: BTreeMap<ReplicaId, (View, Micros, u32)>,
    /// At most the members: when each peer may be shown our NEW-VIEW again.
    pub(crate) view_shown: BTreeMap<ReplicaId, Micros>,
    /// Since when the oldest request that every replica knows of waits. Told by the caller.
    pub(crate) waiting_since: Option<Micros>,
    /// The last slot that the view carried over; progress counts beyond it.
    pub(crate) carried_to: Sequence,
    /// How long requests have waited while the primary had nothing under way, and over how many slots.
    pub(crate) owed: Micros,
    pub(crate) owed_slots: u64,
    pub(crate) owing_since: Option<Micros>,
    /// A slow average of the time from accepting a slot to its decision: what the backups' rounds cost.
    pub(crate) round: Micros,
    /// How many slots that average has seen, up to `ROUNDS_MIN`.
    pub(crate) rounds: u64,
}

/// Bytes between two peers since the interval that is counted began; one that is over begins anew.
type Shares = BTreeMap<ReplicaId, (Micros, usize)>;

fn share_of<'a>(shares: &'a mut Shares, peer: ReplicaId, now: Now, timing: &Timing) -> &'a mut usize {
    let (since, bytes) = shares.entry(peer).or_insert((now.mono, 0));
    if now.mono.since(*since) >= timing.resend_interval {
        (*since, *bytes) = (now.mono, 0);
    }
    bytes
}

impl Timers {
    /// The world begins now: what was replayed from disk was not waited for.
    pub(crate) fn start(&mut self, now: Now, timing: &Timing) {
        self.round = Micros::ZERO;
        self.rounds = 0;
        self.view_since = now.mono;
        self.last_progress = now.mono;
        self.stalled_since = now.mono;
        self.next_standing = now.mono;
        self.next_resend = now.mono.plus(timing.resend_interval);
    }

    /// Whether this much more help for a peer is within its share: a few words from a liar must not draw megabytes each.
    pub(crate) fn may_help(&mut self, now: Now, to: ReplicaId, bytes: usize, timing: &Timing) -> bool {
        let sent = share_of(&mut self.helped, to, now, timing);
        let within = *sent < HELP_BYTES_MAX;
        *sent += bytes;
        within
    }

    /// Notes what a peer gave.
    pub(crate) fn took(&mut self, now: Now, from: ReplicaId, bytes: usize, timing: &Timing) {
        *share_of(&mut self.gave, from, now, timing) += bytes;
    }

    /// From when on a peer may have more for us.
    pub(crate) fn gives_from(&self, from: ReplicaId, timing: &Timing) -> Micros {
        match self.gave.get(&from) {
            Some((since, bytes)) if *bytes >= HELP_BYTES_MAX => since.plus(timing.resend_interval),
            _ => Micros::ZERO,
        }
    }

    pub(crate) fn left_view(&mut self, now: Now, timing: &Timing) {
        self.attempts = self.attempts.saturating_add(1);
        self.new_view_deadline = None;
        self.next_resend = now.mono.plus(timing.resend_interval);
        self.forget_pace();
    }

    /// A quorum wants this view: from now on its primary is waited for.
    pub(crate) fn quorum_left(&mut self, now: Now, timing: &Timing) {
        let patience = timing.view_timeout.times(1 << self.attempts.saturating_sub(1).min(BACKOFF_MAX));
        self.new_view_deadline.get_or_insert(now.mono.plus(patience));
    }

    pub(crate) fn entered_view(&mut self, now: Now, carried_to: Sequence) {
        self.view_since = now.mono;
        self.last_progress = now.mono;
        self.new_view_deadline = None;
        self.carried_to = carried_to;
        self.catching_up_until = Micros::ZERO;
        self.forget_pace();
    }

    fn forget_pace(&mut self) {
        self.owed = Micros::ZERO;
        self.owed_slots = 0;
        self.owing_since = None;
    }
}

impl Pbft {
    /// Recovery is over, which may have taken long: nothing has been waited for yet.
    ///
    /// From here until `q - 1` peers have shown us the highest votes of ours that they know no new vote is cast, so a disk
    /// that was rolled back is found out before it can contradict itself. Only what answers this life counts: links keep
    /// what was to be said to an earlier one. That costs no availability, for without `q - 1` peers nothing could be
    /// decided anyway.
    pub fn begin(&mut self, now: Now) {
        // Whoever sets a clock back to the very millisecond and microsecond of an earlier start is out of luck.
        self.boot = now.wall_ms.wrapping_mul(1_000_000).wrapping_add(now.mono.0 % 1_000_000);
        self.introduced_by.clear();
        self.introductions_due = self.quorum.q() - 1;
        self.timers.start(now, &self.timing);
        for slot in self.slots.values_mut() {
            slot.accepted_at = now.mono;
        }
    }

    /// Since when the oldest unexecuted request waits that all replicas have been told of; `None` when none does.
    pub fn set_waiting(&mut self, since: Option<Micros>) {
        self.timers.waiting_since = since;
    }

    /// When `on_time` is due.
    #[must_use]
    pub fn next_wakeup(&self) -> Micros {
        let mut due = self.timers.next_standing;
        if self.has_work() {
            due = due.min(self.timers.next_resend);
        }
        // A learner gives no view up.
        let may_leave = self.is_voter() && self.is_introduced();
        let deadline = if self.active {
            self.view_deadline().map(|(at, _)| at)
        } else {
            self.timers.new_view_deadline.filter(|_| may_leave)
        };
        deadline.map_or(due, |deadline| due.min(deadline))
    }

    fn patience(&self) -> Micros {
        let doublings = if self.mutants.on(Mutant::TimerWithoutBackoff) { 0 } else { self.timers.attempts };
        self.measured(self.timing.view_timeout, 20).times(1 << doublings.min(BACKOFF_MAX))
    }

    /// A patience that follows the network: so many rounds as they were measured, within a quarter of the setting (and
    /// `PATIENCE_MIN`) and the setting itself. Until enough rounds were seen, the setting.
    fn measured(&self, setting: Micros, rounds: u64) -> Micros {
        if self.timers.rounds < ROUNDS_MIN {
            return setting;
        }
        self.timers.round.times(rounds).max(Micros(setting.0 / 4)).max(PATIENCE_MIN).min(setting)
    }

    /// How long a client's frame may wait before all replicas are told of it.
    #[must_use]
    pub fn relay_after(&self, setting: Micros) -> Micros {
        self.measured(setting, 8)
    }

    /// When the current view is left for lack of progress, or for one request's sake.
    fn view_deadline(&self) -> Option<(Micros, &'static str)> {
        if !self.is_voter() || !self.is_introduced() || self.is_behind() {
            return None;
        }
        let oldest_slot = self
            .slots
            .range(self.delivered.next()..)
            .find(|(_, slot)| slot.accepted.is_some())
            .map(|(_, slot)| slot.accepted_at);
        let waiting = self.timers.waiting_since;
        let since = match (waiting, oldest_slot) {
            (Some(a), Some(b)) => a.min(b),
            (Some(a), None) | (None, Some(a)) => a,
            (None, None) => return None,
        };
        let floor = self.timers.view_since.max(since);
        let stalled = (floor.max(self.timers.last_progress).plus(self.patience()), "no progress");
        let Some(waiting) = waiting.filter(|_| !self.mutants.on(Mutant::CensorshipIgnored)) else {
            return Some(stalled);
        };
        let long = self.patience().times(self.timing.censorship_factor);
        let censored = (self.timers.view_since.max(waiting).plus(long), "a request is not served");
        Some(stalled.min(censored))
    }

    /// Others are known to have executed what we have not: the primary is not to blame.
    fn is_behind(&self) -> bool {
        let ahead =
            self.standings.values().filter(|(_, standing)| standing.executed > self.delivered).count();
        self.delivered < self.stable_sequence() || ahead >= self.quorum.weak()
    }

    /// Whatever is due by now.
    pub fn on_time(&mut self, now: Now, application: &mut dyn Application, out: &mut Output) {
        self.note_pace(now);
        if now.mono >= self.timers.next_standing {
            self.broadcast_standing(now, out);
        }
        if self.has_work() && now.mono >= self.timers.next_resend {
            self.timers.next_resend = now.mono.plus(self.timing.resend_interval);
            if !self.active && !self.mutants.on(Mutant::ViewChangeSentOnce) {
                self.send_view_change(None, out);
            }
            self.ask_again(now, application, out);
            self.seek_help(now, out);
        }
        if self.active {
            match self.view_deadline() {
                Some((deadline, reason)) if now.mono >= deadline => {
                    self.start_view_change(now, self.view.next(), reason, application, out);
                }
                _ if self.is_introduced() && self.primary_is_slow() => {
                    self.start_view_change(now, self.view.next(), "the primary is slow", application, out);
                }
                _ => {
                    if let Some(view) = self.stray_to_follow(now) {
                        self.start_view_change(
                            now,
                            view,
                            "a peer waits alone in a later view",
                            application,
                            out,
                        );
                    }
                }
            }
        } else if self.is_voter()
            && self.is_introduced()
            && self.timers.new_view_deadline.is_some_and(|deadline| now.mono >= deadline)
        {
            self.start_view_change(now, self.view.next(), "the new view did not begin", application, out);
        }
    }

    /// A replica that left the view alone can neither come back nor be missed for ever: it is one of the f that may fail.
    /// After a long while the others follow it; longer each time for the same peer, so that a liar cannot keep us busy.
    fn stray_to_follow(&mut self, now: Now) -> Option<View> {
        let asked: BTreeMap<ReplicaId, View> = self
            .view_changes
            .iter()
            .filter(|(sender, asked)| **sender != self.me && asked.body.view > self.view)
            .filter(|(_, asked)| asked.body.view.0 <= self.view.0.saturating_add(STRAY_VIEWS_MAX))
            .map(|(sender, asked)| (*sender, asked.body.view))
            .collect();
        let mut follow = None;
        for (sender, view) in asked {
            let stray = self.timers.strays.entry(sender).or_insert((view, now.mono, 0));
            if stray.0 != view {
                (stray.0, stray.1) = (view, now.mono);
            }
            let patience = self.timing.view_timeout.times(STRAY_TIMEOUTS << stray.2.min(BACKOFF_MAX));
            if now.mono.since(stray.1) >= patience {
                (stray.1, stray.2) = (now.mono, stray.2 + 1);
                follow = follow.max(Some(view));
            }
        }
        follow.filter(|_| self.is_voter() && self.is_introduced())
    }

    /// Notes whether we moved since the last look, or have nothing to wait for.
    fn note_stall(&mut self, now: Now) {
        let here = (self.delivered, self.view, self.active);
        let ahead = self.standings.values().any(|(_, standing)| standing.executed > self.delivered);
        if here != self.timers.stalled_at || !(ahead || self.has_work()) {
            self.timers.stalled_at = here;
            self.timers.stalled_since = now.mono;
        }
    }

    /// Something is to be done and nothing has moved for a resend interval.
    pub(crate) fn is_stalled(&self, now: Now) -> bool {
        now.mono.since(self.timers.stalled_since) >= self.timing.resend_interval
    }

    /// Keeps the account of what the primary owes: time in which requests waited and nothing was under way.
    pub(crate) fn note_pace(&mut self, now: Now) {
        self.note_stall(now);
        let idle_pipe = self.slots.range(self.delivered.next()..).all(|(_, slot)| slot.accepted.is_none());
        let owing = self.active
            && idle_pipe
            && self.primary() != self.me
            && self.timers.waiting_since.is_some()
            && !self.is_behind();
        match (self.timers.owing_since, owing) {
            (None, true) => self.timers.owing_since = Some(now.mono),
            (Some(since), false) => {
                self.timers.owing_since = None;
                self.timers.owed = self.timers.owed.plus(now.mono.since(since));
            }
            _ => {}
        }
    }

    /// On average a waiting request was left alone for longer than a quarter of the view timeout and six rounds.
    fn primary_is_slow(&self) -> bool {
        if self.timers.owed_slots < PACE_SLOTS_MIN || self.mutants.on(Mutant::SlowPrimaryTolerated) {
            return false;
        }
        let average = Micros(self.timers.owed.0 / self.timers.owed_slots);
        average > Micros(self.timing.view_timeout.0 / 4).max(self.timers.round.times(6))
    }

    /// A slot was delivered.
    pub(crate) fn note_progress(&mut self, now: Now, decided: &Decided) {
        let sequence = decided.certificate.claim.sequence;
        self.timers.last_progress = now.mono;
        if self.timers.waiting_since.is_some() {
            self.timers.owed_slots += 1;
        }
        if let Some(slot) = self.slots.get(&sequence)
            && slot.accepted.is_some()
        {
            let took = now.mono.since(slot.accepted_at);
            self.timers.round = Micros((self.timers.round.0 * 7 + took.0) / 8);
            self.timers.rounds = (self.timers.rounds + 1).min(ROUNDS_MIN);
        }
        if self.active && sequence > self.timers.carried_to && decided.certificate.claim.view == self.view {
            self.timers.attempts = 0;
        }
        if self.timers.owed_slots >= 4 * PACE_SLOTS_MIN {
            self.timers.owed = Micros(self.timers.owed.0 / 2);
            self.timers.owed_slots /= 2;
        }
    }
}
