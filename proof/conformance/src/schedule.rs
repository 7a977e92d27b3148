//! Random histories. A schedule follows from its seed alone, never from what an implementation does, so that two
//! implementations can be given the same one: who proposes and reads when, and which faults come when. Playing it to a
//! subject gives an outcome that can be held against another's.

use crate::judge::Fate;
use crate::rule::{Rule, Violation};
use crate::subject::Subject;
use crate::world::{EPOCH, Weather, World, base};
use dwcp_base::{Chance, Micros, Now};
use dwcp_raft::message::Payload;
use dwcp_raft::{Entry, Index, Kind, Limits, RaftNode, SegmentSetup, Timing};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What is done or befalls at one moment. Seats are taken modulo their number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// At whoever leads; at this seat if nobody seems to.
    Propose {
        otherwise: usize,
        bytes: usize,
    },
    ProposeAt {
        seat: usize,
    },
    /// At everybody who believes to lead.
    Read,
    ReadAt {
        seat: usize,
    },
    Transfer {
        to: usize,
    },
    /// Of what the seat applied, this much in a thousand.
    Discard {
        seat: usize,
        per_mille: u64,
    },
    Crash {
        seat: usize,
        for_us: u64,
    },
    CrashLeader {
        for_us: u64,
    },
    /// Everybody at once: only what is on disk is left.
    CrashAll {
        for_us: u64,
    },
    /// Nothing from one to the other; the way back stays open.
    CutOneWay {
        from: usize,
        to: usize,
    },
    Isolate {
        seat: usize,
    },
    IsolateLeader,
    /// Seats whose bit is set against the others.
    Split {
        mask: u64,
    },
    Mend,
    Weather(Weather),
    Disk {
        seat: usize,
        slow_us: u64,
    },
    StickDisk {
        seat: usize,
    },
    UnstickDisks,
    Clock {
        seat: usize,
        rate_per_mille: u64,
    },
    /// A message from the past comes once more.
    Replay {
        pick: u64,
    },
    /// Bytes that are no message, or are damaged, or are another epoch's.
    Garbage {
        from: usize,
        to: usize,
        pick: u64,
    },
    /// A hint, true or not.
    LinkDown {
        seat: usize,
        peer: usize,
    },
    Seal {
        seat: usize,
    },
    Marker,
}

/// How the history is brought to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// All seal, one after the other, while proposals go on.
    SealUnderLoad,
    /// A Marker first, then seals.
    Marker,
    /// Seals with crashes right after them.
    SealAndCrash,
    /// Nobody seals: what survives a restart of all must do.
    RestartAll,
}

/// One history to be.
#[derive(Clone, Debug)]
pub struct Schedule {
    pub seed: u64,
    pub seats: usize,
    pub timing: Timing,
    pub limits: Limits,
    pub deeds: Vec<(u64, Deed)>,
    pub faults_end_us: u64,
    pub ending: Ending,
}

/// What an implementation made of a schedule.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub violation: Option<Violation>,
    pub committed: Vec<Entry>,
    pub fates: BTreeMap<u64, Fate>,
    pub counts: BTreeMap<&'static str, u64>,
}

impl Schedule {
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let chance = &mut Chance::new(seed).fork("schedule");
        let seats = *chance.pick(&[1, 2, 3, 3, 3, 3, 4, 5, 5, 5]).expect("sizes");
        let timing =
            Timing { election_timeout: Micros::from_millis(60), heartbeat_interval: Micros::from_millis(15) };
        let mut limits = Limits::default();
        if chance.per_mille(400) {
            limits.append_entries_max = chance.between(1, 3);
            limits.inflight_entries_max = chance.between(1, 8);
        }
        if chance.per_mille(200) {
            limits.log_entries_max = chance.between(16, 64);
        }
        if chance.per_mille(200) {
            limits.reads_max = usize::try_from(chance.between(1, 4)).expect("small");
        }
        let faults_end_us = 1_000_000;
        let mut deeds = Vec::new();
        let every = |chance: &mut Chance,
                     deeds: &mut Vec<(u64, Deed)>,
                     us: u64,
                     make: &dyn Fn(&mut Chance) -> Deed| {
            let mut at = chance.below(us);
            while at < faults_end_us {
                let deed = make(chance);
                deeds.push((at, deed));
                at += 1 + chance.below(us * 2);
            }
        };
        let seat = move |chance: &mut Chance| usize::try_from(chance.below(seats as u64)).expect("small");
        every(chance, &mut deeds, 9_000, &|c| Deed::Propose { otherwise: seat(c), bytes: size(c) });
        every(chance, &mut deeds, 60_000, &|c| Deed::ProposeAt { seat: seat(c) });
        every(chance, &mut deeds, 12_000, &|_| Deed::Read);
        every(chance, &mut deeds, 80_000, &|c| Deed::ReadAt { seat: seat(c) });
        every(chance, &mut deeds, 40_000, &|c| Deed::Replay { pick: c.next_u64() });
        every(chance, &mut deeds, 50_000, &|c| Deed::Garbage {
            from: seat(c),
            to: seat(c),
            pick: c.next_u64(),
        });
        // Each history has some of the faults, so that they are also met alone.
        let may = |chance: &mut Chance| chance.per_mille(450);
        if may(chance) {
            every(chance, &mut deeds, 150_000, &|c| Deed::Crash {
                seat: seat(c),
                for_us: c.between(1_000, 150_000),
            });
            every(chance, &mut deeds, 200_000, &|c| Deed::CrashLeader { for_us: c.between(1_000, 150_000) });
        }
        if chance.per_mille(250) {
            every(chance, &mut deeds, 350_000, &|c| Deed::CrashAll { for_us: c.between(1_000, 30_000) });
        }
        if may(chance) {
            every(chance, &mut deeds, 120_000, &|c| match c.below(5) {
                0 => Deed::CutOneWay { from: seat(c), to: seat(c) },
                1 => Deed::Isolate { seat: seat(c) },
                2 => Deed::IsolateLeader,
                3 => Deed::Split { mask: c.next_u64() },
                _ => Deed::CutOneWay { from: seat(c), to: seat(c) },
            });
            every(chance, &mut deeds, 180_000, &|_| Deed::Mend);
        }
        if may(chance) {
            every(chance, &mut deeds, 300_000, &|c| Deed::Weather(weather(c)));
        }
        if may(chance) {
            every(chance, &mut deeds, 150_000, &|c| match c.below(3) {
                0 => Deed::StickDisk { seat: seat(c) },
                _ => Deed::Disk { seat: seat(c), slow_us: c.between(1_000, 80_000) },
            });
            every(chance, &mut deeds, 200_000, &|_| Deed::UnstickDisks);
        }
        if may(chance) {
            every(chance, &mut deeds, 200_000, &|c| Deed::Clock {
                seat: seat(c),
                rate_per_mille: *c.pick(&[0, 300, 900, 1_000, 1_100, 3_000]).expect("rates"),
            });
        }
        if may(chance) || limits.log_entries_max < 100 {
            every(chance, &mut deeds, 60_000, &|c| Deed::Discard {
                seat: seat(c),
                per_mille: c.between(300, 1_100),
            });
        }
        if may(chance) {
            every(chance, &mut deeds, 150_000, &|c| Deed::Transfer { to: seat(c) });
        }
        if chance.per_mille(200) && seats >= 3 {
            // A minority only: the others go on.
            for _ in 0..(seats - 1) / 2 {
                deeds.push((
                    chance.between(faults_end_us / 3, faults_end_us),
                    Deed::Seal { seat: seat(chance) },
                ));
            }
        }
        if chance.per_mille(80) {
            deeds.push((chance.between(faults_end_us / 2, faults_end_us), Deed::Marker));
        }
        let ending = *chance
            .pick(&[Ending::SealUnderLoad, Ending::Marker, Ending::SealAndCrash, Ending::RestartAll])
            .expect("endings");
        if may(chance) {
            every(chance, &mut deeds, 100_000, &|c| Deed::LinkDown { seat: seat(c), peer: seat(c) });
        }
        deeds.sort_by_key(|(at, _)| *at);
        Self { seed, seats, timing, limits, deeds, faults_end_us, ending }
    }
}

fn size(chance: &mut Chance) -> usize {
    match chance.below(20) {
        0 => 0,
        1 => 8 + usize::try_from(chance.below(20_000)).expect("small"),
        _ => 8 + usize::try_from(chance.below(60)).expect("small"),
    }
}

fn weather(chance: &mut Chance) -> Weather {
    Weather {
        loss_per_mille: *chance.pick(&[0, 20, 100, 300]).expect("rates"),
        double_per_mille: *chance.pick(&[0, 50, 300]).expect("rates"),
        delay_us: *chance.pick(&[(200, 900), (500, 5_000), (1_000, 20_000)]).expect("delays"),
        late_per_mille: *chance.pick(&[0, 10, 50]).expect("rates"),
        late_us: 300_000,
    }
}

/// Plays one schedule to one subject.
#[must_use]
pub fn play(subject: &dyn Subject, schedule: &Schedule) -> Outcome {
    let mut world =
        World::new(subject, "schedule", schedule.seed, schedule.seats, schedule.timing, schedule.limits);
    world.looks_per_mille = 120;
    let played = catch_unwind(AssertUnwindSafe(|| run(&mut world, schedule)));
    if let Err(panic) = played {
        let said = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("no message");
        world.judge.broken(Rule::NonsenseIsHarmless, format!("it panicked: {said}"));
    }
    Outcome {
        violation: world.judge.found.take(),
        committed: world.judge.committed.iter().map(|committed| committed.entry.clone()).collect(),
        fates: core::mem::take(&mut world.judge.proposals),
        counts: core::mem::take(&mut world.judge.counts),
    }
}

fn run(world: &mut World<'_>, schedule: &Schedule) {
    let chance = &mut Chance::new(schedule.seed).fork("play");
    let begin = world.now_us;
    for (at, deed) in &schedule.deeds {
        world.run_until(begin + at);
        if !world.ok() {
            return;
        }
        perform(world, *deed);
    }
    world.run_until(begin + schedule.faults_end_us);
    world.heal();
    if world.judge.marker.is_none() && !schedule.deeds.iter().any(|(_, deed)| *deed == Deed::Marker) {
        world.judge_progress();
    } else {
        world.run_for(world.patience_us());
    }
    world.judge_survival();
    end(world, schedule.ending, chance);
    world.run_for(world.patience_us() / 2);
    world.judge_seals();
    if world.ok() {
        world.judge_survival();
        world.judge_quiet();
    }
}

fn perform(world: &mut World<'_>, deed: Deed) {
    let seats = world.seats.len();
    match deed {
        Deed::Propose { otherwise, bytes } => {
            let seat = world.leader().unwrap_or(otherwise % seats);
            let _ = world.propose(seat, bytes);
        }
        Deed::ProposeAt { seat } => {
            let _ = world.propose(seat % seats, 12);
        }
        Deed::Read => {
            for seat in 0..seats {
                if world.node(seat).is_some_and(RaftNode::is_leader) {
                    let _ = world.read(seat);
                }
            }
        }
        Deed::ReadAt { seat } => {
            let _ = world.read(seat % seats);
        }
        Deed::Transfer { to } => {
            if let Some(leader) = world.leader() {
                let to = world.seats[to % seats].id;
                let _ = world.transfer(leader, to);
            }
        }
        Deed::Discard { seat, per_mille } => {
            let seat = seat % seats;
            let through = world.seats[seat].applied.0 * per_mille / 1_000;
            world.discard(seat, Index(through.min(world.seats[seat].applied.0)));
        }
        Deed::Crash { seat, for_us } => {
            world.crash(seat % seats, false);
            world.restart_in(seat % seats, for_us);
        }
        Deed::CrashLeader { for_us } => {
            if let Some(leader) = world.leader() {
                world.crash(leader, true);
                world.restart_in(leader, for_us);
            }
        }
        Deed::CrashAll { for_us } => {
            for seat in 0..seats {
                world.crash(seat, true);
                world.restart_in(seat, for_us + seat as u64 * 1_000);
            }
        }
        Deed::CutOneWay { from, to } => {
            world.cuts.insert((from % seats, to % seats));
        }
        Deed::Isolate { seat } => isolate(world, seat % seats),
        Deed::IsolateLeader => {
            if let Some(leader) = world.leader() {
                isolate(world, leader);
            }
        }
        Deed::Split { mask } => {
            for (a, b) in pairs(seats) {
                if (mask >> a) & 1 != (mask >> b) & 1 {
                    world.cuts.insert((a, b));
                }
            }
        }
        Deed::Mend => world.cuts.clear(),
        Deed::Weather(weather) => world.weather = weather,
        Deed::Disk { seat, slow_us } => world.seats[seat % seats].disk_us = (slow_us / 2, slow_us),
        Deed::StickDisk { seat } => world.seats[seat % seats].disk_stuck = true,
        Deed::UnstickDisks => (0..seats).for_each(|seat| world.unstick(seat)),
        Deed::Clock { seat, rate_per_mille } => world.set_clock(seat % seats, rate_per_mille),
        Deed::Replay { pick } => {
            let count = world.old_messages.len() as u64;
            if count > 0 {
                let at = usize::try_from(pick % count).expect("small");
                let letter = world.old_messages[at].clone();
                world.deliver(&letter);
            }
        }
        Deed::Garbage { from, to, pick } => {
            let (from, to) = (from % seats, to % seats);
            if from != to {
                let bytes = garbage(world, pick);
                world.inject(from, to, &bytes);
            }
        }
        Deed::LinkDown { seat, peer } => world.link_down(seat % seats, peer % seats),
        Deed::Seal { seat } => {
            let _ = world.seal(seat % seats);
        }
        Deed::Marker => {
            if let Some(leader) = world.leader() {
                let _ = world.propose_marker(leader);
            }
        }
    }
}

fn pairs(seats: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..seats).flat_map(move |a| (0..seats).map(move |b| (a, b))).filter(|(a, b)| a != b)
}

/// Cuts one seat off in both directions.
pub fn isolate(world: &mut World<'_>, seat: usize) {
    for other in (0..world.seats.len()).filter(|other| *other != seat) {
        world.cuts.insert((seat, other));
        world.cuts.insert((other, seat));
    }
}

/// Bytes that carry no meaning: noise, or the beginning of a real message. Changing bytes inside of one could make a
/// message that means something else, which is a lie and another part of the suite.
fn garbage(world: &World<'_>, pick: u64) -> bytes::Bytes {
    let mut chance = Chance::new(pick);
    let real = world.old_messages.back().map(|letter| letter.bytes.clone()).filter(|_| chance.per_mille(500));
    match real {
        Some(real) => real.slice(..usize::try_from(chance.below(real.len() as u64)).expect("small")),
        None => {
            (0..chance.below(80)).map(|_| (chance.next_u64() & 0xff) as u8 | 0x80).collect::<Vec<u8>>().into()
        }
    }
}

fn end(world: &mut World<'_>, ending: Ending, chance: &mut Chance) {
    let mut order: Vec<usize> = (0..world.seats.len()).collect();
    chance.shuffle(&mut order);
    if ending == Ending::Marker {
        if let Some(leader) = world.leader() {
            let marked = world.propose_marker(leader);
            if matches!(marked, Some(Ok(_))) {
                let refused = world.propose(leader, 12);
                let read = world.read(leader);
                let ended = matches!(refused, Some(Err(_))) && matches!(read, Some(Err(_)));
                world.judge.hold(Rule::MarkerEnds, ended, || {
                    format!("the leader holds a Marker and answers {refused:?} and {read:?}")
                });
            }
        }
        world.run_for(chance.below(20_000));
    }
    if ending == Ending::RestartAll {
        for seat in 0..world.seats.len() {
            world.crash(seat, true);
            world.open(seat);
        }
        if world.judge.marker.is_none() && !world.seats.iter().any(|seat| seat.sealed.is_some()) {
            world.run_for(10_000);
        }
        return;
    }
    for seat in order {
        for _ in 0..3 {
            if let Some(leader) = world.leader() {
                let _ = world.propose(leader, 12);
                let _ = world.read(leader);
            }
            world.run_for(chance.below(8_000));
        }
        let _ = world.seal(seat);
        let after = world.propose(seat, 12);
        world.judge.hold(Rule::SealIsSilent, !matches!(after, Some(Ok(_))), || {
            format!("sealed seat {seat} takes a proposal")
        });
        if ending == Ending::SealAndCrash {
            world.run_for(chance.below(2_000));
            world.crash(seat, false);
            world.open(seat);
            // A seal that did not reach the disk was promised to nobody; the caller seals again.
            let _ = world.seal(seat);
        }
    }
}

/// Whether entries are a log that Raft can have made: terms never fall, whoever led a term began it with an empty entry, and
/// a Marker is the last.
///
/// # Errors
/// The first entry that cannot be.
pub fn well_formed(committed: &[Entry]) -> Result<(), String> {
    let mut term = dwcp_raft::Term::ZERO;
    for (at, entry) in (1..).zip(committed) {
        let kind = entry.body.kind();
        if entry.term < term {
            return Err(format!("entry {at} is of term {}, behind one of term {term}", entry.term));
        }
        if entry.term > term && kind != Kind::Empty {
            return Err(format!("term {} begins with a {kind:?} at entry {at}", entry.term));
        }
        if kind == Kind::Marker && at != committed.len() {
            return Err(format!("a Marker at entry {at} of {}", committed.len()));
        }
        term = entry.term;
    }
    Ok(())
}

/// Whether another implementation can explain this history: it is a log that can be, and a lone member, given the same
/// payloads in the same order, orders the same bytes, under a chain that is theirs.
///
/// # Errors
/// Where the two part.
pub fn explain(by: &dyn Subject, committed: &[Entry]) -> Result<(), String> {
    well_formed(committed)?;
    let me = dwcp_base::ReplicaId(1);
    let timing =
        Timing { election_timeout: Micros::from_millis(10), heartbeat_interval: Micros::from_millis(1) };
    let setup = SegmentSetup {
        epoch: EPOCH,
        me,
        members: vec![me],
        first_leader: Some(me),
        base: base(),
        timing,
        limits: Limits::default(),
        seed: 1,
        mutants: by.mutants(),
    };
    let mut now = Now { mono: Micros(1), wall_ms: 1 };
    let mut node = by.maker().open(setup, &[], now).map_err(|error| error.to_string())?;
    let mut said = Vec::new();
    let mut applied = Index::ZERO;
    let wanted: Vec<Payload> =
        committed.iter().map(Entry::payload).filter(|payload| *payload != Payload::Empty).collect();
    let mut next = 0;
    for _ in 0..wanted.len() * 4 + 1_000 {
        if node.is_leader()
            && let Some(payload) = wanted.get(next)
        {
            node.propose(now, payload).map_err(|error| format!("{payload:?} is refused: {error}"))?;
            next += 1;
        } else {
            now.mono = now.mono.plus(Micros(500));
            node.tick(now);
        }
        node.settle(now);
        for _ in 0..4 {
            for action in node.take() {
                match action {
                    dwcp_raft::Action::Persist { ticket, .. } => node.on_durable(now, ticket),
                    dwcp_raft::Action::Committed { through } => {
                        said.extend(node.entries(applied.next(), through, usize::MAX));
                        applied = through;
                    }
                    _ => {}
                }
            }
            node.settle(now);
        }
    }
    well_formed(&said).map_err(|why| format!("{} itself: {why}", by.name()))?;
    let mut log = base();
    for entry in &said {
        log.append(&entry.digest());
    }
    let chain = node.place(applied).map(|place| place.chain);
    if chain != Some(log.chain) {
        return Err(format!("{} ends with chain {chain:?}, its entries with {:?}", by.name(), log.chain));
    }
    let said: Vec<Payload> =
        said.iter().map(Entry::payload).filter(|payload| *payload != Payload::Empty).collect();
    if said == wanted {
        return Ok(());
    }
    let at = said.iter().zip(&wanted).position(|(a, b)| a != b).unwrap_or(said.len().min(wanted.len()));
    Err(format!("{} cannot explain entry {} of {}", by.name(), at + 1, wanted.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use dwcp_raft::{Body, Term};

    fn log(entries: &[(u64, Payload)]) -> Vec<Entry> {
        let entry = |(term, payload): &(u64, Payload)| {
            let body = Body::new(payload).expect("a small payload");
            Entry { term: Term(*term), body }
        };
        entries.iter().map(entry).collect()
    }

    fn tick() -> Payload {
        Payload::Tick { time: dwcp_base::LogTime(1) }
    }

    #[test]
    fn only_a_log_that_raft_can_have_made_is_explained() {
        let good = log(&[(1, Payload::Empty), (1, tick()), (3, Payload::Empty), (3, Payload::Marker)]);
        assert_eq!(well_formed(&good), Ok(()));
        let own = crate::Own::default();
        assert_eq!(explain(&own, &good), Ok(()));
        let refused = |entries: &[(u64, Payload)], why: &str| {
            let found = explain(&own, &log(entries)).expect_err("it cannot be");
            assert!(found.contains(why), "{found}");
        };
        refused(&[(2, Payload::Empty), (1, Payload::Empty)], "entry 2 is of term 1");
        refused(&[(1, Payload::Empty), (2, tick())], "term 2 begins with a Tick");
        refused(&[(1, Payload::Empty), (1, Payload::Marker), (1, tick())], "a Marker at entry 2 of 3");
    }
}
