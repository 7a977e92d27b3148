//! What goes wrong: crashes, lost disks, partitions, and origins that sign two histories.

use crate::sync::liar::{Trick, pushed};
use crate::sync::translate;
use crate::sync::workload::FORKED;
use crate::sync::world::{CLUSTER, Event, World};
use bytes::Bytes;
use check::sync::Note;
use check::sync::judge::Outcome;
use dwcp_base::Hash;
use dwcp_crdt::{Bundle, Op, Plain, Write};
use dwcp_sync::{Frame, Record};
use std::rc::Rc;

impl World {
    // --- crashes ---

    pub fn crash_somebody(&mut self) {
        self.again(self.dials.crash_ms, Event::Crash);
        let honest = self.honest_up();
        if let Some(id) = self.chances.fault.pick(&honest).copied() {
            self.crash(id);
        }
    }

    pub fn blackout(&mut self) {
        self.again(self.dials.blackout_ms, Event::Blackout);
        for id in self.honest_up() {
            self.crash(id);
        }
    }

    /// The power goes: of what was not synced a prefix is there all the same, and the record being written may be torn, which
    /// its checksum turns into "not written".
    pub fn crash(&mut self, id: u32) {
        self.stop(id);
        let me = self.nodes[id as usize].me();
        let disk = &mut self.nodes[id as usize].disk;
        let synced = disk.records.iter().filter(|(ticket, _)| *ticket <= disk.durable).count();
        let unsynced = disk.records.len() - synced;
        let kept = self.chances.disk.below(unsynced as u64 + 1) as usize;
        let lost = disk.records.split_off(synced + kept);
        let is_own = |record: &[u8]| match Record::read(record) {
            Ok(Record::Frame(frame)) => {
                dwcp_sync::Received::read(frame).is_ok_and(|received| received.header().origin == me)
            }
            _ => false,
        };
        let coverage = &mut self.coverage;
        coverage.crashes += 1;
        coverage.records_lost += lost.len() as u64;
        coverage.torn_writes +=
            u64::from(!lost.is_empty() && self.chances.disk.per_mille(self.dials.torn_pm));
        coverage.own_frames_lost += u64::from(lost.iter().any(|(_, record)| is_own(record)));
        let ms = self.chances.fault.between(1, self.dials.down_ms.max(1));
        self.after_ms(ms, Event::Restart { node: id });
    }

    fn stop(&mut self, id: u32) {
        let node = &mut self.nodes[id as usize];
        node.live = None;
        node.life += 1;
        node.cursor = 0;
        node.missed_floor = None;
        self.trace.line(self.now_us, || format!("node {id} stops"));
    }

    pub fn restart(&mut self, id: u32) {
        let node = &self.nodes[id as usize];
        if node.live.is_some() || node.is_lost {
            return;
        }
        self.coverage.restarts += 1;
        self.trace.line(self.now_us, || format!("node {id} starts"));
        self.open(id);
    }

    /// A disk is gone. Its node sleeps, and comes back as another origin.
    pub fn wipe(&mut self) {
        self.again(self.dials.wipe_ms, Event::Wipe);
        let honest = self.honest_up();
        // The fault budget: liars and lost disks are at most f, or one lost disk where nobody may lie; and a disk counts as
        // lost until everybody has all that counts of it, for till then somebody else may have the only copy.
        if self.dials.liars + 1 > self.dials.f.max(1) || !self.is_loss_made_good() {
            return;
        }
        let Some(id) = self.chances.fault.pick(&honest).copied() else { return };
        let me = self.nodes[id as usize].me();
        self.stop(id);
        self.nodes[id as usize].is_lost = true;
        self.coverage.disks_wiped += 1;
        self.trace.line(self.now_us, || format!("the disk of {me} is gone"));
        self.notes.push(Note::Wiped { origin: translate::origin(me) });
        let ms = self.chances.fault.between(20, self.dials.sleep_ms.max(21));
        self.after_ms(ms, Event::Replace { node: id });
    }

    fn is_loss_made_good(&self) -> bool {
        let decided = self.log.cuts.iter().map(|cut| cut.origin).collect::<std::collections::BTreeSet<_>>();
        let is_open = self.halted.iter().any(|origin| !decided.contains(origin));
        let has = |node: &crate::sync::node::Node, cut: &dwcp_sync::Cut| {
            let Some(live) = &node.live else { return false };
            live.sync.standing(cut.origin) == Some(*cut)
                && live.store.applied().prefix(cut.origin) >= cut.last
        };
        let all = |cut: &dwcp_sync::Cut| {
            self.nodes.iter().filter(|node| node.is_honest()).all(|node| has(node, cut))
        };
        !is_open && !self.nodes.iter().any(|node| node.is_lost) && self.log.cuts.iter().all(all)
    }

    /// Bits flip in the memory of one honest node.
    pub fn damage(&mut self) {
        self.is_damage_done = true;
        let honest = self.honest_up();
        let Some(id) = self.chances.disk.pick(&honest).copied() else { return };
        for _ in 0..self.dials.damage {
            let bit = self.chances.disk.below(4_096) as usize;
            let Some(live) = &mut self.nodes[id as usize].live else { return };
            let keys: Vec<Bytes> = live.store.key_hashes_anew().map(|(key, _)| key.clone()).collect();
            let Some(key) = self.chances.disk.pick(&keys) else { return };
            if self.damaged.contains(&(id, key.to_vec())) || !live.store.flip_bit(key, bit) {
                continue;
            }
            self.coverage.keys_damaged += 1;
            self.trace.line(self.now_us, || format!("a bit of {key:?} flips on node {id}"));
            self.damaged.insert((id, key.to_vec()));
            self.notes.push(Note::Damaged { node: id, key: key.to_vec() });
        }
    }

    // --- the network ---

    pub fn partition(&mut self) {
        self.again(self.dials.partition_ms, Event::Partition);
        self.net.heal();
        let sides: Vec<bool> = self.nodes.iter().map(|_| self.chances.fault.per_mille(500)).collect();
        let one_way = self.chances.fault.per_mille(self.dials.one_way_pm);
        for (a, a_side) in sides.iter().enumerate() {
            for (b, b_side) in sides.iter().enumerate() {
                if a_side != b_side && (!one_way || *a_side) {
                    self.net.cut(a, b);
                }
            }
        }
        self.coverage.partitions += 1;
        self.coverage.one_way_partitions += u64::from(one_way);
        self.partition_number += 1;
        let long = self.dials.partition_long_ms.max(1);
        let ms = self.chances.fault.between(long / 2 + 1, long * 2);
        let number = self.partition_number;
        self.after_ms(ms, Event::Heal { number });
    }

    pub fn heal(&mut self, number: u64) {
        if number == self.partition_number {
            self.net.heal();
        }
    }

    // --- two histories ---

    /// A liar signs two frames with the same dots, goes on with one of them, and shows each to some. Both write the same
    /// register, so that what an honest writer did who had seen one of them means the same to those who saw the other.
    pub fn fork(&mut self, id: u32) {
        let now = self.nodes[id as usize].now(self.now_us);
        let node = &mut self.nodes[id as usize];
        let (Some(live), Some(puppet)) = (&mut node.live, &mut node.puppet) else { return };
        let me = node.setup.me;
        if !puppet.plays(Trick::Equivocate) || puppet.other.is_some() {
            return;
        }
        let Ok(written) = live.sync.may_write() else { return };
        let put = |key: usize, value: &str| {
            Write::new(FORKED[key], Op::Put(Plain::bytes(value.to_string()).expect("short")))
        };
        let hash = live.sync.head(me).map_or(Hash::ZERO, |head| head.hash);
        let mut other = live.store.clone();
        let mut notes = Vec::new();
        let mut note = |seen, write: &Write, bundle: &Bundle, branch| {
            let outcome = Outcome::Made {
                origin: translate::origin(me),
                branch,
                first: bundle.first(),
                last: bundle.last(),
                clock: bundle.hlc().0,
            };
            notes.push(Note::Asked {
                node: id,
                seen: Rc::new(seen),
                writes: vec![translate::write(write)],
                outcome,
            });
        };
        let mut write = |store: &mut dwcp_crdt::Store, key, value: &str, branch, branches: &_| {
            let seen = translate::applied(store.applied(), branches);
            let asked = put(key, value);
            let bundle = store.write(std::slice::from_ref(&asked), written, now.wall_ms).ok().flatten()?;
            note(seen, &asked, &bundle, branch);
            Some(bundle)
        };
        let before = live.branches.clone();
        let Some(one) = write(&mut live.store, 0, "one", 1, &before) else { return };
        let mut after = before.clone();
        after.insert(me, 2);
        let Some(two) = write(&mut other, 0, "two", 2, &before) else { return };
        let Some(three) = write(&mut other, 1, "three", 2, &after) else { return };
        live.branches.insert(me, 1);
        let crypto = &*node.setup.crypto;
        let Ok(made) = live.sync.write_for_log(&one) else { return };
        let two_frame = Frame::seal(&two, hash, CLUSTER, crypto);
        let three_frame = Frame::seal(&three, two_frame.hash(), CLUSTER, crypto);
        for (bundle, branch) in [(&one, 1), (&two, 2), (&three, 2)] {
            self.branch_of.insert(Hash::of(&bundle.encode()), branch);
        }
        puppet.other = Some((other, three_frame.hash()));
        self.notes.extend(notes);
        self.forks.insert(me, one.first());
        self.coverage.equivocations += 1;
        self.trace.line(self.now_us, || format!("{me} signs two histories from {}", one.first()));
        let first = dwcp_sync::Message::Push { hops: 8, frame: made.frame }.to_bytes();
        for to in (0..self.nodes.len() as u32).filter(|to| *to != id) {
            let puppet = self.nodes[id as usize].puppet.as_mut().expect("a liar");
            let (side, both) = (puppet.pick_side(), puppet.pick_side() && puppet.pick_side());
            if side || both {
                self.send(id, to, &first);
            }
            if !side || both {
                self.send(id, to, &pushed(&two_frame));
                self.send(id, to, &pushed(&three_frame));
            }
        }
        self.run(id);
    }
}
