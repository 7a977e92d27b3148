//! Membership hints as another member sends them, to a live machine that holds records and knows who is there.

use crate::Seal::Sums;
use crate::keys::{N, START_MS, Signer, cluster, vote_key};
use crate::meter::bounded;
use crate::{Target, Verdict};
use bytes::Bytes;
use dwcp_base::{Incarnation, Micros, Now, ReplicaId};
use dwcp_hints::{
    DropReason, Effect, Hints, Identity, Input, Known, MESSAGE_BYTES_MAX, Message, Packet, RECORDS_MAX,
    Record, Setup, SwimHints, Timing,
};
use std::sync::Arc;

pub static MESSAGE: Target =
    Target::new("hint_message", run_message, messages, Sums(seal_message)).bombs(bombs);
pub static TOLD: Target = Target::new("hint_told", run_told, messages, Sums(seal_message)).bombs(bombs).live(
    4,
    LIVE,
    &["hint_message"],
);

const LIVE: &str = "each is told to a machine of its own, which is checked";

/// Whose messages they are, and whose machine takes them.
const SENDER: u8 = 1;
const ME: u8 = 0;

fn machine(me: u8) -> SwimHints {
    let known = |id| {
        let (id, incarnation) = (ReplicaId(id), Incarnation(0));
        Known { id, incarnation, key: vote_key(id, incarnation) }
    };
    let setup = Setup {
        cluster: cluster(),
        me: ReplicaId(me),
        incarnation: Incarnation(0),
        address: format!("10.0.0.{me}:7000"),
        members: (0..N).map(known).collect(),
        timing: Timing::default(),
        seed: u64::from(me),
    };
    let crypto = Arc::new(Signer(vote_key(ReplicaId(me), Incarnation(0))));
    SwimHints::new(setup, crypto, at(0))
}

fn at(ms: u64) -> Now {
    Now { mono: Micros::from_millis(ms), wall_ms: START_MS + ms }
}

fn tell(machine: &mut SwimHints, ms: u64, input: Input) -> Vec<(u8, Bytes)> {
    let mut effects = Vec::new();
    machine.step(at(ms), input, &mut effects);
    machine.check();
    let sent = |effect| match effect {
        Effect::Send { to, bytes } => Some((to.0, bytes)),
        Effect::Changed(_) => None,
    };
    effects.into_iter().filter_map(sent).collect()
}

/// What a small cluster says in its first minute, with one member that falls silent: every word but two is among it.
fn story() -> Vec<(u8, u8, Bytes)> {
    let mut machines: Vec<SwimHints> = (0..N).map(machine).collect();
    let mut said = Vec::new();
    let mut waiting: Vec<(u8, u8, Bytes)> = Vec::new();
    for me in 0..N {
        for peer in (0..N).filter(|peer| *peer != me) {
            let sent = tell(&mut machines[usize::from(me)], 1, Input::LinkUp { peer: ReplicaId(peer) });
            waiting.extend(sent.into_iter().map(|(to, bytes)| (me, to, bytes)));
        }
    }
    for ms in (2..60_000).step_by(10) {
        // The last one neither hears nor speaks for half a minute, and then comes back.
        let deaf = |id: u8| id == N - 1 && (10_000..40_000).contains(&ms);
        for (from, to, bytes) in std::mem::take(&mut waiting) {
            said.push((from, to, bytes.clone()));
            if !deaf(to) && !deaf(from) {
                let input = Input::Peer { from: ReplicaId(from), bytes };
                let sent = tell(&mut machines[usize::from(to)], ms, input);
                waiting.extend(sent.into_iter().map(|(next, bytes)| (to, next, bytes)));
            }
        }
        for me in 0..N {
            if machines[usize::from(me)].next_wakeup() <= at(ms).mono {
                let sent = tell(&mut machines[usize::from(me)], ms, Input::Tick);
                waiting.extend(sent.into_iter().map(|(to, bytes)| (me, to, bytes)));
            }
        }
    }
    said
}

/// Of what is said to one, the first of each word and those with records.
fn messages() -> Vec<Vec<u8>> {
    let mut words = Vec::new();
    let mut seeds: Vec<Vec<u8>> = Vec::new();
    for (from, to, bytes) in story() {
        let message = Message::decode(&bytes).expect("what is sent can be read");
        let word = Packet::decode(&message.packet).ok().map(|packet| std::mem::discriminant(&packet.word()));
        let is_new = !words.contains(&(word, message.records.len()));
        if (from, to) == (SENDER, ME) && is_new {
            words.push((word, message.records.len()));
            seeds.push(bytes.to_vec());
        }
    }
    // Two owners at once, as a peer that knows of both tells of them.
    let records = (1..3).map(|id| record(id, 0, 7, &format!("node-{id}.example:7000"))).collect();
    seeds.push(Message { records, packet: Vec::new() }.encode());
    seeds
}

fn record(id: u8, incarnation: u32, version: u64, address: &str) -> Record {
    let (replica, incarnation) = (ReplicaId(id), Incarnation(incarnation));
    let identity = Identity { replica, incarnation, version };
    Record::sign(&Signer(vote_key(replica, incarnation)), cluster(), identity, address.into())
}

/// Signs every record again, as whom it claims to be from.
fn seal_message(bytes: &mut Vec<u8>) -> bool {
    let Ok(mut message) = Message::decode(bytes) else { return false };
    for held in &mut message.records {
        *held = record(held.replica.0, held.incarnation.0, held.version, &held.address);
    }
    *bytes = message.encode();
    bytes.len() <= MESSAGE_BYTES_MAX
}

fn bombs() -> Vec<Vec<u8>> {
    let many = vec![record(1, 0, 1, "a:1"); RECORDS_MAX + 1];
    let long = record(1, 0, 1, &"a".repeat(MESSAGE_BYTES_MAX));
    // A length prefix that promises four billion records, and one for an address.
    let mut lying = Message { records: vec![record(1, 0, 1, "a:1")], packet: Vec::new() }.encode();
    lying[17..21].fill(0xff);
    vec![
        vec![0xff; MESSAGE_BYTES_MAX],
        vec![0xff; 100_000],
        lying,
        Message { records: many, packet: Vec::new() }.encode(),
        Message { records: vec![long], packet: Vec::new() }.encode(),
    ]
}

/// Accepted when it can be read, the packet in it too where there is one.
fn run_message(bytes: &[u8]) -> Verdict {
    let read = bounded(bytes, || Message::decode(bytes));
    if let Ok(message) = &read {
        assert!(message.encode() == bytes, "a message was accepted that is not its own encoding");
        if let Ok(packet) = Packet::decode(&message.packet) {
            assert!(packet.encode() == message.packet, "a packet was accepted that is not its own encoding");
        }
    }
    Verdict::of(read.is_ok())
}

/// Accepted when it can be read. A machine takes it twice: nothing may be held that was not signed, and what was
/// believed the first time is no news the second time.
fn run_told(bytes: &[u8]) -> Verdict {
    let read = bounded(bytes, || Message::decode(bytes));
    let mut machine = machine(ME);
    tell(&mut machine, 1, Input::LinkUp { peer: ReplicaId(SENDER) });
    let input = Input::Peer { from: ReplicaId(SENDER), bytes: Bytes::copy_from_slice(bytes) };
    tell(&mut machine, 2, input.clone());
    let held = |machine: &SwimHints| -> Vec<_> {
        machine.hints().into_iter().map(|hint| (hint.replica, hint.address, hint.version)).collect()
    };
    let before = held(&machine);
    let signed = |hint: &(ReplicaId, Option<String>, u64)| {
        let (replica, Some(address), version) = hint else { return true };
        let good = record(replica.0, 0, *version, address).signature;
        let records = read.iter().flat_map(|message| &message.records);
        records.into_iter().any(|record| record.replica == *replica && record.signature == good)
    };
    assert!(before.iter().all(signed), "a record is held that its owner did not sign: {before:?}");
    tell(&mut machine, 3, input);
    assert!(held(&machine) == before, "what came again changed what is held");
    tell(&mut machine, 400, Input::Tick);
    if read.is_err() {
        let drops = machine.drops();
        let seen = drops.of(DropReason::Malformed) + drops.of(DropReason::Oversize);
        assert!(seen == 2 && drops.total() == 2, "rubbish is dropped whole: {drops:?}");
        assert!(before == held(&self::machine(ME)), "rubbish left something");
    }
    Verdict::of(read.is_ok())
}
