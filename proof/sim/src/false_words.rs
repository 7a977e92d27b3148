//! What liars say of segments: where their logs end, what they hold, whom they complain of, what they hold at Ticks. In `puppet`
//! is what they say in the root, and when they speak at all.
//!
//! A word of another replica is said again as it was; one of its own is signed by the liar's own key.

use crate::puppet::{Lie, Puppet, Trick};
use bytes::Bytes;
use dwcp_base::{Epoch, Hash, Index, Position, ReplicaId, Term, encode};
use dwcp_log::seal::{Sealed, Signed, Speaker, Suspect};
use dwcp_log::segment::AnchorPoint;
use dwcp_log::{CloseProof, Place, Proposal, RootEntry};
use dwcp_replica::raft::{Message as RaftMessage, Said};
use dwcp_replica::{Control, PeerMessage};

const EPOCHS_MAX: usize = 400;

/// The open segment, as a liar's core knows it.
#[derive(Clone, Copy, Debug)]
pub struct OpenSegment {
    pub(crate) epoch: Epoch,
    pub(crate) speaker: Speaker,
    pub(crate) anchor: AnchorPoint,
    /// Of the last Anchor.
    pub(crate) position: Position,
    /// Its end was ordered.
    pub(crate) ends: bool,
    /// Equal words that make an Anchor.
    pub(crate) quorum: usize,
}

impl OpenSegment {
    #[must_use]
    pub fn seen_by(control: &Control, me: ReplicaId) -> Option<Self> {
        let segment = control.fold.segment()?;
        let voters = control.steering.voters.as_ref()?;
        let member = voters.member(me)?;
        let speaker = Speaker { id: me, incarnation: member.incarnation, configuration: voters.id };
        Some(Self {
            epoch: segment.epoch,
            speaker,
            anchor: segment.anchor,
            position: segment.position(segment.anchor.index)?,
            ends: control.steering.ending.is_some(),
            quorum: control.steering.policy.quorum.q(),
        })
    }
}

fn wire(message: &PeerMessage) -> Bytes {
    Bytes::from(encode(message))
}

impl Puppet {
    /// Keeps some of what was said in segments.
    pub(crate) fn remember_epoch(&mut self, bytes: &Bytes) {
        if self.has(Trick::OldEpochs) && matches!(bytes.first(), Some(9..=13)) && self.chance.per_mille(100) {
            if self.old_epochs.len() >= EPOCHS_MAX {
                let at = usize::try_from(self.chance.below(EPOCHS_MAX as u64)).expect("small");
                self.old_epochs.remove(at);
            }
            self.old_epochs.push_back(bytes.clone());
        }
    }

    /// What leaves for `to` instead of a message that is not the root's.
    pub(crate) fn speak_in_segment(
        &mut self,
        to: ReplicaId,
        bytes: Bytes,
        message: PeerMessage,
        out: &mut Vec<Lie>,
    ) {
        self.remember_epoch(&bytes);
        if self.has(Trick::AnchorHeldBack)
            && let Some(told) = self.made_up(&message)
        {
            self.plays(Trick::AnchorHeldBack);
            out.push(Lie { to, bytes: wire(&told), extra_us: 0 });
            return;
        }
        let told = match message {
            PeerMessage::Sealed(signed)
                if self.has(Trick::FalseSealed) && signed.said.speaker.id == self.me =>
            {
                let Sealed { epoch, speaker, last } = signed.said;
                Some(PeerMessage::Sealed(self.false_seal(epoch, speaker, last)))
            }
            PeerMessage::Entries { epoch, first, mut entries } if self.has(Trick::FalseEntries) => {
                self.plays(Trick::FalseEntries);
                match self.chance.below(3) {
                    0 => return,
                    1 => entries.clear(),
                    _ => {
                        if let Some(last) = entries.last_mut() {
                            last.term = Term(last.term.0 + 1);
                        }
                    }
                }
                Some(PeerMessage::Entries { epoch, first, entries })
            }
            PeerMessage::AnchorVote(signed)
                if self.has(Trick::FalseAnchors) && signed.said.speaker.id == self.me =>
            {
                let mut said = signed.said;
                match self.chance.below(3) {
                    0 => said.held.state = Hash::of(&said.held.state.0),
                    1 => said.held.chain = Hash::of(&said.held.chain.0),
                    _ => said.held.index = Index(said.held.index.0 + self.chance.between(1, 40)),
                }
                self.plays(Trick::FalseAnchors);
                Some(PeerMessage::AnchorVote(Signed::new(said, self.cluster, &*self.crypto)))
            }
            PeerMessage::Segment { epoch, bytes } if self.has(Trick::FalseRaft) => {
                self.false_raft(&bytes).map(|bytes| PeerMessage::Segment { epoch, bytes })
            }
            _ => None,
        };
        out.push(Lie { to, bytes: told.map_or(bytes, |told| wire(&told)), extra_us: 0 });
    }

    fn lies_about_ends(&self) -> bool {
        self.has(Trick::FalseSealed) || self.has(Trick::LowSeal)
    }

    /// It says it holds what it was just shown and more, and grants every vote.
    fn false_raft(&mut self, bytes: &Bytes) -> Option<Bytes> {
        let mut message = RaftMessage::from_bytes(bytes).ok()?;
        match &mut message.said {
            Said::Accepted { matched } if self.chance.per_mille(300) => {
                *matched = Index(matched.0 + self.chance.between(1, 20));
            }
            Said::VoteReply { granted } | Said::PreVoteReply { granted } => *granted = true,
            Said::Vote { last, .. } | Said::PreVote { last } => last.term = Term(message.term.0),
            _ => return None,
        }
        self.plays(Trick::FalseRaft);
        Some(message.to_bytes())
    }

    /// The log it claims in an epoch: the same to all, or they would only have to compare.
    fn false_seal(&mut self, epoch: Epoch, speaker: Speaker, last: Place) -> Signed<Sealed> {
        self.plays(if self.has(Trick::LowSeal) { Trick::LowSeal } else { Trick::FalseSealed });
        if let Some(said) = self.false_seals.get(&epoch) {
            return *said;
        }
        let chain = Hash::of(&last.chain.0);
        let last = if self.has(Trick::LowSeal) {
            // Below an Anchor with a high term; or the end of its log, with another log before it.
            match self.chance.per_mille(500) {
                true => Place { index: Index(last.index.0 / 2 + 1), term: Term(last.term.0 + 2), chain },
                false => Place { chain, ..last },
            }
        } else {
            Place {
                index: Index(last.index.0 + self.chance.between(100, 200)),
                term: Term(last.term.0 + self.chance.between(0, 3)),
                chain,
            }
        };
        let said = Signed::new(Sealed { epoch, speaker, last }, self.cluster, &*self.crypto);
        self.false_seals.insert(epoch, said);
        while self.false_seals.len() > EPOCHS_MAX {
            self.false_seals.pop_first();
        }
        said
    }

    /// A proposal of its own with another end, or another Anchor, of the segment.
    pub(crate) fn false_border(&mut self, payload: &Bytes) -> Option<(Trick, Bytes)> {
        let mut proposal: Proposal = Proposal::from_payload(payload).ok()??;
        let mut lied = None;
        let mut before = None;
        for (place, entry) in proposal.entries.iter_mut().enumerate() {
            match entry {
                RootEntry::Switch(switch) if self.has(Trick::AnchorHeldBack) => {
                    let Some(close) = &mut switch.close else { continue };
                    let Some(anchor) = self.close_by_made_up(close) else { continue };
                    before = anchor.map(|anchor| (place, anchor));
                    lied = Some(Trick::AnchorHeldBack);
                }
                RootEntry::Anchor(anchor) if self.has(Trick::FalseAnchors) && self.chance.per_mille(500) => {
                    if self.chance.per_mille(500) {
                        anchor.held.chain = Hash::of(&anchor.held.chain.0);
                    } else {
                        anchor.held.state = Hash::of(&anchor.held.state.0);
                    }
                    lied = Some(Trick::FalseAnchors);
                }
                RootEntry::Switch(switch) if self.has(Trick::FalseSealed) => {
                    let Some(close) = &mut switch.close else { continue };
                    let CloseProof::Reports(reports) = &mut close.proof else { continue };
                    let Some(own) = reports.iter_mut().find(|report| report.said.speaker.id == self.me)
                    else {
                        continue;
                    };
                    // Its own report becomes the best, and the end.
                    let mut last = close.tail;
                    last.term = Term(last.term.0 + 1);
                    *own = self.false_seal(close.epoch, own.said.speaker, last);
                    close.tail = own.said.last;
                    lied = Some(Trick::FalseSealed);
                }
                _ => {}
            }
        }
        if let Some((place, anchor)) = before {
            proposal.entries.insert(place, anchor);
        }
        lied.map(|trick| (trick, proposal.to_payload()))
    }

    /// What the puppet says of the open segment of its own accord.
    pub fn invent_in_segment(&mut self, open: OpenSegment, out: &mut Vec<Lie>) {
        let OpenSegment { epoch, speaker, anchor, .. } = open;
        let peers: Vec<ReplicaId> = (0..self.n).map(ReplicaId).filter(|peer| *peer != self.me).collect();
        let mut said = Vec::new();
        if self.has(Trick::Storm) {
            self.plays(Trick::Storm);
            self.storms.insert(epoch);
            let suspect = Suspect { epoch, speaker, anchor: anchor.number + self.chance.below(2) };
            said.push(PeerMessage::Suspect(Signed::new(suspect, self.cluster, &*self.crypto)));
        }
        if self.lies_about_ends() && self.chance.per_mille(200) {
            let last = Place { index: anchor.index, term: anchor.term, chain: anchor.chain };
            said.push(PeerMessage::Sealed(self.false_seal(epoch, speaker, last)));
        }
        if self.has(Trick::SegmentGarbage) {
            self.plays(Trick::SegmentGarbage);
            let mut garbage = vec![0; usize::try_from(self.chance.below(200)).expect("small")];
            garbage.iter_mut().for_each(|byte| *byte = u8::try_from(self.chance.below(256)).expect("a byte"));
            let of = Epoch((epoch.0 + self.chance.below(4)).saturating_sub(2));
            said.push(PeerMessage::Segment { epoch: of, bytes: Bytes::from(garbage) });
            // Sound, but from nowhere.
            let place =
                Place { index: Index(1 << self.chance.below(40)), term: Term(1), chain: Hash::of(b"") };
            let words = match self.chance.below(3) {
                0 => Said::Append { prev: place, commit: place.index, entries: vec![] },
                1 => Said::Committed { through: place.index },
                _ => Said::Accepted { matched: place.index },
            };
            let message = RaftMessage { epoch: of, term: Term(self.chance.between(1, 4)), said: words };
            said.push(PeerMessage::Segment { epoch: of, bytes: message.to_bytes() });
        }
        for message in said {
            let bytes = wire(&message);
            out.extend(peers.iter().map(|to| Lie { to: *to, bytes: bytes.clone(), extra_us: 0 }));
        }
        if self.has(Trick::OldEpochs) {
            for _ in 0..6 {
                let memory: Vec<Bytes> = self.old_epochs.iter().cloned().collect();
                let (Some(bytes), Some(to)) = (self.chance.pick(&memory), self.chance.pick(&peers)) else {
                    return;
                };
                let renamed = match dwcp_base::decode::<PeerMessage>(bytes) {
                    Ok(PeerMessage::Segment { bytes, .. }) if self.chance.per_mille(500) => {
                        Some(wire(&PeerMessage::Segment { epoch, bytes }))
                    }
                    _ => None,
                };
                out.push(Lie { to: *to, bytes: renamed.unwrap_or_else(|| bytes.clone()), extra_us: 0 });
                self.plays(Trick::OldEpochs);
            }
        }
    }
}
