//! Convergent keys that change by themselves, on disk or in memory, are found by the audit and put right, and stay right; what
//! a liar says of them changes nothing.

use super::syncing::{collected, json, raft};
use super::*;
use dwcp_replica::PeerMessage;
use dwcp_sync::Message;

/// Three times as long as from one audit to the next.
const AUDITED_MS: u64 = 60_000;

fn cluster(n: u8) -> Cluster {
    let byzantine = Policy::root_only(Trust::Byzantine, Quorum::new(4, None).unwrap());
    let (policy, mode) =
        if n == 3 { (raft(), NetworkMode::Hybrid) } else { (byzantine, NetworkMode::Internet) };
    let (mut cluster, _session) = collected(policy, n, mode);
    let mut settings = super::syncing::setup();
    settings.timing.audit_interval = Micros::from_millis(AUDITED_MS / 3);
    (0..n).for_each(|id| cluster.stop(id));
    (0..n).for_each(|id| {
        cluster.settings.insert(id, settings.clone());
        cluster.start(id);
    });
    // The floors come to rest.
    cluster.run(30_000);
    cluster.assert_converged(0);
    cluster
}

/// What is in the nodes' memory, hashed anew.
fn states(cluster: &Cluster) -> Vec<Vec<(Bytes, dwcp_base::Hash)>> {
    let of = |node: &Node| {
        let convergent = node.replica.as_ref().unwrap().convergent().unwrap();
        convergent.store.key_hashes_anew().map(|(key, hash)| (key.clone(), hash)).collect()
    };
    cluster.nodes.iter().map(of).collect()
}

fn repaired(cluster: &Cluster, id: u8) -> u64 {
    let told = cluster.events(id, |event| matches!(event, Event::KeysRepaired { .. }));
    let keys = cluster.sync_status(id).keys_repaired;
    assert_eq!(told > 0, keys > 0, "the journal hears of it");
    keys
}

/// Every store that a disk holds has another value for key "c9".
fn damage_disk(cluster: &mut Cluster, id: u8) {
    const SNAPSHOT: u8 = 5;
    let mut damaged = 0;
    for (_, record) in
        cluster.nodes[usize::from(id)].disk.records.iter_mut().filter(|(_, r)| r[0] == SNAPSHOT)
    {
        let mut bytes = record.to_vec();
        let Some(key) = bytes.windows(2).position(|w| w == b"c9") else { continue };
        let value = key + bytes[key..].windows(2).position(|w| w == b"39").expect("its value");
        bytes[value + 1] = b'8';
        *record = bytes.into();
        damaged += 1;
    }
    assert!(damaged > 0, "the store was saved");
}

#[test]
fn a_key_that_changed_on_one_disk_is_put_right_and_stays_right() {
    for n in [3, 4] {
        let mut cluster = cluster(n);
        let right = states(&cluster)[0].clone();
        cluster.stop(1);
        damage_disk(&mut cluster, 1);
        cluster.start(1);
        cluster.run(1_000);
        assert_eq!(cluster.read(1, "c9"), json("38"), "it is wrong, and nobody knows");
        cluster.run(AUDITED_MS);
        assert_eq!(cluster.read(1, "c9"), json("39"));
        assert!(states(&cluster).iter().all(|state| *state == right));
        cluster.assert_converged(0);
        let counts: Vec<u64> = (0..n).map(|id| repaired(&cluster, id)).collect();
        assert_eq!((counts.iter().sum::<u64>(), counts[1]), (1, 1), "where the damage was, and nowhere else");
        cluster.stop(1);
        cluster.start(1);
        assert_eq!(cluster.read(1, "c9"), json("39"), "the store was saved anew");
        cluster.run(1_000);
        cluster.assert_converged(0);
    }
}

/// Where two are left and hold different things, nobody knows which is right.
#[test]
fn without_enough_others_nothing_is_changed() {
    let mut cluster = cluster(3);
    cluster.stop(1);
    damage_disk(&mut cluster, 1);
    cluster.start(1);
    cluster.run(1_000);
    cluster.stop(2);
    cluster.run(AUDITED_MS);
    assert_eq!((cluster.read(0, "c9"), cluster.read(1, "c9")), (json("39"), json("38")));
    assert!(cluster.sync_status(0).keys_damaged + cluster.sync_status(1).keys_damaged > 0, "it is known");
    cluster.start(2);
    cluster.run(AUDITED_MS);
    assert_eq!(cluster.read(1, "c9"), json("39"));
}

#[cfg(feature = "mutants")]
#[test]
fn a_bit_that_flips_in_memory_is_put_right() {
    let mut cluster = cluster(4);
    let right = states(&cluster)[0].clone();
    assert!(cluster.nodes[2].replica.as_mut().unwrap().flip_bit(b"c7", 60));
    assert_ne!(states(&cluster)[2], right);
    cluster.assert_converged(0);
    cluster.run(AUDITED_MS);
    assert!(states(&cluster).iter().all(|state| *state == right));
    assert!(repaired(&cluster, 2) == 1 && cluster.sync_status(2).keys_damaged >= 1);
    cluster.assert_converged(0);
}

/// Changes what node 0 says of keys; counts how often.
fn lies(cluster: &mut Cluster) -> std::rc::Rc<std::cell::Cell<u64>> {
    let count = std::rc::Rc::new(std::cell::Cell::new(0));
    let counted = std::rc::Rc::clone(&count);
    cluster.twist = Some(Box::new(move |from, _, bytes| {
        let Ok(PeerMessage::Sync(inner)) = dwcp_base::decode::<PeerMessage>(&bytes) else {
            return Some(bytes);
        };
        let Some(mut message) = Message::read(&inner).ok().filter(|_| from == 0) else { return Some(bytes) };
        match &mut message {
            Message::Copied { copies, .. } => copies.iter_mut().for_each(|(_, copy)| *copy = None),
            Message::Audit { work } => {
                work.ranges.iter_mut().for_each(|range| range.print.0[0] ^= 1);
                let leaves = work.leaves.iter_mut().flat_map(|leaf| &mut leaf.keys);
                leaves.for_each(|(_, hash)| hash.0[0] ^= 1);
            }
            _ => return Some(bytes),
        }
        counted.set(counted.get() + 1);
        Some(dwcp_base::encode(&PeerMessage::Sync(message.to_bytes())).into())
    }));
    count
}

#[test]
fn what_one_liar_says_of_keys_changes_nothing_and_keeps_nothing_from_being_put_right() {
    let mut cluster = cluster(4);
    let right = states(&cluster)[1].clone();
    let lies = lies(&mut cluster);
    cluster.run(AUDITED_MS);
    assert!(lies.get() > 3, "{} lies", lies.get());
    let named: u64 = (1..4).map(|id| cluster.sync_status(id).keys_damaged).sum();
    assert!(named > 0, "it had honest replicas think that keys differ");
    assert!(states(&cluster)[1..].iter().all(|state| *state == right));
    cluster.stop(1);
    damage_disk(&mut cluster, 1);
    cluster.start(1);
    cluster.run(3 * AUDITED_MS);
    assert!(states(&cluster)[1..].iter().all(|state| *state == right));
    assert_eq!((1..4).map(|id| repaired(&cluster, id)).sum::<u64>(), 1);
}
