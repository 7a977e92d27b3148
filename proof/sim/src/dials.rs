//! The dials of a run: every number that shapes a history besides the seed. They are drawn from the seed under a
//! profile, printed with every failure, and can be set one by one, which is all the shrinker does.
//!
//! Nothing here acts; who reads a dial says what it means in its own file.

use crate::trick::Trick;
use dwcp_base::Chance;

macro_rules! dials {
    ($($(#[doc = $doc:literal])* $name:ident),* $(,)?) => {
        /// Rates are per mille (`_pm`) or per million (`_ppm`); an interval of 0 switches a fault off.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct Dials {
            $($(#[doc = $doc])* pub $name: u64),*
        }

        impl Dials {
            pub const NAMES: &'static [&'static str] = &[$(stringify!($name)),*];

            #[must_use]
            pub fn get(&self, name: &str) -> Option<u64> {
                match name {
                    $(stringify!($name) => Some(self.$name),)*
                    _ => None,
                }
            }

            /// False when there is no such dial.
            #[must_use]
            pub fn set(&mut self, name: &str, value: u64) -> bool {
                match name {
                    $(stringify!($name) => self.$name = value,)*
                    _ => return false,
                }
                true
            }
        }

        impl std::fmt::Display for Dials {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                let mut first = true;
                for name in Self::NAMES {
                    let value = self.get(name).expect("its own name");
                    if value != 0 {
                        write!(f, "{}{name}={value}", if first { "" } else { " " })?;
                        first = false;
                    }
                }
                Ok(())
            }
        }
    };
}
pub(crate) use dials;

dials! {
    /// Replicas.
    n,
    /// Liars the policy tolerates.
    f,
    /// Length of the safety phase.
    safety_ms,
    /// Length of the liveness phase at most.
    calm_ms,
    /// What a command may take once the faults have stopped.
    answer_ms,
    /// 1: real Ed25519.
    ed25519,

    clients,
    /// Clients that sign badly, reuse sequences and replay.
    lying_clients,
    /// Mean pause between two frames of a client.
    think_ms,
    commands_max,
    /// Frames a client may have in flight.
    in_flight_max,
    /// Chance per answered frame that the client sends it again all the same.
    retry_pm,
    /// Chance per frame that its client dies after sending it.
    death_pm,
    retry_ms,
    value_bytes_max,
    leases_pm,
    /// Chance per frame that its client does something with leases it looks after.
    lease_life_pm,
    /// 1: clients go on asking when the faults have stopped, for as long as one of them waits for long.
    steady,

    delay_us,
    jitter_us,
    drop_pm,
    duplicate_pm,
    /// Chance that a COMMIT is lost besides: some replicas then execute much later than others.
    commits_lost_pm,
    /// Chance that a message takes up to twenty times as long.
    stray_pm,
    /// Mean time between partitions.
    partition_ms,
    partition_long_ms,
    one_way_pm,
    /// Mean time between periods in which one link is slow.
    slow_link_ms,

    sync_us,
    /// 1: the driver steps on while a sync is under way.
    pipelined_sync,
    /// Mean time between periods of a hundredfold slower disk.
    slow_disk_ms,
    full_disk_ms,
    /// Chance, at each sync, of a crash before it, right after it, or between two of the effects it released.
    crash_ticket_ppm,
    crash_ms,
    /// Mean time between crashes of all replicas at once.
    blackout_ms,
    down_ms,
    pause_ms,
    pause_long_ms,
    /// Chance that a crash tears the record being written.
    torn_pm,
    wipe_ms,
    /// Share of lost disks of which a bit flipped (which the next start must find) rather than blank ones.
    damage_pm,
    /// Replicas whose disk lies about syncs.
    fsync_liars,
    /// Offsets of honest clocks.
    skew_ms,
    /// Replicas with a clock far off.
    wrong_clocks,

    /// Replicas that lie.
    liars,
    /// Bit set of `Trick`s; 0: each liar draws its own.
    tricks,
    /// 1: liars are the primaries of the first views. 2: one is the first primary, the others the last replicas.
    liars_first,

    checkpoint_interval,
    window_checkpoints,
    view_timeout_ms,
    pipeline_depth,
    batch_bytes_max,
    snapshot_log_bytes,

    /// What the genesis says of protocols. 0: the root alone, trust by f. Else trust is `crash`, Raft is allowed, and the mode
    /// is 1: hybrid, 2: datacenter, 3: internet.
    mode,
    /// Log time in the root after a segment was forced to close; doubles with each failure.
    segment_calm_ms,
    election_ms,
    /// 0: as measured.
    fast_path_ms,
    anchor_ms,
    /// Entries of one message between members of a segment; 0: as many as there are by default.
    append_entries_max,
    /// Bytes of a segment's committed entries executed in one turn; 0: as many as there are by default.
    apply_bytes,
    /// Share of frames whose client waits for an Anchor.
    anchored_pm,
    /// Share of reads that are asked of the segment's leader and cost no entry.
    leader_reads_pm,
    /// Mean time between orders of a mode.
    mode_order_ms,
    /// Share of these orders that are of a policy.
    policy_order_pm,
    /// Share of links that are cut, or whose other end dies, that say so.
    link_down_pm,
    /// Mean time between deaths of the root's primary and the segment's leader at one moment.
    kill_both_ms,
    /// Chance that a replica that has said where its log ends loses its disk then.
    wipe_sealed_pm,

    /// Mean pause between two writes of convergent values, by all together. 0: replicas have no state sync.
    convergent_ms,
    /// Keys that are written, the most contended first.
    convergent_keys,
    /// How often members compare what they hold.
    exchange_ms,
    /// Mean time between orders to go on without a member, whose disk is replaced then.
    exclude_ms,
    /// How long a member goes on that state sync was ordered to go on without, before its disk is replaced.
    excluded_ms,
    /// How long a member may leave unacknowledged what another has, before it is named. 0: as by default.
    ack_patience_ms,

    /// Share of flipped bits that strike a chunk of the newest snapshot, where there is one, rather than the log.
    chunk_flip_pm,
}

/// A way to draw dials: where a run looks for trouble.
#[derive(Clone, Copy, Debug)]
pub struct Profile {
    pub name: &'static str,
    pub about: &'static str,
    tweak: fn(&mut Dials, &mut Chance),
}

/// Every profile; the first is the default.
pub const PROFILES: &[Profile] = &[
    Profile { name: "mixed", about: "a bit of everything, within the fault budget", tweak: |_, _| {} },
    Profile { name: "calm", about: "no faults at all", tweak: calm },
    Profile { name: "crash", about: "crashes at tickets, restarts, blackouts", tweak: crash },
    Profile { name: "partition", about: "partitions, one-way cuts, loss: view changes", tweak: partition },
    Profile { name: "byzantine", about: "f liars with every trick", tweak: byzantine },
    Profile { name: "disk", about: "wiped, damaged, lying, slow and full disks", tweak: disk },
    Profile { name: "clients", about: "lying clients, retries, deaths", tweak: clients },
    Profile { name: "transfer", about: "long absences, short logs: state transfer", tweak: transfer },
    Profile { name: "switch", about: "segments in every seed", tweak: switch },
    Profile { name: "orders", about: "segments and orders of a mode, and no faults", tweak: calm },
    Profile {
        name: "overload",
        about: "segments, slow disks, small pipes, many clients, and no faults but SUSPECTs of liars",
        tweak: overload,
    },
    Profile {
        name: "convergent",
        about: "state sync in every seed, and a bit of everything",
        tweak: |_, _| {},
    },
    Profile { name: "clocks", about: "clocks far off", tweak: clocks },
];

impl Profile {
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        PROFILES.iter().find(|profile| profile.name == name).copied()
    }

    /// The dials of one seed.
    #[must_use]
    pub fn draw(self, seed: u64, seconds: u64) -> Dials {
        let mut chance = Chance::new(seed).fork("dials");
        let mut dials = mixed(&mut chance, seconds);
        dials.ed25519 = u64::from(seed.is_multiple_of(50));
        (self.tweak)(&mut dials, &mut chance);
        // A stream of its own: what is drawn here moves nothing else.
        let mut chance = Chance::new(seed).fork("segments");
        if chance.per_mille(500) || matches!(self.name, "switch" | "orders" | "overload") {
            switching(&mut dials, &mut chance);
        }
        if dials.switches() {
            let mut chance = Chance::new(seed).fork("turns");
            dials.apply_bytes = *chance.pick(&[0, 1 << 10, 8 << 10]).expect("not empty");
            if chance.per_mille(300) {
                dials.fast_path_ms = 0;
            }
            if self.name != "overload" {
                dials.lease_life_pm = maybe(&mut Chance::new(seed).fork("lease lives"), 350, 50, 400);
            }
        }
        if self.name == "overload" {
            // Patience is for a network and a disk at rest: what is slower than that is so because of the load.
            let commit_ms = 2 * (dials.delay_us + dials.jitter_us + dials.sync_us) / 1_000;
            dials.fast_path_ms = dials.fast_path_ms.max(4 * commit_ms);
            dials.election_ms = dials.election_ms.max(4 * commit_ms);
            dials.view_timeout_ms = dials.view_timeout_ms.max(8 * commit_ms);
            // Half of them beside liars that complain all the time and do nothing else: load must not lend them voices.
            if dials.f > 0 && Chance::new(seed).fork("storms").per_mille(500) {
                (dials.liars, dials.tricks) = (dials.f, Trick::Storm.bit());
            }
        }
        if matches!(self.name, "calm" | "orders" | "overload") {
            dials.kill_both_ms = 0;
            dials.wipe_sealed_pm = 0;
        }
        let mut chance = Chance::new(seed).fork("convergent");
        if chance.per_mille(333) || self.name == "convergent" {
            converging(&mut dials, &mut chance);
            if matches!(self.name, "calm" | "orders" | "overload") {
                dials.exclude_ms = 0;
            }
        }
        if dials.exclude_ms > 0 {
            dials.excluded_ms = maybe(&mut Chance::new(seed).fork("excluded"), 300, 500, 5_000);
        }
        if dials.convergent_ms > 0 && dials.liars > 0 {
            dials.ack_patience_ms = maybe(&mut Chance::new(seed).fork("patience"), 500, 2_000, 6_000);
        }
        if dials.wipe_ms > 0 {
            dials.chunk_flip_pm = Chance::new(seed).fork("flips").between(0, 800);
        }
        dials.settle();
        if dials.members_may_lie() {
            // What a liar's answer leaves open and leases that end when they please are too much for one search for an order.
            dials.lease_life_pm /= 4;
        }
        dials
    }
}

impl Dials {
    /// Brings the dials within what a cluster may be and within the fault budget: liars and disks that lie count
    /// together; what is left of the budget is spent on lost disks while the run goes on.
    pub fn settle(&mut self) {
        self.n = self.n.clamp(1, 31);
        self.f = self.f.min((self.n - 1) / 3);
        self.liars = self.liars.min(self.f);
        self.fsync_liars = self.fsync_liars.min(self.f.saturating_sub(self.liars));
        // Alone, or one of two, a wrong clock is the cluster's.
        self.wrong_clocks = self.wrong_clocks.min((self.n - 1) / 2);
        self.clients = self.clients.max(1);
        self.commands_max = self.commands_max.max(1);
        self.in_flight_max = self.in_flight_max.max(1);
        self.checkpoint_interval = self.checkpoint_interval.max(1);
        self.window_checkpoints = self.window_checkpoints.max(2);
        if self.f == 0 {
            self.wipe_ms = 0;
            self.exclude_ms = 0;
            self.wipe_sealed_pm = 0;
        }
        if self.mode == 3 && self.n < 4 {
            self.mode = 1;
        }
    }

    /// Segments may open.
    #[must_use]
    pub fn switches(&self) -> bool {
        self.mode != 0
    }

    /// Nothing fails and nobody lies, but for some who complain of every segment: whatever is slow is slow because there is
    /// much to do.
    #[must_use]
    pub fn is_faultless(&self) -> bool {
        let complains_only = self.tricks == Trick::Storm.bit();
        FAULTS.iter().all(|name| self.get(name) == Some(0) || (*name == "liars" && complains_only))
    }

    /// A member may lie though the policy says `crash`.
    #[must_use]
    pub fn members_may_lie(&self) -> bool {
        self.switches() && self.liars + self.fsync_liars > 0
    }
}

/// Draws `value` with a chance, else 0.
fn maybe(chance: &mut Chance, pm: u64, low: u64, high: u64) -> u64 {
    let value = chance.between(low, high);
    if chance.per_mille(pm) { value } else { 0 }
}

fn mixed(chance: &mut Chance, seconds: u64) -> Dials {
    let n = *chance.pick(&[1, 3, 3, 4, 4, 4, 4, 4, 4, 5, 5, 5, 7, 7]).expect("not empty");
    let f_max = (n - 1) / 3;
    let f = if chance.per_mille(80) { chance.between(0, f_max) } else { f_max };
    let base_us = *chance.pick(&[300, 2_000, 10_000, 30_000]).expect("not empty");
    let safety_ms = (seconds * 1000).saturating_sub(12_000).max(1_000);
    Dials {
        n,
        f,
        safety_ms,
        calm_ms: 240_000,
        answer_ms: 120_000,
        ed25519: 0,
        clients: chance.between(2, 5),
        lying_clients: maybe(chance, 300, 1, 1),
        think_ms: chance.between(60, 400),
        commands_max: *chance.pick(&[1, 2, 4, 8]).expect("not empty"),
        in_flight_max: chance.between(1, 3),
        retry_pm: maybe(chance, 600, 10, 200),
        death_pm: maybe(chance, 400, 1, 5),
        retry_ms: chance.between(400, 1_500),
        value_bytes_max: *chance.pick(&[16, 64, 300, 3_000]).expect("not empty"),
        leases_pm: maybe(chance, 300, 5, 30),
        steady: 0,
        delay_us: base_us,
        jitter_us: chance.between(0, 2 * base_us),
        drop_pm: maybe(chance, 600, 1, 60),
        duplicate_pm: maybe(chance, 500, 1, 40),
        stray_pm: maybe(chance, 500, 1, 40),
        partition_ms: maybe(chance, 600, 4_000, 20_000),
        partition_long_ms: chance.between(500, 8_000),
        one_way_pm: chance.between(0, 500),
        slow_link_ms: maybe(chance, 300, 4_000, 20_000),
        sync_us: *chance.pick(&[100, 500, 3_000]).expect("not empty"),
        pipelined_sync: chance.below(2),
        slow_disk_ms: maybe(chance, 300, 5_000, 20_000),
        full_disk_ms: maybe(chance, 200, 10_000, 40_000),
        crash_ticket_ppm: maybe(chance, 500, 20, 1_000),
        crash_ms: maybe(chance, 500, 3_000, 20_000),
        blackout_ms: maybe(chance, 150, 10_000, 30_000),
        down_ms: chance.between(50, 8_000),
        pause_ms: maybe(chance, 400, 4_000, 20_000),
        pause_long_ms: chance.between(100, 6_000),
        torn_pm: chance.between(0, 500),
        wipe_ms: maybe(chance, 350, 8_000, 25_000),
        damage_pm: chance.between(0, 1_000),
        fsync_liars: maybe(chance, 150, 1, 1),
        skew_ms: maybe(chance, 600, 0, 200),
        wrong_clocks: maybe(chance, 120, 1, 1),
        liars: maybe(chance, 450, 1, f.max(1)),
        tricks: 0,
        liars_first: chance.below(2),
        checkpoint_interval: *chance.pick(&[4, 8, 16, 64]).expect("not empty"),
        window_checkpoints: chance.between(2, 4),
        view_timeout_ms: *chance.pick(&[500, 1_000, 2_000]).expect("not empty"),
        pipeline_depth: *chance.pick(&[1, 2, 4, 8]).expect("not empty"),
        batch_bytes_max: *chance.pick(&[2_000, 20_000, 500_000]).expect("not empty"),
        snapshot_log_bytes: *chance.pick(&[65_536, 65_536, 150_000]).expect("not empty"),
        ..Dials::default()
    }
}

/// Segments under the root, in proportion to its own patience.
fn switching(dials: &mut Dials, chance: &mut Chance) {
    let view_ms = dials.view_timeout_ms;
    dials.mode = *chance.pick(&[1, 1, 1, 2, 2, 3]).expect("not empty");
    dials.segment_calm_ms = chance.between(500, 3_000);
    dials.election_ms = chance.between(view_ms / 5, view_ms / 2);
    dials.fast_path_ms = chance.between(view_ms / 4, view_ms);
    dials.anchor_ms = chance.between(30, 500);
    dials.anchored_pm = maybe(chance, 500, 50, 600);
    dials.leader_reads_pm = maybe(chance, 600, 100, 900);
    dials.mode_order_ms = maybe(chance, 600, 2_000, 12_000);
    dials.link_down_pm = *chance.pick(&[0, 500, 900, 1_000]).expect("not empty");
    dials.kill_both_ms = maybe(chance, 250, 5_000, 20_000);
    dials.wipe_sealed_pm = maybe(chance, 150, 20, 200);
    dials.policy_order_pm = maybe(chance, 400, 100, 500);
}

/// State sync in every replica.
fn converging(dials: &mut Dials, chance: &mut Chance) {
    dials.convergent_ms = chance.between(100, 800);
    dials.convergent_keys = *chance.pick(&[3, 8, 20]).expect("not empty");
    dials.exchange_ms = chance.between(100, 1_000);
    dials.exclude_ms = maybe(chance, 300, 6_000, 20_000);
}

/// The liveliest of it: the root alone never for long, short calms, orders all the time.
fn switch(dials: &mut Dials, chance: &mut Chance) {
    dials.n = *chance.pick(&[1, 3, 3, 4, 4, 5, 7]).expect("not empty");
    dials.f = (dials.n - 1) / 3;
    dials.liars = dials.liars.min(dials.f);
    dials.think_ms = chance.between(30, 150);
}

/// Dials that are 0 where nothing fails.
const FAULTS: &[&str] = &[
    "lying_clients",
    "death_pm",
    "drop_pm",
    "commits_lost_pm",
    "duplicate_pm",
    "stray_pm",
    "partition_ms",
    "slow_link_ms",
    "slow_disk_ms",
    "full_disk_ms",
    "crash_ticket_ppm",
    "crash_ms",
    "blackout_ms",
    "pause_ms",
    "torn_pm",
    "wipe_ms",
    "fsync_liars",
    "wrong_clocks",
    "liars",
    "kill_both_ms",
    "wipe_sealed_pm",
    "exclude_ms",
];

fn calm(dials: &mut Dials, _: &mut Chance) {
    for name in FAULTS {
        let known = dials.set(name, 0);
        assert!(known, "{name} is a dial");
    }
}

/// Much more to do than disks and pipes are made for.
fn overload(dials: &mut Dials, chance: &mut Chance) {
    calm(dials, chance);
    dials.sync_us = *chance.pick(&[3_000, 10_000, 30_000]).expect("not empty");
    dials.pipeline_depth = 1;
    dials.batch_bytes_max = 2_000;
    dials.clients = chance.between(15, 40);
    dials.in_flight_max = 4;
    dials.think_ms = chance.between(1, 20);
    dials.commands_max = chance.between(1, 2);
    dials.leases_pm = 0;
}

fn crash(dials: &mut Dials, chance: &mut Chance) {
    dials.crash_ticket_ppm = chance.between(500, 10_000);
    dials.crash_ms = chance.between(1_000, 6_000);
    dials.blackout_ms = maybe(chance, 500, 4_000, 15_000);
    dials.down_ms = chance.between(10, 2_000);
    dials.torn_pm = 500;
}

fn partition(dials: &mut Dials, chance: &mut Chance) {
    dials.partition_ms = chance.between(1_500, 6_000);
    dials.partition_long_ms = chance.between(1_000, 6_000);
    dials.one_way_pm = 300;
    dials.drop_pm = chance.between(5, 120);
    dials.view_timeout_ms = 500;
}

fn byzantine(dials: &mut Dials, chance: &mut Chance) {
    dials.n = *chance.pick(&[4, 4, 4, 5, 7]).expect("not empty");
    dials.f = (dials.n - 1) / 3;
    dials.liars = dials.f;
    dials.fsync_liars = 0;
    dials.wipe_ms = 0;
    dials.liars_first = 1;
}

fn disk(dials: &mut Dials, chance: &mut Chance) {
    dials.n = *chance.pick(&[4, 4, 5, 7]).expect("not empty");
    dials.f = (dials.n - 1) / 3;
    dials.liars = 0;
    dials.fsync_liars = maybe(chance, 300, 1, 1);
    dials.wipe_ms = chance.between(3_000, 10_000);
    dials.slow_disk_ms = chance.between(5_000, 15_000);
    dials.full_disk_ms = chance.between(5_000, 20_000);
    dials.crash_ms = chance.between(3_000, 10_000);
    dials.torn_pm = 500;
}

fn clients(dials: &mut Dials, chance: &mut Chance) {
    dials.lying_clients = chance.between(1, 2);
    dials.clients = chance.between(3, 5);
    dials.retry_pm = 400;
    dials.death_pm = 5;
    dials.retry_ms = 300;
}

fn transfer(dials: &mut Dials, chance: &mut Chance) {
    dials.n = *chance.pick(&[4, 5, 7]).expect("not empty");
    dials.f = (dials.n - 1) / 3;
    dials.crash_ms = chance.between(4_000, 10_000);
    dials.down_ms = chance.between(4_000, 12_000);
    dials.think_ms = chance.between(40, 120);
    dials.checkpoint_interval = 4;
    dials.window_checkpoints = 2;
    dials.snapshot_log_bytes = 65_536;
    dials.value_bytes_max = 6_000;
}

fn clocks(dials: &mut Dials, _: &mut Chance) {
    dials.wrong_clocks = 1;
    dials.skew_ms = 200;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_drawn_run_keeps_the_fault_budget() {
        for profile in PROFILES {
            for seed in 0..500 {
                let dials = profile.draw(seed, 60);
                assert!(dials.f <= (dials.n - 1) / 3);
                assert!(dials.liars + dials.fsync_liars <= dials.f, "{} {seed}: {dials}", profile.name);
                assert!(dials.f > 0 || dials.wipe_ms == 0);
            }
        }
    }

    #[test]
    fn a_dial_is_read_back_under_its_name() {
        let mut dials = Dials::default();
        for (index, name) in Dials::NAMES.iter().enumerate() {
            assert!(dials.set(name, index as u64 + 1));
            assert_eq!(dials.get(name), Some(index as u64 + 1));
        }
        assert!(!dials.set("no_such_dial", 1));
    }
}
