//! What liars say in state sync: two histories under their own name, frames under others', of what they hold and have
//! applied, and of where origins end. `convergent` has the honest side of it and what is written down for the judge.
//!
//! A second history is the liar's own affair: its core knows nothing of either until its peers tell it.

use crate::convergent::pieces;
use crate::dials::Dials;
use crate::puppet::{Lie, Puppet, Trick, altered};
use crate::sync::liar::claim;
use crate::sync::translate;
use crate::sync::workload::{FORKED, resolvers};
use crate::world::World;
use bytes::Bytes;
use check::sync::Note;
use check::sync::judge::Outcome;
use dwcp_base::{Chance, Hash, ReplicaId, Sequence, Signature, View, decode, encode};
use dwcp_crdt::{Op, Origin, Plain, Restore, Store, Write};
use dwcp_log::consent::{Ground, consent, suffices};
use dwcp_log::{Agreed, Matter, RootEntry, Stance};
use dwcp_replica::{Control, Convergent, PeerMessage};
use dwcp_sync::{Cut, End, Frame, Message};
use std::collections::BTreeMap;
use std::rc::Rc;

/// So often it shows its histories.
const SHOWN: u64 = 6;
/// So often it asks about the same end.
const ASKED: u64 = 3;

/// What a liar keeps of what it says in state sync.
#[derive(Debug)]
pub(crate) struct FalseFrames {
    chance: Chance,
    /// When it signs its second history.
    fork_at_us: u64,
    /// Its histories part at their first frame and have no other. Of two liars' branches somebody's must be held by two of
    /// those who are left, or nothing is decided about it (docs/protocol/sync.md).
    is_short: bool,
    fork: Option<Fork>,
    /// Where members said that they stand with origins that have to end.
    stands: BTreeMap<(Origin, ReplicaId), Cut>,
    asked: Option<Asked>,
    agreed: Option<Agreed>,
    /// Where it ordered what was agreed to last.
    ordered: Option<((View, Sequence), Bytes)>,
}

impl FalseFrames {
    pub(crate) fn new(dials: &Dials, mut chance: Chance) -> Self {
        let fork_at_us = chance.between(2_000, dials.safety_ms * 3 / 4) * 1_000;
        Self {
            chance,
            fork_at_us,
            is_short: dials.f > 1,
            fork: None,
            stands: BTreeMap::new(),
            asked: None,
            agreed: None,
            ordered: None,
        }
    }
}

/// Two histories of one origin.
#[derive(Debug)]
struct Fork {
    branches: [Branch; 2],
    /// To whom each is shown, as bits.
    shown_to: [u64; 2],
    /// Of other liars, the history that it had seen.
    others: BTreeMap<Origin, u32>,
    times: u64,
}

#[derive(Clone, Debug)]
struct Branch {
    /// 0: what both share.
    number: u32,
    store: Store,
    last: Hash,
    frames: Vec<Bytes>,
}

/// A frame of it, for the judge.
struct Signed {
    frame: Frame,
    branch: u32,
    asked: Note,
}

impl Branch {
    /// Puts a register. Changes with one number are of one register in both histories, so that whoever writes over one writes
    /// over the other for those who have that.
    fn write(&mut self, puppet: &Puppet, others: &BTreeMap<Origin, u32>, now_ms: u64) -> Option<Signed> {
        let me = self.store.me();
        let before = self.store.applied().last(me);
        let mut branches = others.clone();
        if self.number > 0 {
            branches.insert(me, self.number);
        }
        let seen = translate::applied(self.store.applied(), &branches);
        let key = FORKED[usize::from(!before.is_multiple_of(2))];
        let value = Plain::bytes(format!("{me} {} {before}", self.number)).expect("short");
        let write = Write::new(key, Op::Put(value));
        let bundle = self.store.write(std::slice::from_ref(&write), before, now_ms).ok().flatten()?;
        let frame = Frame::seal(&bundle, self.last, puppet.cluster, &*puppet.crypto);
        self.last = frame.hash();
        self.frames.push(frame.bytes().clone());
        let outcome = Outcome::Made {
            origin: translate::origin(me),
            branch: self.number,
            first: bundle.first(),
            last: bundle.last(),
            clock: bundle.hlc().0,
        };
        let writes = vec![translate::write(&write)];
        let asked = Note::Asked { node: me.id.0, seen: Rc::new(seen), writes, outcome };
        Some(Signed { frame, branch: self.number, asked })
    }
}

/// A question about an end that nobody put to it.
#[derive(Debug)]
struct Asked {
    origin: Origin,
    bytes: Bytes,
    ground: Ground,
    quorum: usize,
    faults: usize,
    consents: BTreeMap<ReplicaId, (Stance, Signature)>,
    times: u64,
}

fn wire(message: &PeerMessage) -> Bytes {
    Bytes::from(encode(message))
}

fn pushed(frame: &Bytes) -> Bytes {
    wire(&PeerMessage::Sync(Message::Push { hops: 0, frame: frame.clone() }.to_bytes()))
}

fn ordered(frame: &Bytes) -> Bytes {
    wire(&PeerMessage::SyncOrder { frame: dwcp_replica::sync::wrap(frame) })
}

impl Puppet {
    pub(crate) fn is_of_rooms(message: &PeerMessage) -> bool {
        matches!(
            message,
            PeerMessage::Sync(_) | PeerMessage::SyncAsk { .. } | PeerMessage::SyncConsent { .. }
        )
    }

    /// What leaves for `to` instead of a message of state sync.
    pub(crate) fn speak_in_room(
        &mut self,
        to: ReplicaId,
        bytes: Bytes,
        message: &PeerMessage,
        out: &mut Vec<Lie>,
    ) {
        let lie = match message {
            PeerMessage::Sync(said) if self.has(Trick::WithholdAcks) || self.has(Trick::FalseHeads) => {
                self.twisted(said).map(|said| wire(&PeerMessage::Sync(said)))
            }
            PeerMessage::SyncAsk { matter: Matter::End, .. }
            | PeerMessage::SyncConsent { matter: Matter::End, .. }
                if self.ends_falsely() =>
            {
                self.plays(Trick::FalseEnds);
                return;
            }
            _ => None,
        };
        out.push(Lie { to, bytes: lie.unwrap_or(bytes), extra_us: 0 });
    }

    fn twisted(&mut self, said: &[u8]) -> Option<Bytes> {
        let mut message = Message::read(said).ok()?;
        let (Message::Ask { heads, .. } | Message::Answer { heads, .. }) = &mut message else { return None };
        if self.has(Trick::WithholdAcks) && heads.heads.iter().any(|head| head.acked > 0) {
            heads.heads.iter_mut().for_each(|head| head.acked = 0);
            self.plays(Trick::WithholdAcks);
        }
        if self.has(Trick::FalseHeads) && claim(heads, &mut self.false_frames.chance) {
            self.plays(Trick::FalseHeads);
        }
        Some(message.to_bytes())
    }

    /// Signs a second history, where it has none yet.
    fn fork(&mut self, store: &Store, others: BTreeMap<Origin, u32>, now_ms: u64, made: &mut Vec<Signed>) {
        let mut chance = self.false_frames.chance.fork("fork");
        let is_short = self.false_frames.is_short;
        let mut shared = Branch { number: 0, store: store.clone(), last: Hash::ZERO, frames: Vec::new() };
        for _ in 0..if is_short { 0 } else { chance.below(4) } {
            made.extend(shared.write(self, &others, now_ms));
        }
        let mut branches = [1, 2].map(|number| Branch { number, ..shared.clone() });
        for branch in &mut branches {
            for _ in 0..if is_short { 1 } else { chance.between(1, 3) } {
                made.extend(branch.write(self, &others, now_ms));
            }
        }
        // Each to somebody.
        let mut peers: Vec<u64> =
            (0..self.n).filter(|peer| *peer != self.me.0).map(|peer| 1 << peer).collect();
        chance.shuffle(&mut peers);
        let second = (chance.next_u64() | peers[0]) & !peers[1];
        let both = if chance.per_mille(300) { 1 << chance.below(u64::from(self.n)) } else { 0 };
        let shown_to = [!second | both, second | both];
        self.false_frames.fork = Some(Fork { branches, shown_to, others, times: 0 });
    }

    /// Goes on along both, and shows each to its own.
    fn go_on(&mut self, now_ms: u64, made: &mut Vec<Signed>, out: &mut Vec<Lie>) {
        let is_short = self.false_frames.is_short;
        let Some(mut fork) = self.false_frames.fork.take() else { return };
        if fork.times < SHOWN {
            for (branch, shown_to) in fork.branches.iter_mut().zip(fork.shown_to) {
                if fork.times > 0 && !is_short && self.false_frames.chance.per_mille(500) {
                    made.extend(branch.write(self, &fork.others, now_ms));
                }
                let by_log = self.false_frames.chance.per_mille(200);
                for to in (0..self.n).map(ReplicaId) {
                    if to == self.me || shown_to & (1 << to.0) == 0 {
                        continue;
                    }
                    for frame in &branch.frames {
                        self.plays(Trick::Fork);
                        out.push(Lie { to, bytes: pushed(frame), extra_us: 0 });
                        if by_log {
                            out.push(Lie { to, bytes: ordered(frame), extra_us: 0 });
                        }
                    }
                }
            }
            fork.times += 1;
        }
        self.false_frames.fork = Some(fork);
    }

    /// Something that another member never said: its next frame as it might be, or one of its frames with another bundle.
    fn forge_origin(
        &mut self,
        control: &Control,
        convergent: &Convergent<'_>,
        now_ms: u64,
        out: &mut Vec<Lie>,
    ) {
        let me = self.me;
        let members: Vec<_> =
            control.configurations.latest().members.iter().filter(|member| member.id != me).collect();
        let Some(victim) = self.false_frames.chance.pick(&members) else { return };
        let victim = Origin::new(u32::from(victim.id.0), victim.incarnation.0);
        let kept: Vec<&Bytes> = convergent.sync.kept().map(|(_, frame)| frame).collect();
        let frame = if self.false_frames.chance.per_mille(500) {
            let Some(frame) = self.false_frames.chance.pick(&kept) else { return };
            let mut altered = frame.to_vec();
            *altered.last_mut().expect("a frame has a header") ^= 1;
            Bytes::from(altered)
        } else {
            let parts = pieces(convergent.store);
            let Ok(mut restore) = Restore::new(victim, resolvers(), &parts[0]) else { return };
            let read = parts[1..].iter().try_for_each(|part| restore.piece(part));
            let (Ok(()), Ok(mut store)) = (read, restore.finish()) else { return };
            let head = convergent.sync.head(victim).map_or((0, Hash::ZERO), |head| (head.last, head.hash));
            let write = Write::new(FORKED[0], Op::Put(Plain::bytes("forged").expect("short")));
            let Ok(Some(bundle)) = store.write(&[write], head.0, now_ms) else { return };
            Frame::seal(&bundle, head.1, self.cluster, &*self.crypto).bytes().clone()
        };
        for to in (0..self.n).map(ReplicaId).filter(|to| *to != me) {
            self.plays(Trick::ForgeOrigins);
            let by_log = self.false_frames.chance.per_mille(200);
            let bytes = if by_log { ordered(&frame) } else { pushed(&frame) };
            out.push(Lie { to, bytes, extra_us: 0 });
        }
    }

    pub(crate) fn ends_falsely(&self) -> bool {
        self.has(Trick::FalseEnds) || self.has(Trick::LowEnds)
    }

    /// What others answer to its questions, and where they stand.
    pub(crate) fn hear_of_ends(&mut self, from: ReplicaId, bytes: &[u8]) {
        let Ok(PeerMessage::SyncConsent { matter: Matter::End, ground, content, stance, signature, stands }) =
            decode::<PeerMessage>(bytes)
        else {
            return;
        };
        let Ok(cut) = decode::<Cut>(&stands) else { return };
        let (me, of_false, of_low) = (self.me, self.has(Trick::FalseEnds), self.has(Trick::LowEnds));
        let words = &mut self.false_frames;
        words.stands.insert((cut.origin, from), cut);
        let Some(asked) = words.asked.as_mut().filter(|asked| asked.ground == ground) else { return };
        // Whose end it is has no voice, if only everybody believed that.
        if content != Hash::of(&asked.bytes) || u32::from(from.0) == asked.origin.id.0 {
            return;
        }
        asked.consents.insert(from, (stance, signature));
        if asked.consents.len() + 1 < asked.quorum {
            return;
        }
        let mut consents = asked.consents.clone();
        let agrees = Stance::Agrees;
        let own = consent(self.cluster, Matter::End, ground, content, agrees, me, &*self.crypto);
        consents.insert(me, (agrees, own));
        let stances = consents.values().map(|(stance, _)| *stance);
        let is_enough = suffices(Matter::End, stances, asked.quorum, asked.faults);
        if !(if is_enough { of_low } else { of_false }) {
            return;
        }
        let consents =
            consents.into_iter().map(|(by, (stance, signature))| (by, stance, signature)).collect();
        words.agreed = Some(Agreed { bytes: asked.bytes.clone(), ground, consents });
        if is_enough {
            self.plays(Trick::LowEnds);
        }
    }

    /// Asks about the lowest end that anybody stands at, or the farthest, or about one where nobody does.
    fn ask_about_ends(&mut self, control: &Control, convergent: &Convergent<'_>, out: &mut Vec<Lie>) {
        let peers: Vec<ReplicaId> = (0..self.n).map(ReplicaId).filter(|peer| *peer != self.me).collect();
        let configuration = control.configurations.latest();
        let ground = Ground { configuration: configuration.id, ends: control.ends.len() as u64 };
        let words = &mut self.false_frames;
        let endings = convergent.sync.endings();
        words.stands.retain(|(origin, _), _| endings.contains(origin));
        words.agreed = words.agreed.take().filter(|agreed| agreed.ground == ground);
        let mut said = Vec::new();
        if let Some(agreed) = &words.agreed {
            said.push(PeerMessage::SyncAgreed { matter: Matter::End, agreed: agreed.clone() });
        }
        let stays =
            |asked: &Asked| asked.ground == ground && asked.times < ASKED && endings.contains(&asked.origin);
        words.asked = words.asked.take().filter(stays);
        if words.asked.is_none() {
            let Some(origin) = words.chance.pick(&endings).copied() else { return };
            let told = words.stands.iter().filter(|((of, _), _)| *of == origin).map(|(_, cut)| *cut);
            let told: Vec<Cut> = told.chain(convergent.sync.head(origin)).collect();
            let (Some(lowest), Some(mut cut)) = (told.iter().min().copied(), told.into_iter().max()) else {
                return;
            };
            match words.chance.below(4) {
                0 => {}
                1 => {
                    cut.last += words.chance.between(1, 5);
                    cut.hash = Hash::of(&cut.hash.0);
                }
                _ => cut = lowest,
            }
            let proof = convergent.sync.proof(origin).copied().map(Box::new);
            let faults = usize::from(configuration.quorum().f()).saturating_sub(usize::from(proof.is_some()));
            let bytes = Bytes::from(encode(&End { cut, proof }));
            let (quorum, consents) = (configuration.quorum().q(), BTreeMap::new());
            words.asked = Some(Asked { origin, bytes, ground, quorum, faults, consents, times: 0 });
        }
        if let Some(asked) = &mut words.asked {
            asked.times += 1;
            said.push(PeerMessage::SyncAsk { matter: Matter::End, ground, bytes: asked.bytes.clone() });
        }
        for bytes in said.iter().map(wire) {
            for to in &peers {
                self.plays(Trick::FalseEnds);
                out.push(Lie { to: *to, bytes: bytes.clone(), extra_us: 0 });
            }
        }
    }

    /// A proposal of its own with such an end in it; the same to all.
    pub(crate) fn with_false_end(&mut self, slot: (View, Sequence), payload: &Bytes) -> Option<Bytes> {
        let words = &mut self.false_frames;
        if let Some((_, bytes)) = words.ordered.as_ref().filter(|(at, _)| *at == slot) {
            return Some(bytes.clone());
        }
        let agreed = words.agreed.clone()?;
        let bytes = altered(payload, |proposal| {
            proposal.entries.push(RootEntry::Evidence(Box::new(agreed)));
        })?;
        words.agreed = None;
        words.ordered = Some((slot, bytes.clone()));
        Some(bytes)
    }
}

impl World {
    /// What a liar says in state sync of its own accord.
    pub fn invent_frames(&mut self, ix: usize, out: &mut Vec<Lie>) {
        if self.dials.convergent_ms == 0 {
            return;
        }
        let (is_calm, at_us) = (self.in_calm(), self.now_us);
        let node = &mut self.nodes[ix];
        let now_ms = node.now(at_us).wall_ms;
        let (Some(puppet), Some(core)) = (node.puppet.as_mut(), node.core.as_ref()) else { return };
        let Some(convergent) = core.convergent() else { return };
        let mut made = Vec::new();
        if puppet.has(Trick::Fork) {
            let is_due = !is_calm && at_us >= puppet.false_frames.fork_at_us;
            if is_due && puppet.false_frames.fork.is_none() {
                self.coverage.forks += 1;
                puppet.fork(convergent.store, self.rooms.branches(ix, &convergent), now_ms, &mut made);
            }
            puppet.go_on(now_ms, &mut made, out);
        }
        if puppet.has(Trick::ForgeOrigins) && puppet.false_frames.chance.per_mille(500) {
            puppet.forge_origin(core.control(), &convergent, now_ms, out);
        }
        if puppet.ends_falsely() {
            puppet.ask_about_ends(core.control(), &convergent, out);
        }
        for Signed { frame, branch, asked } in made {
            let header = frame.header();
            self.trace.line(at_us, || {
                format!("## {} signs {}-{} of history {branch}", header.origin, header.first, header.last)
            });
            self.rooms.note_fork(&frame, branch, asked);
        }
        self.exclude_who_withholds(ix);
    }
}
