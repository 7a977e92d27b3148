//! What the world sees of a replica: the votes that leave it and the events it reports, noted in the journals the
//! judges read, and counted as coverage.
//!
//! Votes are read off the wire, from the bytes that leave, not from what a core says about itself.

use crate::node::Node;
use crate::trick::Trick;
use crate::world::World;
use bytes::Bytes;
use check::CommandId;
use check::history::{Executed, ExecutedCommand, ReplicaEvent, Vote as Noted, VoteKind};
use dwcp_base::{Hasher, Incarnation, ReplicaId, decode};
use dwcp_pbft::{Message, NewView, Signed, ViewChange, Vote};
use dwcp_replica::{Event, Input, PeerMessage};
use std::fmt::Write as _;

/// Longest description of a message in a trace.
const DESCRIPTION_MAX: usize = 180;

/// The votes of one identity that these bytes carry.
fn votes_in(bytes: &Bytes, me: ReplicaId, incarnation: Incarnation, to: ReplicaId) -> Vec<Noted> {
    let message = match decode::<PeerMessage>(bytes) {
        Ok(PeerMessage::Pbft(message)) => message,
        Ok(other) => return crate::segments::promises(&other, me, incarnation, to).into_iter().collect(),
        Err(_) => return Vec::new(),
    };
    let own = |signed: &Signed| {
        let statement = signed.statement;
        let kind = match statement.claim.vote {
            Vote::PrePrepare => VoteKind::PrePrepare,
            Vote::Prepare => VoteKind::Prepare,
            Vote::Commit => VoteKind::Commit,
            Vote::Checkpoint => VoteKind::Checkpoint,
        };
        (statement.sender == me && statement.incarnation == incarnation).then_some(Noted {
            kind,
            epoch: 0,
            view: statement.claim.view.0,
            sequence: statement.claim.sequence.0,
            digest: statement.claim.digest.0,
        })
    };
    let whole = |kind, view: u64, digest| Noted { kind, epoch: 0, view, sequence: 0, digest };
    match message {
        Message::PrePrepare { proposal, .. } => own(&proposal).into_iter().collect(),
        Message::Vote(signed) => own(&signed).into_iter().collect(),
        Message::ViewChange(body) => match decode::<ViewChange>(&body.body) {
            Ok(change) if change.sender == me && change.incarnation == incarnation => {
                vec![whole(VoteKind::ViewChange, change.view.0, body.hash().0)]
            }
            _ => Vec::new(),
        },
        Message::NewView(body) => match decode::<NewView>(&body.body) {
            Ok(view) if view.sender == me && view.incarnation == incarnation => {
                let mut votes = vec![whole(VoteKind::NewView, view.view.0, body.hash().0)];
                votes.extend(view.pre_prepares.iter().filter_map(own));
                votes
            }
            _ => Vec::new(),
        },
        _ => Vec::new(),
    }
}

fn cut(mut text: String) -> String {
    if text.len() > DESCRIPTION_MAX {
        let mut end = DESCRIPTION_MAX;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push_str("...");
    }
    text
}

/// A message for people.
#[must_use]
pub fn describe(bytes: &Bytes) -> String {
    let signed = |signed: &Signed| {
        let statement = &signed.statement;
        let claim = &statement.claim;
        let (sender, vote) = (statement.sender, claim.vote);
        format!(
            "{vote:?} {:?} {:?} {:?} by {sender:?}.{:?}",
            claim.view, claim.sequence, claim.digest, statement.incarnation
        )
    };
    match decode::<PeerMessage>(bytes) {
        Ok(PeerMessage::Pbft(Message::PrePrepare { proposal, payload })) => {
            format!("{} with {} B", signed(&proposal), payload.len())
        }
        Ok(PeerMessage::Pbft(Message::Vote(vote))) => signed(&vote),
        Ok(PeerMessage::Pbft(Message::ViewChange(body))) => match decode::<ViewChange>(&body.body) {
            Ok(change) => format!(
                "ViewChange {:?} by {:?} stable {:?} P {:?} Q {}",
                change.view,
                change.sender,
                change.stable_sequence(),
                change.prepared.iter().map(|p| (p.view(), p.sequence(), p.digest())).collect::<Vec<_>>(),
                change.pre_prepared.len()
            ),
            Err(_) => "ViewChange (malformed)".into(),
        },
        Ok(PeerMessage::Pbft(Message::NewView(body))) => match decode::<NewView>(&body.body) {
            Ok(view) => {
                let mut text = format!(
                    "NewView {:?} by {:?} from {:?} O",
                    view.view,
                    view.sender,
                    view.view_changes.iter().map(|(r, _)| *r).collect::<Vec<_>>()
                );
                for signed in &view.pre_prepares {
                    let claim = &signed.statement.claim;
                    write!(text, " {:?}={:?}", claim.sequence, claim.digest).expect("writing to memory");
                }
                text
            }
            Err(_) => "NewView (malformed)".into(),
        },
        Ok(PeerMessage::Segment { epoch, bytes }) => crate::segments::describe(epoch, &bytes),
        Ok(PeerMessage::Request { frame, .. }) => format!("Request {} B", frame.len()),
        Ok(other) => cut(format!("{other:?}")),
        Err(_) => format!("garbage, {} B", bytes.len()),
    }
}

/// An input for people.
#[must_use]
pub fn describe_input(input: &Input) -> String {
    cut(format!("{input:?}"))
}

/// Whether a message between replicas is a COMMIT of the root.
pub fn is_commit(bytes: &Bytes) -> bool {
    let message = decode::<PeerMessage>(bytes);
    matches!(message, Ok(PeerMessage::Pbft(Message::Vote(vote))) if vote.statement.claim.vote == Vote::Commit)
}

impl World {
    /// Bytes leave a node for a peer.
    pub fn observe_send(&mut self, ix: usize, to: ReplicaId, bytes: &Bytes, order: u64) {
        let node = &mut self.nodes[ix];
        if !node.honest {
            return;
        }
        // A broadcast sends the same bytes to everybody; keeping them keeps their address theirs.
        if node.last_sent.as_ptr() == bytes.as_ptr() && node.last_sent.len() == bytes.len() {
            return;
        }
        node.last_sent = bytes.clone();
        let votes = votes_in(bytes, node.replica, node.incarnation, to);
        let journal = node.journal;
        self.observe_words(ix, bytes, order);
        if bytes.first() == Some(&10)
            && let Ok(PeerMessage::Suspect(signed)) = decode::<PeerMessage>(bytes)
        {
            self.observe_complaint(ix, signed.said.epoch.0);
        }
        for vote in votes {
            if vote.kind == VoteKind::Sealed {
                self.observe_sealed_word(ix, vote.epoch);
            }
            let slot = (vote.kind, vote.view, vote.sequence);
            // What was already noted is not noted again; another digest for it always is.
            if self.nodes[ix].noted.insert((slot_number(slot.0), vote.epoch, slot.1, slot.2, vote.digest)) {
                self.journals[journal].note(self.now_us, ReplicaEvent::Voted(vote));
            } else if matches!(vote.kind, VoteKind::PrePrepare | VoteKind::Prepare | VoteKind::Commit)
                && vote.view < self.nodes[ix].left_below
            {
                // A repetition matters to the judge only after the view was left.
                self.journals[journal].note(self.now_us, ReplicaEvent::Voted(vote.clone()));
            }
            if slot.0 == VoteKind::ViewChange {
                self.nodes[ix].left_below = self.nodes[ix].left_below.max(slot.1);
            }
        }
    }

    /// Counts the slots a replica holds ahead of what it has delivered: that is where liars can pile things up.
    pub fn observe_slots(&mut self, ix: usize) {
        let node = &mut self.nodes[ix];
        let Some(core) = node.core.as_ref().filter(|_| node.honest) else { return };
        let slots = core.protocol().slots_ahead() as u64;
        if slots > node.held_max {
            node.held_max = slots;
            let journal = node.journal;
            self.journals[journal].note(self.now_us, ReplicaEvent::Holds { slots });
        }
    }

    /// What must be known before anything that follows it leaves the replica: who has a vote.
    pub fn observe_at_once(&mut self, ix: usize, event: &Event, order: u64) {
        if !self.nodes[ix].honest {
            return;
        }
        self.observe_segment_at_once(ix, event, order);
        match event {
            Event::StableCheckpoint { sequence, .. } => self.admit_up_to(*sequence),
            Event::MemberReplaced { id, incarnation, votes_after }
                if self.replaced.insert((*id, *incarnation), *votes_after).is_none() =>
            {
                self.coverage.members_replaced += 1;
            }
            _ => {}
        }
    }

    /// A replica reports something.
    pub fn observe_event(&mut self, ix: usize, event: Event) {
        let at = self.now_us;
        if self.trace.keeps_lines() {
            let text = cut(format!("{event:?}"));
            self.trace.line(at, || format!("{:?}    {text}", self.nodes[ix]));
        }
        self.spot(ix, &event);
        let honest = self.nodes[ix].honest;
        if honest {
            self.observe_segment_event(ix, &event);
        }
        let journal = self.nodes[ix].journal;
        match event {
            Event::Executed { sequence, position, payload_digest, chain, commands, .. } => {
                self.trace.mix(&[at, ix as u64, sequence.0]);
                self.coverage.slots_executed += 1;
                if !honest {
                    return;
                }
                let mut hasher = Hasher::new("sim entry");
                hasher.update(&payload_digest.0).update(&chain.0);
                let executed = Executed {
                    epoch: 0,
                    sequence: sequence.0,
                    position: position.0,
                    digest: hasher.finish().0,
                    chain: Some(chain.0),
                    commands: commands
                        .iter()
                        .filter(|command| {
                            !self.reads.contains(&(u128::from_be_bytes(command.session.0), command.sequence))
                        })
                        .map(|command| ExecutedCommand {
                            id: CommandId {
                                session: u128::from_be_bytes(command.session.0),
                                seq: command.sequence,
                            },
                            result: command.result.0,
                        })
                        .collect(),
                };
                self.journals[journal].note(at, ReplicaEvent::Executed(executed));
            }
            Event::Digest { sequence, digest } => {
                self.trace.mix_bytes(&digest.0);
                if honest {
                    let event = ReplicaEvent::Checkpoint { epoch: 0, sequence: sequence.0, state: digest.0 };
                    self.journals[journal].note(at, event);
                }
            }
            Event::ChunksTakenUp { .. } => self.coverage.transfers_resumed += 1,
            Event::StateTransferFinished { sequence } => {
                self.coverage.state_transfers += 1;
                self.journals[journal].note(at, ReplicaEvent::Restored { epoch: 0, sequence: sequence.0 });
            }
            Event::StableCheckpoint { .. } => self.coverage.checkpoints += 1,
            Event::Recovered { executed, inside_view_change, records, .. } => {
                self.journals[journal].note(at, ReplicaEvent::Restored { epoch: 0, sequence: executed.0 });
                self.coverage.restarts += u64::from(records > 0);
                self.coverage.restarts_in_view_change += u64::from(inside_view_change);
            }
            Event::ViewEntered { view, gaps, carried, .. } => {
                self.coverage.view_changes += u64::from(view.0 > 0);
                self.coverage.new_views_with_gaps += u64::from(gaps > 0);
                self.coverage.new_views_carrying += u64::from(carried > 0);
            }
            Event::ViewChangeStarted { .. } => self.coverage.views_asked += 1,
            Event::DonorDropped { .. } => self.coverage.donors_dropped += u64::from(honest),
            Event::DonorLate { donor, .. } => {
                let endless =
                    |node: &Node| node.puppet.as_ref().is_some_and(|it| it.has(Trick::EndlessDonor));
                let is_liar = self.nodes.iter().any(|node| node.replica == donor && endless(node));
                self.coverage.donors_left += u64::from(honest && is_liar);
            }
            Event::RetryAnswered { .. } => self.coverage.retries_answered += 1,
            Event::Refused { reason, .. } => {
                if honest {
                    self.coverage.forgeries_refused += 1;
                    *self.refusals.entry(reason).or_default() += 1;
                }
            }
            Event::Diverged { sequence, .. } => {
                if honest && !self.nodes[ix].lost_sync {
                    let text = format!("{:?} diverged at {sequence:?}", self.nodes[ix]);
                    self.divergences.push(text);
                }
            }
            Event::MemberReadmitted { id, incarnation } => {
                if honest {
                    self.note_readmitted(id, incarnation);
                }
            }
            Event::MemberHoldsUp { member, .. } => {
                if honest {
                    self.observe_withholder(ix, &member);
                }
            }
            Event::SegmentExecuted { epoch, index, chain, .. } => {
                self.trace.mix(&[at, ix as u64, epoch.0, index.0]);
                self.trace.mix_bytes(&chain.0);
            }
            Event::ModeOrdered { .. }
            | Event::SegmentOpened { .. }
            | Event::DeferredExecuted { .. }
            | Event::LeaderChanged { .. }
            | Event::Suspected { .. }
            | Event::SegmentSealed { .. }
            | Event::SegmentClosed { .. }
            | Event::Anchored { .. }
            | Event::AnchorDiverged { .. }
            | Event::MemberReplaced { .. }
            | Event::OriginFrozen { .. }
            | Event::KeysRepaired { .. }
            | Event::StateTransferStarted { .. } => {}
        }
    }

    /// What a scenario shows of an event.
    fn spot(&mut self, ix: usize, event: &Event) {
        let Some(seen) = self.spotlight.as_mut() else { return };
        let text = match event {
            Event::Executed { sequence, view, commands, .. } => {
                format!("executes {sequence:?} of view {view} ({} commands)", commands.len())
            }
            Event::ViewChangeStarted { view, reason } => format!("asks for view {view}: {reason}"),
            Event::ViewEntered { view, primary, gaps, carried } => {
                format!("enters view {view} of {primary:?}: {gaps} gaps, {carried} carried")
            }
            Event::StableCheckpoint { sequence, .. } => format!("checkpoint {sequence} is stable"),
            Event::StateTransferStarted { sequence } => format!("fetches the state at {sequence:?}"),
            Event::ChunksTakenUp { sequence, chunks } => {
                format!("goes on with {chunks} chunks it had of {sequence:?}")
            }
            Event::StateTransferFinished { sequence } => format!("has the state at {sequence:?}"),
            Event::DonorDropped { donor, .. } => format!("drops the donor {donor:?}"),
            Event::DonorLate { donor, .. } => format!("leaves the donor {donor:?} for a while"),
            Event::Recovered { view, executed, stable, .. } => {
                format!("recovers in view {view}, executed {executed}, stable {stable}")
            }
            Event::MemberReplaced { id, incarnation, votes_after } => {
                format!("takes {id:?}.{incarnation:?} in, to vote after {votes_after}")
            }
            Event::MemberReadmitted { id, incarnation } => format!("counts {id:?}.{incarnation:?} again"),
            Event::Diverged { sequence, .. } => format!("diverged at {sequence:?}"),
            Event::ModeOrdered { mode, .. } => format!("takes the order of {mode} mode"),
            Event::SegmentOpened { epoch, base, first_leader, .. } => {
                format!("opens segment {epoch} at position {base}, first led by {first_leader:?}")
            }
            Event::DeferredExecuted { sequence, commands, .. } => {
                format!("executes the deferred batch of {sequence} ({} commands)", commands.len())
            }
            Event::LeaderChanged { epoch, term, leader } => {
                format!("sees {leader:?} lead segment {epoch} in term {term}")
            }
            Event::Suspected { epoch, reason } => format!("complains of segment {epoch}: {reason}"),
            Event::SegmentSealed { epoch, index, term } => {
                format!("seals segment {epoch} at index {index} of term {term}")
            }
            Event::SegmentClosed { epoch, tail, forced, marker, cut, deferred, .. } => format!(
                "closes segment {epoch} at {tail}{}{}: {cut} cut, {deferred} deferred",
                if *forced { ", by force" } else { "" },
                if *marker { ", by Marker" } else { "" }
            ),
            Event::AnchorDiverged { epoch, index } => {
                format!("diverged from segment {epoch}'s Anchor at {index}")
            }
            Event::SegmentExecuted { .. }
            | Event::Anchored { .. }
            | Event::Digest { .. }
            | Event::RetryAnswered { .. }
            | Event::OriginFrozen { .. }
            | Event::MemberHoldsUp { .. }
            | Event::KeysRepaired { .. }
            | Event::Refused { .. } => return,
        };
        seen.push(format!("{:?} {text}", self.nodes[ix]));
    }

    /// New incarnations whose votes wait for a stable checkpoint at or below `sequence` have a vote from now on.
    fn admit_up_to(&mut self, sequence: dwcp_base::Sequence) {
        let due: Vec<(ReplicaId, Incarnation)> = self
            .replaced
            .iter()
            .filter(|(member, after)| **after <= sequence && !self.admitted.contains(member))
            .map(|(member, _)| *member)
            .collect();
        for (id, incarnation) in due {
            self.admitted.insert((id, incarnation));
            self.coverage.members_readmitted += 1;
            let at = self.now_us;
            for journal in &mut self.journals {
                if journal.replica == u32::from(id.0) && journal.incarnation == u64::from(incarnation.0) {
                    journal.note(at, ReplicaEvent::Admitted);
                }
            }
            self.replacement_is_admitted(usize::from(id.0), incarnation);
        }
    }
}

fn slot_number(kind: VoteKind) -> u16 {
    match kind {
        VoteKind::PrePrepare => 1,
        VoteKind::Prepare => 2,
        VoteKind::Commit => 3,
        VoteKind::Checkpoint => 4,
        VoteKind::ViewChange => 5,
        VoteKind::NewView => 6,
        VoteKind::AnchorVote => 7,
        VoteKind::Suspect => 8,
        VoteKind::Sealed => 9,
        VoteKind::Other(number) => 10 + number,
    }
}
