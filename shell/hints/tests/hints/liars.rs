//! What a liar among the members reaches: nothing that lasts. Each way to be dropped is counted under its reason.

use bytes::Bytes;
use dwcp_base::{ClusterId, Incarnation, Micros, Now, ReplicaId, encode};
use dwcp_hints::{
    DropReason, Effect, Hints, Identity, Input, Known, MESSAGE_BYTES_MAX, Message, Packet, Record, Standing,
    SwimHints,
};

use crate::world::{CLUSTER, Keyed, World, address_of, hints, key_of, members};

fn now(ms: u64) -> Now {
    Now { mono: Micros::from_millis(ms), wall_ms: 1_000_000 + ms }
}

fn identity(replica: u8, version: u64) -> Identity {
    Identity { replica: ReplicaId(replica), incarnation: Incarnation(0), version }
}

fn record(signer: u8, cluster: ClusterId, identity: Identity, address: &str) -> Record {
    Record::sign(&Keyed(key_of(signer)), cluster, identity, address.into())
}

fn good(replica: u8, version: u64, address: &str) -> Record {
    record(replica, CLUSTER, identity(replica, version), address)
}

fn step(hints: &mut SwimHints, ms: u64, input: Input) -> Vec<Effect> {
    let mut effects = Vec::new();
    hints.step(now(ms), input, &mut effects);
    hints.check();
    effects
}

fn tell(hints: &mut SwimHints, ms: u64, from: u8, message: &Message) -> Vec<Effect> {
    step(hints, ms, Input::Peer { from: ReplicaId(from), bytes: Bytes::from(message.encode()) })
}

fn only(record: Record) -> Message {
    Message { records: vec![record], packet: Vec::new() }
}

fn held(hints: &SwimHints, replica: u8) -> (Option<String>, u64) {
    let hint = hints.hints().into_iter().find(|hint| hint.replica.0 == replica).expect("a member");
    (hint.address, hint.version)
}

/// The body of a packet as it travels: who, to whom, a word and updates.
fn packet(from: Identity, to: Identity, word: u8, updates: &[(Identity, u8)]) -> Vec<u8> {
    let mut bytes = encode(&(from, 0u16, to));
    bytes.push(word);
    // Announce, broadcast and "you are dead" are bare.
    if ![6, 9, 10].contains(&word) {
        bytes.extend(u16::try_from(updates.len()).expect("few").to_be_bytes());
        for (id, state) in updates {
            bytes.extend(encode(&(*id, 0u16, *state)));
        }
    }
    bytes
}

const GOSSIP: u8 = 8;
const ANNOUNCE: u8 = 6;
const TURN_UNDEAD: u8 = 10;
const DOWN: u8 = 2;
const ALIVE: u8 = 0;

#[test]
fn a_forged_or_stale_record_never_wins_and_is_counted_by_reason() {
    let mut hints = hints(0, 4, &address_of(0), 1, now(0));
    tell(&mut hints, 1, 1, &only(good(2, 50, "right.example:1")));
    let right = (Some("right.example:1".to_string()), 50);
    assert_eq!(held(&hints, 2), right, "a record is believed whoever brings it");
    let mut altered = good(2, 60, "right.example:1");
    altered.address = "wrong.example:1".into();
    let long = format!("{}:1", "h".repeat(260));
    let other_life = Identity { incarnation: Incarnation(1), ..identity(2, 60) };
    let stranger = record(9, CLUSTER, identity(9, 60), "wrong.example:1");
    let cases = [
        (record(1, CLUSTER, identity(2, 60), "wrong.example:1"), DropReason::BadSignature),
        (record(2, ClusterId([8; 32]), identity(2, 60), "wrong.example:1"), DropReason::BadSignature),
        (altered, DropReason::BadSignature),
        (record(2, CLUSTER, other_life, "wrong.example:1"), DropReason::OtherIncarnation),
        (stranger, DropReason::Stranger),
        (good(2, 49, "wrong.example:1"), DropReason::Stale),
        (good(2, 60, "no address"), DropReason::BadAddress),
        (good(2, 60, &long), DropReason::BadAddress),
        (good(0, 60, "wrong.example:1"), DropReason::Stale),
        (record(1, CLUSTER, identity(0, u64::MAX), "wrong.example:1"), DropReason::BadSignature),
    ];
    for (record, reason) in cases {
        let before = hints.drops().of(reason);
        tell(&mut hints, 2, 1, &only(record.clone()));
        assert_eq!(hints.drops().of(reason), before + 1, "{record:?}");
        assert_eq!(held(&hints, 2), right);
        assert_eq!(hints.own_address(), address_of(0));
    }
    tell(&mut hints, 3, 3, &only(good(2, 51, "newer.example:1")));
    assert_eq!(held(&hints, 2), (Some("newer.example:1".into()), 51), "the owner's next one does win");
}

#[test]
fn what_cannot_be_a_message_is_counted_and_harms_nobody() {
    let mut hints = hints(0, 4, &address_of(0), 1, now(0));
    tell(
        &mut hints,
        1,
        1,
        &Message { records: vec![good(1, 5, "a:1"), good(2, 5, "b:1")], packet: Vec::new() },
    );
    let me = identity(0, 1_000_000);
    let word = |from, to, word| Message { records: Vec::new(), packet: packet(from, to, word, &[]) };
    let cases = [
        (1, vec![0; MESSAGE_BYTES_MAX + 1], DropReason::Oversize),
        (1, vec![9; 40], DropReason::Malformed),
        (1, Message { records: Vec::new(), packet: vec![1, 2, 3] }.encode(), DropReason::Malformed),
        (9, only(good(1, 6, "a:1")).encode(), DropReason::Stranger),
        (0, only(good(1, 6, "a:1")).encode(), DropReason::Stranger),
        (1, word(identity(2, 5), me, GOSSIP).encode(), DropReason::NotTheSender),
        (1, word(identity(1, 5), identity(2, 5), GOSSIP).encode(), DropReason::Misaddressed),
        (1, word(identity(1, 6), me, GOSSIP).encode(), DropReason::Unproven),
        (3, word(identity(3, 1), me, ANNOUNCE).encode(), DropReason::Unproven),
    ];
    for (from, bytes, reason) in cases {
        let before = hints.drops().clone();
        step(&mut hints, 2, Input::Peer { from: ReplicaId(from), bytes: Bytes::from(bytes) });
        assert_eq!(hints.drops().of(reason), before.of(reason) + 1, "{reason:?}");
        assert_eq!(hints.drops().total(), before.total() + 1, "{reason:?}");
    }
}

/// The lie against which versions are signed: a greater one in a member's name would put it out of its own for ever.
#[test]
fn nobody_is_given_an_identity_that_it_has_not_signed() {
    let mut hints = hints(0, 4, &address_of(0), 1, now(0));
    let standing = |hints: &SwimHints| hints.hints()[1].standing;
    tell(
        &mut hints,
        1,
        1,
        &Message { records: vec![good(1, 5, "a:1"), good(2, 5, "b:1")], packet: Vec::new() },
    );
    assert_eq!(standing(&hints), Standing::Unknown, "what is passed on says nothing of who is there");
    tell(&mut hints, 1, 2, &only(good(2, 6, "b:1")));
    assert_eq!(standing(&hints), Standing::Alive, "who shows itself is there");
    let claims = [(identity(2, u64::MAX), ALIVE), (identity(2, u64::MAX), DOWN), (identity(7, 1), ALIVE)];
    let lie = packet(identity(1, 5), identity(0, 1_000_000), GOSSIP, &claims);
    assert!(Packet::decode(&lie).is_ok(), "what this test writes is what travels");
    tell(&mut hints, 2, 1, &Message { records: Vec::new(), packet: lie });
    assert_eq!(hints.drops().of(DropReason::Unproven), 2);
    assert_eq!(hints.drops().of(DropReason::Stranger), 1);
    assert_eq!(standing(&hints), Standing::Alive);
    // A lie about what was signed is believed, until its owner contradicts with the next version.
    let lie = packet(identity(1, 5), identity(0, 1_000_000), GOSSIP, &[(identity(2, 6), DOWN)]);
    tell(&mut hints, 3, 1, &Message { records: Vec::new(), packet: lie.clone() });
    assert_eq!(standing(&hints), Standing::Down);
    tell(&mut hints, 4, 2, &only(good(2, 7, "b:1")));
    assert_eq!(standing(&hints), Standing::Alive);
    tell(&mut hints, 5, 1, &Message { records: Vec::new(), packet: lie });
    assert_eq!(standing(&hints), Standing::Alive, "said of what is past");
}

#[test]
fn who_is_called_dead_without_end_renews_once_a_second_at_most() {
    let mut hints = hints(0, 4, &address_of(0), 1, now(0));
    tell(&mut hints, 1, 1, &only(good(1, 5, "a:1")));
    step(&mut hints, 1, Input::LinkUp { peer: ReplicaId(1) });
    let mut versions = std::collections::BTreeSet::new();
    for ms in (2..10_000u64).step_by(10) {
        let mut effects = Vec::new();
        if ms % 100 == 2 {
            let newest = versions.last().copied().unwrap_or(1_000_000);
            let bare = packet(identity(1, 5), identity(0, newest), TURN_UNDEAD, &[]);
            effects = tell(&mut hints, ms, 1, &Message { records: Vec::new(), packet: bare });
        }
        if hints.next_wakeup() <= now(ms).mono {
            effects.extend(step(&mut hints, ms, Input::Tick));
        }
        for effect in effects {
            let Effect::Send { bytes, .. } = effect else { continue };
            let message = Message::decode(&bytes).expect("what it sends can be read");
            versions.extend(message.records.iter().filter(|record| record.replica.0 == 0).map(|r| r.version));
        }
    }
    assert!((8..=11).contains(&versions.len()), "{versions:?} in ten seconds");
    assert!(*versions.last().expect("some") < 1_000_000 + 10_000, "a restart's version is above all of them");
}

#[test]
fn a_flood_is_cut_at_its_source_and_an_owner_cannot_renew_without_end() {
    let mut hints = hints(0, 4, &address_of(0), 1, now(0));
    for version in 1..=50 {
        tell(&mut hints, 1, 1, &only(good(2, version, "b:1")));
    }
    assert_eq!(held(&hints, 2).1, 8, "so many at once");
    assert_eq!(hints.drops().of(DropReason::Flood), 42);
    for _ in 0..100 {
        tell(&mut hints, 1, 1, &only(good(2, 8, "b:1")));
    }
    assert_eq!(hints.drops().of(DropReason::Flood), 92, "fifty of a hundred messages were left");
    tell(&mut hints, 1, 3, &only(good(3, 1, "c:1")));
    assert_eq!(held(&hints, 3).1, 1, "others are heard");
}

/// Of whom the log has a new incarnation, what the lost one said is void; who is no member any more is forgotten.
#[test]
fn members_come_from_the_log_alone() {
    let mut hints = hints(0, 4, &address_of(0), 1, now(0));
    for id in 1..4 {
        tell(&mut hints, 1, id, &only(good(id, 5, "a:1")));
    }
    let mut replaced: Vec<Known> = members(4);
    replaced[2] = Known { id: ReplicaId(2), incarnation: Incarnation(1), key: key_of(20) };
    replaced.remove(3);
    step(&mut hints, 2, Input::Members(replaced));
    assert_eq!(hints.hints().len(), 2);
    assert_eq!((held(&hints, 2), hints.hints()[1].standing), ((None, 0), Standing::Unknown));
    tell(&mut hints, 3, 1, &only(good(2, 6, "b:1")));
    assert_eq!(hints.drops().of(DropReason::OtherIncarnation), 1);
    let reborn = Identity { incarnation: Incarnation(1), ..identity(2, 1) };
    tell(&mut hints, 4, 2, &only(record(20, CLUSTER, reborn, "b:2")));
    assert_eq!((held(&hints, 2), hints.hints()[1].standing), ((Some("b:2".into()), 1), Standing::Alive));
}

/// Two records under one version are their owner's fault, and end alike everywhere.
#[test]
fn of_two_records_with_one_version_all_hold_the_same() {
    let (one, two) = (good(2, 5, "a:1"), good(2, 5, "b:1"));
    for order in [[one.clone(), two.clone()], [two, one]] {
        let mut hints = hints(0, 4, &address_of(0), 1, now(0));
        for record in order {
            tell(&mut hints, 1, 1, &only(record));
        }
        assert_eq!(held(&hints, 2), (Some("b:1".into()), 5));
    }
}

#[test]
fn a_liar_that_calls_everybody_dead_is_contradicted() {
    let count = 7;
    let mut world = World::new(3, count);
    world.run(10_000);
    for _ in 0..100 {
        // What member 6 holds true, said by it in everybody's face: all others are down.
        let known: Vec<_> = world.nodes[6].hints.hints();
        let own = world.nodes[0].hints.hints()[5].version;
        let id = |replica: u8| match replica {
            6 => identity(6, own),
            other => identity(other, known[usize::from(other)].version),
        };
        for to in 0..6 {
            let dead: Vec<_> = (0..6).filter(|of| *of != to).map(|of| (id(of), DOWN)).collect();
            let packet = packet(id(6), id(to), GOSSIP, &dead);
            let bytes = Bytes::from(Message { records: Vec::new(), packet }.encode());
            world.step(to, Input::Peer { from: ReplicaId(6), bytes });
        }
        world.run(100);
    }
    let downs = world.changes.iter().filter(|(_, _, hint)| hint.standing == Standing::Down).count();
    assert!(downs > 50, "the lies must have told: {downs}");
    let took = world.run_until(10_000, "all are alive again", World::all_alive);
    println!("ten seconds of lies, believed {downs} times: the truth after {took} ms");
}

/// Damaged in any one byte, cut anywhere: a message is dropped or means something else, and nothing panics.
#[test]
fn damaged_messages_never_panic() {
    let me = identity(0, 1_000_000);
    let updates = [(identity(2, 5), DOWN), (identity(3, 5), ALIVE)];
    let records = vec![good(1, 5, "a:1"), good(2, 5, "b:1"), good(3, 5, "c:1")];
    for word in [0u8, 1, 6, 7, GOSSIP, TURN_UNDEAD] {
        let mut body = packet(identity(1, 5), me, word, &updates);
        if word < 2 {
            body.insert(29, 7);
        }
        let whole = Message { records: records.clone(), packet: body }.encode();
        for place in 0..whole.len() {
            for change in [1u8, 0x80, 0xff] {
                let mut hints = hints(0, 4, &address_of(0), 1, now(0));
                let mut bytes = whole.clone();
                bytes[place] ^= change;
                step(&mut hints, 1, Input::Peer { from: ReplicaId(1), bytes: Bytes::from(bytes) });
            }
            let mut hints = hints(0, 4, &address_of(0), 1, now(0));
            let bytes = Bytes::copy_from_slice(&whole[..place]);
            step(&mut hints, 1, Input::Peer { from: ReplicaId(1), bytes });
        }
    }
}
