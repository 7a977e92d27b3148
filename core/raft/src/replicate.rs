//! How entries reach the followers and become committed: Raft sections 5.3 and 5.4.2, with a stream of Appends to each
//! follower that does not wait for answers (thesis section 10.2.1) inside a window, and a quick way back to where two logs
//! agree. `settle` in `step` says when; nothing here asks what time it is but to note who was heard.

use crate::log::SegmentLog;
use crate::message::{Conflict, Entry, Kind, Message, Said};
use crate::output::{Action, Output};
use crate::read::Reads;
use crate::state::{Raft, Role};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use bytes::Bytes;
use dwcp_base::limits::CLOCK_AHEAD_MAX_MS;
use dwcp_base::{Epoch, Micros, Mutant, Now, ReplicaId, Ticket};
use dwcp_log::place::{Index, Place, Term};

const FROM_THE_FUTURE: &str = "an entry from the future";

/// What a follower that is being probed was last asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    Nothing,
    /// Whether the logs agree before `next`.
    Place,
    /// The same, with entries to take.
    Entries,
}

/// How a follower is fed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// It is not known where its log parts from ours, or it takes nothing: one question at a time, entries once a heartbeat.
    Probe(Asked),
    /// It follows: Appends go out as they come, as far as the window allows.
    Stream,
    /// What it needs is discarded here: the caller was told at this moment.
    Behind { told: Micros },
}

/// What a leader knows of one follower.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Follower {
    /// Its log is ours up to here, durably.
    pub(crate) matched: Index,
    /// The next entry to send.
    pub(crate) next: Index,
    /// The highest index sent in this term: no answer can honestly name a higher one that is not committed.
    pub(crate) sent: Index,
    pub(crate) pace: Pace,
    pub(crate) heard: Micros,
    /// The newest ReadIndex round it confirmed.
    pub(crate) round: u64,
    commit_told: Index,
    matched_at_beat: Index,
}

/// Leadership that is being handed over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Transfer {
    pub(crate) to: ReplicaId,
    pub(crate) until: Micros,
    pub(crate) told: bool,
}

/// What only a leader knows. Gone with the term.
#[derive(Clone, Debug)]
pub(crate) struct Leadership {
    pub(crate) followers: BTreeMap<ReplicaId, Follower>,
    pub(crate) beat_at: Micros,
    pub(crate) transfer: Option<Transfer>,
    pub(crate) reads: Reads,
}

impl Leadership {
    pub(crate) fn new(now: Now, peers: &[ReplicaId], last: Index) -> Self {
        // The first leader of an epoch knows where all logs agree: at the base. Others have to ask.
        let pace = if last == Index::ZERO { Pace::Stream } else { Pace::Probe(Asked::Nothing) };
        let follower = Follower {
            matched: Index::ZERO,
            next: last.next(),
            sent: Index::ZERO,
            pace,
            heard: now.mono,
            round: 0,
            commit_told: Index::ZERO,
            matched_at_beat: Index::ZERO,
        };
        Self {
            followers: peers.iter().map(|peer| (*peer, follower)).collect(),
            beat_at: now.mono,
            transfer: None,
            reads: Reads::default(),
        }
    }

    pub(crate) fn transfer_until(&self) -> Micros {
        self.transfer.map_or(Micros::NEVER, |transfer| transfer.until)
    }

    pub(crate) fn give_up_transfer(&mut self, now: Now) {
        self.transfer = self.transfer.filter(|transfer| now.mono < transfer.until);
    }
}

/// Encodings of this many ranges are kept while one `settle` lasts: followers in step get the same bytes.
const ENCODED_MAX: usize = 8;

/// What feeding one follower needs of the rest, and what was encoded for the others.
struct Feed<'a> {
    epoch: Epoch,
    term: Term,
    commit: Index,
    append_entries_max: u64,
    append_bytes_max: u64,
    log: &'a SegmentLog,
    out: &'a mut Output,
    encoded: Vec<(Index, Index, Bytes)>,
}

impl Feed<'_> {
    fn send(&mut self, to: ReplicaId, message: Bytes) {
        // Departs: a leader's Append does not wait for its own disk (thesis section 10.2.1); it counts itself only once
        // that has answered. `a_leader_counts_itself_only_when_durable`.
        self.out.push(Action::Send { to, message, after: Ticket::ZERO });
    }

    fn say(&mut self, to: ReplicaId, said: Said) {
        let message = Message { epoch: self.epoch, term: self.term, said }.to_bytes();
        self.send(to, message);
    }

    /// Sends the entries from `from` on, within the bounds; none when `from` is past the log. Says the last index sent.
    fn append(&mut self, to: ReplicaId, from: Index, count_max: u64, bytes_max: u64) -> Index {
        let count_max = count_max.min(self.append_entries_max);
        let bytes_max = bytes_max.min(self.append_bytes_max);
        let last = self.log.last_index();
        let through = self.log.reach(from, last, count_max, bytes_max).unwrap_or(from.before());
        self.append_range(to, from, through);
        through
    }

    /// Asks whether the logs agree before `next`.
    fn ask(&mut self, to: ReplicaId, next: Index) {
        self.append_range(to, next, next.before());
    }

    fn append_range(&mut self, to: ReplicaId, from: Index, through: Index) {
        let known = self.encoded.iter().find(|(first, last, _)| (*first, *last) == (from, through));
        let message = match known {
            Some((_, _, message)) => message.clone(),
            None => {
                let message = self.encode_append(from, self.log.slice(from, through));
                if self.encoded.len() == ENCODED_MAX {
                    self.encoded.remove(0);
                }
                self.encoded.push((from, through, message.clone()));
                message
            }
        };
        self.send(to, message);
    }

    fn encode_append(&self, from: Index, entries: Vec<Entry>) -> Bytes {
        let prev = self.log.place(from.before()).expect("a leader sends what it holds");
        let said = Said::Append { prev, commit: self.commit, entries };
        Message { epoch: self.epoch, term: self.term, said }.to_bytes()
    }
}

impl Raft {
    fn feed(&mut self) -> Option<(&mut Leadership, Feed<'_>)> {
        let Role::Leader(lead) = &mut self.role else { return None };
        let feed = Feed {
            epoch: self.epoch,
            term: self.hard.term,
            commit: self.commit,
            append_entries_max: self.limits.append_entries_max,
            append_bytes_max: self.limits.append_bytes_max,
            log: &self.log,
            out: &mut self.out,
            encoded: Vec::new(),
        };
        Some((lead, feed))
    }

    /// Sends every follower what it lacks and its window allows.
    pub(crate) fn replicate(&mut self, now: Now) {
        let (entries_max, bytes_max) = (self.limits.inflight_entries_max, self.limits.inflight_bytes_max);
        let Some((lead, mut feed)) = self.feed() else { return };
        let border = feed.log.border().index;
        let last = feed.log.last_index();
        for (id, one) in &mut lead.followers {
            if one.next <= border && !matches!(one.pace, Pace::Behind { .. }) {
                one.pace = Pace::Behind { told: now.mono };
                feed.out.push(Action::Behind { follower: *id, next: one.next });
            }
            match one.pace {
                Pace::Behind { .. } | Pace::Probe(Asked::Place | Asked::Entries) => {}
                Pace::Probe(Asked::Nothing) => {
                    let through = feed.append(*id, one.next, entries_max, bytes_max);
                    one.sent = one.sent.max(through);
                    one.pace = Pace::Probe(if through < one.next { Asked::Place } else { Asked::Entries });
                }
                Pace::Stream => {
                    while one.next <= last {
                        let before = one.next.before();
                        let entries = before.0 - one.matched.0;
                        let bytes = feed.log.bytes_through(before) - feed.log.bytes_through(one.matched);
                        if entries > 0 && (entries >= entries_max || bytes >= bytes_max) {
                            break;
                        }
                        let room = (entries_max - entries, bytes_max.saturating_sub(bytes));
                        let through = feed.append(*id, one.next, room.0, room.1);
                        one.sent = one.sent.max(through);
                        one.next = through.next();
                        one.commit_told = feed.commit;
                    }
                    if one.commit_told < feed.commit.min(one.matched) {
                        one.commit_told = feed.commit.min(one.matched);
                        feed.say(*id, Said::Committed { through: one.commit_told });
                    }
                }
            }
        }
    }

    /// A leader's regular word to all: it leads, this is committed, and whoever was silent is asked again.
    pub(crate) fn beat(&mut self, now: Now) {
        let timing = self.timing;
        let Some((lead, mut feed)) = self.feed() else { return };
        lead.beat_at = now.mono.plus(timing.heartbeat_interval);
        let round = lead.reads.round();
        let border = feed.log.border().index;
        for (id, one) in &mut lead.followers {
            let commit = feed.commit.min(one.matched);
            feed.say(*id, Said::Heartbeat { commit, round });
            match one.pace {
                // Entries went with the first question; a silent follower is not sent them again and again.
                Pace::Probe(Asked::Place | Asked::Entries) if one.next > border => {
                    feed.ask(*id, one.next);
                    one.pace = Pace::Probe(Asked::Place);
                }
                Pace::Probe(_) => {}
                // Nothing was answered for a whole interval although something is under way: does it still follow?
                Pace::Stream if one.next.before() > one.matched && one.matched == one.matched_at_beat => {
                    // What it lacks may have been discarded meanwhile; then `replicate` notices.
                    if one.next > border {
                        feed.ask(*id, one.next);
                    }
                }
                Pace::Stream => {}
                Pace::Behind { told } => {
                    // Has it begun anew from a snapshot?
                    feed.ask(*id, border.next());
                    if now.mono.since(told) >= timing.election_timeout {
                        one.pace = Pace::Behind { told: now.mono };
                        feed.out.push(Action::Behind { follower: *id, next: one.next });
                    }
                }
            }
            one.matched_at_beat = one.matched;
        }
    }

    /// What a follower holds, with the bounds Raft section 5.3 sets on what it may say.
    pub(crate) fn on_accepted(&mut self, now: Now, from: ReplicaId, matched: Index) {
        let (commit, last) = (self.commit, self.log.last_index());
        let border = self.log.border().index;
        let Some(one) = self.followed(now, from) else { return };
        if matched > one.sent.max(commit) {
            self.refuse(from, "an acknowledgement of what was not sent");
            return;
        }
        one.matched = one.matched.max(matched);
        one.pace = match one.pace {
            Pace::Stream => Pace::Stream,
            // It took what it was sent, or there is nothing to send.
            Pace::Probe(_) if matched >= one.next || (matched >= one.next.before() && one.next > last) => {
                Pace::Stream
            }
            // The logs agree: entries may go. If they went already it took none, and is asked again in a while.
            Pace::Probe(Asked::Place) if matched >= one.next.before() => Pace::Probe(Asked::Nothing),
            Pace::Behind { .. } if matched >= border => Pace::Probe(Asked::Nothing),
            waits @ (Pace::Probe(_) | Pace::Behind { .. }) => waits,
        };
        one.next = one.next.max(one.matched.next());
        self.try_commit();
        self.try_hand_over();
    }

    /// Our log and the follower's part at or before the place it names: go back there at once, not one entry at a time.
    pub(crate) fn on_refused(&mut self, now: Now, from: ReplicaId, conflict: Conflict) {
        let border = self.log.border().index;
        let within = conflict.index.min(conflict.refused.before());
        let agreed = self.log.last_place_within(within, conflict.term).index;
        let last = self.log.last_index();
        let Some(one) = self.followed(now, from) else { return };
        if conflict.refused > last {
            self.refuse(from, "a refusal of what was not sent");
            return;
        }
        let stale = match one.pace {
            Pace::Stream => conflict.refused <= one.matched,
            Pace::Probe(_) => conflict.refused != one.next.before() || conflict.refused <= one.matched,
            Pace::Behind { .. } => true,
        };
        if stale {
            return;
        }
        // Below the border no place of ours is left to compare: `replicate` sees that it is behind.
        let next = if within < border { within.next() } else { agreed.next() };
        one.next = next.max(one.matched.next());
        one.pace = Pace::Probe(Asked::Nothing);
    }

    /// The follower, noted as heard; `None` when this replica does not lead.
    pub(crate) fn followed(&mut self, now: Now, from: ReplicaId) -> Option<&mut Follower> {
        let Role::Leader(lead) = &mut self.role else { return None };
        let one = lead.followers.get_mut(&from)?;
        one.heard = now.mono;
        Some(one)
    }

    /// Raft section 5.4.2: an entry of this term that a majority holds durably is committed, and all before it. One of an
    /// earlier term never by counting alone (figure 8).
    pub(crate) fn try_commit(&mut self) {
        let own = if self.mutants.on(Mutant::RaftLeaderCountsUnsynced) {
            self.log.last_index()
        } else {
            self.durable
        };
        let majority = self.majority();
        let Role::Leader(lead) = &self.role else { return };
        let mut held = [Index::ZERO; 32];
        let count = lead.followers.len() + 1;
        held[0] = own;
        for (slot, one) in held[1..].iter_mut().zip(lead.followers.values()) {
            *slot = one.matched;
        }
        held[..count].sort_unstable_by(|a, b| b.cmp(a));
        let candidate = held[majority - 1];
        if candidate <= self.commit {
            return;
        }
        let current = self.log.place(candidate).is_some_and(|place| place.term == self.hard.term);
        if current || self.mutants.on(Mutant::RaftCommitOldTerm) {
            self.commit_to(candidate);
        }
    }

    /// Thesis section 3.10: once the chosen one holds everything it is told to stand for election.
    pub(crate) fn try_hand_over(&mut self) {
        let last = self.log.last_index();
        let Role::Leader(lead) = &mut self.role else { return };
        let Some(transfer) = lead.transfer.filter(|transfer| !transfer.told) else { return };
        if lead.followers.get(&transfer.to).is_some_and(|one| one.matched == last) {
            lead.transfer = Some(Transfer { told: true, ..transfer });
            self.send(transfer.to, Said::TimeoutNow, Ticket::ZERO);
        }
    }

    /// AppendEntries at a follower (Raft figure 2). `prev` and `entries` are well formed in themselves.
    pub(crate) fn on_append(
        &mut self,
        now: Now,
        from: ReplicaId,
        mut prev: Place,
        commit: Index,
        mut entries: Vec<Entry>,
    ) {
        if !self.follow(now, from) {
            self.refuse(from, "two leaders in one term");
            return;
        }
        let border = self.log.border();
        if prev.index < border.index {
            // What lies below the border is committed, so the leader's log agrees with it (Raft section 5.4.3).
            let skipped = usize::try_from(border.index.0 - prev.index.0).unwrap_or(usize::MAX);
            if entries.len() < skipped {
                self.accept_through(border.index);
                return;
            }
            if entries[skipped - 1].term != border.term {
                self.refuse(from, "a conflict with what is committed");
                return;
            }
            entries.drain(..skipped);
            prev = border;
        }
        match self.log.place(prev.index) {
            Some(own) if own == prev => {}
            Some(own) if own.term == prev.term => {
                self.refuse(from, "equal index and term, other content before");
                return;
            }
            Some(_) if prev.index <= self.commit => {
                self.refuse(from, "a conflict with what is committed");
                return;
            }
            _ => {
                let at = self.log.last_place_within(prev.index, prev.term);
                self.owed.refusal = Some(Conflict { refused: prev.index, index: at.index, term: at.term });
                return;
            }
        }
        let last = self.log.last_index();
        match self.take_entries(now, prev.index, entries) {
            Ok((through, complaint)) => {
                self.verified = self.verified.max(through);
                self.commit_to(commit.min(self.verified));
                // Who took nothing of what it was sent stays silent: an answer would bring the same entries again at once.
                self.owed.accepted |= complaint.is_none() || self.log.last_index() > last;
                if let Some(reason) = complaint {
                    self.refuse(from, reason);
                }
            }
            Err(reason) => self.refuse(from, reason),
        }
    }

    fn accept_through(&mut self, through: Index) {
        self.verified = self.verified.max(through);
        self.owed.accepted = true;
    }

    /// Makes the log behind `prev` what the leader says. Says up to where it now is, and why not further; on an error
    /// nothing has changed.
    fn take_entries(
        &mut self,
        now: Now,
        prev: Index,
        entries: Vec<Entry>,
    ) -> Result<(Index, Option<&'static str>), &'static str> {
        let mut through = prev;
        let mut news = entries.into_iter().peekable();
        while let Some(entry) = news.peek() {
            match self.log.get(through.next()) {
                None => break,
                Some(own) if own.term != entry.term => {
                    if through.next() <= self.commit {
                        return Err("a conflict with what is committed");
                    }
                    break;
                }
                Some(own) if own.body != entry.body => return Err("two entries for one index and term"),
                Some(_) => {
                    through = through.next();
                    news.next();
                }
            }
        }
        match news.peek() {
            None => return Ok((through, None)),
            Some(entry) if self.is_from_the_future(now, entry) => {
                return Ok((through, Some(FROM_THE_FUTURE)));
            }
            Some(_) => {}
        }
        if through < self.log.last_index() {
            self.truncate(through.next());
        }
        for entry in news {
            if self.log.marker().is_some() {
                return Ok((through, Some("entries behind a Marker")));
            }
            if self.log_is_overfull() {
                return Ok((through, Some("the log is full: a snapshot must be written first")));
            }
            if self.is_from_the_future(now, &entry) {
                return Ok((through, Some(FROM_THE_FUTURE)));
            }
            through = self.append(entry).index;
        }
        Ok((through, None))
    }

    /// Leases and sessions end by the time in entries, so no leader may hurry it: its entry waits until our own clock is there,
    /// and meanwhile we do not count for it. As the root's backups do.
    fn is_from_the_future(&self, now: Now, entry: &Entry) -> bool {
        let time = match entry.body.time() {
            Some(time) if !self.mutants.on(Mutant::ClockUnchecked) => time,
            _ => return false,
        };
        time.0 > now.wall_ms.saturating_add(CLOCK_AHEAD_MAX_MS)
    }

    /// A follower takes twice what its leader may propose, for the two do not discard at the same time.
    pub(crate) fn log_is_overfull(&self) -> bool {
        self.log.len() >= self.limits.log_entries_max * 2 || self.log.bytes() >= self.limits.log_bytes_max * 2
    }

    /// Whether a batch still finds room in a leader's log.
    pub(crate) fn log_is_full(&self) -> bool {
        self.log.len() >= self.limits.log_entries_max || self.log.bytes() >= self.limits.log_bytes_max
    }

    /// Whether `body` may go on top of what is proposed and not committed.
    pub(crate) fn is_busy(&self, kind: Kind) -> bool {
        let uncommitted = self.log.bytes_through(self.log.last_index()) - self.log.bytes_through(self.commit);
        kind == Kind::Batch && uncommitted >= self.limits.uncommitted_bytes_max
    }

    pub(crate) fn on_heartbeat(&mut self, now: Now, from: ReplicaId, commit: Index, round: Option<u64>) {
        if !self.follow(now, from) {
            self.refuse(from, "two leaders in one term");
            return;
        }
        if commit > self.log.last_index() {
            self.refuse(from, "a commit past the log");
            return;
        }
        self.commit_to(commit);
        if let Some(round) = round {
            self.owed.beat = Some(self.owed.beat.map_or(round, |beat| beat.max(round)));
        }
    }

    /// Sends what the follower owes its leader for all that came since the last time.
    pub(crate) fn answer(&mut self) {
        let owed = core::mem::take(&mut self.owed);
        let Some(leader) = self.leader.filter(|leader| *leader != self.me) else { return };
        if owed.accepted {
            let after = if self.mutants.on(Mutant::RaftAckBeforeSync) {
                Ticket::ZERO
            } else {
                self.out.last_ticket()
            };
            self.send(leader, Said::Accepted { matched: self.verified }, after);
        }
        if let Some(conflict) = owed.refusal.filter(|conflict| conflict.refused > self.verified) {
            self.send(leader, Said::Refused(conflict), self.hard_ticket);
        }
        if let Some(round) = owed.beat {
            let round = if self.may_confirm_reads() { round } else { 0 };
            self.send(leader, Said::HeartbeatReply { round }, self.hard_ticket);
        }
    }
}
