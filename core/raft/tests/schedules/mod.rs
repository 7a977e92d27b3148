//! Chance: many seeds, each a history with lost, late and doubled messages, crashes that lose what was not synced,
//! partitions, transfers, discarded logs and snapshots, then a calm in which everything must be finished. Every tenth
//! thing that happens is drawn from the seed, so a failing seed is the whole story.

use crate::net::{Counts, Faults, Net, batch};
#[cfg(feature = "mutants")]
use dwcp_base::Mutant;
use dwcp_base::{Chance, Micros, Mutants};
use dwcp_raft::{Index, Limits, Payload, RaftNode};

/// How the segment ends, if it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    Goes,
    /// A leader appends a Marker halfway.
    Marked,
    /// Members are sealed one by one halfway.
    Sealed,
}

/// A net with narrow bounds, so that few entries reach all of them.
pub fn narrow(net: &mut Net, chance: &mut Chance) {
    net.limits = Limits {
        log_entries_max: chance.between(64, 512),
        append_entries_max: chance.between(1, 6),
        append_bytes_max: chance.between(1, 4) << 10,
        inflight_entries_max: chance.between(1, 12),
        inflight_bytes_max: chance.between(1, 8) << 10,
        reads_max: 16,
        ..Limits::default()
    };
    net.faults = Faults {
        drop_pm: chance.below(120),
        double_pm: chance.below(80),
        delay_us: chance.between(100, 3_000),
        jitter_us: chance.between(0, 20_000),
        sync_us: chance.between(50, 20_000),
        burst_pm: chance.below(700),
    };
}

fn strike(net: &mut Net, chance: &mut Chance, ending: Ending, late: bool) {
    let ids: Vec<u8> = net.members.keys().copied().collect();
    let id = *chance.pick(&ids).unwrap();
    let is_up = net.members[&id].raft.is_some();
    match chance.below(100) {
        0..=1 if is_up => net.crash(id),
        2..=7 if !is_up => net.restart(id),
        8 => net.isolate(id),
        9 => {
            let other = *chance.pick(&ids).unwrap();
            net.cut.insert((id, other));
        }
        10..=13 => net.heal(),
        14 => {
            if let Some(leader) = net.leader() {
                net.transfer(leader, id);
            }
        }
        15..=18 if is_up => {
            let through = chance.below(net.members[&id].applied.index.0 + 1);
            net.discard(id, Index(through));
        }
        19..=35 if is_up => {
            let _ = net.read(id);
        }
        91 if is_up => {
            let peer = *chance.pick(&ids).unwrap();
            net.link_down(id, peer);
        }
        36 if ending == Ending::Marked && late => {
            if let Some(leader) = net.leader() {
                let _ = net.propose(leader, &Payload::Marker);
            }
        }
        37 if ending == Ending::Sealed && late && is_up => {
            net.seal(id);
        }
        38..=90 => {
            // Whoever believes to lead is asked, also one that was deposed.
            let leading: Vec<u8> = net.up().into_iter().filter(|id| net.raft(*id).is_leader()).collect();
            if let Some(leader) = chance.pick(&leading) {
                let frame = "x".repeat(usize::try_from(chance.between(1, 600)).unwrap());
                let _ = net.propose(*leader, &batch(&frame));
            }
        }
        _ => {}
    }
}

/// One history. What the judges found is in the net.
pub fn play(seed: u64, ending: Ending, mutants: Mutants) -> Net {
    let mut chance = Chance::new(seed).fork("schedule");
    let n = *chance.pick(&[1, 2, 3, 3, 3, 4, 5, 5]).unwrap();
    let mut net = Net::with(n, seed, |net| {
        narrow(net, &mut chance);
        net.mutants = mutants;
        if chance.per_mille(300) {
            net.no_first_leader();
        }
    });
    let end = net.now.plus(Micros::from_millis(4_000));
    let half = net.now.plus(Micros::from_millis(2_000));
    while net.now < end && net.violations.is_empty() {
        let pause = Micros(chance.between(100, 12_000));
        net.run_until(net.now.plus(pause));
        let late = net.now > half;
        strike(&mut net, &mut chance, ending, late);
    }
    if !net.violations.is_empty() {
        return net;
    }
    net.heal();
    net.faults = Faults::NONE;
    for id in 0..n {
        if net.members[&id].raft.is_none() {
            net.restart(id);
        }
    }
    if ending == Ending::Goes {
        finish(&mut net);
    } else {
        net.run_for(3_000);
    }
    net
}

/// In calm, a new proposal commits everywhere and reads are answered. A few attempts: whoever leads first may be one whom
/// the others have left already.
fn finish(net: &mut Net) {
    for _ in 0..60 {
        for id in net.up() {
            // Logs that are full are discarded, as nodes with snapshots do.
            let applied = net.members[&id].applied.index;
            net.discard(id, applied);
        }
        let attempt = net.leader().and_then(|leader| {
            let place = net.propose(leader, &batch("last")).ok()?;
            Some((place, net.read(leader).ok()?))
        });
        net.run_for(200);
        if let Some((place, token)) = attempt
            && net.members.values().all(|member| member.applied.index >= place.index)
            && net.reads_done.get(&token).copied().flatten().is_some()
        {
            return;
        }
    }
    let state: Vec<String> =
        net.members.iter().map(|(id, member)| format!("{id}: {:?}", member.applied)).collect();
    net.violations.push(format!("nothing new is applied everywhere and read in calm: {state:?}"));
}

fn add(total: &mut Counts, one: &Counts) {
    total.committed += one.committed;
    total.elections += one.elections;
    total.replaced += one.replaced;
    total.crashes += one.crashes;
    total.behind += one.behind;
    total.installs += one.installs;
    total.reads += one.reads;
    total.reads_failed += one.reads_failed;
    total.transfers += one.transfers;
    total.lost_records += one.lost_records;
}

fn all(seeds: std::ops::Range<u64>, ending: Ending) -> Counts {
    let mut total = Counts::default();
    for seed in seeds {
        let net = play(seed, ending, Mutants::default());
        assert!(net.violations.is_empty(), "seed {seed}, {ending:?}: {:#?}", net.violations);
        assert!(net.counts.sent < 30_000, "seed {seed}: a storm of {} messages", net.counts.sent);
        for reason in net.refused.keys() {
            let expected =
                ["sealed", "entries behind a Marker", "the log is full: a snapshot must be written first"];
            assert!(expected.contains(reason), "seed {seed}: an honest member is refused: {reason}");
        }
        add(&mut total, &net.counts);
    }
    total
}

#[test]
fn two_hundred_histories_hold_all_promises_and_end_well() {
    let total = all(0..200, Ending::Goes);
    println!("{total:#?}");
    // A quiet schedule would prove little.
    assert!(total.committed > 10_000 && total.elections > 500 && total.replaced > 50, "{total:?}");
    assert!(total.crashes > 200 && total.lost_records > 200, "{total:?}");
    assert!(total.behind > 50 && total.installs > 50 && total.transfers > 100, "{total:?}");
    assert!(total.reads > 500 && total.reads_failed > 20, "{total:?}");
}

#[test]
fn sixty_histories_that_end_with_a_marker_hold_all_promises() {
    all(1_000..1_060, Ending::Marked);
}

#[test]
fn sixty_histories_that_are_sealed_hold_all_promises() {
    all(2_000..2_060, Ending::Sealed);
}

#[test]
fn one_seed_is_one_history() {
    let (a, b) = (play(5, Ending::Goes, Mutants::default()), play(5, Ending::Goes, Mutants::default()));
    assert_eq!((a.now, a.counts.sent, a.counts.sent_bytes), (b.now, b.counts.sent, b.counts.sent_bytes));
    assert_eq!(a.truth, b.truth);
}

#[cfg(feature = "mutants")]
mod mutants {
    use super::*;

    /// The first seed in which the judges see that a rule is switched off.
    fn caught(mutant: Mutant, ending: Ending, seeds: std::ops::Range<u64>) -> Option<(u64, String)> {
        seeds
            .map(|seed| (seed, play(seed, ending, Mutants::default().with(mutant))))
            .find_map(|(seed, net)| net.violations.first().map(|violation| (seed, violation.clone())))
    }

    /// The others are noticed by the stories made for them: chance seldom meets what they need.
    #[test]
    fn chance_notices_rules_that_are_switched_off() {
        for (mutant, ending) in [
            (Mutant::RaftAckBeforeSync, Ending::Goes),
            (Mutant::RaftForgetsVoteOnRestart, Ending::Goes),
            (Mutant::RaftLongestIndexVote, Ending::Goes),
            (Mutant::RaftMarkerHolderConfirmsReads, Ending::Marked),
            (Mutant::RaftIgnoresSeal, Ending::Sealed),
        ] {
            let found = caught(mutant, ending, 0..400);
            println!("{mutant:?}: {found:?}");
            assert!(found.is_some(), "{mutant:?} was not noticed");
        }
    }

    #[test]
    fn the_harmless_mutant_changes_nothing() {
        assert_eq!(caught(Mutant::Harmless, Ending::Goes, 0..30), None);
    }
}
