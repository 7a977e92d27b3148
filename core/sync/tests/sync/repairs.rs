//! Damaged keys are put right by what enough members say who stand at the same place, and by nobody's word alone.

use crate::net::Net;
use crate::world::{Liar, NOON_MS, Node, at, members, origin, setup, text};
use bytes::Bytes;
use dwcp_base::{Hash, Mutants};
use dwcp_crdt::{Op, Origin, OriginId, Resolvers, Store, Write};
use dwcp_sync::audit::{Step, place};
use dwcp_sync::repair::{Copy, Question};
use dwcp_sync::{Message, Reason};

const KEY: Bytes = Bytes::from_static(b"k7");

/// A state of a key that nobody wrote here.
fn rubbish(key: &Bytes) -> Bytes {
    let mut other = Store::new(Origin::new(9, 0), Resolvers::default());
    other.write(&[Write::new(key.clone(), Op::Put(text("rubbish")))], 0, NOON_MS).expect("good");
    other.key_bytes(key).expect("there").into()
}

fn states(net: &Net) -> Vec<Vec<(Bytes, Hash)>> {
    let of = |node: &Node| node.store.key_hashes_anew().map(|(key, hash)| (key.clone(), hash)).collect();
    net.nodes.iter().map(of).collect()
}

/// At rest, all with the same forty keys.
fn settled(count: u32, faults: usize) -> Net {
    let mut net = Net::with(3, count, |setup| setup.faults = faults);
    net.is_judged = false;
    for n in 0..40_usize {
        let who = n % count as usize;
        let now = net.now(who);
        net.nodes[who].put(now, &format!("k{n}"), "v");
    }
    net.heal();
    net
}

#[test]
fn keys_that_are_wrong_missing_or_invented_on_one_replica_are_put_right() {
    // Nobody may lie: both others. One of four may: two others.
    for (count, faults) in [(3, 0), (4, 1)] {
        let mut net = settled(count, faults);
        let right = states(&net)[0].clone();
        let store = &mut net.nodes[1].store;
        store.replace_key(&KEY, Some(&rubbish(&KEY))).expect("a state");
        store.replace_key(b"k11", None).expect("gone");
        store.replace_key(b"z", Some(&rubbish(&"z".into()))).expect("a state");
        net.pass(900_000);
        assert!(states(&net).iter().all(|state| *state == right), "{count} nodes are alike again");
        net.assert_converged();
        let keys = [Bytes::from_static(b"k11"), KEY, Bytes::from_static(b"z")];
        assert!(net.nodes[1].repaired.iter().eq(&keys), "{:?}", net.nodes[1].repaired);
        assert!(net.nodes.iter().all(|n| n.me().id.0 == 1 || n.repaired.is_empty()), "and nothing else");
    }
}

/// More than an audit names and a question asks for.
#[test]
fn a_replica_that_lost_many_keys_has_them_back_after_a_few_audits() {
    let mut net = settled(4, 1);
    for n in 0..600 {
        let now = net.now(0);
        net.nodes[0].put(now, &format!("more {n:03}"), "v");
    }
    net.heal();
    let right = states(&net)[0].clone();
    for n in 0..600 {
        net.nodes[2].store.replace_key(format!("more {n:03}").as_bytes(), None).expect("gone");
    }
    net.pass(3_600_000);
    assert!(states(&net).iter().all(|state| *state == right));
    assert_eq!(net.nodes[2].repaired.len(), 600);
}

#[cfg(feature = "mutants")]
#[test]
fn a_bit_that_flips_in_memory_is_put_right_and_its_copy_is_given_to_nobody() {
    use dwcp_sync::repair::copies;
    let mut net = settled(4, 1);
    let right = states(&net)[0].clone();
    assert!(net.nodes[3].store.flip_bit(&KEY, 50));
    assert_ne!(states(&net)[3], right);
    let node = &net.nodes[3];
    let stands = node.sync.stand(node.store.applied());
    let at = place(&node.store, stands.expect("it rests"));
    let keys = vec![Bytes::from_static(b"k6"), KEY];
    let given = copies(&node.store, stands, &Question { round: 1, at, keys }).expect("it stands there");
    assert_eq!(given.iter().map(|(key, _)| &key[..]).collect::<Vec<_>>(), [b"k6"]);
    net.pass(900_000);
    assert!(states(&net).iter().all(|state| *state == right));
    assert!(net.nodes[3].repaired.contains(&KEY));
}

/// One replica to which others only speak, with one key, which an audit named.
struct Alone {
    node: Node,
    at: Hash,
    round: u64,
}

impl Alone {
    fn new(count: u32, faults: usize, mutants: Mutants) -> Self {
        let mut setup = setup(origin(0), members(count));
        (setup.faults, setup.mutants) = (faults, mutants);
        let mut node = Node::new(setup);
        node.put(at(0), "k7", "v");
        node.sync_disk();
        node.outbox.clear();
        let at = place(&node.store, node.sync.stand(node.store.applied()).expect("it rests"));
        let step = Step { differs: vec![KEY], at, ..Step::default() };
        node.sync.on_audited(node.now, OriginId(1), step);
        node.run();
        let asked: Vec<u64> = node.outbox.iter().filter_map(|(_, bytes)| question(bytes)).collect();
        assert_eq!(asked.len(), count as usize - 1, "everybody is asked");
        Self { at, round: asked[0], node }
    }

    fn says(&mut self, from: u32, copy: Option<Bytes>) {
        let copies: Vec<Copy> = vec![(KEY, copy)];
        let message = Message::Copied { round: self.round, copies }.to_bytes();
        self.node.message(at(5), OriginId(from), &message);
    }

    fn has(&self) -> Option<Bytes> {
        self.node.store.key_bytes(&KEY).map(Bytes::from)
    }
}

fn question(bytes: &Bytes) -> Option<u64> {
    match Message::read(bytes) {
        Ok(Message::Copy { question }) => Some(question.round),
        _ => None,
    }
}

#[test]
fn no_single_word_changes_a_key_however_often_it_is_said() {
    for (count, faults, needed) in [(3, 0, 2), (5, 0, 3), (4, 1, 2), (7, 2, 3), (13, 4, 5)] {
        let mut alone = Alone::new(count, faults, Mutants::default());
        let (before, other) = (alone.has(), Some(rubbish(&KEY)));
        for _ in 0..10 {
            alone.says(1, other.clone());
            alone.says(1, None);
        }
        for from in 2..needed {
            assert_eq!(alone.has(), before, "{count} nodes");
            alone.says(from, other.clone());
        }
        assert_eq!(alone.has(), before, "{} of {count} are too few", needed - 1);
        alone.says(needed, other.clone());
        assert_eq!(alone.has(), other, "{needed} of {count} are enough");
    }
}

#[test]
fn where_enough_agree_in_what_is_here_nothing_changes() {
    let mut alone = Alone::new(4, 1, Mutants::default());
    let before = alone.has();
    alone.says(1, None);
    alone.says(2, before.clone());
    alone.says(3, before.clone());
    assert_eq!(alone.has(), before);
    assert!(alone.node.repaired.is_empty());
    alone.says(2, None);
    assert_eq!(alone.node.sync.refused(Reason::Unasked), 1, "that is settled");
}

#[test]
fn what_is_no_state_changes_nothing_whoever_says_it() {
    let mut alone = Alone::new(4, 1, Mutants::default());
    let before = alone.has();
    for from in 1..4 {
        alone.says(from, Some(Bytes::from_static(b"no state of a key")));
    }
    assert_eq!(alone.has(), before);
}

#[test]
fn a_write_between_question_and_answer_ends_the_repair() {
    let mut alone = Alone::new(4, 1, Mutants::default());
    alone.node.put(at(3), "another", "v");
    let before = alone.has();
    for from in 1..4 {
        alone.says(from, Some(rubbish(&KEY)));
    }
    assert_eq!(alone.has(), before, "what they said was of another place");
    assert_ne!(place(&alone.node.store, Hash::ZERO), alone.at);
}

#[test]
fn who_is_not_answered_asks_again_and_gives_up() {
    let mut alone = Alone::new(4, 1, Mutants::default());
    for second in 1..100 {
        alone.node.time(at(second * 1_000));
    }
    let asked = alone.node.outbox.iter().filter_map(|(_, bytes)| question(bytes)).count();
    assert_eq!(asked, 3 * 8);
}

/// Two histories of one origin have the same counters: who was shown another one has not applied the same.
#[test]
fn replicas_on_different_branches_of_a_liar_do_not_stand_at_one_place() {
    let shown = |value: &str| {
        let mut node = Node::new(setup(origin(0), members(4)));
        let frame = Liar::new(origin(3)).put(at(0), "k7", value);
        node.message(at(1), OriginId(3), &crate::border::push(&frame));
        node.sync_disk();
        node
    };
    let (one, same, two) = (shown("one"), shown("one"), shown("two"));
    let stand = |node: &Node| node.sync.stand(node.store.applied()).expect("nothing is known of the lie");
    assert_eq!(stand(&one), stand(&same));
    assert_ne!(stand(&one), stand(&two));
    assert_eq!(one.store.applied(), two.store.applied());
    let mut one = one;
    let other = Liar::new(origin(3)).put(at(0), "k7", "two");
    one.message(at(2), OriginId(2), &crate::border::push(&other));
    assert_eq!(one.sync.stand(one.store.applied()), None, "its end is not decided");
}

#[test]
fn questions_for_copies_without_end_are_refused() {
    let mut alone = Alone::new(4, 1, Mutants::default());
    let question = Question { round: 9, at: alone.at, keys: vec![KEY] };
    let message = Message::Copy { question }.to_bytes();
    for _ in 0..100 {
        alone.node.message(at(6), OriginId(2), &message);
    }
    assert_eq!(alone.node.sync.refused(Reason::TooOften), 36);
    let keys = vec![KEY, KEY];
    let twice = Message::Copy { question: Question { round: 9, at: alone.at, keys } };
    assert!(Message::read(&twice.to_bytes()).is_err(), "each key once");
}

#[cfg(feature = "mutants")]
#[test]
fn a_repair_by_one_word_lets_a_liar_write_what_it_likes() {
    let mut alone = Alone::new(4, 1, Mutants::default().with(dwcp_base::Mutant::SyncRepairByOne));
    alone.says(2, Some(rubbish(&KEY)));
    assert_eq!(alone.has(), Some(rubbish(&KEY)));
}
