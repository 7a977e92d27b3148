//! Bytes from strangers never panic, never overflow, and what decodes encodes back to itself.

use crate::{BORN_MS, Unsigned, context, frame, genesis, key, kv_digests, open_frame, put};
use bytes::Bytes;
use dwcp_base::configuration::Role;
use dwcp_base::{LogTime, Mutants, Position, encode};
use dwcp_state::kv::{
    CompareOp, CompareTarget, DeleteRange, Kv, KvBody, KvCommand, KvReply, Put, Range, Txn, TxnOp, TxnReply,
};
use dwcp_state::{AdminCommand, ClientFrame, Command, FrameContent, SessionFrame, State, StateMachine};
use proptest::prelude::*;

/// Valid encodings of every shape, to be damaged.
fn corpus() -> Vec<Bytes> {
    let nested = Txn::default()
        .when("a", CompareOp::Greater, CompareTarget::Mod(1))
        .then(TxnOp::Put(Put { lease: 1, prev_kv: true, ..Put::new("a", "1") }))
        .or_else(TxnOp::Range(Range { limit: 2, revision: 2, ..Range::prefix("a") }));
    let txn = Txn::default()
        .when("b", CompareOp::Equal, CompareTarget::Value("x".into()))
        .then(TxnOp::Txn(nested))
        .or_else(TxnOp::DeleteRange(DeleteRange { key: "a".into(), range_end: "c".into(), prev_kv: true }));
    vec![
        KvCommand::put("a", "1").encode(),
        KvCommand::Range(Range::prefix("a")).encode(),
        KvCommand::DeleteRange(DeleteRange { key: "a".into(), range_end: "\0".into(), prev_kv: true })
            .encode(),
        KvCommand::Txn(txn).encode(),
        KvCommand::Compact { revision: 3 }.encode(),
        KvCommand::LeaseGrant { id: 1, ttl_s: 10 }.encode(),
        KvCommand::LeaseRevoke { id: 1 }.encode(),
        KvCommand::LeaseKeepAlive { id: 1 }.encode(),
        KvCommand::LeaseTimeToLive { id: 1, keys: true }.encode(),
        KvCommand::LeaseList.encode(),
        KvCommand::AlarmList.encode(),
        KvCommand::AlarmDisarm.encode(),
        KvCommand::QuotaSet { quota_bytes: 1 << 20 }.encode(),
    ]
}

fn damaged(seed: usize, damage: &[(usize, u8)], cut: usize) -> Vec<u8> {
    let corpus = corpus();
    let mut bytes = corpus[seed % corpus.len()].to_vec();
    for (place, byte) in damage {
        let place = place % bytes.len();
        bytes[place] = *byte;
    }
    if cut.is_multiple_of(4) {
        bytes.truncate(cut % (bytes.len() + 1));
    }
    bytes
}

fn damage() -> impl Strategy<Value = Vec<(usize, u8)>> {
    // Small numbers reach further than random ones: they are tags, lengths and flags.
    prop::collection::vec((any::<usize>(), prop_oneof![0u8..8, any::<u8>()]), 0..5)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_never_panic_and_are_canonical(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(checked) = ClientFrame::decode(bytes.clone()) {
            prop_assert_eq!(checked.frame().encode(), Bytes::from(bytes.clone()));
        }
        if let Ok(command) = KvCommand::decode(&bytes) {
            prop_assert_eq!(command.encode(), Bytes::from(bytes.clone()));
        }
        if let Ok(reply) = KvReply::decode(&bytes) {
            prop_assert_eq!(reply.encode(), Bytes::from(bytes.clone()));
        }
        if let Ok(command) = Command::decode(&Bytes::from(bytes.clone())) {
            prop_assert_eq!(command.encode(), Bytes::from(bytes));
        }
    }

    #[test]
    fn damaged_commands_are_refused_or_are_other_commands(
        acts in prop::collection::vec((any::<usize>(), damage(), any::<usize>()), 1..12)
    ) {
        let mut kv = Kv::new(1 << 20);
        for (seed, damage, cut) in acts {
            let bytes = damaged(seed, &damage, cut);
            let before = (kv_digests(&mut kv), kv.no_space());
            let read_only = kv.read_only(&bytes);
            let decoded = KvCommand::decode(&bytes);
            if let Ok(command) = &decoded {
                prop_assert_eq!(command.encode(), Bytes::from(bytes.clone()));
                prop_assert_eq!(command.read_only(), read_only);
            }
            let _ = kv.query(&bytes);
            let answer = kv.apply(&context(Role::Admin, 0), &bytes);
            prop_assert!(decoded.is_ok() || answer.is_err());
            if (answer.is_err() && kv.no_space() == before.1) || read_only {
                prop_assert_eq!(before.0, kv_digests(&mut kv));
            }
        }
        let mut copy = crate::kv_copy(&mut kv);
        prop_assert_eq!(kv_digests(&mut kv), kv_digests(&mut copy));
    }

    /// Damage below a good envelope, so that it reaches the session table and the machine.
    #[test]
    fn damaged_frames_leave_a_state_that_still_copies(
        acts in prop::collection::vec((any::<usize>(), damage(), any::<usize>(), 0u64..50, 0u8..6), 1..12)
    ) {
        let mut state = State::new(&genesis(), Kv::new(1 << 20), Mutants::default());
        state.begin_entry(Position(1), LogTime(BORN_MS));
        state.execute(&open_frame("root", 1, 50, 0, BORN_MS + 1_000));
        for (seed, damage, cut, number, tag) in acts {
            let mut command = vec![tag];
            command.extend(damaged(seed, &damage, cut));
            let body = SessionFrame {
                session_key: key(50),
                low_water: number / 3,
                first: number,
                commands: vec![Bytes::from(command), put("a", "1")],
            };
            let bytes = ClientFrame::commands(&Unsigned, crate::CLUSTER, &body).encode();
            if let Ok(checked) = ClientFrame::decode(bytes) {
                let _ = state.admit(&checked);
                let outcome = state.execute(&checked);
                prop_assert_eq!(outcome.results.len(), 2);
                prop_assert!(dwcp_base::decode::<dwcp_state::FrameOutcome>(&encode(&outcome)) == Ok(outcome));
            }
        }
        crate::snapshots::copy(&mut state);
    }

    /// Frames with damage anywhere: refused, or another frame that means what it says.
    #[test]
    fn damaged_envelopes_keep_their_promises(
        damage in damage(),
        low_water in 0u64..4,
        first in prop_oneof![0u64..2000, Just(u64::MAX), Just(u64::MAX - 1)],
        count in 0usize..4,
    ) {
        let body = SessionFrame {
            session_key: key(50), low_water, first,
            commands: vec![AdminCommand::PrincipalList; count].into_iter().map(|c| Command::Admin(c).encode()).collect(),
        };
        let mut bytes = ClientFrame::commands(&Unsigned, crate::CLUSTER, &body).encode().to_vec();
        for (place, byte) in damage {
            let place = place % bytes.len();
            bytes[place] = byte;
        }
        if let Ok(checked) = ClientFrame::decode(bytes) {
            if let FrameContent::Commands(frame) = checked.content() {
                prop_assert!(frame.low_water >= 1 && frame.low_water <= frame.first);
                prop_assert!(!frame.commands.is_empty());
                prop_assert!(checked.sequences().end > checked.sequences().start);
                prop_assert!(checked.sequences().end - frame.low_water <= 1024);
            }
            let _ = checked.signature_item(crate::CLUSTER);
        }
    }

    #[test]
    fn chunks_of_rubbish_are_refused(index in 0u32..400, bytes in prop::collection::vec(0u8..4, 0..120)) {
        let mut restorer = State::restore(&genesis(), Kv::new(0), Mutants::default());
        prop_assert!(restorer.chunk(index, &bytes, &dwcp_base::Hash([9; 32])).is_err());
        prop_assert_eq!(restorer.missing().count() as u32, restorer.missing().last().unwrap() + 1);
    }
}

#[test]
fn replies_read_back() {
    let body = KvBody::Txn(TxnReply {
        succeeded: true,
        responses: vec![
            KvBody::Put { prev_kv: None },
            KvBody::Txn(TxnReply { succeeded: false, responses: vec![KvBody::LeaseRevoke] }),
            KvBody::LeaseTimeToLive { id: -1, ttl_s: -1, granted_ttl_s: 0, keys: vec!["k".into()] },
        ],
    });
    let reply = KvReply { revision: 9, body };
    assert_eq!(KvReply::decode(&reply.encode()), Ok(reply));
}

/// A frame of the largest size goes through whole.
#[test]
fn the_largest_command_executes() {
    let mut state = State::new(&genesis(), Kv::new(1 << 30), Mutants::default());
    state.begin_entry(Position(1), LogTime(BORN_MS));
    state.execute(&open_frame("ann", 2, 50, 0, BORN_MS + 1_000));
    let overhead = KvCommand::put("k", "").to_command().len();
    let value = "x".repeat(dwcp_base::limits::COMMAND_BYTES_MAX - overhead);
    let outcome = state.execute(&frame(50, 1, 1, &[put("k", &value)]));
    assert_eq!(crate::reply(&outcome.results[0]).revision, 2);
}
