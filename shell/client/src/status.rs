//! A node's status, read from its fields on the wire. One node's word about itself: show it, do not act on it.

use dwcp_base::{Hash, Incarnation, Position, PublicKey, ReplicaId, Sequence, View};
use dwcp_proto::v3::StatusReply;
use dwcp_replica::Status;
use dwcp_replica::io::PeerStatus;

/// `None` when a field is out of its range or a hash has another length.
pub(crate) fn status(wire: StatusReply) -> Option<Status> {
    let replica = |id: u32| u8::try_from(id).ok().map(ReplicaId);
    let hash = |bytes: &[u8]| <[u8; 32]>::try_from(bytes).ok();
    let mut peers = Vec::with_capacity(wire.peers.len());
    for peer in wire.peers {
        peers.push(PeerStatus {
            id: replica(peer.id)?,
            view: View(peer.view),
            executed: Sequence(peer.executed),
            stable: Sequence(peer.stable),
            silent_ms: peer.silent_ms.unwrap_or(u64::MAX),
        });
    }
    Some(Status {
        replica: replica(wire.replica)?,
        incarnation: Incarnation(wire.incarnation),
        n: u8::try_from(wire.n).ok()?,
        f: u8::try_from(wire.f).ok()?,
        view: View(wire.view),
        view_active: wire.view_active,
        primary: replica(wire.primary)?,
        executed: Sequence(wire.executed),
        stable: Sequence(wire.stable),
        highest_seen: Sequence(wire.highest_seen),
        position: Position(wire.position),
        chain: Hash(hash(&wire.chain)?),
        state_digest_sequence: Sequence(wire.state_digest_sequence),
        state_digest: Hash(hash(&wire.state_digest)?),
        pending_frames: wire.pending_frames,
        pending_bytes: wire.pending_bytes,
        executed_commands: wire.executed_commands,
        log_time_ms: wire.log_time_ms,
        voter: wire.voter,
        transferring: wire.transferring,
        not_ready: wire.not_ready,
        counters: wire.counters.into_iter().map(|counter| (counter.name, counter.value)).collect(),
        peers,
        vote_key: PublicKey(hash(&wire.vote_key)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    #[test]
    fn a_status_with_a_field_out_of_range_is_refused() {
        let hash = Bytes::from(vec![1; 32]);
        let good = StatusReply {
            chain: hash.clone(),
            state_digest: hash.clone(),
            vote_key: hash,
            ..StatusReply::default()
        };
        assert!(status(good.clone()).is_some());
        assert!(status(StatusReply { replica: 300, ..good.clone() }).is_none());
        assert!(status(StatusReply { chain: Bytes::from_static(b"short"), ..good }).is_none());
    }
}
