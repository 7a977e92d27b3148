//! A frame of our own: made, written, and pushed as soon as it is durable.

use crate::frame::Frame;
use crate::limits::FRAME_BYTES_MAX;
use crate::message::Message;
use crate::output::{Action, Need};
use crate::record::Record;
use crate::state::Sync;
use alloc::vec::Vec;
use bytes::Bytes;
use core::fmt;
use dwcp_base::{Mutant, Ticket};
use dwcp_crdt::{Bundle, OriginId};

/// A frame was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// It may be acknowledged, and proposed to the log, once this record is durable.
    pub ticket: Ticket,
    /// The last counter of its dots.
    pub last: u64,
    /// Its bytes.
    pub frame: Bytes,
}

/// Why this replica may not write. Nothing was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteRefused {
    /// Frames of ours came back that are not here: the disk lost them. They are being fetched; writing on would use
    /// their dots twice.
    OwnFramesMissing { through: u64 },
    /// Two frames of ours contradict each other: our dots were used twice. Return as the next incarnation.
    Frozen,
    /// It was decided that our frames end. Return as the next incarnation.
    Ended,
    /// A snapshot must be installed first.
    BelowFloor,
    /// What is kept for members that do not acknowledge fills its bound: see who withholds, and save a snapshot.
    LogFull { bytes: usize },
    /// The bundle is not the next one of ours: pass what `may_write` says to `Store::write`.
    NotNext { expected: u64 },
    /// The bundle's clock is not after our frame before.
    ClockBehind,
}

impl fmt::Display for WriteRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OwnFramesMissing { through } => {
                write!(
                    f,
                    "this node's own changes up to {through} are being fetched from its peers: try again"
                )
            }
            Self::Frozen => write!(f, "this node used its dots twice: return as a new incarnation"),
            Self::Ended => write!(f, "this incarnation was excluded: return as a new incarnation"),
            Self::BelowFloor => {
                write!(f, "this node fell below the collection floor and fetches a snapshot: try again")
            }
            Self::LogFull { bytes } => write!(
                f,
                "{bytes} bytes of frames wait for members that do not acknowledge: see `sync peers`, or exclude one"
            ),
            Self::NotNext { expected } => write!(f, "the next change of this node is {expected}"),
            Self::ClockBehind => write!(f, "the change is older than this node's last one"),
        }
    }
}

impl core::error::Error for WriteRefused {}

impl Sync {
    /// May this replica write now? Says how far it has written, which `Store::write` wants to know. A `write` of the
    /// bundle made then succeeds.
    ///
    /// # Errors
    /// See [`WriteRefused`].
    pub fn may_write(&mut self) -> Result<u64, WriteRefused> {
        let Some(mine) = self.chains.get(&self.me) else { return Err(WriteRefused::Ended) };
        if mine.cut.is_some() || mine.is_halted {
            return Err(WriteRefused::Ended);
        }
        if mine.proof.is_some() && !self.mutants.on(Mutant::SyncDotsReused) {
            return Err(WriteRefused::Frozen);
        }
        if let Some((_, frame)) = mine.waiting.last_key_value() {
            return Err(WriteRefused::OwnFramesMissing { through: frame.header().last });
        }
        if self.needs.contains_key(&Need::BelowFloor) {
            return Err(WriteRefused::BelowFloor);
        }
        let last = mine.last();
        if !self.make_room(FRAME_BYTES_MAX) {
            return Err(WriteRefused::LogFull { bytes: self.log_bytes() });
        }
        Ok(last)
    }

    /// Makes a frame of a bundle that the own store has just made and applied, and pushes it once it is durable.
    ///
    /// # Errors
    /// See [`WriteRefused`]. What the store did must not be acknowledged then: ask `may_write` first.
    pub fn write(&mut self, bundle: &Bundle) -> Result<Written, WriteRefused> {
        let written = self.write_for_log(bundle)?;
        self.push_frame(&written.frame, 0, &[], written.ticket);
        Ok(written)
    }

    /// The same without pushing it, for a frame that goes through the log. Exchanges may carry it as well; the second
    /// road is a no-op.
    ///
    /// # Errors
    /// See [`WriteRefused`].
    pub fn write_for_log(&mut self, bundle: &Bundle) -> Result<Written, WriteRefused> {
        let last = self.may_write()?;
        if bundle.origin() != self.me || bundle.first() != last + 1 {
            return Err(WriteRefused::NotNext { expected: last + 1 });
        }
        let mine = self.chains.get_mut(&self.me).expect("whoever may write has a chain");
        if mine.head().is_some_and(|(head, _)| bundle.hlc() <= head.header.hlc) {
            return Err(WriteRefused::ClockBehind);
        }
        let frame = Frame::seal(bundle, mine.hash(), self.cluster, &*self.crypto);
        let bytes = frame.bytes().clone();
        let ticket = self.out.persist(&Record::Frame(bytes.clone()));
        mine.link(frame, ticket);
        // The store made it, so it has it.
        mine.handed = bundle.last();
        if let Some(kept) = mine.kept.back_mut() {
            kept.bundle = None;
        }
        self.applied.insert(self.me, bundle.first(), bundle.last());
        Ok(Written { ticket, last: bundle.last(), frame: bytes })
    }

    /// Pushes an own frame that was written for the log, which did not answer in time. Nothing happens when it is no
    /// longer kept: then everybody has it.
    pub fn push(&mut self, last: u64) {
        let Some(mine) = self.chains.get(&self.me) else { return };
        if let Some(kept) = mine.kept.get(mine.place(last)) {
            let (bytes, ticket) = (kept.bytes.clone(), kept.ticket);
            self.push_frame(&bytes, 0, &[], ticket);
        }
    }

    /// Sends a frame to a bounded number of peers, none of `but`.
    pub(crate) fn push_frame(&mut self, frame: &Bytes, hops: u8, but: &[OriginId], after: Ticket) {
        let mut peers: Vec<OriginId> = self.peers.keys().filter(|id| !but.contains(id)).copied().collect();
        let fanout = if hops == 0 { self.limits.fanout } else { self.limits.fanout.div_ceil(2) };
        if peers.len() > fanout {
            self.chance.shuffle(&mut peers);
            peers.truncate(fanout);
        }
        let message = Message::Push { hops, frame: frame.clone() }.to_bytes();
        let after = if self.mutants.on(Mutant::SyncPushBeforeSync) { Ticket::ZERO } else { after };
        for to in peers {
            self.send(to, message.clone(), after);
        }
    }

    pub(crate) fn send(&mut self, to: OriginId, message: Bytes, after: Ticket) {
        if let Some(peer) = self.peers.get_mut(&to) {
            peer.figures.bytes_out += message.len() as u64;
        }
        self.out.push(Action::Send { to, message, after });
    }
}
