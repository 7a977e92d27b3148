//! What breaks, when, and for how long. Each kind of fault has its own beat, drawn around the mean that its dial names;
//! all of them end when the calm begins.
//!
//! The budget is kept here: a disk is taken only while liars, lying disks and disks not yet made good stay within f.

use crate::node::Down;
use crate::world::{Event, Phase, World};

/// A fault's beat, or its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Partition,
    PartitionEnd {
        number: u64,
    },
    SlowLink,
    SlowLinkEnd,
    SlowDisk,
    SlowDiskEnd {
        node: usize,
    },
    FullDisk,
    FullDiskEnd {
        node: usize,
    },
    Crash,
    Blackout,
    Pause,
    Wipe,
    /// The root's primary and the segment's leader die at one moment.
    KillBoth,
    /// A replica that has just said where its log of an epoch ends loses its disk.
    WipeSealed {
        node: usize,
    },
    CalmBegins,
    /// Clients stop beginning new work.
    LastOrders,
}

/// How long before the end of the calm's first part clients still begin new work.
const CALM_WORK_US: u64 = 5_000_000;

impl World {
    pub fn begin_faults(&mut self) {
        let dials = &self.dials;
        let beats = [
            (Fault::Partition, dials.partition_ms),
            (Fault::SlowLink, dials.slow_link_ms),
            (Fault::SlowDisk, dials.slow_disk_ms),
            (Fault::FullDisk, dials.full_disk_ms),
            (Fault::Crash, dials.crash_ms),
            (Fault::Blackout, dials.blackout_ms),
            (Fault::Pause, dials.pause_ms),
            (Fault::Wipe, dials.wipe_ms),
            (Fault::KillBoth, dials.kill_both_ms),
        ];
        let calm_us = dials.safety_ms * 1000;
        for (fault, mean_ms) in beats {
            self.beat(fault, mean_ms);
        }
        self.schedule(calm_us, Event::Fault(Fault::CalmBegins));
        self.schedule(calm_us + CALM_WORK_US, Event::Fault(Fault::LastOrders));
    }

    fn beat(&mut self, fault: Fault, mean_ms: u64) {
        if mean_ms > 0 {
            let after = self.chances.fault.between(mean_ms * 500, mean_ms * 1500);
            self.schedule(after, Event::Fault(fault));
        }
    }

    fn any_node(&mut self) -> usize {
        usize::try_from(self.chances.fault.below(self.nodes.len() as u64)).expect("few nodes")
    }

    pub fn on_fault(&mut self, fault: Fault) {
        self.trace.mix(&[self.now_us, 3000]);
        let at = self.now_us;
        if self.in_calm() && fault != Fault::LastOrders {
            return;
        }
        self.trace.line(at, || format!("## {fault:?}"));
        let dials = self.dials.clone();
        match fault {
            Fault::Partition => {
                self.partition();
                self.beat(fault, dials.partition_ms);
            }
            Fault::PartitionEnd { number } => {
                if number == self.coverage.partitions {
                    self.heal();
                }
            }
            Fault::SlowLink => {
                let (a, b) = (self.any_node(), self.any_node());
                self.net.slow_link(a, b);
                let long = self.chances.fault.between(500_000, 5_000_000);
                self.schedule(long, Event::Fault(Fault::SlowLinkEnd));
                self.beat(fault, dials.slow_link_ms);
            }
            Fault::SlowLinkEnd => self.net.heal_slow_links(),
            Fault::SlowDisk => {
                let node = self.any_node();
                self.nodes[node].disk.slow = true;
                self.coverage.disks_slow += 1;
                let long = self.chances.fault.between(500_000, 5_000_000);
                self.schedule(long, Event::Fault(Fault::SlowDiskEnd { node }));
                self.beat(fault, dials.slow_disk_ms);
            }
            Fault::SlowDiskEnd { node } => self.nodes[node].disk.slow = false,
            Fault::FullDisk => {
                let node = self.any_node();
                self.nodes[node].disk.full = true;
                let long = self.chances.fault.between(200_000, 6_000_000);
                self.schedule(long, Event::Fault(Fault::FullDiskEnd { node }));
                self.beat(fault, dials.full_disk_ms);
            }
            Fault::FullDiskEnd { node } => self.make_room(node),
            Fault::Crash => {
                let node = self.any_node();
                if self.nodes[node].is_up() {
                    self.crash(node, Down::Crashed);
                }
                self.beat(fault, dials.crash_ms);
            }
            Fault::Blackout => {
                for node in 0..self.nodes.len() {
                    if self.nodes[node].is_up() {
                        self.crash(node, Down::Crashed);
                    }
                }
                self.beat(fault, dials.blackout_ms);
            }
            Fault::Pause => {
                let node = self.any_node();
                let long = self.chances.fault.between(dials.pause_long_ms * 200, dials.pause_long_ms * 1500);
                if self.nodes[node].is_up() {
                    self.nodes[node].paused_until_us = at + long;
                    self.coverage.pauses += 1;
                }
                self.beat(fault, dials.pause_ms);
            }
            Fault::Wipe => {
                self.wipe();
                self.beat(fault, dials.wipe_ms);
            }
            Fault::KillBoth => {
                let up = |ix: &usize| self.nodes[*ix].is_up();
                let seen = self.honest_nodes().filter(up).find_map(|ix| {
                    let core = self.nodes[ix].core.as_ref()?;
                    let leader = core.status(self.nodes[ix].now(at)).segment?.leader?;
                    Some([core.protocol().primary(), leader])
                });
                let both = seen.is_some_and(|[primary, leader]| {
                    let is_up = |id: dwcp_base::ReplicaId| self.nodes[usize::from(id.0)].is_up();
                    primary != leader && is_up(primary) && is_up(leader)
                });
                self.coverage.both_killed_apart += u64::from(both);
                for victim in seen.into_iter().flatten() {
                    let node = usize::from(victim.0);
                    if self.nodes[node].is_up() {
                        self.crash(node, Down::Crashed);
                    }
                }
                self.coverage.both_killed += u64::from(seen.is_some());
                self.beat(fault, dials.kill_both_ms);
            }
            Fault::WipeSealed { node } => {
                if self.faults_in_force() < self.dials.f
                    && self.nodes[node].honest
                    && self.nodes[node].down != Some(Down::DiskLost)
                {
                    self.coverage.sealed_wiped += 1;
                    self.lose_disk(node);
                }
            }
            Fault::CalmBegins => self.begin_calm(),
            Fault::LastOrders => {
                self.last_orders = true;
                if self.dials.steady == 0 {
                    self.clients.iter_mut().for_each(crate::client::Client::stop);
                }
            }
        }
    }

    fn make_room(&mut self, node: usize) {
        self.nodes[node].disk.full = false;
        if self.nodes[node].down == Some(Down::DiskFull) {
            let boot = self.nodes[node].boot;
            self.schedule(1_000, Event::Start { node, boot });
        }
    }

    fn partition(&mut self) {
        self.coverage.partitions += 1;
        let one_way = self.chances.fault.per_mille(self.dials.one_way_pm);
        self.coverage.one_way_partitions += u64::from(one_way);
        // Now and then a single replica is cut off, else the sides are drawn.
        let alone = self.chances.fault.per_mille(400).then(|| self.any_node());
        let sides: Vec<bool> = (0..self.nodes.len())
            .map(|node| match alone {
                Some(alone) => node == alone,
                None => self.chances.fault.per_mille(500),
            })
            .collect();
        for from in 0..sides.len() {
            for to in 0..sides.len() {
                if sides[from] != sides[to] && (!one_way || sides[from]) {
                    self.net.cut(from, to);
                    self.link_down(from, to, 20_000);
                    self.link_down(to, from, 20_000);
                }
            }
        }
        let mean = self.dials.partition_long_ms;
        let long = self.chances.fault.between(mean * 300, mean * 1700);
        let number = self.coverage.partitions;
        self.schedule(long, Event::Fault(Fault::PartitionEnd { number }));
    }

    pub fn heal(&mut self) {
        // Hearing of a link twice (from both of its directions) is harmless, missing it is not.
        for (a, b) in self.net.heal() {
            self.link_up(a, b);
        }
    }

    /// An honest replica's disk is lost or damaged, if the budget allows one more.
    fn wipe(&mut self) {
        if self.faults_in_force() >= self.dials.f {
            return;
        }
        let node = self.any_node();
        if !self.nodes[node].honest || self.nodes[node].down == Some(Down::DiskLost) {
            return;
        }
        if self.chances.fault.per_mille(self.dials.damage_pm) {
            self.flip_bit(node);
        } else {
            self.coverage.disks_wiped += 1;
            self.lose_disk(node);
        }
    }

    /// The process dies and a bit of its disk flips. The next start finds it, and only then is the operator told.
    pub fn flip_bit(&mut self, ix: usize) {
        if self.nodes[ix].disk.flipped.is_some() {
            return;
        }
        if self.nodes[ix].is_up() {
            self.crash(ix, Down::DiskLost);
            self.nodes[ix].down = Some(Down::Crashed);
            let after = 1_000 + self.chances.bytes.below(self.dials.down_ms * 1000 + 1);
            let boot = self.nodes[ix].boot;
            self.schedule(after, Event::Start { node: ix, boot });
        }
        self.nodes[ix].disk.flip(self.dials.chunk_flip_pm, &mut self.chances.bytes);
        let at = self.now_us;
        self.trace
            .line(at, || format!("{:?}: a bit flips: {:?}", self.nodes[ix], self.nodes[ix].disk.flipped));
        self.coverage.bits_flipped += 1;
    }

    /// The disk is gone, or was refused at start; the process dies and the operator is told.
    pub fn lose_disk(&mut self, ix: usize) {
        if self.nodes[ix].is_up() {
            self.crash(ix, Down::DiskLost);
        }
        self.nodes[ix].down = Some(Down::DiskLost);
        self.nodes[ix].disk.flipped = None;
        self.observe_convergent_loss(ix);
        if self.mutants.on(dwcp_base::Mutant::WipedDiskRejoins) {
            let incarnation = self.nodes[ix].incarnation;
            self.replace_disk(ix, incarnation);
        } else {
            self.ask_for_replacement(ix);
        }
    }

    /// Faults stop: the network is good, clocks are right, everybody who can starts, only liars go on lying.
    fn begin_calm(&mut self) {
        self.phase = Phase::Calm { since_us: self.now_us };
        self.net.calm();
        self.heal();
        for ix in 0..self.nodes.len() {
            let node = &mut self.nodes[ix];
            node.disk.slow = false;
            node.disk.lying_pm = 0;
            node.paused_until_us = node.paused_until_us.min(self.now_us);
            // The clock is set right; it never jumps by more than the policy of time servers allows, here at once.
            node.clock.drift_ppm = 0;
            node.clock.offset_us = node.clock.offset_us.clamp(-100_000, 100_000);
            self.make_room(ix);
            if self.nodes[ix].down == Some(Down::Crashed) {
                let boot = self.nodes[ix].boot;
                self.schedule(10_000, Event::Start { node: ix, boot });
            }
        }
    }
}
