//! Directed stories: situations that chance seldom meets and that each rule of the contract deserves. A story arranges
//! the world and lets the judges decide; where a story has a claim of its own it says so to the judge.

use crate::rule::{Rule, Violation};
use crate::schedule::isolate;
use crate::subject::{Scene, Subject};
use crate::world::{EPOCH, Letter, World, holds_marker};
use bytes::Bytes;
use dwcp_base::limits::PROPOSAL_BYTES_MAX;
use dwcp_base::{Chance, Epoch, LogTime, Micros};
use dwcp_raft::message::Payload;
use dwcp_raft::{Index, Limits, Place, ProposeError, RaftNode, ReadError, Timing, TransferError};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// One story: its name is its claim.
#[derive(Clone, Copy)]
pub struct Story {
    pub name: &'static str,
    seats: usize,
    tell: fn(&mut World<'_>, &mut Chance),
}

impl core::fmt::Debug for Story {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.name)
    }
}

const fn story(name: &'static str, seats: usize, tell: fn(&mut World<'_>, &mut Chance)) -> Story {
    Story { name, seats, tell }
}

/// All stories, in the order they are told.
pub const STORIES: &[Story] = &[
    story("a lone member commits and answers reads", 1, lone_member),
    story("only the leader takes proposals, reads and transfers", 3, only_the_leader),
    story("payloads that nobody would accept are refused", 1, unacceptable_payloads),
    story("a deposed leader answers no read", 3, deposed_leader),
    story("entries of earlier terms commit only behind one of this term", 5, figure_eight),
    story("nothing is committed by those who did not sync", 3, unsynced_majority),
    story("a leader whose disk stands still does not count itself", 2, leader_with_stuck_disk),
    story("a vote is remembered by the disk", 3, votes_and_crashes),
    story("a vote is remembered through a restart", 3, votes_through_restarts),
    story("leadership moves when asked", 3, transfer),
    story("a transfer to the dead is given up", 3, transfer_to_the_dead),
    story("a seal ends everything for this member", 3, seal),
    story("a Marker ends the segment in order", 3, marker),
    story("a Marker that was not committed is replaced", 3, marker_replaced),
    story("who holds a Marker confirms no read", 5, marker_and_reads),
    story("who slept past a discard goes on from a snapshot", 3, snapshot),
    story("queues keep their bounds", 3, bounds),
    story("records of another epoch, damaged or missing, are refused", 3, strange_records),
    story("messages of another epoch and noise are inert", 3, noise),
    story("lies change nothing that was committed", 3, lies),
];

/// Tells one story to a subject.
#[must_use]
pub fn tell(
    subject: &dyn Subject,
    story: &Story,
    seed: u64,
) -> (Option<Violation>, BTreeMap<&'static str, u64>) {
    let timing =
        Timing { election_timeout: Micros::from_millis(60), heartbeat_interval: Micros::from_millis(15) };
    let mut limits = Limits::default();
    if matches!(story.name, "entries of earlier terms commit only behind one of this term") {
        (limits.append_entries_max, limits.inflight_entries_max) = (1, 1);
    }
    if story.name == "queues keep their bounds" {
        (limits.uncommitted_bytes_max, limits.reads_max) = (PROPOSAL_BYTES_MAX as u64, 5);
        (limits.inflight_entries_max, limits.inflight_bytes_max) = (8, 1 << 20);
    }
    let mut world = World::new(subject, story.name, seed, story.seats, timing, limits);
    let chance = &mut Chance::new(seed).fork(story.name);
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (story.tell)(&mut world, chance))) {
        let said = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("no message");
        world.judge.broken(Rule::NonsenseIsHarmless, format!("it panicked: {said}"));
    }
    (world.judge.found.take(), world.judge.counts)
}

// --- common ground ---------------------------------------------------------------------------------------------------

/// Runs until somebody leads and has committed something of its term; its seat.
fn elect(world: &mut World<'_>) -> Option<usize> {
    let leads = |world: &World<'_>| {
        world.leader().filter(|s| {
            world
                .node(*s)
                .is_some_and(|node| node.place(node.commit()).is_some_and(|place| place.term == node.term()))
        })
    };
    let patience = world.patience_us();
    if !world.run_to(patience, |world| leads(world).is_some()) {
        world.judge.broken(Rule::Progress, format!("no leader committed anything within {patience} us"));
        return None;
    }
    leads(world)
}

/// Proposes at this seat and runs until it is committed there.
fn commit(world: &mut World<'_>, s: usize) -> Option<Place> {
    let answer = world.propose(s, 16);
    let Some(Ok(place)) = answer else {
        world
            .judge
            .broken(Rule::Progress, format!("the leader, seat {s}, answers a proposal with {answer:?}"));
        return None;
    };
    let patience = world.patience_us();
    let done = world.run_to(patience, |world| world.seats[s].applied >= place.index);
    world.judge.hold(Rule::Progress, done, || format!("{place:?} did not commit within {patience} us"));
    done.then_some(place)
}

fn others(world: &World<'_>, s: usize) -> Vec<usize> {
    (0..world.seats.len()).filter(|other| *other != s).collect()
}

fn finish(world: &mut World<'_>) {
    world.heal();
    world.judge_progress();
    world.judge_survival();
    world.run_for(world.patience_us() / 3);
    world.judge_quiet();
}

/// Nobody hears the seat; it still hears and sends what is not cut otherwise.
fn mute(world: &mut World<'_>, s: usize) {
    for other in others(world, s) {
        world.cuts.insert((s, other));
    }
}

// --- the stories -----------------------------------------------------------------------------------------------------

fn lone_member(world: &mut World<'_>, _: &mut Chance) {
    let Some(leader) = elect(world) else { return };
    let _ = commit(world, leader);
    let _ = world.read(leader);
    world.run_for(50_000);
    world.judge.hold(Rule::ReadsAreAnswered, world.judge.counts.contains_key("reads ready"), || {
        "a lone member does not answer a read".to_owned()
    });
    finish(world);
}

fn only_the_leader(world: &mut World<'_>, _: &mut Chance) {
    let Some(leader) = elect(world) else { return };
    world.run_for(50_000);
    let id = world.seats[leader].id;
    for follower in others(world, leader) {
        let answers = (
            world.propose(follower, 9).and_then(Result::err),
            world.read(follower).and_then(Result::err),
            world.transfer(follower, id).and_then(Result::err),
        );
        let wanted = (
            Some(ProposeError::NotLeader { leader: Some(id) }),
            Some(ReadError::NotLeader { leader: Some(id) }),
            Some(TransferError::NotLeader { leader: Some(id) }),
        );
        world.judge.hold(Rule::FaceIsConsistent, answers == wanted, || {
            format!("follower {follower} answers {answers:?}, the leader is {id}")
        });
    }
    let me = world.transfer(leader, id);
    let stranger = world.transfer(leader, dwcp_base::ReplicaId(200));
    let refused = Some(Err(TransferError::NotAMember));
    world.judge.hold(Rule::FaceIsConsistent, me == refused && stranger == refused, || {
        format!("a transfer to oneself: {me:?}, to a stranger: {stranger:?}")
    });
    finish(world);
}

fn unacceptable_payloads(world: &mut World<'_>, _: &mut Chance) {
    let Some(leader) = elect(world) else { return };
    let too_long =
        Payload::Batch { time: LogTime(1), frames: vec![Bytes::from(vec![1; PROPOSAL_BYTES_MAX])] };
    let empty_frame = Payload::Batch { time: LogTime(1), frames: vec![Bytes::new()] };
    let now = world.now(leader);
    for payload in [too_long, empty_frame] {
        let node = world.seats[leader].node.as_deref_mut().expect("it leads");
        let before = node.last();
        let answer = node.propose(now, &payload);
        let after = node.last();
        let refused = matches!(answer, Err(ProposeError::Invalid(_))) && before == after;
        world
            .judge
            .hold(Rule::FaceIsConsistent, refused, || format!("a bad payload is answered with {answer:?}"));
    }
    finish(world);
}

/// Raft section 8 and thesis section 6.4: a leader must ask before it answers a read.
fn deposed_leader(world: &mut World<'_>, _: &mut Chance) {
    let Some(old) = elect(world) else { return };
    world.run_for(40_000);
    // It neither hears nor notices that time passes.
    isolate(world, old);
    world.set_clock(old, 0);
    let patience = world.patience_us();
    let moved = world.run_to(patience, |world| world.leader().is_some_and(|s| s != old));
    world.judge.hold(Rule::Progress, moved, || "two of three elect nobody".to_owned());
    let Some(new) = world.leader().filter(|s| *s != old) else { return };
    if !world.run_to(patience, |world| world.node(new).is_some_and(RaftNode::is_leader)) {
        return;
    }
    let _ = commit(world, new);
    for _ in 0..3 {
        let _ = world.read(old);
        world.run_for(10_000);
    }
    world.judge.count("reads at a deposed leader");
    finish(world);
}

/// Raft figure 8.
fn figure_eight(world: &mut World<'_>, _: &mut Chance) {
    let Some(first) = elect(world) else { return };
    let _ = commit(world, first);
    world.run_for(60_000);
    // An entry reaches one other member only; its answer is lost, then the leader's power.
    let seats = others(world, first);
    let second = seats[0];
    for other in &seats[1..] {
        world.cuts.insert((first, *other));
    }
    let Some(Ok(place)) = world.propose(first, 16) else { return };
    let has =
        move |world: &World<'_>, s: usize| world.node(s).is_some_and(|node| node.durable() >= place.index);
    if !world.run_to(40_000, |world| has(world, second) && has(world, first)) {
        return;
    }
    world.crash(first, false);
    world.cuts.clear();
    isolate(world, second);
    // Another member is elected without it and appends its first entry, which nobody hears of.
    let patience = world.patience_us();
    let elected = |world: &World<'_>| {
        seats[1..].iter().copied().find(|s| world.node(*s).is_some_and(RaftNode::is_leader))
    };
    if !world.run_to(patience, |world| elected(world).is_some()) {
        world.judge.broken(Rule::Progress, "three of five elect nobody".to_owned());
        return;
    }
    let third = elected(world).expect("it was just seen");
    mute(world, third);
    world.unsay(third);
    world.run_for(3_000);
    world.crash(third, false);
    // The first comes back with two that know its entry or nothing better.
    world.open(first);
    world.cuts.clear();
    isolate(world, third);
    let last = *seats[1..].iter().find(|s| **s != third).expect("three others");
    isolate(world, last);
    let leads = |world: &World<'_>| {
        [first, second].into_iter().find(|s| world.node(*s).is_some_and(RaftNode::is_leader))
    };
    if world.run_to(patience, |world| leads(world).is_some()) {
        // Every commit on the way is judged by who could be elected if all crashed there.
        world.run_for(60_000);
        world.judge.count("figure 8 arranged");
    }
    finish(world);
}

/// Followers hold an entry in memory, none has synced it: it may not commit, for a power cut would take it.
fn unsynced_majority(world: &mut World<'_>, _: &mut Chance) {
    let Some(leader) = elect(world) else { return };
    world.run_for(40_000);
    for other in others(world, leader) {
        world.seats[other].disk_stuck = true;
    }
    let Some(Ok(place)) = world.propose(leader, 16) else { return };
    world.run_for(30_000);
    let early = world.seats[leader].applied >= place.index;
    world.judge.hold(Rule::PromisesAreDurable, !early, || {
        format!("{place:?} commits with one durable copy of three")
    });
    for seat in 0..3 {
        world.crash(seat, true);
        world.open(seat);
    }
    finish(world);
}

fn leader_with_stuck_disk(world: &mut World<'_>, _: &mut Chance) {
    let Some(leader) = elect(world) else { return };
    world.run_for(40_000);
    world.seats[leader].disk_stuck = true;
    let Some(Ok(place)) = world.propose(leader, 16) else { return };
    world.run_for(30_000);
    let early = world.seats[leader].applied >= place.index;
    world
        .judge
        .hold(Rule::PromisesAreDurable, !early, || format!("{place:?} commits with one durable copy of two"));
    finish(world);
}

/// Elections among members whose disks are slow and whose power fails just after they voted.
fn votes_and_crashes(world: &mut World<'_>, chance: &mut Chance) {
    for seat in 0..3 {
        world.seats[seat].disk_us = (5_000, 25_000);
    }
    for _ in 0..25 {
        world.run_for(chance.between(5_000, 60_000));
        let victim = usize::try_from(chance.below(3)).expect("small");
        world.crash(victim, chance.per_mille(700));
        world.restart_in(victim, chance.below(4_000));
        if let Some(leader) = world.leader().filter(|_| chance.per_mille(300)) {
            isolate(world, leader);
        } else {
            world.cuts.clear();
        }
        if !world.ok() {
            return;
        }
    }
    world.cuts.clear();
    finish(world);
}

/// Two candidates that do not hear each other ask the same voter, whose power fails as soon as it has voted.
fn votes_through_restarts(world: &mut World<'_>, chance: &mut Chance) {
    let voter = usize::try_from(chance.below(3)).expect("small");
    let candidates = others(world, voter);
    // Slow enough to be no candidate itself, most of the time.
    world.set_clock(voter, 600);
    world.cuts.extend([(candidates[0], candidates[1]), (candidates[1], candidates[0])]);
    world.weather.delay_us = (1_000, 30_000);
    for _ in 0..30 {
        let before = world.judge.votes_of(voter);
        if !world.run_to(400_000, |world| world.judge.votes_of(voter) > before) {
            break;
        }
        // Its vote is on disk and lost on the way; the other candidate's request may be under way.
        world.unsay(voter);
        world.crash(voter, true);
        world.open(voter);
        world.judge.count("votes before a restart");
        world.run_for(40_000);
        if let Some(leader) = world.leader() {
            world.crash(leader, true);
            world.open(leader);
        }
    }
    finish(world);
}

/// Thesis section 3.10.
fn transfer(world: &mut World<'_>, _: &mut Chance) {
    for _ in 0..3 {
        let Some(leader) = elect(world) else { return };
        world.run_for(40_000);
        let to = others(world, leader)[world.now_us as usize % 2];
        let id = world.seats[to].id;
        for _ in 0..4 {
            let _ = world.propose(leader, 16);
        }
        let begun = world.transfer(leader, id);
        world
            .judge
            .hold(Rule::TransferMoves, begun == Some(Ok(())), || format!("a transfer is answered {begun:?}"));
        let _ = world.propose(leader, 16);
        // Well before anybody's election timeout.
        let moved = world.run_to(30_000, |world| world.node(to).is_some_and(RaftNode::is_leader));
        world.judge.hold(Rule::TransferMoves, moved, || {
            format!("seat {to} does not lead 30 ms after it was asked to")
        });
        if !world.ok() {
            return;
        }
    }
    finish(world);
}

fn transfer_to_the_dead(world: &mut World<'_>, _: &mut Chance) {
    let Some(leader) = elect(world) else { return };
    let dead = others(world, leader)[0];
    world.crash(dead, false);
    let id = world.seats[dead].id;
    let _ = world.transfer(leader, id);
    // It gives up after an election timeout, and the two go on with or without another election.
    world.run_for(150_000);
    let Some(leader) = elect(world) else { return };
    let _ = commit(world, leader);
    finish(world);
}

fn seal(world: &mut World<'_>, chance: &mut Chance) {
    let Some(leader) = elect(world) else { return };
    for _ in 0..5 {
        let _ = world.propose(leader, 16);
        let _ = world.read(leader);
    }
    world.run_for(chance.below(3_000));
    let victim = if chance.per_mille(500) { leader } else { others(world, leader)[0] };
    let Some(sealed) = world.seal(victim) else { return };
    let to = others(world, victim)[0];
    let to_id = world.seats[to].id;
    for round in 0..3 {
        let answers = (
            world.propose(victim, 9).and_then(Result::err),
            world.read(victim).and_then(Result::err),
            world.transfer(victim, to_id).map(|answer| answer.is_err()),
        );
        let wanted = (Some(ProposeError::Sealed), Some(ReadError::Sealed), Some(true));
        world
            .judge
            .hold(Rule::SealIsSilent, answers == wanted, || format!("sealed seat {victim}: {answers:?}"));
        // Whatever it is told, new or old, it stays silent: the world judges every word.
        for _ in 0..3 {
            let leader = world.leader();
            if let Some(leader) = leader {
                let _ = world.propose(leader, 16);
            }
            world.run_for(30_000);
            for letter in world.old_messages.clone() {
                if letter.to == victim {
                    world.deliver(&letter);
                }
            }
        }
        let place = sealed.point;
        let node = world.node(victim);
        let serves = node.is_some_and(|node| {
            let first = node.border().index.next();
            let held = (place.index.0 + 1).saturating_sub(first.0);
            node.entries(first, place.index, usize::MAX).len() as u64 == held
        });
        world
            .judge
            .hold(Rule::SealIsTrue, serves, || format!("sealed seat {victim} does not serve its entries"));
        if round == 0 {
            let durable = world.run_to(world.patience_us(), |world| world.seats[victim].seal_durable);
            world
                .judge
                .hold(Rule::SealIsTrue, durable, || "no record of the seal reaches the disk".to_owned());
        }
        world.crash(victim, true);
        world.open(victim);
    }
    finish(world);
    for seat in 0..3 {
        let _ = world.seal(seat);
    }
    world.run_for(50_000);
    world.judge_seals();
}

fn marker(world: &mut World<'_>, _: &mut Chance) {
    let Some(leader) = elect(world) else { return };
    let _ = world.propose(leader, 16);
    let marked = world.propose_marker(leader);
    world.judge.hold(Rule::MarkerEnds, matches!(marked, Some(Ok(_))), || {
        format!("the leader answers a Marker with {marked:?}")
    });
    let refused = (world.propose(leader, 9).and_then(Result::err), world.read(leader).and_then(Result::err));
    world.judge.hold(
        Rule::MarkerEnds,
        refused == (Some(ProposeError::Marker), Some(ReadError::Marker)),
        || format!("a leader that holds a Marker answers {refused:?}"),
    );
    let twice = world.propose_marker(leader);
    world
        .judge
        .hold(Rule::MarkerEnds, matches!(twice, Some(Err(_))), || format!("a second Marker: {twice:?}"));
    let patience = world.patience_us();
    let done = world.run_to(patience, |world| {
        world.judge.marker.is_some_and(|at| world.seats.iter().all(|seat| seat.applied >= at))
    });
    world.judge.hold(Rule::MarkerEnds, done, || {
        "a healthy segment does not commit its Marker everywhere".to_owned()
    });
    // A log that holds it keeps it, whatever is discarded.
    for seat in 0..3 {
        world.discard(seat, Index(u64::MAX));
        let kept = world.node(seat).is_some_and(holds_marker);
        world.judge.hold(Rule::MarkerEnds, kept, || format!("seat {seat} discarded the Marker"));
    }
    // Nothing comes after it, whoever is elected.
    world.crash(leader, true);
    world.run_for(300_000);
    for seat in others(world, leader) {
        let _ = world.propose(seat, 9);
        let _ = world.read(seat);
    }
    world.open(leader);
    world.run_for(300_000);
    world.judge_quiet();
    for seat in 0..3 {
        let _ = world.seal(seat);
    }
    world.run_for(50_000);
    world.judge_seals();
}

fn marker_replaced(world: &mut World<'_>, _: &mut Chance) {
    let Some(old) = elect(world) else { return };
    world.run_for(40_000);
    isolate(world, old);
    let marked = world.propose_marker(old);
    if !matches!(marked, Some(Ok(_))) {
        return;
    }
    let patience = world.patience_us();
    let moved = world.run_to(patience, |world| world.leader().is_some_and(|s| s != old));
    world.judge.hold(Rule::Progress, moved, || "two of three elect nobody".to_owned());
    let Some(new) = world.leader().filter(|s| *s != old) else { return };
    let _ = commit(world, new);
    world.heal();
    let patience = world.patience_us();
    let replaced = world.run_to(patience, |world| world.node(old).is_some_and(|node| !holds_marker(node)));
    world
        .judge
        .hold(Rule::MarkerEnds, replaced, || "a Marker that lost its election stays for ever".to_owned());
    // It takes part again: it may lead and propose.
    if let Some(leader) = world.leader() {
        let id = world.seats[old].id;
        let _ = world.transfer(leader, id);
    }
    world.run_for(100_000);
    if let Some(leader) = elect(world) {
        let _ = commit(world, leader);
        let _ = world.read(leader);
    }
    finish(world);
}

/// A leader without the Marker, confirmed only with the help of a member that holds one, may not answer reads. Needs to
/// know which messages carry entries, to keep them from that member.
fn marker_and_reads(world: &mut World<'_>, _: &mut Chance) {
    let Some(old) = elect(world) else { return };
    world.run_for(40_000);
    let seats = others(world, old);
    let (holder, free) = (seats[0], [seats[1], seats[2], seats[3]]);
    for other in free {
        world.cuts.insert((old, other));
        world.cuts.insert((other, old));
    }
    let Some(Ok(place)) = world.propose_marker(old) else { return };
    let has = move |world: &World<'_>| world.node(holder).is_some_and(|node| node.durable() >= place.index);
    if !world.run_to(20_000, has) {
        return;
    }
    // The old leader dies; the three elect another, whose entries do not reach the holder, though its heartbeats do.
    world.crash(old, false);
    for other in free {
        world.no_entries.insert((other, holder));
        // The holder's log is better than theirs: it must not be elected for this story.
        world.cuts.insert((holder, other));
    }
    let patience = world.patience_us();
    let leads =
        |world: &World<'_>| free.into_iter().find(|s| world.node(*s).is_some_and(RaftNode::is_leader));
    if !world.run_to(patience, |world| leads(world).is_some()) {
        return;
    }
    let leader = leads(world).expect("it was just seen");
    if commit(world, leader).is_none() {
        return;
    }
    // Of the three, one stays with the leader: with the holder they would be a majority.
    let gone = *free.iter().find(|s| **s != leader).expect("three");
    isolate(world, gone);
    world.cuts.remove(&(holder, leader));
    let still = world.node(holder).is_some_and(holds_marker);
    if !still {
        return;
    }
    for _ in 0..6 {
        let _ = world.read(leader);
        world.run_for(6_000);
        if !world.node(holder).is_some_and(holds_marker) {
            break;
        }
        world.judge.count("reads beside a Marker");
    }
    finish(world);
}

fn snapshot(world: &mut World<'_>, chance: &mut Chance) {
    let Some(leader) = elect(world) else { return };
    let sleeper = others(world, leader)[0];
    world.run_for(40_000);
    world.crash(sleeper, false);
    for _ in 0..20 {
        let Some(leader) = elect(world) else { return };
        let _ = commit(world, leader);
    }
    for seat in 0..3 {
        let through = world.seats[seat].applied;
        world.discard(seat, through);
        // Past what is committed nothing may go.
        world.discard(seat, Index(u64::MAX));
    }
    let before = world.judge.counts.get("snapshots installed").copied();
    world.open(sleeper);
    world.judge_progress();
    let after = world.judge.counts.get("snapshots installed").copied();
    world.judge.hold(Rule::SnapshotsCatchUp, after > before, || "the sleeper needed no snapshot?".to_owned());
    // What was installed and discarded is what a restart finds.
    for seat in 0..3 {
        world.run_for(chance.below(5_000));
        world.trim(seat);
        world.crash(seat, true);
        world.open(seat);
    }
    finish(world);
}

fn bounds(world: &mut World<'_>, _: &mut Chance) {
    let Some(leader) = elect(world) else { return };
    world.run_for(40_000);
    let followers = others(world, leader);
    isolate(world, leader);
    // Time stands still for it, or it would step down.
    world.set_clock(leader, 0);
    world.seats[leader].bytes_sent.clear();
    let limits = world.template.limits;
    let (mut taken, mut reads) = (0, 0);
    let size = 60_000;
    let mut refusal = None;
    for _ in 0..200 {
        match world.propose(leader, size) {
            Some(Ok(_)) => taken += size as u64,
            Some(Err(error)) => {
                refusal = Some(error);
                break;
            }
            None => return,
        }
        world.run_for(500);
    }
    let within = taken <= limits.uncommitted_bytes_max + size as u64;
    world.judge.hold(Rule::QueuesAreBounded, within && matches!(refusal, Some(ProposeError::Busy)), || {
        format!("{taken} bytes are taken uncommitted, of {}, then {refusal:?}", limits.uncommitted_bytes_max)
    });
    for _ in 0..20 {
        if matches!(world.read(leader), Some(Ok(_))) {
            reads += 1;
        }
    }
    world.judge.hold(Rule::QueuesAreBounded, reads <= limits.reads_max, || {
        format!("{reads} reads wait, of {}", limits.reads_max)
    });
    for follower in followers {
        let id = world.seats[follower].id;
        let sent = world.seats[leader].bytes_sent.get(&id).copied().unwrap_or(0);
        let most = limits.inflight_bytes_max + 2 * limits.append_bytes_max + 200_000;
        world.judge.hold(Rule::QueuesAreBounded, sent <= most, || {
            format!("{sent} bytes are sent to silent seat {follower}, {most} were enough")
        });
    }
    world.judge.count("bounds met");
    finish(world);
}

fn strange_records(world: &mut World<'_>, chance: &mut Chance) {
    let Some(leader) = elect(world) else { return };
    for _ in 0..6 {
        let _ = commit(world, leader);
    }
    world.run_for(50_000);
    let records = world.records_of(leader);
    let setup = world.setup(leader);
    let now = world.now(leader);
    let maker = world.subject.maker();
    let mut other = setup.clone();
    other.epoch = Epoch(EPOCH.0 + 1);
    let answer = maker.open(other, &records, now).map(|node| node.last());
    world.judge.hold(Rule::ForeignRecordsAreRefused, answer.is_err(), || {
        format!("the log of epoch {EPOCH} opens as the next one's: {answer:?}")
    });
    // Damage never panics and is never taken for a longer log.
    let truth = maker.open(setup.clone(), &records, now).map(|node| node.last());
    let Ok(last) = truth else {
        world.judge.broken(Rule::RestartKeepsPromises, format!("its own records are refused: {truth:?}"));
        return;
    };
    for _ in 0..40 {
        let at = usize::try_from(chance.below(records.len() as u64)).expect("small");
        let mut damaged = records.clone();
        let cut = usize::try_from(chance.below(damaged[at].len() as u64)).expect("small");
        damaged[at] = damaged[at].slice(..cut);
        let answer = maker.open(setup.clone(), &damaged, now).map(|node| node.last());
        world.judge.hold(Rule::ForeignRecordsAreRefused, answer.is_err(), || {
            format!("record {} cut at {cut} opens: {answer:?}", at + 1)
        });
        let noise: Bytes =
            (0..chance.below(60)).map(|_| (chance.next_u64() & 0xff) as u8).collect::<Vec<u8>>().into();
        damaged[at] = noise;
        let answer = maker.open(setup.clone(), &damaged, now).map(|node| node.last());
        world.judge.hold(Rule::ForeignRecordsAreRefused, answer.is_err(), || {
            format!("noise for record {} opens: {answer:?}", at + 1)
        });
    }
    // A node opened from a beginning of its records holds a beginning of its log, or says why not.
    for count in 0..records.len() {
        if let Ok(node) = maker.open(setup.clone(), &records[..count], now) {
            let end = node.last();
            world.judge.hold(Rule::RestartKeepsPromises, last.is_as_good_as(&end), || {
                format!("{count} of {} records hold {end:?}, all of them {last:?}", records.len())
            });
        }
    }
    finish(world);
}

fn noise(world: &mut World<'_>, chance: &mut Chance) {
    let Some(leader) = elect(world) else { return };
    for _ in 0..4 {
        let _ = commit(world, leader);
    }
    world.run_for(50_000);
    // Real messages of a twin that is the same in all but its epoch.
    let twins: Vec<Letter> = {
        let mut twin = World::new(
            world.subject,
            "twin",
            world.judge.seed,
            3,
            world.template.timing,
            world.template.limits,
        );
        for seat in 0..3 {
            twin.crash(seat, true);
        }
        twin.template.epoch = Epoch(EPOCH.0 - 1);
        for seat in 0..3 {
            twin.forget(seat);
            twin.open(seat);
        }
        if let Some(leader) = elect(&mut twin) {
            for _ in 0..12 {
                let _ = twin.propose(leader, 16);
                twin.run_for(9_000);
            }
        }
        twin.old_messages.into_iter().collect()
    };
    world.judge.hold(Rule::Progress, twins.len() > 40, || format!("a twin says only {} things", twins.len()));
    let before: Vec<_> =
        (0..3).map(|s| world.node(s).map(|node| (node.last(), node.term(), node.commit()))).collect();
    let heard: Vec<u64> = (0..3).map(|s| world.refused(s)).collect();
    for letter in &twins {
        world.deliver(letter);
    }
    for _ in 0..300 {
        let from = usize::try_from(chance.below(3)).expect("small");
        let to = usize::try_from(chance.below(3)).expect("small");
        let bytes: Vec<u8> = (0..chance.below(60)).map(|_| (chance.next_u64() & 0xff) as u8).collect();
        if from != to {
            world.inject(from, to, &Bytes::from(bytes));
        }
    }
    // No time has passed, so nothing honest was said meanwhile.
    world.run_until(world.now_us);
    let after: Vec<_> =
        (0..3).map(|s| world.node(s).map(|node| (node.last(), node.term(), node.commit()))).collect();
    world
        .judge
        .hold(Rule::NonsenseIsHarmless, before == after, || format!("noise moves {before:?} to {after:?}"));
    for (s, heard) in heard.into_iter().enumerate() {
        let counted = world.refused(s) > heard;
        world
            .judge
            .hold(Rule::NonsenseIsHarmless, counted, || format!("seat {s} drops noise and does not say so"));
    }
    finish(world);
}

/// One member of three lies as it pleases. The judges of single members go on: nobody panics, nobody takes back what it
/// called committed; and when the liar falls silent the other two go on.
fn lies(world: &mut World<'_>, chance: &mut Chance) {
    let Some(leader) = elect(world) else { return };
    for _ in 0..3 {
        let _ = commit(world, leader);
    }
    world.run_for(50_000);
    let liar = usize::try_from(chance.below(3)).expect("small");
    world.crash(liar, true);
    world.judge.lies = true;
    let id = world.seats[liar].id;
    for round in 0..400_u32 {
        let to = others(world, liar)[usize::try_from(chance.below(2)).expect("small")];
        if let Some(scene) = world.scene(id, to)
            && let Some(bytes) = world.subject.forge(chance, &scene)
        {
            world.inject(liar, to, &bytes);
            world.judge.count("lies");
        }
        // What others said, in the liar's name; and real bytes with one of them changed.
        if chance.per_mille(200) {
            let count = world.old_messages.len() as u64;
            let pick = usize::try_from(chance.below(count.max(1))).expect("small");
            if let Some(letter) = world.old_messages.get(pick) {
                let mut bytes = letter.bytes.to_vec();
                if chance.per_mille(700) && !bytes.is_empty() {
                    let at = usize::try_from(chance.below(bytes.len() as u64)).expect("small");
                    bytes[at] ^= 1 << chance.below(8);
                }
                world.inject(liar, to, &Bytes::from(bytes));
            }
        }
        if round % 4 == 0 {
            world.run_for(chance.below(6_000));
            if let Some(leader) = world.leader() {
                let _ = world.propose(leader, 16);
                let _ = world.read(leader);
            }
        }
        if !world.ok() {
            return;
        }
    }
    // A member may end the segment with a Marker, if it can make the others take it for a leader's: then nothing follows.
    if (0..3).filter_map(|s| world.node(s)).any(holds_marker) {
        world.judge.count("segments ended by a liar");
    } else if apart(world, liar) {
        // Under `trust = crash` a liar that plays the leader can make two others commit different things. They keep what
        // they committed, which is what is judged here, and can never agree again.
        world.judge.count("members set apart by a liar");
    } else {
        world.judge_progress();
    }
}

/// Whether the two that did not lie hold different things for committed.
fn apart(world: &World<'_>, liar: usize) -> bool {
    let seats = others(world, liar);
    let (a, b) = (&world.judge.by_seat[seats[0]], &world.judge.by_seat[seats[1]]);
    a.iter().any(|(index, place)| b.get(index).is_some_and(|other| other != place))
}

impl World<'_> {
    fn scene(&self, from: dwcp_base::ReplicaId, to: usize) -> Option<Scene> {
        let node = self.node(to)?;
        let committed = node.place(node.commit())?;
        Some(Scene {
            epoch: EPOCH,
            from,
            to: self.seats[to].id,
            term: node.term(),
            commit: node.commit(),
            last: node.last(),
            committed,
        })
    }
}
