//! The dials of a run of state sync, drawn from the seed, printed with every failure, set one by one.

use crate::dials::dials;
use dwcp_base::Chance;

dials! {
    /// Nodes.
    n,
    /// Liars that are tolerated.
    f,
    /// Length of the safety phase.
    safety_ms,
    /// Length of the liveness phase at most.
    calm_ms,
    /// 1: real Ed25519.
    ed25519,

    /// Mean time between writes of the cluster.
    write_ms,
    /// Operations in a write.
    operations_max,
    /// Keys of the list in `workload` that are written.
    keys,
    /// Share of writes that go through the log.
    log_pm,
    /// How long the log takes to order something.
    order_ms,
    /// How long a node takes to read on in the log.
    read_ms,
    /// Chance that the log orders a frame again.
    again_pm,
    /// How long a writer waits for the log before it pushes.
    fast_path_ms,

    delay_us,
    jitter_us,
    drop_pm,
    duplicate_pm,
    /// Chance that a message takes up to twenty times as long.
    stray_pm,
    /// Mean time between partitions.
    partition_ms,
    partition_long_ms,
    one_way_pm,

    sync_us,
    /// Chance, at each sync, of a crash before it, right after it, or between two of the effects it released.
    crash_ticket_ppm,
    /// Mean time between crashes.
    crash_ms,
    /// Mean time between crashes of all nodes at once.
    blackout_ms,
    down_ms,
    torn_pm,
    /// Mean time between disks lost for good; their nodes sleep and return as new incarnations.
    wipe_ms,
    sleep_ms,
    /// Mean time between snapshots of a node.
    save_ms,

    /// Offsets of honest clocks.
    skew_ms,
    /// Nodes whose clock is off by up to three seconds.
    wrong_clocks,

    exchange_ms,
    exchange_peers,
    fanout,
    audit_ms,
    patience_ms,
    /// Mean time between floors.
    floor_ms,
    /// Floors that a node misses.
    miss_floors_pm,
    /// Mean time between looks at what a node shows.
    look_ms,

    /// Nodes that lie.
    liars,
    /// Bit set of `Trick`s; 0: each liar draws its own.
    tricks,

    /// Keys of one honest node that change by themselves when all is quiet.
    damage,
}

/// The dials of one seed.
#[must_use]
pub fn draw(seed: u64, seconds: u64) -> Dials {
    let mut chance = Chance::new(seed).fork("sync dials");
    let c = &mut chance;
    let n = match c.below(100) {
        0..42 => 3,
        42..82 => 5,
        82..96 => 16,
        _ => 64,
    };
    let mut dials = Dials {
        n,
        safety_ms: seconds * 1_000,
        calm_ms: 120_000,
        ed25519: u64::from(seed % 50 == 7),
        write_ms: c.between(30, 120),
        operations_max: c.between(1, 6),
        keys: c.between(4, 20),
        log_pm: if c.per_mille(600) { c.below(600) } else { 0 },
        order_ms: c.between(2, 80),
        read_ms: c.between(2, 200),
        again_pm: c.below(200),
        fast_path_ms: c.between(20, 400),
        delay_us: c.between(200, 40_000),
        jitter_us: c.between(100, 120_000),
        drop_pm: if c.per_mille(700) { c.below(250) } else { 0 },
        duplicate_pm: c.below(150),
        stray_pm: c.below(60),
        partition_ms: if c.per_mille(600) { c.between(3_000, 12_000) } else { 0 },
        partition_long_ms: c.between(500, 6_000),
        one_way_pm: 300,
        sync_us: c.between(200, 12_000),
        crash_ticket_ppm: if c.per_mille(500) { c.below(8_000) } else { 0 },
        crash_ms: if c.per_mille(500) { c.between(2_000, 12_000) } else { 0 },
        blackout_ms: if c.per_mille(200) { c.between(8_000, 20_000) } else { 0 },
        down_ms: c.between(50, 4_000),
        torn_pm: 400,
        wipe_ms: if c.per_mille(350) { c.between(8_000, 20_000) } else { 0 },
        sleep_ms: c.between(500, 12_000),
        save_ms: c.between(500, 5_000),
        skew_ms: c.below(250),
        wrong_clocks: u64::from(c.per_mille(150)),
        exchange_ms: c.between(200, 2_000),
        exchange_peers: 1,
        fanout: c.between(1, 8),
        audit_ms: c.between(2_000, 15_000),
        patience_ms: c.between(4_000, 15_000),
        floor_ms: if c.per_mille(700) { c.between(400, 3_000) } else { 0 },
        look_ms: c.between(150, 600),
        liars: u64::from(c.per_mille(450)),
        ..Dials::default()
    };
    if c.per_mille(300) {
        dials.liars *= 2;
    }
    dials.damage = if c.per_mille(400) { c.between(1, 4) } else { 0 };
    dials.miss_floors_pm = if c.per_mille(350) { c.between(50, 700) } else { 0 };
    dials.settle();
    dials
}

impl Dials {
    /// What follows from other dials.
    pub fn settle(&mut self) {
        self.f = (self.n.max(1) - 1) / 3;
        self.liars = self.liars.min(self.f);
        if self.n >= 16 {
            // So that everybody hears of everybody within the run.
            self.exchange_ms = self.exchange_ms.min(if self.n > 16 { 400 } else { 700 });
            self.exchange_peers = self.exchange_peers.max(if self.n > 16 { 8 } else { 3 });
        }
        self.wrong_clocks = self.wrong_clocks.min(self.f);
        // The fault budget: whoever holds what is wrong counts as a liar, and where nobody may lie as one of a minority.
        if self.liars + 1 > self.f.max(1) {
            self.damage = 0;
        }
    }
}
