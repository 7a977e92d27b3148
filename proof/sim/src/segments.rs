//! What the world sees of segments: the words between their members, read off the wire, what proposals hold about them, and
//! what replicas report, noted for the judges and counted.

use crate::node::Node;
use crate::world::World;
use bytes::Bytes;
use check::history::{Closed, Entry, ExecutedCommand, ReplicaEvent, Vote, VoteKind, Word};
use dwcp_base::{Hasher, Incarnation, NetworkMode, ReplicaId, decode, encode};
use dwcp_log::entry::payload_digest;
use dwcp_log::{Proposal, RootEntry};
use dwcp_pbft::Message;
use dwcp_replica::raft::{Entry as RaftEntry, Kind, Message as RaftMessage, Payload, Said};
use dwcp_replica::{Control, Ending, Event, PeerMessage, Steering};
use dwcp_state::ClientFrame;
use dwcp_state::kv::EventKind;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// A member grants its vote in a term to one candidate.
pub const RAFT_VOTE: VoteKind = VoteKind::Other(1);

/// What one proposal holds about segments: epoch, index, chain.
#[derive(Clone, Debug, Default)]
pub struct Slot {
    anchors: Vec<(u64, u64, [u8; 32])>,
    closes: Vec<(u64, u64, [u8; 32])>,
}

/// What was counted already.
#[derive(Debug, Default)]
pub struct Seen {
    pub opened: BTreeSet<u64>,
    closed: BTreeSet<u64>,
    anchors: BTreeSet<(u64, u64)>,
    deferred: BTreeSet<u64>,
    orders: BTreeMap<u64, NetworkMode>,
    mode: Option<NetworkMode>,
    /// Where commands ran first; 0: in the root.
    ran_in: HashMap<(u128, u64), u64>,
    /// The youngest command of each session that the root ran, and epochs whose leadership moved while they were to end.
    youngest: HashMap<u128, u64>,
    moved: BTreeSet<u64>,
    /// How far each segment's entries have left a leader; where the first Marker among them stood; and the segment in which a
    /// leader proposed each command first.
    noted: BTreeMap<u64, u64>,
    markers: BTreeMap<u64, u64>,
    proposed: HashMap<(u128, u64), u64>,
    /// Epochs that were to end because a member was sealed alone.
    handed_over: BTreeSet<u64>,
    /// Replicas that said where an epoch ends, once each.
    said: BTreeSet<(usize, u64)>,
}

impl Seen {
    /// The segment that is open as far as the fastest replica knows.
    #[must_use]
    pub fn open_epoch(&self) -> Option<u64> {
        self.opened.last().copied().filter(|epoch| !self.closed.contains(epoch))
    }
}

/// The binding word that a message is, if it is one.
fn word(said: &Said) -> Option<Word> {
    match said {
        Said::Vote { .. } | Said::VoteReply { granted: true } => Some(Word::Vote),
        Said::Accepted { .. } => Some(Word::Ack),
        Said::Append { .. } | Said::Heartbeat { .. } | Said::Committed { .. } | Said::TimeoutNow => {
            Some(Word::Lead)
        }
        Said::HeartbeatReply { .. } => Some(Word::Confirm),
        Said::PreVote { .. }
        | Said::PreVoteReply { .. }
        | Said::VoteReply { granted: false }
        | Said::Refused(_)
        | Said::Stale => None,
    }
}

/// What a message binds its sender to once and for all, beside the root's votes.
pub fn promises(
    message: &PeerMessage,
    me: ReplicaId,
    incarnation: Incarnation,
    to: ReplicaId,
) -> Option<Vote> {
    let own = |speaker: dwcp_log::seal::Speaker| speaker.id == me && speaker.incarnation == incarnation;
    let digest = |bytes: &[u8]| {
        let mut hasher = Hasher::new("sim promise");
        hasher.update(bytes);
        hasher.finish().0
    };
    match message {
        PeerMessage::Sealed(signed) if own(signed.said.speaker) => Some(Vote {
            kind: VoteKind::Sealed,
            epoch: signed.said.epoch.0,
            view: 0,
            sequence: 0,
            digest: digest(&encode(&signed.said.last)),
        }),
        PeerMessage::AnchorVote(signed) if own(signed.said.speaker) => Some(Vote {
            kind: VoteKind::AnchorVote,
            epoch: signed.said.held.epoch.0,
            view: 0,
            sequence: signed.said.held.index.0,
            digest: digest(&encode(&signed.said.held)),
        }),
        PeerMessage::Segment { epoch, bytes } => {
            let message = RaftMessage::from_bytes(bytes).ok()?;
            let candidate = match message.said {
                Said::Vote { .. } => me,
                Said::VoteReply { granted: true } => to,
                _ => return None,
            };
            Some(Vote {
                kind: RAFT_VOTE,
                epoch: epoch.0,
                view: message.term.0,
                sequence: 0,
                digest: digest(&[candidate.0]),
            })
        }
        _ => None,
    }
}

/// Words of a segment for people.
#[must_use]
pub fn describe(epoch: dwcp_base::Epoch, bytes: &Bytes) -> String {
    match RaftMessage::from_bytes(bytes) {
        Ok(RaftMessage { term, said: Said::Append { prev, commit, entries }, .. }) => {
            let entries: Vec<String> = entries.iter().map(|e| format!("{:?}t{}", e.body, e.term)).collect();
            format!("e{epoch} t{term} Append prev {}t{} commit {commit} {entries:?}", prev.index, prev.term)
        }
        Ok(message) => format!("e{epoch} t{} {:?}", message.term, message.said),
        Err(_) => format!("e{epoch} garbage, {} B", bytes.len()),
    }
}

impl World {
    /// Remembers what a proposal on its way holds about segments, whoever sends it.
    pub fn read_slots(&mut self, bytes: &Bytes) {
        // The discriminants of a message of the root and, within, of a proposal.
        if !self.dials.switches() || bytes.first() != Some(&1) {
            return;
        }
        let Ok(PeerMessage::Pbft(Message::PrePrepare { payload, .. })) = decode::<PeerMessage>(bytes) else {
            return;
        };
        let digest = payload_digest(&payload);
        if self.slots.contains_key(&digest) {
            return;
        }
        let Ok(Some(proposal)) = Proposal::from_payload(&payload) else { return };
        let mut slot = Slot::default();
        for entry in &proposal.entries {
            match entry {
                RootEntry::Anchor(anchor) => {
                    let held = anchor.held;
                    slot.anchors.push((held.epoch.0, held.index.0, held.chain.0));
                }
                RootEntry::Switch(switch) => {
                    slot.closes.extend(
                        switch
                            .close
                            .iter()
                            .map(|close| (close.epoch.0, close.tail.index.0, close.tail.chain.0)),
                    );
                }
                _ => {}
            }
        }
        self.slots.insert(digest, slot);
    }

    fn commands_of(&self, commands: &[dwcp_replica::ExecutedCommand]) -> Vec<ExecutedCommand> {
        commands
            .iter()
            .map(|command| (u128::from_be_bytes(command.session.0), command))
            .filter(|(session, command)| !self.reads.contains(&(*session, command.sequence)))
            .map(|(session, command)| ExecutedCommand {
                id: check::CommandId { session, seq: command.sequence },
                result: command.result.0,
            })
            .collect()
    }

    /// A segment's words leave an honest replica.
    pub fn observe_words(&mut self, ix: usize, bytes: &Bytes, order: u64) {
        if bytes.first() != Some(&9) {
            return;
        }
        let Ok(PeerMessage::Segment { epoch, bytes }) = decode::<PeerMessage>(bytes) else { return };
        let Some(message) = RaftMessage::from_bytes(&bytes).ok() else { return };
        let Some(word) = word(&message.said) else { return };
        if let Said::Append { prev, entries, .. } = &message.said {
            self.note_appended(epoch.0, prev.index.0, entries);
        }
        let node = &mut self.nodes[ix];
        let late = node.sealing.contains(&epoch.0) || node.sealed.contains(&epoch.0);
        if node.spoken.insert((epoch.0, word)) || late {
            let journal = node.journal;
            let event = ReplicaEvent::Spoke { epoch: epoch.0, word, order };
            self.journals[journal].note(self.now_us, event);
        }
    }

    /// Entries behind this place leave a leader for the first time, or once more.
    fn note_appended(&mut self, epoch: u64, before: u64, entries: &[RaftEntry]) {
        let noted = self.segments.noted.entry(epoch).or_default();
        let seen = noted.saturating_sub(before).min(entries.len() as u64);
        *noted = (*noted).max(before + entries.len() as u64);
        for (index, entry) in (before + 1..).zip(entries).skip(usize::try_from(seen).expect("few")) {
            if entry.body.kind() == Kind::Marker {
                self.segments.markers.entry(epoch).or_insert(index);
            }
            let Payload::Batch { frames, .. } = entry.payload() else { continue };
            for frame in frames.into_iter().filter_map(|frame| ClientFrame::decode(frame).ok()) {
                let session = u128::from_be_bytes(frame.session().0);
                for seq in frame.sequences() {
                    self.segments.proposed.entry((session, seq)).or_insert(epoch);
                    self.note_proposed(epoch, check::CommandId { session, seq });
                }
            }
        }
    }

    /// A replica complains of an epoch's segment, in words or by itself.
    pub fn observe_complaint(&mut self, ix: usize, epoch: u64) {
        let node = &mut self.nodes[ix];
        if node.complained.insert(epoch) {
            let journal = node.journal;
            self.journals[journal].note(self.now_us, ReplicaEvent::Complained { epoch });
        }
    }

    /// An honest replica says where its log of an epoch ends, which binds it from then on, whatever its disk knows. Now and then
    /// it loses its disk upon it.
    pub fn observe_sealed_word(&mut self, ix: usize, epoch: u64) {
        let node = &mut self.nodes[ix];
        if node.sealed.insert(epoch) {
            let journal = node.journal;
            self.journals[journal].note(self.now_us, ReplicaEvent::Sealed { epoch });
        }
        if self.dials.wipe_sealed_pm > 0
            && self.segments.said.insert((ix, epoch))
            && !self.in_calm()
            && self.chances.link.per_mille(self.dials.wipe_sealed_pm)
        {
            let fault = crate::faults::Fault::WipeSealed { node: ix };
            self.schedule(1_000, crate::world::Event::Fault(fault));
        }
    }

    /// A replica is about to say where its log of an epoch ends: nothing that it decides on after this may bind it there. (What its
    /// node of the segment had decided on before the seal may still stand before this in the order of effects.)
    pub fn observe_sealing(&mut self, ix: usize, bytes: &Bytes, order: u64) {
        let node = &mut self.nodes[ix];
        let Ok(PeerMessage::Sealed(signed)) = decode::<PeerMessage>(bytes) else { return };
        let epoch = signed.said.epoch.0;
        if node.honest && signed.said.speaker.id == node.replica && node.sealing.insert(epoch) {
            let journal = node.journal;
            self.journals[journal].note(self.now_us, ReplicaEvent::Sealing { epoch, order });
        }
    }

    /// What must be known of segments before anything that follows leaves the replica, and what it has executed in memory: its
    /// answers may leave before its disk knows.
    pub fn observe_segment_at_once(&mut self, ix: usize, event: &Event, order: u64) {
        let at = self.now_us;
        let journal = self.nodes[ix].journal;
        match event {
            Event::SegmentOpened { epoch, sequence, base, .. } => {
                let event = ReplicaEvent::Opened { epoch: epoch.0, sequence: sequence.0, base: base.0 };
                self.journals[journal].note(at, event);
                self.coverage.segments_opened += u64::from(self.segments.opened.insert(epoch.0));
            }
            Event::Suspected { epoch, .. } => self.observe_complaint(ix, epoch.0),
            Event::SegmentExecuted { epoch, index, position, chain, commands } => {
                self.note_ran(commands, epoch.0);
                self.note_entry(ix, position.0, Some((epoch.0, index.0, chain.0)));
                let commands = self.commands_of(commands);
                let entry = Entry { position: position.0, chain: chain.0, commands };
                let event = ReplicaEvent::SegmentExecuted { epoch: epoch.0, index: index.0, entry };
                self.journals[journal].note(at, event);
                self.coverage.entries_executed += 1;
            }
            Event::DeferredExecuted { sequence, position, chain, commands } => {
                self.note_entry(ix, position.0, None);
                if !commands.is_empty() && self.segments.deferred.insert(sequence.0) {
                    self.coverage.deferred_executed += 1;
                }
                self.note_ran(commands, 0);
                let commands = self.commands_of(commands);
                let entry = Entry { position: position.0, chain: chain.0, commands };
                self.journals[journal]
                    .note(at, ReplicaEvent::DeferredExecuted { sequence: sequence.0, entry });
            }
            Event::SegmentClosed { epoch, .. } => {
                self.nodes[ix].sealing.insert(epoch.0);
                self.journals[journal].note(at, ReplicaEvent::Sealing { epoch: epoch.0, order });
                self.nodes[ix].borders.push(event.clone());
            }
            Event::Anchored { .. } => self.nodes[ix].borders.push(event.clone()),
            Event::Executed { sequence, position, payload_digest, commands, .. } => {
                self.note_entry(ix, position.0, None);
                self.note_covered(ix);
                self.note_decision(ix, Some(*sequence));
                self.note_ran(commands, 0);
                let slot = self.slots.get(payload_digest).cloned().unwrap_or_default();
                for border in std::mem::take(&mut self.nodes[ix].borders) {
                    self.note_border(ix, &border, &slot);
                }
            }
            Event::StateTransferFinished { sequence } => {
                self.note_covered(ix);
                self.note_decision(ix, None);
                // What it executes of a segment from there is noted at once, so this is, too.
                self.journals[journal].note(at, ReplicaEvent::Installs { epoch: 0, sequence: sequence.0 });
                let epoch = self.nodes[ix].core.as_ref().map_or(0, |core| core.control().fold.epoch().0);
                self.journals[journal].note(at, ReplicaEvent::Knows { epoch });
            }
            Event::ModeOrdered { sequence, mode } => {
                let before = self.segments.mode;
                if self.segments.orders.insert(sequence.0, *mode).is_none() {
                    self.coverage.modes_ordered += 1;
                    let open = self.segments.opened.len() > self.segments.closed.len();
                    let before = before.unwrap_or(self.genesis.mode);
                    self.coverage.hand_overs += u64::from(open && before == *mode);
                    self.segments.mode = Some(*mode);
                }
            }
            Event::RetryAnswered { session, first } => {
                let session = u128::from_be_bytes(session.0);
                let open = self.nodes[ix].core.as_ref().and_then(|core| core.control().fold.segment());
                let now_in = open.map_or(0, |segment| segment.epoch.0);
                if let Some(ran) = self.segments.ran_in.get(&(session, *first)) {
                    self.coverage.retries_across_epochs += u64::from(*ran != now_in);
                }
            }
            _ => {}
        }
    }

    fn note_ran(&mut self, commands: &[dwcp_replica::ExecutedCommand], epoch: u64) {
        if self.dials.switches() {
            for command in commands {
                let id = (u128::from_be_bytes(command.session.0), command.sequence);
                if self.segments.ran_in.contains_key(&id) {
                    continue;
                }
                self.segments.ran_in.insert(id, epoch);
                self.note_kept(check::CommandId { session: id.0, seq: id.1 }, epoch);
                let youngest = self.segments.youngest.entry(id.0).or_default();
                let is_late = command.sequence < *youngest;
                self.coverage.older_after_younger += u64::from(is_late);
                let proposed = self.segments.proposed.remove(&id);
                self.coverage.older_from_segment +=
                    u64::from(is_late && proposed.is_some_and(|of| of != epoch));
                if epoch == 0 {
                    *youngest = command.sequence.max(*youngest);
                }
            }
        }
    }

    /// What certificates of the root cover, as this replica knows now.
    pub fn note_covered(&mut self, ix: usize) {
        let node = &mut self.nodes[ix];
        let Some(core) = node.core.as_ref().filter(|_| node.honest) else { return };
        let fold = &core.control().fold;
        let anchored = fold.segment().and_then(|segment| segment.position(segment.anchor.index));
        let position = anchored.unwrap_or(fold.log().position).0;
        if position > node.covered {
            node.covered = position;
            let journal = node.journal;
            self.journals[journal].note(self.now_us, ReplicaEvent::Covered { position });
        }
    }

    /// What this replica has decided about protocols, if it stands right behind this sequence (None: wherever it stands).
    fn note_decision(&mut self, ix: usize, sequence: Option<dwcp_base::Sequence>) {
        // Alone, a replica executes before its disk knows: what a crash takes back was decided for nobody.
        if !self.dials.switches() || self.dials.n == 1 {
            return;
        }
        let node = &self.nodes[ix];
        let Some(core) = node.core.as_ref().filter(|_| node.honest) else { return };
        let Control { executed, fold, steering, .. } = core.control();
        if sequence.is_some_and(|sequence| sequence != *executed) {
            return;
        }
        let open = fold.segment().map(|segment| segment.epoch.0);
        if let Some(epoch) = open.filter(|_| steering.ending == Some(Ending::Sealed))
            && self.segments.handed_over.insert(epoch)
        {
            let sealed = |node: &Node| node.honest && node.sealing.contains(&epoch);
            self.coverage.sealed_by_lie += u64::from(!self.nodes.iter().any(sealed));
        }
        let Steering { mode, policy, ending, calm_until, failures, opened, failovers, last_order, .. } =
            steering;
        let open = fold.segment().map(|segment| (segment.epoch, segment.base.position, &segment.open));
        let decision = format!(
            "{mode} {policy:?}, order {last_order}, next leader {:?}, ending {ending:?}, calm until {}, \
             {failures} failures of {failovers}, opened {}, time {}, open {open:?}",
            steering.first_leader, calm_until.0, opened.0, steering.time.0
        );
        let event = ReplicaEvent::Decided { sequence: executed.0, decision };
        let journal = node.journal;
        self.journals[journal].note(self.now_us, event);
    }

    /// What a replica's watches would be told, from the first revision that it has not forgotten.
    pub fn note_changes(&mut self, ix: usize) {
        let node = &self.nodes[ix];
        let Some(core) = node.core.as_ref() else { return };
        let machine = core.state().machine().kv();
        let forgotten = machine.compacted().max(1);
        let changes = machine.events_since(forgotten + 1).map(|events| {
            events
                .map(|event| check::history::Change {
                    revision: event.revision,
                    sub: event.sub,
                    key: event.kv.key.to_vec(),
                    record: (event.kind == EventKind::Put).then(|| crate::translate::record(event.kv)),
                })
                .collect()
        });
        let journal = node.journal;
        match changes {
            Ok(changes) => {
                let event = ReplicaEvent::Changes { forgotten, revision: machine.revision(), changes };
                self.journals[journal].note(self.now_us, event);
            }
            Err(error) => {
                let text =
                    format!("{node:?} has no changes since {forgotten}, which it says it has: {error}");
                self.complain(text);
            }
        }
    }

    fn note_border(&mut self, ix: usize, border: &Event, slot: &Slot) {
        let at = self.now_us;
        let journal = self.nodes[ix].journal;
        match border {
            Event::Anchored { epoch, index, .. } => {
                let known = slot.anchors.iter().find(|(of, at, _)| (*of, *at) == (epoch.0, index.0));
                let chain = known.map(|(.., chain)| *chain);
                self.coverage.anchors += u64::from(self.segments.anchors.insert((epoch.0, index.0)));
                let event = ReplicaEvent::Anchored { epoch: epoch.0, index: index.0, chain };
                self.journals[journal].note(at, event);
            }
            Event::SegmentClosed { epoch, sequence, tail, forced, marker, cut, rolled_back, .. } => {
                let known = slot.closes.iter().find(|(of, at, _)| (*of, *at) == (epoch.0, tail.0));
                let closed = Closed {
                    epoch: epoch.0,
                    sequence: sequence.0,
                    tail: tail.0,
                    chain: known.map(|(.., chain)| *chain),
                    marker: *marker,
                    forced: *forced,
                    rolled_back: *rolled_back,
                };
                self.journals[journal].note(at, ReplicaEvent::Closed(closed));
                self.coverage.tails_cut += u64::from(*cut > 0);
                self.coverage.rolled_back += u64::from(*rolled_back > 0);
                if self.segments.closed.insert(epoch.0) {
                    self.coverage.closed_by_marker += u64::from(*marker);
                    self.coverage.markers_missed += u64::from(!marker && !forced);
                    self.coverage.closed_by_force += u64::from(*forced);
                }
            }
            _ => {}
        }
    }

    /// The same of what is durable.
    pub fn observe_segment_event(&mut self, ix: usize, event: &Event) {
        match event {
            Event::Suspected { .. } => self.coverage.suspicions += 1,
            Event::LeaderChanged { epoch, leader: Some(_), .. } => {
                self.coverage.leaders_seen += 1;
                let control = self.nodes[ix].core.as_ref().map(|core| core.control());
                let ends = control.is_some_and(|control| {
                    let open = control.fold.segment().map(|segment| segment.epoch);
                    open == Some(*epoch) && control.steering.ending.is_some()
                });
                if ends && self.segments.moved.insert(epoch.0) {
                    let node = &self.nodes[ix];
                    let status = node.core.as_ref().map(|core| core.status(node.now(self.now_us)));
                    let committed = status.and_then(|status| Some(status.segment?.committed.0));
                    let marker = self.segments.markers.get(&epoch.0);
                    let in_flight =
                        marker.is_some_and(|marker| committed.is_some_and(|index| index < *marker));
                    self.coverage.led_anew_while_ending += 1;
                    self.coverage.led_anew_over_marker += u64::from(in_flight);
                }
            }
            Event::AnchorDiverged { epoch, index } => {
                self.coverage.anchors_diverged += 1;
                // Where nobody lies and no disk does, all compute the same.
                if self.dials.liars + self.dials.fsync_liars == 0 {
                    let text =
                        format!("{:?} diverged from epoch {epoch}'s Anchor at {index}", self.nodes[ix]);
                    self.divergences.push(text);
                }
            }
            _ => {}
        }
    }

    /// A replica that slept is awake.
    pub fn wakes_up(&mut self, ix: usize) {
        let latest = self.segments.opened.last().copied().unwrap_or(0);
        if self.nodes[ix].honest && self.nodes[ix].slept_at_epoch + 3 <= latest {
            self.coverage.slept_over_epochs += 1;
            self.nodes[ix].slept_at_epoch = latest;
        }
    }
}
