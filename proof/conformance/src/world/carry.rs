//! Disks that sync late and forget what they did not, and a net that loses, doubles, delays and reorders. What a message
//! promises is held against the disk as it leaves. A shadow is a node opened from one disk, to see what a crash would leave.

use super::{Event, Letter, OLD_MESSAGES_MAX, Shadow, World};
use crate::rule::Rule;
use crate::subject::Claim;
use bytes::Bytes;
use dwcp_base::{ReplicaId, Ticket};
use dwcp_raft::RaftNode;

impl World<'_> {
    pub(super) fn start_sync(&mut self, s: usize, prompt: bool) {
        let seat = &self.seats[s];
        if seat.syncing || seat.disk_stuck || seat.pending.is_empty() {
            return;
        }
        let company = if prompt { 0 } else { self.chance.below(20_000) };
        let wait = self.chance.between(seat.disk_us.0, seat.disk_us.1) + company;
        let seat = &mut self.seats[s];
        // A prompt record must not wait behind the patience of an earlier one.
        seat.syncing = prompt;
        let (life, through) = (seat.life, seat.pending.back().expect("not empty").0);
        self.push(self.now_us + wait, Event::Synced { seat: s, life, through });
    }

    /// The disk goes on.
    pub fn unstick(&mut self, s: usize) {
        self.seats[s].disk_stuck = false;
        self.start_sync(s, true);
    }

    pub(super) fn on_synced(&mut self, s: usize, life: u32, through: Ticket) {
        if self.seats[s].life != life || self.seats[s].disk_stuck {
            if self.seats[s].life == life {
                self.seats[s].syncing = false;
            }
            return;
        }
        let now = self.now(s);
        let seat = &mut self.seats[s];
        seat.syncing = false;
        while seat.pending.front().is_some_and(|(ticket, _)| *ticket <= through) {
            let record = seat.pending.pop_front().expect("it was just seen");
            seat.records.push_back(record);
        }
        if seat.durable < through {
            seat.durable = through;
            let (leave, stay): (Vec<_>, Vec<_>) =
                core::mem::take(&mut seat.waiting).into_iter().partition(|(after, _)| *after <= through);
            seat.waiting = stay;
            for (_, letter) in leave {
                self.leave(letter);
            }
            if let Some(sealed) = self.seats[s].sealed
                && sealed.ticket <= through
                && !self.seats[s].seal_durable
            {
                self.seats[s].seal_durable = true;
                let told = self.shadow(s).map(|node| (node.sealed(), node.last()));
                self.judge.hold(Rule::SealIsTrue, told == Some((Some(sealed.point), sealed.point)), || {
                    format!("seat {s} sealed {:?}; a restart says {told:?}", sealed.point)
                });
            }
            if let Some(node) = self.seats[s].node.as_deref_mut() {
                node.on_durable(now, through);
                self.dirty.insert(s);
            }
        }
        self.start_sync(s, true);
    }

    /// A message leaves its sender.
    pub(super) fn leave(&mut self, letter: Letter) {
        let (from, to) = (letter.from, letter.to);
        let claim = self.subject.claim(&letter.bytes);
        let to_id = self.seats[to].id;
        self.judge_promise(from, to_id, claim);
        *self.seats[from].bytes_sent.entry(to_id).or_default() += letter.bytes.len() as u64;
        if self.old_messages.len() == OLD_MESSAGES_MAX {
            self.old_messages.pop_front();
        }
        self.old_messages.push_back(letter.clone());
        let lost = self.cuts.contains(&(from, to))
            || (claim == Claim::Entries && self.no_entries.contains(&(from, to)))
            || self.chance.per_mille(self.weather.loss_per_mille);
        if lost {
            return;
        }
        let copies = 1 + u64::from(self.chance.per_mille(self.weather.double_per_mille));
        for _ in 0..copies {
            let mut delay = self.chance.between(self.weather.delay_us.0, self.weather.delay_us.1);
            if self.chance.per_mille(self.weather.late_per_mille) {
                delay += self.chance.below(self.weather.late_us);
            }
            // Quarter milliseconds: so that messages come in bursts.
            let due = (self.now_us + delay).next_multiple_of(250);
            self.push(due, Event::Deliver(letter.clone()));
        }
    }

    /// What a message that leaves promises, held against what a restart would remember.
    pub(super) fn judge_promise(&mut self, s: usize, to: ReplicaId, claim: Claim) {
        let looks = self.chance.per_mille(self.looks_per_mille);
        match claim {
            Claim::Vote { term } => {
                self.judge.on_vote(s, term, to);
                let durable = self.shadow(s).map(|node| node.term());
                let detail = || format!("seat {s} votes in {term:?}; a restart would be in {durable:?}");
                self.judge.hold(
                    Rule::PromisesAreDurable,
                    durable.is_some_and(|durable| durable >= term),
                    detail,
                );
            }
            Claim::Holds { term, index } => {
                let held = self.node(s).and_then(|node| node.place(index));
                let later = self.node(s).is_none_or(|node| node.term() > term || node.border().index > index);
                match held {
                    Some(place) if !later => {
                        self.judge.on_ack(s, term, place);
                        if looks && let Some(node) = self.shadow(s) {
                            let (found, shadow_term) = (node.place(index), node.term());
                            let kept =
                                found == Some(place) || node.border().index > index || shadow_term > term;
                            self.judge.hold(Rule::PromisesAreDurable, kept, || {
                                format!("seat {s} acknowledges {place:?}; a restart would hold {found:?}")
                            });
                        }
                    }
                    None if !later => self.judge.broken(
                        Rule::PromisesAreDurable,
                        format!("seat {s} acknowledges {index}, which it has not"),
                    ),
                    _ => {}
                }
            }
            Claim::Unreadable | Claim::Nothing | Claim::Entries => {}
        }
    }

    /// What a restart of this seat would find, now.
    pub fn shadow(&mut self, s: usize) -> Option<&dyn RaftNode> {
        let seat = &self.seats[s];
        let of = (seat.life, seat.durable, seat.records.len());
        if self.shadows[s].as_ref().is_none_or(|shadow| shadow.of != of) {
            let records: Vec<Bytes> = seat.records.iter().map(|(_, record)| record.clone()).collect();
            match self.subject.maker().open(self.setup(s), &records, self.now(s)) {
                Ok(node) => self.shadows[s] = Some(Shadow { of, node }),
                Err(error) => {
                    self.shadows[s] = None;
                    self.judge.broken(
                        Rule::RestartKeepsPromises,
                        format!("seat {s} could not open what it has on disk: {error}"),
                    );
                }
            }
        }
        self.shadows[s].as_ref().map(|shadow| &*shadow.node)
    }

    /// Would what is committed survive, whoever crashes now?
    pub fn judge_survival(&mut self) {
        let Some(place) = self.judge.committed.last().map(|c| c.place) else { return };
        if self.judge.lies {
            return;
        }
        let mut logs = Vec::new();
        for s in 0..self.seats.len() {
            let Some(node) = self.shadow(s) else { return };
            let has = node.place(place.index) == Some(place) || node.border().index > place.index;
            logs.push((s, node.last(), has));
        }
        self.judge.on_logs(Rule::CommitSurvivesCrashes, &logs);
        self.judge.count("survivals judged");
    }

    /// Would any majority of the durable seals choose a log with everything that was committed?
    pub fn judge_seals(&mut self) {
        let Some(place) = self.judge.committed.last().map(|c| c.place) else { return };
        let mut logs = Vec::new();
        for s in 0..self.seats.len() {
            let Some(sealed) = self.seats[s].sealed.filter(|_| self.seats[s].seal_durable) else { continue };
            let Some(node) = self.shadow(s) else { return };
            let has = (place.index <= sealed.point.index && node.place(place.index) == Some(place))
                || node.border().index > place.index;
            logs.push((s, sealed.point, has));
        }
        self.judge.on_logs(Rule::SealChoiceCovers, &logs);
        if logs.len() >= self.judge.majority {
            self.judge.count("seal choices judged");
        }
    }
}
