//! Stories of one segment in the order of the Raft paper (Ongaro & Ousterhout, USENIX ATC 2014) and of Ongaro's thesis,
//! then what this project adds to them, then whatever members might say (`border`), then chance (`schedules`).

mod net;
mod schedules;

use dwcp_base::{Micros, ReplicaId};
use dwcp_raft::{Index, ProposeError, RaftNode};
use net::{Net, batch};

// Raft section 5.2: leader election.

#[test]
fn the_named_member_leads_within_a_round_trip_and_a_sync() {
    let mut net = Net::new(3, 1);
    assert!(net.until(5, |net| net.leader() == Some(0)));
    assert!(net.until(5, |net| net.up().iter().all(|id| net.raft(*id).leader() == Some(ReplicaId(0)))));
    net.judge();
}

#[test]
fn one_member_leads_and_commits_by_itself() {
    let mut net = Net::new(1, 1);
    assert!(net.until(5, |net| net.leader() == Some(0)));
    net.propose(0, &batch("alone")).unwrap();
    assert!(net.until(5, |net| net.raft(0).commit() == Index(2)));
    net.crash(0);
    net.restart(0);
    assert!(net.until(5, |net| net.raft(0).commit() == Index(3)));
    assert_eq!(net.committed_frames(), ["alone"]);
    net.judge();
}
