//! A liar at the border of a segment, as the root's primary and a member of it: it keeps Anchors back, says that it is
//! sealed with a log that it makes up and that passes the last Anchor ordered, shows that log to whoever asks, and orders
//! the Anchor it kept right before a Close by that log. Whoever prepares the two has executed only the Anchor before.
//!
//! `puppet` says when this liar hears and speaks; `false_words` has the other lies about segments.

use crate::false_words::OpenSegment;
use crate::puppet::{Lie, Puppet, Trick};
use bytes::Bytes;
use dwcp_base::{Epoch, Index, LogTime, ReplicaId, Term, decode, encode};
use dwcp_log::anchor::{AnchorVote, Held};
use dwcp_log::seal::{Sealed, Signed};
use dwcp_log::{Anchor, Close, CloseProof, Place, RootEntry, VirtualLog};
use dwcp_replica::PeerMessage;
use dwcp_replica::raft::{Body, Entry, Kind, Message as RaftMessage, Payload, Said};
use std::collections::BTreeMap;

/// Ticks of which the others' words are kept, and SEALEDs: the newest.
const TICKS_MAX: usize = 64;
const SEALS_MAX: usize = 64;
/// How far the term of a made-up log is above that of the Anchor kept back: above any that an honest log may end in.
const TERMS_AHEAD: u64 = 1_000;

/// What such a liar keeps to itself.
#[derive(Debug, Default)]
pub(crate) struct HeldBack {
    ticks: BTreeMap<(Epoch, Index), Tick>,
    /// What others say of where their logs end.
    seals: BTreeMap<(Epoch, ReplicaId), Signed<Sealed>>,
    /// Of the latest epoch in which it found an Anchor to keep back.
    log: Option<MadeUp>,
}

#[derive(Debug)]
struct Tick {
    /// Its core is not to hear of it before others say it again: the root would replace a primary that never does.
    kept: bool,
    words: BTreeMap<ReplicaId, Signed<AnchorVote>>,
}

#[derive(Debug)]
struct MadeUp {
    /// The number and the index of the Anchor that the log passes.
    behind: (u64, Index),
    entries: Vec<Entry>,
    said: Signed<Sealed>,
    anchor: Anchor,
    /// Reports that end the segment where nothing else is said.
    quorum: usize,
    /// The reports it closed by first: the same to all.
    reports: Option<Vec<Signed<Sealed>>>,
}

impl HeldBack {
    fn log_of(&self, epoch: Epoch) -> Option<&MadeUp> {
        self.log.as_ref().filter(|log| log.said.said.epoch == epoch)
    }

    /// Takes a word about a Tick; whether it keeps it to itself. That befalls every other Tick.
    fn take(&mut self, word: Signed<AnchorVote>) -> bool {
        let Held { epoch, index, .. } = word.said.held;
        let kept = self.ticks.last_key_value().is_none_or(|(_, tick)| !tick.kept);
        let tick = self.ticks.entry((epoch, index)).or_insert(Tick { kept, words: BTreeMap::new() });
        let again = tick.words.insert(word.said.speaker.id, word).is_some();
        let kept = tick.kept && !again;
        while self.ticks.len() > TICKS_MAX {
            self.ticks.pop_first();
        }
        kept || self.log_of(epoch).is_some()
    }

    fn note_seal(&mut self, report: Signed<Sealed>) {
        self.seals.insert((report.said.epoch, report.said.speaker.id), report);
        while self.seals.len() > SEALS_MAX {
            self.seals.pop_first();
        }
    }

    /// The latest Anchor past the one that was ordered last that the words kept and one of its own amount to.
    fn anchor(&self, open: &OpenSegment, vouch: impl Fn(AnchorVote) -> Signed<AnchorVote>) -> Option<Anchor> {
        let behind = self.ticks.range((open.epoch, open.anchor.index.next())..=(open.epoch, Index(u64::MAX)));
        behind.rev().find_map(|(_, Tick { words, .. })| {
            words.values().find_map(|word| {
                let held = word.said.held;
                let equal = words.values().filter(|word| word.said.held == held).copied();
                let own = vouch(AnchorVote { speaker: open.speaker, ..word.said });
                let mut votes: Vec<_> = equal.chain([own]).collect();
                votes.sort_by_key(|word| word.said.speaker.id);
                (votes.len() >= open.quorum).then_some(Anchor { held, votes })
            })
        })
    }
}

/// Whether these bytes of a segment's leader hold its Marker.
fn holds_marker(bytes: &Bytes) -> bool {
    let message = RaftMessage::from_bytes(bytes);
    let Ok(RaftMessage { said: Said::Append { entries, .. }, .. }) = message else { return false };
    entries.iter().any(|entry| entry.body.kind() == Kind::Marker)
}

impl Puppet {
    /// Whether its core is not to hear this: the others' first words about every other Tick, any once it has said that it
    /// is sealed, and the Marker, by which the segment would end without anybody's report.
    pub(crate) fn holds_back(&mut self, bytes: &Bytes) -> bool {
        if !self.has(Trick::AnchorHeldBack) || !matches!(bytes.first(), Some(9 | 12 | 13)) {
            return false;
        }
        let held = match decode::<PeerMessage>(bytes) {
            Ok(PeerMessage::AnchorVote(word)) => self.held_back.take(word),
            Ok(PeerMessage::Segment { bytes, .. }) => holds_marker(&bytes),
            Ok(PeerMessage::Sealed(report)) => {
                self.held_back.note_seal(report);
                false
            }
            _ => false,
        };
        if held {
            self.plays(Trick::AnchorHeldBack);
        }
        held
    }

    /// The open segment ends: it makes up its log of it, if there is an Anchor to keep back, and says so to all. The log
    /// ends right past that Anchor, or below it: then only the places tell that it does not hold it.
    pub(crate) fn make_up_log(&mut self, open: &OpenSegment, out: &mut Vec<Lie>) {
        if self.held_back.log_of(open.epoch).is_some() {
            return;
        }
        let vouch = |word| Signed::new(word, self.cluster, &*self.crypto);
        let Some(anchor) = self.held_back.anchor(open, vouch) else { return };
        let OpenSegment { epoch, speaker, anchor: behind, position, .. } = *open;
        let term = Term(anchor.held.term.0 + TERMS_AHEAD);
        let body = Body::new(&Payload::Tick { time: LogTime(1) }).expect("a Tick is short");
        let past = anchor.held.index.next();
        let index = if self.chance.per_mille(500) { past } else { behind.index.next() };
        let count = usize::try_from(index.0 - behind.index.0).expect("a segment is short");
        let entries = vec![Entry { term, body }; count];
        let mut log = VirtualLog { position, chain: behind.chain };
        for entry in &entries {
            log.append(&entry.digest());
        }
        let last = Place { index, term, chain: log.chain };
        let said = Signed::new(Sealed { epoch, speaker, last }, self.cluster, &*self.crypto);
        let behind = (behind.number, behind.index);
        let quorum = open.quorum;
        self.held_back.log = Some(MadeUp { behind, entries, said, anchor, quorum, reports: None });
        let bytes = Bytes::from(encode(&PeerMessage::Sealed(said)));
        let peers = (0..self.n).map(ReplicaId).filter(|peer| *peer != self.me);
        out.extend(peers.map(|to| Lie { to, bytes: bytes.clone(), extra_us: 0 }));
    }

    /// What it says in place of its own SEALED, and what it shows of its log.
    pub(crate) fn made_up(&self, message: &PeerMessage) -> Option<PeerMessage> {
        match message {
            PeerMessage::Sealed(signed) if signed.said.speaker.id == self.me => {
                self.held_back.log_of(signed.said.epoch).map(|log| PeerMessage::Sealed(log.said))
            }
            PeerMessage::Entries { epoch, first, .. } => {
                let log = self.held_back.log_of(*epoch)?;
                let skip = usize::try_from(first.0.checked_sub(log.behind.1.0 + 1)?).ok()?;
                let entries = log.entries.iter().skip(skip).cloned().collect();
                Some(PeerMessage::Entries { epoch: *epoch, first: *first, entries })
            }
            _ => None,
        }
    }

    /// Makes its core's Close one by the log it made up. What is to be ordered before it: the Anchor kept back, as long as it
    /// has not been ordered. None where too few others have said where their logs end.
    pub(crate) fn close_by_made_up(&mut self, close: &mut Close) -> Option<Option<RootEntry>> {
        let HeldBack { seals, log, .. } = &mut self.held_back;
        let log = log.as_mut().filter(|log| log.said.said.epoch == close.epoch)?;
        let reports = log.reports.take().unwrap_or_else(|| {
            let others = seals.range((close.epoch, ReplicaId(0))..=(close.epoch, ReplicaId(u8::MAX)));
            let mut reports: Vec<_> = others.map(|(_, report)| *report).chain([log.said]).collect();
            reports.sort_by_key(|report| report.said.speaker.id);
            reports
        });
        let needed = match &close.proof {
            CloseProof::Reports(honest) => honest.len(),
            CloseProof::Marker => log.quorum,
        };
        if reports.len() < needed {
            return None;
        }
        close.tail = log.said.said.last;
        close.proof = CloseProof::Reports(reports.clone());
        log.reports = Some(reports);
        let first = close.anchor == log.behind.0;
        Some(first.then(|| RootEntry::Anchor(Box::new(log.anchor.clone()))))
    }
}
