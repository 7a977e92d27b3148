//! Chunks of the replicated state, made by running commands, against what the page lists of them.

use super::{agree, bytes, cell, sentence};
use bytes::Bytes;
use decoders::keys::{Signer, cluster, genesis, key};
use dwcp_base::configuration::Role;
use dwcp_base::{LogTime, Mutants, Position};
use dwcp_state::kv::{Kv, KvCommand, Put};
use dwcp_state::{
    CheckedFrame, ClientFrame, Command, Outcome, SessionFrame, SessionId, SessionOpen, State, StateMachine,
};
use std::collections::BTreeMap;

const TTL_MS: u64 = 600_000;

fn put(value: usize, prev_kv: bool) -> Bytes {
    let put =
        Put { key: Bytes::from_static(b"k"), value: vec![b'v'; value].into(), lease: 7, ..Put::default() };
    KvCommand::Put(Put { prev_kv, ..put }).to_command()
}

fn open(born_ms: u64) -> CheckedFrame {
    let open = SessionOpen {
        principal: "ann".into(),
        session_key: key("session", 1, 0),
        ttl_ms: TTL_MS,
        valid_until_ms: born_ms + 30_000,
    };
    let ann = key("principal", 1, 0);
    ClientFrame::decode(ClientFrame::open(&Signer(ann), ann, cluster(), &open).encode()).expect("it is sound")
}

fn commands(low_water: u64, first: u64, commands: Vec<Bytes>) -> CheckedFrame {
    let session = key("session", 1, 0);
    let frame = SessionFrame { session_key: session, low_water, first, commands };
    ClientFrame::decode(ClientFrame::commands(&Signer(session), cluster(), &frame).encode()).expect("sound")
}

#[test]
fn the_page_says_what_the_chunks_of_the_state_hold() {
    let genesis = genesis();
    let born_ms = genesis.created_unix_ms;
    let mut state = State::new(&genesis, Kv::new(genesis.quota_bytes), Mutants::default());
    state.begin_entry(Position(1), LogTime(born_ms + 500));
    state.execute(&open(born_ms));
    state.begin_entry(Position(2), LogTime(born_ms + 900));
    let lease = KvCommand::LeaseGrant { id: 7, ttl_s: 100 }.to_command();
    state.execute(&commands(1, 1, vec![lease, put(70_000, false)]));
    state.begin_entry(Position(3), LogTime(born_ms + 1_000));
    // Its answer holds the value before it, which is longer than what is kept of a result.
    let outcome = state.execute(&commands(2, 3, vec![put(3, true), Command::Machine(Bytes::new()).encode()]));
    let compact = KvCommand::Compact { revision: 2 }.to_command();
    state.execute(&commands(3, 5, vec![compact]));
    let Outcome::Refused(refusal) = &outcome.results[1].outcome else { panic!("it was no command") };
    for (first, last) in [(5, 6), (9, 9), (4, 4)] {
        state.carry((dwcp_base::ReplicaId(2), dwcp_base::Incarnation(3)), first, last);
    }
    let frozen = state.freeze();
    let chunk = |number: u32| frozen.chunk(number - 1).expect("the page's chunk 0 is the replica's");

    let registry: BTreeMap<String, (dwcp_base::PublicKey, Role)> =
        state.principals().into_iter().map(|who| (who.name, (who.key, who.role))).collect();
    let fields = [
        ("format (u16, 2)", bytes(&2u16)),
        ("cluster", cluster().0.to_vec()),
        ("machine's name", bytes(&<Kv as StateMachine>::NAME)),
        ("machine's version (u32)", bytes(&1u32)),
        ("cluster version (u32)", bytes(&1u32)),
        ("position", bytes(&3u64)),
        ("log time", bytes(&(born_ms + 1_000))),
        ("expiry clock ms (u64)", bytes(&1_000u64)),
        ("commands executed (u64)", bytes(&6u64)),
        ("registry: map from name to (key, role: 0 reader, 1 writer, 2 admin)", bytes(&registry)),
        (
            "map from (replica, incarnation) to the stretches of its convergent changes that the log has (vec of first and last, u64 each, ascending)",
            bytes(&BTreeMap::from([((2u8, 3u32), vec![(4u64, 6u64), (9, 9)])])),
        ),
    ];
    agree(&cell("| 1 | control of the state |", 3), &fields, &chunk(1));

    let id = SessionId::of(&key("session", 1, 0));
    let head_fields = [
        ("principal", bytes(&"ann")),
        ("key", key("session", 1, 0).0.to_vec()),
        ("time to live ms (u64)", bytes(&TTL_MS)),
        ("valid until ms (u64)", bytes(&(born_ms + 30_000))),
        ("deadline ms (u64)", bytes(&(1_000 + TTL_MS))),
        ("position it was opened at", bytes(&1u64)),
        ("low-water mark (u64)", bytes(&3u64)),
        ("highest sequence (u64)", bytes(&5u64)),
        ("ended (bool)", vec![0]),
    ];
    let head: Vec<u8> = head_fields.iter().flat_map(|(_, bytes)| bytes.clone()).collect();
    agree(&sentence("A session's head is: "), &head_fields, &head);
    // Of three results one is too long to be kept, one is a refusal, one is an answer.
    let ran_at = bytes(&3u64);
    let compacted = dwcp_state::kv::KvReply { revision: 3, body: dwcp_state::kv::KvBody::Compact };
    let results = [
        bytes(&3u32),
        [bytes(&3u64), ran_at.clone(), vec![2]].concat(),
        [bytes(&4u64), ran_at.clone(), vec![1], bytes(refusal)].concat(),
        [bytes(&5u64), ran_at, vec![0], bytes(&compacted.encode())].concat(),
    ];
    assert_eq!(
        sentence("A result is "),
        ["0 and its bytes, 1 and the refusal, or 2 when it is no longer kept"]
    );
    let fields = [
        ("vec of: id (16 bytes)", [bytes(&1u32), id.0.to_vec()].concat()),
        ("head", head),
        ("map from sequence to (position it ran at, result)", results.concat()),
    ];
    agree(&cell("| 2 to 65 | sessions", 3), &fields, &chunk(2 + u32::from(id.0[0]) % 64));

    let fields = [
        ("revision (u64)", bytes(&3u64)),
        ("compacted (u64)", bytes(&2u64)),
        ("swept (u64)", bytes(&0u64)),
        ("log start (u64, u32)", bytes(&(2u64, 0u32))),
        ("quota bytes (u64)", bytes(&genesis.quota_bytes)),
        ("alarm (bool)", vec![0]),
        ("leases granted (u64)", bytes(&0u64)),
        ("expiry clock ms (u64)", bytes(&1_000u64)),
    ];
    agree(&cell("| 66 | control of the store |", 3), &fields, &chunk(66));

    let fields = [
        ("map from id (i64) to: ttl in seconds (u64)", [bytes(&1u32), bytes(&7i64), bytes(&100u64)].concat()),
        ("deadline on the expiry clock in ms (u64)", bytes(&(900u64 + 100_000))),
    ];
    agree(&cell("| 67 to 82 | leases", 3), &fields, &chunk(67 + 7));

    let fields = [
        ("vec, ascending, of: revision (u64)", [bytes(&1u32), bytes(&3u64)].concat()),
        ("sub (u32)", bytes(&0u32)),
        ("key", bytes(&"k")),
        ("value", bytes(&"vvv")),
        ("create revision (u64)", bytes(&2u64)),
        ("version (u64)", bytes(&2u64)),
        ("lease (i64)", bytes(&7i64)),
    ];
    agree(&cell("| 83 to 338 | versions of keys", 3), &fields, &chunk(83 + 3));
}

#[test]
fn the_page_says_what_a_client_frame_is() {
    let opening = match ClientFrame::decode(open(5).bytes().clone()).expect("sound").content() {
        dwcp_state::FrameContent::Open(open) => bytes(open),
        dwcp_state::FrameContent::Commands(_) => panic!("it was an open"),
    };
    let fields = [
        ("principal's name", bytes(&"ann")),
        ("session key", key("session", 1, 0).0.to_vec()),
        ("time to live ms (u64)", bytes(&TTL_MS)),
        ("valid until ms (u64)", bytes(&30_005u64)),
    ];
    agree(&sentence("The body of an open is: "), &fields, &opening);
    let running = commands(2, 3, vec![Command::Nothing.encode()]);
    let dwcp_state::FrameContent::Commands(frame) = running.content() else { panic!("it was commands") };
    let fields = [
        ("session key", key("session", 1, 0).0.to_vec()),
        ("low-water mark (u64)", bytes(&2u64)),
        ("first sequence (u64)", bytes(&3u64)),
        ("vec of commands as `Bytes`", [bytes(&1u32), bytes(&1u32), vec![3]].concat()),
    ];
    agree(&sentence("The body of commands is: "), &fields, &bytes(frame));
    assert_eq!((open(5).bytes()[0], running.bytes()[0]), (0, 1));
}
