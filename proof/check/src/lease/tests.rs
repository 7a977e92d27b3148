//! A history whose leases are as they should be, and the same with one fault built in: each finding is seen once at least.

use super::*;
use crate::history::{Closed, Entry, Executed};

const BEGUN_MS: u64 = 1_000_000;

fn id(seq: u64) -> CommandId {
    CommandId { session: 1, seq }
}

/// Log time in ms after the beginning, by position. True time is 100 ms later each time, when both replicas execute.
const TIMES: [u64; 8] = [0, 1_000, 1_500, 2_500, 3_000, 3_500, 4_500, 9_000];

struct Story {
    replicas: Vec<ReplicaJournal>,
    terms: Terms,
    calm: Option<Calm>,
}

/// Position 1 (the root's) grants lease 7 for 2 s, 2 to 4 are a segment's: 2 grants lease 8, 3 keeps 7 alive, 4 revokes 8. 5 is
/// the root's again, at 6 lease 7 ends, at 7 nothing happens behind a gap that is cut.
fn story() -> Story {
    let mut terms = Terms {
        begun_unix_ms: BEGUN_MS,
        ahead_ms: 500,
        apart_us: 500_000,
        late_us: Some(1_000_000),
        ..Terms::default()
    };
    let mut ask = |seq: u64, lease: u64, at_us: u64, wish: Wish| {
        terms.asks.insert(id(seq), Ask { lease, at_us, wish });
    };
    ask(1, 7, 900_000, Wish::Grant { ttl_s: 2 });
    ask(2, 8, 1_400_000, Wish::Grant { ttl_s: 60 });
    ask(3, 7, 2_400_000, Wish::Keep);
    ask(4, 8, 2_900_000, Wish::Revoke);
    let mut look = |seq: u64, lease: u64, at_us: u64, answered_us: u64, left_s: Option<u64>| {
        terms.looks.insert(id(seq), Look { lease, at_us, answer: Some((answered_us, left_s)) });
    };
    look(11, 7, 2_700_000, 2_800_000, Some(1));
    look(12, 7, 4_700_000, 4_800_000, None);
    look(13, 8, 1_700_000, 1_800_000, Some(59));
    let mut replicas: Vec<_> = (0..2).map(|id| ReplicaJournal::new(id, 0, true, true)).collect();
    for journal in &mut replicas {
        for position in 1..=7_u64 {
            let at_us = (TIMES[position as usize] + 100) * 1000;
            let ran = |seq: u64| vec![ExecutedCommand { id: id(seq), result: [0; 32] }];
            let commands = if position <= 4 { ran(position) } else { vec![] };
            let chain = [position as u8; 32];
            let branch = (2..=4).contains(&position).then_some((1, position - 1, chain));
            journal.note(
                at_us,
                match branch {
                    Some((epoch, index, chain)) => ReplicaEvent::SegmentExecuted {
                        epoch,
                        index,
                        entry: Entry { position, chain, commands },
                    },
                    None => ReplicaEvent::Executed(Executed {
                        epoch: 0,
                        sequence: position,
                        position,
                        digest: chain,
                        chain: Some(chain),
                        commands,
                    }),
                },
            );
            if position == 1 {
                journal.note(at_us, ReplicaEvent::Opened { epoch: 1, sequence: 1, base: 1 });
            }
            if position == 4 {
                let close = Closed {
                    epoch: 1,
                    sequence: 4,
                    tail: 3,
                    chain: None,
                    marker: true,
                    forced: false,
                    rolled_back: 0,
                };
                journal.note(at_us, ReplicaEvent::Closed(close));
            }
            let mut turn = Turn {
                position,
                branch,
                log_time_ms: Some(BEGUN_MS + TIMES[position as usize]),
                expiry_ms: TIMES[position as usize].min(6_500),
                ..Turn::default()
            };
            match position {
                1 => turn.begun = vec![7],
                2 => turn.begun = vec![8],
                4 => turn.revoked = vec![8],
                6 => {
                    turn.ended = vec![7];
                    turn.vanished = vec![(b"k".to_vec(), 7)];
                }
                _ => {}
            }
            journal.note(at_us, ReplicaEvent::Leased(turn));
        }
    }
    let calm = Some(Calm { begins_at_us: 1_000_000, limit_us: 9, run_ended_at_us: 9_500_000 });
    Story { replicas, terms, calm }
}

impl Story {
    fn judge(&self) -> Report {
        judge(&self.replicas, &HashSet::new(), &self.terms, self.calm)
    }

    /// The turn of one replica at a position.
    fn turn(&mut self, replica: usize, position: u64) -> &mut Turn {
        let turns = self.replicas[replica].events.iter_mut().filter_map(|stamped| match &mut stamped.event {
            ReplicaEvent::Leased(turn) => Some(turn),
            _ => None,
        });
        turns.into_iter().find(|turn| turn.position == position).expect("it was noted")
    }

    fn both(&mut self, position: u64, spoil: impl Fn(&mut Turn)) {
        (0..2).for_each(|replica| spoil(self.turn(replica, position)));
    }

    fn ends_at(&mut self, position: u64) {
        self.both(6, |turn| {
            turn.ended.clear();
            turn.vanished.clear();
        });
        self.both(position, |turn| turn.ended = vec![7]);
    }
}

fn refused(spoil: impl FnOnce(&mut Story), reason: &str) {
    let mut story = story();
    spoil(&mut story);
    let found = story.judge().findings;
    assert!(found.has(reason), "expected {reason:?}, got: {found}");
}

#[test]
fn leases_that_end_when_their_time_has_come_are_accepted_and_counted() {
    let report = story().judge();
    assert!(report.findings.is_empty(), "{}", report.findings);
    let Counts { granted, kept, revoked, expired, expired_in_segment, expired_elsewhere, unseen, .. } =
        report.counts;
    assert_eq!((granted, kept, revoked, expired), (2, 1, 1, 1));
    assert_eq!(
        (expired_in_segment, report.counts.expired_near_switch, expired_elsewhere, unseen),
        (0, 1, 1, 0)
    );
}

#[test]
fn a_lease_that_ends_early_is_refused() {
    refused(|story| story.ends_at(5), "lease 7 ends 1000 ms early by the log's clock, at position 5");
    // It was kept alive, and ends as if it had not been.
    refused(|story| story.ends_at(4), "ends 1500 ms early");
}

#[test]
fn a_lease_that_ends_early_by_true_time_alone_is_refused() {
    let later = |story: &mut Story| {
        story.terms.asks.get_mut(&id(3)).expect("asked").at_us = 3_200_000;
    };
    refused(later, "lease 7 ends 100 ms before it can have run by any clock, at position 6");
}

#[test]
fn a_lease_that_ends_twice_or_was_never_there_is_refused() {
    refused(
        |story| story.both(7, |turn| turn.ended = vec![7]),
        "lease 7 ends twice: at position 6 and at position 7",
    );
    refused(|story| story.both(7, |turn| turn.ended = vec![8]), "lease 8 ends twice");
    refused(
        |story| story.both(7, |turn| turn.ended = vec![5]),
        "lease 5 ends at position 7, and nobody had it",
    );
}

#[test]
fn a_lease_that_stays_is_refused() {
    refused(|story| story.ends_at(7), "lease 7 had run out 0 ms before position 6, and does not end there");
    let calm_is_over = |story: &mut Story| {
        story.both(6, |turn| {
            *turn = Turn { ended: vec![], vanished: vec![], expiry_ms: 4_499, ..turn.clone() }
        });
        story.both(7, |turn| turn.expiry_ms = 4_499);
    };
    refused(calm_is_over, "lease 7 is still there 4900 ms after its time in the calm");
}

#[test]
fn a_lease_that_ends_late_in_the_calm_is_refused() {
    let late = |story: &mut Story| {
        story.terms.looks.clear();
        for stamped in story.replicas.iter_mut().flat_map(|journal| &mut journal.events) {
            if stamped.at_us == 4_600_000 {
                stamped.at_us = 5_700_000;
            }
        }
    };
    refused(late, "lease 7 ends 1100 ms after its time in the calm");
    let mut held_still = story();
    late(&mut held_still);
    held_still.terms.late_us = None;
    assert!(held_still.judge().findings.is_empty(), "whoever orders may hold time still");
    let mut short = story();
    late(&mut short);
    short.terms.whole_since_us = 4_700_000;
    assert!(short.judge().findings.is_empty(), "the log may stand still while a member has no vote");
}

#[test]
fn replicas_that_differ_are_refused() {
    let another = |story: &mut Story| {
        story.turn(1, 6).ended.clear();
        story.turn(1, 6).vanished.clear();
        story.turn(1, 7).ended = vec![7];
    };
    refused(another, "two accounts of leases at position 6");
    refused(|story| story.turn(1, 5).expiry_ms += 1, "two accounts of leases at position 5");
    refused(|story| story.turn(1, 5).log_time_ms = Some(1), "two accounts of leases at position 5");
}

#[test]
fn what_is_executed_again_must_do_the_same() {
    let again = |ended: Vec<u64>| {
        move |story: &mut Story| {
            let turn = Turn { ended: ended.clone(), ..story.turn(0, 6).clone() };
            story.replicas[0].note(9_300_000, ReplicaEvent::Boot);
            story.replicas[0].note(9_400_000, ReplicaEvent::Leased(turn));
        }
    };
    refused(again(vec![]), "two accounts of leases at position 6");
    let mut same = story();
    again(vec![7])(&mut same);
    let report = same.judge();
    assert!(report.findings.is_empty(), "{}", report.findings);
    assert_eq!(report.counts.expired, 1);
}

#[test]
fn a_snapshot_with_other_leases_is_refused() {
    let snapshot = |position: u64, leases: Vec<u64>| {
        move |story: &mut Story| {
            story.replicas[1].note(9_400_000, ReplicaEvent::HoldsLeases { position, leases });
        }
    };
    let mut sound = story();
    snapshot(3, vec![8, 7])(&mut sound);
    let report = sound.judge();
    assert!(report.findings.is_empty(), "{}", report.findings);
    assert_eq!(report.counts.restored, 1);
    refused(snapshot(3, vec![7]), "replica 1 (incarnation 0) goes on from position 3 with leases [7]");
    refused(snapshot(6, vec![7]), "goes on from position 6 with leases [7]");
}

#[test]
fn a_clock_that_goes_back_leaps_or_runs_beside_log_time_is_refused() {
    refused(
        |story| story.both(5, |turn| turn.expiry_ms = 2_900),
        "the expiry clock goes back by 100 ms at position 5",
    );
    refused(
        |story| story.both(7, |turn| turn.expiry_ms = 9_000),
        "the expiry clock leaps 4500 ms at position 7",
    );
    let back = |story: &mut Story| story.both(5, |turn| turn.log_time_ms = Some(BEGUN_MS + 2_999));
    refused(back, "log time goes back by 1 ms at position 5");
    refused(|story| story.both(5, |turn| turn.expiry_ms = 3_501), "the expiry clock ran 501 ms in 500 ms");
    refused(|story| story.both(5, |turn| turn.expiry_ms = 3_499), "the expiry clock ran 499 ms in 500 ms");
    refused(
        |story| story.terms.begun_unix_ms -= 700,
        "log time is 100 ms further than clocks may be at position 1",
    );
}

#[test]
fn grants_revokes_and_keys_that_do_not_follow_from_what_was_asked_are_refused() {
    refused(
        |story| story.both(1, |turn| turn.begun.clear()),
        "position 1 grants leases [], and it should be [7]",
    );
    refused(
        |story| story.both(4, |turn| turn.revoked.clear()),
        "position 4 revokes leases [], and it should be [8]",
    );
    refused(
        |story| story.both(5, |turn| turn.vanished = vec![(b"x".to_vec(), 8)]),
        "time took x at position 5",
    );
    refused(|story| story.turn(0, 5).strayed = vec![8], "leases [8] came or went between entries before 5");
}

#[test]
fn answers_about_leases_that_do_not_fit_are_refused() {
    let told = |seq: u64, left_s: Option<u64>| {
        move |story: &mut Story| {
            let look = story.terms.looks.get_mut(&id(seq)).expect("asked");
            look.answer = look.answer.map(|(at_us, _)| (at_us, left_s));
        }
    };
    refused(told(11, None), "was told that lease 7 is gone, before its end");
    refused(told(12, Some(0)), "was told that lease 7 lives, after its end");
    refused(told(13, Some(61)), "was told that lease 8 lives for another 61 s");
}

#[test]
fn what_a_liar_kept_from_the_log_is_not_held_against_anybody() {
    let mut story = story();
    let turn = Turn { branch: Some((1, 4, [99; 32])), position: 5, ended: vec![7], ..Turn::default() };
    story.replicas[0].note(3_550_000, ReplicaEvent::Leased(turn));
    assert!(story.judge().findings.has("two accounts"));
    let discarded = HashSet::from([(1, 4, [99; 32])]);
    let report = judge(&story.replicas, &discarded, &story.terms, story.calm);
    assert!(report.findings.is_empty(), "{}", report.findings);
}

#[test]
fn a_log_of_which_a_stretch_was_not_seen_is_judged_no_further() {
    let mut story = story();
    for journal in &mut story.replicas {
        journal
            .events
            .retain(|stamped| !matches!(&stamped.event, ReplicaEvent::Leased(turn) if turn.position == 5));
    }
    story.both(7, |turn| turn.ended = vec![99]);
    let report = story.judge();
    assert!(report.findings.is_empty(), "{}", report.findings);
    assert!(report.counts.unseen > 0);
}
