//! A node's status, read from its fields on the wire. One node's word about itself: show it, do not act on it.

use dwcp_base::{
    Ack, Epoch, Hash, Incarnation, Index, NetworkMode, Position, PublicKey, ReplicaId, Sequence, Term, Trust,
    View,
};
use dwcp_proto::v3::{self, StatusReply};
use dwcp_replica::io::{PeerStatus, ProtocolName, SegmentStatus, Status, SwitchStatus};

/// How another member seems to the node that was asked: a hint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HintStatus {
    pub id: ReplicaId,
    /// `unknown`, `alive`, `suspect`, `down`, or a word of a later version.
    pub standing: String,
    pub since_ms: u64,
    /// Where that node's link to it leads, or last led.
    pub dialled: Option<String>,
    /// Where it says that it is.
    pub address: Option<String>,
}

/// What one node holds of the others, and how much of what it heard it did not take, by reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HintsStatus {
    pub peers: Vec<HintStatus>,
    pub drops: Vec<(String, u64)>,
}

/// `None` when a number is out of its range.
pub fn hints(wire: &mut StatusReply) -> Option<HintsStatus> {
    let text = |text: String| Some(text).filter(|text| !text.is_empty());
    let mut peers = Vec::with_capacity(wire.hints.len());
    for hint in std::mem::take(&mut wire.hints) {
        peers.push(HintStatus {
            id: replica(hint.id)?,
            standing: hint.standing,
            since_ms: hint.since_ms,
            dialled: text(hint.dialled),
            address: text(hint.address),
        });
    }
    let drops =
        std::mem::take(&mut wire.hint_drops).into_iter().map(|drop| (drop.name, drop.value)).collect();
    Some(HintsStatus { peers, drops })
}

pub(crate) fn replica(id: u32) -> Option<ReplicaId> {
    u8::try_from(id).ok().map(ReplicaId)
}

/// `None` when a field is out of its range or a hash has another length.
pub fn status(wire: StatusReply) -> Option<Status> {
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
    let segment = match wire.segment {
        Some(segment) => Some(read_segment(&segment)?),
        None => None,
    };
    let last_switch = match wire.last_switch {
        Some(switch) => Some(read_switch(switch)?),
        None => None,
    };
    let orderer = match wire.orderer {
        Some(id) => Some(replica(id)?),
        None => None,
    };
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
        mode: match v3::NetworkMode::try_from(wire.mode).ok()? {
            v3::NetworkMode::Unspecified => return None,
            v3::NetworkMode::Datacenter => NetworkMode::Datacenter,
            v3::NetworkMode::Internet => NetworkMode::Internet,
            v3::NetworkMode::Hybrid => NetworkMode::Hybrid,
        },
        trust: match v3::Trust::try_from(wire.trust).ok()? {
            v3::Trust::Unspecified => return None,
            v3::Trust::Crash => Trust::Crash,
            v3::Trust::Byzantine => Trust::Byzantine,
        },
        raft: wire.raft,
        default_ack: match v3::Ack::try_from(wire.default_ack).ok()? {
            v3::Ack::Policy => return None,
            v3::Ack::Majority => Ack::Majority,
            v3::Ack::Anchored => Ack::Anchored,
        },
        next_order: wire.next_order,
        epoch: Epoch(wire.epoch),
        protocol: protocol(wire.protocol)?,
        orderer,
        segment,
        failovers: wire.failovers,
        last_switch,
        no_segment: wire.no_segment,
        sync: match wire.sync {
            Some(sync) => Some(crate::sync_convert::status(sync)?),
            None => None,
        },
    })
}

fn protocol(wire: i32) -> Option<ProtocolName> {
    match v3::Protocol::try_from(wire).ok()? {
        v3::Protocol::Unspecified => None,
        v3::Protocol::Pbft => Some(ProtocolName::Pbft),
        v3::Protocol::Raft => Some(ProtocolName::Raft),
    }
}

fn read_segment(wire: &v3::SegmentStatus) -> Option<SegmentStatus> {
    Some(SegmentStatus {
        term: Term(wire.term),
        leader: match wire.leader {
            Some(id) => Some(replica(id)?),
            None => None,
        },
        last: Index(wire.last),
        committed: Index(wire.committed),
        applied: Index(wire.applied),
        anchored: Index(wire.anchored),
        anchored_position: Position(wire.anchored_position),
        sealed: wire.sealed,
        suspecting: wire.suspecting,
    })
}

fn read_switch(wire: v3::SwitchStatus) -> Option<SwitchStatus> {
    Some(SwitchStatus {
        epoch: Epoch(wire.epoch),
        to: protocol(wire.to)?,
        planned: wire.planned,
        sequence: Sequence(wire.sequence),
        gap_us: wire.gap_us,
        at_unix_ms: wire.at_unix_ms,
        cause: wire.cause,
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
            mode: v3::NetworkMode::Hybrid.into(),
            trust: v3::Trust::Crash.into(),
            protocol: v3::Protocol::Pbft.into(),
            default_ack: v3::Ack::Majority.into(),
            ..StatusReply::default()
        };
        assert!(status(good.clone()).is_some());
        assert!(status(StatusReply { replica: 300, ..good.clone() }).is_none());
        assert!(status(StatusReply { chain: Bytes::from_static(b"short"), ..good.clone() }).is_none());
        assert!(status(StatusReply { orderer: Some(256), ..good.clone() }).is_none());
        assert!(status(StatusReply { mode: 0, ..good.clone() }).is_none());
        assert!(status(StatusReply { protocol: 9, ..good }).is_none());
    }
}
