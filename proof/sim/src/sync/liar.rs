//! Nodes that lie. A puppet runs the real core and changes what it says; it has its own key and no other.

use bytes::Bytes;
use dwcp_base::{Chance, ClusterId, Crypto, Hash};
use dwcp_crdt::{Op, Origin, OriginId, Plain, Store, Write};
use dwcp_sync::limits::FRAME_BYTES_MAX;
use dwcp_sync::message::{Heads, ShortHash};
use dwcp_sync::{Frame, Message};
use std::collections::VecDeque;
use std::sync::Arc;

/// Messages remembered for another time.
const REMEMBERED_MAX: usize = 40;

/// A way to lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trick {
    /// Signs two histories and shows each to some.
    Equivocate,
    /// Speaks in another's name.
    Forge,
    /// Says that it has not applied what it has.
    WithholdAcks,
    /// Says that it has what is not, or no longer has what it keeps.
    FalseHeads,
    /// Says again what was said before, by whomever.
    Replay,
    /// Sends rubbish, and more than is allowed.
    Oversize,
    /// Its clock is in the future.
    FutureClock,
    /// Answers without the frames.
    WithholdFrames,
    /// Says that it wrote more than it ever did.
    FalseWritten,
    /// Says in audits that keys differ, and of such keys that there are none.
    FalseCopies,
}

impl Trick {
    pub const ALL: [Self; 10] = [
        Self::Equivocate,
        Self::Forge,
        Self::WithholdAcks,
        Self::FalseHeads,
        Self::Replay,
        Self::Oversize,
        Self::FutureClock,
        Self::WithholdFrames,
        Self::FalseWritten,
        Self::FalseCopies,
    ];

    #[must_use]
    pub const fn bit(self) -> u64 {
        1 << self as u64
    }
}

#[derive(Debug)]
pub struct Puppet {
    tricks: u64,
    chance: Chance,
    remembered: VecDeque<Bytes>,
    /// The second history, once there is one: its store, and the frame it goes on from.
    pub other: Option<(Store, Hash)>,
    pub lies_told: u64,
}

impl Puppet {
    #[must_use]
    pub fn new(tricks: u64, mut chance: Chance) -> Self {
        let tricks = if tricks == 0 {
            let mut drawn = Trick::ALL.iter().map(|t| t.bit()).filter(|_| chance.per_mille(350)).sum::<u64>();
            if drawn == 0 {
                drawn = Trick::Equivocate.bit();
            }
            drawn
        } else {
            tricks
        };
        Self { tricks, chance, remembered: VecDeque::new(), other: None, lies_told: 0 }
    }

    #[must_use]
    pub fn plays(&self, trick: Trick) -> bool {
        self.tricks & trick.bit() != 0
    }

    /// How far its clock is ahead of what it should be.
    pub fn clock_ahead_ms(&mut self) -> u64 {
        if !self.plays(Trick::FutureClock) || !self.chance.per_mille(300) {
            return 0;
        }
        self.lies_told += 1;
        // Mostly soon over, so that what it wrote is taken later; once in a while never.
        if self.chance.per_mille(50) { 3_600_000 } else { self.chance.between(600, 4_000) }
    }

    pub fn hears(&mut self, message: &Bytes) {
        if self.plays(Trick::Replay) && self.chance.per_mille(200) {
            if self.remembered.len() == REMEMBERED_MAX {
                self.remembered.pop_front();
            }
            self.remembered.push_back(message.clone());
        }
    }

    /// What it sends in place of what the core would have it send.
    pub fn says(&mut self, message: Bytes) -> Option<Bytes> {
        let changes = self.plays(Trick::WithholdAcks)
            || self.plays(Trick::FalseHeads)
            || self.plays(Trick::WithholdFrames)
            || self.plays(Trick::FalseWritten)
            || self.plays(Trick::FalseCopies);
        if !changes {
            return Some(message);
        }
        let Ok(mut said) = Message::read(&message) else { return Some(message) };
        let before = said.clone();
        match &mut said {
            Message::Ask { heads, .. } => self.twist(heads),
            Message::Answer { heads, load, .. } => {
                self.twist(heads);
                if self.plays(Trick::WithholdFrames) && self.chance.per_mille(700) {
                    load.frames.clear();
                }
            }
            Message::Rest { .. } | Message::Push { .. }
                if self.plays(Trick::WithholdFrames) && self.chance.per_mille(700) =>
            {
                self.lies_told += 1;
                return None;
            }
            Message::Audit { work } if self.plays(Trick::FalseCopies) => {
                work.ranges.iter_mut().for_each(|range| range.print.0[0] ^= 1);
                let hashes = work.leaves.iter_mut().flat_map(|leaf| &mut leaf.keys);
                hashes.for_each(|(_, hash)| hash.0[0] ^= 1);
            }
            Message::Copied { copies, .. } if self.plays(Trick::FalseCopies) => {
                copies.iter_mut().for_each(|(_, copy)| *copy = None);
            }
            Message::Rest { .. }
            | Message::Push { .. }
            | Message::Contradiction { .. }
            | Message::Audit { .. }
            | Message::Copy { .. }
            | Message::Copied { .. } => {}
        }
        if said == before {
            return Some(message);
        }
        self.lies_told += 1;
        Some(said.to_bytes())
    }

    fn twist(&mut self, heads: &mut Heads) {
        if self.plays(Trick::WithholdAcks) {
            heads.heads.iter_mut().for_each(|head| head.acked = 0);
        }
        if self.plays(Trick::FalseWritten) {
            heads.written += self.chance.between(1, 1 << 40);
        }
        if self.plays(Trick::FalseHeads) {
            claim(heads, &mut self.chance);
        }
    }

    /// Something nobody asked for, now and then.
    pub fn mischief(
        &mut self,
        cluster: ClusterId,
        crypto: &Arc<dyn Crypto>,
        victim: Option<&Victim>,
    ) -> Option<Bytes> {
        let mut choices: Vec<Trick> = [Trick::Replay, Trick::Oversize, Trick::Forge].to_vec();
        choices.retain(|trick| self.plays(*trick));
        let trick = *self.chance.pick(&choices)?;
        let message = match trick {
            Trick::Replay => {
                let index = self.chance.below(self.remembered.len().max(1) as u64) as usize;
                self.remembered.get(index)?.clone()
            }
            Trick::Oversize => match self.chance.below(3) {
                0 => {
                    let bytes: Vec<u8> =
                        (0..self.chance.between(1, 300)).map(|_| self.chance.below(256) as u8).collect();
                    Bytes::from(bytes)
                }
                1 => {
                    let frame = Bytes::from(vec![1; FRAME_BYTES_MAX + 1]);
                    Message::Push { hops: 0, frame }.to_bytes()
                }
                _ => {
                    // A good message, cut off.
                    let heads = Heads { me: Origin::new(0, 0), written: 1, floor: 0, heads: Vec::new() };
                    let whole = Message::Ask { round: 1, heads }.to_bytes();
                    whole.slice(..whole.len() - 1)
                }
            },
            Trick::Forge => victim?.forged(cluster, crypto),
            _ => return None,
        };
        self.lies_told += 1;
        Some(message)
    }

    pub fn pick_side(&mut self) -> bool {
        self.chance.per_mille(500)
    }
}

/// Claims of its own frames and of others' what is not so; false where nothing came of it.
pub(crate) fn claim(heads: &mut Heads, chance: &mut Chance) -> bool {
    let before = heads.clone();
    for head in &mut heads.heads {
        match chance.below(8) {
            0 => {
                head.last += chance.between(1, 5);
                head.hash = ShortHash([7; 16]);
                head.stretches.clear();
            }
            1 => head.base = head.last,
            2 => {
                head.last = head.base;
                head.stretches.clear();
            }
            _ => {}
        }
    }
    *heads != before
}

/// Somebody in whose name a liar would like to speak: his store as far as the liar knows it, and his last frame.
#[derive(Debug)]
pub struct Victim {
    pub store: Store,
    pub hash: Hash,
    pub now_ms: u64,
}

impl Victim {
    fn forged(&self, cluster: ClusterId, crypto: &Arc<dyn Crypto>) -> Bytes {
        let mut store = self.store.clone();
        let write = Write::new("reg/a", Op::Put(Plain::bytes("forged").expect("short")));
        let bundle = store.write(&[write], 0, self.now_ms).ok().flatten();
        let Some(bundle) = bundle else { return Bytes::from_static(b"nothing") };
        // Signed with the liar's own key.
        let frame = Frame::seal(&bundle, self.hash, cluster, &**crypto);
        Message::Push { hops: 8, frame: frame.bytes().clone() }.to_bytes()
    }
}

/// To whom a frame of one history is shown.
#[must_use]
pub fn pushed(frame: &Frame) -> Bytes {
    Message::Push { hops: 8, frame: frame.bytes().clone() }.to_bytes()
}

/// The node behind an origin.
#[must_use]
pub fn place(id: OriginId) -> usize {
    id.0 as usize
}
