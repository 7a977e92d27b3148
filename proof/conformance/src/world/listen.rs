//! What nodes want done and what they say of themselves, after every turn: each action goes where it belongs, and each
//! word to the judge.

use super::{Event, Letter, World, holds_marker};
use crate::rule::Rule;
use dwcp_base::limits::MESSAGE_BYTES_MAX;
use dwcp_raft::{Action, Index};

impl World<'_> {
    pub(super) fn act(&mut self, s: usize, action: Action) {
        if !self.ok() {
            return;
        }
        let sealed = self.seats[s].sealed.is_some();
        match action {
            Action::Persist { ticket, record, prompt } => {
                let seat = &mut self.seats[s];
                let newest = seat.pending.back().map_or(seat.durable, |(ticket, _)| *ticket);
                self.judge.hold(Rule::FaceIsConsistent, ticket == newest.next(), || {
                    format!("seat {s} persists under {ticket:?} after {newest:?}")
                });
                seat.pending.push_back((ticket, record));
                self.start_sync(s, prompt);
            }
            Action::Send { to, message, after } => {
                let to_seat = self.seat_of(to).filter(|other| *other != s);
                let newest =
                    self.seats[s].pending.back().map_or(self.seats[s].durable, |(ticket, _)| *ticket);
                let fits = to_seat.is_some() && message.len() <= MESSAGE_BYTES_MAX && after <= newest;
                self.judge.hold(Rule::FaceIsConsistent, fits, || {
                    format!("seat {s} sends {} bytes to {to} after {after:?} of {newest:?}", message.len())
                });
                self.judge.hold(Rule::SealIsSilent, !sealed, || format!("sealed seat {s} sends to {to}"));
                let Some(to) = to_seat else { return };
                let free = self.could_confirm(s);
                let letter = Letter { from: s, to, bytes: message, sent_us: self.now_us, free };
                if after <= self.seats[s].durable {
                    self.leave(letter);
                } else {
                    self.seats[s].waiting.push((after, letter));
                }
            }
            Action::Committed { through } => self.on_committed(s, through),
            Action::MarkerCommitted { index } => {
                self.seats[s].told_marker = true;
                let marker = self.judge.marker;
                self.judge.hold(Rule::MarkerEnds, self.judge.lies || marker == Some(index), || {
                    format!("seat {s} says that the Marker is committed at {index}; it is {marker:?}")
                });
            }
            Action::ReadsReady { tokens, index } => {
                self.judge.hold(Rule::SealIsSilent, !sealed, || format!("sealed seat {s} answers reads"));
                let life = self.seats[s].life;
                self.judge.on_reads_ready(s, life, &tokens, index);
            }
            Action::ReadsFailed { tokens } => self.judge.on_reads_failed(s, &tokens),
            Action::LeaderChanged { term, leader } => {
                self.note(|| format!("seat {s} knows leader {leader:?} of {term:?}"));
                self.seats[s].told_leader = Some(leader);
            }
            Action::Replaced { from } => {
                self.judge.count("logs replaced");
                let applied = self.seats[s].applied;
                self.judge.hold(Rule::CommittedNeverChanges, from > applied, || {
                    format!("seat {s} replaces from {from}, and had committed {applied}")
                });
            }
            Action::Behind { follower, next } => {
                let border = self.node(s).map(|node| (node.border().index, node.is_leader()));
                let fits = self.seat_of(follower).is_some_and(|other| other != s)
                    && border.is_some_and(|(border, leads)| leads && next <= border);
                self.judge.hold(Rule::SnapshotsCatchUp, self.judge.lies || fits, || {
                    format!("seat {s} says {follower} needs {next}; border and leads: {border:?}")
                });
                self.judge.count("followers behind");
                if let Some(to) = self.seat_of(follower)
                    && self.snapshots_due.insert((s, to))
                {
                    let wait = self.chance.between(500, 5_000);
                    self.push(self.now_us + wait, Event::Snapshot { from: s, to, next });
                }
            }
            Action::Refused { from, .. } => {
                self.seats[s].told_refused += 1;
                self.judge.count("messages refused");
                let known = self.seat_of(from).is_some();
                self.judge
                    .hold(Rule::FaceIsConsistent, known, || format!("seat {s} refuses {from}, a stranger"));
            }
        }
    }

    pub(super) fn on_committed(&mut self, s: usize, through: Index) {
        let applied = self.seats[s].applied;
        let Some(node) = self.seats[s].node.take() else { return };
        let (commit, term) = (node.commit(), node.term());
        self.judge.hold(Rule::FaceIsConsistent, through > applied && through <= commit, || {
            format!("seat {s} reports commit of {through} after {applied}, commit() is {commit}")
        });
        let sealed = self.seats[s].sealed.is_some();
        self.judge.hold(Rule::SealIsSilent, !sealed, || format!("sealed seat {s} commits {through}"));
        let mut news = false;
        let mut next = applied.next();
        while self.ok() && next <= through {
            let bytes_max = usize::try_from(self.chance.below(4_000)).expect("small");
            let entries = node.entries(next, through, bytes_max);
            let bytes: usize = entries.iter().map(|entry| entry.body.bytes().len()).sum();
            let fits = !entries.is_empty()
                && entries.len() as u64 <= through.0 - next.0 + 1
                && (bytes <= bytes_max || entries.len() == 1);
            self.judge.hold(Rule::FaceIsConsistent, fits, || {
                format!(
                    "seat {s} gives {} entries ({bytes} B) of {next}..={through}, at most {bytes_max} B",
                    entries.len()
                )
            });
            for entry in entries {
                let Some(place) = node.place(next) else {
                    self.judge.broken(
                        Rule::FaceIsConsistent,
                        format!("seat {s} has no place for committed {next}"),
                    );
                    break;
                };
                self.judge.hold(
                    Rule::FaceIsConsistent,
                    place.term == entry.term && place.index == next,
                    || format!("seat {s} gives {entry:?} for {place:?}"),
                );
                news |= self.judge.on_committed(s, place, entry, term);
                next = next.next();
            }
        }
        self.seats[s].applied = through;
        self.seats[s].node = Some(node);
        if news && self.ok() && self.chance.per_mille(self.looks_per_mille) {
            self.judge_survival();
        }
    }

    pub(super) fn could_confirm(&self, s: usize) -> bool {
        let seat = &self.seats[s];
        let Some(node) = &seat.node else { return false };
        seat.sealed.is_none() && !(self.marker_proposed && holds_marker(&**node))
    }

    pub(super) fn observe(&mut self, s: usize) {
        let Some(node) = self.seats[s].node.take() else { return };
        node.check();
        let (term, last, commit) = (node.term(), node.last(), node.commit());
        let (durable, border) = (node.durable(), node.border());
        let seat = &mut self.seats[s];
        let judge = &mut self.judge;
        judge.hold(Rule::FaceIsConsistent, term >= seat.term && commit >= seat.commit, || {
            format!("seat {s} goes back from {:?} {} to {term:?} {commit}", seat.term, seat.commit)
        });
        (seat.term, seat.commit) = (term, commit);
        let places = node.place(last.index) == Some(last) && node.place(border.index) == Some(border);
        let over = node.place(last.index.next()).is_none()
            && node.entries(last.index.next(), last.index.next(), 9).is_empty();
        judge.hold(
            Rule::FaceIsConsistent,
            places && over && border.index <= commit && commit <= last.index && durable <= last.index,
            || format!("seat {s}: border {border:?} commit {commit} durable {durable} last {last:?}"),
        );
        judge.hold(Rule::FaceIsConsistent, seat.applied >= commit || seat.sealed.is_some(), || {
            format!("seat {s} commits {commit} and told of {}", seat.applied)
        });
        if let Some(told) = seat.told_leader {
            let said = node.leader();
            judge.hold(Rule::FaceIsConsistent, told == said, || {
                format!("seat {s} says {said:?} leads, and told {told:?}")
            });
        }
        if let Some(marker) = judge.marker.filter(|_| !judge.lies) {
            judge.hold(Rule::MarkerEnds, border.index < marker, || {
                format!("seat {s} dropped the Marker at {marker}: its log begins after {border:?}")
            });
        }
        judge.on_place(s, last);
        if node.is_leader() {
            let me = node.leader();
            judge.hold(Rule::FaceIsConsistent, me == Some(seat.id), || {
                format!("seat {s} leads and says {me:?}")
            });
            judge.hold(Rule::SealIsSilent, seat.sealed.is_none(), || format!("sealed seat {s} leads"));
            judge.on_leader(s, term, &*node);
        } else {
            judge.hold(Rule::FaceIsConsistent, node.followers().is_empty(), || {
                format!("seat {s} does not lead and has followers")
            });
        }
        if let Some(sealed) = seat.sealed {
            let (said, end) = (node.sealed(), node.last());
            judge.hold(Rule::SealIsTrue, said == Some(sealed.point) && end == sealed.point, || {
                format!(
                    "seat {s} sealed {:?}; now sealed() is {said:?} and the log ends at {end:?}",
                    sealed.point
                )
            });
        }
        if commit.0 > border.index.0 {
            let index = Index(self.chance.between(border.index.0 + 1, commit.0));
            let (place, known) = (node.place(index), judge.by_seat[s].get(&index).copied());
            judge.hold(Rule::CommittedNeverChanges, known.is_none() || known == place, || {
                format!("seat {s} committed {known:?} and holds {place:?}")
            });
        }
        if self.chance.per_mille(self.looks_per_mille / 8)
            && let Some(found) = self.shadow(s).map(|node| node.last().index)
        {
            // Of what was installed the caller holds the state, durably.
            self.judge.hold(Rule::PromisesAreDurable, durable <= found.max(border.index), || {
                format!("seat {s} calls {durable} durable; a restart would hold {found}")
            });
        }
        self.seats[s].node = Some(node);
    }
}
