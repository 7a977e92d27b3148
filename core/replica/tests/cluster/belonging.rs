//! Which store a key belongs to: by declared prefixes, and where nobody declared any.

use super::syncing::put;
use super::*;
use dwcp_replica::SyncReply;
use dwcp_replica::sync::values::{Op, Write};
use dwcp_state::kv::{Compare, CompareOp, CompareTarget, DeleteRange, Txn};

#[test]
fn a_command_on_convergent_keys_is_refused_before_it_is_ordered() {
    let mut cluster = Cluster::new(4);
    let mut session = Session::open(&mut cluster, 1);
    let frame = session.put("free/x", b"1");
    cluster.send(1, &frame);
    cluster.run(2_000);
    let refused = cluster.replies.iter().find_map(|(_, reply)| match reply {
        ClientReply::Refused { refusal, .. } => Some(refusal),
        _ => None,
    });
    let refusal = refused.expect("it is told at once");
    assert!(refusal.definite() && refusal.to_string().contains("dwcp sync"), "{refusal}");
    let frame = session.put("elsewhere", b"1");
    cluster.send(1, &frame);
    cluster.run(2_000);
    assert_eq!(cluster.executed(1).len(), 2, "other keys are as ever");
}

/// Nobody declared these keys: each belongs to the store that has it, until it is deleted there.
#[test]
fn a_key_that_one_store_has_is_refused_by_the_other() {
    let mut cluster = Cluster::new(4);
    let mut session = Session::open(&mut cluster, 1);
    cluster.write(1, 1, vec![put("conv/b", "1")]);
    cluster.run(500);
    assert!(matches!(cluster.told(1, 1), Some(SyncReply::Written(_))));
    let refusals = |cluster: &Cluster| {
        let refusal = |reply: &ClientReply| match reply {
            ClientReply::Refused { refusal, .. } => Some(refusal.to_string()),
            _ => None,
        };
        cluster.replies.iter().filter_map(|(_, reply)| refusal(reply)).collect::<Vec<String>>()
    };
    let range = |key: &str, end: &str| {
        let delete =
            DeleteRange { key: key.to_owned().into(), range_end: end.to_owned().into(), prev_kv: false };
        KvCommand::DeleteRange(delete)
    };
    // A put, a comparison, and ranges around it.
    let compare = Compare {
        key: "conv/b".into(),
        range_end: Bytes::new(),
        op: CompareOp::Equal,
        target: CompareTarget::Version(0),
    };
    let txn = KvCommand::Txn(Txn { compare: [compare].into(), ..Txn::default() });
    let refused = [KvCommand::put("conv/b", "2"), txn, range("conv/a", "conv/c"), range("b", "d")];
    for (at, command) in (1..).zip(refused) {
        let frame = session.commands(vec![Command::Machine(command.encode()).encode()]);
        cluster.send(1, &frame);
        cluster.run(200);
        let told = refusals(&cluster);
        assert!(
            told.len() == at && told[at - 1].contains("conv/b") && told[at - 1].contains("dwcp sync"),
            "{told:?}"
        );
    }
    for command in [KvCommand::put("conv/c", "2"), range("conv/c", "d"), KvCommand::put("conv", "3")] {
        let frame = session.commands(vec![Command::Machine(command.encode()).encode()]);
        cluster.send(1, &frame);
        cluster.run(200);
    }
    assert_eq!((refusals(&cluster).len(), cluster.executed(1).len()), (4, 4), "its neighbours are free");
    // The other way round, on any node that has executed it.
    cluster.write(2, 2, vec![put("conv", "1")]);
    cluster.run(500);
    let Some(SyncReply::Refused { reason, definite: true }) = cluster.told(2, 2) else {
        panic!("it is taken")
    };
    assert!(reason.contains("\"conv\"") && reason.contains("dwcp kv"), "{reason}");
    // Deleted there, it is free.
    cluster.write(1, 3, vec![Write::new("conv/b".to_string(), Op::Delete)]);
    cluster.run(500);
    let frame = session.put("conv/b", b"4");
    cluster.send(1, &frame);
    cluster.run(500);
    assert_eq!(cluster.executed(1).len(), 5, "{:?}", refusals(&cluster));
}
