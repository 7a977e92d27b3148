//! Segments: what was said in one epoch must not count in another. Terms and indices begin anew with each, so nothing but
//! the epoch's number tells the words of one from those of the next.

use super::cluster::{Cluster, Session};
use super::table::{with_rule, without};
use dwcp_base::{Epoch, Mutant, Mutants, NetworkMode};
use dwcp_replica::PeerMessage;
use dwcp_replica::raft::{Message, Said};
use std::cell::RefCell;
use std::rc::Rc;

/// In epoch 1 both followers of r0 acknowledge entries. In epoch 2, which r0 leads again, nothing that it says reaches
/// anybody, and the old acknowledgements come a second time. Whether r0 then believes that a majority has a new command.
fn old_acknowledgements_commit(mutants: Mutants) -> bool {
    let mut cluster = Cluster::with_segments(3, mutants);
    let said = Rc::new(RefCell::new(Vec::new()));
    let heard = said.clone();
    cluster.spoil = Some(Box::new(move |from, to, message| {
        if let PeerMessage::Segment { epoch: Epoch(1), bytes } = message
            && Message::from_bytes(bytes).is_ok_and(|message| matches!(message.said, Said::Accepted { .. }))
        {
            heard.borrow_mut().push((from, to, message.clone()));
        }
    }));
    cluster.run(500);
    cluster.order_mode(1, NetworkMode::Datacenter, 0);
    cluster.run(500);
    assert_eq!(cluster.status(0).epoch, Epoch(2), "it was led by whoever the root chose");
    said.borrow_mut().clear();
    let heard = said.clone();
    cluster.spoil = Some(Box::new(move |from, to, message| {
        if let PeerMessage::Segment { epoch: Epoch(2), bytes } = message
            && Message::from_bytes(bytes).is_ok_and(|message| matches!(message.said, Said::Accepted { .. }))
        {
            heard.borrow_mut().push((from, to, message.clone()));
        }
    }));
    let mut session = Session::new(1, cluster.genesis.cluster());
    cluster.send(0, &session.open_frame(cluster.wall_ms() + 30_000));
    cluster.run(20);
    for index in 0..40 {
        cluster.send(0, &session.put(&format!("k{index}"), b"v"));
        cluster.run(5);
    }
    cluster.order_mode(1, NetworkMode::Datacenter, 0);
    cluster.run(500);
    let segment = cluster.status(0).segment.expect("the next one is open");
    assert_eq!((cluster.status(0).epoch, segment.leader), (Epoch(3), Some(dwcp_base::ReplicaId(0))));

    let old = said.borrow().clone();
    assert!(old.len() > 40, "{} acknowledgements of epoch 2", old.len());
    cluster.cut = Some(|_, _, message| matches!(message, PeerMessage::Segment { .. }));
    cluster.send(0, &session.put("alone", b"v"));
    cluster.run(5);
    assert!(cluster.value(0, "alone").is_none(), "nobody has acknowledged it");
    for (from, to, message) in &old {
        cluster.put_in(*from, *to, message);
    }
    cluster.run(5);
    assert!((1..3).all(|id| cluster.value(id, "alone").is_none()));
    cluster.value(0, "alone").is_some()
}

#[test]
fn an_acknowledgement_of_another_epoch_does_not_count() {
    assert!(!old_acknowledgements_commit(with_rule()));
    assert!(old_acknowledgements_commit(without(Mutant::EpochUnchecked)));
}
