//! An origin that signs two histories: it is proved, frozen everywhere within one exchange, and ended by one decision, after
//! which all are equal again.

use crate::net::{Faults, Net, Ordered};
use crate::world::{Liar, Node, at, members, origin, setup, text};
use dwcp_base::{Chance, Mutants};
use dwcp_crdt::{Op, OriginId, View, Write};
use dwcp_sync::{Cut, Frame, Message, Need};

pub fn push(net: &mut Net, to: usize, frame: &Frame) {
    let now = net.now(to);
    let from = frame.header().origin.id;
    let message = Message::Push { hops: 8, frame: frame.bytes().clone() }.to_bytes();
    net.nodes[to].message(now, from, &message);
}

/// The last of `count` nodes is a liar, and only its key takes part.
pub fn net_with_liar(seed: u64, count: u32, mutants: Mutants) -> (Net, Liar) {
    let mut net = Net::new(seed, count, mutants);
    net.is_judged = false;
    net.down.insert(count as usize - 1);
    (net, Liar::new(origin(count - 1)))
}

pub fn decide(net: &mut Net, cut: Cut) {
    net.log.push(Ordered::Cut(cut));
    for who in 0..net.nodes.len() {
        if !net.down.contains(&who) {
            net.read_log(who, usize::MAX);
        }
    }
}

#[test]
fn two_frames_at_one_place_freeze_their_origin_everywhere_within_one_exchange() {
    let (mut net, mut one) = net_with_liar(1, 5, Mutants::default());
    let shared = one.put(at(0), "k", "shared");
    let mut other = one.clone();
    let (x, y) = (one.put(at(1), "k", "x"), other.put(at(1), "k", "y"));
    for who in 0..4 {
        push(&mut net, who, &shared);
        push(&mut net, who, if who < 2 { &x } else { &y });
    }
    assert!(net.nodes.iter().all(|node| node.evidence.is_empty()), "nobody can know yet");
    // Two intervals and a little: every one of them has asked one of the others.
    net.pass(5_000);
    for who in 0..4 {
        let node = &mut net.nodes[who];
        assert_eq!(node.evidence.len(), 1, "node {who} has the proof, once");
        assert_eq!(node.evidence[0].origin(), origin(4));
        for liar in [&one, &other] {
            node.message(
                at(6_000),
                OriginId(4),
                &Message::Push { hops: 8, frame: one_more(liar) }.to_bytes(),
            );
        }
        assert_eq!(node.sync.head(origin(4)).expect("a member").last, 3, "what follows is kept");
        assert_eq!(node.standing(origin(4)).last, 2);
        assert_eq!(node.store.applied().last(origin(4)), 2, "and does not reach the store");
    }
    // Others go on writing.
    for who in 0..4 {
        net.write(who, false);
    }
    let cut = net.nodes[0].standing(origin(4));
    decide(&mut net, cut);
    for who in 0..4 {
        assert_eq!(net.nodes[who].needs.contains_key(&Need::Branch), who >= 2, "node {who}");
    }
    net.heal();
    net.assert_converged();
    let register = net.nodes[3].store.get(b"k");
    assert_eq!(register, Some(View::Register(text("x"))), "the branch that was decided");
}

fn one_more(liar: &Liar) -> bytes::Bytes {
    liar.clone().put(at(10), "more", "v").bytes().clone()
}

/// Of two who stand short of the end on the wrong branch one knows it. The other's store would bring it nowhere.
#[test]
fn whoever_may_be_on_the_wrong_branch_goes_on_from_the_end_alone() {
    let (mut net, mut one) = net_with_liar(1, 5, Mutants::default());
    let shared = one.put(at(0), "k", "shared");
    let mut other = one.clone();
    let wrong = other.put(at(1), "k", "wrong");
    let right: Vec<Frame> = (1..3).map(|n| one.put(at(n), "k", "right")).collect();
    for who in 0..4 {
        push(&mut net, who, &shared);
    }
    right.iter().for_each(|frame| push(&mut net, 0, frame));
    (1..4).for_each(|who| push(&mut net, who, &wrong));
    let cut = net.nodes[0].standing(origin(4));
    assert_eq!(cut.last, 3);
    decide(&mut net, cut);
    let (now, frame) = (net.now(1), right[0].bytes().clone());
    net.nodes[1].message(now, OriginId(0), &Message::Push { hops: 8, frame }.to_bytes());
    let needs = |net: &Net, who: usize| net.nodes[who].needs.contains_key(&Need::Branch);
    assert!(needs(&net, 1) && !needs(&net, 2), "only who was shown the other frame can tell");
    let (snapshot, base) = net.nodes[2].donate().expect("it knows of nothing");
    let branch = Err(dwcp_sync::InstallError::Branch { origin: origin(4) });
    assert_eq!(net.nodes[1].install(&snapshot, &base), branch);
    let (snapshot, base) = net.nodes[0].donate().expect("it stands at the end");
    assert_eq!(net.nodes[1].install(&snapshot, &base), Ok(()));
    net.heal();
    net.assert_converged();
}

#[test]
fn whoever_built_upon_what_was_cut_off_stalls_nobody() {
    let (mut net, mut one) = net_with_liar(2, 4, Mutants::default());
    net.write(0, false);
    let mut other = one.clone();
    let short = other.put(at(1), "k", "short");
    let long: Vec<Frame> = (1..5).map(|n| one.put(at(n), "k", "long")).collect();
    long.iter().for_each(|frame| push(&mut net, 0, frame));
    push(&mut net, 1, &short);
    // Node 0 writes over the liar's fourth change, and its frame names that.
    let now = net.now(0);
    net.nodes[0].put(now, "k", "built upon");
    net.nodes[0].put(now, "after", "v");
    net.heal();
    // The shorter branch is decided: the fourth change will never exist.
    let cut = net.nodes[1].standing(origin(3));
    assert_eq!(cut.last, 1);
    decide(&mut net, cut);
    assert!(net.nodes[0].needs.contains_key(&Need::Branch));
    net.heal();
    net.assert_converged();
    for node in &net.nodes[..3] {
        assert_eq!(node.store.get(b"after"), Some(View::Register(text("v"))));
        assert_eq!(
            node.store.siblings(b"k", &[]).len(),
            2,
            "both stand: the writer had not seen the short one"
        );
    }
    // And whoever writes on is heard.
    for who in 0..3 {
        net.write(who, false);
    }
    net.heal();
    net.assert_converged();
}

#[test]
fn a_broken_link_and_a_clock_that_goes_back_are_proofs_too() {
    let mut node = Node::new(setup(origin(0), members(2)));
    let mut one = Liar::new(origin(1));
    let mut other = one.clone();
    let first = one.put(at(0), "k", "x");
    other.put(at(0), "k", "y");
    let second = other.put(at(1), "k", "z");
    for frame in [&first, &second] {
        node.sync.deliver_from_log(at(0), frame.bytes().clone());
        node.run();
    }
    assert_eq!((node.evidence.len(), node.standing(origin(1)).last), (1, 1));
}

#[test]
fn waiting_frames_are_compared_as_well() {
    let mut node = Node::new(setup(origin(0), members(2)));
    let mut one = Liar::new(origin(1));
    one.put(at(0), "k", "x");
    let mut other = one.clone();
    for frame in [one.put(at(1), "k", "y"), other.put(at(1), "k", "z")] {
        node.sync.deliver_from_log(at(1), frame.bytes().clone());
        node.run();
    }
    assert_eq!((node.evidence.len(), node.sync.frames_count()), (1, (0, 0)));
}

#[test]
fn a_replica_that_used_its_dots_twice_learns_it_and_stops() {
    let mut node = Node::new(setup(origin(0), members(2)));
    let mut past = Liar::new(origin(0));
    let lost = past.put(at(0), "k", "before the disk was rolled back");
    node.put(at(1), "k", "after");
    node.message(at(2), OriginId(1), &Message::Push { hops: 0, frame: lost.bytes().clone() }.to_bytes());
    assert_eq!(node.evidence.len(), 1);
    assert_eq!(node.sync.may_write(), Err(dwcp_sync::WriteRefused::Frozen));
}

#[test]
fn an_origin_may_be_ended_without_having_lied() {
    let (mut net, mut gone) = net_with_liar(6, 4, Mutants::default());
    let frames: Vec<Frame> = (0..3).map(|n| gone.put(at(n), "k", &format!("{n}"))).collect();
    push(&mut net, 0, &frames[0]);
    push(&mut net, 0, &frames[1]);
    let cut = net.nodes[0].standing(origin(3));
    decide(&mut net, cut);
    for who in 0..3 {
        push(&mut net, who, &frames[2]);
        assert!(net.nodes[who].standing(origin(3)).last <= 2);
    }
    net.heal();
    net.assert_converged();
    assert_eq!(net.nodes[2].standing(origin(3)), cut, "what counts reaches everybody");
}

/// Without a halt the frame that is under way would carry everybody past the end.
#[test]
fn who_is_about_to_end_is_halted_first_so_that_somebody_stands_at_its_end() {
    let (mut net, mut gone) = net_with_liar(7, 4, Mutants::default());
    let frames: Vec<Frame> = (0..2).map(|n| gone.put(at(n), "k", &format!("{n}"))).collect();
    (0..3).for_each(|who| push(&mut net, who, &frames[0]));
    for who in 0..3 {
        net.nodes[who].sync.halt(origin(3));
        net.nodes[who].run();
    }
    assert_eq!(net.nodes[0].sync.standing(origin(3)), None, "a crash could still move it on");
    net.sync_disk(0);
    let cut = net.nodes[0].sync.standing(origin(3)).expect("it stands and stays");
    (0..3).for_each(|who| push(&mut net, who, &frames[1]));
    let now = net.now(1);
    net.nodes[1].crash(usize::MAX, now);
    push(&mut net, 1, &frames[1]);
    assert!(net.nodes[1].sync.is_frozen(origin(3)), "it remembers");
    decide(&mut net, cut);
    net.heal();
    assert!(net.nodes[..3].iter().all(|node| node.needs.is_empty()));
    net.assert_converged();
    assert_eq!(net.nodes[1].standing(origin(3)), cut);
}

/// One history with a liar: it signs two branches, shows each replica what it likes, and goes on with both.
pub fn play(seed: u64, mutants: Mutants) -> u64 {
    let count = 3 + (seed % 3) as u32;
    let honest = count as usize - 1;
    let (mut net, root) = net_with_liar(seed, count, mutants);
    net.faults = Faults { loss: 150, double: 100, delay_ms_max: 400, crash: 0 };
    let mut chance = Chance::new(seed).fork("liar");
    let mut branches = [root.clone(), root];
    let mut frames: [Vec<Frame>; 2] = [Vec::new(), Vec::new()];
    let mut decided = false;
    let liar = origin(count - 1);
    let mut held = vec![None; honest];
    for step in 0..120_u64 {
        let who = chance.below(honest as u64) as usize;
        match chance.below(100) {
            0..30 => net.write(who, false),
            30..45 => net.sync_disk(who),
            45..60 => {
                let ms = chance.below(900);
                net.pass(ms);
            }
            60..64 => net.crash(who),
            64..68 => net.nodes[who].save(),
            68..72 => net.serve_snapshots(),
            72..84 => {
                let now = at(net.now_ms);
                let same = frames[0].len() == frames[1].len() && frames[0].len() < 2;
                let which = chance.below(2) as usize;
                let value = format!("{step}");
                let put = Write::new(format!("k{}", chance.below(3)), Op::PutMulti(text(&value)));
                if same && chance.per_mille(500) {
                    for b in 0..2 {
                        frames[b].push(branches[b].write(now, std::slice::from_ref(&put)));
                    }
                } else {
                    let frame = branches[which].write(now, &[put]);
                    frames[which].push(frame);
                }
            }
            _ => {
                // Mostly one branch to each replica.
                let which = if chance.per_mille(850) { who % 2 } else { chance.below(2) as usize };
                for frame in frames[which].clone() {
                    push(&mut net, who, &frame);
                }
            }
        }
        let who = chance.below(honest as u64) as usize;
        let standing = net.nodes[who].sync.standing(origin(count - 1));
        let is_frozen = net.nodes[who].sync.proof(origin(count - 1)).is_some();
        if let Some(cut) = standing.filter(|_| is_frozen && !decided && chance.per_mille(60)) {
            decided = true;
            decide(&mut net, cut);
        }
        for (who, held) in held.iter_mut().enumerate() {
            let node = &net.nodes[who];
            let is_frozen = node.sync.proof(liar).is_some() && !decided;
            let now = is_frozen.then(|| (node.store.applied().last(liar), net.seen.installed));
            if let (Some((before, stores)), Some((last, then))) = (*held, now) {
                assert!(
                    last <= before || stores < then,
                    "seed {seed}: node {who} goes on from {before} to {last}"
                );
            }
            *held = now;
        }
    }
    net.heal();
    // A crash may have lost one that was not yet written down; then its other half is gone too.
    let proofs = (0..honest).filter(|who| net.nodes[*who].sync.proof(liar).is_some()).count();
    // A decision makes the proof old news.
    assert!(
        decided || proofs == 0 || proofs == honest,
        "seed {seed}: {proofs} of {honest} know that it lied"
    );
    if proofs > 0 && !decided {
        let cut = net.nodes[0].standing(origin(count - 1));
        decide(&mut net, cut);
        net.heal();
    }
    net.assert_converged();
    proofs as u64
}

#[test]
fn whatever_a_liar_shows_to_whom_all_are_equal_in_the_end() {
    let mut proved = 0;
    for seed in 0..100 {
        let result = std::panic::catch_unwind(|| play(seed, Mutants::default()));
        proved += u64::from(result.unwrap_or_else(|_| panic!("seed {seed} fails: see above")) > 0);
    }
    assert!(proved > 60, "{proved} of 100 histories had something to prove");
}
