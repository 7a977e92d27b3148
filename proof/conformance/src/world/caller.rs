//! What a caller of a Raft node does, as the contract asks of it and no more: it proposes, reads, hands over, seals,
//! discards and installs, and holds every answer against what the node says of itself.

use super::{Event, Letter, World};
use crate::judge::{Fate, Read};
use crate::rule::Rule;
use bytes::Bytes;
use dwcp_base::{LogTime, ReplicaId};
use dwcp_raft::message::Payload;
use dwcp_raft::{Index, InstallError, Place, ProposeError, RaftNode, ReadError, Sealed, TransferError};
use std::collections::BTreeSet;

impl World<'_> {
    /// A fresh payload, whose number is in its bytes.
    pub fn payload(&mut self, bytes: usize) -> (u64, Payload) {
        let number = self.next_number;
        self.next_number += 1;
        let mut frame = number.to_le_bytes().to_vec();
        frame.resize(bytes.max(8), 0xa5);
        let payload = if bytes == 0 {
            Payload::Tick { time: LogTime(number) }
        } else {
            Payload::Batch { time: LogTime(number), frames: vec![Bytes::from(frame)] }
        };
        (number, payload)
    }

    /// Proposes a fresh payload of so many bytes (0: a Tick) and judges the answer.
    pub fn propose(&mut self, s: usize, bytes: usize) -> Option<Result<Place, ProposeError>> {
        let (number, payload) = self.payload(bytes);
        let answer = self.propose_payload(s, &payload)?;
        self.judge.on_proposed(number, answer.map_or(Fate::Refused, Fate::Taken));
        self.finish(s);
        Some(answer)
    }

    /// As `propose`, of the Marker.
    pub fn propose_marker(&mut self, s: usize) -> Option<Result<Place, ProposeError>> {
        self.marker_proposed = true;
        let answer = self.propose_payload(s, &Payload::Marker);
        self.finish(s);
        answer
    }

    fn propose_payload(&mut self, s: usize, payload: &Payload) -> Option<Result<Place, ProposeError>> {
        let now = self.now(s);
        let sealed = self.seats[s].sealed.is_some();
        let node = self.seats[s].node.as_deref_mut()?;
        let (leads, before) = (node.is_leader(), node.last());
        let answer = node.propose(now, payload);
        let after = node.last();
        match &answer {
            Ok(place) => {
                let told =
                    *place == after && node.place(place.index) == Some(*place) && node.term() == place.term;
                let true_place = told && leads && place.index == before.index.next();
                self.judge.hold(Rule::FaceIsConsistent, true_place, || {
                    format!(
                        "seat {s} (leads: {leads}) takes a proposal at {place:?}, its log ends at {after:?}"
                    )
                });
                self.judge.hold(Rule::SealIsSilent, !sealed, || format!("sealed seat {s} takes a proposal"));
                self.judge.count("proposals taken");
            }
            Err(error) => {
                self.judge.hold(Rule::FaceIsConsistent, before == after, || {
                    format!("seat {s} refuses a proposal ({error}) and its log moves to {after:?}")
                });
                let fits = match error {
                    ProposeError::NotLeader { .. } => !leads,
                    ProposeError::Sealed => sealed,
                    _ => leads,
                } || (sealed && *error == ProposeError::Sealed);
                self.judge.hold(Rule::FaceIsConsistent, fits, || {
                    format!("seat {s} (leads: {leads}, sealed: {sealed}) refuses with {error:?}")
                });
                self.judge.count("proposals refused");
            }
        }
        Some(answer)
    }

    /// Asks for a read and returns its token if it was taken.
    pub fn read(&mut self, s: usize) -> Option<Result<u64, ReadError>> {
        let now = self.now(s);
        let token = self.next_token;
        self.next_token += 1;
        let floor = self.judge.high().max(self.judge.read_high);
        let after_marker = self.judge.marker.is_some();
        let could_confirm = BTreeSet::from([s]);
        let asked_us = self.now_us;
        let node = self.seats[s].node.as_deref_mut()?;
        let leads = node.is_leader();
        let answer = node.read_index(now, token);
        if answer.is_ok() {
            let life = self.seats[s].life;
            self.judge
                .hold(Rule::FaceIsConsistent, leads, || format!("seat {s} takes a read and does not lead"));
            self.judge
                .reads
                .insert(token, Read { seat: s, life, floor, asked_us, after_marker, could_confirm });
        }
        if self.seats[s].sealed.is_some() {
            self.judge.hold(Rule::SealIsSilent, answer == Err(ReadError::Sealed), || {
                format!("sealed seat {s} answers a read with {answer:?}")
            });
        }
        self.finish(s);
        Some(answer.map(|()| token))
    }

    pub fn transfer(&mut self, s: usize, to: ReplicaId) -> Option<Result<(), TransferError>> {
        let now = self.now(s);
        let answer = self.seats[s].node.as_deref_mut()?.transfer_leadership(now, to);
        if answer.is_ok() {
            self.judge.count("transfers begun");
        }
        self.finish(s);
        Some(answer)
    }

    /// Seals the seat as a caller must: what was there before is handed over and taken first.
    pub fn seal(&mut self, s: usize) -> Option<Sealed> {
        self.finish(s);
        let now = self.now(s);
        let node = self.seats[s].node.as_deref_mut()?;
        let last = node.last();
        let sealed = node.seal(now);
        let (again, said, leads) = (node.seal(now), node.sealed(), node.is_leader());
        self.note(|| format!("seat {s} seals {sealed:?}"));
        self.judge.hold(Rule::SealIsTrue, sealed.point == last && said == Some(sealed.point), || {
            format!("seat {s} seals {:?}, sealed() is {said:?}, its log ends at {last:?}", sealed.point)
        });
        self.judge
            .hold(Rule::SealIsTrue, again == sealed, || format!("seat {s} seals {sealed:?}, then {again:?}"));
        self.judge.hold(Rule::SealIsSilent, !leads, || format!("sealed seat {s} says that it leads"));
        // What was on disk before is a lower bound, unless a leader of a later term has replaced it since.
        if let Some(floor) = self.shadow(s).map(RaftNode::last) {
            let node = self.seats[s].node.as_deref().expect("it was sealed above");
            let has = node.place(floor.index) == Some(floor) && floor.index <= sealed.point.index;
            let gone = node.border().index > floor.index || node.term() > floor.term;
            self.judge.hold(Rule::SealIsTrue, has || gone, || {
                format!("seat {s} has {floor:?} on disk and seals {:?}", sealed.point)
            });
        }
        let node = self.seats[s].node.take().expect("it was sealed above");
        if self.seats[s].sealed.is_none() {
            self.judge.on_sealed(s, sealed.point, &*node);
        }
        self.seats[s].node = Some(node);
        self.seats[s].sealed = Some(sealed);
        self.finish(s);
        Some(sealed)
    }

    /// Discards up to `through`, which the caller's snapshot covers if it was applied.
    pub fn discard(&mut self, s: usize, through: Index) {
        let Some(node) = self.seats[s].node.as_deref_mut() else { return };
        let (before, commit) = (node.border(), node.commit());
        let place = node.discard(through);
        let border = node.border();
        self.judge.hold(
            Rule::FaceIsConsistent,
            place == border && place.index <= commit && place.index >= before.index,
            || format!("seat {s} discards to {through} (commit {commit}): {before:?} -> {place:?}, border {border:?}"),
        );
        if let Some(known) = self.judge.committed_at(place.index).map(|c| c.place) {
            self.judge.hold(Rule::CommittedNeverChanges, known == place, || {
                format!("seat {s} discards to {place:?}, committed {known:?}")
            });
        }
        if place.index > before.index {
            self.judge.count("discards");
        }
        self.seats[s].applied = self.seats[s].applied.max(place.index);
        self.finish(s);
        self.trim(s);
    }

    /// Lets go of records that the node needs no more.
    pub fn trim(&mut self, s: usize) {
        let Some(node) = self.seats[s].node.as_deref() else { return };
        let needed = node.needed_from();
        let seat = &mut self.seats[s];
        let before = seat.records.len();
        while seat.records.front().is_some_and(|(ticket, _)| *ticket < needed) {
            seat.records.pop_front();
        }
        if seat.records.len() < before {
            self.judge.count("records trimmed");
        }
    }

    pub(super) fn install(&mut self, from: usize, to: usize, next: Index) {
        self.snapshots_due.remove(&(from, to));
        let (Some(donor), true) = (self.node(from), self.seats[to].node.is_some()) else { return };
        let index =
            Index(donor.border().index.0.max(next.0.saturating_sub(1)).min(self.seats[from].applied.0));
        // A Marker changes no state, and a snapshot never stands at one.
        let index = if self.judge.marker == Some(index) { index.before() } else { index };
        let Some(place) = self.judge.committed_at(index).map(|c| c.place) else { return };
        let now = self.now(to);
        let seat = &mut self.seats[to];
        let node = seat.node.as_deref_mut().expect("it is up");
        let before = node.commit();
        let answer = node.install(now, place);
        let (commit, border, has) = (node.commit(), node.border(), node.place(place.index));
        let fits = match answer {
            Ok(()) => commit >= place.index && before < place.index && has == Some(place),
            Err(InstallError::NotAhead { commit: said }) => said == before && before >= place.index,
            Err(InstallError::Sealed) => seat.sealed.is_some(),
        };
        if answer.is_ok() {
            seat.applied = seat.applied.max(place.index);
            self.judge.count("snapshots installed");
        }
        self.note(|| format!("seat {to} installs {place:?}: {answer:?}"));
        self.judge.hold(Rule::SnapshotsCatchUp, fits, || {
            format!("seat {to} (commit {before}) installs {place:?}: {answer:?}, commit {commit}, border {border:?}, holds {has:?}")
        });
        self.finish(to);
    }

    /// Hints that the link to a peer broke, true or not.
    pub fn link_down(&mut self, s: usize, peer: usize) {
        let (now, id) = (self.now(s), self.seats[peer].id);
        if let Some(node) = self.seats[s].node.as_deref_mut() {
            node.on_link_down(now, id);
            self.finish(s);
        }
    }

    /// Hands a message over, perhaps not for the first time.
    pub fn deliver(&mut self, letter: &Letter) {
        if self.seats[letter.to].node.is_none() {
            return;
        }
        if letter.free {
            for read in self.judge.reads.values_mut() {
                if read.seat == letter.to && letter.sent_us >= read.asked_us {
                    read.could_confirm.insert(letter.from);
                }
            }
        }
        self.inject(letter.from, letter.to, &letter.bytes);
    }

    /// What this seat said and nobody has heard yet is lost.
    pub fn unsay(&mut self, s: usize) {
        self.queue.retain(|_, event| !matches!(event, Event::Deliver(letter) if letter.from == s));
    }

    /// Hands bytes over as if the link had brought them.
    pub fn inject(&mut self, from: usize, to: usize, bytes: &Bytes) {
        let id = self.seats[from].id;
        let now = self.now(to);
        if let Some(node) = self.seats[to].node.as_deref_mut() {
            node.step(now, id, bytes);
            self.dirty.insert(to);
        }
    }
}
